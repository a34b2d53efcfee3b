"""The isolation receipt: what the kernel says really holds for a container's main process.

What was asked for is in the Command; what came of it is in /proc.  A receipt
is read from /proc/PID and the cgroup file systems by nothing but plain reads,
so it is the same for every driver, and no driver has a say in it.
:meth:`Receipt.differences` compares the two.

A receipt is a snapshot of one process.  Where that is root, or has execve'd a
setuid program, it may have changed itself before.  Only one that was taken
before the first instruction (``receipt=True``) has a :class:`Beginning`.
What cannot be read :meth:`Receipt.unchecked` names: silence is no proof of it.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import attrs
from attrs import frozen

from pycontainer._fields import capability_numbers
from pycontainer.process import Rlimit

if TYPE_CHECKING:
    from pycontainer.command import Command

__all__ = [
    "Beginning",
    "CapabilitySets",
    "CgroupLimits",
    "CgroupPath",
    "DeviceNode",
    "Difference",
    "EffectiveLimits",
    "IdMap",
    "Ids",
    "Interface",
    "MountPoint",
    "Namespace",
    "Receipt",
    "SeccompState",
    "Unchecked",
    "read",
]


@frozen(kw_only=True)
class Namespace:
    """One namespace (namespaces(7))."""

    inode: int
    own: bool  #: it is another one than that of the process which read this


@frozen(kw_only=True)
class CapabilitySets:
    """The five sets of capabilities(7), as sorted names: ``CAP_CHOWN``."""

    effective: tuple[str, ...] = ()
    permitted: tuple[str, ...] = ()
    inheritable: tuple[str, ...] = ()
    bounding: tuple[str, ...] = ()
    ambient: tuple[str, ...] = ()


@frozen(kw_only=True)
class SeccompState:
    """System call filtering, as proc_pid_status(5) has it."""

    mode: str = "disabled"  #: ``disabled``, ``strict`` or ``filter``
    filters: int = 0  #: how many, those that it inherited included
    inherited: int = 0  #: how many the process has that read this


@frozen(kw_only=True)
class Ids:
    """The four of credentials(7), as numbers of the user namespace of whoever read this."""

    real: int
    effective: int
    saved: int
    filesystem: int


@frozen(kw_only=True)
class IdMap:
    """One line of uid_map or gid_map (user_namespaces(7))."""

    inside: int
    outside: int
    length: int


@frozen(kw_only=True)
class CgroupPath:
    """Where it is in one hierarchy, as seen from the cgroup namespace of whoever read this."""

    version: int  #: 1 or 2
    controllers: tuple[str, ...]
    path: str


@frozen(kw_only=True)
class EffectiveLimits:
    """The smallest limit on the way from its cgroup to the root: what really bounds it. None: there is none to see."""

    memory: int | None = None  #: bytes
    memory_swap: int | None = None  #: memory and swap together, in bytes
    cpus: float | None = None  #: quota divided by period
    cpu_shares: int | None = None  #: of its own cgroup, cgroup v1 (Linux's default is 1024)
    cpu_weight: int | None = None  #: of its own cgroup, cgroup v2 (Linux's default is 100)
    pids: int | None = None
    cpuset_cpus: str = ""  #: as cpuset(7) has lists
    cpuset_mems: str = ""
    #: By the Command's field, such as ``device_read_bps``, and the disk's ``major:minor``.
    disks: Mapping[str, Mapping[str, int]] = attrs.field(factory=dict)
    hugepages: Mapping[str, int] = attrs.field(factory=dict)  #: bytes, by size: ``2MB``


@frozen(kw_only=True)
class CgroupLimits:
    """What its own cgroup says, whatever those above it do; -1 is unlimited, None: there is no such file to read.

    Nothing is known of a hierarchy in which it has no cgroup of its own, but is in that of whoever read this.
    """

    memory: int | None = None
    memory_swap: int | None = None
    cpu_quota: int | None = None
    cpu_period: int | None = None
    cpu_shares: int | None = None
    cpu_weight: int | None = None
    pids: int | None = None
    cpuset_cpus: str | None = None  #: those that it may use; the cgroup above is asked for what it could
    cpuset_mems: str | None = None
    cpuset_cpus_above: str | None = None
    cpuset_mems_above: str | None = None
    blkio_weight: int | None = None  #: in the controller's own scale; 100 is the kernel's default
    disks: Mapping[str, Mapping[str, int]] = attrs.field(factory=dict)
    hugepages: Mapping[str, int] = attrs.field(factory=dict)
    devices: tuple[str, ...] | None = None  #: v1's devices.list


@frozen(kw_only=True)
class MountPoint:
    """One line of proc_pid_mountinfo(5); paths are the container's."""

    id: int
    parent: int
    root: str  #: what of the file system is mounted
    target: str
    type: str
    source: str
    options: tuple[str, ...]  #: of this mount
    super_options: tuple[str, ...]  #: of the file system
    propagation: tuple[str, ...] = ()  #: ``shared:N``, ``master:N``...; empty is private
    device: str = ""  #: ``major:minor`` of the file system

    @property
    def read_only(self) -> bool:
        """Whether nothing can be written by way of it."""
        return "ro" in self.options or "ro" in self.super_options


