"""System calls as a plan records them: one method per call, named as the kernel names it.

A :class:`Recorder` does not make the calls, it writes them down as steps.
What a call returns (a descriptor) is a *slot*: the launcher's child stores the
result there, and a later step takes it as an argument.
"""

from __future__ import annotations

import contextlib
import errno
import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple, TypeAlias

from pycontainer_native import abi

#: A place for a result: the slot's number, boxed. It travels as it is to the launcher.
Slot: TypeAlias = tuple[int]
#: int: itself; bytes: pointer to it; Slot: its value; ("buffer", n): n bytes to write to, or those that are given;
#: list: pointer to 64-bit words of the same kinds.
Argument: TypeAlias = "int | bytes | Slot | tuple[str, int | bytes] | list[Argument]"
Fd: TypeAlias = "int | Slot"

#: openat2 answers EAGAIN when a rename or mount somewhere made its ".." check undecidable (openat2(2)).
_OPENAT2_RETRY: Mapping[int, int] = {errno.EAGAIN: abi.RETRY, errno.EINTR: abi.RETRY}

#: The file systems whose files are the container's own. proc, sysfs and the one mqueue of an IPC namespace, which is
#: there before it is mounted, have the labels that the kernel's policy gives them.
_LABELLED = ("tmpfs", "devpts", "overlay")


class Step(NamedTuple):
    """One system call of a plan."""

    call: str  #: the kernel's name
    arguments: tuple[Argument, ...]
    label: str  #: what an error message calls it: "mount proc on /proc"
    path: str | None  #: the path it is about
    out: int | None  #: the slot for the result
    accept: Mapping[int, int]  #: errno -> how many of the following steps are skipped, or RETRY
    skip: int  #: how many of the following steps are skipped after success
    check: tuple[bytes, int] | None  #: what the output buffer has to start with afterwards, else that errno


