"""The reading side: open what a run has published."""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import dask.dataframe as dd
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import xarray as xr
from zarr.storage import ObjectStore as ZarrObjectStore

from labelqa_dask.core.errors import StorageError
from labelqa_dask.storage.location import Location, StorageOptions
from labelqa_dask.storage.record import Version, latest


@dataclass(frozen=True)
class Run:
    """A published version of an audit; everything is read when it is asked for."""

    version: Version

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Counts, means, histogram and settings."""
        content: dict[str, Any] = json.loads(self.version.location.read("summary.json"))
        return content

    @cached_property
    def worst(self) -> pd.DataFrame:
        """The worst examples, worst first."""
        return _frame(self.version.location.read("worst.parquet"))

    @cached_property
    def annotators(self) -> pd.DataFrame:
        """Quality and weight of each annotator, worst first, where there are several."""
        return _frame(self.version.location.read("annotators.parquet"))

    @cached_property
    def annotations(self) -> dd.DataFrame:
        """The quality of each given label, lazy, where there are several annotators."""
        return self._open_parquet("annotations")

    @cached_property
    def scores(self) -> xr.Dataset | dd.DataFrame:
        """The scores of every example, lazy: a Dataset over Dask arrays, or a Dask DataFrame."""
        if self.summary["output"]["format"] == "zarr":
            return self._open_zarr("scores.zarr")
        return self._open_parquet("scores")

    @cached_property
    def issues(self) -> xr.Dataset:
        """Which labels are issues, lazy, where an audit with Zarr output has looked for them (`is_issue`)."""
        return self._open_zarr("issues.zarr")

    def _open_parquet(self, name: str) -> dd.DataFrame:
        location = self.version.location / name
        parts = sorted(entry.path for entry in location.entries())

        def read(path: str) -> pd.DataFrame:
            return pq.read_table(io.BytesIO(location.read(path))).to_pandas(types_mapper=_lists_as_they_are)

        return dd.from_map(read, parts)

    def _open_zarr(self, name: str) -> xr.Dataset:
        store = ZarrObjectStore((self.version.location / name).store, read_only=True)
        return xr.open_zarr(store, consolidated=True)

    @property
    def report(self) -> Location:
        """Where the report is."""
        return self.version.location / "report.html"


def _frame(content: bytes) -> pd.DataFrame:
    """A Parquet file; whole numbers stay whole where some are missing."""
    table = pq.read_table(io.BytesIO(content))
    whole = [
        name
        for name, column in zip(table.column_names, table.columns, strict=True)
        if column.null_count and pa.types.is_integer(column.type)
    ]
    return table.to_pandas().astype(dict.fromkeys(whole, "Int64"))


def _lists_as_they_are(value: pa.DataType) -> pd.ArrowDtype | None:
    """Columns of lists stay Arrow's: Dask would make text of Python objects."""
    return pd.ArrowDtype(value) if pa.types.is_fixed_size_list(value) else None


def open_run(url: str | os.PathLike[str], storage: StorageOptions | None = None) -> Run:
    """Open the newest published version of an audit.

    Parameters
    ----------
    url : str or path
        Where the audit was told to write: a path, or an s3://, gs:// or az:// URL.
    storage : StorageOptions, optional
        Endpoint and region, where they differ from the environment's.

    Returns
    -------
    Run
        With `scores` (xarray Dataset or Dask DataFrame, lazy), `worst` (pandas) and `summary` (dict).

    Raises
    ------
    StorageError
        Where nothing has been published.
    """
    out = Location.parse(url, storage)
    version = latest(out)
    if version is None:
        raise StorageError(
            "nothing has been published", str(out), "Run an audit with this output first, or let it finish."
        )
    return Run(version)
