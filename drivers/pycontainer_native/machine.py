"""The loop over a plan's steps as machine code: what a cloned process runs without a page of the interpreter.

A copy of the launcher that goes on in Python costs its page tables and some
three hundred page faults.  This loop and what it works on are a few pages, and
those are all that the clone gets: while it is made, everything else is marked
MADV_DONTFORK.  So the process is small, and nothing of the launcher's memory
but plans that are kept, and a page of libc's, is ever near a container.

It is there on x86_64, where memory may be made executable (SELinux's execmem
and systemd's MemoryDenyWriteExecute forbid that); elsewhere
:func:`pycontainer_native.child.child` does the same in Python.
:mod:`pycontainer_native.layout` writes what it runs.
"""

from __future__ import annotations

import ctypes
import errno

from pycontainer_native import abi
from pycontainer_native.libc import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

#: clone3(2), and in the child the steps of the sections, one after the other.
#:
#: Arguments: struct clone_args; the first of the sections, three words each: the address of its first step, that behind
#: its last one, what is added to the index of a step that fails; the address of the channel's descriptor.  The parent
#: gets the pid or -errno.  The child never returns, and never touches its stack, which it does not have.
#: A step is sixteen words:
#:
#: ==== =======================================================================
#: 0    the number of the system call; -1: fail with the errno in word 14
#: 1-6  where its arguments are
#: 7    where it is written where the result goes; a list that ends with 0
#: 8-10 two buffers and a length: they have to be equal, or it fails with the errno in word 14
#: 11   errno and steps to skip, pairs; a list that ends with 0; steps below 0 are to try again
#: 12   how many steps to skip after success
#: 13   not 0: a result that is not 0 is another process's pid, which is reported, and this one ends
#: 14   an errno
#: 15   its index in its section
#: ==== =======================================================================
#:
#: Bytes and instructions; tests/unit/test_machine.py compares them.
LISTING = """
clone:
    f30f1efa       endbr64
    4989f0         mov r8, rsi
    4989d1         mov r9, rdx
    be58000000     mov esi, 0x58
    b8b3010000     mov eax, 0x1b3
    0f05           syscall
    4885c0         test rax, rax
    7401           je born
    c3             ret
born:  # its registers are the parent's
    4d89c4         mov r12, r8
    4d89ce         mov r14, r9
section:
    498b1c24       mov rbx, qword ptr [r12]
next:  # rbx is the step, r12 the section
    493b5c2408     cmp rbx, qword ptr [r12 + 8]
    7206           jb step
    4983c418       add r12, 0x18
    ebef           jmp section
step:  # abi.RETRIES more tries
    bd41000000     mov ebp, 0x41
again:
    488b4308       mov rax, qword ptr [rbx + 8]
    488b38         mov rdi, qword ptr [rax]
    488b4310       mov rax, qword ptr [rbx + 0x10]
    488b30         mov rsi, qword ptr [rax]
    488b4318       mov rax, qword ptr [rbx + 0x18]
    488b10         mov rdx, qword ptr [rax]
    488b4320       mov rax, qword ptr [rbx + 0x20]
    4c8b10         mov r10, qword ptr [rax]
    488b4328       mov rax, qword ptr [rbx + 0x28]
    4c8b00         mov r8, qword ptr [rax]
    488b4330       mov rax, qword ptr [rbx + 0x30]
    4c8b08         mov r9, qword ptr [rax]
    488b03         mov rax, qword ptr [rbx]
    4885c0         test rax, rax
    787b           js wrong
    0f05           syscall
    483d00f0ffff   cmp rax, -0x1000
    7744           ja error
    488b7338       mov rsi, qword ptr [rbx + 0x38]
out:
    488b3e         mov rdi, qword ptr [rsi]
    4885ff         test rdi, rdi
    7409           je check
    488907         mov qword ptr [rdi], rax
    4883c608       add rsi, 8
    ebef           jmp out
check:  # where nothing is compared, what was is equal: je was taken
    488b7340       mov rsi, qword ptr [rbx + 0x40]
    488b7b48       mov rdi, qword ptr [rbx + 0x48]
    488b4b50       mov rcx, qword ptr [rbx + 0x50]
    f3a6           repe cmpsb byte ptr [rsi], byte ptr [rdi]
    754c           jne wrong
    48837b6800     cmp qword ptr [rbx + 0x68], 0
    7405           je good
    4885c0         test rax, rax
    757a           jne parent
good:
    488b4b60       mov rcx, qword ptr [rbx + 0x60]
skip:
    48ffc1         inc rcx
    48c1e107       shl rcx, 7
    4801cb         add rbx, rcx
    e96effffff     jmp next
error:
    48f7d8         neg rax
    488b7358       mov rsi, qword ptr [rbx + 0x58]
accept:
    488b3e         mov rdi, qword ptr [rsi]
    4885ff         test rdi, rdi
    7422           je fail
    4839c7         cmp rdi, rax
    7406           je found
    4883c610       add rsi, 0x10
    ebed           jmp accept
found:
    488b4e08       mov rcx, qword ptr [rsi + 8]
    4885c9         test rcx, rcx
    79ce           jns skip
    ffcd           dec ebp
    0f8555ffffff   jne again
    eb04           jmp fail
wrong:
    488b4370       mov rax, qword ptr [rbx + 0x70]
fail:  # FAILED, index and errno, and exit_group(1)
    488b4b78       mov rcx, qword ptr [rbx + 0x78]
    49034c2410     add rcx, qword ptr [r12 + 0x10]
    c60366         mov byte ptr [rbx], 0x66
    894b01         mov dword ptr [rbx + 1], ecx
    894305         mov dword ptr [rbx + 5], eax
    ba09000000     mov edx, 9
    41bd01000000   mov r13d, 1
report:  # ud2: where a filter denies even exit_group
    498b3e         mov rdi, qword ptr [r14]
    4889de         mov rsi, rbx
    b801000000     mov eax, 1
    0f05           syscall
    4489ef         mov edi, r13d
    b8e7000000     mov eax, 0xe7
    0f05           syscall
    0f0b           ud2
parent:  # FORKED and the pid, and exit_group(0)
    c60370         mov byte ptr [rbx], 0x70
    894301         mov dword ptr [rbx + 1], eax
    ba05000000     mov edx, 5
    4531ed         xor r13d, r13d
    ebd7           jmp report
"""

