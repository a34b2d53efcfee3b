"""A terminal for the payload, which LXC itself gives to none.

``lxc-start`` makes its payload the leader of a session (setsid(2)) and leaves
it to the payload to take a controlling terminal: an init does that, a shell
does not.  Nobody but the leader can (ioctl_tty(2), TIOCSCTTY).  ``lxc-attach``
puts a second terminal behind the first, which writes every line's end twice.
So LXC starts :data:`CODE`, which takes the terminal and becomes the payload by
execve(2).  It is a sealed memfd, inherited through LXC: nothing of it may be
seen in the container, nor be written to from there (CVE-2019-5736).

Descriptors: 4 is the program, 5 the read end of a pipe, 6 the terminal.  It
opens 5 for writing (5 itself LXC holds open; this ends with its execve), and
writes 64-bit numbers: 0 once it has the terminal, -errno for each step that
failed, 1 when that was the last it could try.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

__all__ = ["FAILED", "PROGRAM", "UNKNOWN", "arguments", "fault", "is_known", "make", "numbers"]

#: What LXC is to execute.
PROGRAM = "/proc/self/fd/4"

#: Its last word, where it could not become the payload.
FAILED = 1

#: argv is PROGRAM, the paths to try, an empty string, and the payload's own argv. x86-64, Intel's syntax.
CODE = bytes.fromhex(
    "4c8d642408"  # lea r12,[rsp+0x8]  ; argv
    "488b0424"  # mov rax,QWORD PTR [rsp]
    "4d8d6cc408"  # lea r13,[r12+rax*8+0x8]  ; envp, behind the NULL of argv
    "b870000000"  # mov eax,0x70  ; setsid, which LXC has done for a first process
    "0f05"  # syscall
    "488d35b8000000"  # lea rsi,[rip+path]
    "ba01000800"  # mov edx,0x80001  ; O_WRONLY | O_CLOEXEC
    "b801010000"  # mov eax,0x101  ; openat
    "0f05"  # syscall
    "4189c6"  # mov r14d,eax
    "bf06000000"  # mov edi,0x6
    "31f6"  # xor esi,esi
    # dup:
    "b821000000"  # mov eax,0x21  ; dup2
    "0f05"  # syscall
    "ffc6"  # inc esi
    "83fe03"  # cmp esi,0x3
    "75f2"  # jne dup
    "bf03000000"  # mov edi,0x3
    "83ceff"  # or esi,0xffffffff
    "ba04000000"  # mov edx,0x4  ; CLOSE_RANGE_CLOEXEC
    "b8b4010000"  # mov eax,0x1b4  ; close_range
    "0f05"  # syscall
    "85c0"  # test eax,eax
    "784c"  # js fail
    "31ff"  # xor edi,edi
    "be0e540000"  # mov esi,0x540e  ; TIOCSCTTY
    "31d2"  # xor edx,edx
    "b810000000"  # mov eax,0x10  ; ioctl
    "0f05"  # syscall
    "85c0"  # test eax,eax
    "7838"  # js fail
    "31c0"  # xor eax,eax
    "e84c000000"  # call say
    "4d89e7"  # mov r15,r12
    # next:
    "4983c708"  # add r15,0x8
    "498b07"  # mov rax,QWORD PTR [r15]
    "803800"  # cmp BYTE PTR [rax],0x0
    "75f4"  # jne next
    # try:
    "4983c408"  # add r12,0x8
    "4d39fc"  # cmp r12,r15
    "741e"  # je end
    "498b3c24"  # mov rdi,QWORD PTR [r12]
    "498d7708"  # lea rsi,[r15+0x8]
    "4c89ea"  # mov rdx,r13
    "b83b000000"  # mov eax,0x3b  ; execve
    "0f05"  # syscall
    "e81d000000"  # call say
    "ebde"  # jmp try
    # fail:
    "e816000000"  # call say
    # end:
    "b801000000"  # mov eax,0x1  ; FAILED
    "e80c000000"  # call say
    "bf7f000000"  # mov edi,0x7f
    "b8e7000000"  # mov eax,0xe7  ; exit_group
    "0f05"  # syscall
    # say:
    "50"  # push rax
    "4489f7"  # mov edi,r14d
    "4889e6"  # mov rsi,rsp
    "ba08000000"  # mov edx,0x8
    "b801000000"  # mov eax,0x1  ; write
    "0f05"  # syscall
    "58"  # pop rax
    "c3"  # ret
    "2f70726f632f73656c662f66642f3500"  # path: .asciz "/proc/self/fd/5"
)

_BASE = 0x400000

UNKNOWN = "needs x86-64: LXC gives its payload no controlling terminal, and what takes one is machine code"


def is_known() -> bool:
    """Whether :data:`CODE` is this machine's language."""
    return os.uname().machine == "x86_64"


def make() -> int:
    """A descriptor of the program: an ELF file of one segment (elf(5)), sealed, open for reading."""
    size = 64 + 56 + len(CODE)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\2\1\1", 2, 62, 1, _BASE + 64 + 56, 64, 0, 0, 64, 56, 1, 0, 0, 0,
    )  # fmt: skip
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        memfd = os.memfd_create("terminal", flags | 0x10)  # MFD_EXEC: vm.memfd_noexec wants it said, Linux 6.3
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        memfd = os.memfd_create("terminal", flags)
    try:
        os.write(memfd, header + segment + CODE)
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, seals)
        # what somebody has open for writing cannot be executed (ETXTBSY)
        return os.open(f"/proc/self/fd/{memfd}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(memfd)


def arguments(argv: list[str], env: list[str]) -> list[str]:
    """The argv to give LXC for *argv*: the paths are those that execvp(3) would try."""
    name, paths = argv[0], [argv[0]]
    if "/" not in name:
        path = next((entry[5:] for entry in env if entry.startswith("PATH=")), "/usr/local/bin:/usr/bin:/bin")
        paths = [f"{directory or '.'}/{name}" for directory in path.split(":")]
    return [PROGRAM, *paths, "", *argv]


def numbers(report: bytes) -> list[int]:
    """What the program has written."""
    return [number for (number,) in struct.iter_unpack("<q", report[: len(report) // 8 * 8])]


def fault(said: list[int]) -> tuple[str, int]:
    """The step that failed, and its errno."""
    if said[0] < 0:
        return "take the controlling terminal", -said[0]
    # As execvp(3): that one of several paths does not exist says less than why another cannot be executed.
    failed = [-number for number in said if number < 0] or [errno.ENOENT]
    return "execve", next((number for number in failed if number not in (errno.ENOENT, errno.ENOTDIR)), failed[-1])
