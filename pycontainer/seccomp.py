"""Which system calls a container may make: the default profile, and the check of a profile of one's own.

A profile is plain data in the form of the OCI runtime specification's
``linux.seccomp``.  A driver turns it into the kernel's filter (seccomp(2)).

The default is an allow list: everything else is EPERM.  Names come from the
kernel's tables (``arch/*/entry/syscalls``, ``include/uapi/asm-generic/unistd.h``);
what they do and which capability they ask for from section 2 of the manual and
capabilities(7).  A call is left out because it is not confined by namespaces,
because it reaches much code of the kernel that ordinary programs never use, or
because it undoes other confinement.
"""

from __future__ import annotations

import errno
import functools
import os
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from pycontainer._fields import FrozenMapping, refuse

__all__ = ["UNCONFINED", "check_profile", "default_profile"]

#: The value of Command.seccomp for no filter at all.
UNCONFINED = "unconfined"

_FILES = """
    access chdir chmod chown close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64
    fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync flock fstat fstatfs fsync ftruncate
    futimesat getcwd getdents getdents64 lchown link linkat lseek lstat mkdir mkdirat mknod mknodat newfstatat open
    openat openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv rename
    renameat renameat2 rmdir sendfile splice stat statfs statx symlink symlinkat sync sync_file_range syncfs tee
    truncate umask unlink unlinkat utime utimensat utimes vmsplice write writev cachestat file_getattr file_setattr
    getxattr lgetxattr fgetxattr getxattrat setxattr lsetxattr fsetxattr setxattrat listxattr llistxattr flistxattr
    listxattrat removexattr lremovexattr fremovexattr removexattrat
    io_setup io_destroy io_submit io_cancel io_getevents io_pgetevents
    inotify_init inotify_init1 inotify_add_watch inotify_rm_watch fanotify_mark
"""
_WAITING = """
    epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd
    eventfd2 pipe pipe2 poll ppoll pselect6 select signalfd signalfd4 timerfd_create timerfd_gettime timerfd_settime
"""
_MEMORY = """
    brk madvise map_shadow_stack memfd_create memfd_secret mincore mlock mlock2 mlockall mmap mprotect mremap mseal
    msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect process_mrelease remap_file_pages
"""
_PROCESSES = """
    arch_prctl capget capset execve execveat exit exit_group fork get_robust_list get_thread_area getcpu getegid
    geteuid getgid getgroups getpgid getpgrp getpid getppid getpriority getresgid getresuid getrlimit getrusage getsid
    gettid getuid ioprio_get ioprio_set landlock_add_rule landlock_create_ruleset landlock_restrict_self membarrier
    modify_ldt pidfd_open pidfd_send_signal prctl prlimit64 restart_syscall rseq seccomp set_robust_list
    set_thread_area set_tid_address setfsgid setfsuid setgid setgroups setpgid setpriority setregid setresgid setresuid
    setreuid setrlimit setsid setuid sysinfo times uname vfork wait4 waitid
    sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler
    sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield
    futex futex_requeue futex_wait futex_waitv futex_wake riscv_flush_icache
"""
_SIGNALS = """
    kill pause rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
    rt_tgsigqueueinfo sigaltstack tgkill tkill
"""
#: The kernel itself lets only CAP_SYS_TIME *set* the clock by the two adjtime calls.
_TIME = """
    adjtimex alarm clock_adjtime clock_getres clock_gettime clock_nanosleep getitimer gettimeofday nanosleep setitimer
    time timer_create timer_delete timer_getoverrun timer_gettime timer_settime
"""
_MESSAGES = """
    accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg recvmsg sendmmsg sendmsg
    sendto setsockopt shutdown
    mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd semctl semget
    semop semtimedop shmat shmctl shmdt shmget getrandom
"""
#: What 32-bit architectures have instead; for a profile that adds one.  Not socketcall(2), which hides the address
#: family behind a pointer where no filter can look.
_32_BIT = """
    _llseek _newselect chown32 clock_adjtime64 clock_getres_time64 clock_gettime64 clock_nanosleep_time64 fadvise64_64
    fchown32 fcntl64 fstat64 fstatat64 fstatfs64 ftruncate64 futex_time64 getegid32 geteuid32 getgid32 getgroups32
    getresgid32 getresuid32 getuid32 io_pgetevents_time64 lchown32 lstat64 mmap2 mq_timedreceive_time64
    mq_timedsend_time64 ppoll_time64 pselect6_time64 recvmmsg_time64 rt_sigtimedwait_time64
    sched_rr_get_interval_time64 semtimedop_time64 sendfile64 setfsgid32 setfsuid32 setgid32 setgroups32 setregid32
    setresgid32 setresuid32 setreuid32 setuid32 sigaction signal sigpending sigprocmask sigreturn sigsuspend stat64
    statfs64 timer_gettime64 timer_settime64 timerfd_gettime64 timerfd_settime64 truncate64 ugetrlimit utimensat_time64
    waitpid
"""
_ALWAYS = tuple(" ".join((_FILES, _WAITING, _MEMORY, _PROCESSES, _SIGNALS, _TIME, _MESSAGES, _32_BIT)).split())

