"""What every method must keep to; each one that the package has is tested, whatever it computes."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from functools import reduce
from itertools import pairwise, product
from typing import Any, Literal, get_args, get_origin

import dask
import dask.array as da
import numpy as np
import pytest
from dask.array.utils import assert_eq

from labelqa_dask.core import blocks, public
from labelqa_dask.core.class_scores import ClassScores
from labelqa_dask.core.errors import InvalidConfig
from labelqa_dask.core.task import Block, State, get_task, merge_states, task_names
from labelqa_dask.storage.record import state_digest
from tests.strategies import annotations, probabilities

SIZES = {"example": 12, "class": 3, "y": 4, "x": 5}
FLOATS = ["float64", "float32", "float16"]


def settings_of(task: Any) -> Iterator[dict[str, Any]]:
    """Every combination of the choices that a method offers and does not refuse."""
    choices = {}
    for name, field in task.params_model.model_fields.items():
        if field.annotation is bool:
            choices[name] = [False, True]
        elif get_origin(field.annotation) is Literal:
            choices[name] = list(get_args(field.annotation))
    for values in product(*choices.values()):
        settings = dict(zip(choices, values, strict=True))
        try:
            task.params(**settings)
        except InvalidConfig:
            continue
        yield settings


CASES = [
    pytest.param(get_task(name), get_task(name).params(**settings), id="-".join([name, *map(str, settings.values())]))
    for name in task_names()
    for settings in settings_of(get_task(name))
]
each_method = pytest.mark.parametrize(("task", "params"), CASES)
# Annotations are ragged: their functions have a way of their own into Dask, which their own tests cover.
OF_ARRAYS = [case for case in CASES if all(spec.kind != "annotations" for spec in case.values[0].inputs)]
each_method_of_arrays = pytest.mark.parametrize(("task", "params"), OF_ARRAYS)


def inputs(task: Any, dtype: str = "float64", **sizes: int) -> dict[str, Any]:
    """Valid arrays as the task's specs declare them."""
    rng = np.random.default_rng(0)
    arrays = {}
    for spec in task.inputs:
        shape = tuple({**SIZES, **sizes}[dim] for dim in spec.dims)
        if spec.kind == "annotations":
            arrays[spec.name] = annotations(rng, *shape, k=SIZES["class"])
        elif spec.kind in ("labels", "indicators"):
            arrays[spec.name] = rng.integers(0, 2 if "class" in spec.dims else SIZES["class"], shape)
        elif "class" in spec.dims:
            arrays[spec.name] = probabilities(rng, shape, spec.dims.index("class")).astype(dtype)
        else:
            arrays[spec.name] = rng.random(shape).astype(dtype)
    return arrays


def chunked(task: Any, arrays: dict[str, Any], size: int) -> dict[str, Any]:
    return {name: da.from_array(array, chunks=size) for name, array in arrays.items()}


def sizes_of(task: Any, arrays: dict[str, Any]) -> dict[str, int]:
    return dict(zip(task.dims, arrays[task.inputs[-1].name].shape, strict=True))


def needed_passes(task: Any, params: Any, stats: dict[str, Any]) -> list[Any]:
    return [step for step in task.passes(params) if stats[step.name] is not None]


def assert_same(found: Any, expected: Any) -> None:
    """Results are numbers, arrays, or dataclasses of them."""
    if is_dataclass(expected):
        for field in fields(expected):
            assert_same(getattr(found, field.name), getattr(expected, field.name))
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def stats_of(task: Any, params: Any, arrays: dict[str, Any]) -> dict[str, Any]:
    return blocks.reduce_arrays(task, blocks.Whole(arrays, sizes_of(task, arrays)), params)


def parts(task: Any, arrays: dict[str, Any], cuts: list[int]) -> list[Block]:
    return [
        Block(
            {name: array[start:stop] for name, array in arrays.items()},
            {"example": start},
            sizes=sizes_of(task, arrays),
        )
        for start, stop in pairwise(cuts)
    ]


