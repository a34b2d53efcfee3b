"""What a container is given along with its request: locks, who is asked by its filter, namespaces, mounts, a network.

The caller opens all of it, for the launcher may not do what can block; it is
open until the request has been answered.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import marshal
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

from attrs import frozen

from pycontainer.driver import State
from pycontainer.errors import ContainerError, ContainerLostError, InvalidCommandError, NotRunningError, SetupError
from pycontainer.rootfs import Overlay
from pycontainer.service import SocketProcess
from pycontainer_native import namespaces, trees
from pycontainer_native.checks import may_trace
from pycontainer_native.listener import connected
from pycontainer_native.userns import UserNamespace, id_map

if TYPE_CHECKING:
    from pycontainer.command import Command
    from pycontainer_native.launchers import Launchers
    from pycontainer_native.leases import Lease
    from pycontainer_native.network import Attachment
    from pycontainer_native.plan import Plan
    from pycontainer_native.process import NativeProcess

#: The running container of an id. Raises NotRunningError.
Find: TypeAlias = Callable[[str], "NativeProcess"]


@frozen
class Given:
    """Descriptors, in the order that the plan knows them in, and what of its network is the host's."""

    fds: Sequence[int] = ()
    leased: int = 0  #: as many of them, the first, are locks: see pycontainer_native.leases
    network: Attachment | None = None


NOTHING = Given()


@contextlib.contextmanager
def lend(
    command: Command,
    plan: Plan,
    find: Find,
    holds: Callable[[str], bool],
    make: Callable[[], Sequence[int]],
    leases: Sequence[Lease] = (),
    deadline: float | None = None,
) -> Iterator[Given]:
    """What *plan*, that of *command*, is about. Its network is the container's once this ends in peace.

    *holds* tells whether the container of an id has its addresses still.
    *make* makes its user namespace, and a network namespace that belongs to
    that: their descriptors.  The *leases* go along with it.  Raises
    InvalidCommandError, NotRunningError, SetupError, and what *make* does;
    WaitTimeoutError after *deadline*.
    """
    with contextlib.ExitStack() as stack:
        asked = stack.enter_context(connected(plan.listener, command.id, deadline))
        network = _build_network(command, stack, holds, make if plan.ids is not None else tuple)
        fds = []
        for kind, path in plan.entered:
            if network is not None and kind in ("user", "network"):
                fds.append(network.fd if kind == "network" else network.user)
                continue
            if path is not None:
                fds.append(_namespace_at(path, kind))
            else:
                fds.append(_namespace_of_another(command, kind, find))
            stack.callback(os.close, fds[-1])
        for tree in plan.cloned:
            fds.append(trees.clone(tree))
            stack.callback(os.close, fds[-1])
        locks = [lease.fd for lease in leases]
        yield Given([*locks, *asked, *fds], len(locks), network)


def is_lent(command: Command, plan: Plan) -> bool:
    """Whether *plan*, that of *command*, is about anything that :func:`lend` opens, or is to be locked."""
    return bool(plan.entered or plan.cloned or plan.listener) or upper_of(command) is not None


def upper_of(command: Command) -> str | None:
    """Where the changes of its overlay go; None: it has none, or throws them away."""
    return command.rootfs.upper if isinstance(command.rootfs, Overlay) else None


class Making(SocketProcess):
    """Namespaces that the launcher makes: it answers as it does to a start, that they are there or what has failed."""

    service = "launcher"
    on_lost: Callable[[], str] | None = None  #: called when the launcher is silent; its last words

    def __init__(self, id: str, status: socket.socket) -> None:
        super().__init__(id, status)
        self._fds: list[int] = []

    def on_message(self, data: bytes, fds: list[int]) -> None:
        kind, *values = marshal.loads(data)
        if kind == "failed":
            self.end(SetupError(*values[:2]))
        else:
            self._fds, fds[:] = fds[:], []
            self.state = State.CREATED

    def on_silence(self) -> ContainerError:
        return ContainerLostError(self.id, self.on_lost() if self.on_lost is not None else "")

    def take(self) -> list[int]:
        """The descriptors, which are the caller's from now on."""
        fds, self._fds = self._fds, []
        return fds

    def close(self) -> None:
        super().close()
        for fd in self.take():
            os.close(fd)


def make_namespaces(
    id: str,
    ids: UserNamespace,
    launchers: Launchers,
    own: Callable[[contextlib.ExitStack, socket.socket | Making], None],
    deadline: float | None = None,
    give_up: int = -1,
) -> list[int]:
    """A user namespace with *ids*, and a network namespace that belongs to it: their descriptors.

    Before the start, for what is in the network is put there from outside; and
    by the launcher, for no thread of several enters a user namespace
    (setns(2)).  *own* has a stack close what a forked child is not to keep.
    *deadline* and *give_up* are as in :class:`~pycontainer.Stdio`.  Raises
    SetupError, WaitTimeoutError, ContainerLostError.
    """
    request = marshal.dumps((None, "namespaces", id_map(ids.uids).encode(), id_map(ids.gids).encode()))
    with contextlib.ExitStack() as stack:
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise SetupError("make a status socket", error.errno or errno.EMFILE) from None
        making = Making(id, ours)
        own(stack, making)
        own(stack, theirs)
        making.on_lost = functools.partial(launchers.drop, launchers.ask(request, [theirs.fileno()]))
        theirs.close()
        making.wait_for_start(State.CREATING, deadline, give_up)
        return making.take()


def _build_network(
    command: Command, stack: contextlib.ExitStack, holds: Callable[[str], bool], make: Callable[[], Sequence[int]]
) -> Attachment | None:
    """The network of *command* if it has interfaces on bridges; the container's, once *stack* ends in peace.

    Raises InvalidCommandError, SetupError, and what *make* does.
    """
    if not any(network.mode == "bridge" for network in command.networks):
        return None
    from pycontainer_native.network import attach

    network = attach(command.networks, command.id, holds, make())

    def hand_over(kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            network.close()
        else:
            with contextlib.suppress(OSError):  # the first error is the one to tell
                network.release()

    stack.push(hand_over)
    return network


def _namespace_at(path: str, kind: str) -> int:
    """A descriptor of the namespace at *path*. Raises InvalidCommandError."""
    fd = namespaces.open_path(path, kind, "network.path" if kind == "network" else kind)
    if kind == "pid" and (tracer := namespaces.tracer_in(fd)) is not None:
        os.close(fd)
        reason = f"process {tracer} in {path} has CAP_SYS_PTRACE, and could read what sets the new one up"
        raise InvalidCommandError(kind, reason)
    return fd


def _namespace_of_another(command: Command, kind: str, find: Find) -> int:
    """A descriptor of a namespace of the container that *command* names, as in Docker of the same maker.

    Raises InvalidCommandError and NotRunningError.
    """
    if kind == "network":
        field, id = "network.container", command.networks[0].container or ""
    else:
        field, id = kind, getattr(command, kind).removeprefix("container:")
    process = find(id)
    name, _ = namespaces.TYPES[kind]
    fd = os.open(f"/proc/{process.pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
    problem: Exception | None = None
    if process.has_ended():  # then the pid may have been another process's
        problem = NotRunningError(id)
    elif namespaces.is_hosts(fd, name):
        reason = f"{id!r} has the host's own {kind} namespace: say 'host' if that is meant"
        problem = InvalidCommandError(field, reason)
    elif kind == "pid" and may_trace(process.command):
        reason = f"with CAP_SYS_PTRACE {id!r} could read what sets this one up, which was the launcher"
        problem = InvalidCommandError(field, reason)
    if problem is not None:
        os.close(fd)
        raise problem
    return fd
