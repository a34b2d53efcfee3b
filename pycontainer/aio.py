"""The asyncio twins of ``run`` and ``Container``: nothing blocks the event loop, and a container has no thread.

``run`` is :func:`pycontainer.run` to be awaited; ``create_container_exec`` has
the shape of :func:`asyncio.create_subprocess_exec`.  A start takes a few
milliseconds, in a worker thread; from then on the loop watches one descriptor
of the container and its pipes.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import time
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from pycontainer._api import (
    CompletedContainer,
    Container,
    Plumbing,
    checked_interval,
    checked_timeout,
    completed,
    plumb,
)
from pycontainer._exchange import Capture, decoded, encoded
from pycontainer.command import Command
from pycontainer.driver import ExitStatus, State
from pycontainer.errors import ContainerLostError, NotRunningError, SetupError, WaitTimeoutError, add_note

if TYPE_CHECKING:
    import psutil  # type: ignore[import-untyped,unused-ignore]
    from typing_extensions import Self, Unpack

    from pycontainer._api import CommandKeywords, LimitKeywords
    from pycontainer.driver import ExecutionDriver, Feature
    from pycontainer.receipt import Receipt
    from pycontainer.stats import Stats
    from pycontainer.stdio import Input, Output, TtyTerminal

__all__ = ["AsyncContainer", "create_container_exec", "run"]

P = ParamSpec("P")
T = TypeVar("T")

_CHUNK = 65536


class AsyncContainer:
    """A running container, watched by the event loop: :class:`asyncio.subprocess.Process`, with a container around it.

    Made by :func:`create_container_exec`.  *stdin* is a StreamWriter, *stdout*
    and *stderr* are StreamReaders, or None where no PIPE was asked for.  What
    is not described here is as in :class:`pycontainer.Container`; what may
    block there is awaited here, and done in a worker thread.

    As an asynchronous context manager it is killed, if it still runs, when
    the block is left, and so it is, with a ResourceWarning, when the object
    is no longer used.
    """

    def __init__(self, box: Container) -> None:
        self._box = box
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[ExitStatus] = self._loop.create_future()
        self._transports: list[asyncio.ReadTransport | asyncio.WriteTransport] = []
        self.stdin: asyncio.StreamWriter | None = None
        self.stdout: asyncio.StreamReader | None = None
        self.stderr: asyncio.StreamReader | None = None
        process = box._life.process
        assert process is not None
        # A copy, for whoever notices the end first, as a verb in a worker thread, closes the process's own.
        self._fd = os.dup(process.fileno())
        # The loop holds what it calls, and must not keep alive what nobody else uses.
        self._loop.add_reader(self._fd, _look_at, weakref.ref(self))

    async def _connect(self) -> None:
        """Hand the pipes to the loop."""
        box = self._box
        if box.stdin is not None:
            transport, protocol = await self._loop.connect_write_pipe(asyncio.streams.FlowControlMixin, box.stdin)
            self._transports.append(transport)
            self.stdin = asyncio.StreamWriter(transport, protocol, None, self._loop)
        self.stdout, self.stderr = await self._reader(box.stdout), await self._reader(box.stderr)

    async def _reader(self, file: Any) -> asyncio.StreamReader | None:
        if file is None:
            return None
        loop = self._loop
        reader = asyncio.StreamReader(loop=loop)
        transport, _ = await loop.connect_read_pipe(lambda: _OutputProtocol(reader, loop=loop), file)
        self._transports.append(transport)
        return reader

    def _look(self) -> None:
        """The container's descriptor is readable: has it ended?"""
        error: ContainerLostError | SetupError | None = None
        try:
            if self._box.poll() is None:
                return
        except (ContainerLostError, SetupError) as lost:
            error = lost
        self._forget()
        if self._ended.done():
            return
        if error is not None:
            self._ended.set_exception(error)
            self._ended.exception()  # nobody may be waiting, and that is no mistake
        else:
            assert self._box.status is not None
            self._ended.set_result(self._box.status)

    def _forget(self) -> None:
        """Watch it no more."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            _unwatch(self._loop, fd)

    def __del__(self) -> None:
        fd, loop = getattr(self, "_fd", -1), getattr(self, "_loop", None)
        if fd < 0 or loop is None:
            return
        try:
            here = asyncio.get_running_loop() is loop
        except RuntimeError:
            here = not loop.is_running()
        if here or loop.is_closed():
            _unwatch(loop, fd)
        else:  # the collector of another thread
            loop.call_soon_threadsafe(_unwatch, loop, fd)
        # The rest is the Container's finalizer.

    # -- what it is ----------------------------------------------------------

    @property
    def args(self) -> list[str]:
        """Its argv."""
        return self._box.args

    @property
    def id(self) -> str:
        """Its name, or the random one that it got."""
        return self._box.id

    @property
    def command(self) -> Command:
        """The Command that it was made from."""
        return self._box.command

    @property
    def pid(self) -> int | None:
        """The host pid of its main process."""
        return self._box.pid

    @property
    def status(self) -> ExitStatus | None:
        """How it ended; None before."""
        return self._box.status

    @property
    def returncode(self) -> int | None:
        """The exit code, or -N when signal N ended it; None before."""
        return self._box.returncode

    @property
    def state(self) -> State:
        """Where it is in its life, looked up now."""
        return self._box.state

    @property
    def terminal(self) -> TtyTerminal | None:
        """Its terminal, with ``tty=True``."""
        return self._box.terminal

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}: returncode: {self.returncode} args: {self.args!r}>"

    # -- its end -------------------------------------------------------------

    def poll(self) -> int | None:
        """:attr:`returncode`, looked up now; None while it runs. Raises ContainerLostError."""
        return self._box.poll()

    async def wait(self) -> int:
        """Wait until it has ended and all of it is removed; its :attr:`returncode`. Raises ContainerLostError."""
        return (await asyncio.shield(self._ended)).returncode

    async def communicate(self, input: bytes | None = None) -> tuple[bytes | None, bytes | None]:
        """Send *input* and read until the end: (stdout, stderr), None for one that is no PIPE.

        Raises ContainerLostError; TypeError for an input that is not bytes,
        ValueError for one where stdin is no PIPE, or is closed.
        """
        data = encoded(input, None)
        if data is not None and (self.stdin is None or self.stdin.is_closing()):
            raise ValueError("an input needs stdin=PIPE")
        captures = self._captures(None)
        await asyncio.gather(*self._exchange(data, captures), self.wait())
        stdout, stderr = (None if capture is None else bytes(capture.data) for capture in captures)
        return stdout, stderr

    def _captures(self, limit: int | None) -> list[Capture | None]:
        return [None if reader is None else Capture(limit) for reader in (self.stdout, self.stderr)]

    def _exchange(self, input: bytes | None, captures: Sequence[Capture | None]) -> list[Coroutine[Any, Any, None]]:
        """What is to be awaited for the bytes to go through."""
        todo = [] if self.stdin is None else [_feed(self.stdin, input or b"")]
        for reader, capture in zip((self.stdout, self.stderr), captures, strict=True):
            if reader is not None and capture is not None:
                todo.append(_drain(reader, capture))
        return todo

    def send_signal(self, signal: int) -> None:
        """Send *signal* to its main process; nothing once that has ended."""
        self._box.send_signal(signal)

    def terminate(self) -> None:
        """SIGTERM to its main process. As PID 1 it ignores that without a handler, or ``init=True``."""
        self._box.terminate()

    def kill(self) -> None:
        """SIGKILL to everything in it."""
        self._box.kill()

    async def stop(self, timeout: float | None = 10) -> int:
        """As docker stop: SIGTERM, after *timeout* seconds SIGKILL to everything; its :attr:`returncode`."""
        checked_timeout(timeout)
        self.terminate()
        await asyncio.wait([self._ended], timeout=timeout)
        if not self._ended.done():
            self.kill()
        return await self.wait()

    async def close(self) -> None:
        """Kill it if it still runs, wait for its end, and close its pipes. Twice is no error.

        When it is cancelled, all that is done before it goes on.
        """
        try:
            if not self._ended.done():
                self.kill()
                await _whatever_comes(self._ended)
        finally:
            for transport in self._transports:
                if transport.is_closing():
                    continue
                if isinstance(transport, asyncio.WriteTransport):
                    transport.abort()  # for what was not sent yet there is no reader
                else:
                    transport.close()
            self._box.close()
            self._forget()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            await self.close()
        except Exception as failure:
            if error is None:
                raise
            add_note(error, f"closing the container failed as well: {type(failure).__name__}: {failure}")

    # -- what goes on inside -------------------------------------------------

    async def _in_thread(self, verb: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T:
        return await self._loop.run_in_executor(None, lambda: verb(*arguments, **keywords))

    async def receipt(self) -> Receipt:
        """As :meth:`pycontainer.Container.receipt`."""
        return await self._in_thread(self._box.receipt)

    async def pids(self) -> list[int]:
        """Host pids of every process in it. Raises NotRunningError."""
        return await self._in_thread(self._box.pids)

    async def processes(self) -> list[psutil.Process]:
        """Every process in it, as psutil has them. Raises NotRunningError."""
        return await self._in_thread(self._box.processes)

    async def pause(self) -> None:
        """Freeze every process in it. Feature.PAUSE; raises NotRunningError."""
        await self._in_thread(self._box.pause)

    async def unpause(self) -> None:
        """Let it go on after :meth:`pause`. Raises NotRunningError; ContainerError when it is not paused."""
        await self._in_thread(self._box.unpause)

    async def update(self, **limits: Unpack[LimitKeywords]) -> None:
        """Other limits from now on: :meth:`pycontainer.Container.update`."""
        await self._in_thread(self._box.update, **limits)

    async def stats(self) -> Stats:
        """What it has used until now. Feature.STATS; raises NotRunningError."""
        return await self._in_thread(self._box.stats)

    def iter_stats(self, interval: float = 1.0) -> AsyncIterator[Stats]:
        """:meth:`stats` now and then every *interval* seconds, until it has ended: for ``async for``.

        Raises what :meth:`stats` does, but NotRunningError for the first one alone.
        """
        return self._each_stats(checked_interval(interval))

    async def _each_stats(self, interval: float) -> AsyncIterator[Stats]:
        stats = await self.stats()
        due = stats.time
        while True:
            yield stats
            due = max(due + interval, time.monotonic())
            await asyncio.wait([self._ended], timeout=max(0.0, due - time.monotonic()))
            if self._ended.done():
                return
            try:
                stats = await self.stats()
            except NotRunningError:
                return

    def resize(self, height: int, width: int) -> None:
        """Set its terminal's size, in characters. Raises ContainerError without ``tty=True``."""
        self._box.resize(height, width)

    async def exec(
        self,
        argv: Sequence[str | bytes | os.PathLike[str]],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        user: str | int | None = None,
        groups: Iterable[str | int] | None = None,
        tty: bool = False,
        input: str | bytes | None = None,
        stdin: Input = None,
        stdout: Output = None,
        stderr: Output = None,
        capture_output: bool = False,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        timeout: float | None = None,
        check: bool = False,
        output_limit: int | str | None = None,
    ) -> CompletedContainer:
        """Run a further process inside and wait for its end: :meth:`pycontainer.Container.exec`, to be awaited.

        When it is cancelled, the process is dead before it goes on.
        """
        began = time.monotonic()
        checked_timeout(timeout)
        plumbing = plumb(input, stdin, stdout, stderr, capture_output, text, encoding, errors, output_limit)
        further = self._box._further(argv, _raw(plumbing), env, cwd, user, groups, tty)
        return await _run(lambda: further, plumbing, timeout, began, check)


