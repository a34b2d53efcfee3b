"""What an ordinary user's launcher does first: it enters a user namespace, and executes itself again inside.

There it is root, over a mount namespace of its own, and from then on does
what root's does.  The caller writes the id maps meanwhile, for which the
process has to be dumpable (user_namespaces(7)); the second execution, from an
image that cannot be written to, is the launcher that no longer is.
"""

from __future__ import annotations

import ctypes
import marshal
import os
import sys

from pycontainer_native import abi
from pycontainer_native.image import libc, read_only_image

CONTROL_FD, IMAGE_FD = 3, 5

#: What is said on the control socket: it is in its namespace, and may go on there with or without setgroups(2).
ENTERED, MAPPED, MAPPED_WITHOUT_GROUPS = b"entered", b"mapped", b"mapped without groups"


def main() -> None:
    """Descriptors 3 and 4 are :func:`pycontainer_native.launcher.main`'s; the arguments are the code to run, and how.

    They are: the interpreter's path, its directory of modules, the launcher's code.
    """
    serve, path, home = sys.argv[1:]
    step = "enter a user namespace"
    try:
        _check(libc.unshare(abi.CLONE_NEWUSER | abi.CLONE_NEWNS))
        os.write(CONTROL_FD, ENTERED)
        answer = os.read(CONTROL_FD, 64)
        if answer not in (MAPPED, MAPPED_WITHOUT_GROUPS):
            os._exit(0)  # the caller has said to its own caller why
        step = "become root of the user namespace"
        if answer == MAPPED:
            os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        os.dup2(0, IMAGE_FD)  # so that what is opened now gets other numbers
        step = "make a read-only copy of the interpreter's mount"
        image, mount = read_only_image(path, recursive=True)
        os.dup2(mount, IMAGE_FD)
        step = "execute the interpreter"
        os.environ.pop("LC_CTYPE", None)  # this interpreter's own, for want of a locale (PEP 538)
        os.execve(f"/proc/self/fd/{image}", [path, "-I", "-S", "-c", serve, home], os.environ)
    except OSError as error:
        os.write(CONTROL_FD, marshal.dumps((step, error.errno or 0)))
        os._exit(1)


def _check(result: int) -> None:
    if result == -1:
        raise OSError(ctypes.get_errno(), "")
