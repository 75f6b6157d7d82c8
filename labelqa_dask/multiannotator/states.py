"""What is reduced over all annotations: states that merge, and the weights that follow from their results.

Everything that decides a label is a sum of integers, so it is the same for every cut of the data.

Axes: n = examples, m = annotators, A = annotations, p = models, k = classes, s = pairs of an annotator and a class.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from labelqa_dask.core.confident import FLOOR, MISSING_CLASS_THRESHOLD
from labelqa_dask.core.kernels import Array
from labelqa_dask.core.order import Histogram
from labelqa_dask.core.ragged import Annotations, group_order
from labelqa_dask.core.sums import sum_by_key
from labelqa_dask.multiannotator import kernels
from labelqa_dask.multiannotator.example import Model, Tiebreak, Weights

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]

COARSE_TEMPERATURES = (0.1, 0.2, 0.5, 0.8, 1.0, 2.0, 3.0, 5.0, 8.0)
AGREEMENT_BINS = 20


@dataclass(frozen=True)
class Calibration:
    """Soft cross-entropies between labels and probabilities at several temperatures, summed over examples.

    Attributes
    ----------
    temperatures : (p, t) float64, NaN where a model has fewer
    coarse, fine : (p, t) int64
        The sums in units of 2^-20 and, of the rest, of 2^-50: exact, so that the choice depends on no order.
    """

    temperatures: Floats
    coarse: Counts
    fine: Counts

    @classmethod
    def of(cls, annotations: Annotations, model: Model, temperatures: Floats) -> tuple[Self, int]:
        """State of some examples, and the first of them whose probabilities are invalid, or -1."""
        state = cls(temperatures, np.zeros(temperatures.shape, np.int64), np.zeros(temperatures.shape, np.int64))
        filled = np.where(np.isnan(temperatures), 1.0, temperatures)
        bad = kernels.add_cross_entropies(
            annotations.starts, annotations.label, model, filled, state.coarse, state.fine
        )
        return state, bad

    def merge(self, other: Self) -> Self:
        return type(self)(self.temperatures, self.coarse + other.coarse, self.fine + other.fine)

    def result(self) -> Floats:
        """The temperature of lowest cross-entropy (p,), the first of equal ones."""
        best = [
            min(range(int(np.isfinite(row).sum())), key=lambda t: (int(coarse[t]) << 30) + int(fine[t]))
            for row, coarse, fine in zip(self.temperatures, self.coarse, self.fine, strict=True)
        ]
        return self.temperatures[np.arange(len(best)), best]


def coarse_temperatures(models: int) -> Floats:
    """The temperatures tried first (p, 9)."""
    return np.tile(COARSE_TEMPERATURES, (models, 1))


def fine_temperatures(coarse: Floats) -> Floats:
    """The temperatures tried around the best coarse ones (p,): (p, 9), NaN where there are fewer."""
    grid = list(COARSE_TEMPERATURES)
    result = np.full((len(coarse), 9), np.nan)
    for row, temperature in zip(result, coarse.tolist(), strict=True):
        at = grid.index(temperature)
        below = np.linspace(grid[at - 1], temperature, 4, endpoint=False) if at else np.empty(0)
        above = np.linspace(temperature, grid[at + 1], 5) if at + 1 < len(grid) else np.empty(0)
        points = np.concatenate([below, above])
        row[: len(points)] = points
    return result


@dataclass(frozen=True)
class _Sums:
    """Arrays of counts, which add up; the shorter of two is taken to go on with zeros."""

    def merge(self, other: Self) -> Self:
        return type(self)(**{f.name: _add_padded(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)})

    def result(self) -> Self:
        return self


@dataclass(frozen=True)
class Votes(_Sums):
    """What is known of the annotations before there is any consensus.

    Attributes
    ----------
    sizes : (largest + 1,) examples by their number of annotations
    frequency : (k,) annotations per class
    given : (m,) annotations per annotator
    others, same : (m,) pairs with an annotation of the same example by somebody else; those that are equal
    untied, untied_same : (m,) annotations of examples whose vote is not tied; those that are the majority's
    """

    sizes: Counts
    frequency: Counts
    given: Counts
    others: Counts
    same: Counts
    untied: Counts
    untied_same: Counts

    @classmethod
    def of(cls, annotations: Annotations, k: int) -> Self:
        """State of some examples with labels in 0..k-1."""
        m = len(annotations.ids)
        largest = int(np.diff(annotations.starts).max(initial=0))
        state = cls(*(np.zeros(size, np.int64) for size in (largest + 1, k, m, m, m, m, m)))
        kernels.add_votes(
            annotations.starts,
            annotations.annotator,
            annotations.label,
            k,
            *(getattr(state, field.name) for field in fields(cls)),
        )
        return state

    @property
    def examples(self) -> int:
        """Examples with an annotation."""
        return int(self.sizes[1:].sum())

    @property
    def overlapping(self) -> int:
        """Examples with more than one annotation."""
        return int(self.sizes[2:].sum())

    @property
    def mean_size(self) -> float:
        """Mean number of annotations of an example that has any."""
        return float(np.arange(len(self.sizes)) @ self.sizes / self.examples)

    def majority(self, annotations: Annotations, pred_probs: Array, seed: int, first: int = 0) -> tuple[Counts, int]:
        """Majority label of each example, the first of which has a number; and how many had to be drawn.

        `pred_probs` (n, k) may be empty.
        """
        labels = np.empty(len(annotations), np.int64)
        drawn = kernels.majority_votes(
            annotations.starts,
            annotations.annotator,
            annotations.label,
            pred_probs,
            len(self.frequency),
            Tiebreak(self.frequency, self.skill(), seed, first),
            labels,
        )
        return labels, drawn

    def skill(self) -> Floats:
        """Initial quality of each annotator (m,): agreement with votes that are not tied; the others' mean if none."""
        return _share_or_mean(self.untied_same, self.untied)

    def agreement(self) -> Floats:
        """Agreement of each annotator with others on the same examples (m,); the others' mean if there are none."""
        return _share_or_mean(self.same, self.others)


