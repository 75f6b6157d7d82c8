"""Very many regions: what a client holds of each is some tens of bytes, and no step is done for each pair of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from distributed import Client, LocalCluster

from labelqa_dask.core.errors import RunFailed
from pipelines import receipts
from pipelines.bad_data import BadRegions
from pipelines.plan import Resources, make_plan
from pipelines.regions import in_flight
from pipelines.select import select
from tests.pipelines import many
from tests.pipelines.audits import Audit, on_disk
from tests.pipelines.many import FEW, MANY, WALKED, begin, calls_of, images, planned

MOST_BYTES_OF_A_REGION = 100
# What a call allocates whatever the number of regions, and the granules of arrays.
SLACK = 1 << 20
Found = dict[str, list[tuple[int, int, int]]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Most bytes, bytes of the result and calls of each step, for few and for many regions."""
    command = [sys.executable, many.__file__, str(tmp_path_factory.mktemp("many"))]
    told: Found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return told


def test_a_plan_takes_as_much_memory_and_as_many_steps_however_many_regions_it_has(found: Found) -> None:
    (small, _, few), (large, _, lots) = found["plan"]
    assert large < small + SLACK
    assert lots < 1.2 * few


def test_what_is_known_of_a_region_takes_some_tens_of_bytes(found: Found) -> None:
    (small, _, few), (large, held, lots) = found["begin"]
    assert (large - small) / (MANY - FEW) < MOST_BYTES_OF_A_REGION
    assert held / MANY < 40, "a digest, and the number in the version before"
    assert lots < 1.2 * few, "arrays are worked on as such"


def test_regions_are_made_one_at_a_time(found: Found) -> None:
    (small, _, few), (large, _, lots) = found["walk"]
    assert large < small + 64 * WALKED[1]
    assert lots < 1.1 * few * WALKED[1] / WALKED[0]


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


def test_there_is_work_for_workers_that_come_only_where_there_is_some() -> None:
    with (
        LocalCluster(n_workers=0, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        cluster.adapt(minimum=0, maximum=1, interval="100ms")
        assert sorted(in_flight(client, str, range(9), 0)) == [(i, str(i)) for i in range(9)]


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
    for strange in ("note.txt", "00001.json.tmp", "99999.json"):
        version.run.write(f"done/{strange}", b"left by somebody else")
    found = receipts.receipted(plan, version, basis, of_numbers.client)
    assert set(np.flatnonzero(~found).tolist()) == lost
    merged = receipts.merge_receipts(plan, version, basis, of_numbers.client)
    assert (merged.missing, merged.first_missing) == (3, regions[1].name)
    assert not receipts.receipted(plan, version, "another", of_numbers.client).any()
    bad = BadRegions(plan, version, basis)
    with pytest.raises(RunFailed, match=f"3 regions have no valid receipt, the first is {regions[1].name}"):
        select(plan, version, basis, bad, of_numbers.client)
