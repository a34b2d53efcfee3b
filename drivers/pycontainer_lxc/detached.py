"""A container that outlives whoever asked for it: its guard has no other, and writes down what happens.

Everything is in the container's own directory, which is the guard's descriptor
4 (:mod:`pycontainer_lxc.record` reads it): ``started`` once it runs, ``ended``
once nothing of it is left, and its log in the format of :mod:`pycontainer.logs`.
"""

from __future__ import annotations

import os
from time import gmtime, strftime, time, time_ns

from pycontainer_lxc.monitor import Monitor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: The descriptor of the container's directory.
DIRECTORY_FD = 4

STREAMS = ("stdout", "stderr")

#: How much is read at once; a line that is longer becomes several records.
_CHUNK = 1 << 16


class Log:
    """The files ``log``, ``log.1``... in *directory*, at most *files* of about *size* bytes each."""

    def __init__(self, directory: int, size: int, files: int) -> None:
        self.directory = directory
        self.size = size
        self.files = files
        self.begin()

    def begin(self) -> None:
        """Begin a file."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_EXCL | os.O_CLOEXEC
        self.file = os.open("log", flags, 0o600, dir_fd=self.directory)
        self.written = 0

    def write(self, stream: str, data: bytes) -> None:
        """*data* of *stream* as records, one write(2) each. Raises OSError."""
        now = time_ns()
        head = f"{strftime('%Y-%m-%dT%H:%M:%S', gmtime(now // 10**9))}.{now % 10**9:09}Z {stream} ".encode()
        *lines, piece = data.split(b"\n")
        records = [head + b"F " + line + b"\n" for line in lines]
        if piece:
            records.append(head + b"P " + piece + b"\n")
        for record in records:
            if self.written and self.written + len(record) > self.size:
                self.rotate()
            self.written += os.write(self.file, record)

    def rotate(self) -> None:
        """Begin another file; the oldest one goes."""
        os.close(self.file)
        names = ["log", *(f"log.{number}" for number in range(1, self.files))]
        for at in reversed(range(len(names) - 1)):
            try:
                os.rename(names[at], names[at + 1], src_dir_fd=self.directory, dst_dir_fd=self.directory)
            except FileNotFoundError:
                pass
        if self.files == 1:
            os.unlink("log", dir_fd=self.directory)
        self.begin()


def as_json(value: object) -> str:
    """*value* in JSON: the module of that name would cost every guard the time to import it."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{as_json(name)}:{as_json(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(as_json, value)) + "]"
    if isinstance(value, str):
        return '"' + "".join(c if c.isalnum() and c.isascii() else _escape(c) for c in value) + '"'
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)


def _escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


def write_whole(name: str, content: object) -> None:
    """*content* as JSON in the file *name* of the container's directory: all of it, or none."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    with open(os.open(f".{name}", flags, 0o600, dir_fd=DIRECTORY_FD), "w") as file:
        file.write(as_json(content))
    os.rename(f".{name}", name, src_dir_fd=DIRECTORY_FD, dst_dir_fd=DIRECTORY_FD)


class Detached(Monitor):
    """The one container of a guard that is its alone: nobody's end ends it once it runs."""

    def begin(self, fds: list[int]) -> None:
        """*fds* are its stdio, and where its output comes out: of one terminal, or of two pipes."""
        self.log_file = Log(DIRECTORY_FD, *self.request["log"])
        self.sources: dict[int, str] = {}
        for fd, stream in zip(fds[3:], STREAMS):  # noqa: B905 - a terminal is one
            source = os.dup(fd)
            os.set_blocking(source, False)
            self.sources[source] = stream
            self.guard.watch(source, lambda source=source: self.on_output(source))  # type: ignore[misc]
        self.guard.let_go()
        super().begin(fds[:3])

    def on_output(self, source: int) -> None:
        """The container has printed something."""
        while source in self.sources:
            try:
                data = os.read(source, _CHUNK)
            except BlockingIOError:
                return
            except OSError:  # EIO of a terminal: nobody has its other side open
                data = b""
            if not data:
                self.drop(source)
                return
            try:
                self.log_file.write(self.sources[source], data)
            except OSError:
                pass  # no space left: the container goes on

    def drop(self, source: int) -> None:
        del self.sources[source]
        self.guard.forget(source)
        os.close(source)

    def on_status(self) -> None:
        if self.told:
            self.guard.forget(self.status.fileno())
        else:
            super().on_status()  # whoever wanted it has gone before it ran: nobody will ever know of it

    def tell(self, *message: Any, fd: int = -1) -> None:
        if message[0] == "started":
            write_whole("started", {"pid": message[1], "monitor": self.pid})
        elif message[0] in ("exited", "lost"):
            for source in list(self.sources):
                self.on_output(source)
            self.guard.last = (message, time())
        super().tell(*message, fd=fd)

    def close(self) -> None:
        for source in list(self.sources):
            self.drop(source)
        super().close()
