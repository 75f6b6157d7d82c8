"""OUTRE exactly: the mean distance of every distinct point to the k nearest of all, with bounded memory.

Points are laid out as the leaves of a k-d tree, and worked on leaf by leaf. The distance to the k-th nearest changes by
no more than the way between two places, so the distance r at the middle of a leaf brackets it for all its points: what
lies well inside r is summed without a comparison, what lies well outside is never looked at, and only a thin shell
is selected from.

Floor: a square root for each pair that is counted, n² / 2 of them where half of the points are neighbours; about 2.3
cycles each in vectors of four float64. Memory: O(n).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from labelqa_dask.core.blocks import available_cpus
from labelqa_dask.core.kernels import kernel, summing_kernel
from labelqa_dask.regression.rows import Floats, scale_of

_LEAF = 128
_LEVELS_WITHIN_LEAF = 3
_LEAVES_PER_PIECE = 8


@dataclass(frozen=True)
class Points:
    """Distinct points in the plane of label and residual, sorted by label, then residual, and how often each occurs."""

    labels: Floats
    residuals: Floats
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, labels: Floats, residuals: Floats) -> Self:
        """The distinct points among (n,) labels and residuals."""
        order = np.lexsort((residuals, labels))
        labels, residuals = labels[order] + 0.0, residuals[order] + 0.0  # -0.0 becomes 0.0
        new = np.ones(len(labels), bool)
        new[1:] = (labels[1:] != labels[:-1]) | (residuals[1:] != residuals[:-1])
        first = np.flatnonzero(new)
        return cls(labels[first], residuals[first], np.diff(first, append=len(labels)))

    def find(self, labels: Floats, residuals: Floats) -> NDArray[np.intp]:
        """Indices of the points of (n,) rows that are among them."""
        out = np.empty(len(labels), np.intp)
        _find(labels, residuals, self.labels, self.residuals, out)
        return out


@dataclass(frozen=True)
class ExactScores:
    """Distance and score of every distinct point.

    Attributes
    ----------
    points : Points
    distances : (m,) float64, mean distance in the plane of features
    scale : float, what distances are divided by
    """

    points: Points
    distances: Floats
    scale: float

    @classmethod
    def of(cls, points: Points, per_unit: Floats, frac_neighbors: float, scaled: bool) -> Self:
        """Compute the distances of points whose units have a length `per_unit` in the plane of features."""
        n = int(points.counts.sum())
        distances = mean_distances(
            (points.labels - points.labels[0]) * per_unit[0],
            (points.residuals - np.median(points.residuals)) * per_unit[1],
            points.counts.astype(np.float64),
            np.ceil(frac_neighbors * n),
        )
        return cls(points, distances, scale_of(weighted_median(distances, points.counts), scaled))

    def summary(self, tolerance: float) -> dict[str, float | int | str]:
        """What a reader should know of how distances were computed."""
        return {"neighbors": "exact", "distance_scale": self.scale, "distinct_points": len(self.distances)}

    def remarks(self, tolerance: float) -> tuple[str, ...]:
        """Nothing: the scores are exact."""
        return ()

    def groups(self) -> tuple[Floats, Floats, Floats, Floats]:
        """Labels, residuals, distances and numbers of rows of groups that make up all rows."""
        points = self.points
        return points.labels, points.residuals, self.distances, points.counts.astype(np.float64)

    def distances_of(self, labels: Floats, residuals: Floats) -> Floats:
        """Distances of (n,) rows that are among the points."""
        found: Floats = self.distances[self.points.find(labels, residuals)]
        return found


def weighted_median(values: Floats, counts: NDArray[np.int64]) -> float:
    """Median of values that occur several times each."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(counts[order])
    n = int(reached[-1])
    middle = np.searchsorted(reached, [(n - 1) // 2, n // 2], side="right")
    return float(values[order][middle].mean())


def mean_distances(x: Floats, y: Floats, weights: Floats, k: float) -> Floats:
    """Mean distance of each of m distinct points to its nearest ones that together weigh k, itself included.

    Parameters
    ----------
    x, y, weights : (m,) float64
    k : float
        At most the sum of the weights.
    """
    leaves = _leaves(x, y)
    order = leaves.ravel()
    m = len(order)
    xs, ys, ws = x[order], y[order], weights[order]
    repeated = np.flatnonzero(order == len(x) - 1)
    ws[repeated[1:]] = 0.0
    boxes = np.stack([f(v[leaves], axis=1) for v in (x, y) for f in (np.min, np.max)], axis=1)
    mass = ws.reshape(leaves.shape).sum(axis=1)
    out = np.empty(m)

    def work(first: int) -> None:
        last = min(first + _LEAVES_PER_PIECE, len(leaves))
        _distances_of_leaves(xs, ys, ws, boxes, mass, k, first, last, leaves.shape[1], out)

    with ThreadPoolExecutor(available_cpus()) as pool:
        list(pool.map(work, range(0, len(leaves), _LEAVES_PER_PIECE)))
    distances = np.empty(len(x))
    distances[order] = out
    return distances


def _leaves(x: Floats, y: Floats) -> NDArray[np.intp]:
    """Points in leaves of a k-d tree, (leaves, at most 128) indices; the last point fills what is left over."""
    m = len(x)
    depth = max(0, int(np.ceil(np.log2(m / _LEAF))))
    finer = depth + _LEVELS_WITHIN_LEAF  # so that points next to each other in a leaf are near
    order = np.minimum(np.arange(-(-m // 2**finer) << finer), m - 1)
    for level in range(finer):
        parts = order.reshape(2**level, -1)
        px, py = x[parts], y[parts]
        wide = np.ptp(px, axis=1) >= np.ptp(py, axis=1)
        half = np.argpartition(np.where(wide[:, None], px, py), parts.shape[1] // 2, axis=1)
        order = np.take_along_axis(parts, half, axis=1).ravel()
    return order.reshape(2**depth, -1)


@kernel
def _select(distance: Any, weight: Any, count: int, wanted: float) -> tuple[float, float]:
    """The distance at which the nearest reach a weight, and the sum of their distances up to exactly that weight."""
    low, high = 0, count
    total = 0.0
    while high - low > 1:
        a, b, c = distance[low], distance[(low + high) // 2], distance[high - 1]
        pivot = max(min(a, b), min(max(a, b), c))
        i, j, end = low, low, high
        mass, mass_sum, equal = 0.0, 0.0, 0.0
        while j < end:
            d, w = distance[j], weight[j]
            if d < pivot:
                distance[j], weight[j] = distance[i], weight[i]
                distance[i], weight[i] = d, w
                mass += w
                mass_sum += w * d
                i += 1
                j += 1
            elif d > pivot:
                end -= 1
                distance[j], weight[j] = distance[end], weight[end]
                distance[end], weight[end] = d, w
            else:
                equal += w
                j += 1
        if wanted <= mass:
            high = i
        elif wanted <= mass + equal or end == high:
            return pivot, total + mass_sum + (wanted - mass) * pivot
        else:
            total += mass_sum + equal * pivot
            wanted -= mass + equal
            low = end
    return distance[low], total + wanted * distance[low]


@summing_kernel
def _sum_of_run(px: float, py: float, xs: Any, ys: Any, ws: Any) -> float:
    total = 0.0
    for j in range(len(xs)):
        dx, dy = xs[j] - px, ys[j] - py
        total += ws[j] * np.sqrt(dx * dx + dy * dy)
    return total


@kernel
def _distances(px: float, py: float, xs: Any, ys: Any, out: Any) -> None:
    for j in range(len(xs)):
        dx, dy = xs[j] - px, ys[j] - py
        out[j] = np.sqrt(dx * dx + dy * dy)


@kernel
def _gap(low_a: float, high_a: float, low_b: float, high_b: float) -> float:
    return max(0.0, max(low_b - high_a, low_a - high_b))


@kernel
def _span(low_a: float, high_a: float, low_b: float, high_b: float) -> float:
    return max(abs(high_b - low_a), abs(high_a - low_b))


@kernel
def _radius_at(
    px: float, py: float, low: float, high: float, xs: Any, ys: Any, ws: Any, boxes: Any, mass: Any, k: float, room: Any
) -> float:
    """The distance at which the nearest of a place reach the weight k, known to lie between two bounds."""
    near, shell, shell_weight = room
    size = len(near)
    weight, count = 0.0, 0
    for other in range(len(boxes)):
        o = boxes[other]
        if np.hypot(_span(px, px, o[0], o[1]), _span(py, py, o[2], o[3])) < low:
            weight += mass[other]
        elif np.hypot(_gap(px, px, o[0], o[1]), _gap(py, py, o[2], o[3])) <= high:
            start = other * size
            _distances(px, py, xs[start : start + size], ys[start : start + size], near)
            for j in range(size):
                if near[j] < low:
                    weight += ws[start + j]
                elif near[j] <= high:
                    shell[count], shell_weight[count] = near[j], ws[start + j]
                    count += 1
    radius, _ = _select(shell, shell_weight, count, k - weight)
    return radius


@kernel
def _tell_apart(
    box: Any, radius: float, slack: float, boxes: Any, mass: Any, size: int, runs: Any, edge: Any
) -> tuple[int, int, float]:
    """Leaves inside the radius for every point of a box, as runs of points, and those at its edge for some."""
    n_runs, n_edge, weight = 0, 0, 0.0
    for other in range(len(boxes)):
        o = boxes[other]
        far = np.hypot(_span(box[0], box[1], o[0], o[1]), _span(box[2], box[3], o[2], o[3]))
        if far < radius - slack:
            if n_runs > 0 and runs[n_runs - 1, 1] == other * size:
                runs[n_runs - 1, 1] += size
            else:
                runs[n_runs, 0], runs[n_runs, 1] = other * size, (other + 1) * size
                n_runs += 1
            weight += mass[other]
        elif np.hypot(_gap(box[0], box[1], o[0], o[1]), _gap(box[2], box[3], o[2], o[3])) <= radius + slack:
            edge[n_edge] = other
            n_edge += 1
    return n_runs, n_edge, weight


@kernel
def _sum_of_nearest(
    px: float,
    py: float,
    low: float,
    high: float,
    runs: Any,
    inside: float,
    edge: Any,
    xs: Any,
    ys: Any,
    ws: Any,
    boxes: Any,
    mass: Any,
    k: float,
    room: Any,
) -> tuple[float, float]:
    """Sum of the distances of the nearest of a point that weigh k, and the last of them, between two bounds."""
    near, shell, shell_weight = room
    size = len(near)
    low_squared, high_squared = low * low * (1 - 1e-12), high * high * (1 + 1e-12)
    weight, total, count = inside, 0.0, 0
    for e in range(len(runs)):
        start, stop = runs[e]
        total += _sum_of_run(px, py, xs[start:stop], ys[start:stop], ws[start:stop])
    for e in range(len(edge)):
        o = boxes[edge[e]]
        start, stop = edge[e] * size, (edge[e] + 1) * size
        if _gap(px, px, o[0], o[1]) ** 2 + _gap(py, py, o[2], o[3]) ** 2 > high_squared:
            continue
        if _span(px, px, o[0], o[1]) ** 2 + _span(py, py, o[2], o[3]) ** 2 < low_squared:
            weight += mass[edge[e]]
            total += _sum_of_run(px, py, xs[start:stop], ys[start:stop], ws[start:stop])
            continue
        _distances(px, py, xs[start:stop], ys[start:stop], near)
        for j in range(size):
            if near[j] < low:
                weight += ws[start + j]
                total += ws[start + j] * near[j]
            elif near[j] <= high:
                shell[count], shell_weight[count] = near[j], ws[start + j]
                count += 1
    radius, rest = _select(shell, shell_weight, count, k - weight)
    return total + rest, radius


@kernel
def _distances_of_leaves(
    xs: Any, ys: Any, ws: Any, boxes: Any, mass: Any, k: float, first: int, last: int, size: int, out: Any
) -> None:
    m = len(xs)
    room = np.empty(size), np.empty(m), np.empty(m)
    runs, edge = np.empty((len(boxes), 2), np.int64), np.empty(len(boxes), np.int64)
    centre_x, centre_y, radius = 0.0, 0.0, np.inf
    for leaf in range(first, last):
        box = boxes[leaf]
        # The k-th distance at the middle of the leaf, bracketed by that of the leaf before.
        cx, cy = (box[0] + box[1]) / 2, (box[2] + box[3]) / 2
        low, high = 0.0, np.inf
        if radius < np.inf:
            way = np.hypot(cx - centre_x, cy - centre_y)
            margin = 1e-12 * (radius + way)
            low, high = radius - way - margin, radius + way + margin
        radius = _radius_at(cx, cy, low, high, xs, ys, ws, boxes, mass, k, room)
        centre_x, centre_y = cx, cy
        reach = np.hypot(box[1] - box[0], box[3] - box[2]) / 2
        slack = reach + 1e-12 * (radius + reach)
        n_runs, n_edge, inside = _tell_apart(box, radius, slack, boxes, mass, size, runs, edge)
        # Each point in turn; its k-th distance is bracketed by that of the middle and of the point before.
        last_x, last_y, last_radius = cx, cy, radius
        for i in range(leaf * size, (leaf + 1) * size):
            px, py = xs[i], ys[i]
            way, step = np.hypot(px - cx, py - cy), np.hypot(px - last_x, py - last_y)
            margin = 1e-12 * (radius + way)
            low = max(0.0, max(radius - way, last_radius - step) - margin)
            high = min(radius + way, last_radius + step) + margin
            total, last_radius = _sum_of_nearest(
                px, py, low, high, runs[:n_runs], inside, edge[:n_edge], xs, ys, ws, boxes, mass, k, room
            )
            last_x, last_y = px, py
            out[i] = total / k


@kernel
def _find(labels: Any, residuals: Any, point_labels: Any, point_residuals: Any, out: Any) -> None:
    for i in range(len(labels)):
        low, high = 0, len(point_labels)
        while high - low > 1:
            middle = (low + high) // 2
            after = point_labels[middle] > labels[i] or (
                point_labels[middle] == labels[i] and point_residuals[middle] > residuals[i]
            )
            if after:
                high = middle
            else:
                low = middle
        out[i] = low
