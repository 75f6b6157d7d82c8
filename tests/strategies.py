"""Data that several tests share: seeded labels and probabilities, and hypothesis strategies for cutting them up."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from labelqa_dask.core.ragged import Annotations

Chunks = tuple[tuple[int, ...], ...]

seeded = settings(
    derandomize=True, database=None, deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)


def probabilities(rng: np.random.Generator, shape: tuple[int, ...], axis: int = 1) -> NDArray[np.float64]:
    """Positive values that sum to 1 along an axis, some of them close to 0 and some to 1."""
    values = rng.exponential(size=shape) ** 3 + 1e-12
    return values / values.sum(axis=axis, keepdims=True)


def multiclass_data(n: int, k: int, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Labels (n,) that mostly agree with pred_probs (n, k)."""
    rng = np.random.default_rng(seed)
    pred_probs = probabilities(rng, (n, k))
    labels = np.where(rng.random(n) < 0.7, pred_probs.argmax(axis=1), rng.integers(0, k, n))
    return labels, pred_probs


def multilabel_data(n: int, k: int, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Labels (n, k) of 0 and 1 that mostly agree with pred_probs (n, k), some of which are close to 0 and some to 1."""
    rng = np.random.default_rng(seed)
    pred_probs = rng.beta(0.4, 0.8, (n, k))
    labels = np.where(rng.random((n, k)) < 0.8, pred_probs > 0.5, rng.random((n, k)) < 0.3)
    return labels.astype(np.int64), pred_probs


def segmentation_data(n: int, k: int, h: int, w: int, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Labels (n, h, w) that mostly agree with pred_probs (n, k, h, w)."""
    rng = np.random.default_rng(seed)
    pred_probs = probabilities(rng, (n, k, h, w))
    given = rng.random((n, h, w)) < 0.7
    return np.where(given, pred_probs.argmax(axis=1), rng.integers(0, k, (n, h, w))), pred_probs


def annotations(rng: np.random.Generator, n: int, m: int = 5, k: int = 3) -> Annotations:
    """Labels 0..k-1 of n examples by one to m annotators each."""
    given = rng.random((n, m)) < 0.5
    given[np.arange(n), rng.integers(0, m, n)] = True
    example, annotator = np.nonzero(given)
    return Annotations.group(example, annotator, rng.integers(0, k, len(example)), n, np.arange(m))[0]


def crowd_data(
    n: int, m: int, k: int, density: float = 0.4, skill: float = 0.7, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Wide labels (n, m), NaN where there are none, that mostly agree with pred_probs (n, k).

    Every example has a label, and every annotator has labelled one.
    """
    rng = np.random.default_rng(seed)
    pred_probs = probabilities(rng, (n, k))
    truth = np.where(rng.random(n) < 0.8, pred_probs.argmax(axis=1), rng.integers(0, k, n))
    labels = np.where(rng.random((n, m)) < skill, truth[:, None], rng.integers(0, k, (n, m))).astype(float)
    given = rng.random((n, m)) < density
    given[np.arange(n), rng.integers(0, m, n)] = True
    given[rng.integers(0, n, m), np.arange(m)] = True
    return np.where(given, labels, np.nan), pred_probs


def long_form(labels: NDArray[np.float64], seed: int = 0) -> pd.DataFrame:
    """Rows (task, annotator, label) of wide labels, in any order; annotators are named a00, a01, ..."""
    task, annotator = np.nonzero(~np.isnan(labels))
    names = np.array([f"a{j:02d}" for j in range(labels.shape[1])])
    rows = pd.DataFrame(
        {"task": task, "annotator": names[annotator], "label": labels[task, annotator].astype(np.int64)}
    )
    return rows.sample(frac=1, random_state=seed)


def regression_data(n: int, kind: str = "normal", seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Labels (n,) and predictions (n,) of a distribution: normal, or one that makes the nearest hard to tell."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=n)
    if kind == "heavy-tailed":
        labels = rng.standard_t(3, size=n)
        return labels, labels + rng.standard_t(3, size=n)
    if kind == "log-normal":  # with gross errors
        true = rng.lognormal(size=n)
        gross = np.where(rng.random(n) < 0.01, rng.lognormal(3, 2, n), 1.0)
        return true * gross, true * np.exp(0.2 * noise)
    if kind == "clustered":
        labels, residuals = 5 * rng.normal(size=(2, 8))[:, rng.integers(0, 8, n)] + 0.1 * rng.normal(size=(2, n))
        return labels, labels + residuals
    if kind == "ratings":
        labels = rng.integers(1, 6, n).astype(np.float64)
        return labels, labels + 0.7 * noise
    if kind == "clipped ratings":
        labels = rng.integers(1, 6, n).astype(np.float64)
        return labels, (labels + noise).clip(1, 5)
    if kind == "zeros in excess":
        labels = rng.lognormal(size=n) * (rng.random(n) < 0.6)
        return labels, np.maximum(labels + 0.3 * noise, 0)
    if kind == "constant":
        return np.full(n, 3.3), 3.3 + noise
    labels = rng.normal(size=n)
    return labels, labels + 0.5 * noise


@st.composite
def cuts(draw: st.DrawFn, size: int) -> tuple[int, ...]:
    """Sizes of the pieces that an axis is cut into; they add up to its size."""
    inside = draw(st.sets(st.integers(1, size - 1))) if size > 1 else set()
    return tuple(b - a for a, b in pairwise([0, *sorted(inside), size]))


def chunkings(shape: tuple[int, ...]) -> st.SearchStrategy[Chunks]:
    """Every way to cut an array of a shape into chunks."""
    return st.tuples(*(cuts(size) for size in shape))


def scores(max_size: int = 40, nan: bool = True) -> st.SearchStrategy[NDArray[np.float64]]:
    """Arrays of scores in [0, 1], rich in equal ones, some NaN."""
    few: list[Any] = [0.0, 0.25, 0.29, 0.5, 1.0] + [float("nan")] * nan
    return st.lists(st.sampled_from(few) | st.floats(0, 1), max_size=max_size).map(
        lambda values: np.array(values, float)
    )
