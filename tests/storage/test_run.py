"""The reading side: a published run opens as xarray, Dask and pandas; what is not published does not open."""

from __future__ import annotations

import json

import dask.dataframe as dd
import numpy as np
import pyarrow as pa
import pytest
import xarray as xr
from distributed import Client

from labelqa_dask import open_run
from labelqa_dask.core.errors import StorageError
from labelqa_dask.storage.record import Version
from labelqa_dask.storage.sinks import OutputArray, ParquetSink, Sink, ZarrSink, parquet_bytes
from tests.stores import Place, unopposed

SCORES = np.arange(10) / 10


def publish(place: Place, name: str, output_format: str) -> Version:
    version = Version(place("out"), name)
    location = version.location
    zarr = ZarrSink(location, {"label_quality_score": "scores"})
    sink: Sink = zarr if output_format == "zarr" else ParquetSink(location / "scores")
    sink.create([OutputArray("label_quality_score", ("example",), (10,), np.dtype(float), (4,))], {})
    for number, start in enumerate([0, 4, 8]):
        sink.write_rows(f"{number:05d}", start, {"label_quality_score": [SCORES[start : start + 4]]})
    location.write("worst.parquet", parquet_bytes(pa.table({"row": [0, 1], "label_quality_score": SCORES[:2]})))
    location.write("summary.json", json.dumps({"task": "multiclass", "output": {"format": output_format}}).encode())
    version.publish({}, [], {}, unopposed)
    return version


def test_zarr_scores_open_lazily_as_xarray(place: Place, client: Client) -> None:
    publish(place, "v000001", "zarr")
    run = open_run(place.url("out"), place.options)
    assert isinstance(run.scores, xr.Dataset)
    scores = run.scores["label_quality_score"]
    assert scores.chunks == ((4, 4, 2),)
    np.testing.assert_array_equal(scores.compute(scheduler=client), SCORES)


def test_parquet_scores_open_lazily_as_dask(place: Place, client: Client) -> None:
    publish(place, "v000001", "parquet")
    run = open_run(place.url("out"), place.options)
    assert isinstance(run.scores, dd.DataFrame)
    assert run.scores.npartitions == 3
    frame = run.scores.compute(scheduler=client)
    assert frame["row"].tolist() == list(range(10))
    np.testing.assert_array_equal(frame["label_quality_score"], SCORES)


def test_whole_numbers_stay_whole_where_some_are_missing(place: Place) -> None:
    version = publish(place, "v000001", "parquet")
    version.location.write("worst.parquet", parquet_bytes(pa.table({"row": [3, 1], "area": [7, None]})))
    assert open_run(place.url("out"), place.options).worst.to_csv(index=False) == "row,area\n3,7\n1,\n"


def test_the_worst_and_the_summary_are_those_of_the_newest_version(place: Place) -> None:
    publish(place, "v000001", "zarr")
    publish(place, "v000002", "parquet")
    Version(place("out"), "v000003").write_manifest({"digest": ""})
    run = open_run(place.url("out"), place.options)
    assert run.version.name == "v000002"
    assert run.summary["output"] == {"format": "parquet"}
    assert run.worst["row"].tolist() == [0, 1]
    assert str(run.report).endswith("out/v000002/report.html")


def test_what_is_not_published_does_not_open(place: Place) -> None:
    for name in ["out", "nothing"]:
        Version(place("out"), "v000001").write_manifest({"digest": ""})
        with pytest.raises(StorageError, match=rf"{name}: nothing has been published\. Run an audit"):
            open_run(place.url(name), place.options)
