"""Locations: one way to name, list, read and write objects on a disk, S3, Google Cloud or Azure.

Everything that touches storage goes through here, with one configuration. Requests are retried with backoff by the
store itself; what still fails raises an error that names the object.
"""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache, partial
from itertools import chain, islice
from typing import Any, TypeVar
from urllib.parse import urlsplit

import obstore
from obstore import exceptions
from obstore.store import AzureStore, GCSStore, LocalStore, ObjectStore, S3Store
from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from labelqa_dask.core.errors import InvalidConfig, StorageError

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

# The store of each scheme, and what it calls the address of its server.
_STORES: dict[str, tuple[Any, str]] = {
    "file": (LocalStore, ""),
    "s3": (S3Store, "endpoint"),
    "gs": (GCSStore, "base_url"),
    "az": (AzureStore, "endpoint"),
}
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
# Asked for the role of the machine where the environment holds no credentials.
_INSTANCE_METADATA = "169.254.169.254"
_NO_BUCKET = ("NoSuchBucket", "bucket does not exist", "ContainerNotFound")
# What obstore says of an answer whose headers came, but not all of its body.
_CUT_OFF = "request or response body error"
_READ_AHEAD = 16
_DELETED_AT_ONCE = 1000
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 15.0
# What a disk says that is full, or a quota that is used up.
_FULL = (f"(os error {errno.ENOSPC})", f"(os error {errno.EDQUOT})")
_DENIED = ("403 Forbidden", "401 Unauthorized", "Permission denied (os error 13)")

# A name and a password before the host, and the signature of a URL that was made to be passed on.
_SECRETS = re.compile(
    r"(?<=://)[^/@]*(?=@)|(?<=[?&])(?:sig|signature|awsaccesskeyid|x-amz-[\w-]+|x-goog-[\w-]+)=.*", re.IGNORECASE
)
_NO_SECRETS = "Leave them out, and set them in the environment."


