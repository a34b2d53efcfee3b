"""Whether LXC's tools are here, new enough, and able to work on this host."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping

from pycontainer.driver import Feature, FeatureProbe, Probe
from pycontainer.errors import DriverUnavailableError
from pycontainer.labels import probe_labels
from pycontainer.service import interpreter
from pycontainer_lxc import cgroups

__all__ = ["MIN_VERSION", "TOOLS", "find_tools", "probe", "tool_version"]

TOOLS = ("lxc-start", "lxc-attach", "lxc-freeze", "lxc-unfreeze")

#: Where the tools may be. Not PATH, which is the caller's: the tools run as root.
DIRECTORIES = ("/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/local/bin", "/usr/local/sbin")

#: lxc.cgroup.dir.container, without which a container's cgroups cannot be told from another's, came with 4.0.
MIN_VERSION = (4, 0)

#: Where LXC mounts a container's rootfs before it enters it; compiled in, and made by the package.
INSTALL = "install LXC, 4.0 or later (Debian, Ubuntu: apt install lxc; Fedora: dnf install lxc)"


def find_tools(directories: Iterable[str] = DIRECTORIES) -> dict[str, str]:
    """The absolute path of each of :data:`TOOLS` that is there."""
    found: dict[str, str] = {}
    for name in TOOLS:
        for directory in directories:
            path = f"{directory}/{name}"
            if os.path.isfile(path) and os.access(path, os.X_OK):
                found[name] = path
                break
    return found


def tool_version(path: str) -> str:
    """What ``lxc-start --version`` says, empty where it says nothing. Raises OSError."""
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        actions = [(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, theirs, 1), (os.POSIX_SPAWN_DUP2, null, 2)]
        pid = os.posix_spawn(path, [path, "--version"], {}, file_actions=actions)
        os.close(theirs)
        theirs = -1
        text = os.read(ours, 256).decode(errors="replace").strip()
        os.waitpid(pid, 0)
    finally:
        for fd in (ours, theirs, null):
            if fd >= 0:
                os.close(fd)
    return text


def parse_version(text: str) -> tuple[int, ...]:
    """``5.0.2``, ``4.0.0~rc1`` and the like as numbers; empty when it is no version."""
    match = re.match(r"(\d{1,4})(?:\.(\d{1,4}))?", text)
    return tuple(int(part) for part in match.groups("0")) if match else ()


def probe(name: str, features: Iterable[Feature], directories: Iterable[str] = DIRECTORIES) -> Probe:
    """The driver's probe: changes nothing, raises nothing."""

    def unusable(cause: str, remedy: str, version: str = "") -> Probe:
        return Probe(driver="lxc", usable=False, version=version or name, cause=cause, remedy=remedy)

    directories = tuple(directories)
    tools = find_tools(directories)
    missing = [tool for tool in TOOLS if tool not in tools]
    if missing:
        return unusable(f"{', '.join(missing)} not found in {', '.join(directories)}", INSTALL)
    try:
        text = tool_version(tools["lxc-start"])
    except OSError as error:
        return unusable(f"{tools['lxc-start']} cannot be run: {error.strerror}", INSTALL)
    version = f"lxc-{text}"
    if parse_version(text) < MIN_VERSION:
        needed = ".".join(map(str, MIN_VERSION))
        why = "which first lets one say where a container's cgroups are (lxc.cgroup.dir.container)"
        return unusable(f"LXC {text or 'of unknown version'} is older than {needed}, {why}", INSTALL, version)
    try:
        interpreter("lxc")
    except DriverUnavailableError as error:
        return unusable(error.probe.cause, error.probe.remedy, version)
    if os.geteuid() != 0:
        return unusable("needs root", "run as root, or use the native driver", version)
    where = cgroups.bases()
    if not where:
        return unusable("no cgroup hierarchy is mounted", "mount cgroup2 on /sys/fs/cgroup", version)
    closed = sorted({base for base in where.values() if not os.access(base, os.W_OK)})
    if closed:
        return unusable(f"cgroups below {closed[0]} cannot be made", "run where cgroups are writable", version)
    return Probe(
        driver="lxc",
        usable=True,
        version=version,
        evidence=f"{tools['lxc-start']} {text}",
        features={feature: _feature(feature, where) for feature in features},
    )


_CONTROLLERS = {
    Feature.MEMORY: "memory",
    Feature.CPU: "cpu",
    Feature.CPUSET: "cpuset",
    Feature.PIDS: "pids",
    Feature.PAUSE: "freezer",
}


def _feature(feature: Feature, where: Mapping[str, str]) -> FeatureProbe:
    if feature is Feature.LABELS:
        return probe_labels()
    controller = _CONTROLLERS.get(feature)
    if controller is None:
        return FeatureProbe(True, "lxc")
    kind = cgroups.version(controller, where)
    if not kind and controller == "freezer" and "" in where:
        kind = 2
    if kind:
        return FeatureProbe(True, f"cgroup v{kind} controller {controller}")
    cause = f"no mounted cgroup hierarchy has the controller {controller}"
    return FeatureProbe(False, cause=cause, remedy=f"mount cgroup2 with {controller} enabled")
