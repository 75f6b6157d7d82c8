"""Kernels of multiclass scores and predicted classes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from labelqa_dask.core.confident import FLOOR
from labelqa_dask.core.kernels import PROBABILITY_TOLERANCE, inlined, kernel, log_positive

METHODS = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")

# Floor of the kernels: n·k predictions and n labels read once, n scores written once; arithmetic of two comparisons
# and an addition per probability, and for the entropy one logarithm. Examples are taken in tiles, turned so that
# examples are next to each other: every step then vectorises over them, whatever k is.

TILE_EXAMPLES = 64
_TILE_VALUES = 1 << 14


@inlined
def _tile_length(k: int) -> int:
    return max(4, min(TILE_EXAMPLES, _TILE_VALUES // k))


@inlined
def _load(labels: Any, pred_probs: Any, start: int, m: int, sum_tolerance: float, tile: Any, total: Any) -> bool:
    """Turn m examples into a tile (k, >= m); False where one of them is invalid."""
    k = len(tile)
    for i in range(m):
        total[i] = 0.0
        for j in range(k):
            tile[j, i] = pred_probs[start + i, j]
    bad = 0
    for j in range(k):
        for i in range(m):
            p = tile[j, i]
            bad += not ((p >= -PROBABILITY_TOLERANCE) & (p <= 1 + PROBABILITY_TOLERANCE))
            total[i] += p
    for i in range(m):
        bad += not (abs(total[i] - 1) <= sum_tolerance)
        bad += (labels[start + i] < 0) | (labels[start + i] >= k)
    return bad == 0


@kernel
def add_class_means(labels: Any, pred_probs: Any, sum_tolerance: float, total: Any, count: Any) -> int:
    """Add `p[label]` of (n, k) to totals and counts (k,); returns where an invalid example is, or -1."""
    n, k = pred_probs.shape
    length = _tile_length(k)
    tile, sums = np.empty((k, length)), np.empty(length)
    for start in range(0, n, length):
        m = min(length, n - start)
        if not _load(labels, pred_probs, start, m, sum_tolerance, tile, sums):
            return start
        for i in range(m):
            label = labels[start + i]
            total[label] += tile[label, i]
            count[label] += 1
    return -1


@kernel
def score(labels: Any, pred_probs: Any, sum_tolerance: float, method: int, adjust: bool, shift: Any, out: Any) -> int:
    """Fill scores (n,) by the number of a method; returns where an invalid example is, or -1."""
    n, k = pred_probs.shape
    length = _tile_length(k)
    tile, total, given = np.empty((k, length)), np.empty(length), np.empty(length)
    for start in range(0, n, length):
        m = min(length, n - start)
        if not _load(labels, pred_probs, start, m, sum_tolerance, tile, total):
            return start
        if adjust:
            _adjust(tile, m, shift, total)
        for i in range(m):
            given[i] = tile[labels[start + i], i]
        scores = out[start : start + m]
        if method == 0:
            for i in range(m):
                scores[i] = given[i]
        elif method == 1:
            _normalized_margin(tile, m, labels[start : start + m], given, total, scores)
        else:
            _confidence_weighted_entropy(tile, m, given, total, scores)
    return -1


@kernel
def predict(pred_probs: Any, predicted: Any, confidence: Any) -> None:
    """Most probable class of each example, the first of equal ones, and its probability."""
    n, k = pred_probs.shape
    length = _tile_length(k)
    tile = np.empty((k, length), pred_probs.dtype)
    best, arg = np.empty(length, pred_probs.dtype), np.empty(length, np.int32)
    for start in range(0, n, length):
        m = min(length, n - start)
        for i in range(m):
            for j in range(k):
                tile[j, i] = pred_probs[start + i, j]
            best[i], arg[i] = tile[0, i], 0
        for j in range(1, k):
            for i in range(m):
                higher = tile[j, i] > best[i]
                best[i] = tile[j, i] if higher else best[i]
                arg[i] = j if higher else arg[i]
        for i in range(m):
            predicted[start + i], confidence[start + i] = arg[i], best[i]


@inlined
def _adjust(tile: Any, m: int, shift: Any, total: Any) -> None:
    for i in range(m):
        total[i] = 0.0
    for j in range(len(tile)):
        for i in range(m):
            tile[j, i] += shift[j]
            total[i] += tile[j, i]
    for j in range(len(tile)):
        for i in range(m):
            tile[j, i] /= total[i]


@inlined
def _normalized_margin(tile: Any, m: int, labels: Any, given: Any, highest: Any, scores: Any) -> None:
    for i in range(m):
        tile[labels[i], i] = -np.inf
        highest[i] = -np.inf
    for j in range(len(tile)):
        for i in range(m):
            highest[i] = max(highest[i], tile[j, i])
    for i in range(m):
        scores[i] = (given[i] - highest[i] + 1) / 2


@inlined
def _confidence_weighted_entropy(tile: Any, m: int, given: Any, entropy: Any, scores: Any) -> None:
    for i in range(m):
        entropy[i] = 0.0
    for j in range(len(tile)):
        for i in range(m):
            p = min(max(tile[j, i], 0.0), 1.0)
            entropy[i] -= p * log_positive(p)
    unit = math.log(len(tile))
    for i in range(m):
        weighted = entropy[i] / unit / max(given[i], FLOOR)
        scores[i] = log_positive(weighted + 1) / max(weighted, FLOOR)
