"""The whole page: what each section says, put into the template."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from labelqa_dask.core.charts import Chart, Density, Distribution
from pipelines.compare import SUSPICIOUS, Comparison
from pipelines.expect import Finding, issue_share
from pipelines.report import charts, images, tables, text
from pipelines.report.changes import shown_changes
from pipelines.report.images import Preview
from pipelines.report.tables import ClassNames

LEGEND_CLASSES = 12  # a card names this many of the classes on its image
CHANGES_SHOWN = 50


@dataclass(frozen=True)
class TaskWords:
    """What a low score of an example means, and how examples, and the labels that are judged, are called."""

    low: str
    one: str = "example"
    many: str = "examples"
    label: str = "given label"


WORDS = {
    "segmentation": TaskWords("part of the image is probably labelled wrongly", "image", "images"),
    "multiclass": TaskWords("the given label is probably wrong"),
    "multilabel": TaskWords("at least one of the example's labels is probably wrong or missing"),
    "multiannotator": TaskWords("the label that the annotators agree on is probably wrong", label="consensus label"),
    "regression": TaskWords("the given value is probably far off"),
}
ANY_TASK = TaskWords("the label is probably wrong")


@dataclass(frozen=True)
class Figure:
    """A number that stands for itself, and a few words on it."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Legend:
    """A class on an image."""

    label: Markup
    colour: str


@dataclass(frozen=True)
class Picture:
    """A thumbnail; a small one is enlarged pixel by pixel."""

    caption: str
    source: str
    alt: str
    small: bool


@dataclass(frozen=True)
class DensityPicture:
    """Where examples lie on a plane, as a picture with its axes."""

    title: str
    x: str
    y: str
    source: str
    alt: str
    left: str
    right: str
    bottom: str
    top: str


@dataclass(frozen=True)
class DistributionChart:
    """How many examples have which value, as bars."""

    title: str
    x: str
    bars: Markup
    logarithmic: bool


@dataclass(frozen=True)
class Card:
    """One of the worst images."""

    name: str
    row: str
    score: str
    pictures: Sequence[Picture]
    legend: Sequence[Legend]
    more_classes: int
    difference: str


def render_report(
    summary: Mapping[str, Any],
    worst: pd.DataFrame,
    previews: Sequence[Preview] = (),
    charts_of_task: Sequence[Chart] = (),
    further: Mapping[str, pd.DataFrame] = {},
    comparison: Comparison | None = None,
) -> str:
    """The report of an audit as one HTML document that needs nothing else: no network, no scripts.

    Parameters
    ----------
    summary : mapping
        What ``summary.json`` holds: task, params, examples, quarantined, score (name, mean, min, histogram), classes,
        statistics, inputs, software.
    worst : DataFrame
        The worst examples, worst first: ``row``, the score by the name it has in the summary, and, where they
        exist, ``id``, ``given_label``, ``suggested_label`` and further columns.
    previews : sequence of Preview
        Images to show, worst first.
    charts_of_task : sequence of Chart
        What the method shows of the whole data.
    further : mapping of str to DataFrame
        Tables that the method adds: ``annotators``.
    comparison : Comparison, optional
        What has changed since the version before.

    Returns
    -------
    str
        The document; equal input gives an equal document.
    """
    words = WORDS.get(summary["task"], ANY_TASK)
    score = summary["score"]
    classes = summary.get("classes")
    issues = summary.get("issues")
    names = ClassNames(classes.get("names") if classes else None)
    per_class, statistics = tables.split_statistics(
        summary.get("statistics") or {}, len(classes["count"]) if classes else None
    )
    histogram = charts.Histogram(*(score["histogram"][key] for key in ("low", "high", "counts")))
    left_out = summary.get("quarantined") or {"regions": 0, "examples": 0, "listed": []}
    findings = [Finding.from_json(told) for told in summary.get("expectations") or []]
    return _template().render(
        task=text.heading(summary["task"]),
        dataset=_dataset_name(summary.get("inputs") or {}),
        words=words,
        headline=_headline(summary, words),
        figures=_figures(summary, histogram, words),
        histogram=histogram,
        chart=_chart(summary, histogram, words),
        score_name=text.heading(score["name"]),
        logarithmic=charts.CountAxis.of(histogram.counts).logarithmic,
        cards=[_card(preview, names) for preview in previews],
        expectations=tables.expectations_table(findings),
        broken=sum(not finding.holds for finding in findings),
        since=shown_changes(comparison, CHANGES_SHOWN) if comparison else None,
        left_out=left_out,
        bad=tables.bad_table(left_out["listed"]),
        score_scale=images.score_scale_png(),
        worst=tables.worst_table(worst, score["name"], names),
        classes=tables.class_table(classes, per_class, names) if classes else None,
        remarks=summary.get("remarks") or [],
        densities=[_density(each, words) for each in charts_of_task if isinstance(each, Density)],
        distributions=[_distribution(each, words) for each in charts_of_task if isinstance(each, Distribution)],
        issues=tables.pairs_table(issues, issues["unit"], names) if issues else None,
        statistics=tables.statistics_table(statistics),
        settings=tables.settings_table(summary),
        annotators=tables.sorted_tables(further["annotators"]) if "annotators" in further else None,
        crowd=_crowd(summary.get("crowd") or {}, names),
        inputs=tables.inputs_table(summary.get("inputs") or {}),
        software=summary.get("software") or {},
    )


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipelines.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["integer"] = text.integer
    return environment.get_template("report.html.j2")