PAGE = 4096
#: struct clone_args has so many bytes; the instructions say it, too.
CLONE_ARGS = 88
#: What the launcher writes for its clones, and what only they have, for their request.
KEPT_SIZE, FRAME_SIZE = 2 << 20, 128 << 10
_SLOTS_SIZE = (8 * abi.SLOTS + PAGE - 1) // PAGE * PAGE

#: Between them is what a process has mapped: vm.mmap_min_addr, and DEFAULT_MAP_WINDOW, above which nothing is unasked.
_LOWEST, _HIGHEST = 0x10000, (1 << 47) - PAGE

_PROT_READ, _PROT_WRITE, _PROT_EXEC = 1, 2, 4
_MAP_PRIVATE_ANONYMOUS = 0x22
_MADV_DONTFORK, _MADV_DOFORK = 10, 11

libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.pthread_self.restype = ctypes.c_ulong

_size = PAGE + _SLOTS_SIZE + KEPT_SIZE + FRAME_SIZE
_base = libc.mmap(None, _size, _PROT_READ | _PROT_WRITE, _MAP_PRIVATE_ANONYMOUS, -1, 0)
if _base == ctypes.c_void_p(-1).value:
    raise OSError(ctypes.get_errno(), "mmap")
SLOTS = _base + PAGE
KEPT = SLOTS + _SLOTS_SIZE
FRAME = KEPT + KEPT_SIZE


def code() -> bytes:
    """The instructions."""
    lines = [line.split(None, 1)[0] for line in LISTING.splitlines() if line.startswith(" ")]
    return bytes.fromhex("".join(lines))


def _load() -> Callable[..., int] | None:
    """The instructions as a function; None where they are not this machine's, or may not be executed."""
    if abi.MACHINE != "x86_64":
        return None
    ctypes.memmove(_base, code(), len(code()))
    if libc.mprotect(_base, PAGE, _PROT_READ | _PROT_EXEC) == -1:
        return None
    return ctypes.PYFUNCTYPE(ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)(_base)


def _others() -> list[tuple[int, int]]:
    """Address and length of what a clone does without: all but this module's memory, and what the kernel needs.

    That is where it writes which processor a thread is on (rseq(2)), beside the
    thread's own variables: a process that has not got this page is killed when
    it is preempted.  And the kernel's own pages, [vdso] and [vvar], which cannot
    be unmarked: MADV_DOFORK would end there, and the rest of its range stay as
    it is.
    """
    thread = libc.pthread_self()
    try:
        rseq = thread + ctypes.c_ssize_t.in_dll(libc, "__rseq_offset").value
    except ValueError:  # this libc has none
        rseq = thread
    needed = [(_base, _base + _size)] + [(at // PAGE * PAGE, at // PAGE * PAGE + 2 * PAGE) for at in (thread, rseq)]
    with open("/proc/self/maps", "rb") as maps:
        for line in maps:
            place, *_, name = line.split()
            if name.startswith(b"[v"):
                start, end = (int(part, 16) for part in place.split(b"-"))
                needed.append((start, end))
    others, at = [], _LOWEST
    for start, end in sorted([*needed, (_HIGHEST, _HIGHEST)]):
        if at < start <= _HIGHEST:  # [vsyscall] is above
            others.append((at, start - at))
        at = max(at, end)
    return others


_clone = _load()
_ranges = _others() if _clone is not None else []


def present() -> bool:
    """Whether there is machine code to run."""
    return _clone is not None


def clone(arguments: Any, table: int) -> int:
    """Clone, with the struct clone_args *arguments*, a process that runs the sections of *table*; its pid.

    Raises OSError.
    """
    assert _clone is not None
    arguments[0] |= abi.CLONE_CLEAR_SIGHAND  # it has not got the code of a handler
    try:
        _advise(_MADV_DONTFORK)
        pid = _clone(ctypes.addressof(arguments), table, SLOTS + 8 * abi.CHANNEL)
    finally:
        _advise(_MADV_DOFORK)
    if pid < 0:
        raise OSError(-pid, "clone3")
    return pid


def _advise(advice: int) -> None:
    """Mark or unmark what a clone does without. Raises OSError if it cannot be marked."""
    for address, length in _ranges:
        for _ in range(abi.RETRIES):
            if libc.madvise(address, length, advice) == 0:
                break
            number = ctypes.get_errno()
            if number == errno.ENOMEM:
                break  # there are holes in it, as there should be
            if advice == _MADV_DONTFORK:
                raise OSError(number, "madvise")
            # EAGAIN, want of memory: what stays marked, the next fork would miss.
