"""Stored data and configurations for whole audits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import zarr
from zarr.storage import ObjectStore as ZarrObjectStore

from labelqa_dask.storage.location import Location, StorageOptions
from labelqa_dask.storage.sinks import parquet_bytes


@dataclass(frozen=True)
class Stored:
    """Data in a store, and the configuration that audits them."""

    labels: np.ndarray
    pred_probs: np.ndarray
    config: dict[str, Any]

    @property
    def out(self) -> Location:
        return Location.parse(self.config["output"]["uri"], self.storage)

    @property
    def storage(self) -> StorageOptions:
        return StorageOptions(**self.config["storage"])

    def into(self, uri: str) -> Stored:
        """The same audit with another output."""
        return Stored(self.labels, self.pred_probs, {**self.config, "output": {**self.config["output"], "uri": uri}})


def images(n: int = 60, k: int = 5, side: int = 24) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    pred_probs = rng.random((n, k, side, side), dtype=np.float32) ** 4
    pred_probs /= pred_probs.sum(axis=1, keepdims=True)
    return rng.integers(0, k, (n, side, side)).astype(np.uint8), pred_probs


def rows(n: int = 2000, k: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(8)
    return rng.integers(0, k, n), rng.dirichlet(np.ones(k), n)


def write_zarr(base: str, options: StorageOptions, arrays: dict[str, np.ndarray], chunk_rows: int) -> str:
    location = Location.parse(f"{base}/data.zarr", options)
    location.create()
    group = zarr.open_group(ZarrObjectStore(location.store), mode="w")
    for name, values in arrays.items():
        array = group.create_array(
            name,
            shape=values.shape,
            dtype="str" if values.dtype.kind == "U" else values.dtype,
            chunks=(chunk_rows, *values.shape[1:]),
        )
        array[...] = values
    return location.url


def write_parquet(base: str, options: StorageOptions, table: pa.Table, files: int) -> str:
    location = Location.parse(f"{base}/data", options)
    length = -(-table.num_rows // files)
    for number in range(files):
        location.write(f"part-{number}.parquet", parquet_bytes(table.slice(number * length, length)))
    return f"{location.url}/part-*.parquet"


@pytest.fixture
def segmentation_from_zarr() -> Callable[..., Stored]:
    def make(base: str, options: StorageOptions | None = None, n: int = 60) -> Stored:
        options = options or StorageOptions()
        labels, pred_probs = images(n)
        ids = np.array([f"scene-{i}" for i in range(n)])
        arrays = {"labels": labels, "pred_probs": pred_probs, "image_id": ids}
        uri = write_zarr(base, options, arrays, chunk_rows=1)
        names = {"labels": "labels", "pred_probs": "pred_probs", "ids": "image_id"}
        return Stored(
            labels,
            pred_probs,
            {
                "task": "segmentation",
                "input": {name: {"uri": uri, "array": array} for name, array in names.items()},
                "output": {"uri": f"{base}/audit", "format": "zarr", "region_rows": 1},
                "select": {"worst": 10},
                "cluster": {"workers": 2, "memory_limit": "2GiB"},
                "storage": options.model_dump(exclude_defaults=True),
            },
        )

    return make


@pytest.fixture
def multiclass_from_parquet() -> Callable[..., Stored]:
    def make(base: str, options: StorageOptions | None = None, n: int = 2000) -> Stored:
        options = options or StorageOptions()
        labels, pred_probs = rows(n)
        columns = {f"p{j}": pred_probs[:, j] for j in range(pred_probs.shape[1])}
        uri = write_parquet(base, options, pa.table({"key": np.arange(n) * 3, "label": labels, **columns}), files=20)
        return Stored(
            labels,
            pred_probs,
            {
                "task": "multiclass",
                "input": {
                    "labels": {"uri": uri, "column": "label"},
                    "pred_probs": {"uri": uri, "columns": list(columns)},
                    "ids": {"uri": uri, "column": "key"},
                },
                "params": {"adjust_pred_probs": True},
                "output": {"uri": f"{base}/audit", "format": "parquet"},
                "select": {"worst": 10},
                "cluster": {"workers": 2, "memory_limit": "2GiB"},
                "storage": options.model_dump(exclude_defaults=True),
            },
        )

    return make


def published(out: Location) -> dict[str, bytes]:
    """Every published object by its path: all of the version but the run's own record."""
    version = (out / "v000001").entries()
    return {e.path: (out / "v000001").read(e.path) for e in version if not e.path.startswith("_run/")}


@pytest.fixture
def published_files() -> Callable[[Location], dict[str, bytes]]:
    return published


@pytest.fixture
def config_file(tmp_path: Path) -> Callable[[Stored], Path]:
    import yaml

    def write(stored: Stored, name: str = "audit.yaml") -> Path:
        path = tmp_path / name
        path.write_text(yaml.safe_dump(stored.config))
        return path

    return write
