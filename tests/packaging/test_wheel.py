"""What is installed: the wheel and nothing of the checkout, complete, and quick to import."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path

import pytest

import pycontainer

NAME = "pycontainer-execdriver"
CHECKOUT = Path(__file__).resolve().parents[2]

in_tox = pytest.mark.skipif("TOX_ENV_NAME" not in os.environ, reason="only tox installs the wheel")


def packages() -> set[str]:
    return {"pycontainer", *(path.name for path in (CHECKOUT / "drivers").iterdir() if (path / "__init__.py").exists())}


@in_tox
@pytest.mark.parametrize("package", sorted(packages()))
def test_the_tests_run_on_what_is_installed(package: str) -> None:
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).is_relative_to(sysconfig.get_path("purelib"))


@in_tox
def test_the_checkout_is_not_on_the_path() -> None:
    assert not {str(CHECKOUT), str(CHECKOUT / "drivers"), ""} & set(sys.path)
    assert find_spec("drivers") is None


@in_tox
def test_the_wheel_has_the_packages_and_nothing_else() -> None:
    files = distribution(NAME).files
    assert files is not None
    tops = {file.parts[0] for file in files if file.parts[0] != ".."}
    assert {top for top in tops if not top.endswith(".dist-info")} == packages()
    names = {str(file) for file in files}
    assert {f"{package}/py.typed" for package in packages()} <= names
    missing = [
        path
        for root in (CHECKOUT, CHECKOUT / "drivers")
        for package in packages()
        for path in (root / package).rglob("*.py")
        if str(path.relative_to(root)) not in names
    ]
    assert missing == []


@in_tox
def test_the_licence_is_in_the_wheel() -> None:
    assert "Apache License" in (distribution(NAME).read_text("licenses/LICENSE") or "")


@in_tox
def test_the_version_is_said_once() -> None:
    assert distribution(NAME).version == pycontainer.__version__


@in_tox
def test_each_entry_point_leads_somewhere() -> None:
    points = distribution(NAME).entry_points
    assert {(point.group, point.name) for point in points} >= {
        ("console_scripts", "pycontainer"),
        ("pycontainer.drivers", "native"),
    }
    for point in points:
        point.load()


@in_tox
def test_the_command_is_installed() -> None:
    command = Path(sysconfig.get_path("scripts")) / "pycontainer"
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"pycontainer {distribution(NAME).version}\n"


def test_importing_the_package_imports_nothing_else() -> None:
    program = (
        "import sys\nbefore = set(sys.modules)\nimport pycontainer\n"
        "print(*sorted(name for name in set(sys.modules) - before if name.startswith('pycontainer')))\n"
        "print('attr' in sys.modules, 'pluggy' in sys.modules, 'subprocess' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "pycontainer\nFalse False False\n"
