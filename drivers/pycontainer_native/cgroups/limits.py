"""``linux.resources`` of the OCI runtime spec, and what of it a host cannot apply."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from attrs import asdict, fields_dict, frozen

from pycontainer_native.cgroups.devices import Rules, rules_of

if TYPE_CHECKING:
    from pycontainer.command import Resources
    from pycontainer_native.cgroups.layout import Hierarchy

PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")
PIDS_MAX = 4 * 1024 * 1024  # PID_MAX_LIMIT: pids.max takes no larger number (kernel/cgroup/pids.c)
#: Measured on cgroup v1: of the starts with 1 MiB some are killed, with 1.2 MiB none. Docker's is 6 MiB.
MEMORY_MIN = 2 << 20
QUOTA_MIN = 1000  # min_cfs_quota_period, in microseconds (kernel/sched/core.c)
PERIOD = 100_000  # of the CPU quota, in microseconds, where none is given


Numbers: TypeAlias = tuple[tuple[str, int], ...]

#: The limits of single disks, and what OCI's ``blockIO`` calls them.
PER_DISK = {
    "blkio_weight_device": "weightDevice",
    "device_read_bps": "throttleReadBpsDevice",
    "device_write_bps": "throttleWriteBpsDevice",
    "device_read_iops": "throttleReadIOPSDevice",
    "device_write_iops": "throttleWriteIOPSDevice",
}
#: What a live container keeps: a change is refused.
FIXED = ("blkio_weight", *PER_DISK, "hugepage_limits")


def controller_of(field: str) -> str:
    """The controller, in v1's words, of a field of :class:`Limits`."""
    if field in PER_DISK:
        return "blkio"
    return "hugetlb" if field == "hugepage_limits" else field.partition("_")[0]


def _by_disk(entries: Sequence[Mapping[str, int]] | None) -> Numbers:
    return tuple((f"{e['major']}:{e['minor']}", e["weight"] if "weight" in e else e["rate"]) for e in entries or ())


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
    blkio_weight: int | None = None
    # By the disk's "major:minor".
    blkio_weight_device: Numbers = ()
    device_read_bps: Numbers = ()
    device_write_bps: Numbers = ()
    device_read_iops: Numbers = ()
    device_write_iops: Numbers = ()
    hugepage_limits: Numbers = ()  # by the page's size: "2MB"
    devices: Rules | None = None

    @classmethod
    def of(cls, resources: Mapping[str, Any]) -> Limits:
        memory, cpu, pids, blkio = (resources.get(name) or {} for name in ("memory", "cpu", "pids", "blockIO"))
        return cls(
            memory.get("limit"), memory.get("swap"), cpu.get("shares"), cpu.get("quota"), cpu.get("period"),
            cpu.get("cpus") or None, cpu.get("mems") or None, pids.get("limit"),
            blkio.get("weight"),
            **{field: _by_disk(blkio.get(name)) for field, name in PER_DISK.items()},
            hugepage_limits=tuple((e["pageSize"], e["limit"]) for e in resources.get("hugepageLimits") or ()),
            devices=rules_of(resources.get("devices")),
        )  # fmt: skip

    @classmethod
    def to_update(cls, resources: Resources, rules: Rules | None = None) -> Limits:
        """What an update asks for: the fields of *resources* as they are, and the device rules that they make."""
        names = [name for name in fields_dict(cls) if name not in FIXED and name != "devices"]
        return cls(**{name: getattr(resources, name) for name in names}, devices=rules)

    def any(self) -> bool:
        return self != Limits()

    def needs(self) -> dict[str, str]:
        """The Command's fields that are limited, and the controller of each. Unlimited needs none: a new cgroup is."""
        limited = [name for name, value in asdict(self).items() if value not in (None, -1, ())]
        return {name if name == "devices" else f"resources.{name}": controller_of(name) for name in limited}

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
    if (limits.blkio_weight or limits.blkio_weight_device) and {"blkio", "io"} & controllers and not here.weights(base):
        field = "blkio_weight" if limits.blkio_weight else "blkio_weight_device"
        yield f"resources.{field}", "the kernel knows no weights of disks: no BFQ (modprobe bfq), nor cgroup2's io.cost"
    sizes = [size for size, _ in limits.hugepage_limits] if "hugetlb" in controllers else []
    if sizes and (unknown := {*sizes} - {*page_sizes()}):
        known = ", ".join(page_sizes()) or "none"
        yield "resources.hugepage_limits", f"{min(unknown)} is no size of huge pages here: {known}"
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


def page_sizes() -> list[str]:
    """The sizes of huge pages that the kernel has, as the files of their controller are named (hugetlb_cgroup.c)."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir("/sys/kernel/mm/hugepages")):  # hugepages-2048kB
            size = int(name.removeprefix("hugepages-").removesuffix("kB"))
            unit = next(unit for unit in (20, 10, 0) if size >= 1 << unit)
            found.append(f"{size >> unit}{'KMG'[unit // 10]}B")
    return found


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
