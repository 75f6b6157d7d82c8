"""Order statistics that merge: the k worst examples, and the histogram of the scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from labelqa_dask.core.kernels import Array, kernel


@dataclass(frozen=True)
class KWorst:
    """The k lowest scores, lowest first, equal ones in row order; scores that are NaN are never among them.

    Attributes
    ----------
    k : int
    scores : (m,) float64, m <= k
    rows : (m,) int64, row in the whole data
    columns : mapping of str to (m,) array, carried along
    """

    k: int
    scores: NDArray[np.float64]
    rows: NDArray[np.int64]
    columns: Mapping[str, Array] = field(default_factory=dict)

    @staticmethod
    def candidates(scores: NDArray[np.floating[Any]], k: int) -> NDArray[np.intp]:
        """Indices of the k lowest of (n,) scores, in their order; O(n), however many are equal."""
        if k == 0:
            return np.empty(0, np.intp)
        indices = np.empty(len(scores), np.intp)
        indices = indices[: _keep_up_to(_bound(scores, k), np.ascontiguousarray(scores), indices)]
        values = scores[indices]
        if k < len(indices):
            cut = np.partition(values, k - 1)[k - 1]
            chosen = np.concatenate([np.flatnonzero(values < cut), np.flatnonzero(values == cut)])[:k]
            indices, values = indices[chosen], values[chosen]
        return indices[np.lexsort((indices, values))]

    @classmethod
    def of(
        cls,
        scores: NDArray[np.floating[Any]],
        candidates: NDArray[np.intp],
        first_row: int,
        k: int,
        columns: Mapping[str, Array],
    ) -> Self:
        """State of the (n,) scores of consecutive rows; `columns` are those of the candidates only."""
        return cls(k, scores[candidates].astype(np.float64), (candidates + first_row).astype(np.int64), columns)

    def merge(self, other: Self) -> Self:
        if len(self.rows) == 0 or len(other.rows) == 0:
            return other if len(self.rows) == 0 else self
        scores = np.concatenate([self.scores, other.scores])
        rows = np.concatenate([self.rows, other.rows])
        order = np.lexsort((rows, scores))[: self.k]
        columns = {name: np.concatenate([values, other.columns[name]])[order] for name, values in self.columns.items()}
        return type(self)(self.k, scores[order], rows[order], columns)

    def result(self) -> Self:
        return self


@dataclass(frozen=True)
class Histogram:
    """Counts of scores in [0, 1] in equal bins; a score on an edge belongs to the bin above, and 1 to the last.

    Scores outside, by rounding, are counted in the nearest bin; NaN is not counted.
    """

    counts: NDArray[np.int64]

    @classmethod
    def empty(cls, bins: int) -> Self:
        return cls(np.zeros(bins, np.int64))

    @classmethod
    def of(cls, scores: NDArray[np.floating[Any]], bins: int) -> Self:
        edges = (np.arange(bins + 1) / bins).astype(scores.dtype)
        counts = np.zeros(bins, np.int64)
        _add_to_bins(np.ascontiguousarray(scores).ravel(), edges, counts)
        return cls(counts)

    def merge(self, other: Self) -> Self:
        return type(self)(self.counts + other.counts)

    def result(self) -> NDArray[np.int64]:
        return self.counts


def _bound(scores: NDArray[np.floating[Any]], k: int) -> Any:
    """What the k lowest scores do not exceed, from the first few: then most of the others need one comparison only."""
    few = scores[: max(16 * k, len(scores) // 64)]
    lowest = few[few == few]
    return np.partition(lowest, k - 1)[k - 1] if k <= len(lowest) else np.inf


@kernel
def _keep_up_to(bound: float, scores: Any, indices: Any) -> int:
    """Indices of the scores that do not exceed a bound, and how many they are. Floor: scores read once."""
    kept = 0
    for i in range(len(scores)):
        indices[kept] = i
        kept += scores[i] <= bound
    return kept


@kernel
def _add_to_bins(scores: Any, edges: Any, counts: Any) -> None:
    """Floor: scores read once; a product, and two comparisons with the edges beside it, for each."""
    bins = len(counts)
    for i in range(len(scores)):
        score = scores[i]
        if score != score:
            continue
        j = min(max(int(score * bins), 0), bins - 1)
        if j > 0 and score < edges[j]:
            j -= 1
        elif j < bins - 1 and score >= edges[j + 1]:
            j += 1
        counts[j] += 1
