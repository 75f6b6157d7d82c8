"""Processes that are killed at any moment: the same run again ends in the same bytes, and little is done twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import dask
import pytest
import yaml
from distributed import Client, LocalCluster

from labelqa_dask.core.errors import RunFailed
from labelqa_dask.storage import annotations
from labelqa_dask.storage.record import latest
from pipelines.plan import make_plan
from pipelines.regions import Progress
from pipelines.verify import verify
from tests.faults.tasks import REGION_ROWS, ROWS, TASKS, audit_of, store_parquet
from tests.pipelines.audits import RESOURCES, Audit, on_disk
from tests.pipelines.crowds import LONG
from tests.pipelines.crowds import audit_of as audit_of_crowd
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
IN_FLIGHT = 3
"""How many pieces of work are under way at once for each thread."""
QUICK = (("regions", "score", "4"), ("written", "summary.json"))


def drive(audit: Audit, folder: Path, *point: str) -> subprocess.CompletedProcess[bytes]:
    """Run an audit in processes of its own, all of which are killed at a point, if they get there."""
    config = {
        **audit.settings,
        "task": audit.data.task,
        "output": {**audit.settings["output"], "uri": audit.place.url(audit.out)},
        "cluster": {"workers": 1, "memory_limit": "2GiB"},
    }
    path = folder / "audit.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "tests.faults.driver", str(path), *point]
    return subprocess.run(command, start_new_session=True, capture_output=True)


def kill_driver(audit: Audit, folder: Path, point: tuple[str, ...]) -> None:
    killed = drive(audit, folder, *point)
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


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Counter[str]]:
    """Counts how often workers set about each piece and each region of annotations, of which there are many."""
    file = tmp_path / "notes"
    monkeypatch.setenv("LABELQA_NOTES", str(file))
    monkeypatch.setenv("LABELQA_PIECE_ROWS", "20")
    monkeypatch.setenv("DASK_DISTRIBUTED__WORKER__PRELOAD", "tests.faults.counting")
    monkeypatch.setattr(annotations, "PIECE_ROWS", 20)
    return lambda: Counter(file.read_text().split())


def crowd(place: Place, client: Client) -> tuple[Audit, set[str]]:
    """An audit of annotations, and the names of the jobs that group them."""
    audit = audit_of_crowd(place, client, LONG, "parquet", "parquet", ids=True).changed(output={"region_rows": 8})
    plan = make_plan(audit.config, RESOURCES)
    source = plan.sources["annotations"]
    assert isinstance(source, annotations.AnnotationsSource)
    pieces = {f"scatter/{piece.name}" for piece in source.files.pieces}
    return audit, pieces | {f"gather/{region.name}" for region in plan.layout.regions}


GROUPING = [pytest.param("scatter", marks=pytest.mark.slow), "gather"]


@on_disk
@pytest.mark.parametrize("stage", GROUPING)
def test_grouping_that_is_killed_goes_on_where_it_was(
    stage: str, place: Place, client: Client, tmp_path: Path, notes: Callable[[], Counter[str]]
) -> None:
    audit, jobs = crowd(place, client)
    kill_driver(audit, tmp_path, ("regions", stage, "4"))
    recorded = {path.removesuffix(".npz") for path in place.writes("out/v000001/_run/stats")}
    assert 4 <= sum(name.startswith(stage) for name in recorded) < sum(name.startswith(stage) for name in jobs)
    finished = drive(audit, tmp_path, "nowhere", "")
    assert finished.returncode == 0, finished.stderr.decode()
    found = notes()
    assert set(found) == jobs
    assert max(found.values()) <= 2
    twice = {name for name, count in found.items() if count == 2}
    assert not twice & recorded, "what is on record is not done again"
    assert len(twice) <= IN_FLIGHT
    other = audit.changed(out="undisturbed")
    other.run()
    assert audit.published() == other.published()
    assert verify(audit.location).problems == ()


@on_disk
@pytest.mark.parametrize("stage", GROUPING)
def test_a_worker_that_is_killed_while_grouping_is_replaced(
    stage: str, place: Place, client: Client, notes: Callable[[], Counter[str]]
) -> None:
    audit, jobs = crowd(place, client)
    killed: list[int] = []
    with (
        dask.config.set({"distributed.worker.preload": ["tests.faults.counting"]}),
        LocalCluster(n_workers=2, threads_per_worker=1, memory_limit="2GiB", dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as doomed,
    ):
        pids = list(doomed.run(os.getpid).values())

        def kill_one(progress: Progress) -> None:
            if progress.stage == stage and progress.done == 3:
                killed.append(pids[0])
                os.kill(pids[0], signal.SIGKILL)

        disturbed = Audit(audit.place, audit.data, doomed, audit.settings, out="disturbed")
        disturbed.run(kill_one)
    assert killed
    found = notes()
    assert set(found) == jobs
    assert max(found.values()) <= 2
    assert sum(found.values()) - len(jobs) <= 2 * IN_FLIGHT
    audit.run()
    assert disturbed.published() == audit.published()


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
