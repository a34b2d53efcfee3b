"""Nothing is left: after a thousand containers, and whoever dies first, the caller, its launcher or a forked child."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pycontainer
from pycontainer import PIPE
from pycontainer.errors import ContainerError, ContainerLostError, NotRunningError, SetupError
from pycontainer_native import plan, steps
from pycontainer_native.syscalls import Recorder

from . import host

pytestmark = pytest.mark.root

#: Within this time (seconds) everything of a caller or launcher that was killed has to be gone.
SOON = 2.0


@pytest.fixture
def marker() -> str:
    """A number of seconds for sleep(1) that nobody else sleeps."""
    return f"{uuid.uuid4().int % 10**9 + 1000}"


def resident(pid: int) -> int:
    """What it has in memory, in KiB."""
    return int(host.status(pid)["VmRSS"].split()[0])


class Gauge:
    """What the caller and the launcher hold, with the launcher's spare in place."""

    def __init__(self, driver: Any, until: Callable[..., None]) -> None:
        self.launcher = driver._launchers.current.pid
        until(self.is_settled)
        self.descriptors = [len(host.descriptors(pid)) for pid in ("self", self.launcher)]
        self.memory = [resident(pid) for pid in (os.getpid(), self.launcher)]
        self.threads = threading.active_count()
        mine = {self.launcher, os.getpid(), *host.children(self.launcher)}
        self.namespaces = len([pids for pids in host.net_namespaces().values() if mine & {*pids}])

    def is_settled(self) -> bool:
        """Whether nothing is left of the last container, and the next one's first process waits."""
        waiting = host.children(self.launcher)
        return len(waiting) == 1 and host.waits_for_a_request(waiting[0])

    def assert_as_before(self, before: Gauge) -> None:
        assert self.descriptors <= before.descriptors
        assert (self.threads, self.namespaces) == (before.threads, before.namespaces)
        for now, then in zip(self.memory, before.memory, strict=True):
            assert now - then < 2048, "KiB"


def test_a_thousand_one_after_another(native: Any, busybox_rootfs: Path, until: Any) -> None:
    def run(number: int) -> None:
        argv = ["sh", "-c", f"exit {number % 251}"]
        done = pycontainer.run(argv, rootfs=busybox_rootfs, driver=native, stdout=PIPE, pids_limit=5)
        assert done.status.exit_code == number % 251

    for number in range(20):  # caches are full, everything is imported
        run(number)
    before = Gauge(native, until)
    for number in range(1000):
        run(number)
    until(lambda: Gauge(native, until).descriptors[1] <= before.descriptors[1])
    after = Gauge(native, until)
    print("KiB of caller and launcher, before and after:", before.memory, after.memory)
    after.assert_as_before(before)


