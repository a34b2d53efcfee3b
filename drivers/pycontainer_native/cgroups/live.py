"""Live cgroups: a container's processes, their end, and what a dead launcher left.

A launcher owns ``<base>/pycontainer-<token>`` in every hierarchy it uses, and
holds an exclusive flock(2) on it as long as it lives: the kernel drops the
lock with the process, so a directory whose lock can be had is a dead
launcher's.  Between the launcher's mkdir and its lock :func:`sweep` may take
the directory for a dead one's and remove it.  Hence the launcher's side:

1. mkdir (that it exists is no error), open it with O_DIRECTORY|O_NOFOLLOW|O_CLOEXEC;
   start again on ENOENT.
2. flock(LOCK_EX).  A sweep holds it only as long as it removes; but anybody
   who may read the directory can hold it, so wait for a second or two at most
   and go on with another token.
3. When the path no longer is what was opened (st_dev and st_ino of fstat and
   stat differ, or ENOENT), close it and start again.  Inode numbers of
   cgroups are not used twice.
4. Make nothing inside, and enable and join nothing, before that.

Removing takes the same lock first, so nothing that is in use is ever removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import time
from collections.abc import Iterable, Iterator, Sequence

from attrs import frozen

from pycontainer_native.cgroups.layout import LAUNCHER_DIRECTORY, PREFIX, Group, Hierarchy, Layout


@frozen
class Cgroup:
    """A container's cgroup: its directory in each hierarchy, as (version, controllers, path)."""

    paths: tuple[tuple[int, tuple[str, ...], str], ...]

    @classmethod
    def of(cls, groups: Iterable[Group], token: str, id: str) -> Cgroup:
        """That of the container *id* of the launcher that has *token*."""
        if "/" in id or id in ("", ".", ".."):
            raise ValueError(f"not a container's id: {id!r}")
        return cls(tuple((group.version, group.controllers, f"{group.directory(token)}/{id}") for group in groups))

    def pids(self) -> list[int]:
        """Host pids of everything inside, in nested cgroups too; [] when it is gone.

        Every hierarchy is asked: a process that has only begun to join is in some.
        """
        return sorted(set[int]().union(*(_pids(path) for _, _, path in self.paths)))

    def kill(self, timeout: float = 5.0) -> bool:
        """SIGKILL to everything inside, again until nothing is left; false when *timeout* seconds were not enough.

        Once at least, whatever the timeout.  A frozen cgroup is thawed: on v1 a frozen process cannot die.
        """
        deadline = time.monotonic() + timeout
        pause = 0.001
        while self.pids():
            # cgroup.kill, Linux 5.14, leaves alone who is in a v1 hierarchy only: the next round's, then.
            unified = [path for version, _, path in self.paths if version == 2 and _pids(path)]
            if not any(_write(path + "/cgroup.kill", "1") for path in unified):
                self._signal_all()
            if time.monotonic() >= deadline:
                return not self.pids()
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        return True

    def read(self, filename: str) -> str:
        """The text of *filename* (``memory.max``) in the hierarchy that has its controller.

        Raises FileNotFoundError: no hierarchy has, or the container is gone.
        """
        controller = filename.partition(".")[0]
        for version, controllers, path in self.paths:
            if controller in controllers or (version == 2 and controller == "cgroup"):
                with open(f"{path}/{filename}") as file:
                    return file.read().strip()
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), filename)

    def _signal_all(self) -> None:
        """Without cgroup.kill: frozen, so that no fork outruns the list, and by pidfd, each checked to be inside."""
        freezers = [
            (f"{directory}/{'cgroup.freeze' if version == 2 else 'freezer.state'}", version)
            for version, controllers, path in self.paths
            if version == 2 or "freezer" in controllers
            for directory in reversed(_tree(path))
        ]
        try:
            for file, version in freezers:
                _write(file, "1" if version == 2 else "FROZEN")
            listed = [pid for pid in self.pids() if pid]  # 0: of a pid namespace that is not below ours
            for start in range(0, len(listed), 128):  # not more descriptors than a process may have
                _signal(listed[start : start + 128], self)
        finally:
            for file, version in freezers:
                _write(file, "0" if version == 2 else "THAWED")


#: How long what a dead launcher had just cloned may take to die (seconds).
DYING = 2.0


