"""exec: a further process in a running container, against payloads that wait for it."""

from __future__ import annotations

import contextlib
import errno
import marshal
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

import pycontainer
from pycontainer import PIPE, InvalidCommandError, Pipes, Process, State, UnsupportedError
from pycontainer_native import abi, client, plan
from pycontainer_native.driver import NativeDriver
from pycontainer_native.process import NativeProcess

from ..security.stages import wait_at
from . import host

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("native")]

#: Looks at every other process for as long as it lives: is one in another mount namespace, or can its root be entered?
SPY = r"""
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static ssize_t slurp(const char *path, char *into, size_t size)
{
    int fd = open(path, O_RDONLY);
    ssize_t all = 0, got;
    if (fd < 0)
        return -1;
    while (all < (ssize_t)size && (got = read(fd, into + all, size - all)) > 0)
        all += got;
    close(fd);
    return all;
}

int main(void)
{
    static char own[65536], other[65536], path[64];
    ssize_t mine = slurp("/proc/self/mountinfo", own, sizeof own);
    puts("ready");
    fflush(stdout);
    for (;;)
        for (int pid = 2; pid < 100; pid++) {
            snprintf(path, sizeof path, "/proc/%d/mountinfo", pid);
            ssize_t theirs = slurp(path, other, sizeof other);
            if (theirs > 0 && (theirs != mine || memcmp(own, other, mine))) {
                puts("another mount namespace");
                return 1;
            }
            snprintf(path, sizeof path, "/proc/%d/root/etc/shadow", pid);
            if (!access(path, F_OK)) {
                puts("another root");
                return 1;
            }
        }
}
"""


