"""Parquet files as sources: which files, in which order, what their columns become, and what is said of bad ones."""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from labelqa_dask.core.errors import InvalidConfig, InvalidInput, StorageError
from labelqa_dask.storage.location import Location
from labelqa_dask.storage.parquet_source import ParquetSource
from labelqa_dask.storage.sources import as_ids
from tests.stores import Place
from tests.strategies import seeded

K = 3


def pred_probs(n: int = 10) -> NDArray[np.float64]:
    return np.random.default_rng(2).dirichlet(np.ones(K), n)


def store_table(folder: Location, path: str, table: pa.Table | dict[str, Any], rows_per_group: int = 4) -> None:
    buffer = io.BytesIO()
    pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), buffer, row_group_size=rows_per_group)
    folder.write(path, buffer.getvalue())


def table_of(values: NDArray[Any], start: int = 0) -> pa.Table:
    """The forms that probabilities have in one table: a list per row, and a column per class."""
    columns = {f"p{j}": values[:, j] for j in range(values.shape[1])}
    rows = np.arange(start, start + len(values))
    return pa.table({"row": rows, "probs": pa.array(list(values), pa.list_(pa.float64())), **columns})


def read_all(source: ParquetSource) -> NDArray[Any]:
    return source.read((slice(0, source.shape[0]),))


def open_files(location: Location, *columns: str, stack: bool = True) -> ParquetSource:
    return ParquetSource.open(location, columns, stack=stack)


def values_in(location: Location, column: str = "x") -> list[Any]:
    return read_all(open_files(location, column, stack=False)).tolist()


def store_one_value_each(folder: Location, *paths: str) -> None:
    for path in paths:
        store_table(folder, path, {"x": [path]})


# -- files


def test_a_file_a_folder_and_a_pattern_are_read(place: Place) -> None:
    folder = place("data")
    store_one_value_each(folder, "b.parquet", "a.parquet", "deep/c.parquet", "d.pq", "notes.txt")
    assert values_in(folder / "a.parquet") == ["a.parquet"]
    assert values_in(folder / "d.pq") == ["d.pq"]
    assert values_in(folder / "notes.txt") == ["notes.txt"]
    assert values_in(folder) == ["a.parquet", "b.parquet", "deep/c.parquet"]
    assert values_in(folder / "?.parquet") == ["a.parquet", "b.parquet"]
    assert values_in(folder / "b*.parquet") == ["b.parquet"]


def test_files_are_in_the_natural_order_of_their_names(place: Place) -> None:
    folder = place("data")
    names = ["part.1.parquet", "part.2.parquet", "part.002b.parquet", "part.10.parquet", "part.010.parquet"]
    store_one_value_each(folder, *names[::-1])
    expected = ["part.1.parquet", "part.2.parquet", "part.002b.parquet", "part.010.parquet", "part.10.parquet"]
    assert values_in(folder) == expected
    assert values_in(folder / "part.*.parquet") == expected


def test_numbers_of_other_scripts_do_not_confuse_the_order(tmp_path: Path) -> None:
    store_one_value_each(Location.parse(tmp_path), "1²2.parquet", "1²10.parquet", "٣.parquet", "10.parquet")
    assert len(values_in(Location.parse(tmp_path))) == 4


def test_hidden_files_and_those_of_the_writer_are_left_out(place: Place) -> None:
    folder = place("table.parquet")
    store_one_value_each(
        folder, "part-0.parquet", "_metadata.parquet", ".part-0.parquet", "_temporary/0/part-1.parquet"
    )
    folder.write("_SUCCESS", b"")
    folder.write(".part-0.parquet.crc", b"")
    assert values_in(folder) == ["part-0.parquet"]
    assert values_in(place("*.parquet")) == ["part-0.parquet"]


def test_partitions_in_folders_are_part_of_the_whole(tmp_path: Path) -> None:
    store_one_value_each(Location.parse(tmp_path), "day=2/0.parquet", "day=10/0.parquet", "day=1/1.parquet")
    assert values_in(Location.parse(tmp_path)) == ["day=1/1.parquet", "day=2/0.parquet", "day=10/0.parquet"]


@pytest.mark.parametrize("name", ["data[1].parquet", "a b.parquet", "100%.parquet", "a#b.parquet", "ü.parquet"])
def test_a_file_is_read_whatever_its_name(place: Place, name: str) -> None:
    store_one_value_each(place(f"in {name}"), name, "1.parquet", "data1.parquet")
    assert values_in(place(f"in {name}/{name}")) == [name]


