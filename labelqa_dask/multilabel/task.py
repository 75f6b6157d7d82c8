"""The multilabel task: its parameters, its statistics, and how a block is scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from labelqa_dask.core.class_scores import ClassScores
from labelqa_dask.core.confident import FLOOR, ClassMeans, issue_thresholds
from labelqa_dask.core.errors import InvalidInput
from labelqa_dask.core.kernels import PROBABILITY_TOLERANCE, Array, as_labels, as_predictions
from labelqa_dask.core.label_sets import LabelSets
from labelqa_dask.core.task import ArraySpec, Block, Params, Pass, Stats, Task
from labelqa_dask.multiclass.task import Method
from labelqa_dask.multilabel import kernels

BuiltIn = Literal["exponential_moving_average", "softmin"]
ALPHA = 0.8
TEMPERATURE = 0.1

_SORTED_BYTES = 1 << 20


class MultilabelParams(Params):
    """Parameters of multilabel scores."""

    method: Method = "self_confidence"
    adjust_pred_probs: bool = False
    aggregator: BuiltIn = "exponential_moving_average"
    alpha: float | None = Field(default=ALPHA, ge=0, le=1)
    temperature: float = Field(default=TEMPERATURE, gt=0, allow_inf_nan=False)
    count_issues: bool = False

    @model_validator(mode="after")
    def _settings_go_together(self) -> Self:
        if self.adjust_pred_probs and self.method == "confidence_weighted_entropy":
            raise ValueError(
                "adjust_pred_probs is not supported for confidence_weighted_entropy; "
                "choose self_confidence or normalized_margin, or leave the probabilities unadjusted"
            )
        other = "temperature" if self.aggregator == "exponential_moving_average" else "alpha"
        if getattr(self, other) != type(self).model_fields[other].default:
            raise ValueError(f"{other} has no meaning for the aggregator {self.aggregator}")
        return self

    def alpha_of(self, k: int) -> float:
        """Weight of the lowest of k scores in their moving average."""
        return alpha_of(self.alpha, k)


def alpha_of(alpha: float | None, k: int) -> float:
    """The weight itself, or the usual one of a moving average over k."""
    return 2 / (k + 1) if alpha is None else float(alpha)


@dataclass(frozen=True)
class ClassIssues:
    """Number (k, 2) of examples whose label is confidently wrong, without and with each class: a mergeable state."""

    count: NDArray[np.int64]

    def merge(self, other: Self) -> Self:
        return type(self)(self.count + other.count)

    def result(self) -> NDArray[np.int64]:
        return self.count


def _forms(labels: Any, k: int) -> tuple[Array, Array, Array]:
    """Labels as the kernels take them: an array of 0 and 1, or starts and classes of label sets."""
    if isinstance(labels, np.ndarray):
        given = labels.view(np.uint8) if labels.dtype == bool else labels
        return as_labels(given), np.zeros(1, np.int64), np.empty(0, np.int32)
    sets = labels if isinstance(labels, LabelSets) else LabelSets.of_sparse(labels)
    return np.empty((0, 0), np.uint8), sets.starts, sets.classes


def class_means(block: Block, params: MultilabelParams, stats: Stats) -> ClassMeans:
    """State (k, 2) of one block: of each class, the examples without it by 1 - p, and those with it by p."""
    pred_probs = as_predictions(block["pred_probs"])
    shape = pred_probs.shape[1], 2
    state = ClassMeans(np.zeros(shape, np.int64), np.zeros(shape))
    bad = kernels.add_class_means(*_forms(block["labels"], shape[0]), pred_probs, state.count, state.total)
    if bad >= 0:
        raise _invalid_example(block, bad)
    return state


def class_issues(block: Block, params: MultilabelParams, stats: Stats) -> ClassIssues:
    """State of one block: examples off the diagonal of each class's confident joint."""
    pred_probs = as_predictions(block["pred_probs"])
    least = issue_thresholds(stats["confident_thresholds"]) - FLOOR
    state = ClassIssues(np.zeros(least.shape, np.int64))
    bad = kernels.add_class_issues(*_forms(block["labels"], len(least)), pred_probs, least, state.count)
    if bad >= 0:
        raise _invalid_example(block, bad)
    return state


