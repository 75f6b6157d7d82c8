"""Segmentation scores by hand, and where the soft minimum meets its limits."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import xarray as xr

from labelqa_dask.core.errors import InvalidInput
from labelqa_dask.core.task import Block
from labelqa_dask.segmentation import TASK, get_label_quality_scores, issues_from_scores
from tests.strategies import segmentation_data

LABELS = np.array([[[0, 1]], [[1, 1]]])
PRED_PROBS = np.array([[[[0.9, 0.8]], [[0.1, 0.2]]], [[[0.0, 0.5]], [[1.0, 0.5]]]])


def test_a_pixel_scores_the_probability_of_its_label() -> None:
    _, pixel_scores = get_label_quality_scores(LABELS, PRED_PROBS)
    np.testing.assert_array_equal(pixel_scores, [[[0.9, 0.2]], [[1.0, 0.5]]])


@pytest.mark.parametrize("temperature", [0.05, 0.1, 2.0])
def test_an_image_scores_the_soft_minimum_of_its_pixels(temperature: float) -> None:
    image_scores, pixel_scores = get_label_quality_scores(LABELS, PRED_PROBS, temperature=temperature)
    scores = pixel_scores.reshape(2, 2)
    weights = np.exp((1 - scores) / temperature)
    np.testing.assert_allclose(image_scores, (scores * weights).sum(1) / weights.sum(1), rtol=1e-12)


def test_a_small_temperature_gives_the_worst_pixel_and_a_large_one_the_mean() -> None:
    labels, pred_probs = segmentation_data(4, 3, 5, 6)
    lowest, pixel_scores = get_label_quality_scores(labels, pred_probs, temperature=1e-9)
    mean, _ = get_label_quality_scores(labels, pred_probs, temperature=1e9)
    np.testing.assert_allclose(lowest, pixel_scores.min(axis=(1, 2)), atol=1e-9)
    np.testing.assert_allclose(mean, pixel_scores.mean(axis=(1, 2)), rtol=1e-6)


@pytest.mark.parametrize("temperature", [1e-9, 1e-300])
def test_parts_of_an_image_merge_at_any_temperature(temperature: float) -> None:
    labels, pred_probs = segmentation_data(3, 3, 4, 6)
    lazy, _ = get_label_quality_scores(
        da.from_array(labels, chunks=(1, 2, 3)), da.from_array(pred_probs, chunks=(1, 3, 2, 3)), temperature=temperature
    )
    eager, _ = get_label_quality_scores(labels, pred_probs, temperature=temperature)
    np.testing.assert_allclose(lazy.compute(scheduler="sync"), eager, rtol=1e-12)


@pytest.mark.parametrize(("dtype", "result"), [("float64", "float64"), ("float32", "float32"), ("float16", "float32")])
@pytest.mark.parametrize("lazy", [False, True])
def test_pixel_scores_follow_the_predictions_and_image_scores_are_double(dtype: str, result: str, lazy: bool) -> None:
    pred_probs = PRED_PROBS.astype(dtype)
    image_scores, pixel_scores = get_label_quality_scores(LABELS, da.from_array(pred_probs) if lazy else pred_probs)
    assert (image_scores.dtype, pixel_scores.dtype) == ("float64", result)


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    get_label_quality_scores(LABELS, PRED_PROBS, verbose=True)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_issues_are_the_images_below_the_threshold_and_one_more_worst_first() -> None:
    scores = np.array([0.9, 0.05, 0.5, 0.01, 0.05])
    assert issues_from_scores(scores).tolist() == [3, 1, 4, 2]
    assert issues_from_scores(scores, threshold=0.0).tolist() == [3]
    assert issues_from_scores(scores, threshold=1.0).tolist() == [3, 1, 4, 2, 0]
    assert issues_from_scores(xr.DataArray(scores, dims="image")).tolist() == [3, 1, 4, 2]


def test_a_pixel_at_the_threshold_is_no_issue() -> None:
    mask = issues_from_scores(np.ones(1), np.array([[[0.1, np.nextafter(0.1, 0)]]]), threshold=0.1)
    assert mask.tolist() == [[[False, True]]]


def test_the_mask_of_named_scores_is_named() -> None:
    pixel_scores = xr.DataArray(np.array([[[0.01, 0.5]]]), dims=("image", "y", "x"), coords={"image": ["a"]})
    mask = issues_from_scores(xr.DataArray(np.ones(1), dims="image"), pixel_scores)
    xr.testing.assert_identical(mask, pixel_scores < 0.1)


@pytest.mark.parametrize("threshold", [-0.01, 1.01, np.nan, None])
def test_a_threshold_out_of_range_is_refused(threshold: float) -> None:
    with pytest.raises(InvalidInput, match="threshold must be between 0 and 1, got"):
        issues_from_scores(np.ones(2), threshold=threshold)


def test_scores_must_be_given() -> None:
    with pytest.raises(InvalidInput, match="image_scores must be given"):
        issues_from_scores(None)


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_a_preview_shows_the_image_as_labelled_predicted_and_scored(dtype: str) -> None:
    labels, pred_probs = segmentation_data(1, 3, 4, 6)
    pred_probs = pred_probs.astype(dtype)
    preview = TASK.preview(Block({"labels": labels.astype(np.uint8), "pred_probs": pred_probs}), TASK.params())
    np.testing.assert_array_equal(preview.given, labels[0])
    np.testing.assert_array_equal(preview.predicted, pred_probs[0].argmax(axis=0))
    np.testing.assert_array_equal(preview.pixel_scores, np.take_along_axis(pred_probs[0], labels, axis=0)[0])
