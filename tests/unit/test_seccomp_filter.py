"""pycontainer.seccomp_filter: the compiled filter says what the profile says."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pycontainer import seccomp_filter as seccomp
from pycontainer.command import DEFAULT_CAPABILITIES
from pycontainer.errors import InvalidCommandError
from pycontainer.process import capability_numbers
from pycontainer.seccomp import default_profile
from pycontainer_native import plan
from pycontainer_native.host import Host

from . import bpf

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="the simulator knows x86_64 only")

ALL = tuple(capability_numbers())
DENY = {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": errno.EPERM}


def rule(*names: str, action: str = "ALLOW", **more: Any) -> dict[str, Any]:
    return {"names": list(names), "action": f"SCMP_ACT_{action}", **more}


def where(index: int, op: str, value: int, two: int = 0) -> dict[str, Any]:
    return {"index": index, "value": value, "valueTwo": two, "op": f"SCMP_CMP_{op}"}


PROFILES: dict[str, dict[str, Any]] = {
    "default": default_profile(DEFAULT_CAPABILITIES),
    "no capabilities": default_profile(()),
    "all capabilities": default_profile(ALL),
    "raw sockets": default_profile(("CAP_NET_RAW", "CAP_NET_ADMIN")),
    "deny list": {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            rule("mount", "bpf", action="ERRNO", errnoRet=errno.EACCES),
            rule("socket", action="KILL_PROCESS", args=[where(0, "GE", 17)]),
            rule("personality", action="TRAP", args=[where(0, "NE", 0)]),
        ],
    },
    "kill": {"defaultAction": "SCMP_ACT_KILL", "syscalls": [rule("read", "write", "exit_group", "execve")]},
    "nothing": {"defaultAction": "SCMP_ACT_ERRNO"},
    "every operator": {
        **DENY,
        "syscalls": [
            rule("read", args=[where(0, "NE", 3)]),
            rule("write", args=[where(0, "LT", 3), where(2, "LE", 1 << 33)]),
            rule("close", args=[where(0, "EQ", 1 << 40)]),
            rule("dup", args=[where(0, "GE", 7)]),
            rule("dup", args=[where(1, "GT", 0xFFFFFFFF)]),
            rule("dup2", args=[where(5, "MASKED_EQ", 0xF0F0, 0x1010)]),
            rule("lseek", action="LOG"),
            rule("fsync", action="TRACE", errnoRet=77),
        ],
    },
    "asking": {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": [
            rule("mkdir", "mount", "fsopen", action="NOTIFY"),
            rule("mknod", action="NOTIFY", args=[where(1, "MASKED_EQ", 0o170000, 0o60000)]),
            rule("keyctl", action="ERRNO", errnoRet=errno.ENOSYS),
        ],
    },
    # Not socket(2) and its like, nor those of System V, which i386 also has behind one number.
    "three architectures": {
        **DENY,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            rule("read", "write", "mmap", "mmap2", "exit_group", "openat", "time", "waitpid", "clone3"),
            rule("ioctl", args=[where(1, "MASKED_EQ", 0xFFFF, 0x5401)]),
            rule("ptrace", action="ERRNO", errnoRet=errno.ENOSYS),
        ],
    },
}


def arguments(profile: dict[str, Any]) -> list[list[int]]:
    """For every argument the values at which a rule could change its mind, and some with dirt in the upper half."""
    interesting: list[set[int]] = [{0, 2**32, 2**64 - 1} for _ in range(6)]
    for one in profile.get("syscalls", ()):
        for condition in one.get("args", ()):
            for value in (condition["value"], condition["valueTwo"]):
                interesting[condition["index"]] |= {
                    near & 0xFFFFFFFFFFFFFFFF for near in (value, value - 1, value + 1, value + 2**32)
                }
    return [sorted(values) for values in interesting]


def calls(profile: dict[str, Any]) -> Iterator[bpf.Call]:
    """Every number from 0 to 600 on every architecture, more often where arguments matter."""
    values = arguments(profile)
    picked = random.Random(7)
    conditional = {name for one in profile.get("syscalls", ()) if one.get("args") for name in one["names"]}
    architectures = profile.get("architectures", ())
    for architecture, base, top in (
        (bpf.X86_64, 0, 2**64 - 1),
        (bpf.X86_64, bpf.X32_BIT, 2**64 - 1),
        (bpf.I386, 0, 2**32 - 1),
    ):
        for number in range(601):
            call = architecture, base + number
            depends = bpf.name_of(*call, architectures) in conditional
            if depends:
                for index, several in enumerate(values):
                    for value in several:
                        given = [picked.choice(others) & top for others in values]
                        given[index] = value & top
                        yield *call, given
            for _ in range(60 if depends else 2):
                given = [picked.choice((*several, picked.getrandbits(64))) & top for several in values]
                yield *call, given


@pytest.mark.parametrize("name", PROFILES)
def test_the_filter_says_what_the_profile_says(name: str) -> None:
    profile = PROFILES[name]
    code = seccomp.compile(profile)
    bpf.check(code)
    wrong = [
        f"{bpf.name_of(call[0], call[1], profile.get('architectures', ()))} {call}: {said:#x}, not {wanted:#x}"
        for call in calls(profile)
        if (said := bpf.run(code, call)) != (wanted := bpf.oracle(profile, call))
    ]
    assert not wrong, "\n".join(wrong[:20])


@pytest.mark.parametrize("number", [601, 1000, 2**30 - 1, 2**30, 2**31, 2**32 - 1])
@pytest.mark.parametrize("architecture", [bpf.X86_64, bpf.I386, 0xC00000B7])
def test_numbers_that_nobody_has_are_not_allowed(number: int, architecture: int) -> None:
    said = bpf.run(seccomp.compile(PROFILES["default"]), (architecture, number, [0] * 6))
    assert said in (bpf.ERRNO | errno.ENOSYS, bpf.ERRNO | errno.EPERM)
    assert said == bpf.ERRNO | errno.ENOSYS or number == 2**32 - 1  # which is how a tracer skips a call


def test_random_profiles() -> None:
    picked = random.Random(4)
    names = sorted(bpf.names("64").values())
    operators = ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ")
    numbers = (0, 4, 5, 2**32, 2**63, 2**64 - 1)
    values = (0, 4, 5, 6, 2**32, 2**63, 2**64 - 1)
    for _ in range(30):
        rules = []
        free = picked.sample(names, len(names))
        for _ in range(picked.randrange(12)):
            some, free = free[: (size := picked.randrange(1, 30))], free[size:]
            verdict = picked.choice(("ALLOW", "ERRNO", "KILL_PROCESS", "LOG"))
            for _ in range(picked.choice((1, 1, 3))):
                conditions = [
                    where(index, picked.choice(operators), picked.choice(numbers), picked.choice(numbers))
                    for index in picked.sample(range(6), picked.choice((0, 0, 1, 2)))
                ]
                rules.append(rule(*some, action=verdict, args=conditions))
        profile = {"defaultAction": picked.choice(("SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO")), "syscalls": rules}
        code = seccomp.compile(profile)
        for _ in range(2000):
            call = bpf.X86_64, picked.randrange(601), picked.choices(values, k=6)
            assert bpf.run(code, call) == bpf.oracle(profile, call), (call, profile)


def test_what_libseccomp_does_not_know_elsewhere_is_denied_there() -> None:
    code = seccomp.compile({**DENY, "architectures": ["SCMP_ARCH_X86"], "syscalls": [rule("read", "file_getattr")]})
    verdicts = [bpf.run(code, (architecture, 468, [0] * 6)) for architecture in (bpf.X86_64, bpf.I386)]
    assert verdicts == [bpf.ALLOW, bpf.ERRNO | errno.EPERM]
    assert bpf.run(code, (bpf.I386, 3, [0] * 6)) == bpf.ALLOW


def test_socketcall_is_no_way_around_the_families() -> None:
    profile = {**PROFILES["default"], "architectures": ["SCMP_ARCH_X86"]}
    code = seccomp.compile(profile)
    bpf.check(code)
    for operation in range(1, 21):
        assert bpf.run(code, (bpf.I386, 102, [operation, 0, 0, 0, 0, 0])) == bpf.ERRNO | errno.EPERM
    assert bpf.run(code, (bpf.I386, 117, [21, 0, 0, 0, 0, 0])) == bpf.ALLOW  # shmat has no conditions
    assert bpf.run(code, (bpf.I386, 359, [38, 0, 0, 0, 0, 0])) == bpf.ERRNO | errno.EPERM
    assert bpf.run(code, (bpf.I386, 359, [1, 0, 0, 0, 0, 0])) == bpf.ALLOW


@pytest.mark.parametrize(
    ("profile", "field", "problem"),
    [
        ({**DENY, "syscalls": [rule("read"), rule("raed")]}, "seccomp.syscalls[1]", "'raed' is no system call"),
        ({**DENY, "architectures": ["SCMP_ARCH_PDP11"]}, "seccomp.architectures", "SCMP_ARCH_PDP11"),
        ({**DENY, "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}, "seccomp.flags", "which no rule has"),
    ],
)
def test_nothing_of_a_profile_is_dropped(profile: dict[str, Any], field: str, problem: str) -> None:
    with pytest.raises(InvalidCommandError) as caught:
        seccomp.compile_filter(profile)
    assert caught.value.field == field
    assert problem in caught.value.problem


FOREIGN = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]


def test_what_libseccomp_gets_wrong_elsewhere_is_refused() -> None:
    """It forgets the second of two rules when the first one fails, and compares 32 bits where there are 32."""
    twice = [rule("ioctl", action="ERRNO", args=[where(0, "GT", 1)])]
    twice.append(rule("ioctl", action="ERRNO", args=[where(0, "NE", 2), where(2, "GT", 2)]))
    wide = [rule("dup", args=[where(0, "MASKED_EQ", 1 << 32, 1 << 32)])]
    for profile, index in (
        ({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": twice}, 1),
        ({"defaultAction": "SCMP_ACT_LOG", "syscalls": twice}, 1),
        ({**DENY, "syscalls": wide}, 0),
    ):
        bpf.check(seccomp.compile(profile))  # the machine's own are right
        with pytest.raises(InvalidCommandError, match="leave the other architectures out") as caught:
            seccomp.compile({**profile, "architectures": FOREIGN})
        assert caught.value.field == f"seccomp.syscalls[{index}]"
    bpf.check(
        seccomp.compile({**DENY, "architectures": FOREIGN, "syscalls": [rule("dup", args=[where(0, "EQ", 7)])] * 2})
    )
    bpf.check(seccomp.compile({**DENY, "architectures": ["SCMP_ARCH_X32"], "syscalls": wide}))


def test_a_program_that_the_kernel_would_not_take_is_refused() -> None:
    rules = [rule("dup", args=[where(0, "EQ", value << 32 | value)]) for value in range(3000)]
    bpf.check(seccomp.compile({**DENY, "syscalls": rules[:1000]}))
    with pytest.raises(InvalidCommandError, match="instructions long, and the kernel takes 4096 at most"):
        seccomp.compile({**DENY, "syscalls": rules})


def test_a_name_of_another_architecture_only_is_no_error() -> None:
    code = seccomp.compile({**DENY, "syscalls": [rule("read", "mmap2", "socketcall", "riscv_flush_icache")]})
    assert bpf.run(code, (bpf.X86_64, 0, [0] * 6)) == bpf.ALLOW


def test_what_asks_has_a_listener() -> None:
    asking = {**DENY, "listenerPath": "/s", "syscalls": [rule("mkdir", action="NOTIFY")]}
    flags, code = seccomp.compile_filter(asking)  # type: ignore[misc]
    assert flags == 1 << 3
    assert bpf.run(code, (bpf.X86_64, 83, [0] * 6)) == bpf.USER_NOTIF
    wanted = ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", "SECCOMP_FILTER_FLAG_LOG"]
    assert seccomp.compile_filter({**asking, "flags": wanted})[0] == 1 << 5 | 1 << 3 | 1 << 1  # type: ignore[index]
    assert seccomp.compile_filter({**DENY, "listenerPath": "/s"})[0] == 0  # type: ignore[index]


def test_flags() -> None:
    flags = ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"]
    assert seccomp.compile_filter({**DENY, "flags": flags})[0] == 2 | 4  # type: ignore[index]
    assert seccomp.compile_filter(DENY)[0] == 0  # type: ignore[index]
    assert seccomp.compile_filter(None) is None


# -- in the plan


def final_steps(no_new_privileges: bool, filter: seccomp.Filter | None) -> list[str]:
    identity = {"uid": 1000, "gid": 1000}
    exec_plan = plan.compile_exec(
        {"user": identity, "args": ["true"], "env": [], "cwd": "/", "capabilities": {"bounding": ()},
         "noNewPrivileges": no_new_privileges},
        0, (), filter, Host(capabilities=0, last_capability=3, nofile=(1, 1)),
    )  # fmt: skip
    return [step.label for section in exec_plan.sections for step in section.steps]


def test_the_filter_is_loaded_last() -> None:
    assert final_steps(True, (0, bytes(8)))[-2:] == ["die with the launcher", "load the seccomp filter"]


def test_without_no_new_privs_it_is_loaded_while_there_is_cap_sys_admin() -> None:
    steps = final_steps(False, (0, bytes(8)))
    assert steps.count("load the seccomp filter") == 1
    assert steps[steps.index("load the seccomp filter") + 1] == "set groups and ids"


def test_no_filter_no_step() -> None:
    assert "load the seccomp filter" not in final_steps(True, None)


# -- the cache on disk


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tmp_path.chmod(0o755)
    monkeypatch.setattr(seccomp, "RUN", str(tmp_path))
    return tmp_path.joinpath(*seccomp.CACHE)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A profile for every time that one is compiled."""
    profiles: list[Any] = []
    compile: Callable[[Any], bytes] = seccomp.compile
    monkeypatch.setattr(seccomp, "compile", lambda profile: (profiles.append(profile), compile(profile))[1])
    return profiles


