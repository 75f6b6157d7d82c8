"""One way in for NumPy, Dask and xarray: the methods' public functions hand their arrays to `run`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from scipy import sparse

from labelqa_dask.core import blocks, graph
from labelqa_dask.core.errors import InvalidInput
from labelqa_dask.core.label_sets import LabelSets
from labelqa_dask.core.layout import ArrayInfo, check_layout, check_multiples
from labelqa_dask.core.task import ArraySpec, Task


def run(
    task: Task[Any], arrays: Mapping[str, Any], params: Any, *, batch_size: int | None = None, n_jobs: int | None = None
) -> dict[str, Any]:
    """Score arrays of any kind.

    Parameters
    ----------
    task : Task
    arrays : mapping of str to array-like
        One per input of the task. If any of them is lazy the outputs are; if any is an xarray object, so are they.
    params : the task's parameters
    batch_size, n_jobs : int, optional
        Examples per block and number of threads, for arrays in memory only.

    Returns
    -------
    dict of str to array
        One per output, of the kind of the inputs.
    """
    for name, value in (("batch_size", batch_size), ("n_jobs", n_jobs)):
        if value is not None and value < 1:
            raise InvalidInput(f"{name} must be at least 1, got {value}")
    labelled = {spec.name: arrays[spec.name] for spec in task.inputs if isinstance(arrays[spec.name], xr.DataArray)}
    names = _dim_names(task, labelled)
    _check_coordinates(labelled)
    given = {
        spec.name: plain(arrays[spec.name], tuple(names[dim] for dim in spec.dims if dim in names))
        for spec in task.inputs
    }
    sizes = check_layout(task, {name: ArrayInfo(array.shape, array.dtype, name) for name, array in given.items()})
    check_multiples(task.multiples(params), sizes)
    resolution = max((_resolution(array) for array in labelled.values()), default=0.0)
    if any(isinstance(array, da.Array) for array in given.values()):
        outputs: Mapping[str, Any] = _run_lazily(task, given, params, resolution)
    else:
        whole = blocks.Whole(given, sizes, resolution, batch_size, n_jobs)
        outputs = blocks.score_arrays(task, whole, params, blocks.reduce_arrays(task, whole, params))
    return {spec.name: _relabel(spec, outputs[spec.name], names, labelled) for spec in task.written(params)}


def statistic(task: Task[Any], arrays: Mapping[str, Any], params: Any, name: str, columns: int) -> Any:
    """The result of one of a task's passes that has some values per class, (k, columns) int: lazy where an input is."""
    given = {spec.name: plain(arrays[spec.name]) for spec in task.inputs}
    sizes = check_layout(task, {name: ArrayInfo(array.shape, array.dtype, name) for name, array in given.items()})
    if not any(isinstance(array, da.Array) for array in given.values()):
        return blocks.reduce_arrays(task, blocks.Whole(given, sizes), params)[name]
    _, stats = _states_of(task, given, params, 0.0)
    return graph.pick_lazily(stats, name, (sizes["class"], columns), np.int64)


def call(function: Callable[..., Any], values: Any, *args: Any, dtype: Any) -> Any:
    """A function of a whole array that makes a vector: lazy where the array is."""
    array = plain(values)
    return (
        graph.call_lazily(function, array, *args, dtype=dtype)
        if isinstance(array, da.Array)
        else function(array, *args)
    )


def map_rows(function: Callable[..., Any], values: Any, dtype: Any) -> Any:
    """A function of the rows of (n, k) values that makes (n,): of the kind of the values, lazy where they are."""
    array = plain(values)
    if array.ndim != 2:
        raise InvalidInput(f"scores must have 2 dimensions, got shape {array.shape}")
    rows = graph.map_rows(function, array, None, dtype) if isinstance(array, da.Array) else function(array)
    if not isinstance(values, xr.DataArray):
        return rows
    dim = values.dims[0]
    return xr.DataArray(rows, dims=[dim], coords={n: c for n, c in values.coords.items() if set(c.dims) <= {dim}})


