"""Columns of Parquet files as sources, cut by their row groups."""

from __future__ import annotations

import fnmatch
import glob
import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from labelqa_dask.core.errors import InvalidConfig, InvalidInput, StorageError, nearest
from labelqa_dask.core.kernels import Array
from labelqa_dask.storage.digests import hash_of, stacked
from labelqa_dask.storage.location import Location
from labelqa_dask.storage.sources import NO_BOUNDS, Bounds, Fingerprint, Index


@dataclass(frozen=True)
class ParquetFiles:
    """Parquet files that are one data set, in the order of their rows.

    Attributes
    ----------
    place : what they are, for people
    folder, files : where they are; path, size and version of each, None where a file is never written again
    refused : columns whose values cannot be told from the files, and why
    version : of the table whose log names them
    """

    place: str
    folder: Location
    files: tuple[tuple[str, int, str | None], ...]
    refused: Mapping[str, str] = field(default_factory=dict)
    version: int | None = None

    def __str__(self) -> str:
        return self.place


@dataclass(frozen=True)
class RowGroup:
    """A row group of a Parquet file: its rows in the whole data set, how many values they hold, and their size."""

    file: str
    version: str | None
    group: int
    start: int
    stop: int
    nbytes: int
    values: int


@dataclass(frozen=True)
class ParquetSource:
    """One column, a list column, or several columns side by side, of Parquet files in their order."""

    location: Location
    columns: tuple[str, ...]
    groups: tuple[RowGroup, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    files: tuple[tuple[str, int, str | None], ...]

    resolution = 0.0

    @classmethod
    def open(cls, location: Location | ParquetFiles, columns: Sequence[str], *, stack: bool) -> Self:
        """Open files by a path, a folder or a pattern in the last part of the path, from their footers only.

        `stack` puts several columns, or one column of lists, side by side as the second dimension.
        """
        found = _find_parquet(location)
        folder, files = found.folder, found.files
        for name in columns:
            if name in found.refused:
                raise InvalidConfig(f"column {name!r} {found.refused[name]}", str(location), "Name another one.")
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
        return cls(folder, tuple(columns), tuple(groups), shape, dtype, files)

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

    def fingerprint(self, bounds: Bounds = NO_BOUNDS) -> Fingerprint:
        """A range of rows is known by the row groups that it reads, wherever these are in the whole."""
        regions = (hash_of(self._reads(start, stop)) for start, stop in pairwise(map(int, bounds)))
        return replace(Fingerprint.of(self.files), regions=stacked(regions))

    def _reads(self, start: int, stop: int) -> list[Any]:
        groups = [
            (g.file, g.version, g.group, g.nbytes, max(start - g.start, 0), min(stop, g.stop) - g.start)
            for g in self.rows(start, stop).groups
        ]
        return [self.location.url, self.columns, str(self.dtype), self.shape[1:], groups]

    def nbytes(self, block: Sequence[int]) -> int:
        return math.prod(block) * self.dtype.itemsize

    def decode_bytes(self, block: Sequence[int]) -> int:
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
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
            try:  # by this thread: a worker has as many as it was given
                table = pq.ParquetFile(reader).read_row_group(group.group, columns=[*self.columns], use_threads=False)
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


def holds_lists_of_any_length(location: Location | ParquetFiles, column: str) -> bool:
    """Whether a column of Parquet files holds lists that need not be of one length, by the first footer.

    In a table no list need be, whatever the writer of a file knew.
    """
    found = _find_parquet(location)
    schema = _open_parquet(found.folder, *found.files[0]).schema_arrow
    if column not in schema.names:
        place = str(found.folder / found.files[0][0])
        raise InvalidConfig(f"has no column {column!r}", place, nearest(column, schema.names))
    value = schema.field(column).type
    return _is_list(value) and (found.version is not None or not pa.types.is_fixed_size_list(value))


def _find_parquet(location: Location | ParquetFiles) -> ParquetFiles:
    if isinstance(location, ParquetFiles):
        return location
    folder, files = find_files(location, ".parquet")
    return ParquetFiles(str(location), folder, tuple(files))


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
    if pattern != glob.escape(location.name) and (folder / "_delta_log").is_folder():
        raise InvalidConfig("is a Delta table, not all of whose files are its rows", str(folder), "Add format: delta.")
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
def _open_parquet(folder: Location, path: str, size: int, version: str | None) -> pq.ParquetFile:
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
        if _kind(schema.field(name).type) != _kind(expected.field(name).type):
            raise InvalidInput(
                f"column {name!r} is {schema.field(name).type}, but in {first_path} {expected.field(name).type}",
                str(place),
                "Write all files with one schema.",
            )


def _kind(value: pa.DataType) -> Any:
    """What a type holds, however Arrow lays it out, in which the writers of one table differ."""
    if pa.types.is_dictionary(value):
        value = value.value_type
    if _is_list(value):
        return "list", _kind(value.value_type)
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return "text" if any(is_text(value) for is_text in texts) else value


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
