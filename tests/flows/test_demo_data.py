"""The demonstration's data are what their story says: real errors, known exactly, and honest predictions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from flows import demo_data
from flows.demo_data import MAKERS, DemoData, diabetes, multiannotator, multiclass, multilabel, regression, segmentation
from flows.demo_data._data import folds_of
from flows.demo_data._digits import load_digit_images
from flows.demo_data.segmentation import Scenes
from labelqa_dask.regression import get_label_quality_scores

SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "multiannotator": ((1797,), (1797, 10)),
    "multiclass": ((1797,), (1797, 10)),
    "multilabel": ((1500, 10), (1500, 10)),
    "regression": ((40_000,), (40_000,)),
    "segmentation": ((300, 96, 96), (300, 11, 96, 96)),
}
WRONG = {"multiannotator": 255, "multiclass": 90, "multilabel": 150, "regression": 800, "segmentation": 30}
"""What a majority gets wrong of digits; five per cent of these, two of throws, ten of groups and of scenes."""
MISTAKES = ((1, 0), (0, 1), (1, 1))
"""Classes left out and added by each kind of wrong label set."""
PRECISION_BAR = {"multiannotator": 0.7, "multiclass": 0.8, "multilabel": 0.7, "regression": 0.8, "segmentation": 0.7}


@pytest.fixture(scope="module")
def made() -> dict[str, DemoData]:
    return {task: make(0) for task, make in MAKERS.items()}


BY_TASK = [name for name in MAKERS if name != "diabetes"]
"""Regression is shown on two sets of data; what is asked of the smaller one is asked of it by itself."""


@pytest.fixture(params=BY_TASK)
def data(request: pytest.FixtureRequest, made: dict[str, DemoData]) -> DemoData:
    return made[request.param]


@pytest.fixture(scope="module")
def few_scenes() -> Scenes:
    return segmentation.compose_scenes(seed=0, count=40)


def clean_labels(task: str, seed: int) -> NDArray[np.integer]:
    """Make the labels as they were before anything was spoiled."""
    if task in ("multiclass", "multiannotator"):
        return load_digit_images()[1]
    if task == "multilabel":
        return multilabel.compose_groups(load_digit_images()[1], seed).labels
    if task == "regression":
        return regression.throw(seed, regression.THROWS)[1]
    return segmentation.compose_scenes(seed).labels


def precision_at_wrong_count(data: DemoData) -> float:
    """Share of really wrong examples among the worst, taking as many as there are wrong ones."""
    if data.task == "regression":
        worst = np.argsort(-np.abs(data.predictions - data.labels))[: data.corrupted.sum()]
        return float(data.corrupted[worst].mean())
    if data.task == "multilabel":
        confidence = np.where(data.labels, data.predictions, 1 - data.predictions)
    else:
        given = data.labels[:, np.newaxis].astype(np.intp)
        confidence = np.take_along_axis(data.predictions, given, axis=1).reshape(len(data.labels), -1)
    confidence = confidence.astype(np.float64)
    weights = np.exp((1 - confidence) / 0.1)
    softmin = (confidence * weights).sum(axis=1) / weights.sum(axis=1)
    worst = np.argsort(softmin)[: data.corrupted.sum()]
    return float(data.corrupted[worst].mean())


def assert_same(first: DemoData, second: DemoData) -> None:
    for name in ("labels", "predictions", "ids", "corrupted"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), strict=True)
    assert first.story == second.story


def test_shapes_and_types(data: DemoData) -> None:
    labels_shape, probs_shape = SHAPES[data.task]
    assert data.labels.shape == labels_shape
    types = {"multiclass": np.int64, "multiannotator": np.int64, "regression": np.float64}
    assert data.labels.dtype == types.get(data.task, np.uint8)
    assert data.predictions.shape == probs_shape
    assert data.predictions.dtype == np.float32
    assert data.corrupted.shape == data.ids.shape == labels_shape[:1]
    assert data.corrupted.dtype == np.bool_
    assert data.predictions.nbytes < 150e6


def test_every_class_has_a_name_and_is_used(data: DemoData) -> None:
    if data.task == "regression":
        assert data.class_names == ()
        return
    assert len(data.class_names) == data.predictions.shape[1]
    if data.task == "multilabel":
        assert (data.labels.sum(axis=0) > 300).all()
        assert np.unique(data.labels).tolist() == [0, 1]
    else:
        assert np.unique(data.labels).tolist() == list(range(len(data.class_names)))


def test_ids_are_unique_and_readable(data: DemoData) -> None:
    assert len(set(data.ids.tolist())) == len(data.ids)
    names = {"multilabel": "group-00017", "regression": "throw-00017", "segmentation": "scene-0017"}
    assert data.ids[17] == names.get(data.task, "digit-00017")


def test_predictions_are_valid(data: DemoData) -> None:
    if data.task == "regression":
        assert np.isfinite(data.predictions).all()
        return
    assert data.predictions.min() >= 0
    assert data.predictions.max() <= 1
    if data.task != "multilabel":
        np.testing.assert_allclose(data.predictions.sum(axis=1), 1, rtol=0, atol=1e-5)


def test_corrupted_is_exactly_where_labels_differ_from_the_truth(data: DemoData) -> None:
    differs = (data.labels != clean_labels(data.task, seed=0)).reshape(len(data.labels), -1).any(axis=1)
    np.testing.assert_array_equal(data.corrupted, differs)
    assert data.corrupted.sum() == WRONG[data.task]


def test_ranking_by_self_confidence_finds_the_corrupted(data: DemoData) -> None:
    assert precision_at_wrong_count(data) >= PRECISION_BAR[data.task]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("task", BY_TASK)
def test_ranking_finds_the_corrupted_for_other_seeds(task: str, seed: int) -> None:
    assert precision_at_wrong_count(MAKERS[task](seed)) >= PRECISION_BAR[task]


def test_same_seed_gives_the_same_digits(made: dict[str, DemoData]) -> None:
    assert_same(made["multiclass"], MAKERS["multiclass"](0))


@pytest.mark.slow
def test_same_seed_gives_the_same_crowd(made: dict[str, DemoData]) -> None:
    first, again = made["multiannotator"], multiannotator.make(0)
    assert isinstance(first, multiannotator.CrowdData)
    assert_same(first, again)
    for name in ("example", "annotator", "given", "spammers"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name), strict=True)


def test_the_crowd_is_as_its_story_says(made: dict[str, DemoData]) -> None:
    crowd = made["multiannotator"]
    assert isinstance(crowd, multiannotator.CrowdData)
    assert len(np.unique(np.stack([crowd.example, crowd.annotator]), axis=1).T) == len(crowd.example)
    assert set(np.bincount(crowd.example)) == {3, 4, 5}
    right = np.bincount(crowd.annotator, crowd.given == crowd.truth[crowd.example]) / np.bincount(crowd.annotator)
    assert crowd.spammers.sum() == 8
    assert right[crowd.spammers].max() < 0.25
    assert right[~crowd.spammers].min() > 0.5


def test_same_seed_gives_the_same_groups(made: dict[str, DemoData]) -> None:
    assert_same(made["multilabel"], MAKERS["multilabel"](0))


@pytest.mark.slow
def test_same_seed_gives_the_same_scenes(made: dict[str, DemoData]) -> None:
    assert_same(made["segmentation"], MAKERS["segmentation"](0))


def test_other_seed_spoils_other_labels() -> None:
    truth = load_digit_images()[1]
    assert (multiclass.swap_digits(truth, seed=0) != multiclass.swap_digits(truth, seed=1)).any()


def test_scenes_depend_on_the_seed_alone() -> None:
    first, again, other = (segmentation.compose_scenes(seed, count=5) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert (first.images != other.images).any()


def test_scene_labels_and_objects_agree(few_scenes: Scenes) -> None:
    np.testing.assert_array_equal(few_scenes.labels > 0, few_scenes.objects > 0)
    for labels, objects in zip(few_scenes.labels, few_scenes.objects, strict=True):
        assert 3 <= objects.max() <= 5
        for number in range(1, objects.max() + 1):
            assert len(np.unique(labels[objects == number])) == 1


def test_more_scenes_than_digits_allow_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"700 scenes need 2,\d{3} digits; there are only 1,797"):
        segmentation.compose_scenes(seed=0, count=700)


def test_three_kinds_of_wrong_annotation_equally_often() -> None:
    scenes = segmentation.compose_scenes(seed=0)
    labels = segmentation.spoil_scenes(scenes, seed=0)
    kinds = {"swapped": 0, "left out": 0, "displaced": 0}
    for scene in np.flatnonzero((labels != scenes.labels).any(axis=(1, 2))):
        given, true = labels[scene], scenes.labels[scene]
        if (given[true == 0] > 0).any():
            kinds["displaced"] += 1
        elif (given[true > 0] == 0).any():
            kinds["left out"] += 1
        else:
            kinds["swapped"] += 1
        assert len(np.unique(scenes.objects[scene][(given != true) & (true > 0)])) == 1
    assert kinds == {"swapped": 10, "left out": 10, "displaced": 10}


def test_three_kinds_of_wrong_label_sets_equally_often(made: dict[str, DemoData]) -> None:
    change = made["multilabel"].labels.astype(int) - clean_labels("multilabel", seed=0)
    kinds = [((change == -1).sum(axis=1) == less) & ((change == 1).sum(axis=1) == more) for less, more in MISTAKES]
    assert [kind.sum() for kind in kinds] == [50, 50, 50]


def test_group_predictions_are_out_of_sample() -> None:
    """No digit is in groups of two folds; other labels in a fold change what is predicted elsewhere, nothing in it."""
    images, digits = load_digit_images()
    groups = multilabel.compose_groups(digits, seed=0)
    owners = [set(groups.members[groups.folds == fold].ravel().tolist()) - {-1} for fold in range(5)]
    assert sum(map(len, owners)) == len(set().union(*owners))
    few = multilabel.Groups(groups.members[:200], groups.folds[:200], groups.labels[:200])
    before = multilabel.predict_groups(images, few, few.labels, seed=0)
    held_out = few.folds == 0
    relabelled = np.where(held_out[:, np.newaxis], 1 - few.labels, few.labels)
    after = multilabel.predict_groups(images, few, relabelled, seed=0)
    np.testing.assert_array_equal(after[held_out], before[held_out])
    assert (after[~held_out] != before[~held_out]).any(axis=1).all()


def test_digit_predictions_are_out_of_sample() -> None:
    """Other labels in the held-out fold change what is predicted elsewhere, and nothing in the fold."""
    images, digits = load_digit_images()
    images, digits = images[:400], digits[:400]
    folds = multiclass.digit_folds(digits, seed=0)
    before = multiclass.predict_digits(images, digits, folds, seed=0)
    train, held_out = folds[0]
    relabelled = digits.copy()
    relabelled[held_out] = (digits[held_out] + 1) % 10
    after = multiclass.predict_digits(images, relabelled, folds, seed=0)
    np.testing.assert_array_equal(after[held_out], before[held_out])
    assert (after[train] != before[train]).any(axis=1).all()


def test_scene_predictions_are_out_of_sample(few_scenes: Scenes) -> None:
    """Other annotations in the held-out fold change what is predicted elsewhere, and nothing in the fold."""
    folds = folds_of(len(few_scenes.labels), seed=0)
    before = segmentation.predict_scenes(few_scenes.images, few_scenes.labels, folds, seed=0)
    train, held_out = folds[0]
    labels = few_scenes.labels.copy()
    labels[held_out] = np.where(labels[held_out] > 0, 0, 7)
    after = segmentation.predict_scenes(few_scenes.images, labels, folds, seed=0)
    np.testing.assert_array_equal(after[held_out], before[held_out])
    assert (after[train] != before[train]).any(axis=(1, 2, 3)).all()


def test_each_example_is_held_out_once(made: dict[str, DemoData]) -> None:
    for task, folds in {
        "multiclass": multiclass.digit_folds(made["multiclass"].labels.astype(np.int64), seed=0),
        "regression": folds_of(regression.THROWS, seed=0),
        "segmentation": folds_of(300, seed=0),
    }.items():
        held_out = np.sort(np.concatenate([rows for _, rows in folds]))
        np.testing.assert_array_equal(held_out, np.arange(len(made[task].labels)))
        assert not any(np.isin(train, rows).any() for train, rows in folds)


def test_throw_predictions_are_out_of_sample() -> None:
    """Other records in the held-out fold change what is predicted elsewhere, and nothing in the fold."""
    features, distances = regression.throw(0, 600)
    folds = folds_of(600, seed=0)
    before = regression.predict_distances(features, distances, folds, seed=0)
    train, held_out = folds[0]
    labels = distances.copy()
    labels[held_out] *= 3
    after = regression.predict_distances(features, labels, folds, seed=0)
    np.testing.assert_array_equal(after[held_out], before[held_out])
    assert (after[train] != before[train]).mean() > 0.9


def test_patients_are_real_and_their_wrong_records_are_found(made: dict[str, DemoData]) -> None:
    data = made["diabetes"]
    _, measures = diabetes.load_patients()
    assert data.task == "regression"
    assert len(measures) == len(data.predictions) == len(set(data.ids.tolist())) == 442
    np.testing.assert_array_equal(data.corrupted, data.labels != measures)
    assert data.corrupted.sum() == 22
    scores = get_label_quality_scores(data.labels, data.predictions)
    assert data.corrupted[np.argsort(scores)[:22]].sum() >= 12  # 14; by chance 1
    for fact in ("442", "5%"):
        assert fact in data.story


def test_patients_are_predicted_out_of_sample() -> None:
    """Other records in the held-out fold change what is predicted elsewhere, and nothing in the fold."""
    features, measures = diabetes.load_patients()
    folds = folds_of(len(measures), seed=0)
    np.testing.assert_array_equal(np.sort(np.concatenate([rows for _, rows in folds])), np.arange(len(measures)))
    before = diabetes.predict_measures(features, measures, folds)
    train, held_out = folds[0]
    labels = measures.copy()
    labels[held_out] *= 3
    after = diabetes.predict_measures(features, labels, folds)
    np.testing.assert_array_equal(after[held_out], before[held_out])
    assert (after[train] != before[train]).mean() > 0.9


def test_throws_without_air_follow_the_parabola(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regression, "AIR_DENSITY", 0.0)
    monkeypatch.setattr(regression, "MEASURING_ERROR", 0.0)
    features, distances = regression.throw(0, 200)
    speed, angle, height = features[:, 0], features[:, 1], features[:, 5]
    vy = speed * np.sin(angle)
    fall = (vy + np.sqrt(vy**2 + 2 * regression.GRAVITY * height)) / regression.GRAVITY
    np.testing.assert_allclose(distances, speed * np.cos(angle) * fall, rtol=1e-3)


def test_scenes_without_a_found_object_get_valid_probabilities(few_scenes: Scenes) -> None:
    images = few_scenes.images.copy()
    images[7] = 0.2
    folds = folds_of(len(images), seed=0)
    pred_probs = segmentation.predict_scenes(images, few_scenes.labels, folds, seed=0)
    assert (pred_probs[7].argmax(axis=0) == 0).all()
    np.testing.assert_allclose(pred_probs[7].sum(axis=0), 1, rtol=0, atol=1e-5)


def test_makers_say_what_they_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmentation, "SCENE_COUNT", 40)
    lines: list[str] = []
    for make in MAKERS.values():
        make(0, say=lines.append)
    assert "changing 5% of the labels of 1,797 real handwritten digits" in lines
    assert "composing 40 scenes from 1,797 real handwritten digits" in lines
    assert "training on 4 of 5 folds (5/5)" in lines
    assert all(len(line) < 80 for line in lines)


def test_story_tells_the_number_and_the_share(data: DemoData) -> None:
    facts = {
        "multiannotator": ("1,797", "3 to 5 of 40"),
        "multiclass": ("1,797", "5%"),
        "multilabel": ("1,500", "10%"),
        "regression": ("40,000", "2%"),
        "segmentation": ("300 scenes", "10%"),
    }
    for fact in facts[data.task]:
        assert fact in data.story


def test_importing_the_module_does_not_import_scikit_learn() -> None:
    check = "import sys, flows.demo_data; print({'sklearn', 'scipy'} & set(sys.modules))"
    root = Path(demo_data.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", check], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
