"""Cgroups without root: detection from texts and fake trees, what is written, what is refused, sweeping."""

from __future__ import annotations

import fcntl
import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pycontainer.errors import InvalidCommandError
from pycontainer_native.cgroups import Cgroup, Group, Hierarchy, Layout, detect, live, sweep

MIB = 1024 * 1024
TOKEN = "0123456789abcdef"


def cgroup(directory: Path, **files: str) -> Path:
    """A fake cgroup: a directory with files, ``memory_max="1"`` being memory.max."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name.replace("_", ".")).write_text(text)
    return directory


def domain(directory: Path, controllers: str = "", procs: str = "") -> Path:
    """A fake cgroup of cgroup2 that is not the root."""
    return cgroup(directory, cgroup_type="domain\n", cgroup_controllers=controllers, cgroup_procs=procs)


def mount(directory: Path, kind: str, options: str = "", root: str = "/") -> str:
    """The line of mountinfo for a fake hierarchy."""
    directory.mkdir(parents=True, exist_ok=True)
    device = os.stat(directory).st_dev
    where = str(directory).replace(" ", "\\040")
    numbers = f"{os.major(device)}:{os.minor(device)}"
    return f"41 31 {numbers} {root} {where} rw,nosuid shared:9 master:1 - {kind} {kind} rw{options and ','}{options}\n"


def v1_layout(tmp_path: Path, *together: str) -> Layout:
    places = []
    for names in together:
        base = cgroup(tmp_path / names)
        places.append(Hierarchy(1, frozenset(names.split(",")), str(base), str(base)))
    return Layout(tuple(places))


# -- detect ------------------------------------------------------------------


def test_v1_base_is_the_callers_own_cgroup(tmp_path):
    cgroup(tmp_path / "memory/user/me")
    layout = detect(
        "22 1 0:5 / /proc rw - proc proc rw\n" + mount(tmp_path / "memory", "cgroup", "memory"), "4:memory:/user/me\n"
    )
    memory = Hierarchy(1, frozenset({"memory"}), str(tmp_path / "memory"), str(tmp_path / "memory/user/me"))
    assert layout == Layout((memory,))
    assert layout.mode == "v1"


def test_controllers_mounted_together_and_odd_paths(tmp_path):
    place = tmp_path / "a b - c"
    layout = detect(mount(place, "cgroup", "cpuacct,cpu,xattr"), "1:cpu,cpuacct:/\n")
    assert layout.hierarchies == (Hierarchy(1, frozenset({"cpu", "cpuacct"}), str(place), str(place)),)


def test_named_hierarchies_are_ignored(tmp_path):
    text = mount(tmp_path / "systemd", "cgroup", "name=systemd") + mount(tmp_path / "cpu", "cgroup", "name=x,cpu")
    layout = detect(text, "9:name=systemd:/init\n2:cpu,name=x:/\n")
    assert [place.controllers for place in layout.hierarchies] == [{"cpu"}]


@pytest.mark.parametrize(
    ("root", "own", "base"),
    [
        ("/docker/abc", "/docker/abc", ""),  # docker: bind-mounted, no cgroup namespace
        ("/docker/abc", "/docker/abc/inner", "/inner"),
        ("/docker/abc", "/docker/abcdef", None),  # not inside, only alike
        ("/docker/abc", "/", None),
        ("/", "/../other", None),  # joined from outside the cgroup namespace
        ("/..", "/", None),  # mounted above the namespace: where we are in there cannot be known
        ("/..", "/../other", "/other"),
        ("/with\\040space", "/with space/x", "/x"),
    ],
)
def test_mounts_of_a_part_of_the_tree(tmp_path, root, own, base):
    for name in ("pids/inner", "pids/other", "pids/x", "other", "pidsdef"):
        (tmp_path / name).mkdir(parents=True)
    layout = detect(mount(tmp_path / "pids", "cgroup", "pids", root=root), f"8:pids:{own}\n")
    assert [place.base for place in layout.hierarchies] == ([] if base is None else [f"{tmp_path}/pids{base}"])


def test_a_hidden_mount_is_not_used(tmp_path):
    hidden = mount(tmp_path / "pids", "cgroup", "pids").split(" ")
    hidden[2] = "0:99999"  # what is found at the path is another file system
    assert detect(" ".join(hidden), "8:pids:/\n") == Layout()
    gone = mount(tmp_path / "gone", "cgroup", "pids")
    (tmp_path / "gone").rmdir()
    assert detect(gone, "8:pids:/\n") == Layout()


def test_a_writable_mount_is_preferred(tmp_path, monkeypatch):
    def access(path: str, mode: int) -> bool:
        return "read-only" not in path

    monkeypatch.setattr(os, "access", access)
    first, second = (mount(tmp_path / name, "cgroup", "pids") for name in ("read-only", "other"))
    for text in (first + second, second + first):
        (place,) = detect(text, "8:pids:/\n").hierarchies
        assert (place.mountpoint, place.writable) == (str(tmp_path / "other"), True)
    (place,) = detect(first, "8:pids:/\n").hierarchies
    assert not place.writable


def test_nothing_mounted(tmp_path):
    assert detect("", "0::/\n") == Layout()
    assert detect("", "").mode == "none"
    assert Layout().groups({}) == ()


def test_hybrid_has_cgroup2_first_and_in_the_callers_cgroup(tmp_path):
    domain(tmp_path / "unified/me", controllers="hugetlb\n", procs="1\n")
    text = mount(tmp_path / "memory", "cgroup", "memory") + mount(tmp_path / "unified", "cgroup2", "nsdelegate")
    layout = detect(text, "4:memory:/\n0::/me\n")
    assert layout.mode == "hybrid"
    assert [place.version for place in layout.hierarchies] == [2, 1]
    assert layout.hierarchies[0].base == str(tmp_path / "unified/me")
    assert layout.groups({})[0] == Group(str(tmp_path / "unified/me"), 2, ())


def test_v2_base_is_the_nearest_ancestor_without_processes(tmp_path):
    cgroup(tmp_path, cgroup_controllers="cpuset cpu io memory pids\n", cgroup_procs="1\n")
    domain(tmp_path / "user.slice", controllers="cpu memory pids\n")
    domain(tmp_path / "user.slice/session.scope", controllers="memory pids\n", procs="77\n")
    layout = detect(mount(tmp_path, "cgroup2"), "0::/user.slice/session.scope\n")
    assert layout.mode == "v2"
    (place,) = layout.hierarchies
    assert (place.base, place.controllers) == (str(tmp_path / "user.slice"), {"cpu", "memory", "pids"})


def test_v2_base_is_the_root_when_the_caller_is_there(tmp_path):
    cgroup(tmp_path, cgroup_controllers="cpu memory pids\n", cgroup_procs="1\n77\n")
    (place,) = detect(mount(tmp_path, "cgroup2"), "0::/\n").hierarchies
    assert (place.base, place.controllers) == (str(tmp_path), {"cpu", "memory", "pids"})


@pytest.mark.parametrize("above", ["domain", "domain threaded", "threaded"])
def test_v2_base_without_controllers_where_no_ancestor_can_distribute(tmp_path, above):
    # A container that sees only itself: its root is not the root, and has processes.
    domain(tmp_path, controllers="cpu memory\n", procs="1\n" if above == "domain" else "")
    (tmp_path / "cgroup.type").write_text(above + "\n")
    domain(tmp_path / "me", controllers="cpu memory\n", procs="77\n")
    layout = detect(mount(tmp_path, "cgroup2"), "0::/me\n")
    (place,) = layout.hierarchies
    assert (place.base, place.controllers) == (str(tmp_path / "me"), frozenset())
    assert layout.groups({}) == (Group(str(tmp_path / "me"), 2, ()),)
    assert [field for field, _ in layout.check({"memory": {"limit": MIB}})] == ["resources.memory"]


def test_detection_survives_pickling_and_changes_nothing(tmp_path):
    domain(tmp_path / "me", controllers="memory\n", procs="1\n")
    cgroup(tmp_path, cgroup_controllers="memory\n", cgroup_procs="")
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    layout = detect(mount(tmp_path, "cgroup2"), "0::/me\n")
    layout.groups({"memory": {"limit": MIB}})
    layout.check({"memory": {"limit": MIB}})
    assert pickle.loads(pickle.dumps(layout)) == layout
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before


def test_this_host_is_detected():
    layout = detect()
    for place in layout.hierarchies:
        assert os.path.exists(place.base + "/cgroup.procs")
        assert place.base.startswith(place.mountpoint)


def test_cgroupspy_is_imported_only_for_a_limit(tmp_path):
    code = (
        "import sys; from pycontainer_native.cgroups import detect, sweep; layout = detect(); layout.groups({});"
        "layout.check({}); assert 'cgroupspy' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


# -- groups: v1 --------------------------------------------------------------


def writes_of(layout: Layout, **resources: dict[str, object]) -> dict[str, str]:
    """Every write of the container's directories, in order."""
    return {name: value for group in layout.groups(resources) for name, value in group.writes}


