"""Tables of a data lake, as inputs and as outputs: which Parquet files one consists of, at a version.

Data files are never written again, so the log's word is enough: their names and sizes tell whether data have changed,
and nothing is listed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from labelqa_dask.storage.parquet_source import ParquetFiles

APP = "labelqa-dask"
"""What the versions of an output are known by in a table's log."""


@dataclass(frozen=True)
class Part:
    """A file of scores that becomes part of a table: its path below the output, its size, and its rows."""

    path: str
    size: int
    start: int
    stop: int


class Table(Protocol):
    """A table, wherever its log is."""

    def files(self, version: int | None) -> ParquetFiles:
        """The files of a version, or of the newest, in the order in which they were added.

        Raises
        ------
        InvalidConfig, InvalidInput, StorageError
            Where there is none, and where its files alone do not tell its rows.
        """
        ...

    def published(self) -> int | None:
        """Number of the newest version of the output that the table has; None where there is no table yet.

        Raises
        ------
        InvalidConfig
            For a table that holds anything else.
        """
        ...

    def publish(self, number: int, schema: pa.Schema, parts: Sequence[Part]) -> None:
        """Make some files all that the table holds, in one commit that is known by the number of the version."""
        ...
