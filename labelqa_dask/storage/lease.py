"""One driver at a time: whoever works on an output has a claim to it there, and renews it while it lives.

Each driver writes a claim of its own, under a name that nobody else uses, and then looks which others are there. Of two
that begin at once, the one that looks last sees the other; who sees another withdraws. This asks of the store only that
a listing shows what was written before it, and not that it can refuse a write by what is there already: several stores
cannot, or say that they can and let two writers through.

The lease saves work and confusion; no byte of a result depends on it, as every object of a run is written whole, and
two runs of one manifest write the same bytes.
"""

from __future__ import annotations

import json
import os
import random
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
_FOLDER = "_lease"
_ATTEMPTS = 8
_FIRST_PAUSE = 0.1


@dataclass(frozen=True)
class Holder:
    """Who has a claim to an output: a process, since when, and when it was last heard of, in seconds since 1970.

    Attributes
    ----------
    processes : which numbering of processes `pid` belongs to: containers of one host name may each have their own
    turn : higher than that of everyone whose claim was there before, so that it tells who took over from whom
    holds : whether it is known that nobody else has a claim, so that the work may begin
    """

    key: str
    host: str
    pid: int
    processes: str
    since: float
    heard: float
    turn: int
    holds: bool

    @property
    def is_dead(self) -> bool:
        """Not heard of for as long as a lease lasts, or a process of this machine that has ended."""
        if time.time() - self.heard > LEASE_SECONDS:
            return True
        if (self.host, self.processes) != (socket.gethostname(), _numbering()):
            return False
        if self.pid == os.getpid():
            return self.key not in _claimed
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False

    @property
    def rank(self) -> tuple[int, str]:
        """Whoever has the higher one goes on, should two believe that they hold an output."""
        return self.turn, self.key


def _numbering() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:  # there are none but the machine's
        return ""


def holder_of(out: Location) -> Holder | None:
    """Who works on an output, if anybody does and is alive."""
    working = [claim for claim in _claims(out) if claim.holds and not claim.is_dead]
    return max(working, key=lambda claim: claim.rank, default=None)


@dataclass(frozen=True)
class Lease:
    """The lease that this process holds on an output."""

    out: Location
    me: Holder

    @property
    def is_mine(self) -> bool:
        """Whether nobody has taken it over, as they may where this process was not heard of for long."""
        working = {claim.key: claim for claim in _claims(self.out) if claim.holds}
        return self.me.key in working and all(claim.rank <= self.me.rank for claim in working.values())

    def check(self) -> None:
        """Refuse to go on where somebody else has taken over."""
        if not self.is_mine:
            raise RunConflict(
                "another run has taken over this output, as this one was not heard of for too long",
                str(self.out),
                "Nothing was published by this one; what it had finished, the same command resumes.",
            )

    def renew(self) -> None:
        """Be heard of."""
        if self.out.holds(_path(self.me)):
            _write(self.out, replace(self.me, heard=time.time()))


_claimed: set[str] = set()
"""Keys of the claims of this process: another key under its number is that of a dead namesake."""


@contextmanager
def holding(out: Location) -> Iterator[Lease]:
    """Hold the lease of an output for as long as the block lasts.

    Raises
    ------
    OutputInUse
        Where somebody else holds it, saying who and since when.
    """
    key = uuid4().hex
    _claimed.add(key)
    try:
        lease = Lease(out, _claim(out, key))
        ended = threading.Event()
        thread = threading.Thread(target=_keep_renewing, args=(lease, ended), name="lease", daemon=True)
        thread.start()
        try:
            yield lease
        finally:
            ended.set()
            thread.join()
            out.delete_object(_path(lease.me))
    finally:
        _claimed.discard(key)


def refuse_if_held(out: Location) -> None:
    """Refuse to work on an output that somebody else holds the lease of, saying who and since when.

    Raises
    ------
    OutputInUse
    """
    holder = holder_of(out)
    if holder is not None:
        raise _refusal(out, holder)


def _keep_renewing(lease: Lease, ended: threading.Event) -> None:
    while not ended.wait(_RENEW_SECONDS):
        with suppress(LabelQAError):  # the work itself will meet the store's failure, and say so
            lease.renew()


def _claim(out: Location, key: str) -> Holder:
    """A claim beside which there is no other; those of the dead are removed."""
    pause = _FIRST_PAUSE
    for _ in range(_ATTEMPTS):
        before = list(_claims(out))
        turn = 1 + max((claim.turn for claim in before), default=0)
        now = time.time()
        me = Holder(key, socket.gethostname(), os.getpid(), _numbering(), now, now, turn, holds=False)
        others = [claim for claim in before if not claim.is_dead]
        if not others:
            _write(out, me)
            others = [claim for claim in _claims(out) if claim.key != key and not claim.is_dead]
            if not others:
                return _hold(out, me, before)
            out.delete_object(_path(me))
        if any(claim.holds for claim in others):
            break
        time.sleep(random.uniform(0, pause))  # several begin at once: at another moment each, the first will hold it
        pause *= 2
    raise _refusal(out, max(others, key=lambda claim: (claim.holds, claim.rank)))


def _hold(out: Location, me: Holder, before: list[Holder]) -> Holder:
    held = replace(me, heard=time.time(), holds=True)
    _write(out, held)
    for claim in before:
        if claim.is_dead:
            out.delete_object(_path(claim))
    return held


def _refusal(out: Location, holder: Holder) -> OutputInUse:
    since = datetime.fromtimestamp(holder.since, UTC).isoformat(timespec="seconds")
    expires = datetime.fromtimestamp(holder.heard + LEASE_SECONDS, UTC).isoformat(timespec="seconds")
    return OutputInUse(
        f"process {holder.pid} on {holder.host} has been working on this output since {since}",
        str(out),
        f"Wait until it ends, or choose another output. If it is dead, its lease expires at {expires}: run the same "
        "command again then.",
    )


def _claims(out: Location) -> Iterator[Holder]:
    """Every claim that can be read, of the living and the dead."""
    folder = out / _FOLDER
    for entry in folder.entries():
        content = folder.read_if_exists(entry.path)
        with suppress(ValueError, TypeError):
            if content is not None:
                yield Holder(**json.loads(content))


def _path(claim: Holder) -> str:
    return f"{_FOLDER}/{claim.key}.json"


def _write(out: Location, claim: Holder) -> None:
    out.write(_path(claim), json.dumps(asdict(claim)).encode())
