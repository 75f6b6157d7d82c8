"""Annotations in compressed rows: how several annotators labelled each example, in memory that grows with the labels.

Axes: n = examples, m = annotators, A = annotations.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from labelqa_dask.core.kernels import Array, kernel


@dataclass(frozen=True, eq=False)
class Annotations:
    """The annotations of consecutive examples; sliced by example like an array.

    Attributes
    ----------
    starts : (n + 1,) int64
        The annotations of example i are `starts[i]` to `starts[i + 1]`.
    annotator : (A,) int32
        Number of the annotator, ascending within each example.
    label : (A,) int32
    ids : (m,) array
        What each annotator is called, by its number; of the whole crowd.
    """

    starts: NDArray[np.int64]
    annotator: NDArray[np.int32]
    label: NDArray[np.int32]
    ids: Array

    @classmethod
    def group(cls, example: Array, annotator: Array, label: Array, n: int, ids: Array) -> tuple[Self, Array]:
        """Group rows in any order by example, and by annotator within it.

        Returns the annotations, and the row that each of them came from.
        """
        by_annotator = group_order(annotator, np.arange(len(annotator)), len(ids))[1]
        starts, order = group_order(example, by_annotator, n)
        return cls(starts, annotator[order].astype(np.int32), label[order].astype(np.int32), ids), order

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, examples: slice) -> Self:
        start, stop, step = examples.indices(len(self))
        if step != 1:
            raise IndexError("annotations are sliced without a step")
        starts = self.starts[start : max(start, stop) + 1]
        rows = slice(starts[0], starts[-1])
        return replace(self, starts=starts - starts[0], annotator=self.annotator[rows], label=self.label[rows])

    @property
    def nbytes(self) -> int:
        return self.starts.nbytes + self.annotator.nbytes + self.label.nbytes

    @property
    def example(self) -> NDArray[np.int64]:
        """Number of the example of each annotation (A,)."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))


@kernel
def group_order(group: Any, order: Any, groups: int) -> Any:
    """Stable counting sort of rows, given in an order, by their group (rows,) int in 0..groups-1.

    Returns where each group starts (groups + 1,) and the rows in their new order.
    """
    starts = np.zeros(groups + 1, np.int64)
    for i in range(len(group)):
        starts[group[i] + 1] += 1
    for g in range(groups):
        starts[g + 1] += starts[g]
    place = starts[:-1].copy()
    result = np.empty(len(order), np.int64)
    for i in range(len(order)):
        g = group[order[i]]
        result[place[g]] = order[i]
        place[g] += 1
    return starts, result
