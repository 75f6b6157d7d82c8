"""Label issues are those of cleanlab; among equal scores, whose order is arbitrary there, ours are taken by index."""

from __future__ import annotations

from typing import Any

import cleanlab.rank
import cleanlab.segmentation.filter
import cleanlab.segmentation.rank
import cleanlab.segmentation.summary
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from cleanlab.experimental.label_issues_batched import find_label_issues_batched
from numpy.typing import NDArray

from labelqa_dask import multiclass, segmentation
from tests.strategies import multiclass_data, segmentation_data

METHODS = [
    ("self_confidence", False),
    ("self_confidence", True),
    ("normalized_margin", False),
    ("normalized_margin", True),
    ("confidence_weighted_entropy", False),
]
ESTIMATES = ["off_diagonal", "off_diagonal_calibrated"]


def issues_of_cleanlab(labels: Any, pred_probs: Any, **settings: Any) -> Any:
    found = find_label_issues_batched(
        labels, pred_probs, batch_size=len(labels), verbose=False, return_mask=True, **settings
    )
    return found


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("k", [2, 3, 10])
@pytest.mark.parametrize(("method", "adjust"), METHODS)
@pytest.mark.parametrize("estimate", ESTIMATES)
def test_multiclass_issues(dtype: str, k: int, method: str, adjust: bool, estimate: str) -> None:
    labels, pred_probs = multiclass_data(800, k, seed=k)
    pred_probs = pred_probs.astype(dtype)
    settings: dict[str, Any] = {
        "quality_score_kwargs": {"method": method, "adjust_pred_probs": adjust},
        "num_issue_kwargs": {"estimation_method": estimate},
    }
    expected = issues_of_cleanlab(labels, pred_probs, **settings)
    assert expected.any()
    mask = multiclass.find_label_issues(labels, pred_probs, return_mask=True, **settings)
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal(
        multiclass.find_label_issues(labels, pred_probs, **settings), np.flatnonzero(expected)
    )
    lazy = multiclass.find_label_issues(
        da.from_array(labels, chunks=130), da.from_array(pred_probs, chunks=(90, 1)), **settings
    )
    assert isinstance(lazy, da.Array)
    np.testing.assert_array_equal(lazy.compute(scheduler="sync"), np.flatnonzero(expected))


def test_multiclass_issues_where_a_class_never_occurs() -> None:
    labels, pred_probs = multiclass_data(500, 5)
    labels[labels == 3] = 0
    expected = issues_of_cleanlab(labels, pred_probs)
    np.testing.assert_array_equal(multiclass.find_label_issues(labels, pred_probs, return_mask=True), expected)


def test_multiclass_without_issues() -> None:
    _, pred_probs = multiclass_data(50, 3)
    labels = pred_probs.argmax(axis=1)
    assert not issues_of_cleanlab(labels, pred_probs).any()
    assert multiclass.find_label_issues(labels, pred_probs).tolist() == []
    lazy = multiclass.find_label_issues(da.from_array(labels, chunks=7), da.from_array(pred_probs, chunks=(7, 3)))
    assert lazy.compute(scheduler="sync").tolist() == []


def test_nearly_equal_probabilities_are_no_issue() -> None:
    labels = np.array([0, 1, 1, 0, 1])
    pred_probs = np.array([[0.5 - 1e-7, 0.5 + 1e-7], [0.2, 0.8], [0.3, 0.7], [0.1, 0.9], [0.6, 0.4]])
    expected = issues_of_cleanlab(labels, pred_probs)
    np.testing.assert_array_equal(multiclass.find_label_issues(labels, pred_probs, return_mask=True), expected)


def test_order_and_top() -> None:
    labels, pred_probs = multiclass_data(300, 4)
    mask = multiclass.find_label_issues(labels, pred_probs, return_mask=True)
    for method in ("self_confidence", "normalized_margin", "confidence_weighted_entropy"):
        expected = cleanlab.rank.order_label_issues(mask, labels, pred_probs, rank_by=method)
        np.testing.assert_array_equal(multiclass.order_label_issues(mask, labels, pred_probs, rank_by=method), expected)
    adjusted: dict[str, Any] = {"rank_by_kwargs": {"adjust_pred_probs": True}}
    lazy = multiclass.order_label_issues(
        da.from_array(mask, chunks=50),
        da.from_array(labels, chunks=50),
        da.from_array(pred_probs, chunks=50),
        **adjusted,
    )
    expected = cleanlab.rank.order_label_issues(mask, labels, pred_probs, **adjusted)
    np.testing.assert_array_equal(lazy.compute(scheduler="sync"), expected)
    scores = multiclass.get_label_quality_scores(labels, pred_probs)
    for top in (1, 10, 299, 1000, None):
        np.testing.assert_array_equal(
            multiclass.find_top_issues(scores, top=top), cleanlab.rank.find_top_issues(scores, top=top)
        )
        np.testing.assert_array_equal(
            multiclass.find_top_issues(da.from_array(scores, chunks=70), top=top).compute(scheduler="sync"),
            cleanlab.rank.find_top_issues(scores, top=top),
        )


