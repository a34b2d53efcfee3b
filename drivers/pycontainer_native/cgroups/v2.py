"""Limits on cgroup2, by controllers of our own on cgroupspy's interface descriptors (cgroup-v2.rst)."""
# mypy: disallow-subclassing-any=False

from __future__ import annotations

import math
import os
from collections.abc import Collection

from cgroupspy.interfaces import BaseFileInterface, CommaDashSetFile, IntegerFile

from pycontainer_native.cgroups.limits import PERIOD, Limits, numbers
from pycontainer_native.cgroups.record import LimitFile, Pids, Record


class BandwidthFile(BaseFileInterface):
    """``cpu.max``: (quota or None, period), both in microseconds."""

    def sanitize_get(self, value: str) -> tuple[int | None, int]:
        quota, period = value.split()
        return None if quota == "max" else int(quota), int(period)

    def sanitize_set(self, value: tuple[int | None, int]) -> str:
        quota, period = value
        return f"{'max' if quota is None or quota == -1 else quota} {period}"


class Memory(Record):
    max = LimitFile("memory.max")
    swap_max = LimitFile("memory.swap.max")


class Cpu(Record):
    weight = IntegerFile("cpu.weight")
    max = BandwidthFile("cpu.max")


class CpuSet(Record):
    cpus = CommaDashSetFile("cpuset.cpus")
    mems = CommaDashSetFile("cpuset.mems")
    # A cgroup's own set may be empty or more than there is: the kernel silently goes by these.
    effective_cpus = CommaDashSetFile("cpuset.cpus.effective", readonly=True)
    effective_mems = CommaDashSetFile("cpuset.mems.effective", readonly=True)


def cpu_weight(shares: int) -> int:
    """v1's cpu.shares (2 to 262144, default 1024) as cpu.weight (1 to 10000, default 100).

    The curve through these three pairs, as runc (from 1.3.2) and crun have it.
    OCI's earlier 1 + (shares - 2) * 9999 / 262142 made 39 of the default, so
    that a container with the usual shares lost against everything outside
    (https://github.com/kubernetes/kubernetes/issues/131216).
    """
    power = math.log2(min(max(shares, 2), 262144))
    # Rounded first: a floating point's last digit must not make 101 of the default.
    return math.ceil(round(10 ** ((power * power + 125 * power) / 612 - 7 / 34), 9))


def writes(controllers: Collection[str], limits: Limits, base: str) -> list[tuple[str, str]]:
    """What a directory two below *base* gets: (file, value), in order."""
    recorded = []
    if "memory" in controllers:
        swap = limits.swap(accounts_swap(base))
        if swap is not None and swap != -1:
            swap -= limits.memory or 0  # OCI's number is both together, cgroup2's is swap alone
        recorded += Memory(base).record(max=limits.memory, swap_max=swap)
    if "cpu" in controllers:
        weight = None if limits.cpu_shares is None else cpu_weight(limits.cpu_shares)
        bandwidth = None
        if limits.cpu_quota is not None or limits.cpu_period is not None:
            bandwidth = (limits.cpu_quota, limits.cpu_period or PERIOD)
        recorded += Cpu(base).record(weight=weight, max=bandwidth)
    if "pids" in controllers:
        recorded += Pids(base).record(max=limits.pids_limit)
    if "cpuset" in controllers:
        recorded += CpuSet(base).record(cpus=numbers(limits.cpuset_cpus), mems=numbers(limits.cpuset_mems))
    if "io" in controllers:
        recorded += _weights(limits, base)
        for disk, limited in throttles(limits).items():
            recorded.append(("io.max", " ".join((disk, *(f"{key}={number}" for key, number in limited.items())))))
    if "hugetlb" in controllers:
        for size, limit in limits.hugepage_limits:
            for kind in ("rsvd.", ""):  # what is reserved, as mmap(2) does, and what is there
                recorded.append((f"hugetlb.{size}.{kind}max", str(limit)))
    return recorded


THROTTLES = {
    "device_read_bps": "rbps",
    "device_write_bps": "wbps",
    "device_read_iops": "riops",
    "device_write_iops": "wiops",
}


def throttles(limits: Limits) -> dict[str, dict[str, int]]:
    """The throttles by disk, as io.max has them."""
    found: dict[str, dict[str, int]] = {}
    for field, key in THROTTLES.items():
        for disk, number in getattr(limits, field):
            found.setdefault(disk, {})[key] = number
    return found


def io_weight(weight: int) -> int:
    """v1's weight (10 to 1000) as io.weight (1 to 10000): the line through both pairs of ends, as runc and crun."""
    return 1 + (weight - 10) * 9999 // 990


def _weights(limits: Limits, base: str) -> list[tuple[str, str]]:
    """BFQ, which has v1's scale, where the kernel has it; io.cost otherwise."""
    if limits.blkio_weight is None and not limits.blkio_weight_device:
        return []
    bfq = _offers(base, "io.bfq.weight", beside="io.max", otherwise=False)
    file, scaled = ("io.bfq.weight", int) if bfq else ("io.weight", io_weight)
    found = []
    if limits.blkio_weight is not None:
        found.append((file, f"default {scaled(limits.blkio_weight)}"))
    return found + [(file, f"{disk} {scaled(weight)}") for disk, weight in limits.blkio_weight_device]


def weights(base: str) -> bool:
    """Whether disks have weights below *base*."""
    return any(_offers(base, file, beside="io.max") for file in ("io.bfq.weight", "io.weight"))


def accounts_swap(base: str) -> bool:
    return _offers(base, "memory.swap.max", beside="memory.max")


def most_cpus(base: str) -> float:
    """No quota is too large for the kernel, which goes by the smallest on the way up; 0 where it knows no quotas."""
    return math.inf if _offers(base, "cpu.max", beside="cpu.weight") else 0.0


def _offers(base: str, filename: str, beside: str, otherwise: bool = True) -> bool:
    """Whether cgroups have *filename* where they have *beside*, as far as *base* shows.

    The root has neither, so its children are asked. When none has *beside*,
    *otherwise* is the better guess: writing to the container's own will tell.
    """
    if os.path.exists(f"{base}/{beside}"):
        return os.path.exists(f"{base}/{filename}")
    with os.scandir(base) as entries:
        for entry in entries:
            if os.path.exists(f"{entry.path}/{beside}"):
                return os.path.exists(f"{entry.path}/{filename}")
    return otherwise
