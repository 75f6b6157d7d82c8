"""The terminal that commands print to."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape

# Where there is no terminal to fit, lines are as long as they need to be.
console = Console(width=None if sys.stdout.isatty() else 1000)
errors = Console(stderr=True)


def print_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    """Print names and values side by side; a value is never cut, so that paths can be copied."""
    rows = list(pairs)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        first, *more = value.splitlines()
        console.print(f"[bold]{name:<{width}}[/bold]  {escape(first)}", highlight=False, soft_wrap=True)
        for line in more:
            console.print(" " * (width + 2) + escape(line), highlight=False, soft_wrap=True)
