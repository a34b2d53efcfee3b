"""What a receipt has of a program that stands between its execve and its first instruction, for its tracer alone.

Nothing of the payload has run by then, so that what the driver made can be
told from what the program does to itself later; and looking into the
container's /dev and /etc leads nowhere that the driver has not made.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from pycontainer._exec_stop import is_stopped_at_exec, ptrace
from pycontainer.process import RLIMIT_TYPES, Rlimit
from pycontainer.receipt import Beginning, DeviceNode, MountPoint

if TYPE_CHECKING:
    from pycontainer.receipt import Receipt

T = TypeVar("T")

# ptrace(2)
_SECCOMP_GET_FILTER, _SECCOMP_GET_METADATA = 0x420C, 0x420D
#: The files that a driver provides: pycontainer.etc.
_PROVIDED = ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf")
_MOST_BYTES, _MOST_NODES = 1 << 20, 4096
#: struct open_how (openat2(2)): beneath the container's root, and by no link; O_NONBLOCK for a fifo.
_HOW = struct.pack("QQQ", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, 0, 0x10 | 0x04 | 0x02)
_OPENAT2 = 437


def beginning(found: Receipt, directory: int, text: Callable[[str], str]) -> Beginning | None:
    """What holds for the process of *found*; None unless it is this thread that stopped it in its execve.

    *directory* is its directory in /proc, *text* reads a file of it.  Raises OSError.
    """
    if not is_stopped_at_exec(found.pid):
        return None
    fields = text("stat").rpartition(")")[2].split()  # from the third on: proc_pid_stat(5)
    status = dict(line.split(":\t", 1) for line in text("status").splitlines() if ":\t" in line)
    root = os.open("root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return Beginning(
            environ=_or_none(lambda: dict(_pairs(text("environ")))),
            cwd=os.readlink("cwd", dir_fd=directory),
            umask=int(status["Umask"], 8),
            descriptors=_or_none(lambda: _descriptors(directory)),
            niceness=int(fields[16]),
            policy=int(fields[38]),
            ignored_signals=tuple(_signals(status["SigIgn"])),
            blocked_signals=tuple(_signals(status["SigBlk"])),
            caller_rlimits=tuple(_own_rlimits()),
            filters=_filters(found),
            devices=_or_none(lambda: _devices(found, root)),
            files=dict(_files(found, root)),
        )
    finally:
        os.close(root)


def _or_none(read: Callable[[], T]) -> T | None:
    """What an ordinary user may not read of a process that has another one of his ids is None."""
    try:
        return read()
    except PermissionError:
        return None


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    for entry in filter(None, text.split("\0")):
        name, _, value = entry.partition("=")
        yield name, value


def _descriptors(directory: int) -> dict[int, str]:
    fds = os.open("fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return {int(name): os.readlink(name, dir_fd=fds) for name in sorted(os.listdir(fds), key=int)}
    finally:
        os.close(fds)


def _signals(mask: str) -> Iterator[int]:
    bits = int(mask, 16)
    return (number + 1 for number in range(bits.bit_length()) if bits >> number & 1)


def _own_rlimits() -> Iterator[Rlimit]:
    for name in sorted(RLIMIT_TYPES):
        if (number := getattr(resource, name, None)) is not None:
            yield Rlimit(
                name, *(-1 if value == resource.RLIM_INFINITY else value for value in resource.getrlimit(number))
            )


# -- the system call filter


def _filters(found: Receipt) -> tuple[str, ...] | None:
    """The programs that it does not have from whoever reads this; None where they cannot be read.

    That takes CAP_SYS_ADMIN, no filter of one's own, and a kernel with
    CONFIG_CHECKPOINT_RESTORE (ptrace(2), PTRACE_SECCOMP_GET_FILTER).
    """
    programs = []
    with contextlib.suppress(OSError):
        for number in range(found.seccomp.inherited, found.seccomp.filters):  # 0 is the oldest
            length = ptrace(_SECCOMP_GET_FILTER, found.pid, 0, number)
            code = ctypes.create_string_buffer(8 * length)  # struct sock_filter
            ptrace(_SECCOMP_GET_FILTER, found.pid, code, number)
            # struct seccomp_metadata: which filter, its flags
            about = ctypes.create_string_buffer(struct.pack("=QQ", number, 0), 16)
            ptrace(_SECCOMP_GET_METADATA, found.pid, about, 16)
            programs.append(f"{struct.unpack('=QQ', about.raw)[1]}:{code.raw.hex()}")
        return tuple(programs)
    return None


# -- files


def _open(root: int, path: str) -> int:
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    how = (_HOW, ctypes.c_size_t(len(_HOW)))
    fd = call(ctypes.c_long(_OPENAT2), ctypes.c_int(root), os.fsencode(path), *how)
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return int(fd)


def _in_memory(found: Receipt, path: str) -> bool:
    """Whether something of the kernel's own is mounted right there: no disk, network or program has to be asked."""
    mount = found.covering(path)
    return mount.target == path and mount.type in ("tmpfs", "devtmpfs")


def _devices(found: Receipt, root: int) -> tuple[DeviceNode, ...] | None:
    """The nodes in its /dev; None where that is not in memory."""
    if not _in_memory(found, "/dev"):
        return None
    fd = _open(root, "dev")
    try:
        nodes = []
        for node in _nodes(found.mounts, fd, "/dev"):
            nodes.append(node)
            if len(nodes) > _MOST_NODES:
                raise OSError(errno.E2BIG, "more devices than can be", "/dev")
        return tuple(sorted(nodes, key=lambda node: node.path))
    finally:
        os.close(fd)


def _nodes(mounts: Sequence[MountPoint], directory: int, path: str) -> Iterator[DeviceNode]:
    """Those in *directory*, which is *path*, and below it; what is mounted there as a file as well."""
    on = {mount.target for mount in mounts if mount.type not in ("tmpfs", "devtmpfs")}
    for name in os.listdir(directory):
        where = f"{path}/{name}"
        if where in on:
            continue  # a file system of its own, such as devpts
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            if where in {mount.target for mount in mounts}:
                continue
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            try:
                yield from _nodes(mounts, below, where)
            finally:
                os.close(below)
        elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            yield DeviceNode(
                path=where,
                type="c" if stat.S_ISCHR(status.st_mode) else "b",
                major=os.major(status.st_rdev),
                minor=os.minor(status.st_rdev),
                mode=stat.S_IMODE(status.st_mode),
                uid=status.st_uid,
                gid=status.st_gid,
            )


def _files(found: Receipt, root: int) -> Iterator[tuple[str, str]]:
    """Those that the driver has mounted, and their content."""
    for path in _PROVIDED:
        if not _in_memory(found, path):
            continue
        with contextlib.suppress(OSError), open(_open(root, path[1:]), "rb") as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                yield path, file.read(_MOST_BYTES).decode("utf-8", "surrogateescape")
