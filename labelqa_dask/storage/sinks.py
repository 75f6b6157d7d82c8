"""Sinks: where a run's scores go, as a Zarr group or as Parquet parts.

Every object is written whole by exactly one region, so writers need no locks and writing twice is harmless.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import product
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from xxhash import xxh3_128
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore
from zarr.storage import ObjectStore as ZarrObjectStore

from labelqa_dask.core.errors import StorageError
from labelqa_dask.core.kernels import Array
from labelqa_dask.storage.location import Location, map_ahead
from labelqa_dask.storage.record import content_digest

_COPIES_AT_ONCE = 16
# Longer arrays are given back to the system as soon as they are freed, and each page of the next is cleared anew.
_ROWS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class OutputArray:
    """An array to be written: its name, dimensions, shape, type, the chunks and the Zarr group it is written in.

    `fill_value` is what a chunk holds that was not written; for floats NaN, for the rest 0 where it is not given.
    """

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]
    group: str = "scores"
    fill_value: float | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)


Columns = Mapping[str, Sequence[Array]]
"""What there is of each row, by name: the parts of each column, one after the other."""


@dataclass(frozen=True)
class Written:
    """Digests of what a region has written: outputs by their name, and files of the region's own by their path."""

    rows: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


class Sink(Protocol):
    """Where scores go.

    `write_block` may be called for parts that cover whole chunks; `write_rows` once per region, or `leave_out` for one
    without scores: those are missing then (NaN, or -1 where they are integers; in Parquet null). Both return digests of
    what they have written.
    """

    def create(self, outputs: Sequence[OutputArray], attributes: Mapping[str, Any]) -> None: ...
    def write_block(self, name: str, index: tuple[slice, ...], values: Array) -> None: ...
    def write_rows(self, region: str, start: int, columns: Columns) -> Written: ...
    def leave_out(
        self, region: str, start: int, stop: int, outputs: Sequence[OutputArray], ids: Array | None
    ) -> Written: ...
    def take_over(
        self,
        former: Location,
        was: tuple[str, int],
        region: str,
        start: int,
        stop: int,
        outputs: Sequence[OutputArray],
        files: Mapping[str, str],
    ) -> Mapping[str, str]:
        """Copy what was written for the rows of a region in a former version, a folder of the same place.

        There the region may have had another name and another first row, and digests of its `files`. Raises
        FileNotFoundError where something is missing there, or is not what was written and would be written anew.
        """
        ...

    def metadata(self) -> list[str]:
        """Objects that no region writes, by their path in the version."""
        ...

    def read_rows(self, region: str, name: str, start: int, stop: int) -> Array:
        """What was written for the rows of a region; None in place of what is missing, where the format has that."""
        ...

    def read_block(self, name: str, index: tuple[slice, ...]) -> Array: ...


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
            location = self.location / f"{name}.zarr"
            location.create()
            documents = group_documents([output for output in outputs if output.group == name], attributes)
            for path, content in documents.items():
                if location.read_if_exists(path) != content:
                    location.write(path, content)

    def write_block(self, name: str, index: tuple[slice, ...], values: Array) -> None:
        self._location_of(name).attempt(name, lambda: self._open(name).__setitem__(index, values))

    def write_rows(self, region: str, start: int, columns: Columns) -> Written:
        digests = {}
        for name, parts in columns.items():
            values = np.concatenate(parts)
            self.write_block(name, (slice(start, start + len(values)),), values)
            digests[name] = checksum(values)
        return Written(rows=digests)

    def leave_out(
        self, region: str, start: int, stop: int, outputs: Sequence[OutputArray], ids: Array | None
    ) -> Written:
        for output in outputs:
            location = self._location_of(output.name)
            array = location.attempt(output.name, partial(self._open, output.name))
            values = ids if output.name == "id" and ids is not None else array.fill_value
            location.attempt(output.name, partial(array.__setitem__, slice(start, stop), values))
        return Written(rows={} if ids is None else {"id": checksum(ids)})

    def take_over(
        self,
        former: Location,
        was: tuple[str, int],
        region: str,
        start: int,
        stop: int,
        outputs: Sequence[OutputArray],
        files: Mapping[str, str],
    ) -> Mapping[str, str]:
        for output in outputs:
            array = self._location_of(output.name).attempt(output.name, partial(self._open, output.name))
            length, *others = output.chunks
            within = [range(-(-size // chunk)) for size, chunk in zip(output.shape[1:], others, strict=True)]
            folder = f"{output.group}.zarr/{output.name}"
            pairs = []
            for number, *inner in product(range(-(-(stop - start) // length)), *within):
                keys = (
                    array.metadata.encode_chunk_key((first // length + number, *inner)) for first in (was[1], start)
                )
                pairs.append((f"{folder}/{next(keys)}", f"{folder}/{next(keys)}"))
            # A chunk in which nothing is marked is not written.
            _copy(former, self.location, pairs, may_be_missing=output.dtype == np.bool_)
        return {}

    def metadata(self) -> list[str]:
        groups = [f"{group}.zarr/zarr.json" for group in sorted(set(self.groups.values()))]
        return [*groups, *(f"{group}.zarr/{name}/zarr.json" for name, group in self.groups.items())]

    def read_rows(self, region: str, name: str, start: int, stop: int) -> Array:
        return self.read_block(name, (slice(start, stop),))

    def read_block(self, name: str, index: tuple[slice, ...]) -> Array:
        location = self._location_of(name)
        try:
            values = location.attempt(name, lambda: np.asarray(self._open(name)[index]))
        except (StorageError, MemoryError):
            raise
        except Exception as error:  # what a codec raises is not to be foreseen
            raise StorageError(f"cannot be decoded ({error})", str(location / name)) from error
        return values if values.dtype.kind in "biuf" else values.astype(object)

    def _location_of(self, name: str) -> Location:
        return self.location / f"{self.groups[name]}.zarr"

    def _open(self, name: str) -> Any:
        if name not in self._arrays:
            store = ZarrObjectStore(self._location_of(name).store)
            self._arrays[name] = zarr.open_array(store, path=name, mode="r+")
        return self._arrays[name]


def _copy(former: Location, version: Location, pairs: Sequence[tuple[str, str]], *, may_be_missing: bool) -> None:
    """Copy objects of one version into another, by their paths in them."""

    def copy(pair: tuple[str, str]) -> None:
        to = f"{version.name}/{pair[1]}"
        try:
            version.parent.copy(f"{former.name}/{pair[0]}", to)
        except FileNotFoundError:
            if not may_be_missing:
                raise
            version.parent.delete_object(to)

    for _ in map_ahead(copy, pairs, _COPIES_AT_ONCE):
        pass


def group_documents(outputs: Sequence[OutputArray], attributes: Mapping[str, Any]) -> dict[str, bytes]:
    """The metadata of a group (format 3) of arrays, consolidated, as the objects they are stored in, by path.

    Each chunk ends in a checksum: decompressing what was cut off may read what happens to lie behind it in memory.
    """
    objects: dict[str, Buffer] = {}
    store = MemoryStore(objects)
    group = zarr.open_group(store, mode="a", zarr_format=3, attributes=dict(attributes))
    for output in outputs:
        missing = {"f": np.nan, "i": -1}.get(output.dtype.kind)
        group.create_array(
            output.name,
            shape=output.shape,
            dtype="str" if output.dtype == object else output.dtype,
            chunks=output.chunks,
            dimension_names=output.dims,
            fill_value=missing if output.fill_value is None else output.fill_value,
            compressors=(_compressor(output.dtype), Crc32cCodec()),
            attributes=dict(output.attributes),
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        zarr.consolidate_metadata(store)
    return {path: content.to_bytes() for path, content in objects.items() if path.endswith("zarr.json")}


def _compressor(dtype: np.dtype[Any]) -> BloscCodec | ZstdCodec:
    """Numbers with bytes of equal significance side by side: for floats smaller and faster than plain compression."""
    if dtype.kind == "O":
        return ZstdCodec()
    return BloscCodec(cname="zstd", clevel=1, shuffle="shuffle", typesize=dtype.itemsize)


@dataclass(frozen=True)
class ParquetSink:
    """One Parquet file per region, with a column for the row, the identifier where there is one, and each score."""

    location: Location

    def create(self, outputs: Sequence[OutputArray], attributes: Mapping[str, Any]) -> None:
        self.location.create()

    def write_block(self, name: str, index: tuple[slice, ...], values: Array) -> None:
        raise NotImplementedError(f"{name} has a value per pixel, which Parquet cannot hold; plan refuses this")

    def write_rows(self, region: str, start: int, columns: Columns) -> Written:
        stored = {name: _stored(parts) for name, parts in columns.items()}
        return Written(files=self._write(region, start, pa.table(stored)))

    def leave_out(
        self, region: str, start: int, stop: int, outputs: Sequence[OutputArray], ids: Array | None
    ) -> Written:
        columns: dict[str, Any] = {}
        for output in sorted(outputs, key=lambda output: output.name != "id"):
            kept = output.name == "id" and ids is not None
            columns[output.name] = ids if kept else pa.nulls(stop - start, _arrow_type(output))
        return Written(files=self._write(region, start, pa.table(columns)))

    def take_over(
        self,
        former: Location,
        was: tuple[str, int],
        region: str,
        start: int,
        stop: int,
        outputs: Sequence[OutputArray],
        files: Mapping[str, str],
    ) -> Mapping[str, str]:
        old, new = (f"{self.location.name}/{self.part(name)}" for name in (was[0], region))
        if was[1] == start:
            _copy(former, self.location.parent, [(old, new)], may_be_missing=False)
            return {new: files[old]}
        found = former.read(old)
        if content_digest(found) != files[old]:
            raise FileNotFoundError(str(former / old))
        table = pq.read_table(io.BytesIO(found)).drop_columns(["row"])
        return self._write(region, start, table.combine_chunks())

    def metadata(self) -> list[str]:
        return []

    def read_rows(self, region: str, name: str, start: int, stop: int) -> Array:
        path = self.part(region)
        content = self.location.read(path)
        try:
            table = pq.read_table(io.BytesIO(content), columns=["row", name])
            if not np.array_equal(table["row"].to_numpy(), np.arange(start, stop)):
                raise StorageError("holds other rows than it should", str(self.location / path))
            column = table[name].combine_chunks()
            if column.null_count == len(column):
                return np.full(len(column), None, object)
            if pa.types.is_fixed_size_list(column.type):
                return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
            return column.to_numpy(zero_copy_only=False)
        except (pa.ArrowException, KeyError, OSError) as error:
            raise StorageError(f"cannot be read as Parquet: {error}", str(self.location / path)) from error

    def read_block(self, name: str, index: tuple[slice, ...]) -> Array:
        raise NotImplementedError(f"{name} has a value per pixel, which Parquet cannot hold; plan refuses this")

    @staticmethod
    def part(region: str) -> str:
        """The file of a region."""
        return f"part-{region}.parquet"

    def _write(self, region: str, start: int, table: pa.Table) -> dict[str, str]:
        firsts = range(start, start + len(table), _ROWS_AT_ONCE)
        pieces = [np.arange(first, min(first + _ROWS_AT_ONCE, firsts.stop), dtype=np.int64) for first in firsts]
        numbers = pa.chunked_array(pieces, pa.int64())
        content = parquet_bytes(table.add_column(0, pa.field("row", numbers.type, nullable=False), numbers))
        self.location.write(self.part(region), content)
        return {f"{self.location.name}/{self.part(region)}": content_digest(content)}


def _arrow_type(output: OutputArray) -> pa.DataType:
    value = pa.string() if output.dtype == object else pa.from_numpy_dtype(output.dtype)
    return _list_of(value, output.shape[1]) if len(output.shape) == 2 else value


def _list_of(value: pa.DataType, length: int) -> pa.DataType:
    """Lists of one length, with the name for what is in them by which Parquet knows it: so they are when read again."""
    return pa.list_(pa.field("element", value), length)


def _stored(parts: Sequence[Array]) -> pa.ChunkedArray | pa.Array:
    """Rows (n,), or rows (n, k) as lists of one length.

    How lists are cut into parts shows in the pages of a file; how numbers are does not.
    """
    if parts[0].ndim == 1:
        return pa.chunked_array([pa.array(part) for part in parts])
    values = np.concatenate(parts)
    numbers = pa.array(values.ravel())
    return pa.FixedSizeListArray.from_arrays(numbers, type=_list_of(numbers.type, values.shape[1]))


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as a Parquet file; the same table gives the same bytes.

    Scores and rows hardly ever repeat, so a dictionary of them is built in vain; with the bytes of equal significance
    side by side, and the differences between rows, fast compression leaves less than slow compression does without.
    """
    encodings = {field.name: encoding for field in table.schema if (encoding := _encoding(field.type))}
    buffer = pa.BufferOutputStream()
    repeating = [field.name for field in table.schema if pa.types.is_string(field.type)]
    pq.write_table(table, buffer, compression="snappy", use_dictionary=repeating, column_encoding=encodings)
    return buffer.getvalue().to_pybytes()


def _encoding(value: pa.DataType) -> str | None:
    if pa.types.is_floating(value):
        return "BYTE_STREAM_SPLIT"
    return "DELTA_BINARY_PACKED" if pa.types.is_int64(value) else None


def checksum(values: Array) -> str:
    """Digest of what an array holds, whatever format it is written in."""
    digest = xxh3_128(f"{values.shape}{values.dtype}".encode())
    if values.dtype == object:
        for value in values.tolist():
            digest.update(f"{len(value)}:{value}".encode())
    else:
        digest.update(np.ascontiguousarray(values).view(np.uint8).data)
    return digest.hexdigest()
