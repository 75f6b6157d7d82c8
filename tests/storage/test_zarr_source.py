"""Zarr arrays as sources: the layouts they come in, how they are decoded, and what is said where they do not fit."""

from __future__ import annotations

import pickle
import re
import tracemalloc
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from numpy.typing import NDArray
from zarr.storage import ObjectStore as ZarrObjectStore

from labelqa_dask.core.errors import InvalidConfig, InvalidInput, StorageError
from labelqa_dask.storage.location import Location
from labelqa_dask.storage.sources import Fingerprint, Index, as_ids
from labelqa_dask.storage.zarr_source import ZarrSource
from tests.stores import Place

ALL = (slice(None),)


def pred_probs(n: int = 10, k: int = 4) -> NDArray[np.float64]:
    """Rows that sum to 1, with true zeros and ones among them."""
    values = np.random.default_rng(1).dirichlet(np.ones(k), n)
    values[0] = [0, 0, 1, 0]
    return values


def store_array(location: Location, name: str, values: NDArray[Any], **layout: Any) -> None:
    location.create()
    layout = {"chunks": (3, *values.shape[1:]), "dtype": values.dtype, **layout}
    group = zarr.open_group(ZarrObjectStore(location.store), mode="a", zarr_format=layout.pop("zarr_format", 3))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have a Zarr V3 specification")
        group.create_array(name, shape=values.shape, **layout)[...] = values


def store_by_xarray(path: Path, values: NDArray[Any], zarr_format: int, encoding: Mapping[str, Any]) -> Location:
    dims = ("example", "class")[: values.ndim]
    data = xr.Dataset({"pred_probs": (dims, values)})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*without any _FillValue", category=xr.SerializationWarning)
        data.to_zarr(path, zarr_format=zarr_format, encoding={"pred_probs": dict(encoding)}, consolidated=False)
    return Location.parse(path)


def open_array(location: Location, name: str | None = "pred_probs", *, predictions: bool = True) -> ZarrSource:
    return ZarrSource.open(location, name, predictions=predictions)


# -- layouts


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_an_array_among_others_is_read_by_its_name(place: Place, zarr_format: int) -> None:
    location = place("data.zarr")
    for name in ["labels", "pred_probs", "train/labels"]:
        store_array(location, name, pred_probs() + len(name), zarr_format=zarr_format)
    for name in ["labels", "pred_probs", "train/labels", "/train/labels/"]:
        source = open_array(location, name)
        np.testing.assert_array_equal(source.read(ALL), pred_probs() + len(name.strip("/")))
        assert source.place == str(location / name.strip("/"))
        assert (source.shape, source.dtype, source.chunks) == ((10, 4), np.float64, (3, 4))


def test_an_array_needs_no_name_where_it_is_the_location_or_alone(place: Place) -> None:
    location = place("data.zarr")
    store_array(location, "train/labels", pred_probs())
    for source in [open_array(location / "train/labels", None), open_array(location / "train", None)]:
        np.testing.assert_array_equal(source.read(ALL), pred_probs())
        assert source.place == str(location / "train/labels")
    assert open_array(location / "train/labels", None).fingerprint().objects == 5


def test_a_shard_is_what_is_read_together(tmp_path: Path) -> None:
    location = Location.parse(tmp_path)
    store_array(location, "pred_probs", pred_probs(), chunks=(2, 2), shards=(4, 4))
    source = open_array(location)
    assert source.chunks == (4, 4)
    assert source.row_bounds().tolist() == [0, 4, 8, 10]
    np.testing.assert_array_equal(source.read((slice(3, 9), slice(1, 3))), pred_probs()[3:9, 1:3])


@pytest.mark.parametrize("dtype", ["float16", ">f4", "<f8", ">f2"])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_floats_of_every_size_and_byte_order_keep_their_values(tmp_path: Path, dtype: str, zarr_format: int) -> None:
    stored = pred_probs().astype(dtype)
    store_array(Location.parse(tmp_path), "pred_probs", stored, zarr_format=zarr_format)
    values = open_array(Location.parse(tmp_path)).read(ALL)
    assert values.dtype.newbyteorder("=") == stored.dtype.newbyteorder("=")
    np.testing.assert_array_equal(values, stored)


def test_a_part_is_read_by_the_indices_of_the_whole(tmp_path: Path) -> None:
    store_array(Location.parse(tmp_path), "pred_probs", pred_probs())
    part = open_array(Location.parse(tmp_path)).rows(4, 9)
    np.testing.assert_array_equal(part.read((slice(4, 9), slice(None))), pred_probs()[4:9])
    assert part.shape == (10, 4)


