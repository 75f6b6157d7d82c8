"""Icechunk repositories on the disk and in a bucket, as those who own them write them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import icechunk
import zarr
from numpy.typing import NDArray

from tests.stores import Place

icechunk.set_logs_filter("error")  # it warns of concurrent commits to a disk


def storage_of(place: Place, path: str) -> icechunk.Storage:
    if place.is_local:
        return icechunk.local_filesystem_storage(place.url(path))
    bucket, _, prefix = place.url(path).removeprefix("s3://").partition("/")
    return icechunk.s3_storage(
        bucket=bucket,
        prefix=prefix,
        region=place.options.region,
        endpoint_url=place.options.endpoint_url,
        allow_http=True,
        force_path_style=True,
        from_env=True,
    )


def create_repository(place: Place, path: str = "repository") -> icechunk.Repository:
    return icechunk.Repository.create(storage_of(place, path))


def commit(repository: icechunk.Repository, change: Callable[[Any], object], *, branch: str = "main") -> str:
    """Change the root group of a branch in one commit; returns its snapshot."""
    session = repository.writable_session(branch)
    change(zarr.open_group(session.store, mode="a"))
    return session.commit("change")


def store(arrays: Mapping[str, NDArray[Any]], rows: int) -> Callable[[Any], object]:
    """A change that makes arrays anew, in chunks of some rows."""

    def change(group: Any) -> None:
        for name, values in arrays.items():
            dtype: Any = "str" if values.dtype == object else values.dtype
            chunks = (rows, *values.shape[1:])
            array = group.create_array(name, shape=values.shape, dtype=dtype, chunks=chunks, overwrite=True)
            array[...] = values

    return change


def put(name: str, where: Any, values: Any) -> Callable[[Any], object]:
    """A change of some values of an array."""

    def change(group: Any) -> None:
        group[name][where] = values

    return change


def resize(name: str, rows: int) -> Callable[[Any], object]:
    """A change of an array's length."""

    def change(group: Any) -> None:
        group[name].resize((rows, *group[name].shape[1:]))

    return change
