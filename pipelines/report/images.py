"""Thumbnails of images that were labelled pixel by pixel, as PNG data URIs."""

from __future__ import annotations

import base64
import colorsys
import functools
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ClassMap = NDArray[np.integer[Any]]  # (h, w) class ids, negative where a pixel has none
ScoreMap = NDArray[np.floating[Any]]  # (h, w) scores, NaN where a pixel has none

LARGEST = 256  # longest side of a thumbnail, in pixels
TRANSPARENT = 0  # palette index of pixels without a class or a score
CLASS_COLOURS = 255
SCORE_COLOURS = 64

# Okabe and Ito's palette, then Tol's: adjacent ids differ in hue and in lightness.
_DISTINCT = bytes.fromhex(
    "0072b2 e69f00 009e73 cc79a7 56b4e9 d55e00 f0e442 332288 44aa99 882255 999933 ddcc77 117733 cc6677 aa4499"
    "661100 88ccee 5c6b7a"
)

# Magma from score 1 (dark, quiet) to score 0 (bright): even steps in lightness, safe for the colour-blind.
_MAGMA = bytes.fromhex(
    "000004 0c0926 221150 400f74 5f187f 7b2382 982d80 b73779 d3436e eb5760 f8765c fd9a6a febb81 fddc9e fcfdbf"
)


@dataclass(frozen=True)
class Preview:
    """One of the worst images, small enough to look at.

    Attributes
    ----------
    row : int
        Index of the image in the data set.
    id : str, int or None
        The image's own name, where the data set has one.
    score : float
        Label quality of the whole image.
    given : (h, w) int
        Class ids as labelled; negative where the pixel was ignored.
    predicted : (h, w) int
        The model's most likely class.
    pixel_scores : (h, w) float
        Label quality per pixel in [0, 1], low where suspicious; NaN where not scored.
    """

    row: int
    id: str | int | None
    score: float
    given: ClassMap
    predicted: ClassMap
    pixel_scores: ScoreMap


@dataclass(frozen=True)
class Differences:
    """Where the labelled pixels of an image disagree with the model.

    Attributes
    ----------
    share : float or None
        Share of the labelled pixels; None where no pixel is labelled.
    given, predicted : int or None
        The classes that are confused most often.
    largest : float
        Share of the labelled pixels on which they are.
    """

    share: float | None
    given: int | None = None
    predicted: int | None = None
    largest: float = 0.0


def class_colour(class_id: int) -> str:
    """The colour of a class as ``#rrggbb``; ids that lie `CLASS_COLOURS` apart share one."""
    index = class_id % CLASS_COLOURS
    return f"#{class_palette()[3 * index : 3 * index + 3].hex()}"


@functools.cache
def class_palette() -> bytes:
    """The colours of all class ids: first distinct ones, then golden steps around the colour wheel."""
    more = (
        colorsys.hls_to_rgb(index * 0.618034 % 1, (0.36, 0.52, 0.68)[index % 3], (0.75, 0.5)[index % 2])
        for index in range(len(_DISTINCT) // 3, CLASS_COLOURS)
    )
    return _DISTINCT + bytes(round(255 * channel) for colour in more for channel in colour)


@functools.cache
def score_palette() -> bytes:
    """The colours of scores in `SCORE_COLOURS` even steps, from 0 to 1."""
    anchors = np.frombuffer(_MAGMA, np.uint8).reshape(-1, 3)[::-1]
    at = np.linspace(0, len(anchors) - 1, SCORE_COLOURS)
    channels = [np.interp(at, np.arange(len(anchors)), channel) for channel in anchors.T]
    return bytes(np.rint(np.stack(channels, axis=1)).astype(np.uint8))


def class_map_png(classes: ClassMap) -> str:
    """A map (h, w) of class ids as a data URI; large ones are thinned to every s-th pixel."""
    step = _step(classes.shape)
    thumbnail = classes[::step, ::step].astype(np.int64)
    indices = np.where(thumbnail < 0, TRANSPARENT, 1 + thumbnail % CLASS_COLOURS)
    return _png(indices, class_palette()[: 3 * int(indices.max())])


def score_map_png(scores: ScoreMap) -> str:
    """A map (h, w) of scores as a data URI; large ones keep the lowest score of each s-by-s block."""
    step = _step(scores.shape)
    for axis, extent in enumerate(scores.shape):
        scores = np.fmin.reduceat(scores, np.arange(0, extent, step), axis=axis)
    unscored = np.isnan(scores)
    known = np.clip(np.where(unscored, 0, scores), 0, 1).astype(float)
    indices = np.where(unscored, TRANSPARENT, 1 + np.rint(known * (SCORE_COLOURS - 1)))
    return _png(indices, score_palette())


def density_png(counts: ScoreMap, scores: ScoreMap) -> str:
    """A plane (h, w), first row at the bottom, as a data URI: coloured by score, opaque where many examples lie."""
    palette = np.frombuffer(score_palette(), np.uint8).reshape(-1, 3)
    step = np.rint(np.clip(np.nan_to_num(scores), 0, 1) * (SCORE_COLOURS - 1)).astype(int)
    share = np.log1p(counts) / np.log1p(max(counts.max(), 1))
    alpha = np.where(counts > 0, 120 + 135 * share, 0).astype(np.uint8)
    picture = np.concatenate([palette[step], alpha[..., None]], axis=2)[::-1]
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture), "RGBA").save(file, "PNG", optimize=True)
    return _data_uri(file)


def score_scale_png() -> str:
    """The colours of scores from 0 to 1, left to right, as a data URI."""
    return _png(1 + np.arange(SCORE_COLOURS)[None], score_palette())


def class_shares(*maps: ClassMap) -> list[tuple[int, float]]:
    """The classes on some maps with their shares of the pixels that have one, largest first."""
    classes, counts = np.unique(np.concatenate([each[each >= 0] for each in maps]), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [(int(classes[i]), float(counts[i] / counts.sum())) for i in order]


def differences(preview: Preview) -> Differences:
    """How much of an image's labels the model disagrees with, and on which classes most."""
    labelled = (preview.given >= 0) & (preview.predicted >= 0)
    if not labelled.any():
        return Differences(None)
    differs = labelled & (preview.given != preview.predicted)
    if not differs.any():
        return Differences(0.0)
    # One number per pair is sorted many times faster than rows of two.
    base = int(preview.predicted.max()) + 1
    pairs = preview.given[differs].astype(np.int64) * base + preview.predicted[differs]
    confused, counts = np.unique(pairs, return_counts=True)
    most = int(counts.argmax())
    given, predicted = divmod(int(confused[most]), base)
    total = int(labelled.sum())
    return Differences(int(differs.sum()) / total, given, predicted, int(counts[most]) / total)


def _step(extents: tuple[int, ...]) -> int:
    return -(-max(extents) // LARGEST)


def _png(indices: NDArray[Any], colours: bytes) -> str:
    """Encode palette indices; index `TRANSPARENT` is see-through, index 1 has the first colour."""
    image = Image.fromarray(indices.astype(np.uint8))
    image.putpalette(bytes(3) + colours)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True, transparency=TRANSPARENT)
    return _data_uri(file)


def _data_uri(file: io.BytesIO) -> str:
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