@pytest.fixture(scope="module", params=["machine", "python"])
def native(
    native: NativeDriver, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, busybox_rootfs: Path
) -> Iterator[NativeDriver]:
    """The driver, and one whose launcher has no machine code, as on other machines: its clones go on in Python."""
    if request.param == "machine":
        yield native
        return
    package = tmp_path_factory.mktemp("home") / "pycontainer_native"
    shutil.copytree(Path(client.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    module = package / "machine.py"
    text = module.read_text()
    assert text.count('if abi.MACHINE != "x86_64":') == 1
    module.write_text(text.replace('if abi.MACHINE != "x86_64":', "if True:"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "__file__", str(package / "client.py"))  # the home of the launcher that starts now
        driver = NativeDriver()
        pycontainer.run(["true"], rootfs=busybox_rootfs, driver=driver, check=True)
    yield driver
    driver.close()


@pytest.fixture(scope="module")
def spy(tmp_path_factory: pytest.TempPathFactory, busybox_rootfs: Path) -> str:
    source = tmp_path_factory.mktemp("spy") / "spy.c"
    source.write_text(SPY)
    subprocess.run(["gcc", "-O1", "-static", "-o", busybox_rootfs / "bin/spy", source], check=True)
    return "spy"


def test_the_inside(busybox_rootfs: Path, native: NativeDriver) -> None:
    with pycontainer.Container(["sleep", "100"], rootfs=busybox_rootfs, driver=native, memory="64m") as box:
        namespaces = ("cgroup", "ipc", "mnt", "net", "pid", "uts")
        script = "for n in cgroup ipc mnt net pid uts; do readlink /proc/self/ns/$n; done; cat /proc/self/cgroup"
        done = box.exec(["sh", "-c", script], capture_output=True, text=True, check=True)
        lines = done.stdout.splitlines()
        assert lines[:6] == [os.readlink(f"/proc/{box.pid}/ns/{name}") for name in namespaces]
        assert not any("pycontainer" in line for line in lines[6:])
        status = box.exec(["cat", "/proc/self/status"], capture_output=True, text=True).stdout
        init = Path(f"/proc/{box.pid}/status").read_text()
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters"):
            assert line(status, name) == line(init, name)


def line(status: str, name: str) -> str:
    return next(line for line in status.splitlines() if line.startswith(f"{name}:"))


@pytest.mark.parametrize(
    "keywords",
    [{}, {"user": "alice"}, {"cap_add": ["SYS_PTRACE"], "userns": "auto"}],
    ids=["root", "user", "ptrace"],
)
def test_nothing_of_the_host_is_seen_on_the_way_in(
    busybox_rootfs: Path, native: NativeDriver, spy: str, keywords: dict[str, object]
) -> None:
    with pycontainer.Container([spy], rootfs=busybox_rootfs, driver=native, stdout=PIPE, text=True, **keywords) as box:  # type: ignore[arg-type]
        assert box.stdout is not None
        assert box.stdout.readline() == "ready\n"
        for _ in range(20):
            box.exec(["true"], check=True)
        assert box.poll() is None, box.stdout.read()


def test_what_is_cloned_in_machine_code_has_nothing_of_the_launchers_memory(
    busybox_rootfs: Path, native: NativeDriver, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    class Waiting(plan.Recorder):  # type: ignore[name-defined,misc]
        def call(self, call: str, *arguments: Any, **keywords: Any) -> None:
            if call == "seccomp":
                call, arguments = "ppoll", (0, 0, 0, 0, 0)  # for ever
            super().call(call, *arguments, **keywords)

    before, now = "what-the-one-before-has", "what-this-one-has"
    with pycontainer.Container(["sleep", "100"], rootfs=busybox_rootfs, driver=native) as box:
        box.exec(["true"], env={"SECRET": before}, check=True)
        monkeypatch.setattr(plan, "Recorder", Waiting)
        monkeypatch.setattr(plan, "_sections", {})
        thread = threading.Thread(target=box.exec, args=(["true"],), kwargs={"env": {"SECRET": now}})
        thread.start()
        host.wait_until(lambda: bool(waiting(native, box)), "the process waits in the container")
        (pid,) = waiting(native, box)
        maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
        found = memory_of(pid, maps)
        box.kill()
        thread.join(30)
    assert now.encode() in found
    if request.node.callspec.params["native"] == "machine":
        assert before.encode() not in found
        assert len(maps) < 10, maps
        assert len(found) < 3 << 20  # of which nearly all is machine.KEPT
    else:
        assert len(maps) > 20, maps  # so the other kind is another kind


def waiting(native: NativeDriver, box: pycontainer.Container) -> list[int]:
    """The processes in the container that are in ppoll."""
    found = []
    for pid in set(native.get_pids_for_container(box.id)) - {box.pid}:
        with contextlib.suppress(OSError):  # who has cloned it ends
            if Path(f"/proc/{pid}/syscall").read_text().split()[0] == str(abi.NR["ppoll"]):
                found.append(pid)
    return found


def memory_of(pid: int, maps: list[str]) -> bytes:
    """What is in its writable memory, as root sees it from outside."""
    found = b""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            place, access, *_ = line.split()
            start, end = (int(part, 16) for part in place.split("-"))
            if access.startswith("rw"):
                memory.seek(start)
                found += memory.read(end - start)
    return found


def test_what_may_trace_it_is_joined_by_nobody(busybox_rootfs: Path, native: NativeDriver) -> None:
    keywords: dict[str, Any] = {"rootfs": busybox_rootfs, "driver": native, "cap_add": ["SYS_PTRACE"]}
    with pycontainer.Container(["sleep", "100"], **keywords) as box:
        with pytest.raises(UnsupportedError, match="CAP_SYS_PTRACE"):
            box.exec(["true"])
        assert box.poll() is None


def test_what_may_trace_in_a_user_namespace_of_its_own_is_joined(busybox_rootfs: Path, native: NativeDriver) -> None:
    keywords: dict[str, Any] = {"rootfs": busybox_rootfs, "driver": native, "cap_add": ["SYS_PTRACE"]}
    with pycontainer.Container(["sleep", "100"], **keywords, userns="auto") as box:
        assert box.exec(["true"]).returncode == 0


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"capabilities": ("CAP_CHOWN", "CAP_MKNOD")}, "process.capabilities"),
        ({"privileged": True}, "process.capabilities"),
        ({"no_new_privileges": False}, "process.no_new_privileges"),
    ],
)
def test_no_further_process_has_more_rights_than_its_container(
    busybox_rootfs: Path, native: NativeDriver, changes: dict[str, Any], field: str
) -> None:
    with pycontainer.Container(["sleep", "100"], rootfs=busybox_rootfs, driver=native) as box:
        own = box.command.process
        process = Process.of(["true"], capabilities=own.capabilities)
        for attempt, refused in ((process, False), (attrs.evolve(process, **changes), True)):
            with Pipes().attach(tty=False) as streams:
                if refused:
                    with pytest.raises(InvalidCommandError) as caught:
                        native.exec(box.id, attempt, streams.stdio)
                    assert caught.value.field == field
                else:
                    with contextlib.closing(native.exec(box.id, attempt, streams.stdio)) as further:
                        assert further.wait(30).exit_code == 0


