"""Kernels of CROWDLAB: one example after the other, its annotations in compressed rows, its probabilities in a row.

All of them take the annotations as `starts`, `annotators` and `labels` (see `Annotations`), sorted by annotator within
an example, and `pred_probs` (n, p, k) of p models. They add to sums that are counts wherever that is possible: what
depends on an order of addition is the order of annotators within an example, which is fixed, so that weights and
labels are the same bits for every chunking.

Floor: of each pass n·p·k predictions and 2 A int32 read once. Arithmetic: k·(a + p) multiply-adds per posterior, a
logarithm and an exponential per probability where they are calibrated.

Axes: n = examples, m = annotators, A = annotations, a = annotations of an example, p = models, k = classes.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from labelqa_dask.core.confident import FLOOR
from labelqa_dask.core.kernels import (
    PROBABILITY_TOLERANCE,
    Array,
    exp_nonpositive,
    kernel,
    log_positive,
)

SMALLEST = 1e-30
_LOG_SMALLEST = math.log(SMALLEST)

# -- Forms ---------------------------------------------------------------------------------------------------------


@kernel
def compress_wide(wide: Any, counts: Any, annotators: Any, labels: Any) -> int:
    """Put the labels of (n, m) float that are not NaN, and who gave them, next to each other, (n · m,) at most.

    `counts` (n,) get the labels of each row. Returns how many there are; or, where one is no class number, the first
    such row as -1 - row.
    """
    place = 0
    for i in range(len(wide)):
        begin = place
        for j in range(wide.shape[1]):
            value = wide[i, j]
            if value == value:
                label = np.int32(value)
                if not (value >= 0 and value < 2147483647 and value == label):
                    return -1 - i
                annotators[place] = j
                labels[place] = label
                place += 1
        counts[i] = place - begin
    return place


@kernel
def first_invalid(starts: Any, annotators: Any, labels: Any, k: int) -> int:
    """The first annotation whose label is outside 0..k-1 or whose annotator labelled the example before, or -1."""
    for i in range(len(starts) - 1):
        for j in range(starts[i], starts[i + 1]):
            if labels[j] < 0 or labels[j] >= k or (j > starts[i] and annotators[j] == annotators[j - 1]):
                return j
    return -1


# -- One example ---------------------------------------------------------------------------------------------------


class Model(NamedTuple):
    """Predictions and how they are read.

    Attributes
    ----------
    pred_probs : (n, p, k) float32 or float64
    temperature : (p,) float64; empty where they are not calibrated
    sum_tolerance : how far a row's sum may be from 1
    """

    pred_probs: Array
    temperature: NDArray[np.float64]
    sum_tolerance: float


class Tiebreak(NamedTuple):
    """What settles equal votes.

    Attributes
    ----------
    frequency : (k,) int64, annotations per class
    skill : (m,) float64, initial quality of each annotator
    seed : of draws
    first : number of the block's first example, of which draws depend
    """

    frequency: NDArray[np.int64]
    skill: NDArray[np.float64]
    seed: int
    first: int


class Weights(NamedTuple):
    """How much each voice counts in the posterior.

    Attributes
    ----------
    model : (p,) float64
    annotator : (m,) float64
    likelihood : probability that an annotator gives the consensus label
    unlikelihood : probability that an annotator gives one certain other label
    """

    model: NDArray[np.float64]
    annotator: NDArray[np.float64]
    likelihood: float
    unlikelihood: float


class Scoring(NamedTuple):
    """How a label is scored under a row of probabilities.

    Attributes
    ----------
    method : 0 self-confidence, 1 normalized margin, 2 confidence-weighted entropy
    adjust : whether thresholds are subtracted
    consensus : (k,) thresholds for consensus labels
    starts, classes, thresholds : the thresholds of annotator j, of the classes it has given, are `starts[j]` to
        `starts[j + 1]`; of others `missing`
    missing : threshold of a class without examples
    """

    method: int
    adjust: bool
    consensus: NDArray[np.float64]
    starts: NDArray[np.int64]
    classes: NDArray[np.int64]
    thresholds: NDArray[np.float64]
    missing: float


@kernel
def _read(pred_probs: Any, temperature: Any, sum_tolerance: float, i: int, priors: Any, average: Any) -> bool:
    """Put the probabilities of example i, calibrated, into `priors` (p, k) and their mean into `average` (k,).

    False where a probability is outside [0, 1], or a row does not sum to 1.
    """
    p, k = priors.shape
    bad = 0
    if p == 1 and len(temperature) == 0:
        total = 0.0
        for c in range(k):
            value = np.float64(pred_probs[i, 0, c])
            bad += not ((value >= -PROBABILITY_TOLERANCE) & (value <= 1 + PROBABILITY_TOLERANCE))
            total += value
            priors[0, c] = average[c] = value
        return bad == 0 and abs(total - 1) <= sum_tolerance
    for model in range(p):
        total = 0.0
        for c in range(k):
            value = np.float64(pred_probs[i, model, c])
            bad += not ((value >= -PROBABILITY_TOLERANCE) & (value <= 1 + PROBABILITY_TOLERANCE))
            total += value
            priors[model, c] = value
        bad += not (abs(total - 1) <= sum_tolerance)
        if len(temperature) and not bad:
            _calibrate(priors[model], temperature[model])
    for c in range(k):
        total = priors[0, c]
        for model in range(1, p):
            total += priors[model, c]
        average[c] = total / p
    return bad == 0


@kernel
def _calibrate(row: Any, temperature: float) -> None:
    """softmax(ln p / temperature), p clipped from below and normalised before."""
    total = 0.0
    for c in range(len(row)):
        row[c] = max(row[c], SMALLEST)
        total += row[c]
    scaled = 0.0
    for c in range(len(row)):
        row[c] = exp_nonpositive(min(log_positive(row[c] / total) / temperature, 0.0))
        scaled += row[c]
    for c in range(len(row)):
        row[c] /= scaled


@kernel
def _mix(value: Any) -> Any:
    """The finalizer of splitmix64: every bit of (uint64) depends on every other."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@kernel
