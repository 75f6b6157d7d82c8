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
    """Progress in one line: what is done, rate, time left."""
    line = f"{progress.stage}: {progress.done:,} of {progress.total:,} {progress.unit}"
    if progress.nbytes:
        line += f", {format_bytes(progress.nbytes)} at {rate(progress)}"
    if progress.seconds_left:
        line += f", about {duration(progress.seconds_left)} left"
    return line


def rate(progress: Progress) -> str:
    """Bytes of input per second."""
    return f"{format_bytes(int(progress.nbytes / max(progress.seconds, 1e-9)))}/s"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, as one would say it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