def test_four_threads_with_a_hundred_each(native: Any, busybox_rootfs: Path, until: Any) -> None:
    found: dict[tuple[int, int], tuple[int, bytes]] = {}

    def run(thread: int, count: int) -> None:
        for number in range(count):
            script = f"echo {thread}.{number}; exit {(thread * 50 + number) % 256}"
            done = pycontainer.run(["sh", "-c", script], rootfs=busybox_rootfs, driver=native, capture_output=True)
            found[thread, number] = done.returncode, done.stdout

    run(9, 5)
    before = Gauge(native, until)
    threads = [threading.Thread(target=run, args=(number, 100)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for thread in range(4):
        for number in range(100):
            assert found[thread, number] == ((thread * 50 + number) % 256, f"{thread}.{number}\n".encode())
    until(lambda: Gauge(native, until).descriptors[1] <= before.descriptors[1])
    Gauge(native, until).assert_as_before(before)


def test_failed_starts_leave_nothing(
    native: Any, start: Any, until: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pycontainer_native.checks.NOFILE_MIN", 0)  # which would be refused before anything is begun
    failing: list[dict[str, Any]] = [
        {"cwd": "/missing"},
        {"mounts": [pycontainer.Mount(str(tmp_path), "/etc/passwd")]},
        {"tty": True, "cwd": "/missing"},
        {"init": True, "cwd": "/missing"},
        {"cpuset_cpus": "0", "cwd": "/missing"},
        {"rlimits": {"nofile": 1}},
    ]

    def fail() -> None:
        for keywords in failing:
            with pytest.raises(SetupError):
                start(["true"], **keywords)
        with pytest.raises(SetupError):
            start(["missing"], tty=True)

    fail()
    start(["true"]).wait(30)
    before = Gauge(native, until)
    for _ in range(5):
        fail()
    start(["true"]).wait(30)
    until(lambda: Gauge(native, until).descriptors[1] <= before.descriptors[1])
    Gauge(native, until).assert_as_before(before)


def test_the_thread_that_started_it_may_end(start: Any, own_driver: Any, until: Any) -> None:
    # Whoever lets the kernel watch the parent's death is told when the *thread* has ended (PR_SET_PDEATHSIG).
    boxes: list[Any] = []
    thread = threading.Thread(target=lambda: boxes.append(start(["cat"], stdin=PIPE, stdout=PIPE, driver=own_driver)))
    thread.start()
    thread.join()
    until(lambda: thread.native_id is not None and not os.path.exists(f"/proc/self/task/{thread.native_id}"))
    assert boxes[0].communicate(b"alive", timeout=30)[0] == b"alive"


def test_waiting_in_many_threads(start: Any) -> None:
    box = start(["sh", "-c", "read x; exit 5"], stdin=PIPE)
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(box.wait(60))) for _ in range(8)]
    for thread in threads:
        thread.start()
    box.stdin.close()
    for thread in threads:
        thread.join(60)
    assert found == [5] * 8


# -- one is closed


def test_asking_about_one_that_is_closed_leaves_the_others(start: Any, own_driver: Any, launcher_of: Any) -> None:
    launcher = launcher_of()
    first, second = (start(["sleep", "100"], driver=own_driver) for _ in range(2))
    first._life.process.close()
    for _ in range(3):
        assert own_driver.info(first.id).state is pycontainer.State.STOPPED
    with pytest.raises(ContainerLostError, match="closed while it ran"):
        first.poll()
    with pytest.raises(NotRunningError):
        own_driver.kill(first.id, signal.SIGKILL)
    assert second.poll() is None
    assert (own_driver._launchers.current.pid, host.is_alive(launcher)) == (launcher, True)


def test_ctrl_c_while_it_is_closed_leaves_the_others(
    start: Any, own_driver: Any, monkeypatch: pytest.MonkeyPatch, until: Any
) -> None:
    first, second = (start(["sleep", "100"], driver=own_driver) for _ in range(2))
    pid = first.pid

    def interrupted(timeout: float | None = None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(first._life.process, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt), first:
        pass
    assert first._life.state is pycontainer.State.STOPPED
    until(lambda: not host.is_alive(pid))
    assert second.poll() is None


def test_a_start_that_was_too_late_leaves_the_others_and_its_id(
    start: Any, own_driver: Any, busybox_rootfs: Path
) -> None:
    other = start(["sleep", "100"], driver=own_driver)
    command = pycontainer.Command.of(["sleep", "100"], rootfs=busybox_rootfs, name="late")
    with open(os.devnull, "r+b") as null:
        stdio = pycontainer.Stdio(*[null.fileno()] * 3)
        with pytest.raises(pycontainer.WaitTimeoutError) as kept:  # and with it everything that its traceback leads to
            own_driver.start(command, pycontainer.Stdio(*[null.fileno()] * 3, deadline=time.monotonic()))
        again = own_driver.start(command, stdio)
        assert own_driver.info("late").pid == again.pid
        again.close()
        assert not own_driver.info("late").is_running
    assert kept.value.id == "late"
    assert other.poll() is None


def test_failed_starts_are_freed_without_a_collector(own_driver: Any, busybox_rootfs: Path) -> None:
    commands = [
        pycontainer.Command.of(["true"], rootfs=busybox_rootfs, cwd="/missing"),
        pycontainer.Command.of(["true"], rootfs=busybox_rootfs),
    ]
    gc.collect()
    gc.disable()
    try:
        with open(os.devnull, "r+b") as null:
            for command, deadline in zip(commands, (None, 0.0), strict=True):
                for _ in range(10):
                    with pytest.raises((SetupError, pycontainer.WaitTimeoutError)):
                        own_driver.start(command, pycontainer.Stdio(*[null.fileno()] * 3, deadline=deadline))
        assert [*own_driver._all] == []
    finally:
        gc.enable()


def test_a_launcher_that_lives_is_not_given_up(start: Any, own_driver: Any, launcher_of: Any) -> None:
    launcher = launcher_of()
    box = start(["sleep", "100"], driver=own_driver)
    assert "let go" in own_driver._launchers.drop(own_driver._launchers.current)
    assert own_driver._launchers.current.pid == launcher
    assert box.poll() is None


def test_without_an_interpreter_to_start(
    own_driver: Any, busybox_rootfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "")
    monkeypatch.setattr(sys, "_base_executable", "", raising=False)
    with pytest.raises(pycontainer.DriverUnavailableError, match=r"sys.executable is empty \(remedy: "):
        pycontainer.run(["true"], rootfs=busybox_rootfs, driver=own_driver)
    assert "sys.executable" in own_driver.probe().cause


@pytest.mark.parametrize("timeout", [3e6, float("inf")])
def test_a_timeout_beyond_what_poll_takes(sh: Any, timeout: float) -> None:
    assert sh("exit 3", timeout=timeout).returncode == 3


# -- the caller ends

CALLER = """
MARKER = sys.argv[1]
kinds = [{}, {"init": True}, {"tty": True}, {"pid": "host"}, {"pids_limit": 5}, {"memory": "64m"}, {"user": "alice"}]
boxes = []
for number in range(20):
    script = f"setsid sleep {MARKER} & setsid sleep {MARKER} & wait"
    kind = kinds[number % len(kinds)]
    boxes.append(pycontainer.Container(["sh", "-c", script], rootfs=ROOTFS, stdin=pycontainer.PIPE, **kind))
created = pycontainer.Container(["sleep", MARKER], rootfs=ROOTFS, start=False)
created.create()
mine = open("/proc/self/stat").read().split()[0]
launcher = next(l for l in open(f"/proc/{boxes[0].pid}/status") if l.startswith("PPid")).split()[1]
# Each of them, its inner processes, and the cgroups that they are in.
while any(len(box.pids()) < 3 for box in boxes):
    pass
pids = [pid for box in (*boxes, created) for pid in box.pids()]
print(launcher, *pids, flush=True)
"""


@pytest.fixture
def twenty(caller: Any, marker: str, monkeypatch: Any) -> Iterator[Callable[[str], Any]]:
    """A caller with twenty containers: it then does what the code says. (the process, the pids, the cgroups)"""

    def start(code: str) -> Any:
        process = caller(CALLER.replace("sys.argv[1]", repr(marker)) + code)
        pids = [*map(int, process.stdout.readline().split())]
        assert len(pids) >= 60
        directories = {
            path for pid in pids[1:] for _, path in host.cgroup_directories(pid) if "pycontainer-" in str(path)
        }
        assert len(directories) >= 21
        return process, pids, directories

    yield start
    assert host.running(marker) == []


def gone(pids: list[int], directories: set[Path]) -> bool:
    """Whether no process and no cgroup of these is left."""
    return not any(map(host.is_alive, pids)) and not any(map(os.path.exists, directories))


ENDS = {
    "SIGKILL": "os.kill(os.getpid(), 9)",
    "the end of the program": "",
    "_exit": "os._exit(0)",
    "an exception": "raise SystemExit('of the test')",
    "SIGINT": "os.kill(os.getpid(), 2); signal.pause()",
    "SIGTERM": "os.kill(os.getpid(), 15); signal.pause()",
    "execve": "os.execv('/bin/true', ['true'])",
}


@pytest.mark.parametrize("end", ENDS)
def test_the_caller_ends_while_twenty_run(twenty: Any, until: Any, end: str) -> None:
    process, pids, directories = twenty("\nsys.stdin.readline()\nsys.stderr.close()\n" + ENDS[end])
    mounts = host.mounts()
    process.stdin.write("go\n")
    process.stdin.close()
    process.wait(60)
    until(lambda: gone(pids, directories), SOON)
    until(lambda: not [path for path in directories if path.parent.exists()], SOON)
    assert not {*host.mounts()} - {*mounts}


def test_a_forked_child_of_the_caller_keeps_nothing_alive(twenty: Any, until: Any) -> None:
    process, pids, directories = twenty("""
sys.stdin.readline()
import ctypes
libc = ctypes.CDLL(None)
if libc.fork() == 0:  # unknown to Python, which would close the descriptors that are not a child's business
    libc.close(1)
    libc.pause()
print("forked", flush=True)
signal.pause()
""")
    process.stdin.write("go\n")
    process.stdin.flush()
    assert process.stdout.readline() == "forked\n"
    [child] = {*host.children(process.pid)} - {pids[0]}
    try:
        process.kill()
        process.wait(60)
        until(lambda: gone(pids, directories), SOON)
        assert host.is_alive(child)
    finally:
        os.kill(child, signal.SIGKILL)
        until(lambda: not host.is_alive(child))


def test_ctrl_c_in_run_leaves_nothing(caller: Any, marker: str) -> None:
    process = caller(f"""
class Out:
    def write(self, data):  # called by run() while it waits
        print("waiting", flush=True)
try:
    pycontainer.run(["sh", "-c", "echo; sleep {marker} & sleep {marker}"], rootfs=ROOTFS, stdout=Out())
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.stdin.read()
""")
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "interrupted\n"
    assert host.running(marker) == [process.pid]  # at once, and not only when the caller ends


# -- a forked child of the caller


def _in_child(function: Callable[[], object], connection: Any) -> None:
    try:
        connection.send(function())
    except BaseException as error:
        connection.send(repr(error))
    connection.close()


def in_fork(function: Callable[[], object]) -> Any:
    """What *function* returns in a forked child (multiprocessing)."""
    ours, theirs = multiprocessing.get_context("fork").Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_in_child, args=(function, theirs))
    process.start()
    theirs.close()
    try:
        assert ours.poll(60)
        return ours.recv()
    finally:
        process.join(60)
        ours.close()
        process.close()


def test_a_container_belongs_to_the_process_that_made_it(start: Any) -> None:
    box = start(["cat"], stdin=PIPE, stdout=PIPE)

    def inherited() -> list[str]:
        said = []
        for verb in (box.poll, lambda: box.wait(5), box.kill, box.pids, lambda: box.send_signal(9)):
            try:
                verb()
            except ContainerError as error:
                said.append(type(error).__name__)
        box.close()
        box.__del__()
        return said

    assert in_fork(inherited) == ["ContainerError"] * 5
    assert box.communicate(b"still there", timeout=30)[0] == b"still there"
    assert box.returncode == 0


def test_a_forked_child_has_a_launcher_of_its_own(native: Any, start: Any, sh: Any, until: Any) -> None:
    box = start(["sleep", "100"])

    def run() -> tuple[str, list[int], int]:
        done = sh("echo in a fork")
        launcher = native._launchers.current.pid
        native.close()
        return done.stdout, [launcher], os.getpid()

    output, [launcher], _ = in_fork(run)
    assert output == "in a fork\n"
    assert launcher != native._launchers.current.pid
    until(lambda: not host.is_alive(launcher))
    assert box.poll() is None
    assert sh("echo and here").stdout == "and here\n"


def test_a_fork_while_other_threads_start_containers(sh: Any) -> None:
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            sh("true")

    threads = [threading.Thread(target=busy) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            assert in_fork(lambda: sh("echo fork").stdout) == "fork\n"
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)


# -- the launcher ends


@pytest.fixture
def launcher_of(own_driver: Any, sh: Any, until: Any) -> Callable[[], int]:
    """The pid of own_driver's launcher, which may be killed."""

    def launcher_of() -> int:
        sh("true", driver=own_driver)
        pid: int = own_driver._launchers.current.pid
        # A spare that is just being cloned holds the launcher's sockets open a little longer than it lives.
        until(lambda: [host.waits_for_a_request(child) for child in host.children(pid)] == [True])
        return pid

    return launcher_of


def test_the_launcher_is_killed(start: Any, own_driver: Any, launcher_of: Any, until: Any, marker: str) -> None:
    launcher = launcher_of()
    script = f"setsid sleep {marker} & setsid sleep {marker} & echo ready; wait"
    kinds: list[dict[str, Any]] = [{}, {"init": True}, {"user": "alice"}, {"pids_limit": 9}, {"pid": "host"}]
    boxes = [start(["sh", "-c", script], driver=own_driver, stdout=PIPE, **kind) for kind in kinds]
    for box in boxes:
        assert box.stdout.readline() == b"ready\n"
    pids = [pid for box in boxes for pid in box.pids()]
    assert len(pids) >= 15
    directories = {path for pid in pids for _, path in host.cgroup_directories(pid) if "pycontainer-" in str(path)}
    raised: list[BaseException] = []

    def wait(box: Any) -> None:
        try:
            box.wait(60)
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=wait, args=(box,)) for box in boxes for _ in range(2)]
    for thread in threads:
        thread.start()
    os.kill(launcher, signal.SIGKILL)
    until(lambda: not any(map(host.is_alive, pids)), SOON)
    for thread in threads:
        thread.join(60)
    assert [type(error) for error in raised] == [ContainerLostError] * len(threads)
    with pytest.raises(ContainerLostError):
        boxes[0].poll()
    assert start(["sh", "-c", "exit 3"], driver=own_driver).wait(30) == 3
    assert own_driver._launchers.current.pid != launcher
    assert gone(pids, directories)
    assert not [path for path in directories if path.parent.exists()]


