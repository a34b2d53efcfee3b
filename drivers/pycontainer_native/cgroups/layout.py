"""Which cgroup hierarchies there are, and which groups of them a container is to be in.

Nothing here changes the host: what has to be made, enabled and written is
returned as data.  cgroups(7), Documentation/admin-guide/cgroup-v1 and
cgroup-v2.rst are the sources.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from attrs import evolve, frozen

from pycontainer.errors import InvalidCommandError
from pycontainer_native.cgroups import devices
from pycontainer_native.cgroups.limits import Limits, impossible, refused

#: A launcher's own directory in a hierarchy is ``<base>/pycontainer-<token>``, the token being 12 or more hex digits.
PREFIX = "pycontainer-"
LAUNCHER_DIRECTORY = re.compile(PREFIX + "[0-9a-f]{12,64}")

#: The counter's name in the file that :attr:`Group.oom_events` names.
OOM_KEY = "oom_kill"

#: Joined on v1 wherever they are: they limit, at the start or by an update, count, and tell of an out-of-memory kill.
JOINED = frozenset({"memory", "pids", "cpu", "cpuacct", "cpuset", "blkio"})
#: Enabled on cgroup2 wherever they are. The others wait until they are asked for: there a container that runs can still
#: get them, and cpu cannot be enabled while a real-time process runs below the root.
COUNTING = frozenset({"memory", "pids", "io"})
LIMITING = frozenset({"memory", "pids", "cpu", "cpuset"})


#: Where it has another name than on v1.
_ON_CGROUP2 = {"blkio": "io"}


@frozen
class Hierarchy:
    """A mounted cgroup hierarchy that the caller is in."""

    version: int
    #: v1: what is mounted together here. v2: what can be enabled for children of :attr:`base`.
    controllers: frozenset[str]
    mountpoint: str
    #: The directory below which launchers make theirs; see :func:`detect`.
    base: str
    #: Whether the caller may make cgroups below :attr:`base` (rootless, or a read-only mount: no).
    writable: bool = True


@frozen
class Group:
    """One cgroup of a container: the directory ``<base>/pycontainer-<token>/<id>``, as data for the launcher.

    In this order: make ``<base>/pycontainer-<token>`` and lock it (see
    :mod:`~pycontainer_native.cgroups.live`), enable :attr:`enable` in
    ``cgroup.subtree_control`` of the base and then of that directory, write
    :attr:`parent_writes` to that directory, make ``<id>`` and write
    :attr:`writes` there.  A process then joins v1 by writing "0" to ``tasks``
    and v2 by CLONE_INTO_CGROUP.
    """

    base: str
    version: int
    #: The controllers that act in this directory.
    controllers: tuple[str, ...]
    #: (file name, value) for the container's directory, in the order to write.
    writes: tuple[tuple[str, str], ...] = ()
    #: (file name, value) for the launcher's own directory. v1's cpuset has them: there a child may
    #: have only what its parent has, and a new cgroup has nothing unless told to take its parent's.
    parent_writes: tuple[tuple[str, str], ...] = ()
    #: v2: controllers to enable, as ``+name``, in the base and in the launcher's directory.
    enable: tuple[str, ...] = ()
    #: v1: as :attr:`writes`, to write before any process is inside: device rules are written one by one, and a process
    #: that made device nodes meanwhile would be denied what a later one allows.
    first_writes: tuple[tuple[str, str], ...] = ()
    #: v2: the program that is its device rules (bpf-helpers(7), BPF_PROG_TYPE_CGROUP_DEVICE), to attach to ``<id>``.
    device_program: bytes = b""
    #: The file of the container's directory whose line ``oom_kill N`` counts kills; "" where none does.
    oom_events: str = ""

    def directory(self, token: str) -> str:
        """The directory of the launcher that has *token*."""
        return f"{self.base}/{PREFIX}{token}"


@frozen
class Layout:
    """The host's cgroup hierarchies as the caller sees them, cgroup2 first. Compare, keep and pickle it freely."""

    hierarchies: tuple[Hierarchy, ...] = ()

    @property
    def mode(self) -> str:
        """``v1``, ``v2``, ``hybrid`` (v1's controllers and a cgroup2 beside them), or ``none``."""
        versions = {hierarchy.version for hierarchy in self.hierarchies}
        return {(): "none", (1,): "v1", (2,): "v2"}.get(tuple(sorted(versions)), "hybrid")

    def groups(self, resources: Mapping[str, Any], cgroup_parent: str | None = None) -> tuple[Group, ...]:
        """The groups of a container with these *resources* (``linux.resources`` of the OCI runtime spec).

        They are: the cgroup2 one always; memory, pids, cpu, cpuacct, cpuset
        and blkio wherever they are; freezer where no cgroup2 freezes; devices
        where there are rules, which cgroup2 has where no v1 does.
        *cgroup_parent* is a cgroup that exists: relative, below the
        hierarchy's base, absolute, below its mount.  A hierarchy that does not
        have it is used as without it; one at least must have it.

        Raises InvalidCommandError for a bad *cgroup_parent*, and for a limit
        whose controller is missing; :meth:`check` tells of all the others.
        """
        limits = Limits.of(resources)
        places = self.places(cgroup_parent)
        if missing := list(_missing(limits, places)):
            raise InvalidCommandError(*missing[0], missing[1:])
        usable = [place for place in places if place.writable]
        asked = _asked(limits)
        wanted = JOINED | asked | (set() if any(place.version == 2 for place in usable) else {"freezer"})
        joined = (place for place in usable if place.version == 2 or _joinable(place, asked) & wanted)
        by_program = not any("devices" in place.controllers for place in usable)
        return tuple(_group(place, limits, asked, by_program) for place in joined)

    def check(self, resources: Mapping[str, Any], cgroup_parent: str | None = None) -> list[tuple[str, str]]:
        """Every limit that this host cannot apply, as (the Command's field, the problem). Only reads."""
        limits = Limits.of(resources)
        try:
            places = self.places(cgroup_parent)
        except InvalidCommandError as error:
            return list(error.problems)
        asked = _asked(limits)
        problems = [*impossible(limits), *_missing(limits, places)]
        for place in places:
            if place.writable and place.controllers & asked:
                problems += refused(limits, place)
        if "devices" in asked and not problems and not any("devices" in place.controllers for place in places):
            problems += _without_programs(next(place for place in places if place.version == 2))
        return problems

    def places(self, cgroup_parent: str | None = None) -> tuple[Hierarchy, ...]:
        """The hierarchies, *cgroup_parent* being the base of those that have it. Raises InvalidCommandError."""
        if cgroup_parent is None:
            return self.hierarchies
        parts = [part for part in cgroup_parent.split("/") if part]
        if not parts or {".", ".."} & {*parts} or "\0" in cgroup_parent:
            raise InvalidCommandError("cgroup_parent", f"{cgroup_parent!r} must name a cgroup, without '.' and '..'")
        if any(LAUNCHER_DIRECTORY.fullmatch(part) for part in parts):
            raise InvalidCommandError("cgroup_parent", f"{cgroup_parent!r} belongs to a launcher, and ends with it")
        places = tuple(_moved(hierarchy, parts, cgroup_parent.startswith("/")) for hierarchy in self.hierarchies)
        if places == self.hierarchies:
            raise InvalidCommandError("cgroup_parent", f"there is no cgroup {cgroup_parent!r}: make it first")
        return places


