"""Regression demonstration on real data: how far diabetes went in 442 patients, some of it recorded wrongly."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flows.demo_data._data import FOLD_COUNT, DemoData, Floats, Folds, Say, folds_of, generator, one_thread

WRONG_RECORD_SHARE = 0.05

Values = NDArray[np.float64]


def make(seed: int, *, say: Say = lambda _: None) -> DemoData:
    """Measures of disease of scikit-learn's diabetes data, some recorded wrongly, and out-of-sample predictions.

    Labels (n,) and predictions (n,), in the data's own measure, 25 to 346.
    """
    features, measures = load_patients()
    say(f"slipping the decimal point in {WRONG_RECORD_SHARE:.0%} of {len(measures)} real records")
    labels = misrecord(measures, seed)
    predictions = predict_measures(features, labels, folds_of(len(labels), seed), say)
    return DemoData(
        task="regression",
        labels=labels,
        predictions=predictions,
        ids=np.array([f"patient-{number:03d}" for number in range(len(labels))]),
        corrupted=labels != measures,
        class_names=(),
        story=(
            f"How far diabetes went within a year in {len(labels)} real patients (scikit-learn's data); in "
            f"{WRONG_RECORD_SHARE:.0%} of the records the decimal point slipped. A robust linear model, trained on the "
            f"wrong records too, predicts each patient from {FOLD_COUNT - 1} of {FOLD_COUNT} folds, those without it."
        ),
    )


def load_patients() -> tuple[Values, Values]:
    """What is known of each patient (n, 10), and the measure of the disease a year later (n,)."""
    from sklearn.datasets import load_diabetes

    features, measures = load_diabetes(return_X_y=True)
    return features, measures


def misrecord(measures: Values, seed: int) -> Values:
    """Record a known share of the measures ten times too large or too small.

    Parameters
    ----------
    measures : ndarray of float64
        True measures, (n,).
    seed : int
        Seed of everything random.

    Returns
    -------
    ndarray of float64
        The measures as recorded, (n,).
    """
    rng = generator(seed, "wrong patients")
    chosen = rng.choice(len(measures), round(WRONG_RECORD_SHARE * len(measures)), replace=False)
    labels = measures.copy()
    labels[chosen] *= rng.choice([0.1, 10.0], len(chosen))
    return labels


def predict_measures(features: Values, labels: Values, folds: Folds, say: Say = lambda _: None) -> Floats:
    """Predict each measure by a model that was trained without its fold.

    Parameters
    ----------
    features : ndarray of float64
        What is known of each patient, (n, 10).
    labels : ndarray of float64
        Measures to train on, (n,).
    folds : sequence of pairs
        Training and held-out rows of each fold.
    say : callable, optional
        Called with a short line for each fold.

    Returns
    -------
    ndarray of float32
        Predicted measures, (n,).
    """
    from sklearn.linear_model import HuberRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    predictions = np.empty(len(labels), np.float32)
    for number, (train, held_out) in enumerate(folds, start=1):
        say(f"fitting a robust line on {len(folds) - 1} of {len(folds)} folds ({number}/{len(folds)})")
        model = make_pipeline(StandardScaler(), HuberRegressor(max_iter=1000))
        with one_thread():
            model.fit(features[train], labels[train])
            predictions[held_out] = model.predict(features[held_out])
    return predictions
