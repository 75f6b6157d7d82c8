"""CSV files into Parquet files that an audit reads as they are.

A plain file is cut into ranges of bytes that are worked on at once; each range becomes one part with one row group.
That is exact as long as no line ends inside quotes, which each range checks; a file where one does, and a compressed
file, is read from its beginning to its end by one worker, piece by piece.
"""

from __future__ import annotations

import csv
import fnmatch
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import obstore
import pyarrow as pa
import pyarrow.compute as pc
from distributed import Client
from numpy.typing import NDArray
from pyarrow import csv as pacsv

from labelqa_dask.core.errors import InvalidConfig, InvalidInput, StorageError
from labelqa_dask.storage.lease import holding
from labelqa_dask.storage.location import Entry, Location, MissingObject, RangeReader
from labelqa_dask.storage.record import Version, dump_json, manifest_digest
from labelqa_dask.storage.sinks import parquet_bytes
from pipelines.imports.columns import Asked, Columns, choose_columns, whole_numbers
from pipelines.imports.work import (
    Demand,
    Misfit,
    list_misfits,
    record_of,
    refuse,
)
from pipelines.plan import Resources
from pipelines.regions import Listener
from pipelines.work import digest_of, forget, work_through

MARKER = "_labelqa_import.json"
METADATA = b"labelqa_import"
_RANGE_BYTES = 32 << 20
_SAMPLE_BYTES = 1 << 20
_BUFFER_BYTES = 8 << 20
_DELIMITERS = ",;\t|"
_CODECS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}
_BOM = b"\xef\xbb\xbf"
_BYTES_PER_CSV_BYTE = 8


@dataclass(frozen=True)
class CsvFile:
    """A file: where it is, how it is written, and where its rows begin."""

    folder: Location
    entry: Entry
    names: tuple[str, ...]
    delimiter: str
    start: int

    @property
    def place(self) -> str:
        return str(self.folder / self.entry.path)

    @property
    def codec(self) -> str | None:
        return _codec(self.entry.path)

    def key(self) -> list[Any]:
        """What tells whether it has changed."""
        return [self.folder.url, self.entry.path, self.entry.size, self.entry.version]


@dataclass(frozen=True)
class Tables:
    """What is to be imported: files with the same columns, and which of those are what."""

    files: tuple[CsvFile, ...]
    columns: Columns
    left_out: tuple[str, ...]
    out: Location
    overwrite: bool

    @property
    def digest(self) -> str:
        """What the import would be made of, and how."""
        return digest_of([file.key() for file in self.files], asdict(self.columns))


@dataclass(frozen=True)
class ImportedTable:
    """What an import came to."""

    out: Location
    rows: int
    columns: Columns
    left_out: tuple[str, ...]
    unchanged: bool = False


def look_at(paths: Sequence[Location], out: Location, asked: Asked, overwrite: bool) -> Tables:
    """Find the files, and tell from the beginning of the first which column is what.

    Raises
    ------
    InvalidConfig, InvalidInput, StorageError
        For a file that is missing or has not the columns of the first, and where it cannot be told what is what.
    """
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(_open, [file for path in paths for file in _matching(path)]))
    misfits = [problem for problem in found if isinstance(problem, Misfit)]
    if misfits:
        raise refuse(out, misfits, "Mend them or leave them out.")
    files = [file for file in found if isinstance(file, CsvFile)]
    columns = choose_columns(_sample(files[0]), asked)
    lacking = [
        Misfit(file.place, f"has no column {', '.join(sorted(set(columns.kept) - set(file.names)))}")
        for file in files
        if not set(columns.kept) <= set(file.names)
    ]
    if lacking:
        raise refuse(out, lacking, f"The columns are those of {files[0].place}.")
    left_out = tuple(name for name in files[0].names if name not in columns.kept)
    return Tables(tuple(files), columns, left_out, out, overwrite)


