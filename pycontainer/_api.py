"""``run()`` and ``Container``: a reader starts here.

The way from here: a :class:`~pycontainer.command.Command` is made of the
keywords, a driver is chosen (:mod:`pycontainer.plugins`), the container lives
in a :class:`~pycontainer.lifecycle.Lifecycle`, and its output comes through
:mod:`pycontainer.stdio`.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypedDict

from attrs import evolve, field, frozen

from pycontainer import _fields as check
from pycontainer._exchange import Exchange, TextMode, encoded, text_mode
from pycontainer.command import Command, Mount, Network, Process, Resources, Rlimit
from pycontainer.driver import ContainerProcess, ExecutionDriver, ExitStatus, Feature, LogLimits, State, Stdio
from pycontainer.errors import ContainerError, NotRunningError, WaitTimeoutError, add_note
from pycontainer.lifecycle import ExecLifecycle, Lifecycle
from pycontainer.plugins import get_driver
from pycontainer.stdio import PIPE, Streams, TtyTerminal

if TYPE_CHECKING:
    import psutil  # type: ignore[import-untyped]
    from typing_extensions import Self, Unpack

    from pycontainer.detached import DetachedLifecycle
    from pycontainer.device import Device
    from pycontainer.hooks import Hooks
    from pycontainer.logs import LogRecord
    from pycontainer.receipt import Receipt
    from pycontainer.rootfs import HostView, Overlay
    from pycontainer.stats import Stats
    from pycontainer.stdio import Input, Output

__all__ = ["CommandKeywords", "CompletedContainer", "Container", "run"]


class LimitKeywords(TypedDict, total=False):
    """The keywords of :meth:`Container.update`, for type checkers."""

    memory: int | str | None
    memory_swap: int | str | None
    cpus: float | None
    cpu_shares: int | None
    cpu_quota: int | None
    cpu_period: int | None
    pids_limit: int | None
    cpuset_cpus: str | None
    cpuset_mems: str | None
    blkio_weight: int | None
    blkio_weight_device: Mapping[str, int] | None
    device_read_bps: Mapping[str, int | str] | None
    device_write_bps: Mapping[str, int | str] | None
    device_read_iops: Mapping[str, int] | None
    device_write_iops: Mapping[str, int] | None
    hugepage_limits: Mapping[str, int | str] | None
    device_cgroup_rules: Sequence[str] | None


class CommandKeywords(LimitKeywords, total=False):
    """The keywords of :meth:`Command.of`, for type checkers: ``run`` and ``Container`` take all of them."""

    rootfs: str | os.PathLike[str] | HostView | Overlay | None
    env: Mapping[str, str] | None
    cwd: str | os.PathLike[str]
    user: str | int | None
    groups: Iterable[str | int]
    additional_groups: Iterable[str | int]
    hostname: str | None
    mounts: Iterable[Mount]
    devices: Iterable[Device | str]
    network: Network | str | Iterable[Network | str] | None
    tty: bool
    privileged: bool
    read_only: bool
    rootfs_propagation: str | None
    capabilities: Iterable[str] | None
    cap_add: Iterable[str]
    cap_drop: Iterable[str]
    name: str | None
    rlimits: Mapping[str, int | tuple[int, int]] | Iterable[Rlimit]
    no_new_privileges: bool
    init: bool
    pid: str | None
    ipc: str | None
    uts: str | None
    userns: str | None
    uid_mappings: Iterable[tuple[int, int, int]]
    gid_mappings: Iterable[tuple[int, int, int]]
    seccomp: str | os.PathLike[str] | Mapping[str, Any] | None
    masked_paths: Iterable[str] | None
    readonly_paths: Iterable[str] | None
    cgroup_parent: str | None
    dns: Iterable[str]
    dns_search: Iterable[str]
    extra_hosts: Mapping[str, str] | None
    sysctls: Mapping[str, str | int] | None
    oom_score_adj: int | None
    cpu_affinity: str | None
    apparmor_profile: str | None
    selinux_label: str | None
    mount_label: str | None
    hooks: Hooks | None
    config: Iterable[str]
    annotations: Mapping[str, str] | None


@frozen
class CompletedContainer:
    """What :func:`run` returns: subprocess's CompletedProcess, and how the container ended."""

    args: list[str]
    status: ExitStatus
    stdout: Any = None  #: bytes or str, None where it was not captured
    stderr: Any = None
    truncated: bool = False  #: more came than output_limit, and was dropped
    #: What held for the program before its first instruction, if ``receipt=True`` asked for it.
    receipt: Receipt | None = field(default=None, repr=False)

    @property
    def returncode(self) -> int:
        """The exit code, or -N when signal N ended it."""
        return self.status.returncode

    def check_returncode(self) -> None:
        """Raise ContainerExitError unless the exit code is 0."""
        if self.returncode != 0:
            from pycontainer.errors import ContainerExitError

            raise ContainerExitError(self.args, self.status, self.stdout, self.stderr)


