"""Start to exit: what runs, how it ends, what goes in and comes out. Root, the native driver and a real kernel."""

from __future__ import annotations

import errno
import gc
import io
import os
import re
import select
import signal
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

import pycontainer
import pycontainer.rootfs
from pycontainer import PIPE, STDOUT
from pycontainer.command import Command
from pycontainer.driver import State
from pycontainer.errors import (
    AlreadyExistsError,
    ContainerExitError,
    InvalidCommandError,
    NotRunningError,
    SetupError,
    WaitTimeoutError,
)
from pycontainer.stdio import Pipes
from pycontainer_native.driver import NativeDriver
from pycontainer_native.process import NativeProcess

from . import host

pytestmark = pytest.mark.root


def ready(box: pycontainer.Container) -> None:
    """Wait for the payload's first line, "ready"."""
    assert box.stdout is not None
    assert box.stdout.readline() == b"ready\n"


# -- how it ends


@pytest.mark.parametrize("code", [0, 1, 7, 125, 255])
def test_the_exit_code(sh: Any, code: int) -> None:
    done = sh(f"exit {code}")
    assert done.returncode == done.status.exit_code == code
    assert done.status.signal is None
    assert not done.status.oom_killed
    assert str(code) in done.status.reason


def test_killed_from_outside(start: Any) -> None:
    box = start(["sleep", "100"])
    os.kill(box.pid, signal.SIGKILL)
    assert box.wait(30) == -9
    assert box.status.signal == 9
    assert box.status.exit_code is None
    assert "SIGKILL" in box.status.reason


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGTERM, signal.SIGRTMIN + 3])
def test_ended_by_its_own_signal(sh: Any, number: int) -> None:
    assert sh(f"kill -{number:d} $$; sleep 100", init=True).status.signal == number


def test_pid_1_ignores_a_signal_that_it_has_no_handler_for(start: Any) -> None:
    box = start(["sleep", "100"])
    box.terminate()
    assert host.status(box.pid)["SigPnd"].strip("0") == host.status(box.pid)["ShdPnd"].strip("0") == ""
    assert box.poll() is None
    box.kill()
    assert box.wait(30) == -9


def test_with_an_init_a_signal_ends_it(start: Any) -> None:
    box = start(["sleep", "100"], init=True)
    box.terminate()
    assert box.wait(30) == -signal.SIGTERM


def test_the_init_reaps_what_its_payload_leaves(sh: Any) -> None:
    # A grandchild whose parent is gone belongs to the init; as a zombie it would stay in the list of processes.
    script = "(sleep 0 & exec true); while ps -o pid,ppid,stat | grep ' 1 .*Z'; do :; done; ps -o pid,comm"
    done = sh(script, init=True)
    assert re.search(r"^ +1 init$", done.stdout, re.MULTILINE)
    assert done.returncode == 0


def test_the_init_holds_none_of_its_payloads_streams(start: Any) -> None:
    box = start(["sh", "-c", "exec >&- 2>&-; sleep 100"], init=True, stdout=PIPE)
    assert box.stdout.read() == b""
    assert box.poll() is None


def test_a_handler_of_the_payload_gets_the_signal(start: Any) -> None:
    box = start(["sh", "-c", "trap 'exit 3' USR1; echo ready; while :; do sleep 0.01; done"], stdout=PIPE)
    ready(box)
    box.send_signal(signal.SIGUSR1)
    assert box.wait(30) == 3
    box.send_signal(signal.SIGUSR1)  # as Popen: nothing, once it has ended


def test_stop_kills_what_does_not_terminate(start: Any) -> None:
    box = start(["sh", "-c", "trap '' TERM; echo ready; sleep 100"], stdout=PIPE)
    ready(box)
    assert box.stop(timeout=0.1) == -9


