"""A Command as an OCI runtime specification: the ``config.json`` that every driver starts from, as a dict.

The result is plain data, made anew by each call.  It is resolved as well: the
user's name has become numbers, the environment is complete, and for a
container of the host's own programs the view of them is written down.
"""

from __future__ import annotations

import functools
import json
import os
import stat
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import attrs

from pycontainer._fields import all_capabilities, refuse
from pycontainer.network import RELAYS
from pycontainer.process import DEFAULT_CAPABILITIES, DEFAULT_PATH
from pycontainer.rootfs import DetectedView, HostView, Overlay, UserIds, lookup_user
from pycontainer.seccomp import default_profile

if TYPE_CHECKING:
    from pycontainer.command import Command, Resources
    from pycontainer.device import Device
    from pycontainer.mount import Mount
    from pycontainer.process import Process

__all__ = [
    "MASKED_PATHS",
    "OCI_VERSION",
    "READONLY_PATHS",
    "RLIM_INFINITY",
    "limits_to_oci",
    "process_to_oci",
    "resources_to_oci",
    "seccomp_to_oci",
    "standing_to_oci",
    "to_oci",
]

OCI_VERSION = "1.0.2"
RLIM_INFINITY = 2**64 - 1

#: moby's defaults: what tells too much about the host or acts on its hardware (CVE-2018-10892).  moby also masks
#: each processor's thermal_throttle directory, which to_oci adds where there is one.
MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)

#: moby's defaults: knobs that belong to no namespace.
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def to_oci(command: Command, *, seccomp: bool = True) -> dict[str, Any]:
    """The OCI runtime specification (1.0.2) of *command*.

    *seccomp* False leaves ``linux.seccomp`` out, which is most of it, for who has the filter already.

    Beyond the specification's own fields there are annotations:
    ``org.pycontainer.rootfs`` is the HostView as JSON where the Command has no
    directory for its root (``root.path`` is then ``"rootfs"``, which the
    driver has to fill), ``org.pycontainer.overlay`` likewise the Overlay,
    ``org.pycontainer.network`` the Network as JSON, or a list of them, where
    more than a namespace has to be made, ``org.pycontainer.relay`` the tool
    that is to pass its packets on, ``org.pycontainer.namespaces`` the ids
    of the containers whose pid, ipc or uts namespace it is to share, as a JSON
    object by their kind, ``org.pycontainer.etc`` the
    files of :mod:`pycontainer.etc` as JSON, ``org.pycontainer.init`` ``"true"`` for an init before
    the payload.  With ``userns="auto"`` there is a user namespace without
    mappings: the driver has to choose them.

    Raises InvalidCommandError: the user or a group is not known in the rootfs,
    or a device not on this host.
    """
    privileged = command.process.privileged
    annotations = dict(command.annotations)
    if isinstance(command.rootfs, str):
        path = command.rootfs
    else:
        path = "rootfs"
        if isinstance(command.rootfs, Overlay):
            annotations["org.pycontainer.overlay"] = command.rootfs.to_json()
        else:
            annotations["org.pycontainer.rootfs"] = _host_view_json(command.rootfs)
    if command.init:
        annotations["org.pycontainer.init"] = "true"
    if command.network is not None and command.networks[0].mode in ("bridge", "container"):
        several = [attrs.asdict(network) for network in command.networks]
        annotations["org.pycontainer.network"] = json.dumps(several if len(several) > 1 else several[0])
    elif command.network is not None and command.networks[0].mode in RELAYS:
        annotations["org.pycontainer.relay"] = command.networks[0].mode
    if files := _etc_files(command):
        annotations["org.pycontainer.etc"] = json.dumps(files)
    if containers := _containers_of(command):
        annotations["org.pycontainer.namespaces"] = json.dumps(containers)
    masked, readonly = command.masked_paths, command.readonly_paths
    if masked is None:
        masked = () if privileged else MASKED_PATHS + _thermal_throttle()
    if readonly is None:
        readonly = () if privileged else READONLY_PATHS
    linux: dict[str, Any] = {
        "namespaces": _namespaces(command),
        "resources": limits_to_oci(command),
        "maskedPaths": list(masked),
        "readonlyPaths": list(readonly),
    }
    if command.devices:
        linux["devices"] = [device.to_oci() for device in command.devices]
    if seccomp and (profile := seccomp_to_oci(command)) is not None:
        linux["seccomp"] = profile
    if command.rootfs_propagation is not None:
        linux["rootfsPropagation"] = command.rootfs_propagation
    if command.sysctls:
        linux["sysctl"] = dict(command.sysctls)
    if command.uid_mappings:
        for name, mappings in (("uidMappings", command.uid_mappings), ("gidMappings", command.gid_mappings)):
            linux[name] = [{"containerID": row[0], "hostID": row[1], "size": row[2]} for row in mappings]
    if command.mount_label is not None:
        linux["mountLabel"] = command.mount_label
    if command.cgroup_parent is not None:
        linux["cgroupsPath"] = f"{command.cgroup_parent}/{command.id}"
    spec: dict[str, Any] = {
        "ociVersion": OCI_VERSION,
        "root": {"path": path, "readonly": command.read_only},
        "process": process_to_oci(command.process, command.rootfs) | standing_to_oci(command),
        "mounts": [*_default_mounts(privileged), *map(_mount, command.mounts)],
        "linux": linux,
        "annotations": annotations,
    }
    if command.uts is None:
        spec["hostname"] = command.hostname or command.id[:64]  # sethostname(2): HOST_NAME_MAX
    if command.hooks is not None:
        spec["hooks"] = command.hooks.to_oci()
    return spec