def detect(mountinfo_text: str | None = None, cgroup_text: str | None = None) -> Layout:
    """The hierarchies that the caller is in and can see, from the texts of /proc/self/mountinfo and /proc/self/cgroup.

    A v1 hierarchy's base is the caller's own cgroup, so that a container is
    bound by its caller's limits.  On cgroup2 a cgroup that has processes
    cannot enable controllers for its children (cgroup-v2.rst, "No Internal
    Process Constraint"), and the caller is a process of its own: there the
    base is the nearest ancestor that can, which is the caller's own only if
    it is the root.  Limits above that ancestor bind the container, the
    caller's own do not; ``cgroup_parent`` names a better place.  Where the
    caller's cgroup has no controllers to hand on (a hybrid host), or where no
    ancestor in sight can (a container that sees only itself), the base is the
    caller's own, and its containers have no controllers of cgroup2.

    Ignored are named hierarchies (systemd's), mounts that another one hides
    (their device is not the one found there), and mounts of a part of the
    tree that the caller is not in.  Only reads; raises nothing when there is
    no cgroup at all.
    """
    try:
        mountinfo_text = _read("/proc/self/mountinfo") if mountinfo_text is None else mountinfo_text
        cgroup_text = _read("/proc/self/cgroup") if cgroup_text is None else cgroup_text
    except FileNotFoundError:  # no /proc, or a kernel without cgroups
        return Layout()
    own: dict[frozenset[str], str] = {}  # what is mounted together -> the caller's path; cgroup2 has no names
    for line in cgroup_text.splitlines():
        number, names, path = line.split(":", 2)
        controllers = frozenset(name for name in names.split(",") if name and not name.startswith("name="))
        if controllers or number == "0":
            own[controllers] = path

    found: dict[frozenset[str], Hierarchy] = {}
    for line in mountinfo_text.splitlines():
        # 41 31 0:38 /root /mount/point rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate  (proc_pid_mountinfo(5))
        mount, _, filesystem = line.partition(" - ")
        if not filesystem.startswith(("cgroup ", "cgroup2 ")):
            continue
        kind, _, options = filesystem.split(" ", 2)
        device, root, mountpoint = map(_unescape, mount.split(" ")[2:5])
        together: frozenset[str] | None = frozenset()
        if kind == "cgroup":
            together = next((names for names in own if names and names <= {*options.split(",")}), None)
        if together is None or together not in own:
            continue
        relative = _relative(own[together], root)
        if relative is None or not _on_device(mountpoint + relative, device):
            continue
        base, controllers, version = mountpoint + relative, together, 1
        if kind == "cgroup2":
            (base, controllers), version = _cgroup2_base(mountpoint, base), 2
        new = Hierarchy(version, controllers, mountpoint, base, _writable(version, base))
        if together not in found or (new.writable and not found[together].writable):
            found[together] = new
    return Layout(tuple(sorted(found.values(), key=lambda place: (-place.version, sorted(place.controllers)))))


