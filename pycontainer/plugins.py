"""Which drivers are installed, and the one that is wanted.

A driver is an entry point in the group ``pycontainer.drivers``; its plugin
implements :mod:`pycontainer.hookspecs`.  The names are read without importing
anything, the plugin of the chosen name is imported, and nothing else is.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Any, NamedTuple

from attrs import field, frozen

from pycontainer.driver import ExecutionDriver, Feature, Probe
from pycontainer.errors import ContainerError, DriverConflictError, DriverNotFoundError, DriverUnavailableError

if TYPE_CHECKING:
    import pluggy

    from pycontainer.options import Option

__all__ = ["GROUP", "InstalledDriver", "drivers", "get_driver"]

#: The group of entry points.
GROUP = "pycontainer.drivers"

DEFAULT_DRIVER = "native"


@frozen
class InstalledDriver:
    """One installed driver, as :func:`drivers` reports it."""

    name: str  #: what it is chosen by
    distribution: str  #: name and version of the distribution that offers it (two or more in a conflict)
    entry_point: str  #: ``module`` or ``module:object``
    probe: Probe  #: whether this host can use it, and if not the cause and the remedy
    features: frozenset[Feature] = field(default=frozenset())  #: what it declares; empty when it cannot be loaded


def get_driver(name: str | ExecutionDriver | None = None, **options: object) -> ExecutionDriver:
    """The driver called *name*; None is the one of ``PYCONTAINER_DRIVER``, and without that ``native``.

    Where that names several, with commas between them, it is the first one
    that this host can use.
    *options* are the driver's own.  Where it declares them
    (:class:`pycontainer.Option`) they are checked, and one that is not given
    is taken from the environment variable ``PYCONTAINER_<DRIVER>_<OPTION>``.
    The same name with the same options gives the same object, in a forked
    child a new one.  A driver object is handed back as it is.

    Raises DriverNotFoundError, DriverConflictError (two distributions offer
    the name), DriverUnavailableError (its plugin cannot be loaded), and
    TypeError or ValueError (an option that the driver does not have, or a
    value that is wrong for it).
    """
    if isinstance(name, ExecutionDriver):
        if options:
            raise TypeError(f"options ({', '.join(options)}) are for a driver's name, not for a driver that exists")
        return name
    if name is None:
        name, *more = default_names()
        if more:
            return _first_usable((name, *more), options)
    if not isinstance(name, str):
        raise TypeError(f"a driver is chosen by its name, a str, not by {name!r}")
    with _lock:
        # A list, for options need not be hashable.
        for made_name, made_options, driver in _made:
            if made_name == name and made_options == options:
                return driver
        driver = _create(_offer(name), options)
        _made.append((name, options, driver))
        return driver


def default_names() -> Sequence[str]:
    """The drivers that PYCONTAINER_DRIVER names, in the order of preference; without it the default one."""
    return environment_names() or (DEFAULT_DRIVER,)


def environment_names() -> Sequence[str]:
    """The drivers that PYCONTAINER_DRIVER names, several with commas between them; empty without it."""
    return [name for part in os.environ.get("PYCONTAINER_DRIVER", "").split(",") if (name := part.strip())]


def _first_usable(names: Sequence[str], options: Mapping[str, object]) -> ExecutionDriver:
    unusable: DriverUnavailableError | DriverConflictError | None = None
    for name in names:
        try:
            driver = get_driver(name, **options)
            probe = look(name, driver)
            if probe.usable:
                return driver
            raise DriverUnavailableError(name, probe)
        except (DriverUnavailableError, DriverConflictError) as error:
            unusable = unusable or error  # what was preferred is what is to be mended
    assert unusable is not None
    raise unusable


def drivers() -> Mapping[str, InstalledDriver]:
    """Every driver that is installed, by name, each probed on this host.

    This imports them all.  One that cannot be imported, made or probed, or
    whose name is offered twice, is listed as unusable with the cause, and
    keeps none of the others from working.
    """
    return {name: inspect(name, found) for name, found in sorted(offers().items())}


def inspect(name: str, offers: Sequence[Offer]) -> InstalledDriver:
    """The driver *name*, of which there are these *offers*, loaded and probed. Raises nothing that a plugin raises."""
    features: frozenset[Feature] = frozenset()
    try:
        driver = get_driver(name)
        features = driver.features()
        probe = look(name, driver)
    except DriverUnavailableError as error:
        probe = error.probe
    except DriverConflictError as error:
        probe = Probe(driver=name, usable=False, cause=str(error), remedy="uninstall all but one")
    except Exception as error:  # a plugin may raise anything, and must break only itself
        probe = Probe(driver=name, usable=False, cause=f"{type(error).__name__}: {error}")
    return InstalledDriver(
        name=name,
        distribution=", ".join(offer.distribution for offer in sorted(offers)),
        entry_point=", ".join(offer.entry_point for offer in sorted(offers)),
        probe=probe,
        features=features,
    )


def look(name: str, driver: ExecutionDriver) -> Probe:
    """The probe of *driver*, chosen as *name*; of one that raises instead, that it is unusable."""
    try:
        return driver.probe()
    except Exception as error:
        cause = f"its probe failed: {type(error).__name__}: {error}"
        return Probe(driver=name, usable=False, version=driver.name, cause=cause)


# -- the drivers that were made

_made: list[tuple[str, Mapping[str, object], ExecutionDriver]] = []
_lock = threading.RLock()  # reentrant: a driver that wraps another one asks for it while it is made


def _forget_after_fork() -> None:
    """In a forked child: what a driver holds (processes, sockets) is the parent's, and the lock may be held."""
    global _lock
    _made.clear()
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_forget_after_fork)


