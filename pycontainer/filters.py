"""The seccomp filters of a driver's Commands, kept: to find one by its profile takes longer than everything else."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from pycontainer.driver import Feature
from pycontainer.errors import UnsupportedError
from pycontainer.seccomp_filter import Filter, compile_filter
from pycontainer.spec import seccomp_to_oci

if TYPE_CHECKING:
    from pycontainer.command import Command

#: As many are kept: whoever makes a profile anew for each container has no use for the old ones.
_MOST = 64


class Filters:
    """The compiled filters of what *driver* has been asked for."""

    def __init__(self, driver: str) -> None:
        self._driver = driver
        self._kept: dict[object, Filter | None] = {}
        self._lock = threading.Lock()

    def of(self, command: Command) -> Filter | None:
        """That of *command*. Raises InvalidCommandError, UnsupportedError."""
        key = command.seccomp, command.process.privileged, command.process.capabilities
        with self._lock:  # once, and not by all who start at the same time
            if key not in self._kept:
                if len(self._kept) >= _MOST:
                    self._kept.clear()
                try:
                    self._kept[key] = compile_filter(seccomp_to_oci(command))
                except NotImplementedError as error:
                    raise UnsupportedError(self._driver, Feature.SECCOMP, str(error)) from None
            return self._kept[key]

    def clear(self) -> None:
        """Forget them: they were another caller's."""
        self._kept.clear()
