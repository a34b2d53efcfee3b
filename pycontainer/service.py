"""A driver's own helper process, and the containers it looks after. For authors of drivers.

An attached container has to end with whoever made it, however that dies.  So
a driver rarely is the parent of its containers: it starts a small *service*
process of its own, which is, and which watches for the end of its caller.
This module is the caller's side of such an arrangement, as both drivers that
come with pycontainer have it::

    driver --Service-------- control socket --> service process
           --SocketProcess-- status socket ---> one container of it

* :class:`Service` starts the process, gives it requests over an inherited
  socket that nobody else can reach, and ends it.
* :class:`SocketProcess` is the :class:`~pycontainer.driver.ContainerProcess`
  of one container, or of a further process in one.  Its other end goes along
  with the request; over it the service says, in whatever form the driver
  likes, that the container runs and how it ended.  When this end closes, the
  service is to kill the container.  So nobody needs a thread or a lock to
  sort out whose news is whose, and asyncio can watch the descriptor.
* :class:`WatchedProcess` has the same ``wait`` and ``send_signal`` for whoever
  learns of the end by something else.

The service's own code is the driver's: it should import little, and nothing
of pycontainer.  A driver has two hooks to write, and a start is a few lines::

    class PlainProcess(SocketProcess):
        service = "keeper"

        def on_message(self, data, fds):
            kind, *values = json.loads(data)
            if kind == "started":
                self.pid, self.pidfd, self.state = values[0], fds.pop(), State.RUNNING
            else:
                self.end(exit_status(*values))

        def on_silence(self):
            return ContainerLostError(self.id, self.driver.keeper.last_words())

    status, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = PlainProcess(command.id, status)
    try:
        with theirs:
            keeper.request(data, [theirs.fileno(), stdio.stdin, stdio.stdout, stdio.stderr])
        process.wait_for_start(deadline=stdio.deadline, give_up=stdio.give_up)
    except BaseException:
        process.close()
        raise

After a fork all of it is the parent's: a driver has its child ``forget`` the
service and ``close`` its copies of the processes (``os.register_at_fork``),
for a copy of an end would hide that the parent has closed its own.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import errno
import fcntl
import functools
import os
import select
import signal as signals
import socket
import sys
import threading
import time
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from pycontainer._exchange import milliseconds
from pycontainer.driver import ContainerProcess, ExitStatus, Probe, State
from pycontainer.errors import (
    ContainerError,
    ContainerLostError,
    DriverUnavailableError,
    NotRunningError,
    SetupError,
    WaitTimeoutError,
)

__all__ = [
    "TRUNCATED",
    "Service",
    "ServiceGoneError",
    "SocketProcess",
    "WatchedProcess",
    "caller",
    "exit_status",
    "interpreter",
    "send_request",
    "wait_readable",
]

#: The step of the SetupError that a SocketProcess ends with when its descriptors find no room in this process.
TRUNCATED = "receive descriptors"

#: A larger request travels in a sealed memfd: a socket's buffer is no place for it.
_IN_LINE = 64 * 1024

#: How much of a control message is taken: a dozen descriptors.
_RIGHTS = 64

# As ints: each operation of socket's own flags makes another of them, which takes longer than the call.
_TAKE = int(socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
_CUT = int(socket.MSG_CTRUNC)

#: The first descriptor of a service that its driver chooses; before it are stdio, and the control socket.
_FIRST_HANDED = 4


def wait_readable(fd: int, deadline: float | None = None, other: int = -1) -> bool:
    """Wait until *fd*, or *other*, is readable, which is returned; not after *deadline*, of time.monotonic().

    A deadline may be as far away as it likes, float("inf") too; what is beyond
    24 days comes early, and a caller that has to know looks at the clock.  One
    that is closed (-1) counts as readable: to read from it tells as much.
    """
    if fd < 0:
        return True
    poll = select.poll()  # not select(2): descriptors may be beyond 1024
    poll.register(fd, select.POLLIN)
    if other >= 0:
        poll.register(other, select.POLLIN)
    return bool(poll.poll(milliseconds(deadline)))


def exit_status(code: int | None, signal: int | None = None, oom_kills: int = 0, note: str = "") -> ExitStatus:
    """The ExitStatus of a process, and its sentence, to which *note* is added.

    *oom_kills* is how many of its processes the kernel has killed for want of
    memory; True, where only that it has is known.
    """
    if signal is None:
        text = f"exited with code {code}"
    else:
        try:
            text = f"killed by signal {signal} ({signals.Signals(signal).name})"
        except ValueError:
            text = f"killed by signal {signal}"
    if oom_kills:
        which = "processes of it" if oom_kills is True else f"{oom_kills} of its processes"
        text += f"; out of memory: the kernel killed {which} at the memory limit"
    return ExitStatus(code, signal, bool(oom_kills), f"{text}; {note}" if note else text)


def interpreter(driver: str) -> str:
    """The path of the Python that runs this program, of which the driver's service is to be another process.

    Raises DriverUnavailableError, for the driver of that name: a program that
    has Python embedded may not know of any.
    """
    path = getattr(sys, "_base_executable", None) or sys.executable
    if not path:
        cause = "it needs a Python interpreter to start, and this program knows of none: sys.executable is empty"
        remedy = "set sys.executable to the path of a python3 before the first container"
        raise DriverUnavailableError(driver, Probe(driver, usable=False, cause=cause, remedy=remedy))
    return os.path.realpath(path)


class WatchedProcess(ContainerProcess):
    """``wait`` and ``send_signal`` for a process with a ``poll``, and a ``fileno`` that is readable at its end."""

    def wait(self, timeout: float | None = None) -> ExitStatus:
        deadline = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if deadline is not None and time.monotonic() >= deadline:
                raise WaitTimeoutError(self.id, timeout or 0.0)
            wait_readable(self.fileno(), deadline)
        return status

    def send_signal(self, signal: int) -> None:
        if self.poll() is None:
            self.deliver(signal)

    def deliver(self, signal: int) -> None:
        """Send *signal*, by the pidfd: its pid may be another's. It has not been seen to end yet."""
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signals.pidfd_send_signal(self.pidfd, signal)


