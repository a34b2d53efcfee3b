"""Whether this host can run the native driver, and if not, why: looked up live, nothing is changed."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator
from importlib.util import find_spec

from pycontainer.driver import Feature, FeatureProbe, Probe
from pycontainer.errors import DriverUnavailableError, SetupError
from pycontainer.labels import probe_labels
from pycontainer.seccomp_filter import load_library
from pycontainer.service import interpreter
from pycontainer_native import abi
from pycontainer_native.cgroups import Layout
from pycontainer_native.client import LauncherClient
from pycontainer_native.listener import CAP_SYS_PTRACE
from pycontainer_native.plan import RELAYS, find_relay
from pycontainer_native.userns import SUBGID, SUBUID, UserNamespace

_CONTROLLERS = {Feature.MEMORY: "memory", Feature.CPU: "cpu", Feature.CPUSET: "cpuset", Feature.PIDS: "pids"}
#: What verbs need of the hierarchies: one of each tuple. cgroup2 freezes and counts CPU time without any controller.
_NEEDS: dict[Feature, list[tuple[str, ...]]] = {
    Feature.PAUSE: [("cgroup2", "freezer")],
    Feature.DEVICES: [("cgroup2", "devices")],
    Feature.BLKIO: [("blkio", "io")],
    Feature.HUGETLB: [("hugetlb",)],
    Feature.STATS: [("cgroup2", "cpuacct"), ("memory",), ("pids",)],
    Feature.UPDATE: [("memory", "cpu", "cpuset", "pids")],
}
_CAP_NET_ADMIN = 12
TUN = "/dev/net/tun"
_CAP_SYS_ADMIN = 21
_DELEGATE = "systemd-run --user --scope -p Delegate=yes COMMAND, or have root make a cgroup that is yours, and join it"


def probe(name: str, layout: Layout, namespace: UserNamespace | None, features: frozenset[Feature], root: str) -> Probe:
    """The probe of the driver *name*, on a host with these cgroup hierarchies; an ordinary user has *namespace*.

    Detached containers are recorded below *root*.
    """
    problem = next(_problems(namespace), None)
    evidence = f"Linux {os.uname().release} on {abi.MACHINE}, cgroups: {layout.mode}"
    if namespace is not None:
        evidence += f", rootless: {sum(count for _, _, count in namespace.uids)} uids"
    cause, remedy = problem or ("", "")
    return Probe(
        driver="native",
        usable=problem is None,
        version=name,
        evidence=evidence,
        cause=cause,
        remedy=remedy,
        features={
            feature: _restore(root)
            if feature is Feature.RESTORE and not cause
            else _feature(feature, layout, namespace, cause, remedy)
            for feature in sorted(features, key=str)
        },
    )


def _restore(root: str) -> FeatureProbe:
    problem = no_place(root)
    if problem is not None:
        return FeatureProbe(False, "", *problem)
    return FeatureProbe(True, f"they are recorded below {root}")


def no_place(root: str) -> tuple[str, str] | None:
    """(cause, remedy) where *root* cannot be where detached containers are recorded. Makes nothing."""
    remedy = "name a directory that is yours alone: the option root, PYCONTAINER_NATIVE_ROOT or --native-root"
    if os.geteuid() != 0:
        remedy = f"'loginctl enable-linger', which makes /run/user/{os.geteuid()}; or {remedy}"
    path = os.path.realpath(os.path.join(root, "containers"))
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    cause = ""
    if not os.path.isdir(path):
        cause = f"{path} is not a directory"
    elif not os.access(path, os.W_OK | os.X_OK, effective_ids=True):
        cause = f"nothing can be made in {path}: {os.strerror(errno.EROFS if _is_read_only(path) else errno.EACCES)}"
    while not cause:  # as everybody checks who reads there
        found = os.lstat(path)
        if found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
            cause = f"others can write to {path}"
        if path == "/":
            break
        path = os.path.dirname(path)
    return (f"root {root} is no place for the state of containers: {cause}", remedy) if cause else None


def _is_read_only(path: str) -> bool:
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def without_user_namespace(name: str, error: SetupError) -> Probe:
    """The probe of the driver *name* for an ordinary user who cannot have a user namespace: *error* says where."""
    return Probe(driver="native", usable=False, version=name, cause=f"rootless: {error}", remedy=_remedy(error))


SYSCTL_DIRECTORY = "/proc/sys"
#: What forbids user namespaces to ordinary users: the sysctl, the value that does, and the one that would not.
_SYSCTLS = (
    ("user.max_user_namespaces", "0", "10000"),
    ("kernel.unprivileged_userns_clone", "0", "1"),  # Debian's and Arch's
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),  # Ubuntu's: it has one, but no rights in it
)


def _remedy(error: SetupError) -> str:
    for name, value, better in _SYSCTLS:
        try:
            with open(f"{SYSCTL_DIRECTORY}/{name.replace('.', '/')}", encoding="ascii") as file:
                if file.read().strip() == value:
                    return f"sysctl -w {name}={better} (as root; it is {value})"
        except OSError:
            pass
    if error.step.startswith("write the id maps"):
        return f"check the entries of user {os.geteuid()} in {SUBUID} and {SUBGID}, or remove them for a single id"
    return "allow user namespaces (an outer container's seccomp profile forbids them by default), or run it with sudo"


def _problems(namespace: UserNamespace | None) -> Iterator[tuple[str, str]]:
    """(cause, remedy) of everything in the way."""
    if abi.MACHINE not in abi.MACHINES:
        yield f"the system call numbers of {abi.MACHINE} are not known", f"use one of {', '.join(abi.MACHINES)}"
        return
    try:
        interpreter("native")
    except DriverUnavailableError as error:
        yield error.probe.cause, error.probe.remedy
        return
    # The newest call that every start needs; asked with nothing, it says whether it exists.
    if _errno_of("mount_setattr") == errno.ENOSYS:
        yield "the kernel has no mount_setattr(2)", "use Linux 5.12 or later"
    missing = [
        name for name in ("mnt", "pid", "net", "ipc", "uts", "cgroup") if not os.path.exists(f"/proc/self/ns/{name}")
    ]
    if missing:
        yield f"the kernel or /proc lacks the namespaces {', '.join(missing)}", "mount proc on /proc"
    if namespace is not None:
        try:
            LauncherClient(namespace).close()  # the only way to know is to do it
        except SetupError as error:
            yield f"rootless: {error}", _remedy(error)
    elif not _effective_capabilities() >> _CAP_SYS_ADMIN & 1:
        yield "root lacks CAP_SYS_ADMIN here, as in an unprivileged container", "give the outer container CAP_SYS_ADMIN"


def _feature(
    feature: Feature, layout: Layout, namespace: UserNamespace | None, cause: str, remedy: str
) -> FeatureProbe:
    if cause:
        return FeatureProbe(False, cause=cause, remedy=remedy)
    controller = _CONTROLLERS.get(feature)
    if controller is not None:
        for place in layout.hierarchies:
            if controller in place.controllers and place.writable:
                return FeatureProbe(True, f"cgroup v{place.version} controller {controller} below {place.base}")
        return FeatureProbe(
            False,
            cause=f"no cgroup hierarchy that can be written to has the controller {controller}",
            remedy=_DELEGATE
            if namespace is not None
            else f"mount one, or enable {controller} in cgroup.subtree_control of the parent cgroup",
        )
    if feature in _NEEDS:
        missing = [
            " or ".join(names)
            for names in _NEEDS[feature]
            if not any(
                place.writable and (place.controllers & {*names} or (place.version == 2 and "cgroup2" in names))
                for place in layout.hierarchies
            )
        ]
        if missing:
            cause = f"no cgroup hierarchy that can be written to has {' and none has '.join(missing)}"
            remedy = "mount the hierarchies below /sys/fs/cgroup" if namespace is None else _DELEGATE
            return FeatureProbe(False, cause=cause, remedy=remedy)
        return FeatureProbe(True, f"cgroups: {layout.mode}")
    if feature is Feature.NETWORK:
        return _network(namespace)
    if feature is Feature.SECCOMP:
        return _seccomp()
    if feature is Feature.SECCOMP_NOTIFY:
        return _seccomp_notify(namespace)
    if feature is Feature.LABELS:
        return probe_labels()
    if feature is Feature.ROOTLESS:
        return _rootless(namespace)
    if feature in (Feature.HOST_ROOTFS, Feature.OVERLAY):
        with open("/proc/filesystems", encoding="ascii") as file:
            if "\toverlay\n" in file.read():
                return FeatureProbe(True, "overlay is in /proc/filesystems")
        return FeatureProbe(False, cause="the kernel has no overlay file system", remedy="modprobe overlay")
    return FeatureProbe(True, "needs nothing more than the driver itself")


def _rootless(namespace: UserNamespace | None) -> FeatureProbe:
    if namespace is None:
        return FeatureProbe(True, "this is root; an ordinary user's probe looks what he can have")
    ids = sum(count for _, _, count in namespace.uids)
    if namespace.setgroups:
        return FeatureProbe(True, f"{ids} uids, by newuidmap(1) and {SUBUID}")
    return FeatureProbe(
        True, f"one uid and one gid: more take newuidmap(1), newgidmap(1), and entries in {SUBUID} and {SUBGID}"
    )


def _seccomp() -> FeatureProbe:
    try:
        with open("/proc/sys/kernel/seccomp/actions_avail", encoding="ascii") as file:
            actions = file.read().strip()
    except OSError:
        return FeatureProbe(
            False, cause="the kernel has no seccomp filters", remedy="seccomp='unconfined' does without one"
        )
    try:
        load_library()
    except NotImplementedError as error:
        return FeatureProbe(
            False, cause=str(error), remedy="apt-get install libseccomp2, or seccomp='unconfined', which does without"
        )
    return FeatureProbe(True, f"libseccomp is there; the kernel's actions: {actions}")


def _seccomp_notify(namespace: UserNamespace | None) -> FeatureProbe:
    found = _seccomp()
    if not found.usable:
        return found
    if "user_notif" not in found.evidence.split():
        return FeatureProbe(False, cause="the kernel's filters cannot ask anybody", remedy="use Linux 5.0 or later")
    if namespace is None and not _effective_capabilities() >> CAP_SYS_PTRACE & 1:
        cause, remedy = "root lacks CAP_SYS_PTRACE here, as in a container", "give the outer container CAP_SYS_PTRACE"
        return FeatureProbe(False, cause=cause, remedy=remedy)
    return FeatureProbe(True, "the kernel has user_notif, and this process the right to hand a listener over")


def _errno_of(call: str) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall(*(ctypes.c_long(number) for number in (abi.NR[call], -1, 0, 0, 0, 0)))
    return ctypes.get_errno()


def _network(namespace: UserNamespace | None) -> FeatureProbe:
    cause = remedy = ""
    if namespace is not None:
        return _relays()
    if find_spec("pyroute2") is None:
        cause, remedy = "pyroute2 is not installed", "pip install pyroute2"
    elif not _effective_capabilities() >> _CAP_NET_ADMIN & 1:
        cause, remedy = "root lacks CAP_NET_ADMIN here, as in a container", "give the outer container CAP_NET_ADMIN"
    for module in ("veth", "bridge"):
        if not cause and not _has_module(module):
            cause, remedy = f"the kernel has no {module} devices", f"modprobe {module}, or install the kernel's modules"
    return FeatureProbe(not cause, "" if cause else "CAP_NET_ADMIN and pyroute2 are there", cause, remedy)


def _relays() -> FeatureProbe:
    """For an ordinary user, who may not change the host's network: what passes packets on without."""
    cause = remedy = ""
    found = [path for tool in RELAYS if (path := find_relay(tool)) is not None]
    if not found:
        cause = "an ordinary user may not change the host's network, and there is neither pasta nor slirp4netns"
        remedy = "apt-get install passt"
    elif not os.access(TUN, os.R_OK | os.W_OK):
        cause, remedy = f"{TUN} cannot be opened by this user", f"modprobe tun, or as root: chmod 666 {TUN}"
    return FeatureProbe(not cause, " and ".join(found), cause, remedy)


def _has_module(name: str) -> bool:
    """Whether the kernel has a module, loads it when it is needed, or may have it built in: only a list says no."""
    modules = f"/lib/modules/{os.uname().release}"
    if os.path.isdir(f"/sys/module/{name}") or not os.path.isfile(f"{modules}/modules.builtin"):
        return True
    for listing in ("modules.builtin", "modules.dep"):
        with contextlib.suppress(OSError), open(f"{modules}/{listing}", encoding="ascii", errors="replace") as file:
            if any(f"/{name}.ko" in line.partition(":")[0] for line in file):
                return True
    return False


def _effective_capabilities() -> int:
    with open("/proc/self/status", "rb") as status:
        return next(int(line.split()[1], 16) for line in status if line.startswith(b"CapEff:"))
