"""Snapshots of Icechunk repositories, which stand for the folders of plain Zarr.

Icechunk tells of each commit which chunks it wrote. So a chunk is known by the last commit that wrote it, and no chunk
is read to find out what has changed. Icechunk is imported here alone, and only where a repository is opened.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from zarr.abc.store import Store
from zarr.core.sync import sync

from labelqa_dask.core.errors import InvalidConfig, StorageError, nearest
from labelqa_dask.core.extras import import_extra
from labelqa_dask.storage.location import CutOff, Entry, Location, MissingObject, map_ahead

if TYPE_CHECKING:
    import icechunk

ResultT = TypeVar("ResultT")

DEFAULT_REF = "main"
# Of a reference to a chunk, and of a chunk that is kept beside it, as those of up to 512 bytes are by default.
REFERENCE_BYTES = 128 + 512

_COMMITS_AHEAD = 8
_COMMITS_KNOWN = 1 << 14
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 15.0
_NO_REPOSITORY = "the repository doesn't exist"
_NONE_HERE = "Check the URI, or leave out format: icechunk; repositories that only Icechunk 2 reads are not read."
_NO_SNAPSHOT = ("snapshot not found", "invalid snapshot id")
# What is said of an answer that began and was cut off; that of a chunk is asked for again by Icechunk itself.
_CUT_OFF = "I/O error"
_VIRTUAL = "virtual chunk"
_IS_VIRTUAL = "refers to chunks in other files (virtual chunks)"
_REWRITE = "Only chunks of the repository itself are read: write the array into it."


@dataclass(frozen=True)
class Snapshot:
    """What an Icechunk repository held after one commit; small, and the same in every process it is sent to."""

    location: Location
    id: str

    @classmethod
    def open(cls, location: Location, ref: str = DEFAULT_REF) -> Self:
        """The snapshot that a branch is at now, or that a tag names, or the one of an id.

        Raises
        ------
        InvalidConfig
            Where there is none of that name, or a branch and a tag are called the same; where icechunk is missing.
        StorageError
            Where there is no repository, or it cannot be reached.
        """
        if not location.is_folder():
            what = "is not an Icechunk repository" if location.exists() else "does not exist"
            raise StorageError(what, str(location), "Check the URI.")
        for known in (_repository, _session, _ancestry):  # commits may have been expired since
            known.cache_clear()
        with _errors_at(location):
            repository = _repository(location)
            branches, tags = repository.list_branches(), repository.list_tags()
            if ref in branches and ref in tags:
                either = f"{repository.lookup_branch(ref)} (branch) or {repository.lookup_tag(ref)} (tag)"
                raise InvalidConfig(
                    f"has a branch and a tag {ref!r}", str(location), f"Name the snapshot instead: {either}."
                )
            if ref in branches:
                return cls(location, repository.lookup_branch(ref))
            if ref in tags:
                return cls(location, repository.lookup_tag(ref))
        try:
            with _errors_at(location):
                return cls(location, repository.readonly_session(snapshot_id=ref).snapshot_id)
        except MissingObject:
            raise InvalidConfig(
                f"has no branch, tag or snapshot {ref!r}", str(location), nearest(ref, sorted(branches | tags))
            ) from None

    @property
    def version(self) -> str:
        return self.id

    def __str__(self) -> str:
        return str(self.location)

    def __truediv__(self, path: str) -> Location:
        return self.location / path

    @property
    def store(self) -> Store:
        """What Zarr reads it by."""
        return _session(self).store

    def attempt(self, path: str, function: Callable[[], ResultT]) -> ResultT:
        """What a function makes of an array or a chunk, with errors that name it; tried again as at a location."""

        def tell() -> ResultT:
            with _errors_at(self / path if path else self.location):
                return function()

        return self.location.attempt(path, tell)

    @contextmanager
    def errors_of(self, path: str) -> Iterator[None]:
        """Turn errors of the repository into ones that name the array or the chunk."""
        with self.location.errors_of(path), _errors_at(self / path if path else self.location):
            yield

    def holds(self, path: str) -> bool:
        """Whether there is a chunk, or the metadata of an array or group, of this key."""
        return self.attempt(path, lambda: sync(self.store.exists(path)))

    def refuse_virtual(self, array: str, dimensions: int) -> None:
        """Refuse an array that refers to other files, which may change under it, by its first chunk.

        Where only later chunks do, reading them says so.
        """
        kind = self.attempt(array, lambda: sync(_session(self).chunk_type_async(f"/{array}", [0] * dimensions)))
        if kind == _icechunk(self.location).ChunkType.VIRTUAL:
            raise InvalidConfig(_IS_VIRTUAL, str(self / array), _REWRITE)

    def entries(self, prefix: str | None = None) -> Iterator[Entry]:
        """Every chunk of an array, and its metadata, each with the id of the commit that wrote it last."""
        array = prefix or ""
        written, earlier = self.attempt(array, lambda: self._written(array))
        yield Entry(f"{array}/zarr.json".strip("/"), 0, written.get(None, earlier))
        for chunk in self.attempt(array, lambda: sync(_chunks_of(_session(self), array))):
            yield Entry("/".join([array, "c", *map(str, chunk)]).strip("/"), 0, written.get(chunk, earlier))

    def _written(self, array: str) -> tuple[dict[tuple[int, ...] | None, str], str]:
        """The last commit that wrote each chunk of an array, and its metadata (None); and what stands for older ones.

        Commits are looked through from the newest to the one that made the array. Those that were expired tell nothing
        any more: what they wrote is known by the oldest one left, so that it counts as changed once others expire.
        """
        written: dict[tuple[int, ...] | None, str] = {}
        oldest, path = self.id, f"/{array}"

        def look_up(pair: tuple[str, str]) -> tuple[str, _Commit]:
            return pair[0], self.attempt(array, lambda: _commit(self.location, *pair))

        for oldest, commit in map_ahead(look_up, pairwise(_ancestry(self)), _COMMITS_AHEAD):
            if path in commit.chunks:
                for chunk in commit.chunks[path].tolist():
                    written.setdefault(tuple(chunk), oldest)
            if path in commit.made | commit.updated:
                written.setdefault(None, oldest)
            if path in commit.made:
                break
        return written, f"before {oldest}"


@dataclass(frozen=True)
class _Commit:
    """What a commit has done: chunks written (n, dimensions) by array, arrays made, arrays whose metadata changed."""

    chunks: Mapping[str, NDArray[np.int64]]
    made: frozenset[str]
    updated: frozenset[str]


async def _chunks_of(session: icechunk.Session, array: str) -> list[tuple[int, ...]]:
    """Where the chunks of an array are that exist."""
    return [chunk async for chunk in session.chunk_coordinates(f"/{array}")]


@contextmanager
def _errors_at(place: Location) -> Iterator[None]:
    """Turn Icechunk's errors into ours: what it says first, and the cause that it says last."""
    error_type = _icechunk(place).IcechunkError
    try:
        yield
    except error_type as error:
        explained = _explained(str(error), str(place))
    else:
        return
    raise explained


