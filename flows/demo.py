"""The demonstration: real data with labels that are really wrong, audited as a user's would be."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
import zarr

from flows.demo_data import DemoData
from labelqa_dask.core.errors import InvalidConfig
from labelqa_dask.storage.run import Run

_MARKER = ".labelqa-demo"


def prepare_folder(folder: Path) -> None:
    """An empty folder: a new one, or that of an earlier demonstration, which is told by a file that it left there."""
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / _MARKER).exists())):
        raise InvalidConfig("exists, and is not the folder of an earlier demonstration", str(folder), "Choose --out.")
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / _MARKER).touch()


def write_demo(data: DemoData, folder: Path) -> Path:
    """Store the data as Zarr (images) or Parquet (tables), with a configuration that audits them; returns its path."""
    folder = folder.resolve()
    stored = _write_zarr(data, folder) if data.pred_probs.ndim > 2 else _write_parquet(data, folder)
    config = {
        "task": data.task,
        **stored,
        "select": {"worst": min(1000, len(data.labels))},
        "cluster": {"kind": "local", "workers": 2, "threads_per_worker": 1, "memory_limit": "2GiB"},
    }
    path = folder / "audit.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def _write_zarr(data: DemoData, folder: Path) -> dict[str, Any]:
    uri = str(folder / "data" / "scenes.zarr")
    group = zarr.open_group(uri, mode="w", zarr_format=3)
    rows = 8
    dims = ("example", "y", "x")
    for name, values, names in (
        ("labels", data.labels, dims),
        ("pred_probs", data.pred_probs, ("example", "class", "y", "x")),
        ("id", data.ids.astype(np.dtypes.StringDType()), ("example",)),
    ):
        array = group.create_array(
            name,
            shape=values.shape,
            dtype="str" if name == "id" else values.dtype,
            chunks=(rows, *values.shape[1:]) if name != "id" else values.shape,
            dimension_names=names,
        )
        array[...] = values
    inputs = {name: {"uri": uri, "array": name} for name in ("labels", "pred_probs")} | {
        "ids": {"uri": uri, "array": "id"}
    }
    return {"input": inputs, "output": {"uri": str(folder / "audit"), "format": "zarr"}}


def _write_parquet(data: DemoData, folder: Path) -> dict[str, Any]:
    files = folder / "data"
    files.mkdir()
    predictions: dict[str, Any]
    if data.pred_probs.ndim == 1:
        columns, predictions = ["prediction"], {"predictions": {"column": "prediction"}}
    else:
        columns = [f"p{j}" for j in range(data.pred_probs.shape[1])]
        predictions = {"pred_probs": {"columns": columns}}
    sets = data.labels.ndim == 2
    labels = [np.flatnonzero(row).tolist() for row in data.labels] if sets else data.labels
    name = "labels" if sets else "label"
    values = np.atleast_2d(data.pred_probs.T)
    table = pa.table({"id": data.ids.tolist(), name: labels, **dict(zip(columns, values, strict=True))})
    part_rows = -(-len(data.labels) // 8)
    for number, start in enumerate(range(0, len(data.labels), part_rows)):
        pq.write_table(table.slice(start, part_rows), files / f"part-{number:02d}.parquet")
    uri = str(files / "part-*.parquet")
    return {
        "input": {
            "labels": {"uri": uri, "column": name},
            **{name: {"uri": uri, **where} for name, where in predictions.items()},
            "ids": {"uri": uri, "column": "id"},
        },
        "output": {"uri": str(folder / "audit"), "format": "parquet"},
    }


def verdict(data: DemoData, run: Run) -> str:
    """How many of the labels that were really corrupted are among as many worst."""
    corrupted = int(data.corrupted.sum())
    worst = run.worst["row"].to_numpy()[:corrupted]
    found = int(data.corrupted[worst].sum())
    by_chance = corrupted * corrupted / len(data.corrupted)
    return (
        f"{corrupted} of {len(data.corrupted):,} examples had their label corrupted on purpose. "
        f"{found} of them are among the {corrupted} worst ({found / corrupted:.0%}; by chance: {by_chance:.0f})."
    )


def make_data(task: str, seed: int, say: Callable[[str], None]) -> DemoData:
    """Data of a task; models are trained here."""
    from flows.demo_data import MAKERS

    if task not in MAKERS:
        raise InvalidConfig(f"there is no demonstration of {task!r}", "--task", f"Choose {' or '.join(MAKERS)}.")
    return MAKERS[task](seed, say=say)
