"""Makes the n-th system call of a module fail. A copy of this file goes into the launcher's package.

What is counted are the calls by way of the module's ``os`` and ``socket`` and by the methods of its sockets; a close is
not, for a descriptor is closed whatever close(2) says.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

OS = frozenset(
    ("open", "mkdir", "write", "read", "pipe", "dup", "pidfd_open", "memfd_create", "posix_spawn", "pread", "rmdir")
)
METHODS = ("sendmsg", "sendall", "recvmsg", "recv", "send")


class Fault:
    """Waits for its turn, and fails once."""

    def __init__(self) -> None:
        self.left = -1
        self.hit: str | None = None  #: the name of the call that was made to fail

    def arm(self, number: int) -> None:
        """Let call *number* from now on, counted from 0, fail."""
        self.left, self.hit = number, None

    def is_due(self, name: str) -> bool:
        """Count one call."""
        self.left -= 1
        if self.left == -1 and self.hit is None:
            self.hit = name
            return True
        return False

    def check(self, name: str) -> None:
        """Count one call; raise when it is the one."""
        if self.is_due(name):
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


class Counting:
    """A module whose calls are counted."""

    def __init__(self, module: ModuleType, names: frozenset[str], fault: Fault, **replaced: Any) -> None:
        self._module, self._names, self._fault, self._replaced = module, names, fault, replaced

    def __getattr__(self, name: str) -> Any:
        if name in self._replaced:
            return self._replaced[name]
        value = getattr(self._module, name)
        if name not in self._names:
            return value

        def counted(*arguments: Any, **keywords: Any) -> Any:
            self._fault.check(name)
            return value(*arguments, **keywords)

        return counted


def counting_sockets(module: Any, fault: Fault) -> Counting:
    """``socket`` or ``_socket`` with sockets whose methods are counted."""

    def counted(name: str) -> Callable[..., Any]:
        method = getattr(module.socket, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            fault.check(name)
            return method(*arguments, **keywords)

        return call

    faulty = type("socket", (module.socket,), {name: counted(name) for name in METHODS if hasattr(module.socket, name)})

    def socketpair(family: int, kind: int) -> Any:
        fault.check("socketpair")
        return tuple(faulty(family, kind, 0, end.detach()) for end in module.socketpair(family, kind))

    return Counting(module, frozenset({"send_fds"}), fault, socket=faulty, socketpair=socketpair)


def install(launcher: dict[str, Any], control: str) -> None:
    """In the launcher's own process: count from each request on. *control* is a file with the number."""
    from pycontainer_native import container

    class Telling(Fault):
        def is_due(self, name: str) -> bool:
            due = super().is_due(name)
            if due:
                with open(f"{control}.hit", "w") as file:
                    frame = sys._getframe(3) if name != "clone3" else sys._getframe(2)
                    file.write(f"{name} in {frame.f_code.co_name}")
            return due

    fault = Telling()
    clone = container.syscall
    for module in (launcher, vars(container)):
        module["os"] = Counting(os, OS, fault)
        module["socket"] = counting_sockets(module["socket"], fault)

    def syscall(*arguments: Any) -> Any:
        if fault.is_due("clone3"):
            ctypes.set_errno(errno.ENOMEM)
            return -1
        return clone(*arguments)

    vars(container)["syscall"] = syscall
    on_request = launcher["Launcher"].on_request

    last = [""]

    def armed(self: Any, connection: Any) -> bool:
        with open(control) as file:
            text = file.read()
        if text != last[0]:  # else it is the second try of the same request
            last[0] = text
            fault.arm(int(text))
        return bool(on_request(self, connection))

    launcher["Launcher"].on_request = armed
