"""The report as a reader's browser meets it: parsed, with its images decoded."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from importlib import resources
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipelines.report import Preview, render_report
from pipelines.report.charts import CountAxis, Histogram, element
from pipelines.report.images import (
    class_colour,
    class_map_png,
    class_shares,
    differences,
    score_map_png,
    score_palette,
    score_scale_png,
)

VOID = {"meta", "link", "img", "br", "hr", "input"}
ATTACK = "<script>alert(1)</script>"
QUOTE_ATTACK = "\"'><img src=https://x.test/y onerror=alert(1)>"
CLASSES = ["sky", "building", "pole", "road"]


class Page(HTMLParser):
    """The parsed document: every element with its attributes, tables as text; refuses unbalanced tags."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self._table: list[list[str]] = []
        self._label = ""
        self.feed(document)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {key: value or "" for key, value in attrs}
        assert len(attributes) == len(attrs), f"an attribute twice on {tag}"
        self.elements.append((tag, attributes))
        if tag not in VOID:
            self._open.append(tag)
        if attributes.get("role") == "region":
            self._label = attributes["aria-label"]
        if tag == "table":
            self._table = self.tables[self._label] = []
        if tag == "tr":
            self._table.append([])
        if tag in ("td", "th"):
            self._table[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts.append((self._open[-1], data))
        if "td" in self._open or "th" in self._open:
            self._table[-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def said(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(text for tag, text in self.texts if tag != "style").split())

    @property
    def classes(self) -> set[str]:
        return {name for _, attributes in self.elements for name in attributes.get("class", "").split()}


def bins(counts: Mapping[int, int]) -> dict[str, Any]:
    return {"low": 0.0, "high": 1.0, "counts": [counts.get(i, 0) for i in range(100)]}


def summary(**changes: Any) -> dict[str, Any]:
    return {
        "task": "segmentation",
        "params": {"method": "softmin", "temperature": 0.1},
        "examples": 1200,
        "score": {
            "name": "image_scores",
            "mean": 0.93,
            "min": 0.02,
            "histogram": bins({2: 6, 49: 4, 50: 90, 93: 1100}),
        },
        "classes": {
            "unit": "pixels",
            "count": [5_000_000, 400, 0, 1000],
            "mean_score": [0.99, 0.41, None, 0.7123456],
            "names": CLASSES,
        },
        "statistics": {"confident_thresholds": [0.9, 0.5, 2.0, 0.75], "off_diagonal": 182331},
        "worst": 1000,
        "inputs": {
            "labels": {
                "uri": "s3://bucket/street.zarr",
                "array": "labels",
                "shape": [1200, 512, 512],
                "dtype": "uint8",
            },
            "pred_probs": {"uri": "s3://bucket/probs.zarr", "array": "p", "shape": [1200, 4, 512, 512]},
        },
        "regions": 32,
        "software": {"labelqa_dask": "0.1.0", "numpy": "2.4.6"},
        **changes,
    }


def worst(n: int = 1000) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "row": np.arange(n) * 7 + 1000,
            "id": [f"scene-{i}" for i in range(n)],
            "image_scores": np.linspace(0.02, 0.5, n),
        }
    )


def multiclass(k: int = 4, n: int = 1000) -> tuple[dict[str, Any], pd.DataFrame]:
    rng = np.random.default_rng(0)
    classes = {
        "unit": "examples",
        "count": rng.integers(1, 9000, k).tolist(),
        "mean_score": (rng.permutation(k) / k).tolist(),
        "names": [f"name of {i}" for i in range(k)],
    }
    score = {"name": "label_quality_score", "mean": 0.9, "min": 0.0, "histogram": bins({0: 1, 99: 5_000_000})}
    table = pd.DataFrame(
        {
            "extra_share": np.full(n, 12.34567),
            "suggested_label": rng.integers(0, k, n),
            "given_label": rng.integers(0, k, n),
            "label_quality_score": np.linspace(0.0000123456, 0.5, n),
            "row": np.arange(n),
        }
    )
    return (
        summary(task="multiclass", examples=5_000_001, score=score, classes=classes, statistics={}),
        table,
    )


