"""What a launcher is asked for: the fields of a request, which travel marshalled, in this order.

Only data: the launcher loads this module too, and its start time and memory count.
"""

from __future__ import annotations

import marshal

TYPE_CHECKING = False  # typing would double the time that the launcher takes to start
if TYPE_CHECKING:
    from typing import Any


class Request:
    """A new container, or a further process in one."""

    __slots__ = (  # noqa: RUF023 - their order is that of the message
        "ident", "flags", "groups", "sections", "program", "fork", "outside", "talks", "target", "hooks", "ids",
        "leased", "supervisor",
    )  # fmt: skip

    ident: str
    flags: int  #: clone3's
    groups: list[Any]  #: the cgroups to make
    sections: list[bytes]  #: the plan's steps, each section marshalled
    program: tuple[list[bytes], list[bytes], list[bytes]]  #: the paths to try, argv, the environment
    fork: str  #: "init", "join" or ""
    outside: int  #: so many sections after the first are run outside, by who then clones the process inside
    talks: bool  #: the child has more to say than that it failed
    target: str  #: the cgroup directory of the container to enter; "" is a new one
    #: how many sections after the first come before the hooks; their state; the programs by point
    hooks: tuple[int, bytes, dict[str, list[Any]]] | None
    ids: tuple[bytes, bytes] | None  #: uid_map and gid_map of the user namespace to make, the first descriptor given
    leased: int  #: as many descriptors given, the first, are locks: to be held until nothing of the container is left
    supervisor: tuple[bytes, bytes, str] | None  #: what the connection that is given next is told of its filter

    def __init__(self, *fields: Any) -> None:
        for name, value in zip(self.__slots__, fields, strict=True):
            setattr(self, name, value)

    def to_wire(self) -> bytes:
        """It as the launcher takes it."""
        return marshal.dumps(tuple([getattr(self, name) for name in self.__slots__]))
