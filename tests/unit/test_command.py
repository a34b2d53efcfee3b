"""pycontainer.command, mount and process: what a Command takes, refuses and keeps."""

from __future__ import annotations

import copy
import json
import os
import pickle
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycontainer.command import (
    COMMAND_KEYWORDS,
    DEFAULT_CAPABILITIES,
    DEFAULT_PATH,
    Command,
    Mount,
    Network,
    Process,
    Resources,
    Rlimit,
)
from pycontainer.errors import InvalidCommandError
from pycontainer.network import named
from pycontainer.rootfs import HostView

TRUE = Process("true")


def refused(field: str, **keywords: Any) -> InvalidCommandError:
    """The error of ``Command.of(["true"], **keywords)``, which names *field*."""
    with pytest.raises(InvalidCommandError) as caught:
        Command.of(["true"], **keywords)
    assert caught.value.field == field
    return caught.value


# -- argv


def test_limits_of_disks_and_huge_pages() -> None:
    command = Command.of(["true"], device_read_bps={"/dev//a": "1k", "/dev/b": -1}, hugepage_limits={"2MB": "4m"})
    assert command.resources.device_read_bps == {"/dev/a": 1024, "/dev/b": -1}
    assert command.resources.hugepage_limits == {"2MB": 4 << 20}
    assert Command.from_json(command.to_json()) == command
    assert hash(command.resources) == hash(Command.from_json(command.to_json()).resources)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("blkio_weight", 9),
        ("blkio_weight", 1001),
        ("blkio_weight_device", {"/dev/a": -1}),
        ("blkio_weight_device", {"a": 10}),
        ("device_read_bps", {"/dev/a": 0}),
        ("device_write_bps", {"/dev/a": True}),
        ("device_read_iops", {"/dev/a": "many"}),
        ("device_write_iops", [("/dev/a", 1)]),
        ("hugepage_limits", {"2M": 1}),
        ("hugepage_limits", {"2MB": -2}),
    ],
)
def test_limits_that_cannot_be(field: str, value: Any) -> None:
    refused(f"resources.{field}", **{field: value})


def test_argv_is_entrypoint_and_arguments() -> None:
    process = Process.of(["sh", "-c", "echo hi"])
    assert process.entrypoint == "sh"
    assert process.arguments == ("-c", "echo hi")
    assert process.argv == ("sh", "-c", "echo hi")


def test_argv_items_may_be_bytes_and_paths() -> None:
    assert Process.of([Path("/bin/ls"), b"\xff", "x"]).argv == ("/bin/ls", "\udcff", "x")


@pytest.mark.parametrize("argv", ["true", b"true", Path("/bin/true")])
def test_a_lone_string_is_refused_with_a_hint(argv: Any) -> None:
    with pytest.raises(InvalidCommandError, match=r'\["sh", "-c"'):
        Command.of(argv)


@pytest.mark.parametrize("argv", [[], (), None, 3, [""], ["a\0b"], [3], [None], ["true", True], {"a"}, ["\ud800"]])
def test_impossible_argv(argv: Any) -> None:
    with pytest.raises(InvalidCommandError) as caught:
        Command.of(argv)
    assert caught.value.field.startswith("process.")


# -- ids


@pytest.mark.parametrize("name", ["a", "0", "a.b_c-D", "x" * 128])
def test_an_id(name: str) -> None:
    assert Command.of(["true"], name=name).id == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "-rf", "a\n", "a\0", "x" * 129, "_a", "é", "a b", "../x", 12, True, b"a"],
)
def test_an_id_that_would_be_a_path_an_option_or_two_lines(name: Any) -> None:
    refused("id", name=name)


def test_without_a_name_the_id_is_random() -> None:
    ids = {Command.of(["true"]).id for _ in range(20)}
    assert len(ids) == 20
    assert all(len(id) == 12 and int(id, 16) >= 0 for id in ids)


# -- users: digits are numbers, everything else is a name or nothing (CVE-2016-3697, CVE-2024-40635, CVE-2026-30892)


@pytest.mark.parametrize(
    "user", ["nobody", "0", "1000", "1000:1000", "alice:extra", "4294967294", "0:4294967294", "www-data", "_apt", "a$"]
)
def test_a_user(user: str) -> None:
    assert Command.of(["true"], user=user).process.user == user


def test_an_int_as_user() -> None:
    assert Command.of(["true"], user=1000).process.user == "1000"


@pytest.mark.parametrize(
    "user",
    [
        *("4294967295", "4294967296", "18446744073709551616", "9" * 5000, "-1", "+0", " 0", "0 "),
        *("0x0", "1_000", "1e3", "٣", "²", "", ":", "0:", ":0", "a:b:c", "alice\n", "0\n", "a\0", "-x"),
        *("a b", "é", True, b"root", -1, "1000:-1", "alice:4294967295", "alice:0x1", 1.0),
    ],
)
def test_an_impossible_user(user: Any) -> None:
    refused("process.user", user=user)


@pytest.mark.parametrize("group", ["4294967295", "-1", "", "a:b", "0x0", True, None, "a\n"])
def test_an_impossible_group(group: Any) -> None:
    refused("process.additional_groups", groups=[group])


def test_groups_under_both_names() -> None:
    assert Command.of(["true"], groups=["a", 7]).process.additional_groups == ("a", "7")
    assert Command.of(["true"], additional_groups=["a"]).process.additional_groups == ("a",)
    refused("process.additional_groups", groups=["a"], additional_groups=["b"])
    refused("process.additional_groups", groups="wheel")


