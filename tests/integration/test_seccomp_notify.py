"""A filter that asks (SCMP_ACT_NOTIFY): a supervisor gets its listener, is told whose it is, and answers."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

import pycontainer
from pycontainer import Hook, Hooks
from pycontainer.errors import InvalidCommandError, SetupError, WaitTimeoutError
from pycontainer_native.driver import NativeDriver

from . import host
from .conftest import Sh
from .test_seccomp import number

pytestmark = [pytest.mark.root]

# linux/seccomp.h: struct seccomp_notif (id, pid, flags, then nr, arch and the rest of seccomp_data), seccomp_notif_resp
RECV, SEND = 0xC0502100, 0xC0182101
CONTINUE = 1
CALLS = ("mkdir", "mkdirat")

#: Answers a call: its errno, or CONTINUE.
Answer = Callable[[int], int]


class Supervisor:
    """Listens at *path*, answers everything with *verdict* (negative: that errno), and keeps what it was told."""

    def __init__(self, path: Path, verdict: int = -errno.EXDEV) -> None:
        self.path = path
        self.verdict = verdict
        self.states: list[dict[str, Any]] = []
        self.asked: list[tuple[int, int]] = []  # the pid, and the number of the call
        self.accepting = socket.socket(socket.AF_UNIX)
        self.accepting.bind(str(path))
        self.accepting.listen()
        self.threads = [threading.Thread(target=self.accept)]
        self.threads[0].start()

    def accept(self) -> None:
        while True:
            try:
                connection, _ = self.accepting.accept()
            except OSError:
                return
            with connection:
                text, fds, _, _ = socket.recv_fds(connection, 1 << 16, 8)
                while more := connection.recv(1 << 16):
                    text += more
                if not text:
                    continue  # hung up: nothing has come of it
                self.states.append(json.loads(text))
                assert len(fds) == 1
                self.threads.append(threading.Thread(target=self.answer, args=fds))
                self.threads[-1].start()

    def answer(self, listener: int) -> None:
        with contextlib.closing(os.fdopen(listener, "rb", buffering=0)):
            while True:
                request = bytearray(80)
                try:
                    fcntl.ioctl(listener, RECV, request)  # ENOENT: nobody has the filter any more
                    ident, pid, _, call = struct.unpack_from("=QIIi", request)
                    self.asked.append((pid, call))
                    goes_on = self.verdict == CONTINUE
                    error, flags = (0, CONTINUE) if goes_on else (self.verdict, 0)
                    fcntl.ioctl(listener, SEND, bytearray(struct.pack("=QqiI", ident, 0, error, flags)))
                except OSError as error:
                    if error.errno == errno.EINTR:
                        continue
                    return

    def close(self) -> None:
        self.accepting.shutdown(socket.SHUT_RDWR)
        self.accepting.close()
        for thread in self.threads:
            thread.join(30)
            assert not thread.is_alive()

    def profile(self, *calls: str, **more: Any) -> dict[str, Any]:
        return asking(self.path, *calls, **more)


def asking(path: Path, *calls: str, **more: Any) -> dict[str, Any]:
    return {
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": str(path),
        "listenerMetadata": "whose it is",
        "syscalls": [{"names": list(calls or CALLS), "action": "SCMP_ACT_NOTIFY"}],
        **more,
    }


@pytest.fixture
def supervisor(tmp_path: Path, native: NativeDriver) -> Iterator[Supervisor]:
    supervisor = Supervisor(tmp_path / "listener")
    yield supervisor
    supervisor.close()


MKDIR = "mkdir /tmp/made 2>/tmp/error; echo $?; cat /tmp/error; ls -d /tmp/made"
WAYS: list[dict[str, Any]] = [
    {}, {"init": True}, {"no_new_privileges": False}, {"no_new_privileges": False, "init": True},
    {"user": "1000:1000"}, {"userns": "auto"}, {"userns": "auto", "init": True, "no_new_privileges": False},
    {"pid": "host"},
    {"hooks": Hooks(create_runtime=[Hook("/bin/true")])},
]  # fmt: skip


# -- answers


@pytest.mark.parametrize("keywords", WAYS, ids=str)
def test_an_errno_is_what_the_call_returns(sh: Sh, supervisor: Supervisor, keywords: dict[str, Any]) -> None:
    done = sh(MKDIR, seccomp=supervisor.profile(), **keywords)
    assert done.stdout.startswith("1\nmkdir:"), done
    assert "cross-device" in done.stdout.lower()
    assert "\n/tmp/made" not in done.stdout
    assert {call for _, call in supervisor.asked} <= {number(name) for name in CALLS}
    assert len(supervisor.asked) == 1


@pytest.mark.parametrize("keywords", WAYS, ids=str)
def test_a_call_that_goes_on(sh: Sh, supervisor: Supervisor, keywords: dict[str, Any]) -> None:
    supervisor.verdict = CONTINUE
    done = sh(MKDIR, seccomp=supervisor.profile(), **keywords)
    assert done.stdout == "0\n/tmp/made\n"
    assert len(supervisor.asked) == 1


def test_what_is_not_asked_about_goes_its_way(sh: Sh, supervisor: Supervisor, until: Any) -> None:
    assert sh("touch /tmp/a; rmdir /tmp/b; echo $?", seccomp=supervisor.profile()).stdout == "1\n"
    until(lambda: supervisor.states)
    assert supervisor.asked == []


def test_few_descriptors_will_do(native: NativeDriver, busybox_rootfs: Path, supervisor: Supervisor) -> None:
    done = pycontainer.run(
        ["mkdir", "/tmp/a"], rootfs=busybox_rootfs, driver=native, seccomp=supervisor.profile(), capture_output=True,
        rlimits={"nofile": 9}, init=True, no_new_privileges=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, len(supervisor.asked)) == (1, 1), done.stderr


def test_a_supervisor_that_never_answers_leaves_it_killable(start: Any, tmp_path: Path, until: Any) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        box = start(["mkdir", "/tmp/a"], seccomp=asking(tmp_path / "s"))
        until(lambda: Path(f"/proc/{box.pid}/wchan").read_text().startswith("seccomp"))
        box.kill()
        assert box.wait(30) == -9


def test_it_ends_when_the_exit_of_a_failed_start_is_asked_about(
    native: NativeDriver, busybox_rootfs: Path, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        keywords: dict[str, Any] = {"rootfs": busybox_rootfs, "driver": native, "timeout": 60}
        with pytest.raises(SetupError) as caught:
            pycontainer.run(["nonexistent"], seccomp=asking(tmp_path / "s", "exit_group", "mkdir"), **keywords)
        assert (caught.value.step, caught.value.errno) == ("execve", errno.ENOENT)


# -- what it is told


@pytest.mark.parametrize(
    "keywords", [{}, {"init": True}, {"no_new_privileges": False}, {"userns": "auto"}, {"pid": "host"}], ids=str
)
def test_it_is_told_whose_it_is(supervisor: Supervisor, start: Any, keywords: dict[str, Any], until: Any) -> None:
    box = start(["sleep", "1000"], seccomp=supervisor.profile(), annotations={"a": "b"}, **keywords)
    until(lambda: supervisor.states)
    (told,) = supervisor.states
    state = told.pop("state")
    version = state.pop("ociVersion")
    assert told == {"ociVersion": version, "fds": ["seccompFd"], "pid": box.pid, "metadata": "whose it is"}
    assert (state.pop("id"), state.pop("pid"), state.pop("status")) == (box.id, box.pid, "creating")
    assert (state.pop("annotations"), list(state)) == ({"a": "b"}, ["bundle"])


def test_what_is_created_is_handed_over_when_it_starts(
    native: NativeDriver, busybox_rootfs: Path, supervisor: Supervisor, until: Any
) -> None:
    for no_new_privileges in (True, False):
        supervisor.states.clear()
        with pycontainer.Container(
            ["mkdir", "/tmp/a"], rootfs=busybox_rootfs, driver=native, seccomp=supervisor.profile(),
            no_new_privileges=no_new_privileges, start=False,
        ) as box:  # fmt: skip
            box.create()
            assert supervisor.states == []
            box.start()
            assert box.wait(30) == 1
        until(lambda: supervisor.states)
        assert [told["state"]["status"] for told in supervisor.states] == ["created"]


@pytest.mark.parametrize("keywords", WAYS[:7], ids=str)
@pytest.mark.parametrize("tty", [False, True])
def test_a_further_process_has_a_listener_of_its_own(
    supervisor: Supervisor, start: Any, keywords: dict[str, Any], tty: bool, until: Any
) -> None:
    box = start(["sleep", "1000"], seccomp=supervisor.profile(), **keywords)
    done = box.exec(["mkdir", "/tmp/a"], stdout=-1, stderr=None if tty else -2, tty=tty)
    assert b"cross-device" in done.stdout.lower()
    until(lambda: len(supervisor.states) == 2)
    first, second = supervisor.states
    assert (first["pid"], first["state"]["status"]) == (box.pid, "creating")
    assert (second["state"]["pid"], second["state"]["status"]) == (box.pid, "running")
    assert [pid for pid, _ in supervisor.asked] == [second["pid"]]


def test_a_detached_one_and_what_joins_it(
    native: NativeDriver, busybox_rootfs: Path, supervisor: Supervisor, until: Any
) -> None:
    keywords: dict[str, Any] = {"rootfs": busybox_rootfs, "driver": native, "seccomp": supervisor.profile()}
    box = pycontainer.Container(["sh", "-c", "mkdir /tmp/a; echo $?; exec sleep 1000"], detach=True, **keywords)
    try:
        assert box.exec(["mkdir", "/tmp/b"], capture_output=True).returncode == 1
        until(lambda: len(supervisor.states) == 2)
        assert [told["state"]["status"] for told in supervisor.states] == ["creating", "running"]
        assert [told["state"]["pid"] for told in supervisor.states] == [box.pid] * 2
    finally:
        box.kill()
        box.wait(30)
        box.remove()


def test_a_receipt_finds_no_difference(native: NativeDriver, busybox_rootfs: Path, supervisor: Supervisor) -> None:
    keywords: dict[str, Any] = {"rootfs": busybox_rootfs, "seccomp": supervisor.profile(), "name": "asks"}
    done = pycontainer.run(["true"], driver=native, receipt=True, timeout=60, **keywords)
    assert done.receipt is not None
    assert (done.receipt.seccomp.mode, done.receipt.seccomp.filters) == ("filter", 1)
    command = pycontainer.Command.of(["true"], **keywords)
    assert [each for each in done.receipt.differences(command) if each.field == "seccomp"] == []
    other = command.copy_with(seccomp=supervisor.profile("rmdir"))
    assert [each.field for each in done.receipt.differences(other)] == ["seccomp"]


# -- nothing is left


def test_nobody_but_the_supervisor_keeps_the_listener(
    supervisor: Supervisor, start: Any, native: NativeDriver, until: Any
) -> None:
    box = start(["sleep", "1000"], seccomp=supervisor.profile(), init=True)
    until(lambda: len(supervisor.threads) == 2)
    assert native._launchers.current is not None
    for pid in (native._launchers.current.pid, box.pid, *host.children(box.pid)):
        assert not [fd for fd in host.descriptors(pid) if "seccomp" in fd]
    assert len([fd for fd in host.descriptors() if "seccomp" in fd]) == 1  # the supervisor's


# -- failures


def failure(native: NativeDriver, busybox_rootfs: Path, path: Path, **keywords: Any) -> SetupError:
    with pytest.raises(SetupError) as caught:
        pycontainer.run(["true"], rootfs=busybox_rootfs, driver=native, seccomp=asking(path), timeout=60, **keywords)
    return caught.value


@pytest.mark.parametrize(
    "keywords",
    [{}, {"userns": "auto"}, {"network": pycontainer.Network(bridge="pycnobody0", create_bridge=True)}],
    ids=["plain", "userns", "bridge"],
)
def test_nobody_listens(
    native: NativeDriver, busybox_rootfs: Path, tmp_path: Path, keywords: dict[str, Any], request: Any
) -> None:
    error = failure(native, busybox_rootfs, tmp_path / "missing", **keywords)
    assert (error.step, error.errno) == ("connect to seccomp.listenerPath", errno.ENOENT)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "s"))
        error = failure(native, busybox_rootfs, tmp_path / "s", **keywords)
    assert (error.errno, error.path) == (errno.ECONNREFUSED, str(tmp_path / "s"))
    assert not os.path.exists("/sys/class/net/pycnobody0")  # nothing was made


def test_nobody_listens_to_a_detached_one(native: NativeDriver, busybox_rootfs: Path, tmp_path: Path) -> None:
    with pytest.raises(SetupError) as caught:
        pycontainer.Container(
            ["true"], rootfs=busybox_rootfs, driver=native, seccomp=asking(tmp_path / "s"), detach=True, name="asks"
        )
    assert caught.value.step == "connect to seccomp.listenerPath"
    assert native._store.find("asks") is None


@contextlib.contextmanager
def hanging_up(path: Path) -> Iterator[None]:
    """Somebody listens at *path* who closes every connection at once."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                while True:
                    listening.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        yield
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(30)


