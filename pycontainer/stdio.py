"""A container's three streams: what they may be, and its terminal."""

from __future__ import annotations

import abc
import errno
import fcntl
import io
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from pycontainer._exchange import Flow, pump
from pycontainer._fields import refuse
from pycontainer.driver import Stdio

if TYPE_CHECKING:
    from typing import Protocol, TypeAlias

    from pycontainer.driver import ContainerProcess

    class HasFileno(Protocol):
        def fileno(self) -> int: ...

    class Readable(Protocol):
        def read(self, size: int, /) -> bytes: ...

    class Writable(Protocol):
        def write(self, data: bytes, /) -> object: ...

    Input: TypeAlias = int | HasFileno | Readable | None
    Output: TypeAlias = int | HasFileno | Writable | None

T = TypeVar("T")

__all__ = ["DEVNULL", "PIPE", "STDOUT", "Pipes", "Terminal", "TtyTerminal"]

# The values of subprocess, so that its constants work here as well.
PIPE = -1  #: a pipe, its other end a file object of the Container
STDOUT = -2  #: for stderr: where stdout goes
DEVNULL = -3  #: /dev/null


# -- terminals ----------------------------------------------------------------------------------


class Terminal(abc.ABC):
    """Docker 0.9's ``execdriver.Terminal``."""

    @abc.abstractmethod
    def close(self) -> None:
        """Give back its descriptors."""

    @abc.abstractmethod
    def resize(self, height: int, width: int) -> None:
        """Set its size, in characters; the foreground process in the container gets SIGWINCH."""


class _Screen(io.FileIO):
    """What a terminal shows, as a file: it ends when nobody has the other side open, for which the kernel says EIO."""

    def read(self, size: int | None = -1, /) -> bytes | None:  # type: ignore[override]
        if size is None or size < 0:
            return self.readall()
        try:
            return super().read(size)
        except OSError as error:
            return _at_end(error, b"")

    def readall(self) -> bytes:
        found = b""
        while data := self.read(65536):
            found += data
        return found

    def readinto(self, buffer: Any, /) -> int | None:
        try:
            return super().readinto(buffer)
        except OSError as error:
            return _at_end(error, 0)


def _at_end(error: OSError, nothing: T) -> T:
    if error.errno != errno.EIO:
        raise error
    return nothing


class TtyTerminal(Terminal):
    """A terminal around *master*, the descriptor of a pseudo-terminal's master, which it owns (pty(7))."""

    def __init__(self, master: int) -> None:
        self._master = io.FileIO(master, "r+")

    def fileno(self) -> int:
        """The master. Raises ValueError when it is closed."""
        return self._master.fileno()

    def close(self) -> None:
        """Close the master: the foreground process in the container gets SIGHUP. Twice is no error."""
        self._master.close()

    def resize(self, height: int, width: int) -> None:
        """TIOCSWINSZ, ioctl_tty(2). Raises OSError; OverflowError or struct.error beyond 65535."""
        import struct
        import termios

        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def relay(self, stdin: int | None, stdout: int, process: ContainerProcess) -> None:
        """Connect the caller's *stdin* and *stdout* to this terminal until *process* ends or leaves it.

        Where *stdin* is a terminal it is in raw mode meanwhile, so that ^C
        is a key for the container, and in the main thread its SIGWINCH
        resizes this one.  Its end of file is passed on as ^D.  What *process*
        returned stays for its ``wait``.  Raises OSError.
        """
        flows = [Flow(self.fileno(), stdout)]
        if stdin is not None:
            flows.append(Flow(stdin, self.fileno(), inward=True, terminal=True))
        with self.follow(stdin):
            pump(flows, process)

    @contextmanager
    def follow(self, keyboard: int | None) -> Iterator[None]:
        """While inside, *keyboard*, if it is a terminal, hands every key on, and its size to this one."""
        if keyboard is None or not os.isatty(keyboard):
            yield
            return
        import signal
        import termios
        import threading
        import tty

        def resize(*_: object) -> None:
            size = os.get_terminal_size(keyboard)
            self.resize(size.lines, size.columns)

        before = termios.tcgetattr(keyboard)
        # A handler runs between two bytecodes of the main thread, and poll(2) goes on afterwards (PEP 475).
        main = threading.current_thread() is threading.main_thread()
        handler = signal.signal(signal.SIGWINCH, resize) if main else None
        try:
            resize()
            tty.setraw(keyboard)
            yield
        finally:
            termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
            if main:
                signal.signal(signal.SIGWINCH, signal.SIG_DFL if handler is None else handler)


