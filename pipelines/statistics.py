"""The global statistics of a run as they stand in its record: what scores rest on."""

from __future__ import annotations

from functools import lru_cache
from threading import Lock
from typing import Any

from labelqa_dask.core.errors import RunFailed
from labelqa_dask.core.task import Stats, get_task
from labelqa_dask.storage.record import Version, json_digest, state_digest


def read_statistics(task_name: str, params: Any, n: int, version: Version, basis: str, passes: int | None) -> Stats:
    """Results of the first passes of a run over n examples, or of all; None for those that were not needed."""
    stats: dict[str, Any] = {}
    for step in get_task(task_name).passes(params)[:passes]:
        if step.needed(params, stats, n) is None:
            stats[step.name] = None
            continue
        state = version.read_state(step.name, step.state, basis)
        if state is None:
            what = f"the statistics of the pass {step.name!r} cannot be read"
            raise RunFailed(what, str(version.run), "Run the same command again.")
        stats[step.name] = step.result(state, params, stats)
    return stats


_cached = lru_cache(maxsize=32)(read_statistics)
_one_at_a_time = Lock()


def statistics(task_name: str, params: Any, n: int, version: Version, basis: str, passes: int | None) -> Stats:
    """As `read_statistics`, once in a process, however many threads ask for them."""
    with _one_at_a_time:
        return _cached(task_name, params, n, version, basis, passes)


def statistics_digest(task_name: str, params: Any, n: int, version: Version, basis: str, passes: int | None) -> str:
    """Digest of the states that these results follow from."""
    stats = statistics(task_name, params, n, version, basis, passes)
    steps = get_task(task_name).passes(params)[:passes]
    states = [version.read_state(step.name, step.state, basis) for step in steps if stats[step.name] is not None]
    return json_digest([state_digest(state) for state in states])
