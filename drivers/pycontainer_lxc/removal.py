"""Ending what is in a cgroup, and removing it: the guard's last steps, and what a sweep does after a dead one."""

from __future__ import annotations

import _signal as signal
import os

#: How long a container's cgroups may refuse to go away (seconds).
REMOVAL_TIMEOUT = 5.0


def remove_cgroups(path: str) -> bool:
    """Remove the cgroup *path* and those below it; whether nothing is left. A busy one stays."""
    try:
        names = [entry.name for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return True
    for name in names:
        remove_cgroups(f"{path}/{name}")
    try:
        os.rmdir(path)
    except FileNotFoundError:
        pass
    except OSError:
        return False
    return True


def thaw(directory: str) -> None:
    """A frozen process of cgroup v1 does not die of SIGKILL before it is thawed."""
    for name, value in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
        try:
            with open(f"{directory}/{name}", "r+") as file:  # which does not make it where it is not
                file.write(value)
        except OSError:
            pass


def kill_members(cgroup: str) -> None:
    """One round of SIGKILL to everything in *cgroup* and below it."""
    for directory, _, _ in os.walk(cgroup):
        for pid in _members(directory):
            try:
                pidfd = os.pidfd_open(pid)
            except OSError:
                continue
            try:
                if pid in _members(directory):  # only who still is in here is ours
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            except OSError:
                pass
            finally:
                os.close(pidfd)
        thaw(directory)


def _members(directory: str) -> list[int]:
    try:
        with open(f"{directory}/cgroup.procs") as file:
            return [int(line) for line in file]
    except OSError:
        return []
