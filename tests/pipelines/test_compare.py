"""Comparisons of two versions say what a look at all of their scores says, from what is published beside them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from distributed import Client
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from labelqa_dask import multiclass
from labelqa_dask.core.errors import InvalidInput, LabelQAError
from labelqa_dask.core.order import Histogram
from labelqa_dask.storage.record import Version
from pipelines.compare import QUANTILES, SUSPICIOUS, Comparison, Found, choose_versions, compare
from pipelines.report.changes import headline, remarks, sections
from tests.pipelines.audits import Audit, Interrupted, interrupt, on_disk, store_again
from tests.pipelines.crowds import LONG, audit_of, store_rows
from tests.stores import Place


def found(version: str, scores: dict[str, float], worst: int, **summary: Any) -> Found:
    """What a version would tell of examples with these scores."""
    ordered = sorted(scores.items(), key=lambda each: each[1])
    values = np.array([score for _, score in ordered])
    told = {
        "task": "multiclass",
        "params": {},
        "inputs": {},
        "examples": len(scores),
        "quarantined": {"regions": 0},
        "score": {
            "name": "score",
            "mean": values.mean() if len(values) else None,
            "min": values.min() if len(values) else None,
            "histogram": {"low": 0.0, "high": 1.0, "counts": Histogram.of(values, 100).counts.tolist()},
        },
        "classes": None,
        "statistics": {},
        **summary,
    }
    table = pd.DataFrame(ordered[:worst], columns=["id", "score"])
    return Found(version, told, table.assign(row=range(len(table))), None)


populations = st.dictionaries(st.integers(0, 40).map(str), st.integers(0, 100).map(lambda c: c / 100), max_size=40)


@given(then=populations, now=populations, worst=st.integers(1, 45))
@settings(max_examples=60, deadline=None)
def test_new_and_resolved_are_those_that_all_scores_show(
    then: dict[str, float], now: dict[str, float], worst: int
) -> None:
    comparison = compare(found("v000001", then, worst), found("v000002", now, worst))
    bad = [{name for name, score in scores.items() if score < comparison.line} for scores in (then, now)]
    assert set(comparison.new["id"]) == bad[1] - bad[0]
    assert set(comparison.resolved["id"]) == bad[0] - bad[1]
    assert comparison.new["now"].tolist() == sorted(now[name] for name in bad[1] - bad[0])
    for name, score in zip(comparison.new["id"], comparison.new["then"], strict=True):
        assert math.isnan(score) or score == then[name]
    full = [sorted(scores.values())[worst - 1] for scores in (then, now) if len(scores) > worst]
    assert comparison.line == min([SUSPICIOUS, *full])


@given(then=populations.filter(len), now=populations.filter(len))
@settings(max_examples=40, deadline=None)
def test_the_distance_is_that_of_kolmogorov_and_smirnov_to_a_hundredth(
    then: dict[str, float], now: dict[str, float]
) -> None:
    distance = compare(found("a", then, 5), found("b", now, 5)).distance
    assert distance is not None
    # A score of 1 is counted with those just below.
    values = [np.minimum([*scores.values()], 0.99) for scores in (then, now)]
    assert distance.value == pytest.approx(ks_2samp(*values).statistic)
    shares = [np.mean([score < distance.at - 1e-9 for score in each]) for each in values]
    assert (distance.then, distance.now) == pytest.approx(tuple(shares))


def test_quantiles_are_right_to_a_hundredth() -> None:
    rng = np.random.default_rng(3)
    populations = [rng.beta(5, 2, 3000), rng.beta(0.3, 0.3, 5000)]
    told = [found("v", {str(i): score for i, score in enumerate(each)}, 5) for each in populations]
    drifts = compare(*told).quantiles
    for which, scores in enumerate(populations):
        values = [drift.changes[""][which] for drift in drifts]
        np.testing.assert_allclose(values, np.quantile(scores, QUANTILES), rtol=0, atol=0.0101)
    assert [drift.of for drift in drifts] == ["1%", "5%", "25%", "50%", "75%", "95%"]


def test_versions_without_scores_have_no_distribution_to_compare() -> None:
    comparison = compare(found("a", {}, 5), found("b", {"x": 0.2}, 5))
    assert comparison.distance is None
    assert comparison.quantiles == ()
    assert comparison.new["id"].tolist() == ["x"]
    assert headline(comparison) == "1 new bad example, 0 resolved."


def test_of_rows_with_one_identifier_the_worst_counts() -> None:
    then, now = found("a", {"x": 0.1, "y": 0.2, "z": 0.3}, 9), found("b", {"x": 0.3, "y": 0.9, "w": 0.05}, 9)
    now = replace(now, worst=now.worst.assign(id=["x", "x", "y"]))
    comparison = compare(then, now)
    assert comparison.new["id"].tolist() == []
    assert comparison.resolved["id"].tolist() == ["y", "z"]


def test_versions_of_different_tasks_are_refused() -> None:
    with pytest.raises(InvalidInput, match="v000001 is multiclass and v000002 is regression"):
        compare(found("v000001", {"x": 0.1}, 5), found("v000002", {"x": 0.1}, 5, task="regression"))


def test_other_settings_and_inputs_are_told() -> None:
    inputs = {"labels": {"digest": "1"}, "pred_probs": {"digest": "2"}}
    then = found("a", {"x": 0.1}, 5, params={"method": "softmin", "temperature": 0.1}, inputs=inputs)
    now = found("b", {"x": 0.1}, 5, params={"method": "softmin", "temperature": 0.2}, inputs=inputs)
    assert remarks(compare(then, now)) == [
        "The settings differ, so the scores may not be comparable: temperature from 0.1 to 0.2.",
        "The inputs are the same.",
    ]
    now = found("b", {"x": 0.1}, 5, params=then.summary["params"], inputs={**inputs, "labels": {"digest": "3"}})
    assert remarks(compare(then, now)) == ["Of the inputs, labels has changed."]


# -- two versions of real audits


def compared(audit: Audit, before: str = "v000001", after: str = "v000002") -> Comparison:
    versions = choose_versions(audit.location, before, after)
    return compare(*map(Found.read, versions))


@on_disk
def test_two_audits_are_compared_by_identifiers_without_their_scores(of_numbers: Audit) -> None:
    audit = of_numbers.changed(params={"adjust_pred_probs": False})
    audit.run()
    data = audit.data
    rng = np.random.default_rng(1)
    order = rng.permutation(len(data))
    labels = np.where(rng.random(len(data)) < 0.1, (data.labels + 1) % 4, data.labels)[order]
    ids = data.ids[order]
    ids[:3] = ["row new 1", "row new 2", "row new 3"]
    changed = replace(audit, data=replace(data, labels=labels, pred_probs=data.pred_probs[order], ids=ids))
    store_again(changed)
    changed.run()
    for name in ("v000001", "v000002"):
        (audit.version(name).location / "scores").delete()
    comparison = compared(audit)
    then, now = (
        dict(zip(each.ids, multiclass.get_label_quality_scores(each.labels, each.pred_probs), strict=True))
        for each in (data, changed.data)
    )
    line = min(np.sort([*scores.values()])[24] for scores in (then, now))
    assert comparison.line == pytest.approx(line)
    bad = [{name for name, score in scores.items() if score < line - 1e-12} for scores in (then, now)]
    assert set(comparison.new["id"]) == bad[1] - bad[0] != set()
    assert set(comparison.resolved["id"]) == bad[0] - bad[1] != set()
    numbers = {drift.of: drift.changes[""] for drift in comparison.numbers}
    assert numbers["mean score"] == pytest.approx((np.mean([*then.values()]), np.mean([*now.values()])))
    assert comparison.classes is not None
    for drift in comparison.classes:
        k = int(drift.of)
        assert drift.changes["examples"] == (np.sum(data.labels == k), np.sum(labels == k))
        means = [
            np.mean(np.array([*scores.values()])[each == k]) for scores, each in ((then, data.labels), (now, labels))
        ]
        assert drift.changes["mean score"] == pytest.approx(tuple(means))


@on_disk
def test_the_report_of_a_later_version_says_what_has_changed(of_images: Audit) -> None:
    first = of_images.run().run
    assert 'id="since"' not in first.version.location.read("report.html").decode()
    changed = of_images.changed(params={"temperature": 0.5})
    report = changed.run().run.version.location.read("report.html").decode()
    assert '<h2 id="since">Since v000001</h2>' in report
    assert "temperature from 0.1 to 0.5" in report
    comparison = compared(of_images)
    assert headline(comparison) in report
    for section in sections(comparison, 50):
        assert f"<h3>{section.heading}</h3>" in report


@on_disk
def test_a_version_is_published_where_the_one_before_cannot_be_read(of_images: Audit) -> None:
    first = of_images.run().run.version
    summary = json.loads(first.location.read("summary.json"))
    for damage in (b"{", json.dumps({**summary, "score": {}}).encode()):
        first.location.write("summary.json", damage)
        later = of_images.run(fresh=True).run
        assert 'id="since"' not in later.version.location.read("report.html").decode()
        later.version.location.delete()
        of_images.location.write("latest.json", json.dumps({"version": "v000001"}).encode())


@on_disk
def test_annotators_come_go_and_drift(place: Place, client: Client) -> None:
    audit = audit_of(place, client, LONG, "parquet", "zarr", ids=False)
    first = audit.run().run
    annotators = sorted(LONG["annotator"].unique().tolist())
    gone, drifting = annotators[0], annotators[1]
    rows = LONG[LONG["annotator"] != gone].copy()
    rows.loc[rows["annotator"] == drifting, "label"] = 0
    rows = pd.concat([rows, LONG[LONG["annotator"] == annotators[2]].assign(annotator="newcomer")])
    store_rows(place("rows"), rows, "parquet")
    second = audit.run().run
    quality = [run.annotators.set_index("annotator")["annotator_quality"] for run in (first, second)]
    comparison = compared(audit)
    assert comparison.annotators is not None
    drifts = {drift.of: drift.changes["quality"] for drift in comparison.annotators}
    assert drifts[str(gone)] == (pytest.approx(quality[0][gone]), None)
    assert drifts["newcomer"] == (None, pytest.approx(quality[1]["newcomer"]))
    assert drifts[str(drifting)] == pytest.approx((quality[0][drifting], quality[1][drifting]))
    distances = [drift.distance for drift in comparison.annotators]
    assert distances == sorted(distances, reverse=True)
    assert math.isinf(distances[1])
    assert comparison.by == "row"
    (told,) = [section for section in sections(comparison, 3) if section.heading == "Annotators"]
    assert told.note.startswith("1 new, 1 gone,")
    assert len(told.table.rows) == 3


# -- which versions


@on_disk
def test_the_latest_two_are_compared_where_none_are_named(of_images: Audit) -> None:
    of_images.run()
    with pytest.raises(LabelQAError, match="has no published version before v000001"):
        choose_versions(of_images.location)
    of_images.run(fresh=True)
    of_images.run(fresh=True)
    with pytest.raises(Interrupted):
        of_images.run(interrupt("score", 2), fresh=True)
    assert of_images.version("v000004").manifest() is not None
    names = ["v000002", "v000003"]
    assert choose_versions(of_images.location) == tuple(Version(of_images.location, name) for name in names)
    assert choose_versions(of_images.location, before="v000001")[1].name == "v000003"
    assert choose_versions(of_images.location, after="v000002")[0].name == "v000001"
    with pytest.raises(LabelQAError, match=r"has no published version 'v000004'.*v000001, v000002, v000003"):
        choose_versions(of_images.location, after="v000004")


@on_disk
def test_there_is_nothing_to_compare_before_anything_is_published(of_images: Audit) -> None:
    with pytest.raises(LabelQAError, match=r"has no published version\. Two are needed"):
        choose_versions(of_images.location)
