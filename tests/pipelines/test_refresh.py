"""The next version of an output: only what has changed is read, and the result is that of a run from scratch."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from distributed import Client
from zarr.storage import ObjectStore as ZarrObjectStore

from labelqa_dask.core.errors import InvalidConfig, InvalidInput, OutdatedRun, RunConflict
from labelqa_dask.storage.record import version_names
from labelqa_dask.storage.sinks import parquet_bytes
from pipelines.audit import Audited, run_audit
from pipelines.plan import make_plan
from pipelines.verify import verify
from tests.faults.tasks import REGION_ROWS, ROWS, TASKS, Example, audit_of, audit_over, store_zarr
from tests.pipelines.audits import RESOURCES, Audit, Interrupted, interrupt, is_idle, on_disk, wait_until
from tests.pipelines.crowds import LONG
from tests.pipelines.crowds import audit_of as audit_of_crowd
from tests.stores import Place

REGIONS = 9
WITHOUT_STATISTICS = {"multiclass": {}, "multilabel": {}, "regression": {"method": "residual"}, "segmentation": {}}
MEANS = "confident_thresholds"


def part(rows: slice | Iterable[int], example: Example) -> Example:
    """Some rows of an example."""
    chosen = np.arange(ROWS)[rows] if isinstance(rows, slice) else np.asarray(list(rows))
    arrays = {name: values[chosen] for name, values in example.arrays.items()}
    return replace(example, arrays=arrays, ids=example.ids[chosen])


def write_files(place: Place, files: Mapping[str, Example]) -> None:
    """A file of its own for each, in row groups of five; what is there already and has the same content stays."""
    for name, example in files.items():
        columns = {
            column: pa.array(values)
            if values.ndim == 1
            else pa.FixedSizeListArray.from_arrays(values.ravel(), values.shape[1])
            for column, values in example.columns.items()
        }
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns), buffer, row_group_size=REGION_ROWS)
        place("data").write(f"{name}.parquet", buffer.getvalue())


def parquet_audit(
    place: Place, client: Client, example: Example, files: Mapping[str, Example], **settings: Any
) -> Audit:
    write_files(place, files)
    inputs = {name: {"uri": place.url("data"), "column": name} for name in example.columns}
    return audit_over(place, client, example, inputs, "parquet", **settings)


def read_by(audit: Audit, version: str) -> dict[str, int]:
    """How many regions the making of a version has read, for each pass and to score them."""
    told = json.loads(audit.version(version).run.read("timings.json"))
    found: dict[str, int] = told["regions_read"]
    return found


def scored_in(audit: Audit, version: str) -> list[str]:
    """The regions whose scores a version has not taken from another one."""
    location = audit.version(version).run / "done"
    receipts = (json.loads(location.read(entry.path)) for entry in location.entries())
    return sorted(receipt["region"] for receipt in receipts if receipt["origin"] == version)


def assert_as_from_scratch(audit: Audit, version: str) -> None:
    """Byte for byte what another output gets, whose first version this is; a report tells of the version before."""
    other = audit.changed(out="scratch")
    other.run(fresh=True)
    newest = version_names(other.location)[-1]
    found, expected = audit.published(version), other.published(newest)
    assert found.keys() == expected.keys()
    assert [path for path in found if found[path] != expected[path] and path != "report.html"] == []
    assert verify(audit.location).problems == ()


def refreshed(audit: Audit) -> Audited:
    audited = audit.run()
    assert not audited.unchanged
    assert audited.refreshed is not None
    return audited


# -- Parquet: files come, change and go


FILES = {"b": slice(0, 12), "d": slice(12, 27), "f": slice(27, 42)}


def changes(example: Example) -> dict[str, tuple[dict[str, Example], list[str], int]]:
    """What happens to the files: those written, those deleted, and how many regions are read then."""
    return {
        "new at the end": ({"g": part(slice(3, 11), example)}, [], 2),
        "new at the beginning": ({"a": part(slice(3, 11), example)}, [], 2),
        "new between": ({"c": part(slice(3, 11), example)}, [], 2),
        "rewritten": ({"d": part(slice(20, 35), example)}, [], 3),
        "rewritten and longer": ({"d": part(slice(18, 36), example)}, [], 4),
        "removed": ({}, ["b"], 0),
        "removed and new": ({"g": part(slice(3, 11), example)}, ["d"], 2),
    }


def change_files(audit: Audit, case: str) -> int:
    written, deleted, read = changes(audit.data)[case]  # type: ignore[arg-type]
    write_files(audit.place, written)
    for name in deleted:
        audit.place("data").delete_object(f"{name}.parquet")
    return read


@pytest.mark.parametrize(
    ("place", "case"),
    [*(("file", case) for case in changes(TASKS["multiclass"])), ("s3", "removed and new")],
    indirect=["place"],
)
def test_files_that_come_change_and_go_are_all_that_is_read(case: str, place: Place, client: Client) -> None:
    example = replace(TASKS["multiclass"], params={})
    audit = parquet_audit(place, client, example, {name: part(rows, example) for name, rows in FILES.items()})
    audit.run()
    read = change_files(audit, case)
    told = refreshed(audit).refreshed
    assert told is not None
    assert read_by(audit, "v000002") == {"score": read}
    assert (told.previous, told.regions - told.taken_over) == ("v000001", read)
    assert len(scored_in(audit, "v000002")) == read
    assert_as_from_scratch(audit, "v000002")


@pytest.mark.parametrize("place", ["file", "s3"], indirect=True)
def test_statistics_that_moved_are_made_from_what_changed_and_all_is_scored_again(place: Place, client: Client) -> None:
    example = TASKS["multiclass"]
    audit = parquet_audit(place, client, example, {name: part(rows, example) for name, rows in FILES.items()})
    audit.run()
    read = change_files(audit, "removed and new")
    told = refreshed(audit).refreshed
    assert told is not None
    assert read_by(audit, "v000002") == {MEANS: read, "score": told.regions}
    assert told.taken_over == 0
    assert_as_from_scratch(audit, "v000002")


@on_disk
def test_a_file_that_is_written_again_with_other_bytes_of_the_same_values_moves_no_statistics(
    place: Place, client: Client
) -> None:
    example = TASKS["multiclass"]
    audit = parquet_audit(place, client, example, {name: part(rows, example) for name, rows in FILES.items()})
    audit.run()
    write_files(place, {"d": part(FILES["d"], example)})
    refreshed(audit)
    assert read_by(audit, "v000002") == {MEANS: 3, "score": 3}
    assert_as_from_scratch(audit, "v000002")


def test_on_a_store_that_tells_content_the_same_bytes_again_are_no_change(s3: Place, client: Client) -> None:
    example = TASKS["multiclass"]
    audit = parquet_audit(s3, client, example, {name: part(rows, example) for name, rows in FILES.items()})
    audit.run()
    write_files(s3, {"d": part(FILES["d"], example)})
    assert audit.run().unchanged


# -- Zarr: arrays grow, chunks are rewritten


def zarr_audit(place: Place, client: Client, name: str, **settings: Any) -> Audit:
    return audit_of(place, client, TASKS[name].copy(), **settings)


def rewrite_rows(audit: Audit, rows: Iterable[int]) -> None:
    """Give some rows the labels and predictions of others, where they are."""
    group = zarr.open_group(ZarrObjectStore(audit.place("data.zarr").store))
    for name in audit.data.arrays:  # type: ignore[attr-defined]
        array: Any = group[name]
        for row in rows:
            array[row] = array[(row + 20) % ROWS]


@pytest.mark.parametrize(
    ("place", "name"), [*(("file", name) for name in TASKS), ("s3", "segmentation")], indirect=["place"]
)
def test_a_chunk_that_is_rewritten_is_read_and_the_result_is_that_from_scratch(
    name: str, place: Place, client: Client
) -> None:
    audit = zarr_audit(place, client, name)
    audit.run()
    rewrite_rows(audit, [11, 14])
    refreshed(audit)
    read = read_by(audit, "v000002")
    first = next(iter(read))
    moved = first != "score"
    changed = REGIONS if name == "multiannotator" else 1  # any annotation may be of any example
    assert read[first] == changed, "the first walk reads what has changed"
    assert read["score"] == (REGIONS if moved else 1), "what rests on statistics that moved is scored again"
    assert scored_in(audit, "v000002") == ([f"{i:05d}" for i in range(REGIONS)] if moved else ["00002"])
    assert_as_from_scratch(audit, "v000002")


@pytest.mark.parametrize("name", WITHOUT_STATISTICS)
@on_disk
def test_an_array_that_has_grown_is_read_where_it_grew(name: str, place: Place, client: Client) -> None:
    whole = replace(TASKS[name], params=WITHOUT_STATISTICS[name])
    audit = audit_of(place, client, part(slice(0, 33), whole))
    audit.run()
    store_grown(audit, whole)
    audit = replace(audit, data=whole)  # type: ignore[arg-type]
    told = refreshed(audit).refreshed
    assert told is not None
    assert read_by(audit, "v000002") == {"score": 3}
    assert scored_in(audit, "v000002") == ["00006", "00007", "00008"], "the last chunk was not full"
    assert_as_from_scratch(audit, "v000002")


def store_grown(audit: Audit, whole: Example) -> None:
    """Append the rows that are missing."""
    group = zarr.open_group(ZarrObjectStore(audit.place("data.zarr").store))
    for name, values in whole.columns.items():
        array: Any = group[name]
        n = array.shape[0]
        array.resize(values.shape)
        array[n:] = values[n:]


@on_disk
def test_an_array_that_has_shrunk_is_read_where_it_ends(place: Place, client: Client) -> None:
    whole = replace(TASKS["multiclass"], params={})
    audit = audit_of(place, client, whole)
    audit.run()
    group = zarr.open_group(ZarrObjectStore(place("data.zarr").store))
    for name, values in whole.columns.items():
        array: Any = group[name]
        array.resize((33, *values.shape[1:]))
    refreshed(audit)
    assert scored_in(audit, "v000002") == ["00006"]
    assert_as_from_scratch(audit, "v000002")


@on_disk
def test_another_chunking_is_other_data(place: Place, client: Client) -> None:
    audit = zarr_audit(place, client, "segmentation")
    audit.run()
    store_zarr(place("data.zarr"), audit.data, rows=1)  # type: ignore[arg-type]
    refreshed(audit)
    assert len(scored_in(audit, "v000002")) == REGIONS
    assert_as_from_scratch(audit, "v000002")


@on_disk
def test_what_is_said_of_an_array_changes_no_region(place: Place, client: Client) -> None:
    audit = zarr_audit(place, client, "multiclass")
    audit.run()
    zarr.open_array(ZarrObjectStore(place("data.zarr").store), path="pred_probs").attrs["history"] = "touched"
    refreshed(audit)
    assert read_by(audit, "v000002") == {MEANS: 0, "score": 0}
    assert_as_from_scratch(audit, "v000002")


@on_disk
def test_a_scale_that_changed_is_other_data(place: Place, client: Client) -> None:
    audit = zarr_audit(place, client, "segmentation")
    audit.run()
    zarr.open_array(ZarrObjectStore(place("data.zarr").store), path="pred_probs").attrs["scale_factor"] = 0.5
    refreshed(audit)
    assert read_by(audit, "v000002") == {"score": REGIONS}


# -- settings


@on_disk
@pytest.mark.parametrize(
    "settings",
    [
        {"params": {"method": "normalized_margin"}},
        {"params": {"adjust_pred_probs": False}},
        {"select": {"worst": 11}},
        {"output": {"region_rows": 10}},
        {"output": {"format": "parquet"}},
    ],
    ids=str,
)
def test_with_other_settings_everything_is_read_again(settings: Any, place: Place, client: Client) -> None:
    audit = zarr_audit(place, client, "multiclass")
    audit.run()
    other = audit.changed(**settings)
    told = refreshed(other).refreshed
    assert told is not None
    assert set(read_by(other, "v000002").values()) == {told.regions}
    assert_as_from_scratch(other, "v000002")


@on_disk
def test_fresh_reads_everything_again(place: Place, client: Client) -> None:
    audit = zarr_audit(place, client, "multiclass")
    audit.run()
    assert audit.run(fresh=True).refreshed is None
    assert read_by(audit, "v000002") == {MEANS: REGIONS, "score": REGIONS}
    assert audit.run().unchanged


# -- frozen statistics


def frozen(audit: Audit, **settings: Any) -> Audit:
    return audit.changed(refresh={"statistics": "frozen"}, **settings)


@pytest.mark.parametrize("name", ["multiclass", "multilabel", "num_pixel_issues"])
@on_disk
def test_with_frozen_statistics_only_what_changed_is_scored(name: str, place: Place, client: Client) -> None:
    audit = zarr_audit(place, client, name)
    first = audit.run().run
    exact, before = audit.changed(out="exact"), first.scores.load()  # type: ignore[union-attr]
    exact.run()
    rewrite_rows(audit, [11, 14])
    run = refreshed(frozen(audit)).run
    read = read_by(audit, "v000002")
    assert set(read.values()) == {1}, "each pass that every run makes, and the scores"
    assert scored_in(audit, "v000002") == ["00002"]
    assert run.summary["statistics"] == first.summary["statistics"]
    after, same = run.scores.load(), np.setdiff1d(np.arange(ROWS), np.arange(10, 15))  # type: ignore[union-attr]
    ranked = audit.data.ranked_by  # type: ignore[attr-defined]
    np.testing.assert_array_equal(after[ranked][same], before[ranked][same])
    assert (after[ranked][11], after[ranked][14]) != (before[ranked][11], before[ranked][14])
    assert verify(audit.location).problems == ()

    told = run.summary["frozen"]
    assert (told["statistics_of"], told["examples"]) == ("v000001", ROWS)
    now = refreshed(exact).run.summary["statistics"]
    for name, moved in told["moved"].items():
        then = first.summary["statistics"][name]
        assert moved["from"] == (then if moved["at"] is None else then[moved["at"]])
    first_pass = next(iter(told["moved"]))
    moves = np.abs(np.subtract(now[first_pass], first.summary["statistics"][first_pass]))
    at = told["moved"][first_pass]["at"]
    assert moves[at] == moves.max() > 0
    assert told["moved"][first_pass]["to"] == now[first_pass][at]
    assert f"Scores rest on the statistics of v000001, of {ROWS} examples" in run.summary["remarks"][-1]
    assert "Scores rest on the statistics of v000001" in run.version.location.read("report.html").decode()


@on_disk
def test_frozen_statistics_stay_those_of_one_version_until_exact_ones_are_asked_for(
    place: Place, client: Client
) -> None:
    example = TASKS["multiclass"]
    files = {name: part(rows, example) for name, rows in FILES.items()}
    audit = parquet_audit(place, client, example, files)
    first = audit.run().run.summary
    for version, case in (("v000002", "new at the end"), ("v000003", "removed")):
        read = change_files(audit, case)
        run = refreshed(frozen(audit)).run
        assert run.version.name == version
        assert read_by(audit, version) == {MEANS: read, "score": read}
        assert run.summary["frozen"]["statistics_of"] == "v000001"
        assert run.summary["statistics"] == first["statistics"]
        assert frozen(audit).run().unchanged
        assert verify(audit.location).problems == ()
    told = refreshed(audit).refreshed
    assert told is not None
    assert read_by(audit, "v000004") == {MEANS: 0, "score": told.regions}
    assert_as_from_scratch(audit, "v000004")
    assert frozen(audit).run().unchanged, "exact statistics of the same data are as good"


@on_disk
def test_there_is_nothing_to_freeze_in_a_first_run_or_where_no_statistics_are_made(
    place: Place, client: Client
) -> None:
    audit = zarr_audit(place, client, "multiclass")
    assert frozen(audit).run().run.summary["frozen"] is None
    other = frozen(audit, params={"adjust_pred_probs": False})
    assert refreshed(other).run.summary["frozen"] is None
    rewrite_rows(audit, [11])
    assert refreshed(other).run.summary["frozen"] is None
    assert scored_in(audit, "v000003") == ["00002"]


@on_disk
def test_statistics_that_cannot_score_new_data_cannot_be_frozen(place: Place) -> None:
    audit = frozen(audit_of(place, None, TASKS["regression"]))  # type: ignore[arg-type]
    with pytest.raises(InvalidConfig, match=r"frozen statistics cannot score new data of regression with method outre"):
        make_plan(audit.config, RESOURCES)
    make_plan(audit.changed(params={"method": "residual"}).config, RESOURCES)


# -- interrupted


@on_disk
def test_a_pass_that_was_interrupted_goes_on_from_the_regions_that_were_reduced(place: Place, client: Client) -> None:
    audit = zarr_audit(place, client, "multiclass")
    with pytest.raises(Interrupted):
        audit.run(interrupt(f"estimate {MEANS}", 1))
    wait_until(lambda: is_idle(client))
    kept = list(audit.version().partials(MEANS))
    assert 1 <= len(kept) < REGIONS
    assert audit.run().resumed
    assert read_by(audit, "v000001") == {MEANS: REGIONS - len(kept), "score": REGIONS}
    assert_as_from_scratch(audit, "v000001")


@on_disk
@pytest.mark.parametrize(
    ("mode", "stop"), [("exact", (f"estimate {MEANS}", 3)), ("exact", ("score", 4)), ("frozen", ("score", 6))]
)
def test_a_refresh_that_was_interrupted_goes_on(mode: str, stop: tuple[str, int], place: Place, client: Client) -> None:
    audit = zarr_audit(place, client, "multiclass").changed(refresh={"statistics": mode})
    other = audit.changed(out="undisturbed")
    audit.run()
    other.run()
    rewrite_rows(audit, [11, 14])
    with pytest.raises(Interrupted):
        audit.run(interrupt(*stop))
    wait_until(lambda: is_idle(client))
    before = audit.receipts("v000002")
    audited = audit.run()
    assert audited.resumed
    after = audit.receipts("v000002")
    assert {path: after[path] for path in before} == before
    other.run()
    assert audit.published("v000002") == other.published("v000002")
    assert len(scored_in(audit, "v000002")) == (1 if mode == "frozen" else REGIONS)


@on_disk
def test_exact_statistics_are_refused_while_a_run_with_frozen_ones_is_unfinished(place: Place, client: Client) -> None:
    audit = zarr_audit(place, client, "multiclass")
    audit.run()
    rewrite_rows(audit, [11])
    with pytest.raises(Interrupted):
        frozen(audit).run(interrupt("score", 1))
    with pytest.raises(
        RunConflict, match=r"statistics: not set then, exact now; .*statistics\.of: v000001 then, not set"
    ):
        audit.run()


# -- bad data


@on_disk
def test_a_region_that_could_not_be_scored_is_left_out_again_without_being_read(place: Place, client: Client) -> None:
    audit = zarr_audit(place, client, "multiclass", on_error="quarantine")
    array: Any = zarr.open_array(ZarrObjectStore(place("data.zarr").store), path="pred_probs")
    array[31] = np.nan
    audit.run()
    rewrite_rows(audit, [12])
    refreshed(audit)
    assert read_by(audit, "v000002") == {MEANS: 1, "score": REGIONS - 1}
    assert_as_from_scratch(audit, "v000002")
    array[31] = array[30]
    refreshed(audit)
    assert read_by(audit, "v000003") == {MEANS: 1, "score": REGIONS}
    assert_as_from_scratch(audit, "v000003")


@on_disk
def test_what_was_left_out_is_refused_where_nothing_may_be(place: Place, client: Client) -> None:
    audit = zarr_audit(place, client, "multiclass", on_error="quarantine", params={"adjust_pred_probs": False})
    array: Any = zarr.open_array(ZarrObjectStore(place("data.zarr").store), path="pred_probs")
    array[31] = np.nan
    audit.run()
    rewrite_rows(audit, [11])
    with pytest.raises(InvalidInput, match=r"region 00006: .*pred_probs, example 31"):
        audit.changed(on_error="fail").run()


# -- damage, and what is kept


@on_disk
def test_what_is_missing_in_the_version_before_is_made_again(place: Place, client: Client) -> None:
    audit = zarr_audit(place, client, "segmentation")
    audit.run()
    before = audit.version().location
    before.delete_object("scores.zarr/pixel_scores/c/3/0/0")
    before.write("_run/done/00000.json", b"{}")
    rewrite_rows(audit, [11])
    refreshed(audit)
    assert len(scored_in(audit, "v000002")) == 3
    assert_as_from_scratch(audit, "v000002")


@on_disk
def test_a_part_of_other_bytes_than_were_written_is_not_given_other_row_numbers(place: Place, client: Client) -> None:
    example = replace(TASKS["multiclass"], params={})
    audit = parquet_audit(place, client, example, {name: part(rows, example) for name, rows in FILES.items()})
    audit.run()
    before = audit.version().location
    table = pq.read_table(io.BytesIO(before.read("scores/part-00004.parquet")))
    name, scores = "label_quality_score", table["label_quality_score"].to_numpy() / 2
    other = table.set_column(table.column_names.index(name), name, [scores])
    before.write("scores/part-00004.parquet", parquet_bytes(other))
    read = change_files(audit, "new at the beginning")
    refreshed(audit)
    assert len(scored_in(audit, "v000002")) == read + 1
    assert_as_from_scratch(audit, "v000002")


@on_disk
def test_old_versions_are_pruned_and_what_was_taken_from_them_stays(place: Place, client: Client) -> None:
    audit = zarr_audit(place, client, "segmentation").changed(output={"keep_versions": 2})
    audit.run()
    for row in (11, 16, 21):
        rewrite_rows(audit, [row])
        refreshed(audit)
    assert version_names(audit.location) == ["v000003", "v000004"]
    assert scored_in(audit, "v000004") == ["00004"]
    assert_as_from_scratch(audit.changed(output={"keep_versions": 1}), "v000004")
    assert audit.run().unchanged


@on_disk
def test_the_version_that_an_unfinished_one_takes_from_is_kept(place: Place, client: Client) -> None:
    audit = zarr_audit(place, client, "segmentation").changed(output={"keep_versions": 1})
    audit.run()
    rewrite_rows(audit, [11])
    with pytest.raises(Interrupted):
        audit.run(interrupt("score", 1))
    wait_until(lambda: is_idle(client))
    assert version_names(audit.location) == ["v000001", "v000002"]
    assert audit.run().resumed
    assert scored_in(audit, "v000002") == ["00002"]
    assert version_names(audit.location) == ["v000002"]


@on_disk
def test_a_run_that_discards_an_unfinished_one_still_takes_what_has_not_changed(place: Place, client: Client) -> None:
    audit = zarr_audit(place, client, "segmentation")
    audit.run()
    rewrite_rows(audit, [11])
    with pytest.raises(Interrupted):
        audit.run(interrupt("score", 1))
    wait_until(lambda: is_idle(client))
    rewrite_rows(audit, [16])
    with pytest.raises(OutdatedRun):
        audit.run()
    run_audit(make_plan(audit.config, RESOURCES), client, lambda progress: None, discard=True)
    assert version_names(audit.location) == ["v000001", "v000003"]
    assert scored_in(audit, "v000003") == ["00002", "00003"]
    assert_as_from_scratch(audit, "v000003")


@on_disk
def test_annotations_are_scored_from_scratch(place: Place, client: Client) -> None:
    audit = audit_of_crowd(place, client, LONG, "parquet", "zarr", ids=True)
    audit.run()
    array: Any = zarr.open_array(ZarrObjectStore(place("probs.zarr").store), path="pred_probs")
    array[3] = array[4]
    told = refreshed(audit).refreshed
    assert told is not None
    assert told.taken_over == 0
    assert set(read_by(audit, "v000002").values()) == {told.regions}
