"""The caller's side of the guard: starting it, asking it, and removing what a dead one left."""

from __future__ import annotations

import contextlib
import fcntl
import marshal
import os
import re
import time
from collections.abc import Mapping
from typing import Any

from pycontainer.service import Service, interpreter
from pycontainer_lxc.removal import REMOVAL_TIMEOUT, kill_members, remove_cgroups

#: A guard's directory: its LXCPATH, where LXC looks for nothing, and the lock that tells that it lives.
RUN = "/run"
PREFIX = "pycontainer-lxc-"
_DIRECTORY = re.compile(PREFIX + "[0-9a-f]{12}")

_SERVE = "import sys; sys.path.append(sys.argv.pop()); from pycontainer_lxc.guard import main; main()"


class GuardClient(Service):
    """One guard process. Raises DriverUnavailableError when there is no interpreter, OSError."""

    def __init__(self, bases: Mapping[str, str], directory: int = -1) -> None:
        """*directory* is that of a detached container, which then is the guard's only one.

        That, or a pidfd of this process, is its descriptor 4; the lock is its 5.
        """
        home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        argv = [interpreter("lxc"), "-I", "-S", "-c", _SERVE, home]
        self.token = self.lxcpath = ""
        with contextlib.ExitStack() as stack:
            caller = directory
            if directory < 0:
                caller = os.pidfd_open(os.getpid())
                stack.callback(os.close, caller)
            lock = self._lock()
            stack.callback(os.close, lock)  # the guard's copy keeps it
            super().__init__(argv, [caller, lock])
        try:
            self.control.sendall(marshal.dumps((self.token, self.lxcpath, dict(bases), directory >= 0)))
        except BaseException:
            self.close()
            raise

    def _lock(self) -> int:
        """Make the directory and lock it; a sweep may take it away in between, and then it is made anew."""
        while True:
            self.token = PREFIX + os.urandom(6).hex()
            self.lxcpath = f"{RUN}/{self.token}"
            os.mkdir(self.lxcpath, 0o700)
            try:
                lock = os.open(self.lxcpath, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            with contextlib.suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.stat(self.lxcpath), os.fstat(lock)):
                    return lock
            os.close(lock)

    def ask(self, kind: str, request: dict[str, Any], fds: list[int]) -> None:
        """Send one request, with the status socket and stdio as *fds*. Raises ServiceGoneError, OSError."""
        self.request(marshal.dumps((kind, request)), fds)


def sweep(bases: Mapping[str, str]) -> list[str]:
    """Remove what guards left that were killed themselves, for their lock is free; the directories that are gone.

    The kernel kills their containers, which takes a moment.
    """
    deadline = time.monotonic() + REMOVAL_TIMEOUT
    removed: list[str] = []
    while not _sweep(bases, removed) and time.monotonic() < deadline:
        time.sleep(0.005)
    return removed


def _sweep(bases: Mapping[str, str], removed: list[str]) -> bool:
    """One round; whether nothing of a dead guard is left."""
    clean = True
    for name in os.listdir(RUN):
        if not _DIRECTORY.fullmatch(name):
            continue
        path = f"{RUN}/{name}"
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.isdir(f"{path}/."):  # its owner removed it in the meantime
                continue
            done = True
            for base in {*bases.values()}:
                for root, directories, _ in os.walk(base):
                    if name in directories:
                        kill_members(f"{root}/{name}")
                        done = remove_cgroups(f"{root}/{name}") and done
            clean = clean and done
            if done:
                removed.append(path)
                for directory in (f"{RUN}/lxc/lock{path}", path):
                    with contextlib.suppress(OSError):
                        for file in os.listdir(directory):
                            os.unlink(f"{directory}/{file}")
                        os.rmdir(directory)
        except BlockingIOError:
            pass  # it lives
        except OSError:
            clean = False  # what was looked at has gone in the meantime
        finally:
            os.close(lock)
    return clean
