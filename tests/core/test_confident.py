"""The search for the lowest scores: exact for any values, whatever the blocks, and without needless walks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from labelqa_dask.core import confident
from labelqa_dask.core.blocks import Whole
from labelqa_dask.core.confident import ClassMeans, Elements, IssueSearch
from labelqa_dask.core.task import Block, Pass, merge_states
from tests.strategies import seeded


def inspect(block: Block, params: Any, stats: Any, predict: bool) -> Elements:
    """Elements of which `wanted` are off-diagonal, whatever they score."""
    scores = block["scores"]
    label = np.zeros(scores.shape, np.int64)
    predicted = block["off_diagonal"].astype(np.int32)
    corner = tuple(block.origin.get(dim, 0) for dim in ("y",))[: scores.ndim - 1]
    extent = tuple(block.sizes[dim] for dim in ("y",))[: scores.ndim - 1]
    return Elements(scores, label, predicted, np.ones(scores.shape, scores.dtype), 2, corner, extent)


def means(block: Block, params: Any, stats: Any) -> ClassMeans:
    elements = inspect(block, params, stats, True)
    return ClassMeans.of(elements.labels, elements.scores, 2)


SEARCH = IssueSearch(inspect, Pass("confident_thresholds", ClassMeans, means))


def lowest(scores: NDArray[Any], count: int, cuts: list[int], columns: list[int]) -> tuple[NDArray[np.bool_], set[str]]:
    """The lowest `count` of (n, h) scores as found block by block, and the walks that it took."""
    n, h = scores.shape
    off_diagonal = np.zeros(scores.size, bool)
    off_diagonal[np.flatnonzero(~np.isnan(scores))[:count]] = True
    arrays = {"scores": scores, "off_diagonal": off_diagonal.reshape(scores.shape)}
    blocks = [
        Block(
            {name: array[a:b, c:d] for name, array in arrays.items()},
            {"example": a, "y": c},
            sizes={"example": n, "y": h},
        )
        for a, b in zip([0, *cuts], [*cuts, n], strict=True)
        for c, d in zip([0, *columns], [*columns, h], strict=True)
    ]
    stats: dict[str, Any] = {}
    for step in SEARCH.passes():
        state = None
        if step.needed(None, stats, n) is not None:
            for block in blocks:
                state = merge_states(state, step.reduce(block, None, stats))
        stats[step.name] = step.result(state, None, stats)
    found = np.zeros(scores.shape, bool)
    for block in blocks:
        top, left = block.origin["example"], block.origin["y"]
        part = SEARCH.candidates(inspect(block, None, stats, True), block, stats)
        found[top : top + part.shape[0], left : left + part.shape[1]] = part
    return found, {name for name, result in stats.items() if result is not None}


def expected(scores: NDArray[Any], count: int) -> NDArray[np.bool_]:
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(scores.ravel(), kind="stable")[: min(count, np.count_nonzero(~np.isnan(scores)))]] = True
    return mask.reshape(scores.shape)


VALUES = st.sampled_from([0.0, -0.0, 1.0, 0.5, 1 / 3, np.nan, 1e-300, -1e-7, np.nextafter(0.5, 1), 5e-324]) | st.floats(
    -1e-6, 1
)


@seeded
@given(data=st.data(), dtype=st.sampled_from(["f4", "f8"]))
def test_the_lowest_scores_are_found_exactly(data: st.DataObject, dtype: str) -> None:
    n, h = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 4))
    values = data.draw(st.lists(VALUES, min_size=n * h, max_size=n * h))
    with np.errstate(under="ignore"):
        scores = np.array(values).astype(dtype).reshape(n, h)
    count = data.draw(st.integers(0, n * h))
    cuts = sorted(data.draw(st.sets(st.integers(1, n - 1)))) if n > 1 else []
    columns = sorted(data.draw(st.sets(st.integers(1, h - 1)))) if h > 1 else []
    found, _ = lowest(scores, count, cuts, columns)
    np.testing.assert_array_equal(found, expected(scores, count))


@pytest.mark.parametrize(("dtype", "walks"), [("f4", 3), ("f8", 4)])
def test_distinct_scores_take_no_walk_for_ties(dtype: str, walks: int) -> None:
    scores = np.random.default_rng(0).random((50, 7)).astype(dtype)
    found, needed = lowest(scores, 100, [10, 30], [3])
    assert len(needed) == walks
    np.testing.assert_array_equal(found, expected(scores, 100))


def test_no_issue_takes_no_further_walk() -> None:
    found, needed = lowest(np.random.default_rng(0).random((5, 7)), 0, [2], [3])
    assert not found.any()
    assert needed == {"confident_thresholds", "issue_count"}


def test_the_last_tie_is_looked_for_in_a_range_of_rows_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confident, "_ROW_BINS", 4)
    scores = np.full((30, 3), 0.25, np.float32)
    seen: list[range | None] = []
    last = SEARCH.passes()[-1]
    whole = Whole({"scores": scores, "off_diagonal": np.arange(90).reshape(30, 3) < 50}, {"example": 30, "y": 3})
    stats: dict[str, Any] = {}
    for step in SEARCH.passes():
        needed = step.needed(None, stats, 30)
        if step.name == last.name:
            seen.append(needed)
        states = whole.map_blocks(lambda block, step=step: step.reduce(block, None, stats), needed) if needed else []
        state = None
        for part in states:
            state = merge_states(state, part)
        stats[step.name] = step.result(state, None, stats)
    assert seen == [range(16, 24)]
    block = Block(whole.arrays, {"example": 0}, sizes=whole.sizes)
    found = SEARCH.candidates(inspect(block, None, stats, True), block, stats)
    assert found.ravel().tolist() == [True] * 50 + [False] * 40
    found, _ = lowest(scores, 50, [7, 17, 20], [1])
    np.testing.assert_array_equal(found, expected(scores, 50))
