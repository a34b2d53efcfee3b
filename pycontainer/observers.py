"""Who is told of what becomes of containers: the observer hooks of :mod:`pycontainer.hookspecs`."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pluggy

__all__ = ["register_observer", "unregister_observer"]

_lock = threading.Lock()
_manager: pluggy.PluginManager | None = None  # made with the first observer: pluggy takes longer than a start

#: Whether there is anybody to tell.
present = False


def register_observer(observer: Any) -> None:
    """Tell *observer*, a module or an object with hook implementations, what becomes of this process's containers.

    Raises ValueError: it is registered already, has none of the observer
    hooks, or one that does not exist.
    """
    import pluggy

    from pycontainer import hookspecs

    global _manager, present
    with _lock:
        if _manager is None:
            _manager = pluggy.PluginManager("pycontainer")
            _manager.add_hookspecs(hookspecs)
        try:
            _manager.register(observer)  # refuses one that is there already
            hooks = {caller.name for caller in _manager.get_hookcallers(observer) or ()}
            try:
                _manager.check_pending()
                wrappers = [impl for name in hooks for impl in getattr(_manager.hook, name).get_hookimpls()
                            if impl.plugin is observer and (impl.wrapper or impl.hookwrapper)]  # fmt: skip
                if not hooks & hookspecs.OBSERVERS or wrappers:
                    raise ValueError(f"{observer!r} has no observer hook, or one that is a wrapper")
            except BaseException:
                _manager.unregister(observer)
                raise
        except pluggy.PluginValidationError as error:
            raise ValueError(str(error)) from None
        present = True


def unregister_observer(observer: Any) -> None:
    """Tell *observer* no more. Raises ValueError: it is not registered."""
    global present
    with _lock:
        if _manager is None or not _manager.is_registered(observer):
            raise ValueError(f"{observer!r} is not registered")
        _manager.unregister(observer)
        present = bool(_manager.get_plugins())


def tell(event: str, **facts: object) -> None:
    """Call every observer's hook of *event*. What one of them raises is logged, and harms nobody."""
    with _lock:
        assert _manager is not None
        impls = list(reversed(getattr(_manager.hook, f"pycontainer_{event}").get_hookimpls()))
    for impl in impls:
        try:
            impl.function(*(facts[name] for name in impl.argnames))
        except Exception:
            import logging

            logging.getLogger("pycontainer.observers").exception("observer %r failed on %s", impl.plugin, event)
