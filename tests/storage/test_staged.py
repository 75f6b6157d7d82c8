"""A group in the making is invisible until its metadata are written, and then whole."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.storage import ObjectStore as ZarrObjectStore

from labelqa_dask.storage.sinks import OutputArray
from labelqa_dask.storage.staged import StagedZarr, published_attributes, withdraw


@pytest.fixture
def staged(place):
    arrays = (
        OutputArray("numbers", ("y", "x"), (5, 6), np.dtype("u1"), (2, 3), fill_value=9, attributes={"unit": "one"}),
        OutputArray("names", ("y",), (5,), np.dtype(object), (5,)),
    )
    return StagedZarr(place("group.zarr"), arrays)


def test_nothing_can_be_opened_before_it_is_published(staged):
    staged.write("numbers", (slice(0, 2), slice(0, 3)), np.full((2, 3), 4, np.uint8))
    assert published_attributes(staged.location) is None
    store = ZarrObjectStore(staged.location.store, read_only=True)
    for path in ("", "numbers", "names"):
        with pytest.raises(FileNotFoundError):
            zarr.open(store, path=path, mode="r")


def test_what_was_written_before_and_elsewhere_is_there_once_published(staged):
    values = np.arange(30, dtype=np.uint8).reshape(5, 6)
    staged.write("numbers", (slice(0, 2), slice(0, 6)), values[:2])
    pickle.loads(pickle.dumps(staged)).write("numbers", (slice(2, 5), slice(0, 3)), values[2:, :3])
    staged.write("names", (slice(0, 5),), np.array(list("abcdé"), object))
    staged.publish({"made": {"by": "hand"}})
    data = xr.open_zarr(ZarrObjectStore(staged.location.store, read_only=True), consolidated=True)
    values[2:, 3:] = 9
    assert (data.numbers.values == values).all()
    assert data.numbers.attrs == {"unit": "one"}
    assert data.names.values.tolist() == list("abcdé")
    assert published_attributes(staged.location) == {"made": {"by": "hand"}}


def test_a_withdrawn_group_is_gone(staged):
    withdraw(staged.location)
    staged.write("names", (slice(0, 5),), np.array(list("abcde"), object))
    staged.publish({})
    withdraw(staged.location)
    assert published_attributes(staged.location) is None
    assert list(staged.location.entries()) == []
