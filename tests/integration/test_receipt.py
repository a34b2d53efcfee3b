"""Receipts of real containers: the kernel agrees with what was asked for, and tells when it does not."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import pycontainer
from pycontainer import Command, Container, ExecutionDriver, Mount, NotRunningError, SetupError
from pycontainer._exec_stop import ExecStop
from pycontainer.cli import main

pytestmark = [pytest.mark.root, pytest.mark.tool("busybox")]


@pytest.fixture
def flags(native: ExecutionDriver, busybox_rootfs: Path) -> dict[str, Any]:
    return {"driver": native, "rootfs": str(busybox_rootfs)}


COMMANDS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "the host's view": {"rootfs": None},
    "a user": {"user": "alice", "groups": ["extra"]},
    "no capability": {"cap_drop": ["ALL"]},
    "others": {"cap_drop": ["CHOWN"], "cap_add": ["NET_RAW", "SYS_PTRACE"]},
    "no filter": {"seccomp": "unconfined"},
    "new privileges": {"no_new_privileges": False},
    "namespaces of the host": {"network": "host", "pid": "host", "ipc": "host", "uts": "host"},
    "limits": {"memory": "64m", "pids_limit": 40, "cpus": 0.5, "cpu_shares": 300, "cpuset_cpus": "0"},
    "a limit that is no multiple of a page": {"memory": 67108864 + 1000},
    "standing": {"oom_score_adj": 100, "cpu_affinity": "0"},
    "rlimits": {"rlimits": {"nofile": (50, 60), "core": 0}},
    "read-only": {"read_only": True},
    "masks": {"masked_paths": ["/proc/uptime", "/etc/passwd", "/no/such"], "readonly_paths": ["/proc/tty"]},
    "mounts": {
        "mounts": [
            Mount("/etc", "/data", read_only=True, options=("nosuid", "noexec")),
            Mount.tmpfs("/small", size="1m", mode=0o700),
            Mount.tmpfs("/dev/shm", size="2m"),
        ]
    },
    "a terminal": {"tty": True},
}


@pytest.mark.parametrize("name", COMMANDS)
def test_there_is_no_difference(name: str, flags: dict[str, Any]) -> None:
    """Before the first instruction, and of the same container a while later."""
    keywords = {**flags, **COMMANDS[name]}
    command = Command.of(["sleep", "1000"], **{key: value for key, value in keywords.items() if key != "driver"})
    with Container(["sleep", "1000"], **keywords) as box:
        assert list(map(str, box.receipt().differences(command))) == []
    if not COMMANDS[name].get("tty"):
        done = pycontainer.run(["true"], receipt=True, **keywords)
        assert done.receipt is not None
        assert list(map(str, done.receipt.differences(command))) == []


def test_a_payload_that_changes_itself_is_told(flags: dict[str, Any]) -> None:
    """The payload of the test shows that the receipt is what holds, and not what was asked for."""
    asked = Command.of(["x"], rootfs=flags["rootfs"])
    script = "ulimit -n 33; mount -t tmpfs -o size=4k none /sys && umount /proc/keys && echo ready && exec sleep 1000"
    keywords = {**flags, "cap_add": ["SYS_ADMIN"], "seccomp": "unconfined"}
    with Container(["sh", "-c", script], stdout=-1, **keywords) as box:
        assert box.stdout is not None
        assert box.stdout.readline() == b"ready\n"
        found = box.receipt()
    fields = {one.field for one in found.differences(asked)}
    assert fields >= {"process.capabilities.bounding", "seccomp", "masked_paths", "mounts./sys"}
    assert next(limit for limit in found.rlimits if limit.type == "RLIMIT_NOFILE").soft == 33


def test_the_smallest_limit_on_the_way_up_counts(flags: dict[str, Any]) -> None:
    with Container(["sleep", "1000"], pids_limit=100, **flags) as box:
        pids = next(path for path in box.receipt().cgroups if "pids" in path.controllers or path.version == 2)
        assert box.receipt().limits.pids == 100
        box.update(pids_limit=50)
        assert box.receipt().limits.pids == 50
        assert pids.path.count("/") >= 2


# -- before the first instruction


def test_with_an_init_it_is_that_of_the_program(flags: dict[str, Any]) -> None:
    done = pycontainer.run(["sh", "-c", "echo $$"], capture_output=True, receipt=True, init=True, **flags)
    assert done.returncode == 0
    assert done.stdout == b"2\n"
    assert done.receipt is not None
    assert done.receipt.differences(Command.of(["x"], rootfs=flags["rootfs"], init=True)) == ()
    without = done.receipt.differences(Command.of(["x"], rootfs=flags["rootfs"]))
    assert {one.field for one in without} == {"init", "session"}


def test_the_program_does_not_notice(flags: dict[str, Any]) -> None:
    script = "grep -E 'TracerPid|SigPnd|ShdPnd' /proc/1/status"
    plain = pycontainer.run(["sh", "-c", script], capture_output=True, **flags)
    looked_at = pycontainer.run(["sh", "-c", script], capture_output=True, receipt=True, **flags)
    assert b"TracerPid:\t0\n" in plain.stdout
    assert looked_at.stdout == plain.stdout


def test_nothing_stays(flags: dict[str, Any]) -> None:
    pycontainer.run(["true"], receipt=True, **flags)
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(20):
        pycontainer.run(["true"], receipt=True, **flags)
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before


def test_a_program_that_does_not_exist(flags: dict[str, Any]) -> None:
    with pytest.raises(SetupError) as caught:
        pycontainer.run(["/no/such"], receipt=True, **flags)
    assert (caught.value.step, caught.value.errno) == ("execve", errno.ENOENT)
    assert not any(thread.name.startswith("exec-stop") for thread in threading.enumerate())


def test_one_that_is_killed_before_it_begins(flags: dict[str, Any]) -> None:
    with Container(["true"], start=False, **flags) as box:
        box.create()
        assert box.pid is not None
        stop = ExecStop(box.pid, lambda pid: pid)
        box.kill()
        with pytest.raises(ProcessLookupError):
            stop.result()
        assert box._life.wait(60).signal == signal.SIGKILL


def test_signals_meanwhile_arrive(flags: dict[str, Any]) -> None:
    """A tracer sees every signal first, and has to pass it on."""
    with Container(["sleep", "1000"], start=False, **flags) as box:
        box.create()
        assert box.pid is not None
        stop = ExecStop(box.pid, lambda pid: pid)
        box.send_signal(signal.SIGSTOP)
        box.send_signal(signal.SIGCONT)
        box.start()
        assert stop.result() == box.pid
        assert box.poll() is None


def test_a_caller_who_waits_for_any_child(native: ExecutionDriver, busybox_rootfs: Path) -> None:
    """The news of what is traced come to any waitpid(-1) in this process; that must not hold the program for ever."""
    script = """if True:
        import contextlib, os, sys, threading, time
        import pycontainer
        def reap():
            while True:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(-1, 0)
                time.sleep(0.0001)
        threading.Thread(target=reap, daemon=True).start()
        for _ in range(10):
            done = pycontainer.run(["true"], rootfs=sys.argv[1], receipt=True, timeout=60)
            assert done.receipt.no_new_privileges
        print("fine")
    """
    done = subprocess.run([sys.executable, "-c", script, str(busybox_rootfs)], capture_output=True, timeout=120)
    assert (done.stdout, done.stderr) == (b"fine\n", b"")


def test_a_receipt_that_cannot_be_read_ends_the_container(
    flags: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(pid: int) -> None:
        raise PermissionError(errno.EACCES, "no", f"/proc/{pid}")

    monkeypatch.setattr("pycontainer.receipt.read", fail)
    with pytest.raises(PermissionError):
        pycontainer.run(["sleep", "1000"], receipt=True, name="unreadable", **flags)
    assert not flags["driver"].info("unreadable").is_running


def test_not_of_one_that_ended(flags: dict[str, Any]) -> None:
    with Container(["true"], **flags) as box:
        with contextlib.suppress(NotRunningError):
            box.receipt()
        box.wait(60)
        with pytest.raises(NotRunningError):
            box.receipt()


def test_on_the_command_line(busybox_rootfs: Path, tmp_path: Path) -> None:
    file = tmp_path / "receipt.json"
    assert main(["run", "--rootfs", str(busybox_rootfs), "--receipt", str(file), "-u", "alice", "--", "true"]) == 0
    data = json.loads(file.read_text())
    assert data["uid"] == {"real": 1000, "effective": 1000, "saved": 1000, "filesystem": 1000}
    assert data["seccomp"]["mode"] == "filter"


def test_of_a_detached_container(busybox_rootfs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"receipt-{os.getpid()}"
    pycontainer.Container(["sleep", "1000"], rootfs=busybox_rootfs, name=name, detach=True)
    box = pycontainer.get(name)
    try:
        assert main(["receipt", "--json", name]) == 0
        data = json.loads(capsys.readouterr().out)
        assert (data["pid"], data["no_new_privileges"], data["differences"]) == (box.pid, True, [])
        assert main(["receipt", name]) == 0
        assert "no new privileges: True\n" in capsys.readouterr().out
        box.update(pids_limit=20)
        assert box.receipt().limits.pids == 20
    finally:
        box.kill()
        box.wait(60)
        box.remove()
    assert main(["receipt", name]) == 125
