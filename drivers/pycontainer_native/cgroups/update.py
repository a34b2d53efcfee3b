"""New limits for a live cgroup: all of them, or none.

What a kernel refuses shows only when it is written, so the old values are
read first and written back after a refusal.  What it would *not* refuse, but
answer with its out-of-memory killer, is refused before.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from attrs import evolve, frozen

from pycontainer.errors import InvalidCommandError
from pycontainer_native.cgroups import usage, v1, v2
from pycontainer_native.cgroups.layout import Hierarchy
from pycontainer_native.cgroups.limits import PERIOD, Limits, impossible, refused
from pycontainer_native.cgroups.live import Cgroup

#: The field that a file's refusal is about.
FIELDS = {
    "memory.limit_in_bytes": "memory",
    "memory.max": "memory",
    "memory.memsw.limit_in_bytes": "memory_swap",
    "memory.swap.max": "memory_swap",
    "cpu.shares": "cpu_shares",
    "cpu.weight": "cpu_shares",
    "cpu.cfs_quota_us": "cpu_quota",
    "cpu.max": "cpu_quota",
    "cpu.cfs_period_us": "cpu_period",
    "cpuset.cpus": "cpuset_cpus",
    "cpuset.mems": "cpuset_mems",
    "pids.max": "pids_limit",
}


@frozen
class Place:
    """A controller's directory of the container."""

    version: int
    path: str
    controller: str

    def problems(self, limits: Limits) -> Iterator[tuple[str, str]]:
        """What a cgroup beside this one would be refused."""
        beside = Hierarchy(self.version, frozenset({self.controller}), "", os.path.dirname(self.path))
        return refused(limits, beside)
