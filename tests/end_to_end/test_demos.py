"""Every demonstration, from data to verdict and artifacts: on data like those it makes, and, slowly, on its own."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from prefect.artifacts import Artifact
from prefect.testing.utilities import prefect_test_harness

import labelqa_dask
from flows.audit import audit
from flows.demo import prepare_folder, verdict, write_demo
from flows.demo_data import MAKERS, DemoData
from flows.demo_data.multiannotator import CrowdData
from flows.settings import load_config
from labelqa_dask.core.task import task_names
from tests.strategies import multiclass_data, multilabel_data, segmentation_data

N, CLASSES = 64, 3


def _crowd() -> CrowdData:
    truth, pred_probs = multiclass_data(N, CLASSES, seed=1)
    example, annotator = np.repeat(np.arange(N), 3), np.tile(np.arange(6), N // 2)
    given = np.where(annotator == 5, 0, truth[example])
    labels = truth.copy()
    return CrowdData(
        **_common("multiannotator", labels, pred_probs),
        example=example,
        annotator=annotator,
        given=given,
        names=np.array([f"annotator-{i}" for i in range(6)]),
        truth=truth,
        spammers=np.arange(6) == 5,
    )


def _common(task, labels, pred_probs):
    return {
        "task": task,
        "labels": labels,
        "predictions": pred_probs.astype(np.float32),
        "ids": np.array([f"example-{i}" for i in range(N)]),
        "corrupted": np.arange(N) < 8,
        "class_names": () if task == "regression" else tuple("abc"),
        "story": "",
    }


def _regression() -> DemoData:
    predictions = np.random.default_rng(0).normal(size=N)
    labels = predictions + np.where(np.arange(N) < 8, 5, 0)
    return DemoData(**_common("regression", labels, predictions))


DATA = {
    "multiannotator": _crowd,
    "multiclass": lambda: DemoData(**_common("multiclass", *multiclass_data(N, CLASSES, seed=2))),
    "multilabel": lambda: DemoData(**_common("multilabel", *multilabel_data(N, CLASSES, seed=3))),
    "regression": _regression,
    "segmentation": lambda: DemoData(**_common("segmentation", *segmentation_data(N, CLASSES, 8, 8))),
}


@pytest.fixture(scope="module")
def prefect_server():
    with prefect_test_harness(server_startup_timeout=120):
        yield


def test_there_are_data_for_every_task():
    assert sorted(DATA) == list(task_names())


@pytest.mark.parametrize("task", sorted(DATA))
def test_a_demonstration_ends_with_a_verdict_and_leaves_its_artifacts(task, prefect_server, tmp_path):
    data = DATA[task]()
    prepare_folder(tmp_path / "demo")
    config = load_config(write_demo(data, tmp_path / "demo"))
    audit(config)
    run = labelqa_dask.open_run(config.output.uri)
    assert verdict(data, run)
    worst = Artifact.get("audit-worst")
    assert worst is not None
    rows = json.loads(str(worst.data))
    assert [row["id"] for row in rows] == run.worst["id"].head(20).tolist()
    assert rows[0].keys() == set(run.worst.columns)
    if task == "multilabel":
        assert rows[0]["given_label"] == run.worst["given_label"][0].tolist()
    if task == "regression":
        assert "8 of them are among the 8 worst" in verdict(data, run)


@pytest.mark.slow
@pytest.mark.parametrize("task", sorted(MAKERS))
def test_a_demonstration_runs_from_the_command_line(task, tmp_path):
    command = [sys.executable, "-m", "flows.cli", "demo", "--task", task, "--out", str(tmp_path / "demo")]
    told = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert told.returncode == 0, told.stdout + told.stderr
    assert (tmp_path / "demo" / "audit" / "v000001" / "report.html").exists()
    assert " are among the " in told.stdout
