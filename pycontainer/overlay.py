"""A root of several directories, one upon the other: overlayfs."""

from __future__ import annotations

import os
from typing import Any

import attrs
from attrs import field, frozen

from pycontainer import _fields as check
from pycontainer._fields import refuse, store
from pycontainer.errors import InvalidCommandError

__all__ = ["Overlay", "overlay"]

#: As many as can be named in the 255 characters that fsconfig(2) takes; overlayfs has 500.
MAX_LOWER = 64


@frozen
class Overlay:
    """*lower* directories that stay as they are, the first on top, and where changes go.

    *upper* None is memory, thrown away with the container; else a directory
    that keeps the changes.  overlayfs needs a second one then, on the same
    file system and for nothing else: it is called as *upper* is with
    ``.work`` at its end, and made when it is not there.  One *upper* serves
    one container at a time, whoever started it: what several overlays do with
    it is undefined (overlayfs.rst), and the native driver refuses the second
    one; mounts by other programs it does not know.  With it that takes Linux
    5.14.  In a user namespace of the container's own, which takes Linux 5.19,
    the files of all of them have the owners that they have on the disk.
    """

    lower: tuple[str, ...] = field(converter=check.as_texts)
    upper: str | None = field(default=None, kw_only=True)

    def __attrs_post_init__(self) -> None:
        layers = check.items("rootfs.lower", self.lower)
        store(self, "lower", tuple(check.host_path("rootfs.lower", path) for path in layers))
        if not 1 <= len(self.lower) <= MAX_LOWER:
            refuse("rootfs.lower", f"there are 1 to {MAX_LOWER} directories, not {len(self.lower)}")
        if "/" in self.lower:
            refuse("rootfs.lower", "is the host's own root: None gives a safe view of it")
        if self.upper is not None:
            store(self, "upper", check.host_path("rootfs.upper", self.upper))
            for path in self.lower:
                if _is_below(self.upper, path) or _is_below(path, self.upper):
                    refuse("rootfs.upper", f"{self.upper} and {path} are one in the other: overlayfs would loop")

    @property
    def work(self) -> str | None:
        """overlayfs's own directory, beside *upper*."""
        return None if self.upper is None else f"{self.upper}.work"

    @property
    def layers(self) -> tuple[str, ...]:
        """Every directory that can be seen, from the top."""
        return self.lower if self.upper is None else (self.upper, *self.lower)

    def to_json(self) -> str:
        """This overlay as JSON: :meth:`from_data` gives an equal one."""
        import json

        return json.dumps(attrs.asdict(self))

    @classmethod
    def from_data(cls, data: Any) -> Overlay:
        """An overlay from its fields as JSON has them. Raises InvalidCommandError."""
        for name in data:
            if name not in attrs.fields_dict(cls):
                refuse(f"rootfs.{name}", "is not a field")
        return cls(**data)


def overlay(*lower: str | os.PathLike[str], upper: str | os.PathLike[str] | None = None) -> Overlay:
    """A root of *lower* directories, the first on top, that are not changed: what is written goes to *upper*.

    *upper* None throws it away with the container.  Relative paths are taken
    from the caller's working directory.

    >>> run(["sh"], rootfs=rootfs.overlay("/srv/app", "/srv/busybox"))

    Raises InvalidCommandError: a directory is not there, or lies in another one.
    """

    def existing(where: str, path: str | os.PathLike[str]) -> str:
        text = check.line(where, check.fspath(where, path))
        absolute = os.path.abspath(text) if text else refuse(where, "is empty")
        if not os.path.isdir(absolute):
            raise InvalidCommandError(where, f"{absolute} is not a directory")
        return absolute

    return Overlay(
        tuple(existing("rootfs.lower", path) for path in lower),
        upper=None if upper is None else existing("rootfs.upper", upper),
    )


def _is_below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory + "/")
