"""Clusters that other engines begin for a run: jobs of a batch system, pods of Kubernetes, machines of Coiled.

What a kind needs is installed with the extra of this package that is named after its engine, and imported here only
when a run begins such a cluster.
"""

from __future__ import annotations

import shlex
import shutil
from typing import Any
from uuid import uuid4

import dask
from dask.utils import parse_bytes
from distributed import Status
from distributed.deploy.cluster import Cluster

from labelqa_dask.core.errors import InvalidConfig, RunFailed
from labelqa_dask.core.extras import import_extra
from pipelines.clusters import AnyBegunCluster, AnyJobsCluster, CoiledCluster, JobsCluster, KubernetesCluster

# Blocks of some MiB come and go all the time. By default each is mapped anew in pages of 4 KiB, and faulting them in
# takes longer than decompressing into them; kept in the heap, in huge pages, they make reading almost twice as fast.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(32 << 20),
    "MALLOC_ARENA_MAX": "1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
# Dask looks at the frames of all threads a hundred times a second, to tell where time goes. In older releases of Python
# 3.11 (CPython #106883) that stops the process for good where garbage is collected at that very moment: seen twice,
# after some 65,000 regions; the scheduler waited five minutes before it gave the worker up.
UNPROFILED = {"distributed.worker.profile.enabled": False}
ENVIRONMENT = {**ALLOCATOR, "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False"}
# Dask asks for as many workers as finish the work that it knows of within a time. A run lets it know of a few regions
# per thread at a time, so with any other time than next to none a cluster would never grow.
_TARGET_SECONDS = "1ms"
# Workers are kept over the pauses between two stages, as queues are slow to give them again.
_EVALUATIONS_BEFORE_REMOVAL = 120
# Kubernetes ends what a driver that was killed has left behind. The driver's own work between stages is shorter.
_IDLE_SECONDS = 1800
_QUEUES = {
    "slurm": "SLURMCluster",
    "pbs": "PBSCluster",
    "moab": "MoabCluster",
    "sge": "SGECluster",
    "lsf": "LSFCluster",
    "htcondor": "HTCondorCluster",
}


def begin(settings: AnyBegunCluster) -> Cluster:
    """Begin a cluster, which ends when it is closed; its workers may come later.

    Raises
    ------
    InvalidConfig
        Where the engine is not installed, or jobs cannot be submitted from this host.
    RunFailed
        Where the engine refuses.
    """
    try:
        if isinstance(settings, JobsCluster):
            return _begin_jobs(settings)
        if isinstance(settings, KubernetesCluster):
            return _begin_pods(settings)
        return import_extra("coiled", "coiled", "cluster").Cluster(**coiled_arguments(settings))
    except InvalidConfig:
        raise
    except Exception as error:
        raise RunFailed(
            f"could not be begun ({type(error).__name__}: {error})", "cluster", "Check its settings, then run again."
        ) from error


# -- batch systems


def job_arguments(settings: AnyJobsCluster) -> dict[str, Any]:
    """What dask-jobqueue is told; what is not given here may be given by the site's jobqueue.yaml."""
    _queue_class(settings)  # importing it reads the site's settings
    site = dask.config.get(f"jobqueue.{settings.kind}")
    variables = {**ENVIRONMENT, **settings.env}
    exports = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    named = {"queue", "walltime", "account", "project", "disk", "interface", "job_extra_directives"}
    given = {name: value for name, value in settings.model_dump(include=named).items() if value}
    return given | {
        "cores": settings.workers_per_job * settings.threads_per_worker,
        "processes": settings.workers_per_job,
        "memory": f"{settings.workers_per_job * parse_bytes(settings.memory_limit)}B",
        "job_script_prologue": [*exports, *(settings.job_script_prologue or site["job-script-prologue"] or ())],
        "scheduler_options": {"dashboard_address": ":0", **site["scheduler-options"]},
    }


def job_queue(settings: AnyJobsCluster) -> Any:
    """A cluster without workers yet, whose `job_script()` is what will be submitted."""
    return _queue_class(settings)(**job_arguments(settings))


