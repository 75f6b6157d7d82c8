"""Tables of a data lake as input and output: read at one version, refreshed by their log, told of what is published."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from distributed import Client

from labelqa_dask import open_run
from labelqa_dask.core.errors import InvalidConfig, OutdatedRun, RunConflict, StorageError
from labelqa_dask.storage.delta import DeltaLake
from labelqa_dask.storage.record import version_names
from pipelines.audit import run_audit
from pipelines.plan import make_plan
from pipelines.regions import Progress
from pipelines.verify import verify
from tests.faults.tasks import (
    REGION_ROWS,
    ROWS,
    TASKS,
    Example,
    audit_of,
    audit_over,
    scores_of,
    store_annotations,
    store_parquet,
)
from tests.lakes import KINDS, DeltaFolder, IcebergTable, Lake, catalog_in, lake_of
from tests.pipelines.audits import RESOURCES, Audit, Interrupted, interrupt, is_idle, on_disk, wait_until
from tests.pipelines.test_refresh import assert_as_from_scratch, part, read_by
from tests.stores import Place

FILES = (slice(0, 12), slice(12, 32), slice(32, 42))
ALONE = replace(TASKS["multiclass"], params={})
"""Without statistics: only what changed is read."""
both_kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def catalog(place: Place, tmp_path: Path) -> Iterator[None]:
    with catalog_in(tmp_path, place):
        yield


def table_of(example: Example) -> pa.Table:
    """Rows as a table; what has several values for each is a column of lists."""
    return pa.table(
        {name: pa.array(values.tolist() if values.ndim > 1 else values) for name, values in example.columns.items()}
    )


def lake_with(kind: str, place: Place, example: Example, files: tuple[slice, ...] = FILES) -> Lake:
    lake = lake_of(kind, place, "lake")
    for rows in files:
        lake.append(table_of(part(rows, example)))
    return lake


def audit_of_lake(
    place: Place, client: Client, lake: Lake, example: Example, columns: tuple[str, ...] = (), **settings: Any
) -> Audit:
    inputs = {name: {**lake.settings, "column": name} for name in columns or example.columns}
    return audit_over(place, client, example, inputs, "parquet", **settings)


def scores(audit: Audit) -> pd.DataFrame:
    found = open_run(audit.location.url, audit.place.options).scores
    return found.compute()  # type: ignore[union-attr]


def expected(example: Example) -> pd.DataFrame:
    """What the library makes of the rows, by their identifiers."""
    found = {name: list(values) for name, values in example.scores(np.arange(len(example.ids))).items()}
    return pd.DataFrame(found, index=pd.Index(example.ids, name="id"))


def assert_scored(audit: Audit, example: Example) -> None:
    found, wanted = scores(audit).set_index("id"), expected(example)
    assert sorted(found.index) == sorted(wanted.index)
    for name, values in wanted.items():
        have = np.stack([np.asarray(value) for value in found[name].loc[wanted.index]])
        np.testing.assert_allclose(have, np.stack(list(values)), rtol=1e-12, err_msg=str(name))


# -- input


@both_kinds
def test_an_audit_of_a_table_is_that_of_the_same_rows_in_files(kind: str, place: Place, client: Client) -> None:
    example = TASKS["multiclass"]
    audit = audit_of_lake(place, client, lake_with(kind, place, example), example)
    found = scores_of(audit)
    files = audit_of(place, client, example, "parquet").changed(out="of-files")
    for name, values in scores_of(files).items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(found[name], values, rtol=1e-12)
        else:
            np.testing.assert_array_equal(found[name], values)
    assert verify(audit.location).problems == ()


@pytest.mark.parametrize(
    ("name", "kind"), [("multilabel", "iceberg"), ("regression", "delta"), ("multiannotator", "delta")]
)
@on_disk
def test_every_task_that_reads_files_reads_tables(name: str, kind: str, place: Place, client: Client) -> None:
    example = TASKS[name]
    columns = {}
    for array, values in example.columns.items():
        parts = {f"{array}{j}": values[:, j] for j in range(values.shape[1])} if values.ndim > 1 else {array: values}
        columns |= parts
    lake = lake_of(kind, place, "lake")
    lake.append(pa.table(columns))
    audit = audit_of_lake(place, client, lake, example)
    for array, values in example.arrays.items():
        if values.ndim > 1:
            names = [f"{array}{j}" for j in range(values.shape[1])]
            audit.settings["input"][array] = {**lake.settings, "columns": names}
    if example.annotations is not None:
        rows = lake_of(kind, place, "annotations")
        rows.append(pa.Table.from_pandas(example.annotations, preserve_index=False))
        audit.settings["input"]["annotations"] = {**rows.settings, "columns": [*example.annotations.columns]}
    audit.run()
    assert_scored(audit, example)


@both_kinds
@on_disk
def test_rows_that_are_appended_are_all_that_is_read(kind: str, place: Place, client: Client) -> None:
    lake = lake_with(kind, place, ALONE, FILES[:2])
    audit = audit_of_lake(place, client, lake, ALONE)
    audit.run()
    lake.append(table_of(part(FILES[2], ALONE)))
    told = audit.run().refreshed
    assert told is not None
    assert (told.regions, told.taken_over) == (3, 2)
    assert read_by(audit, "v000002") == {"score": 1}
    assert_scored(audit, ALONE)
    assert scores(audit)["id"].tolist() == ALONE.ids.tolist(), "what was appended is behind what was there"
    assert_as_from_scratch(audit, "v000002")
    assert audit.run().unchanged


@both_kinds
@on_disk
def test_a_file_whose_rows_were_deleted_is_all_that_is_read(kind: str, place: Place, client: Client) -> None:
    lake = lake_of(kind, place, "lake")
    for number, rows in enumerate(FILES):
        own = table_of(part(rows, ALONE))
        lake.append(own.append_column("file", pa.array([number] * len(own))))
    audit = audit_of_lake(place, client, lake, ALONE)
    audit.run()
    labels, gone = ALONE.arrays["labels"], int(ALONE.arrays["labels"][0])
    lake.delete(f"file = 0 AND labels = {gone}")
    audit.run()
    assert read_by(audit, "v000002") == {"score": 1}
    assert_scored(audit, part([row for row in range(ROWS) if row >= 12 or labels[row] != gone], ALONE))
    assert_as_from_scratch(audit, "v000002")


@both_kinds
@on_disk
def test_rows_that_were_overwritten_are_other_rows(kind: str, place: Place, client: Client) -> None:
    lake = lake_with(kind, place, ALONE)
    audit = audit_of_lake(place, client, lake, ALONE)
    audit.run()
    lake.overwrite(table_of(part(slice(5, 30), ALONE)))
    audit.run()
    assert read_by(audit, "v000002") == {"score": 1}
    assert_scored(audit, part(slice(5, 30), ALONE))
    assert_as_from_scratch(audit, "v000002")


@on_disk
def test_a_commit_without_rows_reads_nothing(place: Place, client: Client) -> None:
    lake = DeltaFolder(place, "lake")
    lake.append(table_of(ALONE))
    audit = audit_of_lake(place, client, lake, ALONE)
    audit.run()
    lake.open().alter.set_table_properties({"delta.logRetentionDuration": "interval 30 days"})
    assert audit.run().unchanged


@both_kinds
@on_disk
def test_a_version_can_be_named_and_is_said(kind: str, place: Place, client: Client) -> None:
    lake = lake_with(kind, place, ALONE, FILES[:1])
    first = lake.version()
    lake.append(table_of(part(FILES[1], ALONE)))
    audit = audit_of_lake(place, client, lake, ALONE)
    plan = make_plan(audit.config, RESOURCES)
    word = {"delta": "version", "iceberg": "snapshot"}[kind]
    assert dict(plan.describe())["labels"].endswith(f" ({word} {lake.version()})\n32, int64")
    former = audit.changed(input={"ids": {**lake.settings, "column": "ids", "version": first}})
    run = former.run().run
    assert run.summary["examples"] == 12, "all inputs of a table are of one version"
    assert {found["version"] for found in run.summary["inputs"].values()} == {first}
    assert_scored(former, part(FILES[0], ALONE))


@both_kinds
@on_disk
def test_a_run_that_was_interrupted_goes_on_with_the_version_it_began_with(
    kind: str, place: Place, client: Client
) -> None:
    lake = lake_with(kind, place, ALONE, FILES[:2])
    audit = audit_of_lake(place, client, lake, ALONE)
    began = lake.version()
    with pytest.raises(Interrupted):
        audit.run(interrupt("score", 1))
    wait_until(lambda: is_idle(client))
    lake.append(table_of(part(FILES[2], ALONE)))
    finished = audit.run()
    assert finished.resumed
    assert finished.run.summary["inputs"]["labels"]["version"] == began
    assert_scored(audit, part(slice(0, 32), ALONE))
    assert not audit.run().unchanged
    assert_scored(audit, ALONE)


@on_disk
def test_a_run_that_was_interrupted_is_not_given_another_version(place: Place, client: Client) -> None:
    lake = lake_with("delta", place, ALONE)
    audit = audit_of_lake(place, client, lake, ALONE)
    with pytest.raises(Interrupted):
        audit.run(interrupt("score", 1))
    wait_until(lambda: is_idle(client))
    for names in (audit.settings["input"], ["ids"]):
        inputs = {name: {**audit.settings["input"][name], "version": 1} for name in names}
        with pytest.raises(RunConflict, match=r"inputs\.ids\.version: not set then, 1 now"):
            audit.changed(input=inputs).run()
    place("lake").delete()
    lake.append(table_of(ALONE))
    with pytest.raises(OutdatedRun, match=r"version 2 cannot be read: .*Add --fresh"):
        audit.run()
    audit.run(fresh=True)
    assert_scored(audit, ALONE)


@on_disk
def test_a_store_that_cannot_be_reached_is_not_taken_for_a_version_that_is_gone(
    place: Place, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = lake_with("delta", place, ALONE, FILES[:2])
    audit = audit_of_lake(place, client, lake, ALONE)
    with pytest.raises(Interrupted):
        audit.run(interrupt("score", 1))
    wait_until(lambda: is_idle(client))
    lake.append(table_of(part(FILES[2], ALONE)))
    plan = make_plan(audit.config, RESOURCES)
    with monkeypatch.context() as patch:
        patch.setattr(DeltaLake, "_open", staticmethod(_out_of_reach))
        with pytest.raises(StorageError, match="out of reach") as caught:
            run_audit(plan, client, lambda progress: None)
    assert not isinstance(caught.value, OutdatedRun), "or it would be discarded"
    assert audit.run().resumed


def _out_of_reach(version: int | None) -> None:
    raise OSError("out of reach")


@both_kinds
@on_disk
def test_a_table_may_grow_while_a_run_is_at_work(kind: str, place: Place, client: Client) -> None:
    lake = lake_with(kind, place, ALONE, FILES[:2])
    audit = audit_of_lake(place, client, lake, ALONE)
    grown = []

    def grow(progress: Progress) -> None:
        if not grown:
            grown.append(lake.append(table_of(part(FILES[2], ALONE))))

    audit.run(grow)
    assert grown
    assert_scored(audit, part(slice(0, 32), ALONE))


@on_disk
def test_inputs_that_go_together_by_rows_are_of_one_table_and_one_version(place: Place, client: Client) -> None:
    lake = lake_with("delta", place, ALONE)
    other = DeltaFolder(place, "other")
    other.append(table_of(ALONE))
    audit = audit_of_lake(place, client, lake, ALONE)
    together = "labels and pred_probs and ids go together by rows, but are not all of one table"
    for ids in ({**other.settings, "column": "ids"}, store_parquet(place("files"), ALONE)["ids"]):
        with pytest.raises(InvalidConfig, match=together):
            make_plan(audit.changed(input={"ids": ids}).config, RESOURCES)
    versions = {name: {**lake.settings, "column": name, "version": i} for i, name in enumerate(("labels", "ids"))}
    with pytest.raises(
        InvalidConfig, match=r"input\.ids\.version: asks for version 1, but another input for version 0"
    ):
        make_plan(audit.changed(input=versions).config, RESOURCES)


@on_disk
def test_annotations_in_files_go_with_a_table_by_identifiers(place: Place, client: Client) -> None:
    example = TASKS["multiannotator"]
    lake = lake_with("delta", place, example)
    audit = audit_of_lake(place, client, lake, example)
    assert example.annotations is not None
    audit.settings["input"]["annotations"] = store_annotations(place("annotations"), example.annotations)
    audit.run()
    assert_scored(audit, example)


# -- output


def output_of(lake: Lake, place: Place) -> dict[str, Any]:
    if isinstance(lake, IcebergTable):
        return {"format": "iceberg", "catalog": lake.settings["catalog"], "table": lake.identifier}
    return {"format": "delta"}


def audit_into(kind: str, place: Place, client: Client, **settings: Any) -> tuple[Audit, Lake, Callable[[], None]]:
    """An audit of Parquet files, the table that it publishes to, and what adds a file to its input."""
    table = lake_of(kind, place, "out")
    audit = audit_of(place, client, ALONE, "parquet")
    out = {**output_of(table, place), **settings}

    def grow() -> None:
        count = len(list(place("data").entries()))
        content = place("data").read("part-1.parquet")
        place("data").write(f"part-{count}.parquet", content)

    return audit.changed(output=out), table, grow


def assert_same_rows(table: pd.DataFrame, audit: Audit) -> None:
    wanted = scores(audit).reset_index(drop=True)
    pd.testing.assert_frame_equal(table[[*wanted.columns]], wanted, check_dtype=False)
    assert table[[*{*table.columns} - {*wanted.columns}]].isna().all(axis=None)


@both_kinds
def test_two_runs_are_two_versions_of_the_table(kind: str, place: Place, client: Client) -> None:
    audit, table, grow = audit_into(kind, place, client)
    audit.run()
    assert_same_rows(table.history()[-1], audit)
    before = scores(audit)
    grow()
    audit.run()
    first, second = table.history()
    assert_same_rows(second, audit)
    assert (len(first), len(second)) == (ROWS, ROWS + 20)
    assert first["label_quality_score"].tolist() == before["label_quality_score"].tolist()
    assert audit.run().unchanged
    assert len(table.history()) == 2
    assert verify(audit.location).problems == ()


@both_kinds
@pytest.mark.parametrize("after", [False, True], ids=["before the commit", "after the commit"])
@on_disk
def test_a_run_that_ends_as_it_tells_the_table_tells_it_once(
    after: bool, kind: str, place: Place, client: Client
) -> None:
    audit, table, grow = audit_into(kind, place, client)
    audit.run()
    grow()

    def end(name: str, function: Callable[..., Any], *args: Any) -> Any:
        telling = name == "table" and args[1].name == "v000002"
        if telling and not after:
            raise Interrupted
        result = function(*args)
        if telling:
            raise Interrupted
        return result

    with pytest.raises(Interrupted):
        audit.run(call=end)
    assert len(table.history()) == 1 + after
    grow()
    audit.run()
    assert [len(rows) for rows in table.history()] == [ROWS, ROWS + 20, ROWS + 40]
    assert_same_rows(table.history()[-1], audit)


@both_kinds
@on_disk
def test_an_unfinished_version_is_not_in_the_table(kind: str, place: Place, client: Client) -> None:
    audit, table, grow = audit_into(kind, place, client)
    audit.run()
    grow()
    with pytest.raises(Interrupted):
        audit.run(interrupt("score", 1))
    wait_until(lambda: is_idle(client))
    assert [len(rows) for rows in table.history()] == [ROWS]
    audit.run(fresh=True)
    assert [len(rows) for rows in table.history()] == [ROWS, ROWS + 20]


@both_kinds
@on_disk
def test_other_columns_are_those_of_the_next_version(kind: str, place: Place, client: Client) -> None:
    audit, table, _ = audit_into(kind, place, client)
    audit.run()
    more = audit.changed(params={"find_label_issues": True})
    more.run()
    assert "is_issue" in scores(more)
    assert_same_rows(table.history()[-1], more)
    assert "is_issue" not in table.history()[0] or kind == "iceberg"
    audit.run()
    assert_same_rows(table.history()[-1], audit)


@on_disk
def test_versions_that_are_pruned_are_as_after_a_vacuum(place: Place, client: Client) -> None:
    audit, table, grow = audit_into("delta", place, client, keep_versions=1)
    assert isinstance(table, DeltaFolder)
    audit.run()
    grow()
    audit.run()
    assert version_names(audit.location) == ["v000002"]
    assert_same_rows(table.open().to_pandas(), audit)
    with pytest.raises((FileNotFoundError, OSError)):
        table.open(0).to_pandas()


@on_disk
def test_a_vacuum_leaves_what_is_beside_the_scores(place: Place, client: Client) -> None:
    audit, table, grow = audit_into("delta", place, client)
    assert isinstance(table, DeltaFolder)
    audit.run()
    grow()
    audit.run()
    a_year_ago = time.time() - 365 * 24 * 3600
    for path in Path(table.address).rglob("*"):
        os.utime(path, (a_year_ago, a_year_ago))
    before = sorted(entry.path for entry in audit.location.entries() if "_delta_log" not in entry.path)
    table.open().vacuum(dry_run=False, full=True)
    assert sorted(entry.path for entry in audit.location.entries() if "_delta_log" not in entry.path) == before


@both_kinds
@on_disk
def test_a_table_of_others_is_not_overwritten(kind: str, place: Place, client: Client) -> None:
    audit, table, _ = audit_into(kind, place, client)
    table.append(table_of(ALONE))
    with pytest.raises(InvalidConfig, match=r"table that no audit .*has made; its rows would be removed"):
        make_plan(audit.config, RESOURCES)


@both_kinds
@on_disk
def test_a_table_whose_output_is_gone_is_not_added_to(kind: str, place: Place, client: Client) -> None:
    audit, _, grow = audit_into(kind, place, client)
    audit.run()
    grow()
    audit.run()
    for path in ("latest.json", "v000002/_run/manifest.json"):
        audit.location.delete_object(path)
    for version in version_names(audit.location):
        audit.version(version).location.delete()
    with pytest.raises(InvalidConfig, match="holds version 2 of the scores, but no version is the newest of the outp"):
        make_plan(audit.config, RESOURCES)
    other = audit.changed(out="elsewhere")
    if kind == "iceberg":
        with pytest.raises(InvalidConfig, match=r"that no audit in .*elsewhere has made"):
            make_plan(other.config, RESOURCES)
    else:
        make_plan(other.config, RESOURCES)


@both_kinds
@on_disk
def test_scores_of_a_table_are_a_table(kind: str, place: Place, client: Client) -> None:
    lake = lake_with(kind, place, ALONE)
    out = lake_of(kind, place, "out")
    audit = audit_of_lake(place, client, lake, ALONE, output={**output_of(out, place), "region_rows": REGION_ROWS})
    audit.run()
    assert_scored(audit, ALONE)
    assert_same_rows(out.history()[-1], audit)


@both_kinds
@on_disk
def test_without_the_package_the_remedy_is_named(
    kind: str, place: Place, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = {"delta": "deltalake", "iceberg": "pyiceberg"}[kind]
    lake = lake_with(kind, place, ALONE)
    audit, _, _ = audit_into(kind, place, client)
    for module in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.setitem(sys.modules, module, None)
    remedy = rf"needs {package}, which cannot be imported\. Install it: pip install 'labelqa-dask\[{kind}\]'\."
    for each in (audit_of_lake(place, client, lake, ALONE), audit):
        with pytest.raises(InvalidConfig, match=remedy):
            make_plan(each.config, RESOURCES)


@on_disk
def test_unsigned_identifiers_have_no_type_in_a_table(place: Place, client: Client) -> None:
    example = replace(ALONE, ids=np.arange(ROWS, dtype=np.uint32))
    audit = audit_of(place, client, example, "parquet").changed(output={"format": "delta"})
    with pytest.raises(InvalidConfig, match="id cannot be written: the table has no unsigned integers"):
        make_plan(audit.config, RESOURCES)
