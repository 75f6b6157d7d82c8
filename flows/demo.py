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
from flows.demo_data.multiannotator import CrowdData
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
    stored = _write_zarr(data, folder) if data.predictions.ndim > 2 else _write_parquet(data, folder)
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
        ("pred_probs", data.predictions, ("example", "class", "y", "x")),
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
    if data.predictions.ndim == 1:
        columns, predictions = ["prediction"], {"predictions": {"column": "prediction"}}
    else:
        columns = [f"p{j}" for j in range(data.predictions.shape[1])]
        predictions = {"pred_probs": {"columns": columns}}
    sets = data.labels.ndim == 2
    labels = [np.flatnonzero(row).tolist() for row in data.labels] if sets else data.labels
    name = "labels" if sets else "label"
    values = np.atleast_2d(data.predictions.T)
    table = pa.table({"id": data.ids.tolist(), name: labels, **dict(zip(columns, values, strict=True))})
    part_rows = -(-len(data.labels) // 8)
    for number, start in enumerate(range(0, len(data.labels), part_rows)):
        pq.write_table(table.slice(start, part_rows), files / f"part-{number:02d}.parquet")
    uri = str(files / "part-*.parquet")
    labelled = _write_crowd(data, files) if isinstance(data, CrowdData) else {"labels": {"uri": uri, "column": name}}
    return {
        "input": {
            **labelled,
            **{name: {"uri": uri, **where} for name, where in predictions.items()},
            "ids": {"uri": uri, "column": "id"},
        },
        "output": {"uri": str(folder / "audit"), "format": "parquet"},
    }


def _write_crowd(data: CrowdData, files: Path) -> dict[str, Any]:
    """The annotations, in no order."""
    order = np.random.default_rng(0).permutation(len(data.example))
    table = pa.table(
        {
            "digit": data.ids[data.example[order]].tolist(),
            "annotator": data.names[data.annotator[order]].tolist(),
            "label": data.given[order],
        }
    )
    pq.write_table(table, files / "annotations.parquet")
    return {"annotations": {"uri": str(files / "annotations.parquet"), "columns": table.column_names}}


def verdict(data: DemoData, run: Run) -> str:
    """How many of the labels that were really corrupted are among as many worst; what became of a crowd."""
    if isinstance(data, CrowdData):
        return _crowd_verdict(data, run)
    corrupted = int(data.corrupted.sum())
    worst = run.worst["row"].to_numpy()[:corrupted]
    found = int(data.corrupted[worst].sum())
    by_chance = corrupted * corrupted / len(data.corrupted)
    return (
        f"{corrupted} of {len(data.corrupted):,} examples had their label corrupted on purpose. "
        f"{found} of them are among the {corrupted} worst ({found / corrupted:.0%}; by chance: {by_chance:.0f})."
    )


def _crowd_verdict(data: CrowdData, run: Run) -> str:
    """Whether the consensus is better than the majority, and whether the spammers end up last."""
    consensus = run.scores.compute()["consensus_label"].to_numpy()
    spammers = int(data.spammers.sum())
    last = run.annotators["annotator"].head(spammers).isin(data.names[data.spammers]).sum()
    right, by_majority = (consensus == data.truth).mean(), (data.labels == data.truth).mean()
    return (
        f"The consensus is right for {right:.1%} of {len(data.truth):,} digits, the majority vote for "
        f"{by_majority:.1%}. {last} of the {spammers} spammers are among the {spammers} worst "
        f"of {len(data.names)} annotators."
    )


def make_data(task: str, seed: int, say: Callable[[str], None]) -> DemoData:
    """Data of a task; models are trained here."""
    from flows.demo_data import MAKERS

    if task not in MAKERS:
        raise InvalidConfig(f"there is no demonstration of {task!r}", "--task", f"Choose {' or '.join(MAKERS)}.")
    return MAKERS[task](seed, say=say)
