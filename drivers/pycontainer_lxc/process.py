"""A container, or a further process in one, as the caller holds it: a status socket, and what the guard says on it."""

from __future__ import annotations

import contextlib
import marshal
import os
import select
import signal as signals
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from pycontainer.driver import ContainerProcess, ExitStatus, State
from pycontainer.errors import (
    AlreadyExistsError,
    ContainerError,
    ContainerLostError,
    NotRunningError,
    SetupError,
    WaitTimeoutError,
    add_note,
)
from pycontainer_lxc.job import descriptors

__all__ = ["LxcProcess", "reason", "wait_readable"]


class LxcProcess(ContainerProcess):
    """The other end of the status socket is the guard's; when this end closes, the process is killed."""

    def __init__(self, id: str, status: socket.socket, on_lost: Callable[[], str]) -> None:
        self.id = id
        self.pid = -1
        self.pidfd = -1
        self.terminal: int | None = None
        self.state = State.CREATING
        self.cgroups: dict[str, str] = {}  #: its directories, by controller; "" is cgroup2's
        self._status = status
        self._on_lost = on_lost
        self._being_started = True
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._exit: ExitStatus | None = None
        self._error: ContainerError | None = None

    # -- what the guard says

    def _receive(self, starter: bool = False) -> bool:
        """Take in one message without blocking; False when there is none, or it is for the *starter* to take."""
        with self._lock:
            if self._being_started and not starter:
                return False
            if self._exit is not None or self._error is not None:
                return True
            if self._status.fileno() < 0:
                self.state = State.STOPPED
                self._error = ContainerLostError(self.id, "it was closed while it ran")
                return True
            try:
                # not recv_fds(), which ignores its flags before Python 3.12
                flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
                data, control, _, _ = self._status.recvmsg(1 << 16, socket.CMSG_SPACE(8), flags)
            except BlockingIOError:
                return False
            except OSError:
                data, control = b"", []
            if not data:
                self.state = State.STOPPED
                self._error = ContainerLostError(self.id, self._on_lost())
            else:
                self._take(*marshal.loads(data), fds=descriptors(control))
            return True

    def _take(self, kind: str, *values: Any, fds: list[int]) -> None:
        if kind in ("created", "started"):
            self.pid = values[0]
            if fds:
                self.pidfd = fds[0]
            self.state = State.CREATED if kind == "created" else State.RUNNING
            return
        self.state = State.STOPPED
        if kind == "exited":
            code, signal, oom_killed, note = values
            self._exit = ExitStatus(code, signal, oom_killed, reason(code, signal, oom_killed, note))
        elif kind == "lost":
            self._error = ContainerLostError(self.id, values[0])
        elif kind == "failed":
            step, number, path, note = values
            self._error = SetupError(step, number, path or None)
            add_note(self._error, note)
        else:
            self._exit = ExitStatus(values[0] if values[0] >= 0 else None, None, reason=values[1])

    def open_gate(self) -> None:
        """Let a created container execute its program; wait_for_start is next."""
        with self._lock:
            self._being_started = True
        with contextlib.suppress(OSError):  # then it is dead, and wait_for_start says how
            self._status.send(b"s", socket.MSG_NOSIGNAL)

    def wait_for_start(self, before: State = State.CREATING, deadline: float | None = None) -> None:
        """Block until its state no longer is *before*. Raises SetupError, AlreadyExistsError, ContainerLostError.

        Until then only this reads from the socket: a poll() in another thread
        would take away what this waits for.  NotRunningError when a created
        one was killed, WaitTimeoutError when it is not over at *deadline*, of
        time.monotonic().
        """
        began = time.monotonic()
        try:
            while self.state is before:
                if not self._receive(starter=True):
                    left = None if deadline is None else deadline - time.monotonic()
                    if left is not None and left <= 0:
                        raise WaitTimeoutError(self.id, max(0.0, (deadline or 0.0) - began))
                    wait_readable(self._status.fileno(), left)
        finally:
            self._being_started = False
        if before is State.CREATED and self._exit is not None:
            raise NotRunningError(self.id)
        if self._error is not None:
            if isinstance(self._error, SetupError) and self._error.step == "name the container":
                raise AlreadyExistsError(self.id)
            raise self._error

    # -- ContainerProcess

    def _check_owner(self) -> None:
        if os.getpid() != self._owner:
            raise ContainerError(f"container {self.id!r} belongs to the process that this one was forked from")

    def poll(self) -> ExitStatus | None:
        self._check_owner()
        while self._exit is None and self._error is None and self._receive():
            pass
        if self._error is not None:
            raise self._error
        return self._exit

    def wait(self, timeout: float | None = None) -> ExitStatus:
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            status = self.poll()
            if status is not None:
                return status
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise WaitTimeoutError(self.id, timeout or 0.0)
            wait_readable(self._status.fileno(), left)

    def send_signal(self, signal: int) -> None:
        self._check_owner()
        if self.poll() is None and self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signals.pidfd_send_signal(self.pidfd, signal)

    def fileno(self) -> int:
        return self._status.fileno()

    def close(self) -> None:
        if os.getpid() == self._owner:  # whoever else has copies of this end
            with contextlib.suppress(OSError):
                self._status.shutdown(socket.SHUT_RDWR)
        self._status.close()
        pidfd, self.pidfd = self.pidfd, -1
        terminal, self.terminal = self.terminal, None
        for fd in (pidfd, terminal):
            if fd is not None and fd >= 0:
                os.close(fd)

    def __del__(self) -> None:
        if hasattr(self, "_status") and not sys.is_finalizing():
            self.close()


def wait_readable(fd: int, timeout: float | None) -> None:
    """Wait until *fd* is readable, at most *timeout* seconds. Not select(2): descriptors may be beyond 1024."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    poll.poll(None if timeout is None else max(0, round(timeout * 1000 + 0.5)))


def reason(code: int | None, signal: int | None, oom_killed: bool, note: str) -> str:
    """The sentence of an ExitStatus."""
    if signal is None:
        text = f"exited with code {code}"
    else:
        try:
            text = f"killed by signal {signal} ({signals.Signals(signal).name})"
        except ValueError:
            text = f"killed by signal {signal}"
    if oom_killed:
        text += "; out of memory: the kernel killed processes of it at the memory limit"
    return f"{text}; {note}" if note else text