@frozen(kw_only=True)
class Interface:
    """One network interface (netdevice(7))."""

    name: str
    up: bool
    mac: str
    mtu: int
    addresses: tuple[str, ...]  #: ``10.0.0.2/24``: one of IPv4, those of IPv6 that it was given


@frozen(kw_only=True)
class DeviceNode:
    """One node in its /dev (mknod(2)); the ids are those of whoever read this."""

    path: str
    type: str  #: ``c`` or ``b``
    major: int
    minor: int
    mode: int
    uid: int
    gid: int


@frozen(kw_only=True)
class Beginning:
    """What a program begins with and may change itself later, so that it is only known before its first instruction."""

    environ: Mapping[str, str] | None = attrs.field(repr=False)  #: None where another user's may not be read
    cwd: str
    umask: int
    descriptors: Mapping[int, str] | None  #: likewise; what they lead to, as /proc/PID/fd has it
    niceness: int  #: sched(7), and the next
    policy: int
    ignored_signals: tuple[int, ...]
    blocked_signals: tuple[int, ...]
    caller_rlimits: tuple[Rlimit, ...]  #: those of the process which read this
    #: The filters that it has not inherited from whoever read this: ``flags:`` and the program in hexadecimal digits.
    #: None where they cannot be read.
    filters: tuple[str, ...] | None = attrs.field(repr=False)
    devices: tuple[DeviceNode, ...] | None  #: None where its /dev is not in memory, or may not be looked at
    files: Mapping[str, str]  #: the content of those of :mod:`pycontainer.etc` that are mounted


@frozen
class Unchecked:
    """One thing of which a receipt says nothing, whether it is as it was asked for or not."""

    field: str  #: the Command's, or what else a driver has to do
    reason: str

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}"


@frozen
class Difference:
    """One thing that is not as it was asked for; the values are such that JSON has them."""

    field: str  #: the Command's, such as ``process.no_new_privileges``
    asked: Any
    found: Any

    def __str__(self) -> str:
        if type(self.asked) is type(self.found) is list:
            lacking = [item for item in self.asked if item not in self.found]
            beyond = [item for item in self.found if item not in self.asked]
            return f"{self.field}: lacks {lacking}, and has {beyond} beyond what was asked for"
        return f"{self.field}: asked for {self.asked!r}, found {self.found!r}"


