"""The tables of the report, as rows of text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from pipelines.expect import Finding
from pipelines.report import text
from pipelines.report.charts import bar

WORST_SHOWN = 100
CLASSES_SHOWN = 50
STATISTICS_SHOWN = 100
ANNOTATORS_SHOWN = 100
PAIRS_SHOWN = 50
CLASS_ID_COLUMNS = frozenset({"given_label", "suggested_label", "consensus_label"})
NAME_COLUMNS = frozenset({"row", "id"})


@dataclass(frozen=True)
class Column:
    """A heading, and whether what stands under it is numbers."""

    heading: str
    numeric: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of text below columns; the first column names its row, `total` counts hidden rows as well."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    total: int


@dataclass(frozen=True)
class ClassNames:
    """What classes are called: by id, and by name where there are names."""

    names: Sequence[str] | None

    def plain(self, class_id: int) -> str:
        """A class in running text."""
        return self._name(class_id) or f"class {class_id}"

    def markup(self, class_id: int) -> Markup:
        """A class by its id with its name beside it."""
        return Markup('<span class="id">{}</span> {}').format(class_id, self._name(class_id)).rstrip()

    def _name(self, class_id: int) -> str:
        return str(self.names[class_id]) if self.names and 0 <= class_id < len(self.names) else ""


def worst_table(worst: pd.DataFrame, score: str, names: ClassNames) -> Table:
    """The worst examples: row, id, score and labels first, then what else there is."""
    first = [name for name in ("row", "id", score, "given_label", "suggested_label") if name in worst]
    shown = worst[first + [name for name in worst.columns if name not in first]].head(WORST_SHOWN)
    named_classes = CLASS_ID_COLUMNS if names.names else frozenset()
    columns = [
        Column(
            heading="Score" if name == score else text.heading(name),
            numeric=pd.api.types.is_numeric_dtype(shown[name]) and name not in named_classes,
        )
        for name in shown
    ]
    rows = [
        [_worst_cell(name, value, names) for name, value in zip(shown.columns, record, strict=True)]
        for record in shown.itertuples(index=False, name=None)
    ]
    return Table(columns, rows, len(worst))


def class_table(
    classes: Mapping[str, Any],
    statistics: Mapping[str, Sequence[Any]],
    names: ClassNames,
) -> Table:
    """Count, mean score and statistics of each class, lowest mean score first, then those without one."""
    counts = classes["count"]
    means = [None if text.is_missing(mean) else float(mean) for mean in classes["mean_score"]]
    columns = [
        Column("Class"),
        Column(text.heading(classes.get("unit", "count")), numeric=True),
        Column("Mean score", numeric=True),
        *(Column(text.heading(name), numeric=True) for name in statistics),
    ]
    most = max(counts, default=0) or 1
    rows = [
        [
            names.markup(k),
            _with_bar(text.integer(counts[k]), counts[k] / most),
            text.MISSING if mean is None else _with_bar(text.significant(mean), mean),
            *(text.cell(values[k]) for values in statistics.values()),
        ]
        for k, mean in sorted(enumerate(means), key=lambda each: math.inf if each[1] is None else each[1])
    ]
    return Table(columns, rows[:CLASSES_SHOWN], len(rows))


@dataclass(frozen=True)
class Sorted:
    """One table in several orders: by what, and whether that is shown first."""

    name: str
    heading: str
    table: Table
    first: bool


def sorted_tables(frame: pd.DataFrame) -> list[Sorted]:
    """The first rows of a frame in its own order, which is that of its second column, and in that of each other one."""
    columns = [
        Column(text.heading(str(name)), pd.api.types.is_numeric_dtype(frame[name]) and place > 0)
        for place, name in enumerate(frame.columns)
    ]
    result = []
    for place, name in enumerate(frame.columns):
        ordered = frame if place == 1 else frame.sort_values([name], kind="stable")
        rows = [
            [str(record[0]), *map(text.cell, record[1:])]
            for record in ordered.head(ANNOTATORS_SHOWN).itertuples(index=False, name=None)
        ]
        result.append(Sorted(str(name), columns[place].heading, Table(columns, rows, len(frame)), place == 1))
    return result


def confusion_table(confusion: Mapping[str, Sequence[int]], names: ClassNames) -> Table:
    """Labels given in place of the consensus, most frequent first."""
    triples = zip(confusion["consensus"], confusion["given"], confusion["count"], strict=True)
    wrong = [(consensus, given, count) for consensus, given, count in triples if consensus != given]
    most = max((count for _, _, count in wrong), default=1)
    rows = [
        [names.markup(consensus), names.markup(given), _with_bar(text.integer(count), count / most)]
        for consensus, given, count in wrong
    ]
    return Table(
        [Column("Consensus"), Column("Given"), Column("Labels", numeric=True)], rows[:CLASSES_SHOWN], len(rows)
    )


def left_out_table(crowd: Mapping[str, Any]) -> Table:
    """Rows that were left out, by kind, with the first places."""
    rows = [
        [kind, text.integer(count), "; ".join(crowd["places"].get(kind, []))] for kind, count in crowd["bad"].items()
    ]
    return Table([Column("Left out"), Column("Count", numeric=True), Column("The first")], rows, len(rows))


def pairs_table(issues: Mapping[str, Any], unit: str, names: ClassNames) -> Table:
    """Label issues by given and suggested class, the most frequent first."""
    pairs = list(zip(*(issues["pairs"][name] for name in ("given", "suggested", "count")), strict=True))
    columns = [Column("Given"), Column("Suggested"), Column(text.heading(unit), numeric=True)]
    most = max((count for _, _, count in pairs), default=1)
    rows = [
        [names.markup(given), names.markup(suggested), _with_bar(text.integer(count), count / most)]
        for given, suggested, count in pairs[:PAIRS_SHOWN]
    ]
    return Table(columns, rows, len(pairs))


def split_statistics(
    statistics: Mapping[str, Any], n_classes: int | None
) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """Separate what has one value per class from the rest; nested names are dotted."""
    per_class: dict[str, list[Any]] = {}
    rest: dict[str, Any] = {}
    for name, value in text.flattened(statistics):
        values = list(value) if isinstance(value, list | tuple | np.ndarray) else None
        if values is None:
            rest[name] = value
        elif len(values) == n_classes and all(each is None or text.is_number(each) for each in values):
            per_class[name] = values
        else:
            rest[name] = values
    return per_class, rest


def statistics_table(statistics: Mapping[str, Any]) -> Table:
    """Statistics of the whole data set, long lists as their range."""
    rows = [
        [_code(name), text.summarised(value) if isinstance(value, list) else text.cell(value)]
        for name, value in statistics.items()
    ]
    return Table([Column("Statistic"), Column("Value")], rows[:STATISTICS_SHOWN], len(rows))


def settings_table(summary: Mapping[str, Any]) -> Table:
    """Task, parameters, and how the run was laid out."""
    rows: list[list[str]] = [["Task", text.setting(summary["task"])]]
    params = text.flattened(summary.get("params") or {})
    rows += [[_code(name), text.setting(value)] for name, value in params]
    layout = {"worst": "Worst examples kept", "regions": "Regions"}
    rows += [[heading, text.cell(summary[key])] for key, heading in layout.items() if key in summary]
    return Table([Column("Setting"), Column("Value")], rows, len(rows))


def inputs_table(inputs: Mapping[str, Mapping[str, Any]]) -> Table:
    """Where each input array is and what it looks like."""
    facts = list(dict.fromkeys(fact for described in inputs.values() for fact in described))
    columns = [Column("Input"), *(Column(text.heading(fact)) for fact in facts)]
    rows = []
    for name, described in inputs.items():
        rows.append([name, *(_fact(fact, described.get(fact)) for fact in facts)])
    return Table(columns, rows, len(rows))


def bad_table(listed: Sequence[Mapping[str, Any]]) -> Table:
    """Regions that were left out: their rows, and the first reasons."""
    rows = [
        [
            bad["region"],
            f"{text.integer(bad['rows'][0])} to {text.integer(bad['rows'][1] - 1)}",
            " ".join(bad["reasons"]),
        ]
        for bad in listed
    ]
    return Table([Column("Region"), Column("Rows"), Column("Why")], rows, len(rows))


def expectations_table(findings: Sequence[Finding]) -> Table:
    """What was expected and found, broken ones first."""
    rows = [
        [_code(each.expectation), each.expected, each.found, "yes" if each.holds else Markup("<strong>no</strong>")]
        for each in sorted(findings, key=lambda each: each.holds)
    ]
    return Table([Column("Expectation"), Column("Expected"), Column("Found"), Column("Holds")], rows, len(rows))


def _fact(name: str, value: object) -> str:
    if value is None:
        return text.MISSING
    return text.shape(value) if name == "shape" else text.setting(value)


def _worst_cell(name: object, value: Any, names: ClassNames) -> str:
    if text.is_missing(value):
        return text.MISSING
    if name in NAME_COLUMNS:
        return str(value)
    if name in CLASS_ID_COLUMNS and names.names:
        return _class_cell(value, names)
    return text.cell(value)


def _class_cell(value: Any, names: ClassNames) -> str:
    """The class or the classes that a label stands for."""
    ids: Iterable[Any] = value if isinstance(value, np.ndarray | list | tuple) else [value]
    labels = [
        names.markup(int(each)) if text.is_number(each) and float(each).is_integer() else text.cell(each)
        for each in ids
    ]
    return Markup(", ").join(labels) or "none"


def _with_bar(number: str, share: float) -> Markup:
    return Markup('<span class="measure">{}{}</span>').format(bar(share), number)


def _code(name: str) -> Markup:
    return Markup("<code>{}</code>").format(name)
