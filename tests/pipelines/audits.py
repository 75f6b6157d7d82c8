"""Stored data for whole audits, small enough to compare with what NumPy makes of the same arrays, and the audits."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Condition
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from distributed import Client
from numpy.typing import NDArray
from zarr.storage import ObjectStore as ZarrObjectStore

from labelqa_dask.core.errors import OutputInUse
from labelqa_dask.storage.lease import holding
from labelqa_dask.storage.location import Location
from labelqa_dask.storage.record import Version
from pipelines.audit import Audited, run_audit, run_stage
from pipelines.config import AuditConfig, parse_config
from pipelines.plan import Resources, make_plan
from pipelines.regions import Listener, Progress
from tests.stores import Place
from tests.strategies import multiclass_data, segmentation_data

RESOURCES = Resources(2, 1, 4 << 30)
on_disk = pytest.mark.parametrize("place", ["file"], indirect=True)
"""For a test to which the store makes no difference."""
ROWS, CLASSES = 137, 4
FILES = (40, 1, 50, 46)


@dataclass(frozen=True)
class Data:
    """Labels, predictions and identifiers of one task."""

    task: str
    labels: NDArray[Any]
    pred_probs: NDArray[Any]
    ids: NDArray[Any]

    def __len__(self) -> int:
        return len(self.labels)


def numbers() -> Data:
    """Rows of which many have the same score, so that the order of equal ones shows."""
    labels, pred_probs = multiclass_data(ROWS, CLASSES, seed=5)
    labels[10:90:4], pred_probs[10:90:4] = labels[10], pred_probs[10]
    return Data("multiclass", labels, pred_probs, np.array([f"row {i} é" for i in range(ROWS)], object))


def images(dtype: str = "float32") -> Data:
    labels, pred_probs = segmentation_data(14, CLASSES, 24, 20, seed=6)
    labels[5], pred_probs[5] = labels[3], pred_probs[3]
    return Data("segmentation", labels.astype(np.uint8), pred_probs.astype(dtype), np.arange(14, dtype=np.int32) * 7)


def store_zarr(location: Location, data: Data, **chunks: tuple[int, ...]) -> dict[str, Any]:
    location.create()
    group = zarr.open_group(ZarrObjectStore(location.store), mode="a")
    arrays = {"labels": data.labels, "pred_probs": data.pred_probs, "ids": data.ids}
    for name, values in arrays.items():
        chunk = chunks.get(name, (10 if values.ndim < 3 else 1, *values.shape[1:]))
        dtype: Any = "str" if values.dtype == object else values.dtype
        array = group.create_array(name, shape=values.shape, dtype=dtype, chunks=chunk, overwrite=True)
        array[...] = values
    return {name: {"uri": location.url, "array": name} for name in arrays}


def store_parquet(location: Location, data: Data, columns: bool = False) -> dict[str, Any]:
    """Files of uneven length, of row groups of seven rows; probabilities as lists or as columns."""
    probs: dict[str, Any] = {"probs": pa.array(list(data.pred_probs))}
    if columns:
        probs = {f"p{j}": data.pred_probs[:, j] for j in range(CLASSES)}
    table = pa.table({"label": data.labels, "key": pa.array(data.ids), **probs})
    start = 0
    for number, length in enumerate(FILES):
        buffer = io.BytesIO()
        pq.write_table(table.slice(start, length), buffer, row_group_size=7)
        location.write(f"part-{number}.parquet", buffer.getvalue())
        start += length
    assert start == len(data)
    uri = f"{location.url}/part-*.parquet"
    inputs = {"labels": {"column": "label"}, "pred_probs": {"column": "probs"}, "ids": {"column": "key"}}
    if columns:
        inputs["pred_probs"] = {"columns": [*probs]}  # type: ignore[dict-item]
    return {name: {"uri": uri, **source} for name, source in inputs.items()}


@dataclass(frozen=True)
class Audit:
    """An audit of stored data that can be run again and again, and what it publishes."""

    place: Place
    data: Data
    client: Client
    settings: dict[str, Any]
    out: str = "out"

    def changed(self, out: str | None = None, **settings: Any) -> Audit:
        merged = {
            name: {**self.settings.get(name, {}), **value} if isinstance(value, dict) else value
            for name, value in settings.items()
        }
        return replace(self, settings={**self.settings, **merged}, out=out or self.out)

    @property
    def config(self) -> AuditConfig:
        output = {"uri": self.place.url(self.out), **self.settings.get("output", {})}
        return parse_config({**self.settings, "task": self.data.task, "output": output, "storage": self.place.settings})

    def run(
        self, listener: Listener = lambda progress: None, *, fresh: bool = False, call: Callable[..., Any] = run_stage
    ) -> Audited:
        return run_audit(make_plan(self.config, RESOURCES), self.client, listener, fresh=fresh, call=call)

    @property
    def location(self) -> Location:
        return self.place(self.out)

    def version(self, name: str = "v000001") -> Version:
        return Version(self.location, name)

    def published(self, name: str = "v000001") -> dict[str, bytes]:
        """Every object that a version publishes, by its path: all but the run's own record.

        Without what the report says of the version before: the rest depends on the input and the settings alone.
        """
        location = self.version(name).location
        paths = [entry.path for entry in location.entries()]
        found = {path: location.read(path) for path in paths if not path.startswith("_run/")}
        if "report.html" in found:
            found["report.html"] = re.sub(
                rb'<section aria-labelledby="since">.*?</section>\n', b"", found["report.html"], flags=re.DOTALL
            )
        return found

    def receipts(self, name: str = "v000001") -> dict[str, str]:
        """Which write each receipt of a version comes from."""
        return self.place.writes(f"{self.out}/{name}/_run/done")


def store_again(audit: Audit) -> None:
    """Store the data of an audit anew, after they were changed."""
    if audit.data.task == "multiclass":
        store_parquet(audit.place("data"), audit.data)
    else:
        store_zarr(audit.place("data.zarr"), audit.data)


def wait_until(condition: Callable[[], bool]) -> None:
    """Ask again and again until something is so."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not come to be"


def is_idle(client: Client) -> bool:
    """Whether no worker is at anything: what is under way outlives the run that wanted it."""
    at_rest = ("memory", "error", "released", "forgotten")
    states = client.run(lambda dask_worker: [task.state for task in dask_worker.state.tasks.values()])
    return all(state in at_rest for of_worker in states.values() for state in of_worker)


class Interrupted(BaseException):
    """What stops a run in the middle, as Ctrl-C would."""


def interrupt(stage: str, done: int) -> Listener:
    """Stop as soon as so many regions of a stage are done."""

    def listen(progress: Progress) -> None:
        if progress.stage == stage and progress.done >= done:
            raise Interrupted

    return listen


def begin_together(out: Location, drivers: int) -> list[bool]:
    """Which of several drivers that begin at once hold an output; whoever does waits for the others to be refused."""
    refused = Condition()
    told = 0

    def begin(_: int) -> bool:
        nonlocal told
        try:
            with holding(out), refused:
                return refused.wait_for(lambda: told == drivers - 1, 60)
        except OutputInUse:
            with refused:
                told += 1
                refused.notify_all()
            return False

    with ThreadPoolExecutor(drivers) as pool:
        return list(pool.map(begin, range(drivers)))