def test_the_end_of_the_main_process_ends_all(start: Any) -> None:
    marker = f"{uuid.uuid4().int % 10**9 + 1000}"
    box = start(
        ["sh", "-c", f"setsid sleep {marker} & sleep {marker} & echo ready; read x; exit 3"], stdin=PIPE, stdout=PIPE
    )
    ready(box)
    box.stdin.close()
    assert box.wait(30) == 3
    assert host.running(marker) == []


def test_a_timeout_kills_all_of_it_first(sh: Any) -> None:
    marker = f"{uuid.uuid4().int % 10**9 + 1000}"
    begin = time.monotonic()
    with pytest.raises(WaitTimeoutError) as caught:
        sh(f"echo partial; echo problem >&2; sleep {marker} & sleep {marker}", timeout=0.5)
    assert host.running(marker) == []
    assert 0.5 <= time.monotonic() - begin < 20
    assert (caught.value.timeout, caught.value.stdout, caught.value.stderr) == (0.5, "partial\n", "problem\n")


def test_check(sh: Any) -> None:
    with pytest.raises(ContainerExitError, match="3") as caught:
        sh("echo said; exit 3", check=True)
    assert (caught.value.returncode, caught.value.stdout) == (3, "said\n")


# -- what is executed

MISSING = [
    ("missing", errno.ENOENT),
    ("/bin/missing", errno.ENOENT),
    ("/etc/passwd/true", errno.ENOTDIR),
    ("/etc/passwd", errno.EACCES),
    ("/bin", errno.EACCES),
    ("/no-interpreter", errno.ENOENT),
    ("/no-format", errno.ENOEXEC),
    ("/loop", errno.ELOOP),
]


@pytest.mark.parametrize("init", [False, True])
@pytest.mark.parametrize(("program", "number"), MISSING)
def test_what_cannot_be_executed(start: Any, hostile: Any, program: str, number: int, init: bool) -> None:
    hostile.file("no-interpreter", "#!/missing\n", 0o755)
    hostile.file("no-format", "echo hi\n", 0o755)
    hostile.link("loop", "loop")
    with pytest.raises(SetupError) as caught:
        start([program], rootfs=hostile, init=init)
    assert (caught.value.step, caught.value.errno, caught.value.path) == ("execve", number, program)


@pytest.mark.parametrize(
    ("path", "cwd"),
    [("/nowhere:/bin", "/"), ("/etc/passwd:/bin", "/"), ("", "/bin"), ("/nowhere:", "/bin"), (None, "/")],
)
def test_the_command_is_looked_up_by_the_containers_own_path(start: Any, path: str | None, cwd: str) -> None:
    assert start(["true"], env={} if path is None else {"PATH": path}, cwd=cwd).wait(30) == 0


def test_a_directory_of_that_name_is_not_the_command(start: Any, hostile: Any) -> None:
    (hostile.path / "first/true").mkdir(parents=True)
    assert start(["true"], rootfs=hostile, env={"PATH": "/first:/bin"}).wait(30) == 0
    with pytest.raises(SetupError) as caught:
        start(["true"], rootfs=hostile, env={"PATH": "/first:/nowhere"})
    assert caught.value.errno == errno.EACCES  # rather than that of the last try, as execvp(3)


def test_the_arguments_and_the_environment_arrive_as_they_are(start: Any) -> None:
    arguments = ["a b", "", "$HOME", "-n", "ü", "\udcff\udc80", "line\nline"]
    env = {"PATH": "/bin", "EMPTY": "", "X": "a=b c", "RAW": "\udcfe"}
    box = start(
        ["sh", "-c", 'printf "%s|" "$@"; tr "\\0" "|" </proc/1/environ; :', "sh", *arguments], env=env, stdout=PIPE
    )
    output, _ = box.communicate(timeout=30)
    expected = [os.fsencode(text) for text in (*arguments, *(f"{name}={value}" for name, value in env.items()))]
    assert output == b"".join(text + b"|" for text in expected)


def test_the_environment_without_env(sh: Any) -> None:
    assert sh("tr '\\0' '\\n' </proc/1/environ; :", user="alice").stdout.splitlines() == [
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME=/home/alice",
    ]