def import_tables(tables: Tables, client: Client, resources: Resources, listener: Listener) -> ImportedTable:
    """Convert the files into a folder of Parquet files, or finish a conversion that was interrupted.

    Raises
    ------
    InvalidInput
        Listing the files with rows that do not fit. Nothing is published then; what was finished is kept.
    InvalidConfig
        Where the output is something else.
    """
    out, record = tables.out, record_of(tables.out)
    found = _look_up(out)
    if found is not None and found["digest"] == tables.digest:
        return ImportedTable(out, found["rows"], _columns_of(found), tables.left_out, unchanged=True)
    if found is not None and not tables.overwrite:
        raise InvalidConfig(
            "holds an import of other files, or with other settings", str(out), "Add --overwrite to replace it."
        )
    demand = Demand(resources, _RANGE_BYTES * _BYTES_PER_CSV_BYTE)
    demand.check("pieces of a CSV file")
    with holding(record.location) as lease:
        columns, parts = _convert_all(tables, record, client, demand, listener)
        lease.check()
        rows = sum(rows for _, rows in parts)
        if not rows:
            raise InvalidInput("hold no rows", ", ".join(file.place for file in tables.files[:3]), "Check the files.")
        content = {"digest": tables.digest, "rows": rows, "columns": asdict(columns)}
        _publish(record, out, [part for part, rows in parts if rows], content)
        list_misfits(out, [])
    record.location.delete()
    return ImportedTable(out, rows, columns, tables.left_out)


# -- looking at files ----------------------------------------------------------------------------------------------


def _matching(path: Location) -> list[Location]:
    """The files that a path names, which may be a pattern in its last part."""
    if "*" not in path.name and "?" not in path.name:
        return [path]
    found = [entry.path for entry in path.parent.entries() if fnmatch.fnmatchcase(entry.path, path.name)]
    if not found:
        raise StorageError("no files are named so", str(path), "Check the path.")
    return [path.parent / name for name in sorted(name for name in found if "/" not in name)]


def _open(path: Location) -> CsvFile | Misfit:
    """A file with its header, or why it cannot be read."""
    folder = path.parent
    if path.name.endswith((".xz", ".zip")):
        return Misfit(str(path), "is compressed in a way that is not supported: use .gz, .bz2, .zst or .lz4")
    try:
        with folder.errors_of(path.name):
            found = obstore.head(folder.store, path.name)
    except MissingObject:
        return Misfit(str(path), "does not exist")
    entry = Entry(path.name, found["size"], found["e_tag"] or f"{found['last_modified'].timestamp()}")
    file = CsvFile(folder, entry, (), ",", 0)
    try:
        head = _head(file)
        end = _last_line(head, first=True)
        line = head.removeprefix(_BOM)[: end - (len(_BOM) if head.startswith(_BOM) else 0)].decode()
    except UnicodeDecodeError:
        return Misfit(file.place, "is not UTF-8 text: convert it first (iconv -t utf-8)")
    except (pa.ArrowException, OSError, EOFError) as error:
        if isinstance(error, StorageError):
            raise
        return Misfit(file.place, f"cannot be read: {error}")
    delimiter = max(_DELIMITERS, key=line.count)
    names = tuple(name.strip() for name in next(csv.reader(io.StringIO(line), delimiter=delimiter), []))
    if len(names) < 2 or any(re.fullmatch(r"[-+]?\d*\.?\d+(e[-+]?\d+)?", name, re.IGNORECASE) for name in names):
        return Misfit(file.place, "has no line of column names at its beginning")
    if len(set(names)) < len(names):
        return Misfit(file.place, "has two columns of one name")
    return replace(file, names=names, delimiter=delimiter, start=end)


def _codec(path: str) -> str | None:
    return next((codec for ending, codec in _CODECS.items() if path.endswith(ending)), None)


def _stream(file: CsvFile) -> Any:
    """The file's text from its beginning, fetched in large pieces."""
    raw = pa.BufferedInputStream(
        pa.PythonFile(RangeReader(file.folder, file.entry.path, file.entry.size), "r"), _BUFFER_BYTES
    )
    return pa.CompressedInputStream(raw, file.codec) if file.codec else raw


def _head(file: CsvFile) -> bytes:
    with _stream(file) as stream:
        return bytes(stream.read(_SAMPLE_BYTES))


