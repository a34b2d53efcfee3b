"""A container as the caller holds it: a status socket, a pidfd, and what came back over them."""

from __future__ import annotations

import contextlib
import errno
import marshal
import os
import select
import signal as signals
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from pycontainer.driver import ContainerProcess, ExitStatus, State
from pycontainer.errors import ContainerError, ContainerLostError, NotRunningError, SetupError, WaitTimeoutError
from pycontainer_native.cgroups import Cgroup, freezer
from pycontainer_native.userns import of_command

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pycontainer.command import Command
    from pycontainer_native.cgroups import Group
    from pycontainer_native.network import Attachment
    from pycontainer_native.plan import Plan


class NativeProcess(ContainerProcess):
    """The other end of the status socket is the launcher's; when this end closes, the container is killed."""

    def __init__(
        self,
        command: Command,
        status: socket.socket,
        groups: Sequence[Group],
        namespaces: Sequence[str],
        plan: Plan | None = None,
    ) -> None:
        self.id = command.id
        self.command = command
        self.namespaces = namespaces  # those that are its own
        self.ids = plan.ids if plan is not None else of_command(command)  # of its user namespace
        self.pid = -1
        self.pidfd = -1
        self.terminal: int | None = None
        self.network: Attachment | None = None  # what of it is the host's
        self._groups = groups
        self.directory = ""  # of its cgroups, below each group's base
        self.state = State.CREATING
        self._plan = plan  # until it runs, to name the step that failed
        self._status = status
        self.on_lost: Callable[[], str] | None = None  #: called when the launcher is dead; its last words
        self._being_started = True
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._exit: ExitStatus | None = None
        self._error: ContainerError | None = None

    # -- what the launcher says

    def _receive(self, starter: bool = False) -> bool:
        """Take in one message without blocking; False when there is none, or it is for the *starter* to take."""
        with self._lock:
            if self._being_started and not starter:
                return False
            if self._exit is not None or self._error is not None:
                return True
            try:
                data, control, flags, _ = self._status.recvmsg(4096, 64, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return False
            except OSError as error:
                data, control, flags = b"", [], 0
                if starter and not isinstance(error, ConnectionResetError):
                    self.state = State.STOPPED
                    self._error = SetupError("hear from the launcher", error.errno or errno.EPROTO)
                    self._hang_up()
                    return True
            if not data:
                self.state = State.STOPPED
                self._on_silence()
                return True
            rights = b"".join(rights for _, _, rights in control)
            fds = [int.from_bytes(rights[i : i + 4], sys.byteorder) for i in range(0, len(rights), 4)]
            if flags & socket.MSG_CTRUNC:
                for fd in fds:
                    os.close(fd)
                self.state = State.STOPPED
                self._error = SetupError("receive descriptors", errno.EMFILE)
                self._hang_up()
                return True
            try:
                self._take(marshal.loads(data), fds)
            finally:
                while fds:  # "started" after "created" carries them again
                    os.close(fds.pop())
            return True

    def _on_silence(self) -> None:
        """The other end is closed, and has not said how it ended."""
        self._error = ContainerLostError(self.id, self.on_lost() if self.on_lost is not None else "")

    def _take(self, message: tuple[Any, ...], fds: list[int]) -> None:
        kind = message[0]
        if kind in ("failed", "exited") and self.network is not None:
            with contextlib.suppress(OSError):  # the kernel takes it away as well, a little later
                self.network.release()
        if kind == "failed":
            step, number, note = message[1:4]
            path = None
            if isinstance(step, int) and self._plan is not None:
                step, path = self._plan.step_at(step)
            self.state = State.STOPPED
            self._error = SetupError(step, number, path)
            if note:
                self._error.__notes__ = [note]  # type: ignore[attr-defined]
            return
        if kind == "warning":
            import logging

            logging.getLogger("pycontainer.hooks").warning("container %r: %s", self.id, message[1])
            return
        if kind == "exited":
            code, signal, oom_kills, note = message[1:5]
            self.state = State.STOPPED
            self._exit = status_of(code, signal, oom_kills, note)
            return
        self.directory, self.pid = message[-2:]
        if self.pidfd < 0:
            self.pidfd = fds.pop(0)
            if fds:
                self.terminal = fds.pop(0)
        self.state = State.RUNNING if kind == "started" else State.CREATED
        if kind == "started":
            self._plan = None

    def wait_for_start(self, before: State, deadline: float | None = None) -> None:
        """Block until its state no longer is *before*.

        Until then only this reads from the socket: a poll() in another thread
        would take away what this waits for.  *deadline* is of time.monotonic().
        Raises SetupError, ContainerLostError, WaitTimeoutError.
        """
        began = time.monotonic()
        try:
            while self.state is before:
                if not self._receive(starter=True):
                    left = None if deadline is None else deadline - time.monotonic()
                    if left is not None and left <= 0:
                        raise WaitTimeoutError(self.id, max(0.0, (deadline or 0.0) - began))
                    select_one(self._status.fileno(), left)
        finally:
            self._being_started = False
        if self._error is not None:
            raise self._error
        if self._exit is not None:
            raise NotRunningError(self.id)  # killed while it was created

    def open_gate(self) -> None:
        """Let a created container execute its program; wait_for_start is next."""
        with self._lock:
            self._being_started = True
        with contextlib.suppress(OSError):  # then it is dead, and wait_for_start says how
            self._status.send(b"s", socket.MSG_NOSIGNAL)

    def has_ended(self, patience: float = 0.0) -> bool:
        """Whether its main process has, or does within *patience* seconds; poll() may say how only a moment later."""
        return self.pidfd < 0 or bool(select_one(self.pidfd, patience))

    @property
    def joins(self) -> int:
        """How many v1 hierarchies it has joined."""
        return sum(group.version == 1 for group in self._groups)

    def cgroup(self) -> Cgroup:
        """Its live cgroup."""
        return Cgroup(tuple((g.version, g.controllers, f"{g.base}/{self.directory}") for g in self._groups))

    # -- the freezer

    def pause(self) -> None:
        """Freeze everything in it. Raises ContainerError when something in it does not stop; OSError: it is gone."""
        if not freezer.freeze(self.cgroup()):
            raise ContainerError(
                f"container {self.id!r} cannot be paused: a process in it did not stop within {freezer.TIMEOUT:g} s, "
                "and everything goes on"
            )
        self._change_state(State.RUNNING, State.PAUSED)

    def unpause(self) -> None:
        """Let everything in it go on. Raises OSError when it is gone."""
        freezer.thaw(self.cgroup())
        self._change_state(State.PAUSED, State.RUNNING)

    def _change_state(self, before: State, after: State) -> None:
        with self._lock:
            if self.state is before:  # else it ended in the meantime
                self.state = after

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
            select_one(self._status.fileno(), left)

    def send_signal(self, signal: int) -> None:
        self._check_owner()
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                signals.pidfd_send_signal(self.pidfd, signal)
            if signal == signals.SIGKILL:
                freezer.let_die(self.cgroup())

    def fileno(self) -> int:
        return self._status.fileno()

    def _hang_up(self) -> None:
        """End the connection, whoever else has copies of this end; in a forked child only its own copy."""
        if os.getpid() == self._owner:
            with contextlib.suppress(OSError):
                self._status.shutdown(socket.SHUT_RDWR)

    def leave(self) -> None:
        if os.getpid() == self._owner:
            with contextlib.suppress(OSError):
                self._status.shutdown(socket.SHUT_WR)  # how it ends is still told

    def close(self) -> None:
        self._hang_up()
        self._status.close()
        pidfd, self.pidfd = self.pidfd, -1
        terminal, self.terminal = self.terminal, None
        for fd in (pidfd, terminal):
            if fd is not None and fd >= 0:
                os.close(fd)

    def __del__(self) -> None:
        self.close()


def descendants(pids: list[int]) -> list[int]:
    """*pids* and the pids of all who come from them, of those that still are there."""
    import psutil  # type: ignore[import-untyped,unused-ignore]

    found: set[int] = set()
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= {pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))}
    return sorted(found)


def select_one(fd: int, timeout: float | None) -> list[tuple[int, int]]:
    """Wait until *fd* is readable, at most *timeout* seconds. Not select(2): descriptors may be beyond 1024."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return poll.poll(None if timeout is None else max(0, round(timeout * 1000 + 0.5)))


def status_of(code: int | None, signal: int | None, oom_kills: int, note: str) -> ExitStatus:
    """The exit status that a launcher or a monitor tells."""
    return ExitStatus(code, signal, oom_kills > 0, _reason(code, signal, oom_kills, note))


def _reason(code: int | None, signal: int | None, oom_kills: int, note: str) -> str:
    if signal is None:
        text = f"exited with code {code}"
    else:
        try:
            text = f"killed by signal {signal} ({signals.Signals(signal).name})"
        except ValueError:
            text = f"killed by signal {signal}"
    if oom_kills:
        text += f"; out of memory: the kernel killed {oom_kills} of its processes at the memory limit"
    return f"{text}; {note}" if note else text
