"""Multiclass demonstration: handwritten digits, some of them with a wrong label."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flows.demo_data._data import FOLD_COUNT, DemoData, Floats, Folds, Say, generator, one_thread
from flows.demo_data._digits import DIGIT_CLASSES, load_digit_images, picture_classifier

WRONG_DIGIT_SHARE = 0.05


def make(seed: int, *, say: Say = lambda _: None) -> DemoData:
    """Real handwritten digits, some with a wrong label, and a classifier's out-of-sample predictions.

    Labels (n,), predictions (n, 10).
    """
    images, truth = load_digit_images()
    say(f"changing {WRONG_DIGIT_SHARE:.0%} of the labels of {len(truth):,} real handwritten digits")
    labels = swap_digits(truth, seed)
    say(f"training a classifier on {FOLD_COUNT - 1} of {FOLD_COUNT} folds, {FOLD_COUNT} times")
    pred_probs = predict_digits(images, labels, digit_folds(labels, seed), seed)
    return DemoData(
        task="multiclass",
        labels=labels,
        predictions=pred_probs,
        ids=np.array([f"digit-{number:05d}" for number in range(len(labels))]),
        corrupted=labels != truth,
        class_names=DIGIT_CLASSES,
        story=(
            f"{len(labels):,} real handwritten digits (scikit-learn), {WRONG_DIGIT_SHARE:.0%} of them "
            f"relabelled as another digit. An RBF-kernel logistic regression, trained on the wrong labels "
            f"too, predicts each digit from the {FOLD_COUNT - 1} folds of {FOLD_COUNT} that do not hold it."
        ),
    )


def swap_digits(truth: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Change a known share of digit labels, each to one of the nine other digits.

    Parameters
    ----------
    truth : ndarray of int64
        True labels, (n,).
    seed : int
        Seed of everything random.

    Returns
    -------
    ndarray of int64
        The labels as a careless annotator left them, (n,).
    """
    rng = generator(seed, "wrong digit labels")
    chosen = rng.choice(len(truth), round(WRONG_DIGIT_SHARE * len(truth)), replace=False)
    labels = truth.copy()
    labels[chosen] = (truth[chosen] + rng.integers(1, 10, len(chosen))) % 10
    return labels


def digit_folds(labels: NDArray[np.int64], seed: int) -> Folds:
    """Split digits into folds that hold each label in the same share.

    Parameters
    ----------
    labels : ndarray of int64
        Labels to train on, (n,).
    seed : int
        Seed of everything random.

    Returns
    -------
    sequence of pairs
        Training and held-out rows of each fold.
    """
    from sklearn.model_selection import StratifiedKFold

    return list(StratifiedKFold(FOLD_COUNT, shuffle=True, random_state=seed).split(labels, labels))


def predict_digits(images: Floats, labels: NDArray[np.int64], folds: Folds, seed: int) -> Floats:
    """Predict the class of each digit by a model that was trained without its fold.

    Parameters
    ----------
    images : ndarray of float32
        Digits, (n, 8, 8).
    labels : ndarray of int64
        Labels to train on, (n,).
    folds : sequence of pairs
        Training and held-out rows of each fold.
    seed : int
        Seed of everything random.

    Returns
    -------
    ndarray of float32
        Class probabilities, (n, 10).
    """
    from sklearn.model_selection import cross_val_predict

    pictures = images.reshape(len(images), -1)
    model = picture_classifier(min(len(train) for train, _ in folds), pictures.shape[1], seed)
    with one_thread():
        chances = cross_val_predict(model, pictures, labels, cv=folds, method="predict_proba")
    return np.asarray(chances, dtype=np.float32)
