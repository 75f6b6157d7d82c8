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
whose error, seen at places inside it, exceeds the tolerance is cut in two. The scale is the median of the field over
the rows of all cells (`median`). A row then costs the same whatever n is: finding its cell, one polynomial, one
exponential.

See docs/outre.md for the derivation, and for the error as a function of the number of patches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from labelqa_dask.core.kernels import kernel
from labelqa_dask.regression.grid import Grid, Masses, cells_of, find_piece
from labelqa_dask.regression.median import Distances
from labelqa_dask.regression.patches import Patching, Plane, error_of_scores, values_at
from labelqa_dask.regression.rows import PIECE_ROWS, Floats, Rows, features_per_unit, scale_of
from labelqa_dask.regression.sources import Sources

_CHECKS = 256
_FEW_CELLS = 2048

# Of the tolerance; checks see much of the error, not all.
_SHARE_OF_SOURCES = 0.1
_SHARE_OF_PATCHES = 0.05

Ints = NDArray[np.intp]


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
        plane = Plane.of(grid, per_unit)
        checks = _sample(plane, rows, _CHECKS)
        sources, finest, error_of_sources, scale = _choose_sources(masses, index, k, checks, plane, settings)
        patching = Patching(plane, sources, index, masses, scale, settings.tolerance * _SHARE_OF_PATCHES)
        patches, patch_of, error_of_patches = patching.run()
        distances, gradients = values_at(patches[patch_of[index], :], *plane.raw(masses.x, masses.y))
        error_of_scale = 0.0
        if settings.scaled:
            median, off = Distances.of(masses, index, plane, distances, gradients / per_unit).median()
            scale = scale_of(median, True)
            error_of_scale = off / scale / math.e  # the most that exp(-d / scale) changes, to first order
        seen = values_at(patches[patch_of[checks.cell], :], *plane.raw(checks.x, checks.y))[0]
        measured = float(error_of_scores(seen, finest, scale).max())
        error = min(max(measured, error_of_patches) + error_of_sources + error_of_scale, 1.0)
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


def _sample(plane: Plane, rows: Rows, most: int) -> _Checks:
    """Some of the rows, always the same ones."""
    chosen = np.argsort(rows.hashes)[:most]
    chosen = chosen[np.argsort(rows.labels[chosen], kind="stable")]
    labels, residuals = rows.labels[chosen], rows.residuals[chosen]
    return _Checks(*plane.places(labels, residuals), cells_of(labels, residuals, plane.grid))


def _choose_sources(
    masses: Masses, index: Ints, k: float, checks: _Checks, plane: Plane, settings: FieldSettings
) -> tuple[Sources, Floats, float, float]:
    """The fewest cells that change no score by more than a share of the tolerance.

    Returns the sources, the field of the finest cells at the checks, an estimate of the error in score that remains,
    and an estimate of the scale.
    """
    u, v = np.divmod(index, len(plane.grid.residual))
    candidates = [Sources(masses, k)]
    for factor in (2, 4):
        u_of, v_of = (axis.coarser(factor) for axis in (plane.grid.label, plane.grid.residual))
        _, group = np.unique((u_of[u] << 32) + v_of[v], return_inverse=True)
        candidates.insert(0, Sources(masses.grouped(group), k))
    fields, radius = [], None
    for sources in candidates:
        found = sources.field(checks.x, checks.y, radius)
        radius = found[:, 3]
        fields.append(found[:, 0])
    coarse, finer, finest = fields
    scale = scale_of(float(np.median(finest)), settings.scaled)

    def change(fewer: Floats, more: Floats) -> float:
        return float(error_of_scores(fewer, more, scale).max())

    # What halving the cells changed bounds, with room for rows that were not looked at, what halving them again would.
    remains = change(finer, finest)
    for sources, values in zip(candidates, (coarse, finer), strict=False):
        if len(index) > _FEW_CELLS and change(values, finest) <= settings.tolerance * _SHARE_OF_SOURCES:
            return sources, finest, change(values, finest) + remains, scale
    return candidates[2], finest, remains, scale


@kernel
def _distances_of_rows(
    labels: Any, residuals: Any, label_axis: Any, residual_axis: Any, patch_of: Any, patches: Any, out: Any
) -> None:
    """Floor: rows read and distances written once, their intervals, and for each two cache lines of a patch."""
    columns = np.uint64(len(residual_axis[0]) - 1)
    u, v = np.empty(PIECE_ROWS, np.uint64), np.empty(PIECE_ROWS, np.uint64)
    for start in range(0, len(labels), PIECE_ROWS):
        y, r = find_piece(labels, residuals, start, label_axis, residual_axis, u, v)
        for i in range(len(y)):
            c = patches[np.uint64(patch_of[u[i] * columns + v[i]])]
            s, t = (y[i] - c[0]) * c[2], (r[i] - c[1]) * c[3]
            constant = c[4] + s * (c[5] + s * (c[6] + s * c[7]))
            linear = c[8] + s * (c[9] + s * (c[10] + s * c[11]))
            out[start + i] = constant + t * (linear + t * (c[12] + s * c[13] + t * (c[14] + s * c[15])))
