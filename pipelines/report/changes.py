"""What has changed since another version, as sentences and tables for people: in the report and in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from pipelines.compare import Change, Comparison, Drift
from pipelines.report import text
from pipelines.report.tables import Column, Table

ARROW = " → "


@dataclass(frozen=True)
class Section:
    """A table with its heading, and what is to be known to read it."""

    heading: str
    note: str
    table: Table


def headline(comparison: Comparison) -> str:
    """The changes in a few words."""
    new, resolved = len(comparison.new), len(comparison.resolved)
    told = f"{text.integer(new)} new bad example{'' if new == 1 else 's'}, {text.integer(resolved)} resolved"
    if comparison.distance is None:
        return f"{told}."
    at = comparison.distance
    if not at.value:
        return f"{told}. The scores are distributed as they were."
    return (
        f"{told}. The distributions of the scores are {at.value:.3g} apart: "
        f"{text.percent(at.then)} scored below {at.at:.2g} then, {text.percent(at.now)} do now."
    )


def remarks(comparison: Comparison) -> list[str]:
    """What a reader of the changes must not miss."""
    told = []
    if comparison.settings:
        changed = "; ".join(
            f"{name} from {text.setting(then)} to {text.setting(now)}" for name, then, now in comparison.settings
        )
        told.append(f"The settings differ, so the scores may not be comparable: {changed}.")
    if comparison.inputs:
        verb = "has" if len(comparison.inputs) == 1 else "have"
        told.append(f"Of the inputs, {', '.join(comparison.inputs)} {verb} changed.")
    else:
        told.append("The inputs are the same.")
    if comparison.by == "row":
        told.append("There are no identifiers: examples are told apart by their rows, as if none had moved.")
    return told


def sections(comparison: Comparison, most: int) -> list[Section]:
    """All tables that have rows, each with at most so many; a note says where there are more."""
    line, by = f"{comparison.line:.4g}", comparison.by
    unknown = f"{text.MISSING} where the list of the worst of that version does not hold it"
    found = [
        Section("The whole", "", _drifts("", comparison.numbers)),
        Section(
            "New bad examples",
            f"Below {line} now, and not in {comparison.before}, lowest first; {unknown}.",
            _examples(comparison.new, by, most),
        ),
        Section(
            "Resolved",
            f"Below {line} in {comparison.before}, and not now, or gone from the data; {unknown}.",
            _examples(comparison.resolved, by, most),
        ),
        Section("Quantiles of the scores", "To a hundredth, from the histograms.", _drifts("", comparison.quantiles)),
        Section("Classes", "Furthest moved first.", _drifts("class", comparison.classes or (), most)),
        Section("Annotators", _comings_and_goings(comparison), _drifts("annotator", comparison.annotators or (), most)),
    ]
    return [_with_total(section) for section in found if section.table.rows]


def _with_total(section: Section) -> Section:
    shown, total = len(section.table.rows), section.table.total
    more = f"{text.integer(shown)} of {text.integer(total)} shown." if shown < total else ""
    return Section(section.heading, " ".join(part for part in (section.note, more) if part), section.table)


def _comings_and_goings(comparison: Comparison) -> str:
    changes = [next(iter(drift.changes.values())) for drift in comparison.annotators or ()]
    new, gone = sum(then is None for then, _ in changes), sum(now is None for _, now in changes)
    return f"{text.integer(new)} new, {text.integer(gone)} gone, the others furthest moved first."


def _examples(frame: pd.DataFrame, by: str, most: int) -> Table:
    names = [by, *(name for name in frame.columns if name not in ("id", "row"))]
    columns = [
        Column(text.heading(name), pd.api.types.is_numeric_dtype(frame[name]) and name not in ("id", "row"))
        for name in names
    ]
    rows = [
        [str(record[0]), *map(text.cell, record[1:])]
        for record in frame[names].head(most).itertuples(index=False, name=None)
    ]
    return Table(columns, rows, len(frame))


def _drifts(what: str, drifts: Sequence[Drift], most: int | None = None) -> Table:
    """Each measure in a column as `then → now`; a single one in columns of its own."""
    if not drifts:
        return Table([], [], 0)
    measures = list(drifts[0].changes)
    first = Column(text.heading(what))
    if measures == [""]:
        rows = [[drift.of, *map(_number, drift.changes[""]), _difference(drift.changes[""])] for drift in drifts[:most]]
        return Table([first, *(Column(name, True) for name in ("Then", "Now", "Change"))], rows, len(drifts))
    rows = [[drift.of, *(_both(drift.changes[name]) for name in measures)] for drift in drifts[:most]]
    return Table([first, *(Column(text.heading(name), True) for name in measures)], rows, len(drifts))


def _both(change: Change) -> str:
    then, now = map(_number, change)
    return then if then == now else f"{then}{ARROW}{now}"


def _number(value: float | None) -> str:
    return text.MISSING if value is None else text.cell(value)


def _difference(change: Change) -> str:
    then, now = change
    if then is None or now is None or then == now:
        return ""
    difference = now - then
    return f"{difference:+,}" if isinstance(difference, int) else f"{difference:+.3g}"


def shown_changes(comparison: Comparison, most: int) -> Mapping[str, Any]:
    """All of it, as the report's template takes it."""
    return {
        "before": comparison.before,
        "headline": headline(comparison),
        "remarks": remarks(comparison),
        "sections": sections(comparison, most),
    }
