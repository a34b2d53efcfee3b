"""New limits for a live cgroup: all of them, or none.

What a kernel refuses shows only when it is written, so the old values are
read first and written back after a refusal.  What it would not refuse, but
answer with its out-of-memory killer, is refused before anything is written.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping

from attrs import asdict, evolve, frozen

from pycontainer.errors import InvalidCommandError, add_note
from pycontainer_native.cgroups import devices, usage, v1, v2
from pycontainer_native.cgroups.layout import Hierarchy
from pycontainer_native.cgroups.limits import PAGE_SIZE, PERIOD, Limits, controller_of, impossible, refused
from pycontainer_native.cgroups.live import Cgroup, write

#: The field that each file belongs to.
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
    "devices.allow": "device_cgroup_rules",
    "devices.deny": "device_cgroup_rules",
}

#: v1 compares each of the two with the other as it is at that moment. They are written in this order or the other.
PAIRS = (("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"), ("cpu.cfs_period_us", "cpu.cfs_quota_us"))


@frozen
class Write:
    """A value for the *file* of the directory *path*, and how it is undone."""

    path: str
    file: str
    value: str
    before: str
    undo: str  #: the file to write :attr:`before` to


@frozen
class Place:
    """The directory of a cgroup in the hierarchy of one controller."""

    version: int
    path: str


def update(cgroup: Cgroup, wanted: Limits) -> None:
    """Give *cgroup* the limits *wanted*; a None among them leaves that one as it is.

    Memory and swap together, where only the memory is wanted, become twice the
    memory if they were that, or nothing was limited, and else stay.

    Raises InvalidCommandError with the fields of what is refused, after which
    every limit is as it was; OSError (ENODEV, ENOENT) when the cgroup is gone.
    """
    places = _places(cgroup)
    limits = _complete(wanted, places)
    problems = [*impossible(limits), *_in_use(limits, wanted, places)]
    if not problems:
        problems = [*_enabled(wanted, places, cgroup)]
    if not problems:
        problems = [problem for name, place in places.items() for problem in refused(limits, _beside(name, place))]
    if problems:
        raise InvalidCommandError(*problems[0], problems[1:])
    writes = [*_writes(limits, wanted, places), *_rule_writes(wanted, places)]
    unified = next((path for version, _, path in cgroup.paths if version == 2), None)
    _write_all(writes)
    if wanted.devices is not None and "devices" not in places and unified is not None:
        try:
            devices.replace(unified, wanted.devices)
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.ENOENT):
                raise
            problem = f"the kernel refuses a program for them: {error.strerror}"
            refusal = InvalidCommandError("resources.device_cgroup_rules", problem)
            _undo(writes, refusal)
            raise refusal from None


def _places(cgroup: Cgroup) -> dict[str, Place]:
    """By controller. On cgroup2 those may be more than at the start: an update enables what it needs."""
    places = {}
    for version, controllers, path in cgroup.paths:
        for name in controllers if version == 1 else _read(f"{path}/cgroup.controllers").split():
            places[name] = Place(version, path)
    return places


def _beside(controller: str, place: Place) -> Hierarchy:
    """Where a cgroup like this one is: what is refused there is refused here."""
    return Hierarchy(place.version, frozenset({controller}), "", os.path.dirname(place.path))


def _complete(wanted: Limits, places: Mapping[str, Place]) -> Limits:
    """*wanted*, with the present value of what it is to be seen together with."""
    limits = wanted
    if (wanted.memory, wanted.memory_swap) != (None, None) and "memory" in places:
        old, together = _memory_limits(places["memory"])
        memory = old if wanted.memory is None else wanted.memory
        # v1 rounds each of them to pages.
        follows = together is not None and (together == -1 if old == -1 else abs(together - 2 * old) <= PAGE_SIZE)
        if wanted.memory_swap == 0 or (wanted.memory_swap is None and follows):
            together = -1 if memory == -1 else 2 * memory
        elif wanted.memory_swap is not None:
            together = wanted.memory_swap
        limits = evolve(limits, memory=memory, memory_swap=together)
    if (wanted.cpu_quota, wanted.cpu_period) != (None, None):
        quota, period = _bandwidth(places["cpu"]) if "cpu" in places else (-1, PERIOD)
        limits = evolve(
            limits,
            cpu_quota=quota if wanted.cpu_quota is None else wanted.cpu_quota,
            cpu_period=wanted.cpu_period or period,
        )
    return limits


def _memory_limits(place: Place) -> tuple[int, int | None]:
    """(memory, memory and swap together), -1 being unlimited; None where the kernel does not account swap."""
    if place.version == 1:
        memory = v1.Memory(place.path)
        together = memory.memsw_limit_in_bytes if v1.accounts_swap(place.path) else None
        limit = memory.limit_in_bytes
        return tuple(-1 if n is not None and n >= usage.V1_UNLIMITED else n for n in (limit, together))  # type: ignore[return-value]
    record = v2.Memory(place.path)
    if not v2.accounts_swap(place.path):
        return record.max or -1, None
    swap = record.swap_max
    return (-1, -1) if record.max is None else (record.max, -1 if swap is None else record.max + swap)


def _bandwidth(place: Place) -> tuple[int, int]:
    """(quota, period) in microseconds, -1 being unlimited."""
    if place.version == 1:
        cpu = v1.Cpu(place.path)
        quota, period = cpu.cfs_quota_us, cpu.cfs_period_us
    else:
        quota, period = v2.Cpu(place.path).max
    return -1 if quota is None else quota, period


def _in_use(limits: Limits, wanted: Limits, places: Mapping[str, Place]) -> Iterator[tuple[str, str]]:
    """Limits of memory that are below what is used already: v1 answers them with EBUSY, cgroup2 kills."""
    if (wanted.memory, wanted.memory_swap) == (None, None) or "memory" not in places:
        return
    memory, swap = usage.memory_used(places["memory"].version, places["memory"].path)
    if limits.memory is not None and -1 != limits.memory < memory:
        yield "resources.memory", f"{limits.memory} is less than the {memory} bytes in use"
    if limits.memory_swap is not None and -1 != limits.memory_swap < memory + swap:
        yield "resources.memory_swap", f"{limits.memory_swap} is less than the {memory + swap} bytes in use"


def _enabled(wanted: Limits, places: dict[str, Place], cgroup: Cgroup) -> Iterator[tuple[str, str]]:
    """What cannot be limited for want of a controller. Those of cgroup2 are enabled now, and added to *places*."""
    unified = next((path for version, _, path in cgroup.paths if version == 2), None)
    for field, controller in wanted.needs().items():
        # Rules are not given to who was started without, so there is a place for them.
        if controller in places or controller == "devices":
            continue
        problem = f"needs the cgroup controller {controller}, which this container is not in"
        launcher = os.path.dirname(unified or "")
        base = os.path.dirname(launcher)
        if unified is None or controller not in _read(f"{base}/cgroup.controllers").split():
            yield field, problem
            continue
        try:
            for directory in (base, launcher):
                write(f"{directory}/cgroup.subtree_control", f"+{controller}")
        except OSError as error:
            yield field, f"{problem}, and which cannot be enabled below {base}: {error.strerror}"
            continue
        places[controller] = Place(2, unified)


def _rule_writes(wanted: Limits, places: Mapping[str, Place]) -> Iterator[Write]:
    """Of v1's device lists only what changes."""
    if wanted.devices is not None and "devices" in places:
        path = places["devices"].path
        for file, line, undo in devices.changes(_read(f"{path}/devices.list"), wanted.devices):
            yield Write(path, file, line, line, undo)


