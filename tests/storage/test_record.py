"""The record of a run: what is written is read back exactly, and what is damaged counts as not there."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import islice
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from numpy.typing import NDArray

from labelqa_dask.core.class_scores import ClassScores
from labelqa_dask.core.confident import ClassMeans
from labelqa_dask.core.errors import RunConflict, StorageError
from labelqa_dask.core.order import Histogram, KWorst
from labelqa_dask.core.summary import Summary
from labelqa_dask.storage.location import Location
from labelqa_dask.storage.record import (
    BadRegion,
    Receipt,
    Version,
    basis_of,
    check_same,
    latest,
    manifest_digest,
    next_version,
    prune,
    state_digest,
    unfinished,
    version_names,
)
from tests.stores import Place, unopposed
from tests.strategies import scores, seeded

MANIFEST = {
    "format": 1,
    "task": "multiclass",
    "params": {"method": "self_confidence", "temperature": 0.1},
    "inputs": {"labels": {"uri": "s3://b/x", "digest": "abc"}},
    "layout": {"region_bounds": [0, 5, 9]},
    "created": "2024-01-01",
    "software": {"dask": "1"},
}


def signed(manifest: dict[str, Any]) -> dict[str, Any]:
    return {**manifest, "digest": manifest_digest(manifest)}


def summary_of(values: NDArray[np.float64], ids: NDArray[Any] | None = None, classes: bool = True) -> Summary:
    worst = KWorst.candidates(values, 3)
    columns = {"given_label": np.arange(len(values))[worst]} | ({} if ids is None else {"id": ids[worst]})
    per_class = ClassScores.of(np.arange(len(values)) % 2, values, 2) if classes else None
    return Summary.of(values, per_class, None, KWorst.of(values, worst, 10**12, 3, columns))


def receipt_of(summary: Summary, region: str = "00003") -> Receipt:
    rows, blocks = {"id": "digest", "image_scores": "another"}, {"pixel_scores": "a third"}
    return Receipt(
        region, 30, 40, "digest of the manifest", "key", "v000001", True, (30, 37, 40), rows, blocks, summary
    )


def assert_same(left: Any, right: Any) -> None:
    """Equal to the last bit, with types and all."""
    assert type(left) is type(right)
    if is_dataclass(left):
        for field in fields(left):
            assert_same(getattr(left, field.name), getattr(right, field.name))
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, np.ndarray):
        np.testing.assert_array_equal(left, right, strict=True)
    else:
        assert left == right


@pytest.fixture
def version(tmp_path: Any) -> Version:
    return Version(Location.parse(tmp_path), "v000001")


# -- receipts

IDS = [None, np.array(["a", "é\n\"'", "", "日本"] * 10, object), np.arange(2**64 - 40, 2**64, dtype=np.uint64)]


@pytest.mark.parametrize("ids", IDS, ids=["no ids", "strings", "uint64"])
@seeded
@given(values=scores())
def test_a_receipt_comes_back_exactly(ids: NDArray[Any] | None, values: NDArray[np.float64]) -> None:
    receipt = receipt_of(summary_of(values, None if ids is None else ids[: len(values)]))
    read = Receipt.from_json(receipt.to_json())
    assert read is not None
    assert_same(read, receipt)


@pytest.mark.parametrize("values", [np.full(4, np.nan), np.empty(0), np.array([5e-324, 0.1 + 0.2, 1 - 2**-53])])
def test_a_receipt_of_extreme_scores_comes_back_exactly(values: NDArray[np.float64]) -> None:
    receipt = receipt_of(summary_of(values, np.array(["x"] * len(values), object), classes=False))
    read = Receipt.from_json(receipt.to_json())
    assert read is not None
    assert_same(read, receipt)
    assert_same(read.summary.merge(read.summary), receipt.summary.merge(receipt.summary))


def test_a_receipt_is_plain_json_with_the_same_bytes_every_time() -> None:
    content = receipt_of(summary_of(np.array([0.5, 0.25]), IDS[1])).to_json()
    assert content == receipt_of(summary_of(np.array([0.5, 0.25]), IDS[1])).to_json()
    read = json.loads(content, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert read["region"] == "00003"
    assert read["summary"]["examples"] == 2


def test_a_receipt_that_is_cut_off_anywhere_is_none() -> None:
    content = receipt_of(summary_of(np.array([0.5, 0.25]), IDS[1])).to_json()
    assert Receipt.from_json(content) is not None
    assert not [size for size in range(len(content) - 1) if Receipt.from_json(content[:size]) is not None]


def test_a_receipt_with_a_flipped_bit_is_none_or_still_the_same() -> None:
    receipt = receipt_of(summary_of(np.array([0.5, 0.25]), IDS[1]))
    content = receipt.to_json()
    lost = 0
    for i in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[i // 8] ^= 1 << i % 8
        read = Receipt.from_json(bytes(flipped))
        if read is None:
            lost += 1
        else:
            assert_same(read, receipt)
    assert lost > 7 * len(content), "only a bit of white space may flip unnoticed"


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"{}", b'"x"', b"\xff", b'{"digest": "x"}', b"1e999"])
def test_anything_else_is_no_receipt(content: bytes) -> None:
    assert Receipt.from_json(content) is None


def test_receipts_are_those_of_one_manifest_and_undamaged(place: Place) -> None:
    version = Version(place("out"), "v000001")
    names = [f"{i:05d}" for i in range(5)]
    assert list(version.receipts(names, "x")) == [None] * 5
    good = replace(receipt_of(summary_of(np.array([0.5])), "00001"), basis="x")
    version.write_receipt(good)
    version.write_receipt(replace(good, region="00002", basis="y"))
    version.write_receipt(replace(good, region="00003"))
    version.run.write("done/00003.json", good.to_json()[:-20])
    version.run.write("done/00004.json", b"")
    found = list(version.receipts(names, "x"))
    assert [receipt is not None for receipt in found] == [False, True, False, False, False]
    assert_same(found[1], good)


def test_receipts_come_in_the_order_of_their_regions(place: Place) -> None:
    version = Version(place("out"), "v000001")
    good = receipt_of(summary_of(np.array([0.5])))
    names = [f"{i:05d}" for i in np.random.default_rng(0).permutation(100)]
    for name in names:
        version.write_receipt(replace(good, region=name))
    found = version.receipts(sorted(names), good.basis)
    assert [receipt and receipt.region for receipt in found] == sorted(names)


def test_a_receipt_moves_with_its_rows() -> None:
    receipt = receipt_of(summary_of(np.array([0.5, 0.25, 0.75]), np.array(["a", "b", "c"], object)))
    moved = receipt.moved("00007", 130, "another basis", {"scores/part-00007.parquet": "digest"})
    assert (moved.region, moved.start, moved.stop, moved.cuts) == ("00007", 130, 140, (130, 137, 140))
    assert moved.basis == "another basis"
    assert (moved.key, moved.origin, moved.rows) == (receipt.key, receipt.origin, receipt.rows)
    assert (moved.summary.worst.rows - receipt.summary.worst.rows).tolist() == [100, 100, 100]
    assert_same(moved.moved("00003", 30, receipt.basis, {}), receipt)


def test_bad_regions_are_those_of_one_manifest_and_undamaged(place: Place) -> None:
    version = Version(place("out"), "v000001")
    assert version.bad_regions("x") == {}
    bad = BadRegion("00007", 70, 80, "x", ("labels, example 71: label 9 is outside 0..3.", "ids: row é is <b>"))
    version.write_bad_region(bad)
    version.write_bad_region(replace(bad, region="00002"))
    version.write_bad_region(replace(bad, region="00003", manifest="y"))
    version.run.write("bad/00004.json", bad.to_json()[:-9])
    assert version.bad_regions("x") == {"00002": replace(bad, region="00002"), "00007": bad}


def test_what_statistics_rest_on_tells_which_regions_they_leave_out() -> None:
    assert basis_of("manifest", []) == "manifest"
    others = [basis_of("manifest", ["1", "2"]), basis_of("manifest", ["1"]), basis_of("other", ["1"])]
    assert len({*others, "manifest", "other"}) == 5
    assert basis_of("manifest", ["2", "1"]) == others[0]


# -- states of passes


@dataclass(frozen=True)
class Mixed:
    """A state with a number of each kind beside its arrays."""

    total: NDArray[np.float64]
    count: int
    share: float

    def merge(self, other: Self) -> Self:
        return self

    def result(self) -> Any:
        return None


STATES = [
    ClassMeans(count=np.array([3, 0, 2**62]), total=np.array([0.1 + 0.2, 1e-300, 0.0])),
    Histogram(np.arange(100)),
    Mixed(np.empty((0, 3)), 2**60, 0.1),
]


@pytest.mark.parametrize("state", STATES, ids=lambda state: type(state).__name__)
def test_a_state_comes_back_exactly(place: Place, state: Any) -> None:
    version = Version(place("out"), "v000001")
    assert version.read_state("means", type(state), "x") is None
    version.write_state("means", state, "x")
    assert_same(version.read_state("means", type(state), "x"), state)
    assert version.read_state("means", type(state), "y") is None
    assert version.read_state("other", type(state), "x") is None


@pytest.mark.parametrize("state", STATES, ids=lambda state: type(state).__name__)
def test_the_state_of_a_region_comes_back_exactly_and_only_by_its_key(place: Place, state: Any) -> None:
    version = Version(place("out"), "v000001")
    assert list(version.partials("means")) == []
    assert version.read_partial("means", "00001", type(state), "x") is None
    version.write_partial("means", "00001", state, "x")
    assert list(version.partials("means")) == ["00001"]
    assert_same(version.read_partial("means", "00001", type(state), "x"), state)
    for name, region, key in (("means", "00001", "y"), ("means", "00002", "x"), ("other", "00001", "x")):
        assert version.read_partial(name, region, type(state), key) is None


def test_the_state_of_a_region_of_which_a_bit_has_changed_is_none(version: Version) -> None:
    version.write_partial("means", "00001", STATES[0], "x")
    path = "partial/means/00001.npz.zst"
    content = version.run.read(path)
    flipped = []
    for i in range(len(content)):
        damaged = bytearray(content)
        damaged[i] ^= 1 << i % 8
        flipped.append(bytes(damaged))
    for damaged in (b"", b"x" * 99, *(content[:size] for size in range(0, len(content), 7)), *flipped):
        version.run.write(path, damaged)
        assert version.read_partial("means", "00001", ClassMeans, "x") is None


def test_the_state_of_a_region_opens_in_other_tools(version: Version) -> None:
    version.write_partial("means", "00001", STATES[0], "x")
    with pa.CompressedInputStream(pa.BufferReader(version.run.read("partial/means/00001.npz.zst")), "zstd") as stream:
        arrays = np.load(io.BytesIO(stream.read()))
    np.testing.assert_array_equal(arrays["count"], STATES[0].count)


def test_a_mostly_empty_histogram_takes_little_room(version: Version) -> None:
    counts = np.zeros(1 << 16, np.int64)
    counts[40_000:41_000] = np.random.default_rng(0).integers(0, 1000, 1000)
    version.write_partial("count", "00001", Histogram(counts), "x")
    assert len(version.run.read("partial/count/00001.npz.zst")) < counts.nbytes // 50


def test_states_differ_in_their_digest_where_a_bit_differs() -> None:
    one, other = (ClassMeans(count=np.array([1, 2]), total=np.array([0.1 + x, 0.2])) for x in (0.0, 2e-17))
    assert state_digest(one) == state_digest(replace(one, total=one.total.copy()))
    assert state_digest(one) != state_digest(other)


def test_a_state_of_another_kind_is_none(version: Version) -> None:
    version.write_state("means", Histogram(np.arange(3)), "x")
    assert version.read_state("means", ClassMeans, "x") is None


def test_a_state_that_is_cut_off_or_has_a_flipped_bit_is_none_or_still_the_same(version: Version) -> None:
    state = STATES[0]
    version.write_state("means", state, "x")
    content = version.run.read("stats/means.npz")
    cut = [content[:size] for size in range(0, len(content) - 1, 29)]
    flipped = []
    for i in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[i] ^= 1 << i % 8
        flipped.append(bytes(damaged))
    lost = 0
    for damaged in [*cut, *flipped]:
        version.run.write("stats/means.npz", damaged)
        read = version.read_state("means", ClassMeans, "x")
        if read is None:
            lost += 1
        else:
            assert_same(read, state)
    assert lost > len(cut) + len(flipped) / 2


def test_nothing_is_ever_unpickled(version: Version) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return pytest.fail, ("was unpickled",)

    buffer = io.BytesIO()
    trapped = np.array([Trap()], dtype=object)
    np.savez(buffer, basis=np.array("x"), total=trapped, count=np.zeros(3, int), allow_pickle=True)
    version.run.write("stats/means.npz", buffer.getvalue())
    assert version.read_state("means", ClassMeans, "x") is None
    buffer = io.BytesIO()
    np.save(buffer, trapped, allow_pickle=True)
    version.run.write("stats/means.npz", buffer.getvalue())
    assert version.read_state("means", ClassMeans, "x") is None


def test_what_tells_of_regions_comes_back_exactly_and_no_flipped_bit_goes_unnoticed(version: Version) -> None:
    digests = np.random.default_rng(0).integers(0, 256, (3, 16), np.uint8)
    assert version.contents("x") is None
    version.write_contents(digests, "x")
    assert (version.contents("x") == digests).all()  # type: ignore[union-attr]
    assert version.contents("y") is None
    content = version.run.read("regions.npz")
    for damaged in [*(content[:size] for size in range(0, len(content), 31)), *islice(flips(content), 0, None, 11)]:
        version.run.write("regions.npz", damaged)
        assert version.contents("x") is None


# -- manifests


def test_a_manifest_comes_back_as_it_was_written(place: Place) -> None:
    version = Version(place("out"), "v000001")
    assert version.manifest() is None
    version.write_manifest(signed(MANIFEST))
    assert version.manifest() == signed(MANIFEST)


def test_a_manifest_that_is_cut_off_or_changed_is_none(version: Version) -> None:
    version.write_manifest(signed(MANIFEST))
    content = version.run.read("manifest.json")
    for damaged in [
        b"",
        b"null",
        b"[]",
        content[:-10],
        content.replace(b"0.1", b"0.2"),
        content.replace(b"abc", b"abd"),
    ]:
        version.run.write("manifest.json", damaged)
        assert version.manifest() is None


def flips(content: bytes) -> Iterator[bytes]:
    """The content with each of its bits flipped in turn."""
    for i in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[i // 8] ^= 1 << i % 8
        yield bytes(flipped)


def test_no_flipped_bit_of_a_manifest_goes_unnoticed(version: Version) -> None:
    version.write_manifest(signed(MANIFEST))
    for flipped in flips(version.run.read("manifest.json")):
        version.run.write("manifest.json", flipped)
        assert version.manifest() in (None, signed(MANIFEST))


def test_no_flipped_bit_of_a_pointer_leads_elsewhere(version: Version) -> None:
    version.publish({}, [], {"task": "multiclass"}, unopposed)
    noticed = 0
    content = version.out.read("latest.json")
    for flipped in flips(content):
        version.out.write("latest.json", flipped)
        try:
            assert latest(version.out) == version
        except StorageError:
            noticed += 1
    assert noticed > 7 * len(content)
    version.out.write("latest.json", b'{"version": "v000001"}')
    assert latest(version.out) == version, "as it is restored by hand"


def test_the_digest_is_of_what_is_computed_not_of_when_or_by_what() -> None:
    assert manifest_digest({**MANIFEST, "created": "2025", "software": {}, "digest": "x"}) == manifest_digest(MANIFEST)
    assert manifest_digest({**MANIFEST, "task": "segmentation"}) != manifest_digest(MANIFEST)
    assert manifest_digest({**MANIFEST, "new": None}) != manifest_digest(MANIFEST)
    assert manifest_digest(dict(reversed(MANIFEST.items()))) == manifest_digest(MANIFEST)
    assert manifest_digest(json.loads(json.dumps(MANIFEST))) == manifest_digest(MANIFEST)


def test_what_differs_is_named_exactly() -> None:
    check_same(signed(MANIFEST), {**signed(MANIFEST), "created": "2025", "software": {}}, "OUT")
    planned = {
        **MANIFEST,
        "params": {"method": "self_confidence", "alpha": 1},
        "inputs": {"labels": {"uri": "s3://b/x", "digest": "abd"}},
        "layout": {"region_bounds": [0, 9]},
    }
    with pytest.raises(RunConflict) as caught:
        check_same(signed(MANIFEST), signed(planned), "OUT")
    assert str(caught.value) == (
        "OUT: an unfinished run there was begun with other settings or inputs: "
        "inputs.labels.digest: abc then, abd now; "
        "layout.region_bounds: [0, 5, 9] then, [0, 9] now; "
        "params.alpha: not set then, 1 now; "
        "params.temperature: 0.1 then, not set now. "
        "Run it as it was begun to finish it, or add --fresh to discard it and start anew."
    )


def test_a_million_numbers_that_differ_are_counted_and_not_listed() -> None:
    longer = {**MANIFEST, "layout": {"region_bounds": list(range(10**6))}}
    with pytest.raises(RunConflict) as caught:
        check_same(signed(longer), signed(MANIFEST), "OUT")
    assert "layout.region_bounds: 1,000,000 values then, [0, 5, 9] now" in str(caught.value)
    assert len(str(caught.value)) < 400


# -- versions


def test_versions_are_numbered_and_the_newest_unpublished_one_is_unfinished(place: Place) -> None:
    out = place("out")
    assert latest(out) is None
    assert unfinished(out) is None
    assert next_version(out).name == "v000001"
    first = Version(out, "v000001")
    first.write_manifest(signed(MANIFEST))
    assert latest(out) is None
    assert unfinished(out) == first
    assert next_version(out).name == "v000002"
    first.publish({}, [], {"task": "multiclass"}, unopposed)
    assert latest(out) == first
    assert unfinished(out) is None
    pointer = json.loads(out.read("latest.json"))
    assert (pointer["version"], pointer["task"]) == ("v000001", "multiclass")
    for name in ["v000009", "v000010"]:
        Version(out, name).write_manifest(signed(MANIFEST))
    assert unfinished(out) == Version(out, "v000010")
    assert next_version(out).name == "v000011"
    Version(out, "v000010").publish({}, [], {}, unopposed)
    assert unfinished(out) is None
    assert latest(out) == Version(out, "v000010")


def published(out: Location, name: str) -> Version:
    version = Version(out, name)
    version.write_manifest(signed(MANIFEST))
    version.publish({"summary.json": b"{}"}, [], {}, unopposed)
    return version


def test_the_newest_versions_stay_and_one_in_the_making_is_not_counted(place: Place) -> None:
    out = place("out")
    for i in range(1, 5):
        published(out, f"v{i:06d}")
    Version(out, "v000005").write_manifest(signed(MANIFEST))

    def there() -> list[str]:
        return [name for name in version_names(out) if (out / name).exists()]

    prune(out, 2)
    assert there() == ["v000003", "v000004", "v000005"]
    prune(out, 2)
    assert there() == ["v000003", "v000004", "v000005"]
    prune(out, 1)
    assert there() == ["v000004", "v000005"]
    assert latest(out) == Version(out, "v000004")
    assert unfinished(out) == Version(out, "v000005")


def test_only_versions_count_as_versions(place: Place) -> None:
    for name in ["v000002", "v1", "v0000003", "w000004", "v00000x", "notes"]:
        place(f"out/{name}").write("x", b"")
    place("out").write("v000005", b"a file, no version")
    assert version_names(place("out")) == ["v000002"]


def test_a_publication_replaces_the_one_before(place: Place) -> None:
    out = place("out")
    for name in ["v000001", "v000002"]:
        Version(out, name).publish({}, [], {"task": "x" * 100 if name == "v000001" else "y"}, unopposed)
    pointer = json.loads(out.read("latest.json"))
    assert (pointer["version"], pointer["task"]) == ("v000002", "y")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b"null", b'{"version": 1}', b'{"version": "../x"}', b"\xff"]
)
def test_a_damaged_pointer_is_an_error_that_says_how_to_mend_it(place: Place, content: bytes) -> None:
    place("out").write("latest.json", content)
    for find in [latest, unfinished]:
        with pytest.raises(
            StorageError, match=r"out/latest\.json: is damaged\. Restore it: \{\"version\": \"v00000N\"\}"
        ):
            find(place("out"))