@pytest.mark.parametrize(
    ("start", "stop", "bounds"),
    [(0, 10, [0, 3, 6, 9, 10]), (3, 9, [3, 6, 9]), (4, 5, [4, 5]), (2, 4, [2, 3, 4]), (9, 10, [9, 10])],
)
def test_row_bounds_are_the_edges_of_chunks_within_the_rows(
    tmp_path: Path, start: int, stop: int, bounds: list[int]
) -> None:
    store_array(Location.parse(tmp_path), "pred_probs", pred_probs())
    assert open_array(Location.parse(tmp_path)).rows(start, stop).row_bounds().tolist() == bounds


# -- decoding


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("encoding", [{}, {"_FillValue": None}, {"_FillValue": np.nan}, {"dtype": "float16"}])
def test_floats_written_by_xarray_keep_their_zeros(tmp_path: Path, zarr_format: int, encoding: dict[str, Any]) -> None:
    values = pred_probs().astype(encoding.get("dtype", np.float32))
    source = open_array(store_by_xarray(tmp_path / "x.zarr", values, zarr_format, encoding))
    assert source.dtype == values.dtype
    np.testing.assert_array_equal(source.read(ALL), values)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_zarr_fill_value_of_zero_marks_nothing(tmp_path: Path, zarr_format: int) -> None:
    location = Location.parse(tmp_path)
    store_array(location, "pred_probs", pred_probs(), fill_value=0, zarr_format=zarr_format)
    np.testing.assert_array_equal(open_array(location).read(ALL), pred_probs())


def test_chunks_of_labels_that_were_never_written_hold_the_fill_value(tmp_path: Path) -> None:
    location = Location.parse(tmp_path)
    store_array(location, "labels", np.zeros((10, 4)), fill_value=0)
    source = open_array(location, "labels", predictions=False)
    assert source.fingerprint().objects == 1
    np.testing.assert_array_equal(source.read(ALL), np.zeros((10, 4)))


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize(("dtype", "steps"), [("uint8", 255), ("uint16", 65535)])
@pytest.mark.parametrize("offset", [{}, {"add_offset": 0.0}, {"add_offset": -0.25}])
def test_quantised_values_are_scaled_and_keep_their_zeros(
    tmp_path: Path, zarr_format: int, dtype: str, steps: int, offset: dict[str, float]
) -> None:
    encoding = {"dtype": dtype, "scale_factor": 1.25 / steps, "_FillValue": None, **offset}
    source = open_array(store_by_xarray(tmp_path / "x.zarr", pred_probs(), zarr_format, encoding))
    values = source.read(ALL)
    assert values.dtype == source.dtype
    assert values.dtype.kind == "f"
    assert source.resolution == pytest.approx(1.25 / steps)
    np.testing.assert_allclose(values, pred_probs(), rtol=0, atol=0.51 * source.resolution)
    assert np.isfinite(values).all()


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize(
    "encoding", [{"dtype": "uint8", "scale_factor": 1 / 250, "_FillValue": 255}, {"_FillValue": -1.0}]
)
def test_values_that_xarray_marked_as_missing_are_missing(
    tmp_path: Path, zarr_format: int, encoding: dict[str, Any]
) -> None:
    values = pred_probs()
    values[3, 2] = np.nan
    read = open_array(store_by_xarray(tmp_path / "x.zarr", values, zarr_format, encoding)).read(ALL)
    assert np.argwhere(np.isnan(read)).tolist() == [[3, 2]]


def test_labels_are_never_decoded(tmp_path: Path) -> None:
    store_array(
        Location.parse(tmp_path),
        "labels",
        np.arange(10, dtype=np.uint8),
        attributes={"_FillValue": 3, "scale_factor": 2.0},
    )
    source = open_array(Location.parse(tmp_path), "labels", predictions=False)
    assert source.resolution == 0
    np.testing.assert_array_equal(source.read(ALL), np.arange(10, dtype=np.uint8), strict=True)


