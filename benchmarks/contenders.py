"""Who is measured, how each is asked for a comparable container, and the traces of them that are removed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pycontainer.seccomp import default_profile

#: What a container does that stays.
SLEEP = ("/bin/sleep", "1000000")
CGROUPS = Path("/sys/fs/cgroup")
CAPABILITIES = (
    *("CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "SETGID", "SETUID"),
    *("SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE", "SETFCAP"),
)
MASKED_PATHS = (
    *("/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats"),
    *("/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi"),
    *("/sys/firmware", "/sys/devices/virtual/powercap"),
)
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
NAMESPACES = ("pid", "network", "ipc", "uts", "mount", "cgroup")
MOUNTS = (  # destination, type, options: as runc spec writes them, without the cgroup mount
    ("/proc", "proc", ()),
    ("/dev", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    ("/dev/pts", "devpts", ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")),
    ("/dev/shm", "tmpfs", ("nosuid", "noexec", "nodev", "mode=1777", "size=65536k")),
    ("/dev/mqueue", "mqueue", ("nosuid", "noexec", "nodev")),
    ("/sys", "sysfs", ("nosuid", "noexec", "nodev", "ro")),
)


@dataclass(frozen=True)
class Contender:
    """A row: its name, what its caller is told (see caller.py), or an own command that answers the same lines."""

    name: str
    task: dict[str, Any] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    version: str = ""
    missing: str = ""


def cgroup_mode() -> str:
    """v1, v2 or hybrid (v1 controllers, and cgroup2 mounted beside them)."""
    if (CGROUPS / "cgroup.controllers").exists():
        return "v2"
    return "hybrid" if (CGROUPS / "unified" / "cgroup.controllers").exists() else "v1"


def make_rootfs(directory: Path) -> Path:
    """A root file system with a static busybox, its ``true``, and the mount points.

    Raises:
        FileNotFoundError: no busybox is installed
    """
    busybox = shutil.which("busybox")
    if busybox is None:
        raise FileNotFoundError("busybox is not installed (Debian: busybox-static)")
    for name in ("bin", "dev", "etc", "proc", "sys", "tmp"):
        (directory / name).mkdir(parents=True)
    shutil.copy(busybox, directory / "bin" / "busybox")
    for applet in ("true", "sleep"):
        (directory / "bin" / applet).symlink_to("busybox")
    (directory / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (directory / "etc" / "group").write_text("root:x:0:\n")
    return directory


def compile_floor(directory: Path, *flags: str) -> Path:
    """Compile floor.c with -O2 and the flags given.

    Raises:
        FileNotFoundError: no C compiler is installed
        subprocess.CalledProcessError: it does not compile here
    """
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise FileNotFoundError("no C compiler is installed")
    target = directory / "-".join(["floor", *(flag.strip("-") for flag in flags)])
    subprocess.run([compiler, "-O2", *flags, "-o", target, Path(__file__).with_name("floor.c")], check=True)
    return target


def default_filter(target: Path) -> Path:
    """Write the filter that pycontainer loads by default, for the floor to load the same."""
    from pycontainer.seccomp_filter import compile

    target.write_bytes(compile(default_profile([f"CAP_{name}" for name in CAPABILITIES])))
    return target


def contenders(work: Path, rootfs: Path, prefix: str, seccomp: Path | None = None) -> Iterator[Contender]:
    """Every row, installed or not.

    Args:
        work: an empty directory for bundles, configurations and state
        rootfs: what all of them start ``/bin/true`` in
        prefix: what every id, and so every cgroup, begins with
        seccomp: a filter for the floor, an array of struct sock_filter; without one, pycontainer's default

    runc and crun get the default profile to compile themselves; bwrap and lxc-start run without a filter.
    """
    ours = {"driver": "native", "rootfs": str(rootfs), "id": prefix}
    yield Contender("pycontainer", ours)
    yield Contender("pycontainer, 1 GB and 8 threads", {**ours, "ballast": 1 << 30, "threads": 8})
    yield Contender("pycontainer, no filter", {**ours, "seccomp": "unconfined"})

    seccomp = seccomp or default_filter(work / "seccomp.bpf")
    try:
        floor = [str(compile_floor(work)), "-s", str(seccomp)]
    except FileNotFoundError as error:
        yield Contender("floor", missing=str(error))
    else:
        yield Contender("floor", {"argv": [*floor, str(rootfs), "{id}"], "id": prefix})
        yield Contender("floor, in-process", command=(*floor, "-n", "0", str(rootfs), f"{prefix}-pure"))

    bundle = make_bundle(work / "bundle", rootfs, "/bin/true")
    for name in ("crun", "runc"):
        state = ["--root", str(work / name), "run", "--bundle", str(bundle), "{id}"]
        yield peer(name, state, prefix, hide_cgroup2=name == "crun" and cgroup_mode() == "hybrid")
    yield peer("bwrap", bwrap_arguments(rootfs), prefix)
    (work / "lxc.conf").write_text(lxc_config(rootfs, work / "lxc.log"))
    (work / "lxc").mkdir()
    lxc = ["-F", "-q", "-C", "-n", "{id}", "-P", str(work / "lxc"), "-f", str(work / "lxc.conf"), "--", "/bin/true"]
    bare = peer("lxc-start", lxc, prefix)
    yield bare
    yield Contender("pycontainer, driver lxc", {**ours, "driver": "lxc"}, version=bare.version, missing=bare.missing)


def holders(work: Path, rootfs: Path, prefix: str) -> Iterator[Contender]:
    """Those that can keep containers running, and run further processes in them; *work* is an empty directory."""
    ours = {"driver": "native", "rootfs": str(rootfs), "id": prefix}
    yield Contender("pycontainer", ours)
    yield Contender("pycontainer, detached", {**ours, "detach": True})
    quick, lasting = (make_bundle(work / argv[0][5:], rootfs, *argv) for argv in (("/bin/true",), SLEEP))
    for name in ("crun", "runc"):
        hide = name == "crun" and cgroup_mode() == "hybrid"
        state = ["--root", str(work / name)]
        found = peer(name, [*state, "run", "--bundle", str(quick), "{id}"], prefix, hide_cgroup2=hide)
        if not found.missing:
            path = found.task["argv"][0]
            found.task["hold"] = [path, *state, "run", "--detach", "--bundle", str(lasting), "{id}"]
            found.task["exec"] = [path, *state, "exec", "{id}", "/bin/true"]
            found.task["drop"] = [[path, *state, "delete", "--force", "{id}"]]
        yield found


def make_bundle(directory: Path, rootfs: Path, *argv: str) -> Path:
    """An OCI bundle that runs *argv* in *rootfs*."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(oci_config(rootfs, *argv)))
    return directory


