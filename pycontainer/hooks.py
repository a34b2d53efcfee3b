"""Programs that are run at points of a container's life: the OCI runtime specification's hooks.

=================  ==============================================================  ===========================
field              when                                                            where
=================  ==============================================================  ===========================
create_runtime     its namespaces and mounts are made, before pivot_root            on the host
create_container   after those                                                     in the container's
                                                                                   namespaces, the root and the
                                                                                   program's path the host's
start_container    right before its program                                        in the container, as its user,
                                                                                   with its seccomp filter
poststart          its program runs, before start returns                          on the host
poststop           it has ended and is removed, before wait returns                on the host
=================  ==============================================================  ===========================

Each gets the container's state as JSON on its standard input: ``ociVersion``,
``id``, ``status`` (creating, created, running, stopped), ``pid`` (as it is seen
where the hook runs), ``bundle`` (the directory that the root is made of, or
``/``) and ``annotations``.  Those of one point run one after the other.

A hook fails when it does not exit with 0, or not in time; what it prints is
part of the error.  Then there is no container: everything is undone, and
start raises SetupError.  Only of poststart and poststop a failure is a warning,
of the logger ``pycontainer.hooks``, and the rest goes on.  poststop is run for
whatever has got as far as create_runtime, also if it has failed then.

create_container finds what is to be the root at ``/proc/root``.

Hooks on the host, and those before pivot_root, have the privileges of whoever
makes containers: their paths must be nobody else's to change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from pycontainer import _fields as check
from pycontainer._fields import FrozenMapping, refuse, store

__all__ = ["POINTS", "Hook", "Hooks"]

#: The fields of Hooks and what OCI calls them.
POINTS: Mapping[str, str] = {
    "create_runtime": "createRuntime",
    "create_container": "createContainer",
    "start_container": "startContainer",
    "poststart": "poststart",
    "poststop": "poststop",
}
_NO_ENVIRONMENT = FrozenMapping()


@frozen
class Hook:
    """One program: the absolute *path*, its argv *args* (None: the path alone), all of its environment.

    After *timeout* seconds it is killed, with its process group; None waits,
    but not for poststart, and for poststop no longer than 5 seconds, once the
    container was closed, or was killed at the timeout of ``run``, or its
    caller has died.  The group is all that is known of a hook's children: those
    that it leaves running live on, also when the caller or its launcher is
    killed, and no collector finds them.
    Raises InvalidCommandError, for ``hooks.<field>``.
    """

    path: str
    args: tuple[str, ...] | None = field(default=None, converter=check.as_texts_or_none)
    env: Mapping[str, str] = field(default=_NO_ENVIRONMENT, kw_only=True)
    timeout: float | None = field(default=None, kw_only=True)

    def __attrs_post_init__(self) -> None:
        store(self, "path", check.path("hooks.path", self.path))
        if self.args is not None:
            check.texts("hooks.args", self.args)
            if not self.args:
                refuse("hooks.args", "is empty: the first is the name that the program sees")
        store(self, "env", check.environment("hooks.env", self.env))
        if self.timeout is not None and (type(self.timeout) not in (int, float) or not 0 < self.timeout < 1e9):
            refuse("hooks.timeout", f"{self.timeout!r} is not a number of seconds")

    @property
    def argv(self) -> tuple[str, ...]:
        """What execve(2) gets."""
        return (self.path,) if self.args is None else self.args


def _as_hooks(value: Any) -> Any:
    return check.as_tuple(value)


@frozen(kw_only=True)
class Hooks:
    """The hooks of a container, by the points of its life. Raises InvalidCommandError, for ``hooks.<field>``."""

    create_runtime: tuple[Hook, ...] = field(default=(), converter=_as_hooks)
    create_container: tuple[Hook, ...] = field(default=(), converter=_as_hooks)
    start_container: tuple[Hook, ...] = field(default=(), converter=_as_hooks)
    poststart: tuple[Hook, ...] = field(default=(), converter=_as_hooks)
    poststop: tuple[Hook, ...] = field(default=(), converter=_as_hooks)

    def __attrs_post_init__(self) -> None:
        for name in POINTS:
            check.instances(f"hooks.{name}", check.items(f"hooks.{name}", getattr(self, name)), Hook)

    def to_oci(self) -> dict[str, list[dict[str, Any]]]:
        """The specification's ``hooks``."""
        return {oci: list(map(_to_oci, getattr(self, name))) for name, oci in POINTS.items() if getattr(self, name)}

    @classmethod
    def from_oci(cls, data: Any) -> Hooks:
        """From the specification's ``hooks``; its deprecated ``prestart`` is createRuntime.

        Raises InvalidCommandError.
        """
        if type(data) is not dict:
            refuse("hooks", f"must be an object, not {type(data).__name__}")
        known = {oci: name for name, oci in POINTS.items()} | {"prestart": "create_runtime"}
        hooks: dict[str, list[Hook]] = {}
        # The specification: prestart comes before createRuntime.
        for oci, rows in sorted(data.items(), key=lambda item: item[0] != "prestart"):
            if oci not in known:
                refuse(f"hooks.{oci}", f"is none of {', '.join(known)}")
            if type(rows) is not list:
                refuse(f"hooks.{oci}", f"must be a list, not {type(rows).__name__}")
            hooks.setdefault(known[oci], []).extend(map(_from_oci, rows))
        return cls(**hooks)

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Hooks:
        """Hooks from their fields as a Command's JSON has them. Raises InvalidCommandError."""
        hooks: dict[str, Any] = {}
        for point, rows in data.items():
            if point not in POINTS:
                refuse(f"hooks.{point}", "is not a field")
            for row in rows if type(rows) is list else ():
                if type(row) is not dict or "path" not in row:
                    refuse(f"hooks.{point}", f"{row!r} is not a hook: an object with a path")
                if unknown := row.keys() - {"path", "args", "env", "timeout"}:
                    refuse(f"hooks.{point}.{min(unknown)}", "is not a field")
            hooks[point] = [Hook(**row) for row in rows] if type(rows) is list else rows
        return cls(**hooks)


def _to_oci(hook: Hook) -> dict[str, Any]:
    oci: dict[str, Any] = {"path": hook.path, "args": list(hook.argv)}
    if hook.env:
        oci["env"] = [f"{name}={value}" for name, value in hook.env.items()]
    if hook.timeout is not None:
        oci["timeout"] = hook.timeout
    return oci


def _from_oci(row: Any) -> Hook:
    if type(row) is not dict or "path" not in row:
        refuse("hooks", f"{row!r} is not a hook: an object with a path")
    if unknown := row.keys() - {"path", "args", "env", "timeout"}:
        refuse(f"hooks.{min(unknown)}", "is not a field")
    env = row.get("env", [])
    if type(env) is not list or not all(type(item) is str and "=" in item for item in env):
        refuse("hooks.env", f"{env!r} is not a list of NAME=VALUE")
    variables = dict(item.split("=", 1) for item in env)
    return Hook(row["path"], row.get("args") or None, env=variables, timeout=row.get("timeout"))