class StorageOptions(BaseModel):
    """How to reach an object store; credentials come from the environment, never from here."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint_url: str | None = None
    """Address of an S3-compatible store or of an emulator, such as a MinIO server."""
    region: str | None = None
    anonymous: bool = False
    """Read public buckets without credentials."""
    timeout_seconds: float = Field(default=60, gt=0, le=86400)
    """A request that takes longer is retried."""
    retry_seconds: float = Field(default=180, ge=0, le=86400)
    """How long failing requests are retried before the run stops."""

    @field_validator("endpoint_url")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        """Refuse what is no address, or more than one; it is not told what was given, which may be secret."""
        parts = urlsplit(value or "http://none")
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise PydanticCustomError("secret", "must be of the form https://host or https://host:port")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise PydanticCustomError(
                "secret", "must be an address alone, as it is written down: set credentials in the environment"
            )
        return value


@dataclass(frozen=True)
class Entry:
    """An object below a location: its path there, and what tells whether it has changed."""

    path: str
    size: int
    version: str


@dataclass(frozen=True)
class Location:
    """A URL and the options to reach it; small, immutable, and usable in every process it is sent to."""

    url: str
    options: StorageOptions = field(default_factory=StorageOptions)

    @classmethod
    def parse(cls, url: str | os.PathLike[str], options: StorageOptions | None = None) -> Location:
        """A location from a path or URL.

        Raises
        ------
        InvalidConfig
            For a scheme that is not supported, or no name.
        """
        scheme, separator, path = os.fspath(url).partition("://")
        if not separator:
            scheme, path = "file", scheme
        told = os.fspath(url) if scheme == "file" else _SECRETS.sub("…", os.fspath(url))
        if scheme not in _STORES:
            raise InvalidConfig(
                f"scheme {scheme!r} is not supported", told, f"Use a path, or one of {', '.join(_STORES)}://."
            )
        if told != os.fspath(url):
            raise InvalidConfig("has credentials in it, which would be written down with it", told, _NO_SECRETS)
        if scheme == "file":
            path = os.path.abspath(os.path.expanduser(path))
        path = path.rstrip("/")
        if not path:
            raise InvalidConfig("names no folder or bucket", told)
        if not {"", ".", ".."}.isdisjoint(path.removeprefix("/").split("/")):
            raise InvalidConfig("has a part that is empty, '.' or '..'", told)
        return cls(f"{scheme}://{path}", options or StorageOptions())

    def __truediv__(self, path: str) -> Location:
        return Location(f"{self.url}/{path}", self.options)

    def __str__(self) -> str:
        return self.local_path or self.url

    @property
    def local_path(self) -> str | None:
        """The path on this machine's disk, if that is where it is."""
        return self.url.removeprefix("file://") if self.url.startswith("file://") else None

    @property
    def parent(self) -> Location:
        return Location(self.url.rpartition("/")[0], self.options)

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def store(self) -> ObjectStore:
        """The store with this location as its root."""
        return _open_store(self.url, self.options)

    def create(self) -> None:
        """Make the folder, where the store has folders."""
        if self.local_path:
            os.makedirs(self.local_path, exist_ok=True)

    def exists(self) -> bool:
        """Whether there is anything at or below this location."""
        if self.local_path:
            return os.path.exists(self.local_path)
        return next(self.entries(), None) is not None

    def is_folder(self) -> bool:
        """Whether there are objects below this location."""
        if self.local_path:
            return os.path.isdir(self.local_path)
        return next(self.entries(), None) is not None

    def read(self, path: str) -> bytes:
        """The content of an object."""
        return self.attempt(path, lambda: bytes(obstore.get(self.store, path).bytes()))

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        """Some bytes of an object."""
        with self.errors_of(path):
            return bytes(obstore.get_range(self.store, path, start=start, end=stop))

    def read_if_exists(self, path: str) -> bytes | None:
        try:
            return self.read(path)
        except FileNotFoundError:
            return None

    def read_many(self, paths: Iterable[str]) -> Iterator[bytes]:
        """The contents of objects, in turn; a few are read ahead, so that few are held."""
        return map_ahead(self.read, paths, _READ_AHEAD)

    def write(self, path: str, content: bytes) -> None:
        """Write an object whole: a reader sees the old one or the new one, never a part."""
        with self.errors_of(path):
            self.create()
        self.attempt(path, lambda: obstore.put(self.store, path, content))

    def copy(self, path: str, to: str) -> None:
        """Copy an object in the store, without reading it; on a disk both share the space (a hard link)."""
        try:
            self.attempt(path, lambda: obstore.copy(self.store, path, to))
        except FileNotFoundError:
            raise
        except StorageError:  # a store that cannot copy, a disk without links
            self.write(to, self.read(path))

    def entries(self, prefix: str | None = None) -> Iterator[Entry]:
        """Every object below this location, or below a path in it, in no particular order."""
        if self.local_path and not os.path.isdir(self.local_path):
            return
        with self.errors_of(prefix or ""):
            batches: Iterator[Any] = iter(obstore.list(self.store, prefix, chunk_size=1000))
        last: str | None = None
        while True:
            try:
                with self.errors_of(prefix or ""):
                    batch = next(batches, None)
            except CutOff:  # objects are listed in the order of their names: the rest is asked for again
                batches = self.attempt(prefix or "", partial(self._list_again, prefix, last))
                continue
            if batch is None:
                return
            for item in batch:
                last = item["path"]
                yield Entry(item["path"], item["size"], _version(item))

    def _list_again(self, prefix: str | None, after: str | None) -> Iterator[Any]:
        """What is listed after an object; the first of it is fetched."""
        batches = iter(obstore.list(self.store, prefix, offset=after, chunk_size=1000))
        first = next(batches, None)
        return chain([first] if first is not None else [], batches)

    def children(self) -> list[str]:
        """Names of the folders directly below this location."""
        if self.local_path and not os.path.isdir(self.local_path):
            return []
        found = self.attempt("", lambda: obstore.list_with_delimiter(self.store)["common_prefixes"])
        return sorted(prefix.rstrip("/").rpartition("/")[2] for prefix in found)

    def delete_object(self, path: str) -> None:
        """Delete one object, if it exists."""
        with suppress(FileNotFoundError):
            self.attempt(path, lambda: obstore.delete(self.store, path))

    def delete(self) -> None:
        """Delete every object below this location."""
        entries = self.entries()
        while paths := [entry.path for entry in islice(entries, _DELETED_AT_ONCE)]:
            self.attempt("", partial(obstore.delete, self.store, paths))
        if self.local_path:
            shutil.rmtree(self.local_path, ignore_errors=True)

    def holds(self, path: str) -> bool:
        """Whether there is an object of this name."""
        try:
            self.attempt(path, lambda: obstore.head(self.store, path))
        except FileNotFoundError:
            return False
        return True

    def reader(self, path: str, version: str | None = None) -> RangeReader:
        """A file-like reader of an object, for ranged reads; refused where it is no longer of the version given."""
        found = self.attempt(path, lambda: obstore.head(self.store, path))
        if version is not None and _version(found) != version:
            raise StorageError("was replaced while it was read", str(self / path), "Run again with --fresh.")
        return RangeReader(self, path, found["size"])

    def attempt(self, path: str, function: Callable[[], ResultT]) -> ResultT:
        """What a function makes of an object, with errors that name it.

        The store retries requests itself, but not where an answer has begun and is cut off: then all is done again,
        with backoff, as long as requests are retried.
        """
        deadline = time.monotonic() + self.options.retry_seconds
        pause = _FIRST_PAUSE
        while True:
            try:
                with self.errors_of(path):
                    return function()
            except CutOff:
                if time.monotonic() + pause > deadline:
                    raise
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    @contextmanager
    def errors_of(self, path: str) -> Iterator[None]:
        """Turn errors of the store into ones that name the object."""
        place = str(self / path) if path else str(self)
        try:
            yield
        except StorageError:
            raise
        except (exceptions.BaseError, OSError) as error:
            explained = _explained(error, place)
            if not isinstance(explained, MissingObject | AccessDenied):
                raise explained from error
            # What Zarr says of a missing array is two kinds of exception at once, which no worker can send back, and
            # what a server says of access that it denied may quote the credentials.
            try:
                raise explained
            finally:
                explained.__context__ = None


