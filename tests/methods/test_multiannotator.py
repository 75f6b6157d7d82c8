"""CROWDLAB: every form of its input, every cut of it, and what it refuses."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from labelqa_dask.core.errors import InvalidConfig, InvalidInput
from labelqa_dask.core.ragged import Annotations
from labelqa_dask.core.task import Block
from labelqa_dask.multiannotator import (
    TASK,
    convert_long_to_wide_dataset,
    get_active_learning_scores,
    get_active_learning_scores_ensemble,
    get_label_quality_multiannotator,
    get_label_quality_multiannotator_ensemble,
    get_majority_vote_label,
)
from tests.strategies import crowd_data, cuts, long_form, seeded

COLUMNS = ("task", "annotator", "label")
N, M, K = 24, 6, 3
# Rich in ties at every step: few distinct probabilities, few annotators.
LABELS = np.where(
    np.random.default_rng(0).random((N, M)) < 0.6, np.random.default_rng(1).integers(0, K, (N, M)), np.nan
)
LABELS[np.isnan(LABELS).all(axis=1), 0] = 0
TIED = np.array([[1 / 3] * 3, [0.4, 0.4, 0.2], [0.5, 0.3, 0.2]])[np.random.default_rng(2).integers(0, 3, N)]
EVERYTHING: dict[str, Any] = {
    "consensus_method": ["best_quality", "majority_vote"],
    "calibrate_probs": True,
    "return_weights": True,
    "label_quality_score_kwargs": {"adjust_pred_probs": True},
}


def scored(labels: Any, pred_probs: Any, **settings: Any) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = get_label_quality_multiannotator(labels, pred_probs, verbose=False, **settings)
    return computed(found)


def computed(found: dict[str, Any]) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Computing mixed collections", category=UserWarning)
        (results,) = dask.compute(found, scheduler="sync")
    return results


def assert_equal(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Labels and counts exactly, scores to 1e-12; the order of annotators only up to equal ones."""
    for name, expected in theirs.items():
        found = ours[name]
        if isinstance(expected, pd.DataFrame):
            assert list(found.columns) == list(expected.columns)
            found = found.loc[expected.index]
            for column in expected:
                exact = expected[column].dtype.kind in "iu"
                np.testing.assert_allclose(found[column], expected[column], rtol=0, atol=0 if exact else 1e-12)
        else:
            np.testing.assert_allclose(found, expected, rtol=1e-12)


# -- Forms and cuts ------------------------------------------------------------------------------------------------


few = settings(seeded, max_examples=12)


@few
@given(rows=cuts(N), of_probs=cuts(N), columns=cuts(M))
def test_wide_chunks_do_not_matter(rows: Any, of_probs: Any, columns: Any) -> None:
    eager = scored(LABELS, TIED, **EVERYTHING)
    lazy = scored(
        da.from_array(LABELS, chunks=(rows, columns)), da.from_array(TIED, chunks=(of_probs, 2)), **EVERYTHING
    )
    assert_equal(lazy, eager)


