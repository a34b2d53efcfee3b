"""One container's life under any driver: its state, its locks, its clean-up. So drivers stay thin.

::

    creating --start--> running <--pause, unpause--> paused
        \\--create--> created --start--> running
    any of them --its end--> stopped

Two locks.  ``_lock`` serialises the verbs of one container and is held only
while a driver's verb runs; but a start, which may take as long as its hooks
do, runs without it, so that others can have it given up.  ``_waiting`` belongs
to the one thread that asks the driver's process for its end; it takes
``_lock`` last, so nobody who holds ``_lock`` may wait for it.

A signal handler may call anything, in the midst of anything that its thread
was about.  Both locks let their owner in again.  A wait within a wait, or
within a verb, asks the process itself and notes what it has seen; to finish,
which closes the process's descriptors, is left to what was interrupted.

Observers are told when the thread has let go of both locks.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal as signals
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeAlias, TypeVar
from weakref import WeakValueDictionary

from pycontainer import observers
from pycontainer.driver import ContainerProcess, ExecutionDriver, ExitStatus, Feature, State, Stdio
from pycontainer.errors import (
    AlreadyExistsError,
    ContainerError,
    ContainerLostError,
    InvalidCommandError,
    NotRunningError,
    SetupError,
    UnsupportedError,
    WaitTimeoutError,
    add_note,
)
from pycontainer.overlay import Overlay
from pycontainer.stdio import Pipes

if TYPE_CHECKING:
    from pycontainer.command import Command, Process, Resources
    from pycontainer.receipt import Receipt
    from pycontainer.stats import Stats

__all__ = ["Lifecycle", "required_features", "run"]

P = ParamSpec("P")
T = TypeVar("T")

#: What a waiter does until the container ends: (process, deadline) -> False if the deadline came first.
Meanwhile: TypeAlias = Callable[["ContainerProcess | None", "float | None"], bool]

# The containers that have not ended, by driver and id. A Lifecycle holds its
# driver, so id(driver) is nobody else's while the entry is there.
_ids_lock = threading.RLock()  # reentrant for signal handlers
_ids: WeakValueDictionary[tuple[int, str], Lifecycle] = WeakValueDictionary()


def _forget_inherited() -> None:
    """A fork inherits no containers, nor a lock that another thread held."""
    global _ids_lock, _ids
    _ids_lock = threading.RLock()
    _ids = WeakValueDictionary()


os.register_at_fork(after_in_child=_forget_inherited)


class _Start:
    """A start that goes on: whoever makes it holds :attr:`going`, anybody may have it given up."""

    def __init__(self) -> None:
        self.given_up = False
        self.going = threading.RLock()
        self.going.acquire()
        try:
            self.event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError:
            self.event = -1  # then the driver hears of it too late, and no start fails for want of this

    def give_up(self) -> None:
        """Tell the driver; with the lock of the life that it is about, as :meth:`close`."""
        self.given_up = True
        if self.event >= 0:
            os.eventfd_write(self.event, 1)

    def close(self) -> None:
        """There is nothing to be given up any more."""
        event, self.event = self.event, -1
        if event >= 0:
            os.close(event)


def _watching(stdio: Stdio, start: _Start) -> Stdio:
    return Stdio(
        stdio.stdin, stdio.stdout, stdio.stderr, stdio.size, stdio.deadline, start.event
    )  # evolve() takes 3 us


class _Verb:
    """The lock of a life, while a verb runs; then what has to wait until it is released."""

    __slots__ = ("_life",)

    def __init__(self, life: Lifecycle) -> None:
        self._life = life

    def __enter__(self) -> None:
        self._life._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._life._lock.release()
        self._life._settle()


class Lifecycle:
    """The life of one container: *command* under *driver*. Any method may be called from any thread."""

    detached = False  #: whether it outlives this process: pycontainer.detached
    _is_observed = True  # observers are to hear of it
    _announced = False  # they have heard of its start

    def __init__(self, driver: ExecutionDriver, command: Command) -> None:
        self.driver = driver
        self._command = command
        self.id = command.id
        self.process: ContainerProcess | None = None
        self.status: ExitStatus | None = None  #: known once a poll or a wait has seen the end
        self._state = State.CREATING
        self._lost: ContainerLostError | SetupError | None = None
        self._seen = False  # its end: status or _lost say how
        self._start: _Start | None = None  # while it is being created or started
        self.made_for: Stdio | None = None  #: what the one start had that was not refused for its moment
        self._news: deque[tuple[str, dict[str, object]]] = deque()  # what observers have not been told yet
        self._telling = False
        self._maker = os.getpid()
        self._lock = threading.RLock()
        self._waiting = threading.RLock()

    @property
    def command(self) -> Command:
        """What it was made from."""
        return self._command

    @property
    def payload(self) -> Process:
        """What it executes."""
        return self._command.process

    # -- states --------------------------------------------------------------

    @property
    def state(self) -> State:
        """The state, looked up now."""
        if not self.inherited:
            self._look()
        return self._state

    @property
    def ended(self) -> bool:
        """Whether its end has been seen."""
        return self._state is State.STOPPED

    @property
    def inherited(self) -> bool:
        """Whether a fork brought it here: it belongs to the process that made it."""
        return os.getpid() != self._maker

    @property
    def can_create(self) -> bool:
        """Nothing has been set up yet, nor is being set up."""
        return self._state is State.CREATING and self.process is None and self._start is None

    @property
    def can_start(self) -> bool:
        """Its program does not run yet, and nobody is about to start it."""
        return self.can_create or (self._start is None and self.state is State.CREATED)

    @property
    def can_signal(self) -> bool:
        """There is a process (OCI runtime spec, ``kill``)."""
        return self.state in (State.CREATED, State.RUNNING, State.PAUSED) and not self._seen

    @property
    def can_pause(self) -> bool:
        """Its program runs; the same goes for exec."""
        return self.state is State.RUNNING

    @property
    def can_unpause(self) -> bool:
        """It is frozen."""
        return self.state is State.PAUSED

    def _enter(self, state: State) -> None:
        """Every change of state comes through here, and the observers of hookspecs hear of it."""
        before, self._state = self._state, state
        if not observers.present:
            return
        if state is State.RUNNING and before in (State.CREATING, State.CREATED) and self._is_observed:
            assert self.process is not None
            self._announced = True
            self._note("started", pid=self.process.pid)
        elif state is State.STOPPED and self._announced:
            if self.status is not None and self.status.oom_killed:
                self._note("oom", status=self.status)
            self._note("exited", status=self.status)

    def _note(self, event: str, **facts: object) -> None:
        """Something that observers are to hear, once no lock is held: they may call any method."""
        self._news.append((event, facts))

    def _settle(self) -> None:
        """Do what had to wait for the locks, if this thread has let go of them."""
        unfinished = self._seen and not self.ended and self._start is None
        if not (self._news or unfinished) or self._is_held:
            return
        if unfinished:
            self._look()
        # One at a time, so that they come in their order; whoever is telling tells what comes meanwhile as well.
        while self._news:
            with self._lock:
                if self._telling or not self._news:
                    return
                event, facts = self._news.popleft()
                self._telling = True
            try:
                observers.tell(event, id=self.id, command=self.command, driver=self.driver, **facts)
            finally:
                self._telling = False

    @property
    def _is_held(self) -> bool:
        """Whether this thread is in the midst of a wait or a verb: then this is a signal handler, or was called by it.

        Asked of the lock, for a signal may come between acquiring it and noting that down.
        """
        return self.is_interrupted or bool(self._lock._is_owned())  # type: ignore[attr-defined]

    # -- from creating to running --------------------------------------------

    def create(self, stdio: Stdio) -> ContainerProcess:
        """Feature.CREATE: set everything up, up to the execve. Raises as :meth:`start`."""
        with self._verb():
            self._require(self.can_create, "created already")
            if Feature.CREATE not in self.driver.features():
                raise UnsupportedError(self.driver.name, Feature.CREATE)
            start = self._begin(stdio)
        return self._make(start, functools.partial(self.driver.create, self._command), stdio, State.CREATED)

    def start(self, stdio: Stdio | None = None) -> ContainerProcess:
        """Run the program: with *stdio* from nothing, without it after :meth:`create`.

        Raises InvalidCommandError with every problem that the driver found,
        UnsupportedError, AlreadyExistsError, SetupError, WaitTimeoutError,
        NotRunningError when somebody has it given up; then nothing is left.
        """
        with self._verb():
            self._require(self.can_start, "started already")
            start, process = self._begin(stdio), self.process
        if process is None:
            assert stdio is not None
            return self._make(start, functools.partial(self.driver.start, self._command), stdio, State.RUNNING)
        try:
            self.driver.start_created(process)
        except BaseException as error:
            with self._lock:
                self._is_over(start, State.STOPPED)
                process.close()
                self._clean(error)
            raise
        else:
            self._is_over(start, State.RUNNING)
        finally:
            start.going.release()
        self._settle()
        return process

    def start_and_look(self, deadline: float | None = None) -> Receipt:
        """After :meth:`create`: run the program; what held for it before its first instruction.

        It is killed at *deadline*, of time.monotonic().  Raises as
        :meth:`start`; SetupError where it cannot be traced.
        """
        if deadline is None:
            return self._start_and_look()
        timer = threading.Timer(max(0.0, deadline - time.monotonic()), self.kill_all)
        timer.daemon = True
        timer.start()
        try:
            return self._start_and_look()
        except (ContainerError, ProcessLookupError) as error:
            if time.monotonic() < deadline:
                raise
            raise WaitTimeoutError(self.id, 0.0) from error
        finally:
            timer.cancel()
            timer.join()

    def _start_and_look(self) -> Receipt:
        process = self._started()
        if process.pidfd < 0:  # nothing of this kernel: it is all the same when
            receipt = process.receipt()
            self.start()
            return receipt
        from pycontainer._exec_stop import ExecStop
        from pycontainer.receipt import read

        stop = ExecStop(process.pid, read)
        try:
            self.start()
        finally:
            stop.join()
        return stop.result()

    def _make(
        self, start: _Start, verb: Callable[[Stdio], ContainerProcess], stdio: Stdio, state: State
    ) -> ContainerProcess:
        """Have *verb* make the process, which then is in *state*; without the lock, for it may take its time."""
        try:
            try:
                self._prepare()
                try:
                    process = verb(_watching(stdio, start))
                except AlreadyExistsError:
                    self._release()  # and no clean-up, which would be that of the other one
                    raise
                except BaseException as error:
                    self._clean(error)
                    raise
            except BaseException as error:
                self._is_over(start, State.STOPPED if start.given_up else self._state)
                if start.given_up and isinstance(error, WaitTimeoutError):
                    raise NotRunningError(self.id) from None
                raise
            self._is_over(start, state, process)
            if start.given_up:  # by a driver that did not hear of it in time
                self._undo()
                raise NotRunningError(self.id)
        finally:
            start.going.release()
        self._settle()
        return process

    def _begin(self, stdio: Stdio | None) -> _Start:
        """From here on it is being started; with the lock. *stdio* is None after :meth:`create`."""
        self.made_for = stdio or self.made_for
        self._start = _Start()
        return self._start

    def _is_over(self, start: _Start, state: State, process: ContainerProcess | None = None) -> None:
        """A start has come to its end, after which the container is in *state*."""
        with self._lock:
            self._start = None
            start.close()
            if process is not None:
                self.process = process
            if state is not self._state:
                self._enter(state)

    def _undo(self) -> None:
        """End what has been started for nobody."""
        self.close()

    def give_up(self) -> bool:
        """Have a start given up that others make or are about to make. False when there is none, but a process."""
        with self._lock:
            if self.process is not None or self.inherited:
                return False
            if self._start is not None:
                self._start.give_up()
            else:
                self._state = State.STOPPED
            return True

    def _is_given_up(self) -> bool:
        """Whether what is to be killed is a start, which is given up; with the lock."""
        return self._start is not None and self.give_up()

    def _prepare(self) -> None:
        """What comes before the driver's turn."""
        self._validate()
        self._claim()

    def _validate(self) -> None:
        driver = self.driver
        declared = driver.features()
        missing = [
            UnsupportedError(driver.name, feature)
            for feature in required_features(self.command)
            if feature not in declared
        ]
        try:
            problems = driver.validate(self.command)
        except Exception:  # at what it never said that it could read
            if not missing:
                raise
            problems = ()
        if missing or problems:
            raise combine(problems, missing)

    def _claim(self) -> None:
        key = (id(self.driver), self.id)
        with _ids_lock:
            other = _ids.setdefault(key, self)
        if other is not self:
            if other.state is not State.STOPPED:  # looking releases the id of one that has ended unseen
                raise AlreadyExistsError(self.id)
            with _ids_lock:
                if _ids.setdefault(key, self) is not self:
                    raise AlreadyExistsError(self.id)

    def _release(self) -> None:
        key = (id(self.driver), self.id)
        with _ids_lock:
            if _ids.get(key) is self:
                del _ids[key]

    def _clean(self, first: BaseException | None = None) -> None:
        """The driver's clean, before the id is free again; a failure of it is a note on the *first* error."""
        try:
            self.driver.clean(self.id)
        except Exception as error:
            if first is None:
                raise
            add_note(first, f"the clean-up failed as well: {type(error).__name__}: {error}")
        finally:
            self._release()

    # -- verbs of a running one ----------------------------------------------

    def send_signal(self, signal: int) -> None:
        """*signal* to the main process; nothing once it has ended, as Popen. Raises NotRunningError before start.

        While it is being started SIGKILL and SIGTERM have that given up.
        """
        with self._verb():
            if signal in (signals.SIGKILL, signals.SIGTERM) and self._is_given_up():
                return
            process = self._started()
            if self.can_signal:
                process.send_signal(signal)

    def kill_all(self) -> None:
        """SIGKILL to everything in it, the driver's ``terminate``; nothing once it has ended. A start is given up.

        Raises NotRunningError before that.
        """
        with self._verb():
            if self._is_given_up():
                return
            self._started()
            if self.can_signal:
                with contextlib.suppress(NotRunningError):  # it ended by itself in the meantime
                    self.driver.terminate(self.id)

    def end(self) -> None:
        """:meth:`kill_all`, and nothing that runs on for it, as hooks do, may keep its end back for long."""
        self.kill_all()
        process = self.process
        if process is not None and not self.ended:
            process.leave()

    def pause(self) -> None:
        """Feature.PAUSE. Raises NotRunningError, also when it is paused already."""
        with self._verb():
            self._require(self.can_pause)
            self.driver.pause(self.id)
            self._enter(State.PAUSED)

    def unpause(self) -> None:
        """Feature.PAUSE. Raises NotRunningError; ContainerError when it is not paused."""
        with self._verb():
            self._require(self.can_unpause, "not paused")
            self.driver.unpause(self.id)
            self._enter(State.RUNNING)

    def pids(self) -> Sequence[int]:
        """Host pids of everything in it. Raises NotRunningError."""
        return self._ask(self.driver.get_pids_for_container)

    def receipt(self) -> Receipt:
        """What really holds for its main process. Raises NotRunningError, also before its program runs."""
        with self._verb():
            self._require(self.state in (State.RUNNING, State.PAUSED))
            try:
                return self._started().receipt()
            except ProcessLookupError:
                raise NotRunningError(self.id) from None

    def stats(self) -> Stats:
        """Feature.STATS. Raises NotRunningError."""
        return self._ask(self.driver.stats)

    def update(self, resources: Resources) -> None:
        """Feature.UPDATE. Raises NotRunningError; InvalidCommandError, after which every limit is as it was."""
        self._ask(self._update, resources)

    def _update(self, id: str, resources: Resources) -> None:
        declared = self.driver.features()
        for feature in (Feature.UPDATE, *_limited_features(resources)):
            if feature not in declared:
                raise UnsupportedError(self.driver.name, feature)
        self.driver.update(id, resources)

    def _ask(self, verb: Callable[Concatenate[str, P], T], *arguments: P.args, **keywords: P.kwargs) -> T:
        with self._verb():
            self._require(self.can_signal)
            return verb(self.id, *arguments, **keywords)

    # -- its end -------------------------------------------------------------

    def poll(self) -> ExitStatus | None:
        """The exit status, or None while it runs. Raises ContainerLostError, SetupError."""
        self._check_maker()
        self._look()
        if self._lost is not None:
            raise self._lost.with_traceback(None)
        return self.status

    def wait(self, timeout: float | None = None, meanwhile: Meanwhile | None = None) -> ExitStatus:
        """Block until the container ended and all of it is removed; then its status, each time.

        *timeout* in seconds.  *meanwhile* moves the bytes of its streams: it
        gets the process, or None if it has ended, and the deadline.  Raises
        NotRunningError before start, WaitTimeoutError, ContainerLostError,
        SetupError if it is dead and the driver could not learn how it ended.
        """
        self._check_maker()
        process = self._started()
        deadline = None if timeout is None else time.monotonic() + timeout

        def remaining() -> float | None:
            return None if deadline is None else max(0.0, deadline - time.monotonic())

        try:
            if self._is_held:
                self._ask_process(lambda: process.wait(remaining()))
            else:
                self._wait_in_turn(process, deadline, remaining, meanwhile)
        except WaitTimeoutError:
            raise WaitTimeoutError(self.id, timeout or 0.0) from None
        if self._lost is not None:
            raise self._lost.with_traceback(None)
        if self.status is None:  # created, but never started
            raise NotRunningError(self.id)
        return self.status

    def _wait_in_turn(
        self,
        process: ContainerProcess,
        deadline: float | None,
        remaining: Callable[[], float | None],
        meanwhile: Meanwhile | None,
    ) -> None:
        left = remaining()
        if not self._waiting.acquire(timeout=-1 if left is None else min(left, threading.TIMEOUT_MAX)):
            raise WaitTimeoutError(self.id, 0.0)
        try:
            try:
                over = self._seen or self.ended
                if meanwhile is not None and not meanwhile(None if over else process, deadline):
                    raise WaitTimeoutError(self.id, 0.0)
                if not over:
                    self._ask_process(lambda: process.wait(remaining()))
            except (ContainerLostError, SetupError) as error:
                self._see(None, error)
            finally:
                self._finish()
        finally:
            self._waiting.release()
            self._settle()

    @property
    def is_interrupted(self) -> bool:
        """Whether this is a signal handler in the midst of a wait of the same thread's."""
        return bool(self._waiting._is_owned())  # type: ignore[attr-defined]

    def close(self) -> None:
        """Kill it if it still runs, and return when it is gone. Does nothing in a forked child.

        A start that another thread makes is given up.
        """
        if self.inherited:
            return
        start = self._start
        if start is not None and self.give_up():
            with start.going:  # until it is over
                pass
        process = self.process
        if process is None or self.ended:
            return
        try:
            self.kill_all()
            process.leave()
            self.wait()
        except BaseException as error:
            if self._seen and error is self._lost:
                return  # dead, which is what was asked for
            process.close()  # kills it without asking anybody
            raise

    def abandon(self) -> bool:
        """For a finalizer, which may run anywhere and must not lock: kill it without waiting. Was it alive?"""
        process = self.process
        if process is None or self.inherited or self.ended:
            return False
        process.close()
        return True

    def _look(self) -> None:
        """Notice the end, if nobody else is about to."""
        process = self.process
        if process is None or self.ended:
            return
        if self.is_interrupted:  # what was interrupted finishes
            self._ask_process(process.poll)
            return
        if not self._waiting.acquire(blocking=False):
            return
        try:
            self._ask_process(process.poll)
            self._finish()
        finally:
            self._waiting.release()
        self._settle()

    def _ask_process(self, verb: Callable[[], ExitStatus | None]) -> None:
        """See what *verb*, the process's poll or wait, says of its end. Raises WaitTimeoutError."""
        if self._seen:
            return
        try:
            status = verb()
        except (ContainerLostError, SetupError) as error:
            self._see(None, error)
        else:
            if status is not None:
                self._see(status)

    def _see(self, status: ExitStatus | None, lost: ContainerLostError | SetupError | None = None) -> None:
        """Note how it ended; the first news count."""
        if not self._seen:
            self.status, self._lost, self._seen = status, lost, True

    def _finish(self) -> None:
        """Of a container whose end has been seen let go of everything; whoever is just starting it does it himself."""
        with self._lock:
            if not self._seen or self.ended or self._start is not None:
                return
            assert self.process is not None
            self._enter(State.STOPPED)
            try:
                self.process.close()
            finally:
                self._clean(self._lost)
            if observers.present and self._announced:
                self._note("cleaned")

    # -- what every verb checks ----------------------------------------------

    def _verb(self) -> _Verb:
        self._check_maker()
        return _Verb(self)

    def _check_maker(self) -> None:
        if self.inherited:
            raise ContainerError(f"container {self.id!r} belongs to process {self._maker}: a fork inherits none")

    def _require(self, allowed: bool, otherwise: str = "") -> None:
        if not allowed:
            state = self._state
            if otherwise and (state in (State.CREATED, State.RUNNING, State.PAUSED) or self._start is not None):
                raise ContainerError(f"container {self.id!r} is {otherwise}: it is {state.value}")
            raise NotRunningError(self.id, state.value)

    def _started(self) -> ContainerProcess:
        if self.process is None:
            raise NotRunningError(self.id, self._state.value)
        return self.process