# -- environment


def test_env_is_a_copy() -> None:
    """CVE-2020-14370: two containers shared one mapping."""
    mine = {"FOO": "1"}
    first = Command.of(["true"], env=mine)
    mine["BAR"] = "2"
    second = Command.of(["true"], env={})
    assert first.process.env == {"FOO": "1"}
    assert second.process.env == {}
    assert mine == {"FOO": "1", "BAR": "2"}
    with pytest.raises(TypeError):
        first.process.env["X"] = "y"  # type: ignore[index]


def test_env_counts_by_content() -> None:
    one, two = Process("a", env={"A": "1", "B": "2"}), Process("a", env={"B": "2", "A": "1"})
    assert one == two
    assert hash(one) == hash(two)
    assert one != Process("a", env={"A": "1"})
    assert one != Process("a")


@pytest.mark.parametrize(
    "env",
    [{"": "x"}, {"A=B": "x"}, {"A\0": "x"}, {"A\nB": "x"}, {"A": "x\0"}, {"A": 1}, {1: "A"}, {"A": None}, "A=B", ["A"]],
)
def test_an_impossible_env(env: Any) -> None:
    with pytest.raises(InvalidCommandError) as caught:
        Command.of(["true"], env=env)
    assert caught.value.field.startswith("process.env")


def test_env_values_may_have_several_lines() -> None:
    assert Command.of(["true"], env={"A": "1\n2="}).process.env == {"A": "1\n2="}


# -- working directory, host name


@pytest.mark.parametrize(
    ("cwd", "stored"), [("/", "/"), ("/a//b/./c/", "/a/b/c"), (Path("/x"), "/x"), ("/a.b", "/a.b")]
)
def test_working_dir(cwd: Any, stored: str) -> None:
    assert Command.of(["true"], cwd=cwd).process.working_dir == stored


@pytest.mark.parametrize(
    "cwd", ["", "a", "./a", "/a/..", "/proc/self/fd/7", "/proc", "//proc/self/cwd", "/dev/fd/3", "/a\n", "/a\0", None]
)
def test_an_impossible_working_dir(cwd: Any) -> None:
    """CVE-2024-21626: a working directory that was a magic link to the host."""
    refused("process.working_dir", cwd=cwd)


@pytest.mark.parametrize("hostname", ["", "a b", "a\n", "-a", "x" * 65, "é", "a/b", 1])
def test_an_impossible_hostname(hostname: Any) -> None:
    refused("hostname", hostname=hostname)


def test_hostname() -> None:
    assert Command.of(["true"], hostname="x" * 64).hostname == "x" * 64
    assert Command.of(["true"]).hostname is None


def test_a_hostname_in_the_hosts_uts_namespace_would_rename_the_host() -> None:
    refused("hostname", hostname="box", uts="host")


# -- exact types


@pytest.mark.parametrize("name", ["tty", "privileged", "read_only", "init", "no_new_privileges"])
@pytest.mark.parametrize("value", [1, 0, "yes", None])
def test_flags_are_bools(name: str, value: Any) -> None:
    field = name if name in ("read_only", "init") else f"process.{name}"
    refused(field, **{name: value})


@pytest.mark.parametrize("name", ["cpu_shares", "cpu_quota", "cpu_period", "pids_limit", "memory", "memory_swap"])
@pytest.mark.parametrize("value", [True, 1.5, b"1", [1]])
def test_limits_are_ints(name: str, value: Any) -> None:
    refused(f"resources.{name}", **{name: value})


def test_a_subclass_of_str_is_refused() -> None:
    class Sly(str):
        __slots__ = ()

    refused("id", name=Sly("a"))
    refused("process.user", user=Sly("0"))
    refused("process.env[A]", env={"A": Sly("x")})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("process", None), ("resources", None), ("mounts", ["/a:/b"]), ("mounts", "x")),
        *(("network", 3), ("rootfs", 3), ("config", "lxc.x = 1"), ("config", ("a\nb",)), ("annotations", None)),
        ("masked_paths", ("proc",)),
    ],
)
def test_fields_of_another_type(field: str, value: Any) -> None:
    with pytest.raises(InvalidCommandError) as caught:
        Command(**{"id": "a", "process": TRUE, field: value})
    assert caught.value.field == field


# -- limits


@pytest.mark.parametrize(
    ("given", "size"),
    [
        (4096, 4096),
        ("4096", 4096),
        ("16m", 16 << 20),
        ("1g", 1 << 30),
        ("64mb", 64 << 20),
        ("512k", 512 << 10),
        ("1.5g", 3 << 29),
        ("2 GiB", 2 << 30),
        ("1T", 1 << 40),
        (None, None),
    ],
)
def test_memory(given: Any, size: int | None) -> None:
    assert Command.of(["true"], memory=given).resources.memory == size
    assert Mount.tmpfs("/x", size=given).size == size


@pytest.mark.parametrize(
    "given",
    [
        *("12q", "", "m", "-5", -5, 0, -1, "-1", True, 4095, "1k", "1,5g", "0x1000", "nan", "inf"),
        *("64m\n", "1" * 30, "٦m", 2**63, "9999999p"),
    ],
)
def test_impossible_memory(given: Any) -> None:
    refused("resources.memory", memory=given)
    with pytest.raises(InvalidCommandError):
        Mount.tmpfs("/x", size=given)


