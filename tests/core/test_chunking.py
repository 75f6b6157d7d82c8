"""Scores do not depend on how the data are cut: into chunks along any axis, into blocks, over threads."""

from __future__ import annotations

from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelqa_dask import multiclass, multilabel, segmentation
from labelqa_dask.core import blocks, public
from tests.strategies import chunkings, multiclass_data, multilabel_data, seeded, segmentation_data

LABELS, PRED_PROBS = multiclass_data(30, 4)
SETS, SET_PROBS = multilabel_data(30, 4)
IMAGES, IMAGE_PROBS = segmentation_data(5, 3, 4, 6)


@pytest.mark.parametrize("method", ["self_confidence", "normalized_margin", "confidence_weighted_entropy"])
@seeded
@given(label_chunks=chunkings(LABELS.shape), chunks=chunkings(PRED_PROBS.shape))
def test_multiclass_chunks_do_not_matter(method: Any, label_chunks: Any, chunks: Any) -> None:
    lazy = multiclass.get_label_quality_scores(
        da.from_array(LABELS, chunks=label_chunks), da.from_array(PRED_PROBS, chunks=chunks), method=method
    )
    eager = multiclass.get_label_quality_scores(LABELS, PRED_PROBS, method=method)
    np.testing.assert_array_equal(lazy.compute(scheduler="sync"), eager)


@pytest.mark.parametrize("method", ["self_confidence", "normalized_margin"])
@seeded
@given(label_chunks=chunkings(LABELS.shape), chunks=chunkings(PRED_PROBS.shape))
def test_adjusted_multiclass_chunks_do_not_matter(method: Any, label_chunks: Any, chunks: Any) -> None:
    lazy = multiclass.get_label_quality_scores(
        da.from_array(LABELS, chunks=label_chunks),
        da.from_array(PRED_PROBS, chunks=chunks),
        method=method,
        adjust_pred_probs=True,
    )
    eager = multiclass.get_label_quality_scores(LABELS, PRED_PROBS, method=method, adjust_pred_probs=True)
    np.testing.assert_allclose(lazy.compute(scheduler="sync"), eager, rtol=1e-12)


@pytest.mark.parametrize("aggregator", ["exponential_moving_average", "softmin", np.median])
@pytest.mark.parametrize("adjust", [False, True])
@seeded
@given(label_chunks=chunkings(SETS.shape), chunks=chunkings(SET_PROBS.shape))
def test_multilabel_chunks_do_not_matter(aggregator: Any, adjust: bool, label_chunks: Any, chunks: Any) -> None:
    settings: dict[str, Any] = {"adjust_pred_probs": adjust, "aggregator_kwargs": {"method": aggregator}}
    lazy = multilabel.get_label_quality_scores(
        da.from_array(SETS, chunks=label_chunks), da.from_array(SET_PROBS, chunks=chunks), **settings
    )
    eager = multilabel.get_label_quality_scores(SETS, SET_PROBS, **settings)
    np.testing.assert_allclose(lazy.compute(scheduler="sync"), eager, rtol=1e-12)


@seeded
@given(label_chunks=chunkings(IMAGES.shape), chunks=chunkings(IMAGE_PROBS.shape))
def test_segmentation_chunks_do_not_matter(label_chunks: Any, chunks: Any) -> None:
    lazy = segmentation.get_label_quality_scores(
        da.from_array(IMAGES, chunks=label_chunks), da.from_array(IMAGE_PROBS, chunks=chunks)
    )
    image_scores, pixel_scores = dask.compute(*lazy, scheduler="sync")
    eager_images, eager_pixels = segmentation.get_label_quality_scores(IMAGES, IMAGE_PROBS)
    np.testing.assert_allclose(image_scores, eager_images, rtol=1e-12)
    np.testing.assert_array_equal(pixel_scores, eager_pixels)
    mask = segmentation.issues_from_scores(*lazy, threshold=0.3)
    np.testing.assert_array_equal(mask.compute(scheduler="sync"), eager_pixels < 0.3)


@seeded
@given(rows=st.integers(1, 40), threads=st.integers(1, 4), adjust=st.booleans())
def test_multiclass_blocks_and_threads_do_not_matter(rows: int, threads: int, adjust: bool) -> None:
    arrays = {"labels": LABELS, "pred_probs": PRED_PROBS}
    params = multiclass.TASK.params(adjust_pred_probs=adjust)
    cut = public.run(multiclass.TASK, arrays, params, batch_size=rows, n_jobs=threads)
    whole = public.run(multiclass.TASK, arrays, params)
    np.testing.assert_array_equal(cut["label_quality_score"], whole["label_quality_score"])


@seeded
@given(batch_size=st.integers(1, 6), n_jobs=st.integers(1, 4))
def test_segmentation_batches_and_jobs_do_not_matter(batch_size: int, n_jobs: int) -> None:
    cut = segmentation.get_label_quality_scores(IMAGES, IMAGE_PROBS, batch_size=batch_size, n_jobs=n_jobs)
    for part, whole in zip(cut, segmentation.get_label_quality_scores(IMAGES, IMAGE_PROBS), strict=True):
        np.testing.assert_array_equal(part, whole)


def test_thresholds_of_many_blocks_are_those_of_the_whole() -> None:
    labels, pred_probs = multiclass_data(400_000, 5)
    whole = blocks.Whole({"labels": labels, "pred_probs": pred_probs}, {"example": 400_000, "class": 5})
    stats = blocks.reduce_arrays(multiclass.TASK, whole, multiclass.TASK.params(adjust_pred_probs=True))
    means = [pred_probs[labels == j, j].mean() for j in range(5)]
    np.testing.assert_allclose(stats["confident_thresholds"], means, rtol=1e-12)


@pytest.mark.parametrize("lazy_labels", [True, False])
def test_one_input_may_be_lazy_and_the_other_in_memory(lazy_labels: bool) -> None:
    labels = da.from_array(LABELS, chunks=4) if lazy_labels else LABELS
    pred_probs = PRED_PROBS if lazy_labels else da.from_array(PRED_PROBS, chunks=(7, 3))
    scores = multiclass.get_label_quality_scores(labels, pred_probs, adjust_pred_probs=True)
    assert isinstance(scores, da.Array)
    eager = multiclass.get_label_quality_scores(LABELS, PRED_PROBS, adjust_pred_probs=True)
    np.testing.assert_allclose(scores.compute(scheduler="sync"), eager, rtol=1e-12)


def test_slices_of_lazy_scores_are_the_slices_of_the_scores() -> None:
    lazy = multiclass.get_label_quality_scores(da.from_array(LABELS, chunks=7), da.from_array(PRED_PROBS, chunks=7))
    eager = multiclass.get_label_quality_scores(LABELS, PRED_PROBS)
    np.testing.assert_array_equal(lazy[5:23].compute(scheduler="sync"), eager[5:23])
