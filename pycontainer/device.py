"""What devices a container has and may use: the :class:`Device`, and rules in docker's words."""

from __future__ import annotations

import os
import re
import stat
from typing import Any

import attrs
from attrs import field, frozen

from pycontainer import _fields as check
from pycontainer._fields import refuse, store

__all__ = ["DEFAULT_DEVICE_RULES", "Device", "rule_to_oci"]

#: What each container may use that has rules (OCI runtime spec, "Default Devices"): null, zero, full, random, urandom,
#: tty, and the terminals of its own devpts, ptmx among them. 5:1 is not here: a container's /dev/console is a terminal
#: of its own, the node with that number is the host's. To make a node (m) needs CAP_MKNOD, to open it a rule.
DEFAULT_DEVICE_RULES = (
    *("c *:* m", "b *:* m"),
    *("c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm", "c 1:8 rwm", "c 1:9 rwm", "c 5:0 rwm", "c 5:2 rwm", "c 136:* rwm"),
)

#: What is in each container's /dev already; below the last three nothing can be made, a file system is mounted there.
_OCCUPIED = frozenset(
    (
        *("null", "zero", "full", "random", "urandom", "tty", "console", "ptmx", "fd", "stdin", "stdout", "stderr"),
        *("pts", "shm", "mqueue"),
    )
)

# linux/kdev_t.h: MINORBITS, and the rest of 32
MAX_MAJOR, MAX_MINOR = 2**12 - 1, 2**20 - 1

_ACCESS = re.compile(r"(?!.*(.).*\1)[rwm]{1,3}")
_RULE = re.compile(r"([abc]) ([0-9]{1,7}|\*):([0-9]{1,7}|\*) ([rwm]{1,3})")


@frozen
class Device:
    """A device node in the container's /dev, and the permission to use it; as docker's ``--device``.

    *path* is the host's node, which says what *type* (``c`` or ``b``),
    *major*, *minor*, *mode* (permission bits), *uid* and *gid* are where they
    are None.  With *type*, *major* and *minor* given nothing is looked up; the
    mode then is 0666, and root's.  *container_path* None is the same path; it
    is below /dev, the one place in a container where a device node works.
    *access* is what the container may do: read, write, make other nodes of it.

    Raises InvalidCommandError, for ``devices.<field>``.
    """

    path: str
    container_path: str = ""
    type: str | None = field(default=None, kw_only=True)
    major: int | None = field(default=None, kw_only=True)
    minor: int | None = field(default=None, kw_only=True)
    mode: int | None = field(default=None, kw_only=True)
    uid: int | None = field(default=None, kw_only=True)
    gid: int | None = field(default=None, kw_only=True)
    access: str = field(default="rwm", kw_only=True)

    def __attrs_post_init__(self) -> None:
        store(self, "path", check.host_path("devices.path", self.path))
        store(self, "container_path", check.path("devices.container_path", self.container_path or self.path))
        first = self.container_path.removeprefix("/dev/").partition("/")[0]
        if not self.container_path.startswith("/dev/"):
            refuse("devices.container_path", f"{self.container_path} is not below /dev")
        if first in _OCCUPIED:
            refuse("devices.container_path", f"{self.container_path}: each container has a /dev/{first} of its own")
        numbers = (self.type, self.major, self.minor)
        if None in numbers and numbers != (None, None, None):
            refuse("devices.type", "type, major and minor belong together: give all of them, or none")
        if self.type is not None:
            if self.type not in ("c", "b"):
                refuse("devices.type", f"{self.type!r} is neither c nor b")
            check.integer("devices.major", self.major, 0, MAX_MAJOR)
            check.integer("devices.minor", self.minor, 0, MAX_MINOR)
        if self.mode is not None:
            check.integer("devices.mode", self.mode, 0, 0o777)
        for name in ("uid", "gid"):
            if getattr(self, name) is not None:
                check.integer(f"devices.{name}", getattr(self, name), 0, check.MAX_ID)
        store(self, "access", _access("devices.access", self.access))

    @classmethod
    def parse(cls, text: str) -> Device:
        """A Device of docker's ``--device``: ``/dev/fuse[:/dev/fuse][:rwm]``. Raises InvalidCommandError."""
        path, *rest = check.line("devices", text).split(":")
        access = rest.pop() if rest and not rest[-1].startswith("/") else "rwm"
        if len(rest) > 1:
            refuse("devices", f"{text!r} is not of the form path[:path in the container][:rwm]")
        return cls(path, *rest, access=access)

    def looked_up(self) -> Device:
        """This one, with everything known. Raises InvalidCommandError: the host has no such device."""
        known = _on_host(self.path) if self.type is None else {"mode": 0o666, "uid": 0, "gid": 0}
        given = {name: value for name, value in attrs.asdict(self).items() if value is not None}
        return Device(**known | given)

    def to_oci(self) -> dict[str, Any]:
        """An entry of the OCI runtime spec's ``linux.devices``. Raises InvalidCommandError."""
        known = self.looked_up()
        return {
            "path": known.container_path,
            "type": known.type,
            "major": known.major,
            "minor": known.minor,
            "fileMode": known.mode,
            "uid": known.uid,
            "gid": known.gid,
        }

    def rule(self) -> str:
        """The permission to use it, in the words of :func:`rule_to_oci`. Raises InvalidCommandError."""
        known = self.looked_up()
        return f"{known.type} {known.major}:{known.minor} {self.access}"


