"""What a Command asks for against what a receipt says holds: :meth:`pycontainer.receipt.Receipt.differences`."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from types import NoneType
from typing import TYPE_CHECKING, Any

from pycontainer import _fields as check
from pycontainer.receipt import Difference
from pycontainer.rootfs import HostView, open_in_rootfs
from pycontainer.spec import to_oci

if TYPE_CHECKING:
    from pycontainer.command import Command
    from pycontainer.receipt import IdMap, MountPoint, Receipt

#: OCI's names of namespaces and the kernel's.
_NAMESPACES = {"mount": "mnt", "network": "net"}
#: Options whose absence makes a mount weaker, and which mountinfo shows as they are given.
_FLAGS = frozenset({"ro", "nosuid", "nodev", "noexec", "noatime", "nodiratime"})


def differences(found: Receipt, command: Command) -> Iterator[Difference]:
    """Everything in which *found* is not what *command* asks for."""
    spec = to_oci(command)
    yield from _namespaces(found, spec)
    yield from _rights(found, spec)
    yield from _ids(found, spec["process"]["user"])
    yield from _limits(found, command)
    yield from _mounts(found, spec)
    yield from _paths(found, command, spec["linux"])


def _namespaces(found: Receipt, spec: Mapping[str, Any]) -> Iterator[Difference]:
    spaces = {_NAMESPACES.get(space["type"], space["type"]): space.get("path") for space in spec["linux"]["namespaces"]}
    wanted = [name for name, path in spaces.items() if path is None]
    for name, space in found.namespaces.items():
        if name in spaces and name not in wanted:
            continue  # one that exists already: by now its path may lead to another one
        own = name in wanted
        # A user namespace more than asked for is how a driver runs without root; time's has no field.
        if space.own is not own and (own or name not in ("user", "time")):
            yield Difference(f"namespaces.{name}", _whose(own), _whose(space.own))


def _whose(own: bool) -> str:
    return "its own" if own else "the caller's"


def _rights(found: Receipt, spec: Mapping[str, Any]) -> Iterator[Difference]:
    process = spec["process"]
    for name, wanted in process["capabilities"].items():
        held = list(getattr(found.capabilities, name))
        if sorted(wanted) != held:
            yield Difference(f"process.capabilities.{name}", sorted(wanted), held)
    if found.no_new_privileges is not process["noNewPrivileges"]:
        yield Difference("process.no_new_privileges", process["noNewPrivileges"], found.no_new_privileges)
    seccomp = found.seccomp
    filtered = seccomp.mode == "filter" and seccomp.filters > seccomp.inherited
    wanted = "seccomp" in spec["linux"]
    if filtered is not wanted:
        of_others = f", {seccomp.inherited} of its caller's" if seccomp.inherited else ""
        yield Difference("seccomp", "filter" if wanted else "disabled", f"{seccomp.mode}{of_others}")
    for field, key in (("apparmor_profile", "apparmorProfile"), ("selinux_label", "selinuxLabel")):
        # AppArmor says its mode as well: "name (enforce)".
        label = found.label or ""
        if process.get(key) not in (None, label, label.rpartition(" (")[0]):
            yield Difference(field, process[key], found.label)
    rlimits = {limit.type: [limit.soft, limit.hard] for limit in found.rlimits}
    for limit in process["rlimits"]:
        asked_for = [-1 if limit[key] == 2**64 - 1 else limit[key] for key in ("soft", "hard")]
        if rlimits.get(limit["type"]) != asked_for:
            yield Difference(f"process.rlimits.{limit['type']}", asked_for, rlimits.get(limit["type"]))


def _ids(found: Receipt, user: Mapping[str, Any]) -> Iterator[Difference]:
    for name, seen, wanted, maps in (
        ("process.user", found.uid, user["uid"], found.uid_map),
        ("process.group", found.gid, user["gid"], found.gid_map),
    ):
        inside = [_inside(id, maps) for id in (seen.real, seen.effective, seen.saved, seen.filesystem)]
        if set(inside) != {wanted}:
            yield Difference(name, wanted, inside)
    # Whether the group itself is among the supplementary ones makes no difference to the kernel.
    groups = sorted({_inside(gid, found.gid_map) for gid in found.groups} - {user["gid"]})
    asked = sorted(set(user["additionalGids"]) - {user["gid"]})
    if groups != asked:
        yield Difference("process.additional_groups", asked, groups)


def _inside(id: int, maps: Iterable[IdMap]) -> int:
    """What an id of ours is in the container; -1 for one that it has no name for."""
    for entry in maps:
        if entry.outside <= id < entry.outside + entry.length:
            return id - entry.outside + entry.inside
    return -1


# -- limits


def _limits(found: Receipt, command: Command) -> Iterator[Difference]:
    asked, limits = command.resources, found.limits
    if asked.memory is not None and limits.memory != asked.memory // check.PAGE * check.PAGE:
        yield Difference("resources.memory", asked.memory, limits.memory)
    if asked.memory_swap:
        swap = None if asked.memory_swap == -1 else asked.memory_swap // check.PAGE * check.PAGE
        if limits.memory_swap != swap:
            yield Difference("resources.memory_swap", asked.memory_swap, limits.memory_swap)
    if asked.pids_limit is not None:
        pids = None if asked.pids_limit == -1 else asked.pids_limit
        if limits.pids != pids:
            yield Difference("resources.pids_limit", asked.pids_limit, limits.pids)
    if asked.cpu_quota is not None:
        cpus = None if asked.cpu_quota == -1 else asked.cpu_quota / (asked.cpu_period or 100000)
        if limits.cpus != cpus:
            yield Difference("resources.cpu_quota", cpus, limits.cpus)
    if asked.cpu_shares is not None and limits.cpu_shares != asked.cpu_shares:
        if limits.cpu_weight is None:
            yield Difference("resources.cpu_shares", asked.cpu_shares, limits.cpu_shares)
        elif limits.cpu_weight not in _weights(asked.cpu_shares):
            yield Difference("resources.cpu_shares", list(_weights(asked.cpu_shares)), limits.cpu_weight)
    for name, wanted, seen in (
        ("resources.cpuset_mems", asked.cpuset_mems, limits.cpuset_mems),
        # What the scheduler goes by is where both allow it.
        ("resources.cpuset_cpus", None if command.cpu_affinity else asked.cpuset_cpus, limits.cpuset_cpus),
        ("cpu_affinity", command.cpu_affinity, limits.cpuset_cpus),
    ):
        if wanted is not None and _members(wanted) != _members(seen):
            yield Difference(name, wanted, seen)
    if found.oom_score_adj != (command.oom_score_adj or 0):
        yield Difference("oom_score_adj", command.oom_score_adj or 0, found.oom_score_adj)


def _weights(shares: int) -> tuple[int, int]:
    """The two ways in which runtimes make cgroup2's cpu.weight of v1's cpu.shares: since runc 1.3.2, and before."""
    power = math.log2(shares)
    curve = math.ceil(round(10 ** ((power * power + 125 * power) / 612 - 7 / 34), 9))
    return curve, 1 + (shares - 2) * 9999 // 262142


def _members(text: str) -> set[int]:
    members: set[int] = set()
    for item in filter(None, text.split(",")):
        first, _, last = item.partition("-")
        members.update(range(int(first), int(last or first) + 1))
    return members


# -- mounts


def _mounts(found: Receipt, spec: Mapping[str, Any]) -> Iterator[Difference]:
    if spec["root"]["readonly"] and not found.read_only:
        yield Difference("read_only", True, False)
    wanted = {mount["destination"]: mount for mount in spec["mounts"]}  # the last one is on top
    for target, mount in wanted.items():
        seen = found.covering(target)
        if seen.target != target or (mount["type"] not in ("bind", seen.type)):
            yield Difference(f"mounts.{target}", mount["type"], seen.type if seen.target == target else None)
            continue
        options = set(mount["options"])
        flags = options & _FLAGS | ({"ro"} if "rro" in options else set())
        missing = sorted(flag for flag in flags if not _has(seen, flag))
        if missing:
            yield Difference(f"mounts.{target}", sorted(flags), sorted(seen.options))
        if "rro" in options:
            for below in found.mounts:
                if below.target.startswith(f"{target}/") and not below.read_only and below.target not in wanted:
                    yield Difference(f"mounts.{target}", "read-only", f"{below.target} is not")
        if mount["type"] == "tmpfs":
            yield from _size(target, options, set(seen.super_options))


def _has(mount: MountPoint, flag: str) -> bool:
    return mount.read_only if flag == "ro" else flag in mount.options


def _size(target: str, asked: set[str], found: set[str]) -> Iterator[Difference]:
    sizes = [next((_bytes(o[5:]) for o in options if o.startswith("size=")), None) for options in (asked, found)]
    if sizes[0] is not None and (sizes[1] is None or not 0 <= sizes[1] - sizes[0] < check.PAGE):
        yield Difference(f"mounts.{target}.size", *sizes)


def _bytes(text: str) -> int:
    return int(text[:-1]) << 10 if text.endswith("k") else int(text)


def _paths(found: Receipt, command: Command, linux: Mapping[str, Any]) -> Iterator[Difference]:
    for path in linux["maskedPaths"]:
        if _exists(found, command, path) and not is_hidden(found, path):
            yield Difference("masked_paths", path, f"{found.covering(path).type} on {found.covering(path).target}")
    for path in linux["readonlyPaths"]:
        if _exists(found, command, path) and not found.covering(path).read_only:
            yield Difference("readonly_paths", path, ",".join(found.covering(path).options))


def is_hidden(found: Receipt, path: str) -> bool:
    """Whether something else is mounted over *path*, or over what it is in."""
    seen, kernel = found.covering(path), _kernel(path)
    return seen.type != kernel if kernel is not None else seen.target == path


def _kernel(path: str) -> str | None:
    """The file system that shows *path*, where it is the kernel's own."""
    return {"/proc": "proc", "/sys": "sysfs"}.get("/" + path.split("/")[1])


def _exists(found: Receipt, command: Command, path: str) -> bool:
    """Whether there is anything to hide. What looks into the container would act on paths that are the payload's."""
    if _kernel(path) is not None:
        return os.path.lexists(path)
    if found.covering(path).target != "/":
        return True
    if not isinstance(command.rootfs, (str, HostView, NoneType)):
        return True
    try:
        os.close(open_in_rootfs(command.rootfs if isinstance(command.rootfs, str) else "/", path))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # a directory, for example
    return True
