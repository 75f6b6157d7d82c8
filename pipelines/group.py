"""Stage 2, group: annotations in any order become a copy under the run, grouped by example, one object per region.

Two rounds of jobs that are each done once: every piece of the input is cut by region (`scatter`), and then every region
collects its rows from all of them (`gather`). The state of a job, on record, holds digests of what it has written: what
is there is not done again, and what is damaged is. No worker holds more than a piece or a region. Rows that cannot be
scored are counted, with the first places of each kind; they are refused, or left out by these rules:

- an annotation of an example that is not there, or of a class that is not there, is left out
- of several labels by one annotator of one example the first in the order of the files is kept
- an example without annotations has no consensus and no score
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial, reduce

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from dask.utils import format_bytes
from distributed import Client
from numpy.typing import NDArray

from labelqa_dask.core.errors import InvalidConfig, InvalidInput
from labelqa_dask.core.kernels import Array
from labelqa_dask.core.ragged import Annotations, group_order
from labelqa_dask.storage.annotations import (
    IDS,
    AnnotationFiles,
    AnnotationsSource,
    GroupedCopy,
    Piece,
    ids_bytes,
    part_bytes,
    read_ids,
)
from labelqa_dask.storage.location import Location
from labelqa_dask.storage.record import Json, Version, content_digest
from labelqa_dask.storage.sources import Source, as_ids
from pipelines.identifiers import Keys, index_of, keys_of, look_up
from pipelines.layout import Region
from pipelines.plan import ANNOTATOR_BYTES, USABLE_SHARE, Plan
from pipelines.regions import Listener, in_flight
from pipelines.work import digest_of, on_record, work_through

_ROW = np.dtype([("example", "<i8"), ("annotator", "<u8"), ("label", "<i4")])
_PLACES = 5
UNKNOWN_EXAMPLE = "annotations of examples that are not there"
UNKNOWN_CLASS = "annotations of classes that are not there"
REPEATED = "annotations that repeat an annotator's label of an example"
CONTRADICTED = "annotations that contradict an annotator's label of an example"
UNLABELLED = "examples without annotations"
KINDS = (UNKNOWN_EXAMPLE, UNKNOWN_CLASS, REPEATED, CONTRADICTED, UNLABELLED)


@dataclass(frozen=True)
class Bad:
    """How many rows of each kind cannot be scored (5,), and the first places (5, 5), empty where there are fewer."""

    counts: NDArray[np.int64]
    places: NDArray[np.str_]

    @staticmethod
    def of(masks: Mapping[str, NDArray[np.bool_]], describe: Callable[[int], str]) -> Bad:
        """State of the rows that are marked, by kind."""
        none = np.zeros(0, np.bool_)
        rows = [np.flatnonzero(masks.get(kind, none)).tolist() for kind in KINDS]
        places = [[*map(describe, found[:_PLACES]), *[""] * _PLACES][:_PLACES] for found in rows]
        return Bad(np.array([len(found) for found in rows]), np.array(places))

    def merge(self, other: Bad) -> Bad:
        pairs = zip(self.places.tolist(), other.places.tolist(), strict=True)
        places = [sorted([*left, *right], key=lambda place: place == "")[:_PLACES] for left, right in pairs]
        return Bad(self.counts + other.counts, np.array(places))

    def by_kind(self) -> dict[str, tuple[int, list[str]]]:
        """Number and first places of each kind that occurs."""
        found = zip(KINDS, self.counts.tolist(), self.places.tolist(), strict=True)
        return {kind: (count, [place for place in places if place]) for kind, count, places in found if count}


@dataclass(frozen=True)
class Scattered(Bad):
    """What a piece of the input was cut into, and its bad rows.

    Attributes
    ----------
    bounds : (regions + 1,) where the rows of each region begin and end
    rows, annotators : digests of the objects that hold the rows and the identifiers of their annotators
    problem : why the piece cannot be read; empty where it can
    """

    bounds: NDArray[np.int64]
    rows: str
    annotators: str
    problem: str


@dataclass(frozen=True)
class Gathered(Bad):
    """What a region has collected: digest of its object, and its bad rows."""

    part: str


@dataclass(frozen=True)
class Grouped(Bad):
    """That all is there: the number of annotators, the digest of what they are called, and all bad rows."""

    annotators: int
    ids: str


@dataclass(frozen=True)
class _Store:
    """Where the copy and what leads to it are kept."""

    record: Version
    manifest: str

    @property
    def copy(self) -> GroupedCopy:
        return GroupedCopy(self.record.run / "annotations", self.manifest)

    @property
    def scattered(self) -> Location:
        return self.record.run / "scattered"

    @property
    def grouped(self) -> Grouped | None:
        return self.record.read_state("grouped", Grouped, self.manifest)


@dataclass(frozen=True)
class _Job:
    """What both rounds' jobs are made of; either does one unit of work."""

    store: _Store

    units = 1

    @property
    def digest(self) -> str:
        return self.store.manifest

    @property
    def record(self) -> Version:
        return self.store.record