def test_there_are_methods_to_test() -> None:
    assert {"multiannotator", "multiclass", "multilabel", "segmentation"} <= set(task_names())
    assert {case.values[0].name for case in CASES} == set(task_names())


@each_method
def test_a_method_declares_what_the_engines_rely_on(task: Any, params: Any) -> None:
    assert get_task(task.name) is task
    assert task.inputs[0].name in ("labels", "annotations")
    assert set().union(*(spec.dims for spec in task.inputs)) == set(task.dims)
    ranked = next(spec for spec in task.written(params) if spec.name == task.ranked_by)
    assert ranked.dims == ("example",)
    for spec in (*task.inputs, *task.written(params)):
        assert spec.dims[0] == "example"
        assert list(spec.dims) == [dim for dim in task.dims if dim in spec.dims]
    if any(spec.kind == "issues" for spec in task.written(params)):
        parameter, value = task.told_where["issues"]
        assert getattr(params, parameter) == value


@pytest.mark.parametrize("name", task_names())
def test_what_is_told_for_a_parameter_is_told_for_one_that_there_is(name: str) -> None:
    task = get_task(name)
    assert task.told_where.keys() <= {"issues", "annotators"}
    for parameter, value in task.told_where.values():
        assert getattr(task.params(**{parameter: value}), parameter) == value


@pytest.mark.parametrize("dtype", FLOATS)
@each_method_of_arrays
def test_outputs_are_as_declared(task: Any, params: Any, dtype: str) -> None:
    outputs = public.run(task, inputs(task, dtype), params)
    assert list(outputs) == [spec.name for spec in task.written(params)]
    for spec in task.written(params):
        scores = outputs[spec.name]
        assert scores.shape == tuple(SIZES[dim] for dim in spec.dims)
        assert scores.dtype == spec.score_dtype(np.dtype(dtype))
        assert np.isfinite(scores).all()
        assert ((scores >= -1e-6) & (scores <= 1 + 1e-6)).all()


@pytest.mark.parametrize("dtype", FLOATS)
@each_method_of_arrays
def test_lazy_outputs_promise_what_they_become(task: Any, params: Any, dtype: str) -> None:
    arrays = inputs(task, dtype)
    lazy, eager = public.run(task, chunked(task, arrays, 2), params), public.run(task, arrays, params)
    for spec in task.written(params):
        assert lazy[spec.name].dtype == spec.score_dtype(np.dtype(dtype))
        assert lazy[spec.name].chunks[0] == (2,) * 6
        assert_eq(lazy[spec.name], eager[spec.name], scheduler="sync", rtol=1e-12 if dtype == "float64" else 1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 12])
@each_method_of_arrays
def test_chunking_does_not_change_the_scores(task: Any, params: Any, size: int) -> None:
    arrays = inputs(task)
    eager = public.run(task, arrays, params)
    (lazy,) = dask.compute(public.run(task, chunked(task, arrays, size), params), scheduler="sync")
    by_rows = public.run(task, arrays, params, batch_size=size, n_jobs=2)
    for spec in task.written(params):
        np.testing.assert_allclose(lazy[spec.name], eager[spec.name], rtol=1e-12)
        np.testing.assert_array_equal(by_rows[spec.name], eager[spec.name])


@each_method
def test_the_states_of_passes_merge(task: Any, params: Any) -> None:
    arrays = inputs(task)
    stats = stats_of(task, params, arrays)
    for step in needed_passes(task, params, stats):
        (everything,) = parts(task, arrays, [0, 12])
        whole = step.reduce(everything, params, stats)
        states = [step.reduce(block, params, stats) for block in parts(task, arrays, [0, 1, 5, 12])]
        assert isinstance(whole, step.state)
        assert isinstance(whole, State)
        merged = reduce(merge_states, states)
        assert_same(step.result(merged, params, stats), step.result(whole, params, stats))