class SocketProcess(WatchedProcess):
    """What is at the other end of *status*, a SOCK_SEQPACKET socket that this object owns from now on.

    A driver subclasses it and says in :meth:`on_message` what a message means,
    and in :meth:`on_silence` what it means when none will come any more.
    """

    #: Whose the other end is, in words.
    service: ClassVar[str] = "service"

    #: How long a message can be at most (bytes).
    message_size: ClassVar[int] = 4096

    state: State

    def __init__(self, id: str, status: socket.socket) -> None:
        self.id = id
        self.pid = -1
        self.pidfd = -1
        self.terminal: int | None = None
        self.state = State.CREATING
        self._status = status
        self._outcome: ExitStatus | ContainerError | None = None
        self._being_started = True
        self._is_closed = False
        self._owner = os.getpid()
        self._lock = threading.Lock()

    # -- what a driver says

    @abstractmethod
    def on_message(self, data: bytes, fds: list[int]) -> None:
        """Take in one message: set the state, pid, pidfd and terminal, or call :meth:`end`.

        What it keeps of *fds* it takes out of that list; the rest is closed.
        """

    @abstractmethod
    def on_silence(self) -> ExitStatus | ContainerError:
        """The other end is closed and has not said how it ended: how it did, or the error that poll and wait raise.

        ContainerLostError is what an attached container's is.
        """

    def on_closed(self) -> ContainerError:
        """The error that poll and wait raise once this end was closed before the other one said how it ended."""
        return ContainerLostError(self.id, "it was closed while it ran")

    def end(self, outcome: ExitStatus | ContainerError) -> None:
        """It has ended, and this is how; or it never ran, and this is why."""
        self.state = State.STOPPED
        self._outcome = outcome

    def change_state(self, before: State, after: State) -> None:
        """It is *after* now, if it was *before*: else it ended in the meantime."""
        with self._lock:
            if self.state is before:
                self.state = after

    # -- what the other end says

    def _receive(self, starter: bool = False) -> bool:
        """Take in one message without blocking; False when there is none, or it is for the *starter* to take."""
        with self._lock:
            if self._being_started and not starter:
                return False
            if self._outcome is not None:
                return True
            if self._is_closed:  # by ourselves: of the service that tells nothing
                self.end(self.on_closed())
                return True
            try:
                data, control, came = self._receive_message()
            except BlockingIOError:
                return False
            except OSError as error:
                self.end(self.on_closed() if self._is_closed else self._unheard(error, starter))
                return True
            if not data:
                self.state = State.STOPPED  # for others, while it is found out how
                self.end(self.on_closed() if self._is_closed else self.on_silence())
                return True
            fds = _descriptors(control) if control else []
            try:
                if came & _CUT:
                    # Without its pidfd nobody could end it.
                    self.end(SetupError(TRUNCATED, errno.EMFILE))
                    self.hang_up()
                else:
                    self.on_message(data, fds)
            finally:
                while fds:
                    os.close(fds.pop())
            if self._is_closed and self._outcome is None:  # in the meantime
                self.state = State.STOPPED
            return True

    def _receive_message(self) -> tuple[bytes, list[tuple[int, int, bytes]], int]:
        # not recv_fds(), which ignores its flags before Python 3.12
        try:
            return self._status.recvmsg(self.message_size, _RIGHTS, _TAKE)[:3]
        except ConnectionResetError:
            # The other end was closed with something unread in it, such as the byte of open_gate (unix(7)). That is
            # told once, and before what it had said: how the container ended.
            return self._status.recvmsg(self.message_size, _RIGHTS, _TAKE)[:3]

    def _unheard(self, error: OSError, starter: bool) -> ContainerError:
        """A message could not be received: nothing is known of it any more, so it is to end."""
        self.hang_up()
        if starter:
            return SetupError(f"hear from the {self.service}", error.errno or errno.EPROTO)
        return ContainerLostError(self.id, f"the {self.service} could not be heard: {error.strerror}")

    def wait_for_start(self, before: State = State.CREATING, deadline: float | None = None, give_up: int = -1) -> None:
        """Block until its state no longer is *before*.

        Until then only this reads from the socket: a poll() in another thread
        would take away what this waits for.  *deadline* and *give_up* are as in
        :class:`~pycontainer.Stdio`.  Raises WaitTimeoutError, NotRunningError
        when it ended before it was started, and what the hooks make of a
        failure: SetupError, ContainerLostError.
        """
        began, waited = time.monotonic(), False
        try:
            while self.state is before:
                if not self._receive(starter=True):
                    if deadline is not None and time.monotonic() >= deadline:
                        raise WaitTimeoutError(self.id, max(0.0, deadline - began))
                    if waited and give_up >= 0 and wait_readable(give_up, 0.0):
                        raise WaitTimeoutError(self.id, time.monotonic() - began)
                    waited = wait_readable(self._status.fileno(), deadline, give_up)
        finally:
            self._being_started = False
        if self._outcome is not None:
            self._ended()
            raise NotRunningError(self.id)  # killed while it was created

    def open_gate(self) -> None:
        """Let a created container execute its program: one byte to the other end. wait_for_start is next."""
        with self._lock:
            self._being_started = True
        with contextlib.suppress(OSError):  # then it is dead, and wait_for_start says how
            self._status.send(b"s", socket.MSG_NOSIGNAL)

    def _ended(self) -> ExitStatus | None:
        """The outcome, or None while there is none; raised, if it is an error."""
        outcome = self._outcome
        if isinstance(outcome, ContainerError):
            # A copy, each time, which no variable of this frame has: the traceback of what is raised leads here, and to
            # this object, which would keep itself alive by it.
            raise _copy_of(outcome)
        return outcome

    # -- ContainerProcess

    def _check_owner(self) -> None:
        if os.getpid() != self._owner:
            raise ContainerError(f"container {self.id!r} belongs to the process that this one was forked from")

    def poll(self) -> ExitStatus | None:
        self._check_owner()
        while self._outcome is None and self._receive():
            pass
        return self._ended()

    def deliver(self, signal: int) -> None:
        try:
            if self.pidfd >= 0 or signal != signals.SIGKILL:
                super().deliver(signal)
                return
        except PermissionError:  # it is of a user that the caller no longer is
            if signal != signals.SIGKILL:
                raise
        self.leave()  # the service can end what this process has no descriptor of, or no right over

    def fileno(self) -> int:
        return self._status.fileno()

    def hang_up(self) -> None:
        """End the connection, whoever else has copies of this end; in a forked child only its own copy."""
        self._shut(socket.SHUT_RDWR)

    def leave(self) -> None:
        self._shut(socket.SHUT_WR)  # for the service it is closed, and yet it can tell how it ends

    def _shut(self, how: int) -> None:
        if os.getpid() == self._owner:
            with contextlib.suppress(OSError):
                self._status.shutdown(how)

    def close(self) -> None:
        self._is_closed = True  # first: whoever reads at this moment hears an end-of-file that is ours
        if self._status.fileno() >= 0:  # else this is the second time, as by the finalizer
            self.hang_up()
            self._status.close()
        if self._outcome is None:  # nobody will learn of its end, and its id is free
            self.state = State.STOPPED
        pidfd, self.pidfd = self.pidfd, -1
        terminal, self.terminal = self.terminal, None
        for fd in (pidfd, terminal):
            if fd is not None and fd >= 0:
                os.close(fd)

    def __del__(self) -> None:
        if hasattr(self, "_lock"):  # else its __init__ has failed
            self.close()


