"""Masks and predictions, one file of each an image, into one Zarr group that an audit reads as it is.

Two walks over the files: the survey reads every mask and the header of every prediction, so that all that do not fit
are known before anything is written; the conversion then writes the chunks. The group's metadata come last.

Axes: n = images, k = classes, h, w = height and width of the largest image; smaller ones are padded below and to the
right, with the ignore index in the labels and 0 in the predictions.
"""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import IO, Any, Self

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from labelqa_dask.core.errors import InvalidConfig, InvalidInput, StorageError
from labelqa_dask.core.kernels import Array
from labelqa_dask.storage.lease import holding
from labelqa_dask.storage.location import Entry, Location, MissingObject, RangeReader
from labelqa_dask.storage.record import Json, Version, manifest_digest
from labelqa_dask.storage.sinks import OutputArray
from labelqa_dask.storage.staged import StagedZarr, published_attributes, withdraw
from pipelines.imports import images
from pipelines.imports.images import PRED_PROBS, Unfit
from pipelines.imports.work import (
    ATTRIBUTE,
    Demand,
    Misfit,
    digest_of,
    forget,
    list_misfits,
    record_of,
    refuse,
    work_through,
)
from pipelines.plan import Resources
from pipelines.regions import Listener

LABELS, IDS = "labels", "image_id"
_TILE_BYTES = 32 << 20
_BATCH_BYTES = 64 << 20
_BATCH_IMAGES = 64
_READERS = 8
_ID_CHUNK = 1 << 16
_HEADER_BYTES = 1 << 12
_IGNORE_INDEX = 255


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
        return _IGNORE_INDEX if self.given_ignore_index is None else self.given_ignore_index


@dataclass(frozen=True)
class Listing:
    """The files that were found: complete pairs and masks without a prediction by name, and what fits nothing."""

    folders: MaskFolders
    pairs: tuple[Pair, ...]
    misfits: tuple[Misfit, ...]

    @property
    def digest(self) -> str:
        """What the import would be made of, and how."""
        folders = self.folders
        settings = [folders.masks.url, folders.predictions.url, folders.ignore_index, folders.skip_bad]
        return digest_of(settings, [pair.key() for pair in self.pairs], self.misfits)


@dataclass(frozen=True)
class Imported:
    """What an import came to.

    Attributes
    ----------
    ignored : whether some pixels bear the ignore index, by padding or as they were labelled.
    padded : share of the pixels that are padding.
    """

    out: Location
    images: int
    classes: int
    height: int
    width: int
    dtype: str
    ignored: bool
    padded: float
    skipped: tuple[Misfit, ...]
    unchanged: bool = False


def list_folders(folders: MaskFolders) -> Listing:
    """Find the masks and predictions, and match them by their paths without ending.

    Raises
    ------
    InvalidInput, StorageError
        Where there are no masks or no predictions.
    """
    masks, doubled = _files(folders.masks, images.MASKS, "PNG masks")
    predictions, doubled_too = _files(folders.predictions, images.PREDICTIONS, "predictions (.npy, .npz)")
    if not masks.keys() & predictions.keys():
        raise InvalidInput(
            f"no prediction has the name of a mask: masks are named as {next(iter(masks.values())).path}, predictions "
            f"as {next(iter(predictions.values())).path}",
            str(folders.predictions),
            "Give a mask and its prediction the same path below their folders, but for the ending.",
        )
    alone = sorted(predictions.keys() - masks.keys())
    misfits = [Misfit(_place(folders.predictions, predictions[name]), "has no mask") for name in alone]
    misfits += [*doubled, *doubled_too]
    pairs = (Pair(name, masks[name], predictions.get(name)) for name in sorted(masks))
    return Listing(folders, tuple(pairs), tuple(misfits))


