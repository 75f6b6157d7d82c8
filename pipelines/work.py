"""Work in jobs that are each done once: a job's state on record is its commit, and what is there is not done again.

A job's state carries a digest of all that went into it: what has changed is done again, and nothing else is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol, TypeVar

from distributed import Client

from labelqa_dask.storage.record import Version
from pipelines.regions import Listener, Meter, in_flight

StateT = TypeVar("StateT")


class Job(Protocol):
    """A piece of work: its name on record, a digest of all that goes into it, and its extent."""

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def record(self) -> Version: ...
    @property
    def units(self) -> int: ...
    @property
    def nbytes(self) -> int: ...


JobT = TypeVar("JobT", bound=Job)


def digest_of(*parts: Any) -> str:
    """Digest of values that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()[:32]


def on_record(jobs: Sequence[JobT], kind: type[StateT]) -> list[tuple[JobT, StateT | None]]:
    """Every job with its state, None where it is to be done."""
    if not jobs:
        return []
    record = jobs[0].record
    there = {entry.path.removesuffix(".npz") for entry in (record.run / "stats").entries()}
    with ThreadPoolExecutor(16) as pool:
        states = pool.map(
            lambda job: record.read_state(job.name, kind, job.digest) if job.name in there else None, jobs
        )
        return list(zip(jobs, states, strict=True))


def work_through(
    stage: str,
    unit: str,
    jobs: Sequence[JobT],
    work: Callable[[JobT], StateT],
    kind: type[StateT],
    client: Client,
    worker_bytes: int,
    listener: Listener,
    is_there: Callable[[tuple[JobT, StateT]], bool] | None = None,
) -> Iterator[tuple[JobT, StateT]]:
    """The state of every job, in no particular order: from the record where it was done before, else done now.

    `is_there` tells, on a worker, whether what a job of an earlier session has written is still as it was.
    """
    found = on_record(jobs, kind)
    done = [(job, state) for job, state in found if state is not None]
    left = [job for job, state in found if state is None]
    if is_there is not None:
        checked = list(in_flight(client, is_there, done, worker_bytes))
        done = [item for item, intact in checked if intact]
        left += [job for (job, _), intact in checked if not intact]
    meter = Meter(stage, sum(job.units for job in jobs), listener, done=sum(job.units for job, _ in done), unit=unit)
    yield from done
    for job, state in in_flight(client, partial(_do, work), left, worker_bytes):
        meter.advance(job.units, job.units, job.nbytes)
        yield job, state


def _do(work: Callable[[JobT], StateT], job: JobT) -> StateT:
    """Work on a job; its state is what commits it, so that of an earlier version goes first."""
    job.record.run.delete_object(f"stats/{job.name}.npz")
    state = work(job)
    job.record.write_state(job.name, state, job.digest)
    return state


def forget(record: Version, prefix: str) -> None:
    """Delete the states of the jobs whose names begin so."""
    stats = record.run / "stats"
    for path in [entry.path for entry in stats.entries() if entry.path.startswith(prefix)]:
        stats.delete_object(path)