# -- the three streams of one container ---------------------------------------------------------


class Streams:
    """One container's streams: its ends in :attr:`stdio`, ours in :attr:`stdin`, :attr:`stdout`, :attr:`stderr`.

    Each of the three is None (stdin: /dev/null, as docker without -i; else
    the caller's own descriptor), PIPE, DEVNULL, a descriptor, an object with
    fileno(), or one with only read() or write().  *stderr* may be STDOUT.
    With *tty* the container has one stream, its terminal: *stderr* is ignored.

    Raises OSError, ValueError, InvalidCommandError (a stream is a directory); then no descriptor is left open.
    """

    stdio: Stdio

    def __init__(self, stdin: Input = None, stdout: Output = None, stderr: Output = None, *, tty: bool = False) -> None:
        self.stdin: io.FileIO | None = None
        self.stdout: io.FileIO | None = None
        self.stderr: io.FileIO | None = None
        self.terminal: TtyTerminal | None = None
        self.flows: list[Flow] = []  #: what is to be moved without being asked
        self._theirs: list[int] = []
        source, target = _checked("stdin", stdin, "read"), _checked("stdout", stdout, "write")
        self._outside = (source, target) if tty else None
        other = target if tty or stderr == STDOUT else _checked("stderr", stderr, "write")
        try:
            if tty:
                null = self._null(os.O_RDWR)
                self.stdio = Stdio(null, null, null, size=_size_of(self._outside))
            else:
                to, out = self._input(source), self._output(target, 1, "stdout")
                # Nobody can tell two that lead to /dev/null from one.
                joined = stderr == STDOUT or (target == DEVNULL and other == DEVNULL)
                err = out if joined else self._output(other, 2, "stderr")
                for name, fd in (("stdin", to), ("stdout", out), ("stderr", err)):
                    if fd not in self._theirs:
                        refuse_ways_out(name, fd)
                self.stdio = Stdio(to, out, err)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Streams:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def started(self, process: ContainerProcess) -> None:
        """The container has its ends: close our copies, or its output would never end. Take its terminal from it."""
        self._release()
        if process.terminal is None:
            return
        assert self._outside is not None, "a terminal nobody asked for"
        stdin, stdout = self._outside
        master, process.terminal = process.terminal, None
        self.terminal = TtyTerminal(master)
        if stdin == PIPE:
            self.stdin = io.FileIO(os.dup(master), "w")
        elif stdin is not None and stdin != DEVNULL:
            source = stdin if isinstance(stdin, int) else stdin.read
            self.flows.append(Flow(source, master, inward=True, terminal=True))
        if stdout == PIPE:
            self.stdout = _Screen(os.dup(master), "r")
        else:
            target = 1 if stdout is None else stdout
            self.flows.append(
                Flow(master, target if isinstance(target, int) else target.write)
                if target != DEVNULL
                else Flow(master, lambda data: None)
            )

    def pump(self, process: ContainerProcess | None, deadline: float | None = None, more: Iterable[Flow] = ()) -> bool:
        """:func:`pump` for :attr:`flows` and *more*; the caller's terminal, if it is one of them, is in raw mode."""
        flows = [flow for flow in (*self.flows, *more) if not flow.done]
        if not flows:
            return True
        if self.terminal is None or self._outside is None or not isinstance(self._outside[0], int):
            return pump(flows, process, deadline)
        with self.terminal.follow(self._outside[0] if self._outside[0] >= 0 else None):
            return pump(flows, process, deadline)

    def close(self) -> None:
        """Close every descriptor that was opened here. Twice is no error."""
        self._release()
        for flow in self.flows:
            if not flow.done:
                flow.finish()
        for file in (self.stdin, self.stdout, self.stderr, self.terminal):
            if file is not None:
                file.close()

    def _release(self) -> None:
        while self._theirs:
            os.close(self._theirs.pop())

    def _null(self, mode: int) -> int:
        fd = os.open(os.devnull, mode | os.O_CLOEXEC)
        self._theirs.append(fd)
        return fd

    def _input(self, stream: int | Readable | None) -> int:
        if stream is None or stream == DEVNULL:
            return self._null(os.O_RDONLY)
        if isinstance(stream, int) and stream >= 0:
            return stream
        theirs, ours = os.pipe2(os.O_CLOEXEC)
        self._theirs.append(theirs)
        file = io.FileIO(ours, "w")
        if isinstance(stream, int):
            self.stdin = file
        else:
            self.flows.append(Flow(stream.read, ours, inward=True, at_end=file.close))
        return theirs

    def _output(self, stream: int | Writable | None, inherited: int, name: str) -> int:
        if stream is None:
            return inherited
        if stream == DEVNULL:
            return self._null(os.O_WRONLY)
        if isinstance(stream, int) and stream >= 0:
            return stream
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        self._theirs.append(theirs)
        file = io.FileIO(ours, "r")
        if isinstance(stream, int):
            setattr(self, name, file)
        else:
            self.flows.append(Flow(ours, stream.write, at_end=file.close))
        return theirs


