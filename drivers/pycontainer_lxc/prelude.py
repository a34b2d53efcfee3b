"""What LXC executes in the payload's place: it does what LXC has no way to do, and becomes the payload by execve(2).

* The terminal.  ``lxc-start`` makes its payload the leader of a session
  (setsid(2)) and leaves it to the payload to take a controlling terminal: an
  init does that, a shell does not, and nobody but the leader can (ioctl_tty(2),
  TIOCSCTTY).  ``lxc-attach`` puts a second terminal behind the first, which
  writes every line's end twice.
* The seccomp filter.  LXC's own profiles know no numbers, drop what libseccomp
  has no name for, let 32-bit calls pass that have the names of permitted ones,
  and are compiled anew by every start, which takes longer than the start
  itself.  So the filter is the one that every driver has.
* What went wrong, and that nothing did: LXC says the one in words, of an
  ``lxc-attach`` not always, and does not say the other.

It is a sealed memfd, inherited through LXC: nothing of it may be seen in the
container, nor be written to from there (CVE-2019-5736).

Descriptors: 4 is the program, 5 the read end of a pipe, 6 the terminal, 7 the
gate.  It opens 5 for writing (5 itself LXC holds open; this ends with its
execve), and writes 64-bit numbers: 0 once it has the terminal, 0 once it is
confined, -errno for each step that failed, and 1 when that was the last it
could try.  Where there is a gate, it waits after the first 0 for a byte from it.
"""

from __future__ import annotations

import errno
import struct

from pycontainer_lxc import elf

__all__ = ["FAILED", "PROGRAM", "READY", "arguments", "fault", "make", "numbers"]

#: What LXC is to execute.
PROGRAM = "/proc/self/fd/4"

#: What it says of each of its two steps when that is done.
READY = 0

#: Its last word, where it could not become the payload.
FAILED = 1

#: argv is PROGRAM, the paths to try, an empty string, and the payload's own argv. x86-64, Intel's syntax.
CODE = bytes.fromhex(
    "bf04000000"  # mov edi,0x4  ; PR_SET_DUMPABLE: the payloads that are there must not trace it
    "31f6"  # xor esi,esi
    "b89d000000"  # mov eax,0x9d  ; prctl
    "0f05"  # syscall
    "4c8d642408"  # lea r12,[rsp+0x8]  ; argv
    "488b0424"  # mov rax,QWORD PTR [rsp]
    "4d8d6cc408"  # lea r13,[r12+rax*8+0x8]  ; envp, behind the NULL of argv
    "488d1d29010000"  # lea rbx,[rip+data]
    "488d3512010000"  # lea rsi,[rip+path]
    "ba01000800"  # mov edx,0x80001  ; O_WRONLY | O_CLOEXEC
    "b801010000"  # mov eax,0x101  ; openat
    "0f05"  # syscall
    "4189c6"  # mov r14d,eax
    "66833b00"  # cmp WORD PTR [rbx],0x0
    "741c"  # je close
    "b870000000"  # mov eax,0x70  ; setsid, which LXC has done for a first process
    "0f05"  # syscall
    "bf06000000"  # mov edi,0x6
    "31f6"  # xor esi,esi
    # dup:
    "b821000000"  # mov eax,0x21  ; dup2
    "0f05"  # syscall
    "ffc6"  # inc esi
    "83fe03"  # cmp esi,0x3
    "75f2"  # jne dup
    # close:
    "bf03000000"  # mov edi,0x3
    "83ceff"  # or esi,0xffffffff
    "ba04000000"  # mov edx,0x4  ; CLOSE_RANGE_CLOEXEC
    "b8b4010000"  # mov eax,0x1b4  ; close_range
    "0f05"  # syscall
    "85c0"  # test eax,eax
    "0f8895000000"  # js fail
    "66833b00"  # cmp WORD PTR [rbx],0x0
    "7414"  # je filter
    "31ff"  # xor edi,edi
    "be0e540000"  # mov esi,0x540e  ; TIOCSCTTY
    "31d2"  # xor edx,edx
    "b810000000"  # mov eax,0x10  ; ioctl
    "0f05"  # syscall
    "85c0"  # test eax,eax
    "787b"  # js fail
    # filter:
    "31c0"  # xor eax,eax
    "e88f000000"  # call say
    "66837b0200"  # cmp WORD PTR [rbx+0x2],0x0
    "7417"  # je confine
    "bf07000000"  # mov edi,0x7  ; the gate
    "50"  # push rax
    "4889e6"  # mov rsi,rsp
    "ba01000000"  # mov edx,0x1
    "31c0"  # xor eax,eax  ; read; an end-of-file is that of the guard
    "0f05"  # syscall
    "59"  # pop rcx
    "ffc8"  # dec eax
    "755b"  # jne end
    # confine:
    "66837b0800"  # cmp WORD PTR [rbx+0x8],0x0
    "7417"  # je program
    "bf01000000"  # mov edi,0x1  ; SECCOMP_SET_MODE_FILTER
    "8b7304"  # mov esi,DWORD PTR [rbx+0x4]
    "488d5308"  # lea rdx,[rbx+0x8]
    "b83d010000"  # mov eax,0x13d  ; seccomp
    "0f05"  # syscall
    "85c0"  # test eax,eax
    "7838"  # js fail
    # program:
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
    # data: whether there is a terminal, and a gate, 16 bits each; the flags of seccomp(2), 32 bits; struct sock_fprog,
    # and its filter
)


def make(terminal: bool, flags: int, filter: bytes, gate: bool = False) -> int:
    """A descriptor of the program, which takes a *terminal* and waits at a *gate*, or does not.

    *filter* is an array of struct sock_filter, or empty; *flags* are seccomp(2)'s.
    """
    filter_address = elf.address(len(CODE) + 24)
    return elf.make(
        CODE + struct.pack("<HHIHxxxxxxQ", terminal, gate, flags, len(filter) // 8, filter_address) + filter
    )


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
    failed = [-number for number in said if number < 0] or [errno.ENOENT]
    done = said.count(0)
    if done < 2:
        return ("take the controlling terminal", "load the seccomp filter")[done], failed[0]
    # As execvp(3): that one of several paths does not exist says less than why another cannot be executed.
    return "execve", next((number for number in failed if number not in (errno.ENOENT, errno.ENOTDIR)), failed[-1])
