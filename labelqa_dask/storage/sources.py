"""Sources: stored arrays that are read by rows, from Zarr groups and Parquet files.

A source is opened once, where the run is planned, from metadata only. What a region needs of it (`rows`) is small
enough to send to a worker, and is opened there.
"""

from __future__ import annotations

import base64
import fnmatch
import glob
import hashlib
import json
import re
import warnings
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import pairwise, product
from typing import Any, Protocol, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xarray as xr
import zarr
from numpy.typing import NDArray
from zarr.storage import ObjectStore as ZarrObjectStore

from labelqa_dask.core.errors import InvalidConfig, InvalidInput, StorageError, nearest
from labelqa_dask.core.kernels import Array
from labelqa_dask.storage.location import Entry, Location

Index = tuple[slice, ...]


@dataclass(frozen=True)
class Fingerprint:
    """What tells whether stored data have changed: the objects they consist of, by name, size and version.

    `regions` tells as much of some ranges of rows: the objects that hold them, and how they are read.
    """

    objects: int
    bytes: int
    digest: str
    regions: tuple[str, ...] = ()

    @classmethod
    def of(cls, entries: Iterable[tuple[str, int, str]]) -> Self:
        """Of objects in any order: hashes are added up, so however many there are, none is held."""
        count = nbytes = total = 0
        for entry in entries:
            count, nbytes, total = count + 1, nbytes + entry[1], total + hash_of(entry)
        return cls(count, nbytes, _as_digest(total))


def hash_of(value: Any) -> int:
    """128 bits of a value that JSON can hold."""
    return int.from_bytes(hashlib.sha256(json.dumps(value).encode()).digest()[:16])


def _as_digest(total: int) -> str:
    return f"{total % (1 << 128):032x}"


