"""Work on regions: what a worker is sent, how it reads, and how many regions are under way at once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, TypeVar

import numpy as np
from dask.utils import format_bytes
from distributed import Client, Future, KilledWorker, as_completed
from distributed.client import ClosedClientError, FutureCancelledError
from distributed.comm.core import CommClosedError
from distributed.scheduler import NoValidWorkerError

from labelqa_dask.core.errors import InvalidInput, RunFailed
from labelqa_dask.core.task import Block, Stats, Task, get_task
from labelqa_dask.storage.record import BadRegion, Version
from labelqa_dask.storage.sinks import OutputArray, Sink
from labelqa_dask.storage.sources import Index, Source
from pipelines.bad_data import MOST_REASONS, BadRegions, first_reasons
from pipelines.layout import Layout, Region, block_bytes, group_bounds
from pipelines.lineage import Former
from pipelines.plan import Plan
from pipelines.statistics import statistics

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
_RETRIES = 2
_ITEMS_PER_THREAD = 3
_SECONDS_BETWEEN_COUNTS = 1.0


@dataclass(frozen=True)
class RegionJob:
    """All that a worker needs for one region; statistics it reads from the run's record.

    `key` is what the work is known by; `former` is where it may have been done in the version before, and `kept` tells
    whether it may have been done in this one.
    """

    task_name: str
    params: Any
    region: Region
    sources: Mapping[str, Source]
    ids: Source | None
    layout: Layout
    resolution: float
    sink: Sink
    outputs: tuple[OutputArray, ...]
    version: Version
    manifest: str
    basis: str
    worst: int
    key: str = ""
    former: Former | None = None
    kept: bool = False

    @property
    def task(self) -> Task[Any]:
        return get_task(self.task_name)

    @property
    def nbytes(self) -> int:
        """Decoded bytes of the region's inputs."""
        rows = {**self.layout.sizes, "example": self.region.stop - self.region.start}
        return block_bytes(self.task, self.sources, rows)

    def row_blocks(self) -> list[slice]:
        """Ranges of rows that are read together."""
        start, stop = self.region.start, self.region.stop
        bounds = self.sources[self.task.inputs[-1].name].row_bounds()
        inside = bounds[(bounds > start) & (bounds < stop)]
        cuts = group_bounds(np.array([start, *inside.tolist(), stop]), self.layout.block["example"])
        return [slice(a, b) for a, b in pairwise(cuts)]

    def read(self, rows: slice, tile: Mapping[str, slice]) -> tuple[Block, dict[str, slice]]:
        """One block of every input, and where it lies along each dimension."""
        where = {"example": rows, "class": slice(None), **tile}
        arrays = {}
        for spec in self.task.inputs:
            index: Index = tuple(where[dim] for dim in spec.dims)
            arrays[spec.name] = self.sources[spec.name].read(index)
        origin = {dim: s.start for dim, s in where.items() if s.start is not None}
        return Block(arrays, origin, self.resolution, sizes=self.layout.sizes), where

    def blocks(self) -> Iterator[Block]:
        """Every block of the region, in order."""
        for rows in self.row_blocks():
            for tile in self.layout.tiles():
                yield self.read(rows, tile)[0]

    def statistics(self, passes: int | None = None) -> Stats:
        """Results of the first passes, or of all."""
        return statistics(self.task_name, self.params, self.layout.regions.rows, self.version, self.basis, passes)


def make_job(
    plan: Plan,
    version: Version,
    manifest: str,
    basis: str,
    region: Region,
    key: str = "",
    former: Former | None = None,
    kept: bool = False,
) -> RegionJob:
    """The job of one region: the parts of the sources that its rows need."""
    start, stop = region.start, region.stop
    return RegionJob(
        plan.task.name,
        plan.params,
        region,
        {name: source.rows(start, stop) for name, source in plan.sources.items()},
        plan.ids.rows(start, stop) if plan.ids else None,
        plan.layout.of_one(region, plan.counted),
        plan.resolution,
        plan.sink(version.location),
        plan.outputs,
        version,
        manifest,
        basis,
        plan.config.select.worst,
        key,
        former,
        kept,
    )


@dataclass(frozen=True)
class Outcome:
    """What came of an item of work: its result, and the bad regions that it met.

    Bad data are a result, not an exception, so that they are not retried and the other regions go on.
    """

    result: Any = None
    bad: tuple[BadRegion, ...] = ()


@dataclass(frozen=True)
class Progress:
    """How far a stage is: units done in all; rows, bytes and seconds of this session; an estimate of what is left."""

    stage: str
    done: int
    total: int
    rows: int
    nbytes: int
    seconds: float
    seconds_left: float | None
    unit: str = "regions"


Listener = Callable[[Progress], None]


