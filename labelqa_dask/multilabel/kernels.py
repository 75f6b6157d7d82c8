"""Compiled kernels of multilabel scores.

Floor: n·k predictions and n·k labels (or the ids of the classes that apply) read once, n scores, or n·k, written once;
arithmetic of two comparisons and a selection per probability, for the entropy three logarithms, and the aggregation.

Examples are taken in tiles. A tile is scored as one long vector, whatever k is: what belongs to a class is repeated
for each of its examples. Up to 64 classes, it is then turned so that examples are next to each other, and sorted by a
network of minima and maxima, which has no branches and vectorises over the examples. Above that, the moving average
keeps only the lowest scores of each example: they carry all of the weight that a float64 can show.

Axes: n = examples, k = classes. Labels are `given` (n, k), or, where that is empty, the rows of a `LabelSets`.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelqa_dask.core.kernels import (
    PROBABILITY_TOLERANCE,
    contracting_kernel,
    exp_nonpositive,
    inlined,
    kernel,
    log_positive,
    summing_kernel,
)

FLOOR = 1e-6
SELF_CONFIDENCE, ENTROPY = 0, 1
NOTHING, MOVING_AVERAGE, SOFTMIN = 0, 1, 2

LANES = 64
MOST_SELECTED = 64
_TILE_VALUES = 1 << 12
_NEGLIGIBLE = 2.0**-60
_PER_LN_2 = 1 / math.log(2.0)


def selected(k: int, alpha: float) -> int:
    """How many of the lowest of k scores decide the moving average: the others together weigh less than 2^-60."""
    if alpha in (0, 1):
        return 1 if alpha else k
    return min(k, 1 + math.ceil(math.log(_NEGLIGIBLE) / math.log1p(-alpha)))


def must_sort(k: int, alpha: float) -> bool:
    """Whether a moving average needs rows that are sorted before, as the weights fall too slowly to select."""
    return k > LANES and selected(k, alpha) > MOST_SELECTED


@cache
def network(k: int) -> NDArray[np.int64]:
    """Pairs of rows (c, 2) whose exchange, one after the other, sorts k values: Batcher's merge exchange.

    Source: Knuth, The Art of Computer Programming, volume 3, algorithm 5.2.2M.
    """
    pairs: list[tuple[int, int]] = []
    top = 1 << max(0, (k - 1).bit_length() - 1)
    p = top
    while p > 0:
        q, r, d = top, 0, p
        while True:
            pairs += [(i, i + d) for i in range(k - d) if i & p == r]
            if q == p:
                break
            d, q, r = q - p, q // 2, p
        p //= 2
    return np.array(pairs, np.int64).reshape(-1, 2)


@inlined
def _tile_length(k: int) -> int:
    return max(1, min(LANES, _TILE_VALUES // k))


@inlined
def _load(
    given: Any, starts: Any, classes: Any, pred_probs: Any, start: int, m: int, positive: Any, scores: Any
) -> bool:
    """Labels (m * k) and self-confidence (m * k) of m examples; False where something is invalid."""
    k = pred_probs.shape[1]
    bad = 0
    if given.shape[1] > 0:
        flat = given[start : start + m].reshape(m * k)
        for j in range(m * k):
            bad += (flat[j] != 0) & (flat[j] != 1)
            positive[j] = flat[j]
    else:
        for j in range(m * k):
            positive[j] = 0
        for i in range(m):
            for e in range(starts[start + i], starts[start + i + 1]):
                positive[i * k + classes[e]] = 1
    probs = pred_probs[start : start + m].reshape(m * k)
    for j in range(m * k):
        p = np.float64(probs[j])
        bad += not ((p >= -PROBABILITY_TOLERANCE) & (p <= 1 + PROBABILITY_TOLERANCE))
        scores[j] = p if positive[j] else 1 - p
    return bad == 0


@kernel
def score(
    given: Any,
    starts: Any,
    classes: Any,
    pred_probs: Any,
    method: int,
    shift: Any,
    scale: Any,
    aggregator: int,
    alpha: float,
    temperature: float,
    pairs: Any,
    lowest: Any,
    class_scores: Any,
    out: Any,
) -> int:
    """Score examples; the index of one at or shortly before the first invalid one, or -1.

    `shift` (k, 2) and `scale` (k,) adjust probabilities, and are empty where they are not; `pairs` and `lowest` are
    what aggregating needs; `class_scores` (n, k) and `out` (n,) are written unless they are empty.
    """
    n, k = pred_probs.shape
    length = _tile_length(k)
    positive, scores = np.empty(length * k, np.uint8), np.empty(length * k)
    adjust = len(scale) > 0
    shifts, scales = np.empty((2, length * k if adjust else 0)), np.empty(length * k if adjust else 0)
    for j in range(len(scales)):
        shifts[0, j], shifts[1, j], scales[j] = shift[j % k, 0], shift[j % k, 1], scale[j % k]
    lanes = np.empty((k if k <= LANES else 0, LANES))
    for start in range(0, n, length):
        m = min(length, n - start)
        if not _load(given, starts, classes, pred_probs, start, m, positive, scores):
            return start
        if adjust:
            for j in range(m * k):
                scores[j] = (scores[j] + (shifts[1, j] if positive[j] else shifts[0, j])) * scales[j]
        if method == ENTROPY:
            _weigh_by_entropy(pred_probs[start : start + m].reshape(m * k), scores[: m * k])
        if len(class_scores) > 0:
            kept = class_scores[start : start + m].reshape(m * k)
            for j in range(m * k):
                kept[j] = scores[j]
        if aggregator != NOTHING:
            rows = scores[: m * k].reshape(m, k)
            _aggregate(rows, aggregator, alpha, temperature, pairs, lowest, lanes, out[start : start + m])
    return -1


@contracting_kernel
def _weigh_by_entropy(probs: Any, scores: Any) -> None:
    """Replace self-confidence (m * k) by confidence-weighted entropy."""
    for j in range(len(scores)):
        p = min(max(np.float64(probs[j]), 0.0), 1.0)
        entropy = -(p * log_positive(p) + (1 - p) * log_positive(1 - p)) * _PER_LN_2
        weighted = entropy / max(scores[j], FLOOR)
        scores[j] = log_positive(weighted + 1) / max(weighted, FLOOR)


@kernel
def aggregate(
    scores: Any, aggregator: int, alpha: float, temperature: float, pairs: Any, lowest: Any, out: Any
) -> None:
    """Aggregate given scores (n, k), NaN where one of an example's is."""
    n, k = scores.shape
    length = _tile_length(k)
    tile, lanes = np.empty((length, k)), np.empty((k if k <= LANES else 0, LANES))
    for start in range(0, n, length):
        m = min(length, n - start)
        tile[:m] = scores[start : start + m]
        _aggregate(tile[:m], aggregator, alpha, temperature, pairs, lowest, lanes, out[start : start + m])
        for i in range(m):
            for j in range(k):
                if np.isnan(tile[i, j]):
                    out[start + i] = np.nan


