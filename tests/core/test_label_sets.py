"""Label sets are the arrays of 0 and 1 that they stand for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelqa_dask.core.label_sets import LabelSets
from tests.strategies import seeded

K = 5
sets_of_classes = st.lists(st.sets(st.integers(0, K - 1)).map(sorted), max_size=12)


def dense(lists: list[list[int]]) -> Any:
    array = np.zeros((len(lists), K), np.uint8)
    for row, classes in zip(array, lists, strict=True):
        row[classes] = 1
    return array


@seeded
@given(lists=sets_of_classes, start=st.integers(0, 12), stop=st.integers(0, 12))
def test_rows_are_cut_as_those_of_an_array(lists: list[list[int]], start: int, stop: int) -> None:
    sets = LabelSets.of_lists(lists, K)
    assert (sets.shape, sets.dtype, sets.ndim) == ((len(lists), K), np.uint8, 2)
    np.testing.assert_array_equal(np.asarray(sets), dense(lists))
    part = sets[start:stop]
    np.testing.assert_array_equal(np.asarray(part), dense(lists)[start:stop])
    np.testing.assert_array_equal(np.asarray(part[1:]), dense(lists)[start:stop][1:])
    assert part.nbytes == 8 * (len(part) + 1) + 4 * int(np.asarray(part).sum())


@seeded
@given(lists=sets_of_classes, cut=st.integers(0, 12))
def test_parts_join_to_the_whole(lists: list[list[int]], cut: int) -> None:
    sets = LabelSets.of_lists(lists, K)
    joined = LabelSets.joined([sets[:cut], sets[cut:]])
    np.testing.assert_array_equal(np.asarray(joined), dense(lists))


def test_columns_are_never_cut() -> None:
    sets = LabelSets.of_lists([[0], [1]], K)
    np.testing.assert_array_equal(np.asarray(sets[0:1, :]), dense([[0]]))
    with pytest.raises(IndexError, match="by rows alone"):
        sets[0:1, 1:]
    with pytest.raises(IndexError, match="consecutive"):
        sets[::2]
