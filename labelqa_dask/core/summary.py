"""What is known of the scores of some examples: a state that merges like any other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from labelqa_dask.core.class_scores import ClassPairs, ClassScores
from labelqa_dask.core.order import Histogram, KWorst
from labelqa_dask.core.task import merge_states

HISTOGRAM_BINS = 100


@dataclass(frozen=True)
class Summary:
    """Number, sum and histogram of the examples' scores, scores and issues per class, and the worst examples."""

    examples: int
    scored: int
    total: float
    histogram: Histogram
    classes: ClassScores | None
    pairs: ClassPairs | None
    worst: KWorst

    @classmethod
    def of(
        cls,
        scores: NDArray[np.floating[Any]],
        classes: ClassScores | None,
        pairs: ClassPairs | None,
        worst: KWorst,
    ) -> Self:
        """State of (n,) scores, of which the worst are known."""
        histogram = Histogram.of(scores, HISTOGRAM_BINS)
        scored = int(histogram.counts.sum())
        add = np.sum if scored == len(scores) else np.nansum
        total = float(add(scores, dtype=np.float64))
        return cls(len(scores), scored, total, histogram, classes, pairs, worst)

    def merge(self, other: Self) -> Self:
        return type(self)(
            self.examples + other.examples,
            self.scored + other.scored,
            self.total + other.total,
            self.histogram.merge(other.histogram),
            merge_states(self.classes, other.classes),
            merge_states(self.pairs, other.pairs),
            self.worst.merge(other.worst),
        )

    def result(self) -> Self:
        return self

    @property
    def mean(self) -> float:
        return self.total / self.scored if self.scored else float("nan")
