"""What the documents say of the tests is so."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FAILURES = (ROOT / "docs/failures.md").read_text()


def named_tests() -> list[tuple[str, str]]:
    """Files under tests/ and tests in them that docs/failures.md names; a bare test is of the file named before it."""
    found = []
    file = ""
    for named in re.findall(r"`((?:\w+/)*test_\w+(?:\.py)?(?:::\w+)?)`", FAILURES):
        path, _, test = named.partition("::")
        if path.endswith(".py"):
            file = path
        else:
            test = path
        found.append((file, test))
    return found


@pytest.mark.parametrize(("file", "test"), sorted(set(named_tests())))
def test_the_tests_that_show_a_failure_exist(file: str, test: str) -> None:
    tree = ast.parse((ROOT / "tests" / file).read_text())
    functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert not test or test in functions


@pytest.mark.parametrize("line", [line for line in FAILURES.splitlines() if line.startswith("| ")])
def test_every_failure_names_its_test(line: str) -> None:
    heading = re.match(r"\| (failure|promise) ", line)
    assert heading or re.search(r"`[\w/]*test_\w+(\.py|::|`)|`faults/test_bad_data.py`", line), line