def preview(h: int = 4, w: int = 5, **changes: Any) -> Preview:
    given = np.arange(h * w).reshape(h, w) % 3
    scores = np.linspace(0, 1, h * w).reshape(h, w)
    image = Preview(row=17, id="a", score=0.02, given=given, predicted=given, pixel_scores=scores)
    return dataclasses.replace(image, **changes)


def decode(uri: str) -> NDArray[np.uint8]:
    """The pixels (h, w, 4) of a PNG data URI."""
    return np.asarray(open_png(uri).convert("RGBA"))


def open_png(uri: str) -> Image.Image:
    head, _, payload = uri.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(payload, validate=True)))


def opaque(colour: str) -> list[int]:
    return [*bytes.fromhex(colour[1:]), 255]


def document(name: str) -> str:
    if name == "segmentation":
        return render_report(summary(), worst(), [preview(), preview(600, 300, id=None)])
    if name == "multiclass":
        return render_report(*multiclass(300))
    if name == "one example":
        score = {"name": "image_scores", "mean": 0.5, "min": 0.5, "histogram": bins({50: 1})}
        single = summary(examples=1, score=score, classes=None, statistics={})
        pixel = Preview(0, None, 0.5, np.array([[3]]), np.array([[1]]), np.array([[0.5]]))
        return render_report(single, worst(1).drop(columns="id"), [pixel])
    score = {"name": "image_scores", "mean": None, "min": None, "histogram": bins({})}
    return render_report(
        {"task": "new", "examples": 0, "score": score, "classes": None, "statistics": {}, "software": {}},
        pd.DataFrame(),
    )


every_document = pytest.mark.parametrize("name", ["segmentation", "multiclass", "one example", "nothing"])


@every_document
def test_is_one_complete_well_formed_page(name: str) -> None:
    html = document(name)
    page = Page(html)
    assert html.startswith("<!DOCTYPE html>")
    assert [tag for tag, _ in page.elements].count("h1") == 1
    assert page.all("html") == [{"lang": "en"}]
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    labelled = {attributes["aria-labelledby"] for attributes in page.all("section")}
    assert labelled <= set(ids)
    assert all(attributes["scope"] in ("col", "row") for attributes in page.all("th"))
    assert all(attributes["alt"] for attributes in page.all("img"))


@every_document
def test_loads_nothing_and_runs_nothing(name: str) -> None:
    page = Page(document(name))
    assert not {"script", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.elements}
    for _, attributes in page.elements:
        assert not [key for key in attributes if key.startswith("on") or key in ("srcset", "action")]
        assert all(attributes.get(key, "data:").startswith("data:") for key in ("src", "href", "xlink:href"))
    styles = " ".join([*page.said("style"), *(a.get("style", "") for _, a in page.elements)])
    assert not re.search(r"url\(|@import|https?:", styles)
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@every_document
def test_equal_input_gives_an_equal_page(name: str) -> None:
    assert document(name) == document(name)


@pytest.mark.parametrize("attack", [ATTACK, QUOTE_ATTACK])
def test_everything_from_data_is_text(attack: str) -> None:
    hostile = summary(
        task=attack,
        params={attack: {attack: attack}},
        classes={"unit": attack, "count": [1, 2], "mean_score": [0.1, 0.2], "names": [attack, attack]},
        statistics={attack: [0.1, 0.2], f"{attack} 2": attack, f"{attack} 3": {attack: [attack]}},
        inputs={attack: {"uri": f"s3://{attack}", "array": attack, "shape": attack, attack: attack}},
        software={attack: attack},
    )
    hostile["score"]["name"] = attack
    table = pd.DataFrame(
        {
            "row": [0],
            "id": [attack],
            attack: [0.1],
            "given_label": [1],
            "suggested_label": [attack],
            "more": [[attack]],
        }
    )
    image = preview(1, 2, id=attack)
    page = Page(render_report(hostile, table, [image]))
    assert "script" not in {tag for tag, _ in page.elements}
    assert len(page.all("img")) == 4
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]
    assert page.tables["Classes"][1][0] == f"0 {attack}"
    assert page.tables["Inputs"][1][1] == f"s3://{attack}"
    assert attack in page.said("h3")


