"""Where LXC puts a container's cgroups, and the limits and counters in them: cgroups(7), cgroup-v1, cgroup-v2.rst."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pycontainer.errors import InvalidCommandError

__all__ = [
    "UNLIMITED",
    "bases",
    "is_limited",
    "limits",
    "missing",
    "payload",
    "pids",
    "read",
    "read_pairs",
    "update",
    "version",
    "write",
]

#: v1 has no "unlimited": it is the largest number of whole pages.
UNLIMITED = 2**62

#: The Command's field of each limit, and its controller.
CONTROLLERS = {
    "resources.memory": "memory",
    "resources.memory_swap": "memory",
    "resources.cpu_shares": "cpu",
    "resources.cpu_quota": "cpu",
    "resources.cpu_period": "cpu",
    "resources.cpuset_cpus": "cpuset",
    "resources.cpuset_mems": "cpuset",
    "resources.pids_limit": "pids",
}

#: As native's: with 16 KiB lxc-start hangs, with 512 KiB it works.
MEMORY_MIN = 2 << 20

_MEMSW = "memory.memsw.limit_in_bytes"


def bases() -> dict[str, str]:
    """The caller's own cgroup in each mounted hierarchy, by controller; cgroup2's is called "".

    LXC makes its cgroups below these with ``lxc.cgroup.relative``, so that
    what limits the caller limits its containers.
    """
    own: dict[str, str] = {}
    for line in read("/proc/self/cgroup").splitlines():
        _, names, path = line.split(":", 2)
        own.update(dict.fromkeys(names.split(","), path))
    found: dict[str, str] = {}
    for line in read("/proc/self/mountinfo").splitlines():
        mount, _, filesystem = line.partition(" - ")
        kind, _, options = filesystem.split(" ", 2)
        if kind not in ("cgroup", "cgroup2"):
            continue
        root, mountpoint = (_unescape(text) for text in mount.split(" ")[3:5])
        for name in [""] if kind == "cgroup2" else options.split(","):
            path = own.get(name, "")
            if not path or (root != "/" and not (path + "/").startswith(root + "/")):
                continue
            found[name] = mountpoint + (path if root == "/" else path[len(root) :]).rstrip("/")
    return found


def payload(directory: str, id: str, where: Mapping[str, str]) -> str:
    """The cgroup of container *id*, below *directory*, which is its guard's.

    On cgroup2 it is in one of its own that LXC knows nothing of, and that
    counts what happened in it when LXC has removed it (memory.events,
    cgroup-v2.rst).  A counter of v1 counts for its cgroup alone.
    """
    return f"{directory}/payload.{id}" if "memory" in where else f"{directory}/of.{id}/payload.{id}"


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def read(path: str) -> str:
    """The text of a file of the kernel's."""
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def write(path: str, value: str) -> None:
    """Write *value* to a control file, in one write. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode())
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(descriptor)


def read_pairs(path: str) -> dict[str, int]:
    """The lines ``name number`` of a control file; nothing where there is no such file."""
    try:
        lines = [line.split() for line in read(path).splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in lines if len(line) == 2 and line[1].isdigit()}


def version(controller: str, where: Mapping[str, str]) -> int:
    """The hierarchy that has *controller*: 1, 2, or 0 where none has."""
    if controller in where:
        return 1
    if "" in where:
        # Asked of the root, for what is not handed down yet LXC enables.
        directory = where[""]
        while not os.path.exists(f"{directory}/cgroup.controllers"):
            directory = os.path.dirname(directory)
        return 2 if controller in read(f"{directory}/cgroup.controllers").split() else 0
    return 0


def accounts_swap(where: Mapping[str, str]) -> bool:
    """Whether the kernel limits memory and swap together."""
    return "memory" not in where or os.path.exists(f"{where['memory']}/{_MEMSW}")


def is_limited(directory: str) -> bool:
    """Whether the memory of what is in this cgroup of v1 has a limit, of its own or of those above, seen from here."""
    limit = read(f"{directory}/memory.stat").partition("\nhierarchical_memory_limit ")[2].partition("\n")[0]
    return not limit or int(limit) < UNLIMITED


def missing(resources: Mapping[str, Any], where: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """What of ``linux.resources`` this host cannot apply, as (field, problem)."""
    for field, value in _asked(resources).items():
        controller = CONTROLLERS[field]
        if value not in (None, -1) and not version(controller, where):
            yield field, f"needs the cgroup controller {controller}, which no mounted hierarchy has"
    memory = resources.get("memory", {})
    swap, limit = memory.get("swap"), memory.get("limit")
    if swap not in (None, -1) and swap != 2 * (limit or 0) and not accounts_swap(where):
        yield "resources.memory_swap", "the kernel does not account swap (booted without swapaccount=1)"
    for name in ("cpus", "mems"):
        wanted, had = resources.get("cpu", {}).get(name), effective(name, where)
        if wanted and had and (excess := _numbers(wanted) - _numbers(had)):
            yield f"resources.cpuset_{name}", f"{min(excess)} is not among the caller's own, {had}"


def effective(kind: str, where: Mapping[str, str]) -> str:
    """The "cpus" or the "mems" that the caller's own cgroup may use, "" where nobody says."""
    v1 = "cpuset" in where
    name, directory = f"cpuset.effective_{kind}" if v1 else f"cpuset.{kind}.effective", where.get("cpuset" * v1, "")
    while directory:  # of cgroup2 it may be one above, where the controller is not handed down
        with contextlib.suppress(OSError):
            return read(f"{directory}/{name}").strip()
        directory = directory.rpartition("/")[0]
    return ""