def _explained(text: str, place: str) -> StorageError:
    """What an error of Icechunk means, by its first line and the last of the causes that it lists below."""
    lines = text.splitlines()
    first = lines[0].strip(" x")
    causes = [line.partition("->")[2].strip() for line in lines if line.lstrip().startswith(("|->", "`->"))]
    if _NO_REPOSITORY in first:
        return StorageError("is not an Icechunk repository", place, _NONE_HERE)
    if any(sign in first for sign in _NO_SNAPSHOT):
        return MissingObject("the snapshot does not exist (any more)", place, "Run again with --fresh.")
    if _VIRTUAL in first:
        return StorageError(_IS_VIRTUAL, place, _REWRITE)
    said = first if not causes or causes[-1] in first else f"{first} ({causes[-1]})"
    if "://" not in place:
        return StorageError(said, place)
    return (CutOff if _CUT_OFF in first else StorageError)(said, place, "Requests were retried until the deadline.")


def _icechunk(place: Location) -> Any:
    return import_extra("icechunk", "icechunk", str(place))


@lru_cache(maxsize=16)
def _repository(location: Location) -> icechunk.Repository:
    ice = _icechunk(location)
    ice.set_logs_filter("error")  # it warns of concurrent commits to a disk, and nothing is committed here
    retry_seconds = location.options.retry_seconds
    config = ice.RepositoryConfig(
        storage=ice.StorageSettings(
            # Parts of a chunk that are fetched side by side are held a second time where they are put together.
            concurrency=ice.StorageConcurrencySettings(
                max_concurrent_requests_for_object=1, ideal_concurrent_request_size=1 << 40
            ),
            retries=ice.StorageRetriesSettings(
                max_tries=_tries(retry_seconds),
                initial_backoff_ms=int(1000 * _FIRST_PAUSE),
                max_backoff_ms=int(1000 * _LONGEST_PAUSE),
            ),
        ),
    )
    return ice.Repository.open(_storage(location), config=config)


def _tries(seconds: float) -> int:
    """How often a request is made whose pauses double until they are as long as they get."""
    doubled = math.log2(_LONGEST_PAUSE / _FIRST_PAUSE)
    pauses = math.log2(1 + seconds / _FIRST_PAUSE)
    return 1 + int(pauses if pauses < doubled else doubled + (seconds - _LONGEST_PAUSE) / _LONGEST_PAUSE)


def _storage(location: Location) -> icechunk.Storage:
    ice, options = _icechunk(location), location.options
    if location.local_path:
        return ice.local_filesystem_storage(location.local_path)
    scheme, _, path = location.url.partition("://")
    if scheme != "s3":
        raise InvalidConfig(
            f"is at {scheme}://, where Icechunk repositories are not read",
            str(location),
            "Use a repository on a disk or s3://.",
        )
    bucket, _, prefix = path.partition("/")
    return ice.s3_storage(
        bucket=bucket,
        prefix=prefix or None,
        region=options.region,
        endpoint_url=options.endpoint_url,
        allow_http=(options.endpoint_url or "").startswith("http://"),
        force_path_style=options.endpoint_url is not None,
        network_stream_timeout_seconds=max(1, round(options.timeout_seconds)),
        **({"anonymous": True} if options.anonymous else {"from_env": True}),
    )


@lru_cache(maxsize=16)
def _session(snapshot: Snapshot) -> icechunk.Session:
    return _repository(snapshot.location).readonly_session(snapshot_id=snapshot.id)


@lru_cache(maxsize=16)
def _ancestry(snapshot: Snapshot) -> tuple[str, ...]:
    """Ids of a snapshot and of those before it, newest first."""
    return tuple(each.id for each in _repository(snapshot.location).ancestry(snapshot_id=snapshot.id))


@lru_cache(maxsize=_COMMITS_KNOWN)
def _commit(location: Location, newer: str, older: str) -> _Commit:
    """What the commit has done that leads from one snapshot to the next; looked up once for all arrays."""
    diff = _repository(location).diff(from_snapshot_id=older, to_snapshot_id=newer)
    chunks = {path: np.array(written, np.int64) for path, written in diff.updated_chunks.items()}
    return _Commit(chunks, frozenset(diff.new_arrays), frozenset(diff.updated_arrays))
