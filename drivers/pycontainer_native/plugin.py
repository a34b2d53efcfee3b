"""The entry point ``native`` of the group ``pycontainer.drivers``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pycontainer.hookspecs import hookimpl
from pycontainer.options import Option

if TYPE_CHECKING:
    from pycontainer.driver import ExecutionDriver


OPTIONS = (Option("root", help="where detached containers are recorded; default: /run/pycontainer"),)


@hookimpl
def pycontainer_driver_options(name: str) -> Sequence[Option] | None:
    """The native driver's one option."""
    return OPTIONS if name == "native" else None


@hookimpl
def pycontainer_create_driver(name: str, options: Mapping[str, object]) -> ExecutionDriver | None:
    """The native driver."""
    if name != "native":
        return None
    from pycontainer_native.driver import NativeDriver

    return NativeDriver(**options)  # type: ignore[arg-type] # they are checked: pycontainer.Option