def _etc_files(command: Command) -> dict[str, str]:
    if command.network is None and not (command.dns or command.dns_search or command.extra_hosts):
        return {}  # without the import
    from pycontainer.etc import etc_files

    return etc_files(command)


def process_to_oci(process: Process, rootfs: str | HostView | Overlay | None) -> dict[str, Any]:
    """The specification's ``process``, its user looked up in *rootfs*: for a Command, and for ``exec``.

    *rootfs* is a directory, or None or a HostView for the host's own users.
    Raises InvalidCommandError: the user or a group is not known there.
    """
    user = lookup_user(rootfs, process.user, process.additional_groups)
    names = process.capabilities
    if names is None:
        names = all_capabilities() if process.privileged else DEFAULT_CAPABILITIES
    # Only root starts with capabilities: execve(2) would not give them to anybody else, and a runtime that leaves
    # them in the permitted set of another user hands them out (CVE-2018-10856). Inheritable stays empty
    # (CVE-2022-24769).
    held = names if user.uid == 0 else ()
    return {
        "terminal": process.tty,
        "user": {"uid": user.uid, "gid": user.gid, "umask": 0o022, "additionalGids": list(user.groups)},
        "args": list(process.argv),
        "env": [f"{name}={value}" for name, value in _environment(process, user).items()],
        "cwd": process.working_dir,
        "capabilities": {
            "bounding": list(names),
            "effective": list(held),
            "permitted": list(held),
            "inheritable": [],
            "ambient": [],
        },
        "rlimits": [
            {"type": limit.type, "hard": _unsigned(limit.hard), "soft": _unsigned(limit.soft)}
            for limit in process.rlimits
        ],
        "noNewPrivileges": process.no_new_privileges,
    }


def standing_to_oci(command: Command) -> dict[str, Any]:
    """What belongs to the specification's ``process`` of the container, and of whatever ``exec`` adds.

    ``execCPUAffinity`` is the affinity of the first process as well.
    """
    standing: dict[str, Any] = {}
    if command.oom_score_adj is not None:
        standing["oomScoreAdj"] = command.oom_score_adj
    if command.cpu_affinity is not None:
        standing["execCPUAffinity"] = {"initial": command.cpu_affinity, "final": command.cpu_affinity}
    if command.apparmor_profile is not None:
        standing["apparmorProfile"] = command.apparmor_profile
    if command.selinux_label is not None:
        standing["selinuxLabel"] = command.selinux_label
    return standing


