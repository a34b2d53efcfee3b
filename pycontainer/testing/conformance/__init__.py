"""The conformance kit: what every driver answers to, ours and yours.

Docker dropped LXC because two drivers had drifted apart without shared tests.
For an installed driver::

    pytest --pyargs pycontainer.testing.conformance --container-driver NAME

``--container-rootfs DIR`` is the root file system whose programs are run; it
needs ``/bin/sh`` and what busybox has, and ``/dev/null``, ``/dev/zero`` and
the like for a driver that brings no ``/dev``.  It is written to, and what the
tests have put there is removed, but not under pytest-xdist.  Without it a driver with
Feature.HOST_ROOTFS shows the host's, and for others one is made of a static
busybox, if the host has that.

In a driver's own test suite, subclass the areas, or all of them at once, and
override the fixtures that do not fit (:class:`~.base.Area` has them)::

    from pycontainer.testing.conformance import Conformance

    class TestPlain(Conformance):
        @pytest.fixture
        def driver(self):
            return PlainDriver()

PYCONTAINER_CONFORMANCE_TIMEOUT is after how many seconds something counts as
hanging: 30 by default.

The kit is two-sided: a feature that is declared works, and one that is not
raises UnsupportedError.  A field of the Command is honoured, or refused by
``validate``.  A test is skipped only for a limit of this host, with the reason
that the driver's probe gives.
"""

from __future__ import annotations

from pycontainer.testing.conformance.base import Area, needs
from pycontainer.testing.conformance.detached import Restore
from pycontainer.testing.conformance.ending import ExitStatuses, Signals
from pycontainer.testing.conformance.features import Features
from pycontainer.testing.conformance.inside import Exec, Pause
from pycontainer.testing.conformance.isolation import Isolation
from pycontainer.testing.conformance.lifecycle import Lifecycle
from pycontainer.testing.conformance.limits import Limits, Stats, Update
from pycontainer.testing.conformance.payloads import Payloads
from pycontainer.testing.conformance.provisions import Provisions
from pycontainer.testing.conformance.refusals import BadInput
from pycontainer.testing.conformance.robustness import Concurrency, Leaks
from pycontainer.testing.conformance.streams import Stdio, Tty
from pycontainer.testing.conformance.surroundings import Environment, Mounts

__all__ = [
    "AREAS",
    "Area",
    "BadInput",
    "Concurrency",
    "Conformance",
    "Environment",
    "Exec",
    "ExitStatuses",
    "Features",
    "Isolation",
    "Leaks",
    "Lifecycle",
    "Limits",
    "Mounts",
    "Pause",
    "Payloads",
    "Provisions",
    "Restore",
    "Signals",
    "Stats",
    "Stdio",
    "Tty",
    "Update",
    "needs",
]

#: Every area, in the order in which a new driver is best made to pass them.
AREAS: tuple[type[Area], ...] = (
    Features,
    Lifecycle,
    Stdio,
    ExitStatuses,
    Signals,
    Environment,
    BadInput,
    Mounts,
    Isolation,
    Limits,
    Provisions,
    Tty,
    Exec,
    Pause,
    Stats,
    Update,
    Restore,
    Concurrency,
    Leaks,
)


class Conformance(
    Features,
    Lifecycle,
    Stdio,
    ExitStatuses,
    Signals,
    Environment,
    BadInput,
    Mounts,
    Isolation,
    Limits,
    Provisions,
    Tty,
    Exec,
    Pause,
    Stats,
    Update,
    Restore,
    Concurrency,
    Leaks,
):
    """All the areas in one class."""
