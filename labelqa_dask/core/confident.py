"""Label issues by confident learning: how many there are, and exactly which, in a few walks over data of any size.

An element (an example, or a pixel) is *off-diagonal* where the model is confident of another class than the given one:
`argmax p != label` and `p[argmax] >= t[argmax] - 1e-6`, with the confident threshold `t[j]` the mean of `p[j]` over the
elements labelled `j`. The number of off-diagonal elements estimates the number `c` of issues. The `c` elements of
lowest score are the candidates, and those whose argmax is not their label are the issues.

The c lowest of any number of scores are found without a sort or a list of them. A score is taken by its bits, so turned
that they order as the scores do: a histogram of the first 16 bits, made by the walk that counts the issues, tells in
which bin the cut-off lies and how many of that bin are wanted; a histogram of the next 16 bits within that bin settles
float32. For float64 a third walk counts the distinct values that are left, of which there are few. Where some but not
all of the elements that equal the cut-off are wanted (quantised probabilities), the first ones in index order are
taken: a walk counts them by rows, and one over a single range of rows finds the last one wanted.

Source: Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 70 (2021).

Axes: n = elements of a block, k = classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from labelqa_dask.core.class_scores import ClassScores
from labelqa_dask.core.kernels import inlined, kernel
from labelqa_dask.core.sums import sum_by_key
from labelqa_dask.core.task import Block, Pass, Stats

FLOOR = 1e-6
MISSING_CLASS_THRESHOLD = 2.0
_MARGIN = 1e-6
_BINS = 1 << 16
_ROW_BINS = 1 << 17

EstimationMethod = Literal["off_diagonal", "off_diagonal_calibrated"]


@dataclass(frozen=True)
class ClassMeans(ClassScores):
    """Number of the elements labelled `j`, and sum of their `p[j]`: a mergeable state over (k,) raw sums."""

    def result(self) -> NDArray[np.float64]:
        """Confident thresholds (k,): means clipped from below at 2e-6, and 2 for a class with no element."""
        mean = self.total / np.maximum(self.count, 1)
        return np.where(self.count > 0, np.maximum(mean, 2 * FLOOR), MISSING_CLASS_THRESHOLD)


def issue_thresholds(thresholds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Confident thresholds as issue finding takes them: of a class with no element it is 2e-6."""
    return np.where(thresholds == MISSING_CLASS_THRESHOLD, 2 * FLOOR, thresholds)


@dataclass(frozen=True)
class Elements:
    """What is known of the elements of a block, in arrays of one shape whose first axis are the examples.

    Attributes
    ----------
    scores : float32 or float64, NaN where an element is ignored
    labels, predicted : int; `predicted` is the most probable class, the first of equal ones
    confidence : probability of that class
    k : number of classes
    corner, extent : index of the first element within an example, and the shape of a whole example

    `predicted` and `confidence` are empty where they were not asked for.
    """

    scores: NDArray[np.floating[Any]]
    labels: NDArray[np.integer[Any]]
    predicted: NDArray[np.integer[Any]]
    confidence: NDArray[np.floating[Any]]
    k: int
    corner: tuple[int, ...] = ()
    extent: tuple[int, ...] = ()

    def offsets(self) -> NDArray[np.int64]:
        """Index of each element within its example, of the shape of a block's part of an example."""
        offsets = np.zeros((), np.int64)
        for start, size, whole in zip(self.corner, self.scores.shape[1:], self.extent, strict=True):
            offsets = offsets[..., None] * whole + np.arange(start, start + size)
        return offsets


# Makes the elements of a block, and checks them where there are no statistics yet; the last argument asks for predicted
# classes.
Inspect = Callable[[Block, Any, Stats, bool], Elements]


@dataclass(frozen=True)
class IssueCount:
    """Off-diagonal elements by class, and the histogram of all scores by the first 16 bits of their keys.

    Attributes
    ----------
    count, confident, off_diagonal : (k,) int64
        By given class: elements; those with `p[argmax] >= t[argmax]`; those of them with `argmax != label`.
    histogram : (65536,) int64
    bits : int
        Bits of a score.
    """

    count: NDArray[np.int64]
    confident: NDArray[np.int64]
    off_diagonal: NDArray[np.int64]
    histogram: NDArray[np.int64]
    bits: int

    @classmethod
    def of(cls, elements: Elements, thresholds: NDArray[np.float64]) -> Self:
        by_class = np.zeros((3, elements.k), np.int64)
        histogram = np.zeros(_BINS, np.int64)
        _count(
            elements.scores.ravel(),
            _bits_of(elements.scores).ravel(),
            elements.labels.ravel(),
            elements.predicted.ravel(),
            elements.confidence.ravel(),
            thresholds - _MARGIN,
            by_class,
            histogram,
        )
        return cls(by_class[0], by_class[1], by_class[2], histogram, elements.scores.itemsize * 8)

    def merge(self, other: Self) -> Self:
        return type(self)(
            self.count + other.count,
            self.confident + other.confident,
            self.off_diagonal + other.off_diagonal,
            self.histogram + other.histogram,
            self.bits,
        )

    def result(self) -> Self:
        return self

    @cached_property
    def reached(self) -> NDArray[np.int64]:
        """Number of scores up to each bin."""
        return np.cumsum(self.histogram)

    def estimate(self, method: EstimationMethod) -> int:
        """The estimated number of issues; calibrated to the number of labels in each class where asked for."""
        if method == "off_diagonal":
            return int(self.off_diagonal.sum())
        calibrated = self.off_diagonal * self.count / np.maximum(self.confident, FLOOR)
        return int(np.rint(calibrated.sum()))


