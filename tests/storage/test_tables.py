"""Which files a table consists of, and tables whose files do not tell their rows."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake
from pyiceberg.manifest import (
    DataFile,
    DataFileContent,
    FileFormat,
    ManifestContent,
    ManifestEntry,
    ManifestEntryStatus,
    ManifestWriterV2,
)
from pyiceberg.typedef import Record
from pyiceberg.types import StringType
from pyroaring import BitMap64

from labelqa_dask.core.errors import InvalidConfig, InvalidInput, StorageError
from labelqa_dask.storage.delta import DeltaLake
from labelqa_dask.storage.iceberg import Iceberg
from labelqa_dask.storage.label_sets import LabelSetSource
from labelqa_dask.storage.location import Location, StorageOptions
from labelqa_dask.storage.parquet_source import ParquetSource, holds_lists_of_any_length
from labelqa_dask.storage.tables import Table
from tests.lakes import CATALOG, KINDS, DeltaFolder, IcebergTable, Lake, catalog_in, lake_of
from tests.stores import Place

ROWS = pa.table({"label": [0, 1, 2], "id": ["a", "b", "c"], "probs": [[0.5, 0.5]] * 3})
MORE = pa.table({"label": [3], "id": ["d"], "probs": [[0.1, 0.9]]})


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Place]:
    place = Place(str(tmp_path), StorageOptions())
    with catalog_in(tmp_path, place):
        yield place


def table_of(lake: Lake) -> Table:
    if isinstance(lake, DeltaFolder):
        return DeltaLake(lake.place(lake.name))
    return Iceberg(lake.settings["uri"], CATALOG, StorageOptions())


def read(table: Table, column: str, version: int | None = None) -> list[Any]:
    source = ParquetSource.open(table.files(version), (column,), stack=column == "probs")
    return source.read((slice(0, source.shape[0]),)).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_in_the_order_in_which_their_files_were_added(kind: str, here: Place) -> None:
    lake = lake_of(kind, here, "table")
    lake.append(ROWS)
    first = lake.version()
    for number in range(10, 16):
        lake.append(pa.table({"label": [number], "id": ["x"], "probs": [[0.5, 0.5]]}))
    table = table_of(lake)
    assert read(table, "label") == [0, 1, 2, 10, 11, 12, 13, 14, 15]
    assert read(table, "label", first) == [0, 1, 2]
    assert table.files(None).version == lake.version()


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_were_removed_are_not_read(kind: str, here: Place) -> None:
    lake = lake_of(kind, here, "table")
    lake.append(ROWS)
    lake.append(MORE)
    lake.delete("label = 1")
    assert sorted(read(table_of(lake), "label")) == [0, 2, 3]
    lake.overwrite(MORE)
    assert read(table_of(lake), "probs") == [[0.1, 0.9]]


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_exist_is_said(kind: str, here: Place) -> None:
    lake = lake_of(kind, here, "table")
    nothing = {"delta": r"table: holds no Delta table\. Check the URI", "iceberg": "lake: ml.table: .* does not exist"}
    with pytest.raises(StorageError, match=nothing[kind]):
        table_of(lake).files(None)
    lake.append(ROWS)
    missing = {
        "delta": "version 77 cannot be read",
        "iceberg": "has no snapshot 77. It never had, or the snapshot has expired",
    }
    with pytest.raises(StorageError, match=missing[kind]):
        table_of(lake).files(77)
    lake.delete("label >= 0")
    with pytest.raises(InvalidInput, match="holds no rows"):
        table_of(lake).files(None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_that_cannot_be_reached_is_said_in_one_line(kind: str, credentials: None) -> None:
    nowhere = StorageOptions(endpoint_url="http://127.0.0.1:1", region="eu-central-1", retry_seconds=0)
    table: Table = DeltaLake(Location.parse("s3://bucket/table", nowhere))
    if kind == "iceberg":
        table = Iceberg("s3://bucket/v1.metadata.json", None, nowhere)
    with pytest.raises(StorageError) as failed:
        table.files(None)
    told = str(failed.value)
    assert told.startswith("s3://bucket/")
    assert "\n" not in told
    assert "\x1b" not in told


# -- Delta


def commit(lake: DeltaFolder, *actions: dict[str, Any]) -> None:
    """Write the next entry of a log by hand."""
    content = "\n".join(json.dumps(action) for action in actions)
    lake.place(lake.name).write(f"_delta_log/{lake.version() + 1:020d}.json", content.encode())


def features(*names: str) -> dict[str, Any]:
    told = {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": [*names], "writerFeatures": [*names]}
    return {"protocol": told}


def added(lake: DeltaFolder) -> dict[str, Any]:
    """The first file that was added."""
    lines = lake.place(lake.name).read("_delta_log/00000000000000000000.json").splitlines()
    return next(action["add"] for action in map(json.loads, lines) if "add" in action)


def deletion_vector(*rows: int) -> dict[str, Any]:
    """Rows that are deleted, as the log holds them: a bitmap in base 85, in the digits of ZeroMQ."""
    content = struct.pack("<I", 1681511377) + BitMap64(rows).serialize()
    content += bytes(-len(content) % 4)
    digits = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
    text = ""
    for (number,) in struct.iter_unpack(">I", content):
        text += "".join(digits[number // 85**power % 85] for power in range(4, -1, -1))
    return {"storageType": "i", "pathOrInlineDv": text, "sizeInBytes": len(content), "cardinality": len(rows)}


def test_rows_that_are_deleted_elsewhere_are_refused(here: Place) -> None:
    lake = DeltaFolder(here, "table")
    lake.append(ROWS)
    commit(lake, features("deletionVectors"))
    assert read(table_of(lake), "label") == [0, 1, 2], "that there could be some is no reason"
    add = added(lake)
    removed = {"path": add["path"], "dataChange": True, "deletionTimestamp": add["modificationTime"]}
    commit(lake, {"remove": removed}, {"add": {**add, "deletionVector": deletion_vector(1)}})
    with pytest.raises(InvalidInput, match=r"marks rows as deleted .* REORG TABLE … APPLY \(PURGE\)"):
        table_of(lake).files(None)
    assert read(table_of(lake), "label", 1) == [0, 1, 2]


def test_columns_of_other_names_in_the_files_are_refused(here: Place) -> None:
    lake = DeltaFolder(here, "table")
    lake.append(ROWS)
    lines = lake.place(lake.name).read("_delta_log/00000000000000000000.json").splitlines()
    metadata = next(action for action in map(json.loads, lines) if "metaData" in action)
    fields = json.loads(metadata["metaData"]["schemaString"])
    for number, column in enumerate(fields["fields"], 1):
        column["metadata"] = {"delta.columnMapping.id": number, "delta.columnMapping.physicalName": column["name"]}
    metadata["metaData"] |= {
        "schemaString": json.dumps(fields),
        "configuration": {"delta.columnMapping.mode": "name", "delta.columnMapping.maxColumnId": "3"},
    }
    commit(lake, features("columnMapping"), metadata)
    with pytest.raises(InvalidInput, match=r"maps columns to other names in its files \(delta.columnMapping.mode\)"):
        table_of(lake).files(None)


def test_a_partition_column_is_refused_and_the_others_are_read(here: Place) -> None:
    rows = ROWS.append_column("day", pa.array(["1 May", "2/3 é%", "1 May"]))
    write_deltalake(here.url("table"), rows, partition_by=["day"])
    files = table_of(DeltaFolder(here, "table")).files(None)
    source = ParquetSource.open(files, ("id",), stack=False)
    assert sorted(source.read((slice(0, 3),)).tolist()) == ["a", "b", "c"]
    with pytest.raises(InvalidConfig, match="column 'day' is a partition column, whose values are not in the files"):
        ParquetSource.open(files, ("day",), stack=False)


def test_files_outside_of_the_folder_are_refused(here: Place) -> None:
    lake = DeltaFolder(here, "table")
    lake.append(ROWS)
    add = added(lake)
    commit(lake, {"add": {**add, "path": f"file://{here.root}/elsewhere/part.parquet"}})
    with pytest.raises(InvalidInput, match=r"elsewhere/part\.parquet, which lies outside of its folder"):
        table_of(lake).files(None)


def test_a_log_that_begins_with_a_checkpoint_is_read(here: Place) -> None:
    lake = DeltaFolder(here, "table")
    lake.append(ROWS)
    lake.append(MORE)
    before = table_of(lake).files(None)
    lake.open().create_checkpoint()
    for number in (0, 1):
        lake.place(lake.name).delete_object(f"_delta_log/{number:020d}.json")
    assert table_of(lake).files(None) == before


def test_a_delta_table_is_not_read_as_a_folder_of_files(here: Place) -> None:
    lake = DeltaFolder(here, "table")
    lake.append(ROWS)
    lake.overwrite(MORE)
    for uri in (lake.address, f"{lake.address}/*.parquet"):
        with pytest.raises(InvalidConfig, match=r"is a Delta table, .* its rows\. Add format: delta"):
            ParquetSource.open(Location.parse(uri), ("label",), stack=False)
    name = next(path.name for path in Path(lake.address).glob("*.parquet"))
    assert ParquetSource.open(Location.parse(f"{lake.address}/{name}"), ("label",), stack=False).shape


def test_files_that_writers_lay_out_in_other_ways_are_one_column(here: Place) -> None:
    """The first file tells lists and text otherwise than those that were written to the table as it was then."""
    lake = DeltaFolder(here, "table")
    lists = pa.FixedSizeListArray.from_arrays(pa.array([0.5, 0.5, 0.25, 0.75]), 2)
    classes = pa.FixedSizeListArray.from_arrays(pa.array([0, 1, 1, 2]), 2)
    keys = pa.array(["a", "b"]).dictionary_encode()
    rows = pa.table({"label": [0, 1], "id": keys, "probs": lists, "classes": classes})
    lake.append(rows)
    lake.append(rows)
    files = table_of(lake).files(None)
    kinds = {str(pq.read_schema(f"{lake.address}/{path}").field("probs").type) for path, _, _ in files.files}
    assert len(kinds) == 2
    assert read(table_of(lake), "id") == ["a", "b", "a", "b"]
    assert read(table_of(lake), "probs") == [[0.5, 0.5], [0.25, 0.75]] * 2
    assert holds_lists_of_any_length(files, "classes")
    sets = LabelSetSource.open(files, "classes", 3).read((slice(0, 4),))
    assert np.asarray(sets).astype(int).tolist() == [[1, 1, 0], [0, 1, 1]] * 2


# -- Iceberg


def data_file(table: Any, name: str, **facts: Any) -> DataFile:
    told = {"content": DataFileContent.DATA, "file_format": FileFormat.PARQUET, **facts}
    path = f"{table.location()}/data/{name}"
    return DataFile.from_args(file_path=path, partition=Record(), record_count=1, file_size_in_bytes=1, **told)


def test_metadata_without_a_catalog_is_enough_to_read(here: Place) -> None:
    lake = IcebergTable(here, "table")
    lake.append(ROWS)
    metadata = lake.open().metadata_location
    lake.append(MORE)
    assert read(Iceberg(metadata, None, StorageOptions()), "label") == [0, 1, 2]


def test_a_column_that_was_renamed_is_refused_and_the_others_are_read(here: Place) -> None:
    lake = IcebergTable(here, "table")
    lake.append(ROWS)
    with lake.open().update_schema() as update:
        update.rename_column("id", "key")
    with lake.open().update_schema() as update:
        update.add_column("id", StringType())
    files = table_of(lake).files(None)
    for name in ("id", "key"):
        with pytest.raises(InvalidConfig, match=f"column '{name}' was renamed, or has the name of a former column"):
            ParquetSource.open(files, (name,), stack=False)
    assert read(table_of(lake), "label") == [0, 1, 2]


def test_rows_that_are_deleted_by_files_of_their_own_are_refused(here: Place) -> None:
    lake = IcebergTable(here, "table")
    lake.append(ROWS)
    table = lake.open()
    deletes = data_file(table, "deletes.parquet", content=DataFileContent.POSITION_DELETES)
    with table.transaction() as transaction:
        append = transaction.update_snapshot().fast_append()
        entry = ManifestEntry.from_args(
            status=ManifestEntryStatus.ADDED, snapshot_id=append.snapshot_id, data_file=deletes
        )
        with DeleteManifest(
            table.spec(), table.schema(), append.new_manifest_output(), append.snapshot_id, "null"
        ) as w:
            w.add_entry(entry)
        manifests = [*append._existing_manifests(), w.to_manifest_file()]
        append._existing_manifests = lambda: manifests  # type: ignore[method-assign]
        append.commit()
    with pytest.raises(InvalidInput, match=r"marks rows as deleted .*\(delete files\)"):
        table_of(lake).files(None)


class DeleteManifest(ManifestWriterV2):
    def content(self) -> ManifestContent:
        return ManifestContent.DELETES


def test_files_outside_of_the_folder_of_a_table_are_refused(here: Place) -> None:
    lake = IcebergTable(here, "table")
    lake.append(ROWS)
    pq.write_table(MORE, here.url("elsewhere.parquet"))
    lake.open().add_files([f"file://{here.url('elsewhere.parquet')}"])
    with pytest.raises(InvalidInput, match=r"elsewhere\.parquet, which lies outside of its folder"):
        table_of(lake).files(None)


def test_files_of_another_format_are_refused(here: Place) -> None:
    lake = IcebergTable(here, "table")
    lake.append(ROWS)
    table = lake.open()
    with table.transaction() as transaction, transaction.update_snapshot().fast_append() as append:
        append.append_data_file(data_file(table, "rows.orc", file_format=FileFormat.ORC))
    with pytest.raises(InvalidInput, match=r"rows\.orc, which is not Parquet"):
        table_of(lake).files(None)
