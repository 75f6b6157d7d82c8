"""The field at any place, from weighted points with a spread: the mean distance to the nearest that reach a weight."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from labelqa_dask.core.blocks import available_cpus
from labelqa_dask.core.kernels import kernel, summing_kernel
from labelqa_dask.regression.grid import Masses
from labelqa_dask.regression.rows import Floats

_QUERIES_PER_PIECE = 64


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


# Floor of the field at one place: two square roots and a division for each cell, about 6 cycles in vectors of four.


@summing_kernel
def _spread(px: float, py: float, x: Any, y: Any, xx: Any, xy: Any, yy: Any, mean: Any, half: Any) -> None:
    """Mean distance to each cell, and half the width over which its distances spread evenly."""
    for j in range(len(x)):
        dx, dy = x[j] - px, y[j] - py
        squared, trace = dx * dx + dy * dy, xx[j] + yy[j]
        along = (dx * dx * xx[j] + 2 * dx * dy * xy[j] + dy * dy * yy[j]) / (squared + trace + 1e-300)
        mean[j] = np.sqrt(squared + max(trace - along, 0.0))
        half[j] = np.sqrt(3 * max(along, 0.0))


@summing_kernel
def _sum_within(
    px: float, py: float, radius: float, weight: Any, x: Any, y: Any, mean: Any, half: Any
) -> tuple[float, float, float, float]:
    """Weight, sum of distances and sum of unit vectors of the cells that lie wholly within a radius."""
    total, distance, gx, gy = 0.0, 0.0, 0.0, 0.0
    for j in range(len(x)):
        w = weight[j] if mean[j] + half[j] <= radius else 0.0
        total += w
        distance += w * mean[j]
        w /= mean[j] + 1e-300
        gx += w * (px - x[j])
        gy += w * (py - y[j])
    return total, distance, gx, gy


@kernel
def _share_within(radius: float, mean: float, half: float) -> float:
    if radius >= mean + half:
        return 1.0
    if radius <= mean - half:
        return 0.0
    return (radius - mean + half) / (2 * half)


@kernel
def _field_at(px: Any, py: Any, guess: Any, masses: Any, k: float, out: Any) -> None:
    weight, x, y, xx, xy, yy = masses
    m = len(x)
    mean, half = np.empty(m), np.empty(m)
    edge = np.empty(m, np.int64)
    last_x, last_y, last_radius = 0.0, 0.0, -1.0
    for i in range(len(px)):
        _spread(px[i], py[i], x, y, xx, xy, yy, mean, half)
        if guess[i] >= 0:
            low, high = max(0.0, 0.98 * guess[i] - 1e-9), 1.02 * guess[i] + 1e-9
        elif last_radius < 0:
            low, high = 0.0, 0.0
            for j in range(m):
                high = max(high, mean[j] + half[j])
        else:
            way = np.hypot(px[i] - last_x, py[i] - last_y)
            margin = 1e-9 + 0.02 * last_radius
            low, high = max(0.0, last_radius - way - margin), last_radius + way + margin
        # Bracket the radius that holds the weight k.
        while True:
            within, distance, gx, gy = _sum_within(px[i], py[i], low, weight, x, y, mean, half)
            count, at_low, at_high = 0, within, within
            for j in range(m):
                if mean[j] + half[j] > low and mean[j] - half[j] <= high:
                    edge[count] = j
                    count += 1
                    at_low += weight[j] * _share_within(low, mean[j], half[j])
                    at_high += weight[j] * _share_within(high, mean[j], half[j])
            slack = 1e-12 * k
            if at_low > k and low > 0:
                low, high = max(0.0, low - 2 * (high - low)), low
            elif at_high < k - slack:
                low, high = high, high + 2 * (high - low) + 1e-300
            else:
                break
        # Within the bracket only cells at the edge matter: Newton's steps and halving in turn, as a place that many
        # rows share is a step that Newton's would creep up to.
        radius = (low + high) / 2
        for trial in range(120):
            reached, slope = within, 0.0
            for e in range(count):
                j = edge[e]
                share = _share_within(radius, mean[j], half[j])
                reached += weight[j] * share
                if 0.0 < share < 1.0:
                    slope += weight[j] / (2 * half[j])
            if abs(reached - k) <= slack:
                low, high = radius, radius
                break
            if reached < k:
                low, at_low = radius, reached
            else:
                high, at_high = radius, reached
            if high - low <= 1e-14 * high:
                break
            step = radius + (k - reached) / slope if slope > 0 and trial % 2 == 0 else high
            radius = step if low < step < high else (low + high) / 2
        # Of a place at that very distance only so much belongs to the nearest that the weight is k.
        part = (k - at_low) / (at_high - at_low) if at_high > at_low and high > low else 1.0
        total = distance + radius * (k - within)
        for e in range(count):
            j = edge[e]
            share = _share_within(radius, mean[j], half[j])
            if share == 1.0:
                total -= weight[j] * (radius - mean[j])
            elif share > 0.0:
                total -= weight[j] * share * (radius - mean[j] + half[j]) / 2
            nearer, farther = _share_within(low, mean[j], half[j]), _share_within(high, mean[j], half[j])
            pull = weight[j] * (nearer + part * (farther - nearer)) / (mean[j] + 1e-300)
            gx += pull * (px[i] - x[j])
            gy += pull * (py[i] - y[j])
        out[i, 0], out[i, 1], out[i, 2] = max(total, 0.0) / k, gx / k, gy / k
        out[i, 3] = radius
        last_x, last_y, last_radius = px[i], py[i], radius
