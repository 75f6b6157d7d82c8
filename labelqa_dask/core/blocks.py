"""The NumPy engine: a task over arrays in memory, block by block on all cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import Any, TypeVar

import numpy as np

from labelqa_dask.core.kernels import Array
from labelqa_dask.core.task import Block, State, Stats, Task, merge_states

_BLOCK_BYTES = 16 << 20
T = TypeVar("T")


def available_cpus() -> int:
    """Cores this process may use, which in a container can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def finished(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the states among a block's scores into their results."""
    return {name: value.result() if isinstance(value, State) else value for name, value in scores.items()}


@dataclass(frozen=True)
class Whole:
    """Arrays in memory, and how they are cut.

    Attributes
    ----------
    arrays : one per input of a task.
    sizes : extent along each dimension.
    resolution : step of quantised probabilities, else 0.
    rows, threads : examples per block and number of threads; chosen by size and cores where not given.
    kept : what walks over a block have left for later ones, by its examples.
    """

    arrays: Mapping[str, Array]
    sizes: Mapping[str, int]
    resolution: float = 0.0
    rows: int | None = None
    threads: int | None = None
    kept: dict[tuple[int, int], dict[str, Any]] = field(default_factory=dict)

    def map_blocks(self, function: Callable[[Block], T], examples: range) -> Iterator[T]:
        """Results of a function on each block of some examples, in order."""
        row_bytes = sum(array.nbytes for array in self.arrays.values()) // self.sizes["example"]
        rows = self.rows or max(1, _BLOCK_BYTES // max(1, row_bytes))
        blocks = (self._block(start, min(start + rows, examples.stop)) for start in examples[::rows])
        if rows >= len(examples) or self.threads == 1:
            yield from map(function, blocks)
            return
        with ThreadPoolExecutor(self.threads or available_cpus()) as pool:
            yield from pool.map(function, blocks)

    def _block(self, start: int, stop: int) -> Block:
        arrays = {name: array[start:stop] for name, array in self.arrays.items()}
        kept = self.kept.setdefault((start, stop), {})
        return Block(arrays, {"example": start}, self.resolution, sizes=self.sizes, kept=kept)


def reduce_arrays(task: Task[Any], whole: Whole, params: Any) -> dict[str, Any]:
    """The results of all passes of a task over whole arrays; cut by size alone, so that sums round in one way."""
    whole = replace(whole, rows=None)
    stats: dict[str, Any] = {}
    for step in task.passes(params):
        needed = step.needed(params, stats, whole.sizes["example"])
        states = whole.map_blocks(partial(step.reduce, params=params, stats=stats), needed) if needed else ()
        stats[step.name] = step.result(reduce(merge_states, states, None), params, stats)
    return stats


def score_arrays(task: Task[Any], whole: Whole, params: Any, stats: Stats) -> dict[str, Array]:
    """The outputs of a task for whole arrays, written block by block into their place."""
    n = whole.sizes["example"]
    names = [spec.name for spec in task.written(params)]
    outputs: dict[str, Array] = {}

    def score(block: Block) -> tuple[int, dict[str, Any]]:
        return block.origin["example"], finished(task.score(block, params, stats))

    for start, scores in whole.map_blocks(score, range(n)):
        for name in names:
            part = scores[name]
            array = outputs.setdefault(name, np.empty((n, *part.shape[1:]), part.dtype))
            array[start : start + len(part)] = part
    return outputs