@pytest.mark.parametrize("swap", [-1, "-1", 0, None, "64m", "65m"])
def test_memory_swap(swap: Any) -> None:
    Command.of(["true"], memory="64m", memory_swap=swap)


def test_impossible_memory_swap() -> None:
    refused("resources.memory_swap", memory="64m", memory_swap="63m")
    refused("resources.memory_swap", memory_swap="64m")
    refused("resources.memory_swap", memory="64m", memory_swap=-2)
    refused("resources.memory_swap", memory="64m", memory_swap=False)


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("cpu_shares", [2, 262144], [1, 262145, 0, -1]),
        ("cpu_period", [1000, 1000000], [999, 1000001, -1]),
        ("cpu_quota", [1000, 4000000, -1], [999, 0, -2]),
        ("pids_limit", [1, 100, -1], [0, -2, 2**22 + 1]),
        ("cpuset_cpus", ["0", "0-3,5", "1,2,3"], ["", "3-1", "a", "0-", ",1", "1,", "0-1-2", "0 ", "0\n", 0, "-1"]),
        ("cpuset_mems", ["0"], ["x"]),
    ],
)
def test_ranges(name: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert getattr(Command.of(["true"], **{name: value}).resources, name) == value
    for value in bad:
        refused(f"resources.{name}", **{name: value})


def test_cpus_is_a_quota() -> None:
    resources = Command.of(["true"], cpus=0.5).resources
    assert (resources.cpu_quota, resources.cpu_period) == (50000, 100000)
    assert Command.of(["true"], cpus=2).resources.cpu_quota == 200000
    for value in (0, -1, float("nan"), float("inf"), 0.001, True, "1"):
        refused("cpus", cpus=value)
    refused("resources.cpu_quota", cpus=1, cpu_quota=1000)
    refused("resources.cpu_quota", cpus=1, cpu_period=1000)


@pytest.mark.parametrize(
    "given",
    [{"nofile": 64}, {"RLIMIT_NOFILE": (64, 64)}, [Rlimit("nofile", 64, 64)], (Rlimit("RLIMIT_NOFILE", 64, 64),)],
)
def test_rlimits(given: Any) -> None:
    assert Command.of(["true"], rlimits=given).process.rlimits == (Rlimit("RLIMIT_NOFILE", 64, 64),)


@pytest.mark.parametrize(
    "given",
    [
        *({"nofiles": 1}, {"nofile": (2, 1)}, {"nofile": (-1, 5)}, {"nofile": -2}, {"nofile": True}, {"nofile": 2**64}),
        *({"nofile": "64"}, {"nofile": (1, 2, 3)}, {3: 3}, ["nofile"], "nofile", {"nofile": 1, "RLIMIT_NOFILE": 2}),
    ],
)
def test_impossible_rlimits(given: Any) -> None:
    refused("process.rlimits", rlimits=given)


def test_unlimited_rlimit() -> None:
    assert Rlimit("core", 0, -1).hard == -1
    assert Rlimit("core", -1, -1).soft == -1


# -- capabilities


def test_the_default_capabilities_are_dockers_without_two() -> None:
    docker = (
        *("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE"),
        *("NET_RAW", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
    )
    assert set(DEFAULT_CAPABILITIES) == {f"CAP_{name}" for name in docker} - {"CAP_MKNOD", "CAP_NET_RAW"}
    assert len(DEFAULT_CAPABILITIES) == 12
    assert Command.of(["true"]).process.capabilities is None


@pytest.mark.parametrize("spelling", ["CAP_NET_RAW", "NET_RAW", "net_raw", "cap_net_raw"])
def test_a_capability_in_any_spelling(spelling: str) -> None:
    assert Process("a", capabilities=[spelling]).capabilities == ("CAP_NET_RAW",)
    assert Command.of(["true"], cap_add=[spelling]).process.capabilities == tuple(
        sorted((*DEFAULT_CAPABILITIES, "CAP_NET_RAW"))
    )


def test_cap_add_and_cap_drop() -> None:
    def caps(**keywords: Any) -> set[str]:
        names = Command.of(["true"], **keywords).process.capabilities
        assert names is not None
        assert list(names) == sorted(set(names))
        return set(names)

    default = set(DEFAULT_CAPABILITIES)
    assert caps(cap_drop=["ALL"]) == set()
    assert caps(cap_drop=["all"], cap_add=["chown"]) == {"CAP_CHOWN"}
    assert caps(cap_drop=["kill"]) == default - {"CAP_KILL"}
    assert caps(cap_add=["kill"], cap_drop=["kill"]) == default
    everything = caps(cap_add=["ALL"])
    assert everything > default | {"CAP_SYS_ADMIN", "CAP_MKNOD", "CAP_NET_RAW", "CAP_CHECKPOINT_RESTORE"}
    assert not everything & {"CAP_LAST_CAP", "CAP_EFFECTIVE", "CAP_PERMITTED", "CAP_INHERITABLE"}
    assert caps(cap_add=["ALL"], cap_drop=["sys_admin"]) == everything - {"CAP_SYS_ADMIN"}
    assert caps(privileged=True, cap_drop=["sys_admin"]) == everything - {"CAP_SYS_ADMIN"}


def test_every_capability_of_the_kernel_has_a_name() -> None:
    with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
        last = int(file.read())
    names = Command.of(["true"], cap_add=["ALL"]).process.capabilities
    assert names is not None
    assert len(names) == last + 1


@pytest.mark.parametrize("name", ["BOGUS", "CAP_BOGUS", "", "CAP_", "LAST_CAP", "EFFECTIVE", "CAP_CAP_CHOWN", 0, None])
def test_an_unknown_capability(name: Any) -> None:
    refused("cap_add", cap_add=[name])
    refused("cap_drop", cap_drop=[name])
    refused("process.capabilities", capabilities=[name])


def test_capabilities_in_two_ways() -> None:
    refused("process.capabilities", capabilities=["chown"], cap_add=["kill"])
    refused("process.capabilities", capabilities=["ALL"])
    refused("cap_add", cap_add="ALL")


# -- mounts


def test_a_bind_mount() -> None:
    mount = Mount("/a/./b//", "/c//d/", read_only=True, options=["nodev"])
    assert (mount.source, mount.target, mount.type, mount.options) == ("/a/b", "/c/d", "bind", ("nodev",))


@pytest.mark.parametrize(
    "target",
    [
        *("/", "//", "/.", "/proc", "/proc/", "//proc", "/proc/self", "/./proc/x", "/sys"),
        *("/sys/fs/cgroup", "/dev", "/dev/", "", "a", "./a", "/a/../proc", "/..", "/a\nb", "/a\0b", None, 3, "/a\r"),
    ],
)
def test_targets_that_are_not_the_users(target: Any) -> None:
    """CVE-2015-3631, CVE-2019-16884: a volume over /proc let the image answer for the kernel."""
    with pytest.raises(InvalidCommandError) as caught:
        Mount("/a", target)
    assert caught.value.field == "mounts.target"
    with pytest.raises(InvalidCommandError):
        Mount.tmpfs(target)


@pytest.mark.parametrize("target", ["/dev/shm", "/dev/x", "/process", "/a/proc", "/system", "/developer"])
def test_targets_that_only_look_so(target: str) -> None:
    assert Mount("/a", target).target == target


@pytest.mark.parametrize(
    "source", ["", "/proc", "/proc/self/fd/3", "/proc/1/root", "/dev/fd/3", "/a/../b", "/a\nb", "/a\0", None, 3]
)
def test_an_impossible_source(source: Any) -> None:
    with pytest.raises(InvalidCommandError) as caught:
        Mount(source, "/b")
    assert caught.value.field == "mounts.source"


@pytest.mark.parametrize(
    ("field", "keywords"),
    [
        ("mounts.type", {"type": "overlay"}),
        ("mounts.type", {"type": None}),
        ("mounts.options", {"options": ["suid"]}),
        ("mounts.options", {"options": ["ro"]}),
        ("mounts.options", {"options": "nodev"}),
        ("mounts.options", {"options": [3]}),
        ("mounts.options", {"options": ["noatime", "relatime"]}),
        ("mounts.size", {"size": "1m"}),
        ("mounts.mode", {"mode": 0o700}),
        ("mounts.read_only", {"read_only": 1}),
        ("mounts.recursive", {"recursive": None}),
        ("mounts.source", {"type": "tmpfs"}),
    ],
)
def test_an_impossible_mount(field: str, keywords: dict[str, Any]) -> None:
    with pytest.raises(InvalidCommandError) as caught:
        Mount("/a", "/b", **keywords)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "option",
    ["uid=1000", "gid=0", "nr_inodes=1k", "nr_blocks=9", "huge=never", "mpol=bind:0-1", "noswap", "inode64", "noexec"],
)
def test_options_of_a_tmpfs(option: str) -> None:
    assert Mount.tmpfs("/t", options=[option]).options == (option,)
    if option != "noexec":
        with pytest.raises(InvalidCommandError):
            Mount("/a", "/b", options=[option])


@pytest.mark.parametrize("option", ["uid=", "uid=-1", "uid=0,ro", "huge=no", "mpol=a\nb", "size=1", "mode=777", "x=y"])
def test_impossible_options_of_a_tmpfs(option: str) -> None:
    with pytest.raises(InvalidCommandError) as caught:
        Mount.tmpfs("/t", options=[option])
    assert caught.value.field == "mounts.options"


@pytest.mark.parametrize(
    ("field", "keywords"),
    [
        ("mounts.propagation", {"propagation": "public"}),
        ("mounts.propagation", {"propagation": True}),
        ("mounts.propagation", {"propagation": "slave"}),
        ("mounts.propagation", {"propagation": "shared"}),
        ("mounts.propagation", {"source": None, "type": "tmpfs", "propagation": "slave"}),
        ("mounts.uid_mappings", {"uid_mappings": [(0, 0, 0)], "gid_mappings": [(0, 0, 1)]}),
        ("mounts.uid_mappings", {"uid_mappings": [(0, -1, 1)], "gid_mappings": [(0, 0, 1)]}),
        ("mounts.uid_mappings", {"uid_mappings": [(0, 0)], "gid_mappings": [(0, 0, 1)]}),
        ("mounts.uid_mappings", {"uid_mappings": ["0:0:1"], "gid_mappings": [(0, 0, 1)]}),
        ("mounts.uid_mappings", {"uid_mappings": 3, "gid_mappings": [(0, 0, 1)]}),
        ("mounts.uid_mappings", {"uid_mappings": [(0, 2**32 - 2, 2)], "gid_mappings": [(0, 0, 1)]}),
        ("mounts.uid_mappings", {"uid_mappings": [(0, 0, 5), (9, 4, 2)], "gid_mappings": [(0, 0, 1)]}),
        ("mounts.uid_mappings", {"uid_mappings": [(n, n, 1) for n in range(341)], "gid_mappings": [(0, 0, 1)]}),
        ("mounts.gid_mappings", {"uid_mappings": [(0, 0, 1)]}),
        (
            "mounts.uid_mappings",
            {"source": None, "type": "tmpfs", "uid_mappings": [(0, 0, 1)], "gid_mappings": [(0, 0, 1)]},
        ),
    ],
)
def test_an_impossible_propagation_or_mapping(field: str, keywords: dict[str, Any]) -> None:
    with pytest.raises(InvalidCommandError) as caught:
        Mount(**{"source": "/a", "target": "/b", **keywords})
    assert caught.value.field == field


def test_tmpfs() -> None:
    mount = Mount.tmpfs("/x", size="1m", mode=0o1777, options=["noexec"])
    assert mount == Mount(None, "/x", type="tmpfs", size=1 << 20, mode=0o1777, options=("noexec",))
    for mode in (0o10000, -1, "700", True):
        with pytest.raises(InvalidCommandError):
            Mount.tmpfs("/x", mode=mode)  # type: ignore[arg-type]
    with pytest.raises(InvalidCommandError):
        Mount(None, "/x", type="tmpfs", recursive=False)


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("/a:/b", Mount("/a", "/b")),
        ("/a:/b:ro", Mount("/a", "/b", read_only=True)),
        ("/a:/b:rw", Mount("/a", "/b")),
        ("/a:/b:rslave,ro", Mount("/a", "/b", read_only=True, propagation="rslave")),
        ("./a:/b:ro,nosuid,nodev", Mount("./a", "/b", read_only=True, options=("nosuid", "nodev"))),
    ],
)
def test_the_short_form(text: str, mount: Mount) -> None:
    assert Mount.parse(text) == mount


