"""Audits of Icechunk repositories: as those of plain Zarr, at one snapshot; what commits wrote is read again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import icechunk
import numpy as np
import pytest
from distributed import Client

from labelqa_dask.core.errors import InvalidConfig, OutdatedRun, StorageError
from labelqa_dask.storage.icechunk_store import Snapshot
from labelqa_dask.storage.location import StorageOptions
from labelqa_dask.storage.record import latest
from pipelines.audit import changes_of, run_stage
from pipelines.config import config_schema, parse_config
from pipelines.plan import ICECHUNK_BYTES, make_plan
from pipelines.verify import verify
from tests.faults.tasks import REGION_ROWS, ROWS, TASKS, Example, audit_of, audit_over
from tests.pipelines.audits import RESOURCES, Audit, Interrupted, interrupt, is_idle, on_disk, wait_until
from tests.pipelines.test_refresh import read_by
from tests.repositories import commit, create_repository, put, resize, store
from tests.stores import Place

REGIONS = -(-ROWS // REGION_ROWS)
ON_BOTH = pytest.mark.parametrize("place", ["file", "s3"], indirect=True)
WITHOUT_STATISTICS = replace(TASKS["multiclass"], params={})


def committed(place: Place, client: Client, example: Example, **settings: Any) -> tuple[Audit, icechunk.Repository]:
    """An audit of an example in a repository, one chunk per region and array."""
    repository = create_repository(place)
    commit(repository, store(example.columns, REGION_ROWS))
    uri = place.url("repository")
    inputs = {name: {"uri": uri, "format": "icechunk", "array": name} for name in example.columns}
    return audit_over(place, client, example, inputs, "zarr", **settings), repository


def at(audit: Audit, ref: str) -> Audit:
    return audit.changed(input={name: {**given, "version": ref} for name, given in audit.settings["input"].items()})


def results(audit: Audit, version: str = "v000001") -> dict[str, Any]:
    """What is published, but for what tells the inputs: where they are, and what tells that they have changed."""
    found: dict[str, Any] = dict(audit.published(version))
    found.pop("report.html")
    summary = json.loads(found.pop("summary.json"))
    return {**found, "summary": {name: told for name, told in summary.items() if name != "inputs"}}


def snapshots_of(audit: Audit, version: str = "v000001") -> set[str]:
    manifest = audit.version(version).manifest()
    assert manifest is not None
    return set(manifest["versions"].values())


def assert_as_from_scratch(audit: Audit, version: str) -> None:
    other = audit.changed(out="scratch")
    other.run(fresh=True)
    assert results(audit, version) == results(other)
    assert verify(audit.location).problems == ()


# -- the same results


@pytest.mark.parametrize(
    ("place", "name"),
    [*(("file", name) for name in ("multiclass", "regression", "segmentation")), ("s3", "segmentation")],
    indirect=["place"],
)
def test_an_audit_publishes_what_it_does_of_the_same_arrays_in_plain_zarr(
    name: str, place: Place, client: Client
) -> None:
    audit, repository = committed(place, client, TASKS[name])
    audit.run()
    plain = replace(audit_of(place, client, TASKS[name]), out="plain")
    plain.run()
    assert results(audit) == results(plain)
    assert snapshots_of(audit) == {repository.lookup_branch("main")}
    assert verify(audit.location).problems == ()


def test_predictions_in_a_repository_go_with_annotations_in_parquet(tmp_path: Path, client: Client) -> None:
    place, example = Place(str(tmp_path), StorageOptions()), TASKS["multiannotator"]
    audit, _ = committed(place, client, example)
    plain = replace(audit_of(place, client, example), out="plain")
    audit = audit.changed(input={"annotations": plain.settings["input"]["annotations"]})
    audit.run()
    plain.run()
    assert results(audit) == results(plain)


# -- one snapshot


@ON_BOTH
def test_a_commit_during_a_run_changes_nothing(place: Place, client: Client) -> None:
    audit, repository = committed(place, client, TASKS["multiclass"])
    undisturbed = audit.changed(out="undisturbed")
    undisturbed.run()
    first = repository.lookup_branch("main")

    def between_stages(name: str, function: Callable[..., Any], *args: Any) -> Any:
        if name in ("estimate", "score"):
            commit(repository, put("pred_probs", slice(0, 30), 0.25))
            commit(repository, put("labels", slice(0, 30), 1))
        return run_stage(name, function, *args)

    audit.run(call=between_stages)
    assert repository.lookup_branch("main") != first
    assert snapshots_of(audit) == {first}
    assert results(audit) == results(undisturbed)
    assert not audit.run().unchanged
    assert snapshots_of(audit, "v000002") == {repository.lookup_branch("main")}


@on_disk
def test_a_run_that_was_interrupted_is_finished_at_its_snapshot(place: Place, client: Client) -> None:
    audit, repository = committed(place, client, TASKS["multiclass"])
    undisturbed = audit.changed(out="undisturbed")
    undisturbed.run()
    first = repository.lookup_branch("main")
    with pytest.raises(Interrupted):
        audit.run(interrupt("score", 2))
    wait_until(lambda: is_idle(client))
    commit(repository, put("pred_probs", slice(0, 30), 0.25))
    assert audit.run().resumed
    assert snapshots_of(audit) == {first}
    assert results(audit) == results(undisturbed)


@on_disk
def test_fresh_discards_the_snapshot_that_an_interrupted_run_was_at(place: Place, client: Client) -> None:
    audit, repository = committed(place, client, TASKS["multiclass"])
    with pytest.raises(Interrupted):
        audit.run(interrupt("score", 2))
    wait_until(lambda: is_idle(client))
    newest = commit(repository, put("pred_probs", slice(0, 30), 0.25))
    assert not audit.run(fresh=True).resumed
    assert snapshots_of(audit, "v000002") == {newest}


@on_disk
def test_a_run_whose_snapshot_is_gone_can_only_be_discarded(place: Place, client: Client) -> None:
    audit, repository = committed(place, client, TASKS["multiclass"])
    with pytest.raises(Interrupted):
        audit.run(interrupt("score", 2))
    wait_until(lambda: is_idle(client))
    expired = datetime.now(UTC)
    commit(repository, put("pred_probs", slice(0, 30), 0.25))
    repository.expire_snapshots(older_than=expired)
    repository.garbage_collect(expired)
    with pytest.raises(OutdatedRun, match=r"a version that is no longer there: .*Add --fresh"):
        audit.run()
    audit.run(fresh=True)


@on_disk
def test_all_inputs_of_a_repository_are_at_one_snapshot(
    place: Place, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit, repository = committed(place, client, TASKS["multiclass"])
    repository.create_tag("v1", repository.lookup_branch("main"))
    newest = commit(repository, put("labels", 0, 1))
    opened = Snapshot.open

    def open_before_a_commit(*asked: Any) -> Snapshot:
        snapshot = opened(*asked)
        commit(repository, put("labels", 0, 2))
        return snapshot

    with monkeypatch.context() as patch:
        patch.setattr(Snapshot, "open", open_before_a_commit)
        plan = make_plan(audit.config, RESOURCES)
    assert plan.versions == dict.fromkeys(("labels", "pred_probs", "ids"), newest)
    newest = repository.lookup_branch("main")
    plan = make_plan(audit.config, RESOURCES)
    labels = audit.settings["input"]["labels"]
    mixed = make_plan(audit.changed(input={"labels": {**labels, "version": "v1"}}).config, RESOURCES)
    assert mixed.versions == {**plan.versions, "labels": repository.lookup_tag("v1")}


@on_disk
def test_tags_branches_and_snapshots_are_audited_and_told_by_the_plan(place: Place, client: Client) -> None:
    audit, repository = committed(place, client, WITHOUT_STATISTICS)
    first = repository.lookup_branch("main")
    repository.create_tag("v1", first)
    newest = commit(repository, put("labels", slice(0, 5), 1))
    for ref, snapshot in [("main", newest), ("v1", first), (first, first)]:
        chosen = at(audit, ref).changed(out=f"out-{ref}")
        place_of = dict(make_plan(chosen.config, RESOURCES).describe())["labels"].splitlines()[0]
        assert place_of == f"{place('repository')}/labels ({ref}, snapshot {snapshot})"
        chosen.run()
    assert results(at(audit, "v1").changed(out="out-v1")) == results(audit.changed(out=f"out-{first}"))
    assert results(audit.changed(out="out-main")) != results(audit.changed(out="out-v1"))


# -- what has changed


@ON_BOTH
def test_a_chunk_that_is_rewritten_is_all_that_is_read(place: Place, client: Client) -> None:
    audit, repository = committed(place, client, WITHOUT_STATISTICS)
    audit.run()
    commit(repository, put("pred_probs", 11, audit.data.arrays["pred_probs"][31]))  # type: ignore[attr-defined]
    commit(repository, put("labels", 33, 1))
    changes = changes_of(make_plan(audit.config, RESOURCES))
    assert changes is not None
    assert (changes.changed, changes.regions) == (2, REGIONS)
    assert not audit.run().unchanged
    assert read_by(audit, "v000002") == {"score": 2}
    assert_as_from_scratch(audit, "v000002")


@on_disk
def test_rows_that_were_appended_are_read_and_the_region_that_ended_before(place: Place, client: Client) -> None:
    whole, rows = WITHOUT_STATISTICS, 33
    begun = replace(whole, arrays={name: v[:rows] for name, v in whole.arrays.items()}, ids=whole.ids[:rows])
    audit, repository = committed(place, client, begun)
    audit.run()

    def append(group: Any) -> None:
        for name, values in whole.columns.items():
            resize(name, ROWS)(group)
            put(name, slice(rows, ROWS), values[rows:])(group)

    commit(repository, append)
    assert not audit.run().unchanged
    assert read_by(audit, "v000002") == {"score": 3}
    assert_as_from_scratch(audit, "v000002")


@on_disk
def test_statistics_are_made_from_the_chunks_that_were_rewritten(place: Place, client: Client) -> None:
    audit, repository = committed(place, client, TASKS["multiclass"])
    audit.run()
    commit(repository, put("pred_probs", 11, audit.data.arrays["pred_probs"][31]))  # type: ignore[attr-defined]
    audit.run()
    assert read_by(audit, "v000002") == {"confident_thresholds": 1, "score": REGIONS}
    assert_as_from_scratch(audit, "v000002")


@on_disk
def test_commits_elsewhere_are_no_change(place: Place, client: Client) -> None:
    audit, repository = committed(place, client, WITHOUT_STATISTICS)
    audit.run()
    commit(repository, store({"other": np.arange(10)}, 5))
    repository.create_branch("elsewhere", repository.lookup_branch("main"))
    commit(repository, put("labels", slice(0, 9), 1), branch="elsewhere")
    assert audit.run().unchanged


# -- the plan


@on_disk
def test_the_plan_counts_what_is_held_to_find_the_chunks(place: Place, client: Client) -> None:
    audit, _ = committed(place, client, WITHOUT_STATISTICS)
    plain = make_plan(audit_of(place, client, WITHOUT_STATISTICS).config, RESOURCES)
    plan = make_plan(audit.config, RESOURCES)
    assert plan.region_bytes == plain.region_bytes
    assert plan.worker_bytes - plain.worker_bytes == ICECHUNK_BYTES + 640 * 3 * REGIONS


@on_disk
def test_an_output_inside_a_repository_is_refused(place: Place, client: Client) -> None:
    audit, _ = committed(place, client, WITHOUT_STATISTICS)
    with pytest.raises(InvalidConfig, match="lies inside the input"):
        make_plan(audit.changed(out="repository/audits").config, RESOURCES)


@on_disk
def test_what_is_not_there_is_told_before_anything_runs(place: Place, client: Client) -> None:
    audit, _ = committed(place, client, WITHOUT_STATISTICS)
    with pytest.raises(InvalidConfig, match=r"has no branch, tag or snapshot 'mian'. Did you mean 'main'"):
        make_plan(at(audit, "mian").config, RESOURCES)
    moved = {name: {**given, "uri": place.url("out")} for name, given in audit.settings["input"].items()}
    place("out").create()
    with pytest.raises(StorageError, match="is not an Icechunk repository"):
        make_plan(audit.changed(input=moved, out="other").config, RESOURCES)
    assert latest(audit.location) is None


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"format": "icechunk", "column": "label"}, "an Icechunk repository has arrays: give 'array:', not column"),
        ({"version": "main", "array": "labels"}, "version is that of a table or repository"),
        ({"format": "icechunks", "array": "labels"}, "input.labels.format"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: Any, told: str) -> None:
    given = {"uri": "repository", **settings}
    with pytest.raises(InvalidConfig, match=told):
        parse_config({"task": "multiclass", "input": {"labels": given, "pred_probs": given}, "output": {"uri": "out"}})


def test_the_schema_explains_the_settings() -> None:
    fields = config_schema()["$defs"]["InputConfig"]["properties"]
    assert "Icechunk" in fields["format"]["description"]
    assert "Icechunk: a branch, a tag, or the" in fields["version"]["description"]