class ExecLifecycle(Lifecycle):
    """The life of a further *process* in the running *container*: Feature.EXEC."""

    _is_observed = False

    def __init__(self, container: Lifecycle, process: Process) -> None:
        super().__init__(container.driver, container.command)
        self._container = container
        self._payload = process

    @property
    def command(self) -> Command:
        """That of its container, with another process; made when it is asked for, which nobody does but for aio."""
        return self._command.copy_with(process=self._payload)

    @property
    def payload(self) -> Process:
        return self._payload

    def start(self, stdio: Stdio | None = None) -> ContainerProcess:
        """Run the program. Raises NotRunningError, also when the container is paused, UnsupportedError, SetupError."""
        container = self._container
        assert stdio is not None
        with container._verb():
            container._require(container.can_pause)
            if Feature.EXEC not in self.driver.features():
                raise UnsupportedError(self.driver.name, Feature.EXEC)
        # Without the container's lock: killing it must not wait for this.
        with self._verb():
            self._require(self.can_create, "started already")
            start = self._begin(stdio)
        return self._make(start, functools.partial(self.driver.exec, self.id, self._payload), stdio, State.RUNNING)

    def kill_all(self) -> None:
        """SIGKILL to it; nothing once it has ended."""
        self.send_signal(signals.SIGKILL)

    def _prepare(self) -> None:
        """Nothing: it has the id of its container, which was looked at before."""

    def _clean(self, first: BaseException | None = None) -> None:
        """Nothing: what there is to clean is the container's."""


