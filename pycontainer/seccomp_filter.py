"""Compiling a seccomp profile into the kernel's filter, with libseccomp's tables and, for foreign calls, its compiler.

Drivers do it in the caller's process; what it costs (pyseccomp's
import alone takes 60 ms, the compilation 5) is paid once for a profile on a
host: drivers keep filters in memory, and root's are kept below /run.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from pycontainer import _bpf
from pycontainer._bpf import ABOVE, ANY_BIT, AT_LEAST, EQUAL, Graph
from pycontainer.errors import InvalidCommandError
from pycontainer.seccomp import NOTIFY, notifying

if TYPE_CHECKING:
    import pyseccomp

#: What seccomp(2) takes: its flags, and an array of struct sock_filter.
Filter: TypeAlias = tuple[int, bytes]

#: Where root's compiled filters are kept until the next boot: these directories, in a file system of the host's own.
RUN, CACHE = "/run", ("pycontainer", "seccomp")
#: How many filters are kept.
_KEPT = 64
#: linux/bpf_common.h: BPF_MAXINSNS
_LONGEST = 4096 * 8

#: linux/seccomp.h.  TSYNC is for programs with threads; the child that loads a filter has none.
_FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": 0,
    "SECCOMP_FILTER_FLAG_LOG": 1 << 1,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 1 << 2,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": 1 << 5,
}
#: Not one to ask for: it comes with what has to be asked somebody.
NEW_LISTENER = 1 << 3
_ARCHITECTURES = {"x86_64": "X86_64", "aarch64": "AARCH64", "riscv64": "RISCV64"}
#: Those whose arguments are words of 32 bits.
_NARROW = frozenset(("SCMP_ARCH_X86", "SCMP_ARCH_ARM"))
_X32_BIT = 0x40000000
#: i386's two calls that are many, told apart by an argument: what they are asked to do lies in memory.
_MULTIPLEXERS = {
    102: "socket socketpair bind connect listen accept accept4 getsockname getpeername sendto recvfrom sendmsg recvmsg "
    "sendmmsg recvmmsg shutdown setsockopt getsockopt",
    117: "semop semget semctl semtimedop msgsnd msgrcv msgget msgctl shmat shmdt shmget shmctl",
}
#: Calls that are newer than the libseccomp of some distributions: from 424 on, numbers are the same everywhere.
_NEW_CALLS = {
    name: number
    for number, name in enumerate(
        (
            *("process_madvise", "epoll_pwait2", "mount_setattr", "quotactl_fd", "landlock_create_ruleset"),
            *("landlock_add_rule", "landlock_restrict_self", "memfd_secret", "process_mrelease", "futex_waitv"),
            *("set_mempolicy_home_node", "cachestat", "fchmodat2", "map_shadow_stack", "futex_wake", "futex_wait"),
            *("futex_requeue", "statmount", "listmount", "lsm_get_self_attr", "lsm_set_self_attr", "lsm_list_modules"),
            *("mseal", "setxattrat", "getxattrat", "listxattrat", "removexattrat", "open_tree_attr", "file_getattr"),
            "file_setattr",
        ),
        440,
    )
}


def compile_filter(profile: Mapping[str, Any] | None) -> Filter | None:
    """The filter of *profile*, OCI's ``linux.seccomp``; None, which is no profile, is none.

    Beyond the profile, as with runc: a call that neither the profile nor
    libseccomp has heard of is ENOSYS instead of a default action that denies,
    so that programs which probe for new calls find out.  Any architecture that
    the profile does not have is ENOSYS altogether.

    Raises InvalidCommandError: the profile has a name or a flag that is not
    known here, or too many rules; NotImplementedError: libseccomp is not installed.  The flags
    have NEW_LISTENER where the filter asks somebody: seccomp(2) then returns
    the descriptor that answers are given by.
    """
    return None if profile is None else (_flags(profile), _cached(profile))


def _flags(profile: Mapping[str, Any]) -> int:
    flags = 0
    for flag in profile.get("flags", ()):
        if flag not in _FLAGS:
            raise InvalidCommandError("seccomp.flags", f"{flag} is not supported")
        flags |= _FLAGS[flag]
    if notifying(profile):
        return flags | NEW_LISTENER
    if flags & _FLAGS["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]:
        raise InvalidCommandError("seccomp.flags", f"WAIT_KILLABLE_RECV is about {NOTIFY}, which no rule has")
    return flags


# -- compiling


def compile(profile: Mapping[str, Any]) -> bytes:
    """:func:`compile_filter` without the cache: the array of struct sock_filter.

    The machine's own calls are looked up in a tree of ranges, which loads in
    six tenths of the time of libseccomp's tree of single numbers; where rules
    have arguments they are tried one after the other.  (libseccomp merges rules for
    one call into a tree as well, and of two alternatives that begin alike may
    forget the second when the first one fails: a deny list then lets calls
    pass.)  Other architectures are left to libseccomp's program at the end, and
    such rules are refused where it would be wrong there.
    """
    lib = load_library()
    native = getattr(lib.Arch, _ARCHITECTURES[os.uname().machine])
    default = _action(lib, profile["defaultAction"], profile.get("defaultErrnoRet"))
    with _refused("seccomp", "libseccomp cannot compile it"):
        program = lib.SyscallFilter(default)
        program.set_attr(lib.Attr.ACT_BADARCH, lib.ERRNO(errno.ENOSYS))
        with contextlib.suppress(OSError):  # before libseccomp 2.5 there was no tree, only a list of comparisons
            program.set_attr(lib.Attr.CTL_OPTIMIZE, 2)
    foreign = False
    conditional: set[str] = set()
    for name in profile.get("architectures", ()):
        architecture = getattr(lib.Arch, name.removeprefix("SCMP_ARCH_"), None)
        if architecture is None:
            raise InvalidCommandError("seccomp.architectures", f"libseccomp does not know {name}")
        with _refused("seccomp.architectures", f"libseccomp refuses {name}"):
            if not program.exist_arch(architecture):
                foreign = True
                program.add_arch(architecture)
    narrow = not _NARROW.isdisjoint(profile.get("architectures", ()))
    merged: set[str] = set()  # the calls of which libseccomp has a rule with arguments
    verdicts: dict[int, int] = {}  # of the machine's own calls
    blocks: dict[int, list[tuple[int, Any]]] = {}  # (verdict, arguments), where it depends on them
    for index, rule in enumerate(profile.get("syscalls", ())):
        where = f"seccomp.syscalls[{index}]"
        action = _action(lib, rule["action"], rule.get("errnoRet"))
        arguments = rule.get("args", ())
        for name in rule["names"]:
            number = _number(lib, native, where, name)
            if not arguments:
                verdicts[number] = action
            else:
                blocks.setdefault(number, []).append((action, arguments))
                conditional.add(name)
            if action == default or not foreign:
                continue
            if foreign and action == lib.ALLOW and lib.resolve_syscall(native, name) == -1:
                continue  # too new for libseccomp to have its number elsewhere: there it stays denied
            if arguments:
                _check_foreign(where, name, arguments, narrow, default in (lib.ALLOW, lib.LOG) and name in merged)
                merged.add(name)
            with _refused(where, f"libseccomp refuses the rule for {name}"):
                program.add_rule(action, number, *[_argument(lib, argument) for argument in arguments])
    last = max(*verdicts, *blocks, *_NEW_CALLS.values())
    known = {*_NEW_CALLS.values(), *_numbers(lib, native, last)}
    unknown = default if default in (lib.ALLOW, lib.LOG) else lib.ERRNO(errno.ENOSYS)
    for number in range(last + 2):
        if number not in verdicts:
            verdicts[number] = _BLOCK - number if number in blocks else default if number in known else unknown
    checks = {_BLOCK - number: rules for number, rules in blocks.items() if verdicts.get(number, 0) < 0}
    code = _dispatch(native, _ranges(verdicts, last + 2), checks, default, _export(program))
    if default != unknown and program.exist_arch(lib.Arch.X86):
        # libseccomp lets a multiplexer do what it may do under some condition on arguments, and cannot look at them.
        hidden = [number for number, names in _MULTIPLEXERS.items() if conditional.intersection(names.split())]
        code = _refuse(lib.Arch.X86, hidden, default, code)
    if len(code) > _LONGEST:
        reason = f"its program is {len(code) // 8} instructions long, and the kernel takes {_LONGEST // 8} at most"
        raise InvalidCommandError("seccomp", reason)
    return code


def _check_foreign(
    where: str, name: str, arguments: Sequence[Mapping[str, Any]], narrow: bool, lets_pass: bool
) -> None:
    """Refuse a rule that libseccomp gets wrong for other architectures: so a call would pass that is not to."""
    remedy = "leave the other architectures out, and their calls are ENOSYS"
    if lets_pass:
        reason = (
            f"libseccomp may forget a second rule with arguments for {name} where the default lets it pass: {remedy}"
        )
        raise InvalidCommandError(where, reason)
    if narrow and any(max(one["value"], one.get("valueTwo", 0)) > 0xFFFFFFFF for one in arguments):
        reason = f"{name} has arguments of 32 bits there, and libseccomp compares as many of these: {remedy}"
        raise InvalidCommandError(where, reason)


def load_library() -> Any:
    """pyseccomp. Raises NotImplementedError when it or libseccomp is not installed: a filter is not left out."""
    try:
        import pyseccomp
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise NotImplementedError(f"{error}: install libseccomp, or do without a filter (unconfined)") from None
    return pyseccomp


@contextlib.contextmanager
def _refused(where: str, problem: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InvalidCommandError(where, f"{problem}: {error.strerror}") from None


def _action(lib: Any, name: str, number: int | None) -> int:
    action = getattr(lib, name.removeprefix("SCMP_ACT_"))
    if name in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"):
        return action(errno.EPERM if number is None else number)  # type: ignore[no-any-return]
    return action  # type: ignore[no-any-return]


def _number(lib: Any, native: int, where: str, name: str) -> int:
    """The number of a call, negative when only other architectures have it. Raises InvalidCommandError."""
    number: int = lib.resolve_syscall(native, name)
    if number == -1:
        number = _NEW_CALLS.get(name, -1)
    if number == -1:
        raise InvalidCommandError(where, f"{name!r} is no system call that this libseccomp knows")
    return number


def _export(program: pyseccomp.SyscallFilter) -> bytes:
    memfd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    with open(memfd, "rb") as file, _refused("seccomp", "libseccomp cannot compile it"):
        program.export_bpf(file)
        return os.pread(memfd, os.fstat(memfd).st_size, 0)


def _numbers(lib: Any, native: int, last: int) -> Iterator[int]:
    """The numbers up to *last* that libseccomp has a name for."""
    for number in range(last + 1):
        with contextlib.suppress(ValueError):
            lib.resolve_syscall(native, number)
            yield number


def _argument(lib: Any, argument: Mapping[str, Any]) -> Any:
    operator = getattr(lib, argument["op"].removeprefix("SCMP_CMP_"))
    return lib.Arg(argument["index"], operator, argument["value"], argument.get("valueTwo", 0))


def _ranges(verdicts: Mapping[int, int], end: int) -> list[tuple[int, int]]:
    """(first number, verdict) of each range of numbers below *end* that have the same one; the last goes on beyond."""
    ranges = [(0, verdicts[0])]
    for number in range(1, end):
        if verdicts[number] != ranges[-1][1]:
            ranges.append((number, verdicts[number]))
    return [*ranges, (_X32_BIT, _REST)]


# -- the program: struct seccomp_data has the number at 0, the architecture at 4, the arguments from 16 on

_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
#: In place of a verdict: the program that follows has it; _BLOCK - number: the arguments of that call have.
_REST, _BLOCK = -1, -2

_Rules: TypeAlias = "Sequence[tuple[int, Sequence[Mapping[str, Any]]]]"


def _refuse(architecture: int, numbers: Sequence[int], verdict: int, others: bytes) -> bytes:
    """Give *verdict* on these calls of *architecture*, and leave the others to the program *others*."""
    graph = Graph()
    refused, decided = graph.answer(verdict), graph.rest()
    for number in numbers:
        decided = graph.choose(EQUAL, number, refused, decided)
    decided = graph.choose(EQUAL, architecture, graph.load(_NUMBER, decided), graph.rest())
    return graph.assemble(graph.load(_ARCHITECTURE, decided), others)


def _dispatch(
    native: int, ranges: Sequence[tuple[int, int]], blocks: Mapping[int, _Rules], default: int, others: bytes
) -> bytes:
    """Give the verdict on the native calls of *ranges*, by the *blocks* where it stands for one.

    All else is for the program *others*.
    """
    graph = Graph()
    ends = {_REST: graph.rest(), **{verdict: _block(graph, rules, default) for verdict, rules in blocks.items()}}

    def tree(ranges: Sequence[tuple[int, int]]) -> int:
        if len(ranges) == 1:
            verdict = ranges[0][1]
            return graph.answer(verdict) if verdict >= 0 else ends[verdict]
        middle = len(ranges) // 2
        return graph.choose(AT_LEAST, ranges[middle][0], tree(ranges[middle:]), tree(ranges[:middle]))

    ours = graph.load(_NUMBER, tree(ranges))
    return graph.assemble(graph.load(_ARCHITECTURE, graph.choose(EQUAL, native, ours, ends[_REST])), others)


def _block(graph: Graph, rules: _Rules, default: int) -> int:
    """Try the rules of one call one after the other: the first whose arguments all hold gives its verdict."""
    fails = graph.answer(default)
    for verdict, arguments in reversed(rules):
        holds = graph.answer(verdict)
        for argument in reversed(arguments):
            holds = _condition(graph, argument, holds, fails)
        fails = holds
    return fails


def _condition(graph: Graph, argument: Mapping[str, Any], holds: int, fails: int) -> int:
    """One comparison of 64 bits, in two halves; the upper one is the second word."""
    low, operator = _ARGUMENTS + 8 * argument["index"], argument["op"].removeprefix("SCMP_CMP_")
    value, two = argument["value"], argument.get("valueTwo", 0)
    upper, lower = value >> 32, value & 0xFFFFFFFF
    if operator == "MASKED_EQ":
        for offset, mask, wanted in ((low, lower, two & 0xFFFFFFFF), (low + 4, upper, two >> 32)):
            if mask and not wanted:
                holds = graph.load(offset, graph.choose(ANY_BIT, mask, fails, holds))
            elif mask == wanted != 0 == mask & (mask - 1):
                holds = graph.load(offset, graph.choose(ANY_BIT, mask, holds, fails))
            elif mask == 0xFFFFFFFF:
                holds = graph.load(offset, graph.choose(EQUAL, wanted, holds, fails))
            elif wanted:
                holds = graph.load(offset, graph.masked(mask, graph.choose(EQUAL, wanted, holds, fails)))
        return holds
    if operator == "NE":
        holds, fails = fails, holds
    if operator in ("EQ", "NE"):
        equal = graph.load(low, graph.choose(EQUAL, lower, holds, fails))
        return graph.load(low + 4, graph.choose(EQUAL, upper, equal, fails))
    more, less = (holds, fails) if operator in ("GT", "GE") else (fails, holds)
    last = ABOVE if operator in ("GT", "LE") else AT_LEAST
    equal = graph.load(low, graph.choose(last, lower, more, less))
    return graph.load(low + 4, graph.choose(ABOVE, upper, more, graph.choose(EQUAL, upper, equal, less)))


# -- the cache on disk


def _cached(profile: Mapping[str, Any]) -> bytes:
    """The filter of *profile* from the directory of root's own if it is there; else compiled, and kept there."""
    uname = os.uname()
    # Who is asked is none of the program's business: it is another one, and the same program, with every container.
    about = {key: value for key, value in profile.items() if key not in ("listenerPath", "listenerMetadata")}
    made_by = [os.stat(file).st_mtime_ns for file in (__file__, _bpf.__file__)]
    what = json.dumps([made_by, uname.release, uname.machine, about], sort_keys=True)
    name = hashlib.sha256(what.encode()).hexdigest()
    directory = _open_cache() if os.geteuid() == 0 else -1
    try:
        code = _read(directory, name) if directory >= 0 else b""
        if not code:
            code = compile(profile)
            if directory >= 0:
                with contextlib.suppress(OSError):  # a full disk costs time, and no more
                    _write(directory, name, code)
        return code
    finally:
        if directory >= 0:
            os.close(directory)


