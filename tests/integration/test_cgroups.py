"""Cgroups on the real host, whichever version it has: what the kernel reads back, who dies, what is left."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycontainer_native.cgroups import OOM_KEY, Cgroup, Group, Layout, detect, live, sweep

pytestmark = pytest.mark.root

MIB = 1024 * 1024
ID = "box"


def remove(path: Path) -> None:
    """Remove a cgroup and those inside, with patience for what is still ending."""
    for _ in range(200):
        for directory in [*sorted(path.rglob("*/"), reverse=True), path]:
            with contextlib.suppress(OSError):
                directory.rmdir()
        if not path.exists():
            return
        time.sleep(0.01)
    raise AssertionError(f"{path} cannot be removed")


@pytest.fixture
def layout() -> Iterator[Layout]:
    """The host's layout, all below a cgroup of this test's own, so that nothing of anybody else is touched."""
    host = detect()
    if host.mode == "none":
        pytest.skip("no cgroups")
    name = f"test-{secrets.token_hex(6)}"
    undo = contextlib.ExitStack()
    with undo:
        for place in host.hierarchies:
            base = Path(place.base)
            if place.version == 2 and place.controllers & {"memory", "pids", "cpu", "cpuset"}:
                control = base / "cgroup.subtree_control"
                wanted = place.controllers & {"memory", "pids", "cpu", "cpuset"}
                for controller in sorted(wanted - {*control.read_text().split()}):
                    control.write_text(f"+{controller}")
                    undo.callback(control.write_text, f"-{controller}")
            (base / name).mkdir()
            undo.callback(remove, base / name)
            if place.version == 1 and "cpuset" in place.controllers:
                for kind in ("cpus", "mems"):
                    text = (base / f"cpuset.effective_{kind}").read_text()
                    (base / name / f"cpuset.{kind}").write_text(text)
        everything = tuple(
            (place.version, tuple(place.controllers), f"{place.base}/{name}") for place in host.hierarchies
        )
        undo.callback(Cgroup(everything).kill)
        yield Layout(host.places(name))
    assert not any(os.path.exists(f"{place.base}/{name}") for place in host.hierarchies)
    assert detect() == host


class Launcher:
    """The launcher's side, as the modules document it."""

    def __init__(self) -> None:
        self.token = secrets.token_hex(8)
        self.locks: list[int] = []

    def make(self, groups: tuple[Group, ...], id: str = ID) -> Cgroup:
        for group in groups:
            own = Path(group.directory(self.token))
            if not own.exists():
                own.mkdir()
                self.locks.append(os.open(own, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC))
                fcntl.flock(self.locks[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
            for controller in group.enable:
                (own.parent / "cgroup.subtree_control").write_text(f"+{controller}")
                (own / "cgroup.subtree_control").write_text(f"+{controller}")
            for name, value in group.parent_writes:
                (own / name).write_text(value)
            (own / id).mkdir()
            for name, value in group.writes:
                (own / id / name).write_text(value)
        return Cgroup.of(groups, self.token, id)

    def die(self) -> None:
        while self.locks:
            os.close(self.locks.pop())


@pytest.fixture
def launcher() -> Iterator[Launcher]:
    launcher = Launcher()
    yield launcher
    launcher.die()


def start(box: Cgroup, *argv: str) -> subprocess.Popen[str]:
    """Start *argv* inside: a shell joins by itself, as a container does on v1, and says so."""
    files = [f"{path}/{'tasks' if version == 1 else 'cgroup.procs'}" for version, _, path in box.paths]
    join = f"for file in {' '.join(files)}; do echo 0 >$file || exit 99; done; echo joined; "
    shell = ["/bin/sh", "-c", join + 'exec "$@"', "sh", *argv]
    process = subprocess.Popen(shell, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "joined\n"
    return process


@pytest.fixture
def run(request: pytest.FixtureRequest):
    """start(), whose process is reaped at the end."""

    def starting(box: Cgroup, *argv: str) -> subprocess.Popen[str]:
        process = start(box, *argv)

        def end() -> None:
            process.kill()
            process.wait()
            process.stdout.close()

        request.addfinalizer(end)
        return process

    return starting


def offers(layout: Layout, *controllers: str) -> None:
    have = frozenset[str]().union(*(place.controllers for place in layout.hierarchies))
    if {*controllers} - have:
        pytest.skip(f"needs the cgroup controllers {', '.join(sorted({*controllers} - have))}")


def only(layout: Layout, version: int) -> Layout:
    found = Layout(tuple(place for place in layout.hierarchies if place.version == version))
    if not found.hierarchies:
        pytest.skip(f"no cgroup v{version}")
    return found


def has(box: Cgroup, name: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        box.read(name)
        return True
    return False


def test_limits_are_what_the_kernel_reads_back(layout, launcher):
    offers(layout, "memory", "cpu", "pids")
    resources = {
        "memory": {"limit": 64 * MIB, "swap": 96 * MIB},
        "cpu": {"shares": 512, "quota": 20_000, "period": 50_000},
        "pids": {"limit": 17},
    }
    assert layout.check(resources) == []
    box = launcher.make(layout.groups(resources))
    expected = {
        "memory.limit_in_bytes": str(64 * MIB),
        "memory.memsw.limit_in_bytes": str(96 * MIB),
        "memory.max": str(64 * MIB),
        "memory.swap.max": str(32 * MIB),
        "cpu.shares": "512",
        "cpu.cfs_quota_us": "20000",
        "cpu.cfs_period_us": "50000",
        "cpu.weight": "59",
        "cpu.max": "20000 50000",
        "pids.max": "17",
    }
    read = {name: box.read(name) for name in expected if has(box, name)}
    assert read == {name: expected[name] for name in read}
    assert len(read) in (5, 6)


def test_unlimited_is_what_the_kernel_reads_back(layout, launcher):
    offers(layout, "memory", "cpu", "pids")
    # cpu.shares needs the cpu controller, where the others come along
    resources = {"memory": {"limit": -1, "swap": -1}, "cpu": {"quota": -1, "shares": 1024}, "pids": {"limit": -1}}
    assert layout.check(resources) == []
    box = launcher.make(layout.groups(resources))
    expected = {"memory.max": "max", "cpu.max": "max 100000", "cpu.weight": "100", "cpu.cfs_quota_us": "-1"}
    read = {name: box.read(name) for name in expected if has(box, name)}
    assert read == {name: expected[name] for name in read}
    assert box.read("pids.max") == "max"


@pytest.mark.parametrize("asked", [{"cpus": "0"}, {"mems": "0"}])
def test_one_half_of_a_cpuset_is_enough_to_join(layout, launcher, run, asked):
    offers(layout, "cpuset")
    box = launcher.make(layout.groups({"cpu": asked}))
    process = run(box, "cat", "/proc/self/status")
    status = process.stdout.read()
    allowed = {line.split()[0]: line.split()[1] for line in status.splitlines() if "_allowed_list" in line}
    assert allowed["Mems_allowed_list:"] == "0"
    if "cpus" in asked:
        assert allowed["Cpus_allowed_list:"] == "0"
    else:
        assert allowed["Cpus_allowed_list:"] in Path("/proc/self/status").read_text()


def test_a_process_is_in_every_group(layout, launcher, run):
    groups = layout.groups({})
    box = launcher.make(groups)
    process = run(box, "cat", "/proc/self/cgroup")
    text = process.stdout.read()
    paths = [line.split(":", 2) for line in text.splitlines()]
    for group in groups:
        names = [] if group.version == 2 else list(group.controllers)
        (path,) = [path for _, found, path in paths if sorted(filter(None, found.split(","))) == names]
        assert path.endswith(f"/pycontainer-{launcher.token}/{ID}")


def test_check_names_what_the_kernel_refuses(layout):
    offers(layout, "cpuset", "cpu")
    resources = {"cpu": {"cpus": "0-4095", "mems": "0,1023", "quota": 10}}
    fields = [field for field, _ in layout.check(resources)]
    assert fields == ["resources.cpu_quota", "resources.cpuset_cpus", "resources.cpuset_mems"]


def test_check_agrees_with_the_kernel_on_a_quota_above_the_parents(layout, launcher):
    (place,) = [place for place in only(layout, 1).hierarchies if "cpu" in place.controllers]
    Path(place.base, "cpu.cfs_quota_us").write_text("50000")
    assert layout.check({"cpu": {"quota": 50_000}}) == []
    launcher.make(layout.groups({"cpu": {"quota": 50_000}}))
    assert [field for field, _ in layout.check({"cpu": {"quota": 50_001}})] == ["resources.cpu_quota"]
    with pytest.raises(OSError, match="Invalid argument") as error:
        launcher.make(layout.groups({"cpu": {"quota": 50_001}}), "other")
    assert error.value.errno == errno.EINVAL


TWO_FORKS = """
import os, time
for _ in range(2):
    try:
        if os.fork() == 0:
            time.sleep(60)
    except OSError as error:
        print(error.errno, flush=True)
"""


def test_pids_limit_holds_from_the_first_instruction(layout, launcher, run):
    offers(layout, "pids")
    box = launcher.make(layout.groups({"pids": {"limit": 2}}))
    process = run(box, sys.executable, "-c", TWO_FORKS)  # a shell would try again for seconds
    assert process.stdout.readline() == f"{errno.EAGAIN}\n"
    assert box.kill()


def test_an_oom_kill_is_counted(layout, launcher, run):
    offers(layout, "memory")
    groups = layout.groups({"memory": {"limit": 32 * MIB, "swap": 32 * MIB}})
    box = launcher.make(groups)
    (events,) = [group.oom_events for group in groups if group.oom_events]

    def killed() -> int:
        lines = dict(line.split() for line in box.read(events).splitlines())
        return int(lines[OOM_KEY])

    assert killed() == 0
    process = run(box, sys.executable, "-c", f"bytearray({256 * MIB}).count(1)")
    assert process.wait(30) == -signal.SIGKILL
    assert killed() == 1


# Forks without end, each child going on in its parent's place: a list of pids is old before it is read.
FORKING = "import os\nwhile True:\n if os.fork(): os._exit(0)"


def test_kill_ends_everything(layout, launcher, run):
    box = launcher.make(layout.groups({}))
    nested = Path(box.paths[0][2], "nested")
    nested.mkdir()
    inner = run(Cgroup(((*box.paths[0][:2], str(nested)), *box.paths[1:])), "sleep", "60")
    outer = run(box, "sh", "-c", "trap '' TERM; sleep 60 & sleep 60")
    deadline = time.monotonic() + 10
    while len(box.pids()) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert {inner.pid, outer.pid} < {*box.pids()}
    assert len(box.pids()) == 4
    assert box.kill() is True
    assert (inner.wait(5), outer.wait(5)) == (-signal.SIGKILL, -signal.SIGKILL)
    assert box.pids() == []
    assert box.kill() is True


@pytest.mark.parametrize("way", ["cgroup.kill", "cgroup.freeze", "freezer.state"])
def test_kill_outruns_what_forks(layout, launcher, run, monkeypatch, way):
    layout = only(layout, 1 if way == "freezer.state" else 2)
    box = launcher.make(layout.groups({}))
    if way == "freezer.state" and not any("freezer" in controllers for _, controllers, _ in box.paths):
        pytest.skip("needs the cgroup controller freezer")
    used = []
    write = live._write

    def watched(path: str, value: str) -> bool:
        name = path.rpartition("/")[2]
        if name == "cgroup.kill" != way:  # as on a kernel before 5.14
            return False
        used.append(name)
        return write(path, value)

    monkeypatch.setattr(live, "_write", watched)
    run(box, sys.executable, "-c", FORKING)
    time.sleep(0.3)
    assert box.pids()
    assert box.kill() is True
    assert box.pids() == []
    assert way in used


@pytest.mark.parametrize("version", [1, 2])
def test_kill_ends_what_is_frozen_and_thaws(layout, launcher, run, version):
    box = launcher.make(only(layout, version).groups({}))
    file, frozen, thawed = ("freezer.state", "FROZEN", "THAWED") if version == 1 else ("cgroup.freeze", "1", None)
    (path,) = [Path(path, file) for _, _, path in box.paths if os.path.exists(f"{path}/{file}")]
    process = run(box, "sleep", "60")
    path.write_text(frozen)
    assert box.kill() is True
    assert process.wait(5) == -signal.SIGKILL
    if thawed:
        assert path.read_text() == thawed + "\n"


def test_kill_reaches_who_is_in_one_hierarchy_only(layout, launcher, run):
    box = launcher.make(layout.groups({}))
    if len(box.paths) < 2:
        pytest.skip("needs two hierarchies")
    process = run(Cgroup(box.paths[-1:]), "sleep", "60")
    assert box.pids() == [process.pid]
    assert box.kill() is True
    assert process.wait(5) == -signal.SIGKILL


def test_kill_is_bounded(layout, launcher, run, monkeypatch):
    monkeypatch.setattr(live, "_write", lambda path, value: False)
    monkeypatch.setattr(live, "_signal", lambda pids, cgroup: None)
    box = launcher.make(layout.groups({}))
    run(box, "sleep", "60")
    began = time.monotonic()
    assert box.kill(timeout=0.2) is False
    assert 0.2 <= time.monotonic() - began < 2


def launchers(layout: Layout) -> set[str]:
    return {name for place in layout.hierarchies for name in os.listdir(place.base) if name.startswith("pycontainer-")}


def test_sweep_ends_and_removes_what_a_dead_launcher_left(layout, launcher, run):
    groups = layout.groups({"pids": {"limit": 20}} if has_pids(layout) else {})
    box = launcher.make(groups)
    Path(box.paths[0][2], "nested").mkdir()
    process = run(box, "sleep", "60")
    assert sweep(layout) == []
    assert sweep(layout, exclude_token="f" * 16) == []
    assert process.poll() is None
    launcher.die()
    assert sweep(layout, exclude_token=launcher.token) == []
    assert process.poll() is None
    assert sweep(layout) == [group.directory(launcher.token) for group in groups]
    assert process.wait(5) == -signal.SIGKILL
    assert launchers(layout) == set()


def has_pids(layout: Layout) -> bool:
    return any("pids" in place.controllers for place in layout.hierarchies)


def test_sweep_with_a_cgroup_parent(layout, launcher):
    place = layout.hierarchies[0]
    Path(place.base, "jobs").mkdir()
    groups = tuple(group for group in layout.groups({}, "jobs") if group.base.endswith("/jobs"))
    assert [group.base for group in groups] == [f"{place.base}/jobs"]
    launcher.make(groups)
    launcher.die()
    assert sweep(layout) == []
    assert sweep(layout, cgroup_parent="jobs") == [groups[0].directory(launcher.token)]


@pytest.mark.parametrize("version", [1, 2])
def test_what_the_locking_protocol_rests_on(layout, version):
    base = only(layout, version).hierarchies[0].base
    path = Path(base, f"pycontainer-{secrets.token_hex(8)}")
    path.mkdir()
    held = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        take = [sys.executable, "-c", "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], 0), 6)", str(path)]
        assert subprocess.run(take, capture_output=True).returncode == 1  # another process is refused
        before = os.fstat(held)
        path.rmdir()
        path.mkdir()
        # The same name is another directory: the holder of the old one can tell, and does not hold the new.
        assert os.fstat(held) == before
        assert not os.path.samestat(os.fstat(held), os.stat(path))
        assert subprocess.run(take, capture_output=True).returncode == 0
    finally:
        os.close(held)
        path.rmdir()


# The launcher's side of the protocol, slowed down so that a sweep falls between its steps.
BEGIN = """
import fcntl, os, secrets, sys, time
for _ in range(8):
    path = sys.argv[1] + "/pycontainer-" + secrets.token_hex(8)
    while True:
        try:
            os.mkdir(path)
            time.sleep(0.002)
            directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            time.sleep(0.002)
            fcntl.flock(directory, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(directory), os.stat(path)):
                break
        except FileExistsError:
            os.rmdir(path)
        except FileNotFoundError:
            pass
        print("again")
        time.sleep(secrets.randbelow(20) / 1000)
    os.mkdir(path + "/box")
    time.sleep(0.001)
    os.rmdir(path + "/box")
    os.rmdir(path)
    os.close(directory)
"""


def test_a_sweep_never_takes_what_a_launcher_has_locked(layout):
    base = layout.hierarchies[0].base
    argv = [sys.executable, "-c", BEGIN, base]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    starting = [subprocess.Popen(argv, **pipes) for _ in range(2)]
    try:
        while any(process.poll() is None for process in starting):
            sweep(Layout(layout.hierarchies[:1]))
            time.sleep(0.005)
        results = [process.communicate() for process in starting]
    finally:
        for process in starting:
            process.kill()
            process.wait()
    assert [errors for _, errors in results] == ["", ""]
    assert "again" in results[0][0] + results[1][0]  # or nothing was tried
    assert launchers(layout) == set()