def test_v1_joins_what_limits_and_counts(tmp_path):
    layout = v1_layout(tmp_path, "blkio", "cpu,cpuacct", "devices", "freezer", "memory", "pids")
    groups = layout.groups({})
    joined = [("blkio",), ("cpu", "cpuacct"), ("freezer",), ("memory",), ("pids",)]
    assert [group.controllers for group in groups] == joined
    assert [group.oom_events for group in groups] == ["", "", "", "memory.oom_control", ""]
    assert all((group.writes, group.parent_writes, group.enable) == ((), (), ()) for group in groups)


def test_hybrid_leaves_the_freezer_to_cgroup2(tmp_path):
    unified = Hierarchy(2, frozenset(), str(tmp_path), str(tmp_path))
    v1 = v1_layout(tmp_path, "freezer", "pids")
    groups = Layout((unified, *v1.hierarchies)).groups({})
    assert [(group.version, group.controllers) for group in groups] == [(2, ()), (1, ("pids",))]


def test_v1_writes_in_the_order_the_kernel_needs(tmp_path):
    layout = v1_layout(tmp_path, "cpu", "memory", "pids")
    (tmp_path / "memory/memory.memsw.limit_in_bytes").touch()
    resources = {
        "memory": {"swap": 96 * MIB, "limit": 64 * MIB},
        "cpu": {"quota": 20_000, "period": 50_000, "shares": 512},
        "pids": {"limit": 10},
    }
    cpu, memory, pids = layout.groups(resources)
    assert cpu.writes == (("cpu.shares", "512"), ("cpu.cfs_period_us", "50000"), ("cpu.cfs_quota_us", "20000"))
    assert memory.writes == (
        ("memory.limit_in_bytes", str(64 * MIB)),
        ("memory.memsw.limit_in_bytes", str(96 * MIB)),
    )
    assert pids.writes == (("pids.max", "10"),)


