"""Multilabel scores by hand, the forms that labels may have, and what is said of bad ones."""

from __future__ import annotations

from typing import Any

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy import sparse

from labelqa_dask import multilabel
from labelqa_dask.core.errors import InvalidConfig, InvalidInput
from labelqa_dask.core.label_sets import LabelSets
from labelqa_dask.core.task import Block
from labelqa_dask.multilabel import TASK, Aggregator, ClassLabelScorer, MultilabelScorer
from tests.strategies import multilabel_data

LABELS = np.array([[0, 1, 0], [1, 0, 1]])
PRED_PROBS = np.array([[0.1, 0.9, 0.1], [0.4, 0.1, 0.9]])


def lists(labels: Any) -> list[list[int]]:
    return [np.flatnonzero(row).tolist() for row in labels]


def test_worked_examples() -> None:
    np.testing.assert_allclose(multilabel.get_label_quality_scores(LABELS, PRED_PROBS), [0.9, 0.5], rtol=1e-15)
    scorer = MultilabelScorer(ClassLabelScorer.NORMALIZED_MARGIN, np.min)
    np.testing.assert_allclose(scorer(LABELS, PRED_PROBS), [0.9, 0.4], rtol=1e-15)
    average = multilabel.exponential_moving_average(np.array([[0.1, 0.2, 0.3]]), alpha=0.5)
    np.testing.assert_allclose(average, [0.175], rtol=1e-15)


def test_a_class_scorer_scores_a_binary_problem() -> None:
    columns = np.array([[0.9, 0.1], [0.75, 0.25]])
    np.testing.assert_array_equal(ClassLabelScorer.SELF_CONFIDENCE(np.array([0, 1]), columns), [0.9, 0.25])


@pytest.mark.parametrize("k", [3, 70])
@pytest.mark.parametrize(
    "form",
    [
        lambda labels: labels.astype(bool),
        lambda labels: labels.astype(np.int8),
        lambda labels: np.asfortranarray(labels),
        lists,
        lambda labels: pd.Series(lists(labels)),
        lambda labels: pd.DataFrame(labels),
        sparse.csr_matrix,
        sparse.coo_array,
        lambda labels: da.from_array(labels, chunks=(7, 2)),
        lambda labels: da.from_array(labels, chunks=(7, 2)).map_blocks(sparse.csr_array).rechunk((7, -1)),
        lambda labels: dd.from_pandas(pd.DataFrame({"y": lists(labels)}), npartitions=4, sort=False)["y"],
    ],
    ids=["bool", "int8", "fortran", "lists", "series", "frame", "csr", "coo", "dask", "dask-sparse", "dask-series"],
)
@pytest.mark.parametrize("lazy", [False, True], ids=["eager", "lazy"])
def test_labels_may_have_any_form(form: Any, k: int, lazy: bool) -> None:
    labels, pred_probs = multilabel_data(40, k)
    expected = multilabel.get_label_quality_scores(labels, pred_probs, adjust_pred_probs=True)
    with dask.config.set({"dataframe.convert-string": False}):
        given = form(labels)
        if hasattr(given, "to_dask_array"):
            given = given.to_dask_array(lengths=True)
        chunks = given.chunks[0] if isinstance(given, da.Array) else 9
        probs = da.from_array(pred_probs, chunks=(chunks, 2)) if lazy else pred_probs
        found = multilabel.get_label_quality_scores(given, probs, adjust_pred_probs=True)
    assert isinstance(found, da.Array) == (lazy or isinstance(given, da.Array))
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-12)


