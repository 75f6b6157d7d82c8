"""Progress in words, and how often it is told."""

from __future__ import annotations

import time

from dask.utils import format_bytes

from pipelines.regions import Listener, Progress


def every(seconds: float, listener: Listener) -> Listener:
    """Pass on the first and last progress of each stage, and one now and then between."""
    told: dict[str, float] = {}

    def tell(progress: Progress) -> None:
        now = time.monotonic()
        if progress.done == progress.total or now - told.get(progress.stage, float("-inf")) >= seconds:
            told[progress.stage] = now
            listener(progress)

    return tell


def progress_line(progress: Progress) -> str:
    """Progress in one line: regions done, rate, time left."""
    line = f"{progress.stage}: {progress.done:,} of {progress.total:,} regions"
    if progress.nbytes and progress.seconds > 0:
        rate = progress.nbytes / progress.seconds
        line += f", {format_bytes(progress.nbytes)} at {format_bytes(int(rate))}/s"
        left = seconds_left(progress)
        if left:
            line += f", about {left:,.0f} s left"
    return line


def seconds_left(progress: Progress) -> float | None:
    """Time that the remaining regions will take at the rate of those of this session."""
    remaining = progress.total - progress.done
    if not progress.nbytes or not progress.session_done:
        return None
    return remaining * progress.seconds / progress.session_done
