"""Stage 5, publish: write what readers want, and last of all the pointer that lets them find it.

What is published depends on the input and the settings alone: no clock, no name of a machine, no order of events. The
report says besides what has changed since the version before.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from labelqa_dask.core.errors import LabelQAError
from labelqa_dask.core.kernels import Array
from labelqa_dask.core.summary import HISTOGRAM_BINS, Summary
from labelqa_dask.core.task import Block, Stats
from labelqa_dask.storage.record import Json, Version, basis_of, dump_json
from labelqa_dask.storage.sinks import parquet_bytes
from pipelines.compare import Comparison, Found, compare, published_versions
from pipelines.expect import evaluate
from pipelines.frozen import frozen_statistics, remarks
from pipelines.group import facts
from pipelines.layout import Region
from pipelines.plan import Plan
from pipelines.regions import make_job
from pipelines.report import Preview, render_report
from pipelines.select import Selection
from pipelines.statistics import statistics

_MOST_LISTED = 100


def publish(plan: Plan, version: Version, manifest: Json, selection: Selection, check: Callable[[], None]) -> Json:
    """Write the list of the worst, the classes, the summary and the report; then make the version the latest.

    What checks that this run may still publish is called just before.
    """
    basis = basis_of(manifest["digest"], [region.region for region in selection.bad])
    stats = statistics(plan.task.name, plan.params, plan.counted, version, basis, None)
    frozen = frozen_statistics(plan, version, manifest, stats, basis)
    summary = _summary(plan, manifest, selection, stats, frozen, _crowd(plan, version, manifest["digest"], stats))
    tables = _tables(plan, version, stats, manifest["digest"], basis)
    findings = evaluate(plan.config.expect, summary, tables.get("annotators"))
    summary["expectations"] = [finding.to_json() for finding in findings]
    charts = plan.task.charts(plan.params, stats)
    worst = worst_table(plan, selection.summary)
    since = _since(version, Found(version.name, summary, worst, tables.get("annotators")))
    files = {"worst.parquet": parquet_bytes(_typed(pa.Table.from_pandas(worst, preserve_index=False)))}
    classes = _classes_table(summary)
    if classes is not None:
        files["classes.parquet"] = parquet_bytes(pa.Table.from_pandas(classes, preserve_index=False))
    for name, table in tables.items():
        files[f"{name}.parquet"] = parquet_bytes(pa.Table.from_pandas(table, preserve_index=False))
    files["summary.json"] = dump_json(summary)
    files["report.html"] = render_report(summary, worst, _previews(selection), charts, tables, since).encode()
    told = {"task": plan.task.name, "published": datetime.now(UTC).isoformat(timespec="seconds")}
    written_before = ["_run/manifest.json", "_run/timings.json", *plan.sink(version.location).metadata()]
    version.publish(files, written_before, told, check)
    return summary


def _since(version: Version, found: Found) -> Comparison | None:
    """What has changed since the version before; None where there is none that can be read and compared."""
    before = [name for name in published_versions(version.out) if name < version.name]
    if not before:
        return None
    try:
        return compare(Found.read(Version(version.out, before[-1])), found)
    except (LabelQAError, ValueError, LookupError, TypeError, AttributeError):
        return None


def worst_table(plan: Plan, summary: Summary) -> pd.DataFrame:
    """The worst examples, worst first: row, id where there is one, score, and what the method says of each."""
    columns = dict(summary.worst.columns)
    table: dict[str, Any] = {"row": summary.worst.rows}
    if "id" in columns:
        table["id"] = columns.pop("id")
    described = {name: _with_missing(values) for name, values in columns.items()}
    return pd.DataFrame({**table, plan.task.ranked_by: summary.worst.scores, **described})


def _tables(plan: Plan, version: Version, stats: Stats, manifest: str, basis: str) -> dict[str, pd.DataFrame]:
    """What the method adds."""

    def first() -> Block:
        return next(make_job(plan, version, manifest, basis, Region("first", 0, 1)).blocks())

    return {name: pd.DataFrame(columns) for name, columns in plan.task.tables(plan.params, stats, first).items()}


def _typed(table: pa.Table) -> pa.Table:
    """The table, its lists those of class ids even where all of them are empty."""
    sets = pa.list_(pa.int64())
    types = (sets if pa.types.is_list(field.type) else field.type for field in table.schema)
    return table.cast(pa.schema([field.with_type(t) for field, t in zip(table.schema, types, strict=True)]))


def _with_missing(values: Array) -> Any:
    """Whole numbers with -1, which stands for none, as missing ones."""
    none = values < 0 if values.dtype.kind == "i" else np.zeros(len(values), bool)
    return pd.arrays.IntegerArray(values, none) if none.any() else values


def _summary(plan: Plan, manifest: Json, selection: Selection, stats: Stats, frozen: Json | None, crowd: Json) -> Json:
    summary, bad = selection.summary, selection.bad
    classes = None
    if summary.classes is not None:
        classes = {
            "unit": plan.task.class_unit,
            "count": summary.classes.count.tolist(),
            "mean_score": [_number(mean) for mean in summary.classes.result().tolist()],
            "names": None,
        }
    return {
        "task": plan.task.name,
        "params": manifest["params"],
        "examples": summary.examples,
        "quarantined": {
            "regions": len(bad),
            "examples": sum(region.stop - region.start for region in bad),
            "listed": [
                {"region": region.region, "rows": [region.start, region.stop], "reasons": list(region.reasons)}
                for region in bad[:_MOST_LISTED]
            ],
        },
        "score": {
            "name": plan.task.ranked_by,
            "mean": _number(summary.mean),
            "min": _number(summary.worst.scores[0]) if len(summary.worst.scores) else None,
            "histogram": {"low": 0.0, "high": 1.0, "bins": HISTOGRAM_BINS, "counts": summary.histogram.counts.tolist()},
        },
        "classes": classes,
        "issues": _issues(summary, plan.task.class_unit),
        "remarks": [*plan.task.remarks(plan.params, stats), *remarks(frozen)],
        "statistics": plan.task.statistics(plan.params, stats),
        "frozen": frozen,
        **crowd,
        "worst": len(summary.worst.rows),
        "inputs": _inputs(manifest),
        "output": manifest["output"],
        "regions": len(plan.layout.regions),
        "software": manifest["software"],
    }


def _crowd(plan: Plan, version: Version, manifest: str, stats: Stats) -> Json:
    """What is told of annotators, where there are several: what grouping left out, and how they agree."""
    found = facts(version, manifest)
    return {} if found is None else {"crowd": {**found, **plan.task.crowd(stats)}}


def _issues(summary: Summary, unit: str) -> Json | None:
    if summary.pairs is None:
        return None
    pairs = summary.pairs
    order = np.lexsort((pairs.suggested, pairs.given, -pairs.count))
    columns = {"given": pairs.given, "suggested": pairs.suggested, "count": pairs.count}
    return {
        "unit": unit,
        "count": int(pairs.count.sum()),
        "pairs": {name: values[order].tolist() for name, values in columns.items()},
    }


def _classes_table(summary: Json) -> pd.DataFrame | None:
    classes = summary["classes"]
    if classes is None:
        return None
    k = len(classes["count"])
    per_class = {
        name: values for name, values in summary["statistics"].items() if isinstance(values, list) and len(values) == k
    }
    scores = pd.array(classes["mean_score"], dtype="Float64")
    return pd.DataFrame({"class": range(k), "count": classes["count"], "mean_score": scores, **per_class})


def _previews(selection: Selection) -> list[Preview]:
    worst = selection.summary.worst
    ids = worst.columns["id"].tolist() if "id" in worst.columns else [None] * len(worst.rows)
    return [
        Preview(row, ids[i], float(worst.scores[i]), images.given, images.predicted, images.pixel_scores)
        for i, (row, images) in enumerate(selection.previews)
    ]


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _inputs(manifest: Json) -> Json:
    """What each input is, and the version that was read of those that have versions."""
    versions = manifest["versions"]
    return {
        name: {**told, **({"version": versions[name]} if name in versions else {})}
        for name, told in manifest["inputs"].items()
    }
