"""Drivers live outside the core: they import only its public names, as anybody's driver would."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DRIVERS = sorted((ROOT / "drivers").rglob("*.py"))
CORE = sorted((ROOT / "pycontainer").rglob("*.py"))


def imports(file: Path) -> set[str]:
    """Every dotted name that *file* imports."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("file", DRIVERS, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_driver_imports_public_names_of_the_core(file: Path) -> None:
    core = {name for name in imports(file) if name.split(".")[0] == "pycontainer"}
    assert {name for name in core if "._" in name} == set()


@pytest.mark.parametrize("file", DRIVERS, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_driver_imports_no_other_driver(file: Path) -> None:
    own = file.relative_to(ROOT / "drivers").parts[0]
    others = {path.name for path in (ROOT / "drivers").iterdir() if path.name != own}
    assert {name for name in imports(file) if name.split(".")[0] in others} == set()


@pytest.mark.parametrize("file", CORE, ids=lambda file: str(file.relative_to(ROOT)))
def test_the_core_imports_no_driver(file: Path) -> None:
    drivers = {path.name for path in (ROOT / "drivers").iterdir()}
    assert {name for name in imports(file) if name.split(".")[0] in drivers} == set()


def test_the_launcher_loads_little() -> None:
    """It starts with the first container, and every container's first process copies its page tables."""
    program = "import sys; sys.path.append(sys.argv[1]); import pycontainer_native.launcher; print(*sys.modules)"
    command = [sys.executable, "-I", "-S", "-c", program, str(ROOT / "drivers")]
    loaded = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert "pycontainer_native.container" in loaded
    heavy = {"attrs", "collections", "enum", "functools", "json", "logging", "pathlib", "pycontainer", "re", "socket"}
    assert heavy & {*loaded} == set()


def test_there_is_something_to_look_at() -> None:
    assert DRIVERS
    assert CORE
