"""Segmentation scores, and the issues that follow from them, are those of cleanlab."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cleanlab.segmentation.rank
import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray

from labelqa_dask.segmentation import get_label_quality_scores, issues_from_scores
from tests.strategies import segmentation_data

TEMPERATURES = [0.01, 0.1, 1.0, 10.0]
TOLERANCE = {"float64": 1e-9, "float32": 1e-5, "float16": 1e-3}


def one_hot() -> tuple[NDArray[Any], NDArray[Any]]:
    labels, pred_probs = segmentation_data(3, 3, 4, 5)
    return labels, np.eye(3)[pred_probs.argmax(axis=1)].transpose(0, 3, 1, 2)


def never_labelled() -> tuple[NDArray[Any], NDArray[Any]]:
    labels, pred_probs = segmentation_data(3, 4, 5, 4)
    return np.where(labels == 2, 0, labels), pred_probs


def constant_class() -> tuple[NDArray[Any], NDArray[Any]]:
    labels, pred_probs = segmentation_data(3, 3, 5, 4)
    return labels, np.concatenate([pred_probs * 0.75, np.full((3, 1, 5, 4), 0.25)], axis=1)


DATA: dict[str, Callable[[], tuple[NDArray[Any], NDArray[Any]]]] = {
    "random": lambda: segmentation_data(5, 3, 8, 8),
    "one pixel": lambda: segmentation_data(1, 2, 1, 1),
    "one-pixel images": lambda: segmentation_data(7, 3, 1, 1),
    "one line": lambda: segmentation_data(3, 3, 1, 9),
    "not square": lambda: segmentation_data(3, 4, 5, 11),
    "100 classes": lambda: segmentation_data(2, 100, 24, 30),
    "class never labelled": never_labelled,
    "constant class": constant_class,
    "one-hot": one_hot,
    "labels all equal": lambda: (np.full((3, 4, 4), 1), segmentation_data(3, 3, 4, 4)[1]),
    "all ties": lambda: (np.arange(48).reshape(3, 4, 4) % 4, np.full((3, 4, 4, 4), 0.25)),
}
CHUNKINGS: dict[str, Callable[[int, int, int, int], tuple[Any, Any]]] = {
    "single block": lambda n, k, h, w: ((n, h, w), (n, k, h, w)),
    "one image per chunk": lambda n, k, h, w: ((1, h, w), (1, k, h, w)),
    "classes split": lambda n, k, h, w: ((2, h, w), (2, 1, h, w)),
    "images split": lambda n, k, h, w: ((2, (h + 1) // 2, (w + 2) // 3), (2, k, (h + 1) // 2, (w + 2) // 3)),
    "misaligned": lambda n, k, h, w: ((n, (h + 1) // 2, w), (2, (k + 1) // 2, h, (w + 1) // 2)),
}


def reference(labels: NDArray[Any], pred_probs: NDArray[Any], temperature: float) -> tuple[Any, Any]:
    return cleanlab.segmentation.rank.get_label_quality_scores(
        labels.astype(np.int64), pred_probs.astype(np.float64), temperature=temperature, verbose=False
    )


def distance(ours: tuple[Any, Any], theirs: tuple[Any, Any]) -> float:
    assert [part.shape for part in ours] == [part.shape for part in theirs]
    return float(max(np.abs(np.asarray(a, np.float64) - b).max() for a, b in zip(ours, theirs, strict=True)))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("data", DATA)
def test_numpy_scores_are_the_references(data: str, temperature: float, dtype: str) -> None:
    labels, pred_probs = DATA[data]()
    pred_probs = pred_probs.astype(dtype)
    ours = get_label_quality_scores(labels, pred_probs, temperature=temperature)
    assert distance(ours, reference(labels, pred_probs, temperature)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("chunking", CHUNKINGS)
@pytest.mark.parametrize("temperature", [0.01, 10.0])
@pytest.mark.parametrize("data", sorted(DATA.keys() - {"100 classes"}))
def test_dask_scores_are_the_references(data: str, temperature: float, chunking: str) -> None:
    labels, pred_probs = DATA[data]()
    label_chunks, chunks = CHUNKINGS[chunking](*pred_probs.shape)
    lazy = get_label_quality_scores(
        da.from_array(labels, chunks=label_chunks), da.from_array(pred_probs, chunks=chunks), temperature=temperature
    )
    assert distance(dask.compute(*lazy, scheduler="sync"), reference(labels, pred_probs, temperature)) <= 1e-9


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("chunking", CHUNKINGS)
def test_dask_scores_of_shorter_floats_are_the_references(chunking: str, dtype: str) -> None:
    labels, pred_probs = segmentation_data(5, 3, 8, 7)
    pred_probs = pred_probs.astype(dtype)
    label_chunks, chunks = CHUNKINGS[chunking](*pred_probs.shape)
    lazy = get_label_quality_scores(
        da.from_array(labels, chunks=label_chunks), da.from_array(pred_probs, chunks=chunks)
    )
    ours = dask.compute(*lazy, scheduler="sync")
    assert distance(ours, reference(labels, pred_probs, 0.1)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "int64", "uint64"])
@pytest.mark.parametrize("lazy", [False, True])
def test_labels_may_be_of_any_integer_type(dtype: str, lazy: bool) -> None:
    labels, pred_probs = segmentation_data(3, 4, 5, 6)
    given = labels.astype(dtype)
    ours = get_label_quality_scores(da.from_array(given, chunks=2) if lazy else given, pred_probs)
    assert distance(dask.compute(*ours, scheduler="sync"), reference(labels, pred_probs, 0.1)) <= 1e-9


def read_only(values: NDArray[Any]) -> NDArray[Any]:
    values = values.copy()
    values.flags.writeable = False
    return values


@pytest.mark.parametrize(
    "form",
    [
        np.asfortranarray,
        lambda values: np.repeat(values, 2, axis=-1)[..., ::2],
        lambda values: np.moveaxis(np.ascontiguousarray(np.moveaxis(values, 1, -1)), -1, 1),
        read_only,
    ],
    ids=["fortran", "strided", "channels last", "read-only"],
)
def test_arrays_may_lie_in_memory_in_any_way(form: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
    labels, pred_probs = segmentation_data(3, 4, 5, 6)
    ours = get_label_quality_scores(form(labels), form(pred_probs))
    assert distance(ours, reference(labels, pred_probs, 0.1)) <= 1e-9


@pytest.mark.parametrize("chunks", [None, {}], ids=["eager", "lazy"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_quantised_probabilities_score_as_what_they_stand_for(tmp_path: Path, dtype: str, chunks: Any) -> None:
    labels, pred_probs = segmentation_data(5, 3, 4, 6)
    steps = np.iinfo(dtype).max
    quantised = np.round(pred_probs * steps).astype(dtype)
    probabilities = (("image", "class", "y", "x"), quantised, {"scale_factor": 1 / steps})
    dataset = xr.Dataset({"labels": (("image", "y", "x"), labels), "pred_probs": probabilities})
    encoding = {"labels": {"chunks": (1, 4, 6)}, "pred_probs": {"chunks": (2, 3, 4, 3)}}
    dataset.to_zarr(tmp_path, encoding=encoding, consolidated=False)
    stored = xr.open_zarr(tmp_path, chunks=chunks, consolidated=False)
    ours = get_label_quality_scores(stored.labels, stored.pred_probs)
    assert [(part.chunks is None) for part in ours] == [chunks is None] * 2
    theirs = reference(labels, quantised / steps, 0.1)
    assert distance(dask.compute(*ours, scheduler="sync"), theirs) <= 1e-5


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.5, 1.0])
def test_issues_are_the_references(threshold: float, lazy: bool) -> None:
    rng = np.random.default_rng(0)
    image_scores, pixel_scores = rng.random(50), rng.random((50, 3, 4))
    images = da.from_array(image_scores, chunks=7) if lazy else image_scores
    pixels = da.from_array(pixel_scores, chunks=(9, 2, 4)) if lazy else pixel_scores
    theirs = cleanlab.segmentation.rank.issues_from_scores
    mask = issues_from_scores(images, pixels, threshold=threshold)
    indices = issues_from_scores(images, threshold=threshold)
    np.testing.assert_array_equal(np.asarray(mask), theirs(image_scores, pixel_scores, threshold))
    np.testing.assert_array_equal(np.asarray(indices), theirs(image_scores, threshold=threshold))


@pytest.mark.parametrize("lazy", [False, True])
def test_images_of_equal_score_are_issues_in_index_order(lazy: bool) -> None:
    image_scores = np.random.default_rng(0).integers(0, 4, 60) / 8
    indices = issues_from_scores(da.from_array(image_scores, chunks=7) if lazy else image_scores, threshold=0.2)
    theirs = cleanlab.segmentation.rank.issues_from_scores(image_scores, threshold=0.2)
    np.testing.assert_array_equal(image_scores[np.asarray(indices)], image_scores[theirs])
    np.testing.assert_array_equal(np.asarray(indices), np.argsort(image_scores, kind="stable")[: len(theirs)])
