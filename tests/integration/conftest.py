"""What the tests of the native driver share: drivers, containers of busybox, and the check for leaks."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pycontainer
from pycontainer_native.driver import NativeDriver

from . import host
from .hostile import Rootfs

Sh = Callable[..., pycontainer.CompletedContainer]

PR_SET_CHILD_SUBREAPER = 36


@pytest.fixture(scope="session")
def native(busybox_rootfs: Path) -> Iterator[NativeDriver]:
    """The driver that nearly all tests share, its launcher running. No test may end it."""
    # What a dead launcher or caller leaves becomes a child of this process, where the check for leaks sees it.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    driver = NativeDriver()
    pycontainer.run(["true"], rootfs=busybox_rootfs, driver=driver, check=True)
    yield driver
    driver.close()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@pytest.fixture
def own_driver(native: NativeDriver) -> Iterator[NativeDriver]:
    """A driver with a launcher of its own, for tests that kill it."""
    driver = NativeDriver()
    yield driver
    driver.close()


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the test after which a process, cgroup, mount or descriptor is left that was not there before."""
    if "native" not in request.fixturenames:
        yield
        return
    native = request.getfixturevalue("native")
    before = host.Holdings.look()
    yield
    left = before.wait_until_regained(native)
    if left:
        gc.collect()  # an exception that a test has kept holds its container
        left = before.wait_until_regained(native, timeout=1)
    assert not left, "\n".join(left)


@pytest.fixture
def start(native: NativeDriver, busybox_rootfs: Path) -> Iterator[Callable[..., pycontainer.Container]]:
    """Starts a container of busybox, which is closed at the end of the test."""
    boxes = []

    def start(argv: list[str], **keywords: Any) -> pycontainer.Container:
        keywords = {"rootfs": busybox_rootfs, "driver": native, **keywords}
        boxes.append(pycontainer.Container(argv, **keywords))
        return boxes[-1]

    yield start
    for box in boxes:
        box.close()


@pytest.fixture
def sh(native: NativeDriver, busybox_rootfs: Path) -> Sh:
    """Runs a shell script in a container of busybox; what it prints is text."""

    def sh(script: str, **keywords: Any) -> pycontainer.CompletedContainer:
        defaults = {"rootfs": busybox_rootfs, "driver": native, "capture_output": True, "text": True, "timeout": 60}
        return pycontainer.run(["sh", "-c", script], **{**defaults, **keywords})

    return sh


@pytest.fixture
def python(native: NativeDriver) -> Sh:
    """Runs Python code in a container of the host's own programs; what it prints is text."""

    def python(code: str, **keywords: Any) -> pycontainer.CompletedContainer:
        defaults = {"driver": native, "capture_output": True, "text": True, "timeout": 60}
        return pycontainer.run([sys.executable, "-I", "-c", code], **{**defaults, **keywords})

    return python


@pytest.fixture
def caller(native: NativeDriver, busybox_rootfs: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts another caller: a Python process that runs *code*, in which ROOTFS is a busybox. Ended with the test."""
    callers: list[subprocess.Popen[str]] = []

    def caller(code: str, **keywords: Any) -> subprocess.Popen[str]:
        code = f"import os, signal, sys, pycontainer\nROOTFS = {str(busybox_rootfs)!r}\n{code}"
        # From "/": the checkout must not be what it imports.
        defaults = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": "/"}
        callers.append(subprocess.Popen([sys.executable, "-c", code], **{**defaults, **keywords}))
        return callers[-1]

    yield caller
    for process in callers:
        with process:
            process.kill()


@pytest.fixture
def output_of(caller: Callable[..., subprocess.Popen[str]]) -> Callable[..., str]:
    """What another caller prints, which has to end well."""

    def output_of(code: str, **keywords: Any) -> str:
        process = caller(code, **keywords)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
        return output

    return output_of


@pytest.fixture
def hostile(tmp_path: Path, busybox_rootfs: Path) -> Iterator[Rootfs]:
    """A root file system to make traps in, with a canary on the host that nothing may happen to."""
    rootfs = Rootfs(tmp_path / "hostile", busybox_rootfs, tmp_path / "canary")
    before = rootfs.canary_state()
    yield rootfs
    assert rootfs.canary_state() == before


@pytest.fixture
def host_mount() -> Iterator[Any]:
    """Mounts a tmpfs on the host, for the length of the test."""
    with contextlib.ExitStack() as undo:

        def mount(path: Path, options: str = "defaults") -> Path:
            path.mkdir(exist_ok=True)
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "canary", path], check=True)
            undo.callback(subprocess.run, ["umount", "-R", path], check=True)
            return path

        yield mount


def maps_ids(path: Path | None = None) -> bool:
    """Whether what is at *path*, or a tmpfs, can be mounted with mapped ids."""
    if path is not None:
        done = subprocess.run(["stat", "-f", "-c", "%T", path], capture_output=True, text=True, check=True)
        if done.stdout.strip() not in ("tmpfs", "ramfs"):
            return True
    return tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) >= (6, 3)


@pytest.fixture
def mapped_tmpfs() -> None:
    """A tmpfs can be mounted with mapped ids."""
    if not maps_ids():
        pytest.skip("maps no ids of a tmpfs: Linux 6.3 does")


@pytest.fixture
def mapped_files(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The tests' own files can be shown with mapped ids."""
    if not maps_ids(tmp_path):
        request.getfixturevalue("mapped_tmpfs")


@pytest.fixture
def until() -> Callable[..., None]:
    """Waits until *condition* holds; the test fails when it does not within *seconds*."""

    def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds} s"
            time.sleep(0.005)

    return until


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    """os.umask, undone."""
    before = os.umask(0o022)
    os.umask(before)
    yield os.umask
    os.umask(before)
