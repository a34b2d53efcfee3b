"""pycontainer.service: the caller's end of a driver's own process, without a container."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import pytest

from pycontainer import AlreadyExistsError, ContainerError, ContainerLostError, ExitStatus, SetupError, State
from pycontainer.errors import DriverUnavailableError, NotRunningError, WaitTimeoutError, add_note
from pycontainer.service import (
    Service,
    ServiceGoneError,
    SocketProcess,
    WatchedProcess,
    exit_status,
    interpreter,
    wait_readable,
)

FAR = [3e6, 1e9, float("inf")]


class Toy(SocketProcess):
    """A message is a word; ``pid`` brings descriptors along."""

    service = "toy"
    asked = 0

    def on_message(self, data: bytes, fds: list[int]) -> None:
        if data == b"created":
            self.state = State.CREATED
        elif data.startswith(b"started"):
            self.state, self.pid = State.RUNNING, os.getpid()
            if fds:
                self.pidfd = fds.pop(0)
        elif data == b"failed":
            error = SetupError("step", errno.ENOENT)
            add_note(error, "said by the toy")
            self.end(error)
        else:
            self.end(exit_status(int(data)))

    def on_silence(self) -> ExitStatus | ContainerError:
        self.asked += 1
        return ContainerLostError(self.id, "the toy is silent")


@pytest.fixture
def pair() -> Iterator[tuple[Toy, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = Toy("box", ours)
    with theirs:
        yield process, theirs
    process.close()


@pytest.fixture
def running(pair: tuple[Toy, socket.socket]) -> tuple[Toy, socket.socket]:
    process, theirs = pair
    theirs.send(b"started")
    process.wait_for_start()
    assert process.state is State.RUNNING
    return pair


# -- a process


def test_its_end_is_final(running: tuple[Toy, socket.socket]) -> None:
    process, theirs = running
    assert process.poll() is None
    with pytest.raises(WaitTimeoutError):
        process.wait(0.01)
    theirs.send(b"7")
    assert wait_readable(process.fileno())
    assert process.wait() == process.poll() == process.wait(0) == ExitStatus(7, reason="exited with code 7")
    process.close()
    assert process.poll() == process.wait() == ExitStatus(7, reason="exited with code 7")
    assert process.state is State.STOPPED


@pytest.mark.parametrize("timeout", FAR)
def test_a_deadline_may_be_far_away(running: tuple[Toy, socket.socket], timeout: float) -> None:
    process, theirs = running
    threading.Timer(0.05, theirs.send, [b"0"]).start()
    assert process.wait(timeout).exit_code == 0


@pytest.mark.parametrize("timeout", FAR)
def test_the_deadline_of_a_start_may_be_far_away(pair: tuple[Toy, socket.socket], timeout: float) -> None:
    process, theirs = pair
    threading.Timer(0.05, theirs.send, [b"started"]).start()
    process.wait_for_start(deadline=time.monotonic() + timeout)


def test_to_ask_of_one_that_is_closed_asks_nobody(running: tuple[Toy, socket.socket]) -> None:
    """What its own close did is not the silence of whoever looks after it, and of others."""
    process, _ = running
    process.close()
    assert process.state is State.STOPPED
    for ask in (process.poll, process.wait):
        with pytest.raises(ContainerLostError, match="closed while it ran"):
            ask()
    assert process.asked == 0


def test_an_end_of_file_of_ones_own_is_no_silence_either(
    running: tuple[Toy, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another thread reads between the two halves of close()."""
    process, _ = running
    hang_up, raised = process.hang_up, []

    def poll_meanwhile() -> None:
        hang_up()
        with pytest.raises(ContainerLostError, match="closed while it ran") as caught:
            process.poll()
        raised.append(caught.value)

    monkeypatch.setattr(process, "hang_up", poll_meanwhile)
    process.close()
    assert (len(raised), process.asked) == (1, 0)
    monkeypatch.undo()