@pytest.mark.parametrize(
    "aggregator", [Aggregator("softmin"), Aggregator(np.mean), Aggregator("exponential_moving_average")]
)
def test_xarray_keeps_names_and_coordinates(aggregator: Any) -> None:
    rows = {"row": np.arange(10, 12)}
    labels = xr.DataArray(LABELS, dims=("row", "tag"), coords=rows)
    pred_probs = xr.DataArray(PRED_PROBS, dims=("row", "tag"), coords=rows)
    scorer = MultilabelScorer(aggregator=Aggregator(aggregator))
    per_class = scorer.get_class_label_quality_scores(labels, pred_probs)
    assert per_class.dims == ("row", "tag")
    for scores in (scorer(labels, pred_probs), scorer.aggregate(per_class)):
        assert scores.dims == ("row",)
        assert scores.row.values.tolist() == [10, 11]
        np.testing.assert_allclose(scores.values, scorer(LABELS, PRED_PROBS), rtol=1e-15)
    assert multilabel.multilabel_py(labels).dims == ("tag", "label")
    np.testing.assert_array_equal(multilabel.multilabel_py(labels), [[0.5, 0.5]] * 3)


def test_functions_work_on_rows_of_blocks_as_on_all() -> None:
    labels, pred_probs = multilabel_data(50, 5)
    scorer = MultilabelScorer(aggregator=Aggregator(np.quantile, q=0.5))
    lazy = scorer(da.from_array(labels, chunks=7), da.from_array(pred_probs, chunks=7), None, q=0.25)
    per_class = multilabel.get_label_quality_scores_per_class(labels, pred_probs)
    np.testing.assert_array_equal(lazy.compute(scheduler="sync"), np.quantile(per_class, 0.25, axis=1))


def sum_of_all(scores: Any, axis: int) -> Any:
    return scores.sum()


def test_a_function_that_makes_something_else_is_named() -> None:
    with pytest.raises(InvalidInput, match=r"aggregator sum_of_all: made an array of shape \(\) of scores of shape"):
        MultilabelScorer(aggregator=sum_of_all)(LABELS, PRED_PROBS)


def test_missing_scores_stay_missing() -> None:
    scores = np.array([[0.5, np.nan, 0.2], [0.5, 0.4, 0.2]])
    for aggregate in (multilabel.exponential_moving_average, multilabel.softmin):
        assert np.isnan(aggregate(scores)).tolist() == [True, False]
        assert np.isnan(aggregate(np.tile(scores, 50))).tolist() == [True, False]


def test_a_single_class_is_scored_where_strictness_is_not_asked_for() -> None:
    labels, pred_probs = LABELS[:, :1], PRED_PROBS[:, :1]
    with pytest.raises(InvalidInput, match="there is only one class"):
        MultilabelScorer()(labels, pred_probs)
    np.testing.assert_allclose(MultilabelScorer(strict=False)(labels, pred_probs), [0.9, 0.4], rtol=1e-15)


def test_labels_of_one_value_are_legal() -> None:
    for labels in (np.zeros((2, 3), int), np.ones((2, 3), int)):
        scores = multilabel.get_label_quality_scores(labels, PRED_PROBS, adjust_pred_probs=True)
        assert np.isfinite(scores).all()


def test_classifiers_that_make_pairs_of_columns_will_do() -> None:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import KFold

    features = np.random.default_rng(0).random((40, 2))
    forest = RandomForestClassifier(5, random_state=0)
    found = multilabel.get_cross_validated_multilabel_pred_probs(
        features, (features > 0.5).astype(int), clf=forest, cv=KFold(2)
    )
    assert found.shape == (40, 2)
    assert ((found > 0.5) == (features > 0.5)).mean() > 0.9


def test_the_sets_of_the_worst_are_told_as_lists() -> None:
    block = Block({"labels": LabelSets.of_lists([[1], [0, 2]], 3), "pred_probs": PRED_PROBS})
    params = TASK.params()
    told = TASK.describe(block, TASK.score(block, params, {}), np.array([1, 0]))
    assert told["given_label"].tolist() == [[0, 2], [1]]
    assert told["suggested_label"].tolist() == [[2], [1]]


