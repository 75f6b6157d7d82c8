"""What imports share: pieces of work that are done once, the list of what does not fit, and where an import writes.

    PARENT/NAME             what is published, by its metadata or by a move, as the last step
    PARENT/NAME.import/     the record of an import under way: who works on it, and the state of each finished job
    PARENT/STEM.unfit.csv   the files that do not fit, and why; there only where there are any

A job's state carries a digest of all that went into it, the versions of its files included: what has changed is done
again, and nothing else is.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

from dask.utils import format_bytes
from distributed import Client

from labelqa_dask.core.errors import InvalidConfig, InvalidInput
from labelqa_dask.storage.location import Location
from labelqa_dask.storage.record import Version
from pipelines.plan import USABLE_SHARE, WORKER_BYTES, Resources
from pipelines.regions import Listener, Meter, in_flight

ATTRIBUTE = "labelqa_import"
"""Under this name, what an import publishes says what it was made of."""
_SHOWN = 20

StateT = TypeVar("StateT")


class Misfit(NamedTuple):
    """A file that does not fit, and why."""

    file: str
    reason: str


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


@dataclass(frozen=True)
class Demand:
    """Memory that an import takes on each worker."""

    resources: Resources
    job_bytes: int

    @property
    def worker_bytes(self) -> int:
        return WORKER_BYTES + self.resources.threads_per_worker * self.job_bytes

    def check(self, what: str) -> None:
        """Refuse work that does not fit, with the numbers."""
        limit = self.resources.memory_limit
        if self.worker_bytes > USABLE_SHARE * limit:
            raise InvalidConfig(
                f"does not fit: with {what}, a worker would need {format_bytes(self.worker_bytes)}, but has "
                f"{format_bytes(limit)}, of which {USABLE_SHARE:.0%} can be planned with",
                "memory",
                f"Add --set cluster.memory_limit={int(self.worker_bytes / USABLE_SHARE / (1 << 20)) + 1}MiB, "
                "with fewer workers (--set cluster.workers=1) where the machine has not that much for each.",
            )


def record_of(out: Location) -> Version:
    """Where the record of an import is while it is under way."""
    return Version(out.parent, f"{out.name}.import")


def digest_of(*parts: Any) -> str:
    """Digest of values that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()[:32]


def work_through(
    stage: str,
    unit: str,
    jobs: Sequence[JobT],
    work: Callable[[JobT], StateT],
    kind: type[StateT],
    client: Client,
    demand: Demand,
    listener: Listener,
) -> Iterator[tuple[JobT, StateT]]:
    """The state of every job, in no particular order: from the record where it was done before, else done now."""
    if not jobs:
        return
    record = jobs[0].record
    there = {entry.path.removesuffix(".npz") for entry in (record.run / "stats").entries()}
    with ThreadPoolExecutor(16) as pool:
        states = pool.map(
            lambda job: record.read_state(job.name, kind, job.digest) if job.name in there else None, jobs
        )
        found = list(zip(jobs, states, strict=True))
    done = [(job, state) for job, state in found if state is not None]
    left = [job for job, state in found if state is None]
    total = sum(job.units for job in jobs)
    meter = Meter(stage, total, listener, done=sum(job.units for job, _ in done), unit=unit)
    yield from done
    for job, state in in_flight(client, partial(_do, work), left, demand.worker_bytes, demand.resources.threads):
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


def stem_of(out: Location) -> str:
    """Name of an output without its ending."""
    return out.name.removesuffix(".zarr").removesuffix(".parquet")


def misfits_at(out: Location) -> Location:
    """Where the list of the files that do not fit is."""
    return out.parent / f"{stem_of(out)}.unfit.csv"


def list_misfits(out: Location, misfits: Sequence[Misfit]) -> Location:
    """Write the whole list beside an output, or delete that of an earlier time; returns where it is."""
    where = misfits_at(out)
    if not misfits:
        if out.parent.exists():
            out.parent.delete_object(where.name)
        return where
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Misfit._fields)
    writer.writerows(sorted(misfits))
    out.parent.write(where.name, text.getvalue().encode())
    return where


def describe_misfits(misfits: Sequence[Misfit]) -> str:
    """The files that do not fit, one a line; of a reason that many share, the first few."""
    shared = Counter(misfit.reason for misfit in misfits)
    shown: Counter[str] = Counter()
    lines = []
    for file, reason in sorted(misfits):
        shown[reason] += 1
        if shared[reason] <= 5 or shown[reason] <= 3:
            lines.append(f"\n  {file} {reason}")
        elif shown[reason] == 4:
            lines.append(f"\n  … and {shared[reason] - 3:,} more of which each {reason}")
        if len(lines) == _SHOWN:
            left = len(misfits) - sum(shown.values())
            return "".join([*lines, f"\n  … and {left:,} more"] if left else lines)
    return "".join(lines)


def refuse(out: Location, misfits: Sequence[Misfit], mend: str) -> InvalidInput:
    """The error for files that do not fit; the whole list is written beside the output."""
    where = list_misfits(out, misfits)
    many = f"{len(misfits):,} files do" if len(misfits) > 1 else "1 file does"
    return InvalidInput(f"{many} not fit; nothing was published. {mend}\nThe list: {where}{describe_misfits(misfits)}")
