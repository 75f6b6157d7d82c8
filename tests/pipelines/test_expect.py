"""Expectations hold what a run publishes against bounds, and never keep it from being published."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from distributed import Client

from labelqa_dask import multiclass, multilabel, segmentation
from labelqa_dask.core.errors import InvalidConfig
from labelqa_dask.multiannotator import get_label_quality_multiannotator
from labelqa_dask.storage.record import latest
from pipelines.config import Bounds
from pipelines.expect import ExpectationsBroken, Finding, issue_share, refuse_broken
from tests.pipelines.audits import Audit, images, on_disk, store_again, store_zarr
from tests.pipelines.crowds import COLUMNS, LONG, PROBS, audit_of
from tests.pipelines.test_multilabel import sets, store_lists
from tests.stores import Place

BELOW, ABOVE = -1.0, 2.0
"""Bounds that no share and no score reaches."""


# -- one expectation


def test_numbers_outside_are_listed_furthest_first() -> None:
    named = [("a", 0.4), ("b", 0.1), ("c", 0.7), ("d", 0.3), ("e", 0.5)]
    finding = Finding.of("x.each", Bounds(min=0.35, max=0.55), named)
    assert (finding.checked, finding.broken, finding.holds) == (5, 3, False)
    assert finding.listed == (("b", 0.1), ("c", 0.7), ("d", 0.3))
    assert finding.found == "3 of 5 outside: b 0.1, c 0.7, d 0.3"
    assert finding.expected == "0.35 to 0.55"


def test_a_bound_itself_is_inside_and_what_is_nearest_to_one_is_told() -> None:
    finding = Finding.of("x.each", Bounds(min=0.25), [("a", 0.5), ("b", 0.25), ("c", 1.0)])
    assert finding.holds
    assert finding.found == "b 0.25"
    assert finding.expected == "at least 0.25"
    assert Finding.of("x", Bounds(max=3), [("", 3)]).holds
    assert not Finding.of("x", Bounds(max=3), [("", 3.0000001)]).holds


def test_a_number_that_there_is_none_of_is_outside() -> None:
    finding = Finding.of("mean_score", Bounds(max=1), [("", None)])
    assert not finding.holds
    assert finding.found == "none"
    assert Finding.of("x.each", Bounds(max=1), []).found == "nothing to check"


def test_of_many_the_first_are_listed_and_all_are_counted() -> None:
    finding = Finding.of("x.each", Bounds(min=1), [(f"class {k}", k / 100) for k in range(50)])
    assert finding.broken == 50
    assert finding.listed[0] == ("class 0", 0.0)
    assert finding.found.startswith("50 of 50 outside: class 0 0, class 1 0.01, ")
    assert finding.found.endswith("class 19 0.19 and 30 more")
    assert Finding.from_json(finding.to_json()) == finding


def test_the_error_says_which_are_broken_what_was_expected_and_found() -> None:
    held = Finding.of("mean_score", Bounds(min=0.5), [("", 0.75)])
    broken = Finding.of("issue_share", Bounds(max=0.05), [("", 0.125)])
    refuse_broken([held], "out/v000001")
    with pytest.raises(ExpectationsBroken) as caught:
        refuse_broken([held, broken], "out/v000001")
    assert str(caught.value) == (
        "out/v000001: 1 of 2 expectations is broken: issue_share: expected at most 0.05, found 0.125. "
        "The results are published."
    )


# -- what audits tell


def found(audit: Audit, **expect: Any) -> dict[str, Finding]:
    audited = audit.changed(expect=expect).run()
    return {finding.expectation: finding for finding in audited.findings}


@on_disk
def test_expectations_of_examples_and_classes(of_numbers: Audit) -> None:
    data = of_numbers.data
    scores = multiclass.get_label_quality_scores(data.labels, data.pred_probs)
    issues = multiclass.find_label_issues(data.labels, data.pred_probs, return_mask=True)
    means = [scores[data.labels == k].mean() for k in range(4)]
    audit = of_numbers.changed(params={"adjust_pred_probs": False, "find_label_issues": True})
    findings = found(
        audit,
        mean_score={"min": scores.mean() - 1e-9, "max": scores.mean() + 1e-9},
        issue_share={"max": issues.mean() - 1e-9},
        class_mean_score={"each": {"min": np.mean(means)}, 2: {"min": means[2] - 1e-9}},
    )
    assert [*findings] == ["mean_score", "issue_share", "class_mean_score.each", "class_mean_score.2"]
    assert findings["mean_score"].holds
    assert not findings["issue_share"].holds
    assert findings["issue_share"].listed == (("", pytest.approx(issues.mean())),)
    assert findings["class_mean_score.2"].holds
    low = sorted((mean, f"class {k}") for k, mean in enumerate(means) if mean < np.mean(means))
    each = findings["class_mean_score.each"]
    assert (each.checked, each.broken) == (4, len(low))
    assert [name for name, _ in each.listed] == [name for _, name in low]


@on_disk
def test_what_breaks_expectations_is_published_and_says_so(of_numbers: Audit) -> None:
    expect = {"mean_score": {"min": ABOVE}, "quarantined_regions": {"max": 0}}
    audited = of_numbers.changed(expect=expect).run()
    assert latest(of_numbers.location) == audited.run.version
    told = {each["expectation"]: each for each in audited.run.summary["expectations"]}
    assert told["quarantined_regions"]["holds"] is True
    assert told["mean_score"]["holds"] is False
    assert told["mean_score"]["min"] == ABOVE
    assert told["mean_score"]["listed"][0]["found"] == audited.run.summary["score"]["mean"]
    report = audited.run.version.location.read("report.html").decode()
    assert "1 of 2 expectations is broken" in report
    assert "at least 2" in report


@on_disk
def test_other_expectations_score_nothing_again_and_are_held_against_what_is_published(of_numbers: Audit) -> None:
    assert of_numbers.run().findings == ()
    before = of_numbers.receipts()
    audited = of_numbers.changed(expect={"mean_score": {"max": BELOW}}).run()
    assert audited.unchanged
    assert [finding.holds for finding in audited.findings] == [False]
    assert of_numbers.receipts() == before


@on_disk
def test_the_share_of_pixels_that_are_issues(place: Place, client: Client) -> None:
    data = images()
    settings = {"input": store_zarr(place("data.zarr"), data), "params": {"method": "num_pixel_issues"}}
    expected = segmentation.find_label_issues(data.labels, data.pred_probs).mean()
    run = Audit(place, data, client, settings).run().run
    assert issue_share(run.summary) == pytest.approx(expected)
    assert expected > 0


@on_disk
def test_the_share_of_labels_of_several_per_example_that_are_issues(place: Place, client: Client) -> None:
    data = sets()
    settings = {"input": store_lists(place("data"), data), "params": {"count_issues": True}}
    expected = multilabel.count_issues_per_class(data.labels, data.pred_probs).sum() / data.labels.size
    findings = found(Audit(place, data, client, settings), issue_share={"max": 0})
    assert findings["issue_share"].listed == (("", pytest.approx(expected)),)
    assert expected > 0


@on_disk
def test_the_quality_of_annotators(place: Place, client: Client) -> None:
    audit = audit_of(place, client, LONG, "parquet", "zarr", ids=False)
    stats = get_label_quality_multiannotator(LONG, PROBS, columns=COLUMNS, verbose=False)["annotator_stats"]
    quality = stats["annotator_quality"].sort_values()
    worst, best = str(quality.index[0]), str(quality.index[-1])
    middle = float(quality.median())
    findings = found(
        audit,
        annotator_quality={
            "each": {"min": middle},
            worst: {"min": middle},
            best: {"min": middle},
            "nobody": {"min": 0},
        },
    )
    each = findings["annotator_quality.each"]
    assert (each.checked, each.broken) == (len(quality), int((quality < middle).sum()))
    assert each.listed[0] == (worst, pytest.approx(quality.iloc[0]))
    assert not findings[f"annotator_quality.{worst}"].holds
    assert findings[f"annotator_quality.{best}"].holds
    assert findings["annotator_quality.nobody"].found == "none"


@on_disk
def test_the_number_of_regions_left_out(of_images: Audit) -> None:
    of_images.data.labels[[3, 9], 0, 0] = 77
    store_again(of_images)
    audit = of_images.changed(on_error="quarantine")
    assert found(audit, quarantined_regions={"max": 1})["quarantined_regions"].found == "2"
    assert found(audit, quarantined_regions={"max": 2})["quarantined_regions"].holds


@on_disk
def test_a_class_that_the_data_do_not_have_is_refused_before_the_run(of_numbers: Audit) -> None:
    with pytest.raises(InvalidConfig, match="there is no class 4: classes are 0 to 3"):
        found(of_numbers, class_mean_score={4: {"min": 0}})
