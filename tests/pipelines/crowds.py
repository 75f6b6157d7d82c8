"""Stored annotations in any order, with predictions and identifiers, and audits of them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from distributed import Client
from zarr.storage import ObjectStore as ZarrObjectStore

from labelqa_dask.storage.location import Location
from tests.pipelines.audits import Audit, Data
from tests.stores import Place
from tests.strategies import crowd_data, long_form

N, M, K = 90, 9, 4
LABELS, PROBS = crowd_data(N, M, K, seed=20)
LONG = long_form(LABELS)
IDS = np.array([f"x{(7 * i) % N:03d}" for i in range(N)], object)
COLUMNS = ("task", "annotator", "label")


def store_rows(location: Location, rows: pd.DataFrame, form: str) -> dict[str, Any]:
    return store_files(location, [rows.iloc[part] for part in np.array_split(np.arange(len(rows)), 3)], form)


def store_files(location: Location, frames: list[pd.DataFrame], form: str) -> dict[str, Any]:
    for number, frame in enumerate(frames):
        if form == "csv":
            shuffled = frame.assign(note="a,b")[["label", "note", "task", "annotator"]]
            location.write(f"rows-{number:02d}.csv", shuffled.to_csv(index=False).encode())
        else:
            buffer = io.BytesIO()
            pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), buffer, row_group_size=20)
            location.write(f"rows-{number:02d}.parquet", buffer.getvalue())
    return {"uri": f"{location.url}/rows-*.{form}", "columns": [*COLUMNS]}


def store_probs(location: Location, form: str) -> dict[str, Any]:
    if form == "zarr":
        location.create()
        group = zarr.open_group(ZarrObjectStore(location.store), mode="a")
        array = group.create_array("pred_probs", shape=PROBS.shape, dtype=PROBS.dtype, chunks=(10, K))
        array[...] = PROBS
        ids = group.create_array("ids", shape=(N,), dtype="str", chunks=(40,))  # type: ignore[arg-type]
        ids[...] = IDS
        return {name: {"uri": location.url, "array": name} for name in ("pred_probs", "ids")}
    buffer = io.BytesIO()
    pq.write_table(pa.table({"p": list(PROBS), "key": pa.array(IDS)}), buffer, row_group_size=11)
    location.write("probs.parquet", buffer.getvalue())
    uri = f"{location.url}/probs.parquet"
    return {"pred_probs": {"uri": uri, "column": "p"}, "ids": {"uri": uri, "column": "key"}}


def audit_of(
    place: Place, client: Client, rows: pd.DataFrame, form: str, of_probs: str, *, ids: bool, **settings: Any
) -> Audit:
    inputs = store_probs(place("probs.zarr" if of_probs == "zarr" else "probs"), of_probs)
    inputs = inputs if ids else {"pred_probs": inputs["pred_probs"]}
    annotations = store_rows(place("rows"), rows.assign(task=IDS[rows["task"]]) if ids else rows, form)
    output = {"format": "zarr" if of_probs == "zarr" else "parquet", "region_rows": 20}
    merged = {
        "input": {**inputs, "annotations": {**annotations, **settings.pop("annotations", {})}},
        "output": output,
        "select": {"worst": 15},
        **settings,
    }
    return Audit(place, Data("multiannotator", LABELS, PROBS, IDS), client, merged)
