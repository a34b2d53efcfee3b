"""A detached container of the fake driver: it lives as long as the driver, and its log is in memory."""

from __future__ import annotations

import contextlib
import os
import re
import select
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pycontainer.driver import ContainerInfo, ContainerProcess, ExitStatus, State, Stdio
from pycontainer.logs import LogRecord

if TYPE_CHECKING:
    from pycontainer.command import Command
    from pycontainer.driver import LogLimits
    from pycontainer.testing.fake import FakeProcess

__all__ = ["FakeDetached"]


class FakeDetached:
    """What goes on when everybody has let go of a container: its *process*, its log, and how it ended."""

    process: FakeProcess

    def __init__(self, command: Command, limits: LogLimits) -> None:
        self.command = command
        self._created = time.time()
        self._ended: float | None = None
        self._limit = limits.size * limits.files
        self._log: deque[LogRecord] = deque()
        self._size = 0  # bytes in the log
        self._dropped = 0  # records
        self._changed = threading.Condition()
        self._pipes: dict[int, str] = {}
        self._pump = threading.Thread(target=self._write, name=f"fake-log-{command.id}", daemon=True)

    @contextlib.contextmanager
    def streams(self) -> Iterator[Stdio]:
        """Its stdio: /dev/null, and two pipes that lead to the log."""
        theirs = [os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)]
        try:
            for stream in ("stdout", "stderr"):
                ours, end = os.pipe2(os.O_CLOEXEC)
                self._pipes[ours] = stream
                theirs.append(end)
            yield Stdio(theirs[0], theirs[1], theirs[2])
        except BaseException:
            for fd in self._pipes:
                os.close(fd)
            raise
        finally:
            for fd in theirs:
                os.close(fd)

    def watch(self) -> None:
        """It is about to run: write its log."""
        terminal, self.process.terminal = self.process.terminal, None
        if terminal is not None:
            self._pipes[terminal] = "stdout"
        self._pump.start()

    def _write(self) -> None:
        poll = select.poll()
        for fd in self._pipes:
            poll.register(fd, select.POLLIN)
        while self._pipes:
            for fd, _ in poll.poll():
                try:
                    data = os.read(fd, 65536)
                except OSError:  # EIO: a terminal that nobody has open any more
                    data = b""
                if not data:
                    poll.unregister(fd)
                    os.close(fd)
                    del self._pipes[fd]
                    continue
                now, stream = time.time(), self._pipes[fd]
                with self._changed:
                    self._log += (LogRecord(stream, now, line) for line in re.findall(rb"[^\n]*\n|[^\n]+", data))
                    self._size += len(data)
                    while self._size > self._limit:
                        self._size -= len(self._log.popleft().data)
                        self._dropped += 1
                    self._changed.notify_all()

    def end(self) -> None:
        """Its program has ended: what it has printed is in the log when this returns."""
        if self._pump.ident is not None:
            self._pump.join()
        with self._changed:
            self._ended = time.time()
            self._changed.notify_all()

    def info(self) -> ContainerInfo:
        """What there is to say about it."""
        status = self.process.poll()
        running = status is None
        state = self.process.state if running else State.STOPPED
        pid = self.process.pid if running else None
        ended = None if running else self._ended
        return ContainerInfo(self.command.id, state, pid, self.command, self._created, ended, status)

    def attach(self) -> FakeAttached:
        """One more who is attached to it."""
        return FakeAttached(self.process)

    def records(self, follow: bool, tail: int | None) -> Iterator[LogRecord]:
        """What it has printed."""
        with self._changed:
            start = self._dropped + (0 if tail is None else max(0, len(self._log) - tail))
        while True:
            with self._changed:
                while follow and start >= self._dropped + len(self._log) and self._ended is None:
                    self._changed.wait()
                start = max(start, self._dropped)
                there = list(self._log)[start - self._dropped :]
            start += len(there)
            yield from there
            if not follow or (not there and self._ended is not None):
                return


class FakeAttached(ContainerProcess):
    """A detached container, as one of those sees it who are attached to it."""

    def __init__(self, process: FakeProcess) -> None:
        self.id = process.id
        self.pid = process.pid
        self.pidfd = -1
        self.terminal = None
        self._process = process
        self._event = os.dup(process.fileno())

    def poll(self) -> ExitStatus | None:
        return self._process.poll()

    def wait(self, timeout: float | None = None) -> ExitStatus:
        return self._process.wait(timeout)

    def send_signal(self, signal: int) -> None:
        self._process.send_signal(signal)

    def fileno(self) -> int:
        return self._event

    def close(self) -> None:
        event, self._event = self._event, -1
        if event >= 0:
            os.close(event)

    def __del__(self) -> None:
        if getattr(self, "_event", -1) >= 0:
            os.close(self._event)
