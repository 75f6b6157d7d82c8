"""States that are merged by one tree, whatever the order in which they come."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from labelqa_dask.core.task import State, merge_states

StateT = TypeVar("StateT", bound=State)


class MergedInOrder(Generic[StateT]):
    """What numbered states come to: neighbours are merged, then neighbouring pairs, and so on.

    The tree follows from their number alone, and with it every bit of the result. Few states are held: for each part
    that is still out, at most one on every level of the tree.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._held: dict[tuple[int, int], Any] = {}
        self._left = count

    def __len__(self) -> int:
        return len(self._held)

    def add(self, number: int, state: StateT | None) -> None:
        """Take a state, None where there is nothing, by its number; each once."""
        level, width = 0, self._count
        while width > 1:
            other = number ^ 1
            if other < width:
                if (level, other) not in self._held:
                    break
                pair = state, self._held.pop((level, other))
                state = merge_states(*(pair if number < other else pair[::-1]))
            level, number, width = level + 1, number // 2, -(-width // 2)
        self._held[level, number] = state
        self._left -= 1

    @property
    def total(self) -> StateT | None:
        """The state of all parts together, once all have come."""
        assert self._left == 0, f"{self._left} parts are missing"
        (total,) = self._held.values() or (None,)
        return total
