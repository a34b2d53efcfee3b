"""What is read from and written to a live cgroup, on fake trees of both versions, without root."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from attrs import evolve

from pycontainer.driver import Feature
from pycontainer.errors import InvalidCommandError
from pycontainer.stats import CpuStats, InterfaceStats, IoStats, MemoryStats, PidsStats, Pressure
from pycontainer_native.cgroups import Cgroup, Hierarchy, Layout, freezer, update, usage
from pycontainer_native.cgroups.limits import Limits
from pycontainer_native.probe import _feature

MIB = 1024 * 1024
UNLIMITED = 9223372036854771712

V2_FILES = {
    "cgroup.controllers": "cpu cpuset io memory pids",
    "cgroup.events": "populated 1\nfrozen 0",
    "cgroup.freeze": "0",
    "cpu.stat": "usage_usec 300\nuser_usec 200\nsystem_usec 100\nnr_periods 7\nnr_throttled 3\nthrottled_usec 50",
    "cpu.weight": "100",
    "cpu.max": "max 100000",
    "cpuset.cpus": "",
    "cpuset.mems": "",
    "memory.current": f"{20 * MIB}",
    "memory.peak": f"{30 * MIB}",
    "memory.max": f"{64 * MIB}",
    "memory.swap.current": f"{MIB}",
    "memory.swap.max": f"{64 * MIB}",
    "memory.stat": "anon 1000\nfile 2000\nkernel 3000",
    "memory.events": "low 0\noom 5\noom_kill 2\noom_group_kill 0",
    "pids.current": "3",
    "pids.max": "100",
    "io.stat": "254:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n8:0 rbytes=5 wbytes=5 rios=1 wios=1\n7:0",
    "cpu.pressure": "some avg10=1.50 avg60=0.00 avg300=0.00 total=77",
    "memory.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=8\nfull avg10=0.25 avg60=0.00 avg300=0.00 total=9",
}

V1_FILES = {
    "cpuacct": {"cpuacct.usage": "350000000", "cpuacct.stat": "user 20\nsystem 15"},
    "cpu": {
        "cpu.stat": "nr_periods 7\nnr_throttled 3\nthrottled_time 50000",
        "cpu.shares": "1024",
        "cpu.cfs_quota_us": "50000",
        "cpu.cfs_period_us": "100000",
    },
    "memory": {
        "memory.usage_in_bytes": f"{20 * MIB}",
        "memory.max_usage_in_bytes": f"{30 * MIB}",
        "memory.limit_in_bytes": f"{64 * MIB}",
        "memory.memsw.limit_in_bytes": f"{128 * MIB}",
        "memory.stat": f"cache 1\nrss 2\nswap 3\ntotal_cache 2000\ntotal_rss 1000\ntotal_swap {MIB}",
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2",
    },
    "pids": {"pids.current": "3", "pids.max": "100"},
    "blkio": {
        "blkio.throttle.io_service_bytes_recursive": "254:0 Read 10\n254:0 Write 20\n254:0 Sync 30\n254:0 Total 30\n"
        "8:0 Read 5\n8:0 Write 5\n8:0 Total 10\nTotal 40",
        "blkio.throttle.io_serviced_recursive": "254:0 Read 1\n254:0 Write 2\n8:0 Read 1\n8:0 Write 1\nTotal 5",
    },
    "cpuset": {"cpuset.cpus": "0-1", "cpuset.mems": "0"},
    "freezer": {"freezer.state": "THAWED"},
}


def tree(directory: Path, files: dict[str, str]) -> str:
    directory.mkdir(parents=True)
    for name, text in files.items():
        (directory / name).write_text(text + "\n")
    return str(directory)


@pytest.fixture
def v2(tmp_path: Path) -> Cgroup:
    """The container "1" of a launcher, in cgroup2."""
    (tmp_path / "cgroup.controllers").write_text("cpu cpuset io memory pids\n")
    path = tree(tmp_path / "pycontainer-0123456789ab" / "1", V2_FILES)
    beside = {"cpu.weight": "100", "cpu.max": "max 100000", "memory.max": "max", "memory.swap.max": "max"}
    for name, text in {**beside, "cpuset.cpus.effective": "0-1", "cpuset.mems.effective": "0"}.items():
        (tmp_path / "pycontainer-0123456789ab" / name).write_text(text + "\n")
    for name in ("", "pycontainer-0123456789ab"):
        (tmp_path / name / "cgroup.subtree_control").touch()
    return Cgroup(((2, ("io", "memory", "pids"), path),))


@pytest.fixture
def v1(tmp_path: Path) -> Cgroup:
    """The container "1" of a launcher, in the hierarchies of v1."""
    paths = []
    for name, files in V1_FILES.items():
        launcher = tmp_path / name / "pycontainer-0123456789ab"
        paths.append((1, (name,), tree(launcher / "1", files)))
        beside = {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000", "memory.memsw.limit_in_bytes": "0"}
        for file, text in {**beside, "cpuset.effective_cpus": "0-1", "cpuset.effective_mems": "0"}.items():
            (launcher / file).write_text(text + "\n")
        (launcher.parent / "cpu.cfs_quota_us").write_text("-1\n")
    return Cgroup(tuple(paths))


class Log(list[tuple[str, str]]):
    """The writes to a cgroup's files, in order; one to a file in :attr:`refused` fails, once."""

    refused: dict[str, int]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    log = Log()
    log.refused = {}

    def write(path: str, value: str) -> None:
        name = path.rpartition("/")[2]
        if name in log.refused:
            raise OSError(log.refused.pop(name), "refused")
        log.append((name, value))
        Path(path).write_text(value + "\n")

    monkeypatch.setattr(update, "write", write)
    return log


