"""Identifiers by which annotations name examples and annotators, as keys of 64 bits that sort and search quickly."""

from __future__ import annotations

import threading

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from labelqa_dask.core.errors import InvalidInput
from labelqa_dask.core.kernels import Array
from labelqa_dask.storage.sources import Source, as_ids

Keys = NDArray[np.uint64]
_READ_ROWS = 1 << 20

_index_lock = threading.Lock()
_indexes: dict[tuple[str, str], tuple[Keys, NDArray[np.int64]]] = {}


def keys_of(ids: Array) -> Keys:
    """Whole numbers as they are; text by a hash of 64 bits."""
    return pd.util.hash_array(ids, categorize=False) if ids.dtype == object else ids.view(np.uint64)


def index_of(ids: Source, n: int, basis: str) -> tuple[Keys, NDArray[np.int64]]:
    """Keys of all identifiers, ascending, and their rows: 16 bytes per example, once per worker process.

    `basis` tells one state of the identifiers from another.

    Raises
    ------
    InvalidInput
        Where two rows have the same.
    """
    with _index_lock:
        if (ids.place, basis) not in _indexes:
            keys = np.empty(n, np.uint64)
            for start in range(0, n, _READ_ROWS):
                rows = slice(start, min(start + _READ_ROWS, n))
                keys[rows] = keys_of(as_ids(ids.read((rows,))))
            order = np.argsort(keys, kind="stable")
            keys = keys[order]
            same = np.flatnonzero(keys[1:] == keys[:-1])
            if len(same):
                first, second = sorted(order[same[0] : same[0] + 2].tolist())
                raise InvalidInput(
                    f"rows {first:,} and {second:,} have the same identifier, so annotations cannot be told apart",
                    ids.place,
                    "Give each example an identifier of its own.",
                )
            _indexes.clear()
            _indexes[(ids.place, basis)] = keys, order
        return _indexes[(ids.place, basis)]


def look_up(wanted: Keys, keys: Keys, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """The number of each wanted key among ascending ones; -1 where it is not there."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, numbers[at], -1)
