"""What comes from data, configurations and stores is never run, and what is secret is never told."""

from __future__ import annotations

import html
import io
import json
import os
import pickle
import subprocess
import sys
import traceback
import warnings
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
import zarr
from distributed import Client
from rich.console import Console

from flows import cli
from flows.settings import load_config
from labelqa_dask.core.errors import InvalidConfig, StorageError
from labelqa_dask.storage.location import Location, StorageOptions
from labelqa_dask.storage.parquet_source import ParquetSource
from labelqa_dask.storage.record import latest
from labelqa_dask.storage.zarr_source import ZarrSource
from pipelines.imports.images import Unfit, read_prediction
from tests.faults.tasks import ROWS, SCRIPT, TASKS, audit_of
from tests.pipelines.audits import on_disk
from tests.pipelines.every_task import AUDITS, audit_on
from tests.stores import Place

SECRET = "marker-of-a-secret-key"


def configured(place: Place, folder: Path) -> Path:
    """An audit that leaves out a region, as a file."""
    example = TASKS["multiclass"].copy()
    example.arrays["labels"][7] = 99
    audit = audit_of(place, None, example)  # type: ignore[arg-type]
    config = {
        **audit.settings,
        "task": "multiclass",
        "on_error": "quarantine",
        "output": {**audit.settings["output"], "uri": place.url("out")},
        "cluster": {"workers": 1, "memory_limit": "2GiB"},
        "storage": {**place.settings, "retry_seconds": 1},
    }
    path = folder / "audit.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def labelqa(*arguments: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A command of a user whose credentials are the marker."""
    secret = {"AWS_ACCESS_KEY_ID": f"{SECRET}-id", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": SECRET}
    command = [sys.executable, "-m", "flows.cli", *map(str, arguments)]
    return subprocess.run(command, env={**os.environ, **secret, **environment}, capture_output=True)


@pytest.mark.parametrize("fails", [None, "on_error=fail", "storage.endpoint_url=http://127.0.0.1:9"])
def test_credentials_are_never_told(fails: str | None, s3: Place, tmp_path: Path) -> None:
    config = configured(s3, tmp_path)
    done = labelqa("run", config, "--no-prefect", *(["--set", fails] if fails else []))
    assert done.returncode == (1 if fails else 3), done.stderr
    out = s3("out")
    told = [done.stdout, done.stderr, *(out.read(entry.path) for entry in out.entries())]
    assert len(told) > 20 or fails, "or nothing was looked at"
    for command in ("plan", "status", "top", "verify"):
        done = labelqa(command, config)
        assert done.returncode == 0 or fails, done.stderr
        told += [done.stdout, done.stderr]
    assert not [text for text in told if SECRET.encode() in text]


def test_prefect_is_never_told_credentials(s3: Place, tmp_path: Path) -> None:
    """Parameters of flow runs, artifacts and logs are all in the database of its server, those of failures too."""
    config, home = configured(s3, tmp_path), tmp_path / "prefect"
    prefect = {"PREFECT_HOME": str(home)}
    done = labelqa("run", config, "--set", "on_error=fail", **prefect)
    assert done.returncode == 1, done.stderr
    kept = b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())
    assert s3.url("out").encode() in kept, "or the parameters are not there to be looked at"
    assert b"label 99 is outside" in kept, "or the logs are not"
    assert SECRET.encode() not in kept + done.stdout + done.stderr


class Denies(BaseHTTPRequestHandler):
    """A server that quotes credentials where it denies access, as S3 does."""

    def do_GET(self) -> None:
        body = f"<Error><Code>InvalidAccessKeyId</Code><AWSAccessKeyId>{SECRET}</AWSAccessKeyId></Error>".encode()
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_what_a_server_quotes_of_credentials_is_in_no_traceback(credentials: None) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Denies)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        options = StorageOptions(endpoint_url=f"http://127.0.0.1:{server.server_port}", region="x", retry_seconds=0)
        with pytest.raises(StorageError, match="access was denied") as caught:
            Location.parse("s3://bucket/data", options).read("x")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@on_disk