def test_a_payload_that_stops_it_delays_nobody(busybox_rootfs: Path, native: NativeDriver) -> None:
    script = "while :; do kill -STOP -1; done"
    with pycontainer.Container(["sh", "-c", script], rootfs=busybox_rootfs, driver=native) as box:
        for _ in range(5):
            with pytest.raises((pycontainer.WaitTimeoutError, pycontainer.SetupError)):
                box.exec(["sleep", "100"], timeout=0.5)
        box.kill()
        assert box.wait(10) == -9


#: Keeps more descriptors on their way than anybody of its user may have open.
IN_FLIGHT = """
import array, socket, time
kept = []
try:
    while True:
        kept.append(socket.socketpair())
        kept[-1][0].sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * 250))])
except OSError as error:
    print(error.errno, flush=True)
time.sleep(1000)
"""


def test_descriptors_on_their_way_keep_nobody_out(busybox_rootfs: Path, native: NativeDriver) -> None:
    few: dict[str, Any] = {"driver": native, "rlimits": {"NOFILE": 256}}
    argv = [sys.executable, "-I", "-S", "-c", IN_FLIGHT]
    with (
        pycontainer.Container(argv, stdout=PIPE, text=True, **few) as box,
        pycontainer.Container(["sleep", "100"], rootfs=busybox_rootfs, **few) as other,
    ):
        assert box.stdout is not None
        assert int(box.stdout.readline()) == errno.ETOOMANYREFS
        for one in (box, other):
            done = one.exec(["sh", "-c", "echo here; exit 42"], capture_output=True, text=True)
            assert (done.returncode, done.stdout) == (42, "here\n")