@pytest.mark.parametrize("weighting", ["uniform", "accuracy", "log_loss_search", "custom"])
@pytest.mark.parametrize(("method", "adjust"), METHODS)
def test_ensemble_scores(weighting: Any, method: Any, adjust: bool) -> None:
    labels, first = multiclass_data(400, 4)
    members = [first, *(multiclass_data(400, 4, seed=seed)[1] for seed in (1, 2))]
    members[1][5] = np.eye(4)[(labels[5] + 1) % 4]
    settings: dict[str, Any] = {"method": method, "adjust_pred_probs": adjust, "weight_ensemble_members_by": weighting}
    if weighting == "custom":
        settings["custom_weights"] = np.array([0.5, 0.2, 0.3])
    expected = cleanlab.rank.get_label_quality_ensemble_scores(labels, members, verbose=False, **settings)
    scores = multiclass.get_label_quality_ensemble_scores(labels, members, **settings)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-9)
    lazy = multiclass.get_label_quality_ensemble_scores(
        da.from_array(labels, chunks=90), [da.from_array(member, chunks=(90, 3)) for member in members], **settings
    )
    assert isinstance(lazy, da.Array)
    np.testing.assert_allclose(lazy.compute(scheduler="sync"), expected, rtol=0, atol=1e-9)


def test_ensembles_that_do_not_fit_are_refused() -> None:
    labels, pred_probs = multiclass_data(20, 3)
    score = multiclass.get_label_quality_ensemble_scores
    with pytest.raises(ValueError, match="empty"):
        score(labels, [])
    with pytest.raises(ValueError, match="Did you mean 'accuracy'"):
        score(labels, [pred_probs] * 2, weight_ensemble_members_by="acuracy")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="custom_weights go with"):
        score(labels, [pred_probs] * 2, custom_weights=[1, 0])
    with pytest.raises(ValueError, match="custom_weights go with"):
        score(labels, [pred_probs] * 2, weight_ensemble_members_by="custom")
    with pytest.raises(ValueError, match="1 custom_weights for 2 models"):
        score(labels, [pred_probs] * 2, weight_ensemble_members_by="custom", custom_weights=[1])
    with pytest.warns(UserWarning, match="one element"):
        np.testing.assert_allclose(score(labels, [pred_probs]), multiclass.get_label_quality_scores(labels, pred_probs))


# -- segmentation


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize("downsample", [1, 2, 3])
def test_pixel_issues(dtype: str, k: int, downsample: int) -> None:
    labels, pred_probs = segmentation_data(4, k, 12, 18, seed=k)
    pred_probs = pred_probs.astype(dtype)
    expected = cleanlab.segmentation.filter.find_label_issues(
        labels, pred_probs, downsample=downsample, verbose=False, n_jobs=1
    )
    assert expected.any()
    mask = segmentation.find_label_issues(labels, pred_probs, downsample=downsample)
    np.testing.assert_array_equal(mask, expected)
    chunks: list[tuple[int, ...]] = [(1, 12, 18), (2, 5, 7), (3, 1, 18), (4, 12, 2)]
    for n, h, w in chunks:
        lazy = segmentation.find_label_issues(
            da.from_array(labels, chunks=(n, h, w)),
            da.from_array(pred_probs, chunks=(n, 1, h, w)),
            downsample=downsample,
        )
        assert isinstance(lazy, da.Array)
        np.testing.assert_array_equal(lazy.compute(scheduler="sync"), expected)


@pytest.mark.parametrize("downsample", [1, 2])
def test_image_scores_by_issues(downsample: int) -> None:
    labels, pred_probs = segmentation_data(5, 3, 8, 10)
    settings: dict[str, Any] = {"method": "num_pixel_issues", "downsample": downsample}
    expected = cleanlab.segmentation.rank.get_label_quality_scores(
        labels, pred_probs, verbose=False, n_jobs=1, **settings
    )
    for found, theirs in zip(
        segmentation.get_label_quality_scores(labels, pred_probs, **settings), expected, strict=True
    ):
        np.testing.assert_allclose(found, theirs, rtol=0, atol=1e-12)


