"""The Prefect flow: an audit's stages as tasks with retries, on a cluster that lives as long as the flow.

Tasks are coarse and take no arrays. The record of the run is the only memory between attempts, so nothing is cached by
Prefect: a stage that is tried again resumes where its receipts end.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, TypeVar

from prefect import flow, get_run_logger, task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import FlowRunContext
from prefect.states import Cancelled, Failed
from prefect.tasks import Task

from flows.cluster import open_cluster, resources_of
from flows.progress import every, progress_line, refreshed_lines
from labelqa_dask.core.errors import InvalidConfig, InvalidInput, OutdatedRun, OutputInUse, RunConflict, RunFailed
from labelqa_dask.storage.lease import refuse_if_held
from labelqa_dask.storage.location import Location
from pipelines.audit import Audited, run_audit
from pipelines.config import AuditConfig
from pipelines.expect import ExpectationsBroken, refuse_broken
from pipelines.plan import make_plan
from pipelines.regions import Listener, Progress

T = TypeVar("T")

SKIPPED = "Skipped"
"""Alerts on cancelled runs are about those that people have cancelled: their trigger is the name of a state."""

_RETRY_DELAYS: list[float] = [5, 30]
_SECONDS_BETWEEN_UPDATES = 2.0
_ROWS_IN_TABLE = 20
_FINAL_ERRORS = (InvalidConfig, InvalidInput, RunConflict, RunFailed)

_watching: ContextVar[Listener | None] = ContextVar("watching", default=None)
_outcome: ContextVar[list[Audited] | None] = ContextVar("outcome", default=None)


@flow(name="audit", persist_result=False)
def audit(config: AuditConfig, fresh: bool = False) -> str | State[Any]:
    """Score the labels of a stored data set, and publish the scores, the worst examples and a report.

    Running it again with the same configuration finishes a run that was interrupted. A run of a deployment discards one
    that can no longer be finished, as its inputs were rewritten; others are refused then.
    Returns the location of the published version.

    A run of a deployment ends as Failed where what it published is not as expected, and as Skipped, which is a kind of
    Cancelled, where another run works on its output; its message says more.

    Args:
        config: What is scored, how, where the scores go, and what runs it: the configuration as in a file.
        fresh: Discard an unfinished version, and make a new one from scratch even if nothing has changed.
    """
    try:
        return _audit(config, fresh)
    except ExpectationsBroken as error:
        return _ended(Failed(message=str(error)), error)
    except OutputInUse as error:
        return _ended(Cancelled(name=SKIPPED, message=str(error)), error)


def _audit(config: AuditConfig, fresh: bool) -> str:
    listener = _listeners(_progress_artifact(), _watching.get() or _log_progress(get_run_logger()))
    # Before any worker is started in vain.
    refuse_if_held(Location.parse(config.output.uri, config.storage))
    plan = _as_task("plan", make_plan, config, resources_of(config))
    with open_cluster(config) as client:
        try:
            audited = run_audit(plan, client, listener, fresh=fresh, call=_as_task)
        except OutdatedRun as error:
            if not _is_of_a_deployment():
                raise
            # Nobody is there to say so, and every later run would be refused as well.
            get_run_logger().warning("%s It is discarded.", error.what)
            audited = run_audit(plan, client, listener, discard=True, call=_as_task)
    _publish_artifacts(audited)
    outcome = _outcome.get()
    if outcome is not None:
        outcome.append(audited)
    where = str(audited.run.version.location)
    refuse_broken(audited.findings, where)
    return where


def _ended(state: State[Any], error: Exception) -> State[Any]:
    """How a run of a deployment ends, for those who watch the server; whoever called the flow gets the error."""
    if _is_of_a_deployment():
        return state
    raise error


def _is_of_a_deployment() -> bool:
    context = FlowRunContext.get()
    return context is not None and context.flow_run is not None and context.flow_run.deployment_id is not None


def run_flow(config: AuditConfig, listener: Listener, *, fresh: bool) -> Audited:
    """Run the flow in this process, and tell a listener, such as a terminal, of its progress."""
    outcome: list[Audited] = []
    watching, receiving = _watching.set(listener), _outcome.set(outcome)
    try:
        with suppress(ExpectationsBroken):  # the outcome tells of them
            audit(config, fresh=fresh)
    finally:
        _watching.reset(watching)
        _outcome.reset(receiving)
    return outcome[0]


def _as_task(name: str, function: Callable[..., T], *args: Any) -> T:
    """Run a stage as a Prefect task; its arguments stay in this process."""

    def stage() -> T:
        return function(*args)

    run = task(
        name=name,
        cache_policy=NO_CACHE,
        # The plan reads metadata only, and the store has retried that already.
        retries=len(_RETRY_DELAYS) if name != "plan" else 0,
        retry_delay_seconds=_RETRY_DELAYS,
        retry_condition_fn=_is_worth_retrying,
        persist_result=False,
    )(stage)
    return run()


def _is_worth_retrying(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Bad data and bad settings stay bad; anything else may have been the network, a worker or a store."""
    try:
        state.result()
    except _FINAL_ERRORS:
        return False
    except Exception:
        return True
    return False


