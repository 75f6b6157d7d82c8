"""A Zarr group whose chunks are written first and whose metadata last: until then, no reader finds any of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import zarr
from zarr.storage import ObjectStore as ZarrObjectStore
from zarr.storage import StorePath

from labelqa_dask.core.kernels import Array
from labelqa_dask.storage.location import Location
from labelqa_dask.storage.record import Json
from labelqa_dask.storage.sinks import OutputArray, group_documents

_ROOT = "zarr.json"


@dataclass(frozen=True)
class StagedZarr:
    """A Zarr group (format 3) in the making; small, and usable in every process it is sent to."""

    location: Location
    arrays: tuple[OutputArray, ...]

    def __getstate__(self) -> tuple[Location, tuple[OutputArray, ...]]:
        return self.location, self.arrays

    def __setstate__(self, state: tuple[Location, tuple[OutputArray, ...]]) -> None:
        for name, value in zip(("location", "arrays"), state, strict=True):
            object.__setattr__(self, name, value)

    def write(self, name: str, index: tuple[slice, ...], values: Array) -> None:
        """Write whole chunks of an array."""
        with self.location.errors_of(name):
            self._nodes[name][index] = values

    def publish(self, attributes: Mapping[str, Any]) -> None:
        """Write the metadata of the arrays, and last those of the group, which hold them all."""
        documents = group_documents(self.arrays, attributes)
        root = documents.pop(_ROOT)
        for path, content in documents.items():
            self.location.write(path, content)
        self.location.write(_ROOT, root)

    @cached_property
    def _nodes(self) -> dict[str, Any]:
        self.location.create()
        store = ZarrObjectStore(self.location.store)
        documents = group_documents(self.arrays, {})
        return {
            array.name: zarr.Array(
                zarr.AsyncArray(json.loads(documents[f"{array.name}/{_ROOT}"]), StorePath(store, array.name))
            )
            for array in self.arrays
        }


def published_attributes(location: Location) -> Json | None:
    """Attributes of a published group; None where there is none."""
    content = location.read_if_exists(_ROOT)
    try:
        attributes: Json | None = json.loads(content)["attributes"] if content else None
    except (ValueError, KeyError, TypeError):
        return None
    return attributes


def withdraw(location: Location) -> None:
    """Delete a group, its metadata first, so that no reader finds a part of it."""
    for path in [_ROOT, *(f"{name}/{_ROOT}" for name in location.children())]:
        location.delete_object(path)
    location.delete()