def sweep(
    layout: Layout,
    exclude_token: str | None = None,
    cgroup_parent: str | None = None,
    dead: str | None = None,
    patience: float = DYING,
    everywhere: bool = False,
) -> list[str]:
    """End and remove what dead launchers left directly below *layout*'s bases; the paths that are gone.

    A directory that is locked is not touched, nor is any other of the same
    launcher; *exclude_token* is the caller's own, *dead* that of one which is
    known to have ended: what it leaves is waited for, for *patience* seconds.
    What has a *cgroup_parent* is found by naming that (InvalidCommandError is
    raised as by :meth:`Layout.places`), or *everywhere*: below all cgroups
    that can be seen, which takes as long as there are cgroups.
    """
    launchers: dict[str, list[tuple[int, tuple[str, ...], str]]] = {}
    for place in dict.fromkeys((*layout.hierarchies, *layout.places(cgroup_parent))):
        for base, name in _below_all(place.mountpoint) if everywhere else _below(place):
            if name != f"{PREFIX}{exclude_token}":
                found = (place.version, tuple(place.controllers), f"{base}/{name}")
                launchers.setdefault(name, []).append(found)
    patient = {f"{PREFIX}{dead}": patience}
    return [path for name, paths in launchers.items() for path in remove_dead(paths, patient.get(name, 0.0))]


def _below(place: Hierarchy) -> Iterator[tuple[str, str]]:
    """(base, name) of the launchers' directories at the place for them."""
    with contextlib.suppress(FileNotFoundError):  # a base that is gone has nothing below it
        for name in sorted(os.listdir(place.base)) if place.writable else ():
            if LAUNCHER_DIRECTORY.fullmatch(name):
                yield place.base, name


def _below_all(mountpoint: str) -> Iterator[tuple[str, str]]:
    """Likewise, of all that this process may remove. What is inside of one is its containers' affair."""
    for base, names, _ in os.walk(mountpoint):
        found = [name for name in names if LAUNCHER_DIRECTORY.fullmatch(name)]
        names[:] = [name for name in names if name not in found]
        if found and os.access(base, os.W_OK | os.X_OK):
            yield from ((base, name) for name in found)


def remove_dead(paths: Sequence[tuple[int, tuple[str, ...], str]], patience: float = 0.0) -> list[str]:
    """End and remove what is in the directories of one launcher, if that is dead; those that are gone.

    A process that it had just cloned has its locks as well, until that dies in
    its turn: who knows that the launcher is dead has *patience* (seconds).
    """
    deadline = time.monotonic() + patience
    with contextlib.ExitStack() as locks:
        while True:
            paths = [place for place in paths if os.path.lexists(place[2])]
            if all(_lock(path, locks) for _, _, path in paths):
                break
            locks.close()
            if time.monotonic() >= deadline:
                return []
            time.sleep(0.005)
        killed = Cgroup(tuple(paths)).kill(timeout=2.0)
        deadline = max(deadline, time.monotonic() + (1.0 if killed else 0.0))
        return [path for _, _, path in paths if _remove(path, deadline)]


def _lock(path: str, locks: contextlib.ExitStack) -> bool:
    """Whether the directory was had, and not a launcher's that lives; *locks* gives it back."""
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        locks.callback(os.close, directory)
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        here, parent, now = os.fstat(directory), os.stat(os.path.dirname(path)), os.lstat(path)
    except OSError:  # EWOULDBLOCK: it lives. ENOENT: somebody else is removing it
        return False
    return here.st_dev == parent.st_dev and os.path.samestat(here, now)


def _remove(path: str, deadline: float) -> bool:
    """Remove a cgroup and those inside, the innermost first; a process that is still ending keeps its own (EBUSY)."""
    while True:
        for directory in reversed(_tree(path)):
            with contextlib.suppress(OSError):
                os.rmdir(directory)
        if not os.path.lexists(path):
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.005)


def _signal(pids: list[int], cgroup: Cgroup) -> None:
    with contextlib.ExitStack() as descriptors:
        opened = {}
        for pid in pids:
            with contextlib.suppress(OSError):
                opened[pid] = os.pidfd_open(pid)
                descriptors.callback(os.close, opened[pid])
        # A pid that is listed now, after it was opened, either is the process that was opened or its
        # successor inside, and then the signal finds nobody (ESRCH): no foreign process is ever hit.
        for pid in opened.keys() & {*cgroup.pids()}:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(opened[pid], signal.SIGKILL)


def _pids(path: str) -> set[int]:
    found: set[int] = set()
    for directory in _tree(path):
        # Gone meanwhile, or threaded (EOPNOTSUPP): the processes of those are listed by an ancestor.
        with contextlib.suppress(OSError), open(directory + "/cgroup.procs") as file:
            found.update(map(int, file.read().split()))
    return found


def _tree(path: str) -> list[str]:
    """The directory and all below it, each after its parent. Symbolic links are not followed."""
    found = [path]
    for directory in found:
        with contextlib.suppress(OSError), os.scandir(directory) as entries:
            found += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    return found


def write(path: str, value: str) -> None:
    """One write to a cgroup's file. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)


def _write(path: str, value: str) -> bool:
    """Whether the file is there and takes *value*."""
    try:
        write(path, value)
    except OSError:
        return False
    return True
