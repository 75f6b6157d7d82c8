"""Public functions of segmentation, with the names, arguments and numbers of cleanlab's."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from labelqa_dask.core import public
from labelqa_dask.core.errors import InvalidInput
from labelqa_dask.segmentation.task import TASK, Method, predicted_classes

_MOST_PAIRS = 20


def get_label_quality_scores(
    labels: Any,
    pred_probs: Any,
    *,
    method: Method = "softmin",
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
    method : {"softmin", "num_pixel_issues"}
    batch_size, n_jobs : int, optional
        Images per block and number of threads, for arrays in memory; chosen by size and cores where not given.
    verbose : bool
        Accepted for compatibility; nothing is printed.
    **kwargs
        ``temperature`` of the soft minimum, default 0.1; ``downsample`` of num_pixel_issues, default 1;
        ``ignore_index``, the label of pixels that are never scored or counted, default none.

    Returns
    -------
    image_scores : (n,) float64 array
    pixel_scores : (n, h, w) float array
        Of the type of the probabilities, float32 at least; NaN where ignored.

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
    if method == "softmin" and kwargs.get("downsample", 1) != 1:
        warnings.warn("downsample is for method num_pixel_issues; softmin takes every pixel", stacklevel=2)
        kwargs["downsample"] = 1
    params = TASK.params(method=method, **kwargs)
    arrays = {"labels": labels, "pred_probs": pred_probs}
    outputs = public.run(TASK, arrays, params, batch_size=batch_size, n_jobs=n_jobs)
    return outputs["image_scores"], outputs["pixel_scores"]


def find_label_issues(
    labels: Any,
    pred_probs: Any,
    *,
    batch_size: int | None = None,
    n_jobs: int | None = None,
    verbose: bool = True,
    downsample: int = 1,
    ignore_index: int | None = None,
) -> Any:
    """Find the pixels that are probably labelled wrongly, by confident learning over all pixels of the data set.

    Parameters
    ----------
    labels : (n, h, w) int array
        Given class of each pixel in 0..k-1; NumPy, Dask or xarray.
    pred_probs : (n, k, h, w) float array
        Predicted probabilities, out of sample.
    batch_size, n_jobs : int, optional
        Images per block and number of threads, for arrays in memory; chosen by size and cores where not given.
    verbose : bool
        Accepted for compatibility; nothing is printed.
    downsample : int
        Look at cells of so many pixels in each direction instead of pixels: faster and coarser.
    ignore_index : int, optional
        Label of pixels that are never counted.

    Returns
    -------
    (n, h, w) bool array
        True where a label is an issue, of the kind of the inputs. Dask input computes nothing yet; computing reads it
        three times or more.

    Raises
    ------
    InvalidInput
        A ValueError that names the array, the image, the pixel and the reason.

    Examples
    --------
    >>> import numpy as np
    >>> labels = np.array([[[0, 0, 1]]])
    >>> pred_probs = np.array([[[[0.9, 0.1, 0.2]], [[0.1, 0.9, 0.8]]]])
    >>> find_label_issues(labels, pred_probs)
    array([[[False,  True, False]]])
    """
    params = TASK.params(method="num_pixel_issues", downsample=downsample, ignore_index=ignore_index)
    arrays = {"labels": labels, "pred_probs": pred_probs}
    return public.run(TASK, arrays, params, batch_size=batch_size, n_jobs=n_jobs)["is_issue"]


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


def common_label_issues(
    issues: Any,
    labels: Any,
    pred_probs: Any,
    *,
    class_names: Sequence[str] | None = None,
    exclude: Sequence[int] | None = None,
    top: int | None = None,
    verbose: bool = True,
) -> pd.DataFrame:
    """Count the issues by given and predicted class, the most frequent first.

    Parameters
    ----------
    issues : (n, h, w) bool array
        As from `find_label_issues`.
    labels : (n, h, w) int array
    pred_probs : (n, k, h, w) float array
    class_names : sequence of str, optional
        Shown in place of class numbers.
    exclude : sequence of int, optional
        Predicted classes to leave out.
    top : int, optional
        Number of rows, 20 where not given.
    verbose : bool
        Print a sentence for each row.

    Returns
    -------
    DataFrame
        ``given_label``, ``predicted_label``, ``num_pixel_issues``. Dask input is computed, block by block.

    Raises
    ------
    InvalidInput
        Where shapes do not fit together.
    """
    masks, given, probs = (public.plain(array) for array in (issues, labels, pred_probs))
    if probs.ndim != 4 or given.shape != masks.shape or given.shape != (probs.shape[0], *probs.shape[2:]):
        raise InvalidInput(
            f"issues {masks.shape}, labels {given.shape} and pred_probs {probs.shape} do not fit together",
            mend="They are (n, h, w), (n, h, w) and (n, k, h, w).",
        )
    k = probs.shape[1]
    counts = _pair_counts(masks, given, probs)
    counts[:, list(exclude or ())] = 0
    names = list(class_names) if class_names is not None else [str(c) for c in range(k)]
    pairs = [(names[i], names[j], int(counts[i, j])) for i, j in np.argwhere(counts) if i < len(names)]
    pairs = sorted(pairs, key=lambda pair: -pair[2])[: _MOST_PAIRS if top is None else top]
    found = pd.DataFrame(pairs, columns=["given_label", "predicted_label", "num_pixel_issues"])
    if verbose:
        for row in found.itertuples():
            print(f"{row.num_pixel_issues} pixels labelled {row.given_label!r} are predicted {row.predicted_label!r}")
    return found


def filter_by_class(class_index: int, issues: Any, labels: Any, pred_probs: Any) -> Any:
    """The issues in which a class is given or predicted.

    Parameters
    ----------
    class_index : int
    issues : (n, h, w) bool array
        As from `find_label_issues`.
    labels : (n, h, w) int array
    pred_probs : (n, k, h, w) float array

    Returns
    -------
    (n, h, w) bool array
        Lazy for Dask.
    """
    return issues & ((labels == class_index) | (pred_probs.argmax(1) == class_index))


def _pair_counts(issues: Any, labels: Any, pred_probs: Any) -> NDArray[np.int64]:
    """Issues (k, k) by given and predicted class: block by block where lazy, else image by image."""
    k = pred_probs.shape[1]
    if not any(isinstance(array, np.ndarray) for array in (issues, labels, pred_probs)):
        pairs = np.where(issues, labels.astype(np.int64) * k + pred_probs.argmax(axis=1), k * k)
        return np.asarray(np.bincount(pairs.ravel(), minlength=k * k + 1))[: k * k].reshape(k, k)
    counts = np.zeros(k * k, np.int64)
    for mask, given, probs in zip(issues, labels, pred_probs, strict=True):
        y, x = np.nonzero(np.asarray(mask))
        predicted = predicted_classes(np.asarray(probs)[None])[0]
        counts += np.bincount(np.asarray(given)[y, x].astype(np.int64) * k + predicted[y, x], minlength=k * k)
    return counts.reshape(k, k)
