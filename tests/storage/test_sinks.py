"""Sinks: what other tools see of the scores, and that the same content makes the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr
import zarr
from distributed import Client
from numpy.typing import NDArray
from zarr.storage import ObjectStore as ZarrObjectStore

from labelqa_dask.core.errors import StorageError
from labelqa_dask.storage.location import Location
from labelqa_dask.storage.sinks import OutputArray, ParquetSink, Sink, ZarrSink, checksum, parquet_bytes
from tests.stores import Place

N, H, W = 7, 4, 5
IDS = np.array([f"image-{i} é" for i in range(N)], dtype=object)
ATTRIBUTES = {"task": "segmentation", "params": {"temperature": 0.1}, "coordinates": "id"}


def scores() -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    rng = np.random.default_rng(3)
    return rng.random(N), rng.random((N, H, W), dtype=np.float32)


def outputs(rows: int = 4, ids: bool = True) -> list[OutputArray]:
    named = [OutputArray("id", ("example",), (N,), np.dtype(object), (rows,))]
    return [
        OutputArray("image_scores", ("example",), (N,), np.dtype(np.float64), (rows,)),
        OutputArray("pixel_scores", ("example", "y", "x"), (N, H, W), np.dtype(np.float32), (2, 4, 3)),
        *(named if ids else []),
    ]


def write_regions(sink: Sink, rows: int = 4) -> None:
    """Write everything as regions do: their blocks first, then what is kept of all their rows."""
    image_scores, pixel_scores = scores()
    for number, start in enumerate(range(0, N, rows)):
        stop = min(start + rows, N)
        if isinstance(sink, ZarrSink):
            for row in range(start, stop, 2):
                for left in range(0, W, 3):
                    index = (slice(row, min(row + 2, stop)), slice(0, H), slice(left, min(left + 3, W)))
                    sink.write_block("pixel_scores", index, pixel_scores[index])
        parts = np.split(image_scores[start:stop], [1, 3])
        sink.write_rows(f"{number:05d}", start, {"id": [IDS[start:stop]], "image_scores": parts})


def contents(location: Location) -> dict[str, bytes]:
    return {entry.path: location.read(entry.path) for entry in location.entries()}


def zarr_sink(location: Location) -> ZarrSink:
    return ZarrSink(location, {output.name: output.group for output in outputs()})


def test_zarr_output_opens_in_plain_xarray_with_names_and_identifiers(place: Place) -> None:
    location = place("run")
    sink = zarr_sink(location)
    sink.create(outputs(), ATTRIBUTES)
    write_regions(sink)
    group = location / "scores.zarr"
    store: Any = group.local_path or ZarrObjectStore(group.store, read_only=True)
    image_scores, pixel_scores = scores()
    with xr.open_zarr(store) as data:
        assert dict(data.sizes) == {"example": N, "y": H, "x": W}
        assert set(data.data_vars) == {"image_scores", "pixel_scores"}
        assert set(data.coords) == {"id"}
        assert data["id"].values.tolist() == IDS.tolist()
        assert data["pixel_scores"].dims == ("example", "y", "x")
        assert data["image_scores"].dtype == np.float64
        assert data["pixel_scores"].dtype == np.float32
        assert data.attrs["task"] == "segmentation"
        assert data.attrs["params"] == {"temperature": 0.1}
        np.testing.assert_array_equal(data["image_scores"].values, image_scores)
        np.testing.assert_array_equal(data["pixel_scores"].values, pixel_scores)
        chosen = data.set_xindex("id").sel(id="image-5 é")
        np.testing.assert_array_equal(chosen["pixel_scores"].values, pixel_scores[5])


def test_zarr_output_is_stored_in_the_chunks_that_were_asked_for(place: Place) -> None:
    zarr_sink(place("run")).create(outputs(), ATTRIBUTES)
    group = zarr.open_group(ZarrObjectStore((place("run") / "scores.zarr").store), mode="r")
    assert group.metadata.zarr_format == 3
    assert {name: array.chunks for name, array in group.arrays()} == {
        "image_scores": (4,),
        "pixel_scores": (2, 4, 3),
        "id": (4,),
    }


def test_what_was_not_written_is_nan_and_never_a_score(place: Place) -> None:
    sink = zarr_sink(place("run"))
    sink.create(outputs(), ATTRIBUTES)
    sink.write_rows("00000", 0, {"image_scores": [np.zeros(4)]})
    group = zarr.open_group(ZarrObjectStore((place("run") / "scores.zarr").store), mode="r")
    np.testing.assert_array_equal(group["image_scores"][:], [0, 0, 0, 0, np.nan, np.nan, np.nan])
    assert np.isnan(group["pixel_scores"][:]).all()


def test_a_chunk_of_fill_values_replaces_what_was_there(place: Place) -> None:
    sink = zarr_sink(place("run"))
    sink.create(outputs(), ATTRIBUTES)
    write_regions(sink)
    sink.write_rows("00000", 0, {"image_scores": [np.full(4, np.nan)], "id": [np.array([""] * 4, object)]})
    group = zarr.open_group(ZarrObjectStore((place("run") / "scores.zarr").store), mode="r")
    np.testing.assert_array_equal(group["image_scores"][:], [*[np.nan] * 4, *scores()[0][4:]])
    assert group["id"][:].tolist() == ["", "", "", "", *IDS[4:]]


def test_zarr_output_is_created_once_and_keeps_what_was_written(place: Place) -> None:
    location = place("run")
    zarr_sink(location).create(outputs(), ATTRIBUTES)
    write_regions(zarr_sink(location))
    before = contents(location)
    zarr_sink(location).create(outputs(), ATTRIBUTES)
    assert contents(location) == before


def test_parquet_output_opens_in_pandas(place: Place) -> None:
    sink = ParquetSink(place("scores"))
    sink.create(outputs(), ATTRIBUTES)
    write_regions(sink)
    location = place("scores")
    parts = sorted(entry.path for entry in location.entries())
    assert parts == ["part-00000.parquet", "part-00001.parquet"]
    frame = pd.concat([pd.read_parquet(pa.BufferReader(location.read(part))) for part in parts])
    assert frame.columns.tolist() == ["row", "id", "image_scores"]
    assert frame["row"].tolist() == list(range(N))
    assert frame["id"].tolist() == IDS.tolist()
    assert not pq.read_schema(pa.BufferReader(location.read(parts[0]))).field("row").nullable
    np.testing.assert_array_equal(frame["image_scores"], scores()[0])
    if place.is_local:
        pd.testing.assert_frame_equal(pd.read_parquet(place.url("scores")), frame.reset_index(drop=True))


@pytest.mark.parametrize("kind", [lambda location: zarr_sink(location), ParquetSink])
def test_the_same_content_makes_the_same_bytes(place: Place, kind: Callable[[Location], Sink]) -> None:
    made = []
    for name in ["first", "second"]:
        sink = kind(place(name))
        sink.create(outputs(), ATTRIBUTES)
        write_regions(sink)
        made.append(contents(place(name)))
    write_regions(kind(place("first")))
    assert made[0] == made[1] == contents(place("first"))
    assert len(made[0]) > 1


def test_workers_write_to_the_arrays_that_are_there_now(place: Place, client: Client) -> None:
    location = place("run")
    worker = next(iter(client.scheduler_info()["workers"]))

    def write(sink: ZarrSink, rows: int) -> None:
        for start in range(0, N, rows):
            values = np.arange(start, min(start + rows, N), dtype=float)
            sink.write_rows("", start, {"image_scores": [values]})

    for rows in [4, 3]:
        location.delete()
        zarr_sink(location).create(outputs(rows), ATTRIBUTES)
        client.submit(write, zarr_sink(location), rows, workers=[worker], pure=False).result()
        group = zarr.open_group(ZarrObjectStore((location / "scores.zarr").store), mode="r")
        assert group["image_scores"].chunks == (rows,)
        np.testing.assert_array_equal(group["image_scores"][:], np.arange(N, dtype=float))


def test_writing_to_output_that_went_missing_is_named(place: Place) -> None:
    with pytest.raises(StorageError, match=r"/scores\.zarr/image_scores: does not exist"):
        zarr_sink(place("run")).write_rows("00000", 0, {"image_scores": [np.zeros(4)]})


def test_parquet_has_no_values_per_pixel(place: Place) -> None:
    with pytest.raises(NotImplementedError, match="pixel_scores"):
        ParquetSink(place("scores")).write_block("pixel_scores", (slice(0, 1),), np.zeros((1, 2, 2)))


@pytest.mark.parametrize("k", [0, 20])
def test_a_part_whose_rows_have_moved_is_the_one_that_would_be_written_there(place: Place, k: int) -> None:
    values = np.random.default_rng(0).random((60_000, k) if k else 60_000)
    former, version, fresh = (place(f"run/v00000{i}") for i in (1, 2, 3))
    was, now, anew = (ParquetSink(location / "scores") for location in (former, version, fresh))
    for sink in (was, now, anew):
        sink.create([], {})
    written = was.write_rows("00000", 0, {"scores": np.array_split(values, 3)})
    now.take_over(former, ("00000", 0), "00001", 7, 7 + len(values), [], written.files)
    anew.write_rows("00001", 7, {"scores": np.array_split(values, 5)})
    assert (version / "scores").read("part-00001.parquet") == (fresh / "scores").read("part-00001.parquet")


def test_the_same_table_makes_the_same_file() -> None:
    def table() -> pa.Table:
        return pa.table({"a": np.arange(1000.0), "s": [f"é{i % 7}" for i in range(1000)]})

    assert parquet_bytes(table()) == parquet_bytes(table())
    assert parquet_bytes(table()) != parquet_bytes(table().slice(0, 999))


X = np.array([1.0, 2.0])


@pytest.mark.parametrize(
    "other",
    [
        np.array([1.0, 2.5]),
        np.array([2.0, 1.0]),
        X.astype(np.float32),
        X.view(np.int64),
        X[:, None],
        X[:1],
        np.array(["1.0", "2.0"], object),
        X[:0],
    ],
    ids=["value", "order", "precision", "type", "shape", "length", "strings", "nothing"],
)
def test_a_checksum_tells_contents_apart(other: NDArray[Any]) -> None:
    assert checksum(other) != checksum(X)


@pytest.mark.parametrize(
    ("left", "right"), [(["ab", "c"], ["a", "bc"]), (["1:a"], ["1", "a"]), ([], [""]), (["é"], ["e"])]
)
def test_a_checksum_tells_where_strings_end(left: Sequence[str], right: Sequence[str]) -> None:
    assert checksum(np.array(left, object)) != checksum(np.array(right, object))


def test_a_checksum_depends_on_the_content_alone() -> None:
    assert checksum(np.array([1.0, 9.0, 2.0, 9.0])[::2]) == checksum(X.copy()) == checksum(X)
    assert checksum(np.array(["x"], object)) == checksum(np.array(["x"], object))