@frozen(kw_only=True)
class Receipt:
    """What holds for one process. See :mod:`pycontainer.receipt`."""

    pid: int  #: in the pid namespace of whoever read this
    namespaces: Mapping[str, Namespace]  #: by their names in /proc/PID/ns: ``mnt``, ``net``, ``user``...
    capabilities: CapabilitySets
    seccomp: SeccompState
    no_new_privileges: bool
    uid: Ids
    gid: Ids
    groups: tuple[int, ...]  #: supplementary ones
    uid_map: tuple[IdMap, ...]
    gid_map: tuple[IdMap, ...]
    cgroups: tuple[CgroupPath, ...]
    limits: EffectiveLimits
    rlimits: tuple[Rlimit, ...]
    mounts: tuple[MountPoint, ...]
    oom_score_adj: int
    label: str | None = None  #: AppArmor's or SELinux's; None where the kernel has neither
    pid_inside: int | None = None  #: in its own pid namespace
    parent: int | None = None
    session: int | None = None  #: its leader's pid; 0 is one outside of the pid namespace of whoever read this
    terminal: bool | None = None  #: whether it has a controlling one
    own_limits: CgroupLimits | None = None
    hostname: str | None = None  #: None where the uts namespace cannot be entered, or is that of whoever read this
    #: By their paths below /proc/sys: those of its own ipc, net and uts namespaces.
    sysctls: Mapping[str, str] | None = attrs.field(default=None, repr=False)
    interfaces: tuple[Interface, ...] | None = None  #: of a network namespace of its own
    gateways: tuple[str, ...] | None = None
    #: Of the namespaces of its own, a process that is in them too, though not in its mounts and its cgroups.
    shared: Mapping[str, int] = attrs.field(factory=dict)
    beginning: Beginning | None = None

    @property
    def read_only(self) -> bool:
        """Whether its root file system is."""
        return self.covering("/").read_only

    @property
    def has_own_users(self) -> bool:
        """Whether it is in a user namespace of its own; false on a kernel without them."""
        return "user" in self.namespaces and self.namespaces["user"].own

    def covering(self, path: str) -> MountPoint:
        """The mount that *path* is on, without regard to links: the topmost one, as a lookup would find it."""
        ids = {mount.id for mount in self.mounts}
        current = next(mount for mount in self.mounts if mount.parent not in ids or mount.parent == mount.id)
        seen = {current.id}
        while True:
            # What is mounted here, and of that first what is mounted on this very place: it hides the others.
            on = [m for m in self.mounts if m.parent == current.id and m.id not in seen and _is_at(path, m.target)]
            if not on:
                return current
            current = min(on, key=lambda mount: len(mount.target))
            seen.add(current.id)

    def differences(self, command: Command) -> tuple[Difference, ...]:
        """Everything in which this is not what *command* asks for, its defaults included.

        What is stronger than asked is no difference where it cannot be told
        from the host's own limits: a read-only mount of a read-only disk, a
        user namespace around an unprivileged caller.  What cannot be compared
        is no difference either, but :meth:`unchecked`.  Paths of *command* are
        looked up now, where this process sees them.  Raises
        InvalidCommandError: the user is not known in the rootfs.
        """
        from pycontainer._differences import compare

        return tuple(one for one in compare(self, command) if isinstance(one, Difference))

    def unchecked(self, command: Command) -> tuple[Unchecked, ...]:
        """Everything that *command* asks for and this says nothing of, and why. Raises as :meth:`differences`."""
        from pycontainer._differences import compare

        return tuple(one for one in compare(self, command) if isinstance(one, Unchecked))

    def to_data(self) -> dict[str, Any]:
        """All of it as what JSON has, but for the values of environment variables: they may be secrets."""
        data = attrs.asdict(self)
        if self.beginning is not None and self.beginning.environ is not None:
            data["beginning"]["environ"] = dict.fromkeys(self.beginning.environ)
        return data

    def to_json(self) -> str:
        """All of it as JSON."""
        import json

        return json.dumps(self.to_data())

    def lines(self) -> Iterator[str]:
        """What two containers of one Command have in common, for people and for comparison: no ids, no host paths."""
        spaces = sorted(self.namespaces.items())
        yield f"own namespaces: {' '.join(name for name, space in spaces if space.own)}"
        yield f"the host's: {' '.join(name for name, space in spaces if not space.own)}"
        for name, names in attrs.asdict(self.capabilities).items():
            yield f"{name} capabilities: {' '.join(names)}"
        yield f"seccomp: {self.seccomp.mode}, {self.seccomp.filters} filters"
        yield f"no new privileges: {self.no_new_privileges}"
        yield f"uid {' '.join(map(str, attrs.astuple(self.uid)))}, gid {' '.join(map(str, attrs.astuple(self.gid)))}"
        yield f"groups: {' '.join(map(str, sorted(self.groups)))}"
        for name, value in attrs.asdict(self.limits).items():
            if value != {}:
                yield f"limit {name}: {value}"
        for limit in self.rlimits:
            yield f"{limit.type}: {limit.soft} {limit.hard}"
        yield f"oom_score_adj: {self.oom_score_adj}"
        yield f"label: {self.label}"
        for mount in sorted(self.mounts, key=lambda mount: mount.target):
            yield f"mount {mount.target}: {mount.type} {','.join(sorted(mount.options))}"


def _is_at(path: str, directory: str) -> bool:
    return path == directory or directory == "/" or path.startswith(f"{directory}/")


# -- reading it


def read(pid: int, pidfd: int = -1) -> Receipt:
    """The receipt of process *pid*, which *pidfd*, if there is one, is a pidfd of.

    All of it is of one and the same process: its directory in /proc is opened
    once, and names no other process when this one has gone.  Raises
    ProcessLookupError: it has ended before everything was read;
    PermissionError: it may not be looked at by this one (ptrace(2)).
    """
    own = os.pidfd_open(pid) if pidfd < 0 else -1
    try:
        directory = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _check_alive(pid, pidfd if pidfd >= 0 else own)
            found = _read(pid, directory)
            _check_alive(pid, pidfd if pidfd >= 0 else own)
        except OSError:
            _check_alive(pid, pidfd if pidfd >= 0 else own)  # of a zombie most things cannot be read
            _check_not_ending(pid, directory)
            raise
        finally:
            os.close(directory)
    except FileNotFoundError:
        raise ProcessLookupError(f"process {pid} has ended") from None
    finally:
        if own >= 0:
            os.close(own)
    return found


