"""The Dask engine, and the only place that builds Dask graphs: reduce states, map scores.

Every input is lined up to the task's full dimensions (missing ones at size one), so one `map_blocks` serves every
method, knows where each block starts, and never concatenates. What a block yields is boxed in an object array of one
element; boxes reduce as trees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from operator import getitem
from typing import Any

import dask.array as da
import numpy as np
from dask.delayed import Delayed, delayed

from labelqa_dask.core.errors import InvalidInput
from labelqa_dask.core.kernels import Array
from labelqa_dask.core.layout import ArrayInfo, common_sizes
from labelqa_dask.core.task import Block, Pass, State, Task, merge_states

_SPLIT_EVERY = 16


def align(task: Task[Any], arrays: Mapping[str, da.Array], multiples: Mapping[str, int]) -> dict[str, da.Array]:
    """Rechunk so that blocks of all inputs cover the same elements, and hold every class and whole cells."""
    leader = task.inputs[-1]
    whole = arrays[leader.name]
    if "class" in leader.dims:
        whole = whole.rechunk({leader.dims.index("class"): -1})
    for dim, multiple in multiples.items():
        axis = leader.dims.index(dim)
        if any(size % multiple for size in whole.chunks[axis]):
            whole = whole.rechunk({axis: -(-max(whole.chunks[axis]) // multiple) * multiple})
    chunks = dict(zip(leader.dims, whole.chunks, strict=True))
    aligned = {}
    for spec in task.inputs:
        array = whole if spec is leader else arrays[spec.name]
        wanted = tuple(chunks[dim] for dim in spec.dims)
        if _unknown(array.chunks) or _unknown(wanted):
            if array.numblocks != tuple(len(sizes) for sizes in wanted):
                raise InvalidInput(
                    f"chunks of unknown size cannot be lined up: {array.numblocks} blocks against {whole.numblocks} "
                    f"of {leader.name}",
                    spec.name,
                    "Call compute_chunk_sizes() on both.",
                )
        elif array.chunks != wanted:
            array = array.rechunk(wanted)
        aligned[spec.name] = array
    return aligned


def reduce_states(
    task: Task[Any],
    step: Pass[Any],
    arrays: Mapping[str, da.Array],
    params: Any,
    stats: Delayed | Mapping[str, Any],
    resolution: float = 0.0,
) -> Delayed:
    """Lazy state of one pass over aligned arrays: a state per block, merged as a tree; None where it is not needed."""
    leader = arrays[task.inputs[-1].name]
    if step.examples and math.isnan(leader.shape[0]):
        raise InvalidInput(
            "the number of examples must be known for this", task.inputs[-1].name, "Call compute_chunk_sizes() first."
        )
    boxes = _map(task, step.reduce, arrays, params, stats, resolution)
    merged = _merge(boxes, tuple(range(boxes.ndim)))
    return delayed(_unbox)(merged.to_delayed().item())


def map_scores(
    task: Task[Any],
    arrays: Mapping[str, da.Array],
    params: Any,
    stats: Delayed | Mapping[str, Any],
    resolution: float = 0.0,
) -> dict[str, da.Array]:
    """Lazy outputs of a task over aligned arrays, chunked like them."""
    chunks = dict(zip(task.dims, arrays[task.inputs[-1].name].chunks, strict=True))
    predictions = arrays[task.inputs[-1].name].dtype
    boxes = _map(task, task.score, arrays, params, stats, resolution)
    outputs = {}
    for spec in task.written(params):
        parts = boxes
        dropped = [i for i, dim in enumerate(task.dims) if dim not in spec.dims]
        merged_over = tuple(i for i in dropped if boxes.numblocks[i] > 1)
        if merged_over:
            parts = _merge(da.map_blocks(_pick, boxes, spec.name, dtype=object, meta=boxes._meta), merged_over)
        dtype = spec.score_dtype(predictions)
        outputs[spec.name] = da.map_blocks(
            _open,
            parts,
            spec.name,
            drop_axis=dropped,
            chunks=tuple(chunks[dim] for dim in spec.dims),
            dtype=dtype,
            meta=np.empty((0,) * len(spec.dims), dtype),
        )
    return outputs


def chunk_like(array: Any, leader: da.Array) -> da.Array:
    """Rows in memory, cut where a lazy array is cut along its first axis; whatever has a shape, a type and slices."""
    chunks = (leader.chunks[0] if not _unknown(leader.chunks[:1]) else -1, *(-1,) * (len(array.shape) - 1))
    meta = np.empty((0,) * len(array.shape), array.dtype)
    return da.from_array(array, chunks=chunks, asarray=False, meta=meta)


def map_rows(function: Callable[[Array], Any], array: da.Array, columns: int | None, dtype: Any) -> da.Array:
    """A function of some rows that makes as many values, or rows of some number of columns."""
    array = array.rechunk({1: -1}) if array.ndim == 2 else array
    shape = {} if columns is None else {"chunks": (array.chunks[0], (columns,))}
    return da.map_blocks(
        function,
        array,
        dtype=dtype,
        drop_axis=1 if columns is None and array.ndim == 2 else [],
        new_axis=1 if columns is not None and array.ndim == 1 else None,
        meta=np.empty((0,) if columns is None else (0, 0), dtype),
        **shape,
    )


def results_of(task: Task[Any], params: Any, states: Mapping[str, Delayed]) -> Delayed | Mapping[str, Any]:
    """Lazy mapping of the name of each pass that has a lazy state to its result."""
    return delayed(_results)(task, params, dict(states)) if states else {}


def merge_tree(states: Sequence[Delayed]) -> Delayed:
    """Lazy merge of lazy states, in their order."""
    while len(states) > 1:
        states = [
            delayed(_merge_states)(list(states[i : i + _SPLIT_EVERY])) for i in range(0, len(states), _SPLIT_EVERY)
        ]
    return states[0]


def pick_lazily(stats: Delayed | Mapping[str, Any], name: str, shape: tuple[int, ...], dtype: Any) -> da.Array:
    """One of the results of passes, an array of a known shape."""
    return da.from_delayed(delayed(getitem)(stats, name), shape=shape, dtype=dtype)


def call_lazily(function: Callable[..., Array], *args: Any, dtype: Any) -> da.Array:
    """One call of a function that makes a vector, of a length that is known when it is computed."""
    return da.from_delayed(delayed(function)(*args), shape=(np.nan,), dtype=dtype, meta=np.empty(0, dtype))


def _map(
    task: Task[Any],
    function: Callable[[Block, Any, Mapping[str, Any]], Any],
    arrays: Mapping[str, da.Array],
    params: Any,
    stats: Delayed | Mapping[str, Any],
    resolution: float,
) -> da.Array:
    """A box per block with what `function(block, params, stats)` makes of it."""
    names = [spec.name for spec in task.inputs]
    missing = [tuple(i for i, dim in enumerate(task.dims) if dim not in spec.dims) for spec in task.inputs]
    expanded = [
        da.map_blocks(np.expand_dims, arrays[name], axes, new_axis=axes, dtype=arrays[name].dtype)
        if axes
        else arrays[name]
        for name, axes in zip(names, missing, strict=True)
    ]
    leader = len(names) - 1
    extents = dict(zip(task.dims, arrays[names[leader]].shape, strict=True))
    sizes = {dim: int(size) for dim, size in extents.items() if not math.isnan(size)}

    def run(*blocks: Array, stats: Mapping[str, Any], block_info: Any = None) -> Array:
        parts = {
            name: (block.squeeze(axes) if axes else block)
            for name, block, axes in zip(names, blocks, missing, strict=True)
        }
        location, chunk = (block_info[leader][key] for key in ("array-location", "chunk-location"))
        starts = {dim: start for dim, (start, _) in zip(task.dims, location, strict=True)}
        origin = {dim: int(start) for dim, start in starts.items() if not math.isnan(start)}
        unknown = {dim: number for dim, number in zip(task.dims, chunk, strict=True) if dim not in origin}
        common_sizes(
            task, {name: ArrayInfo(part.shape, part.dtype, f"{name}, chunk {chunk}") for name, part in parts.items()}
        )
        return _box(function(Block(parts, origin, resolution, unknown, sizes), params, stats), len(task.dims))

    return da.map_blocks(
        run,
        *expanded,
        stats=stats,
        chunks=tuple((1,) * count for count in expanded[leader].numblocks),
        dtype=object,
        meta=np.empty((0,) * len(task.dims), object),
    )


def _merge(boxes: da.Array, axes: tuple[int, ...]) -> da.Array:
    return da.reduction(
        boxes,
        chunk=_as_it_is,
        combine=_merge_boxes,
        aggregate=_merge_boxes,
        axis=axes,
        split_every=_SPLIT_EVERY,
        concatenate=False,
        keepdims=True,
        dtype=object,
        meta=boxes._meta,
    )


def _unknown(chunks: tuple[tuple[float, ...], ...]) -> bool:
    return any(np.isnan(size) for sizes in chunks for size in sizes)


def _box(value: Any, ndim: int) -> Array:
    box = np.empty((1,) * ndim, object)
    box[(0,) * ndim] = value
    return box


def _unbox(box: Array) -> Any:
    return box.item()


def _as_it_is(box: Array, axis: Any, keepdims: bool) -> Array:
    return box


def _merge_boxes(boxes: Any, axis: Any, keepdims: bool) -> Array:
    flat = list(_flatten(boxes))
    return _box(reduce(merge_states, map(_unbox, flat)), flat[0].ndim)


def _flatten(boxes: Any) -> Iterator[Array]:
    if isinstance(boxes, list):
        for inner in boxes:
            yield from _flatten(inner)
    else:
        yield boxes


def _pick(box: Array, name: str) -> Array:
    return _box(box.item()[name], box.ndim)


def _open(box: Array, name: str) -> Array:
    value = box.item()
    scores = value[name] if isinstance(value, dict) else value
    return scores.result() if isinstance(scores, State) else scores


def _results(task: Task[Any], params: Any, states: Mapping[str, State | None]) -> dict[str, Any]:
    stats: dict[str, Any] = {}
    for step in task.passes(params):
        if step.name in states:
            stats[step.name] = step.result(states[step.name], params, stats)
    return stats


def _merge_states(states: list[State | None]) -> State | None:
    return reduce(merge_states, states)
