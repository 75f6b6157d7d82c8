"""Audits of stored data on a real cluster."""

from __future__ import annotations

import pytest
from distributed import Client

from labelqa_dask.storage import annotations as stored
from tests.pipelines.audits import Audit, images, numbers, store_parquet, store_zarr
from tests.pipelines.crowds import LONG, audit_of
from tests.stores import Place


@pytest.fixture
def of_numbers(place: Place, client: Client) -> Audit:
    """A multiclass audit from Parquet into Parquet, by a method that needs a pass over the data first."""
    data = numbers()
    settings = {
        "input": store_parquet(place("data"), data),
        "params": {"adjust_pred_probs": True},
        "output": {"format": "parquet", "region_rows": 10},
        "select": {"worst": 25},
    }
    return Audit(place, data, client, settings)


@pytest.fixture
def of_images(place: Place, client: Client) -> Audit:
    """A segmentation audit from Zarr into Zarr."""
    data = images()
    settings = {
        "input": store_zarr(place("data.zarr"), data),
        "output": {"format": "zarr", "region_rows": 2},
        "select": {"worst": 5},
    }
    return Audit(place, data, client, settings)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that annotations come in several: planning happens in this process."""
    monkeypatch.setattr(stored, "PIECE_ROWS", 40)
    monkeypatch.setattr(stored, "PIECE_BYTES", 500)


@pytest.fixture
def of_a_crowd(place: Place, client: Client, small_pieces: None) -> Audit:
    """An audit of annotations in no order, from Parquet into Parquet, with identifiers."""
    return audit_of(place, client, LONG, "parquet", "parquet", ids=True)
