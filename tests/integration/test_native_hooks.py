"""OCI's hooks: when each runs, where, with what; and what its failure means."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import pycontainer
import pycontainer.aio
from pycontainer import PIPE, Hook, Hooks, InvalidCommandError, SetupError, WaitTimeoutError
from pycontainer.hooks import POINTS
from pycontainer_native.hooks import HookError, Running

from . import host

pytestmark = pytest.mark.root


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def hook(log: Path) -> Any:
    """Makes a hook that notes its name, the rest of what *script* prints, and its state."""

    def hook(name: str, script: str = ":", **keywords: Any) -> Hook:
        note = f'echo "{name} $({script})" >> {log}; cat >> {log}; echo >> {log}'
        return Hook("/bin/sh", ["sh", "-c", note], **{"env": {"PATH": os.environ["PATH"]}, **keywords})

    return hook


def noted(log: Path) -> list[tuple[str, dict[str, Any]]]:
    """What the hooks have noted: their line, and the state."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [(line.strip(), json.loads(state)) for line, state in zip(lines[::2], lines[1::2], strict=True)]


def names(log: Path) -> list[str]:
    return [line.split()[0] for line, _ in noted(log)]


def failing(script: str, **keywords: Any) -> Hook:
    return Hook("/bin/sh", ["sh", "-c", script], **{"env": {"PATH": os.environ["PATH"]}, **keywords})


def test_the_order_and_the_state(sh: Any, hook: Any, log: Path, busybox_rootfs: Path) -> None:
    hooks = Hooks(
        create_runtime=[hook("runtime"), hook("runtime2")],
        create_container=[hook("container")],
        start_container=[Hook("/bin/sh", ["sh", "-c", "cat > /dev/shm/state; id -u >> /dev/shm/state"])],
        poststart=[hook("poststart")],
        poststop=[hook("poststop"), hook("poststop2")],
    )
    # The payload waits until it has been seen to run.
    script = "cat /dev/shm/state; echo; echo $$; ls /dev/shm"
    done = sh(script, hooks=hooks, name="hooked", annotations={"key": "value"}, user="alice")
    assert names(log) == ["runtime", "runtime2", "container", "poststart", "poststop", "poststop2"]
    states = {line.split()[0]: state for line, state in noted(log)}
    for state in states.values():
        assert state["ociVersion"].count(".") == 2
        assert (state["id"], state["bundle"]) == ("hooked", str(busybox_rootfs))
        assert state["annotations"] == {"key": "value"}
    found = [states[name]["status"] for name in ("runtime", "container", "poststart", "poststop")]
    assert found == ["creating", "creating", "running", "stopped"]
    assert states["container"]["pid"] == 1  # as it is seen there
    assert states["runtime"]["pid"] == states["poststart"]["pid"] > 1
    inside, uid = done.stdout.splitlines()[0].rpartition("}")[::2]
    state = json.loads(inside + "}")
    assert (state["status"], state["pid"], uid) == ("created", 1, "1000")


def test_where_they_run(start: Any, hook: Any, log: Path) -> None:
    def links(proc: str) -> str:
        return f"cd {proc}/self/ns && readlink mnt net pid | tr '\\n' ' '"

    inside = links("/proc/root/proc")  # the root to be, with its proc
    hooks = Hooks(create_runtime=[hook("runtime", links("/proc"))], create_container=[hook("container", inside)])
    box = start(["sleep", "100"], hooks=hooks)
    (runtime, _), (container, _) = noted(log)
    for line, pid in ((runtime, "self"), (container, box.pid)):
        assert line.split()[1:] == [os.readlink(f"/proc/{pid}/ns/{kind}") for kind in ("mnt", "net", "pid")]