async def create_container_exec(
    *argv: str | bytes | os.PathLike[str],
    stdin: Input = None,
    stdout: Output = None,
    stderr: Output = None,
    driver: str | ExecutionDriver | Sequence[str] | None = None,
    require: Iterable[Feature | str] | None = None,
    **fields: Unpack[CommandKeywords],
) -> AsyncContainer:
    """Start *argv* in a container; the streams and *fields* are those of :class:`pycontainer.Container`.

    A stream that is neither None, PIPE, DEVNULL nor has a descriptor is a
    ValueError: nobody would move its bytes.  When it is cancelled, what it has
    started is dead before it goes on.  Raises what Container raises.
    """
    command = Command.of(argv, **fields)  # pyright: ignore[reportArgumentType]  # a TypedDict may hold more
    plumbing = Plumbing(stdin, stdout, stderr)
    return (await _start(lambda: Container._of_command(command, driver, require, plumbing), None, 0.0))[0]


async def _start(
    make: Callable[[], Container], timeout: float | None, began: float, look: bool = False
) -> tuple[AsyncContainer, Receipt | None]:
    """The Container that *make* gives, started in a worker thread; with *look* what held before its first instruction.

    It is given up when *timeout* seconds have passed since *began*, with
    WaitTimeoutError, and when this is cancelled: then it is dead before that
    goes on.
    """
    loop = asyncio.get_running_loop()
    made: list[Container] = []
    cancelled = False

    def begin() -> Receipt | None:
        box = make()
        made.append(box)
        if cancelled:
            box._life.give_up()
        try:
            return box._start_within(timeout, began, look)
        except BaseException:
            box.close()
            raise

    start = loop.run_in_executor(None, begin)
    try:
        receipt = await asyncio.shield(start)
    except asyncio.CancelledError:
        cancelled = True  # before the look at what is made, as begin() has it the other way round
        if made and not made[0]._life.give_up():
            made[0].kill()
        with contextlib.suppress(asyncio.CancelledError):  # which is raised below
            await _whatever_comes(start)
        if start.exception() is None:
            with contextlib.suppress(asyncio.CancelledError):
                await _whatever_comes(loop.run_in_executor(None, made[0].close))
        raise
    box = made.pop()  # the worker thread, which may hold begin() a moment longer, must not keep it alive
    if box._streams is not None and box._streams.flows:
        await _whatever_comes(loop.run_in_executor(None, box.close))
        raise ValueError("asyncio moves bytes only between descriptors: use PIPE, or a stream that has a fileno()")
    try:
        container = AsyncContainer(box)
    except BaseException:  # as of EMFILE
        await _whatever_comes(loop.run_in_executor(None, box.close))
        raise
    try:
        await container._connect()
    except BaseException:
        await container.close()
        raise
    return container, receipt


