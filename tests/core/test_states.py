"""Every state merges: grouping does not matter, nothing is lost, and its empty changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelqa_dask import multiclass, segmentation
from labelqa_dask.core.class_scores import ClassScores
from labelqa_dask.core.confident import ClassMeans
from labelqa_dask.core.order import Histogram, KWorst
from labelqa_dask.core.summary import Summary
from labelqa_dask.core.task import Block, State
from labelqa_dask.multiclass.task import class_means as means_of_classes
from labelqa_dask.segmentation.task import Softmin
from tests.strategies import multiclass_data, scores, seeded, segmentation_data

K = 3
StateOf = Callable[[slice], State]


def class_means(values: Any) -> StateOf:
    labels, pred_probs = multiclass_data(len(values), K)
    params = multiclass.TASK.params()
    return lambda part: means_of_classes(Block({"labels": labels[part], "pred_probs": pred_probs[part]}), params, {})


def class_scores(values: Any) -> StateOf:
    labels, _ = multiclass_data(len(values), K)
    return lambda part: ClassScores.of(labels[part], values[part], K)


def softmin(values: Any) -> StateOf:
    """Softmin of two images that are cut along their width."""
    labels, pred_probs = segmentation_data(2, K, 3, len(values))
    params = segmentation.TASK.params(temperature=0.02)

    def of(part: slice) -> State:
        if not len(values[part]):
            return Softmin.empty(2, 0.02)
        block = Block({"labels": labels[..., part], "pred_probs": pred_probs[..., part]})
        return segmentation.TASK.score(block, params, {})["image_scores"]

    return of


def k_worst(values: Any, k: int = 5) -> StateOf:
    def of(part: slice) -> State:
        return worst_of(values[part], part.start or 0, k)

    return of


def worst_of(values: Any, start: int, k: int) -> KWorst:
    chosen = KWorst.candidates(values, k)
    return KWorst.of(values, chosen, start, k, {"row": (chosen + start).astype(str)})


def histogram(values: Any) -> StateOf:
    return lambda part: Histogram.of(values[part], 100)


def summary(values: Any) -> StateOf:
    classes = class_scores(values)

    def of(part: slice) -> State:
        return Summary.of(values[part], classes(part), None, worst_of(values[part], part.start or 0, 5))

    return of


STATES = [class_means, class_scores, softmin, k_worst, histogram, summary]
EMPTY: dict[Any, State] = {
    class_means: ClassMeans.empty(K),
    class_scores: ClassScores.empty(K),
    softmin: Softmin.empty(2, 0.02),
    k_worst: worst_of(np.empty(0), 0, 5),
    histogram: Histogram.empty(100),
    summary: Summary.of(np.empty(0), None, None, worst_of(np.empty(0), 0, 5)),
}


def assert_same(one: Any, other: Any, exactly: bool) -> None:
    """Counts, selections and names are equal; sums are, to 1e-12 of themselves where not exactly."""
    if is_dataclass(one):
        assert type(one) is type(other)
        for field in fields(one):
            of_scores = exactly or (isinstance(one, KWorst) and field.name == "scores")
            assert_same(getattr(one, field.name), getattr(other, field.name), of_scores)
    elif isinstance(one, Mapping):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key], exactly)
    elif np.asarray(one).dtype.kind == "f" and not exactly:
        np.testing.assert_allclose(one, other, rtol=1e-12)
    else:
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("case", STATES)
@seeded
@given(values=scores(), cuts=st.lists(st.integers(0, 40), min_size=2, max_size=2).map(sorted))
def test_merging_is_associative_and_equals_the_state_of_the_whole(case: Any, values: Any, cuts: list[int]) -> None:
    state_of = case(values)
    a, b, c = state_of(slice(0, cuts[0])), state_of(slice(*cuts)), state_of(slice(cuts[1], None))
    left, right = a.merge(b).merge(c), a.merge(b.merge(c))
    assert_same(left, right, exactly=False)
    assert_same(left, state_of(slice(0, None)), exactly=False)


@pytest.mark.parametrize("case", STATES)
@seeded
@given(values=scores())
def test_merging_with_the_empty_state_changes_nothing(case: Any, values: Any) -> None:
    for state in (case(values)(slice(0, None)), EMPTY[case]):
        assert_same(EMPTY[case].merge(state), state, exactly=True)
        assert_same(state.merge(EMPTY[case]), state, exactly=True)


def test_what_was_never_seen_has_no_mean() -> None:
    assert np.isnan(ClassScores.empty(K).result()).all()
    assert np.isnan(Softmin.empty(2, 0.1).result()).all()
    assert np.isnan(summary(np.full(3, np.nan))(slice(0, None)).mean)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(ClassMeans.empty(K).result(), np.full(K, 2.0))


@seeded
@given(values=scores())
def test_a_summary_tells_number_and_mean_of_what_was_scored(values: Any) -> None:
    state = Summary.of(values, None, None, worst_of(values, 0, 5))
    scored = values[~np.isnan(values)]
    assert (state.examples, state.scored) == (len(values), len(scored))
    assert state.histogram.counts.sum() == len(scored)
    if len(scored):
        assert state.mean == pytest.approx(scored.mean(), rel=1e-12)


def test_class_scores_are_the_means_per_class() -> None:
    labels, values = np.array([[0, 2], [2, 2]], np.uint8), np.array([[0.5, 0.25], [0.75, np.nan]], np.float32)
    state = ClassScores.of(labels, values, 4)
    np.testing.assert_array_equal(state.count, [1, 0, 2, 0])
    np.testing.assert_array_equal(state.result(), [0.5, np.nan, 0.5, np.nan])
