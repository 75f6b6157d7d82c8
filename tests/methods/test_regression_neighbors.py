"""Approximate nearest neighbours: what they find, how far from exact that is, and that no cut of the data shows.

The kernels of pynndescent compile for half a minute, once for all tests of this file.
"""

from __future__ import annotations

import pickle
from itertools import pairwise
from typing import Any

import dask.array as da
import numpy as np
import pytest
from numpy.typing import NDArray

from labelqa_dask.core import blocks
from labelqa_dask.core.errors import InvalidConfig
from labelqa_dask.core.task import Block
from labelqa_dask.regression import TASK, get_label_quality_scores, neighbors, search, survey, surveyed
from labelqa_dask.regression.neighbors import Index, LocalScores, SampledDistances, Shards
from tests.strategies import regression_data

Floats = NDArray[np.float64]


def features(labels: Floats, predictions: Floats) -> Floats:
    residuals = predictions - labels
    x, y = labels - labels.mean(), 5 * (residuals - residuals.mean())
    return np.stack([x / (labels.std() + 1e-100), y / (residuals.std() + 1e-100)], axis=1)


def nearest_means(places: Floats, reference: Floats, k: int) -> Floats:
    """Mean distance of each place to the k nearest of some others, by a plain sort."""
    return np.array([np.sort(np.hypot(*(reference - place).T))[:k].mean() for place in places])


def stats_of(labels: Floats, predictions: Floats, **settings: Any) -> dict[str, Any]:
    params = TASK.params(neighbors="pynndescent", **settings)
    whole = blocks.Whole({"labels": labels, "predictions": predictions}, {"example": len(labels)})
    return blocks.reduce_arrays(TASK, whole, params)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbors, "_LARGEST_SHARD", 400)


@pytest.mark.parametrize("kind", ["normal", "clustered", "ratings"])
def test_where_every_row_is_in_the_sample_scores_are_exact(kind: str) -> None:
    labels, predictions = regression_data(600, kind)
    exact, found = (get_label_quality_scores(labels, predictions, neighbors=each) for each in ("exact", "pynndescent"))
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-9)
    (checked,) = [each.checked for each in stats_of(labels, predictions).values() if each is not None]
    assert checked.recall == 1
    assert checked.largest_error < 1e-9


@pytest.mark.parametrize("complete", [True, False], ids=["all rows at hand", "a sample of them"])
def test_scores_are_those_of_the_reference_sample(complete: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbors, "REFERENCE_ROWS", 500)
    if not complete:
        monkeypatch.setattr("labelqa_dask.regression.SAMPLE_ROWS", 1000)
    labels, predictions = regression_data(3000, "heavy-tailed")
    stats = stats_of(labels, predictions, frac_neighbors=0.4)
    assert (stats["count"] is None) == complete
    found = stats["survey"] if complete else stats["count"]
    assert isinstance(found, SampledDistances)
    places = features(labels, predictions)
    residuals = predictions - labels
    order = np.lexsort((residuals, labels))
    reference = places[order][np.isin(labels[order], found.points.labels)]
    assert len(reference) == 500
    expected = nearest_means(places[:200], reference, 200)
    np.testing.assert_allclose(found.distances_of(labels[:200], residuals[:200]), expected, rtol=1e-9)
    assert found.scale == pytest.approx(np.median(nearest_means(reference, reference, 200)), rel=1e-9)

    # What is told of the error is what the error is.
    params = {"frac_neighbors": 0.4}
    exact = get_label_quality_scores(labels, predictions, neighbors="exact", **params)
    scores = get_label_quality_scores(labels, predictions, neighbors="pynndescent", **params)
    told = TASK.statistics(TASK.params(neighbors="pynndescent", **params), stats)
    assert (told["reference_rows"], told["n_neighbors"]) == (500, 200)
    assert told["recall"] > 0.99
    assert told["mean_error"] == pytest.approx(np.abs(scores - exact).mean(), rel=0.3)
    assert told["largest_error"] <= np.abs(scores - exact).max() + 1e-3
    assert "compared with exact" in TASK.remarks(TASK.params(neighbors="pynndescent"), stats)[0]


