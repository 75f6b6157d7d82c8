"""Stage 2, group: annotations in any order become a copy under the run, grouped by example, one object per region.

Two rounds, each of whose pieces has a receipt: every piece of the input is cut by region (`scatter`), and then every
region collects its rows from all of them (`gather`). No worker holds more than a piece or a region. Rows that cannot be
scored are counted, with the first places of each kind; they are refused, or left out by these rules:

- an annotation of an example that is not there, or of a class that is not there, is left out
- of several labels by one annotator of one example the first in the order of the files is kept
- an example without annotations has no consensus and no score
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Self, TypeVar

import numpy as np
import pandas as pd
from distributed import Client
from numpy.typing import NDArray

from labelqa_dask.core.errors import InvalidInput
from labelqa_dask.core.kernels import Array
from labelqa_dask.core.ragged import Annotations, group_order
from labelqa_dask.storage.annotations import (
    IDS,
    AnnotationFiles,
    AnnotationsSource,
    Piece,
    read_ids,
    write_ids,
    write_part,
)
from labelqa_dask.storage.location import Location
from labelqa_dask.storage.record import Json, Version, dump_json
from labelqa_dask.storage.sources import Source, as_ids
from pipelines.layout import Region
from pipelines.plan import Plan
from pipelines.regions import Listener, Meter, in_flight

JobT = TypeVar("JobT")
_ROW = np.dtype([("example", "<i8"), ("annotator", "<i4"), ("label", "<i4")])
_PLACES = 5
UNKNOWN_EXAMPLE = "annotations of examples that are not there"
UNKNOWN_CLASS = "annotations of classes that are not there"
REPEATED = "annotations that repeat an annotator's label of an example"
CONTRADICTED = "annotations that contradict an annotator's label of an example"
UNLABELLED = "examples without annotations"


@dataclass(frozen=True)
class Bad:
    """How many rows of each kind cannot be scored, and the first places; merges."""

    counts: Mapping[str, int] = field(default_factory=dict)
    places: Mapping[str, list[str]] = field(default_factory=dict)

    def merge(self, other: Self) -> Self:
        kinds = dict.fromkeys([*self.counts, *other.counts])
        return type(self)(
            {kind: self.counts.get(kind, 0) + other.counts.get(kind, 0) for kind in kinds},
            {kind: [*self.places.get(kind, []), *other.places.get(kind, [])][:_PLACES] for kind in kinds},
        )


@dataclass(frozen=True)
class _Store:
    """Where the copy and what leads to it are kept; what is there counts only if it is of the same manifest."""

    version: Version
    manifest: str

    @property
    def copy(self) -> Location:
        return self.version.run / "annotations"

    @property
    def scattered(self) -> Location:
        return self.version.run / "scattered"

    def receipt(self, name: str) -> Json | None:
        content = self.version.run.read_if_exists(name)
        if content is None:
            return None
        try:
            receipt: Json = json.loads(content)
            return receipt if receipt["manifest"] == self.manifest else None
        except (ValueError, KeyError, TypeError):
            return None

    def receipts(self, folder: str) -> dict[str, Json]:
        """Receipts of a round, by name; listed once."""
        place = self.version.run / folder
        names = [entry.path for entry in place.entries() if entry.path.endswith(".json")]
        found = {name.removesuffix(".json"): self.receipt(f"{folder}/{name}") for name in names}
        return {name: receipt for name, receipt in found.items() if receipt is not None}

    def write(self, name: str, receipt: Json) -> None:
        self.version.run.write(name, dump_json({"manifest": self.manifest, **receipt}))


@dataclass(frozen=True)
class _ScatterJob:
    store: _Store
    files: AnnotationFiles
    piece: Piece
    starts: NDArray[np.int64]
    classes: int
    ids: Source | None

    @property
    def examples(self) -> int:
        return int(self.starts[-1])


@dataclass(frozen=True)
class _GatherJob:
    store: _Store
    region: Region
    parts: tuple[tuple[str, int, int], ...]
    place: str


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
    done = store.receipt("annotations.json")
    if done is None:
        bad = _group(plan, source, store, client, listener)
        if bad.counts and plan.config.input[name].bad_rows != "drop":
            raise _refusal(bad, source.place)
        store.write("annotations.json", {"annotators": len(read_ids(store.copy, IDS)), **_described(bad)})
        store.scattered.delete()
    return replace(plan, sources={**plan.sources, name: replace(source, copy=store.copy)})


def facts(version: Version, manifest: str) -> Json | None:
    """What grouping found: the number of annotators, and of rows that were left out; None where nothing was grouped."""
    receipt = _Store(version, manifest).receipt("annotations.json")
    return None if receipt is None else {key: value for key, value in receipt.items() if key != "manifest"}


def clear(version: Version) -> None:
    """Remove the copy once nothing needs it any more."""
    (version.run / "annotations").delete()


def _group(plan: Plan, source: AnnotationsSource, store: _Store, client: Client, listener: Listener) -> Bad:
    regions = list(plan.layout.regions)
    starts = np.array([*(region.start for region in regions), regions[-1].stop], np.int64)
    files, classes = source.files, plan.layout.sizes["class"]
    scattered = store.receipts("scattered")
    meter = Meter("scatter", len(files.pieces), listener, done=len(scattered), unit="pieces")
    scatter_jobs = (
        _ScatterJob(store, files.part(piece), piece, starts, classes, plan.ids)
        for piece in files.pieces
        if piece.name not in scattered
    )
    for job, receipt in _each(client, _guarded_scatter, scatter_jobs, plan):
        scattered[job.piece.name] = receipt
        meter.advance(1, receipt["bounds"][-1], receipt["bounds"][-1] * _ROW.itemsize)
    receipts = [scattered[piece.name] for piece in files.pieces]
    write_ids(store.copy, IDS, _all_ids(store, [piece.name for piece in files.pieces]))
    bounds = np.array([receipt["bounds"] for receipt in receipts], np.int64)
    gathered = store.receipts("gathered")
    meter = Meter("gather", len(regions), listener, done=len(gathered))
    gather_jobs = _gather_jobs(store, regions, [piece.name for piece in files.pieces], bounds, gathered, source.place)
    for gather_job, receipt in _each(client, _guarded_gather, gather_jobs, plan):
        gathered[gather_job.region.name] = receipt
        rows = receipt["annotations"]
        meter.advance(1, rows, rows * 8)
    bad = Bad()
    for receipt in [*receipts, *(gathered[region.name] for region in regions)]:
        bad = bad.merge(Bad(receipt["bad"], receipt["places"]))
    return bad


@dataclass(frozen=True)
class _Problem:
    """Why a piece cannot be read: a result, not an exception, so that it is not retried."""

    message: str


def _each(
    client: Client, function: Callable[[JobT], Json | _Problem], jobs: Iterable[JobT], plan: Plan
) -> Iterator[tuple[JobT, Json]]:
    """Receipts of jobs as they are done; after the first few that cannot be done, one error lists them."""
    problems: list[str] = []
    for job, result in in_flight(
        client, function, jobs, plan.worker_bytes, plan.resources.threads, lambda: len(problems) >= _PLACES
    ):
        if isinstance(result, _Problem):
            problems.append(result.message)
        else:
            yield job, result
    if problems:
        listed = "".join(f"\n  {problem}" for problem in sorted(set(problems)))
        raise InvalidInput(f"annotations cannot be read. Nothing was published; mend the input.{listed}")


def _gather_jobs(
    store: _Store,
    regions: list[Region],
    names: list[str],
    bounds: NDArray[np.int64],
    gathered: Mapping[str, Json],
    place: str,
) -> Iterator[_GatherJob]:
    for number, region in enumerate(regions):
        if region.name not in gathered:
            ranges = zip(names, bounds[:, number].tolist(), bounds[:, number + 1].tolist(), strict=True)
            parts = tuple((name, start, stop) for name, start, stop in ranges if stop > start)
            yield _GatherJob(store, region, parts, place)


def _all_ids(store: _Store, names: list[str]) -> Array:
    parts = [read_ids(store.scattered, f"{name}.parquet") for name in names]
    found: Array = np.unique(np.concatenate(parts))
    return found


# -- Scatter: a piece of the input, cut by region ------------------------------------------------------------------


def _guarded_scatter(job: _ScatterJob) -> Json | _Problem:
    try:
        return _scatter(job)
    except InvalidInput as error:
        return _Problem(str(error))


def _scatter(job: _ScatterJob) -> Json:
    named = job.ids is not None and as_ids(np.empty(0, job.ids.dtype)).dtype == object
    example, annotator, label = job.files.read(job.piece, names=named)
    row = _rows_of(job, example, named)
    unknown_example = (row < 0) | (row >= job.examples)
    unknown_class = ~unknown_example & ((label < 0) | (label >= job.classes))

    def describe(i: int) -> str:
        return f"{job.files.place_of(job.piece, i)}: {example[i]!s}, {annotator[i]!s}, {label[i]}"

    bad = _found({UNKNOWN_EXAMPLE: unknown_example, UNKNOWN_CLASS: unknown_class}, describe)
    kept = ~(unknown_example | unknown_class)
    codes, found = pd.factorize(annotator[kept])
    names, places = np.unique(as_ids(found), return_inverse=True)
    codes = places[codes]
    records = np.empty(len(codes), _ROW)
    records["example"], records["annotator"], records["label"] = row[kept], codes, label[kept]
    region = np.searchsorted(job.starts, row[kept], side="right") - 1
    bounds, order = group_order(region, np.arange(len(region)), len(job.starts) - 1)
    write_ids(job.store.scattered, f"{job.piece.name}.parquet", np.asarray(names))
    job.store.scattered.write(f"{job.piece.name}.bin", records[order].tobytes())
    receipt = {"bounds": bounds.tolist(), "bad": dict(bad.counts), "places": dict(bad.places)}
    job.store.write(f"scattered/{job.piece.name}.json", receipt)
    return receipt


def _found(masks: Mapping[str, NDArray[np.bool_]], describe: Any) -> Bad:
    found = {kind: np.flatnonzero(mask) for kind, mask in masks.items() if mask.any()}
    return Bad(
        {kind: len(rows) for kind, rows in found.items()},
        {kind: [describe(int(i)) for i in rows[:_PLACES]] for kind, rows in found.items()},
    )


def _rows_of(job: _ScatterJob, example: Array, named: bool) -> NDArray[np.int64]:
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
    keys, rows = _index(job.ids, job.examples, job.store.manifest)
    wanted = _keys(found)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, rows[at], -1)


_index_lock = threading.Lock()
_indexes: dict[tuple[str, str], tuple[Array, Array]] = {}


def _index(ids: Source, n: int, manifest: str) -> tuple[Array, Array]:
    """Keys of all identifiers, ascending, and their rows: 16 bytes per example, once per worker process."""
    with _index_lock:
        if (ids.place, manifest) not in _indexes:
            keys = np.concatenate(
                [_keys(as_ids(ids.read((slice(start, min(start + (1 << 20), n)),)))) for start in range(0, n, 1 << 20)]
            )
            rows = np.argsort(keys, kind="stable")
            keys = keys[rows]
            same = np.flatnonzero(keys[1:] == keys[:-1])
            if len(same):
                first, second = sorted(rows[same[0] : same[0] + 2].tolist())
                raise InvalidInput(
                    f"rows {first:,} and {second:,} have the same identifier, so annotations cannot be told apart",
                    ids.place,
                    "Give each example an identifier of its own.",
                )
            _indexes.clear()
            _indexes[(ids.place, manifest)] = keys, rows
        return _indexes[(ids.place, manifest)]


def _keys(ids: Array) -> Array:
    """Whole numbers as they are; text by a hash of 64 bits."""
    return pd.util.hash_array(ids, categorize=False) if ids.dtype == object else ids


# -- Gather: a region, from all pieces -----------------------------------------------------------------------------


def _guarded_gather(job: _GatherJob) -> Json | _Problem:
    try:
        return _gather(job)
    except InvalidInput as error:
        return _Problem(str(error))


def _gather(job: _GatherJob) -> Json:
    store, region = job.store, job.region
    ids = _global_ids(store)
    parts = [_read_rows(store, *part) for part in job.parts]
    records = np.concatenate([np.empty(0, _ROW), *parts])
    codes = [_global_codes(store, name)[part["annotator"]] for (name, _, _), part in zip(job.parts, parts, strict=True)]
    annotator = np.concatenate([np.empty(0, np.int64), *codes])
    n = region.stop - region.start
    grouped, order = Annotations.group(records["example"] - region.start, annotator, records["label"], n, ids)
    example = grouped.example
    again = np.zeros(len(order), bool)
    again[1:] = (np.diff(example) == 0) & (np.diff(grouped.annotator) == 0)
    first = np.maximum.accumulate(np.where(again, 0, np.arange(len(order))))
    contradicts = again & (grouped.label != grouped.label[first])
    unlabelled = np.diff(grouped.starts) == 0

    def describe(i: int) -> str:
        return f"row {region.start + example[i]:,}: {ids[grouped.annotator[i]]!s}, {grouped.label[i]}"

    bad = _found({REPEATED: again & ~contradicts, CONTRADICTED: contradicts}, describe)
    bad = bad.merge(_found({UNLABELLED: unlabelled}, lambda i: f"row {region.start + i:,}"))
    if again.any():
        kept = ~again
        starts = np.concatenate([[0], np.bincount(example[kept], minlength=n).cumsum()])
        grouped = Annotations(starts, grouped.annotator[kept], grouped.label[kept], ids)
    write_part(store.copy, region.start, grouped)
    receipt = {"annotations": len(grouped.label), "bad": dict(bad.counts), "places": dict(bad.places)}
    store.write(f"gathered/{region.name}.json", receipt)
    return receipt


def _read_rows(store: _Store, name: str, start: int, stop: int) -> Array:
    content = store.scattered.read_range(f"{name}.bin", start * _ROW.itemsize, stop * _ROW.itemsize)
    return np.frombuffer(content, _ROW)


@lru_cache(maxsize=2)
def _global_ids(store: _Store) -> Array:
    return read_ids(store.copy, IDS)


@lru_cache(maxsize=1024)
def _global_codes(store: _Store, name: str) -> NDArray[np.int64]:
    """The number in the whole crowd of each annotator of a piece."""
    return np.searchsorted(_global_ids(store), read_ids(store.scattered, f"{name}.parquet"))


def _refusal(bad: Bad, place: str) -> InvalidInput:
    listed = "".join(
        f"\n  {count:,} {kind}, such as {'; '.join(bad.places[kind])}" for kind, count in bad.counts.items()
    )
    return InvalidInput(
        f"some annotations cannot be scored. Nothing was published; mend the input and run again with --fresh, or set "
        f"bad_rows: drop.{listed}",
        place,
    )


def _described(bad: Bad) -> Json:
    return {"bad": dict(bad.counts), "places": dict(bad.places)}
