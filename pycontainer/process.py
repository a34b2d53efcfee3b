"""What is executed, and as whom: the :class:`Process` of a Command, and of a further one in a running container."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attrs import field, frozen

from pycontainer import _fields as check
from pycontainer._fields import capability_numbers, held_capabilities, refuse, store

__all__ = ["DEFAULT_CAPABILITIES", "DEFAULT_PATH", "Process", "Rlimit", "capability_numbers", "held_capabilities"]

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: Docker's fourteen without MKNOD (device nodes in an image) and NET_RAW (CVE-2020-14386, CVE-2020-13401).
DEFAULT_CAPABILITIES = (
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)

#: getrlimit(2).
RLIMIT_TYPES = frozenset(
    f"RLIMIT_{name}"
    for name in (
        *("AS", "CORE", "CPU", "DATA", "FSIZE", "LOCKS", "MEMLOCK", "MSGQUEUE", "NICE", "NOFILE", "NPROC", "RSS"),
        *("RTPRIO", "RTTIME", "SIGPENDING", "STACK"),
    )
)


@frozen
class Rlimit:
    """A resource limit of the main process: setrlimit(2).

    *type* is ``"RLIMIT_NOFILE"`` or, for short, ``"nofile"``; *soft* and
    *hard* are in the limit's own unit, -1 is RLIM_INFINITY.
    """

    type: str
    soft: int
    hard: int

    def __attrs_post_init__(self) -> None:
        where = "process.rlimits"
        check.text(where, self.type)
        name = self.type.upper()
        name = name if name.startswith("RLIMIT_") else "RLIMIT_" + name
        if name not in RLIMIT_TYPES:
            refuse(where, f"{self.type!r} is no resource limit of getrlimit(2)")
        store(self, "type", name)
        check.integer(where, self.soft, -1, 2**64 - 2)
        check.integer(where, self.hard, -1, 2**64 - 2)
        if self.hard != -1 and (self.soft == -1 or self.soft > self.hard):
            refuse(where, f"{name}: soft {self.soft} is above hard {self.hard}")


def _as_rlimits(value: Sequence[Rlimit]) -> tuple[Rlimit, ...]:
    return check.as_tuple(value)  # type: ignore[no-any-return]


@frozen
class Process:
    """What is executed, and as whom (Docker 0.9's Entrypoint, Arguments, Env, User...; OCI's ``process``).

    *env* None gives PATH, HOME and with a terminal TERM; a mapping is taken
    exactly as it is.  *user* is ``name``, ``uid``, ``name:group`` or
    ``uid:gid`` in the container's own etc/passwd and etc/group; digits are
    always a number (CVE-2016-3697).  *additional_groups* are the supplementary
    groups, and the only ones.  *capabilities* None is
    :data:`DEFAULT_CAPABILITIES`, or with *privileged* all that the kernel has.

    Raises InvalidCommandError, for ``process.<field>``.
    """

    entrypoint: str
    arguments: tuple[str, ...] = field(default=(), converter=check.as_texts)
    env: Mapping[str, str] | None = field(default=None, kw_only=True)
    working_dir: str = field(default="/", kw_only=True)
    user: str | None = field(default=None, kw_only=True)
    additional_groups: tuple[str, ...] = field(default=(), kw_only=True, converter=check.as_texts)
    tty: bool = field(default=False, kw_only=True)
    privileged: bool = field(default=False, kw_only=True)
    capabilities: tuple[str, ...] | None = field(default=None, kw_only=True, converter=check.as_texts_or_none)
    rlimits: tuple[Rlimit, ...] = field(default=(), kw_only=True, converter=_as_rlimits)
    no_new_privileges: bool = field(default=True, kw_only=True)

    def __attrs_post_init__(self) -> None:
        check.text("process.entrypoint", self.entrypoint)
        if not self.entrypoint:
            refuse("process.entrypoint", "is empty")
        check.texts("process.arguments", self.arguments)
        if self.env is not None:
            store(self, "env", check.environment("process.env", self.env))
        if self.working_dir != "/":
            store(self, "working_dir", check.directory("process.working_dir", self.working_dir))
        if self.user is not None:
            check.user("process.user", self.user)
        for group in check.items("process.additional_groups", self.additional_groups):
            check.user_or_group("process.additional_groups", group)
        check.boolean("process.tty", self.tty)
        check.boolean("process.privileged", self.privileged)
        check.boolean("process.no_new_privileges", self.no_new_privileges)
        if self.capabilities is not None:
            names = check.items("process.capabilities", self.capabilities)
            store(self, "capabilities", tuple(sorted({check.capability("process.capabilities", n) for n in names})))
        if check.items("process.rlimits", self.rlimits):
            check.instances("process.rlimits", self.rlimits, Rlimit)
            if len({limit.type for limit in self.rlimits}) != len(self.rlimits):
                refuse("process.rlimits", "the same limit is given twice")

    @property
    def argv(self) -> tuple[str, ...]:
        """The program and its arguments, as execve(2) gets them."""
        return (self.entrypoint, *self.arguments)

    @classmethod
    def of(
        cls,
        argv: Sequence[str | bytes | os.PathLike[str]],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] = "/",
        user: str | int | None = None,
        groups: Iterable[str | int] = (),
        tty: bool = False,
        privileged: bool = False,
        capabilities: Iterable[str] | None = None,
        cap_add: Iterable[str] = (),
        cap_drop: Iterable[str] = (),
        rlimits: Mapping[str, int | tuple[int, int]] | Iterable[Rlimit] = (),
        no_new_privileges: bool = True,
    ) -> Process:
        """The process of an argv, in the flat keywords of :func:`pycontainer.run`. Raises InvalidCommandError."""
        entrypoint, *arguments = check.argv("process.entrypoint", argv)
        if cap_add or cap_drop:
            if capabilities is not None:
                refuse("process.capabilities", "is given as well as cap_add or cap_drop")
            capabilities = _adjusted(check.several("cap_add", cap_add), check.several("cap_drop", cap_drop), privileged)
        return cls(
            entrypoint,
            tuple(arguments),
            env=env,
            working_dir=cwd if type(cwd) is str else check.fspath("process.working_dir", cwd),
            user=check.number_as_text(user),
            additional_groups=tuple(map(check.number_as_text, check.several("process.additional_groups", groups))),
            tty=tty,
            privileged=privileged,
            capabilities=None if capabilities is None else check.several("process.capabilities", capabilities),
            rlimits=_rlimits(rlimits),
            no_new_privileges=no_new_privileges,
        )


def _adjusted(add: Sequence[str], drop: Sequence[str], privileged: bool) -> tuple[str, ...]:
    """Docker's rule for ``--cap-add`` and ``--cap-drop``: an added one wins; ALL is the base to add to or drop from."""
    added = {check.capability("cap_add", name) for name in add}
    dropped = {check.capability("cap_drop", name) for name in drop}
    everything = set(check.all_capabilities())
    if "ALL" in added:
        return tuple(everything - dropped)
    if "ALL" in dropped:
        return tuple(added)
    return tuple(((everything if privileged else set(DEFAULT_CAPABILITIES)) - dropped) | added)


def _rlimits(limits: Any) -> tuple[Rlimit, ...]:
    if type(limits) is not tuple and isinstance(limits, Mapping):
        return tuple(
            Rlimit(name, *value) if type(value) is tuple and len(value) == 2 else Rlimit(name, value, value)
            for name, value in limits.items()
        )
    return check.several("process.rlimits", limits)
