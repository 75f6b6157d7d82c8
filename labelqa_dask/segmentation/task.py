"""The segmentation task: parameters, states, and how a block of images is scored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from labelqa_dask.core.class_scores import ClassPairs, ClassScores
from labelqa_dask.core.confident import ClassMeans, Elements, IssueSearch
from labelqa_dask.core.errors import InvalidInput
from labelqa_dask.core.kernels import PROBABILITY_TOLERANCE, Array, as_labels, as_predictions
from labelqa_dask.core.task import ArraySpec, Block, ExampleImages, Params, Pass, Stats, Task
from labelqa_dask.segmentation import kernels
from labelqa_dask.segmentation.areas import WorstAreas

Method = Literal["softmin", "num_pixel_issues"]


class SegmentationParams(Params):
    """Parameters of segmentation scores."""

    method: Method = "softmin"
    temperature: float = Field(default=0.1, gt=0, allow_inf_nan=False)
    downsample: int = Field(default=1, ge=1)
    ignore_index: int | None = None

    @model_validator(mode="after")
    def _only_issues_are_downsampled(self) -> Self:
        if self.downsample != 1 and self.method != "num_pixel_issues":
            raise ValueError(f"downsample is for method num_pixel_issues, not for {self.method}")
        return self


@dataclass(frozen=True)
class Softmin:
    """Soft minimum of the scores of each image: a mergeable state over (n,) sums around the lowest score.

    Attributes
    ----------
    lowest : (n,) lowest score so far; 2, above any score, while there is none
    weighted : (n,) sum of s * exp((lowest - s) / temperature)
    weight : (n,) sum of exp((lowest - s) / temperature)
    """

    temperature: float
    lowest: NDArray[np.float64]
    weighted: NDArray[np.float64]
    weight: NDArray[np.float64]

    @classmethod
    def empty(cls, n: int, temperature: float) -> Self:
        return cls(temperature, np.full(n, 2.0), np.zeros(n), np.zeros(n))

    def merge(self, other: Self) -> Self:
        lowest = np.minimum(self.lowest, other.lowest)
        mine = np.exp((lowest - self.lowest) / self.temperature)
        theirs = np.exp((lowest - other.lowest) / self.temperature)
        return type(self)(
            self.temperature,
            lowest,
            self.weighted * mine + other.weighted * theirs,
            self.weight * mine + other.weight * theirs,
        )

    def result(self) -> NDArray[np.float64]:
        """Soft minimum per image (n,), NaN where no pixel was scored."""
        return np.divide(self.weighted, self.weight, out=np.full(len(self.weight), np.nan), where=self.weight > 0)


@dataclass(frozen=True)
class IssueShare:
    """Share of pixels that are no issues: a mergeable state over (n,) counts of issues and of pixels."""

    issues: NDArray[np.int64]
    pixels: NDArray[np.int64]

    def merge(self, other: Self) -> Self:
        return type(self)(self.issues + other.issues, self.pixels + other.pixels)

    def result(self) -> NDArray[np.float64]:
        """1 - issues / pixels per image (n,), NaN where every pixel is ignored."""
        share = np.full(len(self.pixels), np.nan)
        return 1 - np.divide(self.issues, self.pixels, out=share, where=self.pixels > 0)


class Segmentation(Task[SegmentationParams]):
    """Labels (n, h, w), pred_probs (n, k, h, w) -> image_scores (n,), pixel_scores and is_issue (n, h, w)."""

    params_model = SegmentationParams
    inputs: ClassVar = (
        ArraySpec("labels", ("example", "y", "x"), "labels"),
        ArraySpec("pred_probs", ("example", "class", "y", "x"), "probabilities"),
    )
    outputs: ClassVar = (
        ArraySpec("image_scores", ("example",), "scores", accumulated=True),
        ArraySpec("pixel_scores", ("example", "y", "x"), "scores"),
    )
    ranked_by = "image_scores"
    class_unit = "pixels"
    told_where: ClassVar = {"issues": ("method", "num_pixel_issues")}

    def written(self, params: SegmentationParams) -> tuple[ArraySpec, ...]:
        if params.method == "softmin":
            return self.outputs
        return (*self.outputs, ArraySpec("is_issue", ("example", "y", "x"), "issues"))

    def multiples(self, params: SegmentationParams) -> Mapping[str, int]:
        return {"y": params.downsample, "x": params.downsample}

    def passes(self, params: SegmentationParams) -> tuple[Pass[SegmentationParams], ...]:
        return () if params.method == "softmin" else _ISSUES.passes()

    def statistics(self, params: SegmentationParams, stats: Stats) -> dict[str, Any]:
        return {} if params.method == "softmin" else _ISSUES.statistics(stats)

    def score(self, block: Block, params: SegmentationParams, stats: Stats) -> dict[str, Any]:
        if params.method == "softmin":
            pixels = _inspect(block, params, predict=False)
            softmin = Softmin.empty(len(pixels.scores), params.temperature)
            kernels.add_softmin(pixels.scores, params.temperature, softmin.lowest, softmin.weighted, softmin.weight)
            return {"image_scores": softmin, "pixel_scores": pixels.scores}
        pixels = cells = _ISSUES.elements(block, params, stats, params.downsample == 1)
        candidates = _ISSUES.candidates(cells, block, stats)
        if params.downsample > 1:
            pixels = _inspect(block, params, check=False)
            candidates = candidates.repeat(params.downsample, axis=1).repeat(params.downsample, axis=2)
            candidates &= ~np.isnan(pixels.scores)
        issues = candidates & (pixels.predicted != pixels.labels)
        share = IssueShare(
            np.count_nonzero(issues, axis=(1, 2)), np.count_nonzero(~np.isnan(pixels.scores), axis=(1, 2))
        )
        return {
            "image_scores": share,
            "pixel_scores": pixels.scores,
            "is_issue": issues,
            "predicted": pixels.predicted,
            "issue_pairs": ClassPairs.of(pixels.labels, pixels.predicted, issues, pixels.k),
        }

    def class_scores(self, block: Block, scores: Mapping[str, Any]) -> ClassScores:
        return ClassScores.of(block["labels"], scores["pixel_scores"], block["pred_probs"].shape[1])

    def class_pairs(self, scores: Mapping[str, Any]) -> ClassPairs | None:
        return scores.get("issue_pairs")

    def describe(self, block: Block, scores: Mapping[str, Any], examples: NDArray[np.intp]) -> WorstAreas:
        labels = as_labels(block["labels"])[examples]
        if "predicted" in scores:
            predicted = scores["predicted"][examples]
        else:
            predicted = predicted_classes(block["pred_probs"][examples])
        top, left = (block.origin.get(dim, 0) for dim in ("y", "x"))
        return WorstAreas.of(labels, predicted, scores["pixel_scores"][examples], top, left)

    def preview(self, block: Block, params: SegmentationParams) -> ExampleImages:
        pixels = _inspect(block, params)
        given = np.where(np.isnan(pixels.scores), -1, pixels.labels.astype(np.int64))[0]
        return ExampleImages(given, pixels.predicted[0].astype(np.int64), pixels.scores[0])


def predicted_classes(pred_probs: Array) -> NDArray[np.int32]:
    """Most probable class (n, h, w) of (n, k, h, w), the first of equal ones."""
    probs = as_predictions(pred_probs)
    n, _, h, w = probs.shape
    scores, predicted = np.empty((n, h, w), probs.dtype), np.empty((n, h, w), np.int32)
    kernels.inspect(
        np.zeros((n, h, w), np.uint8), probs, False, 0, False, True, scores, predicted, np.empty_like(scores)
    )
    return predicted


def _inspect(
    block: Block, params: SegmentationParams, *, check: bool = True, predict: bool = True, factor: int = 1
) -> Elements:
    """The pixels of a block, or its cells of factor × factor pixels."""
    labels, pred_probs = as_labels(block["labels"]), as_predictions(block["pred_probs"])
    n, k, h, w = pred_probs.shape
    ignores, ignored = params.ignore_index is not None, params.ignore_index or 0
    if factor > 1:
        h, w = h // factor, w // factor
        cell_labels, cell_probs = np.empty((n, h, w), np.int64), np.empty((n, k, h, w), pred_probs.dtype)
        kernels.downsample(labels, pred_probs, factor, ignores, ignored, cell_labels, cell_probs)
        labels, pred_probs = cell_labels, cell_probs
    scores = np.empty((n, h, w), pred_probs.dtype)
    predicted, confidence = (np.empty(scores.shape if predict else (n, 0, 0), dtype) for dtype in ("i4", scores.dtype))
    bad = kernels.inspect(labels, pred_probs, ignores, ignored, check, predict, scores, predicted, confidence)
    if bad >= 0:
        raise _invalid_image(block, params, bad)
    corner = tuple(block.origin.get(dim, 0) // factor for dim in ("y", "x"))
    extent = tuple(block.sizes.get(dim, size * factor) // factor for dim, size in (("y", h), ("x", w)))
    return Elements(scores, labels, predicted, confidence, k, corner, extent)


def _cells(block: Block, params: SegmentationParams, stats: Stats, predict: bool) -> Elements:
    """What issues are looked for among: pixels, or cells of them; the first walk checks every pixel."""
    unchecked = not stats
    if params.downsample == 1:
        return _inspect(block, params, check=unchecked, predict=predict)
    if unchecked:
        _inspect(block, params, predict=False)
    return _inspect(block, params, check=False, predict=predict, factor=params.downsample)


def _class_means(block: Block, params: SegmentationParams, stats: Stats) -> ClassMeans:
    cells = _ISSUES.elements(block, params, stats, False)
    return ClassMeans.of(cells.labels, cells.scores, cells.k)


_ISSUES = IssueSearch(_cells, Pass("confident_thresholds", ClassMeans, _class_means))

TASK = Segmentation()


def _invalid_image(block: Block, params: SegmentationParams, i: int) -> InvalidInput:
    labels, pred_probs = block["labels"][i], block["pred_probs"][i].astype(np.float64)
    k = len(pred_probs)
    counted = np.ones(labels.shape, bool) if params.ignore_index is None else labels != params.ignore_index
    outside = ((labels < 0) | (labels >= k)) & counted
    if outside.any():
        y, x = np.argwhere(outside)[0]
        return InvalidInput(
            f"label {labels[y, x]} is outside 0..{k - 1} ({outside.sum():,} such pixels in this block of the image)",
            block.where("labels", example=i, y=y, x=x),
            f"pred_probs has {k} classes: map the labels to its class axis, or name a label that stands for "
            "unlabelled pixels as ignore_index.",
        )
    bad = ~((pred_probs >= -PROBABILITY_TOLERANCE) & (pred_probs <= 1 + PROBABILITY_TOLERANCE)) & counted
    if not bad.any():
        y, x = np.argwhere((pred_probs == 0).all(axis=0) & counted)[0]
        return InvalidInput(
            "all probabilities of a pixel are 0",
            block.where("pred_probs", example=i, y=y, x=x),
            "Was this chunk never written? Write it, or label its pixels with the ignore_index.",
        )
    c, y, x = np.argwhere(bad)[0]
    value = pred_probs[c, y, x]
    finite = math.isfinite(value)
    return InvalidInput(
        f"probability {value:.9g} is outside [0, 1]" if finite else f"probability is {value}",
        block.where("pred_probs", example=i, **{"class": c}, y=y, x=x),
        "Are these logits? Apply softmax over the class axis first." if finite else "Mend the model's output.",
    )
