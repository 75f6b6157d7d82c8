"""Regression scores are those of cleanlab, or within their tolerance of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cleanlab.regression.rank
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray
from scipy.stats import spearmanr

from labelqa_dask.regression import get_label_quality_scores
from tests.strategies import regression_data

TOLERANCE = {"float64": 1e-9, "float32": 1e-5, "float16": 1e-3}
Pair = tuple[NDArray[Any], NDArray[Any]]


def duplicates() -> Pair:
    labels, predictions = regression_data(15)
    return np.tile(labels, 6), np.tile(predictions, 6)


DATA: dict[str, Callable[[], Pair]] = {
    "normal": lambda: regression_data(400),
    "two": lambda: regression_data(2),
    "three": lambda: regression_data(3),
    "four": lambda: regression_data(4),
    "odd": lambda: regression_data(151),
    "heavy-tailed": lambda: regression_data(300, "heavy-tailed"),
    "log-normal": lambda: regression_data(300, "log-normal"),
    "clustered": lambda: regression_data(300, "clustered"),
    "ratings": lambda: regression_data(300, "ratings"),
    "clipped ratings": lambda: regression_data(300, "clipped ratings"),
    "constant labels": lambda: regression_data(300, "constant"),
    "constant predictions": lambda: (regression_data(90)[0], np.full(90, 0.7)),
    "predicted exactly": lambda: (regression_data(90)[0],) * 2,
    "all equal": lambda: (np.full(90, 3.3), np.full(90, 3.4)),
    "duplicates": duplicates,
    "giant outlier": lambda: (np.append(regression_data(89)[0], 1e12), regression_data(90)[1]),
}


def reference(labels: NDArray[Any], predictions: NDArray[Any], method: str = "outre") -> NDArray[np.float64]:
    return cleanlab.regression.rank.get_label_quality_scores(
        labels.astype(np.float64), predictions.astype(np.float64), method=method
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("method", ["outre", "residual"])
@pytest.mark.parametrize("name", DATA)
def test_numpy_scores_equal_the_reference(name: str, method: Any, dtype: str) -> None:
    labels, predictions = DATA[name]()
    predictions = predictions.astype(dtype)
    scores = get_label_quality_scores(labels, predictions, method=method)
    np.testing.assert_allclose(
        scores, reference(labels, predictions, method), rtol=0, atol=1e-9 if dtype == "float64" else 1e-6
    )


@pytest.mark.parametrize("chunks", [(300, 300), (1, 1), (7, 11)], ids=["one", "rows", "misaligned"])
@pytest.mark.parametrize("method", ["outre", "residual"])
def test_dask_scores_equal_the_reference(method: Any, chunks: tuple[int, int]) -> None:
    labels, predictions = regression_data(300)
    lazy = get_label_quality_scores(
        da.from_array(labels, chunks=chunks[0]), da.from_array(predictions, chunks=chunks[1]), method=method
    )
    np.testing.assert_allclose(
        lazy.compute(scheduler="sync"), reference(labels, predictions, method), rtol=0, atol=1e-9
    )


def test_xarray_scores_keep_their_coordinates() -> None:
    labels, predictions = (
        xr.DataArray(values, dims="day", coords={"day": np.arange(40) * 2}) for values in regression_data(40)
    )
    scores = get_label_quality_scores(labels, predictions)
    np.testing.assert_allclose(scores, reference(labels.values, predictions.values), atol=1e-9)
    assert scores.day.values.tolist() == list(range(0, 80, 2))


@pytest.mark.parametrize("labels_dtype", ["int8", "int32", "int64", "float32"])
def test_labels_of_any_type_give_the_same_scores(labels_dtype: str) -> None:
    labels, predictions = regression_data(200, "ratings")
    np.testing.assert_array_equal(
        get_label_quality_scores(labels.astype(labels_dtype), predictions),
        get_label_quality_scores(labels, predictions),
    )


@pytest.mark.parametrize("settings", [(5.0, 0.5), (10.0, 0.1), (1.0, 0.9)])
def test_keywords_do_what_the_references_do(settings: tuple[float, float]) -> None:
    residual_scale, frac_neighbors = settings
    labels, predictions = regression_data(300)
    expected = cleanlab.regression.rank._get_outre_score_for_each_label(
        labels, predictions, residual_scale=residual_scale, frac_neighbors=frac_neighbors
    )
    scores = get_label_quality_scores(labels, predictions, residual_scale=residual_scale, frac_neighbors=frac_neighbors)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-9)


def test_more_than_a_leaf_of_points_equals_the_reference() -> None:
    labels, predictions = regression_data(3000, "heavy-tailed")
    scores = get_label_quality_scores(labels, predictions, neighbors="exact")
    np.testing.assert_allclose(scores, reference(labels, predictions), rtol=0, atol=1e-9)


KINDS = [
    "normal",
    "heavy-tailed",
    "log-normal",
    "clustered",
    "ratings",
    "clipped ratings",
    "zeros in excess",
    "constant",
]


@pytest.mark.parametrize(
    "n", [5000, 20_000, pytest.param(50_000, marks=pytest.mark.slow), pytest.param(100_000, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_the_field_is_within_its_tolerance_of_exact_scores(kind: str, n: int) -> None:
    labels, predictions = regression_data(n, kind)
    exact = get_label_quality_scores(labels, predictions, neighbors="exact")
    field = get_label_quality_scores(labels, predictions, neighbors="field")
    assert np.abs(field - exact).max() <= 1e-3
    if np.ptp(exact) > 0:
        assert spearmanr(field, exact).statistic >= 0.99999