def _last_line(content: bytes, *, first: bool = False) -> int:
    """Where the last complete line ends, or the first; a line does not end inside quotes."""
    values = np.frombuffer(content, np.uint8)
    ends = np.flatnonzero(values == 10)
    outside = ends[np.searchsorted(np.flatnonzero(values == 34), ends) % 2 == 0]
    return len(content) if not len(outside) else int(outside[0 if first else -1]) + 1


def _sample(file: CsvFile) -> pa.Table:
    """The first rows, as text."""
    content = _head(file)
    stop = _last_line(content) if len(content) == _SAMPLE_BYTES else len(content)
    if stop <= file.start:
        raise InvalidInput("holds no rows", file.place, "Check the file.")
    try:
        return _parse(file, content[file.start : stop], dict.fromkeys(file.names, pa.string()))
    except pa.ArrowInvalid as error:
        raise InvalidInput(f"cannot be read as CSV: {error}", file.place) from None


def _parse(file: CsvFile, content: bytes, types: Mapping[str, pa.DataType]) -> pa.Table:
    return pacsv.read_csv(pa.BufferReader(content), *_options(file, types, len(content) + 1))


def _options(file: CsvFile, types: Mapping[str, pa.DataType], block_bytes: int) -> tuple[Any, Any, Any]:
    return (
        pacsv.ReadOptions(column_names=[*file.names], use_threads=False, block_size=block_bytes),
        pacsv.ParseOptions(delimiter=file.delimiter, newlines_in_values=True),
        pacsv.ConvertOptions(column_types=dict(types), include_columns=[*types]),
    )


# -- conversion ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TableState:
    """What came of a piece of a file.

    Attributes
    ----------
    rows : (m,) rows of each part that was written.
    problem : why a row does not fit; empty where all do.
    problem_row : which one, counted from the piece's first; -1 where that is not known.
    whole : whether the file can only be read from its beginning, as lines end inside quotes.
    text_ids : whether an identifier is not a whole number.
    """

    rows: NDArray[np.int64]
    problem: str = ""
    problem_row: int = -1
    whole: bool = False
    text_ids: bool = False


@dataclass(frozen=True)
class TableJob:
    """A range of bytes of a file, or all of it in blocks of some bytes, to be converted."""

    number: int
    piece: int
    file: CsvFile
    start: int
    stop: int
    whole: bool
    block_bytes: int
    columns: Columns
    record: Version

    @property
    def name(self) -> str:
        return f"convert-{self.number:05d}-{self.piece:06d}"

    @property
    def digest(self) -> str:
        return digest_of(self.file.key(), self.start, self.stop, self.whole, self.block_bytes, asdict(self.columns))

    @property
    def units(self) -> int:
        return 1

    @property
    def nbytes(self) -> int:
        return self.stop - self.start

    def part(self, number: int) -> str:
        """Name of a part; parts sort in the order of the rows."""
        return f"part-{self.number:05d}-{number if self.whole else self.piece:06d}.parquet"


class _BadRow(Exception):
    """A row that does not fit: why, and which one."""

    def __init__(self, why: str, row: int) -> None:
        super().__init__(why, row)
        self.why, self.row = why, row


class _TextIds(Exception):
    """Identifiers that are not whole numbers."""


def convert(job: TableJob) -> TableState:
    """Write the parts of a piece of a file."""
    written: list[int] = []
    none = np.zeros(0, np.int64)
    try:
        for table in _tables(job):
            part = _convert_table(table, job.columns)
            (job.record.location / "parts").write(job.part(len(written)), parquet_bytes(part))
            written.append(part.num_rows)
    except _LinesInsideQuotes:
        return TableState(none, whole=True)
    except _TextIds:
        return TableState(none, text_ids=True)
    except _BadRow as bad:
        return TableState(none, bad.why, sum(written) + bad.row)
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        why, row = _explained(str(error), job.file)
        return TableState(none, why, -1 if written else row)
    return TableState(np.array(written, np.int64))


