"""Every exception that pycontainer raises on purpose.

::

    ContainerError
     +-- DriverNotFoundError         no driver of that name is installed
     +-- DriverConflictError         two distributions offer the same name
     +-- DriverUnavailableError      installed, but this host cannot run it (carries the probe)
     +-- RequirementError            no driver has what is required (carries the reasons)
     +-- UnsupportedError            the driver does not have that feature
     +-- InvalidCommandError         also a ValueError: a field has an impossible value
     +-- ContainerNotFoundError      also a LookupError: no detached container has that id
     +-- NotRunningError             the verb needs a running container
     +-- AlreadyExistsError          a container of that id exists
     +-- WaitTimeoutError            also a TimeoutError: carries what was captured so far
     +-- ContainerExitError          also a subprocess.CalledProcessError: run(check=True), and it ended with an error
     +-- ContainerLostError          whoever watched the container died; its status is unknown
     +-- SetupError                  also an OSError: a step of the set-up failed

A clean-up that fails as well is attached to the first error as a note
(:pep:`678`; on Python 3.10 to ``__notes__`` alone): the first error is never
hidden.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pycontainer._exit_error import ContainerExitError as ContainerExitError
    from pycontainer.driver import Feature, Probe


class ContainerError(Exception):
    """The root of the tree: ``except ContainerError`` catches everything that pycontainer raises on purpose."""


def add_note(error: BaseException, note: str) -> None:
    """Attach *note* to *error*: ``BaseException.add_note``, which Python 3.10 does not have."""
    if hasattr(error, "add_note"):
        error.add_note(note)
    else:
        error.__notes__ = [*getattr(error, "__notes__", []), note]  # type: ignore[attr-defined]


class DriverNotFoundError(ContainerError):
    """No installed distribution offers a driver called *name* in the entry point group ``pycontainer.drivers``."""

    def __init__(self, name: str, available: Iterable[str] = ()) -> None:
        self.name = name
        self.available = tuple(sorted(available))
        super().__init__(name, self.available)

    def __str__(self) -> str:
        known = ", ".join(self.available) or "none"
        return f"no driver is called {self.name!r} (installed: {known})"


class DriverConflictError(ContainerError):
    """Two or more distributions offer a driver called *name*; choosing one silently would be a trap."""

    def __init__(self, name: str, distributions: Iterable[str]) -> None:
        self.name = name
        self.distributions = tuple(sorted(distributions))
        super().__init__(name, self.distributions)

    def __str__(self) -> str:
        return f"driver {self.name!r} is offered by {' and by '.join(self.distributions)}: uninstall all but one"


class DriverUnavailableError(ContainerError):
    """The driver exists, but cannot be used on this host; :attr:`probe` says why and what would help."""

    def __init__(self, driver: str, probe: Probe) -> None:
        self.driver = driver
        self.probe = probe
        super().__init__(driver, probe)

    def __str__(self) -> str:
        text = f"driver {self.driver!r} cannot be used here: {self.probe.cause or 'unknown cause'}"
        return f"{text} (remedy: {self.probe.remedy})" if self.probe.remedy else text


class RequirementError(ContainerError):
    """No driver that was considered has every feature of *require*.

    :attr:`reasons` has, for each driver in the order in which they were
    considered, why it cannot serve.
    """

    def __init__(self, require: Sequence[str], reasons: Mapping[str, Sequence[str]]) -> None:
        self.require = tuple(require)
        self.reasons = {name: tuple(why) for name, why in reasons.items()}
        super().__init__(self.require, self.reasons)

    def __str__(self) -> str:
        why = "; ".join(f"{name}: {', '.join(reasons)}" for name, reasons in self.reasons.items())
        return f"no driver has {', '.join(self.require) or 'what is required'} ({why or 'none is installed'})"


class UnsupportedError(ContainerError):
    """The driver does not declare *feature*, which the call or the Command needs."""

    def __init__(self, driver: str, feature: Feature, detail: str = "") -> None:
        self.driver = driver
        self.feature = feature
        self.detail = detail
        super().__init__(driver, feature, detail)

    def __str__(self) -> str:
        text = f"driver {self.driver!r} does not support {self.feature.value}"
        return f"{text}: {self.detail}" if self.detail else text


class InvalidCommandError(ContainerError, ValueError):
    """A field of a Command has an impossible value. Nothing has been created.

    :attr:`field` is the field's dotted name (``"process.user"``) and
    :attr:`problem` what is wrong with it.  Where a driver found several,
    :attr:`problems` holds every (field, problem) pair and the first two
    attributes are those of the first.
    """

    def __init__(self, field: str, problem: str, more: Sequence[tuple[str, str]] = ()) -> None:
        self.field = field
        self.problem = problem
        self.problems = ((field, problem), *more)
        super().__init__(field, problem, tuple(more))

    def __str__(self) -> str:
        return "; ".join(f"{field}: {problem}" for field, problem in self.problems)


class ContainerNotFoundError(ContainerError, LookupError):
    """There is no detached container called *id*: none was made, or it is removed."""

    def __init__(self, id: str) -> None:
        self.id = id
        super().__init__(id)

    def __str__(self) -> str:
        return f"no such container: {self.id}"


class NotRunningError(ContainerError):
    """The verb needs a running container, and the one called *id* is not (any more, or not yet)."""

    def __init__(self, id: str, state: str = "stopped") -> None:
        self.id = id
        self.state = state
        super().__init__(id, state)

    def __str__(self) -> str:
        return f"container {self.id!r} is not running: it is {self.state}"


class AlreadyExistsError(ContainerError):
    """A container called *id* exists already. The existing one is untouched."""

    def __init__(self, id: str) -> None:
        self.id = id
        super().__init__(id)

    def __str__(self) -> str:
        return f"a container called {self.id!r} exists already"


class WaitTimeoutError(ContainerError, TimeoutError):
    """A time limit passed.

    :attr:`timeout` is in seconds; :attr:`stdout` and :attr:`stderr` are what
    was captured until then (None where nothing was captured), ``errno`` is
    ETIMEDOUT.  When ``run`` raises it, every process of the container is
    already dead.
    """

    id: str
    timeout: float
    stdout: Any
    stderr: Any

    # As with SetupError: OSError builds itself in __new__, of whatever arguments there are.
    def __new__(cls, id: str, timeout: float, stdout: Any = None, stderr: Any = None) -> WaitTimeoutError:
        self = super().__new__(cls, errno.ETIMEDOUT, _late(timeout))
        self.id = id
        self.timeout = timeout
        self.stdout = stdout
        self.stderr = stderr
        return self

    def __init__(self, id: str, timeout: float, stdout: Any = None, stderr: Any = None) -> None:
        OSError.__init__(self, errno.ETIMEDOUT, _late(timeout))

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.id, self.timeout, self.stdout, self.stderr), self.__dict__)

    def __str__(self) -> str:
        return f"container {self.id!r} {self.strerror}"


def _late(timeout: float) -> str:
    return f"did not end within {timeout:g} s"


class ContainerLostError(ContainerError):
    """The process that watched over the container died: the container is dead as well, its status unknown.

    That process is the driver's launcher, or, of a detached container, its monitor.
    """

    def __init__(self, id: str, detail: str = "") -> None:
        self.id = id
        self.detail = detail
        super().__init__(id, detail)

    def __str__(self) -> str:
        text = f"container {self.id!r} is lost: what watched over it died, and it was killed"
        return f"{text} ({self.detail})" if self.detail else text


class SetupError(ContainerError, OSError):
    """A step of a container's set-up failed. Everything done until then is undone.

    :attr:`step` names it in the kernel's terms (``"mount proc on /proc"``,
    ``"execve"``), :attr:`errno` is the kernel's answer, :attr:`path` the path
    it was about, or None, as is OSError's ``filename``.  A missing command is step ``execve`` with ENOENT,
    a file that is not executable step ``execve`` with EACCES.
    """

    step: str
    path: str | None

    # OSError builds itself in __new__ from its positional arguments, so errno
    # and strerror go there and the rest is ours.
    def __new__(cls, step: str, errno: int, path: str | None = None) -> SetupError:
        self = super().__new__(cls, errno, os.strerror(errno), path)
        self.step = step
        self.path = path
        return self

    def __init__(self, step: str, errno: int, path: str | None = None) -> None:
        OSError.__init__(self, errno, os.strerror(errno))

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.step, self.errno, self.path), self.__dict__)

    def __repr__(self) -> str:
        return f"SetupError({self.step!r}, {self.errno}, {self.path!r})"

    def __str__(self) -> str:
        where = ""
        if self.path and self.path not in self.step:
            where = f" ({self.path})" if " " in self.step else f" {self.path}"
        return f"{self.step}{where}: {errno.errorcode.get(self.errno or 0, self.errno)} ({self.strerror})"


if not TYPE_CHECKING:  # which would let a type checker believe that any name is there

    def __getattr__(name: str) -> Any:
        """ContainerExitError, when somebody asks for it: subprocess takes longer to import than all of this package."""
        if name != "ContainerExitError":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from pycontainer._exit_error import ContainerExitError

        return ContainerExitError
