"""Sources of label sets: Parquet columns of lists that hold the ids of the classes that apply to each row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from labelqa_dask.core.errors import InvalidInput
from labelqa_dask.core.label_sets import LabelSets
from labelqa_dask.storage.location import Location
from labelqa_dask.storage.parquet_source import ParquetFiles, ParquetSource, RowGroup
from labelqa_dask.storage.sources import NO_BOUNDS, Bounds, Fingerprint, Index


@dataclass(frozen=True)
class LabelSetSource:
    """A column of lists of class ids as an (n, k) array of 0 and 1, of which only the ones take memory."""

    parquet: ParquetSource
    k: int

    dtype: ClassVar = LabelSets.dtype
    resolution: ClassVar = 0.0

    @classmethod
    def open(cls, location: Location | ParquetFiles, column: str, k: int) -> Self:
        """Open files by a path, a folder or a pattern, from their footers only."""
        return cls(ParquetSource.open(location, (column,), stack=False), k)

    @property
    def place(self) -> str:
        return self.parquet.place

    @property
    def shape(self) -> tuple[int, ...]:
        return *self.parquet.shape, self.k

    @property
    def chunks(self) -> tuple[int | None, ...]:
        return *self.parquet.chunks, self.k

    def rows(self, start: int, stop: int) -> Self:
        return replace(self, parquet=self.parquet.rows(start, stop))

    def row_bounds(self) -> NDArray[np.int64]:
        return self.parquet.row_bounds()

    def read(self, index: Index) -> Any:
        """Label sets of some rows."""
        start, stop, _ = index[0].indices(self.shape[0])
        parts = [
            self._read_group(group)[max(start - group.start, 0) : stop - group.start]
            for group in self.parquet.groups_of(start, stop)
        ]
        return parts[0] if len(parts) == 1 else LabelSets.joined(parts)

    def seams(self, rows: int) -> NDArray[np.int64]:
        return self.parquet.seams(rows)

    def fingerprint(self, bounds: Bounds = NO_BOUNDS) -> Fingerprint:
        return self.parquet.fingerprint(bounds)

    def nbytes(self, block: Sequence[int]) -> int:
        rows = sum(group.stop - group.start for group in self.parquet.groups)
        values = sum(group.values for group in self.parquet.groups) / max(1, rows)
        return int(block[0] * (8 + 4 * values))

    def decode_bytes(self, block: Sequence[int]) -> int:
        largest = max((group.nbytes + 28 * group.values for group in self.parquet.groups), default=0)
        return 2 * self.nbytes(block) + largest

    def rechunked(self, chunks: Sequence[int | None]) -> Self:
        return replace(self, parquet=self.parquet.rechunked(chunks[:1]))

    def _read_group(self, group: RowGroup) -> LabelSets:
        name = self.parquet.columns[0]
        place = str(self.parquet.location / group.file)
        row = group.start
        parts = []
        for chunk in self.parquet.read_table(group)[name].chunks:
            ids = chunk.flatten()
            starts = np.concatenate([[0], np.cumsum(chunk.value_lengths().to_numpy(zero_copy_only=False))])
            if ids.null_count:
                bad = int(np.flatnonzero(ids.is_null().to_numpy(zero_copy_only=False))[0])
                bad_row = row + int(np.searchsorted(starts, bad, side="right")) - 1
                raise InvalidInput(f"{name} holds a class that is missing (null)", f"{place}, row {bad_row:,}")
            parts.append(LabelSets.of_rows(starts, _as_integers(ids), self.k, row, f"{place} [{name}]"))
            row += len(chunk)
        return LabelSets.joined(parts) if parts else LabelSets.of_lists([], self.k)


def _as_integers(ids: pa.Array) -> NDArray[Any]:
    values: NDArray[Any] = ids.to_numpy(zero_copy_only=False)
    return values
