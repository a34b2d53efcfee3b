"""The state directories of detached containers, as their makers and everybody who comes later see them.

``<root>/containers/<id>`` is a container's: 0700, and exclusively flock(2)ed
as long as its monitor lives, which inherits the lock from the maker.  So
whoever gets the lock knows that the monitor is dead and that what is written
there is final.  :mod:`pycontainer_native.monitor` lists the files.  The files
in ``<root>/parents`` are locked likewise, by processes that have attached
containers below a cgroup_parent: nothing else tells where to look for what
they left.

A directory is made under another name, ``.new-...``, locked, filled and then
renamed, and renamed to ``.old-...`` before it is removed: what has an id is
never empty, and rename(2) refuses to replace it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from typing import Any

from attrs import frozen

from pycontainer.command import Command
from pycontainer.errors import AlreadyExistsError, ContainerError, InvalidCommandError
from pycontainer.records import MAX_SIZE, fields, is_integer, is_number, is_text, load, optional

DEFAULT_ROOT = "/run/pycontainer"

#: The cgroup of a container, below its monitor's, which has a token of its own.
_DIRECTORY = re.compile("pycontainer-[0-9a-f]{16}/1")

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")

#: How long a monitor that has said that all is over may take to end (seconds).
PATIENCE = 10.0

#: How long who only looks has a lock, at most (seconds).
READING = 0.05


#: What is taken to be there where a file cannot be read: that a program ran, or has ended, and nothing more.
_UNKNOWN: dict[str, dict[str, Any] | None] = {
    "config": {"command": None, "created": None, "directory": "", "groups": [], "namespaces": [], "ids": None},
    "start": {"pid": None},
    "exit": {"exit_code": None, "signal": None, "oom_kills": 0, "ended": None, "finished": False, "note": ""},
    "error": None,
}


@frozen
class Record:
    """What is on record of one detached container at one moment."""

    id: str
    path: str
    alive: bool  #: its monitor lives
    config: dict[str, Any]  #: what the maker wrote
    start: dict[str, Any] | None  #: None: its program does not run yet, or never has
    exit: dict[str, Any] | None  #: None: it has not ended, or nobody was there to write it down
    error: dict[str, Any] | None  #: what has ended its monitor before its time
    command: Command | None  #: what it runs; None: that cannot be read
    problem: str = ""  #: what of it cannot be read, and why

    @property
    def has_ended(self) -> bool:
        """Whether it has, and all of it is gone that its monitor could remove."""
        return not self.alive or (self.exit is not None and self.exit["finished"])

    @property
    def is_settled(self) -> bool:
        """Whether its end is on record, and nothing of it is left but that."""
        return self.exit is not None and bool(self.exit["finished"])


class Claim:
    """A new state directory, locked: by this object, and from then on by the monitor that gets :attr:`fd`.

    Or a file, which is this process's alone.
    """

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path
        self.config: dict[str, Any] = {}  # as it is read back

    def close(self) -> None:
        """Leave the lock to the monitor, if there is one. Twice is no error."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)  # LOCK_UN would take it from the monitor as well