def resolve(stream: Any) -> Any:
    """A stream as None, PIPE, DEVNULL, a descriptor or a file object that has none. Raises ValueError."""
    if stream is None or stream in (PIPE, DEVNULL):
        return stream
    if isinstance(stream, int):
        if stream < 0:
            raise ValueError(f"{stream} is not a descriptor, PIPE or DEVNULL, and only stderr may be STDOUT")
        return stream
    try:
        return stream.fileno()
    except (AttributeError, io.UnsupportedOperation):
        return stream


def _checked(name: str, stream: Any, verb: str) -> Any:
    """The stream *name* as :func:`resolve` has it. Raises InvalidCommandError if it cannot be that, ValueError."""
    stream = resolve(stream)
    if isinstance(stream, int) and stream >= 0:
        try:
            os.fstat(stream)
        except OSError as error:
            refuse(name, f"descriptor {stream} cannot be used: {error.strerror}")
    elif stream is not None and not isinstance(stream, int):
        if not callable(getattr(stream, verb, None)):
            refuse(name, f"{stream!r} is no descriptor, nor has it fileno() or {verb}()")
        if isinstance(stream, io.TextIOBase):
            refuse(name, f"{stream!r} is a text file, and what goes through is bytes: use io.BytesIO, or PIPE and text")
    return stream


def refuse_ways_out(name: str, fd: int) -> None:
    """Raise InvalidCommandError if *fd*, which is to be the stream *name*, is a directory, or open as a path alone.

    By ``/proc/self/fd/0/..`` a container would get from there to any file of the host.
    """
    try:
        is_directory = stat.S_ISDIR(os.fstat(fd).st_mode)
        is_path = not is_directory and bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH)
    except OSError as error:  # as of the caller's own stdout, where that is closed
        refuse(name, f"descriptor {fd} cannot be used: {error.strerror}")
    if is_directory or is_path:
        what = "a directory, which would lead the container" if is_directory else "open as a path (O_PATH), which leads"
        refuse(name, f"descriptor {fd} is {what} to the host's files")


def _size_of(streams: Iterable[Any] | None) -> tuple[int, int] | None:
    """(rows, columns) of the first of *streams* that is a terminal."""
    for fd in streams or ():
        if isinstance(fd, int) and fd >= 0 and os.isatty(fd):
            size = os.get_terminal_size(fd)
            return size.lines, size.columns
    return None


class Pipes:
    """Docker 0.9's ``execdriver.Pipes``: the three streams that a driver's ``run`` gets.

    Each is None, a descriptor, an object with fileno(), or a file object
    without one, like io.BytesIO; *stdin* None is /dev/null, as docker without
    -i, *stdout* and *stderr* None are the caller's own.  With a terminal
    *stdin* and *stdout* are connected to it.  Raises ValueError.
    """

    def __init__(self, stdin: Input = None, stdout: Output = None, stderr: Output = None) -> None:
        if PIPE in (stdin, stdout, stderr):
            raise ValueError("nobody could read from a PIPE that run() makes: give an object with read() or write()")
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr

    def attach(self, tty: bool = False) -> Streams:
        """The streams for one run: a context manager that closes whatever was opened for it."""
        return Streams(self.stdin, self.stdout, self.stderr, tty=tty)
