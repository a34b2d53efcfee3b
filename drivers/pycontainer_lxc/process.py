"""A container, or a further process in one, as the caller holds it: a status socket, and what the guard says on it."""

from __future__ import annotations

import contextlib
import marshal
import signal as signals
import socket
from collections.abc import Callable
from typing import Any

from pycontainer.driver import ExitStatus, State
from pycontainer.errors import (
    AlreadyExistsError,
    ContainerError,
    ContainerLostError,
    NotRunningError,
    SetupError,
    add_note,
)
from pycontainer.service import SocketProcess, exit_status
from pycontainer_lxc import cgroups

__all__ = ["LxcProcess", "ToolProcess"]


class LxcProcess(SocketProcess):
    """The other end of the status socket is the guard's; when this end closes, the process is killed."""

    service = "guard"
    message_size = 1 << 16  # LXC's own words are among it
    on_lost: Callable[[], str] | None = None  #: called when the guard is silent; its last words

    def __init__(self, id: str, status: socket.socket, on_lost: Callable[[], str]) -> None:
        super().__init__(id, status)
        self.cgroups: dict[str, str] = {}  #: its directories, by controller; "" is cgroup2's
        self.on_lost = on_lost

    # -- what the guard says

    def on_message(self, data: bytes, fds: list[int]) -> None:
        self._take(*marshal.loads(data), fds=fds)

    def on_silence(self) -> ExitStatus | ContainerError:
        return ContainerLostError(self.id, self.on_lost() if self.on_lost is not None else "")

    def _take(self, kind: str, *values: Any, fds: list[int]) -> None:
        if kind in ("created", "started"):
            self.pid = values[0]
            if fds:
                self.pidfd = fds.pop()
            self.state = State.CREATED if kind == "created" else State.RUNNING
        elif kind == "exited":
            self.end(exit_status(*values))
        elif kind == "lost":
            self.end(ContainerLostError(self.id, values[0]))
        elif kind == "failed":
            step, number, path, note = values
            error = (
                AlreadyExistsError(self.id) if step == "name the container" else SetupError(step, number, path or None)
            )
            add_note(error, note)
            self.end(error)
        else:
            self.end(ExitStatus(values[0] if values[0] >= 0 else None, None, reason=values[1]))

    def deliver(self, signal: int) -> None:
        super().deliver(signal)
        if signal == signals.SIGKILL:
            cgroups.let_die(self.cgroups)

    def close(self) -> None:
        super().close()
        self.on_lost = None  # it will not be asked any more, and knows the guard


class ToolProcess(LxcProcess):
    """One of LXC's tools that does something to a container: all there is to hear of it is its end."""

    def wait_for_start(self, before: State = State.CREATING, deadline: float | None = None, give_up: int = -1) -> None:
        with contextlib.suppress(NotRunningError):
            super().wait_for_start(before, deadline, give_up)
