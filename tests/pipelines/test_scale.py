"""Very many regions: what a client holds of each is some tens of bytes, and no step is done for each pair of them."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from distributed import Client

from labelqa_dask.core.errors import RunFailed
from labelqa_dask.storage.location import Location
from labelqa_dask.storage.record import Version
from pipelines import receipts
from pipelines.bad_data import BadRegions
from pipelines.config import parse_config
from pipelines.estimate import regions_of
from pipelines.lineage import Lineage, descended
from pipelines.plan import Plan, Resources, make_plan
from pipelines.regions import in_flight, make_job
from pipelines.select import select
from tests.pipelines.audits import Audit, on_disk

FEW, MANY = 30_000, 300_000
MOST_BYTES_OF_A_REGION = 100
# What a call allocates whatever the number of regions, and the granules of arrays.
SLACK = 1 << 20


def images(folder: Path, n: int) -> dict[str, Any]:
    """Settings of an audit of n images, each a region; of the arrays only metadata exist."""
    group = zarr.open_group(str(folder / f"{n}.zarr"), mode="w")
    group.create_array("labels", shape=(n, 64, 64), chunks=(1, 64, 64), dtype="u1")
    group.create_array("pred_probs", shape=(n, 3, 64, 64), chunks=(1, 3, 64, 64), dtype="f4")
    return {
        "task": "segmentation",
        "params": {"method": "num_pixel_issues"},
        "input": {name: {"uri": f"{folder}/{n}.zarr", "array": name} for name in ("labels", "pred_probs")},
        "output": {"uri": f"{folder}/out-{n}", "region_rows": 1},
    }


def planned(settings: dict[str, Any]) -> Plan:
    return make_plan(parse_config(settings), Resources(2, 1, 4 << 30))


def begin(plan: Plan) -> tuple[Plan, list[Version]]:
    """Write down two versions as a run begins them, and find in the first what the second may take from it."""
    inputs, contents = plan.look_up()
    out = Location.parse(plan.config.output.uri)
    versions = [Version(out, "v000001"), Version(out, "v000002")]
    previous: Version | None = None
    for version in versions:
        manifest = descended(plan.manifest(inputs), previous, freeze=False)
        version.write_contents(contents, manifest["digest"])
        version.write_manifest(manifest)
        previous = version
    return replace(plan, lineage=Lineage.of(versions[1], manifest, contents)), versions


def walk(plan: Plan, version: Version) -> int:
    """Make the job of every region of each pass and of the scores, as they are sent, and forget it."""
    bad = BadRegions(plan, version, "digest")
    steps = plan.task.passes(plan.params)
    regions = plan.layout.regions
    numbers = [*(regions_of(step, range(regions.rows), regions) for step in steps), range(len(regions))]
    kept = regions.marked(version.partials("none"))
    count = 0
    for number in (i for each in numbers for i in each):
        region = regions[number]
        key, former = plan.descent.score_key(region, "", False), plan.descent.former(region)
        make_job(plan, version, "digest", bad.basis, region, key, former, bool(kept[number]))
        count += 1
    return count


def traced(function: Callable[[], Any]) -> tuple[int, int]:
    """Bytes that a call held at most, and that its result holds, beyond what was held before."""
    tracemalloc.start()
    try:
        result = function()
        held, peak = tracemalloc.get_traced_memory()
        del result
        return peak, held
    finally:
        tracemalloc.stop()


def calls_of(function: Callable[[], Any]) -> int:
    """How many functions a call calls, written in Python or C."""
    count = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


def test_a_plan_takes_as_much_memory_and_as_many_steps_however_many_regions_it_has(tmp_path: Path) -> None:
    few, many = (images(tmp_path, n) for n in (FEW, MANY))
    planned(few)  # what is imported and cached by the first
    (small, _), (large, _) = (traced(lambda settings=settings: planned(settings)) for settings in (few, many))
    assert large < small + SLACK
    assert calls_of(lambda: planned(many)) < 1.2 * calls_of(lambda: planned(few))
    assert len(planned(many).layout.regions) == MANY


def test_what_is_known_of_a_region_takes_some_tens_of_bytes(tmp_path: Path) -> None:
    plans = [planned(images(tmp_path, n)) for n in (FEW, MANY)]
    begin(plans[0])
    (small, _), (large, held) = (traced(lambda plan=plan: begin(plan)) for plan in plans)
    assert (large - small) / (MANY - FEW) < MOST_BYTES_OF_A_REGION
    assert held / MANY < 40, "a digest, and the number in the version before"
    few, many = (calls_of(lambda plan=plan: begin(plan)) for plan in plans)
    assert many < 1.2 * few, "arrays are worked on as such"


def test_regions_are_made_one_at_a_time(tmp_path: Path) -> None:
    begun = [begin(planned(images(tmp_path, n))) for n in (100, 2000)]
    walk(begun[0][0], begun[0][1][1])
    peaks = [traced(lambda plan=plan, version=versions[1]: walk(plan, version))[0] for plan, versions in begun]
    assert peaks[1] < peaks[0] + 64 * 2000
    few, many = (calls_of(lambda plan=plan, version=versions[1]: walk(plan, version)) for plan, versions in begun)
    assert many < 20 * few


def test_chunks_are_counted_in_steps_that_grow_with_their_number(tmp_path: Path) -> None:
    found = []
    for n in (50, 400):
        settings = images(tmp_path, n)
        array: Any = zarr.open_array(f"{tmp_path}/{n}.zarr/labels", mode="r+")
        array[...] = 1
        plan = planned(settings)
        plan.look_up()
        found.append(calls_of(plan.look_up))
    assert found[1] < 8 * found[0]


def test_parquet_is_planned_in_steps_that_grow_with_its_row_groups(tmp_path: Path) -> None:
    steps = []
    for n in (100, 1000):
        table = pa.table({"label": np.zeros(n, int), "p0": np.full(n, 0.5), "p1": np.full(n, 0.5)})
        pq.write_table(table, tmp_path / f"{n}.parquet", row_group_size=1)
        columns = {"labels": {"column": "label"}, "pred_probs": {"columns": ["p0", "p1"]}}
        settings = {
            "task": "multiclass",
            "input": {name: {"uri": f"{tmp_path}/{n}.parquet", **source} for name, source in columns.items()},
            "output": {"uri": f"{tmp_path}/out-{n}", "format": "parquet", "region_rows": 1},
        }
        assert len(planned(settings).layout.regions) == n
        steps.append(calls_of(lambda settings=settings: begin(planned(settings))))
    assert steps[1] < 12 * steps[0]


# -- driving them


def test_the_threads_of_all_workers_are_not_counted_for_each_item(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each answer names every worker."""
    asked = []

    def nthreads(*arguments: Any) -> Any:
        asked.append(arguments)
        return Client.nthreads(client, *arguments)

    monkeypatch.setattr(client, "nthreads", nthreads)
    monkeypatch.setattr("pipelines.regions._SECONDS_BETWEEN_COUNTS", 3600)
    assert sorted(in_flight(client, str, range(60), 0)) == [(i, str(i)) for i in range(60)]
    assert len(asked) == 1