def test_without_a_launcher_the_processes_are_gone_before_anybody_looks(
    start: Any, own_driver: Any, launcher_of: Any, until: Any
) -> None:
    launcher = launcher_of()
    boxes = [start(["sleep", "100"], driver=own_driver, **kind) for kind in ({}, {"init": True}, {"user": "alice"})]
    pids = [pid for box in boxes for pid in box.pids()]
    assert len(pids) == 4
    os.kill(launcher, signal.SIGKILL)
    until(lambda: not any(map(host.is_alive, pids)), SOON)


def test_a_new_launchers_containers_outlive_the_news_of_the_old_ones_death(
    start: Any, own_driver: Any, launcher_of: Any, until: Any
) -> None:
    launcher = launcher_of()
    lost = [start(["sleep", "100"], driver=own_driver) for _ in range(2)]
    os.kill(launcher, signal.SIGKILL)
    until(lambda: not host.is_alive(launcher))
    # Nobody has noticed yet: it is the start that does, and makes a new launcher.
    box = start(["cat"], driver=own_driver, stdin=PIPE, stdout=PIPE)
    for old in lost:
        with pytest.raises(ContainerLostError):
            old.wait(30)
    assert box.communicate(b"alive", timeout=30)[0] == b"alive"


def test_the_launcher_is_killed_between_two_starts(start: Any, own_driver: Any, launcher_of: Any, until: Any) -> None:
    for _ in range(3):
        pid = launcher_of()
        os.kill(pid, signal.SIGKILL)
        until(lambda pid=pid: not host.is_alive(pid))
    assert start(["true"], driver=own_driver).wait(30) == 0


