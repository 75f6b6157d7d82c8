"""A whole audit: the stages in turn, on a cluster that somebody else owns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from distributed import Client

from labelqa_dask.core.errors import InvalidInput, LabelQAError, OutdatedRun, RunConflict, RunFailed
from labelqa_dask.storage.annotations import AnnotationsSource
from labelqa_dask.storage.digests import Digests
from labelqa_dask.storage.lease import Lease, holding
from labelqa_dask.storage.location import Location
from labelqa_dask.storage.record import (
    Json,
    Version,
    check_same,
    dump_json,
    latest,
    next_version,
    prune,
    unfinished,
)
from labelqa_dask.storage.run import Run
from pipelines.bad_data import BadRegions
from pipelines.estimate import estimate
from pipelines.expect import Finding, evaluate
from pipelines.group import clear, group
from pipelines.lineage import Lineage, descended, is_same, previous_of
from pipelines.plan import Plan, make_plan, software_versions
from pipelines.publish import publish
from pipelines.regions import Listener
from pipelines.score import score
from pipelines.select import select
from pipelines.versioned import tell_table, versions_begun

T = TypeVar("T")
Call = Callable[..., Any]


@dataclass(frozen=True)
class Refreshed:
    """What a version has taken from the one before.

    Attributes
    ----------
    previous : name of the version before
    regions, taken_over : how many regions there are, and of how many the scores were made in an earlier version
    read : how many regions this session has read for each pass, and to score them
    """

    previous: str
    regions: int
    taken_over: int
    read: Mapping[str, int]


@dataclass(frozen=True)
class Audited:
    """What an audit came to.

    The published run, whether it is as expected, whether it had been published before, and what it took from another.
    """

    run: Run
    findings: tuple[Finding, ...]
    unchanged: bool
    resumed: bool
    refreshed: Refreshed | None = None


@dataclass(frozen=True)
class Changes:
    """How many regions, of how many, are not as they were when a version was made, or are scored by other settings."""

    since: str
    changed: int
    regions: int


def changes_of(plan: Plan) -> Changes | None:
    """What a run would find changed, from the lists of objects; None where nothing has been published."""
    out = Location.parse(plan.config.output.uri, plan.config.storage)
    published = latest(out)
    if published is None:
        return None
    inputs, contents = plan.look_up()
    manifest = descended(plan.manifest(inputs), published, freeze=plan.config.refresh.statistics == "frozen")
    formers = Lineage.of(next_version(out), manifest, contents).formers
    return Changes(published.name, int((formers < 0).sum()), len(formers))


def run_stage(name: str, function: Callable[..., T], *args: Any) -> T:
    """Run a stage here and now."""
    return function(*args)


def run_audit(
    plan: Plan,
    client: Client,
    listener: Listener,
    *,
    fresh: bool = False,
    discard: bool = False,
    call: Call = run_stage,
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
        Discard an unfinished version, and make a new one from scratch even if nothing has changed since the last.
    discard : bool
        Discard an unfinished version, but take from the last one what has not changed.
    call : callable
        Runs a stage, given its name, its function and arguments.

    Raises
    ------
    LabelQAError
        Nothing is published then; what was finished is kept and resumed.
    """
    out = Location.parse(plan.config.output.uri, plan.config.storage)
    if plan.versions and not (fresh or discard):
        plan = _as_begun(plan, out)
    inputs, contents = plan.look_up()
    planned = {**plan.manifest(inputs), "created": datetime.now(UTC).isoformat(timespec="seconds")}
    planned |= {"software": software_versions(), "versions": plan.versions}
    freeze = plan.config.refresh.statistics == "frozen"
    with holding(out) as lease:
        published = latest(out)
        if published is not None:  # the run that made it may have ended before it told the table
            _tell_table(plan, published, call)
        version, resumed = call("open", open_version, out, planned, contents, fresh, discard, freeze)
        manifest = version.manifest()
        if manifest is None:
            raise RunFailed("the manifest was lost", str(version.run), "Run the same command again.")
        if version == published:
            _refuse_quarantined(plan, version, manifest["digest"])
            clear(version)
            return Audited(Run(version), _findings(plan, Run(version)), unchanged=True, resumed=False)
        check_same(manifest, descended(planned, previous_of(out, manifest), freeze=freeze), str(version.location))
        if version.contents(manifest["digest"]) is None:
            version.write_contents(contents, manifest["digest"])
        plan = replace(plan, lineage=Lineage.of(version, manifest, contents))
        refreshed = _work(plan, version, manifest, client, listener, call, resumed, lease)
        lease.check()
        _tell_table(plan, version, call)
        if plan.config.output.keep_versions:
            prune(out, plan.config.output.keep_versions)
    run = Run(version)
    return Audited(run, _findings(plan, run), unchanged=False, resumed=resumed, refreshed=refreshed)


