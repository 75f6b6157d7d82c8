"""Stage 3, score: each region is read, scored, written, and then receipted. The receipt is the commit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import pyarrow as pa
from distributed import Client

from labelqa_dask.core.blocks import finished
from labelqa_dask.core.class_scores import ClassPairs, ClassScores
from labelqa_dask.core.kernels import Array
from labelqa_dask.core.order import KWorst
from labelqa_dask.core.summary import Summary
from labelqa_dask.core.task import State, merge_states
from labelqa_dask.storage.record import Receipt, Version
from labelqa_dask.storage.sinks import checksum, parquet_bytes
from labelqa_dask.storage.sources import as_ids
from pipelines.plan import Plan
from pipelines.regions import Listener, Meter, Problem, RegionJob, guarded, in_flight, make_job

_Details = Mapping[str, Mapping[str, Array]]


def score(plan: Plan, version: Version, manifest: str, client: Client, listener: Listener) -> None:
    """Score every region that has no valid receipt yet."""
    done = set(version.receipts(manifest))
    meter = Meter("score", len(plan.layout.regions), listener, done=len(done))
    jobs = (make_job(plan, version, manifest, region) for region in plan.layout.regions if region.name not in done)
    for job, _ in in_flight(client, _score_and_receipt, jobs, plan):
        meter.advance(1, job.region.stop - job.region.start, job.nbytes)


def _score_and_receipt(job: RegionJob) -> Problem | None:
    outcome: Problem | None = guarded(job, score_region)
    return outcome


def score_region(job: RegionJob) -> None:
    """Score one region: its blocks in turn, then what is kept of all its rows, then the receipt."""
    stats = job.statistics()
    digest = sha256()
    columns: dict[str, list[Array]] = {}
    details: dict[str, dict[str, list[Array]]] = {}
    summary: Summary | None = None
    ids = as_ids(job.ids.read((slice(job.region.start, job.region.stop),))) if job.ids else None
    for rows in job.row_blocks():
        part, per_row, written, tables = _score_rows(job, rows, stats, ids)
        digest.update(written.encode())
        for name, table in tables.items():
            for column, values in table.items():
                details.setdefault(name, {}).setdefault(column, []).append(values)
        for name, values in per_row.items():
            columns.setdefault(name, []).append(values)
        summary = part if summary is None else summary.merge(part)
    assert summary is not None
    whole = {"id": ids} if ids is not None else {}
    whole |= {name: np.concatenate(values) for name, values in columns.items()}
    job.sink.write_rows(job.region.name, job.region.start, whole)
    digest.update(checksum(whole).encode())
    for name, parts in details.items():
        digest.update(_write_details(job, name, {column: np.concatenate(each) for column, each in parts.items()}, ids))
    job.version.write_receipt(
        Receipt(job.region.name, job.region.start, job.region.stop, job.manifest, digest.hexdigest()[:32], summary)
    )


def _write_details(job: RegionJob, name: str, columns: dict[str, Array], ids: Array | None) -> bytes:
    """Write a region's part of a table with rows of its own; returns the digest of what it holds."""
    if ids is not None:
        columns = {"row": columns["row"], "id": ids[columns["row"] - job.region.start], **columns}
    job.version.location.write(f"{name}/part-{job.region.name}.parquet", parquet_bytes(pa.table(columns)))
    return checksum(columns).encode()


def _score_rows(
    job: RegionJob, rows: slice, stats: Any, ids: Array | None
) -> tuple[Summary, dict[str, Array], str, _Details]:
    """Score a range of rows, tile by tile.

    Returns the summary, the scores per example, the digest of what has been written already, and tables of their own.
    """
    tiles = list(job.layout.tiles())
    total = _score_tile(job, rows, tiles[0], stats, only_tile=len(tiles) == 1)
    for tile in tiles[1:]:
        total = total.merge(_score_tile(job, rows, tile, stats, only_tile=False))
    ranked = finished(total.per_example)
    scores = ranked[job.task.ranked_by]
    worst = KWorst.candidates(scores, job.worst)
    described = total.described.result() if isinstance(total.described, State) else total.described
    columns = {"id": ids[rows.start - job.region.start + worst]} if ids is not None else {}
    columns |= {name: values[worst] if len(tiles) > 1 else values for name, values in described.items()}
    summary = Summary.of(scores, rows.start, total.classes, total.pairs, job.worst, columns)
    return summary, ranked, total.written, total.details


@dataclass(frozen=True)
class _Tile:
    """What is kept of a block once it is scored."""

    per_example: dict[str, Any]
    classes: ClassScores | None
    pairs: ClassPairs | None
    written: str
    described: Any
    details: _Details

    def merge(self, other: _Tile) -> _Tile:
        merged = {name: state.merge(other.per_example[name]) for name, state in self.per_example.items()}
        classes, pairs = merge_states(self.classes, other.classes), merge_states(self.pairs, other.pairs)
        return _Tile(merged, classes, pairs, self.written + other.written, self.described.merge(other.described), {})


def _score_tile(job: RegionJob, rows: slice, tile: Mapping[str, slice], stats: Any, *, only_tile: bool) -> _Tile:
    """Score one block; what has a value per pixel is written at once. The block is freed before the next is read.

    Described are the worst examples, or, where the scores of other tiles have a say in which these are, all of them.
    """
    task = job.task
    block, where = job.read(rows, tile)
    scores = task.score(block, job.params, stats)
    per_example = {}
    written = ""
    for spec in task.written(job.params):
        values = scores[spec.name]
        if isinstance(values, State) or spec.dims == ("example",):
            per_example[spec.name] = values
        else:
            job.sink.write_block(spec.name, tuple(where[dim] for dim in spec.dims), values)
            written += checksum({spec.name: values})
    ranked = finished(per_example)[task.ranked_by]
    examples = KWorst.candidates(ranked, job.worst) if only_tile else np.arange(len(ranked))
    classes, pairs = task.class_scores(block, scores), task.class_pairs(scores)
    return _Tile(
        per_example, classes, pairs, written, task.describe(block, scores, examples), task.details(block, scores)
    )
