"""Multilabel scores are those of cleanlab."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cleanlab.internal.multilabel_scorer as reference
import cleanlab.multilabel_classification as reference_lists
import dask.array as da
import numpy as np
import pytest
from cleanlab.experimental.label_issues_batched import LabelInspector
from numpy.typing import NDArray
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.multiclass import OneVsRestClassifier

from labelqa_dask import multilabel
from tests.strategies import multilabel_data

Data = tuple[NDArray[Any], NDArray[Any]]
OPTIONS = [
    ("SELF_CONFIDENCE", False),
    ("SELF_CONFIDENCE", True),
    ("NORMALIZED_MARGIN", False),
    ("NORMALIZED_MARGIN", True),
    ("CONFIDENCE_WEIGHTED_ENTROPY", False),
]
AGGREGATORS: dict[str, dict[str, Any]] = {
    "moving average": {"method": "exponential_moving_average", "alpha": 0.8},
    "usual alpha": {"method": "exponential_moving_average"},
    "mean alpha": {"method": "exponential_moving_average", "alpha": 0.3},
    "alpha 0": {"method": "exponential_moving_average", "alpha": 0},
    "alpha 1": {"method": "exponential_moving_average", "alpha": 1},
    "softmin": {"method": "softmin"},
    "cold softmin": {"method": "softmin", "temperature": 0.01},
    "hot softmin": {"method": "softmin", "temperature": 5},
    "minimum": {"method": np.min},
    "quantile": {"method": np.quantile, "q": 0.25},
}
SHORT = ["moving average", "softmin", "minimum"]
TOLERANCE = {"float64": 1e-9, "float32": 1e-5, "float16": 1e-3}


def imbalanced() -> Data:
    labels, pred_probs = multilabel_data(80, 4)
    labels[:, 1], labels[:, 2] = 0, 1
    labels[0, 0], labels[1:, 0] = 1, 0
    return labels, pred_probs


def nearly_certain() -> Data:
    doubt = 10.0 ** -np.arange(1, 25)
    pred_probs = np.column_stack([doubt, 1 - doubt, doubt, 1 - doubt])
    return np.tile([0, 0, 1, 1], (24, 1)), pred_probs


DATA: dict[str, Callable[[], Data]] = {
    "random": lambda: multilabel_data(150, 5),
    "one example": lambda: (np.array([[0, 1, 0]]), np.array([[0.2, 0.7, 0.1]])),
    "two classes": lambda: multilabel_data(70, 2),
    "20 classes": lambda: multilabel_data(131, 20),
    "64 classes": lambda: multilabel_data(70, 64),
    "65 classes": lambda: multilabel_data(70, 65),
    "600 classes": lambda: multilabel_data(7, 600),
    "classes never, always and once given": imbalanced,
    "nearly certain": nearly_certain,
    "zeros and ones": lambda: (multilabel_data(60, 6)[0], multilabel_data(60, 6, seed=1)[0].astype(float)),
    "constant column": lambda: (multilabel_data(60, 3)[0], np.tile([0.5, 0.2, 1.0], (60, 1))),
    "all ties": lambda: (multilabel_data(60, 6)[0], np.full((60, 6), 0.5)),
    "descending scores": lambda: (np.ones((3, 300), int) * [[1], [0], [1]], np.tile(np.linspace(1, 0, 300), (3, 1))),
}
MANY = {"600 classes", "65 classes", "descending scores"}
CHUNKINGS: dict[str, Callable[[int, int], tuple[Any, Any]]] = {
    "single block": lambda n, k: ((n, k), (n, k)),
    "one row per chunk": lambda n, k: ((1, k), (1, k)),
    "classes split": lambda n, k: ((7, 1), (7, 2)),
    "misaligned": lambda n, k: ((5, k), (8, (k + 1) // 2)),
}


def pair(scorer: str, aggregator: str) -> tuple[multilabel.MultilabelScorer, Any]:
    settings = AGGREGATORS[aggregator]
    return (
        multilabel.MultilabelScorer(multilabel.ClassLabelScorer[scorer], multilabel.Aggregator(**settings)),
        reference.MultilabelScorer(reference.ClassLabelScorer[scorer], reference.Aggregator(**settings), strict=False),
    )


def distance(ours: Any, theirs: NDArray[np.float64]) -> float:
    assert ours.shape == theirs.shape
    return float(np.abs(np.asarray(ours, np.float64) - theirs).max())


@pytest.mark.parametrize(
    ("aggregator", "dtype"),
    [
        *((name, "float64") for name in AGGREGATORS),
        *((name, dtype) for name in SHORT for dtype in ("float32", "float16")),
    ],
)
@pytest.mark.parametrize(("scorer", "adjust"), OPTIONS)
def test_numpy_scores_are_the_references(scorer: str, adjust: bool, aggregator: str, dtype: str) -> None:
    ours, theirs = pair(scorer, aggregator)
    keywords = {"adjust_pred_probs": adjust}
    for make in DATA.values():
        labels, pred_probs = make()
        pred_probs = pred_probs.astype(dtype)
        expected = theirs(labels, pred_probs.astype(np.float64), keywords)
        assert distance(ours(labels, pred_probs, keywords), expected) <= TOLERANCE[dtype]


@pytest.mark.parametrize("chunking", CHUNKINGS)
@pytest.mark.parametrize("aggregator", SHORT)
@pytest.mark.parametrize(("scorer", "adjust"), OPTIONS)
def test_dask_scores_are_the_references(scorer: str, adjust: bool, aggregator: str, chunking: str) -> None:
    ours, theirs = pair(scorer, aggregator)
    keywords = {"adjust_pred_probs": adjust}
    for name in sorted(DATA.keys() - MANY - {"64 classes"}):
        labels, pred_probs = DATA[name]()
        chunks = CHUNKINGS[chunking](*labels.shape)
        lazy = [da.from_array(array, chunks=size) for array, size in zip((labels, pred_probs), chunks, strict=True)]
        found = ours(*lazy, keywords).compute(scheduler="sync")
        assert distance(found, theirs(labels, pred_probs, keywords)) <= 1e-9


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize(("scorer", "adjust"), OPTIONS)
def test_scores_per_class_are_the_references(scorer: str, adjust: bool, data: str) -> None:
    labels, pred_probs = DATA[data]()
    ours, theirs = pair(scorer, "softmin")
    found = ours.get_class_label_quality_scores(labels, pred_probs, {"adjust_pred_probs": adjust})
    assert (
        distance(found, theirs.get_class_label_quality_scores(labels, pred_probs, {"adjust_pred_probs": adjust}))
        <= 1e-9
    )


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array, sparse.coo_matrix, "lists"])
@pytest.mark.parametrize("k", [3, 200])
def test_labels_in_every_form_score_as_in_the_reference(form: Any, k: int) -> None:
    labels, pred_probs = multilabel_data(90, k)
    lists = [np.flatnonzero(row).tolist() for row in labels]
    given = lists if form == "lists" else form(labels)
    for settings in ({}, {"method": "normalized_margin", "adjust_pred_probs": True}):
        theirs = reference_lists.get_label_quality_scores(lists, pred_probs, **settings)
        assert distance(multilabel.get_label_quality_scores(given, pred_probs, **settings), theirs) <= 1e-9
        theirs = reference_lists.rank.get_label_quality_scores_per_class(lists, pred_probs, **settings)
        assert distance(multilabel.get_label_quality_scores_per_class(given, pred_probs, **settings), theirs) <= 1e-9


@pytest.mark.parametrize("aggregator_kwargs", [{"method": "softmin", "temperature": 0.3}, {"method": np.mean}])
def test_keywords_are_those_of_the_reference(aggregator_kwargs: dict[str, Any]) -> None:
    labels, pred_probs = multilabel_data(90, 4)
    lists = [np.flatnonzero(row).tolist() for row in labels]
    settings: dict[str, Any] = {"method": "confidence_weighted_entropy", "aggregator_kwargs": aggregator_kwargs}
    theirs = reference_lists.get_label_quality_scores(lists, pred_probs, **settings)
    assert distance(multilabel.get_label_quality_scores(lists, pred_probs, **settings), theirs) <= 1e-9
    theirs = reference.get_label_quality_scores(labels, pred_probs, alpha=0.4)
    assert distance(multilabel.get_label_quality_scores(labels, pred_probs, alpha=0.4), theirs) <= 1e-9


@pytest.mark.parametrize("k", [1, 2, 3, 20, 33, 64, 65, 700])
@pytest.mark.parametrize("alpha", [None, 0.0, 1e-4, 0.05, 0.5, 0.8, 0.999, 1.0])
def test_moving_averages_are_the_references(k: int, alpha: float | None) -> None:
    scores = np.random.default_rng(k).random((70, k)).round(2)
    theirs = reference.exponential_moving_average(scores, alpha=alpha)
    assert distance(multilabel.exponential_moving_average(scores, alpha=alpha), theirs) <= 1e-12


@pytest.mark.parametrize("k", [1, 2, 20, 64, 65, 700])
@pytest.mark.parametrize("temperature", [0.001, 0.1, 1.0, 100.0])
def test_soft_minima_are_the_references(k: int, temperature: float) -> None:
    scores = np.random.default_rng(k).random((70, k)).round(2)
    theirs = reference.softmin(scores, temperature=temperature)
    assert distance(multilabel.softmin(scores, temperature=temperature), theirs) <= 1e-12


def test_equal_scores_stay_equal_and_the_order_is_the_references() -> None:
    """Permuted labels give equal scores to the bit, so that examples rank alike; else the order is the reference's."""
    labels, pred_probs = multilabel_data(200, 12)
    pred_probs = pred_probs.round(1)
    order = np.random.default_rng(0).permutation(12)
    ours = multilabel.get_label_quality_scores(labels, pred_probs)
    np.testing.assert_array_equal(ours, multilabel.get_label_quality_scores(labels[:, order], pred_probs[:, order]))
    theirs = reference.get_label_quality_scores(labels, pred_probs)
    np.testing.assert_array_equal(np.argsort(ours.round(9), kind="stable"), np.argsort(theirs.round(9), kind="stable"))


