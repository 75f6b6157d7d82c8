"""Charts as inline SVG that keeps its text size at every width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from pipelines.report.text import brief, compact, integer

HEIGHT = 240
LOG_RANGE = 100  # counts further apart than this are drawn on a logarithmic axis


@dataclass(frozen=True)
class Histogram:
    """Counts of scores in even bins from `low` to `high`."""

    low: float
    high: float
    counts: Sequence[int]

    def edge(self, index: int) -> float:
        """Lower edge of a bin; one past the last bin, `high`."""
        return self.low + (self.high - self.low) * index / len(self.counts)

    def position(self, score: float) -> float:
        """Where a score lies between `low` and `high`, from 0 to 1."""
        return min(max((score - self.low) / (self.high - self.low), 0.0), 1.0)

    def bins(self) -> list[tuple[str, str, int]]:
        """Lower edge, upper edge and count of every bin that is not empty."""
        edges = [f"{self.edge(i):.4g}" for i in range(len(self.counts) + 1)]
        return [each for each in zip(edges, edges[1:], self.counts, strict=False) if each[2]]

    def below(self, score: float) -> int | None:
        """How many lie below a score; None where it is not an edge of a bin."""
        index = (score - self.low) / (self.high - self.low) * len(self.counts)
        on_edge = 0 <= index <= len(self.counts) and math.isclose(index, round(index), abs_tol=1e-6)
        return sum(self.counts[: round(index)]) if on_edge else None


@dataclass(frozen=True)
class CountAxis:
    """A vertical axis of counts: its ticks, the count at its upper end, and how far up a count reaches."""

    ticks: tuple[int, ...]
    top: int
    logarithmic: bool

    @classmethod
    def of(cls, counts: Sequence[int]) -> CountAxis:
        """The axis that suits some counts: logarithmic where they lie far apart."""
        present = [count for count in counts if count > 0]
        most = max(present, default=1)
        if most > LOG_RANGE * min(present, default=1):
            decades = int(math.log10(most))
            return cls(tuple(10**power for power in range(0, decades + 1, 1 + decades // 6)), most, True)
        return cls(tuple(range(0, most + 1, _round_step(most / 5))), most, False)

    def reach(self, count: int) -> float:
        """From 0 at the lower end to 1 at the upper."""
        if not self.logarithmic:
            return count / self.top
        # The axis starts at a half, so that a single item still gets a visible bar.
        return math.log10(2 * count) / math.log10(2 * self.top) if count else 0.0


def element(name: str, *children: str, **attributes: object) -> Markup:
    """One element; text and attribute values are escaped, underscores in attribute names become dashes.

    >>> element("text", "a < b", class_="x", text_anchor="end")
    Markup('<text class="x" text-anchor="end">a &lt; b</text>')
    """
    named = {key.rstrip("_").replace("_", "-"): escape(value) for key, value in attributes.items()}
    opening = Markup("").join(Markup(' {}="{}"').format(key, value) for key, value in named.items())
    return Markup("<{0}{1}>{2}</{0}>").format(name, opening, Markup("").join(children))


def histogram(data: Histogram, mean: float | None, label: str, unit: str) -> Markup:
    """Bars over the score, with gridlines, a hover title per bar and a marker at the mean.

    Parameters
    ----------
    data : Histogram
    mean : float or None
        Where to put the marker; None for no marker.
    label : str
        What the chart shows, for those who cannot see it.
    unit : str
        What is counted, in the plural.
    """
    axis = CountAxis.of(data.counts)
    parts = [*_gridlines(axis), *_bars(data, axis, unit), *_score_ticks(data)]
    if mean is not None:
        parts += _marker(data.position(mean), f"mean {brief(mean)}")
    return element("svg", *parts, class_="histogram", role="img", aria_label=label, height=HEIGHT)


def bar(share: float) -> Markup:
    """A thin horizontal bar, filled from the left; for the eye only, the number stands beside it."""
    filled = element("rect", width=_percent(min(max(share, 0), 1)), height="100%")
    return element("svg", filled, class_="bar", aria_hidden="true")


def _gridlines(axis: CountAxis) -> list[Markup]:
    lines = []
    for tick in axis.ticks:
        y = _percent(1 - axis.reach(tick))
        lines.append(element("line", class_="grid", x1="0", x2="100%", y1=y, y2=y))
        lines.append(element("text", compact(tick), x="-8", y=y, dy="0.32em", text_anchor="end"))
    return lines


def _bars(data: Histogram, axis: CountAxis, unit: str) -> list[Markup]:
    bars = []
    width = 1 / len(data.counts)
    for index, count in enumerate(data.counts):
        if not count:
            continue
        title = f"{data.edge(index):.4g} to {data.edge(index + 1):.4g}: {integer(count)} {unit}"
        reach = axis.reach(count)
        column = {"x": _percent(index * width), "width": _percent(width)}
        bars.append(
            element(
                "g",
                element("title", title),
                element("rect", class_="hover", y="0", height="100%", **column),
                element("rect", class_="count", y=_percent(1 - reach), height=_percent(reach), **column),
            )
        )
    return bars


def _score_ticks(data: Histogram) -> list[Markup]:
    ticks = []
    for fifth in range(6):
        score = f"{data.low + (data.high - data.low) * fifth / 5:.3g}"
        anchor = {0: "start", 5: "end"}.get(fifth, "middle")
        ticks.append(element("text", score, x=_percent(fifth / 5), y="100%", dy="1.5em", text_anchor=anchor))
    return ticks


def _marker(position: float, text: str) -> list[Markup]:
    x = _percent(position)
    anchor = "start" if position < 0.15 else "end" if position > 0.85 else "middle"
    return [
        element("line", class_="mean", x1=x, x2=x, y1="-6", y2="100%"),
        element("text", text, class_="mean", x=x, y="-12", text_anchor=anchor),
    ]


def _round_step(least: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50, … that is not below `least`."""
    power: int = 10 ** max(math.ceil(math.log10(max(least, 1))) - 1, 0)
    return next(step * power for step in (1, 2, 5, 10) if step * power >= least)


def _percent(share: float) -> str:
    return f"{100 * share:.4g}%"
