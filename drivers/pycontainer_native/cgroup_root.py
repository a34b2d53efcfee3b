"""The launcher's directory in a cgroup hierarchy, and what it does to the containers' directories below."""

from __future__ import annotations

import _signal as signal
import errno
import fcntl
import os
from time import sleep

from pycontainer_native import bpf


class CgroupRoot:
    """The launcher's own directory in one hierarchy: the containers' directories are below it.

    It is locked as long as the launcher lives.  Whoever gets the lock knows
    that the owner is dead and removes it, so a directory that was made but not
    yet locked can vanish: then it is made again.
    """

    def __init__(self, base: str, name: str, version: int) -> None:
        self.path = f"{base}/{name}"
        self.version = version
        self.done: set[tuple[str, str]] = set()
        for _ in range(100):
            try:
                os.mkdir(self.path, 0o755)
            except FileExistsError:
                pass
            try:
                self.fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.stat(self.path).st_ino == os.fstat(self.fd).st_ino:
                    return
            except FileNotFoundError:
                pass
            except BlockingIOError:
                sleep(0.005)  # a sweep has it, and is removing it
            os.close(self.fd)
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), self.path)

    def open_to_join(self, name: str) -> int:
        """What a process needs to join the cgroup *name*: v1's ``tasks``, cgroup2's directory."""
        if self.version == 2:
            return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.fd)
        return os.open(f"{name}/tasks", os.O_WRONLY | os.O_CLOEXEC, dir_fd=self.fd)

    def write(self, name: str, value: str) -> None:
        """Write *value* to the control file *name*, in one write."""
        fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=self.fd)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)

    def set_device_rules(self, name: str, program: bytes) -> None:
        """Attach *program* to the cgroup *name*."""
        opened = []
        try:
            opened.append(self.open_to_join(name))
            opened.append(bpf.load(program))
            bpf.attach(*opened)  # the cgroup keeps the program, as long as it is there
        finally:
            for fd in opened:
                os.close(fd)

    def read(self, name: str, size: int = 1 << 20) -> str:
        """The text of the control file *name*, at most *size* bytes of it; empty when it cannot be read."""
        try:
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.fd)
        except OSError:
            return ""
        try:
            return os.read(fd, size).decode()
        except OSError:
            return ""  # ENODEV: somebody has removed the cgroup
        finally:
            os.close(fd)

    def kill(self, name: str) -> None:
        """One round of SIGKILL to everything in the cgroup *name*, and below."""
        try:
            self.write(f"{name}/cgroup.kill", "1")
            return
        except OSError:
            pass  # version 1, or a kernel before 5.14
        for directory, _, _, _ in os.fwalk(name, dir_fd=self.fd):
            for pid in map(int, self.read(f"{directory}/cgroup.procs").split()):
                try:
                    pidfd = os.pidfd_open(pid)
                except OSError:
                    continue
                try:
                    # The pid may be another's by now: only who still is in here is ours.
                    if str(pid) in self.read(f"{directory}/cgroup.procs").split():
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                except OSError:
                    pass
                finally:
                    os.close(pidfd)
            if directory != name:  # a payload's own, below: the container's is rmdir'ed by the caller
                try:
                    os.rmdir(directory, dir_fd=self.fd)
                except OSError:
                    pass