BLOCK_IO = {
    "weight": 500,
    "weightDevice": [{"major": 8, "minor": 0, "weight": 10}],
    "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1024}, {"major": 8, "minor": 16, "rate": 2048}],
    "throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 7}],
}


def test_v1_disks_and_huge_pages(tmp_path):
    resources = {"blockIO": BLOCK_IO, "hugepageLimits": [{"pageSize": "2MB", "limit": 4096}]}
    disks, pages = v1_layout(tmp_path, "blkio", "hugetlb").groups(resources)
    assert disks.writes == (
        ("blkio.bfq.weight", "500"),
        ("blkio.bfq.weight_device", "8:0 10"),
        ("blkio.throttle.read_bps_device", "8:0 1024"),
        ("blkio.throttle.read_bps_device", "8:16 2048"),
        ("blkio.throttle.write_iops_device", "8:0 7"),
    )
    assert pages.writes == (("hugetlb.2MB.rsvd.limit_in_bytes", "4096"), ("hugetlb.2MB.limit_in_bytes", "4096"))


@pytest.mark.parametrize(
    ("bfq", "weights"),
    [
        (False, [("io.weight", "default 4950"), ("io.weight", "8:0 1")]),
        (True, [("io.bfq.weight", "default 500"), ("io.bfq.weight", "8:0 10")]),
    ],
)
def test_v2_disks_and_huge_pages(tmp_path, bfq, weights):
    base = domain(tmp_path / "base")
    domain(base / "other")
    cgroup(base / "other", io_max="", **({"io_bfq_weight": ""} if bfq else {"io_weight": ""}))
    layout = Layout((Hierarchy(2, frozenset({"io", "hugetlb", "pids"}), str(base), str(base)),))
    resources = {"blockIO": BLOCK_IO, "hugepageLimits": [{"pageSize": "1GB", "limit": 0}]}
    (group,) = layout.groups(resources)
    assert group.writes == (
        *weights,
        ("io.max", "8:0 rbps=1024 wiops=7"),
        ("io.max", "8:16 rbps=2048"),
        ("hugetlb.1GB.rsvd.max", "0"),
        ("hugetlb.1GB.max", "0"),
    )
    assert {"io", "hugetlb"} <= {*group.enable}
    assert [field for field, _ in layout.check({"blockIO": BLOCK_IO})] == []


def test_disks_without_weights_and_pages_of_no_size(tmp_path):
    layout = v1_layout(tmp_path, "blkio", "hugetlb")
    resources = {"blockIO": {"weight": 500}, "hugepageLimits": [{"pageSize": "3MB", "limit": 0}]}
    fields = [field for field, _ in layout.check(resources)]
    assert fields == ["resources.blkio_weight", "resources.hugepage_limits"]
    (tmp_path / "blkio/blkio.bfq.io_service_bytes").write_text("")
    assert [field for field, _ in layout.check({"blockIO": {"weight": 500}})] == []
    assert [field for field, _ in v1_layout(tmp_path, "pids").check(resources)] == fields


def test_a_base_with_processes_hands_on_nothing_of_a_hybrid_cgroup2(tmp_path):
    domain(tmp_path / "me", controllers="hugetlb\n", procs="1\n")
    (place,) = detect(mount(tmp_path, "cgroup2"), "0::/me\n").hierarchies
    assert (place.base, place.controllers) == (str(tmp_path / "me"), frozenset())


