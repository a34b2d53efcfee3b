"""What to run: the :class:`Command`, Docker 0.9's ``execdriver.Command`` for today.

A Command is a value: immutable, comparable, hashable, picklable, and the same
for every driver.  Each field is checked when the object is made, so that an
impossible one is an :class:`~pycontainer.errors.InvalidCommandError` naming
the field before anything has been created.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import attrs
from attrs import field, frozen

from pycontainer import _fields as check
from pycontainer._fields import FrozenMapping, refuse, store
from pycontainer.errors import InvalidCommandError
from pycontainer.mount import PROPAGATIONS, Mount, as_mappings, check_mappings
from pycontainer.network import Network, as_network, check_networks
from pycontainer.process import DEFAULT_CAPABILITIES, DEFAULT_PATH, Process, Rlimit
from pycontainer.resources import Resources

if TYPE_CHECKING:
    from pycontainer.device import Device
    from pycontainer.hooks import Hooks
    from pycontainer.rootfs import HostView, Overlay

__all__ = [
    "COMMAND_KEYWORDS",
    "DEFAULT_CAPABILITIES",
    "DEFAULT_PATH",
    "Command",
    "Mount",
    "Network",
    "Process",
    "Resources",
    "Rlimit",
]

#: Annotations that change what a runtime does: ours, and those of runc and crun (CVE-2024-3154).
RESERVED_ANNOTATIONS = ("org.pycontainer.", "org.systemd.", "run.oci.")

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_HOSTNAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_CGROUP = re.compile(r"/?[A-Za-z0-9_:@-][A-Za-z0-9_.:@-]{0,254}(/[A-Za-z0-9_:@-][A-Za-z0-9_.:@-]{0,254})*")


def _as_mounts(value: Sequence[Mount]) -> tuple[Mount, ...]:
    return check.as_tuple(value)  # type: ignore[no-any-return]


def _as_devices(value: Sequence[Device]) -> tuple[Device, ...]:
    return check.as_tuple(value)  # type: ignore[no-any-return]


_NO_LIMITS = Resources()
_NOTHING = FrozenMapping()


@frozen(kw_only=True)
class Command:
    """A container to be: Docker 0.9's Command, the same through every driver.

    *rootfs* is an absolute path, None for a throw-away view of the host's own
    programs, or a value of :mod:`pycontainer.rootfs`.  *hostname* None is the
    *id*.  *network*, *pid*, *ipc* and *uts* None are namespaces of the
    container's own, ``"host"`` the host's, ``"container:ID"`` those of a running
    container of the same driver object, ``"ns:/path"`` those at a path like
    ``/proc/PID/ns/ipc``; *network* may be several, all of the mode bridge.
    *masked_paths* and *readonly_paths* None are the OCI defaults.  *seccomp* None is the default profile of
    :mod:`pycontainer.seccomp`, or with *privileged* no filter;
    ``"unconfined"`` is none, a mapping is a profile in the form of OCI's
    ``linux.seccomp``.  *dns* (addresses), *dns_search* (domains)
    and *extra_hosts* (name to address, or ``"host-gateway"``) are Docker's: see
    :mod:`pycontainer.etc`.  *sysctls* are kernel parameters of namespaces that are
    the container's own: of ``net.*``, of System V IPC and POSIX message queues.
    *oom_score_adj*, -1000 to 1000, makes the kernel kill its processes later
    or sooner (proc_pid_oom_score_adj(5)); *cpu_affinity* is the list of
    processors that they start on, which unlike *cpuset_cpus* they may change
    (sched_setaffinity(2)).  None are the kernel's defaults for both, whatever
    the caller's are.  *hooks* are programs run at points of its life.
    *userns* ``"auto"`` is a user namespace with 65536 ids of its own, which no
    other container has meanwhile; *uid_mappings* and *gid_mappings* say which
    instead (user_namespaces(7)): of each (first id in the container, first id
    on the host, number of ids).  Its root then is nobody on the host.  Files of
    the rootfs and of bind mounts are inside whose they are on the disk.
    *apparmor_profile* and *selinux_label* confine it and whatever ``exec`` adds,
    *mount_label* is the SELinux context of the file systems that are made for it
    (:mod:`pycontainer.labels`); None leaves that to the kernel's policy.
    *config* holds driver-specific raw values, as in 0.9.

    :meth:`of` makes one from flat keywords.  Raises InvalidCommandError.
    """

    id: str
    process: Process
    rootfs: str | HostView | Overlay | None = None
    hostname: str | None = None
    mounts: tuple[Mount, ...] = field(default=(), converter=_as_mounts)
    devices: tuple[Device, ...] = field(default=(), converter=_as_devices)
    resources: Resources = _NO_LIMITS
    network: Network | tuple[Network, ...] | None = field(default=None, converter=as_network)
    pid: str | None = None
    ipc: str | None = None
    uts: str | None = None
    userns: str | None = None
    uid_mappings: tuple[tuple[int, int, int], ...] = field(default=(), converter=as_mappings)
    gid_mappings: tuple[tuple[int, int, int], ...] = field(default=(), converter=as_mappings)
    read_only: bool = False
    rootfs_propagation: str | None = None
    init: bool = False
    seccomp: str | Mapping[str, Any] | None = None
    masked_paths: tuple[str, ...] | None = field(default=None, converter=check.as_texts_or_none)
    readonly_paths: tuple[str, ...] | None = field(default=None, converter=check.as_texts_or_none)
    cgroup_parent: str | None = None
    dns: tuple[str, ...] = field(default=(), converter=check.as_texts)
    dns_search: tuple[str, ...] = field(default=(), converter=check.as_texts)
    extra_hosts: Mapping[str, str] = _NOTHING
    sysctls: Mapping[str, str] = _NOTHING
    oom_score_adj: int | None = None
    cpu_affinity: str | None = None
    apparmor_profile: str | None = None
    selinux_label: str | None = None
    mount_label: str | None = None
    hooks: Hooks | None = None
    config: tuple[str, ...] = field(default=(), converter=check.as_texts)
    annotations: Mapping[str, str] = _NOTHING

    def __attrs_post_init__(self) -> None:
        check.matching("id", self.id, _ID)
        check.instance("process", self.process, Process)
        if type(self.rootfs) is str:
            store(self, "rootfs", check.host_path("rootfs", self.rootfs))
        elif self.rootfs is not None:
            from pycontainer.rootfs import HostView, Overlay

            if type(self.rootfs) is not Overlay:
                check.instance("rootfs", self.rootfs, HostView, "a path, None, or a value of pycontainer.rootfs")
        if self.hostname is not None:
            check.matching("hostname", self.hostname, _HOSTNAME)
            if self.uts is not None:
                refuse("hostname", f"would change the name of others, for uts is {self.uts!r}")
        if check.items("mounts", self.mounts):
            check.instances("mounts", self.mounts, Mount)
            for mount in self.mounts:
                if mount.source is not None and not mount.source.startswith("/"):
                    refuse("mounts.source", f"{mount.source!r} is not absolute")
            if len({mount.target for mount in self.mounts}) != len(self.mounts):
                refuse("mounts.target", "two mounts have the same one")
            for shared in self.mounts:
                if shared.propagation not in ("shared", "rshared") or shared.source is None:
                    continue
                for mount in self.mounts:
                    if mount.target.startswith(f"{shared.target}/"):
                        refuse("mounts.target", f"{mount.target} would appear on the host: {shared.source} is shared")
        if check.items("devices", self.devices):
            self._check_devices()
        check.instance("resources", self.resources, Resources)
        if self.network is not None:
            check_networks(self.networks)
        for name in ("pid", "ipc", "uts"):
            if getattr(self, name) not in (None, "host"):
                _check_shared(name, getattr(self, name))
        if self.userns is not None or self.uid_mappings != () or self.gid_mappings != ():
            self._check_user_namespace()
        check.boolean("read_only", self.read_only)
        check.boolean("init", self.init)
        if self.rootfs_propagation is not None and self.rootfs_propagation not in PROPAGATIONS:
            refuse("rootfs_propagation", f"{self.rootfs_propagation!r} is none of {', '.join(PROPAGATIONS)}")
        if self.seccomp is not None and self.seccomp != "unconfined":
            from pycontainer.seccomp import check_profile

            if isinstance(self.seccomp, str):
                refuse("seccomp", f"{self.seccomp!r} is neither 'unconfined' nor a profile; Command.of reads files")
            store(self, "seccomp", check_profile(self.seccomp))
        for name in ("masked_paths", "readonly_paths"):
            paths = getattr(self, name)
            if paths is not None:
                store(self, name, tuple(check.path(name, path) for path in check.items(name, paths)))
        if self.cgroup_parent is not None:
            check.matching("cgroup_parent", self.cgroup_parent, _CGROUP)
        if (self.dns, self.dns_search) != ((), ()):
            from pycontainer.etc import check_dns

            check_dns(self.dns, self.dns_search)
        if self.extra_hosts is not _NOTHING:
            from pycontainer.etc import check_extra_hosts

            store(self, "extra_hosts", check_extra_hosts(self.extra_hosts))
        if self.sysctls is not _NOTHING:
            from pycontainer.sysctl import check_namespaces, check_sysctls

            store(self, "sysctls", check_sysctls(self.sysctls))
            check_namespaces(self)
        if self.oom_score_adj is not None:
            check.integer("oom_score_adj", self.oom_score_adj, -1000, 1000)
        if self.cpu_affinity is not None:
            check.cpuset("cpu_affinity", self.cpu_affinity)
        if self.is_labelled:
            from pycontainer.labels import check_labels

            check_labels(self)
        if self.hooks is not None:
            from pycontainer.hooks import Hooks

            check.instance("hooks", self.hooks, Hooks)
        for value in check.items("config", self.config):
            check.line("config", value)
        if self.annotations is not _NOTHING:
            store(self, "annotations", check.environment("annotations", self.annotations))
            for key in self.annotations:
                if key.startswith(RESERVED_ANNOTATIONS):
                    refuse("annotations", f"{key!r} is reserved: it would change what a runtime does")

    def _check_user_namespace(self) -> None:
        if self.userns is not None:
            if self.userns != "auto":
                refuse("userns", f"{self.userns!r} is not 'auto'; uid_mappings and gid_mappings say which ids")
            if self.uid_mappings or self.gid_mappings:
                refuse("userns", "'auto' chooses the ids: give it or uid_mappings and gid_mappings")
        else:
            for name in ("uid_mappings", "gid_mappings"):
                mappings = getattr(self, name)
                check_mappings(name, mappings, ("in the container", "on the host"))
                if not any(inside == 0 for inside, _, _ in mappings):
                    refuse(name, "there has to be an id 0, the root that sets the container up")
                if any(outside == 0 for _, outside, _ in mappings):
                    refuse(name, "the host's id 0 must not be in it: its root would be the host's")
        for name in ("pid", "ipc", "uts"):
            if getattr(self, name) not in (None, "host"):
                refuse("userns", f"{name} is another's namespace, over which root in this one has no rights")
        if any(network.mode == "container" or network.path is not None for network in self.networks):
            refuse("userns", "the network is another's namespace, over which root in this one has no rights")

    @property
    def is_labelled(self) -> bool:
        """Whether it asks for any label of :mod:`pycontainer.labels`."""
        return not (self.apparmor_profile is self.selinux_label is self.mount_label is None)

    @property
    def networks(self) -> tuple[Network, ...]:
        """:attr:`network` as a tuple: empty for None."""
        if self.network is None:
            return ()
        return self.network if isinstance(self.network, tuple) else (self.network,)

    def _check_devices(self) -> None:
        from pycontainer.device import Device

        check.instances("devices", self.devices, Device)
        paths = [device.container_path for device in self.devices]
        for path in paths:
            if paths.count(path) > 1:
                refuse("devices.container_path", f"two devices have the same one, {path}")
            if any(other.startswith(path + "/") for other in paths):
                refuse("devices.container_path", f"{path} cannot be a device and a directory with another in it")

    @classmethod
    def of(
        cls,
        argv: Sequence[str | bytes | os.PathLike[str]],
        *,
        rootfs: str | os.PathLike[str] | HostView | Overlay | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] = "/",
        user: str | int | None = None,
        groups: Iterable[str | int] = (),
        additional_groups: Iterable[str | int] = (),
        hostname: str | None = None,
        memory: int | str | None = None,
        memory_swap: int | str | None = None,
        cpus: float | None = None,
        cpu_shares: int | None = None,
        cpu_quota: int | None = None,
        cpu_period: int | None = None,
        pids_limit: int | None = None,
        cpuset_cpus: str | None = None,
        cpuset_mems: str | None = None,
        blkio_weight: int | None = None,
        blkio_weight_device: Mapping[str, int] | None = None,
        device_read_bps: Mapping[str, int | str] | None = None,
        device_write_bps: Mapping[str, int | str] | None = None,
        device_read_iops: Mapping[str, int] | None = None,
        device_write_iops: Mapping[str, int] | None = None,
        hugepage_limits: Mapping[str, int | str] | None = None,
        device_cgroup_rules: Sequence[str] | None = None,
        mounts: Iterable[Mount] = (),
        devices: Iterable[Device | str] = (),
        network: Network | str | Iterable[Network | str] | None = None,
        tty: bool = False,
        privileged: bool = False,
        read_only: bool = False,
        rootfs_propagation: str | None = None,
        capabilities: Iterable[str] | None = None,
        cap_add: Iterable[str] = (),
        cap_drop: Iterable[str] = (),
        name: str | None = None,
        rlimits: Mapping[str, int | tuple[int, int]] | Iterable[Rlimit] = (),
        no_new_privileges: bool = True,
        init: bool = False,
        pid: str | None = None,
        ipc: str | None = None,
        uts: str | None = None,
        userns: str | None = None,
        uid_mappings: Iterable[tuple[int, int, int]] = (),
        gid_mappings: Iterable[tuple[int, int, int]] = (),
        seccomp: str | os.PathLike[str] | Mapping[str, Any] | None = None,
        masked_paths: Iterable[str] | None = None,
        readonly_paths: Iterable[str] | None = None,
        cgroup_parent: str | None = None,
        dns: Iterable[str] = (),
        dns_search: Iterable[str] = (),
        extra_hosts: Mapping[str, str] | None = None,
        sysctls: Mapping[str, str | int] | None = None,
        oom_score_adj: int | None = None,
        cpu_affinity: str | None = None,
        apparmor_profile: str | None = None,
        selinux_label: str | None = None,
        mount_label: str | None = None,
        hooks: Hooks | None = None,
        config: Iterable[str] = (),
        annotations: Mapping[str, str] | None = None,
        **unknown: NoReturn,
    ) -> Command:
        """A Command from an argv and the flat keywords of :func:`pycontainer.run`.

        Relative paths of the host (*rootfs*, a mount's source) are taken from
        the caller's working directory.  *seccomp* may be the path of a profile
        in JSON, which is read now.  *name* becomes the id, None twelve
        random hexadecimal digits.  *cpus* is a number of processors, put down
        as a quota in a period of 100000 us.  *rlimits* may be a mapping,
        ``{"nofile": 64}`` or ``{"nofile": (64, 128)}``.  *cap_add* and
        *cap_drop* change the default set as in Docker.  A device may be text,
        as for :meth:`Device.parse`.

        Raises InvalidCommandError; TypeError for a keyword that does not exist.
        """
        if unknown:
            raise TypeError(check.unknown_keyword(next(iter(unknown)), COMMAND_KEYWORDS))
        if groups and additional_groups:
            refuse("process.additional_groups", "groups is the same under its short name: give one of them")
        limits: dict[str, Any] = {
            "memory": memory,
            "memory_swap": memory_swap,
            "cpus": cpus,
            "cpu_shares": cpu_shares,
            "cpu_quota": cpu_quota,
            "cpu_period": cpu_period,
            "pids_limit": pids_limit,
            "cpuset_cpus": cpuset_cpus,
            "cpuset_mems": cpuset_mems,
            "blkio_weight": blkio_weight,
            "blkio_weight_device": blkio_weight_device,
            "device_read_bps": device_read_bps,
            "device_write_bps": device_write_bps,
            "device_read_iops": device_read_iops,
            "device_write_iops": device_write_iops,
            "hugepage_limits": hugepage_limits,
            "device_cgroup_rules": device_cgroup_rules,
        }
        return cls(
            id=os.urandom(6).hex() if name is None else name,
            process=Process.of(
                argv,
                env=env,
                cwd=cwd,
                user=user,
                groups=groups or additional_groups,
                tty=tty,
                privileged=privileged,
                capabilities=capabilities,
                cap_add=cap_add,
                cap_drop=cap_drop,
                rlimits=rlimits,
                no_new_privileges=no_new_privileges,
            ),
            rootfs=_existing(rootfs),
            hostname=hostname,
            mounts=tuple(map(_from_here, check.several("mounts", mounts))),
            devices=tuple(map(_existing_device, check.several("devices", devices))) if devices else (),
            resources=_NO_LIMITS if all(limit is None for limit in limits.values()) else Resources.of(**limits),
            network=network,
            pid=pid,
            ipc=ipc,
            uts=uts,
            userns=userns,
            uid_mappings=check.several("uid_mappings", uid_mappings),
            gid_mappings=check.several("gid_mappings", gid_mappings),
            read_only=read_only,
            rootfs_propagation=rootfs_propagation,
            init=init,
            seccomp=_profile(seccomp),
            masked_paths=None if masked_paths is None else check.several("masked_paths", masked_paths),
            readonly_paths=None if readonly_paths is None else check.several("readonly_paths", readonly_paths),
            cgroup_parent=cgroup_parent,
            dns=check.several("dns", dns),
            dns_search=check.several("dns_search", dns_search),
            extra_hosts=_NOTHING if extra_hosts is None else extra_hosts,
            sysctls=_NOTHING if sysctls is None else sysctls,  # type: ignore[arg-type]
            oom_score_adj=oom_score_adj,
            cpu_affinity=cpu_affinity,
            apparmor_profile=apparmor_profile,
            selinux_label=selinux_label,
            mount_label=mount_label,
            hooks=hooks,
            config=check.several("config", config),
            annotations=_NOTHING if annotations is None else annotations,
        )

    def copy_with(self, **changes: Any) -> Command:
        """This Command with other values for some fields, checked anew. Raises InvalidCommandError, TypeError."""
        return attrs.evolve(self, **changes)

    def to_json(self) -> str:
        """This Command as JSON, without loss: :meth:`from_json` gives an equal one, on any machine."""
        import json

        return json.dumps(_to_data(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Command:
        """The Command that :meth:`to_json` wrote, checked like any other. Raises InvalidCommandError."""
        import json

        try:
            data = json.loads(text, object_pairs_hook=_without_duplicates)
        except (ValueError, RecursionError) as error:
            if isinstance(error, InvalidCommandError):
                raise
            raise InvalidCommandError("command", f"is not JSON: {error}") from None
        return _from_data(cls, data, "")  # type: ignore[no-any-return]


#: The keywords of :meth:`Command.of`, and so those of ``run`` and ``Container`` that describe the container.
COMMAND_KEYWORDS = frozenset(Command.of.__func__.__kwdefaults__)  # type: ignore[attr-defined]


def _check_shared(field: str, value: object) -> None:
    """``ns:/path`` and ``container:ID``: a namespace that exists."""
    kind, _, what = check.line(field, value).partition(":")
    if kind == "ns":
        check.path(field, what)
    elif kind == "container":
        check.matching(field, what, _ID)
    else:
        refuse(field, f"{value!r} is none of 'host', 'container:ID' and 'ns:/path'")


def _existing(rootfs: Any) -> Any:
    """A directory's absolute path; a value that is no path as it is."""
    if not isinstance(rootfs, (str, os.PathLike)):
        return rootfs
    path = check.fspath("rootfs", rootfs)
    check.line("rootfs", path)
    path = os.path.abspath(path) if path else refuse("rootfs", "is empty")
    if not os.path.isdir(path):
        refuse("rootfs", f"{path} is not a directory" if os.path.lexists(path) else f"{path} does not exist")
    return path


def _existing_device(device: Any) -> Any:
    """A Device that the host has; it is asked again when the container starts, perhaps on another host."""
    from pycontainer.device import Device

    device = Device.parse(device) if type(device) is str else device
    check.instance("devices", device, Device)
    device.looked_up()
    return device


def _profile(seccomp: Any) -> Any:
    """The content of a file; a value that is no path as it is."""
    if seccomp == "unconfined" or not isinstance(seccomp, (str, os.PathLike)):
        return seccomp
    import json

    path = check.line("seccomp", check.fspath("seccomp", seccomp))
    try:
        with open(path, "rb") as file:
            return json.loads(file.read(1 << 20), object_pairs_hook=_without_duplicates)
    except OSError as error:
        refuse("seccomp", f"cannot read {path}: {error.strerror}")
    except InvalidCommandError as error:
        refuse("seccomp", f"{path}: {error}")
    except (ValueError, RecursionError) as error:
        refuse("seccomp", f"{path} is not JSON: {error}")


def _from_here(mount: Mount) -> Mount:
    if type(mount) is Mount and mount.source is not None and not mount.source.startswith("/"):
        return attrs.evolve(mount, source=os.path.abspath(mount.source))
    return mount


# -- JSON: the fields by their names, tuples as lists


def _to_data(value: Any) -> Any:
    if attrs.has(type(value)):
        return {name: _to_data(getattr(value, name)) for name in attrs.fields_dict(type(value))}
    if type(value) is tuple:
        return [_to_data(item) for item in value]
    return {key: _to_data(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _from_data(cls: type[Any], data: Any, where: str) -> Any:
    """An instance of *cls*, whose fields are called *where* and their name."""
    if type(data) is not dict:
        refuse(where.rstrip(".") or "command", f"must be an object, not {type(data).__name__}")
    fields = attrs.fields_dict(cls)
    for name in data:
        if name not in fields:
            refuse(where + name, "is not a field")
    for name, attribute in fields.items():
        if attribute.default is attrs.NOTHING and name not in data:
            refuse(where + name, "is missing")
    values = dict(data)
    for name, value in data.items():
        inner = _NESTED.get((cls.__name__, name))
        if name == "devices" and type(value) is list:
            from pycontainer.device import Device

            values[name] = tuple(_from_data(Device, item, "devices.") for item in value)
        elif type(value) is list:
            values[name] = tuple(_from_data(inner, item, f"{where}{name}.") if inner else item for item in value)
        elif inner is not None and type(value) is dict:
            values[name] = _from_data(inner, value, f"{where}{name}.")
        elif name == "hooks" and type(value) is dict:
            from pycontainer.hooks import Hooks

            values[name] = Hooks.from_data(value)
        elif name == "rootfs" and type(value) is dict:
            from pycontainer.rootfs import HostView, Overlay

            values[name] = (Overlay if "lower" in value else HostView).from_data(value)
    return cls(**values)


_NESTED: dict[tuple[str, str], type] = {
    ("Command", "process"): Process,
    ("Command", "mounts"): Mount,
    ("Command", "resources"): Resources,
    ("Command", "network"): Network,
    ("Process", "rlimits"): Rlimit,
}


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        refuse(next(name for name in names if names.count(name) > 1), "is given twice")
    return values