def test_the_launcher_is_killed_while_many_start(start: Any, own_driver: Any, launcher_of: Any) -> None:
    launcher = launcher_of()
    outcomes: list[object] = []

    def run() -> None:
        for _ in range(15):
            try:
                outcomes.append(start(["true"], driver=own_driver).wait(60))
            except (ContainerError, OSError) as error:
                outcomes.append(type(error))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    while len(outcomes) < 10:
        time.sleep(0.001)
    os.kill(launcher, signal.SIGKILL)
    for thread in threads:
        thread.join(60)
    assert {*outcomes} <= {0, ContainerLostError}
    assert len(outcomes) == 60
    assert start(["true"], driver=own_driver).wait(30) == 0


def test_a_payload_that_has_cleared_its_death_signal(start: Any, own_driver: Any, launcher_of: Any, until: Any) -> None:
    launcher = launcher_of()
    code = "import ctypes, time; ctypes.CDLL(None).prctl(1, 0, 0, 0, 0); print('ready', flush=True); time.sleep(1000)"
    boxes = [
        start([sys.executable, "-I", "-c", code], driver=own_driver, rootfs=None, stdout=PIPE, **kind)
        for kind in ({}, {"pid": "host"})
    ]
    for box in boxes:
        assert box.stdout.readline() == b"ready\n"
    pids = [pid for box in boxes for pid in box.pids()]
    os.kill(launcher, signal.SIGKILL)
    for box in boxes:
        with pytest.raises(ContainerLostError):
            box.wait(60)
    until(lambda: not any(map(host.is_alive, pids)), SOON)


