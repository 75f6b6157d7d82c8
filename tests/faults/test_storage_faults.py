"""Whatever happens between us and the store: the result is right, or the run fails and says at which object."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest
from distributed import Client

from labelqa_dask.core.errors import StorageError
from labelqa_dask.storage.location import Location, StorageOptions
from labelqa_dask.storage.record import latest
from pipelines.verify import verify
from tests.faults.proxy import Fault, FaultyProxy, Script, faulty_proxy
from tests.faults.tasks import TASKS, audit_of
from tests.pipelines.audits import Audit
from tests.stores import Place


def first_time(fault: Fault, *methods: str, part: str = "", times: int = 1) -> Script:
    """A fault for each object, the first time, or the first few times, that it is asked for."""
    return lambda method, path, before: fault if method in methods and part in path and before < times else None


@contextmanager
def disturbed(audit: Audit, script: Script, **options: float) -> Iterator[tuple[Audit, FaultyProxy]]:
    """The same audit with a faulty way to the store."""
    endpoint = audit.place.options.endpoint_url
    assert endpoint is not None
    settings: dict[str, float] = {"timeout_seconds": 1, "retry_seconds": 30, **options}
    with ExitStack() as stack:
        proxy = stack.enter_context(faulty_proxy(endpoint, script))
        reached = StorageOptions(endpoint_url=proxy.url, region=audit.place.options.region, **settings)
        yield replace(audit, place=Place(audit.place.root, reached), out="disturbed"), proxy


SCRIPTS: dict[str, Script] = {
    **{fault: first_time(fault, "GET", "PUT", "HEAD") for fault in ("busy", "slow down", "reset")},
    "bursts": first_time("busy", "GET", "PUT", part="/_run/", times=4),
    "stalled reads": first_time("stalled", "GET"),
    "stalled writes": first_time("stalled", "PUT", part="/done/"),
    "truncated reads": first_time("cut off", "GET"),
    "lost answers to writes": first_time("lost", "PUT"),
}


QUICK = ("busy", "truncated reads", "lost answers to writes")


@pytest.mark.parametrize("case", [pytest.param(c, marks=[] if c in QUICK else pytest.mark.slow) for c in SCRIPTS])
@pytest.mark.parametrize(("name", "kind"), [("multiclass", "parquet"), ("segmentation", "zarr")])
def test_faults_are_outlived_and_leave_no_trace(name: str, kind: str, case: str, s3: Place, client: Client) -> None:
    audit = audit_of(s3, client, TASKS[name], kind)
    audit.run()
    with disturbed(audit, SCRIPTS[case]) as (again, proxy):
        again.run()
        assert proxy.faults.total() >= 5, "or nothing was tested"
    direct = replace(audit, out="disturbed")
    assert direct.published() == audit.published()
    assert verify(direct.location).problems == ()


@pytest.mark.parametrize(
    ("part", "method"), [("/data.zarr/pred_probs/c/3", "GET"), ("/_run/done/00003", "PUT"), ("/summary.json", "PUT")]
)
def test_a_store_that_stays_broken_fails_the_run_at_the_object_and_after_the_deadline(
    part: str, method: str, s3: Place, client: Client
) -> None:
    audit = audit_of(s3, client, TASKS["segmentation"])

    def always(asked: str, path: str, before: int) -> Fault | None:
        return "busy" if asked == method and part in path else None

    with disturbed(audit, always, retry_seconds=1) as (again, _), pytest.raises(StorageError) as caught:
        again.run()
    told = str(caught.value)
    assert f"s3://labelqa/{audit.place.root.rpartition('/')[2]}" in told
    assert "503" in told
    assert "Requests were retried until the deadline" in told
    direct = replace(audit, out="disturbed")
    assert latest(direct.location) is None
    assert direct.run().resumed
    assert verify(direct.location).problems == ()


WITHOUT_END: list[tuple[str, Fault]] = [
    *(("GET", fault) for fault in ("busy", "slow down", "reset", "stalled", "cut off")),
    *(("PUT", fault) for fault in ("busy", "slow down", "reset", "stalled", "lost")),
]


@pytest.mark.parametrize(("method", "fault"), WITHOUT_END)
def test_a_fault_without_end_is_told_at_the_object_and_after_the_deadline(method: str, fault: Fault, s3: Place) -> None:
    content = bytes(range(256)) * 40
    s3("data").write("x", content)
    assert s3.options.endpoint_url is not None

    def always(asked: str, path: str, before: int) -> Fault | None:
        return fault if asked == method else None

    with faulty_proxy(s3.options.endpoint_url, always) as proxy:
        options = StorageOptions(endpoint_url=proxy.url, region="x", timeout_seconds=1, retry_seconds=2)
        location = Location.parse(s3.url("data"), options)
        with pytest.raises(StorageError) as caught:
            location.read("x") if method == "GET" else location.write("x", content[::-1])
        assert proxy.faults[fault] > 1, "it was tried again"
    assert str(caught.value).startswith(f"{s3.url('data')}/x: ")
    assert "Requests were retried until the deadline." in str(caught.value)
    assert s3("data").read("x") in (content, content[::-1]), "the old one or the new one, never a part"


def test_a_store_that_is_gone_is_told(tmp_path: object) -> None:
    options = StorageOptions(endpoint_url="http://127.0.0.1:9", region="x", retry_seconds=0, timeout_seconds=1)
    with pytest.raises(StorageError, match=r"s3://bucket/data/x: .*"):
        Location.parse("s3://bucket/data", options).read("x")