def _numbers(text: str) -> set[int]:
    """The set that ``0-3,5`` stands for."""
    ends = (part.partition("-") for part in text.split(","))
    return {number for first, _, last in ends for number in range(int(first), int(last or first) + 1)}


def _asked(resources: Mapping[str, Any]) -> dict[str, int | str | None]:
    memory, cpu, pids_ = (resources.get(name, {}) for name in ("memory", "cpu", "pids"))
    return {
        "resources.memory": memory.get("limit"),
        "resources.memory_swap": memory.get("swap"),
        "resources.cpu_shares": cpu.get("shares"),
        "resources.cpu_quota": cpu.get("quota"),
        "resources.cpu_period": cpu.get("period"),
        "resources.cpuset_cpus": cpu.get("cpus"),
        "resources.cpuset_mems": cpu.get("mems"),
        "resources.pids_limit": pids_.get("limit"),
    }


def limits(resources: Mapping[str, Any], where: Mapping[str, str]) -> Iterator[tuple[str, str, str, str]]:
    """The control files that ``linux.resources`` of the OCI runtime spec sets: (field, controller, file, value).

    In the order in which they have to be written to a new cgroup.
    """
    asked = {field: value for field, value in _asked(resources).items() if value is not None}
    for field, value in asked.items():
        controller = CONTROLLERS[field]
        kind = version(controller, where)
        if kind == 1:
            name = _V1[field]
            if field == "resources.memory_swap" and not accounts_swap(where):
                continue
            yield field, controller, name, "max" if field == "resources.pids_limit" and value == -1 else str(value)
        elif kind == 2:
            yield from _v2(field, value, asked)


_V1 = {
    "resources.memory": "memory.limit_in_bytes",
    "resources.memory_swap": _MEMSW,
    "resources.cpu_shares": "cpu.shares",
    "resources.cpu_quota": "cpu.cfs_quota_us",
    "resources.cpu_period": "cpu.cfs_period_us",
    "resources.cpuset_cpus": "cpuset.cpus",
    "resources.cpuset_mems": "cpuset.mems",
    "resources.pids_limit": "pids.max",
}


def _v2(field: str, value: Any, asked: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    controller = CONTROLLERS[field]
    text = "max" if value == -1 else str(value)
    if field == "resources.memory":
        yield field, controller, "memory.max", text
    elif field == "resources.memory_swap":
        # memory and swap together there, swap alone here
        limit = asked.get("resources.memory")
        yield field, controller, "memory.swap.max", text if value == -1 or limit is None else str(value - limit)
    elif field == "resources.cpu_shares":
        # runc's conversion: 2..262144 to 1..10000
        yield field, controller, "cpu.weight", str(1 + (value - 2) * 9999 // 262142)
    elif field == "resources.cpu_quota" or (field == "resources.cpu_period" and "resources.cpu_quota" not in asked):
        quota, period = asked.get("resources.cpu_quota", -1), asked.get("resources.cpu_period")
        yield field, controller, "cpu.max", ("max" if quota == -1 else str(quota)) + (f" {period}" if period else "")
    elif field.startswith("resources.cpuset_"):
        yield field, controller, field.replace("resources.cpuset_", "cpuset."), text
    elif field == "resources.pids_limit":
        yield field, controller, "pids.max", text


def pids(directory: str) -> list[int]:
    """The processes of a cgroup and of those below it (lxc-attach makes ``.lxc`` on cgroup2)."""
    found: set[int] = set()
    for path, _, _ in os.walk(directory):
        try:
            found.update(map(int, read(f"{path}/cgroup.procs").split()))
        except OSError:
            continue  # it went away meanwhile
    return sorted(found - {0})


def let_die(directories: Mapping[str, str]) -> None:
    """Thaw a container that a SIGKILL was sent to: what v1 has frozen takes none, what cgroup2 has does."""
    if "freezer" in directories:
        with contextlib.suppress(OSError):  # it is gone already
            write(f"{directories['freezer']}/freezer.state", "THAWED")


def update(resources: Mapping[str, Any], where: Mapping[str, str], directories: Mapping[str, str]) -> None:
    """Write the limits of a live container; when one is refused, all are as they were.

    Raises InvalidCommandError for that one.
    """
    writes = [
        (field, f"{directories[controller if controller in directories else '']}/{name}", value)
        for field, controller, name, value in limits(resources, where)
    ]
    # A limit of memory may not pass the one of memory and swap together, at no time.
    names = [field for field, _, _ in writes]
    if "resources.memory" in names and "resources.memory_swap" in names:
        memory, swap = names.index("resources.memory"), names.index("resources.memory_swap")
        now = read(writes[swap][1]).strip()
        if now.isdigit() and int(writes[memory][2]) > int(now):
            writes[memory], writes[swap] = writes[swap], writes[memory]
    done: list[tuple[str, str]] = []
    for field, path, value in writes:
        try:
            before = read(path).strip()
            write(path, value)
        except OSError as error:
            for undone, old in reversed(done):
                with contextlib.suppress(OSError):
                    write(undone, old)
            raise InvalidCommandError(field, f"{value} cannot be applied: {error.strerror}") from error
        done.append((path, before))
