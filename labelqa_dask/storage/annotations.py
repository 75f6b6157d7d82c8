"""Annotations as they are stored: rows (example, annotator, label) in any order, and a copy grouped by example.

The rows are read in pieces: whole row groups of Parquet files, ranges of bytes of CSV files. The copy is one object
per region of examples.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal, Self, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from labelqa_dask.core.errors import InvalidConfig, InvalidInput, StorageError, nearest
from labelqa_dask.core.kernels import Array
from labelqa_dask.core.ragged import Annotations
from labelqa_dask.storage.digests import digests_of_rows
from labelqa_dask.storage.location import Location
from labelqa_dask.storage.parquet_source import ParquetFiles, ParquetSource, find_files
from labelqa_dask.storage.sinks import parquet_bytes
from labelqa_dask.storage.sources import NO_BOUNDS, Bounds, Fingerprint, Index, as_ids

T = TypeVar("T")
PIECE_ROWS = 1 << 20
PIECE_BYTES = 32 << 20
_HEAD_BYTES = 1 << 16


@dataclass(frozen=True)
class Piece:
    """What one worker reads at a time: a range of rows (Parquet), or of the bytes of a file (CSV)."""

    name: str
    file: str
    start: int
    stop: int


@dataclass(frozen=True)
class AnnotationFiles:
    """Files with a column each for example, annotator and label.

    Attributes
    ----------
    columns : of the example, the annotator and the label
    rows : number of annotations; an estimate for CSV
    names : columns of CSV files, in their order
    sources : the columns of Parquet files
    """

    location: Location
    columns: tuple[str, str, str]
    kind: Literal["parquet", "csv"]
    pieces: tuple[Piece, ...]
    files: tuple[tuple[str, int, str | None], ...]
    rows: int
    names: tuple[str, ...] = ()
    sources: tuple[ParquetSource, ...] = ()

    @classmethod
    def open(cls, location: Location | ParquetFiles, columns: Sequence[str]) -> Self:
        """Open Parquet or CSV files by a path, a folder or a pattern, from their footers or headers only."""
        if len(columns) != 3:
            raise InvalidConfig(
                f"columns names {len(columns)}, but annotations have three",
                str(location),
                "Name those of the example, the annotator and the label, in this order.",
            )
        example, annotator, label = columns
        names = (example, annotator, label)
        if isinstance(location, Location) and ".csv" in location.name:
            return cls._open_csv(location, names)
        sources = tuple(ParquetSource.open(location, (name,), stack=False) for name in names)
        first, labels = sources[0], sources[2]
        if first.shape[0] == 0:
            raise _no_annotations(location)
        if labels.dtype.kind not in "iuf":
            raise _no_class_numbers(labels.place)
        bounds = [0]
        for start, stop in pairwise(first.row_bounds().tolist()):
            if stop - bounds[-1] > PIECE_ROWS and start > bounds[-1]:
                bounds.append(start)
        bounds.append(first.shape[0])
        pieces = [Piece(f"{i:06d}", "", a, b) for i, (a, b) in enumerate(pairwise(bounds))]
        return cls(first.location, names, "parquet", tuple(pieces), first.files, first.shape[0], (), sources)

    @classmethod
    def _open_csv(cls, location: Location, columns: tuple[str, str, str]) -> Self:
        folder, files = find_files(location, ".csv")
        pieces: list[Piece] = []
        rows = 0
        names: list[str] = []
        for path, size, _ in files:
            head = folder.read_range(path, 0, min(size, _HEAD_BYTES))
            header, _, body = head.partition(b"\n")
            found = next(csv.reader([header.decode("utf-8-sig").rstrip("\r")]), [])
            names = names or found
            if found != names:
                raise InvalidInput("has other columns than the first file", str(folder / path))
            for name in columns:
                if name not in found:
                    raise InvalidConfig(f"has no column {name!r}", str(folder / path), nearest(name, found))
            lines = max(1, body.count(b"\n"))
            rows += round((size - len(header)) / max(1, len(body)) * lines)
            for start in range(len(header) + 1, size, PIECE_BYTES):
                pieces.append(Piece(f"{len(pieces):06d}", path, start, min(start + PIECE_BYTES, size)))
        if not pieces:
            raise _no_annotations(location)
        return cls(folder, columns, "csv", tuple(pieces), tuple(files), rows, tuple(names))

    @property
    def place(self) -> str:
        names = sorted({path for path, _, _ in self.files})
        where = self.location / names[0] if len(names) == 1 else self.location
        return f"{where} [{', '.join(self.columns)}]"

    @property
    def piece_rows(self) -> int:
        """The most rows of a piece; an estimate for CSV."""
        longest = max((piece.stop - piece.start for piece in self.pieces), default=0)
        size = sum(size for _, size, _ in self.files)
        return longest if self.kind == "parquet" else -(-longest * self.rows // max(1, size))

    def part(self, piece: Piece) -> Self:
        """What reading one piece needs."""
        sources = tuple(source.rows(piece.start, piece.stop) for source in self.sources)
        return replace(self, pieces=(piece,), files=(), sources=sources)

    def place_of(self, piece: Piece, row: int) -> str:
        """Where the row of a piece is."""
        if self.kind == "parquet":
            return f"row {piece.start + row:,}"
        return f"{self.location / piece.file}, {row + 1:,} lines after byte {piece.start:,}"

    def read(self, piece: Piece, *, names: bool) -> tuple[Array, Array, Array]:
        """Examples, annotators and labels (A,); examples as text, if they are `names`."""
        if self.kind == "csv":
            return self._read_csv(piece, names)
        example, annotator, label = (source.read((slice(piece.start, piece.stop),)) for source in self.sources)
        return example, annotator, _as_labels(label, self.place)

    def _read_csv(self, piece: Piece, names: bool) -> tuple[Array, Array, Array]:
        header = ",".join('"{}"'.format(name.replace('"', '""')) for name in self.names)
        content = f"{header}\n".encode() + self._lines(piece)
        example, annotator, label = self.columns
        types = {example: pa.string() if names else pa.int64(), annotator: pa.string(), label: pa.float64()}
        try:
            table = pyarrow.csv.read_csv(
                io.BytesIO(content),
                convert_options=pyarrow.csv.ConvertOptions(
                    include_columns=[*self.columns], column_types=types, null_values=[""], strings_can_be_null=True
                ),
            )
        except pa.ArrowInvalid as error:
            raise InvalidInput(f"cannot be read as CSV: {error}", self.place_of(piece, 0)) from None
        for name in self.columns:
            if table[name].null_count:
                row = int(np.flatnonzero(table[name].is_null().to_numpy())[0])
                raise InvalidInput(f"{name} is missing", self.place_of(piece, row), "Leave out rows without a label.")
        examples, annotators, labels = (table[name].to_numpy() for name in self.columns)
        return examples, annotators, _as_labels(labels, self.place)

    def _lines(self, piece: Piece) -> bytes:
        """The lines that start within a piece."""
        with self.location.reader(piece.file) as reader:
            reader.seek(piece.start - 1)
            content = bytes(reader.read(piece.stop - piece.start + 1))
            content = content[content.find(b"\n") + 1 :] if b"\n" in content else b""
            while content and not content.endswith(b"\n"):
                more = bytes(reader.read(_HEAD_BYTES))
                if not more:
                    break
                end = more.find(b"\n")
                content += more if end < 0 else more[: end + 1]
        return content


IDS = "annotators.parquet"


@dataclass(frozen=True)
class GroupedCopy:
    """A copy of annotations grouped by example, one object per region, and what the annotators are called.

    `basis` is a digest of what it was made of: what a process keeps of one copy is not taken for another's.
    """

    location: Location
    basis: str

    @staticmethod
    def part(start: int) -> str:
        """The object of the region that starts at an example."""
        return f"part-{start:012d}.npz"

    @property
    def ids(self) -> Array:
        """Identifiers of annotators, in ascending order, as int64, uint64 or str; read once in a process."""
        return _ids(self)

    def read(self, start: int) -> Annotations:
        """The annotations of the region that starts at an example."""
        return _read_part(self, start)

    def decoded(self, path: str, decode: Callable[[bytes], T]) -> T:
        """What an object holds."""
        content = self.location.read(path)
        try:
            return decode(content)
        except Exception as error:  # what a damaged file raises is not to be foreseen
            place, mend = str(self.location / path), "Run the same command again: it is made anew."
            raise StorageError(f"is damaged ({error})", place, mend) from error


def part_bytes(annotations: Annotations) -> bytes:
    """Annotations of a region as they are stored."""
    buffer = io.BytesIO()
    np.savez(buffer, starts=annotations.starts, annotator=annotations.annotator, label=annotations.label)
    return buffer.getvalue()


def ids_bytes(ids: Array | pa.Array) -> bytes:
    """Identifiers of annotators as they are stored."""
    return parquet_bytes(pa.table({"annotator": pa.array(ids)}))


def read_ids(content: bytes) -> pa.Array:
    """Identifiers of annotators that were stored."""
    return pq.read_table(io.BytesIO(content))["annotator"].combine_chunks()


@dataclass(frozen=True)
class AnnotationsSource:
    """Annotations by example: a `Source` whose values are `Annotations`, read from a grouped copy.

    Attributes
    ----------
    files : as they are stored
    examples : how many there are in all
    copy : the grouped copy; None before it is made
    start : first example of the region whose part of the copy is read
    """

    files: AnnotationFiles
    examples: int
    copy: GroupedCopy | None = None
    start: int = 0

    resolution = 0.0

    @property
    def place(self) -> str:
        return self.files.place

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.examples,)

    @property
    def dtype(self) -> np.dtype[Any]:
        """As many bytes as the annotations of an example take on average."""
        return np.dtype(f"V{8 + 8 * -(-self.files.rows // max(1, self.examples))}")

    @property
    def chunks(self) -> tuple[int | None, ...]:
        return (None,)

    def rows(self, start: int, stop: int) -> Self:
        return replace(self, files=replace(self.files, pieces=(), files=(), sources=()), start=start)

    def row_bounds(self) -> NDArray[np.int64]:
        return np.array([0, self.examples], np.int64)

    def read(self, index: Index) -> Any:
        assert self.copy is not None
        start, stop, _ = index[0].indices(self.examples)
        return self.copy.read(self.start)[start - self.start : stop - self.start]

    def seams(self, rows: int) -> NDArray[np.int64]:
        return np.empty(0, np.int64)

    def fingerprint(self, bounds: Bounds = NO_BOUNDS) -> Fingerprint:
        """Any annotation may be of any example, so each range of rows depends on all of them."""
        whole = Fingerprint.of(self.files.files)
        return replace(whole, regions=digests_of_rows([bounds[:-1], bounds[1:]], whole.digest))

    def nbytes(self, block: Sequence[int]) -> int:
        return block[0] * self.dtype.itemsize

    def decode_bytes(self, block: Sequence[int]) -> int:
        return 3 * block[0] * self.dtype.itemsize

    def rechunked(self, chunks: Sequence[int | None]) -> Self:
        return self


@lru_cache(maxsize=4)
def _ids(copy: GroupedCopy) -> Array:
    return copy.decoded(IDS, lambda content: as_ids(read_ids(content).to_numpy(zero_copy_only=False)))


@lru_cache(maxsize=2)
def _read_part(copy: GroupedCopy, start: int) -> Annotations:
    def decode(content: bytes) -> tuple[Array, Array, Array]:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return arrays["starts"], arrays["annotator"], arrays["label"]

    return Annotations(*copy.decoded(copy.part(start), decode), copy.ids)


def _as_labels(values: Array, place: str) -> NDArray[np.int64]:
    if values.dtype.kind in "iu":
        return values.astype(np.int64)
    if values.dtype.kind != "f" or not (np.isfinite(values) & (values == np.floor(values))).all():
        raise _no_class_numbers(place)
    return values.astype(np.int64)


def _no_class_numbers(place: str) -> InvalidInput:
    return InvalidInput("labels must be class numbers 0..k-1", place, "Map each class name to its number.")


def _no_annotations(location: Location | ParquetFiles) -> InvalidInput:
    return InvalidInput("holds no annotations", str(location))