@dataclass(frozen=True)
class Consensus(_Sums):
    """What is known of consensus labels, over examples with more than one annotation.

    Attributes
    ----------
    agreeing : (largest + 1,) annotations that are the consensus, by the number of annotations of their example
    classes : (k,) consensus labels
    model_errors : (p,) consensus labels that are not what a model holds most probable
    drawn : (1,) labels that were drawn by chance, over all examples
    """

    agreeing: Counts
    classes: Counts
    model_errors: Counts
    drawn: Counts

    @classmethod
    def of(
        cls, annotations: Annotations, model: Model, tiebreak: Tiebreak, weights: Weights, best: bool
    ) -> tuple[Self, int]:
        """State of some examples, and the first of them whose probabilities are invalid, or -1."""
        _, p, k = model.pred_probs.shape
        largest = int(np.diff(annotations.starts).max(initial=0))
        state = cls(*(np.zeros(size, np.int64) for size in (largest + 1, k, p, 1)))
        bad = kernels.add_consensus(
            annotations.starts,
            annotations.annotator,
            annotations.label,
            model,
            tiebreak,
            weights,
            best,
            state.agreeing,
            state.classes,
            state.model_errors,
            state.drawn,
        )
        return state, bad

    def weights(self, votes: Votes) -> Weights:
        """The weights that follow from these consensus labels."""
        k = len(self.classes)
        n = votes.overlapping
        sizes = np.arange(len(self.agreeing))
        likelihood = float((self.agreeing[2:] / sizes[2:]).sum() / n)
        chance_error = max(FLOOR, (n - int(self.classes.max())) / n)
        return Weights(
            np.maximum(1 - self.model_errors / n / chance_error, FLOOR) * np.sqrt(votes.mean_size),
            np.maximum(1 - (1 - votes.agreement()) / chance_error, FLOOR),
            likelihood,
            (1 - likelihood) / (k - 1),
        )


def no_weights(models: int, annotators: int) -> Weights:
    """Weights where none are needed."""
    return Weights(np.zeros(models), np.zeros(annotators), 0.0, 0.0)


