"""From a folder to an audit: an import that is killed goes on where it was, and what it writes can be audited."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from labelqa_dask.segmentation import get_label_quality_scores
from labelqa_dask.storage.location import Location
from labelqa_dask.storage.run import open_run
from pipelines.imports.work import record_of

SETTINGS = ["--set", "cluster.workers=2", "--set", "cluster.memory_limit=2GiB"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """300 images of two sizes, one of which is labelled wrongly all over, and what an import made of them."""
    tmp_path = tmp_path_factory.mktemp("import")
    rng = np.random.default_rng(0)
    for name in ("masks", "predictions"):
        (tmp_path / name).mkdir()
    for i in range(300):
        size = (40, 50 + 10 * (i % 2))
        truth = rng.integers(0, 4, size)
        probs = np.full((4, *size), 0.05, np.float32)
        np.put_along_axis(probs, truth[None], 0.85, axis=0)
        labels = (truth + (i == 137)) % 4
        Image.fromarray(labels.astype(np.uint8)).save(tmp_path / f"masks/{i:03d}.png")
        np.save(tmp_path / f"predictions/{i:03d}.npy", probs)
    subprocess.run(command(tmp_path, "undisturbed.zarr"), check=True, capture_output=True)
    return tmp_path


def command(folder: Path, out: str) -> list[str]:
    folders = [str(folder / "masks"), str(folder / "predictions"), str(folder / out)]
    return [sys.executable, "-m", "flows.cli", "import", "masks", *folders, *SETTINGS]


def contents(path: Path) -> dict[str, bytes]:
    location = Location.parse(path)
    return {entry.path: location.read(entry.path) for entry in location.entries()}


def versions(path: Path) -> dict[str, str]:
    return {entry.path: entry.version for entry in Location.parse(path).entries()}


def test_a_killed_import_is_finished_by_the_same_command(folder):
    out = folder / "street.zarr"
    done = Path(record_of(Location.parse(out)).run.local_path or "") / "stats"
    process = subprocess.Popen(command(folder, out.name), start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        while process.poll() is None and not (done.is_dir() and any(n.startswith("convert") for n in os.listdir(done))):
            pass
        assert process.poll() is None, "the import ended before it could be killed"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (out / "zarr.json").exists()
    kept = sorted(int(name[8:17]) for name in os.listdir(done) if name.startswith("convert"))
    before = versions(out)
    printed = subprocess.run(command(folder, out.name), check=True, capture_output=True, text=True).stdout
    assert "survey: 300 of 300" in printed.splitlines()[1]

    assert contents(out) == contents(folder / "undisturbed.zarr")
    after = versions(out)
    of_kept = [path for path in before if any(path.startswith(f"labels/c/{row}/") for row in kept)]
    assert of_kept
    assert all(after[path] == before[path] for path in of_kept), "finished images must not be converted again"
    assert not done.exists()


def test_what_was_imported_is_audited_and_padding_is_never_scored(folder):
    audit = [sys.executable, "-m", "flows.cli", "run", "--no-prefect", str(folder / "undisturbed.yaml")]
    subprocess.run(audit, check=True, capture_output=True)
    run = open_run(folder / "undisturbed-audit")
    assert run.worst["id"][0] == "137", "the image that was labelled wrongly is the worst"
    scores = run.scores.load()
    for i in (0, 1, 137):
        probs = np.load(folder / f"predictions/{i:03d}.npy")
        labels = np.asarray(Image.open(folder / f"masks/{i:03d}.png"))
        alone, pixels = get_label_quality_scores(labels[None], probs[None])
        row = int(np.flatnonzero(scores.id.values == f"{i:03d}")[0])
        height, width = labels.shape
        assert float(scores.image_scores[row]) == pytest.approx(float(alone[0]), abs=1e-9)
        assert (scores.pixel_scores.values[row, :height, :width] == pixels[0]).all()
        assert np.isnan(scores.pixel_scores.values[row, :, width:]).all()
