"""Sums of values by key: how statistics merge of which only some keys occur."""

from __future__ import annotations

from typing import Any

import numpy as np

from labelqa_dask.core.kernels import Array


def sum_by_key(keys: Array, *values: Array) -> tuple[Any, ...]:
    """Distinct keys, ascending, and for each array of values (rows, ...) their sums, added up in the order given.

    Examples
    --------
    >>> import numpy as np
    >>> sum_by_key(np.array([7, 2, 7]), np.array([1, 10, 100]))
    (array([2, 7]), array([ 10, 101]))
    """
    order = np.argsort(keys, kind="stable")
    ascending = keys[order]
    is_first = np.ones(len(keys), bool)
    is_first[1:] = ascending[1:] != ascending[:-1]
    firsts = np.flatnonzero(is_first)
    return ascending[firsts], *(np.add.reduceat(array[order], firsts, axis=0) for array in values)
