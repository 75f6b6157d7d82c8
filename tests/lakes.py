"""Tables of a data lake that other libraries write: Delta Lake and Iceberg behind the same few words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from pyiceberg.catalog import load_catalog

from tests.stores import Place

KINDS = ["delta", "iceberg"]
CATALOG, NAMESPACE = "lake", "ml"


class Lake(Protocol):
    """One table: it is made by the first `append`."""

    @property
    def settings(self) -> dict[str, Any]:
        """What an input or an output is told of it."""
        ...

    def append(self, rows: pa.Table) -> None: ...
    def overwrite(self, rows: pa.Table) -> None: ...
    def delete(self, condition: str) -> None:
        """Delete rows; the files that hold them are rewritten."""
        ...

    def version(self) -> int:
        """The newest version."""
        ...

    def history(self) -> list[pd.DataFrame]:
        """All rows of each version that there ever was, oldest first, in the order of their column `row`."""
        ...


@dataclass(frozen=True)
class DeltaFolder:
    place: Place
    name: str

    @property
    def settings(self) -> dict[str, Any]:
        return {"uri": self.place.url(self.name), "format": "delta"}

    @property
    def address(self) -> str:
        return self.place.url(self.name)

    @property
    def options(self) -> dict[str, str]:
        options = self.place.options
        if self.place.is_local:
            return {}
        return {
            "aws_endpoint": str(options.endpoint_url),
            "aws_region": str(options.region),
            "aws_allow_http": "true",
        }

    def open(self, version: int | None = None) -> DeltaTable:
        return DeltaTable(self.address, version=version, storage_options=self.options)

    def append(self, rows: pa.Table) -> None:
        write_deltalake(self.address, rows, mode="append", storage_options=self.options)

    def overwrite(self, rows: pa.Table) -> None:
        write_deltalake(self.address, rows, mode="overwrite", storage_options=self.options)

    def delete(self, condition: str) -> None:
        self.open().delete(condition)

    def version(self) -> int:
        return self.open().version()

    def history(self) -> list[pd.DataFrame]:
        return [_in_order(self.open(version).to_pandas()) for version in range(self.version() + 1)]


@dataclass(frozen=True)
class IcebergTable:
    place: Place
    name: str

    @property
    def settings(self) -> dict[str, Any]:
        return {"uri": self.identifier, "format": "iceberg", "catalog": CATALOG}

    @property
    def identifier(self) -> str:
        return f"{NAMESPACE}.{self.name}"

    def open(self) -> Any:
        return self.catalog().load_table(self.identifier)

    def catalog(self) -> Any:
        told: dict[str, str] = {}
        if not self.place.is_local:
            told = {"s3.endpoint": str(self.place.options.endpoint_url), "s3.region": str(self.place.options.region)}
        return load_catalog(CATALOG, **told)

    def append(self, rows: pa.Table) -> None:
        self.catalog().create_table_if_not_exists(self.identifier, rows.schema).append(rows)

    def overwrite(self, rows: pa.Table) -> None:
        self.open().overwrite(rows)

    def delete(self, condition: str) -> None:
        self.open().delete(condition)

    def version(self) -> int:
        return int(self.open().current_snapshot().snapshot_id)

    def history(self) -> list[pd.DataFrame]:
        table = self.open()
        found = sorted(table.snapshots(), key=lambda snapshot: snapshot.sequence_number)
        return [_in_order(table.scan(snapshot_id=snapshot.snapshot_id).to_pandas()) for snapshot in found]


def lake_of(kind: str, place: Place, name: str) -> Lake:
    return DeltaFolder(place, name) if kind == "delta" else IcebergTable(place, name)


@contextmanager
def catalog_in(folder: Path, place: Place) -> Iterator[None]:
    """A catalog in a file, and pyiceberg configured by the environment to find it."""
    import pyiceberg.catalog
    from pyiceberg.utils.config import Config

    warehouse = place.url("warehouse")
    settings = {
        "TYPE": "sql",
        "URI": f"sqlite:///{folder}/catalog.db",
        "WAREHOUSE": f"file://{warehouse}" if place.is_local else warehouse,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(f"PYICEBERG_CATALOG__{CATALOG.upper()}__{name}", value)
        patch.setattr(pyiceberg.catalog, "_ENV_CONFIG", Config())  # it reads the environment when it is imported
        load_catalog(CATALOG).create_namespace(NAMESPACE)
        yield


def _in_order(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.sort_values("row", ignore_index=True) if "row" in rows else rows
