"""The entry point ``lxc`` of the group ``pycontainer.drivers``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pycontainer.hookspecs import hookimpl

if TYPE_CHECKING:
    from pycontainer.driver import ExecutionDriver


@hookimpl
def pycontainer_create_driver(name: str, options: Mapping[str, object]) -> ExecutionDriver | None:
    """The LXC driver; it has no options."""
    if name != "lxc":
        return None
    if options:
        raise TypeError(f"the lxc driver has no option {next(iter(options))!r}")
    from pycontainer_lxc.driver import LxcDriver

    return LxcDriver()