@inlined
def _aggregate(
    rows: Any, aggregator: int, alpha: float, temperature: float, pairs: Any, lowest: Any, lanes: Any, out: Any
) -> None:
    m, k = rows.shape
    if k <= LANES:
        for i in range(m):
            for j in range(k):
                lanes[j, i] = rows[i, j]
        if aggregator == MOVING_AVERAGE:
            _average_lanes(lanes, m, alpha, pairs, out)
        else:
            _softmin_lanes(lanes, m, temperature, out)
    else:
        for i in range(m):
            if aggregator == MOVING_AVERAGE:
                out[i] = _average_row(rows[i], alpha, lowest)
            else:
                out[i] = _softmin_row(rows[i], temperature)


@kernel
def _average_lanes(lanes: Any, m: int, alpha: float, pairs: Any, out: Any) -> None:
    for c in range(len(pairs)):
        low, high = lanes[pairs[c, 0]], lanes[pairs[c, 1]]
        for i in range(LANES):
            a, b = low[i], high[i]
            low[i] = a if a < b else b
            high[i] = b if a < b else a
    average = lanes[len(lanes) - 1]
    for j in range(len(lanes) - 2, -1, -1):
        for i in range(LANES):
            average[i] = alpha * lanes[j, i] + (1 - alpha) * average[i]
    for i in range(m):
        out[i] = average[i]


@kernel
def _softmin_lanes(lanes: Any, m: int, temperature: float, out: Any) -> None:
    lowest, total, weight = np.empty(LANES), np.zeros(LANES), np.zeros(LANES)
    for i in range(LANES):
        lowest[i] = lanes[0, i]
    for j in range(1, len(lanes)):
        for i in range(LANES):
            lowest[i] = lanes[j, i] if lanes[j, i] < lowest[i] else lowest[i]
    for j in range(len(lanes)):
        for i in range(LANES):
            e = exp_nonpositive((lowest[i] - lanes[j, i]) / temperature)
            total[i] += lanes[j, i] * e
            weight[i] += e
    for i in range(m):
        out[i] = total[i] / weight[i]


