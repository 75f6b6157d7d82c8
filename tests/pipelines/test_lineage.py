"""Where regions were in the version before, by what tells of their data."""

from __future__ import annotations

import numpy as np

from labelqa_dask.storage.digests import hash_of, stacked
from pipelines.lineage import _find


def test_regions_are_found_where_they_were() -> None:
    before = stacked(map(hash_of, "abcd"))
    assert _find(before, before).tolist() == [0, 1, 2, 3]
    assert _find(stacked(map(hash_of, "xabd")), before).tolist() == [-1, 0, 1, 3]
    assert _find(stacked(map(hash_of, "dcba")), before).tolist() == [3, 2, 1, 0]
    assert _find(stacked(map(hash_of, "abcdef")), before).tolist() == [0, 1, 2, 3, -1, -1]
    assert _find(before[:0], before).tolist() == []


def test_what_is_there_twice_is_the_one_in_the_same_place() -> None:
    before = stacked(map(hash_of, "aab"))
    assert _find(stacked(map(hash_of, "aaa")), before).tolist() == [0, 1, 0]


def test_half_of_a_digest_is_not_enough() -> None:
    before = stacked([hash_of("a"), hash_of("b")])
    changed = before.copy()
    changed[:, 15] ^= 1
    assert (_find(changed, before) == -1).all()
    changed = before[::-1].copy()
    changed[:, 15] ^= 1
    assert (_find(changed, before) == -1).all()


def test_many_are_found_as_a_search_one_by_one_finds_them() -> None:
    rng = np.random.default_rng(0)
    before = rng.permutation(2000)
    after = np.where(rng.random(1500) < 0.5, before[:1500], rng.integers(0, 4000, 1500))
    places = {int(value): place for place, value in enumerate(before)}
    found = _find(stacked(map(hash_of, after.tolist())), stacked(map(hash_of, before.tolist())))
    assert found.tolist() == [places.get(int(value), -1) for value in after]
