"""Audits that run on their own: deployments of the Prefect flow, by schedule or by hand, on a worker or in a process.

Prefect is given no limit to the runs of a deployment at one time: the lease on the output refuses the second one, says
who holds it, and ends with its holder. The server keeps the slots of such a limit in memory: where it is restarted, the
run that holds one is ended.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import serve
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from prefect.types.entrypoint import EntrypointType
from pydantic import ValidationError

from flows.audit import audit
from flows.settings import load_config
from labelqa_dask.core.errors import InvalidConfig, LabelQAError
from pipelines.config import AuditConfig

WORK_POOL = "labelqa"
"""Made where no work pool is named: its workers run audits as processes of the machine that they are on."""


@dataclass(frozen=True)
class Deployed:
    """A deployment that workers of a pool will run."""

    name: str
    work_pool: str
    kind: str
    made_pool: bool


def deploy(path: Path, overrides: Sequence[str], cron: str | None, work_pool: str | None) -> Deployed:
    """Make or replace the deployment of a configuration, named after its file.

    Raises
    ------
    InvalidConfig
        Where there is no server, no such work pool, or the schedule is none.
    """
    deployment = _deployment(path, overrides, cron)
    with _server() as client:
        pool, kind, made = _work_pool(client, work_pool)
    deployment.apply(work_pool_name=pool)
    return Deployed(deployment.full_name, pool, kind, made)


def serve_configs(paths: Sequence[Path], overrides: Sequence[str], cron: str | None) -> None:
    """Make or replace the deployments of some configurations, and run them from this process until it is ended.

    One at a time: an audit on this machine counts on all of its memory. What is due meanwhile waits.

    Raises
    ------
    InvalidConfig
        Where there is no server, the schedule is none, or two configurations have one name.
    """
    deployments = [_deployment(path, overrides, cron) for path in paths]
    names = [deployment.name for deployment in deployments]
    for name in names:
        if names.count(name) > 1:
            raise InvalidConfig("is the name of two configurations", name, "Deployments are named by them: rename one.")
    with _server():
        pass
    serve(*deployments, limit=1)


def _deployment(path: Path, overrides: Sequence[str], cron: str | None) -> RunnerDeployment:
    config = load_config(path, overrides)
    if cron is not None:
        try:
            CronSchedule(cron=cron)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise InvalidConfig(reason, f"--cron {cron!r}", "Such as '0 3 * * *', every night at 3.") from None
    return RunnerDeployment.from_flow(
        audit,
        name=path.stem,
        cron=cron,
        parameters={"config": _portable(config)},
        description=f"Label audit ({config.task}) into {config.output.uri}, from {path.name}.",
        tags=["labelqa"],
        entrypoint_type=EntrypointType.MODULE_PATH,
    )


def _portable(config: AuditConfig) -> dict[str, Any]:
    """The settings that were given, paths made absolute: a run does not start where this process did."""
    settings = config.model_dump(mode="json", exclude_unset=True)
    for place in (settings["output"], *settings["input"].values()):
        if "://" not in place["uri"]:
            place["uri"] = os.path.abspath(os.path.expanduser(place["uri"]))
    return settings


@contextmanager
def _server() -> Iterator[SyncPrefectClient]:
    """A client of the server that keeps schedules.

    Raises
    ------
    InvalidConfig, LabelQAError
        Where none is set, and where it does not answer.
    """
    url = get_current_settings().api.url
    if url is None:
        raise InvalidConfig(
            "is not set, and schedules need a Prefect server that stays",
            "PREFECT_API_URL",
            "Start one with 'prefect server start', and set PREFECT_API_URL=http://127.0.0.1:4200/api.",
        )
    with get_client(sync_client=True) as client:
        problem = client.api_healthcheck()
        if problem is not None:
            found = f"no Prefect server answers there ({type(problem).__name__})"
            raise LabelQAError(found, url, "Check PREFECT_API_URL.")
        yield client


def _work_pool(client: SyncPrefectClient, name: str | None) -> tuple[str, str, bool]:
    """Name and kind of a work pool, and whether it was made: the one named, Prefect's default, or our own."""
    chosen = name or get_current_settings().deployments.default_work_pool_name or WORK_POOL
    try:
        return chosen, client.read_work_pool(chosen).type, False
    except ObjectNotFound:
        if chosen == WORK_POOL:
            return chosen, client.create_work_pool(WorkPoolCreate(name=chosen, type="process")).type, True
    there = ", ".join(pool.name for pool in client.read_work_pools()) or "none"
    raise InvalidConfig(
        f"there is no work pool {chosen!r}; there are: {there}",
        "--work-pool",
        f"Make one with 'prefect work-pool create {chosen} --type process', or kubernetes, docker and so on.",
    )
