"""Kernels of segmentation: scores and predicted classes of pixels, soft minima, and cells of pixels."""

from __future__ import annotations

from typing import Any

import numpy as np

from labelqa_dask.core.kernels import PROBABILITY_TOLERANCE, exp_nonpositive, inlined, kernel, summing_kernel

# Floor: n·k·h·w predictions and n·h·w labels read once, n·h·w scores written once; arithmetic of two comparisons per
# probability for the check, a comparison and two selections for the predicted class, and one exponential per pixel for
# the soft minimum. Pixels are taken in strips whose probabilities of all classes stay in the cache between the check
# and the search for the highest, which read along each class, and the gather, which reads across them.

_STRIP_BYTES = 1 << 18


@kernel
def inspect(
    labels: Any,
    pred_probs: Any,
    ignores: bool,
    ignored: int,
    check: bool,
    predict: bool,
    scores: Any,
    predicted: Any,
    confidence: Any,
) -> int:
    """Fill scores (n, h, w), NaN where ignored, and, to `predict`, the most probable classes and their probabilities.

    Returns the index of an image with a label or, to `check`, a probability that is not valid, or -1.
    """
    n, k, h, w = pred_probs.shape
    size = h * w
    strip = max(64, _STRIP_BYTES // (k * pred_probs.itemsize))
    for i in range(n):
        given, probs, out = labels[i].reshape(size), pred_probs[i].reshape(k, size), scores[i].reshape(size)
        for start in range(0, size, strip):
            stop = min(start + strip, size)
            if check and not _valid_strip(given, probs, start, stop, ignores, ignored):
                return i
            if predict:
                best, arg = confidence[i].reshape(size)[start:stop], predicted[i].reshape(size)[start:stop]
                best[:], arg[:] = probs[0, start:stop], 0
                for c in range(1, k):
                    _take_higher(probs[c, start:stop], c, best, arg)
            part, strip_probs, strip_scores = given[start:stop], probs[:, start:stop], out[start:stop]
            for j in range(len(part)):
                label = part[j]
                if ignores and label == ignored:
                    strip_scores[j] = np.nan
                    continue
                if label < 0 or label >= k:
                    return i
                score = strip_probs[label, j]
                strip_scores[j] = score
                if check and score == 0 and _never_written(strip_probs, j):
                    return i
    return -1


@kernel
def _take_higher(probs: Any, c: int, best: Any, arg: Any) -> None:
    """Where a class is more probable than those before, take it; without a branch, so that it vectorises."""
    number = np.int32(c)
    for j in range(len(probs)):
        higher = probs[j] > best[j]
        best[j] = probs[j] if higher else best[j]
        arg[j] = number if higher else arg[j]


@kernel
def _valid_strip(given: Any, probs: Any, start: int, stop: int, ignores: bool, ignored: int) -> bool:
    """Whether all probabilities of pixels that are not ignored lie in [0, 1]."""
    for c in range(len(probs)):
        if not _valid(probs[c, start:stop]):
            for j in range(start, stop):
                if not (ignores and given[j] == ignored) and not _valid(probs[c, j : j + 1]):
                    return False
    return True


@inlined
def _valid(probs: Any) -> bool:
    """Whether all of (m,) lie in [0, 1]; without a branch, so that it vectorises."""
    low = probs.dtype.type(-PROBABILITY_TOLERANCE)
    high = probs.dtype.type(1 + PROBABILITY_TOLERANCE)
    bad = 0
    for j in range(len(probs)):
        bad += not ((probs[j] >= low) & (probs[j] <= high))
    return bad == 0


@kernel
def _never_written(probs: Any, j: int) -> bool:
    """Whether every probability of a pixel is 0, as where a chunk is missing."""
    for c in range(len(probs)):  # noqa: SIM110
        if probs[c, j] != 0:
            return False
    return True


@kernel
def add_softmin(pixel_scores: Any, temperature: float, lowest: Any, weighted: Any, weight: Any) -> None:
    """Fill the sums of `Softmin` for each image of (n, h, w) scores; NaN are left out."""
    for i in range(len(pixel_scores)):
        scores = pixel_scores[i].reshape(pixel_scores[i].size)
        low = 2.0
        for j in range(len(scores)):
            low = min(low, np.float64(scores[j]) if scores[j] == scores[j] else 2.0)
        lowest[i] = low
        weighted[i], weight[i] = _softmin_sums(scores, low, temperature)


@summing_kernel
def _softmin_sums(scores: Any, lowest: float, temperature: float) -> tuple[float, float]:
    total = 0.0
    total_weight = 0.0
    for j in range(len(scores)):
        scored = scores[j] == scores[j]
        s = np.float64(scores[j]) if scored else lowest
        e = exp_nonpositive((lowest - s) / temperature)
        total += s * e if scored else 0.0
        total_weight += e if scored else 0.0
    return total, total_weight


@kernel
def downsample(
    labels: Any, pred_probs: Any, factor: int, ignores: bool, ignored: int, cell_labels: Any, cell_probs: Any
) -> None:
    """Mean label, rounded to even, and mean probabilities, normalised, of cells of factor × factor pixels.

    Pixels that are ignored are left out; a cell of nothing else is ignored. Floor: every value read once.
    """
    n, k, h, w = pred_probs.shape
    columns = w // factor
    total, count, sums = np.empty(columns), np.empty(columns), np.empty((k, columns))
    for i in range(n):
        for row in range(h // factor):
            total[:], count[:], sums[:] = 0.0, 0.0, 0.0
            for y in range(row * factor, (row + 1) * factor):
                for x in range(columns * factor):
                    if not (ignores and labels[i, y, x] == ignored):
                        total[x // factor] += labels[i, y, x]
                        count[x // factor] += 1
                for c in range(k):
                    for cell in range(columns):
                        for x in range(cell * factor, (cell + 1) * factor):
                            if not (ignores and labels[i, y, x] == ignored):
                                sums[c, cell] += pred_probs[i, c, y, x]
            for cell in range(columns):
                if count[cell] == 0:
                    cell_labels[i, row, cell] = ignored
                    cell_probs[i, :, row, cell] = 0
                    continue
                cell_labels[i, row, cell] = np.int64(np.rint(total[cell] / count[cell]))
                whole = 0.0
                for c in range(k):
                    sums[c, cell] /= count[cell]
                    whole += sums[c, cell]
                for c in range(k):
                    cell_probs[i, c, row, cell] = sums[c, cell] / whole
