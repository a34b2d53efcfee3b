"""Handing over the listener of a container's seccomp filter: to the supervisor that the caller has connected to.

Whoever has the listener is asked about the container's calls
(seccomp_unotify(2)).  It is made by the first process, when that loads its
filter, and taken from there by the launcher; what goes with it is the OCI
runtime specification's ``containerProcessState``.
"""

from __future__ import annotations

import _socket as socket
import ctypes
import errno
import os
import sys

from pycontainer_native import abi
from pycontainer_native.hooks import state_of
from pycontainer_native.libc import syscall

#: What the kernel calls a listener in /proc/self/fd. No path looks like that, so nothing else does.
_NAME = "anon_inode:seccomp notify"


class SupervisorError(Exception):
    """The listener is not handed over: the step that failed, and its errno."""

    def __init__(self, label: str, error: int) -> None:
        self.label = label
        self.errno = error


class Supervisor:
    """The connection to the one who answers. It gets one message, and then nobody else has anything to do with it."""

    def __init__(self, head: bytes, state: bytes, status: str, connection: int) -> None:
        """*head* and *state* are JSON without the final brace: of the message, and of the container's state."""
        self.head = head
        self.state = state
        self.status = status
        self.connection = connection

    def hand_over(self, pid: int, pidfd: int, number: int, first: int) -> None:
        """Send the descriptor *number* of process *pid*, in the container whose first process is *first*.

        Raises SupervisorError.  It does not block, and no file is asked what it
        is: *number* is what the process says.
        """
        text = self.head + b', "pid": %d, "state": ' % pid + state_of(self.state, self.status, first) + b"}"
        label, listener = "take the seccomp listener", -1
        try:
            listener = syscall(abi.NR["pidfd_getfd"], pidfd, ctypes.c_long(number), 0)
            if listener == -1:
                raise OSError(ctypes.get_errno(), "pidfd_getfd")
            if os.readlink(f"/proc/self/fd/{listener}") != _NAME:
                raise OSError(errno.EBADMSG, "it is something else")
            label = "send the seccomp listener to its supervisor"
            right = listener.to_bytes(4, sys.byteorder)
            end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, self.connection)
            try:
                flags = abi.MSG_DONTWAIT | abi.MSG_NOSIGNAL
                sent = end.sendmsg([text], [(abi.SOL_SOCKET, abi.SCM_RIGHTS, right)], flags)
            finally:
                end.detach()
            if sent != len(text):
                raise OSError(errno.EMSGSIZE, "a part of it was sent")
        except OSError as error:
            raise SupervisorError(label, error.errno or errno.EPROTO) from None
        finally:
            if listener >= 0:
                os.close(listener)
            self.close()

    def close(self) -> None:
        """Hang up."""
        connection, self.connection = self.connection, -1
        if connection >= 0:
            os.close(connection)
