"""Previews of the worst examples are the same however an image is cut into tiles."""

from __future__ import annotations

import numpy as np
import pytest

from labelqa_dask.core.task import ExampleImages
from pipelines.select import _paste

H, W = 50, 37


@pytest.mark.parametrize("step", [1, 2, 3, 7])
@pytest.mark.parametrize("tile", [(50, 37), (16, 37), (11, 5), (1, 1)])
def test_tiles_are_pasted_to_the_nearest_class_and_the_lowest_score(step, tile):
    rng = np.random.default_rng(0)
    given, predicted = rng.integers(0, 9, (2, H, W))
    scores = rng.random((H, W))
    shape = (-(-H // step), -(-W // step))
    small = ExampleImages(np.full(shape, -1), np.full(shape, -1), np.full(shape, np.nan))
    for y in range(0, H, tile[0]):
        for x in range(0, W, tile[1]):
            ys, xs = slice(y, min(y + tile[0], H)), slice(x, min(x + tile[1], W))
            _paste(small, ExampleImages(given[ys, xs], predicted[ys, xs], scores[ys, xs]), ys, xs, step)
    np.testing.assert_array_equal(small.given, given[::step, ::step])
    np.testing.assert_array_equal(small.predicted, predicted[::step, ::step])
    lowest = [[scores[i : i + step, j : j + step].min() for j in range(0, W, step)] for i in range(0, H, step)]
    np.testing.assert_array_equal(small.pixel_scores, lowest)
