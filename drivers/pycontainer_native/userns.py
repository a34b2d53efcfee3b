"""User namespaces: which ids there are inside, and whose they are outside (user_namespaces(7))."""

from __future__ import annotations

import contextlib
import os
import pwd
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from attrs import frozen

from pycontainer.errors import InvalidCommandError

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
    try:
        with open(file, encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                name, _, rest = line.strip().partition(":")
                start, _, count = rest.partition(":")
                if name in names and start.isdecimal() and count.isdecimal() and int(count):
                    yield int(start), int(count)
    except OSError:
        return


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
        text = "".join(f"{inside} {start} {count}\n" for inside, start, count in maps)
        if namespace.setgroups:
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
