"""A driver's own options: declared once, given as keywords, environment variables or flags."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

if TYPE_CHECKING:
    import argparse

__all__ = ["Option", "add_flags", "given_flags", "resolve", "variable"]

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"the name of an option is lower-case letters, digits and _: not {name!r}")
    return name


@frozen
class Option:
    """One option of a driver, as its hook ``pycontainer_driver_options`` declares it.

    For a driver ``x`` and an option ``state_dir`` the keyword is
    ``get_driver("x", state_dir=...)``, the variable ``PYCONTAINER_X_STATE_DIR``
    and the flag ``--x-state-dir``.  *type* is str, int, float, bool or a
    function that makes the value of a str and raises ValueError.
    """

    name: str = field(converter=_checked_name)
    help: str = ""
    type: Callable[[str], Any] = str
    default: Any = None

    def convert(self, value: object) -> Any:
        """*value* as the driver gets it. Raises ValueError, TypeError."""
        if self.type is bool:
            if isinstance(value, bool):
                return value
            if isinstance(value, str) and value.lower() in (*_TRUE, *_FALSE):
                return value.lower() in _TRUE
            raise ValueError(f"{value!r} is neither true nor false")
        if isinstance(value, str):
            return self.type(value)
        if isinstance(self.type, type):
            if type(value) is not self.type and not (self.type is float and type(value) is int):
                raise TypeError(f"{value!r} is not a {self.type.__name__}")
            return self.type(value)  # type: ignore[call-arg]
        return value  # a function makes values of str; what is none, the caller has made


def variable(driver: str, option: str) -> str:
    """The environment variable of an option."""
    return f"PYCONTAINER_{driver}_{option}".upper().replace("-", "_")


def resolve(
    driver: str, declared: Iterable[Option], given: Mapping[str, object], environment: Mapping[str, str] = os.environ
) -> dict[str, object]:
    """Every declared option's value: as given, from the environment, or its default.

    Raises TypeError for an option that is not declared, and TypeError or
    ValueError, with the option's name, for a value that is wrong.
    """
    options = {option.name: option for option in declared}
    for name in given:
        if name not in options:
            import difflib

            near = difflib.get_close_matches(name, options, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(options) or 'none'}"
            raise TypeError(f"driver {driver!r} has no option {name!r}: {hint}")
    values: dict[str, object] = {}
    for name, option in options.items():
        where = variable(driver, name)
        if name in given:
            value, where = given[name], f"option {name!r} of driver {driver!r}"
        elif where in environment:
            value = environment[where]
        else:
            values[name] = option.default
            continue
        try:
            values[name] = option.convert(value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{where}: {error}") from None
    return values


def add_flags(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Teach *parser* the flags of those drivers whose flags are among *words*, and import no other driver.

    With ``--help`` those of every driver that can be asked.
    """
    unknown = [word for word in words if re.match(r"--[A-Za-z]\w*-", word)]
    everything = "--help" in words
    if not (unknown or everything):
        return
    from pycontainer.errors import ContainerError
    from pycontainer.plugins import declared_options, installed_names

    for name in installed_names():
        prefix = f"--{name}-"
        named = any(word.startswith(prefix) for word in unknown)
        if not (named or everything):
            continue
        try:
            declared = declared_options(name) or ()
        except ContainerError:
            if named:
                raise
            continue
        group = parser.add_argument_group(f"options of the driver {name}")
        for option in declared:
            flag = prefix + option.name.replace("_", "-")
            group.add_argument(flag, dest=f"option {name} {option.name}", metavar="VALUE", help=option.help)


def given_flags(options: argparse.Namespace, driver: str) -> dict[str, object]:
    """The options of *driver* that were given as flags. Raises ValueError for those of another one."""
    found: dict[str, object] = {}
    for key, value in vars(options).items():
        word, _, rest = key.partition(" ")
        if word == "option" and rest and value is not None:
            name, _, option = rest.partition(" ")
            if name != driver:
                raise ValueError(f"--{name}-{option.replace('_', '-')} is for the driver {name}, not for {driver}")
            found[option] = value
    return found