def test_v1_unlimited(tmp_path):
    layout = v1_layout(tmp_path, "cpu", "memory", "pids")
    (tmp_path / "memory/memory.memsw.limit_in_bytes").touch()
    assert writes_of(layout, memory={"limit": -1, "swap": -1}, cpu={"quota": -1}, pids={"limit": -1}) == {
        "memory.limit_in_bytes": "-1",
        "memory.memsw.limit_in_bytes": "-1",
        "cpu.cfs_quota_us": "-1",
        "pids.max": "max",
    }


@pytest.mark.parametrize("together", ["cpuset", "cpu,cpuset"])
def test_v1_cpuset_is_its_parents_where_nothing_else_is_asked_for(tmp_path, together):
    layout = v1_layout(tmp_path, together)
    for name, text in {"effective_cpus": "0-3,8\n", "effective_mems": "0-1\n"}.items():
        (tmp_path / together / f"cpuset.{name}").write_text(text)
    cloned = (("cgroup.clone_children", "1"), ("cpuset.cpus", "0-3,8"), ("cpuset.mems", "0-1"))
    for cpu, writes in (
        ({}, ()),
        ({"cpus": "1,2,3,8"}, (("cpuset.cpus", "1-3,8"),)),
        ({"mems": "1"}, (("cpuset.mems", "1"),)),
    ):
        (group,) = layout.groups({"cpu": cpu})
        assert (group.writes, group.parent_writes) == (writes, cloned)


@pytest.mark.parametrize("empty", ["cpus", "mems"])
def test_v1_cpuset_that_has_nothing_to_hand_on_is_not_joined(tmp_path, empty):
    layout = v1_layout(tmp_path, "cpuset")
    for name in ("cpus", "mems"):
        (tmp_path / "cpuset" / f"cpuset.effective_{name}").write_text("\n" if name == empty else "0\n")
    assert layout.groups({}) == ()


def test_v1_swap_as_docker_where_it_is_not_accounted(tmp_path):
    layout = v1_layout(tmp_path, "memory")
    for swap in (128 * MIB, -1):  # twice the memory: nobody asked for it
        resources = {"memory": {"limit": 64 * MIB, "swap": swap}}
        assert writes_of(layout, **resources) == {"memory.limit_in_bytes": str(64 * MIB)}
        assert layout.check(resources) == []
    ((field, problem),) = layout.check({"memory": {"limit": 64 * MIB, "swap": 100 * MIB}})
    assert field == "resources.memory_swap"
    assert "account" in problem


# -- groups: v2 --------------------------------------------------------------


@pytest.fixture
def v2_layout(tmp_path: Path) -> Layout:
    files = {"memory_max": "max", "memory_swap_max": "max", "cpu_weight": "100", "cpu_max": "max 100000"}
    domain(cgroup(tmp_path, **files), controllers="cpu cpuset hugetlb io memory pids\n")
    (tmp_path / "cpuset.cpus.effective").write_text("0-3\n")
    (tmp_path / "cpuset.mems.effective").write_text("0\n")
    return detect(mount(tmp_path, "cgroup2"), "0::/\n")


def test_v2_is_one_group_that_enables_what_it_needs(v2_layout, tmp_path):
    (group,) = v2_layout.groups({})
    enabled = ("io", "memory", "pids")
    assert group == Group(str(tmp_path), 2, enabled, enable=enabled, oom_events="memory.events")
    (group,) = v2_layout.groups({"cpu": {"shares": 1024}})
    assert group.enable == group.controllers == ("cpu", "io", "memory", "pids")
    (group,) = v2_layout.groups({"cpu": {"cpus": "0"}})
    assert group.enable == ("cpuset", "io", "memory", "pids")


def test_v2_writes(v2_layout):
    assert writes_of(
        v2_layout,
        memory={"limit": 64 * MIB, "swap": 96 * MIB},
        cpu={"quota": 20_000, "period": 50_000, "shares": 1024, "cpus": "0,1,3", "mems": "0"},
        pids={"limit": 10},
    ) == {
        "memory.max": str(64 * MIB),
        "memory.swap.max": str(32 * MIB),
        "cpu.weight": "100",
        "cpu.max": "20000 50000",
        "cpuset.cpus": "0-1,3",
        "cpuset.mems": "0",
        "pids.max": "10",
    }


def test_v2_unlimited(v2_layout):
    resources = {"memory": {"limit": -1, "swap": -1}, "cpu": {"quota": -1, "shares": 2}, "pids": {"limit": -1}}
    assert writes_of(v2_layout, **resources) == {
        "memory.max": "max",
        "memory.swap.max": "max",
        "cpu.weight": "1",
        "cpu.max": "max 100000",
        "pids.max": "max",
    }