def seccomp_to_oci(command: Command) -> dict[str, Any] | None:
    """The specification's ``linux.seccomp``: for the container and for whatever ``exec`` adds. None: no filter."""
    process, seccomp = command.process, command.seccomp
    if seccomp is None and not process.privileged:
        return default_profile(DEFAULT_CAPABILITIES if process.capabilities is None else process.capabilities)
    return _thawed(seccomp) if isinstance(seccomp, Mapping) else None


def limits_to_oci(command: Command) -> dict[str, Any]:
    """The specification's ``linux.resources`` of *command*: those of its Resources, and rules for its devices.

    There are rules where the Command asks for devices, for rules, or for
    CAP_MKNOD, with which it could make any device.  They begin with one that
    denies everything.  Raises InvalidCommandError: no such device here.
    """
    limits = resources_to_oci(command.resources)
    process = command.process
    if process.privileged:
        limits["devices"] = [{"allow": True, "access": "rwm"}]
    elif command.devices or "devices" in limits or "CAP_MKNOD" in (process.capabilities or ()):
        limits["devices"] = device_rules_to_oci(command.devices, command.resources.device_cgroup_rules or ())
    return limits


def device_rules_to_oci(devices: Iterable[Device], rules: Iterable[str]) -> list[dict[str, Any]]:
    """The specification's ``linux.resources.devices``: nothing but the default devices, *devices* and *rules*."""
    from pycontainer.device import DEFAULT_DEVICE_RULES, rule_to_oci

    allowed = (*DEFAULT_DEVICE_RULES, *(device.rule() for device in devices), *rules)
    return [{"allow": False, "access": "rwm"}, *map(rule_to_oci, allowed)]


def resources_to_oci(resources: Resources, *, unlimited: bool = False) -> dict[str, Any]:
    """The specification's ``linux.resources``: only what is limited.

    ``memory.swap`` is memory and swap together, as in the specification: twice
    the memory where the Command does not say (Docker).  *unlimited* keeps the
    -1 of disks and huge pages, which the specification does not know: an
    update takes a limit away with it.  Raises
    InvalidCommandError: a disk is not one of this host.
    """
    swap = resources.memory_swap or None
    if swap is None and resources.memory is not None:
        swap = 2 * resources.memory
    controllers: dict[str, dict[str, Any]] = {
        "memory": {"limit": resources.memory, "swap": swap},
        "cpu": {
            "shares": resources.cpu_shares,
            "quota": resources.cpu_quota,
            "period": resources.cpu_period,
            "cpus": resources.cpuset_cpus,
            "mems": resources.cpuset_mems,
        },
        "pids": {"limit": resources.pids_limit},
        "blockIO": {
            "weight": resources.blkio_weight,
            "weightDevice": _by_disk("blkio_weight_device", resources, unlimited, "weight"),
            "throttleReadBpsDevice": _by_disk("device_read_bps", resources, unlimited),
            "throttleWriteBpsDevice": _by_disk("device_write_bps", resources, unlimited),
            "throttleReadIOPSDevice": _by_disk("device_read_iops", resources, unlimited),
            "throttleWriteIOPSDevice": _by_disk("device_write_iops", resources, unlimited),
        },
    }
    given: dict[str, Any] = {}
    for name, limits in controllers.items():
        if values := {key: value for key, value in limits.items() if value is not None}:
            given[name] = values
    if resources.hugepage_limits is not None:
        given["hugepageLimits"] = [
            {"pageSize": size, "limit": limit}
            for size, limit in resources.hugepage_limits.items()
            if limit != -1 or unlimited
        ]
    if resources.device_cgroup_rules is not None:
        given["devices"] = device_rules_to_oci((), resources.device_cgroup_rules)
    return given


def _by_disk(name: str, resources: Resources, unlimited: bool, number: str = "rate") -> list[dict[str, int]] | None:
    """The field *name* by the disks' numbers, which are looked up now."""
    given = getattr(resources, name)
    if given is None:
        return None
    found = []
    for path, value in given.items():
        try:
            status = os.stat(path)
        except OSError as error:
            refuse(f"resources.{name}", f"{path}: {error.strerror}")
        if not stat.S_ISBLK(status.st_mode):
            refuse(f"resources.{name}", f"{path} is not a disk: no block device")
        if value != -1 or unlimited:
            found.append({"major": os.major(status.st_rdev), "minor": os.minor(status.st_rdev), number: value})
    return found