def _moved(place: Hierarchy, parts: list[str], absolute: bool) -> Hierarchy:
    """*place* with the cgroup *parts* as its base, or unchanged when it has none."""
    base = place.mountpoint if absolute else place.base
    try:
        # A cgroup file system has neither symbolic links nor mounts inside: what looks like one is
        # not it, and must not be what limits a container.
        device = os.stat(base).st_dev
        for part in parts:
            base = f"{base}/{part}"
            found = os.lstat(base)
            if not stat.S_ISDIR(found.st_mode) or found.st_dev != device:
                raise InvalidCommandError("cgroup_parent", f"{base} is not a cgroup")
    except OSError:
        return place
    controllers = place.controllers
    if place.version == 2:
        controllers = _controllers(base) if _distributes(base) else frozenset()
    return evolve(place, base=base, controllers=controllers, writable=_writable(place.version, base))


def _asked(limits: Limits) -> set[str]:
    """The controllers that are needed, by both names of one that has two."""
    names = {*limits.needs().values()}
    return names | {_ON_CGROUP2[name] for name in names & _ON_CGROUP2.keys()}


def _missing(limits: Limits, places: Iterable[Hierarchy]) -> Iterator[tuple[str, str]]:
    for field, controller in limits.needs().items():
        having = [place for place in places if {controller, _ON_CGROUP2.get(controller)} & place.controllers]
        if controller == "devices" and not having:  # on cgroup2 it is no controller, but a kind of program
            having = [place for place in places if place.version == 2]
        if not having:
            below = [f"; nor can cgroup2 enable it below {place.base}" for place in places if place.version == 2]
            yield field, f"needs the cgroup controller {controller}, which no mounted hierarchy has{''.join(below)}"
        elif not having[0].writable:
            yield field, f"needs a cgroup below {having[0].base}, which is not writable"


