"""pycontainer.seccomp and Command.seccomp: the default profile, and the checks of one's own."""

from __future__ import annotations

import errno
import json
import pickle
import random
from pathlib import Path
from typing import Any

import pytest

from pycontainer.command import DEFAULT_CAPABILITIES, Command, Process
from pycontainer.driver import Feature
from pycontainer.errors import InvalidCommandError
from pycontainer.lifecycle import required_features
from pycontainer.seccomp import _all_but, check_profile, default_profile, may_pass, notifying
from pycontainer.spec import seccomp_to_oci, to_oci

DENY: dict[str, Any] = {"defaultAction": "SCMP_ACT_ERRNO"}
PROFILE: dict[str, Any] = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrnoRet": 38,
    "architectures": ["SCMP_ARCH_X86_64"],
    "flags": ["SECCOMP_FILTER_FLAG_LOG"],
    "syscalls": [
        {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"},
        {
            "names": ["socket"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": 2**64 - 1, "valueTwo": 1, "op": "SCMP_CMP_MASKED_EQ"}],
        },
        {"names": ["bpf"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
    ],
}


def allowed(*capabilities: str) -> set[str]:
    """What the default profile allows whatever the arguments are."""
    rules = default_profile(capabilities)["syscalls"]
    return {name for r in rules if r["action"] == "SCMP_ACT_ALLOW" and "args" not in r for name in r["names"]}


# -- the default profile


def test_the_default_profile_is_a_valid_one() -> None:
    for capabilities in ((), DEFAULT_CAPABILITIES, ("CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_NET_RAW")):
        profile = default_profile(capabilities)
        assert seccomp_to_oci(Command.of(["true"], seccomp=profile)) == profile
        assert json.loads(json.dumps(profile)) == profile


@pytest.mark.parametrize(
    ("capability", "calls"),
    [
        ("CAP_SYS_ADMIN", "mount setns unshare clone clone3 fsopen open_tree bpf pivot_root sethostname statmount"),
        ("CAP_SYS_PTRACE", "ptrace process_vm_readv process_vm_writev pidfd_getfd kcmp"),
        ("CAP_SYS_CHROOT", "chroot"),
        ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
        ("CAP_SYS_MODULE", "init_module finit_module delete_module"),
        ("CAP_SYS_BOOT", "reboot kexec_load"),
        ("CAP_SYS_TIME", "settimeofday clock_settime"),
        ("CAP_SYSLOG", "syslog"),
        ("CAP_BPF", "bpf"),
        ("CAP_PERFMON", "perf_event_open"),
    ],
)
def test_calls_that_come_with_a_capability(capability: str, calls: str) -> None:
    assert not allowed(*({*DEFAULT_CAPABILITIES} - {capability})) & {*calls.split()}
    assert {*calls.split()} <= allowed(capability)


def test_calls_that_no_capability_gives() -> None:
    from pycontainer.process import capability_numbers

    never = {"keyctl", "add_key", "request_key", "io_uring_setup", "userfaultfd", "socketcall", "ioctl", "socket"}
    assert not allowed(*capability_numbers()) & never


def test_everything_but_two_numbers() -> None:
    one, other = 0x5412, 0x541C
    conditions = list(_all_but(one, other))
    picked = random.Random(1)
    near = [number ^ 1 << bit for number in (one, other) for bit in range(32)]
    for number in (*range(0x5300, 0x5500), *near, *(picked.getrandbits(32) for _ in range(10000))):
        assert any(number & mask == value for mask, value in conditions) is (number not in (one, other))


# -- the field


def test_what_stands_in_the_spec(tmp_path: Path) -> None:
    def spec(**keywords: Any) -> Any:
        return to_oci(Command.of(["true"], rootfs=tmp_path, **keywords))["linux"].get("seccomp")

    assert spec() == default_profile(DEFAULT_CAPABILITIES)
    assert spec(cap_add=["SYS_PTRACE"]) == default_profile((*DEFAULT_CAPABILITIES, "CAP_SYS_PTRACE"))
    assert spec(seccomp="unconfined") is None
    assert spec(privileged=True) is None
    assert spec(seccomp=PROFILE) == PROFILE
    assert spec(privileged=True, seccomp=PROFILE) == PROFILE


def test_a_profile_is_a_value() -> None:
    original = json.loads(json.dumps(PROFILE))
    command = Command.of(["true"], name="box", seccomp=original)
    original["syscalls"].clear()
    same = Command.of(["true"], name="box", seccomp=PROFILE)
    assert command == same
    assert hash(command) == hash(same)
    assert pickle.loads(pickle.dumps(command)) == command
    assert Command.from_json(command.to_json()) == command
    assert command != command.copy_with(seccomp=None)
    assert seccomp_to_oci(command) == PROFILE


def test_a_path_is_read_at_once(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(PROFILE))
    commands = [Command.of(["true"], name="box", seccomp=value) for value in (path, str(path), PROFILE)]
    path.unlink()
    assert commands[0] == commands[1] == commands[2]


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"a": 1, "a": 2}', b"\xff", b"[" * 100000])
def test_a_file_that_holds_no_profile(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "profile.json"
    path.write_bytes(text)
    with pytest.raises(InvalidCommandError) as caught:
        Command.of(["true"], seccomp=path)
    assert caught.value.field == "seccomp"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidCommandError, match="No such file"):
        Command.of(["true"], seccomp=tmp_path / "profile.json")


@pytest.mark.parametrize("value", ["profile.json", "", 1, True, [], [("a", 1)]])
def test_what_is_no_profile(value: Any) -> None:
    with pytest.raises(InvalidCommandError) as caught:
        Command(id="box", process=Process("true"), seccomp=value)
    assert caught.value.field == "seccomp"


def with_rule(**changes: Any) -> dict[str, Any]:
    return {**DENY, "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", **changes}]}