@pytest.mark.parametrize("settings", [{}, {"n_neighbors": 7}], ids=["sample", "all rows"])
@pytest.mark.usefixtures("small_shards")
def test_no_chunk_changes_a_score(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbors, "REFERENCE_ROWS", 400)
    labels, predictions = regression_data(1500, "log-normal")
    whole = get_label_quality_scores(labels, predictions, neighbors="pynndescent", **settings)
    for chunks in ((1, 700, 99, 700), (500, 500, 500)):
        lazy = (da.from_array(values, chunks=(chunks,)) for values in (labels, predictions))
        found = get_label_quality_scores(*lazy, neighbors="pynndescent", **settings).compute(scheduler="threads")
        np.testing.assert_allclose(found, whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["normal", "ratings", "constant"])
def test_local_scores_are_those_of_the_nearest_of_all_rows(kind: str) -> None:
    labels, predictions = regression_data(1200, kind)
    if kind == "ratings":  # many rows in one place
        predictions = np.rint(predictions)
    distances = nearest_means(*[features(labels, predictions)] * 2, 9)
    expected = np.exp(-distances / max(np.median(distances), 1e-6))
    expected[distances < 1e-7] = 1
    scores = get_label_quality_scores(labels, predictions, neighbors="pynndescent", n_neighbors=9)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-9)


@pytest.mark.usefixtures("small_shards")
def test_shards_answer_for_their_own_points_with_what_lies_around_them() -> None:
    labels, predictions = regression_data(3000, "heavy-tailed")
    stats = stats_of(labels, predictions, n_neighbors=10)
    shards, found = stats["survey"], stats["search"]
    assert isinstance(shards, Shards)
    assert isinstance(found, LocalScores)
    assert len(shards.shards) == found.shards == 8
    assert max(map(len, shards.shards)) <= 400
    assert sorted(np.concatenate(shards.shards)) == list(range(3000))
    distances = nearest_means(*[features(labels, predictions)] * 2, 10)
    near = np.isclose(found.distances_of(labels, predictions - labels), distances, rtol=1e-9)
    assert near.mean() >= 0.99
    assert found.checked.rows == 256
    assert 0.99 <= found.checked.recall <= 1


def test_each_shard_is_worked_on_once_however_rows_are_cut() -> None:
    labels, predictions = regression_data(300)
    params = TASK.params(neighbors="pynndescent", n_neighbors=5)

    def parts(cuts: list[int]) -> list[Block]:
        return [
            Block({"labels": labels[a:b], "predictions": predictions[a:b]}, {"example": a}) for a, b in pairwise(cuts)
        ]

    state = survey(parts([0, 300])[0], params, {})
    stats = {"survey": surveyed(state, params, {})}
    for cuts in ([0, 300], [0, 0, 1, 150, 299, 300]):
        states = [search(part, params, stats) for part in parts(cuts)]
        assert sum(int(each.shards[0]) for each in states) == 1
        assert sum(len(each.labels) for each in states) == 300


def test_an_index_travels_between_processes_by_its_places() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 400))
    index = Index(x, y, 10)
    found = index.nearest(x[:5], y[:5])
    again = pickle.loads(pickle.dumps(index))
    assert "_built" not in vars(again)
    np.testing.assert_array_equal(np.sort(again.nearest(x[:5], y[:5])), np.sort(found))
    np.testing.assert_array_equal(np.sort(index.nearest_of_first(5)), np.sort(found))


def test_what_is_not_installed_is_asked_for_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labelqa_dask.regression.is_installed", lambda: False)
    with pytest.raises(InvalidConfig, match=r"pip install 'labelqa-dask\[pynndescent\]'"):
        get_label_quality_scores(*regression_data(10), neighbors="pynndescent")
    assert TASK.params(neighbors="auto").neighbors == "auto"


def test_memory_is_planned_where_all_rows_are_held() -> None:
    assert TASK.held_bytes(TASK.params(), 10**9) == 0
    library = TASK.held_bytes(TASK.params(neighbors="pynndescent"), 10**9)
    assert library > 600 << 20
    held = TASK.held_bytes(TASK.params(neighbors="pynndescent", n_neighbors=5), 10**6)
    assert held - library == TASK.held_bytes(TASK.params(neighbors="exact"), 10**6) > 24 * 10**6
