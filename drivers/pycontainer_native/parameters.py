"""What the kernel keeps for a container: sysctls and hostname of its namespaces, and how its processes stand."""

from __future__ import annotations

import errno
import os
import struct
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from pycontainer.sysctl import path_of
from pycontainer_native import abi, mounts
from pycontainer_native.syscalls import Recorder, Slot

#: oom_score_adj, affinity, AppArmor profile, SELinux label: the inputs of :func:`stand`
Standing: TypeAlias = "tuple[int | None, str | None, str | None, str | None]"


def kernel_parameters(
    k: Recorder,
    propagation: str | None,
    hostname: str | None,
    sysctls: Mapping[str, str],
    mounted: bool,
    *standing: Any,
) -> None:
    """What the kernel keeps for the container's namespaces and for its processes; *mounted* as in :func:`stand`."""
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
            proc = _procfs(k, mounted)
        for name, value in sysctls.items():
            _write_proc(k, proc, f"set {name} to {value}", (f"sys/{path_of(name)}",), value)
    stand(k, mounted, *standing)


def stand(
    k: Recorder,
    mounted: bool,
    oom_score_adj: int | None,
    affinity: str | None,
    apparmor_profile: str | None,
    selinux_label: str | None,
) -> None:
    """How the kernel is to treat the process, and those that come of it: start and exec share it.

    A label is for the next execve, also of a child: what is left of the set-up
    needs the launcher's.  Where a procfs cannot be made, for the pid namespace
    is somebody else's, *mounted* is true and that on /proc is used.
    """
    if oom_score_adj is not None:
        label = f"set oom_score_adj to {oom_score_adj}"
        _write_proc(k, mounted, label, ("self/oom_score_adj",), str(oom_score_adj))
    if affinity is not None:
        mask = _processors(affinity)
        with k.step(f"set the affinity to processors {affinity}"):
            k.call("sched_setaffinity", 0, len(mask), mask)
            # The kernel leaves out those that are not there, or not in the cpuset, and says nothing.
            k.call("sched_getaffinity", 0, 1024, ("buffer", 1024), check=(mask, errno.EINVAL))
    if apparmor_profile is not None:
        # Its own file is there from Linux 5.8 on; the other one is that of whichever module is asked first.
        paths = ("self/attr/apparmor/exec", "self/attr/exec")
        _write_proc(k, mounted, f"set the AppArmor profile {apparmor_profile}", paths, f"exec {apparmor_profile}")
    if selinux_label is not None:
        _write_proc(k, mounted, f"set the SELinux label {selinux_label}", ("self/attr/exec",), selinux_label)


def _procfs(k: Recorder, mounted: bool) -> Slot:
    """One that is mounted nowhere, so that no mount can lie over it (CVE-2025-52881), or that on /proc."""
    if mounted:
        return k.openat2(abi.AT_FDCWD, b"/proc", abi.O_PATH | abi.O_DIRECTORY, abi.RESOLVE_NO_SYMLINKS)
    return k.new_mount("proc", {}, 0)


def _write_proc(k: Recorder, proc: Slot | bool, label: str, paths: Sequence[str], value: str) -> None:
    """Write to the first of *paths* that there is in *proc*, or in the :func:`_procfs` of that kind.

    No mount over a part of it is followed, and what is opened is looked at
    once more before it is written to (CVE-2019-16884).
    """
    with k.step(label):
        if isinstance(proc, bool):
            proc = _procfs(k, proc)
        file, encoded = k.slot(), mounts.encode(value)
        resolve = abi.RESOLVE_BENEATH | abi.RESOLVE_NO_XDEV | abi.RESOLVE_NO_MAGICLINKS
        for left, path in zip(reversed(range(len(paths))), paths, strict=True):
            accept = {errno.ENOENT: 0} if left else None
            k.openat2(proc, mounts.encode(path), os.O_WRONLY, resolve, out=file, accept=accept, skip=left)
        # struct statfs begins with the file system's type
        k.call("fstatfs", file, ("buffer", 256), check=(struct.pack("=q", abi.PROC_SUPER_MAGIC), errno.EXDEV))
        k.call("write", file, encoded, len(encoded), path=mounts.encode(paths[0]))


def _processors(cpus: str) -> bytes:
    """A list of cpuset(7) as the kernel's bit mask, without zeros at its end."""
    mask = 0
    for item in cpus.split(","):
        first, _, last = item.partition("-")
        for number in range(int(first), int(last or first) + 1):
            mask |= 1 << number
    return mask.to_bytes((mask.bit_length() + 63) // 64 * 8, sys.byteorder).rstrip(b"\0")
