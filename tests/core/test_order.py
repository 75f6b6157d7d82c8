"""The k worst are what a plain sort gives, and histogram bins hold what their edges say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelqa_dask.core.order import Histogram, KWorst
from tests.strategies import scores, seeded


def plain_sort(values: Any, k: int) -> list[int]:
    return sorted((i for i in range(len(values)) if not np.isnan(values[i])), key=lambda i: (values[i], i))[:k]


@seeded
@given(values=scores(), k=st.integers(0, 50), dtype=st.sampled_from(["float64", "float32"]))
def test_candidates_are_the_lowest_in_a_plain_sort(values: Any, k: int, dtype: str) -> None:
    values = values.astype(dtype)
    assert KWorst.candidates(values, k).tolist() == plain_sort(values, k)


@seeded
@given(values=scores(), k=st.integers(0, 50), size=st.integers(1, 10), order=st.randoms(use_true_random=False))
def test_k_worst_of_parts_in_any_order_are_the_lowest_in_a_plain_sort(
    values: Any, k: int, size: int, order: Any
) -> None:
    parts = []
    for start in range(0, len(values), size):
        part = values[start : start + size]
        chosen = KWorst.candidates(part, k)
        parts.append(KWorst.of(part, chosen, start, k, {"name": (chosen + start).astype(str)}))
    order.shuffle(parts)
    merged = KWorst(k, np.empty(0), np.empty(0, np.int64))
    for part in parts:
        merged = merged.merge(part)
    expected = plain_sort(values, k)
    assert merged.rows.tolist() == expected
    np.testing.assert_array_equal(merged.scores, values[expected])
    if expected:
        assert merged.columns["name"].tolist() == [str(row) for row in expected]


def test_equal_scores_are_taken_in_row_order() -> None:
    assert KWorst.candidates(np.full(1000, 0.5), 3).tolist() == [0, 1, 2]


def test_nan_is_never_among_the_worst() -> None:
    assert KWorst.candidates(np.array([np.nan, 0.5, np.nan]), 3).tolist() == [1]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("bins", [1, 7, 100])
def test_a_score_on_an_edge_belongs_to_the_bin_above_and_one_to_the_last(bins: int, dtype: str) -> None:
    edges = (np.arange(bins + 1) / bins).astype(dtype)
    np.testing.assert_array_equal(Histogram.of(edges, bins).counts, [1] * (bins - 1) + [2])
    np.testing.assert_array_equal(Histogram.of(np.nextafter(edges[1:], edges.dtype.type(0)), bins).counts, [1] * bins)


def test_scores_outside_by_rounding_are_counted_and_nan_is_not() -> None:
    counts = Histogram.of(np.array([-1e-9, 1 + 1e-9, np.nan]), 4).counts
    np.testing.assert_array_equal(counts, [1, 0, 0, 1])


@seeded
@given(values=scores(nan=False), bins=st.integers(1, 200))
def test_every_score_is_counted_in_the_bin_that_holds_it(values: Any, bins: int) -> None:
    edges = np.arange(bins + 1) / bins
    expected, _ = np.histogram(values, edges)
    np.testing.assert_array_equal(Histogram.of(values, bins).counts, expected)
