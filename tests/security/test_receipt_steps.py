"""Whatever step of a plan is left out: it fails, a receipt tells of it, or there is a reason here why it cannot."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pycontainer
from pycontainer import Command, Container, Mount
from pycontainer.receipt import Receipt, read
from pycontainer_native import plan
from pycontainer_native.driver import NativeDriver

from .mutants import PlanMutant, left_out

pytestmark = [pytest.mark.root, pytest.mark.tool("busybox")]

#: The containers whose plans these are.
COMMANDS: dict[str, dict[str, Any]] = {
    "a directory": {
        "hostname": "asked",
        "sysctls": {"net.ipv4.ip_forward": "1"},
        "devices": ["/dev/null:/dev/other"],
        "rlimits": {"fsize": 1 << 30},  # sudo sets that of core files to 0
        "mounts": [Mount("/etc", "/data", read_only=True), Mount.tmpfs("/small", size="1m", mode=0o700)],
        "oom_score_adj": 5,
        "cpu_affinity": "0",
        "read_only": True,
        "user": "1000:2000",
        "groups": [2001],
        "cwd": "/tmp",
    },
    "a view of the host": {"rootfs": None, "dns": ["192.0.2.1"], "network": "none"},
    "a terminal": {"tty": True, "init": True, "rootfs_propagation": "shared"},
}

_ITSELF = "nobody but the process itself can ask for it"
_AGAIN = "another step does the same later, or before"
_LOOKS = "it only looks, or waits: what it looks for is as it has to be"
_NOT_HERE = "there is no such thing on this kernel, or with this caller"
_NO_HARM = "what is missing then opens nothing"

#: By the beginning of a step's label, and its call: why nothing need be seen of it.
UNSEEN: dict[tuple[str, str], str] = {
    ("die with the launcher", "prctl"): _ITSELF,
    ("die with the launcher", "ppoll"): _LOOKS,
    ("join a new session keyring", "keyctl"): _ITSELF,
    ("join cgroup", "write"): "no limit is asked for; where one is, it is a difference",
    ("close foreign descriptors", "close_range"): _AGAIN,
    ("keep what the rest needs", "close_range"): _AGAIN,
    ("close the set-up's descriptors", "close_range"): _AGAIN,
    ("close descriptors on execve", "close_range"): _AGAIN,
    ("make mounts private", "mount"): "here the host's mounts propagate nothing anyway",
    ("prepare masks", "move_mount"): "where it is attached is no part of the container",
    ("mount tmpfs on /dev", "symlinkat"): _NO_HARM,
    ("take stdio", "dup3"): "what they are to lead to is no part of a Command",
    ("clone rootfs", "mount_setattr"): "it has no mounts in it, and is made read-only and nodev again",
    ("mount /etc on /data", "mkdirat"): "it is there from the time before",
    ("mount tmpfs on /small", "mkdirat"): "it is there from the time before",
    ("copy /", "sendfile"): "of a view's files it is not seen what is in them: unchecked() says so",
    ("copy /", "close"): _AGAIN,
    ("provide /etc/", "mkdirat"): "it is there already",
    ("provide /etc/", "mknodat"): "it is there already",
    ("provide /etc/", "close"): _AGAIN,
    ("mount the terminal on /dev/console", "move_mount"): _NO_HARM,
    ("enter /", "fchdir"): "where it is already",
    ("pivot_root", "chdir"): _AGAIN,
    ("check that the old root is gone", "openat2"): _LOOKS,
    ("set net.ipv4.ip_forward", "fstatfs"): _LOOKS,
    ("set oom_score_adj", "fstatfs"): _LOOKS,
    ("set the affinity", "sched_getaffinity"): _LOOKS,
    ("enter /", "getcwd"): _LOOKS,
    ("wait for the start", "recvfrom"): _LOOKS,
    ("set capabilities", "prctl"): "there is none: a new launcher has no ambient ones",
    ("set capabilities", "capset"): "execve computes them from the bounding set and the ids (capabilities(7))",
}


def steps_of(driver: NativeDriver, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Label and call of each step of its plan, once each."""
    seen: dict[tuple[str, str], None] = {}

    class Noting(plan.Recorder):  # type: ignore[name-defined,misc]
        def call(self, call: str, *arguments: Any, **keywords: Any) -> None:
            super().call(call, *arguments, **keywords)
            seen[self.steps[-1].label, call] = None

    with monkeypatch.context() as patched:
        patched.setattr(plan, "Recorder", Noting)
        patched.setattr(plan, "_sections", {})
        begun(driver, given)
    return [*seen]


def begun(driver: NativeDriver, given: dict[str, Any]) -> Receipt:
    """Within a few seconds: who has lost the way to its launcher waits for ever."""
    with Container(["sleep", "100"], driver=driver, start=False, **given) as box:
        found = box._start_within(5, time.monotonic(), True)
        assert found is not None
        return found


def reason(label: str, call: str) -> str | None:
    """Why nothing is seen of a step."""
    for word, name in (("mask ", ""), ("make ", " read-only")):
        path = label.removeprefix(word).removesuffix(name)
        if label == f"{word}{path}{name}" and path.startswith(("/proc/", "/sys/")) and not os.path.lexists(path):
            return _NOT_HERE
    if label.startswith("drop CAP_") and label.split()[1] not in read(os.getpid()).capabilities.permitted:
        return _NOT_HERE
    return next((why for (start, of), why in UNSEEN.items() if label.startswith(start) and of == call), None)


@pytest.fixture
def limits() -> Iterator[None]:
    """Those that a container has by default are not the launcher's: a caller may change his own at any time."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1000), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_step_that_is_left_out(
    busybox_rootfs: Path, own_driver: NativeDriver, limits: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    unseen = []
    tried: set[tuple[str, str]] = set()
    for keywords in COMMANDS.values():
        given = {"rootfs": busybox_rootfs, **keywords}
        command = Command.of(["sleep", "100"], **given)
        assert begun(own_driver, given).differences(command) == ()
        for label, call in steps_of(own_driver, given, monkeypatch):
            if (label, call) in tried:
                continue
            tried.add((label, call))
            mutant = PlanMutant(label, left_out(label, call))
            with monkeypatch.context() as patched:
                mutant.apply(patched, tmp_path)
                try:
                    told = bool(begun(own_driver, given).differences(command))
                except (ProcessLookupError, pycontainer.ContainerError):
                    told = True  # it did not come to anything
            assert mutant.used
            if not told and reason(label, call) is None:
                unseen.append((label, call))
    assert unseen == []
    assert len(tried) > 100
