"""Multiannotator demonstration: handwritten digits, labelled by a crowd of differing skill with spammers in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flows.demo_data._data import FOLD_COUNT, DemoData, Say, generator
from flows.demo_data._digits import DIGIT_CLASSES, load_digit_images
from flows.demo_data.multiclass import digit_folds, predict_digits

ANNOTATOR_COUNT = 40
SPAMMER_COUNT = 8
LABELS_PER_DIGIT = (3, 5)
SKILLS = (0.6, 0.95)
"""Share of labels that an annotator who looks gets right."""


@dataclass(frozen=True)
class CrowdData(DemoData):
    """Labels of a crowd; `labels` are those of its majority, which the model is trained on, `corrupted` where it errs.

    Attributes
    ----------
    example, annotator, given : ndarray of int64
        The annotations (A,): row of the digit, number of the annotator, label.
    names : ndarray of str
        Name of each annotator, (m,).
    truth : ndarray of int64
        True labels, (n,).
    spammers : ndarray of bool
        True where an annotator labels without looking, (m,).
    """

    example: NDArray[np.int64]
    annotator: NDArray[np.int64]
    given: NDArray[np.int64]
    names: NDArray[np.str_]
    truth: NDArray[np.int64]
    spammers: NDArray[np.bool_]


def make(seed: int, *, say: Say = lambda _: None) -> CrowdData:
    """Real handwritten digits, labels of a simulated crowd, and a classifier's out-of-sample predictions.

    Labels of the majority (n,), predictions (n, 10), and all annotations.
    """
    images, truth = load_digit_images()
    fewest, most = LABELS_PER_DIGIT
    say(f"letting {ANNOTATOR_COUNT} simulated annotators label {len(truth):,} real handwritten digits")
    spammers = np.zeros(ANNOTATOR_COUNT, bool)
    spammers[generator(seed, "spammers").choice(ANNOTATOR_COUNT, SPAMMER_COUNT, replace=False)] = True
    example, annotator, given = annotate(truth, spammers, seed)
    labels = majority(example, given, len(truth), seed)
    say(f"training a classifier on the majority's labels of {FOLD_COUNT - 1} of {FOLD_COUNT} folds, {FOLD_COUNT} times")
    pred_probs = predict_digits(images, labels, digit_folds(labels, seed), seed)
    return CrowdData(
        task="multiannotator",
        labels=labels,
        predictions=pred_probs,
        ids=np.array([f"digit-{number:05d}" for number in range(len(labels))]),
        corrupted=labels != truth,
        class_names=DIGIT_CLASSES,
        story=(
            f"{len(labels):,} real handwritten digits (scikit-learn), each labelled by {fewest} to {most} of "
            f"{ANNOTATOR_COUNT} simulated annotators. {SPAMMER_COUNT} of these are spammers: they answer at random or "
            f"always the same; the others get {SKILLS[0]:.0%} to {SKILLS[1]:.0%} right. An RBF-kernel logistic "
            f"regression, trained on the majority's labels, predicts each digit from the {FOLD_COUNT - 1} folds of "
            f"{FOLD_COUNT} that do not hold it."
        ),
        example=example,
        annotator=annotator,
        given=given,
        names=np.array([f"annotator-{number:02d}" for number in range(ANNOTATOR_COUNT)]),
        truth=truth,
        spammers=spammers,
    )


def annotate(
    truth: NDArray[np.int64], spammers: NDArray[np.bool_], seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Label digits as a crowd would.

    Parameters
    ----------
    truth : ndarray of int64
        True labels, (n,).
    spammers : ndarray of bool
        Which annotators label without looking, (m,).
    seed : int
        Seed of everything random.

    Returns
    -------
    example, annotator, given : ndarray of int64
        The annotations, (A,), in the order of digits.
    """
    rng = generator(seed, "crowd")
    m, classes = len(spammers), len(DIGIT_CLASSES)
    skill = rng.uniform(*SKILLS, m)
    favourite = np.where(rng.random(m) < 0.5, rng.integers(0, classes, m), -1)
    count = rng.integers(LABELS_PER_DIGIT[0], LABELS_PER_DIGIT[1] + 1, len(truth))
    example = np.repeat(np.arange(len(truth)), count)
    annotator = np.concatenate([np.sort(rng.choice(m, size, replace=False)) for size in count])
    wrong = (truth[example] + rng.integers(1, classes, len(example))) % classes
    given = np.where(rng.random(len(example)) < skill[annotator], truth[example], wrong)
    blind = np.where(favourite[annotator] < 0, rng.integers(0, classes, len(example)), favourite[annotator])
    return example, annotator, np.where(spammers[annotator], blind, given)


def majority(example: NDArray[np.int64], given: NDArray[np.int64], n: int, seed: int) -> NDArray[np.int64]:
    """The label that each digit was given most often, one of the most frequent at random.

    Parameters
    ----------
    example, given : ndarray of int64
        The annotations, (A,).
    n : int
        Number of digits.
    seed : int
        Seed of everything random.

    Returns
    -------
    ndarray of int64
        Labels, (n,).
    """
    votes = np.zeros((n, len(DIGIT_CLASSES)))
    np.add.at(votes, (example, given), 1)
    return (votes + 0.5 * generator(seed, "ties").random(votes.shape)).argmax(axis=1)
