"""What kernels are built from: an exponential that vectorises, and arrays in the few forms they are compiled for."""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from labelqa_dask.core.kernels import as_labels, as_predictions, exp_nonpositive, log_positive
from tests.strategies import seeded


@numba.njit
def compiled_exp(x: float) -> float:
    return exp_nonpositive(x)


@numba.njit
def compiled_log(x: float) -> float:
    return log_positive(x)


@numba.njit(fastmath={"reassoc", "contract"})
def reordered_exp(values: Any, out: Any) -> None:
    for i in range(len(values)):
        out[i] = exp_nonpositive(values[i])


def ulps(ours: float, true: float) -> float:
    return abs(ours - true) / math.ulp(true)


@seeded
@given(x=st.floats(-700, 0))
@example(x=-0.0)
@example(x=-math.log(2) / 2)
@example(x=-700.0)
def test_exponential_is_right_to_the_last_bits(x: float) -> None:
    assert ulps(compiled_exp(x), math.exp(x)) <= 4


def test_exponential_stays_right_where_sums_are_reordered() -> None:
    values = -np.geomspace(1e-12, 700, 100_000)
    out = np.empty_like(values)
    reordered_exp(values, out)
    worst = max(ulps(ours, math.exp(x)) for ours, x in zip(out.tolist(), values.tolist(), strict=True))
    assert worst <= 4
    assert (np.diff(out) <= 0).all()


@pytest.mark.parametrize("x", [-701.0, -1e300, -math.inf])
def test_exponential_is_next_to_nothing_far_below(x: float) -> None:
    assert 0 <= compiled_exp(x) <= 1e-300


@seeded
@given(x=st.floats(1e-300, 1e300) | st.floats(0.5, 2) | st.floats(1e-16, 1e-3).map(lambda small: 1 + small))
@example(x=1.0)
@example(x=0.5)
@example(x=math.sqrt(0.5))
@example(x=math.nextafter(math.sqrt(0.5), 0))
@example(x=math.sqrt(2))
@example(x=math.nextafter(1, 0))
def test_logarithm_is_right_to_the_last_bits(x: float) -> None:
    assert ulps(compiled_log(x), math.log(x)) <= 4


@pytest.mark.parametrize("x", [0.0, 1e-310, 1e-300])
def test_logarithm_is_finite_at_zero(x: float) -> None:
    assert compiled_log(x) == pytest.approx(math.log(1e-300))


@pytest.mark.parametrize(("dtype", "form"), [("float16", "float32"), ("float32", "float32"), ("float64", "float64")])
def test_predictions_are_copied_only_where_they_must_be(dtype: str, form: str) -> None:
    values = np.ones((3, 2), dtype)
    taken = as_predictions(values)
    assert (taken.dtype, taken.flags.c_contiguous) == (form, True)
    assert np.shares_memory(taken, values) == (dtype == form)
    assert as_predictions(np.asfortranarray(values)).flags.c_contiguous


@pytest.mark.parametrize(("dtype", "form"), [("uint8", "uint8"), ("int64", "int64"), ("int8", "int64"), (">i8", "<i8")])
def test_labels_are_copied_only_where_they_must_be(dtype: str, form: str) -> None:
    values = np.ones((3, 2), dtype)
    taken = as_labels(values)
    assert (taken.dtype, taken.flags.c_contiguous) == (np.dtype(form), True)
    assert np.shares_memory(taken, values) == (dtype == form)
