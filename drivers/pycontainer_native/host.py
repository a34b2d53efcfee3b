"""What a plan depends on that is not in the spec: the rights and limits here."""

from __future__ import annotations

import os
from collections.abc import Callable

from attrs import evolve, field, frozen

from pycontainer.process import held_capabilities
from pycontainer_native.userns import UserNamespace, is_initial, of_ordinary_user

#: The ids of a user namespace that the caller is in, and did not make: the kernel knows them.
EVERYBODY = UserNamespace(((0, 0, 0xFFFFFFFF),), ((0, 0, 0xFFFFFFFF),))


def _last_capability() -> int:
    with open("/proc/sys/kernel/cap_last_cap", "rb") as file:
        return int(file.read())


def _nofile() -> tuple[int, int]:
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)


def _read_only(path: str) -> bool:
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


@frozen(kw_only=True)
class Host:
    """What a plan has to know about the host. A test may state it instead of looking."""

    capabilities: int = field(factory=held_capabilities)  #: what the launcher has, as a bit set
    last_capability: int = field(factory=_last_capability)  #: the kernel's highest
    nofile: tuple[int, int] = field(factory=_nofile)  #: the caller's RLIMIT_NOFILE, which the launcher raises
    #: (number, soft, hard) of the caller's other limits, where the launcher has not inherited the same
    rlimits: tuple[tuple[int, int, int], ...] = ()
    is_directory: Callable[[str], bool] = os.path.isdir
    is_read_only: Callable[[str], bool] = _read_only
    #: The user namespace that the launcher makes for itself, where an ordinary user started it.
    namespace: UserNamespace | None = None
    #: Whether the launcher has the rights of the first user namespace: over devices, and over the file systems there.
    initial: bool = True

    def inside(self, ids: UserNamespace) -> Host:
        """It as a container in a user namespace of its own sees it, whose root has every capability over it."""
        everything = (2 << self.last_capability) - 1
        return evolve(self, namespace=ids, initial=False, capabilities=everything)

    @classmethod
    def of_caller(cls) -> Host:
        """That of this process: for an ordinary user, as it is inside the user namespace that he can have."""
        if os.geteuid() == 0:
            return cls(initial=is_initial())
        last = _last_capability()
        return cls(capabilities=(2 << last) - 1, last_capability=last, namespace=of_ordinary_user(), initial=False)
