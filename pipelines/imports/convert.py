"""Conversion: the files of each image into the chunks of one Zarr group.

Axes: n = images, k = classes, h, w = height and width of the largest image; smaller ones are padded below and to the
right, with the ignore index in the labels and 0 in the predictions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from labelqa_dask.core.kernels import Array
from labelqa_dask.storage.record import Version
from labelqa_dask.storage.sinks import OutputArray
from labelqa_dask.storage.staged import StagedZarr
from pipelines.imports import images
from pipelines.imports.images import PRED_PROBS, Unfit
from pipelines.imports.survey import MaskFolders, Pair, Survey, check_classes, read_file, read_mask
from pipelines.work import digest_of

LABELS, IDS = "labels", "image_id"
ID_CHUNK = 1 << 16
MOST_IMAGES = 64
_TILE_BYTES = 32 << 20
_BATCH_BYTES = 64 << 20


@dataclass(frozen=True)
class Geometry:
    """The form of the arrays that are written, whatever the number of images."""

    classes: int
    height: int
    width: int
    tile: tuple[int, int]
    dtype: str
    label_dtype: str
    ignore_index: int
    batch: int

    @classmethod
    def of(cls, surveyed: Survey, classes: int, dtype: np.dtype[Any], ignore_index: int) -> Self:
        """The form that the largest of some images needs."""
        height, width = int(surveyed.height.max()), int(surveyed.width.max())
        image_bytes = classes * height * width * dtype.itemsize
        return cls(
            classes,
            height,
            width,
            _tile_of(height, width, classes * dtype.itemsize),
            dtype.name,
            _label_dtype(classes, ignore_index).name,
            ignore_index,
            max(1, min(MOST_IMAGES, _BATCH_BYTES // image_bytes)),
        )

    @property
    def job_bytes(self) -> int:
        """Peak memory of converting an image: the file as it is fetched, decompressed, and the tiles being written."""
        itemsize = np.dtype(self.dtype).itemsize
        tile = self.classes * self.tile[0] * self.tile[1] * itemsize
        return 3 * self.classes * self.height * self.width * itemsize + 3 * tile + 16 * self.height * self.width

    def arrays(self, n: int) -> tuple[OutputArray, ...]:
        y, x = self.tile
        dtype, label_dtype = np.dtype(self.dtype), np.dtype(self.label_dtype)
        scale = {"scale_factor": 1.0 / np.iinfo(dtype).max} if dtype.kind == "u" else {}
        return (
            OutputArray(
                LABELS,
                ("example", "y", "x"),
                (n, self.height, self.width),
                label_dtype,
                (1, y, x),
                fill_value=self.ignore_index,
                attributes={"ignore_index": self.ignore_index},
            ),
            OutputArray(
                PRED_PROBS,
                ("example", "class", "y", "x"),
                (n, self.classes, self.height, self.width),
                dtype,
                (1, self.classes, y, x),
                fill_value=0,
                attributes=scale,
            ),
            OutputArray(IDS, ("example",), (n,), np.dtype(object), (min(n, ID_CHUNK),)),
        )

    def tiles(self) -> Iterator[tuple[slice, slice]]:
        for y in range(0, self.height, self.tile[0]):
            for x in range(0, self.width, self.tile[1]):
                yield slice(y, min(y + self.tile[0], self.height)), slice(x, min(x + self.tile[1], self.width))


def _tile_of(height: int, width: int, pixel_bytes: int) -> tuple[int, int]:
    """An image, or where that is large a part of it: the longer side is halved."""
    while height * width * pixel_bytes > _TILE_BYTES and max(height, width) > 1:
        height, width = (-(-height // 2), width) if height >= width else (height, -(-width // 2))
    return height, width


def _label_dtype(classes: int, ignore_index: int) -> np.dtype[Any]:
    """The smallest type that holds every class id and the ignore index."""
    return np.promote_types(np.min_scalar_type(classes - 1), np.min_scalar_type(ignore_index))


@dataclass(frozen=True)
class Converted:
    """Why some images could not be converted; (n,) str, empty where they were."""

    problem: NDArray[np.str_]


@dataclass(frozen=True)
class ConvertJob:
    """Some images to convert, and the rows they go to."""

    start: int
    pairs: tuple[Pair, ...]
    folders: MaskFolders
    record: Version
    geometry: Geometry
    staged: StagedZarr

    @property
    def name(self) -> str:
        return f"convert-{self.start:09d}"

    @property
    def digest(self) -> str:
        keys = [pair.key() for pair in self.pairs]
        return digest_of(self.folders.masks.url, self.folders.predictions.url, asdict(self.geometry), keys)

    @property
    def units(self) -> int:
        return len(self.pairs)

    @property
    def nbytes(self) -> int:
        return sum(pair.nbytes for pair in self.pairs)


def convert(job: ConvertJob) -> Converted:
    """Write the chunks of some images."""
    problems = []
    for row, pair in enumerate(job.pairs, job.start):
        try:
            _convert_one(job, row, pair)
            problems.append("")
        except Unfit as unfit:
            problems.append(str(unfit))
    return Converted(np.array(problems, np.str_))


def _convert_one(job: ConvertJob, row: int, pair: Pair) -> None:
    geometry, folders = job.geometry, job.folders
    content = read_file(folders.predictions, pair.prediction)
    pred_probs = images.read_prediction(content, zipped=pair.is_zipped)
    images.check_probabilities(pred_probs)
    labels = read_mask(folders, pair)
    height, width = labels.shape
    if pred_probs.shape != (geometry.classes, height, width) or height > geometry.height or width > geometry.width:
        raise Unfit("changed while it was read")
    check_classes(labels, labels == geometry.ignore_index, geometry.classes, geometry.ignore_index)
    for y, x in geometry.tiles():
        here = slice(row, row + 1)
        job.staged.write(LABELS, (here, y, x), padded(labels, (y, x), geometry.ignore_index, geometry.label_dtype))
        job.staged.write(
            PRED_PROBS, (here, slice(None), y, x), padded(pred_probs, (slice(None), y, x), 0, geometry.dtype)
        )


def padded(values: Array, index: tuple[slice, ...], fill: int, dtype: str) -> Array:
    """A part of an image with an axis for the image in front, filled up where the image ends before."""
    part = values[index]
    extent = [stop - start for (start, stop, _) in (s.indices(1 << 62) for s in index[-2:])]
    shape = (*values.shape[:-2], *extent)
    if part.shape == shape:
        return part.astype(dtype, copy=False)[None]
    whole = np.full(shape, fill, dtype)
    whole[..., : part.shape[-2], : part.shape[-1]] = part
    return whole[None]