@functools.cache
def _manager() -> pluggy.PluginManager:
    import pluggy

    from pycontainer import hookspecs

    manager = pluggy.PluginManager("pycontainer")
    manager.add_hookspecs(hookspecs)
    return manager


def installed_names() -> list[str]:
    """The names of the installed drivers. Imports none of them."""
    return sorted(offers())


def declared_options(name: str) -> Sequence[Option] | None:
    """The options that driver *name* declares; None when it does not say. Raises as :func:`get_driver`."""
    with _lock:
        offer = _offer(name)
        return _declared(offer, _others(_plugin(offer)))


def _create(offer: Offer, options: Mapping[str, object]) -> ExecutionDriver:
    # Only the chosen plugin is asked: none can answer for another's name.
    manager, others = _manager(), _others(_plugin(offer))
    declared = _declared(offer, others)
    if declared is not None:
        from pycontainer.options import resolve

        options = resolve(offer.driver, declared, options)
    create = manager.subset_hook_caller("pycontainer_create_driver", others)
    try:
        driver = create(name=offer.driver, options=dict(options))
    except (ContainerError, KeyboardInterrupt):
        raise
    except BaseException as error:
        # A driver that does not declare its options says itself what is wrong with one.
        if declared is None and options and isinstance(error, (TypeError, ValueError)):
            raise
        raise _failed(offer, "cannot be made", error) from error
    if not isinstance(driver, ExecutionDriver):
        made = "nothing" if driver is None else repr(driver)
        raise _unavailable(
            offer, f"pycontainer_create_driver of {offer.entry_point} made {made}, not an ExecutionDriver"
        )
    try:
        driver.features()
    except (ContainerError, KeyboardInterrupt):
        raise
    except BaseException as error:  # here, for whoever asks later would not expect it
        raise _failed(offer, "cannot say what it can do", error) from error
    return driver