def _dataset_name(inputs: Mapping[str, Mapping[str, Any]]) -> str:
    """The last part of the labels' URI, or of the first input's; empty where there is none."""
    described = inputs.get("labels") or next(iter(inputs.values()), {})
    return str(described.get("uri") or "").rstrip("/").rpartition("/")[2]


def _headline(summary: Mapping[str, Any], words: TaskWords) -> str:
    count, score = summary["examples"], summary["score"]
    if not count or text.is_missing(score["mean"]):
        return f"No {words.many} were scored."
    if count == 1:
        return f"1 {words.one} was audited. It scores {text.brief(score['mean'])}."
    return (
        f"{text.integer(count)} {words.many} were audited. They score {text.brief(score['mean'])} on average;"
        f" the worst scores {text.brief(score['min'])}."
    )


def _figures(summary: Mapping[str, Any], histogram: charts.Histogram, words: TaskWords) -> list[Figure]:
    score, classes = summary["score"], summary.get("classes")
    figures = [
        Figure(f"{text.heading(words.many)} audited", text.integer(summary["examples"])),
        Figure("Mean score", text.brief(score["mean"])),
        Figure("Lowest score", text.brief(score["min"])),
    ]
    below, scored = histogram.below(SUSPICIOUS), sum(histogram.counts)
    if below is not None and scored:
        figures.append(
            Figure(
                f"Scoring below {SUSPICIOUS}",
                text.integer(below),
                f"{text.percent(below / scored)} of the {words.many}",
            )
        )
    issues = summary.get("issues")
    if issues:
        share = issue_share(summary)
        note = "" if share is None else f"{text.percent(share)} of the {issues['unit']}"
        figures.append(Figure(f"{text.heading(issues['unit'])} labelled wrongly", text.integer(issues["count"]), note))
    if classes:
        counts, unit = classes["count"], classes["unit"]
        empty = sum(not count for count in counts)
        note = f"{text.integer(empty)} without {unit}" if empty else ""
        figures.append(Figure("Classes", text.integer(len(counts)), note))
        if unit != "examples":
            figures.append(Figure(f"{text.heading(unit)} scored", text.integer(sum(counts))))
    return figures


def _chart(summary: Mapping[str, Any], histogram: charts.Histogram, words: TaskWords) -> Markup | None:
    if not any(histogram.counts):
        return None
    score = summary["score"]
    label = (
        f"Histogram of {text.integer(sum(histogram.counts))} scores from {histogram.low:g} to"
        f" {histogram.high:g}: mean {text.brief(score['mean'])}, lowest {text.brief(score['min'])}."
    )
    mean = None if text.is_missing(score["mean"]) else score["mean"]
    return charts.histogram(histogram, mean, label, words.many)


