"""What the results of a run are expected to be: each expectation bounds a number that the run tells, or several."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from labelqa_dask.core.errors import LabelQAError
from labelqa_dask.storage.record import Json
from pipelines.config import EACH, Bounds, ExpectConfig

_MOST_LISTED = 20

Number = tuple[str, float | None]
"""Whose number it is, where it is one of several, and the number; None where there is none."""


class ExpectationsBroken(LabelQAError):
    """A run whose results were published, but are not what was expected."""


@dataclass(frozen=True)
class Finding:
    """What came of one expectation.

    Attributes
    ----------
    expectation : its name in the configuration, such as class_mean_score.3.
    least, most : the bounds.
    checked, broken : how many numbers it bounds, and how many of them are outside.
    listed : the first of those outside, furthest first; where all are inside, the one nearest to a bound.
    """

    expectation: str
    least: float | None
    most: float | None
    checked: int
    broken: int
    listed: tuple[Number, ...]

    @classmethod
    def of(cls, expectation: str, bounds: Bounds, numbers: Iterable[Number]) -> Finding:
        """Compare numbers with their bounds; one that there is none of is outside."""
        ordered = sorted((_room(bounds, number), name, number) for name, number in numbers)
        broken = sum(room < 0 for room, _, _ in ordered)
        listed = tuple((name, number) for _, name, number in ordered[: min(max(broken, 1), _MOST_LISTED)])
        return cls(expectation, bounds.min, bounds.max, len(ordered), broken, listed)

    @property
    def holds(self) -> bool:
        return self.broken == 0

    @property
    def expected(self) -> str:
        """The bounds in words."""
        if self.least is not None and self.most is not None:
            return f"{self.least:g} to {self.most:g}"
        return f"at least {self.least:g}" if self.least is not None else f"at most {self.most:g}"

    @property
    def found(self) -> str:
        """What was found in words: what broke it, or else what is nearest to doing so."""
        if not self.listed:
            return "nothing to check"
        told = ", ".join(f"{name} {_told(number)}".lstrip() for name, number in self.listed)
        if self.holds or not self.listed[0][0]:
            return told
        more = f" and {self.broken - len(self.listed):,} more" if self.broken > len(self.listed) else ""
        return f"{self.broken:,} of {self.checked:,} outside: {told}{more}"

    @property
    def sentence(self) -> str:
        """Which it is, what was expected and what was found."""
        return f"{self.expectation}: expected {self.expected}, found {self.found}"

    def to_json(self) -> Json:
        listed = [{"of": name or None, "found": number} for name, number in self.listed]
        bounds = {"min": self.least, "max": self.most}
        counts = {"checked": self.checked, "broken": self.broken}
        return {"expectation": self.expectation, "holds": self.holds, **bounds, **counts, "listed": listed}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Finding:
        """The finding that a summary tells of."""
        listed = tuple((each["of"] or "", each["found"]) for each in told["listed"])
        return cls(told["expectation"], told["min"], told["max"], told["checked"], told["broken"], listed)


def evaluate(expect: ExpectConfig, summary: Mapping[str, Any], annotators: pd.DataFrame | None) -> tuple[Finding, ...]:
    """Compare each expectation with the numbers that it bounds.

    Parameters
    ----------
    expect : ExpectConfig
    summary : mapping
        What `summary.json` holds.
    annotators : DataFrame, optional
        `annotator` and `annotator_quality`, where there are several.
    """
    findings = []
    for name in type(expect).model_fields:
        setting = getattr(expect, name)
        several = setting if isinstance(setting, Mapping) else {"": setting} if setting else {}
        for which, bounds in several.items():
            numbers = _numbers(name, which, summary, annotators)
            findings.append(Finding.of(f"{name}.{which}" if which else name, bounds, numbers))
    return tuple(findings)


def refuse_broken(findings: Iterable[Finding], where: str) -> None:
    """End a run whose results are not what was expected.

    Raises
    ------
    ExpectationsBroken
    """
    findings = tuple(findings)
    broken = [finding for finding in findings if not finding.holds]
    if broken:
        told = "; ".join(finding.sentence for finding in broken)
        raise ExpectationsBroken(
            f"{len(broken)} of {len(findings)} expectations {'are' if len(broken) > 1 else 'is'} broken: {told}",
            where,
            "The results are published.",
        )


def issue_share(summary: Mapping[str, Any]) -> float | None:
    """Share of the labels that are estimated to be wrong; None where nothing was looked for, or nothing labelled."""
    issues, classes = summary.get("issues"), summary.get("classes")
    statistics = summary.get("statistics") or {}
    if issues and classes:
        count, labels = issues["count"], sum(classes["count"])
    elif classes and "labels_missing" in statistics:
        count = sum(statistics["labels_missing"]) + sum(statistics["labels_wrongly_given"])
        labels = sum(summary["score"]["histogram"]["counts"]) * len(classes["count"])
    else:
        return None
    return count / labels if labels else None


def _numbers(
    name: str, which: str, summary: Mapping[str, Any], annotators: pd.DataFrame | None
) -> Iterator[tuple[str, float | None]]:
    if name == "mean_score":
        yield "", summary["score"]["mean"]
    elif name == "issue_share":
        yield "", issue_share(summary)
    elif name == "quarantined_regions":
        yield "", summary["quarantined"]["regions"]
    elif name == "class_mean_score":
        means = summary["classes"]["mean_score"]
        if which == EACH:
            yield from ((f"class {k}", mean) for k, mean in enumerate(means) if mean is not None)
        else:
            yield "", means[int(which)]
    elif annotators is not None:
        named = zip(annotators["annotator"].map(str), annotators["annotator_quality"].tolist(), strict=True)
        quality = {annotator: None if math.isnan(value) else value for annotator, value in named}
        if which == EACH:
            yield from quality.items()
        else:
            yield "", quality.get(which)


def _room(bounds: Bounds, number: float | None) -> float:
    """How far a number is inside its bounds; negative outside."""
    if number is None:
        return -math.inf
    above = math.inf if bounds.min is None else number - bounds.min
    below = math.inf if bounds.max is None else bounds.max - number
    return min(above, below)


def _told(number: float | None) -> str:
    return "none" if number is None else f"{number:.4g}"
