"""A container's limits: :class:`Resources`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from attrs import field, fields_dict, frozen

from pycontainer import _fields as check
from pycontainer._fields import FrozenMapping, refuse, store

__all__ = ["Resources"]

_WEIGHTS = (10, 1000)
#: The limits that are one of each disk: by the host's path, from the least to the most.
_PER_DISK = {
    "blkio_weight_device": _WEIGHTS,
    "device_read_bps": (1, 2**63 - 1),
    "device_write_bps": (1, 2**63 - 1),
    "device_read_iops": (1, 2**32 - 1),
    "device_write_iops": (1, 2**32 - 1),
}
#: As the kernel names the files of the hugetlb controller: hugetlb.2MB.max.
_PAGE_SIZE = re.compile("[1-9][0-9]{0,3}[KMG]B")


def _memory(value: int | str | None) -> int | None:
    return check.size("resources.memory", value)


def _memory_swap(value: int | str | None) -> int | None:
    return check.size("resources.memory_swap", value)


@frozen(kw_only=True)
class Resources:
    """The container's limits, all of them cgroup ones; None leaves the kernel's default.

    *memory* in bytes, or with a unit as Docker has it (``"64m"``, ``"1.5g"``),
    which the set-up counts against: ``native`` and ``lxc`` start nothing with
    less than 2m;
    *memory_swap* is memory and swap together, in the same units: -1 is
    unlimited, None or 0 twice the memory.  *cpu_shares* 2 to 262144 (the
    kernel's default is 1024), *cpu_quota* and *cpu_period* in microseconds.
    *pids_limit* counts processes and threads, -1 is unlimited.  *cpuset_cpus*
    and *cpuset_mems* are lists as in cpuset(7): ``"0-3,5"``.

    *blkio_weight* is the share of a busy disk, 10 to 1000 (the kernel's
    default is 100), *blkio_weight_device* that of single ones, by the host's
    path: ``{"/dev/sda": 500}``; only a scheduler that knows weights (BFQ, and
    cgroup2's io.cost) heeds them.  *device_read_bps* and *device_write_bps*
    (bytes per second), *device_read_iops* and *device_write_iops*
    (operations per second) are the most of a disk, -1 being unlimited.
    *hugepage_limits* are bytes by size of page: ``{"2MB": "64m"}``.

    *device_cgroup_rules* are permissions to use devices beyond those of
    Command.devices: ``c 10:229 rw``, as docker's ``--device-cgroup-rule``.

    Raises InvalidCommandError, for ``resources.<field>``.
    """

    memory: int | None = field(default=None, converter=_memory)
    memory_swap: int | None = field(default=None, converter=_memory_swap)
    cpu_shares: int | None = None
    cpu_quota: int | None = None
    cpu_period: int | None = None
    pids_limit: int | None = None
    cpuset_cpus: str | None = None
    cpuset_mems: str | None = None
    blkio_weight: int | None = None
    blkio_weight_device: Mapping[str, int] | None = None
    device_read_bps: Mapping[str, int] | None = None
    device_write_bps: Mapping[str, int] | None = None
    device_read_iops: Mapping[str, int] | None = None
    device_write_iops: Mapping[str, int] | None = None
    hugepage_limits: Mapping[str, int] | None = None
    device_cgroup_rules: tuple[str, ...] | None = field(default=None, converter=check.as_texts_or_none)

    @classmethod
    def of(cls, *, cpus: float | None = None, **limits: Any) -> Resources:
        """From keywords, *cpus* being a number of processors: a quota in a period of 100000 us."""
        if cpus is not None:
            if (limits.get("cpu_quota"), limits.get("cpu_period")) != (None, None):
                refuse("resources.cpu_quota", "cpus says the same as cpu_quota and cpu_period: give one of them")
            limits.update(cpu_quota=check.processors("cpus", cpus), cpu_period=100000)
        known = fields_dict(cls)
        for name in limits.keys() - known:
            raise TypeError(check.unknown_keyword(name, (*known, "cpus")))
        return cls(**limits)

    def __attrs_post_init__(self) -> None:
        if self.memory is not None:
            check.integer("resources.memory", self.memory, check.PAGE, 2**63 - 1)
        if self.memory_swap is not None:
            check.integer("resources.memory_swap", self.memory_swap, -1, 2**63 - 1)
            if self.memory_swap > 0:
                if self.memory is None:
                    refuse("resources.memory_swap", "is given without memory")
                if self.memory_swap < self.memory:
                    refuse("resources.memory_swap", f"{self.memory_swap} is less than the memory, {self.memory}")
        if self.cpu_shares is not None:
            check.integer("resources.cpu_shares", self.cpu_shares, 2, 262144)
        if self.cpu_quota is not None and (type(self.cpu_quota) is not int or self.cpu_quota != -1):
            # sched_group_set_cfs_bandwidth: at least 1 ms, at most what 44 bits hold
            check.integer("resources.cpu_quota", self.cpu_quota, 1000, 2**44 - 1)
        if self.cpu_period is not None:
            check.integer("resources.cpu_period", self.cpu_period, 1000, 1000000)
        if self.pids_limit is not None and (type(self.pids_limit) is not int or self.pids_limit != -1):
            check.integer("resources.pids_limit", self.pids_limit, 1, 2**22)
        if self.cpuset_cpus is not None:
            check.cpuset("resources.cpuset_cpus", self.cpuset_cpus)
        if self.cpuset_mems is not None:
            check.cpuset("resources.cpuset_mems", self.cpuset_mems)
        if self.blkio_weight is not None:
            check.integer("resources.blkio_weight", self.blkio_weight, *_WEIGHTS)
        for name, (low, high) in _PER_DISK.items():
            _store_numbers(self, name, check.host_path, low, high)
        _store_numbers(self, "hugepage_limits", _page_size, 0, 2**63 - 1)
        if self.device_cgroup_rules is not None:
            from pycontainer.device import check_rule

            name = "resources.device_cgroup_rules"
            rules = tuple(check_rule(name, rule) for rule in check.items(name, self.device_cgroup_rules))
            store(self, "device_cgroup_rules", rules)


def _store_numbers(resources: Resources, name: str, key: Callable[[str, object], str], low: int, high: int) -> None:
    """Check and keep a mapping to numbers from *low* to *high*; where it limits, -1 is no limit."""
    field, given = f"resources.{name}", getattr(resources, name)
    if given is None:
        return
    if not isinstance(given, Mapping):
        refuse(field, f"must be a mapping, not {type(given).__name__}")
    numbers = {key(field, text): check.size(field, number) for text, number in given.items()}
    for number in numbers.values():
        if (low, high) == _WEIGHTS or type(number) is not int or number != -1:
            check.integer(field, number, low, high)
    store(resources, name, FrozenMapping(numbers))


def _page_size(field: str, value: object) -> str:
    return check.matching(field, value, _PAGE_SIZE)
