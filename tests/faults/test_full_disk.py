"""An output on a disk that runs full: the run says where and what to do, and is finished once there is room."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from labelqa_dask.core.errors import StorageError
from labelqa_dask.storage.location import Location, StorageOptions
from labelqa_dask.storage.record import latest
from pipelines.regions import Progress
from pipelines.verify import verify
from tests.faults.tasks import TASKS, audit_of
from tests.pipelines.audits import Audit, is_idle, wait_until
from tests.stores import Place

DISK_BYTES = 8 << 20
ADVICE = "there is no space left on the disk, or a quota is used up. Make room there, then run the same command again"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"a file system cannot be mounted here: {error}")
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def place(disk: Path) -> Place:
    return Place(str(disk), StorageOptions())


def fill(disk: Path) -> None:
    with suppress(OSError), (disk / "filler").open("ab", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))


def fill_before(stage: str, disk: Path) -> Callable[..., Any]:
    """Run the stages, the disk full from one of them on."""

    def call(name: str, function: Callable[..., Any], *args: Any) -> Any:
        if name == stage:
            fill(disk)
        return function(*args)

    return call


def assert_finished_to_the_same_bytes(audit: Audit, disk: Path, failed: pytest.ExceptionInfo[StorageError]) -> None:
    """Nothing was published; once there is room, the same run goes on where it ended."""
    assert str(failed.value).startswith(f"{audit.location}/"), "the object is named"
    assert ADVICE in str(failed.value)
    wait_until(lambda: is_idle(audit.client))
    assert latest(audit.location) is None
    before = audit.receipts()
    (disk / "filler").unlink()
    assert audit.run().resumed
    after = audit.receipts()
    assert {path: after[path] for path in before} == before, "what was finished is kept"
    other = audit.changed(out="undisturbed")
    other.run()
    assert audit.published() == other.published()
    assert verify(audit.location).problems == ()


@pytest.mark.parametrize(("name", "kind"), [("multiclass", "parquet"), ("segmentation", "zarr")])
def test_a_disk_that_runs_full_between_regions_fails_the_run_which_is_finished_once_there_is_room(
    name: str, kind: str, place: Place, disk: Path, client: Client
) -> None:
    audit = audit_of(place, client, TASKS[name], kind)

    def listen(progress: Progress) -> None:
        if (progress.stage, progress.done) == ("score", 3):
            fill(disk)

    with pytest.raises(StorageError) as failed:
        audit.run(listen)
    assert len(audit.receipts()) >= 3
    assert_finished_to_the_same_bytes(audit, disk, failed)


@pytest.mark.parametrize("stage", ["estimate", "score", "publish"])
@pytest.mark.parametrize("name", ["multiclass", "multiannotator", "num_pixel_issues"])
def test_a_stage_on_a_full_disk_fails_and_is_done_again_once_there_is_room(
    name: str, stage: str, place: Place, disk: Path, client: Client
) -> None:
    audit = audit_of(place, client, TASKS[name])
    with pytest.raises(StorageError) as failed:
        audit.run(call=fill_before(stage, disk))
    assert_finished_to_the_same_bytes(audit, disk, failed)


def test_a_disk_that_is_full_from_the_start_is_told(place: Place, disk: Path, client: Client) -> None:
    audit = audit_of(place, client, TASKS["multiclass"])
    fill(disk)
    with pytest.raises(StorageError, match=ADVICE):
        audit.run()
    (disk / "filler").unlink()
    audit.run()


def test_a_write_that_finds_no_room_leaves_what_was_there(place: Place, disk: Path) -> None:
    location = place("out")
    location.write("a", b"before")
    fill(disk)
    with pytest.raises(StorageError, match=ADVICE):
        location.write("a", bytes(4 * DISK_BYTES))
    assert location.read("a") == b"before"
    assert [entry.path for entry in Location.parse(disk / "out").entries()] == ["a"]