def test_headline_and_key_figures_are_in_plain_words() -> None:
    page = Page(render_report(summary(), worst()))
    assert page.said("h1") == ["street.zarr"]
    assert "1,200 images were audited. They score 0.93 on average; the worst scores 0.02." in page.text
    assert "A low score means that part of the image is probably labelled wrongly" in page.text
    figures = dict(zip(page.said("dt"), page.said("dd"), strict=False))
    assert figures["Images audited"] == "1,200"
    assert "Scoring below 0.5 10 0.8% of the images" in page.text
    assert "Classes 4 1 without pixels" in page.text
    assert "Pixels scored 5,001,400" in page.text


def test_one_example_is_spoken_of_in_the_singular() -> None:
    page = Page(document("one example"))
    assert "1 image was audited. It scores 0.5." in page.text
    assert "The image with the lowest score." in page.text
    assert "The only one; it is in worst.parquet as well." in page.text
    assert "Classes" not in page.tables


def test_an_audit_without_examples_says_so() -> None:
    page = Page(document("nothing"))
    assert "No examples were scored." in page.text
    assert "There are no scores." in page.text
    assert "No examples are listed." in page.text
    assert page.all("svg") == []


def test_worst_rows_that_are_not_shown_are_mentioned() -> None:
    page = Page(render_report(summary(), worst()))
    header, *rows = page.tables["Worst images"]
    assert header == ["Row", "ID", "Score"]
    assert len(rows) == 100
    assert rows[1] == ["1007", "scene-1", "0.02048"]
    assert "100 of 1,000 shown; all are in worst.parquet" in page.text
    assert "all 100 are shown" in Page(render_report(summary(), worst(100))).text


def test_worst_columns_come_in_a_fixed_order_with_class_names() -> None:
    audit, table = multiclass()
    table.loc[0, ["given_label", "suggested_label"]] = [2, 3]
    header, first, *_ = Page(render_report(audit, table)).tables["Worst examples"]
    assert header == ["Row", "Score", "Given label", "Suggested label", "Extra share"]
    assert first == ["0", "1.235e-05", "2 name of 2", "3 name of 3", "12.35"]


def test_no_worst_rows_is_no_table() -> None:
    page = Page(render_report(summary(), worst(0)))
    assert "No images are listed." in page.text
    assert "Worst images" not in page.tables


def test_cells_of_any_type_are_readable() -> None:
    table = pd.DataFrame(
        {
            "row": [3, 4],
            "id": ["a", None],
            "image_scores": [0.1, np.nan],
            "given_label": [[0, 3], np.array([], int)],
            "num_annotations": [12345, 2],
            "flag": [True, False],
            "seen": [pd.Timestamp("2026-03-01"), pd.NaT],
        }
    )
    _, first, second = Page(render_report(summary(), table)).tables["Worst images"]
    assert first == ["3", "a", "0.1000", "0 sky, 3 road", "12,345", "yes", "2026-03-01 00:00:00"]
    assert second == ["4", "–", "–", "none", "2", "no", "–"]


def test_labels_of_a_regression_are_numbers_not_classes() -> None:
    table = pd.DataFrame({"row": [0], "score": [0.25], "given_label": [12.5], "suggested_label": [2.0]})
    score = {"name": "score", "mean": 0.25, "min": 0.25, "histogram": bins({25: 1})}
    page = Page(render_report(summary(task="regression", classes=None, score=score), table))
    assert page.tables["Worst examples"][1] == ["0", "0.2500", "12.50", "2.000"]
    assert "the given value is probably far off" in page.text


def test_classes_are_listed_worst_first_with_their_statistics() -> None:
    page = Page(render_report(summary(), worst()))
    assert page.tables["Classes"] == [
        ["Class", "Pixels", "Mean score", "Confident thresholds"],
        ["1 building", "400", "0.4100", "0.5000"],
        ["3 road", "1,000", "0.7123", "0.7500"],
        ["0 sky", "5,000,000", "0.9900", "0.9000"],
        ["2 pole", "0", "–", "2.000"],
    ]
    assert page.tables["Statistics"][1:] == [["off_diagonal", "182,331"]]
    widths = [rect["width"] for rect in page.all("rect") if "x" not in rect]
    assert widths[:4] == ["0.008%", "41%", "0.02%", "71.23%"]


