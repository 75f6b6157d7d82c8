"""Arrays in Icechunk repositories as sources: the snapshot that is read, what tells of changes, what is refused."""

from __future__ import annotations

import pickle
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import icechunk
import numpy as np
import pytest
import zarr

from labelqa_dask.core.errors import InvalidConfig, InvalidInput, StorageError
from labelqa_dask.storage.icechunk_store import Snapshot
from labelqa_dask.storage.location import Location, StorageOptions
from labelqa_dask.storage.zarr_source import ZarrSource
from tests.faults.proxy import Fault, faulty_proxy
from tests.repositories import commit, create_repository, put, resize, storage_of, store
from tests.stores import Place
from tests.strategies import multiclass_data

ROWS, CHUNK = 20, 5
BOUNDS = np.arange(0, ROWS + 1, CHUNK)
ALL = (slice(None),)
LABELS, PRED_PROBS = multiclass_data(ROWS, 3, seed=2)


def repository_on(place: Place) -> icechunk.Repository:
    repository = create_repository(place)
    commit(repository, store({"labels": LABELS, "train/pred_probs": PRED_PROBS}, CHUNK))
    return repository


def open_array(
    place: Place, name: str | None = "train/pred_probs", ref: str = "main", *, predictions: bool = True
) -> ZarrSource:
    return ZarrSource.open(Snapshot.open(place("repository"), ref), name, predictions=predictions)


def changed_regions(before: ZarrSource, after: ZarrSource) -> list[int]:
    then, now = before.fingerprint(BOUNDS).regions, after.fingerprint(BOUNDS).regions
    return [number for number, (a, b) in enumerate(zip(then, now, strict=True)) if (a != b).any()]


@pytest.fixture
def on_disk(tmp_path: Path) -> Place:
    return Place(str(tmp_path), StorageOptions())


# -- which snapshot is read


def test_arrays_are_read_at_a_branch_a_tag_or_a_snapshot(place: Place) -> None:
    repository = repository_on(place)
    first = repository.lookup_branch("main")
    repository.create_tag("v1", first)
    repository.create_branch("other", first)
    commit(repository, put("labels", slice(0, 2), 7), branch="other")
    newest = commit(repository, put("labels", slice(0, 2), 8))
    values = {ref: open_array(place, "labels", ref).read(ALL)[0] for ref in ("main", "other", "v1", first, newest)}
    assert values == {"main": 8, "other": 7, "v1": LABELS[0], first: LABELS[0], newest: 8}


def test_a_source_stays_at_its_snapshot_wherever_it_is_sent(place: Place) -> None:
    repository = repository_on(place)
    source = open_array(place)
    commit(repository, put("train/pred_probs", ALL, 0.25))
    sent = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(sent.read(ALL), PRED_PROBS)
    np.testing.assert_array_equal(sent.rows(6, 9).read((slice(6, 9), slice(1, 3))), PRED_PROBS[6:9, 1:3])
    assert source.place == str(place("repository") / "train/pred_probs")
    assert (source.shape, source.dtype, source.chunks) == ((ROWS, 3), np.float64, (CHUNK, 3))


def test_no_credentials_are_sent_along(s3: Place) -> None:
    repository_on(s3)
    assert b"testing" not in pickle.dumps(open_array(s3))


def test_an_array_needs_no_name_where_it_is_alone(on_disk: Place) -> None:
    commit(create_repository(on_disk), store({"labels": LABELS}, CHUNK))
    np.testing.assert_array_equal(open_array(on_disk, None).read(ALL), LABELS)


# -- what tells that chunks have changed


CHANGES: dict[str, tuple[list[Callable[[Any], object]], list[int]]] = {
    "nothing": ([], []),
    "another array": ([put("labels", ALL, 0)], []),
    "one chunk": ([put("train/pred_probs", slice(6, 8), 0.3)], [1]),
    "one chunk twice and another": ([put("train/pred_probs", row, 0.3) for row in (6, 9, 17)], [1, 3]),
    "a chunk of the fill value, which is deleted": ([put("train/pred_probs", slice(5, 10), 0)], [1]),
    "chunks that were cut off and grew again": (
        [resize("train/pred_probs", 10), resize("train/pred_probs", ROWS)],
        [2, 3],
    ),
    "the array made anew": ([store({"train/pred_probs": PRED_PROBS}, CHUNK)], [0, 1, 2, 3]),
    "an attribute": ([lambda group: group["train/pred_probs"].attrs.update(note="x")], []),
    "the scale": ([lambda group: group["train/pred_probs"].attrs.update(scale_factor=0.5)], [0, 1, 2, 3]),
}


