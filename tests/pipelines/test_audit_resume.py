"""Runs that were interrupted, repeated, changed or damaged: what is finished is kept, and the result is the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from labelqa_dask import open_run
from labelqa_dask.core.errors import OutdatedRun, RunConflict, RunFailed
from labelqa_dask.storage.record import latest, unfinished
from pipelines.regions import Listener, Progress
from tests.pipelines.audits import Audit, Interrupted, interrupt, is_idle, on_disk, store_again, wait_until
from tests.stores import Place


def stop_before(stage: str) -> Callable[..., Any]:
    """Run the stages up to one, and stop there."""

    def call(name: str, function: Callable[..., Any], *args: Any) -> Any:
        if name == stage:
            raise Interrupted
        return function(*args)

    return call


def stages_into(told: set[str]) -> Listener:
    return lambda progress: told.add(progress.stage)


def undisturbed(audit: Audit) -> dict[str, bytes]:
    """What the same audit publishes into another output without anything going wrong."""
    other = audit.changed(out="undisturbed")
    other.run()
    return other.published()


# -- again


def test_the_same_run_again_is_unchanged_and_writes_nothing(of_images: Audit) -> None:
    first = of_images.run()
    before = of_images.place.writes("out")
    told: set[str] = set()
    again = of_images.run(stages_into(told))
    assert again.unchanged
    assert again.run.version == first.run.version
    assert told == set()
    assert of_images.place.writes("out") == before


@on_disk
def test_another_cluster_or_output_path_written_otherwise_is_the_same_run(of_images: Audit) -> None:
    of_images.run()
    assert of_images.changed(cluster={"workers": 7}, output={"uri": of_images.place.url("out/")}).run().unchanged


@on_disk
def test_a_fresh_run_makes_a_new_version_of_the_same_content(of_numbers: Audit) -> None:
    of_numbers.run()
    before = of_numbers.place.writes("out/v000001")
    audited = of_numbers.run(fresh=True)
    assert not audited.unchanged
    assert audited.run.version.name == "v000002"
    assert latest(of_numbers.location) == of_numbers.version("v000002")
    assert of_numbers.published("v000002") == of_numbers.published()
    assert of_numbers.place.writes("out/v000001") == before


@on_disk
def test_changed_settings_make_a_new_version_of_a_finished_run(of_numbers: Audit) -> None:
    of_numbers.run()
    changed = of_numbers.changed(params={"adjust_pred_probs": False})
    assert changed.run().run.version.name == "v000002"
    assert changed.run().unchanged
    assert of_numbers.run().run.version.name == "v000003"
    assert of_numbers.published("v000003") == of_numbers.published("v000001") != of_numbers.published("v000002")


@on_disk
def test_changed_input_makes_a_new_version_of_a_finished_run(of_numbers: Audit) -> None:
    of_numbers.run()
    of_numbers.data.labels[3] = (of_numbers.data.labels[3] + 1) % 4
    store_again(of_numbers)
    audited = of_numbers.run()
    assert audited.run.version.name == "v000002"
    assert audited.run.summary["classes"] != json.loads(of_numbers.published()["summary.json"])["classes"]


# -- interrupted


@pytest.mark.parametrize(("place", "done"), [("file", 1), ("file", 4), ("s3", 3)], indirect=["place"])
def test_regions_that_were_finished_are_kept_and_the_bytes_are_those_of_an_undisturbed_run(
    of_images: Audit, done: int
) -> None:
    with pytest.raises(Interrupted):
        of_images.run(interrupt("score", done))
    finished = of_images.receipts()
    assert len(finished) >= done
    assert latest(of_images.location) is None
    assert unfinished(of_images.location) == of_images.version()
    told: list[Progress] = []
    audited = of_images.run(told.append)
    assert audited.resumed
    assert told[0].done >= len(finished)
    kept = of_images.receipts()
    assert len(kept) == audited.run.summary["regions"]
    assert {path: kept[path] for path in finished} == finished
    assert of_images.published() == undisturbed(of_images)


@on_disk
def test_statistics_that_were_finished_are_kept(of_numbers: Audit) -> None:
    with pytest.raises(Interrupted):
        of_numbers.run(interrupt("score", 0))
    before = of_numbers.place.writes("out/v000001/_run/stats")
    assert len(before) == 1
    told: set[str] = set()
    of_numbers.run(stages_into(told))
    assert told == {"score"}
    assert of_numbers.place.writes("out/v000001/_run/stats") == before
    assert of_numbers.published() == undisturbed(of_numbers)


@on_disk
@pytest.mark.parametrize("stage", ["estimate", "score", "select", "publish"])
def test_a_run_that_stopped_before_a_stage_goes_on_there(of_numbers: Audit, stage: str) -> None:
    with pytest.raises(Interrupted):
        of_numbers.run(call=stop_before(stage))
    assert latest(of_numbers.location) is None
    told: set[str] = set()
    audited = of_numbers.run(stages_into(told))
    assert audited.resumed
    assert ("estimate confident_thresholds" in told) == (stage == "estimate")
    assert of_numbers.published() == undisturbed(of_numbers)


@on_disk
def test_a_run_can_be_interrupted_after_every_region(of_images: Audit) -> None:
    interruptions = 0
    while latest(of_images.location) is None:
        done = len(of_images.receipts())
        try:
            of_images.run(interrupt("score", done + 1))
        except Interrupted:
            interruptions += 1
    assert interruptions >= 2
    assert of_images.published() == undisturbed(of_images)


@on_disk
def test_what_was_under_way_is_given_back_when_a_run_stops(of_images: Audit) -> None:
    before = set(of_images.client.futures)
    with pytest.raises(Interrupted) as stopped:
        of_images.changed(output={"region_rows": 1}).run(interrupt("score", 1))
    wait_until(lambda: is_idle(of_images.client))
    assert stopped.traceback, "the error is still at hand, and with it all that its frames hold"
    wait_until(lambda: set(of_images.client.futures) <= before)
    assert len(of_images.receipts()) < 14


@on_disk
def test_readers_see_the_last_version_until_the_next_is_whole(of_numbers: Audit) -> None:
    of_numbers.run()
    before = of_numbers.published()
    with pytest.raises(Interrupted):
        of_numbers.run(interrupt("score", 5), fresh=True)
    run = open_run(of_numbers.place.url("out"), of_numbers.place.options)
    assert run.version.name == "v000001"
    assert of_numbers.published() == before
    assert unfinished(of_numbers.location) == of_numbers.version("v000002")
    audited = of_numbers.run()
    assert audited.resumed
    assert audited.run.version.name == "v000002"


# -- interrupted, then something else is asked for


@on_disk
def test_other_settings_are_refused_while_a_run_is_unfinished(of_numbers: Audit) -> None:
    with pytest.raises(Interrupted):
        of_numbers.run(interrupt("score", 2))
    changed = of_numbers.changed(params={"method": "normalized_margin"}, select={"worst": 3})
    wait_until(lambda: is_idle(of_numbers.client))
    before = of_numbers.place.writes("out")
    with pytest.raises(RunConflict) as caught:
        changed.run()
    assert not isinstance(caught.value, OutdatedRun), "it can still be finished"
    assert str(caught.value) == (
        f"{of_numbers.location}/v000001: an unfinished run there was begun with other settings or inputs: "
        "params.method: self_confidence then, normalized_margin now; select.worst: 25 then, 3 now. "
        "Run it as it was begun to finish it, or add --fresh to discard it and start anew."
    )
    assert of_numbers.place.writes("out") == before
    assert of_numbers.run().resumed


@on_disk
def test_another_input_is_refused_while_a_run_is_unfinished(of_numbers: Audit) -> None:
    with pytest.raises(Interrupted):
        of_numbers.run(interrupt("score", 2))
    of_numbers.data.labels[3] = (of_numbers.data.labels[3] + 1) % 4
    store_again(of_numbers)
    with pytest.raises(OutdatedRun, match=r"inputs\.labels\.digest: \w+ then, \w+ now") as caught:
        of_numbers.run()
    assert "params" not in str(caught.value)


@on_disk
def test_a_fresh_run_discards_what_was_unfinished(of_numbers: Audit) -> None:
    with pytest.raises(Interrupted):
        of_numbers.run(interrupt("score", 3))
    wait_until(lambda: is_idle(of_numbers.client))
    changed = of_numbers.changed(output={"region_rows": 40})
    audited = changed.run(fresh=True)
    assert not audited.resumed
    assert audited.run.version.name == "v000002"
    assert not of_numbers.version().location.exists()
    assert changed.published("v000002") == undisturbed(changed)


def test_a_fresh_run_takes_nothing_from_workers_that_still_write(of_numbers: Audit) -> None:
    """Regions of the run that was discarded are written late, by workers that know nothing of the new one."""
    with pytest.raises(Interrupted):
        of_numbers.run(interrupt("score", 1))
    wait_until(lambda: is_idle(of_numbers.client))
    late = {entry.path: of_numbers.location.read(entry.path) for entry in of_numbers.location.entries()}
    changed = of_numbers.changed(output={"region_rows": 40})

    def call(name: str, function: Callable[..., Any], *args: Any) -> Any:
        if name == "select":
            for path, content in late.items():
                of_numbers.location.write(path, content)
        return function(*args)

    version = changed.run(fresh=True, call=call).run.version
    assert changed.published(version.name) == undisturbed(changed)
    assert changed.run().unchanged


@on_disk
def test_scores_of_data_that_changed_while_they_were_read_are_not_published(
    of_numbers: Audit, of_images: Audit
) -> None:
    for audit in (of_numbers, of_images.changed(out="images")):

        def call(name: str, function: Callable[..., Any], *args: Any, audit: Audit = audit) -> Any:
            if name == "select":
                audit.data.labels[-1] = (audit.data.labels[-1] + 1) % 4
                store_again(audit)
            return function(*args)

        with pytest.raises(RunFailed, match=r"labels.* changed while the run was at work; nothing was published"):
            audit.run(call=call)
        assert latest(audit.location) is None
        assert audit.run(fresh=True).run.version.name == "v000002"


# -- damaged


@on_disk
@pytest.mark.parametrize("damage", [lambda content: content[:-30], lambda content: b"", lambda content: None])
def test_regions_whose_receipts_are_damaged_are_done_again(of_numbers: Audit, damage: Callable[[bytes], Any]) -> None:
    with pytest.raises(Interrupted):
        of_numbers.run(interrupt("score", 6))
    wait_until(lambda: is_idle(of_numbers.client))
    before = of_numbers.receipts()
    for path in sorted(before)[:2]:
        done = of_numbers.version().run / "done"
        content = damage(done.read(path))
        if content is None:
            done.delete_object(path)
        else:
            done.write(path, content)
    assert of_numbers.run().resumed
    after = of_numbers.receipts()
    assert [path for path in sorted(before) if after[path] != before[path]] == sorted(before)[:2]
    assert of_numbers.published() == undisturbed(of_numbers)


@on_disk
def test_statistics_that_are_damaged_are_made_again(of_numbers: Audit) -> None:
    with pytest.raises(Interrupted):
        of_numbers.run(interrupt("score", 0))
    stats = of_numbers.version().run / "stats"
    stats.write("confident_thresholds.npz", stats.read("confident_thresholds.npz")[:-40])
    of_numbers.run()
    assert of_numbers.published() == undisturbed(of_numbers)


@on_disk
def test_nothing_is_left_of_a_run_whose_manifest_is_damaged(of_numbers: Audit) -> None:
    with pytest.raises(Interrupted):
        of_numbers.run(interrupt("score", 6))
    wait_until(lambda: is_idle(of_numbers.client))
    run = of_numbers.version().run
    run.write("manifest.json", run.read("manifest.json")[:-30])
    changed = of_numbers.changed(output={"region_rows": 40})
    audited = changed.run()
    assert not audited.resumed
    assert changed.published(audited.run.version.name) == undisturbed(changed)


@on_disk
def test_a_receipt_that_went_missing_before_the_selection_is_named(of_numbers: Audit) -> None:
    def call(name: str, function: Callable[..., Any], *args: Any) -> Any:
        if name == "select":
            of_numbers.version().run.delete_object("done/00002.json")
        return function(*args)

    with pytest.raises(RunFailed, match=r"1 regions have no valid receipt, the first is 00002\. Run the same command"):
        of_numbers.run(call=call)
    assert latest(of_numbers.location) is None
    assert of_numbers.run().resumed
    assert of_numbers.published() == undisturbed(of_numbers)


@on_disk
def test_output_that_was_deleted_is_made_anew_by_the_same_workers(place: Place, of_images: Audit) -> None:
    """Workers outlive runs: what they remember of an output must not outlive it."""
    for rows in (1, 5, 2):
        audit = of_images.changed(output={"region_rows": rows})
        run = audit.run().run
        np.testing.assert_array_equal(run.scores["pixel_scores"].isnull(), False)
        assert run.version.name == "v000001"
        place("out").delete()
