"""The fake driver's receipts: what a driver that does all that was asked for would show, and that the fake declares."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from pycontainer.command import Command
from pycontainer.driver import Feature
from pycontainer.process import Process, Rlimit
from pycontainer.receipt import (
    CapabilitySets,
    EffectiveLimits,
    IdMap,
    Ids,
    MountPoint,
    Namespace,
    Receipt,
    SeccompState,
)
from pycontainer.spec import process_to_oci, to_oci

__all__ = ["simulated"]

_NAMES = {"mount": "mnt", "network": "net"}


def simulated(command: Command, process: Process, pid: int, features: Collection[Feature]) -> Receipt:
    """The receipt of *process* in a container of *command*."""
    spec, mine = to_oci(command), process_to_oci(process, command.rootfs)
    own = {_NAMES.get(space["type"], space["type"]) for space in spec["linux"]["namespaces"]}
    user, limits = mine["user"], command.resources
    filters = int(Feature.SECCOMP in features and "seccomp" in spec["linux"])
    quota = limits.cpu_quota if limits.cpu_quota != -1 else None
    maps = [
        tuple(IdMap(inside=row[0], outside=row[1], length=row[2]) for row in rows)
        for rows in (command.uid_mappings, command.gid_mappings)
    ]
    if not maps[0]:
        everybody = IdMap(inside=0, outside=0, length=2**32 - 1)
        chosen = IdMap(inside=0, outside=100000, length=65536)
        maps = [(everybody if command.userns is None else chosen,)] * 2
    uid, gid = _outside(user["uid"], maps[0]), _outside(user["gid"], maps[1])
    return Receipt(
        pid=pid,
        namespaces={
            name: Namespace(inode=pid if name in own else 1, own=name in own)
            for name in ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
        },
        capabilities=CapabilitySets(**{name: tuple(sorted(mine["capabilities"][name])) for name in _SETS}),
        seccomp=SeccompState(mode="filter" if filters else "disabled", filters=filters),
        no_new_privileges=mine["noNewPrivileges"],
        uid=Ids(**dict.fromkeys(_IDS, uid)),
        gid=Ids(**dict.fromkeys(_IDS, gid)),
        groups=tuple(_outside(group, maps[1]) for group in user["additionalGids"]),
        uid_map=maps[0],
        gid_map=maps[1],
        cgroups=(),
        limits=EffectiveLimits(
            memory=limits.memory,
            memory_swap=None if limits.memory_swap == -1 else limits.memory_swap,
            cpus=None if quota is None else quota / (limits.cpu_period or 100000),
            cpu_shares=limits.cpu_shares or 1024,
            pids=None if limits.pids_limit == -1 else limits.pids_limit,
            cpuset_cpus=command.cpu_affinity or limits.cpuset_cpus or "0",
            cpuset_mems=limits.cpuset_mems or "0",
        ),
        rlimits=tuple(Rlimit(limit.type, limit.soft, limit.hard) for limit in process.rlimits),
        mounts=tuple(_mounts(spec)),
        oom_score_adj=command.oom_score_adj or 0,
        label=command.selinux_label or (command.apparmor_profile and f"{command.apparmor_profile} (enforce)"),
    )


def _outside(id: int, rows: Iterable[IdMap]) -> int:
    """What it is on the host; the overflow id (user_namespaces(7)) where it is nobody."""
    return next((id - row.inside + row.outside for row in rows if 0 <= id - row.inside < row.length), 65534)


_SETS = ("effective", "permitted", "inheritable", "bounding", "ambient")
_IDS = ("real", "effective", "saved", "filesystem")


def _mounts(spec: Mapping[str, Any]) -> Iterator[MountPoint]:
    numbers = itertools.count(2)

    def mount(target: str, type: str, options: list[str], parent: int = 1) -> MountPoint:
        flags = {"ro" if option == "rro" else option for option in options if "=" not in option} | {"relatime"}
        given = [option for option in options if "=" in option]
        return MountPoint(
            id=next(numbers),
            parent=parent,
            root="/",
            target=target,
            type=type,
            source="fake",
            options=tuple(sorted(flags if "ro" in flags else flags | {"rw"})),
            super_options=("rw", *given),
        )

    read_only = "ro" if spec["root"]["readonly"] else "rw"
    yield MountPoint(
        id=1, parent=0, root="/", target="/", type="fake", source="fake", options=(read_only,), super_options=("rw",)
    )
    places = {"/": 1}
    for given in spec["mounts"]:
        target = given["destination"]
        on = max((p for p in places if target.startswith(f"{p.rstrip('/')}/") or target == p), key=len)
        made = mount(target, given["type"], given["options"], places[on])
        places[target] = made.id
        yield made
    for path, options in (
        *((path, []) for path in spec["linux"]["maskedPaths"]),
        *((path, ["ro"]) for path in spec["linux"]["readonlyPaths"]),
    ):
        on = max((p for p in places if path.startswith(f"{p.rstrip('/')}/")), key=len)
        yield mount(path, "proc" if options else "tmpfs", list(options), places[on])