def map_ahead(function: Callable[[ItemT], ResultT], items: Iterable[ItemT], threads: int) -> Iterator[ResultT]:
    """Results of a function for each item, in turn; a few are worked on ahead, however many there are."""
    waiting = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        ahead = deque(pool.submit(function, item) for item in islice(waiting, 2 * threads))
        while ahead:
            result = ahead.popleft().result()
            ahead.extend(pool.submit(function, item) for item in islice(waiting, 1))
            yield result


class RangeReader(io.RawIOBase):
    """An object as a file that can be sought in: each read is one request for just that range."""

    def __init__(self, location: Location, path: str, size: int) -> None:
        self._location, self._path, self._size, self._at = location, path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int = -1, /) -> Any:
        start, stop = self._at, self._size if size < 0 else min(self._at + size, self._size)
        if start >= stop:
            return b""
        location, path = self._location, self._path
        content = location.attempt(path, lambda: obstore.get_range(location.store, path, start=start, end=stop))
        self._at = stop
        return content


def _version(found: Mapping[str, Any]) -> str:
    """What changes when an object is written anew; lists and single answers quote it differently in some stores."""
    return str(found["e_tag"] or int(found["last_modified"].timestamp())).strip('"')


class MissingObject(StorageError, FileNotFoundError):
    """An object that does not exist."""

    __str__ = StorageError.__str__


class AccessDenied(StorageError):
    """An object that the credentials in the environment do not give access to."""


class CutOff(StorageError):
    """An answer that ended before it was complete."""


def _explained(error: Exception, place: str) -> StorageError:
    """What an error of a store means; where it does not say by its type, by the answer of the server it quotes."""
    text = str(error).strip() or type(error).__name__
    if _INSTANCE_METADATA in text:
        return StorageError(
            "there are no credentials in the environment",
            place,
            f"Set {_CREDENTIALS[place.partition('://')[0]]}, or storage.anonymous: true for a public bucket.",
        )
    if any(sign in text for sign in _NO_BUCKET):
        return StorageError("the bucket does not exist", place, "Check its name and storage.endpoint_url, or make it.")
    if isinstance(error, FileNotFoundError | exceptions.NotFoundError):
        return MissingObject("does not exist", place)
    denied = isinstance(error, PermissionError | exceptions.PermissionDeniedError | exceptions.UnauthenticatedError)
    if denied or any(sign in text for sign in _DENIED):
        return AccessDenied(
            "access was denied",
            place,
            f"Check the credentials in the environment ({_CREDENTIALS[place.partition('://')[0]]}, or a role) and the "
            "policy of the bucket."
            if "://" in place
            else "Check the permissions of the folder.",
        )
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(sign in text for sign in _FULL):
        return StorageError(
            "there is no space left on the disk, or a quota is used up",
            place,
            "Make room there, then run the same command again; what is finished is kept.",
        )
    if _CUT_OFF in text.splitlines()[0]:
        return CutOff(text.splitlines()[0], place, "Requests were retried until the deadline.")
    retried = "Requests were retried until the deadline." if " retries" in text else ""
    return StorageError(text.splitlines()[0], place, retried)


@lru_cache(maxsize=64)
def _open_store(url: str, options: StorageOptions) -> ObjectStore:
    scheme, _, path = url.partition("://")
    kind, endpoint = _STORES[scheme]
    if kind is LocalStore:
        if not os.path.isdir(path):
            raise FileNotFoundError(path)
        return LocalStore(path)
    retry: Any = {
        "max_retries": 12,
        "retry_timeout": timedelta(seconds=options.retry_seconds),
        "backoff": {
            "init_backoff": timedelta(seconds=_FIRST_PAUSE),
            "max_backoff": timedelta(seconds=_LONGEST_PAUSE),
            "base": 2,
        },
    }
    client: Any = {
        "timeout": timedelta(seconds=options.timeout_seconds),
        "allow_http": (options.endpoint_url or "").startswith("http://"),
    }
    config: dict[str, Any] = {}
    if options.endpoint_url:
        config[endpoint] = options.endpoint_url
    if options.region and scheme == "s3":
        config["region"] = options.region
    account = os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")
    if account and scheme == "az":  # a store whose account it found itself cannot be shown, and Zarr shows its stores
        config["account_name"] = account
    if options.anonymous:
        config["skip_signature"] = True
    bucket, _, prefix = path.partition("/")
    return kind(bucket, prefix=prefix or None, config=config, client_options=client, retry_config=retry)
