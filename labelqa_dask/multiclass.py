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
class ClassMeans:
    """Sum of `p[j]` over the examples labelled `j`, and their number: a mergeable state over (k,) raw sums."""

    total: NDArray[np.float64]
    count: NDArray[np.int64]

    @classmethod
    def empty(cls, k: int) -> Self:
        return cls(np.zeros(k), np.zeros(k, np.int64))

    def merge(self, other: Self) -> Self:
        return type(self)(self.total + other.total, self.count + other.count)

    def result(self) -> NDArray[np.float64]:
        """Confident thresholds (k,): means clipped from below at 2e-6, and 2 for a class with no example."""
        mean = self.total / np.maximum(self.count, 1)
        return np.where(self.count > 0, np.maximum(mean, 2 * FLOOR), MISSING_CLASS_THRESHOLD)


def class_means(block: Block, params: MulticlassParams, stats: Stats) -> ClassMeans:
    """State of one block of labels (n,) and pred_probs (n, k)."""
    labels, pred_probs = as_labels(block["labels"]), as_predictions(block["pred_probs"])
    state = ClassMeans.empty(pred_probs.shape[1])
    bad = _add_class_means(labels, pred_probs, _sum_tolerance(block), state.total, state.count)
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
        bad = _score(labels, pred_probs, _sum_tolerance(block), method, params.adjust_pred_probs, shift, out)
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


def invalid_example(block: Block, i: int) -> InvalidInput:
    """Why example i of a block is invalid."""
    label, row = int(block["labels"][i]), block["pred_probs"][i].astype(np.float64)
    k = len(row)
    if not 0 <= label < k:
        return InvalidInput(
            f"label {label} is outside 0..{k - 1}",
            block.where("labels", example=i),
            f"pred_probs has {k} classes: map the labels to its columns, or drop the example.",
        )
    if not np.isfinite(row).all():
        j = int(np.flatnonzero(~np.isfinite(row))[0])
        return InvalidInput(
            f"probability is {row[j]}",
            block.where("pred_probs", example=i, **{"class": j}),
            "Mend the model's output, or drop the example.",
        )
    outside = (row < -PROBABILITY_TOLERANCE) | (row > 1 + PROBABILITY_TOLERANCE)
    if outside.any():
        j = int(np.flatnonzero(outside)[0])
        return InvalidInput(
            f"probability {row[j]:.6g} is outside [0, 1]",
            block.where("pred_probs", example=i, **{"class": j}),
            "Are these logits? Apply softmax first.",
        )
    return InvalidInput(
        f"probabilities sum to {row.sum():.6g}, not 1",
        block.where("pred_probs", example=i),
        "Normalise each row; scores of independent classes belong to the multilabel task.",
    )


def _sum_tolerance(block: Block) -> float:
    return SUM_TOLERANCE + block.resolution / 2 * block["pred_probs"].shape[1]


# Floor of both kernels: n·k predictions and n labels read once, n scores written once; arithmetic of one comparison and
# one addition per probability, and for the entropy one logarithm.


@inlined
def _load(labels: Any, pred_probs: Any, i: int, sum_tolerance: float, row: Any) -> bool:
    """Copy example i into a row of float64; False where it is invalid."""
    k = len(row)
    total = 0.0
    bad = 0
    for j in range(k):
        p = np.float64(pred_probs[i, j])
        bad += not ((p >= -PROBABILITY_TOLERANCE) & (p <= 1 + PROBABILITY_TOLERANCE))
        total += p
        row[j] = p
    return bool((bad == 0) & (abs(total - 1) <= sum_tolerance) & (labels[i] >= 0) & (labels[i] < k))


@kernel
def _add_class_means(labels: Any, pred_probs: Any, sum_tolerance: float, total: Any, count: Any) -> int:
    n, k = pred_probs.shape
    row = np.empty(k)
    for i in range(n):
        if not _load(labels, pred_probs, i, sum_tolerance, row):
            return i
        total[labels[i]] += row[labels[i]]
        count[labels[i]] += 1
    return -1


@kernel
def _score(labels: Any, pred_probs: Any, sum_tolerance: float, method: int, adjust: bool, shift: Any, out: Any) -> int:
    n, k = pred_probs.shape
    row = np.empty(k)
    for i in range(n):
        if not _load(labels, pred_probs, i, sum_tolerance, row):
            return i
        label = labels[i]
        if adjust:
            total = 0.0
            for j in range(k):
                row[j] += shift[j]
                total += row[j]
            for j in range(k):
                row[j] /= total
        if method == 0:
            out[i] = row[label]
        elif method == 1:
            out[i] = _normalized_margin(row, label)
        else:
            out[i] = _confidence_weighted_entropy(row, label)
    return -1


@inlined
def _normalized_margin(row: Any, label: int) -> float:
    other = -np.inf
    for j in range(len(row)):
        if j != label and row[j] > other:
            other = row[j]
    return float((row[label] - other + 1) / 2)


@inlined
def _confidence_weighted_entropy(row: Any, label: int) -> float:
    entropy = 0.0
    for j in range(len(row)):
        if 0 < row[j] < 1:
            entropy -= row[j] * math.log(row[j])
    weighted = entropy / math.log(len(row)) / max(row[label], FLOOR)
    return math.log(weighted + 1) / max(weighted, FLOOR)
