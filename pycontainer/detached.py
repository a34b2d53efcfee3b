"""The life of a detached container: one that outlives whoever made it.

A container that was made with ``detach=True`` belongs to a monitor of its
driver's.  :mod:`pycontainer.recorded` finds it again.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pycontainer import _fields as check
from pycontainer.driver import ContainerProcess, ExecutionDriver, Feature, LogLimits, State, Stdio
from pycontainer.errors import (
    ContainerError,
    ContainerLostError,
    NotRunningError,
    UnsupportedError,
)
from pycontainer.lifecycle import Lifecycle

if TYPE_CHECKING:
    from pycontainer.command import Command
    from pycontainer.logs import LogRecord

__all__ = ["DetachedLifecycle", "require_restore"]


#: What this process has started. A list only where pytest looks for what tests leave running, also without an object:
#: otherwise nothing may grow with their number.
started: list[DetachedLifecycle] | None = [] if "pycontainer.testing.plugin" in sys.modules else None


def require_restore(driver: ExecutionDriver) -> None:
    """Raise UnsupportedError unless *driver* has Feature.RESTORE."""
    if Feature.RESTORE not in driver.features():
        raise UnsupportedError(driver.name, Feature.RESTORE)


class DetachedLifecycle(Lifecycle):
    """The life of a detached container, as one of the processes sees it that are attached to it."""

    detached = True

    def __init__(self, driver: ExecutionDriver, command: Command, log: LogLimits | None = None) -> None:
        super().__init__(driver, command)
        self._log = LogLimits() if log is None else log
        check.instance("log_limits", self._log, LogLimits)
        self._let_go = False

    @property
    def state(self) -> State:
        """The state, looked up now: others may have paused it."""
        if not (self.inherited or self._let_go):
            self._look()
            if self.process is not None and not self.ended:
                state = self.driver.info(self.id).state
                if state is not State.STOPPED:  # of the end poll() tells, with the status
                    self._state = state
        return self._state

    @property
    def can_start(self) -> bool:
        return self.can_create

    def create(self, stdio: Stdio) -> ContainerProcess:
        """Not of a detached one. Raises ContainerError."""
        raise ContainerError(f"container {self.id!r} is detached: it is started in one step")

    def start(self, stdio: Stdio | None = None) -> ContainerProcess:
        """Run the program, in nobody's but its monitor's care. Raises as :meth:`Lifecycle.start`."""
        with self._verb():
            self._require(self.can_create, "started already")
            require_restore(self.driver)
            start = self._begin(stdio)
        stdio = stdio or Stdio(-1, -1, -1)
        deadline = stdio.deadline
        process = self._make(
            start, lambda _: self.driver.start_detached(self.command, self._log, deadline), stdio, State.RUNNING
        )
        if started is not None:
            started.append(DetachedLifecycle(self.driver, self.command))
        return process

    def _undo(self) -> None:
        """Remove what has been started for nobody."""
        self.remove(force=True)

    def restore(self) -> None:
        """Attach this process, anew if it was: also after :meth:`close`, and in a forked child.

        Raises ContainerNotFoundError.
        """
        if self.inherited:
            self._lock, self._waiting, self._start = threading.RLock(), threading.RLock(), None
        process = self.driver.restore(self.id)
        with self._lock:
            before, self.process = self.process, process
            self._maker, self._let_go = os.getpid(), False
            self.status = self._lost = None
            self._seen = False
            self._state = State.RUNNING
        if before is not None:
            before.close()
        self._look()

    def close(self) -> None:
        """Let go of it: it goes on."""
        if self.process is not None and not (self.inherited or self.ended):
            self._let_go = True
            self.process.close()

    def abandon(self) -> bool:
        """For a finalizer: likewise."""
        self.close()
        return False

    def logs(self, follow: bool, tail: int | None) -> Iterator[LogRecord]:
        """What it has printed. Raises ContainerNotFoundError."""
        return self.driver.logs(self.id, follow, tail)

    def remove(self, force: bool) -> None:
        """Delete it; with *force* it is killed first. Raises ContainerError when it runs."""
        if force and not (self.process is None or self.ended):
            if self._let_go or self.inherited:
                self.restore()
            with contextlib.suppress(ContainerLostError, NotRunningError):
                self.kill_all()
            with contextlib.suppress(ContainerLostError, NotRunningError):  # one that was about to end is waited for
                self.wait()
        self.driver.delete(self.id)
        if not self.ended:
            self.close()

    def _claim(self) -> None:
        """Nothing: the id is the host's, and the driver refuses one that is taken."""

    def _clean(self, first: BaseException | None = None) -> None:
        """Nothing: what is left is there to be read, until it is deleted."""

    def _check_maker(self) -> None:
        if self.inherited or self._let_go:
            why = "a fork inherits none" if self.inherited else "this object has let go of it"
            raise ContainerError(f"container {self.id!r} is detached, and {why}: restore() attaches it again")
