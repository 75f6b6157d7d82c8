"""Inputs that have versions, tables of a data lake and Icechunk repositories; and tables as outputs.

An audit reads one version of each, whatever is committed meanwhile, also where it is interrupted.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow.parquet as pq

from labelqa_dask.core.errors import InvalidConfig
from labelqa_dask.storage.delta import DeltaLake
from labelqa_dask.storage.iceberg import Iceberg
from labelqa_dask.storage.icechunk_store import DEFAULT_REF, Snapshot
from labelqa_dask.storage.location import Location, StorageOptions
from labelqa_dask.storage.parquet_source import ParquetFiles
from labelqa_dask.storage.record import Json, Version, latest
from labelqa_dask.storage.sinks import ParquetSink
from labelqa_dask.storage.tables import Part, Table
from pipelines.config import AuditConfig, InputConfig, OutputConfig
from pipelines.layout import Regions

AtVersion = ParquetFiles | Snapshot
"""What an input is at one version."""
Versions = Mapping[str, int | str]
"""The version of each input that has versions, by its number, or the id of its snapshot."""


def open_versioned(config: AuditConfig, versions: Versions) -> dict[str, AtVersion]:
    """Each input that has versions at one of them: that which is given, or is asked for, or is the newest now."""
    return {**_open_tables(config, versions), **_open_snapshots(config, versions)}


def _open_tables(config: AuditConfig, versions: Versions) -> dict[str, ParquetFiles]:
    """The files of each input that is a table; all inputs of one table are of one version."""
    _refuse_other_rows(config)
    found = ((name, _input_table(settings, config.storage)) for name, settings in config.input.items())
    tables = {name: table for name, table in found if table}
    asked: dict[Table, int] = {}
    for name, table in tables.items():
        version = config.input[name].version
        if version is not None and asked.setdefault(table, int(version)) != version:
            raise InvalidConfig(
                f"asks for version {version}, but another input for version {asked[table]} of the same table",
                f"input.{name}.version",
                "Ask for one version.",
            )
    for name, table in tables.items():
        if name in versions:
            asked.setdefault(table, int(versions[name]))
    opened = {table: table.files(asked.get(table)) for table in dict.fromkeys(tables.values())}
    return {name: opened[table] for name, table in tables.items()}


def _open_snapshots(config: AuditConfig, versions: Versions) -> dict[str, Snapshot]:
    """The snapshot of each input in an Icechunk repository; what is asked for in the same words is the same."""
    found: dict[tuple[Location, str], Snapshot] = {}
    snapshots = {}
    for name, settings in config.input.items():
        if settings.format == "icechunk":
            location = Location.parse(settings.uri, config.storage)
            asked = location, str(DEFAULT_REF if settings.version is None else settings.version)
            if name not in versions and asked not in found:
                found[asked] = Snapshot.open(*asked)
            snapshots[name] = Snapshot(location, str(versions[name])) if name in versions else found[asked]
    return snapshots


def versions_begun(config: AuditConfig, manifest: Json) -> Versions:
    """The versions that a run was begun with, of inputs for which the configuration asks in the same words."""
    begun: Mapping[str, Json] = manifest["inputs"]
    asked = ("uri", "format", "catalog", "version")
    return {
        name: version
        for name, version in manifest.get("versions", {}).items()
        if name in config.input and all(begun[name].get(key) == getattr(config.input[name], key) for key in asked)
    }


def refuse_other_output(config: AuditConfig) -> None:
    """Refuse to publish to a table that holds anything but versions of this output, or without the package it takes."""
    table = _output_table(config.output, config.storage)
    if table is None:
        return
    known, newest = table.published(), latest(Location.parse(config.output.uri, config.storage))
    if known is not None and (newest is None or known > _number(newest)):
        raise InvalidConfig(
            f"holds version {known} of the scores, but {'no version' if newest is None else newest.name} is the newest "
            "of the output",
            str(table),
            "Delete the table (of Delta Lake: the folder _delta_log), or choose another output.",
        )


def tell_table(config: AuditConfig, version: Version) -> None:
    """Make a published version that of the table of its output, if it has one and that has not been told yet."""
    table, manifest = _output_table(config.output, config.storage), version.manifest()
    if table is None or manifest is None or manifest["output"]["format"] != config.output.format:
        return
    if table.published() == _number(version):
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
    table.publish(_number(version), schema, parts)


def _number(version: Version) -> int:
    return int(version.name[1:])


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