READ = {**DENY, "syscalls": [rule("read")]}


@pytest.mark.root
def test_who_is_asked_makes_no_other_program(cache: Path, compiled: list[Any]) -> None:
    asking = {**DENY, "syscalls": [rule("mkdir", action="NOTIFY")]}
    for number in range(3):
        seccomp.compile_filter({**asking, "listenerPath": f"/s{number}", "listenerMetadata": f"{number}"})
    assert len(compiled) == 1


@pytest.mark.root
def test_a_filter_is_compiled_once(cache: Path, compiled: list[Any]) -> None:
    one, two = (seccomp.compile_filter(READ) for _ in range(2))
    assert one == two
    assert compiled == [READ]
    assert cache.stat().st_mode & 0o777 == 0o700
    (file,) = cache.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    seccomp.compile_filter({**DENY, "syscalls": [rule("write")]})
    assert len(compiled) == 2


@pytest.mark.root
@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.write_bytes(file.read_bytes()[:-4]),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"1:2:3:4 /usr/lib/libseccomp.so\n" + file.read_bytes().partition(b"\n")[2]),
        lambda file: file.chmod(0o666),
        lambda file: os.chown(file, 1000, 1000),
        lambda file: (file.rename(other := file.parent.parent / "other"), file.symlink_to(other)),
        lambda file: (file.unlink(), os.mkfifo(file)),
    ],
    ids=["cut", "empty", "other libseccomp", "writable", "another's", "a link", "a fifo"],
)
def test_a_kept_filter_that_cannot_be_trusted_is_made_anew(
    cache: Path, compiled: list[Any], spoil: Callable[[Path], object]
) -> None:
    filter = seccomp.compile_filter(READ)
    (file,) = cache.iterdir()
    spoil(file)
    assert seccomp.compile_filter(READ) == filter
    assert len(compiled) == 2
    assert seccomp.compile_filter(READ) == filter
    assert len(compiled) == 2