@pytest.mark.parametrize("text", ["", "/a", "/a:", ":/b", "data:/b", "/a:/b:z", "/a:/b:ro:x", "/a:b", "/a:/proc", 3])
def test_an_impossible_short_form(text: Any) -> None:
    with pytest.raises(InvalidCommandError):
        Mount.parse(text)


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("type=bind,source=/a,target=/b,readonly", Mount("/a", "/b", read_only=True)),
        ("src=/a,dst=/b", Mount("/a", "/b")),
        ("src=/a,destination=/b,ro=false", Mount("/a", "/b")),
        ("src=/a,dst=/b,ro=1,bind-nonrecursive", Mount("/a", "/b", read_only=True, recursive=False)),
        ("src=/a,dst=/b,bind-nonrecursive=false", Mount("/a", "/b")),
        ("src=/a,dst=/b,bind-propagation=rshared", Mount("/a", "/b", propagation="rshared")),
        (
            "src=/a,dst=/b,idmap=uids=0-1000-1#5-6-7;gids=0-0-9",
            Mount("/a", "/b", uid_mappings=((0, 1000, 1), (5, 6, 7)), gid_mappings=((0, 0, 9),)),
        ),
        ('"src=/a,b",dst=/c', Mount("/a,b", "/c")),
        ("type=tmpfs,dst=/b,tmpfs-size=1m,tmpfs-mode=1777", Mount.tmpfs("/b", size=1 << 20, mode=0o1777)),
    ],
)
def test_the_long_form(text: str, mount: Mount) -> None:
    assert Mount.parse_long(text) == mount


