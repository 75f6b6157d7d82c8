"""A driver that kills itself, with every process it has started, at a point that is named on its command line.

Run as `python -m tests.faults.driver CONFIG BEGUN POINT`, where BEGUN is the file that tells what workers began on, and
the point is one of `stage NAME` (before a stage begins), `regions STAGE N` (as soon as so many are done), and
`written PATH` (after that object was written). LABELQA_PIECE_ROWS in the environment makes the pieces small that
annotations are read in.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.cluster import open_cluster, resources_of
from flows.settings import load_config
from labelqa_dask.storage import annotations
from labelqa_dask.storage.location import Location
from pipelines.audit import run_audit
from pipelines.plan import make_plan
from pipelines.regions import Progress
from tests.faults.invocations import Invocations


def die() -> None:
    os.killpg(os.getpgid(0), signal.SIGKILL)


def main(config_path: str, begun: str, kind: str, name: str, number: str = "0") -> None:
    def call(stage: str, function: Callable[..., Any], *args: Any) -> Any:
        if (kind, name) == ("stage", stage):
            die()
        return function(*args)

    def listen(progress: Progress) -> None:
        if (kind, name) == ("regions", progress.stage) and progress.done >= int(number):
            die()

    write = Location.write

    def write_and_die(location: Location, path: str, content: bytes) -> None:
        write(location, path, content)
        if kind == "written" and path == name:
            die()

    Location.write = write_and_die  # type: ignore[method-assign]
    annotations.PIECE_ROWS = int(os.environ.get("LABELQA_PIECE_ROWS", annotations.PIECE_ROWS))
    config = load_config(Path(config_path))
    plan = make_plan(config, resources_of(config))
    with open_cluster(config) as client, Invocations(Path(begun)).of_client(client):
        run_audit(plan, client, listen, call=call)


if __name__ == "__main__":
    main(*sys.argv[1:])