@pytest.mark.parametrize("uri", ["nothing", "nothing.parquet", "nothing/*.parquet", "data/x*.parquet", "empty"])
def test_no_files_are_an_error_that_names_the_location(place: Place, uri: str) -> None:
    store_one_value_each(place("data"), "a.parquet")
    place("empty").write("notes.txt", b"")
    with pytest.raises(StorageError) as caught:
        open_files(place(uri), "x")
    assert str(caught.value) == f"{place(uri)}: no Parquet files there. Check the URI."


def test_patterns_are_for_the_last_part_of_a_path(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="patterns are supported in the last part of a path only"):
        open_files(Location.parse(tmp_path / "*" / "x.parquet"), "x")


# -- columns


@pytest.mark.parametrize("value", [pa.float16(), pa.float32(), pa.float64()], ids=str)
@pytest.mark.parametrize("listed", [pa.list_, pa.large_list, lambda value: pa.list_(value, K)])
def test_lists_become_rows_of_the_type_they_hold(tmp_path: Path, value: pa.DataType, listed: Any) -> None:
    stored = pred_probs().astype(value.to_pandas_dtype())
    store_table(Location.parse(tmp_path), "a.parquet", {"probs": pa.array(list(stored), listed(value))})
    source = open_files(Location.parse(tmp_path), "probs")
    assert (source.shape, source.dtype, source.chunks) == ((10, K), stored.dtype, (None, K))
    np.testing.assert_array_equal(read_all(source), stored, strict=True)
    np.testing.assert_array_equal(source.read((slice(3, 9), slice(None))), stored[3:9], strict=True)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_columns_are_put_side_by_side_in_the_order_given(tmp_path: Path, dtype: str) -> None:
    stored = pred_probs().astype(dtype)
    store_table(Location.parse(tmp_path), "a.parquet", {f"p{j}": stored[:, j] for j in range(K)})
    source = open_files(Location.parse(tmp_path), "p2", "p0", "p1")
    assert (source.shape, source.dtype) == ((10, K), np.dtype(dtype))
    np.testing.assert_array_equal(read_all(source), stored[:, [2, 0, 1]], strict=True)


def test_columns_of_different_types_keep_the_precision_of_the_finest(tmp_path: Path) -> None:
    stored = pred_probs()
    table = {"a": stored[:, 0].astype(np.float32), "b": stored[:, 1], "c": stored[:, 2] > 0.5}
    store_table(Location.parse(tmp_path), "a.parquet", table)
    source = open_files(Location.parse(tmp_path), "a", "b", "c")
    assert source.dtype == np.float64
    np.testing.assert_array_equal(read_all(source)[:, 1], stored[:, 1])


def test_one_column_per_class_may_be_one_column(tmp_path: Path) -> None:
    store_table(Location.parse(tmp_path), "a.parquet", {"p": pred_probs()[:, 0]})
    assert read_all(open_files(Location.parse(tmp_path), "p")).shape == (10, 1)


@pytest.mark.parametrize("name", ["p.0", "a.b.c"])
def test_names_may_have_dots(tmp_path: Path, name: str) -> None:
    lists = pa.array(list(pred_probs()), pa.list_(pa.float64()))
    store_table(Location.parse(tmp_path), "a.parquet", {"p.x": np.zeros(10), name: lists, "q": np.zeros(10)})
    source = open_files(Location.parse(tmp_path), name)
    np.testing.assert_array_equal(read_all(source), pred_probs())
    assert sum(group.nbytes for group in source.groups) >= pred_probs().nbytes