def _as_begun(plan: Plan, out: Location) -> Plan:
    """The plan of the versions that an unfinished run reads, which stay what they are whatever is committed."""
    begun = unfinished(out) if plan.versions else None
    manifest = begun.manifest() if begun else None
    if begun is None or manifest is None:
        return plan
    versions = {**plan.versions, **versions_begun(plan.config, manifest)}
    if versions == plan.versions:
        return plan
    try:
        return make_plan(plan.config, plan.resources, versions)
    except LabelQAError as error:
        make_plan(plan.config, plan.resources, plan.versions)  # which fails as well where it is the store that does
        raise OutdatedRun(
            f"an unfinished run there reads a version that is no longer there: {error}",
            str(begun.location),
            "Add --fresh to discard it and start anew.",
        ) from error


def _tell_table(plan: Plan, version: Version, call: Call) -> None:
    if plan.config.output.is_table:
        call("table", tell_table, plan.config, version)


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
) -> Refreshed | None:
    """The stages after the plan, each timed."""
    digest = manifest["digest"]
    timings: dict[str, float] = {}
    read: dict[str, int] = {}

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
        read |= timed("estimate", estimate, plan, version, digest, bad, client, listener)
    read["score"] = timed("score", score, plan, version, digest, bad, client, listener)
    selection = timed("select", select, plan, version, digest, bad, client)
    _check_inputs_unchanged(plan, manifest, version)
    told = {"seconds": timings, "resumed": resumed, "regions_read": read, "regions_taken_over": selection.taken_over}
    version.run.write("timings.json", dump_json(told))
    timed("publish", publish, plan, version, manifest, selection, may_publish)
    clear(version)
    previous = manifest["previous"]
    return Refreshed(previous, len(plan.layout.regions), selection.taken_over, read) if previous else None


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
    now, _ = make_plan(plan.config, plan.resources, plan.versions).look_up()
    changed = [name for name, found in now.items() if found != manifest["inputs"][name]]
    if changed:
        raise RunFailed(
            f"{' and '.join(changed)} changed while the run was at work; nothing was published",
            str(version.location),
            "Run again with --fresh once they are written.",
        )


def open_version(
    out: Location, planned: Json, contents: Digests, fresh: bool, discard: bool, freeze: bool
) -> tuple[Version, bool]:
    """The version to work on, its manifest written, and whether it had been begun before.

    Raises
    ------
    RunConflict
        Where an unfinished version was begun with other settings or inputs.
    """
    begun, published, version = unfinished(out), latest(out), next_version(out)
    if begun is not None:
        manifest = begun.manifest()
        if manifest is not None and not (fresh or discard):
            check_same(manifest, descended(planned, previous_of(out, manifest), freeze=freeze), str(begun.location))
            return begun, True
        begun.location.delete()
    previous = None if fresh else published
    before = previous.manifest() if previous else None
    if previous and before and is_same(before, planned, freeze=freeze):
        return previous, False
    manifest = descended(planned, previous, freeze=freeze)
    version.write_contents(contents, manifest["digest"])
    version.write_manifest(manifest)
    return version, False