@pytest.mark.parametrize(
    "text",
    [
        *("", "src=/a", "dst=/b", "src=/a,dst=/b,volume-label=x", "src=/a,dst=/b,ro=maybe"),
        *("type=volume,src=/a,dst=/b", "type=tmpfs,dst=/b,tmpfs-mode=9", "type=tmpfs,dst=/b,tmpfs-size=x"),
        "src=/a,dst=/b,tmpfs-size=1m",
    ],
)
def test_an_impossible_long_form(text: str) -> None:
    with pytest.raises(InvalidCommandError):
        Mount.parse_long(text)


def test_a_target_in_a_shared_mount_would_be_mounted_on_the_host_too() -> None:
    refused("mounts.target", mounts=[Mount("/a", "/b", propagation="rshared"), Mount("/c", "/b/c")])
    for propagation in ("rslave", "rprivate", None):
        Command.of(["true"], mounts=[Mount("/a", "/b", propagation=propagation), Mount("/c", "/b/c")])


def test_a_target_twice() -> None:
    refused("mounts.target", mounts=[Mount("/a", "/x"), Mount("/b", "/x/")])


def test_a_relative_source_is_the_callers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = Command.of(["true"], mounts=[Mount("./data", "/data"), Mount("../up", "/up"), Mount.tmpfs("/t")])
    assert [mount.source for mount in command.mounts] == [f"{tmp_path}/data", f"{tmp_path.parent}/up", None]
    with pytest.raises(InvalidCommandError, match="not absolute"):
        Command(id="a", process=TRUE, mounts=[Mount("./data", "/data")])


def test_a_relative_source_does_not_lead_into_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    refused("mounts.source", mounts=[Mount("proc/self/root", "/x")])


# -- root file system


def test_rootfs_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "box").mkdir()
    monkeypatch.chdir(tmp_path)
    for path in ("box", "./box/", tmp_path / "box", f"{tmp_path}/x/../box"):
        assert Command.of(["true"], rootfs=path).rootfs == f"{tmp_path}/box"


