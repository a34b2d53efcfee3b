"""What a detached container has printed: the records of its log, and the files that they are in.

A log is a directory's files ``log``, which is being written, and ``log.1``,
``log.2`` and so on, which are older.  A line of them is a line, or a piece of
one, that the container printed, in the format of Kubernetes' container
runtimes (CRI)::

    2026-10-06T00:17:09.669794202Z stdout F a whole line
    2026-10-06T00:17:10.113242941Z stderr P a piece, that the next one goes on from

The time is UTC, ``F`` stands for the newline that followed, ``P`` for none.
The bytes are as they were, whatever they are.  A driver's monitor writes it,
each record in one write(2), and renames the files when ``log`` is full.
"""

from __future__ import annotations

import functools
import io
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator

from attrs import frozen

from pycontainer.records import open_regular

__all__ = ["LogRecord", "read_log"]

_CHUNK = 1 << 16
_NAME = re.compile(r"log(\.[0-9]{1,9})?")


@frozen
class LogRecord:
    """A line, or a piece of one, that a detached container has printed."""

    stream: str  #: ``stdout`` or ``stderr``; a terminal's output is stdout
    time: float  #: when it came, of time.time()
    data: bytes  #: as it was printed, with its newline, if that has come

    @classmethod
    def parse(cls, line: bytes) -> LogRecord:
        """The record in a *line* of a log, without the newline at its end. Raises ValueError."""
        stamp, stream, tag, data = line.split(b" ", 3)
        text = stamp.decode("ascii")
        when = _seconds(text[:19]) + float(text[19:-1] or 0)
        return cls(stream.decode("ascii"), when, data if tag == b"P" else data + b"\n")


@functools.lru_cache(64)  # many lines come within one second
def _seconds(text: str) -> int:
    from calendar import timegm  # it brings datetime along, which few who start a container need

    return timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))


def read_log(
    directory: str | os.PathLike[str], wait: Callable[[], bool] | None = None, tail: int | None = None
) -> Iterator[LogRecord]:
    """The records of the log in *directory*, the oldest first.

    *wait* is for following: at the end of what is there it is called, blocks
    until there may be more, and returns whether anybody still writes.  *tail*
    is how many of the lines that were there before come.  What was dropped
    while this was reading is missing.  Raises OSError.
    """
    reader = _Reader(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    try:
        there = reader.records()
        yield from there if tail is None else _last_lines(there, tail)
        while wait is not None:
            goes_on = wait()
            yield from reader.records()
            if not goes_on:
                return
    finally:
        reader.close()


def _last_lines(records: Iterator[LogRecord], count: int) -> Iterator[LogRecord]:
    kept: deque[LogRecord] = deque()
    lines = 0

    def drop() -> None:
        while not kept.popleft().data.endswith(b"\n"):
            pass

    for record in records:
        kept.append(record)
        lines += record.data.endswith(b"\n")
        if lines > count:
            drop()
            lines -= 1
    if kept and not kept[-1].data.endswith(b"\n") and lines == count:  # the piece at the end is a line as well
        drop() if lines else kept.clear()
    return iter(kept)


class _Reader:
    """Reads on through the files of a log while they are renamed; each is known by its inode."""

    def __init__(self, directory: int) -> None:
        self._directory = directory
        self._file: io.FileIO | None = None
        self._rest = b""

    def close(self) -> None:
        """Give back the descriptors."""
        os.close(self._directory)
        if self._file is not None:
            self._file.close()

    def records(self) -> Iterator[LogRecord]:
        """Everything up to the present end."""
        while True:
            yield from self._read()
            following = self._next()
            if following is None:
                return
            yield from self._read()  # what came between the last look and the renaming
            if self._file is not None:
                self._file.close()
            self._file, self._rest = following, b""

    def _read(self) -> Iterator[LogRecord]:
        while self._file is not None and (data := self._file.read(_CHUNK)):
            *lines, self._rest = (self._rest + data).split(b"\n")
            yield from map(LogRecord.parse, lines)

    def _next(self) -> io.FileIO | None:
        """The file after the present one; the oldest, if that is no longer there; None at the newest."""
        while True:
            found = self._look()
            inodes = [inode for _, inode in found]
            at = -1 if self._file is None else os.fstat(self._file.fileno()).st_ino
            index = inodes.index(at) + 1 if at in inodes else 0
            if index >= len(found):
                return None
            name, inode = found[index]
            try:
                file = io.FileIO(open_regular(name, dir_fd=self._directory))
            except FileNotFoundError:
                continue
            if os.fstat(file.fileno()).st_ino == inode:
                return file
            file.close()  # it has been renamed in between

    def _look(self) -> list[tuple[str, int]]:
        """(name, inode) of each file, the oldest first."""
        before: list[tuple[str, int]] = []
        while True:
            try:
                names = [name for name in os.listdir(self._directory) if _NAME.fullmatch(name)]
            except FileNotFoundError:  # the directory has been removed: what has been opened of it can be read on
                return []
            names.sort(key=lambda name: -int(name[4:] or 0))
            found = []
            for name in names:
                try:
                    found.append((name, os.stat(name, dir_fd=self._directory, follow_symlinks=False).st_ino))
                except FileNotFoundError:
                    break
            else:
                if found == before:
                    return found
                before = found
