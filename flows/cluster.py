"""The Dask cluster of a run: begun for it, on this machine or elsewhere, or one that is already running."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import dask
from dask.utils import parse_bytes
from distributed import Client
from distributed import LocalCluster as DaskLocalCluster
from distributed.system import MEMORY_LIMIT

from flows.engines import ALLOCATOR, UNPROFILED, begin
from labelqa_dask.core.blocks import available_cpus
from labelqa_dask.core.errors import InvalidConfig
from pipelines.clusters import AnyCluster, LocalCluster, RunningCluster
from pipelines.config import WorkConfig
from pipelines.plan import Resources

_CONNECT_SECONDS = 20
# A client keeps as many of the messages that it has sent, for those who look for faults in Dask. Each may hold the
# jobs of hundreds of regions, and be as large as a megabyte; the default is 1,000.
DASK_SETTINGS = {"distributed.admin.low-level-log-length": 10, **UNPROFILED}


def local_resources(settings: LocalCluster) -> Resources:
    """What the workers of a local cluster will have."""
    workers = settings.workers or max(1, available_cpus() // settings.threads_per_worker)
    limit = parse_bytes(settings.memory_limit) if settings.memory_limit else int(0.9 * MEMORY_LIMIT / workers)
    return Resources(workers, settings.threads_per_worker, limit)


@contextmanager
def open_cluster(config: WorkConfig) -> Iterator[Client]:
    """A client of the run's cluster, which ends with the block unless it was running before."""
    with dask.config.set(DASK_SETTINGS), _opened(config.cluster) as client:
        yield client


@contextmanager
def _opened(settings: AnyCluster) -> Iterator[Client]:
    if isinstance(settings, LocalCluster):
        resources = local_resources(settings)
        with (
            dask.config.set({f"distributed.nanny.pre-spawn-environ.{name}": v for name, v in ALLOCATOR.items()}),
            DaskLocalCluster(
                n_workers=resources.workers,
                threads_per_worker=resources.threads_per_worker,
                memory_limit=resources.memory_limit,
                dashboard_address=":0",
                processes=True,
            ) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            client.register_worker_callbacks(setup=_say_what_matters)
            yield client
    elif isinstance(settings, RunningCluster):
        with _connect(settings.address) as client:
            yield client
    else:
        with begin(settings) as cluster, Client(cluster, set_as_default=False) as client:
            yield client


def _say_what_matters() -> None:
    """Workers warn of their memory: failed work the driver tells, heartbeats missed at the end concern nobody."""
    logging.getLogger("distributed.worker").setLevel(logging.CRITICAL)
    logging.getLogger("distributed.worker.memory").setLevel(logging.WARNING)


def _connect(address: str) -> Client:
    try:
        return Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise InvalidConfig(
            f"no Dask scheduler answers there ({type(error).__name__})", address, "Check cluster.address."
        ) from None


def running_resources(client: Client, address: str) -> Resources:
    """What the workers of a running cluster have; the smallest of them counts."""
    try:
        client.wait_for_workers(1, timeout=_CONNECT_SECONDS)
    except TimeoutError:
        raise InvalidConfig("the scheduler has no workers", address, "Start workers, then run again.") from None
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return Resources(
        len(workers),
        max(worker["nthreads"] for worker in workers),
        min(worker["memory_limit"] or MEMORY_LIMIT for worker in workers),
    )


def resources_of(config: WorkConfig) -> Resources:
    """What the workers of a run would have, without starting any."""
    settings = config.cluster
    if isinstance(settings, LocalCluster):
        return local_resources(settings)
    if isinstance(settings, RunningCluster):
        with _connect(settings.address) as client:
            return running_resources(client, settings.address)
    return Resources(settings.workers.maximum, settings.threads_per_worker, parse_bytes(settings.memory_limit))