@pytest.mark.parametrize("case", CHANGES)
def test_regions_change_with_the_chunks_that_commits_have_written(case: str, on_disk: Place) -> None:
    repository = repository_on(on_disk)
    before = open_array(on_disk)
    changes, expected = CHANGES[case]
    for change in changes:
        commit(repository, change)
    after = open_array(on_disk)
    assert changed_regions(before, after) == expected
    touched = case not in ("nothing", "another array")
    assert (before.fingerprint().digest != after.fingerprint().digest) == touched
    assert changed_regions(before, ZarrSource.open(before.location, "train/pred_probs", predictions=True)) == []


def test_what_expired_commits_wrote_counts_as_changed_once(place: Place) -> None:
    repository = repository_on(place)
    commit(repository, put("train/pred_probs", 0, 0.3))
    before = open_array(place)
    expired = datetime.now(UTC)
    kept = commit(repository, put("labels", 0, 1))
    assert changed_regions(before, open_array(place)) == []
    repository.expire_snapshots(older_than=expired)
    after = open_array(place)
    assert changed_regions(before, after) == [0, 1, 2, 3]
    commit(icechunk.Repository.open(storage_of(place, "repository")), put("train/pred_probs", 0, 0.2))
    assert changed_regions(open_array(place, ref=kept), after) == []
    assert changed_regions(after, open_array(place)) == [0]
    renewed = open_array(place)
    expired = datetime.now(UTC)
    repository = icechunk.Repository.open(storage_of(place, "repository"))
    commit(repository, put("labels", 0, 2))
    repository.expire_snapshots(older_than=expired)
    assert changed_regions(after, open_array(place)) == [0, 1, 2, 3], "or what was written since would be taken over"
    assert changed_regions(renewed, open_array(place)) == [0, 1, 2, 3]


def test_no_chunk_is_read_to_tell_what_has_changed(s3: Place) -> None:
    repository = repository_on(s3)
    commit(repository, store({"large": np.random.default_rng(1).random((8, 400))}, 2))

    def no_chunks(method: str, path: str, before: int) -> Fault | None:
        return "reset" if "/chunks/" in path else None

    assert s3.options.endpoint_url is not None
    with faulty_proxy(s3.options.endpoint_url, no_chunks) as proxy:
        reached = Place(s3.root, StorageOptions(endpoint_url=proxy.url, region=s3.options.region))
        found = open_array(reached, "large").fingerprint(np.arange(0, 9, 2))
        assert proxy.faults.total() == 0
    assert (found.objects, len(np.unique(found.regions, axis=0))) == (5, 4), "four chunks and the metadata"


def test_commits_are_looked_up_once_for_all_arrays(s3: Place) -> None:
    repository = repository_on(s3)
    for row in range(3):
        commit(repository, put("labels", row, 1))
    assert commits_asked_for(s3, "train/pred_probs", "labels", "labels") == 4


def test_commits_long_before_an_array_was_made_are_not_looked_up(s3: Place) -> None:
    repository = repository_on(s3)
    for row in range(20):
        commit(repository, put("labels", row, 1))
    commit(repository, store({"later": LABELS}, CHUNK))
    assert commits_asked_for(s3, "later") < 20


def commits_asked_for(place: Place, *names: str) -> int:
    """How many requests are made for the records of commits to tell of arrays, in turn, what has changed."""
    asked = []

    def note(method: str, path: str, before: int) -> Fault | None:
        if "/transactions/" in path:
            asked.append(path)
        return None

    assert place.options.endpoint_url is not None
    with faulty_proxy(place.options.endpoint_url, note) as proxy:
        reached = Place(place.root, StorageOptions(endpoint_url=proxy.url, region=place.options.region))
        for name in names:
            open_array(reached, name).fingerprint(BOUNDS)
    return len(asked)


@pytest.mark.parametrize("part", ["/manifests/", "/transactions/", "/chunks/", "/snapshots/"])
def test_answers_that_are_cut_off_are_asked_for_again(part: str, s3: Place) -> None:
    commit(create_repository(s3), store({"large": np.random.default_rng(1).random((8, 400))}, 2))

    def first_time(method: str, path: str, before: int) -> Fault | None:
        return "cut off" if part in path and method == "GET" and before == 0 else None

    assert s3.options.endpoint_url is not None
    with faulty_proxy(s3.options.endpoint_url, first_time) as proxy:
        reached = Place(s3.root, StorageOptions(endpoint_url=proxy.url, region=s3.options.region))
        source = open_array(reached, "large")
        assert source.fingerprint().objects == 5
        assert source.read(ALL).shape == (8, 400)
        assert proxy.faults.total() >= 1, "or nothing was tested"


