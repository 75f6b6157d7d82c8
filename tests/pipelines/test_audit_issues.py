"""Audits that find label issues publish what the library finds in memory, and what a reviewer needs to go there."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import zarr
from distributed import Client
from zarr.storage import ObjectStore as ZarrObjectStore

from labelqa_dask import multiclass, segmentation
from labelqa_dask.storage.run import Run
from pipelines.regions import Progress
from tests.pipelines.audits import Audit, images, numbers, on_disk, store_parquet, store_zarr
from tests.stores import Place


def pairs_of(run: Run) -> dict[tuple[int, int], int]:
    pairs = run.summary["issues"]["pairs"]
    return dict(zip(zip(pairs["given"], pairs["suggested"], strict=True), pairs["count"], strict=True))


@pytest.mark.parametrize("output", ["parquet", "zarr"])
@on_disk
def test_issues_of_examples(place: Place, client: Client, output: str) -> None:
    data = numbers()
    settings = {
        "input": store_parquet(place("data"), data),
        "params": {"find_label_issues": True, "method": "normalized_margin"},
        "output": {"format": output, "region_rows": 10},
        "select": {"worst": 25},
    }
    run = Audit(place, data, client, settings).run().run
    expected = multiclass.find_label_issues(
        data.labels, data.pred_probs, return_mask=True, quality_score_kwargs={"method": "normalized_margin"}
    )
    found = run.scores.compute()["is_issue"] if output == "parquet" else run.issues["is_issue"]
    np.testing.assert_array_equal(found.values, expected)
    assert run.summary["issues"]["count"] == expected.sum() > 0
    predicted = data.pred_probs.argmax(axis=1)
    counted: dict[tuple[int, int], int] = {}
    for i in np.flatnonzero(expected):
        pair = (int(data.labels[i]), int(predicted[i]))
        counted[pair] = counted.get(pair, 0) + 1
    assert pairs_of(run) == counted
    assert run.worst["is_issue"].tolist() == expected[run.worst["row"]].tolist()
    assert run.summary["statistics"]["estimated_issues"] >= expected.sum()
    report = run.version.location.read("report.html").decode()
    assert "Label issues" in report
    assert "labelled wrongly" in report


@pytest.mark.parametrize("downsample", [1, 2])
def test_issues_of_pixels(place: Place, client: Client, downsample: int) -> None:
    data = images()
    labels = data.labels.copy()
    labels[:, :, 16:], labels[3, :20] = 255, 255
    data = replace(data, labels=labels)
    chunks = {"labels": (1, 12, 20), "pred_probs": (1, 4, 8, 10)}
    settings = {
        "input": store_zarr(place("data.zarr"), data, **chunks),
        "params": {"method": "num_pixel_issues", "downsample": downsample, "ignore_index": 255},
        "output": {"region_rows": 3},
    }
    stages: list[str] = []

    def listen(progress: Progress) -> None:
        if progress.stage not in stages:
            stages.append(progress.stage)

    run = Audit(place, data, client, settings).run(listen).run
    assert stages == ["estimate confident_thresholds", "estimate issue_count", "estimate issue_cutoff", "score"]
    options: dict[str, Any] = {"downsample": downsample, "ignore_index": 255}
    expected = segmentation.find_label_issues(data.labels, data.pred_probs, **options)
    issues = run.issues["is_issue"]
    assert issues.dims == ("example", "y", "x")
    np.testing.assert_array_equal(issues.values, expected)
    assert "is_issue" not in run.scores
    group = zarr.open_group(ZarrObjectStore((run.version.location / "issues.zarr").store), mode="r")
    assert group["is_issue"].chunks == (1, 12, 20)
    scores, pixels = segmentation.get_label_quality_scores(
        data.labels, data.pred_probs, method="num_pixel_issues", **options
    )
    np.testing.assert_allclose(run.scores["image_scores"].values, scores, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(run.scores["pixel_scores"].values, pixels)
    assert run.summary["issues"]["count"] == expected.sum() > 0
    assert sum(pairs_of(run).values()) == expected.sum()
    assert sum(run.summary["classes"]["count"]) == (labels != 255).sum()


@pytest.mark.parametrize("chunk", [(1, 4, 24, 20), (2, 4, 8, 7)], ids=["whole images", "tiles"])
@on_disk
def test_the_worst_images_name_where_to_look(
    place: Place, client: Client, chunk: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.layout.BLOCK_BYTES", 4096)
    data = images()
    predicted = data.pred_probs.argmax(axis=1)
    data = replace(data, labels=predicted.astype(np.uint8))
    data.labels[4, 9:12, 2:6] = (predicted[4, 10, 3] + 1) % 4
    data.pred_probs[4, :, 9:12, 2:6] = np.float32(0.01)
    data.pred_probs[4, predicted[4, 10, 3], 9:12, 2:6] = np.float32(0.97)
    run = Audit(place, data, client, {"input": store_zarr(place("data.zarr"), data, pred_probs=chunk)}).run().run
    worst = pq.read_table(io.BytesIO(run.version.location.read("worst.parquet"))).to_pandas()
    first = worst.iloc[0]
    assert first["row"] == 4
    assert first["given_label"] == (predicted[4, 10, 3] + 1) % 4
    assert first["suggested_label"] == predicted[4, 10, 3]
    box = [int(first[f"box_{side}"]) for side in ("top", "left", "bottom", "right")]
    if chunk[2:] == (24, 20):
        assert box == [9, 2, 12, 6]
        assert first["box_pixels"] == 12
    else:
        assert 9 <= box[0] < box[2] <= 12
        assert 2 <= box[1] < box[3] <= 6
    assert pd.isna(worst["box_top"].iloc[1:]).all()


@on_disk
def test_audits_without_issue_finding_publish_none(of_numbers: Audit) -> None:
    run = of_numbers.run().run
    assert run.summary["issues"] is None
    assert "is_issue" not in run.scores.columns
