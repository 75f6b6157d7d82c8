"""Processes that are killed at any moment: the same run again ends in the same bytes, and little is done twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Thread
from typing import Any

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
from tests.faults.invocations import Invocations
from tests.faults.tasks import REGION_ROWS, ROWS, TASKS, audit_of, store_parquet
from tests.pipelines.audits import RESOURCES, Audit, on_disk, wait_until
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
KILLED = [
    *(("multiclass", point) for point in POINTS),
    *((name, ("regions", "score", "4")) for name in TASKS if name != "multiclass"),
    ("multiannotator", ("regions", "estimate majority_vote", "4")),
    ("num_pixel_issues", ("regions", "estimate issue_cutoff", "4")),
    ("neighbors", ("regions", "estimate search", "4")),
    ("neighbors", ("regions", "score", "4")),
]
QUICK = (("multiclass", ("regions", "score", "4")), ("multiclass", ("written", "summary.json")))
LOCAL = {"neighbors": "pynndescent", "n_neighbors": 3}
WORKERS = 2
IN_FLIGHT = 3
"""How many pieces of work are under way at once for each thread."""


def audit_in_kind(place: Place, client: Client, name: str) -> Audit:
    """An audit of stored data in the format that is most usual."""
    if name == "neighbors":
        return audit_in_kind(place, client, "regression").changed(params=LOCAL)
    return audit_of(place, client, TASKS[name], "parquet" if TASKS[name].parquet else "zarr")


def drive(audit: Audit, begun: Invocations, *point: str) -> subprocess.CompletedProcess[bytes]:
    """Run an audit in processes of its own, all of which are killed at once at a point, if they get there."""
    config = {
        **audit.settings,
        "task": audit.data.task,
        "output": {**audit.settings["output"], "uri": audit.place.url(audit.out)},
        "cluster": {"workers": WORKERS, "memory_limit": "2GiB"},
    }
    path = begun.path.parent / "audit.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "tests.faults.driver", str(path), str(begun.path), *point]
    return subprocess.run(command, start_new_session=True, capture_output=True)


def kill_driver(audit: Audit, begun: Invocations, point: tuple[str, ...]) -> None:
    killed = drive(audit, begun, *point)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()


def states_of_passes(audit: Audit) -> dict[str, str]:
    """When each was written; those of grouping, which are cleared away once a version is published, are no passes."""
    written = audit.place.writes("out/v000001/_run/stats")
    return {path: at for path, at in written.items() if "/" not in path and path != "grouped.npz"}


@on_disk
@pytest.mark.parametrize(
    ("name", "point"),
    [pytest.param(*p, id=f"{p[0]} {' '.join(p[1])}", marks=[] if p in QUICK else pytest.mark.slow) for p in KILLED],
)
def test_a_run_that_is_killed_anywhere_is_finished_to_the_same_bytes(
    name: str, point: tuple[str, ...], place: Place, client: Client, tmp_path: Path
) -> None:
    audit = audit_in_kind(place, client, name)
    begun, begun_again = Invocations(tmp_path / "begun"), Invocations(tmp_path / "begun again")
    for invocations in (begun, begun_again):
        invocations.path.touch()
    kill_driver(audit, begun, point)
    is_published = point == ("written", "latest.json")
    assert (latest(audit.location) is not None) == is_published, "a reader sees all or nothing"
    before, stats = audit.receipts(), states_of_passes(audit)
    with begun_again.of_client(client):
        again = audit.run()
    assert again.unchanged == is_published

    after = audit.receipts()
    assert {path: after[path] for path in before} == before, "what has a receipt is not done again"
    receipted = {path.removesuffix(".json") for path in before}
    assert not receipted & begun_again.of("_work_on"), "nor even begun"
    assert len(begun.of("_work_on") - receipted) <= WORKERS, "only what was in hand was done in vain"
    assert begun.of("_work_on") | begun_again.of("_work_on") == {f"{i:05d}" for i in range(REGIONS)}
    assert stats.items() <= states_of_passes(audit).items()
    for number in range(len(stats)):
        assert not begun_again.of(f"_reduce_group{number}"), "a pass that was finished is not made again"

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
    kill_driver(audit, Invocations(tmp_path / "begun"), point)
    assert latest(audit.location) == audit.version("v000001")
    before = audit.receipts("v000002")
    assert not audit.run().unchanged
    after = audit.receipts("v000002")
    assert {path: after[path] for path in before} == before, "what has a receipt is not done again"
    other.run()
    assert audit.published("v000002") == other.published("v000002")
    assert verify(audit.location).problems == ()


# -- workers


@dataclass
class Killer:
    """Kills a worker in every stage of a run, at a moment when it has work in hand.

    The worker is stopped in the middle of the stage, or before it where it has no middle, and killed once the scheduler
    counts on it for something. `in_hand` tells of each stage how many pieces of work that were, with those that were
    done and not fetched yet.
    """

    client: Client
    in_hand: dict[str, int] = field(default_factory=dict)
    _random: random.Random = field(default_factory=lambda: random.Random(0))
    _killing: Thread = field(default_factory=Thread)

    def listen(self, progress: Progress) -> None:
        if progress.stage not in self.in_hand and progress.done == (2 if progress.total > 4 else 0):
            self._begin(progress.stage, with_work=progress.total > 1)

    def call(self, stage: str, function: Callable[..., Any], *args: Any) -> Any:
        """Run a stage; of `select` and `publish` nobody tells the progress."""
        if stage == "select":
            self._begin(stage, with_work="y" in args[0].layout.sizes)
        if stage == "publish":
            self._begin(stage, with_work=False)
        result = function(*args)
        if self._killing.ident:
            self._killing.join()
        return result

    def _begin(self, stage: str, *, with_work: bool) -> None:
        if self._killing.ident:
            self._killing.join()
        self.client.wait_for_workers(1, timeout=120)
        address, pid = self._random.choice([*self.client.run(os.getpid).items()])
        os.kill(pid, signal.SIGSTOP)
        self.in_hand[stage] = 0
        self._killing = Thread(target=self._kill, args=(stage, address, pid, with_work))
        self._killing.start()

    def _kill(self, stage: str, address: str, pid: int, with_work: bool) -> None:
        if with_work:
            wait_until(lambda: bool(self.client.processing()[address]))
            self.in_hand[stage] = len(self.client.processing()[address]) + len(self.client.has_what()[address])
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: address not in self.client.nthreads())


QUICK_TASKS = ("segmentation",)


@on_disk
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK_TASKS else pytest.mark.slow) for name in TASKS]
)
def test_workers_that_are_killed_in_every_stage_are_replaced_and_nothing_is_lost(
    name: str, place: Place, client: Client, tmp_path: Path
) -> None:
    audit, begun = audit_in_kind(place, client, name), Invocations(tmp_path / "begun")
    with (
        LocalCluster(n_workers=WORKERS, threads_per_worker=1, memory_limit="2GiB", dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as doomed,
        begun.of_client(doomed),
    ):
        killer = Killer(doomed)
        other = replace(audit, client=doomed, out="disturbed")
        other.run(killer.listen, call=killer.call)
    told: set[str] = set()
    audit.run(lambda progress: told.add(progress.stage))
    assert killer.in_hand.keys() == told | {"select", "publish"}, "a worker was killed in every stage"
    assert sum(killer.in_hand.values()) >= len(told) - 1, "and had something in hand"
    assert other.published() == audit.published()
    assert verify(other.location).problems == ()
    counts = begun.counts()
    assert begun.of("_work_on") == {f"{i:05d}" for i in range(REGIONS)}
    assert max(counts.values()) <= 2
    assert sum(count - 1 for count in counts.values()) <= sum(killer.in_hand.values()), "only that is done again"


@pytest.mark.slow
@on_disk
def test_a_worker_that_is_frozen_is_given_up_and_its_regions_are_done_by_others(place: Place, client: Client) -> None:
    audit = audit_in_kind(place, client, "segmentation")
    frozen: set[str] = set()

    def freeze(progress: Progress) -> None:
        if progress.stage == "score" and progress.done == 2 and not frozen:
            address, pid = next(iter(other.client.run(os.getpid).items()))
            frozen.add(address)
            os.kill(pid, signal.SIGSTOP)

    with (
        dask.config.set({"distributed.scheduler.worker-ttl": "3s"}),
        LocalCluster(n_workers=WORKERS, threads_per_worker=1, memory_limit="2GiB", dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as doomed,
    ):
        other = replace(audit, client=doomed, out="disturbed")
        other.run(freeze)
        assert frozen
        assert not frozen & doomed.nthreads().keys()
    audit.run()
    assert other.published() == audit.published()


# -- clusters that are no children of the driver


@dataclass(frozen=True)
class ExternalCluster:
    """A scheduler and its workers, each by its own command."""

    folder: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def file(self) -> str:
        return str(self.folder / "scheduler.json")

    def start(self, name: str, *command: str) -> None:
        options = ["--no-dashboard", "--scheduler-file", self.file]
        dask = [sys.executable, "-m", "dask", *command, *options]
        self.processes[name] = subprocess.Popen(dask, stderr=subprocess.DEVNULL)

    def start_worker(self, name: str) -> None:
        self.start(name, "worker", "--nthreads", "1", "--no-nanny")

    def kill(self, name: str) -> None:
        self.processes[name].kill()
        self.processes[name].wait()


@pytest.fixture
def external(tmp_path: Path) -> Iterator[ExternalCluster]:
    cluster = ExternalCluster(tmp_path)
    cluster.start("scheduler", "scheduler", "--port", "0")
    cluster.start_worker("worker")
    try:
        yield cluster
    finally:
        for name in cluster.processes:
            cluster.kill(name)


@contextmanager
def client_of(external: ExternalCluster) -> Iterator[Client]:
    with Client(scheduler_file=external.file, timeout=20, set_as_default=False) as client:
        client.wait_for_workers(1, timeout=60)
        yield client


def at(stage: str, done: int, function: Callable[[], None]) -> Callable[[Progress], None]:
    """Do something as soon as so many regions of a stage are done."""

    def listen(progress: Progress) -> None:
        if (progress.stage, progress.done) == (stage, done):
            function()

    return listen


LOSSES = [("estimate issue_cutoff", 4), ("score", 0), ("score", 2), ("score", 8), ("select", 0)]


@pytest.mark.slow
@on_disk
@pytest.mark.parametrize(("stage", "done"), LOSSES)
def test_a_run_whose_scheduler_is_lost_says_so_and_is_finished_on_another(
    stage: str, done: int, place: Place, client: Client, external: ExternalCluster
) -> None:
    audit = audit_in_kind(place, client, "num_pixel_issues")

    def call(name: str, function: Callable[..., Any], *args: Any) -> Any:
        if name == stage == "select":
            external.kill("scheduler")
        return function(*args)

    with client_of(external) as doomed:
        other = replace(audit, client=doomed)
        with pytest.raises(RunFailed, match=r"connection to the Dask scheduler was lost .* Run the same command again"):
            other.run(at(stage, done, lambda: external.kill("scheduler")), call=call)
    assert latest(audit.location) is None
    assert audit.run().resumed
    undisturbed = audit.changed(out="undisturbed")
    undisturbed.run()
    assert audit.published() == undisturbed.published()


@on_disk
def test_a_run_that_has_lost_its_last_worker_waits_for_another(
    place: Place, client: Client, external: ExternalCluster
) -> None:
    audit = audit_in_kind(place, client, "multiclass")

    def replace_worker() -> None:
        external.kill("worker")
        external.start_worker("another")

    with client_of(external) as doomed:
        other = replace(audit, client=doomed, out="disturbed")
        other.run(at("score", 3, replace_worker))
    audit.run()
    assert other.published() == audit.published()


# -- grouping


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of annotations of which there are many."""
    monkeypatch.setenv("LABELQA_PIECE_ROWS", "20")
    monkeypatch.setattr(annotations, "PIECE_ROWS", 20)