@dataclass(frozen=True)
class Counts:
    """Counts that add up: a histogram."""

    counts: NDArray[np.int64]

    def merge(self, other: Self) -> Self:
        return type(self)(self.counts + other.counts)

    def result(self) -> Self:
        return self

    @cached_property
    def reached(self) -> NDArray[np.int64]:
        """Their sum up to each."""
        return np.cumsum(self.counts)


@dataclass(frozen=True)
class KeyCounts(Counts):
    """Counts of the distinct keys that occur, (m,) uint64 in ascending order."""

    keys: NDArray[np.uint64]

    @classmethod
    def of(cls, keys: NDArray[np.uint64]) -> Self:
        distinct, counts = np.unique(keys, return_counts=True)
        return cls(counts.astype(np.int64), distinct)

    def merge(self, other: Self) -> Self:
        keys, counts = sum_by_key(np.concatenate([self.keys, other.keys]), np.concatenate([self.counts, other.counts]))
        return type(self)(counts, keys)


@dataclass(frozen=True)
class TieBits:
    """Which elements of a few examples equal the cut-off: one bit each, packed, in index order."""

    bits: NDArray[np.uint8]

    def merge(self, other: Self) -> Self:
        return type(self)(self.bits | other.bits)

    def result(self) -> NDArray[np.uint8]:
        return self.bits


@dataclass(frozen=True)
class Cutoff:
    """Where the candidates end, as far as the walks so far tell.

    Attributes
    ----------
    key : int
        The first bits of the key of the cut-off.
    bits : int
        How many bits these are.
    wanted : int
        How many of the elements whose keys begin so are candidates: the lowest, and of equal ones the first.
    equal : int
        How many elements there are whose keys begin so.
    """

    key: int
    bits: int
    wanted: int
    equal: int

    def narrowed(self, keys: Sequence[int] | NDArray[np.uint64], reached: NDArray[np.int64], bits: int) -> Cutoff:
        """The cut-off among keys that go on with these bits, in ascending order, so many up to each."""
        i, wanted = _bin_of(reached, self.wanted)
        equal = int(reached[i]) - (self.wanted - wanted)
        return Cutoff(self.key << bits | int(keys[i]), self.bits + bits, wanted, equal)


