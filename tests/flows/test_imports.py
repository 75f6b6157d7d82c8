"""The import commands as people meet them: what they print, what they write beside, and their exit status."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from pipelines.config import parse_config

ONE_WORKER = ("--set", "cluster.workers=1", "--set", "cluster.memory_limit=2GiB")


def labelqa(*arguments, expect=0, cwd=None):
    command = [sys.executable, "-m", "flows.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    assert done.returncode == expect, done.stdout + done.stderr
    return done


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(6):
        for folder in ("masks/town", "predictions/town"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 3, (8, 9 + i % 2)).astype(np.uint8)).save(tmp_path / f"masks/town/{i}.png")
        probs = rng.dirichlet(np.ones(3), (8, 9 + i % 2)).transpose(2, 0, 1)
        np.save(tmp_path / f"predictions/town/{i}.npy", probs.astype(np.float32))
    return tmp_path


@pytest.fixture
def table(tmp_path):
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(2), 50)
    frame = pd.DataFrame({"id": range(50), "label": rng.choice(["cat", "dog"], 50)})
    frame.assign(p_dog=probs[:, 0], p_cat=probs[:, 1], text="x").to_csv(tmp_path / "pets.csv", index=False)
    return tmp_path / "pets.csv"


def test_help_teaches_with_an_example():
    assert "import" in labelqa("--help").stdout
    printed = labelqa("import", "--help").stdout
    assert "masks" in printed
    assert "csv" in printed
    assert "labelqa import masks masks/ predictions/ street.zarr" in labelqa("import", "masks", "--help").stdout
    assert "labelqa import csv predictions.csv predictions.parquet" in labelqa("import", "csv", "--help").stdout


def test_masks_are_imported_with_a_configuration(images):
    command = ("import", "masks", images / "masks", images / "predictions", images / "street.zarr", *ONE_WORKER)
    printed = labelqa(*command).stdout
    assert "survey: 6 of 6 images" in printed
    assert "convert: 6 of 6 images" in printed
    assert "padding  5.0% of the pixels" in printed
    assert f"labelqa run {images}/street.yaml" in printed
    config = yaml.safe_load((images / "street.yaml").read_text())
    assert config["params"] == {"method": "softmin", "ignore_index": 255}
    assert config["output"] == {"uri": f"{images}/street-audit", "format": "zarr"}
    assert config["cluster"] == {"workers": 1, "memory_limit": "2GiB"}
    assert "Nothing has changed since this was imported" in labelqa(*command).stdout

    (images / "street.yaml").write_text("task: my own")
    printed = labelqa(*command).stdout
    assert "is there already and was left as it is" in printed
    assert "ignore_index: 255" in printed
    assert (images / "street.yaml").read_text() == "task: my own"


def test_files_that_do_not_fit_are_exit_status_1_and_can_be_skipped(images):
    (images / "masks/town/3.png").write_bytes(b"broken")
    (images / "predictions/town/4.npy").unlink()
    command = ("import", "masks", images / "masks", images / "predictions", images / "street.zarr", *ONE_WORKER)
    done = labelqa(*command, expect=1)
    assert "error: 2 files do not fit; nothing was published." in done.stderr
    assert f"\n  {images}/masks/town/3.png is not a PNG file" in done.stderr
    assert f"\n  {images}/masks/town/4.png has no prediction" in done.stderr
    assert "Or add --skip-bad" in done.stderr
    assert not (images / "street.yaml").exists()
    printed = labelqa(*command, "--skip-bad").stdout
    assert f"2 files, listed in {images}/street.unfit.csv" in printed
    assert f"{images}/masks/town/3.png is not a PNG file" in printed
    assert len((images / "street.unfit.csv").read_text().splitlines()) == 3


def test_a_bad_command_is_exit_status_2(images):
    folders = (images / "masks", images / "predictions")
    assert "does not end in .zarr" in labelqa("import", "masks", *folders, images / "street", expect=2).stderr
    out = images / "street.zarr"
    done = labelqa("import", "masks", *folders, out, "--set", "cluster.wrokers=1", expect=2)
    assert "unknown setting 'cluster.wrokers' (Did you mean 'workers'?)" in done.stderr
    assert "unknown setting 'task'" in labelqa("import", "masks", *folders, out, "--set", "task=x", expect=2).stderr


def test_a_csv_file_is_imported_with_a_configuration_that_runs(table):
    out = table.parent / "pets.parquet"
    printed = labelqa("import", "csv", table, out, *ONE_WORKER).stdout
    for line in ("label       column 'label'", "0 dog (p_dog)", "1 cat (p_cat)", "column 'id'", "left out    text"):
        assert line in printed
    path = table.parent / "pets.yaml"
    text = path.read_text()
    assert text.startswith("# class 0: dog\n# class 1: cat\n")
    config = yaml.safe_load(text)
    assert config["input"]["pred_probs"]["columns"] == ["p_dog", "p_cat"]
    parse_config(config)
    labelqa("run", path, "--no-prefect")
    worst = labelqa("top", path, "-n", 1).stdout
    assert worst.splitlines()[0].startswith("row,id,label_quality_score")


def test_a_table_of_regression_is_converted(tmp_path):
    pd.DataFrame({"rating": [1.5, 2], "model": [1, 2.5]}).to_csv(tmp_path / "r.csv", index=False)
    command = (
        "import",
        "csv",
        tmp_path / "r.csv",
        tmp_path / "r.parquet",
        "--label",
        "rating",
        "--prediction",
        "model",
    )
    printed = labelqa(*command, *ONE_WORKER).stdout
    assert "column 'model' (regression)" in printed
    assert pd.read_parquet(tmp_path / "r.parquet")[["rating", "model"]].to_numpy().tolist() == [[1.5, 1], [2, 2.5]]


def test_tables_in_a_bucket_leave_the_configuration_here(table, s3, tmp_path):
    s3("in").write("pets.csv", table.read_bytes())
    settings = [f"--set=storage.{name}={value}" for name, value in s3.settings.items()]
    work = tmp_path / "here"
    work.mkdir()
    labelqa("import", "csv", s3.url("in/p*.csv"), s3.url("pets.parquet"), *settings, *ONE_WORKER, cwd=work)
    config = yaml.safe_load((work / "pets.yaml").read_text())
    assert config["storage"] == s3.settings
    assert config["input"]["labels"]["uri"] == s3.url("pets.parquet")
    labelqa("plan", work / "pets.yaml")