def test_of_many_classes_the_worst_fifty_are_shown() -> None:
    audit, table = multiclass(300)
    page = Page(render_report(audit, table))
    _, *rows = page.tables["Classes"]
    assert len(rows) == 50
    assert "50 of 300 shown; all are in summary.json" in page.text
    worst_class = int(np.argmin(audit["classes"]["mean_score"]))
    assert rows[0][0] == f"{worst_class} name of {worst_class}"


def test_nested_and_long_statistics_are_summed_up() -> None:
    statistics = {
        "model": {"weight": 0.25, "empty": {}},
        "edges": np.linspace(0, 2, 40).tolist(),
        "pair": [1, 2],
        "priors": np.full((2, 1000), 0.5).tolist(),
    }
    page = Page(render_report(summary(statistics=statistics), worst()))
    assert page.tables["Statistics"][1:] == [
        ["model.weight", "0.2500"],
        ["model.empty", "–"],
        ["edges", "40 values from 0.000 to 2.000"],
        ["pair", "1, 2"],
        ["priors", "2,000 values from 0.5000 to 0.5000"],
    ]


def test_settings_are_shown_as_they_were_given() -> None:
    page = Page(render_report(summary(params={"temperature": 0.1, "kwargs": {"adjust": False}}), worst()))
    assert page.tables["Settings"][1:] == [
        ["Task", "segmentation"],
        ["temperature", "0.1"],
        ["kwargs.adjust", "false"],
        ["Worst examples kept", "1,000"],
        ["Regions", "32"],
    ]
    assert page.tables["Inputs"] == [
        ["Input", "URI", "Array", "Shape", "Dtype"],
        ["labels", "s3://bucket/street.zarr", "labels", "1,200 × 512 × 512", "uint8"],
        ["pred_probs", "s3://bucket/probs.zarr", "p", "1,200 × 4 × 512 × 512", "–"],
    ]
    assert "numpy 2.4.6" in page.text


def test_attributes_of_charts_are_escaped() -> None:
    assert element("a", "<", class_="\"'>") == '<a class="&#34;&#39;&gt;">&lt;</a>'


def test_histogram_has_a_bar_and_a_title_for_every_filled_bin() -> None:
    page = Page(render_report(summary(), worst()))
    bars = [a for a in page.all("rect") if a.get("class") == "count"]
    assert [bar["x"] for bar in bars] == ["2%", "49%", "50%", "93%"]
    assert "0.93 to 0.94: 1,100 images" in page.said("title")
    assert page.tables["Counts of scores"][1:] == [
        ["0.02 to 0.03", "6"],
        ["0.49 to 0.5", "4"],
        ["0.5 to 0.51", "90"],
        ["0.93 to 0.94", "1,100"],
    ]
    (chart,) = [a for a in page.all("svg") if a.get("role") == "img"]
    assert chart["aria-label"] == "Histogram of 1,200 scores from 0 to 1: mean 0.93, lowest 0.02."


def test_histogram_of_a_single_bin_fills_the_height() -> None:
    page = Page(document("one example"))
    (bar,) = [a for a in page.all("rect") if a.get("class") == "count"]
    assert (bar["x"], bar["y"], bar["height"]) == ("50%", "0%", "100%")
    assert "logarithmic" not in page.text


def test_far_apart_counts_get_a_logarithmic_axis() -> None:
    assert "Examples, logarithmic scale" in Page(document("multiclass")).text
    axis = CountAxis.of([0, 1, 5_000_000])
    assert axis.logarithmic
    assert axis.ticks == (1, 100, 10_000, 1_000_000)
    assert axis.reach(0) == 0
    assert 0.02 < axis.reach(1) < axis.reach(1000) < axis.reach(5_000_000) == 1


@pytest.mark.parametrize(
    ("most", "ticks"),
    [(1, (0, 1)), (4, (0, 1, 2, 3, 4)), (99, (0, 20, 40, 60, 80)), (100, (0, 20, 40, 60, 80, 100))],
)
def test_linear_ticks_are_round_whole_numbers(most: int, ticks: tuple[int, ...]) -> None:
    axis = CountAxis.of([most])
    assert (axis.ticks, axis.reach(most)) == (ticks, 1)