class IssueSearch:
    """The walks that find the label issues of a task, and what they have found.

    Parameters
    ----------
    inspect : callable
        Makes the elements of a block.
    thresholds : Pass
        The walk whose result are the confident thresholds.
    method : {"off_diagonal", "off_diagonal_calibrated"}
        How the number of issues is estimated.
    """

    def __init__(self, inspect: Inspect, thresholds: Pass[Any], method: EstimationMethod = "off_diagonal") -> None:
        self._inspect = inspect
        self._thresholds = thresholds
        self._method = method

    def passes(self) -> tuple[Pass[Any], ...]:
        """The walks, in order; the last three are rarely needed."""
        return (
            self._thresholds,
            Pass("issue_count", IssueCount, self._count),
            Pass("issue_cutoff", Counts, self._count_next_bits, self._if_there_are_issues),
            Pass("issue_cutoff_last_bits", KeyCounts, self._count_last_bits, self._if_bits_are_left),
            Pass("issue_ties", Counts, self._count_ties, self._if_some_ties_are_wanted, by_row=True),
            Pass("issue_ties_in_rows", TieBits, self._mark_ties, self._rows_of_the_last_tie, by_row=True),
        )

    def estimated(self, stats: Stats) -> int:
        """The estimated number of issues."""
        found: IssueCount = stats["issue_count"]
        return min(found.estimate(self._method), int(found.reached[-1]))

    def candidates(self, elements: Elements, block: Block, stats: Stats) -> NDArray[np.bool_]:
        """Which elements of a block are among the lowest of all, as many as issues are estimated."""
        cutoff = self._cutoff(stats)
        if cutoff is None:
            return np.zeros(elements.scores.shape, bool)
        score = _score_of(cutoff)
        below: NDArray[np.bool_] = elements.scores < score
        ties = elements.scores == score
        if cutoff.wanted < cutoff.equal:
            rows, wanted = self._last_ties(cutoff, stats, block.sizes["example"])
            marks = np.flatnonzero(np.unpackbits(stats["issue_ties_in_rows"]))
            ties &= _index(elements, block, rows.start) <= marks[wanted - 1]
        return below | ties

    def elements(self, block: Block, params: Any, stats: Stats, predict: bool) -> Elements:
        """The elements of a block: made once where blocks keep what was made of them, else by each walk."""
        if block.kept is None:
            return self._inspect(block, params, stats, predict)
        if "elements" not in block.kept:
            block.kept["elements"] = self._inspect(block, params, stats, True)
        elements: Elements = block.kept["elements"]
        return elements

    def statistics(self, stats: Stats) -> dict[str, Any]:
        """What readers are told: the thresholds, the estimated number of issues, the highest score of a candidate."""
        cutoff = self._cutoff(stats)
        return {
            self._thresholds.name: issue_thresholds(stats[self._thresholds.name]).tolist(),
            "estimated_issues": self.estimated(stats),
            "cutoff_score": None if cutoff is None else float(_score_of(cutoff)),
        }

    def _count(self, block: Block, params: Any, stats: Stats) -> IssueCount:
        elements = self.elements(block, params, stats, True)
        return IssueCount.of(elements, issue_thresholds(stats[self._thresholds.name]))

    def _if_there_are_issues(self, params: Any, stats: Stats, n: int) -> range | None:
        return range(n) if self.estimated(stats) else None

    def _count_next_bits(self, block: Block, params: Any, stats: Stats) -> Counts:
        scores = self.elements(block, params, stats, False).scores
        counts = np.zeros(_BINS, np.int64)
        _count_next(scores.ravel(), _bits_of(scores).ravel(), _found(self._first_bits(stats)).key, counts)
        return Counts(counts)

    def _if_bits_are_left(self, params: Any, stats: Stats, n: int) -> range | None:
        cutoff = self._next_bits(stats) if stats["issue_cutoff"] is not None else None
        return range(n) if cutoff and cutoff.bits < stats["issue_count"].bits else None

    def _count_last_bits(self, block: Block, params: Any, stats: Stats) -> KeyCounts:
        keys = _keys(self.elements(block, params, stats, False).scores)
        among = keys[keys >> np.uint64(32) == _found(self._next_bits(stats)).key]
        return KeyCounts.of(among & np.uint64(0xFFFFFFFF))

    def _if_some_ties_are_wanted(self, params: Any, stats: Stats, n: int) -> range | None:
        cutoff = self._cutoff(stats)
        return range(n) if cutoff and cutoff.wanted < cutoff.equal else None

    def _count_ties(self, block: Block, params: Any, stats: Stats) -> Counts:
        ties = self.elements(block, params, stats, False).scores == _score_of(_found(self._cutoff(stats)))
        n = block.sizes["example"]
        rows = np.arange(len(ties)) + block.origin["example"]
        per_row = ties.reshape(len(ties), -1).sum(axis=1)
        return Counts(np.bincount(rows // _bin_rows(n), per_row, _bins(n)).astype(np.int64))

    def _rows_of_the_last_tie(self, params: Any, stats: Stats, n: int) -> range | None:
        return self._last_ties(_found(self._cutoff(stats)), stats, n)[0] if stats["issue_ties"] is not None else None

    def _mark_ties(self, block: Block, params: Any, stats: Stats) -> TieBits:
        cutoff = _found(self._cutoff(stats))
        rows, _ = self._last_ties(cutoff, stats, block.sizes["example"])
        elements = self.elements(block, params, stats, False)
        marks = np.zeros(len(rows) * math.prod(elements.extent), bool)
        marks[_index(elements, block, rows.start)[elements.scores == _score_of(cutoff)]] = True
        return TieBits(np.packbits(marks))

    def _last_ties(self, cutoff: Cutoff, stats: Stats, n: int) -> tuple[range, int]:
        """The rows among which the last candidate is, and how many of their ties are candidates."""
        i, wanted = _bin_of(stats["issue_ties"].reached, cutoff.wanted)
        step = _bin_rows(n)
        return range(i * step, min((i + 1) * step, n)), wanted

    def _first_bits(self, stats: Stats) -> Cutoff | None:
        """The first 16 bits of the cut-off; None where there is no issue."""
        found: IssueCount = stats["issue_count"]
        wanted = self.estimated(stats)
        whole = Cutoff(0, 0, wanted, int(found.reached[-1]))
        return whole.narrowed(range(_BINS), found.reached, 16) if wanted else None

    def _next_bits(self, stats: Stats) -> Cutoff | None:
        """The first 32 bits; None also where nobody has looked for them."""
        cutoff, next_bits = self._first_bits(stats), stats["issue_cutoff"]
        return None if cutoff is None or next_bits is None else cutoff.narrowed(range(_BINS), next_bits.reached, 16)

    def _cutoff(self, stats: Stats) -> Cutoff | None:
        """All bits."""
        cutoff, last = self._next_bits(stats), stats["issue_cutoff_last_bits"]
        return cutoff if cutoff is None or last is None else cutoff.narrowed(last.keys, last.reached, 32)


def _found(cutoff: Cutoff | None) -> Cutoff:
    assert cutoff is not None, "walks after the count are made only where there are issues"
    return cutoff


def _bin_of(reached: NDArray[np.int64], wanted: int) -> tuple[int, int]:
    """The bin in which so many are reached, and how many of it that takes."""
    i = int(np.searchsorted(reached, wanted))
    return i, wanted - (int(reached[i - 1]) if i else 0)


def _bin_rows(n: int) -> int:
    return -(-n // _ROW_BINS)


def _bins(n: int) -> int:
    return -(-n // _bin_rows(n))


def _index(elements: Elements, block: Block, first_row: int) -> NDArray[np.int64]:
    """Index of each element among all elements from a row on; negative before it."""
    size = math.prod(elements.extent)
    rows = np.arange(len(elements.scores), dtype=np.int64) + block.origin["example"] - first_row
    return rows.reshape(-1, *(1,) * len(elements.extent)) * size + elements.offsets()


# Keys: the bits of a score as an unsigned integer that orders as the scores do, -0.0 as 0.0, NaN last.


def _bits_of(scores: NDArray[np.floating[Any]]) -> NDArray[np.signedinteger[Any]]:
    return np.ascontiguousarray(scores).view(f"i{scores.itemsize}")


def _keys(scores: NDArray[np.floating[Any]]) -> NDArray[np.uint64]:
    keys = np.empty(scores.size, np.uint64)
    _fill_keys(scores.ravel(), _bits_of(scores).ravel(), keys)
    return keys


def _score_of(cutoff: Cutoff) -> np.floating[Any]:
    """The score that a whole key stands for."""
    half = 1 << cutoff.bits - 1
    bits = cutoff.key - half if cutoff.key >= half else ~cutoff.key
    score: np.floating[Any] = np.array([bits], f"i{cutoff.bits // 8}").view(f"f{cutoff.bits // 8}")[0]
    return score


@inlined
def _key(score: Any, bits: Any, half: Any) -> Any:
    if score == 0:
        return half
    wide = np.int64(bits)
    return np.uint64(~wide) if wide < 0 else np.uint64(wide) + half


@kernel
def _fill_keys(scores: Any, bits: Any, keys: Any) -> None:
    half = np.uint64(1) << np.uint64(8 * bits.itemsize - 1)
    for i in range(len(scores)):
        keys[i] = _key(scores[i], bits[i], half)


# Floor of the next two: scores, and for the count labels, predicted classes and their probabilities, read once; a few
# integer operations and one addition to a histogram of 512 KiB for each element.


@kernel
def _count(
    scores: Any, bits: Any, labels: Any, predicted: Any, confidence: Any, least: Any, by_class: Any, histogram: Any
) -> None:
    half = np.uint64(1) << np.uint64(8 * bits.itemsize - 1)
    shift = np.uint64(8 * bits.itemsize - 16)
    for i in range(len(scores)):
        if scores[i] != scores[i]:
            continue
        histogram[np.int64(_key(scores[i], bits[i], half) >> shift)] += 1
        label = labels[i]
        by_class[0, label] += 1
        if confidence[i] >= least[predicted[i]]:
            by_class[1, label] += 1
            by_class[2, label] += predicted[i] != label


@kernel
def _count_next(scores: Any, bits: Any, first: int, counts: Any) -> None:
    """Histogram of the second 16 bits of the keys that begin with `first`."""
    half = np.uint64(1) << np.uint64(8 * bits.itemsize - 1)
    shift = np.uint64(8 * bits.itemsize - 32)
    for i in range(len(scores)):
        if scores[i] == scores[i]:
            key = np.int64(_key(scores[i], bits[i], half) >> shift)
            if key >> 16 == first:
                counts[key & 0xFFFF] += 1
