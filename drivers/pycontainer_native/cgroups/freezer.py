"""Stopping everything in a live cgroup and letting it go on: cgroup2's freezer where there is one, else v1's.

cgroup-v2.rst, "cgroup.freeze"; cgroup-v1/freezer-subsystem.rst.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import time

from pycontainer_native.cgroups.live import Cgroup, write

#: How long a process may take to stop (seconds): one that waits for a disk or a network file system does not.
TIMEOUT = 10.0

#: How often to look at what nobody tells of: that somebody else has thawed it, or it is being removed (seconds).
_SLICE = 0.05


def can_freeze(cgroup: Cgroup) -> bool:
    """Whether it is in a hierarchy that has a freezer."""
    return any(version == 2 or "freezer" in controllers for version, controllers, _ in cgroup.paths)


def freeze(cgroup: Cgroup, timeout: float = TIMEOUT) -> bool:
    """Stop everything inside; false when *timeout* seconds were not enough, and then all of it goes on.

    On cgroup2 it is false before that as well when somebody else has let it go
    on meanwhile.  Raises OSError (ENODEV, ENOENT) when the cgroup is gone.
    """
    version, path = _freezer(cgroup)
    done = False
    try:
        done = _freeze_v2(path, timeout) if version == 2 else _freeze_v1(path, timeout)
    finally:  # also when it was interrupted
        if not done:
            thaw(cgroup)
    return done


def thaw(cgroup: Cgroup) -> None:
    """Let everything inside go on. Raises OSError (ENODEV, ENOENT) when the cgroup is gone."""
    version, path = _freezer(cgroup)
    if version == 2:
        write(f"{path}/cgroup.freeze", "0")
    else:
        write(f"{path}/freezer.state", "THAWED")


def is_frozen(cgroup: Cgroup) -> bool:
    """Whether somebody has told it to stop; false when it is gone."""
    if not can_freeze(cgroup):
        return False
    version, path = _freezer(cgroup)
    try:
        with open(f"{path}/{'cgroup.freeze' if version == 2 else 'freezer.state'}") as file:
            return file.read().strip() not in ("0", "THAWED")
    except OSError:
        return False


def let_die(cgroup: Cgroup) -> None:
    """Thaw a cgroup that a SIGKILL was sent to: v1's frozen processes take none, cgroup2's do."""
    if can_freeze(cgroup) and _freezer(cgroup)[0] == 1:
        with contextlib.suppress(OSError):  # it is gone already
            thaw(cgroup)


def _freezer(cgroup: Cgroup) -> tuple[int, str]:
    """(version, directory) of its freezer: cgroup2's, which needs no controller, before v1's."""
    places = [(version, path) for version, names, path in cgroup.paths if version == 2 or "freezer" in names]
    return max(places)


def _freeze_v2(path: str, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    events = os.open(f"{path}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
    try:
        poll = select.poll()
        poll.register(events, select.POLLPRI)
        write(f"{path}/cgroup.freeze", "1")
        while b"frozen 1" not in (now := os.pread(events, 4096, 0)):
            if b"populated 0" in now:
                raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), path)  # all have ended
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            with open(f"{path}/cgroup.freeze") as file:
                if file.read().strip() == "0":
                    return False
            poll.poll(min(left, _SLICE) * 1000 + 1)
        return True
    finally:
        os.close(events)


def _freeze_v1(path: str, timeout: float) -> bool:
    file = f"{path}/freezer.state"
    deadline = time.monotonic() + timeout
    pause = 0.001
    while True:
        write(file, "FROZEN")  # again each time: it stops what was not ready to stop, or was forked since
        with open(file) as state:
            if state.read() == "FROZEN\n":
                return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
