"""Bad data: every problem is listed with its region, row and reason, and nothing is published."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from labelqa_dask.core.errors import InvalidInput, RunConflict
from labelqa_dask.storage.record import latest
from pipelines.bad_data import MOST_REASONS, MOST_REGIONS
from tests.pipelines.audits import Audit, Data, on_disk, store_again

GROUP_ENDS = [0, 7, 14, 21, 28, 35, 40, 41, 48, 55, 62, 69, 76, 83, 90, 91, 98, 105, 112, 119, 126, 133, 137, 138]
"""Where the row groups of the files end."""


def spoil(data: Data, index: Any, value: float) -> None:
    data.pred_probs[index] = value


def problems_of(audit: Audit) -> list[str]:
    """Run an audit that must fail for its data; its problems, one a line, in the order they are listed."""
    with pytest.raises(InvalidInput) as caught:
        audit.run()
    assert latest(audit.location) is None
    assert set(audit.published()) <= {path for path in audit.published() if path.startswith("scores")}
    headline, *listed = str(caught.value).rstrip(".").split("\n  ")
    number = int(headline.split(" ", 1)[0])
    assert number == len(listed) or len(listed) == MOST_REGIONS
    assert "Nothing was published" in headline
    return listed


@pytest.mark.parametrize(("place", "adjust"), [("file", True), ("file", False), ("s3", True)], indirect=["place"])
def test_every_region_with_bad_data_is_listed_and_nothing_is_published(of_numbers: Audit, adjust: bool) -> None:
    data = of_numbers.data
    spoil(data, (3, 1), np.nan)
    data.labels[50] = 9
    spoil(data, 90, 0.9)
    spoil(data, (136, 0), np.inf)
    store_again(of_numbers)
    listed = problems_of(of_numbers.changed(params={"adjust_pred_probs": adjust}))
    assert [re.split(r"(?<=[^:]): ", problem, maxsplit=1)[0] for problem in listed] == sorted(
        problem.split(":")[0] for problem in listed
    )
    reasons = [problem.partition(": ")[2] for problem in listed]
    assert reasons == [
        "pred_probs, example 3, class 1: probability is nan. Mend the model's output, or drop the example.",
        "labels, example 50: label 9 is outside 0..3. pred_probs has 4 classes: map the labels to its columns, "
        "or drop the example.",
        "pred_probs, example 90: probabilities sum to 3.6, not 1. Normalise each row; scores of independent classes "
        "belong to the multilabel task.",
        "pred_probs, example 136, class 0: probability is inf. Mend the model's output, or drop the example",
    ]


@on_disk
def test_bad_pixels_are_listed_with_their_place(of_images: Audit) -> None:
    spoil(of_images.data, (1, 2, 5, 7), -0.5)
    of_images.data.labels[8, 23, 0] = 200
    spoil(of_images.data, (13, 0, 0, 19), np.nan)
    store_again(of_images)
    listed = problems_of(of_images)
    assert [problem.split(".")[0] for problem in listed] == [
        "region 00000: pred_probs, example 1, class 2, y 5, x 7: probability -0",
        "region 00004: labels, example 8, y 23, x 0: label 200 is outside 0",
        "region 00006: pred_probs, example 13, class 0, y 0, x 19: probability is nan",
    ]


@on_disk
def test_many_regions_with_bad_data_are_not_all_listed(of_numbers: Audit) -> None:
    spoil(of_numbers.data, (slice(None), 0), np.nan)
    store_again(of_numbers)
    audit = of_numbers.changed(output={"region_rows": 1}, params={"adjust_pred_probs": False})
    with pytest.raises(InvalidInput) as caught:
        audit.run()
    headline, *listed = str(caught.value).split("\n  region ")
    assert len(listed) == MOST_REGIONS
    assert "(and perhaps more: the run stopped looking)" in headline
    for region in listed:
        reasons = [reason.partition(":")[0] for reason in region.partition(": ")[2].split("\n    ")]
        first = int(reasons[0].split(" ")[2].rstrip(","))
        rows = range(first, min(first + MOST_REASONS, *(end for end in GROUP_ENDS if end > first), len(audit.data)))
        assert reasons == [f"pred_probs, example {row}, class 0" for row in rows]
    assert len(str(caught.value)) < 200 * MOST_REGIONS * MOST_REASONS


@on_disk
def test_what_parquet_lacks_is_listed_with_its_file_and_row(of_numbers: Audit) -> None:
    folder = of_numbers.place("data")
    table = pq.read_table(pa.BufferReader(folder.read("part-2.parquet")))
    label = table["label"].to_pylist()
    label[8] = None
    sink = pa.BufferOutputStream()
    pq.write_table(table.set_column(0, "label", pa.array(label)), sink, row_group_size=7)
    folder.write("part-2.parquet", sink.getvalue().to_pybytes())
    (listed,) = problems_of(of_numbers)
    assert f"{folder}/part-2.parquet, row 49: label is missing (null). Fill it in, or drop the row" in listed


@on_disk
def test_regions_without_bad_data_are_kept_but_the_mended_input_is_begun_anew(of_numbers: Audit) -> None:
    good = of_numbers.data.pred_probs[50].copy()
    spoil(of_numbers.data, 50, 0.9)
    store_again(of_numbers)
    audit = of_numbers.changed(params={"adjust_pred_probs": False})
    with pytest.raises(InvalidInput, match="mend the input, then run again with --fresh"):
        audit.run()
    assert len(audit.receipts()) > 5
    kept = audit.receipts()
    with pytest.raises(InvalidInput, match="1 region holds data that cannot be scored"):
        audit.run()
    assert audit.receipts() == kept, "what was finished is not done again"
    of_numbers.data.pred_probs[50] = good
    store_again(of_numbers)
    with pytest.raises(RunConflict, match=r"inputs\.pred_probs\.digest"):
        audit.run()
    assert audit.run(fresh=True).run.summary["examples"] == len(audit.data)


@on_disk
@pytest.mark.parametrize(
    "mend", [lambda data: data.labels.__setitem__(3, 99), lambda data: data.pred_probs.__setitem__(3, 2)]
)
def test_a_published_version_outlives_bad_data(of_numbers: Audit, mend: Callable[[Data], None]) -> None:
    of_numbers.run()
    before = of_numbers.published()
    mend(of_numbers.data)
    store_again(of_numbers)
    with pytest.raises(InvalidInput):
        of_numbers.run()
    assert latest(of_numbers.location) == of_numbers.version()
    assert of_numbers.published() == before
