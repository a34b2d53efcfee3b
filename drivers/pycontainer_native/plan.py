"""Compiling an OCI runtime spec into a plan: the flat list of system calls that makes the container.

A plan is data.  It can be printed (``pycontainer explain``), compared in a
test without root, and sent to the launcher, whose child makes the calls one
after the other and then is the payload.

The order is the kernel's, not taste: each step stands where it does because an
earlier or later place fails or opens a hole; the comments say which.
"""

from __future__ import annotations

import errno
import json
import marshal
import os
import stat
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import evolve, field, frozen

from pycontainer.errors import InvalidCommandError
from pycontainer.process import capability_numbers
from pycontainer.seccomp_filter import compile_filter
from pycontainer.sysctl import path_of
from pycontainer_native import abi, capabilities, mounts, trees
from pycontainer_native.syscalls import Recorder, Slot, Step
from pycontainer_native.userns import UserNamespace, id_map, is_initial, of_ordinary_user, outside

if TYPE_CHECKING:
    from pycontainer.seccomp_filter import Filter
    from pycontainer_native.cgroups import Group

ROOTFS_ANNOTATION = "org.pycontainer.rootfs"
OVERLAY_ANNOTATION = "org.pycontainer.overlay"
NAMESPACES_ANNOTATION = "org.pycontainer.namespaces"
INIT_ANNOTATION = "org.pycontainer.init"
ETC_ANNOTATION = "org.pycontainer.etc"
NETWORK_ANNOTATION = "org.pycontainer.network"

_NAMESPACES = {
    "mount": abi.CLONE_NEWNS,
    "cgroup": abi.CLONE_NEWCGROUP,
    "user": abi.CLONE_NEWUSER,
    "uts": abi.CLONE_NEWUTS,
    "ipc": abi.CLONE_NEWIPC,
    "pid": abi.CLONE_NEWPID,
    "network": abi.CLONE_NEWNET,
}

_DEVICE_TYPES = {"c": stat.S_IFCHR, "b": stat.S_IFBLK}

# getrlimit(2): asm-generic/resource.h
_RLIMITS = {
    f"RLIMIT_{name}": number
    for number, name in enumerate(
        (
            *("CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE"),
            *("MEMLOCK", "AS", "LOCKS", "SIGPENDING", "MSGQUEUE", "NICE", "RTPRIO", "RTTIME"),
        )
    )
}
_NOFILE = _RLIMITS["RLIMIT_NOFILE"]
RLIM_NLIMITS = len(_RLIMITS)

#: SIOCSIFFLAGS on "lo": struct ifreq with the flags set.
_LOOPBACK_UP = struct.pack("=16sH22x", b"lo", abi.IFF_UP | abi.IFF_RUNNING)


#: The ids of a user namespace that the caller is in, and did not make: the kernel knows them.
_EVERYBODY = UserNamespace(((0, 0, 0xFFFFFFFF),), ((0, 0, 0xFFFFFFFF),))


def _host_capabilities() -> int:
    with open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith(b"CapPrm:"):
                return int(line.split()[1], 16)
    return 0


def _last_capability() -> int:
    with open("/proc/sys/kernel/cap_last_cap", "rb") as file:
        return int(file.read())


def _nofile() -> tuple[int, int]:
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)


def _read_only(path: str) -> bool:
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


@frozen(kw_only=True)
class Host:
    """What a plan has to know about the host. A test may state it instead of looking."""

    capabilities: int = field(factory=_host_capabilities)  #: what the launcher has, as a bit set
    last_capability: int = field(factory=_last_capability)  #: the kernel's highest
    nofile: tuple[int, int] = field(factory=_nofile)  #: the caller's RLIMIT_NOFILE, which the launcher raises
    #: (number, soft, hard) of the caller's other limits, where the launcher has not inherited the same
    rlimits: tuple[tuple[int, int, int], ...] = ()
    is_directory: Callable[[str], bool] = os.path.isdir
    is_read_only: Callable[[str], bool] = _read_only
    #: The user namespace that the launcher makes for itself, where an ordinary user started it.
    namespace: UserNamespace | None = None
    #: Whether the launcher has the rights of the first user namespace: over devices, and over the file systems there.
    initial: bool = True

    def inside(self, ids: UserNamespace) -> Host:
        """It as a container in a user namespace of its own sees it, whose root has every capability over it."""
        everything = (2 << self.last_capability) - 1
        return evolve(self, namespace=ids, initial=False, capabilities=everything)

    @classmethod
    def of_caller(cls) -> Host:
        """That of this process: for an ordinary user, as it is inside the user namespace that he can have."""
        if os.geteuid() == 0:
            return cls(initial=is_initial())
        last = _last_capability()
        return cls(capabilities=(2 << last) - 1, last_capability=last, namespace=of_ordinary_user(), initial=False)


@frozen
class Program:
    """What the last step executes: the paths to try, in order, the arguments, the environment."""

    paths: tuple[bytes, ...]
    argv: tuple[bytes, ...]
    env: tuple[bytes, ...]


@frozen
class Section:
    """A run of steps, and their form for the launcher. Both sides keep the sections they have seen."""

    steps: tuple[Step, ...]
    slots: int  #: the first slot that is still free after it
    data: bytes


