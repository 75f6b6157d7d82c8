"""Segmentation demonstration: scenes of handwritten digits, some of them badly annotated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flows.demo_data._data import FOLD_COUNT, DemoData, Floats, Folds, Say, folds_of, generator, one_thread
from flows.demo_data._digits import DIGIT_CLASSES, load_digit_images, picture_classifier

Masks: TypeAlias = NDArray[np.uint8]

WRONG_SCENE_SHARE = 0.10

SCENE_COUNT = 300
GRID = 3
"""A scene is a grid of GRID x GRID cells; a cell holds one digit or none."""
CELL_SIDE = 32
SCENE_SIDE = GRID * CELL_SIDE
CELL_MARGIN = 2
"""Pixels kept free on each side of a cell, so that digits in neighbouring cells never touch."""
DIGITS_PER_SCENE = (3, 5)
DIGIT_SIDES = (16, 28)
INK_CONTRAST = 0.6
INK_THRESHOLD = 0.3
"""Share of the full ink from which a pixel is annotated as part of its digit."""
NOISE = 0.04
DISPLACEMENT = 6
"""Pixels, in both directions, by which a displaced mask misses its object."""

PIXELS_PER_SCENE = 200
"""Pixels drawn from each training scene for the model of ink."""
SMALLEST_OBJECT = 8
"""Longer side in pixels below which a speck of ink is not taken for an object."""
ZONE_MARGIN = 3
"""Pixels around an object that share its class."""
CROP_SIDE = 12


@dataclass(frozen=True)
class Scenes:
    """Scenes composed from real digits, with their true annotation.

    Attributes
    ----------
    images : ndarray of float32
        Grey images, (n, h, w).
    labels : ndarray of uint8
        True class of each pixel: 0 background, 1 to 10 the digits 0 to 9.
    objects : ndarray of uint8
        Number of the object each pixel belongs to: 0 background, then 1, 2, ... within each scene.
    """

    images: Floats
    labels: Masks
    objects: Masks


@dataclass(frozen=True)
class FoundObjects:
    """Objects found in one scene from its image alone.

    Attributes
    ----------
    zones : ndarray of int
        Number of the object each pixel belongs or is close to, from 1; 0 far from all objects, (h, w).
    crops : list of ndarray of float32
        Flattened picture of each object in a common size, that of object 1 first.
    """

    zones: NDArray[np.intp]
    crops: list[Floats]


def make(seed: int, *, say: Say = lambda _: None) -> DemoData:
    """Scenes of real handwritten digits, some badly annotated, and a segmenter's out-of-sample predictions.

    Labels (n, h, w), predictions (n, 11, h, w); class 0 is the background.
    """
    scenes = compose_scenes(seed, SCENE_COUNT, say)
    say(f"spoiling the annotation of {WRONG_SCENE_SHARE:.0%} of the scenes")
    labels = spoil_scenes(scenes, seed)
    pred_probs = predict_scenes(scenes.images, labels, folds_of(len(labels), seed), seed, say)
    return DemoData(
        task="segmentation",
        labels=labels,
        predictions=pred_probs,
        ids=np.array([f"scene-{number:04d}" for number in range(len(labels))]),
        corrupted=(labels != scenes.labels).any(axis=(1, 2)),
        class_names=("background", *DIGIT_CLASSES),
        story=(
            f"{len(labels)} scenes composed of real handwritten digits (scikit-learn), no digit used twice; "
            f"in {WRONG_SCENE_SHARE:.0%} of them one digit is annotated as another digit, not annotated, "
            f"or its mask is displaced. A pixel model of ink and an RBF-kernel classifier of the objects it "
            f"finds, both trained on the wrong annotations too, predict each scene from the {FOLD_COUNT - 1} "
            f"folds of {FOLD_COUNT} that do not hold it."
        ),
    )


def compose_scenes(seed: int, count: int = SCENE_COUNT, say: Say = lambda _: None) -> Scenes:
    """Compose scenes of real digits in several sizes on a sloping, noisy background, no digit used twice.

    Parameters
    ----------
    seed : int
        Seed of everything random.
    count : int, optional
        Number of scenes.
    say : callable, optional
        Called with a short line at each step.

    Returns
    -------
    Scenes
        The images and their true annotation.

    Raises
    ------
    ValueError
        If there are not enough digits to use each at most once.
    """
    images, digits = load_digit_images()
    say(f"composing {count} scenes from {len(digits):,} real handwritten digits")
    rng = generator(seed, "scenes")
    fewest, most = DIGITS_PER_SCENE
    counts = rng.integers(fewest, most + 1, count)
    if counts.sum() > len(digits):
        raise ValueError(f"{count} scenes need {counts.sum():,} digits; there are only {len(digits):,}")
    drawn = np.split(rng.permutation(len(digits))[: counts.sum()], np.cumsum(counts)[:-1])
    parts = [_compose_scene(images[rows], digits[rows], rng) for rows in drawn]
    pictures, labels, objects = (np.stack(layers) for layers in zip(*parts, strict=True))
    return Scenes(images=pictures, labels=labels, objects=objects)


def spoil_scenes(scenes: Scenes, seed: int) -> Masks:
    """Spoil the annotation of one object in a known share of scenes: swapped, left out and displaced in turn.

    Parameters
    ----------
    scenes : Scenes
        Scenes with their true annotation.
    seed : int
        Seed of everything random.

    Returns
    -------
    ndarray of uint8
        The annotation as a careless annotator left it, (n, h, w).
    """
    rng = generator(seed, "wrong annotations")
    count = len(scenes.labels)
    labels = scenes.labels.copy()
    for turn, scene in enumerate(rng.choice(count, round(WRONG_SCENE_SHARE * count), replace=False)):
        objects = scenes.objects[scene]
        mask = objects == rng.integers(1, objects.max() + 1)
        spoil = SPOILERS[turn % len(SPOILERS)]
        spoil(labels[scene], mask, rng)
    return labels


def predict_scenes(
    images: Floats,
    labels: Masks,
    folds: Folds,
    seed: int,
    say: Say = lambda _: None,
) -> Floats:
    """Predict the class of each pixel by models that were trained without the scene's fold.

    Parameters
    ----------
    images : ndarray of float32
        Scenes, (n, h, w).
    labels : ndarray of uint8
        Annotations to train on, (n, h, w).
    folds : sequence of pairs
        Training and held-out scenes of each fold.
    seed : int
        Seed of everything random.
    say : callable, optional
        Called with a short line at each step.

    Returns
    -------
    ndarray of float32
        Class probabilities, (n, 11, h, w).
    """
    features = [_pixel_features(image) for image in images]
    pred_probs = np.empty((len(images), 1 + len(DIGIT_CLASSES), *images.shape[1:]), dtype=np.float32)
    for number, (train, held_out) in enumerate(folds, start=1):
        say(f"training on {len(folds) - 1} of {len(folds)} folds ({number}/{len(folds)})")
        with one_thread():
            pred_probs[held_out] = _predict_fold(images, features, labels, train, held_out, seed)
    return pred_probs


def _compose_scene(
    images: Floats,
    digits: NDArray[np.int64],
    rng: np.random.Generator,
) -> tuple[Floats, Masks, Masks]:
    """Place some digits in cells of one scene: its image, true labels and object numbers."""
    from scipy import ndimage

    image = _background(rng)
    labels = np.zeros(image.shape, dtype=np.uint8)
    objects = np.zeros_like(labels)
    cells = rng.choice(GRID * GRID, len(digits), replace=False)
    for number, (cell, digit) in enumerate(zip(cells, digits, strict=True), start=1):
        side = int(rng.integers(DIGIT_SIDES[0], DIGIT_SIDES[1] + 1))
        ink = ndimage.zoom(images[number - 1], side / 8, order=1, grid_mode=True, mode="nearest")
        top, left = CELL_SIDE * np.array(divmod(cell, GRID)) + rng.integers(
            CELL_MARGIN, CELL_SIDE - CELL_MARGIN - side + 1, 2
        )
        place = slice(top, top + side), slice(left, left + side)
        image[place] += INK_CONTRAST * ink
        labels[place][ink > INK_THRESHOLD] = 1 + digit
        objects[place][ink > INK_THRESHOLD] = number
    return image, labels, objects


def _background(rng: np.random.Generator) -> Floats:
    """Draw an empty scene: a grey slope in a random direction, with noise."""
    down, right = rng.uniform(-0.3, 0.3, 2)
    ramp = np.linspace(-0.5, 0.5, SCENE_SIDE)
    slope = 0.2 + down * ramp[:, np.newaxis] + right * ramp
    return np.asarray(slope + rng.normal(0, NOISE, slope.shape), dtype=np.float32)


def _swap_class(labels: Masks, mask: NDArray[np.bool_], rng: np.random.Generator) -> None:
    """Annotate an object as another digit."""
    digit = int(labels[mask][0]) - 1
    labels[mask] = 1 + (digit + rng.integers(1, 10)) % 10


def _leave_out(labels: Masks, mask: NDArray[np.bool_], _rng: np.random.Generator) -> None:
    """Leave an object unannotated."""
    labels[mask] = 0


def _displace(labels: Masks, mask: NDArray[np.bool_], rng: np.random.Generator) -> None:
    """Draw the mask of an object beside it."""
    from scipy import ndimage

    label = labels[mask][0]
    labels[mask] = 0
    beside = ndimage.shift(mask, rng.choice([-DISPLACEMENT, DISPLACEMENT], 2), order=0)
    labels[beside & (labels == 0)] = label


SPOILERS = (_swap_class, _leave_out, _displace)


def _predict_fold(
    images: Floats,
    features: Sequence[Floats],
    labels: Masks,
    train: NDArray[np.intp],
    held_out: NDArray[np.intp],
    seed: int,
) -> Floats:
    """Train on some scenes and predict the class of each pixel of the held-out ones."""
    ink_model = _fit_ink_model([features[scene] for scene in train], labels[train], seed)
    found = [_find_objects(images[scene], _ink(ink_model, features[scene])) for scene in train]
    object_model = _fit_object_model(found, labels[train], seed)
    chances = []
    for scene in held_out:
        ink = _ink(ink_model, features[scene])
        chances.append(_pixel_chances(ink, _find_objects(images[scene], ink), object_model))
    return np.stack(chances)


def _pixel_features(image: Floats) -> Floats:
    """Describe each pixel by its surroundings, relative to the local background: (pixels, features)."""
    from scipy import ndimage

    darkest = ndimage.minimum_filter(ndimage.gaussian_filter(image, 2), 15)
    background = ndimage.gaussian_filter(darkest, 4)
    layers = [
        image - background,
        *(ndimage.gaussian_filter(image, width) - background for width in (0.6, 1, 2)),
        ndimage.gaussian_laplace(image, 1.5),
        ndimage.gaussian_gradient_magnitude(image, 1),
    ]
    return np.stack(layers, axis=-1).reshape(image.size, len(layers))


def _fit_ink_model(features: Sequence[Floats], labels: Masks, seed: int) -> Any:
    """Learn from annotated scenes which pixels belong to any object."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = generator(seed, "pixels to train on")
    drawn = rng.integers(0, labels[0].size, (len(labels), PIXELS_PER_SCENE))
    pixels = np.concatenate([scene[rows] for scene, rows in zip(features, drawn, strict=True)])
    annotated = np.take_along_axis(labels.reshape(len(labels), -1), drawn, axis=1).ravel() > 0
    return make_pipeline(StandardScaler(), LogisticRegression(C=10, max_iter=1000)).fit(pixels, annotated)


