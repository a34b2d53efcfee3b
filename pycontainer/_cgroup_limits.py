"""What bounds a process by its cgroups: the smallest limit from its own cgroup up to the root that is visible here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from pycontainer.receipt import CgroupPath, EffectiveLimits, MountPoint, mount_points

#: From here on v1's memory controller means unlimited: the most pages that a counter holds.
_UNLIMITED = 2**63 - 2**20


def paths_and_limits(text: str) -> tuple[tuple[CgroupPath, ...], EffectiveLimits]:
    """Of a /proc/PID/cgroup: the paths, and the limits that hold there."""
    paths = tuple(_paths(text))
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        mounts = [mount for mount in mount_points(file.read()) if mount.type in ("cgroup", "cgroup2")]
    by_controller: dict[str, tuple[int, list[str]]] = {}
    for path in paths:
        ways = _way_up(path, mounts)
        for controller in path.controllers or (_at(ways[0], "cgroup.controllers").split() if ways else ()):
            by_controller.setdefault(controller, (path.version, ways))
    return paths, _limits(by_controller)


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
    )


def _number(text: str) -> int | None:
    value = int(text) if text and text != "max" else None
    return None if value is None or not 0 <= value < _UNLIMITED else value


def _share(text: str) -> float | None:
    """``quota period``, in microseconds, as a number of processors."""
    quota, _, period = text.partition(" ")
    return None if quota in ("", "max", "-1") or not period else int(quota) / int(period)


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
