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

# Division by zero follows IEEE: the check that Python makes would keep loops from being vectorised.
kernel = numba.njit(nogil=True, cache=True, error_model="numpy")
contracting_kernel = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
summing_kernel = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract"})
inlined = numba.njit(nogil=True, cache=True, error_model="numpy", inline="always")

PROBABILITY_TOLERANCE = 1e-6
SUM_TOLERANCE = 1e-3


def precision_of(dtype: np.dtype[Any]) -> np.dtype[np.floating[Any]]:
    """The type that scores of values of a type have: float64 for those of eight bytes, else float32."""
    return np.dtype(np.float64 if dtype.itemsize >= 8 else np.float32)


def as_predictions(values: Array) -> NDArray[np.floating[Any]]:
    """C-ordered float32 or float64; copies only what is neither."""
    return np.require(values, precision_of(values.dtype), ["C", "W"])


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


_MANTISSA = np.uint64(0x000FFFFFFFFFFFFF)
_SQRT_HALF = np.uint64(0x3FE6A09E667F3BCD)
_ONE_OVER_SQRT_HALF = np.uint64(0x3FF0000000000000 - 0x3FE6A09E667F3BCD)
_EXPONENT_BITS = np.uint64(52)
_INTEGER_AS_FLOAT = np.uint64(0x4330000000000000)
_SMALLEST = 1e-300


@inlined
def log_positive(x: Any) -> Any:
    """ln(x) for x > 0 to the last bit or two, in arithmetic that vectorises; below 1e-300 it stays at ln(1e-300).

    x = 2^e m with m in [sqrt(1/2), sqrt(2)), taken apart by its bits, and ln m = 2 artanh((m - 1) / (m + 1)), whose
    series to degree 23 leaves less than 1e-17.
    """
    bits = np.uint64(np.float64(max(x, _SMALLEST)).view(np.uint64) + _ONE_OVER_SQRT_HALF)
    m = np.uint64((bits & _MANTISSA) + _SQRT_HALF).view(np.float64)
    e = np.uint64((bits >> _EXPONENT_BITS) | _INTEGER_AS_FLOAT).view(np.float64) - (2.0**52 + 1023)
    s = (m - 1) / (m + 1)
    z = s * s
    p = 1 / 23
    p = p * z + 1 / 21
    p = p * z + 1 / 19
    p = p * z + 1 / 17
    p = p * z + 1 / 15
    p = p * z + 1 / 13
    p = p * z + 1 / 11
    p = p * z + 1 / 9
    p = p * z + 1 / 7
    p = p * z + 1 / 5
    p = p * z + 1 / 3
    return e * _LN2_HIGH + (2 * s + (2 * s * z * p + e * _LN2_LOW))
