"""Regression scores by hand, at their limits, and the field's promises."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from itertools import pairwise
from typing import Any

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labelqa_dask.core.blocks import Whole, reduce_arrays, score_arrays
from labelqa_dask.core.errors import InvalidConfig, InvalidInput
from labelqa_dask.core.task import Block, merge_states
from labelqa_dask.regression import TASK, get_label_quality_scores
from labelqa_dask.regression.exact import mean_distances
from labelqa_dask.regression.grid import Axis, Grid, Masses, count_cells
from labelqa_dask.regression.median import Distances
from labelqa_dask.regression.patches import Plane
from labelqa_dask.regression.rows import Rows, features_per_unit, scores_of_distances
from labelqa_dask.regression.sources import Sources
from tests.strategies import cuts, regression_data, seeded

LABELS = np.array([1, 2, 3, 4])
PREDICTIONS = np.array([2, 2, 5, 4.1])


@pytest.mark.parametrize("neighbors", ["auto", "exact", "field", "pynndescent"])
def test_the_worked_example_holds_however_distances_are_computed(neighbors: Any) -> None:
    scores = get_label_quality_scores(LABELS, PREDICTIONS, neighbors=neighbors)
    np.testing.assert_allclose(scores, [0.2162406, 0.62585509, 0.20275104, 0.62585509], atol=1e-8)
    scores = get_label_quality_scores(
        LABELS, PREDICTIONS, residual_scale=10, distance_scaling="none", neighbors=neighbors
    )
    np.testing.assert_allclose(scores, [0.00323821, 0.33692597, 0.00191686, 0.33692597], atol=1e-8)


def test_residual_scores_fall_with_the_residual() -> None:
    scores = get_label_quality_scores(LABELS, PREDICTIONS, method="residual")
    np.testing.assert_allclose(scores, np.exp([-1, 0, -2, -0.1]), rtol=1e-12)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("neighbors", ["auto", "exact", "field", "pynndescent"])
def test_one_neighbour_is_the_example_itself(n: int, neighbors: Any) -> None:
    labels, predictions = regression_data(n)
    assert get_label_quality_scores(labels, predictions, neighbors=neighbors).tolist() == [1.0] * n


@pytest.mark.parametrize("neighbors", ["exact", "field"])
def test_every_example_can_be_a_neighbour(neighbors: Any) -> None:
    labels, predictions = regression_data(70)
    x, y = (labels - labels.mean()) / labels.std(), predictions - labels
    y = 5 * (y - y.mean()) / y.std()
    distances = np.hypot(x - x[:, None], y - y[:, None]).mean(axis=1)
    scores = get_label_quality_scores(labels, predictions, frac_neighbors=1.0, neighbors=neighbors)
    atol = 1e-12 if neighbors == "exact" else 1e-3
    np.testing.assert_allclose(scores, np.exp(-distances / np.median(distances)), rtol=0, atol=atol)


@pytest.mark.parametrize("neighbors", ["exact", "field"])
def test_a_giant_outlier_leaves_all_others_in_one_place(neighbors: Any) -> None:
    labels, predictions = regression_data(2000)
    labels[17] = 1e12
    scores = get_label_quality_scores(labels, predictions, neighbors=neighbors)
    assert scores[17] < 1e-300
    assert (np.delete(scores, 17) == 1).all()


@pytest.mark.parametrize("neighbors", ["exact", "field"])
def test_places_that_many_share_are_told_apart(neighbors: Any) -> None:
    labels, predictions = (np.rint(values) for values in regression_data(3000, "ratings"))
    found = get_label_quality_scores(labels, predictions, neighbors=neighbors)
    exact = get_label_quality_scores(labels, predictions, neighbors="exact")
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-9)


def test_a_polynomial_far_from_all_rows_may_be_below_zero() -> None:
    labels, predictions = regression_data(17, seed=1)
    residuals = predictions - labels
    labels[0] = 1e12
    predictions = labels + residuals
    scores = get_label_quality_scores(labels, predictions, neighbors="field", frac_neighbors=0.05)
    assert np.isfinite(scores).all()  # and nothing has warned of an overflow


def test_zeros_in_excess_do_not_upset_the_field() -> None:
    rng = np.random.default_rng(0)
    zero = rng.random(5000) < 0.5
    labels = np.where(zero, 0, rng.gamma(2, size=5000))
    predictions = np.where(zero & (rng.random(5000) < 0.7), 0, np.maximum(labels + rng.normal(size=5000) / 2, 0))
    exact, field = (get_label_quality_scores(labels, predictions, neighbors=each) for each in ("exact", "field"))
    assert np.abs(field - exact).max() <= 1e-3


def test_float32_labels_far_from_zero_lose_no_digits() -> None:
    labels, predictions = regression_data(500)
    near = (labels * 64).astype(np.float32).round() / 64, (predictions * 64).astype(np.float32).round() / 64
    far = [values + np.float32(4096) for values in near]
    np.testing.assert_allclose(get_label_quality_scores(*far), get_label_quality_scores(*near), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["labels", "predictions"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e200])
@pytest.mark.parametrize("method", ["outre", "residual"])
@pytest.mark.parametrize(("row", "named"), [(23, "23"), (1723, "1,723")])
def test_what_is_not_finite_is_refused_with_its_row(name: str, value: float, method: Any, row: int, named: str) -> None:
    arrays = dict(zip(("labels", "predictions"), regression_data(2 * row), strict=True))
    arrays[name][row] = value
    with pytest.raises(InvalidInput, match=f"{name}, example {named}: value is "):
        get_label_quality_scores(**arrays, method=method)
    lazy = {key: da.from_array(values, chunks=row // 2) for key, values in arrays.items()}
    with pytest.raises(InvalidInput, match=f"{name}, example {named}: value is "):
        get_label_quality_scores(**lazy, method=method).compute(scheduler="sync")


@pytest.mark.parametrize("name", ["labels", "predictions"])
def test_what_is_not_finite_is_refused_in_float32_too(name: str) -> None:
    arrays = {
        key: values.astype(np.float32)
        for key, values in zip(("labels", "predictions"), regression_data(40), strict=True)
    }
    arrays[name][23] = np.inf
    for neighbors in ("exact", "field"):
        with pytest.raises(InvalidInput, match=f"{name}, example 23: value is inf"):
            get_label_quality_scores(**arrays, neighbors=neighbors)


@pytest.mark.parametrize("neighbors", ["exact", "field"])
@pytest.mark.parametrize("read_only", [("labels",), ("predictions",), ("labels", "predictions")])
def test_arrays_may_be_read_only(neighbors: Any, read_only: tuple[str, ...]) -> None:
    """As those are that Parquet files are read as, where a column is in one piece."""
    arrays = dict(zip(("labels", "predictions"), regression_data(600), strict=True))
    scores = get_label_quality_scores(**arrays, neighbors=neighbors)
    for name in read_only:
        arrays[name].flags.writeable = False
    np.testing.assert_array_equal(get_label_quality_scores(**arrays, neighbors=neighbors), scores)


def test_what_is_not_a_number_is_refused() -> None:
    with pytest.raises(InvalidInput, match="labels must be numbers"):
        get_label_quality_scores(np.array(["a", "b"]), np.array([1.0, 2.0]))


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"frac_neighbors": 0}, "frac_neighbors"),
        ({"frac_neighbors": 1.5}, "frac_neighbors"),
        ({"residual_scale": 0}, "residual_scale"),
        ({"tolerance": 0}, "tolerance"),
        ({"method": "residual", "neighbors": "field"}, "neighbors belong to method outre"),
        ({"n_neighbors": 5}, "n_neighbors belongs to neighbors pynndescent"),
        ({"n_neighbors": 5, "neighbors": "pynndescent", "frac_neighbors": 0.1}, "in place of frac_neighbors"),
        ({"n_neighbors": 0, "neighbors": "pynndescent"}, "n_neighbors"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(InvalidConfig, match=what):
        get_label_quality_scores(LABELS, PREDICTIONS, **settings)


@settings(parent=seeded, max_examples=15)
@given(cuts(3000), st.sampled_from(["normal", "log-normal", "ratings", "clipped ratings", "constant"]))
def test_the_field_does_not_depend_on_chunks(sizes: tuple[int, ...], kind: str) -> None:
    labels, predictions = regression_data(3000, kind)
    params = TASK.params(neighbors="field")

    def field(bounds: list[int]) -> Any:
        parts = [
            Block({"labels": labels[a:b], "predictions": predictions[a:b]}, {"example": a}) for a, b in pairwise(bounds)
        ]
        stats: dict[str, Any] = {}
        for step in TASK.passes(params):
            state = reduce(merge_states, (step.reduce(part, params, stats) for part in parts))
            stats[step.name] = step.result(state, params, stats)
        return stats["count"]

    whole, cut = field([0, 3000]), field([0, *np.cumsum(sizes).tolist()])
    residuals = predictions - labels
    np.testing.assert_allclose(
        scores_of_distances(cut.distances_of(labels, residuals), cut.scale),
        scores_of_distances(whole.distances_of(labels, residuals), whole.scale),
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.parametrize("size", [5e-324, 1e-310, 1e-200, 1e-99, 1e-9])
def test_labels_of_any_size_have_the_scores_of_every_distance(size: float) -> None:
    labels, predictions = (size * values for values in regression_data(3000))
    exact, field = (get_label_quality_scores(labels, predictions, neighbors=how) for how in ("exact", "field"))
    np.testing.assert_allclose(field, exact, rtol=0, atol=1e-3)


def test_the_sample_is_drawn_by_row_number_alone() -> None:
    labels, predictions = regression_data(5000)
    whole = Rows.of(Block({"labels": labels, "predictions": predictions}, {"example": 0}), 100)
    parts = [
        Rows.of(Block({"labels": labels[a:b], "predictions": predictions[a:b]}, {"example": a}), 100)
        for a, b in pairwise([0, 40, 2000, 4100, 5000])
    ]
    merged = parts[3].merge(parts[1]).merge(parts[0].merge(parts[2]))
    assert 50 <= len(whole.labels) <= 100
    assert [*whole.lowest, *whole.highest] == [
        f(values) for f in (np.min, np.max) for values in (labels, predictions - labels)
    ]
    assert (merged.level, sorted(merged.hashes)) == (whole.level, sorted(whole.hashes))
    np.testing.assert_allclose(merged.deviation, [labels.std(), (predictions - labels).std()], rtol=1e-12)


def test_moments_of_many_rows_far_from_zero_lose_no_digits() -> None:
    labels, predictions = (values + 1e6 for values in regression_data(200_000))
    survey = Rows.of(Block({"labels": labels, "predictions": predictions}, {"example": 0}), 100)
    for column, values in enumerate((labels, predictions - labels)):
        exact = values.astype(np.longdouble)
        np.testing.assert_allclose(survey.mean[column], float(exact.mean()), rtol=1e-15, atol=1e-14)
        np.testing.assert_allclose(survey.squares[column], float(((exact - exact.mean()) ** 2).sum()), rtol=1e-13)


def test_a_field_that_misses_its_tolerance_says_so() -> None:
    labels, predictions = regression_data(3000)
    params = TASK.params(neighbors="field")
    whole = Whole({"labels": labels, "predictions": predictions}, {"example": 3000})
    stats = reduce_arrays(TASK, whole, params)
    assert TASK.remarks(params, stats) == ()
    assert TASK.statistics(params, stats)["tolerance_met"]
    missed = {**stats, "count": replace(stats["count"], error=0.02)}
    assert "Scores may be off by 0.02" in TASK.remarks(params, missed)[0]
    assert not TASK.statistics(params, missed)["tolerance_met"]


@pytest.mark.parametrize("seed", range(3))
def test_the_scale_is_the_median_even_where_few_rows_lie_around_it(seed: int) -> None:
    labels, predictions = regression_data(100_000, "clustered", seed)
    stats = reduce_arrays(
        TASK,
        Whole({"labels": labels, "predictions": predictions}, {"example": len(labels)}),
        TASK.params(neighbors="field"),
    )
    field = stats["count"]
    distances = field.distances_of(labels, predictions - labels)
    assert abs(field.scale / np.median(distances) - 1) < 1e-3


@pytest.mark.parametrize("kind", ["normal", "clipped ratings", "zeros in excess"])
@pytest.mark.parametrize("seed", range(3))
def test_the_error_of_a_field_is_about_what_was_estimated(kind: str, seed: int) -> None:
    labels, predictions = regression_data(5000, kind, seed)
    params = TASK.params(neighbors="field")
    whole = Whole({"labels": labels, "predictions": predictions}, {"example": len(labels)})
    stats = reduce_arrays(TASK, whole, params)
    exact = get_label_quality_scores(labels, predictions, neighbors="exact")
    error = np.abs(score_arrays(TASK, whole, params, stats)["label_quality_score"] - exact).max()
    assert stats["count"].error / 20 < error < 1.5 * stats["count"].error


def test_the_field_is_known_where_all_rows_are_equally_far() -> None:
    none, one = np.zeros(2), np.ones(2)
    sources = Sources(Masses(one, none, none, none, none, none), 1.0)
    for x in (np.array([1.0, 1e3]), np.array([3.0, 1e84]), np.array([1e84, 3.0])):
        np.testing.assert_allclose(sources.field(x, none)[:, 0], x)


def test_a_place_may_hold_any_number_of_rows() -> None:
    none = np.zeros(3)
    weight, x = np.array([5e9, 5e9, 1.0]), np.array([0.0, 2.0, 7.0])
    for k in (1e5, 4e9, 5e9, 7e9):
        field = Sources(Masses(weight, x, none, none, none, none), k).field(np.array([0.0, 3.0]), np.zeros(2))
        beyond = max(k - 5e9, 0.0)
        np.testing.assert_allclose(field[:, 0], [2 * beyond / k, (5e9 + 3 * beyond) / k if beyond else 1.0])
        np.testing.assert_allclose(field[:, 1], [-beyond / k, 1.0])


@pytest.mark.parametrize("kind", ["clustered", "heavy-tailed", "log-normal", "zeros in excess"])
def test_the_median_is_no_farther_off_than_estimated(kind: str) -> None:
    labels, predictions = regression_data(50_000, kind)
    residuals = predictions - labels
    rows = Rows.of(Block({"labels": labels, "predictions": predictions}, {"example": 0}), 1 << 14)
    plane = Plane.of(Grid.of(rows), features_per_unit(rows.deviation, 5.0))
    masses, index = Masses.of(count_cells(labels, residuals, plane.grid), plane.grid, plane.per_unit)

    def distances(x: Any, y: Any) -> Any:
        return 3 + 0.6 * x - 0.3 * y

    slopes = np.tile([0.6, -0.3], (len(index), 1))
    median, off = Distances.of(masses, index, plane, distances(masses.x, masses.y), slopes).median()
    assert abs(median - np.median(distances(*plane.places(labels, residuals)))) <= off < 0.02


def test_rows_next_to_a_place_of_many_keep_their_rank() -> None:
    labels, predictions = regression_data(5000, "clipped ratings", 1)
    exact, field = (get_label_quality_scores(labels, predictions, neighbors=how) for how in ("exact", "field"))
    clipped = exact[(labels == 5) & (predictions == 5)][0]
    beside = np.abs(exact - clipped) < 1e-3
    assert np.count_nonzero(beside & (exact != clipped)) >= 5
    np.testing.assert_allclose(field[beside] - field[exact == clipped][0], exact[beside] - clipped, rtol=0, atol=6e-6)


def test_intervals_hold_their_values() -> None:
    values = np.concatenate([regression_data(500)[0], np.full(200, 0.25), [1e9]])
    axis = Axis.of(values, values.min(), values.max(), 64)
    assert axis.lines[0] <= values.min()
    assert axis.lines[-1] > values.max()
    held = np.searchsorted(axis.lines, 0.25, side="right") - 1
    assert axis.widths[held] == 0
    grid = Grid(axis, axis)
    counts = count_cells(values, values, grid)[:, 0].reshape(len(axis), len(axis))
    expected = np.bincount(np.searchsorted(axis.lines, values, side="right") - 1, minlength=len(axis))
    np.testing.assert_array_equal(np.diag(counts), expected)
    assert counts.sum() == len(values)


def test_the_field_of_single_rows_is_the_exact_distance_and_its_gradient_the_slope() -> None:
    labels, predictions = regression_data(300)
    x, y = labels, predictions - labels
    nothing = np.zeros(300)
    sources = Sources(Masses(np.ones(300), x, y, nothing, nothing, nothing), 150.0)
    field = sources.field(x, y)
    np.testing.assert_allclose(field[:, 0], mean_distances(x, y, np.ones(300), 150.0), rtol=1e-12)
    px, py, step = np.array([0.3, 2.0]), np.array([0.1, -1.5]), 1e-6
    slope = (sources.field(px + step, py)[:, 0] - sources.field(px - step, py)[:, 0]) / (2 * step)
    np.testing.assert_allclose(sources.field(px, py)[:, 1], slope, atol=1e-6)
