"""A plan in words: ``pycontainer explain``. Numbers become the kernel's names, structures their fields."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pycontainer_native import abi
from pycontainer_native.userns import id_map

if TYPE_CHECKING:
    from pycontainer_native.plan import Plan
    from pycontainer_native.syscalls import Step

_SLOTS = {
    getattr(abi, name): name.lower()
    for name in (
        *("STDIN", "STDOUT", "STDERR", "EXTRA", "CHANNEL", "SCRATCH", "EMPTY", "NULL", "PROC", "SYS", "DEV"),
        "LISTENER",
    )
}
_NAMESPACES = ("NS", "PID", "NET", "IPC", "UTS", "CGROUP", "USER", "TIME")


def describe(plan: Plan) -> Iterator[str]:
    """One line a step: who takes it, what it is for, and the call."""
    if plan.ids is not None:
        yield "launcher: make a user namespace: clone(CLONE_NEWUSER|CLONE_PIDFD)"
        for name, maps in (("uid_map", plan.ids.uids), ("gid_map", plan.ids.gids)):
            yield f"launcher: write {', '.join(id_map(maps).splitlines())} to {name}"
        if plan.entered:
            yield "launcher: make a network namespace in it: unshare(CLONE_NEWNET)"
            yield "caller: put the container's interfaces into that"
    for group in plan.groups:
        yield f"launcher: make cgroup {group.base}/.../ ({','.join(group.controllers) or 'no controllers'})"
        for name, value in group.first_writes:
            yield f"launcher: write {value} to {name}"
        if group.device_program:
            yield f"launcher: set device rules: bpf(BPF_PROG_ATTACH, {len(group.device_program) // 8} instructions)"
    flags = [f"CLONE_NEW{name}" for name in _NAMESPACES if plan.flags & getattr(abi, f"CLONE_NEW{name}")]
    flags.append("CLONE_PIDFD")
    if any(group.version == 2 for group in plan.groups):
        flags.append("CLONE_INTO_CGROUP")
    yield f"launcher: clone3({'|'.join(flags)})"
    for number, section in enumerate(plan.sections):
        for step in section.steps:
            yield f"child: {_line(step)}"
        if plan.hooks is not None and number == plan.hooks[0]:
            for path, argv, _, _ in plan.hooks[2].get("relay", ()):
                yield f"launcher: {_shown(path)}, in namespaces of its own: {_shown(list(argv))}"
            for point, programs in plan.hooks[2].items():
                if point in ("createRuntime", "createContainer"):
                    who = "launcher" if point == "createRuntime" else "child"
                    yield from (f"{who}: {point} hook: {_shown(list(argv))}" for _, argv, _, _ in programs)
        if number == plan.outside > 0:
            yield "child: fork; the parent ends, the child is in the pid namespace"
        if number == 0:
            for group in plan.groups:
                for name, value in group.writes:
                    yield f"launcher: write {value} to {name}"
    if plan.listener is not None:
        yield f"launcher: pidfd_getfd, and send the seccomp listener to {plan.listener.path}"
    if plan.fork == "init":
        yield "child: fork; the parent stays as init, reaps, and passes signals on"
    for path in plan.program.paths:
        yield f"child: execve: execve({_shown(path)}, {_shown(list(plan.program.argv))}, env)"


def _line(step: Step) -> str:
    formatters = _FORMATTERS.get(step.call, {})
    arguments = ", ".join(
        formatters[place](argument) if place in formatters and not isinstance(argument, tuple) else _shown(argument)
        for place, argument in enumerate(step.arguments)
    )
    result = f" = ${step.out}" if step.out is not None else ""
    ways = [f"done: skips {step.skip}"] if step.skip else []
    for error, skipped in step.accept.items():
        if skipped != abi.RETRY:
            ways.append(f"{errno.errorcode[error]}: " + (f"skips {skipped}" if skipped else "goes on"))
    return f"{step.label}: {step.call}({arguments}){result}" + (f"  [{'; '.join(ways)}]" if ways else "")


def _shown(argument: Any) -> str:
    if isinstance(argument, bytes):
        text = argument.decode("utf-8", "replace")
        return f'"{text}"' if text.isprintable() else f"<{len(argument)} bytes>"
    if isinstance(argument, list):
        return f"[{', '.join(map(_shown, argument))}]"
    if isinstance(argument, tuple):
        if len(argument) == 2:
            return "buffer"
        number = argument[0]
        if abi.GIVEN <= number < abi.FIRST_SLOT:
            return f"given{number - abi.GIVEN}"
        return f"${number}" if number >= abi.FIRST_SLOT else _SLOTS.get(number, "tasks")
    return "AT_FDCWD" if argument == abi.AT_FDCWD else str(argument)


def _bits(*prefixes: str) -> Callable[[int], str]:
    """A formatter for flags: their names in :mod:`abi`, the rest as a number."""
    names = {name: value for name, value in vars(abi).items() if name.startswith(prefixes) and value}

    def show(value: int) -> str:
        found = []
        for name, bit in names.items():
            if value & bit == bit:
                found.append(name)
                value &= ~bit
        return "|".join(found + ([hex(value)] if value else [])) or "0"

    return show


def _one(prefix: str) -> Callable[[int], str]:
    """A formatter for one of several numbers."""
    names = {value: name for name, value in vars(abi).items() if name.startswith(prefix)}
    return lambda value: names.get(value, str(value))


_open_flags = _bits("O_")
_resolve = _bits("RESOLVE_")
_attributes = _bits("MOUNT_ATTR_")


def _open_how(how: bytes) -> str:
    flags, mode, resolve = struct.unpack("=QQQ", how)
    access = ("O_RDONLY", "O_WRONLY", "O_RDWR")[flags & 3]
    rest = _open_flags(flags & ~3 & ~os.O_CREAT & ~os.O_EXCL & ~os.O_NOCTTY)
    created = f"|O_CREAT|O_EXCL, mode {mode:#o}" if flags & os.O_CREAT else ""
    return f"{{{'' if flags & abi.O_PATH else access + '|'}{rest}{created}, {_resolve(resolve)}}}"


def _mount_attr(attr: bytes | list[Any]) -> str:
    set_, clear, _, namespace = attr if isinstance(attr, list) else struct.unpack("=QQQQ", attr)
    ids = f", ids of {_shown(namespace)}" if set_ & abi.MOUNT_ATTR_IDMAP else ""
    return f"{{set {_attributes(set_)}, clear {_attributes(clear)}{ids}}}"


def _device(number: int) -> str:
    return f"{os.major(number)}:{os.minor(number)}" if number else "0"


#: How to show the arguments of a call, by their places.
_FORMATTERS: dict[str, dict[int, Callable[[Any], str]]] = {
    "close_range": {1: lambda last: "~0" if last == 0xFFFFFFFF else str(last), 2: _bits("CLOSE_RANGE_")},
    "dup3": {2: _open_flags},
    "fsconfig": {1: _one("FSCONFIG_")},
    "fsmount": {2: _attributes},
    "ioctl": {1: lambda request: _one("TIOC")(request) if request != abi.SIOCSIFFLAGS else "SIOCSIFFLAGS"},
    "keyctl": {0: _one("KEYCTL_")},
    "mkdirat": {2: oct},
    "mknodat": {2: oct, 3: _device},
    "mount": {3: _bits("MS_")},
    "mount_setattr": {2: _bits("AT_EMPTY", "AT_REC"), 3: _mount_attr},
    "move_mount": {4: _bits("MOVE_MOUNT_")},
    "open_tree": {2: _bits("OPEN_TREE_", "AT_EMPTY", "AT_REC")},
    "openat2": {2: _open_how},
    "prctl": {0: _one("PR_")},
    "sendto": {3: _bits("MSG_")},
    "setns": {1: _bits("CLONE_NEW")},
    "umask": {0: oct},
    "umount2": {1: _bits("MNT_")},
    "unshare": {0: _bits("CLONE_NEW")},
}
