"""OUTRE: against cleanlab, in memory at ten million rows, and end to end from Parquet against merely reading it."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import cleanlab.regression.rank
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from dask.utils import format_bytes
from distributed import Client
from rich.table import Table

from benchmarks.end_to_end import audit, peak_bytes
from benchmarks.measure import Aside, in_turn, seconds
from flows.cluster import open_cluster, resources_of
from labelqa_dask.regression import get_label_quality_scores
from labelqa_dask.storage.location import Location
from pipelines.config import AuditConfig, parse_config
from pipelines.plan import make_plan
from pipelines.regions import Progress

PART_ROWS = 1_000_000
WAYS = ("auto", "exact", "field")
CURVES = {
    **dict.fromkeys((1_000, 3_000, 10_000, 32_768, 100_000), ("exact", "field")),
    **dict.fromkeys((1_000_000, 10_000_000), ("auto",)),
}


def measurements(rows: int, seed: int = 0) -> tuple[Any, Any]:
    """Labels (n,) with heavy tails, and predictions (n,) that miss them by more where they are large."""
    rng = np.random.default_rng(seed)
    labels = rng.gamma(2.0, size=rows)
    return labels, labels * np.exp(0.2 * rng.standard_t(4, size=rows).clip(-20, 20))


def in_memory(rounds: int = 3) -> Table:
    """Seconds and ratio to cleanlab at 20,000 rows, in turn, and seconds of larger ones."""
    result = Table("OUTRE in memory", "rows", "ours", "cleanlab", "ratio", "target")
    labels, predictions = measurements(20_000)
    ways = {way: partial(get_label_quality_scores, labels, predictions, neighbors=way) for way in WAYS}
    pairs = {way: [] for way in ways}
    for score in ways.values():
        score()  # kernels are compiled and loaded
    for _ in range(rounds):
        theirs = seconds(lambda: cleanlab.regression.rank.get_label_quality_scores(labels, predictions))
        for way, score in ways.items():
            pairs[way].append((min(seconds(score) for _ in range(5)), theirs))
    for way, each in pairs.items():
        ours, theirs = (statistics.median(values) for values in zip(*each, strict=True))
        ratio = statistics.median(b / a for a, b in each)
        result.add_row(way, "20,000", f"{ours:.3f} s", f"{theirs:.0f} s", f"{ratio:.0f}", "≥ 300")
    for rows, timed in CURVES.items():
        labels, predictions = measurements(rows)
        for way in timed:
            score = partial(get_label_quality_scores, labels, predictions, neighbors=way)
            ours = min(seconds(score) for _ in range(rounds))
            result.add_row(way, f"{rows:,}", f"{ours:.3f} s", "", "", "10 s" if rows == 10_000_000 else "")
    return result


def write_rows(folder: Location, rows: int) -> None:
    """Labels and predictions as Parquet files of a million rows."""
    for number in range(-(-rows // PART_ROWS)):
        labels, predictions = measurements(min(PART_ROWS, rows - number * PART_ROWS), seed=number)
        buffer = pa.BufferOutputStream()
        pq.write_table(pa.table({"label": labels, "prediction": predictions}), buffer)
        folder.write(f"part-{number:05d}.parquet", buffer.getvalue().to_pybytes())


def config_for(data: Location, out: Location, threads: int = 1) -> AuditConfig:
    """OUTRE over the stored rows, with so many threads for each core."""
    uri = f"{data}/part-*.parquet"
    return parse_config(
        {
            "task": "regression",
            "input": {"labels": {"uri": uri, "column": "label"}, "predictions": {"uri": uri, "column": "prediction"}},
            "output": {"uri": str(out), "format": "parquet"},
            "cluster": {"workers": os.cpu_count(), "threads_per_worker": threads, "memory_limit": "2GiB"},
        }
    )


def read_only(client: Client, data: Location) -> None:
    """Read both columns with plain Dask on the same workers, and drop them."""
    frame = dd.read_parquet(f"{data.local_path}/*.parquet")
    client.gather(client.compute(frame.map_partitions(_drop, meta=frame._meta)))


def _drop(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.iloc[:0]


def read_barely(client: Client, data: Location) -> None:
    """As `read_only`, with nothing between the workers and pyarrow: what reading takes at the least."""
    client.gather(client.map(_read, _paths(data), pure=False))


def _read(path: str) -> int:
    table = pq.read_table(path)
    return sum(column.to_numpy().nbytes for column in table.columns)


def _paths(data: Location) -> list[str]:
    return [f"{data.local_path}/{entry.path}" for entry in data.entries()]


def drop_from_cache(data: Location) -> None:
    """Have the next walk over the files read them from the disk."""
    for path in _paths(data):
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def end_to_end(rows: float = 100e6) -> Table:
    """Ratio of the audit's time to that of reading the input as often as the audit does, and the peak memory.

    Read with plain Dask, and, since Dask makes tables of it, with pyarrow alone. The files are dropped from the page
    cache before every walk over them, or they are all in it.
    """
    size = format_bytes(16 * int(rows))
    columns = (
        "passes",
        "audit",
        "Dask reads",
        "ratio",
        "target",
        "pyarrow reads",
        "MB/s",
        "ratio",
        "peak memory",
        "planned",
    )
    result = Table(f"{int(rows):,} rows, {size}", "threads", *columns, title="OUTRE end to end, from Parquet")
    folder = tempfile.mkdtemp(prefix="labelqa-bench-")
    try:
        data, out = (Location.parse(f"{folder}/{name}") for name in ("rows", "audit"))
        write_rows(data, int(rows))
        drop = partial(drop_from_cache, data)
        for threads in (1, 2):
            result.add_row("on the disk", *_end_to_end(data, out, threads, drop))
            result.add_row("in the page cache", *_end_to_end(data, out, threads, lambda: None))
    finally:
        shutil.rmtree(folder)
    return result


def _end_to_end(data: Location, out: Location, threads: int, before_each_walk: Callable[[], None]) -> tuple[str, ...]:
    config = config_for(data, out, threads)
    plan = make_plan(config, resources_of(config))
    aside = Aside()

    def listen(progress: Progress) -> None:
        if progress.done == 0:
            aside.do(before_each_walk)

    def read(way: Callable[[Client, Location], None]) -> None:
        aside.do(before_each_walk)
        way(client, data)

    with open_cluster(config) as client:
        ours = partial(audit, plan, client, out, aside, listen)
        plain, bare = (in_turn(ours, partial(read, way), runs=3, aside=aside) for way in (read_only, read_barely))
        peak = max(client.run(peak_bytes).values())
    passes = len(plan.task.passes(plan.params)) + 1
    return (
        f"{os.cpu_count()} × {threads}",
        f"{passes}",
        f"{statistics.median(plain.ours + bare.ours):.1f} s",
        f"{plain.median[1]:.2f} s",
        f"{1 / (plain.ratio * passes):.2f}",
        "≤ 1.5",
        f"{bare.median[1]:.2f} s",
        f"{sum(entry.size for entry in data.entries()) / bare.median[1] / 1e6:.0f}",
        f"{1 / (bare.ratio * passes):.2f}",
        format_bytes(peak),
        format_bytes(plan.worker_bytes),
    )