def _ink(ink_model: Any, features: Floats) -> NDArray[np.float64]:
    """Chance of each pixel of a scene to belong to any object, (h, w)."""
    chances = ink_model.predict_proba(features)[:, 1]
    return np.asarray(chances, dtype=np.float64).reshape(SCENE_SIDE, SCENE_SIDE)


def _find_objects(image: Floats, ink: NDArray[np.float64]) -> FoundObjects:
    """Find connected ink in a scene and cut out a picture of each piece."""
    from scipy import ndimage

    pieces, _ = ndimage.label(ndimage.binary_dilation(ink > 0.5), structure=np.ones((3, 3)))
    smooth = ndimage.gaussian_filter(image, 0.7)
    zones = np.zeros(image.shape, dtype=np.intp)
    crops: list[Floats] = []
    for piece, box in enumerate(ndimage.find_objects(pieces), start=1):
        inside = pieces[box] == piece
        if max(inside.shape) >= SMALLEST_OBJECT:
            crops.append(_crop(smooth[box], inside))
            zones[box][inside] = len(crops)
    reach = ndimage.maximum_filter(zones, 2 * ZONE_MARGIN + 1)
    return FoundObjects(zones=np.where(zones, zones, reach), crops=crops)


def _crop(image: Floats, inside: NDArray[np.bool_]) -> Floats:
    """Bring one object to the middle of a square of the common size, with ink from 0 to about 1."""
    from scipy import ndimage

    height, width = inside.shape
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = np.zeros((side, side), dtype=np.float32)
    square[top : top + height, left : left + width] = np.where(inside, image - image.min(), 0) / INK_CONTRAST
    return np.asarray(ndimage.zoom(square, CROP_SIDE / side, order=1, grid_mode=True, mode="nearest")).ravel()