@each_method
def test_blocks_of_no_example_are_blocks_like_any_other(task: Any, params: Any) -> None:
    arrays = inputs(task)
    stats = stats_of(task, params, arrays)
    nothing, everything = parts(task, arrays, [0, 0, 12])
    for step in needed_passes(task, params, stats):
        whole = step.reduce(everything, params, stats)
        for state in (step.of(nothing, params, stats).merge(whole), whole.merge(step.of(nothing, params, stats))):
            assert_same(step.result(state, params, stats), step.result(whole, params, stats))
    scores = blocks.finished(task.score(nothing, params, stats))
    for spec in task.written(params):
        assert scores[spec.name].shape == (0, *(SIZES[dim] for dim in spec.dims[1:]))
        assert scores[spec.name].dtype == spec.score_dtype(np.dtype("float64"))


@each_method
def test_states_survive_storage_without_pickle(task: Any, params: Any) -> None:
    arrays = inputs(task)
    stats = stats_of(task, params, arrays)
    (block,) = parts(task, arrays, [0, 12])
    states = [step.reduce(block, params, stats) for step in needed_passes(task, params, stats)]
    states += [value for value in task.score(block, params, stats).values() if isinstance(value, State)]
    for state in states:
        buffer = io.BytesIO()
        np.savez(buffer, **{field.name: getattr(state, field.name) for field in fields(state)})
        buffer.seek(0)
        with np.load(buffer, allow_pickle=False) as stored:
            again = type(state)(**{name: stored[name] for name in stored.files})
        assert_same(again.merge(state).result(), state.merge(state).result())


@each_method
def test_what_does_not_say_so_does_not_depend_on_the_numbers_of_rows(task: Any, params: Any) -> None:
    """The next version takes it over for rows that have moved."""
    arrays = inputs(task)
    stats = stats_of(task, params, arrays)
    (block,) = parts(task, arrays, [0, 12])
    sizes = {**block.sizes, "example": 1 << 20}
    moved = replace(block, origin={"example": 123_456}, sizes=sizes)
    steps = needed_passes(task, params, stats)
    for step in steps:
        if not step.by_row:
            assert state_digest(step.reduce(moved, params, stats)) == state_digest(step.reduce(block, params, stats))
    if not any(step.by_row for step in steps):
        here, there = (blocks.finished(task.score(each, params, stats)) for each in (block, moved))
        for spec in task.written(params):
            np.testing.assert_array_equal(there[spec.name], here[spec.name])


@each_method
def test_parameters_come_back_from_a_manifest(task: Any, params: Any) -> None:
    assert task.params(**json.loads(json.dumps(params.model_dump(mode="json")))) == params


@each_method
def test_what_a_block_tells_of_its_examples_is_of_that_length(task: Any, params: Any) -> None:
    arrays = inputs(task)
    (block,) = parts(task, arrays, [0, 12])
    scores = blocks.finished(task.score(block, params, stats_of(task, params, arrays)))
    described = task.describe(block, scores, np.array([3, 1]))
    for values in (described.result() if isinstance(described, State) else described).values():
        assert values.shape == (2,)
    classes = task.class_scores(block, scores)
    if classes is not None:
        assert isinstance(classes, ClassScores)
        labels = task.inputs[0]
        given = arrays[labels.name]
        expected = {"labels": np.size, "indicators": np.sum, "annotations": len}[labels.kind](given)
        assert classes.count.sum() == expected
    preview = task.preview(parts(task, arrays, [4, 5])[0], params)
    if preview is not None:
        assert preview.given.shape == preview.predicted.shape == preview.pixel_scores.shape


@each_method_of_arrays
def test_inputs_are_left_as_they_were(task: Any, params: Any) -> None:
    arrays = inputs(task)
    for array in arrays.values():
        array.flags.writeable = False
    public.run(task, arrays, params)
    (lazy,) = dask.compute(public.run(task, chunked(task, arrays, 5), params), scheduler="sync")
    assert list(lazy) == [spec.name for spec in task.written(params)]
    for name, untouched in inputs(task).items():
        np.testing.assert_array_equal(arrays[name], untouched)
