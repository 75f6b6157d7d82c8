"""Regression demonstration: thrown balls, some of whose measured distances are wrong."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flows.demo_data._data import FOLD_COUNT, DemoData, Floats, Folds, Say, folds_of, generator, one_thread

THROWS = 40_000
WRONG_THROW_SHARE = 0.02
FEET_PER_METRE = 3.28084
MEASURING_ERROR = 0.02
"""Standard deviation of a measured distance, as a share of it."""
GRAVITY = 9.81
AIR_DENSITY = 1.2
TIME_STEP = 0.02

Values = NDArray[np.float64]


def make(seed: int, *, say: Say = lambda _: None) -> DemoData:
    """Distances of simulated throws, some recorded wrongly, and a regressor's out-of-sample predictions.

    Labels (n,) and predictions (n,), in metres.
    """
    say(f"throwing {THROWS:,} balls through air")
    features, distances = throw(seed, THROWS)
    say(f"recording {WRONG_THROW_SHARE:.0%} of the distances wrongly")
    labels = misrecord(distances, seed)
    predictions = predict_distances(features, labels, folds_of(THROWS, seed), seed, say)
    return DemoData(
        task="regression",
        labels=labels,
        predictions=predictions,
        ids=np.array([f"throw-{number:05d}" for number in range(THROWS)]),
        corrupted=labels != distances,
        class_names=(),
        story=(
            f"{THROWS:,} simulated throws of balls with drag and wind, each distance measured to "
            f"{MEASURING_ERROR:.0%}; {WRONG_THROW_SHARE:.0%} of the distances are recorded in feet, with a slipped "
            f"decimal point, or for another throw. Boosted trees, trained on the wrong records too, predict each "
            f"throw from the {FOLD_COUNT - 1} folds of {FOLD_COUNT} that do not hold it."
        ),
    )


def throw(seed: int, count: int) -> tuple[Values, Values]:
    """Throw balls through air, and measure how far they get.

    Parameters
    ----------
    seed : int
        Seed of everything random.
    count : int
        Number of throws.

    Returns
    -------
    features : ndarray of float64
        Speed (m/s), angle (rad), mass (kg), radius (m), wind along the throw (m/s), height (m): (n, 6).
    distances : ndarray of float64
        Measured distances in metres, (n,).
    """
    rng = generator(seed, "throws")
    speed, angle = rng.uniform(8, 45, count), np.deg2rad(rng.uniform(15, 70, count))
    mass, radius = rng.uniform(0.05, 0.7, count), rng.uniform(0.02, 0.12, count)
    wind, height = rng.normal(0, 4, count), rng.uniform(0.5, 2.2, count)
    drag = 0.5 * AIR_DENSITY * 0.47 * np.pi * radius**2 / mass
    x, y, vx, vy = np.zeros(count), height.copy(), speed * np.cos(angle), speed * np.sin(angle)
    landed = np.full(count, np.nan)
    while np.isnan(landed).any():
        against = np.hypot(vx - wind, vy)
        # The midpoint rule.
        half_x = vx - TIME_STEP / 2 * drag * against * (vx - wind)
        half_y = vy - TIME_STEP / 2 * (GRAVITY + drag * against * vy)
        against = np.hypot(half_x - wind, half_y)
        vx = vx - TIME_STEP * drag * against * (half_x - wind)
        vy = vy - TIME_STEP * (GRAVITY + drag * against * half_y)
        next_x, next_y = x + TIME_STEP * half_x, y + TIME_STEP * half_y
        hits = np.isnan(landed) & (next_y <= 0)
        landed[hits] = x[hits] + (next_x[hits] - x[hits]) * y[hits] / (y[hits] - next_y[hits])
        x, y = next_x, next_y
    measured = landed * (1 + MEASURING_ERROR * rng.normal(size=count))
    return np.stack([speed, angle, mass, radius, wind, height], axis=1), measured


def misrecord(distances: Values, seed: int) -> Values:
    """Record a known share of distances wrongly: in feet, with a slipped decimal point, or another throw's.

    Parameters
    ----------
    distances : ndarray of float64
        Measured distances, (n,).
    seed : int
        Seed of everything random.

    Returns
    -------
    ndarray of float64
        The distances as recorded, (n,).
    """
    rng = generator(seed, "wrong records")
    chosen = rng.choice(len(distances), round(WRONG_THROW_SHARE * len(distances)), replace=False)
    in_feet, slipped, swapped = np.array_split(chosen, 3)
    labels = distances.copy()
    labels[in_feet] *= FEET_PER_METRE
    labels[slipped] *= rng.choice([0.1, 10.0], len(slipped))
    labels[swapped] = distances[np.roll(swapped, 1)]
    return labels


def predict_distances(features: Values, labels: Values, folds: Folds, seed: int, say: Say = lambda _: None) -> Floats:
    """Predict each distance by a model that was trained without its fold.

    Parameters
    ----------
    features : ndarray of float64
        What is known of each throw, (n, 6).
    labels : ndarray of float64
        Distances to train on, (n,).
    folds : sequence of pairs
        Training and held-out rows of each fold.
    seed : int
        Seed of everything random.
    say : callable, optional
        Called with a short line for each fold.

    Returns
    -------
    ndarray of float32
        Predicted distances, (n,).
    """
    from sklearn.ensemble import HistGradientBoostingRegressor

    predictions = np.empty(len(labels), np.float32)
    for number, (train, held_out) in enumerate(folds, start=1):
        say(f"training boosted trees on {len(folds) - 1} of {len(folds)} folds ({number}/{len(folds)})")
        model = HistGradientBoostingRegressor(loss="absolute_error", max_iter=150, random_state=seed)
        with one_thread():
            model.fit(features[train], labels[train])
            predictions[held_out] = model.predict(features[held_out])
    return predictions