class Meter:
    """Tells listeners of a stage's progress."""

    def __init__(self, stage: str, total: int, listener: Listener, done: int = 0, unit: str = "regions") -> None:
        self._stage, self._total, self._listener, self._unit = stage, total, listener, unit
        self._done, self._rows, self._nbytes = done, 0, 0
        self._started = time.monotonic()
        self._warm: tuple[int, float] | None = None
        self._tell(None)

    def advance(self, regions: int, rows: int, nbytes: int) -> None:
        """Some regions are done. What is left is estimated from the second on: the first waits for workers to start."""
        self._done += regions
        self._rows += rows
        self._nbytes += nbytes
        now = time.monotonic()
        if self._warm is None:
            self._warm = self._done, now
        done, since = self._done - self._warm[0], now - self._warm[1]
        self._tell((self._total - self._done) * since / done if done else None)

    def _tell(self, seconds_left: float | None) -> None:
        seconds = time.monotonic() - self._started
        progress = Progress(
            self._stage, self._done, self._total, self._rows, self._nbytes, seconds, seconds_left, self._unit
        )
        self._listener(progress)


def in_flight(
    client: Client,
    function: Callable[[ItemT], ResultT],
    items: Iterable[ItemT],
    worker_bytes: int,
    enough: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[ItemT, ResultT]]:
    """Run a function on each item on the cluster; yields items with results as they complete.

    A few items per thread are under way at a time, so neither the client nor the scheduler holds a graph that grows
    with the data; what is still under way when the caller stops is given back. Once there is `enough` no further items
    are begun. `worker_bytes`, the planned memory of a worker, is told where workers die.

    What has completed meanwhile is fetched at once: the busier the client and the scheduler are, the less there is to
    do for each item. What follows is begun for all threads at once, while each has another item waiting.
    """
    waiting = iter(items)
    begun: dict[Future[Any], ItemT] = {}
    running = as_completed(loop=client.loop)
    threads = _Threads(client)

    def begin() -> None:
        if enough():
            return
        count = threads.count()
        free = _ITEMS_PER_THREAD * count - len(begun)
        following = list(islice(waiting, free if free >= count else 0))
        if following:
            futures = client.map(function, following, pure=False, retries=_RETRIES)
            begun.update(zip(futures, following, strict=True))
            running.update(futures)

    try:
        begin()
        for futures in running.batches():
            results = client.gather(futures)
            for future, result in zip(futures, results, strict=True):
                item = begun.pop(future)
                future.release()
                yield item, result
            begin()
    except (KilledWorker, NoValidWorkerError) as error:
        raise RunFailed(
            f"workers died again and again on one piece of work ({error})",
            "cluster",
            f"They probably ran out of memory: the plan was {format_bytes(worker_bytes)} per worker. "
            "Raise memory_limit, or lower threads_per_worker; finished regions are kept.",
        ) from None
    except (CommClosedError, FutureCancelledError, ClosedClientError) as error:
        raise _scheduler_lost(error) from None
    finally:
        for future in begun:
            future.release()


class _Threads:
    """How many threads all workers have; asked for now and then, since each answer names every worker.

    Where there are none one is counted: some clusters begin workers only where there is work.
    """

    def __init__(self, client: Client) -> None:
        self._client, self._known, self._asked = client, 0, -math.inf

    def count(self) -> int:
        if time.monotonic() - self._asked > _SECONDS_BETWEEN_COUNTS:
            try:
                self._known = max(1, sum(self._client.nthreads().values()))
            except OSError as error:
                raise _scheduler_lost(error) from None
            self._asked = time.monotonic()
        return self._known


def _scheduler_lost(error: Exception) -> RunFailed:
    return RunFailed(
        f"the connection to the Dask scheduler was lost ({type(error).__name__})",
        "cluster",
        "Run the same command again; finished regions are kept.",
    )


def regions_in_flight(
    client: Client, function: Callable[[ItemT], Outcome], items: Iterable[ItemT], plan: Plan, bad: BadRegions
) -> Iterator[tuple[ItemT, Any]]:
    """As `in_flight`, for work on regions: bad ones are collected, and where they are not to be left out, refused."""
    for item, outcome in in_flight(client, function, items, plan.worker_bytes, lambda: bad.are_enough):
        bad.add(outcome.bad)
        yield item, outcome.result
    bad.refuse()


def bad_region(job: RegionJob, error: InvalidInput, check: Callable[[Block], Any]) -> BadRegion:
    """What is wrong with a region where an error was met: its blocks are looked through for the first bad examples."""
    reasons: list[str] = []
    for rows in job.row_blocks():
        for tile in job.layout.tiles():
            if len(reasons) < MOST_REASONS:
                reasons += _reasons_in(job, rows, tile, check, MOST_REASONS - len(reasons))
    region = job.region
    return BadRegion(region.name, region.start, region.stop, job.manifest, tuple(reasons) or (str(error),))


def _reasons_in(
    job: RegionJob, rows: slice, tile: Mapping[str, slice], check: Callable[[Block], Any], most: int
) -> list[str]:
    try:
        block, _ = job.read(rows, tile)
    except InvalidInput as error:
        return [str(error)]
    return first_reasons(block, check, most)
