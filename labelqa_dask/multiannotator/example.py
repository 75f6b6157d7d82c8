"""What is found of one example: its probabilities, its majority label, the posterior, and scores of labels under it.

Everything here is compiled into the walks of `kernels`. Its annotations are `labels` and `annotators` (a,), sorted by
annotator; its probabilities `priors` (p, k) of each model and their `average` (k,).

Axes: a = annotations of the example, p = models, k = classes; n, m = examples and annotators of the whole.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from labelqa_dask.core.confident import FLOOR
from labelqa_dask.core.kernels import PROBABILITY_TOLERANCE, Array, exp_nonpositive, kernel, log_positive

SMALLEST = 1e-30


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
def read_probabilities(model: Any, i: int, priors: Any, average: Any) -> bool:
    """Put the probabilities of example i, calibrated, into `priors` (p, k) and their mean into `average` (k,).

    False where a probability is outside [0, 1], or a row does not sum to 1.
    """
    p, k = priors.shape
    bad = 0
    if p == 1 and len(model.temperature) == 0:
        total = 0.0
        for c in range(k):
            value = np.float64(model.pred_probs[i, 0, c])
            bad += not ((value >= -PROBABILITY_TOLERANCE) & (value <= 1 + PROBABILITY_TOLERANCE))
            total += value
            priors[0, c] = average[c] = value
        return bad == 0 and abs(total - 1) <= model.sum_tolerance
    for number in range(p):
        total = 0.0
        for c in range(k):
            value = np.float64(model.pred_probs[i, number, c])
            bad += not ((value >= -PROBABILITY_TOLERANCE) & (value <= 1 + PROBABILITY_TOLERANCE))
            total += value
            priors[number, c] = value
        bad += not (abs(total - 1) <= model.sum_tolerance)
        if len(model.temperature) and not bad:
            _calibrate(priors[number], model.temperature[number])
    for c in range(k):
        total = priors[0, c]
        for number in range(1, p):
            total += priors[number, c]
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
def most_given(labels: Any, counts: Any, tied: Any) -> int:
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
def majority_label(
    labels: Any, annotators: Any, average: Any, tiebreak: Any, i: int, counts: Any, tied: Any, value: Any
) -> tuple[int, bool]:
    """Majority label of example i of a block, and whether it had to be drawn; `average` may be empty."""
    number = most_given(labels, counts, tied)
    if number > 1 and len(average):
        for t in range(number):
            value[t] = average[tied[t]]
        number = _keep_highest(tied, number, value)
    if number > 1:
        for t in range(number):
            value[t] = -tiebreak.frequency[tied[t]]
        number = _keep_highest(tied, number, value)
    if number > 1:
        for t in range(number):
            total = 0.0
            count = 0
            for j in range(len(labels)):
                if labels[j] == tied[t]:
                    total += tiebreak.skill[annotators[j]]
                    count += 1
            value[t] = total / count
        number = _keep_highest(tied, number, value)
    chosen = tied[0]
    if number > 1:
        example = tiebreak.first + i
        lowest = _draw(tiebreak.seed, example, chosen)
        for t in range(1, number):
            draw = _draw(tiebreak.seed, example, tied[t])
            if draw < lowest:
                lowest, chosen = draw, tied[t]
    return chosen, number > 1


@kernel
def posterior_of(priors: Any, weights: Any, labels: Any, annotators: Any, posterior: Any) -> None:
    """Weighted mean of what models and annotators say of each class (k,)."""
    p, k = priors.shape
    for c in range(k):
        posterior[c] = priors[0, c] * weights.model[0]
    for j in range(1, p):
        for c in range(k):
            posterior[c] += priors[j, c] * weights.model[j]
    total = 0.0
    for j in range(len(labels)):
        weight = weights.annotator[annotators[j]]
        before = posterior[labels[j]]
        other = weight * weights.unlikelihood
        for c in range(k):
            posterior[c] += other
        posterior[labels[j]] = before + weight * weights.likelihood
        total += weight
    for j in range(p):
        total += weights.model[j]
    for c in range(k):
        posterior[c] /= total


@kernel
def shares_of(labels: Any, posterior: Any) -> None:
    """Put the share of annotators who gave each class into `posterior` (k,)."""
    posterior[:] = 0.0
    for j in range(len(labels)):
        posterior[labels[j]] += 1
    for c in range(len(posterior)):
        posterior[c] /= len(labels)


@kernel
def most_probable(posterior: Any, otherwise: int) -> int:
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
def digest_row(row: Any, method: int) -> tuple[int, float, float, float]:
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
def score_label(row: Any, digest: Any, label: int, method: int) -> float:
    """Score of a label under a row, of which a digest is known."""
    highest, first, second, entropy = digest
    if method == 0:
        return row[label]
    if method == 1:
        return (row[label] - (second if label == highest else first) + 1) / 2
    weighted = entropy / max(row[label], FLOOR)
    return log_positive(weighted + 1) / max(weighted, FLOOR)


@kernel
def score_adjusted(row: Any, thresholds: Any, label: int, method: int, adjusted: Any) -> float:
    """Score of a label under a row less the thresholds (k,) of its labels."""
    highest = thresholds.max()
    total = 0.0
    for c in range(len(row)):
        adjusted[c] = row[c] - thresholds[c] + highest
        total += adjusted[c]
    for c in range(len(row)):
        adjusted[c] /= total
    return score_label(adjusted, digest_row(adjusted, method), label, method)


@kernel
def thresholds_of(scoring: Any, annotator: int, thresholds: Any) -> None:
    """Put the thresholds of an annotator's labels into (k,)."""
    thresholds[:] = scoring.missing
    for t in range(scoring.starts[annotator], scoring.starts[annotator + 1]):
        thresholds[scoring.classes[t]] = scoring.thresholds[t]
