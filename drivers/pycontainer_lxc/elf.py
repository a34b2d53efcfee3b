"""Programs of a few instructions, in memory: nobody else can see them, and nobody at all can write to them."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

__all__ = ["UNKNOWN", "is_known", "make"]

_BASE, _HEADERS = 0x400000, 64 + 56

UNKNOWN = "needs x86-64: LXC itself cannot do it, and what does it in the payload's place is machine code"


def is_known() -> bool:
    """Whether the instructions are this machine's: all programs here are x86-64's."""
    return os.uname().machine == "x86_64"


def address(offset: int) -> int:
    """Where in memory the byte *offset* of a program's instructions is."""
    return _BASE + _HEADERS + offset


def make(instructions: bytes) -> int:
    """A descriptor of a program: an ELF file of one segment (elf(5)), sealed, open for reading."""
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\2\1\1", 2, 62, 1, address(0), 64, 0, 0, 64, 56, 1, 0, 0, 0,
    )  # fmt: skip
    size = _HEADERS + len(instructions)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    memfd_flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        memfd = os.memfd_create("program", memfd_flags | 0x10)  # MFD_EXEC, which vm.memfd_noexec wants, Linux 6.3
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        memfd = os.memfd_create("program", memfd_flags)
    try:
        os.write(memfd, header + segment + instructions)
        os.fchmod(memfd, 0o111)  # who executes what he may not read cannot be traced (ptrace(2)), from its first moment
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, seals)
        # what somebody has open for writing cannot be executed (ETXTBSY)
        return os.open(f"/proc/self/fd/{memfd}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(memfd)