def run(
    driver: ExecutionDriver,
    command: Command,
    pipes: Pipes | None = None,
    start_callback: Callable[[Command, int], object] | None = None,
) -> ExitStatus:
    """What :meth:`ExecutionDriver.run` does: Docker 0.9's ``Run``, with everything that this module looks after."""
    life = Lifecycle(driver, command)
    with (pipes or Pipes()).attach(tty=command.process.tty) as streams:
        try:
            process = life.start(streams.stdio)
            streams.started(process)
            if start_callback is not None:
                start_callback(command, process.pid)
            return life.wait(meanwhile=streams.pump)
        finally:
            life.close()


def required_features(command: Command) -> list[Feature]:
    """The features that *command* cannot do without: none of its fields may be silently ignored."""
    needs = (
        (Feature.TTY, command.process.tty),
        (Feature.INIT, command.init),
        (Feature.HOST_ROOTFS, not isinstance(command.rootfs, (str, Overlay))),
        (Feature.OVERLAY, isinstance(command.rootfs, Overlay)),
        (Feature.NETWORK, any(network.mode not in ("none", "host") for network in command.networks)),
        (Feature.DEVICES, bool(command.devices)),
        (Feature.HOOKS, command.hooks is not None),
        (Feature.NETWORK, bool(command.dns or command.dns_search or command.extra_hosts)),
        (Feature.SYSCTLS, bool(command.sysctls)),
        (Feature.USERNS, command.userns is not None or bool(command.uid_mappings)),
        (Feature.LABELS, command.is_labelled),
        (Feature.SECCOMP_NOTIFY, _asks(command)),  # before the other, which goes with it: an error names the first
        (Feature.SECCOMP, isinstance(command.seccomp, Mapping)),
    )
    needed = [feature for feature, is_needed in needs if is_needed]
    return needed + [feature for feature in _limited_features(command.resources) if feature not in needed]


