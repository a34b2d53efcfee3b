"""Device rules: v1's lines, and cgroup2's program, which an interpreter of its few opcodes runs here."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from typing import Any

import pytest

from pycontainer.device import DEFAULT_DEVICE_RULES, rule_to_oci
from pycontainer_native.cgroups import Hierarchy, Layout
from pycontainer_native.cgroups.devices import lines, program, rules_of

DENY = {"allow": False, "access": "rwm"}
TYPES, ACCESS = {"b": 1, "c": 2}, {"m": 1, "r": 2, "w": 4}


def rules(*texts: str) -> Any:
    return rules_of([DENY, *map(rule_to_oci, texts)])


def run(code: bytes, kind: str, major: int, minor: int, access: str) -> bool:
    """What the kernel's BPF machine would answer for this access."""
    context = struct.pack("=III", sum(ACCESS[a] for a in access) << 16 | TYPES[kind], major, minor)
    registers: list[Any] = [None, 0, None, None, None, None]
    at = 0
    while True:
        opcode, both, offset, number = struct.unpack_from("=BBhi", code, 8 * at)
        target, source = both & 15, both >> 4
        at += 1
        match opcode:
            case 0x61:
                assert registers[source] == 0, "a load from elsewhere than the context"
                (registers[target],) = struct.unpack_from("=I", context, offset)
            case 0xBF:
                registers[target] = registers[source]
            case 0xB7:
                registers[target] = number
            case 0x57:
                registers[target] &= number
            case 0x77:
                registers[target] >>= number
            case 0x55:
                assert offset >= 0, "the verifier refuses loops"
                at += offset if registers[target] != number else 0
            case 0x95:
                return bool(registers[0])
            case _:
                raise AssertionError(f"opcode {opcode:#x}")


def allows(texts: Sequence[str], kind: str, major: int, minor: int, access: str) -> bool:
    return run(program(rules(*texts)), kind, major, minor, access)


@pytest.mark.parametrize("kind", ["b", "c"])
@pytest.mark.parametrize("access", ["r", "w", "m", "rw", "rwm"])
def test_without_a_rule_everything_is_denied(kind: str, access: str) -> None:
    assert not allows([], kind, 1, 3, access)


@pytest.mark.parametrize("rule", ["c 10:229 rw", "c 10:* r", "b *:* m", "b 8:1 rwm", "c *:7 w", "b 4095:1048575 w"])
def test_a_rule_allows_what_it_says_and_nothing_else(rule: str) -> None:
    kind, numbers, access = rule.split()
    major, minor = numbers.split(":")
    asked = itertools.product("bc", (0, 1, 8, 10, 4095), (0, 1, 7, 229, 1048575), ("r", "w", "m", "rw", "rm", "rwm"))
    for a_kind, a_major, a_minor, an_access in asked:
        expected = kind == a_kind and major in ("*", str(a_major)) and minor in ("*", str(a_minor))
        expected = expected and {*an_access} <= {*access}
        assert allows(["c 1:3 rwm", rule], a_kind, a_major, a_minor, an_access) is expected or (a_major, a_minor) == (
            1,
            3,
        )


def test_permissions_for_one_device_add_up() -> None:
    assert lines(rules("c 10:229 w", "c 1:1 r", "c 10:229 r")) == ["c 10:229 rw", "c 1:1 r"]
    assert allows(["c 10:229 w", "c 10:229 r"], "c", 10, 229, "rw")


def test_the_defaults() -> None:
    for minor in (3, 5, 7, 8, 9):
        assert allows(DEFAULT_DEVICE_RULES, "c", 1, minor, "rw")
    assert allows(DEFAULT_DEVICE_RULES, "b", 8, 0, "m")
    for kind, major, minor in (("b", 8, 0), ("c", 1, 1), ("c", 5, 1), ("c", 10, 229)):
        assert not allows(DEFAULT_DEVICE_RULES, kind, major, minor, "r")


def test_what_denies_nothing_is_no_rules() -> None:
    assert rules("a *:* rwm") is None
    assert rules_of([{"allow": True, "access": "rwm"}]) is None
    assert rules_of([]) is None
    assert rules_of(None) is None
    with pytest.raises(ValueError, match="denies everything"):
        rules_of([DENY, DENY])


# -- where they go


def layout(*places: tuple[int, str]) -> Layout:
    return Layout(tuple(Hierarchy(v, frozenset(names.split()), "/cg", f"/cg/{names or v}") for v, names in places))


RESOURCES = {"devices": [DENY, rule_to_oci("c 1:3 rwm")]}


def test_v1_denies_everything_first() -> None:
    groups = layout((2, ""), (1, "devices"), (1, "pids")).groups(RESOURCES)
    (group,) = [group for group in groups if group.controllers == ("devices",)]
    assert (group.writes, group.first_writes) == ((), (("devices.deny", "a"), ("devices.allow", "c 1:3 rwm")))
    assert not any(group.device_program for group in groups)


def test_cgroup2_has_a_program_where_no_v1_has_the_controller() -> None:
    two, pids = layout((2, ""), (1, "pids")).groups(RESOURCES)
    assert two.device_program == program(rules("c 1:3 rwm"))
    assert "devices" not in two.enable
    assert not pids.device_program


def test_without_rules_the_controller_is_not_joined() -> None:
    groups = layout((2, ""), (1, "devices"), (1, "pids")).groups({"pids": {"limit": 5}})
    assert [group.controllers for group in groups] == [(), ("pids",)]


def test_where_nothing_can_hold_rules() -> None:
    ((field, problem),) = layout((1, "pids")).check(RESOURCES)
    assert field == "devices"
    assert "no mounted hierarchy" in problem