def test_a_killed_spare_is_nobodys_problem(native: Any, start: Any, until: Any) -> None:
    for _ in range(3):
        until(lambda: host.children(native._launchers.current.pid))
        for pid in host.children(native._launchers.current.pid):
            os.kill(pid, signal.SIGKILL)
            until(lambda pid=pid: not host.is_alive(pid))
        assert start(["true"]).wait(30) == 0


# -- the driver ends


def test_closing_the_driver_ends_all(start: Any, own_driver: Any, launcher_of: Any) -> None:
    launcher = launcher_of()
    boxes = [start(["sleep", "100"], driver=own_driver) for _ in range(3)]
    pids = [box.pid for box in boxes]
    own_driver.close()
    assert not any(map(host.is_alive, (launcher, *pids)))
    for box in boxes:
        with contextlib.suppress(ContainerLostError):
            assert box.wait(30) == -9
    own_driver.close()
    assert start(["true"], driver=own_driver).wait(30) == 0  # and begins anew


def test_the_spare_is_made_ahead_and_alone(native: Any, start: Any, until: Any) -> None:
    start(["true"]).wait(30)
    until(lambda: [host.waits_for_a_request(pid) for pid in host.children(native._launchers.current.pid)] == [True])
    [spare] = host.children(native._launchers.current.pid)
    assert os.stat(f"/proc/{spare}/ns/net").st_ino != os.stat("/proc/self/ns/net").st_ino
    box = start(["sleep", "100"])
    assert box.pid == spare
    box.close()
    with pytest.raises(NotRunningError):
        native.kill(box.id, 9)


