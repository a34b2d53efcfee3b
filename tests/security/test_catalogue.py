"""The catalogue itself: no row without a test or a reason."""

from __future__ import annotations

import ast
from pathlib import Path

from .rows import ROWS, UNTESTABLE


def declared() -> dict[str, str]:
    """Row: the name of its test. By reading the source, so that it does not depend on which tests were chosen."""
    found = {}
    for path in Path(__file__).parent.glob("test_?_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef):
                continue
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", "") == "row":
                    for argument in decorator.args:
                        assert isinstance(argument, ast.Constant)
                        found[str(argument.value)] = node.name
    return found


def test_every_row_has_a_test_or_a_reason() -> None:
    begun = {path.stem[5].upper() for path in Path(__file__).parent.glob("test_?_*.py")}
    ours = {name for name, row in ROWS.items() if {*row.marks} & {*"NP"} and name[0] in begun}
    tested = declared()
    assert sorted(ours - tested.keys() - UNTESTABLE.keys()) == []
    assert {*UNTESTABLE} <= ours
    assert sorted(UNTESTABLE.keys() & tested.keys()) == []
    assert sorted(tested.keys() - ROWS.keys()) == []


def test_tests_are_named_by_row_and_cve() -> None:
    for name, test in declared().items():
        first = test.split("_")[1].upper()
        cve = ROWS[first].cve.lower().replace("-", "_")
        prefix = f"test_{first.lower()}_{cve}_" if cve else f"test_{first.lower()}_"
        assert test.startswith(prefix), f"{name}: {test} should be {prefix}..."
