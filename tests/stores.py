"""Where tests put their data: a folder on the disk, or a bucket of a real S3 server that the session starts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Thread
from typing import Any

import boto3

from labelqa_dask.storage.location import Location, StorageOptions

REGION = "eu-central-1"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_EC2_METADATA_DISABLED": "true",
}
_READY_SECONDS = 60


@dataclass(frozen=True)
class Place:
    """Room for one test's data, on the disk or in a bucket."""

    root: str
    options: StorageOptions

    def __call__(self, path: str) -> Location:
        return Location.parse(self.url(path), self.options)

    def url(self, path: str) -> str:
        return f"{self.root}/{path}"

    @property
    def is_local(self) -> bool:
        return "://" not in self.root

    @property
    def settings(self) -> dict[str, Any]:
        """The `storage` section of a configuration that reaches it."""
        return self.options.model_dump(exclude_defaults=True)

    def writes(self, path: str) -> dict[str, str]:
        """Which write each object below a path comes from: a later one differs, even where it wrote the same."""
        location = self(path)
        if self.is_local:
            return {entry.path: entry.version for entry in location.entries()}
        bucket, _, prefix = location.url.removeprefix("s3://").partition("/")
        pages = (
            s3_client(self.options).get_paginator("list_object_versions").paginate(Bucket=bucket, Prefix=f"{prefix}/")
        )
        return {
            found["Key"].removeprefix(f"{prefix}/"): found["VersionId"]
            for page in pages
            for found in page.get("Versions", [])
            if found["IsLatest"]
        }


@contextmanager
def s3_server(environment: Mapping[str, str] = {}) -> Iterator[StorageOptions]:
    """An S3 server on a free port of this machine, for the length of the block; yields how to reach it."""
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "--port", "0"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
        text=True,
    )
    address: Future[str] = Future()
    log = Thread(target=_follow, args=(server, address))
    log.start()
    try:
        yield StorageOptions(
            endpoint_url=address.result(_READY_SECONDS), region=REGION, timeout_seconds=20, retry_seconds=20
        )
    finally:
        server.kill()
        server.wait()
        log.join()


def _follow(server: subprocess.Popen[str], address: Future[str]) -> None:
    """Read the log to its end, so that the server never waits for a reader; tell the address once it is served."""
    assert server.stderr is not None
    with server.stderr:
        for line in server.stderr:
            found = re.search(r"Running on (http://[\w.:]+)", line)
            if found and not address.done():
                address.set_result(found[1])
    if not address.done():
        address.set_exception(RuntimeError("the S3 server ended before it was ready"))


def s3_client(options: StorageOptions) -> Any:
    """Another library's way to the same server."""
    return boto3.client("s3", endpoint_url=options.endpoint_url, region_name=options.region)


def create_bucket(options: StorageOptions, name: str, *, versioned: bool = True) -> None:
    """Make a bucket; a versioned one tells every write from the one before."""
    s3 = s3_client(options)
    s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
    if versioned:
        s3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})


def unopposed() -> None:
    """For a version that nobody else wants to publish at the same time."""
