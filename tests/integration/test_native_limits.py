"""Limits, as the kernel's control files have them and as the payload feels them; v1, v2 and both together."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

import pytest

from pycontainer import PIPE
from pycontainer.errors import InvalidCommandError, SetupError, WaitTimeoutError
from pycontainer_native.cgroups import Layout, detect
from pycontainer_native.cgroups.limits import page_sizes

from . import host

pytestmark = pytest.mark.root

MIB = 1024 * 1024

#: keywords, then for both versions the control file and what is in it
FILES = [
    ({"memory": "64m"}, ("memory.limit_in_bytes", f"{64 * MIB}"), ("memory.max", f"{64 * MIB}")),
    ({"memory": "64m"}, ("memory.memsw.limit_in_bytes", f"{128 * MIB}"), ("memory.swap.max", f"{64 * MIB}")),
    (
        {"memory": "64m", "memory_swap": "96m"},
        ("memory.memsw.limit_in_bytes", f"{96 * MIB}"),
        ("memory.swap.max", f"{32 * MIB}"),
    ),
    ({"cpu_shares": 512}, ("cpu.shares", "512"), ("cpu.weight", None)),
    ({"cpus": 0.5}, ("cpu.cfs_quota_us", "50000"), ("cpu.max", "50000 100000")),
    ({"cpu_quota": 20000, "cpu_period": 50000}, ("cpu.cfs_period_us", "50000"), ("cpu.max", "20000 50000")),
    ({"pids_limit": 17}, ("pids.max", "17"), ("pids.max", "17")),
    ({"pids_limit": -1}, ("pids.max", "max"), ("pids.max", "max")),
    ({"cpuset_cpus": "0"}, ("cpuset.cpus", "0"), ("cpuset.cpus", "0")),
    ({"cpuset_cpus": "0", "cpuset_mems": "0"}, ("cpuset.mems", "0"), ("cpuset.mems", "0")),
]


def own_cgroup(box: Any) -> set[Path]:
    """The directories of its cgroup, in the hierarchies that it has been put into."""
    mine = {directory for _, directory in host.cgroup_directories(os.getpid())}
    return {directory for _, directory in host.cgroup_directories(box.pid)} - mine


@pytest.mark.parametrize(("keywords", "v1", "v2"), FILES)
def test_a_limit_is_in_the_kernel(start: Any, keywords: Any, v1: Any, v2: Any) -> None:
    box = start(["sleep", "100"], **keywords)
    value = host.cgroup_value(box.pid, v1[0], v2[0])
    if value is None and "mem" in v1[0] and "swap" in v2[0]:
        pytest.skip("the kernel does not account swap")
    if v2[1] is None and value not in (v1[1], None):
        assert 1 <= int(value or 0) <= 10000  # a weight is derived from the shares
    else:
        assert value in (v1[1], v2[1])


def read(box: Any, name: str) -> str | None:
    """What its own cgroup's control file says."""
    return next((text.read_text() for place in own_cgroup(box) if (text := place / name).exists()), None)


@pytest.fixture
def disk() -> tuple[str, str]:
    """A disk of the host's: (path, major:minor)."""
    for device in sorted(Path("/sys/block").glob("[vsr]*[a-z0-9]")):
        if Path("/dev", device.name).is_block_device() and int((device / "size").read_text()):
            return f"/dev/{device.name}", (device / "dev").read_text().strip()
    pytest.skip("no disk here")


def test_throttles(start: Any, disk: tuple[str, str]) -> None:
    path, number = disk
    box = start(
        ["sleep", "100"],
        device_read_bps={path: "1m"},
        device_write_bps={path: 2048},
        device_read_iops={path: 30},
        device_write_iops={path: 40},
    )
    v1 = [f"blkio.throttle.{way}_{what}_device" for what in ("bps", "iops") for way in ("read", "write")]
    values = ["1048576", "2048", "30", "40"]
    if (unified := read(box, "io.max")) is not None:
        assert unified.split() == [
            number,
            *(f"{k}={v}" for k, v in zip(("rbps", "wbps", "riops", "wiops"), values, strict=True)),
        ]
    else:
        assert [read(box, name) for name in v1] == [f"{number} {value}\n" for value in values]


