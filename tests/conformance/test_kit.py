"""The kit can fail: each broken driver fails in its area and nowhere else, and the fake driver nowhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

import pytest

from pycontainer.testing import conformance
from pycontainer.testing.conformance.base import _as_it_was

#: Of each driver, by area: how many tests failed, and how many there were.
Results: TypeAlias = "dict[str, tuple[Counter[str], Counter[str]]]"

HERE = Path(__file__).parent

#: Of each broken driver, the area that its docstring names.
BROKEN = dict(
    re.findall(r'class (\w+)\((?:FakeDriver|WrongReceipt)\):\n    """(\w+):', (HERE / "broken.py").read_text())
)

AREAS = {area.__name__ for area in conformance.AREAS}


def outcomes(names: Sequence[str], directory: Path) -> Results:
    """Run the whole kit with each driver: how many tests of each area failed, and how many there were."""
    report = directory / f"{names[0]}.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    command += ["--pyargs", "pycontainer.testing.conformance"]
    command += [f"--container-driver={'fake' if name == 'fake' else f'broken:{name}'}" for name in names]
    environment = {**os.environ, "PYTHONPATH": str(HERE), "PYCONTAINER_CONFORMANCE_TIMEOUT": "5"}
    subprocess.run(command, cwd=directory, env=environment, stdout=subprocess.DEVNULL, timeout=600, check=False)
    found: Results = {name: (Counter(), Counter()) for name in names}
    for case in ElementTree.parse(report).iter("testcase"):
        area = case.attrib["classname"].rpartition(".Test")[2]
        driver = re.search(r"broken:(\w+)|fake", case.attrib["name"])
        assert driver is not None
        failed, run = found[driver[1] or driver[0]]
        run[area] += 1
        if case.find("failure") is not None or case.find("error") is not None:
            failed[area] += 1
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    directory = tmp_path_factory.mktemp("kit")
    names = ["fake", *BROKEN]
    found: Results = {}
    with ThreadPoolExecutor(3) as pool:  # they mostly sleep
        for part in pool.map(lambda number: outcomes(names[number::3], directory), range(3)):
            found.update(part)
    return found


def test_there_is_a_broken_driver_for_each_area() -> None:
    assert set(BROKEN.values()) == AREAS


def test_the_fake_driver_passes(results: Results) -> None:
    failed, run = results["fake"]
    assert failed == {}
    assert run.keys() == AREAS


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_driver_fails_in_its_area_and_nowhere_else(name: str, results: Results) -> None:
    failed, _ = results[name]
    assert failed.keys() == {BROKEN[name]}


def test_what_the_kit_has_put_into_a_root_is_taken_away(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "tmp").mkdir()
    with _as_it_was(str(tmp_path)):
        for name in ("data/below", "small/below"):
            (tmp_path / name).mkdir(parents=True)
        for name in ("data-file", "tmp/new", "theirs"):
            (tmp_path / name).touch()
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left == {"small", "small/below", "tmp", "theirs"}


def test_no_test_hides_one_of_another_area() -> None:
    """In the class that has all the areas, two tests of the same name would be one."""
    names = Counter(name for area in conformance.AREAS for name in vars(area) if name.startswith("test_"))
    assert [name for name, count in names.items() if count > 1] == []
    assert set(conformance.Conformance.__bases__) == set(conformance.AREAS)
