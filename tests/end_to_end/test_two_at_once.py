"""Two drivers on one output: one works, the other is refused; and if both worked, the result would still be right."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from labelqa_dask.core.errors import RunConflict, RunFailed, StorageError
from labelqa_dask.storage import lease as leases
from labelqa_dask.storage.lease import Lease, holder_of
from labelqa_dask.storage.record import Version, latest
from pipelines.regions import Listener, Progress
from pipelines.verify import verify
from tests.end_to_end.elsewhere import SECONDS
from tests.pipelines.audits import wait_until
from tests.pipelines.every_task import audit_on
from tests.stores import Place

RUN = ("run", "--no-prefect")
HERE = [sys.executable, "-m", "flows.cli", *RUN]


def on_host(name: str) -> list[str]:
    return [sys.executable, "-m", "tests.end_to_end.elsewhere", name, *RUN]


def start(command: list[str], config: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*command, str(config)], start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_the_lease_of_a_machine_that_is_gone_expires_and_its_return_does_no_harm(
    segmentation_from_zarr, tmp_path, config_file, published_files
):
    stored = segmentation_from_zarr(str(tmp_path), n=60)
    config = config_file(stored)
    version = Version(stored.out, "v000001")
    first = start(on_host("first"), config)
    try:
        wait_until(lambda: first.poll() is not None or sum(1 for _ in (version.run / "done").entries()) >= 3)
        os.killpg(first.pid, signal.SIGSTOP)
        holder = holder_of(stored.out)
        assert holder is not None
        refused = start(HERE, config)
        message = refused.communicate()[1]
        assert refused.returncode == 1, message
        assert f"process {first.pid} on first has been working" in message
        wait_until(lambda: time.time() > holder.heard + SECONDS)
        second = start(on_host("second"), config)
        message = second.communicate()[1]
        assert second.returncode == 0, message
        published = published_files(stored.out)
        os.killpg(first.pid, signal.SIGCONT)
        message = first.communicate()[1]
        assert first.returncode == 1
        assert "another run has taken over this output, as this one was not heard of" in message
    finally:
        end(first)
    assert latest(stored.out) == version
    assert published_files(stored.out) == published
    assert verify(stored.out).problems == ()


# -- as if the lease had failed: both believe that they hold the output ------------------------------------------------


@pytest.fixture
def unguarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody sees the claim of anybody else."""
    monkeypatch.setattr(leases, "_claims", lambda out: iter(()))
    monkeypatch.setattr(Lease, "is_mine", True)


def meanwhile(act: Any, stage: str = "score") -> Listener:
    """Do something in the middle of a stage."""
    did: list[bool] = []

    def listen(progress: Progress) -> None:
        if progress.stage == stage and progress.done >= 1 and not did:
            did.append(True)
            act()

    return listen


@pytest.mark.usefixtures("unguarded")
@pytest.mark.parametrize(("name", "kind"), [("multiclass", "parquet"), ("multilabel", "zarr")])
def test_two_of_the_same_settings_publish_the_same_bytes(name: str, kind: str, place: Place, client: Client) -> None:
    audit = audit_on(place, client, name, kind)
    undisturbed = audit.changed(out="undisturbed")
    undisturbed.run()
    found: list[dict[str, bytes]] = []

    def other() -> None:
        audit.run()
        found.append(audit.published())

    audit.run(meanwhile(other))
    assert found == [undisturbed.published()]
    assert audit.published() == undisturbed.published()
    assert verify(audit.location).problems == ()


@pytest.mark.usefixtures("unguarded")
def test_two_of_other_settings_do_not_mix(place: Place, client: Client) -> None:
    audit = audit_on(place, client, "multiclass", "parquet")
    other = audit.changed(params={"method": "normalized_margin"})
    refused: list[str] = []

    def run_other() -> None:
        with pytest.raises(RunConflict) as caught:
            other.run()
        refused.append(str(caught.value))

    audit.run(meanwhile(run_other))
    assert "was begun with other settings or inputs: params.method" in refused[0]
    undisturbed = audit.changed(out="undisturbed")
    undisturbed.run()
    assert audit.published() == undisturbed.published()


@pytest.mark.usefixtures("unguarded")
def test_two_of_other_settings_that_begin_at_the_same_instant_do_not_mix(
    place: Place, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second writes its manifest after the first has looked whether there is one, and before it reads its own."""
    audit = audit_on(place, client, "multiclass", "parquet")
    other = audit.changed(params={"method": "normalized_margin"})
    alone = other.changed(out="alone")
    alone.run()
    write_manifest = Version.write_manifest

    def write_and_be_overtaken(version: Version, manifest: Any) -> None:
        write_manifest(version, manifest)
        theirs = alone.version().manifest()
        assert theirs is not None
        write_manifest(version, theirs)

    monkeypatch.setattr(Version, "write_manifest", write_and_be_overtaken)
    with pytest.raises(RunConflict, match=r"begun with other settings or inputs: params\.method"):
        audit.run()
    assert other.run().resumed
    assert other.published() == alone.published()
    assert verify(other.location).problems == ()


@pytest.mark.usefixtures("unguarded")
@pytest.mark.parametrize("stage", ["estimate confident_thresholds", "score"])
def test_a_run_whose_version_was_discarded_publishes_nothing(stage: str, place: Place, client: Client) -> None:
    audit = audit_on(place, client, "multiclass", "zarr")
    published: list[dict[str, bytes]] = []

    def discard() -> None:
        audit.run(fresh=True)
        published.append(audit.published("v000002"))

    with pytest.raises((RunConflict, RunFailed, StorageError)):
        audit.run(meanwhile(discard, stage))
    assert latest(audit.location) == audit.version("v000002")
    assert audit.published("v000002") == published[0]
    assert verify(audit.location).problems == ()
