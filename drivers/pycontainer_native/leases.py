"""What a container has for itself as long as anything of it is left: flock(2)s, which end with who holds them.

The caller takes the lock, and sends the descriptor along with the request; the
launcher, or the monitor, holds it until the cgroups are gone.  So the lock of a
container whose caller, launcher and monitor were killed is free, at once; and
what is left of the container itself a sweep ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time

from pycontainer.errors import InvalidCommandError, SetupError
from pycontainer_native import userns
from pycontainer_native.userns import UserNamespace

#: How long one that has just been closed, or killed, may take to be gone (seconds).
PATIENCE = 1.0


class Lease:
    """A descriptor that has a lock, and is this object's."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        """Let go of it; whoever it was sent to has it still."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def lease_ids() -> tuple[UserNamespace, Lease]:
    """A range of ids for one container alone: see :func:`pycontainer_native.userns.lease_range`. Raises SetupError."""
    try:
        ids, fd = userns.lease_range()
    except OSError as error:
        raise SetupError("reserve a range of ids", error.errno or errno.EPROTO, error.filename) from None
    return ids, Lease(fd)


def lease_upper(path: str) -> Lease:
    """The directory *path*, where an overlay's changes go, for one container alone.

    What several overlays do with one at a time is undefined (overlayfs.rst).
    The lock is the directory's own, by whatever name it is called.  Raises
    InvalidCommandError: another container has it. SetupError.
    """
    deadline = time.monotonic() + PATIENCE
    try:
        while (fd := _locked(path)) < 0:
            if time.monotonic() >= deadline:
                reason = f"{path} is in use: a directory takes the changes of one container at a time"
                raise InvalidCommandError("rootfs.upper", reason)
            time.sleep(0.005)
    except OSError as error:
        raise SetupError("lock the upper directory", error.errno or errno.EPROTO, path) from None
    return Lease(fd)


def _locked(path: str) -> int:
    """A descriptor of the directory with its lock; -1: somebody else has that."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException as error:
        os.close(fd)
        if isinstance(error, BlockingIOError):
            return -1
        raise
    return fd
