"""Kernels of CROWDLAB: walks over examples, their annotations in compressed rows, their probabilities in rows.

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
from typing import Any

import numpy as np

from labelqa_dask.core.kernels import exp_nonpositive, kernel, log_positive
from labelqa_dask.multiannotator.example import (
    SMALLEST,
    digest_row,
    majority_label,
    most_given,
    most_probable,
    posterior_of,
    read_probabilities,
    score_adjusted,
    score_label,
    shares_of,
    thresholds_of,
)

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


# -- Passes --------------------------------------------------------------------------------------------------------

_FINE = 1 << 30
_COARSE = 1 << 20


@kernel
def add_cross_entropies(starts: Any, labels: Any, model: Any, temperatures: Any, coarse: Any, fine: Any) -> int:
    """Add the soft cross-entropies of each example at temperatures (p, t) to (p, t) int64 sums.

    The sums are exact: in units of 2^-20 (`coarse`) and, of what is left over, 2^-50 (`fine`).
    """
    n, p, k = model.pred_probs.shape
    unit = math.log(k)
    priors, average, logarithm = np.empty((p, k)), np.empty(k), np.empty(k)
    for i in range(n):
        if not read_probabilities(model, i, priors, average):
            return i
        a = starts[i + 1] - starts[i]
        if a == 0:
            continue
        for number in range(p):
            for c in range(k):
                value = priors[number, c]
                logarithm[c] = min(log_positive(value), 0.0) if value > 0 else -np.inf
            for t in range(temperatures.shape[1]):
                temperature = temperatures[number, t]
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
                coarse[number, t] += np.int64(whole)
                fine[number, t] += np.int64((entropy - whole) * _FINE)
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
        if a and most_given(labels[begin:end], counts, tied) == 1:
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
        if not read_probabilities(model, i, priors, average):
            return i
        given, by = labels[starts[i] : starts[i + 1]], annotators[starts[i] : starts[i + 1]]
        if len(given) == 0:
            continue
        label, by_chance = majority_label(given, by, average, tiebreak, i, counts, tied, value)
        drawn[0] += by_chance
        if best:
            posterior_of(priors, weights, given, by, posterior)
            label = most_probable(posterior, label)
        if len(given) == 1:
            continue
        for j in range(len(given)):
            agreeing[len(given)] += given[j] == label
        classes[label] += 1
        for j in range(p):
            model_errors[j] += priors[j].argmax() != label
    return -1


@kernel
def calibrate_all(model: Any, out: Any) -> int:
    """Calibrated probabilities (n, p, k); returns the first example with invalid ones, or -1."""
    n, p, k = model.pred_probs.shape
    priors, average = np.empty((p, k)), np.empty(k)
    for i in range(n):
        if not read_probabilities(model, i, priors, average):
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
        out[i], by_chance = majority_label(given, by, row, tiebreak, i, counts, tied, value)
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
        if not read_probabilities(model, i, priors, average):
            return i
        begin, end = starts[i], starts[i + 1]
        if begin == end:
            consensus_label[i], consensus_quality[i], agreement[i] = -1, np.nan, np.nan
            continue
        given, by = labels[begin:end], annotators[begin:end]
        label, _ = majority_label(given, by, average, tiebreak, i, counts, tied, value)
        if not crowdlab:
            shares_of(given, posterior)
        else:
            if best:
                posterior_of(priors, majority_weights, given, by, posterior)
                label = most_probable(posterior, label)
            posterior_of(priors, weights, given, by, posterior)
        consensus_label[i] = label
        agreeing = 0
        for j in range(len(given)):
            agreeing += given[j] == label
        agreement[i] = agreeing / len(given)
        digest = digest_row(posterior, scoring.method)
        if not crowdlab:
            consensus_quality[i] = agreement[i]
        elif scoring.adjust:
            consensus_quality[i] = score_adjusted(posterior, scoring.consensus, label, scoring.method, adjusted)
        else:
            consensus_quality[i] = score_label(posterior, digest, label, scoring.method)
        if len(quality) == 0:
            continue
        for j in range(len(given)):
            if scoring.adjust:
                thresholds_of(scoring, by[j], thresholds)
                quality[begin + j] = score_adjusted(posterior, thresholds, given[j], scoring.method, adjusted)
            else:
                quality[begin + j] = score_label(posterior, digest, given[j], scoring.method)
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
