"""The checks of a Command's fields: plain functions ``check(field, value)`` that raise InvalidCommandError.

They compare exact types (``True`` is no number, a subclass of str may say one
thing when checked and another when used) and whole values (``$`` would let a
final newline pass).
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from pycontainer.errors import InvalidCommandError

T = TypeVar("T")

#: The smallest memory limit or tmpfs that can hold anything.
PAGE = 4096
#: A uid or gid: 2**32 - 1 means "leave it" to setresuid(2) (CVE-2024-40635).
MAX_ID = 2**32 - 2
_NUMBER = re.compile("[0-9]+")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.@-]{0,254}\$?")
_SIZE = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,6})?) ?(?:([kmgtp])i?)?b?", re.IGNORECASE)
_CPUSET = re.compile(r"[0-9]{1,5}(-[0-9]{1,5})?(,[0-9]{1,5}(-[0-9]{1,5})?)*")


class FrozenMapping(Mapping[str, Any]):
    """An immutable copy of a mapping. Equal, hashed and pickled by its content, which is immutable as well."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, Any] = {}) -> None:
        self._items = dict(items)

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)

    def __reduce__(self) -> tuple[Any, ...]:
        return (FrozenMapping, (self._items,))


def refuse(field: str, problem: str) -> NoReturn:
    """Raise InvalidCommandError."""
    raise InvalidCommandError(field, problem)


def store(instance: object, name: str, value: object) -> None:
    """Store a normalised value while a frozen *instance* is being made and is not yet anybody's."""
    object.__setattr__(instance, name, value)


def as_tuple(value: Any) -> Any:
    """A list as a tuple. Everything else stays, for the checks to refuse: tuple() would split a str."""
    return tuple(value) if type(value) is list else value


def as_texts(value: Sequence[str]) -> tuple[str, ...]:
    """:func:`as_tuple` as the converter of a field."""
    return as_tuple(value)  # type: ignore[no-any-return]


def as_texts_or_none(value: Sequence[str] | None) -> tuple[str, ...] | None:
    """:func:`as_texts` where None means the default."""
    return as_tuple(value)  # type: ignore[no-any-return]


def _wrong_type(field: str, value: object, wanted: str) -> NoReturn:
    refuse(field, f"must be {wanted}, not {type(value).__name__}")


# -- types


def boolean(field: str, value: object) -> None:
    """True or False."""
    if value is not True and value is not False:
        _wrong_type(field, value, "a bool")


def integer(field: str, value: object, low: int, high: int) -> None:
    """An int from *low* to *high*."""
    if type(value) is not int:
        _wrong_type(field, value, "an int")
    if not low <= value <= high:
        refuse(field, f"{value} is not in {low} to {high}")


def instance(field: str, value: object, cls: type, what: str = "") -> None:
    """A *cls*, which is called *what*."""
    if type(value) is not cls:
        _wrong_type(field, value, what or f"a {cls.__name__}")


def instances(field: str, values: Iterable[object], cls: type) -> None:
    """Only *cls*."""
    for value in values:
        instance(field, value, cls)


def items(field: str, value: object) -> tuple[Any, ...]:
    """A tuple."""
    if type(value) is not tuple:
        _wrong_type(field, value, "a tuple")
    return value


def several(field: str, values: Iterable[T]) -> tuple[T, ...]:
    """Any iterable but a lone str, as a tuple."""
    if type(values) is tuple:
        return values
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        _wrong_type(field, values, "a list")
    return tuple(values)


# -- text


def text(field: str, value: object) -> str:
    """A str that execve(2) and the file system can take: no NUL, and every character has bytes."""
    if type(value) is not str:
        _wrong_type(field, value, "a str")
    if "\0" in value:
        refuse(field, "contains a NUL")
    if not value.isascii():
        try:
            value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            refuse(field, f"{value!r} contains a lone surrogate")
    return value


def texts(field: str, values: Any) -> None:
    """A tuple of :func:`text`."""
    for value in items(field, values):
        text(field, value)