# -- what is refused


def test_what_is_no_repository_is_told(place: Place) -> None:
    repository_on(place)
    place("data.zarr").create()
    place("data.zarr").write("zarr.json", b"{}")
    with pytest.raises(StorageError, match=r"is not an Icechunk repository\. Check the URI, or leave out format"):
        Snapshot.open(place("data.zarr"))
    with pytest.raises(StorageError, match=r"none: does not exist. Check the URI"):
        Snapshot.open(place("none"))
    with pytest.raises(StorageError, match="It is an Icechunk repository: add format: icechunk"):
        ZarrSource.open(place("repository"), "labels", predictions=False)


def test_an_unknown_branch_tag_or_snapshot_is_told_with_the_nearest_known(place: Place) -> None:
    repository = repository_on(place)
    repository.create_tag("release-1", repository.lookup_branch("main"))
    told = f"{place('repository')}: has no branch, tag or snapshot 'relaese-1'. Did you mean 'release-1'?"
    for ref, match in [("relaese-1", re.escape(told)), ("0" * 20, "Known are: main, release-1")]:
        with pytest.raises(InvalidConfig, match=match):
            Snapshot.open(place("repository"), ref)


def test_a_branch_and_a_tag_of_one_name_are_told_apart_by_their_snapshots(on_disk: Place) -> None:
    repository = repository_on(on_disk)
    first = repository.lookup_branch("main")
    repository.create_tag("x", first)
    newest = commit(repository, put("labels", 0, 1))
    repository.create_branch("x", newest)
    with pytest.raises(InvalidConfig, match=rf"a branch and a tag 'x'. Name the snapshot.*{newest} .*{first} "):
        Snapshot.open(on_disk("repository"), "x")


def test_an_array_that_is_not_there_is_told(on_disk: Place) -> None:
    repository_on(on_disk)
    with pytest.raises(InvalidConfig, match=r"has no array 'label'. Did you mean 'labels'"):
        open_array(on_disk, "label")


@pytest.mark.parametrize("virtual", [0, 1])
def test_virtual_chunks_are_refused(virtual: int, tmp_path: Path) -> None:
    place, prefix = Place(str(tmp_path), StorageOptions()), f"file://{tmp_path}/"
    (tmp_path / "elsewhere").write_bytes(np.arange(CHUNK, dtype="<i4").tobytes())
    config = icechunk.RepositoryConfig()
    files = icechunk.local_filesystem_store(str(tmp_path))
    config.set_virtual_chunk_container(icechunk.VirtualChunkContainer(prefix, files))
    repository = icechunk.Repository.create(storage_of(place, "repository"), config)
    repository.save_config()
    session = repository.writable_session("main")
    group = zarr.open_group(session.store, mode="a")
    array: Any = group.create_array("labels", shape=(2 * CHUNK,), chunks=(CHUNK,), dtype="<i4", compressors=None)
    array[...] = 1
    session.store.set_virtual_ref(f"labels/c/{virtual}", f"{prefix}elsewhere", offset=0, length=4 * CHUNK)
    session.commit("refer to a file")
    with pytest.raises(
        (InvalidConfig, StorageError), match=r"refers to chunks in other files \(virtual chunks\)"
    ) as told:
        open_array(place, "labels").read(ALL)
    assert isinstance(told.value, InvalidConfig) == (virtual == 0), "the first chunk is looked at before anything runs"


def test_predictions_that_were_never_written_are_refused(place: Place) -> None:
    commit(repository_on(place), resize("train/pred_probs", ROWS + CHUNK))
    source = open_array(place)
    assert source.rows(0, ROWS).read((slice(0, ROWS),)).shape == (ROWS, 3)
    with pytest.raises(InvalidInput, match=rf"chunk c/4/0 \(examples {ROWS} to {ROWS + CHUNK - 1}\) was never written"):
        source.read(ALL)


def test_other_stores_than_disks_and_s3_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Location, "is_folder", lambda location: True)
    with pytest.raises(
        InvalidConfig, match=r"gs://bucket/repository: is at gs://.*Use a repository on a disk or s3://"
    ):
        Snapshot.open(Location.parse("gs://bucket/repository"))


def test_the_missing_package_is_named_with_what_installs_it(on_disk: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    repository_on(on_disk)
    monkeypatch.setitem(sys.modules, "icechunk", None)
    with pytest.raises(InvalidConfig, match=re.escape("pip install 'labelqa-dask[icechunk]'")):
        Snapshot.open(on_disk("repository"))