def test_a_request_too_large_for_a_message(start: Any) -> None:
    env = {f"V{number}": "x" * 100_000 for number in range(5)}
    box = start(["sh", "-c", "echo ${#V0} ${#V4}; ls /proc/self/fd"], env={"PATH": "/bin", **env}, stdout=PIPE)
    output, _ = box.communicate(timeout=30)
    assert output.split() == [b"100000", b"100000", b"0", b"1", b"2", b"3"]  # 3: the directory that ls reads


def test_arguments_too_long_for_the_kernel(start: Any) -> None:
    with pytest.raises(SetupError) as caught:
        start(["true", "x" * 200_000])
    assert (caught.value.step, caught.value.errno) == ("execve", errno.E2BIG)


@pytest.mark.parametrize(("cwd", "shown"), [("/home/alice", "/home/alice"), ("/usr//bin/", "/usr/bin"), ("/", "/")])
def test_the_working_directory(sh: Any, cwd: str, shown: str) -> None:
    assert sh("pwd -P", cwd=cwd).stdout == f"{shown}\n"


@pytest.mark.parametrize(("cwd", "number"), [("/missing", errno.ENOENT), ("/etc/passwd", errno.ENOTDIR)])
def test_a_working_directory_that_is_none(start: Any, cwd: str, number: int) -> None:
    with pytest.raises(SetupError) as caught:
        start(["true"], cwd=cwd)
    assert (caught.value.step, caught.value.errno, caught.value.path) == (f"enter {cwd}", number, cwd)


def test_it_is_pid_1_on_a_host_of_its_own_name(sh: Any) -> None:
    assert sh("hostname; echo $$; cat /proc/sys/kernel/hostname", hostname="first").stdout.split() == [
        "first",
        "1",
        "first",
    ]
    assert sh("hostname", name="second").stdout == "second\n"
    assert os.uname().nodename not in ("first", "second")


def test_it_is_pid_2_below_an_init(sh: Any) -> None:
    assert sh("echo $$; cat /proc/1/comm", init=True).stdout.split() == ["2", "init"]


# -- its streams


def test_stdout_and_stderr_stay_separate(sh: Any) -> None:
    done = sh("echo out; echo err >&2; echo out again")
    assert (done.stdout, done.stderr) == ("out\nout again\n", "err\n")


def test_stderr_to_stdout(sh: Any) -> None:
    done = sh("echo out; echo err >&2", capture_output=False, stdout=PIPE, stderr=STDOUT)
    assert (done.stdout, done.stderr) == ("out\nerr\n", None)


def test_three_megabytes_through_it_and_back(start: Any) -> None:
    data = os.urandom(3_000_000)
    box = start(["cat"], stdin=PIPE, stdout=PIPE)
    output, _ = box.communicate(data, timeout=60)
    assert output == data
    assert box.returncode == 0


def test_the_end_of_stdin_is_seen(start: Any) -> None:
    box = start(["sh", "-c", "cat >/dev/null; exit 4"], stdin=PIPE)
    assert box.poll() is None
    box.stdin.close()
    assert box.wait(30) == 4


def test_stdin_is_empty_when_none_is_given(sh: Any) -> None:
    done = sh("cat; readlink /proc/self/fd/0; dd if=/dev/zero of=/dev/fd/0 count=1 2>&1")
    assert done.stdout.startswith("/dev/null\n")


def test_files_are_its_streams_themselves(start: Any, tmp_path: Path) -> None:
    source, out, err = (tmp_path / name for name in ("in", "out", "err"))
    source.write_text("given\n")
    out.write_text("before\n")
    with source.open("rb") as stdin, out.open("ab") as stdout, err.open("wb") as stderr:
        box = start(["sh", "-c", "cat; echo problem >&2"], stdin=stdin, stdout=stdout, stderr=stderr)
        assert box.wait(30) == 0
    assert out.read_text() == "before\ngiven\n"
    assert err.read_text() == "problem\n"
    assert out.stat().st_uid == os.getuid()