class Recorder:
    """Writes steps down, under the label of the :meth:`step` they stand in."""

    def __init__(self, first_slot: int = abi.FIRST_SLOT) -> None:
        self.steps: list[Step] = []
        self.slots = first_slot
        self.mount_label: str | None = None  # the SELinux context of the file systems that are made from now on
        self._label = ""

    @contextlib.contextmanager
    def step(self, label: str) -> Iterator[None]:
        """Name the calls made inside: what the user would call them."""
        outer, self._label = self._label, label
        try:
            yield
        finally:
            self._label = outer

    def slot(self) -> Slot:
        """A new, empty slot."""
        self.slots += 1
        return (self.slots - 1,)

    def call(
        self,
        call: str,
        *arguments: Argument,
        path: bytes | None = None,
        out: Slot | None = None,
        accept: Mapping[int, int] | None = None,
        skip: int = 0,
        check: tuple[bytes, int] | None = None,
    ) -> None:
        """Record one call. *accept*, *skip*, *check*: see :class:`Step`."""
        shown = None if path is None else path.decode("utf-8", "surrogateescape")
        self.steps.append(Step(call, arguments, self._label or call, shown, out and out[0], accept or {}, skip, check))

    # -- files ---------------------------------------------------------------

    def openat2(
        self,
        dirfd: Fd,
        path: bytes,
        flags: int,
        resolve: int,
        mode: int = 0,
        *,
        out: Slot | None = None,
        accept: Mapping[int, int] | None = None,
        skip: int = 0,
    ) -> Slot:
        """Open *path* below *dirfd*, close-on-exec."""
        out = out or self.slot()
        how = struct.pack("=QQQ", flags | abi.O_CLOEXEC, mode, resolve)
        retry = {**_OPENAT2_RETRY, **accept} if accept else _OPENAT2_RETRY
        self.call("openat2", dirfd, path, how, len(how), path=path, out=out, accept=retry, skip=skip)
        return out

    def mkdirat(self, dirfd: Fd, path: bytes, mode: int, *, accept: Mapping[int, int] | None = None) -> None:
        """Make a directory."""
        self.call("mkdirat", dirfd, path, mode, path=path, accept=accept)

    def mknodat(
        self, dirfd: Fd, path: bytes, mode: int, dev: int = 0, *, accept: Mapping[int, int] | None = None
    ) -> None:
        """Make a file or a device node."""
        self.call("mknodat", dirfd, path, mode, dev, path=path, accept=accept)

    def symlinkat(self, target: bytes, dirfd: Fd, path: bytes, *, accept: Mapping[int, int] | None = None) -> None:
        """Make *path* a symbolic link to *target*."""
        self.call("symlinkat", target, dirfd, path, path=path, accept=accept)

    def dup3(self, fd: Fd, to: int, flags: int = 0) -> None:
        """Make *to* another name of *fd*."""
        self.call("dup3", fd, to, flags)

    # -- mounts: the descriptor-based API of Linux 5.2 and mount_setattr of 5.12 --

    def open_tree(self, dirfd: Fd, path: bytes = b"", *, recursive: bool = False, out: Slot | None = None) -> Slot:
        """Clone the mount at *path* (at *dirfd* itself when empty): a mount that is nowhere yet."""
        out = out or self.slot()
        flags = abi.OPEN_TREE_CLONE | abi.OPEN_TREE_CLOEXEC | (abi.AT_RECURSIVE if recursive else 0)
        self.call("open_tree", dirfd, path, flags | (0 if path else abi.AT_EMPTY_PATH), path=path or None, out=out)
        return out

    def move_mount(self, mount: Fd, target: Fd, *, accept: Mapping[int, int] | None = None, skip: int = 0) -> None:
        """Put the detached *mount* on what *target* refers to."""
        flags = abi.MOVE_MOUNT_F_EMPTY_PATH | abi.MOVE_MOUNT_T_EMPTY_PATH
        self.call("move_mount", mount, b"", target, b"", flags, accept=accept, skip=skip)

    def mount_setattr(
        self, mount: Fd, set_: int = 0, clear: int = 0, *, propagation: int = 0, recursive: bool = False
    ) -> None:
        """Set and clear mount attributes; those not named keep their value (CVE class: flags lost on remount)."""
        flags = abi.AT_EMPTY_PATH | (abi.AT_RECURSIVE if recursive else 0)
        attr = struct.pack("=QQQQ", set_, clear, propagation, 0)
        self.call("mount_setattr", mount, b"", flags, attr, len(attr))

    def map_ids(self, mount: Fd, namespace: Slot, *, recursive: bool = False) -> None:
        """Show the files of a *mount* that is nowhere yet with the ids that they have in the user *namespace*."""
        flags = abi.AT_EMPTY_PATH | (abi.AT_RECURSIVE if recursive else 0)
        attr: list[Argument] = [abi.MOUNT_ATTR_IDMAP, 0, 0, namespace]
        self.call("mount_setattr", mount, b"", flags, attr, 32)

    def new_mount(
        self, fstype: str, options: Mapping[str, str | None], attributes: int, *, out: Slot | None = None
    ) -> Slot:
        """A new file system, mounted nowhere yet: fsopen, fsconfig for each option, fsmount."""
        fs = self.slot()
        mount = out or self.slot()
        if self.mount_label is not None and fstype in _LABELLED:
            options = {**options, "context": self.mount_label}
        self.call("fsopen", fstype.encode(), abi.FSOPEN_CLOEXEC, out=fs)
        for key, value in options.items():
            if value is None:
                self.call("fsconfig", fs, abi.FSCONFIG_SET_FLAG, key.encode(), 0, 0)
            else:
                text = value.encode("utf-8", "surrogateescape")
                self.call("fsconfig", fs, abi.FSCONFIG_SET_STRING, key.encode(), text, 0)
        self.call("fsconfig", fs, abi.FSCONFIG_CMD_CREATE, 0, 0, 0)
        self.call("fsmount", fs, abi.FSMOUNT_CLOEXEC, attributes, out=mount)
        return mount

    # -- the process itself ----------------------------------------------------

    def prctl(self, option: int, *arguments: int, accept: Mapping[int, int] | None = None) -> None:
        """Unused arguments are passed as zeros: newer options demand it (prctl(2))."""
        self.call("prctl", option, *(*arguments, 0, 0, 0, 0)[:4], accept=accept)

    def ioctl(self, fd: Fd, request: int, argument: Argument = 0, *, out: Slot | None = None) -> None:
        """A device's own call."""
        self.call("ioctl", fd, request, argument, out=out)