def test_silence_is_asked_about_once(running: tuple[Toy, socket.socket]) -> None:
    process, theirs = running
    theirs.close()
    for _ in range(3):
        with pytest.raises(ContainerLostError, match="the toy is silent"):
            process.wait()
    assert (process.asked, process.state) == (1, State.STOPPED)


def test_one_that_cannot_be_heard_is_given_up_and_the_other_end_is_not_taken_for_dead(
    running: tuple[Toy, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    process, theirs = running

    class Deaf:
        def __getattr__(self, name: str) -> object:
            return getattr(status, name)

        def recvmsg(self, *_: object) -> object:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    status = process._status
    monkeypatch.setattr(process, "_status", Deaf())
    with pytest.raises(ContainerLostError, match="the toy could not be heard"):
        process.poll()
    assert process.asked == 0
    assert theirs.recv(16) == b""


def test_a_start_that_is_too_late_is_over_and_its_id_is_free(pair: tuple[Toy, socket.socket]) -> None:
    process, theirs = pair
    with pytest.raises(WaitTimeoutError):
        process.wait_for_start(deadline=time.monotonic() + 0.01)
    process.close()
    assert process.state is State.STOPPED
    assert theirs.recv(16) == b""


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The descriptors that were waited for, in their order; not many, or it would go on for ever."""
    found: list[tuple[int, int]] = []

    def counted(fd: int, deadline: float | None = None, other: int = -1) -> bool:
        found.append((fd, other))
        assert len(found) < 10
        return wait_readable(fd, deadline, other)

    monkeypatch.setattr("pycontainer.service.wait_readable", counted)
    return found


@pytest.fixture
def event() -> Iterator[int]:
    fd = os.eventfd(0)
    yield fd
    os.close(fd)


def test_a_start_is_given_up(pair: tuple[Toy, socket.socket], waits: list[tuple[int, int]], event: int) -> None:
    process, _ = pair
    os.eventfd_write(event, 1)
    with pytest.raises(WaitTimeoutError):
        process.wait_for_start(give_up=event)
    assert waits == [(process.fileno(), event), (event, -1)]
    assert process.state is State.CREATING


def test_what_has_started_already_is_not_given_up(
    pair: tuple[Toy, socket.socket], waits: list[tuple[int, int]], event: int
) -> None:
    process, theirs = pair
    os.eventfd_write(event, 1)
    theirs.send(b"started")
    process.wait_for_start(give_up=event)
    assert process.state is State.RUNNING
    assert waits == []


def test_a_start_that_nobody_gives_up_waits_once(
    pair: tuple[Toy, socket.socket], event: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look at what nobody has given up would make every start a little longer."""
    process, theirs = pair
    waits = []

    def wait(fd: int, deadline: float | None = None, other: int = -1) -> bool:
        waits.append((fd, other))
        theirs.send(b"started")
        return wait_readable(fd, deadline, other)

    monkeypatch.setattr("pycontainer.service.wait_readable", wait)
    process.wait_for_start(give_up=event)
    assert waits == [(process.fileno(), event)]


def test_a_failed_start_is_freed_at_once() -> None:
    """Without a collector: what was raised leads to the process, but not the other way round."""
    freed = []

    def fail(message: bytes) -> type[BaseException]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        process = Toy("box", ours)
        freed.append(weakref.ref(process))
        with theirs:
            if message:
                theirs.send(message)
        try:
            process.wait_for_start()
        except ContainerError as error:
            process.close()
            return type(error)
        raise AssertionError

    gc.collect()
    gc.disable()
    try:
        errors = [fail(message) for message in (b"failed", b"", b"3")]
        assert errors == [SetupError, ContainerLostError, NotRunningError]
        assert [each() for each in freed] == [None] * 3
    finally:
        gc.enable()


def test_each_gets_an_error_of_his_own(pair: tuple[Toy, socket.socket]) -> None:
    process, theirs = pair
    theirs.send(b"failed")
    errors = []
    for call in (process.wait_for_start, process.poll, process.wait):
        with pytest.raises(SetupError) as caught:
            call()
        add_note(caught.value, "of this caller's")
        errors.append(caught.value)
    assert len({*map(id, errors)}) == 3
    for error in errors:
        assert (error.step, error.errno) == ("step", errno.ENOENT)
        assert error.__notes__ == ["said by the toy", "of this caller's"]


def test_a_created_one(pair: tuple[Toy, socket.socket]) -> None:
    process, theirs = pair
    theirs.send(b"created")
    process.wait_for_start()
    process.open_gate()
    assert theirs.recv(16) == b"s"
    theirs.send(b"9")
    assert process.poll() is None  # it is for the starter to hear
    with pytest.raises(NotRunningError):
        process.wait_for_start(State.CREATED)
    assert process.wait().exit_code == 9


@pytest.mark.parametrize(("said", "error"), [(b"9", NotRunningError), (b"failed", SetupError)])
def test_how_it_ended_is_heard_though_its_gate_was_opened_too_late(
    pair: tuple[Toy, socket.socket], said: bytes, error: type[ContainerError]
) -> None:
    """An end that is closed with something unread resets the connection, which is told before what it has said."""
    process, theirs = pair
    theirs.send(b"created")
    process.wait_for_start()
    process.open_gate()
    theirs.send(said)
    theirs.close()
    with pytest.raises(error):
        process.wait_for_start(State.CREATED)
    assert process.asked == 0


def test_one_that_is_reset_and_has_said_nothing_is_lost(pair: tuple[Toy, socket.socket]) -> None:
    process, theirs = pair
    theirs.send(b"created")
    process.wait_for_start()
    process.open_gate()
    theirs.close()
    with pytest.raises(ContainerLostError, match="the toy is silent"):
        process.wait_for_start(State.CREATED)


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """This process can open nothing more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_room_for_its_pidfd_it_is_ended(pair: tuple[Toy, socket.socket]) -> None:
    process, theirs = pair
    before = len(os.listdir("/proc/self/fd"))
    pidfd = os.pidfd_open(os.getpid())
    socket.send_fds(theirs, [b"started"], [pidfd, pidfd])
    os.close(pidfd)
    with no_descriptors(), pytest.raises(SetupError) as caught:
        process.wait_for_start()
    assert (caught.value.step, caught.value.errno) == ("receive descriptors", errno.EMFILE)
    assert process.state is State.STOPPED
    assert theirs.recv(16) == b""
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_not_kept_is_closed(pair: tuple[Toy, socket.socket]) -> None:
    process, theirs = pair
    before = len(os.listdir("/proc/self/fd"))
    socket.send_fds(theirs, [b"started"], [0, 0, 0])
    process.wait_for_start()
    assert process.pidfd >= 0
    assert not os.get_inheritable(process.pidfd)
    assert len(os.listdir("/proc/self/fd")) == before + 1


def test_killing_goes_by_the_socket_where_there_is_no_pidfd(running: tuple[Toy, socket.socket]) -> None:
    process, theirs = running
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGKILL)
    assert theirs.recv(16) == b""
    theirs.send(b"0")  # how it ended can still be told
    assert process.wait().exit_code == 0


def test_a_signal_goes_by_the_pidfd(running: tuple[Toy, socket.socket]) -> None:
    process, _ = running
    with subprocess.Popen(["sleep", "100"]) as sleeper:
        process.pidfd = os.pidfd_open(sleeper.pid)
        process.pid = os.getpid()  # as if its number were another's
        process.send_signal(signal.SIGTERM)
        assert sleeper.wait(30) == -signal.SIGTERM
        process.send_signal(signal.SIGKILL)  # it has ended, and was reaped


def test_closed_while_it_is_taken_in(pair: tuple[Toy, socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    process, theirs = pair
    take = process.on_message

    def close_meanwhile(data: bytes, fds: list[int]) -> None:
        process.close()
        take(data, fds)

    monkeypatch.setattr(process, "on_message", close_meanwhile)
    theirs.send(b"started")
    process.wait_for_start()
    assert process.state is State.STOPPED
    with pytest.raises(ContainerLostError, match="closed"):
        process.poll()


def test_one_message_is_taken_in_at_a_time(pair: tuple[Toy, socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    process, theirs = pair
    take, entered = process.on_message, []

    def another_thread(data: bytes, fds: list[int]) -> None:
        entered.append(process._lock.acquire(blocking=False))
        take(data, fds)

    monkeypatch.setattr(process, "on_message", another_thread)
    theirs.send(b"started")
    process.wait_for_start()
    assert entered == [False]


def test_how_it_ended_is_what_was_heard_first(
    running: tuple[Toy, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two threads that ask, one comes when the other has heard it all."""
    process, theirs = running
    lock = process._lock

    class Slow:
        def __enter__(self) -> None:
            monkeypatch.setattr(process, "_lock", lock)
            assert process.poll() == ExitStatus(7, reason="exited with code 7")  # the other one
            lock.acquire()

        def __exit__(self, *_: object) -> None:
            lock.release()

    theirs.send(b"7")
    theirs.close()
    monkeypatch.setattr(process, "_lock", Slow())
    assert process.poll() == ExitStatus(7, reason="exited with code 7")
    assert process.asked == 0


def test_what_has_ended_is_not_paused(running: tuple[Toy, socket.socket]) -> None:
    process, theirs = running
    process.change_state(State.RUNNING, State.PAUSED)
    assert process.state is State.PAUSED
    theirs.send(b"7")
    process.wait()
    process.change_state(State.PAUSED, State.RUNNING)
    assert process.state is State.STOPPED


def test_a_forked_child_touches_nothing(running: tuple[Toy, socket.socket]) -> None:
    process, theirs = running
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for verb in (process.poll, process.wait, lambda: process.send_signal(9)):
                with contextlib.suppress(ContainerError):
                    verb()
                    os._exit(2)
            process.leave()
            process.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    theirs.send(b"5")
    assert process.wait().exit_code == 5


def test_wait_is_the_same_for_whoever_has_a_poll() -> None:
    class Other(WatchedProcess):
        id, pid, pidfd = "other", -1, -1

        def __init__(self) -> None:
            self.fd, self.writer = os.pipe()

        def poll(self) -> ExitStatus | None:
            return exit_status(4) if wait_readable(self.fd, 0.0) else None

        def fileno(self) -> int:
            return self.fd

        def close(self) -> None:
            os.close(self.fd)
            os.close(self.writer)

    process = Other()
    with pytest.raises(WaitTimeoutError):
        process.wait(0.01)
    threading.Timer(0.05, os.write, [process.writer, b"x"]).start()
    assert process.wait(float("inf")).exit_code == 4
    process.close()


@pytest.mark.parametrize(
    ("arguments", "returncode", "reason"),
    [
        ((0,), 0, "exited with code 0"),
        ((3, None, 0, "a note"), 3, "exited with code 3; a note"),
        ((None, 9), -9, "killed by signal 9 (SIGKILL)"),
        ((None, 63), -63, "killed by signal 63"),
        (
            (None, 9, 2),
            -9,
            "killed by signal 9 (SIGKILL); out of memory: the kernel killed 2 of its processes at the memory limit",
        ),
        (
            (1, None, True),
            1,
            "exited with code 1; out of memory: the kernel killed processes of it at the memory limit",
        ),
    ],
)
def test_the_sentence_of_a_status(arguments: tuple[int, ...], returncode: int, reason: str) -> None:
    status = exit_status(*arguments)  # type: ignore[arg-type]
    assert (status.returncode, status.reason) == (returncode, reason)
    assert status.oom_killed is (len(arguments) > 2 and bool(arguments[2]))


# -- a service

#: Answers each request with its length, its first byte, and how many descriptors came; ends with its caller.
ECHO = """
import os, _socket as socket
control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, 3)
while True:
    data, rights, _, _ = control.recvmsg(1 << 16, 1024)
    if not data:
        break
    fds = [int.from_bytes(rights[0][2][i : i + 4], "little") for i in range(0, len(rights[0][2]), 4)] if rights else []
    if data == b"memfd":
        data = os.pread(fds[-1], 1 << 24, 0)
    control.send(f"{len(data)} {data[:1]} {len(fds)}".encode())
"""

#: Hears nothing, and ends with nobody.
DEAF = "import time; time.sleep(1000)"


@pytest.fixture
def serve() -> Iterator[Callable[..., Service]]:
    services: list[Service] = []

    def serve(code: str, handed: list[int] | None = None) -> Service:
        handed = handed or []
        services.append(Service([sys.executable, "-I", "-S", "-c", code, str(4 + len(handed))], handed))
        return services[-1]

    yield serve
    for service in services:
        service.close(patience=0)


def test_it_is_asked_and_ended(serve: Callable[..., Service]) -> None:
    service = serve(ECHO)
    assert not service.ended()
    for size, fds in ((10, [0]), (64 * 1024, [0, 1]), (64 * 1024 + 1, []), (1 << 22, [2])):
        service.request(b"x" * size, fds)
        told = len(fds) + (size > 64 * 1024)
        assert service.control.recv(100) == f"{size} b'x' {told}".encode()
    assert service.close() is True
    assert service.ended()
    assert service.close() is False
    with pytest.raises(ServiceGoneError):
        service.request(b"x", [])
    with pytest.raises(ProcessLookupError):
        os.kill(service.pid, 0)


LOOK = """
import os, sys
os.closerange(int(sys.argv[-1]), 4096)  # what is inheritable here: the service's own code sees to that
names = sorted(int(name) for name in os.listdir("/proc/self/fd"))[:-1]
same = [os.stat(fd).st_ino for fd in names[4:]]
kept = [name for name in os.environ if name != "LC_CTYPE"]  # PEP 538
os.write(3, f"{names} {same} {os.getsid(0) == os.getpid()} {kept} {os.readlink('/proc/self/fd/0')}".encode())
"""


def test_what_it_has_of_its_caller(serve: Callable[..., Service], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "of the caller")
    inherited = os.open("/", os.O_RDONLY)
    os.set_inheritable(inherited, True)
    handed = [os.open("/proc", os.O_RDONLY), os.open("/dev", os.O_RDONLY)]
    # As many as would be in each other's way.
    many = [os.dup(handed[0]) for _ in range(20)]
    try:
        service = serve(LOOK, handed)
        same = [os.stat(path).st_ino for path in ("/proc", "/dev")]
        assert service.control.recv(1000).decode() == f"[0, 1, 2, 3, 4, 5] {same} True [] /dev/null"
        service = serve(LOOK, many)
        names = service.control.recv(1000).decode()
        assert names.startswith(f"{[*range(24)]}"[:-1])
    finally:
        for fd in (inherited, *handed, *many):
            os.close(fd)


def test_its_signals_are_the_default_ones(serve: Callable[..., Service]) -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    try:
        code = "print_ = [l for l in open('/proc/self/status') if l.startswith(('SigBlk', 'SigIgn'))]\n"
        service = serve(f"{code}import os; os.write(3, ''.join(print_).encode())")
        said = dict(line.split(":\t") for line in service.control.recv(1000).decode().splitlines())
    finally:
        signal.signal(signal.SIGUSR1, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)
    assert int(said["SigBlk"], 16) == 0
    assert not int(said["SigIgn"], 16) >> (signal.SIGUSR1 - 1) & 1


def test_a_stopped_one_is_woken_up_to_end(serve: Callable[..., Service]) -> None:
    service = serve(ECHO)
    service.request(b"x", [])
    assert service.control.recv(100)
    os.kill(service.pid, signal.SIGSTOP)
    began = time.monotonic()
    assert service.close() is True
    assert time.monotonic() - began < service.patience


def test_one_that_does_not_end_is_killed(serve: Callable[..., Service]) -> None:
    service = serve(DEAF)
    began = time.monotonic()
    assert service.close(patience=0.1) is False
    assert 0.1 <= time.monotonic() - began < service.patience
    assert service.ended()


def test_no_stranger_is_signalled(serve: Callable[..., Service], monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else's waitpid(-1) was first, and its number is another's by now."""
    service = serve(ECHO)
    service.request(b"x", [])
    assert service.control.recv(100)
    os.kill(service.pid, signal.SIGKILL)
    os.waitpid(service.pid, 0)
    with subprocess.Popen(["sleep", "100"]) as stranger:
        service.pid = stranger.pid
        assert service.close(patience=0) is False
        assert stranger.poll() is None
        stranger.kill()
        assert stranger.wait() == -signal.SIGKILL


def test_last_words(serve: Callable[..., Service]) -> None:
    service = serve("import os; os.write(3, b'no more')")
    assert service.ended(timeout=60)
    assert service.last_words() == "no more"
    assert service.last_words() == ""
    service.close()
    assert service.last_words() == ""


def test_a_forked_child_forgets_it(serve: Callable[..., Service]) -> None:
    service = serve(ECHO)
    pid = os.fork()
    if pid == 0:
        try:
            service.forget()
            service.forget()
            os._exit(0 if service.pidfd < 0 and service.control.fileno() < 0 else 1)
        finally:
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
    service.request(b"x", [])
    assert service.control.recv(100)


@pytest.mark.parametrize("number", range(3))
def test_one_that_cannot_be_started_leaves_nothing(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def held() -> tuple[int, str]:
        with open("/proc/thread-self/children") as file:
            return len(os.listdir("/proc/self/fd")), file.read()

    before = held()
    program = None
    if number == 0:
        monkeypatch.setattr(os, "pidfd_open", fail)
    elif number == 1:
        monkeypatch.setattr("fcntl.fcntl", fail)
    else:
        program = "/no/such"
    with pytest.raises(OSError, match=r"\[Errno") as caught:
        Service([sys.executable, "-c", DEAF], [], program)
    assert caught.value.errno == (errno.ENOENT if program else errno.EMFILE)
    monkeypatch.undo()
    assert held() == before


def test_its_descriptor_goes_with_it(serve: Callable[..., Service]) -> None:
    service = Service([sys.executable, "-I", "-S", "-c", ECHO], [])
    service.close()
    pidfd = service.pidfd
    os.fstat(pidfd)  # others may still ask whether it lives
    del service
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(pidfd)


# -- and its interpreter


@pytest.mark.parametrize("missing", ["", None])
def test_without_an_interpreter_it_says_so(missing: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", missing)
    monkeypatch.setattr(sys, "_base_executable", missing, raising=False)
    with pytest.raises(DriverUnavailableError, match=r"sys.executable is empty \(remedy: set sys.executable") as caught:
        interpreter("mine")
    assert caught.value.driver == "mine"
    monkeypatch.setattr(sys, "executable", "/usr/../usr/bin/python3")
    assert interpreter("mine") == os.path.realpath("/usr/bin/python3")


def test_it_is_not_imported_before_a_driver_needs_it() -> None:
    code = "import sys, pycontainer, pycontainer.cli, pycontainer._api; print('pycontainer.service' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout == "False\n"


def test_an_error_that_is_no_set_up_error_goes_on(pair: tuple[Toy, socket.socket]) -> None:
    process, _ = pair
    process.end(AlreadyExistsError("box"))
    with pytest.raises(AlreadyExistsError):
        process.wait_for_start()
