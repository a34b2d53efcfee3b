"""The entry point ``native`` of the group ``pycontainer.drivers``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pycontainer.hookspecs import hookimpl

if TYPE_CHECKING:
    from pycontainer.driver import ExecutionDriver


@hookimpl
def pycontainer_create_driver(name: str, options: Mapping[str, object]) -> ExecutionDriver | None:
    """The native driver; it has no options."""
    if name != "native":
        return None
    if options:
        raise TypeError(f"the native driver has no option {next(iter(options))!r}")
    from pycontainer_native.driver import NativeDriver

    return NativeDriver()