@pytest.mark.root
@pytest.mark.parametrize(
    "prepare",
    [
        lambda cache: cache.chmod(0o750),
        lambda cache: cache.parent.chmod(0o777),
        lambda cache: os.chown(cache, 65534, -1),
        lambda cache: os.chown(cache.parent, 65534, -1),
        lambda cache: cache.parent.parent.chmod(0o777),
        lambda cache: (cache.rmdir(), cache.symlink_to("/tmp")),
        lambda cache: (cache.rmdir(), cache.write_text("")),
    ],
    ids=["seen by others", "parent written by others", "another's", "parent another's", "run", "a link", "a file"],
)
def test_a_directory_that_others_could_change_is_not_used(
    cache: Path, compiled: list[Any], prepare: Callable[[Path], object]
) -> None:
    cache.mkdir(parents=True, mode=0o700)
    prepare(cache)
    assert seccomp.compile_filter(READ) == seccomp.compile_filter(READ)
    assert len(compiled) == 2
    assert cache.is_symlink() or not cache.is_dir() or not list(cache.iterdir())


@pytest.mark.root
def test_the_cache_does_not_grow_for_ever(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp, "compile", lambda profile: bytes(8))
    for number in range(2 * seccomp._KEPT):
        seccomp.compile_filter({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": number})
    assert 0 < len(list(cache.iterdir())) <= seccomp._KEPT
