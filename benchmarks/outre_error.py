"""Error of the field against its number of patches, the plot of docs/outre.md: `python -m benchmarks.outre_error`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from labelqa_dask.core.blocks import Whole, reduce_arrays, score_arrays
from labelqa_dask.regression import TASK
from tests.strategies import regression_data

ROWS = 20_000
KINDS = ("normal", "heavy-tailed", "log-normal", "clustered", "ratings", "clipped ratings")
TOLERANCES = (3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5)
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")
PLOT = Path(__file__).parents[1] / "docs" / "outre_error.svg"

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 170, 20, 50


def errors(kind: str) -> list[tuple[int, float, float]]:
    """Patches, largest error of a score, and the error that was estimated, for each tolerance."""
    labels, predictions = regression_data(ROWS, kind)
    whole = Whole({"labels": labels, "predictions": predictions}, {"example": ROWS})

    def scores(**settings: Any) -> tuple[Any, Any]:
        params = TASK.params(**settings)
        stats = reduce_arrays(TASK, whole, params)
        return score_arrays(TASK, whole, params, stats)["label_quality_score"], stats

    exact, _ = scores(neighbors="exact")
    found = []
    for tolerance in TOLERANCES:
        field, stats = scores(neighbors="field", tolerance=tolerance)
        found.append((len(stats["count"].patches), float(np.abs(field - exact).max()), stats["count"].error))
    return found


def plot(series: dict[str, list[tuple[int, float, float]]]) -> str:
    """Lines for the errors, dashed ones for what was estimated, on logarithmic axes."""
    points = [point for line in series.values() for point in line]
    x_low, x_high = _decades([patches for patches, _, _ in points])
    y_low, y_high = _decades([error for _, *errors in points for error in errors])

    def x(patches: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (math.log10(patches) - x_low) / (x_high - x_low)

    def y(error: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (math.log10(error) - y_low) / (y_high - y_low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="13" fill="#444"><rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
    ]
    for decade in range(x_low, x_high + 1):
        at = x(10**decade)
        parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#ddd"/>')
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{10**decade:,}</text>')
    for decade in range(y_low, y_high + 1):
        at = y(10.0**decade)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">1e{decade}</text>')
    for (kind, line), colour in zip(series.items(), COLOURS, strict=True):
        for column, dashes in ((1, ""), (2, ' stroke-dasharray="3 4"')):
            path = " ".join(f"{x(point[0]):.1f},{y(point[column]):.1f}" for point in line)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>')
        at = TOP + 20 + 22 * list(series).index(kind)
        parts.append(f'<text x="{WIDTH - RIGHT + 16}" y="{at}" fill="{colour}">{kind}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT + 16}" y="{TOP + 160}">dashed: estimated</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">patches</text>')
    parts.append(f'<text x="16" y="{HEIGHT / 2}" transform="rotate(-90 16 {HEIGHT / 2})">error of a score</text></svg>')
    return "\n".join(parts) + "\n"


def _decades(values: list[Any]) -> tuple[int, int]:
    return math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))


if __name__ == "__main__":
    measured = {kind: errors(kind) for kind in KINDS}
    for kind, line in measured.items():
        for tolerance, (patches, error, estimate) in zip(TOLERANCES, line, strict=True):
            print(f"{kind:14} {tolerance:.0e}: {patches:6,} patches, error {error:.1e}, estimated {estimate:.1e}")
    PLOT.write_text(plot(measured))