class Store:
    """The state directories below one *root*."""

    def __init__(self, root: str | None = None) -> None:
        if root is None:
            root = DEFAULT_ROOT
            if os.geteuid() != 0:
                root = os.path.join(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}", "pycontainer")
        self.root = os.path.abspath(root)
        self._directory = os.path.join(self.root, "containers")
        self._parents: Claim | None = None  # the file that the used cgroup_parents are in

    # -- making one

    def claim(self, id: str, config: dict[str, Any]) -> Claim:
        """The state directory of a new container. Raises AlreadyExistsError, ContainerError, OSError."""
        text = json.dumps(config)
        if len(text) > MAX_SIZE:
            raise ContainerError(f"the command is too long to be put on record: {len(text)} bytes, of {MAX_SIZE}")
        self._prepare()
        claim = self._locked_directory()
        target = os.path.join(self._directory, id)
        try:
            _write(claim.fd, "config.json", text)
            claim.config = _known(_load(claim.fd, claim.path, "config"), "config") or {}
            while True:
                try:
                    os.rename(claim.path, target)
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):  # ENOTDIR: it is none
                        raise
                    if os.path.lexists(target) and not self._remove_unstarted(id):
                        raise AlreadyExistsError(id) from None
                else:
                    break
            claim.path = target
        except BaseException:
            _remove(claim.path)
            claim.close()
            raise
        return claim

    def _prepare(self) -> None:
        """Make the directories, and trust them only if nobody else can have put anything there."""
        missing = []
        path = self._directory
        while not os.path.lexists(path):
            missing.append(path)
            path = os.path.dirname(path)
        for path in reversed(missing):
            try:
                os.mkdir(path, 0o700)
            except FileExistsError:
                pass
            except OSError as error:
                reason = f"cannot make {path}: {error.strerror}"
                raise ContainerError(f"root {self.root} is no place for the state of containers: {reason}") from None
        self._is_there()

    def _is_there(self) -> bool:
        """Whether anything can be on record. Raises ContainerError: others can have put it there.

        Where it leads now is where it is looked for from now on: nobody else can
        change that path.  What is not there is not looked for at all, since
        somebody else may be making it.
        """
        if not os.path.lexists(self._directory):
            return False
        path = self._directory = os.path.realpath(self._directory)
        while True:
            found = os.lstat(path)
            if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
                raise ContainerError(
                    f"root {self.root} is no place for the state of containers: others can write to {path}"
                )
            if path == "/":
                return True
            path = os.path.dirname(path)

    def _locked_directory(self) -> Claim:
        while True:
            path = os.path.join(self._directory, f".new-{os.urandom(8).hex()}")
            os.mkdir(path, 0o700)
            try:
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                continue  # a collector came before the lock
            with contextlib.suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(fd), os.stat(path)):
                    return Claim(fd, path)
            os.close(fd)

    # -- cgroup_parents

    def note_parent(self, parent: str) -> None:
        """Write down that this process has containers below *parent*, for whoever comes after its death.

        Where that is impossible it is left out: a collector finds them without it.
        """
        with contextlib.suppress(ContainerError, OSError):
            if self._parents is None:
                self._prepare()
                directory = os.path.join(os.path.dirname(self._directory), "parents")
                with contextlib.suppress(FileExistsError):
                    os.mkdir(directory, 0o700)
                self._parents = _locked_file(directory)
            os.write(self._parents.fd, json.dumps(parent).encode() + b"\n")

    def forget_parents(self, *, keep: bool) -> None:
        """Close the file; *keep* it, for others to read, where there may be something left below them."""
        parents, self._parents = self._parents, None
        if parents is not None:
            if not keep:
                with contextlib.suppress(OSError):
                    os.unlink(parents.path)
            parents.close()

    def orphaned_parents(self) -> Iterator[str]:
        """What processes have written down that are dead, and then no more of it."""
        try:
            if not self._is_there():
                return
            directory = os.path.join(os.path.dirname(self._directory), "parents")
            paths = [os.path.join(directory, name) for name in os.listdir(directory)]
        except (ContainerError, OSError):
            return
        for path in paths:
            with contextlib.suppress(FileNotFoundError), open(path) as file:  # somebody else was faster
                if _try_lock(file.fileno(), fcntl.LOCK_EX):
                    with contextlib.suppress(ValueError):  # its writer died in the midst of a line
                        for line in file:
                            yield str(json.loads(line))
                    os.unlink(path)

    # -- looking

    def find(self, id: str) -> Record | None:
        """What is on record of the container called *id*; None when there is none whose program ever ran."""
        record = self._read(id) if self._is_there() else None
        return None if record is None or (record.start is None and not record.alive) else record

    def _read(self, id: str) -> Record | None:
        if not _ID.fullmatch(id):
            return None
        path = os.path.join(self._directory, id)
        try:
            directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return None
            raise
        try:
            # First: when the monitor is dead, all that it has written is there to be read.
            alive = not _try_lock(directory, fcntl.LOCK_SH)
            files = {name: _load(directory, path, name) for name in _FILES}
        finally:
            os.close(directory)
        if files["config"] is None:
            return None
        problems = [found for found in files.values() if isinstance(found, str)]
        config, start, exit, death = (_known(found, name) for name, found in files.items())
        assert config is not None
        command = None
        if config["command"] is not None:
            try:
                command = Command.from_json(json.dumps(config["command"]))
                if command.id != id:
                    problems.append(f"{path}/config.json is damaged: it is of container {command.id!r}")
                    command = None
                elif command.userns == "auto" and config.get("ids") is None:
                    problems.append(f"{path}/config.json is damaged: the field 'ids' is missing")
                    command = None
            except (InvalidCommandError, RecursionError) as error:  # as of a later version's field
                problems.append(f"{path}/config.json is damaged: the field 'command': {error}")
        return Record(id, path, alive, config, start, exit, death, command, "; ".join(problems))

    def records(self) -> list[Record]:
        """Every one whose program runs or ran, the oldest first."""
        records = [record for id in self._names() if (record := self.find(id)) is not None]
        return sorted(
            (record for record in records if record.start is not None), key=lambda record: record.config["created"] or 0
        )

    def _names(self, hidden: bool = False) -> list[str]:
        if not self._is_there():
            return []
        return [name for name in os.listdir(self._directory) if (name[0] == ".") == hidden]

    # -- removing

    def remove(self, id: str, config: dict[str, Any], patience: float = PATIENCE) -> bool | None:
        """Remove the one with this *config* when its monitor has ended, waiting *patience* seconds for that.

        False: it has not.  None: somebody else was faster.
        """
        with self._owned(id, patience, config) as owned:
            if owned:
                self._remove(id)
        return owned

    def _remove_unstarted(self, id: str) -> bool:
        """Remove what a start that was never finished has left; whether the name is free now."""
        if (record := self._read(id)) is not None and record.start is not None:
            return False
        with self._owned(id, READING) as owned:
            if owned and ((record := self._read(id)) is None or record.start is None):
                self._remove(id)
        return not os.path.lexists(os.path.join(self._directory, id))

    @contextlib.contextmanager
    def _owned(self, name: str, patience: float = 0.0, config: dict[str, Any] | None = None) -> Iterator[bool | None]:
        """Whether nobody alive owns *name*; while inside, nobody else does either. None: it is gone.

        With *config* it is only that one: who has the name by now may be another.  Removers and collectors have the
        lock as well, so who has waited for it may find it gone.
        """
        path = os.path.join(self._directory, name)
        deadline = time.monotonic() + patience
        try:
            directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            yield None
            return
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            yield False  # no driver has made that
            return
        try:
            if config is not None and _known(_load(directory, path, "config"), "config") != config:
                yield None
                return
            while not (locked := _try_lock(directory, fcntl.LOCK_EX)) and time.monotonic() < deadline:
                time.sleep(0.002)
            yield locked if _is_at(path, directory) else None
        finally:
            os.close(directory)

    def _remove(self, name: str) -> None:
        """Remove what is owned, so that nobody else can have renamed it."""
        path = os.path.join(self._directory, name)
        old = os.path.join(self._directory, f".old-{os.urandom(8).hex()}")
        os.rename(path, old)
        _remove(old)

    def collect(self, kill: Callable[[Record], bool], lost: bool = False) -> list[Record | str]:
        """Remove what dead makers and removers left, and with *lost* containers whose end nobody recorded.

        *kill* ends what is left of one; where it cannot, the directory stays.  What is gone is returned.
        """
        gone: list[Record | str] = []
        for name in self._names(hidden=True):
            with self._owned(name) as owned:
                if owned:
                    path = os.path.join(self._directory, name)
                    _remove(path)
                    gone.append(path)
        for id in self._names():
            with self._owned(id) as owned:
                record = self._read(id) if owned else None
                dead = record is None or record.start is None or (lost and record.exit is None)
                if owned and dead and (record is None or kill(record)):
                    self._remove(id)
                    gone.append(record or os.path.join(self._directory, id))
        return gone


