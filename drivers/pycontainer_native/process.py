"""A container as the caller holds it: a status socket, a pidfd, and what came back over them."""

from __future__ import annotations

import contextlib
import errno
import marshal
import signal as signals
import time
from typing import TYPE_CHECKING, Any

from pycontainer.driver import ExitStatus, State
from pycontainer.errors import ContainerError, ContainerLostError, SetupError, add_note
from pycontainer.service import SocketProcess, exit_status, wait_readable
from pycontainer_native.cgroups import Cgroup, freezer
from pycontainer_native.userns import of_command

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from pycontainer.command import Command
    from pycontainer_native.cgroups import Group
    from pycontainer_native.client import LauncherClient
    from pycontainer_native.network import Attachment
    from pycontainer_native.plan import Plan


class NativeProcess(SocketProcess):
    """The other end of the status socket is the launcher's; when this end closes, the container is killed."""

    service = "launcher"
    launcher: LauncherClient | None = None  #: whose child its first process is
    on_lost: Callable[[], str] | None = None  #: called when the launcher is silent; its last words

    def __init__(
        self,
        id: str,
        command: Command | None,
        status: socket.socket,
        groups: Sequence[Group],
        namespaces: Sequence[str],
        plan: Plan | None = None,
    ) -> None:
        """*command* is None where it cannot be read."""
        super().__init__(id, status)
        self._command = command
        self.namespaces = namespaces  # those that are its own
        #: Of its user namespace.
        self.ids = plan.ids if plan is not None else None if command is None else of_command(command)
        self.network: Attachment | None = None  # what of it is the host's
        self._groups = groups
        self.directory = ""  # of its cgroups, below each group's base
        self._plan = plan  # until it runs, to name the step that failed

    @property
    def command(self) -> Command:
        """What it runs. Raises ContainerError: that is not known, so nothing can be done by it."""
        if self._command is None:
            raise ContainerError(f"container {self.id!r}: its record cannot be read, so what it runs is not known")
        return self._command

    # -- what the launcher says

    def on_message(self, data: bytes, fds: list[int]) -> None:
        self._take(marshal.loads(data), fds)

    def on_silence(self) -> ExitStatus | ContainerError:
        return ContainerLostError(self.id, self.on_lost() if self.on_lost is not None else "")

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
            error = SetupError(step, number, path)
            limit = None if self._command is None else self._command.resources.memory
            if number == errno.EINTR and limit is not None:  # killed: by whom, a process outside cannot tell any more
                add_note(error, f"its memory limit is {limit} bytes, of which the set-up takes some as well")
            if number == errno.EINVAL and step == "make mounts private":
                add_note(error, "/ is no mount point, as after a chroot(2) to DIR: 'mount --bind DIR DIR' before that")
            if note:
                add_note(error, note)
            self.end(error)
            return
        if kind == "warning":
            import logging

            logging.getLogger("pycontainer.hooks").warning("container %r: %s", self.id, message[1])
            return
        if kind == "exited":
            self.end(exit_status(*message[1:5]))
            return
        self.directory, self.pid = message[-2:]
        if self.pidfd < 0:  # "started" after "created" carries them again
            self.pidfd = fds.pop(0)
            if fds:
                self.terminal = fds.pop(0)
        self.state = State.RUNNING if kind == "started" else State.CREATED
        if kind == "started":
            self._plan = None

    def has_ended(self, patience: float = 0.0) -> bool:
        """Whether its main process has, or does within *patience* seconds; poll() may say how only a moment later."""
        return wait_readable(self.pidfd, time.monotonic() + patience)

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
        deadline = time.monotonic() + freezer.TIMEOUT
        if not freezer.freeze(self.cgroup()):
            why = f"a process in it did not stop within {freezer.TIMEOUT:g} s"
            if time.monotonic() < deadline:
                why = "somebody else unpaused it meanwhile"
            raise ContainerError(f"container {self.id!r} cannot be paused: {why}, and everything goes on")
        self.change_state(State.RUNNING, State.PAUSED)

    def unpause(self) -> None:
        """Let everything in it go on. Raises OSError when it is gone."""
        freezer.thaw(self.cgroup())
        self.change_state(State.PAUSED, State.RUNNING)

    # -- ContainerProcess

    def deliver(self, signal: int) -> None:
        super().deliver(signal)
        if signal == signals.SIGKILL:
            freezer.let_die(self.cgroup())

    def close(self) -> None:
        super().close()
        self.on_lost = self.launcher = None  # of no use any more, and the one knows the other


def descendants(pids: list[int]) -> list[int]:
    """*pids* and the pids of all who come from them, of those that still are there."""
    import psutil  # type: ignore[import-untyped,unused-ignore]

    found: set[int] = set()
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= {pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))}
    return sorted(found)
