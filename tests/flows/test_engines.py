"""Clusters that engines begin: job scripts, pod specifications and arguments, as the engines themselves make them.

No batch system, Kubernetes or cloud is there to begin one for real. The job script of Slurm is run all the same, by
commands that stand in for sbatch and scancel.
"""

from __future__ import annotations

import inspect
import os
import shlex
import signal
import sys
import time
from pathlib import Path

import dask
import pytest
from dask.utils import parse_bytes

from flows import engines
from flows.cluster import open_cluster, resources_of
from labelqa_dask.core.errors import InvalidConfig, RunFailed
from pipelines.config import parse_config
from pipelines.plan import Resources
from pipelines.regions import in_flight
from tests.pipelines.audits import wait_until

GIB = 1 << 30
WORKERS = {"workers": 4, "threads_per_worker": 2, "memory_limit": "3GiB"}
JOBS = {
    **WORKERS,
    "workers_per_job": 2,
    "env": {"SCRATCH": "/local disk"},
    "job_script_prologue": ["module load python"],
}
IN_QUEUE = {**JOBS, "queue": "long", "walltime": "12:00:00", "job_extra_directives": ["--x y"]}
ACCOUNT, PROJECT = {**IN_QUEUE, "account": "vision"}, {**IN_QUEUE, "project": "vision"}
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "33554432",
    "MALLOC_ARENA_MAX": "1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
}


def config(kind, **settings):
    inputs = {"labels": {"uri": "data.zarr"}, "pred_probs": {"uri": "data.zarr"}}
    cluster = {"kind": kind, **settings}
    return parse_config({"task": "multiclass", "input": inputs, "output": {"uri": "out"}, "cluster": cluster})


def job_script(kind, **settings):
    with engines.job_queue(config(kind, **settings).cluster) as cluster:
        return cluster.job_script()


# -- batch systems


