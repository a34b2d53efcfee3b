"""What of the host, or of memory, appears in a container: the :class:`Mount`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

from attrs import field, frozen

from pycontainer import _fields as check
from pycontainer._fields import PAGE, refuse, store

__all__ = ["MOUNT_OPTIONS", "Mount"]

#: mount(2): the flags of one mount. ``ro`` is Mount.read_only.
MOUNT_OPTIONS = frozenset(
    ("nosuid", "nodev", "noexec", "nosymfollow", "nodiratime", "noatime", "relatime", "strictatime")
)


#: mount_namespaces(7): whether what is mounted below it on the host appears in the container, and the other way round.
PROPAGATIONS = tuple(f"{r}{kind}" for kind in ("private", "slave", "shared", "unbindable") for r in ("", "r"))

#: tmpfs(5), beside its size and mode; ``noswap`` from Linux 6.4 on.
_TMPFS_OPTION = re.compile(
    r"(uid|gid)=[0-9]{1,10}|(nr_inodes|nr_blocks)=[0-9]{1,15}[kKmMgG]?|huge=(never|always|within_size|advise)"
    r"|mpol=[a-z0-9_:=,+-]{1,64}|noswap|inode32|inode64"
)


def _size(value: int | str | None) -> int | None:
    return check.size("mounts.size", value)


def as_mappings(value: Any) -> Any:
    return tuple(map(check.as_tuple, value)) if type(value) in (list, tuple) else value


def check_mappings(where: str, mappings: object, sides: tuple[str, str] = ("on the disk", "in the container")) -> None:
    """user_namespaces(7): at most 340 ranges, which do not overlap, on neither side."""
    rows = check.items(where, mappings)
    if len(rows) > 340:
        refuse(where, f"{len(rows)} ranges are more than the kernel's 340")
    for row in rows:
        if type(row) is not tuple or len(row) != 3:
            refuse(where, f"{row!r} is not (id {sides[0]}, id {sides[1]}, number of ids)")
        for number in row[:2]:
            check.integer(where, number, 0, check.MAX_ID)
        check.integer(where, row[2], 1, check.MAX_ID + 1 - max(row[:2]))
    for side in (0, 1):
        ranges = sorted((row[side], row[side] + row[2]) for row in rows)
        if any(first[1] > second[0] for first, second in itertools.pairwise(ranges)):
            refuse(where, "two ranges overlap")


@frozen
class Mount:
    """A directory or file of the host (``bind``), or an empty file system in memory (``tmpfs``), in the container.

    *source* is a path of the host, None for a tmpfs; *target* an absolute path
    in the container.  *options* are flags of mount(2), of
    :data:`MOUNT_OPTIONS`; for a tmpfs those of tmpfs(5) as well, like
    ``uid=1000`` and ``nr_inodes=1k``.  *recursive* takes what is mounted below
    the source along.  *size* (bytes, or ``"64m"``) and *mode* are a tmpfs's.

    *propagation* (mount_namespaces(7)) None is private: what is mounted later
    stays where it is.  With ``slave`` the host's mounts below the source
    appear in the container, with ``shared`` the container's on the host too;
    ``unbindable`` cannot be bind-mounted again.  With an ``r`` before it, it
    is also that of what is mounted below.

    *uid_mappings* and *gid_mappings*, of a bind mount, make files belong to
    others than on the disk (mount_setattr(2), MOUNT_ATTR_IDMAP): of each
    (first id on the disk, first id in the container, number of ids).

    The targets ``/``, ``/dev`` and everything in ``/proc`` and ``/sys`` are
    refused (CVE-2015-3631, CVE-2019-16884), and so are sources in ``/proc``
    and ``/dev/fd``, whose links lead anywhere.  Other links of a source are
    followed at the start: below a directory that a payload could write to, a
    source is whatever that payload made of it.
    """

    source: str | None
    target: str
    type: str = field(default="bind", kw_only=True)
    read_only: bool = field(default=False, kw_only=True)
    options: tuple[str, ...] = field(default=(), kw_only=True, converter=check.as_texts)
    recursive: bool = field(default=True, kw_only=True)
    size: int | None = field(default=None, kw_only=True, converter=_size)
    mode: int | None = field(default=None, kw_only=True)
    propagation: str | None = field(default=None, kw_only=True)
    uid_mappings: tuple[tuple[int, int, int], ...] = field(default=(), kw_only=True, converter=as_mappings)
    gid_mappings: tuple[tuple[int, int, int], ...] = field(default=(), kw_only=True, converter=as_mappings)

    def __attrs_post_init__(self) -> None:
        target = check.path("mounts.target", self.target)
        if target in ("/", "/dev") or (target + "/").startswith(("/proc/", "/sys/")):
            refuse("mounts.target", f"{target} belongs to the container itself")
        store(self, "target", target)
        check.boolean("mounts.read_only", self.read_only)
        check.boolean("mounts.recursive", self.recursive)
        for option in check.items("mounts.options", self.options):
            own = self.type == "tmpfs" and type(option) is str and _TMPFS_OPTION.fullmatch(option)
            if type(option) is not str or (option not in MOUNT_OPTIONS and not own):
                refuse("mounts.options", f"{option!r} is none of {', '.join(sorted(MOUNT_OPTIONS))}")
        if len({"noatime", "relatime", "strictatime"} & set(self.options)) > 1:
            refuse("mounts.options", "only one of noatime, relatime and strictatime can hold")
        if self.propagation is not None and self.propagation not in PROPAGATIONS:
            refuse("mounts.propagation", f"{self.propagation!r} is none of {', '.join(PROPAGATIONS)}")
        for name in ("uid_mappings", "gid_mappings"):
            check_mappings(f"mounts.{name}", getattr(self, name))
        if bool(self.uid_mappings) is not bool(self.gid_mappings):
            refuse("mounts.gid_mappings", "uid_mappings and gid_mappings belong together")
        if self.type == "bind":
            self._check_bind()
        elif self.type == "tmpfs":
            self._check_tmpfs()
        else:
            refuse("mounts.type", f"{self.type!r} is neither bind nor tmpfs")

    def _check_bind(self) -> None:
        if self.source is None:
            refuse("mounts.source", "a bind mount needs one")
        check.line("mounts.source", self.source)
        if self.source.startswith("/"):  # a relative one waits for Command.of
            store(self, "source", check.host_path("mounts.source", self.source))
        elif not self.source:
            refuse("mounts.source", "is empty")
        if self.size is not None:
            refuse("mounts.size", "only a tmpfs has one")
        if self.mode is not None:
            refuse("mounts.mode", "only a tmpfs has one")

        if self.recursive and self.propagation in ("slave", "shared"):
            refuse("mounts.propagation", f"{self.propagation!r} is for a mount that is not recursive, else r...")

    def _check_tmpfs(self) -> None:
        if self.source is not None:
            refuse("mounts.source", "a tmpfs has none")
        if not self.recursive:
            refuse("mounts.recursive", "only a bind mount has anything below it")
        if self.size is not None:
            check.integer("mounts.size", self.size, PAGE, 2**63 - 1)
        if self.mode is not None:
            check.integer("mounts.mode", self.mode, 0, 0o7777)
        if self.propagation in ("slave", "rslave"):
            refuse("mounts.propagation", "a tmpfs is nobody's slave: it is new")
        if self.uid_mappings:
            refuse("mounts.uid_mappings", "belongs to a bind mount")

    @classmethod
    def tmpfs(
        cls,
        target: str,
        *,
        size: int | str | None = None,
        mode: int | None = None,
        read_only: bool = False,
        options: Sequence[str] = (),
    ) -> Mount:
        """An empty file system in memory on *target*. *size* None is half of the host's memory (tmpfs(5))."""
        return cls(None, target, type="tmpfs", size=size, mode=mode, read_only=read_only, options=options)

    @classmethod
    def parse(cls, text: str) -> Mount:
        """A Mount of Docker's ``-v``: ``/source:/target[:ro,nosuid...]``. Raises InvalidCommandError."""
        check.line("mounts", text)
        source, _, rest = text.partition(":")
        target, _, flags = rest.partition(":")
        if not source or not target:
            refuse("mounts", f"{text!r} is not of the form source:target[:options]")
        if not source.startswith(("/", ".")):
            refuse("mounts.source", f"{source!r} would be a named volume, for a path write ./{source}")
        words = [word for word in flags.split(",") if word]
        propagation = [word for word in words if word in PROPAGATIONS]
        if len(propagation) > 1:
            refuse("mounts.propagation", f"{' and '.join(propagation)} cannot both hold")
        options = [word for word in words if word not in ("ro", "rw", *propagation)]
        return cls(source, target, read_only="ro" in words, options=options, propagation=next(iter(propagation), None))

    @classmethod
    def parse_long(cls, text: str) -> Mount:
        """A Mount of Docker's ``--mount``: ``type=bind,source=/a,target=/b,readonly``. Raises InvalidCommandError."""
        import csv

        check.line("mounts", text)
        values: dict[str, Any] = {"source": None, "target": ""}
        for item in next(csv.reader([text]), []):
            key, equals, value = item.partition("=")
            name = _LONG_KEYS.get(key)
            if name is None:
                refuse("mounts", f"{key!r} is none of {', '.join(_LONG_KEYS)}")
            elif name in ("read_only", "recursive"):
                flag = _FLAGS.get(value.lower()) if equals else True
                if flag is None:
                    refuse(f"mounts.{name}", f"{value!r} is neither true nor false")
                values[name] = flag is not (key == "bind-nonrecursive")
            elif name == "mode":
                if not re.fullmatch("[0-7]{1,5}", value):
                    refuse("mounts.mode", f"{value!r} is not an octal number")
                values[name] = int(value, 8)
            elif name == "idmap":
                values["uid_mappings"], values["gid_mappings"] = _parse_idmap(value)
            else:
                values[name] = value
        return cls(values.pop("source"), values.pop("target"), **values)


