"""What of the host, or of memory, appears in a container: the :class:`Mount`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from attrs import field, frozen

from pycontainer import _fields as check
from pycontainer._fields import PAGE, refuse, store

__all__ = ["MOUNT_OPTIONS", "Mount"]

#: mount(2): the flags of one mount. ``ro`` is Mount.read_only.
MOUNT_OPTIONS = frozenset(
    ("nosuid", "nodev", "noexec", "nosymfollow", "nodiratime", "noatime", "relatime", "strictatime")
)


def _size(value: int | str | None) -> int | None:
    return check.size("mounts.size", value)


@frozen
class Mount:
    """A directory or file of the host (``bind``), or an empty file system in memory (``tmpfs``), in the container.

    *source* is a path of the host, None for a tmpfs; *target* an absolute path
    in the container.  *options* are flags of mount(2), of
    :data:`MOUNT_OPTIONS`.  *recursive* takes what is mounted below the source
    along.  *size* (bytes, or ``"64m"``) and *mode* are a tmpfs's.

    The targets ``/``, ``/dev`` and everything in ``/proc`` and ``/sys`` are
    refused (CVE-2015-3631, CVE-2019-16884), and so are sources in ``/proc``
    and ``/dev/fd``, whose links lead anywhere.
    """

    source: str | None
    target: str
    type: str = field(default="bind", kw_only=True)
    read_only: bool = field(default=False, kw_only=True)
    options: tuple[str, ...] = field(default=(), kw_only=True, converter=check.as_texts)
    recursive: bool = field(default=True, kw_only=True)
    size: int | None = field(default=None, kw_only=True, converter=_size)
    mode: int | None = field(default=None, kw_only=True)

    def __attrs_post_init__(self) -> None:
        target = check.path("mounts.target", self.target)
        if target in ("/", "/dev") or (target + "/").startswith(("/proc/", "/sys/")):
            refuse("mounts.target", f"{target} belongs to the container itself")
        store(self, "target", target)
        check.boolean("mounts.read_only", self.read_only)
        check.boolean("mounts.recursive", self.recursive)
        for option in check.items("mounts.options", self.options):
            if type(option) is not str or option not in MOUNT_OPTIONS:
                refuse("mounts.options", f"{option!r} is none of {', '.join(sorted(MOUNT_OPTIONS))}")
        if len({"noatime", "relatime", "strictatime"} & set(self.options)) > 1:
            refuse("mounts.options", "only one of noatime, relatime and strictatime can hold")
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

    def _check_tmpfs(self) -> None:
        if self.source is not None:
            refuse("mounts.source", "a tmpfs has none")
        if not self.recursive:
            refuse("mounts.recursive", "only a bind mount has anything below it")
        if self.size is not None:
            check.integer("mounts.size", self.size, PAGE, 2**63 - 1)
        if self.mode is not None:
            check.integer("mounts.mode", self.mode, 0, 0o7777)

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
        options = [option for option in flags.split(",") if option not in ("", "ro", "rw")]
        return cls(source, target, read_only="ro" in flags.split(","), options=options)

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
            else:
                values[name] = value
        return cls(values.pop("source"), values.pop("target"), **values)


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
    "tmpfs-size": "size",
    "tmpfs-mode": "mode",
}
