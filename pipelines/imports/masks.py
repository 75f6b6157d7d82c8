"""Masks and predictions, one file of each an image, into one Zarr group that an audit reads as it is.

Two walks over the files: the survey reads every mask and the header of every prediction, so that all that do not fit
are known before anything is written; the conversion then writes the chunks. The group's metadata come last.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from distributed import Client

from labelqa_dask.core.errors import InvalidConfig, InvalidInput, StorageError
from labelqa_dask.core.kernels import Array
from labelqa_dask.storage.lease import holding
from labelqa_dask.storage.location import Entry, Location
from labelqa_dask.storage.record import Json, Version, manifest_digest
from labelqa_dask.storage.sinks import OutputArray
from labelqa_dask.storage.staged import StagedZarr, published_attributes, withdraw
from pipelines.imports import images
from pipelines.imports.convert import ID_CHUNK, IDS, LABELS, MOST_IMAGES, Converted, ConvertJob, Geometry, convert
from pipelines.imports.images import PRED_PROBS
from pipelines.imports.survey import (
    IGNORE_INDEX,
    READERS,
    MaskFolders,
    Pair,
    Survey,
    SurveyJob,
    place_of,
    place_of_prediction,
    survey,
)
from pipelines.imports.work import (
    ATTRIBUTE,
    Demand,
    Misfit,
    list_misfits,
    record_of,
    refuse,
)
from pipelines.plan import Resources
from pipelines.regions import Listener
from pipelines.work import digest_of, forget, work_through


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
    misfits = [Misfit(place_of(folders.predictions, predictions[name]), "has no mask") for name in alone]
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
        for start in range(0, len(ids), ID_CHUNK):
            staged.write(IDS, (slice(start, start + ID_CHUNK),), ids[start : start + ID_CHUNK])
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
        Misfit(place_of(folder, entry), f"has the name of another file, but for the ending: {entries[0].path}")
        for entries in (sorted(entries, key=lambda entry: entry.path) for entries in named.values())
        for entry in entries[1:]
    ]
    return {stem: min(entries, key=lambda entry: entry.path) for stem, entries in named.items()}, doubled


def _look_up(folders: MaskFolders, record: Version) -> dict[str, Any] | None:
    """What an import has published there; refuses an output that no import has written."""
    attributes = published_attributes(folders.out)
    if attributes is not None and ATTRIBUTE in attributes:
        found: dict[str, Any] = attributes[ATTRIBUTE]
        return found
    if folders.out.exists() and (attributes is not None or record.manifest() is None):
        raise InvalidConfig("exists, and is not what an import wrote", str(folders.out), "Choose another output.")
    return None


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
    if folders.given_ignore_index is None and classes > IGNORE_INDEX:
        raise InvalidConfig(
            f"is not given, and {IGNORE_INDEX} is one of the {classes} classes",
            "--ignore-index",
            f"Say which class id is ignored, such as {np.iinfo(np.uint16).max}.",
        )
    geometry = Geometry.of(chosen, classes, dtype, folders.ignore_index)
    demand = Demand(resources, geometry.job_bytes)
    demand.check(f"images of {classes} × {geometry.height:,} × {geometry.width:,} {dtype.name}")
    _prepare(out, record, geometry)
    pairs, more = _write_chunks(folders, [listing.pairs[i] for i in fits], geometry, record, client, demand, listener)
    misfits += more
    kept = {pair.name for pair in pairs}
    rows = [i for i in fits if listing.pairs[i].name in kept]
    pixels = int((surveyed.height[rows] * surveyed.width[rows]).sum())
    padded = 1 - pixels / (len(pairs) * geometry.height * geometry.width)
    imported = Imported(
        out,
        len(pairs),
        classes,
        geometry.height,
        geometry.width,
        dtype.name,
        padded > 0 or bool(surveyed.ignored[rows].any()),
        padded,
        tuple(sorted(misfits)),
    )
    return imported, geometry.arrays(len(pairs)), np.array([pair.name for pair in pairs], object)


def _write_chunks(
    folders: MaskFolders,
    pairs: list[Pair],
    geometry: Geometry,
    record: Version,
    client: Client,
    demand: Demand,
    listener: Listener,
) -> tuple[list[Pair], list[Misfit]]:
    """Convert images; returns those that were converted, by row, and the files that turned out not to fit."""
    out, longest = folders.out, len(pairs)
    misfits: list[Misfit] = []
    while True:
        staged = StagedZarr(out, geometry.arrays(len(pairs)))
        jobs = [
            ConvertJob(start, tuple(pairs[start : start + geometry.batch]), folders, record, geometry, staged)
            for start in range(0, len(pairs), geometry.batch)
        ]
        bad: dict[int, str] = {}
        for job, state in work_through(
            "convert", "images", jobs, convert, Converted, client, demand.worker_bytes, listener
        ):
            bad |= {job.start + i: str(state.problem[i]) for i in np.flatnonzero(state.problem != "").tolist()}
        if not bad:
            break
        misfits += [Misfit(place_of_prediction(folders, pairs[row]), why) for row, why in bad.items()]
        _check_misfits(folders, misfits, len(pairs) - len(bad))
        pairs = without(pairs, bad)
    for row in range(len(pairs), longest):
        for name in (LABELS, PRED_PROBS):
            (out / name / "c" / str(row)).delete()
    return pairs, misfits


def without(pairs: Sequence[Pair], bad: Iterable[int]) -> list[Pair]:
    """Leave some rows out; the last ones take their places, so that the others stay where they are."""
    left_out = set(bad)
    n = len(pairs) - len(left_out)
    spare = iter([pair for row, pair in enumerate(pairs) if row >= n and row not in left_out])
    return [next(spare) if row in left_out else pairs[row] for row in range(n)]


def _survey_all(listing: Listing, record: Version, client: Client, resources: Resources, listener: Listener) -> Survey:
    jobs = [
        SurveyJob(start, listing.pairs[start : start + MOST_IMAGES], listing.folders, record)
        for start in range(0, len(listing.pairs), MOST_IMAGES)
    ]
    largest = max(pair.mask.size for pair in listing.pairs if pair.mask)
    demand = Demand(resources, READERS * 20 * largest)
    states = work_through("survey", "images", jobs, survey, Survey, client, demand.worker_bytes, listener)
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
            misfits.append(Misfit(place_of_prediction(listing.folders, pair), reason))
        else:
            fits.append(i)
    return fits, misfits


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
