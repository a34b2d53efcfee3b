"""What a container is given along with its request: namespaces to enter, clones of mounts, a network.

The caller opens all of it, for the launcher may not do what can block; it is
open until the request has been answered.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

from attrs import frozen

from pycontainer.errors import InvalidCommandError, NotRunningError
from pycontainer_native import namespaces, trees
from pycontainer_native.checks import may_trace

if TYPE_CHECKING:
    from pycontainer.command import Command
    from pycontainer_native.network import Attachment
    from pycontainer_native.plan import Plan
    from pycontainer_native.process import NativeProcess

#: The running container of an id. Raises NotRunningError.
Find: TypeAlias = Callable[[str], "NativeProcess"]


@frozen
class Given:
    """Descriptors, in the order that the plan knows them in, and what of its network is the host's."""

    fds: Sequence[int] = ()
    leased: int = 0  #: as many of them, the first, the launcher holds until nothing of the container is left
    network: Attachment | None = None


NOTHING = Given()


@contextlib.contextmanager
def lend(command: Command, plan: Plan, find: Find, holds: Callable[[str], bool]) -> Iterator[Given]:
    """What *plan*, that of *command*, is about. Its network is the container's once this ends in peace.

    *holds* tells whether the container of an id has its addresses still.
    Raises InvalidCommandError, NotRunningError, SetupError.
    """
    with contextlib.ExitStack() as stack:
        network = _build_network(command, stack, holds)
        fds = []
        for kind, path in plan.entered:
            if kind == "network" and network is not None:
                fds.append(network.fd)
                continue
            if path is not None:
                fds.append(_namespace_at(path, kind))
            else:
                fds.append(_namespace_of_another(command, kind, find))
            stack.callback(os.close, fds[-1])
        for tree in plan.cloned:
            fds.append(trees.clone(tree))
            stack.callback(os.close, fds[-1])
        yield Given(fds, network=network)


def _build_network(command: Command, stack: contextlib.ExitStack, holds: Callable[[str], bool]) -> Attachment | None:
    """The network of *command* if it has interfaces on bridges; the container's, once *stack* ends in peace.

    Raises InvalidCommandError, SetupError.
    """
    if not any(network.mode == "bridge" for network in command.networks):
        return None
    from pycontainer_native.network import attach

    network = attach(command.networks, command.id, holds)

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