def crowd(place: Place, client: Client) -> tuple[Audit, set[str]]:
    """An audit of annotations, and the names of the jobs that group them."""
    audit = audit_of_crowd(place, client, LONG, "parquet", "parquet", ids=True).changed(output={"region_rows": 8})
    plan = make_plan(audit.config, RESOURCES)
    source = plan.sources["annotations"]
    assert isinstance(source, annotations.AnnotationsSource)
    pieces = {f"scatter/{piece.name}" for piece in source.files.pieces}
    return audit, pieces | {f"gather/{region.name}" for region in plan.layout.regions}


def grouped(begun: Invocations) -> Counter[str]:
    """How often each job of grouping was begun."""
    lines = begun.counts()
    return Counter({line.split()[1]: count for line, count in lines.items() if line.startswith("_do")})


GROUPING = [pytest.param("scatter", marks=pytest.mark.slow), "gather"]


@on_disk
@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("stage", GROUPING)
def test_grouping_that_is_killed_goes_on_where_it_was(stage: str, place: Place, client: Client, tmp_path: Path) -> None:
    audit, jobs = crowd(place, client)
    begun = Invocations(tmp_path / "begun")
    kill_driver(audit, begun, ("regions", stage, "4"))
    recorded = {path.removesuffix(".npz") for path in place.writes("out/v000001/_run/stats")}
    assert 4 <= sum(name.startswith(stage) for name in recorded) < sum(name.startswith(stage) for name in jobs)
    finished = drive(audit, begun, "nowhere", "")
    assert finished.returncode == 0, finished.stderr.decode()
    found = grouped(begun)
    assert set(found) == jobs
    assert max(found.values()) <= 2
    twice = {name for name, count in found.items() if count == 2}
    assert not twice & recorded, "what is on record is not done again"
    assert len(twice) <= WORKERS, "only what was in hand is"
    other = audit.changed(out="undisturbed")
    other.run()
    assert audit.published() == other.published()
    assert verify(audit.location).problems == ()


@on_disk
@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("stage", GROUPING)
def test_a_worker_that_is_killed_while_grouping_is_replaced(
    stage: str, place: Place, client: Client, tmp_path: Path
) -> None:
    audit, jobs = crowd(place, client)
    begun = Invocations(tmp_path / "begun")
    with (
        LocalCluster(n_workers=WORKERS, threads_per_worker=1, memory_limit="2GiB", dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as doomed,
        begun.of_client(doomed),
    ):
        pids = list(doomed.run(os.getpid).values())
        disturbed = replace(audit, client=doomed, out="disturbed")
        disturbed.run(at(stage, 3, lambda: os.kill(pids[0], signal.SIGKILL)))
    found = grouped(begun)
    assert set(found) == jobs
    assert max(found.values()) <= 2
    assert sum(found.values()) - len(jobs) <= WORKERS * IN_FLIGHT
    audit.run()
    assert disturbed.published() == audit.published()