def test_a_throttle_that_is_none(start: Any, disk: tuple[str, str]) -> None:
    box = start(["sleep", "100"], device_read_bps={disk[0]: -1})
    assert not read(box, "io.max")
    assert not read(box, "blkio.throttle.read_bps_device")


def test_a_weight_of_disks(start: Any) -> None:
    if detect().check({"blockIO": {"weight": 500}}):  # of BFQ, as a module, nothing is seen before it is loaded
        with pytest.raises(InvalidCommandError, match="no weights of disks") as caught:
            start(["sleep", "100"], blkio_weight=500)
        assert caught.value.field == "resources.blkio_weight"
        return
    box = start(["sleep", "100"], blkio_weight=500)
    found = [read(box, name) for name in ("blkio.bfq.weight", "io.bfq.weight", "io.weight")]
    assert [text.split()[-1] for text in found if text] in (["500"], ["4950"])


def test_huge_pages(start: Any, huge_pages: str) -> None:
    box = start(["sleep", "100"], hugepage_limits={huge_pages: "4m"})
    for kind in ("", "rsvd."):
        value = read(box, f"hugetlb.{huge_pages}.{kind}limit_in_bytes") or read(box, f"hugetlb.{huge_pages}.{kind}max")
        assert value == f"{4 * MIB}\n"


@pytest.fixture
def huge_pages() -> str:
    """A size of them that a controller limits."""
    place = next((place for place in detect().hierarchies if "hugetlb" in place.controllers), None)
    if place is None or "2MB" not in page_sizes():
        pytest.skip("no huge pages that can be limited")
    return "2MB"


def test_limits_hold_before_the_first_instruction(start: Any) -> None:
    box = start(["true"], start=False, memory="64m", pids_limit=5)
    box.create()
    assert host.cgroup_value(box.pid, "memory.limit_in_bytes", "memory.max") == f"{64 * MIB}"
    assert host.cgroup_value(box.pid, "pids.max", "pids.max") == "5"
    for directory in own_cgroup(box):
        assert (directory / "cgroup.procs").read_text().split() == [str(box.pid)]
    assert own_cgroup(box)


def test_every_process_is_inside(start: Any) -> None:
    box = start(["sh", "-c", "sleep 100 & sleep 100 & echo ready; wait"], stdout=PIPE, pids_limit=10)
    assert box.stdout.readline() == b"ready\n"
    assert len(box.pids()) == 3
    for directory in own_cgroup(box):
        assert [*map(int, (directory / "cgroup.procs").read_text().split())] == box.pids()
    assert host.cgroup_value(box.pid, "pids.current", "pids.current") == "3"


def test_the_payload_sees_itself_at_the_root(sh: Any, start: Any) -> None:
    box = start(["sleep", "100"], pids_limit=10)
    joined = {
        line.split(":")[1]
        for line in Path(f"/proc/{box.pid}/cgroup").read_text().splitlines()
        if "pycontainer-" in line
    }
    seen = dict(line.split(":")[1:] for line in sh("cat /proc/self/cgroup", pids_limit=10).stdout.splitlines())
    assert joined
    assert {seen[controllers] for controllers in joined} == {"/"}


def test_a_processor_set_is_felt(sh: Any) -> None:
    last = max(os.sched_getaffinity(0))
    assert f"Cpus_allowed_list:\t{last}\n" in sh("cat /proc/self/status", cpuset_cpus=f"{last}").stdout


EAT = "x=$(head -c 64m /dev/zero | tr '\\0' x); echo ${#x}"