def import_masks(listing: Listing, client: Client, resources: Resources, listener: Listener) -> Imported:
    """Convert the files into a Zarr group, or finish a conversion that was interrupted.

    Raises
    ------
    InvalidInput
        Listing the files that do not fit, where they are not to be skipped. Nothing is published then; what was
        finished is kept.
    InvalidConfig
        Where the output is something else, or an image does not fit into a worker's memory.
    """
    folders = listing.folders
    out, record = folders.out, record_of(folders.out)
    found = _look_up(folders, record)
    if found is not None and found["digest"] == listing.digest:
        skipped = tuple(Misfit(*misfit) for misfit in found.pop("skipped"))
        found.pop("digest")
        return Imported(out, skipped=skipped, unchanged=True, **found)
    if found is not None and not folders.overwrite:
        raise InvalidConfig(
            "holds an import of other files, or with other settings", str(out), "Add --overwrite to replace it."
        )
    with holding(record.location) as lease:
        imported, arrays, ids = _convert_all(listing, record, client, resources, listener)
        lease.check()
        content = asdict(replace(imported, skipped=())) | {"digest": listing.digest, "skipped": imported.skipped}
        for name in ("out", "unchanged"):
            content.pop(name)
        staged = StagedZarr(out, arrays)
        for start in range(0, len(ids), _ID_CHUNK):
            staged.write(IDS, (slice(start, start + _ID_CHUNK),), ids[start : start + _ID_CHUNK])
        staged.publish({ATTRIBUTE: content})
        list_misfits(out, imported.skipped)
    record.location.delete()
    return imported


def _files(folder: Location, endings: Sequence[str], what: str) -> tuple[dict[str, Entry], list[Misfit]]:
    """The files of a folder with some endings by their paths without, and those that share such a path."""
    if not folder.is_folder():
        raise StorageError("is not a folder" if folder.exists() else "does not exist", str(folder), "Check the path.")
    named: defaultdict[str, list[Entry]] = defaultdict(list)
    others: Counter[str] = Counter()
    for entry in folder.entries():
        if any(part.startswith(".") for part in entry.path.split("/")):
            continue
        stem, dot, ending = entry.path.rpartition(".")
        if f"{dot}{ending.lower()}" in endings:
            named[stem].append(entry)
        else:
            others[f"{dot}{ending.lower()}" if dot and "/" not in ending else "no ending"] += 1
    if not named:
        seen = ", ".join(f"{count:,} of {ending}" for ending, count in others.most_common(3)) or "nothing"
        raise InvalidInput(f"holds no {what}; it holds {seen}", str(folder), "Check the path.")
    doubled = [
        Misfit(_place(folder, entry), f"has the name of another file, but for the ending: {entries[0].path}")
        for entries in (sorted(entries, key=lambda entry: entry.path) for entries in named.values())
        for entry in entries[1:]
    ]
    return {stem: min(entries, key=lambda entry: entry.path) for stem, entries in named.items()}, doubled


def _place(folder: Location, entry: Entry) -> str:
    return str(folder / entry.path)


def _look_up(folders: MaskFolders, record: Version) -> dict[str, Any] | None:
    """What an import has published there; refuses an output that no import has written."""
    attributes = published_attributes(folders.out)
    if attributes is not None and ATTRIBUTE in attributes:
        found: dict[str, Any] = attributes[ATTRIBUTE]
        return found
    if folders.out.exists() and (attributes is not None or record.manifest() is None):
        raise InvalidConfig("exists, and is not what an import wrote", str(folders.out), "Choose another output.")
    return None


# -- survey --------------------------------------------------------------------------------------------------------


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
    with ThreadPoolExecutor(_READERS) as pool:
        return Survey.of(list(pool.map(lambda pair: _survey_one(job.folders, pair), job.pairs)))


def _survey_one(folders: MaskFolders, pair: Pair) -> tuple[Any, ...]:
    suspect = _place(folders.masks, pair.mask) if pair.mask else pair.name
    try:
        labels = _read_mask(folders, pair)
        if pair.prediction is None:
            raise Unfit(f"has no prediction: {folders.predictions}/{pair.name}.npy (or .npz) is not there")
        suspect = _place(folders.predictions, pair.prediction)
        shape, dtype = _read_header(folders.predictions, pair.prediction, zipped=pair.is_zipped)
        height, width = labels.shape
        images.check_prediction(shape, dtype, (height, width))
        suspect = _place(folders.masks, pair.mask) if pair.mask else suspect
        ignored = labels == folders.ignore_index
        _check_classes(labels, ignored, shape[0], folders.ignore_index)
    except Unfit as unfit:
        return 0, 0, 0, "", False, str(unfit), suspect
    return height, width, shape[0], dtype.newbyteorder("=").name, bool(ignored.any()), "", ""


def _read_mask(folders: MaskFolders, pair: Pair) -> NDArray[np.integer[Any]]:
    labels = images.read_mask(_read(folders.masks, pair.mask))
    if 0 in labels.shape:
        raise Unfit("has no pixels")
    return labels


def _read(folder: Location, entry: Entry | None) -> bytes:
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


