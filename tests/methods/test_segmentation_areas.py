"""The worst area of an image is the connected one of largest sum of 1 - score, wherever images are cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from labelqa_dask.segmentation.areas import WorstAreas
from tests.strategies import seeded

COLUMNS = ["box_top", "box_left", "box_bottom", "box_right", "box_pixels", "given_label", "suggested_label"]


def worst_weight(labels: NDArray[Any], predicted: NDArray[Any], scores: NDArray[Any]) -> float:
    """Largest sum of 1 - score over an area, by SciPy."""
    best = 0.0
    for given_class in np.unique(labels):
        for other in np.unique(predicted):
            if given_class != other:
                mask = (labels == given_class) & (predicted == other) & ~np.isnan(scores)
                areas, count = ndimage.label(mask)
                best = max([best, *(float((1 - scores)[areas == i + 1].sum()) for i in range(count))])
    return best


@seeded
@given(seed=st.integers(0, 10_000), h=st.integers(1, 12), w=st.integers(1, 12), k=st.integers(2, 4))
def test_the_worst_area_is_that_of_scipy(seed: int, h: int, w: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    labels, predicted = rng.integers(0, k, (1, h, w), np.uint8), rng.integers(0, k, (1, h, w), np.int32)
    scores = rng.random((1, h, w))
    scores[rng.random((1, h, w)) < 0.1] = np.nan
    state = WorstAreas.of(labels, predicted, scores, 0, 0)
    assert state.weight[0] == pytest.approx(worst_weight(labels[0], predicted[0], scores[0]))
    found = {name: int(values[0]) for name, values in state.result().items()}
    if state.weight[0] == 0:
        assert set(found.values()) == {-1}
        return
    box = np.s_[found["box_top"] : found["box_bottom"], found["box_left"] : found["box_right"]]
    pair = (labels[0] == found["given_label"]) & (predicted[0] == found["suggested_label"]) & ~np.isnan(scores[0])
    areas, _ = ndimage.label(pair)
    sizes = [(areas[box] == i).sum() for i in np.unique(areas[box]) if i]
    assert found["box_pixels"] in sizes
    number = next(i for i in np.unique(areas[box]) if i and (areas == i).sum() == found["box_pixels"])
    assert ndimage.find_objects((areas == number).astype(int))[0] == tuple(box)


def test_areas_grow_beyond_what_is_reserved_for_them() -> None:
    labels = np.indices((1, 90, 90)).sum(axis=0) % 2
    state = WorstAreas.of(labels.astype(np.uint8), np.full((1, 90, 90), 1, np.int32), np.full((1, 90, 90), 0.5), 0, 0)
    assert state.result()["box_pixels"][0] == 1
    spiral = np.zeros((1, 60, 60), np.int32)
    for i in range(0, 30, 2):
        spiral[0, i : 60 - i, i] = spiral[0, i, i : 60 - i] = spiral[0, i : 60 - i, 59 - i] = 1
        spiral[0, 59 - i, i : 60 - i] = 1
        spiral[0, i + 1, i] = 0
    weight = worst_weight(np.zeros((60, 60)), spiral[0], np.zeros((60, 60)))
    assert WorstAreas.of(np.zeros((1, 60, 60), np.uint8), spiral, np.zeros((1, 60, 60)), 0, 0).weight[0] == weight


def test_of_the_parts_of_an_image_the_worst_area_is_kept() -> None:
    labels, predicted, scores = np.zeros((2, 4, 6), np.uint8), np.zeros((2, 4, 6), np.int32), np.full((2, 4, 6), 0.25)
    predicted[0, 1, 1], predicted[0, 2:4, 4] = 1, 2
    left = WorstAreas.of(labels[:, :, :3], predicted[:, :, :3], scores[:, :, :3], 0, 0)
    right = WorstAreas.of(labels[:, :, 3:], predicted[:, :, 3:], scores[:, :, 3:], 0, 3)
    merged = left.merge(right).result()
    assert [int(merged[name][0]) for name in COLUMNS] == [2, 4, 4, 5, 2, 0, 2]
    assert [int(merged[name][1]) for name in COLUMNS] == [-1] * 7
    assert right.merge(left).result()["box_left"].tolist() == [4, -1]
