"""Count and mean score of the labels of each class, and how often one class stands where another is suggested."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from labelqa_dask.core.kernels import Array, as_labels, as_predictions, kernel
from labelqa_dask.core.sums import sum_by_key

# Up to so many classes their pairs are counted in a square.
_DENSE_CLASSES = 512


@dataclass(frozen=True)
class ClassScores:
    """A mergeable state over (k,) raw sums, by the class as labelled."""

    count: NDArray[np.int64]
    total: NDArray[np.float64]

    @classmethod
    def empty(cls, k: int) -> Self:
        return cls(np.zeros(k, np.int64), np.zeros(k))

    @classmethod
    def of(cls, labels: Array, scores: Array, k: int) -> Self:
        """State of labels in 0..k-1 and their scores, of any one shape; where a score is NaN the label is left out."""
        state = cls.empty(k)
        _add(as_labels(labels).ravel(), as_predictions(scores).ravel(), state.count, state.total)
        return state

    def merge(self, other: Self) -> Self:
        return type(self)(self.count + other.count, self.total + other.total)

    def result(self) -> NDArray[np.float64]:
        """Mean per class (k,), NaN where a class never occurs."""
        return np.divide(self.total, self.count, out=np.full(len(self.count), np.nan), where=self.count > 0)


@dataclass(frozen=True)
class ClassPairs:
    """How often a class is given where another is suggested: a mergeable state over the pairs that occur, in order.

    Attributes
    ----------
    given, suggested, count : (m,) int64
    """

    given: NDArray[np.int64]
    suggested: NDArray[np.int64]
    count: NDArray[np.int64]

    @classmethod
    def of(cls, given: Array, suggested: Array, where: Array, k: int) -> Self:
        """State of the pairs of classes in 0..k-1 at the marked places of arrays of one shape."""
        if k > _DENSE_CLASSES:
            chosen = given[where].astype(np.int64), suggested[where].astype(np.int64)
            return cls._added(*chosen, np.ones(len(chosen[0]), np.int64))
        count = np.zeros((k, k), np.int64)
        _count_pairs(as_labels(given).ravel(), suggested.ravel(), where.ravel(), count)
        occurring = np.nonzero(count)
        return cls(occurring[0], occurring[1], count[occurring])

    def merge(self, other: Self) -> Self:
        return self._added(
            np.concatenate([self.given, other.given]),
            np.concatenate([self.suggested, other.suggested]),
            np.concatenate([self.count, other.count]),
        )

    def result(self) -> Self:
        return self

    @classmethod
    def _added(cls, given: NDArray[np.int64], suggested: NDArray[np.int64], count: NDArray[np.int64]) -> Self:
        pairs, total = sum_by_key(given << 32 | suggested, count)
        return cls(pairs >> 32, pairs & 0xFFFFFFFF, total)


@kernel
def _count_pairs(given: Any, suggested: Any, where: Any, count: Any) -> None:
    """Add to counts (k, k) by given and suggested class. Floor: the marks read once, and the classes where marked."""
    for i in range(len(where)):
        if where[i]:
            count[given[i], suggested[i]] += 1


@kernel
def _add(labels: Any, scores: Any, count: Any, total: Any) -> None:
    """Sums of runs of one label stay in registers: neighbouring pixels mostly share theirs."""
    label, run, run_total = 0, 0, 0.0
    for i in range(len(labels)):
        if scores[i] != scores[i]:
            continue
        if labels[i] != label:
            count[label] += run
            total[label] += run_total
            label, run, run_total = labels[i], 0, 0.0
        run += 1
        run_total += scores[i]
    count[label] += run
    total[label] += run_total