@pytest.mark.parametrize(
    "labels",
    [
        pa.array([2, 0, 1], pa.int8()),
        pa.array([2, 0, 1], pa.uint64()),
        pa.array([2, 0, 1], pa.int32()).dictionary_encode(),
    ],
    ids=["int8", "uint64", "dictionary"],
)
def test_labels_are_the_integers_that_were_stored(tmp_path: Path, labels: pa.Array) -> None:
    store_table(Location.parse(tmp_path), "a.parquet", {"label": labels})
    source = open_files(Location.parse(tmp_path), "label", stack=False)
    assert source.shape == (3,)
    assert source.dtype.kind in "iu"
    assert read_all(source).tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (pa.array(["a", "bé"]), ["a", "bé"]),
        (pa.array(["a", "bé"], pa.large_string()), ["a", "bé"]),
        (pa.array(["a", "bé"]).dictionary_encode(), ["a", "bé"]),
        (pa.array([b"a", "bé".encode()]), ["a", "bé"]),
        (pa.array([2**64 - 1, 0], pa.uint64()), [2**64 - 1, 0]),
        (pa.array([-1, 5], pa.int16()), [-1, 5]),
        (
            pa.array([1_500_000, 0], pa.timestamp("us", "UTC")),
            ["1970-01-01T00:00:01.500000", "1970-01-01T00:00:00.000000"],
        ),
        (pa.array([1, 0], pa.timestamp("ns")), ["1970-01-01T00:00:00.000000001", "1970-01-01T00:00:00.000000000"]),
        (pa.array([1, 0], pa.date32()), ["1970-01-02", "1970-01-01"]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_identifiers_are_exact_integers_or_strings(tmp_path: Path, stored: pa.Array, expected: list[Any]) -> None:
    store_table(Location.parse(tmp_path), "a.parquet", {"id": stored})
    source = open_files(Location.parse(tmp_path), "id", stack=False)
    ids = as_ids(read_all(source))
    assert ids.tolist() == expected
    assert ids.dtype == as_ids(np.empty(0, source.dtype)).dtype


# -- rows


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> tuple[Location, NDArray[np.float64]]:
    """Files of several row groups of uneven size, with empty files and empty row groups among them."""
    folder = tmp_path_factory.mktemp("uneven")
    values = pred_probs(97)
    row = 0
    for number, groups in enumerate([[0], [7, 1, 30], [], [5, 0, 2], [50], [0, 2]]):
        with pq.ParquetWriter(folder / f"part.{number}.parquet", table_of(values[:0]).schema) as writer:
            for size in groups:
                writer.write_table(table_of(values[row : row + size], row))
                row += size
    return Location.parse(folder), values


@pytest.mark.parametrize("columns", [["row"], ["probs"], ["p0", "p1", "p2"]], ids=str)
@seeded
@given(data=st.data())
def test_any_slice_across_groups_and_files_is_that_of_the_whole_table(
    uneven: tuple[Location, NDArray[np.float64]], columns: list[str], data: st.DataObject
) -> None:
    location, values = uneven
    start = data.draw(st.integers(0, 96))
    stop = data.draw(st.integers(start + 1, 97))
    inside = data.draw(st.sampled_from([(start, stop), (0, 97), (start, 97)]))
    expected = np.arange(97) if columns == ["row"] else values
    source = open_files(location, *columns, stack=columns != ["row"]).rows(*inside)
    np.testing.assert_array_equal(source.read((slice(start, stop),)), expected[start:stop], strict=True)


def test_row_bounds_are_the_edges_of_row_groups(uneven: tuple[Location, NDArray[np.float64]]) -> None:
    source = open_files(uneven[0], "probs")
    assert source.shape == (97, K)
    assert source.row_bounds().tolist() == [0, 7, 8, 38, 43, 45, 95, 97]
    assert source.rows(7, 40).row_bounds().tolist() == [7, 8, 38, 43]
    assert source.rows(39, 40).row_bounds().tolist() == [38, 43]
    assert source.rows(38, 43).row_bounds().tolist() == [38, 43]


def test_reading_takes_no_more_memory_than_was_said(uneven: tuple[Location, NDArray[np.float64]]) -> None:
    for columns in [["probs"], ["p0", "p1", "p2"]]:
        source = open_files(uneven[0], *columns)
        for start, stop in [(0, 97), (40, 41), (3, 60)]:
            assert source.read((slice(start, stop),)).nbytes <= source.decode_bytes((stop - start, K))
        assert source.decode_bytes((1, K)) >= max(group.nbytes for group in source.groups)


def test_a_part_of_many_files_is_small_to_send(tmp_path: Path) -> None:
    location = Location.parse(tmp_path)
    for number in range(300):
        store_table(location, f"part.{number}.parquet", {"x": np.arange(number, number + 3)}, rows_per_group=1)
    whole = open_files(location, "x", stack=False)
    part = whole.rows(450, 456)
    assert len(pickle.dumps(part)) < 2000 < len(pickle.dumps(whole)) / 10
    assert pickle.loads(pickle.dumps(part)).read((slice(450, 456),)).tolist() == [150, 151, 152, 151, 152, 153]


def test_empty_files_alone_make_an_empty_source(tmp_path: Path) -> None:
    store_table(Location.parse(tmp_path), "a.parquet", table_of(pred_probs(0)))
    source = open_files(Location.parse(tmp_path), "p0", "p1", "p2")
    assert source.shape == (0, K)
    assert str(tmp_path) in source.place


def test_a_fingerprint_changes_with_a_file_and_only_then(place: Place) -> None:
    folder = place("data")
    for name in ["a.parquet", "b.parquet", "other.txt"]:
        store_table(folder, name, {"x": [1, 2]})
    before = open_files(folder, "x", stack=False).fingerprint()
    assert before.objects == 2
    store_table(folder, "other.txt", {"x": [3]})
    assert open_files(folder, "x", stack=False).fingerprint() == before
    store_table(folder, "b.parquet", {"x": [1, 3]})
    assert open_files(folder, "x", stack=False).fingerprint().digest != before.digest
    assert values_in(folder) == [1, 2, 1, 3]


def test_a_region_is_known_by_its_row_groups_wherever_they_are(place: Place) -> None:
    folder = place("data")
    for name in ("b", "c"):
        store_table(folder, f"{name}.parquet", {"x": list(range(10))})
    bounds = np.array([0, 4, 8, 10, 14, 20])

    def regions(by: int) -> list[bytes]:
        found = open_files(folder, "x", stack=False).fingerprint(bounds + by).regions
        return [digest.tobytes() for digest in found]

    before = regions(0)
    assert len(set(before)) == 5
    store_table(folder, "a.parquet", {"x": [7] * 5})
    assert regions(5) == before
    assert not set(regions(4)) & set(before)
    store_table(folder, "b.parquet", {"x": list(range(1, 11))})
    after = regions(5)
    assert [old == new for old, new in zip(before, after, strict=True)] == [False] * 3 + [True] * 2


def test_a_region_of_another_column_is_another(tmp_path: Path) -> None:
    store_table(Location.parse(tmp_path), "a.parquet", {"x": [1, 2], "y": [1, 2]})
    x, y = (open_files(Location.parse(tmp_path), name, stack=False).fingerprint(np.array([0, 2])) for name in "xy")
    assert x.digest == y.digest
    assert not (x.regions == y.regions).all()


def test_a_place_names_the_file_and_the_columns(tmp_path: Path) -> None:
    location = Location.parse(tmp_path)
    table = {f"p{j}": [1.0] for j in range(5)}
    store_table(location, "a.parquet", table)
    assert open_files(location, "p0").place == f"{tmp_path}/a.parquet [p0]"
    store_table(location, "b.parquet", table)
    assert open_files(location, *table).place == f"{tmp_path} [p0 … p4]"


# -- bad data


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("label", pa.array([0, 1, None, 2]), "row 14: label is missing (null). Fill it in, or drop the row."),
        ("probs", pa.array([[0.5, 0.5]] * 3 + [None]), "row 15: probs is missing (null). Fill it in, or drop the row."),
        ("probs", pa.array([[0.5, 0.5], [0.5, None]] * 2), "row 13: probs[1] is missing (null)."),
        (
            "probs",
            pa.array([[0.5, 0.5], [0.5, None]] * 2, pa.list_(pa.float32(), 2)),
            "row 13: probs[1] is missing (null).",
        ),
        (
            "probs",
            pa.array([[0.5, 0.5]] * 2 + [None] * 2, pa.list_(pa.float32(), 2)),
            "row 14: probs is missing (null). Fill it in, or drop the row.",
        ),
        ("probs", pa.array([[0.5, 0.5]] * 3 + [[1.0]]), "row 15: list of 1 values where 2 were expected."),
        ("probs", pa.array([[0.5, 0.5]] * 2 + [[]] * 2), "row 14: list of 0 values where 2 were expected."),
    ],
)
def test_bad_values_are_named_with_their_file_and_row(
    tmp_path: Path, column: str, values: pa.Array, message: str
) -> None:
    location = Location.parse(tmp_path)
    good = [0] if column == "label" else pa.array([[0.5, 0.5]], values.type)
    for number in range(6):
        table = pa.table({column: pa.concat_arrays([good, good]) if column != "label" else pa.array([0, 0])})
        store_table(location, f"{number}.parquet", table)
    store_table(location, "6.parquet", pa.table({column: values}), rows_per_group=2)
    source = open_files(location, column, stack=column != "label")
    with pytest.raises(InvalidInput) as caught:
        read_all(source)
    assert str(caught.value) == f"{tmp_path}/6.parquet, {message}"


