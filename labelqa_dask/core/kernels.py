"""What the compiled kernels share: how they are compiled, and the forms of arrays they are compiled for.

Kernels take C-ordered float32 or float64 predictions and int64 or uint8 labels, so that few versions of each are ever
compiled, and are cached on disk. They release the GIL, allocate nothing that grows with the data, and check what they
read while it is in a register: they return the index of the first invalid example, or -1.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

kernel = numba.njit(nogil=True, cache=True)
summing_kernel = numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
inlined = numba.njit(nogil=True, cache=True, inline="always")

PROBABILITY_TOLERANCE = 1e-6
SUM_TOLERANCE = 1e-3


def as_predictions(values: Array) -> NDArray[np.floating[Any]]:
    """C-ordered float32 or float64; copies only what is neither."""
    dtype = np.float32 if values.dtype.itemsize < 8 else np.float64
    return np.require(values, dtype, ["C", "W"])


def as_labels(values: Array) -> NDArray[np.integer[Any]]:
    """C-ordered uint8 or int64; copies only what is neither."""
    dtype = np.uint8 if values.dtype == np.uint8 else np.int64
    return np.require(values, dtype, ["C", "W"])


_LOG2_E = 1 / math.log(2.0)
_LN2_HIGH = 6.93147180369123816490e-01
_LN2_LOW = 1.90821492927058770002e-10


@inlined
def exp_nonpositive(x: Any) -> Any:
    """exp(x) for x <= 0 to the last bit or two, in arithmetic that vectorises; below -700 it stays at exp(-700).

    x = m ln 2 + r with |r| <= ln 2 / 2; the Taylor series of exp(r) to degree 13 leaves less than 1e-17.
    """
    x = max(x, -700.0)
    m = np.floor(x * _LOG2_E + 0.5)
    r = (x - m * _LN2_HIGH) - m * _LN2_LOW
    p = 1 / 6227020800
    p = p * r + 1 / 479001600
    p = p * r + 1 / 39916800
    p = p * r + 1 / 3628800
    p = p * r + 1 / 362880
    p = p * r + 1 / 40320
    p = p * r + 1 / 5040
    p = p * r + 1 / 720
    p = p * r + 1 / 120
    p = p * r + 1 / 24
    p = p * r + 1 / 6
    p = p * r + 1 / 2
    p = p * r + 1
    p = p * r + 1
    exponent = np.int64((np.int64(m) + 1023) << 52)
    return p * np.int64(exponent).view(np.float64)