@pytest.mark.parametrize(
    ("cpu", "written"),
    [({"quota": 5000}, "5000 100000"), ({"period": 5000}, "max 5000"), ({"quota": -1, "period": 5000}, "max 5000")],
)
def test_v2_cpu_max(v2_layout, cpu, written):
    # Only the quota needs the controller, so one that is asked for comes along.
    assert writes_of(v2_layout, cpu={"shares": 2, **cpu})["cpu.max"] == written


@pytest.mark.parametrize(
    ("shares", "weight"),
    # opencontainers/cgroups has the same table; the three outer pairs are the fixed points.
    [(0, 1), (1, 1), (2, 1), (3, 2), (512, 59), (1024, 100), (2000, 170), (262144, 10000), (10**9, 10000)],
)
def test_cpu_weight(shares, weight):
    from pycontainer_native.cgroups.v2 import cpu_weight

    assert cpu_weight(shares) == weight


def test_cpu_weight_never_falls():
    from pycontainer_native.cgroups.v2 import cpu_weight

    weights = [cpu_weight(shares) for shares in range(2, 20_000)]
    assert weights == sorted(weights)


# -- cgroup_parent -----------------------------------------------------------


@pytest.mark.parametrize("parent", ["", "/", "//", ".", "..", "../x", "a/../../b", "a/./b", "/..", "a\0b"])
def test_cgroup_parent_is_checked(tmp_path, parent):
    layout = v1_layout(tmp_path, "pids")
    with pytest.raises(InvalidCommandError) as error:
        layout.groups({}, parent)
    assert error.value.field == "cgroup_parent"
    assert [field for field, _ in layout.check({}, parent)] == ["cgroup_parent"]


def test_cgroup_parent_is_relative_to_the_base_or_the_mount(tmp_path):
    cgroup(tmp_path / "me/jobs/a")
    cgroup(tmp_path / "jobs")
    layout = Layout((Hierarchy(1, frozenset({"pids"}), str(tmp_path), str(tmp_path / "me")),))
    assert layout.groups({}, "jobs/a")[0].base == f"{tmp_path}/me/jobs/a"
    assert layout.groups({}, "/jobs")[0].base == f"{tmp_path}/jobs"
    assert layout.groups({}, "//me//jobs/")[0].base == f"{tmp_path}/me/jobs"


def test_cgroup_parent_is_used_where_it_exists(tmp_path):
    layout = v1_layout(tmp_path, "memory", "pids")
    cgroup(tmp_path / "memory/jobs")
    assert [group.base for group in layout.groups({}, "jobs")] == [f"{tmp_path}/memory/jobs", f"{tmp_path}/pids"]
    for absent in ("job", "x" * 300):
        with pytest.raises(InvalidCommandError, match="make it first"):
            layout.groups({}, absent)


def test_cgroup_parent_must_be_a_cgroup(tmp_path):
    layout = v1_layout(tmp_path, "pids")
    (tmp_path / "pids/link").symlink_to(tmp_path)
    (tmp_path / "pids/file").touch()
    (tmp_path / "pids" / f"pycontainer-{TOKEN}").mkdir()
    for parent in ("link", "file", f"pycontainer-{TOKEN}"):
        with pytest.raises(InvalidCommandError) as error:
            layout.groups({}, parent)
        assert error.value.field == "cgroup_parent"


def test_cgroup_parent_on_another_file_system_is_refused(tmp_path):
    layout = Layout((Hierarchy(1, frozenset({"pids"}), "/", "/"),))
    with pytest.raises(InvalidCommandError, match="/proc is not a cgroup"):
        layout.groups({}, "proc")


def test_v2_cgroup_parent_with_processes_has_no_controllers(v2_layout, tmp_path):
    domain(tmp_path / "idle", controllers="memory\n")
    domain(tmp_path / "busy", controllers="memory\n", procs="77\n")
    (group,) = v2_layout.groups({"memory": {"limit": MIB}}, "idle")
    assert (group.base, group.enable) == (str(tmp_path / "idle"), ("memory",))
    with pytest.raises(InvalidCommandError) as error:
        v2_layout.groups({"memory": {"limit": MIB}}, "busy")
    assert error.value.field == "resources.memory"


# -- check -------------------------------------------------------------------

EVERYTHING = {
    "memory": {"limit": MIB, "swap": MIB},
    "cpu": {"shares": 2, "quota": 5000, "period": 10_000, "cpus": "0", "mems": "0"},
    "pids": {"limit": 3},
}
FIELDS = ["memory", "memory_swap", "cpu_shares", "cpu_quota", "cpu_period", "cpuset_cpus", "cpuset_mems", "pids_limit"]


