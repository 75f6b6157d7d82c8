"""Digests of many things at once: as those of one, and others wherever anything differs."""

from __future__ import annotations

import numpy as np
import pytest

from labelqa_dask.storage import digests
from labelqa_dask.storage.digests import digests_of_rows, hash_of, stacked

KEY = np.arange(16, dtype=np.uint8).view(np.uint64)


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (0, "a3817f04ba25a8e66df67214c7550293"),
        (8, "3b62a9ba6258f5610f83e264f31497b4"),
        (24, "2db479ae78bd50d8882a8a178a6132ad"),
    ],
)
def test_rows_are_hashed_as_openssl_hashes_them(length: int, expected: str) -> None:
    """`openssl mac -macopt hexkey:000102…0f -macopt size:16 SIPHASH` of the bytes 00, 01, 02, …"""
    words = np.tile(np.arange(length, dtype=np.uint8).view(np.uint64), (3, 1))
    found = np.zeros((3, 2), np.uint64)
    digests._siphash(words, KEY, found)
    assert [row.tobytes().hex() for row in found] == [expected] * 3


def test_a_digest_changes_with_each_column_and_with_what_it_is_of() -> None:
    starts, stops, chunks = np.array([0, 3]), np.array([3, 9]), stacked([5, 6])
    variants = [
        digests_of_rows([starts, stops, chunks], "x"),
        digests_of_rows([starts + 1, stops, chunks], "x"),
        digests_of_rows([starts, stops + 1, chunks], "x"),
        digests_of_rows([starts, stops, stacked([6, 5])], "x"),
        digests_of_rows([starts, stops, chunks], "y"),
        digests_of_rows([starts, stops], "x"),
    ]
    assert len({row.tobytes() for found in variants for row in found}) == 12


def test_a_digest_does_not_depend_on_the_rows_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = [np.arange(100), stacked(map(hash_of, range(100)))]
    whole = digests_of_rows(columns, "x")
    monkeypatch.setattr(digests, "_ROWS", 7)
    assert (digests_of_rows(columns, "x") == whole).all()
    assert (digests_of_rows([column[40:] for column in columns], "x") == whole[40:]).all()
    assert digests_of_rows([column[:0] for column in columns], "x").shape == (0, 16)


def test_hashes_keep_every_bit() -> None:
    values = [0, 1, (1 << 128) - 1, hash_of("x")]
    assert [int.from_bytes(row.tobytes()) for row in stacked(values)] == values
