"""What the kernel says, seen from the host: processes, mounts, cgroups, descriptors."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import re
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pycontainer_native import abi
from pycontainer_native.cgroups import detect
from pycontainer_native.cgroups.layout import LAUNCHER_DIRECTORY

if TYPE_CHECKING:
    from pycontainer_native.driver import NativeDriver


def status(pid: int) -> dict[str, str]:
    """/proc/<pid>/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def ids(pid: int, line: str) -> list[int]:
    """The ids in *line* of its status ("Uid", "Gid", "Groups"), as its own user namespace has them."""
    kind = "uid" if line == "Uid" else "gid"
    maps = [[*map(int, text.split())] for text in Path(f"/proc/{pid}/{kind}_map").read_text().splitlines()]
    found = []
    for outside in map(int, status(pid)[line].split()):
        [inside] = [first + outside - start for first, start, count in maps if start <= outside < start + count]
        found.append(inside)
    return found


def is_alive(pid: int) -> bool:
    """Whether there is such a process, and it is no zombie."""
    try:
        return status(pid)["State"][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(pid: int) -> list[int]:
    """The pids of its children."""
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found


def descriptors(pid: int | str = "self") -> list[str]:
    """Everything that it has open; nothing when it has ended."""
    found = []
    names: list[str] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        names = os.listdir(f"/proc/{pid}/fd")
    for fd in names:
        with contextlib.suppress(FileNotFoundError):  # the one of the listing
            found.append(f"{fd} -> {os.readlink(f'/proc/{pid}/fd/{fd}')}")
    return found


def leave_no_descriptor(pid: int) -> int:
    """Let that process have no descriptor more than it has; the first number that it lacks."""
    taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    free = next(number for number in itertools.count() if number not in taken)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free, resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]))
    return free


def waits_for_a_request(pid: int) -> bool:
    """Whether a container's first process has made everything that can be made ahead.

    Then it has /dev/null three times, its channel (twice, to reserve a number), and what abi.KEPT names.
    """
    held = descriptors(pid)
    return len(held) == 5 + len(abi.KEPT) and sum("socket:" in fd for fd in held) == 2


def running(marker: str) -> list[int]:
    """The pids of all processes on the host whose arguments contain *marker*."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if marker.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(int(pid))
    return found


def net_namespaces() -> dict[int, list[int]]:
    """Every network namespace that a process is in: its inode, and the pids."""
    found: dict[int, list[int]] = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            found.setdefault(os.stat(f"/proc/{pid}/ns/net").st_ino, []).append(int(pid))
    return found


def ports(bridge: str) -> set[str]:
    """The interfaces on it: each pair is on its bridge from its first moment on."""
    return set(os.listdir(f"/sys/class/net/{bridge}/brif"))


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


class MountPoint(NamedTuple):
    """A line of mountinfo (proc_pid_mountinfo(5))."""

    root: str
    path: str
    options: frozenset[str]
    propagation: str
    fstype: str


def mounts(pid: int | str = "self") -> list[MountPoint]:
    """What is mounted in its mount namespace, parents first: of two on one path the later one counts."""
    found: dict[str, tuple[str, MountPoint]] = {}
    for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
        mount, _, filesystem = line.partition(" - ")
        fields = mount.split(" ")
        root, path = (re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), text) for text in fields[3:5])
        fstype, _, superblock = filesystem.split(" ", 2)
        options = frozenset((*fields[5].split(","), *superblock.split(",")[1:]))
        found[fields[0]] = fields[1], MountPoint(root, path, options, " ".join(fields[6:]), fstype)

    def depth(number: str) -> int:
        parent = found[number][0]
        return 1 + depth(parent) if parent in found and parent != number else 0

    return [found[number][1] for number in sorted(found, key=depth)]  # the file has them by age


def cgroup_directories(pid: int) -> Iterator[tuple[str, Path]]:
    """Its cgroups, as (controllers, directory); the controllers of cgroup2 are ""."""
    own = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        own[controllers] = path
    for mount in mounts():
        if mount.fstype == "cgroup2" and "" in own:
            yield "", Path(mount.path + own[""])
        elif mount.fstype == "cgroup":
            for controllers, path in own.items():
                if controllers and {*controllers.split(",")} <= mount.options:
                    yield controllers, Path(mount.path + path)


def cgroup_value(pid: int, v1: str, v2: str) -> str | None:
    """What its cgroup's control file says, by the version that has it: the other one's name is not there."""
    for controllers, directory in cgroup_directories(pid):
        name = v1 if controllers else v2
        if (not controllers or name.partition(".")[0] in controllers.split(",")) and (directory / name).exists():
            return (directory / name).read_text().strip()
    return None


def launcher_directories() -> set[str]:
    """The launchers' own directories in every hierarchy."""
    found = set()
    for place in detect().hierarchies:
        found |= {f"{place.base}/{name}" for name in os.listdir(place.base) if LAUNCHER_DIRECTORY.fullmatch(name)}
    return found


def _is_nobodys(directory: str) -> bool:
    """Whether no living launcher holds this directory of it: it was left by a dead one."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):  # gone by now, or another user's
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


class Holdings(NamedTuple):
    """What this process and its host have at one moment."""

    descriptors: frozenset[str]
    children: frozenset[int]
    mounts: frozenset[MountPoint]
    directories: frozenset[str]

    @classmethod
    def look(cls) -> Holdings:
        return cls(
            frozenset(descriptors()),
            frozenset(children(os.getpid())),
            frozenset(mounts()),
            frozenset(launcher_directories()),
        )

    def wait_until_regained(self, driver: NativeDriver, timeout: float = 10.0) -> list[str]:
        """What there is too much of now, a line each. It is given *timeout* seconds to go: removal takes a moment."""
        deadline = time.monotonic() + timeout
        while (left := self._too_much(driver)) and time.monotonic() < deadline:
            time.sleep(0.01)
        return left

    def _too_much(self, driver: NativeDriver) -> list[str]:
        now = Holdings.look()
        left = []
        if len(now.descriptors) > len(self.descriptors):
            left += [f"descriptor {fd}" for fd in now.descriptors - self.descriptors]
        for pid in now.children - self.children:
            if is_alive(pid):
                left.append(f"process {pid} {Path(f'/proc/{pid}/cmdline').read_bytes()!r}")
            else:  # an orphan of somebody else's that became ours
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
        left += [f"mount {mount}" for mount in now.mounts - self.mounts]
        left += [f"cgroup {path}" for path in now.directories - self.directories if _is_nobodys(path)]
        launcher = driver._launchers.current
        assert launcher is not None
        # A launcher may own one container that does not run yet: its spare.
        if len(waiting := children(launcher.pid)) > 1:
            left += [f"child of the launcher {pid}" for pid in waiting]
        for path in now.directories:
            if path.endswith(launcher.token) and len(inside := [e.name for e in os.scandir(path) if e.is_dir()]) > 1:
                left += [f"cgroup {path}/{name}" for name in inside]
        return left
