"""Hosts with addresses and cables of their own, on one machine: network namespaces around a switch.

Nothing of it touches the machine's own network: switch and cables lie in the namespaces, too.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

_STEP_SECONDS = 60


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=_STEP_SECONDS)


@dataclass(frozen=True)
class Host:
    """A host by its name, the number of its port at the switch, and its address."""

    namespace: str
    name: str
    port: str
    address: str


@dataclass
class Network:
    """Hosts around a switch, and what runs on them."""

    prefix: str
    logs: Path
    hosts: list[Host] = field(default_factory=list)
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def switch(self) -> str:
        return f"{self.prefix}-switch"

    def add(self, name: str) -> Host:
        """Another host, whose cable is plugged in."""
        number = len(self.hosts) + 1
        host = Host(f"{self.prefix}-{name}", name, f"port{number}", f"10.77.0.{number}")
        _ip("netns", "add", host.namespace)
        self.hosts.append(host)
        _ip("-n", self.switch, "link", "add", host.port, "type", "veth", "peer", "eth0", "netns", host.namespace)
        _ip("-n", self.switch, "link", "set", host.port, "master", "switch")
        _ip("-n", host.namespace, "link", "set", "lo", "up")
        _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
        _ip("-n", host.namespace, "link", "set", "eth0", "up")
        _ip("-n", self.switch, "link", "set", host.port, "up")
        return host

    def unplug(self, host: Host) -> None:
        """Cut a host off: nothing reaches it any more, and nobody is told."""
        _ip("-n", self.switch, "link", "set", host.port, "down")

    def start(self, host: Host, *words: str) -> subprocess.Popen[str]:
        """Run Python on a host; what it says goes to its log."""
        with self.log(host).open("a") as log:
            process = subprocess.Popen(
                ["ip", "netns", "exec", host.namespace, sys.executable, *words],
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def run(self, host: Host, *words: str) -> str:
        """What Python says on a host, once it has ended."""
        done = subprocess.run(
            ["ip", "netns", "exec", host.namespace, sys.executable, *words],
            capture_output=True,
            text=True,
            timeout=5 * _STEP_SECONDS,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def log(self, host: Host) -> Path:
        return self.logs / f"{host.name}.log"

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for namespace in [*(host.namespace for host in self.hosts), self.switch]:
            _ip("netns", "delete", namespace)


@contextmanager
def network(logs: Path) -> Iterator[Network]:
    """A network for the length of the block; skips the test where none can be made."""
    if shutil.which("ip") is None:
        pytest.skip("needs the command ip, of iproute2")
    made = Network(f"labelqa{os.getpid()}", logs)
    try:
        _ip("netns", "add", made.switch)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"may not make network namespaces here: {error.stderr.strip()}")
    try:
        _ip("-n", made.switch, "link", "add", "switch", "type", "bridge")
        _ip("-n", made.switch, "link", "set", "switch", "up")
        yield made
    finally:
        made.close()
