"""What the guard executes before one of LXC's tools, so that it dies with the guard: prctl(2), PR_SET_PDEATHSIG.

The attribute is lost by a fork and kept by an execve, so a process has to ask
for it itself.  A copy of the guard could, made by fork(2); to make a copy of an
interpreter and to throw it away takes longer than most of what LXC does, and
posix_spawn(3), which makes none, has no such attribute.
"""

from __future__ import annotations

import os
import struct

from pycontainer_lxc import elf

__all__ = ["make"]

#: x86-64, Intel's syntax. The program is argv[0], its environment is empty.
CODE = bytes.fromhex(
    "bf01000000"  # mov edi,0x1  ; PR_SET_PDEATHSIG
    "be09000000"  # mov esi,0x9  ; SIGKILL
    "b89d000000"  # mov eax,0x9d  ; prctl
    "0f05"  # syscall
    "b86e000000"  # mov eax,0x6e  ; getppid
    "0f05"  # syscall
    "3b053f000000"  # cmp eax,DWORD PTR [rip+data]  ; it may have died before
    "7531"  # jne end
    "bf20000000"  # mov edi,0x20  ; posix_spawn leaves the two signals of its libc's own ignored
    # signal:
    "488d3535000000"  # lea rsi,[rip+default]
    "31d2"  # xor edx,edx
    "41ba08000000"  # mov r10d,0x8
    "b80d000000"  # mov eax,0xd  ; rt_sigaction
    "0f05"  # syscall
    "ffc7"  # inc edi
    "83ff22"  # cmp edi,0x22
    "75e3"  # jne signal
    "488d742408"  # lea rsi,[rsp+0x8]  ; argv
    "488b3e"  # mov rdi,QWORD PTR [rsi]
    "b83b000000"  # mov eax,0x3b  ; execve
    "0f05"  # syscall
    # end:
    "bf7f000000"  # mov edi,0x7f
    "b8e7000000"  # mov eax,0xe7  ; exit_group
    "0f05"  # syscall
    # data: the guard's pid, 32 bits
    # default: a struct sigaction of zeros, which is SIG_DFL
)


def make() -> int:
    """A descriptor of the program, for children of this process."""
    return elf.make(CODE + struct.pack("<I32x", os.getpid()))
