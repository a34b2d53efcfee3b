"""What a live container has used, from the files of its cgroups and of its network namespace."""
# mypy: disallow-subclassing-any=False

from __future__ import annotations

import os
import time
from typing import Any

from cgroupspy.controllers import BlkIOController, CpuAcctController
from cgroupspy.interfaces import BaseFileInterface, DictFile, IntegerFile

from pycontainer.stats import CpuStats, InterfaceStats, IoStats, MemoryStats, PidsStats, Pressure, Stats
from pycontainer_native.cgroups import v1, v2
from pycontainer_native.cgroups.live import Cgroup
from pycontainer_native.cgroups.record import Pids, Record

TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")  # nanoseconds: what v1's cpuacct.stat counts in
MICROSECOND = 1_000  # nanoseconds
PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")
V1_UNLIMITED = (2**63 - 1) // PAGE_SIZE * PAGE_SIZE  # what v1's memory limits read back as


class SumFile(BaseFileInterface):
    """Numbers by device, summed by name: ``8:0 Read 5`` on v1, ``8:0 rbytes=5 rios=1`` on cgroup2."""

    def sanitize_get(self, value: str) -> dict[str, int]:
        sums: dict[str, int] = {}
        for line in value.splitlines():
            fields = line.replace("=", " ").split()[1:]  # of v1's last line, "Total 5", no pair is left
            for name, number in zip(fields[::2], fields[1::2], strict=False):
                sums[name] = sums.get(name, 0) + int(number)
        return sums


class PressureFile(BaseFileInterface):
    """Two lines as ``some avg10=0.12 avg60=0.05 avg300=0.01 total=1234``; ``full`` is not always there."""

    def sanitize_get(self, value: str) -> Pressure:
        lines = {line.split()[0]: dict(field.split("=") for field in line.split()[1:]) for line in value.splitlines()}
        some, full = lines["some"], lines.get("full", {"avg10": "0", "total": "0"})
        return Pressure(
            some_avg10=float(some["avg10"]),
            some_total=int(some["total"]),
            full_avg10=float(full["avg10"]),
            full_total=int(full["total"]),
        )


class CpuAcctV1(Record, CpuAcctController): ...


class BlkioV1(Record, BlkIOController):
    # With nested cgroups. The files that cgroupspy knows belong to a scheduler that hardly any disk has.
    service_bytes = SumFile("blkio.throttle.io_service_bytes_recursive", readonly=True)
    serviced = SumFile("blkio.throttle.io_serviced_recursive", readonly=True)


class MemoryV2(v2.Memory):
    current = IntegerFile("memory.current", readonly=True)
    peak = IntegerFile("memory.peak", readonly=True)  # Linux 5.19
    swap_current = IntegerFile("memory.swap.current", readonly=True)
    stat = DictFile("memory.stat", readonly=True)
    events = DictFile("memory.events", readonly=True)


class UnifiedV2(Record):
    """What every cgroup of cgroup2 has, with controllers or without."""

    cpu_stat = DictFile("cpu.stat", readonly=True)
    io_stat = SumFile("io.stat", readonly=True)
    cpu = PressureFile("cpu.pressure", readonly=True)
    memory = PressureFile("memory.pressure", readonly=True)
    io = PressureFile("io.pressure", readonly=True)


class PidsUsage(Pids):
    current = IntegerFile("pids.current", readonly=True)


def uncounted(cgroup: Cgroup) -> list[str]:
    """The controllers without which :func:`stats` has nothing to say, and which *cgroup* lacks."""
    places, unified = _places(cgroup)
    return [name for name in ("cpuacct", "memory", "pids") if name not in places and (name != "cpuacct" or not unified)]


def stats(cgroup: Cgroup, pid: int) -> Stats:
    """The usage of *cgroup*, and of the network namespace of the process *pid* unless it is the caller's.

    On v1 the kernel counts block io only of a disk whose throttling is in
    use: always up to Linux 6.9, later from the first throttle limit on.

    Raises OSError when the cgroup or the process is gone.
    """
    places, unified = _places(cgroup)
    return Stats(
        time=time.monotonic(),
        cpu=_cpu_v1(places) if "cpuacct" in places else _cpu_v2(unified),
        memory=_memory_v1(places["memory"][1]) if places["memory"][0] == 1 else _memory_v2(places["memory"][1]),
        pids=_pids(places["pids"][1]),
        io=_io_v1(places["blkio"][1]) if "blkio" in places else _io_v2(unified),
        network=_network(pid),
        pressure=_pressure(unified) if unified else {},
    )


def memory_used(version: int, path: str) -> tuple[int, int]:
    """What is charged in the memory controller's directory *path*: (memory, swap), in bytes."""
    usage = _memory_v1(path) if version == 1 else _memory_v2(path)
    return usage.usage, usage.swap or 0


