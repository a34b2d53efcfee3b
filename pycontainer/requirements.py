"""Choosing a driver by what it must be able to do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pycontainer.driver import ExecutionDriver, Feature, Probe
from pycontainer.errors import (
    DriverConflictError,
    DriverNotFoundError,
    DriverUnavailableError,
    RequirementError,
)
from pycontainer.plugins import environment_names, get_driver, look

__all__ = ["ORDER", "as_features", "choose_driver", "shortcomings"]

#: Which drivers are considered, and in which order, when nobody has named one: those of this distribution, the
#: default first.  All of them isolate.  Another driver must be named, for it may isolate less, or not at all.
ORDER = ("native", "lxc")


def choose_driver(
    require: Iterable[Feature | str], among: str | ExecutionDriver | Sequence[str] | None = None
) -> ExecutionDriver:
    """The first usable driver that has every feature of *require*, each a Feature or its name.

    *among* is a driver's name, a driver, or several names in the order of
    preference.  None is the one that PYCONTAINER_DRIVER names (several, with
    commas between them), and without that those of :data:`ORDER` that are
    installed.  A driver that is not among these is never taken.

    Raises RequirementError, which says for each of them why not, ValueError
    for a feature that does not exist, DriverNotFoundError for a name that was
    given and is not installed.
    """
    features = as_features(require)
    if isinstance(among, ExecutionDriver):
        names: Sequence[str | ExecutionDriver] = (among,)
    elif among is not None:
        try:
            names = (among,) if isinstance(among, str) else tuple(among)
        except TypeError:
            raise TypeError(f"a driver is chosen by its name, by several, or by an object, not by {among!r}") from None
    else:
        names = environment_names() or ORDER
    reasons: dict[str, tuple[str, ...]] = {}
    for name in names:
        try:
            driver = get_driver(name)
            lacking = shortcomings(driver, features, name if isinstance(name, str) else None)
        except DriverNotFoundError:
            if names is not ORDER:
                raise
            continue
        except DriverUnavailableError as error:
            lacking = [_because(error.probe)]
        except DriverConflictError as error:
            lacking = [str(error)]
        if not lacking:
            return driver
        reasons[name if isinstance(name, str) else name.name] = tuple(lacking)
    raise RequirementError(tuple(feature.value for feature in features), reasons)


def as_features(names: Iterable[Feature | str]) -> tuple[Feature, ...]:
    """The features of these names, in the order of :class:`Feature`. Raises ValueError for an unknown one."""
    if isinstance(names, str):
        raise TypeError(f"features are given as a set of them, not as a str: {{{names!r}}}")
    wanted = set()
    for name in names:
        try:
            wanted.add(name if isinstance(name, Feature) else Feature(name.lower().replace("_", "-")))
        except ValueError:
            known = ", ".join(feature.value for feature in Feature)
            raise ValueError(f"there is no feature {name!r} (there are {known})") from None
    return tuple(feature for feature in Feature if feature in wanted)


def shortcomings(driver: ExecutionDriver, features: Iterable[Feature], name: str | None = None) -> list[str]:
    """Why *driver* cannot serve someone who needs *features*, a sentence each; empty when it can."""
    probe = look(name or driver.name, driver)
    if not probe.usable:
        return [_because(probe)]
    found = []
    declared = driver.features()
    for feature in features:
        seen = probe.features.get(feature)
        if feature not in declared:
            found.append(f"it does not have {feature.value}")
        elif seen is not None and not seen.usable:
            remedy = f" (remedy: {seen.remedy})" if seen.remedy else ""
            found.append(f"{feature.value} cannot be used here: {seen.cause or 'unknown cause'}{remedy}")
    return found


def _because(probe: Probe) -> str:
    remedy = f" (remedy: {probe.remedy})" if probe.remedy else ""
    return f"it cannot be used here: {probe.cause or 'unknown cause'}{remedy}"