def _check_classes(labels: Array, ignored: NDArray[np.bool_], classes: int, ignore_index: int) -> None:
    bad = (labels >= classes) & ~ignored
    if bad.any():
        y, x = (int(i) for i in np.argwhere(bad)[0])
        raise Unfit(
            f"has class id {labels[y, x]} (first at y {y}, x {x}; {int(bad.sum()):,} such pixels), but its prediction "
            f"has {classes} classes, 0..{classes - 1}; {ignore_index} is ignored (--ignore-index)"
        )


# -- conversion ----------------------------------------------------------------------------------------------------


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
            max(1, min(_BATCH_IMAGES, _BATCH_BYTES // image_bytes)),
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
            OutputArray(IDS, ("example",), (n,), np.dtype(object), (min(n, _ID_CHUNK),)),
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
    content = _read(folders.predictions, pair.prediction)
    pred_probs = images.read_prediction(content, zipped=pair.is_zipped)
    images.check_probabilities(pred_probs)
    labels = _read_mask(folders, pair)
    height, width = labels.shape
    if pred_probs.shape != (geometry.classes, height, width) or height > geometry.height or width > geometry.width:
        raise Unfit("changed while it was read")
    _check_classes(labels, labels == geometry.ignore_index, geometry.classes, geometry.ignore_index)
    for y, x in geometry.tiles():
        here = slice(row, row + 1)
        job.staged.write(LABELS, (here, y, x), _padded(labels, (y, x), geometry.ignore_index, geometry.label_dtype))
        job.staged.write(
            PRED_PROBS, (here, slice(None), y, x), _padded(pred_probs, (slice(None), y, x), 0, geometry.dtype)
        )


def _padded(values: Array, index: tuple[slice, ...], fill: int, dtype: str) -> Array:
    """A part of an image with an axis for the image in front, filled up where the image ends before."""
    part = values[index]
    extent = [stop - start for (start, stop, _) in (s.indices(1 << 62) for s in index[-2:])]
    shape = (*values.shape[:-2], *extent)
    if part.shape == shape:
        return part.astype(dtype, copy=False)[None]
    whole = np.full(shape, fill, dtype)
    whole[..., : part.shape[-2], : part.shape[-1]] = part
    return whole[None]


def _convert_all(
    listing: Listing, record: Version, client: Client, resources: Resources, listener: Listener
) -> tuple[Imported, tuple[OutputArray, ...], Array]:
    """Every chunk of labels and predictions; what came of it, the arrays, and the identifiers by row."""
    folders, out = listing.folders, listing.folders.out
    surveyed = _survey_all(listing, record, client, resources, listener)
    classes, dtype = _common_form(surveyed)
    fits, misfits = _choose(listing, surveyed, classes, dtype)
    misfits = [*listing.misfits, *misfits]
    _check_misfits(folders, misfits, len(fits))
    chosen = Survey(*(getattr(surveyed, name)[fits] for name in Survey.__dataclass_fields__))
    if folders.given_ignore_index is None and classes > _IGNORE_INDEX:
        raise InvalidConfig(
            f"is not given, and {_IGNORE_INDEX} is one of the {classes} classes",
            "--ignore-index",
            f"Say which class id is ignored, such as {np.iinfo(np.uint16).max}.",
        )
    geometry = Geometry.of(chosen, classes, dtype, folders.ignore_index)
    demand = Demand(resources, geometry.job_bytes)
    demand.check(f"images of {classes} × {geometry.height:,} × {geometry.width:,} {dtype.name}")
    _prepare(out, record, geometry)
    pairs, longest = [listing.pairs[i] for i in fits], len(fits)
    while True:
        staged = StagedZarr(out, geometry.arrays(len(pairs)))
        jobs = [
            ConvertJob(start, tuple(pairs[start : start + geometry.batch]), folders, record, geometry, staged)
            for start in range(0, len(pairs), geometry.batch)
        ]
        bad: dict[int, str] = {}
        for job, state in work_through("convert", "images", jobs, convert, Converted, client, demand, listener):
            bad |= {job.start + i: str(state.problem[i]) for i in np.flatnonzero(state.problem != "").tolist()}
        if not bad:
            break
        misfits += [Misfit(_place_of_prediction(folders, pairs[row]), why) for row, why in bad.items()]
        _check_misfits(folders, misfits, len(pairs) - len(bad))
        pairs = without(pairs, bad)
    for row in range(len(pairs), longest):
        for name in (LABELS, PRED_PROBS):
            (out / name / "c" / str(row)).delete()
    kept = {pair.name for pair in pairs}
    rows = [i for i in fits if listing.pairs[i].name in kept]
    pixels = int((surveyed.height[rows] * surveyed.width[rows]).sum())
    padded = 1 - pixels / (len(pairs) * geometry.height * geometry.width)
    ignored = padded > 0 or bool(surveyed.ignored[rows].any())
    imported = Imported(
        out,
        len(pairs),
        classes,
        geometry.height,
        geometry.width,
        dtype.name,
        ignored,
        padded,
        tuple(sorted(misfits)),
    )
    return imported, geometry.arrays(len(pairs)), np.array([pair.name for pair in pairs], object)


def without(pairs: Sequence[Pair], bad: Iterable[int]) -> list[Pair]:
    """Leave some rows out; the last ones take their places, so that the others stay where they are."""
    left_out = set(bad)
    n = len(pairs) - len(left_out)
    spare = iter([pair for row, pair in enumerate(pairs) if row >= n and row not in left_out])
    return [next(spare) if row in left_out else pairs[row] for row in range(n)]


def _survey_all(listing: Listing, record: Version, client: Client, resources: Resources, listener: Listener) -> Survey:
    jobs = [
        SurveyJob(start, listing.pairs[start : start + _BATCH_IMAGES], listing.folders, record)
        for start in range(0, len(listing.pairs), _BATCH_IMAGES)
    ]
    largest = max(pair.mask.size for pair in listing.pairs if pair.mask)
    demand = Demand(resources, _READERS * 20 * largest)
    states = work_through("survey", "images", jobs, survey, Survey, client, demand, listener)
    parts = {job.start: state for job, state in states}
    return Survey.joined([parts[start] for start in sorted(parts)])


def _common_form(surveyed: Survey) -> tuple[int, np.dtype[Any]]:
    """Number of classes of most images, and the type of most predictions; of floats, the one that holds all."""
    good = surveyed.problem == ""
    if not good.any():
        return 0, np.dtype(np.float32)
    classes, counts = np.unique(surveyed.classes[good], return_counts=True)
    common = int(classes[counts.argmax()])
    names, counts = np.unique(surveyed.dtype[good & (surveyed.classes == common)], return_counts=True)
    dtype = np.dtype(str(names[counts.argmax()]))
    if dtype.kind == "f":
        dtype = np.result_type(*(str(name) for name in names if np.dtype(str(name)).kind == "f"))
    return common, dtype


def _choose(listing: Listing, surveyed: Survey, classes: int, dtype: np.dtype[Any]) -> tuple[list[int], list[Misfit]]:
    """Indices of the images that fit, and those that do not, by themselves or with the others."""
    fits, misfits = [], []
    for i, pair in enumerate(listing.pairs):
        if surveyed.problem[i]:
            misfits.append(Misfit(str(surveyed.suspect[i]), str(surveyed.problem[i])))
            continue
        stored = np.dtype(str(surveyed.dtype[i]))
        reason = ""
        if surveyed.classes[i] != classes:
            reason = f"has {surveyed.classes[i]} classes, where most have {classes}"
        elif stored != dtype and (stored.kind != "f" or dtype.kind != "f"):
            reason = f"holds {stored}, where most hold {dtype}"
        if reason:
            misfits.append(Misfit(_place_of_prediction(listing.folders, pair), reason))
        else:
            fits.append(i)
    return fits, misfits


def _place_of_prediction(folders: MaskFolders, pair: Pair) -> str:
    return _place(folders.predictions, pair.prediction) if pair.prediction else pair.name


def _check_misfits(folders: MaskFolders, misfits: Sequence[Misfit], fits: int) -> None:
    if misfits and (not folders.skip_bad or not fits):
        mend = "Mend or remove them and run again; what is finished is kept."
        raise refuse(folders.out, misfits, mend + (" Or add --skip-bad to import the others." if fits else ""))


def _prepare(out: Location, record: Version, geometry: Geometry) -> None:
    """Make room: what is there of another form, or was published before, goes."""
    planned: Json = {"geometry": asdict(geometry)}
    planned["digest"] = manifest_digest(planned)
    begun = record.manifest()
    if begun is None or begun["digest"] != planned["digest"] or published_attributes(out) is not None:
        record.write_manifest(planned)
        forget(record, "convert-")
        withdraw(out)
