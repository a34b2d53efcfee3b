"""The last steps before execve: limits, rights, identity."""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pycontainer_native import abi, capabilities, mounts
from pycontainer_native.steps import bound, die_with_parent
from pycontainer_native.syscalls import Recorder, Slot

if TYPE_CHECKING:
    from pycontainer.seccomp_filter import Filter

# getrlimit(2): asm-generic/resource.h
_RLIMITS = {
    f"RLIMIT_{name}": number
    for number, name in enumerate(
        (
            *("CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE"),
            *("MEMLOCK", "AS", "LOCKS", "SIGPENDING", "MSGQUEUE", "NICE", "RTPRIO", "RTTIME"),
        )
    )
}
NOFILE = _RLIMITS["RLIMIT_NOFILE"]
RLIM_NLIMITS = len(_RLIMITS)


def finish(
    k: Recorder,
    user: Mapping[str, Any],
    cwd: str,
    sets: Mapping[str, Sequence[str]],
    rlimits: Sequence[Mapping[str, Any]] | None,
    no_new_privileges: bool,
    early_filter: Filter | None,
    host: tuple[tuple[tuple[int, int, int], ...], int, int],
    setgroups: bool,
    hold: bool,
    init: bool,
    bounded: bool,
) -> None:
    """From inside the new root to right before execve: limits, rights, identity. Start and exec share it.

    With *bounded* the bounding set is what it is to be.
    """
    inherited, held, last_capability = host
    with k.step("close the set-up's descriptors"):
        # Or a low RLIMIT_NOFILE would leave no number for the two that are still to come.
        k.call("close_range", (abi.REPORT_FD if init else abi.CHANNEL_FD) + 1, 0xFFFFFFFF, 0)
    # NOFILE any earlier would starve the mounts of descriptors; the launcher's own is raised, so it is always set.
    limits = {number: (soft, hard) for number, soft, hard in inherited}
    for limit in rlimits or ():
        limits[_RLIMITS[limit["type"]]] = (limit["soft"], limit["hard"])
    for number, (soft, hard) in limits.items():
        with k.step(f"set {next(name for name, n in _RLIMITS.items() if n == number)}"):
            value = struct.pack("=QQ", soft & 0xFFFFFFFFFFFFFFFF, hard & 0xFFFFFFFFFFFFFFFF)
            k.call("prlimit64", 0, number, value, 0)
    # The bounding set needs CAP_SETPCAP, which a change of ids would take away.
    if not bounded:
        bound(k, capabilities.mask(sets["bounding"]) & held, last_capability)
    # Without no_new_privs the filter takes CAP_SYS_ADMIN, which the next steps may take away (seccomp(2)).
    load_filter(k, early_filter)
    with k.step("set groups and ids"):
        gids = [user["gid"], *(gid for gid in user.get("additionalGids", ()) if gid != user["gid"])]
        if setgroups:
            k.call("setgroups", len(gids), struct.pack(f"={len(gids)}I", *gids))
        k.call("setresgid", *[user["gid"]] * 3)
        k.call("setresuid", *[user["uid"]] * 3)
    with k.step(f"enter {cwd}"):
        # As the user, and by descriptor: /proc/self/fd/N as a directory must not lead out (CVE-2024-21626).
        flags, resolve = abi.O_PATH | abi.O_DIRECTORY, abi.RESOLVE_IN_ROOT | abi.RESOLVE_NO_MAGICLINKS
        root = k.openat2(abi.AT_FDCWD, b"/", flags, 0)
        directory = k.openat2(root, mounts.encode(cwd), flags, resolve)
        k.call("fchdir", directory)
        k.call("getcwd", ("buffer", 4096), 4096, check=(b"/", errno.ENOENT))
    with k.step("set capabilities"):
        effective, permitted, inheritable = (
            capabilities.mask(sets.get(name, ())) & held for name in ("effective", "permitted", "inheritable")
        )
        k.prctl(abi.PR_CAP_AMBIENT, abi.PR_CAP_AMBIENT_CLEAR_ALL)
        k.call("capset", *capabilities.capset_data(effective, permitted, inheritable))
    if no_new_privileges:
        with k.step("set no_new_privs"):
            k.prctl(abi.PR_SET_NO_NEW_PRIVS, 1)
    with k.step("close descriptors on execve"):
        k.call("close_range", abi.CHANNEL_FD, 0xFFFFFFFF, abi.CLOSE_RANGE_CLOEXEC)
    k.call("umask", user.get("umask", 0o022))
    die_with_parent(k)  # again: the change of ids has cleared it
    if hold:
        with k.step("wait for the start"):
            k.call("sendto", abi.CHANNEL_FD, b"g", 1, abi.MSG_NOSIGNAL, 0, 0)
            k.call("recvfrom", abi.CHANNEL_FD, ("buffer", 1), 1, 0, 0, 0, check=(b"s", errno.EPIPE))


def load_filter(k: Recorder, filter: Filter | None) -> None:
    if filter is None:
        return
    flags, code = filter
    out = (abi.LISTENER,) if asks(filter) else None
    with k.step("load the seccomp filter"):
        # struct sock_fprog: the number of instructions, 16 bits of the first word, and a pointer
        k.call("seccomp", abi.SECCOMP_SET_MODE_FILTER, flags, [len(code) // 8, code], out=out)


def confine(k: Recorder, filter: Filter | None, loaded: bool) -> None:
    """What comes after the last report: the filter, so that it need not allow anything but execve.

    Where it asks, and be it *loaded* already, that is the time for whoever is
    asked to get its listener: from who executes the program.
    """
    if not loaded:
        load_filter(k, filter)
    if asks(filter):
        with k.step("hand over the seccomp listener"):
            listener: Slot = (abi.LISTENER,)
            if loaded:
                listener = k.slot()  # a slot of another section cannot stand in a structure
                k.call("fcntl", (abi.LISTENER,), abi.F_DUPFD_CLOEXEC, 0, out=listener)
            # The launcher takes it by its number, and says when it has.  Both calls are made under the filter, and so
            # are among those that pycontainer_native.listener refuses to have asked about.
            k.call("write", abi.CHANNEL_FD, [ord("l"), listener], 16)
            k.call("read", abi.CHANNEL_FD, ("buffer", 1), 1, check=(b"s", errno.EPIPE))


def asks(filter: Filter | None) -> bool:
    """Whether there are calls about which *filter* asks a supervisor."""
    return filter is not None and bool(filter[0] & abi.SECCOMP_FILTER_FLAG_NEW_LISTENER)