@dataclass(frozen=True)
class ByClass:
    """Sums over the annotations of each annotator and class, as far as they occur.

    Attributes
    ----------
    keys : (s,) annotator * k + class, ascending
    counts : (s, 5)
        Annotations; those that are the consensus; those of examples with several annotations; those of them that are
        the consensus; the quality of the consensus of their examples, in units of 2^-32.
    quality : (s,) quality of the labels
    pairs, pair_counts : (q,) consensus label * k + given label, ascending, and how often
    agreement : (20,) examples by the share of annotators that gave the consensus label
    """

    keys: Counts
    counts: Counts
    quality: Floats
    pairs: Counts
    pair_counts: Counts
    agreement: Counts

    @classmethod
    def of(
        cls,
        annotations: Annotations,
        k: int,
        consensus: Counts,
        consensus_quality: Floats,
        agreement: Floats,
        quality: Floats,
    ) -> Self:
        """State of some examples, of consensus labels, their quality and agreement (n,) and labels' quality (A,)."""
        rows = len(annotations.label)
        starts, order = group_order(annotations.annotator, np.arange(rows), len(annotations.ids))
        keys, slot = np.empty(rows, np.int64), np.empty(rows, np.int64)
        size = kernels.find_keys(starts, order, annotations.label, k, keys, slot)
        counts, qualities = np.zeros((size, 5), np.int64), np.zeros(size)
        kernels.add_by_key(
            annotations.starts, annotations.label, slot, consensus, consensus_quality, quality, counts, qualities
        )
        pairs, pair_counts = _count(np.repeat(consensus, np.diff(annotations.starts)) * k + annotations.label, k * k)
        return cls(
            keys[:size].copy(),
            counts,
            qualities,
            pairs,
            pair_counts,
            Histogram.of(agreement, AGREEMENT_BINS).counts,
        )

    def merge(self, other: Self) -> Self:
        keys, counts, quality = sum_by_key(*_joined(self, other, "keys", "counts", "quality"))
        pairs, pair_counts = sum_by_key(*_joined(self, other, "pairs", "pair_counts"))
        return type(self)(keys, counts, quality, pairs, pair_counts, self.agreement + other.agreement)

    def result(self) -> Self:
        return self

    def confusion(self, k: int) -> list[tuple[int, int, int]]:
        """Consensus label, given label and how often, for pairs that occur."""
        return [(*divmod(int(pair), k), int(count)) for pair, count in zip(self.pairs, self.pair_counts, strict=True)]


@dataclass(frozen=True)
class Thresholds:
    """Sums of the posterior of labels, by which confident thresholds adjust for class imbalance.

    Attributes
    ----------
    count, total : (c, k) consensus labels of each of c methods per class, and the sum of their posterior
    keys, key_count, key_total : (s,) annotator * k + class, ascending; labels and the sum of their posterior
    """

    count: Counts
    total: Floats
    keys: Counts
    key_count: Counts
    key_total: Floats

    def merge(self, other: Self) -> Self:
        keys, count, total = sum_by_key(*_joined(self, other, "keys", "key_count", "key_total"))
        return type(self)(self.count + other.count, self.total + other.total, keys, count, total)

    def result(self) -> Self:
        return self

    def consensus(self) -> Floats:
        """Thresholds of the consensus labels of each method (c, k)."""
        return np.where(self.count > 0, _clipped_mean(self.count, self.total), MISSING_CLASS_THRESHOLD)

    def of_annotators(self, m: int) -> tuple[Counts, Counts, Floats]:
        """Where each annotator's thresholds start (m + 1,), and their classes and values (s,)."""
        k = self.count.shape[1]
        starts = np.searchsorted(self.keys, np.arange(m + 1) * k)
        return starts.astype(np.int64), self.keys % k, _clipped_mean(self.key_count, self.key_total)


_DENSE = 1 << 20


def _count(values: Counts, size: int) -> tuple[Counts, Counts]:
    """Distinct values in 0..size-1, ascending, and how often each occurs."""
    if size > _DENSE:
        found, counts = np.unique(values, return_counts=True)
        return found, counts.astype(np.int64)
    counts = np.bincount(values, minlength=size)
    found = np.flatnonzero(counts)
    return found, counts[found]


def _clipped_mean(count: Counts, total: Floats) -> Floats:
    clipped: Floats = np.maximum(total / np.maximum(count, 1), 2 * FLOOR)
    return clipped


def _share_or_mean(part: Counts, whole: Counts) -> Floats:
    known = whole > 0
    shares = np.divide(part, whole, out=np.zeros(len(whole)), where=known)
    shares[~known] = shares[known].mean() if known.any() else 0.0
    return shares


def _add_padded(left: Counts, right: Counts) -> Counts:
    if len(left) < len(right):
        left, right = right, left
    total = left.copy()
    total[: len(right)] += right
    return total


def _joined(left: Any, right: Any, *names: str) -> tuple[Array, ...]:
    return tuple(np.concatenate([getattr(left, name), getattr(right, name)]) for name in names)
