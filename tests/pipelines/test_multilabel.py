"""Multilabel audits publish what NumPy makes of the same arrays: labels as lists of classes or as 0 and 1."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr
from distributed import Client
from numpy.typing import NDArray

from labelqa_dask import multilabel, open_run
from labelqa_dask.core.errors import InvalidInput
from labelqa_dask.storage.location import Location
from labelqa_dask.storage.run import Run
from pipelines import layout
from pipelines.plan import WRITTEN_TIMES
from tests.pipelines.audits import FILES, ROWS, Audit, Data, on_disk, store_zarr
from tests.stores import Place
from tests.strategies import multilabel_data

CLASSES = 6


def sets(dtype: str = "float64") -> Data:
    """Examples of which some have no label, and some the same score as others."""
    labels, pred_probs = multilabel_data(ROWS, CLASSES, seed=7)
    labels[3:9] = 0
    labels[20:60:4], pred_probs[20:60:4] = labels[20], pred_probs[20]
    return Data("multilabel", labels, pred_probs.astype(dtype), np.array([f"row {i}" for i in range(ROWS)], object))


def lists(labels: NDArray[Any]) -> list[list[int]]:
    return [np.flatnonzero(row).tolist() for row in labels]


def store_lists(location: Location, data: Data, how: str = "lists") -> dict[str, Any]:
    """Files of uneven length: labels as lists of class ids, as 0 and 1 in lists of fixed size, or in columns."""
    columns: dict[str, Any] = {"labels": pa.array(lists(data.labels), pa.list_(pa.int16()))}
    source: dict[str, Any] = {"column": "labels"}
    if how == "fixed":
        columns = {"labels": pa.FixedSizeListArray.from_arrays(data.labels.ravel(), CLASSES)}
    elif how == "columns":
        columns = {f"y{j}": data.labels[:, j].astype(bool) for j in range(CLASSES)}
        source = {"columns": [*columns]}
    table = pa.table({**columns, "probs": pa.array(list(data.pred_probs)), "key": pa.array(data.ids)})
    start = 0
    for number, length in enumerate(FILES):
        buffer = io.BytesIO()
        pq.write_table(table.slice(start, length), buffer, row_group_size=7)
        location.write(f"part-{number}.parquet", buffer.getvalue())
        start += length
    uri = f"{location.url}/part-*.parquet"
    inputs = {"labels": source, "pred_probs": {"column": "probs"}, "ids": {"column": "key"}}
    return {name: {"uri": uri, **where} for name, where in inputs.items()}


def scores_of(run: Run, name: str) -> NDArray[Any]:
    if isinstance(run.scores, xr.Dataset):
        return run.scores[name].values
    column = run.scores.compute()[name]
    return np.stack(column.to_numpy()) if column.dtype.kind == "O" and name.startswith("class") else column.to_numpy()


def table(run: Run, name: str) -> pd.DataFrame:
    return pq.read_table(io.BytesIO(run.version.location.read(name))).to_pandas()


def check(run: Run, data: Data, params: dict[str, Any], worst: int) -> None:
    per_class = multilabel.get_label_quality_scores_per_class(
        data.labels,
        data.pred_probs,
        method=params.get("method", "self_confidence"),
        adjust_pred_probs=params.get("adjust_pred_probs", False),
    )
    expected = multilabel.Aggregator(
        params.get("aggregator", "exponential_moving_average"),
        **({"alpha": params.get("alpha", 0.8)} if "aggregator" not in params else {}),
    )(per_class)
    tolerance = 1e-12 if data.pred_probs.dtype == np.float64 else 1e-6
    np.testing.assert_allclose(scores_of(run, "label_quality_score"), expected, rtol=0, atol=tolerance)
    published = scores_of(run, "class_label_quality_score")
    np.testing.assert_allclose(published, per_class, rtol=0, atol=tolerance)
    assert published.dtype == per_class.dtype
    assert scores_of(run, "id").tolist() == data.ids.tolist()
    order = run.worst["row"].to_numpy()
    np.testing.assert_allclose(expected[order], np.sort(expected)[:worst], rtol=0, atol=tolerance)
    assert [row.tolist() for row in run.worst["given_label"]] == lists(data.labels[order])
    assert [row.tolist() for row in run.worst["suggested_label"]] == lists(data.pred_probs[order] > 0.5)
    classes = table(run, "classes.parquet")
    assert classes["count"].tolist() == data.labels.sum(axis=0).tolist()
    means = (per_class * data.labels).sum(axis=0, dtype=float) / data.labels.sum(axis=0)
    np.testing.assert_allclose(classes["mean_score"].astype(float), means, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("place", "how", "target", "params"),
    [
        ("file", "lists", "parquet", {}),
        ("file", "lists", "zarr", {"adjust_pred_probs": True, "alpha": 0.5}),
        ("file", "fixed", "parquet", {"aggregator": "softmin"}),
        ("file", "columns", "zarr", {"method": "confidence_weighted_entropy"}),
        ("file", "zarr", "parquet", {"method": "normalized_margin", "adjust_pred_probs": True}),
        ("file", "zarr", "zarr", {}),
        ("s3", "lists", "zarr", {"aggregator": "softmin"}),
    ],
    indirect=["place"],
)
def test_label_sets_are_published_as_numpy_scores_them(
    place: Place, client: Client, how: str, target: str, params: dict[str, Any]
) -> None:
    data = sets()
    if how == "zarr":
        inputs = store_zarr(place("data.zarr"), data, labels=(50, CLASSES), pred_probs=(9, 2))
    else:
        inputs = store_lists(place("data"), data, how)
    settings = {"input": inputs, "params": params, "output": {"format": target, "region_rows": 20}}
    Audit(place, data, client, {**settings, "select": {"worst": 25}}).run()
    run = open_run(place.url("out"), place.options)
    assert run.summary["regions"] > 5
    check(run, data, params, 25)


@on_disk
def test_issues_are_counted_per_class(place: Place, client: Client) -> None:
    data = sets()
    params = {"count_issues": True}
    run = Audit(place, data, client, {"input": store_lists(place("data"), data), "params": params}).run().run
    p, given = data.pred_probs, data.labels == 1
    having = np.array([p[given[:, j], j].mean() for j in range(CLASSES)])
    without = np.array([(1 - p)[~given[:, j], j].mean() for j in range(CLASSES)])
    classes = table(run, "classes.parquet")
    np.testing.assert_allclose(classes["confident_threshold"], having, rtol=0, atol=1e-12)
    np.testing.assert_allclose(classes["confident_threshold_without"], without, rtol=0, atol=1e-12)
    missing = ~given & (p > 0.5) & (p >= having - 1e-6)
    wrong = given & (p <= 0.5) & (1 - p >= without - 1e-6)
    assert classes["labels_missing"].tolist() == missing.sum(axis=0).tolist()
    assert classes["labels_wrongly_given"].tolist() == wrong.sum(axis=0).tolist()
    report = run.version.location.read("report.html").decode()
    assert "Labels missing" in report
    assert "Labels wrongly given" in report


@on_disk
def test_blocks_and_regions_do_not_change_the_result(
    place: Place, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = sets("float32")
    monkeypatch.setattr(layout, "BLOCK_BYTES", 500)
    settings = {"input": store_lists(place("data"), data), "select": {"worst": 25}}
    for target in ("zarr", "parquet"):
        audit = Audit(place, data, client, {**settings, "output": {"format": target, "region_rows": 50}}, out=target)
        run = audit.run().run
        assert run.summary["regions"] > 1
        check(run, data, {}, 25)


@on_disk
def test_wide_scores_make_shorter_regions(place: Place, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of a region until it is written stays small, however many classes there are."""
    data = sets()
    monkeypatch.setattr(layout, "GATHERED_BYTES", 30 * CLASSES * 8 * WRITTEN_TIMES)
    monkeypatch.setattr(layout, "FEWEST_REGIONS", 1)
    settings = {"input": store_lists(place("data"), data), "output": {"format": "parquet"}}
    run = Audit(place, data, client, settings).run().run
    assert run.summary["regions"] >= ROWS // 30


