"""Compiling an OCI runtime spec into a plan: the flat list of system calls that makes the container.

A plan is data.  It can be printed (``pycontainer explain``), compared in a
test without root, and sent to the launcher, whose child makes the calls one
after the other and then is the payload.

The order is the kernel's, not taste: each step stands where it does because an
earlier or later place fails or opens a hole; the comments say which.
"""

from __future__ import annotations

import json
import marshal
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import frozen

from pycontainer.errors import InvalidCommandError
from pycontainer.seccomp_filter import compile_filter
from pycontainer_native import abi, capabilities, identity, mounts, parameters, relay, steps, trees
from pycontainer_native.host import EVERYBODY, Host
from pycontainer_native.request import Request
from pycontainer_native.syscalls import Recorder, Step
from pycontainer_native.userns import UserNamespace, id_map, outside

if TYPE_CHECKING:
    from pycontainer.seccomp_filter import Filter
    from pycontainer_native.cgroups import Group

ROOTFS_ANNOTATION = "org.pycontainer.rootfs"
OVERLAY_ANNOTATION = "org.pycontainer.overlay"
NAMESPACES_ANNOTATION = "org.pycontainer.namespaces"
INIT_ANNOTATION = "org.pycontainer.init"
ETC_ANNOTATION = "org.pycontainer.etc"
NETWORK_ANNOTATION = "org.pycontainer.network"
RELAY_ANNOTATION = "org.pycontainer.relay"

_DEVICE_TYPES = {"c": stat.S_IFCHR, "b": stat.S_IFBLK}


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
        ids = None if self.ids is None else (id_map(self.ids.uids).encode(), id_map(self.ids.gids).encode())
        what = ident, self.flags, groups, [section.data for section in self.sections], program
        return Request(*what, self.fork, self.outside, self.talks, target, hooks, ids).to_wire()


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
    inside = None if host.initial else host.namespace or EVERYBODY
    process, annotations = spec["process"], spec.get("annotations", {})
    namespaces = tuple(namespace["type"] for namespace in spec["linux"]["namespaces"])
    entered = entered_namespaces(spec)
    wanted = [abi.NAMESPACES[name] for name in namespaces if name not in dict(entered)]
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
    if len(entered) + len(cloned) > abi.MOST_GIVEN:
        reason = f"at most {abi.MOST_GIVEN - len(entered)} of them can propagate or have mappings of their own"
        raise InvalidCommandError("mounts", reason)
    system, own = [m for m in all_mounts if mounts.is_system(m)], [m for m in all_mounts if not mounts.is_system(m)]
    ahead, elsewhere = mounts.split_hidden(
        *(tuple(paths) for paths in (_masked(spec, inside), spec["linux"].get("readonlyPaths", ())))
    )
    linux = spec["linux"]
    hooked = bool(spec.get("hooks")) or RELAY_ANNOTATION in annotations
    prepared = ((system, *ahead, inside is not None), abi.CLONE_NEWNET in wanted, linux.get("mountLabel"))
    fresh = ids is None and not entered
    bounded = fresh and not spec.get("hooks")  # createContainer hooks have the launcher's rights
    begin = _section(
        steps.begin, abi.FIRST_SLOT,
        joins, bool(joins) and ids is None and abi.CLONE_NEWCGROUP in wanted,
        prepared if fresh else None,
        (capabilities.mask(process["capabilities"]["bounding"]) & host.capabilities, host.last_capability)
        if bounded else None,
    )  # fmt: skip
    names = list(dict(entered))
    enter = (_section(steps.enter_given, begin.slots, names),) if names else ()
    born = (_section(steps.be_born, begin.slots, False),) if "pid" in names else ()
    clones: tuple[int, ...] = ()
    if ids is not None:
        made = _section(steps.enter_user_namespace, begin.slots, _root_of(spec, host), own, new & ~abi.CLONE_NEWUSER)
        clones = tuple(range(begin.slots + 1, begin.slots + 1 + steps.clones_needed(_root_of(spec, host), own)))
        enter, born = (made,), (_section(steps.be_born, made.slots, False),)
    files = json.loads(annotations[ETC_ANNOTATION]) if ETC_ANNOTATION in annotations else {}
    setup = _section(
        steps.set_up, (*enter, begin)[0].slots,
        prepared if entered or ids is not None else None, clones,
        init, root_of, files, _devices_of(spec), system, own, elsewhere,
        (process.get("consoleSize"), user["uid"]) if terminal else None, not hooked, inside is not None,
        linux.get("mountLabel"),
    )  # fmt: skip
    hooks = None
    setups: tuple[Section, ...] = (setup,)
    if hooked:
        hooks = (len(enter) + len(born) + 1, *_hooks_of(spec))
        setup = _section(mounts.pivot_to_prepared, setup.slots)
        setups += (setup,)
    name = spec.get("hostname") if abi.CLONE_NEWUTS in wanted else None
    mounted = inside is not None and abi.CLONE_NEWPID not in wanted
    kept = (linux.get("rootfsPropagation"), name, linux.get("sysctl", {}), mounted, *_standing(process))
    tuned = _record(parameters.kernel_parameters, setup.slots, *kept)
    final = _section(identity.finish, tuned.slots, *_identity(process, filter, host), hold, init, bounded)
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
    shared = set(json.loads(annotations[NAMESPACES_ANNOTATION])) if NAMESPACES_ANNOTATION in annotations else set()
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
    programs = {point: list(map(_hook_of, hooks)) for point, hooks in spec.get("hooks", {}).items()}
    if (tool := spec.get("annotations", {}).get(RELAY_ANNOTATION)) is not None:
        programs["relay"] = [_hook_of(relay_of(tool))]
    return state, programs


