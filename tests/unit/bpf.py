"""What a seccomp filter says, in two ways: by running its instructions, and by reading the profile it is made from.

The first is the kernel's classic BPF as seccomp(2) has it, the second the OCI runtime specification's
``linux.seccomp``.  Neither uses anything of what is tested.
"""

from __future__ import annotations

import errno
import re
import struct
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

X86_64, I386 = 0xC000003E, 0x40000003
X32_BIT = 0x40000000
USER_NOTIF = 0x7FC00000
ALLOW, LOG, ERRNO, TRACE, TRAP, KILL, KILL_PROCESS = (
    *(0x7FFF0000, 0x7FFC0000, 0x00050000, 0x7FF00000),
    *(0x00030000, 0x00000000, 0x80000000),
)

Call = tuple[int, int, Sequence[int]]
"""An architecture, a number, six arguments."""

#: Newer than the headers of some distributions: include/uapi/asm-generic/unistd.h.
NEW = {
    "cachestat": 451, "fchmodat2": 452, "map_shadow_stack": 453, "futex_wake": 454, "futex_wait": 455,
    "futex_requeue": 456, "statmount": 457, "listmount": 458, "lsm_get_self_attr": 459, "lsm_set_self_attr": 460,
    "lsm_list_modules": 461, "mseal": 462, "setxattrat": 463, "getxattrat": 464, "listxattrat": 465,
    "removexattrat": 466, "open_tree_attr": 467, "file_getattr": 468, "file_setattr": 469,
}  # fmt: skip


def run(code: bytes, call: Call) -> int:
    """The value that the filter *code*, an array of struct sock_filter, returns for *call*."""
    architecture, number, arguments = call
    data = struct.pack("=IIQ6Q", number, architecture, 0, *arguments)
    program = list(struct.iter_unpack("=HBBI", code))
    accumulator = at = 0
    while True:
        operation, if_true, if_false, constant = program[at]
        at += 1
        if operation == 0x20:  # ld [k]
            (accumulator,) = struct.unpack_from("=I", data, constant)
        elif operation == 0x54:  # and #k
            accumulator &= constant
        elif operation == 0x05:  # ja k
            at += constant
        elif operation in (0x15, 0x25, 0x35, 0x45):  # jeq, jgt, jge, jset
            holds = {
                0x15: accumulator == constant,
                0x25: accumulator > constant,
                0x35: accumulator >= constant,
                0x45: bool(accumulator & constant),
            }[operation]
            at += if_true if holds else if_false
        elif operation == 0x06:  # ret #k
            return int(constant)
        else:
            raise AssertionError(f"instruction {at - 1}: unexpected operation {operation:#x}")


def check(code: bytes) -> None:
    """What the kernel checks when a filter is loaded: its length, and that every path ends in an answer."""
    program = list(struct.iter_unpack("=HBBI", code))
    assert 0 < len(program) <= 4096
    for at, (operation, if_true, if_false, constant) in enumerate(program):
        if operation == 0x06:
            continue
        jumps = {0x05: (constant,), 0x20: (0,), 0x54: (0,)}.get(operation, (if_true, if_false))
        assert all(at + 1 + jump < len(program) for jump in jumps)
        assert operation != 0x20 or (constant < 64 and constant % 4 == 0)


@cache
def names(abi: str) -> dict[int, str]:
    """The system calls of "64", "32" or "x32" by their number, from the kernel's headers for user space."""
    (header,) = Path("/usr/include").glob(f"**/asm/unistd_{abi}.h")
    pattern = r"^#define __NR_(\w+) (?:\(__X32_SYSCALL_BIT [+|] )?(\d+)\)?$"
    found = {int(number): name for name, number in re.findall(pattern, header.read_text(), re.M)}
    assert len(found) > 300
    return found | {number: name for name, number in NEW.items()}


def name_of(architecture: int, number: int, architectures: Sequence[str]) -> str | None:
    """The name of a call in a filter for x86_64 and these *architectures*; "" if unknown, None if not for it at all."""
    if architecture == X86_64 and number < X32_BIT:
        return names("64").get(number, "")
    if architecture == X86_64 and "SCMP_ARCH_X32" in architectures:
        return names("x32").get(number - X32_BIT, "")
    if architecture == I386 and "SCMP_ARCH_X86" in architectures:
        return names("32").get(number, "")
    return None


def oracle(profile: Mapping[str, Any], call: Call) -> int:
    """What *profile*, compiled for x86_64, has to say about *call*."""
    architecture, number, arguments = call
    name = name_of(architecture, number, profile.get("architectures", ()))
    if name is None:
        return ERRNO | errno.ENOSYS
    default = action(profile["defaultAction"], profile.get("defaultErrnoRet"))
    said = {
        action(rule["action"], rule.get("errnoRet"))
        for rule in profile.get("syscalls", ())
        if name in rule["names"] and all(holds(condition, arguments) for condition in rule.get("args", ()))
    }
    said.discard(default)
    assert len(said) <= 1, f"the profile contradicts itself about {name}"
    if said:
        return said.pop()
    mentioned = any(name in rule["names"] for rule in profile.get("syscalls", ()))
    is_native = architecture == X86_64 and number < X32_BIT
    if is_native and not name and not mentioned and default not in (ALLOW, LOG):
        return ERRNO | errno.ENOSYS
    return default


def action(name: str, number: int | None) -> int:
    """SECCOMP_RET_*."""
    if name in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"):
        return {"SCMP_ACT_ERRNO": ERRNO, "SCMP_ACT_TRACE": TRACE}[name] | (errno.EPERM if number is None else number)
    return {
        "SCMP_ACT_ALLOW": ALLOW,
        "SCMP_ACT_LOG": LOG,
        "SCMP_ACT_TRAP": TRAP,
        "SCMP_ACT_NOTIFY": USER_NOTIF,
        "SCMP_ACT_KILL": KILL,
        "SCMP_ACT_KILL_THREAD": KILL,
        "SCMP_ACT_KILL_PROCESS": KILL_PROCESS,
    }[name]


def holds(condition: Mapping[str, Any], arguments: Sequence[int]) -> bool:
    """Whether one of a rule's ``args`` does."""
    argument, value = arguments[condition["index"]], condition["value"]
    if condition["op"] == "SCMP_CMP_MASKED_EQ":
        return argument & value == condition.get("valueTwo", 0)
    return {
        "SCMP_CMP_NE": argument != value,
        "SCMP_CMP_LT": argument < value,
        "SCMP_CMP_LE": argument <= value,
        "SCMP_CMP_EQ": argument == value,
        "SCMP_CMP_GE": argument >= value,
        "SCMP_CMP_GT": argument > value,
    }[condition["op"]]
