"""Label quality of regression data: one number and one predicted number for each example.

A label is suspicious where it is far from what the model, out of sample, predicts; OUTRE takes into account that errors
of some size are usual, and that they may be usual for some labels only.

Formulas, with `y` the label, `r = prediction - label`:

- residual: `exp(-|r|)`
- OUTRE: every example is a point `((y - mean y) / std y, residual_scale (r - mean r) / std r)` in a plane of features;
  `d` is its mean distance to the `k = ceil(frac_neighbors n)` nearest points, itself included; the score is
  `exp(-d / median d)`.

Source: Zhou, Mueller, Kumar, Wang and Lei, "Detecting Errors in Numerical Data via any Regression Model",
arXiv:2305.16583 (2023), and the scores named OUTRE in cleanlab. The numbers of `neighbors="exact"` agree with
cleanlab 2.9.

With `k` a share of `n`, lists of neighbours are quadratic. `exact` computes every distance, in bounded memory; `field`
computes the mean distance as what it is, a smooth function on the plane, and its cost does not grow with `n`:
see `labelqa_dask.regression.field`. `auto` is exact while that takes about a second.

Passes over the input. `residual`: one. `exact`: two, the rows and their scores. `field`: three. Moments and a sample
share the first; the second counts the rows into cells, which cannot be cut sensibly before the sample is known; the
third scores the rows, which no state of bounded size could carry.

Axes: n = examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from labelqa_dask.core import public
from labelqa_dask.core.charts import Chart, Density, Distribution
from labelqa_dask.core.class_scores import ClassScores
from labelqa_dask.core.extras import not_installed
from labelqa_dask.core.kernels import Array
from labelqa_dask.core.task import ArraySpec, Block, Params, Pass, Stats, Task
from labelqa_dask.regression.exact import ExactScores, Points
from labelqa_dask.regression.field import Field as DistanceField
from labelqa_dask.regression.field import FieldSettings
from labelqa_dask.regression.grid import Grid, count_cells
from labelqa_dask.regression.neighbors import LocalDistances, LocalScores, SampledDistances, Shards, is_installed
from labelqa_dask.regression.rows import (
    Rows,
    as_scores,
    features_per_unit,
    read,
    residual_scores,
    row_hashes,
    scores_of_distances,
)

Method = Literal["outre", "residual"]
Scaling = Literal["median", "none"]
Neighbors = Literal["auto", "exact", "field", "pynndescent"]

EVERY_ROW = int(np.iinfo(np.int64).max)
SAMPLE_ROWS = 1 << 14
"""How many rows at most are kept to lay a grid by. Where these are all, `auto` is exact: that takes 0.15 seconds on two
cores."""
ROW_BYTES = 200
"""Memory of a row where all are held, at the peak: sorted, merged, and cut into leaves or shards."""
PYNNDESCENT_BYTES = 672 << 20
"""Measured: what compiling the kernels of pynndescent takes, and the index of a shard."""


class RegressionParams(Params):
    """Parameters of regression scores."""

    method: Method = "outre"
    residual_scale: float = Field(default=5.0, gt=0, allow_inf_nan=False)
    frac_neighbors: float = Field(default=0.5, gt=0, le=1)
    distance_scaling: Scaling = "median"
    neighbors: Neighbors = "auto"
    n_neighbors: int | None = Field(default=None, ge=1)
    tolerance: float = Field(default=1e-3, gt=0, lt=1)

    @model_validator(mode="after")
    def _neighbours_are_for_outre(self) -> Self:
        changed = [
            name
            for name, field in type(self).model_fields.items()
            if name != "method" and getattr(self, name) != field.default
        ]
        if self.method == "residual" and changed:
            raise ValueError(f"{' and '.join(changed)} belong to method outre; leave them out for residual")
        if self.n_neighbors is not None and (self.neighbors != "pynndescent" or "frac_neighbors" in changed):
            raise ValueError("n_neighbors belongs to neighbors pynndescent, in place of frac_neighbors")
        if self.neighbors == "pynndescent" and not is_installed():
            raise ValueError(str(not_installed("pynndescent", "pynndescent", "neighbors")))
        return self


def get_label_quality_scores(
    labels: Any,
    predictions: Any,
    *,
    method: Method = "outre",
    residual_scale: float = 5.0,
    frac_neighbors: float = 0.5,
    distance_scaling: Scaling = "median",
    neighbors: Neighbors = "auto",
    n_neighbors: int | None = None,
    tolerance: float = 1e-3,
) -> Any:
    """Score how likely each given number is to be right.

    Parameters
    ----------
    labels : (n,) array of numbers
        Given labels; NumPy, Dask or xarray.
    predictions : (n,) array of numbers
        Predicted labels, out of sample.
    method : {"outre", "residual"}
    residual_scale : float
        How much more a deviation of the residual counts than one of the label, each in its standard deviation.
    frac_neighbors : float
        The share of all examples that are neighbours, in (0, 1].
    distance_scaling : {"median", "none"}
        Divide distances by their median, or not.
    neighbors : {"auto", "exact", "field", "pynndescent"}
        How mean distances are computed: every distance; as a smooth field, at any n; up to 16,384 examples exactly
        and above as a field; or from neighbours that an index has found, approximately, in a sample of 2,048 examples
        (needs the package pynndescent).
    n_neighbors : int, optional
        With pynndescent: a fixed number of neighbours, among all examples, in place of a share of them.
    tolerance : float
        Largest error of a score that the field aims for.

    Returns
    -------
    (n,) float array
        Scores in [0, 1], lower = more likely wrong, of the kind of the inputs. Dask input computes nothing yet.
        float64 for float64 (and 64-bit integer) predictions, else float32.

    Raises
    ------
    InvalidInput
        A ValueError that names the array, the example and the reason. For Dask input, what concerns values is raised
        when the result is computed.

    Examples
    --------
    >>> import numpy as np
    >>> get_label_quality_scores(np.array([1, 2, 3, 4]), np.array([2, 2, 5, 4.1])).round(8)
    array([0.2162406 , 0.62585509, 0.20275104, 0.62585509])
    """
    params = TASK.params(
        method=method,
        residual_scale=residual_scale,
        frac_neighbors=frac_neighbors,
        distance_scaling=distance_scaling,
        neighbors=neighbors,
        n_neighbors=n_neighbors,
        tolerance=tolerance,
    )
    outputs = public.run(TASK, {"labels": labels, "predictions": predictions}, params)
    return outputs["label_quality_score"]


def survey(block: Block, params: RegressionParams, stats: Stats) -> Rows:
    """State of one block."""
    return Rows.of(block, EVERY_ROW if _holds_every_row(params) else SAMPLE_ROWS)


def _holds_every_row(params: RegressionParams) -> bool:
    return params.neighbors == "exact" or params.n_neighbors is not None


def _is_scaled(params: RegressionParams) -> bool:
    return params.distance_scaling == "median"


@dataclass(frozen=True)
class Plane:
    """Rows that are too many to be compared with each other, and a grid to count them in."""

    rows: Rows
    grid: Grid


def surveyed(rows: Rows, params: RegressionParams, stats: Stats) -> Any:
    """Exact scores or `SampledDistances` where every row is at hand, `Shards`, or else a `Plane`."""
    scaled = _is_scaled(params)
    if params.n_neighbors is not None:
        return Shards.of(rows, params.residual_scale, params.n_neighbors, scaled)
    if params.neighbors == "field" or not rows.complete:
        return Plane(rows, Grid.of(rows))
    per_unit = features_per_unit(rows.deviation, params.residual_scale)
    points = Points.of(rows.labels, rows.residuals)
    return _sampled(ExactScores.of(points, per_unit, params.frac_neighbors, scaled), rows, params)


@dataclass(frozen=True)
class Count:
    """Rows counted into the cells of a grid: (cells, 8) int64, as `count_cells` has them."""

    sums: NDArray[np.int64]

    def merge(self, other: Self) -> Self:
        return type(self)(self.sums + other.sums)

    def result(self) -> NDArray[np.int64]:
        return self.sums


def count(block: Block, params: RegressionParams, stats: Stats) -> Count:
    """State of one block."""
    return Count(count_cells(*read(block), stats["survey"].grid))


def counted(state: Count, params: RegressionParams, stats: Stats) -> Any:
    """`DistanceField`, or `SampledDistances`."""
    plane: Plane = stats["survey"]
    settings = FieldSettings(params.residual_scale, params.frac_neighbors, _is_scaled(params), params.tolerance)
    return _sampled(DistanceField.of(plane.rows, state.sums, plane.grid, settings), plane.rows, params)


def _sampled(distances: ExactScores | DistanceField, rows: Rows, params: RegressionParams) -> Any:
    """The distances, or those to the nearest of a sample where these are wanted."""
    if params.neighbors != "pynndescent":
        return distances
    return SampledDistances.of(rows, distances, params.residual_scale, params.frac_neighbors, _is_scaled(params))


def unless_settled(params: RegressionParams, stats: Stats, n: int) -> range | None:
    """The cells need every row; where the survey settled everything, none."""
    return range(n) if isinstance(stats["survey"], Plane) else None


def search(block: Block, params: RegressionParams, stats: Stats) -> LocalDistances:
    """State of one block: of the shards of which it has the owner's row, wherever their own rows are."""
    shards: Shards = stats["survey"]
    state = shards.no_work()
    for shard in np.flatnonzero(np.isin(shards.owners, row_hashes(block))):
        state = state.merge(shards.work_on(int(shard)))
    return state


