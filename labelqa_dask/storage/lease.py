"""One driver at a time: whoever works on an output holds a lease there, and renews it while it lives.

The lease saves work and confusion; the result does not depend on it, as every object of a run is written whole, and two
runs of one manifest write the same bytes.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from uuid import uuid4

from labelqa_dask.core.errors import LabelQAError, OutputInUse, RunConflict
from labelqa_dask.storage.location import Location

LEASE_SECONDS = 90.0
_RENEW_SECONDS = 20.0
_NAME = "lease.json"


@dataclass(frozen=True)
class Holder:
    """Who works on an output: a process, since when, and when it was last heard of, in seconds since 1970."""

    key: str
    host: str
    pid: int
    since: float
    heard: float

    @classmethod
    def here(cls) -> Holder:
        """This process, now."""
        now = time.time()
        return cls(uuid4().hex, socket.gethostname(), os.getpid(), now, now)

    @property
    def is_dead(self) -> bool:
        """Not heard of for as long as a lease lasts, or a process of this machine that has ended."""
        if time.time() - self.heard > LEASE_SECONDS:
            return True
        if self.host != socket.gethostname():
            return False
        if self.pid == os.getpid():
            return self.key not in _held
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False


def holder_of(out: Location) -> Holder | None:
    """Who works on an output, if anybody does and is alive."""
    content = out.read_if_exists(_NAME)
    try:
        holder = Holder(**json.loads(content)) if content else None
    except (ValueError, TypeError):
        return None
    return holder if holder and not holder.is_dead else None


@dataclass(frozen=True)
class Lease:
    """The lease that this process holds on an output."""

    out: Location
    me: Holder

    @property
    def is_mine(self) -> bool:
        """Whether nobody has taken it over, as they may where this process was not heard of for long."""
        content = self.out.read_if_exists(_NAME)
        try:
            return content is not None and bool(json.loads(content)["key"] == self.me.key)
        except (ValueError, TypeError, KeyError):
            return False

    def check(self) -> None:
        """Refuse to go on where somebody else has taken over."""
        if not self.is_mine:
            raise RunConflict(
                "another run has taken over this output, as this one was not heard of for too long",
                str(self.out),
                "Nothing was published by this one.",
            )

    def renew(self) -> None:
        """Be heard of."""
        if self.is_mine:
            _write(self.out, replace(self.me, heard=time.time()))


_held: set[str] = set()
"""Keys of the leases that this process holds: another key under its number is that of a dead namesake."""


@contextmanager
def holding(out: Location) -> Iterator[Lease]:
    """Hold the lease of an output for as long as the block lasts.

    Raises
    ------
    OutputInUse
        Where somebody else holds it, saying who and since when.
    """
    refuse_if_held(out)
    lease = Lease(out, Holder.here())
    _write(out, lease.me)
    refuse_if_held(out, but_by=lease.me.key)
    _held.add(lease.me.key)
    ended = threading.Event()

    def keep_renewing() -> None:
        while not ended.wait(_RENEW_SECONDS):
            with suppress(LabelQAError):  # the work itself will meet the store's failure, and say so
                lease.renew()

    thread = threading.Thread(target=keep_renewing, name="lease", daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        ended.set()
        thread.join()
        _held.discard(lease.me.key)
        if lease.is_mine:
            out.delete_object(_NAME)


def refuse_if_held(out: Location, but_by: str | None = None) -> None:
    """Refuse to work on an output that somebody else holds the lease of, saying who and since when.

    Raises
    ------
    OutputInUse
    """
    holder = holder_of(out)
    if holder is not None and holder.key != but_by:
        since = datetime.fromtimestamp(holder.since, UTC).isoformat(timespec="seconds")
        expires = datetime.fromtimestamp(holder.heard + LEASE_SECONDS, UTC).isoformat(timespec="seconds")
        raise OutputInUse(
            f"process {holder.pid} on {holder.host} has been working on this output since {since}",
            str(out),
            f"Wait until it ends. If it is dead, its lease expires at {expires}.",
        )


def _write(out: Location, holder: Holder) -> None:
    out.write(_NAME, json.dumps(asdict(holder)).encode())
