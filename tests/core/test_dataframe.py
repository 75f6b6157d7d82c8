"""Columns of Dask data frames, whose chunks have unknown sizes, are scored partition by partition."""

from __future__ import annotations

from typing import Any

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest

from labelqa_dask.core.errors import InvalidInput
from labelqa_dask.multiclass import get_label_quality_scores
from tests.strategies import multiclass_data

CLASSES = ["cat", "dog", "owl"]
LABELS, PRED_PROBS = multiclass_data(20, len(CLASSES))


def frame(partitions: list[int], **changes: Any) -> dd.DataFrame:
    table = pd.DataFrame(PRED_PROBS, columns=CLASSES).assign(label=LABELS)
    for column, values in changes.items():
        table[column] = values
    stops = np.cumsum(partitions)
    return dd.concat(
        [dd.from_pandas(table[stop - n : stop], npartitions=1) for n, stop in zip(partitions, stops, strict=True)]
    )


def columns(table: dd.DataFrame) -> tuple[da.Array, da.Array]:
    return table["label"].to_dask_array(), table[CLASSES].to_dask_array()


@pytest.mark.parametrize("adjust", [False, True])
def test_columns_score_as_arrays_do(adjust: bool) -> None:
    lazy = get_label_quality_scores(*columns(frame([9, 4, 7])), adjust_pred_probs=adjust)
    assert isinstance(lazy, da.Array)
    assert np.isnan(lazy.shape[0])
    eager = get_label_quality_scores(LABELS, PRED_PROBS, adjust_pred_probs=adjust)
    np.testing.assert_allclose(lazy.compute(scheduler="sync"), eager, rtol=1e-12)


def test_data_frames_may_be_given_as_they_are() -> None:
    table = frame([9, 4, 7])
    lazy = get_label_quality_scores(table["label"], table[CLASSES])
    np.testing.assert_array_equal(lazy.compute(scheduler="sync"), get_label_quality_scores(LABELS, PRED_PROBS))


def test_partitions_without_rows_are_no_obstacle() -> None:
    kept = (np.arange(20) < 9) | (np.arange(20) >= 15)
    table = frame([9, 4, 7], kept=kept)
    lazy = get_label_quality_scores(*columns(table[table["kept"]]), adjust_pred_probs=True)
    eager = get_label_quality_scores(LABELS[kept], PRED_PROBS[kept], adjust_pred_probs=True)
    np.testing.assert_allclose(lazy.compute(scheduler="sync"), eager, rtol=1e-12)


@pytest.mark.parametrize(
    ("row", "place"), [(2, "example 2"), (12, "example 3 of chunk 1"), (19, "example 6 of chunk 2")]
)
def test_an_error_tells_the_row_and_the_partition_it_counts_from(row: int, place: str) -> None:
    wrong = np.where(np.arange(20) == row, 7, LABELS)
    lazy = get_label_quality_scores(*columns(frame([9, 4, 7], label=wrong)))
    with pytest.raises(InvalidInput, match=rf"^labels, {place}: label 7 is outside 0..2"):
        lazy.compute(scheduler="sync")


def test_partitions_that_are_cut_differently_are_refused() -> None:
    labels, _ = columns(frame([4, 9, 7]))
    _, pred_probs = columns(frame([9, 4, 7]))
    lazy = get_label_quality_scores(labels, pred_probs)
    with pytest.raises(
        InvalidInput, match=r"pred_probs, chunk \(\d, 0\): pred_probs has \d along 'example' but labels"
    ):
        lazy.compute(scheduler="sync")


def test_partitions_that_differ_from_chunks_of_known_size_are_refused() -> None:
    labels, _ = columns(frame([4, 9, 7]))
    lazy = get_label_quality_scores(labels, da.from_array(PRED_PROBS, chunks=((9, 4, 7), 3)))
    with pytest.raises(InvalidInput, match="along 'example'"):
        lazy.compute(scheduler="sync")


def test_other_numbers_of_partitions_are_refused_before_anything_is_read() -> None:
    labels, _ = columns(frame([9, 11]))
    _, pred_probs = columns(frame([9, 4, 7]))
    with pytest.raises(InvalidInput, match=r"labels: chunks of unknown size.*compute_chunk_sizes"):
        get_label_quality_scores(labels, pred_probs)
