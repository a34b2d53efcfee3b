"""User namespaces: which ids there are inside, and whose they are outside (user_namespaces(7))."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pwd
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from attrs import frozen

from pycontainer.errors import InvalidCommandError

if TYPE_CHECKING:
    from pycontainer.command import Command

#: first id inside, first id outside, how many
IdMap: TypeAlias = tuple[int, int, int]

SUBUID, SUBGID = "/etc/subuid", "/etc/subgid"
#: Where the set-uid programs are looked for: whatever the caller's PATH says, they are the system's own.
_PROGRAMS = ("/usr/bin", "/usr/local/bin", "/bin", "/usr/sbin", "/run/wrappers/bin")


@frozen
class UserNamespace:
    """The user namespace that a container is in."""

    uids: tuple[IdMap, ...]
    gids: tuple[IdMap, ...]
    #: Whether setgroups(2) works: not where an ordinary user has mapped his own group alone, for with it he could
    #: get rid of a group that he is denied something by (CVE-2014-8989).
    setgroups: bool = True

    def problems(self, user: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """(field, problem) for every id of *user*, OCI's ``process.user``, that does not exist in it."""
        groups = [gid for gid in user.get("additionalGids", ()) if gid != user["gid"]]
        wanted = [("process.user", "uid", user["uid"], self.uids), ("process.user", "gid", user["gid"], self.gids)]
        wanted += [("process.additional_groups", "gid", gid, self.gids) for gid in groups]
        for name, kind, number, maps in wanted:
            if outside(number, maps) is None:
                yield name, f"{kind} {number} does not exist in the user namespace: {_shown(maps)}"
        if groups and not self.setgroups:
            yield "process.additional_groups", "setgroups(2) is denied in a user namespace of a single id"

    def check(self, user: Mapping[str, Any]) -> None:
        """Raises InvalidCommandError when an id of *user*, OCI's ``process.user``, does not exist in it."""
        if problems := list(self.problems(user)):
            raise InvalidCommandError(*problems[0], problems[1:])


def of_command(command: Command) -> UserNamespace | None:
    """That of the mappings of *command*."""
    return UserNamespace(command.uid_mappings, command.gid_mappings) if command.uid_mappings else None


def id_map(maps: Iterable[IdMap]) -> str:
    """*maps* as /proc/PID/uid_map has them."""
    return "".join(f"{inside} {start} {count}\n" for inside, start, count in maps)


def outside(number: int, maps: Iterable[IdMap]) -> int | None:
    """Who *number* is outside; None: nobody."""
    for inside, start, count in maps:
        if inside <= number < inside + count:
            return start + number - inside
    return None


def _shown(maps: Sequence[IdMap]) -> str:
    ranges = ", ".join(str(inside) if count == 1 else f"{inside} to {inside + count - 1}" for inside, _, count in maps)
    alone = len(maps) == 1 and maps[0][2] == 1
    return f"it has {ranges}" + (f" ({SUBUID} and {SUBGID} give more)" if alone else "")


