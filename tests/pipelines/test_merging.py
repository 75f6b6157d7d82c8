"""States merged by one tree: the same bits in whatever order they come, and few held."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pytest

from pipelines.merging import MergedInOrder


@dataclass(frozen=True)
class Text:
    """A state that shows how it was put together."""

    value: str

    def merge(self, other: Self) -> Self:
        return type(self)(f"({self.value}{other.value})")

    def result(self) -> Any:
        return self.value


def merged(order: list[int], without: tuple[int, ...] = ()) -> str | None:
    parts: MergedInOrder[Text] = MergedInOrder(len(order))
    for number in order:
        parts.add(number, None if number in without else Text(chr(ord("a") + number)))
    return parts.total.value if parts.total else None


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, None), (1, "a"), (2, "(ab)"), (3, "((ab)c)"), (5, "(((ab)(cd))e)"), (7, "(((ab)(cd))((ef)g))")],
)
def test_neighbours_are_merged_in_whatever_order_they_come(count: int, expected: str | None) -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        assert merged(rng.permutation(count).tolist()) == expected


def test_what_is_nothing_leaves_the_others_as_they_are() -> None:
    assert merged([3, 1, 0, 2], without=(1, 2)) == "(ad)"
    assert merged([0, 1], without=(0, 1)) is None


def test_few_are_held_however_long_some_take() -> None:
    count, late = 10_000, [0, 4_321]
    parts: MergedInOrder[Text] = MergedInOrder(count)
    for number in range(count):
        if number not in late:
            parts.add(number, None)
            assert len(parts) <= len(late) * 14 + 14
    for number in late:
        parts.add(number, None)
    assert len(parts) == 1


def test_a_total_of_which_parts_are_missing_is_refused() -> None:
    parts: MergedInOrder[Text] = MergedInOrder(3)
    parts.add(2, Text("c"))
    with pytest.raises(AssertionError, match="2 parts are missing"):
        _ = parts.total
