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
    from pycontainer_native.listener import Listener

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
    #: its user namespace: the launcher makes it, and gives the descriptor, where it is not among those that it enters
    ids: UserNamespace | None
    outside: int  #: so many sections after the first are run outside, by who then clones the process inside
    #: how many sections after the first come before the hooks; the constant part of their OCI state; the hooks by point
    hooks: tuple[int, dict[str, Any], dict[str, list[Any]]] | None
    talks: bool  #: the child has more to say than that it failed: gates, a terminal
    listener: Listener | None = None  #: who is asked by the filter: a connection to it is given, after the locks

    def step_at(self, index: int) -> tuple[str, str | None]:
        """Label and path of step *index*, as the launcher counts them."""
        for section in self.sections:
            if index < len(section.steps):
                return section.steps[index].label, section.steps[index].path
            index -= len(section.steps)
        if index:
            return "fork", None
        return "execve", self.program.argv[0].decode("utf-8", "surrogateescape")

    def wire(self, ident: str, target: str = "", leased: int = 0) -> bytes:
        """The request that the launcher takes; *target* is the cgroup directory of the container to enter.

        *leased*: as many locks come along, before the descriptors that the plan knows.
        """
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
        ids = None
        if self.ids is not None and not self.entered:
            ids = (id_map(self.ids.uids).encode(), id_map(self.ids.gids).encode())
        what = ident, self.flags, groups, [section.data for section in self.sections], program
        supervisor = None if self.listener is None else self.listener.wire(ident)
        ways = self.fork, self.outside, self.talks, target, hooks, ids, leased, supervisor
        return Request(*what, *ways).to_wire()


def compile(spec: Mapping[str, Any], groups: Sequence[Group] = (), host: Host | None = None, *,
            hold: bool = False, filter: Filter | None = None) -> Plan:  # fmt: skip
    """The plan for *spec*, in *groups*; with *hold* it stops right before execve and waits for the start.

    *filter* is that of the spec's seccomp profile, where the caller has it already.
    """
    host = host or Host()
    about = _Outline.of(spec, host)
    process, linux, given = spec["process"], spec["linux"], len(about.entered)
    filter = filter or compile_filter(linux.get("seccomp"))
    joins = sum(group.version == 1 for group in groups)
    cloned: list[trees.Tree] = []
    system, own = _mounts_of(about, given, cloned)
    root = _root_of(about)
    if linux.get("rootfsPropagation") in trees.PROPAGATING[:2]:
        root = root._replace(tree=abi.GIVEN + given + len(cloned))
        cloned.append(trees.Tree(root.path, recursive=True))
    if given + len(cloned) > abi.MOST_GIVEN:
        reason = f"at most {abi.MOST_GIVEN - given} of them can propagate or have mappings of their own"
        raise InvalidCommandError("mounts", reason)
    masked, readonly = tuple(_masked(about)), tuple(linux.get("readonlyPaths", ()))
    ahead, elsewhere = mounts.split_hidden(masked, readonly)
    prepared = ((system, *ahead, about.confined), bool(about.new & abi.CLONE_NEWNET), linux.get("mountLabel"))

    # What does not depend on the rest of the request can be done before it comes, where no namespace is there already.
    early = about.ids is None and not about.entered
    bounded = early and not spec.get("hooks")  # createContainer hooks have the launcher's rights
    kept = capabilities.mask(process["capabilities"]["bounding"]) & about.host.capabilities
    begin = _section(
        steps.begin, abi.FIRST_SLOT, joins, bool(joins) and about.makes_cgroup_namespace,
        prepared if early else None, (kept, about.host.last_capability) if bounded else None,
    )  # fmt: skip
    outer, clones = _enter(about, begin, root, own, host)
    contents = steps.Contents(
        files=about.annotated(ETC_ANNOTATION, {}),
        devices=_devices_of(spec),
        system=system,
        own=own,
        hidden=elsewhere,
        terminal=(process.get("consoleSize"), process["user"]["uid"]) if about.terminal else None,
        init=about.init,
        inside=about.confined,
        mount_label=linux.get("mountLabel"),
    )
    set_up = _section(
        steps.set_up, (*outer, begin)[0].slots, None if early else prepared, clones, root, contents, not about.hooked
    )
    inner = [set_up]
    hooks = None
    if about.hooked:  # they run before the last section so far
        inner.append(_section(mounts.pivot_to_prepared, set_up.slots))
        hooks = (len(outer) + 1, *_hooks_of(spec))
    # Not kept: most containers have a host name of their own.
    inner.append(_record(parameters.kernel_parameters, inner[-1].slots, *_parameters(about)))
    identified = (*_identity(process, filter, about.host), hold, about.init, bounded)
    inner.append(_section(identity.finish, inner[-1].slots, *identified))
    last = _last(process, filter, inner[-1].slots)
    if about.init and identity.asks(filter):
        # Init and payload have one listener between them, and so one filter: it is there before they part.
        inner.append(last)
        last = _section(identity.confine, last.slots, None, False)
    born = len(outer) - 1 if outer and about.is_born_inside else 0
    return Plan(
        flags=about.flags(joins),
        groups=tuple(groups),
        sections=(begin, *outer, *inner, last),
        program=_program(process),
        namespaces=about.namespaces,
        entered=about.entered,
        cloned=tuple(cloned),
        fork="init" if about.init else "",
        ids=about.ids,
        outside=born,
        hooks=hooks,
        talks=hold or about.terminal or bool(born) or about.hooked or identity.asks(filter),
    )