def peer(name: str, arguments: Sequence[str], prefix: str, hide_cgroup2: bool = False) -> Contender:
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        return Contender(name, missing="not installed")
    answer = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"\d+\.[\w.+~-]+", answer)
    task = {"argv": [path, *arguments], "id": prefix, "hide_cgroup2": hide_cgroup2}
    return Contender(name, task, version=found[0] if found else "")


def oci_config(rootfs: Path, *argv: str) -> dict[str, Any]:
    """config.json (OCI runtime spec 1.0.2) of what the native driver starts by default."""
    kept = [f"CAP_{name}" for name in CAPABILITIES]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": argv or ("/bin/true",),
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": {"bounding": kept, "effective": kept, "permitted": kept},
            "noNewPrivileges": True,
        },
        "root": {"path": str(rootfs)},
        "hostname": "benchmark",
        "mounts": [
            {"destination": destination, "type": kind, "source": kind, "options": list(options)}
            for destination, kind, options in MOUNTS
        ],
        "linux": {
            "namespaces": [{"type": name} for name in NAMESPACES],
            "maskedPaths": MASKED_PATHS,
            "readonlyPaths": READONLY_PATHS,
            "seccomp": default_profile(kept),
        },
    }


def bwrap_arguments(rootfs: Path) -> list[str]:
    """The same namespaces and mounts; bubblewrap has no cgroups, and masks nothing."""
    words = (
        "--unshare-pid --unshare-net --unshare-ipc --unshare-uts --unshare-cgroup --hostname benchmark --new-session "
        f"--die-with-parent --as-pid-1 --bind {rootfs} / --proc /proc --dev /dev --tmpfs /dev/shm "
        "--mqueue /dev/mqueue --ro-bind /sys /sys --clearenv --setenv PATH /bin --cap-drop ALL"
    ).split()
    return [*words, *(word for name in CAPABILITIES for word in ("--cap-add", f"CAP_{name}")), "--", "/bin/true"]


def lxc_config(rootfs: Path, log: Path) -> str:
    """The same namespaces and mounts; LXC joins every hierarchy, and mounts parts of /proc and /sys read-only."""
    return f"""\
lxc.rootfs.path = dir:{rootfs}
lxc.uts.name = benchmark
lxc.console.path = none
lxc.tty.max = 0
lxc.pty.max = 1024
lxc.autodev = 1
lxc.mount.auto = proc:mixed sys:ro
lxc.mount.entry = shm dev/shm tmpfs nosuid,noexec,nodev,create=dir 0 0
lxc.mount.entry = mqueue dev/mqueue mqueue nosuid,noexec,nodev,create=dir 0 0
lxc.net.0.type = empty
lxc.cap.keep = {" ".join(CAPABILITIES).lower()}
lxc.no_new_privs = 1
lxc.log.level = ERROR
lxc.log.file = {log}
"""


def lxc_pivots() -> set[Path]:
    """The cgroups named lxc.pivot, which every lxc-start leaves behind, shared by all of them."""
    return set(CGROUPS.glob("*/lxc.pivot")) | set(CGROUPS.glob("lxc.pivot"))


def remove_traces(prefix: str, work: Path, pivots: set[Path]) -> list[Path]:
    """Remove the cgroups whose name has the prefix, LXC's locks for work, and lxc.pivot where it was not before.

    Returns:
        the cgroups that were left by the contenders themselves
    """
    left = [Path(top) for top, _, _ in os.walk(CGROUPS, topdown=False) if prefix in top]
    for directory in [*left, *(lxc_pivots() - pivots)]:
        with suppress(OSError):  # in use by somebody else's LXC, or gone with its parent
            directory.rmdir()
    locks = Path("/run/lxc/lock")
    shutil.rmtree(locks / work.relative_to("/"), ignore_errors=True)
    for parent in [*(locks / work.relative_to("/")).parents][: len(work.parts)]:
        with suppress(OSError):
            parent.rmdir()
    return left