def _asks(command: Command) -> bool:
    """Whether its filter does."""
    if not isinstance(command.seccomp, Mapping):
        return False
    from pycontainer.seccomp import notifying

    return bool(notifying(command.seccomp))


def _limited_features(limits: Resources) -> list[Feature]:
    """The features that *limits* need."""
    disks = (limits.device_read_bps, limits.device_write_bps, limits.device_read_iops, limits.device_write_iops)
    given = (
        (Feature.MEMORY, (limits.memory, limits.memory_swap)),
        (Feature.CPU, (limits.cpu_shares, limits.cpu_quota, limits.cpu_period)),
        (Feature.CPUSET, (limits.cpuset_cpus, limits.cpuset_mems)),
        (Feature.PIDS, (limits.pids_limit,)),
        (Feature.BLKIO, (limits.blkio_weight, limits.blkio_weight_device, *disks)),
        (Feature.HUGETLB, (limits.hugepage_limits,)),
        (Feature.DEVICES, (limits.device_cgroup_rules,)),
    )
    return [feature for feature, values in given if values.count(None) < len(values)]


def combine(
    problems: Sequence[InvalidCommandError | UnsupportedError], missing: Sequence[UnsupportedError] = ()
) -> InvalidCommandError | UnsupportedError:
    """Every problem in one error, what the error itself does not say being notes.

    It is of the features that are *missing*, if any are, for nothing else can
    be said with certainty then; else of the fields, if there is a problem with
    one; else of what is unsupported here.
    """
    invalid = [pair for problem in problems if isinstance(problem, InvalidCommandError) for pair in problem.problems]
    unsupported = [problem for problem in problems if isinstance(problem, UnsupportedError)]
    error: InvalidCommandError | UnsupportedError
    notes: list[ContainerError] = []
    if missing:
        error = missing[0]
        features = {each.feature for each in missing}
        unsupported = [problem for problem in unsupported if problem.feature not in features]
        notes = [*missing[1:], *(InvalidCommandError(*pair) for pair in invalid)]
    else:
        error = InvalidCommandError(*invalid[0], invalid[1:]) if invalid else unsupported.pop(0)
    for problem in (*notes, *unsupported):
        add_note(error, str(problem))
    return error


def living() -> list[Lifecycle]:
    """The containers of this process that have been started or created and have not ended."""
    with _ids_lock:
        lives = list(_ids.values())
    return [life for life in lives if life.state is not State.STOPPED]