def _check_alive(pid: int, pidfd: int) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if poll.poll(0):
        raise ProcessLookupError(f"process {pid} has ended")


def _check_not_ending(pid: int, directory: int) -> None:
    """One that is about to be a zombie has no mounts any more, for example: EINVAL."""
    flags = int(_text(directory, "stat").rpartition(")")[2].split()[6])
    if flags & 0x4:  # PF_EXITING (linux/sched.h)
        raise ProcessLookupError(f"process {pid} is ending")


def _read(pid: int, directory: int) -> Receipt:
    status = dict(line.split(":\t", 1) for line in _text(directory, "status").splitlines() if ":\t" in line)
    ours = dict(line.split(":\t", 1) for line in _text(_SELF, "status").splitlines() if ":\t" in line)
    from pycontainer._cgroup_limits import paths_and_limits

    cgroups, limits, own_limits = paths_and_limits(_text(directory, "cgroup"), _text(_SELF, "cgroup"))
    limits = attrs.evolve(limits, cpuset_cpus=status["Cpus_allowed_list"], cpuset_mems=status["Mems_allowed_list"])
    namespaces = dict(_namespaces(directory))
    if "mnt" not in namespaces:
        raise ProcessLookupError(f"process {pid} is ending")  # it has let go of them already
    stat = _text(directory, "stat").rpartition(")")[2].split()  # from the third field on: proc_pid_stat(5)
    found = Receipt(
        pid=pid,
        namespaces=namespaces,
        capabilities=CapabilitySets(**{name: _names(status[key]) for name, key in _SETS.items()}),
        seccomp=SeccompState(
            mode=_MODES.get(status.get("Seccomp", "0"), "unknown"),
            filters=int(status.get("Seccomp_filters", 0)),  # proc_pid_status(5): Linux 5.9
            inherited=int(ours.get("Seccomp_filters", 0)),
        ),
        no_new_privileges=status["NoNewPrivs"] == "1",
        uid=Ids(**dict(zip(_IDS, map(int, status["Uid"].split()), strict=True))),
        gid=Ids(**dict(zip(_IDS, map(int, status["Gid"].split()), strict=True))),
        groups=tuple(map(int, status["Groups"].split())),
        uid_map=tuple(_id_maps(_text(directory, "uid_map"))),
        gid_map=tuple(_id_maps(_text(directory, "gid_map"))),
        cgroups=cgroups,
        limits=limits,
        rlimits=tuple(_rlimits(_text(directory, "limits"))),
        mounts=tuple(mount_points(_text(directory, "mountinfo"))),
        oom_score_adj=int(_text(directory, "oom_score_adj")),
        label=_label(directory),
        pid_inside=int(status["NSpid"].split()[-1]),
        parent=int(stat[1]),
        session=int(stat[3]),
        terminal=stat[4] != "0",
        own_limits=own_limits,
        shared=dict(_shared(namespaces, cgroups)),
        **_seen_inside(directory, namespaces),
    )
    from pycontainer._receipt_beginning import beginning

    return attrs.evolve(found, beginning=beginning(found, directory, lambda name: _text(directory, name)))


#: In place of a descriptor: the process that reads.
_SELF = -1
_MODES = {"0": "disabled", "1": "strict", "2": "filter"}
_IDS = ("real", "effective", "saved", "filesystem")
_SETS = {
    "effective": "CapEff",
    "permitted": "CapPrm",
    "inheritable": "CapInh",
    "bounding": "CapBnd",
    "ambient": "CapAmb",
}


