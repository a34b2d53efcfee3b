"""The caller's side of the launcher: starting it, and what it is told before the first request."""

from __future__ import annotations

import contextlib
import errno
import marshal
import os
from typing import TYPE_CHECKING

from pycontainer.errors import SetupError
from pycontainer.service import Service, interpreter
from pycontainer_native.enter import ENTERED, MAPPED, MAPPED_WITHOUT_GROUPS
from pycontainer_native.image import read_only_image

if TYPE_CHECKING:
    from pycontainer_native.userns import UserNamespace

_SERVE = "import sys; sys.path.append(sys.argv.pop()); from pycontainer_native.launcher import main; main()"
_ENTER = "import sys; sys.path.append(sys.argv[-1]); from pycontainer_native.enter import main; main()"


class LauncherClient(Service):
    """One launcher process; with *namespace* it enters a user namespace first, and has these ids there.

    A pidfd of this process is its descriptor 4, its image's mount its 5.
    Raises SetupError when it cannot enter the namespace,
    DriverUnavailableError when there is no interpreter, OSError.
    """

    limits: tuple[tuple[int, int], ...] = ()  #: the resource limits that it has of this process

    def __init__(self, namespace: UserNamespace | None = None) -> None:
        self.token = os.urandom(8).hex()
        self._start(inside=namespace is not None)
        try:
            if namespace is not None:
                self._enter(namespace)
            self.control.sendall(self.token.encode())
        except BaseException:
            self.close()
            raise

    def _start(self, *, inside: bool) -> None:
        """*inside* a user namespace of its own it makes its image's mount itself: here the right to is missing."""
        real = interpreter("native")
        home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        python = [real, "-I", "-S", "-c"]
        with contextlib.ExitStack() as stack:
            handed = [os.pidfd_open(os.getpid())]
            stack.callback(os.close, handed[0])
            if inside:
                super().__init__([*python, _ENTER, _SERVE, real, home], handed)
                return
            for fd in read_only_image(real):
                stack.callback(os.close, fd)
                handed.append(fd)
            image = handed.pop(1)
            super().__init__([*python, _SERVE, home], handed, f"/proc/self/fd/{image}")

    def _enter(self, namespace: UserNamespace) -> None:
        """Write the launcher's id maps, once it is in a user namespace. Raises SetupError."""
        from pycontainer_native.userns import write_maps

        said = self.control.recv(256)
        if said != ENTERED:
            step, number = marshal.loads(said) if said else ("start the launcher", errno.EPIPE)
            raise SetupError(step, number)
        try:
            write_maps(self.pid, namespace)
        except OSError as error:
            raise SetupError(f"write the id maps ({error.strerror or error})", error.errno or errno.EPERM) from None
        self.control.sendall(MAPPED if namespace.setgroups else MAPPED_WITHOUT_GROUPS)
