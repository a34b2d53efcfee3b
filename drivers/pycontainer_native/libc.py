"""The C library, and system calls through it; the launcher and the caller load this module."""

from __future__ import annotations

import ctypes

#: PyDLL: nothing here waits, or nobody else has anything to do meanwhile.
libc = ctypes.PyDLL(None, use_errno=True)
syscall = libc.syscall
syscall.restype = ctypes.c_long