class _LinesInsideQuotes(Exception):
    """A range of lines some of which end inside quotes."""


def _tables(job: TableJob) -> Iterator[pa.Table]:
    types = {name: pa.string() for name in job.columns.kept} | dict.fromkeys(job.columns.numbers, pa.float64())
    if not job.whole:
        content = _read_lines(job)
        if _ends_inside_quotes(content):
            raise _LinesInsideQuotes
        if content.strip():
            yield _parse(job.file, content, types)
        return
    with _stream(job.file) as stream:
        stream.read(job.file.start)
        try:
            reader = pacsv.open_csv(stream, *_options(job.file, types, job.block_bytes))
        except pa.ArrowInvalid as error:
            if "Empty CSV file" in str(error):
                return
            raise
        for batch in reader:
            if batch.num_rows:
                yield pa.Table.from_batches([batch])


def _read_lines(job: TableJob) -> bytes:
    """The lines that begin in a range of bytes."""
    reader = RangeReader(job.file.folder, job.file.entry.path, job.file.entry.size)
    first = job.start > job.file.start
    reader.seek(job.start - first)
    content = bytes(reader.read(job.stop - job.start + first))
    if first:
        start = content.find(b"\n") + 1
        content = content[start:] if start else b""
    while content and not content.endswith(b"\n"):
        more = bytes(reader.read(_SAMPLE_BYTES))
        if not more:
            break
        end = more.find(b"\n") + 1
        content += more[:end] if end else more
    return content


def _ends_inside_quotes(content: bytes) -> bool:
    if b'"' not in content:
        return False
    values = np.frombuffer(content, np.uint8)
    before = np.searchsorted(np.flatnonzero(values == 34), np.flatnonzero(values == 10))
    return bool((before % 2).any())


def _convert_table(table: pa.Table, columns: Columns) -> pa.Table:
    """Labels as class ids, numbers as float64, identifiers as int64 or text."""
    for name in columns.numbers:
        if table[name].null_count:
            raise _BadRow(f"has no {name}", _first(pc.is_null(table[name])))
    converted = {name: table[name] for name in columns.kept}
    if columns.probabilities:
        converted[columns.label] = _class_ids(table[columns.label], columns)
    if columns.id and columns.integer_ids:
        numbers = whole_numbers(table[columns.id])
        if numbers is None:
            raise _TextIds
        converted[columns.id] = numbers
    return pa.table(converted).replace_schema_metadata({METADATA: json.dumps(asdict(columns))})


def _class_ids(labels: pa.ChunkedArray, columns: Columns) -> NDArray[np.int64]:
    encoded = labels.combine_chunks().dictionary_encode()
    known = columns.class_ids()
    ids = np.array([known.get(value.strip(), -1) for value in encoded.dictionary.to_pylist()], np.int64)
    found = ids[encoded.indices.to_numpy(zero_copy_only=False)]
    if (found < 0).any():
        row = int(np.flatnonzero(found < 0)[0])
        said = f"{columns.label} {labels[row].as_py()!r}"
        shown = f"{', '.join(columns.classes[:5])}{', …' if len(columns.classes) > 5 else ''}"
        raise _BadRow(f"has {said}, which is none of {shown}", row)
    return found


def _first(mask: pa.ChunkedArray) -> int:
    return int(np.flatnonzero(mask.to_numpy())[0])


def _explained(text: str, file: CsvFile) -> tuple[str, int]:
    """What pyarrow says about a row that it cannot read, and which row it says it is."""
    row, column = re.search(r"Row #(\d+): ", text), re.search(r"In CSV column #(\d+): ", text)
    name = file.names[int(column[1])] if column else ""
    value = re.search(r"conversion error to double: invalid value '(.*)'", text, re.DOTALL)
    plain = re.sub(r"In CSV column #\d+: |Row #\d+: |CSV (parse|conversion) error(: | to )?", "", text)
    why = f"has {name} {value[1][:100]!r}, which is no number" if value else f"cannot be read: {name} {plain[:300]}"
    return " ".join(why.split()), int(row[1]) - 1 if row else -1