@pytest.mark.parametrize("name", TASKS)
def test_what_comes_from_data_is_escaped_in_the_report(name: str, place: Place, client: Client) -> None:
    report = audit_of(place, client, TASKS[name]).run().run.report
    page = report.parent.read(report.name).decode()
    assert SCRIPT not in page
    assert "<script" not in page.lower()
    assert html.escape(SCRIPT) in page or SCRIPT.translate({60: "&lt;", 62: "&gt;", 39: "&#39;"}) in page


@on_disk
def test_names_of_annotators_are_escaped_in_the_report(place: Place, client: Client) -> None:
    audit = audit_on(place, client, "multiannotator", "parquet", annotator=lambda number: f"{number} {SCRIPT}")
    report = audit.run().run.report
    page = report.parent.read(report.name).decode()
    assert "<script" not in page.lower()
    assert "&lt;script&gt;" in page


@on_disk
def test_what_comes_from_data_does_not_command_the_terminal(
    place: Place, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = np.array([f"[/bold]{i}\x1b]0;title\x07[red]" for i in range(ROWS)], object)
    audit_of(place, client, replace(TASKS["multiclass"], ids=ids)).run()
    shown = io.StringIO()
    monkeypatch.setattr(cli, "console", Console(file=shown, force_terminal=True, width=200, color_system=None))
    cli.top(place.url("out"), 3)
    told = shown.getvalue()
    assert "[/bold]" in told
    assert "[red]" in told
    assert "\x1b]" not in told


@on_disk
@pytest.mark.parametrize(("name", "kind"), AUDITS)
def test_nothing_is_written_outside_of_the_output(name: str, kind: str, place: Place, client: Client) -> None:
    """Whatever the data are called."""
    up = "../../../escaped"
    audit = audit_on(
        place, client, name, kind, example=lambda number: f"{up}-{number}", annotator=lambda number: f"/{up}-{number}"
    )
    above = Path(place.root).parent
    before = {path for path in above.rglob("*") if path.is_file()}
    audit.run()
    added = {path for path in above.rglob("*") if path.is_file()} - before
    assert added
    assert {path for path in added if not path.is_relative_to(Path(place.root, "out"))} == set()


@pytest.mark.parametrize("array", ["../secret", "../../secret", "a/../../secret", "/../secret"])
def test_the_name_of_an_array_does_not_lead_out_of_its_group(array: str, tmp_path: Path) -> None:
    for group in ("data.zarr", "secret"):
        zarr.create_array(str(tmp_path / group), shape=(3,), dtype="i8", overwrite=True)
    with pytest.raises((StorageError, InvalidConfig)):
        ZarrSource.open(Location.parse(tmp_path / "data.zarr"), array, predictions=False).read((slice(0, 3),))


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


def test_a_parquet_type_that_is_stored_by_pickle_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAP", str(tmp_path / "sprung"))
    pickled = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickle.dumps(Trap())}
    schema = pa.schema([pa.field("label", pa.int64(), metadata=pickled)])
    pq.write_table(pa.table({"label": [0, 1, 2]}, schema=schema), tmp_path / "labels.parquet")
    source = ParquetSource.open(Location.parse(tmp_path / "labels.parquet"), ("label",), stack=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pyarrow warns that it does not load it
        assert source.read((slice(0, 3),)).tolist() == [0, 1, 2]
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("zipped", [False, True])
def test_predictions_that_are_stored_by_pickle_are_refused(
    zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAP", str(tmp_path / "sprung"))
    buffer = io.BytesIO()
    (np.savez if zipped else np.save)(buffer, np.array([[[Trap()]]], object))
    with pytest.raises(Unfit, match=r"cannot be read as|object"):
        read_prediction(buffer.getvalue(), zipped=zipped)
    assert not (tmp_path / "sprung").exists()
