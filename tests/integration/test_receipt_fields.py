"""Receipts tell of every field: compared with a Command that differs in that field alone, there is a difference.

Whoever adds a field finds this red until it is a pair here, or has a reason why no receipt tells of it.  The steps of
the native driver's plan are taken away one by one in tests/security/test_receipt_steps.py.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

import pycontainer
from pycontainer import Command, Container, Device, Hook, Hooks, Mount, Network, Process, Resources
from pycontainer.receipt import Receipt
from pycontainer.rootfs import HostView, overlay
from pycontainer_native.driver import NativeDriver

pytestmark = [pytest.mark.root, pytest.mark.tool("busybox")]

#: Fields that no receipt tells of; unchecked() names each, for this reason. In the other pairs of a field that is
#: checked otherwise: what is asked for is None, and anything may be there.
UNCHECKED = {
    "id": "a name, by which drivers find it",
    "process.entrypoint": "a receipt is of what confines a program",
    "process.arguments": "a receipt is of what confines a program",
    "hooks": "what a program has done that has ended is not on record",
    "config": "it is the driver's own",
    "annotations": "they are for hooks",
    "mounts.gid_mappings": "mountinfo says that ids are mapped, and not which",
    "network.bridge": "the other end of its interface is not of its namespaces",
    "network.create_bridge": "the other end of its interface is not of its namespaces",
    "network.container": "which process has another container's only its driver knows",
}

#: What cannot be had here: the unit tests have these, with receipts that are made up.
ELSEWHERE = {
    "apparmor_profile": "takes AppArmor",
    "selinux_label": "takes SELinux",
    "mount_label": "takes SELinux",
    "resources.blkio_weight": "takes BFQ",
    "resources.blkio_weight_device": "takes BFQ",
    "resources.hugepage_limits": "takes the controller hugetlb",
}

#: By field: keywords of the container, keywords of what it is compared with, the difference that is seen.
PAIRS: dict[str, list[tuple[dict[str, Any], dict[str, Any], str]]] = {
    "process.env": [
        ({"env": {"A": "1"}}, {"env": {"A": "2"}}, "process.env"),
        ({"env": {"A": "1"}}, {"env": {}}, "process.env"),
        ({}, {"env": {"A": "1"}}, "process.env"),
    ],
    "process.working_dir": [({"cwd": "/tmp"}, {}, "process.working_dir"), ({}, {"cwd": "/tmp"}, "process.working_dir")],
    "process.user": [({"user": "1000"}, {}, "process.user"), ({"user": "1:5"}, {"user": "1:6"}, "process.group")],
    "process.additional_groups": [({"groups": [7]}, {}, "process.additional_groups")],
    "process.tty": [({"tty": True}, {}, "process.tty"), ({}, {"tty": True}, "process.tty")],
    "process.privileged": [({"privileged": True}, {}, "process.capabilities.bounding")],
    "process.capabilities": [({"cap_add": ["NET_RAW"]}, {}, "process.capabilities.bounding")],
    "process.rlimits": [
        ({"rlimits": {"nofile": 64}}, {"rlimits": {"nofile": 65}}, "process.rlimits.RLIMIT_NOFILE"),
        ({"rlimits": {"nofile": 64}}, {}, "process.rlimits.RLIMIT_NOFILE"),
        ({"rlimits": {"core": 0}}, {"rlimits": {"core": 4096}}, "process.rlimits.RLIMIT_CORE"),
    ],
    "process.no_new_privileges": [({"no_new_privileges": False}, {}, "process.no_new_privileges")],
    "rootfs": [
        ({}, {"rootfs": "OTHER"}, "rootfs"),
        ({}, {"rootfs": None}, "rootfs"),
        ({"rootfs": None}, {}, "rootfs"),
        ({}, {"rootfs": overlay("/etc")}, "rootfs"),
        ({"rootfs": None}, {"rootfs": "VIEW"}, "rootfs"),
    ],
    "hostname": [
        ({"hostname": "a"}, {"hostname": "b"}, "hostname"),
        ({"hostname": "a"}, {}, "hostname"),
        ({}, {"hostname": "b"}, "hostname"),
    ],
    "mounts": [
        ({"mounts": [Mount.tmpfs("/a")]}, {}, "mounts./a"),
        ({"mounts": [Mount("/etc", "/a")]}, {}, "mounts./a"),
        ({}, {"mounts": [Mount("/etc", "/a")]}, "mounts./a"),
    ],
    "devices": [
        ({"devices": [Device("/dev/null", "/dev/x")]}, {}, "devices"),
        ({}, {"devices": [Device("/dev/null", "/dev/x")]}, "devices"),
    ],
    "network": [({"network": "host"}, {}, "namespaces.net"), ({}, {"network": "host"}, "namespaces.net")],
    "network.mode": [({}, {"network": "host"}, "namespaces.net"), ({}, {"network": "bridge"}, "network.interface")],
    "network.path": [
        ({"network": "ns:HOLDER/net"}, {}, "namespaces.net"),
        ({}, {"network": "ns:HOLDER/net"}, "namespaces.net"),
    ],
    "pid": [({"pid": "host"}, {}, "namespaces.pid"), ({}, {"pid": "ns:HOLDER/pid"}, "namespaces.pid")],
    "ipc": [
        ({"ipc": "host"}, {}, "namespaces.ipc"),
        ({}, {"ipc": "ns:HOLDER/ipc"}, "namespaces.ipc"),
        ({"ipc": "ns:HOLDER/ipc"}, {}, "namespaces.ipc"),
        ({"ipc": "container:HOLDER"}, {}, "namespaces.ipc"),
        ({"ipc": "container:HOLDER"}, {"ipc": "host"}, "namespaces.ipc"),
    ],
    "uts": [({"uts": "host"}, {}, "namespaces.uts"), ({"uts": "ns:HOLDER/uts"}, {}, "namespaces.uts")],
    "userns": [({}, {"userns": "auto"}, "namespaces.user")],
    "uid_mappings": [
        ({"uid_mappings": [(0, 300000, 65536)], "gid_mappings": [(0, 300000, 65536)]},
         {"uid_mappings": [(0, 400000, 65536)], "gid_mappings": [(0, 300000, 65536)]}, "uid_mappings"),
        ({"uid_mappings": [(0, 300000, 1000)], "gid_mappings": [(0, 300000, 1000)]}, {"userns": "auto"}, "userns"),
    ],
    "gid_mappings": [
        ({"uid_mappings": [(0, 300000, 65536)], "gid_mappings": [(0, 300000, 65536)]},
         {"uid_mappings": [(0, 300000, 65536)], "gid_mappings": [(0, 400000, 65536)]}, "gid_mappings"),
    ],
    "read_only": [({"read_only": True}, {}, "read_only"), ({}, {"read_only": True}, "read_only")],
    "rootfs_propagation": [
        ({"rootfs_propagation": "shared"}, {}, "rootfs_propagation"),
        ({}, {"rootfs_propagation": "shared"}, "rootfs_propagation"),
        ({"rootfs_propagation": "unbindable"}, {"rootfs_propagation": "shared"}, "rootfs_propagation"),
    ],
    "init": [({"init": True}, {}, "init"), ({}, {"init": True}, "init")],
    "seccomp": [
        ({"seccomp": "unconfined"}, {}, "seccomp"),
        ({"seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}}, {}, "seccomp"),
        ({}, {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}}, "seccomp"),
        (
            {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}},
            {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG"]}},
            "seccomp",
        ),
    ],
    "masked_paths": [
        ({"masked_paths": []}, {"masked_paths": ["/proc/keys"]}, "masked_paths"),
        ({"masked_paths": ["/proc/keys", "/proc/uptime"]}, {"masked_paths": ["/proc/keys"]}, "masked_paths"),
        ({"masked_paths": ["/etc/passwd"]}, {"masked_paths": []}, "masked_paths"),
        ({"masked_paths": ["/etc"]}, {"masked_paths": []}, "masked_paths"),
    ],
    "readonly_paths": [
        ({"readonly_paths": []}, {"readonly_paths": ["/proc/sys"]}, "readonly_paths"),
        ({"readonly_paths": ["/proc/sys"]}, {"readonly_paths": []}, "readonly_paths"),
    ],
    "cgroup_parent": [({}, {"cgroup_parent": "somewhere"}, "cgroup_parent")],
    "dns": [
        ({"rootfs": None, "dns": ["192.0.2.1"]}, {"rootfs": None, "dns": ["192.0.2.2"]}, "dns"),
        ({"rootfs": None, "dns": ["192.0.2.1"]}, {"rootfs": None}, "mounts./etc/resolv.conf"),
        ({"rootfs": None}, {"rootfs": None, "dns": ["192.0.2.1"]}, "dns"),
    ],
    "dns_search": [
        ({"rootfs": None, "dns_search": ["a.example"]}, {"rootfs": None, "dns_search": ["b.example"]}, "dns")
    ],
    "extra_hosts": [
        (
            {"rootfs": None, "extra_hosts": {"a": "192.0.2.1"}},
            {"rootfs": None, "extra_hosts": {"a": "192.0.2.2"}},
            "extra_hosts",
        ),
        ({"rootfs": None}, {"rootfs": None, "extra_hosts": {"a": "192.0.2.2"}}, "extra_hosts"),
    ],
    "sysctls": [
        ({}, {"sysctls": {"net.ipv4.ip_forward": "1"}}, "sysctls.net.ipv4.ip_forward"),
        ({"sysctls": {"kernel.shmmni": "5"}}, {"sysctls": {"kernel.shmmni": "6"}}, "sysctls.kernel.shmmni"),
        ({"sysctls": {"kernel.domainname": "a"}}, {"sysctls": {"kernel.domainname": "b"}}, "sysctls.kernel.domainname"),
        ({}, {"sysctls": {"fs.mqueue.msg_max": "9"}}, "sysctls.fs.mqueue.msg_max"),
    ],
    "oom_score_adj": [({"oom_score_adj": 5}, {}, "oom_score_adj"), ({}, {"oom_score_adj": 5}, "oom_score_adj")],
    "cpu_affinity": [({"cpu_affinity": "0"}, {}, "cpu_affinity"), ({}, {"cpu_affinity": "0"}, "cpu_affinity")],
    # -- of a Mount
    "mounts.source": [
        ({"mounts": [Mount("/etc", "/a")]}, {"mounts": [Mount("/usr", "/a")]}, "mounts./a.source"),
        ({"mounts": [Mount("/usr/lib", "/a")]}, {"mounts": [Mount("/usr", "/a")]}, "mounts./a.source"),
    ],
    "mounts.target": [({"mounts": [Mount("/etc", "/a")]}, {"mounts": [Mount("/etc", "/b")]}, "mounts./b")],
    "mounts.type": [({"mounts": [Mount("/etc", "/a")]}, {"mounts": [Mount.tmpfs("/a")]}, "mounts./a")],
    "mounts.read_only": [
        ({"mounts": [Mount("/etc", "/a")]}, {"mounts": [Mount("/etc", "/a", read_only=True)]}, "mounts./a"),
        ({"mounts": [Mount("/etc", "/a", read_only=True)]}, {"mounts": [Mount("/etc", "/a")]}, "mounts./a"),
    ],
    "mounts.options": [
        *(
            ({"mounts": [Mount("/etc", "/a", options=first)]}, {"mounts": [Mount("/etc", "/a", options=second)]}, "m")
            for flag in ("noexec", "nosymfollow", "nodiratime", "noatime", "strictatime")
            for first, second in (((flag,), ()), ((), (flag,)))
        ),
        *(
            ({"mounts": [Mount.tmpfs("/a", options=first)]}, {"mounts": [Mount.tmpfs("/a", options=second)]}, "m")
            for option in ("uid=5", "gid=5", "nr_inodes=1k", "nr_blocks=8", "noexec")
            for first, second in (((option,), ()), ((), (option,)))
        ),
    ],
    "mounts.recursive": [
        ({"mounts": [Mount("TREE", "/a", recursive=False)]}, {"mounts": [Mount("TREE", "/a")]}, "mounts./a"),
        ({"mounts": [Mount("TREE", "/a")]}, {"mounts": [Mount("TREE", "/a", recursive=False)]}, "mounts./a/below"),
    ],
    "mounts.size": [
        ({"mounts": [Mount.tmpfs("/a", size="1m")]}, {"mounts": [Mount.tmpfs("/a", size="2m")]}, "mounts./a.size"),
        ({"mounts": [Mount.tmpfs("/a", size="1m")]}, {"mounts": [Mount.tmpfs("/a")]}, "mounts./a.size"),
    ],
    "mounts.mode": [
        ({"mounts": [Mount.tmpfs("/a", mode=0o700)]}, {"mounts": [Mount.tmpfs("/a", mode=0o755)]}, "mounts./a.mode"),
        ({"mounts": [Mount.tmpfs("/a", mode=0o700)]}, {"mounts": [Mount.tmpfs("/a")]}, "mounts./a.mode"),
    ],
    "mounts.propagation": [
        ({"mounts": [Mount("TREE", "/a", propagation="rshared")]}, {"mounts": [Mount("TREE", "/a")]}, "mounts./a.prop"),
        ({"mounts": [Mount("TREE", "/a")]}, {"mounts": [Mount("TREE", "/a", propagation="rshared")]}, "mounts./a.prop"),
        ({"mounts": [Mount("TREE", "/a")]}, {"mounts": [Mount("TREE", "/a", propagation="rslave")]}, "mounts./a.prop"),
        ({"mounts": [Mount.tmpfs("/a")]}, {"mounts": [Mount("TREE", "/a", propagation="unbindable")]}, "mounts./a.pro"),
    ],
    "mounts.uid_mappings": [
        ({"mounts": [Mount("ROOTFS", "/a", uid_mappings=[(0, 9, 1)], gid_mappings=[(0, 9, 1)])]},
         {"mounts": [Mount("ROOTFS", "/a")]}, "mounts./a.uid_mappings"),
        ({"mounts": [Mount("ROOTFS", "/a")]},
         {"mounts": [Mount("ROOTFS", "/a", uid_mappings=[(0, 9, 1)], gid_mappings=[(0, 9, 1)])]}, "mounts./a.uid_map"),
    ],
    # -- of a Device
    **{
        f"devices.{name}": [({"devices": [Device("/dev/n", **DEVICE)]}, {"devices": [attrs.evolve(
            Device("/dev/n", **DEVICE), **{name: value})]}, field)]
        for DEVICE in [{"type": "c", "major": 10, "minor": 229}]
        for name, value, field in (
            ("container_path", "/dev/o", "devices"), ("major", 2, "devices"), ("minor", 4, "devices"),
            ("mode", 0o600, "devices"), ("uid", 5, "devices"), ("gid", 5, "devices"),
            ("access", "r", "resources.device_cgroup_rules"), ("type", "b", "devices"),
        )
    },
    "devices.path": [({"devices": [Device("/dev/null", "/dev/x")]}, {"devices": [Device("/dev/zero", "/dev/x")]}, "d")],
    # -- of Resources
    "resources": [({"memory": "64m"}, {}, "resources.memory")],
    "resources.memory": [
        ({"memory": "64m"}, {"memory": "65m"}, "resources.memory"),
        ({"memory": "64m"}, {}, "resources.memory"),
    ],
    "resources.cpu_shares": [
        ({"cpu_shares": 5}, {"cpu_shares": 6}, "resources.cpu_shares"),
        ({"cpu_shares": 5}, {}, "resources.cpu_shares"),
    ],
    "resources.cpu_quota": [({"cpus": 0.5}, {"cpus": 0.4}, "resources.cpu_quota"), ({"cpus": 0.5}, {}, "resources")],
    "resources.cpu_period": [
        ({"cpu_quota": 5000, "cpu_period": 10000}, {"cpu_quota": 50000, "cpu_period": 100000}, "resources.cpu_period"),
        ({"cpu_quota": 5000, "cpu_period": 10000}, {}, "resources.cpu_period"),
    ],
    "resources.pids_limit": [
        ({"pids_limit": 9}, {"pids_limit": 8}, "resources.pids_limit"),
        ({"pids_limit": 9}, {}, "resources.pids_limit"),
    ],
    "resources.cpuset_cpus": [
        ({"cpuset_cpus": "0"}, {}, "resources.cpuset_cpus"),
        ({"cpuset_cpus": "0"}, {"cpuset_cpus": "1"}, "resources.cpuset_cpus"),
    ],
    "resources.cpuset_mems": [({}, {"cpuset_mems": "5"}, "resources.cpuset_mems")],
    **{
        f"resources.{name}": [
            ({name: {"DISK": 1048576}}, {name: {"DISK": 2097152}}, f"resources.{name}"),
            ({name: {"DISK": 1048576}}, {}, f"resources.{name}"),
            ({}, {name: {"DISK": 1048576}}, f"resources.{name}"),
        ]
        for name in ("device_read_bps", "device_write_bps", "device_read_iops", "device_write_iops")
    },
    "resources.device_cgroup_rules": [
        ({"device_cgroup_rules": ["c 10:229 rw"]}, {}, "resources.device_cgroup_rules"),
        ({"device_cgroup_rules": ["c 10:229 rw"]}, {"device_cgroup_rules": ["c 10:229 r"]}, "resources.device_cgroup"),
        ({}, {"device_cgroup_rules": ["c 10:229 r"]}, "resources.device_cgroup_rules"),
    ],
    # -- of a Network
    **{
        f"network.{name}": [({"network": {}}, {"network": {name: value}}, field)]
        for name, value, field in (
            ("address", "10.98.7.9", "network.address"), ("prefix_length", 25, "network.address"),
            ("gateway", None, "network.gateway"), ("mtu", 1300, "network.mtu"),
            ("mac", "02:00:00:00:00:09", "network.mac"), ("interface", "other", "network.interface"),
            ("address6", "fd00:98::9", "network.address"), ("prefix_length6", 65, "network.address"),
            ("gateway6", None, "network.gateway"),
        )
    },
}  # fmt: skip

#: Only where swap is counted.
if any(Path(p).exists() for p in ("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes",)):
    PAIRS["resources.memory_swap"] = [
        ({"memory": "64m", "memory_swap": "65m"}, {"memory": "64m"}, "resources.memory_swap"),
    ]
else:
    ELSEWHERE["resources.memory_swap"] = "takes swap that is counted"


def fields() -> Iterator[str]:
    for prefix, cls in (
        ("", Command),
        ("process.", Process),
        ("resources.", Resources),
        ("mounts.", Mount),
        ("devices.", Device),
        ("network.", Network),
    ):
        yield from (prefix + name for name in attrs.fields_dict(cls) if prefix + name != "process")


@pytest.mark.parametrize("name", [*fields()])
def test_a_field_is_seen_or_there_is_a_reason(name: str) -> None:
    assert (name in PAIRS) + (name in UNCHECKED) + (name in ELSEWHERE) == 1


@pytest.fixture(scope="module")
def world(busybox_rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Another rootfs, a shared mount with another in it, a container whose namespaces can be had, a disk."""
    import subprocess

    tree = tmp_path_factory.mktemp("tree")
    other = tmp_path_factory.mktemp("other")
    # A launcher of its own: all the while it has a container.
    driver = NativeDriver()
    subprocess.run(["mount", "-t", "tmpfs", "tree", tree], check=True)
    try:
        subprocess.run(["mount", "--make-shared", tree], check=True)
        (tree / "below").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "below", tree / "below"], check=True)
        with Container(["sleep", "1000"], rootfs=busybox_rootfs, driver=driver, name=f"holder-{os.getpid()}") as box:
            disks = (
                Path("/dev", name.name) for name in Path("/sys/block").iterdir() if name.name.startswith(("vd", "sd"))
            )
            disk = next((str(path) for path in disks if path.exists() and stat.S_ISBLK(path.stat().st_mode)), None)
            yield {
                "DRIVER": driver,
                "ROOTFS": str(busybox_rootfs),
                "OTHER": str(other),
                "TREE": str(tree),
                "HOLDER": box,
                "DISK": disk,
                "VIEW": attrs.evolve(HostView.detect(), overlays=(*HostView.detect().overlays, "/boot")),
            }
    finally:
        driver.close()
        subprocess.run(["umount", "-R", tree], check=True)


