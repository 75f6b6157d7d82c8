"""Clusters: begun for a run, or already running."""

from __future__ import annotations

import logging

import dask
import pytest
from distributed import LocalCluster

from flows.cluster import open_cluster, resources_of
from labelqa_dask.core.errors import InvalidConfig
from pipelines.config import parse_config
from pipelines.plan import Resources
from pipelines.regions import in_flight

GIB = 1 << 30


def config(cluster):
    inputs = {"labels": {"uri": "data.zarr"}, "pred_probs": {"uri": "data.zarr"}}
    return parse_config({"task": "multiclass", "input": inputs, "output": {"uri": "out"}, "cluster": cluster})


@pytest.fixture(scope="module")
def running():
    with LocalCluster(
        n_workers=2, threads_per_worker=3, memory_limit="1GiB", processes=True, dashboard_address=":0"
    ) as cluster:
        yield cluster


def test_a_running_cluster_is_used_and_outlives_the_run(running):
    settings = config({"kind": "address", "address": running.scheduler_address})
    for _ in range(2):
        with open_cluster(settings) as client:
            assert client.submit(sum, [1, 2]).result() == 3
    assert resources_of(settings) == Resources(workers=2, threads_per_worker=3, memory_limit=GIB)


def test_a_scheduler_without_workers_is_refused(monkeypatch):
    monkeypatch.setattr("flows.cluster._CONNECT_SECONDS", 0.2)
    with (
        LocalCluster(n_workers=0, processes=True, dashboard_address=":0") as empty,
        pytest.raises(InvalidConfig, match="the scheduler has no workers"),
    ):
        resources_of(config({"kind": "address", "address": empty.scheduler_address}))


def test_an_address_where_nobody_answers_is_refused(monkeypatch):
    monkeypatch.setattr("flows.cluster._CONNECT_SECONDS", 0.2)
    with pytest.raises(InvalidConfig, match=r"tcp://127\.0\.0\.1:9: no Dask scheduler answers there"):
        resources_of(config({"kind": "address", "address": "tcp://127.0.0.1:9"}))


def test_nothing_looks_at_the_frames_of_all_threads_which_stops_a_process_now_and_then(monkeypatch):
    """CPython #106883, by Dask's profiler: whatever the configuration of this machine says."""
    monkeypatch.setenv("DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED", "True")
    settings = config({"workers": 1, "threads_per_worker": 2, "memory_limit": "1GiB"})
    with dask.config.set({"distributed.worker.profile.enabled": True}), open_cluster(settings) as client:
        (callbacks,) = client.run(lambda dask_worker: list(dask_worker.periodic_callbacks)).values()
        assert "heartbeat" in callbacks
        assert "profile" not in callbacks


def test_a_client_keeps_few_of_the_messages_that_it_has_sent():
    """Dask keeps the last thousand, each with the jobs that it brought."""
    settings = config({"workers": 1, "threads_per_worker": 2, "memory_limit": "1GiB"})
    with open_cluster(settings) as client:
        assert len(list(in_flight(client, str, range(200), 0))) == 200
        assert 0 < len(client.scheduler_comm.recent_message_log) <= 10


def levels():
    return tuple(logging.getLogger(f"distributed.worker{name}").getEffectiveLevel() for name in ("", ".memory"))


def test_a_local_cluster_is_as_configured():
    settings = config({"workers": 1, "threads_per_worker": 2, "memory_limit": "1GiB"})
    with open_cluster(settings) as client:
        (worker,) = client.scheduler_info()["workers"].values()
        assert (worker["nthreads"], worker["memory_limit"]) == (2, GIB)
        assert [*client.run(levels).values()] == [(logging.CRITICAL, logging.WARNING)]
    assert resources_of(settings) == Resources(workers=1, threads_per_worker=2, memory_limit=GIB)


def test_workers_share_the_memory_where_no_limit_is_given():
    one, four = (resources_of(config({"workers": n})) for n in (1, 4))
    assert one.memory_limit // 4 == pytest.approx(four.memory_limit, rel=1e-6)