@frozen
class Plan:
    """Everything the launcher does to start one container."""

    flags: int  #: clone3's
    groups: tuple[Group, ...]  #: the cgroups to make, in this order
    sections: tuple[Section, ...]
    program: Program
    namespaces: tuple[str, ...]  #: the OCI names of those that are not the launcher's
    entered: tuple[tuple[str, str | None], ...]  #: those of them that it enters: descriptors come along in this order
    cloned: tuple[trees.Tree, ...]  #: mounts that the caller clones: their descriptors come after those
    fork: str  #: "init": a small init forks before execve; "join": it is for a running container; or ""
    ids: UserNamespace | None  #: the user namespace that the launcher makes for it: the first descriptor given
    outside: int  #: so many sections, after the first, are for the parent of who is seen in the pid namespace entered
    #: the section, of those after the first, before which hooks are run; the state's fixed parts; the hooks by point
    hooks: tuple[int, dict[str, Any], dict[str, list[Any]]] | None
    talks: bool  #: the child has more to say than that it failed: gates, a terminal

    def step_at(self, index: int) -> tuple[str, str | None]:
        """Label and path of step *index*, as the launcher counts them."""
        for section in self.sections:
            if index < len(section.steps):
                return section.steps[index].label, section.steps[index].path
            index -= len(section.steps)
        if index:
            return "fork", None
        return "execve", self.program.argv[0].decode("utf-8", "surrogateescape")

    def wire(self, ident: str, target: str = "") -> bytes:
        """The request that the launcher takes; *target* is the cgroup directory of the container to enter."""
        sections = [section.data for section in self.sections]
        groups = [
            (
                *(g.base, g.version, list(g.enable), list(g.parent_writes), list(g.writes), g.oom_events),
                *(list(g.first_writes), g.device_program),
            )
            for g in self.groups
        ]
        program = (list(self.program.paths), list(self.program.argv), list(self.program.env))
        hooks = None
        if self.hooks is not None:
            gate, state, programs = self.hooks
            hooks = (gate, json.dumps({"id": ident, **state})[:-1].encode(), programs)
        forks = (self.fork, self.outside)
        ids = None if self.ids is None else (id_map(self.ids.uids).encode(), id_map(self.ids.gids).encode())
        return marshal.dumps((ident, self.flags, groups, sections, program, *forks, self.talks, target, hooks, ids))


def compile(spec: Mapping[str, Any], groups: Sequence[Group] = (), host: Host | None = None, *,
            hold: bool = False, filter: Filter | None = None) -> Plan:  # fmt: skip
    """The plan for *spec*, in *groups*; with *hold* it stops right before execve and waits for the start.

    *filter* is that of the spec's seccomp profile, where the caller has it already.
    """
    host = host or Host()
    ids = user_namespace_of(spec)
    if ids is not None:
        host = host.inside(ids)
    filter = filter or compile_filter(spec["linux"].get("seccomp"))
    inside = None if host.initial else host.namespace or _EVERYBODY
    process, annotations = spec["process"], spec.get("annotations", {})
    namespaces = tuple(namespace["type"] for namespace in spec["linux"]["namespaces"])
    entered = entered_namespaces(spec)
    wanted = [_NAMESPACES[name] for name in namespaces if name not in dict(entered)]
    joins = sum(group.version == 1 for group in groups)
    flags = sum(wanted)
    new = flags
    if ids is not None:
        flags = 0  # they are made inside the user namespace, so that its root has rights over them
    elif joins:
        flags &= ~abi.CLONE_NEWCGROUP  # unshared once the v1 cgroups are joined, or it would show the host's paths
    user, terminal = process["user"], bool(process.get("terminal"))
    init = annotations.get(INIT_ANNOTATION) == "true"
    cloned: list[trees.Tree] = []
    all_mounts = _mounts_of(spec, host, inside, len(entered), cloned)
    root_of = _root_of(spec, host)
    if spec["linux"].get("rootfsPropagation") in trees.PROPAGATING[:2]:
        cloned.append(trees.Tree(spec["root"]["path"], recursive=True))
        root_of += (abi.GIVEN + len(entered) + len(cloned) - 1,)
    system, own = [m for m in all_mounts if mounts.is_system(m)], [m for m in all_mounts if not mounts.is_system(m)]
    ahead, elsewhere = mounts.split_hidden(
        *(tuple(paths) for paths in (_masked(spec, inside), spec["linux"].get("readonlyPaths", ())))
    )
    prepared = ((system, *ahead, inside is not None), abi.CLONE_NEWNET in wanted)
    begin = _section(
        _begin, abi.FIRST_SLOT,
        joins, bool(joins) and ids is None and abi.CLONE_NEWCGROUP in wanted,
        prepared if ids is None and not entered else None,
    )  # fmt: skip
    names = list(dict(entered))
    enter = (_section(_enter_given, begin.slots, names),) if names else ()
    born = (_section(_be_born, begin.slots, False),) if "pid" in names else ()
    clones: tuple[int, ...] = ()
    if ids is not None:
        made = _section(_enter_user_namespace, begin.slots, _root_of(spec, host), own, new & ~abi.CLONE_NEWUSER)
        clones = tuple(range(begin.slots + 1, begin.slots + 1 + _clones_needed(_root_of(spec, host), own)))
        enter, born = (made,), (_section(_be_born, made.slots, False),)
    setup = _section(
        _set_up, (*enter, begin)[0].slots,
        prepared if entered or ids is not None else None, clones,
        init, root_of, json.loads(annotations.get(ETC_ANNOTATION, "{}")), _devices_of(spec), system, own, elsewhere,
        (process.get("consoleSize"), user["uid"]) if terminal else None, not spec.get("hooks"), inside is not None,
    )  # fmt: skip
    hooks = None
    setups: tuple[Section, ...] = (setup,)
    if spec.get("hooks"):
        hooks = (len(enter) + len(born) + 1, *_hooks_of(spec))
        setup = _section(mounts.pivot_to_prepared, setup.slots)
        setups += (setup,)
    name = spec.get("hostname") if abi.CLONE_NEWUTS in wanted else None
    linux = spec["linux"]
    parameters = (linux.get("rootfsPropagation"), name, linux.get("sysctl", {}), *_standing(process))
    tuned = _record(_kernel_parameters, setup.slots, *parameters)
    final = _section(finish, tuned.slots, *_identity(process, filter, host), hold, init)
    return Plan(
        flags=flags,
        groups=tuple(groups),
        sections=(begin, *enter, *born, *setups, tuned, final, _last(process, filter, final.slots)),
        program=_program(process),
        namespaces=namespaces,
        entered=entered,
        cloned=tuple(cloned),
        fork="init" if init else "",
        ids=ids,
        outside=len(born),
        hooks=hooks,
        talks=hold or terminal or bool(born) or hooks is not None,
    )


