"""Stage 4, select: merge the receipts into the summary of the run and the list of the worst examples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from distributed import Client

from labelqa_dask.core.errors import RunFailed
from labelqa_dask.core.summary import Summary
from labelqa_dask.core.task import ExampleImages
from labelqa_dask.storage.record import BadRegion, Version
from pipelines.bad_data import BadRegions
from pipelines.layout import Region
from pipelines.plan import Plan
from pipelines.receipts import merge_receipts
from pipelines.regions import RegionJob, in_flight, make_job
from pipelines.score import score_basis

PREVIEWS = 12
PREVIEW_PIXELS = 256


@dataclass(frozen=True)
class Selection:
    """What a run has found; `taken_over` are the regions whose scores were made in an earlier version."""

    summary: Summary
    taken_over: int
    bad: tuple[BadRegion, ...]
    previews: tuple[tuple[int, ExampleImages], ...]


def select(plan: Plan, version: Version, manifest: str, bad: BadRegions, client: Client) -> Selection:
    """Merge all receipts in the order of their regions, and fetch images of the worst examples."""
    basis = score_basis(plan, manifest, bad)
    merged = merge_receipts(plan, version, basis, client)
    if merged.missing or merged.summary is None:
        raise RunFailed(
            f"{merged.missing:,} regions have no valid receipt, the first is {merged.first_missing}",
            str(version.location),
            "Run the same command again to score them.",
        )
    previews = _previews(plan, version, manifest, basis, client, merged.summary)
    return Selection(merged.summary, merged.taken_over, tuple(bad), previews)


def _previews(
    plan: Plan, version: Version, manifest: str, basis: str, client: Client, summary: Summary
) -> tuple[tuple[int, ExampleImages], ...]:
    if not {"y", "x"} <= plan.layout.sizes.keys():
        return ()
    rows = [int(row) for row in summary.worst.rows[:PREVIEWS]]
    jobs = [make_job(plan, version, manifest, basis, Region(f"row-{row}", row, row + 1)) for row in rows]
    found = {job.region.start: images for job, images in in_flight(client, _preview, jobs, plan.worker_bytes)}
    return tuple((row, images) for row in rows if (images := found[row]) is not None)


def _preview(job: RegionJob) -> ExampleImages | None:
    """One example, small enough for a page, put together from its tiles as they are read.

    Class maps by nearest neighbour; scores by the lowest, so that small bad areas stay.
    """
    h, w = job.layout.sizes["y"], job.layout.sizes["x"]
    step = max(1, -(-max(h, w) // PREVIEW_PIXELS))
    shape = (-(-h // step), -(-w // step))
    small = ExampleImages(np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.full(shape, np.nan))
    for tile in job.layout.tiles():
        block, _ = job.read(slice(job.region.start, job.region.stop), tile)
        images = job.task.preview(block, job.params)
        if images is None:
            return None
        _paste(small, images, tile["y"], tile["x"], step)
    return small


def _paste(small: ExampleImages, images: ExampleImages, y: slice, x: slice, step: int) -> None:
    """Put a tile of full size where it belongs in the small image."""
    top, left = -y.start % step, -x.start % step
    picked = (slice(-(-y.start // step), -(-y.stop // step)), slice(-(-x.start // step), -(-x.stop // step)))
    small.given[picked] = images.given[top::step, left::step]
    small.predicted[picked] = images.predicted[top::step, left::step]
    touched = (slice(y.start // step, -(-y.stop // step)), slice(x.start // step, -(-x.stop // step)))
    margins = ((y.start % step, -y.stop % step), (x.start % step, -x.stop % step))
    padded = np.pad(images.pixel_scores.astype(np.float64), margins, constant_values=np.nan)
    cells = padded.reshape(padded.shape[0] // step, step, padded.shape[1] // step, step)
    lowest = np.fmin.reduce(np.fmin.reduce(cells, axis=3), axis=1)
    small.pixel_scores[touched] = np.fmin(small.pixel_scores[touched], lowest)
