"""Rows of labels and predictions: checks, residuals, moments, and a sample drawn by hashing the rows' numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from labelqa_dask.core.errors import InvalidInput
from labelqa_dask.core.kernels import Array, contracting_kernel, exp_nonpositive, kernel, precision_of, summing_kernel
from labelqa_dask.core.task import Block

Floats = NDArray[np.float64]

LARGEST = 1e150
"""Values beyond it have no square in float64."""

SAME_PLACE = float(np.sqrt(100 * np.finfo(np.float64).eps))
SMALLEST_SCALE = 1e-6

PIECE_ROWS = 512
"""Rows that kernels work on together, where what is made of them on the way is to stay in the cache."""


def read(block: Block) -> tuple[Floats, Floats]:
    """Labels and residuals (prediction - label) of a block, (n,) float64.

    Raises
    ------
    InvalidInput
        Naming the first value that is not finite.
    """
    labels, predictions = _columns(block)
    residuals = np.empty(len(labels))
    _refuse(block, _subtract(predictions, labels, residuals))
    return labels, residuals


def _columns(block: Block) -> tuple[Floats, Floats]:
    """Labels and predictions (n,) float64."""
    labels, predictions = (np.require(block[name], np.float64, ["C"]) for name in ("labels", "predictions"))
    return labels, predictions


def _refuse(block: Block, bad: int) -> None:
    """Name the value of a bad row, if there is one."""
    if bad >= 0:
        name = "predictions" if abs(float(block["labels"][bad])) < LARGEST else "labels"
        value = block[name][bad]
        raise InvalidInput(
            f"value is {value}",
            block.where(name, example=bad),
            "Labels and predictions must be finite and below 1e150: mend the value, or drop the example.",
        )


def residual_scores(block: Block) -> Floats:
    """exp(-|prediction - label|) of a block, (n,) float64."""
    _, residuals = read(block)
    _exp_of_minus_absolute(residuals)
    return residuals


@dataclass(frozen=True)
class Rows:
    """What one walk over the rows tells of them: a mergeable state.

    Means and squared deviations merge by Chan's formula; constant values keep a deviation of exactly 0. The sample
    holds the rows whose hash is among the lowest 1 in 2^level, and at level 0 every row. The level is the lowest at
    which they are no more than `capacity`, so it does not depend on the grouping.

    Attributes
    ----------
    count : int
    mean, squares, lowest, highest : (2,) float64
        Of the label and of the residual; `squares` is the sum of the squared deviations from the mean.
    capacity, level : int
    labels, residuals : (m,) float64
    hashes : (m,) uint64, of the row's number in the whole data
    """

    count: int
    mean: Floats
    squares: Floats
    lowest: Floats
    highest: Floats
    capacity: int
    level: int
    labels: Floats
    residuals: Floats
    hashes: NDArray[np.uint64]

    @classmethod
    def of(cls, block: Block, capacity: int) -> Self:
        """State of one block; the rows are known by their number in the whole data."""
        labels, predictions = _columns(block)
        moments = np.array([[0.0, 0.0, np.inf, -np.inf]] * 2)
        _refuse(block, _add_moments(labels, predictions, moments))
        mean, squares, lowest, highest = moments.T.copy()
        first, n = _first_number(block), len(labels)
        level = max(0, (4 * n // (5 * capacity)).bit_length() - 1)  # probably more than are wanted, but not many more
        rows, hashes = _draw(first, n, level)
        while level and len(rows) <= capacity:
            level -= 1
            rows, hashes = _draw(first, n, level)
        level, chosen = _thin(hashes, level, capacity)
        rows, hashes = rows[chosen], hashes[chosen]
        drawn = labels[rows]
        residuals = predictions[rows] - drawn
        return cls(n, mean, squares, lowest, highest, capacity, level, drawn, residuals, hashes)

    def merge(self, other: Self) -> Self:
        if self.count == 0 or other.count == 0:
            return other if self.count == 0 else self
        count = self.count + other.count
        delta = other.mean - self.mean
        merged = replace(
            self,
            count=count,
            mean=self.mean + delta * (other.count / count),
            squares=self.squares + other.squares + delta**2 * (self.count * (other.count / count)),
            lowest=np.minimum(self.lowest, other.lowest),
            highest=np.maximum(self.highest, other.highest),
            level=max(self.level, other.level),
            labels=np.concatenate([self.labels, other.labels]),
            residuals=np.concatenate([self.residuals, other.residuals]),
            hashes=np.concatenate([self.hashes, other.hashes]),
        )
        return merged._thinned()

    def result(self) -> Self:
        return self

    @property
    def complete(self) -> bool:
        """Whether the sample holds every row."""
        return self.level == 0

    @property
    def deviation(self) -> Floats:
        """Population standard deviations of labels and residuals, (2,).

        Rounded to 44 bits, so that how the rows were grouped, which changes the last bits, does not show.
        """
        mantissa, exponent = np.frexp(np.sqrt(self.squares / max(self.count, 1)))
        rounded: Floats = np.ldexp(np.round(np.ldexp(mantissa, 44)), exponent - 44)
        return rounded

    def _thinned(self) -> Self:
        level, chosen = _thin(self.hashes, self.level, self.capacity)
        if chosen.all():
            return replace(self, level=level)
        kept = {name: getattr(self, name)[chosen] for name in ("labels", "residuals", "hashes")}
        return replace(self, level=level, **kept)


def features_per_unit(deviation: Floats, residual_scale: float) -> Floats:
    """How long a unit of the label and of the residual is in the plane of features, (2,)."""
    return np.array([1.0, residual_scale]) / (deviation + 1e-100)


def _chosen(hashes: NDArray[np.uint64], level: int) -> NDArray[np.bool_]:
    """The hashes that are among the lowest 1 in 2^level."""
    return (hashes >> np.uint64(64 - level)) == 0 if level else np.ones(len(hashes), bool)


def _thin(hashes: NDArray[np.uint64], level: int, capacity: int) -> tuple[int, NDArray[np.bool_]]:
    """The lowest level from some level on at which hashes are no more than fit, and which are chosen at it."""
    chosen = _chosen(hashes, level)
    while np.count_nonzero(chosen) > capacity:
        level += 1
        chosen = _chosen(hashes, level)
    return level, chosen


def _first_number(block: Block) -> np.uint64:
    """The number of a block's first row; where chunks are of unknown size, made of the chunk's number."""
    chunk = block.chunk["example"] + 1 if "example" in block.chunk else 0
    return np.uint64(block.origin.get("example", 0) + (chunk << 40))


def row_hashes(block: Block) -> NDArray[np.uint64]:
    """Of each row's number, (n,); no two rows have the same."""
    return _draw(_first_number(block), len(block["labels"]), 0)[1]


