"""bpf(2), as far as device rules on cgroup2 need it; the launcher attaches programs, the caller replaces them.

linux/bpf.h has the fields of union bpf_attr.
"""

from __future__ import annotations

import ctypes
import os
import struct

from pycontainer_native import abi
from pycontainer_native.libc import syscall

PROG_LOAD, PROG_ATTACH, PROG_GET_FD_BY_ID, PROG_QUERY = 5, 8, 13, 16
PROG_TYPE_CGROUP_DEVICE, CGROUP_DEVICE = 15, 6
F_ALLOW_MULTI, F_REPLACE = 2, 4

#: How many programs of one cgroup are looked at: ours, and what its owner may have added.
MOST = 64


def load(code: bytes) -> int:
    """A descriptor of the device program *code*. Raises OSError."""
    instructions, licence = ctypes.create_string_buffer(code, len(code)), ctypes.c_char_p(b"Apache-2.0")
    where, text = ctypes.addressof(instructions), ctypes.cast(licence, ctypes.c_void_p).value or 0
    attributes = (PROG_TYPE_CGROUP_DEVICE, len(code) // 8, where, text, 0, 0, 0, 0, 0, b"pycontainer", 0, CGROUP_DEVICE)
    return _bpf(PROG_LOAD, struct.pack("=IIQQIIQII16sII", *attributes))


def attach(cgroup: int, program: int, replaced: int = -1) -> None:
    """Make *program* the rules of the cgroup2 directory *cgroup*, in place of the one *replaced*. Raises OSError.

    ALLOW_MULTI: the programs of the cgroups above and below hold as well, and
    what one of them denies is denied; without it a cgroup below could have
    none, with F_ALLOW_OVERRIDE it could do without ours.
    """
    flags = F_ALLOW_MULTI | (F_REPLACE if replaced >= 0 else 0)
    _bpf(PROG_ATTACH, struct.pack("=IIIII", cgroup, program, CGROUP_DEVICE, flags, max(replaced, 0)))


def attached(cgroup: int) -> list[int]:
    """The ids of *cgroup*'s own device programs. Raises OSError, EINVAL without CONFIG_CGROUP_BPF."""
    ids = (ctypes.c_uint32 * MOST)()
    attributes = ctypes.create_string_buffer(
        struct.pack("=IIIIQII", cgroup, CGROUP_DEVICE, 0, 0, ctypes.addressof(ids), MOST, 0)
    )
    _bpf(PROG_QUERY, attributes)
    (count,) = struct.unpack_from("=I", attributes, 24)
    return list(ids[:count])


def by_id(number: int) -> int:
    """A descriptor of the program with that id. Raises OSError."""
    return _bpf(PROG_GET_FD_BY_ID, struct.pack("=III", number, 0, 0))


def _bpf(command: int, attributes: bytes | ctypes.Array[ctypes.c_char]) -> int:
    result = int(syscall(abi.NR["bpf"], command, attributes, len(attributes)))
    if result == -1:
        raise OSError(ctypes.get_errno(), f"bpf: {os.strerror(ctypes.get_errno())}")
    return result