def test_check_without_controllers_names_every_limit(tmp_path):
    layout = v1_layout(tmp_path, "blkio")
    assert [field for field, _ in layout.check(EVERYTHING)] == [f"resources.{name}" for name in FIELDS]
    with pytest.raises(InvalidCommandError) as error:
        layout.groups(EVERYTHING)
    assert [field for field, _ in error.value.problems] == [f"resources.{name}" for name in FIELDS]


def test_check_finds_nothing_wrong_with_no_limits(tmp_path):
    for layout in (Layout(), v1_layout(tmp_path, "memory")):
        assert layout.check({}) == []
        assert layout.check({"memory": {"limit": None}, "cpu": None, "pids": {"limit": -1}}) == []


def test_check_finds_nothing_wrong_with_what_works(v2_layout):
    assert v2_layout.check({**EVERYTHING, "cpu": {"shares": 2, "quota": 5000, "cpus": "0-3", "mems": "0"}}) == []


def test_a_read_only_hierarchy_is_not_used(tmp_path):
    layout = Layout((Hierarchy(1, frozenset({"pids"}), str(tmp_path), str(tmp_path), writable=False),))
    assert layout.groups({}) == ()
    ((field, problem),) = layout.check({"pids": {"limit": 3}})
    assert field == "resources.pids_limit"
    assert "not writable" in problem


@pytest.mark.parametrize(
    ("resources", "fields"),
    [
        ({"memory": {"limit": 1}}, ["memory"]),
        ({"memory": {"swap": 8 * MIB}}, ["memory_swap"]),
        ({"memory": {"limit": -1, "swap": 8 * MIB}}, ["memory_swap"]),
        ({"memory": {"limit": 8 * MIB, "swap": 4 * MIB}}, ["memory_swap"]),
        ({"memory": {"limit": 8 * MIB, "swap": 8 * MIB}}, []),
        ({"cpu": {"quota": 999}}, ["cpu_quota"]),
        ({"cpu": {"quota": 0}}, ["cpu_quota"]),
        ({"cpu": {"quota": 1000}}, []),
        ({"pids": {"limit": 4194305}}, ["pids_limit"]),
        ({"pids": {"limit": 4194304}}, []),
        ({"cpu": {"cpus": "0-4"}}, ["cpuset_cpus"]),
        ({"cpu": {"cpus": "4"}}, ["cpuset_cpus"]),
        ({"cpu": {"cpus": "0,3"}}, []),
        ({"cpu": {"mems": "1"}}, ["cpuset_mems"]),
        ({"cpu": {"cpus": "0-99999999999"}}, ["cpuset_cpus"]),
        ({"cpu": {"cpus": "3-1", "mems": "0\n"}}, ["cpuset_cpus", "cpuset_mems"]),
    ],
)
def test_check_of_values(v2_layout, resources, fields):
    assert [field for field, _ in v2_layout.check(resources)] == [f"resources.{name}" for name in fields]


