"""Label quality of multiclass data: one label and one probability per class for each example.

A label is suspicious where the model, out of sample, gives it little probability.

Formulas, with `p` the row of predicted probabilities, `l` the given label and `s = p[l]`:

- self-confidence: `s`
- normalized margin: `(s - max_{j != l} p[j] + 1) / 2`
- confidence-weighted entropy: `ln(q + 1) / max(q, 1e-6)` with `q = (H(p) / ln k) / max(s, 1e-6)`
- adjusted for class imbalance: `p[j]` becomes `p[j] - t[j] + max(t)`, renormalised, where the confident threshold
  `t[j]` is the mean of `p[j]` over the examples labelled `j`.

Source: Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 70 (2021),
and Kuan and Mueller, "Model-agnostic label quality scoring to detect real-world label errors", ICML DataPerf (2022).
The numbers agree with cleanlab 2.9.

Axes: n = examples, k = classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from labelqa_dask.core import public
from labelqa_dask.core.class_scores import ClassScores
from labelqa_dask.core.errors import InvalidInput
from labelqa_dask.core.kernels import (
    PROBABILITY_TOLERANCE,
    SUM_TOLERANCE,
    Array,
    as_labels,
    as_predictions,
    inlined,
    kernel,
    log_positive,
)
from labelqa_dask.core.task import ArraySpec, Block, Params, Pass, Stats, Task

Method = Literal["self_confidence", "normalized_margin", "confidence_weighted_entropy"]
_METHODS = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")

FLOOR = 1e-6
MISSING_CLASS_THRESHOLD = 2.0


class MulticlassParams(Params):
    """Parameters of multiclass scores."""

    method: Method = "self_confidence"
    adjust_pred_probs: bool = False

    @model_validator(mode="after")
    def _entropy_is_not_adjusted(self) -> Self:
        if self.adjust_pred_probs and self.method == "confidence_weighted_entropy":
            raise ValueError(
                "adjust_pred_probs is not supported for confidence_weighted_entropy; "
                "choose self_confidence or normalized_margin, or leave the probabilities unadjusted"
            )
        return self


def get_label_quality_scores(
    labels: Any, pred_probs: Any, *, method: Method = "self_confidence", adjust_pred_probs: bool = False
) -> Any:
    """Score how likely each given label is to be right.

    Parameters
    ----------
    labels : (n,) int array
        Given labels in 0..k-1; NumPy, Dask or xarray.
    pred_probs : (n, k) float array
        Predicted probabilities, out of sample; each row sums to 1.
    method : {"self_confidence", "normalized_margin", "confidence_weighted_entropy"}
    adjust_pred_probs : bool
        Adjust for class imbalance by confident thresholds; not for ``confidence_weighted_entropy``.

    Returns
    -------
    (n,) float array
        Scores in [0, 1], lower = more likely wrong, of the kind of the inputs. Dask input computes nothing yet.
        float64 for float64 probabilities, else float32.

    Raises
    ------
    InvalidInput
        A ValueError that names the array, the example and the reason. For Dask input, what concerns values is raised
        when the result is computed.

    Examples
    --------
    >>> import numpy as np
    >>> labels = np.array([0, 0, 1])
    >>> pred_probs = np.array([[0.9, 0.1], [0.2, 0.8], [0.25, 0.75]])
    >>> get_label_quality_scores(labels, pred_probs)
    array([0.9 , 0.2 , 0.75])
    """
    params = TASK.params(method=method, adjust_pred_probs=adjust_pred_probs)
    outputs = public.run(TASK, {"labels": labels, "pred_probs": pred_probs}, params)
    return outputs["label_quality_score"]


@dataclass(frozen=True)
class ClassMeans(ClassScores):
    """Number of the examples labelled `j`, and sum of their `p[j]`: a mergeable state over (k,) raw sums."""

    def result(self) -> NDArray[np.float64]:
        """Confident thresholds (k,): means clipped from below at 2e-6, and 2 for a class with no example."""
        mean = self.total / np.maximum(self.count, 1)
        return np.where(self.count > 0, np.maximum(mean, 2 * FLOOR), MISSING_CLASS_THRESHOLD)


def class_means(block: Block, params: MulticlassParams, stats: Stats) -> ClassMeans:
    """State of one block of labels (n,) and pred_probs (n, k)."""
    labels, pred_probs = as_labels(block["labels"]), as_predictions(block["pred_probs"])
    state = ClassMeans.empty(pred_probs.shape[1])
    bad = _add_class_means(labels, pred_probs, sum_tolerance(block), state.total, state.count)
    if bad >= 0:
        raise invalid_example(block, bad)
    return state


class Multiclass(Task[MulticlassParams]):
    """Labels (n,), pred_probs (n, k) -> label_quality_score (n,)."""

    params_model = MulticlassParams
    inputs: ClassVar = (
        ArraySpec("labels", ("example",), "labels"),
        ArraySpec("pred_probs", ("example", "class"), "probabilities"),
    )
    outputs: ClassVar = (ArraySpec("label_quality_score", ("example",), "scores"),)
    ranked_by = "label_quality_score"

    def passes(self, params: MulticlassParams) -> tuple[Pass[MulticlassParams], ...]:
        return (Pass("confident_thresholds", ClassMeans, class_means),) if params.adjust_pred_probs else ()

    def score(self, block: Block, params: MulticlassParams, stats: Stats) -> dict[str, Any]:
        labels, pred_probs = as_labels(block["labels"]), as_predictions(block["pred_probs"])
        n, k = pred_probs.shape
        shift = np.zeros(k)
        if params.adjust_pred_probs:
            thresholds = stats["confident_thresholds"]
            shift = thresholds.max() - thresholds
        out = np.empty(n, pred_probs.dtype)
        method = _METHODS.index(params.method)
        bad = _score(labels, pred_probs, sum_tolerance(block), method, params.adjust_pred_probs, shift, out)
        if bad >= 0:
            raise invalid_example(block, bad)
        return {"label_quality_score": out}

    def class_scores(self, block: Block, scores: Mapping[str, Any]) -> ClassScores:
        return ClassScores.of(block["labels"], scores["label_quality_score"], block["pred_probs"].shape[1])

    def describe(self, block: Block, examples: NDArray[np.intp]) -> dict[str, Array]:
        return {
            "given_label": block["labels"][examples].astype(np.int64),
            "suggested_label": block["pred_probs"][examples].argmax(axis=1).astype(np.int64),
        }


TASK = Multiclass()


def invalid_example(block: Block, start: int) -> InvalidInput:
    """Why the first invalid example of a block, found at or shortly after `start`, is so."""
    tile = slice(start, start + _TILE_EXAMPLES)
    labels, pred_probs = block["labels"][tile], block["pred_probs"][tile].astype(np.float64)
    k = pred_probs.shape[1]
    valid = ((pred_probs >= -PROBABILITY_TOLERANCE) & (pred_probs <= 1 + PROBABILITY_TOLERANCE)).all(axis=1)
    totals = reduce(np.add, pred_probs.T)  # class by class, as the kernel adds
    valid &= np.abs(totals - 1) <= sum_tolerance(block)
    valid &= (labels >= 0) & (labels < k)
    i = int(np.flatnonzero(~valid)[0])
    label, row = int(labels[i]), pred_probs[i]
    i += start
    if not 0 <= label < k:
        return InvalidInput(
            f"label {label} is outside 0..{k - 1}",
            block.where("labels", example=i),
            f"pred_probs has {k} classes: map the labels to its columns, or drop the example.",
        )
    return invalid_probabilities(block, row, example=i)


def invalid_probabilities(block: Block, row: NDArray[np.float64], **index: int) -> InvalidInput:
    """Why a row of probabilities (k,), at an index in a block, is invalid."""
    if not np.isfinite(row).all():
        j = int(np.flatnonzero(~np.isfinite(row))[0])
        return InvalidInput(
            f"probability is {row[j]}",
            block.where("pred_probs", **index, **{"class": j}),
            "Mend the model's output, or drop the example.",
        )
    outside = (row < -PROBABILITY_TOLERANCE) | (row > 1 + PROBABILITY_TOLERANCE)
    if outside.any():
        j = int(np.flatnonzero(outside)[0])
        return InvalidInput(
            f"probability {row[j]:.9g} is outside [0, 1]",
            block.where("pred_probs", **index, **{"class": j}),
            "Are these logits? Apply softmax first.",
        )
    return InvalidInput(
        f"probabilities sum to {row.sum():.6g}, not 1",
        block.where("pred_probs", **index),
        "Normalise each row; scores of independent classes belong to the multilabel task.",
    )


def sum_tolerance(block: Block) -> float:
    """How far the sum of a row of probabilities may be from 1."""
    return SUM_TOLERANCE + block.resolution / 2 * block["pred_probs"].shape[-1]


# Floor of both kernels: n·k predictions and n labels read once, n scores written once; arithmetic of two comparisons
# and an addition per probability, and for the entropy one logarithm. Examples are taken in tiles, turned so that
# examples are next to each other: every step then vectorises over them, whatever k is.

_TILE_EXAMPLES = 64
_TILE_VALUES = 1 << 14


@inlined
def _tile_length(k: int) -> int:
    return max(4, min(_TILE_EXAMPLES, _TILE_VALUES // k))


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
def _add_class_means(labels: Any, pred_probs: Any, sum_tolerance: float, total: Any, count: Any) -> int:
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
def _score(labels: Any, pred_probs: Any, sum_tolerance: float, method: int, adjust: bool, shift: Any, out: Any) -> int:
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
