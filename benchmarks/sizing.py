"""What docs/sizing.md reckons with: how much of each method's data a core audits in a second, and what it moves."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from dask.utils import format_bytes
from rich.table import Table

from benchmarks.crowd import cpu_seconds
from benchmarks.memory import WRITERS, Writer
from flows.cluster import open_cluster, resources_of
from labelqa_dask.storage.annotations import AnnotationsSource
from pipelines.audit import run_audit
from pipelines.config import parse_config
from pipelines.plan import Plan, make_plan

# Of the size that a million images are reckoned in: 2048 × 1024.
PIXELS_OF_AN_IMAGE = 2048 * 1024
WORKERS = 2


@dataclass(frozen=True)
class Rate:
    """What an audit came to.

    Attributes
    ----------
    unit, units : what is counted, and how many there were
    wall, cpu : seconds of time, and of the workers' processors
    stored, written : bytes of the inputs as they are stored, and of all that was written
    walks : how often the inputs were read
    """

    unit: str
    units: float
    wall: float
    cpu: float
    stored: int
    written: int
    walks: int


def measure(write: Writer, nbytes: int) -> Rate:
    """Audit so many bytes of data of one method twice, and measure the second time."""
    folder = Path(tempfile.mkdtemp(prefix="labelqa-bench-"))
    try:
        settings = write(folder, nbytes, 1)
        output = {**settings.get("output", {}), "uri": str(folder / "audit")}
        cluster = {"workers": WORKERS, "memory_limit": "2GiB"}
        config = parse_config({**settings, "output": output, "cluster": cluster})
        plan = make_plan(config, resources_of(config))
        with open_cluster(config) as client:
            run_audit(plan, client, lambda progress: None)  # kernels are compiled and loaded
            before, started = sum(client.run(cpu_seconds).values()), time.perf_counter()
            version = run_audit(plan, client, lambda progress: None, fresh=True).run.version
            wall = time.perf_counter() - started
            cpu = sum(client.run(cpu_seconds).values()) - before
        unit, units = _units(plan)
        inputs, _ = plan.look_up()
        # Columns of the same files are the same objects.
        stored = sum({found["digest"]: found["bytes"] for found in inputs.values()}.values())
        written = sum(entry.size for entry in version.location.entries())
        walks = len(json.loads(version.run.read("timings.json"))["regions_read"])
        return Rate(unit, units, wall, cpu, stored, written, walks)
    finally:
        shutil.rmtree(folder)


def _units(plan: Plan) -> tuple[str, float]:
    """What is counted of the data, and how many there are."""
    sizes = plan.layout.sizes
    annotations = [source.files.rows for source in plan.sources.values() if isinstance(source, AnnotationsSource)]
    if annotations:
        return "annotations", annotations[0]
    if "y" in sizes:
        return "images", sizes["example"] * sizes["y"] * sizes["x"] / PIXELS_OF_AN_IMAGE
    return "rows", sizes["example"]


def table(megabytes: float = 256, *names: str) -> Table:
    """Of each method, or of those named: units per second and core, and the bytes and cores that they take."""
    columns = ("audit of", "units", "seconds", "units/s/core", "core seconds/million", "walks", "stored/unit")
    result = Table(*columns, "written/unit", title=f"an image is {PIXELS_OF_AN_IMAGE:,} pixels of 19 classes")
    for name in names or WRITERS:
        rate = measure(WRITERS[name], int(megabytes * 1e6))
        result.add_row(
            name,
            f"{rate.units:,.0f} {rate.unit}",
            f"{rate.wall:.1f}",
            f"{rate.units / rate.cpu:,.2f}",
            f"{1e6 * rate.cpu / rate.units:,.1f}",
            f"{rate.walks}",
            format_bytes(round(rate.stored / rate.units)),
            format_bytes(round(rate.written / rate.units)),
        )
    return result