def keywords(given: dict[str, Any], world: dict[str, Any]) -> dict[str, Any]:
    """The placeholders of PAIRS filled in."""

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {filled(key): filled(item) for key, item in value.items()}
        if isinstance(value, list):
            return list(map(filled, value))
        if isinstance(value, Mount) and value.source in world:
            return attrs.evolve(value, source=world[value.source])
        if isinstance(value, str) and "HOLDER" in value:
            box = world["HOLDER"]
            return value.replace("ns:HOLDER", f"ns:/proc/{box.pid}/ns").replace("HOLDER", box.id)
        if value == "DISK" and world["DISK"] is None:
            pytest.skip("no disk here")
        return world[value] if isinstance(value, str) and value in world else value

    found = filled(given)
    if isinstance(found.get("network"), dict):
        bridged = {
            "bridge": f"pc{os.getpid() % 100000}", "create_bridge": True,
            "address": "10.98.7.2", "prefix_length": 24, "gateway": "10.98.7.1",
            "mtu": 1400, "mac": "02:00:00:00:00:02",
            "address6": "fd00:98::2", "prefix_length6": 64, "gateway6": "fd00:98::1",
        }  # fmt: skip
        found["network"] = Network(**{**bridged, **found["network"]})
    return {"rootfs": world["ROOTFS"], **found}


