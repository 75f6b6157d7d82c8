"""What an audit publishes is what NumPy makes of the same arrays, whatever the format, the store and the cut."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import xarray as xr
import zarr
from distributed import Client
from numpy.typing import NDArray
from zarr.storage import ObjectStore as ZarrObjectStore

from labelqa_dask import multiclass, open_run, segmentation
from labelqa_dask.storage.record import latest
from labelqa_dask.storage.run import Run
from pipelines import layout
from pipelines.regions import Progress
from tests.pipelines.audits import Audit, Data, images, numbers, on_disk, store_parquet, store_zarr
from tests.stores import Place


def scores_of(run: Run) -> dict[str, NDArray[Any]]:
    if isinstance(run.scores, xr.Dataset):
        return {str(name): run.scores[name].values for name in run.scores.variables}
    frame = run.scores.compute()
    return {name: frame[name].to_numpy() for name in frame.columns}


def pictures(run: Run) -> list[str]:
    """The images in the report."""
    found = re.findall(r"data:image/png;base64,[^\"]+", run.version.location.read("report.html").decode())
    assert len(found) > 5
    return found


def table(run: Run, name: str) -> pd.DataFrame:
    return pq.read_table(io.BytesIO(run.version.location.read(name))).to_pandas()


def check_worst(run: Run, data: Data, expected: NDArray[np.floating[Any]], worst: int, *, ids: bool) -> None:
    """The worst are those of a full sort, equal ones in row order."""
    order = np.argsort(expected, kind="stable")[:worst]
    assert run.worst["row"].tolist() == order.tolist()
    if ids:
        assert run.worst["id"].tolist() == data.ids[order].tolist()
    else:
        assert "id" not in run.worst
    name = run.summary["score"]["name"]
    np.testing.assert_allclose(run.worst[name], expected[order], rtol=0, atol=1e-12)
    if data.task == "multiclass":
        assert run.worst["given_label"].tolist() == data.labels[order].tolist()
        assert run.worst["suggested_label"].tolist() == data.pred_probs[order].argmax(axis=1).tolist()


def check_summary(
    run: Run, data: Data, expected: NDArray[np.floating[Any]], per_label: NDArray[np.floating[Any]]
) -> None:
    """Counts, means and the histogram, and the same per class as labelled."""
    summary = run.summary
    assert summary["task"] == data.task
    assert summary["examples"] == len(data)
    assert summary["score"]["mean"] == pytest.approx(expected.mean(dtype=float), abs=1e-12)
    assert summary["score"]["min"] == pytest.approx(expected.min(), abs=1e-12)
    bins = np.clip((expected * 100).astype(int), 0, 99)
    assert summary["score"]["histogram"]["counts"] == np.bincount(bins, minlength=100).tolist()
    k = data.pred_probs.shape[1]
    count = np.bincount(data.labels.ravel(), minlength=k)
    total = np.bincount(data.labels.ravel(), weights=per_label.ravel().astype(float), minlength=k)
    assert summary["classes"]["count"] == count.tolist()
    np.testing.assert_allclose(summary["classes"]["mean_score"], total / count, rtol=0, atol=1e-12)
    classes = table(run, "classes.parquet")
    assert classes["class"].tolist() == list(range(k))
    assert classes["count"].tolist() == count.tolist()
    np.testing.assert_allclose(classes["mean_score"].astype(float), total / count, rtol=0, atol=1e-12)


def check_numbers(run: Run, data: Data, params: dict[str, Any], worst: int, *, ids: bool) -> None:
    expected = multiclass.get_label_quality_scores(data.labels, data.pred_probs, **params)
    scores = scores_of(run)
    np.testing.assert_allclose(scores["label_quality_score"], expected, rtol=0, atol=1e-12)
    assert scores["label_quality_score"].dtype == expected.dtype
    assert ("id" in scores) == ids
    if ids:
        assert scores["id"].tolist() == data.ids.tolist()
    if run.summary["output"]["format"] == "parquet":
        assert scores["row"].tolist() == list(range(len(data)))
    check_worst(run, data, expected, worst, ids=ids)
    check_summary(run, data, expected, expected)
    if params.get("adjust_pred_probs"):
        classes = range(data.pred_probs.shape[1])
        thresholds = [data.pred_probs[data.labels == j, j].mean() for j in classes]
        np.testing.assert_allclose(run.summary["statistics"]["confident_thresholds"], thresholds, rtol=0, atol=1e-12)
        found = table(run, "classes.parquet")["confident_thresholds"]
        np.testing.assert_allclose(found, thresholds, rtol=0, atol=1e-12)
    else:
        assert run.summary["statistics"] == {}


def check_images(run: Run, data: Data, worst: int, pred_probs: NDArray[Any] | None = None) -> None:
    image_scores, pixel_scores = segmentation.get_label_quality_scores(
        data.labels, data.pred_probs if pred_probs is None else pred_probs
    )
    scores = scores_of(run)
    np.testing.assert_array_equal(scores["pixel_scores"], pixel_scores, strict=True)
    np.testing.assert_allclose(scores["image_scores"], image_scores, rtol=0, atol=1e-12)
    assert scores["id"].tolist() == data.ids.tolist()
    assert scores["id"].dtype == np.int64
    check_worst(run, data, image_scores, worst, ids=True)
    check_summary(run, data, image_scores, pixel_scores)
    assert run.summary["classes"]["unit"] == "pixels"


# -- every format, on a disk and on an object store


@pytest.mark.parametrize(
    ("place", "source", "target", "params", "ids"),
    [
        ("file", "lists", "parquet", {}, True),
        ("file", "lists", "zarr", {"adjust_pred_probs": True}, True),
        ("file", "columns", "parquet", {"adjust_pred_probs": True, "method": "normalized_margin"}, False),
        ("file", "zarr", "zarr", {"adjust_pred_probs": True}, False),
        ("file", "zarr", "parquet", {"method": "confidence_weighted_entropy"}, True),
        ("s3", "columns", "zarr", {"adjust_pred_probs": True}, True),
        ("s3", "zarr", "parquet", {}, True),
    ],
    indirect=["place"],
)
def test_numbers_are_published_as_numpy_scores_them(
    place: Place, client: Client, source: str, target: str, params: dict[str, Any], ids: bool
) -> None:
    data = numbers()
    if source == "zarr":
        inputs = store_zarr(place("data.zarr"), data, labels=(137,), pred_probs=(9, 2))
    else:
        inputs = store_parquet(place("data"), data, columns=source == "columns")
    if not ids:
        del inputs["ids"]
    settings = {"input": inputs, "params": params, "output": {"format": target, "region_rows": 20}}
    audit = Audit(place, data, client, {**settings, "select": {"worst": 25}})
    audited = audit.run()
    assert not audited.unchanged
    assert not audited.resumed
    check_numbers(open_run(place.url("out"), place.options), data, params, 25, ids=ids)
    assert audited.run.summary["regions"] > 5


def test_images_are_published_as_numpy_scores_them(of_images: Audit) -> None:
    of_images.run()
    run = open_run(of_images.place.url("out"), of_images.place.options)
    check_images(run, of_images.data, 5)
    assert len(pictures(run)) >= 15


@on_disk
@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_images_keep_the_precision_of_their_predictions(place: Place, client: Client, dtype: str) -> None:
    data = images(dtype)
    audit = Audit(place, data, client, {"input": store_zarr(place("data.zarr"), data), "select": {"worst": 14}})
    run = audit.run().run
    check_images(run, data, 14)
    assert scores_of(run)["pixel_scores"].dtype == ("float32" if dtype == "float16" else dtype)


@on_disk
def test_quantised_images_are_scored_by_their_decoded_values(of_images: Audit) -> None:
    stored = np.round(of_images.data.pred_probs * 255).astype(np.uint8)
    store = ZarrObjectStore(of_images.place("data.zarr").store)
    array = zarr.open_group(store).create_array("quantised", data=stored, chunks=(1, 4, 24, 20))
    array.attrs["scale_factor"] = 1 / 255
    source = {"uri": of_images.place.url("data.zarr"), "array": "quantised"}
    audit = of_images.changed(input={"pred_probs": source})
    audit.run()
    decoded = stored * np.float32(1 / 255)
    expected = Data("segmentation", of_images.data.labels, decoded, of_images.data.ids)
    check_images(open_run(audit.place.url("out"), audit.place.options), expected, 5)


@on_disk
def test_one_example_is_enough(place: Place, client: Client) -> None:
    data = Data("multiclass", np.array([1]), np.array([[0.25, 0.75]]), np.array(["only"], object))
    for target in ("zarr", "parquet"):
        settings = {"input": store_zarr(place("data.zarr"), data), "output": {"format": target}}
        run = Audit(place, data, client, settings, out=target).run().run
        assert scores_of(run)["label_quality_score"].tolist() == [0.75]
        assert run.worst.to_dict("records") == [
            {"row": 0, "id": "only", "label_quality_score": 0.75, "given_label": 1, "suggested_label": 1}
        ]
        assert run.summary["classes"]["mean_score"] == [None, 0.75]


# -- what does not depend on the cut


def summary_without_cut(run: Run) -> dict[str, Any]:
    return {
        name: value for name, value in run.summary.items() if name not in ("regions", "score", "classes", "statistics")
    }


@on_disk
def test_the_result_does_not_depend_on_the_regions(of_numbers: Audit) -> None:
    audits = [of_numbers.changed(out=f"out-{rows}", output={"region_rows": rows}) for rows in (1, 31, 137)]
    runs = [audit.run().run for audit in audits]
    assert len({run.summary["regions"] for run in runs}) == 3
    first = scores_of(runs[0])
    for run in runs:
        check_numbers(run, of_numbers.data, {"adjust_pred_probs": True}, 25, ids=True)
        np.testing.assert_allclose(
            scores_of(run)["label_quality_score"], first["label_quality_score"], rtol=0, atol=1e-12
        )
        assert run.worst["row"].tolist() == runs[0].worst["row"].tolist()
        assert summary_without_cut(run) == summary_without_cut(runs[0])


@on_disk
def test_the_worst_are_the_same_bytes_whatever_the_regions(of_images: Audit) -> None:
    audits = [of_images.changed(out=f"out-{rows}", output={"region_rows": rows}) for rows in (1, 3, 14)]
    files = []
    for audit in audits:
        audit.run()
        files.append(audit.published())
    for found in files:
        assert found["worst.parquet"] == files[0]["worst.parquet"]
        summary, first = json.loads(found["summary.json"]), json.loads(files[0]["summary.json"])
        assert summary["score"]["histogram"] == first["score"]["histogram"]
        assert summary["classes"]["count"] == first["classes"]["count"]
        assert summary["score"]["mean"] == pytest.approx(first["score"]["mean"], abs=1e-12)


@on_disk
def test_images_in_tiles_score_as_whole_ones(of_images: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    data = of_images.data
    inputs = store_zarr(of_images.place("tiles.zarr"), data, pred_probs=(1, 2, 7, 8), labels=(3, 24, 20))
    monkeypatch.setattr(layout, "BLOCK_BYTES", 2000)
    tiled = of_images.changed(out="tiled", input=inputs)
    run = tiled.run().run
    check_images(run, data, 5)
    group = zarr.open_group(ZarrObjectStore((run.version.location / "scores.zarr").store), mode="r")
    assert group["pixel_scores"].chunks == (1, 7, 16)
    monkeypatch.undo()
    whole = of_images.run().run
    assert whole.worst["row"].tolist() == run.worst["row"].tolist()
    assert pictures(run) == pictures(whole)


@on_disk
def test_the_same_settings_make_the_same_bytes(place: Place, of_numbers: Audit, of_images: Audit) -> None:
    for audit in (of_numbers, of_numbers.changed(output={"format": "zarr"}), of_images):
        made = []
        for out in ("first", "second"):
            again = audit.changed(out=f"{audit.data.task}-{audit.config.output.format}-{out}")
            again.run()
            made.append(again.published())
        assert made[0].keys() == made[1].keys()
        assert [path for path in made[0] if made[0][path] != made[1][path]] == []
        assert {"summary.json", "worst.parquet", "report.html", "classes.parquet"} < made[0].keys()


# -- how it goes


@on_disk
def test_progress_is_told_of_each_stage_from_nothing_to_everything(of_numbers: Audit) -> None:
    told: list[Progress] = []
    run = of_numbers.run(told.append).run
    regions = run.summary["regions"]
    for stage in ("estimate confident_thresholds", "score"):
        done = [progress.done for progress in told if progress.stage == stage]
        assert done == list(range(regions + 1))
    assert {progress.total for progress in told} == {regions}
    assert told[-1].rows == len(of_numbers.data)
    assert told[-1].nbytes == of_numbers.data.labels.nbytes + of_numbers.data.pred_probs.nbytes


@on_disk
def test_few_regions_are_under_way_at_a_time(of_numbers: Audit) -> None:
    under_way: list[int] = []
    of_others = set(of_numbers.client.futures)
    of_numbers.changed(output={"region_rows": 1}).run(
        lambda progress: under_way.append(len(set(of_numbers.client.futures) - of_others))
    )
    assert len(under_way) > 40
    assert 2 <= max(under_way) <= 7, "three for each of two threads, and the one that has just been done"


@on_disk
def test_stages_come_in_order_and_each_once(of_numbers: Audit) -> None:
    names: list[str] = []

    def call(name: str, function: Any, *args: Any) -> Any:
        names.append(name)
        assert latest(of_numbers.location) is None
        return function(*args)

    of_numbers.run(call=call)
    assert names == ["open", "estimate", "score", "select", "publish"]
    assert latest(of_numbers.location) is not None
