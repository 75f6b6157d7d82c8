"""OUTRE by approximate nearest neighbours (pynndescent), and how far that is from the exact scores.

Against a share of all rows: an index of a reference sample, the rows with the lowest hashes of their numbers, answers
for every row which k = ceil(frac_neighbors · sample) of the sample are nearest. The sample's own chance is most of the
error, about 1 / sqrt(k) of a distance.

Against a fixed number of rows, a local score: all rows are cut into shards of the plane, halves of halves, each of
which is indexed with what lies around it and answers for its own rows. The rows themselves are held, the index of
only one shard at a time.

The index works in float32 and finds distinct places; their distances are computed anew in float64, nearest first, up to
exactly the weight k, so what was found tells the score, whatever else was asked at the same time.

pynndescent is imported here alone, when it is used: its kernels take up to a minute to compile in each process.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from threading import Lock
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from labelqa_dask.core.extras import import_extra
from labelqa_dask.core.kernels import kernel
from labelqa_dask.regression.exact import ExactScores, Points, weighted_median
from labelqa_dask.regression.rows import Floats, Rows, features_per_unit, scale_of, scores_of_distances

REFERENCE_ROWS = 2048
_CHECKS = 256
_FEW_POINTS = 256
_SHARD_EDGES = 1 << 22
_LARGEST_SHARD = 1 << 17
_QUERIES_PER_PIECE = 256

Ints = NDArray[np.intp]

# Kernels of pynndescent run on numba's threads, which not every threading layer lets two callers use at once.
_one_at_a_time = Lock()


def is_installed() -> bool:
    """Whether pynndescent can be imported."""
    return find_spec("pynndescent") is not None


class Index:
    """Finds the k nearest of some distinct places; where these are few, all are compared.

    The graph that is searched joins each place to as many: with fewer, what lies in clusters would fall apart, and no
    search get from one to the next.

    Parameters
    ----------
    x, y : (m,) float64
    k : int
    """

    def __init__(self, x: Floats, y: Floats, k: int) -> None:
        self._x, self._y, self._k = x, y, k

    def __reduce__(self) -> tuple[Any, ...]:
        return Index, (self._x, self._y, self._k)

    def nearest(self, x: Floats, y: Floats) -> Ints:
        """Of each of n places the k nearest, (n, k) indices in no order, -1 where one was not found."""
        if self._compares_all:
            return self._everything(len(x))
        places = np.stack([x, y], axis=1).astype(np.float32)
        found = np.empty((len(x), self._k), np.intp)
        with _one_at_a_time:
            for i in range(len(x)):  # one by one, as the search draws random numbers in the order of what is asked
                found[i] = self._searchable.query(places[i : i + 1], k=self._k)[0]
        return found

    def nearest_of_first(self, n: int) -> Ints:
        """The same for the first n of its own places, each among its own nearest."""
        if self._compares_all:
            return self._everything(n)
        with _one_at_a_time:
            graph: Ints = self._built.neighbor_graph[0][:n]
        return graph

    @property
    def _compares_all(self) -> bool:
        return len(self._x) <= max(_FEW_POINTS, self._k)

    def _everything(self, n: int) -> Ints:
        return np.tile(np.arange(len(self._x)), (n, 1))

    @cached_property
    def _searchable(self) -> Any:
        self._built.prepare()
        return self._built

    @cached_property
    def _built(self) -> Any:
        pynndescent = import_extra("pynndescent", "pynndescent", "neighbors")
        places = np.stack([self._x, self._y], axis=1).astype(np.float32)
        with warnings.catch_warnings():
            # What was not found shows in the recall, and is searched for among all.
            warnings.filterwarnings("ignore", message="Failed to correctly find n_neighbors")
            return pynndescent.NNDescent(places, n_neighbors=self._k, random_state=0)


@dataclass(frozen=True)
class Checked:
    """How found neighbours and scores compare with exact ones, at some rows.

    Attributes
    ----------
    rows : int
    recall : float
        The share of the nearest neighbours that was found.
    largest_error, mean_error : float
        Of a score.
    """

    rows: int
    recall: float
    largest_error: float
    mean_error: float

    @classmethod
    def of(cls, recall: Floats, scores: Floats, exact: Floats) -> Self:
        """From recall and scores at (n,) rows."""
        errors = np.abs(scores - exact)
        return cls(len(errors), float(recall.mean()), float(errors.max()), float(errors.mean()))

    def summary(self) -> dict[str, float | int | str]:
        """What a reader should know of it."""
        return {
            "recall": self.recall,
            "largest_error": self.largest_error,
            "mean_error": self.mean_error,
            "rows_compared": self.rows,
        }

    def remarks(self, tolerance: float) -> tuple[str, ...]:
        """That scores are further from exact ones than is tolerated, where they are."""
        if self.largest_error <= tolerance:
            return ()
        return (
            f"Scores were off by up to {self.largest_error:.1g} at the {self.rows} rows that were compared with exact "
            f"ones, more than the tolerance of {tolerance:g}: neighbours were approximate.",
        )


class Truth(Protocol):
    """Distances that the sampled ones are compared with: exact, or those of the field."""

    @property
    def scale(self) -> float: ...
    def distances_of(self, labels: Floats, residuals: Floats) -> Floats: ...
    def groups(self) -> tuple[Floats, Floats, Floats, Floats]: ...


@dataclass(frozen=True)
class SampledDistances:
    """Distances to the nearest of a reference sample.

    Attributes
    ----------
    points : Points of the sample
    per_unit : (2,) float64
        Length of a unit of label and residual in the plane of features.
    k : int
        Neighbours.
    scale : float, what distances are divided by
    checked : Checked
    truth : what they were compared with
    """

    points: Points
    per_unit: Floats
    k: int
    scale: float
    checked: Checked
    truth: Truth

    @classmethod
    def of(
        cls, rows: Rows, truth: Truth, residual_scale: float, frac_neighbors: float, scaled: bool
    ) -> SampledDistances:
        """From a sample of all rows, of which those with the lowest hashes are the reference."""
        by_hash = np.argsort(rows.hashes)
        reference, others = by_hash[:REFERENCE_ROWS], by_hash[REFERENCE_ROWS:]
        points = Points.of(rows.labels[reference], rows.residuals[reference])
        k = int(np.ceil(frac_neighbors * len(reference)))
        per_unit = features_per_unit(rows.deviation, residual_scale)
        unscaled = cls(points, per_unit, k, 1.0, Checked(0, 1.0, 0.0, 0.0), truth)
        median = weighted_median(unscaled.distances_of(points.labels, points.residuals), points.counts)
        scale = scale_of(median, scaled)
        compared = (others if len(others) else reference)[:_CHECKS]
        labels, residuals = rows.labels[compared], rows.residuals[compared]
        distances, recall = unscaled._compared(labels, residuals)
        exact = scores_of_distances(truth.distances_of(labels, residuals), truth.scale)
        checked = Checked.of(recall, scores_of_distances(distances, scale), exact)
        return cls(points, per_unit, k, scale, checked, truth)

    def distances_of(self, labels: Floats, residuals: Floats) -> Floats:
        """Distances of (n,) rows."""
        x, y = self._features(labels, residuals)
        out = np.empty(len(labels))
        for start in range(0, len(labels), _QUERIES_PER_PIECE):
            piece = slice(start, start + _QUERIES_PER_PIECE)
            found = self._index.nearest(x[piece], y[piece])
            out[piece] = _means_of_nearest(x[piece], y[piece], found, *self._places, self.k)
        return out

    def summary(self, tolerance: float) -> dict[str, float | int | str]:
        """What a reader should know of how distances were computed."""
        return {
            "neighbors": "pynndescent",
            "distance_scale": self.scale,
            "reference_rows": int(self.points.counts.sum()),
            "n_neighbors": self.k,
            **self.checked.summary(),
        }

    def remarks(self, tolerance: float) -> tuple[str, ...]:
        """That the tolerance was missed, where it was."""
        return self.checked.remarks(tolerance)

    def groups(self) -> tuple[Floats, Floats, Floats, Floats]:
        """Labels, residuals, distances and numbers of rows of groups that make up all rows."""
        return self.truth.groups()

    def _features(self, labels: Floats, residuals: Floats) -> tuple[Floats, Floats]:
        centre = self.points.labels[0], np.median(self.points.residuals)
        return (labels - centre[0]) * self.per_unit[0], (residuals - centre[1]) * self.per_unit[1]

    @cached_property
    def _places(self) -> tuple[Floats, Floats, Floats]:
        x, y = self._features(self.points.labels, self.points.residuals)
        return x, y, self.points.counts.astype(np.float64)

    @cached_property
    def _index(self) -> Index:
        return Index(*self._places[:2], self.k)

    def _compared(self, labels: Floats, residuals: Floats) -> tuple[Floats, Floats]:
        x, y = self._features(labels, residuals)
        found = self._index.nearest(x, y)
        distances, _, recall = _comparison(x, y, found, *self._places, self.k)
        return distances, recall


@dataclass(frozen=True)
class Shards:
    """All rows, as distinct points in the plane of features, cut into shards.

    Attributes
    ----------
    points : Points
    x, y : (m,) float64
    n_neighbors : int
    scaled : bool
        Whether distances are divided by their median.
    shards : the points of each
    owners : (shards,) uint64
        Hash of a row for each shard: who reads that row works on the shard.
    checks : indices of the points at which neighbours are compared with exact ones
    """

    points: Points
    x: Floats
    y: Floats
    n_neighbors: int
    scaled: bool
    shards: tuple[Ints, ...]
    owners: NDArray[np.uint64]
    checks: Ints

    @classmethod
    def of(cls, rows: Rows, residual_scale: float, n_neighbors: int, scaled: bool) -> Self:
        """Shards of all rows."""
        points = Points.of(rows.labels, rows.residuals)
        per_unit = features_per_unit(rows.deviation, residual_scale)
        x = (points.labels - points.labels[0]) * per_unit[0]
        y = (points.residuals - np.median(points.residuals)) * per_unit[1]
        k = min(n_neighbors, rows.count)
        largest = max(4 * k, min(_LARGEST_SHARD, _SHARD_EDGES // k))
        shards = tuple(_halved(x, y, np.arange(len(x)), largest))
        by_hash = np.argsort(rows.hashes)
        compared = by_hash[:_CHECKS]
        checks = np.unique(points.find(rows.labels[compared], rows.residuals[compared]))
        return cls(points, x, y, k, scaled, shards, rows.hashes[by_hash[: len(shards)]], checks)

    def work_on(self, shard: int) -> LocalDistances:
        """The distances of the points of one shard."""
        own = self.shards[shard]
        reference = np.concatenate([own, self._around(own)])
        x, y, weights = self.x[reference], self.y[reference], self.points.counts[reference].astype(np.float64)
        found = Index(x, y, self.n_neighbors).nearest_of_first(len(own))
        distances = _means_of_nearest(self.x[own], self.y[own], found, x, y, weights, self.n_neighbors)
        checked = np.flatnonzero(np.isin(own, self.checks))
        _, exact, recall = _comparison(
            self.x[own[checked]],
            self.y[own[checked]],
            np.where(found[checked] < 0, -1, reference[found[checked]]),
            self.x,
            self.y,
            self.points.counts.astype(np.float64),
            self.n_neighbors,
        )
        return LocalDistances(
            self.points.labels[own],
            self.points.residuals[own],
            self.points.counts[own],
            distances,
            np.stack([distances[checked], exact, recall], axis=1),
            np.ones(1, np.int64),
        )

    def no_work(self) -> LocalDistances:
        """Of a block that owns no shard."""
        nothing = np.empty(0)
        counts = np.empty(0, np.int64)
        return LocalDistances(nothing, nothing, counts, nothing, np.empty((0, 3)), np.zeros(1, np.int64))

    def _around(self, own: Ints) -> Ints:
        """Other points within half the extent of a shard, the nearest first, no more than it has itself."""
        away = []
        near = np.ones(len(self.x), bool)
        near[own] = False
        for values in (self.x, self.y):
            low, high = values[own].min(), values[own].max()
            gap = np.maximum(np.maximum(low - values, values - high), 0.0)
            near &= gap <= (high - low) / 2
            away.append(gap)
        outside = np.flatnonzero(near)
        return outside[np.argsort(np.hypot(away[0][outside], away[1][outside]), kind="stable")[: len(own)]]


@dataclass(frozen=True)
class LocalDistances:
    """Distances to a fixed number of neighbours, of some distinct points: a mergeable state.

    Attributes
    ----------
    labels, residuals, distances : (m,) float64
    counts : (m,) int64
    checked : (c, 3) float64
        Found and exact distance, and recall, of the points that were compared.
    shards : (1,) int64
    """

    labels: Floats
    residuals: Floats
    counts: NDArray[np.int64]
    distances: Floats
    checked: Floats
    shards: NDArray[np.int64]

    def merge(self, other: Self) -> Self:
        joined: dict[str, Any] = {
            name: np.concatenate([getattr(self, name), getattr(other, name)])
            for name in ("labels", "residuals", "counts", "distances", "checked")
        }
        return type(self)(**joined, shards=self.shards + other.shards)

    def result(self) -> Self:
        return self


@dataclass(frozen=True)
class LocalScores:
    """Distance and score of every distinct point, from a fixed number of neighbours.

    Attributes
    ----------
    of_points : ExactScores, as far as the index has found the neighbours
    n_neighbors, shards : int
    checked : Checked
    """

    of_points: ExactScores
    n_neighbors: int
    shards: int
    checked: Checked

    @classmethod
    def of(cls, found: LocalDistances, n_neighbors: int, scaled: bool) -> Self:
        """From the distances of all points, in any order."""
        order = np.lexsort((found.residuals, found.labels))
        points = Points(found.labels[order], found.residuals[order], found.counts[order])
        distances = found.distances[order]
        scale = scale_of(weighted_median(distances, points.counts), scaled)
        near, exact, recall = found.checked[np.lexsort(found.checked.T)].T.copy()
        checked = Checked.of(recall, scores_of_distances(near, scale), scores_of_distances(exact, scale))
        return cls(ExactScores(points, distances, scale), n_neighbors, int(found.shards[0]), checked)

    @property
    def scale(self) -> float:
        """What distances are divided by."""
        return self.of_points.scale

    def distances_of(self, labels: Floats, residuals: Floats) -> Floats:
        """Distances of (n,) rows."""
        return self.of_points.distances_of(labels, residuals)

    def summary(self, tolerance: float) -> dict[str, float | int | str]:
        """What a reader should know of how distances were computed."""
        return {
            "neighbors": "pynndescent",
            "distance_scale": self.scale,
            "n_neighbors": self.n_neighbors,
            "shards": self.shards,
            **self.checked.summary(),
        }

    def remarks(self, tolerance: float) -> tuple[str, ...]:
        """That the tolerance was missed, where it was."""
        return self.checked.remarks(tolerance)

    def groups(self) -> tuple[Floats, Floats, Floats, Floats]:
        """Labels, residuals, distances and numbers of rows of groups that make up all rows."""
        return self.of_points.groups()


def _halved(x: Floats, y: Floats, points: Ints, most: int) -> list[Ints]:
    """Points in parts of at most so many, each half of a part cut across its longer side."""
    if len(points) <= most:
        return [points]
    values = x[points] if np.ptp(x[points]) >= np.ptp(y[points]) else y[points]
    half = np.argpartition(values, len(points) // 2)
    sides = (np.sort(points[side]) for side in np.split(half, [len(points) // 2]))
    return [part for side in sides for part in _halved(x, y, side, most)]


def _comparison(
    px: Floats, py: Floats, found: Ints, x: Floats, y: Floats, weights: Floats, k: int
) -> tuple[Floats, Floats, Floats]:
    """At n places the distances from what was found and from all points, and the share of the nearest found."""
    distances = _means_of_nearest(px, py, found, x, y, weights, k)
    exact, recall = np.empty(len(px)), np.empty(len(px))
    _compare_with_all(px, py, found, x, y, weights, float(k), exact, recall)
    return distances, exact, recall


def _means_of_nearest(px: Floats, py: Floats, found: Ints, x: Floats, y: Floats, weights: Floats, k: int) -> Floats:
    out = np.empty(len(px))
    _average_nearest(px, py, found, x, y, weights, float(k), out)
    return out


@kernel
def _distances_to(px: float, py: float, chosen: Any, x: Any, y: Any) -> Any:
    """Distances from a place to some points, without those that are not there, and their indices."""
    distances, indices = np.empty(len(chosen)), np.empty(len(chosen), np.int64)
    count = 0
    for i in chosen:
        if i >= 0:
            distances[count], indices[count] = np.hypot(x[i] - px, y[i] - py), i
            count += 1
    return distances[:count], indices[:count]


@kernel
def _nearest_sum(distances: Any, indices: Any, weights: Any, k: float) -> tuple[float, float, float]:
    """Sum of the distances of the nearest that together weigh k, the weight reached, and the last distance."""
    total, reached, last = 0.0, 0.0, 0.0
    for j in np.argsort(distances):
        weight = min(weights[indices[j]], k - reached)
        total += weight * distances[j]
        reached += weight
        last = distances[j]
        if reached >= k:
            break
    return total, reached, last


@kernel
def _average_nearest(px: Any, py: Any, found: Any, x: Any, y: Any, weights: Any, k: float, out: Any) -> None:
    everything = np.arange(len(x))
    for i in range(len(px)):
        distances, indices = _distances_to(px[i], py[i], found[i], x, y)
        total, reached, _ = _nearest_sum(distances, indices, weights, k)
        if reached < k:
            distances, indices = _distances_to(px[i], py[i], everything, x, y)
            total, reached, _ = _nearest_sum(distances, indices, weights, k)
        out[i] = total / reached


@kernel
def _compare_with_all(
    px: Any, py: Any, found: Any, x: Any, y: Any, weights: Any, k: float, exact: Any, recall: Any
) -> None:
    everything = np.arange(len(x))
    for i in range(len(px)):
        distances, indices = _distances_to(px[i], py[i], everything, x, y)
        total, reached, last = _nearest_sum(distances, indices, weights, k)
        exact[i] = total / reached
        distances, indices = _distances_to(px[i], py[i], found[i], x, y)
        within = 0.0
        for j in range(len(distances)):
            if distances[j] <= last:
                within += weights[indices[j]]
        recall[i] = min(within / reached, 1.0)
