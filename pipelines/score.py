"""Stage 3, score: each region is read, scored, written, and then receipted. The receipt is the commit."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import numpy as np
from distributed import Client

from labelqa_dask.core.kernels import Array
from labelqa_dask.core.order import KWorst
from labelqa_dask.core.summary import Summary
from labelqa_dask.core.task import State
from labelqa_dask.storage.record import Receipt, Version
from labelqa_dask.storage.sinks import checksum
from labelqa_dask.storage.sources import as_ids
from pipelines.plan import Plan
from pipelines.regions import Listener, Meter, Problem, RegionJob, guarded, in_flight, make_job


def score(plan: Plan, version: Version, manifest: str, client: Client, listener: Listener) -> None:
    """Score every region that has no valid receipt yet."""
    done = version.receipts(manifest)
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
    summary: Summary | None = None
    ids = as_ids(job.ids.read((slice(job.region.start, job.region.stop),))) if job.ids else None
    for rows in job.row_blocks():
        part, per_row, written = _score_rows(job, rows, stats, ids)
        digest.update(written.encode())
        for name, values in per_row.items():
            columns.setdefault(name, []).append(values)
        summary = part if summary is None else summary.merge(part)
    assert summary is not None
    whole = {"id": ids} if ids is not None else {}
    whole |= {name: np.concatenate(values) for name, values in columns.items()}
    job.sink.write_rows(job.region.name, job.region.start, whole)
    digest.update(checksum(whole).encode())
    job.version.write_receipt(
        Receipt(job.region.name, job.region.start, job.region.stop, job.manifest, digest.hexdigest()[:32], summary)
    )


def _score_rows(job: RegionJob, rows: slice, stats: Any, ids: Array | None) -> tuple[Summary, dict[str, Array], str]:
    """Score a range of rows, tile by tile; what has a value per pixel is written at once.

    Returns the summary, the scores per example, and the digest of what was written.
    """
    task = job.task
    per_row: dict[str, Any] = {}
    written = ""
    classes = None
    tiles = list(job.layout.tiles())
    for tile in tiles:
        block, where = job.read(rows, tile)
        scores = task.score(block, job.params, stats)
        counted = task.class_scores(block, scores)
        classes = counted if classes is None or counted is None else classes.merge(counted)
        for spec in task.outputs:
            values = scores[spec.name]
            if isinstance(values, State):
                per_row[spec.name] = per_row[spec.name].merge(values) if spec.name in per_row else values
            elif spec.dims == ("example",):
                per_row[spec.name] = values
            else:
                job.sink.write_block(spec.name, tuple(where[dim] for dim in spec.dims), values)
                written += checksum({spec.name: values})
    finished = {name: value.result() if isinstance(value, State) else value for name, value in per_row.items()}
    ranked = finished[task.ranked_by]
    worst = KWorst.candidates(ranked, job.worst)
    described = task.describe(block, worst) if len(tiles) == 1 else {}
    named = {"id": ids[rows.start - job.region.start + worst]} if ids is not None else {}
    return Summary.of(ranked, rows.start, classes, job.worst, {**named, **described}), finished, written
