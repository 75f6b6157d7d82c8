"""Records of work: one line for each time that a worker begins on something, whatever becomes of the worker."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed import Client, Worker, WorkerPlugin


@dataclass(frozen=True)
class Invocations:
    """What was begun, and how often: pieces of work by their function and the region or piece of input."""

    path: Path

    def counts(self) -> Counter[str]:
        return Counter(self.path.read_text().splitlines())

    def of(self, function: str) -> set[str]:
        """What a function was begun on."""
        return {line.partition(" ")[2] for line in self.counts() if line.partition(" ")[0] == function}

    @contextmanager
    def of_client(self, client: Client) -> Iterator[None]:
        """Record what the workers of a client begin on, those included that start later."""
        client.register_plugin(_Recorder(self.path))
        try:
            yield
        finally:
            client.unregister_worker_plugin(_Recorder.name)


class _Recorder(WorkerPlugin):
    name = "invocations"

    def __init__(self, path: Path) -> None:
        self._path = path

    def setup(self, worker: Worker) -> None:
        self._worker = worker

    def transition(self, key: Any, start: Any, finish: Any, **kwargs: Any) -> None:
        if finish == "executing":
            line = f"{_described(self._worker.state.tasks[key].run_spec)}\n"
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(file, line.encode())
            os.close(file)


def _described(task: Any) -> str:
    """A function, what it is bound to (the number of a pass, another function), and what it is to work on."""
    function, bound = getattr(task.func, "func", task.func), getattr(task.func, "args", ())
    told = (str(getattr(value, "__name__", value)) for value in bound)
    return f"{function.__name__}{''.join(told)} {_name(task.args[0])}"


def _name(item: Any) -> str:
    if isinstance(item, tuple):
        return _name(item[0])
    if hasattr(item, "jobs"):
        return "+".join(job.region.name for job in item.jobs)
    name: str = item.name if hasattr(item, "name") else item.region.name
    return name
