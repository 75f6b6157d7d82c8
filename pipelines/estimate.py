"""Stage 2, estimate: reduce the whole input to the statistics that scoring needs, one pass after the other.

Regions are reduced on the workers in groups whose cut depends on the number of regions alone, and groups are merged in
their order: the same bits whatever the cluster and whoever finishes first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial, reduce
from itertools import islice

from distributed import Client

from labelqa_dask.core.task import Block, State
from labelqa_dask.storage.record import Version
from pipelines.plan import Plan
from pipelines.regions import Listener, Meter, Problem, RegionJob, guarded, in_flight, make_job

_MOST_GROUPS = 256
_LARGEST_GROUP = 16


@dataclass(frozen=True)
class Group:
    """Consecutive regions that one worker reduces to one state."""

    number: int
    jobs: tuple[RegionJob, ...]


def estimate(plan: Plan, version: Version, manifest: str, client: Client, listener: Listener) -> None:
    """Make and store the state of each pass that is not yet stored."""
    for number, step in enumerate(plan.task.passes(plan.params)):
        if version.read_state(step.name, step.state, manifest) is not None:
            continue
        meter = Meter(f"estimate {step.name}", len(plan.layout.regions), listener)
        finished: dict[int, State] = {}
        total: State | None = None
        merged = 0
        for group, state in in_flight(client, partial(_reduce_group, number), _groups(plan, version, manifest), plan):
            rows = sum(job.region.stop - job.region.start for job in group.jobs)
            meter.advance(len(group.jobs), rows, sum(job.nbytes for job in group.jobs))
            finished[group.number] = state
            while merged in finished:
                state = finished.pop(merged)
                total = state if total is None else total.merge(state)
                merged += 1
        version.write_state(step.name, total, manifest)


def _groups(plan: Plan, version: Version, manifest: str) -> Iterator[Group]:
    regions = iter(plan.layout.regions)
    size = min(_LARGEST_GROUP, max(1, len(plan.layout.regions) // _MOST_GROUPS))
    number = 0
    while part := tuple(islice(regions, size)):
        yield Group(number, tuple(make_job(plan, version, manifest, region) for region in part))
        number += 1


def _reduce_group(number: int, group: Group) -> State | Problem:
    merged: State | None = None
    for job in group.jobs:
        state = guarded(job, partial(_reduce_region, number))
        if isinstance(state, Problem):
            return state
        merged = state if merged is None else merged.merge(state)
    assert merged is not None
    return merged


def _reduce_region(number: int, job: RegionJob) -> State:
    step = job.task.passes(job.params)[number]
    stats = job.statistics(passes=number)

    def reduced(block: Block) -> State:
        return step.of(block, job.params, stats)

    # Unlike a comprehension's variable, map lets go of a block before the next is read.
    return reduce(lambda left, right: left.merge(right), map(reduced, job.blocks()))