@dataclass(frozen=True)
class _ScatterJob(_Job):
    files: AnnotationFiles
    piece: Piece
    starts: NDArray[np.int64]
    classes: int
    ids: Source | None

    @property
    def name(self) -> str:
        return f"scatter/{self.piece.name}"

    @property
    def digest(self) -> str:
        return digest_of(self.store.manifest, self.piece.file, self.piece.start, self.piece.stop)

    @property
    def nbytes(self) -> int:
        return (self.piece.stop - self.piece.start) * (1 if self.files.kind == "csv" else _ROW.itemsize)

    @property
    def examples(self) -> int:
        return int(self.starts[-1])


@dataclass(frozen=True)
class _GatherJob(_Job):
    """`ranges` (pieces, 2) are the region's rows in each piece."""

    region: Region
    pieces: Sequence[Piece] = ()
    ranges: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 2), np.int64))

    @property
    def name(self) -> str:
        return f"gather/{self.region.name}"

    @property
    def nbytes(self) -> int:
        return int(np.diff(self.ranges).sum()) * _ROW.itemsize


def group(plan: Plan, version: Version, manifest: str, client: Client, listener: Listener) -> Plan:
    """Make the grouped copy of a plan's annotations, as far as it is not there yet.

    Returns the plan that reads from it.

    Raises
    ------
    InvalidInput
        Where rows cannot be scored, unless they are to be left out.
    """
    name, source = next((n, s) for n, s in plan.sources.items() if isinstance(s, AnnotationsSource))
    store = _Store(version, manifest)
    if not _is_whole(store, plan, client):
        grouped = _group(plan, source, store, client, listener)
        bad = grouped.by_kind()
        if bad and plan.config.input[name].bad_rows != "drop":
            raise _refusal(bad, source.place)
        version.write_state("grouped", grouped, manifest)
        store.scattered.delete()
        (version.run / "stats/scatter").delete()
    return replace(plan, sources={**plan.sources, name: replace(source, copy=store.copy)})


def facts(version: Version, manifest: str) -> Json | None:
    """What grouping found: the number of annotators, and of rows that were left out; None where nothing was grouped."""
    grouped = _Store(version, manifest).grouped
    if grouped is None:
        return None
    bad = grouped.by_kind()
    return {
        "annotators": grouped.annotators,
        "bad": {kind: count for kind, (count, _) in bad.items()},
        "places": {kind: places for kind, (_, places) in bad.items()},
    }


def clear(version: Version) -> None:
    """Remove the copy and its record once nothing needs them any more."""
    for folder in ("annotations", "stats/gather"):
        (version.run / folder).delete()
    version.run.delete_object("stats/grouped.npz")


def _is_whole(store: _Store, plan: Plan, client: Client) -> bool:
    """Whether the copy was finished in an earlier session, and all of it still is as it was written."""
    grouped = store.grouped
    if grouped is None or not _holds(store.copy.location, IDS, grouped.ids):
        return False
    found = on_record([_GatherJob(store, region) for region in plan.layout.regions], Gathered)
    parts = [(job, state) for job, state in found if state is not None]
    checks = in_flight(client, _part_is_there, parts, plan.worker_bytes)
    return len(parts) == len(found) and all(intact for _, intact in checks)