@pytest.mark.parametrize(
    ("kind", "settings", "header"),
    [
        (
            "slurm",
            ACCOUNT,
            [
                "#SBATCH -J dask-worker",
                "#SBATCH -p long",
                "#SBATCH -A vision",
                "#SBATCH -n 1",
                "#SBATCH --cpus-per-task=4",
                "#SBATCH --mem=6G",
                "#SBATCH -t 12:00:00",
                "#SBATCH --x y",
            ],
        ),
        *(
            (
                kind,
                ACCOUNT,
                [
                    "#PBS -N dask-worker",
                    "#PBS -q long",
                    "#PBS -A vision",
                    "#PBS -l select=1:ncpus=4:mem=6144MB",
                    "#PBS -l walltime=12:00:00",
                    "#PBS --x y",
                ],
            )
            for kind in ("pbs", "moab")
        ),
        (
            "sge",
            PROJECT,
            [
                "#$ -N dask-worker",
                "#$ -q long",
                "#$ -P vision",
                "#$ -l h_rt=12:00:00",
                "#$ -cwd",
                "#$ -j y",
                "#$ --x y",
            ],
        ),
        (
            "lsf",
            PROJECT,
            [
                "#BSUB -J dask-worker",
                "#BSUB -q long",
                '#BSUB -P "vision"',
                "#BSUB -n 4",
                '#BSUB -R "span[hosts=1]"',
                "#BSUB -M 6442451",
                "#BSUB -W 12:00:00",
                "#BSUB --x y",
            ],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_job_asks_for_what_its_workers_have_and_starts_them(kind, settings, header, monkeypatch, tmp_path):
    monkeypatch.setenv("LSF_ENVDIR", str(tmp_path))
    shebang, _, *lines = job_script(kind, **settings).rstrip().splitlines()
    assert shebang == "#!/usr/bin/env bash"
    assert lines[: len(header)] == header
    *prologue, command = lines[len(header) :]
    exports = {**ENVIRONMENT, "SCRATCH": "'/local disk'"}
    assert prologue == [*(f"export {name}={value}" for name, value in exports.items()), "module load python"]
    words = shlex.split(command)
    assert words[:3] == [sys.executable, "-m", "distributed.cli.dask_worker"]
    options = dict(zip(words[4::2], words[5::2], strict=False))
    assert {options[name] for name in ("--nthreads", "--nworkers")} == {"2"}
    assert parse_bytes(options["--memory-limit"]) == 3 * GIB


def test_a_job_of_htcondor_asks_for_what_its_workers_have_and_starts_them():
    script = job_script("htcondor", **JOBS, disk="2GiB", job_extra_directives={"+Group": "vision"})
    for line in (
        "MY.DaskWorkerCores = 4",
        f"MY.DaskWorkerMemory = {6 * GIB}",
        f"MY.DaskWorkerDisk = {2 * GIB}",
        "+Group = vision",
    ):
        assert line in script.splitlines()
    (arguments,) = (line for line in script.splitlines() if line.startswith("Arguments"))
    assert "; ".join(f"export {name}={value}" for name, value in ENVIRONMENT.items()) in arguments
    assert "export SCRATCH=''/local disk''; module load python; " in arguments
    assert "--nthreads 2 --memory-limit 3.00GiB --nworkers 2" in arguments


def test_what_is_not_said_is_as_the_site_has_it():
    site = {
        "jobqueue.slurm.queue": "everyone",
        "jobqueue.slurm.walltime": "03:00:00",
        "jobqueue.slurm.job-script-prologue": ["source /site/profile"],
        "jobqueue.slurm.job-extra-directives": ["--constraint=cpu"],
    }
    with dask.config.set(site):
        script = job_script("slurm", **WORKERS)
    for line in ("#SBATCH -p everyone", "#SBATCH -t 03:00:00", "#SBATCH --constraint=cpu", "source /site/profile"):
        assert line in script.splitlines()
    assert "export MALLOC_ARENA_MAX=1" in script.splitlines()


@pytest.mark.parametrize("kind", ["slurm", "pbs", "moab", "sge", "lsf", "htcondor"])
def test_a_host_that_cannot_submit_jobs_is_refused(kind, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    settings = config(kind, **WORKERS, **({"disk": "1GiB"} if kind == "htcondor" else {}))
    with pytest.raises(InvalidConfig, match=r"submits jobs by \w+, which is not found here"), open_cluster(settings):
        pass


@pytest.fixture
def batch_system(tmp_path, monkeypatch):
    """A folder of jobs, and commands that submit and cancel them in the place of Slurm's."""
    commands, jobs = tmp_path / "bin", tmp_path / "jobs"
    commands.mkdir()
    jobs.mkdir()
    submit = f'cp "$1" {jobs}/$$.sh; setsid bash {jobs}/$$.sh >{jobs}/$$.log 2>&1 & echo Submitted batch job $!'
    for name, line in {"sbatch": submit, "scancel": 'kill -9 -- "-$1"'}.items():
        (commands / name).write_text(f"#!/bin/sh\n{line}\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    return jobs


def test_a_queue_grows_to_its_maximum_while_there_is_work(batch_system: Path):
    settings = config(
        "slurm", workers={"minimum": 0, "maximum": 2}, memory_limit="1GiB", env={"FROM": "the configuration"}
    )
    with open_cluster(settings) as client:
        work = in_flight(client, lambda i: time.sleep(0.2) or os.getpid(), range(1000), GIB)
        processes: set[int] = set()
        while len(processes) < 2:
            processes.add(next(work)[1])
        work.close()
        for worker in client.scheduler_info()["workers"].values():
            assert (worker["nthreads"], worker["memory_limit"]) == (1, GIB)
        for variables in client.run(lambda: dict(os.environ)).values():
            assert variables.items() >= {**ENVIRONMENT, "FROM": "the configuration"}.items()
    assert len(list(batch_system.glob("*.sh"))) == 2
    wait_until(lambda: not any(Path(f"/proc/{process}").exists() for process in processes))


@pytest.mark.slow
def test_a_job_that_ends_before_the_run_is_submitted_again(batch_system: Path):
    with open_cluster(config("slurm", workers=1, memory_limit="1GiB")) as client:
        client.wait_for_workers(1, timeout=60)
        (process,) = client.run(os.getpid).values()
        os.killpg(os.getpgid(process), signal.SIGKILL)
        assert client.submit(os.getpid).result(timeout=120) != process
    assert len(list(batch_system.glob("*.sh"))) == 2


def test_a_batch_system_that_refuses_jobs_fails_the_run(batch_system: Path):
    (batch_system.parent / "bin" / "sbatch").write_text("#!/bin/sh\necho 'Invalid account' >&2; exit 1\n")
    with (
        pytest.raises(RunFailed, match=r"(?s)could not be begun.*Invalid account"),
        open_cluster(config("slurm", **WORKERS)),
    ):
        pass


# -- Kubernetes


def pods(**settings):
    settings = config("kubernetes", image="registry/labelqa:1", **WORKERS, **settings).cluster
    spec = engines.kubernetes_spec(settings, "labelqa-1")
    return spec, spec["spec"]["worker"]["spec"], spec["spec"]["scheduler"]["spec"]


def test_pods_have_the_image_the_commands_and_what_a_worker_needs():
    spec, worker, scheduler = pods(env={"OMP_NUM_THREADS": "2"})
    assert (spec["kind"], spec["metadata"]["name"]) == ("DaskCluster", "labelqa-1")
    assert spec["spec"]["worker"]["replicas"] == 4
    memory = str(3 * GIB)
    for pod in (worker, scheduler):
        (container,) = pod["containers"]
        assert container["image"] == "registry/labelqa:1"
        assert container["resources"] == {"requests": {"cpu": "2", "memory": memory}, "limits": {"memory": memory}}
        variables = {entry["name"]: entry["value"] for entry in container["env"]}
        assert variables.items() >= {**ENVIRONMENT, "OMP_NUM_THREADS": "2"}.items()
        assert container["envFrom"] == []
        assert "serviceAccountName" not in pod
    (container,) = worker["containers"]
    assert container["command"] == ["dask", "worker"]
    assert container["args"][:6] == ["--nthreads", "2", "--memory-limit", memory, "--name", "$(DASK_WORKER_NAME)"]
    (container,) = scheduler["containers"]
    assert (container["command"], container["args"]) == (["dask", "scheduler"], ["--host", "0.0.0.0"])


def test_pods_take_credentials_from_secrets_and_a_service_account():
    for pod in pods(secrets=["store", "proxy"], service_account="auditor")[1:]:
        assert pod["serviceAccountName"] == "auditor"
        references = [entry["secretRef"]["name"] for entry in pod["containers"][0]["envFrom"]]
        assert references == ["store", "proxy"]


# -- Coiled


def test_coiled_is_told_what_a_worker_needs():
    image = config("coiled", **WORKERS, image="registry/labelqa:1", region="eu-central-1").cluster
    arguments = engines.coiled_arguments(image)
    assert arguments["n_workers"] == 4
    assert arguments["worker_options"] == {"nthreads": 2, "memory_limit": 3 * GIB}
    assert arguments["worker_cpu"] == 2
    least, most = map(parse_bytes, arguments["worker_memory"])
    assert 3 * GIB < 0.9 * least < most, "Coiled takes machines with a tenth less than asked for"
    assert arguments["environ"] == ENVIRONMENT
    assert (arguments["container"], arguments["region"]) == ("registry/labelqa:1", "eu-central-1")
    here = config("coiled", **(WORKERS | {"workers": {"minimum": 0, "maximum": 9}}), env={"A": "b"}).cluster
    assert engines.coiled_arguments(here)["n_workers"] == [0, 9]
    assert engines.coiled_arguments(here)["environ"]["A"] == "b"
    assert not engines.coiled_arguments(here).keys() & {"container", "software", "region", "workspace"}


def test_coiled_knows_every_argument():
    coiled = pytest.importorskip("coiled", reason="installed with the extra coiled")
    for software in ({"image": "registry/labelqa:1"}, {"software": "labelqa"}):
        settings = config("coiled", **WORKERS, **software, region="eu-central-1", workspace="vision").cluster
        inspect.signature(coiled.Cluster).bind(**engines.coiled_arguments(settings))


# -- all of them


@pytest.mark.parametrize(
    ("kind", "settings", "extra"),
    [
        ("slurm", {}, "jobqueue"),
        ("kubernetes", {"image": "registry/labelqa:1"}, "kubernetes"),
        ("coiled", {}, "coiled"),
    ],
)
def test_an_engine_that_is_not_installed_is_named_with_its_extra(kind, settings, extra, monkeypatch):
    for module in ("dask_jobqueue", "dask_kubernetes.operator", "coiled"):
        monkeypatch.setitem(sys.modules, module, None)
    settings = config(kind, **WORKERS, **settings)
    with pytest.raises(InvalidConfig, match=rf"pip install 'labelqa-dask\[{extra}\]'"), open_cluster(settings):
        pass


@pytest.mark.parametrize("kind", ["slurm", "kubernetes", "coiled"])
def test_the_plan_counts_on_what_each_worker_is_given(kind):
    image = {"image": "registry/labelqa:1"} if kind == "kubernetes" else {}
    assert resources_of(config(kind, **WORKERS, **image)) == Resources(4, 2, 3 * GIB)
    growing = config(kind, **(WORKERS | {"workers": {"minimum": 1, "maximum": 9}}), **image)
    assert resources_of(growing) == Resources(9, 2, 3 * GIB)
