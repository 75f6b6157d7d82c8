"""Scheduler, workers, object store and driver on hosts of their own: one is cut off, another comes, nobody can tell."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.faults.at_host import BUCKET
from tests.faults.hosts import Host, Network, network
from tests.stores import REGION

IMAGES = 120
LONGEST_SECONDS = 240
# Three regions for each thread of two workers are under way.
AT_ONCE = 6


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONGEST_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.05)


@pytest.fixture
def hosts(tmp_path: Path, credentials: None) -> Iterator[Network]:
    with network(tmp_path) as made:
        yield made


def start_store(hosts: Network) -> tuple[Host, str]:
    store = hosts.add("store")
    hosts.start(store, "-m", "moto.server", "--host", store.address, "--port", "5000")
    wait_until(lambda: "Running on" in hosts.log(store).read_text())
    return store, f"http://{store.address}:5000"


def start_worker(hosts: Network, name: str, scheduler: str) -> Host:
    host = hosts.add(name)
    options = ["--host", host.address, "--nthreads", "1", "--memory-limit", "2GiB", "--no-dashboard"]
    folder = ["--local-directory", str(hosts.logs / name)]
    hosts.start(host, "-m", "dask", "worker", scheduler, *options, *folder)
    return host


def write_config(path: Path, endpoint: str, out: str, cluster: dict[str, Any]) -> Path:
    uri = f"s3://{BUCKET}/data.zarr"
    config = {
        "task": "segmentation",
        "input": {name: {"uri": uri, "array": name} for name in ("labels", "pred_probs", "ids")},
        "output": {"uri": f"s3://{BUCKET}/{out}", "region_rows": 1},
        "cluster": cluster,
        "storage": {"endpoint_url": endpoint, "region": REGION},
    }
    path.write_text(yaml.safe_dump(config))
    return path


def receipts(log: Path, out: str) -> list[str]:
    """Addresses that wrote a receipt of a region to the store, in the order in which they did."""
    written = rf'^([\d.]+) .*"PUT /{BUCKET}/{out}/v000001/_run/done/'
    return re.findall(written, log.read_text(), re.MULTILINE)


@pytest.mark.slow
def test_a_host_is_cut_off_and_another_comes_and_the_result_is_that_of_an_undisturbed_run(hosts, tmp_path):
    store, endpoint = start_store(hosts)
    driver, scheduler = hosts.add("driver"), hosts.add("scheduler")
    address = f"tcp://{scheduler.address}:8786"
    options = ["--host", scheduler.address, "--port", "8786", "--no-dashboard"]
    hosts.start(scheduler, "-m", "dask", "scheduler", *options)
    first, second = (start_worker(hosts, name, address) for name in ("first", "second"))
    hosts.run(driver, "-m", "tests.faults.at_host", "store", endpoint, str(IMAGES))
    for host in (first, second):
        wait_until(lambda host=host: "Registered to" in hosts.log(host).read_text())

    remote = write_config(tmp_path / "remote.yaml", endpoint, "disturbed", {"kind": "address", "address": address})
    run = hosts.start(driver, "-m", "flows.cli", "run", "--no-prefect", str(remote))
    both = {first.address, second.address}
    wait_until(lambda: run.poll() is not None or {*receipts(hosts.log(store), "disturbed")} == both)
    hosts.unplug(first)
    at_cut = len(receipts(hosts.log(store), "disturbed"))
    third = start_worker(hosts, "third", address)
    assert run.wait(LONGEST_SECONDS) == 0, hosts.log(driver).read_text()

    wrote = receipts(hosts.log(store), "disturbed")
    assert {*wrote} == {first.address, second.address, third.address}
    assert wrote[at_cut:].count(first.address) <= 1, "it was cut off, but for what had reached the store"
    assert IMAGES <= len(wrote) <= IMAGES + AT_ONCE, "what the lost host had in hand may have been done already"

    local = write_config(tmp_path / "local.yaml", endpoint, "undisturbed", {"workers": 1, "memory_limit": "2GiB"})
    hosts.run(driver, "-m", "flows.cli", "run", "--no-prefect", str(local))
    published = [
        json.loads(hosts.run(driver, "-m", "tests.faults.at_host", "published", endpoint, out))
        for out in ("disturbed", "undisturbed")
    ]
    assert published[0] == published[1]
    assert {"summary.json", "worst.parquet"} < published[0].keys()
