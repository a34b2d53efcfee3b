"""Limits on cgroup v1, by cgroupspy's controllers (Documentation/admin-guide/cgroup-v1)."""
# mypy: disallow-subclassing-any=False

from __future__ import annotations

import math
import os
from collections.abc import Collection

from cgroupspy.controllers import CpuController, CpuSetController, MemoryController
from cgroupspy.interfaces import CommaDashSetFile

from pycontainer_native.cgroups.limits import Limits, numbers
from pycontainer_native.cgroups.record import Pids, Record


class Memory(Record, MemoryController): ...


class Cpu(Record, CpuController): ...


class CpuSet(Record, CpuSetController):
    effective_cpus = CommaDashSetFile("cpuset.effective_cpus", readonly=True)
    effective_mems = CommaDashSetFile("cpuset.effective_mems", readonly=True)


THROTTLES = {
    "device_read_bps": "blkio.throttle.read_bps_device",
    "device_write_bps": "blkio.throttle.write_bps_device",
    "device_read_iops": "blkio.throttle.read_iops_device",
    "device_write_iops": "blkio.throttle.write_iops_device",
}


def writes(controllers: Collection[str], limits: Limits, base: str) -> list[tuple[str, str]]:
    """What a directory two below *base* gets: (file, value), in order."""
    recorded = []
    if "memory" in controllers:
        # The limit first: memsw may never be below it, and a new cgroup has both unlimited.
        swap = limits.swap(accounts_swap(base))
        recorded += Memory(base).record(limit_in_bytes=limits.memory, memsw_limit_in_bytes=swap)
    if "cpu" in controllers:
        # The period before the quota: together they are compared with the parent's.
        recorded += Cpu(base).record(
            shares=limits.cpu_shares, cfs_period_us=limits.cpu_period, cfs_quota_us=limits.cpu_quota
        )
    if "pids" in controllers:
        recorded += Pids(base).record(max=limits.pids_limit)
    if "cpuset" in controllers:
        recorded += CpuSet(base).record(cpus=numbers(limits.cpuset_cpus), mems=numbers(limits.cpuset_mems))
    if "blkio" in controllers:
        weight = "blkio.bfq.weight"  # CFQ's, which had none in its name, went with Linux 5.0
        if limits.blkio_weight is not None:
            recorded.append((weight, str(limits.blkio_weight)))
        for field, file in (("blkio_weight_device", f"{weight}_device"), *THROTTLES.items()):
            recorded += [(file, f"{disk} {number}") for disk, number in getattr(limits, field)]
    if "hugetlb" in controllers:
        for size, limit in limits.hugepage_limits:
            for kind in ("rsvd.", ""):  # what is reserved, as mmap(2) does, and what is there
                recorded.append((f"hugetlb.{size}.{kind}limit_in_bytes", str(limit)))
    return recorded


def accounts_swap(base: str) -> bool:
    return os.path.exists(base + "/memory.memsw.limit_in_bytes")


def weights(base: str) -> bool:
    """Whether disks have weights below *base*. The root has none itself, but what else BFQ shows."""
    return any(os.path.exists(f"{base}/blkio.bfq.{name}") for name in ("weight", "io_service_bytes"))


def most_cpus(base: str) -> float:
    """The largest quota, in CPUs, that the kernel takes below *base* (more is EINVAL); 0 where it knows no quotas."""
    most = 0.0
    while os.path.exists(base + "/cpu.cfs_quota_us"):
        cpu = Cpu(base)
        if cpu.cfs_quota_us is not None:
            return float(cpu.cfs_quota_us / cpu.cfs_period_us)
        base, most = os.path.dirname(base), math.inf
    return most
