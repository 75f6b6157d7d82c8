"""Damage to whatever a version consists of is found, and named."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from labelqa_dask.core.errors import LabelQAError, StorageError
from labelqa_dask.storage.location import Location
from pipelines.verify import verify
from tests.pipelines.audits import Audit, on_disk, store_again
from tests.stores import Place


def damaged(content: bytes) -> bytes:
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "changed": damaged,
    "cut off": lambda content: content[: len(content) * 2 // 3],
    "gone": lambda content: None,
}


AUDITS = {"of_numbers": 40, "of_images": 5, "of_a_crowd": 50}
"""Audits, and how many examples their regions hold where there are to be few."""


def objects_of(audit: Audit) -> list[str]:
    """All that a version consists of, but what only tells how long it took."""
    paths = (entry.path for entry in audit.version().location.entries())
    return sorted(path for path in paths if path != "_run/timings.json")


def problems_with(location: Location, path: str, content: bytes | None) -> str:
    """What is found wrong where one object is another; it is put back."""
    before = location.read(path)
    if content is None:
        location.delete_object(path)
    else:
        location.write(path, content)
    try:
        return "\n".join(verify(location.parent).problems)
    except LabelQAError as error:
        return str(error)
    finally:
        location.write(path, before)


@pytest.mark.parametrize("place", ["file", "s3"], indirect=True)
@pytest.mark.parametrize("audit", AUDITS)
def test_what_is_as_it_was_published_is_found_whole(place: Place, audit: str, request: pytest.FixtureRequest) -> None:
    audited: Audit = request.getfixturevalue(audit)
    regions = audited.run().run.summary["regions"]
    verified = verify(audited.location)
    assert verified.problems == ()
    assert (verified.version, verified.regions) == (audited.version(), regions)


@on_disk
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("audit", AUDITS)
def test_damage_to_any_object_is_found(place: Place, audit: str, damage: str, request: pytest.FixtureRequest) -> None:
    audited: Audit = request.getfixturevalue(audit)
    audited.changed(output={"region_rows": AUDITS[audit]}).run()
    location = audited.version().location
    for path in objects_of(audited):
        found = problems_with(location, path, DAMAGES[damage](location.read(path)))
        assert found, path
        part = path.removesuffix(".parquet").removesuffix(".json").rpartition("/")[2].removeprefix("part-")
        region = f"region {part}, rows" if path.startswith("scores/") else "region 0" if "/c/" in path else path
        assert region in found or "statistics of the pass" in found, (path, found)
    assert verify(audited.location).problems == ()


@on_disk
def test_a_region_that_was_left_out_must_still_be_without_scores(of_numbers: Audit) -> None:
    of_numbers.data.pred_probs[50] = np.nan
    store_again(of_numbers)
    audited = of_numbers.changed(on_error="quarantine")
    audited.run()
    assert verify(audited.location).problems == ()
    (bad,) = audited.version().bad_regions(str(audited.version().manifest()["digest"])).values()  # type: ignore[index]
    location = audited.version().location
    other = next(path for path in objects_of(audited) if path.startswith("scores/") and bad.region not in path)
    found = problems_with(location, f"scores/part-{bad.region}.parquet", location.read(other))
    assert f"region {bad.region}, rows {bad.start} to {bad.stop - 1}: " in found
    assert "holds other rows than it should" in found


@on_disk
@pytest.mark.parametrize("folder", ["scores", "annotations"])
def test_a_part_that_belongs_to_no_region_is_found(place: Place, of_a_crowd: Audit, folder: str) -> None:
    of_a_crowd.run()
    parts = of_a_crowd.version().location / folder
    parts.write("part-99999.parquet", parts.read("part-00000.parquet"))
    assert verify(of_a_crowd.location).problems == (f"{parts}/part-99999.parquet: is not of this version",)


@on_disk
def test_there_is_nothing_to_verify_before_a_version_is_published(of_numbers: Audit) -> None:
    with pytest.raises(StorageError, match="nothing has been published"):
        verify(of_numbers.location)


@on_disk
def test_what_another_format_tells_is_not_taken_for_damage(of_numbers: Audit) -> None:
    version = of_numbers.run().run.version
    manifest = version.manifest()
    assert manifest is not None
    version.write_manifest({**manifest, "format": 2})
    with pytest.raises(StorageError, match="was written in format 2"):
        verify(version.out)
