"""All rows in weighted cells: a grid whose lines follow the rows, and the moments of what lies in each cell.

Lines are laid from a sample, half of them so that each interval holds equally many rows, half evenly on arcsinh of the
value around its median, so that far values keep a relative resolution. A value that many rows share has an interval of
its own. Lines stand in the units of the data, and places in a cell are counted in whole steps, so the sums are exact:
they do not depend on how the rows are cut into chunks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from labelqa_dask.core.kernels import inlined, kernel
from labelqa_dask.regression.rows import PIECE_ROWS, Floats, Rows

_INTERVALS = 192
_MOST_INTERVALS = 2048

# A place in a cell in steps of 2^-30 of its width, and of 2^-15 where it is squared: sums of 2^33 rows fit int64.
_STEP_BITS = 30
_COARSE_BITS = 15
_STEPS = 1 << _STEP_BITS
_COARSE_STEPS = 1 << _COARSE_BITS

# Values closer together than this are in one place: features are differences divided by 1e-100 at the least. Smaller
# ones have no inverse.
_CLOSEST = 1e-150

_OCTAVES = 60
_BUCKETS_PER_OCTAVE = 256
_BUCKETS = _OCTAVES * _BUCKETS_PER_OCTAVE


@dataclass(frozen=True)
class Axis:
    """Lines that cut one axis into half-open intervals, and how to find the one that holds a value.

    Attributes
    ----------
    lines : (intervals + 1,) float64, increasing
    centre, width : float
        Median of the values, and median of their distances from it.
    """

    lines: Floats
    centre: float
    width: float

    @classmethod
    def of(cls, values: Floats, lowest: float, highest: float, intervals: int) -> Self:
        """About so many intervals for values from `lowest` to `highest` of which a sample is known."""
        values = np.sort(values)
        centre = float(np.median(values))
        away = np.abs(values - centre)
        width = float(np.median(away[away > 0])) if away.any() else max(highest - centre, centre - lowest) or 1.0
        width = max(width, _CLOSEST)
        known = np.concatenate([[lowest], values, [highest]])
        warped = np.arcsinh((known - centre) / width)
        share = np.arange(len(known)) / (len(known) - 1)
        along = (share + (warped - warped[0]) / ((warped[-1] - warped[0]) or 1.0)) / 2
        lines = np.interp(np.linspace(0, along[-1], intervals + 1), along, known)
        shared = np.unique(values[1:][values[1:] == values[:-1]])
        atoms = lines[np.isin(lines, shared)]
        lines = np.concatenate([lines[:-1], np.nextafter(atoms, np.inf), [np.nextafter(highest, np.inf)]])
        return cls(np.unique(lines), centre, width)

    def __len__(self) -> int:
        return len(self.lines) - 1

    @cached_property
    def buckets(self) -> NDArray[np.int32]:
        """Number of lines below each bucket of values, and of those below its end: (2 * buckets + 1,)."""
        bucket = np.empty(len(self.lines), np.int64)
        _find_buckets(self.lines, self.centre, 1 / self.width, bucket)
        return np.searchsorted(bucket, np.arange(2 * _BUCKETS + 1)).astype(np.int32)

    @property
    def widths(self) -> Floats:
        """Widths of the intervals; one that holds a single value has none."""
        widths = np.diff(self.lines)
        widths[(np.nextafter(self.lines[:-1], np.inf) == self.lines[1:]) | (widths < _CLOSEST)] = 0.0
        return widths

    def coarser(self, factor: int) -> NDArray[np.intp]:
        """The coarser interval that each belongs to; one that holds a single value stays by itself."""
        index = np.arange(len(self))
        return np.where(self.widths == 0, -1 - index, index // factor)

    @cached_property
    def finder(self) -> tuple[Any, ...]:
        """What the kernels need; the last tells that no bucket has several lines in it."""
        widths = self.widths
        steps = np.divide(_STEPS, widths, out=np.zeros_like(widths), where=widths > 0)
        apart = bool(np.diff(self.buckets).max() <= 1)
        return self.lines, self.buckets, self.centre, 1 / self.width, steps, apart

    def find(self, values: Floats) -> NDArray[np.intp]:
        """Index of the interval that holds each value between the first and the last line."""
        index = np.empty(len(values), np.uint64)
        find_intervals(values, self.finder, index)
        return index.astype(np.intp)


@dataclass(frozen=True)
class Grid:
    """Cells as the product of two axes."""

    label: Axis
    residual: Axis

    @classmethod
    def of(cls, rows: Rows) -> Self:
        """A grid that suits some rows; where one axis needs few intervals, the other gets more."""
        columns = (rows.labels, rows.residuals)

        def axis(i: int, intervals: int) -> Axis:
            return Axis.of(columns[i], float(rows.lowest[i]), float(rows.highest[i]), intervals)

        label, residual = axis(0, _INTERVALS), axis(1, _INTERVALS)
        if len(label) < len(residual):
            return cls(label, axis(1, min(_INTERVALS**2 // len(label), _MOST_INTERVALS)))
        return cls(axis(0, min(_INTERVALS**2 // len(residual), _MOST_INTERVALS)), residual)


def cells_of(labels: Floats, residuals: Floats, grid: Grid) -> NDArray[np.intp]:
    """The cell that holds each of (n,) rows."""
    return grid.label.find(labels) * len(grid.residual) + grid.residual.find(residuals)


def count_cells(labels: Floats, residuals: Floats, grid: Grid) -> NDArray[np.int64]:
    """What (n,) rows add to each cell of a grid, (u * v, 8).

    Number of rows; places along label and residual; then, in coarse steps, the places again, their squares and product.
    """
    sums = np.zeros((len(grid.label) * len(grid.residual), 8), np.int64)
    _add_to_cells(labels, residuals, grid.label.finder, grid.residual.finder, sums)
    return sums


@dataclass(frozen=True)
class Masses:
    """Weighted points with a spread: what is known of the rows in some cells.

    Attributes
    ----------
    weight, x, y : (m,) float64
        Number of rows, and their mean place in the plane of features.
    xx, xy, yy : (m,) float64
        Covariance of the places.
    """

    weight: Floats
    x: Floats
    y: Floats
    xx: Floats
    xy: Floats
    yy: Floats

    @classmethod
    def of(cls, sums: NDArray[np.int64], grid: Grid, per_unit: Floats) -> tuple[Self, NDArray[np.intp]]:
        """The masses of the cells that are not empty, and the indices of these cells."""
        index = np.flatnonzero(sums[:, 0])
        n, sum_x, sum_y, sum_a, sum_b, sum_aa, sum_ab, sum_bb = sums[index].T.astype(np.float64, "C")
        u, v = np.divmod(index, len(grid.residual))
        step_x, step_y = (
            axis.widths[i] * unit for axis, i, unit in zip((grid.label, grid.residual), (u, v), per_unit, strict=True)
        )
        x = (grid.label.lines[u] - grid.label.centre) * per_unit[0] + sum_x / n * (step_x / _STEPS)
        y = (grid.residual.lines[v] - grid.residual.centre) * per_unit[1] + sum_y / n * (step_y / _STEPS)
        step_x, step_y = step_x / _COARSE_STEPS, step_y / _COARSE_STEPS
        a, b = sum_a / n, sum_b / n
        xx = np.maximum(sum_aa / n - a * a, 0) * step_x**2
        xy = (sum_ab / n - a * b) * step_x * step_y
        yy = np.maximum(sum_bb / n - b * b, 0) * step_y**2
        return cls(n, x, y, xx, xy, yy), index

    def grouped(self, group: NDArray[Any]) -> Self:
        """The masses of groups of cells; `group` numbers them from 0."""

        def total(values: Floats) -> Floats:
            return np.bincount(group, self.weight * values).astype(np.float64)

        weight = total(np.ones_like(self.weight))
        x, y = total(self.x) / weight, total(self.y) / weight
        dx, dy = self.x - x[group], self.y - y[group]
        xx, xy, yy = total(self.xx + dx * dx), total(self.xy + dx * dy), total(self.yy + dy * dy)
        return type(self)(weight, x, y, xx / weight, xy / weight, yy / weight)

    @property
    def arrays(self) -> tuple[Floats, ...]:
        """What the kernels need."""
        return self.weight, self.x, self.y, self.xx, self.xy, self.yy


@inlined
def _bucket(value: Any, centre: Any, inverse_width: Any) -> Any:
    """Number of the bucket that holds a value, from its bits: even on a scale near arcsinh."""
    away = (value - centre) * inverse_width
    bits = np.float64(1.0 + abs(away)).view(np.int64) - np.int64(0x3FF0000000000000)
    # The exponent, and the upper 8 bits of the mantissa.
    bucket: Any = min(bits >> np.int64(44), _BUCKETS - 1)
    return _BUCKETS + bucket if away >= 0 else _BUCKETS - 1 - bucket


@kernel
def _find_buckets(values: Any, centre: float, inverse_width: float, out: Any) -> None:
    for i in range(len(values)):
        out[i] = _bucket(values[i], centre, inverse_width)


@kernel
def find_intervals(values: Any, axis: Any, out: Any) -> None:
    """Index of the interval that holds each value between the first and the last line, uint64.

    Indices are unsigned, since for signed ones each access asks whether it counts from the end. Floor: values read
    once, and for each a bucket, two entries of tables that the caches hold, and a comparison, in vectors; where some
    lines share a bucket, a search among them instead.
    """
    lines, buckets, centre, inverse_width, _, apart = axis
    one = np.uint64(1)
    if apart:
        for i in range(len(values)):
            low = np.uint64(buckets[np.uint64(_bucket(values[i], centre, inverse_width))])
            out[i] = low - one + np.uint64(lines[low] <= values[i])
        return
    for i in range(len(values)):
        bucket = np.uint64(_bucket(values[i], centre, inverse_width))
        low, high = np.uint64(buckets[bucket]), np.uint64(buckets[bucket + one])
        while low < high:
            middle = (low + high) >> one
            if lines[middle] <= values[i]:
                low = middle + one
            else:
                high = middle
        out[i] = low - one


@kernel
def find_piece(labels: Any, residuals: Any, start: int, label_axis: Any, residual_axis: Any, u: Any, v: Any) -> Any:
    """The labels and residuals of the piece of the rows that starts there, and in u and v their intervals."""
    y, r = labels[start : start + PIECE_ROWS], residuals[start : start + PIECE_ROWS]
    find_intervals(y, label_axis, u)
    find_intervals(r, residual_axis, v)
    return y, r


@kernel
def _add_to_cells(labels: Any, residuals: Any, label_axis: Any, residual_axis: Any, sums: Any) -> None:
    """Floor: rows read once, their intervals, and for each one cache line of sums changed."""
    lines, _, _, _, steps, _ = label_axis
    r_lines, _, _, _, r_steps, _ = residual_axis
    columns = np.uint64(len(r_steps))
    last = np.int64(_STEPS - 1)
    coarse = np.int64(_STEP_BITS - _COARSE_BITS)
    u, v = np.empty(PIECE_ROWS, np.uint64), np.empty(PIECE_ROWS, np.uint64)
    for start in range(0, len(labels), PIECE_ROWS):
        y, r = find_piece(labels, residuals, start, label_axis, residual_axis, u, v)
        for i in range(len(y)):
            a = min(np.int64((y[i] - lines[u[i]]) * steps[u[i]]), last)
            b = min(np.int64((r[i] - r_lines[v[i]]) * r_steps[v[i]]), last)
            cell = sums[u[i] * columns + v[i]]
            cell[0] += 1
            cell[1] += a
            cell[2] += b
            a, b = a >> coarse, b >> coarse
            cell[3] += a
            cell[4] += b
            cell[5] += a * a
            cell[6] += a * b
            cell[7] += b * b
