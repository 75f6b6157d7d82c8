"""Label quality of semantic segmentation: one label per pixel, one probability per class and pixel.

A pixel's score is the probability that the model, out of sample, gives its label: `s = p[label]`. An image's score is
the soft minimum of its pixels' scores,

    sum(s * softmax((1 - s) / temperature))

which for a small temperature follows the worst pixels, and for a large one the mean. It is accumulated in float64
around the lowest score seen, so that it neither overflows nor loses small images, and merges across parts of an image.

Source: Lad and Mueller, "Estimating label quality and errors in semantic segmentation data via any model", ICML
DataPerf (2023). The numbers agree with cleanlab 2.9.

Axes: n = images, k = classes, h, w = height and width of an image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from labelqa_dask.core import public
from labelqa_dask.core.class_scores import ClassScores
from labelqa_dask.core.errors import InvalidInput
from labelqa_dask.core.kernels import (
    PROBABILITY_TOLERANCE,
    as_labels,
    as_predictions,
    exp_nonpositive,
    kernel,
    summing_kernel,
)
from labelqa_dask.core.task import ArraySpec, Block, ExampleImages, Params, Stats, Task


class SegmentationParams(Params):
    """Parameters of segmentation scores."""

    method: Literal["softmin"] = "softmin"
    temperature: float = Field(default=0.1, gt=0, allow_inf_nan=False)


def get_label_quality_scores(
    labels: Any,
    pred_probs: Any,
    *,
    method: Literal["softmin"] = "softmin",
    batch_size: int | None = None,
    n_jobs: int | None = None,
    verbose: bool = True,
    **kwargs: Any,
) -> tuple[Any, Any]:
    """Score how likely the labels of each image, and of each pixel, are to be right.

    Parameters
    ----------
    labels : (n, h, w) int array
        Given class of each pixel in 0..k-1; NumPy, Dask or xarray.
    pred_probs : (n, k, h, w) float array
        Predicted probabilities, out of sample. Dask arrays may be chunked along any axis.
    method : {"softmin"}
    batch_size, n_jobs : int, optional
        Images per block and number of threads, for arrays in memory; chosen by size and cores where not given.
    verbose : bool
        Accepted for compatibility; nothing is printed.
    **kwargs
        ``temperature`` of the soft minimum, default 0.1.

    Returns
    -------
    image_scores : (n,) float64 array
    pixel_scores : (n, h, w) float array
        Of the type of the probabilities, float32 at least.

    Scores lie in [0, 1], lower = more likely wrong, and are of the kind of the inputs. Dask input computes nothing yet.

    Raises
    ------
    InvalidInput
        A ValueError that names the array, the image, the pixel and the reason. For Dask input, what concerns values
        is raised when the result is computed.

    Examples
    --------
    >>> import numpy as np
    >>> labels = np.array([[[0, 1]]])
    >>> pred_probs = np.array([[[[0.9, 0.8]], [[0.1, 0.2]]]])
    >>> image_scores, pixel_scores = get_label_quality_scores(labels, pred_probs)
    >>> pixel_scores
    array([[[0.9, 0.2]]])
    >>> image_scores.round(4)
    array([0.2006])
    """
    for name, value in (("batch_size", batch_size), ("n_jobs", n_jobs)):
        if value is not None and value < 1:
            raise InvalidInput(f"{name} must be at least 1, got {value}")
    params = TASK.params(method=method, **kwargs)
    arrays = {"labels": labels, "pred_probs": pred_probs}
    outputs = public.run(TASK, arrays, params, rows=batch_size, threads=n_jobs)
    return outputs["image_scores"], outputs["pixel_scores"]


def issues_from_scores(image_scores: Any, pixel_scores: Any = None, threshold: float = 0.1) -> Any:
    """Turn scores into issues by a threshold.

    Parameters
    ----------
    image_scores : (n,) float array
    pixel_scores : (n, h, w) float array, optional
    threshold : float in [0, 1]

    Returns
    -------
    bool (n, h, w) array or int (m,) array
        With pixel scores, the mask of pixels that score below the threshold. Without, the indices of images, worst
        first (equal ones by index): those below the threshold and one more. Of the kind of the scores; lazy for Dask.

    Examples
    --------
    >>> import numpy as np
    >>> issues_from_scores(np.array([0.9, 0.05, 0.5, 0.01]))
    array([3, 1, 2])
    """
    if image_scores is None:
        raise InvalidInput("image_scores must be given")
    if threshold is None or not 0 <= threshold <= 1:
        raise InvalidInput(f"threshold must be between 0 and 1, got {threshold}")
    if pixel_scores is not None:
        return pixel_scores < threshold
    return public.call(_worst_images, image_scores, threshold, dtype=np.int64)


def _worst_images(image_scores: NDArray[np.floating[Any]], threshold: float) -> NDArray[np.int64]:
    ranking = np.argsort(image_scores, kind="stable")
    below = np.searchsorted(image_scores[ranking], threshold)
    return ranking[: below + 1].astype(np.int64)


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


class Segmentation(Task[SegmentationParams]):
    """Labels (n, h, w), pred_probs (n, k, h, w) -> image_scores (n,), pixel_scores (n, h, w)."""

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

    def score(self, block: Block, params: SegmentationParams, stats: Stats) -> dict[str, Any]:
        labels, pred_probs = as_labels(block["labels"]), as_predictions(block["pred_probs"])
        pixel_scores = np.empty(labels.shape, pred_probs.dtype)
        softmin = Softmin.empty(len(labels), params.temperature)
        bad = _score(
            labels, pred_probs, params.temperature, pixel_scores, softmin.lowest, softmin.weighted, softmin.weight
        )
        if bad >= 0:
            raise _invalid_image(block, bad)
        return {"image_scores": softmin, "pixel_scores": pixel_scores}

    def class_scores(self, block: Block, scores: Mapping[str, Any]) -> ClassScores:
        return ClassScores.of(block["labels"], scores["pixel_scores"], block["pred_probs"].shape[1])

    def preview(self, block: Block) -> ExampleImages:
        labels, pred_probs = as_labels(block["labels"])[0], as_predictions(block["pred_probs"])[0]
        predicted = np.empty(labels.shape, np.int64)
        _predict(pred_probs, predicted, np.empty(labels.shape, pred_probs.dtype))
        given = labels.astype(np.int64)
        return ExampleImages(given, predicted, np.take_along_axis(pred_probs, given[None], axis=0)[0])


TASK = Segmentation()


def _invalid_image(block: Block, i: int) -> InvalidInput:
    labels, pred_probs = block["labels"][i], block["pred_probs"][i].astype(np.float64)
    k = len(pred_probs)
    outside = (labels < 0) | (labels >= k)
    if outside.any():
        y, x = np.argwhere(outside)[0]
        return InvalidInput(
            f"label {labels[y, x]} is outside 0..{k - 1} ({outside.sum():,} such pixels in this block of the image)",
            block.where("labels", example=i, y=y, x=x),
            f"pred_probs has {k} classes: map the labels to its class axis.",
        )
    bad = ~((pred_probs >= -PROBABILITY_TOLERANCE) & (pred_probs <= 1 + PROBABILITY_TOLERANCE))
    c, y, x = np.argwhere(bad)[0]
    value = pred_probs[c, y, x]
    finite = math.isfinite(value)
    return InvalidInput(
        f"probability {value:.9g} is outside [0, 1]" if finite else f"probability is {value}",
        block.where("pred_probs", example=i, **{"class": c}, y=y, x=x),
        "Are these logits? Apply softmax over the class axis first." if finite else "Mend the model's output.",
    )


# Floor: n·k·h·w predictions and n·h·w labels read once, n·h·w scores written once; arithmetic of two comparisons per
# probability and one exponential per pixel. Pixels are taken in strips whose probabilities of all classes stay in the
# cache between the check, which reads along each class, and the gather, which reads across them.

_STRIP_BYTES = 1 << 18


@kernel
def _score(
    labels: Any, pred_probs: Any, temperature: float, pixel_scores: Any, lowest: Any, weighted: Any, weight: Any
) -> int:
    n, k, h, w = pred_probs.shape
    size = h * w
    strip = max(64, _STRIP_BYTES // (k * pred_probs.itemsize))
    for i in range(n):
        given, probs, scores = labels[i].reshape(size), pred_probs[i].reshape(k, size), pixel_scores[i].reshape(size)
        for start in range(0, size, strip):
            stop = min(start + strip, size)
            for c in range(k):
                if not _valid(probs[c, start:stop]):
                    return i
            for j in range(start, stop):
                if given[j] < 0 or given[j] >= k:
                    return i
                scores[j] = probs[given[j], j]
        lowest[i] = scores.min()
        weighted[i], weight[i] = _softmin_sums(scores, lowest[i], temperature)
    return -1


@kernel
def _predict(pred_probs: Any, predicted: Any, highest: Any) -> None:
    """Most probable class of each pixel of (k, h, w), the first of equal ones; read class by class, as it is stored."""
    k, h, w = pred_probs.shape
    for c in range(k):
        for y in range(h):
            for x in range(w):
                if c == 0 or pred_probs[c, y, x] > highest[y, x]:
                    predicted[y, x] = c
                    highest[y, x] = pred_probs[c, y, x]


@kernel
def _valid(probs: Any) -> bool:
    """Whether all of (m,) lie in [0, 1]; without a branch, so that it vectorises."""
    low = probs.dtype.type(-PROBABILITY_TOLERANCE)
    high = probs.dtype.type(1 + PROBABILITY_TOLERANCE)
    bad = 0
    for j in range(len(probs)):
        bad += not ((probs[j] >= low) & (probs[j] <= high))
    return bad == 0


@summing_kernel
def _softmin_sums(scores: Any, lowest: float, temperature: float) -> tuple[float, float]:
    total = 0.0
    total_weight = 0.0
    for j in range(len(scores)):
        s = np.float64(scores[j])
        e = exp_nonpositive((lowest - s) / temperature)
        total += s * e
        total_weight += e
    return total, total_weight
