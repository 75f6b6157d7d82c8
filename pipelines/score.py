"""Stage 3, score: each region is read, scored, written, and then receipted. The receipt is the commit.

Regions whose scores follow from the same as in the version before are not read: their scores are copied in the store.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import version as installed_version
from typing import Any

import numpy as np
import pyarrow as pa
from distributed import Client
from numpy.typing import NDArray

from labelqa_dask.core.blocks import finished
from labelqa_dask.core.class_scores import ClassPairs, ClassScores
from labelqa_dask.core.errors import InvalidInput
from labelqa_dask.core.kernels import Array
from labelqa_dask.core.order import KWorst
from labelqa_dask.core.summary import Summary
from labelqa_dask.core.task import State, merge_states
from labelqa_dask.storage.record import Receipt, Version, content_digest
from labelqa_dask.storage.sinks import Written, checksum, parquet_bytes
from labelqa_dask.storage.sources import as_ids
from pipelines.bad_data import BadRegions
from pipelines.estimate import estimate
from pipelines.layout import by_rows
from pipelines.lineage import Former
from pipelines.plan import Plan
from pipelines.receipts import receipted
from pipelines.regions import Listener, Meter, Outcome, RegionJob, bad_region, make_job, regions_in_flight
from pipelines.statistics import statistics, statistics_digest

_Details = Mapping[str, Mapping[str, Array]]
SCORED = "scored"


def score(plan: Plan, version: Version, manifest: str, bad: BadRegions, client: Client, listener: Listener) -> int:
    """Score every region that has no valid receipt yet, and tell how many were read; bad ones are without scores.

    Where a bad region is found that the statistics count, they are made again, and all scores with them.
    """
    params = plan.params.model_dump(mode="json")
    attributes = {"task": plan.task.name, "params": params, "labelqa_dask": installed_version("labelqa-dask")}
    plan.sink(version.location).create(plan.outputs, attributes | ({"coordinates": "id"} if plan.ids else {}))
    known, read = -1, 0
    while len(bad) > known:
        if known >= 0 and plan.task.passes(plan.params):
            estimate(plan, version, manifest, bad, client, listener)
        known = len(bad)
        read += _score_missing(plan, version, manifest, bad, client, listener)
    return read


def _score_missing(
    plan: Plan, version: Version, manifest: str, bad: BadRegions, client: Client, listener: Listener
) -> int:
    basis = score_basis(plan, manifest, bad)
    done = receipted(plan, version, basis, client)
    meter = Meter("score", len(plan.layout.regions), listener, done=int(done.sum()))
    read = 0
    for (job, _), work in regions_in_flight(client, _work_on, _jobs(plan, version, manifest, bad, done), plan, bad):
        read += work == SCORED
        if work:
            meter.advance(1, job.region.stop - job.region.start, job.nbytes if work == SCORED else 0)
    return read


def _jobs(
    plan: Plan, version: Version, manifest: str, bad: BadRegions, done: NDArray[np.bool_]
) -> Iterator[tuple[RegionJob, bool]]:
    """The regions that are to be written, and whether without scores."""
    basis = score_basis(plan, manifest, bad)
    asked = plan.task.name, plan.params, plan.counted, version, bad.basis, None
    stats, digest = statistics(*asked), statistics_digest(*asked)
    by_row = any(step.by_row and stats[step.name] is not None for step in plan.task.passes(plan.params))
    left_out = {region.region for region in bad}
    for region, is_done in zip(plan.layout.regions, done, strict=True):
        if not is_done:
            key, former = plan.descent.score_key(region, digest, by_row), plan.descent.former(region)
            yield make_job(plan, version, manifest, basis, region, key, former), region.name in left_out


def score_basis(plan: Plan, manifest: str, bad: BadRegions) -> str:
    """What the scores of a run rest on: without statistics, a bad region makes no difference to the others."""
    return bad.basis if plan.task.passes(plan.params) else manifest


def _work_on(item: tuple[RegionJob, bool]) -> Outcome:
    job, left_out = item
    if left_out:
        leave_out_region(job)
        return Outcome("left out")
    if job.former and take_over_region(job, job.former):
        return Outcome("taken over")
    stats = job.statistics()
    try:
        score_region(job)
    except InvalidInput as error:
        bad = bad_region(job, error, lambda block: job.task.score(block, job.params, stats))
        return Outcome(None, (bad,))
    return Outcome(SCORED)


def take_over_region(job: RegionJob, former: Former) -> bool:
    """Copy the scores of a region from the version before, if they follow from the same and are all there."""
    receipt = former.version.receipt(former.region.name)
    if receipt is None or receipt.key != job.key or not receipt.scored:
        return False
    region, was = job.region, (former.region.name, former.region.start)
    try:
        files = job.sink.take_over(
            former.version.location, was, region.name, region.start, region.stop, job.outputs, receipt.files
        )
    except FileNotFoundError:
        return False
    job.version.write_receipt(receipt.moved(region.name, region.start, job.basis, files))
    return True


def score_region(job: RegionJob) -> None:
    """Score one region: its blocks in turn, then what is kept of all its rows, then the receipt."""
    stats = job.statistics()
    columns: dict[str, list[Array]] = {}
    blocks: dict[str, str] = {}
    details: dict[str, dict[str, list[Array]]] = {}
    summary: Summary | None = None
    ids = as_ids(job.ids.read((slice(job.region.start, job.region.stop),))) if job.ids else None
    for rows in job.row_blocks():
        part, per_row, written, tables = _score_rows(job, rows, stats, ids)
        blocks = _joined(blocks, written)
        for name, table in tables.items():
            for column, values in table.items():
                details.setdefault(name, {}).setdefault(column, []).append(values)
        for name, values in per_row.items():
            columns.setdefault(name, []).append(values)
        summary = part if summary is None else summary.merge(part)
    assert summary is not None
    identified = {"id": [ids]} if ids is not None else {}
    stored = job.sink.write_rows(job.region.name, job.region.start, identified | columns)
    files = dict(stored.files)
    for name, parts in details.items():
        files |= _write_details(job, name, {column: np.concatenate(each) for column, each in parts.items()}, ids)
    _write_receipt(job, summary, blocks, replace(stored, files=files))


def leave_out_region(job: RegionJob) -> None:
    """Write a region whose data cannot be scored: its scores are missing, its identifiers are kept."""
    start, stop = job.region.start, job.region.stop
    ids = None
    if job.ids:
        with suppress(InvalidInput):  # they may be what is bad
            ids = as_ids(job.ids.read((slice(start, stop),)))
    written = job.sink.leave_out(job.region.name, start, stop, job.outputs, ids)
    none = KWorst(job.worst, np.empty(0), np.empty(0, np.int64))
    summary = Summary.of(np.full(stop - start, np.nan), None, None, none)
    _write_receipt(job, summary, {}, written, scored=False)


def _write_receipt(
    job: RegionJob, summary: Summary, blocks: Mapping[str, str], written: Written, *, scored: bool = True
) -> None:
    start, stop = job.region.start, job.region.stop
    cuts = (*(cut.start for cut in job.row_blocks()), stop)
    of_blocks = {name: content_digest(digests.encode()) for name, digests in blocks.items()}
    receipt = Receipt(
        job.region.name,
        start,
        stop,
        job.basis,
        job.key,
        job.version.name,
        scored,
        cuts,
        written.rows,
        of_blocks,
        summary,
        written.files,
    )
    job.version.write_receipt(receipt)


def _joined(left: Mapping[str, str], right: Mapping[str, str]) -> dict[str, str]:
    return {name: left.get(name, "") + digests for name, digests in right.items()}


def _write_details(job: RegionJob, name: str, columns: dict[str, Array], ids: Array | None) -> dict[str, str]:
    """Write a region's part of a table with rows of its own; returns its digest by its path."""
    if ids is not None:
        columns = {"row": columns["row"], "id": ids[columns["row"] - job.region.start], **columns}
    path, content = f"{name}/part-{job.region.name}.parquet", parquet_bytes(pa.table(columns))
    job.version.location.write(path, content)
    return {path: content_digest(content)}