def _queue_class(settings: AnyJobsCluster) -> Any:
    return getattr(import_extra("dask_jobqueue", "jobqueue", "cluster"), _QUEUES[settings.kind])


def _begin_jobs(settings: AnyJobsCluster) -> Cluster:
    command = _queue_class(settings).job_cls.submit_command
    if shutil.which(command) is None:
        raise InvalidConfig(
            f"kind {settings.kind} submits jobs by {command}, which is not found here",
            "cluster",
            "Run this on a host from which jobs can be submitted.",
        )
    cluster = job_queue(settings)
    workers = settings.workers

    async def submit() -> None:
        cluster.scale(workers.minimum or settings.workers_per_job)
        await cluster

    try:
        # At least one job at once: where later ones are refused, Dask only logs it, and the run would wait for ever.
        cluster.sync(submit)
    except BaseException:
        for job in cluster.workers.values():
            job.status = Status.failed  # or else the cluster does not close where one was refused
        cluster.close()
        raise
    # A fixed number too: as part of this, jobs that have ended before the run are submitted again.
    cluster.adapt(
        minimum=workers.minimum,
        maximum=workers.maximum,
        target_duration=_TARGET_SECONDS,
        wait_count=_EVALUATIONS_BEFORE_REMOVAL,
    )
    return cluster


# -- Kubernetes


def kubernetes_spec(settings: KubernetesCluster, name: str) -> dict[str, Any]:
    """The DaskCluster resource that the operator makes pods of."""
    memory = str(parse_bytes(settings.memory_limit))
    threads = settings.threads_per_worker
    spec = import_extra("dask_kubernetes.operator", "kubernetes", "cluster").make_cluster_spec(
        name=name,
        image=settings.image,
        n_workers=settings.workers.minimum,
        resources={"requests": {"cpu": str(threads), "memory": memory}, "limits": {"memory": memory}},
        env={**ENVIRONMENT, "DASK_DISTRIBUTED__ADAPTIVE__TARGET_DURATION": _TARGET_SECONDS, **settings.env},
        worker_command=["dask", "worker", "--nthreads", str(threads), "--memory-limit", memory],
        idle_timeout=_IDLE_SECONDS,
    )
    for part, words in (("worker", 2), ("scheduler", 1)):
        pod = spec["spec"][part]["spec"]
        (container,) = pod["containers"]
        # The image's own entry point is labelqa, and newer versions of Dask have no dask-scheduler.
        container["command"], container["args"] = ["dask", part], container["args"][words:]
        container["envFrom"] = [{"secretRef": {"name": secret}} for secret in settings.secrets]
        if settings.service_account is not None:
            pod["serviceAccountName"] = settings.service_account
    return spec


def _begin_pods(settings: KubernetesCluster) -> Cluster:
    spec = kubernetes_spec(settings, f"labelqa-{uuid4().hex[:10]}")
    cluster = import_extra("dask_kubernetes.operator", "kubernetes", "cluster").KubeCluster(
        custom_cluster_spec=spec, namespace=settings.namespace, quiet=True
    )
    workers = settings.workers
    if workers.minimum < workers.maximum:
        cluster.adapt(minimum=workers.minimum, maximum=workers.maximum)
    return cluster


# -- Coiled


def coiled_arguments(settings: CoiledCluster) -> dict[str, Any]:
    """What Coiled is told: one worker per machine, which has some memory more than the worker."""
    limit = parse_bytes(settings.memory_limit)
    given = settings.model_dump(include={"software", "region", "workspace"}, exclude_none=True)
    if settings.image is not None:
        given |= {"container": settings.image, "ignore_container_entrypoint": True}
    workers = settings.workers
    return given | {
        "n_workers": [workers.minimum, workers.maximum] if workers.minimum < workers.maximum else workers.minimum,
        "worker_cpu": settings.threads_per_worker,
        "worker_memory": [f"{int(factor * limit)}B" for factor in (1.25, 2.5)],
        "worker_options": {"nthreads": settings.threads_per_worker, "memory_limit": limit},
        "environ": {**ENVIRONMENT, **settings.env},
        "wait_for_workers": False,
        "show_widget": False,
    }
