"""The NumPy engine: a task over arrays in memory, block by block on all cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from typing import Any, TypeVar

import numpy as np

from labelqa_dask.core.kernels import Array
from labelqa_dask.core.task import Block, Pass, State, Stats, Task

_BLOCK_BYTES = 8 << 20
T = TypeVar("T")


def available_cpus() -> int:
    """Cores this process may use, which in a container can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def finished(scores: Mapping[str, Array | State]) -> dict[str, Array]:
    """Turn the states among a block's scores into arrays."""
    return {name: value.result() if isinstance(value, State) else value for name, value in scores.items()}


def reduce_arrays(
    step: Pass[Any],
    arrays: Mapping[str, Array],
    params: Any,
    stats: Stats,
    resolution: float = 0.0,
    rows: int | None = None,
) -> State:
    """The state of one pass over whole arrays."""
    states = map_blocks(lambda block: step.of(block, params, stats), arrays, resolution, rows)
    return reduce(lambda left, right: left.merge(right), states)


def score_arrays(
    task: Task[Any],
    arrays: Mapping[str, Array],
    params: Any,
    stats: Stats,
    resolution: float = 0.0,
    rows: int | None = None,
    threads: int | None = None,
) -> dict[str, Array]:
    """The outputs of a task for whole arrays, written block by block into their place."""
    n = len(next(iter(arrays.values())))
    outputs: dict[str, Array] = {}

    def score(block: Block) -> tuple[int, dict[str, Array]]:
        return block.origin["example"], finished(task.score(block, params, stats))

    for start, scores in map_blocks(score, arrays, resolution, rows, threads):
        for name, part in scores.items():
            whole = outputs.setdefault(name, np.empty((n, *part.shape[1:]), part.dtype))
            whole[start : start + len(part)] = part
    return outputs


def map_blocks(
    function: Callable[[Block], T],
    arrays: Mapping[str, Array],
    resolution: float = 0.0,
    rows: int | None = None,
    threads: int | None = None,
) -> Iterator[T]:
    """A function of each block of whole arrays, in their order."""
    n = len(next(iter(arrays.values())))
    row_bytes = sum(array.nbytes for array in arrays.values()) // n
    rows = rows or max(1, _BLOCK_BYTES // max(1, row_bytes))
    blocks = (
        Block({name: array[start : start + rows] for name, array in arrays.items()}, {"example": start}, resolution)
        for start in range(0, n, rows)
    )
    if rows >= n or threads == 1:
        yield from map(function, blocks)
        return
    with ThreadPoolExecutor(threads or available_cpus()) as pool:
        yield from pool.map(function, blocks)