@frozen
class _Outline:
    """What the parts of a plan have to know of the spec, looked up once."""

    spec: Mapping[str, Any]
    host: Host  #: as it is from where the container is made
    ids: UserNamespace | None  #: those of a user namespace of its own
    inside: UserNamespace | None  #: the one in which it is made, which may be the caller's own
    namespaces: tuple[str, ...]
    entered: tuple[tuple[str, str | None], ...]
    new: int  #: clone's flags for those that are made

    @classmethod
    def of(cls, spec: Mapping[str, Any], host: Host) -> _Outline:
        ids = user_namespace_of(spec)
        if ids is not None:
            host = host.inside(ids)
        inside = None if host.initial else host.namespace or EVERYBODY
        namespaces = tuple(namespace["type"] for namespace in spec["linux"]["namespaces"])
        entered = entered_namespaces(spec)
        new = sum(abi.NAMESPACES[name] for name in namespaces if name not in dict(entered))
        return cls(spec, host, ids, inside, namespaces, entered, new)

    @property
    def confined(self) -> bool:
        """Whether it is made in a user namespace, where not all can be made anew."""
        return self.inside is not None

    @property
    def makes_cgroup_namespace(self) -> bool:
        """Whether the first process itself makes it, once it has joined its cgroups."""
        return self.ids is None and bool(self.new & abi.CLONE_NEWCGROUP)

    @property
    def is_born_inside(self) -> bool:
        """Whether the pid namespace takes a second process, which is born in it."""
        return self.ids is not None or "pid" in dict(self.entered)

    @property
    def terminal(self) -> bool:
        return bool(self.spec["process"].get("terminal"))

    @property
    def init(self) -> bool:
        return bool(self.spec.get("annotations", {}).get(INIT_ANNOTATION) == "true")

    @property
    def hooked(self) -> bool:
        """Whether it stops before pivot_root for what the launcher does."""
        return bool(self.spec.get("hooks")) or RELAY_ANNOTATION in self.spec.get("annotations", {})

    def annotated(self, name: str, default: Any) -> Any:
        """The value that travels as JSON in the annotation *name*."""
        text = self.spec.get("annotations", {}).get(name)
        return default if text is None else json.loads(text)

    def flags(self, joins: int) -> int:
        """clone3's flags."""
        if self.ids is not None:
            return 0  # they are made inside the user namespace, so that its root has rights over them
        if joins:
            return self.new & ~abi.CLONE_NEWCGROUP  # once the v1 cgroups are joined, or it would show the host's paths
        return self.new


def _enter(
    about: _Outline, begin: Section, root: steps.Root, own: Sequence[mounts.Mount], host: Host
) -> tuple[tuple[Section, ...], tuple[int, ...]]:
    """What enters the namespaces that are there already, or its own user namespace, and the slots that it fills.

    Where that takes a process that is born inside, its first steps come last.
    *host* is as it is from outside.
    """
    if about.ids is not None:
        mounter = None if root.overlay is None else _mounter_for(about, about.ids, host)
        new, network = about.new & ~abi.CLONE_NEWUSER, bool(about.entered)
        made = _section(steps.enter_user_namespace, begin.slots, root, own, new, mounter, network)
        first = begin.slots + 1
        clones = tuple(range(first, first + steps.clones_needed(root, own)))
        return (made, _section(steps.be_born, made.slots, False)), clones
    names = list(dict(about.entered))
    entering = [_section(steps.enter_given, begin.slots, names)] if names else []
    if about.is_born_inside:
        entering.append(_section(steps.be_born, begin.slots, False))
    return tuple(entering), ()