def with_argument(**changes: Any) -> dict[str, Any]:
    return with_rule(args=[{"index": 0, "value": 1, "op": "SCMP_CMP_EQ", **changes}])


def with_rules(*rules: tuple[str, str, bool]) -> dict[str, Any]:
    condition = [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]
    return {**DENY, "syscalls": [{"names": [n], "action": a, "args": condition if c else []} for n, a, c in rules]}


@pytest.mark.parametrize(
    ("profile", "field", "problem"),
    [
        ({}, "seccomp", "'defaultAction' is missing"),
        ({"defaultAction": "ALLOW"}, "seccomp.defaultAction", "'ALLOW' is none of"),
        ({"defaultAction": ["x"]}, "seccomp.defaultAction", "is none of"),
        ({**DENY, "defaultErrnoRet": 4096}, "seccomp.defaultErrnoRet", "4096"),
        ({**DENY, "defaultErrnoRet": True}, "seccomp.defaultErrnoRet", "True"),
        ({"defaultAction": "SCMP_ACT_KILL", "defaultErrnoRet": 1}, "seccomp.defaultErrnoRet", "does not go with"),
        ({**DENY, "archMap": []}, "seccomp", "Docker's own form"),
        ({**DENY, 1: 2}, "seccomp", "1 is not in the OCI"),
        ({**DENY, "architectures": "SCMP_ARCH_X86"}, "seccomp.architectures", "must be a list"),
        ({**DENY, "architectures": ["x86"]}, "seccomp.architectures", "'x86'"),
        ({**DENY, "flags": ["LOG"]}, "seccomp.flags", "'LOG'"),
        ({**DENY, "listenerPath": 1}, "seccomp.listenerPath", "must be a str"),
        ({**DENY, "listenerPath": "/a\0b"}, "seccomp.listenerPath", "without a NUL"),
        ({**DENY, "listenerPath": "run/s"}, "seccomp.listenerPath", "'run/s' is not absolute"),
        ({**DENY, "listenerPath": ""}, "seccomp.listenerPath", "'' is not absolute"),
        ({**DENY, "listenerPath": "/" + "é" * 54}, "seccomp.listenerPath", "has 109 bytes"),
        ({**DENY, "listenerMetadata": "x"}, "seccomp.listenerMetadata", "there is none"),
        ({**DENY, "listenerPath": "/s", "listenerMetadata": 1}, "seccomp.listenerMetadata", "must be a str"),
        ({**DENY, "listenerPath": "/s", "listenerMetadata": "\udc80"}, "seccomp.listenerMetadata", "is not Unicode"),
        ({"defaultAction": "SCMP_ACT_NOTIFY", "listenerPath": "/s"}, "seccomp.defaultAction", "SCMP_ACT_NOTIFY would"),
        (with_rules(("mkdir", "SCMP_ACT_NOTIFY", False)), "seccomp.listenerPath", "is missing: seccomp.syscalls[0]"),
        (with_rule(action="SCMP_ACT_NOTIFY", errnoRet=1), "seccomp.syscalls[0].errnoRet", "does not go with"),
        ({**DENY, "syscalls": {}}, "seccomp.syscalls", "must be a list"),
        ({**DENY, "syscalls": ["read"]}, "seccomp.syscalls[0]", "must be an object"),
        (with_rule(names=[]), "seccomp.syscalls[0].names", "is empty"),
        (with_rule(names="read"), "seccomp.syscalls[0].names", "must be a list"),
        (with_rule(names=["READ"]), "seccomp.syscalls[0].names", "'READ'"),
        (with_rule(names=["read\n"]), "seccomp.syscalls[0].names", "read"),
        (with_rule(includes={}), "seccomp.syscalls[0]", "Docker's own form"),
        (with_rule(action="SCMP_ACT_MAYBE"), "seccomp.syscalls[0].action", "SCMP_ACT_MAYBE"),
        (with_rule(errnoRet=1), "seccomp.syscalls[0].errnoRet", "does not go with"),
        (with_argument(index=6), "seccomp.syscalls[0].args[0].index", "6"),
        (with_argument(index=True), "seccomp.syscalls[0].args[0].index", "True"),
        (with_argument(value=-1), "seccomp.syscalls[0].args[0].value", "-1"),
        (with_argument(valueTwo=2**64), "seccomp.syscalls[0].args[0].valueTwo", "18446744073709551616"),
        (with_argument(op="=="), "seccomp.syscalls[0].args[0].op", "'=='"),
        (with_argument(mask=1), "seccomp.syscalls[0].args[0]", "'mask'"),
        (with_rule(args=with_argument()["syscalls"][0]["args"] * 2), "seccomp.syscalls[0].args[1].index", "twice"),
        (with_rules(("read", "SCMP_ACT_ALLOW", False), ("read", "SCMP_ACT_KILL", False)),
         "seccomp.syscalls[1]", "read has another action"),
        (with_rules(("read", "SCMP_ACT_ALLOW", False), ("read", "SCMP_ACT_ERRNO", True)),
         "seccomp.syscalls", "read has one action for all arguments"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_profile(profile: dict[Any, Any], field: str, problem: str) -> None:
    with pytest.raises(InvalidCommandError) as caught:
        Command.of(["true"], seccomp=profile)
    assert caught.value.field == field
    assert problem in caught.value.problem


ASKING: dict[str, Any] = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "listenerPath": "/" + "s" * 106,
    "listenerMetadata": "é",
    "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"},
        {
            "names": ["socket"],
            "action": "SCMP_ACT_NOTIFY",
            "args": [{"index": 0, "value": 1, "valueTwo": 0, "op": "SCMP_CMP_EQ"}],
        },
        {"names": ["bpf"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
    ],
}


def test_a_profile_that_asks(tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_text(json.dumps(ASKING))
    for given in (ASKING, tmp_path / "profile.json"):
        command = Command.of(["true"], rootfs=tmp_path, seccomp=given)
        assert seccomp_to_oci(command) == {**ASKING, "syscalls": [{**r} for r in ASKING["syscalls"]]}
        assert Command.from_json(command.to_json()) == command
        assert {Feature.SECCOMP, Feature.SECCOMP_NOTIFY} <= set(required_features(command))
    assert notifying(check_profile(ASKING)) == {"mkdir", "mkdirat", "socket"}


@pytest.mark.parametrize("profile", [None, "unconfined", PROFILE, {**PROFILE, "listenerPath": "/s"}], ids=str)
def test_a_profile_that_asks_nobody(profile: Any, tmp_path: Path) -> None:
    command = Command.of(["true"], rootfs=tmp_path, seccomp=profile)
    assert notifying(command.seccomp) == frozenset()
    assert Feature.SECCOMP_NOTIFY not in required_features(command)


def test_what_may_pass() -> None:
    rules = (("read", "SCMP_ACT_LOG", False), ("write", "SCMP_ACT_ALLOW", True), ("mkdir", "SCMP_ACT_TRAP", True))
    both = with_rules(*rules)
    assert [may_pass(both, name, {}) for name in ("read", "write", "mkdir", "close")] == [True, True, False, False]
    lenient = {**both, "defaultAction": "SCMP_ACT_ALLOW"}
    assert [may_pass(lenient, name, {}) for name in ("read", "write", "mkdir", "close")] == [True] * 4
    assert not may_pass(with_rules(("read", "SCMP_ACT_KILL", False)) | {"defaultAction": "SCMP_ACT_ALLOW"}, "read", {})


@pytest.mark.parametrize(
    ("op", "value", "two", "passes"),
    [
        ("EQ", 3, 0, True), ("EQ", 1, 0, False), ("NE", 3, 0, False), ("LT", 3, 0, False), ("LE", 3, 0, True),
        ("GE", 3, 0, True), ("GT", 3, 0, False), ("GT", 2, 0, True),
        ("MASKED_EQ", 2, 2, True), ("MASKED_EQ", 2, 0, False),
    ],
)  # fmt: skip
def test_what_may_pass_with_known_arguments(op: str, value: int, two: int, passes: bool) -> None:
    condition = {"index": 0, "op": f"SCMP_CMP_{op}", "value": value, "valueTwo": two}
    allowed = {"names": ["write"], "action": "SCMP_ACT_ALLOW", "args": [condition]}
    profile: dict[str, Any] = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [allowed]}
    assert may_pass(profile, "write", {0: 3}) is passes
    assert may_pass(profile, "write", {1: 3})
    refused = {**allowed, "action": "SCMP_ACT_ERRNO"}
    assert may_pass({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [refused]}, "write", {0: 3}) is not passes
    assert not passes or may_pass({**profile, "syscalls": [allowed, refused]}, "write", {0: 3})
    assert not may_pass({**profile, "syscalls": [refused, allowed]}, "write", {0: 3})


def test_rules_that_agree_are_no_mistake() -> None:
    check_profile(with_rules(("read", "SCMP_ACT_ALLOW", False), ("read", "SCMP_ACT_ALLOW", True)))
    check_profile(with_rules(("read", "SCMP_ACT_ALLOW", True), ("read", "SCMP_ACT_KILL", True)))


def test_only_a_profile_of_ones_own_needs_a_driver_that_has_filters(tmp_path: Path) -> None:
    for value, needed in ((None, False), ("unconfined", False), (PROFILE, True)):
        command = Command.of(["true"], rootfs=tmp_path, seccomp=value)
        assert (Feature.SECCOMP in required_features(command)) is needed


def test_clone3_says_that_it_does_not_exist() -> None:
    (rule,) = [rule for rule in default_profile(())["syscalls"] if "clone3" in rule["names"]]
    assert rule == {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS}