@dataclass(frozen=True)
class Crowd:
    """What is told of how annotators agree."""

    sentence: str
    agreement: Markup | None
    shares: charts.Histogram | None
    confusion: tables.Table | None
    bad: tables.Table | None


def _crowd(crowd: Mapping[str, Any], names: ClassNames) -> Crowd | None:
    if not crowd:
        return None
    sentence = (
        f"{text.integer(crowd['annotators'])} annotators gave {text.integer(crowd['annotations'])} labels that count."
    )
    agreement = shares = None
    if any(crowd.get("agreement") or []):
        shares = charts.Histogram(0.0, 1.0, crowd["agreement"])
        label = "Histogram of the share of an example's annotators who gave the consensus label."
        agreement = charts.histogram(shares, None, label, "examples")
    return Crowd(
        sentence,
        agreement,
        shares,
        tables.confusion_table(crowd["confusion"], names) if "confusion" in crowd else None,
        tables.left_out_table(crowd) if crowd.get("bad") else None,
    )


def _density(data: Density, words: TaskWords) -> DensityPicture:
    (left, right), (bottom, top) = data.x_range.tolist(), data.y_range.tolist()
    alt = (
        f"{data.y} against {data.x} of {text.integer(data.counts.sum())} {words.many}, coloured by score: "
        f"{data.x} from {left:.4g} to {right:.4g}, {data.y} from {bottom:.4g} to {top:.4g}."
    )
    source = images.density_png(data.counts, data.mean_scores)
    return DensityPicture(
        data.title, data.x, data.y, source, alt, *(f"{each:.4g}" for each in (left, right, bottom, top))
    )


def _distribution(data: Distribution, words: TaskWords) -> DistributionChart:
    low, high = data.x_range.tolist()
    counts = data.counts.astype(int).tolist()
    label = f"Histogram of {text.integer(sum(counts))} values, {data.x}, from {low:.4g} to {high:.4g}."
    bars = charts.histogram(charts.Histogram(low, high, counts), None, label, words.many)
    return DistributionChart(data.title, data.x, bars, charts.CountAxis.of(counts).logarithmic)


def _card(preview: Preview, names: ClassNames) -> Card:
    name = f"Row {preview.row}" if preview.id is None else str(preview.id)
    present = [class_id for class_id, _ in images.class_shares(preview.given, preview.predicted)]
    return Card(
        name=name,
        row="" if preview.id is None else f"row {preview.row}",
        score=text.significant(preview.score),
        pictures=_pictures(preview, name, names),
        legend=[Legend(names.markup(k), images.class_colour(k)) for k in present[:LEGEND_CLASSES]],
        more_classes=max(len(present) - LEGEND_CLASSES, 0),
        difference=_difference(images.differences(preview), names),
    )


def _pictures(preview: Preview, name: str, names: ClassNames) -> list[Picture]:
    maps = {"Given": preview.given, "Predicted": preview.predicted}
    small = max(preview.given.shape) < images.LARGEST / 2
    pictures = [
        Picture(caption, images.class_map_png(classes), _describe(caption, name, classes, names), small)
        for caption, classes in maps.items()
    ]
    scores = preview.pixel_scores[~np.isnan(preview.pixel_scores)]
    told = f"lowest {text.brief(float(scores.min()))}" if scores.size else "none scored"
    alt = f"Pixel scores of {name}: {told}"
    return [*pictures, Picture("Pixel scores", images.score_map_png(preview.pixel_scores), alt, small)]


def _describe(caption: str, name: str, classes: images.ClassMap, names: ClassNames) -> str:
    largest = [f"{names.plain(k)} {text.percent(share)}" for k, share in images.class_shares(classes)[:3]]
    return f"{caption} classes of {name}: {', '.join(largest) or 'all ignored'}"


def _difference(found: images.Differences, names: ClassNames) -> str:
    if found.share is None:
        return "No pixel of this image is labelled."
    if found.given is None or found.predicted is None:
        return "Given and predicted label agree on every pixel."
    return (
        f"{text.percent(found.share)} of the pixels differ, most often {names.plain(found.given)}"
        f" predicted as {names.plain(found.predicted)} ({text.percent(found.largest)})."
    )