def _text(directory: int, name: str) -> str:
    path = f"/proc/self/{name}" if directory == _SELF else name
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=None if directory == _SELF else directory)
    with open(fd, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def _namespaces(directory: int) -> Iterator[tuple[str, Namespace]]:
    for name in ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"):
        with contextlib.suppress(FileNotFoundError):  # a kernel without this kind
            link = os.readlink(f"ns/{name}", dir_fd=directory)
            inode = int(link.partition("[")[2].rstrip("]"))
            yield name, Namespace(inode=inode, own=link != os.readlink(f"/proc/self/ns/{name}"))


def _shared(namespaces: Mapping[str, Namespace], cgroups: tuple[CgroupPath, ...]) -> Iterator[tuple[str, int]]:
    """Of each own namespace a process that is in it, and neither in its mount namespace nor below its cgroups.

    Those that whoever reads this may not look at are passed over.
    """
    links = {name: f"{name}:[{space.inode}]" for name, space in namespaces.items() if space.own}
    wanted = {name: link for name, link in links.items() if name in ("ipc", "net", "pid", "uts")}
    below = tuple(f"{cgroup.path}/" for cgroup in cgroups if cgroup.path != "/")
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if not wanted:
            return
        with contextlib.suppress(OSError):
            found = [name for name, link in wanted.items() if os.readlink(f"/proc/{pid}/ns/{name}") == link]
            if not found or os.readlink(f"/proc/{pid}/ns/mnt") == f"mnt:[{namespaces['mnt'].inode}]":
                continue
            with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
                if any(f"{line.rstrip().split(':', 2)[2]}/".startswith(below) for line in file):
                    continue
            for name in found:
                del wanted[name]
                yield name, int(pid)


def _seen_inside(directory: int, namespaces: Mapping[str, Namespace]) -> dict[str, Any]:
    """What has to be looked for in its own uts, ipc and net namespaces."""
    from pycontainer._receipt_inside import look

    names = [name for name in ("uts", "ipc", "net") if name in namespaces and namespaces[name].own]
    if not names:
        return {"sysctls": {}}
    opened: dict[str, int] = {}
    try:
        for name in (*names, *(["user"] if "user" in namespaces and namespaces["user"].own else [])):
            opened[name] = os.open(f"ns/{name}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
        user = opened.pop("user", -1)
        try:
            seen = look(opened, user)
        finally:
            if user >= 0:
                os.close(user)
    finally:
        for fd in opened.values():
            os.close(fd)
    if seen is not None and "net" in names:
        seen["interfaces"] = tuple(
            Interface(**{**one, "addresses": tuple(one["addresses"])}) for one in seen["interfaces"]
        )
        seen["gateways"] = tuple(seen["gateways"])
    return seen or {}


def _names(mask: str) -> tuple[str, ...]:
    known = {number: name for name, number in capability_numbers().items()}
    bits = int(mask, 16)
    return tuple(sorted(known.get(n, f"CAP_{n}") for n in range(bits.bit_length()) if bits >> n & 1))


def _id_maps(text: str) -> Iterator[IdMap]:
    for line in text.splitlines():
        inside, outside, length = map(int, line.split())
        yield IdMap(inside=inside, outside=outside, length=length)


#: The names in /proc/PID/limits, of fs/proc/base.c, and getrlimit(2)'s.
_RLIMITS = {
    "Max cpu time": "CPU",
    "Max file size": "FSIZE",
    "Max data size": "DATA",
    "Max stack size": "STACK",
    "Max core file size": "CORE",
    "Max resident set": "RSS",
    "Max processes": "NPROC",
    "Max open files": "NOFILE",
    "Max locked memory": "MEMLOCK",
    "Max address space": "AS",
    "Max file locks": "LOCKS",
    "Max pending signals": "SIGPENDING",
    "Max msgqueue size": "MSGQUEUE",
    "Max nice priority": "NICE",
    "Max realtime priority": "RTPRIO",
    "Max realtime timeout": "RTTIME",
}


def _rlimits(text: str) -> Iterator[Rlimit]:
    for line in text.splitlines():
        name = _RLIMITS.get(line[:25].rstrip())
        if name is not None:
            soft, hard = (-1 if value == "unlimited" else int(value) for value in line[25:].split()[:2])
            yield Rlimit(f"RLIMIT_{name}", soft, hard)


def mount_points(text: str) -> Iterator[MountPoint]:
    """The lines of a mountinfo."""
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        id, parent, device, root, target, options, *optional = before.split(" ")
        type, source, super_options = after.split(" ", 2)
        yield MountPoint(
            id=int(id),
            parent=int(parent),
            root=_unescaped(root),
            target=_unescaped(target),
            type=type,
            source=_unescaped(source),
            options=tuple(options.split(",")),
            super_options=tuple(_unescaped(super_options).split(",")),
            propagation=tuple(filter(None, optional)),
            device=device,
        )


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text) if "\\" in text else text


def _label(directory: int) -> str | None:
    try:
        return _text(directory, "attr/current").rstrip("\0\n") or None
    except PermissionError:
        raise
    except OSError:
        return None  # EINVAL: no security module has anything to say