def begun(driver: NativeDriver, **given: Any) -> Receipt:
    """The receipt of a program before its first instruction; a terminal is no hindrance."""
    with Container(["sleep", "1000"], driver=driver, start=False, **given) as box:
        box.create()
        return box._life.start_and_look()


Begin = Callable[..., Receipt]


@pytest.mark.parametrize(
    ("name", "number"), [(name, number) for name, pairs in PAIRS.items() for number in range(len(pairs))]
)
def test_another_field_is_a_difference(name: str, number: int, world: Any) -> None:
    has, asked, field = PAIRS[name][number]
    mine = keywords(has, world)
    receipt = begun(world["DRIVER"], **mine)
    own = [str(one) for one in receipt.differences(Command.of(["sleep", "1000"], **mine))]
    if name != "process.privileged":  # which a host has that has not every capability itself
        assert own == []
    other = Command.of(["sleep", "1000"], **keywords(asked, world))
    assert any(one.field.startswith(field) for one in receipt.differences(other)), receipt.differences(other)


def test_what_is_unchecked_is_named(world: Any) -> None:
    asked: dict[str, Any] = {
        "hooks": Hooks(create_runtime=[Hook("/bin/true")]),
        "annotations": {"a": "b"},
        "network": {},
        "mounts": [Mount("ROOTFS", "/a", uid_mappings=[(0, 9, 1)], gid_mappings=[(0, 9, 1)])],
    }
    mine = keywords(asked, world)
    found = begun(world["DRIVER"], **mine)
    command = Command.of(["sleep", "1000"], **{**mine, "config": ["lxc.something = 1"]})
    named = {one.field: one.reason for one in found.unchecked(command)}
    named["mounts.gid_mappings"] = named["mounts./a.gid_mappings"]
    assert {*named} >= {*UNCHECKED} - {"network.container"}
    container = Command.of(["x"], rootfs=world["ROOTFS"], network=f"container:{world['HOLDER'].id}")
    assert "namespaces.net" in {one.field for one in found.unchecked(container)}
    assert {"session keyring", "die with the driver"} <= {*named}
    assert all(named.values())


def test_a_later_one_says_what_it_does_not_know(world: Any) -> None:
    with Container(["sleep", "1000"], rootfs=world["ROOTFS"], driver=world["DRIVER"]) as box:
        named = {one.field for one in box.receipt().unchecked(box.command)}
    assert {"process.env", "process.working_dir", "umask", "descriptors", "devices", "seccomp"} <= named


def test_secrets_of_the_environment_are_not_written_down(world: Any) -> None:
    done = pycontainer.run(
        ["true"], rootfs=world["ROOTFS"], driver=world["DRIVER"], env={"TOKEN": "s3cret"}, receipt=True
    )
    assert done.receipt is not None
    assert done.receipt.beginning is not None
    assert done.receipt.beginning.environ == {"TOKEN": "s3cret"}
    shown = done.receipt.to_json() + repr(done.receipt)
    shown += str(done.receipt.differences(Command.of(["true"], rootfs=world["ROOTFS"], env={"TOKEN": "other"})))
    assert "TOKEN" in shown
    assert "s3cret" not in shown
    assert "other'" not in shown
