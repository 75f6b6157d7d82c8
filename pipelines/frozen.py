"""Frozen statistics: whose they are, and how far those of the data are from them."""

from __future__ import annotations

from typing import Any

from labelqa_dask.core.task import Stats
from labelqa_dask.storage.record import MERGED, Json, Version
from pipelines.lineage import EXACT
from pipelines.plan import Plan


def frozen_statistics(plan: Plan, version: Version, manifest: Json, stats: Stats, basis: str) -> Json | None:
    """Of which version the statistics are, how many examples they count, and how far each would have moved.

    What would have moved is known of the passes that every run makes, each given the frozen ones before it. None where
    statistics are those of the data.
    """
    if manifest["statistics"] == EXACT:
        return None
    now: dict[str, Any] = {}
    for step in plan.task.passes(plan.params):
        state = version.read_state(step.name, step.state, basis, MERGED) if step.examples is None else None
        now[step.name] = step.result(state, plan.params, stats)
    then, now = (_numbers(plan.task.statistics(plan.params, each)) for each in (stats, now))
    moved = {name: _largest(values, now[name]) for name, values in then.items() if name in now}
    of = manifest["statistics"]
    return {"statistics_of": of["of"], "examples": of["examples"], "moved": moved}


def remarks(frozen: Json | None) -> list[str]:
    """That scores rest on the statistics of other data, for people."""
    if frozen is None:
        return []
    moved = []
    for name, found in frozen["moved"].items():
        of_class = "" if found["at"] is None else f" of class {found['at']}"
        moved.append(f"{name}{of_class} from {found['from']:.6g} to {found['to']:.6g}")
    return [
        f"Scores rest on the statistics of {frozen['statistics_of']}, of {frozen['examples']:,} examples. "
        f"Those of these data would be other by at most: {'; '.join(moved) or 'nothing'}."
    ]


def _numbers(told: Json) -> dict[str, list[float | None]]:
    """What is told in numbers, by name: a list of one for a number."""
    lists = {name: value if isinstance(value, list) else [value] for name, value in told.items()}
    return {
        name: values
        for name, values in lists.items()
        if all(isinstance(value, int | float | None) for value in values) and any(value is not None for value in values)
    }


def _largest(then: list[float | None], now: list[float | None]) -> Json:
    """The largest change among numbers, and where it is in a list of several."""
    changes = [
        (abs(b - a), i) for i, (a, b) in enumerate(zip(then, now, strict=True)) if a is not None and b is not None
    ]
    _, at = max(changes, key=lambda change: change[0], default=(0.0, 0))
    return {"from": then[at], "to": now[at], "at": at if len(then) > 1 else None}