def test_pixel_issues_of_float16_and_of_named_dimensions() -> None:
    labels, pred_probs = segmentation_data(3, 4, 9, 7)
    half = pred_probs.astype(np.float16)
    expected = cleanlab.segmentation.filter.find_label_issues(labels, half.astype(np.float32), verbose=False, n_jobs=1)
    np.testing.assert_array_equal(segmentation.find_label_issues(labels, half) ^ expected, np.zeros(labels.shape, bool))
    named = segmentation.find_label_issues(
        xr.DataArray(labels, dims=("tile", "row", "column")),
        xr.DataArray(pred_probs, dims=("tile", "band", "row", "column")),
    )
    assert named.dims == ("tile", "row", "column")
    np.testing.assert_array_equal(named.values, segmentation.find_label_issues(labels, pred_probs))


def lowest_by_index(scores: NDArray[Any], count: int) -> NDArray[np.bool_]:
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(scores.ravel(), kind="stable")[:count]] = True
    return mask.reshape(scores.shape)


@pytest.mark.parametrize("levels", [2, 8, 200])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_equal_scores_are_taken_in_index_order(levels: int, dtype: str) -> None:
    labels, pred_probs = segmentation_data(6, 3, 10, 11, seed=levels)
    pred_probs = (np.round(pred_probs * levels) / levels).astype(dtype)
    scores = np.take_along_axis(pred_probs, labels[:, None], axis=1)[:, 0]
    predicted = pred_probs.argmax(axis=1)
    thresholds = np.array([scores[labels == j].astype(float).mean() for j in range(3)])
    count = int(((pred_probs.max(axis=1) >= thresholds[predicted] - 1e-6) & (predicted != labels)).sum())
    expected = lowest_by_index(scores, count) & (predicted != labels)
    theirs = cleanlab.segmentation.filter.find_label_issues(labels, pred_probs, verbose=False, n_jobs=1)
    cutoff = np.sort(scores.ravel())[count - 1]
    np.testing.assert_array_equal(expected[scores != cutoff], theirs[scores != cutoff])
    np.testing.assert_array_equal(segmentation.find_label_issues(labels, pred_probs), expected)
    for chunks in [(1, 10, 11), (4, 3, 5), (6, 10, 1)]:
        n, h, w = chunks
        lazy = segmentation.find_label_issues(
            da.from_array(labels, chunks=chunks), da.from_array(pred_probs, chunks=(n, 3, h, w))
        )
        np.testing.assert_array_equal(lazy.compute(scheduler="sync"), expected)


def test_common_issues_and_issues_of_a_class(capsys: pytest.CaptureFixture[str]) -> None:
    labels, pred_probs = segmentation_data(4, 4, 9, 8)
    issues = segmentation.find_label_issues(labels, pred_probs)
    lazily = [da.from_array(array, chunks=3) for array in (issues, labels, pred_probs)]
    settings: list[dict[str, Any]] = [{}, {"exclude": [1]}, {"top": 3}, {"class_names": ["a", "b", "c", "d"]}]
    for setting in settings:
        expected = cleanlab.segmentation.summary.common_label_issues(
            issues, labels, pred_probs, verbose=False, **setting
        )
        for arrays in ([issues, labels, pred_probs], lazily):
            found = segmentation.common_label_issues(*arrays, verbose=False, **setting)
            pd.testing.assert_frame_equal(found, expected, check_dtype=False)
    capsys.readouterr()
    segmentation.common_label_issues(issues, labels, pred_probs, top=1)
    assert "pixels labelled" in capsys.readouterr().out
    for class_index in range(4):
        expected = cleanlab.segmentation.summary.filter_by_class(class_index, issues, labels, pred_probs)
        for arrays in ([issues, labels, pred_probs], lazily):
            np.testing.assert_array_equal(segmentation.filter_by_class(class_index, *arrays), expected)


def test_softmin_does_not_downsample() -> None:
    labels, pred_probs = segmentation_data(2, 3, 4, 4)
    with pytest.warns(UserWarning, match="num_pixel_issues"):
        segmentation.get_label_quality_scores(labels, pred_probs, downsample=2)
    with pytest.raises(ValueError, match="not divisible by 3"):
        segmentation.find_label_issues(labels, pred_probs, downsample=3)
