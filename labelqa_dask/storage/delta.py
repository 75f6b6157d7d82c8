"""Delta Lake: a folder of Parquet files, and a log of which of them are the table."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from labelqa_dask.core.errors import InvalidConfig, InvalidInput, StorageError
from labelqa_dask.core.extras import import_extra
from labelqa_dask.storage.location import Location
from labelqa_dask.storage.parquet_source import ParquetFiles
from labelqa_dask.storage.tables import APP, Part

# VACUUM deletes old files that the log does not name, such as our summaries and reports.
_KEEP = {"delta.deletedFileRetentionDuration": "interval 5200 weeks"}
_TERMINAL = re.compile(r"\x1b\[[0-9;]*m|↳")


@dataclass(frozen=True)
class DeltaLake:
    """A Delta table in a folder."""

    location: Location

    def __str__(self) -> str:
        return str(self.location)

    def files(self, version: int | None) -> ParquetFiles:
        with self._errors("" if version is None else f"version {version} cannot be read: "):
            table = self._open(version)
            self._refuse_what_files_do_not_tell(table)
            adds = pa.table(table.get_add_actions())
            partitions = table.metadata().partition_columns
        if not adds.num_rows:
            raise InvalidInput("holds no rows", str(self), "Give a table, or a version of it, that has some.")
        names = ("modification_time", "path", "size_bytes")
        found = sorted(zip(*(adds[name].to_pylist() for name in names), strict=True))
        files = tuple((self._inside(unquote(path)), size, None) for _, path, size in found)
        refused = dict.fromkeys(partitions, "is a partition column, whose values are not in the files")
        return ParquetFiles(str(self), self.location, files, refused, table.version())

    def published(self) -> int | None:
        if not self._exists():
            return None
        with self._errors():
            number: int | None = self._open(None).transaction_version(APP)
        if number is None:
            raise InvalidConfig(
                "is a Delta table that no audit has made; its rows would be removed",
                str(self),
                "Choose another output.uri.",
            )
        return number

    def publish(self, number: int, schema: pa.Schema, parts: Sequence[Part]) -> None:
        delta, log = self._package(), import_extra("deltalake.transaction", "delta", str(self))
        now = int(time.time() * 1000)
        adds = [log.AddAction(part.path, part.size, {}, now, True, _statistics(part)) for part in parts]
        told = log.CommitProperties(app_transactions=[delta.Transaction(APP, number)])
        fields = delta.Schema.from_arrow(schema)
        with self._errors():
            if self._exists():
                self._open(None).create_write_transaction(adds, "overwrite", fields, commit_properties=told)
                return
            log.create_table_with_add_actions(
                self._address,
                fields,
                adds,
                configuration=_KEEP,
                storage_options=self._options,
                commit_properties=told,
            )

    def _package(self) -> Any:
        return import_extra("deltalake", "delta", str(self))

    def _exists(self) -> bool:
        with self._errors():
            return bool(self._package().DeltaTable.is_deltatable(self._address, self._options))

    def _open(self, version: int | None) -> Any:
        return self._package().DeltaTable(self._address, version=version, storage_options=self._options)

    @property
    def _address(self) -> str:
        return str(self)

    @property
    def _options(self) -> dict[str, str]:
        """How the store is reached, in the words of deltalake; credentials it takes from the environment, as we do."""
        options, scheme = self.location.options, self.location.url.partition("://")[0]
        if scheme == "file":
            return {}
        found = {"timeout": f"{options.timeout_seconds}s", "retry_timeout": f"{options.retry_seconds}s"}
        if options.endpoint_url:
            address = {"s3": "aws_endpoint", "gs": "google_base_url", "az": "azure_endpoint"}[scheme]
            found[address] = options.endpoint_url
            found["allow_http"] = str(options.endpoint_url.startswith("http://")).lower()
        if options.region and scheme == "s3":
            found["aws_region"] = options.region
        if options.anonymous:
            found["skip_signature"] = "true"
        return found

    def _refuse_what_files_do_not_tell(self, table: Any) -> None:
        """Refuse rows that are marked as deleted elsewhere, and columns of other names than in the files."""
        features = set(table.protocol().reader_features or ())
        if table.metadata().configuration.get("delta.columnMapping.mode", "none") != "none":
            raise InvalidInput(
                "maps columns to other names in its files (delta.columnMapping.mode), which is not supported",
                str(self),
                "Write it anew, or a copy, without column mapping.",
            )
        if "deletionVectors" in features and any(batch.num_rows for batch in table.deletion_vectors()):
            raise InvalidInput(
                "marks rows as deleted that are still in its files (deletion vectors), which is not supported",
                str(self),
                "Remove them from the files: REORG TABLE … APPLY (PURGE). Set delta.enableDeletionVectors to false.",
            )

    def _inside(self, path: str) -> str:
        """A path that the log tells, if it is one in the folder."""
        if "://" in path or path.startswith(("/", "file:")):
            raise InvalidInput(
                f"holds the file {path}, which lies outside of its folder, as in a shallow clone",
                str(self),
                "Clone it with its files, or give the table that it was cloned from.",
            )
        return path

    @contextmanager
    def _errors(self, doing: str = "") -> Iterator[None]:
        """Turn what deltalake raises into errors that name the table."""
        errors = import_extra("deltalake.exceptions", "delta", str(self))
        with self.location.errors_of(""):
            try:
                yield
            except StorageError:
                raise
            except errors.TableNotFoundError as error:
                raise StorageError("holds no Delta table", str(self), "Check the URI.") from error
            except (errors.DeltaError, OSError) as error:
                raise OSError(doing + " ".join(_TERMINAL.sub("", str(error)).split())) from error


def _statistics(part: Part) -> str:
    """What lets readers skip a file."""
    rows = {"numRecords": part.stop - part.start, "nullCount": {"row": 0}}
    return json.dumps({**rows, "minValues": {"row": part.start}, "maxValues": {"row": part.stop - 1}})
