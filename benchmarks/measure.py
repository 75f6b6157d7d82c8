"""Honest comparisons on a shared machine: two things in turn, several times, and the ratio pair by pair."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from labelqa_dask.core.blocks import available_cpus


@dataclass(frozen=True)
class Pairs:
    """Seconds of two things measured in turn."""

    ours: tuple[float, ...]
    theirs: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Median over the pairs of how many times longer theirs took."""
        return statistics.median(b / a for a, b in zip(self.ours, self.theirs, strict=True))

    @property
    def median(self) -> tuple[float, float]:
        """Median seconds of ours and of theirs."""
        return statistics.median(self.ours), statistics.median(self.theirs)


@dataclass
class Aside:
    """What is done between the parts of what is measured, and how long that has taken."""

    seconds: float = 0.0

    def do(self, function: Callable[[], object]) -> None:
        """Call a function; its time does not count."""
        self.seconds += seconds(function)


NOTHING = Aside()


def in_turn(
    ours: Callable[[], object], theirs: Callable[[], object], *, runs: int = 5, aside: Aside = NOTHING
) -> Pairs:
    """Time two things in turn after one warm-up of each."""
    ours()
    theirs()
    pairs = [(seconds(ours, aside), seconds(theirs, aside)) for _ in range(runs)]
    return Pairs(tuple(a for a, _ in pairs), tuple(b for _, b in pairs))


def seconds(function: Callable[[], object], aside: Aside = NOTHING) -> float:
    """How long one call takes, but for what it does aside."""
    started, before = time.perf_counter(), aside.seconds
    function()
    return time.perf_counter() - started - (aside.seconds - before)


def read_bandwidth() -> float:
    """Bytes per second that all cores together read from memory: the maximum of an array much larger than caches."""
    threads = available_cpus()
    parts = np.array_split(np.ones(64_000_000, np.float32), threads * 4)

    def read() -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(np.max, parts))

    read()
    nbytes = sum(part.nbytes for part in parts)
    return nbytes / min(seconds(read) for _ in range(5))
