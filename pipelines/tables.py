"""Tables of a data lake in an audit: all inputs of one are of one version; one can be told of what is published."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow.parquet as pq

from labelqa_dask.core.errors import InvalidConfig
from labelqa_dask.storage.delta import DeltaLake
from labelqa_dask.storage.iceberg import Iceberg
from labelqa_dask.storage.location import Location, StorageOptions
from labelqa_dask.storage.parquet_source import ParquetFiles
from labelqa_dask.storage.record import Json, Version
from labelqa_dask.storage.sinks import ParquetSink
from labelqa_dask.storage.tables import Part, Table
from pipelines.config import AuditConfig, InputConfig, OutputConfig
from pipelines.layout import Regions


def open_tables(config: AuditConfig, versions: Mapping[str, int]) -> dict[str, ParquetFiles]:
    """The files of each input that is a table, each table at one version: a given one, or else the newest now."""
    _refuse_other_rows(config)
    opened: dict[Table, ParquetFiles] = {}
    asked: dict[Table, int] = {}
    named = {name: (settings, _input_table(settings, config.storage)) for name, settings in config.input.items()}
    for name, (settings, table) in named.items():
        version = settings.version if settings.version is not None else versions.get(name)
        if table and version is not None and asked.setdefault(table, version) != version:
            raise InvalidConfig(
                f"asks for version {version}, but another input for version {asked[table]} of the same table",
                f"input.{name}.version",
                "Ask for one version.",
            )
    tables = {name: table for name, (_, table) in named.items() if table}
    for table in dict.fromkeys(tables.values()):
        opened[table] = table.files(asked.get(table))
    return {name: opened[table] for name, table in tables.items()}


def versions_begun(config: AuditConfig, manifest: Json) -> dict[str, int]:
    """The versions of tables that a run was begun with, where the configuration names these tables and no version."""
    begun: Mapping[str, Json] = manifest["inputs"]
    table = ("uri", "format", "catalog")
    return {
        name: begun[name]["version"]
        for name, settings in config.input.items()
        if settings.format
        and settings.version is None
        and all(begun.get(name, {}).get(key) == getattr(settings, key) for key in table)
    }


def refuse_foreign_table(config: AuditConfig) -> None:
    """Refuse to publish to a table that holds anything else, and without the package that it takes."""
    table = _output_table(config.output, config.storage)
    if table:
        table.published()


def tell_table(config: AuditConfig, version: Version) -> None:
    """Make a published version that of the table of its output, if it has one and that has not been told yet."""
    table, manifest = _output_table(config.output, config.storage), version.manifest()
    if table is None or manifest is None or manifest["output"]["format"] != config.output.format:
        return
    number, known = int(version.name[1:]), table.published()
    if known is not None and known > number:
        raise InvalidConfig(
            f"has version {known} of the audit, but the newest of the output is {version.name}",
            str(table),
            "Delete the table, or give another output.",
        )
    if known == number:
        return
    folder = version.location / "scores"
    sizes = {entry.path: entry.size for entry in folder.entries()}
    parts = [
        Part(f"{version.name}/scores/{part}", sizes[part], region.start, region.stop)
        for region in Regions.of(manifest)
        for part in [ParquetSink.part(region.name)]
    ]
    with folder.reader(next(iter(sizes))) as reader:
        schema = pq.read_schema(reader)
    table.publish(number, schema, parts)


def _input_table(settings: InputConfig, storage: StorageOptions) -> Table | None:
    if settings.format == "delta":
        return DeltaLake(Location.parse(settings.uri, storage))
    if settings.format == "iceberg":
        return Iceberg(settings.uri, settings.catalog, storage)
    return None


def _output_table(settings: OutputConfig, storage: StorageOptions) -> Table | None:
    out = Location.parse(settings.uri, storage)
    if settings.format == "delta":
        return DeltaLake(out)
    if settings.format == "iceberg":
        return Iceberg(settings.table or "", settings.catalog, storage, out)
    return None


def _refuse_other_rows(config: AuditConfig) -> None:
    """Refuse inputs that go together by rows, but are not columns of one table: its rows have no order to go by."""
    by_row = {spec.name for spec in config.method.inputs if spec.kind != "annotations"} | {"ids"}
    tables = {name: _input_table(settings, config.storage) for name, settings in config.input.items() if name in by_row}
    if len(set(tables.values())) > 1:
        raise InvalidConfig(
            f"{' and '.join(tables)} go together by rows, but are not all of one table, whose rows have no other order",
            "input",
            "Join them into one table, and name its columns.",
        )
