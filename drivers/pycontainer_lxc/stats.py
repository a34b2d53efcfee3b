"""What a container has used, from its cgroups: cgroup-v1/*.rst, cgroup-v2.rst, and proc_pid_net(5)."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from pycontainer.stats import CpuStats, InterfaceStats, IoStats, MemoryStats, PidsStats, Pressure, Stats
from pycontainer_lxc import cgroups

__all__ = ["take"]

_TICK = 10**9 // os.sysconf("SC_CLK_TCK")


def take(pid: int, directories: Mapping[str, str], where: Mapping[str, str]) -> Stats:
    """A snapshot of the container whose init is *pid* and whose cgroups are *directories*."""
    return Stats(
        time=time.monotonic(),
        cpu=_cpu(directories),
        memory=_memory_v1(directories["memory"]) if "memory" in directories else _memory_v2(directories[""]),
        pids=_pids(directories.get("pids") or directories[""]),
        io=_io(directories),
        network=_network(pid),
        pressure=_pressure(directories.get("", "")),
    )


def _number(path: str) -> int | None:
    try:
        text = cgroups.read(path).strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _cpu(directories: Mapping[str, str]) -> CpuStats:
    if "cpuacct" not in directories:
        found = cgroups.read_pairs(f"{directories['']}/cpu.stat")
        return CpuStats(
            usage=found.get("usage_usec", 0) * 1000,
            user=found.get("user_usec", 0) * 1000,
            system=found.get("system_usec", 0) * 1000,
            periods=found.get("nr_periods", 0),
            throttled_periods=found.get("nr_throttled", 0),
            throttled_time=found.get("throttled_usec", 0) * 1000,
        )
    times = cgroups.read_pairs(f"{directories['cpuacct']}/cpuacct.stat")
    quota = cgroups.read_pairs(f"{directories.get('cpu', '')}/cpu.stat")
    return CpuStats(
        usage=_number(f"{directories['cpuacct']}/cpuacct.usage") or 0,
        user=times.get("user", 0) * _TICK,
        system=times.get("system", 0) * _TICK,
        periods=quota.get("nr_periods", 0),
        throttled_periods=quota.get("nr_throttled", 0),
        throttled_time=quota.get("throttled_time", 0),
    )


def _memory_v1(directory: str) -> MemoryStats:
    counters = cgroups.read_pairs(f"{directory}/memory.stat")
    limit = _number(f"{directory}/memory.limit_in_bytes")
    return MemoryStats(
        usage=_number(f"{directory}/memory.usage_in_bytes") or 0,
        peak=_number(f"{directory}/memory.max_usage_in_bytes"),
        limit=None if limit is None or limit >= cgroups.UNLIMITED else limit,
        cache=counters.get("total_cache", counters.get("cache", 0)),
        rss=counters.get("total_rss", counters.get("rss", 0)),
        swap=counters.get("total_swap"),
        oom_kills=cgroups.read_pairs(f"{directory}/memory.oom_control").get("oom_kill", 0),
    )


def _memory_v2(directory: str) -> MemoryStats:
    counters = cgroups.read_pairs(f"{directory}/memory.stat")
    return MemoryStats(
        usage=_number(f"{directory}/memory.current") or 0,
        peak=_number(f"{directory}/memory.peak"),
        limit=_number(f"{directory}/memory.max"),
        cache=counters.get("file", 0),
        rss=counters.get("anon", 0),
        swap=_number(f"{directory}/memory.swap.current"),
        oom_kills=cgroups.read_pairs(f"{directory}/memory.events").get("oom_kill", 0),
    )


def _pids(directory: str) -> PidsStats:
    return PidsStats(current=_number(f"{directory}/pids.current") or 0, limit=_number(f"{directory}/pids.max"))


def _io(directories: Mapping[str, str]) -> IoStats:
    totals = {"rbytes": 0, "wbytes": 0, "rios": 0, "wios": 0}
    if "blkio" in directories:
        names = {"Read": "r", "Write": "w"}
        for file, suffix in (("io_service_bytes_recursive", "bytes"), ("io_serviced_recursive", "ios")):
            try:
                lines = cgroups.read(f"{directories['blkio']}/blkio.throttle.{file}").splitlines()
            except OSError:
                continue
            for parts in map(str.split, lines):
                if len(parts) == 3 and parts[1] in names:
                    totals[names[parts[1]] + suffix] += int(parts[2])
    elif "" in directories:
        try:
            lines = cgroups.read(f"{directories['']}/io.stat").splitlines()
        except OSError:
            lines = []
        for item in (item for line in lines for item in line.split()[1:]):
            name, _, value = item.partition("=")
            if name in totals:
                totals[name] += int(value)
    return IoStats(
        read_bytes=totals["rbytes"], write_bytes=totals["wbytes"], reads=totals["rios"], writes=totals["wios"]
    )


def _network(pid: int) -> dict[str, InterfaceStats]:
    try:
        lines = cgroups.read(f"/proc/{pid}/net/dev").splitlines()[2:]
    except OSError:
        return {}
    found = {}
    for line in lines:
        name, _, rest = line.partition(":")
        counts = [int(text) for text in rest.split()]
        found[name.strip()] = InterfaceStats(
            rx_bytes=counts[0],
            rx_packets=counts[1],
            rx_errors=counts[2],
            rx_dropped=counts[3],
            tx_bytes=counts[8],
            tx_packets=counts[9],
            tx_errors=counts[10],
            tx_dropped=counts[11],
        )
    return found


def _pressure(directory: str) -> dict[str, Pressure]:
    found = {}
    for name in ("cpu", "memory", "io"):
        try:
            lines = cgroups.read(f"{directory}/{name}.pressure").splitlines()
        except OSError:
            continue
        values: dict[str, float] = {}
        for kind, *items in map(str.split, lines):
            for item in items:
                key, _, value = item.partition("=")
                values[f"{kind}_{key}"] = float(value)
        found[name] = Pressure(
            some_avg10=values.get("some_avg10", 0.0),
            some_total=int(values.get("some_total", 0)),
            full_avg10=values.get("full_avg10", 0.0),
            full_total=int(values.get("full_total", 0)),
        )
    return found
