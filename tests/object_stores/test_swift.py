"""Audits on OpenStack Swift: a real object store that speaks S3, and whose conditional writes are not atomic."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import obstore
import pytest
from distributed import Client
from obstore.exceptions import AlreadyExistsError

from pipelines.verify import verify
from tests.pipelines.audits import Interrupted, interrupt, is_idle, wait_until
from tests.pipelines.every_task import AUDITS, audit_on, differs_from_the_disk
from tests.stores import Place

pytestmark = pytest.mark.object_store


@pytest.mark.parametrize(("name", "kind"), AUDITS)
def test_an_audit_publishes_the_bytes_of_one_on_a_disk(
    name: str, kind: str, on_swift: Place, swift_client: Client, tmp_path: Path
) -> None:
    audit = audit_on(on_swift, swift_client, name, kind)
    assert differs_from_the_disk(audit, str(tmp_path)) == {}
    assert verify(audit.location).problems == ()
    assert audit.run().unchanged


@pytest.mark.parametrize("kind", ["zarr", "parquet"])
def test_an_audit_is_interrupted_and_resumed(kind: str, on_swift: Place, swift_client: Client, tmp_path: Path) -> None:
    audit = audit_on(on_swift, swift_client, "multiclass", kind)
    with pytest.raises(Interrupted):
        audit.run(interrupt("score", 1))
    wait_until(lambda: is_idle(audit.client))
    assert audit.run().resumed
    assert differs_from_the_disk(audit, str(tmp_path)) == {}


def test_objects_are_listed_read_and_deleted(on_swift: Place) -> None:
    location = on_swift("ünï/a b%20#?+")
    location.write("x/y", b"1")
    location.write("large", bytes(12 << 20))
    assert {entry.path: entry.size for entry in location.entries()} == {"x/y": 1, "large": 12 << 20}
    assert location.children() == ["x"]
    assert location.read("x/y") == b"1"
    assert location.read("large") == bytes(12 << 20)
    assert location.read_range("large", 3, 5) == bytes(2)
    assert location.read_if_exists("z") is None
    location.delete()
    assert not location.exists()


def test_its_conditional_writes_are_not_atomic(on_swift: Place) -> None:
    """Why nothing here rests on them: of writers that each ask to be the first, several are told that they are."""
    store = on_swift("claims").store

    def claim(path: str) -> bool:
        try:
            obstore.put(store, path, b"1", mode="create")
        except AlreadyExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        winners = [sum(pool.map(claim, [f"{number}"] * 8)) for number in range(20)]
    assert min(winners) >= 1
    assert max(winners) > 1