def as_indicators(labels: Any, k: int) -> Any:
    """Labels of k classes in any form as an array of 0 and 1, lazy where they are, or as `LabelSets`.

    Lists of class ids may be a list of lists, or a Series or array of lists; sparse labels any of scipy's, or a Dask
    array of them.
    """
    if isinstance(labels, LabelSets | xr.DataArray):
        return labels
    if sparse.issparse(labels):
        return LabelSets.of_sparse(labels)
    if isinstance(labels, list | tuple):
        return LabelSets.of_lists(labels, k)
    array = plain(labels)
    if isinstance(array, da.Array) and (array.dtype == object or sparse.issparse(array._meta)):

        def label_sets(rows: Any, block_info: Any = None) -> LabelSets:
            if sparse.issparse(rows):
                return LabelSets.of_sparse(rows)
            start, number = block_info[0]["array-location"][0][0], block_info[0]["chunk-location"][0]
            unknown = math.isnan(start)
            return LabelSets.of_lists(
                rows, k, 0 if unknown else int(start), f"labels, chunk {number:,}" if unknown else "labels"
            )

        return graph.map_rows(label_sets, array, k, np.uint8)
    return LabelSets.of_lists(array, k) if array.dtype == object else array


def _run_lazily(task: Task[Any], arrays: Mapping[str, Any], params: Any, resolution: float) -> dict[str, da.Array]:
    aligned, stats = _states_of(task, arrays, params, resolution)
    return graph.map_scores(task, aligned, params, stats, resolution)


def _states_of(
    task: Task[Any], arrays: Mapping[str, Any], params: Any, resolution: float
) -> tuple[dict[str, da.Array], Any]:
    """The arrays, lined up, and the lazy results of all passes over them."""
    leader = next(array for array in arrays.values() if isinstance(array, da.Array))
    lazy = {
        name: array if isinstance(array, da.Array) else graph.chunk_like(array, leader)
        for name, array in arrays.items()
    }
    aligned = graph.align(task, lazy, task.multiples(params))
    states: dict[str, Any] = {}
    for step in task.passes(params):
        states[step.name] = graph.reduce_states(
            task, step, aligned, params, graph.results_of(task, params, states), resolution
        )
    return aligned, graph.results_of(task, params, states)


def _dim_names(task: Task[Any], labelled: Mapping[str, xr.DataArray]) -> dict[str, str]:
    """The user's name of each dimension of the task; empty where no input is an xarray object."""
    names: dict[str, str] = {}
    for spec in task.inputs:
        array = labelled.get(spec.name)
        if array is None:
            continue
        if array.ndim != len(spec.dims):
            raise InvalidInput(f"must have {len(spec.dims)} dimensions, got {array.dims}", spec.name)
        known = {dim for dim in names.values() if dim in array.dims}
        free = iter([str(dim) for dim in array.dims if dim not in known])
        for dim in spec.dims:
            if names.get(dim) not in known:
                if dim in names:
                    raise InvalidInput(f"has no dimension {names[dim]!r}: its dimensions are {array.dims}", spec.name)
                names[dim] = next(free)
    return names


def _check_coordinates(labelled: Mapping[str, xr.DataArray]) -> None:
    try:
        xr.align(*labelled.values(), join="exact", copy=False)
    except ValueError as error:
        raise InvalidInput(
            f"their coordinates differ: {error}", " and ".join(labelled), "Select or sort them to the same examples."
        ) from None


def plain(array: Any, dims: tuple[str, ...] = ()) -> Any:
    """The NumPy or Dask array in what the user gave, its dimensions in a given order."""
    if isinstance(array, xr.DataArray):
        return array.transpose(*dims).data if dims else array.data
    if isinstance(array, da.Array | LabelSets):
        return array
    if hasattr(array, "to_dask_array"):
        return array.to_dask_array()
    if np.ma.is_masked(array):
        raise InvalidInput("masked arrays are not supported", mend="Leave out the masked examples.")
    return np.asarray(array)


def _resolution(array: xr.DataArray) -> float:
    return float(abs(array.encoding.get("scale_factor", 0.0)))


def _relabel(spec: ArraySpec, values: Any, names: Mapping[str, str], labelled: Mapping[str, xr.DataArray]) -> Any:
    if not labelled:
        return values
    kept = [names.get(dim, dim) for dim in spec.dims]
    coords = {
        name: coord
        for array in labelled.values()
        for name, coord in array.coords.items()
        if set(coord.dims) <= set(kept)
    }
    return xr.DataArray(values, dims=kept, coords=coords, name=spec.name)
