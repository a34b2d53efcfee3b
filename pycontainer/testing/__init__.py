"""For tests: a pytest plugin, a driver that runs nothing, and the kit that every driver answers to.

:mod:`~pycontainer.testing.plugin` has the fixtures and markers (pytest finds it by itself),
:mod:`~pycontainer.testing.fixtures` makes fixtures of your own, :mod:`~pycontainer.testing.fake` is the driver for
tests without containers, :mod:`~pycontainer.testing.waiting` waits until something is ready, and
:mod:`~pycontainer.testing.conformance` tests drivers.  Only the plugin, the fixtures and the kit need pytest.
"""

from __future__ import annotations

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any

    from pycontainer.testing.fake import FakeContainer, FakeDriver, Outcome
    from pycontainer.testing.fixtures import LoggedContainer, container_fixture
    from pycontainer.testing.waiting import wait_for

__all__ = ["FakeContainer", "FakeDriver", "LoggedContainer", "Outcome", "container_fixture", "wait_for"]

_HOMES = {
    "fake": "FakeContainer FakeDriver Outcome",
    "fixtures": "LoggedContainer container_fixture",
    "waiting": "wait_for",
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import a name from where it is defined: the plugin is loaded by every pytest, and must cost it nothing."""
        for module, names in _HOMES.items():
            if name in names.split():
                from importlib import import_module

                return getattr(import_module(f"{__name__}.{module}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