def test_out_of_memory(sh: Any) -> None:
    done = sh(EAT, memory="16m")
    assert done.status.oom_killed
    assert done.status.signal == 9
    assert "out of memory" in done.status.reason
    assert done.stdout == ""


def test_enough_memory(sh: Any) -> None:
    done = sh(EAT, memory="512m")
    assert (done.status.oom_killed, done.stdout) == (False, f"{64 * MIB}\n")


def test_out_of_memory_of_another_process_than_the_first(sh: Any) -> None:
    done = sh('sh -c "$EAT"; echo $?', memory="16m", env={"PATH": "/bin", "EAT": EAT})
    assert done.stdout == "137\n"
    assert (done.status.exit_code, done.status.oom_killed) == (0, True)
    assert "out of memory" in done.status.reason


def test_a_neighbours_end_is_not_ones_own(start: Any) -> None:
    box = start(["sleep", "100"], memory="16m")
    assert start(["sh", "-c", EAT], memory="16m").wait(60) == -9
    box.kill()
    box.wait(30)
    assert not box.status.oom_killed


def test_a_fork_bomb_is_held(start: Any) -> None:
    box = start(["sh", "-c", "(b() { b | b & }; b) & exec sleep 100"], pids_limit=10, stderr=PIPE)
    # Its complaint that it cannot fork is the proof that it has tried.
    assert b"fork" in box.stderr.readline()
    for _ in range(20):
        assert int(host.cgroup_value(box.pid, "pids.current", "pids.current") or 99) <= 10
    with pytest.raises(WaitTimeoutError):
        box.wait(0.05)
    box.kill()
    assert box.wait(30) == -9


def test_the_limit_of_processes_counts_from_the_first(sh: Any) -> None:
    done = sh("sleep 0 & sleep 0 & sleep 0 & wait", pids_limit=3)
    assert "fork" in done.stderr
    assert sh("sleep 0 & sleep 0 & wait; echo ok", pids_limit=3).stdout == "ok\n"


@pytest.mark.parametrize("memory", [4096, "16k", "256k", "2047k"])
def test_memory_that_a_start_cannot_do_with_is_refused(start: Any, memory: Any) -> None:
    with pytest.raises(InvalidCommandError, match="less than a container's set-up may take: 2m at least") as caught:
        start(["true"], memory=memory)
    assert caught.value.field == "resources.memory"


def test_the_least_memory_is_enough_for_a_start(start: Any) -> None:
    assert [start(["true"], memory="2m").wait(60) for _ in range(5)] == [0] * 5