#: The tools that pass packets on: their arguments, and the package that has them.  Neither lets the container reach
#: what listens on the host's loopback device, or forwards a port to it.
RELAYS = {
    "pasta": (
        "--config-net --quiet --netns-only --ns-ifname eth0 --no-map-gw -t none -u none -T none -U none "
        f"--netns {relay.NETNS}",
        "passt",
    ),
    "slirp4netns": (
        "--configure --mtu=65520 --disable-host-loopback --enable-sandbox "
        f"--ready-fd={relay.READY_FD} --netns-type=path {relay.NETNS} eth0",
        "slirp4netns",
    ),
}
_DIRECTORIES = ("/usr/bin", "/usr/local/bin", "/bin", "/run/current-system/sw/bin")


def find_relay(tool: str) -> str | None:
    """The absolute path of *tool*: the system's, whatever the caller's PATH says."""
    paths = (f"{directory}/{tool}" for directory in _DIRECTORIES)
    return next((path for path in paths if os.access(path, os.X_OK)), None)


def relay_of(tool: str) -> dict[str, Any]:
    """*tool* as a hook of the OCI runtime spec."""
    arguments, _ = RELAYS[tool]
    return {"path": find_relay(tool) or f"/usr/bin/{tool}", "args": [tool, *arguments.split()]}


def _hook_of(hook: Mapping[str, Any]) -> tuple[bytes, list[bytes], list[bytes], float | None]:
    argv, env = (list(map(mounts.encode, hook.get(key, ()))) for key in ("args", "env"))
    return mounts.encode(hook["path"]), argv, env, hook.get("timeout")


def _standing(process: Mapping[str, Any]) -> parameters.Standing:
    """The inputs of :func:`pycontainer_native.parameters.stand`."""
    affinity = process.get("execCPUAffinity", {}).get("initial")
    return process.get("oomScoreAdj"), affinity, process.get("apparmorProfile"), process.get("selinuxLabel")


def _identity(process: Mapping[str, Any], filter: Filter | None, host: Host) -> tuple[Any, ...]:
    """The inputs of :func:`pycontainer_native.identity.finish`, but the last three."""
    wanted = [process.get(key) for key in ("cwd", "capabilities", "rlimits", "noNewPrivileges")]
    early = None if process.get("noNewPrivileges") else filter
    limits = ((identity.NOFILE, *host.nofile), *host.rlimits)
    setgroups = True
    if host.namespace is not None:
        host.namespace.check(process["user"])
        setgroups = host.namespace.setgroups
    return (process["user"], *wanted, early, (limits, host.capabilities, host.last_capability), setgroups)


def _last(process: Mapping[str, Any], filter: Filter | None, slots: int) -> Section:
    """What comes after the last report: the filter, so that it need not allow anything but execve."""
    return _section(identity.load_filter, slots, filter if process.get("noNewPrivileges") else None)


def _program(process: Mapping[str, Any]) -> Program:
    argv = tuple(map(mounts.encode, process["args"]))
    env = tuple(map(mounts.encode, process["env"]))
    return Program(_candidates(argv[0], env), argv, env)


_sections: dict[bytes, Section] = {}


def _section(build: Callable[..., None], first_slot: int, *inputs: Any) -> Section:
    """The section that *build* records from *inputs*, kept: most containers differ in little."""
    key = marshal.dumps(
        (build.__module__, build.__name__, first_slot, inputs), 2
    )  # version 2: equal values, equal bytes
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
    mounted = not host.initial
    begin = _section(steps.begin, abi.FIRST_SLOT, joins, False, None, None)
    if ids is not None:
        host = host.inside(ids)
    size = (process.get("consoleSize"), user["uid"]) if terminal else None
    flags = sum(map(abi.NAMESPACES.__getitem__, namespaces))
    enter = _section(steps.enter, begin.slots, flags, size, mounted, *_standing(process))
    final = _section(identity.finish, enter.slots, *_identity(process, filter, host), False, False, False)
    own = _section(steps.be_born, final.slots, terminal)
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


def _candidates(command: bytes, env: Sequence[bytes]) -> tuple[bytes, ...]:
    """The paths that execvp(3) would try: PATH is the container's own."""
    if b"/" in command:
        return (command,)
    path = next((entry[5:] for entry in env if entry.startswith(b"PATH=")), b"/usr/local/bin:/usr/bin:/bin")
    return tuple(b"/".join((directory or b".", command)) for directory in path.split(b":"))