def test_rootfs_that_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "does not exist" in refused("rootfs", rootfs=tmp_path / "none").problem
    assert "not a directory" in refused("rootfs", rootfs=tmp_path / "file").problem
    for path in ("", "a\0b", 3, b"/tmp", "/proc/self/root", "/proc/self/cwd"):
        refused("rootfs", rootfs=path)


def test_the_class_itself_does_not_look_at_the_disk() -> None:
    assert Command(id="a", process=TRUE, rootfs="/not/on/this/machine").rootfs == "/not/on/this/machine"
    with pytest.raises(InvalidCommandError):
        Command(id="a", process=TRUE, rootfs="relative")


def test_rootfs_may_be_a_view_of_the_host() -> None:
    view = HostView(overlays=("/usr",))
    assert Command.of(["true"], rootfs=view).rootfs == view
    assert Command.of(["true"]).rootfs is None


# -- network, namespaces, the rest


def test_network_by_name() -> None:
    assert Command.of(["true"]).network is None
    assert Command.of(["true"], network="host").network == Network("host")
    assert Command.of(["true"], network="none").network == Network("none")
    assert Command.of(["true"], network="container:box").network == Network("container", container="box")
    assert Command.of(["true"], network="ns:/run/netns/x").network == Network("ns", path="/run/netns/x")
    assert Command.of(["true"], network="bridge:br1").network == Network(bridge="br1")


def test_several_networks() -> None:
    two = (Network(bridge="a"), Network(bridge="b", interface="lan"))
    assert Command.of(["true"]).networks == ()
    assert Command.of(["true"], network=[]).network is None
    assert Command.of(["true"], network=["host"]).network == Network("host")
    command = Command.of(["true"], network=["bridge:a", two[1]])
    assert command.network == command.networks == two
    assert Command.from_json(command.to_json()) == command
    assert [network.interface for network in named(two)] == ["eth0", "lan"]
    refused("network.mode", network=["bridge", "host"])
    refused("network.interface", network=["bridge", Network(interface="eth0")])
    refused("network.mac", network=[Network(mac="02:00:00:00:00:0a"), Network(mac="02:00:00:00:00:0A")])
    refused("network", network=["bridge", None])
    routed = Network(address="10.0.0.2", prefix_length=24, gateway="10.0.0.1")
    refused("network.gateway", network=[routed, routed])
    assert named([Network("host")]) == (Network("host"),)


def test_dockers_long_form_of_a_network() -> None:
    text = "name=br0,ip=10.0.0.2/24,gateway=10.0.0.1,ip6=fd00::2/64,gateway6=fd00::1,mac-address=02:00:00:00:00:01"
    assert Network.parse(text + ",mtu=1400,interface=lan,create") == Network(
        bridge="br0",
        create_bridge=True,
        address="10.0.0.2",
        prefix_length=24,
        gateway="10.0.0.1",
        address6="fd00::2",
        prefix_length6=64,
        gateway6="fd00::1",
        mac="02:00:00:00:00:01",
        mtu=1400,
        interface="lan",
    )
    for wrong in ("name=a,x=1", "host:x", "name=a,create=1", "name=a,ip", "name=a,ip=10.0.0.2/x", "name=a,mtu=big", ""):
        with pytest.raises(InvalidCommandError):
            Network.parse(wrong)


@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"bridge": "br-0", "mtu": 1500, "mac": "02:00:00:00:00:01"},
        {"address": "10.0.0.2", "prefix_length": 24, "gateway": "10.0.0.1"},
        {"address": "fd00::2", "prefix_length": 64},
    ],
)
def test_a_bridged_network(keywords: dict[str, Any]) -> None:
    Network(**keywords)


@pytest.mark.parametrize(
    ("field", "keywords"),
    [
        ("mode", {"mode": "nat"}),
        ("container", {"mode": "container"}),
        ("container", {"mode": "container", "container": "../x"}),
        ("container", {"mode": "host", "container": "x"}),
        ("bridge", {"mode": "host", "bridge": "br0"}),
        ("bridge", {"bridge": "a/b"}),
        ("path", {"mode": "ns"}),
        ("path", {"path": "/run/netns/x"}),
        ("path", {"mode": "ns", "path": "netns/x"}),
        ("create_bridge", {"mode": "host", "create_bridge": True}),
        ("create_bridge", {"create_bridge": 1}),
        ("interface", {"interface": "lo"}),
        ("interface", {"interface": "a b"}),
        ("address6", {"address6": "10.0.0.2", "prefix_length6": 24}),
        ("address6", {"address": "fd00::2", "prefix_length": 64, "address6": "fd00::3", "prefix_length6": 64}),
        ("prefix_length6", {"address6": "fd00::2"}),
        ("gateway", {"gateway": "10.0.0.1"}),
        ("gateway", {"address": "10.0.0.2", "prefix_length": 24, "gateway": "fd00::1"}),
        ("gateway", {"address": "10.0.0.2", "prefix_length": 24, "gateway": "10.0.0.2"}),
        ("gateway", {"address": "10.0.0.2", "prefix_length": 24, "gateway": "10.0.1.1"}),
        ("gateway6", {"address6": "fd00::2", "prefix_length6": 64, "gateway6": "fd01::1"}),
        ("mac", {"mac": "01:00:00:00:00:01"}),
        ("mac", {"mac": "00:00:00:00:00:00"}),
        ("bridge", {"bridge": "x" * 16}),
        ("bridge", {"bridge": ".."}),
        ("address", {"address": "10.0.0.256", "prefix_length": 8}),
        ("address", {"address": "10.0.0.1/24", "prefix_length": 24}),
        ("address", {"address": 1, "prefix_length": 24}),
        ("prefix_length", {"address": "10.0.0.1"}),
        ("prefix_length", {"prefix_length": 8}),
        ("prefix_length", {"address": "10.0.0.1", "prefix_length": 33}),
        ("gateway", {"gateway": "gate"}),
        ("mtu", {"mtu": 67}),
        ("mac", {"mac": "02:00:00:00:00:0g"}),
    ],
)
def test_an_impossible_network(field: str, keywords: dict[str, Any]) -> None:
    with pytest.raises(InvalidCommandError) as caught:
        Network(**keywords)
    assert caught.value.field == f"network.{field}"


