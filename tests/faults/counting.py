"""What a worker process loads first, to note down each time it sets about a piece or a region of annotations.

Named by DASK_DISTRIBUTED__WORKER__PRELOAD; the notes go into the file that LABELQA_NOTES names.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from pipelines import group


def noting(work: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def note(job: Any) -> Any:
        with open(os.environ["LABELQA_NOTES"], "a") as notes:
            notes.write(f"{job.name}\n")
        return work(job)

    return note


def dask_setup(worker: Any) -> None:
    group._scatter, group._gather = noting(group._scatter), noting(group._gather)
