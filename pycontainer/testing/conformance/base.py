"""What every area of the kit is made of: the fixtures to override, and the way tests reach a driver."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import select
import time
from collections.abc import Callable, Iterator
from typing import IO, Any, TypeVar

import pytest

from pycontainer import (
    PIPE,
    Command,
    CompletedContainer,
    Container,
    ContainerProcess,
    ExecutionDriver,
    ExitStatus,
    Feature,
    InvalidCommandError,
    Probe,
    Process,
    State,
    UnsupportedError,
)
from pycontainer.receipt import Difference, Receipt
from pycontainer.stdio import Streams
from pycontainer.testing.conformance.payloads import FakePayloads, Payloads
from pycontainer.testing.fixtures import rootfs_for

__all__ = ["TIMEOUT", "Area", "needs"]

#: Seconds after which something counts as hanging. Nothing takes so long that works.
TIMEOUT = float(os.environ.get("PYCONTAINER_CONFORMANCE_TIMEOUT", "30"))

Test = TypeVar("Test", bound=Callable[..., None])


def needs(*features: Feature) -> Callable[[Test], Test]:
    """A test of something that a driver may lack: two-sided.

    Where the driver declares all *features* the test runs.  Where it does
    not, what is tested instead is that asking for the first missing one
    raises UnsupportedError.  It is skipped only where the probe says that
    this host cannot do it, with the probe's reason.
    """

    def decorate(test: Test) -> Test:
        @functools.wraps(test)
        def two_sided(self: Area, *args: Any, **fixtures: Any) -> None:
            missing = [feature for feature in features if feature not in self.tested.features()]
            if missing:
                self.is_refused(missing[0])
                return
            for feature in features:
                seen = self.probe.features.get(feature)
                if seen is not None and not seen.usable:
                    pytest.skip(f"{self.tested.name} cannot {feature.value} here: {seen.cause}")
            test(self, *args, **fixtures)

        return two_sided  # type: ignore[return-value]

    return decorate


class Area:
    """One area of the kit. A subclass of a subclass of it may override every fixture that is here."""

    @pytest.fixture
    def driver(self, container_driver: ExecutionDriver) -> ExecutionDriver:
        """The driver that is tested; by default that of ``--container-driver``."""
        return container_driver

    @pytest.fixture
    def rootfs(self, driver: ExecutionDriver, request: pytest.FixtureRequest) -> str | None:
        """The root file system in which the payloads are; None is a view of the host's own."""
        return rootfs_for(driver, request)

    @pytest.fixture
    def payloads(self, driver: ExecutionDriver) -> Payloads:
        """What is run inside."""
        from pycontainer.testing.fake import FakeDriver

        return FakePayloads(driver) if isinstance(driver, FakeDriver) else Payloads()

    @pytest.fixture(autouse=True)
    def conformance(self, driver: ExecutionDriver, rootfs: str | None, payloads: Payloads) -> Iterator[None]:
        """Where tests find all of that; whatever they have started is ended afterwards."""
        self.tested = driver
        self.root = rootfs
        self.payload = payloads
        self.probe: Probe = driver.probe()
        if not self.probe.usable:
            pytest.skip(f"{driver.name} cannot be used here: {self.probe.cause}")
        with contextlib.ExitStack() as stack:
            if rootfs is not None and "PYTEST_XDIST_WORKER" not in os.environ:  # another worker may be using it
                stack.enter_context(_as_it_was(rootfs))
            with contextlib.ExitStack() as self.stack:
                yield

    # -- through the library

    def run(self, argv: list[str], **keywords: Any) -> CompletedContainer:
        """``pycontainer.run``, its output captured as text."""
        from pycontainer import run

        if not {"stdout", "stderr"} & keywords.keys():
            keywords.setdefault("capture_output", True)
        keywords.setdefault("text", True)
        keywords.setdefault("timeout", TIMEOUT)
        keywords.setdefault("rootfs", self.root)
        return run(argv, driver=self.tested, **keywords)

    def start(self, argv: list[str], **keywords: Any) -> Container:
        """A Container that is ended after the test."""
        keywords.setdefault("rootfs", self.root)
        return self.stack.enter_context(Container(argv, driver=self.tested, **keywords))

    def start_ready(self, argv: list[str], **keywords: Any) -> Container:
        """A Container whose payload has printed ``ready``."""
        box = self.start(argv, stdout=PIPE, **keywords)
        assert box.stdout is not None
        assert read_until(box.stdout, b"ready") == b"ready", "the payload did not say that it is ready"
        return box

    # -- without it

    def command(self, argv: list[str], **keywords: Any) -> Command:
        """A Command as the driver gets it."""
        keywords.setdefault("rootfs", self.root)
        return Command.of(argv, **keywords)

    def start_bare(self, command: Command, **streams: Any) -> ContainerProcess:
        """``driver.start`` itself, without what the library puts around it."""
        streams = {"stdin": -3, "stdout": -3, "stderr": -3, **streams}
        with Streams(**streams, tty=command.process.tty) as theirs:
            process = self.tested.start(command, theirs.stdio)
        self.stack.callback(process.close)
        return process

    def start_exec(
        self, id: str, argv: list[str], *, streams: Streams | None = None, **keywords: Any
    ) -> ContainerProcess:
        """``driver.exec`` itself; *keywords* are those of Process.of."""
        if streams is None:
            streams = self.stack.enter_context(Streams(stdin=-3, stdout=-3, stderr=-3))
        process = self.tested.exec(id, Process.of(argv, **keywords), streams.stdio)
        self.stack.callback(process.close)
        streams.started(process)
        return process

    def exec(self, id: str, argv: list[str], input: bytes = b"", **keywords: Any) -> tuple[ExitStatus, bytes, bytes]:
        """Run *argv* inside container *id* to its end: its status, stdout and stderr."""
        out, err = io.BytesIO(), io.BytesIO()
        with Streams(io.BytesIO(input), out, err) as streams:
            process = self.start_exec(id, argv, streams=streams, **keywords)
            assert streams.pump(process, time.monotonic() + TIMEOUT), "the process did not end"
            return process.wait(TIMEOUT), out.getvalue(), err.getvalue()

    def is_refused(self, feature: Feature) -> None:
        """Whatever asks for *feature*, which is not declared, raises UnsupportedError."""
        from pycontainer.testing.conformance.features import ASK

        with pytest.raises(UnsupportedError) as caught:
            ASK[feature](self)
        assert caught.value.feature is feature, f"the error is about {caught.value.feature}"

    def honours(self, field: str, **keywords: Any) -> bool:
        """Whether the driver takes *keywords*, of which *field* is the one in question.

        A driver that cannot honour a field says so in ``validate``: it never
        ignores one.  Where it does, this checks that starting is refused too.
        """
        command = self.command(self.payload.say(), **keywords)
        problems = [
            problem
            for problem in self.tested.validate(command)
            if isinstance(problem, UnsupportedError)
            or any(name == field or name.startswith(f"{field}.") for name, _ in problem.problems)
        ]
        if not problems:
            return True
        with pytest.raises((InvalidCommandError, UnsupportedError)):
            self.run(self.payload.say(), **keywords)
        return False

    @contextlib.contextmanager
    def or_refused(self, field: str) -> Iterator[None]:
        """What is inside works, or InvalidCommandError names *field*: for ``exec``, which has no ``validate``."""
        try:
            yield
        except InvalidCommandError as error:
            if not any(name == field for name, _ in error.problems):
                raise

    def receipt_of(self, **keywords: Any) -> Receipt:
        """The receipt of a container that does nothing."""
        self.box = self.start(self.payload.sleep(), **keywords)
        return self.box.receipt()

    def differing(self, *fields: str, **keywords: Any) -> list[Difference]:
        """Where a container that does nothing differs from what *keywords* ask for, in the Command's *fields*."""
        found = self.receipt_of(**keywords)
        return [one for one in found.differences(self.box.command) if one.field.startswith(fields)]

    def state(self, id: str) -> State:
        """What the driver says about container *id*."""
        return self.tested.info(id).state