def texts(cgroup: Cgroup) -> dict[str, str]:
    return {str(file): file.read_text() for _, _, path in cgroup.paths for file in sorted(Path(path).iterdir())}


# -- usage


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_stats_are_the_same_numbers_on_both_versions(request, version, monkeypatch):
    cgroup = request.getfixturevalue(version)
    monkeypatch.setattr(usage, "_network", lambda pid: {})
    monkeypatch.setattr(usage, "TICK", 10_000_000)
    stats = usage.stats(cgroup, 1)
    ms = 1_000_000
    cpu = {"v1": (350 * ms, 200 * ms, 150 * ms), "v2": (300_000, 200_000, 100_000)}[version]
    assert stats.cpu == CpuStats(
        usage=cpu[0], user=cpu[1], system=cpu[2], periods=7, throttled_periods=3, throttled_time=50_000
    )
    assert stats.memory == MemoryStats(
        usage=20 * MIB, peak=30 * MIB, limit=64 * MIB, cache=2000, rss=1000, swap=MIB, oom_kills=2
    )
    assert stats.pids == PidsStats(current=3, limit=100)
    assert stats.io == IoStats(read_bytes=15, write_bytes=25, reads=2, writes=3)


def test_pressure_where_the_kernel_has_it(v2, monkeypatch):
    monkeypatch.setattr(usage, "_network", lambda pid: {})
    assert usage.stats(v2, 1).pressure == {
        "cpu": Pressure(some_avg10=1.5, some_total=77),
        "memory": Pressure(some_avg10=0.0, some_total=8, full_avg10=0.25, full_total=9),
    }


def test_unlimited_is_none(v1, v2, monkeypatch):
    monkeypatch.setattr(usage, "_network", lambda pid: {})
    for cgroup in (v1, v2):
        for _, _, path in cgroup.paths:
            for name, text in {"memory.max": "max", "memory.limit_in_bytes": f"{UNLIMITED}", "pids.max": "max"}.items():
                if Path(path, name).exists():
                    Path(path, name).write_text(text + "\n")
        stats = usage.stats(cgroup, 1)
        assert (stats.memory.limit, stats.pids.limit) == (None, None)


def test_what_an_older_kernel_does_not_have(v2, monkeypatch):
    monkeypatch.setattr(usage, "_network", lambda pid: {})
    for name in ("memory.peak", "memory.swap.current", "io.stat", "cpu.pressure", "memory.pressure"):
        Path(v2.paths[0][2], name).unlink()
    Path(v2.paths[0][2], "cpu.stat").write_text("usage_usec 3\nuser_usec 2\nsystem_usec 1\n")
    stats = usage.stats(v2, 1)
    assert (stats.memory.peak, stats.memory.swap, stats.io, stats.pressure) == (None, None, IoStats(), {})
    assert stats.cpu == CpuStats(usage=3000, user=2000, system=1000)


def test_a_cgroup_that_is_gone_is_an_oserror(tmp_path):
    with pytest.raises(FileNotFoundError):
        usage.stats(Cgroup(((2, ("memory", "pids"), str(tmp_path / "gone")),)), 1)


def test_uncounted(v1, v2):
    assert usage.uncounted(v1) == usage.uncounted(v2) == []
    assert usage.uncounted(Cgroup(((2, (), "/x"),))) == ["memory", "pids"]
    assert usage.uncounted(Cgroup(())) == ["cpuacct", "memory", "pids"]
    assert usage.uncounted(Cgroup(((2, (), "/x"), (1, ("memory",), "/y"), (1, ("pids",), "/z")))) == []


