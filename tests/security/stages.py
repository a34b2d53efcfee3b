"""Containers that wait in the middle of their set-up, steps that fail, and processes in mounts of their own."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from pycontainer_native import abi, plan, steps

CLONE_NEWNS, MS_BIND, MS_REC, MS_PRIVATE, MS_SHARED = 0x20000, 0x1000, 0x4000, 0x40000, 0x100000
RENAME_EXCHANGE = 2

libc = ctypes.CDLL(None, use_errno=True)


def wait_at(stage: str | tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Move a created container's gate before the first step of *stage*: gates are steps, and may stand anywhere."""

    class Held(plan.Recorder):  # type: ignore[name-defined,misc]
        held = False

        is_ahead = False

        def call(self, call: str, *arguments: Any, **keywords: Any) -> None:
            if self._label == "wait for the start":
                return
            if (self._label or call).startswith(stage) and not (Held.held or self.is_ahead):
                Held.held = True
                super().call("sendto", abi.CHANNEL_FD, b"g", 1, abi.MSG_NOSIGNAL, 0, 0)
                super().call("recvfrom", abi.CHANNEL_FD, ("buffer", 1), 1, 0, 0, 0, check=(b"s", errno.EPIPE))
            super().call(call, *arguments, **keywords)

    begin = steps.begin

    @functools.wraps(begin)
    def ahead(k: Any, *inputs: Any) -> None:
        k.is_ahead = True  # before there is a request, nobody would open a gate
        begin(k, *inputs)

    compile_exec = plan.compile_exec

    @functools.wraps(compile_exec)
    def heard(*inputs: Any) -> plan.Plan:
        return attrs.evolve(compile_exec(*inputs), talks=True)  # a further process has no gate otherwise

    monkeypatch.setattr(plan, "compile_exec", heard)
    monkeypatch.setattr(steps, "begin", ahead)
    monkeypatch.setattr(plan, "Recorder", Held)
    monkeypatch.setattr(plan, "_sections", {})


def observed_at(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Like wait_at, and the process's dumpable flag (PR_GET_DUMPABLE) is what its umask shows then."""

    class Observed(plan.Recorder):  # type: ignore[name-defined,misc]
        def call(self, call: str, *arguments: Any, **keywords: Any) -> None:
            if call == "sendto" and arguments[1] == b"g":
                flag = self.slot()
                super().call("prctl", 3, 0, 0, 0, 0, out=flag)
                super().call("umask", flag)
            super().call(call, *arguments, **keywords)

    monkeypatch.setattr(plan, "Recorder", Observed)
    wait_at(stage, monkeypatch)


class Faults:
    """Makes the *number*-th step of the next plan fail, with a system call that does not exist: ENOSYS."""

    def __init__(self, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.label = ""  #: of the step that fails
        faults = self

        class Failing(plan.Recorder):  # type: ignore[name-defined,misc]
            def call(self, call: str, *arguments: Any, **keywords: Any) -> None:
                super().call(call, *arguments, **keywords)
                if faults.count == number:
                    faults.label = self.steps[-1].label
                    self.steps[-1] = self.steps[-1]._replace(call="none")
                faults.count += 1

        monkeypatch.setitem(abi.NR, "none", 9999)
        monkeypatch.setattr(plan, "Recorder", Failing)
        monkeypatch.setattr(plan, "_sections", {})


def exchange(first: Path, second: Path) -> None:
    """Swap two names in one go (renameat2(2), RENAME_EXCHANGE)."""
    number = {"x86_64": 316}.get(os.uname().machine, 276)
    if libc.syscall(number, -100, os.fsencode(first), -100, os.fsencode(second), RENAME_EXCHANGE) == -1:
        raise OSError(ctypes.get_errno(), "renameat2", str(first))


@contextmanager
def flipping(first: Path, second: Path) -> Iterator[None]:
    """Another process swaps the two, as fast as it can, for as long as this lasts."""
    code = f"""
import ctypes, os
exchange = ctypes.CDLL(None).syscall
number = {{"x86_64": 316}}.get(os.uname().machine, 276)
print("ready", flush=True)
while os.getppid() == {os.getpid()}:
    for _ in range(100):
        exchange(number, -100, {os.fsencode(first)!r}, -100, {os.fsencode(second)!r}, {RENAME_EXCHANGE})
"""
    flipper = subprocess.Popen([sys.executable, "-I", "-S", "-c", code], stdout=subprocess.PIPE)
    with flipper:
        try:
            assert flipper.stdout is not None
            assert flipper.stdout.readline() == b"ready\n"
            yield
        finally:
            flipper.kill()


def in_child(function: Callable[[], None]) -> None:
    """Call *function* in a forked child, where it may change itself as it likes. What it asserts is asserted here."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads, of which the child has none
        pid = os.fork()
    if pid == 0:
        kind, text = b"!", ""
        try:
            os.close(reader)
            function()
            kind = b"+"
        except (AssertionError, pytest.fail.Exception):
            kind, text = b"-", traceback.format_exc()
        except BaseException:
            text = traceback.format_exc()
        finally:
            os.write(writer, kind + text.encode()[:60000])
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    assert answer[:1] != b"-", answer[1:].decode()
    if answer[:1] != b"+":
        raise RuntimeError(answer[1:].decode() or "the child was killed")


def in_own_mounts(function: Callable[[], None], *, shared: bool = False) -> None:
    """Like in_child, in a mount namespace of its own. With *shared* every mount there is, as systemd has it."""

    def entered() -> None:
        for call in (
            lambda: libc.unshare(CLONE_NEWNS),
            lambda: libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None),
            lambda: libc.mount(None, b"/", None, MS_REC | MS_SHARED, None) if shared else 0,
        ):
            if call() == -1:
                raise OSError(ctypes.get_errno(), "unshare")
        function()

    in_child(entered)


def enter(pid: int, *namespaces: str) -> None:
    """Let this process, which is somebody's forked child, enter those of *pid*."""
    for name in namespaces:
        fd = os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY)
        if libc.setns(fd, 0) == -1:
            raise OSError(ctypes.get_errno(), "setns", name)


def mount_tmpfs(path: Path, options: str = "") -> None:
    """In a mount namespace of one's own."""
    path.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", *(["-o", options] if options else []), "test", path], check=True)