def _locked_file(directory: str) -> Claim:
    """A new file, to append to. Raises OSError."""
    while True:
        path = os.path.join(directory, os.urandom(8).hex())
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        if _try_lock(fd, fcntl.LOCK_EX) and os.path.lexists(path):
            return Claim(fd, path)
        os.close(fd)  # a reader came before the lock, and has taken it for a dead one's


def _try_lock(fd: int, lock: int) -> bool:
    try:
        fcntl.flock(fd, lock | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_group(value: Any) -> bool:
    """Whether it is what :class:`~pycontainer_native.cgroups.Group` is made of."""
    if type(value) is not list or len(value) != 3:
        return False
    base, version, controllers = value
    above = not is_text(base) or base[:1] != "/" or ".." in base.split("/")
    return not above and type(version) is int and version in (1, 2) and _is_texts(controllers)


def _is_texts(value: Any) -> bool:
    return type(value) is list and all(map(is_text, value))


def _is_directory(value: Any) -> bool:
    return is_text(value) and _DIRECTORY.fullmatch(value) is not None


def _are_ids(value: Any) -> bool:
    """Whether it is the uids and the gids of a :class:`~pycontainer_native.userns.UserNamespace`."""
    return type(value) is list and len(value) == 2 and all(map(_is_map, value))


def _is_map(value: Any) -> bool:
    return (
        type(value) is list
        and bool(value)
        and all(type(row) is list and len(row) == 3 and all(map(is_integer, row)) for row in value)
    )


#: What is written, and by whom.
_FILES: dict[str, dict[str, Callable[[Any], bool]]] = {
    # the maker
    "config": {
        "command": lambda value: type(value) is dict,
        "created": is_number,
        "directory": _is_directory,
        "groups": lambda value: type(value) is list and all(map(_is_group, value)),
        "namespaces": _is_texts,
        "ids": optional(_are_ids),  # not there in what earlier versions have written
    },
    # the monitor
    "start": {
        "pid": lambda value: is_integer(value) and 0 < value < 2**31,
        "began": optional(is_integer),
        "started": is_number,
    },
    "exit": {
        "exit_code": optional(is_integer),
        "signal": optional(is_integer),
        "oom_kills": is_integer,
        "ended": is_number,
        "finished": lambda value: type(value) is bool,
        "note": lambda value: type(value) is str,
    },
    "error": {"words": lambda value: type(value) is str},
}


def _load(directory: int, path: str, name: str) -> dict[str, Any] | str | None:
    """What is in that file of *path*, which is open as *directory*; None: there is none; a text says what is wrong."""
    file = f"{path}/{name}.json"
    try:
        found = load(file, dir_fd=directory)
        return None if found is None else fields(file, found, _FILES[name])
    except ContainerError as error:
        return str(error)


def _known(found: dict[str, Any] | str | None, name: str) -> dict[str, Any] | None:
    return _UNKNOWN[name] if isinstance(found, str) else found


def _is_at(path: str, directory: int) -> bool:
    """Whether what has been opened still is there."""
    try:
        return os.path.samestat(os.fstat(directory), os.lstat(path))
    except FileNotFoundError:
        return False


def _write(directory: int, name: str, text: str) -> None:
    """A new file, which nobody can see yet."""
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)
    with open(fd, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(fd)


def _remove(path: str) -> None:
    """A state directory has no directories inside."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(path):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(path, name))
        os.rmdir(path)