def test_a_flood_is_dropped_beyond_what_was_asked_for(start: Any) -> None:
    box = start(["sh", "-c", "head -c 100m /dev/zero; head -c 10m /dev/zero >&2"],
                stdout=PIPE, stderr=PIPE, output_limit="1m")  # fmt: skip
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    before = resident()
    out, err = box.communicate(timeout=120)
    assert box.returncode == 0
    assert len(out) == len(err) == 1024 * 1024
    assert box.truncated
    assert int(host.status(os.getpid())["VmHWM"].split()[0]) - before < 8 * 1024


def resident() -> int:
    """What this process has in memory, in KiB."""
    return int(host.status(os.getpid())["VmRSS"].split()[0])


def test_a_stream_ends_with_its_container_and_not_with_a_neighbour(start: Any) -> None:
    first = start(["sh", "-c", "echo ready; read x"], stdin=PIPE, stdout=PIPE)
    ready(first)
    middle = start(["sh", "-c", "echo ready; read x"], stdin=PIPE, stdout=PIPE)
    ready(middle)
    last = start(["sleep", "100"])
    for box in (first, middle):
        box.stdin.close()  # which is seen inside only when nobody else has the pipe
        assert select.select([box.stdout], [], [], 30)[0]
        assert box.stdout.read() == b""
        assert box.wait(30) == 1
    assert last.poll() is None


# -- the verbs


def test_what_runs_inside(start: Any) -> None:
    box = start(["sh", "-c", "sleep 100 & sh -c 'sleep 100 & wait' & echo ready; wait"], stdout=PIPE)
    ready(box)
    inside = re.compile(r"\d+\t\d+")
    deadline = time.monotonic() + 30
    while len(pids := box.pids()) < 4 and time.monotonic() < deadline:
        pass
    assert len(pids) == 4
    assert box.pid in pids
    assert all(inside.fullmatch(host.status(pid)["NSpid"]) for pid in pids)
    assert {os.stat(f"/proc/{pid}/ns/pid").st_ino for pid in pids} == {os.stat(f"/proc/{box.pid}/ns/pid").st_ino}
    names: list[str] = []
    while (
        names != ["sh", "sh", "sleep", "sleep"] and time.monotonic() < deadline
    ):  # a shell's child is a shell at first
        names = sorted(process.name() for process in box.processes())
    assert names == ["sh", "sh", "sleep", "sleep"]


def test_a_created_one_waits_right_before_execve(start: Any, tmp_path: Path) -> None:
    mount = pycontainer.Mount(str(tmp_path), "/shared")
    box = start(["touch", "/shared/started"], start=False, mounts=[mount])
    assert box.pid is None
    box.create()
    assert os.stat(f"/proc/{box.pid}/root/bin/busybox").st_size > 0
    assert os.readlink(f"/proc/{box.pid}/root") == "/"
    assert host.status(box.pid)["NoNewPrivs"] == "1"
    assert not (tmp_path / "started").exists()
    box.start()
    assert box.wait(30) == 0
    assert (tmp_path / "started").exists()


def test_a_created_one_can_be_killed_and_closed(start: Any, until: Any) -> None:
    box = start(["true"], start=False)
    box.create()
    pid = box.pid
    os.kill(pid, signal.SIGKILL)
    with pytest.raises((NotRunningError, SetupError)):
        box.start()
    other = start(["true"], start=False)
    other.create()
    pid = other.pid
    other.close()
    until(lambda: not host.is_alive(pid))


def test_one_that_is_killed_at_its_gate_is_not_lost(own_driver: NativeDriver, busybox_rootfs: Path) -> None:
    """The launcher hears of its end before it reads that the gate is to be opened, and closes the socket with that."""
    command = Command.of(["true"], rootfs=busybox_rootfs)
    for _ in range(5):
        with Pipes().attach(tty=False) as streams:
            process = own_driver.create(command, streams.stdio)
        assert isinstance(process, NativeProcess)
        assert own_driver._launchers.current is not None
        launcher = own_driver._launchers.current.pid
        os.kill(launcher, signal.SIGSTOP)
        try:
            process.send_signal(signal.SIGKILL)
            assert process.has_ended(10)
            process.open_gate()
        finally:
            os.kill(launcher, signal.SIGCONT)
        with pytest.raises((NotRunningError, SetupError)):
            process.wait_for_start(State.CREATED)
        process.close()


