"""Damage to whatever a run has written: it is found, and done again or reported, for every kind of file there is."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from distributed import Client

from labelqa_dask.core.errors import LabelQAError
from labelqa_dask.storage.location import Location
from pipelines.verify import verify
from tests.faults.tasks import FORMATS, TASKS, audit_of
from tests.pipelines.audits import Audit, Interrupted, on_disk
from tests.stores import Place


def flipped(content: bytes) -> bytes:
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "flipped": flipped,
    "cut off": lambda content: content[: len(content) * 2 // 3],
    "gone": lambda content: None,
}

AGAIN, REPORTED, ELSEWHERE = "done again", "reported by verify", "tested with what writes it"
FOUND = {
    # the record
    "_run/manifest.json": AGAIN,
    "_run/regions.npz": AGAIN,
    "_run/stats/*.npz": AGAIN,
    "_run/partial/*/#.npz.zst": REPORTED,
    "_run/done/#.json": AGAIN,
    "_run/timings.json": AGAIN,
    "_run/published.json": AGAIN,
    # what regions have written before their receipt
    "scores/part-#.parquet": REPORTED,
    "annotations/part-#.parquet": REPORTED,
    "scores.zarr/*/c/#": REPORTED,
    "issues.zarr/*/c/#": REPORTED,
    # what is written once
    "scores.zarr/zarr.json": AGAIN,
    "scores.zarr/*/zarr.json": AGAIN,
    "issues.zarr/zarr.json": AGAIN,
    "issues.zarr/*/zarr.json": AGAIN,
    "worst.parquet": AGAIN,
    "classes.parquet": AGAIN,
    "annotators.parquet": AGAIN,
    "summary.json": AGAIN,
    "report.html": AGAIN,
    # the copy of the annotations
    "_run/annotations/*": ELSEWHERE,
    "_run/stats/gather/*": ELSEWHERE,
    "_run/stats/grouped.npz": ELSEWHERE,
}
"""What becomes of damage to a file of an unfinished run, by the kind of file, when the same run goes on."""


def kind_of(path: str) -> str:
    """A path with what differs between files of one kind left out."""
    grouping = re.match(r"_run/(annotations|stats/gather)/|_run/stats/grouped.npz", path)
    if grouping:
        return f"{grouping[0]}*" if grouping[0].endswith("/") else path
    path = re.sub(r"/c/[\d/]+$", "/c/#", path)
    path = re.sub(r"(stats|partial|\w+\.zarr)/\w+(?=[./])", r"\1/*", path) if ".zarr/zarr" not in path else path
    return re.sub(r"(?<=[/-])\d{5}(?=\.)", "#", path)


def one_of_each_kind(location: Location) -> dict[str, str]:
    """Of each kind of file in a version the path of the last; a kind that the table lacks is an error."""
    paths = sorted(entry.path for entry in location.entries())
    kinds = {kind_of(path): path for path in paths}
    assert kinds.keys() <= FOUND.keys(), "say in the table what becomes of damage to it"
    return {kind: path for kind, path in kinds.items() if FOUND[kind] != ELSEWHERE}


def damage(location: Location, path: str, how: str) -> None:
    content = DAMAGES[how](location.read(path))
    if content is None:
        location.delete_object(path)
    else:
        location.write(path, content)


def stop_before_the_pointer(audit: Audit, patch: pytest.MonkeyPatch) -> None:
    """Run an audit up to its last write, so that all files there are belong to an unfinished run."""
    write = Location.write

    def write_all_but_the_pointer(location: Location, path: str, content: bytes) -> None:
        if path == "latest.json":
            raise Interrupted
        write(location, path, content)

    with patch.context() as patched:
        patched.setattr(Location, "write", write_all_but_the_pointer)
        with pytest.raises(Interrupted):
            audit.run()


QUICK = [("multiclass", "parquet"), ("segmentation", "zarr")]
each_format = pytest.mark.parametrize(
    ("name", "kind"), [pytest.param(*f, marks=[] if f in QUICK else pytest.mark.slow) for f in FORMATS]
)


@on_disk
@each_format
def test_damage_to_an_unfinished_run_is_done_again_or_reported(
    name: str, kind: str, place: Place, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit = audit_of(place, client, TASKS[name], kind)
    undisturbed = audit.changed(out="undisturbed")
    undisturbed.run()
    stop_before_the_pointer(audit, monkeypatch)
    out, kept = tmp_path / "out", tmp_path / "kept"
    out.rename(kept)
    for of_file, path in one_of_each_kind(Location.parse(kept / "v000001")).items():
        for how in DAMAGES:
            shutil.copytree(kept, out)
            damage(audit.version().location, path, how)
            version = audit.run().run.version
            problems = "\n".join(verify(audit.location).problems)
            if FOUND[of_file] == AGAIN:
                assert problems == "", (path, how)
                assert audit.published(version.name) == undisturbed.published(), (path, how)
            else:
                assert place_of_problem(path) in problems, (path, how, problems)
            shutil.rmtree(out)


def place_of_problem(path: str) -> str:
    """By what verify names a file: the region that has written it, or its path."""
    part = re.search(r"part-(\d+)\.parquet|/c/(\d+)", path)
    return f"region {int(part[1] or part[2]):05d}, rows" if part else path


@on_disk
@each_format
def test_damage_to_anything_that_is_published_is_reported(name: str, kind: str, place: Place, client: Client) -> None:
    audit = audit_of(place, client, TASKS[name], kind)
    audit.run()
    location = audit.version().location
    for path in one_of_each_kind(location).values():
        before = location.read(path)
        for how in DAMAGES:
            damage(location, path, how)
            try:
                problems = "\n".join(verify(audit.location).problems)
            except LabelQAError as error:
                problems = str(error)
            statistics = path.startswith("_run/stats/")
            assert ("statistics of the pass" if statistics else place_of_problem(path)) in problems, (path, how)
        location.write(path, before)
    assert verify(audit.location).problems == ()


@on_disk
@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_pointer_is_never_followed(how: str, place: Place, client: Client) -> None:
    audit = audit_of(place, client, TASKS["multiclass"], "parquet")
    audit.run()
    published = audit.published()
    damage(audit.location, "latest.json", how)
    with pytest.raises(LabelQAError, match=r"latest\.json: is damaged\. Restore it|nothing has been published"):
        verify(audit.location)
    if how == "gone":  # as if the run had not come to its end
        assert audit.run().resumed
    else:
        with pytest.raises(LabelQAError, match=r"latest\.json: is damaged\. Restore it"):
            audit.run()
        audit.location.write("latest.json", b'{"version": "v000001"}')
        assert audit.run().unchanged
    assert audit.published() == published
    assert verify(audit.location).problems == ()
