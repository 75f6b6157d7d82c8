"""Progress in words, and how often it is told."""

from __future__ import annotations

import time

from dask.utils import format_bytes

from pipelines.audit import Changes, Refreshed
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


def changed_line(changes: Changes) -> str:
    """How much has changed since a version was published."""
    return f"{changes.changed:,} of {changes.regions:,} regions have changed since {changes.since}"


def refreshed_lines(refreshed: Refreshed) -> str:
    """What a version has taken over, and what was read."""
    total, kept = refreshed.regions, refreshed.taken_over
    lines = [f"{refreshed.previous}: {kept:,} of {total:,} regions taken over, {total - kept:,} scored"]
    passes = {name: count for name, count in refreshed.read.items() if name != "score"}
    if passes:
        read = ", ".join(f"{count:,} for {name}" for name, count in passes.items())
        lines.append(f"regions read for statistics: {read}")
    if kept == 0 and min(passes.values(), default=total) < total:
        lines.append(
            "the statistics moved, so that every region was scored again (refresh.statistics: frozen keeps them)"
        )
    return "\n".join(lines)


def rate(progress: Progress) -> str:
    """Bytes of input per second."""
    return f"{format_bytes(int(progress.nbytes / max(progress.seconds, 1e-9)))}/s"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, as one would say it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