@pytest.mark.parametrize("name", ["pid", "ipc", "uts"])
def test_namespaces(name: str) -> None:
    keywords: dict[str, Any] = {name: "host"}
    assert getattr(Command.of(["true"], **keywords), name) == "host"
    for value in ("container:box", "ns:/proc/1/ns/ipc"):
        assert getattr(Command.of(["true"], **{name: value}), name) == value  # type: ignore[arg-type]
    for value in ("private", "", True, "container:", "container:../x", "ns:", "ns:relative", "ns:/a\nb", "host:x"):
        refused(name, **{name: value})


@pytest.mark.parametrize("parent", ["a", "/a", "a/b", "/machine.slice", "user@1000.service"])
def test_cgroup_parent(parent: str) -> None:
    assert Command.of(["true"], cgroup_parent=parent).cgroup_parent == parent


@pytest.mark.parametrize("parent", ["", "/", "..", "../x", "a/../b", "a//b", "a/", "a/.", "a\n", "a\0", ".a", 3])
def test_a_cgroup_parent_that_leads_elsewhere(parent: Any) -> None:
    refused("cgroup_parent", cgroup_parent=parent)


@pytest.mark.parametrize("key", ["org.pycontainer.rootfs", "org.systemd.property.ExecStopPost", "run.oci.handler", ""])
def test_annotations_that_would_do_something(key: str) -> None:
    """CVE-2024-3154: an annotation became a property of a systemd unit."""
    refused("annotations", annotations={key: "x"})


def test_an_unknown_keyword_names_the_nearest() -> None:
    with pytest.raises(TypeError, match=r"'memroy'.*'memory'"):
        Command.of(["true"], memroy="64m")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="'zzzzzz'"):
        Command.of(["true"], zzzzzz=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"'cpu'.*'cpus'"):
        Resources.of(cpu=1)


def test_the_keywords_are_known() -> None:
    assert {"rootfs", "env", "cpus", "name", "cap_add", "no_new_privileges"} <= COMMAND_KEYWORDS
    assert "argv" not in COMMAND_KEYWORDS
    assert "unknown" not in COMMAND_KEYWORDS


def test_every_field_of_a_command_is_a_keyword() -> None:
    renamed = {"id": "name", "working_dir": "cwd"}
    leaves = {name for cls in (Command, Process, Resources) for name in attrs.fields_dict(cls)}
    leaves -= {"process", "resources", "entrypoint", "arguments"}
    assert {renamed.get(name, name) for name in leaves} <= COMMAND_KEYWORDS


# -- as a value


def full(**keywords: Any) -> Command:
    """A Command with something in every field."""
    values: dict[str, Any] = {
        "name": "box",
        "rootfs": "/",
        "env": {"A": "\udcfe", "B": "é\n"},
        "cwd": "/x",
        "user": "alice:2000",
        "groups": ["extra", 7],
        "hostname": "h",
        "memory": "64m",
        "memory_swap": -1,
        "cpus": 0.5,
        "cpu_shares": 512,
        "pids_limit": 10,
        "cpuset_cpus": "0-1",
        "cpuset_mems": "0",
        "mounts": [
            Mount("/a", "/b", read_only=True, options=["nodev"]),
            Mount.tmpfs("/c", size="1m", mode=0o700),
            Mount("/a", "/m", propagation="rslave", uid_mappings=[(0, 1000, 1), (5, 6, 7)], gid_mappings=[(0, 0, 9)]),
        ],
        "network": Network(address="10.0.0.2", prefix_length=24),
        "tty": True,
        "read_only": True,
        "rootfs_propagation": "rslave",
        "cap_add": ["net_raw"],
        "rlimits": {"nofile": (1, -1)},
        "init": True,
        "ipc": "host",
        "masked_paths": ["/proc/kcore"],
        "readonly_paths": [],
        "cgroup_parent": "a/b",
        "sysctls": {"net.ipv4.ip_forward": 1},
        "dns": ["192.0.2.53"],
        "dns_search": ["example.org"],
        "extra_hosts": {"db": "192.0.2.7"},
        "oom_score_adj": 5,
        "cpu_affinity": "0-1",
        "apparmor_profile": "docker-default",
        "selinux_label": "system_u:system_r:container_t:s0:c1,c2",
        "mount_label": "system_u:object_r:container_file_t:s0",
        "config": ["lxc.x = y"],
        "annotations": {"k": "v"},
    }
    return Command.of(["sh", "-c", "\udcff"], **(values | keywords))


