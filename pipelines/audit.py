"""A whole audit: the stages in turn, on a cluster that somebody else owns."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from distributed import Client

from labelqa_dask.core.errors import InvalidInput, RunConflict, RunFailed
from labelqa_dask.storage.annotations import AnnotationsSource
from labelqa_dask.storage.lease import Lease, holding
from labelqa_dask.storage.location import Location
from labelqa_dask.storage.record import (
    Json,
    Version,
    check_same,
    dump_json,
    latest,
    manifest_digest,
    next_version,
    unfinished,
)
from labelqa_dask.storage.run import Run
from pipelines.bad_data import BadRegions
from pipelines.estimate import estimate
from pipelines.expect import Finding, evaluate
from pipelines.group import clear, group
from pipelines.plan import Plan, make_plan, software_versions
from pipelines.publish import publish
from pipelines.regions import Listener
from pipelines.score import score
from pipelines.select import select

T = TypeVar("T")
Call = Callable[..., Any]


@dataclass(frozen=True)
class Audited:
    """What an audit came to: the published run, whether it is as expected, and whether it had been published before."""

    run: Run
    findings: tuple[Finding, ...]
    unchanged: bool
    resumed: bool


def run_stage(name: str, function: Callable[..., T], *args: Any) -> T:
    """Run a stage here and now."""
    return function(*args)


def run_audit(
    plan: Plan, client: Client, listener: Listener, *, fresh: bool = False, call: Call = run_stage
) -> Audited:
    """Run an audit that was planned, or finish one that was interrupted.

    Parameters
    ----------
    plan : Plan
    client : distributed.Client
        Where regions are worked on.
    listener : callable
        Told of the progress of each stage.
    fresh : bool
        Discard an unfinished version, and make a new one even if nothing has changed since the last.
    call : callable
        Runs a stage, given its name, its function and arguments.

    Raises
    ------
    LabelQAError
        Nothing is published then; what was finished is kept and resumed.
    """
    out = Location.parse(plan.config.output.uri, plan.config.storage)
    planned = {**plan.manifest(), "created": datetime.now(UTC).isoformat(timespec="seconds")}
    planned |= {"software": software_versions(), "digest": manifest_digest(planned)}
    with holding(out) as lease:
        published = latest(out)
        version, resumed = call("open", open_version, out, planned, fresh)
        if version == published:
            _refuse_quarantined(plan, version, planned["digest"])
            clear(version)
            return Audited(Run(version), _findings(plan, Run(version)), unchanged=True, resumed=False)
        manifest = version.manifest() or planned
        check_same(manifest, planned, str(version.location))
        _work(plan, version, manifest, client, listener, call, resumed, lease)
    return Audited(Run(version), _findings(plan, Run(version)), unchanged=False, resumed=resumed)


def _findings(plan: Plan, run: Run) -> tuple[Finding, ...]:
    """What is published, measured by what is expected of it now."""
    expect = plan.config.expect
    return evaluate(expect, run.summary, run.annotators if expect.annotator_quality else None)


def _work(
    plan: Plan,
    version: Version,
    manifest: Json,
    client: Client,
    listener: Listener,
    call: Call,
    resumed: bool,
    lease: Lease,
) -> None:
    """The stages after the plan, each timed."""
    digest = manifest["digest"]
    timings: dict[str, float] = {}

    def timed(name: str, function: Callable[..., T], *args: Any) -> T:
        lease.check()
        started = time.monotonic()
        result: T = call(name, function, *args)
        timings[name] = round(time.monotonic() - started, 3)
        return result

    def may_publish() -> None:
        lease.check()
        now = version.manifest()
        if now is None or now["digest"] != digest:
            raise RunConflict(
                "its manifest was replaced while this run was at work",
                str(version.run / "manifest.json"),
                "Nothing was published by this one. Run again with --fresh.",
            )

    if any(isinstance(source, AnnotationsSource) for source in plan.sources.values()):
        plan = timed("group", group, plan, version, digest, client, listener)
    bad = BadRegions(plan, version, digest)
    if plan.task.passes(plan.params):
        timed("estimate", estimate, plan, version, digest, bad, client, listener)
    timed("score", score, plan, version, digest, bad, client, listener)
    selection = timed("select", select, plan, version, digest, bad, client)
    _check_inputs_unchanged(plan, manifest, version)
    version.run.write("timings.json", dump_json({"seconds": timings, "resumed": resumed}))
    timed("publish", publish, plan, version, manifest, selection, may_publish)
    clear(version)


def _refuse_quarantined(plan: Plan, version: Version, manifest: str) -> None:
    """A version without its bad regions is not what a run asks for whose policy is to fail."""
    bad = version.bad_regions(manifest)
    if bad and plan.config.on_error == "fail":
        raise InvalidInput(
            f"was published without {len(bad):,} region{'s' if len(bad) > 1 else ''} whose data cannot be scored, "
            "and on_error is fail now",
            str(version.location),
            "Mend the input, or set on_error: quarantine.",
        )


def _check_inputs_unchanged(plan: Plan, manifest: Json, version: Version) -> None:
    """Refuse to publish scores of data that were rewritten while they were read; they are looked up anew."""
    now = make_plan(plan.config, plan.resources).describe_inputs()
    changed = [name for name, found in now.items() if found != manifest["inputs"][name]]
    if changed:
        raise RunFailed(
            f"{' and '.join(changed)} changed while the run was at work; nothing was published",
            str(version.location),
            "Run again with --fresh once they are written.",
        )


def open_version(out: Location, planned: Json, fresh: bool) -> tuple[Version, bool]:
    """The version to work on, its manifest written, and whether it had been begun before.

    Raises
    ------
    RunConflict
        Where an unfinished version was begun with other settings or inputs.
    """
    begun, published, version = unfinished(out), latest(out), next_version(out)
    if begun is not None:
        manifest = begun.manifest()
        if manifest is not None and not fresh:
            check_same(manifest, planned, str(begun.location))
            return begun, True
        begun.location.delete()
    elif published is not None and not fresh:
        manifest = published.manifest()
        if manifest is not None and manifest["digest"] == planned["digest"]:
            return published, False
    version.write_manifest(planned)
    return version, False
