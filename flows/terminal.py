"""What people see while a run is under way: a bar with rate and time left, or plain lines without a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dask.utils import format_bytes
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from flows.progress import every, progress_line, seconds_left
from pipelines.regions import Listener, Progress

_SECONDS_BETWEEN_LINES = 5.0


@contextmanager
def show_progress(console: Console) -> Iterator[Listener]:
    """A listener that shows progress for as long as the block lasts."""
    if not console.is_terminal:
        yield every(_SECONDS_BETWEEN_LINES, lambda progress: console.print(progress_line(progress), highlight=False))
        return
    bars = Bars(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        console=console,
    )
    shown: dict[str, TaskID] = {}

    def tell(progress: Progress) -> None:
        if progress.stage not in shown:
            shown[progress.stage] = bars.add_task(progress.stage, total=progress.total, rate="", left="")
        rate = f"{format_bytes(int(progress.nbytes / progress.seconds))}/s" if progress.nbytes else ""
        left = seconds_left(progress)
        remaining = f"about {_duration(left)} left" if left else ""
        bars.update(shown[progress.stage], completed=progress.done, rate=rate, left=remaining)

    with bars:
        yield tell


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
