"""The detached containers on record on this host, whoever made them: found by their id, listed, cleared away."""

from __future__ import annotations

from pycontainer._api import Container
from pycontainer.command import Command
from pycontainer.detached import DetachedLifecycle, require_restore
from pycontainer.driver import ContainerInfo, ExecutionDriver
from pycontainer.errors import ContainerNotFoundError
from pycontainer.plugins import get_driver

__all__ = ["containers", "gc", "get"]


def get(id: str, driver: str | ExecutionDriver | None = None) -> Container:
    """The detached container called *id*, whoever made it, running or not.

    *driver* is the one that it was made with; None is the default one.  One
    whose record cannot be read (:attr:`ContainerInfo.problem`) has
    ``(unknown)`` as its argv; it can be waited for, killed and removed, and
    what has to know more raises ContainerError.  Raises
    ContainerNotFoundError, UnsupportedError, and what
    :func:`pycontainer.get_driver` raises.
    """
    if not isinstance(id, str):
        raise TypeError(f"a container is found by its id, a str, not by {id!r}")
    chosen = get_driver(driver)
    require_restore(chosen)
    info = chosen.info(id)
    command = info.command
    if command is None:
        if not info.problem:
            raise ContainerNotFoundError(id)
        command = Command.of(["(unknown)"], name=id)
    life = DetachedLifecycle(chosen, command)
    life.restore()
    return Container._of(life)


def containers(driver: str | ExecutionDriver | None = None) -> list[ContainerInfo]:
    """Every detached container of *driver*, those that have ended too, the oldest first.

    None is the default driver.  Raises as :func:`get`.
    """
    chosen = get_driver(driver)
    require_restore(chosen)
    return list(chosen.containers())


def gc(driver: str | ExecutionDriver | None = None) -> list[str]:
    """Remove what processes that died have left on this host; a line for each thing that is gone.

    What somebody alive owns is not touched, nor is a detached container whose
    end is on record: :meth:`Container.remove` removes those.  The next start
    of a container removes most of it as well.  None is the default driver.
    """
    return list(get_driver(driver).gc())