#: What becomes usable with a capability: capabilities(7), and where the kernel checks it.
_WITH_CAPABILITY = {
    "CAP_BPF": "bpf",
    "CAP_DAC_READ_SEARCH": "name_to_handle_at open_by_handle_at",
    "CAP_PERFMON": "perf_event_open",
    # clone3 keeps its flags in memory, where no filter can look: only who may use all of them gets it.
    "CAP_SYS_ADMIN": """
        bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick listmount lookup_dcookie mount mount_setattr
        move_mount open_tree open_tree_attr perf_event_open pivot_root quotactl quotactl_fd setdomainname sethostname
        setns statmount syslog umount umount2 unshare
    """,
    "CAP_SYS_BOOT": "kexec_file_load kexec_load reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module finit_module init_module",
    "CAP_SYS_NICE": "get_mempolicy mbind migrate_pages move_pages set_mempolicy set_mempolicy_home_node",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
    "CAP_SYS_RAWIO": "ioperm iopl",
    "CAP_SYS_TIME": "clock_settime clock_settime64 settimeofday stime",
    "CAP_SYS_TTY_CONFIG": "vhangup",
    "CAP_SYSLOG": "syslog",
}

#: Every CLONE_NEW* that clone(2) takes (the low byte is the exit signal), and the one that only unshare(2) does.
_NEW_NAMESPACES = 0x7E020000
_NEW_TIME = 0x80
#: PER_LINUX, PER_LINUX32, both with UNAME26, and the question which it is: no ADDR_NO_RANDOMIZE, no READ_IMPLIES_EXEC.
_PERSONALITIES = (0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
#: TIOCSTI types into the terminal (CVE-2017-5226), TIOCLINUX pastes into a virtual console (CVE-2023-28100).
_TERMINAL_INJECTION = (0x5412, 0x541C)
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK, _AF_PACKET = 1, 2, 10, 16, 17
_NETLINK_ROUTE, _NETLINK_AUDIT = 0, 9
_INT = 0xFFFFFFFF


def default_profile(capabilities: Collection[str]) -> dict[str, Any]:
    """The default profile for a container with these *capabilities* (``CAP_CHOWN``...), made anew by each call.

    It names no architectures, so it is for the machine's own, and every other
    (i386 and x32 on x86_64) is refused as a whole.  To allow another one, add
    it: ``profile["architectures"] = ["SCMP_ARCH_X86"]``.
    """
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.EPERM,
        "syscalls": [
            {"names": [*names], "action": action, **more, "args": [dict(argument) for argument in arguments]}
            if arguments
            else {"names": [*names], "action": action, **more}
            for names, action, more, arguments in _rules(frozenset(capabilities))
        ],
    }


