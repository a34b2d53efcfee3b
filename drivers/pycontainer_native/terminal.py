"""The container's terminal, whose master goes to the launcher."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from typing import Any

from pycontainer_native import abi
from pycontainer_native.syscalls import Recorder, Slot


def open_terminal(k: Recorder, root: Slot, size: Mapping[str, int] | None, uid: int, *, further: bool = False) -> None:
    """A pseudo-terminal of the container's own devpts as stdio and controlling terminal.

    The slave comes from the master's descriptor (TIOCGPTPEER), never from a
    path that the rootfs could have prepared (CVE-2025-52565).
    """
    with k.step("open a terminal"):
        flags = os.O_RDWR | os.O_NOCTTY
        master = k.openat2(root, b"dev/pts/ptmx", flags, abi.RESOLVE_BENEATH | abi.RESOLVE_NO_SYMLINKS)
        k.ioctl(master, abi.TIOCSPTLCK, b"\0\0\0\0")
        slave = k.slot()
        k.ioctl(master, abi.TIOCGPTPEER, flags | abi.O_CLOEXEC, out=slave)
        if size:
            k.ioctl(master, abi.TIOCSWINSZ, struct.pack("=4H", size["height"], size["width"], 0, 0))
        if uid:
            k.call("fchownat", slave, b"", uid, -1, abi.AT_EMPTY_PATH)
    if not further:
        with k.step("mount the terminal on /dev/console"):
            dev = k.openat2(root, b"dev", abi.O_PATH | abi.O_DIRECTORY, abi.RESOLVE_BENEATH | abi.RESOLVE_NO_SYMLINKS)
            k.mknodat(dev, b"console", 0o100620)
            target = k.openat2(dev, b"console", abi.O_PATH | abi.O_NOFOLLOW, abi.RESOLVE_BENEATH)
            k.move_mount(k.open_tree(slave), target)
    with k.step("send the terminal's master"):
        control: Any = [20, abi.SCM_RIGHTS << 32 | abi.SOL_SOCKET, master]  # cmsghdr: length, level and type, data
        message: Any = [0, 0, [b"t", 1], 1, control, 24, 0]  # msghdr: no name, one iovec, control, no flags
        k.call("sendmsg", abi.CHANNEL_FD, message, abi.MSG_NOSIGNAL)
    with k.step("make it the controlling terminal"):
        for fd in (0, 1, 2):
            k.dup3(slave, fd)
        if not further:  # a further process makes it its own, once it is there
            k.ioctl(0, abi.TIOCSCTTY, 0)
