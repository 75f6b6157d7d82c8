"""Statistics as a run's record has them: what scores rest on, made once in a process."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

from labelqa_dask.core.task import Block
from labelqa_dask.regression import TASK
from labelqa_dask.storage.record import Version
from pipelines.statistics import statistics
from tests.stores import Place
from tests.strategies import regression_data

THREADS = 4
reads: list[str] = []


class SlowVersion(Version):
    """Tells of each state that is read, and takes its time."""

    def read_state(self, name: str, *args: Any) -> Any:
        reads.append(name)
        time.sleep(0.1)
        return super().read_state(name, *args)


def test_threads_that_need_them_at_the_same_time_read_and_settle_them_once(place: Place) -> None:
    params = TASK.params(neighbors="exact")
    (survey,) = TASK.passes(params)
    arrays = dict(zip(("labels", "predictions"), regression_data(50), strict=True))
    version = SlowVersion(place("out"), "v000001")
    version.write_state(survey.name, survey.of(Block(arrays, {"example": 0}), params, {}), "basis")
    reads.clear()
    together = Barrier(THREADS)

    def needed() -> Any:
        together.wait()
        return statistics("regression", params, 50, version, "basis", None)["survey"]

    with ThreadPoolExecutor(THREADS) as pool:
        found = [future.result() for future in [pool.submit(needed) for _ in range(THREADS)]]
    assert reads == ["survey"]
    assert all(each is found[0] for each in found)