def entered_namespaces(spec: Mapping[str, Any]) -> tuple[tuple[str, str | None], ...]:
    """OCI name and path of those namespaces of *spec* that exist before the container does.

    No path: the caller makes it, or knows which it is.
    """
    annotations = spec.get("annotations", {})
    shared = set(json.loads(annotations.get(NAMESPACES_ANNOTATION, "[]")))
    if NETWORK_ANNOTATION in annotations:
        shared.add("network")
    return tuple(
        (namespace["type"], namespace.get("path"))
        for namespace in spec["linux"]["namespaces"]
        if namespace.get("path") or namespace["type"] in shared
    )


def _hooks_of(spec: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """What the hooks are told that does not change, and the hooks by OCI's names of their points."""
    path = spec["root"]["path"]
    annotations = {k: v for k, v in spec.get("annotations", {}).items() if not k.startswith("org.pycontainer.")}
    state = {
        "ociVersion": spec["ociVersion"],
        "bundle": path if path.startswith("/") else "/",
        "annotations": annotations,
    }
    programs = {point: list(map(_hook_of, hooks)) for point, hooks in spec["hooks"].items()}
    return state, programs


def _hook_of(hook: Mapping[str, Any]) -> tuple[bytes, list[bytes], list[bytes], float | None]:
    argv, env = (list(map(mounts.encode, hook.get(key, ()))) for key in ("args", "env"))
    return mounts.encode(hook["path"]), argv, env, hook.get("timeout")


def _standing(process: Mapping[str, Any]) -> tuple[int | None, str | None]:
    """The inputs of :func:`_stand`."""
    return process.get("oomScoreAdj"), process.get("execCPUAffinity", {}).get("initial")


def _identity(process: Mapping[str, Any], filter: Filter | None, host: Host) -> tuple[Any, ...]:
    """The inputs of :func:`finish`, but the last two."""
    wanted = [process.get(key) for key in ("cwd", "capabilities", "rlimits", "noNewPrivileges")]
    early = None if process.get("noNewPrivileges") else filter
    limits = ((_NOFILE, *host.nofile), *host.rlimits)
    setgroups = True
    if host.namespace is not None:
        host.namespace.check(process["user"])
        setgroups = host.namespace.setgroups
    return (process["user"], *wanted, early, (limits, host.capabilities, host.last_capability), setgroups)


def _last(process: Mapping[str, Any], filter: Filter | None, slots: int) -> Section:
    """What comes after the last report: the filter, so that it need not allow anything but execve."""
    return _section(_load_filter, slots, filter if process.get("noNewPrivileges") else None)


def _program(process: Mapping[str, Any]) -> Program:
    argv = tuple(map(mounts.encode, process["args"]))
    env = tuple(map(mounts.encode, process["env"]))
    return Program(_candidates(argv[0], env), argv, env)


_sections: dict[bytes, Section] = {}


def _section(build: Callable[..., None], first_slot: int, *inputs: Any) -> Section:
    """The section that *build* records from *inputs*, kept: most containers differ in little."""
    key = marshal.dumps((build.__name__, first_slot, inputs), 2)  # version 2: equal values, equal bytes
    section = _sections.get(key)
    if section is None:
        if len(_sections) >= 64:
            _sections.clear()
        section = _sections[key] = _record(build, first_slot, *inputs)
    return section


def _record(build: Callable[..., None], first_slot: int, *inputs: Any) -> Section:
    k = Recorder(first_slot)
    build(k, *inputs)
    if k.slots > abi.SLOTS:
        raise InvalidCommandError(
            "mounts", f"the plan needs {k.slots} slots, and there are {abi.SLOTS}: too many mounts"
        )
    steps = tuple(k.steps)
    data = [(abi.NR[s.call], s.arguments, s.out, dict(s.accept), s.skip, s.check) for s in steps]
    return Section(steps, k.slots, marshal.dumps(data, 2))


def _root_of(spec: Mapping[str, Any], host: Host) -> tuple[Any, ...]:
    """What the root file system is made from: (path, host view, overlay, read-only, on the host too, no devices)."""
    path, read_only = spec["root"]["path"], bool(spec["root"].get("readonly"))
    view, overlay = map(spec.get("annotations", {}).get, (ROOTFS_ANNOTATION, OVERLAY_ANNOTATION))
    plain = view is None and overlay is None
    return path, view, overlay, read_only, read_only and plain and host.is_read_only(path), _without_devices(spec)


def _mounts_of(
    spec: Mapping[str, Any], host: Host, inside: UserNamespace | None, given: int, cloned: list[trees.Tree]
) -> list[mounts.Mount]:
    """Every mount; those that the caller has to clone are added to *cloned*, which come after *given* others.

    Of the host's directories none brings devices along, where the container
    may not make any: it has no device rules.
    """
    wanted = spec["mounts"]
    if inside is not None:
        own = {namespace["type"] for namespace in spec["linux"]["namespaces"]}
        wanted = [adapted for mount in wanted if (adapted := _in_user_namespace(mount, own, host, inside)) is not None]
    barred = ["rnodev"] if _without_devices(spec) else []
    found: list[mounts.Mount] = []
    for m in wanted:
        slot = None
        if (tree := trees.wanted(m)) is not None:
            slot = abi.GIVEN + given + len(cloned)
            cloned.append(tree)
        bind = m["type"] == "bind"
        directory = not bind or host.is_directory(m["source"])
        options = [*m["options"], *barred] if bind and directory else m["options"]
        found.append((m["type"], m["source"], m["destination"], options, directory, slot))
    return found


#: What shows a namespace can be mounted by who owns that; where it is the host's there is only the host's mount of it.
_OF_NAMESPACE = {"proc": ("pid", "/proc"), "sysfs": ("network", "/sys"), "mqueue": ("ipc", "/dev/mqueue")}


def _in_user_namespace(
    mount: Mapping[str, Any], own: set[str], host: Host, inside: UserNamespace
) -> Mapping[str, Any] | None:
    """*mount* as it can be made in a user namespace; None: the host has it not either."""
    namespace, source = _OF_NAMESPACE.get(mount["type"], ("mount", ""))
    if namespace not in own:
        if not host.is_directory(source):
            return None
        return {**mount, "source": source}
    if mount["type"] == "devpts":
        # A group that does not exist there is EINVAL.
        options = [o for o in mount["options"] if not (o[:4] == "gid=" and outside(int(o[4:]), inside.gids) is None)]
        return {**mount, "options": options}
    return mount


def _masked(spec: Mapping[str, Any], inside: UserNamespace | None) -> Sequence[str]:
    masked: Sequence[str] = spec["linux"].get("maskedPaths", ())
    if inside is not None and all(namespace["type"] != "network" for namespace in spec["linux"]["namespaces"]):
        masked = (*masked, "/sys/fs/cgroup")  # it comes with the host's /sys, and is the host's (CVE-2023-25809)
    return masked


def _devices_of(spec: Mapping[str, Any]) -> list[mounts.Device]:
    """The nodes that the container has beside :data:`mounts.DEVICES`."""
    return [
        (d["path"], _DEVICE_TYPES[d["type"]] | d["fileMode"], d["major"], d["minor"], d["uid"], d["gid"])
        for d in spec["linux"].get("devices", ())
    ]


def _without_devices(spec: Mapping[str, Any]) -> bool:
    """Whether device nodes outside of /dev are of no use in it: they are for those who could make them anyway."""
    return "CAP_MKNOD" not in spec["process"]["capabilities"]["bounding"]


def _enter_given(k: Recorder, entered: Sequence[str]) -> None:
    """Into the namespaces that the caller has opened; of a pid namespace only the children will be."""
    for number, name in enumerate(entered):
        # Before anything is mounted: a sysfs shows the network of whoever mounts it.
        with k.step(f"enter the {name} namespace"):
            k.call("setns", (abi.GIVEN + number,), _NAMESPACES[name])


def _set_up(
    k: Recorder,
    prepared: tuple[Any, ...] | None,
    clones: Sequence[int],
    init: bool,
    root_of: tuple[Any, ...],
    files: Mapping[str, str],
    devices: Sequence[mounts.Device],
    system: Sequence[mounts.Mount],
    own: Sequence[mounts.Mount],
    hidden: Sequence[Sequence[str]],
    terminal: tuple[Any, ...] | None,
    pivots: bool,
    inside: bool,
) -> None:
    """From the request's arrival to inside the new root, or with *pivots* false right before.

    *inside* a user namespace not all can be made anew.
    """
    if prepared is not None:
        _prepare(k, *prepared)
    _take_stdio(k, init)
    path, view, overlay, read_only, host_read_only, nodev, *tree = root_of
    if overlay is not None:
        root = mounts.overlay_root(k, **json.loads(overlay), nodev=nodev, inside=inside)
    elif view is not None:
        shown = _split_clones(root_of, own, clones)[0]
        root = mounts.host_view(k, json.loads(view), writable=not read_only, inside=inside, clones=shown)
    else:
        if clones:
            root = (clones[0],)
        else:
            clone = next(iter(tree), None)
            root = mounts.root_directory(
                k, path, writable=not read_only, host_read_only=host_read_only, nodev=nodev, tree=clone
            )
        mounts.attach_root(k, root)
    mounts.etc_files(k, root, files, make=view is not None, writable=not read_only)
    mounts.make_devices(k, devices)
    mounts.mount_all(k, root, system, own, _split_clones(root_of, own, clones)[1])
    if read_only:
        mounts.seal_root(k, root)
    if terminal is not None:
        _terminal(k, root, *terminal)
    # Last, so that nothing is mounted over a mask; before the old root goes, where their source is mounted.
    mounts.mask_and_protect(k, root, *hidden)
    if pivots:
        mounts.pivot(k, root)


def _clones_needed(root_of: tuple[Any, ...], own: Sequence[mounts.Mount]) -> int:
    """How many mounts of the host a container is made of."""
    _, view, *_ = root_of
    layers = 1 if view is None else sum(len(json.loads(view)[key]) for key in ("overlays", "trees"))
    return layers + sum(mount[0] == "bind" for mount in own)


def _split_clones(
    root_of: tuple[Any, ...], own: Sequence[mounts.Mount], clones: Sequence[int]
) -> tuple[list[Slot], dict[str, Slot]]:
    """The slots *clones* as those of the root, and those of the bind mounts among *own* by destination."""
    binds = [mount[2] for mount in own if mount[0] == "bind"] if clones else []
    slots: list[Slot] = [(number,) for number in clones]
    first = len(slots) - len(binds)
    return slots[:first], dict(zip(binds, slots[first:], strict=True))


def _enter_user_namespace(k: Recorder, root_of: tuple[Any, ...], own: Sequence[mounts.Mount], flags: int) -> None:
    """Into the user namespace that the launcher has made, and from there into new ones.

    Before that, with the rights of the host's root, what the container is made
    of is cloned and gets the namespace's ids: inside, the way there may be
    barred, and mapping ids takes rights over the file system.
    """
    path, view, _, read_only, host_read_only, nodev = root_of
    ids = k.slot()
    clones = iter([k.slot() for _ in range(_clones_needed(root_of, own))])
    with k.step("take the user namespace"):
        k.call("fcntl", (abi.GIVEN,), abi.F_DUPFD_CLOEXEC, 0, out=ids)  # a slot of the plan's can stand in a structure
    if view is None:
        options = {"writable": not read_only, "host_read_only": host_read_only, "nodev": nodev}
        mounts.root_directory(k, path, **options, ids=ids, out=next(clones))
    else:
        mounts.layers_of_view(k, json.loads(view), ids, clones)
    for fstype, source, _, flags_of, *_ in own:
        if fstype == "bind":
            with k.step(f"clone {source}"):
                mounts.clone_source(k, source, flags_of, ids, next(clones))
    with k.step("enter the user namespace"):
        k.call("setns", ids, abi.CLONE_NEWUSER)
    with k.step("make the namespaces"):
        k.call("unshare", flags)
    _become_root(k)


def _become_root(k: Recorder) -> None:
    """Be the root of the user namespace that was entered, and nobody who has rights elsewhere."""
    with k.step("become root of the user namespace"):
        k.call("setgroups", 0, 0)
        k.call("setresgid", 0, 0, 0)
        k.call("setresuid", 0, 0, 0)
    die_with_parent(k)  # again: the change of ids has cleared it


def user_namespace_of(spec: Mapping[str, Any]) -> UserNamespace | None:
    """The user namespace that *spec* asks for, which is to have its own ids."""
    if not spec["linux"].get("uidMappings"):
        return None
    uids, gids = (
        tuple((row["containerID"], row["hostID"], row["size"]) for row in spec["linux"][key])
        for key in ("uidMappings", "gidMappings")
    )
    return UserNamespace(uids, gids)


def compile_exec(
    process: Mapping[str, Any], joins: int, namespaces: Sequence[str], filter: Filter | None, host: Host | None = None,
    ids: UserNamespace | None = None,
) -> Plan:  # fmt: skip
    """The plan for a further *process* in a running container with these *namespaces*, *joins* v1 cgroups, *filter*.

    *ids* are those of its user namespace, where that is its own.

    Its first part is that of a start, so is its last; between them it enters
    what its container has, where a start makes it.  It becomes visible in the
    container's pid namespace last of all, when it has nothing left that is
    worth stealing: what makes these steps stays outside, and clones the
    process that does the rest (CVE-2016-9962).
    """
    host = host or Host()
    user, terminal = process["user"], bool(process.get("terminal"))
    begin = _section(_begin, abi.FIRST_SLOT, joins, False, None)
    if ids is not None:
        host = host.inside(ids)
    size = (process.get("consoleSize"), user["uid"]) if terminal else None
    flags = sum(map(_NAMESPACES.__getitem__, namespaces))
    enter = _section(_enter, begin.slots, flags, size, *_standing(process))
    final = _section(finish, enter.slots, *_identity(process, filter, host), False, False)
    own = _section(_be_born, final.slots, terminal)
    return Plan(
        flags=0,
        groups=(),
        sections=(begin, enter, final, own, _last(process, filter, own.slots)),
        program=_program(process),
        namespaces=(),
        entered=(),
        cloned=(),
        fork="join",
        ids=None,
        outside=2,
        hooks=None,
        talks=True,
    )


def _enter(
    k: Recorder, flags: int, terminal: tuple[Any, ...] | None, oom_score_adj: int | None, affinity: str | None
) -> None:
    """Into the container's namespaces (of the pid namespace only the children will be), and to its root."""
    for slot, fd in ((abi.STDIN, 0), (abi.STDOUT, 1), (abi.STDERR, 2)):
        k.dup3((slot,), fd)
    _stand(k, oom_score_adj, affinity)
    with k.step("enter the container's namespaces"):
        k.call("setns", (abi.EXTRA,), flags)
    with k.step("enter the container's root"):
        # setns(2) leads to the root of the mount namespace, which is not the container's where the host is in a chroot.
        k.call("fchdir", (abi.ROOT,))
        k.call("chroot", b".")
    if flags & abi.CLONE_NEWUSER:
        _become_root(k)
    with k.step("close foreign descriptors"):
        k.call("close_range", abi.CHANNEL_FD + 1, 0xFFFFFFFF, 0)
    if terminal is not None:
        root = k.openat2(abi.AT_FDCWD, b"/", abi.O_PATH | abi.O_DIRECTORY, 0)
        _terminal(k, root, *terminal, further=True)


def _be_born(k: Recorder, terminal: bool) -> None:
    """The first steps inside the container's pid namespace: what a parent cannot do for its child."""
    k.call("setsid")
    if terminal:
        with k.step("make it the controlling terminal"):
            k.ioctl(0, abi.TIOCSCTTY, 0)
    die_with_parent(k)


def _take_stdio(k: Recorder, init: bool) -> None:
    with k.step("take stdio"):
        for slot, fd in ((abi.STDIN, 0), (abi.STDOUT, 1), (abi.STDERR, 2)):
            k.dup3((slot,), fd)
        if init:
            k.dup3((abi.EXTRA,), abi.REPORT_FD, abi.O_CLOEXEC)


def _begin(k: Recorder, joins: int, unshare_cgroup: bool, ahead: tuple[Any, ...] | None) -> None:
    """What does not depend on the request, which comes after it: this can be done before there is one.

    Die with the launcher, join the cgroups, let go of everything that is the
    launcher's.  *ahead* is for a new container all of whose namespaces are
    its own: the inputs of :func:`_prepare`.
    """
    k.dup3((abi.CHANNEL,), abi.CHANNEL_FD, abi.O_CLOEXEC)  # first: this is where failures are reported
    die_with_parent(k)
    for number in range(joins):
        with k.step("join cgroup"):
            # "0" is whoever writes it: moving oneself takes no system-wide lock, moving a pid does.
            k.call("write", (abi.CGROUP + number,), b"0", 1)
    if unshare_cgroup:
        k.call("unshare", abi.CLONE_NEWCGROUP)
    with k.step("close foreign descriptors"):
        k.call("close_range", abi.CHANNEL_FD + 1, 0xFFFFFFFF, 0)
    k.call("setsid")
    with k.step("join a new session keyring"):
        k.call("keyctl", abi.KEYCTL_JOIN_SESSION_KEYRING, 0, accept={errno.ENOSYS: 0})
    k.call("umask", 0)  # the modes in the plan are exact
    if ahead is None:
        return
    with k.step("reserve descriptors"):
        for fd in range(abi.REPORT_FD, abi.FIRST_KEPT_FD + len(abi.KEPT)):
            k.dup3(abi.CHANNEL_FD, fd, abi.O_CLOEXEC)
    _prepare(k, *ahead)
    with k.step("keep what the rest needs"):
        for fd, slot in enumerate(abi.KEPT, abi.FIRST_KEPT_FD):
            k.call("dup3", (slot,), fd, abi.O_CLOEXEC, out=(slot,))
        k.call("close_range", abi.FIRST_KEPT_FD + len(abi.KEPT), 0xFFFFFFFF, 0)


def _prepare(k: Recorder, system: tuple[Any, ...], own_network: bool) -> None:
    """What is made of the namespaces: the inputs of :func:`mounts.make_system`, and whether the network is new."""
    with k.step("make mounts private"):
        # Or ours would propagate to the host, where / usually is shared.
        k.call("mount", 0, b"/", 0, abi.MS_REC | abi.MS_PRIVATE, 0, path=b"/")
    mounts.make_system(k, *system)
    if own_network:
        _loopback(k)


def die_with_parent(k: Recorder) -> None:
    """SIGKILL when the launcher dies, and the proof that it had not died before this was set.

    getppid() proves nothing: it is 0 across a pid namespace.  A write to the
    channel does: the other end closes when the launcher exits, before its
    children are signalled.
    """
    with k.step("die with the launcher"):
        k.prctl(abi.PR_SET_PDEATHSIG, 9)
        k.call("sendto", abi.CHANNEL_FD, b"a", 1, abi.MSG_NOSIGNAL, 0, 0)


def _terminal(k: Recorder, root: Slot, size: Mapping[str, int] | None, uid: int, *, further: bool = False) -> None:
    """A pseudo-terminal of the container's own devpts as stdio and controlling terminal.

    The slave comes from the master's descriptor (TIOCGPTPEER), never from a
    path that the rootfs could have prepared (CVE-2025-52565).
    """
    with k.step("open a terminal"):
        flags = os.O_RDWR | os.O_NOCTTY
        master = k.openat2(root, b"dev/pts/ptmx", flags, abi.RESOLVE_BENEATH | abi.RESOLVE_NO_SYMLINKS)
        k.ioctl(master, abi.TIOCSPTLCK, b"\0\0\0\0")
        slave = k.slot()
        k.ioctl(master, abi.TIOCGPTPEER, flags | abi.O_CLOEXEC, out=slave)
        if size:
            k.ioctl(master, abi.TIOCSWINSZ, struct.pack("=4H", size["height"], size["width"], 0, 0))
        if uid:
            k.call("fchownat", slave, b"", uid, -1, abi.AT_EMPTY_PATH)
    if not further:
        with k.step("mount the terminal on /dev/console"):
            dev = k.openat2(root, b"dev", abi.O_PATH | abi.O_DIRECTORY, abi.RESOLVE_BENEATH | abi.RESOLVE_NO_SYMLINKS)
            k.mknodat(dev, b"console", 0o100620)
            target = k.openat2(dev, b"console", abi.O_PATH | abi.O_NOFOLLOW, abi.RESOLVE_BENEATH)
            k.move_mount(k.open_tree(slave), target)
    with k.step("send the terminal's master"):
        control: Any = [20, abi.SCM_RIGHTS << 32 | abi.SOL_SOCKET, master]  # cmsghdr: length, level and type, data
        message: Any = [0, 0, [b"t", 1], 1, control, 24, 0]  # msghdr: no name, one iovec, control, no flags
        k.call("sendmsg", abi.CHANNEL_FD, message, abi.MSG_NOSIGNAL)
    with k.step("make it the controlling terminal"):
        for fd in (0, 1, 2):
            k.dup3(slave, fd)
        if not further:  # a further process makes it its own, once it is there
            k.ioctl(0, abi.TIOCSCTTY, 0)


def _loopback(k: Recorder) -> None:
    with k.step("bring lo up"):
        datagram = k.slot()
        k.call("socket", 2, 2 | abi.O_CLOEXEC, 0, out=datagram)  # AF_INET, SOCK_DGRAM | SOCK_CLOEXEC
        k.ioctl(datagram, abi.SIOCSIFFLAGS, _LOOPBACK_UP)


def _kernel_parameters(
    k: Recorder,
    propagation: str | None,
    hostname: str | None,
    sysctls: Mapping[str, str],
    oom_score_adj: int | None,
    affinity: str | None,
) -> None:
    """What the kernel keeps for the container's namespaces and for its processes."""
    if propagation is not None and propagation.lstrip("r") in ("shared", "unbindable"):
        with k.step(f"make the root {propagation}"):
            # Only now, and of mounts that are nobody's peers: what the set-up has mounted stays here.
            root = k.openat2(abi.AT_FDCWD, b"/", abi.O_PATH | abi.O_DIRECTORY, 0)
            mounts.set_propagation(k, root, propagation, cloned=False)
    if hostname:
        encoded = mounts.encode(hostname)
        k.call("sethostname", encoded, len(encoded), path=encoded)
    if sysctls:
        with k.step("open /proc/sys"):
            proc = k.new_mount("proc", {}, 0)
        for name, value in sysctls.items():
            _write_proc(k, proc, f"set {name} to {value}", f"sys/{path_of(name)}", value)
    _stand(k, oom_score_adj, affinity)


def _stand(k: Recorder, oom_score_adj: int | None, affinity: str | None) -> None:
    """How the kernel is to treat the process, and those that come of it: start and exec share it."""
    if oom_score_adj is not None:
        label = f"set oom_score_adj to {oom_score_adj}"
        with k.step(label):
            proc = k.new_mount("proc", {}, 0)
        _write_proc(k, proc, label, "self/oom_score_adj", str(oom_score_adj))
    if affinity is not None:
        mask = _processors(affinity)
        with k.step(f"set the affinity to processors {affinity}"):
            k.call("sched_setaffinity", 0, len(mask), mask)
            # The kernel leaves out those that are not there, or not in the cpuset, and says nothing.
            k.call("sched_getaffinity", 0, 1024, ("buffer", 1024), check=(mask, errno.EINVAL))


def _write_proc(k: Recorder, proc: Slot, label: str, path: str, value: str) -> None:
    """Write to a file of a procfs that is mounted nowhere: no mount can lie over it (CVE-2025-52881)."""
    with k.step(label):
        resolve = abi.RESOLVE_BENEATH | abi.RESOLVE_NO_XDEV | abi.RESOLVE_NO_MAGICLINKS
        file = k.openat2(proc, mounts.encode(path), os.O_WRONLY, resolve)
        encoded = mounts.encode(value)
        k.call("write", file, encoded, len(encoded), path=mounts.encode(path))


def _processors(cpus: str) -> bytes:
    """A list of cpuset(7) as the kernel's bit mask, without zeros at its end."""
    mask = 0
    for item in cpus.split(","):
        first, _, last = item.partition("-")
        for number in range(int(first), int(last or first) + 1):
            mask |= 1 << number
    return mask.to_bytes((mask.bit_length() + 63) // 64 * 8, sys.byteorder).rstrip(b"\0")


def finish(
    k: Recorder,
    user: Mapping[str, Any],
    cwd: str,
    sets: Mapping[str, Sequence[str]],
    rlimits: Sequence[Mapping[str, Any]] | None,
    no_new_privileges: bool,
    early_filter: Filter | None,
    host: tuple[tuple[tuple[int, int, int], ...], int, int],
    setgroups: bool,
    hold: bool,
    init: bool,
) -> None:
    """From inside the new root to right before execve: limits, rights, identity. Start and exec share it."""
    inherited, held, last_capability = host
    with k.step("close the set-up's descriptors"):
        # Or a low RLIMIT_NOFILE would leave no number for the two that are still to come.
        k.call("close_range", (abi.REPORT_FD if init else abi.CHANNEL_FD) + 1, 0xFFFFFFFF, 0)
    # NOFILE any earlier would starve the mounts of descriptors; the launcher's own is raised, so it is always set.
    limits = {number: (soft, hard) for number, soft, hard in inherited}
    for limit in rlimits or ():
        limits[_RLIMITS[limit["type"]]] = (limit["soft"], limit["hard"])
    for number, (soft, hard) in limits.items():
        with k.step(f"set {next(name for name, n in _RLIMITS.items() if n == number)}"):
            value = struct.pack("=QQ", soft & 0xFFFFFFFFFFFFFFFF, hard & 0xFFFFFFFFFFFFFFFF)
            k.call("prlimit64", 0, number, value, 0)
    # The bounding set needs CAP_SETPCAP, which a change of ids would take away.
    bounding = capabilities.mask(sets["bounding"]) & held
    names = {number: name for name, number in capability_numbers().items()}
    for number in range(last_capability + 1):
        if not bounding >> number & 1:
            with k.step(f"drop {names.get(number, number)} from the bounding set"):
                k.prctl(abi.PR_CAPBSET_DROP, number)
    # Without no_new_privs the filter takes CAP_SYS_ADMIN, which the next steps may take away (seccomp(2)).
    _load_filter(k, early_filter)
    with k.step("set groups and ids"):
        gids = [user["gid"], *(gid for gid in user.get("additionalGids", ()) if gid != user["gid"])]
        if setgroups:
            k.call("setgroups", len(gids), struct.pack(f"={len(gids)}I", *gids))
        k.call("setresgid", *[user["gid"]] * 3)
        k.call("setresuid", *[user["uid"]] * 3)
    with k.step(f"enter {cwd}"):
        # As the user, and by descriptor: /proc/self/fd/N as a directory must not lead out (CVE-2024-21626).
        flags, resolve = abi.O_PATH | abi.O_DIRECTORY, abi.RESOLVE_IN_ROOT | abi.RESOLVE_NO_MAGICLINKS
        root = k.openat2(abi.AT_FDCWD, b"/", flags, 0)
        directory = k.openat2(root, mounts.encode(cwd), flags, resolve)
        k.call("fchdir", directory)
        k.call("getcwd", ("buffer", 4096), 4096, check=(b"/", errno.ENOENT))
    with k.step("set capabilities"):
        effective, permitted, inheritable = (
            capabilities.mask(sets.get(name, ())) & held for name in ("effective", "permitted", "inheritable")
        )
        k.prctl(abi.PR_CAP_AMBIENT, abi.PR_CAP_AMBIENT_CLEAR_ALL)
        k.call("capset", *capabilities.capset_data(effective, permitted, inheritable))
    if no_new_privileges:
        with k.step("set no_new_privs"):
            k.prctl(abi.PR_SET_NO_NEW_PRIVS, 1)
    with k.step("close descriptors on execve"):
        k.call("close_range", abi.CHANNEL_FD, 0xFFFFFFFF, abi.CLOSE_RANGE_CLOEXEC)
    k.call("umask", user.get("umask", 0o022))
    die_with_parent(k)  # again: the change of ids has cleared it
    if hold:
        with k.step("wait for the start"):
            k.call("sendto", abi.CHANNEL_FD, b"g", 1, abi.MSG_NOSIGNAL, 0, 0)
            k.call("recvfrom", abi.CHANNEL_FD, ("buffer", 1), 1, 0, 0, 0, check=(b"s", errno.EPIPE))


def _load_filter(k: Recorder, filter: Filter | None) -> None:
    if filter is None:
        return
    flags, code = filter
    with k.step("load the seccomp filter"):
        # struct sock_fprog: the number of instructions, 16 bits of the first word, and a pointer
        k.call("seccomp", abi.SECCOMP_SET_MODE_FILTER, flags, [len(code) // 8, code])


def _candidates(command: bytes, env: Sequence[bytes]) -> tuple[bytes, ...]:
    """The paths that execvp(3) would try: PATH is the container's own."""
    if b"/" in command:
        return (command,)
    path = next((entry[5:] for entry in env if entry.startswith(b"PATH=")), b"/usr/local/bin:/usr/bin:/bin")
    return tuple(b"/".join((directory or b".", command)) for directory in path.split(b":"))
