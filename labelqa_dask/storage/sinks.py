"""Sinks: where a run's scores go, as a Zarr group or as Parquet parts.

Every object is written whole by exactly one region, so writers need no locks and writing twice is harmless.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from zarr.codecs import BloscCodec
from zarr.storage import ObjectStore as ZarrObjectStore

from labelqa_dask.core.kernels import Array
from labelqa_dask.storage.location import Location


@dataclass(frozen=True)
class OutputArray:
    """An array to be written: its name, dimensions, shape, type, the chunks and the Zarr group it is written in."""

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]
    group: str = "scores"


class Sink(Protocol):
    """Where scores go. `write_block` may be called for parts that cover whole chunks, `write_rows` once per region."""

    def create(self, outputs: Sequence[OutputArray], attributes: Mapping[str, Any]) -> None: ...
    def write_block(self, name: str, index: tuple[slice, ...], values: Array) -> None: ...
    def write_rows(self, region: str, start: int, columns: Mapping[str, Array]) -> None: ...


@dataclass(frozen=True)
class ZarrSink:
    """Zarr groups (format 3) that open in plain xarray: one array per output, named dimensions.

    `groups` tells of each output in which group it is: `scores.zarr`, `issues.zarr`.
    """

    location: Location
    groups: Mapping[str, str]

    @cached_property
    def _arrays(self) -> dict[str, Any]:
        """What was opened for writing: for as long as this sink only, since a later run may make it anew."""
        return {}

    def create(self, outputs: Sequence[OutputArray], attributes: Mapping[str, Any]) -> None:
        for name in sorted(set(self.groups.values())):
            self._create_group(name, [output for output in outputs if output.group == name], attributes)

    def _create_group(self, name: str, outputs: Sequence[OutputArray], attributes: Mapping[str, Any]) -> None:
        location = self.location / f"{name}.zarr"
        location.create()
        with location.errors_of(""):
            store = ZarrObjectStore(location.store)
            group = zarr.open_group(store, mode="a", zarr_format=3, attributes=dict(attributes))
            for output in outputs:
                if output.name in group:
                    continue
                group.create_array(
                    output.name,
                    shape=output.shape,
                    dtype="str" if output.dtype == object else output.dtype,
                    chunks=output.chunks,
                    dimension_names=output.dims,
                    fill_value=np.nan if output.dtype.kind == "f" else None,
                    compressors="auto" if output.dtype == object else _compressor(output.dtype),
                )
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Consolidated metadata")
                zarr.consolidate_metadata(store)

    def write_block(self, name: str, index: tuple[slice, ...], values: Array) -> None:
        location = self.location / f"{self.groups[name]}.zarr"
        with location.errors_of(name):
            if name not in self._arrays:
                self._arrays[name] = zarr.open_array(ZarrObjectStore(location.store), path=name, mode="r+")
            self._arrays[name][index] = values

    def write_rows(self, region: str, start: int, columns: Mapping[str, Array]) -> None:
        for name, values in columns.items():
            self.write_block(name, (slice(start, start + len(values)),), values)


def _compressor(dtype: np.dtype[Any]) -> BloscCodec:
    """Bytes of equal significance side by side: for floats smaller and faster than plain compression."""
    return BloscCodec(cname="zstd", clevel=1, shuffle="shuffle", typesize=dtype.itemsize)


@dataclass(frozen=True)
class ParquetSink:
    """One Parquet file per region, with a column for the row, the identifier where there is one, and each score."""

    location: Location

    def create(self, outputs: Sequence[OutputArray], attributes: Mapping[str, Any]) -> None:
        self.location.create()

    def write_block(self, name: str, index: tuple[slice, ...], values: Array) -> None:
        raise NotImplementedError(f"{name} has a value per pixel, which Parquet cannot hold; plan refuses this")

    def write_rows(self, region: str, start: int, columns: Mapping[str, Array]) -> None:
        n = len(next(iter(columns.values())))
        table = pa.table({"row": np.arange(start, start + n, dtype=np.int64), **columns})
        self.location.write(f"part-{region}.parquet", parquet_bytes(table))


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as a Parquet file; the same table gives the same bytes."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def checksum(columns: Mapping[str, Array]) -> str:
    """Digest of what arrays hold, whatever format they are written in."""
    digest = sha256()
    for name in sorted(columns):
        values = columns[name]
        digest.update(f"{name}{values.shape}{values.dtype}".encode())
        if values.dtype == object:
            for value in values.tolist():
                digest.update(f"{len(value)}:{value}".encode())
        else:
            digest.update(np.ascontiguousarray(values).view(np.uint8).data)
    return digest.hexdigest()[:32]