def _draw(first: np.uint64, n: int, level: int) -> tuple[NDArray[np.intp], NDArray[np.uint64]]:
    """Of n rows those whose hash is among the lowest 1 in 2^level, and their hashes."""
    rows, hashes = np.empty(n, np.intp), np.empty(n, np.uint64)
    drawn = _keep_lowest_hashes(first, np.uint64((1 << (64 - level)) - 1), rows, hashes)
    return rows[:drawn], hashes[:drawn]


@kernel
def _keep_lowest_hashes(first: Any, highest: Any, rows: Any, hashes: Any) -> int:
    """Numbers first, first + 1, ... mixed by the finaliser of SplitMix64."""
    drawn = 0
    for i in range(len(rows)):
        z = (first + np.uint64(i + 1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
        rows[drawn], hashes[drawn] = i, z
        drawn += z <= highest
    return drawn


@kernel
def _subtract(predictions: Any, labels: Any, out: Any) -> int:
    bad = 0
    for i in range(len(out)):
        out[i] = predictions[i] - labels[i]
        bad += not ((abs(predictions[i]) < LARGEST) & (abs(labels[i]) < LARGEST))
    if bad:
        for i in range(len(out)):
            if not ((abs(predictions[i]) < LARGEST) & (abs(labels[i]) < LARGEST)):
                return i
    return -1


@kernel
def _exp_of_minus_absolute(values: Any) -> None:
    for i in range(len(values)):
        values[i] = exp_nonpositive(-abs(values[i]))


@summing_kernel
def _moments_of(values: Any, origin: float) -> tuple[float, float, float, float]:
    """Mean less some origin, sum of squared deviations from the mean, lowest and highest of some values.

    Two walks, around the first value, so that a large mean costs no digits.
    """
    n, first = len(values), values[0]
    total, lowest, highest = 0.0, first, first
    for i in range(n):
        total += values[i] - first
        lowest, highest = min(lowest, values[i]), max(highest, values[i])
    mean = first + total / n
    squares, rest = 0.0, 0.0
    for i in range(n):
        deviation = values[i] - mean
        squares += deviation * deviation
        rest += deviation
    return (first - origin) + total / n, squares - rest * rest / n, lowest, highest


@kernel
def _add_moments(labels: Any, predictions: Any, moments: Any) -> int:
    """Add rows to the moments (2, 4) of labels and residuals, piece by piece; the index of the first bad row, or -1.

    Floor: rows read once; a piece and its residuals stay in the cache for the second walk.
    """
    residuals = np.empty(PIECE_ROWS)
    label, residual = 0.0, 0.0
    for start in range(0, len(labels), PIECE_ROWS):
        y, p = labels[start : start + PIECE_ROWS], predictions[start : start + PIECE_ROWS]
        r = residuals[: len(y)]
        bad = _subtract(p, y, r)
        if bad >= 0:
            return start + bad
        if start == 0:
            label, residual = y[0], r[0]
        _merge_moments(start, moments[0], y, label)
        _merge_moments(start, moments[1], r, residual)
    moments[0, 0] += label
    moments[1, 0] += residual
    return -1


@kernel
def _merge_moments(count: int, moments: Any, values: Any, origin: float) -> None:
    """Add values to the moments of so many others, of which the mean is less the origin, too."""
    mean, squares, lowest, highest = _moments_of(values, origin)
    delta, share = mean - moments[0], len(values) / (count + len(values))
    moments[0] += delta * share
    moments[1] += squares + delta * delta * (count * share)
    moments[2], moments[3] = min(moments[2], lowest), max(moments[3], highest)


@contracting_kernel
def _scores(distances: Any, scale: float, out: Any) -> None:
    for i in range(len(distances)):
        score = exp_nonpositive(-max(distances[i], 0.0) / scale)
        out[i] = 1.0 if distances[i] < SAME_PLACE else score


def scores_of_distances(distances: Floats, scale: float) -> Floats:
    """exp(-distance / scale), (n,), and 1 for distances below the rounding of a distance."""
    out = np.empty(len(distances))
    _scores(distances, scale, out)
    return out


def scale_of(median: float, scaled: bool) -> float:
    """What distances are divided by."""
    return max(median, SMALLEST_SCALE) if scaled else 1.0


def as_scores(values: Floats, predictions: Array) -> Array:
    """Scores of the precision of the predictions."""
    return values.astype(precision_of(predictions.dtype), copy=False)
