"""Audits that run on their own, through a real Prefect server on loopback: by schedule, on a worker, with overrides."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, temporary_settings

import labelqa_dask
from flows.audit import SKIPPED
from flows.deploy import deploy, serve_configs
from labelqa_dask.core.errors import InvalidConfig, LabelQAError
from labelqa_dask.storage.lease import holding
from labelqa_dask.storage.record import latest
from pipelines.audit import run_audit
from pipelines.config import parse_config
from pipelines.plan import Resources, make_plan
from tests.pipelines.audits import Interrupted, interrupt

_SECONDS = 180
_REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Server:
    """A Prefect server of this module, and the environment of programs that use it."""

    url: str
    environment: dict[str, str]
    client: SyncPrefectClient

    def program(self, *arguments: str | Path) -> Sequence[str]:
        return [sys.executable, "-m", *map(str, arguments)]

    def run(self, *arguments: str | Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.program(*arguments), env=self.environment, cwd=_REPOSITORY, capture_output=True, text=True
        )
        assert done.returncode == expect, done.stdout + done.stderr
        return done

    def deploy(self, path: Path, *settings: str, cron: str | None = None, work_pool: str | None = None) -> Any:
        """What `labelqa deploy` does, in this process, and what the server made of it."""
        with temporary_settings({PREFECT_API_URL: self.url}):
            return self.deployment(deploy(path, settings, cron, work_pool).name.removeprefix("audit/"))

    @contextmanager
    def running(self, log: Path, *arguments: str | Path) -> Iterator[subprocess.Popen[bytes]]:
        """A program for the length of the block, unless it ends before; it is ended as a service manager would."""
        with log.open("wb") as output:
            process = subprocess.Popen(
                self.program(*arguments), env=self.environment, cwd=_REPOSITORY, stdout=output, stderr=output
            )
            try:
                yield process
            finally:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def deployment(self, name: str) -> Any:
        return self.client.read_deployment_by_name(f"audit/{name}")

    def runs_of(self, name: str) -> list[FlowRun]:
        deployment = self.deployment(name).id
        return [run for run in self.client.read_flow_runs() if run.deployment_id == deployment]

    def state_of(self, run: UUID) -> State[Any]:
        state = self.client.read_flow_run(run).state
        assert state is not None
        return state

    def artifacts_of(self, run: UUID) -> dict[str, Any]:
        wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run]))
        answer = self.client.request(
            "POST", "/artifacts/filter", json={"artifacts": wanted.model_dump(mode="json", exclude_unset=True)}
        )
        return {artifact["key"]: artifact["data"] for artifact in answer.json()}


def wait_until(condition: Callable[[], bool], log: Path | None = None) -> None:
    deadline = time.monotonic() + _SECONDS
    while not condition():
        assert time.monotonic() < deadline, log.read_text() if log else "it did not come to be"
        time.sleep(0.3)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("prefect")
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT")},
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PYTHONPATH": str(_REPOSITORY),
    }
    with SyncPrefectClient(url) as client:
        server = Server(url, environment, client)
        log = home / "server.log"
        with server.running(log, "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)):
            wait_until(lambda: _is_healthy(url), log)
            yield server


def _is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


# -- deployments


def test_a_deployment_has_its_schedule_and_runs_come_of_it(server, tmp_path, multiclass_from_parquet, config_file):
    stored = multiclass_from_parquet(str(tmp_path))
    path = config_file(stored, "nightly.yaml")
    printed = server.run("flows.cli", "deploy", path, "--cron", "*/10 * * * *").stdout
    assert re.search(r"deployment +audit/nightly\n", printed)
    assert "work pool   labelqa (process" in printed
    assert "prefect worker start --pool labelqa" in printed
    deployment = server.deployment("nightly")
    assert deployment.work_pool_name == "labelqa"
    assert [schedule.schedule.cron for schedule in deployment.schedules] == ["*/10 * * * *"]
    assert parse_config(deployment.parameters["config"]) == parse_config(stored.config)
    # Seen to fail silently where the server's own dependencies do not fit.
    wait_until(lambda: len(server.runs_of("nightly")) >= 3)
    assert {run.state.type for run in server.runs_of("nightly")} == {StateType.SCHEDULED}
    assert all(run.auto_scheduled for run in server.runs_of("nightly"))
    server.client.delete_deployment(deployment.id)


def test_a_deployment_is_replaced_by_the_next_one_of_its_name(server, tmp_path, multiclass_from_parquet, config_file):
    path = config_file(multiclass_from_parquet(str(tmp_path)), "twice.yaml")
    before = server.deploy(path, cron="0 3 * * *")
    after = server.deploy(path, "select.worst=7")
    assert after.id == before.id
    assert after.parameters["config"]["select"]["worst"] == 7
    assert after.schedules == []


def test_paths_are_made_absolute_as_a_run_starts_elsewhere(
    server, tmp_path, multiclass_from_parquet, config_file, monkeypatch
):
    path = config_file(multiclass_from_parquet(str(tmp_path)).into("s3://bucket/out"))
    monkeypatch.chdir(tmp_path)
    config = server.deploy(path, "input.labels.uri=data/part-*.parquet").parameters["config"]
    assert config["input"]["labels"]["uri"] == f"{tmp_path}/data/part-*.parquet"
    assert config["output"]["uri"] == "s3://bucket/out"


def test_the_ui_is_told_the_type_and_the_meaning_of_every_setting(
    server, tmp_path, multiclass_from_parquet, config_file
):
    schema = server.deploy(config_file(multiclass_from_parquet(str(tmp_path)))).parameter_openapi_schema
    assert [*schema["properties"]] == ["config", "fresh"]
    assert schema["properties"]["fresh"]["type"] == "boolean"
    assert "Discard an unfinished version" in schema["properties"]["fresh"]["description"]
    settings = schema["definitions"]["AuditConfig"]["properties"]
    assert settings["on_error"]["enum"] == ["fail", "quarantine"]
    assert settings["task"]["description"] == "The method, such as multiclass or segmentation."
    assert "mean_score" in schema["definitions"]["ExpectConfig"]["properties"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cron": "0 3 * *"}, "--cron '0 3 * *': Invalid cron string"),
        ({"work_pool": "nowhere"}, "--work-pool: there is no work pool 'nowhere'; there are: "),
    ],
)
def test_what_cannot_be_deployed_is_refused(server, tmp_path, multiclass_from_parquet, config_file, options, message):
    path = config_file(multiclass_from_parquet(str(tmp_path)), "refused.yaml")
    with pytest.raises(InvalidConfig) as caught:
        server.deploy(path, **options)
    assert message in str(caught.value)
    with pytest.raises(ObjectNotFound):
        server.deployment("refused")


def test_two_configurations_of_one_name_are_not_served(tmp_path, multiclass_from_parquet, config_file):
    stored = multiclass_from_parquet(str(tmp_path))
    (tmp_path / "more").mkdir()
    paths = [config_file(stored, name) for name in ("audit.yaml", "more/audit.yaml")]
    with pytest.raises(InvalidConfig, match="audit: is the name of two configurations"):
        serve_configs(paths, (), None)


def test_where_no_server_is_set_or_answers_it_says_so(tmp_path, multiclass_from_parquet, config_file):
    path = config_file(multiclass_from_parquet(str(tmp_path)))
    with (
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        pytest.raises(InvalidConfig, match=r"PREFECT_API_URL: is not set.*prefect server start"),
    ):
        deploy(path, (), None, None)
    nobody = f"http://127.0.0.1:{free_port()}/api"
    with (
        temporary_settings({PREFECT_API_URL: nobody}),
        pytest.raises(LabelQAError, match="no Prefect server answers there"),
    ):
        serve_configs([path], (), None)


def test_the_example_in_the_repository_can_be_deployed(server, tmp_path):
    server.run("prefect", "work-pool", "create", "labelqa", "--type", "process", "--overwrite")
    server.run("prefect", "--no-prompt", "deploy", "--all", "--prefect-file", _REPOSITORY / "prefect.yaml")
    deployment = server.deployment("street")
    assert deployment.entrypoint == "flows.audit.audit"
    assert deployment.pull_steps == []
    assert [schedule.schedule.cron for schedule in deployment.schedules] == ["0 3 * * *"]
    assert parse_config(deployment.parameters["config"]).task == "segmentation"


# -- runs


def run_on_a_worker(server: Server, name: str, log: Path, **parameters: Any) -> FlowRun:
    """A run of a deployment, by hand, on a worker that ends after it."""
    run = server.client.create_flow_run_from_deployment(server.deployment(name).id, parameters=parameters)
    with server.running(log, "prefect", "worker", "start", "--pool", "labelqa", "--run-once") as worker:
        worker.wait(_SECONDS)
        wait_until(lambda: server.state_of(run.id).is_final(), log)
    return server.client.read_flow_run(run.id)


@pytest.mark.slow
def test_a_scheduled_run_happens_and_leaves_its_artifacts(server, tmp_path, multiclass_from_parquet, config_file):
    stored = multiclass_from_parquet(str(tmp_path))
    path, log = config_file(stored, "served.yaml"), tmp_path / "serve.log"
    every_three_seconds = "* * * * * */3"
    with server.running(log, "flows.cli", "serve", path, "--cron", every_three_seconds):

        def completed() -> list[FlowRun]:
            return [run for run in server.runs_of("served") if run.state and run.state.is_completed()]

        wait_until(lambda: latest(stored.out) is not None, log)
        wait_until(lambda: len(completed()) >= 2, log)
        served = server.deployment("served")
        assert not served.paused
    first, *later = sorted(completed(), key=lambda run: run.start_time)
    assert first.auto_scheduled
    assert first.work_pool_name is None
    run = labelqa_dask.open_run(stored.config["output"]["uri"])
    assert run.version.name == "v000001", "nothing had changed when the later ones ran"
    assert len(run.scores) == 2000
    for each in (first, *later):
        artifacts = server.artifacts_of(each.id)
        assert "2,000 examples" in artifacts["audit-summary"]
        assert '"suggested_label"' in artifacts["audit-worst"]
    assert server.artifacts_of(first.id)["audit-score"] == 100.0
    assert server.deployment("served").paused, "nobody would run what comes due"
    # One at a time, however many were due.
    spans = sorted((run.start_time, run.end_time) for run in completed())
    assert all(ended <= began for (_, ended), (began, _) in pairwise(spans))


@pytest.mark.slow
def test_a_run_is_skipped_while_another_works_on_its_output(server, tmp_path, multiclass_from_parquet, config_file):
    stored = multiclass_from_parquet(str(tmp_path))
    server.deploy(config_file(stored, "overlapping.yaml"))
    with holding(stored.out) as lease:
        run = run_on_a_worker(server, "overlapping", tmp_path / "worker.log")
        assert lease.is_mine
    assert (run.state.type, run.state.name) == (StateType.CANCELLED, SKIPPED)
    assert f"process {os.getpid()} on {socket.gethostname()} has been working on this output since" in run.state.message
    assert latest(stored.out) is None
    assert "audit-summary" not in server.artifacts_of(run.id)


@pytest.mark.slow
def test_a_run_with_other_parameters_fails_where_it_is_not_as_they_expect(
    server, tmp_path, multiclass_from_parquet, config_file
):
    stored = multiclass_from_parquet(str(tmp_path))
    deployed = server.deploy(config_file(stored, "overridden.yaml"))
    expect = {"mean_score": {"max": 0.1}, "class_mean_score": {"each": {"min": 0}}}
    config = {**deployed.parameters["config"], "select": {"worst": 3}, "expect": expect}
    run = run_on_a_worker(server, "overridden", tmp_path / "worker.log", config=config)
    # Automations go by the name of the state.
    assert (run.state.type, run.state.name) == (StateType.FAILED, "Failed")
    assert "1 of 2 expectations is broken: mean_score: expected at most 0.1, found 0." in run.state.message
    published = labelqa_dask.open_run(stored.config["output"]["uri"])
    assert len(published.worst) == 3
    table = server.artifacts_of(run.id)["audit-expectations"]
    assert '"expectation": "mean_score", "expected": "at most 0.1"' in table
    assert table.count('"holds": "no"') == 1
    assert table.count('"holds": "yes"') == 1


@pytest.mark.slow
def test_a_scheduled_run_does_not_stop_at_one_that_can_no_longer_be_finished(
    server, client, tmp_path, multiclass_from_parquet, config_file
):
    stored = multiclass_from_parquet(str(tmp_path))
    plan = make_plan(parse_config(stored.config), Resources(2, 1, 4 << 30))
    with pytest.raises(Interrupted):
        run_audit(plan, client, interrupt("score", 2))
    first = tmp_path / "data" / "part-0.parquet"
    table = pq.read_table(first)
    pq.write_table(table.set_column(1, "label", pa.array((np.asarray(table["label"]) + 1) % 4)), first)
    server.deploy(config_file(stored, "outdated.yaml"))
    run = run_on_a_worker(server, "outdated", tmp_path / "worker.log")
    assert run.state.is_completed(), run.state.message
    assert latest(stored.out).name == "v000002"
