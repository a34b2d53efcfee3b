"""What is on record of detached containers, and how any process finds and watches them.

Each has a directory below :data:`ROOT`.  Its guard holds a lock on it as long
as it lives (flock(2)), which nobody can forget to give back; ``container`` is
there before the guard is, ``started`` and ``ended`` come from the guard
(:mod:`pycontainer_lxc.detached`).  Without ``started`` nothing ever ran.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import re
import select
import shutil
import signal as signals
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pycontainer.command import Command
from pycontainer.driver import ContainerInfo, ExitStatus, State
from pycontainer.errors import AlreadyExistsError, ContainerError, ContainerLostError, InvalidCommandError
from pycontainer.logs import LogRecord, read_log
from pycontainer.records import fields, is_integer, is_number, is_text, load, optional
from pycontainer.service import WatchedProcess, exit_status, wait_readable
from pycontainer_lxc import cgroups

__all__ = ["ROOT", "DetachedProcess", "Record", "claim", "find", "read", "records"]

ROOT = "/run/pycontainer/lxc"

_ID = re.compile("[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


def _is_pid(value: Any) -> bool:
    return is_integer(value) and 0 < value < 2**31


def _is_bool(value: Any) -> bool:
    return type(value) is bool


def _are_directories(value: Any) -> bool:
    return type(value) is dict and all(is_text(path) and path[:1] == "/" for path in value.values())


#: The fields of ``container``. The first two are there before there is a guard.
_CONTAINER: Mapping[str, Callable[[Any], bool]] = {
    "command": lambda value: type(value) is str,
    "created": is_number,
    "guard": optional(_is_pid),
    "token": optional(is_text),
    "lxcpath": optional(is_text),
    "directories": optional(_are_directories),
    "isolated": optional(_is_bool),
}
#: The parts of ``ended``.
_ENDED: Mapping[str, Callable[[Any], bool]] = {
    "code": optional(is_integer),
    "signal": optional(is_integer),
    "oom_killed": _is_bool,
    "note": lambda value: type(value) is str,
    "when": is_number,
}

#: linux/inotify.h: IN_MODIFY, IN_MOVED_TO, IN_CREATE
_CHANGES = 0x2 | 0x80 | 0x100

#: The pids of guards that are children of this process and have not been reaped.
_children: set[int] = set()


def note_child(pid: int) -> None:
    """This process has made that guard: whoever sees its end is to reap it."""
    _children.add(pid)


def claim(command: Command) -> tuple[Record, int]:
    """A new record, and the descriptor that holds its lock. Raises AlreadyExistsError: the id is the host's."""
    id, content = command.id, {"command": command.to_json(), "created": time.time()}
    os.makedirs(ROOT, 0o700, exist_ok=True)
    while True:
        path = f"{ROOT}/.{os.urandom(6).hex()}"  # no id begins like that
        os.mkdir(path, 0o700)
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # somebody's gc
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with open(f"{path}/container", "w") as file:
                json.dump(content, file)
            _remove_unfinished(id)
            os.rename(path, f"{ROOT}/{id}")
            return Record(id), lock
        except BaseException as error:
            os.close(lock)
            shutil.rmtree(path, ignore_errors=True)
            if isinstance(error, FileNotFoundError | BlockingIOError):
                continue
            if isinstance(error, OSError) and os.path.isdir(f"{ROOT}/{id}"):  # ENOTEMPTY
                raise AlreadyExistsError(id) from None
            raise


def _remove_unfinished(id: str) -> None:
    """The directory of one whose start was never finished does not keep its id."""
    record = Record(id)
    if os.path.isdir(record.path) and not record.has_started() and not record.is_guarded():
        record.remove()


def find(id: str) -> Record | None:
    """The record of *id*, None where there is none, or nothing of it ever ran."""
    record = Record(id)
    return record if _ID.fullmatch(id) and record.has_started() else None


def records() -> list[Record]:
    """All of them, the oldest first; also those that never ran."""
    try:
        names = os.listdir(ROOT)
    except FileNotFoundError:
        return []
    return sorted(map(Record, names), key=lambda record: (record.created, record.id))


