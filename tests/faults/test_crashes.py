"""Processes that are killed at any moment: the same run again ends in the same bytes, and little is done twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from distributed import Client, LocalCluster

from labelqa_dask.core.errors import RunFailed
from labelqa_dask.storage.record import latest
from pipelines.regions import Progress
from pipelines.verify import verify
from tests.faults.tasks import REGION_ROWS, ROWS, TASKS, audit_of, store_parquet
from tests.pipelines.audits import Audit, on_disk
from tests.stores import Place

REGIONS = -(-ROWS // REGION_ROWS)
PASS = "estimate confident_thresholds"
POINTS = [
    ("stage", "open"),
    ("stage", "estimate"),
    ("regions", PASS, "4"),
    ("stage", "score"),
    ("regions", "score", "4"),
    ("stage", "select"),
    ("stage", "publish"),
    ("written", "worst.parquet"),
    ("written", "summary.json"),
    ("written", "published.json"),
    ("written", "latest.json"),
]
QUICK = (("regions", "score", "4"), ("written", "summary.json"))


def kill_driver(audit: Audit, folder: Path, point: tuple[str, ...]) -> None:
    """Run an audit in processes of its own, all of which are killed at a point."""
    config = {
        **audit.settings,
        "task": audit.data.task,
        "output": {**audit.settings["output"], "uri": audit.place.url(audit.out)},
        "cluster": {"workers": 1, "memory_limit": "2GiB"},
    }
    path = folder / "audit.yaml"
    path.write_text(yaml.safe_dump(config))
    killed = subprocess.run(
        [sys.executable, "-m", "tests.faults.driver", str(path), *point], start_new_session=True, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()


@on_disk
@pytest.mark.parametrize(
    "point", [pytest.param(p, id=" ".join(p), marks=[] if p in QUICK else pytest.mark.slow) for p in POINTS]
)
def test_a_run_that_is_killed_anywhere_is_finished_to_the_same_bytes(
    point: tuple[str, ...], place: Place, client: Client, tmp_path: Path
) -> None:
    audit = audit_of(place, client, TASKS["multiclass"], "parquet")
    kill_driver(audit, tmp_path, point)
    is_published = point == ("written", "latest.json")
    assert (latest(audit.location) is not None) == is_published, "a reader sees all or nothing"
    before, stats = audit.receipts(), audit.place.writes("out/v000001/_run/stats")
    again = audit.run()
    assert again.unchanged == is_published
    after = audit.receipts()
    assert {path: after[path] for path in before} == before, "what has a receipt is not done again"
    assert stats.items() <= audit.place.writes("out/v000001/_run/stats").items()
    other = audit.changed(out="undisturbed")
    other.run()
    assert audit.published() == other.published()
    assert verify(audit.location).problems == ()


@on_disk
@pytest.mark.parametrize(
    "point",
    [
        pytest.param(p, id=" ".join(p), marks=[] if p[2] == "5" else pytest.mark.slow)
        for p in [("regions", PASS, "1"), ("regions", "score", "1"), ("regions", "score", "5")]
    ],
)
def test_a_refresh_that_is_killed_is_finished_to_the_same_bytes(
    point: tuple[str, ...], place: Place, client: Client, tmp_path: Path
) -> None:
    audit = audit_of(place, client, TASKS["multiclass"], "parquet").changed(refresh={"statistics": "frozen"})
    other = audit.changed(out="undisturbed")
    for each in (audit, other):
        each.run()
    store_parquet(place("data"), replace(audit.data, ids=audit.data.ids[::-1]), [12])  # type: ignore[arg-type]
    kill_driver(audit, tmp_path, point)
    assert latest(audit.location) == audit.version("v000001")
    before = audit.receipts("v000002")
    assert not audit.run().unchanged
    after = audit.receipts("v000002")
    assert {path: after[path] for path in before} == before, "what has a receipt is not done again"
    other.run()
    assert audit.published("v000002") == other.published("v000002")
    assert verify(audit.location).problems == ()


@on_disk
@pytest.mark.parametrize("stage", [PASS, "score"])
def test_a_worker_that_is_killed_is_replaced_and_nothing_is_lost(stage: str, place: Place, client: Client) -> None:
    audit = audit_of(place, client, TASKS["multiclass"], "parquet")
    killed: list[int] = []
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, memory_limit="2GiB", dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as doomed,
    ):
        pids = list(doomed.run(os.getpid).values())

        def kill_one(progress: Progress) -> None:
            if progress.stage == stage and progress.done == 3:
                killed.append(pids[0])
                os.kill(pids[0], signal.SIGKILL)

        receipts: dict[str, int] = {}

        def listen(progress: Progress) -> None:
            kill_one(progress)
            receipts[progress.stage] = progress.done

        other = Audit(audit.place, audit.data, doomed, audit.settings, out="disturbed")
        other.run(listen)
    assert killed
    assert receipts == {PASS: REGIONS, "score": REGIONS}
    audit.run()
    assert other.published() == audit.published()


@pytest.mark.slow
@on_disk
def test_a_run_whose_scheduler_is_lost_says_so_and_is_finished_on_another(
    place: Place, client: Client, tmp_path: Path
) -> None:
    audit = audit_of(place, client, TASKS["multiclass"], "parquet")
    file = tmp_path / "scheduler.json"
    dask = [sys.executable, "-m", "dask"]
    scheduler = subprocess.Popen(
        [*dask, "scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)], stderr=subprocess.DEVNULL
    )
    worker = subprocess.Popen(
        [*dask, "worker", "--nthreads", "1", "--no-dashboard", "--scheduler-file", str(file)], stderr=subprocess.DEVNULL
    )
    try:
        with Client(scheduler_file=str(file), timeout=60, set_as_default=False) as doomed:
            doomed.wait_for_workers(1, timeout=60)

            def kill_scheduler(progress: Progress) -> None:
                if progress.stage == "score" and progress.done == 2:
                    scheduler.kill()

            other = Audit(audit.place, audit.data, doomed, audit.settings)
            with pytest.raises(RunFailed, match="the connection to the Dask scheduler was lost"):
                other.run(kill_scheduler)
    finally:
        for process in (scheduler, worker):
            process.kill()
            process.wait()
    assert audit.run().resumed
    assert verify(audit.location).problems == ()