def _draw(seed: int, example: int, label: int) -> Any:
    """A number that looks drawn at random, of these three alone."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    value = _mix(np.uint64(seed) + golden)
    value = _mix(value + np.uint64(example) * golden + golden)
    return _mix(value + np.uint64(label) * golden + golden)


@kernel
def _most_given(labels: Any, counts: Any, tied: Any) -> int:
    """Put the labels given most often into `tied`; returns how many. `counts` (k,) is all 0 before and after."""
    most = 0
    for j in range(len(labels)):
        counts[labels[j]] += 1
        most = max(most, counts[labels[j]])
    number = 0
    for j in range(len(labels)):
        if counts[labels[j]] == most:
            tied[number] = labels[j]
            number += 1
        counts[labels[j]] = 0
    return number


@kernel
def _keep_highest(tied: Any, number: int, value: Any) -> int:
    highest = -np.inf
    for t in range(number):
        highest = max(highest, value[t])
    kept = 0
    for t in range(number):
        if value[t] == highest:
            tied[kept] = tied[t]
            kept += 1
    return kept


@kernel
def _majority(
    labels: Any,
    annotators: Any,
    average: Any,
    frequency: Any,
    skill: Any,
    seed: int,
    example: int,
    counts: Any,
    tied: Any,
    value: Any,
) -> tuple[int, bool]:
    """Majority label of an example, and whether it had to be drawn; `average` may be empty."""
    number = _most_given(labels, counts, tied)
    if number > 1 and len(average):
        for t in range(number):
            value[t] = average[tied[t]]
        number = _keep_highest(tied, number, value)
    if number > 1:
        for t in range(number):
            value[t] = -frequency[tied[t]]
        number = _keep_highest(tied, number, value)
    if number > 1:
        for t in range(number):
            total = 0.0
            count = 0
            for j in range(len(labels)):
                if labels[j] == tied[t]:
                    total += skill[annotators[j]]
                    count += 1
            value[t] = total / count
        number = _keep_highest(tied, number, value)
    chosen = tied[0]
    if number > 1:
        lowest = _draw(seed, example, chosen)
        for t in range(1, number):
            draw = _draw(seed, example, tied[t])
            if draw < lowest:
                lowest, chosen = draw, tied[t]
    return chosen, number > 1


@kernel
def _add_posterior(
    priors: Any,
    model: Any,
    annotator_weight: Any,
    likelihood: float,
    unlikelihood: float,
    labels: Any,
    annotators: Any,
    posterior: Any,
) -> None:
    """Weighted mean of what models and annotators say of each class (k,)."""
    p, k = priors.shape
    for c in range(k):
        posterior[c] = priors[0, c] * model[0]
    for j in range(1, p):
        for c in range(k):
            posterior[c] += priors[j, c] * model[j]
    total = 0.0
    for j in range(len(labels)):
        weight = annotator_weight[annotators[j]]
        before = posterior[labels[j]]
        other = weight * unlikelihood
        for c in range(k):
            posterior[c] += other
        posterior[labels[j]] = before + weight * likelihood
        total += weight
    for j in range(p):
        total += model[j]
    for c in range(k):
        posterior[c] /= total


@kernel
def _shares(labels: Any, posterior: Any) -> None:
    posterior[:] = 0.0
    for j in range(len(labels)):
        posterior[labels[j]] += 1
    for c in range(len(posterior)):
        posterior[c] /= len(labels)


@kernel
def _most_probable(posterior: Any, otherwise: int) -> int:
    """The class of highest probability; `otherwise` where several share it."""
    highest = 0
    equal = 1
    for c in range(1, len(posterior)):
        if posterior[c] > posterior[highest]:
            highest, equal = c, 1
        elif posterior[c] == posterior[highest]:
            equal += 1
    return highest if equal == 1 else otherwise


@kernel
def _digest_row(row: Any, method: int) -> tuple[int, float, float, float]:
    """What scores of any label under a row need: its highest class and value, the second value, the entropy."""
    highest = 0
    first, second = -np.inf, -np.inf
    entropy = 0.0
    if method == 1:
        for c in range(len(row)):
            if row[c] > first:
                highest, first, second = c, row[c], first
            elif row[c] > second:
                second = row[c]
    elif method == 2:
        for c in range(len(row)):
            probability = min(max(row[c], 0.0), 1.0)
            entropy -= probability * log_positive(probability)
        entropy /= math.log(len(row))
    return highest, first, second, entropy


@kernel
def _score_label(row: Any, label: int, method: int, highest: int, first: float, second: float, entropy: float) -> float:
    if method == 0:
        return row[label]
    if method == 1:
        return (row[label] - (second if label == highest else first) + 1) / 2
    weighted = entropy / max(row[label], FLOOR)
    return log_positive(weighted + 1) / max(weighted, FLOOR)


@kernel
def _adjust(row: Any, thresholds: Any, adjusted: Any) -> None:
    highest = thresholds.max()
    total = 0.0
    for c in range(len(row)):
        adjusted[c] = row[c] - thresholds[c] + highest
        total += adjusted[c]
    for c in range(len(row)):
        adjusted[c] /= total


# -- Passes --------------------------------------------------------------------------------------------------------

_FINE = 1 << 30
_COARSE = 1 << 20


@kernel
def add_cross_entropies(
    starts: Any, labels: Any, pred_probs: Any, sum_tolerance: float, temperatures: Any, coarse: Any, fine: Any
) -> int:
    """Add the soft cross-entropies of each example at temperatures (p, t) to (p, t) int64 sums.

    The sums are exact: in units of 2^-20 (`coarse`) and, of what is left over, 2^-50 (`fine`).
    """
    n, p, k = pred_probs.shape
    unit = math.log(k)
    priors, average, logarithm = np.empty((p, k)), np.empty(k), np.empty(k)
    none = np.empty(0)
    for i in range(n):
        if not _read(pred_probs, none, sum_tolerance, i, priors, average):
            return i
        a = starts[i + 1] - starts[i]
        if a == 0:
            continue
        for model in range(p):
            for c in range(k):
                value = priors[model, c]
                logarithm[c] = min(log_positive(value), 0.0) if value > 0 else -np.inf
            for t in range(temperatures.shape[1]):
                temperature = temperatures[model, t]
                total = 0.0
                for c in range(k):
                    if logarithm[c] > -np.inf:
                        total += exp_nonpositive(logarithm[c] / temperature)
                shift = math.log(total)
                entropy = 0.0
                for j in range(starts[i], starts[i + 1]):
                    entropy -= max(logarithm[labels[j]] / temperature - shift, _LOG_SMALLEST)
                entropy = max(entropy / a / unit, 0.0) * _COARSE
                whole = math.floor(entropy)
                coarse[model, t] += np.int64(whole)
                fine[model, t] += np.int64((entropy - whole) * _FINE)
    return -1


@kernel
def add_votes(
    starts: Any,
    annotators: Any,
    labels: Any,
    k: int,
    sizes: Any,
    frequency: Any,
    given: Any,
    others: Any,
    same: Any,
    untied: Any,
    untied_same: Any,
) -> None:
    """Add what is known of the annotations before any consensus.

    `sizes` (largest a + 1,) counts examples by their number of annotations, `frequency` (k,) labels by class; (m,)
    each: labels `given`, pairs of a label and one by `others` on the same example, those of them that are the `same`,
    labels on examples whose vote is `untied`, those of them that are the majority's (`untied_same`).
    """
    counts, tied = np.zeros(k, np.int64), np.empty(k, np.int64)
    for i in range(len(starts) - 1):
        begin, end = starts[i], starts[i + 1]
        a = end - begin
        sizes[a] += 1
        for j in range(begin, end):
            counts[labels[j]] += 1
        for j in range(begin, end):
            frequency[labels[j]] += 1
            given[annotators[j]] += 1
            others[annotators[j]] += a - 1
            same[annotators[j]] += counts[labels[j]] - 1
        for j in range(begin, end):
            counts[labels[j]] = 0
        if a and _most_given(labels[begin:end], counts, tied) == 1:
            for j in range(begin, end):
                untied[annotators[j]] += 1
                untied_same[annotators[j]] += labels[j] == tied[0]


@kernel
def add_consensus(
    starts: Any,
    annotators: Any,
    labels: Any,
    model: Any,
    tiebreak: Any,
    weights: Any,
    best: bool,
    agreeing: Any,
    classes: Any,
    model_errors: Any,
    drawn: Any,
) -> int:
    """Add what is known of consensus labels: the majority's, or those of `best` quality under the weights of that.

    Over examples with more than one annotation: annotations that agree with the consensus, by their number
    (`agreeing`), consensus labels by class (`classes`), and labels that each model gets wrong (`model_errors`). Over
    all: labels that were drawn.
    """
    n, p, k = model.pred_probs.shape
    priors, average, posterior = np.empty((p, k)), np.empty(k), np.empty(k)
    counts, tied, value = np.zeros(k, np.int64), np.empty(k, np.int64), np.empty(k)
    for i in range(n):
        if not _read(model.pred_probs, model.temperature, model.sum_tolerance, i, priors, average):
            return i
        given, by = labels[starts[i] : starts[i + 1]], annotators[starts[i] : starts[i + 1]]
        if len(given) == 0:
            continue
        label, by_chance = _majority(
            given,
            by,
            average,
            tiebreak.frequency,
            tiebreak.skill,
            tiebreak.seed,
            tiebreak.first + i,
            counts,
            tied,
            value,
        )
        drawn[0] += by_chance
        if best:
            _add_posterior(
                priors,
                weights.model,
                weights.annotator,
                weights.likelihood,
                weights.unlikelihood,
                given,
                by,
                posterior,
            )
            label = _most_probable(posterior, label)
        if len(given) == 1:
            continue
        for j in range(len(given)):
            agreeing[len(given)] += given[j] == label
        classes[label] += 1
        for j in range(p):
            model_errors[j] += priors[j].argmax() != label
    return -1


@kernel
def calibrate_all(pred_probs: Any, temperature: Any, sum_tolerance: float, out: Any) -> int:
    """Calibrated probabilities (n, p, k); returns the first example with invalid ones, or -1."""
    _, p, k = pred_probs.shape
    priors, average = np.empty((p, k)), np.empty(k)
    for i in range(len(pred_probs)):
        if not _read(pred_probs, temperature, sum_tolerance, i, priors, average):
            return i
        out[i] = priors
    return -1


@kernel
def majority_votes(starts: Any, annotators: Any, labels: Any, pred_probs: Any, k: int, tiebreak: Any, out: Any) -> int:
    """Majority label of each example into `out` (n,); `pred_probs` (n, k) may be empty. Returns how many were drawn."""
    counts, tied, value = np.zeros(k, np.int64), np.empty(k, np.int64), np.empty(k)
    drawn = 0
    for i in range(len(starts) - 1):
        given, by = labels[starts[i] : starts[i + 1]], annotators[starts[i] : starts[i + 1]]
        row = pred_probs[i] if len(pred_probs) else pred_probs.ravel()
        out[i], by_chance = _majority(
            given, by, row, tiebreak.frequency, tiebreak.skill, tiebreak.seed, tiebreak.first + i, counts, tied, value
        )
        drawn += by_chance
    return drawn


@kernel
def score_examples(
    starts: Any,
    annotators: Any,
    labels: Any,
    model: Any,
    tiebreak: Any,
    majority_weights: Any,
    weights: Any,
    best: bool,
    crowdlab: bool,
    scoring: Any,
    consensus_label: Any,
    consensus_quality: Any,
    agreement: Any,
    quality: Any,
) -> int:
    """Consensus label, its quality and agreement (n,), and the quality of each given label (A,), unless that is empty.

    Under the agreement method, posteriors are shares of labels, and the quality of a consensus is its agreement. An
    example without annotations has label -1 and quality NaN.
    """
    n, p, k = model.pred_probs.shape
    priors, average, posterior, adjusted = np.empty((p, k)), np.empty(k), np.empty(k), np.empty(k)
    thresholds = np.empty(k)
    counts, tied, value = np.zeros(k, np.int64), np.empty(k, np.int64), np.empty(k)
    for i in range(n):
        if not _read(model.pred_probs, model.temperature, model.sum_tolerance, i, priors, average):
            return i
        begin, end = starts[i], starts[i + 1]
        if begin == end:
            consensus_label[i], consensus_quality[i], agreement[i] = -1, np.nan, np.nan
            continue
        given, by = labels[begin:end], annotators[begin:end]
        label, _ = _majority(
            given,
            by,
            average,
            tiebreak.frequency,
            tiebreak.skill,
            tiebreak.seed,
            tiebreak.first + i,
            counts,
            tied,
            value,
        )
        if not crowdlab:
            _shares(given, posterior)
        else:
            if best:
                _add_posterior(
                    priors,
                    majority_weights.model,
                    majority_weights.annotator,
                    majority_weights.likelihood,
                    majority_weights.unlikelihood,
                    given,
                    by,
                    posterior,
                )
                label = _most_probable(posterior, label)
            _add_posterior(
                priors,
                weights.model,
                weights.annotator,
                weights.likelihood,
                weights.unlikelihood,
                given,
                by,
                posterior,
            )
        consensus_label[i] = label
        agreeing = 0
        for j in range(len(given)):
            agreeing += given[j] == label
        agreement[i] = agreeing / len(given)
        highest, first, second, entropy = _digest_row(posterior, scoring.method)
        if not crowdlab:
            consensus_quality[i] = agreement[i]
        elif scoring.adjust:
            _adjust(posterior, scoring.consensus, adjusted)
            found = _digest_row(adjusted, scoring.method)
            consensus_quality[i] = _score_label(adjusted, label, scoring.method, found[0], found[1], found[2], found[3])
        else:
            consensus_quality[i] = _score_label(posterior, label, scoring.method, highest, first, second, entropy)
        if len(quality) == 0:
            continue
        for j in range(len(given)):
            if scoring.adjust:
                thresholds[:] = scoring.missing
                for t in range(scoring.starts[by[j]], scoring.starts[by[j] + 1]):
                    thresholds[scoring.classes[t]] = scoring.thresholds[t]
                _adjust(posterior, thresholds, adjusted)
                found = _digest_row(adjusted, scoring.method)
                quality[begin + j] = _score_label(
                    adjusted, given[j], scoring.method, found[0], found[1], found[2], found[3]
                )
            else:
                quality[begin + j] = _score_label(posterior, given[j], scoring.method, highest, first, second, entropy)
    return -1


# -- Sums by annotator and class -----------------------------------------------------------------------------------

QUALITY_UNITS = 1 << 32


@kernel
def find_keys(starts: Any, order: Any, labels: Any, k: int, keys: Any, slot: Any) -> int:
    """Distinct pairs of annotator and class, ascending, as annotator·k + class into `keys` (A,).

    `order` (A,) are the annotations by annotator, from `starts` (m + 1,). The place of each annotation's key goes into
    `slot` (A,). Returns how many keys there are.
    """
    place, seen = np.full(k, -1), np.empty(k, np.int64)
    size = 0
    for annotator in range(len(starts) - 1):
        number = 0
        for t in range(starts[annotator], starts[annotator + 1]):
            label = labels[order[t]]
            if place[label] < 0:
                place[label] = 0
                seen[number] = label
                number += 1
        found = seen[:number]
        found.sort()
        for s in range(number):
            place[found[s]] = size + s
            keys[size + s] = annotator * k + found[s]
        for t in range(starts[annotator], starts[annotator + 1]):
            slot[order[t]] = place[labels[order[t]]]
        for s in range(number):
            place[found[s]] = -1
        size += number
    return size


@kernel
def add_by_key(
    starts: Any,
    labels: Any,
    slot: Any,
    consensus: Any,
    consensus_quality: Any,
    quality: Any,
    counts: Any,
    qualities: Any,
) -> None:
    """Sums over annotations by the place of their key.

    Into `counts` (s, 5): annotations, those that are the consensus, those on examples of several annotations, those of
    them that are the consensus, and the quality of the consensus in units of 2^-32; into `qualities` (s,) their own.
    """
    for i in range(len(starts) - 1):
        several = starts[i + 1] - starts[i] > 1
        label = consensus[i]
        units = np.int64(math.floor(consensus_quality[i] * QUALITY_UNITS + 0.5)) if label >= 0 else 0
        for j in range(starts[i], starts[i + 1]):
            right = labels[j] == label
            to = counts[slot[j]]
            to[0] += 1
            to[1] += right
            to[2] += several
            to[3] += right & several
            to[4] += units
            qualities[slot[j]] += quality[j]