def _listeners(*listeners: Listener) -> Listener:
    def tell(progress: Progress) -> None:
        for listener in listeners:
            listener(progress)

    return tell


def _progress_artifact() -> Listener:
    artifacts: dict[str, Any] = {}

    def tell(progress: Progress) -> None:
        percent = 100.0 * progress.done / max(1, progress.total)
        if progress.stage in artifacts:
            update_progress_artifact(artifacts[progress.stage], progress=percent)
        else:
            key = f"audit-{progress.stage.replace(' ', '-').replace('_', '-')}"
            artifacts[progress.stage] = create_progress_artifact(
                progress=percent, key=key, description=f"{progress.stage}: {progress.total:,} {progress.unit}"
            )

    return every(_SECONDS_BETWEEN_UPDATES, tell)


def _log_progress(logger: logging.Logger | logging.LoggerAdapter[Any]) -> Listener:
    return every(10.0, lambda progress: logger.info(progress_line(progress)))


def _publish_artifacts(audited: Audited) -> None:
    run = audited.run
    summary = run.summary
    score, left_out = summary["score"], summary["quarantined"]
    lines = [
        f"# {summary['task']}: {summary['examples']:,} examples",
        "",
        "- nothing has changed since this version was published" if audited.unchanged else "",
        f"- refreshed {refreshed_lines(audited.refreshed)}" if audited.refreshed else "",
        f"- mean {score['name']}: {score['mean']:.4f}" if score["mean"] is not None else "- nothing was scored",
        f"- lowest: {score['min']:.4g}" if score["min"] is not None else "",
        f"- left out, as their data cannot be scored: {left_out['regions']:,} regions" if left_out["regions"] else "",
        *(f"- {remark}" for remark in summary["remarks"]),
        f"- {_expectations(audited)}" if audited.findings else "",
        f"- settings: `{summary['params']}`",
        f"- scores: `{run.version.location}`",
        f"- report: `{run.report}`",
    ]
    create_markdown_artifact("\n".join(lines), key="audit-summary", description="What the audit found")
    rows: list[dict[str, Any]] = json.loads(run.worst.head(_ROWS_IN_TABLE).to_json(orient="records"))
    create_table_artifact(rows, key="audit-worst", description=f"The {len(rows)} worst examples, worst first")
    if audited.findings:
        create_table_artifact(
            [
                {
                    "expectation": finding.expectation,
                    "expected": finding.expected,
                    "found": finding.found,
                    "holds": "yes" if finding.holds else "no",
                }
                for finding in audited.findings
            ],
            key="audit-expectations",
            description=_expectations(audited),
        )


def _expectations(audited: Audited) -> str:
    broken = sum(not finding.holds for finding in audited.findings)
    return f"expectations: {broken} of {len(audited.findings)} broken" if broken else "expectations: all hold"
