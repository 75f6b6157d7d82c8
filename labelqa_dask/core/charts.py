"""What a method shows of the whole data: the data of charts, drawn by whoever makes a report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from labelqa_dask.core.kernels import Array

CELLS = 96
BINS = 80


@dataclass(frozen=True)
class Density:
    """How many examples lie where on a plane, and their mean score.

    Attributes
    ----------
    title, x, y : str
        What is shown, and what the axes are.
    x_range, y_range : (2,) float64
        What lies outside is counted at the border.
    counts : (ny, nx) float64
    mean_scores : (ny, nx) float64
        NaN where there is no example.
    """

    title: str
    x: str
    y: str
    x_range: NDArray[np.float64]
    y_range: NDArray[np.float64]
    counts: NDArray[np.float64]
    mean_scores: NDArray[np.float64]

    @classmethod
    def of(cls, title: str, axes: tuple[str, str], x: Array, y: Array, weight: Array, scores: Array) -> Self:
        """Density of weighted examples over the middle 99.8 % of them along each axis."""
        x_range, y_range = _middle(x, weight), _middle(y, weight)
        cell = _bin(y, y_range, CELLS) * CELLS + _bin(x, x_range, CELLS)
        counts = np.bincount(cell, weight, CELLS**2).astype(np.float64)
        total = np.bincount(cell, weight * scores, CELLS**2)
        mean = np.divide(total, counts, out=np.full(CELLS**2, np.nan), where=counts > 0)
        return cls(title, *axes, x_range, y_range, counts.reshape(CELLS, CELLS), mean.reshape(CELLS, CELLS))


@dataclass(frozen=True)
class Distribution:
    """How many examples have which value.

    Attributes
    ----------
    title, x : str
        What is shown, and what the axis is.
    x_range : (2,) float64
        What lies outside is counted at the border.
    counts : (bins,) float64
    """

    title: str
    x: str
    x_range: NDArray[np.float64]
    counts: NDArray[np.float64]

    @classmethod
    def of(cls, title: str, axis: str, x: Array, weight: Array) -> Self:
        """Distribution of weighted examples over the middle 99.8 % of them."""
        x_range = _middle(x, weight)
        return cls(title, axis, x_range, np.bincount(_bin(x, x_range, BINS), weight, BINS).astype(np.float64))


Chart = Density | Distribution


def _middle(values: Array, weight: Array) -> NDArray[np.float64]:
    """From the 0.1th to the 99.9th percentile, with some room; never empty."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weight[order])
    low, high = values[order][np.searchsorted(reached, reached[-1] * np.array([0.001, 0.999]))]
    room = 0.05 * (high - low) or 0.05 * abs(low) or 1.0
    return np.array([low - room, high + room], np.float64)


def _bin(values: Array, limits: NDArray[np.float64], bins: int) -> NDArray[Any]:
    share = (values - limits[0]) / (limits[1] - limits[0])
    return np.clip((share * bins).astype(np.int64), 0, bins - 1)
