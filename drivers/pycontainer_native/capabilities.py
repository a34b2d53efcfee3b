"""Capability sets as the kernel takes them (capabilities(7)), by python-prctl's table of names."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from pycontainer.process import capability_numbers
from pycontainer_native import abi


def mask(names: Iterable[str]) -> int:
    """The bit set of *names*."""
    table = capability_numbers()
    bits = 0
    for name in names:
        bits |= 1 << table[name]
    return bits


def capset_data(effective: int, permitted: int, inheritable: int) -> tuple[bytes, bytes]:
    """capset(2)'s header and data, version 3: two 32-bit words a set."""
    words = []
    for shift in (0, 32):
        words += [(bits >> shift) & 0xFFFFFFFF for bits in (effective, permitted, inheritable)]
    return struct.pack("=Ii", abi.LINUX_CAPABILITY_VERSION_3, 0), struct.pack("=6I", *words)
