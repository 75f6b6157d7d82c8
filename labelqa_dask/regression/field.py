"""OUTRE for any number of rows: the mean distance as a field on the plane of features.

The mean distance of a place to the k nearest rows,

    d(p) = (1/k) sum of |p - q| over the k nearest q = max over t of  t - (1/k) sum over all q of (t - |p - q|)+ ,

asks of the rows nothing but where their mass is. It is continuous and changes by no more than the way between two
places; its gradient is the mean unit vector from the k nearest: at the maximum a change of t, that is of who
belongs to the k, contributes nothing.

Rows are counted into cells, each kept as its weight, mean place and covariance (`grid`). For a place p and a cell with
mean place c and covariance S, with u the direction from p to c, the mean distance to the cell's rows is
sqrt(|p - c|² + tr S - u'Su) to third order in the size of the cell, and the distances are spread with variance u'Su,
which decides how much of the cell belongs to the nearest k.

The field is computed with its gradient at the corners of patches, each a rectangle of cells, and interpolated by the
cubic polynomial that agrees with both at all four corners; its error falls with the fourth power of the patch. A patch
whose error, seen at places inside it, exceeds the tolerance is cut in two. The scale is the weighted median of the
field over the cells. A row then costs the same whatever n is: finding its cell, one polynomial, one exponential.

See docs/outre.md for the derivation, and for the error as a function of the number of patches.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from labelqa_dask.core.blocks import available_cpus
from labelqa_dask.core.kernels import kernel, summing_kernel
from labelqa_dask.regression.grid import Grid, Masses, interval
from labelqa_dask.regression.rows import Floats, Rows, features_per_unit, scale_of

_QUERIES_PER_PIECE = 64
_ROOT_CELLS = 16
_MOST_PATCHES = 20_000
_CHECKS = 256
_FEW_CELLS = 2048

# Of the tolerance; checks see much of the error, not all.
_SHARE_OF_SOURCES = 0.1
_SHARE_OF_PATCHES = 0.1

Ints = NDArray[np.intp]


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

        with ThreadPoolExecutor(available_cpus()) as pool:
            list(pool.map(work, range(0, len(x), _QUERIES_PER_PIECE)))
        return out


@dataclass(frozen=True)
class Field:
    """Scores of any row of the data, from polynomials on patches.

    Attributes
    ----------
    grid : Grid
    patch_of : (u * v,) int32
        The patch that each cell belongs to.
    patches : (patches, 16) float64
        Where a patch starts along label and residual, the inverse of its extent, and 12 coefficients.
    scale : float
        What distances are divided by.
    error : float
        Estimate of the largest error of a score.
    cells : int
        Weighted points that the field was computed from.
    places : int
        At how many places.
    means : (occupied, 4) float64
        Mean label, mean residual, distance there, and number of rows of each cell that is not empty.
    """

    grid: Grid
    patch_of: NDArray[np.int32]
    patches: Floats
    scale: float
    error: float
    cells: int
    places: int
    means: Floats

    @classmethod
    def of(cls, rows: Rows, sums: NDArray[np.int64], grid: Grid, settings: FieldSettings) -> Self:
        """Compute the field of rows counted into the cells of a grid."""
        per_unit = features_per_unit(rows.deviation, settings.residual_scale)
        masses, index = Masses.of(sums, grid, per_unit)
        k = float(np.ceil(settings.frac_neighbors * rows.count))
        plane = _Plane.of(grid, per_unit)
        checks = plane.sample(rows, _CHECKS)
        sources, finest, error_of_sources, scale = _choose_sources(masses, index, k, checks, plane, settings)
        patching = _Patching(plane, sources, index, masses, scale, settings.tolerance * _SHARE_OF_PATCHES)
        patches, patch_of, error_of_patches = patching.run()
        distances, gradients = _values(patches[patch_of[index], :], *plane.raw(masses.x, masses.y))
        gradients = gradients / per_unit
        spread = (
            gradients[:, 0] ** 2 * masses.xx
            + 2 * gradients[:, 0] * gradients[:, 1] * masses.xy
            + gradients[:, 1] ** 2 * masses.yy
        )
        error_of_scale = 0.0
        if settings.scaled:
            half_widths = np.sqrt(np.maximum(3 * spread, 0))
            scale, plain = (
                scale_of(_smeared_median(distances, widths, masses.weight), True)
                for widths in (half_widths, np.zeros_like(half_widths))
            )
            # A score exp(-d / scale) changes by no more than 1 / e of a change of the scale, and what spreading the
            # cells has changed is taken to be right to two thirds.
            error_of_scale = abs(scale - plain) / scale / math.e / 3
        seen = _values(patches[patch_of[checks.cell], :], *plane.raw(checks.x, checks.y))[0]
        measured = np.abs(np.exp(-seen / scale) - np.exp(-finest / scale)).max()
        error = max(float(measured), error_of_patches) + error_of_sources + error_of_scale
        means = np.stack([*plane.raw(masses.x, masses.y), distances, masses.weight], axis=1)
        return cls(grid, patch_of, patches, scale, error, len(sources.masses.x), patching.places, means)

    def summary(self, tolerance: float) -> dict[str, float | int | str | bool]:
        """What a reader should know of how distances were computed."""
        return {
            "neighbors": "field",
            "distance_scale": self.scale,
            "estimated_error": self.error,
            "tolerance_met": self.error <= tolerance,
            "cells": self.cells,
            "patches": len(self.patches),
            "places": self.places,
        }

    def remarks(self, tolerance: float) -> tuple[str, ...]:
        """That the tolerance was missed, where it was."""
        if self.error <= tolerance:
            return ()
        return (
            f"Scores may be off by {self.error:.1g}, more than the tolerance of {tolerance:g}: "
            "the data vary on a scale that the field does not resolve.",
        )

    def groups(self) -> tuple[Floats, Floats, Floats, Floats]:
        """Labels, residuals, distances and numbers of rows of groups that make up all rows."""
        labels, residuals, distances, weight = self.means.T.copy()
        return labels, residuals, distances, weight

    def distances_of(self, labels: Floats, residuals: Floats) -> Floats:
        """Mean distances of (n,) rows."""
        out = np.empty(len(labels))
        _distances_of_rows(
            labels, residuals, self.grid.label.finder, self.grid.residual.finder, self.patch_of, self.patches, out
        )
        return out


@dataclass(frozen=True)
class FieldSettings:
    """What the field depends on besides the rows."""

    residual_scale: float
    frac_neighbors: float
    scaled: bool
    tolerance: float


@dataclass(frozen=True)
class _Checks:
    """Rows at which the field is computed without interpolation: their places, and the cells that they lie in."""

    x: Floats
    y: Floats
    cell: Ints


@dataclass(frozen=True)
class _Plane:
    """The grid in the plane of features."""

    grid: Grid
    per_unit: Floats
    x: Floats
    y: Floats

    @classmethod
    def of(cls, grid: Grid, per_unit: Floats) -> Self:
        x, y = (
            (axis.lines - axis.centre) * unit for axis, unit in zip((grid.label, grid.residual), per_unit, strict=True)
        )
        return cls(grid, per_unit, x, y)

    def raw(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        """Labels and residuals of places."""
        return x / self.per_unit[0] + self.grid.label.centre, y / self.per_unit[1] + self.grid.residual.centre

    def sample(self, rows: Rows, most: int) -> _Checks:
        """Some of the rows, always the same ones."""
        chosen = np.argsort(rows.hashes)[:most]
        chosen = chosen[np.argsort(rows.labels[chosen], kind="stable")]
        labels, residuals = rows.labels[chosen], rows.residuals[chosen]
        cell = np.empty(len(chosen), np.intp)
        _find_cells(labels, residuals, self.grid.label.finder, self.grid.residual.finder, cell)
        x = (labels - self.grid.label.centre) * self.per_unit[0]
        y = (residuals - self.grid.residual.centre) * self.per_unit[1]
        return _Checks(x, y, cell)


def _choose_sources(
    masses: Masses, index: Ints, k: float, checks: _Checks, plane: _Plane, settings: FieldSettings
) -> tuple[Sources, Floats, float, float]:
    """The fewest cells that change no score by more than a share of the tolerance.

    Returns the sources, the field of the finest cells at the checks, an estimate of the error in score that remains,
    and an estimate of the scale.
    """
    u, v = np.divmod(index, len(plane.grid.residual))
    candidates = [Sources(masses, k)]
    for factor in (2, 4):
        u_of, v_of = (axis.coarser(factor) for axis in (plane.grid.label, plane.grid.residual))
        _, group = np.unique(np.stack([u_of[u], v_of[v]]), axis=1, return_inverse=True)
        candidates.insert(0, Sources(masses.grouped(group.ravel()), k))
    fields, radius = [], None
    for sources in candidates:
        found = sources.field(checks.x, checks.y, radius)
        radius = found[:, 3]
        fields.append(found[:, 0])
    coarse, finer, finest = fields
    scale = scale_of(float(np.median(finest)), settings.scaled)

    def change(fewer: Floats, more: Floats) -> float:
        return float(np.abs(np.exp(-fewer / scale) - np.exp(-more / scale)).max())

    # What halving the cells changed bounds, with room for rows that were not looked at, what halving them again would.
    remains = change(finer, finest)
    for sources, values in zip(candidates, (coarse, finer), strict=False):
        if len(index) > _FEW_CELLS and change(values, finest) <= settings.tolerance * _SHARE_OF_SOURCES:
            return sources, finest, change(values, finest) + remains, scale
    return candidates[2], finest, remains, scale


class _Patching:
    """Cuts the grid into patches until the field is interpolated well enough."""

    def __init__(
        self, plane: _Plane, sources: Sources, index: Ints, masses: Masses, scale: float, tolerance: float
    ) -> None:
        self._plane, self._sources, self._masses = plane, sources, masses
        self._scale, self._tolerance = scale, tolerance
        self._shape = (len(plane.grid.label), len(plane.grid.residual))
        self._mass_of = np.full(self._shape, -1, np.int64)
        self._mass_of.ravel()[index] = np.arange(len(index))
        self._nodes = np.full((self._shape[0] + 1, self._shape[1] + 1, 3), np.nan)
        # Both lines of an interval without width are the same place.
        self._same_u, self._same_v = (
            np.arange(len(axis.lines)) - np.concatenate([[False], axis.widths == 0])
            for axis in (plane.grid.label, plane.grid.residual)
        )
        self.places = 0

    def run(self) -> tuple[Floats, NDArray[np.int32], float]:
        """Coefficients of all patches, the patch of each cell, and the largest error in score that was seen."""
        active = self._shrunk(_roots(self._shape))
        done: list[tuple[Ints, Floats]] = []
        finished, error = 0, 0.0
        while len(active):
            patches, errors, cuts = self._fit(active)
            wanting = (errors > self._tolerance) & (cuts != 0)
            room = _MOST_PATCHES - finished - len(active)
            if np.count_nonzero(wanting) > room:
                worst = np.argsort(np.where(wanting, -errors, 0.0), kind="stable")[: max(room, 0)]
                wanting &= np.isin(np.arange(len(active)), worst)
            settled = ~wanting
            stuck = settled & (errors > self._tolerance)
            patches[stuck], errors[stuck] = self._corrected(active[stuck], patches[stuck])
            error = max(error, float(errors[settled].max(initial=0.0)))
            done.append((active[settled], patches[settled]))
            finished += int(np.count_nonzero(settled))
            active = self._shrunk(_halves(active[wanting], cuts[wanting]))
        rectangles, coefficients = (np.concatenate(parts) for parts in zip(*done, strict=True))
        patch_of = np.full(self._shape, -1, np.int32)
        _paint(rectangles, patch_of)
        return self._located(rectangles, coefficients), patch_of.ravel(), error

    def _shrunk(self, rectangles: Ints) -> Ints:
        """Each rectangle cut down to its cells that are not empty; without those that are."""
        shrunk = rectangles.copy()
        _shrink(self._mass_of, shrunk)
        return shrunk[shrunk[:, 0] < shrunk[:, 1]]

    def _at_nodes(self, u: Ints, v: Ints) -> Floats:
        """The field and its gradient at crossings of lines, computed once each."""
        u, v = self._same_u[u], self._same_v[v]
        flat = np.ravel_multi_index((u, v), self._nodes.shape[:2])
        nodes = self._nodes.reshape(-1, 3)
        missing = np.unique(flat[np.isnan(nodes[flat, 0])])
        mu, mv = np.divmod(missing, self._nodes.shape[1])
        nodes[missing] = self._field(self._plane.x[mu], self._plane.y[mv])[:, :3]
        return nodes[flat]

    def _field(self, x: Floats, y: Floats) -> Floats:
        self.places += len(x)
        return self._sources.field(x, y)

    def _fit(self, rectangles: Ints) -> tuple[Floats, Floats, Ints]:
        """Polynomials, their errors in score, and along which axis to cut (1 label, 2 residual, 0 cannot be cut)."""
        u0, u1, v0, v1 = rectangles.T
        mass = self._mass(rectangles)
        single = (mass.xx + mass.yy) == 0
        corners = np.stack([self._at_nodes(u, v) for u in (u0, u1) for v in (v0, v1)], axis=1)
        extent = self._extent(rectangles)
        coefficients = _hermite(corners, extent)
        middle = self._field(mass.x, mass.y)
        coefficients[single] = 0.0
        coefficients[single, 0] = middle[single, 0]
        at_mass = self._score_error(coefficients, self._local(rectangles, mass.x, mass.y), middle[:, 0])
        um, vm = (u0 + u1) // 2, (v0 + v1) // 2
        along_u, along_v = (np.zeros(len(rectangles)) for _ in range(2))
        for u, v, errors in ((um, v0, along_u), (um, v1, along_u), (u0, vm, along_v), (u1, vm, along_v)):
            place = self._local(rectangles, self._plane.x[u], self._plane.y[v])
            seen = self._score_error(coefficients, place, self._at_nodes(u, v)[:, 0])
            np.maximum(errors, seen, out=errors)
        can_u, can_v = u1 - u0 > 1, v1 - v0 > 1
        # Where lines leave no choice, or neither side shows the error, the longer way is cut.
        longer_u = np.where(
            np.maximum(along_u, along_v) > self._tolerance, along_u >= along_v, extent[:, 0] >= extent[:, 1]
        )
        cuts = np.where(can_u & (longer_u | ~can_v), 1, np.where(can_v, 2, 0))
        errors = np.maximum(at_mass, np.maximum(along_u * can_u, along_v * can_v))
        errors[single] = 0.0
        return coefficients, errors, cuts

    def _corrected(self, rectangles: Ints, coefficients: Floats) -> tuple[Floats, Floats]:
        """Polynomials that are right to first order where the mass is, and their errors among it."""
        mass = self._mass(rectangles)
        value, *gradient = self._field(mass.x, mass.y)[:, :3].T
        extent = self._extent(rectangles)
        s, t = self._local(rectangles, mass.x, mass.y)
        seen, slope = _polynomial(coefficients, s, t)
        delta = (np.stack(gradient, axis=1) * extent) - slope
        coefficients = coefficients.copy()
        coefficients[:, 0] += value - seen - delta[:, 0] * s - delta[:, 1] * t
        coefficients[:, _S] += delta[:, 0]
        coefficients[:, _T] += delta[:, 1]
        errors = np.zeros(len(rectangles))
        for side_x, side_y in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            x, y = mass.x + side_x * np.sqrt(3 * mass.xx), mass.y + side_y * np.sqrt(3 * mass.yy)
            true = self._field(x, y)[:, 0]
            np.maximum(errors, self._score_error(coefficients, self._local(rectangles, x, y), true), out=errors)
        return coefficients, errors

    def _score_error(self, coefficients: Floats, place: tuple[Floats, Floats], true: Floats) -> Floats:
        seen, _ = _polynomial(coefficients, *place)
        return np.abs(np.exp(-seen / self._scale) - np.exp(-true / self._scale))

    def _mass(self, rectangles: Ints) -> Masses:
        """What each rectangle holds."""
        patch_of = np.full(self._shape, -1, np.int32)
        _paint(rectangles, patch_of)
        owner = patch_of[self._mass_of >= 0]
        chosen = owner >= 0
        m = self._masses
        of_cells = Masses(*(values[chosen] for values in m.arrays))
        return of_cells.grouped(owner[chosen])

    def _extent(self, rectangles: Ints) -> Floats:
        u0, u1, v0, v1 = rectangles.T
        x, y = self._plane.x, self._plane.y
        extent = np.stack([x[u1] - x[u0], y[v1] - y[v0]], axis=1)
        extent[self._same_u[u1] == self._same_u[u0], 0] = 0.0
        extent[self._same_v[v1] == self._same_v[v0], 1] = 0.0
        return extent

    def _local(self, rectangles: Ints, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        """Places relative to their rectangles, from 0 to 1."""
        inverse = _inverse(self._extent(rectangles))
        start_x, start_y = self._plane.x[rectangles[:, 0]], self._plane.y[rectangles[:, 2]]
        return (x - start_x) * inverse[:, 0], (y - start_y) * inverse[:, 1]

    def _located(self, rectangles: Ints, coefficients: Floats) -> Floats:
        """Coefficients with where each patch lies, in the units of the data."""
        inverse = _inverse(self._extent(rectangles)) * self._plane.per_unit
        grid = self._plane.grid
        start = np.stack([grid.label.lines[rectangles[:, 0]], grid.residual.lines[rectangles[:, 2]]], axis=1)
        return np.concatenate([start, inverse, coefficients], axis=1)


def _roots(shape: tuple[int, int]) -> Ints:
    u, v = (np.arange(0, size, _ROOT_CELLS) for size in shape)
    u, v = (each.ravel() for each in np.meshgrid(u, v, indexing="ij"))
    ends = np.minimum(u + _ROOT_CELLS, shape[0]), np.minimum(v + _ROOT_CELLS, shape[1])
    return np.stack([u, ends[0], v, ends[1]], axis=1)


def _halves(rectangles: Ints, cuts: Ints) -> Ints:
    first, second = rectangles.copy(), rectangles.copy()
    for axis in (1, 2):
        cut = cuts == axis
        low, high = 2 * axis - 2, 2 * axis - 1
        middle = (rectangles[cut, low] + rectangles[cut, high]) // 2
        first[cut, high] = middle
        second[cut, low] = middle
    return np.concatenate([first, second])


def _inverse(values: Floats) -> Floats:
    return np.divide(1.0, values, out=np.zeros_like(values), where=values > 0)


def _smeared_median(values: Floats, half_widths: Floats, weights: Floats) -> float:
    """Median of rows of which each of some groups spreads evenly around a value."""
    n = weights.sum()
    low, high = values - half_widths, values + half_widths
    inverse = _inverse(high - low)

    def reached(t: float) -> float:
        return float((weights * np.where(low >= t, 0.0, np.where(high <= t, 1.0, (t - low) * inverse))).sum())

    def at(rank: float) -> float:
        below, above = float(low.min()), float(high.max())
        for _ in range(100):
            middle = (below + above) / 2
            below, above = (middle, above) if reached(middle) <= rank else (below, middle)
        return above

    # Rows (n - 1) / 2 and n / 2 of all, in whole numbers, as for a plain median; each is met at its middle.
    return (at((n - 1) // 2 + 0.5) + at(n // 2 + 0.5)) / 2


_MONOMIALS = [(0, 0), (1, 0), (2, 0), (3, 0), (0, 1), (1, 1), (2, 1), (3, 1), (0, 2), (1, 2), (0, 3), (1, 3)]
_S, _T = _MONOMIALS.index((1, 0)), _MONOMIALS.index((0, 1))


def _interpolation_matrix() -> Floats:
    """From value, slope along s and slope along t at the corners (0, 0), (0, 1), (1, 0), (1, 1) to coefficients."""
    conditions = []
    for s, t in ((0, 0), (0, 1), (1, 0), (1, 1)):
        conditions.append([float(s**m * t**n) for m, n in _MONOMIALS])
        conditions.append([float(m * s ** max(m - 1, 0) * t**n) for m, n in _MONOMIALS])
        conditions.append([float(s**m * n * t ** max(n - 1, 0)) for m, n in _MONOMIALS])
    inverse: Floats = np.linalg.inv(np.array(conditions))
    return inverse.round()


_COEFFICIENTS = _interpolation_matrix()


def _hermite(corners: Floats, extent: Floats) -> Floats:
    """Coefficients (m, 12) from value and gradient at four corners (m, 4, 3) of rectangles (m, 2)."""
    scaled = corners.copy()
    scaled[:, :, 1:] *= extent[:, None, :]
    result: Floats = scaled.reshape(len(corners), 12) @ _COEFFICIENTS.T
    return result


def _polynomial(coefficients: Floats, s: Floats, t: Floats) -> tuple[Floats, Floats]:
    """Values (m,) and slopes (m, 2) of m polynomials at a place each."""
    powers_s, powers_t = (np.stack([np.ones_like(p), p, p**2, p**3], axis=1) for p in (s, t))
    value = sum(coefficients[:, i] * powers_s[:, m] * powers_t[:, n] for i, (m, n) in enumerate(_MONOMIALS))
    along_s = sum(
        m * coefficients[:, i] * powers_s[:, m - 1] * powers_t[:, n] for i, (m, n) in enumerate(_MONOMIALS) if m
    )
    along_t = sum(
        n * coefficients[:, i] * powers_s[:, m] * powers_t[:, n - 1] for i, (m, n) in enumerate(_MONOMIALS) if n
    )
    return np.asarray(value), np.stack([along_s, along_t], axis=1)


def _values(patches: Floats, labels: Floats, residuals: Floats) -> tuple[Floats, Floats]:
    """Distances (m,) and their slopes (m, 2), in the units of the data, of m patches at a row each."""
    s, t = (labels - patches[:, 0]) * patches[:, 2], (residuals - patches[:, 1]) * patches[:, 3]
    value, slope = _polynomial(patches[:, 4:], s, t)
    return value, slope * patches[:, 2:4]


@kernel
def _shrink(mass_of: Any, rectangles: Any) -> None:
    for i in range(len(rectangles)):
        u0, u1, v0, v1 = rectangles[i]
        low_u, high_u, low_v, high_v = u1, u0, v1, v0
        for u in range(u0, u1):
            for v in range(v0, v1):
                if mass_of[u, v] >= 0:
                    low_u, high_u = min(low_u, u), max(high_u, u + 1)
                    low_v, high_v = min(low_v, v), max(high_v, v + 1)
        rectangles[i, 0], rectangles[i, 1], rectangles[i, 2], rectangles[i, 3] = low_u, high_u, low_v, high_v


@kernel
def _paint(rectangles: Any, patch_of: Any) -> None:
    for i in range(len(rectangles)):
        for u in range(rectangles[i, 0], rectangles[i, 1]):
            for v in range(rectangles[i, 2], rectangles[i, 3]):
                patch_of[u, v] = i


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
                if mean[j] + half[j] > low and mean[j] - half[j] < high:
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


@kernel
def _find_cells(labels: Any, residuals: Any, label_axis: Any, residual_axis: Any, out: Any) -> None:
    lines, buckets, centre, inverse_width, _ = label_axis
    r_lines, r_buckets, r_centre, r_inverse_width, r_steps = residual_axis
    for i in range(len(labels)):
        u = interval(labels[i], lines, buckets, centre, inverse_width)
        out[i] = u * len(r_steps) + interval(residuals[i], r_lines, r_buckets, r_centre, r_inverse_width)


@kernel
def _distances_of_rows(
    labels: Any, residuals: Any, label_axis: Any, residual_axis: Any, patch_of: Any, patches: Any, out: Any
) -> None:
    lines, buckets, centre, inverse_width, _ = label_axis
    r_lines, r_buckets, r_centre, r_inverse_width, r_steps = residual_axis
    columns = len(r_steps)
    for i in range(len(labels)):
        u = interval(labels[i], lines, buckets, centre, inverse_width)
        v = interval(residuals[i], r_lines, r_buckets, r_centre, r_inverse_width)
        c = patches[patch_of[u * columns + v]]
        s, t = (labels[i] - c[0]) * c[2], (residuals[i] - c[1]) * c[3]
        constant = c[4] + s * (c[5] + s * (c[6] + s * c[7]))
        linear = c[8] + s * (c[9] + s * (c[10] + s * c[11]))
        out[i] = constant + t * (linear + t * (c[12] + s * c[13] + t * (c[14] + s * c[15])))
