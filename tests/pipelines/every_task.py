"""One small audit of each task and format, the same on every store."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from distributed import Client
from numpy.typing import NDArray

from labelqa_dask.storage.location import Location, StorageOptions
from tests.faults.tasks import FORMATS, ROWS, TASKS, Example, audit_of, store_parquet, store_zarr
from tests.pipelines.audits import Audit
from tests.stores import Place
from tests.strategies import crowd_data, long_form

_REGION_ROWS = 15
_ANNOTATORS, _CLASSES = 7, 4
Name = Callable[[int], str]
AUDITS = FORMATS
"""Every task in every format that it takes."""


def audit_on(
    place: Place, client: Client, name: str, kind: str, *, example: Name = "x{}".format, annotator: Name | None = None
) -> Audit:
    """An audit of data that are stored where it publishes: Zarr into Zarr, or Parquet into Parquet."""
    ids = np.array([example((11 * i) % ROWS) for i in range(ROWS)], object)
    if name == "multiannotator":
        return _of_a_crowd(place, client, kind, ids, annotator)
    output = {"format": kind, "region_rows": _REGION_ROWS}
    return audit_of(place, client, replace(TASKS[name], ids=ids), kind, output=output)


def _of_a_crowd(place: Place, client: Client, kind: str, ids: NDArray[Any], annotator: Name | None) -> Audit:
    """Annotations in no order, in several files, that name their examples by identifiers."""
    labels, pred_probs = crowd_data(ROWS, _ANNOTATORS, _CLASSES, seed=8)
    example = Example("multiannotator", {"pred_probs": pred_probs}, "pred_probs", {}, ids=ids)
    inputs = store_zarr(place("data.zarr"), example) if kind == "zarr" else store_parquet(place("data"), example)
    rows = long_form(labels).sample(frac=1, random_state=3)
    rows = rows.assign(task=ids[rows["task"]])
    if annotator is not None:
        rows = rows.assign(annotator=rows["annotator"].map(annotator))
    for number, part in enumerate(np.array_split(np.arange(len(rows)), 2)):
        place("rows").write(f"rows-{number}.parquet", _parquet(rows.iloc[part]))
    inputs["annotations"] = {"uri": f"{place('rows').url}/rows-*.parquet", "columns": ["task", "annotator", "label"]}
    settings: dict[str, Any] = {
        "input": inputs,
        "params": {"calibrate_probs": True},
        "output": {"format": kind, "region_rows": _REGION_ROWS},
        "select": {"worst": 10},
    }
    return Audit(place, example, client, settings)  # type: ignore[arg-type]


def _parquet(rows: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pandas(rows, preserve_index=False), buffer, row_group_size=20)
    return buffer.getvalue()


def differs_from_the_disk(audit: Audit, folder: str) -> dict[str, tuple[bytes | None, bytes | None]]:
    """What an audit publishes that is not, byte for byte, what it publishes in a folder on the disk."""
    on_disk = audit_on(Place(folder, StorageOptions()), audit.client, *_name_of(audit))
    on_disk.run()
    audit.run()
    here, there = _comparable(audit), _comparable(on_disk)
    return {path: (here.get(path), there.get(path)) for path in {*here, *there} if here.get(path) != there.get(path)}


def _name_of(audit: Audit) -> tuple[str, str]:
    name = "num_pixel_issues" if audit.settings["params"].get("method") == "num_pixel_issues" else audit.data.task
    return name, audit.settings["output"]["format"]


def _comparable(audit: Audit) -> dict[str, bytes]:
    """What is published, without where the inputs are and what tells their versions."""
    root = Location.parse(audit.place.root, audit.place.options)
    files = audit.published()
    inputs = json.loads(files["summary.json"])["inputs"]
    told = [root.url, str(root), *(found["digest"] for found in inputs.values())]
    for path, content in files.items():
        for text in told:
            content = content.replace(text.encode(), b"")
        files[path] = content
    return files
