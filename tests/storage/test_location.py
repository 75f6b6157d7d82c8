"""Locations on a disk and on an object store: names, whole writes, listings, and errors that say where."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from distributed import Client
from pydantic import ValidationError

from labelqa_dask.core.errors import InvalidConfig, StorageError
from labelqa_dask.storage.location import Location, MissingObject, StorageOptions
from labelqa_dask.storage.sinks import ZarrSink
from tests.stores import Place, create_bucket, s3_server

AWKWARD = ["a b", "ünï/çödé/日本", "100%", "a%20b", "a%2Fb", "a#1b", "q?x", "a+b&c=d", "[x]{y}", "it's"]


@pytest.fixture(scope="module")
def guarded_bucket(credentials: None) -> Iterator[Location]:
    """A bucket on a server that asks for a valid signature from the second request on."""
    with s3_server({"INITIAL_NO_AUTH_ACTION_COUNT": "1"}) as options:
        create_bucket(options, "guarded", versioned=False)
        yield Location.parse("s3://guarded/data", options)


@pytest.mark.parametrize(
    ("written", "url"),
    [
        ("/data/x", "file:///data/x"),
        ("/data/x/", "file:///data/x"),
        ("/data/../x//y/.", "file:///x/y"),
        ("file:///data/x/", "file:///data/x"),
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
        ("gs://bucket/a", "gs://bucket/a"),
        ("az://container/a", "az://container/a"),
        (Path("/data/x"), "file:///data/x"),
    ],
)
def test_a_location_has_one_url_however_it_is_written(written: str | Path, url: str) -> None:
    assert Location.parse(written).url == url


def test_relative_paths_are_of_the_folder_they_were_written_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    locations = [Location.parse("data/x"), Location.parse("file://data/x")]
    monkeypatch.chdir("/")
    assert {location.local_path for location in locations} == {str(tmp_path / "data/x")}


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert Location.parse("~/data").local_path == "/home/someone/data"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://host/x", r"^ftp://host/x: scheme 'ftp' is not supported. Use a path, or one of file, s3, gs, az://.$"),
        ("S3://bucket/x", "scheme 'S3' is not supported"),
        ("://x", "scheme '' is not supported"),
        ("s3://", "names no folder or bucket"),
        ("/", "names no folder or bucket"),
        ("s3://bucket/a//b", "has a part that is empty"),
        ("s3://bucket/../b", r"has a part that is empty, '.' or '..'"),
    ],
)
def test_urls_that_name_nothing_are_refused(url: str, message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        Location.parse(url)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("s3://name:MARKER@bucket/x", "s3://…@bucket/x: has credentials in it"),
        ("s3://MARKER@bucket/x", "s3://…@bucket/x: has credentials in it"),
        ("az://container/x?sv=1&sig=MARKER", "az://container/x?sv=1&…: has credentials in it"),
        ("s3://bucket/x?X-Amz-Signature=MARKER", "s3://bucket/x?…: has credentials in it"),
        ("s3://a:MARKER@b//x?sig=MARKER", "s3://…@b//x?…: has credentials in it"),
        ("https://store/x?X-Amz-Credential=id&X-Amz-Signature=MARKER", "https://store/x?…: scheme 'https' is not"),
    ],
)
def test_urls_that_hold_credentials_are_refused_without_telling_them(url: str, told: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        Location.parse(url)
    assert str(caught.value).startswith(told)
    assert "MARKER" not in str(caught.value)


def test_locations_are_built_by_slashes_and_taken_apart_again() -> None:
    location = Location.parse("s3://bucket/a") / "b/c.parquet"
    assert location.url == "s3://bucket/a/b/c.parquet"
    assert (location.parent.url, location.name) == ("s3://bucket/a/b", "c.parquet")
    assert location.local_path is None
    assert str(Location.parse("/a/b")) == "/a/b"
    assert str(location) == location.url


@pytest.mark.parametrize("name", AWKWARD)
def test_names_are_taken_literally_in_locations_and_in_objects(place: Place, name: str) -> None:
    location = place(name)
    for path in [f"{name}.bin", "plain.bin"]:
        location.write(path, path.encode())
    assert sorted(entry.path for entry in location.entries()) == sorted([f"{name}.bin", "plain.bin"])
    assert location.read(f"{name}.bin") == f"{name}.bin".encode()
    assert (location / f"{name}.bin").parent.read("plain.bin" if "/" not in name else f"{Path(name).name}.bin")
    assert [entry.path for entry in place(name.partition("/")[0]).entries() if entry.path.endswith("plain.bin")]
    assert name.partition("/")[0] in Location.parse(place.root, place.options).children()
    if place.is_local:
        assert Path(place.root, name, f"{name}.bin").is_file()


def test_similar_names_are_different_places(place: Place) -> None:
    names = ["a", "ab", "a b", "a%20b", "a#1", "a#2", "a?1", "a?2", "A"]
    for name in names:
        place(name).write("x", name.encode())
    assert {name: place(name).read("x").decode() for name in names} == {name: name for name in names}
    assert [entry.path for entry in place("a").entries()] == ["x"]


def test_entries_tell_the_path_the_size_and_whether_an_object_has_changed(place: Place) -> None:
    location = place("data")
    location.write("b/c", b"123")
    location.write("a", b"")
    before = {entry.path: entry for entry in location.entries()}
    assert {path: entry.size for path, entry in before.items()} == {"a": 0, "b/c": 3}
    location.write("b/c", b"124")
    after = {entry.path: entry for entry in location.entries()}
    assert after["a"] == before["a"]
    assert after["b/c"].version != before["b/c"].version
    assert [entry.path for entry in location.entries("b")] == ["b/c"]
    assert list(location.entries("nothing")) == []
    assert list(place("nothing").entries()) == []


@pytest.mark.slow
def test_more_objects_than_one_page_holds_are_all_listed_and_all_deleted(place: Place) -> None:
    names = {f"{i:04d}" for i in range(1003)}
    location = place("many")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: location.write(name, b""), names))
    assert {entry.path for entry in location.entries()} == names
    location.delete()
    assert list(location.entries()) == []


def test_children_are_the_folders_directly_below(place: Place) -> None:
    location = place("out")
    assert location.children() == []
    for path in ["v000002/a/b", "v000001/x", "latest.json"]:
        location.write(path, b"")
    assert location.children() == ["v000001", "v000002"]


def test_what_exists_and_what_is_a_folder(place: Place) -> None:
    location = place("data")
    assert not location.exists()
    assert not location.is_folder()
    location.write("x", b"")
    assert location.exists()
    assert location.is_folder()
    assert not (location / "x").is_folder()
    assert not place("dat").exists()


def test_a_write_replaces_the_object_whole(place: Place) -> None:
    location = place("data")
    location.write("x", b"long content")
    location.write("x", b"short")
    assert location.read("x") == b"short"
    assert [entry.path for entry in location.entries()] == ["x"]


def test_reading_what_may_not_exist(place: Place) -> None:
    location = place("data")
    assert location.read_if_exists("x") is None
    location.write("y", b"1")
    assert location.read_if_exists("x") is None
    assert location.read_if_exists("y") == b"1"


def test_deleting_leaves_nothing_and_spares_the_neighbours(place: Place) -> None:
    for path in ["a/x", "a/b/y", "ab/z"]:
        place("out").write(path, b"")
    place("out/a").delete()
    place("out/nothing").delete()
    assert not place("out/a").exists()
    assert [entry.path for entry in place("out").entries()] == ["ab/z"]
    place("out/a").write("x", b"again")
    assert place("out/a").read("x") == b"again"


def test_a_reader_reads_ranges_and_knows_its_end(place: Place) -> None:
    place("data").write("x", bytes(range(100)))
    reader = place("data").reader("x")
    assert reader.read(3) == bytes([0, 1, 2])
    assert reader.seek(-2, os.SEEK_END) == 98
    assert bytes(reader.read()) == bytes([98, 99])
    assert bytes(reader.read(5)) == b""
    assert reader.seek(10) == reader.tell() == 10
    assert reader.seek(5, os.SEEK_CUR) == 15
    assert bytes(reader.read(1000)) == bytes(range(15, 100))


def test_a_missing_object_is_named(place: Place) -> None:
    place("data").write("x", b"")
    for location in [place("data"), place("no such folder")]:
        with pytest.raises(MissingObject, match="does not exist") as caught:
            location.read("y")
        assert str(caught.value) == f"{location / 'y'}: does not exist."
        assert isinstance(caught.value, FileNotFoundError)
        with pytest.raises(MissingObject, match="does not exist"):
            location.reader("y")


def test_a_missing_bucket_is_named_and_is_no_missing_object(s3: Place) -> None:
    location = Location.parse("s3://no-such-bucket/data", s3.options)
    for action in [
        lambda: location.read("x"),
        lambda: location.read_if_exists("x"),
        lambda: location.write("x", b""),
        lambda: list(location.entries()),
        location.children,
        location.exists,
    ]:
        with pytest.raises(StorageError, match=r"^s3://no-such-bucket/data(/x)?: the bucket does not exist\. Check"):
            action()


def test_denied_access_is_named_with_what_to_check(guarded_bucket: Location) -> None:
    location = guarded_bucket
    for action in [
        lambda: location.read("x"),
        lambda: location.read_if_exists("x"),
        lambda: location.write("x", b""),
        lambda: list(location.entries()),
        location.children,
        location.exists,
        location.delete,
    ]:
        with pytest.raises(StorageError, match=r"^s3://guarded/data(/x)?: access was denied\. .*AWS_ACCESS_KEY_ID"):
            action()


@pytest.fixture
def ordinary_user() -> Iterator[None]:
    """The superuser may read everything, so for this test it is somebody else."""
    if os.getuid() == 0:
        os.seteuid(65534)
    yield
    os.seteuid(os.getuid())


def test_denied_access_to_a_folder_is_named(ordinary_user: None) -> None:
    with TemporaryDirectory() as folder:
        location = Location.parse(folder)
        location.write("x", b"")
        Path(folder, "x").chmod(0)
        with pytest.raises(StorageError, match=r"/x: access was denied\. Check the permissions"):
            location.read("x")
        Path(folder).chmod(0o500)
        with pytest.raises(StorageError, match=r"/y: access was denied\. Check the permissions"):
            location.write("y", b"")
        with pytest.raises(StorageError, match=r"/z/y: access was denied\. Check the permissions"):
            (location / "z").write("y", b"")
        Path(folder).chmod(0o700)


def test_a_server_that_does_not_answer_is_named_after_the_deadline(credentials: None) -> None:
    options = StorageOptions(endpoint_url="http://127.0.0.1:9", region="eu-central-1", retry_seconds=0.2)
    with pytest.raises(StorageError, match=r"^s3://bucket/data/x: .*\. Requests were retried until the deadline\.$"):
        Location.parse("s3://bucket/data", options).read("x")


def test_an_error_of_the_disk_is_told_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="File exists") as caught:
        Location.parse(tmp_path / "file").write("x", b"")
    assert "retried" not in str(caught.value)


@pytest.mark.parametrize("settings", [{"timeout_seconds": 0}, {"timeout_seconds": -1}, {"retry_seconds": -1}])
def test_impossible_options_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        StorageOptions(**settings)


@pytest.mark.parametrize("url", ["gs://bucket/a", "az://container/a"])
def test_every_store_can_be_opened_with_every_option(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    options = StorageOptions(endpoint_url="http://127.0.0.1:9", region="x", anonymous=True, retry_seconds=0)
    with pytest.raises(StorageError, match=f"^{url}/x: "):
        Location.parse(url, options).read("x")


def test_a_location_is_small_and_works_in_another_process(place: Place, client: Client) -> None:
    location = place("ünï data")
    location.write("x", b"from here")
    assert location.store is not None
    assert len(pickle.dumps(location)) < 1000

    def elsewhere(location: Location) -> tuple[bytes, int]:
        location.write("y", b"from there")
        return location.read("x"), os.getpid()

    content, process = client.submit(elsewhere, location, pure=False).result()
    assert (content, location.read("y")) == (b"from here", b"from there")
    assert process != os.getpid()


def test_a_copy_is_whole_and_takes_the_place_of_what_was_there(place: Place) -> None:
    out = place("out")
    out.write("v1/a b/c", b"new")
    out.write("v2/d", b"old")
    out.copy("v1/a b/c", "v2/d")
    out.copy("v1/a b/c", "v3/deep/er/e")
    assert (out.read("v2/d"), out.read("v3/deep/er/e")) == (b"new", b"new")
    out.write("v1/a b/c", b"newer")
    assert out.read("v2/d") == b"new", "objects are written anew, never changed where they are"
    with pytest.raises(FileNotFoundError):
        out.copy("v1/nothing", "v2/d")
    assert out.read("v2/d") == b"new"


def test_a_copy_works_where_the_store_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError("Operation not supported (os error 95)")

    out = Location.parse(tmp_path)
    out.write("a", b"content")
    monkeypatch.setattr("obstore.copy", refuse)
    out.copy("a", "b")
    assert out.read("b") == b"content"


def test_an_error_that_is_met_on_a_worker_arrives_as_what_it_is(place: Place, client: Client) -> None:
    location = place("data.zarr")
    location.write("zarr.json", b'{"zarr_format": 3, "node_type": "group", "attributes": {}}')

    def write() -> None:
        ZarrSink(location.parent, {"scores": "data"}).write_rows("00000", 0, {"scores": [np.zeros(3)]})

    with pytest.raises(MissingObject, match=r"data\.zarr/scores: does not exist"):
        client.submit(write, pure=False).result()
