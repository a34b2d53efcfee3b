"""The caller's side of a seccomp filter that asks: what it may ask about, and who is asked.

OCI's ``linux.seccomp.listenerPath`` is a socket on which a supervisor listens.
It is connected to before anything is made, and the launcher sends the filter's
listener there (:mod:`pycontainer_native.supervisor`).

It is handed over right before execve, and for a further process anew.  With an
init it is so before that and its payload part: both have the one filter, and
what the init calls cannot be asked about.  Refused are ``start_container``
hooks, each of which would have a listener of its own.
"""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from attrs import frozen

from pycontainer.errors import InvalidCommandError, SetupError, WaitTimeoutError
from pycontainer.seccomp import may_pass, notifying
from pycontainer_native import abi

if TYPE_CHECKING:
    from pycontainer.command import Command

#: What pidfd_getfd(2) takes, of a process that nobody else may look into.
CAP_SYS_PTRACE = 19

#: How many descriptors of it there are on its way.
DESCRIPTORS = 2

#: How long a supervisor that does not accept connections is waited for (seconds).
TIMEOUT = 5.0

#: What is called between the loading of the filter and execve, so that nobody can be asked about it: for as long as the
#: supervisor has no listener it cannot answer, and the process's memory is its interpreter's.
#: With what is known of the arguments: the descriptor, and how many bytes.
HANDSHAKE = {"write": {0: abi.CHANNEL_FD, 2: 16}, "read": {0: abi.CHANNEL_FD, 2: 1}}
ALWAYS = frozenset((*HANDSHAKE, "execve", "brk", "mmap", "munmap"))
#: What an init calls under the filter, which is its payload's, and as long as it lives.
OF_INIT = frozenset(
    (
        *("clone", "close", "close_range", "exit_group", "getpid", "ioctl", "kill", "prctl"),
        *("rt_sigprocmask", "rt_sigtimedwait", "setpgid", "wait4"),
    )
)
#: Without no_new_privileges loading the filter takes a right that the last steps give up: they come after it.
OF_LAST_STEPS = frozenset(
    (
        *("capset", "clone", "close_range", "exit_group", "fchdir", "fcntl", "getcwd", "ioctl", "openat2", "ppoll"),
        *("prctl", "recvfrom", "sendto", "setgroups", "setresgid", "setresuid", "setsid", "umask"),
    )
)


@frozen
class Listener:
    """Who is asked, and what is told about the process whose calls are."""

    path: str
    metadata: str | None
    state: dict[str, Any]  #: the constant part of the container's OCI state
    status: str  #: and what it is when the listener is handed over

    def wire(self, ident: str) -> tuple[bytes, bytes, str]:
        """What the launcher's Supervisor takes, for the container *ident*."""
        message = {"ociVersion": self.state["ociVersion"], "fds": ["seccompFd"]}
        if self.metadata is not None:
            message["metadata"] = self.metadata
        head, state = (json.dumps(part)[:-1].encode() for part in (message, {"id": ident, **self.state}))
        return head, state, self.status


def of_profile(profile: Mapping[str, Any], state: dict[str, Any], status: str) -> Listener:
    """The listener of *profile*, which asks."""
    return Listener(profile["listenerPath"], profile.get("listenerMetadata"), state, status)


def check(command: Command) -> Iterator[InvalidCommandError]:
    """What the profile of *command*, which asks, cannot ask about, and what it cannot be together with."""
    profile = command.seccomp
    assert isinstance(profile, Mapping)
    asked = notifying(profile)
    needed = ALWAYS
    if command.init:
        needed |= OF_INIT
    if not command.process.no_new_privileges:
        needed |= OF_LAST_STEPS
    for name in sorted(asked & needed):
        whose = "the set-up" if name in ALWAYS else "with init, or without no_new_privileges, the set-up"
        reason = f"{name} cannot be asked about (SCMP_ACT_NOTIFY): {whose} calls it when the filter is loaded"
        yield InvalidCommandError("seccomp.syscalls", reason)
    for name, known in HANDSHAKE.items():
        if name not in asked and not may_pass(profile, name, known):
            reason = f"{name} has to be allowed: with SCMP_ACT_NOTIFY the set-up calls it when the filter is loaded"
            yield InvalidCommandError("seccomp.syscalls", reason)
    if command.hooks is not None and command.hooks.start_container:
        reason = "each has a filter of its own, and with SCMP_ACT_NOTIFY the supervisor gets the container's alone"
        yield InvalidCommandError("hooks.start_container", reason)


def connect(path: str, id: str, deadline: float | None = None) -> socket.socket:
    """A connection to whoever listens at *path*. Raises SetupError, WaitTimeoutError; blocks no longer than TIMEOUT."""
    began = time.monotonic()
    patience = TIMEOUT if deadline is None else max(0.001, min(TIMEOUT, deadline - began))
    with contextlib.ExitStack() as undo:
        try:
            connection = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            # Where the queue is full the kernel waits for so long; without it connect(2) would do so for ever.
            seconds, fraction = divmod(patience, 1)
            timeout = struct.pack("@ll", int(seconds), int(fraction * 1e6))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
            connection.connect(path)
        except OSError as error:
            number = error.errno or errno.EPROTO
            if number in (errno.EAGAIN, errno.EINPROGRESS):
                if deadline is not None and time.monotonic() >= deadline:
                    raise WaitTimeoutError(id, time.monotonic() - began) from None
                number = errno.ETIMEDOUT
            raise SetupError("connect to seccomp.listenerPath", number, path) from None
        undo.pop_all()
    return connection


@contextlib.contextmanager
def connected(listener: Listener | None, id: str, deadline: float | None = None) -> Iterator[list[int]]:
    """The descriptors that a request has first of all, because its filter asks. Raises as :func:`connect`."""
    if listener is None:
        yield []
        return
    with connect(listener.path, id, deadline) as connection:
        yield [connection.fileno()]