@functools.lru_cache(maxsize=16)
def _rules(capabilities: frozenset[str]) -> tuple[tuple[Any, ...], ...]:
    """(names, action, further keys, arguments) of every rule."""
    allowed = dict.fromkeys(_ALWAYS)
    for capability, names in _WITH_CAPABILITY.items():
        if capability in capabilities:
            allowed.update(dict.fromkeys(names.split()))

    rules: list[tuple[Any, ...]] = [(tuple(allowed), "SCMP_ACT_ALLOW", {}, ())]

    def allow(name: str, *arguments: tuple[int, int, int]) -> None:
        """Allow *name* where each (index, mask, value) of its arguments holds."""
        conditions = [
            {"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}
            for index, mask, value in arguments
        ]
        rules.append(((name,), "SCMP_ACT_ALLOW", {}, conditions))

    if "clone3" not in allowed:
        # The errno that makes a libc fall back to clone, whose flags can be seen.
        rules.append((("clone3",), "SCMP_ACT_ERRNO", {"errnoRet": errno.ENOSYS}, ()))
        allow("clone", (0, _NEW_NAMESPACES, 0))
        allow("unshare", (0, _NEW_NAMESPACES | _NEW_TIME, 0))
    for value in _PERSONALITIES:
        allow("personality", (0, _INT, value))
    # The kernel reads 32 bits of an ioctl's request: a filter that compares 64 lets 2**32 + TIOCSTI pass
    # (CVE-2019-10063).
    for mask, value in _all_but(*_TERMINAL_INJECTION):
        allow("ioctl", (1, mask, value))
    for family in (_AF_UNIX, _AF_INET, _AF_INET6):
        allow("socket", (0, _INT, family))
    allow("socketpair", (0, _INT, _AF_UNIX))
    if "CAP_NET_ADMIN" in capabilities:
        allow("socket", (0, _INT, _AF_NETLINK))
    else:
        allow("socket", (0, _INT, _AF_NETLINK), (2, _INT, _NETLINK_ROUTE))
        if "CAP_AUDIT_WRITE" in capabilities:
            allow("socket", (0, _INT, _AF_NETLINK), (2, _INT, _NETLINK_AUDIT))
    if "CAP_NET_RAW" in capabilities:
        allow("socket", (0, _INT, _AF_PACKET))
    return tuple(rules)


def _all_but(one: int, other: int) -> Iterable[tuple[int, int]]:
    """(mask, value) pairs of which at least one holds for every 32-bit number but these two, and none for them.

    A profile's rules are alternatives, and each compares an argument at most
    once, so "neither A nor B" has to be said as "one of these bits differs".
    """
    differing = [1 << bit for bit in range(32) if (one ^ other) >> bit & 1]
    for bit in (1 << bit for bit in range(32)):
        if bit not in differing:
            yield bit, ~one & bit
    # Of the bits in which they differ, as many as there are in a row: equal to neither means that somewhere in the
    # ring of them one is as in *one* and the next as in *other*.
    for bit, following in zip(differing, (*differing[1:], differing[0]), strict=True):
        yield bit | following, one & bit | other & following


# -- a profile of one's own

#: Another process, which has the filter's listener, decides on the call (seccomp_unotify(2)).
NOTIFY = "SCMP_ACT_NOTIFY"
_ACTIONS = frozenset(
    f"SCMP_ACT_{name}"
    for name in ("KILL", "KILL_PROCESS", "KILL_THREAD", "TRAP", "ERRNO", "TRACE", "ALLOW", "LOG", "NOTIFY")
)
_OPERATORS = frozenset(f"SCMP_CMP_{name}" for name in ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"))
_FLAGS = frozenset(f"SECCOMP_FILTER_FLAG_{name}" for name in ("TSYNC", "LOG", "SPEC_ALLOW", "WAIT_KILLABLE_RECV"))
_NAME = re.compile("[a-z_][a-z0-9_]{0,63}")
_ARCHITECTURE = re.compile("SCMP_ARCH_[A-Z0-9_]{1,32}")
_DOCKER_ONLY = ("archMap", "includes", "excludes", "name")
#: unix(7): sun_path has 108 bytes, the last of which is a NUL.
_LONGEST_PATH = 107


def check_profile(profile: Mapping[str, Any]) -> FrozenMapping:
    """An immutable copy of *profile*, the OCI runtime specification's ``linux.seccomp``.

    Checked is the form, and that no two rules contradict each other for every
    argument; whether the kernel and libseccomp know the names is the driver's
    to say.  Raises InvalidCommandError, for ``seccomp`` or ``seccomp.<where>``.
    """
    where = "seccomp"
    _keys(
        where,
        profile,
        {"defaultAction"},
        {"defaultErrnoRet", "architectures", "flags", "listenerPath", "listenerMetadata", "syscalls"},
    )
    _action(where, profile, "defaultAction", "defaultErrnoRet")
    for architecture in _list(f"{where}.architectures", profile.get("architectures", ())):
        _matching(f"{where}.architectures", architecture, _ARCHITECTURE)
    for flag in _list(f"{where}.flags", profile.get("flags", ())):
        _one_of(f"{where}.flags", flag, _FLAGS)
    _listener(where, profile)
    rules = _list(f"{where}.syscalls", profile.get("syscalls", ()))
    always: dict[str, tuple[Any, Any]] = {}
    sometimes: dict[str, set[tuple[Any, Any]]] = {}
    for number, rule in enumerate(rules):
        here = f"{where}.syscalls[{number}]"
        _rule(here, rule)
        if rule["action"] == NOTIFY and "listenerPath" not in profile:
            refuse(f"{where}.listenerPath", f"is missing: {here} is to ask who listens there ({NOTIFY})")
        verdict = rule["action"], rule.get("errnoRet")
        for name in rule["names"]:
            if rule.get("args"):
                sometimes.setdefault(name, set()).add(verdict)
            elif always.setdefault(name, verdict) != verdict:
                refuse(here, f"{name} has another action in an earlier rule")
    for name, verdict in always.items():
        if sometimes.get(name, {verdict}) != {verdict}:
            refuse(f"{where}.syscalls", f"{name} has one action for all arguments and another one for some")
    return _frozen(profile)  # type: ignore[no-any-return]


def notifying(profile: Mapping[str, Any] | str | None) -> frozenset[str]:
    """The calls of which some or all are for who listens at ``listenerPath`` to answer; empty: nobody is asked."""
    rules = profile.get("syscalls", ()) if isinstance(profile, Mapping) else ()
    return frozenset(name for rule in rules if rule["action"] == NOTIFY for name in rule["names"])


def may_pass(profile: Mapping[str, Any], name: str, known: Mapping[int, int]) -> bool:
    """Whether *profile* may let the call *name* pass unasked, where the arguments of these indexes are *known*."""
    actions = set()
    for rule in profile.get("syscalls", ()):
        arguments = rule.get("args", ()) if name in rule["names"] else None
        if arguments is None or not all(
            _holds(argument, known[argument["index"]]) for argument in arguments if argument["index"] in known
        ):
            continue
        actions.add(rule["action"])
        if all(argument["index"] in known for argument in arguments):
            break  # the first one that holds decides
    else:
        actions.add(profile["defaultAction"])
    return not actions.isdisjoint(("SCMP_ACT_ALLOW", "SCMP_ACT_LOG"))


def _holds(argument: Mapping[str, Any], value: int) -> bool:
    """Whether *value* is what a rule's *argument* wants."""
    wanted, operator = argument["value"], argument["op"].removeprefix("SCMP_CMP_")
    if operator == "MASKED_EQ":
        return bool(value & wanted == argument.get("valueTwo", 0))
    differs = (value > wanted) - (value < wanted)
    return differs in {"NE": (-1, 1), "LT": (-1,), "LE": (-1, 0), "EQ": (0,), "GE": (0, 1), "GT": (1,)}[operator]


def _listener(where: str, profile: Mapping[str, Any]) -> None:
    if profile["defaultAction"] == NOTIFY:
        refuse(f"{where}.defaultAction", f"{NOTIFY} would ask before the program can start: name the calls in syscalls")
    for key in ("listenerPath", "listenerMetadata"):
        value = profile.get(key, "")
        if type(value) is not str or "\0" in value:
            refuse(f"{where}.{key}", "must be a str without a NUL")
        try:
            size = len(os.fsencode(value) if key == "listenerPath" else value.encode())
        except UnicodeEncodeError:
            refuse(f"{where}.{key}", "is not Unicode")
        if key == "listenerPath" and key in profile:
            if not value.startswith("/"):
                refuse(f"{where}.{key}", f"{value!r} is not absolute")
            if size > _LONGEST_PATH:
                refuse(f"{where}.{key}", f"has {size} bytes, and a socket's path at most {_LONGEST_PATH} (unix(7))")
    if "listenerMetadata" in profile and "listenerPath" not in profile:
        refuse(f"{where}.listenerMetadata", "is told to who listens at listenerPath, and there is none")


def _rule(where: str, rule: Any) -> None:
    _keys(where, rule, {"names", "action"}, {"errnoRet", "args"})
    if not _list(f"{where}.names", rule["names"]):
        refuse(f"{where}.names", "is empty")
    for name in rule["names"]:
        _matching(f"{where}.names", name, _NAME)
    _action(where, rule, "action", "errnoRet")
    indexes = set()
    for number, argument in enumerate(_list(f"{where}.args", rule.get("args", ()))):
        here = f"{where}.args[{number}]"
        _keys(here, argument, {"index", "value", "op"}, {"valueTwo"})
        _number(f"{here}.index", argument["index"], 5)
        for key in ("value", "valueTwo"):
            _number(f"{here}.{key}", argument.get(key, 0), 2**64 - 1)
        _one_of(f"{here}.op", argument["op"], _OPERATORS)
        if argument["index"] in indexes:
            refuse(f"{here}.index", f"{argument['index']} is compared twice in one rule, which libseccomp cannot do")
        indexes.add(argument["index"])


def _keys(where: str, value: Any, needed: set[str], allowed: set[str]) -> None:
    if not isinstance(value, Mapping):
        refuse(where, f"must be an object, not {type(value).__name__}")
    for key in value:
        if key not in needed | allowed:
            hint = ": that is Docker's own form, which its daemon resolves" if key in _DOCKER_ONLY else ""
            refuse(where, f"{key!r} is not in the OCI runtime specification{hint}")
    for key in needed - value.keys():
        refuse(where, f"{key!r} is missing")


def _action(where: str, value: Mapping[str, Any], key: str, errno_key: str) -> None:
    _one_of(f"{where}.{key}", value[key], _ACTIONS)
    if errno_key in value:
        if value[key] not in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"):
            refuse(f"{where}.{errno_key}", f"does not go with {value[key]}")
        # seccomp(2): the kernel cuts an errno at MAX_ERRNO, a tracer gets 16 bits
        _number(f"{where}.{errno_key}", value[errno_key], 4095 if value[key] == "SCMP_ACT_ERRNO" else 65535)


def _list(where: str, value: Any) -> Any:
    if type(value) not in (list, tuple):
        refuse(where, f"must be a list, not {type(value).__name__}")
    return value


def _number(where: str, value: Any, high: int) -> None:
    if type(value) is not int or not 0 <= value <= high:
        refuse(where, f"{value!r} is not an int from 0 to {high}")


def _one_of(where: str, value: Any, known: frozenset[str]) -> None:
    if type(value) is not str or value not in known:
        refuse(where, f"{value!r} is none of {', '.join(sorted(known))}")


def _matching(where: str, value: Any, pattern: re.Pattern[str]) -> None:
    if type(value) is not str or not pattern.fullmatch(value):
        refuse(where, f"{value!r} does not match {pattern.pattern}")


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return FrozenMapping({key: _frozen(item) for key, item in value.items()})
    return tuple(map(_frozen, value)) if type(value) in (list, tuple) else value
