"""Namespaces that exist before the container does: opened by the caller, entered by the container's first process."""

from __future__ import annotations

import errno
import fcntl
import os

from pycontainer.errors import InvalidCommandError
from pycontainer_native import abi

_IN_PROC = {"mount": "mnt", "network": "net"}
#: OCI's name: (the kernel's below /proc/PID/ns, what NS_GET_NSTYPE answers)
TYPES = {name: (_IN_PROC.get(name, name), flag) for name, flag in abi.NAMESPACES.items()}

# linux/capability.h
_CAP_SYS_PTRACE = 19
_CAP_SYS_ADMIN = 21

#: The lock of pycontainer_native.network: where it is, there may be bridges that were made.
BRIDGES = "/run/pycontainer/bridges"


def open_path(path: str, kind: str, field: str) -> int:
    """A descriptor of the namespace at *path*, which has to be one of OCI's *kind* and not the host's own.

    Raises InvalidCommandError, for *field*.
    """
    name, number = TYPES[kind]
    try:
        # All namespaces are files of one file system; to open anything else could do something, or wait.
        if os.stat(path).st_dev != os.stat(f"/proc/self/ns/{name}").st_dev:
            raise InvalidCommandError(field, f"{path} is not a namespace")
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise InvalidCommandError(field, f"cannot open the namespace {path}: {error.strerror}") from None
    try:
        check(fd, path, kind, field, number)
        if is_hosts(fd, name):
            raise InvalidCommandError(field, f"{path} is the host's own {kind} namespace: say 'host' if that is meant")
    except BaseException:
        os.close(fd)
        raise
    return fd


def check(fd: int, path: str, kind: str, field: str, number: int) -> None:
    """Raise InvalidCommandError, for *field*, unless *fd*, opened at *path*, is a namespace of OCI's *kind*."""
    try:
        found = fcntl.ioctl(fd, abi.NS_GET_NSTYPE)
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EINVAL):
            raise
        raise InvalidCommandError(field, f"{path} is not a namespace") from None
    if found != number:
        what = next((other for other, (_, flag) in TYPES.items() if flag == found), "unknown")
        raise InvalidCommandError(field, f"{path} is a namespace of another kind: {what}, not {kind}")


def tracer_in(fd: int) -> int | None:
    """The pid of a process in the pid namespace *fd* that may have CAP_SYS_PTRACE over what enters it, if there is one.

    What sets a container up enters its pid namespace with the rights and the
    memory of the launcher: the kernel lets nobody mount a proc for another one.
    Who has CAP_SYS_ADMIN as well is as good as root on the host without that.
    """
    wanted = os.fstat(fd)
    host = os.stat("/proc/self/ns/user")
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            inside = os.path.samestat(os.stat(f"/proc/{name}/ns/pid"), wanted)
            if not inside or not os.path.samestat(os.stat(f"/proc/{name}/ns/user"), host):
                continue  # in a user namespace of its own that capability is none over others (user_namespaces(7))
            with open(f"/proc/{name}/status", "rb") as file:
                bounding = next(line for line in file if line.startswith(b"CapBnd:"))
        except OSError:
            continue  # it has ended
        capabilities = int(bounding.split()[1], 16)
        if capabilities >> _CAP_SYS_PTRACE & 1 and not capabilities >> _CAP_SYS_ADMIN & 1:
            return int(name)
    return None


def is_hosts(fd: int, name: str) -> bool:
    """Whether it is this process's own namespace, or that of the first one."""
    for owner in ("self", "1"):
        try:
            if os.path.samestat(os.fstat(fd), os.stat(f"/proc/{owner}/ns/{name}")):
                return True
        except OSError:
            continue  # of another user's first process it may not know
    return False