class Record:
    """The directory of one detached container."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.path = f"{ROOT}/{id}"
        self._problems: dict[str, str] = {}  # by what cannot be read

    @property
    def problem(self) -> str:
        """What of what was asked for cannot be read, and why; "" as long as all could."""
        return "; ".join(self._problems.values())

    def _read(self, name: str, checks: Mapping[str, Callable[[Any], bool]]) -> dict[str, Any] | None:
        """What is in that file; None when there is none, or it is not as it was written."""
        path = f"{self.path}/{name}"
        try:
            found = load(path)
            return None if found is None else fields(path, found, checks)
        except ContainerError as error:
            self._problems[name] = str(error)
            return None

    def describe(self, guard: int, token: str, lxcpath: str, directories: Mapping[str, str], isolated: bool) -> None:
        """Add what is known once there is a guard."""
        known = {"guard": guard, "token": token, "lxcpath": lxcpath, "directories": directories, "isolated": isolated}
        with open(f"{self.path}/.container", "w") as file:
            json.dump({**self.content, **known}, file)
        os.rename(f"{self.path}/.container", f"{self.path}/container")

    def whereabouts(self) -> tuple[str, tuple[int, bool]]:
        """Its LXCPATH, its monitor's pid and whether that is in a network namespace of its own."""
        content = self.described
        return content["lxcpath"], (self.started()["monitor"], content["isolated"])

    @property
    def content(self) -> Mapping[str, Any]:
        """What was recorded at its start: command, created, guard, token, directories, isolated."""
        return self._read("container", _CONTAINER) or {}

    @property
    def described(self) -> Mapping[str, Any]:
        """:attr:`content` of what has started. Raises ContainerError: it is not as it was written, or not all of it."""
        content = self.content
        for name in _CONTAINER:
            if content.get(name) is None:
                raise ContainerError(self.problem or f"{self.path}/container is damaged: the field {name!r} is missing")
        return content

    @property
    def command(self) -> Command | None:
        """What it runs; None where that cannot be read, as a field of a later version."""
        text = self.content.get("command")
        if text is None:
            return None
        try:
            command = Command.from_json(text)
        except (InvalidCommandError, RecursionError) as error:
            self._problems["container"] = f"{self.path}/container is damaged: the field 'command': {error}"
            return None
        if command.id != self.id:
            self._problems["container"] = f"{self.path}/container is damaged: it is of container {command.id!r}"
            return None
        return command

    @property
    def created(self) -> float:
        created = self.content.get("created")
        return created if isinstance(created, (int, float)) else 0.0

    def has_started(self) -> bool:
        return os.path.exists(f"{self.path}/started")

    def started(self) -> Mapping[str, int]:
        """The pids: its own, and its monitor's."""
        return self._read("started", {"pid": _is_pid, "monitor": _is_pid}) or {}

    def ended(self) -> tuple[ExitStatus | None, float | None] | None:
        """How and when it ended, if that is on record; None for what LXC itself did not know, or cannot be read."""
        path = f"{self.path}/ended"
        try:
            found = load(path)
            if found is None:
                return None
            (kind, *values), when = found
            code, signal, oom_killed, note = values if kind == "exited" else (0, None, False, "")
            parts = {"code": code, "signal": signal, "oom_killed": oom_killed, "note": note, "when": when}
            fields(path, parts, _ENDED)
        except (ContainerError, TypeError, ValueError) as error:
            self._problems["ended"] = str(error) if isinstance(error, ContainerError) else f"{path}: {error}"
            return None, None
        return (exit_status(code, signal, oom_killed, note) if kind == "exited" else None), when

    def is_guarded(self) -> bool:
        """Whether its guard lives."""
        try:
            lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def info(self) -> ContainerInfo:
        """What ``info`` says of it."""
        content, command = self.content, self.command
        state, pid, status, when = State.STOPPED, None, None, None
        ended = self.ended()
        if ended is not None:
            status, when = ended
        elif self.is_guarded():
            pid = self.started().get("pid")
            state = State.PAUSED if _is_frozen(content.get("directories", {})) else State.RUNNING
        created = content.get("created")
        return ContainerInfo(self.id, state, pid, command, created, when, status, self.problem)


def _is_frozen(directories: Mapping[str, str]) -> bool:
    """Whether somebody has paused what is in these cgroups."""
    for controller, name, words in (("freezer", "freezer.state", "FROZEN FREEZING"), ("", "cgroup.freeze", "1")):
        with contextlib.suppress(OSError):
            if controller in directories and cgroups.read(f"{directories[controller]}/{name}").strip() in words.split():
                return True
    return False