#: What the tests have in a root: the targets of their mounts, which a driver may make in it, and files they write.
LEFT = ("data/below", "data", "data-file", "small", "made", "tmp/new")


@contextlib.contextmanager
def _as_it_was(rootfs: str) -> Iterator[None]:
    """Take away from the root, which is the caller's, what the tests put there and was not there before."""
    there = {name for name in LEFT if os.path.lexists(os.path.join(rootfs, name))}
    yield
    for name in LEFT:
        path = os.path.join(rootfs, name)
        if name not in there and os.path.lexists(path):
            with contextlib.suppress(OSError):  # of an ordinary user's: what is in it is another one's inside
                os.rmdir(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)


def read_until(file: IO[Any], wanted: bytes, timeout: float = TIMEOUT) -> bytes:
    """Read from a PIPE up to *wanted*, which is returned; what there was until the end, if it does not come."""
    data = b""
    deadline = time.monotonic() + timeout
    poll = select.poll()
    poll.register(file.fileno(), select.POLLIN)
    while wanted not in data and poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        part = os.read(file.fileno(), 65536)
        if not part:
            break
        data += part
    return wanted if wanted in data else data


def eventually(condition: Callable[[], bool], timeout: float = TIMEOUT) -> bool:
    """Whether *condition* comes true within *timeout* seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def is_alive(pid: int) -> bool:
    """Whether the process is there, and no zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False
