"""What is known of the files of each image before any is converted.

The survey reads every mask whole and the header of every prediction, so that all files that do not fit are known at
once, and so are the largest image and the number of classes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from labelqa_dask.core.errors import StorageError
from labelqa_dask.core.kernels import Array
from labelqa_dask.storage.location import Entry, Location, MissingObject, RangeReader
from labelqa_dask.storage.record import Version
from pipelines.imports import images
from pipelines.imports.images import Unfit
from pipelines.work import digest_of

READERS = 8
IGNORE_INDEX = 255
_HEADER_BYTES = 1 << 12


@dataclass(frozen=True)
class Pair:
    """The files of one image, whose name is their common path without ending; None where there is none."""

    name: str
    mask: Entry | None
    prediction: Entry | None

    @property
    def is_zipped(self) -> bool:
        return self.prediction is not None and self.prediction.path.lower().endswith(".npz")

    @property
    def nbytes(self) -> int:
        return sum(entry.size for entry in (self.mask, self.prediction) if entry)

    def key(self) -> list[list[Any]]:
        """What tells whether it has changed."""
        return [[entry.path, entry.size, entry.version] for entry in (self.mask, self.prediction) if entry]


@dataclass(frozen=True)
class MaskFolders:
    """What is to be imported, and how; pixels with the ignore index are never scored. It is 255 where none is given."""

    masks: Location
    predictions: Location
    out: Location
    given_ignore_index: int | None = None
    skip_bad: bool = False
    overwrite: bool = False

    @property
    def ignore_index(self) -> int:
        return IGNORE_INDEX if self.given_ignore_index is None else self.given_ignore_index


def place_of(folder: Location, entry: Entry) -> str:
    """Where a file is, for people."""
    return str(folder / entry.path)


def place_of_prediction(folders: MaskFolders, pair: Pair) -> str:
    """Where the prediction of an image is, for people."""
    return place_of(folders.predictions, pair.prediction) if pair.prediction else pair.name


@dataclass(frozen=True)
class Survey:
    """What is known of some images before they are converted; (n,) arrays.

    Attributes
    ----------
    height, width, classes : int
    dtype : str, of the prediction.
    ignored : bool, whether some pixel is labelled with the ignore index.
    problem : str, why the image does not fit; empty if it does.
    suspect : str, path of the file that the problem is in.
    """

    height: NDArray[np.int64]
    width: NDArray[np.int64]
    classes: NDArray[np.int64]
    dtype: NDArray[np.str_]
    ignored: NDArray[np.bool_]
    problem: NDArray[np.str_]
    suspect: NDArray[np.str_]

    @classmethod
    def of(cls, rows: Sequence[tuple[Any, ...]]) -> Self:
        types = (np.int64, np.int64, np.int64, np.str_, np.bool_, np.str_, np.str_)
        return cls(*(np.array(column, kind) for column, kind in zip(zip(*rows, strict=True), types, strict=True)))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))


@dataclass(frozen=True)
class SurveyJob:
    """Some images to look at."""

    start: int
    pairs: tuple[Pair, ...]
    folders: MaskFolders
    record: Version

    @property
    def name(self) -> str:
        return f"survey-{self.start:09d}"

    @property
    def digest(self) -> str:
        folders = self.folders
        return digest_of(
            folders.masks.url,
            folders.predictions.url,
            folders.ignore_index,
            [pair.key() for pair in self.pairs],
        )

    @property
    def units(self) -> int:
        return len(self.pairs)

    @property
    def nbytes(self) -> int:
        return sum(pair.mask.size for pair in self.pairs if pair.mask)


def survey(job: SurveyJob) -> Survey:
    """Read the masks, and the headers of the predictions."""
    with ThreadPoolExecutor(READERS) as pool:
        return Survey.of(list(pool.map(lambda pair: _survey_one(job.folders, pair), job.pairs)))


def _survey_one(folders: MaskFolders, pair: Pair) -> tuple[Any, ...]:
    suspect = place_of(folders.masks, pair.mask) if pair.mask else pair.name
    try:
        labels = read_mask(folders, pair)
        if pair.prediction is None:
            raise Unfit(f"has no prediction: {folders.predictions}/{pair.name}.npy (or .npz) is not there")
        suspect = place_of(folders.predictions, pair.prediction)
        shape, dtype = _read_header(folders.predictions, pair.prediction, zipped=pair.is_zipped)
        height, width = labels.shape
        images.check_prediction(shape, dtype, (height, width))
        suspect = place_of(folders.masks, pair.mask) if pair.mask else suspect
        ignored = labels == folders.ignore_index
        check_classes(labels, ignored, shape[0], folders.ignore_index)
    except Unfit as unfit:
        return 0, 0, 0, "", False, str(unfit), suspect
    return height, width, shape[0], dtype.newbyteorder("=").name, bool(ignored.any()), "", ""


def read_mask(folders: MaskFolders, pair: Pair) -> NDArray[np.integer[Any]]:
    """Class ids (h, w) of an image."""
    labels = images.read_mask(read_file(folders.masks, pair.mask))
    if 0 in labels.shape:
        raise Unfit("has no pixels")
    return labels


def read_file(folder: Location, entry: Entry | None) -> bytes:
    """Content of a file; one that is gone does not fit."""
    if entry is None:
        raise Unfit("is not there")
    try:
        return folder.read(entry.path)
    except StorageError as error:
        raise _unreadable(error) from error


def _read_header(folder: Location, entry: Entry, *, zipped: bool) -> tuple[tuple[int, ...], np.dtype[Any]]:
    reader: IO[bytes] = RangeReader(folder, entry.path, entry.size)  # type: ignore[assignment]
    try:
        head = reader if zipped else io.BytesIO(reader.read(_HEADER_BYTES))
        return images.prediction_header(head, entry.size, zipped=zipped)
    except StorageError as error:
        raise _unreadable(error) from error


def _unreadable(error: StorageError) -> Exception:
    """A single file that is gone or closed to us is one that does not fit; any other failure is the store's."""
    if isinstance(error, MissingObject) or isinstance(error.__cause__, PermissionError):
        return Unfit(f"cannot be read: {error.what}")
    return error


def check_classes(labels: Array, ignored: NDArray[np.bool_], classes: int, ignore_index: int) -> None:
    """Refuse class ids that the prediction has no class for."""
    bad = (labels >= classes) & ~ignored
    if bad.any():
        y, x = (int(i) for i in np.argwhere(bad)[0])
        raise Unfit(
            f"has class id {labels[y, x]} (first at y {y}, x {x}; {int(bad.sum()):,} such pixels), but its prediction "
            f"has {classes} classes, 0..{classes - 1}; {ignore_index} is ignored (--ignore-index)"
        )
