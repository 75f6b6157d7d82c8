"""Digests of many things at once: 128 bits each, in arrays that take 16 bytes for each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelqa_dask.core.kernels import inlined, kernel

Digests = NDArray[np.uint8]
"""(n, 16): a digest of each of n things."""
_ROWS = 1 << 16


def hash_of(value: Any) -> int:
    """128 bits of a value that JSON can hold."""
    return int.from_bytes(hashlib.sha256(json.dumps(value).encode()).digest()[:16])


def digest_of_sum(total: int) -> str:
    """What many hashes come to in any order, as text: their sum, modulo 2^128."""
    return f"{total % (1 << 128):032x}"


def stacked(hashes: Iterable[int]) -> Digests:
    """Hashes of 128 bits as an array."""
    found = bytearray()
    for value in hashes:
        found += value.to_bytes(16)
    return np.frombuffer(bytes(found), np.uint8).reshape(-1, 16)


def digests_of_rows(columns: Sequence[NDArray[Any]], of: Any) -> Digests:
    """Digest of each row of some columns, (n,) of int64 or (n, 16) digests, and of a value that JSON can hold.

    SipHash-2-4 with 128 bits of result, whose key is the hash of the value: what is hashed here are numbers of rows
    and digests, not what anybody may choose, and there may be tens of millions of them.
    """
    n = len(columns[0])
    key = np.frombuffer(hash_of(of).to_bytes(16), np.uint64)
    digests = np.empty((n, 2), np.uint64)
    for start in range(0, n, _ROWS):
        parts = [np.ascontiguousarray(column[start : start + _ROWS]) for column in columns]
        words = np.concatenate([part.view(np.uint64).reshape(len(part), -1) for part in parts], axis=1)
        _siphash(words, key, digests[start : start + _ROWS])
    return digests.view(np.uint8)


@inlined
def _round(a: Any, b: Any, c: Any, d: Any) -> Any:
    a += b
    b = ((b << np.uint64(13)) | (b >> np.uint64(51))) ^ a
    a = (a << np.uint64(32)) | (a >> np.uint64(32))
    c += d
    d = ((d << np.uint64(16)) | (d >> np.uint64(48))) ^ c
    a += d
    d = ((d << np.uint64(21)) | (d >> np.uint64(43))) ^ a
    c += b
    b = ((b << np.uint64(17)) | (b >> np.uint64(47))) ^ c
    c = (c << np.uint64(32)) | (c >> np.uint64(32))
    return a, b, c, d


@kernel
def _siphash(words: Any, key: Any, digests: Any) -> None:
    """Of each row of (n, w) words of 64 bits, as two such words (n, 2)."""
    n, w = words.shape
    for i in range(n):
        a = key[0] ^ np.uint64(0x736F6D6570736575)
        b = key[1] ^ np.uint64(0x646F72616E646F6D) ^ np.uint64(0xEE)
        c = key[0] ^ np.uint64(0x6C7967656E657261)
        d = key[1] ^ np.uint64(0x7465646279746573)
        for j in range(w + 1):
            word = words[i, j] if j < w else np.uint64(w * 8 % 256) << np.uint64(56)
            d ^= word
            for _ in range(2):
                a, b, c, d = _round(a, b, c, d)
            a ^= word
        c ^= np.uint64(0xEE)
        for _ in range(4):
            a, b, c, d = _round(a, b, c, d)
        digests[i, 0] = a ^ b ^ c ^ d
        b ^= np.uint64(0xDD)
        for _ in range(4):
            a, b, c, d = _round(a, b, c, d)
        digests[i, 1] = a ^ b ^ c ^ d
