"""Parquet columns of class ids as label sets: the rows that are asked for, whatever groups and files they lie in."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from labelqa_dask.core.errors import InvalidConfig, InvalidInput
from labelqa_dask.core.label_sets import LabelSets
from labelqa_dask.storage.label_sets import LabelSetSource
from labelqa_dask.storage.location import Location
from labelqa_dask.storage.parquet_source import holds_lists_of_any_length

K = 7
ROWS = [sorted(np.random.default_rng(i).choice(K, i % 4, replace=False).tolist()) for i in range(23)]


def store(folder: Location, rows: list[Any], value: pa.DataType, start: int = 0) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"y": pa.array(rows, value)}), buffer, row_group_size=4)
    folder.write(f"part-{start:03d}.parquet", buffer.getvalue())


@pytest.fixture(params=[pa.list_(pa.int64()), pa.list_(pa.uint8()), pa.large_list(pa.int32())], ids=str)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> LabelSetSource:
    location = Location.parse(tmp_path)
    store(location, ROWS[:9], request.param, 0)
    store(location, ROWS[9:], request.param, 9)
    return LabelSetSource.open(location, "y", K)


def test_it_is_an_array_of_0_and_1_of_all_rows(source: LabelSetSource) -> None:
    assert (source.shape, source.dtype, source.chunks) == ((23, K), np.uint8, (None, K))
    assert source.row_bounds().tolist() == [0, 4, 8, 9, 13, 17, 21, 23]


def test_any_rows_are_read(source: LabelSetSource) -> None:
    for start in range(23):
        for stop in range(start + 1, 24):
            part = pickle.loads(pickle.dumps(source.rows(start, stop)))
            found = part.read((slice(start, stop), slice(None)))
            assert isinstance(found, LabelSets)
            assert [np.flatnonzero(row).tolist() for row in np.asarray(found)] == ROWS[start:stop]


def test_memory_goes_with_the_number_of_labels_not_of_classes(source: LabelSetSource) -> None:
    wide = LabelSetSource(source.parquet, 1_000_000)
    read = wide.read((slice(0, 23), slice(None)))
    assert read.shape == (23, 1_000_000)
    assert read.nbytes <= wide.nbytes(read.shape) + 64 <= 600
    assert wide.decode_bytes(read.shape) < 5000


def test_bad_lists_are_named_by_file_and_row(tmp_path: Path) -> None:
    location = Location.parse(tmp_path)
    store(location, ROWS[:9], pa.list_(pa.int64()))
    store(location, [[1], [K]], pa.list_(pa.int64()), 9)
    with pytest.raises(InvalidInput, match=rf"part-009\.parquet \[y\], example 10: class {K} is outside 0\.\.6"):
        LabelSetSource.open(location, "y", K).read((slice(0, 11), slice(None)))
    store(location, [None, [1]], pa.list_(pa.int64()), 9)
    with pytest.raises(InvalidInput, match=r"part-009\.parquet, row 9: y is missing \(null\)"):
        LabelSetSource.open(location, "y", K).read((slice(0, 11), slice(None)))
    store(location, [["cat"], ["dog"]], pa.list_(pa.string()), 9)
    store(location, [["cat"]], pa.list_(pa.string()))
    with pytest.raises(InvalidInput, match=r"part-000\.parquet \[y\]: class ids must be integers, got object"):
        LabelSetSource.open(location, "y", K).read((slice(0, 1), slice(None)))
    with pytest.raises(InvalidConfig, match="has no column 'z'"):
        holds_lists_of_any_length(location, "z")


def test_lists_of_a_fixed_size_are_not_label_sets(tmp_path: Path) -> None:
    location = Location.parse(tmp_path)
    store(location, [[0, 1], [1, 1]], pa.list_(pa.int8(), 2))
    assert not holds_lists_of_any_length(location, "y")
    store(location, [[0, 1], [1]], pa.list_(pa.int8()))
    assert holds_lists_of_any_length(location, "y")
