"""What becomes a payload's stdin, stdout and stderr, and what is at their other ends."""

from __future__ import annotations

import fcntl
import os
import struct
import termios
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pycontainer.driver import Stdio

__all__ = ["Borrowed", "Pipes", "Streams", "Terminal"]


class Streams:
    """Descriptors that are closed when this is left, but for those that were taken."""

    stdio: tuple[int, int, int]  #: the payload's
    sources: tuple[int, ...] = ()  #: where its output comes out
    name: str = ""  #: of its terminal

    def __init__(self) -> None:
        self.owned: set[int] = set()

    def __enter__(self) -> Streams:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self.owned:
            os.close(fd)

    def take(self) -> int | None:
        """The master of the terminal, the caller's from here on; None if there is no terminal."""
        if not self.name:
            return None
        self.owned.remove(self.sources[0])
        return self.sources[0]


class Borrowed(Streams):
    """The caller's own."""

    def __init__(self, stdio: Stdio) -> None:
        super().__init__()
        self.stdio = stdio.stdin, stdio.stdout, stdio.stderr


class Pipes(Streams):
    """No input, and two pipes."""

    def __init__(self) -> None:
        super().__init__()
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        output, errors = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
        self.owned |= {null, *output, *errors}
        self.stdio = null, output[1], errors[1]
        self.sources = output[0], errors[0]


class Terminal(Streams):
    """A new pseudo-terminal of *uid*'s, *size* being its (rows, columns)."""

    def __init__(self, uid: int, size: tuple[int, int] | None = None) -> None:
        super().__init__()
        master, slave = os.openpty()
        self.owned |= {master, slave}
        self.stdio, self.sources = (slave, slave, slave), (master,)
        self.name = os.ttyname(slave)
        os.fchown(slave, uid, -1)
        os.fchmod(slave, 0o620)  # as grantpt(3) leaves it
        if size is not None:
            fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("=4H", *size, 0, 0))
