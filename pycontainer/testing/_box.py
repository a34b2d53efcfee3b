"""What a program of the fake driver sees: its container, simulated by a thread."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import shutil
import signal as signals
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any, NoReturn

from pycontainer.command import DEFAULT_PATH
from pycontainer.rootfs import lookup_user

if TYPE_CHECKING:
    from pycontainer.command import Command, Process, Resources

__all__ = ["Ended", "FakeContainer"]


class Ended(BaseException):
    """Ends a program from inside. A BaseException, so that a program's ``except Exception`` does not catch it."""

    def __init__(self, exit_code: int | None, signal: int | None = None) -> None:
        self.exit_code = exit_code
        self.signal = signal


class FakeContainer:
    """One simulated process, and the container around it. A program gets it as its only argument.

    *main* is the container whose ``exec`` made this process; None for the
    main process itself.  The streams are real descriptors; processes, memory
    and processor time are only counted.  Every method that may block takes
    part in signals, pause and the end: it does not return in a container that
    was killed.
    """

    def __init__(self, command: Command, process: Process, pid: int, main: FakeContainer | None = None) -> None:
        self.command = command
        self.process = process
        self.pid = pid
        self.main = main
        self.argv = process.argv
        self.cwd = process.working_dir
        self.hostname = command.hostname or command.id[:64]
        self.user = lookup_user(command.rootfs, process.user, process.additional_groups)
        self.environment = self._environment()
        self.resources: Resources = command.resources
        self.stdin = self.stdout = self.stderr = -1
        self.memory = 0  #: bytes
        self.oom_kills = 0
        self.cpu_time = 0.0  #: seconds
        self.children: list[int] = []  #: pids
        self.others: list[FakeContainer] = []  #: what ``exec`` made and has not ended
        self.paused = False
        self._handlers: dict[int, Callable[[], object]] = {}
        self._pending: deque[int] = deque()
        self._changed = threading.Condition()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._scratch: str | None = None

    def _environment(self) -> dict[str, str]:
        if self.process.env is not None:
            return dict(self.process.env)
        terminal = {"TERM": "xterm"} if self.process.tty else {}
        return {"PATH": DEFAULT_PATH, "HOME": self.user.home, **terminal}

    # -- what programs do ------------------------------------------------------

    def read(self, size: int = 65536) -> bytes:
        """At most *size* bytes of standard input, as read(2)."""
        self._block(self.stdin, select.POLLIN)
        try:
            return os.read(self.stdin, size)
        except OSError as error:
            if error.errno == errno.EIO:  # a terminal whose master is closed
                return b""
            raise

    def write(self, data: bytes | str) -> None:
        """All of *data* to standard output."""
        self._write(self.stdout, data)

    def write_error(self, data: bytes | str) -> None:
        """All of *data* to standard error."""
        self._write(self.stderr, data)

    def _write(self, fd: int, data: bytes | str) -> None:
        rest = memoryview(os.fsencode(data))
        while rest:
            self._block(fd, select.POLLOUT)
            try:
                rest = rest[os.write(fd, rest[: select.PIPE_BUF]) :]
            except BrokenPipeError:
                raise Ended(None, signals.SIGPIPE) from None

    def sleep(self, seconds: float | None = None) -> None:
        """Wait for *seconds*; None is until something ends the program."""
        self._block(timeout=seconds)

    def trap(self, signal: int, handler: Callable[[], object]) -> None:
        """From now on *signal* calls *handler*, during the next call that may block."""
        self._handlers[signal] = handler

    def exit(self, code: int) -> NoReturn:
        """End with *code*."""
        raise Ended(code)

    def open(self, path: str, mode: str = "r") -> IO[Any]:
        """Open *path* as the container sees it: its mounts, its root. Raises OSError."""
        place, read_only = self._locate(os.path.normpath(os.path.join(self.cwd, path)))
        if read_only and mode[0] != "r":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return open(place, mode)

    def _locate(self, path: str) -> tuple[str, bool]:
        """The host's path for *path*, and whether it is read-only."""
        mounts = [m for m in self.command.mounts if path == m.target or path.startswith(f"{m.target}/")]
        if mounts:
            mount = max(mounts, key=lambda mount: len(mount.target))
            rest = path[len(mount.target) :]
            source = mount.source if mount.type == "bind" else self._directory(mount.target)
            return f"{source}{rest}", mount.read_only
        if isinstance(self.command.rootfs, str):
            return f"{self.command.rootfs}{path}", self.command.read_only
        if path.startswith("/tmp/"):
            return f"{self._directory('/tmp')}{path[4:]}", self.command.read_only
        return path, True

    def _directory(self, target: str) -> str:
        """A directory of this container alone, for a tmpfs on *target*."""
        if self._scratch is None:
            self._scratch = tempfile.mkdtemp(prefix="pycontainer-fake-")
        directory = os.path.join(self._scratch, target.strip("/").replace("/", "-"))
        os.makedirs(directory, exist_ok=True)
        return directory

    def allocate(self, size: int) -> None:
        """Use *size* more bytes of memory; beyond the limit the container is killed as out of memory."""
        root = self.main or self
        root.memory += size
        limit = root.resources.memory
        if limit is not None and root.memory > limit:
            root.oom_kills += 1
            raise Ended(None, signals.SIGKILL)

    def burn(self, seconds: float) -> None:
        """Use processors for *seconds* of real time: as much of them as the quota lets it."""
        root = self.main or self
        limits = root.resources
        share = 1.0
        if limits.cpu_quota is not None and limits.cpu_quota > 0:
            share = min(1.0, limits.cpu_quota / (limits.cpu_period or 100000))
        began = time.monotonic()
        try:
            self.sleep(seconds)
        finally:
            root.cpu_time += share * (time.monotonic() - began)

    def fork(self) -> int:
        """One more process, which does nothing; its pid. Raises OSError, EAGAIN, at the limit of pids."""
        root = self.main or self
        limit = root.resources.pids_limit
        if limit is not None and 0 < limit <= len(root.pids()):
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        root.children.append(max(root.pids()) + 1)
        return root.children[-1]

    def is_directory(self, path: str) -> bool:
        """Whether *path* is a directory, as the container sees it."""
        return os.path.isdir(self._locate(path)[0])

    # -- what the driver does --------------------------------------------------

    def pids(self) -> list[int]:
        """Every process of the container."""
        return [self.pid, *self.children, *(other.pid for other in self.others)]

    def deliver(self, signal: int) -> None:
        """Send *signal* to this process. To PID 1 only those count that it handles, and SIGKILL (pid_namespaces(7))."""
        with self._changed:
            self._pending.append(signal)
            self._notify()

    def freeze(self, paused: bool) -> None:
        """Pause this process and what ``exec`` made, or let them go on."""
        for one in (self, *self.others):
            with one._changed:
                one.paused = paused
                one._notify()

    def finish(self) -> None:
        """The program has ended: give everything back."""
        with self._changed:
            if self._wake >= 0:
                os.close(self._wake)
                self._wake = -1
        for fd in {self.stdin, self.stdout, self.stderr} - {-1}:
            os.close(fd)
        self.stdin = self.stdout = self.stderr = -1
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _notify(self) -> None:
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)
        self._changed.notify_all()

    def _block(self, fd: int = -1, event: int = 0, timeout: float | None = None) -> None:
        """Wait for *event* on *fd*, or for *timeout* seconds, while signals and pause do what they do."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            self._attend()
            poll = select.poll()
            poll.register(self._wake, select.POLLIN)
            if fd >= 0:
                poll.register(fd, event)
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready = dict(poll.poll(None if left is None else min(left * 1000, 2**31 - 1)))
            if self._wake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
            elif ready or left == 0:
                return

    def _attend(self) -> None:
        """Stay here while paused, and act on the signals that came."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not self.paused or signals.SIGKILL in self._pending)
                if signals.SIGKILL in self._pending:
                    raise Ended(None, signals.SIGKILL)
                if not self._pending:
                    return
                signal = self._pending.popleft()
            if signal in self._handlers:
                self._handlers[signal]()
            elif (self.command.init or self.main is not None) and signal in _FATAL:
                raise Ended(None, signal)


#: Signals that end a process by default, but for the real-time ones (signal(7)).
_FATAL = frozenset(signals.Signals) - {
    signals.SIGCHLD,
    signals.SIGCONT,
    signals.SIGSTOP,
    signals.SIGTSTP,
    signals.SIGTTIN,
    signals.SIGTTOU,
    signals.SIGURG,
    signals.SIGWINCH,
}
