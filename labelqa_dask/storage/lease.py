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
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from uuid import uuid4

from labelqa_dask.core.errors import LabelQAError, RunConflict
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


@contextmanager
def holding(out: Location) -> Iterator[None]:
    """Hold the lease of an output for as long as the block lasts.

    Raises
    ------
    RunConflict
        Where somebody else holds it, saying who and since when.
    """
    _refuse_if_held(out)
    me = Holder.here()
    _write(out, me)
    _refuse_if_held(out, but_by=me.key)
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(_RENEW_SECONDS):
            try:
                _write(out, Holder(me.key, me.host, me.pid, me.since, time.time()))
            except LabelQAError:
                continue  # the work itself will meet the store's failure, and say so

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        out.delete_object(_NAME)


def _refuse_if_held(out: Location, but_by: str | None = None) -> None:
    holder = holder_of(out)
    if holder is not None and holder.key != but_by:
        since = datetime.fromtimestamp(holder.since, UTC).isoformat(timespec="seconds")
        expires = datetime.fromtimestamp(holder.heard + LEASE_SECONDS, UTC).isoformat(timespec="seconds")
        raise RunConflict(
            f"process {holder.pid} on {holder.host} has been working on this output since {since}",
            str(out),
            f"Wait until it ends. If it is dead, its lease expires at {expires}.",
        )


def _write(out: Location, holder: Holder) -> None:
    out.write(_NAME, json.dumps(asdict(holder)).encode())