def _writes(limits: Limits, wanted: Limits, places: Mapping[str, Place]) -> Iterator[Write]:
    """What to write, in an order in which no step in between is refused."""
    asked = {controller_of(name) for name, value in asdict(wanted).items() if value not in (None, ())} - {"devices"}
    for controller, place in places.items():
        if controller not in asked:
            continue
        writes = (v1 if place.version == 1 else v2).writes({controller}, limits, place.path)
        present = {file: _read(f"{place.path}/{file}") for file, _ in writes}
        for first, second in PAIRS:
            if first in present and second in present and _is_reversed(first, limits, present):
                here, there = ([file for file, _ in writes].index(file) for file in (first, second))
                writes[here], writes[there] = writes[there], writes[here]
        for file, value in writes:
            if value != present[file]:
                # An empty cpuset: writing nothing does nothing.
                yield Write(place.path, file, value, present[file] or "\n", file)


def _is_reversed(first: str, limits: Limits, present: Mapping[str, str]) -> bool:
    if first == "cpu.cfs_period_us":
        # A shorter period with the old quota could be more CPUs than the parent has.
        return (limits.cpu_period or 0) < int(present[first])
    # memsw may never be below the memory.
    return limits.memory_swap == -1 or (limits.memory_swap or 0) >= int(present[first])


def _write_all(writes: list[Write]) -> None:
    for done, step in enumerate(writes):
        try:
            write(f"{step.path}/{step.file}", step.value)
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.ENOENT):
                raise
            problem = f"the kernel refuses {step.value} in {step.file}: {error.strerror}"
            refusal = InvalidCommandError(f"resources.{FIELDS[step.file]}", problem)
            _undo(writes[:done], refusal)
            raise refusal from None


def _undo(writes: list[Write], refusal: InvalidCommandError) -> None:
    for step in reversed(writes):
        try:
            write(f"{step.path}/{step.undo}", step.before)
        except OSError as failure:
            before = step.before.strip()
            add_note(refusal, f"{step.undo} could not be set back to {before}: {failure.strerror}")


def _read(path: str) -> str:
    with open(path) as file:
        return file.read().strip()
