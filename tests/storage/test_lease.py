"""One driver at a time on an output, and the dead hold nothing."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Condition, local
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labelqa_dask.core.errors import OutputInUse, RunConflict
from labelqa_dask.storage import lease as leases
from labelqa_dask.storage.lease import LEASE_SECONDS, Holder, holder_of, holding
from labelqa_dask.storage.location import Location
from tests.pipelines.audits import begin_together
from tests.stores import Place

ELSEWHERE = "another-host"
HERE = socket.gethostname()


def write_claim(out: Location, *, heard: float, **changes: Any) -> None:
    claim = {"key": "someone", "host": ELSEWHERE, "pid": 1, "processes": leases._numbering(), "since": heard - 10}
    content = {**claim, "heard": heard, "turn": 1, "holds": True, **changes}
    out.write(f"_lease/{content['key']}.json", json.dumps(content).encode())


def claims(out: Location) -> list[str]:
    return sorted(entry.path for entry in (out / "_lease").entries())


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_an_output_is_held_for_the_block_and_free_after(place: Place) -> None:
    out = place("out")
    assert holder_of(out) is None
    with holding(out):
        holder = holder_of(out)
        assert holder is not None
        assert (holder.host, holder.pid) == (HERE, os.getpid())
        with pytest.raises(OutputInUse, match=rf"process {os.getpid()} on .* has been working on this output since"):
            holding(out).__enter__()
        assert holder_of(out) == holder, "a refused run must not disturb the one that holds"
    assert holder_of(out) is None
    assert claims(out) == []


def test_an_output_is_free_after_an_error(place: Place) -> None:
    out = place("out")
    with pytest.raises(ZeroDivisionError), holding(out):
        raise ZeroDivisionError
    assert holder_of(out) is None


def test_a_holder_elsewhere_is_respected_until_its_lease_expires(place: Place) -> None:
    out = place("out")
    write_claim(out, heard=time.time() - LEASE_SECONDS / 2)
    with pytest.raises(OutputInUse, match=rf"{ELSEWHERE}.*choose another output.*expires at .* run the same"):
        holding(out).__enter__()
    write_claim(out, heard=time.time() - LEASE_SECONDS - 1)
    with holding(out) as lease:
        assert claims(out) == [f"{lease.me.key}.json"], "what the dead left is removed"


def test_a_dead_process_of_this_machine_holds_nothing(place: Place) -> None:
    out = place("out")
    write_claim(out, host=HERE, pid=ended_process(), heard=time.time())
    with holding(out):
        pass


def test_a_process_of_another_container_under_the_same_name_is_not_taken_for_dead(place: Place) -> None:
    out = place("out")
    write_claim(out, host=HERE, pid=ended_process(), heard=time.time(), processes="pid:[1]")
    with pytest.raises(OutputInUse, match="has been working"):
        holding(out).__enter__()


@pytest.mark.parametrize("content", [b"{", b"null", b"[]", b'{"key": "x"}', b"\xff"])
def test_a_damaged_claim_holds_nothing(content: bytes, place: Place) -> None:
    out = place("out")
    out.write("_lease/someone.json", content)
    with holding(out) as lease:
        lease.check()


def test_a_lease_is_renewed_while_it_is_held(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "_RENEW_SECONDS", 0.01)
    out = place("out")
    with holding(out):
        first = holder_of(out)
        assert first is not None
        while (now := holder_of(out)) is None or now.heard == first.heard:
            pass
        assert now.key == first.key


def test_a_holder_that_was_taken_over_notices_and_leaves_the_other_alone(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = place("out")
    with holding(out) as lease:
        lease.check()
        monkeypatch.setattr(Holder, "is_dead", property(lambda claim: claim.key == lease.me.key))
        with holding(out) as other:
            assert other.me.turn == lease.me.turn + 1
            with pytest.raises(RunConflict, match="another run has taken over this output"):
                lease.check()
            lease.renew()
            assert claims(out) == [f"{other.me.key}.json"], "the dead are not heard of again"
            leases._write(out, lease.me)  # as a renewal does that was under way when the other took over
            other.check()
            with pytest.raises(RunConflict, match="another run has taken over this output"):
                lease.check()


def test_a_dead_namesake_holds_nothing(place: Place) -> None:
    out = place("out")
    write_claim(out, host=HERE, pid=os.getpid(), heard=time.time())
    with holding(out):
        pass


def test_of_several_that_begin_at_once_one_holds(place: Place) -> None:
    assert sum(begin_together(place("out"), 5)) == 1


class Turns:
    """Lets threads act on a store one at a time, in an order that was written down."""

    def __init__(self, order: Sequence[int]) -> None:
        self.order, self.at, self.ended = order, 0, set[int]()
        self.changed = Condition()
        self.me = local()

    def take(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def act(*args: Any) -> Any:
            with self.changed:
                self.changed.wait_for(self.is_mine, 30)
                self.at += 1
                self.changed.notify_all()
                result = function(*args)
                return iter(list(result)) if isinstance(result, Iterator) else result

        return act

    def is_mine(self) -> bool:
        return self.order[self.at % len(self.order)] == self.me.number or bool(self.ended - {self.me.number})

    def end(self) -> None:
        with self.changed:
            self.ended.add(self.me.number)
            self.changed.notify_all()


@settings(deadline=None, max_examples=60)
@given(order=st.lists(st.integers(0, 1), min_size=2, max_size=40))
def test_in_whatever_order_two_act_on_a_store_at_most_one_holds(order: list[int]) -> None:
    turns = Turns(order)

    def claim(number: int, out: Location) -> bool:
        turns.me.number = number
        leases._claimed.add(str(number))
        try:
            return bool(leases._claim(out, str(number)))
        except OutputInUse:
            return False
        finally:
            turns.end()

    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        for name in ("write", "entries", "read_if_exists", "delete_object"):
            patch.setattr(Location, name, turns.take(getattr(Location, name)))
        patch.setattr(leases, "_FIRST_PAUSE", 0)
        with ThreadPoolExecutor(2) as pool:
            held = list(pool.map(claim, range(2), [Location.parse(Path(folder) / "out")] * 2))
        leases._claimed.difference_update({"0", "1"})
    assert sum(held) <= 1