def test_a_step_that_fails_before_the_request_is_named_and_not_tried_for_ever(
    own_driver: Any, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(["true"], driver=own_driver).wait(30)

    def broken(k: Recorder) -> None:
        with k.step("bring lo up"):
            k.call("close", -1)

    with monkeypatch.context() as context:
        context.setattr(steps, "_loopback", broken)
        context.setattr(plan, "_sections", {})
        for _ in range(20):  # it may have failed before the request reaches it, or after
            with pytest.raises(SetupError, match="bring lo up: EBADF"):
                start(["true"], driver=own_driver)
        seen: set[int] = set()
        for _ in range(50):
            time.sleep(0.001)
            seen.update(host.children(own_driver._launchers.current.pid))
        assert len(seen) <= 1
    assert start(["true"], driver=own_driver).wait(30) == 0


# -- observers


def test_observers_hear_of_a_container(start: Any, native: Any) -> None:
    events: list[Any] = []

    class Witness:
        @pycontainer.hookimpl
        def pycontainer_started(self, id: str, pid: int) -> None:
            events.append((id, Path(f"/proc/{pid}/comm").read_text()))

        @pycontainer.hookimpl
        def pycontainer_exited(self, id: str, status: Any) -> None:
            events.append((id, status.signal))

        @pycontainer.hookimpl
        def pycontainer_cleaned(self, id: str) -> None:
            events.append((id, native.get_pids_for_container(id) if native.info(id).is_running else []))

    witness = Witness()
    pycontainer.register_observer(witness)
    try:
        box = start(["sleep", "100"], name="observed")
        box.kill()
        box.wait(30)
    finally:
        pycontainer.unregister_observer(witness)
    assert events == [("observed", "sleep\n"), ("observed", 9), ("observed", [])]