BAD: dict[str, tuple[Any, Any, str]] = {
    "neither 0 nor 1": (LABELS * 2, PRED_PROBS, r"^labels, example 0, class 1: label 2 is neither 0 nor 1"),
    "negative": (-LABELS, PRED_PROBS, r"^labels, example 0, class 1: label -1 is neither"),
    "floats": (LABELS.astype(float), PRED_PROBS, r"^labels: labels must be 0 or 1 for each class, got float64"),
    "other shape": (LABELS[:, :2], PRED_PROBS, r"pred_probs has 3 along 'class' but labels has 2"),
    "class too high": ([[1], [0, 3]], PRED_PROBS, r"^labels, example 1: class 3 is outside 0\.\.2"),
    "class below 0": ([[1], [-1]], PRED_PROBS, r"^labels, example 1: class -1 is outside"),
    "0 and 1 in lists": (
        [[0, 1, 0], [1, 0, 1]],
        PRED_PROBS,
        r"^labels, example 0: class 0 is listed twice\. ",
    ),
    "names": ([["a"], ["b"]], PRED_PROBS, r"^labels: class ids must be integers"),
    "no lists": ([1, 0], PRED_PROBS, r"^labels: must be a list of class ids per example"),
    "too few lists": ([[1]], PRED_PROBS, r"pred_probs has 2 along 'example' but labels has 1"),
    "sparse of other values": (
        sparse.csr_array(LABELS * 3),
        PRED_PROBS,
        r"^labels, example 0, class 1: value 3 is neither 0 nor 1",
    ),
    "logits": (
        LABELS,
        PRED_PROBS * 5,
        r"^pred_probs, example 0, class 1: probability 4\.5 is outside \[0, 1\]",
    ),
    "not a number": (LABELS, PRED_PROBS * np.nan, r"^pred_probs, example 0, class 0: probability is nan"),
    "one dimension": (LABELS, PRED_PROBS[0], r"^pred_probs: pred_probs must have 2 dimensions"),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("adjust", [False, True])
def test_bad_input_is_named(bad: str, adjust: bool) -> None:
    labels, pred_probs, message = BAD[bad]
    with pytest.raises(InvalidInput, match=message):
        multilabel.get_label_quality_scores(labels, pred_probs, adjust_pred_probs=adjust)


def test_bad_values_of_lazy_input_are_named_by_their_place() -> None:
    labels, pred_probs = multilabel_data(300, 4)
    labels[271, 2] = 7
    lazy = multilabel.get_label_quality_scores(da.from_array(labels, chunks=50), da.from_array(pred_probs, chunks=50))
    with pytest.raises(InvalidInput, match=r"^labels, example 271, class 2: label 7 is neither"):
        lazy.compute(scheduler="sync")
    rows = lists(labels == 1)
    rows[271] = [4]
    series = np.empty(300, object)
    series[:] = rows
    lazy = multilabel.get_label_quality_scores(da.from_array(series, chunks=50), da.from_array(pred_probs, chunks=50))
    with pytest.raises(InvalidInput, match=r"^labels, example 271: class 4 is outside 0\.\.3"):
        lazy.compute(scheduler="sync")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 1.5}, r"alpha: Input should be less than or equal to 1"),
        ({"aggregator": "softmin", "alpha": 0.5}, "alpha has no meaning for the aggregator softmin"),
        ({"temperature": 0.5}, "temperature has no meaning for the aggregator exponential_moving_average"),
        ({"aggregator": "mean"}, "aggregator: Input should be"),
        ({"method": "confidence_weighted_entropy", "adjust_pred_probs": True}, "adjust_pred_probs is not supported"),
        ({"agregator": "softmin"}, "Did you mean 'aggregator'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        TASK.params(**settings)


def test_settings_that_were_written_down_whole_are_taken_again() -> None:
    params = TASK.params(aggregator="softmin", temperature=0.2)
    assert TASK.params(**params.model_dump(mode="json")) == params


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(InvalidInput, match="Did you mean 'self_confidence'"):
        multilabel.get_label_quality_scores(LABELS, PRED_PROBS, method="selfconfidence")
    with pytest.raises(InvalidInput, match="Did you mean 'softmin'"):
        Aggregator("softmn")
    with pytest.raises(InvalidInput, match="temperature must be above 0"):
        multilabel.softmin(PRED_PROBS, temperature=0)
    with pytest.raises(InvalidInput, match="axis must be 1"):
        multilabel.exponential_moving_average(PRED_PROBS, axis=0)
