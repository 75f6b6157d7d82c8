"""What has changed from one version to another, by what both publish: summaries, lists of the worst, annotators.

No scores are read. An example is bad here if it scores below a line beneath which the lists of both versions hold every
example, so that what is missing from one of them is known not to be bad there.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

from labelqa_dask.core.errors import InvalidInput, LabelQAError
from labelqa_dask.storage.location import Location
from labelqa_dask.storage.record import Version, latest, version_names
from pipelines.expect import issue_share

SUSPICIOUS = 0.5
"""No example that scores higher is called bad."""
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95)

Change = tuple[float | None, float | None]
"""A number then and now; None where there was none."""


@dataclass(frozen=True)
class Found:
    """What a version tells of its data.

    Attributes
    ----------
    version : its name.
    summary : what `summary.json` holds.
    worst : the worst examples, worst first.
    annotators : quality of each annotator, where there are several.
    """

    version: str
    summary: Mapping[str, Any]
    worst: pd.DataFrame
    annotators: pd.DataFrame | None

    @classmethod
    def read(cls, version: Version) -> Self:
        """What a version has published."""
        location = version.location
        annotators = location.read_if_exists("annotators.parquet")
        return cls(
            version.name,
            json.loads(location.read("summary.json")),
            _table(location.read("worst.parquet")),
            None if annotators is None else _table(annotators),
        )

    @property
    def counts(self) -> NDArray[np.int64]:
        """Histogram of the scores."""
        return np.array(self.summary["score"]["histogram"]["counts"], np.int64)

    @property
    def complete_below(self) -> float:
        """The score below which the list of the worst holds every example."""
        if len(self.worst) >= self.counts.sum():
            return math.inf
        return float(self.worst[self.summary["score"]["name"]].iloc[-1]) if len(self.worst) else 0.0


@dataclass(frozen=True)
class Drift:
    """How numbers of one class, one annotator or the whole have changed."""

    of: str
    changes: Mapping[str, Change]

    @property
    def moved(self) -> bool:
        return any(then != now for then, now in self.changes.values())

    @property
    def distance(self) -> float:
        """How far the first number has moved; infinitely where it has come or gone."""
        then, now = next(iter(self.changes.values()))
        if then is None or now is None:
            return 0.0 if then is now else math.inf
        return abs(now - then)


@dataclass(frozen=True)
class Distance:
    """The largest difference of the shares of examples below a score (Kolmogorov-Smirnov), and where it is."""

    at: float
    then: float
    now: float

    @property
    def value(self) -> float:
        return abs(self.now - self.then)


@dataclass(frozen=True)
class Comparison:
    """What has changed from one version to another.

    Attributes
    ----------
    before, after : names of the versions.
    settings : parameters that differ, with their values then and now.
    inputs : names of the inputs that differ.
    by : what examples are told apart by, `id` or `row`.
    line : the score below which an example is called bad.
    new, resolved : examples that are bad now and were not, and the reverse, worst first: `id` or `row`, `then`, `now`,
        and what the lists say of them besides. A score is NaN where the list of that version does not hold the example.
    numbers : of the whole data.
    quantiles : of the scores.
    distance : of the distributions of the scores; None where one of them is empty.
    classes, annotators : those of which anything has moved, furthest first; None where there are none to compare.
    """

    before: str
    after: str
    settings: tuple[tuple[str, Any, Any], ...]
    inputs: tuple[str, ...]
    by: str
    line: float
    new: pd.DataFrame
    resolved: pd.DataFrame
    numbers: tuple[Drift, ...]
    quantiles: tuple[Drift, ...]
    distance: Distance | None
    classes: tuple[Drift, ...] | None
    annotators: tuple[Drift, ...] | None


def compare(before: Found, after: Found) -> Comparison:
    """Compare two versions of one task.

    Raises
    ------
    InvalidInput
        Where they are of different tasks.
    """
    tasks = before.summary["task"], after.summary["task"]
    if tasks[0] != tasks[1]:
        raise InvalidInput(
            f"{before.version} is {tasks[0]} and {after.version} is {tasks[1]}, which have nothing to compare",
            mend="Choose versions of one task.",
        )
    by = "id" if "id" in before.worst and "id" in after.worst else "row"
    line = min(SUSPICIOUS, before.complete_below, after.complete_below)
    score = after.summary["score"]["name"]
    then, now = _scored(before, by, score), _scored(after, by, score)
    return Comparison(
        before.version,
        after.version,
        _changed_settings(before.summary["params"], after.summary["params"]),
        _changed_inputs(before.summary["inputs"], after.summary["inputs"]),
        by,
        line,
        _only_in(now, then, line).rename(columns={"mine": "now", "other": "then"}),
        _only_in(then, now, line).rename(columns={"mine": "then", "other": "now"}),
        _numbers(before.summary, after.summary),
        _quantiles(before.counts, after.counts),
        _distance(before.counts, after.counts),
        _classes(before.summary, after.summary),
        _annotators(before.annotators, after.annotators),
    )


def choose_versions(out: Location, before: str | None = None, after: str | None = None) -> tuple[Version, Version]:
    """Two published versions: those that are named, or else the latest and the one before.

    Raises
    ------
    LabelQAError
        Where they are not there.
    """
    names = published_versions(out)
    for name in (before, after):
        if name is not None and name not in names:
            there = ", ".join(names) or "none"
            raise LabelQAError(f"has no published version {name!r}", str(out), f"There are: {there}.")
    if after is None:
        after = names[-1] if names else None
    if before is None:
        before = next((name for name in reversed(names) if after and name < after), None)
    if before is None or after is None:
        told = f"has no published version before {after}" if after else "has no published version"
        raise LabelQAError(told, str(out), "Two are needed to compare them.")
    return Version(out, before), Version(out, after)


def published_versions(out: Location) -> list[str]:
    """Names of the versions that were published and are still there, oldest first."""
    newest = latest(out)
    return [name for name in version_names(out) if newest is not None and name <= newest.name]


def _table(content: bytes) -> pd.DataFrame:
    return pq.read_table(io.BytesIO(content)).to_pandas()


def _scored(found: Found, by: str, score: str) -> pd.DataFrame:
    """The list of the worst, once for each example: of several rows with one identifier the worst counts."""
    table = found.worst.rename(columns={score: "mine"}).drop(columns=[] if by == "row" else ["row"])
    return table.assign(key=table[by].map(str)).drop_duplicates("key").set_index("key")


def _only_in(mine: pd.DataFrame, others: pd.DataFrame, line: float) -> pd.DataFrame:
    """The examples of one list that score below the line there, and not in the other."""
    bad = mine[mine["mine"] < line]
    other = others["mine"].reindex(bad.index)
    bad = bad.assign(other=other)[~(other < line)]
    first = [name for name in ("id", "row") if name in bad]
    rest = [name for name in bad if name not in (*first, "mine", "other")]
    return bad[[*first, "mine", "other", *rest]].reset_index(drop=True)


def _changed_settings(then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[tuple[str, Any, Any], ...]:
    names = dict.fromkeys([*then, *now])
    return tuple((name, then.get(name), now.get(name)) for name in names if then.get(name) != now.get(name))


def _changed_inputs(then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    names = dict.fromkeys([*then, *now])
    return tuple(name for name in names if then.get(name) != now.get(name))


def _numbers(then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[Drift, ...]:
    told = [
        {
            "examples": summary["examples"],
            "mean score": summary["score"]["mean"],
            "lowest score": summary["score"]["min"],
            "share of label issues": issue_share(summary),
            "regions left out": summary["quarantined"]["regions"],
        }
        for summary in (then, now)
    ]
    return tuple(
        Drift(name, {"": (told[0][name], told[1][name])})
        for name in told[0]
        if (told[0][name], told[1][name]) != (None, None)
    )


def _quantiles(then: NDArray[np.int64], now: NDArray[np.int64]) -> tuple[Drift, ...]:
    if not then.any() or not now.any():
        return ()
    each = zip(QUANTILES, _quantiles_of(then), _quantiles_of(now), strict=True)
    return tuple(Drift(f"{quantile:.0%}", {"": (before, after)}) for quantile, before, after in each)


def _quantiles_of(counts: NDArray[np.int64]) -> list[float]:
    """Quantiles of scores from the counts in even bins from 0 to 1, taken to lie evenly in their bin."""
    reached = np.concatenate([[0], np.cumsum(counts)]) / counts.sum()
    bins = np.searchsorted(reached, QUANTILES, side="left") - 1
    within = (np.array(QUANTILES) - reached[bins]) / (reached[bins + 1] - reached[bins])
    return [float(score) for score in (bins + within) / len(counts)]


def _distance(then: NDArray[np.int64], now: NDArray[np.int64]) -> Distance | None:
    if not then.any() or not now.any():
        return None
    below = [np.cumsum(counts) / counts.sum() for counts in (then, now)]
    most = int(np.abs(below[1] - below[0]).argmax())
    return Distance((most + 1) / len(then), float(below[0][most]), float(below[1][most]))


def _classes(then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[Drift, ...] | None:
    told = [_per_class(summary) for summary in (then, now)]
    if not all(told):
        return None
    measures = [name for name in told[1] if name in told[0]]
    k = max(len(values) for each in told for values in each.values())
    return _furthest_first(
        Drift(str(j), {name: (_at(told[0][name], j), _at(told[1][name], j)) for name in measures}) for j in range(k)
    )


def _per_class(summary: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
    """Mean score, count and statistics of the classes."""
    classes = summary["classes"]
    if not classes:
        return {}
    k = len(classes["count"])
    statistics = {
        name.replace("_", " "): values
        for name, values in summary["statistics"].items()
        if isinstance(values, list) and len(values) == k
    }
    return {"mean score": classes["mean_score"], classes["unit"]: classes["count"], **statistics}


def _annotators(then: pd.DataFrame | None, now: pd.DataFrame | None) -> tuple[Drift, ...] | None:
    if then is None or now is None:
        return None
    tables = [table.set_index(table["annotator"].map(str)) for table in (then, now)]
    names = {"annotator_quality": "quality", "weight": "weight", "num_examples_labeled": "labels"}
    measures = [column for column in names if column in then and column in now]
    columns = [{column: table[column].to_dict() for column in measures} for table in tables]
    return _furthest_first(
        Drift(
            annotator,
            {names[column]: tuple(_number(each[column].get(annotator)) for each in columns) for column in measures},  # type: ignore[misc]
        )
        for annotator in dict.fromkeys([*tables[0].index, *tables[1].index])
    )


def _furthest_first(drifts: Iterable[Drift]) -> tuple[Drift, ...]:
    return tuple(sorted((drift for drift in drifts if drift.moved), key=lambda drift: -drift.distance))


def _at(values: Sequence[Any], index: int) -> float | None:
    return _number(values[index]) if index < len(values) else None


def _number(value: Any) -> float | None:
    return None if value is None or math.isnan(value) else value