def test_interfaces():
    text = (
        "Inter-|   Receive                                                |  Transmit\n"
        " face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo ...\n"
        "    lo: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0\n"
        "eth0:0:9 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n"
    )
    found = usage.interfaces(text)
    assert list(found) == ["lo", "eth0:0"]
    assert found["lo"] == InterfaceStats(
        rx_bytes=1, rx_packets=2, rx_errors=3, rx_dropped=4, tx_bytes=5, tx_packets=6, tx_errors=7, tx_dropped=8
    )
    assert found["eth0:0"].rx_bytes == 9


def test_no_network_of_the_callers_own():
    assert usage._network(os.getpid()) == {}


# -- update


@pytest.mark.parametrize(
    ("present", "memory", "memory_swap", "order"),
    [
        ((64, 128), 32, 64, ["memsw", "limit"]),  # 64 is not below the present limit
        ((64, 128), 30, 60, ["limit", "memsw"]),
        ((64, 128), 256, 512, ["memsw", "limit"]),
        ((64, 128), 32, -1, ["memsw", "limit"]),
        ((None, None), 64, 128, ["limit", "memsw"]),
        ((64, None), 32, 40, ["limit", "memsw"]),
    ],
)
def test_v1_writes_memory_and_memsw_so_that_neither_is_in_the_others_way(v1, log, present, memory, memory_swap, order):
    (path,) = [path for _, names, path in v1.paths if "memory" in names]
    limit, memsw = (UNLIMITED if n is None else n * MIB for n in present)
    Path(path, "memory.limit_in_bytes").write_text(f"{limit}\n")
    Path(path, "memory.memsw.limit_in_bytes").write_text(f"{memsw}\n")
    swap = -1 if memory_swap == -1 else memory_swap * MIB
    update.update(v1, Limits(memory=memory * MIB, memory_swap=swap))
    assert ["memsw" if "memsw" in name else "limit" for name, _ in log] == order
    for name, value in log:  # as the kernel has it
        limit, memsw = (limit, int(value)) if "memsw" in name else (int(value), memsw)
        assert limit <= memsw or memsw == -1
    assert (limit, memsw) == (memory * MIB, swap)


@pytest.mark.parametrize(
    ("wanted", "order"),
    [
        ({"cpu_quota": 20_000, "cpu_period": 20_000}, ["cpu.cfs_quota_us", "cpu.cfs_period_us"]),
        ({"cpu_quota": 200_000, "cpu_period": 400_000}, ["cpu.cfs_period_us", "cpu.cfs_quota_us"]),
        ({"cpu_quota": -1}, ["cpu.cfs_quota_us"]),
        ({"cpu_period": 200_000}, ["cpu.cfs_period_us"]),
    ],
)
def test_v1_bandwidth_never_is_more_in_between(v1, log, wanted, order):
    update.update(v1, Limits(**wanted))
    assert [name for name, _ in log] == order
    quota, period = 50_000, 100_000
    for name, value in log[:1] if len(order) == 2 else []:
        quota, period = (int(value), period) if "quota" in name else (quota, int(value))
        assert quota / period <= max(0.5, wanted["cpu_quota"] / wanted["cpu_period"])


