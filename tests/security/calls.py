"""System calls made from inside a container, by number."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest

_CALLS = """
import ctypes, json, os
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(number, *arguments):
    ctypes.set_errno(0)
    if libc.syscall(*(ctypes.c_long(argument) for argument in (number, *arguments))) == 0 and number == 56:
        os._exit(0)  # what clone has made
    return ctypes.get_errno()
print(json.dumps([call(*arguments) for arguments in {calls}]))
"""


def errnos(python: Callable[..., Any], calls: Sequence[tuple[int, ...]], **keywords: Any) -> list[int]:
    """The errno of each of *calls*, which are (number on x86_64, arguments...); 0 for success."""
    if os.uname().machine != "x86_64":
        pytest.skip("the numbers are x86_64's")
    done = python(_CALLS.format(calls=calls), **keywords)
    assert done.returncode == 0, done.stderr
    found: list[int] = json.loads(done.stdout)
    return found