def _group(plan: Plan, source: AnnotationsSource, store: _Store, client: Client, listener: Listener) -> Grouped:
    through = partial(work_through, client=client, worker_bytes=plan.worker_bytes, listener=listener)
    regions, pieces = list(plan.layout.regions), source.files.pieces
    starts = np.array([*(region.start for region in regions), regions[-1].stop], np.int64)
    scatter_jobs = [
        _ScatterJob(store, source.files.part(piece), piece, starts, plan.layout.sizes["class"], plan.ids)
        for piece in pieces
    ]
    scattered: dict[str, Scattered] = {}
    problems: set[str] = set()
    for job, state in through("scatter", "pieces", scatter_jobs, _scatter, Scattered, is_there=_rows_are_there):
        scattered[job.name] = state
        problems |= {state.problem} - {""}
        if len(problems) == _PLACES:
            break
    if problems:
        listed = "".join(f"\n  {problem}" for problem in sorted(problems))
        raise InvalidInput(f"annotations cannot be read. Nothing was published; mend the input.{listed}")
    cut = [scattered[job.name] for job in scatter_jobs]
    ids = _all_ids(store.scattered, pieces, source.place)
    _check_memory(plan, len(ids))
    content = ids_bytes(ids)
    store.copy.location.write(IDS, content)
    bounds = np.array([state.bounds for state in cut])
    gather_jobs = [_GatherJob(store, region, pieces, bounds[:, i : i + 2]) for i, region in enumerate(regions)]
    found = through("gather", "regions", gather_jobs, _gather, Gathered, is_there=_part_is_there)
    gathered = {job.name: state for job, state in found}
    every: list[Bad] = [*cut, *(gathered[job.name] for job in gather_jobs)]
    bad = reduce(Bad.merge, every)
    return Grouped(bad.counts, bad.places, len(ids), content_digest(content))


def _all_ids(scattered: Location, pieces: Sequence[Piece], place: str) -> pa.Array:
    """Distinct identifiers of annotators, ascending; beside them those of one piece are held at a time."""
    found: pa.Array | None = None
    for content in scattered.read_many(_names_of(piece) for piece in pieces):
        of_piece = read_ids(content)
        found = of_piece if found is None else pc.unique(pa.concat_arrays([found, of_piece]))
    assert found is not None, "there is no input without a piece"
    ids = found.take(pc.sort_indices(found))
    keys = keys_of(as_ids(ids.to_numpy(zero_copy_only=False)))
    order = np.argsort(keys)
    same = order[:-1][keys[order[1:]] == keys[order[:-1]]]
    if len(same):
        raise InvalidInput(f"{len(same):,} annotators cannot be told from others, such as {ids[same[0]]}", place)
    return ids


def _check_memory(plan: Plan, annotators: int) -> None:
    """Refuse more annotators than the workers have memory for."""
    needed = plan.worker_bytes + ANNOTATOR_BYTES * annotators
    if needed > USABLE_SHARE * plan.resources.memory_limit:
        raise InvalidConfig(
            f"does not fit: with {annotators:,} annotators a worker needs {format_bytes(needed)}, but has "
            f"{format_bytes(plan.resources.memory_limit)}, of which {USABLE_SHARE:.0%} can be planned with",
            "memory",
            f"Set a memory_limit of {int(needed / USABLE_SHARE / (1 << 20)) + 1} MiB; what is finished is kept.",
        )


def _rows_of(piece: Piece) -> str:
    return f"{piece.name}.bin"


def _names_of(piece: Piece) -> str:
    return f"{piece.name}.parquet"


def _holds(location: Location, path: str, digest: str) -> bool:
    """Whether there is an object, and it is what was written."""
    content = location.read_if_exists(path)
    return content is not None and content_digest(content) == digest


# -- Scatter: a piece of the input, cut by region ------------------------------------------------------------------


def _rows_are_there(done: tuple[_ScatterJob, Scattered]) -> bool:
    job, state = done
    objects = ((_rows_of(job.piece), state.rows), (_names_of(job.piece), state.annotators))
    return all(_holds(job.store.scattered, path, digest) for path, digest in objects)


def _scatter(job: _ScatterJob) -> Scattered:
    try:
        return _cut(job)
    except InvalidInput as error:  # a result, so that it is not tried again
        none = Bad.of({}, str)
        return Scattered(none.counts, none.places, np.zeros(len(job.starts), np.int64), "", "", str(error))


def _cut(job: _ScatterJob) -> Scattered:
    named = job.ids is not None and as_ids(np.empty(0, job.ids.dtype)).dtype == object
    example, annotator, label = job.files.read(job.piece, names=named)
    row = _numbers_of(job, example, named)
    unknown_example = (row < 0) | (row >= job.examples)
    unknown_class = ~unknown_example & ((label < 0) | (label >= job.classes))

    def describe(i: int) -> str:
        return f"{job.files.place_of(job.piece, i)}: {example[i]!s}, {annotator[i]!s}, {label[i]}"

    bad = Bad.of({UNKNOWN_EXAMPLE: unknown_example, UNKNOWN_CLASS: unknown_class}, describe)
    kept = ~(unknown_example | unknown_class)
    codes, found = pd.factorize(annotator[kept])
    ids = as_ids(found)
    records = np.empty(len(codes), _ROW)
    records["example"], records["annotator"], records["label"] = row[kept], keys_of(ids)[codes], label[kept]
    region = np.searchsorted(job.starts, row[kept], side="right") - 1
    bounds, order = group_order(region, np.arange(len(region)), len(job.starts) - 1)
    rows, names = records[order].tobytes(), ids_bytes(ids)
    job.store.scattered.write(_rows_of(job.piece), rows)
    job.store.scattered.write(_names_of(job.piece), names)
    return Scattered(bad.counts, bad.places, bounds, content_digest(rows), content_digest(names), "")