@kernel
def _average_row(row: Any, alpha: float, lowest: Any) -> float:
    """The moving average of a row, of which the lowest scores are put in order in `lowest`."""
    last = len(lowest) - 1
    for j in range(len(row)):
        if j <= last or row[j] < lowest[last]:
            at = min(j, last)
            while at > 0 and lowest[at - 1] > row[j]:
                lowest[at] = lowest[at - 1]
                at -= 1
            lowest[at] = row[j]
    average = lowest[last]
    for j in range(last - 1, -1, -1):
        average = alpha * lowest[j] + (1 - alpha) * average
    return average


@summing_kernel
def _softmin_row(row: Any, temperature: float) -> float:
    lowest = row.min()
    total, weight = 0.0, 0.0
    for j in range(len(row)):
        e = exp_nonpositive((lowest - row[j]) / temperature)
        total += row[j] * e
        weight += e
    return total / weight


@kernel
def average_sorted(scores: Any, alpha: float, out: Any) -> None:
    """The moving average of rows (n, k) in ascending order."""
    n, k = scores.shape
    for i in range(n):
        average = np.float64(scores[i, k - 1])
        for j in range(k - 2, -1, -1):
            average = alpha * scores[i, j] + (1 - alpha) * average
        out[i] = average


@kernel
def add_class_means(given: Any, starts: Any, classes: Any, pred_probs: Any, count: Any, total: Any) -> int:
    """Add the number (k, 2) and the sum (k, 2) of the self-confidence of examples without and with each class."""
    n, k = pred_probs.shape
    length = _tile_length(k)
    positive, scores = np.empty(length * k, np.uint8), np.empty(length * k)
    counts, totals = np.zeros(length * k, np.int64), np.zeros((2, length * k))
    for start in range(0, n, length):
        m = min(length, n - start)
        if not _load(given, starts, classes, pred_probs, start, m, positive, scores):
            return start
        for j in range(m * k):
            counts[j] += positive[j]
            totals[0, j] += 0.0 if positive[j] else scores[j]
            totals[1, j] += scores[j] if positive[j] else 0.0
    for j in range(length * k):
        count[j % k, 1] += counts[j]
        total[j % k, 0] += totals[0, j]
        total[j % k, 1] += totals[1, j]
    for j in range(k):
        count[j, 0] += n - count[j, 1]
    return -1


@kernel
def add_class_issues(given: Any, starts: Any, classes: Any, pred_probs: Any, least: Any, count: Any) -> int:
    """Add the number (k, 2) of examples without and with each class that confidently belong to the other side.

    `least` (k, 2) is the least probability of not having and of having a class that counts as confident.
    """
    n, k = pred_probs.shape
    length = _tile_length(k)
    positive, scores = np.empty(length * k, np.uint8), np.empty(length * k)
    counts, needed = np.zeros((2, length * k), np.int64), np.empty((2, length * k))
    for j in range(length * k):
        needed[0, j], needed[1, j] = least[j % k, 1], least[j % k, 0]
    for start in range(0, n, length):
        m = min(length, n - start)
        if not _load(given, starts, classes, pred_probs, start, m, positive, scores):
            return start
        for j in range(m * k):
            other = 1 - scores[j]
            counts[0, j] += (positive[j] == 0) & (other > scores[j]) & (other >= needed[0, j])
            counts[1, j] += (positive[j] == 1) & (other >= scores[j]) & (other >= needed[1, j])
    for j in range(length * k):
        count[j % k, 0] += counts[0, j]
        count[j % k, 1] += counts[1, j]
    return -1


@kernel
def add_class_scores(given: Any, starts: Any, classes: Any, scores: Any, count: Any, total: Any) -> None:
    """Add the number (k,) of examples that have each class, and the sum (k,) of their scores (n, k) for it."""
    n, k = scores.shape
    if given.shape[1] > 0:
        for i in range(n):
            for j in range(k):
                count[j] += given[i, j]
                total[j] += scores[i, j] if given[i, j] else 0.0
    else:
        for i in range(n):
            for e in range(starts[i], starts[i + 1]):
                count[classes[e]] += 1
                total[classes[e]] += scores[i, classes[e]]
