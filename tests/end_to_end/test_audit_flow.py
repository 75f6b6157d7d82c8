"""Whole audits through Prefect on a real local cluster, on a disk and on an object store."""

from __future__ import annotations

import os

import numpy as np
import pytest
import xarray as xr
import zarr
from prefect.artifacts import Artifact
from prefect.client.schemas.objects import StateType
from prefect.testing.utilities import prefect_test_harness

import labelqa_dask
from flows.audit import audit, run_flow
from labelqa_dask import multiclass, segmentation
from labelqa_dask.core.errors import InvalidInput, OutputInUse
from labelqa_dask.storage.lease import holding
from labelqa_dask.storage.record import latest
from pipelines.config import parse_config
from pipelines.expect import ExpectationsBroken
from pipelines.regions import Progress


@pytest.fixture(scope="module", autouse=True)
def prefect_server():
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(params=["disk", "object store"])
def base(request, tmp_path):
    """Where a test keeps its data, and how to reach it."""
    if request.param == "disk":
        return str(tmp_path), None
    s3 = request.getfixturevalue("s3")
    return s3.url(request.node.name.replace("[", "-").replace("]", "").replace(" ", "-").replace("_", "-")), s3.options


def test_segmentation_from_zarr_is_published_with_the_scores_of_the_library(base, segmentation_from_zarr):
    stored = segmentation_from_zarr(*base, n=24)
    location = audit(parse_config(stored.config))
    run = labelqa_dask.open_run(stored.config["output"]["uri"], stored.storage)
    assert location == str(run.version.location)
    image_scores, pixel_scores = segmentation.get_label_quality_scores(stored.labels, stored.pred_probs)
    assert isinstance(run.scores, xr.Dataset)
    np.testing.assert_allclose(run.scores["image_scores"].values, image_scores, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(run.scores["pixel_scores"].values, pixel_scores)
    assert run.scores["id"].values.tolist() == [f"scene-{i}" for i in range(24)]
    expected = np.argsort(image_scores, kind="stable")[:10]
    assert run.worst["row"].tolist() == expected.tolist()
    assert run.worst["id"].tolist() == [f"scene-{i}" for i in expected]
    assert "data:image/png" in run.version.location.read("report.html").decode()


def test_multiclass_from_parquet_is_published_with_the_scores_of_the_library(base, multiclass_from_parquet):
    stored = multiclass_from_parquet(*base)
    audit(parse_config(stored.config))
    run = labelqa_dask.open_run(stored.config["output"]["uri"], stored.storage)
    scores = run.scores.compute()
    expected = multiclass.get_label_quality_scores(stored.labels, stored.pred_probs, adjust_pred_probs=True)
    assert scores["row"].tolist() == list(range(len(expected)))
    assert scores["id"].tolist() == [3 * i for i in range(len(expected))]
    np.testing.assert_allclose(scores["label_quality_score"], expected, rtol=0, atol=1e-12)
    assert run.worst["row"].tolist() == np.argsort(expected, kind="stable")[:10].tolist()
    worst = run.worst["row"].to_numpy()
    assert run.worst["given_label"].tolist() == stored.labels[worst].tolist()
    assert run.worst["suggested_label"].tolist() == stored.pred_probs[worst].argmax(axis=1).tolist()


def test_a_flow_leaves_artifacts_with_the_summary_the_worst_and_the_progress(tmp_path, multiclass_from_parquet):
    audit(parse_config(multiclass_from_parquet(str(tmp_path)).config))
    summary, worst = Artifact.get("audit-summary"), Artifact.get("audit-worst")
    assert summary is not None
    assert worst is not None
    assert "2,000 examples" in str(summary.data)
    assert str(tmp_path) in str(summary.data)
    assert '"suggested_label"' in str(worst.data)
    for stage in ("audit-score", "audit-estimate-confident-thresholds"):
        progress = Artifact.get(stage)
        assert progress is not None
        assert progress.data == 100.0


def test_a_listener_is_told_of_every_region(tmp_path, segmentation_from_zarr):
    told: list[Progress] = []
    config = parse_config(segmentation_from_zarr(str(tmp_path), n=8).config)
    audited = run_flow(config, told.append, fresh=False)
    assert not audited.unchanged
    assert [progress.done for progress in told] == list(range(9))
    assert {progress.total for progress in told} == {8}
    assert told[-1].rows == 8
    assert run_flow(config, told.append, fresh=False).unchanged


def test_a_refresh_is_told_where_the_flow_is_watched(tmp_path, segmentation_from_zarr):
    config = parse_config(segmentation_from_zarr(str(tmp_path), n=6).config)
    audit(config)
    assert "refreshed" not in str(Artifact.get("audit-summary").data)
    audit(config)
    assert "nothing has changed" in str(Artifact.get("audit-summary").data)
    labels = zarr.open_array(config.input["labels"].uri, path="labels", mode="r+")
    labels[2] = (labels[2] + 1) % 5
    assert audit(config).endswith("v000002")
    assert "- refreshed v000001: 5 of 6 regions taken over, 1 scored" in str(Artifact.get("audit-summary").data)


def test_bad_data_fail_the_flow_once_and_publish_nothing(tmp_path, multiclass_from_parquet):
    stored = multiclass_from_parquet(str(tmp_path))
    config = {**stored.config, "input": {**stored.config["input"]}}
    config["input"]["pred_probs"] = {**config["input"]["pred_probs"], "columns": ["p0", "p1", "p2", "key"]}
    told: list[Progress] = []
    with pytest.raises(
        InvalidInput, match=r"region 00001: pred_probs, example 100, class 3: probability 300 is outside"
    ):
        run_flow(parse_config(config), told.append, fresh=False)
    assert latest(stored.out) is None
    assert [progress.done for progress in told].count(0) == 1, "bad data stay bad: trying again is a waste"


def test_a_broken_expectation_fails_the_flow_after_publishing(tmp_path, multiclass_from_parquet):
    stored = multiclass_from_parquet(str(tmp_path))
    expect = {"mean_score": {"min": 2}, "class_mean_score": {"each": {"min": 0}}}
    config = parse_config({**stored.config, "expect": expect})
    state = audit(config, return_state=True)
    assert (state.type, state.name) == (StateType.FAILED, "Failed")
    assert "1 of 2 expectations is broken: mean_score: expected at least 2, found 0." in state.message
    assert latest(stored.out) is not None
    table = Artifact.get("audit-expectations")
    assert table is not None
    assert '"expectation": "mean_score", "expected": "at least 2", "found": "0.' in str(table.data)
    assert "1 of 2 broken" in str(Artifact.get("audit-summary").data)
    told: list[Progress] = []
    audited = run_flow(config, told.append, fresh=False)
    assert audited.unchanged
    assert [finding.holds for finding in audited.findings] == [False, True]
    with pytest.raises(ExpectationsBroken):
        audit(config)


def test_whoever_calls_the_flow_is_told_who_works_on_its_output(tmp_path, multiclass_from_parquet):
    stored = multiclass_from_parquet(str(tmp_path))
    with holding(stored.out), pytest.raises(OutputInUse, match=f"process {os.getpid()} on "):
        audit(parse_config(stored.config))