def is_initial() -> bool:
    """Whether this process is in the first user namespace, where all ids are and are who they seem."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        return file.read().split() == ["0", "0", "4294967295"]


def of_ordinary_user() -> UserNamespace:
    """The namespace that this user can have: himself as root, and beyond that his subordinate ids, subuid(5)."""
    own_uid, own_gid = os.geteuid(), os.getegid()
    if _program("newuidmap") and _program("newgidmap"):
        more_uids, more_gids = (list(subordinates(file, own_uid)) for file in (SUBUID, SUBGID))
        if more_uids and more_gids:
            return UserNamespace(_numbered(own_uid, more_uids), _numbered(own_gid, more_gids))
    return UserNamespace(((0, own_uid, 1),), ((0, own_gid, 1),), setgroups=False)


def subordinates(file: str, uid: int) -> Iterator[tuple[int, int]]:
    """(first id, count) of every range that *file* gives to the user *uid*, by number or by name."""
    names = {str(uid)}
    with contextlib.suppress(KeyError):
        names.add(pwd.getpwuid(uid).pw_name)
    return _ranges(file, names)


def _ranges(file: str, names: set[str]) -> Iterator[tuple[int, int]]:
    try:
        with open(file, encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                name, _, rest = line.strip().partition(":")
                start, _, count = rest.partition(":")
                if name in names and start.isdecimal() and count.isdecimal() and int(count):
                    yield int(start), int(count)
    except OSError:
        return


#: What is handed out in parts to containers of ``userns="auto"``, where no user "containers" has ranges in
#: /etc/subuid and /etc/subgid: the upper half of all ids, as with podman.
AUTO = (2**31, 2**31 - 2**17)
#: How many ids such a container has.
AUTO_SIZE = 65536


def lease_range() -> tuple[UserNamespace, int]:
    """AUTO_SIZE ids that nobody else has as long as the returned descriptor is open. Raises OSError.

    And longer, as long as one of the cgroups exists that :func:`note_cgroups`
    has been told of.
    """
    owned = [set(_ranges(file, {"containers"})) for file in (SUBUID, SUBGID)]
    directory = _registry()
    try:
        for first, count in sorted(owned[0] & owned[1]) or [AUTO]:
            for start in range(first, first + count - AUTO_SIZE + 1, AUTO_SIZE):
                fd = os.open(str(start), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    is_free = not _is_left(fd)
                except BlockingIOError:
                    is_free = False
                except BaseException:
                    os.close(fd)
                    raise
                if is_free:
                    return _whole(start), fd
                os.close(fd)
    finally:
        os.close(directory)
    raise OSError(errno.EAGAIN, "every range of ids is in use")


def note_cgroups(lease: int, paths: Iterable[str]) -> None:
    """Write down where whoever has the ids of *lease* will be: nobody else gets them while that exists.

    The lock goes with who holds it.  When that is killed with SIGKILL, what it
    was the parent of may live on, as a payload that has cleared its
    parent-death signal does, until somebody ends all that is in the cgroup and
    removes it.  Raises OSError.
    """
    os.pwrite(lease, "".join(f"{path}\n" for path in paths).encode("utf-8", "surrogateescape"), 0)


def _is_left(lease: int) -> bool:
    """Whether any of what :func:`note_cgroups` was told of still exists. Else that is forgotten. Raises OSError."""
    paths = os.pread(lease, 1 << 16, 0).decode("utf-8", "surrogateescape").splitlines()
    if any(map(os.path.lexists, paths)):
        return True
    if paths:
        os.ftruncate(lease, 0)
    return False


def first_range() -> UserNamespace:
    """What :func:`lease_range` might give: to show, not to use."""
    return _whole(AUTO[0])


def _whole(start: int) -> UserNamespace:
    ids = ((0, start, AUTO_SIZE),)
    return UserNamespace(ids, ids)


def _registry() -> int:
    """The directory whose files stand for ranges, each locked by who uses it; root's own, and nobody else's."""
    fd = os.open("/run", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for name in ("pycontainer", "userns"):
        parent = fd
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=parent)
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        finally:
            os.close(parent)
        found = os.fstat(fd)
        if found.st_uid != os.geteuid() or found.st_mode & 0o022:
            os.close(fd)
            raise PermissionError(errno.EPERM, "others can write to it", f"/run/{name}")
    return fd


def _numbered(own: int, ranges: Iterable[tuple[int, int]]) -> tuple[IdMap, ...]:
    maps, inside = [(0, own, 1)], 1
    for start, count in ranges:
        maps.append((inside, start, count))
        inside += count
    return tuple(maps)


def _program(name: str) -> str | None:
    paths = (f"{directory}/{name}" for directory in _PROGRAMS)
    return next((path for path in paths if os.access(path, os.X_OK)), None)


def write_maps(pid: int, namespace: UserNamespace) -> None:
    """Give the process *pid*, which has just entered a user namespace, its ids, and look whether it has them.

    Raises OSError: the kernel or one of the set-uid programs refused, with what it said.
    """
    for kind, maps in (("uid", namespace.uids), ("gid", namespace.gids)):
        text = id_map(maps)
        if namespace.setgroups:
            import subprocess

            program = _program(f"new{kind}map")
            assert program is not None
            # Only what stands in the lists is theirs to give, so nothing of the caller's may lead them elsewhere.
            done = subprocess.run(
                [program, str(pid), *text.split()],
                env={},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise PermissionError(1, f"{program} refused: {done.stderr.strip()}")
        else:
            if kind == "gid":
                _write(f"/proc/{pid}/setgroups", "deny")  # before gid_map, which else is refused
            _write(f"/proc/{pid}/{kind}_map", text)
        with open(f"/proc/{pid}/{kind}_map", encoding="ascii") as file:
            if file.read().split() != text.split():
                raise OSError(f"/proc/{pid}/{kind}_map does not hold what was written")


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())  # in one write: the second one is refused
    finally:
        os.close(fd)
