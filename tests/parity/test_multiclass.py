"""Multiclass scores are those of cleanlab."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cleanlab.rank
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from numpy.typing import NDArray

from labelqa_dask.multiclass import get_label_quality_scores
from tests.strategies import multiclass_data

OPTIONS = [
    ("self_confidence", False),
    ("self_confidence", True),
    ("normalized_margin", False),
    ("normalized_margin", True),
    ("confidence_weighted_entropy", False),
]
TOLERANCE = {"float64": 1e-9, "float32": 1e-5, "float16": 1e-3}


def constant_column() -> tuple[NDArray[Any], NDArray[Any]]:
    labels, others = multiclass_data(40, 3)
    return labels, np.column_stack([others * 0.75, np.full(40, 0.25)])


def never_labelled() -> tuple[NDArray[Any], NDArray[Any]]:
    labels, pred_probs = multiclass_data(40, 4)
    return np.where(labels == 2, 1, labels), pred_probs


def never_believed() -> tuple[NDArray[Any], NDArray[Any]]:
    """The examples labelled 0 have no probability of it, so that its threshold is at the floor."""
    labels, pred_probs = multiclass_data(40, 3)
    pred_probs[labels == 0, 0] = 0
    return labels, pred_probs / pred_probs.sum(axis=1, keepdims=True)


def nearly_certain() -> tuple[NDArray[Any], NDArray[Any]]:
    doubt = 10.0 ** -np.arange(1, 17)
    return np.arange(16) % 2, np.column_stack([1 - doubt, doubt])


DATA: dict[str, Callable[[], tuple[NDArray[Any], NDArray[Any]]]] = {
    "random": lambda: multiclass_data(60, 5),
    "one example": lambda: multiclass_data(1, 3),
    "two classes": lambda: multiclass_data(40, 2),
    "some more than a tile": lambda: multiclass_data(131, 4),
    "100 classes": lambda: multiclass_data(30, 100),
    "5000 classes": lambda: multiclass_data(11, 5000),
    "class never labelled": never_labelled,
    "class never believed": never_believed,
    "constant column": constant_column,
    "one-hot": lambda: (np.arange(20) % 3, np.eye(3)[np.arange(20) // 3 % 3]),
    "nearly certain": nearly_certain,
    "labels all equal": lambda: (np.full(20, 2), multiclass_data(20, 4)[1]),
    "all ties": lambda: (np.arange(20) % 4, np.full((20, 4), 0.25)),
}
CHUNKINGS: dict[str, Callable[[int, int], tuple[Any, Any]]] = {
    "single block": lambda n, k: (n, (n, k)),
    "one row per chunk": lambda n, k: (1, (1, k)),
    "classes split": lambda n, k: (7, (7, 1)),
    "misaligned": lambda n, k: (5, (8, (k + 1) // 2)),
}


def reference(labels: NDArray[Any], pred_probs: NDArray[Any], method: str, adjust: bool) -> NDArray[np.float64]:
    return cleanlab.rank.get_label_quality_scores(
        labels.astype(np.int64), pred_probs.astype(np.float64), method=method, adjust_pred_probs=adjust
    )


def distance(ours: Any, theirs: NDArray[np.float64]) -> float:
    assert ours.shape == theirs.shape
    return float(np.abs(np.asarray(ours, np.float64) - theirs).max())


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("method", "adjust"), OPTIONS)
@pytest.mark.parametrize("data", DATA)
def test_numpy_scores_are_the_references(data: str, method: Any, adjust: bool, dtype: str) -> None:
    labels, pred_probs = DATA[data]()
    pred_probs = pred_probs.astype(dtype)
    ours = get_label_quality_scores(labels, pred_probs, method=method, adjust_pred_probs=adjust)
    assert distance(ours, reference(labels, pred_probs, method, adjust)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("chunking", CHUNKINGS)
@pytest.mark.parametrize(("method", "adjust"), OPTIONS)
@pytest.mark.parametrize("data", sorted(DATA.keys() - {"5000 classes"}))
def test_dask_scores_are_the_references(data: str, method: Any, adjust: bool, chunking: str) -> None:
    labels, pred_probs = DATA[data]()
    label_chunks, chunks = CHUNKINGS[chunking](*pred_probs.shape)
    lazy = get_label_quality_scores(
        da.from_array(labels, chunks=label_chunks),
        da.from_array(pred_probs, chunks=chunks),
        method=method,
        adjust_pred_probs=adjust,
    )
    assert distance(lazy.compute(scheduler="sync"), reference(labels, pred_probs, method, adjust)) <= 1e-9


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("method", "adjust"), OPTIONS)
def test_dask_scores_of_shorter_floats_are_the_references(method: Any, adjust: bool, dtype: str) -> None:
    labels, pred_probs = multiclass_data(60, 5)
    lazy = get_label_quality_scores(
        da.from_array(labels, chunks=20),
        da.from_array(pred_probs.astype(dtype), chunks=(25, 2)),
        method=method,
        adjust_pred_probs=adjust,
    )
    theirs = reference(labels, pred_probs.astype(dtype), method, adjust)
    assert distance(lazy.compute(scheduler="sync"), theirs) <= TOLERANCE[dtype]


@pytest.mark.parametrize(("method", "adjust"), OPTIONS)
def test_data_of_several_blocks_score_as_in_the_reference(method: Any, adjust: bool) -> None:
    labels, pred_probs = multiclass_data(400_000, 5)
    ours = get_label_quality_scores(labels, pred_probs, method=method, adjust_pred_probs=adjust)
    assert distance(ours, reference(labels, pred_probs, method, adjust)) <= 1e-9


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "int64", "uint64", ">i4"])
@pytest.mark.parametrize("lazy", [False, True])
def test_labels_may_be_of_any_integer_type(dtype: str, lazy: bool) -> None:
    labels, pred_probs = multiclass_data(30, 4)
    given = labels.astype(dtype)
    ours = get_label_quality_scores(da.from_array(given, chunks=7) if lazy else given, pred_probs)
    assert distance(np.asarray(ours), reference(labels, pred_probs, "self_confidence", False)) <= 1e-9


def read_only(values: NDArray[Any]) -> NDArray[Any]:
    values = values.copy()
    values.flags.writeable = False
    return values


@pytest.mark.parametrize(
    "form",
    [
        np.asfortranarray,
        lambda values: np.repeat(values, 2, axis=0)[::2],
        lambda values: values[::-1].copy()[::-1],
        read_only,
        lambda values: values.astype(values.dtype.newbyteorder()),
        lambda values: values.tolist(),
        lambda values: pd.DataFrame(values) if values.ndim == 2 else pd.Series(values),
    ],
    ids=["fortran", "strided", "reversed", "read-only", "other byte order", "lists", "pandas"],
)
def test_arrays_may_lie_in_memory_in_any_way(form: Callable[[NDArray[Any]], Any]) -> None:
    labels, pred_probs = multiclass_data(30, 4)
    ours = get_label_quality_scores(form(labels), form(pred_probs), adjust_pred_probs=True)
    assert distance(ours, reference(labels, pred_probs, "self_confidence", True)) <= 1e-9


@pytest.mark.parametrize("chunks", [None, {}], ids=["eager", "lazy"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize(("method", "adjust"), OPTIONS)
def test_quantised_probabilities_score_as_what_they_stand_for(
    tmp_path: Path, method: Any, adjust: bool, dtype: str, chunks: Any
) -> None:
    labels, pred_probs = multiclass_data(40, 50)
    steps = np.iinfo(dtype).max
    quantised = np.round(pred_probs * steps).astype(dtype)
    probabilities = (("example", "class"), quantised, {"scale_factor": 1 / steps})
    dataset = xr.Dataset({"labels": ("example", labels), "pred_probs": probabilities})
    encoding = {"labels": {"chunks": (9,)}, "pred_probs": {"chunks": (7, 50)}}
    dataset.to_zarr(tmp_path, encoding=encoding, consolidated=False)
    stored = xr.open_zarr(tmp_path, chunks=chunks, consolidated=False)
    ours = get_label_quality_scores(stored.labels, stored.pred_probs, method=method, adjust_pred_probs=adjust)
    assert (ours.chunks is None) == (chunks is None)
    theirs = reference(labels, quantised / steps, method, adjust)
    assert distance(ours.compute(scheduler="sync"), theirs) <= 1e-5
