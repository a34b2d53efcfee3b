"""The pluggy hooks of pycontainer: how a distribution brings a driver, and how a program observes its containers.

A driver is a subclass of :class:`~pycontainer.driver.ExecutionDriver`, a hook
implementation that makes one, and an entry point that says where the hook is.
The drivers that come with pycontainer are found in this same way.

The whole of a plugin, here for a driver called ``plain`` that is in a module
``pycontainer_plain``::

    # pycontainer_plain.py
    import pycontainer

    class PlainDriver(pycontainer.ExecutionDriver):
        name = "plain-0.1"
        ...

    @pycontainer.hookimpl
    def pycontainer_create_driver(options):
        return PlainDriver(**options)

    # pyproject.toml
    [project.entry-points."pycontainer.drivers"]
    plain = "pycontainer_plain"

Once that distribution is installed, ``pycontainer run --driver plain``,
``PYCONTAINER_DRIVER=plain`` and ``pycontainer.get_driver("plain")`` use it.

Rules of the group:

* The entry point's name is the driver's name: a letter, then letters, digits,
  ``_`` or ``-``.  Its value is a module, or ``module:object``; the hook
  implementations are attributes of that.
* A driver's module is imported when that driver is chosen, or when all drivers
  are listed, and at no other time.  What it needs may therefore be imported at
  its top; what only some calls need should not be.
* Two distributions that offer the same name are both refused
  (:exc:`~pycontainer.errors.DriverConflictError`) until one is uninstalled.
* A plugin that cannot be imported, that raises or exits, or that pluggy
  refuses, is an unavailable driver (:exc:`~pycontainer.errors.DriverUnavailableError`, with
  the cause in its probe) and disturbs no other.

Observers
---------

A program that wants to know what becomes of its containers, to count or to log
them, registers an object with some of the hooks ``pycontainer_started``,
``pycontainer_exited``, ``pycontainer_oom`` and ``pycontainer_cleaned``, under
any driver::

    import logging
    import pycontainer

    class Journal:
        @pycontainer.hookimpl
        def pycontainer_started(self, id, command, pid):
            logging.info("%s started as %d: %s", id, pid, command.process.argv)

        @pycontainer.hookimpl
        def pycontainer_oom(self, id, command):
            logging.warning("%s was out of memory: its limit is %s", id, command.resources.memory)

        @pycontainer.hookimpl
        def pycontainer_exited(self, id, status):
            logging.info("%s %s", id, status.reason if status else "was lost")

    pycontainer.register_observer(Journal())

    pycontainer.run(["true"])

Nothing is registered by being installed: nobody watches another's containers
unasked.  Observers are called in this process, in the thread that starts a
container or notices its end (``poll``, ``wait``, ``close``), which waits for
them, and may call any method of the container; they hear nothing of further processes (``exec``).  What one raises is
logged by ``pycontainer.observers`` and changes nothing.  Of one container the
order is started, oom, exited, cleaned; one whose start fails is not heard of.

As in pluggy everywhere, an implementation names only the arguments it wants,
and later versions may add arguments and hooks without breaking it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from pycontainer.command import Command
    from pycontainer.driver import ExecutionDriver, ExitStatus
    from pycontainer.options import Option

__all__ = [
    "OBSERVERS",
    "hookimpl",
    "hookspec",
    "pycontainer_cleaned",
    "pycontainer_create_driver",
    "pycontainer_driver_options",
    "pycontainer_exited",
    "pycontainer_oom",
    "pycontainer_started",
]

#: Marks a specification; only this module has any.
hookspec = pluggy.HookspecMarker("pycontainer")

#: Marks an implementation. Public as ``pycontainer.hookimpl``.
hookimpl = pluggy.HookimplMarker("pycontainer")


@hookspec(firstresult=True)
def pycontainer_create_driver(name: str, options: Mapping[str, object]) -> ExecutionDriver | None:
    """Make the driver that was chosen.

    *name* is the entry point's name: a plugin that offers several drivers
    tells by it which one is meant, and only the chosen entry point's plugin is
    asked.  *options* are the keywords of :func:`pycontainer.get_driver`, as
    they were given; the driver defines which there are and raises TypeError
    for any other.

    Called once for each name and set of options; the result serves every
    thread of this process, and after a fork the child asks anew.  It must be
    cheap: nothing is started before the driver's first container.

    A driver that cannot work on this host is made nevertheless: its ``probe``
    says why, and its ``start`` raises DriverUnavailableError.  Whatever this
    raises, but for the TypeError or ValueError of an option, makes it an
    unavailable driver.
    """


@hookspec(firstresult=True)
def pycontainer_driver_options(name: str) -> Sequence[Option] | None:
    """Declare the options of the driver *name*: optional.

    With this hook the core checks what :func:`pycontainer.get_driver` is
    given, fills in ``PYCONTAINER_<DRIVER>_<OPTION>`` of the environment and
    the defaults, and makes flags ``--<driver>-<option>`` of them, which
    ``--help`` shows; so
    ``pycontainer_create_driver`` gets exactly the declared options, each with
    a value of its type::

        @pycontainer.hookimpl
        def pycontainer_driver_options(name):
            return [Option("state_dir", help="where it keeps its state", default="/run/plain")]

    Without it the options are handed on as they are given.
    """


# -- observers


@hookspec
def pycontainer_started(id: str, command: Command, pid: int, driver: ExecutionDriver) -> None:
    """The program of the container *id* runs, with the host pid *pid*."""


@hookspec
def pycontainer_oom(id: str, command: Command, status: ExitStatus, driver: ExecutionDriver) -> None:
    """The container *id* has ended, and the kernel has killed a process of it at its memory limit."""


@hookspec
def pycontainer_exited(id: str, command: Command, status: ExitStatus | None, driver: ExecutionDriver) -> None:
    """The container *id* has ended. *status* is None where nobody knows how (ContainerLostError)."""


@hookspec
def pycontainer_cleaned(id: str, command: Command, driver: ExecutionDriver) -> None:
    """Everything of the container *id* is removed, and its id is free again."""


#: The hooks that observe.
OBSERVERS = frozenset(("pycontainer_started", "pycontainer_oom", "pycontainer_exited", "pycontainer_cleaned"))
