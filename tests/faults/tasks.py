"""Valid data of every task, and what can be wrong with them: a task joins the tests of faults by an entry here."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from distributed import Client
from numpy.typing import NDArray
from zarr.storage import ObjectStore as ZarrObjectStore

from labelqa_dask.core import public
from labelqa_dask.core.task import get_task
from labelqa_dask.multiannotator import get_label_quality_multiannotator
from labelqa_dask.storage.location import Location
from tests.pipelines.audits import Audit
from tests.stores import Place
from tests.strategies import crowd_data, long_form, multiclass_data, multilabel_data, segmentation_data

ROWS, REGION_ROWS, CLASSES = 42, 5, 4
FILES = (12, 20, 10)
SCRIPT = "<script>alert('x')</script><img src=x onerror=alert(1)>"


@dataclass(frozen=True)
class BadValue:
    """A value that cannot be scored: in which input, where within an example, and the reason that is told."""

    array: str
    where: tuple[int | slice, ...]
    value: float
    reason: str

    def put(self, arrays: Mapping[str, NDArray[Any]], row: int) -> None:
        arrays[self.array][(row, *self.where)] = self.value


@dataclass(frozen=True)
class Example:
    """Data that a task can score, and how it is asked to; `annotations` are rows (task, annotator, label)."""

    task: str
    arrays: Mapping[str, NDArray[Any]]
    predictions: str
    bad_values: Mapping[str, BadValue]
    params: Mapping[str, Any] = field(default_factory=dict)
    parquet: bool = True
    annotations: pd.DataFrame | None = None
    ids: NDArray[Any] = field(default_factory=lambda: np.array([f"é {i} {SCRIPT}" for i in range(ROWS)], object))

    def copy(self) -> Example:
        return replace(self, arrays={name: values.copy() for name, values in self.arrays.items()})

    @property
    def columns(self) -> dict[str, NDArray[Any]]:
        """Everything that is stored, by name."""
        return {**self.arrays, "ids": self.ids}

    def scores(self, rows: NDArray[np.intp]) -> dict[str, NDArray[Any]]:
        """What the library makes of some rows."""
        if self.annotations is not None:
            given = self.annotations[self.annotations["task"].isin(self.ids[rows])]
            number = pd.Series(np.arange(len(rows)), self.ids[rows])
            found = get_label_quality_multiannotator(
                given.assign(task=number.loc[given["task"]].to_numpy()),
                self.arrays["pred_probs"][rows],
                columns=("task", "annotator", "label"),
                verbose=False,
                **self.params,
            )
            return {str(name): values.to_numpy() for name, values in found["label_quality"].items()}
        task = get_task(self.task)
        arrays = {name: values[rows] for name, values in self.arrays.items()}
        return public.run(task, arrays, task.params(**self.params))

    @property
    def ranked_by(self) -> str:
        return get_task(self.task).ranked_by

    def region_of(self, row: int) -> NDArray[np.intp]:
        start = row // REGION_ROWS * REGION_ROWS
        return np.arange(start, min(start + REGION_ROWS, ROWS))


def _multiclass() -> Example:
    labels, pred_probs = multiclass_data(ROWS, CLASSES, seed=3)
    return Example(
        "multiclass",
        {"labels": labels, "pred_probs": pred_probs},
        "pred_probs",
        {
            "label too high": BadValue("labels", (), 9, "label 9 is outside 0..3"),
            "label negative": BadValue("labels", (), -1, "label -1 is outside 0..3"),
            "not a number": BadValue("pred_probs", (1,), np.nan, "probability is nan"),
            "infinite": BadValue("pred_probs", (1,), np.inf, "probability is inf"),
            "out of range": BadValue("pred_probs", (1,), 1.5, r"probability 1.5 is outside [0, 1]"),
            "no sum of one": BadValue("pred_probs", (), 0.1, "probabilities sum to 0.4, not 1"),
        },
        {"adjust_pred_probs": True},
    )


def _multilabel() -> Example:
    labels, pred_probs = multilabel_data(ROWS, CLASSES, seed=5)
    return Example(
        "multilabel",
        {"labels": labels, "pred_probs": pred_probs},
        "pred_probs",
        {
            "label too high": BadValue("labels", (1,), 2, "label 2 is neither 0 nor 1"),
            "label negative": BadValue("labels", (1,), -1, "label -1 is neither 0 nor 1"),
            "not a number": BadValue("pred_probs", (1,), np.nan, "probability is nan"),
            "infinite": BadValue("pred_probs", (1,), np.inf, "probability is inf"),
            "out of range": BadValue("pred_probs", (1,), 1.5, r"probability 1.5 is outside [0, 1]"),
        },
        {"adjust_pred_probs": True},
    )


def _regression() -> Example:
    rng = np.random.default_rng(6)
    predictions = rng.normal(size=ROWS)
    return Example(
        "regression",
        {"labels": predictions + rng.normal(size=ROWS) / 5, "predictions": predictions},
        "predictions",
        {
            "label not a number": BadValue("labels", (), np.nan, "nan"),
            "not a number": BadValue("predictions", (), np.nan, "nan"),
            "infinite": BadValue("predictions", (), np.inf, "inf"),
        },
    )


def _multiannotator() -> Example:
    labels, pred_probs = crowd_data(ROWS, 6, CLASSES, seed=8)
    example = Example(
        "multiannotator",
        {"pred_probs": pred_probs},
        "pred_probs",
        {
            "not a number": BadValue("pred_probs", (1,), np.nan, "probability is nan"),
            "infinite": BadValue("pred_probs", (1,), np.inf, "probability is inf"),
            "out of range": BadValue("pred_probs", (1,), 1.5, r"probability 1.5 is outside [0, 1]"),
            "no sum of one": BadValue("pred_probs", (), 0.1, "probabilities sum to 0.4, not 1"),
        },
    )
    rows = long_form(labels)
    names = rows["annotator"].map(lambda name: f"{name} {SCRIPT}")
    return replace(example, annotations=rows.assign(task=example.ids[rows["task"]], annotator=names))


def _segmentation() -> Example:
    labels, pred_probs = segmentation_data(ROWS, CLASSES, 6, 8, seed=4)
    return Example(
        "segmentation",
        {"labels": labels, "pred_probs": pred_probs.astype(np.float32)},
        "pred_probs",
        {
            "label too high": BadValue("labels", (2, 3), 9, "label 9 is outside 0..3"),
            "label negative": BadValue("labels", (2, 3), -1, "label -1 is outside 0..3"),
            "not a number": BadValue("pred_probs", (1, 2, 3), np.nan, "probability is nan"),
            "infinite": BadValue("pred_probs", (1, 2, 3), -np.inf, "probability is -inf"),
            "out of range": BadValue("pred_probs", (1, 2, 3), -0.5, r"probability -0.5 is outside [0, 1]"),
            "never predicted": BadValue("pred_probs", (slice(None), 2, 3), 0, "all probabilities of a pixel are 0"),
        },
        parquet=False,
    )


TASKS = {
    "multiclass": _multiclass(),
    "multilabel": _multilabel(),
    "multiannotator": _multiannotator(),
    "regression": _regression(),
    "segmentation": _segmentation(),
    "num_pixel_issues": replace(_segmentation(), params={"method": "num_pixel_issues"}),
}
FORMATS = [(name, kind) for name, example in TASKS.items() for kind in ("zarr", "parquet")[: 1 + example.parquet]]
IN_PARQUET = [name for name, kind in FORMATS if kind == "parquet"]
CASES = [(name, case) for name, example in TASKS.items() for case in example.bad_values]


def store_zarr(location: Location, example: Example, rows: int = REGION_ROWS) -> dict[str, Any]:
    """One chunk per region and array."""
    location.create()
    group = zarr.open_group(ZarrObjectStore(location.store), mode="a")
    for name, values in example.columns.items():
        dtype: Any = "str" if values.dtype == object else values.dtype
        chunks = (rows, *values.shape[1:])
        array = group.create_array(name, shape=values.shape, dtype=dtype, chunks=chunks, overwrite=True)
        array[...] = values
    return {name: {"uri": location.url, "array": name} for name in example.columns}


def store_parquet(location: Location, example: Example, files: Iterable[int] = FILES) -> dict[str, Any]:
    """Files of uneven length; what has several values per row is a column of lists of one length."""
    table = pa.table({name: _column(values) for name, values in example.columns.items()})
    start = 0
    for number, length in enumerate(files):
        buffer = io.BytesIO()
        pq.write_table(table.slice(start, length), buffer, row_group_size=REGION_ROWS, use_dictionary=False)
        location.write(f"part-{number}.parquet", buffer.getvalue())
        start += length
    return {name: {"uri": f"{location.url}/part-*.parquet", "column": name} for name in example.columns}


def store_annotations(location: Location, rows: pd.DataFrame, files: int = 2) -> dict[str, Any]:
    """Rows (task, annotator, label) in files of small row groups."""
    for number, part in enumerate(np.array_split(np.arange(len(rows)), files)):
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pandas(rows.iloc[part], preserve_index=False), buffer, row_group_size=20)
        location.write(f"part-{number}.parquet", buffer.getvalue())
    return {"uri": f"{location.url}/part-*.parquet", "columns": [*rows.columns]}


def _column(values: NDArray[Any]) -> pa.Array:
    return pa.array(values) if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(values.ravel(), values.shape[1])


def audit_of(place: Place, client: Client, example: Example, kind: str = "zarr", **settings: Any) -> Audit:
    """An audit of stored data: Zarr into Zarr, or Parquet into Parquet."""
    inputs = store_zarr(place("data.zarr"), example) if kind == "zarr" else store_parquet(place("data"), example)
    if example.annotations is not None:
        inputs["annotations"] = store_annotations(place("annotations"), example.annotations)
    return audit_over(place, client, example, inputs, kind, **settings)


def audit_over(
    place: Place, client: Client, example: Example, inputs: Mapping[str, Any], kind: str, **settings: Any
) -> Audit:
    """An audit of inputs that hold an example, into Zarr or Parquet."""
    settings = {
        "input": dict(inputs),
        "params": dict(example.params),
        "output": {"format": kind, "region_rows": REGION_ROWS},
        "select": {"worst": 10},
        **settings,
    }
    return Audit(place, example, client, settings)  # type: ignore[arg-type]


def scores_of(audit: Audit, rows: int = ROWS) -> dict[str, NDArray[Any]]:
    """What an audit has published, by column."""
    run = audit.run().run
    scores = run.scores
    if audit.settings["output"]["format"] == "zarr":
        groups = [scores, run.issues] if (run.version.location / "issues.zarr").exists() else [scores]
        return {str(name): group[name].values for group in groups for name in group.variables}  # type: ignore[union-attr]
    frame = scores.compute()  # type: ignore[union-attr]
    assert len(frame) == rows
    return {str(name): frame[name].to_numpy() for name in frame.columns}
