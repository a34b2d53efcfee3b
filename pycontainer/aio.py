"""The asyncio twins of ``run`` and ``Container``: nothing blocks the event loop, and a container has no thread.

``run`` is :func:`pycontainer.run` to be awaited; ``create_container_exec`` has
the shape of :func:`asyncio.create_subprocess_exec`.  A start takes a few
milliseconds, in a worker thread; from then on the loop watches one descriptor
of the container and its pipes.
"""

from __future__ import annotations

import asyncio
import errno
import io
import time
from collections.abc import Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from pycontainer._api import CompletedContainer, Container, size_limit, standard_streams
from pycontainer._exchange import Capture
from pycontainer.driver import ExitStatus
from pycontainer.errors import ContainerLostError, WaitTimeoutError

if TYPE_CHECKING:
    import os

    from typing_extensions import Unpack

    from pycontainer._api import CommandKeywords
    from pycontainer.driver import ExecutionDriver, Feature
    from pycontainer.receipt import Receipt
    from pycontainer.stdio import Input, Output

__all__ = ["AsyncContainer", "create_container_exec", "run"]

_CHUNK = 65536


class AsyncContainer:
    """A running container, watched by the event loop: :class:`asyncio.subprocess.Process`, with a container around it.

    Made by :func:`create_container_exec`.  *stdin* is a StreamWriter, *stdout*
    and *stderr* are StreamReaders, or None where no PIPE was asked for.
    """

    def __init__(self, box: Container) -> None:
        self._box = box
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[ExitStatus] = self._loop.create_future()
        self.stdin: asyncio.StreamWriter | None = None
        self.stdout: asyncio.StreamReader | None = None
        self.stderr: asyncio.StreamReader | None = None
        process = box._life.process
        assert process is not None
        self._fd = process.fileno()
        self._loop.add_reader(self._fd, self._look)

    async def _connect(self) -> None:
        """Hand the pipes to the loop."""
        box = self._box
        if box.stdin is not None:
            transport, protocol = await self._loop.connect_write_pipe(asyncio.streams.FlowControlMixin, box.stdin)
            self.stdin = asyncio.StreamWriter(transport, protocol, None, self._loop)
        self.stdout, self.stderr = await self._reader(box.stdout), await self._reader(box.stderr)

    async def _reader(self, file: Any) -> asyncio.StreamReader | None:
        if file is None:
            return None
        reader = asyncio.StreamReader(loop=self._loop)
        await self._loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader, loop=self._loop), file)
        return reader

    def _look(self) -> None:
        """The container's descriptor is readable: has it ended?"""
        error: ContainerLostError | None = None
        try:
            if self._box.poll() is None:
                return
        except ContainerLostError as lost:
            error = lost
        self._loop.remove_reader(self._fd)
        if self._ended.done():
            return
        if error is not None:
            self._ended.set_exception(error)
            self._ended.exception()  # nobody may be waiting, and that is no mistake
        else:
            assert self._box.status is not None
            self._ended.set_result(self._box.status)

    @property
    def id(self) -> str:
        """Its name, or the random one that it got."""
        return self._box.id

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

    async def wait(self) -> int:
        """Wait until it has ended and all of it is removed; its :attr:`returncode`. Raises ContainerLostError."""
        return (await asyncio.shield(self._ended)).returncode

    async def communicate(self, input: bytes | None = None) -> tuple[bytes | None, bytes | None]:
        """Send *input* and read until the end: (stdout, stderr), None for one that is no PIPE.

        Raises ContainerLostError.
        """
        captures = self._captures(None)
        await asyncio.gather(*self._exchange(input, captures), self.wait())
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

    async def receipt(self) -> Receipt:
        """As :meth:`pycontainer.Container.receipt`, in a worker thread."""
        return await self._loop.run_in_executor(None, self._box.receipt)

    def send_signal(self, signal: int) -> None:
        """Send *signal* to its main process; nothing once that has ended."""
        self._box.send_signal(signal)

    def terminate(self) -> None:
        """SIGTERM to its main process. As PID 1 it ignores that without a handler, or ``init=True``."""
        self._box.terminate()

    def kill(self) -> None:
        """SIGKILL to everything in it."""
        self._box.kill()

    async def stop(self, timeout: float | None = 10) -> ExitStatus:
        """As docker stop: SIGTERM, after *timeout* seconds SIGKILL to everything; how it ended."""
        self.terminate()
        await asyncio.wait([self._ended], timeout=timeout)
        if not self._ended.done():
            self.kill()
        return await asyncio.shield(self._ended)