def searched(state: LocalDistances, params: RegressionParams, stats: Stats) -> LocalScores:
    """What the shards have found together."""
    shards: Shards = stats["survey"]
    return LocalScores.of(state, shards.n_neighbors, shards.scaled)


def _distances(stats: Stats) -> Any:
    """What the passes have found."""
    return next(stats[name] for name in ("search", "count", "survey") if stats.get(name) is not None)


class Regression(Task[RegressionParams]):
    """Labels (n,), predictions (n,) -> label_quality_score (n,)."""

    params_model = RegressionParams
    inputs: ClassVar = (
        ArraySpec("labels", ("example",), "values"),
        ArraySpec("predictions", ("example",), "values"),
    )
    outputs: ClassVar = (ArraySpec("label_quality_score", ("example",), "scores"),)
    ranked_by = "label_quality_score"

    def passes(self, params: RegressionParams) -> tuple[Pass[RegressionParams], ...]:
        if params.method == "residual":
            return ()
        steps = (Pass("survey", Rows, survey, by_row=True, settle=surveyed),)
        if params.n_neighbors is not None:
            return (*steps, Pass("search", LocalDistances, search, settle=searched))
        if params.neighbors == "exact":
            return steps
        return (*steps, Pass("count", Count, count, unless_settled, settle=counted))

    def held_bytes(self, params: RegressionParams, n: int) -> int:
        if params.method == "residual":
            return 0
        library = PYNNDESCENT_BYTES if params.neighbors == "pynndescent" else 0
        return library + (ROW_BYTES * n if _holds_every_row(params) else 0)

    def scores_unseen(self, params: RegressionParams) -> bool:
        """Distances are known where rows were counted only."""
        return params.method == "residual"

    def score(self, block: Block, params: RegressionParams, stats: Stats) -> dict[str, Any]:
        if params.method == "residual":
            scores = residual_scores(block)
        else:
            found = _distances(stats)
            scores = scores_of_distances(found.distances_of(*read(block)), found.scale)
        return {"label_quality_score": as_scores(scores, block["predictions"])}

    def statistics(self, params: RegressionParams, stats: Stats) -> dict[str, Any]:
        return {} if params.method == "residual" else _distances(stats).summary(params.tolerance)

    def remarks(self, params: RegressionParams, stats: Stats) -> tuple[str, ...]:
        return () if params.method == "residual" else _distances(stats).remarks(params.tolerance)

    def charts(self, params: RegressionParams, stats: Stats) -> tuple[Chart, ...]:
        if params.method == "residual":
            return ()
        found = _distances(stats)
        labels, residuals, distances, weight = found.groups()
        scores = scores_of_distances(distances, found.scale)
        predictions = labels + residuals
        return (
            Density.of("Given and predicted", ("given label", "predicted"), labels, predictions, weight, scores),
            Distribution.of("Residuals", "predicted less given", residuals, weight),
        )

    def class_scores(self, block: Block, scores: Mapping[str, Any]) -> ClassScores | None:
        return None

    def describe(self, block: Block, scores: Mapping[str, Any], examples: NDArray[np.intp]) -> Mapping[str, Array]:
        given, predicted = block["labels"][examples], block["predictions"][examples]
        return {
            "given_label": given.astype(np.float64),
            "predicted_label": predicted.astype(np.float64),
        }


TASK = Regression()
