"""The field at any place, from weighted points with a spread: the mean distance to the nearest that reach a weight."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from labelqa_dask.core.blocks import available_cpus
from labelqa_dask.core.kernels import inlined, kernel, summing_kernel
from labelqa_dask.regression.grid import Masses
from labelqa_dask.regression.rows import Floats

_QUERIES_PER_PIECE = 64
_CLOSE = 1e-9
"""Of distances: far less than what tells two places apart."""
_NONE = 1e-200
"""Beside a distance nothing, and no weight divided by it is infinite."""


@dataclass(frozen=True)
class Sources:
    """What the field is computed from: weighted points with a spread, and the weight that the nearest reach."""

    masses: Masses
    k: float

    def field(self, x: Floats, y: Floats, radius: Floats | None = None) -> Floats:
        """The field, its gradient, and the radius that holds the nearest, at m places: (m, 4) float64; on all cores.

        Where the radius is known about, it is found faster; else it is sought near that of the place before.
        """
        out = np.empty((len(x), 4))
        guess = np.full(len(x), -1.0) if radius is None else radius

        def work(first: int) -> None:
            piece = slice(first, first + _QUERIES_PER_PIECE)
            _field_at(x[piece], y[piece], guess[piece], self.masses.arrays, self.k, out[piece])

        if len(x) <= _QUERIES_PER_PIECE:
            work(0)
            return out
        with ThreadPoolExecutor(available_cpus()) as pool:
            list(pool.map(work, range(0, len(x), _QUERIES_PER_PIECE)))
        return out


# Floor of the field at one place: two square roots and two divisions for each cell, about 8 cycles in vectors of four;
# then two products and two comparisons for each radius tried: some four, and twenty where cells are single rows.


@summing_kernel
def _spread(px: float, py: float, x: Any, y: Any, xx: Any, xy: Any, yy: Any, near: Any, far: Any, inverse: Any) -> None:
    """Between which distances the rows of each cell are, taken to spread evenly, and the inverse of what is between."""
    for j in range(len(x)):
        dx, dy = x[j] - px, y[j] - py
        squared, trace = dx * dx + dy * dy, xx[j] + yy[j]
        along = (dx * dx * xx[j] + 2 * dx * dy * xy[j] + dy * dy * yy[j]) / (squared + trace + 1e-300)
        mean = np.sqrt(squared + max(trace - along, 0.0))
        half = np.sqrt(3 * max(along, 0.0))
        near[j], far[j], inverse[j] = mean - half, mean + half, 1 / (2 * half + 1e-300)


@inlined
def _share_within(radius: Any, near: Any, far: Any, inverse: Any) -> Any:
    return 1.0 if radius >= far else max((radius - near) * inverse, 0.0)


@summing_kernel
def _reached(radius: float, weight: Any, near: Any, far: Any, inverse: Any) -> tuple[float, float]:
    """Weight within a radius, and by how much it grows with it."""
    total, slope = 0.0, 0.0
    for j in range(len(weight)):
        total += weight[j] * _share_within(radius, near[j], far[j], inverse[j])
        slope += weight[j] * inverse[j] if near[j] < radius < far[j] else 0.0
    return total, slope


@summing_kernel
def _average(weight: Any, near: Any, far: Any) -> float:
    total, distance = 0.0, 0.0
    for j in range(len(weight)):
        total += weight[j]
        distance += weight[j] * (near[j] + far[j]) / 2
    return distance / total


@summing_kernel
def _distance(radius: float, k: float, weight: Any, near: Any, far: Any, inverse: Any) -> float:
    """Sum of the distances that are less than a radius, and of the radius for what is missing to the weight k."""
    within, total, beyond = 0.0, 0.0, 0.0
    for j in range(len(weight)):
        share = _share_within(radius, near[j], far[j], inverse[j])
        wholly = weight[j] if share == 1.0 else 0.0
        within += wholly
        total += wholly * (near[j] + far[j]) / 2
        beyond += (weight[j] - wholly) * share * (radius - near[j]) / 2
    return total + radius * (k - within) - beyond


@summing_kernel
def _slopes(
    px: float,
    py: float,
    low: float,
    high: float,
    part: float,
    weight: Any,
    x: Any,
    y: Any,
    near: Any,
    far: Any,
    inverse: Any,
) -> tuple[float, float]:
    """Sum of the unit vectors from what is within one radius, and from a part of what is within a second only."""
    along_x, along_y = 0.0, 0.0
    for j in range(len(weight)):
        nearer = _share_within(low, near[j], far[j], inverse[j])
        farther = _share_within(high, near[j], far[j], inverse[j])
        pull = weight[j] * (nearer + part * (farther - nearer)) / ((near[j] + far[j]) / 2 + _NONE)
        along_x += pull * (px - x[j])
        along_y += pull * (py - y[j])
    return along_x, along_y


@kernel
def _field_at(px: Any, py: Any, guess: Any, masses: Any, k: float, out: Any) -> None:
    weight, x, y, xx, xy, yy = masses
    near, far, inverse = np.empty(len(x)), np.empty(len(x)), np.empty(len(x))
    everything, radius = weight.sum(), 0.0
    for i in range(len(px)):
        _spread(px[i], py[i], x, y, xx, xy, yy, near, far, inverse)
        radius = guess[i] if guess[i] >= 0 else radius
        if radius == 0.0:
            radius = _average(weight, near, far)
        low, high, at_low, at_high = 0.0, np.inf, 0.0, everything
        # Three of Newton's steps to one halving: a place of many rows is a step that Newton's alone would creep up to.
        for trial in range(4096):  # which leads from any radius to any other
            reached, slope = _reached(radius, weight, near, far, inverse)
            if abs(reached - k) <= 1e-12 * k:
                low, high = radius, radius
                break
            if reached < k:
                low, at_low = radius, reached
            else:
                high, at_high = radius, reached
            # The distance is off by no more than these two together, since at the radius sought it changes with none.
            if (high - low) * (at_high - at_low) <= 1e-14 * k * (low + _CLOSE):
                break
            step = radius + (k - reached) / slope if trial % 4 < 3 else high
            radius = step if low < step < high else min((low + high) / 2, 2 * radius)
            if not low < radius < high:  # these are neighbours
                radius = high
                break
        # Of a place at that very distance only so much belongs to the nearest that the weight is k.
        part = (k - at_low) / (at_high - at_low) if at_high > at_low and high > low else 1.0
        out[i, 0] = max(_distance(radius, k, weight, near, far, inverse), 0.0) / k
        along_x, along_y = _slopes(px[i], py[i], low, high, part, weight, x, y, near, far, inverse)
        out[i, 1], out[i, 2], out[i, 3] = along_x / k, along_y / k, radius
