"""A run that is killed at any moment is finished by the same command, and nobody can tell."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from labelqa_dask.storage.lease import holder_of
from labelqa_dask.storage.record import Version, latest

COMMAND = [sys.executable, "-m", "flows.cli", "run", "--no-prefect"]


def run(config: Path) -> None:
    subprocess.run([*COMMAND, str(config)], check=True, capture_output=True, text=True)


def run_and_kill(config: Path, version: Version, *, after_receipts: int) -> dict[str, str]:
    """Start a run, SIGKILL the driver and all its workers after some receipts; returns what was receipted then."""
    process = subprocess.Popen([*COMMAND, str(config)], start_new_session=True, stdout=subprocess.DEVNULL)
    receipts = Path(version.run.local_path or "") / "done"
    try:
        while process.poll() is None:
            if receipts.is_dir() and len(os.listdir(receipts)) >= after_receipts:
                break
        assert process.poll() is None, "the run ended before it could be killed"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return {entry.path: entry.version for entry in (version.run / "done").entries()}


@pytest.mark.parametrize("kind", ["segmentation_from_zarr", "multiclass_from_parquet"])
def test_a_killed_run_is_resumed_to_the_same_bytes(kind, request, tmp_path, config_file, published_files):
    stored = request.getfixturevalue(kind)(str(tmp_path), n=200 if "zarr" in kind else 20_000)
    undisturbed = stored.into(str(tmp_path / "undisturbed"))
    run(config_file(undisturbed, "undisturbed.yaml"))

    config = config_file(stored)
    version = Version(stored.out, "v000001")
    done_before = run_and_kill(config, version, after_receipts=3)
    assert latest(stored.out) is None, "a reader must not see an unfinished version"
    run(config)

    assert published_files(stored.out) == published_files(undisturbed.out)
    assert latest(stored.out) == version
    done_after = {entry.path: entry.version for entry in (version.run / "done").entries()}
    kept = {path for path in done_before if done_after[path] == done_before[path]}
    assert kept == set(done_before), "finished regions must not be computed again"


def test_a_run_killed_again_and_again_still_ends_in_the_same_bytes(
    segmentation_from_zarr, tmp_path, config_file, published_files
):
    stored = segmentation_from_zarr(str(tmp_path), n=120)
    undisturbed = stored.into(str(tmp_path / "undisturbed"))
    run(config_file(undisturbed, "undisturbed.yaml"))
    config = config_file(stored)
    version = Version(stored.out, "v000001")
    for receipts in (1, 30, 60):
        run_and_kill(config, version, after_receipts=receipts)
    run(config)
    assert published_files(stored.out) == published_files(undisturbed.out)


def test_a_second_run_is_refused_while_one_is_at_work(segmentation_from_zarr, tmp_path, config_file):
    stored = segmentation_from_zarr(str(tmp_path), n=200)
    config = config_file(stored)
    first = subprocess.Popen([*COMMAND, str(config)], start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        while holder_of(stored.out) is None:
            assert first.poll() is None
        os.kill(first.pid, signal.SIGSTOP)
        second = subprocess.run([*COMMAND, str(config)], capture_output=True, text=True)
        assert second.returncode == 1
        assert f"process {first.pid} on " in second.stderr
        assert "has been working on this output since" in second.stderr
        os.kill(first.pid, signal.SIGCONT)
        assert first.wait() == 0
    finally:
        if first.poll() is None:
            os.killpg(first.pid, signal.SIGKILL)
            first.wait()
    assert latest(stored.out) == Version(stored.out, "v000001")


def test_an_interrupted_run_says_how_to_go_on_and_ends_at_once(segmentation_from_zarr, tmp_path, config_file):
    stored = segmentation_from_zarr(str(tmp_path), n=200)
    config = config_file(stored)
    process = subprocess.Popen([*COMMAND, str(config)], start_new_session=True, stderr=subprocess.PIPE, text=True)
    while not next((Version(stored.out, "v000001").run / "done").entries(), None):
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    _, printed = process.communicate()
    assert process.returncode == 130
    assert "Interrupted. What is finished is kept: run the same command again to go on." in printed
    run(config)
    assert latest(stored.out) == Version(stored.out, "v000001")
