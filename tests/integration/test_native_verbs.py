"""pause, stats and update of the native driver: the kernel's own numbers, after loads of known size."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pycontainer import PIPE, Container, ContainerError, InvalidCommandError, Mount, NotRunningError, State
from pycontainer.command import Resources
from pycontainer.stats import Stats
from pycontainer_native.cgroups import Layout, detect, freezer
from pycontainer_native.driver import NativeDriver

from . import host

pytestmark = pytest.mark.root

MIB = 1024 * 1024

# Runs the code on each line that it is given, and says when it is done.
PAYLOAD = """
import mmap, os, socket, subprocess, sys, threading, time
print("ready", flush=True)
for line in sys.stdin:
    exec(eval(line))
    print("done", flush=True)
"""

Start = Callable[..., Container]


#: All hierarchies of the host; on a hybrid one also those of v1 alone: another freezer, other files.
LAYOUTS = ["host", "v1"] if detect().mode == "hybrid" else ["host"]


@pytest.fixture(params=LAYOUTS)
def driver(request: pytest.FixtureRequest, native: NativeDriver, own_driver: NativeDriver) -> NativeDriver:
    if request.param == "host":
        return native
    own_driver._launchers._layout = Layout(tuple(place for place in detect().hierarchies if place.version == 1))
    return own_driver


class Worker:
    """A container of Python that does what it is told."""

    def __init__(self, box: Container) -> None:
        self.box = box
        self.answer("ready")

    def answer(self, expected: str) -> None:
        assert self.box.stdout is not None
        assert self.box.stdout.readline() == f"{expected}\n"

    def do(self, code: str) -> tuple[Stats, Stats]:
        """The usage before and after."""
        assert self.box.stdin is not None
        before = self.box.stats()
        self.box.stdin.write(f"{code!r}\n")
        self.answer("done")
        return before, self.box.stats()


@pytest.fixture
def worker(start: Start, driver: NativeDriver) -> Callable[..., Worker]:
    argv = [sys.executable, "-I", "-u", "-c", PAYLOAD]
    streams = {"stdin": PIPE, "stdout": PIPE, "text": True}
    return lambda **keywords: Worker(start(argv, rootfs=None, driver=driver, **streams, **keywords))


@pytest.fixture
def counting(start: Start, driver: NativeDriver, tmp_path: Path) -> tuple[Container, Callable[[], int]]:
    """A container that counts, forking at each step, and where it has got to."""
    script = "i=0; while :; do i=$((i+1)); echo $i >/data/new; mv /data/new /data/count; done"
    box = start(["sh", "-c", script], driver=driver, mounts=[Mount(str(tmp_path), "/data")])

    def count() -> int:
        try:
            return int((tmp_path / "count").read_text())
        except FileNotFoundError:
            return 0

    return box, count


def advances(count: Callable[[], int], seconds: float = 10.0) -> bool:
    before, deadline = count(), time.monotonic() + seconds
    while time.monotonic() < deadline:
        if count() > before:
            return True
        time.sleep(0.005)
    return False


def frozen(driver: NativeDriver, box: Container) -> bool:
    """What the kernel says."""
    for version, controllers, path in driver.cgroup(box.id).paths:
        if version == 2:
            return "frozen 1" in Path(path, "cgroup.events").read_text()
        if "freezer" in controllers:
            return Path(path, "freezer.state").read_text() == "FROZEN\n"
    raise AssertionError("no freezer")


# -- pause


def test_paused_it_stands_still_and_goes_on(driver, counting):
    box, count = counting
    assert advances(count)
    box.pause()
    assert frozen(driver, box)
    assert driver.info(box.id).state is State.PAUSED
    assert not advances(count, 0.3)
    box.unpause()
    assert driver.info(box.id).state is State.RUNNING
    assert advances(count)
    assert not frozen(driver, box)


def test_pause_again_and_again(driver, counting):
    box, count = counting
    for _ in range(20):
        box.pause()
        assert frozen(driver, box)  # by now, and not only soon
        at = count()
        time.sleep(0.01)
        assert count() == at
        box.unpause()
    assert advances(count)


@pytest.mark.parametrize("driver", ["host"], indirect=True)
@pytest.mark.parametrize("meanwhile", ["unpaused", "ended"])
def test_a_pause_that_something_comes_in_between(driver, counting, monkeypatch, meanwhile):
    box, _ = counting
    real = freezer.write

    def write(path, value):
        """As it would be in the moment after."""
        if value == "1":
            real(path, "0")
            if meanwhile == "ended":
                os.kill(box.pid, signal.SIGKILL)
        else:
            real(path, value)

    monkeypatch.setattr(freezer, "write", write)
    if not any(version == 2 for version, _, _ in driver.cgroup(box.id).paths):
        pytest.skip("cgroup v1 asks again and again by itself")
    began = time.monotonic()
    with pytest.raises(
        ContainerError, match="unpaused it meanwhile" if meanwhile == "unpaused" else "not running|mean"
    ):
        driver.pause(box.id)
    assert time.monotonic() - began < 3
    if meanwhile == "unpaused":
        assert driver.info(box.id).state is State.RUNNING


@pytest.mark.parametrize("driver", ["host"], indirect=True)
def test_what_the_freezer_waits_for_is_looked_at_again(driver, start, monkeypatch):
    """A process that does not stop, and an unpause some time later."""
    box = start(["sleep", "1000"], driver=driver)
    version, path = freezer._freezer(driver.cgroup(box.id))
    if version == 1:
        pytest.skip("cgroup v1 asks again and again by itself")
    monkeypatch.setattr(os, "pread", lambda *_: b"populated 1\nfrozen 0\n")
    timer = threading.Timer(0.5, lambda: Path(path, "cgroup.freeze").write_text("0"))
    timer.start()
    began = time.monotonic()
    assert not freezer.freeze(driver.cgroup(box.id))
    assert 0.4 < time.monotonic() - began < 5
    timer.join()


def test_pause_twice_and_unpause_twice(driver, counting):
    box, count = counting
    with pytest.raises(ContainerError, match="not paused: it is running"):
        driver.unpause(box.id)
    with pytest.raises(ContainerError, match="not paused: it is running"):
        box.unpause()
    box.pause()
    for pause in (box.pause, lambda: driver.pause(box.id)):
        with pytest.raises(NotRunningError, match="it is paused"):
            pause()
    assert not advances(count, 0.1)
    box.unpause()
    with pytest.raises(ContainerError, match="not paused"):
        box.unpause()


ENDS = {
    "kill": lambda driver, box: box.kill(),
    "send_signal": lambda driver, box: box.send_signal(signal.SIGKILL),
    "driver.kill": lambda driver, box: driver.kill(box.id, signal.SIGKILL),
    "driver.terminate": lambda driver, box: driver.terminate(box.id),
    "stop": lambda driver, box: box.stop(timeout=0.1),
    "close": lambda driver, box: box.close(),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_paused_one_can_be_ended(driver, counting, end):
    box, _ = counting
    box.pause()
    pid, cgroup = box.pid, driver.cgroup(box.id)
    ENDS[end](driver, box)
    assert box.wait(10) == -signal.SIGKILL
    assert not host.is_alive(pid)
    assert cgroup.pids() == []
    assert driver.info(box.id).state is State.STOPPED


def test_a_signal_waits_until_it_goes_on(start, driver):
    box = start(["sh", "-c", "trap 'exit 7' TERM; echo ready; while :; do :; done"], driver=driver, stdout=PIPE)
    assert box.stdout.readline() == b"ready\n"
    box.pause()
    box.terminate()
    time.sleep(0.1)
    assert box.poll() is None
    box.unpause()
    assert box.wait(10) == 7


@pytest.mark.parametrize("versions", [{1, 2}, {1}] if "v1" in LAYOUTS else [{1, 2}])
def test_a_paused_one_ends_with_its_caller(caller, until, versions):
    process = caller(
        "from pycontainer_native.cgroups import Layout\n"
        "driver = pycontainer.get_driver('native')\n"
        f"driver._launchers._layout = Layout(tuple(p for p in driver.layout.hierarchies if p.version in {versions}))\n"
        "box = pycontainer.Container(['sleep', '1000'], rootfs=ROOTFS, driver=driver)\n"
        "box.pause(); print(box.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    pid = int(process.stdout.readline())
    process.wait()
    until(lambda: not host.is_alive(pid))


def test_verbs_of_a_paused_one(counting):
    box, _ = counting
    box.pause()
    before = box.stats()
    box.update(pids_limit=50)
    after = box.stats()
    assert (after.pids.limit, after.cpu.usage) == (50, before.cpu.usage)
    with pytest.raises(NotRunningError, match="it is paused"):
        box.exec(["true"])
    box.unpause()
    assert box.exec(["true"]).returncode == 0


def test_only_what_runs_can_be_paused(start, native):
    box = start(["true"], start=False)
    with pytest.raises(NotRunningError):
        box.pause()
    box.create()
    for pause in (box.pause, lambda: native.pause(box.id)):
        with pytest.raises(NotRunningError, match="it is created"):
            pause()
    assert box.stats().pids.current == 1
    box.start()
    box.wait()
    for verb in (box.pause, box.unpause, box.stats, lambda: box.update(pids_limit=5)):
        with pytest.raises(NotRunningError):
            verb()
    for verb in (native.pause, native.unpause, native.stats, lambda id: native.update(id, Resources(pids_limit=5))):
        for id in (box.id, "nobody"):
            with pytest.raises(NotRunningError):
                verb(id)


# -- stats


def test_cpu_time(worker):
    before, after = worker().do("end = time.process_time() + 0.3\nwhile time.process_time() < end: sum(range(10000))")
    used = after.cpu.usage - before.cpu.usage
    assert 0.3e9 <= used < 0.6e9  # an emulated machine takes as long again to be told what to do
    assert abs(after.cpu.user + after.cpu.system - before.cpu.user - before.cpu.system - used) <= 40e6  # two ticks each
    assert after.cpu.user - before.cpu.user > 0.2e9
    assert (after.cpu.periods, after.cpu.throttled_time) == (0, 0)


def test_throttling(worker):
    box = worker()
    box.box.update(cpus=0.1)
    before, after = box.do("end = time.process_time() + 0.06\nwhile time.process_time() < end: pass")
    # Six periods of 0.1 s, or one less: in the first it had its share at once.
    assert 5 <= after.cpu.periods - before.cpu.periods <= (after.time - before.time) / 0.1 + 1
    assert 3 <= after.cpu.throttled_periods - before.cpu.throttled_periods <= after.cpu.periods - before.cpu.periods
    assert after.cpu.throttled_time - before.cpu.throttled_time > 0.1e9


def test_memory(worker):
    box = worker(memory="256m")
    before, after = box.do(f"held = bytearray(b'x') * {20 * MIB}")
    # Each CPU takes its memory 64 pages at a time, and tells memory.stat as seldom.
    slack = MIB + 64 * 4096 * (os.cpu_count() or 1)
    assert abs(after.memory.rss - before.memory.rss - 20 * MIB) <= slack
    assert abs(after.memory.usage - before.memory.usage - 20 * MIB) <= slack
    assert after.memory.limit == 256 * MIB
    assert after.memory.peak is None or after.memory.peak >= after.memory.usage - slack
    _, freed = box.do("del held")
    assert freed.memory.usage <= before.memory.usage + slack
    assert freed.memory.peak is None or freed.memory.peak >= after.memory.usage - slack
    assert freed.memory.oom_kills == 0
    cached = box.do(f"file = open('/dev/shm/file', 'wb')\nfile.write(bytes({8 * MIB}))\nfile.flush()")[1]
    assert abs(cached.memory.cache - freed.memory.cache - 8 * MIB) <= slack


def test_unlimited_is_none(worker):
    stats = worker().box.stats()
    assert (stats.memory.limit, stats.pids.limit) == (None, None)


def test_oom_kills(worker):
    code = f"subprocess.run([sys.executable, '-I', '-S', '-c', 'bytearray(b\"x\") * {128 * MIB}'])"
    box = worker(memory="48m", memory_swap="48m")
    before, after = box.do(code)
    assert (before.memory.oom_kills, after.memory.oom_kills) == (0, 1)


def test_pids(worker):
    box = worker(pids_limit=40)
    before, after = box.do(
        "wait = threading.Event()\nfor _ in range(3): threading.Thread(target=wait.wait, daemon=True).start()"
    )
    assert (before.pids.current, after.pids.current, after.pids.limit) == (1, 4, 40)


def disk(path: Path) -> str:
    """The number of the whole disk that *path* is on."""
    device = os.stat(path).st_dev
    entry = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    if not entry.exists():
        pytest.skip("the tests' directory is not on a disk")
    if (entry / "partition").exists():
        entry = entry.resolve().parent
    return (entry / "dev").read_text().strip()


WRITE = f"""
buffer = mmap.mmap(-1, {MIB})
fd = os.open("/data/file", os.O_CREAT | os.O_RDWR | os.O_DIRECT)
for _ in range(4): os.write(fd, buffer)
"""
READ = "os.lseek(fd, 0, 0)\nfor _ in range(3): os.readv(fd, [buffer])"


def test_block_io(worker, driver, tmp_path):
    number = disk(tmp_path)
    box = worker(mounts=[Mount(str(tmp_path), "/data")])
    for version, controllers, path in driver.cgroup(box.box.id).paths:
        if version == 1 and "blkio" in controllers:
            # From Linux 6.10 on, v1 counts where throttling has been in use. This limits nothing.
            Path(path, "blkio.throttle.read_bps_device").write_text(f"{number} 0")
    before, written = box.do(WRITE)
    assert 4 * MIB <= written.io.write_bytes - before.io.write_bytes < 5 * MIB
    assert written.io.writes - before.io.writes >= 4
    assert written.io.read_bytes - before.io.read_bytes < MIB
    _, read = box.do(READ)
    assert 3 * MIB <= read.io.read_bytes - written.io.read_bytes < 4 * MIB
    assert read.io.reads - written.io.reads >= 3
    assert read.io.write_bytes - written.io.write_bytes < MIB


SEND = """
receiver, sender = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
receiver.bind(("127.0.0.1", 0))
for _ in range(100): sender.sendto(bytes(1000), receiver.getsockname())
"""


def test_network(worker):
    before, after = worker().do(SEND)
    assert list(after.network) == ["lo"]
    old, new = before.network["lo"], after.network["lo"]
    assert new.rx_packets - old.rx_packets == new.tx_packets - old.tx_packets == 100
    assert 100 * 1028 <= new.rx_bytes - old.rx_bytes <= 100 * 1042  # with IP's and UDP's headers, or Ethernet's as well
    assert new.tx_bytes - old.tx_bytes == new.rx_bytes - old.rx_bytes
    assert (new.rx_errors, new.rx_dropped, new.tx_errors, new.tx_dropped) == (0, 0, 0, 0)


def test_the_hosts_network_is_not_the_containers(worker):
    assert worker(network="host").box.stats().network == {}


def test_pressure_where_the_kernel_has_it(start, native):
    box = start(["sleep", "1000"])
    (path,) = [path for version, _, path in native.cgroup(box.id).paths if version == 2] or [""]
    files = {name for name in ("cpu", "memory", "io") if path and readable(f"{path}/{name}.pressure")}
    pressure = box.stats().pressure
    assert set(pressure) == files
    assert all(0 <= value.some_avg10 <= 100 for value in pressure.values())


def readable(path: str) -> bool:
    try:
        Path(path).read_text()
    except OSError:
        return False
    return True


def test_iter_stats(worker):
    box = worker().box
    snapshots = list(itertools.islice(box.iter_stats(interval=0.05), 4))
    times = [stats.time for stats in snapshots]
    assert times == sorted(set(times))
    assert 0.14 <= times[3] - times[0] < 5


def test_iter_stats_ends_at_once_with_the_container(worker):
    box = worker().box
    began = time.monotonic()
    killer = threading.Timer(0.1, box.kill)
    killer.start()
    assert len(list(box.iter_stats(interval=60))) == 1
    assert time.monotonic() - began < 30
    killer.join()
    with pytest.raises(NotRunningError):
        next(box.iter_stats())


@pytest.mark.parametrize("interval", [0, -1, float("nan")])
def test_iter_stats_needs_an_interval(start, interval):
    with pytest.raises(ValueError, match="interval must be more than 0"):
        start(["sleep", "1000"]).iter_stats(interval=interval)


# -- update

FILES = {
    "memory": ("memory.limit_in_bytes", "memory.max"),
    "swap": ("memory.memsw.limit_in_bytes", "memory.swap.max"),
    "shares": ("cpu.shares", "cpu.weight"),
    "quota": ("cpu.cfs_quota_us", "cpu.max"),
    "period": ("cpu.cfs_period_us", "cpu.max"),
    "pids": ("pids.max", "pids.max"),
    "cpus": ("cpuset.cpus", "cpuset.cpus"),
    "mems": ("cpuset.mems", "cpuset.mems"),
}


def limits(box: Container) -> dict[str, str | None]:
    """What the kernel reads back."""
    return {name: host.cgroup_value(box.pid, *files) for name, files in FILES.items()}


UPDATES = [
    ({"memory": "48m"}, {"memory": (48 * MIB, 48 * MIB), "swap": (96 * MIB, 48 * MIB)}),
    ({"memory": "512m"}, {"memory": (512 * MIB, 512 * MIB), "swap": (1024 * MIB, 512 * MIB)}),
    ({"memory": "96m", "memory_swap": "128m"}, {"memory": (96 * MIB, 96 * MIB), "swap": (128 * MIB, 32 * MIB)}),
    ({"cpu_shares": 512}, {"shares": (512, 59)}),
    ({"cpus": 0.5}, {"quota": (50000, "50000 100000"), "period": (100000, "50000 100000")}),
    ({"cpu_quota": 10_000, "cpu_period": 20_000}, {"quota": (10000, "10000 20000"), "period": (20000, "10000 20000")}),
    ({"pids_limit": 17}, {"pids": (17, 17)}),
    ({"pids_limit": -1}, {"pids": ("max", "max")}),
    ({"cpuset_cpus": "0"}, {"cpus": (0, 0)}),
    ({"cpuset_mems": "0"}, {"mems": (0, 0)}),
]


@pytest.mark.parametrize("before", [{}, {"memory": "64m", "cpus": 1, "pids_limit": 100}], ids=["unlimited", "limited"])
@pytest.mark.parametrize(("wanted", "expected"), UPDATES, ids=[",".join(wanted) for wanted, _ in UPDATES])
def test_update_is_what_the_kernel_reads_back(start, native, before, wanted, expected):
    box = start(["sleep", "1000"], **before)
    was = limits(box)
    box.update(**wanted)
    now = limits(box)
    version = {name: 0 if native_version(native, files[0]) == 1 else 1 for name, files in FILES.items()}
    for name, values in expected.items():
        if now[name] is not None or name != "swap":  # the kernel may not account swap
            assert now[name] == str(values[version[name]]), name
    added = {name for name in now if was[name] is None and now[name] is not None}  # cgroup2's, enabled by the update
    assert {name: now[name] for name in now.keys() - expected.keys() - added} == {
        name: was[name] for name in now.keys() - expected.keys() - added
    }


def native_version(driver: NativeDriver, file: str) -> int:
    controller = file.partition(".")[0]
    return next(place.version for place in driver.layout.hierarchies if controller in place.controllers)


def test_update_acts(worker):
    box = worker()
    box.box.update(cpuset_cpus="0", pids_limit=3)
    assert host.status(box.box.pid)["Cpus_allowed_list"] == "0"
    code = "from errno import EAGAIN\nstarted = 0\nwait = threading.Event()\ntry:\n for _ in range(9):\n  "
    code += "threading.Thread(target=wait.wait, daemon=True).start()\nexcept RuntimeError: pass"
    assert box.do(code)[1].pids.current == 3
    box.box.update(pids_limit=5)
    assert box.do(code)[1].pids.current == 5


def test_less_memory_than_is_used(worker):
    box = worker(memory="128m")
    usage = box.do(f"held = bytearray(b'x') * {20 * MIB}")[1].memory.usage
    was = limits(box.box)
    for wanted in ({"memory": 16 * MIB}, {"memory": usage - MIB, "pids_limit": 5, "cpu_shares": 512}):
        with pytest.raises(InvalidCommandError, match="in use") as error:
            box.box.update(**wanted)
        assert error.value.field == "resources.memory"
        assert limits(box.box) == was
    box.do("held[0]")  # and nobody was killed
    box.box.update(memory=usage + 4 * MIB)
    assert box.box.stats().memory.limit == usage + 4 * MIB


REFUSED = [
    ({"cpuset_cpus": "0-4095", "pids_limit": 5}, "cpuset_cpus"),
    ({"cpuset_mems": "1023", "memory": "48m"}, "cpuset_mems"),
    ({"memory": "512m", "memory_swap": "600m", "cpuset_cpus": "4000"}, "cpuset_cpus"),
    ({"memory": "1g"}, "memory_swap"),  # more than both together, which were given
    ({"memory": 4096, "memory_swap": -1}, "memory"),
    ({"cpus": 0.5, "cpu_quota": 5000}, "cpu_quota"),
    ({"memory": "12q"}, "memory"),
    ({"pids_limit": 0}, "pids_limit"),
]


@pytest.mark.parametrize(("wanted", "field"), REFUSED, ids=[str(wanted) for wanted, _ in REFUSED])
def test_a_refused_update_leaves_all_as_it_was(start, wanted, field):
    box = start(["sleep", "1000"], memory="64m", memory_swap="80m", cpu_shares=512, pids_limit=100, cpuset_cpus="0-1")
    if field == "memory_swap" and limits(box)["swap"] is None:
        pytest.skip("the kernel does not account swap")
    was = limits(box)
    with pytest.raises(InvalidCommandError) as error:
        box.update(**wanted)
    assert error.value.field == f"resources.{field}"
    assert limits(box) == was
    assert box.poll() is None


def test_what_the_kernel_itself_refuses_leaves_all_as_it_was(start, driver):
    box = start(["sleep", "1000"], driver=driver, memory="64m", cpus=0.5, cpuset_cpus="0-1")
    (path,) = [path for _, names, path in driver.cgroup(box.id).paths if "cpuset" in names]
    if native_version(driver, "cpuset") == 1:  # cgroup2 takes every cpuset
        nested = Path(path, "nested")  # has both CPUs, as a copy of its parent
        nested.mkdir()
        was = limits(box)
        with pytest.raises(InvalidCommandError, match=r"the kernel refuses 0 in cpuset\.cpus: .* busy") as error:
            box.update(memory="96m", cpus=0.2, pids_limit=5, cpu_shares=2, cpuset_cpus="0")
        assert error.value.field == "resources.cpuset_cpus"
        assert limits(box) == was
        nested.rmdir()
    box.update(memory="96m", cpus=0.2, pids_limit=5, cpu_shares=2, cpuset_cpus="0")
    assert limits(box)["memory"] == str(96 * MIB)


def test_an_unknown_limit_is_a_typeerror(start):
    with pytest.raises(TypeError, match="memroy"):
        start(["sleep", "1000"]).update(memroy="64m")
