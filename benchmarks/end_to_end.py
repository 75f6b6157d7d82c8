"""A whole audit of stored pixels against merely reading them with the same cluster, and the memory that it takes."""

from __future__ import annotations

import os
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import zarr
from dask.utils import format_bytes
from distributed import Client
from rich.table import Table

from benchmarks.measure import Aside, in_turn
from flows.cluster import open_cluster, resources_of
from labelqa_dask.storage.location import Location
from pipelines.audit import run_audit
from pipelines.config import AuditConfig, parse_config
from pipelines.plan import Plan, make_plan
from pipelines.regions import Listener

CLASSES, HEIGHT, WIDTH = 19, 512, 512
METHODS = {"softmin": 1, "num_pixel_issues": 4}
"""How often each method reads the pixels: to score them, and before that for three statistics."""


def write_pixels(path: Path, nbytes: int) -> None:
    """Predictions of smooth areas with noise, and the labels of those areas; one image per chunk."""
    images = nbytes // (CLASSES * HEIGHT * WIDTH * 4)
    rng = np.random.default_rng(0)
    scenes = [_scene(rng) for _ in range(8)]
    group = zarr.open_group(str(path), mode="w")
    labels = group.create_array("labels", shape=(images, HEIGHT, WIDTH), dtype="u1", chunks=(1, HEIGHT, WIDTH))
    shape = (images, CLASSES, HEIGHT, WIDTH)
    pred_probs = group.create_array("pred_probs", shape=shape, dtype="f4", chunks=(1, CLASSES, HEIGHT, WIDTH))
    for i in range(images):
        areas, probs = scenes[i % len(scenes)]
        shift = tuple(rng.integers(0, (HEIGHT, WIDTH)).tolist())
        labels[i] = np.roll(areas, shift, axis=(0, 1))
        pred_probs[i] = np.roll(probs, shift, axis=(1, 2))


def _scene(rng: np.random.Generator) -> tuple[Any, Any]:
    areas = rng.integers(0, CLASSES, (HEIGHT // 64, WIDTH // 64), dtype=np.uint8).repeat(64, 0).repeat(64, 1)
    logits = rng.normal(0, 1, (CLASSES, HEIGHT, WIDTH)).astype(np.float32)
    logits += 6 * (areas == np.arange(CLASSES)[:, None, None])
    probs = np.exp(logits)
    return areas, probs / probs.sum(axis=0)


def config_for(data: Path, out: Path, method: str) -> AuditConfig:
    """An audit of the stored pixels."""
    return parse_config(
        {
            "task": "segmentation",
            "input": {name: {"uri": str(data), "array": name} for name in ("labels", "pred_probs")},
            "params": {"method": method},
            "output": {"uri": str(out)},
            "cluster": {"workers": os.cpu_count(), "memory_limit": "2GiB"},
        }
    )


def read_only(client: Client, config: AuditConfig) -> None:
    """Read every chunk of the same arrays with plain Dask on the same workers, and drop it."""
    reads = []
    for source in config.input.values():
        array = da.from_zarr(f"{source.uri}/{source.array}")
        dropped = list(range(1, array.ndim))
        reads.append(array.map_blocks(_drop, drop_axis=dropped, chunks=(array.chunks[0],), dtype=bool).any())
    client.gather(client.compute(reads))


def _drop(block: Any) -> Any:
    return np.zeros(len(block), bool)


def peak_bytes() -> int:
    """Largest resident size of this process so far."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def audit(plan: Plan, client: Client, out: Location, aside: Aside, listener: Listener = lambda progress: None) -> None:
    """One audit into an output that has been emptied."""
    aside.do(out.delete)
    run_audit(plan, client, listener)


def table(gigabytes: float = 4.0) -> Table:
    """Ratio of the audit's time to the reading time, and peak memory beside the plan's."""
    result = Table("end to end", "audit", "reading", "ratio", "target", "peak memory", "planned")
    folder = Path(tempfile.mkdtemp(prefix="labelqa-bench-"))
    try:
        data, out = folder / "pixels.zarr", folder / "audit"
        write_pixels(data, int(gigabytes * 1e9))
        for method, passes in METHODS.items():
            config = config_for(data, out, method)
            plan = make_plan(config, resources_of(config))
            with open_cluster(config) as client:
                aside = Aside()
                ours = partial(audit, plan, client, Location.parse(out), aside)
                pairs = in_turn(ours, partial(read_only, client, config), runs=3, aside=aside)
                peak = max(client.run(peak_bytes).values())
            seconds, reading = pairs.median
            result.add_row(
                f"{method} over {format_bytes(plan.input_bytes)}",
                f"{seconds:.1f} s",
                f"{passes} × {reading:.1f} s",
                f"{1 / pairs.ratio / passes:.2f}",
                "≤ 1.25",
                format_bytes(peak),
                format_bytes(plan.worker_bytes),
            )
    finally:
        shutil.rmtree(folder)
    return result