def run(
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
    """Run *argv* in a container and wait for its end: :func:`subprocess.run`, with a container around it.

    *input*, *capture_output*, *text*, *encoding*, *errors* and *check* are
    those of subprocess, the streams, *driver* and *output_limit* those of
    :class:`Container`, *fields* those of :meth:`Command.of`.  After *timeout*
    seconds every process of the container is killed, and WaitTimeoutError has
    what was captured; a poststop hook without a timeout of its own has 5
    seconds more.  Whatever else is raised meanwhile, as by ^C, the
    container is dead before it goes on.

    With *receipt* the result has a :class:`~pycontainer.receipt.Receipt`: the
    program is held between its execve and its first instruction.  That needs
    Feature.CREATE, and the right to trace it (ptrace(2)).

    Raises ContainerExitError with *check*, and what :class:`Container` raises.
    """
    begin = time.monotonic()
    checked_timeout(timeout)
    command = Command.of(argv, **fields)  # pyright: ignore[reportArgumentType]  # a TypedDict may hold more
    plumbing = plumb(input, stdin, stdout, stderr, capture_output, text, encoding, errors, output_limit)
    with Container._of_command(command, driver, require, plumbing) as container:
        found = container._start_within(timeout, begin, receipt)
        return see_through(container, plumbing.input, timeout, check, begin, found)


class Plumbing(NamedTuple):
    """A container's streams, what is sent, and what becomes of the output."""

    stdin: Input = None
    stdout: Output = None
    stderr: Output = None
    input: bytes | None = None
    text: TextMode | None = None
    limit: int | None = None  # bytes


def plumb(
    input: str | bytes | None,
    stdin: Input,
    stdout: Output,
    stderr: Output,
    capture_output: bool,
    text: bool | None,
    encoding: str | None,
    errors: str | None,
    output_limit: int | str | None,
) -> Plumbing:
    """What the keywords of :func:`run` stand for. Raises ValueError, TypeError, LookupError, InvalidCommandError."""
    if input is not None:
        if stdin is not None:
            raise ValueError("stdin and input cannot both be given")
        stdin = PIPE
    if capture_output:
        if stdout is not None or stderr is not None:
            raise ValueError("stdout and stderr cannot be given with capture_output")
        stdout = stderr = PIPE
    mode = text_mode(text, encoding, errors)
    return Plumbing(stdin, stdout, stderr, encoded(input, mode), mode, size_limit(output_limit))


def see_through(
    container: Container,
    input: bytes | None,
    timeout: float | None,
    check: bool,
    begin: float,
    receipt: Receipt | None = None,
) -> CompletedContainer:
    """See a started *container* through to its end; one that takes longer since *begin* is killed first."""
    try:
        out, err = container.communicate(input, None if timeout is None else begin + timeout - time.monotonic())
    except WaitTimeoutError:
        assert timeout is not None
        assert container._exchange is not None
        container._life.end()
        container._pump(None)
        raise WaitTimeoutError(container.id, timeout, *container._exchange.result(partial=True)) from None
    return completed(container, out, err, container.truncated, check, receipt)


def completed(
    container: Container, out: Any, err: Any, truncated: bool, check: bool, receipt: Receipt | None
) -> CompletedContainer:
    """The result for a *container* that has ended. Raises ContainerExitError with *check*."""
    assert container.status is not None
    done = CompletedContainer(container.args, container.status, out, err, truncated, receipt)
    if check:
        done.check_returncode()
    return done


class Container:
    """A container that has been started: :class:`subprocess.Popen`, with a container around it.

    Each of *stdin*, *stdout* and *stderr* is None (stdin: /dev/null; the
    others: the caller's own), PIPE, DEVNULL, a descriptor, an object with
    fileno(), or one with only read() or write(), which is served by
    :meth:`wait` and :meth:`communicate`; *stderr* may be STDOUT.  For a PIPE
    the attribute of that name is a file object: binary and unbuffered, or
    with *text*, *encoding* or *errors* a text file.  With ``tty=True`` the
    container has a terminal for its three streams: its output is *stdout*
    alone, and a *stdin* that is a terminal itself is in raw mode during
    :meth:`wait` and :meth:`communicate`.

    *driver* is a driver's name, an ExecutionDriver, or None for the default.
    With *require*, features or their names, it is the first usable driver
    that has all of them: *driver* may be several names in the order of
    preference, None is those that come with pycontainer.  *output_limit*, in
    bytes or as ``"1m"``, is how much of each stream :meth:`communicate` keeps;
    the rest is read and dropped.  *fields* are those of :meth:`Command.of`.
    With ``start=False`` nothing happens before :meth:`create` or :meth:`start`.

    As a context manager it is killed, if it still runs, when the block is
    left, and so it is when the object is no longer used.

    With ``detach=True`` (Feature.RESTORE) it outlives all that, and this
    process too, however that ends: :func:`pycontainer.get` finds it by its id,
    from any process.  Its stdin is /dev/null, and what it prints is in
    :meth:`logs`, of which *log_limits* says how much is kept.  It is there,
    with its status, until :meth:`remove`.

    Raises InvalidCommandError, UnsupportedError, AlreadyExistsError,
    SetupError and what :func:`pycontainer.get_driver` raises.
    """

    def __init__(
        self,
        argv: Sequence[str | bytes | os.PathLike[str]],
        *,
        stdin: Input = None,
        stdout: Output = None,
        stderr: Output = None,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        driver: str | ExecutionDriver | Sequence[str] | None = None,
        require: Iterable[Feature | str] | None = None,
        output_limit: int | str | None = None,
        start: bool = True,
        detach: bool = False,
        log_limits: LogLimits | None = None,
        **fields: Unpack[CommandKeywords],
    ) -> None:
        command = Command.of(argv, **fields)  # pyright: ignore[reportArgumentType]  # a TypedDict may hold more
        life: Lifecycle
        if detach:
            if not (stdin is stdout is stderr is None):
                raise ValueError("a detached container has no stdin, stdout and stderr but /dev/null and its log")
            from pycontainer.detached import DetachedLifecycle

            life = DetachedLifecycle(_driver(driver, require), command, log_limits)
        elif log_limits is not None:
            raise ValueError("log_limits are for a detached container: only that has a log")
        else:
            life = Lifecycle(_driver(driver, require), command)
        self._set_up(
            life, Plumbing(stdin, stdout, stderr, None, text_mode(text, encoding, errors), size_limit(output_limit))
        )
        if start:
            self.start()

    @classmethod
    def _of_command(
        cls,
        command: Command,
        driver: str | ExecutionDriver | Sequence[str] | None,
        require: Iterable[Feature | str] | None,
        plumbing: Plumbing,
    ) -> Container:
        """One that is attached, and not started yet."""
        return cls._of(Lifecycle(_driver(driver, require), command), plumbing)

    @classmethod
    def _of(cls, life: Lifecycle, plumbing: Plumbing | None = None) -> Container:
        """The container that has this *life*."""
        container = object.__new__(cls)
        container._set_up(life, plumbing or Plumbing())
        return container

    def _set_up(self, life: Lifecycle, plumbing: Plumbing) -> None:
        self.args = list(life.payload.argv)
        self.stdin: IO[Any] | None = None
        self.stdout: IO[Any] | None = None
        self.stderr: IO[Any] | None = None
        self._wanted = plumbing[:3]
        self._text = plumbing.text
        self._limit = plumbing.limit
        self._streams: Streams | None = None
        self._exchange: Exchange | None = None
        self._life = life

    # -- what it is ----------------------------------------------------------

    @property
    def id(self) -> str:
        """Its name, or the random one that it got."""
        return self._life.id

    @property
    def command(self) -> Command:
        """The Command that it was made from."""
        return self._life.command

    @property
    def pid(self) -> int | None:
        """The host pid of its main process; None before it is created."""
        process = self._life.process
        return None if process is None else process.pid

    @property
    def status(self) -> ExitStatus | None:
        """How it ended, once a poll or a wait has noticed; None before."""
        return self._life.status

    @property
    def returncode(self) -> int | None:
        """The exit code, or -N when signal N ended it, once a poll or a wait has noticed; None before."""
        return None if self.status is None else self.status.returncode

    @property
    def terminal(self) -> TtyTerminal | None:
        """Its terminal, with ``tty=True``."""
        return None if self._streams is None else self._streams.terminal

    @property
    def state(self) -> State:
        """Where it is in its life, looked up now."""
        return self._life.state

    @property
    def detached(self) -> bool:
        """Whether it outlives this process."""
        return self._life.detached

    @property
    def truncated(self) -> bool:
        """Whether communicate() has dropped output beyond output_limit."""
        return self._exchange is not None and self._exchange.truncated

    def __repr__(self) -> str:
        if not hasattr(self, "_life"):  # a traceback shows it although its __init__ has failed
            return f"<{type(self).__name__}, never made>"
        return f"<{type(self).__name__} {self.id}: returncode: {self.returncode} args: {self.args!r}>"

    # -- its beginning -------------------------------------------------------

    def create(self) -> None:
        """After ``start=False``: set everything up, so that only execve is left. Feature.CREATE.

        Raises as :class:`Container`; ContainerError when it is created already.
        """
        self._begin(self._life.create)

    def start(self) -> None:
        """After ``start=False``: run the program, returning once execve has succeeded.

        Raises as :class:`Container`; ContainerError when it is started already.
        """
        if self._life.process is None:
            self._begin(self._life.start)
            return
        try:
            self._life.start()
        except BaseException:
            if not self._life.can_signal:  # it was the end of it, and not the wrong moment
                self.close()
            raise

    def _start_within(self, timeout: float | None, begin: float, look: bool = False) -> Receipt | None:
        """Start, but give up when *timeout* seconds have passed since *begin*. Raises WaitTimeoutError as well.

        With *look* there is a receipt of the program before its first instruction.
        """
        deadline = None if timeout is None else begin + timeout
        try:
            self._begin(self._life.create if look else self._life.start, deadline)
            return self._life.start_and_look(deadline) if look else None
        except WaitTimeoutError:
            raise WaitTimeoutError(self.id, timeout or 0.0) from None

    def _begin(self, verb: Callable[[Stdio], ContainerProcess], deadline: float | None = None) -> None:
        if self._life.detached:  # its streams are its monitor's
            verb(Stdio(-1, -1, -1, deadline=deadline))
            return
        streams = Streams(*self._wanted, tty=self._life.payload.tty)
        stdio = streams.stdio if deadline is None else evolve(streams.stdio, deadline=deadline)
        try:
            streams.started(verb(stdio))
            self._streams = streams
            for name in ("stdin", "stdout", "stderr"):
                setattr(self, name, self._file(getattr(streams, name)))
        except BaseException:
            streams.close()
            if self._life.made_for is stdio:  # else it is somebody else's, whom this call came too late for
                self._life.close()
            raise

    def _file(self, file: io.FileIO | None) -> IO[Any] | None:
        if file is None or self._text is None:
            return file
        buffer = io.BufferedWriter(file) if file.writable() else io.BufferedReader(file)
        return io.TextIOWrapper(buffer, *self._text, line_buffering=True)

    # -- its end -------------------------------------------------------------

    def poll(self) -> int | None:
        """:attr:`returncode`, looked up now; None while it runs. Raises ContainerLostError."""
        status = self._life.poll()
        return None if status is None else status.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended and all of it is removed; its :attr:`returncode`.

        *timeout* in seconds.  A container that fills a PIPE which nobody
        reads does not end: :meth:`communicate` reads.  A signal handler may
        call this, :meth:`stop` and :meth:`kill` in the midst of another wait,
        whose streams it does not serve.  Raises WaitTimeoutError, after which
        it still runs, NotRunningError before the start, ContainerLostError.
        """
        streams = self._streams
        checked_timeout(timeout)
        return self._life.wait(timeout, streams.pump if streams is not None and streams.flows else None).returncode

    def communicate(self, input: str | bytes | None = None, timeout: float | None = None) -> tuple[Any, Any]:
        """Send *input*, read stdout and stderr until it has ended: (stdout, stderr), None for one that is no PIPE.

        *timeout* in seconds.  After a WaitTimeoutError, which carries what
        has come so far, it still runs; the next call goes on with the rest of
        the input and returns all the output.  Raises as :meth:`wait`;
        ValueError for an input where stdin is no PIPE, or in a second call,
        TypeError for a str without *text*; ContainerError in a signal handler
        in the midst of another call.
        """
        checked_timeout(timeout)
        if self._life.is_interrupted:
            raise ContainerError(f"container {self.id!r}: communicate() cannot go on within a wait of the same thread")
        if self._exchange is None:
            self._exchange = Exchange(
                self.stdin,
                self.stdout,
                self.stderr,
                encoded(input, self._text),
                self._limit,
                self._life.payload.tty,
                self._text,
            )
        elif input is not None:
            raise ValueError("the input was given in the first call")
        try:
            self._pump(timeout)
        except WaitTimeoutError:
            raise WaitTimeoutError(self.id, timeout or 0.0, *self._exchange.result(partial=True)) from None
        return self._exchange.result()

    def _pump(self, timeout: float | None) -> None:
        streams, flows = self._streams, self._exchange.flows if self._exchange is not None else ()
        if streams is None or not (flows or streams.flows):
            self._life.wait(timeout)
        else:
            self._life.wait(timeout, lambda process, deadline: streams.pump(process, deadline, flows))

    def send_signal(self, signal: int) -> None:
        """Send *signal* to its main process; nothing once that has ended.

        The main process is PID 1 in its container, and so ignores every
        signal but SIGKILL that it has no handler for (pid_namespaces(7)),
        unless ``init=True``.  While another thread starts it SIGKILL and
        SIGTERM have the start given up, which then raises NotRunningError.
        Raises NotRunningError before the start.
        """
        self._life.send_signal(signal)

    def terminate(self) -> None:
        """Send SIGTERM to its main process, as Popen.terminate: not a driver's ``terminate``, which is :meth:`kill`.

        Mind :meth:`send_signal`'s remark on PID 1.
        """
        self.send_signal(15)

    def kill(self) -> None:
        """SIGKILL to everything in it: a driver's, and Docker 0.9's, ``terminate``.

        While another thread starts it the start is given up.  Raises
        NotRunningError before the start.
        """
        self._life.kill_all()

    def stop(self, timeout: float | None = 10) -> int:
        """As docker stop: SIGTERM, after *timeout* seconds SIGKILL to everything; its :attr:`returncode`.

        Raises as :meth:`wait`, but no WaitTimeoutError.
        """
        checked_timeout(timeout)
        self.terminate()
        try:
            return self.wait(timeout)
        except WaitTimeoutError:
            self.kill()
            return self.wait()

    def close(self) -> None:
        """Kill it if it still runs, wait for its end, and close its pipes. Twice is no error.

        A start that another thread makes is given up.  A detached one goes on
        without this object, until :meth:`restore`.
        """
        try:
            self._life.close()
        finally:
            if not self._life.is_interrupted:  # by a signal handler: who is in the midst of a wait still uses them
                self._close_streams()

    def _close_streams(self) -> None:
        for file in (self.stdin, self.stdout, self.stderr):
            if file is not None:
                with contextlib.suppress(OSError):  # what a text file had buffered, and nobody reads any more
                    file.close()
        if self._streams is not None:
            self._streams.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            self.close()
        except Exception as failure:
            if error is None:
                raise
            add_note(error, f"closing the container failed as well: {type(failure).__name__}: {failure}")

    def __del__(self) -> None:
        try:
            alive = self._life.abandon()
        except Exception:
            return  # never made, or at the interpreter's exit: the driver ends what is attached to this process
        if alive and not sys.is_finalizing():
            warnings.warn(f"container {self.id} was still running", ResourceWarning, stacklevel=2, source=self)

    # -- of a detached one ---------------------------------------------------

    def _detached(self) -> DetachedLifecycle:
        from pycontainer.detached import DetachedLifecycle

        if not isinstance(self._life, DetachedLifecycle):
            raise ContainerError(f"container {self.id!r} is not detached")
        return self._life

    def restore(self) -> None:
        """Attach this object to it again, after :meth:`close` or in a forked child.

        Raises ContainerNotFoundError; ContainerError for one that is not detached.
        """
        self._detached().restore()

    def logs(self, follow: bool = False, tail: int | None = None) -> Iterator[LogRecord]:
        """What it has printed, in the order in which it came; with *follow* until it has ended.

        *tail* is how many of the lines that are there come first; None is all.
        ``b"".join(record.data for record in box.logs())`` are the bytes.
        Raises ContainerNotFoundError; ContainerError for one that is not detached.
        """
        if tail is not None and tail < 0:
            raise ValueError(f"tail must be 0 or more, not {tail!r}")
        return self._detached().logs(follow, tail)

    def remove(self, force: bool = False) -> None:
        """Remove it when it has ended, its status and its log: its id is free. With *force* it is killed first.

        Raises ContainerError when it still runs, ContainerNotFoundError.
        """
        self._detached().remove(force)

    # -- what goes on inside -------------------------------------------------

    def pids(self) -> list[int]:
        """Host pids of every process in it. Raises NotRunningError."""
        return list(self._life.pids())

    def processes(self) -> list[psutil.Process]:
        """Every process in it, as psutil has them. Raises NotRunningError."""
        import psutil

        found = []
        for pid in self.pids():
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(pid))
        return found

    def exec(
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
        """Run a further process inside and wait for its end; Feature.EXEC.

        *env*, *cwd*, *user* and *groups* are the container's own where they
        are None; its capabilities, rlimits and no_new_privileges always are.
        The rest is as for :func:`run`.  After *timeout* seconds the process is
        killed, but not what it has started: that ends with the container.

        Raises NotRunningError, also when it is paused, and what :func:`run`
        raises.
        """
        begin = time.monotonic()
        checked_timeout(timeout)
        plumbing = plumb(input, stdin, stdout, stderr, capture_output, text, encoding, errors, output_limit)
        with self._further(argv, plumbing, env, cwd, user, groups, tty) as further:
            further._start_within(timeout, begin)
            return see_through(further, plumbing.input, timeout, check, begin)

    def _further(
        self,
        argv: Sequence[str | bytes | os.PathLike[str]],
        plumbing: Plumbing,
        env: Mapping[str, str] | None,
        cwd: str | os.PathLike[str] | None,
        user: str | int | None,
        groups: Iterable[str | int] | None,
        tty: bool,
    ) -> Container:
        """A further process inside, that is not started yet."""
        own = self._life.command.process
        place = ("/", ()) if self._life.driver.exec_starts_in_root else (own.working_dir, own.additional_groups)
        process = Process.of(
            argv,
            env=own.env if env is None else env,
            cwd=place[0] if cwd is None else cwd,
            user=own.user if user is None else user,
            groups=place[1] if groups is None else groups,
            tty=tty,
            privileged=own.privileged,
            capabilities=own.capabilities,
            rlimits=own.rlimits,
            no_new_privileges=own.no_new_privileges,
        )
        return Container._of(ExecLifecycle(self._life, process), plumbing)

    def receipt(self) -> Receipt:
        """What the kernel says really holds for its main process: namespaces, capabilities, filters, limits, mounts.

        With ``init=True`` that is the init.  Raises NotRunningError, also
        before the start, and PermissionError where this process may not look.
        """
        return self._life.receipt()

    def pause(self) -> None:
        """Freeze every process in it. Feature.PAUSE; raises NotRunningError."""
        self._life.pause()

    def unpause(self) -> None:
        """Let it go on after :meth:`pause`. Raises NotRunningError; ContainerError when it is not paused."""
        self._life.unpause()

    def stats(self) -> Stats:
        """What it has used until now. Feature.STATS; raises NotRunningError."""
        return self._life.stats()

    def iter_stats(self, interval: float = 1.0) -> Iterator[Stats]:
        """:meth:`stats` now and then every *interval* seconds, until it has ended.

        The difference of two is what was used in between, their ``time``
        says how long that was.  Raises what :meth:`stats` does, but
        NotRunningError for the first one alone.
        """
        return self._each_stats(checked_interval(interval))

    def _each_stats(self, interval: float) -> Iterator[Stats]:
        import select

        stats = self.stats()
        assert self.pid is not None
        due = stats.time
        try:
            ended = os.pidfd_open(self.pid)
        except ProcessLookupError:
            yield stats
            return
        try:
            poll = select.poll()
            poll.register(ended, select.POLLIN)
            while True:
                yield stats
                due = max(due + interval, time.monotonic())
                if poll.poll(max(0.0, due - time.monotonic()) * 1000):
                    return
                try:
                    stats = self.stats()
                except NotRunningError:
                    return
        finally:
            os.close(ended)

    def update(self, **limits: Unpack[LimitKeywords]) -> None:
        """Other limits from now on; those that are not given stay.

        *limits* are the fields of :class:`Resources`, and *cpus* as in
        :meth:`Command.of`.  Where only the memory is given, memory and swap
        together are twice that, unless another *memory_swap* was given before.
        Those of disks and huge pages are what they were at the start.

        Feature.UPDATE.  Raises InvalidCommandError for a limit that cannot be
        applied, as of memory below what is in use; then every limit is as it
        was.  Raises NotRunningError.
        """
        self._life.update(Resources.of(**limits))

    def resize(self, height: int, width: int) -> None:
        """Set its terminal's size, in characters. Raises ContainerError without ``tty=True``."""
        if self.terminal is None:
            raise ContainerError(f"container {self.id!r} has no terminal")
        self.terminal.resize(height, width)


def _driver(
    driver: str | ExecutionDriver | Sequence[str] | None, require: Iterable[Feature | str] | None
) -> ExecutionDriver:
    if require is None and (driver is None or isinstance(driver, (str, ExecutionDriver))):
        return get_driver(driver)
    from pycontainer.requirements import choose_driver

    return choose_driver(require or (), driver)


def checked_timeout(timeout: float | None) -> float | None:
    """*timeout*, if it is a time that can pass. Raises ValueError."""
    if timeout is not None and timeout != timeout:  # which is what no other number is (IEEE 754)
        raise ValueError(f"timeout must be a number of seconds, or None, not {timeout!r}")
    return timeout


def checked_interval(interval: float) -> float:
    """*interval*, if it is a time. Raises ValueError."""
    if not interval > 0:
        raise ValueError(f"interval must be more than 0, not {interval!r}")
    return interval


def size_limit(limit: int | str | None) -> int | None:
    if limit is None:
        return None
    size = check.size("output_limit", limit)
    check.integer("output_limit", size, 0, 2**63 - 1)
    return size
