"""The command line as people and schedulers meet it: what it prints, and its exit status."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
import zarr
from rich.console import Console

from flows.cli import _table_of
from labelqa_dask.core.task import task_names


def labelqa(*arguments, expect=0):
    done = subprocess.run([sys.executable, "-m", "flows.cli", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == expect, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """A folder with a finished audit and its configuration."""
    folder = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    pred_probs = rng.dirichlet(np.ones(3), 100)
    group = zarr.open_group(str(folder / "data.zarr"), mode="w")
    group.create_array("labels", data=rng.integers(0, 3, 100), chunks=(10,))
    group.create_array("pred_probs", data=pred_probs, chunks=(10, 3))
    config = {
        "task": "multiclass",
        "input": {name: {"uri": str(folder / "data.zarr"), "array": name} for name in ("labels", "pred_probs")},
        "output": {"uri": str(folder / "audit")},
        "cluster": {"workers": 1, "memory_limit": "2GiB"},
    }
    (folder / "audit.yaml").write_text(yaml.safe_dump(config))
    done = labelqa("run", folder / "audit.yaml", "--no-prefect")
    assert "score: 10 of 10 regions" in done.stdout
    assert f"{folder}/audit/v000001/report.html" in done.stdout
    return folder


def test_help_names_every_command_and_the_way_to_begin():
    printed = labelqa("--help").stdout
    commands = ("demo", "run", "plan", "status", "top", "report", "schema", "compare", "deploy", "serve")
    for word in (*commands, "Try labelqa demo first"):
        assert word in printed


def test_a_second_run_says_that_nothing_has_changed_and_fresh_makes_a_version(audited):
    assert "Nothing has changed" in labelqa("run", audited / "audit.yaml", "--no-prefect").stdout
    labelqa("run", audited / "audit.yaml", "--no-prefect", "--fresh")
    printed = labelqa("status", audited / "audit").stdout
    assert "v000002  latest" in printed
    assert "v000001  published" in printed


def test_plan_shows_the_cut_and_the_memory_without_running(audited):
    printed = labelqa("plan", audited / "audit.yaml", "--set", f"output.uri={audited}/elsewhere").stdout
    assert "10 of up to 10 examples" in printed
    assert "peak memory" in printed
    assert not (audited / "elsewhere").exists()


def test_top_is_csv_where_there_is_no_terminal(audited):
    frame = pd.read_csv(io.StringIO(labelqa("top", audited / "audit", "-n", 5).stdout))
    assert list(frame) == ["row", "label_quality_score", "given_label", "suggested_label"]
    assert len(frame) == 5
    assert frame["label_quality_score"].is_monotonic_increasing


def test_what_is_missing_is_shown_as_nothing():
    frame = pd.DataFrame({"area": pd.array([7, None], "Int64"), "score": [0.5, None], "id": ["a", None]})
    terminal = Console(file=io.StringIO(), width=40)
    terminal.print(_table_of(frame))
    assert [line.split() for line in terminal.file.getvalue().splitlines()] == [[*frame], ["7", "0.5", "a"], []]


def test_the_output_may_be_named_by_its_configuration(audited):
    by_config, by_path = (labelqa("top", audited / name).stdout for name in ("audit.yaml", "audit"))
    assert by_config == by_path


def test_report_says_where_it_is_and_saves_a_copy(audited, tmp_path):
    where = labelqa("report", audited / "audit").stdout.strip()
    labelqa("report", audited / "audit", "--to", tmp_path / "copy.html")
    assert (tmp_path / "copy.html").read_text() == Path(where).read_text()


def test_schema_is_json_and_names_the_parameters_of_each_task():
    schema = json.loads(labelqa("schema").stdout)
    assert "temperature" in schema["$defs"]["SegmentationParams"]["properties"]
    assert schema["properties"]["task"]["enum"] == list(task_names())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("task=multiclas", "Did you mean 'multiclass'?"),
        ("params.methd=x", "unknown setting 'methd' (Did you mean 'method'?)"),
        ("output.fromat=zarr", "unknown setting 'output.fromat' (Did you mean 'format'?)"),
        ("cluster.memory_limit=plenty", "must be a size such as 4GiB"),
        ("cluster.memory_limit=300MiB", "does not fit"),
        ("input.labels.array=label", "has no array 'label'. Did you mean 'labels'?"),
        ("select.worst=0", "select.worst"),
        ("nonsense", "is not of the form name=value"),
    ],
)
def test_a_bad_configuration_is_exit_status_2_and_one_clear_line(audited, setting, message):
    done = labelqa("run", audited / "audit.yaml", "--no-prefect", "--set", setting, expect=2)
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_missing_files_are_named(audited, tmp_path):
    assert "nowhere.yaml: No such file" in labelqa("run", tmp_path / "nowhere.yaml", expect=2).stderr
    (tmp_path / "broken.yaml").write_text("task: [multiclass\n")
    assert "broken.yaml, line 2: is not valid YAML" in labelqa("plan", tmp_path / "broken.yaml", expect=2).stderr
    assert "nothing has been published" in labelqa("top", tmp_path, expect=1).stderr
    assert "holds no audit" in labelqa("status", tmp_path, expect=1).stderr


def test_bad_data_is_exit_status_1_and_nothing_is_published(audited, tmp_path):
    group = zarr.open_group(str(tmp_path / "bad.zarr"), mode="w")
    labels = np.zeros(100, int)
    labels[37] = 3
    group.create_array("labels", data=labels, chunks=(10,))
    uri = f"input.labels.uri={tmp_path}/bad.zarr"
    out = f"output.uri={tmp_path}/out"
    done = labelqa("run", audited / "audit.yaml", "--no-prefect", "--set", uri, "--set", out, expect=1)
    assert "region 00003: labels, example 37: label 3 is outside 0..2" in done.stderr
    assert not (tmp_path / "out" / "latest.json").exists()


def test_verify_says_whether_a_version_is_as_it_was_written(audited):
    out = f"{audited}/verified"
    labelqa("run", audited / "audit.yaml", "--no-prefect", "--set", f"output.uri={out}")
    assert "all 10 regions are as they were written" in labelqa("verify", out).stdout
    chunk = audited / "verified/v000001/scores.zarr/label_quality_score/c/3"
    chunk.write_bytes(chunk.read_bytes()[:-9])
    printed = labelqa("verify", out, expect=1).stderr
    assert "1 problems were found: run the audit again with --fresh." in printed
    assert "region 00003, rows 30 to 39: " in printed


def test_regions_left_out_are_listed_and_give_exit_status_3(audited):
    group = zarr.open_group(str(audited / "bad.zarr"), mode="w")
    source = zarr.open_group(str(audited / "data.zarr"), mode="r")
    labels = source["labels"][:]
    labels[[42, 47]] = 99
    group.create_array("labels", data=labels, chunks=(10,))
    settings = ["--set", f"input.labels.uri={audited}/bad.zarr", "--set", f"output.uri={audited}/quarantine"]
    command = ["run", audited / "audit.yaml", "--no-prefect", *settings]
    assert "labels, example 47: label 99" in labelqa(*command, expect=1).stderr
    done = labelqa(*command, "--set", "on_error=quarantine", expect=3)
    assert "left out: 1 regions with 10 examples" in done.stderr
    assert "region 00004: labels, example 42: label 99 is outside 0..2" in done.stderr
    assert "report.html" in done.stdout
    assert "Nothing has changed" in labelqa(*command, "--set", "on_error=quarantine", expect=3).stdout


def test_broken_expectations_are_listed_and_give_exit_status_4(audited):
    settings = ["--set", f"output.uri={audited}/expected", "--set", "expect.mean_score.min=0.99"]
    done = labelqa("run", audited / "audit.yaml", "--no-prefect", *settings, expect=4)
    assert "broken expectation: mean_score: expected at least 0.99, found 0." in done.stderr
    assert "expectations              0 of 1 hold" in done.stdout
    assert (audited / "expected/latest.json").exists()
    done = labelqa("run", audited / "audit.yaml", "--no-prefect", *settings[:2], "--set", "expect.mean_score.max=1")
    assert "Nothing has changed" in done.stdout
    assert "expectations              all hold" in done.stdout


def test_compare_shows_what_has_changed_between_two_versions(audited):
    out = f"output.uri={audited}/compared"
    labelqa("run", audited / "audit.yaml", "--no-prefect", "--set", out)
    assert "has no published version before v000001" in labelqa("compare", f"{audited}/compared", expect=1).stderr
    method = "params.method=normalized_margin"
    labelqa("run", audited / "audit.yaml", "--no-prefect", "--set", out, "--set", method)
    printed = labelqa("compare", f"{audited}/compared", "-n", 3).stdout
    assert printed.startswith("v000001 → v000002  ")
    assert "method from self_confidence to normalized_margin" in printed
    for heading in ("The whole", "Resolved", "Quantiles of the scores", "Classes"):
        assert f"\n{heading}\n" in printed
    assert "3 of 3 shown" not in printed
    there_and_back = labelqa("compare", f"{audited}/compared", "--from", "v000002", "--to", "v000001").stdout
    assert there_and_back.startswith("v000002 → v000001  ")
    told = labelqa("compare", f"{audited}/compared", "--from", "v7", expect=1).stderr
    assert "has no published version 'v7'. There are: v000001, v000002." in told


def test_a_refresh_says_what_was_taken_over_and_what_was_read(audited):
    group = zarr.open_group(str(audited / "grown.zarr"), mode="w")
    source = zarr.open_group(str(audited / "data.zarr"), mode="r")
    for name in ("labels", "pred_probs"):
        group.create_array(name, data=source[name][:], chunks=source[name].chunks)
    settings = [f"input.{name}.uri={audited}/grown.zarr" for name in ("labels", "pred_probs")]
    settings += [f"output.uri={audited}/grown", "params.adjust_pred_probs=true"]
    command = [audited / "audit.yaml", *(part for setting in settings for part in ("--set", setting))]
    assert "refreshed" not in labelqa("run", *command, "--no-prefect").stdout
    for name in ("labels", "pred_probs"):
        group[name].append(source[name][:15])
    assert "2 of 12 regions have changed since v000001" in labelqa("plan", *command).stdout
    printed = labelqa("run", *command, "--no-prefect").stdout
    assert "v000001: 0 of 12 regions taken over, 12 scored\n" in printed
    assert "regions read for statistics: 2 for confident_thresholds\n" in printed
    assert "the statistics moved, so that every region was scored again" in printed
    group["labels"][3] = (group["labels"][3] + 1) % 3
    printed = labelqa("run", *command, "--no-prefect", "--set", "refresh.statistics=frozen").stdout
    assert "v000002: 11 of 12 regions taken over, 1 scored\n" in printed
    assert "Scores rest on the statistics of v000002, of 115 examples. Those of these data would be other by" in printed


@pytest.mark.parametrize(("code", "status"), [("None", 0), ("7", 7), ("'out of words'", 1)])
def test_what_ends_the_command_says_its_exit_status_or_what_went_wrong(code, status):
    ending = f"from flows import cli\ncli.app = lambda **_: exit({code})\ncli.main()"
    done = subprocess.run([sys.executable, "-c", ending], capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (status, code.strip("'") if status == 1 else "")


ASKING_THE_STORE = """
import asyncio, threading
import obstore
from flows import cli

async def ask():
    store = obstore.store.MemoryStore()
    await obstore.put_async(store, "object", b"value")
    while True:
        await asyncio.gather(*(obstore.get_async(store, "object") for _ in range(50)))

threading.Thread(target=lambda: asyncio.run(ask()), daemon=True).start()
cli.main()
"""


@pytest.mark.parametrize(("arguments", "status"), [(["schema"], 0), (["schema", "--unknown"], 2), (["top", "no"], 1)])
def test_requests_under_way_do_not_change_the_exit_status(arguments, status, tmp_path):
    command = [sys.executable, "-c", ASKING_THE_STORE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == status, done.stderr
    assert bool(done.stdout) == (status == 0), "what was printed is not lost"
