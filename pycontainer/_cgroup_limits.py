"""What bounds a process by its cgroups: the smallest limit from its own cgroup up to the root that is visible here."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from pycontainer.receipt import CgroupLimits, CgroupPath, EffectiveLimits, MountPoint, mount_points

#: From here on v1's memory controller means unlimited: the most pages that a counter holds.
_UNLIMITED = 2**63 - 2**20


#: The limits of single disks: v1's file, and the key in cgroup2's io.max.
_THROTTLES = {
    "device_read_bps": ("blkio.throttle.read_bps_device", "rbps"),
    "device_write_bps": ("blkio.throttle.write_bps_device", "wbps"),
    "device_read_iops": ("blkio.throttle.read_iops_device", "riops"),
    "device_write_iops": ("blkio.throttle.write_iops_device", "wiops"),
}
#: Whichever the kernel has: BFQ's, which is on v1's scale on both, or that of cgroup2's io.cost.
_WEIGHTS = ("blkio.bfq.weight", "io.bfq.weight", "io.weight")
#: cgroup v1's hugetlb.2MB.limit_in_bytes, cgroup2's hugetlb.2MB.max
_HUGE = re.compile(r"hugetlb\.([0-9]+[KMG]B)\.(?:limit_in_bytes|max)")


def paths_and_limits(text: str, ours: str) -> tuple[tuple[CgroupPath, ...], EffectiveLimits, CgroupLimits]:
    """Of a /proc/PID/cgroup: the paths, the limits that hold there, and those of its own cgroups.

    *ours* is that of whoever reads this: a cgroup that both are in is not its own.
    """
    paths = tuple(_paths(text))
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        mounts = [mount for mount in mount_points(file.read()) if mount.type in ("cgroup", "cgroup2")]
    by_controller: dict[str, tuple[int, list[str]]] = {}
    own: dict[str, tuple[int, list[str]]] = {}
    others = set(_paths(ours))
    for path in paths:
        ways = _way_up(path, mounts)
        for controller in path.controllers or (_at(ways[0], "cgroup.controllers").split() if ways else ()):
            if by_controller.setdefault(controller, (path.version, ways))[1] is ways and path not in others and ways:
                own[controller] = (path.version, ways)
    return paths, _limits(by_controller), _own_limits(own)


def _paths(text: str) -> Iterator[CgroupPath]:
    for line in text.splitlines():
        number, controllers, path = line.split(":", 2)
        version = 2 if number == "0" else 1
        names = () if version == 2 else tuple(name for name in controllers.split(",") if not name.startswith("name="))
        yield CgroupPath(version=version, controllers=names, path=path)


def _way_up(path: CgroupPath, mounts: list[MountPoint]) -> list[str]:
    """The directories of its cgroup and of all above it that are mounted here."""
    for mount in mounts:
        if path.version == 2:
            fits = mount.type == "cgroup2"
        else:
            fits = bool(path.controllers) and set(path.controllers) <= set(mount.super_options)
        inside = os.path.relpath(path.path, mount.root)
        if fits and not inside.startswith(".."):
            parts = [] if inside == "." else inside.split("/")
            return ["/".join([mount.target, *parts[:end]]) for end in range(len(parts), -1, -1)]
    return []


def _at(directory: str, name: str) -> str:
    try:
        with open(f"{directory}/{name}", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""  # the root has no limits, and a controller may be off below


def _limits(controllers: dict[str, tuple[int, list[str]]]) -> EffectiveLimits:
    def smallest(controller: str, first: str, second: str, read: Callable[[str], float | None]) -> float | None:
        version, ways = controllers.get(controller, (1, []))
        found = [read(_at(directory, first if version == 1 else second)) for directory in ways]
        return min((value for value in found if value is not None), default=None)

    def bandwidth() -> float | None:
        version, ways = controllers.get("cpu", (1, []))
        if version == 2:
            return smallest("cpu", "", "cpu.max", _share)
        pairs = (f"{_at(way, 'cpu.cfs_quota_us')} {_at(way, 'cpu.cfs_period_us')}" for way in ways)
        return min((value for value in map(_share, pairs) if value is not None), default=None)

    def own(name: str, version: int) -> int | None:
        at, ways = controllers.get("cpu", (0, []))
        value = _at(ways[0], name) if ways and at == version else ""
        return int(value) if value else None

    memory = _whole(smallest("memory", "memory.limit_in_bytes", "memory.max", _number))

    def by_key(read: Callable[[str], Mapping[str, int]], *names: str) -> dict[str, int]:
        ways = next((controllers[name][1] for name in names if name in controllers), [])
        found: dict[str, int] = {}
        for key, value in (pair for way in ways for pair in read(way).items()):
            if value != -1:
                found[key] = min(value, found.get(key, value))
        return found

    disks = {name: by_key(partial(_throttles, name), "blkio", "io") for name in _THROTTLES}
    swap = _whole(smallest("memory", "memory.memsw.limit_in_bytes", "memory.swap.max", _number))
    if controllers.get("memory", (1, []))[0] == 2:  # there it is swap alone
        swap = None if swap is None or memory is None else memory + swap
    return EffectiveLimits(
        memory=memory,
        memory_swap=swap,
        cpus=bandwidth(),
        cpu_shares=own("cpu.shares", 1),
        cpu_weight=own("cpu.weight", 2),
        pids=_whole(smallest("pids", "pids.max", "pids.max", _number)),
        disks={name: limits for name, limits in disks.items() if limits},
        hugepages=by_key(_hugepages, "hugetlb"),
    )


def _own_limits(controllers: dict[str, tuple[int, list[str]]]) -> CgroupLimits:
    def text(controller: str, first: str, second: str, above: int = 0) -> str:
        version, ways = controllers.get(controller, (1, []))
        name = first if version == 1 else second
        return _at(ways[above], name) if len(ways) > above and name else ""

    def number(controller: str, first: str, second: str) -> int | None:
        found = text(controller, first, second)
        return None if not found else -1 if (value := _number(found)) is None else value

    quota, _, period = text("cpu", "", "cpu.max").partition(" ")
    quota = text("cpu", "cpu.cfs_quota_us", "") or quota
    period = text("cpu", "cpu.cfs_period_us", "") or period
    swap = number("memory", "memory.memsw.limit_in_bytes", "memory.swap.max")
    memory = number("memory", "memory.limit_in_bytes", "memory.max")
    if controllers.get("memory", (1, []))[0] == 2 and swap not in (None, -1) and memory is not None:
        swap = -1 if memory == -1 else memory + (swap or 0)
    shares, weight = text("cpu", "cpu.shares", ""), text("cpu", "", "cpu.weight")
    way = next((controllers[name][1][0] for name in ("blkio", "io") if name in controllers), "")
    weights = next((found for name in _WEIGHTS if (found := _by_disk(_at(way, name)))), {})
    if way:  # v1 has them in a file of their own, beside that of the default
        weights = {**weights, **_by_disk(_at(way, "blkio.bfq.weight_device"))}
    disks = {name: {key: value for key, value in _throttles(name, way).items() if value != -1} for name in _THROTTLES}
    disks["blkio_weight_device"] = {disk: value for disk, value in weights.items() if disk != "default"}
    huge = controllers.get("hugetlb", (1, [""]))[1][0]
    devices = text("devices", "devices.list", "")
    return CgroupLimits(
        memory=memory,
        memory_swap=swap,
        cpu_quota=None if not quota else -1 if quota in ("max", "-1") else int(quota),
        cpu_period=int(period) if period else None,
        cpu_shares=int(shares) if shares else None,
        cpu_weight=int(weight) if weight else None,
        pids=number("pids", "pids.max", "pids.max"),
        cpuset_cpus=text("cpuset", "cpuset.effective_cpus", "cpuset.cpus.effective") or None,
        cpuset_mems=text("cpuset", "cpuset.effective_mems", "cpuset.mems.effective") or None,
        cpuset_cpus_above=text("cpuset", "cpuset.effective_cpus", "cpuset.cpus.effective", 1) or None,
        cpuset_mems_above=text("cpuset", "cpuset.effective_mems", "cpuset.mems.effective", 1) or None,
        blkio_weight=weights.get("default"),
        disks={name: limits for name, limits in disks.items() if limits},
        hugepages=_hugepages(huge) if huge else {},
        devices=tuple(devices.splitlines()) if devices else None,
    )


def _throttles(name: str, directory: str) -> dict[str, int]:
    """``major:minor`` and the number; cgroup v1 has a file for each limit, cgroup2 ``8:0 rbps=max wbps=1048576...``."""
    file, key = _THROTTLES[name]
    found = _by_disk(_at(directory, file)) if directory else {}
    for line in _at(directory, "io.max").splitlines() if directory else ():
        disk, *pairs = line.split()
        value = dict(pair.partition("=")[::2] for pair in pairs).get(key, "max")
        if value != "max":
            found[disk] = int(value)
    return found


def _by_disk(text: str) -> dict[str, int]:
    """Lines of a disk, or ``default``, and a number; a number alone is the default."""
    words = (line.split() for line in text.splitlines())
    return {line[0] if len(line) > 1 else "default": int(line[-1]) for line in words if line and line[-1].isdigit()}


def _hugepages(directory: str) -> dict[str, int]:
    found = {}
    try:
        names = os.listdir(directory)
    except OSError:
        return {}
    for name in names:
        if size := _HUGE.fullmatch(name):
            value = _number(_at(directory, name))
            found[size[1]] = -1 if value is None else value
    return found


def _number(text: str) -> int | None:
    value = int(text) if text and text != "max" else None
    return None if value is None or not 0 <= value < _UNLIMITED else value


def _share(text: str) -> float | None:
    """``quota period``, in microseconds, as a number of processors."""
    quota, _, period = text.partition(" ")
    return None if quota in ("", "max", "-1") or not period else int(quota) / int(period)


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
