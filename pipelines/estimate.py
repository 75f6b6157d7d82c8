"""Stage 2, estimate: reduce the whole input to the statistics that scoring needs, one pass after the other.

The state of each region is written down, so that neither a run that goes on nor the next version reads it again.
Regions are reduced on the workers in groups whose cut depends on the number of regions alone; within a group states
are merged in the order of the regions, those of groups by a tree over their numbers: the same bits whatever the
cluster, whoever finishes first, and whichever states were there before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

from distributed import Client

from labelqa_dask.core.errors import InvalidInput
from labelqa_dask.core.task import Block, Pass, State, merge_states
from labelqa_dask.storage.record import MERGED, BadRegion, Version
from pipelines.bad_data import BadRegions
from pipelines.layout import Region, Regions
from pipelines.merging import MergedInOrder
from pipelines.plan import Plan
from pipelines.regions import Listener, Meter, Outcome, RegionJob, bad_region, make_job, regions_in_flight
from pipelines.statistics import statistics, statistics_digest

_MOST_GROUPS = 256
_LARGEST_GROUP = 16


@dataclass(frozen=True)
class Group:
    """Consecutive regions that one worker reduces to one state; bad ones among them have no job."""

    number: int
    regions: int
    jobs: tuple[RegionJob, ...]


def estimate(
    plan: Plan, version: Version, manifest: str, bad: BadRegions, client: Client, listener: Listener
) -> dict[str, int]:
    """Make and store the state of each pass that is needed and not yet stored; how many regions each has read.

    All states leave out the same regions: where a later pass finds another bad one, the earlier are made again.
    Where statistics are frozen, what they would be is made of the passes that every run makes, and stored beside them.
    """
    lineage = plan.descent
    read: dict[str, int] = {}
    number = 0
    while number < len(plan.task.passes(plan.params)):
        step = plan.task.passes(plan.params)[number]
        stats = statistics(plan.task.name, plan.params, plan.counted, version, bad.basis, number)
        needed = step.needed(plan.params, stats, plan.counted)
        if needed is not None and version.read_state(step.name, step.state, bad.basis) is None:
            total: State | None = None
            if step.examples is None or not lineage.frozen:
                known = len(bad)
                total, count = _reduce(number, needed, plan, version, manifest, bad, client, listener)
                read[step.name] = read.get(step.name, 0) + count
                if number and len(bad) > known:
                    number = 0
                    continue
            if lineage.frozen:
                if total is not None:
                    version.write_state(step.name, total, bad.basis, MERGED)
                total = lineage.frozen_state(step)
            version.write_state(step.name, total, bad.basis)
        number += 1
    return read


def _reduce(
    number: int,
    needed: range,
    plan: Plan,
    version: Version,
    manifest: str,
    bad: BadRegions,
    client: Client,
    listener: Listener,
) -> tuple[State | None, int]:
    """The state of one pass over all regions that hold needed rows and are not bad, and how many of them were read."""
    step = plan.task.passes(plan.params)[number]
    regions = regions_of(step, needed, plan.layout.regions)
    meter = Meter(f"estimate {step.name}", len(regions), listener)
    merged: MergedInOrder[State] = MergedInOrder(-(-len(regions) // _group_size(regions)))
    read = 0
    groups = _groups(number, plan, version, manifest, bad, regions)
    for group, (state, fresh) in regions_in_flight(client, partial(_reduce_group, number), groups, plan, bad):
        rows = sum(job.region.stop - job.region.start for job in group.jobs)
        meter.advance(group.regions, rows, sum(job.nbytes for job in group.jobs if job.region.name in fresh))
        read += len(fresh)
        merged.add(group.number, state)
    return merged.total, read


def regions_of(step: Pass[Any], needed: range, regions: Regions) -> range:
    """Numbers of the regions that a pass reads: all, or those that hold rows which it asks for."""
    return range(len(regions)) if step.examples is None else regions.touching(needed)


def _group_size(regions: range) -> int:
    return min(_LARGEST_GROUP, max(1, len(regions) // _MOST_GROUPS))


def _groups(
    number: int, plan: Plan, version: Version, manifest: str, bad: BadRegions, regions: range
) -> Iterator[Group]:
    lineage, basis = plan.descent, bad.basis
    step = plan.task.passes(plan.params)[number]
    earlier = statistics_digest(plan.task.name, plan.params, plan.counted, version, basis, number)
    known = {region.region for region in bad}
    kept = plan.layout.regions.marked(version.partials(step.name))

    def job(region: Region) -> RegionJob:
        key, former = lineage.partial_key(region, step, earlier), lineage.former(region)
        return make_job(plan, version, manifest, basis, region, key, former, bool(kept[int(region.name)]))

    size = _group_size(regions)
    for group, start in enumerate(range(0, len(regions), size)):
        part = [plan.layout.regions[i] for i in regions[start : start + size]]
        yield Group(group, len(part), tuple(job(region) for region in part if region.name not in known))


def _reducer(number: int, job: RegionJob) -> Callable[[Block], State | None]:
    step = job.task.passes(job.params)[number]
    return partial(step.reduce, params=job.params, stats=job.statistics(passes=number))


def _reduce_group(number: int, group: Group) -> Outcome:
    """The state of a group, and the names of the regions that were read for it."""
    total: State | None = None
    bad: list[BadRegion] = []
    read: set[str] = set()
    for job in group.jobs:
        state = _stored(number, job)
        if state is None:
            reduced = _reducer(number, job)
            read.add(job.region.name)
            try:
                # Unlike a comprehension's variable, map lets go of a block before the next is read.
                state = reduce(merge_states, map(reduced, job.blocks()), None)
            except InvalidInput as error:
                bad.append(bad_region(job, error, reduced))
                continue
            job.version.write_partial(job.task.passes(job.params)[number].name, job.region.name, state, job.key)
        total = merge_states(total, state)
    return Outcome((total, read), tuple(bad))


def _stored(number: int, job: RegionJob) -> State | None:
    """The state of a region as it was made before, in this version or in the one before, of the same."""
    step = job.task.passes(job.params)[number]
    if job.kept:
        state: State | None = job.version.read_partial(step.name, job.region.name, step.state, job.key)
        if state is not None:
            return state
    if job.former is None:
        return None
    state = job.former.version.read_partial(step.name, job.former.region.name, step.state, job.key)
    if state is not None:
        job.version.write_partial(step.name, job.region.name, state, job.key)
    return state
