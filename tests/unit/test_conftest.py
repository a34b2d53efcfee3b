"""--no-skips: in continuous integration nothing is skipped unnoticed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest

def test_passes(): pass

@pytest.mark.skip(reason="not today")
def test_marked(): pass

@pytest.mark.tool("no-such-program")
def test_tool(): pass

@pytest.fixture
def never(): pytest.skip("no fixture")

def test_fixture(never): pass

def test_call(): pytest.skip("allowed for this host")

@pytest.mark.xfail(reason="known", strict=True)
def test_xfail(): assert False
"""


def outcome(directory: Path, *options: str) -> str:
    """The last line of a pytest run there."""
    shutil.copy(Path(__file__).parents[1] / "conftest.py", directory)
    conftest = directory / "conftest.py"
    allowed = 'ALLOWED_SKIPS: tuple[str, ...] = ("allowed .*",'
    conftest.write_text(conftest.read_text().replace("ALLOWED_SKIPS: tuple[str, ...] = (", allowed))
    (directory / "pytest.ini").write_text("[pytest]\nmarkers =\n    root\n    tool(name)\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True).stdout.splitlines()[
        -1
    ]


def test_a_skip_is_a_failure_unless_its_reason_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    assert "1 passed, 4 skipped, 1 xfailed" in outcome(tmp_path)
    assert "1 passed, 1 skipped, 1 xfailed, 3 errors" in outcome(tmp_path, "--no-skips")


def test_a_module_that_skips_itself_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text("import pytest\npytest.importorskip('no_such_module')\n")
    assert "1 skipped" in outcome(tmp_path)
    assert "1 error" in outcome(tmp_path, "--no-skips")


@pytest.mark.parametrize("marker", ["root", "tool('sh')"])
def test_where_it_can_run_it_runs(marker: str, tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(f"import pytest\n\n@pytest.mark.{marker}\ndef test(): pass\n")
    wanted = "1 passed" if marker != "root" or os.geteuid() == 0 else "1 skipped"
    assert wanted in outcome(tmp_path)