def _convert_all(
    tables: Tables, record: Version, client: Client, demand: Demand, listener: Listener
) -> tuple[Columns, list[tuple[str, int]]]:
    """Every part with its number of rows, and the columns; how files are read is changed where that turns out wrong."""
    columns = tables.columns
    whole = {number for number, file in enumerate(tables.files) if file.codec}
    while True:
        planned = {"columns": asdict(columns)}
        planned["digest"] = manifest_digest(planned)  # type: ignore[assignment]
        begun = record.manifest()
        if begun is None or begun["digest"] != planned["digest"]:
            record.write_manifest(planned)
            forget(record, "convert-")
            (record.location / "parts").delete()
        jobs = [job for number in range(len(tables.files)) for job in _jobs(tables, number, number in whole, columns)]
        found = work_through("convert", "pieces", jobs, convert, TableState, client, demand.worker_bytes, listener)
        states = {(job.number, job.piece): (job, state) for job, state in found}
        more = {number for (number, _), (_, state) in states.items() if state.whole}
        text_ids = any(state.text_ids for _, state in states.values())
        if not more and not text_ids:
            break
        whole |= more
        columns = replace(columns, integer_ids=columns.integer_ids and not text_ids)
    ordered = [states[key] for key in sorted(states)]
    misfits = list(_misfits(ordered))
    if misfits:
        raise refuse(tables.out, misfits, "Mend them and run again; what is finished is kept.")
    parts = [(job.part(i), int(rows)) for job, state in ordered for i, rows in enumerate(state.rows)]
    return columns, parts


def _jobs(tables: Tables, number: int, whole: bool, columns: Columns) -> Iterator[TableJob]:
    file, record = tables.files[number], record_of(tables.out)
    step = file.entry.size if whole else _RANGE_BYTES
    for piece, start in enumerate(range(0 if whole else file.start, max(file.entry.size, 1), step)):
        stop = min(start + step, file.entry.size)
        yield TableJob(number, piece, file, start, stop, whole, _RANGE_BYTES, columns, record)


def _misfits(states: Sequence[tuple[TableJob, TableState]]) -> Iterator[Misfit]:
    """One for each file: its first row that does not fit, counted from the first below the header."""
    before: dict[int, int | None] = {}
    for job, state in states:
        rows = before.get(job.number, 0)
        if state.problem:
            at = f"row {rows + state.problem_row + 1:,} " if rows is not None and state.problem_row >= 0 else ""
            if job.number not in before or before[job.number] is not None:
                yield Misfit(job.file.place, f"{at}{state.problem}")
            before[job.number] = None
        elif rows is not None:
            before[job.number] = rows + int(state.rows.sum())


# -- publishing ----------------------------------------------------------------------------------------------------


def _look_up(out: Location) -> dict[str, Any] | None:
    """What an import has published there; refuses an output that no import has written."""
    content = out.read_if_exists(MARKER) if out.is_folder() else None
    if content is None:
        if out.exists() and record_of(out).manifest() is None:
            raise InvalidConfig("exists, and is not what an import wrote", str(out), "Choose another output.")
        return None
    found: dict[str, Any] = json.loads(content)
    return found


def _columns_of(found: Mapping[str, Any]) -> Columns:
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in found["columns"].items()}
    return Columns(**values)


def _publish(record: Version, out: Location, parts: Sequence[str], content: Mapping[str, Any]) -> None:
    """Move the parts to the output: on a disk all at once; else one by one, and last what says that they are there."""
    staged = record.location / "parts"
    stale = {entry.path for entry in staged.entries()} - set(parts)
    for path in stale:
        staged.delete_object(path)
    if out.exists():
        out.delete_object(MARKER)
        out.delete()
    if staged.local_path and out.local_path:
        staged.write(MARKER, dump_json(content))
        os.rename(staged.local_path, out.local_path)
        return
    parent = out.parent
    for part in parts:
        with parent.errors_of(f"{out.name}/{part}"):
            obstore.copy(parent.store, f"{record.location.name}/parts/{part}", f"{out.name}/{part}")
    out.write(MARKER, dump_json(content))