def _descriptors(control: Sequence[tuple[int, int, bytes]]) -> list[int]:
    rights = b"".join(rights for _, kind, rights in control if kind == socket.SCM_RIGHTS)
    return [int.from_bytes(rights[i : i + 4], sys.byteorder) for i in range(0, len(rights), 4)]


def _copy_of(error: ContainerError) -> ContainerError:
    copied = copy.copy(error)
    if hasattr(error, "__notes__"):
        copied.__notes__ = [*error.__notes__]  # type: ignore[attr-defined]
    return copied


class ServiceGoneError(Exception):
    """The service has ended, so a request could not be given to it."""


# capget(2): struct __user_cap_header_struct, version 3 and this thread, and two of struct __user_cap_data_struct
_CAP_HEADER = (ctypes.c_uint32 * 2)(0x20080522, 0)
_CapData = ctypes.c_uint32 * 6
_PR_GET_NO_NEW_PRIVS = 39  # linux/prctl.h
_NAMESPACES = [
    f"/proc/thread-self/ns/{name}"
    for name in ("cgroup", "ipc", "mnt", "net", "pid_for_children", "user", "uts")
    if os.path.exists(f"/proc/self/ns/{name}")  # not every kernel is made with all of them
]


def caller() -> tuple[object, ...]:
    """Who this thread is and where: its ids, groups, capabilities, no_new_privs, namespaces and root.

    A service goes on with those of whoever started it.  Once its caller has
    others, what it does for him would be more than he may do himself, or
    elsewhere.
    """
    libc = _libc()
    sets = _CapData()
    libc.capget(_CAP_HEADER, sets)
    confined = libc.prctl(_PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
    root = os.stat("/")
    ids = (os.getresuid(), os.getresgid(), tuple(os.getgroups()))
    return (*ids, bytes(sets), confined, *map(os.readlink, _NAMESPACES), root.st_dev, root.st_ino)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


class Service:
    """One service process: started here, ended by :meth:`close`, and by itself when its caller has ended.

    For that it watches a pidfd of the caller, which is among what it is
    *handed*, and its control socket.

    :attr:`control` is the caller's end of the control socket, SOCK_SEQPACKET.
    The process has its own end as descriptor 3, and copies of *handed* as 4
    and on; its stdio is /dev/null.  It is in a session of its own, with no
    signal blocked or ignored and an empty environment, but for what the
    dynamic loader may need to find libpython.

    *argv* is executed, or *program* with it.  Raises OSError, with nothing left.
    """

    #: How long it may take to end everything, before it is ended itself (seconds).
    patience: ClassVar[float] = 15.0

    pid = -1
    pidfd = -1  #: open as long as this object is there: what asks whether it lives may be in another thread

    def __init__(self, argv: Sequence[str], handed: Sequence[int], program: str | None = None) -> None:
        self.made_by = caller()
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                self.pid = _spawn(program or argv[0], argv, [theirs.fileno(), *handed])
            self.pidfd = os.pidfd_open(self.pid)
        except BaseException:
            self.control.close()
            if self.pid > 0:  # not reaped yet: its pid is nobody else's
                os.kill(self.pid, signals.SIGKILL)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(self.pid, 0)
            raise

    def check_caller(self) -> None:
        """Raise ContainerError if this thread no longer is who it was when it made this process: see :func:`caller`."""
        if caller() != self.made_by:
            raise ContainerError(
                "this process has changed its user, rights, namespaces or root since the driver's own process was "
                "started, which has those of before: make another driver"
            )

    def request(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send one request, see :func:`send_request`. Raises ServiceGoneError, OSError."""
        send_request(self.control, data, fds)

    def last_words(self) -> str:
        """What it has said about its own death on the control socket, if it could."""
        try:
            return self.control.recv(4096, socket.MSG_DONTWAIT).decode(errors="replace")
        except OSError:
            return ""

    def ended(self, timeout: float = 0.0) -> bool:
        """Whether it has ended, waiting for that at most *timeout* seconds."""
        return wait_readable(self.pidfd, time.monotonic() + timeout)

    def close(self, patience: float | None = None) -> bool:
        """End it, and with it every container; returns when it is gone, and whether it left nothing, as status 0 tells.

        After *patience* seconds, None are :attr:`patience`, it is killed.
        """
        with contextlib.suppress(OSError):
            self.control.shutdown(socket.SHUT_RDWR)  # also for the copies that a forked child may have
        self.control.close()
        if self.pidfd < 0:
            return False
        with contextlib.suppress(ProcessLookupError, PermissionError):  # of another user than it was
            signals.pidfd_send_signal(self.pidfd, signals.SIGCONT)  # stopped, it would not notice
        if not self.ended(self.patience if patience is None else patience):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signals.pidfd_send_signal(self.pidfd, signals.SIGKILL)
        try:
            result = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        except ChildProcessError:  # somebody else's waitpid(-1) was first, or this is the second time
            wait_readable(self.pidfd)
            return False
        return result is not None and (result.si_code, result.si_status) == (os.CLD_EXITED, 0)

    def forget(self) -> None:
        """Let go of it, without ending it: in a forked child, whose parent's it is."""
        self.control.close()
        self._close_pidfd()

    def _close_pidfd(self) -> None:
        pidfd, self.pidfd = self.pidfd, -1
        if pidfd >= 0:
            os.close(pidfd)

    def __del__(self) -> None:
        self._close_pidfd()


def send_request(control: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    """Send *data* and *fds* as one message; more than 64 KiB as the message ``memfd``, whose last descriptor has them.

    That is sealed.  Raises ServiceGoneError, OSError.
    """
    memfd = -1
    try:
        if len(data) > _IN_LINE:
            memfd = _sealed(data)
            data, fds = b"memfd", [*fds, memfd]
        socket.send_fds(control, [data], list(fds), socket.MSG_NOSIGNAL)
    except OSError as error:
        # Also when another thread has noticed its death already, and closed this.
        if isinstance(error, (BrokenPipeError, ConnectionResetError)) or control.fileno() < 0:
            raise ServiceGoneError from None
        raise
    finally:
        if memfd >= 0:
            os.close(memfd)


def _sealed(data: bytes) -> int:
    memfd = os.memfd_create("pycontainer-request", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(memfd, "wb", closefd=False) as file:
            file.write(data)
        seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(memfd)
        raise
    return memfd


def _spawn(program: str, argv: Sequence[str], handed: Sequence[int]) -> int:
    """Execute *program* with *handed* as its descriptors 3 and on; its pid. Raises OSError."""
    # Only what the dynamic loader may need to find libpython.
    env = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    # dup2 onto itself does not clear close-on-exec everywhere, so none of these may have its number already.
    lowest = max(16, _FIRST_HANDED + len(handed))
    opened: list[int] = []
    try:
        opened.append(null := os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
        actions = [(os.POSIX_SPAWN_DUP2, null, fd) for fd in (0, 1, 2)]
        for to, fd in enumerate(handed, _FIRST_HANDED - 1):
            opened.append(high := fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, lowest))
            actions.append((os.POSIX_SPAWN_DUP2, high, to))
        return os.posix_spawn(
            program,
            list(argv),
            env,
            file_actions=actions,
            setsid=True,
            setsigmask=(),
            setsigdef=[
                number for number in signals.valid_signals() if number not in (signals.SIGKILL, signals.SIGSTOP)
            ],
        )
    finally:
        for fd in opened:
            os.close(fd)