def test_many_at_once(busybox_rootfs: Path, native: NativeDriver) -> None:
    with pycontainer.Container(["sleep", "100"], rootfs=busybox_rootfs, driver=native) as box:
        found: dict[int, str] = {}

        def one(number: int) -> None:
            found[number] = box.exec(["echo", str(number)], stdout=PIPE, text=True).stdout

        threads = [threading.Thread(target=one, args=(number,)) for number in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == {number: f"{number}\n" for number in range(50)}


def test_its_end_is_told(busybox_rootfs: Path, native: NativeDriver) -> None:
    with pycontainer.Container(["sleep", "100"], rootfs=busybox_rootfs, driver=native) as box:
        assert box.exec(["sh", "-c", "exit 7"]).returncode == 7
        assert box.exec(["sh", "-c", "kill -9 $$"]).returncode == -9
        with pytest.raises(pycontainer.SetupError) as caught:
            box.exec(["/no/such"])
        assert caught.value.step == "execve"
        with pytest.raises(pycontainer.SetupError, match=r"enter /no/such: .*ENOENT"):
            box.exec(["true"], cwd="/no/such")
    with pytest.raises(pycontainer.NotRunningError):
        box.exec(["true"])


def test_user_and_environment(busybox_rootfs: Path, native: NativeDriver) -> None:
    with pycontainer.Container(
        ["sleep", "100"], rootfs=busybox_rootfs, driver=native, env={"A": "1", "PATH": "/bin"}
    ) as box:
        assert box.exec(["env"], stdout=PIPE, text=True).stdout == "A=1\nPATH=/bin\n"
        assert box.exec(["/bin/env"], env={"B": "2"}, stdout=PIPE, text=True).stdout == "B=2\n"
        assert box.exec(["id", "-u"], user="alice", stdout=PIPE, text=True).stdout == "1000\n"


def test_what_is_asked_for_again_is_looked_at_again(busybox_rootfs: Path, native: NativeDriver, tmp_path: Path) -> None:
    """The steps of one are kept for the next, so here each differs in something from the one before."""
    rootfs = tmp_path / "rootfs"
    subprocess.run(["cp", "-a", busybox_rootfs, rootfs], check=True)
    shown = "echo $HOME; pwd; id -u; id -G; ulimit -n"
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with pycontainer.Container(["sleep", "100"], rootfs=rootfs, driver=native) as box:

        def see(*argv: str, **keywords: Any) -> list[str]:
            argv = argv or ("sh", "-c", shown)
            first, second = (box.exec(argv, stdout=PIPE, text=True, **keywords).stdout.splitlines() for _ in range(2))
            assert first == second
            return first

        (rootfs / "etc/passwd").write_text("root:x:0:0::/before:/bin/sh\nalice:x:1000:1000::/:/bin/sh\n")
        plain = see()
        assert plain[:4] == ["/before", "/", "0", "0"]
        (rootfs / "etc/passwd").write_text("root:x:0:0::/after:/bin/sh\nalice:x:1001:1000::/:/bin/sh\n")
        assert see() == ["/after", *plain[1:]]
        assert see("echo", "other") == ["other"]
        assert see("env", env={"A": "a", "PATH": "/bin"}) == ["A=a", "PATH=/bin"]
        assert see("env", env={"PATH": "/bin", "A": "a"}) == ["PATH=/bin", "A=a"]
        assert see(cwd="/tmp")[1] == "/tmp"
        assert see(user="alice")[2:4] == ["1001", "1000"]
        assert see(groups=[7])[3] == "0 7"
        resource.setrlimit(resource.RLIMIT_NOFILE, (limits[0] - 1, limits[1]))
        try:
            assert see()[4] == str(limits[0] - 1)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert see() == ["/after", *plain[1:]]


def test_it_has_a_terminal_of_its_own(busybox_rootfs: Path, native: NativeDriver) -> None:
    with pycontainer.Container(["sleep", "100"], rootfs=busybox_rootfs, driver=native) as box:
        done = box.exec(["sh", "-c", "tty; echo here > /dev/tty"], tty=True, stdin=PIPE, stdout=PIPE)
        assert done.stdout == b"/dev/pts/0\r\nhere\r\n"


def test_a_start_is_not_lost_to_a_poll(busybox_rootfs: Path, native: NativeDriver) -> None:
    for _ in range(15):
        box = pycontainer.Container(["sleep", "5"], rootfs=busybox_rootfs, driver=native, start=False)
        with box:
            box.create()
            over = threading.Event()

            def poll(box: pycontainer.Container = box, over: threading.Event = over) -> None:
                while not over.is_set():
                    box.poll()

            thread = threading.Thread(target=poll)
            thread.start()
            began = time.monotonic()
            try:
                box.start()
            finally:
                over.set()
                thread.join()
            assert time.monotonic() - began < 4


def test_a_request_that_cannot_be_read_harms_nobody(busybox_rootfs: Path) -> None:
    program = f"""
import resource, pycontainer
one = pycontainer.Container(["sleep", "100"], rootfs={str(busybox_rootfs)!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (70000, resource.RLIM_INFINITY))
try:
    pycontainer.run(["true"], rootfs={str(busybox_rootfs)!r}, env={{"BIG": "x" * 100000}})
except pycontainer.SetupError as error:
    print(error.step, error.errno)
assert one.poll() is None
one.close()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"send the request {errno.EFBIG}\n"


@pytest.mark.parametrize("wrong", [None, (), "close", 1 << 70])
def test_a_step_that_is_none_harms_nobody(busybox_rootfs: Path, native: NativeDriver, wrong: Any) -> None:
    section = plan.Section((), 0, marshal.dumps([(wrong, (), None, {}, 0, None)]))
    kept: dict[str, Any] = {"rootfs": busybox_rootfs, "driver": native}
    with pycontainer.Container(["sleep", "100"], **kept) as box, pytest.MonkeyPatch.context() as patch:
        compile_exec = plan.compile_exec

        def with_it(*inputs: Any) -> plan.Plan:
            whole = compile_exec(*inputs)
            return attrs.evolve(whole, sections=(*whole.sections[:2], section, *whole.sections[2:]))

        patch.setattr(plan, "compile_exec", with_it)
        with pytest.raises(pycontainer.SetupError):
            box.exec(["true"])
        patch.undo()
        time.sleep(0.05)  # the next container's process is cloned ahead, with what the last request had
        assert box.exec(["true"]).returncode == 0


def test_starts_in_any_order_find_what_they_need(busybox_rootfs: Path, native: NativeDriver) -> None:
    kinds: list[dict[str, Any]] = [
        {},
        {"init": True},
        {"network": "host"},
        {"hostname": "box"},
        {"user": "alice"},
        {"env": {"BIG": "x" * 100_000}},
        {"hooks": pycontainer.Hooks(create_container=[pycontainer.Hook("/bin/true")])},
    ]
    order = random.Random(20140310).choices(kinds, k=60)
    script = ["sh", "-c", "grep Seccomp: /proc/self/status; id -u; hostname"]
    for number, kind in enumerate(order):
        asked: dict[str, Any] = {"rootfs": busybox_rootfs, "driver": native, "capture_output": True, "text": True}
        done = pycontainer.run(script, **asked, name=f"order-{number}", timeout=60, **kind)
        filter, uid, hostname = done.stdout.splitlines()
        assert filter.split() == ["Seccomp:", "2"], kind
        assert (uid == "0") == ("user" not in kind)
        assert "hostname" not in kind or hostname == "box"
        if number % 3:
            time.sleep(0.01)  # so that the next one is cloned ahead


def test_a_launcher_that_was_stopped_delays_nobody_for_ever(busybox_rootfs: Path, own_driver: NativeDriver) -> None:
    pycontainer.run(["true"], rootfs=busybox_rootfs, driver=own_driver)
    assert own_driver._launchers.current is not None
    os.kill(own_driver._launchers.current.pid, signal.SIGSTOP)
    with pytest.raises(pycontainer.WaitTimeoutError):
        pycontainer.run(["true"], rootfs=busybox_rootfs, driver=own_driver, timeout=0.3)
    own_driver.close()


def test_an_init_that_could_be_traced_is_refused(busybox_rootfs: Path, native: NativeDriver) -> None:
    with pytest.raises(pycontainer.InvalidCommandError) as caught:
        pycontainer.run(["true"], rootfs=busybox_rootfs, driver=native, init=True, cap_add=["SYS_PTRACE"])
    assert caught.value.field == "init"


def test_a_source_that_leads_into_proc_is_refused(busybox_rootfs: Path, native: NativeDriver, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/proc")
    mounts = [pycontainer.Mount(str(tmp_path / "link"), "/mnt")]
    with pytest.raises(pycontainer.InvalidCommandError) as caught:
        pycontainer.run(["true"], rootfs=busybox_rootfs, driver=native, mounts=mounts)
    assert caught.value.field == "mounts.source"


@pytest.mark.parametrize(
    ("stage", "tty", "step"),
    [("set groups and ids", False, "open a pidfd"), ("open a terminal", True, "receive descriptors")],
)
def test_a_launcher_without_room_for_a_descriptor_ends_that_process_alone(
    stage: str, tty: bool, step: str, busybox_rootfs: Path, own_driver: NativeDriver, monkeypatch: pytest.MonkeyPatch,
    until: Callable[..., None],
) -> None:  # fmt: skip
    with pycontainer.Container(["sleep", "100"], rootfs=busybox_rootfs, driver=own_driver) as box:
        assert own_driver._launchers.current is not None
        launcher = own_driver._launchers.current.pid
        _, hard = resource.prlimit(launcher, resource.RLIMIT_NOFILE)
        until(lambda: len(host.children(launcher)) == 2)  # the spare
        null = os.open(os.devnull, os.O_RDWR)
        with monkeypatch.context() as patched:
            wait_at(stage, patched)
            process = own_driver.exec(box.id, Process.of(["sleep", "100"], tty=tty), pycontainer.Stdio(*[null] * 3))
        os.close(null)
        host.leave_no_descriptor(launcher)
        assert isinstance(process, NativeProcess)
        process.open_gate()
        with pytest.raises(pycontainer.SetupError) as caught:
            process.wait_for_start(State.CREATED)
        assert (caught.value.step, caught.value.errno) == (step, errno.EMFILE)
        process.close()
        until(lambda: len(host.children(launcher)) == 2)
        assert box.poll() is None
        resource.prlimit(launcher, resource.RLIMIT_NOFILE, (hard, hard))
        assert box.exec(["true"]).returncode == 0
        assert own_driver._launchers.current.pid == launcher