async def create_container_exec(
    *argv: str | bytes | os.PathLike[str],
    stdin: Input = None,
    stdout: Output = None,
    stderr: Output = None,
    driver: str | ExecutionDriver | None = None,
    require: Iterable[Feature | str] | None = None,
    **fields: Unpack[CommandKeywords],
) -> AsyncContainer:
    """Start *argv* in a container; the streams and *fields* are those of :class:`pycontainer.Container`.

    A stream that is neither None, PIPE, DEVNULL nor has a descriptor is a
    ValueError: nobody would move its bytes.  Raises what Container raises.
    """
    streams = {"stdin": stdin, "stdout": stdout, "stderr": stderr}
    return (await _start(argv, False, **streams, driver=driver, require=require, **fields))[0]


async def _start(
    argv: Sequence[str | bytes | os.PathLike[str]], look: bool, **keywords: Any
) -> tuple[AsyncContainer, Receipt | None]:
    """A Container, started in a worker thread; with *look* also what held before its first instruction."""
    loop = asyncio.get_running_loop()

    def begin() -> tuple[Container, Receipt | None]:
        box = Container(argv, start=False, **keywords)
        try:
            return box, box._start_within(None, 0.0, look)
        except BaseException:
            box.close()
            raise

    start = loop.run_in_executor(None, begin)
    try:
        box, receipt = await asyncio.shield(start)
    except asyncio.CancelledError:
        start.add_done_callback(lambda done: done.exception() or loop.run_in_executor(None, done.result()[0].close))
        raise
    try:
        if box._streams is not None and box._streams.flows:
            raise ValueError("asyncio moves bytes only between descriptors: use PIPE, or a stream that has a fileno()")
        container = AsyncContainer(box)
        await container._connect()
    except BaseException:
        await loop.run_in_executor(None, box.close)
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
    driver: str | ExecutionDriver | None = None,
    require: Iterable[Feature | str] | None = None,
    output_limit: int | str | None = None,
    receipt: bool = False,
    **fields: Unpack[CommandKeywords],
) -> CompletedContainer:
    """:func:`pycontainer.run`, to be awaited. When it is cancelled, the container is dead before it goes on."""
    began = time.monotonic()
    as_text = bool(text or encoding or errors)
    data = input.encode(encoding or "utf-8", errors or "strict") if isinstance(input, str) else input
    limit = size_limit(output_limit)
    streams = standard_streams(input, stdin, stdout, stderr, capture_output)
    container, found = await _start(argv, receipt, **streams, driver=driver, require=require, **fields)
    captures = container._captures(limit)
    everything = asyncio.gather(*container._exchange(data, captures), container.wait())
    try:
        left = None if timeout is None else max(0.0, began + timeout - time.monotonic())
        await asyncio.wait([everything], timeout=left)
        late = not everything.done()
        if late:
            container.kill()
        await everything
    except BaseException:
        container.kill()
        await asyncio.wait([container._ended])
        everything.cancel()
        raise
    finally:
        container._box.close()  # ended: this closes what is left of its pipes

    def result(capture: Capture | None) -> Any:
        if capture is None or not as_text:
            return None if capture is None else bytes(capture.data)
        cut = late or capture.truncated  # perhaps in the middle of a character
        return io.TextIOWrapper(io.BytesIO(capture.data), encoding, "replace" if cut else errors).read()

    out, err = map(result, captures)
    if late:
        assert timeout is not None
        raise WaitTimeoutError(container.id, timeout, out, err)
    assert container.status is not None
    truncated = any(capture.truncated for capture in captures if capture is not None)
    done = CompletedContainer(container._box.args, container.status, out, err, truncated, found)
    if check:
        done.check_returncode()
    return done


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
    """Read to the end. EIO from a terminal's master: nobody has its other side open."""
    try:
        while data := await reader.read(_CHUNK):
            capture.write(data)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