class DetachedProcess(WatchedProcess):
    """One process's view of a detached container; to close it changes nothing there.

    Raises ContainerError when it runs, and not even its guard's pid on record can be read.
    """

    _fd = -1

    def __init__(self, record: Record, sweep: Callable[[], object]) -> None:
        self.record = record
        self.id = record.id
        content = record.content
        self._guard: int = content["guard"] if {"guard", "token", "directories"} <= content.keys() else -1
        if self._guard < 0 and record.is_guarded():
            raise ContainerError(f"container {self.id!r}: its record cannot be read: {record.problem or record.path}")
        self._command = record.command
        self.cgroups: dict[str, str] = dict(content.get("directories", {}))
        self.pid = record.started().get("pid", -1)
        self.pidfd = -1
        self.terminal = None
        self._sweep = sweep
        self._exit: ExitStatus | None = None
        with contextlib.suppress(OSError):
            self._fd = os.pidfd_open(self._guard)  # readable when the guard has ended
        if self._fd < 0 or not record.is_guarded():  # then the pid may be anybody's
            self._reap()
            self.close()
            self._fd, theirs = os.pipe2(os.O_CLOEXEC)
            os.close(theirs)  # readable
            return
        with contextlib.suppress(OSError):
            self.pidfd = os.pidfd_open(self.pid)
            if not self._is_inside():
                os.close(self.pidfd)
                self.pidfd = -1

    @property
    def command(self) -> Command:
        """What it runs. Raises ContainerError: that is not known, so nothing can be done by it."""
        if self._command is None:
            raise ContainerError(f"container {self.id!r}: {self.record.problem}")
        return self._command

    def _is_inside(self) -> bool:
        """Whether :attr:`pid` still is the container's first process: it may have ended already."""
        directory = next(iter(self.cgroups.values()))
        return directory[directory.index(self.record.described["token"]) :] in cgroups.read(f"/proc/{self.pid}/cgroup")

    @property
    def state(self) -> State:
        return State.STOPPED if self.poll() is not None else self.record.info().state

    def poll(self) -> ExitStatus | None:
        if self._exit is None and not self._is_over():
            return None
        if self._exit is None:
            self._reap()
            ended = self.record.ended()
            if ended is None or ended[0] is None:
                self._sweep()
                raise ContainerLostError(self.id, self.record.problem or "its guard has ended without a word")
            self._exit = ended[0]
        return self._exit

    def _reap(self) -> None:
        """Let its guard go, if that has ended and is this process's child: by the pidfd, its pid may be another's."""
        if self._guard in _children:
            with contextlib.suppress(OSError):  # ECHILD, after somebody's waitpid(-1); EINVAL of the pipe
                if os.waitid(os.P_PIDFD, self._fd, os.WEXITED | os.WNOHANG) is not None:
                    _children.discard(self._guard)

    def _is_over(self) -> bool:
        if self._fd < 0:
            raise ContainerError(f"container {self.id!r}: this process has let go of it")
        return wait_readable(self._fd, 0.0)

    def deliver(self, signal: int) -> None:
        super().deliver(signal)
        if signal == signals.SIGKILL:
            cgroups.let_die(self.cgroups)

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        for fd in (self._fd, self.pidfd):
            if fd >= 0:
                os.close(fd)
        self._fd = self.pidfd = -1

    def __del__(self) -> None:
        if self._fd >= 0:
            self.close()


def read(process: DetachedProcess, follow: bool, tail: int | None) -> Iterator[LogRecord]:
    """The log of *process*, which is closed at its end."""
    try:
        if not follow:
            yield from read_log(process.record.path, None, tail)
            return
        libc = ctypes.CDLL(None, use_errno=True)
        inotify = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if inotify < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "inotify_init1")
        try:
            libc.inotify_add_watch(inotify, os.fsencode(process.record.path), _CHANGES)  # its end is seen anyway
            yield from read_log(process.record.path, lambda: _wait(process, inotify), tail)
        finally:
            os.close(inotify)
    finally:
        process.close()


def _wait(process: DetachedProcess, inotify: int) -> bool:
    """Block until the log may be longer; whether somebody still writes it."""
    poll = select.poll()
    poll.register(inotify, select.POLLIN)
    poll.register(process.fileno(), select.POLLIN)
    ready = [fd for fd, _ in poll.poll()]
    if inotify in ready:
        os.read(inotify, 1 << 16)
    return process.fileno() not in ready
