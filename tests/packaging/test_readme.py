"""The README's programs work as they are printed."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

import pycontainer

README = (Path(__file__).parents[2] / "README.rst").read_text()

PROGRAMS = [
    textwrap.dedent(block) for block in re.findall(r"^\.\. code-block:: python\n\n((?:    .*\n|\n)+)", README, re.M)
]
DRIVERS = [program for program in PROGRAMS if "hookimpl" in program]
EXAMPLES = [program for program in PROGRAMS if "hookimpl" not in program]


def test_the_programs_were_found() -> None:
    assert README.count(".. code-block:: python") == len(PROGRAMS)
    assert len(DRIVERS) == 1
    assert len(EXAMPLES) >= 3


@pytest.mark.root
@pytest.mark.parametrize("program", EXAMPLES, ids=range(len(EXAMPLES)))
def test_an_example_runs(program: str) -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def runc_example(install: Callable[..., Path]) -> pycontainer.ExecutionDriver:
    install("runc_example", {"runc-example": "pycontainer_runc"}, {"pycontainer_runc": DRIVERS[0]})
    return pycontainer.get_driver("runc-example")


@pytest.mark.root
@pytest.mark.tool("runc")
def test_the_example_of_a_driver_runs_containers(
    runc_example: pycontainer.ExecutionDriver, busybox_rootfs: Path
) -> None:
    done = pycontainer.run(
        ["sh", "-c", "read line; echo $line from $(id -un); exit 3"],
        input="hello",
        rootfs=busybox_rootfs,
        user="alice",
        driver=runc_example,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("hello from alice\n", "", 3)


@pytest.mark.root
@pytest.mark.tool("runc")
def test_the_example_of_a_driver_has_the_verbs(runc_example: pycontainer.ExecutionDriver, busybox_rootfs: Path) -> None:
    with pycontainer.Container(["sleep", "60"], rootfs=busybox_rootfs, driver=runc_example) as box:
        assert runc_example.info(box.id) == pycontainer.ContainerInfo(box.id, pycontainer.State.RUNNING, box.pid)
        assert box.pids() == [box.pid]
        with pytest.raises(pycontainer.WaitTimeoutError):
            box.wait(0.05)
        box.kill()
        assert box.wait(10) == 128 + 9
    assert not runc_example.info(box.id).is_running
    with pytest.raises(pycontainer.NotRunningError):
        runc_example.kill(box.id, 15)


@pytest.mark.root
@pytest.mark.tool("runc")
def test_the_example_of_a_driver_is_not_asked_for_what_it_lacks(
    runc_example: pycontainer.ExecutionDriver, busybox_rootfs: Path
) -> None:
    with pytest.raises(pycontainer.UnsupportedError):
        pycontainer.run(["true"], rootfs=busybox_rootfs, driver=runc_example, memory="64m")
