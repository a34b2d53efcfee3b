"""A container of LXC with a terminal: what holds of native's holds of its."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pycontainer
from pycontainer import PIPE, SetupError
from pycontainer.driver import Stdio
from pycontainer.process import Process
from pycontainer.stdio import TtyTerminal
from pycontainer_lxc import elf
from pycontainer_lxc.driver import LxcDriver

from . import test_native_tty
from .test_native_tty import (  # noqa: F401 - collected here too
    Screen,
    terminal,
    test_a_hostile_dev_pts,
    test_all_of_a_large_output_arrives,
    test_an_end_of_file_is_a_key,
    test_communicate,
    test_control_c_reaches_the_foreground_job_only,
    test_it_is_the_controlling_terminal_and_the_users,
    test_its_size,
    test_its_streams_are_a_terminal_of_its_own,
    test_two_terminals_are_two,
    test_with_a_read_only_root,
    test_without_a_terminal_there_is_nothing_to_resize,
)

pytestmark = [pytest.mark.root, pytest.mark.tool("lxc-start", "busybox")]


@pytest.fixture(scope="module")
def driver() -> Iterator[LxcDriver]:
    driver = LxcDriver()
    yield driver
    driver.close()


@pytest.fixture
def start(driver: LxcDriver, busybox_rootfs: Path) -> Iterator[Callable[..., pycontainer.Container]]:
    boxes = []

    def start(argv: list[str], **keywords: Any) -> pycontainer.Container:
        boxes.append(pycontainer.Container(argv, **{"rootfs": busybox_rootfs, "driver": driver, **keywords}))
        return boxes[-1]

    yield start
    for box in boxes:
        box.close()


@pytest.fixture
def sh(driver: LxcDriver, busybox_rootfs: Path) -> Callable[..., Any]:
    def sh(script: str, **keywords: Any) -> Any:
        defaults = {"rootfs": busybox_rootfs, "driver": driver, "capture_output": True, "text": True, "timeout": 60}
        return pycontainer.run(["sh", "-c", script], **{**defaults, **keywords})

    return sh


def test_an_interactive_shell_has_job_control(terminal: Any) -> None:  # noqa: F811
    test_native_tty.test_an_interactive_shell_has_job_control(terminal, init=False)


def test_what_takes_the_terminal_is_not_in_the_container(sh: Any) -> None:
    script = "ls /proc/self/fd | tr '\\n' ' '; readlink /proc/1/exe; tr '\\0' '|' </proc/1/cmdline"
    done = sh(f"{script}; :", tty=True, capture_output=False, stdout=PIPE)
    assert done.stdout == f"0 1 2 3 /bin/busybox\nsh|-c|{script}; :|"


@pytest.mark.parametrize(
    ("argv", "number"),
    [
        (["/no/such"], errno.ENOENT),
        (["no-such"], errno.ENOENT),
        (["/etc/passwd"], errno.EACCES),
        (["/etc"], errno.EACCES),
        (["/etc/passwd/x"], errno.ENOTDIR),
    ],
)
@pytest.mark.parametrize("user", ["root", "alice"])
def test_what_cannot_be_executed(start: Any, argv: list[str], number: int, user: str) -> None:
    with pytest.raises(SetupError) as caught:
        start(argv, tty=True, stdout=PIPE, user=user)
    assert (caught.value.step, caught.value.errno) == ("execve", number)


def test_a_short_program_is_not_lost(sh: Any) -> None:
    for code in range(20):
        assert sh(f"exit {code}", tty=True, capture_output=False, stdout=PIPE).returncode == code


def test_a_further_process_has_one_of_its_own(start: Any, driver: LxcDriver) -> None:
    box = start(["sleep", "100"])
    with open(os.devnull) as null:
        fd = null.fileno()
        argv = [
            "sh",
            "-c",
            "trap 'stty size; exit 6' WINCH; stty size; echo by name >/dev/tty; while :; do sleep 0.01; done",
        ]
        process = driver.exec(box.id, Process.of(argv, tty=True), Stdio(fd, fd, fd, size=(33, 99)))
    assert process.terminal is not None
    own, process.terminal = TtyTerminal(process.terminal), None
    try:
        screen = Screen(own.fileno())
        screen.until("33 99\r\nby name\r\n")
        own.resize(44, 111)
        screen.until("44 111\r\n")
        assert process.wait(30).exit_code == 6
    finally:
        own.close()
        process.close()


def test_a_further_process_that_cannot_be_executed(start: Any, driver: LxcDriver) -> None:
    box = start(["sleep", "100"])
    with open(os.devnull) as null, pytest.raises(SetupError) as caught:
        driver.exec(box.id, Process.of(["/etc/passwd"], tty=True, user="alice"), Stdio(*[null.fileno()] * 3))
    assert (caught.value.step, caught.value.errno) == ("execve", errno.EACCES)
    assert box.exec(["sh", "-c", "exit 4"], tty=True, stdout=PIPE).returncode == 4


def test_on_another_machine_it_is_refused(monkeypatch: pytest.MonkeyPatch, sh: Any) -> None:
    monkeypatch.setattr(elf, "is_known", lambda: False)
    with pytest.raises(pycontainer.InvalidCommandError) as caught:
        sh("true", tty=True)
    assert caught.value.field == "process.tty"