def _without_programs(place: Hierarchy) -> Iterator[tuple[str, str]]:
    """Why a cgroup below *place* can have no device program: (field, why)."""
    from pycontainer_native import bpf

    directory = os.open(place.base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        bpf.attached(directory)
    except OSError as error:
        yield "devices", f"cgroup2 has no device rules here (CONFIG_CGROUP_BPF): {error.strerror}"
    finally:
        os.close(directory)


def _joinable(place: Hierarchy, asked: set[str]) -> frozenset[str]:
    """A v1 hierarchy's controllers; without cpuset, unless it is asked for, where the base has no CPUs to hand on."""
    if "cpuset" in place.controllers - asked and not all(_effective(place.base, kind) for kind in ("cpus", "mems")):
        return place.controllers - {"cpuset"}
    return place.controllers


def _effective(base: str, kind: str) -> str:
    return _read(f"{base}/cpuset.effective_{kind}").strip()


def _group(place: Hierarchy, limits: Limits, asked: set[str], by_program: bool) -> Group:
    writes: list[tuple[str, str]] = []
    if place.version == 2:
        enable = tuple(sorted(place.controllers & (COUNTING | asked)))
        if limits.any():
            from pycontainer_native.cgroups import v2

            writes = v2.writes(enable, limits, place.base)
        rules = b"" if limits.devices is None or not by_program else devices.program(limits.devices)
        oom_events = "memory.events" if "memory" in enable else ""
        return Group(place.base, 2, enable, tuple(writes), enable=enable, device_program=rules, oom_events=oom_events)
    controllers = tuple(sorted(place.controllers))
    parent_writes: list[tuple[str, str]] = []
    if limits.any():
        from pycontainer_native.cgroups import v1

        writes = v1.writes(controllers, limits, place.base)
    if "cpuset" in controllers:
        # A new cgroup has no CPUs and no memory nodes, and ENOSPC for who joins it, unless it clones its parent's.
        parent_writes.append(("cgroup.clone_children", "1"))
        parent_writes += ((f"cpuset.{kind}", _effective(place.base, kind)) for kind in ("cpus", "mems"))
    ruled = "devices" in controllers and limits.devices is not None
    first_writes = tuple(devices.first_writes(limits.devices or ())) if ruled else ()
    oom_events = "memory.oom_control" if "memory" in controllers else ""
    return Group(
        place.base,
        1,
        controllers,
        tuple(writes),
        tuple(parent_writes),
        first_writes=first_writes,
        oom_events=oom_events,
    )


def _cgroup2_base(mountpoint: str, own: str) -> tuple[str, frozenset[str]]:
    controllers = _controllers(own)
    if not controllers & LIMITING:
        return own, controllers if _distributes(own) else frozenset()
    place = own
    while not _distributes(place):
        if place == mountpoint:
            return own, frozenset()
        place = os.path.dirname(place)
    return place, _controllers(place)


def _distributes(directory: str) -> bool:
    """Whether a cgroup of cgroup2 can enable controllers for children: it is the root, or has no processes."""
    try:
        # Only the root has no cgroup.type. What is threaded has, or becomes, no ordinary children.
        if _read(directory + "/cgroup.type").strip() != "domain":
            return False
    except FileNotFoundError:
        return True
    return not _read(directory + "/cgroup.procs").strip()


def _controllers(directory: str) -> frozenset[str]:
    return frozenset(_read(directory + "/cgroup.controllers").split())


def _writable(version: int, base: str) -> bool:
    # To move a process on cgroup2 the common ancestor's cgroup.procs is needed too ("Delegation Containment").
    return os.access(base, os.W_OK | os.X_OK) and (version == 1 or os.access(base + "/cgroup.procs", os.W_OK))


def _relative(path: str, root: str) -> str | None:
    """*path*, the caller's cgroup, seen from a mount of the tree *root*: "" or "/...", or None when it is not inside.

    Both are relative to the cgroup namespace's root, and begin with ``/..`` where they are above it.
    """
    if root != "/":
        if path != root and not path.startswith(root + "/"):
            return None
        path = path[len(root) :]
    return None if ".." in path.split("/") else path.rstrip("/")


def _on_device(directory: str, device: str) -> bool:
    major, _, minor = device.partition(":")
    try:
        return os.stat(directory).st_dev == os.makedev(int(major), int(minor))
    except OSError:
        return False


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()
