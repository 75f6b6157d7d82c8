"""One driver at a time on an output, and the dead hold nothing."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from labelqa_dask.core.errors import OutputInUse, RunConflict
from labelqa_dask.storage.lease import LEASE_SECONDS, holder_of, holding

ELSEWHERE = "another-host"


def write_lease(out, *, host=ELSEWHERE, pid=1, heard):
    content = {"key": "someone", "host": host, "pid": pid, "since": heard - 10, "heard": heard}
    out.write("lease.json", json.dumps(content).encode())


def ended_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_an_output_is_held_for_the_block_and_free_after(place):
    out = place("out")
    assert holder_of(out) is None
    with holding(out):
        holder = holder_of(out)
        assert holder is not None
        assert (holder.host, holder.pid) == (socket.gethostname(), os.getpid())
        with pytest.raises(OutputInUse, match=rf"process {os.getpid()} on .* has been working on this output since"):
            holding(out).__enter__()
        assert holder_of(out) == holder, "a refused run must not disturb the one that holds"
    assert holder_of(out) is None


def test_an_output_is_free_after_an_error(place):
    out = place("out")
    with pytest.raises(ZeroDivisionError), holding(out):
        raise ZeroDivisionError
    assert holder_of(out) is None


def test_a_holder_elsewhere_is_respected_until_its_lease_expires(place):
    out = place("out")
    write_lease(out, heard=time.time() - LEASE_SECONDS / 2)
    with pytest.raises(OutputInUse, match=ELSEWHERE), holding(out):
        pass
    write_lease(out, heard=time.time() - LEASE_SECONDS - 1)
    with holding(out):
        pass


def test_a_dead_process_of_this_machine_holds_nothing(place):
    out = place("out")
    write_lease(out, host=socket.gethostname(), pid=ended_process(), heard=time.time())
    with holding(out):
        pass


def test_a_damaged_lease_holds_nothing(place):
    out = place("out")
    out.write("lease.json", b"{")
    with holding(out):
        pass


def test_a_lease_is_renewed_while_it_is_held(place, monkeypatch):
    monkeypatch.setattr("labelqa_dask.storage.lease._RENEW_SECONDS", 0.01)
    out = place("out")
    with holding(out):
        first = holder_of(out)
        assert first is not None
        while (now := holder_of(out)) is None or now.heard == first.heard:
            pass
        assert now.key == first.key


def test_a_holder_that_was_taken_over_notices_and_leaves_the_other_alone(place):
    out = place("out")
    with holding(out) as lease:
        lease.check()
        write_lease(out, heard=time.time())
        with pytest.raises(RunConflict, match="another run has taken over this output"):
            lease.check()
        lease.renew()
    holder = holder_of(out)
    assert holder is not None
    assert holder.host == ELSEWHERE


def test_a_dead_namesake_holds_nothing(place):
    out = place("out")
    write_lease(out, host=socket.gethostname(), pid=os.getpid(), heard=time.time())
    with holding(out):
        pass
