"""``linux.resources`` of the OCI runtime spec, and what of it a host cannot apply."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from attrs import asdict, frozen

if TYPE_CHECKING:
    from pycontainer_native.cgroups.layout import Hierarchy

PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")
PIDS_MAX = 4 * 1024 * 1024  # PID_MAX_LIMIT: pids.max takes no larger number (kernel/cgroup/pids.c)
QUOTA_MIN = 1000  # min_cfs_quota_period, in microseconds (kernel/sched/core.c)
PERIOD = 100_000  # of the CPU quota, in microseconds, where none is given


@frozen
class Limits:
    """The resources, flat, named as the Command's fields; None is not asked for, -1 is unlimited."""

    memory: int | None = None
    memory_swap: int | None = None  # memory and swap together
    cpu_shares: int | None = None
    cpu_quota: int | None = None
    cpu_period: int | None = None
    cpuset_cpus: str | None = None
    cpuset_mems: str | None = None
    pids_limit: int | None = None

    @classmethod
    def of(cls, resources: Mapping[str, Any]) -> Limits:
        memory, cpu, pids = (resources.get(section) or {} for section in ("memory", "cpu", "pids"))
        return cls(
            memory.get("limit"), memory.get("swap"), cpu.get("shares"), cpu.get("quota"), cpu.get("period"),
            cpu.get("cpus") or None, cpu.get("mems") or None, pids.get("limit"),
        )  # fmt: skip

    def any(self) -> bool:
        return self != Limits()

    def needs(self) -> dict[str, str]:
        """The Command's fields that are limited, and the controller of each. Unlimited needs none: a new cgroup is."""
        limited = [name for name, value in asdict(self).items() if value not in (None, -1)]
        return {f"resources.{name}": name.partition("_")[0] for name in limited}

    def swap(self, accounted: bool) -> int | None:
        """:attr:`memory_swap`, or None where the kernel does not account swap and Docker goes without.

        That is: when it is twice the memory, which is what a Command has that
        did not ask, or unlimited.
        """
        default = self.memory_swap == -1 or (self.memory is not None and self.memory_swap == 2 * self.memory)
        return None if default and not accounted else self.memory_swap


def impossible(limits: Limits) -> Iterator[tuple[str, str]]:
    """The limits that no kernel takes: (field, why)."""
    if limits.memory is not None and limits.memory != -1 and limits.memory < PAGE_SIZE:
        yield "resources.memory", f"{limits.memory} is less than one page ({PAGE_SIZE} bytes)"
    if limits.memory_swap is not None and limits.memory_swap != -1:
        if limits.memory is None or limits.memory == -1:
            yield "resources.memory_swap", "a limit of memory and swap together needs one of memory alone"
        elif limits.memory_swap < limits.memory:
            yield "resources.memory_swap", f"{limits.memory_swap} is less than the memory limit, {limits.memory}"
    if limits.cpu_quota is not None and limits.cpu_quota != -1 and limits.cpu_quota < QUOTA_MIN:
        yield "resources.cpu_quota", f"{limits.cpu_quota} is less than the kernel's minimum, {QUOTA_MIN} microseconds"
    if limits.pids_limit is not None and limits.pids_limit > PIDS_MAX:
        yield "resources.pids_limit", f"{limits.pids_limit} is more than the kernel's maximum, {PIDS_MAX}"


def refused(limits: Limits, place: Hierarchy) -> Iterator[tuple[str, str]]:
    """The limits that a cgroup below *place* cannot have: (field, why)."""
    from cgroupspy.interfaces import CommaDashSetFile

    from pycontainer_native.cgroups import v1, v2

    here, controllers, base = (v1 if place.version == 1 else v2), place.controllers, place.base
    if "memory" in controllers and limits.swap(accounted=False) is not None and not here.accounts_swap(base):
        yield "resources.memory_swap", "the kernel does not account swap (booted without swapaccount=1)"
    if "cpu" in controllers and limits.cpu_quota is not None and limits.cpu_quota != -1:
        asked, most = limits.cpu_quota / (limits.cpu_period or PERIOD), here.most_cpus(base)
        if not most:
            yield "resources.cpu_quota", "the kernel has no CPU bandwidth control (CONFIG_CFS_BANDWIDTH)"
        elif asked > most:
            yield "resources.cpu_quota", f"{asked:g} CPUs are more than the caller's own limit, {most:g}"
    for name, wanted in (("cpus", limits.cpuset_cpus), ("mems", limits.cpuset_mems)):
        if "cpuset" in controllers and wanted:
            allowed = getattr(here.CpuSet(base), f"effective_{name}")
            try:
                excess = (numbers(wanted) or set()) - allowed
            except ValueError:
                yield f"resources.cpuset_{name}", f"{wanted!r} is not a list of numbers such as 0-3,5"
                continue
            if excess:
                had = CommaDashSetFile("").sanitize_set(allowed)
                yield f"resources.cpuset_{name}", f"{min(excess)} is not among the caller's own, {had}"


def numbers(text: str | None) -> set[int] | None:
    """The set that ``0-3,5`` stands for. Raises ValueError. (Five digits bound the work: there are fewer CPUs.)"""
    if not text:
        return None
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not re.fullmatch("[0-9]{1,5}(-[0-9]{1,5})?", part) or int(first) > int(last or first):
            raise ValueError(text)
        found.update(range(int(first), int(last or first) + 1))
    return found
