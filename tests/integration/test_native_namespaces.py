"""Namespaces that exist before the container does: pid, ipc and uts, by path and of another container."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pycontainer import PIPE, InvalidCommandError, NotRunningError, SetupError

from . import host

pytestmark = pytest.mark.root

KINDS = ("pid", "ipc", "uts")


def inode(of: int | str, kind: str) -> str:
    return os.readlink(f"/proc/{of}/ns/{kind}")


@pytest.fixture
def keeper(native: Any) -> Iterator[int]:
    """The pid of a process that keeps a namespace of each kind; it is the first of its pid namespace."""
    command = ["unshare", "--pid", "--ipc", "--uts", "--mount", "--fork", "--kill-child", "--mount-proc"]
    script = "hostname kept && echo && exec sleep 1000"
    with subprocess.Popen([*command, "sh", "-c", script], stdout=subprocess.PIPE) as unshare:
        assert unshare.stdout is not None
        unshare.stdout.readline()
        [child] = host.children(unshare.pid)
        yield child
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("init", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_by_path(start: Any, keeper: int, kind: str, init: bool) -> None:
    box = start(["sleep", "100"], init=init, **{kind: f"ns:/proc/{keeper}/ns/{kind}"})
    for other in KINDS:
        assert (inode(box.pid, other) == inode(keeper, other)) is (other == kind)
        assert inode(box.pid, other) != inode("self", other)
    assert box.exec(["readlink", f"/proc/self/ns/{kind}"], capture_output=True, text=True).stdout.strip() == inode(
        keeper, kind
    )
    box.kill()
    assert box.wait(30) == -9
    assert host.is_alive(keeper)


def test_all_of_another_container(start: Any, sh: Any) -> None:
    first = start(["sh", "-c", "sleep 1000; exit 7"], hostname="named")
    shared = dict.fromkeys(KINDS, f"container:{first.id}")
    done = sh("hostname; ps -o pid,comm; readlink /proc/self/ns/ipc", **shared)
    assert done.stdout.startswith("named\n")
    assert done.stdout.endswith(f"{inode(first.pid, 'ipc')}\n")
    assert re.search(r"^ +1 sh$", done.stdout, re.MULTILINE)  # its proc is that of the namespace
    assert done.returncode == 0
    first.kill()
    assert first.wait(30) == -9


def test_a_terminal_and_a_create_in_a_pid_namespace(start: Any) -> None:
    first = start(["sleep", "1000"])
    box = start(["sh", "-c", "test -t 0 && ps -o pid,sid,comm | grep ps"], pid=f"container:{first.id}", tty=True,
                stdout=PIPE, start=False)  # fmt: skip
    box.create()
    assert inode(box.pid, "pid") == inode(first.pid, "pid")
    box.start()
    out, _ = box.communicate(timeout=30)
    assert b"ps" in out
    assert box.returncode == 0


def test_a_foreign_pid_namespace_is_not_killed_but_all_of_the_container_is(start: Any, keeper: int, until: Any) -> None:
    box = start(["sh", "-c", "setsid sleep 98765 & echo; sleep 98765"], pid=f"ns:/proc/{keeper}/ns/pid", stdout=PIPE)
    box.stdout.readline()
    assert len(host.running("98765")) >= 2
    box.kill()
    box.wait(30)
    until(lambda: host.running("98765") == [])
    assert host.is_alive(keeper)


def test_a_failing_step_after_the_fork_is_told(start: Any) -> None:
    first = start(["sleep", "1000"])
    for init in (False, True):
        with pytest.raises(SetupError) as caught:
            start(["no-such-program"], pid=f"container:{first.id}", init=init)
        assert (caught.value.step, caught.value.errno) == ("execve", errno.ENOENT)
    with pytest.raises(SetupError, match="enter /no/such"):
        start(["true"], pid=f"container:{first.id}", cwd="/no/such")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_such_namespace(start: Any, tmp_path: Path, keeper: int, kind: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    other = "uts" if kind != "uts" else "ipc"
    paths = {
        "/no/such/path": "No such file",
        str(tmp_path / "fifo"): "not a namespace",
        "/etc/passwd": "not a namespace",
        f"/proc/{keeper}/ns/{other}": f"another kind: {other}",
        f"/proc/self/ns/{kind}": "host's own",
    }
    for path, problem in paths.items():
        with pytest.raises(InvalidCommandError, match=problem) as caught:
            start(["true"], **{kind: f"ns:{path}"})
        assert caught.value.field == kind


def test_who_does_not_run_or_has_none(start: Any) -> None:
    with pytest.raises(NotRunningError):
        start(["true"], ipc="container:nobody")
    first = start(["sleep", "100"], ipc="host")
    with pytest.raises(InvalidCommandError, match="host's own") as caught:
        start(["true"], ipc=f"container:{first.id}")
    assert caught.value.field == "ipc"


def test_nobody_who_may_trace_sees_the_set_up(start: Any) -> None:
    first = start(["sleep", "100"], cap_add=["SYS_PTRACE"])
    with pytest.raises(InvalidCommandError, match="CAP_SYS_PTRACE") as caught:
        start(["true"], pid=f"container:{first.id}")
    assert caught.value.field == "pid"
    with pytest.raises(InvalidCommandError, match=f"process {first.pid} in .* has CAP_SYS_PTRACE") as caught:
        start(["true"], pid=f"ns:/proc/{first.pid}/ns/pid")
    assert caught.value.field == "pid"
    assert start(["true"], ipc=f"container:{first.id}").wait(30) == 0
    harmless = start(["sleep", "100"])
    assert start(["true"], pid=f"ns:/proc/{harmless.pid}/ns/pid").wait(30) == 0


def test_who_may_trace_in_a_user_namespace_of_his_own_alone_is_joined(start: Any) -> None:
    first = start(["sleep", "100"], cap_add=["SYS_PTRACE"], userns="auto")
    assert start(["true"], pid=f"ns:/proc/{first.pid}/ns/pid").wait(30) == 0
