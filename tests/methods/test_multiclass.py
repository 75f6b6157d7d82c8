"""Multiclass scores by hand, and where their formulas meet their limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from labelqa_dask.core.task import Block
from labelqa_dask.multiclass import TASK, get_label_quality_scores
from labelqa_dask.multiclass.task import class_means

LABELS = np.array([0, 0, 1, 1, 2, 2])
PRED_PROBS = np.array(
    [[0.9, 0.05, 0.05], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1], [0.05, 0.1, 0.85], [0.1, 0.1, 0.8], [0.05, 0.05, 0.9]]
)


def test_self_confidence_is_the_probability_of_the_label() -> None:
    scores = get_label_quality_scores(LABELS, PRED_PROBS)
    np.testing.assert_array_equal(scores, [0.9, 0.2, 0.8, 0.1, 0.8, 0.9])
    assert np.argsort(scores, kind="stable")[:3].tolist() == [3, 1, 2]


def test_normalized_margin_is_the_lead_over_the_best_other_class() -> None:
    scores = get_label_quality_scores(LABELS, PRED_PROBS, method="normalized_margin")
    np.testing.assert_allclose(scores, [0.925, 0.25, 0.85, 0.125, 0.85, 0.925], rtol=1e-15)


def test_confidence_weighted_entropy_is_lowest_for_the_surest_contradiction() -> None:
    scores = get_label_quality_scores(LABELS, PRED_PROBS, method="confidence_weighted_entropy")
    assert np.argsort(scores).tolist()[:2] == [3, 1]
    entropy = -(0.9 * np.log(0.9) + 2 * 0.05 * np.log(0.05)) / np.log(3) / 0.9
    assert scores[0] == pytest.approx(np.log1p(entropy) / entropy, rel=1e-12)


def test_adjusting_lifts_the_classes_of_which_the_model_is_unsure() -> None:
    labels, pred_probs = np.array([0, 1, 1]), np.array([[0.5, 0.5], [0.25, 0.75], [0.25, 0.75]])
    scores = get_label_quality_scores(labels, pred_probs, adjust_pred_probs=True)
    np.testing.assert_allclose(scores, [0.75 / 1.25, 0.75 / 1.25, 0.75 / 1.25], rtol=1e-15)


def test_confident_thresholds_are_class_means_with_a_floor_and_two_for_a_missing_class() -> None:
    block = Block({"labels": np.array([0, 0, 1]), "pred_probs": np.array([[0.6, 0.4, 0], [0.2, 0.8, 0], [1, 0, 0]])})
    thresholds = class_means(block, TASK.params(adjust_pred_probs=True), {}).result()
    np.testing.assert_allclose(thresholds, [0.4, 2e-6, 2.0], rtol=1e-15)


@pytest.mark.parametrize("method", ["self_confidence", "normalized_margin", "confidence_weighted_entropy"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_probabilities_past_one_by_rounding_stay_near_the_bounds(method: Any, dtype: str) -> None:
    pred_probs = np.array([[1 + 9e-7, -9e-7], [-9e-7, 1 + 9e-7]], dtype)
    scores = get_label_quality_scores(np.array([0, 0]), pred_probs, method=method)
    assert (scores >= -1e-6).all()
    assert (scores <= 1 + 1e-6).all()


@pytest.mark.parametrize(("dtype", "result"), [("float64", "float64"), ("float32", "float32"), ("float16", "float32")])
def test_scores_are_as_precise_as_the_predictions(dtype: str, result: str) -> None:
    assert get_label_quality_scores(LABELS, PRED_PROBS.astype(dtype)).dtype == result


def test_the_worst_are_listed_with_the_label_that_the_model_suggests() -> None:
    columns = TASK.describe(Block({"labels": LABELS, "pred_probs": PRED_PROBS}), {}, np.array([3, 1]))
    assert columns["given_label"].tolist() == [1, 0]
    assert columns["suggested_label"].tolist() == [2, 1]