def test_scores_are_counted_below_a_bin_edge_only() -> None:
    histogram = Histogram(0.0, 1.0, [1, 2, 3, 4])
    assert histogram.below(0.5) == 3
    assert histogram.below(0.6) is None
    assert histogram.below(1.5) is None


def test_without_previews_there_is_no_image_section() -> None:
    page = Page(render_report(summary(), worst()))
    assert page.all("img") == []
    assert "A look at the worst images" not in page.text


def test_a_card_shows_three_maps_a_legend_and_what_differs() -> None:
    given = np.array([[0, 0, 3, 3], [-1, 1, 3, 3]])
    predicted = np.array([[0, 0, 3, 3], [0, 0, 0, 3]])
    scores = np.array([[0.9, 0.9, 1, 1], [np.nan, 0.1, 0.04321, 1]])
    image = Preview(1234, "x/y.png", 0.0212345, given, predicted, scores)
    page = Page(render_report(summary(), worst(), [image]))
    assert "x/y.png" in page.said("h3")
    assert "row 1234 · score 0.02123" in page.text
    assert "28.6% of the pixels differ, most often building predicted as sky (14.3%)." in page.text
    assert "Given Predicted Pixel scores" in " ".join(page.said("figcaption"))
    assert "0 sky 3 road 1 building" in page.text
    swatches = [a["style"] for a in page.all("span") if "style" in a]
    assert swatches == [f"background:{class_colour(k)}" for k in (0, 3, 1)]
    scale, *maps = page.all("img")
    assert [each["alt"] for each in maps] == [
        "Given classes of x/y.png: road 57.1%, sky 28.6%, building 14.3%",
        "Predicted classes of x/y.png: sky 62.5%, road 37.5%",
        "Pixel scores of x/y.png: lowest 0.04321",
    ]
    assert decode(maps[0]["src"])[1, 1].tolist() == opaque(class_colour(1))
    assert decode(maps[0]["src"])[1, 0, 3] == decode(maps[2]["src"])[1, 0, 3] == 0
    assert decode(maps[2]["src"])[0, 2].tolist() == decode(scale["src"])[0, -1].tolist()


def test_a_card_without_an_id_is_named_by_its_row() -> None:
    page = Page(render_report(summary(), worst(), [preview(id=None, row=44)]))
    assert "Row 44" in page.said("h3")
    assert "Given and predicted label agree on every pixel." in page.text


def test_an_image_that_is_ignored_altogether() -> None:
    nothing = np.full((2, 2), -1)
    ignored = preview(given=nothing, predicted=nothing, pixel_scores=np.full((2, 2), np.nan))
    page = Page(render_report(summary(), worst(), [ignored]))
    assert "No pixel of this image is labelled." in page.text
    assert "legend" not in page.classes
    assert [decode(a["src"])[..., 3].max() for a in page.all("img")[1:]] == [0, 0, 0]


def test_a_legend_of_many_classes_is_cut() -> None:
    many = preview(20, 15, given=np.arange(300).reshape(20, 15), predicted=np.zeros((20, 15), int))
    page = Page(render_report(summary(), worst(), [many]))
    assert "and 288 more" in page.text
    assert len(page.all("li")) == 13


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64])
def test_class_maps_have_one_colour_per_class(dtype: type[np.integer[Any]]) -> None:
    classes = np.array([[0, 1, 2], [17, 20, 100]], dtype)
    uri = class_map_png(classes)
    assert open_png(uri).mode == "P"
    expected = [[opaque(class_colour(int(k))) for k in row] for row in classes]
    assert decode(uri).tolist() == expected


def test_ignored_pixels_are_transparent() -> None:
    assert decode(class_map_png(np.array([[-1, 4]])))[..., 3].tolist() == [[0, 255]]


def test_class_colours_are_distinct_as_far_as_a_palette_goes() -> None:
    assert len({class_colour(k) for k in range(255)}) == 255
    assert class_colour(299) == class_colour(299 - 255)
    assert decode(class_map_png(np.array([[299]]))).tolist() == [[opaque(class_colour(299))]]