class Multilabel(Task[MultilabelParams]):
    """Labels (n, k), pred_probs (n, k) -> label_quality_score (n,), class_label_quality_score (n, k)."""

    params_model = MultilabelParams
    inputs: ClassVar = (
        ArraySpec("labels", ("example", "class"), "indicators"),
        ArraySpec("pred_probs", ("example", "class"), "probabilities"),
    )
    outputs: ClassVar[tuple[ArraySpec, ...]] = (
        ArraySpec("label_quality_score", ("example",), "scores"),
        ArraySpec("class_label_quality_score", ("example", "class"), "scores"),
    )
    ranked_by = "label_quality_score"
    fewest_classes = 1
    told_where: ClassVar = {"issues": ("count_issues", True)}

    def passes(self, params: MultilabelParams) -> tuple[Pass[MultilabelParams], ...]:
        thresholds = Pass("confident_thresholds", ClassMeans, class_means)
        issues = Pass("label_issues", ClassIssues, class_issues)
        if params.count_issues:
            return thresholds, issues
        return (thresholds,) if params.adjust_pred_probs else ()

    def statistics(self, params: MultilabelParams, stats: Stats) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if "confident_thresholds" in stats:
            without, having = stats["confident_thresholds"].T.tolist()
            found |= {"confident_threshold_without": without, "confident_threshold": having}
        if "label_issues" in stats:
            missing, wrong = stats["label_issues"].T.tolist()
            found |= {"labels_missing": missing, "labels_wrongly_given": wrong}
        return found

    def score(self, block: Block, params: MultilabelParams, stats: Stats) -> dict[str, Any]:
        pred_probs = as_predictions(block["pred_probs"])
        n, k = pred_probs.shape
        wanted = {spec.name for spec in self.outputs}
        moving = params.aggregator == "exponential_moving_average"
        alpha = params.alpha_of(k)
        aggregator = kernels.NOTHING
        sort = False
        if "label_quality_score" in wanted:
            sort = moving and kernels.must_sort(k, alpha)
            aggregator = kernels.NOTHING if sort else kernels.MOVING_AVERAGE if moving else kernels.SOFTMIN
        keep = sort or "class_label_quality_score" in wanted
        scores = np.empty(n, pred_probs.dtype)
        class_scores = np.empty((n if keep else 0, k), pred_probs.dtype)
        bad = kernels.score(
            *_forms(block["labels"], k),
            pred_probs,
            kernels.ENTROPY if params.method == "confidence_weighted_entropy" else kernels.SELF_CONFIDENCE,
            *_adjustment(stats["confident_thresholds"] if params.adjust_pred_probs else np.empty((0, 2))),
            aggregator,
            alpha,
            params.temperature,
            kernels.network(min(k, kernels.LANES)),
            np.empty(kernels.selected(k, alpha)),
            class_scores,
            scores,
        )
        if bad >= 0:
            raise _invalid_example(block, bad)
        if sort:
            average_unsorted(class_scores, alpha, scores)
        outputs = {"label_quality_score": scores, "class_label_quality_score": class_scores}
        return {name: outputs[name] for name in outputs if name in wanted}

    def class_scores(self, block: Block, scores: Mapping[str, Any]) -> ClassScores:
        k = block["pred_probs"].shape[1]
        state = ClassScores.empty(k)
        per_class = scores["class_label_quality_score"]
        kernels.add_class_scores(*_forms(block["labels"], k), per_class, state.count, state.total)
        return state

    def describe(self, block: Block, scores: Mapping[str, Any], examples: NDArray[np.intp]) -> dict[str, Array]:
        rows = [np.asarray(block["labels"][i : i + 1])[0] != 0 for i in examples.tolist()]
        return {
            "given_label": _class_lists(rows),
            "suggested_label": _class_lists([row > 0.5 for row in block["pred_probs"][examples]]),
        }


@dataclass(frozen=True)
class Overall(Multilabel):
    """The scores of the examples alone; by a function of the rows of scores (n, k) in place of a built-in one."""

    aggregate: Callable[[Array], Array] | None = None

    outputs = Multilabel.outputs[:1]

    def score(self, block: Block, params: MultilabelParams, stats: Stats) -> dict[str, Any]:
        if self.aggregate is None:
            return super().score(block, params, stats)
        class_scores = PerClass().score(block, params, stats)["class_label_quality_score"]
        return {"label_quality_score": self.aggregate(class_scores).astype(class_scores.dtype, copy=False)}


class PerClass(Multilabel):
    """The scores per example and class alone."""

    outputs = Multilabel.outputs[1:]


def average_unsorted(scores: Array, alpha: float, out: Array) -> None:
    """Moving averages of rows (n, k) in any order; they are sorted a few at a time."""
    step = max(1, _SORTED_BYTES // max(1, scores[:1].nbytes))
    for start in range(0, len(scores), step):
        part = slice(start, start + step)
        kernels.average_sorted(np.sort(scores[part], axis=1), alpha, out[part])


def _adjustment(thresholds: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shift (k, 2) and scale (k,) that subtract thresholds from (1 - p, p), and make both sum to 1 again."""
    shift = thresholds.max(axis=1, keepdims=True) - thresholds
    return shift, 1 / (1 + shift.sum(axis=1))


def _class_lists(rows: list[Array]) -> Array:
    """The ids of the classes that are set in each of some rows (k,) bool, as an object array of lists."""
    lists = np.empty(len(rows), object)
    for i, row in enumerate(rows):
        lists[i] = np.flatnonzero(row).tolist()
    return lists


def _invalid_example(block: Block, start: int) -> InvalidInput:
    """Why the first invalid example of a block, found at or shortly after `start`, is so."""
    tile = slice(start, start + kernels.LANES)
    labels, pred_probs = np.asarray(block["labels"][tile]), block["pred_probs"][tile].astype(np.float64)
    wrong = (labels != 0) & (labels != 1)
    outside = ~((pred_probs >= -PROBABILITY_TOLERANCE) & (pred_probs <= 1 + PROBABILITY_TOLERANCE))
    i, j = (int(index) for index in np.argwhere(wrong | outside)[0])
    if wrong[i, j]:
        return InvalidInput(
            f"label {labels[i, j]} is neither 0 nor 1",
            block.where("labels", example=i + start, **{"class": j}),
            "Arrays hold 1 where a class applies and 0 elsewhere; ids of classes belong in lists.",
        )
    value = pred_probs[i, j]
    return InvalidInput(
        f"probability {value:.9g} is outside [0, 1]" if np.isfinite(value) else f"probability is {value}",
        block.where("pred_probs", example=i + start, **{"class": j}),
        "Are these logits? Apply the sigmoid function first."
        if np.isfinite(value)
        else "Mend the model's output, or drop the example.",
    )
