"""A driver that runs nothing: for the tests of programs that use containers.

Without root, without a kernel feature, in memory: each "container" is a thread
that does what the test has told it to::

    from pycontainer.testing.fake import FakeDriver, Outcome

    fake = FakeDriver()
    fake.script("backup", Outcome(stdout="3 files\\n"))
    fake.script("restore", Outcome(oom_killed=True))
    fake.fail("pause", SetupError("freeze", errno.EBUSY))

    assert pycontainer.run(["backup"], driver=fake, capture_output=True, text=True).stdout == "3 files\\n"
    assert pycontainer.run(["restore"], driver=fake).status.oom_killed
    assert [call.verb for call in fake.calls] == ["start", "start"]

Code that chooses its driver by name, or not at all, is met by
:meth:`FakeDriver.installed`.  A program that nobody has scripted does not
exist, as in a real container: SetupError, execve, ENOENT.

It passes the conformance kit, so what works with it has a chance to work with
a real driver.  What it is not: isolation of any kind.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import pty
import select
import signal as signals
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
from attrs import field, frozen

from pycontainer.command import Command, Process, Resources
from pycontainer.driver import (
    ContainerInfo,
    ContainerProcess,
    ExecutionDriver,
    ExitStatus,
    Feature,
    FeatureProbe,
    LogLimits,
    Probe,
    State,
    Stdio,
)
from pycontainer.errors import (
    AlreadyExistsError,
    ContainerError,
    ContainerNotFoundError,
    InvalidCommandError,
    NotRunningError,
    SetupError,
    UnsupportedError,
    WaitTimeoutError,
)
from pycontainer.logs import LogRecord
from pycontainer.rootfs import lookup_user
from pycontainer.stats import CpuStats, MemoryStats, PidsStats, Stats
from pycontainer.testing._box import Ended, FakeContainer
from pycontainer.testing._detached import FakeDetached

if TYPE_CHECKING:
    from pycontainer.receipt import Receipt

__all__ = ["Call", "FakeContainer", "FakeDriver", "FakeProcess", "Outcome", "Program"]

#: What a container does: a function that gets its :class:`FakeContainer` and returns the exit code (None is 0).
Program: TypeAlias = Callable[[FakeContainer], "int | None"]

FEATURES = frozenset(
    {
        Feature.CREATE,
        Feature.EXEC,
        Feature.PAUSE,
        Feature.STATS,
        Feature.UPDATE,
        Feature.RESTORE,
        Feature.TTY,
        Feature.INIT,
        Feature.HOST_ROOTFS,
        Feature.ROOTLESS,
        Feature.MEMORY,
        Feature.CPU,
        Feature.CPUSET,
        Feature.PIDS,
    }
)

#: Above any pid that the kernel gives out (PID_MAX_LIMIT, 2**22), so that no signal can hit a real process.
_pids = itertools.count(2**22 + 1, 1000)


@frozen(kw_only=True)
class Outcome:
    """What becomes of a container, in this order.

    *start_delay* seconds in ``start``, or until its deadline or until it is
    given up; then *start_error*, if there is one, is raised there; *stdout*
    and *stderr*, bytes or str; *delay* seconds; with *hang* nothing more until
    a signal ends it; else the end: *exit_code*, *signal*, or *oom_killed*,
    which is SIGKILL by the kernel.
    """

    stdout: bytes | str = b""
    stderr: bytes | str = b""
    exit_code: int = 0
    signal: int | None = None
    oom_killed: bool = False
    delay: float = 0.0
    hang: bool = False
    start_delay: float = 0.0
    start_error: ContainerError | None = None

    def __call__(self, box: FakeContainer) -> int:
        """The program that does it."""
        box.write(self.stdout)
        box.write_error(self.stderr)
        box.sleep(None if self.hang else self.delay)
        if self.oom_killed:
            (box.main or box).oom_kills += 1
            raise Ended(None, signals.SIGKILL)
        if self.signal is not None:
            raise Ended(None, self.signal)
        return self.exit_code


@frozen
class Call:
    """One call of a verb of the driver, as :attr:`FakeDriver.calls` records it."""

    verb: str
    id: str
    arguments: Mapping[str, Any] = field(factory=dict)  #: ``command``, ``signal``, ``process`` or ``resources``


class FakeProcess(ContainerProcess):
    """The thread of one container, seen from outside."""

    def __init__(self, driver: FakeDriver, box: FakeContainer, terminal: int | None) -> None:
        self.id = box.command.id
        self.pid = box.pid
        self.pidfd = -1
        self.terminal = terminal
        self.box = box
        self.started = False
        self.starting: Stdio | None = None  # until when, and what gives it up
        self._driver = driver
        self._status: ExitStatus | None = None
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._ended = threading.Event()
        self._lock = threading.Lock()

    @property
    def state(self) -> State:
        """Its state, as ``info`` reports it."""
        if self._status is not None:
            return State.STOPPED
        if not self.started:
            return State.CREATED
        return State.PAUSED if self.box.paused else State.RUNNING

    def begin(self, program: Program) -> None:
        """Let *program* run, in a thread of its own."""
        self.started = True
        threading.Thread(target=self._live, args=(program,), name=f"fake-{self.id}", daemon=True).start()

    def _live(self, program: Program) -> None:
        code: int | None
        signal: int | None = None
        try:
            code = program(self.box) or 0
        except Ended as end:
            code, signal = end.exit_code, end.signal
        except Exception as error:  # a mistake of the test's program must not look like a hang
            with contextlib.suppress(BaseException):
                self.box.write_error(f"{type(error).__name__}: {error}\n")
            code = 255
        self.end(code, signal)

    def end(self, code: int | None, signal: int | None = None) -> None:
        """It is over, and everything that ``exec`` made ends with it."""
        for other in list(self._driver.execs_of(self)):
            other.box.deliver(signals.SIGKILL)
            other.wait()
        main = self.box.main
        if main is not None and self.box in main.others:
            main.others.remove(self.box)
        self.box.finish()
        oom = self.box.oom_kills > 0
        text = f"exited with code {code}" if signal is None else f"killed by signal {signal}"
        with self._lock:
            self._status = ExitStatus(
                code, None if signal is None else int(signal), oom, f"{text}; out of memory" if oom else text
            )
            if self._event >= 0:
                os.eventfd_write(self._event, 1)
        self._driver.forget(self)
        self._ended.set()

    def poll(self) -> ExitStatus | None:
        return self._status if self._ended.is_set() else None

    def wait(self, timeout: float | None = None) -> ExitStatus:
        if not self._ended.wait(None if timeout is None else min(timeout, threading.TIMEOUT_MAX)):
            raise WaitTimeoutError(self.id, timeout or 0.0)
        assert self._status is not None
        return self._status

    def send_signal(self, signal: int) -> None:
        if self.poll() is not None:
            return
        if self.started:
            self.box.deliver(signal)
        elif signal == signals.SIGKILL:
            self.end(None, signal)

    def receipt(self) -> Receipt:
        """What a driver would show that does what it declares: simulated, as is all of it."""
        from pycontainer.testing._receipt import simulated

        if self.poll() is not None:
            raise ProcessLookupError(f"{self.id} has ended")
        command = attrs.evolve(self.box.command, resources=(self.box.main or self.box).resources)
        return simulated(command, self.box.process, self.pid, self._driver.features())

    def fileno(self) -> int:
        return self._event

    def close(self) -> None:
        if self.poll() is None:
            self.send_signal(signals.SIGKILL)
            self._ended.wait()
        with self._lock:
            if self._event >= 0:
                os.close(self._event)
                self._event = -1

    def __del__(self) -> None:
        if getattr(self, "_event", -1) >= 0:
            os.close(self._event)


class FakeDriver(ExecutionDriver):
    """Simulated containers. *features* is what it declares, *probe* what it says about this host.

    :attr:`calls` records what it was asked, :meth:`script` and :meth:`fail`
    say how it answers.  Any method may be called from any thread.
    """

    name = "fake-0.1"

    def __init__(self, features: Iterable[Feature] = FEATURES, probe: Probe | None = None) -> None:
        self.calls: list[Call] = []
        self.programs: dict[str, Program] = dict(_PROGRAMS)
        self._features = frozenset(features)
        self._probe = probe
        self._running: dict[str, FakeProcess] = {}
        self._detached: dict[str, FakeDetached] = {}
        self._execs: list[FakeProcess] = []
        self._failures: dict[str, list[BaseException]] = {}
        self._lock = threading.RLock()

    # -- what a test says ------------------------------------------------------

    def script(self, program: str, *outcomes: Outcome | Program) -> None:
        """The program called *program* (``argv[0]``; ``"*"`` is every one without a script) does *outcomes*.

        With several, each start takes the next one, and the last one stays.
        There are ``true``, ``false``, ``echo``, ``cat``, ``sleep``, ``env``
        and ``pwd`` to begin with.
        """
        if not outcomes:
            raise TypeError("a script needs an outcome")
        left = list(outcomes)
        with self._lock:
            self.programs[program] = outcomes[0] if len(outcomes) == 1 else _InTurn(left)

    def fail(self, verb: str, error: BaseException, times: int = 1) -> None:
        """The next *times* calls of *verb* (``"start"``, ``"pause"``, ``"clean"``...) raise *error*."""
        if not hasattr(ExecutionDriver, verb):
            raise AttributeError(f"a driver has no verb {verb!r}")
        with self._lock:
            self._failures.setdefault(verb, []).extend([error] * times)

    @contextlib.contextmanager
    def installed(self, name: str = "fake") -> Iterator[FakeDriver]:
        """While inside, this is the driver called *name* and the default of this process."""
        from pycontainer import plugins

        entry: tuple[str, Mapping[str, object], ExecutionDriver] = (name, {}, self)
        before = os.environ.get("PYCONTAINER_DRIVER")
        plugins._made.insert(0, entry)
        os.environ["PYCONTAINER_DRIVER"] = name
        try:
            yield self
        finally:
            plugins._made.remove(entry)
            if before is None:
                del os.environ["PYCONTAINER_DRIVER"]
            else:
                os.environ["PYCONTAINER_DRIVER"] = before

    # -- what it can do --------------------------------------------------------

    def features(self) -> frozenset[Feature]:
        return self._features

    def probe(self) -> Probe:
        if self._probe is not None:
            return self._probe
        seen = {feature: FeatureProbe(usable=True, evidence="simulated") for feature in self._features}
        return Probe("fake", usable=True, version=self.name, evidence="simulated: runs nothing", features=seen)

    def validate(self, command: Command) -> Sequence[InvalidCommandError | UnsupportedError]:
        problems: list[InvalidCommandError | UnsupportedError] = []
        if isinstance(command.rootfs, str) and not os.path.isdir(command.rootfs):
            problems.append(InvalidCommandError("rootfs", f"{command.rootfs} is not a directory"))
        else:
            try:
                lookup_user(command.rootfs, command.process.user, command.process.additional_groups)
            except InvalidCommandError as error:
                problems.append(error)
        for mount in command.mounts:
            if mount.source is not None and not os.path.exists(mount.source):
                problems.append(InvalidCommandError("mounts.source", f"{mount.source} does not exist"))
        if command.config:
            problems.append(InvalidCommandError("config", "raw values are for other drivers: fake takes none"))
        return problems

    # -- the verbs -------------------------------------------------------------

    def start(self, command: Command, stdio: Stdio) -> ContainerProcess:
        self._note("start", command.id, command=command)
        process = self._make(command, stdio)
        process.starting = stdio
        return self._begin(process)

    def create(self, command: Command, stdio: Stdio) -> ContainerProcess:
        self._declared(Feature.CREATE)
        self._note("create", command.id, command=command)
        return self._make(command, stdio)

    def start_created(self, process: ContainerProcess) -> None:
        self._declared(Feature.CREATE)
        self._note("start_created", process.id)
        assert isinstance(process, FakeProcess)
        if process.state is not State.CREATED:
            raise NotRunningError(process.id, process.state.value)
        self._begin(process)

    def exec(self, id: str, process: Process, stdio: Stdio) -> ContainerProcess:
        self._declared(Feature.EXEC)
        self._note("exec", id, process=process)
        main = self._find(id, State.RUNNING).box
        with self._lock:
            box = FakeContainer(main.command, process, next(_pids), main)
            main.others.append(box)
            made = FakeProcess(self, box, self._connect(box, stdio))
            self._execs.append(made)
        made.starting = stdio
        return self._begin(made)

    def kill(self, id: str, signal: int) -> None:
        self._note("kill", id, signal=signal)
        self._find(id).send_signal(signal)

    def terminate(self, id: str) -> None:
        self._note("terminate", id)
        self._find(id).send_signal(signals.SIGKILL)

    def info(self, id: str) -> ContainerInfo:
        process, detached = self._running.get(id), self._detached.get(id)
        if detached is not None and process in (None, detached.process):
            return detached.info()
        if process is None:
            return ContainerInfo(id, State.STOPPED)
        return ContainerInfo(id, process.state, process.pid)

    def get_pids_for_container(self, id: str) -> Sequence[int]:
        return self._find(id).box.pids()

    def pause(self, id: str) -> None:
        self._declared(Feature.PAUSE)
        self._note("pause", id)
        self._find(id, State.RUNNING).box.freeze(True)

    def unpause(self, id: str) -> None:
        self._declared(Feature.PAUSE)
        self._note("unpause", id)
        self._find(id, State.PAUSED).box.freeze(False)

    def stats(self, id: str) -> Stats:
        self._declared(Feature.STATS)
        self._note("stats", id)
        box = self._find(id).box
        used = round(box.cpu_time * 1e9)
        return Stats(
            time=time.monotonic(),
            cpu=CpuStats(usage=used, user=used, system=0),
            memory=MemoryStats(usage=box.memory, limit=box.resources.memory, rss=box.memory, oom_kills=box.oom_kills),
            pids=PidsStats(current=len(box.pids()), limit=_limit(box.resources.pids_limit)),
        )

    def update(self, id: str, resources: Resources) -> None:
        self._declared(Feature.UPDATE)
        self._note("update", id, resources=resources)
        box = self._find(id).box
        given = {name: value for name, value in _fields(resources) if value is not None}
        if resources.memory is not None and resources.memory < box.memory:
            raise InvalidCommandError("resources.memory", f"{resources.memory} is less than what is used, {box.memory}")
        box.resources = attrs.evolve(box.resources, **given)

    def start_detached(self, command: Command, log: LogLimits, deadline: float | None = None) -> ContainerProcess:
        self._declared(Feature.RESTORE)
        self._note("start_detached", command.id, command=command)
        with self._lock:
            if command.id in self._detached:
                raise AlreadyExistsError(command.id)
            made = FakeDetached(command, log)
            with made.streams() as stdio:
                made.process = self._make(command, stdio)
            self._detached[command.id] = made
        made.watch()
        try:
            made.process.starting = Stdio(-1, -1, -1, deadline=deadline)
            self._begin(made.process)
        except BaseException:
            del self._detached[command.id]
            raise
        return made.attach()

    def restore(self, id: str) -> ContainerProcess:
        self._declared(Feature.RESTORE)
        self._note("restore", id)
        return self._known(id).attach()

    def containers(self) -> Sequence[ContainerInfo]:
        self._declared(Feature.RESTORE)
        return [detached.info() for detached in list(self._detached.values())]

    def logs(self, id: str, follow: bool = False, tail: int | None = None) -> Iterator[LogRecord]:
        self._declared(Feature.RESTORE)
        self._note("logs", id)
        return self._known(id).records(follow, tail)

    def delete(self, id: str) -> None:
        self._declared(Feature.RESTORE)
        self._note("delete", id)
        detached = self._known(id)
        if detached.process.poll() is None:
            raise ContainerError(f"container {id!r} is {detached.process.state.value}: stop it before it is removed")
        with self._lock:
            self._detached.pop(id, None)
        detached.process.close()

    def gc(self) -> Sequence[str]:
        self._note("gc", "")
        return ()

    def clean(self, id: str) -> None:
        self._note("clean", id)

    def close(self) -> None:
        for process in list(self._running.values()):
            if process.id not in self._detached:
                process.close()

    # -- how it is done --------------------------------------------------------

    def forget(self, process: FakeProcess) -> None:
        """*process* has ended."""
        detached = self._detached.get(process.id)
        if detached is not None and detached.process is process:
            detached.end()
        with self._lock:
            if self._running.get(process.id) is process:
                del self._running[process.id]
            elif process in self._execs:
                self._execs.remove(process)

    def execs_of(self, process: FakeProcess) -> Iterator[FakeProcess]:
        """What ``exec`` made in the container whose main process is *process*."""
        return (other for other in list(self._execs) if other.box.main is process.box)

    def _declared(self, feature: Feature) -> None:
        if feature not in self._features:
            raise UnsupportedError(self.name, feature)

    def _note(self, verb: str, id: str, **arguments: object) -> None:
        with self._lock:
            self.calls.append(Call(verb, id, arguments))
            failures = self._failures.get(verb)
            if failures:
                raise failures.pop(0)

    def _known(self, id: str) -> FakeDetached:
        try:
            return self._detached[id]
        except KeyError:
            raise ContainerNotFoundError(id) from None

    def _find(self, id: str, *states: State) -> FakeProcess:
        process = self._running.get(id)
        if process is None or (states and process.state not in states):
            raise NotRunningError(id, "stopped" if process is None else process.state.value)
        return process

    def _make(self, command: Command, stdio: Stdio) -> FakeProcess:
        problems = self.validate(command)
        if problems:
            raise problems[0]
        with self._lock:
            if command.id in self._running:
                raise AlreadyExistsError(command.id)
            box = FakeContainer(command, command.process, next(_pids))
            process = FakeProcess(self, box, self._connect(box, stdio))
            self._running[command.id] = process
        return process

    def _connect(self, box: FakeContainer, stdio: Stdio) -> int | None:
        """Give *box* its streams; the master of its terminal, if it has one."""
        if not box.process.tty:
            box.stdin, box.stdout, box.stderr = (
                fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in (stdio.stdin, stdio.stdout, stdio.stderr)
            )
            return None
        master, slave = pty.openpty()
        rows, columns = stdio.size or (0, 0)
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        box.stdin = box.stdout = box.stderr = slave
        return master

    def _begin(self, process: FakeProcess) -> FakeProcess:
        name = process.box.argv[0]
        program = self.programs.get(name) or self.programs.get("*")
        try:
            if isinstance(program, _InTurn):
                program = program.next()
            if isinstance(program, Outcome):
                _delay(process.id, program.start_delay, process.starting)
                if program.start_error is not None:
                    raise program.start_error
            if not process.box.is_directory(process.box.cwd):
                raise SetupError("chdir", errno.ENOENT, process.box.cwd)
            if program is None:
                raise SetupError("execve", errno.ENOENT, name)
        except BaseException:
            if process.terminal is not None:
                os.close(process.terminal)
            process.end(None, signals.SIGKILL)
            process.close()
            raise
        process.begin(program)
        return process


class _InTurn:
    """Outcomes that are taken one after the other; the last one stays."""

    def __init__(self, outcomes: list[Outcome | Program]) -> None:
        self._outcomes = outcomes
        self._lock = threading.Lock()

    def next(self) -> Outcome | Program:
        with self._lock:
            return self._outcomes.pop(0) if len(self._outcomes) > 1 else self._outcomes[0]

    def __call__(self, box: FakeContainer) -> int | None:
        return self.next()(box)


def _delay(id: str, seconds: float, stdio: Stdio | None) -> None:
    """A start that takes its time. Raises WaitTimeoutError when its deadline comes first, or it is given up."""
    if not seconds:
        return
    began = time.monotonic()
    poll = select.poll()
    if stdio is not None and stdio.give_up >= 0:
        poll.register(stdio.give_up, select.POLLIN)
    left = seconds if stdio is None or stdio.deadline is None else min(seconds, stdio.deadline - began)
    if poll.poll(max(0, round(left * 1000 + 0.5))) or left < seconds:
        raise WaitTimeoutError(id, time.monotonic() - began)


def _limit(value: int | None) -> int | None:
    return None if value is None or value < 0 else value


def _fields(resources: Resources) -> Iterator[tuple[str, Any]]:
    return ((each.name, getattr(resources, each.name)) for each in attrs.fields(Resources))


# -- the programs that there are to begin with


def _echo(box: FakeContainer) -> None:
    box.write(" ".join(box.argv[1:]) + "\n")


def _cat(box: FakeContainer) -> None:
    while data := box.read():
        box.write(data)


def _sleep(box: FakeContainer) -> None:
    box.sleep(float(box.argv[1]))


def _env(box: FakeContainer) -> None:
    box.write("".join(f"{name}={value}\n" for name, value in box.environment.items()))


def _pwd(box: FakeContainer) -> None:
    box.write(f"{box.cwd}\n")


_PROGRAMS: dict[str, Program] = {
    "true": Outcome(),
    "false": Outcome(exit_code=1),
    "echo": _echo,
    "cat": _cat,
    "sleep": _sleep,
    "env": _env,
    "pwd": _pwd,
}
