"""Audits of annotations in any order: grouping, its receipts, what is refused and what is left out."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from distributed import Client
from hypothesis import given, settings
from hypothesis import strategies as st

from labelqa_dask import open_run
from labelqa_dask.core.errors import InvalidConfig, InvalidInput, StorageError
from labelqa_dask.multiannotator import get_label_quality_multiannotator
from labelqa_dask.storage import annotations as stored
from labelqa_dask.storage.annotations import AnnotationFiles
from labelqa_dask.storage.location import Location
from labelqa_dask.storage.run import Run
from pipelines import group as grouping
from pipelines.audit import Audited
from pipelines.regions import Progress
from tests.pipelines.audits import Audit, Interrupted, interrupt, is_idle, on_disk, wait_until
from tests.pipelines.crowds import COLUMNS, IDS, LONG, PROBS, K, M, N, audit_of, store_files
from tests.stores import Place
from tests.strategies import cuts, seeded


def check(run: Run, params: dict[str, Any], *, ids: bool) -> None:
    """What is published is what the library makes of the same rows."""
    expected = get_label_quality_multiannotator(
        LONG, PROBS, columns=COLUMNS, verbose=False, return_weights=True, **params
    )
    scores = run.scores.to_dataframe() if run.summary["output"]["format"] == "zarr" else run.scores.compute()
    quality = expected["label_quality"]
    for name in quality:
        np.testing.assert_allclose(scores[name], quality[name], rtol=0, atol=1e-12)
    if ids:
        assert scores["id"].tolist() == IDS.tolist()
    annotators = run.annotators.set_index("annotator")
    stats = expected["annotator_stats"].loc[annotators.index]
    for name in stats:
        np.testing.assert_allclose(annotators[name], stats[name], rtol=0, atol=1e-12)
    assert annotators["annotator_quality"].is_monotonic_increasing
    np.testing.assert_allclose(annotators["weight"].sort_index(), expected["annotator_weight"], rtol=1e-12)
    found = run.annotations.compute().sort_values(["row", "annotator"])
    given = expected["detailed_label_quality"].sort_values(["task", "annotator"])
    assert found["row"].tolist() == given["task"].tolist()
    assert found["annotator"].tolist() == given["annotator"].tolist()
    assert found["label"].tolist() == given["label"].tolist()
    np.testing.assert_allclose(found["quality"], given["quality"], rtol=0, atol=1e-12)
    if ids:
        assert found["id"].tolist() == IDS[found["row"]].tolist()
    order = np.argsort(quality["consensus_quality_score"].to_numpy(), kind="stable")[:15]
    assert run.worst["row"].tolist() == order.tolist()
    assert run.worst["consensus_label"].tolist() == quality["consensus_label"].iloc[order].tolist()
    crowd = run.summary["crowd"]
    assert (crowd["annotators"], crowd["annotations"], crowd["bad"]) == (M, len(LONG), {})
    assert sum(crowd["confusion"]["count"]) == len(LONG)
    assert sum(crowd["agreement"]) == N


EVERYTHING = {
    "consensus_method": ["best_quality", "majority_vote"],
    "calibrate_probs": True,
    "label_quality_score_kwargs": {"adjust_pred_probs": True},
}
FORMS = [
    ("parquet", "zarr", False, {}),
    ("parquet", "parquet", True, {}),
    ("csv", "zarr", True, EVERYTHING),
    ("csv", "parquet", False, {}),
]


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize(("form", "of_probs", "ids", "params"), FORMS)
def test_audits_publish_what_the_library_makes(
    place: Place, client: Client, form: str, of_probs: str, ids: bool, params: dict[str, Any]
) -> None:
    audit = audit_of(place, client, LONG, form, of_probs, ids=ids, params=params)
    audit.run()
    check(open_run(place.url("out"), audit.config.storage), params, ids=ids)
    assert staged(audit) == []


@on_disk
@pytest.mark.usefixtures("small_pieces")
def test_neither_the_order_of_rows_nor_the_cut_changes_what_is_published(place: Place, client: Client) -> None:
    first = audit_of(place, client, LONG, "parquet", "parquet", ids=True)
    first.run()
    again = audit_of(place, client, LONG.sample(frac=1, random_state=3), "parquet", "parquet", ids=True)
    again.changed("again").run()
    ours, theirs = first.published(), again.changed("again").published()
    data = [path for path in ours if path.endswith(".parquet")]
    assert len(data) > 10
    assert all(ours[path] == theirs[path] for path in data)
    other = again.changed("other", output={"region_rows": 35}).run().run
    np.testing.assert_array_equal(
        other.scores.compute()["consensus_label"], first.changed("out").run().run.scores.compute()["consensus_label"]
    )


@on_disk
def test_files_that_are_there_twice_change_nothing_but_the_count(place: Place, of_a_crowd: Audit) -> None:
    undisturbed = tables(of_a_crowd.run())
    assert len(undisturbed) > 10
    rows = LONG.assign(task=IDS[LONG["task"]])

    @given(cut=cuts(len(rows)), seed=st.integers(0, 99), data=st.data())
    @settings(seeded, max_examples=4)
    def check(cut: tuple[int, ...], seed: int, data: st.DataObject) -> None:
        mixed, ends = rows.sample(frac=1, random_state=seed), np.cumsum(cut)
        files = [mixed.iloc[end - size : end] for end, size in zip(ends, cut, strict=True)]
        twice = data.draw(st.lists(st.sampled_from(files), max_size=4))
        stored = store_files(place("again"), [*files, *twice], "parquet")
        again = of_a_crowd.changed("out-again", input={"annotations": {**stored, "bad_rows": "drop"}})
        audited = again.run(fresh=True)
        repeated = sum(map(len, twice))
        assert audited.run.summary["crowd"]["bad"] == ({grouping.REPEATED: repeated} if repeated else {})
        assert tables(audited) == undisturbed
        place("again").delete()

    check()


def tables(audited: Audited) -> dict[str, bytes]:
    """The Parquet files that were published."""
    location = audited.run.version.location
    paths = [entry.path for entry in location.entries()]
    return {path: location.read(path) for path in paths if path.endswith(".parquet") and not path.startswith("_run/")}


def staged(audit: Audit) -> list[str]:
    """What grouping keeps under a run while it is at work."""
    kept = ("annotations/", "scattered/", "stats/scatter/", "stats/gather/", "stats/grouped")
    return sorted(entry.path for entry in audit.version().run.entries() if entry.path.startswith(kept))


STAGES = [("scatter", 2), ("gather", 2), ("estimate votes", 1), ("score", 2)]


@on_disk
@pytest.mark.parametrize(("stage", "done"), STAGES)
def test_an_interrupted_audit_goes_on_where_it_stopped(place: Place, of_a_crowd: Audit, stage: str, done: int) -> None:
    undisturbed = of_a_crowd.changed("undisturbed")
    undisturbed.run()
    with pytest.raises(Interrupted):
        of_a_crowd.run(interrupt(stage, done))
    before = place.writes("out/v000001/_run/stats")
    rounds = {name: sum(path.startswith(f"{name}/") for path in before) for name in ("scatter", "gather")}
    assert rounds.get(stage, done) >= done
    listened: list[tuple[str, dict[str, str]]] = []
    assert of_a_crowd.run(lambda at: listened.append((at.stage, place.writes("out/v000001/_run/stats")))).resumed
    while_grouping = [stats for at, stats in listened if at in ("scatter", "gather")]
    for stats in while_grouping:
        assert before.items() <= stats.items(), "what is on record is not done again"
    assert bool(while_grouping) == (stage in ("scatter", "gather"))
    assert of_a_crowd.published() == undisturbed.published()


def flipped(content: bytes) -> bytes:
    return bytes([*content[:-30], content[-30] ^ 1, *content[-29:]])


def cut_off(content: bytes) -> bytes:
    return content[: len(content) // 2]


DAMAGED = [
    ("scatter", "scattered/*.bin", flipped, ["scatter"]),
    ("scatter", "scattered/*.parquet", cut_off, ["scatter"]),
    ("scatter", "stats/scatter/*.npz", flipped, ["scatter"]),
    ("gather", "scattered/*.bin", cut_off, ["scatter"]),
    ("gather", "annotations/annotators.parquet", flipped, []),
    ("gather", "annotations/part-*.npz", flipped, ["gather"]),
    ("gather", "stats/gather/*.npz", cut_off, ["gather"]),
    ("estimate votes", "annotations/annotators.parquet", flipped, ["grouped.npz"]),
    ("estimate votes", "annotations/part-*.npz", None, ["gather", "grouped.npz"]),
    ("estimate votes", "stats/gather/*.npz", flipped, ["gather", "grouped.npz"]),
    ("estimate votes", "stats/grouped.npz", cut_off, ["grouped.npz"]),
]


@on_disk
@pytest.mark.parametrize(("stage", "pattern", "damage", "again"), DAMAGED, ids=[f"{d[0]} {d[1]}" for d in DAMAGED])
def test_what_is_damaged_is_made_again_and_nothing_else(
    place: Place, of_a_crowd: Audit, stage: str, pattern: str, damage: Any, again: list[str]
) -> None:
    with pytest.raises(Interrupted):
        of_a_crowd.run(interrupt(stage, 1))
    wait_until(lambda: is_idle(of_a_crowd.client))
    run = of_a_crowd.version().run
    before, path = place.writes("out/v000001/_run/stats"), fnmatch.filter(staged(of_a_crowd), pattern)[0]
    content = run.read(path)
    run.delete_object(path) if damage is None else run.write(path, damage(content))
    after: dict[str, str] = {}

    def listen(progress: Progress) -> None:
        if progress.stage == "gather" or (progress.stage, progress.done) == ("estimate votes", 0):
            after.update(place.writes("out/v000001/_run/stats"))

    assert of_a_crowd.run(listen).resumed
    changed = [name.partition("/")[0] for name in sorted(before) if after.get(name) != before[name]]
    assert changed == again
    undisturbed = of_a_crowd.changed("undisturbed")
    undisturbed.run()
    assert of_a_crowd.published() == undisturbed.published()


@on_disk
def test_a_damaged_copy_is_named_by_whoever_reads_it(place: Place, of_a_crowd: Audit) -> None:
    def spoil(progress: Progress) -> None:
        if progress.stage == "estimate votes" and progress.done == 0:
            copy = of_a_crowd.version().run / "annotations"
            for entry in list(copy.entries()):
                copy.write(entry.path, copy.read(entry.path)[:-30])

    with pytest.raises(StorageError, match=r"_run/annotations/.*: is damaged \(.*\. Run the same command again"):
        of_a_crowd.run(spoil)
    assert of_a_crowd.run().resumed


@on_disk
@pytest.mark.usefixtures("small_pieces")
def test_workers_do_not_take_one_crowd_for_another_at_the_same_place(place: Place, client: Client) -> None:
    audit_of(place, client, LONG, "parquet", "parquet", ids=False).run()
    for folder in ("out", "rows"):
        place(folder).delete()
    renamed = LONG.assign(annotator="b" + LONG["annotator"])
    run = audit_of(place, client, renamed, "parquet", "parquet", ids=False).run().run
    assert run.version.name == "v000001"
    assert run.annotations.compute()["annotator"].str.startswith("ba").all()


@on_disk
def test_more_annotators_than_workers_have_memory_for_are_refused(
    place: Place, of_a_crowd: Audit, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = f"with {M} annotators a worker needs 9.* GiB, but has 4.00 GiB, of which 85%"
    with monkeypatch.context() as patch:
        patch.setattr(grouping, "ANNOTATOR_BYTES", 1 << 30)
        with pytest.raises(InvalidConfig, match=message):
            of_a_crowd.run()
    assert of_a_crowd.run().resumed


def spoilt() -> pd.DataFrame:
    """Rows after all others: an unknown example, an unknown class, a repeated and a contradicted label."""
    first = LONG.iloc[0]
    more = [
        {"task": N + 5, "annotator": "a00", "label": 1},
        {**first.to_dict(), "annotator": "a00", "label": K + 2},
        first.to_dict(),
        {**first.to_dict(), "label": (first["label"] + 1) % K},
    ]
    return pd.concat([LONG, pd.DataFrame(more)], ignore_index=True)


@on_disk
@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_rows_that_cannot_be_scored_are_refused_by_kind_and_place(place: Place, client: Client, form: str) -> None:
    audit = audit_of(place, client, spoilt(), form, "zarr", ids=False)
    with pytest.raises(InvalidInput, match="some annotations cannot be scored") as caught:
        audit.run()
    message = str(caught.value)
    assert re.search(rf"1 annotations of examples that are not there, such as .*: {N + 5}, a00, 1", message)
    assert re.search(rf"1 annotations of classes that are not there, such as .*, a00, {K + 2}", message)
    row, annotator = LONG.iloc[0]["task"], LONG.iloc[0]["annotator"]
    of_row = rf"an annotator's label of an example, such as row {row}: {annotator}"
    assert re.search(f"1 annotations that repeat {of_row}", message)
    assert re.search(f"1 annotations that contradict {of_row}", message)


@on_disk
@pytest.mark.usefixtures("small_pieces")
def test_rows_that_cannot_be_scored_are_left_out_if_so_wanted(place: Place, client: Client) -> None:
    audit = audit_of(place, client, spoilt(), "parquet", "zarr", ids=False, annotations={"bad_rows": "drop"})
    run = audit.run().run
    crowd = run.summary["crowd"]
    assert list(crowd["bad"].values()) == [1, 1, 1, 1]
    report = run.version.location.read("report.html").decode()
    assert "What was left out" in report
    expected = get_label_quality_multiannotator(LONG, PROBS, columns=COLUMNS, verbose=False)["label_quality"]
    np.testing.assert_array_equal(run.scores["consensus_label"].values, expected["consensus_label"])


@on_disk
def test_examples_without_annotations_have_no_consensus(place: Place, client: Client) -> None:
    rows = LONG[LONG["task"] % 10 != 3]
    audit = audit_of(place, client, rows, "parquet", "parquet", ids=True)
    with pytest.raises(InvalidInput, match="9 examples without annotations, such as row 3; row 13"):
        audit.run()
    audit = audit_of(place, client, rows, "parquet", "parquet", ids=True, annotations={"bad_rows": "drop"})
    scores = audit.run(fresh=True).run.scores.compute()
    unlabelled = np.arange(N) % 10 == 3
    assert (scores["consensus_label"][unlabelled] == -1).all()
    assert (scores["num_annotations"] == 0).tolist() == unlabelled.tolist()
    assert scores["consensus_quality_score"].isna().tolist() == unlabelled.tolist()


@on_disk
def test_impossible_inputs_are_refused(place: Place, client: Client) -> None:
    named = audit_of(place, client, LONG.assign(task=IDS[LONG["task"]]), "parquet", "parquet", ids=False)
    with pytest.raises(InvalidInput, match="examples must be row numbers of pred_probs, got object"):
        named.run()
    inputs = named.settings["input"]
    for columns, message in ((["task", "who", "label"], "has no column 'who'"), (["task"], "columns names 1, but")):
        changed = {**inputs, "annotations": {**inputs["annotations"], "columns": columns}}
        with pytest.raises(InvalidConfig, match=message):
            replace(named, settings={**named.settings, "input": changed}).run()


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_pieces_of_csv_files_hold_every_line_once(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, size: int, ending: str
) -> None:
    monkeypatch.setattr(stored, "PIECE_BYTES", size)
    rows = [(i, f"näme {i % 3}", i % 2) for i in range(25)]
    lines = ["task,annotator,label", *(f"{a},{b},{c}" for a, b, c in rows)]
    (tmp_path / "a.csv").write_bytes(ending.join(lines).encode())  # no line end after the last
    files = AnnotationFiles.open(Location.parse(str(tmp_path / "a.csv")), COLUMNS)
    found = []
    for piece in files.pieces:
        found += list(zip(*(values.tolist() for values in files.part(piece).read(piece, names=False)), strict=True))
    assert found == rows


@on_disk
def test_the_annotators_table_can_be_sorted_without_a_script(place: Place, client: Client) -> None:
    run = audit_of(place, client, LONG, "parquet", "parquet", ids=True).run().run
    report = run.version.location.read("report.html").decode()
    assert "<script" not in report
    assert report.count('<input type="radio" name="order"') == len(run.annotators.columns)
    tables = re.findall(r'<div class="order order-\d+">(.*?)</table>', report, re.S)
    orders = [re.findall(r'<th scope="row"[^>]*>(a\d\d)</th>', table) for table in tables]
    assert orders[0] == sorted(run.annotators["annotator"])
    assert orders[1] == run.annotators["annotator"].tolist()
    by_count = run.annotators.sort_values("num_examples_labeled", kind="stable")["annotator"].tolist()
    assert orders[list(run.annotators.columns).index("num_examples_labeled")] == by_count