@pytest.mark.parametrize("data", sorted(DATA.keys() - MANY))
def test_issues_per_class_are_counted_as_in_the_reference(data: str) -> None:
    """Each class is the two-class problem of the batched inspector, its thresholds and its number of issues."""
    labels, pred_probs = DATA[data]()
    counts = multilabel.count_issues_per_class(labels, pred_probs)
    lazy = multilabel.count_issues_per_class(da.from_array(labels, chunks=9), da.from_array(pred_probs, chunks=7))
    assert isinstance(lazy, da.Array)
    np.testing.assert_array_equal(lazy.compute(scheduler="sync"), counts)
    for j in range(labels.shape[1]):
        columns = np.column_stack([1 - pred_probs[:, j], pred_probs[:, j]])
        inspector = LabelInspector(num_class=2, verbose=False)
        inspector.update_confident_thresholds(labels[:, j], columns)
        inspector.score_label_quality(labels[:, j], columns)
        assert counts[j].sum() == inspector.get_num_issues(silent=True)


def test_priors_are_the_references() -> None:
    labels, _ = multilabel_data(97, 7)
    theirs = reference.multilabel_py(labels)
    np.testing.assert_allclose(multilabel.multilabel_py(labels), theirs, rtol=0, atol=1e-15)
    np.testing.assert_allclose(multilabel.multilabel_py(sparse.csr_array(labels)), theirs, rtol=0, atol=1e-15)
    lazy = multilabel.multilabel_py(da.from_array(labels, chunks=(10, 3)))
    np.testing.assert_allclose(lazy.compute(scheduler="sync"), theirs, rtol=0, atol=1e-15)