def test_no_more_futures_than_threads_can_use_are_held(client: Client) -> None:
    before = len(client.futures)
    most = 3 * sum(client.nthreads().values())

    def items() -> Iterator[int]:
        for i in range(300):
            assert len(client.futures) - before <= most
            yield i

    assert len(list(in_flight(client, str, items(), 0))) == 300


@on_disk
def test_receipts_are_merged_in_parts_of_any_size(of_numbers: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = of_numbers.run().run
    monkeypatch.setattr(receipts, "_AT_ONCE", 3)
    parts = of_numbers.changed(out="in parts").run().run
    assert parts.worst.equals(whole.worst)
    assert parts.summary["examples"] == whole.summary["examples"]
    assert parts.summary["score"]["histogram"] == whole.summary["score"]["histogram"]
    assert parts.summary["score"]["mean"] == pytest.approx(whole.summary["score"]["mean"], rel=1e-13)


@on_disk
def test_each_region_without_a_receipt_is_found_in_parts_of_any_size(
    of_numbers: Audit, monkeypatch: pytest.MonkeyPatch
) -> None:
    audited = of_numbers.run()
    version, plan = audited.run.version, make_plan(of_numbers.config, Resources(2, 1, 4 << 30))
    manifest = version.manifest()
    assert manifest is not None
    monkeypatch.setattr(receipts, "_AT_ONCE", 4)
    lost = {1, 9, 10}
    regions = plan.layout.regions
    for number in lost:
        version.run.delete_object(f"done/{regions[number].name}.json")
    basis = manifest["digest"]
    found = receipts.receipted(plan, version, basis, of_numbers.client)
    assert set(np.flatnonzero(~found).tolist()) == lost
    merged = receipts.merge_receipts(plan, version, basis, of_numbers.client)
    assert (merged.missing, merged.first_missing) == (3, regions[1].name)
    assert not receipts.receipted(plan, version, "another", of_numbers.client).any()
    bad = BadRegions(plan, version, basis)
    with pytest.raises(RunFailed, match=f"3 regions have no valid receipt, the first is {regions[1].name}"):
        select(plan, version, basis, bad, of_numbers.client)
