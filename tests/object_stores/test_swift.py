"""Audits on OpenStack Swift: a real object store that speaks S3, and whose conditional writes are not atomic."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import obstore
import pytest
import yaml
from distributed import Client
from obstore.exceptions import AlreadyExistsError

from labelqa_dask.storage.lease import holder_of
from pipelines.verify import verify
from tests.pipelines.audits import Interrupted, begin_together, interrupt, is_idle, wait_until
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


def test_of_two_drivers_one_works_and_the_other_is_told_who_since_when_and_what_to_do(
    on_swift: Place, tmp_path: Path
) -> None:
    audit = audit_on(on_swift, None, "multiclass", "parquet")  # type: ignore[arg-type]
    cluster = {"workers": 1, "memory_limit": "2GiB"}
    config = {**audit.config.model_dump(mode="json", exclude_defaults=True), "cluster": cluster}
    (tmp_path / "audit.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "flows.cli", "run", "--no-prefect", str(tmp_path / "audit.yaml")]
    first = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: first.poll() is not None or holder_of(audit.location) is not None)
        os.killpg(first.pid, signal.SIGSTOP)
        second = subprocess.run(command, capture_output=True, text=True)
        assert second.returncode == 1
        since = (
            r"has been working on this output since \S+\. Wait until it ends, or choose another output\. If it is dead"
        )
        assert re.search(rf"process {first.pid} on \S+ {since}", second.stderr.replace("\n", " "))
        os.killpg(first.pid, signal.SIGCONT)
        assert first.wait() == 0
    finally:
        if first.poll() is None:
            os.killpg(first.pid, signal.SIGKILL)
            first.wait()
    assert holder_of(audit.location) is None
    assert verify(audit.location).problems == ()


def test_of_several_that_begin_at_once_one_holds_an_output(on_swift: Place) -> None:
    for number in range(5):
        assert sum(begin_together(on_swift(f"out-{number}"), 5)) == 1


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
