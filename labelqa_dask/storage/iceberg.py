"""Apache Iceberg: Parquet files, and metadata of which of them are the table; a catalog knows the newest metadata."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from labelqa_dask.core.errors import InvalidConfig, InvalidInput, LabelQAError, StorageError
from labelqa_dask.core.extras import import_extra
from labelqa_dask.storage.location import Location, StorageOptions
from labelqa_dask.storage.parquet_source import ParquetFiles
from labelqa_dask.storage.tables import APP, Part

_NUMBER, _OUTPUT = f"{APP}.version", f"{APP}.output"
_NAME_MAPPING = "schema.name-mapping.default"


@dataclass(frozen=True)
class Iceberg:
    """An Iceberg table by its name in a catalog, or, to read only, by the URL of its metadata.

    `out` is where the files are that it is to be told of.
    """

    name: str
    catalog: str | None
    options: StorageOptions
    out: Location | None = None

    def __str__(self) -> str:
        return self.name if self.catalog is None else f"{self.catalog}: {self.name}"

    def files(self, version: int | None) -> ParquetFiles:
        with self._errors():
            table = self._load()
            snapshot = table.current_snapshot() if version is None else table.snapshot_by_id(version)
            if snapshot is None and version is not None:
                raise StorageError(
                    f"has no snapshot {version}", str(self), "It never had, or the snapshot has expired."
                )
            entries = list(self._entries(table, snapshot)) if snapshot else []
        if not entries:
            raise InvalidInput("holds no rows", str(self), "Give a table, or a snapshot of it, that has some.")
        folder = Location.parse(_plain(table.location()), self.options)
        found = sorted((entry.sequence_number or 0, entry.data_file.file_path, entry.data_file) for entry in entries)
        files = tuple((self._inside(folder, file), int(file.file_size_in_bytes), None) for *_, file in found)
        return ParquetFiles(str(self), folder, files, _renamed(table), snapshot.snapshot_id)

    def published(self) -> int | None:
        with self._errors():
            catalog = self._catalog()
            if not catalog.namespace_exists(self.name.rpartition(".")[0]):
                raise InvalidConfig(
                    "is of a namespace that does not exist", str(self), "Make it, or choose another one."
                )
            if not catalog.table_exists(self.name):
                return None
            table = self._load()
        if table.properties.get(_OUTPUT) == self._output:
            return int(table.properties[_NUMBER])
        if table.current_snapshot() is None:
            return None
        raise InvalidConfig(
            f"is an Iceberg table that no audit in {self._output} has made; its rows would be removed",
            str(self),
            "Choose another output.table.",
        )

    def publish(self, number: int, schema: pa.Schema, parts: Sequence[Part]) -> None:
        to_data_file = import_extra("pyiceberg.io.pyarrow", "iceberg", str(self)).parquet_file_to_data_file
        with self._errors():
            table = self._catalog().create_table_if_not_exists(self.name, schema)
            before = [entry.data_file for entry in self._entries(table, table.current_snapshot())]
            with table.transaction() as transaction:
                with transaction.update_schema() as update:
                    update.union_by_name(schema)
                names = transaction.table_metadata.schema().name_mapping.model_dump_json()
                transaction.set_properties({_NAME_MAPPING: names, _OUTPUT: self._output, _NUMBER: str(number)})
                with transaction.update_snapshot({_NUMBER: str(number)}).overwrite() as snapshot:
                    for file in before:
                        snapshot.delete_data_file(file)
                    for part in parts:
                        path = f"{self._output}/{part.path}"
                        snapshot.append_data_file(to_data_file(table.io, transaction.table_metadata, path))

    @property
    def _output(self) -> str:
        assert self.out is not None
        return self.out.url

    def _catalog(self) -> Any:
        return import_extra("pyiceberg.catalog", "iceberg", str(self)).load_catalog(self.catalog, **self._properties)

    def _load(self) -> Any:
        if self.catalog is not None:
            return self._catalog().load_table(self.name)
        static = import_extra("pyiceberg.table", "iceberg", str(self)).StaticTable
        return static.from_metadata(Location.parse(self.name, self.options).url, self._properties)

    @property
    def _properties(self) -> dict[str, str]:
        """How the store is reached, in the words of pyiceberg; what is not said here, its own configuration says."""
        told = {"s3.endpoint": self.options.endpoint_url, "s3.region": self.options.region}
        found = {name: value for name, value in told.items() if value}
        return {**found, "s3.anonymous": "true"} if self.options.anonymous else found

    def _entries(self, table: Any, snapshot: Any) -> Iterator[Any]:
        """The data files of a snapshot; refused where rows of theirs are deleted elsewhere."""
        data = import_extra("pyiceberg.manifest", "iceberg", str(self)).DataFileContent.DATA
        for manifest in snapshot.manifests(table.io) if snapshot else ():
            entries = manifest.fetch_manifest_entry(table.io, discard_deleted=True)
            if any(entry.data_file.content != data for entry in entries):
                raise InvalidInput(
                    "marks rows as deleted that are still in its files (delete files), which is not supported",
                    str(self),
                    "Remove them from the files, as by rewrite_data_files; or set write.delete.mode to copy-on-write.",
                )
            yield from entries

    def _inside(self, folder: Location, file: Any) -> str:
        """The path of a data file in the folder of the table."""
        url = Location.parse(_plain(file.file_path), self.options).url
        if not url.startswith(f"{folder.url}/"):
            raise InvalidInput(
                f"holds the file {file.file_path}, which lies outside of its folder {folder}",
                str(self),
                "Rewrite its data files, as by rewrite_data_files.",
            )
        if file.file_format != "PARQUET":
            raise InvalidInput(f"holds the file {url}, which is not Parquet", str(self), "Rewrite it as Parquet.")
        return url.removeprefix(f"{folder.url}/")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what pyiceberg and its catalogs raise into errors that name the table."""
        import_extra("pyiceberg", "iceberg", str(self))
        try:
            yield
        except LabelQAError:
            raise
        except Exception as error:  # what a catalog's client raises is not to be foreseen
            text = " ".join(str(error).split()) or type(error).__name__
            raise StorageError(text, str(self), "Check its name, and the configuration of pyiceberg.") from error


def _plain(path: str) -> str:
    """A path as the other parts of storage take it: Hadoop has names of its own for S3 and for disks."""
    return re.sub(r"^file:/+", "/", re.sub(r"^s3[an]://", "s3://", path))


def _renamed(table: Any) -> dict[str, str]:
    """Columns that have, or had, another name, or whose name was another column's: older files call them otherwise."""
    pairs = {(field.field_id, field.name) for schema in table.metadata.schemas for field in schema.fields}
    ids, names = [number for number, _ in pairs], [name for _, name in pairs]
    why = "was renamed, or has the name of a former column, so that older files call it otherwise"
    return {name: why for number, name in pairs if ids.count(number) > 1 or names.count(name) > 1}
