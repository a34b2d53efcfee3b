"""The interpreter's image for a launcher, on a mount that nobody can write through."""

from __future__ import annotations

import ctypes
import os
import struct

from pycontainer_native import abi

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def read_only_image(path: str, *, recursive: bool = False) -> tuple[int, int]:
    """The interpreter on a read-only mount that is nowhere to be seen: descriptors of the file and of the mount.

    A payload can make the kernel execute the launcher's image by way of
    ``#!/proc/self/exe``, and reopen it for writing later (CVE-2019-5736).  On
    this mount writing is EROFS for any user; and once it runs, the launcher
    makes the mount noexec, so that it cannot be executed a second time.  The
    mount that holds it is cloned as a whole where possible, so that the
    loader's $ORIGIN keeps its meaning; *recursive* takes along what is
    mounted below, as has to be in a user namespace that did not mount it.
    """
    encoded = os.fsencode(path)
    if recursive or os.stat(path).st_dev == os.stat("/").st_dev:
        root = _clone(b"/", path, recursive)
        try:
            resolve = abi.RESOLVE_IN_ROOT | (0 if recursive else abi.RESOLVE_NO_XDEV)
            how = struct.pack("=QQQ", abi.O_PATH | abi.O_CLOEXEC, 0, resolve)
            image = call(path, "openat2", root, encoded, how, len(how))
            if os.path.samestat(os.fstat(image), os.stat(path)):
                return image, root
            os.close(image)
        except OSError:
            pass  # it is on another mount after all
        os.close(root)
    image = _clone(encoded, path, False)
    return image, os.dup(image)


def _clone(source: bytes, path: str, recursive: bool) -> int:
    depth = abi.AT_RECURSIVE if recursive else 0
    tree = call(path, "open_tree", abi.AT_FDCWD, source, abi.OPEN_TREE_CLONE | abi.OPEN_TREE_CLOEXEC | depth)
    attributes = struct.pack("=QQQQ", abi.MOUNT_ATTR_RDONLY, 0, 0, 0)
    call(path, "mount_setattr", tree, b"", abi.AT_EMPTY_PATH | depth, attributes, len(attributes))
    return tree


def call(path: str, name: str, *arguments: int | bytes) -> int:
    """A system call that is about *path*. Raises OSError."""
    ready = [ctypes.c_long(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in (abi.NR[name], *arguments)]
    result: int = libc.syscall(*ready)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result