def line(field: str, value: object) -> str:
    """:func:`text` that can stand in a line format: mountinfo, lxc.conf, passwd (CVE-2022-4318)."""
    value = text(field, value)
    if "\n" in value or "\r" in value:
        refuse(field, f"{value!r} contains a line break")
    return value


def matching(field: str, value: object, pattern: re.Pattern[str]) -> str:
    """A str that *pattern* matches as a whole."""
    if type(value) is not str:
        _wrong_type(field, value, "a str")
    if not pattern.fullmatch(value):
        refuse(field, f"{value!r} does not match {pattern.pattern}")
    return value


def environment(field: str, value: Mapping[str, str]) -> FrozenMapping:
    """An immutable copy (CVE-2020-14370: two containers shared one) whose names can be told from the values."""
    if not isinstance(value, Mapping):
        _wrong_type(field, value, "a mapping")
    copy = FrozenMapping(value)
    for name, content in copy.items():
        line(field, name)
        if not name or "=" in name:
            refuse(field, f"{name!r} is no name: it is empty or contains '='")
        text(f"{field}[{name}]", content)
    return copy


# -- paths


def path(field: str, value: object) -> str:
    """An absolute path in normal form. ``..`` is refused: what it means depends on links."""
    value = line(field, value)
    if not value.startswith("/"):
        refuse(field, f"{value!r} is not absolute")
    if "/." in value or "//" in value or value.endswith("/"):
        parts = [part for part in value.split("/") if part not in ("", ".")]
        if ".." in parts:
            refuse(field, f"{value!r} contains '..'")
        return "/" + "/".join(parts)
    return value


def _is_magic(value: str) -> bool:
    """Whether it is in /proc, whose links lead out of any tree (CVE-2024-21626), or in /dev/fd, which is there too."""
    return (value + "/").startswith(("/proc/", "/dev/fd/", "/dev/stdin/", "/dev/stdout/", "/dev/stderr/"))


def host_path(field: str, value: object) -> str:
    """:func:`path` of the host, not one of /proc's magic links."""
    value = path(field, value)
    if _is_magic(value):
        refuse(field, f"{value} is in /proc or /dev/fd, whose links lead anywhere")
    return value


#: The working directory is resolved in the container, but the same links are there (CVE-2024-21626).
directory = host_path


def fspath(field: str, value: object) -> str:
    """A str or os.PathLike as a str."""
    try:
        return os.fsdecode(value)  # type: ignore[arg-type]
    except TypeError:
        _wrong_type(field, value, "a path")


def argv(field: str, value: object) -> list[str]:
    """A non-empty sequence of str, bytes or paths as a list of str."""
    if type(value) is not list:
        if isinstance(value, (str, bytes, os.PathLike)):
            what = 'for a shell write ["sh", "-c", ...], else ["program", "argument"]'
            refuse(field, f"{value!r} is not a sequence: {what}")
        if not isinstance(value, Sequence):
            _wrong_type(field, value, "a sequence of str")
    if not value:
        refuse(field, "the argv is empty")
    return [item if type(item) is str else fspath(field, item) for item in value]


# -- numbers


def size(field: str, value: int | str | None) -> int | None:
    """An int as it is, ``"64m"`` as bytes (docker's binary units)."""
    if type(value) is not str:
        return value  # type: ignore[return-value]  # a wrong type is for integer() to refuse
    if value == "-1":
        return -1
    found = _SIZE.fullmatch(value)
    if found is None:
        refuse(field, f"{value!r} is not a size: bytes, or with a unit like 512k, 64m, 1.5g")
    number, unit = found.groups()
    scale = 1024 ** " kmgtp".index((unit or " ").lower())
    return int(float(number) * scale) if "." in number else int(number) * scale


def processors(field: str, value: object) -> int:
    """A number of processors as a quota, in us of a period of 100000."""
    if type(value) is not int and type(value) is not float:
        _wrong_type(field, value, "a number")
    if not 0.01 <= value <= 2**24:  # also false for a nan
        refuse(field, f"{value} is not a number of processors, which is at least 0.01")
    return round(value * 100000)


