"""Pixels with the ignore index are never scored or counted, wherever that matters."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import pytest
from numpy.typing import NDArray

from labelqa_dask.core.task import Block
from labelqa_dask.segmentation import TASK, find_label_issues, get_label_quality_scores
from tests.strategies import segmentation_data

IGNORED = 255


def data(dtype: str = "float64") -> tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_]]:
    """Images padded on two sides, with predictions there that would be refused elsewhere."""
    labels, pred_probs = segmentation_data(4, 3, 10, 12, seed=3)
    ignored = np.zeros(labels.shape, bool)
    for i in range(4):
        ignored[i, 8 - i :], ignored[i, :, 9 + i % 3 :] = True, True
    labels[ignored] = IGNORED
    pred_probs = np.where(ignored[:, None], np.nan, pred_probs).astype(dtype)
    return labels.astype(np.uint8), pred_probs, ignored


def cropped(i: int, labels: Any, pred_probs: Any) -> tuple[Any, Any]:
    return labels[i : i + 1, : 8 - i, : 9 + i % 3], pred_probs[i : i + 1, :, : 8 - i, : 9 + i % 3]


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_scores_of_padded_images_are_those_of_the_images(dtype: str) -> None:
    labels, pred_probs, ignored = data(dtype)
    for arrays in (
        (labels, pred_probs),
        (da.from_array(labels, chunks=(2, 4, 5)), da.from_array(pred_probs, chunks=(2, 3, 4, 5))),
    ):
        images, pixels = (np.asarray(part) for part in get_label_quality_scores(*arrays, ignore_index=IGNORED))
        np.testing.assert_array_equal(np.isnan(pixels), ignored)
        for i in range(4):
            image, part = get_label_quality_scores(*cropped(i, labels, pred_probs))
            np.testing.assert_allclose(images[i], image[0], rtol=1e-12)
            np.testing.assert_array_equal(pixels[i, : 8 - i, : 9 + i % 3], part[0])


@pytest.mark.parametrize("downsample", [1, 2])
def test_issues_are_counted_among_the_other_pixels_only(downsample: int) -> None:
    labels, pred_probs = segmentation_data(3, 4, 8, 6, seed=9)
    padded_labels = np.full((3, 12, 10), IGNORED)
    padded_labels[:, :8, :6] = labels
    padded_probs = np.zeros((3, 4, 12, 10))
    padded_probs[:, :, :8, :6] = pred_probs
    expected = find_label_issues(labels, pred_probs, downsample=downsample)
    found = find_label_issues(padded_labels, padded_probs, downsample=downsample, ignore_index=IGNORED)
    np.testing.assert_array_equal(found[:, :8, :6], expected)
    assert found.sum() == expected.sum() > 0
    settings: dict[str, Any] = {"method": "num_pixel_issues", "downsample": downsample}
    images, _ = get_label_quality_scores(padded_labels, padded_probs, ignore_index=IGNORED, **settings)
    np.testing.assert_allclose(images, get_label_quality_scores(labels, pred_probs, **settings)[0])


def test_cells_are_means_of_the_pixels_that_count() -> None:
    labels = np.array([[[0, IGNORED, 1, 1], [IGNORED, IGNORED, 1, 1]]])
    first = np.array([[[0.1, 0.9, 0.3, 0.2], [0.9, 0.9, 0.2, 0.3]]])
    pred_probs = np.stack([first, 1 - first], axis=1)
    found = find_label_issues(labels, pred_probs, downsample=2, ignore_index=IGNORED)
    assert found[0, 0].tolist() == [True, False, False, False]
    assert not found[0, 1].any()


@pytest.mark.parametrize("method", ["softmin", "num_pixel_issues"])
def test_images_of_which_nothing_counts(method: Any) -> None:
    labels, pred_probs = segmentation_data(3, 3, 4, 4)
    labels[1] = -1
    images, pixels = get_label_quality_scores(labels, pred_probs, method=method, ignore_index=-1)
    assert np.isnan(images).tolist() == [False, True, False]
    assert np.isnan(pixels[1]).all()
    everything = np.full_like(labels, -1)
    images, pixels = get_label_quality_scores(everything, pred_probs, method=method, ignore_index=-1)
    assert np.isnan(images).all()
    assert not find_label_issues(everything, pred_probs, ignore_index=-1).any()


def test_ignored_labels_must_be_named() -> None:
    labels, pred_probs, _ = data()
    with pytest.raises(ValueError, match=r"label 255 is outside 0\.\.2 .* as ignore_index"):
        get_label_quality_scores(labels, pred_probs)


def test_other_pixels_are_still_checked() -> None:
    labels, pred_probs, _ = data()
    pred_probs[2, 1, 0, 3] = np.nan
    for function in (get_label_quality_scores, find_label_issues):
        with pytest.raises(ValueError, match="example 2, class 1, y 0, x 3: probability is nan"):
            function(labels, pred_probs, ignore_index=IGNORED)


def test_pixels_that_were_never_predicted_are_refused() -> None:
    labels, pred_probs = segmentation_data(3, 3, 4, 4)
    pred_probs[1, :, 2:, 1] = 0
    for function in (get_label_quality_scores, find_label_issues):
        with pytest.raises(ValueError, match=r"example 1, y 2, x 1: all probabilities of a pixel are 0"):
            function(labels, pred_probs)
    labels[1, 2:, 1] = 9
    get_label_quality_scores(labels, pred_probs, ignore_index=9)


def test_classes_and_previews_leave_ignored_pixels_out() -> None:
    labels, pred_probs, ignored = data()
    params = TASK.params(ignore_index=IGNORED)
    block = Block({"labels": labels, "pred_probs": pred_probs})
    scores = TASK.score(block, params, {})
    assert TASK.class_scores(block, scores).count.sum() == (~ignored).sum()
    preview = TASK.preview(Block({"labels": labels[:1], "pred_probs": pred_probs[:1]}), params)
    np.testing.assert_array_equal(preview.given < 0, ignored[0])
    np.testing.assert_array_equal(np.isnan(preview.pixel_scores), ignored[0])
    described = TASK.describe(block, scores, np.array([2, 0])).result()
    assert described["box_bottom"][0] <= 6
    assert described["given_label"].max() < 3
