"""Millions of images: what planning and driving them costs apart from the work on the data.

The arrays are Zarr arrays of which only the metadata exist, read through a source whose values cost nothing, and
scored by a kernel that returns at once. The plan, the client, the scheduler, the sink, the receipts and publishing are
those of any audit, so what is measured is what they add to each region.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import dask
import numpy as np
import zarr
from dask.utils import format_bytes
from distributed import Client, SubprocessCluster
from numpy.typing import NDArray
from rich.table import Table

from benchmarks.crowd import cpu_seconds
from benchmarks.end_to_end import peak_bytes
from flows.cluster import DASK_SETTINGS
from flows.engines import ENVIRONMENT
from labelqa_dask import segmentation
from labelqa_dask.core.class_scores import ClassScores
from labelqa_dask.core.kernels import Array
from labelqa_dask.core.task import Block, ExampleImages, Stats
from labelqa_dask.segmentation.task import Segmentation, SegmentationParams
from labelqa_dask.storage.location import Location
from labelqa_dask.storage.record import Version
from labelqa_dask.storage.sources import Fingerprint, Index
from labelqa_dask.storage.zarr_source import ZarrSource
from pipelines.audit import run_audit
from pipelines.config import AuditConfig, parse_config
from pipelines.lineage import Lineage, descended
from pipelines.plan import Plan, Resources, make_plan
from pipelines.regions import Progress, make_job

CLASSES, HEIGHT, WIDTH = 19, 1024, 2048
IMAGES_PER_REGION = 4
"""As a million such images are laid out."""
CORE_SECONDS = 0.43
"""What softmin takes a core for an image, as `python -m benchmarks sizing` measures it."""


@dataclass(frozen=True)
class Store:
    """What a store is modelled by: seconds until an answer begins, and bytes per second of each reader."""

    latency: float = 0.0
    bandwidth: float = float("inf")

    def wait(self, nbytes: int) -> None:
        """Take as long as such a store would."""
        seconds = self.latency + nbytes / self.bandwidth
        if seconds:
            time.sleep(seconds)


@dataclass(frozen=True)
class FreeSource:
    """An array whose values, all 0, take neither memory nor time but that of a modelled store; a `Source`."""

    of: ZarrSource
    store: Store = Store()

    @property
    def place(self) -> str:
        return self.of.place

    @property
    def shape(self) -> tuple[int, ...]:
        return self.of.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.of.dtype

    @property
    def chunks(self) -> tuple[int | None, ...]:
        return self.of.chunks

    @property
    def resolution(self) -> float:
        return self.of.resolution

    def rows(self, start: int, stop: int) -> Self:
        return replace(self, of=self.of.rows(start, stop))

    def row_bounds(self) -> NDArray[np.int64]:
        return self.of.row_bounds()

    def read(self, index: Index) -> Array:
        lengths = (range(size)[s] for s, size in zip(index, self.shape, strict=True))
        values = np.broadcast_to(self.dtype.type(0), [len(length) for length in lengths])
        self.store.wait(values.size * self.dtype.itemsize)
        return values

    def seams(self, rows: int) -> NDArray[np.int64]:
        return self.of.seams(rows)

    def fingerprint(self, bounds: Any = ()) -> Fingerprint:
        return self.of.fingerprint(bounds)

    def nbytes(self, block: Sequence[int]) -> int:
        return self.of.nbytes(block)

    def decode_bytes(self, block: Sequence[int]) -> int:
        return self.of.decode_bytes(block)

    def rechunked(self, chunks: Sequence[int | None]) -> Self:
        return replace(self, of=self.of.rechunked(chunks))


class FreeSegmentation(Segmentation):
    """Segmentation whose scores follow from the numbers of the images, and which writes one of each image."""

    outputs = Segmentation.outputs[:1]

    @property
    def name(self) -> str:
        return "segmentation"

    def score(self, block: Block, params: SegmentationParams, stats: Stats) -> dict[str, Any]:
        rows = block.origin["example"] + np.arange(len(block["labels"]))
        return {"image_scores": rows * 0.6180339887498949 % 1}

    def class_scores(self, block: Block, scores: Mapping[str, Any]) -> ClassScores | None:
        return ClassScores(np.ones(CLASSES, np.int64), np.ones(CLASSES))

    def describe(self, block: Block, scores: Mapping[str, Any], examples: NDArray[np.intp]) -> dict[str, Array]:
        return {}

    def preview(self, block: Block, params: SegmentationParams) -> ExampleImages | None:
        return None


def install() -> None:
    """Make this process score for nothing."""
    segmentation.TASK = FreeSegmentation()


def write_metadata(folder: Path, images: int) -> None:
    """Arrays of so many images of which no chunk is written."""
    group = zarr.open_group(str(folder / "images.zarr"), mode="w")
    for name, dtype, inner in (("labels", "u1", (HEIGHT, WIDTH)), ("pred_probs", "f4", (CLASSES, HEIGHT, WIDTH))):
        group.create_array(name, shape=(images, *inner), dtype=dtype, chunks=(1, *inner))


def config_for(folder: Path, region_rows: int | None) -> AuditConfig:
    """A softmin audit of the images."""
    return parse_config(
        {
            "task": "segmentation",
            "input": {name: {"uri": f"{folder}/images.zarr", "array": name} for name in ("labels", "pred_probs")},
            "output": {"uri": f"{folder}/audit", "region_rows": region_rows},
        }
    )


def free(plan: Plan, store: Store) -> Plan:
    """The plan, its inputs read for nothing but the time that a modelled store takes."""
    sources = {
        name: FreeSource(source, store) for name, source in plan.sources.items() if isinstance(source, ZarrSource)
    }
    outputs = tuple(output for output in plan.outputs if output.name == "image_scores")
    return replace(plan, task=FreeSegmentation(), sources=sources, outputs=outputs)


@dataclass(frozen=True)
class Planned:
    """Seconds and the most memory that came to be held, in bytes, while so many regions were planned."""

    regions: int
    seconds: Mapping[str, float]
    grown: int


def plan_only(images: int, region_rows: int | None) -> Planned:
    """Plan, look the inputs up, write the record and read it again, and find every region in the version before."""
    folder = Path(tempfile.mkdtemp(prefix="labelqa-bench-"))
    seconds: dict[str, float] = {}

    def timed(name: str, function: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = function()
        seconds[name] = time.perf_counter() - started
        return result

    try:
        write_metadata(folder, 1000)
        warm = make_plan(config_for(folder, 1), Resources(1, 1, 1 << 40))
        warm.look_up()
        write_metadata(folder, images)
        before = peak_bytes()
        plan = timed("plan", lambda: make_plan(config_for(folder, region_rows), Resources(1, 1, 1 << 40)))
        inputs, contents = timed("look up", plan.look_up)
        manifest = plan.manifest(inputs)
        out = Location.parse(folder / "audit")
        one = descended({**manifest, "software": {}}, None, freeze=False)
        first, second = Version(out, "v000001"), Version(out, "v000002")
        timed("record", lambda: first.write_contents(contents, one["digest"]))
        first.write_manifest(one)
        two = descended({**manifest, "software": {}}, first, freeze=False)
        lineage = timed("compare", lambda: Lineage.of(second, two, contents))
        plan = replace(plan, lineage=lineage)
        number = len(plan.layout.regions) - 1
        assert lineage.formers[number] == number
        grown = peak_bytes() - before

        def jobs() -> None:
            for i in range(number - 999, number + 1):
                region = plan.layout.regions[i]
                make_job(plan, second, two["digest"], two["digest"], region, lineage.score_key(region, "", False))

        timed("1,000 jobs", jobs)
    finally:
        shutil.rmtree(folder)
    return Planned(len(plan.layout.regions), seconds, grown)


@dataclass(frozen=True)
class Driven:
    """What an audit of free images took.

    Attributes
    ----------
    regions, threads : how many
    seconds : of wall time, by stage
    cpu : processor seconds of the client, the scheduler and the workers, by stage
    in_flight : the most futures that the client held
    grown : memory that the client came to hold at most, beyond what it held before, in bytes
    """

    regions: int
    threads: int
    seconds: Mapping[str, float]
    cpu: Mapping[str, tuple[float, float, float]]
    in_flight: int
    grown: int


def drive(images: int, workers: int, threads: int, store: Store) -> Driven:
    """Audit free images on a cluster whose scheduler and workers are processes of their own."""
    install()
    os.environ.update(ENVIRONMENT)
    folder = Path(tempfile.mkdtemp(prefix="labelqa-bench-"))
    futures = 0
    seconds: dict[str, float] = {}
    cpu: dict[str, tuple[float, float, float]] = {}
    try:
        with (
            dask.config.set(DASK_SETTINGS),
            SubprocessCluster(
                n_workers=workers,
                worker_kwargs={"nthreads": threads, "dashboard": False},
                scheduler_kwargs={"dashboard": False},
            ) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            client.wait_for_workers(workers)
            client.run(install)

            def processor() -> tuple[float, float, float]:
                return cpu_seconds(), client.run_on_scheduler(cpu_seconds), sum(client.run(cpu_seconds).values())

            def listen(progress: Progress) -> None:
                nonlocal futures
                futures = max(futures, len(client.futures))

            def timed(name: str, function: Callable[..., Any], *args: Any) -> Any:
                started, before = time.perf_counter(), processor()
                result = function(*args)
                seconds[name] = time.perf_counter() - started
                after = processor()
                cpu[name] = tuple(b - a for a, b in zip(before, after, strict=True))  # type: ignore[assignment]
                return result

            for warm in (True, False):
                write_metadata(folder, 2 * IMAGES_PER_REGION * workers * threads if warm else images)
                config = config_for(folder, IMAGES_PER_REGION)
                plan = free(make_plan(config, Resources(workers, threads, 1 << 40)), store)
                before = peak_bytes()
                run_audit(plan, client, listen, fresh=True, call=timed)
            grown = peak_bytes() - before
    finally:
        shutil.rmtree(folder)
    return Driven(len(plan.layout.regions), workers * threads, seconds, cpu, futures, grown)


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function in a process of its own, whose memory is that of nothing else."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def planned() -> Table:
    """What a client takes to plan up to ten million regions, and to find each of them in the version before."""
    result = Table(
        *("planned", "regions", "plan", "look up", "write down", "compare", "client's peak", "bytes/region", "µs/job"),
        title=f"planned, not run: images of {WIDTH} × {HEIGHT} × {CLASSES}",
    )
    for images, region_rows in ((1_000_000, None), (1_000_000, 1), (10_000_000, 1), (100_000_000, None)):
        found: Planned = alone(plan_only, images, region_rows)
        cut = "by default" if region_rows is None else f"of {region_rows}"
        steps = (f"{found.seconds[name]:.2f} s" for name in ("plan", "look up", "record", "compare"))
        result.add_row(
            f"{images:,} images, regions {cut}",
            f"{found.regions:,}",
            *steps,
            format_bytes(found.grown),
            f"{found.grown / found.regions:.0f}",
            f"{found.seconds['1,000 jobs'] * 1e3:.0f}",
        )
    return result


def driven(*regions: int) -> Table:
    """Overhead of each region, by processor time, which others on the machine disturb less, and what follows."""
    result = Table(
        *("regions", "threads", "regions/s", "client ms", "scheduler ms", "workers ms", "merging ms", "most futures"),
        *("client grew", "regions/s of a scheduler", "cores"),
        title="driven: for each region, in processor time; merging is of receipts, on the workers",
    )
    for count in regions or (2_000, 8_000):
        for threads in (4, 64):
            found: Driven = alone(drive, count * IMAGES_PER_REGION, 2, threads, Store())
            client, scheduler, workers = (seconds / found.regions for seconds in found.cpu["score"])
            rate = 1 / max(client, scheduler)
            result.add_row(
                f"{found.regions:,}",
                f"{found.threads}",
                f"{found.regions / found.seconds['score']:.0f}",
                *(f"{1e3 * each:.2f}" for each in (client, scheduler, workers)),
                f"{1e3 * found.cpu['select'][2] / found.regions:.2f}",
                f"{found.in_flight}",
                format_bytes(found.grown),
                f"{rate:.0f}",
                f"{rate * IMAGES_PER_REGION * CORE_SECONDS:,.0f}",
            )
    result.caption = (
        f"The scheduler, or the client, is the limit from so many cores on, with {IMAGES_PER_REGION} images in a "
        f"region and {CORE_SECONDS} s of a core for each; here all processes share this machine's cores."
    )
    return result


def modelled() -> Table:
    """Images from a store with latency and a bandwidth for each reader: threads against what they could do."""
    store = Store(latency=0.05, bandwidth=1e9)
    nbytes = HEIGHT * WIDTH * (1 + 4 * CLASSES)
    ideal = IMAGES_PER_REGION * (2 * store.latency + nbytes / store.bandwidth)
    result = Table(
        *("threads", "regions", "regions/s", "of the ideal", "most futures"),
        title=f"driven from a store of {store.latency * 1e3:.0f} ms and {store.bandwidth / 1e6:.0f} MB/s for each",
    )
    for threads in (8, 32, 128):
        count = 10 * threads
        found: Driven = alone(drive, count * IMAGES_PER_REGION, 2, threads // 2, store)
        rate = found.regions / found.seconds["score"]
        share = rate * ideal / threads
        result.add_row(f"{threads}", f"{found.regions:,}", f"{rate:.1f}", f"{share:.0%}", f"{found.in_flight}")
    result.caption = f"ideal: {ideal:.1f} s for each region and thread"
    return result