@few
@given(rows=cuts(N), seed=st.integers(0, 9), data=st.data())
def test_partitions_and_order_of_long_rows_do_not_matter(rows: Any, seed: int, data: st.DataObject) -> None:
    long = long_form(LABELS, seed)
    eager = scored(long, TIED, columns=COLUMNS, **EVERYTHING)
    bounds = np.cumsum([0, *data.draw(cuts(len(long)))])
    frame = dd.from_map(lambda part: long.iloc[bounds[part] : bounds[part + 1]], range(len(bounds) - 1))
    lazy = scored(frame, da.from_array(TIED, chunks=(rows, K)), **EVERYTHING)
    detailed, expected = lazy.pop("detailed_label_quality"), eager.pop("detailed_label_quality")
    assert_equal(lazy, eager)
    by = ["task", "annotator"]
    np.testing.assert_allclose(
        detailed.sort_values(by)["quality"], expected.sort_values(by)["quality"], rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("seed", range(3))
def test_every_form_gives_the_same(seed: int) -> None:
    labels, pred_probs = crowd_data(30, 5, 4, seed=seed)
    wide = scored(labels, pred_probs, return_weights=True)
    long = long_form(labels, seed)
    names = pd.Index([f"x{i:02d}" for i in range(30)])
    named = long.assign(task=names[long["task"]])
    probabilities = pd.DataFrame(pred_probs, index=names)
    forms: list[tuple[Any, Any, Any]] = [
        (xr.DataArray(labels), xr.DataArray(pred_probs), None),
        (pd.DataFrame(labels), pred_probs, None),
        (labels.astype(np.float32), pred_probs, None),
        (long, pred_probs, COLUMNS),
        (named, pred_probs, COLUMNS),
        (named, probabilities.sample(frac=1, random_state=seed), COLUMNS),
        (named.astype({"annotator": "category", "label": float}), pred_probs, COLUMNS),
        (long.rename(columns={"task": "q", "annotator": "w", "label": "a"}), pred_probs, ("q", "w", "a")),
        (long, da.from_array(pred_probs, chunks=7), COLUMNS),
        (dd.from_pandas(long, npartitions=3, sort=False), pred_probs, None),
        (dd.from_pandas(named, npartitions=3, sort=False), dd.from_pandas(probabilities, npartitions=4), None),
        (dd.from_pandas(named, npartitions=3, sort=False), probabilities, None),
    ]
    for form, probs, columns in forms:
        found = scored(form, probs, columns=columns, return_weights=True)
        by_position = found["label_quality"].sort_index().to_numpy()
        np.testing.assert_allclose(by_position, wide["label_quality"].to_numpy(), rtol=0, atol=1e-6)
        np.testing.assert_allclose(found["annotator_weight"], wide["annotator_weight"], rtol=1e-12)
        np.testing.assert_allclose(
            found["annotator_stats"]["annotator_quality"], wide["annotator_stats"]["annotator_quality"], rtol=1e-6
        )


# Every vote is tied, and neither the model nor how common a class is nor anybody's skill settles it.
DRAWN = (np.arange(N)[:, None] + np.arange(6)) % 3.0
UNIFORM = np.full((N, 3), 1 / 3)


@few
@given(form=st.sampled_from(["wide", "rows", "named rows"]), cut=cuts(N), of_probs=cuts(N), seed=st.integers(0, 5))
def test_draws_depend_on_the_seed_alone(form: str, cut: Any, of_probs: Any, seed: int) -> None:
    methods = {"consensus_method": ["majority_vote", "best_quality"], "seed": seed}
    with pytest.warns(UserWarning, match=f"{N} tied votes were settled by a draw"):
        expected = get_label_quality_multiannotator(DRAWN, UNIFORM, **methods)["label_quality"]
    assert (get_majority_vote_label(DRAWN, verbose=False, seed=seed + 1) != expected["consensus_label"]).any()
    probs: Any = da.from_array(UNIFORM, chunks=(of_probs, 3))
    labels: Any = da.from_array(DRAWN, chunks=(cut, 6))
    if form != "wide":
        bounds = np.cumsum([0, *cut]) * 6  # as many rows for each example
        long = long_form(DRAWN, seed)
        labels = dd.from_map(lambda part: long.iloc[bounds[part] : bounds[part + 1]], range(len(cut)))
    if form == "named rows":
        frame = pd.DataFrame(UNIFORM)
        starts = np.cumsum([0, *of_probs]).tolist()
        parts = [frame.iloc[start : start + size] for start, size in zip(starts, of_probs, strict=False)]
        probs = dd.from_map(lambda part: parts[part], range(len(parts)), divisions=[*starts[:-1], N - 1])
    found = scored(labels, probs, **methods)["label_quality"]
    np.testing.assert_array_equal(found["consensus_label"], expected["consensus_label"])
    np.testing.assert_array_equal(found["consensus_label_best_quality"], expected["consensus_label_best_quality"])


@few
@given(rows=cuts(N), twice=st.integers(0, 30), seed=st.integers(0, 5))
def test_a_partition_that_is_there_twice_is_refused_wherever_it_is(rows: Any, twice: int, seed: int) -> None:
    long = long_form(LABELS, seed)
    bounds = np.linspace(0, len(long), len(rows) + 1).astype(int)
    parts = [long.iloc[a:b] for a, b in pairwise(bounds)]
    order = np.random.default_rng(seed).permutation([*range(len(parts)), twice % len(parts)])
    frame = dd.from_map(lambda part: parts[part], order.tolist())
    with pytest.raises(InvalidInput, match="labelled the same example already"):
        scored(frame, da.from_array(TIED, chunks=(rows, K)))


def refuse_to_compute(*_: Any, **__: Any) -> Any:
    raise AssertionError("computed")


MODELS = np.stack([TIED, TIED[::-1], np.roll(TIED, 5, axis=0)])


def lazy_forms(cut: Any, of_probs: Any, columns: Any) -> list[Any]:
    """The labels, wide and long."""
    long = long_form(LABELS)
    return [da.from_array(LABELS, chunks=(cut, columns)), dd.from_pandas(long, npartitions=len(cut), sort=False)]


@few
@given(cut=cuts(N), of_probs=cuts(N), columns=cuts(M), models=cuts(3))
def test_ensembles_are_lazy_and_cut_anyhow(cut: Any, of_probs: Any, columns: Any, models: Any) -> None:
    settings: dict[str, Any] = {"calibrate_probs": True, "return_weights": True, "verbose": False}
    eager = get_label_quality_multiannotator_ensemble(LABELS, MODELS, **settings)
    probs = da.from_array(MODELS, chunks=(models, of_probs, 2))
    for labels in lazy_forms(cut, of_probs, columns):
        with dask.config.set(scheduler=refuse_to_compute):
            lazy = get_label_quality_multiannotator_ensemble(labels, probs, **settings)
        assert lazy["model_weight"].shape == (3,)
        found = computed(lazy)
        if isinstance(labels, dd.DataFrame):
            found["annotator_stats"].index = eager["annotator_stats"].index
            assert len(found.pop("detailed_label_quality")) == np.count_nonzero(~np.isnan(LABELS))
            assert_equal(found, {name: eager[name] for name in found})
        else:
            assert_equal(found, eager)


ONE_EACH = np.where(np.arange(M) == np.arange(N)[:, None] % M, LABELS[np.arange(N), 0][:, None], np.nan)
ONE_EACH[np.isnan(ONE_EACH).all(axis=1), 0] = 1


@few
@given(
    cut=cuts(N), of_probs=cuts(N), columns=cuts(M), of_others=cuts(N), ensemble=st.booleans(), compared=st.booleans()
)
def test_active_learning_scores_are_lazy_and_cut_anyhow(
    cut: Any, of_probs: Any, columns: Any, of_others: Any, ensemble: bool, compared: bool
) -> None:
    function = get_active_learning_scores_ensemble if ensemble else get_active_learning_scores
    given, others = (MODELS, MODELS[::-1, ::-1]) if ensemble else (TIED, TIED[::-1])
    labels = LABELS if compared else ONE_EACH
    models = ((3,),) if ensemble else ()
    expected = function(labels, given, others)
    probs = da.from_array(given, chunks=(*models, of_probs, 2))
    unlabeled = da.from_array(others, chunks=(*models, of_others, 1))
    long = dd.from_pandas(long_form(labels), npartitions=len(cut), sort=False)
    for form in (da.from_array(labels, chunks=(cut, columns)), long):
        with dask.config.set(scheduler=refuse_to_compute):
            found = function(form, probs, unlabeled)
            alone = function(form, probs)
        assert [values.shape for values in found] == [(N,), (N,)]
        for values, wanted in zip(
            dask.compute(*found, *alone, scheduler="sync"), (*expected, expected[0], []), strict=True
        ):
            np.testing.assert_allclose(values, wanted, rtol=0, atol=1e-12)
    others_only = function(None, None, unlabeled)[1].compute(scheduler="sync")
    np.testing.assert_allclose(others_only, function(None, None, others)[1], rtol=0, atol=1e-12)


def test_integer_annotators_and_labels_of_any_type_keep_their_names() -> None:
    rows = pd.DataFrame({"task": [5, 5, 9, 9], "annotator": [30, 7, 30, 7], "label": np.array([0, 0, 1, 0], np.uint8)})
    found = scored(rows, np.array([[0.8, 0.2], [0.3, 0.7]]), columns=COLUMNS)
    assert found["label_quality"].index.tolist() == [5, 9]
    assert sorted(found["annotator_stats"].index) == [7, 30]


def test_lazy_input_computes_nothing_and_promises_what_it_becomes() -> None:
    labels, pred_probs = crowd_data(30, 5, 4)
    with dask.config.set(scheduler=refuse_to_compute):
        wide = get_label_quality_multiannotator(da.from_array(labels, chunks=7), da.from_array(pred_probs, chunks=9))
        frame = dd.from_pandas(long_form(labels), npartitions=3, sort=False)
        long = get_label_quality_multiannotator(frame, da.from_array(pred_probs, chunks=9), return_weights=True)
    for found in (wide, long):
        for value in found.values():
            if isinstance(value, dd.DataFrame):
                computed = value.compute(scheduler="sync")
                assert list(value.columns) == list(computed.columns)
                assert (value.dtypes == computed.dtypes).all()
    assert long["model_weight"].compute(scheduler="sync").shape == ()
    assert wide["label_quality"].divisions == (0, 9, 18, 27, 29)


def test_memory_of_the_long_form_does_not_grow_with_examples_times_annotators() -> None:
    n = m = 200_000  # the wide form would take 320 GB
    rows = pd.DataFrame({"task": np.repeat(np.arange(n), 2), "annotator": np.arange(2 * n) * 7 // 2 % m, "label": 1})
    found = scored(rows, np.full((n, 2), 0.5), columns=COLUMNS)
    assert (found["label_quality"]["consensus_label"] == 1).all()


# -- Annotations ---------------------------------------------------------------------------------------------------


@seeded
@given(cut=cuts(N))
def test_annotations_are_sliced_like_arrays(cut: Any) -> None:
    example, annotator = np.nonzero(~np.isnan(LABELS))
    shuffled = np.random.default_rng(0).permutation(len(example))
    label = LABELS[example, annotator].astype(int)
    whole, order = Annotations.group(example[shuffled], annotator[shuffled], label[shuffled], N, np.array([*"abcdef"]))
    np.testing.assert_array_equal(shuffled[order], np.arange(len(example)))
    np.testing.assert_array_equal(whole.example, example)
    bounds = np.cumsum([0, *cut])
    parts = [whole[a:b] for a, b in pairwise(bounds)]
    assert sum(map(len, parts)) == len(whole) == N
    np.testing.assert_array_equal(np.concatenate([part.label for part in parts]), whole.label)
    np.testing.assert_array_equal(np.concatenate([part.annotator for part in parts]), annotator)
    assert all(part.starts[0] == 0 and part.starts[-1] == len(part.label) for part in parts)
    assert len(whole[N:]) == len(whole[3:2]) == 0


def test_examples_without_annotations_have_no_consensus_and_change_nothing() -> None:
    params = TASK.params()
    example, annotator = np.nonzero(~np.isnan(LABELS))
    label = LABELS[example, annotator].astype(int)

    def results(examples: Any, n: int, pred_probs: Any) -> Any:
        grouped = Annotations.group(examples, annotator, label, n, np.arange(M))[0]
        arrays: dict[str, Any] = {"annotations": grouped, "pred_probs": pred_probs}
        stats: dict[str, Any] = {}
        for step in TASK.passes(params):
            stats[step.name] = step.result(step.of(Block(arrays), params, stats), params, stats)
        return TASK.score(Block(arrays), params, stats), stats

    scores, stats = results(example, N, TIED)
    spread, spread_stats = results(2 * example, 2 * N, np.repeat(TIED, 2, axis=0))
    assert (spread["consensus_label"][1::2] == -1).all()
    assert np.isnan(spread["consensus_quality_score"][1::2]).all()
    np.testing.assert_array_equal(spread_stats["annotators"].keys, stats["annotators"].keys)
    weights, expected = (s["best_quality"].weights(s["votes"]) for s in (spread_stats, stats))
    np.testing.assert_array_equal(weights.annotator, expected.annotator)
    assert weights.likelihood == expected.likelihood
    assert len(scores["annotation_quality"]) == len(spread["annotation_quality"])


# -- Refusals ------------------------------------------------------------------------------------------------------


def put(array: Any, place: Any, value: float) -> Any:
    array = array.astype(float)
    array[place] = value
    return array


FULL = np.array([[0, 1, 1], [1, 1, np.nan], [2, np.nan, 2], [0, 0, 0]])
PROBS = np.array([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.9, 0.05, 0.05]])
BAD: dict[str, tuple[Any, Any, str]] = {
    "an example without labels": (put(FULL, 1, np.nan), PROBS, r"1 examples have no label, the first is 1\. Leave"),
    "an annotator without labels": (
        put(FULL, (slice(None), 2), np.nan),
        PROBS,
        r"1 annotators labelled no example, the first is 2\. Leave",
    ),
    "one annotator": (FULL[:, :1], PROBS, "there is only one annotator, so annotators cannot be compared"),
    "one label each": (
        np.where(np.eye(4, 3, dtype=bool) | (np.arange(4)[:, None] == 3) & (np.arange(3) == 0), 1, np.nan),
        PROBS,
        "every example has one annotation only, so annotators cannot be compared",
    ),
    "a label above the classes": (
        put(FULL, (2, 0), 3),
        PROBS,
        r"example 2, annotator 0: label 3 is outside 0\.\.2\. pred_probs needs at least 4 columns",
    ),
    "a negative label": (put(FULL, (2, 0), -1), PROBS, "example 2, annotator 0: label -1 is no class number"),
    "a label between classes": (put(FULL, (2, 2), 0.5), PROBS, "example 2, annotator 2: label 0.5 is no class number"),
    "an infinite label": (put(FULL, (0, 1), np.inf), PROBS, "example 0, annotator 1: label inf is no class number"),
    "too few probabilities": (FULL, PROBS[:3], "pred_probs has 3 along 'example' but annotations has 4"),
    "one class": (FULL * 0, np.ones((4, 1)), "there is only one class"),
    "probabilities that are none": (FULL, put(PROBS, (1, 2), 1.5), r"example 1, class 2: probability 1.5 is outside"),
    "probabilities that are missing": (FULL, put(PROBS, (3, 0), np.nan), "example 3, class 0: probability is nan"),
    "rows that do not sum to 1": (FULL, put(PROBS, (2, 2), 0.1), "example 2: probabilities sum to 0.5, not 1"),
}


@pytest.mark.parametrize("lazy", [False, True], ids=["eager", "lazy"])
@pytest.mark.parametrize("case", BAD)
def test_bad_data_are_refused_with_their_place(case: str, lazy: bool) -> None:
    labels, pred_probs, message = BAD[case]
    if lazy:
        labels, pred_probs = da.from_array(labels, chunks=(2, 2)), da.from_array(pred_probs, chunks=(2, -1))
    with pytest.raises(InvalidInput, match=message):
        scored(labels, pred_probs)


def rows(*changed: tuple[int, str, Any]) -> pd.DataFrame:
    frame = pd.DataFrame({"task": [0, 0, 1, 1, 2, 2], "annotator": [*"ababab"], "label": [0, 1, 1, 1, 2, 2]})
    frame = frame.astype({column: object for _, column, _ in changed})
    for row, column, value in changed:
        frame.loc[row, column] = value
    return frame.infer_objects()


BAD_ROWS: dict[str, tuple[Callable[[], pd.DataFrame], str]] = {
    "a missing annotator": (lambda: rows((3, "annotator", None)), "annotator is missing. Leave out"),
    "a missing label": (lambda: rows((3, "label", np.nan)), "label is missing"),
    "an annotator twice": (
        lambda: rows((3, "annotator", "a")),
        r"1 labels are by an annotator who labelled the same example already, the first by 'a' of .*1",
    ),
    "an unknown example": (lambda: rows((5, "task", 7)), "1 annotations are of examples that pred_probs has not.*7"),
    "an example without labels": (lambda: rows((4, "task", 1), (5, "task", 1)).iloc[:4], "1 examples have no label"),
    "a class above": (lambda: rows((0, "label", 3)), r"annotator 'a': label 3 is outside 0\.\.2"),
    "half a class": (lambda: rows((0, "label", 0.5)), r"annotator 'a': label 0\.5 is no class number"),
}


@pytest.mark.parametrize("lazy", [False, True], ids=["eager", "lazy"])
@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_are_refused_with_their_place(case: str, lazy: bool) -> None:
    make, message = BAD_ROWS[case]
    probabilities = pd.DataFrame(PROBS[:3])
    frame: Any = dd.from_pandas(make(), npartitions=2, sort=False) if lazy else make()
    with pytest.raises(InvalidInput, match=message):
        scored(frame, probabilities, columns=COLUMNS)


CALLS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "labels of one dimension": (lambda: scored(FULL[0], PROBS), InvalidInput, "must have 2 dimensions"),
    "a list": (lambda: scored(FULL.tolist(), PROBS), InvalidInput, "must be an array or a DataFrame, got list"),
    "names as labels": (lambda: scored(FULL.astype(str), PROBS), InvalidInput, "Map each class name to its number"),
    "a frame of names": (lambda: scored(pd.DataFrame({"a": ["x"], "b": ["y"]}), PROBS), InvalidInput, "class numbers"),
    "an ensemble": (lambda: scored(FULL, PROBS[None]), InvalidInput, "another function for ensembles"),
    "no ensemble": (
        lambda: get_label_quality_multiannotator_ensemble(FULL, PROBS),
        InvalidInput,
        "This one is for ensembles",
    ),
    "integers as probabilities": (lambda: scored(FULL, PROBS.astype(int)), InvalidInput, "must be floating point"),
    "weights of agreement": (
        lambda: scored(FULL, PROBS, quality_method="agreement", return_weights=True),
        InvalidInput,
        "weights belong to the crowdlab quality method only",
    ),
    "an unknown consensus": (lambda: scored(FULL, PROBS, consensus_method="mode"), InvalidConfig, "consensus_method"),
    "no consensus": (lambda: scored(FULL, PROBS, consensus_method=[]), InvalidConfig, "consensus_method"),
    "an unknown quality": (lambda: scored(FULL, PROBS, quality_method="good"), InvalidConfig, "quality_method"),
    "an unknown score": (
        lambda: scored(FULL, PROBS, label_quality_score_kwargs={"method": "x"}),
        InvalidConfig,
        "label_quality_score_kwargs.method",
    ),
    "entropy adjusted": (
        lambda: scored(
            FULL,
            PROBS,
            label_quality_score_kwargs={"method": "confidence_weighted_entropy", "adjust_pred_probs": True},
        ),
        InvalidConfig,
        "not supported for confidence_weighted_entropy",
    ),
    "columns of no frame": (lambda: scored(FULL, PROBS, columns=COLUMNS), InvalidInput, "columns are given"),
    "a column that is not there": (
        lambda: scored(rows(), PROBS[:3], columns=("task", "who", "label")),
        InvalidInput,
        "has no column 'who'",
    ),
    "names where rows are numbers": (
        lambda: scored(dd.from_pandas(rows((0, "task", "x")).astype(str), npartitions=1), PROBS[:3]),
        InvalidInput,
        "task must hold row numbers of pred_probs",
    ),
    "rows twice, made wide": (
        lambda: convert_long_to_wide_dataset(rows((3, "annotator", "a"))),
        InvalidInput,
        "1 labels are by an annotator who labelled the same example already, the first by 'a' of 1",
    ),
    "nothing to learn from": (lambda: get_active_learning_scores(), InvalidInput, "are both missing"),
    "probabilities without labels": (
        lambda: get_active_learning_scores(None, PROBS),
        InvalidInput,
        "is missing, but pred_probs is given",
    ),
    "other classes for the unlabeled": (
        lambda: get_active_learning_scores(FULL, PROBS, np.full((2, 2), 0.5)),
        InvalidInput,
        "pred_probs_unlabeled: has 2 classes",
    ),
    "a majority of one": (lambda: get_majority_vote_label(FULL[:, :1]), InvalidInput, "there is only one annotator"),
}


@pytest.mark.parametrize("case", CALLS)
def test_impossible_calls_are_refused_at_once(case: str) -> None:
    call, kind, message = CALLS[case]
    with pytest.raises(kind, match=message):
        call()


def test_what_is_doubtful_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="no two annotators agree"):
        get_label_quality_multiannotator(np.array([[0, 1], [1, 0], [2, 1]]), PROBS[:3], verbose=False)
    alone = np.array([[0, 0, np.nan], [1, 1, np.nan], [np.nan, np.nan, 2]])
    with pytest.warns(UserWarning, match="1 annotators share no example with others, the first is 2"):
        get_label_quality_multiannotator(alone, PROBS[:3])
    with pytest.warns(UserWarning, match="no example has one of 1 classes that annotators gave .*: 2"):
        get_majority_vote_label(np.array([[0, 0, 2], [1, 1, 1]]))
    with pytest.warns(UserWarning, match="1 tied votes were settled by a draw"):
        get_majority_vote_label(np.array([[0, 1], [0, 0], [1, 1]]))