async def run(
    argv: Sequence[str | bytes | os.PathLike[str]],
    *,
    input: str | bytes | None = None,
    stdin: Input = None,
    stdout: Output = None,
    stderr: Output = None,
    capture_output: bool = False,
    text: bool | None = None,
    encoding: str | None = None,
    errors: str | None = None,
    timeout: float | None = None,
    check: bool = False,
    driver: str | ExecutionDriver | Sequence[str] | None = None,
    require: Iterable[Feature | str] | None = None,
    output_limit: int | str | None = None,
    receipt: bool = False,
    **fields: Unpack[CommandKeywords],
) -> CompletedContainer:
    """:func:`pycontainer.run`, to be awaited. When it is cancelled, the container is dead before it goes on.

    A start that goes on then is given up.
    """
    began = time.monotonic()
    checked_timeout(timeout)
    command = Command.of(argv, **fields)  # pyright: ignore[reportArgumentType]  # a TypedDict may hold more
    plumbing = plumb(input, stdin, stdout, stderr, capture_output, text, encoding, errors, output_limit)

    def make() -> Container:
        return Container._of_command(command, driver, require, _raw(plumbing))

    return await _run(make, plumbing, timeout, began, check, receipt)


async def _run(
    make: Callable[[], Container],
    plumbing: Plumbing,
    timeout: float | None,
    began: float,
    check: bool,
    look: bool = False,
) -> CompletedContainer:
    """Start what *make* gives, and see it through to its end."""
    container, receipt = await _start(make, timeout, began, look)
    async with container:
        captures = container._captures(plumbing.limit)
        everything = asyncio.gather(*container._exchange(plumbing.input, captures), container.wait())
        try:
            left = None if timeout is None else max(0.0, began + timeout - time.monotonic())
            await asyncio.wait([everything], timeout=left)
            late = not everything.done()
            if late:
                container._box._life.end()
            await everything
        finally:
            if not everything.cancel() and not everything.cancelled():
                everything.exception()  # or asyncio complains that nobody has looked, where this task was cancelled
    out, err = (None if capture is None else decoded(capture, plumbing.text, late) for capture in captures)
    if late:
        assert timeout is not None
        raise WaitTimeoutError(container.id, timeout, out, err)
    truncated = any(capture.truncated for capture in captures if capture is not None)
    return completed(container._box, out, err, truncated, check, receipt)


