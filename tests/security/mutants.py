"""Ways to take a protection away, one at a time, for the length of a test.

A plan is data, so most of them change its steps while the caller records them; those of the launcher's own code run a
launcher that imports a changed copy of the package.  A mutant that changes nothing is an error: the code has moved on.
"""

from __future__ import annotations

import functools
import importlib
import mmap
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pycontainer_native import abi, capabilities, client, plan
from pycontainer_native.syscalls import Step

_FUTURE = "from __future__ import annotations\n"

Edit = Callable[[Step], "Step | None"]


class Mutant:
    """Takes a protection away by *apply*; *used* says whether it has made a difference."""

    own_launcher = False  #: whether it needs a launcher that is started after it was applied

    def __init__(self, name: str) -> None:
        self.name = name
        self._used = mmap.mmap(-1, 1)  # shared with a forked child

    @property
    def used(self) -> bool:
        return self._used[0] == 1

    @used.setter
    def used(self, value: bool) -> None:
        self._used[0] = value

    def apply(self, monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
        raise NotImplementedError


class PlanMutant(Mutant):
    """Changes steps of the plan as they are recorded: one for one, so that the distances between them stay."""

    def __init__(self, name: str, *edits: Edit) -> None:
        super().__init__(name)
        self.edits = edits

    def apply(self, monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
        used: set[int] = set()
        mutant = self
        mutant.used = False

        class Changing(plan.Recorder):  # type: ignore[name-defined,misc] # or what another one has made of it
            def call(self, call: str, *arguments: Any, **keywords: Any) -> None:
                super().call(call, *arguments, **keywords)
                for number, edit in enumerate(mutant.edits):
                    changed = edit(self.steps[-1])
                    if changed is not None and changed != self.steps[-1]:
                        self.steps[-1] = changed
                        used.add(number)
                        mutant.used = len(used) == len(mutant.edits)

        monkeypatch.setattr(plan, "Recorder", Changing)
        monkeypatch.setattr(plan, "_sections", {})


class Patch(Mutant):
    """Replaces what *target* names ("package.module.attribute") by *value*, which is another, and called if it can."""

    def __init__(self, name: str, target: str, value: object, *, own_launcher: bool = False) -> None:
        super().__init__(name)
        self.target = target
        self.value = value
        self.own_launcher = own_launcher

    def apply(self, monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
        self.used = False
        before = _named(self.target)
        value = self.value
        if callable(value):
            monkeypatch.setattr(self.target, self._noting(value))
        else:
            monkeypatch.setattr(self.target, value)
            self.used = value != before
        monkeypatch.setattr(plan, "_sections", {})

    def _noting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def noting(*arguments: Any, **keywords: Any) -> Any:
            self.used = True
            return function(*arguments, **keywords)

        return noting


def _named(target: str) -> object:
    """What a dotted name is that of."""
    parts = target.split(".")
    for end in range(len(parts) - 1, 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        return functools.reduce(getattr, parts[end:], found)
    raise ModuleNotFoundError(target)


class LauncherMutant(Mutant):
    """Starts a launcher in whose *module* the text *old* is *new*, and so on for *more*.

    It is used once a process has each of those modules or, where a test *reads* them, at once.
    """

    own_launcher = True
    _loaded: tuple[Path, ...] = ()  #: by each changed module when it is

    def __init__(
        self, name: str, module: str, old: str, new: str, *more: tuple[str, str, str], reads: bool = False
    ) -> None:
        super().__init__(name)
        self.changes = ((module, old, new), *more)
        self.reads = reads

    def apply(self, monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
        package = directory / "mutant" / "pycontainer_native"
        shutil.copytree(Path(client.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
        for module, old, new in self.changes:
            path = package / f"{module}.py"
            text = path.read_text()
            assert text.count(old) == 1, f"{module} has {text.count(old)} times {old!r}"
            assert old != new
            path.write_text(text.replace(old, new))
        self._loaded = tuple(directory / f"mutant/{module}" for module in {module for module, _, _ in self.changes})
        for marker in self._loaded:
            path = package / f"{marker.name}.py"
            note = f"open({str(marker)!r}, 'w').close()\n"
            path.write_text(path.read_text().replace(_FUTURE, _FUTURE + note, 1))
        monkeypatch.setattr(client, "__file__", str(package / "client.py"))  # its launcher's home

    @property
    def used(self) -> bool:
        return bool(self._loaded) and all(self.reads or marker.exists() for marker in self._loaded)

    @used.setter
    def used(self, value: bool) -> None:
        raise NotImplementedError


class Several(Mutant):
    """More than one at once: where one protection stands behind another."""

    def __init__(self, name: str, *mutants: Mutant) -> None:
        super().__init__(name)
        self.mutants = mutants
        self.own_launcher = any(mutant.own_launcher for mutant in mutants)

    def apply(self, monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
        for mutant in self.mutants:
            mutant.apply(monkeypatch, directory)

    @property
    def used(self) -> bool:
        return all(mutant.used for mutant in self.mutants)

    @used.setter
    def used(self, value: bool) -> None:
        raise NotImplementedError


# -- edits of steps


def _is(step: Step, label: str, call: str | None) -> bool:
    return step.label.startswith(label) and call in (None, step.call)


def left_out(label: str, call: str | None = None) -> Edit:
    """The steps of *label*, or those that make *call*, do nothing."""

    def edit(step: Step) -> Step | None:
        if not _is(step, label, call):
            return None
        # prctl(PR_GET_DUMPABLE) never fails; what the step would have skipped after success is skipped all the same
        return step._replace(call="prctl", arguments=(3, 0, 0, 0, 0), out=None, accept={}, check=None)

    return edit


def resolving(label: str, resolve: int = 0, *, from_root: bool = False, flags: int | None = None) -> Edit:
    """openat2 of *label* looks paths up with these RESOLVE_ flags; *from_root* as the host does."""

    def edit(step: Step) -> Step | None:
        if not _is(step, label, "openat2"):
            return None
        dirfd, path, how, size = step.arguments
        old_flags, mode, _ = struct.unpack("=QQQ", how)  # type: ignore[arg-type]
        how = struct.pack("=QQQ", old_flags if flags is None else flags | abi.O_CLOEXEC, mode, resolve)
        if from_root:
            dirfd, path = abi.AT_FDCWD, b"/" + path  # type: ignore[operator]
        return step._replace(arguments=(dirfd, path, how, size))

    return edit


def given(label: str, call: str, *arguments: Any) -> Edit:
    """The *call* of *label* gets these arguments; None keeps the one that stands there."""

    def edit(step: Step) -> Step | None:
        if not _is(step, label, call):
            return None
        mixed = [old if new is None else new for old, new in zip(step.arguments, arguments, strict=False)]
        changed = (*mixed, *step.arguments[len(mixed) :])
        return step._replace(arguments=changed) if changed != step.arguments else None

    return edit


def instead(label: str, call: str, other: str, *arguments: Any) -> Edit:
    """Another system call in the place of *call*."""

    def edit(step: Step) -> Step | None:
        return step._replace(call=other, arguments=arguments, check=None) if _is(step, label, call) else None

    return edit


def not_mounted(path: str) -> Edit:
    """What was made for /proc, /sys or /dev stays where it was made, and the image's own is used."""

    def edit(step: Step) -> Step | None:
        is_move = step.call == "move_mount" and step.label.startswith("mount ") and step.label.endswith(f" on {path}")
        if not is_move or step.arguments[3] != b"":  # it has a name where it is made
            return None
        return step._replace(call="prctl", arguments=(3, 0, 0, 0, 0), accept={})

    return edit


# -- mutants of more than one section

#: No seccomp filter.
no_filter = PlanMutant("no filter", left_out("load the seccomp filter"))


def with_capability(number: int, name: str) -> PlanMutant:
    """It is granted after all, alone, and there is no filter."""
    return PlanMutant(
        f"{name}, and no filter",
        left_out(f"drop {name} from the bounding set"),
        given("set capabilities", "capset", None, capabilities.capset_data(1 << number, 1 << number, 0)[1]),
        left_out("load the seccomp filter"),
    )


def _keeping(step: Step) -> Step | None:
    bit = capabilities.capset_data(1 << 10, 1 << 10, 1 << 10)  # CAP_NET_BIND_SERVICE
    return (
        instead("set groups and ids", "setgroups", "prctl", 8, 1, 0, 0, 0)(step)  # PR_SET_KEEPCAPS
        or instead("set capabilities", "capset", "prctl", abi.PR_CAP_AMBIENT, 2, 10, 0, 0)(step)  # PR_CAP_AMBIENT_RAISE
        or instead("set capabilities", "prctl", "capset", *bit)(step)
    )


#: Who is not root keeps a capability, which gets inheritable and ambient.
ambient = PlanMutant("one is kept, and ambient", _keeping)
