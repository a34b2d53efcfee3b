"""What LXC is to mount on, found and made beforehand: LXC itself makes it by path, following the rootfs's links.

LXC 5 refuses a symbolic link anywhere in a mount's target (CVE-2015-1335), but
its ``create=dir`` is a plain ``mkdir -p`` on the host's side of the rootfs,
which a link in the rootfs leads anywhere (CVE-2024-45310's class).  So targets
are resolved and made here, by openat2(2) below the rootfs's descriptor, and LXC
gets the path without links: should somebody put a link there meanwhile, LXC
refuses it.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import stat
import struct
from typing import Any

from pycontainer.errors import SetupError

__all__ = ["Targets"]

_OPENAT2 = 437  # the same number on every architecture
_NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH, _IN_ROOT = 0x02, 0x04, 0x08, 0x10


@functools.cache
def _syscall() -> Any:
    function = ctypes.CDLL(None, use_errno=True).syscall
    function.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t)
    function.restype = ctypes.c_long
    return function


def _openat2(directory: int, path: str, flags: int = 0, resolve: int = _IN_ROOT | _NO_MAGICLINKS) -> int:
    how = struct.pack("=QQQ", os.O_PATH | os.O_CLOEXEC | flags, 0, resolve)
    for _ in range(100):
        descriptor: int = _syscall()(_OPENAT2, directory, os.fsencode(path), how, len(how))
        if descriptor >= 0:
            return descriptor
        number = ctypes.get_errno()
        # EAGAIN: a mount or rename anywhere while ".." was being resolved, see openat2(2).
        if number not in (errno.EAGAIN, errno.EINTR):
            break
    raise OSError(number, os.strerror(number), path)


class _Tree:
    """A directory of the host that holds what the container sees at :attr:`at`."""

    def __init__(self, at: str, directory: str, writable: bool) -> None:
        self.at = at
        self.writable = writable
        self.fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.real = os.readlink(f"/proc/self/fd/{self.fd}").rstrip("/")

    def inside(self, fd: int) -> str:
        """The path of *fd* in the container."""
        path = os.readlink(f"/proc/self/fd/{fd}")
        return self.at.rstrip("/") + path[len(self.real) :] or "/"


class Targets:
    """The paths of one container: its rootfs, and what has been mounted in it so far."""

    def __init__(self, rootfs: str) -> None:
        self._trees = [_Tree("/", rootfs, True)]
        self._fresh: list[str] = []  # empty file systems: what is below them exists only once they are mounted

    def close(self) -> None:
        for tree in self._trees:
            os.close(tree.fd)

    def __enter__(self) -> Targets:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def system(self, path: str) -> None:
        """Make sure that *path* (/proc, /sys, /dev) is a real directory of the rootfs (CVE-2019-19921).

        Raises OSError.
        """
        root, name = self._trees[0].fd, path.lstrip("/")
        try:
            os.mkdir(name, 0o755, dir_fd=root)
        except FileExistsError:
            os.close(_openat2(root, name, os.O_DIRECTORY, _BENEATH | _NO_SYMLINKS))

    def find(self, path: str) -> tuple[str, os.stat_result] | None:
        """*path* without links and what it is, None where it does not exist or only the container can tell."""
        tree = self._tree(path)
        if tree is None:
            return None
        try:
            fd = _openat2(tree.fd, path[len(tree.at) :].lstrip("/") or ".")
        except OSError:
            return None
        try:
            found = tree.inside(fd)
            # A link may have led to where something else is mounted.
            return (found, os.fstat(fd)) if self._tree(found) is tree else self.find(found)
        finally:
            os.close(fd)

    def resolve(self, path: str) -> str | None:
        """*path* without links, be it there or not; None where a link leads to what only the container has."""
        tree = self._tree(path)
        if tree is None:
            return path
        parts = [part for part in path[len(tree.at) :].split("/") if part]
        here = tree.at
        for depth in range(1, len(parts) + 1):
            try:
                found = _openat2(tree.fd, "/".join(parts[:depth]))
            except OSError:
                try:
                    os.close(_openat2(tree.fd, "/".join(parts[:depth]), os.O_NOFOLLOW))
                except OSError:
                    return "/".join([here.rstrip("/"), *parts[depth - 1 :]])
                return None
            here = tree.inside(found)
            os.close(found)
            if self._tree(here) is not tree:
                return self.resolve("/".join([here.rstrip("/"), *parts[depth:]]))
        return here

    def make(self, path: str, *, directory: bool) -> tuple[str, bool]:
        """*path* without links, made where it is missing; and whether LXC has to make it, in what it mounted itself.

        Raises OSError.
        """
        tree = self._tree(path)
        if tree is None:
            return path, True
        parts = [part for part in path[len(tree.at) :].split("/") if part]
        parent = os.dup(tree.fd)
        try:
            for depth, part in enumerate(parts, 1):
                is_directory = directory or depth < len(parts)
                flags = os.O_DIRECTORY if is_directory else 0
                try:
                    found = _openat2(tree.fd, "/".join(parts[:depth]), flags)
                except FileNotFoundError:
                    if not tree.writable:
                        raise
                    _make(parent, part, is_directory)
                    found = _openat2(tree.fd, "/".join(parts[:depth]), flags)
                os.close(parent)
                parent = found
                here = tree.inside(parent)
                if self._tree(here) is not tree:  # a link to where something else is mounted
                    return self.make("/".join([here, *parts[depth:]]), directory=directory)
            return tree.inside(parent), False
        finally:
            os.close(parent)

    def mounted(self, path: str, source: str | None, *, writable: bool) -> None:
        """Something is mounted on *path* from here on: a directory of the host, or an empty file system."""
        if source is None:
            self._fresh.append(path)
        elif os.path.isdir(source):
            self._trees.append(_Tree(path, source, writable))
        else:
            self._fresh.append(path)

    def _tree(self, path: str) -> _Tree | None:
        """Where *path* is of the host; None below an empty file system."""
        fresh = max((at for at in self._fresh if _below(path, at)), key=len, default="")
        tree = max((tree for tree in self._trees if _below(path, tree.at)), key=lambda tree: len(tree.at))
        return None if len(fresh) > len(tree.at) or path == fresh else tree


def _below(path: str, directory: str) -> bool:
    return directory == "/" or path == directory or path.startswith(directory + "/")


def _make(parent: int, name: str, directory: bool) -> None:
    try:
        if directory:
            os.mkdir(name, 0o755, dir_fd=parent)
        else:
            os.mknod(name, stat.S_IFREG | 0o644, dir_fd=parent)
    except FileExistsError:
        pass  # another container's start was first, or it is a link that leads nowhere: then openat2 says so


def failed(step: str, error: OSError) -> SetupError:
    """*error* as that of *step*."""
    return SetupError(step, error.errno or errno.EPROTO, error.filename)