def test_a_payload_that_cannot_even_start(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Less than a process needs: an error or a kill, and no hang; and nothing is left.
    monkeypatch.setattr("pycontainer_native.checks.MEMORY_MIN", 0)
    try:
        box = start(["sleep", "100"], memory=4096)
    except SetupError as error:
        said = (error.step, getattr(error, "__notes__", [""])[0][:31])
    else:
        assert box.wait(60) == -9
        assert box.status.oom_killed
        return
    assert said[0] != "killed during set-up" or said[1] == "its memory limit is 4096 bytes,"


@pytest.mark.parametrize(
    ("field", "keywords"),
    [
        ("resources.cpuset_cpus", {"cpuset_cpus": "4000"}),
        ("resources.cpuset_mems", {"cpuset_mems": "1000"}),
        ("resources.pids_limit", {"pids_limit": 5_000_000}),
        ("resources.memory_swap", {"memory": "64m", "memory_swap": "32m"}),
        ("resources.memory_swap", {"memory_swap": "64m"}),
        ("resources.cpu_quota", {"cpu_quota": 999}),
        ("resources.memory", {"memory": 4095}),
        ("resources.memory", {"memory": -5}),
        ("resources.memory", {"memory": "12q"}),
        ("cgroup_parent", {"cgroup_parent": "not-there"}),
        ("cgroup_parent", {"cgroup_parent": "../.."}),
        ("cgroup_parent", {"cgroup_parent": "a/../../b"}),
        ("cgroup_parent", {"cgroup_parent": "/"}),
        ("cgroup_parent", {"cgroup_parent": "/../x"}),
        ("cgroup_parent", {"cgroup_parent": "/not-there"}),
        ("resources.device_read_bps", {"device_read_bps": {"/dev/null": 1}}),
        ("resources.device_write_iops", {"device_write_iops": {"/dev/nowhere": 1}}),
        ("resources.hugepage_limits", {"hugepage_limits": {"3MB": 1}}),
    ],
)
def test_a_limit_that_cannot_be_applied(start: Any, field: str, keywords: Any) -> None:
    with pytest.raises(InvalidCommandError) as caught:
        start(["true"], **keywords)
    assert caught.value.field == field


def test_without_the_controller_there_is_no_limit_to_be_had(start: Any, own_driver: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(own_driver._launchers, "_layout", Layout())
    with pytest.raises(InvalidCommandError, match="pids") as caught:
        start(["true"], driver=own_driver, pids_limit=5)
    assert caught.value.field == "resources.pids_limit"
    assert start(["true"], driver=own_driver).wait(30) == 0  # no limit, no cgroup: it runs


def test_a_parent_binds_its_containers(start: Any, sh: Any, own_driver: Any) -> None:
    place = next((p for p in detect().hierarchies if "pids" in p.controllers and p.version == 1), None)
    if place is None:
        pytest.skip("needs pids on v1")  # test_cgroups has cgroup2's
    parent = Path(place.base) / f"test-{uuid.uuid4().hex[:12]}"
    parent.mkdir()
    try:
        (parent / "pids.max").write_text("2")
        done = sh("sleep 0 & sleep 0 & wait", cgroup_parent=parent.name, driver=own_driver)
        assert "fork" in done.stderr
        box = start(["sleep", "100"], cgroup_parent=parent.name, driver=own_driver)
        assert parent in [directory.parent.parent for _, directory in host.cgroup_directories(box.pid)]
        box.close()
        own_driver.close()
    finally:
        parent.rmdir()


def test_nothing_can_be_done_to_the_cgroups_from_inside(sh: Any) -> None:
    script = (
        "mount -t cgroup -o memory x /tmp; mount -t cgroup2 x /tmp; ls -A /sys/fs/cgroup; find / -name release_agent"
    )
    assert sh(script).stdout == ""


def test_without_a_pid_namespace_all_of_it_ends_as_well(start: Any) -> None:
    marker = f"{uuid.uuid4().int % 10**9 + 1000}"
    box = start(["sh", "-c", f"setsid sleep {marker} & setsid sleep {marker} & exit 3"], pid="host")
    assert box.wait(30) == 3
    assert host.running(marker) == []


def test_limits_of_a_running_one_are_gone_with_it(start: Any) -> None:
    box = start(["sleep", "100"], memory="64m", pids_limit=5, cpus=0.5, cpuset_cpus="0")
    directories = own_cgroup(box)
    assert directories
    box.close()
    assert [path for path in directories if path.exists()] == []


def test_the_caller_is_where_it_was(sh: Any) -> None:
    before = Path("/proc/self/cgroup").read_text()
    sh("true", memory="64m", cpuset_cpus="0")
    assert Path("/proc/self/cgroup").read_text() == before


@pytest.mark.parametrize("init", [False, True])
def test_the_fewest_open_files(start: Any, init: bool) -> None:
    with pytest.raises(InvalidCommandError, match="4 open files are less than the set-up takes: 7 at least") as caught:
        start(["true"], rlimits={"NOFILE": 4}, init=init)
    assert caught.value.field == "process.rlimits"
    box = start(["sh", "-c", "ulimit -n | grep -qx 7"], rlimits={"NOFILE": 7}, init=init, cwd="/tmp", user="nobody")
    assert box.wait(60) == 0