class Source(Protocol):
    """A stored array whose first dimension are the examples.

    Attributes
    ----------
    place : where it is, for people.
    shape, dtype : of the whole array as it is read, after decoding.
    chunks : elements that are read together, along each dimension; None along rows where they are irregular.
    resolution : step of quantised values, else 0.
    """

    @property
    def place(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def chunks(self) -> tuple[int | None, ...]: ...
    @property
    def resolution(self) -> float: ...

    def rows(self, start: int, stop: int) -> Self:
        """The part of the source that some rows need; indices stay those of the whole."""
        ...

    def row_bounds(self) -> NDArray[np.int64]:
        """Where the rows of this part can be cut so that nothing is read twice, both ends included."""
        ...

    def read(self, index: Index) -> Array:
        """Values at a slice along each dimension."""
        ...

    def seams(self, rows: int) -> NDArray[np.int64]:
        """Rows at which ranges of about so many rows begin wherever the ones before end.

        They follow from what is stored there, so that data which come or go elsewhere do not move them.
        """
        ...

    def fingerprint(self, bounds: Sequence[int] = ()) -> Fingerprint:
        """What tells whether the data have changed: all of them, and those of the rows between bounds."""
        ...

    def nbytes(self, block: Sequence[int]) -> int:
        """Memory of a block of some shape, once it is read."""
        ...

    def decode_bytes(self, block: Sequence[int]) -> int:
        """Memory that reading a block of some shape takes at its peak, the result included."""
        ...

    def rechunked(self, chunks: Sequence[int | None]) -> Self:
        """The source as it would be in other chunks (None: as they are), to plan with and not to read from."""
        ...


# -- Zarr ----------------------------------------------------------------------------------------------------------

_CF_ATTRIBUTES = ("scale_factor", "add_offset", "_FillValue", "missing_value", "_Unsigned")
_CHUNKS_IN_FLIGHT = 10


@dataclass(frozen=True)
class ZarrSource:
    """An array of a Zarr group (format 2 or 3), decoded as its CF attributes say.

    A `_FillValue` or `missing_value` marks missing values. The fill value of a Zarr array is a value like any other;
    only in format 2, where xarray keeps `_FillValue` there, does one that is not 0 mark missing values.
    """

    location: Location
    array: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]
    attributes: Mapping[str, Any]
    stored: np.dtype[Any]
    metadata: str
    start: int
    stop: int
    complete: bool

    @classmethod
    def open(cls, location: Location, array: str | None, *, predictions: bool) -> Self:
        """Open an array by its name in a group; without a name, the location is the array, or holds only one.

        Predictions are decoded, and every chunk of theirs must have been written; labels are taken as they are, since
        a chunk of nothing but class 0 may well not be written.
        """
        if not location.is_folder():
            what = "is not a Zarr group or array" if location.exists() else "does not exist"
            raise StorageError(what, str(location), "Check the URI.")
        path = array.strip("/") if array is not None else _only_array(location)
        node = _open_array(location, path)
        source = cls(
            location,
            path,
            node.shape,
            node.dtype,
            node.shards or node.chunks,
            _cf_attributes(node) if predictions else {},
            node.dtype,
            _digest_of(node),
            0,
            node.shape[0] if node.shape else 0,
            predictions,
        )
        decoded = (
            source._decode(np.zeros((0,) * node.ndim, node.dtype)).dtype if node.dtype.kind in "iuf" else node.dtype
        )
        return replace(source, dtype=decoded)

    @property
    def place(self) -> str:
        return str(self.location / self.array) if self.array else str(self.location)

    @property
    def resolution(self) -> float:
        return abs(float(self.attributes.get("scale_factor", 0.0)))

    def rows(self, start: int, stop: int) -> Self:
        return replace(self, start=start, stop=stop)

    def row_bounds(self) -> NDArray[np.int64]:
        step = self.chunks[0]
        inner = np.arange(-(-(self.start + 1) // step) * step, self.stop, step)
        return np.concatenate([[self.start], inner, [self.stop]]).astype(np.int64)

    def read(self, index: Index) -> Array:
        node = _open_planned(self.location, self.array, self.metadata)
        index = (*index, *(slice(None) for _ in node.shape[len(index) :]))
        try:
            values = self.location.attempt(self.array, lambda: np.asarray(node[index]))
        except (StorageError, MemoryError):
            raise
        except Exception as error:  # what a codec raises is not to be foreseen
            raise self._undecodable(node, index, error) from error
        if self.complete:
            self._check_written(node, index, values)
        return self._decode(values)

    def _undecodable(self, node: zarr.Array[Any], index: Index, error: Exception) -> Exception:
        """Which chunk of a block cannot be decoded, looked for one by one; not the data's fault where each one can."""
        for chunk, part in _chunks_in(node, index):
            try:
                self.location.attempt(self.array, partial(node.__getitem__, part))
            except (StorageError, MemoryError):
                raise
            except Exception as cause:
                return InvalidInput(
                    f"chunk {_chunk_key(node, chunk)} cannot be decoded ({type(cause).__name__}: {cause})",
                    self.place,
                    "It is damaged: write it again.",
                )
        return StorageError(f"could not be decoded at first ({type(error).__name__}: {error})", self.place)

    def _check_written(self, node: zarr.Array[Any], index: Index, values: Array) -> None:
        """Refuse what was never written, which reads as the fill value.

        A chunk of nothing but the fill value is not written either by default, as where a class is never predicted;
        so chunks are missing only where there is none of any class. The store is asked where all values say so.
        """
        fill = node.fill_value
        chunks: dict[tuple[int, ...], list[tuple[tuple[int, ...], Index]]] = {}
        for chunk, part in _chunks_in(node, index):
            chunks.setdefault((chunk[0], *chunk[2:]), []).append((chunk, part))
        starts = [s.indices(size)[0] for s, size in zip(index, node.shape, strict=True)]
        for across in chunks.values():
            inside = [
                tuple(slice(s.start - start, s.stop - start) for s, start in zip(part, starts, strict=True))
                for _, part in across
            ]
            if not all(_holds_only(values[part], fill) for part in inside):
                continue
            keys = [_chunk_key(node, chunk) for chunk, _ in across]
            if not any(self.location.holds(f"{self.array}/{key}".strip("/")) for key in keys):
                rows = across[0][1][0]
                raise InvalidInput(
                    f"chunk {keys[0]} (examples {rows.start:,} to {rows.stop - 1:,}) was never written",
                    self.place,
                    f"It reads as the fill value {fill}: write it, or drop these examples.",
                )

    def seams(self, rows: int) -> NDArray[np.int64]:
        return np.empty(0, np.int64)

    def fingerprint(self, bounds: Sequence[int] = ()) -> Fingerprint:
        """Chunks count for the regions whose rows they hold; of the metadata what tells how these are decoded."""
        totals = [0] * max(0, len(bounds) - 1)
        starts, stops = np.asarray(bounds[:-1], np.int64), np.asarray(bounds[1:], np.int64)
        rows = self.chunks[0] if self.chunks else 1

        def count(entry: Entry) -> tuple[str, int, str]:
            found = (entry.path, entry.size, entry.version)
            number = _row_of_chunk(entry.path.removeprefix(f"{self.array}/"))
            if number is not None and totals:
                first = int(np.searchsorted(stops, number * rows, side="right"))
                last = int(np.searchsorted(starts, (number + 1) * rows))
                for region in range(first, last):
                    totals[region] += hash_of(found)
            return found

        whole = Fingerprint.of(map(count, self.location.entries(self.array or None)))
        read = [self.place, self._decoding() if totals else ""]
        regions = (
            _as_digest(total + hash_of([*read, *rows])) for total, rows in zip(totals, pairwise(bounds), strict=True)
        )
        return replace(whole, regions=tuple(regions))

    def _decoding(self) -> str:
        """Digest of the metadata that a region's values follow from: not the length, nor what is said of the array."""
        metadata = _open_planned(self.location, self.array, self.metadata).metadata.to_dict()
        kept = {key: value for key, value in metadata.items() if key not in ("shape", "attributes")}
        return _digest_of_json([kept, self.shape[1:], self.attributes])

    def nbytes(self, block: Sequence[int]) -> int:
        return int(np.prod(block)) * self.dtype.itemsize

    def decode_bytes(self, block: Sequence[int]) -> int:
        result = self.nbytes(block)
        chunk = int(np.prod(self.chunks)) * self.stored.itemsize
        in_flight = min(_CHUNKS_IN_FLIGHT, int(np.prod([-(-b // c) for b, c in zip(block, self.chunks, strict=True)])))
        raw = int(np.prod(block)) * self.stored.itemsize if self.attributes else 0
        return result + raw + 2 * chunk * in_flight

    def rechunked(self, chunks: Sequence[int | None]) -> Self:
        return replace(self, chunks=tuple(wanted or c for wanted, c in zip(chunks, self.chunks, strict=True)))

    def _decode(self, values: Array) -> Array:
        if not self.attributes:
            return values
        dims = [f"d{i}" for i in range(values.ndim)]
        attributes = dict(self.attributes)
        if values.dtype.kind in "iu" and values.dtype.itemsize <= 2:  # float32 holds every such value
            scales = ("scale_factor", "add_offset")
            attributes |= {name: np.float32(attributes[name]) for name in scales if name in attributes}
        stored = xr.Dataset({"values": (dims, values, attributes)})
        return xr.decode_cf(stored)["values"].values


def _chunks_in(node: zarr.Array[Any], index: Index) -> Iterator[tuple[tuple[int, ...], Index]]:
    """The chunks that a slice along each dimension touches, each with the part of it that lies inside."""
    sizes = node.shards or node.chunks
    bounds = [s.indices(size)[:2] for s, size in zip(index, node.shape, strict=True)]
    touched = (range(a // size, -(-b // size)) for (a, b), size in zip(bounds, sizes, strict=True))
    for chunk in product(*touched):
        yield (
            chunk,
            tuple(
                slice(max(a, i * size), min(b, (i + 1) * size))
                for i, (a, b), size in zip(chunk, bounds, sizes, strict=True)
            ),
        )


_CHUNK_KEY = re.compile(r"(?:c[/.])?(\d+)(?:[/.]\d+)*")


def _row_of_chunk(path: str) -> int | None:
    """Number along the rows of the chunk that an object of an array holds; None where it holds none."""
    found = _CHUNK_KEY.fullmatch(path)
    return int(found[1]) if found else None


def _chunk_key(node: zarr.Array[Any], chunk: tuple[int, ...]) -> str:
    return node.metadata.encode_chunk_key(chunk)


def _holds_only(values: Array, fill: Any) -> bool:
    """Whether all values are the fill value; the first tells almost always."""
    if fill != fill:
        return bool(np.isnan(values.flat[0]) and np.isnan(values).all())
    return bool(values.flat[0] == fill and (values == fill).all())


def _cf_attributes(node: zarr.Array[Any]) -> dict[str, Any]:
    attributes = {key: node.attrs[key] for key in _CF_ATTRIBUTES if key in node.attrs}
    fill: Any = attributes.pop("_FillValue", None)
    if fill is None and node.metadata.zarr_format == 2 and node.fill_value:
        fill = node.fill_value
    if isinstance(fill, str):  # as xarray writes floats in format 3
        fill = float(np.frombuffer(base64.b64decode(fill), "<f8")[0])
    return attributes if fill is None or fill != fill else {**attributes, "_FillValue": fill}


def _digest_of(node: zarr.Array[Any]) -> str:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have a Zarr V3 specification")
        return _digest_of_json(node.metadata.to_dict())


def _digest_of_json(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@lru_cache(maxsize=32)
def _open_planned(location: Location, path: str, metadata: str) -> zarr.Array[Any]:
    """The array that a source was made of; refused where another one has taken its place since."""
    node = _open_array(location, path)
    if _digest_of(node) != metadata:
        raise StorageError("was replaced while it was read", str(location / path), "Run again with --fresh.")
    return node


def _open_array(location: Location, path: str) -> zarr.Array[Any]:
    node = _open_node(location, path)
    if not isinstance(node, zarr.Array):
        names = [name for name, _ in node.arrays()]
        raise InvalidConfig(
            f"is a group, not an array; it holds {', '.join(names) or 'no arrays'}",
            str(location / path if path else location),
        )
    return node


def _open_node(location: Location, path: str) -> Any:
    place = location / path if path else location
    with location.errors_of(path):
        store = ZarrObjectStore(location.store, read_only=True)
    try:
        return location.attempt(path, lambda: zarr.open(store, path=path, mode="r"))
    except FileNotFoundError:
        if path == "":
            raise StorageError("is not a Zarr group or array", str(place), "Check the URI.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"has Zarr metadata that cannot be read ({error})", str(place)) from error
    parent, _, name = path.rpartition("/")
    group = _open_node(location, parent)
    above = str(location / parent if parent else location)
    if not isinstance(group, zarr.Group):
        raise InvalidConfig(
            f"is an array, it holds no {name!r}", above, "Leave out 'array:', or name the array itself."
        )
    raise InvalidConfig(f"has no array {name!r}", above, nearest(name, [child for child, _ in group.members()]))


def _only_array(location: Location) -> str:
    node = _open_node(location, "")
    if isinstance(node, zarr.Array):
        return ""
    names = [name for name, _ in node.arrays()]
    if len(names) != 1:
        raise InvalidConfig(
            f"holds {len(names)} arrays ({', '.join(names)})" if names else "holds no array",
            str(location),
            "Name one with 'array:'.",
        )
    return names[0]


# -- Parquet -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowGroup:
    """A row group of a Parquet file: its rows in the whole data set, how many values they hold, and their size."""

    file: str
    version: str
    group: int
    start: int
    stop: int
    nbytes: int
    values: int


@dataclass(frozen=True)
class ParquetSource:
    """One column, a list column, or several columns side by side, of Parquet files in the order of their names."""

    location: Location
    columns: tuple[str, ...]
    groups: tuple[RowGroup, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    files: tuple[tuple[str, int, str], ...]

    resolution = 0.0

    @classmethod
    def open(cls, location: Location, columns: Sequence[str], *, stack: bool) -> Self:
        """Open files by a path, a folder or a pattern in the last part of the path, from their footers only.

        `stack` puts several columns, or one column of lists, side by side as the second dimension.
        """
        folder, files = find_files(location, ".parquet")
        with ThreadPoolExecutor(16) as pool:
            footers = list(pool.map(lambda file: _open_parquet(folder, *file), files))
        groups: list[RowGroup] = []
        row = 0
        for (path, _, version), footer in zip(files, footers, strict=True):
            _check_columns(folder / path, footer, footers[0], files[0][0], columns)
            for number in range(footer.metadata.num_row_groups):
                group = footer.metadata.row_group(number)
                if group.num_rows:
                    parts = [part for name in columns for part in _parts(group, name)]
                    size = sum(part.total_uncompressed_size for part in parts)
                    count = sum(part.num_values for part in parts)
                    groups.append(RowGroup(path, version, number, row, row + group.num_rows, size, count))
                    row += group.num_rows
        values = [footers[0].schema_arrow.field(name).type for name in columns]
        if len(columns) > 1 and (not stack or any(map(_is_list, values))):
            raise InvalidConfig(
                "several columns of lists cannot be joined" if stack else f"{len(columns)} columns where one is needed",
                f"{location} [{', '.join(columns)}]",
                "Name one with 'column:'.",
            )
        shape: tuple[int, ...] = (row,)
        if stack and _is_list(values[0]):
            shape = (row, next(filter(None, (_list_length(footer, columns[0]) for footer in footers)), 0))
            values = [values[0].value_type]
        elif stack:
            shape = (row, len(columns))
        dtype = np.result_type(*map(_numpy_type, values))
        return cls(folder, tuple(columns), tuple(groups), shape, dtype, tuple(files))

    @property
    def place(self) -> str:
        names = sorted({group.file for group in self.groups})
        where = self.location / names[0] if len(names) == 1 else self.location
        shown = ", ".join(self.columns) if len(self.columns) <= 3 else f"{self.columns[0]} … {self.columns[-1]}"
        return f"{where} [{shown}]"

    @property
    def chunks(self) -> tuple[int | None, ...]:
        return (None, *self.shape[1:])

    def rows(self, start: int, stop: int) -> Self:
        first = bisect_right(self.groups, start, key=lambda group: group.stop)
        last = bisect_left(self.groups, stop, key=lambda group: group.start)
        return replace(self, groups=self.groups[first:last], files=())

    def row_bounds(self) -> NDArray[np.int64]:
        return np.array([self.groups[0].start, *(group.stop for group in self.groups)], np.int64)

    def read(self, index: Index) -> Array:
        start, stop, _ = index[0].indices(self.shape[0])
        parts = [
            self._read_group(group)[max(start - group.start, 0) : stop - group.start]
            for group in self.groups_of(start, stop)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def seams(self, rows: int) -> NDArray[np.int64]:
        """Where files begin: every file where they are large, else those chosen by a hash of their names."""
        starts = {group.file: group.start for group in reversed(self.groups)}
        most = max(1, rows * len(starts) // max(1, self.shape[0]))
        every = 1 << most.bit_length() - 1
        return np.array(sorted(start for file, start in starts.items() if hash_of(file) % every == 0), np.int64)

    def fingerprint(self, bounds: Sequence[int] = ()) -> Fingerprint:
        """A range of rows is known by the row groups that it reads, wherever these are in the whole."""
        regions = (_as_digest(hash_of(self._reads(start, stop))) for start, stop in pairwise(bounds))
        return replace(Fingerprint.of(self.files), regions=tuple(regions))

    def _reads(self, start: int, stop: int) -> list[Any]:
        groups = [
            (g.file, g.version, g.group, g.nbytes, max(start - g.start, 0), min(stop, g.stop) - g.start)
            for g in self.rows(start, stop).groups
        ]
        return [self.location.url, self.columns, str(self.dtype), self.shape[1:], groups]

    def nbytes(self, block: Sequence[int]) -> int:
        return int(np.prod(block)) * self.dtype.itemsize

    def decode_bytes(self, block: Sequence[int]) -> int:
        row = int(np.prod(self.shape[1:])) * self.dtype.itemsize
        longest = max((group.stop - group.start for group in self.groups), default=0)
        return 2 * row * max(block[0], longest) + 2 * max((group.nbytes for group in self.groups), default=0)

    def rechunked(self, chunks: Sequence[int | None]) -> Self:
        rows, n = chunks[0] or self.shape[0], self.shape[0]
        nbytes, values = (
            sum(getattr(group, name) for group in self.groups) // n * rows for name in ("nbytes", "values")
        )
        starts = range(0, n, rows)
        groups = (RowGroup("", "", 0, start, min(start + rows, n), nbytes, values) for start in starts)
        return replace(self, groups=tuple(groups))

    def groups_of(self, start: int, stop: int) -> list[RowGroup]:
        """The row groups that hold some rows."""
        return [group for group in self.groups if group.start < stop and group.stop > start]

    def read_table(self, group: RowGroup) -> pa.Table:
        """The columns of a row group; nothing in them is missing."""
        place = str(self.location / group.file)
        with self.location.errors_of(group.file):
            reader = self.location.reader(group.file, group.version)
            try:
                table = pq.ParquetFile(reader).read_row_group(group.group, columns=[*self.columns])
            except StorageError:
                raise
            except (pa.ArrowException, OSError) as error:
                rows, reason = f"rows {group.start:,} to {group.stop - 1:,}", " ".join(str(error).split())
                raise InvalidInput(
                    f"row group {group.group} ({rows}) cannot be decoded: {reason}",
                    place,
                    "The file is damaged: write it again.",
                ) from error
        for name in self.columns:
            if table[name].null_count:
                row = int(np.flatnonzero(table[name].is_null().to_numpy())[0])
                raise InvalidInput(
                    f"{name} is missing (null)", f"{place}, row {group.start + row:,}", "Fill it in, or drop the row."
                )
        return table

    def _read_group(self, group: RowGroup) -> Array:
        table = self.read_table(group)
        if len(self.shape) == 1:
            return _to_numpy(table[self.columns[0]])
        if not _is_list(table[self.columns[0]].type):
            stacked = np.empty((table.num_rows, len(self.columns)), self.dtype)
            for j, name in enumerate(self.columns):
                stacked[:, j] = _to_numpy(table[name])
            return stacked
        return self._unpack_lists(table[self.columns[0]], group, str(self.location / group.file))

    def _unpack_lists(self, column: pa.ChunkedArray, group: RowGroup, place: str) -> Array:
        k = self.shape[1]
        parts = []
        row = group.start
        for chunk in column.chunks:
            if not pa.types.is_fixed_size_list(chunk.type):
                lengths = chunk.value_lengths().to_numpy(zero_copy_only=False)
                if (lengths != k).any():
                    bad = int(np.flatnonzero(lengths != k)[0])
                    raise InvalidInput(
                        f"list of {lengths[bad]} values where {k} were expected", f"{place}, row {row + bad:,}"
                    )
            values = chunk.flatten()
            if values.null_count:
                bad = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
                raise InvalidInput(
                    f"{self.columns[0]}[{bad % k}] is missing (null)", f"{place}, row {row + bad // k:,}"
                )
            parts.append(_to_numpy(values).reshape(-1, k))
            row += len(chunk)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def holds_lists_of_any_length(location: Location, column: str) -> bool:
    """Whether a column of Parquet files holds lists that need not be of one length, by the first footer."""
    folder, files = find_files(location, ".parquet")
    schema = _open_parquet(folder, *files[0]).schema_arrow
    if column not in schema.names:
        raise InvalidConfig(f"has no column {column!r}", str(folder / files[0][0]), nearest(column, schema.names))
    value = schema.field(column).type
    return bool(pa.types.is_list(value) or pa.types.is_large_list(value))


def find_files(location: Location, suffix: str) -> tuple[Location, list[tuple[str, int, str]]]:
    """The folder, and name, size and version of each file below it that the location names.

    In a folder these are the files with a suffix.
    """
    if "*" in location.url or "?" in location.url:
        folder, pattern = location.parent, location.name
        if "*" in folder.url or "?" in folder.url:
            raise InvalidConfig("patterns are supported in the last part of a path only", str(location))
    elif location.is_folder():
        folder, pattern = location, f"*{suffix}"
    else:
        folder, pattern = location.parent, glob.escape(location.name)
    found = [
        (entry.path, entry.size, entry.version)
        for entry in folder.entries()
        if fnmatch.fnmatchcase(entry.path if folder == location else entry.path.partition("/")[0], pattern)
        and not any(part.startswith(("_", ".")) for part in entry.path.split("/"))
    ]
    if not found:
        kind = {".parquet": "Parquet", ".csv": "CSV"}[suffix]
        raise StorageError(f"no {kind} files there", str(location), "Check the URI.")
    return folder, sorted(found, key=lambda entry: (_natural(entry[0]), entry[0]))


def _natural(path: str) -> list[tuple[int, str]]:
    """Sort key that puts part.2 before part.10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path)]


@lru_cache(maxsize=256)
def _open_parquet(folder: Location, path: str, size: int, version: str) -> pq.ParquetFile:
    """The footer of a file, of the version that was listed."""
    with _parquet_errors(folder, path):
        return pq.ParquetFile(folder.reader(path, version))


@contextmanager
def _parquet_errors(folder: Location, path: str) -> Iterator[None]:
    with folder.errors_of(path):
        try:
            yield
        except StorageError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise StorageError(f"cannot be read as Parquet: {error}", str(folder / path)) from error


def _check_columns(
    place: Location, footer: pq.ParquetFile, first: pq.ParquetFile, first_path: str, columns: Sequence[str]
) -> None:
    schema, expected = footer.schema_arrow, first.schema_arrow
    for name in columns:
        if name not in schema.names:
            raise InvalidConfig(f"has no column {name!r}", str(place), nearest(name, schema.names))
        if schema.field(name).type != expected.field(name).type:
            raise InvalidInput(
                f"column {name!r} is {schema.field(name).type}, but in {first_path} {expected.field(name).type}",
                str(place),
                "Write all files with one schema.",
            )


def _list_length(footer: pq.ParquetFile, column: str) -> int:
    """Length of the lists of a column, from the counts in the footer."""
    value = footer.schema_arrow.field(column).type
    if pa.types.is_fixed_size_list(value):
        return int(value.list_size)
    for number in range(footer.metadata.num_row_groups):
        group = footer.metadata.row_group(number)
        for part in _parts(group, column):
            if group.num_rows:
                return round(part.num_values / group.num_rows)
    return 0


def _parts(group: pq.RowGroupMetaData, column: str) -> list[pq.ColumnChunkMetaData]:
    """What a row group holds of a column: one part, or several where it is nested. Names may have dots in them."""
    parts = [group.column(i) for i in range(group.num_columns)]
    return [part for part in parts if f"{part.path_in_schema}.".startswith(f"{column}.")]


def _is_list(value: pa.DataType) -> bool:
    return bool(pa.types.is_list(value) or pa.types.is_large_list(value) or pa.types.is_fixed_size_list(value))


def _numpy_type(value: pa.DataType) -> np.dtype[Any]:
    if pa.types.is_dictionary(value):
        value = value.value_type
    try:
        return np.dtype(value.to_pandas_dtype())
    except (NotImplementedError, TypeError):
        return np.dtype(object)


def _to_numpy(values: pa.Array | pa.ChunkedArray) -> Array:
    array: Array = values.to_numpy() if isinstance(values, pa.ChunkedArray) else values.to_numpy(zero_copy_only=False)
    return array


# -- identifiers ---------------------------------------------------------------------------------------------------


def as_ids(values: Array) -> Array:
    """Identifiers as int64 or uint64, or as an object array of str; times in ISO 8601."""
    if values.dtype.kind in "iu":
        return values.astype(f"{values.dtype.kind}8")
    if values.dtype.kind == "M":
        values = np.datetime_as_string(values)
    return np.array([_as_text(value) for value in values.tolist()], dtype=object)


def _as_text(value: object) -> str:
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.hex()