def test_a_ragged_row_in_the_first_file_is_the_one_that_is_named(tmp_path: Path) -> None:
    store_table(Location.parse(tmp_path), "a.parquet", {"probs": [[0.5, 0.5], [0.2, 0.8], [1.0]]})
    source = open_files(Location.parse(tmp_path), "probs")
    assert source.shape == (3, 2)
    with pytest.raises(InvalidInput, match="row 2: list of 1 values where 2 were expected"):
        read_all(source)


def test_a_missing_column_is_answered_with_the_nearest(tmp_path: Path) -> None:
    store_table(Location.parse(tmp_path), "a.parquet", {"label": [1], "probs": [[1.0]]})
    with pytest.raises(InvalidConfig, match=r"a\.parquet: has no column 'labels'\. Did you mean 'label'\?"):
        open_files(Location.parse(tmp_path), "labels")


def test_a_file_that_lacks_a_column_is_named(tmp_path: Path) -> None:
    location = Location.parse(tmp_path)
    store_table(location, "a.parquet", {"p0": [1.0], "p1": [0.0]})
    store_table(location, "b.parquet", {"p0": [1.0]})
    with pytest.raises(InvalidConfig, match=r"b\.parquet: has no column 'p1'"):
        open_files(location, "p0", "p1")


def test_files_of_different_schemas_are_refused_by_name(tmp_path: Path) -> None:
    location = Location.parse(tmp_path)
    store_table(location, "a.parquet", {"p": pa.array([1.0], pa.float64())})
    store_table(location, "b.parquet", {"p": pa.array([1.0], pa.float32())})
    with pytest.raises(
        InvalidInput,
        match=r"b\.parquet: column 'p' is float, but in a\.parquet double\. Write all files with one schema",
    ):
        open_files(location, "p")


