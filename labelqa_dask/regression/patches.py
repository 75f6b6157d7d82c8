"""Patches: rectangles of cells on which the field is a polynomial, cut until it is interpolated well enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from labelqa_dask.core.kernels import kernel
from labelqa_dask.regression.grid import Grid, Masses
from labelqa_dask.regression.rows import Floats, scores_of_distances
from labelqa_dask.regression.sources import Sources

_ROOT_CELLS = 16
_MOST_PATCHES = 20_000

_SHARED = 1e-3
"""Of all rows: where more of them are in one place, an error near their score, which moves others past all of
them, must be smaller by as much."""

Ints = NDArray[np.intp]


@dataclass(frozen=True)
class Plane:
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

    def places(self, labels: Floats, residuals: Floats) -> tuple[Floats, Floats]:
        """Places of labels and residuals."""
        x = (labels - self.grid.label.centre) * self.per_unit[0]
        return x, (residuals - self.grid.residual.centre) * self.per_unit[1]


class Patching:
    """Cuts the grid into patches until the field is interpolated well enough."""

    def __init__(
        self, plane: Plane, sources: Sources, index: Ints, masses: Masses, scale: float, tolerance: float
    ) -> None:
        self._plane, self._sources, self._masses = plane, sources, masses
        self._scale, self._tolerance = scale, tolerance
        self._shape = (len(plane.grid.label), len(plane.grid.residual))
        self._mass_of = np.full(self._shape, -1, np.int64)
        self._mass_of.ravel()[index] = np.arange(len(index))
        self._nodes = np.full((self._shape[0] + 1, self._shape[1] + 1, 3), np.nan)
        # Rows that are all in one place.
        u, v = np.divmod(index, self._shape[1])
        points = np.flatnonzero((plane.grid.label.widths[u] == 0) & (plane.grid.residual.widths[v] == 0))
        self._pull = np.zeros(self._nodes.shape[:2])
        self._pull[u[points], v[points]] = np.minimum(masses.weight[points] / sources.k, 1.0)
        shares = masses.weight / masses.weight.sum()
        points = points[shares[points] > _SHARED]
        self._shares, self._distances = shares[points], sources.field(masses.x[points], masses.y[points])[:, 0]
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
            patches, errors, tolerances, cuts = self._fit(active)
            wanting = (errors > tolerances) & (cuts != 0)
            room = _MOST_PATCHES - finished - len(active)
            if np.count_nonzero(wanting) > room:
                worst = np.argsort(np.where(wanting, -errors / tolerances, 0.0), kind="stable")[: max(room, 0)]
                wanting &= np.isin(np.arange(len(active)), worst)
            settled = ~wanting
            stuck = settled & (errors > tolerances)
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

    def _from_inside(self, u: Ints, v: Ints, side_u: int, side_v: int) -> Floats:
        """The field at crossings, and its slopes on one side of them: on a place of many rows stands a cone."""
        seen = self._at_nodes(u, v)
        pull = self._pull[self._same_u[u], self._same_v[v]]
        seen[:, 1] += side_u * pull
        seen[:, 2] += side_v * pull
        return seen

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

    def _fit(self, rectangles: Ints) -> tuple[Floats, Floats, Floats, Ints]:
        """Polynomials, their errors in score, how large these may be, and which axis to cut.

        The axis is 1 for the label, 2 for the residual, and 0 for what cannot be cut.
        """
        u0, u1, v0, v1 = rectangles.T
        mass = self._mass(rectangles)
        single = (mass.xx + mass.yy) == 0
        sides = [(u, v, side_u, side_v) for u, side_u in ((u0, 1), (u1, -1)) for v, side_v in ((v0, 1), (v1, -1))]
        corners = np.stack([self._from_inside(*side) for side in sides], axis=1)
        extent = self._extent(rectangles)
        coefficients = _hermite(corners, extent)
        middle = self._field(mass.x, mass.y)
        coefficients[single] = 0.0
        coefficients[single, 0] = middle[single, 0]
        at_mass = self._score_error(coefficients, self._local(rectangles, mass.x, mass.y), middle[:, 0])
        tolerances = self._tolerances(np.column_stack([corners[:, :, 0], middle[:, 0]]))
        um, vm = (u0 + u1) // 2, (v0 + v1) // 2
        along_u, along_v = (np.zeros(len(rectangles)) for _ in range(2))
        for u, v, errors in ((um, v0, along_u), (um, v1, along_u), (u0, vm, along_v), (u1, vm, along_v)):
            place = self._local(rectangles, self._plane.x[u], self._plane.y[v])
            seen = self._score_error(coefficients, place, self._at_nodes(u, v)[:, 0])
            np.maximum(errors, seen, out=errors)
        can_u, can_v = u1 - u0 > 1, v1 - v0 > 1
        # Where lines leave no choice, or neither side shows the error, the longer way is cut.
        longer_u = np.where(np.maximum(along_u, along_v) > tolerances, along_u >= along_v, extent[:, 0] >= extent[:, 1])
        cuts = np.where(can_u & (longer_u | ~can_v), 1, np.where(can_v, 2, 0))
        errors = np.maximum(at_mass, np.maximum(along_u * can_u, along_v * can_v))
        good = errors <= tolerances
        errors[good] = np.maximum(errors[good], self._errors_inside(rectangles[good], coefficients[good]))
        errors[single] = 0.0
        return coefficients, errors, tolerances, cuts

    def _tolerances(self, distances: Floats) -> Floats:
        """How large errors may be in patches in which (m, places) distances were seen."""
        # So far off they may be where nothing is shared.
        off = self._tolerance * self._scale
        low, high = distances.min(axis=1, keepdims=True) - off, distances.max(axis=1, keepdims=True) + off
        met = (low <= self._distances) & (self._distances <= high)
        share = np.where(met, self._shares, 0.0).max(axis=1, initial=0.0)
        return self._tolerance / np.maximum(share / _SHARED, 1.0)

    def _errors_inside(self, rectangles: Ints, coefficients: Floats) -> Floats:
        """Largest error in score half way between the middle and the corners."""
        (start_x, start_y), extent = self._start(rectangles), self._extent(rectangles)
        errors = np.zeros(len(rectangles))
        for s in (0.25, 0.75):
            for t in (0.25, 0.75):
                x, y = start_x + s * extent[:, 0], start_y + t * extent[:, 1]
                seen = self._score_error(coefficients, self._local(rectangles, x, y), self._field(x, y)[:, 0])
                np.maximum(errors, seen, out=errors)
        return errors

    def _corrected(self, rectangles: Ints, coefficients: Floats) -> tuple[Floats, Floats]:
        """Polynomials that are right to first order where the mass is, if that is better, and their errors among it."""
        u0, u1, v0, v1 = rectangles.T
        mass = self._mass(rectangles)
        value, *gradient = self._field(mass.x, mass.y)[:, :3].T
        extent = self._extent(rectangles)
        s, t = self._local(rectangles, mass.x, mass.y)
        seen, slope = _polynomial(coefficients, s, t)
        delta = (np.stack(gradient, axis=1) * extent) - slope
        corrected = coefficients.copy()
        corrected[:, 0] += value - seen - delta[:, 0] * s - delta[:, 1] * t
        corrected[:, _S] += delta[:, 0]
        corrected[:, _T] += delta[:, 1]
        errors = np.zeros((2, len(rectangles)))
        for side_x, side_y in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)):
            x = np.clip(mass.x + side_x * np.sqrt(3 * mass.xx), self._plane.x[u0], self._plane.x[u1])
            y = np.clip(mass.y + side_y * np.sqrt(3 * mass.yy), self._plane.y[v0], self._plane.y[v1])
            true, place = self._field(x, y)[:, 0], self._local(rectangles, x, y)
            both = [self._score_error(polynomials, place, true) for polynomials in (coefficients, corrected)]
            np.maximum(errors, both, out=errors)
        better = errors[1] < errors[0]
        return np.where(better[:, None], corrected, coefficients), errors.min(axis=0)

    def _score_error(self, coefficients: Floats, place: tuple[Floats, Floats], true: Floats) -> Floats:
        seen, _ = _polynomial(coefficients, *place)
        return error_of_scores(seen, true, self._scale)

    def _mass(self, rectangles: Ints) -> Masses:
        """What each rectangle holds."""
        patch_of = np.full(self._shape, -1, np.int32)
        _paint(rectangles, patch_of)
        owner = patch_of[self._mass_of >= 0]
        chosen = owner >= 0
        m = self._masses
        of_cells = Masses(*(values[chosen] for values in m.arrays))
        return of_cells.grouped(owner[chosen])

    def _start(self, rectangles: Ints) -> tuple[Floats, Floats]:
        return self._plane.x[rectangles[:, 0]], self._plane.y[rectangles[:, 2]]

    def _extent(self, rectangles: Ints) -> Floats:
        u0, u1, v0, v1 = rectangles.T
        x, y = self._plane.x, self._plane.y
        extent = np.stack([x[u1] - x[u0], y[v1] - y[v0]], axis=1)
        extent[self._same_u[u1] == self._same_u[u0], 0] = 0.0
        extent[self._same_v[v1] == self._same_v[v0], 1] = 0.0
        return extent

    def _local(self, rectangles: Ints, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        """Places relative to their rectangles, from 0 to 1."""
        (start_x, start_y), inverse = self._start(rectangles), inverse_or_zero(self._extent(rectangles))
        return (x - start_x) * inverse[:, 0], (y - start_y) * inverse[:, 1]

    def _located(self, rectangles: Ints, coefficients: Floats) -> Floats:
        """Coefficients with where each patch lies, in the units of the data."""
        inverse = inverse_or_zero(self._extent(rectangles)) * self._plane.per_unit
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


def error_of_scores(distances: Floats, true: Floats, scale: float) -> Floats:
    """By how much the scores of distances differ from the true ones."""
    seen, exact = (scores_of_distances(np.ascontiguousarray(values), scale) for values in (distances, true))
    return np.abs(seen - exact)


def inverse_or_zero(values: Floats) -> Floats:
    """1 / value, and 0 where that is next to nothing: places as close as 1e-100 are one."""
    return np.divide(1.0, values, out=np.zeros_like(values), where=values > 1e-100)


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


def values_at(patches: Floats, labels: Floats, residuals: Floats) -> tuple[Floats, Floats]:
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