def held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let time go by between the connection and the start, so that it is closed by then."""
    launch = NativeDriver._launch

    def late(*arguments: Any, **keywords: Any) -> Any:
        time.sleep(0.3)
        return launch(*arguments, **keywords)

    monkeypatch.setattr(NativeDriver, "_launch", late)


@pytest.mark.parametrize("keywords", [*WAYS[:4], {"userns": "auto"}], ids=str)
def test_a_supervisor_that_hangs_up(
    native: NativeDriver, busybox_rootfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    keywords: dict[str, Any],
) -> None:  # fmt: skip
    held_back(monkeypatch)
    with hanging_up(tmp_path / "s"):
        error = failure(native, busybox_rootfs, tmp_path / "s", **keywords)
    assert (error.step, error.errno) == ("send the seccomp listener to its supervisor", errno.EPIPE)


@pytest.mark.parametrize("action", ["ERRNO", "KILL_PROCESS"])
@pytest.mark.parametrize("keywords", WAYS[:4], ids=str)
def test_a_filter_that_holds_the_listener_back(
    native: NativeDriver, busybox_rootfs: Path, supervisor: Supervisor, keywords: dict[str, Any], action: str
) -> None:
    """Only the kernel knows the pointer, so nobody refuses that ahead; it has not started all the same."""
    condition = {"index": 1, "op": "SCMP_CMP_NE", "value": 0}
    profile = supervisor.profile()
    profile["syscalls"].append({"names": ["write"], "action": f"SCMP_ACT_{action}", "args": [condition]})
    with pytest.raises(SetupError):
        pycontainer.run(["true"], rootfs=busybox_rootfs, driver=native, seccomp=profile, timeout=60, **keywords)
    assert supervisor.states == []


def test_an_exec_that_has_no_supervisor_leaves_the_container_alone(supervisor: Supervisor, start: Any) -> None:
    box = start(["sleep", "1000"], seccomp=supervisor.profile())
    supervisor.path.rename(supervisor.path.with_name("elsewhere"))
    with pytest.raises(SetupError) as caught:
        box.exec(["true"])
    assert (caught.value.step, caught.value.errno) == ("connect to seccomp.listenerPath", errno.ENOENT)
    supervisor.path.with_name("elsewhere").rename(supervisor.path)
    assert box.exec(["true"]).returncode == 0


def test_a_deadline_is_for_the_supervisor_as_well(native: NativeDriver, busybox_rootfs: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as first:
        listening.bind(str(tmp_path / "s"))
        listening.listen(0)
        first.connect(str(tmp_path / "s"))
        began = time.monotonic()
        with pytest.raises(WaitTimeoutError):
            pycontainer.run(["true"], rootfs=busybox_rootfs, driver=native, seccomp=asking(tmp_path / "s"), timeout=0.2)
        assert time.monotonic() - began < 4


@pytest.mark.parametrize(
    ("message", "step", "number"),
    [
        ([ord("l"), 0], "take the seccomp listener", errno.EBADMSG),
        ([ord("l"), 3], "take the seccomp listener", errno.EBADMSG),
        ([ord("l"), 999], "take the seccomp listener", errno.EBADF),
        ([ord("l"), 2**63 - 1], "take the seccomp listener", errno.EBADF),
    ],
    ids=["stdin", "the channel", "nothing", "no number"],
)
def test_a_first_process_that_lies(
    own_driver: NativeDriver, busybox_rootfs: Path, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch,
    message: list[int], step: str, number: int,
) -> None:  # fmt: skip
    """What it names is no listener: the supervisor, which would act on it, gets nothing."""
    _lie(own_driver, monkeypatch, [message])
    error = failure(own_driver, busybox_rootfs, supervisor.path)
    assert (error.step, error.errno) == (step, number)
    assert supervisor.states == []


@pytest.mark.parametrize("length", [15, 17])
def test_a_message_of_another_length(
    own_driver: NativeDriver, busybox_rootfs: Path, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    _lie(own_driver, monkeypatch, [[ord("l"), 4, 0]], length)
    error = failure(own_driver, busybox_rootfs, supervisor.path)
    assert (error.step, error.errno) == ("read what the first process says", errno.EBADMSG)
    assert supervisor.states == []


def test_a_listener_that_nobody_asked_for(
    own_driver: NativeDriver, busybox_rootfs: Path, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile = own_driver.compile
    monkeypatch.setattr(own_driver, "compile", lambda *a, **k: attrs.evolve(compile(*a, **k), listener=None))
    error = failure(own_driver, busybox_rootfs, supervisor.path)
    assert (error.step, error.errno) == ("read what the first process says", errno.EBADMSG)


def _lie(driver: NativeDriver, monkeypatch: pytest.MonkeyPatch, messages: list[list[int]], length: int = 16) -> None:
    from pycontainer_native import abi, identity

    real = identity.confine

    def confine(k: Any, filter: Any, loaded: bool) -> None:
        real(k, filter, loaded)
        at = next((n for n, step in enumerate(k.steps) if step.call == "write"), None)
        if at is not None:
            for message in messages:
                k.steps[at] = k.steps[at]._replace(arguments=(abi.CHANNEL_FD, message, length))

    confine.__name__ = f"confine_{length}_{messages}"  # sections are kept by the name of what has built them
    monkeypatch.setattr(identity, "confine", confine)


# -- refused


@pytest.mark.parametrize(
    ("calls", "keywords", "field"),
    [
        (("mkdir", "write"), {}, "seccomp.syscalls"),
        (("mkdir", "kill"), {"init": True}, "seccomp.syscalls"),
        (("mkdir", "setresuid"), {"no_new_privileges": False}, "seccomp.syscalls"),
        (("mkdir",), {"hooks": Hooks(start_container=[Hook("/bin/true")])}, "hooks.start_container"),
        (("mkdir",), {"rlimits": {"nofile": 8}}, "process.rlimits"),
    ],
    ids=str,
)
def test_what_is_refused_before_anybody_is_asked(
    native: NativeDriver, busybox_rootfs: Path, supervisor: Supervisor, calls: tuple[str, ...],
    keywords: dict[str, Any], field: str,
) -> None:  # fmt: skip
    with pytest.raises(InvalidCommandError) as caught:
        pycontainer.run(["true"], rootfs=busybox_rootfs, driver=native, seccomp=supervisor.profile(*calls), **keywords)
    assert caught.value.field == field
    assert supervisor.states == []
