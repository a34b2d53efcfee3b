"""What a driver has written down about a container, read as if anybody might have changed it since.

For drivers: no link is followed, no fifo waited for, no more read than anything
of theirs can have, and what is not as it was written is a ContainerError that
names the file, and the field if it is one.
"""

from __future__ import annotations

import errno
import math
import os
import stat
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from pycontainer.errors import ContainerError

__all__ = ["MAX_SIZE", "damaged", "fields", "is_integer", "is_number", "is_text", "load", "open_regular", "optional"]

#: A larger file is refused. Nobody writes one: a command is the arguments and variables of an execve(2), and a profile.
MAX_SIZE = 8 << 20

_DIGITS = 20  # of 2**64; a number of millions of them would take minutes


def damaged(path: str, problem: str) -> NoReturn:
    """Raise the ContainerError for the file *path*."""
    raise ContainerError(f"{path} is damaged: {problem}") from None


def open_regular(name: str, *, dir_fd: int | None = None) -> int:
    """Open the regular file *name* for reading; the caller's descriptor. Raises OSError: also for anything else."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    fd = os.open(name, flags, dir_fd=dir_fd)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "Not a regular file", name)
    return fd


def load(path: str, *, dir_fd: int | None = None) -> Any:
    """The JSON in the file *path*, which *dir_fd*, if given, is the directory of; None where there is no such file.

    Raises ContainerError.
    """
    import json

    try:
        fd = open_regular(path if dir_fd is None else os.path.basename(path), dir_fd=dir_fd)
    except FileNotFoundError:
        return None
    except OSError as error:
        damaged(path, "it is a link" if error.errno == errno.ELOOP else error.strerror or repr(error))
    try:
        size, parts = 0, []
        while part := os.read(fd, min(1 << 20, MAX_SIZE + 1 - size)):
            size += len(part)
            parts.append(part)
            if size > MAX_SIZE:
                damaged(path, f"it is larger than {MAX_SIZE} bytes")
    except OSError as error:
        damaged(path, error.strerror or repr(error))
    finally:
        os.close(fd)
    try:
        found = json.loads(b"".join(parts).decode(), parse_int=_integer, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        damaged(path, f"it is not JSON: {error}")
    if found is None:
        damaged(path, "it is null")
    return found


def _integer(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def fields(path: str, data: Any, checks: Mapping[str, Callable[[Any], bool]]) -> dict[str, Any]:
    """*data*, if that is an object in which every one of *checks* holds for the field of its name.

    A field that is not there is None.  Raises ContainerError.
    """
    if type(data) is not dict:
        damaged(path, f"it has to be an object, and is a {type(data).__name__}")
    for name, holds in checks.items():
        if not holds(data.get(name)):
            text = repr(data[name]) if name in data else "missing"
            damaged(path, f"the field {name!r} is {text if len(text) < 80 else text[:80] + '...'}")
    return data


def is_text(value: Any) -> bool:
    """Whether it is a str without NUL, as paths and names are."""
    return type(value) is str and "\0" not in value


def is_integer(value: Any) -> bool:
    """Whether it is an int that is at least 0 and fits the kernel's numbers."""
    return type(value) is int and 0 <= value < 2**63


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return type(value) in (int, float) and math.isfinite(value)


def optional(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """*holds*, or None."""
    return lambda value: value is None or holds(value)
