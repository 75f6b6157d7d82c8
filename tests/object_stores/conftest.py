"""Object stores that are started for a module of tests, and clusters whose workers can reach them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest
from distributed import Client, LocalCluster

from labelqa_dask.storage.location import StorageOptions
from tests.object_stores import swift
from tests.stores import Place

_prefixes = count()


@pytest.fixture(scope="module")
def swift_options(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StorageOptions]:
    """How to reach OpenStack Swift with one bucket; the credentials are in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION"):
            patch.delenv(name, raising=False)
        for name, value in swift.CREDENTIALS.items():
            patch.setenv(name, value)
        with swift.swift(tmp_path_factory.mktemp("swift")) as options:
            yield options


@pytest.fixture(scope="module")
def swift_client(swift_options: StorageOptions) -> Iterator[Client]:
    """Workers that have the credentials of Swift in their environment."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, memory_limit="2GiB", dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture
def on_swift(swift_options: StorageOptions) -> Place:
    """Room in a bucket of Swift, under a prefix that no other test uses."""
    return Place(f"s3://{swift.BUCKET}/test-{next(_prefixes)}", swift_options)