def test_a_created_one_whose_command_is_missing(start: Any) -> None:
    box = start(["missing"], start=False)
    box.create()
    with pytest.raises(SetupError) as caught:
        box.start()
    assert (caught.value.step, caught.value.errno) == ("execve", errno.ENOENT)


def test_an_id_is_taken_as_long_as_its_container_runs(start: Any) -> None:
    first = start(["sleep", "100"], name="twice")
    with pytest.raises(AlreadyExistsError):
        start(["true"], name="twice")
    assert first.poll() is None
    first.close()
    assert start(["true"], name="twice").wait(30) == 0


def test_leaving_the_block_kills(native: Any, busybox_rootfs: Path) -> None:
    with pycontainer.Container(["sleep", "100"], rootfs=busybox_rootfs, driver=native) as box:
        pid = box.pid
    assert not host.is_alive(pid)
    assert box.returncode == -9


def test_a_container_that_nobody_has_any_more_is_killed(native: Any, busybox_rootfs: Path, until: Any) -> None:
    box = pycontainer.Container(["sleep", "100"], rootfs=busybox_rootfs, driver=native)
    pid = box.pid
    with pytest.warns(ResourceWarning, match="still running"):  # noqa: PT031
        del box
        gc.collect()
    until(lambda: not host.is_alive(pid))


def test_docker_09s_interface(native: Any, busybox_rootfs: Path) -> None:
    command = Command.of(["sh", "-c", "cat; echo problem >&2; exit 5"], rootfs=busybox_rootfs, name="moby")
    out, err = io.BytesIO(), io.BytesIO()
    seen: list[Any] = []

    def started(command: Command, pid: int) -> None:
        info = native.info("moby")
        seen.append((command.id, info.is_running, info.pid == pid, pid in native.get_pids_for_container("moby")))

    status = native.run(command, Pipes(io.BytesIO(b"given\n"), out, err), started)
    assert seen == [("moby", True, True, True)]
    assert (status.exit_code, out.getvalue(), err.getvalue()) == (5, b"given\n", b"problem\n")
    assert native.info("moby").state is State.STOPPED
    for verb in (native.terminate, native.get_pids_for_container, lambda id: native.kill(id, 15)):
        with pytest.raises(NotRunningError):
            verb("moby")
    native.clean("moby")


def test_a_failing_start_callback_kills(native: Any, busybox_rootfs: Path) -> None:
    pids = []

    def started(command: Command, pid: int) -> None:
        pids.append(pid)
        raise LookupError("of the test")

    with pytest.raises(LookupError, match="of the test"):
        native.run(Command.of(["sleep", "100"], rootfs=busybox_rootfs), Pipes(), started)
    assert not host.is_alive(pids[0])


def test_kill_and_terminate_by_id(native: Any, start: Any) -> None:
    box = start(["sleep", "100"], init=True, name="by-id")
    native.kill("by-id", signal.SIGTERM)
    assert box.wait(30) == -15
    box = start(["sleep", "100"], name="by-id")
    native.terminate("by-id")
    assert box.wait(30) == -9


def test_the_hosts_own_root_by_another_name(native: Any, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/")
    (tmp_path / "links").symlink_to("link")
    layers = pycontainer.rootfs.overlay(tmp_path / "link")
    for rootfs in (tmp_path / "link", tmp_path / "links", "/../", "/usr/..", "/proc/../", layers):
        with pytest.raises(InvalidCommandError, match="own root"):
            pycontainer.run(["true"], rootfs=rootfs, driver=native)