@pytest.mark.parametrize("cv", [KFold(3), StratifiedKFold(2, shuffle=True, random_state=0)])
def test_cross_validated_predictions_are_the_references(cv: Any) -> None:
    rng = np.random.default_rng(0)
    features = rng.random((120, 3))
    labels = (features + rng.normal(0, 0.1, features.shape) > 0.5).astype(int)
    clf = OneVsRestClassifier(LogisticRegression())
    ours = multilabel.get_cross_validated_multilabel_pred_probs(features, labels, clf=clf, cv=cv)
    theirs = reference.get_cross_validated_multilabel_pred_probs(features, labels, clf=clf, cv=cv)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda module, labels, probs: module.ClassLabelScorer.from_str("nonsense"),
        lambda module, labels, probs: module.Aggregator("nonsense"),
        lambda module, labels, probs: module.Aggregator(np.mean)(np.zeros(3)),
        lambda module, labels, probs: module.exponential_moving_average(probs, alpha=1.2),
        lambda module, labels, probs: module.exponential_moving_average(probs, alpha=-0.1),
        lambda module, labels, probs: module.get_label_quality_scores(labels[:, :2], probs),
        lambda module, labels, probs: module.get_label_quality_scores(labels + 1, probs),
        lambda module, labels, probs: module.get_label_quality_scores(labels[:, :1], probs[:, :1]),
        lambda module, labels, probs: module.get_label_quality_scores(
            labels,
            probs,
            method=module.MultilabelScorer(module.ClassLabelScorer.CONFIDENCE_WEIGHTED_ENTROPY),
            base_scorer_kwargs={"adjust_pred_probs": True},
        ),
    ],
)
def test_what_the_reference_refuses_is_refused(wrong: Callable[..., Any]) -> None:
    for module in (reference, multilabel):
        with pytest.raises(ValueError, match=r"."):
            wrong(module, *multilabel_data(20, 4))


def test_what_is_no_function_is_a_type_error_as_in_the_reference() -> None:
    for module in (reference, multilabel):
        with pytest.raises(TypeError):
            module.Aggregator(7)
