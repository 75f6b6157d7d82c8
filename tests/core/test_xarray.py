"""xarray objects are matched by the names of their dimensions, and their results keep names and coordinates."""

from __future__ import annotations

from typing import Any

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from labelqa_dask import multiclass, segmentation
from labelqa_dask.core.errors import InvalidInput
from tests.strategies import multiclass_data, segmentation_data

LABELS, PRED_PROBS = multiclass_data(12, 4)
SCORES = multiclass.get_label_quality_scores(LABELS, PRED_PROBS)
IMAGES, IMAGE_PROBS = segmentation_data(3, 4, 4, 4)
IMAGE_SCORES, PIXEL_SCORES = segmentation.get_label_quality_scores(IMAGES, IMAGE_PROBS)

ROWS: dict[str, Any] = {"row": np.arange(12) * 10, "source": ("row", list("abcdefghijkl")), "version": 3}
PLACES = {
    "image": ["p", "q", "r"],
    "lat": [1.0, 2.0, 3.0, 4.0],
    "taken": ("image", pd.date_range("2020-01-01", periods=3)),
}
RESULT = xr.DataArray(SCORES, dims="row", coords=ROWS, name="label_quality_score")


def labels(**changes: Any) -> xr.DataArray:
    return xr.DataArray(LABELS, dims="row", coords={**ROWS, **changes})


def pred_probs(**changes: Any) -> xr.DataArray:
    return xr.DataArray(PRED_PROBS, dims=("row", "kind"), coords={**ROWS, "kind": list("wxyz"), **changes})


def images() -> xr.DataArray:
    return xr.DataArray(IMAGES, dims=("image", "lat", "lon"), coords=PLACES)


def image_probs() -> xr.DataArray:
    return xr.DataArray(IMAGE_PROBS, dims=("image", "kind", "lat", "lon"), coords=PLACES)


@pytest.mark.parametrize("lazy", [False, True])
def test_results_have_the_names_and_coordinates_of_the_inputs(lazy: bool) -> None:
    given, probs = (array.chunk() if lazy else array for array in (labels(), pred_probs()))
    scores = multiclass.get_label_quality_scores(given, probs)
    xr.testing.assert_identical(scores.compute(), RESULT)
    assert isinstance(scores.data, da.Array) == lazy


@pytest.mark.parametrize("lazy", [False, True])
def test_results_of_images_keep_what_belongs_to_their_dimensions(lazy: bool) -> None:
    given, probs = (array.chunk(image=2, lat=3) if lazy else array for array in (images(), image_probs()))
    image_scores, pixel_scores = dask.compute(*segmentation.get_label_quality_scores(given, probs), scheduler="sync")
    expected = xr.DataArray(PIXEL_SCORES, dims=("image", "lat", "lon"), coords=PLACES, name="pixel_scores")
    of_images = {name: PLACES[name] for name in ("image", "taken")}
    xr.testing.assert_allclose(image_scores, xr.DataArray(IMAGE_SCORES, dims="image", coords=of_images), rtol=1e-12)
    xr.testing.assert_identical(pixel_scores, expected)


@pytest.mark.parametrize("lazy", [False, True])
def test_dimensions_in_another_order_are_matched_by_name(lazy: bool) -> None:
    """All sizes are equal, so that only the names can tell."""
    probs = image_probs().transpose("lon", "kind", "lat", "image")
    image_scores, pixel_scores = segmentation.get_label_quality_scores(images(), probs.chunk(kind=2) if lazy else probs)
    assert pixel_scores.dims == ("image", "lat", "lon")
    np.testing.assert_array_equal(pixel_scores, PIXEL_SCORES)
    np.testing.assert_allclose(image_scores, IMAGE_SCORES, rtol=1e-12)
    np.testing.assert_array_equal(multiclass.get_label_quality_scores(labels(), pred_probs().T), SCORES)


@pytest.mark.parametrize("coordinates", [np.arange(12)[::-1] * 10, np.arange(12)], ids=["other order", "other values"])
def test_coordinates_that_differ_are_refused(coordinates: Any) -> None:
    with pytest.raises(InvalidInput, match=r"labels and pred_probs: their coordinates differ.*Select or sort"):
        multiclass.get_label_quality_scores(labels(), pred_probs(row=coordinates))


def test_lengths_that_differ_are_refused() -> None:
    with pytest.raises(InvalidInput, match="labels and pred_probs"):
        multiclass.get_label_quality_scores(labels().drop_vars("row")[:-1], pred_probs().drop_vars("row"))


def test_dimensions_of_other_names_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"pred_probs: has no dimension 'image'.*'photo'"):
        segmentation.get_label_quality_scores(images(), image_probs().rename(image="photo"))


def test_too_many_dimensions_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"labels: must have 1 dimensions"):
        multiclass.get_label_quality_scores(images(), pred_probs())


@pytest.mark.parametrize(
    ("given", "probs"),
    [
        (labels(), PRED_PROBS),
        (LABELS, pred_probs()),
        (labels(), da.from_array(PRED_PROBS, chunks=5)),
        (labels().chunk(), PRED_PROBS),
    ],
    ids=["labels", "pred_probs", "labels beside Dask", "lazy labels"],
)
def test_one_named_input_is_enough(given: Any, probs: Any) -> None:
    scores = multiclass.get_label_quality_scores(given, probs)
    xr.testing.assert_identical(scores.compute(), RESULT)


def test_an_index_of_several_levels_is_kept() -> None:
    index = pd.MultiIndex.from_product([["a", "b", "c"], range(4)], names=["group", "member"])
    levels = xr.Coordinates.from_pandas_multiindex(index, "row")
    given = xr.DataArray(LABELS, dims="row", coords=levels)
    scores = multiclass.get_label_quality_scores(given, xr.DataArray(PRED_PROBS, dims=("row", "kind"), coords=levels))
    assert scores.sel(group="b", member=2).item() == SCORES[6]