@on_disk
def test_labels_that_are_all_absent_are_published_as_empty_lists(place: Place, client: Client) -> None:
    data = sets()
    nothing = Data("multilabel", np.zeros_like(data.labels), np.full_like(data.pred_probs, 0.25), data.ids)
    run = Audit(place, nothing, client, {"input": store_lists(place("data"), nothing)}).run().run
    worst = pq.read_table(io.BytesIO(run.version.location.read("worst.parquet")))
    for name in ("given_label", "suggested_label"):
        assert worst.schema.field(name).type == pa.list_(pa.int64())
        assert worst[name].to_pylist() == [[]] * ROWS
    assert run.summary["classes"]["mean_score"] == [None] * CLASSES


@on_disk
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([0, 6], r"part-1\.parquet \[labels\], example 40: class 6 is outside 0\.\.5"),
        ([1, 0, 1], r"part-1\.parquet \[labels\], example 40: class 1 is listed twice"),
        ([1, None], r"part-1\.parquet, row 40: labels holds a class that is missing \(null\)"),
    ],
)
def test_bad_lists_are_named_by_file_and_row(place: Place, client: Client, bad: list[Any], message: str) -> None:
    data = sets()
    inputs = store_lists(place("data"), data)
    buffer = io.BytesIO()
    row = {"labels": pa.array([bad], pa.list_(pa.int16())), "probs": [data.pred_probs[40]], "key": [data.ids[40]]}
    pq.write_table(pa.table(row), buffer)
    place("data").write("part-1.parquet", buffer.getvalue())
    with pytest.raises(InvalidInput, match=message):
        Audit(place, data, client, {"input": inputs}).run()


@on_disk
@pytest.mark.parametrize("target", ["parquet", "zarr"])
def test_bad_regions_are_published_without_scores(place: Place, client: Client, target: str) -> None:
    data = sets("float32")
    data.pred_probs[45, 2] = np.nan
    inputs = store_lists(place("data"), data)
    settings = {"input": inputs, "output": {"format": target, "region_rows": 14}, "on_error": "quarantine"}
    run = Audit(place, data, client, settings).run().run
    missing = np.isnan(scores_of(run, "label_quality_score").astype(float))
    assert missing[45]
    assert 0 < missing.sum() < 30
    if target == "zarr":
        assert (np.isnan(scores_of(run, "class_label_quality_score")).all(axis=1) == missing).all()
    else:
        assert (run.scores.compute()["class_label_quality_score"].isna() == missing).all()
