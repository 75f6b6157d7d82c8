"""CROWDLAB and ActiveLab are those of cleanlab, given that labels are counted by their class.

cleanlab 2.9 counts float labels of an example from class 0 on, whatever classes they are, where it compares label
shares with probabilities. With integers it does not; the fixture makes it count floats like integers.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import cleanlab.internal.multiannotator_utils
import cleanlab.multiannotator as reference
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from labelqa_dask import multiannotator
from labelqa_dask.multiannotator import (
    convert_long_to_wide_dataset,
    get_active_learning_scores,
    get_active_learning_scores_ensemble,
    get_label_quality_multiannotator,
    get_label_quality_multiannotator_ensemble,
    get_majority_vote_label,
)
from tests.strategies import crowd_data, long_form, probabilities

Crowd = tuple[NDArray[np.float64], NDArray[np.float64]]
NAN = np.nan


@pytest.fixture
def counted_by_class(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def value_counts(x: Any, *, num_classes: int, multi_label: bool = False) -> Any:
        return np.bincount(np.asarray(x).astype(int), minlength=num_classes)

    for module in (reference, cleanlab.internal.multiannotator_utils):
        monkeypatch.setattr(module, "value_counts", value_counts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def one_example_each() -> Crowd:
    """Annotators 4 and above have labelled one example, some of them one that nobody else has."""
    labels, pred_probs = crowd_data(40, 12, 3, density=0.5, seed=1)
    labels[:, 4:] = NAN
    labels[:, :4] = np.where(np.isnan(labels[:, :4]) & (np.arange(4) < 2), 1, labels[:, :4])
    labels[np.arange(8), np.arange(4, 12)] = 2
    labels[:3, :4] = NAN
    return labels, pred_probs


def disagreeing() -> Crowd:
    """Nobody ever gives the label of another."""
    labels = (np.arange(30)[:, None] + np.arange(3)) % 4
    return labels.astype(float), crowd_data(30, 3, 4)[1]


def agreeing() -> Crowd:
    labels, pred_probs = crowd_data(30, 4, 3, seed=2)
    truth = pred_probs.argmax(axis=1)[:, None]
    return np.where(np.isnan(labels), NAN, truth), pred_probs


def of_one_class() -> Crowd:
    """Every consensus is class 1, so that being right is no more than chance."""
    labels, pred_probs = crowd_data(30, 4, 3, seed=3)
    return np.where(np.isnan(labels), NAN, 1.0), pred_probs


def perfect_model() -> Crowd:
    labels, _ = crowd_data(40, 6, 3, skill=0.9, density=0.6, seed=4)
    return labels, np.eye(3)[get_majority_vote_label(labels, verbose=False)] * 0.97 + 0.01


def useless_model() -> Crowd:
    labels, _ = crowd_data(40, 6, 3, skill=0.9, density=0.6, seed=5)
    return labels, np.roll(np.eye(3)[get_majority_vote_label(labels, verbose=False)], 1, axis=1)


def spammers() -> Crowd:
    """Annotators of no skill, whose weight is clipped."""
    labels, pred_probs = crowd_data(80, 8, 4, skill=0.95, density=0.7, seed=6)
    rng = np.random.default_rng(0)
    labels[:, 5:] = np.where(np.isnan(labels[:, 5:]), NAN, rng.integers(0, 4, (80, 3)))
    return labels, pred_probs


def lost_classes() -> Crowd:
    """Class 3 is given now and then, and never a majority's nor the model's."""
    labels, pred_probs = crowd_data(60, 5, 3, density=1, skill=0.9, seed=7)
    labels[::7, 0] = 3
    return labels, np.column_stack([pred_probs * 0.999, np.full(60, 0.001)])


DATA: dict[str, Callable[[], Crowd]] = {
    "some annotators": lambda: crowd_data(60, 5, 3),
    "many annotators": lambda: crowd_data(50, 60, 5, density=0.05, seed=8),
    "two annotators, all labels": lambda: crowd_data(40, 2, 3, density=1, seed=9),
    "two classes": lambda: crowd_data(50, 6, 2, seed=10),
    "100 classes": lambda: crowd_data(60, 6, 100, seed=11),
    "two examples": lambda: (np.array([[0, 0, 1], [1, NAN, NAN]]), np.array([[0.7, 0.3], [0.2, 0.8]])),
    "one example each": one_example_each,
    "disagreeing": disagreeing,
    "agreeing": agreeing,
    "of one class": of_one_class,
    "perfect model": perfect_model,
    "useless model": useless_model,
    "spammers": spammers,
    "lost classes": lost_classes,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "majority vote": {"consensus_method": "majority_vote"},
    "best, then majority": {"consensus_method": ["best_quality", "majority_vote"]},
    "majority, then best": {"consensus_method": ["majority_vote", "best_quality"]},
    "agreement": {"quality_method": "agreement", "consensus_method": ["best_quality", "majority_vote"]},
    "calibrated": {"calibrate_probs": True},
    "margin": {"label_quality_score_kwargs": {"method": "normalized_margin"}},
    "entropy": {"label_quality_score_kwargs": {"method": "confidence_weighted_entropy"}},
    "adjusted": {"label_quality_score_kwargs": {"adjust_pred_probs": True}},
    "adjusted, both methods": {
        "consensus_method": ["majority_vote", "best_quality"],
        "label_quality_score_kwargs": {"method": "normalized_margin", "adjust_pred_probs": True},
    },
    "plain annotators": {
        "return_detailed_quality": False,
        "label_quality_score_kwargs": {"method": "normalized_margin"},
    },
    "no annotators": {"return_annotator_stats": False},
}


def assert_same(ours: dict[str, Any], theirs: dict[str, Any], tolerance: float = 1e-9) -> None:
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        found = ours[name]
        if isinstance(expected, pd.DataFrame):
            assert list(found.columns) == list(expected.columns)
            found, columns = found.loc[expected.index], expected.columns
            assert list(found.index) == list(expected.index)
            found, expected = found[columns].to_numpy(float), expected.to_numpy(float)
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance, err_msg=name)


def with_weights(options: dict[str, Any]) -> dict[str, Any]:
    return {**options, "verbose": False, "return_weights": options.get("quality_method") != "agreement"}


@pytest.mark.usefixtures("counted_by_class")
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("data", DATA)
def test_wide_results_are_the_references(data: str, options: str) -> None:
    labels, pred_probs = DATA[data]()
    settings = with_weights(OPTIONS[options])
    ours = get_label_quality_multiannotator(labels, pred_probs, **settings)
    assert_same(ours, reference.get_label_quality_multiannotator(labels, pred_probs, **settings))


@pytest.mark.usefixtures("counted_by_class")
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("options", OPTIONS)
def test_random_crowds(options: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, m, k = (int(size) for size in rng.integers([20, 2, 2], [90, 15, 8]))
    labels, pred_probs = crowd_data(n, m, k, density=rng.uniform(0.2, 0.9), skill=rng.uniform(0.2, 0.95), seed=seed)
    settings = with_weights(OPTIONS[options])
    ours = get_label_quality_multiannotator(labels, pred_probs, **settings)
    assert_same(ours, reference.get_label_quality_multiannotator(labels, pred_probs, **settings))


@pytest.mark.parametrize("options", ["agreement", "calibrated"])
@pytest.mark.parametrize("seed", range(5))
def test_integer_labels_need_no_mended_reference(options: str, seed: int) -> None:
    labels, pred_probs = crowd_data(60, 6, 4, density=1, seed=seed)
    settings = with_weights(OPTIONS[options])
    ours = get_label_quality_multiannotator(labels.astype(int), pred_probs, **settings)
    assert_same(ours, reference.get_label_quality_multiannotator(labels.astype(int), pred_probs, **settings))
    assert_same(get_label_quality_multiannotator(labels, pred_probs, **settings), ours, 0)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_long_form_gives_what_its_wide_form_gives(options: str) -> None:
    labels, pred_probs = crowd_data(50, 7, 4, seed=12)
    long = long_form(labels)
    settings = with_weights(OPTIONS[options])
    ours = get_label_quality_multiannotator(long, pred_probs, columns=("task", "annotator", "label"), **settings)
    theirs = get_label_quality_multiannotator(convert_long_to_wide_dataset(long), pred_probs, **settings)
    detailed, wide = ours.pop("detailed_label_quality", None), theirs.pop("detailed_label_quality", None)
    assert_same(ours, theirs, 0)
    if detailed is not None:
        assert list(detailed.columns) == [*long.columns, "quality"]
        pd.testing.assert_frame_equal(detailed[[*long.columns]], long)
        row, column = (
            wide.index.get_indexer(long["task"]),
            wide.columns.get_indexer("quality_annotator_" + long["annotator"]),
        )
        np.testing.assert_array_equal(detailed["quality"], wide.to_numpy()[row, column])


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 1e-3)])
def test_other_types_of_probabilities(dtype: str, tolerance: float) -> None:
    labels, pred_probs = crowd_data(60, 5, 4, seed=13)
    pred_probs = pred_probs.astype(dtype)
    ours = get_label_quality_multiannotator(labels, pred_probs, verbose=False)
    theirs = reference.get_label_quality_multiannotator(labels, pred_probs.astype(float), verbose=False)
    assert_same(ours, theirs, tolerance)


def test_frames_keep_their_index_and_annotators() -> None:
    labels, pred_probs = crowd_data(20, 4, 3, seed=14)
    frame = pd.DataFrame(labels, [f"x{i}" for i in range(20)], [*"abcd"]).astype("Int64")
    ours = get_label_quality_multiannotator(frame, pred_probs, verbose=False)
    theirs = reference.get_label_quality_multiannotator(frame, pred_probs, verbose=False)
    for name, expected in theirs.items():
        pd.testing.assert_frame_equal(ours[name], expected, check_exact=False, rtol=0, atol=1e-9)


@pytest.mark.usefixtures("counted_by_class")
@pytest.mark.parametrize("calibrate", [False, True])
@pytest.mark.parametrize("data", ["some annotators", "two classes", "spammers", "perfect model", "lost classes"])
def test_ensembles(data: str, calibrate: bool) -> None:
    labels, first = DATA[data]()
    models = np.stack([first, probabilities(np.random.default_rng(1), first.shape), first[::-1]])
    settings: dict[str, Any] = {"calibrate_probs": calibrate, "verbose": False, "return_weights": True}
    ours = get_label_quality_multiannotator_ensemble(labels, models, **settings)
    assert_same(ours, reference.get_label_quality_multiannotator_ensemble(labels, models.copy(), **settings))


def test_an_ensemble_of_one_is_a_model() -> None:
    labels, pred_probs = crowd_data(40, 5, 3, seed=15)
    settings: dict[str, Any] = {"verbose": False, "label_quality_score_kwargs": {"adjust_pred_probs": True}}
    ours = get_label_quality_multiannotator_ensemble(labels, pred_probs[None], **settings)
    assert_same(ours, get_label_quality_multiannotator(labels, pred_probs, **settings), 0)


# -- Majority votes: one crowd per step that settles ties ----------------------------------------------------------

UNTIED = [[0, 0, 0, NAN], [1, 1, NAN, 1], [2, NAN, 2, 2]]
TIES: dict[str, tuple[list[list[float]], list[list[float]] | None, int]] = {
    "by the model": ([*UNTIED, [0, 1, NAN, NAN]], [*[[1 / 3] * 3] * 3, [0.2, 0.5, 0.3]], 1),
    "by rarity": ([*UNTIED, [0, 1, 1, 0], [1, 1, 1, NAN]], [*[[1 / 3] * 3] * 3, [0.4, 0.4, 0.2], [0.1, 0.8, 0.1]], 0),
    "by rarity without a model": ([*UNTIED, [0, 1, 1, 0], [1, 1, 1, NAN]], None, 0),
    "by skill": ([[0, 0, 0, 1], [1, 1, 1, NAN], [2, 2, NAN, 2], [0, NAN, NAN, 1]], [[1 / 3] * 3] * 4, 0),
}


@pytest.mark.parametrize("case", TIES)
def test_each_step_that_settles_ties(case: str) -> None:
    labels, pred_probs, expected = TIES[case]
    arguments = (np.array(labels), None if pred_probs is None else np.array(pred_probs))
    ours = get_majority_vote_label(*arguments)
    np.testing.assert_array_equal(ours, reference.get_majority_vote_label(*arguments))
    assert ours[3] == expected


@pytest.mark.parametrize("seed", range(20))
def test_majority_votes_of_crowds_full_of_ties(seed: int) -> None:
    """Where the reference draws, so do we, between the same labels."""
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random((60, 6)) < 0.6, rng.integers(0, 4, (60, 6)), NAN)
    labels[np.isnan(labels).all(axis=1), 0] = 0
    pred_probs = np.array([[0.25] * 4, [0.4, 0.4, 0.1, 0.1], [0.1, 0.2, 0.3, 0.4]])[rng.integers(0, 3, 60)]
    for probs in (pred_probs, None):
        ours = get_majority_vote_label(labels, probs, verbose=False)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            theirs = reference.get_majority_vote_label(labels, probs, verbose=False)
        drawn = [int(i) for warned in caught for i in re.findall(r"\b\d+(?=[,)\]])", str(warned.message))]
        settled = np.setdiff1d(np.arange(60), drawn)
        np.testing.assert_array_equal(ours[settled], theirs[settled])


def test_draws_take_every_tied_label_about_as_often_and_follow_the_seed() -> None:
    labels = np.tile(np.arange(4.0), (4000, 1))
    drawn = get_majority_vote_label(labels, verbose=False)
    assert (np.abs(np.bincount(drawn) - 1000) < 150).all()
    np.testing.assert_array_equal(get_majority_vote_label(labels, verbose=False), drawn)
    assert (get_majority_vote_label(labels, verbose=False, seed=1) != drawn).mean() > 0.6


def test_wide_form_of_long_rows() -> None:
    labels, _ = crowd_data(20, 5, 3, seed=16)
    long = long_form(labels)
    pd.testing.assert_frame_equal(convert_long_to_wide_dataset(long), reference.convert_long_to_wide_dataset(long))


# -- ActiveLab -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("counted_by_class")
@pytest.mark.parametrize("data", ["some annotators", "two classes", "spammers", "perfect model", "one annotator"])
def test_active_learning_scores(data: str) -> None:
    if data == "one annotator":
        labels, pred_probs = np.arange(30.0)[:, None] % 3, crowd_data(30, 2, 3)[1]
    else:
        labels, pred_probs = DATA[data]()
    unlabeled = probabilities(np.random.default_rng(2), (25, pred_probs.shape[1]))
    for arguments in ((labels, pred_probs, unlabeled), (labels, pred_probs), (None, None, unlabeled)):
        ours, theirs = get_active_learning_scores(*arguments), reference.get_active_learning_scores(*arguments)
        for mine, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(mine, other, rtol=0, atol=1e-9)
    models = np.stack([pred_probs, pred_probs[::-1], probabilities(np.random.default_rng(3), pred_probs.shape)])
    of_others = np.stack([unlabeled, unlabeled[::-1], unlabeled])
    for arguments in ((labels, models, of_others), (labels, models), (None, None, of_others)):
        copies = [None if value is None else value.copy() for value in arguments]  # the reference changes its input
        ours = get_active_learning_scores_ensemble(*arguments)
        for mine, other in zip(ours, reference.get_active_learning_scores_ensemble(*copies), strict=True):
            np.testing.assert_allclose(mine, other, rtol=0, atol=1e-9)


def test_the_public_names_and_arguments_are_the_references() -> None:
    for name in multiannotator.__all__:
        if hasattr(reference, name):
            theirs = inspect.signature(getattr(reference, name)).parameters
            ours = inspect.signature(getattr(multiannotator, name)).parameters
            assert [p for p in ours if p not in ("columns", "seed")] == list(theirs)
            for parameter in theirs:
                assert (ours[parameter].kind, ours[parameter].default) == (
                    theirs[parameter].kind,
                    theirs[parameter].default,
                )
