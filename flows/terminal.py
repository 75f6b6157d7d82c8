"""What people see while a run is under way: a bar with rate and time left, or plain lines without a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from flows.progress import duration, every, progress_line, rate
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
        left = f"about {duration(progress.seconds_left)} left" if progress.seconds_left else ""
        speed = rate(progress) if progress.nbytes else ""
        bars.update(shown[progress.stage], completed=progress.done, rate=speed, left=left)

    with bars:
        yield tell
