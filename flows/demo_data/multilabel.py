"""Multilabel demonstration: groups of handwritten digits, some of them with a class too many, too few, or exchanged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from flows.demo_data._data import FOLD_COUNT, DemoData, Floats, Say, generator, one_thread
from flows.demo_data._digits import DIGIT_CLASSES, KERNEL_SHARPNESS, MOST_COMPONENTS, load_digit_images

Indicators: TypeAlias = NDArray[np.uint8]

GROUP_COUNT = 1500
DIGITS_PER_GROUP = (2, 4)
WRONG_GROUP_SHARE = 0.10


@dataclass(frozen=True)
class Groups:
    """Groups of digits; those of one fold share no digit with those of another.

    Attributes
    ----------
    members : ndarray of int
        Number of the digit in each place of a group, (n, 4); -1 where the place is empty.
    folds : ndarray of int
        Fold of each group, (n,).
    labels : ndarray of uint8
        1 where a group holds a digit of the class, (n, 10).
    """

    members: NDArray[np.int64]
    folds: NDArray[np.int64]
    labels: Indicators


def make(seed: int, *, say: Say = lambda _: None) -> DemoData:
    """Groups of real handwritten digits, some with wrong labels, and a classifier's out-of-sample predictions.

    Labels (n, 10) of 0 and 1, predictions (n, 10).
    """
    images, digits = load_digit_images()
    say(f"grouping {len(digits):,} real handwritten digits into {GROUP_COUNT:,} groups")
    groups = compose_groups(digits, seed)
    say(f"changing the labels of {WRONG_GROUP_SHARE:.0%} of the groups")
    labels = spoil_groups(groups.labels, seed)
    pred_probs = predict_groups(images, groups, labels, seed, say)
    return DemoData(
        task="multilabel",
        labels=labels,
        predictions=pred_probs,
        ids=np.array([f"group-{number:05d}" for number in range(len(labels))]),
        corrupted=(labels != groups.labels).any(axis=1),
        class_names=DIGIT_CLASSES,
        story=(
            f"{len(labels):,} groups of two to four real handwritten digits (scikit-learn), labelled with the set of "
            f"the digits in them; in {WRONG_GROUP_SHARE:.0%} of them one class is missing, is given wrongly, or "
            f"stands in place of another. A logistic regression per class on an RBF kernel summed over the digits, "
            f"trained on the wrong labels too, predicts each group from the {FOLD_COUNT - 1} folds of {FOLD_COUNT} "
            f"that hold none of its digits."
        ),
    )


def compose_groups(digits: NDArray[np.int64], seed: int) -> Groups:
    """Put digits into groups, a digit into several groups of its fold.

    Parameters
    ----------
    digits : ndarray of int64
        The digit each image shows.
    seed : int
        Seed of everything random.

    Returns
    -------
    Groups
        With their true labels.
    """
    rng = generator(seed, "groups")
    folds = np.arange(GROUP_COUNT) % FOLD_COUNT
    fold_of_digit = rng.permutation(len(digits)) % FOLD_COUNT
    fewest, most = DIGITS_PER_GROUP
    members = np.full((GROUP_COUNT, most), -1)
    labels = np.zeros((GROUP_COUNT, len(DIGIT_CLASSES)), np.uint8)
    for group, fold in enumerate(folds):
        drawn = rng.choice(np.flatnonzero(fold_of_digit == fold), rng.integers(fewest, most + 1), replace=False)
        members[group, : len(drawn)] = drawn
        labels[group, digits[drawn]] = 1
    return Groups(members, folds, labels)


def spoil_groups(labels: Indicators, seed: int) -> Indicators:
    """Change one class of a known share of groups: left out, added and exchanged in turn.

    Parameters
    ----------
    labels : ndarray of uint8
        True labels, (n, 10).
    seed : int
        Seed of everything random.

    Returns
    -------
    ndarray of uint8
        The labels as a careless annotator left them, (n, 10).
    """
    rng = generator(seed, "wrong groups")
    spoilt = labels.copy()
    for turn, group in enumerate(rng.choice(len(labels), round(WRONG_GROUP_SHARE * len(labels)), replace=False)):
        if turn % 3 != 1:
            spoilt[group, rng.choice(np.flatnonzero(labels[group]))] = 0
        if turn % 3 != 0:
            spoilt[group, rng.choice(np.flatnonzero(labels[group] == 0))] = 1
    return spoilt


def predict_groups(images: Floats, groups: Groups, labels: Indicators, seed: int, say: Say = lambda _: None) -> Floats:
    """Predict which classes are in each group by a model that saw none of its digits.

    Parameters
    ----------
    images : ndarray of float32
        Digits, (n, 8, 8).
    groups : Groups
        What to predict, and the folds.
    labels : ndarray of uint8
        Labels to train on, (n, 10).
    seed : int
        Seed of everything random.
    say : callable, optional
        Called with a short line at each step.

    Returns
    -------
    ndarray of float32
        Probability of each class, (n, 10).
    """
    from sklearn.kernel_approximation import Nystroem
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    pictures = images.reshape(len(images), -1)
    pred_probs = np.empty(labels.shape, np.float32)
    for fold in range(FOLD_COUNT):
        say(f"training on {FOLD_COUNT - 1} of {FOLD_COUNT} folds ({fold + 1}/{FOLD_COUNT})")
        train, held_out = np.flatnonzero(groups.folds != fold), np.flatnonzero(groups.folds == fold)
        seen = np.setdiff1d(groups.members[train], [-1])
        kernel = Nystroem(
            gamma=KERNEL_SHARPNESS / pictures.shape[1],
            n_components=min(MOST_COMPONENTS, len(seen)),
            random_state=seed,
        )
        with one_thread():
            kernel.fit(pictures[seen])
            features = np.concatenate([kernel.transform(pictures), np.zeros((1, kernel.n_components))])
            summed = features[groups.members].sum(axis=1)  # -1, an empty place, adds the row of zeros
            model = OneVsRestClassifier(LogisticRegression(C=10, max_iter=2000)).fit(summed[train], labels[train])
            pred_probs[held_out] = model.predict_proba(summed[held_out])
    return pred_probs
