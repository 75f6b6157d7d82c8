"""Lazy input computes nothing before it is asked to, and then reads each chunk once per pass in few tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from dask.callbacks import Callback

from labelqa_dask import multiclass, multilabel, regression, segmentation
from tests.strategies import multiclass_data, multilabel_data, regression_data, segmentation_data


class Computed(Exception):
    """Something computed."""


@pytest.fixture
def nothing_computes() -> Iterator[None]:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise Computed

    with dask.config.set(scheduler=refuse):
        with pytest.raises(Computed):
            da.ones(3).compute()
        yield


class CountedSource:
    """An array that notes which parts of it are read."""

    def __init__(self, values: Any) -> None:
        self.values = values
        self.shape, self.dtype, self.ndim = values.shape, values.dtype, values.ndim
        self.reads: Counter[Any] = Counter()

    def __getitem__(self, index: Any) -> Any:
        part = self.values[index]
        if part.size:
            self.reads[tuple((s.start, s.stop) for s in index)] += 1
        return part

    def lazily(self, chunks: Any) -> da.Array:
        return da.from_array(self, chunks=chunks, inline_array=True)


def multiclass_inputs(n: int = 20, chunk: int = 3, k: int = 4) -> tuple[da.Array, da.Array]:
    labels, pred_probs = multiclass_data(n, k)
    return da.from_array(labels, chunks=chunk), da.from_array(pred_probs, chunks=(chunk + 1, 2))


def segmentation_inputs(n: int = 6) -> tuple[da.Array, da.Array]:
    labels, pred_probs = segmentation_data(n, 3, 4, 6)
    return da.from_array(labels, chunks=(2, 4, 3)), da.from_array(pred_probs, chunks=(3, 2, 2, 6))


def named(array: da.Array, *dims: str) -> xr.DataArray:
    return xr.DataArray(array, dims=dims, coords={dims[0]: np.arange(array.shape[0])})


@pytest.mark.usefixtures("nothing_computes")
@pytest.mark.parametrize(
    ("method", "adjust"),
    [("self_confidence", False), ("normalized_margin", True), ("confidence_weighted_entropy", False)],
)
def test_multiclass_scores_are_lazy(method: Any, adjust: bool) -> None:
    labels, pred_probs = multiclass_inputs()
    scores = multiclass.get_label_quality_scores(labels, pred_probs, method=method, adjust_pred_probs=adjust)
    assert isinstance(scores, da.Array)
    scores = multiclass.get_label_quality_scores(
        named(labels, "row"), named(pred_probs, "row", "class"), method=method, adjust_pred_probs=adjust
    )
    assert isinstance(scores.data, da.Array)


@pytest.mark.usefixtures("nothing_computes")
@pytest.mark.parametrize("aggregator", ["exponential_moving_average", "softmin", np.min])
@pytest.mark.parametrize("form", ["dense", "lists"])
def test_multilabel_scores_are_lazy(aggregator: Any, form: str) -> None:
    dense, values = multilabel_data(20, 4)
    labels, pred_probs = da.from_array(dense, chunks=3), da.from_array(values, chunks=(4, 2))
    given = labels if form == "dense" else [np.flatnonzero(row).tolist() for row in dense]
    settings: dict[str, Any] = {"adjust_pred_probs": True, "aggregator_kwargs": {"method": aggregator}}
    assert isinstance(multilabel.get_label_quality_scores(given, pred_probs, **settings), da.Array)
    per_class = multilabel.get_label_quality_scores_per_class(given, pred_probs, adjust_pred_probs=True)
    assert isinstance(per_class, da.Array)
    assert isinstance(multilabel.Aggregator(aggregator)(per_class), da.Array)
    assert isinstance(multilabel.multilabel_py(labels), da.Array)
    scores = multilabel.get_label_quality_scores(
        named(labels, "row", "tag"), named(pred_probs, "row", "tag"), **settings
    )
    assert isinstance(scores.data, da.Array)


@pytest.mark.parametrize(("adjust", "passes"), [(False, 1), (True, 2)])
def test_multilabel_reads_each_chunk_once_per_pass(adjust: bool, passes: int) -> None:
    labels, pred_probs = (CountedSource(values) for values in multilabel_data(20, 4))
    lazy = labels.lazily((3, 4)), pred_probs.lazily((3, 4))
    scores = multilabel.get_label_quality_scores(*lazy, adjust_pred_probs=adjust)
    assert not pred_probs.reads
    scores.compute(scheduler="sync")
    for source in (labels, pred_probs):
        assert len(source.reads) == 7
        assert set(source.reads.values()) == {passes}


@pytest.mark.usefixtures("nothing_computes")
def test_segmentation_scores_and_issues_are_lazy() -> None:
    labels, pred_probs = segmentation_inputs()
    scores = segmentation.get_label_quality_scores(labels, pred_probs, temperature=0.5)
    assert isinstance(segmentation.issues_from_scores(*scores), da.Array)
    assert isinstance(segmentation.issues_from_scores(scores[0]), da.Array)
    scores = segmentation.get_label_quality_scores(
        named(labels, "image", "y", "x"), named(pred_probs, "image", "class", "y", "x")
    )
    assert isinstance(segmentation.issues_from_scores(*scores).data, da.Array)
    assert isinstance(segmentation.issues_from_scores(scores[0]), da.Array)


@pytest.mark.parametrize(("adjust", "passes"), [(False, 1), (True, 2)])
def test_multiclass_reads_each_chunk_once_per_pass(adjust: bool, passes: int) -> None:
    labels, pred_probs = (CountedSource(values) for values in multiclass_data(20, 4))
    scores = multiclass.get_label_quality_scores(labels.lazily(3), pred_probs.lazily((3, 4)), adjust_pred_probs=adjust)
    assert not labels.reads
    assert not pred_probs.reads
    scores.compute(scheduler="sync")
    for source in (labels, pred_probs):
        assert len(source.reads) == 7
        assert set(source.reads.values()) == {passes}


@pytest.mark.parametrize(("neighbors", "passes"), [("exact", 2), ("field", 3)])
def test_regression_reads_each_chunk_once_per_pass(neighbors: Any, passes: int) -> None:
    labels, predictions = (CountedSource(values) for values in regression_data(20))
    scores = regression.get_label_quality_scores(labels.lazily(3), predictions.lazily(3), neighbors=neighbors)
    assert not labels.reads
    assert not predictions.reads
    scores.compute(scheduler="sync")
    for source in (labels, predictions):
        assert len(source.reads) == 7
        assert set(source.reads.values()) == {passes}


@pytest.mark.parametrize("chunks", [(1, 3, 4, 6), (2, 3, 2, 3)], ids=["images whole", "images split"])
@pytest.mark.parametrize(
    "compute",
    [
        lambda images, pixels: dask.compute(images, pixels, scheduler="sync"),
        lambda images, pixels: da.store(
            [images, pixels], [np.empty(images.shape), np.empty(pixels.shape)], scheduler="sync"
        ),
    ],
    ids=["compute", "store"],
)
def test_segmentation_reads_each_chunk_once_for_both_scores(compute: Callable[..., Any], chunks: Any) -> None:
    labels, pred_probs = (CountedSource(values) for values in segmentation_data(6, 3, 4, 6))
    lazy = segmentation.get_label_quality_scores(labels.lazily((chunks[0], *chunks[2:])), pred_probs.lazily(chunks))
    assert not labels.reads
    assert not pred_probs.reads
    compute(*lazy)
    for source in (labels, pred_probs):
        assert len(source.reads) == (6 if chunks[0] == 1 else 12)
        assert set(source.reads.values()) == {1}


def tasks(*collections: Any) -> int:
    """How many tasks the scheduler runs for the values of some collections."""
    run: list[Any] = []
    with Callback(pretask=lambda key, dsk, state: run.append(key)):
        dask.compute(*collections, scheduler="sync")
    return len(run)


def multiclass_tasks(chunks: int, adjust: bool) -> int:
    labels, pred_probs = (CountedSource(values) for values in multiclass_data(chunks, 3))
    return tasks(
        multiclass.get_label_quality_scores(labels.lazily(1), pred_probs.lazily((1, 3)), adjust_pred_probs=adjust)
    )


def segmentation_tasks(chunks: int) -> int:
    labels, pred_probs = (CountedSource(values) for values in segmentation_data(chunks, 3, 2, 2))
    return tasks(*segmentation.get_label_quality_scores(labels.lazily((1, 2, 2)), pred_probs.lazily((1, 3, 2, 2))))


FINISH = 2  # Dask's own, one per result, to put its chunks together


def test_a_chunk_is_few_tasks() -> None:
    assert multiclass_tasks(100, adjust=False) <= 200 + FINISH
    assert multiclass_tasks(100, adjust=True) <= 400 + FINISH
    assert segmentation_tasks(100) <= 300 + FINISH


@pytest.mark.parametrize(
    "count",
    [lambda n: multiclass_tasks(n, False), lambda n: multiclass_tasks(n, True), segmentation_tasks],
    ids=["multiclass", "adjusted", "segmentation"],
)
def test_the_graph_grows_with_the_number_of_chunks(count: Callable[[int], int]) -> None:
    few, twice, fourfold = count(50), count(100), count(200)
    assert twice <= 2.05 * few
    assert fourfold <= 2.05 * twice