def _numbers_of(job: _ScatterJob, example: Array, named: bool) -> NDArray[np.int64]:
    """The row of each example; -1 where there is none."""
    if job.ids is None:
        if example.dtype.kind not in "iu":
            raise InvalidInput(
                f"examples must be row numbers of pred_probs, got {example.dtype}",
                job.files.place,
                "Give their identifiers as the input 'ids', one per row of pred_probs.",
            )
        return example.astype(np.int64)
    found = as_ids(example)
    if (found.dtype == object) != named:
        raise InvalidInput(
            f"examples are {found.dtype}, but ids are {job.ids.dtype}",
            job.files.place,
            "Store both as whole numbers, or both as text.",
        )
    return look_up(keys_of(found), *index_of(job.ids, job.examples, job.store.manifest))


# -- Gather: a region, from all pieces -----------------------------------------------------------------------------


def _part_is_there(done: tuple[_GatherJob, Gathered]) -> bool:
    job, state = done
    return _holds(job.store.copy.location, job.store.copy.part(job.region.start), state.part)


def _gather(job: _GatherJob) -> Gathered:
    copy, region = job.store.copy, job.region
    rows = [
        _read_rows(job.store, piece, start, stop)
        for piece, (start, stop) in zip(job.pieces, job.ranges.tolist(), strict=True)
        if stop > start
    ]
    records = np.concatenate([np.empty(0, _ROW), *rows])
    annotator = look_up(np.ascontiguousarray(records["annotator"]), *_annotators(copy))
    n = region.stop - region.start
    grouped, order = Annotations.group(records["example"] - region.start, annotator, records["label"], n, copy.ids)
    example = grouped.example
    again = np.zeros(len(order), bool)
    again[1:] = (np.diff(example) == 0) & (np.diff(grouped.annotator) == 0)
    first = np.maximum.accumulate(np.where(again, 0, np.arange(len(order))))
    contradicts = again & (grouped.label != grouped.label[first])
    unlabelled = np.diff(grouped.starts) == 0

    def describe(i: int) -> str:
        return f"row {region.start + example[i]:,}: {copy.ids[grouped.annotator[i]]!s}, {grouped.label[i]}"

    bad = Bad.of({REPEATED: again & ~contradicts, CONTRADICTED: contradicts}, describe)
    bad = bad.merge(Bad.of({UNLABELLED: unlabelled}, lambda i: f"row {region.start + i:,}"))
    if again.any():
        kept = ~again
        starts = np.concatenate([[0], np.bincount(example[kept], minlength=n).cumsum()])
        grouped = Annotations(starts, grouped.annotator[kept], grouped.label[kept], copy.ids)
    part = part_bytes(grouped)
    copy.location.write(copy.part(region.start), part)
    return Gathered(bad.counts, bad.places, content_digest(part))


def _read_rows(store: _Store, piece: Piece, start: int, stop: int) -> Array:
    content = store.scattered.read_range(_rows_of(piece), start * _ROW.itemsize, stop * _ROW.itemsize)
    return np.frombuffer(content, _ROW)


@lru_cache(maxsize=2)
def _annotators(copy: GroupedCopy) -> tuple[Keys, NDArray[np.int64]]:
    """Keys of all annotators, ascending, and their numbers."""
    keys = keys_of(copy.ids)
    order = np.argsort(keys)
    return keys[order], order


def _refusal(bad: Mapping[str, tuple[int, list[str]]], place: str) -> InvalidInput:
    listed = "".join(f"\n  {count:,} {kind}, such as {'; '.join(places)}" for kind, (count, places) in bad.items())
    return InvalidInput(
        f"some annotations cannot be scored. Nothing was published; mend the input, or set bad_rows: drop to leave "
        f"them out, and run again with --fresh.{listed}",
        place,
    )
