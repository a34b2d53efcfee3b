"""Receipts: what is read, what is mounted over what, and every kind of difference."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import attrs
import pytest

import pycontainer
from pycontainer import Command, Feature, Mount, NotRunningError, UnsupportedError, _cgroup_limits, aio
from pycontainer.receipt import CgroupLimits, IdMap, Ids, Receipt, mount_points, read
from pycontainer.testing._receipt import simulated
from pycontainer.testing.fake import FakeDriver, Outcome

from .doubles import PlainDriver, SpawnDriver, nothing_left


def receipt_of(**keywords: Any) -> Receipt:
    """What a driver would show that does everything."""
    command = Command.of(["x"], **keywords)
    return simulated(command, command.process, 4711, {Feature.SECCOMP})


# -- reading


def test_of_this_process() -> None:
    found = read(os.getpid())
    assert (found.uid.real, found.uid.effective) == (os.getuid(), os.geteuid())
    assert sorted(found.groups) == sorted(os.getgroups())
    assert not any(space.own for space in found.namespaces.values())
    assert found.namespaces["mnt"].inode == os.stat("/proc/self/ns/mnt").st_ino
    assert found.seccomp.filters == found.seccomp.inherited
    assert {limit.type for limit in found.rlimits} >= {"RLIMIT_NOFILE", "RLIMIT_CPU", "RLIMIT_RTTIME"}
    assert found.covering("/proc/self").type == "proc"


def test_of_a_process_with_a_pidfd() -> None:
    child = subprocess.Popen(["sleep", "100"])
    pidfd = os.pidfd_open(child.pid)
    try:
        assert read(child.pid, pidfd).pid == child.pid
    finally:
        child.kill()
        child.wait()
    try:
        with pytest.raises(ProcessLookupError):
            read(child.pid, pidfd)
        # Whoever has the pid now is not who the pidfd is of.
        with pytest.raises(ProcessLookupError):
            read(os.getpid(), pidfd)
    finally:
        os.close(pidfd)


def test_of_a_zombie() -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(ProcessLookupError):
        read(child.pid)
    child.wait()


def test_descriptors_are_closed() -> None:
    before = os.listdir("/proc/self/fd")
    read(os.getpid())
    with pytest.raises(ProcessLookupError):
        read(2**22 + 1)
    assert os.listdir("/proc/self/fd") == before


def test_json() -> None:
    data = json.loads(receipt_of().to_json())
    assert data["no_new_privileges"] is True
    assert data["namespaces"]["pid"]["own"] is True
    assert data["uid_map"] == [{"inside": 0, "outside": 0, "length": 2**32 - 1}]


# -- mounts

MOUNTINFO = """\
20 1 8:1 / / rw,relatime - ext4 /dev/root rw
21 20 0:20 / /proc rw,nosuid shared:5 master:1 - proc proc rw
22 21 0:21 /null /proc/keys rw - tmpfs tmpfs rw,size=64k
23 20 0:22 / /with\\040space ro - tmpfs tm\\040pfs rw
"""


def mounted(text: str) -> Receipt:
    return attrs.evolve(receipt_of(), mounts=tuple(mount_points(text)))


def test_lines_of_mountinfo() -> None:
    root, proc, keys, space = mount_points(MOUNTINFO)
    assert (root.id, root.parent, root.target, root.type, root.propagation) == (20, 1, "/", "ext4", ())
    assert proc.propagation == ("shared:5", "master:1")
    assert (keys.root, keys.super_options) == ("/null", ("rw", "size=64k"))
    assert (space.target, space.source, space.read_only) == ("/with space", "tm pfs", True)


@pytest.mark.parametrize(
    ("path", "number"),
    [("/", 20), ("/etc", 20), ("/proc", 21), ("/procedure", 20), ("/proc/keys", 22), ("/proc/keysx", 21)],
)
def test_what_a_path_is_on(path: str, number: int) -> None:
    assert mounted(MOUNTINFO).covering(path).id == number


def test_a_mount_over_another_hides_what_is_in_it() -> None:
    found = mounted(MOUNTINFO + "24 21 0:23 / /proc rw - proc proc rw\n")
    assert found.covering("/proc/keys").id == 24
    assert found.covering("/proc").id == 24


# -- differences


@pytest.mark.parametrize(
    ("has", "asked", "fields"),
    [
        ({}, {}, []),
        ({"cap_add": ["SYS_ADMIN"]}, {}, ["bounding", "effective", "permitted"]),
        ({"user": "1"}, {}, ["effective", "permitted", "process.user", "process.group"]),
        ({"user": "0:7"}, {}, ["process.group"]),
        ({"groups": [7]}, {}, ["process.additional_groups"]),
        ({}, {"groups": [7]}, ["process.additional_groups"]),
        ({"no_new_privileges": False}, {}, ["process.no_new_privileges"]),
        ({"seccomp": "unconfined"}, {}, ["seccomp"]),
        ({}, {"seccomp": "unconfined"}, ["seccomp"]),
        ({"network": "host"}, {}, ["namespaces.net"]),
        ({}, {"network": "host"}, ["namespaces.net"]),
        ({"pid": "host", "ipc": "host"}, {}, ["namespaces.ipc", "namespaces.pid"]),
        ({}, {"rlimits": {"nofile": 64}}, ["process.rlimits.RLIMIT_NOFILE"]),
        ({"rlimits": {"nofile": 64}}, {"rlimits": {"nofile": 64}}, []),
        ({}, {"memory": "64m"}, ["resources.memory"]),
        ({"memory": 69632}, {"memory": 70000}, []),
        ({"memory": "64m"}, {"memory": "64m", "memory_swap": "64m"}, ["resources.memory_swap"]),
        ({"pids_limit": 10}, {"pids_limit": 9}, ["resources.pids_limit"]),
        ({"pids_limit": 10}, {"pids_limit": -1}, ["resources.pids_limit"]),
        ({"cpus": 0.5}, {"cpus": 0.25}, ["resources.cpu_quota"]),
        ({"cpu_quota": 5000, "cpu_period": 10000}, {"cpus": 0.5}, []),
        ({"cpu_shares": 2}, {"cpu_shares": 3}, ["resources.cpu_shares"]),
        ({"cpuset_cpus": "0,1"}, {"cpuset_cpus": "0-1"}, []),
        ({"cpuset_cpus": "0"}, {"cpuset_cpus": "0-1"}, ["resources.cpuset_cpus"]),
        ({}, {"oom_score_adj": 5}, ["oom_score_adj"]),
        ({}, {"cpu_affinity": "1"}, ["cpu_affinity"]),
        ({"apparmor_profile": "a"}, {"apparmor_profile": "a"}, []),
        ({"apparmor_profile": "ab"}, {"apparmor_profile": "a"}, ["apparmor_profile"]),
        ({"selinux_label": "u:r:t:s0"}, {"selinux_label": "u:r:t:s0"}, []),
        ({}, {"selinux_label": "u:r:t:s0", "apparmor_profile": "a"}, ["apparmor_profile", "selinux_label"]),
        ({}, {"pid": "ns:/proc/self/ns/pid"}, ["namespaces.pid"]),
        ({}, {"read_only": True}, ["read_only"]),
        ({"masked_paths": []}, {"masked_paths": ["/proc/keys"]}, ["masked_paths"]),
        ({"masked_paths": []}, {"masked_paths": ["/proc/not-there"]}, []),
        ({"readonly_paths": []}, {"readonly_paths": ["/proc/sys"]}, ["readonly_paths"]),
        ({}, {"mounts": [Mount("/etc", "/data")]}, ["mounts./data"]),
        ({"mounts": [Mount("/etc", "/a")]}, {"mounts": [Mount("/etc", "/a", read_only=True)]}, ["mounts./a"]),
        ({"mounts": [Mount.tmpfs("/a")]}, {"mounts": [Mount.tmpfs("/a", options=("noexec",))]}, ["mounts./a"]),
        (
            {"mounts": [Mount.tmpfs("/a", size="2m")]},
            {"mounts": [Mount.tmpfs("/a", size="1m")]},
            ["mounts./a.size"],
        ),
    ],
)
def test_differences(has: dict[str, Any], asked: dict[str, Any], fields: list[str]) -> None:
    found = receipt_of(**has).differences(Command.of(["x"], **asked))
    assert [one.field.removeprefix("process.capabilities.") for one in found] == fields


@pytest.mark.parametrize(
    ("own", "asked", "fields"),
    [
        ({"blkio_weight": 500}, {"blkio_weight": 500}, []),
        ({"blkio_weight": 4950}, {"blkio_weight": 500}, []),  # on the scale of cgroup2
        ({"blkio_weight": 500}, {"blkio_weight": 600}, ["resources.blkio_weight"]),
        ({"blkio_weight": 500}, {}, ["resources.blkio_weight"]),
        ({"hugepages": {"2MB": 4 << 20, "1GB": -1}}, {"hugepage_limits": {"2MB": "5m"}}, []),
        ({"hugepages": {"2MB": 4 << 20}}, {"hugepage_limits": {"2MB": "6m"}}, ["resources.hugepage_limits"]),
        ({"hugepages": {"2MB": 4 << 20}}, {}, ["resources.hugepage_limits"]),
        ({"memory_swap": 1 << 20}, {}, ["resources.memory_swap"]),
        ({"disks": {"blkio_weight_device": {"8:0": 5}}}, {}, ["resources.blkio_weight_device"]),
    ],
)
def test_limits_of_its_own_cgroup(own: dict[str, Any], asked: dict[str, Any], fields: list[str]) -> None:
    limits = CgroupLimits(**own)
    found = receipt_of()
    effective = {size: limit for size, limit in limits.hugepages.items() if limit != -1}
    found = attrs.evolve(found, own_limits=limits, limits=attrs.evolve(found.limits, hugepages=effective))
    assert [one.field for one in found.differences(Command.of(["x"], **asked))] == fields


def test_files_of_a_cgroup(tmp_path: Path) -> None:
    """Those of controllers that few hosts have, in both versions' words."""
    for name, text in {
        "own/blkio.bfq.weight": "300",
        "own/blkio.bfq.weight_device": "default 300\n8:0 500",
        "own/blkio.throttle.read_bps_device": "8:0 1048576",
        "own/hugetlb.2MB.limit_in_bytes": "4194304",
        "own/hugetlb.1GB.limit_in_bytes": "9223372036854771712",
        "own/devices.list": "c 1:3 rwm\nb *:* m",
        "two/io.max": "8:0 rbps=max wbps=2097152 riops=max wiops=5",
        "two/io.weight": "default 100\n8:0 200",
        "two/memory.max": "max",
        "two/memory.swap.max": "0",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    own, two = ([str(tmp_path / name)] for name in ("own", "two"))
    first = _cgroup_limits._own_limits(dict.fromkeys(("blkio", "hugetlb", "devices"), (1, own)))
    assert first.blkio_weight == 300
    assert first.disks == {"blkio_weight_device": {"8:0": 500}, "device_read_bps": {"8:0": 1048576}}
    assert first.hugepages == {"2MB": 4194304, "1GB": -1}
    assert first.devices == ("c 1:3 rwm", "b *:* m")
    second = _cgroup_limits._own_limits(dict.fromkeys(("io", "memory"), (2, two)))
    assert second.blkio_weight == 100
    assert second.disks == {
        "device_write_bps": {"8:0": 2097152},
        "device_write_iops": {"8:0": 5},
        "blkio_weight_device": {"8:0": 200},
    }
    assert (second.memory, second.memory_swap) == (-1, -1)


def test_the_label_of_mounts() -> None:
    asked = Command.of(["x"], mount_label="u:r:t:s0:c1,c2", selinux_label="u:r:t:s0:c1,c2")
    found = receipt_of(selinux_label="u:r:t:s0:c1,c2")
    assert [one.field for one in found.differences(asked)] == ["mount_label"]
    mounts = tuple(
        attrs.evolve(mount, super_options=(*mount.super_options, *['context="u:r:t:s0:c1', 'c2"']))
        for mount in found.mounts
    )
    assert attrs.evolve(found, mounts=mounts).differences(asked) == ()


def test_what_was_not_read_is_unchecked() -> None:
    named = {one.field for one in receipt_of().unchecked(Command.of(["x"], sysctls={"net.ipv4.ip_forward": 1}))}
    assert {"hostname", "sysctls", "network", "session", "rootfs", "mounts", "resources", "process.env"} <= named
    assert all(str(one).startswith(f"{one.field}: ") for one in receipt_of().unchecked(Command.of(["x"])))


def test_what_a_difference_says() -> None:
    (one,) = receipt_of(no_new_privileges=False).differences(Command.of(["x"]))
    assert (one.asked, one.found) == (True, False)
    assert str(one) == "process.no_new_privileges: asked for True, found False"
    few = receipt_of(cap_drop=["CHOWN"], cap_add=["SYS_TIME"]).differences(Command.of(["x"]))[0]
    assert str(few).endswith(": lacks ['CAP_CHOWN'], and has ['CAP_SYS_TIME'] beyond what was asked for")


def test_filters_of_the_caller_are_no_filter() -> None:
    """A library that runs in a container itself has a filter, which every process inherits from it."""
    found = receipt_of()
    inherited = attrs.evolve(found, seccomp=attrs.evolve(found.seccomp, filters=2, inherited=2))
    assert [one.field for one in inherited.differences(Command.of(["x"]))] == ["seccomp"]
    assert inherited.differences(Command.of(["x"], seccomp="unconfined")) == ()


def test_a_filesystem_uid_counts() -> None:
    """CVE-2012-0056 class: one of the four is enough."""
    found = attrs.evolve(receipt_of(user="5"), uid=Ids(real=5, effective=5, saved=5, filesystem=0))
    assert [one.field for one in found.differences(Command.of(["x"], user="5"))] == ["process.user"]


def test_ids_are_those_inside() -> None:
    maps = (IdMap(inside=0, outside=100000, length=65536),)
    ids = Ids(real=100005, effective=100005, saved=100005, filesystem=100005)
    found = attrs.evolve(receipt_of(user="5:5"), uid=ids, gid=ids, uid_map=maps, gid_map=maps, groups=())
    assert found.differences(Command.of(["x"], user="5:5")) == ()
    outside = attrs.evolve(found, uid_map=(IdMap(inside=0, outside=0, length=2**32 - 1),))
    assert [one.field for one in outside.differences(Command.of(["x"], user="5:5"))] == ["process.user"]


def test_a_user_namespace_more_is_no_difference() -> None:
    found = receipt_of()
    spaces = {**found.namespaces, "user": attrs.evolve(found.namespaces["user"], own=True)}
    assert attrs.evolve(found, namespaces=spaces).differences(Command.of(["x"])) == ()


def test_a_recursive_mount_is_read_only_with_all_that_is_below_it() -> None:
    asked = Command.of(["x"], mounts=[Mount("/etc", "/a", read_only=True)])
    found = receipt_of(mounts=[Mount("/etc", "/a", read_only=True), Mount("/etc", "/a/b")])
    assert [(one.field, one.found) for one in found.differences(asked)] == [("mounts./a", "/a/b is not")]


# -- through the library


def test_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeDriver()
    done = pycontainer.run(["echo", "hi"], driver=fake, capture_output=True, receipt=True)
    assert done.stdout == b"hi\n"
    assert done.receipt is not None
    assert "receipt" not in repr(done)
    assert [call.verb for call in fake.calls] == ["create", "start_created", "clean"]
    assert pycontainer.run(["true"], driver=fake).receipt is None


def test_a_run_with_a_driver_that_cannot_create() -> None:
    with pytest.raises(UnsupportedError) as caught:
        pycontainer.run(["true"], driver=PlainDriver(), receipt=True)
    assert caught.value.feature is Feature.CREATE


def test_a_run_of_a_real_process() -> None:
    """Stopped by a signal, continued, looked at after execve and before its first instruction: no root is needed."""
    driver = SpawnDriver()
    with nothing_left(driver):
        for code in (0, 7):
            done = pycontainer.run(["sh", "-c", f"exit {code}"], driver=driver, receipt=True)
            assert done.returncode == code
            assert done.receipt is not None
            assert done.receipt.uid.real == os.getuid()


def test_a_run_of_a_real_process_that_cannot_begin() -> None:
    driver = SpawnDriver()
    with nothing_left(driver), pytest.raises(ProcessLookupError):
        pycontainer.run(["/no/such"], driver=driver, receipt=True, stderr=pycontainer.DEVNULL)


def test_only_of_a_running_one() -> None:
    fake = FakeDriver()
    with pycontainer.Container(["sleep", "100"], driver=fake, start=False) as box:
        with pytest.raises(NotRunningError):
            box.receipt()
        box.create()
        with pytest.raises(NotRunningError):
            box.receipt()
        box.start()
        assert box.receipt().no_new_privileges
        assert box.command.process.entrypoint == "sleep"
    with pytest.raises(NotRunningError):
        box.receipt()


def test_asyncio() -> None:
    import asyncio

    fake = FakeDriver()
    fake.script("x", Outcome(hang=True))

    async def main() -> None:
        done = await aio.run(["true"], driver=fake, receipt=True)
        assert done.receipt is not None
        box = await aio.create_container_exec("x", driver=fake)
        assert (await box.receipt()).no_new_privileges
        box.kill()
        await box.wait()

    asyncio.run(main())