def _on_host(path: str) -> dict[str, Any]:
    """What the host's device *path* is, as fields of a Device. Raises InvalidCommandError."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        refuse("devices.path", f"{path} does not exist")
    except OSError as error:
        refuse("devices.path", f"{path} cannot be looked at: {error.strerror}")
    if not (stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode)):
        refuse("devices.path", f"{path} is not a device")
    return {
        "type": "c" if stat.S_ISCHR(found.st_mode) else "b",
        "major": os.major(found.st_rdev),
        "minor": os.minor(found.st_rdev),
        "mode": stat.S_IMODE(found.st_mode) & 0o777,
        "uid": found.st_uid,
        "gid": found.st_gid,
    }


def _access(field: str, value: object) -> str:
    """``rwm`` or a part of it, in that order."""
    check.matching(field, value, _ACCESS)
    return "".join(letter for letter in "rwm" if letter in str(value))


def check_rule(field: str, value: object) -> str:
    """A rule as docker's ``--device-cgroup-rule`` has it: ``c 10:229 rw``, ``b 8:* r``, ``a *:* rwm``."""
    if type(value) is not str or not (found := _RULE.fullmatch(value)):
        refuse(field, f"{value!r} is not of the form 'c 10:229 rwm', 'b 8:* r' or 'a *:* rwm'")
    kind, major, minor, access = found.groups()
    access = _access(field, access)
    if kind == "a" and (major, minor, access) != ("*", "*", "rwm"):
        refuse(field, f"{value!r}: a is every device, and is written 'a *:* rwm'")
    for number, most in ((major, MAX_MAJOR), (minor, MAX_MINOR)):
        if number != "*" and int(number) > most:
            refuse(field, f"{value!r}: {number} is more than {most}")
    major, minor = (number if number == "*" else str(int(number)) for number in (major, minor))
    return f"{kind} {major}:{minor} {access}"


def rule_to_oci(rule: str) -> dict[str, Any]:
    """An entry of the OCI runtime spec's ``linux.resources.devices`` that allows what *rule*, checked, says."""
    kind, numbers, access = rule.split(" ")
    entry: dict[str, Any] = {"allow": True, "access": access}
    if kind != "a":
        entry["type"] = kind
    for name, number in zip(("major", "minor"), numbers.split(":"), strict=True):
        if number != "*":
            entry[name] = int(number)
    return entry
