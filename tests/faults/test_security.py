"""What comes from data, configurations and stores is never run, and what is secret is never told."""

from __future__ import annotations

import html
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from distributed import Client

from flows.settings import load_config
from labelqa_dask.core.errors import InvalidConfig, StorageError
from labelqa_dask.storage.location import Location
from labelqa_dask.storage.record import latest
from labelqa_dask.storage.sources import ZarrSource
from tests.faults.tasks import SCRIPT, TASKS, audit_of
from tests.pipelines.audits import on_disk
from tests.stores import Place

SECRET = "marker-of-a-secret-key"


@pytest.mark.parametrize("fails", [None, "on_error=fail", "storage.endpoint_url=http://127.0.0.1:9"])
def test_credentials_are_never_told(fails: str | None, s3: Place, tmp_path: Path) -> None:
    example = TASKS["multiclass"].copy()
    example.arrays["labels"][7] = 99
    audit = audit_of(s3, None, example)  # type: ignore[arg-type]
    config = {
        **audit.settings,
        "task": "multiclass",
        "on_error": "quarantine",
        "output": {**audit.settings["output"], "uri": s3.url("out")},
        "cluster": {"workers": 1, "memory_limit": "2GiB"},
        "storage": {**s3.settings, "retry_seconds": 1},
    }
    (tmp_path / "audit.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "flows.cli", "run", str(tmp_path / "audit.yaml"), "--no-prefect"]
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": f"{SECRET}-id", "AWS_SECRET_ACCESS_KEY": SECRET}
    done = subprocess.run([*command, *(["--set", fails] if fails else [])], env=environment, capture_output=True)
    assert done.returncode == (1 if fails else 3), done.stderr
    out = s3("out")
    told = [done.stdout, done.stderr, *(out.read(entry.path) for entry in out.entries())]
    assert not [text for text in told if SECRET.encode() in text]
    assert len(told) > 20 or fails, "or nothing was looked at"


@on_disk
@pytest.mark.parametrize("name", TASKS)
def test_what_comes_from_data_is_escaped_in_the_report(name: str, place: Place, client: Client) -> None:
    report = audit_of(place, client, TASKS[name]).run().run.report
    page = report.parent.read(report.name).decode()
    assert SCRIPT not in page
    assert "<script" not in page.lower()
    assert html.escape(SCRIPT) in page or SCRIPT.translate({60: "&lt;", 62: "&gt;", 39: "&#39;"}) in page


@pytest.mark.parametrize("value", ["!!python/object/apply:os.system ['true']", "!!python/name:os.system"])
def test_configurations_run_nothing(value: str, tmp_path: Path) -> None:
    path = tmp_path / "audit.yaml"
    path.write_text(f"task: {value}\n")
    with pytest.raises(InvalidConfig, match="is not valid YAML"):
        load_config(path)
    path.write_text("task: multiclass\n")
    with pytest.raises(InvalidConfig, match="is not valid YAML"):
        load_config(path, [f"params={value}"])


@pytest.mark.parametrize("name", ["../v000001", "v000001/../../x", "/etc", "v00000a", "", None, 7])
def test_a_pointer_to_anything_but_a_version_is_refused(name: Any, place: Place) -> None:
    out = place("out")
    out.write("latest.json", json.dumps({"version": name}).encode())
    with pytest.raises(StorageError, match="is damaged"):
        latest(out)


@pytest.mark.parametrize("uri", ["s3://bucket/../other", "s3://bucket/a/./b", "s3://bucket//x"])
def test_urls_that_climb_out_of_where_they_are_are_refused(uri: str) -> None:
    with pytest.raises(InvalidConfig, match="has a part that is empty"):
        Location.parse(uri)


class Trap:
    """What does something when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["TRAP"],)


@pytest.mark.parametrize("codec", ["filters", "compressor"])
def test_arrays_that_are_stored_by_pickle_are_refused(
    codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAP", str(tmp_path / "sprung"))
    array = tmp_path / "labels"
    array.mkdir()
    metadata = {"zarr_format": 2, "shape": [3], "chunks": [3], "dtype": "<i8", "fill_value": 0, "order": "C"}
    pickled = {"id": "pickle", "protocol": 5}
    metadata |= {"filters": None, "compressor": None, codec: [pickled] if codec == "filters" else pickled}
    (array / ".zarray").write_text(json.dumps(metadata))
    (array / "0").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(StorageError, match="has Zarr metadata that cannot be read"):
        ZarrSource.open(Location.parse(array), None, predictions=False).read((slice(0, 3),))
    assert not (tmp_path / "sprung").exists()