@pytest.mark.parametrize(
    ("columns", "stack", "message"),
    [
        (["label", "p"], False, r"\[label, p\]: 2 columns where one is needed\. Name one with 'column:'\."),
        (["probs", "probs2"], True, r"\[probs, probs2\]: several columns of lists cannot be joined"),
        (["p", "probs"], True, r"\[p, probs\]: several columns of lists cannot be joined"),
    ],
)
def test_columns_that_cannot_be_joined_are_refused(
    tmp_path: Path, columns: Sequence[str], stack: bool, message: str
) -> None:
    table = {"label": [1], "p": [1.0], "probs": [[1.0]], "probs2": [[1.0]]}
    store_table(Location.parse(tmp_path), "a.parquet", table)
    with pytest.raises(InvalidConfig, match=message):
        ParquetSource.open(Location.parse(tmp_path), columns, stack=stack)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no Parquet file but a text of some length", b"PAR1" * 10])
def test_what_is_no_parquet_is_named(place: Place, content: bytes) -> None:
    store_table(place("data"), "a.parquet", {"x": [1]})
    place("data").write("b.parquet", content)
    with pytest.raises(StorageError, match=re.escape(f"{place('data/b.parquet')}: cannot be read as Parquet: ")):
        open_files(place("data"), "x")


def test_a_damaged_page_is_named(tmp_path: Path) -> None:
    store_table(Location.parse(tmp_path), "a.parquet", {"x": np.random.default_rng(0).random(1000)}, 1000)
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[4:2000] = bytes(1996)
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(InvalidInput, match=r"a\.parquet: row group 0 \(rows 0 to 999\) cannot be decoded: ") as caught:
        values_in(Location.parse(tmp_path / "a.parquet"))
    assert "retried" not in str(caught.value)


def test_a_file_that_went_missing_is_named(place: Place) -> None:
    store_table(place("data"), "a.parquet", {"x": [1]})
    source = open_files(place("data"), "x")
    place("data").delete()
    with pytest.raises(StorageError, match=r"/data/a\.parquet: does not exist\."):
        read_all(source)


# -- files that are damaged or replaced after the plan


def test_a_file_that_was_replaced_since_the_plan_is_refused(place: Place) -> None:
    folder = place("data")
    store_table(folder, "a.parquet", {"x": [1, 2, 3]})
    store_table(folder, "b.parquet", {"x": [4, 5, 6]})
    planned = pickle.loads(pickle.dumps(open_files(folder, "x", stack=False)))
    store_table(folder, "b.parquet", {"x": [4, 5, 7]})
    assert planned.read((slice(0, 3),)).tolist() == [1, 2, 3]
    with pytest.raises(StorageError, match=r"b\.parquet: was replaced while it was read\. Run again with --fresh"):
        planned.read((slice(2, 4),))


def test_a_row_group_that_cannot_be_decoded_is_named_with_its_rows(place: Place) -> None:
    folder = place("data")
    store_table(folder, "a.parquet", {"x": [1, 2, 3]})
    pages = io.BytesIO()
    pq.write_table(pa.table({"x": np.arange(100)}), pages, row_group_size=50, use_dictionary=False)
    content = bytearray(pages.getvalue())
    content[4:30] = b"\xff" * 26
    folder.write("b.parquet", bytes(content))
    source = open_files(folder, "x", stack=False)
    assert source.read((slice(60, 70),)).tolist() == list(range(57, 67))
    with pytest.raises(
        InvalidInput, match=r"b\.parquet: row group 0 \(rows 3 to 52\) cannot be decoded: .* write it again"
    ):
        source.read((slice(0, 4),))