def _declared(offer: Offer, others: Sequence[Any]) -> Sequence[Option] | None:
    try:
        found: Sequence[Option] | None = _manager().subset_hook_caller("pycontainer_driver_options", others)(
            name=offer.driver
        )
    except (ContainerError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise _failed(offer, "cannot declare its options", error) from error
    return found


def _failed(offer: Offer, what: str, error: BaseException) -> DriverUnavailableError:
    return _unavailable(offer, f"{offer.entry_point} {what}: {type(error).__name__}: {error}")


def _unavailable(offer: Offer, cause: str) -> DriverUnavailableError:
    remedy = f"repair or uninstall {offer.distribution}"
    return DriverUnavailableError(offer.driver, Probe(offer.driver, usable=False, cause=cause, remedy=remedy))


def _others(plugin: Any) -> list[Any]:
    return [other for other in _manager().get_plugins() if other is not plugin]


def _plugin(offer: Offer) -> Any:
    """The plugin of *offer*, imported and registered. Raises DriverUnavailableError."""
    manager = _manager()
    try:
        plugin = _load(offer.entry_point)
        if not manager.is_registered(plugin):
            try:
                manager.register(plugin, offer.entry_point)
                manager.check_pending()  # a misspelt hook would otherwise never be called, and nobody told
            except BaseException:
                if manager.is_registered(plugin):  # register() may have failed half-way
                    manager.unregister(plugin)
                raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit as well: what a module does when it is imported is not ours to obey
        raise _failed(offer, "cannot be loaded", error) from error
    return plugin


def _load(entry_point: str) -> Any:
    module, _, attributes = entry_point.partition("[")[0].strip().partition(":")  # extras, [x], say nothing here
    plugin: Any = importlib.import_module(module)
    for attribute in filter(None, attributes.split(".")):
        plugin = getattr(plugin, attribute)
    return plugin


# -- what is installed


class Offer(NamedTuple):
    """One entry of the group, as a distribution has it."""

    driver: str
    distribution: str
    entry_point: str


def _offer(name: str) -> Offer:
    found = offers()
    if name not in found:
        raise DriverNotFoundError(name, found)
    if len(found[name]) > 1:
        raise DriverConflictError(name, [offer.distribution for offer in found[name]])
    return found[name][0]


def offers() -> dict[str, list[Offer]]:
    """Everything in the group, by driver name; of a distribution that is on sys.path twice, the first counts."""
    quick = _scan_directories()
    found: dict[str, list[Offer]] = {}
    for offer in quick if quick is not None else _scan_with_importlib():
        found.setdefault(offer.driver, []).append(offer)
    return found


def _scan_with_importlib() -> list[Offer]:
    from importlib.metadata import entry_points

    return [
        Offer(point.name, f"{_normalized(point.dist.name)} {point.dist.version}" if point.dist else "?", point.value)
        for point in entry_points(group=GROUP)
    ]


def _scan_directories() -> list[Offer] | None:
    """What importlib.metadata would find, without importing it, which costs more than all the rest of a start.

    That module asks the finders of ``sys.meta_path``.  Of the standard ones
    only PathFinder answers: it lists each directory of ``sys.path`` and takes
    the ``*.dist-info`` and ``*.egg-info`` in it.  None when there is anything
    else to ask, such as another finder, an egg or a zip file.
    """
    if any(hasattr(finder, "find_distributions") and finder is not PathFinder for finder in sys.meta_path):
        return None
    found: list[Offer] = []
    seen = set()
    for directory in sys.path:
        if directory.rstrip("/").lower().endswith(".egg"):
            return None
        try:
            children = os.listdir(directory or ".")
        except NotADirectoryError:
            return None
        except OSError:
            continue
        for child in children:
            stem, _, suffix = child.rpartition(".")
            if suffix.lower() not in ("dist-info", "egg-info"):
                continue
            name, _, version = stem.partition("-")
            name = _normalized(name)
            if name in seen:
                continue
            seen.add(name)
            try:
                with open(os.path.join(directory, child, "entry_points.txt"), "rb") as file:
                    content = file.read()
            except OSError:
                continue
            if GROUP.encode() in content:
                text = content.decode(errors="replace")
                found += [Offer(driver, f"{name} {version}", value) for driver, value in _entries(text)]
    return found


def _entries(entry_points: str) -> Iterator[tuple[str, str]]:
    """(name, value) of the group's entries in the text of an entry_points.txt."""
    section = ""
    for line in map(str.strip, entry_points.splitlines()):
        if line.startswith("["):
            section = line.strip("[]")
        elif section == GROUP and line and not line.startswith("#"):
            name, _, value = line.partition("=")
            yield name.strip(), value.strip()


def _normalized(name: str) -> str:
    """A distribution's name as it is compared: :pep:`503`."""
    return re.sub(r"[-_.]+", "-", name).lower()