@pytest.mark.parametrize(
    ("present", "wanted", "written"),
    [
        ("max 100000", {"cpu_quota": 5000}, "5000 100000"),
        ("max 50000", {"cpu_quota": 5000}, "5000 50000"),
        ("5000 100000", {"cpu_period": 50_000}, "5000 50000"),
        ("5000 100000", {"cpu_quota": -1}, "max 100000"),
        ("5000 100000", {"cpu_quota": 5000}, None),
    ],
)
def test_v2_cpu_max_keeps_the_half_that_is_not_given(v2, log, present, wanted, written):
    Path(v2.paths[0][2], "cpu.max").write_text(present + "\n")
    update.update(v2, Limits(**wanted))
    assert log == ([("cpu.max", written)] if written else [])


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize(
    ("present", "wanted", "expected"),
    [
        ((64, 128), {"memory": 96}, (96, 192)),  # twice, which nobody asked for, stays twice
        ((64, 100), {"memory": 96}, (96, 100)),
        ((64, None), {"memory": 96}, (96, None)),
        ((None, None), {"memory": 96}, (96, 192)),
        ((64, 100), {"memory": 96, "memory_swap": 0}, (96, 192)),
        ((64, 100), {"memory": 96, "memory_swap": 96}, (96, 96)),
        ((64, 100), {"memory_swap": -1}, (64, None)),
    ],
)
def test_memory_and_swap_together(request, log, version, present, wanted, expected):
    cgroup = request.getfixturevalue(version)
    (path,) = [path for _, names, path in cgroup.paths if "memory" in names]
    names = (
        ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
        if version == "v1"
        else ("memory.max", "memory.swap.max")
    )
    unlimited = f"{UNLIMITED}" if version == "v1" else "max"

    def encoded(pair: tuple[int | None, int | None]) -> list[str]:
        memory, together = pair
        second = together if version == "v1" or together is None else together - (memory or 0)
        return [unlimited if n is None else f"{n * MIB}" for n in (memory, second)]

    for name, text in zip(names, encoded(present), strict=True):
        Path(path, name).write_text(text + "\n")
    update.update(cgroup, Limits(**{name: n * MIB if n > 0 else n for name, n in wanted.items()}))
    after = [Path(path, name).read_text().strip() for name in names]
    assert [unlimited if text == "-1" else text for text in after] == encoded(expected)


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize(
    ("wanted", "fields"),
    [
        ({"memory": 19 * MIB}, ["memory"]),  # 20 MiB are in use, and 1 of swap
        ({"memory": 20 * MIB, "memory_swap": 20 * MIB}, ["memory_swap"]),
        ({"memory": 4096, "memory_swap": 4096, "pids_limit": 5}, ["memory", "memory_swap"]),
        ({"memory": 200 * MIB, "memory_swap": 100 * MIB}, ["memory_swap"]),
        ({"cpu_quota": 10}, ["cpu_quota"]),
        ({"cpuset_cpus": "0-5"}, ["cpuset_cpus"]),
        ({"cpuset_mems": "1", "pids_limit": 5}, ["cpuset_mems"]),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(request, log, version, wanted, fields):
    cgroup = request.getfixturevalue(version)
    before = texts(cgroup)
    with pytest.raises(InvalidCommandError) as error:
        update.update(cgroup, Limits(**wanted))
    assert [field for field, _ in error.value.problems] == [f"resources.{name}" for name in fields]
    assert log == []
    assert texts(cgroup) == before


@pytest.mark.parametrize(
    ("version", "name", "field"),
    [
        ("v1", "memory.limit_in_bytes", "memory"),
        ("v1", "memory.memsw.limit_in_bytes", "memory_swap"),
        ("v1", "cpu.shares", "cpu_shares"),
        ("v1", "cpu.cfs_quota_us", "cpu_quota"),
        ("v1", "cpu.cfs_period_us", "cpu_period"),
        ("v1", "cpuset.cpus", "cpuset_cpus"),
        ("v1", "cpuset.mems", "cpuset_mems"),
        ("v1", "pids.max", "pids_limit"),
        ("v2", "memory.max", "memory"),
        ("v2", "memory.swap.max", "memory_swap"),
        ("v2", "cpu.weight", "cpu_shares"),
        ("v2", "cpu.max", "cpu_quota"),
        ("v2", "cpuset.cpus", "cpuset_cpus"),
        ("v2", "cpuset.mems", "cpuset_mems"),
        ("v2", "pids.max", "pids_limit"),
    ],
)
def test_all_or_nothing(request, log, version, name, field):
    cgroup = request.getfixturevalue(version)
    for _, _, path in cgroup.paths:
        if Path(path, "cpuset.mems").exists():
            Path(path, "cpuset.mems").write_text("0-1\n")
    before = {path: text.strip() for path, text in texts(cgroup).items()}
    log.refused = {name: errno.EBUSY}
    with pytest.raises(InvalidCommandError, match=rf"the kernel refuses .* in {name}") as error:
        update.update(
            cgroup,
            Limits(
                memory=32 * MIB, memory_swap=80 * MIB, cpu_shares=512, cpu_quota=20_000, cpu_period=50_000,
                cpuset_cpus="0", cpuset_mems="0", pids_limit=7,
            ),
        )  # fmt: skip
    assert error.value.field == f"resources.{field}"
    assert {path: text.strip() for path, text in texts(cgroup).items()} == before


def test_a_value_that_cannot_be_set_back_is_a_note(v2, log, monkeypatch):
    write = update.write

    def fails_twice(path: str, value: str) -> None:
        if path.endswith("memory.swap.max") or (path.endswith("memory.max") and value == str(64 * MIB)):
            raise OSError(errno.EINVAL, "no")
        write(path, value)

    monkeypatch.setattr(update, "write", fails_twice)
    with pytest.raises(InvalidCommandError) as error:
        update.update(v2, Limits(memory=32 * MIB, memory_swap=40 * MIB))
    assert error.value.__notes__ == [f"memory.max could not be set back to {64 * MIB}: no"]


def test_a_container_that_ends_meanwhile_is_no_refusal(v2, log):
    log.refused = {"pids.max": errno.ENODEV}
    with pytest.raises(OSError, match="refused") as error:
        update.update(v2, Limits(pids_limit=7))
    assert error.value.errno == errno.ENODEV


def test_v1_cannot_join_another_hierarchy(v1, log):
    without = Cgroup(tuple(place for place in v1.paths if "cpu" not in place[1]))
    with pytest.raises(InvalidCommandError, match="cpu, which this container is not in") as error:
        update.update(without, Limits(cpu_shares=2, cpu_quota=5000, pids_limit=7))
    assert [field for field, _ in error.value.problems] == ["resources.cpu_shares", "resources.cpu_quota"]
    assert log == []
    update.update(without, Limits(cpu_quota=-1))  # which it is already


def test_v2_enables_what_it_needs(v2, tmp_path, log):
    Path(v2.paths[0][2], "cgroup.controllers").write_text("memory pids\n")
    update.update(v2, Limits(cpu_shares=512))
    assert log == [("cgroup.subtree_control", "+cpu"), ("cgroup.subtree_control", "+cpu"), ("cpu.weight", "59")]
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+cpu\n"
    (tmp_path / "cgroup.controllers").write_text("memory pids\n")
    with pytest.raises(InvalidCommandError, match="cpuset"):
        update.update(v2, Limits(cpuset_cpus="0"))


def test_v2_says_what_cannot_be_enabled(v2, log):
    Path(v2.paths[0][2], "cgroup.controllers").write_text("memory pids\n")
    log.refused = {"cgroup.subtree_control": errno.EINVAL}
    with pytest.raises(InvalidCommandError, match=r"cannot be enabled below .*: refused") as error:
        update.update(v2, Limits(cpu_shares=512, pids_limit=7))
    assert error.value.field == "resources.cpu_shares"
    assert log == []


# -- freezer


def test_the_freezer_is_cgroup2s_where_there_is_one(v1, v2, monkeypatch):
    written = []
    monkeypatch.setattr(freezer, "write", lambda path, value: written.append((path, value)))
    freezer.thaw(Cgroup((*v1.paths, *v2.paths)))
    assert written == [(f"{v2.paths[0][2]}/cgroup.freeze", "0")]
    assert freezer.can_freeze(v1)
    assert not freezer.can_freeze(Cgroup(v1.paths[:1]))


@pytest.mark.parametrize(
    ("version", "file", "thawed"), [("v1", "freezer.state", "THAWED"), ("v2", "cgroup.freeze", "0")]
)
def test_what_does_not_stop_goes_on(request, version, file, thawed, monkeypatch):
    cgroup = request.getfixturevalue(version)
    (path,) = [Path(path, file) for _, _, path in cgroup.paths if Path(path, file).exists()]
    written = []
    monkeypatch.setattr(freezer, "write", lambda path, value: written.append((path, value)))
    assert freezer.freeze(cgroup, timeout=0.05) is False
    assert written[0][0] == str(path)
    assert written[-1] == (str(path), thawed)


def test_let_die_thaws_only_v1(v1, v2, monkeypatch):
    written = []
    monkeypatch.setattr(freezer, "write", lambda path, value: written.append(value))
    freezer.let_die(v2)
    freezer.let_die(Cgroup(()))
    assert written == []
    freezer.let_die(v1)
    assert written == ["THAWED"]


# -- probe


@pytest.mark.parametrize(
    ("version", "controllers", "usable"),
    [
        (2, {"memory", "pids"}, {Feature.PAUSE, Feature.STATS, Feature.UPDATE}),
        (2, {"hugetlb"}, {Feature.PAUSE}),
        (1, {"cpuacct", "memory", "pids"}, {Feature.STATS, Feature.UPDATE}),
        (1, {"freezer", "memory"}, {Feature.PAUSE, Feature.UPDATE}),
        (1, {"devices"}, set()),
    ],
)
def test_probe_says_which_verbs_the_hierarchies_allow(version, controllers, usable):
    place = Hierarchy(version, frozenset(controllers), "/x", "/x")
    for writable in (True, False):
        layout = Layout((evolve(place, writable=writable),))
        found = {verb: _feature(verb, layout, None, "", "") for verb in (Feature.PAUSE, Feature.STATS, Feature.UPDATE)}
        assert {verb for verb, probe in found.items() if probe.usable} == (usable if writable else set())
        assert all(probe.usable or (probe.cause and probe.remedy) for probe in found.values())