def _parse_idmap(text: str) -> Iterator[list[tuple[int, ...]]]:
    """podman's ``uids=0-1000-10#20-30-1;gids=0-1000-10``: the ranges of uids, then those of gids."""
    kinds = dict(part.partition("=")[::2] for part in text.split(";"))
    if kinds.keys() != {"uids", "gids"}:
        refuse("mounts.uid_mappings", f"{text!r} is not of the form uids=DISK-CONTAINER-COUNT;gids=...")
    for kind in ("uids", "gids"):
        rows = kinds[kind].split("#")
        if not all(re.fullmatch(r"[0-9]{1,10}-[0-9]{1,10}-[0-9]{1,10}", row) for row in rows):
            refuse(f"mounts.{kind[:3]}_mappings", f"{kinds[kind]!r} is not of the form DISK-CONTAINER-COUNT")
        yield [tuple(map(int, row.split("-"))) for row in rows]


_FLAGS = {"true": True, "1": True, "false": False, "0": False}
_LONG_KEYS = {
    "type": "type",
    "source": "source",
    "src": "source",
    "target": "target",
    "destination": "target",
    "dst": "target",
    "readonly": "read_only",
    "ro": "read_only",
    "bind-nonrecursive": "recursive",
    "bind-propagation": "propagation",
    "idmap": "idmap",
    "tmpfs-size": "size",
    "tmpfs-mode": "mode",
}