def _mounter_for(about: _Outline, ids: UserNamespace, host: Host) -> mounts.Mounter:
    uid, gid = (outside(0, maps) or 0 for maps in (ids.uids, ids.gids))
    rights = capabilities.mask(mounts.MOUNTER_CAPABILITIES) & host.capabilities
    return mounts.Mounter(uid, gid, rights, about.spec["linux"].get("mountLabel"), not host.initial)


def entered_namespaces(spec: Mapping[str, Any]) -> tuple[tuple[str, str | None], ...]:
    """OCI name and path of those namespaces of *spec* that exist before the container does.

    No path: the caller makes it, or knows which it is.  A network that is made
    before the container takes the user namespace that is to own it, which comes
    first.
    """
    annotations = spec.get("annotations", {})
    shared = set(json.loads(annotations[NAMESPACES_ANNOTATION])) if NAMESPACES_ANNOTATION in annotations else set()
    if NETWORK_ANNOTATION in annotations:
        shared |= {"network", "user"}
    found = [
        (namespace["type"], namespace.get("path"))
        for namespace in spec["linux"]["namespaces"]
        if namespace.get("path") or namespace["type"] in shared
    ]
    return tuple(sorted(found, key=lambda one: one[0] != "user"))


def _hooks_of(spec: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """What the hooks are told that does not change, and the hooks by OCI's names of their points."""
    programs = {point: list(map(_hook_of, hooks)) for point, hooks in spec.get("hooks", {}).items()}
    if (tool := spec.get("annotations", {}).get(RELAY_ANNOTATION)) is not None:
        programs["relay"] = [_hook_of(relay_of(tool))]
    return state_of(spec), programs


def state_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What of the container's OCI state does not change."""
    path = spec["root"]["path"]
    annotations = {k: v for k, v in spec.get("annotations", {}).items() if not k.startswith("org.pycontainer.")}
    return {
        "ociVersion": spec["ociVersion"],
        "bundle": path if path.startswith("/") else "/",
        "annotations": annotations,
    }


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
    loaded = not process.get("noNewPrivileges")
    return _section(identity.confine, slots, None if loaded and not identity.asks(filter) else filter, loaded)


def _program(process: Mapping[str, Any]) -> Program:
    argv = tuple(map(mounts.encode, process["args"]))
    env = tuple(map(mounts.encode, process["env"]))
    return Program(_candidates(argv[0], env), argv, env)


_sections: dict[object, tuple[Section, ...]] = {}


def _keep(key: object, sections: tuple[Section, ...]) -> tuple[Section, ...]:
    if len(_sections) >= 64:
        _sections.clear()
    _sections[key] = sections
    return sections


def _section(build: Callable[..., None], first_slot: int, *inputs: Any) -> Section:
    """The section that *build* records from *inputs*, kept: most containers differ in little."""
    plain = tuple([tuple(value) if isinstance(value, tuple) else value for value in inputs])  # a NamedTuple is none
    key = marshal.dumps(
        (build.__module__, build.__name__, first_slot, plain), 2
    )  # version 2: equal values, equal bytes
    kept = _sections.get(key) or _keep(key, (_record(build, first_slot, *inputs),))
    return kept[0]


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


def _root_of(about: _Outline) -> steps.Root:
    path, read_only = about.spec["root"]["path"], bool(about.spec["root"].get("readonly"))
    view, overlay = map(about.spec.get("annotations", {}).get, (ROOTFS_ANNOTATION, OVERLAY_ANNOTATION))
    plain = view is None and overlay is None
    host_read_only = read_only and plain and about.host.is_read_only(path)
    return steps.Root(path, view, overlay, read_only, host_read_only, _without_devices(about.spec))


def _mounts_of(about: _Outline, given: int, cloned: list[trees.Tree]) -> tuple[list[mounts.Mount], list[mounts.Mount]]:
    """Every mount, the system's and the others; those that the caller has to clone are added to *cloned*.

    Their slots come after *given* others.  Of the host's directories none
    brings devices along, where the container may not make any: it has no
    device rules.
    """
    wanted = about.spec["mounts"]
    if about.inside is not None:
        adapted = [_in_user_namespace(about, mount, about.inside) for mount in wanted]
        wanted = [mount for mount in adapted if mount is not None]
    barred = ["rnodev"] if _without_devices(about.spec) else []
    system: list[mounts.Mount] = []
    own: list[mounts.Mount] = []
    for m in wanted:
        slot = None
        if (tree := trees.wanted(m)) is not None:
            slot = abi.GIVEN + given + len(cloned)
            cloned.append(tree)
        bind = m["type"] == "bind"
        directory = not bind or about.host.is_directory(m["source"])
        options = [*m["options"], *barred] if bind and directory else m["options"]
        mount = (m["type"], m["source"], m["destination"], options, directory, slot)
        (system if mounts.is_system(mount) else own).append(mount)
    return system, own


#: What shows a namespace can be mounted by who owns that; where it is the host's there is only the host's mount of it.
_OF_NAMESPACE = {"proc": ("pid", "/proc"), "sysfs": ("network", "/sys"), "mqueue": ("ipc", "/dev/mqueue")}


def _in_user_namespace(about: _Outline, mount: Mapping[str, Any], inside: UserNamespace) -> Mapping[str, Any] | None:
    """*mount* as it can be made in a user namespace; None: the host has it not either."""
    namespace, source = _OF_NAMESPACE.get(mount["type"], ("mount", ""))
    if namespace not in about.namespaces:
        if not about.host.is_directory(source):
            return None
        return {**mount, "source": source}
    if mount["type"] == "devpts":
        # A group that does not exist there is EINVAL.
        options = [o for o in mount["options"] if not (o[:4] == "gid=" and outside(int(o[4:]), inside.gids) is None)]
        return {**mount, "options": options}
    return mount


def _masked(about: _Outline) -> Sequence[str]:
    masked: Sequence[str] = about.spec["linux"].get("maskedPaths", ())
    if about.confined and "network" not in about.namespaces:
        masked = (*masked, "/sys/fs/cgroup")  # it comes with the host's /sys, and is the host's (CVE-2023-25809)
    return masked


def _parameters(about: _Outline) -> tuple[Any, ...]:
    """The inputs of :func:`pycontainer_native.parameters.kernel_parameters`."""
    linux = about.spec["linux"]
    name = about.spec.get("hostname") if about.new & abi.CLONE_NEWUTS else None
    mounted = about.confined and not about.new & abi.CLONE_NEWPID
    standing = _standing(about.spec["process"])
    return (linux.get("rootfsPropagation"), name, linux.get("sysctl", {}), mounted, *standing)


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

    Its steps are kept, by all that they are made of: most further processes
    differ from one before in no more than the program.
    """
    host = host or Host()
    made_of = marshal.dumps({**process, "args": None, "env": None}, 2)
    key = made_of, joins, tuple(namespaces), filter, host, ids
    sections = _sections.get(key)
    if sections is None:
        sections = _keep(key, _sections_of_exec(process, joins, namespaces, filter, host, ids))
    return Plan(
        flags=0,
        groups=(),
        sections=sections,
        program=_program(process),
        namespaces=(),
        entered=(),
        cloned=(),
        fork="join",
        ids=None,
        outside=2,
        hooks=None,
        # Which process goes on it says as well, but is heard when it ends, or when the program has the channel closed.
        talks=bool(process.get("terminal")) or identity.asks(filter),
    )


def _sections_of_exec(
    process: Mapping[str, Any], joins: int, namespaces: Sequence[str], filter: Filter | None, host: Host,
    ids: UserNamespace | None,
) -> tuple[Section, ...]:  # fmt: skip
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
    return begin, enter, final, own, _last(process, filter, own.slots)


def _candidates(command: bytes, env: Sequence[bytes]) -> tuple[bytes, ...]:
    """The paths that execvp(3) would try: PATH is the container's own."""
    if b"/" in command:
        return (command,)
    path = next((entry[5:] for entry in env if entry.startswith(b"PATH=")), b"/usr/local/bin:/usr/bin:/bin")
    return tuple(b"/".join((directory or b".", command)) for directory in path.split(b":"))
