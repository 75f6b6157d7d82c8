"""OpenStack Swift on this machine: a real object store that speaks S3, of one replica on one disk.

`make test-stores` installs it, in an environment of its own.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from labelqa_dask.storage.location import StorageOptions
from tests.pipelines.audits import wait_until
from tests.stores import REGION, create_bucket

PROGRAMS = Path(__file__).parents[2] / "build/stores/swift/bin"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "labels:auditor",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_EC2_METADATA_DISABLED": "true",
}
BUCKET = "labelqa"
_HOST = "127.0.0.1"
_SERVERS = ("account", "container", "object")

_CLUSTER = """
[swift-hash]
swift_hash_path_suffix = of-the-tests
[storage-policy:0]
name = one
default = yes
"""
_SERVER = """
[DEFAULT]
bind_ip = {host}
bind_port = {port}
workers = 0
swift_dir = {folder}
devices = {folder}
mount_check = false
user = {user}
"""
_STORAGE = """
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
"""
_RINGS = """
import sys
from swift.common.ring import RingBuilder
folder, host, *servers = sys.argv[1:]
for kind, port in zip(servers[::2], servers[1::2]):
    ring = RingBuilder(part_power=4, replicas=1, min_part_hours=0)
    ring.add_dev(dict(region=1, zone=1, ip=host, port=int(port), device="disk", weight=1))
    ring.rebalance()
    ring.get_ring().save(f"{folder}/{kind}.ring.gz")
"""
_PROXY = """
[pipeline:main]
pipeline = catch_errors proxy-logging listing_formats s3api tempauth slo proxy-logging proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:proxy-logging]
use = egg:swift#proxy_logging
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:s3api]
use = egg:swift#s3api
location = {region}
[filter:tempauth]
use = egg:swift#tempauth
user_labels_auditor = testing .admin
[filter:slo]
use = egg:swift#slo
"""


@contextmanager
def swift(folder: Path) -> Iterator[StorageOptions]:
    """A store with one bucket whose data are in a folder, for the length of the block; yields how to reach it.

    The caller sets `CREDENTIALS`.
    """
    if not (PROGRAMS / "swift-proxy-server").exists():
        pytest.skip("OpenStack Swift is not installed: run make test-stores")
    _refuse_without_attributes(folder)
    ports = dict(zip((*_SERVERS, "proxy"), _free_ports(4), strict=True))
    _write_configuration(folder, ports)
    with ExitStack() as stack:
        for kind in ports:
            stack.enter_context(_running(kind, folder))
        for port in ports.values():
            wait_until(lambda port=port: _answers(port))  # type: ignore[misc]
        url = f"http://{_HOST}:{ports['proxy']}"
        options = StorageOptions(endpoint_url=url, region=REGION, timeout_seconds=20, retry_seconds=20)
        create_bucket(options, BUCKET, versioned=False)
        yield options


def _refuse_without_attributes(folder: Path) -> None:
    """Swift keeps what it knows of an object in extended attributes of its file."""
    try:
        os.setxattr(folder, "user.labelqa", b"")
    except OSError:
        pytest.skip(f"{folder} is on a file system without extended attributes: give pytest another --basetemp")


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server((_HOST, 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def _write_configuration(folder: Path, ports: dict[str, int]) -> None:
    (folder / "swift.conf").write_text(_CLUSTER)
    (folder / "disk").mkdir()
    user = Path(folder).owner()
    for kind, port in ports.items():
        text = _SERVER + (_PROXY if kind == "proxy" else _STORAGE)
        filled = text.format(host=_HOST, port=port, folder=folder, user=user, kind=kind, region=REGION)
        (folder / f"{kind}.conf").write_text(filled)
    servers = [str(part) for kind in _SERVERS for part in (kind, ports[kind])]
    subprocess.run([PROGRAMS / "python", "-c", _RINGS, folder, _HOST, *servers], check=True)


@contextmanager
def _running(kind: str, folder: Path) -> Iterator[None]:
    with open(folder / f"{kind}.log", "wb") as log:
        server = subprocess.Popen(
            [PROGRAMS / f"swift-{kind}-server", folder / f"{kind}.conf", "--verbose"],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield
        finally:
            server.kill()
            server.wait()


def _answers(port: int) -> bool:
    try:
        socket.create_connection((_HOST, port), timeout=1).close()
    except OSError:
        return False
    return True
