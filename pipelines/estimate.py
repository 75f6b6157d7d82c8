"""Stage 2, estimate: reduce the whole input to the statistics that scoring needs, one pass after the other.

Regions are reduced on the workers in groups whose cut depends on the number of regions alone, and groups are merged in
their order: the same bits whatever the cluster and whoever finishes first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial, reduce

from distributed import Client

from labelqa_dask.core.task import State, merge_states
from labelqa_dask.storage.record import Version
from pipelines.layout import Region
from pipelines.plan import Plan
from pipelines.regions import Listener, Meter, Problem, RegionJob, guarded, in_flight, make_job, statistics

_MOST_GROUPS = 256
_LARGEST_GROUP = 16


@dataclass(frozen=True)
class Group:
    """Consecutive regions that one worker reduces to one state."""

    number: int
    jobs: tuple[RegionJob, ...]


def estimate(plan: Plan, version: Version, manifest: str, client: Client, listener: Listener) -> None:
    """Make and store the state of each pass that is needed and not yet stored."""
    n = plan.layout.sizes["example"]
    for number, step in enumerate(plan.task.passes(plan.params)):
        stats = statistics(plan.task.name, plan.params, n, version, manifest, number)
        needed = step.needed(plan.params, stats, n)
        if needed is None or version.read_state(step.name, step.state, manifest) is not None:
            continue
        regions = [r for r in plan.layout.regions if r.start < needed.stop and r.stop > needed.start]
        meter = Meter(f"estimate {step.name}", len(regions), listener)
        finished: dict[int, State | None] = {}
        total: State | None = None
        merged = 0
        groups = _groups(plan, version, manifest, regions)
        for group, state in in_flight(client, partial(_reduce_group, number), groups, plan):
            rows = sum(job.region.stop - job.region.start for job in group.jobs)
            meter.advance(len(group.jobs), rows, sum(job.nbytes for job in group.jobs))
            finished[group.number] = state
            while merged in finished:
                total = merge_states(total, finished.pop(merged))
                merged += 1
        version.write_state(step.name, total, manifest)


def _groups(plan: Plan, version: Version, manifest: str, regions: list[Region]) -> Iterator[Group]:
    size = min(_LARGEST_GROUP, max(1, len(regions) // _MOST_GROUPS))
    for number, start in enumerate(range(0, len(regions), size)):
        jobs = (make_job(plan, version, manifest, region) for region in regions[start : start + size])
        yield Group(number, tuple(jobs))


def _reduce_group(number: int, group: Group) -> State | Problem | None:
    merged: State | None = None
    for job in group.jobs:
        state = guarded(job, partial(_reduce_region, number))
        if isinstance(state, Problem):
            return state
        merged = merge_states(merged, state)
    return merged


def _reduce_region(number: int, job: RegionJob) -> State | None:
    step = job.task.passes(job.params)[number]
    stats = job.statistics(passes=number)
    # Unlike a comprehension's variable, map lets go of a block before the next is read.
    states = map(partial(step.reduce, params=job.params, stats=stats), job.blocks())
    return reduce(merge_states, states, None)
