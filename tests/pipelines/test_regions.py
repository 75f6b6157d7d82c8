"""Work on regions: what is sent is small, what comes back is complete, and what goes wrong is told as what it is."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dask.utils import format_bytes
from distributed import Client, LocalCluster

from labelqa_dask.core.errors import InvalidInput, RunFailed, StorageError
from labelqa_dask.storage.parquet_source import ParquetSource
from labelqa_dask.storage.record import BadRegion, Version
from pipelines.bad_data import MOST_REGIONS, BadRegions
from pipelines.config import parse_config
from pipelines.plan import WORKER_BYTES, Plan, Resources, make_plan
from pipelines.regions import Meter, Outcome, Progress, make_job, regions_in_flight
from tests.pipelines.audits import wait_until


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """A plan for files of several hundred row groups, each a region."""
    n = 600
    table = pa.table({"label": np.zeros(n, int), "p0": np.full(n, 0.5), "p1": np.full(n, 0.5), "key": np.arange(n)})
    for number in range(3):
        pq.write_table(table, tmp_path / f"{number}.parquet", row_group_size=2)
    columns = {"labels": {"column": "label"}, "pred_probs": {"columns": ["p0", "p1"]}, "ids": {"column": "key"}}
    config = {
        "task": "multiclass",
        "input": {name: {"uri": f"{tmp_path}/*.parquet", **source} for name, source in columns.items()},
        "output": {"uri": str(tmp_path / "out"), "format": "parquet", "region_rows": 2},
    }
    return make_plan(parse_config(config), Resources(2, 1, 4 << 30))


def version_of(plan: Plan) -> Version:
    source = plan.sources["labels"]
    assert isinstance(source, ParquetSource)
    return Version(source.location / "out", "v000001")


def test_a_job_is_small_to_send_however_many_regions_there_are(plan: Plan) -> None:
    assert len(plan.layout.regions) == 900
    job = make_job(plan, version_of(plan), "digest", "digest", plan.layout.regions[700])
    assert len(pickle.dumps(job)) < 6000
    assert len(pickle.dumps(job)) < len(pickle.dumps(plan)) / 20


def test_a_job_reads_its_rows_and_no_others(plan: Plan) -> None:
    job = make_job(plan, version_of(plan), "digest", "digest", plan.layout.regions[301])
    (block,) = job.blocks()
    assert block.origin["example"] == job.region.start == 602
    assert len(block["labels"]) == len(block["pred_probs"]) == 2
    assert job.ids is not None
    assert job.ids.read((slice(602, 604),)).tolist() == [2, 3]
    assert job.nbytes == 2 * (8 + 16)


def test_missing_statistics_are_an_error_and_not_left_out(plan: Plan) -> None:
    adjusted = make_plan(plan.config.model_copy(update={"params": {"adjust_pred_probs": True}}), plan.resources)
    job = make_job(adjusted, version_of(plan), "digest", "digest", plan.layout.regions[0])
    assert job.statistics(passes=0) == {}
    with pytest.raises(RunFailed, match=r"the statistics of the pass 'confident_thresholds' cannot be read"):
        job.statistics()


# -- many at a time


@pytest.fixture
def bad(plan: Plan) -> BadRegions:
    return BadRegions(plan, version_of(plan), "digest")


def outcome(i: int, *bad: int) -> Outcome:
    """What work on an item comes to: its square, or for some items a bad region."""
    if i in bad:
        return Outcome(None, (BadRegion(f"{i:05d}", i, i + 1, "digest", (f"bad {i}", f"worse {i}")),))
    return Outcome(i * i)


def test_every_item_comes_back_once_with_its_result(client: Client, plan: Plan, bad: BadRegions) -> None:
    found = list(regions_in_flight(client, outcome, iter(range(50)), plan, bad))
    assert sorted(found) == [(i, i * i) for i in range(50)]


def test_no_items_are_no_work(client: Client, plan: Plan, bad: BadRegions) -> None:
    assert list(regions_in_flight(client, outcome, [], plan, bad)) == []


def test_bad_regions_do_not_stop_the_others_and_are_listed_in_order(
    client: Client, plan: Plan, bad: BadRegions
) -> None:
    done: list[int] = []
    with pytest.raises(InvalidInput) as caught:
        done.extend(i for i, _ in regions_in_flight(client, lambda i: outcome(i, 31, 4), range(40), plan, bad))
    assert str(caught.value) == (
        "2 regions hold data that cannot be scored. Nothing was published. Set on_error: quarantine to publish the "
        "rest, or mend the input, then run again with --fresh."
        "\n  region 00004: bad 4\n    worse 4\n  region 00031: bad 31\n    worse 31."
    )
    assert len(BadRegions(plan, version_of(plan), "digest")) == 0, "another session looks for them anew"


def test_the_others_are_yielded_before_bad_regions_are_refused(client: Client, plan: Plan, bad: BadRegions) -> None:
    work = regions_in_flight(client, lambda i: outcome(i, 7), range(30), plan, bad)
    found = {next(work)[0] for _ in range(30)}
    assert found == set(range(30))
    with pytest.raises(InvalidInput, match="1 region holds data"):
        next(work)


def test_nothing_is_begun_after_enough_bad_regions(client: Client, plan: Plan, bad: BadRegions) -> None:
    begun: list[int] = []

    def items() -> Any:
        for i in range(200):
            begun.append(i)
            yield i

    with pytest.raises(InvalidInput, match="and perhaps more") as caught:
        list(regions_in_flight(client, lambda i: outcome(i, i), items(), plan, bad))
    assert len(begun) < MOST_REGIONS + 15
    assert str(caught.value).count("\n  region ") == MOST_REGIONS


def test_the_run_goes_on_without_bad_regions_where_they_are_quarantined(client: Client, plan: Plan) -> None:
    plan = replace(plan, config=plan.config.model_copy(update={"on_error": "quarantine"}))
    bad = BadRegions(plan, version_of(plan), "digest")
    many = range(0, 100, 2)
    found = list(regions_in_flight(client, lambda i: outcome(i, *many), range(100), plan, bad))
    assert sorted(i for i, _ in found) == list(range(100))
    assert [region.start for region in bad] == list(many)
    assert BadRegions(plan, version_of(plan), "digest").basis == bad.basis != "digest", "another session knows them"


def test_other_errors_stop_at_once_and_are_raised_as_they_are(client: Client, plan: Plan, bad: BadRegions) -> None:
    def work(i: int) -> Outcome:
        if i == 3:
            raise StorageError("is full", "s3://bucket/x", "Make room.")
        return Outcome(i)

    begun: list[int] = []

    def items() -> Any:
        for i in range(200):
            begun.append(i)
            yield i

    before = set(client.futures)
    with pytest.raises(StorageError) as caught:
        list(regions_in_flight(client, work, items(), plan, bad))
    assert str(caught.value) == "s3://bucket/x: is full. Make room."
    assert len(begun) < 60
    wait_until(lambda: set(client.futures) <= before)


def test_what_fails_once_is_tried_again(client: Client, plan: Plan, bad: BadRegions, tmp_path: Path) -> None:
    def work(i: int) -> Outcome:
        try:
            (tmp_path / str(i)).touch(exist_ok=False)
        except FileExistsError:
            return Outcome(i)
        raise StorageError("was busy", "s3://bucket/x")

    assert sorted(item for item, _ in regions_in_flight(client, work, range(10), plan, bad)) == list(range(10))


@pytest.mark.slow
def test_work_that_kills_its_workers_is_told_as_what_it_probably_is(plan: Plan, bad: BadRegions) -> None:
    def work(i: int) -> Outcome:
        if i == 3:
            os._exit(1)
        return Outcome(i)

    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as client,
        pytest.raises(RunFailed) as caught,
    ):
        list(regions_in_flight(client, work, range(5), plan, bad))
    assert "workers died again and again on one piece of work" in str(caught.value)
    planned = f"They probably ran out of memory: the plan was {format_bytes(WORKER_BYTES)}"
    assert planned in str(caught.value)


# -- progress


def test_a_meter_counts_what_is_done_and_estimates_from_the_second_on() -> None:
    told: list[Progress] = []
    meter = Meter("score", 10, told.append, done=4)
    meter.advance(1, 100, 800)
    meter.advance(2, 150, 1200)
    meter.advance(3, 50, 400)
    assert [progress.done for progress in told] == [4, 5, 7, 10]
    assert [progress.rows for progress in told] == [0, 100, 250, 300]
    assert [progress.nbytes for progress in told] == [0, 800, 2000, 2400]
    assert {(progress.stage, progress.total) for progress in told} == {("score", 10)}
    assert [progress.seconds_left is None for progress in told] == [True, True, False, False]
    assert told[-1].seconds_left == 0
