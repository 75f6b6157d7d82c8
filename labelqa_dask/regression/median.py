"""The median of the field over all rows, from what is known of each cell."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc

from labelqa_dask.regression.grid import Masses
from labelqa_dask.regression.patches import Plane
from labelqa_dask.regression.rows import Floats

# Rows at the two bounds alone have no concentration; and a variance of so little, in squares of the extent, is a step.
_LEAST_CONCENTRATION = 1e-3
_LEAST_VARIANCE = 1e-9


@dataclass(frozen=True)
class Distances:
    """How the distances of the rows of each cell are distributed: between two bounds, as a beta distribution.

    Its mean and variance are those of the rows, so it leans to the side of the cell where the rows are.

    Attributes
    ----------
    weight : (m,) float64
        Number of rows.
    low, high : (m,) float64
        Least and greatest distance in the cell; equal where all rows have the same.
    a, b : (m,) float64
        Parameters of the distribution.
    """

    weight: Floats
    low: Floats
    high: Floats
    a: Floats
    b: Floats

    @classmethod
    def of(cls, masses: Masses, index: NDArray[np.intp], plane: Plane, mean: Floats, slopes: Floats) -> Self:
        """Distances in cells where they are `mean` (m,) at the rows' mean place, and change by `slopes` (m, 2)."""
        along_x, along_y = slopes.T
        variance = along_x**2 * masses.xx + 2 * along_x * along_y * masses.xy + along_y**2 * masses.yy
        low, high = mean.copy(), mean.copy()
        u, v = np.divmod(index, len(plane.grid.residual))
        label, residual = (
            axis.widths * unit
            for axis, unit in zip((plane.grid.label, plane.grid.residual), plane.per_unit, strict=True)
        )
        for slope, place, start, width in (
            (along_x, masses.x, plane.x[u], label[u]),
            (along_y, masses.y, plane.y[v], residual[v]),
        ):
            ends = slope * (start - place), slope * (start + width - place)
            low += np.minimum(*ends)
            high += np.maximum(*ends)
        extent = high - low
        spread = (variance > 0) & (extent > 0) & (low < mean) & (mean < high)
        low, high = np.where(spread, low, mean), np.where(spread, high, mean)
        extent = np.where(spread, extent, 1.0)
        share = np.where(spread, (mean - low) / extent, 0.5)
        variance = np.maximum(np.where(spread, variance, 1.0) / extent**2, _LEAST_VARIANCE)
        concentration = np.maximum(share * (1 - share) / variance - 1, _LEAST_CONCENTRATION)
        return cls(masses.weight, low, high, share * concentration, (1 - share) * concentration)

    def median(self) -> tuple[float, float]:
        """The median, and how far from it that of the rows may lie.

        Of the rows of a cell that the median cuts, each is taken to lie on either side by its own chance: twice the
        standard deviation of how many then do is what the rank of the median may be off by.
        """
        n = int(self.weight.sum())
        # Rows (n - 1) / 2 and n / 2 of all, in whole numbers; each is met at its middle.
        median = (self._at((n - 1) // 2 + 0.5) + self._at(n // 2 + 0.5)) / 2
        below = self._shares(median)
        off = 2 * math.sqrt(float((self.weight * below * (1 - below)).sum()))
        return median, (self._at(min(n / 2 + off, n)) - self._at(max(n / 2 - off, 0.0))) / 2

    @cached_property
    def _bounds(self) -> list[tuple[Floats, Floats]]:
        """Least and greatest distances in their order, each with the number of rows of the cells up to there."""
        orders = ((bound, np.argsort(bound, kind="stable")) for bound in (self.low, self.high))
        return [(bound[order], np.cumsum(self.weight[order])) for bound, order in orders]

    def _shares(self, distance: float) -> Floats:
        """What share of the rows of each cell is no farther than a distance."""
        extent = self.high - self.low
        inside = np.clip((distance - self.low) / np.where(extent > 0, extent, 1.0), 0.0, 1.0)
        return np.where(extent > 0, betainc(self.a, self.b, inside), self.low <= distance)

    def _at(self, rank: float) -> float:
        """The distance that so many rows do not exceed, to the last bit."""
        # So many rows are reached before all rows of the cells are that reach as many, and after some of them are.
        below, above = (
            float(bound[min(int(np.searchsorted(reached, rank)), len(bound) - 1)]) for bound, reached in self._bounds
        )
        met = (self.low < above) & (self.high > below)
        cells = Distances(*(values[met] for values in (self.weight, self.low, self.high, self.a, self.b)))
        rank -= float(self.weight[self.high <= below].sum())
        while True:
            middle = (below + above) / 2
            if not below < middle < above:
                return above
            if float((cells.weight * cells._shares(middle)).sum()) <= rank:
                below = middle
            else:
                above = middle
