"""Rules about devices: v1's lists, and on cgroup2 a program that says yes or no (cgroup-v2.rst, "Device controller").

There is nothing but permissions: what no rule allows is denied.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from pycontainer_native import bpf

#: type ("c" or "b", "a" for both), major, minor (None is any): the access that is allowed ("rwm")
Rules: TypeAlias = tuple[tuple[tuple[str, int | None, int | None], str], ...]

# linux/bpf.h: BPF_DEVCG_DEV_*, BPF_DEVCG_ACC_*
_TYPES = {"b": 1, "c": 2}
_ACCESS = {"m": 1, "r": 2, "w": 4}

# The opcodes of BPF instructions (Documentation/bpf/standardization/instruction-set.rst).
_LOAD_WORD = 0x61  # dst = *(u32 *)(src + offset)
_MOVE, _MOVE_NUMBER = 0xBF, 0xB7
_AND_NUMBER, _SHIFT_RIGHT = 0x57, 0x77
_JUMP_UNLESS_EQUAL = 0x55
_EXIT = 0x95


def rules_of(entries: Sequence[Mapping[str, Any]] | None) -> Rules | None:
    """The OCI runtime spec's ``linux.resources.devices``; None where it denies nothing.

    Permissions for the same device become one: a rule has to allow the whole
    of an access, as that of opening a device to read and write.
    """
    if not entries or entries[0] != {"allow": False, "access": "rwm"}:
        return None
    allowed: dict[tuple[str, int | None, int | None], str] = {}
    for entry in entries[1:]:
        if not entry["allow"]:
            raise ValueError(f"{entry}: the first entry denies everything, those after it can only allow")
        key = (entry.get("type", "a"), entry.get("major"), entry.get("minor"))
        had = allowed.get(key, "") + entry["access"]
        allowed[key] = "".join(letter for letter in "rwm" if letter in had)
    return None if allowed.get(("a", None, None)) == "rwm" else tuple(allowed.items())


def lines(rules: Iterable[tuple[tuple[str, int | None, int | None], str]]) -> list[str]:
    """As v1 has them in devices.list, and takes them (cgroup-v1/devices.rst)."""
    return [
        f"{kind} {'*' if major is None else major}:{'*' if minor is None else minor} {access}"
        for (kind, major, minor), access in rules
    ]


def first_writes(rules: Rules) -> list[tuple[str, str]]:
    """What makes them the rules of a new cgroup on v1: it may use what its parent may, so that is denied first."""
    return [("devices.deny", "a"), *(("devices.allow", line) for line in lines(rules))]


def changes(present: str, rules: Rules) -> list[tuple[str, str, str]]:
    """From v1's devices.list *present* to *rules*: (file to write to, the line, the file that undoes it).

    What is new is allowed before anything is denied, so that nothing that is
    allowed before and after is denied in between.
    """
    before: dict[str, str] = {}
    for line in present.splitlines():
        device, _, access = line.rpartition(" ")
        before[device] = access
    after = dict(line.rsplit(" ", 1) for line in lines(rules))
    found = []
    for file, undo, old, new in (
        ("devices.allow", "devices.deny", before, after),
        ("devices.deny", "devices.allow", after, before),
    ):
        for device, access in new.items():
            if more := "".join(letter for letter in access if letter not in old.get(device, "")):
                found.append((file, f"{device} {more}", undo))
    return found


def replace(cgroup: str, rules: Rules) -> None:
    """Make *rules* the program of the directory *cgroup* of cgroup2, in one step. Raises OSError."""
    opened = [os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)]
    try:
        ids = bpf.attached(opened[0])
        if len(ids) != 1:
            raise OSError(errno.EBUSY, f"the cgroup has {len(ids)} device programs, and not only its own")
        opened += [bpf.load(program(rules)), bpf.by_id(ids[0])]
        bpf.attach(*opened)
    finally:
        for descriptor in opened:
            os.close(descriptor)


def program(rules: Rules) -> bytes:
    """The rules as a BPF program, which gets a struct bpf_cgroup_dev_ctx in r1 and allows by returning 1.

    That is: u32 access_type, the access in its upper half and the type in the
    lower, u32 major, u32 minor.
    """
    code = [
        _instruction(_LOAD_WORD, 2, 1, 0),
        _instruction(_MOVE, 3, 2),
        _instruction(_AND_NUMBER, 2, number=0xFFFF),  # r2: type
        _instruction(_SHIFT_RIGHT, 3, number=16),  # r3: access
        _instruction(_LOAD_WORD, 4, 1, 4),  # r4: major
        _instruction(_LOAD_WORD, 5, 1, 8),  # r5: minor
    ]
    for (kind, major, minor), access in rules:
        # Of each test only the end is missing: how far it is to the next rule.
        tests = [
            (register, number)
            for register, number in ((2, _TYPES.get(kind)), (4, major), (5, minor))
            if number is not None
        ]
        rest = 7 & ~sum(_ACCESS[letter] for letter in access)
        allow = [_instruction(_MOVE_NUMBER, 0, number=1), _instruction(_EXIT)]
        if rest:
            # What is asked for beyond the rule's access has to be nothing.
            allow[:0] = [
                _instruction(_MOVE, 0, 3),
                _instruction(_AND_NUMBER, 0, number=rest),
                _instruction(_JUMP_UNLESS_EQUAL, 0, offset=2),
            ]
        for left, (register, number) in zip(range(len(tests) - 1, -1, -1), tests, strict=True):
            code.append(_instruction(_JUMP_UNLESS_EQUAL, register, offset=left + len(allow), number=number))
        code += allow
    code += [_instruction(_MOVE_NUMBER, 0, number=0), _instruction(_EXIT)]
    return b"".join(code)


def _instruction(opcode: int, target: int = 0, source: int = 0, offset: int = 0, number: int = 0) -> bytes:
    """struct bpf_insn: opcode, the two registers in four bits each, offset of a jump or load, immediate value."""
    return struct.pack("=BBhi", opcode, source << 4 | target, offset, number)