def test_check_v1_quota_within_what_binds_the_caller(tmp_path):
    layout = Layout((Hierarchy(1, frozenset({"cpu"}), str(tmp_path), str(tmp_path / "a/b")),))
    for directory, quota in ((tmp_path, -1), (tmp_path / "a", 50_000), (tmp_path / "a/b", -1)):
        directory.mkdir(exist_ok=True)
        (directory / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        (directory / "cpu.cfs_period_us").write_text("100000\n")
    assert layout.check({"cpu": {"quota": 25_000, "period": 50_000}}) == []
    assert [field for field, _ in layout.check({"cpu": {"quota": 26_000, "period": 50_000}})] == ["resources.cpu_quota"]
    (tmp_path / "a/cpu.cfs_quota_us").write_text("-1\n")
    assert layout.check({"cpu": {"quota": 900_000}}) == []


def test_check_without_bandwidth_control(tmp_path, v2_layout):
    layout = v1_layout(tmp_path, "cpu")
    assert [field for field, _ in layout.check({"cpu": {"quota": 5000, "shares": 5}})] == ["resources.cpu_quota"]
    (tmp_path / "cpu.max").unlink()
    assert [field for field, _ in v2_layout.check({"cpu": {"quota": 5000, "shares": 5}})] == ["resources.cpu_quota"]


def test_check_v2_swap_where_it_is_not_accounted(tmp_path, v2_layout):
    resources = {"memory": {"limit": MIB, "swap": MIB}}
    assert v2_layout.check(resources) == []
    (tmp_path / "memory.swap.max").unlink()
    assert [field for field, _ in v2_layout.check(resources)] == ["resources.memory_swap"]
    resources["memory"]["swap"] = 2 * MIB
    assert v2_layout.check(resources) == []
    assert writes_of(v2_layout, **resources) == {"memory.max": str(MIB)}


def test_check_v2_asks_a_child_of_the_root(tmp_path):
    cgroup(tmp_path, cgroup_controllers="memory\n", cgroup_procs="1\n")
    layout = detect(mount(tmp_path, "cgroup2"), "0::/\n")
    resources = {"memory": {"limit": MIB, "swap": MIB}}
    assert layout.check(resources) == []  # nobody to ask
    cgroup(tmp_path / "child", memory_max="max")
    assert [field for field, _ in layout.check(resources)] == ["resources.memory_swap"]
    cgroup(tmp_path / "child", memory_swap_max="max")
    assert layout.check(resources) == []


# -- Cgroup ------------------------------------------------------------------


def test_cgroup_of_groups():
    groups = (Group("/cg/a", 2, ("memory",)), Group("/cg/b", 1, ("cpu", "cpuacct")))
    box = Cgroup.of(groups, TOKEN, "box")
    assert box.paths == (
        (2, ("memory",), f"/cg/a/pycontainer-{TOKEN}/box"),
        (1, ("cpu", "cpuacct"), f"/cg/b/pycontainer-{TOKEN}/box"),
    )


@pytest.mark.parametrize("id", ["", ".", "..", "a/b", "../x", "/"])
def test_cgroup_refuses_an_id_that_is_a_path(id):
    with pytest.raises(ValueError, match="id"):
        Cgroup.of((Group("/cg", 2, ()),), TOKEN, id)


def test_pids_are_those_of_every_hierarchy_and_of_nested_cgroups(tmp_path):
    cgroup(tmp_path / "a", cgroup_procs="5\n12\n")
    cgroup(tmp_path / "a/nested/deep", cgroup_procs="7\n")
    cgroup(tmp_path / "b", cgroup_procs="3\n5\n")
    box = Cgroup(((2, (), str(tmp_path / "a")), (1, ("pids",), str(tmp_path / "b"))))
    assert box.pids() == [3, 5, 7, 12]


def test_a_cgroup_that_is_gone_is_empty(tmp_path):
    gone = Cgroup(((2, ("pids",), str(tmp_path / "gone")),))
    assert gone.pids() == []
    assert gone.kill() is True
    with pytest.raises(FileNotFoundError):
        gone.read("pids.max")


def test_read_asks_the_hierarchy_of_the_controller(tmp_path):
    cgroup(tmp_path / "a", cgroup_events="populated 0\n", memory_max="wrong\n")
    cgroup(tmp_path / "b", memory_max="64\n")
    box = Cgroup(((1, ("memory",), str(tmp_path / "b")), (2, (), str(tmp_path / "a"))))
    assert box.read("memory.max") == "64"
    assert box.read("cgroup.events") == "populated 0"
    with pytest.raises(FileNotFoundError, match="pids"):
        box.read("pids.max")


@pytest.fixture
def sleeper():
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def test_kill_without_cgroup_kill_freezes_signals_and_thaws(tmp_path, sleeper):
    cgroup(tmp_path / "v2", cgroup_procs=f"{sleeper.pid}\n", cgroup_freeze="")
    cgroup(tmp_path / "v1", cgroup_procs="0\n", freezer_state="")
    box = Cgroup(((2, (), str(tmp_path / "v2")), (1, ("freezer",), str(tmp_path / "v1"))))
    assert box.kill(timeout=0) is False  # the fake files still list it
    assert sleeper.wait(5) == -signal.SIGKILL
    assert (tmp_path / "v2/cgroup.freeze").read_text() == "0"
    assert (tmp_path / "v1/freezer.state").read_text() == "THAWED"


def test_kill_thaws_also_when_it_fails(tmp_path, monkeypatch):
    def fail(pids: list[int], cgroup: Cgroup) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(live, "_signal", fail)
    written: list[tuple[str, str]] = []
    monkeypatch.setattr(live, "_write", lambda path, value: written.append((path.rpartition("/")[2], value)))
    cgroup(tmp_path, cgroup_procs="77\n")
    with pytest.raises(KeyboardInterrupt):
        Cgroup(((1, ("freezer",), str(tmp_path)),)).kill()
    assert written == [("freezer.state", "FROZEN"), ("freezer.state", "THAWED")]


def test_kill_leaves_a_pid_alone_that_is_no_longer_inside(tmp_path, monkeypatch, sleeper):
    # What was listed ended, and its number is another process's by the time that it is opened.
    procs = cgroup(tmp_path, cgroup_procs=f"{sleeper.pid}\n") / "cgroup.procs"
    pidfd_open = os.pidfd_open

    def open_late(pid: int) -> int:
        procs.write_text("")
        return pidfd_open(pid)

    monkeypatch.setattr(os, "pidfd_open", open_late)
    assert Cgroup(((1, ("pids",), str(tmp_path)),)).kill() is True
    assert sleeper.poll() is None


def test_kill_prefers_cgroup_kill(tmp_path, monkeypatch):
    cgroup(tmp_path, cgroup_procs="77\n", cgroup_kill="", cgroup_freeze="")
    monkeypatch.setattr(live, "_signal", lambda *_: pytest.fail("cgroup.kill does it"))
    assert Cgroup(((2, (), str(tmp_path)),)).kill(timeout=0) is False
    assert (tmp_path / "cgroup.kill").read_text() == "1"
    assert (tmp_path / "cgroup.freeze").read_text() == ""


# -- sweep -------------------------------------------------------------------


def hold(directory: Path) -> int:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def test_sweep_removes_the_dead_and_spares_the_living(tmp_path):
    layout = v1_layout(tmp_path, "memory", "pids")
    dead, alive, own = "a" * 16, "b" * 16, "c" * 16
    for names in ("memory", "pids"):
        for token in (dead, alive, own):
            cgroup(tmp_path / names / f"pycontainer-{token}/box/nested")
    # Locked in one hierarchy only: it lives, and is about to lock the other.
    lock = hold(tmp_path / "memory" / f"pycontainer-{alive}")
    try:
        removed = sweep(layout, exclude_token=own)
    finally:
        os.close(lock)
    assert removed == [f"{tmp_path}/{names}/pycontainer-{dead}" for names in ("memory", "pids")]
    for names in ("memory", "pids"):
        left = sorted(path.name for path in (tmp_path / names).iterdir())
        assert left == [f"pycontainer-{alive}", f"pycontainer-{own}"]
        assert (tmp_path / names / f"pycontainer-{alive}/box/nested").is_dir()
    assert len(sweep(layout)) == 4


def test_sweep_waits_for_what_one_known_to_be_dead_had_just_cloned(tmp_path):
    layout = v1_layout(tmp_path, "pids")
    left = [str(cgroup(tmp_path / f"pids/pycontainer-{token}")) for token in ("a" * 16, "b" * 16)]
    locks = [hold(Path(path)) for path in left]  # such a process has a copy of the lock
    dies = threading.Timer(0.2, os.close, locks[:1])
    dies.start()
    try:
        assert sweep(layout, dead="a" * 16) == left[:1]
    finally:
        dies.join()
        os.close(locks[1])


@pytest.mark.parametrize("name", ["pycontainer", "pycontainer-jobs", "pycontainer-abc", "xpycontainer-" + TOKEN, TOKEN])
def test_sweep_touches_only_launchers_directories(tmp_path, name):
    layout = v1_layout(tmp_path, "pids")
    cgroup(tmp_path / "pids" / name)
    cgroup(tmp_path / f"pids/deeper/pycontainer-{TOKEN}")
    assert sweep(layout) == []
    assert (tmp_path / "pids" / name).is_dir()
    assert (tmp_path / f"pids/deeper/pycontainer-{TOKEN}").is_dir()
    assert sweep(layout, cgroup_parent="deeper") == [f"{tmp_path}/pids/deeper/pycontainer-{TOKEN}"]


def test_sweep_follows_no_link(tmp_path):
    layout = v1_layout(tmp_path, "pids")
    canary = cgroup(tmp_path / "canary/inside").parent
    (tmp_path / "pids" / f"pycontainer-{'a' * 16}").symlink_to(canary)
    inner = cgroup(tmp_path / "pids" / f"pycontainer-{'b' * 16}")
    (inner / "link").symlink_to(canary)
    assert sweep(layout) == []
    assert (canary / "inside").is_dir()


def test_sweep_does_not_remove_what_took_the_place_of_what_it_locked(tmp_path, monkeypatch):
    layout = v1_layout(tmp_path, "pids")
    place = cgroup(tmp_path / "pids" / f"pycontainer-{TOKEN}")
    flock = fcntl.flock

    def replaced(descriptor: int, operation: int) -> None:
        flock(descriptor, operation)
        place.rename(tmp_path / "old")
        cgroup(place / "box")

    monkeypatch.setattr(fcntl, "flock", replaced)
    assert sweep(layout) == []
    assert (place / "box").is_dir()


def test_sweep_leaves_what_it_may_not_write(tmp_path):
    base = cgroup(tmp_path / f"pids/pycontainer-{TOKEN}").parent
    assert sweep(Layout((Hierarchy(1, frozenset({"pids"}), str(base), str(base), writable=False),))) == []
    assert sweep(Layout()) == []


def test_sweep_of_a_base_that_is_gone(tmp_path):
    gone = str(tmp_path / "gone")
    assert sweep(Layout((Hierarchy(1, frozenset({"pids"}), str(tmp_path), gone),))) == []
