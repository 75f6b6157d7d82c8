"""Print the tables: `python -m benchmarks [TABLE]`, or all of them.

The tables are `in_memory`, `end_to_end [GB]`, `crowd [ANNOTATIONS]`, `regression [ROWS]`, `memory [MB [TASK ...]]`,
`flat [GB ...]`, `million [REGIONS ...]` and `sizing [MB [TASK ...]]`.
"""

from __future__ import annotations

import sys

from rich.console import Console


def main(arguments: list[str]) -> None:
    """Run what is asked for, or everything."""
    from benchmarks import crowd, end_to_end, in_memory, memory, million, regression, sizing

    console = Console(width=140)
    if not arguments or arguments[0] == "in_memory":
        console.print(in_memory.table())
    if not arguments or arguments[0] == "end_to_end":
        console.print(end_to_end.table(*map(float, arguments[1:2])))
    if not arguments or arguments[0] == "crowd":
        console.print(crowd.table(*map(int, arguments[1:2])))
    if not arguments or arguments[0] == "regression":
        console.print(regression.in_memory())
        console.print(regression.end_to_end(*map(float, arguments[1:2])))
    if not arguments or arguments[0] == "memory":
        console.print(memory.table(*map(float, arguments[1:2]), *arguments[2:]))
    if not arguments or arguments[0] == "flat":
        console.print(memory.flat(*map(float, arguments[1:])))
    if not arguments or arguments[0] == "million":
        console.print(million.planned())
        console.print(million.driven(*map(int, arguments[1:])))
        console.print(million.modelled())
    if not arguments or arguments[0] == "sizing":
        console.print(sizing.table(*map(float, arguments[1:2]), *arguments[2:]))


if __name__ == "__main__":
    main(sys.argv[1:])
