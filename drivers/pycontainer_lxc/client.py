"""The caller's side of the guard: starting it, asking it, and removing what a dead one left."""

from __future__ import annotations

import contextlib
import fcntl
import marshal
import os
import re
import select
import signal
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any

from pycontainer_lxc.removal import REMOVAL_TIMEOUT, kill_members, remove_cgroups

#: A guard's directory: its LXCPATH, where LXC looks for nothing, and the lock that tells that it lives.
RUN = "/run"
PREFIX = "pycontainer-lxc-"
_DIRECTORY = re.compile(PREFIX + "[0-9a-f]{12}")

_SERVE = "import sys; sys.path.append(sys.argv.pop()); from pycontainer_lxc.guard import main; main()"


class GuardGoneError(Exception):
    """The guard has ended, so a request could not be given to it."""


class GuardClient:
    """One guard process, started here, ended by :meth:`close` or by the caller's own end."""

    def __init__(self, bases: Mapping[str, str], directory: int = -1) -> None:
        """*directory* is that of a detached container, which then is the guard's only one."""
        self.token = self.lxcpath = ""
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            lock = self._lock()
            try:
                self.pid = _spawn(theirs.fileno(), lock, directory)
            finally:
                os.close(lock)  # the guard's copy keeps it
            self._control.sendall(marshal.dumps((self.token, self.lxcpath, dict(bases), directory >= 0)))
        except BaseException:
            self._control.close()
            raise
        finally:
            theirs.close()

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

    def request(self, kind: str, request: dict[str, Any], fds: list[int]) -> None:
        """Send one request, with the status socket and stdio as *fds*. Raises GuardGoneError."""
        memfd = os.memfd_create("pycontainer-lxc", os.MFD_CLOEXEC)
        try:
            with open(os.dup(memfd), "wb") as file:
                file.write(marshal.dumps((kind, request)))
            socket.send_fds(self._control, [b"request"], [memfd, *fds], socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError):
            raise GuardGoneError from None
        finally:
            os.close(memfd)

    def ended(self, timeout: float = 0) -> bool:
        """Whether it has ended, waiting for that at most *timeout* seconds."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            return bool(poll.poll(timeout * 1000))
        finally:
            os.close(pidfd)

    def last_words(self) -> str:
        """What the guard said about its own death, if it could."""
        try:
            return self._control.recv(4096, socket.MSG_DONTWAIT).decode(errors="replace")
        except OSError:
            return ""

    def close(self) -> None:
        """End the guard, and with it every container; returns when all of it is gone."""
        self._control.close()
        with contextlib.suppress(ChildProcessError):  # somebody else's waitpid(-1) was first
            os.waitpid(self.pid, 0)

    def end(self) -> None:
        """End a guard that no longer listens: with its death everything of its container dies."""
        self._control.close()
        if not self.ended(REMOVAL_TIMEOUT):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def forget(self) -> None:
        """In a forked child: let go of what belongs to the parent."""
        self._control.close()


def _spawn(control: int, lock: int, directory: int) -> int:
    """Start the guard with *control* as its descriptor 3, *lock* as its 5; its 4 is *directory* or this one's pidfd."""
    python = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    # Only what the dynamic loader may need to find libpython; the guard's environment is empty otherwise.
    env = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    caller = os.pidfd_open(os.getpid()) if directory < 0 else os.dup(directory)
    # dup2 onto itself does not clear close-on-exec everywhere, so none of these may already be 3 to 5.
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 16) for fd in (control, caller, lock)]
    try:
        actions = [(os.POSIX_SPAWN_DUP2, null, fd) for fd in (0, 1, 2)]
        actions += [(os.POSIX_SPAWN_DUP2, fd, to) for fd, to in zip(high, (3, 4, 5), strict=True)]
        return os.posix_spawn(
            python,
            [python, "-I", "-S", "-c", _SERVE, home],
            env,
            file_actions=actions,
            setsid=True,
            setsigmask=(),
            setsigdef=[number for number in signal.valid_signals() if number not in (signal.SIGKILL, signal.SIGSTOP)],
        )
    finally:
        for fd in (null, caller, *high):
            os.close(fd)


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
