"""What imports share: what they take, the list of what does not fit, and where an import writes.

PARENT/NAME             what is published, by its metadata or by a move, as the last step
PARENT/NAME.import/     the record of an import under way: who works on it, and the state of each finished job
PARENT/STEM.unfit.csv   the files that do not fit, and why; there only where there are any
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dask.utils import format_bytes

from labelqa_dask.core.errors import InvalidConfig, InvalidInput
from labelqa_dask.storage.location import Location
from labelqa_dask.storage.record import Version
from pipelines.plan import USABLE_SHARE, WORKER_BYTES, Resources

ATTRIBUTE = "labelqa_import"
"""Under this name, what an import publishes says what it was made of."""
_SHOWN = 20


class Misfit(NamedTuple):
    """A file that does not fit, and why."""

    file: str
    reason: str


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
