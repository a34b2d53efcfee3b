"""Bytes on their way between a container and its caller.

Nothing here starts a thread: whoever waits for the container moves the bytes
meanwhile, in :func:`pump`.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import fcntl
import io
import math
import os
import select
import time
from collections.abc import Callable, Iterable
from typing import IO, TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pycontainer.driver import ContainerProcess

_CHUNK = 65536  # what a pipe holds, unless somebody changed that
_END_OF_FILE_KEY = b"\x04"  # ^D, VEOF of a new terminal


class Capture:
    """What came out of a stream: all of it, or its first *limit* bytes."""

    def __init__(self, limit: int | None = None) -> None:
        self.data = bytearray()
        self.truncated = False
        self._limit = limit

    def write(self, data: bytes) -> None:
        """Keep *data*, as far as the limit lets it."""
        if self._limit is not None and len(self.data) + len(data) > self._limit:
            data = data[: self._limit - len(self.data)]
            self.truncated = True
        self.data += data


class Flow:
    """Bytes on their way, at most 64 KiB at a time, from *source* to *target*: descriptors or methods, read or write.

    *inward* is the direction into the container.  *terminal*: the target is a
    terminal, where an end of file is a key and for whose input nobody waits.
    *at_end* is called once when all is through.
    """

    def __init__(
        self,
        source: int | Callable[[int], bytes],
        target: int | Callable[[bytes], object],
        *,
        inward: bool = False,
        terminal: bool = False,
        at_end: Callable[[], object] | None = None,
    ) -> None:
        self.inward = inward
        self.awaited = not terminal
        self.done = False
        self._source = source
        self._target = target
        self._terminal = terminal
        self._at_end = at_end
        self._pending = memoryview(b"")
        self._eof = False
        self._at_line_start = True
        self._left: int | None = None  # how much may still come, once the container has ended

    @property
    def ours(self) -> int:
        """The descriptor that leads to the container, which is the caller's alone and may be non-blocking."""
        fd = self._target if self.inward else self._source
        assert isinstance(fd, int)
        return fd

    def wants(self) -> tuple[int, int] | None:
        """The descriptor and the event of poll(2) to wait for; None when all is through."""
        if not self._pending and not isinstance(self._source, int) and not self.done:
            self._read()
        if self.done:
            return None
        fd, event = (self._target, select.POLLOUT) if self._pending else (self._source, select.POLLIN)
        assert isinstance(fd, int)
        return fd, event

    def advance(self) -> None:
        """What was waited for is there."""
        if self._pending:
            self._write()
        else:
            self._read()

    def finish(self) -> None:
        """Nothing more will go through."""
        self._pending = memoryview(b"")
        self.done = True
        at_end, self._at_end = self._at_end, None
        if at_end is not None:
            at_end()

    def container_ended(self) -> None:
        """Nothing reads any more; and what was written is in the pipe, so no more than that belongs to us.

        Somebody outside may have been handed the pipe: neither his silence nor his flood may keep us here.
        """
        if self.inward:
            self.finish()
            return
        try:
            self._left = fcntl.fcntl(self.ours, fcntl.F_GETPIPE_SZ)
        except OSError:
            self._left = 2 * _CHUNK  # a terminal: TTYB_DEFAULT_MEM_LIMIT, and one line

    def _read(self) -> None:
        source = self._source
        try:
            data = os.read(source, _CHUNK) if isinstance(source, int) else source(_CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            # EIO from a terminal's master: nobody has its other side open.
            if error.errno != errno.EIO or self.inward:
                raise
            data = b""
        if self._left is not None:
            self._left -= len(data)
        if not data or (self._left is not None and self._left <= 0):
            self._eof = True
        if data:
            self._at_line_start = data[-1] == 10
        elif self._terminal:
            # The first ^D in a line only sends what is there of it (termios(3), VEOF).
            data = _END_OF_FILE_KEY if self._at_line_start else _END_OF_FILE_KEY * 2
        if isinstance(self._target, int):
            self._pending = memoryview(data)
        elif data:
            self._target(data)
        if self._eof and not self._pending:
            self.finish()

    def _write(self) -> None:
        assert isinstance(self._target, int)
        try:
            # To the caller's own descriptors, which may block, only as much as poll(2) promises.
            count = os.write(self._target, self._pending if self.inward else self._pending[: select.PIPE_BUF])
        except BlockingIOError:
            return
        except OSError as error:
            # A payload may close its stdin whenever it likes.
            if not self.inward or error.errno not in (errno.EPIPE, errno.EIO):
                raise
            self.finish()
            return
        self._pending = self._pending[count:]
        if self._eof and not self._pending:
            self.finish()


def pump(flows: Iterable[Flow], process: ContainerProcess | None, deadline: float | None = None) -> bool:
    """Move bytes until all are through, or *process* has ended and its pipes are empty.

    *process* None has ended already.  False when *deadline*, in seconds of
    time.monotonic(), came first; called again it goes on from there.
    """
    flows = [flow for flow in flows if not flow.done]
    for flow in flows:
        os.set_blocking(flow.ours, False)
        if process is None:
            flow.container_ended()
    try:
        while True:
            wanted = [(flow, *what) for flow in flows if (what := flow.wants()) is not None]
            if not any(flow.awaited for flow, _, _ in wanted):
                return True
            events: dict[int, int] = {}
            for _, fd, event in wanted:
                events[fd] = events.get(fd, 0) | event
            poll = select.poll()
            for fd, event in events.items():
                poll.register(fd, event)
            if process is not None:
                poll.register(process.fileno(), select.POLLIN)
            draining = process is None and any(event == select.POLLIN for _, _, event in wanted)
            ready = dict(poll.poll(0 if draining else None if process is None else milliseconds(deadline)))
            for flow, fd, event in wanted:
                if ready.get(fd, 0) & ~(select.POLLIN | select.POLLOUT) | ready.get(fd, 0) & event:
                    flow.advance()
                elif draining and event == select.POLLIN:
                    flow.finish()
            if process is None:
                continue
            if process.fileno() in ready and process.poll() is not None:
                process = None
                for flow in flows:
                    if not flow.done:
                        flow.container_ended()
            elif deadline is not None and time.monotonic() >= deadline:
                return False
    finally:
        for flow in flows:
            if not flow.done:
                os.set_blocking(flow.ours, True)


def milliseconds(deadline: float | None) -> int | None:
    """The time until *deadline* as poll(2) takes it: rounded up, at most what an int holds, 0 once it is over."""
    if deadline is None:
        return None
    return math.ceil(min(max(0.0, deadline - time.monotonic()) * 1000, 2**31 - 1))


class Exchange:
    """One ``communicate()``: an input sent, two outputs kept. It may take several calls of :func:`pump`.

    *stdin*, *stdout* and *stderr* are file objects, or None; each is closed
    when it is through.  *limit* is how many bytes of each output are kept,
    *text* what they are decoded by.  Raises ValueError for an input that
    cannot be sent.
    """

    def __init__(
        self,
        stdin: IO[Any] | None,
        stdout: IO[Any] | None,
        stderr: IO[Any] | None,
        input: bytes | None,
        limit: int | None,
        terminal: bool,
        text: TextMode | None,
    ) -> None:
        self.flows: list[Flow] = []
        self._text = text
        self._outputs = [(file, Capture(limit)) if file is not None else None for file in (stdout, stderr)]
        if stdin is not None and not stdin.closed:
            source = io.BytesIO(input or b"")
            with contextlib.suppress(BrokenPipeError):
                stdin.flush()
            self.flows.append(
                Flow(source.read, stdin.fileno(), inward=True, terminal=terminal, at_end=lambda: _close(stdin))
            )
        elif input is not None:
            raise ValueError("an input needs stdin=PIPE")
        for file, capture in filter(None, self._outputs):
            if not file.closed:
                self.flows.append(Flow(file.fileno(), capture.write, at_end=file.close))

    @property
    def truncated(self) -> bool:
        """Whether anything was dropped."""
        return any(capture.truncated for _, capture in filter(None, self._outputs))

    def result(self, partial: bool = False) -> tuple[Any, Any]:
        """(stdout, stderr), None for one that was not captured. *partial*: there is more to come."""
        first, second = (
            None if output is None else decoded(output[1], self._text, partial) for output in self._outputs
        )
        return first, second


class TextMode(NamedTuple):
    """What text files are read and written by."""

    encoding: str
    errors: str


def text_mode(text: bool | None, encoding: str | None, errors: str | None) -> TextMode | None:
    """What subprocess's *text*, *encoding* and *errors* stand for; None: bytes. Raises LookupError, ValueError."""
    if not (text or encoding or errors):
        return None
    # A text file knows the locale's encoding, and refuses one that does not exist.
    return TextMode(io.TextIOWrapper(io.BytesIO(), encoding, errors).encoding, errors or "strict")


def encoded(input: str | bytes | None, text: TextMode | None) -> bytes | None:
    """The bytes that *input* stands for. Raises TypeError for a str without a text mode, and for what is neither."""
    if isinstance(input, str):
        if text is None:
            raise TypeError("the input must be bytes: this container was not opened in text mode")
        return input.encode(text.encoding, text.errors)
    return input if input is None or isinstance(input, bytes) else bytes(memoryview(input))


def decoded(capture: Capture, text: TextMode | None, partial: bool = False) -> str | bytes:
    """What was captured, as text if there is a *text* mode. *partial*: there was more to come."""
    if text is None:
        return bytes(capture.data)
    # Where it was cut, a character may be cut in two: that is nobody's mistake.
    decoder = codecs.getincrementaldecoder(text.encoding)("replace" if partial else text.errors)
    found = decoder.decode(capture.data, final=not (partial or capture.truncated))
    return found.replace("\r\n", "\n").replace("\r", "\n")


def _close(stdin: IO[Any]) -> None:
    with contextlib.suppress(BrokenPipeError):  # what a text file had buffered
        stdin.close()