def _fit_object_model(found: Sequence[FoundObjects], labels: Masks, seed: int) -> Any:
    """Learn the class of objects found in annotated scenes, each from the commonest class annotated there."""
    crops: list[Floats] = []
    classes: list[int] = []
    for scene, annotation in zip(found, labels, strict=True):
        for zone, crop in enumerate(scene.crops, start=1):
            counts = np.bincount(annotation[scene.zones == zone], minlength=1 + len(DIGIT_CLASSES))[1:]
            if counts.any():
                crops.append(crop)
                classes.append(int(counts.argmax()))
    return picture_classifier(len(crops), CROP_SIDE**2, seed).fit(np.stack(crops), classes)


def _pixel_chances(ink: NDArray[np.float64], found: FoundObjects, object_model: Any) -> Floats:
    """Class probabilities of each pixel: chance of ink, times chances of the classes of its object."""
    digits = len(DIGIT_CLASSES)
    chances = np.full((1 + len(found.crops), digits), 1 / digits)
    if found.crops:
        chances[1:] = 0
        chances[1:, object_model.classes_] = object_model.predict_proba(np.stack(found.crops))
    pred_probs = np.empty((1 + digits, *ink.shape), dtype=np.float32)
    pred_probs[0] = 1 - ink
    pred_probs[1:] = np.moveaxis(chances[found.zones], -1, 0) * ink
    return pred_probs
