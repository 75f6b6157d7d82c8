"""Peak memory of workers against what was planned, as the data grow: it may depend on how they are cut alone.

Each audit compiles its kernels, as the first one on a machine does: that takes more memory than to run them.

Larger data are the same files and chunks under further names (hard links), so that they take no room on the disk.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from dask.utils import format_bytes
from rich.table import Table

from benchmarks import crowd, end_to_end, regression
from flows.cluster import open_cluster, resources_of
from labelqa_dask.storage.location import Location
from pipelines.audit import run_audit
from pipelines.config import parse_config
from pipelines.plan import make_plan

SCALES = (1, 4, 16)
_IN_ZARR, _PART_ROWS = 1 << 16, 1 << 18
Settings = dict[str, Any]
Writer = Callable[[Path, int, int], Settings]
"""Writes data of so many bytes so many times over, and returns the settings of an audit of them."""


def link_chunks(base: Path, grown: Path, times: int) -> None:
    """A Zarr group whose arrays repeat those of another along the first dimension, chunk by chunk."""
    group = zarr.open_group(str(grown), mode="w")
    for name, array in zarr.open_group(str(base), mode="r").arrays():
        shape = (array.shape[0] * times, *array.shape[1:])
        group.create_array(name, shape=shape, dtype=array.dtype, chunks=array.chunks)
        count = array.shape[0] // array.chunks[0]
        assert count * array.chunks[0] == array.shape[0], "whole chunks only"
        chunks = [path.relative_to(base / name / "c") for path in (base / name / "c").rglob("*") if path.is_file()]
        for time in range(times):
            for chunk in chunks:
                number, *inner = chunk.parts
                to = Path(grown, name, "c", str(int(number) + time * count), *inner)
                to.parent.mkdir(parents=True, exist_ok=True)
                os.link(base / name / "c" / chunk, to)


def link_files(base: Path, grown: Path, times: int) -> None:
    """A folder with each file of another so many times."""
    grown.mkdir()
    for path in base.iterdir():
        for time in range(times):
            os.link(path, grown / f"{path.stem}-{time:05d}{path.suffix}")


def probabilities(rng: np.random.Generator, rows: int, classes: int) -> Any:
    """Rows (n, k) that sum to one."""
    found = rng.random((rows, classes)) ** 4
    return found / found.sum(axis=1, keepdims=True)


def multiclass(folder: Path, nbytes: int, times: int) -> Settings:
    """Rows of ten probabilities in lists, with identifiers in words, in Parquet."""
    classes = 10
    rng = np.random.default_rng(0)
    (folder / "base").mkdir()
    for number in range(max(1, nbytes // (8 * (classes + 1) * _PART_ROWS))):
        probs = pa.FixedSizeListArray.from_arrays(probabilities(rng, _PART_ROWS, classes).ravel(), classes)
        labels = rng.integers(0, classes, _PART_ROWS)
        ids = pa.array([f"example-{number:03d}-{i:08d}" for i in range(_PART_ROWS)])
        table = pa.table({"label": labels, "probs": probs, "id": ids})
        pq.write_table(table, folder / "base" / f"part-{number:03d}.parquet", row_group_size=1 << 16)
    link_files(folder / "base", folder / "data", times)
    columns = {"labels": "label", "pred_probs": "probs", "ids": "id"}
    uri = f"{folder}/data/part-*.parquet"
    return {
        "task": "multiclass",
        "input": {name: {"uri": uri, "column": column} for name, column in columns.items()},
        "params": {"adjust_pred_probs": True},
        "output": {"format": "parquet"},
    }


def multilabel(folder: Path, nbytes: int, times: int) -> Settings:
    """Indicators and probabilities of twenty classes, in Zarr."""
    classes = 20
    rng = np.random.default_rng(0)
    rows = max(1, nbytes // (5 * classes * _IN_ZARR)) * _IN_ZARR
    group = zarr.open_group(str(folder / "base.zarr"), mode="w")
    labels = group.create_array("labels", shape=(rows, classes), dtype="i1", chunks=(_IN_ZARR, classes))
    pred_probs = group.create_array("pred_probs", shape=(rows, classes), dtype="f4", chunks=(_IN_ZARR, classes))
    for start in range(0, rows, _IN_ZARR):
        part = rng.random((_IN_ZARR, classes), dtype=np.float32)
        pred_probs[start : start + _IN_ZARR] = part
        labels[start : start + _IN_ZARR] = rng.random(part.shape) < part
    link_chunks(folder / "base.zarr", folder / "data.zarr", times)
    return {
        "task": "multilabel",
        "input": {name: {"uri": f"{folder}/data.zarr", "array": name} for name in ("labels", "pred_probs")},
        "params": {"adjust_pred_probs": True},
    }


def multiannotator(folder: Path, nbytes: int, times: int) -> Settings:
    """A crowd that grows with its annotations, each of 16 bytes; annotators are as many as ever."""
    examples = max(1, nbytes // (16 * 5)) * times
    crowd.write_crowd(folder, 5 * examples, examples, annotators=5000)
    settings: Settings = crowd.config_for(folder).model_dump(mode="json", exclude_defaults=True)
    return settings


def pixels(method: str) -> Writer:
    """Images of nineteen classes, one per chunk."""

    def write(folder: Path, nbytes: int, times: int) -> Settings:
        image = end_to_end.CLASSES * end_to_end.HEIGHT * end_to_end.WIDTH * 4
        end_to_end.write_pixels(folder / "base.zarr", max(nbytes, image))
        link_chunks(folder / "base.zarr", folder / "data.zarr", times)
        config = end_to_end.config_for(folder / "data.zarr", folder / "audit", method)
        settings: Settings = config.model_dump(mode="json", exclude_defaults=True)
        return settings

    return write


def numbers(folder: Path, nbytes: int, times: int) -> Settings:
    """Labels and predictions in Parquet."""
    regression.write_rows(Location.parse(folder / "base"), max(regression.PART_ROWS, nbytes // 16))
    link_files(folder / "base", folder / "data", times)
    config = regression.config_for(*(Location.parse(folder / name) for name in ("data", "audit")))
    settings: Settings = config.model_dump(mode="json", exclude_defaults=True)
    return settings


WRITERS: dict[str, Writer] = {
    "multiclass": multiclass,
    "multilabel": multilabel,
    "multiannotator": multiannotator,
    "segmentation, softmin": pixels("softmin"),
    "segmentation, num_pixel_issues": pixels("num_pixel_issues"),
    "regression": numbers,
}


def measure(write: Writer, nbytes: int, times: int) -> tuple[int, int, int]:
    """Bytes of the input; the peak of a worker of a fresh cluster in an audit of them; and what was planned."""
    folder = Path(tempfile.mkdtemp(prefix="labelqa-bench-"))
    os.environ["NUMBA_CACHE_DIR"] = str(folder / "kernels")
    try:
        settings = write(folder, nbytes, times)
        output = {**settings.get("output", {}), "uri": str(folder / "audit")}
        cluster = {"workers": 2, "memory_limit": "2GiB"}
        config = parse_config({**settings, "output": output, "cluster": cluster})
        plan = make_plan(config, resources_of(config))
        with open_cluster(config) as client:
            run_audit(plan, client, lambda progress: None)
            peak = max(client.run(end_to_end.peak_bytes).values())
        return plan.input_bytes, peak, plan.worker_bytes
    finally:
        del os.environ["NUMBA_CACHE_DIR"]
        shutil.rmtree(folder)


def table(megabytes: float = 64, *names: str) -> Table:
    """Peak and plan of each task, or of those named, at 1, 4 and 16 times the data."""
    columns = [f"{what}{times}×" for times in SCALES for what in ("input ", "peak of plan ")]
    result = Table("peak memory of a worker", *columns, "within the plan")
    for name in names or WRITERS:
        found = [measure(WRITERS[name], int(megabytes * 1e6), times) for times in SCALES]
        shown = [
            text
            for size, peak, plan in found
            for text in (format_bytes(size), f"{peak / 2**20:.0f} of {plan / 2**20:.0f} MiB")
        ]
        result.add_row(name, *shown, "yes" if all(peak <= plan for _, peak, plan in found) else "NO")
    return result


def flat(*gigabytes: float) -> Table:
    """Peak and plan of num_pixel_issues over so many GB of pixels: 1 and 10 unless told."""
    result = Table("num_pixel_issues over", "peak memory of a worker", "planned")
    base = 1e9
    for size in gigabytes or (1.0, 10.0):
        total, peak, planned = measure(WRITERS["segmentation, num_pixel_issues"], int(base), max(1, round(size)))
        result.add_row(format_bytes(total), format_bytes(peak), format_bytes(planned))
    return result