def _raw(plumbing: Plumbing) -> Plumbing:
    """For a container whose bytes the loop moves: they are decoded, and cut, when all are there."""
    return plumbing._replace(text=None, limit=None)


async def _whatever_comes(future: asyncio.Future[Any]) -> None:
    """Wait until *future* is done, however often this task is cancelled, and be cancelled afterwards."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


class _OutputProtocol(asyncio.StreamReaderProtocol):
    """What a container prints: a terminal's end is EIO from its master, for nobody has its other side open."""

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(None if isinstance(exc, OSError) and exc.errno == errno.EIO else exc)


def _look_at(container: weakref.ref[AsyncContainer]) -> None:
    found = container()
    if found is not None:
        found._look()


def _unwatch(loop: asyncio.AbstractEventLoop, fd: int) -> None:
    if not loop.is_closed():
        loop.remove_reader(fd)
    os.close(fd)


async def _feed(stdin: asyncio.StreamWriter, data: bytes) -> None:
    """Send *data* and close. A payload may close its stdin whenever it likes."""
    try:
        stdin.write(data)
        await stdin.drain()
    except (BrokenPipeError, ConnectionResetError):
        pass
    finally:
        stdin.close()


async def _drain(reader: asyncio.StreamReader, capture: Capture) -> None:
    """Read to the end."""
    while data := await reader.read(_CHUNK):
        capture.write(data)
