"""Stage 2, estimate: reduce the whole input to the statistics that scoring needs, one pass after the other.

Regions are reduced on the workers in groups whose cut depends on the number of regions alone, and groups are merged in
their order: the same bits whatever the cluster and whoever finishes first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial, reduce

from distributed import Client

from labelqa_dask.core.errors import InvalidInput
from labelqa_dask.core.task import Block, State, merge_states
from labelqa_dask.storage.record import BadRegion, Version
from pipelines.bad_data import BadRegions
from pipelines.layout import Region
from pipelines.plan import Plan
from pipelines.regions import Listener, Meter, Outcome, RegionJob, bad_region, make_job, regions_in_flight, statistics

_MOST_GROUPS = 256
_LARGEST_GROUP = 16


@dataclass(frozen=True)
class Group:
    """Consecutive regions that one worker reduces to one state; bad ones among them have no job."""

    number: int
    regions: int
    jobs: tuple[RegionJob, ...]


def estimate(plan: Plan, version: Version, manifest: str, bad: BadRegions, client: Client, listener: Listener) -> None:
    """Make and store the state of each pass that is needed and not yet stored.

    All states leave out the same regions: where a later pass finds another bad one, the earlier are made again.
    """
    n = plan.layout.sizes["example"]
    number = 0
    while number < len(plan.task.passes(plan.params)):
        step = plan.task.passes(plan.params)[number]
        stats = statistics(plan.task.name, plan.params, n, version, bad.basis, number)
        needed = step.needed(plan.params, stats, n)
        if needed is not None and version.read_state(step.name, step.state, bad.basis) is None:
            known = len(bad)
            total = _reduce(number, needed, plan, version, manifest, bad, client, listener)
            if number and len(bad) > known:
                number = 0
                continue
            version.write_state(step.name, total, bad.basis)
        number += 1


def _reduce(
    number: int,
    needed: range,
    plan: Plan,
    version: Version,
    manifest: str,
    bad: BadRegions,
    client: Client,
    listener: Listener,
) -> State | None:
    """The state of one pass over all regions that hold needed rows and are not bad."""
    regions = [r for r in plan.layout.regions if r.start < needed.stop and r.stop > needed.start]
    meter = Meter(f"estimate {plan.task.passes(plan.params)[number].name}", len(regions), listener)
    finished: dict[int, State | None] = {}
    total: State | None = None
    merged = 0
    groups = _groups(plan, version, manifest, bad, regions)
    for group, state in regions_in_flight(client, partial(_reduce_group, number), groups, plan, bad):
        rows = sum(job.region.stop - job.region.start for job in group.jobs)
        meter.advance(group.regions, rows, sum(job.nbytes for job in group.jobs))
        finished[group.number] = state
        while merged in finished:
            total = merge_states(total, finished.pop(merged))
            merged += 1
    return total


def _groups(plan: Plan, version: Version, manifest: str, bad: BadRegions, regions: list[Region]) -> Iterator[Group]:
    basis = bad.basis
    known = {region.region for region in bad}
    size = min(_LARGEST_GROUP, max(1, len(regions) // _MOST_GROUPS))
    for number, start in enumerate(range(0, len(regions), size)):
        part = regions[start : start + size]
        good = (region for region in part if region.name not in known)
        yield Group(number, len(part), tuple(make_job(plan, version, manifest, basis, region) for region in good))


def _reducer(number: int, job: RegionJob) -> Callable[[Block], State | None]:
    step = job.task.passes(job.params)[number]
    return partial(step.reduce, params=job.params, stats=job.statistics(passes=number))


def _reduce_group(number: int, group: Group) -> Outcome:
    total: State | None = None
    bad: list[BadRegion] = []
    for job in group.jobs:
        reduced = _reducer(number, job)
        try:
            # Unlike a comprehension's variable, map lets go of a block before the next is read.
            state = reduce(merge_states, map(reduced, job.blocks()), None)
        except InvalidInput as error:
            bad.append(bad_region(job, error, reduced))
        else:
            total = merge_states(total, state)
    return Outcome(total, tuple(bad))
