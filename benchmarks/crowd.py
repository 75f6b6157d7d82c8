"""An audit of a large crowd from unsorted Parquet: where the time goes, and the memory that it takes."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from dask.utils import format_bytes
from rich.table import Table

from benchmarks.end_to_end import peak_bytes
from benchmarks.measure import read_bandwidth, seconds
from flows.cluster import open_cluster, resources_of
from labelqa_dask.core.blocks import available_cpus
from pipelines.audit import run_audit
from pipelines.config import AuditConfig, parse_config
from pipelines.plan import make_plan
from pipelines.regions import Progress

CLASSES = 10
MOST_BYTES = 8 * 10**9


def write_crowd(folder: Path, annotations: int, examples: int, annotators: int) -> None:
    """Labels of annotators of differing skill in no order, in files of a million rows, and probabilities by row."""
    rng = np.random.default_rng(0)
    group = zarr.open_group(str(folder / "probs.zarr"), mode="w")
    step = 1 << 16
    pred_probs = group.create_array("pred_probs", shape=(examples, CLASSES), dtype="f4", chunks=(step, CLASSES))
    truth = np.empty(examples, np.int64)
    for start in range(0, examples, step):
        rows = rng.dirichlet(np.full(CLASSES, 0.3), min(step, examples - start)).astype(np.float32)
        pred_probs[start : start + len(rows)] = rows / rows.sum(axis=1, keepdims=True)
        truth[start : start + len(rows)] = (rows.cumsum(axis=1) > rng.random((len(rows), 1))).argmax(axis=1)
    per_example = annotations // examples
    example = rng.permutation(np.repeat(np.arange(examples), per_example))
    # Steps of a number prime to that of annotators: nobody labels an example twice, and some label more than others.
    order = np.argsort(example, kind="stable")
    turn = np.empty(len(example), np.int64)
    turn[order] = np.tile(np.arange(per_example), examples)
    first = (annotators * rng.random(examples) ** 2).astype(np.int64)
    annotator = (first[example] + turn * 7919) % annotators
    skill = rng.uniform(0.5, 0.95, annotators)
    right = rng.random(len(example)) < skill[annotator]
    label = np.where(right, truth[example], rng.integers(0, CLASSES, len(example)))
    names = np.array([f"worker-{j:06d}" for j in range(annotators)])
    for number, start in enumerate(range(0, len(example), 1_000_000)):
        part = slice(start, start + 1_000_000)
        table = pa.table({"task": example[part], "annotator": pa.array(names[annotator[part]]), "label": label[part]})
        pq.write_table(table, folder / f"labels-{number:03d}.parquet")


def config_for(folder: Path) -> AuditConfig:
    """CROWDLAB with everything that it writes, on two workers of 2 GiB."""
    return parse_config(
        {
            "task": "multiannotator",
            "input": {
                "annotations": {"uri": f"{folder}/labels-*.parquet", "columns": ["task", "annotator", "label"]},
                "pred_probs": {"uri": f"{folder}/probs.zarr", "array": "pred_probs"},
            },
            "output": {"uri": f"{folder}/audit", "format": "parquet"},
            "cluster": {"workers": 2, "memory_limit": "2GiB"},
        }
    )


def floors(annotations: int, examples: int) -> dict[str, int]:
    """Bytes that each stage must move through memory: its input as decoded, read once, and what it writes.

    An annotation is read as two int64 and a name of 17 bytes, scattered as 20 bytes, and kept as 8; an example is kept
    as the start of its annotations and k float32.
    """
    kept, probabilities = 8 * annotations + 8 * examples, 4 * CLASSES * examples
    walk = kept + probabilities
    scored, detailed = 32 * examples, 41 * annotations
    return {
        "scatter": (33 + 20) * annotations,
        "gather": 20 * annotations + kept,
        "estimate votes": kept,
        "estimate majority_vote": walk,
        "estimate best_quality": walk,
        "estimate annotators": walk,
        "score": walk + scored + detailed,
    }


def cpu_seconds() -> float:
    """Processor time of this process so far."""
    times = os.times()
    return times.user + times.system


def table(annotations: int = 10_000_000, per_example: int = 5, annotators: int = 50_000) -> Table:
    """Per stage: seconds, processor seconds of the workers, annotations per second and core, and times the floor.

    The last two are by processor time, which others on the machine disturb less.
    """
    examples = annotations // per_example
    title = f"{annotations:,} annotations of {examples:,} examples by {annotators:,} annotators, k = {CLASSES}"
    columns = ("stage", "seconds", "processor seconds", "annotations/s/core", "floor: bytes", "× the floor")
    result = Table(*columns, title=title)
    folder = Path(tempfile.mkdtemp(prefix="labelqa-bench-"))
    taken: dict[str, tuple[float, float]] = {}
    try:
        write_crowd(folder, annotations, examples, annotators)
        config = config_for(folder)
        resources = resources_of(config)
        plan = make_plan(config, resources)
        with open_cluster(config) as client:

            def listen(progress: Progress) -> None:
                if progress.done == progress.total:
                    taken[progress.stage] = progress.seconds, sum(client.run(cpu_seconds).values())

            run_audit(plan, client, lambda progress: None)  # kernels are compiled and loaded
            shutil.rmtree(folder / "audit")
            before = sum(client.run(cpu_seconds).values())
            wall = seconds(lambda: run_audit(plan, client, listen))
            total = sum(client.run(cpu_seconds).values()) - before
            peak = sum(client.run(peak_bytes).values())
        bandwidth = read_bandwidth() / available_cpus()
        for stage, nbytes in floors(annotations, examples).items():
            elapsed, until = taken[stage]
            cpu, before = until - before, until
            times = f"{cpu * bandwidth / nbytes:.0f}"
            rate = f"{annotations / cpu:,.0f}"
            result.add_row(stage, f"{elapsed:.1f}", f"{cpu:.1f}", rate, format_bytes(nbytes), times)
        result.add_row("all", f"{wall:.1f}", f"{total:.1f}", f"{annotations / total:,.0f}", "", "")
        result.caption = (
            f"peak memory of both workers {format_bytes(peak)}, planned "
            f"{format_bytes(plan.worker_bytes * resources.workers)}, bound {format_bytes(MOST_BYTES)}; "
            f"one core reads {format_bytes(int(bandwidth))}/s"
        )
    finally:
        shutil.rmtree(folder)
    return result