def _places(cgroup: Cgroup) -> tuple[dict[str, tuple[int, str]], str]:
    """(version, directory) by controller, and the one in cgroup2, which counts some things without controllers."""
    places = {name: (version, path) for version, names, path in cgroup.paths for name in names}
    return places, next((path for version, _, path in cgroup.paths if version == 2), "")


def _given(record: Record, name: str) -> Any:
    """An attribute, or None where this kernel does not have its file, or has it switched off (psi=0)."""
    try:
        return getattr(record, name)
    except OSError:
        return None


def _cpu_v1(places: dict[str, tuple[int, str]]) -> CpuStats:
    record = CpuAcctV1(places["cpuacct"][1])
    ticks = record.acct_stat
    throttling = v1.Cpu(places["cpu"][1]).stat if "cpu" in places else {}
    return CpuStats(
        usage=record.usage,
        user=ticks["user"] * TICK,
        system=ticks["system"] * TICK,
        periods=throttling.get("nr_periods", 0),
        throttled_periods=throttling.get("nr_throttled", 0),
        throttled_time=throttling.get("throttled_time", 0),
    )


def _cpu_v2(path: str) -> CpuStats:
    stat = UnifiedV2(path).cpu_stat
    return CpuStats(
        usage=stat["usage_usec"] * MICROSECOND,
        user=stat["user_usec"] * MICROSECOND,
        system=stat["system_usec"] * MICROSECOND,
        periods=stat.get("nr_periods", 0),
        throttled_periods=stat.get("nr_throttled", 0),
        throttled_time=stat.get("throttled_usec", 0) * MICROSECOND,
    )


def _memory_v1(path: str) -> MemoryStats:
    record = v1.Memory(path)
    stat, limit = record.stat, record.limit_in_bytes
    return MemoryStats(
        usage=record.usage_in_bytes,
        peak=record.max_usage_in_bytes,
        limit=None if limit >= V1_UNLIMITED else limit,
        cache=stat["total_cache"],
        rss=stat["total_rss"],
        swap=stat.get("total_swap"),
        oom_kills=record.oom_control.get("oom_kill", 0),
    )


def _memory_v2(path: str) -> MemoryStats:
    record = MemoryV2(path)
    stat = record.stat
    return MemoryStats(
        usage=record.current,
        peak=_given(record, "peak"),
        limit=record.max,
        cache=stat["file"],
        rss=stat["anon"],
        swap=_given(record, "swap_current"),
        oom_kills=record.events["oom_kill"],
    )


def _pids(path: str) -> PidsStats:
    record = PidsUsage(path)
    return PidsStats(current=record.current, limit=record.max)


def _io_v1(path: str) -> IoStats:
    record = BlkioV1(path)
    size, count = _given(record, "service_bytes") or {}, _given(record, "serviced") or {}
    return IoStats(
        read_bytes=size.get("Read", 0),
        write_bytes=size.get("Write", 0),
        reads=count.get("Read", 0),
        writes=count.get("Write", 0),
    )


def _io_v2(path: str) -> IoStats:
    sums = (_given(UnifiedV2(path), "io_stat") if path else None) or {}
    return IoStats(
        read_bytes=sums.get("rbytes", 0),
        write_bytes=sums.get("wbytes", 0),
        reads=sums.get("rios", 0),
        writes=sums.get("wios", 0),
    )


def _pressure(path: str) -> dict[str, Pressure]:
    record = UnifiedV2(path)
    found = {name: _given(record, name) for name in ("cpu", "memory", "io")}
    return {name: pressure for name, pressure in found.items() if pressure is not None}


def _network(pid: int) -> dict[str, InterfaceStats]:
    if os.path.samestat(os.stat(f"/proc/{pid}/ns/net"), os.stat("/proc/self/ns/net")):
        return {}
    with open(f"/proc/{pid}/net/dev") as file:
        return interfaces(file.read())


def interfaces(text: str) -> dict[str, InterfaceStats]:
    """What /proc/<pid>/net/dev says (proc_pid_net(5)): two lines of titles, then an interface per line."""
    found = {}
    for line in text.splitlines()[2:]:
        name, _, numbers = line.rpartition(":")  # an alias has a colon in its name
        rx_bytes, rx_packets, rx_errors, rx_dropped, *_ = fields = [int(number) for number in numbers.split()]
        tx_bytes, tx_packets, tx_errors, tx_dropped, *_ = fields[8:]
        found[name.strip()] = InterfaceStats(
            rx_bytes=rx_bytes,
            rx_packets=rx_packets,
            rx_errors=rx_errors,
            rx_dropped=rx_dropped,
            tx_bytes=tx_bytes,
            tx_packets=tx_packets,
            tx_errors=tx_errors,
            tx_dropped=tx_dropped,
        )
    return found