def test_what_create_container_mounts_is_there(sh: Any, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/x").write_text("mounted\n")
    before = host.mounts()
    hooks = Hooks(create_container=[failing(f"mount --bind {tmp_path}/data /proc/root/tmp")])
    assert sh("cat /tmp/x", hooks=hooks).stdout == "mounted\n"
    assert host.mounts() == before


REPORT = """
import json, os, signal
with os.scandir("/proc/self/fd") as entries:
    fds = sorted(int(entry.name) for entry in entries)[:-1]  # without that of the listing
with open("/proc/self/environ") as file:
    environment = file.read().split("\\0")[:-1]
umask = os.umask(0)
own_session = os.getsid(0) == os.getpid()
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
report = {"fds": fds, "env": environment, "cwd": os.getcwd(), "umask": umask, "session": own_session,
          "blocked": int(status["SigBlk"], 16)}
with open(LOG, "w") as file:
    json.dump(report, file)
"""


@pytest.mark.parametrize("point", ["create_runtime", "create_container", "poststop"])
def test_they_have_nothing_but_what_was_given(
    start: Any, log: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    monkeypatch.setenv("SECRET", "1")
    code = f"LOG = {str(log)!r}" + REPORT.replace(
        "/proc/self", "/proc/root/proc/self" if "container" in point else "/proc/self"
    )
    hook = Hook(os.path.realpath(sys.executable), ["python", "-I", "-S", "-c", code], env={"A": "two words"})
    with open("/dev/null") as null:  # inheritable, and somebody else's
        os.set_inheritable(null.fileno(), True)
        start(["true"], hooks=Hooks(**{point: [hook]}), env={"PATH": "/bin", "LD_PRELOAD": "/x"}).wait(30)
    assert json.loads(log.read_text()) == {
        "fds": [0, 1, 2], "env": ["A=two words"], "cwd": "/", "umask": 0o022, "session": True, "blocked": 0,
    }  # fmt: skip


@pytest.mark.parametrize("point", ["create_runtime", "create_container", "start_container"])
@pytest.mark.parametrize("init", [False, True])
def test_a_failure_undoes_everything(start: Any, hook: Any, log: Path, point: str, init: bool) -> None:
    bad = failing("echo on stdout; echo last words >&2; exit 7")
    with pytest.raises(SetupError) as caught:
        start(["true"], init=init, hooks=Hooks(**{point: [bad]}, poststart=[hook("never")], poststop=[hook("after")]))
    assert caught.value.errno == errno.ECANCELED
    assert caught.value.step == f"{POINTS[point]} hook /bin/sh exited with code 7: on stdout\nlast words"
    assert names(log) == ["after"]  # before the error is told


@pytest.mark.parametrize("point", ["create_runtime", "create_container", "start_container"])
def test_a_timeout_kills_the_whole_group(start: Any, point: str, until: Any) -> None:
    hooks = Hooks(**{point: [failing("echo begun; sleep 43210 & sleep 43210", timeout=0.3)]})
    with pytest.raises(SetupError, match="did not end in time: begun") as caught:
        start(["true"], hooks=hooks)
    assert caught.value.errno == errno.ETIMEDOUT
    until(lambda: host.running("43210") == [])


def test_killed_by_a_signal(start: Any) -> None:
    with pytest.raises(SetupError, match="killed by signal 9"):
        start(["true"], hooks=Hooks(create_runtime=[failing("kill -9 $$")]))


def test_failures_around_the_start_and_after_the_end_are_warnings(
    start: Any, hook: Any, log: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hooks = Hooks(
        poststart=[failing("echo one; exit 1"), hook("poststart")],
        poststop=[failing("sleep 100", timeout=0.2), failing("exit 2"), hook("poststop")],
    )
    with caplog.at_level(logging.WARNING, "pycontainer.hooks"):
        assert start(["true"], name="warned", hooks=hooks).wait(30) == 0
    assert names(log) == ["poststart", "poststop"]
    assert [record.getMessage() for record in caplog.records] == [
        "container 'warned': poststart hook /bin/sh exited with code 1: one",
        "container 'warned': poststop hook /bin/sh did not end in time",
        "container 'warned': poststop hook /bin/sh exited with code 2",
    ]


def test_the_end_waits_for_poststop(start: Any, tmp_path: Path) -> None:
    hooks = Hooks(poststop=[failing(f"while ! test -e {tmp_path}/go; do sleep 0.01; done")])
    box = start(["true"], hooks=hooks)
    with pytest.raises(WaitTimeoutError):
        box.wait(0.3)
    (tmp_path / "go").touch()
    assert box.wait(30) == 0


def test_create_and_start(start: Any, hook: Any, log: Path) -> None:
    hooks = Hooks(create_runtime=[hook("runtime")], create_container=[hook("container")], poststart=[hook("poststart")],
                  start_container=[Hook("/bin/touch", ["touch", "/dev/shm/started"])])  # fmt: skip
    box = start(["ls", "/dev/shm"], hooks=hooks, start=False, stdout=PIPE)
    box.create()
    assert names(log) == ["runtime", "container"]
    assert os.listdir(f"/proc/{box.pid}/root/dev/shm") == []
    box.start()
    assert box.communicate(timeout=30)[0] == b"started\n"
    assert names(log) == ["runtime", "container", "poststart"]


def test_others_start_meanwhile(start: Any, sh: Any, tmp_path: Path, until: Any) -> None:
    """The launcher waits for no hook: one that hangs keeps nobody else from anything."""
    hooks = Hooks(
        create_runtime=[failing(f"touch {tmp_path}/here; while ! test -e {tmp_path}/go; do sleep 0.01; done")]
    )
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(sh("echo late", hooks=hooks).stdout))
    thread.start()
    until(lambda: (tmp_path / "here").exists())
    assert sh("echo soon").stdout == "soon\n"
    assert results == []
    (tmp_path / "go").touch()
    thread.join(30)
    assert results == ["late\n"]


def test_giving_up_during_a_hook_ends_it(sh: Any, until: Any, hook: Any, log: Path) -> None:
    hooks = Hooks(create_runtime=[failing("sleep 54321")], poststop=[hook("poststop")])
    begin = time.monotonic()
    with pytest.raises(WaitTimeoutError):
        sh("true", hooks=hooks, timeout=0.5)
    assert time.monotonic() - begin < 30
    until(lambda: host.running("54321") == [])
    until(lambda: log.exists() and log.read_text().startswith("poststop"))


@pytest.mark.parametrize("twin", ["run", "aio"])
def test_a_poststop_hook_does_not_hold_a_timeout_up(native: Any, busybox_rootfs: Path, until: Any, twin: str) -> None:
    keywords: dict[str, Any] = {"rootfs": busybox_rootfs, "driver": native, "timeout": 0.5, "capture_output": True}
    keywords["hooks"] = Hooks(poststop=[failing("sleep 54324")])
    argv = ["sh", "-c", "echo before"]  # it is in its hook that it is given up
    begin = time.monotonic()
    with pytest.raises(WaitTimeoutError) as caught:
        pycontainer.run(argv, **keywords) if twin == "run" else asyncio.run(pycontainer.aio.run(argv, **keywords))
    assert 5 < time.monotonic() - begin < 30
    assert caught.value.stdout == b"before\n"
    until(lambda: host.running("54324") == [])


def test_killing_the_caller_runs_poststop(caller: Any, hook: Any, log: Path, until: Any) -> None:
    process = caller(
        f"""
from pycontainer import Hook, Hooks
hook = Hook("/bin/sh", ["sh", "-c", "echo poststop > {log}"])
box = pycontainer.Container(["sleep", "100"], rootfs=ROOTFS, hooks=Hooks(poststop=[hook]))
print(box.pid, flush=True)
sys.stdin.read()
"""
    )
    pid = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    until(lambda: log.exists() and log.read_text() == "poststop\n")
    assert not host.is_alive(pid)


def test_a_program_that_is_not_there(start: Any) -> None:
    for point in ("create_runtime", "create_container", "poststart", "poststop"):
        with pytest.raises(InvalidCommandError) as caught:
            start(["true"], hooks=Hooks(**{point: [Hook("/no/such/hook")]}))
        assert caught.value.field == f"hooks.{point}"
    with pytest.raises(SetupError, match=r"startContainer hook /no/such/hook .*No such file"):
        start(["true"], hooks=Hooks(start_container=[Hook("/no/such/hook")]))


def test_without_hooks_there_is_no_gate(native: Any) -> None:
    from pycontainer.command import Command

    plain = native.compile(Command.of(["true"]))
    hooked = native.compile(Command.of(["true"], hooks=Hooks(poststop=[Hook("/bin/true")])))
    assert plain.hooks is None
    assert not plain.talks
    assert hooked.hooks is not None
    assert len(hooked.sections) == len(plain.sections) + 1


@pytest.mark.parametrize("init", [False, True])
def test_what_runs_in_the_container_is_filtered(sh: Any, init: bool) -> None:
    note = Hook("/bin/sh", ["sh", "-c", "grep Seccomp: /proc/self/status > /dev/shm/status"])
    for no_new_privileges in (True, False):
        hooks = Hooks(start_container=[note])
        done = sh("cat /dev/shm/status", hooks=hooks, init=init, no_new_privileges=no_new_privileges)
        assert done.stdout.split() == ["Seccomp:", "2"]


def test_a_first_process_that_could_be_traced_runs_no_program_of_the_container(start: Any) -> None:
    hooks = Hooks(start_container=[Hook("/bin/true")])
    with pytest.raises(InvalidCommandError, match="CAP_SYS_PTRACE") as caught:
        start(["true"], hooks=hooks, cap_add=["SYS_PTRACE"])
    assert caught.value.field == "hooks.start_container"
    assert start(["true"], hooks=hooks, privileged=True).wait(30) == 0


def test_giving_up_when_the_program_has_ended_ends_poststart(sh: Any, until: Any, hook: Any, log: Path) -> None:
    hooks = Hooks(poststart=[failing("sleep 54322"), hook("never")], poststop=[hook("poststop")])
    with pytest.raises(WaitTimeoutError):
        sh("true", hooks=hooks, timeout=0.5)
    until(lambda: log.exists() and log.read_text().startswith("poststop"))
    assert host.running("54322") == []


@pytest.mark.parametrize("leave", ["close", "kill"])
def test_nobody_waits_for_poststop(start: Any, caller: Any, until: Any, hook: Any, log: Path, leave: str) -> None:
    """Where nobody is left to end it, a hook that hangs does not run for ever; those after it are run."""
    number = {"close": "54323", "kill": "54324"}[leave]
    if leave == "close":
        box = start(["true"], hooks=Hooks(poststop=[failing(f"sleep {number}"), hook("poststop")]))
        until(lambda: host.running(number))
        box.close()
    else:
        process = caller(
            f"""
from pycontainer import Hook, Hooks
hooks = Hooks(poststop=[Hook("/bin/sh", ["sh", "-c", "sleep {number}"], env={{"PATH": "/usr/bin:/bin"}}),
                        Hook("/bin/sh", ["sh", "-c", "echo poststop > {log}"])])
box = pycontainer.Container(["sleep", "100"], rootfs=ROOTFS, hooks=hooks)
print(box.pid, flush=True)
sys.stdin.read()
"""
        )
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    until(lambda: log.exists() and log.read_text().startswith("poststop"))
    assert host.running(number) == []


@pytest.mark.parametrize("which", [0, 1])
def test_without_descriptors_a_hook_fails_and_leaves_none(monkeypatch: pytest.MonkeyPatch, which: int) -> None:
    made: list[int] = []
    memfd_create = os.memfd_create

    def limited(name: str, flags: int) -> int:
        if len(made) == which:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        made.append(memfd_create(name, flags))
        return made[-1]

    monkeypatch.setattr(os, "memfd_create", limited)
    with pytest.raises(HookError, match="for the poststart hook /bin/true") as caught:
        Running("poststart", (b"/bin/true", [b"true"], [], None), b"{}", [])
    assert caught.value.errno == errno.EMFILE
    assert len(made) == which
    for fd in made:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
