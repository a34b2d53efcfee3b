"""What the fixtures are made of, and :func:`container_fixture`, which makes more of them."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import pytest

from pycontainer import Container, ExecutionDriver, Feature, State
from pycontainer.errors import WaitTimeoutError

if TYPE_CHECKING:
    from pycontainer import CompletedContainer, Resources

__all__ = ["ContainerFactory", "LoggedContainer", "container_fixture"]

Argv: TypeAlias = Sequence["str | bytes | os.PathLike[str]"]
Scope: TypeAlias = Literal["session", "package", "module", "class", "function"]

#: How much of each stream a failure's report shows, in characters.
_TAIL = 4000


class LoggedContainer(Container):
    """A Container whose stdout and stderr, where nothing else is said, go to files, and so never block it."""

    def __init__(self, argv: Argv, *, stdin: Any = None, stdout: Any = None, stderr: Any = None, **rest: Any) -> None:
        self._logs = [_Log() if given is None else None for given in (stdout, stderr)]
        out, err = self._logs
        super().__init__(
            argv,
            stdin=stdin,
            stdout=out if stdout is None else stdout,
            stderr=err if stderr is None else stderr,
            **rest,
        )

    @property
    def output(self) -> str:
        """What has come out of stdout until now; nothing when that went elsewhere."""
        return "" if self._logs[0] is None else self._logs[0].text()

    @property
    def errors(self) -> str:
        """What has come out of stderr until now; nothing when that went elsewhere."""
        return "" if self._logs[1] is None else self._logs[1].text()


class _Log:
    """A file without a name, of which nothing is left, however this process ends."""

    def __init__(self) -> None:
        with tempfile.TemporaryFile() as file:
            self._fd = os.dup(file.fileno())

    def fileno(self) -> int:
        return self._fd

    def text(self) -> str:
        return os.pread(self._fd, os.fstat(self._fd).st_size, 0).decode(errors="replace")

    def __del__(self) -> None:
        os.close(self._fd)


class ContainerFactory:
    """Starts containers, and ends all of them when it is closed. What a ``container_factory`` fixture is."""

    def __init__(self, driver: ExecutionDriver, **defaults: Any) -> None:
        self.driver = driver
        self.defaults = defaults  #: keywords that a call need not repeat
        self.containers: list[LoggedContainer] = []
        self.runs: list[CompletedContainer | WaitTimeoutError] = []

    def __call__(self, argv: Argv, **keywords: Any) -> LoggedContainer:
        """A container that has been started: the arguments of :class:`pycontainer.Container`, but for ``detach``."""
        if keywords.get("detach"):
            raise ValueError("a fixture's container ends with pytest: make a detached one by pycontainer.Container")
        fields = {"driver": self.driver, "name": unique_id(), **self.defaults, **keywords}
        box = LoggedContainer(argv, **fields)
        self.containers.append(box)
        return box

    def run(self, argv: Argv, **keywords: Any) -> CompletedContainer:
        """Run to the end: the arguments of :func:`pycontainer.run`; output is captured as text, at most 60 s."""
        import pycontainer

        usual = {"driver": self.driver, "name": unique_id(), "timeout": 60}
        if not {"stdout", "stderr", "capture_output"} & keywords.keys():
            usual["capture_output"] = True
        if not {"text", "encoding", "errors"} & keywords.keys():
            usual["text"] = True
        try:
            done = pycontainer.run(argv, **{**usual, **self.defaults, **keywords})
        except WaitTimeoutError as error:
            self.runs.append(error)
            raise
        self.runs.append(done)
        return done

    def close(self) -> None:
        """End every container, the last one first. Raises what the first failure was."""
        with contextlib.ExitStack() as stack:
            for box in self.containers:
                stack.callback(box.close)

    def report(self) -> Iterator[str]:
        """What a failed test should know, line by line."""
        for done in self.runs:
            yield from _report_run(done)
        for box in self.containers:
            yield from _report_container(box)


def unique_id() -> str:
    """An id that no other worker of pytest-xdist makes."""
    return f"{os.environ.get('PYTEST_XDIST_WORKER', 'test')}-{os.urandom(6).hex()}"


def _report_run(done: CompletedContainer | WaitTimeoutError) -> Iterator[str]:
    if isinstance(done, WaitTimeoutError):
        yield f"{done}"
    else:
        yield f"{' '.join(done.args)}: {done.status.reason}"
    yield from _streams(done.stdout, done.stderr)


def _report_container(box: LoggedContainer) -> Iterator[str]:
    state = box._life.state
    how = box.status.reason if box.status is not None else state.value
    yield f"{box.id} ({' '.join(box.args)}): {how}"
    limits = _limits(box._life.command.resources)
    yield f"  limits: {', '.join(limits) or 'none'}"
    if state in (State.RUNNING, State.PAUSED) and Feature.STATS in box._life.driver.features():
        with contextlib.suppress(Exception):  # it may end right now
            stats = box.stats()
            yield f"  uses: {stats.memory.usage} bytes of memory, {stats.pids.current} processes"
    yield from _streams(box.output, box.errors)


def _limits(resources: Resources) -> Iterator[str]:
    import attrs

    for name, value in attrs.asdict(resources).items():
        if value is not None:
            yield f"{name}={value}"


def _streams(stdout: Any, stderr: Any) -> Iterator[str]:
    for name, data in (("stdout", stdout), ("stderr", stderr)):
        text = data.decode(errors="replace") if isinstance(data, bytes) else data
        if text:
            cut = f" (the last {_TAIL} of {len(text)} characters)" if len(text) > _TAIL else ""
            yield f"  {name}{cut}:"
            yield from (f"    {line}" for line in text[-_TAIL:].splitlines())


# -- where the programs come from


def rootfs_for(driver: ExecutionDriver, request: pytest.FixtureRequest) -> str | None:
    """``--container-rootfs``; without it the host's programs where *driver* can show them, else busybox's."""
    given: str | None = request.config.getoption("--container-rootfs")
    if given is not None:
        return os.path.abspath(given)
    if Feature.HOST_ROOTFS in driver.features():
        return None
    busybox: Path = request.getfixturevalue("_busybox_rootfs")
    return os.fspath(busybox)


def make_busybox_rootfs(directory: Path) -> Path:
    """A root file system of this host's static busybox, in *directory*. Skips the test where there is none."""
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("this driver needs a root file system: give --container-rootfs, or install busybox-static")
    import subprocess

    for name in ("bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "usr/bin", "var/tmp"):
        (directory / name).mkdir(parents=True)
    shutil.copy(busybox, directory / "bin/busybox")
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    for applet in set(applets) - {"busybox"}:
        (directory / "bin" / applet).symlink_to("busybox")
    (directory / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/nonexistent:/bin/sh\n")
    (directory / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    for name, minor in (("null", 3), ("zero", 5), ("full", 7), ("random", 8), ("urandom", 9)):
        with contextlib.suppress(PermissionError):  # without root the driver has to bring its own
            os.mknod(directory / "dev" / name, stat.S_IFCHR | 0o666, os.makedev(1, minor))
            (directory / "dev" / name).chmod(0o666)
    for name in ("tmp", "var/tmp"):
        (directory / name).chmod(0o1777)
    directory.chmod(0o755)
    return directory


# -- fixtures of your own


def container_fixture(
    argv: Argv,
    *,
    scope: Scope = "function",
    shared: bool = False,
    ready: Callable[[LoggedContainer], object] | None = None,
    share: Callable[[LoggedContainer], Mapping[str, Any]] | None = None,
    name: str | None = None,
    **fields: Any,
) -> Any:
    """A fixture of any scope: a running container. To be assigned to a name in a conftest.py or a test module.

    ::

        database = container_fixture(["redis-server"], scope="session", memory="64m",
                                     ready=lambda box: wait_for(log="Ready to accept", container=box))

    *ready* is called once it has been started, *fields* are those of
    :class:`pycontainer.Container`, *name* is the fixture's where the
    assignment does not give it.

    With *shared*, for the scope ``session``, the workers of pytest-xdist have
    one container together.  What they get is a
    :class:`~pycontainer.testing.sharing.SharedContainer`: its id and pid, and
    the data that *share* returned, which must be JSON.  The worker that
    started it keeps it until the last of them has let go.
    """
    if shared and scope != "session":
        raise ValueError("only a container of scope 'session' can be shared")
    if share is not None and not shared:
        raise ValueError("share is for shared=True")

    def make(factory: ContainerFactory, request: pytest.FixtureRequest) -> LoggedContainer:
        usual = {"rootfs": rootfs_for(factory.driver, request)}
        box = factory(argv, **{**usual, **fields})
        if ready is not None:
            ready(box)
        return box

    @pytest.fixture(scope=scope, name=name)
    def fixture(request: pytest.FixtureRequest, container_driver: ExecutionDriver) -> Iterator[Any]:
        from pycontainer.testing.plugin import factory_for

        with contextlib.closing(factory_for(request, container_driver)) as factory:
            if not shared:
                yield make(factory, request)
                return
            from pycontainer.testing.sharing import common_directory, lease

            key = f"{request.fixturename}-{container_driver.name}"
            with lease(common_directory(request, key), lambda: make(factory, request), share) as one:
                yield one

    return fixture