@pytest.fixture(scope="module")
def tracer() -> Iterator[ProcessPoolExecutor]:
    """A process whose memory can be traced: stopping that can crash one in which other threads allocate."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        yield pool


def traced(source: ZarrSource, index: Index) -> tuple[int, int]:
    """Bytes of what is read, and the most that came to be held for it."""
    source.read(index)
    tracemalloc.start()
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    result = source.read(index)
    return result.nbytes, tracemalloc.get_traced_memory()[1] - before


@pytest.mark.parametrize("encoding", [{}, {"dtype": "uint8", "scale_factor": 1 / 255, "_FillValue": None}])
@pytest.mark.parametrize("block", [(20_000, 20), (1, 20), (700, 3), (5000, 20)])
def test_reading_takes_no_more_memory_than_was_said(
    tmp_path: Path, tracer: ProcessPoolExecutor, encoding: dict[str, Any], block: tuple[int, int]
) -> None:
    values = np.random.default_rng(0).random((50_000, 20), dtype=np.float32)
    source = open_array(store_by_xarray(tmp_path / "x.zarr", values, 3, {"chunks": (5000, 20), **encoding}))
    index = (slice(50, 50 + block[0]), slice(0, block[1]))
    nbytes, peak = tracer.submit(traced, source, index).result()
    overhead = 1 << 20
    assert nbytes <= source.decode_bytes(block)
    assert nbytes <= peak <= source.decode_bytes(block) + overhead


# -- change


def test_a_fingerprint_changes_with_a_chunk_or_the_metadata_and_only_then(place: Place) -> None:
    location = place("data.zarr")
    for name in ["labels", "labels2", "pred_probs"]:
        store_array(location, name, pred_probs())
    before = open_array(location, "labels").fingerprint()
    assert before.objects == 5
    assert before.bytes > 0
    stored = zarr.open_group(ZarrObjectStore(location.store))
    for name in ["labels2", "pred_probs"]:
        stored[name][0] = 7
    assert open_array(location, "labels").fingerprint() == before
    stored["labels"][9] = 7
    changed = open_array(location, "labels").fingerprint()
    assert changed.digest != before.digest
    stored["labels"].attrs["note"] = "new"
    assert open_array(location, "labels").fingerprint().digest != changed.digest


@pytest.mark.parametrize(
    "layout",
    [
        {"zarr_format": 3},
        {"zarr_format": 2},
        {"zarr_format": 3, "chunk_key_encoding": {"name": "default", "separator": "."}},
        {"zarr_format": 2, "chunk_key_encoding": {"name": "v2", "separator": "/"}},
        {"zarr_format": 3, "chunks": (1, 2), "shards": (3, 4)},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["pred_probs", "a/1/pred_probs"])
def test_a_region_changes_with_the_chunks_that_hold_its_rows(layout: dict[str, Any], path: str, tmp_path: Path) -> None:
    location = Location.parse(tmp_path)
    store_array(location, path, pred_probs(), **layout)
    bounds = np.array([0, 3, 5, 6, 10])
    stored: Any = zarr.open_array(ZarrObjectStore(location.store), path=path)

    def regions() -> list[bytes]:
        return [digest.tobytes() for digest in open_array(location, path).fingerprint(bounds).regions]

    before = regions()
    assert len(set(before)) == 4
    assert before == regions()
    for row, changed in ((0, {0}), (4, {1, 2}), (7, {3}), (9, {3})):
        stored[row] = stored[row][::-1]
        after = regions()
        assert {i for i in range(4) if after[i] != before[i]} == changed
        before = after
    stored.attrs["note"] = "new"
    stored.resize((12, 4))
    assert regions() == before, "neither what is said of an array nor its length is in its chunks"
    stored.attrs["scale_factor"] = 0.5
    assert not set(regions()) & set(before)


def test_a_region_of_another_array_or_of_other_rows_is_another(tmp_path: Path) -> None:
    for name in ("one", "other"):
        store_array(Location.parse(tmp_path), name, np.zeros((6, 4)))
    one, other = (open_array(Location.parse(tmp_path), name) for name in ("one", "other"))
    asked = ((one, [0, 3, 6]), (other, [0, 3, 6]), (one, [0, 2]))
    found = [source.fingerprint(np.array(bounds)).regions for source, bounds in asked]
    assert len({digest.tobytes() for digest in np.concatenate(found)}) == 5


def test_a_fingerprint_does_not_depend_on_the_order_of_a_listing() -> None:
    entries = [("a", 1, "x"), ("b", 2, "y")]
    assert Fingerprint.of(entries) == Fingerprint.of(entries[::-1])
    assert Fingerprint.of(entries).bytes == 3
    for other in [[("a", 1, "x")], [("a", 2, "x"), ("b", 1, "y")], [("a", 1, "y"), ("b", 2, "x")]]:
        assert Fingerprint.of(other).digest != Fingerprint.of(entries).digest


def test_an_array_that_was_replaced_is_opened_anew(tmp_path: Path) -> None:
    location = Location.parse(tmp_path)
    store_array(location, "pred_probs", pred_probs())
    planned = open_array(location)
    np.testing.assert_array_equal(planned.read(ALL), pred_probs())
    store_array(location, "pred_probs", pred_probs(20)[:, :2].astype(np.float32), chunks=(20, 1), overwrite=True)
    source = open_array(location)
    assert (source.shape, source.dtype, source.chunks) == ((20, 2), np.float32, (20, 1))
    np.testing.assert_array_equal(source.read(ALL), pred_probs(20)[:, :2].astype(np.float32))


def test_an_array_that_was_replaced_since_the_plan_is_refused_in_another_process(tmp_path: Path, client: Any) -> None:
    location = Location.parse(tmp_path)
    store_array(location, "pred_probs", pred_probs())
    planned = open_array(location)
    store_array(location, "pred_probs", pred_probs(), chunks=(5, 2), overwrite=True)
    with pytest.raises(StorageError, match=r"pred_probs: was replaced while it was read\. Run again with --fresh"):
        client.submit(lambda source: source.read(ALL), planned, pure=False).result()


# -- what was never written, or is damaged


@pytest.mark.parametrize("fill", [0.0, float("nan"), 0.5])
@pytest.mark.parametrize("layout", [{}, {"zarr_format": 2}, {"chunks": (3, 2)}, {"chunks": (1, 1), "shards": (3, 3)}])
def test_predictions_that_were_never_written_are_named(place: Place, layout: dict[str, Any], fill: float) -> None:
    location = place("data.zarr")
    store_array(location, "pred_probs", pred_probs(), fill_value=fill, **layout)
    array = location / "pred_probs"
    keys = [entry.path for entry in array.entries() if re.match(r"(c/)?1[./]", entry.path)]
    assert keys
    for key in keys:
        array.delete_object(key)
    source = open_array(location)
    np.testing.assert_array_equal(source.read((slice(0, 3), slice(None))), pred_probs()[:3])
    for rows in (slice(0, 10), slice(4, 5), slice(5, None)):
        with pytest.raises(InvalidInput, match=rf"pred_probs: chunk .*1.* was never written\. It reads as .* {fill}"):
            source.read((rows, slice(None)))


def test_a_chunk_of_zeros_is_taken_as_it_is_where_it_was_written_or_another_class_was(place: Place) -> None:
    values = pred_probs()
    values[3:6] = 0
    location = place("data.zarr")
    store_array(location, "pred_probs", values, config={"write_empty_chunks": True})
    np.testing.assert_array_equal(open_array(location).read(ALL), values)
    values[3:6] = [0, 1, 0, 0]
    store_array(location, "by_class", values, chunks=(3, 1))
    assert not (location / "by_class").holds("c/1/0"), "a class that is never predicted is not written"
    np.testing.assert_array_equal(open_array(location, "by_class").read(ALL), values)


def test_quantised_predictions_that_were_never_written_are_named(place: Place) -> None:
    location = place("data.zarr")
    store_array(location, "pred_probs", np.full((10, 4), 64, np.uint8), attributes={"scale_factor": 1 / 256})
    (location / "pred_probs").delete_object("c/3/0")
    source = open_array(location)
    np.testing.assert_array_equal(source.read((slice(0, 9), slice(None))), 0.25)
    with pytest.raises(InvalidInput, match=r"chunk c/3/0 \(examples 9 to 9\) was never written"):
        source.read(ALL)


@pytest.mark.parametrize("damage", [lambda content: content[:-7], lambda content: b"", lambda content: b"x" * 40])
def test_a_chunk_that_cannot_be_decoded_is_named(place: Place, damage: Callable[[bytes], bytes]) -> None:
    location = place("data.zarr")
    store_array(location, "pred_probs", pred_probs())
    array = location / "pred_probs"
    array.write("c/2/0", damage(array.read("c/2/0")))
    source = open_array(location)
    np.testing.assert_array_equal(source.read((slice(0, 6), slice(None))), pred_probs()[:6])
    with pytest.raises(InvalidInput, match=r"pred_probs: chunk c/2/0 cannot be decoded .* It is damaged: write it"):
        source.read(ALL)


def test_a_source_is_small_to_send(tmp_path: Path) -> None:
    location = Location.parse(tmp_path)
    zarr.create_array(tmp_path / "pred_probs", shape=(10**9, 1000), chunks=(1, 1), dtype=np.float32)
    source = pickle.loads(pickle.dumps(open_array(location).rows(10, 20)))
    assert source == open_array(location).rows(10, 20)
    assert len(pickle.dumps(source)) < 2000


# -- what does not fit


def test_a_misspelt_name_is_answered_with_the_nearest(place: Place) -> None:
    location = place("data.zarr")
    for name in ["labels", "train/labels", "train/pred_probs"]:
        store_array(location, name, pred_probs())
    for name, message in {
        "labls": f"{location}: has no array 'labls'. Did you mean 'labels'?",
        "train/lables": f"{location}/train: has no array 'lables'. Did you mean 'labels'?",
        "trian/labels": f"{location}: has no array 'trian'. Did you mean 'train'?",
        "xyz": f"{location}: has no array 'xyz'. Known are: labels, train.",
        "train": f"{location}/train: is a group, not an array; it holds ",
        "labels/x": f"{location}/labels: is an array, it holds no 'x'. ",
    }.items():
        with pytest.raises(InvalidConfig) as caught:
            open_array(location, name)
        assert str(caught.value).startswith(message)


def test_several_arrays_without_a_name_are_listed(place: Place) -> None:
    location = place("data.zarr")
    for name in ["labels", "pred_probs"]:
        store_array(location, name, pred_probs())
    with pytest.raises(InvalidConfig, match=r"holds 2 arrays \((labels, pred_probs|pred_probs, labels)\)\. Name one"):
        open_array(location, None)


def test_a_group_without_arrays_is_named(tmp_path: Path) -> None:
    zarr.open_group(tmp_path / "empty.zarr", mode="w")
    with pytest.raises(InvalidConfig, match=r"empty.zarr: holds no array\. Name one"):
        open_array(Location.parse(tmp_path / "empty.zarr"), None)


def test_what_is_no_zarr_is_named(place: Place) -> None:
    place("data").write("notes.txt", b"hello")
    for name in [None, "labels"]:
        with pytest.raises(StorageError, match=r"missing: does not exist\. Check the URI"):
            open_array(place("missing"), name)
        with pytest.raises(StorageError, match=r"data: is not a Zarr group or array\. Check the URI"):
            open_array(place("data"), name)
    if place.is_local:
        with pytest.raises(StorageError, match=r"notes\.txt: is not a Zarr group or array"):
            open_array(place("data/notes.txt"))


def test_damaged_metadata_are_named(tmp_path: Path) -> None:
    store_array(Location.parse(tmp_path), "pred_probs", pred_probs())
    (tmp_path / "pred_probs" / "zarr.json").write_text('{"zarr_format": 3, "node_type": "arr')
    with pytest.raises(StorageError, match="pred_probs: has Zarr metadata that cannot be read"):
        open_array(Location.parse(tmp_path))


# -- identifiers


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (np.array(["a", "bé", ""], dtype=object), ["a", "bé", ""]),
        (np.array(["a", "bé", "日本"]), ["a", "bé", "日本"]),
        (np.array([b"a", "bé".encode(), b"c"]), ["a", "bé", "c"]),
        (np.array([3, -1, 2**31 - 1], np.int32), [3, -1, 2**31 - 1]),
        (np.array([0, 1, 2**64 - 1], np.uint64), [0, 1, 2**64 - 1]),
        (np.array(["2024-01-31", "1969-12-31"], "M8[s]"), ["2024-01-31T00:00:00", "1969-12-31T00:00:00"]),
        (np.array(["2024-01-31T12:00:00.5"], "M8[ns]"), ["2024-01-31T12:00:00.500000000"]),
        (np.array([0.5, 2.0]), ["0.5", "2.0"]),
    ],
    ids=["strings", "fixed-length strings", "bytes", "int32", "uint64", "seconds", "nanoseconds", "floats"],
)
def test_identifiers_are_exact_integers_or_strings(
    tmp_path: Path, zarr_format: int, stored: NDArray[Any], expected: list[Any]
) -> None:
    location = Location.parse(tmp_path)
    dtype = "str" if stored.dtype == object else stored.dtype
    store_array(location, "ids", stored, dtype=dtype, zarr_format=zarr_format)
    source = open_array(location, "ids", predictions=False)
    ids = as_ids(source.read(ALL))
    assert ids.tolist() == expected
    assert ids.dtype == as_ids(np.empty(0, source.dtype)).dtype
    assert ids.dtype in (np.int64, np.uint64, np.dtype(object))
