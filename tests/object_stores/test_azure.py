"""Audits on Azure Blob Storage, against the vendor's own emulator. `make test-stores` installs it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread

import pytest
from distributed import Client, LocalCluster

from labelqa_dask.storage.lease import holder_of, holding
from labelqa_dask.storage.location import StorageOptions
from pipelines.verify import verify
from tests.faults.tasks import TASKS, audit_of
from tests.pipelines.audits import Audit, Interrupted, interrupt, is_idle, wait_until
from tests.stores import Place

pytestmark = pytest.mark.object_store

INSTALLED = Path(__file__).parents[2] / "build/stores/node_modules/.bin/azurite-blob"
ACCOUNT = "devstoreaccount1"
# The emulator's account, which is the same everywhere and no secret.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
CONTAINER = "labelqa"
_READY_SECONDS = 60


@pytest.fixture(scope="module")
def options() -> Iterator[StorageOptions]:
    """How to reach an emulator with one container; its credentials are in the environment."""
    program = str(INSTALLED) if INSTALLED.exists() else shutil.which("azurite-blob")
    if program is None:
        pytest.skip("Azurite is not installed: run make test-stores")
    server = subprocess.Popen(
        [program, "--inMemoryPersistence", "--blobPort", "0", "--skipApiVersionCheck", "--disableTelemetry"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    address: Future[str] = Future()
    log = Thread(target=_follow, args=(server, address))
    log.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT)
            patch.setenv("AZURE_STORAGE_ACCOUNT_KEY", KEY)
            endpoint = f"{address.result(_READY_SECONDS)}/{ACCOUNT}"
            create_container(endpoint)
            yield StorageOptions(endpoint_url=endpoint, timeout_seconds=20, retry_seconds=20)
    finally:
        server.kill()
        server.wait()
        log.join()


def _follow(server: subprocess.Popen[str], address: Future[str]) -> None:
    assert server.stdout is not None
    with server.stdout:
        for line in server.stdout:
            found = re.search(r"successfully listens on (http://[\w.:]+)", line)
            if found and not address.done():
                address.set_result(found[1])
    if not address.done():
        address.set_exception(RuntimeError("the emulator ended before it was ready"))


def create_container(endpoint: str) -> None:
    """Make the container by a request signed by hand."""
    headers = {"x-ms-date": datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT"), "x-ms-version": "2021-08-06"}
    signed = "PUT" + "\n" * 12 + "".join(f"{name}:{value}\n" for name, value in headers.items())
    signed += f"/{ACCOUNT}/{ACCOUNT}/{CONTAINER}\nrestype:container"
    digest = hmac.new(base64.b64decode(KEY), signed.encode(), hashlib.sha256).digest()
    headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
    url = f"{endpoint}/{CONTAINER}?restype=container"
    with urllib.request.urlopen(urllib.request.Request(url, method="PUT", headers=headers)) as answer:
        assert answer.status == 201


@pytest.fixture(scope="module")
def azure_client(options: StorageOptions) -> Iterator[Client]:
    """Workers that have the credentials in their environment."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, memory_limit="2GiB", dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture(params=["zarr", "parquet"])
def audit(request: pytest.FixtureRequest, options: StorageOptions, azure_client: Client) -> Audit:
    place = Place(f"az://{CONTAINER}/{request.param}-{request.function.__name__}", options)
    return audit_of(place, azure_client, TASKS["multiclass"], request.param)


def test_an_audit_is_interrupted_resumed_and_verified(audit: Audit) -> None:
    with pytest.raises(Interrupted):
        audit.run(interrupt("score", 3))
    wait_until(lambda: is_idle(audit.client))
    assert audit.run().resumed
    other = audit.changed(out="undisturbed")
    other.run()
    assert audit.published() == other.published()
    assert verify(audit.location).problems == ()
    assert audit.run().unchanged


def test_an_output_is_held_by_one(audit: Audit) -> None:
    with holding(audit.location):
        assert holder_of(audit.location) is not None
    assert holder_of(audit.location) is None