def _open_cache() -> int:
    """A descriptor of the cache's directory, which nobody but root could ever write to; -1 when there is none."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(RUN, flags)
    except OSError:
        return -1
    try:
        for name in CACHE:
            if not _is_roots(fd, 0o022):
                raise PermissionError(errno.EPERM, "others can write to it", RUN)
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=fd)
            parent, fd = fd, os.open(name, flags, dir_fd=fd)
            os.close(parent)
        if not _is_roots(fd, 0o077):
            raise PermissionError(errno.EPERM, "others can see it", RUN)
    except OSError:
        os.close(fd)
        return -1
    return fd


def _is_roots(fd: int, nobody: int) -> bool:
    """Whether root owns it, and the mode has none of the bits *nobody*."""
    status = os.fstat(fd)
    return status.st_uid == 0 and not status.st_mode & nobody


def _read(directory: int, name: str) -> bytes:
    """The filter that was kept as *name*, empty when there is none or another libseccomp has made it."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return b""
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode) or not _is_roots(fd, 0o077):
            return b""
        maker, _, code = file.read(_LONGEST + 4096).partition(b"\n")
    path = os.fsdecode(maker.partition(b" ")[2])
    return code if maker == _maker(path) and 0 < len(code) <= _LONGEST and len(code) % 8 == 0 else b""


def _write(directory: int, name: str, code: bytes) -> None:
    """Keep a filter. Nobody ever sees half of it."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        path = next((line[line.index("/") : -1] for line in maps if "/libseccomp.so" in line), "")
    kept = os.listdir(directory)
    if len(kept) >= _KEPT:
        for old in kept:
            os.unlink(old, dir_fd=directory)
    new = f".{os.urandom(8).hex()}"
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)
    with open(fd, "wb") as file:
        file.write(_maker(path) + b"\n" + code)
    os.rename(new, name, src_dir_fd=directory, dst_dir_fd=directory)


def _maker(path: str) -> bytes:
    """Which libseccomp it is: a file's identity, and its path."""
    try:
        status = os.stat(path)
    except OSError:
        return b""
    return f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns} ".encode() + os.fsencode(path)