def _thawed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _thawed(item) for key, item in value.items()}
    return list(map(_thawed, value)) if type(value) is tuple else value


def _environment(process: Process, user: UserIds) -> Mapping[str, str]:
    if process.env is not None:
        return process.env
    variables = {"PATH": DEFAULT_PATH, "HOME": user.home}
    if process.tty:
        variables["TERM"] = "xterm"
    return variables


def _unsigned(limit: int) -> int:
    return RLIM_INFINITY if limit == -1 else limit


def _containers_of(command: Command) -> dict[str, str]:
    """The namespaces that are another container's, by their kind: its id."""
    shared = ((name, getattr(command, name) or "") for name in ("pid", "ipc", "uts"))
    return {name: value[10:] for name, value in shared if value.startswith("container:")}


def _namespaces(command: Command) -> list[dict[str, Any]]:
    namespaces = [{"type": "mount"}, {"type": "cgroup"}]
    for name in ("pid", "ipc", "uts"):
        where: str | None = getattr(command, name)
        if where != "host":
            namespaces.append({"type": name})
        if where is not None and where.startswith("ns:"):
            namespaces[-1]["path"] = where[3:]
    network = command.networks[0] if command.network is not None else None
    if network is None or network.mode != "host":
        namespaces.append({"type": "network"})
    if network is not None and network.path is not None:
        namespaces[-1]["path"] = network.path
    if command.userns is not None or command.uid_mappings:
        namespaces.append({"type": "user"})
    return namespaces


def _default_mounts(privileged: bool) -> list[dict[str, Any]]:
    """What each container has (moby's defaults): its own proc and devices, and sysfs."""
    return [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
        {
            "destination": "/dev",
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
        },
        {
            "destination": "/dev/pts",
            "type": "devpts",
            "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        },
        {
            "destination": "/dev/shm",
            "type": "tmpfs",
            "source": "shm",
            "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
        },
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
        {
            "destination": "/sys",
            "type": "sysfs",
            "source": "sysfs",
            "options": ["nosuid", "noexec", "nodev", "rw" if privileged else "ro"],
        },
    ]


def _mount(mount: Mount) -> dict[str, Any]:
    if mount.type == "bind":
        options = ["rbind" if mount.recursive else "bind", *mount.options]
        if mount.read_only:
            # "ro" of a recursive bind mount covers its top alone
            options.append("rro" if mount.recursive else "ro")
    else:
        options = list(dict.fromkeys(("nosuid", "nodev", *mount.options)))
        if mount.read_only:
            options.append("ro")
        if mount.mode is not None:
            options.append(f"mode={mount.mode:04o}")
        if mount.size is not None:
            options.append(f"size={mount.size}")
    if mount.propagation is not None:
        options.append(mount.propagation)
    oci: dict[str, Any] = {
        "destination": mount.target,
        "type": mount.type,
        "source": "tmpfs" if mount.source is None else mount.source,
        "options": options,
    }
    if mount.uid_mappings:
        for name, mappings in (("uidMappings", mount.uid_mappings), ("gidMappings", mount.gid_mappings)):
            oci[name] = [{"containerID": disk, "hostID": shown, "size": size} for disk, shown, size in mappings]
    return oci


@functools.cache
def _thermal_throttle() -> tuple[str, ...]:
    root = "/sys/devices/system/cpu"
    paths = (f"{root}/cpu{number}/thermal_throttle" for number in range(os.cpu_count() or 0))
    return tuple(path for path in paths if os.path.isdir(path))


def _host_view_json(view: HostView | None) -> str:
    if view is not None:
        return view.to_json()
    global _detected
    known = _detected  # once: another thread may replace it
    if known is None or not known.holds():
        known = _detected = DetectedView()
    return known.json


_detected: DetectedView | None = None