def test_score_colours_darken_evenly_from_suspicious_to_plausible() -> None:
    palette = score_palette()
    luminances = [luminance(f"#{palette[i : i + 3].hex()}") for i in range(0, len(palette), 3)]
    lightness = [116 * y ** (1 / 3) - 16 if y > 0.008856 else 903.3 * y for y in luminances]
    steps = np.diff(lightness)
    assert (steps < 0).all()
    assert lightness[0] - lightness[-1] > 95
    assert steps.min() > 2 * np.median(steps)


def test_score_maps_follow_the_scale_and_clip() -> None:
    scale = decode(score_scale_png())[0]
    pixels = decode(score_map_png(np.array([[0.0, 1.0, -0.01, 1.01, np.nan]], np.float32)))[0]
    assert pixels[:4].tolist() == [scale[0].tolist(), scale[-1].tolist()] * 2
    assert pixels[4, 3] == 0


def test_half_precision_scores_are_drawn() -> None:
    scores = np.array([[0.25, np.nan]])
    np.testing.assert_array_equal(
        decode(score_map_png(scores.astype(np.float16))),
        decode(score_map_png(scores)),
    )


def test_one_pixel_images() -> None:
    assert decode(class_map_png(np.array([[2]]))).tolist() == [[opaque(class_colour(2))]]
    assert decode(score_map_png(np.array([[0.0]]))).shape == (1, 1, 4)


def test_large_class_maps_keep_every_third_pixel() -> None:
    classes = np.random.default_rng(1).integers(0, 19, (700, 301))
    thinned = classes[::3, ::3]
    expected = np.array([opaque(class_colour(k)) for k in range(19)], np.uint8)[thinned]
    np.testing.assert_array_equal(decode(class_map_png(classes)), expected)
    assert max(thinned.shape) <= 256


def test_a_single_bad_pixel_of_a_large_image_stays_visible() -> None:
    scores = np.ones((700, 301))
    scores[:3, :3] = np.nan
    scores[698, 299] = 0.0
    scores[301, 0] = np.nan
    pixels = decode(score_map_png(scores))
    scale = decode(score_scale_png())[0]
    assert pixels.shape == (234, 101, 4)
    assert pixels[232, 99].tolist() == scale[0].tolist()
    assert pixels[100, 0].tolist() == scale[-1].tolist()
    assert pixels[0, 0, 3] == 0
    assert (pixels == scale[-1]).all(axis=2).sum() == 234 * 101 - 2


def test_images_just_below_the_limit_are_not_thinned() -> None:
    assert decode(class_map_png(np.zeros((256, 2), int))).shape == (256, 2, 4)
    assert decode(class_map_png(np.zeros((257, 2), int))).shape == (129, 1, 4)


def test_differences_count_labelled_pixels_only() -> None:
    given, predicted = np.array([[0, 0, 1, -1, 5]]), np.array([[0, 2, 2, 1, -1]])
    found = differences(preview(given=given, predicted=predicted))
    assert (found.share, found.given, found.predicted, found.largest) == (2 / 3, 0, 2, 1 / 3)


def test_class_shares_are_largest_first_and_without_ignored_pixels() -> None:
    assert class_shares(np.array([[5, 5, -1]]), np.array([[5, 2, 9]])) == [(5, 0.6), (2, 0.2), (9, 0.2)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_contrast_is_aa(scheme: str) -> None:
    style = resources.files("pipelines.report").joinpath("report.css").read_text("utf-8")
    blocks = re.findall(r":root \{[^}]*\}", style)
    light, dark = (dict(re.findall(r"--(\w+): (#\w{6});", block)) for block in blocks)
    colours = light if scheme == "light" else light | dark
    for foreground in ("text", "muted", "accent", "warm"):
        for background in ("page", "surface"):
            assert contrast(colours[foreground], colours[background]) >= 4.5, (foreground, background)


def contrast(one: str, other: str) -> float:
    """Contrast ratio as WCAG defines it."""
    low, high = sorted(luminance(colour) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    channels = [value / 255 for value in bytes.fromhex(colour[1:])]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
