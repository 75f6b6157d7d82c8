"""What tests share: stores that are really there, and a real cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import dask
import pytest
from distributed import Client, LocalCluster

from labelqa_dask.storage.location import StorageOptions
from tests.stores import CREDENTIALS, Place, create_bucket, s3_server

_BUCKET = "labelqa"
_prefixes = count()
# As in the clusters that a run begins, and for the same reason; in processes that tests start too.
os.environ["DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED"] = "False"
dask.config.refresh()


@pytest.fixture(scope="session")
def credentials() -> Iterator[None]:
    """Credentials in the environment, before anything is started that inherits it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION"):
            patch.delenv(name, raising=False)
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def s3_options(credentials: None) -> Iterator[StorageOptions]:
    """How to reach an S3 server with one bucket."""
    with s3_server() as options:
        create_bucket(options, _BUCKET)
        yield options


@pytest.fixture
def s3(s3_options: StorageOptions) -> Place:
    """Room in a bucket, under a prefix that no other test uses: `.options`, and `.url(name)`."""
    return Place(f"s3://{_BUCKET}/test-{next(_prefixes)}", s3_options)


@pytest.fixture(params=["file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Room on the disk and room in a bucket: a test that takes it runs on both."""
    return request.getfixturevalue("s3") if request.param == "s3" else Place(str(tmp_path), StorageOptions())


@pytest.fixture(scope="session")
def client(credentials: None) -> Iterator[Client]:
    """A client of two worker processes with one thread each."""
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, memory_limit="4GiB", dashboard_address=":0"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client