def test_a_command_is_a_value() -> None:
    one, two = full(), full()
    assert one == two
    assert hash(one) == hash(two)
    assert one != full(hostname="other")
    assert pickle.loads(pickle.dumps(one)) == one
    assert hash(pickle.loads(pickle.dumps(one))) == hash(one)
    assert copy.deepcopy(one) == one
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        one.hostname = "x"  # type: ignore[misc]


def test_copies_are_checked_again() -> None:
    command = full()
    assert command.copy_with(hostname="other").hostname == "other"
    assert command.hostname == "h"
    assert command.copy_with(id="new").process is command.process
    with pytest.raises(InvalidCommandError):
        command.copy_with(hostname="a b")
    with pytest.raises(InvalidCommandError):
        attrs.evolve(command, id="..")
    with pytest.raises(TypeError):
        command.copy_with(hostnam="x")


@pytest.mark.parametrize("command", [full(), full(rootfs=HostView.detect()), full(rootfs=None), Command.of(["true"])])
def test_json_without_loss(command: Command) -> None:
    again = Command.from_json(command.to_json())
    assert again == command
    assert hash(again) == hash(command)
    assert again.to_json() == command.to_json()


def change(data: dict[str, Any], path: str, value: Any) -> str:
    *parents, last = path.split(".")
    inner: Any = data
    for name in parents:
        inner = inner[int(name) if name.isdigit() else name]
    inner[last] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("extra", 1, "extra"),
        ("process.extra", 1, "process.extra"),
        ("process.rlimits.0.extra", 1, "process.rlimits.extra"),
        ("mounts.0.extra", 1, "mounts.extra"),
        ("resources.extra", 1, "resources.extra"),
        ("network.extra", 1, "network.extra"),
        ("id", "../x", "id"),
        ("id", ["a"], "id"),
        ("process.user", "0x0", "process.user"),
        ("process.env", ["A=B"], "process.env"),
        ("process.arguments", "abc", "process.arguments"),
        ("process.capabilities", ["BOGUS"], "process.capabilities"),
        ("mounts.0.target", "/proc", "mounts.target"),
        ("mounts", {"source": "/a", "target": "/b"}, "mounts"),
        ("mounts", ["/a:/b"], "mounts"),
        ("process", [], "process"),
        ("rootfs", {"overlays": ["/"]}, "rootfs.overlays"),
        ("rootfs", {"overlay": []}, "rootfs.overlay"),
        ("resources.memory", True, "resources.memory"),
        ("rootfs_propagation", "x", "rootfs_propagation"),
        ("sysctls", {"kernel.core_pattern": "x"}, "sysctls"),
        ("sysctls", ["net.ipv4.ip_forward"], "sysctls"),
        ("oom_score_adj", 1001, "oom_score_adj"),
        ("oom_score_adj", True, "oom_score_adj"),
        ("cpu_affinity", "1-0", "cpu_affinity"),
        ("apparmor_profile", "a\nchangehat b", "apparmor_profile"),
        ("apparmor_profile", " a", "apparmor_profile"),
        ("selinux_label", "container_t", "selinux_label"),
        ("mount_label", 'a:b:c:s0",exec', "mount_label"),
        ("resources", None, "resources"),
    ],
)
def test_json_is_checked_like_any_other(path: str, value: Any, field: str) -> None:
    with pytest.raises(InvalidCommandError) as caught:
        Command.from_json(change(json.loads(full().to_json()), path, value))
    assert caught.value.field == field


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", "{}", '{"id": "a"}', b"\xff", "[" * 100000])
def test_other_json(text: Any) -> None:
    with pytest.raises(InvalidCommandError):
        Command.from_json(text)


def test_a_key_twice() -> None:
    text = Command.of(["true"], name="a").to_json().replace('"id": "a"', '"id": "a", "id": "b"')
    with pytest.raises(InvalidCommandError, match="twice") as caught:
        Command.from_json(text)
    assert caught.value.field == "id"


#: Any text that has bytes: those of surrogateescape as well, in any combination.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0") | st.sampled_from("\udc80\udcff😀"))
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,9}", fullmatch=True)


@settings(max_examples=100, deadline=None, database=None)
@given(
    argv=st.lists(TEXT, min_size=1, max_size=4).filter(lambda argv: argv[0] != ""),
    env=st.none() | st.dictionaries(NAMES, TEXT, max_size=4),
    memory=st.none() | st.integers(4096, 2**63 - 1),
    limits=st.dictionaries(st.sampled_from(["nofile", "core", "nproc"]), st.integers(-1, 2**64 - 2)),
    annotations=st.dictionaries(NAMES, TEXT, max_size=3),
    paths=st.none() | st.lists(st.sampled_from(["/proc/a", "/b/\udcc3\udca9", "/é"]), max_size=2),
)
def test_json_round_trip(argv: Any, env: Any, memory: Any, limits: Any, annotations: Any, paths: Any) -> None:
    command = Command.of(
        argv, env=env, memory=memory, rlimits=limits, annotations=annotations, masked_paths=paths, name="a"
    )
    again = Command.from_json(command.to_json())
    assert again == command
    assert hash(again) == hash(command)
    assert again.process.argv == command.process.argv == tuple(argv)


def test_default_path() -> None:
    assert DEFAULT_PATH.split(os.pathsep)[0] == "/usr/local/sbin"
    assert "" not in DEFAULT_PATH.split(os.pathsep)
