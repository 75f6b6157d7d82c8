"""The multiclass task: parameters, and how a block of examples is scored."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from labelqa_dask.core.class_scores import ClassPairs, ClassScores
from labelqa_dask.core.confident import ClassMeans, Elements, EstimationMethod, IssueSearch, issue_thresholds
from labelqa_dask.core.errors import InvalidInput
from labelqa_dask.core.kernels import PROBABILITY_TOLERANCE, SUM_TOLERANCE, Array, as_labels, as_predictions
from labelqa_dask.core.task import ArraySpec, Block, Params, Pass, Stats, Task
from labelqa_dask.multiclass import kernels

Method = Literal["self_confidence", "normalized_margin", "confidence_weighted_entropy"]

# A label whose probability is this near to the highest is not an issue.
_AGREEMENT_MARGIN = 1e-6


class MulticlassParams(Params):
    """Parameters of multiclass scores."""

    method: Method = "self_confidence"
    adjust_pred_probs: bool = False
    find_label_issues: bool = False
    estimation_method: EstimationMethod = "off_diagonal"

    @model_validator(mode="after")
    def _entropy_is_not_adjusted(self) -> Self:
        if self.adjust_pred_probs and self.method == "confidence_weighted_entropy":
            raise ValueError(
                "adjust_pred_probs is not supported for confidence_weighted_entropy; "
                "choose self_confidence or normalized_margin, or leave the probabilities unadjusted"
            )
        return self


def class_means(block: Block, params: MulticlassParams, stats: Stats) -> ClassMeans:
    """State of one block of labels (n,) and pred_probs (n, k)."""
    labels, pred_probs = as_labels(block["labels"]), as_predictions(block["pred_probs"])
    state = ClassMeans.empty(pred_probs.shape[1])
    bad = kernels.add_class_means(labels, pred_probs, sum_tolerance(block), state.total, state.count)
    if bad >= 0:
        raise invalid_example(block, bad)
    return state


class Multiclass(Task[MulticlassParams]):
    """Labels (n,), pred_probs (n, k) -> label_quality_score (n,), is_issue (n,)."""

    params_model = MulticlassParams
    inputs: ClassVar = (
        ArraySpec("labels", ("example",), "labels"),
        ArraySpec("pred_probs", ("example", "class"), "probabilities"),
    )
    outputs: ClassVar = (ArraySpec("label_quality_score", ("example",), "scores"),)
    ranked_by = "label_quality_score"
    told_where: ClassVar = {"issues": ("find_label_issues", True)}

    def written(self, params: MulticlassParams) -> tuple[ArraySpec, ...]:
        issues = ArraySpec("is_issue", ("example",), "issues")
        return (*self.outputs, issues) if params.find_label_issues else self.outputs

    def passes(self, params: MulticlassParams) -> tuple[Pass[MulticlassParams], ...]:
        if params.find_label_issues:
            return _search(params).passes()
        return (_THRESHOLDS,) if params.adjust_pred_probs else ()

    def statistics(self, params: MulticlassParams, stats: Stats) -> dict[str, Any]:
        if params.find_label_issues:
            return _search(params).statistics(stats)
        return super().statistics(params, stats)

    def score(self, block: Block, params: MulticlassParams, stats: Stats) -> dict[str, Any]:
        thresholds = stats["confident_thresholds"] if params.adjust_pred_probs else None
        if not params.find_label_issues:
            return {"label_quality_score": _scores(block, params, thresholds)}
        search = _search(params)
        elements = search.elements(block, params, stats, True)
        candidates = search.candidates(elements, block, stats)
        given = np.take_along_axis(block["pred_probs"], elements.labels[:, None].astype(np.intp), axis=1)[:, 0]
        nearly = given.astype(elements.confidence.dtype) + elements.confidence.dtype.type(_AGREEMENT_MARGIN)
        issues = candidates & (elements.predicted != elements.labels) & (nearly <= elements.confidence)
        pairs = ClassPairs.of(elements.labels, elements.predicted, issues, elements.k)
        scores = elements.scores if thresholds is None else _scores(block, params, thresholds)
        return {"label_quality_score": scores, "is_issue": issues, "issue_pairs": pairs}

    def class_scores(self, block: Block, scores: Mapping[str, Any]) -> ClassScores:
        return ClassScores.of(block["labels"], scores["label_quality_score"], block["pred_probs"].shape[1])

    def class_pairs(self, scores: Mapping[str, Any]) -> ClassPairs | None:
        return scores.get("issue_pairs")

    def describe(self, block: Block, scores: Mapping[str, Any], examples: NDArray[np.intp]) -> dict[str, Array]:
        columns = {
            "given_label": block["labels"][examples].astype(np.int64),
            "suggested_label": block["pred_probs"][examples].argmax(axis=1).astype(np.int64),
        }
        return columns | ({"is_issue": scores["is_issue"][examples]} if "is_issue" in scores else {})


TASK = Multiclass()

_THRESHOLDS = Pass("confident_thresholds", ClassMeans, class_means)


def _scores(block: Block, params: MulticlassParams, thresholds: NDArray[np.float64] | None) -> Array:
    """Scores of a block, adjusted where there are thresholds."""
    labels, pred_probs = as_labels(block["labels"]), as_predictions(block["pred_probs"])
    n, k = pred_probs.shape
    adjust = thresholds is not None
    shift = np.zeros(k) if thresholds is None else thresholds.max() - thresholds
    out = np.empty(n, pred_probs.dtype)
    method = kernels.METHODS.index(params.method)
    bad = kernels.score(labels, pred_probs, sum_tolerance(block), method, adjust, shift, out)
    if bad >= 0:
        raise invalid_example(block, bad)
    return out


def _inspect(block: Block, params: MulticlassParams, stats: Stats, predict: bool) -> Elements:
    labels, pred_probs = as_labels(block["labels"]), as_predictions(block["pred_probs"])
    n, k = pred_probs.shape
    predicted, confidence = np.empty(n if predict else 0, np.int32), np.empty(n if predict else 0, pred_probs.dtype)
    if predict:
        kernels.predict(pred_probs, predicted, confidence)
    thresholds = issue_thresholds(stats["confident_thresholds"]) if params.adjust_pred_probs else None
    return Elements(_scores(block, params, thresholds), labels, predicted, confidence, k)


def _search(params: MulticlassParams) -> IssueSearch:
    return IssueSearch(_inspect, _THRESHOLDS, params.estimation_method)


def invalid_example(block: Block, start: int) -> InvalidInput:
    """Why the first invalid example of a block, found at or shortly after `start`, is so."""
    tile = slice(start, start + kernels.TILE_EXAMPLES)
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
