"""Stage 4, select: merge the receipts into the summary of the run and the list of the worst examples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from labelqa_dask.core.errors import RunFailed
from labelqa_dask.core.summary import Summary
from labelqa_dask.core.task import ExampleImages
from labelqa_dask.storage.record import Version
from pipelines.layout import Region
from pipelines.plan import Plan
from pipelines.regions import RegionJob, make_job

PREVIEWS = 12
PREVIEW_PIXELS = 256


@dataclass(frozen=True)
class Selection:
    """What a run has found."""

    summary: Summary
    previews: tuple[tuple[int, ExampleImages], ...]


def select(plan: Plan, version: Version, manifest: str, client: Client) -> Selection:
    """Merge all receipts in the order of their regions, and fetch images of the worst examples."""
    receipts = version.receipts(manifest)
    missing = [region.name for region in plan.layout.regions if region.name not in receipts]
    if missing:
        raise RunFailed(
            f"{len(missing)} regions have no valid receipt, the first is {missing[0]}",
            str(version.location),
            "Run the same command again to score them.",
        )
    merged: Summary | None = None
    for region in plan.layout.regions:
        part = receipts[region.name].summary
        merged = part if merged is None else merged.merge(part)
    assert merged is not None
    return Selection(merged, _previews(plan, version, manifest, client, merged))


def _previews(
    plan: Plan, version: Version, manifest: str, client: Client, summary: Summary
) -> tuple[tuple[int, ExampleImages], ...]:
    if len(plan.layout.sizes) < 4 or any(plan.layout.block[d] < plan.layout.sizes[d] for d in ("y", "x")):
        return ()
    rows = [int(row) for row in summary.worst.rows[:PREVIEWS]]
    jobs = [make_job(plan, version, manifest, Region(f"row-{row}", row, row + 1)) for row in rows]
    found = client.gather(client.map(_preview, jobs, pure=False, retries=2))
    return tuple((row, images) for row, images in zip(rows, found, strict=True) if images is not None)


def _preview(job: RegionJob) -> ExampleImages | None:
    block, _ = job.read(slice(job.region.start, job.region.stop), next(job.layout.tiles()))
    images = job.task.preview(block)
    return images and _shrink(images)


def _shrink(images: ExampleImages) -> ExampleImages:
    """Small enough for a page: class maps by nearest neighbour, scores by the lowest, so that small bad areas stay."""
    step = max(1, -(-max(images.given.shape) // PREVIEW_PIXELS))
    return ExampleImages(
        images.given[::step, ::step], images.predicted[::step, ::step], _lowest(images.pixel_scores, step)
    )


def _lowest(scores: NDArray[np.floating], step: int) -> NDArray[np.floating]:
    h, w = scores.shape
    padded = np.pad(scores, ((0, -h % step), (0, -w % step)), constant_values=np.inf)
    cells = padded.reshape(padded.shape[0] // step, step, padded.shape[1] // step, step)
    return np.fmin.reduce(np.fmin.reduce(cells, axis=3), axis=1)