def cpuset(field: str, value: object) -> None:
    """A list of cpuset(7)."""
    for item in matching(field, value, _CPUSET).split(","):
        first, dash, last = item.partition("-")
        if dash and int(first) > int(last):
            refuse(field, f"{item!r} is a range that ends before it begins")


def address(field: str, value: object) -> int:
    """An IP address; returns its number of bits."""
    import ipaddress

    try:
        return ipaddress.ip_address(text(field, value)).max_prefixlen
    except ValueError as error:
        if isinstance(error, InvalidCommandError):
            raise
        refuse(field, f"{value!r} is not an IP address")


# -- users and capabilities


def user_or_group(field: str, value: object) -> int | str:
    """One half of ``user:group``: digits are a number always, anything else is a name."""
    if type(value) is not str:
        _wrong_type(field, value, "a str")
    if _NUMBER.fullmatch(value):
        if len(value) > 10 or int(value) > MAX_ID:
            refuse(field, f"{value} is not in 0 to {MAX_ID}")
        return int(value)
    if not _NAME.fullmatch(value):
        refuse(field, f"{value!r} is neither a number nor a name")
    return value


def user(field: str, value: object) -> tuple[int | str, int | str | None]:
    """``user`` or ``user:group`` as a pair."""
    if type(value) is not str:
        _wrong_type(field, value, "a str")
    name, colon, group = value.partition(":")
    return user_or_group(field, name), user_or_group(field, group) if colon else None


def number_as_text(value: Any) -> Any:
    """An id given as an int as a str; True and False stay, to be refused."""
    return str(value) if type(value) is int else value


def unknown_keyword(name: str, known: Iterable[str]) -> str:
    """What is wrong with the keyword *name*, and which of the *known* ones may be meant."""
    import difflib

    near = difflib.get_close_matches(name, known, 1, 0.5)
    return f"there is no keyword {name!r}" + (f": did you mean {near[0]!r}?" if near else "")


@functools.cache
def capability_numbers() -> dict[str, int]:
    """Every capability by its name, ``CAP_CHOWN`` and so on: python-prctl's table."""
    import prctl

    # The table is built from the C header's names: it has CAP_LAST_CAP and the three flags among the
    # capabilities, and lacks the 40th, which is newer than the library (capabilities(7): Linux 5.9).
    known = {
        name: number
        for name, number in vars(prctl).items()
        if name.startswith("CAP_")
        and name not in ("CAP_LAST_CAP", "CAP_EFFECTIVE", "CAP_PERMITTED", "CAP_INHERITABLE")
        and not name.startswith("CAP_UNKNOWN")
    }
    known.setdefault("CAP_CHECKPOINT_RESTORE", 40)
    return known


def held_capabilities() -> int:
    """What this process has, and may hand on to what it executes, as a bit set."""
    with open("/proc/self/status", "rb") as status:
        sets = [int(line.split()[1], 16) for line in status if line.startswith((b"CapPrm:", b"CapBnd:"))]
    return sets[0] & sets[1]


@functools.cache
def all_capabilities() -> tuple[str, ...]:
    """The names of those that the running kernel has: what ALL and privileged mean."""
    try:
        with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
            last = int(file.read())
    except OSError:
        last = 63
    return tuple(sorted(name for name, number in capability_numbers().items() if number <= last))


def capability(field: str, value: object) -> str:
    """A capability's name in its full form; ``ALL`` where the field is cap_add or cap_drop."""
    if type(value) is not str:
        _wrong_type(field, value, "a str")
    name = value.upper()
    if name == "ALL" and field.startswith("cap_"):
        return name
    name = name if name.startswith("CAP_") else "CAP_" + name
    if name not in capability_numbers():
        refuse(field, f"{value!r} is no capability of capabilities(7)")
    return name