def _score_rows(
    job: RegionJob, rows: slice, stats: Any, ids: Array | None
) -> tuple[Summary, dict[str, Array], dict[str, str], _Details]:
    """Score a range of rows, tile by tile.

    Returns the summary, the scores per example, digests of what has been written already, and tables of their own.
    """
    tiles = list(job.layout.tiles())
    total = _score_tile(job, rows, tiles[0], stats, only_tile=len(tiles) == 1)
    for tile in tiles[1:]:
        total = total.merge(_score_tile(job, rows, tile, stats, only_tile=False))
    ranked = finished(total.per_example)
    scores = ranked[job.task.ranked_by]
    worst = KWorst.candidates(scores, job.worst) if total.worst is None else total.worst
    described = total.described.result() if isinstance(total.described, State) else total.described
    columns = {"id": ids[rows.start - job.region.start + worst]} if ids is not None else {}
    columns |= {name: values[worst] if total.worst is None else values for name, values in described.items()}
    k_worst = KWorst.of(scores, worst, rows.start, job.worst, columns)
    return Summary.of(scores, total.classes, total.pairs, k_worst), ranked, total.written, total.details


@dataclass(frozen=True)
class _Tile:
    """What is kept of a block once it is scored.

    Described are the worst examples, or, where the scores of other tiles have a say in which these are, all of them.
    """

    per_example: dict[str, Any]
    classes: ClassScores | None
    pairs: ClassPairs | None
    written: dict[str, str]
    worst: NDArray[np.intp] | None
    described: Any
    details: _Details

    def merge(self, other: _Tile) -> _Tile:
        merged = {name: state.merge(other.per_example[name]) for name, state in self.per_example.items()}
        classes, pairs = merge_states(self.classes, other.classes), merge_states(self.pairs, other.pairs)
        written, described = _joined(self.written, other.written), self.described.merge(other.described)
        return _Tile(merged, classes, pairs, written, None, described, {})


def _score_tile(job: RegionJob, rows: slice, tile: Mapping[str, slice], stats: Any, *, only_tile: bool) -> _Tile:
    """Score one block; what has a value per pixel is written at once. The block is freed before the next is read."""
    task = job.task
    block, where = job.read(rows, tile)
    scores = task.score(block, job.params, stats)
    per_example = {}
    written = {}
    for spec in task.written(job.params):
        values = scores[spec.name]
        if isinstance(values, State) or by_rows(spec.dims):
            per_example[spec.name] = values
        else:
            job.sink.write_block(spec.name, tuple(where[dim] for dim in spec.dims), values)
            written[spec.name] = checksum(values)
    ranked = finished(per_example)[task.ranked_by]
    worst = KWorst.candidates(ranked, job.worst) if only_tile else None
    described = task.describe(block, scores, np.arange(len(ranked)) if worst is None else worst)
    classes, pairs = task.class_scores(block, scores), task.class_pairs(scores)
    return _Tile(per_example, classes, pairs, written, worst, described, task.details(block, scores))
