"""Detached containers on the caller's side: starting one, finding it again, asking its monitor."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import marshal
import os
import signal
import socket
import sys
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pycontainer.driver import ContainerInfo, ContainerProcess, ExecutionDriver, ExitStatus, LogLimits, State
from pycontainer.errors import (
    AlreadyExistsError,
    ContainerError,
    ContainerLostError,
    ContainerNotFoundError,
    NotRunningError,
    SetupError,
    WaitTimeoutError,
)
from pycontainer.logs import LogRecord, read_log
from pycontainer.service import TRUNCATED, ServiceGoneError, exit_status, send_request, wait_readable
from pycontainer_native import state, userns
from pycontainer_native.cgroups import Cgroup, Group, Layout, freezer
from pycontainer_native.cgroups.layout import LAUNCHER_DIRECTORY
from pycontainer_native.cgroups.live import DYING, remove_dead
from pycontainer_native.leases import Lease, lease_ids
from pycontainer_native.namespaces import BRIDGES
from pycontainer_native.process import NativeProcess
from pycontainer_native.state import Claim, Record, Store

if TYPE_CHECKING:
    import weakref

    from pycontainer.command import Command
    from pycontainer_native.given import Given, Making
    from pycontainer_native.launchers import Launchers
    from pycontainer_native.plan import Plan
    from pycontainer_native.userns import UserNamespace

#: How long a monitor that has closed its sockets may take to be gone (seconds).
PATIENCE = 5.0

#: And where its start is too late already.
LATE = 2.0


class DetachedProcess(NativeProcess):
    """A container that is its monitor's: when this end of the status socket closes, it goes on.

    *path* is of its state directory; *outcome* tells how it ended, or that
    nobody knows, once the monitor is silent.
    """

    service = "monitor"

    def __init__(
        self,
        id: str,
        command: Command | None,
        status: socket.socket,
        groups: Sequence[Group],
        namespaces: Sequence[str],
        path: str,
        outcome: Callable[[], ExitStatus | ContainerError],
        plan: Plan | None = None,
    ) -> None:
        self._path = path
        self._how_it_ended = outcome
        super().__init__(id, command, status, groups, namespaces, plan)

    @property
    def state(self) -> State:
        """Its state, for which others may be the cause."""
        state = self._state
        if state in (State.RUNNING, State.PAUSED):
            state = State.PAUSED if freezer.is_frozen(self.cgroup()) else State.RUNNING
        return state

    @state.setter
    def state(self, state: State) -> None:
        self._state = state

    def ask(self, data: bytes, fds: list[int]) -> None:
        """Give the monitor a request, as a launcher takes it. Raises ServiceGoneError."""
        ask_monitor(self._path, data, fds)

    def leave(self) -> None:
        """Its hooks are its monitor's, as all of it."""

    def attach(self) -> None:
        """Be told of what becomes of it, whoever started it. Raises ContainerNotFoundError: that did not succeed.

        SetupError when this process cannot take its descriptors.
        """
        try:
            self.wait_for_start()
        except SetupError as error:
            if error.step == TRUNCATED:
                raise
            if error.errno != errno.ESRCH:
                raise ContainerNotFoundError(self.id) from None
            self.end(self.on_silence())  # it has ended, and its monitor has told everybody else already
        except (ContainerLostError, NotRunningError):
            pass  # it has ended: how, poll() says

    def on_silence(self) -> ExitStatus | ContainerError:
        return self._how_it_ended()

    def on_closed(self) -> ContainerError:
        return ContainerError(f"container {self.id!r}: this process has let go of it")


class DetachedVerbs(ExecutionDriver):
    """The native driver's verbs for detached containers. What is declared here and not defined is the driver's."""

    _store: Store
    _launchers: Launchers
    _has_collected = False
    _processes: weakref.WeakValueDictionary[str, NativeProcess]
    _sockets: set[Any]

    @property
    @abstractmethod
    def layout(self) -> Layout: ...

    @abstractmethod
    def compile(self, command: Command, *, ids: UserNamespace | None = None) -> Plan: ...

    @abstractmethod
    def _check(self, command: Command) -> None: ...

    @abstractmethod
    def _lend(
        self, command: Command, compiled: Plan, deadline: float | None, *, held: Sequence[Lease] = ()
    ) -> contextlib.AbstractContextManager[Given]: ...

    @abstractmethod
    def _register(self, process: NativeProcess) -> None: ...

    def start_detached(self, command: Command, log: LogLimits, deadline: float | None = None) -> ContainerProcess:
        self._check(command)
        if not self._has_collected:  # once: it takes as long as there are containers
            self._has_collected = True
            self._store.collect(self._kill_rest)
        with contextlib.ExitStack() as stack:
            token = os.urandom(8).hex()
            directory = f"pycontainer-{token}/1"
            compiled, leases = self._compile_leased(stack, command, directory)
            config = {
                "command": json.loads(command.to_json()),
                "created": time.time(),
                "directory": directory,
                "groups": [[group.base, group.version, list(group.controllers)] for group in compiled.groups],
                "namespaces": list(compiled.namespaces),
                "ids": None if compiled.ids is None else [compiled.ids.uids, compiled.ids.gids],
            }
            try:
                claim = self._store.claim(command.id, config)
            except OSError as error:
                raise SetupError("record the container", error.errno or errno.EIO, error.filename) from None
            self._own(stack, claim)
            try:
                given = stack.enter_context(self._lend(command, compiled, deadline, held=leases))
                return self._start_claimed(stack, claim, command, compiled, given, (token, log), deadline)
            except BaseException as error:
                stack.__exit__(*sys.exc_info())  # the lock is the monitor's alone, if there is one
                # As long as a launcher does not even answer, its request has the lock: what stays then is collected.
                patience = LATE if isinstance(error, WaitTimeoutError) else state.PATIENCE
                self._store.remove(command.id, claim.config, patience)
                raise

    def _compile_leased(
        self, stack: contextlib.ExitStack, command: Command, directory: str
    ) -> tuple[Plan, Sequence[Lease]]:
        """The plan for *command*, and the locks on its ids that the monitor is to hold, whose cgroups are *directory*.

        This process's descriptors of them are closed with *stack*: the ids are
        the monitor's from then on, and not free before its container is gone.
        Raises InvalidCommandError, SetupError.
        """
        if command.userns != "auto":
            return self.compile(command), ()
        ids, lease = lease_ids()
        self._own(stack, lease)
        compiled = self.compile(command, ids=ids)
        try:
            userns.note_cgroups(lease.fd, [f"{group.base}/{directory}" for group in compiled.groups])
        except OSError as error:
            raise SetupError("write down whose the ids are", error.errno or errno.EPROTO) from None
        return compiled, [lease]

    def _start_claimed(
        self,
        stack: contextlib.ExitStack,
        claim: Claim,
        command: Command,
        compiled: Plan,
        given: Given,
        options: tuple[str, LogLimits],
        deadline: float | None,
    ) -> DetachedProcess:
        """Have a monitor forked for *claim*, and a container started by that. *stack* closes what is its own."""

        def pair() -> tuple[socket.socket, socket.socket]:
            try:
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            except OSError as error:
                raise SetupError("make a status socket", error.errno or errno.EMFILE) from None
            self._own(stack, theirs)
            return ours, theirs

        token, log = options
        step, outputs = "open /dev/null", list[int]()
        try:
            stdio = [os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)] * 3
            stack.callback(os.close, stdio[0])
            step = "make a pipe for the log"
            for fd in () if command.process.tty else (1, 2):  # for a terminal that is ignored
                output, stdio[fd] = os.pipe2(os.O_CLOEXEC)
                outputs.append(output)
                stack.callback(os.close, output)
                stack.callback(os.close, stdio[fd])
            step = "make the monitor's socket"
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._own(stack, listener)
            listener.bind(f"/proc/self/fd/{claim.fd}/socket")
            listener.listen(128)
        except OSError as error:
            raise SetupError(step, error.errno or errno.EIO) from None
        status, theirs = pair()
        process = DetachedProcess(
            command.id, command, status, compiled.groups, compiled.namespaces, claim.path,
            functools.partial(self._outcome, command.id), compiled,
        )  # fmt: skip
        try:
            self._register(process)
            connection, monitors = pair()
            self._own(stack, connection)
            answer, answering = pair()
            self._own(stack, answer)
            request = marshal.dumps((None, "detach", token, log.size, log.files))
            self._launchers.ask(request, [answering.fileno(), monitors.fileno(), listener.fileno(), claim.fd, *outputs])
            answering.close()
            began = time.monotonic()
            while not wait_readable(answer.fileno(), deadline):
                if deadline is not None and time.monotonic() >= deadline:
                    raise WaitTimeoutError(command.id, max(0.0, deadline - began))
            said = answer.recv(4096)
            if not said or marshal.loads(said)[0] != "monitor":
                raise SetupError(*(marshal.loads(said)[1:3] if said else ("fork a monitor", errno.EPIPE)))
            with contextlib.suppress(ServiceGoneError):  # it has died: which process finds out by itself
                request = compiled.wire(command.id, leased=given.leased)
                send_request(connection, request, [theirs.fileno(), *stdio, *given.fds])
            theirs.close()
            process.wait_for_start(State.CREATING, deadline)
        except BaseException:
            process.close()
            raise
        return process

    def _own(self, stack: contextlib.ExitStack, end: socket.socket | Claim | Lease | Making) -> None:
        """Have *stack* close it, and know it, so that a child forked by another thread lets go of its copy."""
        self._sockets.add(end)
        stack.callback(end.close)
        stack.callback(self._sockets.discard, end)

    def restore(self, id: str) -> ContainerProcess:
        return self._attach(self._known(id))

    def _known(self, id: str) -> Record:
        record = self._store.find(id)
        if record is None:
            raise ContainerNotFoundError(id)
        return record

    def _attach(self, record: Record) -> DetachedProcess:
        other = self._processes.get(record.id)
        if other is not None and not isinstance(other, DetachedProcess) and other.state is not State.STOPPED:
            raise AlreadyExistsError(record.id)
        status, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        process = DetachedProcess(
            record.id, record.command, status, _groups(record), record.config["namespaces"], record.path,
            functools.partial(self._outcome, record.id),
        )  # fmt: skip
        try:
            with contextlib.ExitStack() as stack:
                self._own(stack, theirs)
                process.ids = _ids(record) or process.ids
                if record.start is not None and record.start["pid"] is not None:
                    process.pid, process.directory = record.start["pid"], record.config["directory"]
                if record.alive:
                    with contextlib.suppress(ServiceGoneError):
                        process.ask(marshal.dumps((None, "attach")), [theirs.fileno()])
            process.attach()
        except BaseException:
            process.close()
            raise
        if process.pidfd >= 0:
            self._processes[record.id] = process
        return process

    def _detached(self, id: str) -> DetachedProcess | None:
        """A detached container that runs, whoever made it; None when there is none."""
        record = self._store.find(id)
        if record is None or record.has_ended:
            return None
        with contextlib.suppress(ContainerError):
            process = self._attach(record)
            if process.poll() is None:
                return process
            process.close()
        return None

    def _outcome(self, id: str) -> ExitStatus | ContainerError:
        """How a container ended whose monitor is silent: its status, or that nobody knows."""
        deadline = time.monotonic() + PATIENCE
        record = self._store.find(id)
        while record is not None and not record.has_ended and time.monotonic() < deadline:
            time.sleep(0.002)  # it has closed its sockets, and is about to be gone
            record = self._store.find(id)
        if record is None:
            return ContainerLostError(id, "it was removed")
        if not record.alive and not record.is_settled:
            self._kill_rest(record)
        status = _status(record)
        if status is None:
            words = f": {record.error['words']}" if record.error else ""
            return ContainerLostError(id, record.problem or f"its monitor died{words}")
        return status

    def _kill_rest(self, record: Record) -> bool:
        """Kill and remove what a dead monitor has left; whether nothing is left."""
        name = record.config["directory"].partition("/")[0]
        groups = _groups(record)
        if not name and record.problem:  # where its cgroups are is not known: the sweep of the dead finds them
            return _end_first(record)
        if not LAUNCHER_DIRECTORY.fullmatch(name) or not all(map(self._is_cgroup, groups)):
            return False  # no driver has written that
        paths = [(group.version, group.controllers, f"{group.base}/{name}") for group in groups]
        remove_dead(paths, DYING)
        # Last: where there are cgroups it is dead now, with all the others.
        return _end_first(record) and not any(os.path.lexists(path) for _, _, path in paths)

    def _is_cgroup(self, group: Group) -> bool:
        """Whether its base is in a hierarchy of this host: its maker's own cgroup need not be this process's."""
        places = [place.mountpoint for place in self.layout.hierarchies if place.version == group.version]
        return os.path.realpath(group.base) == group.base and any(
            f"{group.base}/".startswith(f"{place}/") for place in places
        )

    def containers(self) -> Sequence[ContainerInfo]:
        return [self._describe(record) for record in self._store.records()]

    def _describe(self, record: Record) -> ContainerInfo:
        state, pid, ended, status = State.STOPPED, None, None, None
        if record.has_ended or record.exit is not None:  # while its poststop hooks run it has, too
            if record.exit is not None:
                ended, status = record.exit["ended"], _status(record)
        elif record.start is None:
            state = State.CREATING
        else:
            state = State.PAUSED if freezer.is_frozen(_cgroup(record)) else State.RUNNING
            pid = record.start["pid"]
        created = record.config["created"]
        return ContainerInfo(record.id, state, pid, record.command, created, ended, status, record.problem)

    def logs(self, id: str, follow: bool = False, tail: int | None = None) -> Iterator[LogRecord]:
        record = self._known(id)
        return _found(
            id, _follow(record, tail) if follow and not record.has_ended else read_log(record.path, None, tail)
        )

    def delete(self, id: str) -> None:
        record = self._known(id)
        if not record.has_ended and not is_there(record.path):  # another remover or a collector has its lock
            self._outcome(id)
            record = self._known(id)
        if not record.has_ended:
            why = "is running: stop it before it is removed"
            if record.exit is not None:
                why = "has ended, but its poststop hooks run, or something in its cgroups does not end: wait for it"
            raise ContainerError(f"container {id!r} {why}")
        if not record.is_settled and not self._kill_rest(record):
            raise ContainerError(f"container {id!r} cannot be removed: something in its cgroups does not end")
        removed = self._store.remove(id, record.config)
        if removed is None:
            raise ContainerNotFoundError(id)  # somebody else has removed it meanwhile
        if not removed:
            raise ContainerError(f"container {id!r} cannot be removed: its monitor does not end")

    def gc(self) -> Sequence[str]:
        gone = self._launchers.sweep(everywhere=True)
        for record in self._store.records():
            if not record.alive and not record.is_settled:
                self._kill_rest(record)
        for what in self._store.collect(self._kill_rest, lost=True):
            gone.append(f"container {what.id}: {what.path}" if isinstance(what, Record) else what)
        if os.path.exists(BRIDGES):
            from pycontainer_native.network import remove_bridges

            gone += [f"bridge {name}" for name in remove_bridges()]
        return gone


def _end_first(record: Record) -> bool:
    """Kill its first process, whether or not it has cgroups; whether that is gone. Any other one has its pid by now."""
    if record.start is None or record.start.get("began") is None:
        return True
    pid = record.start["pid"]
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        from pycontainer_native.monitor import began  # not what a caller needs else

        if began(pid) == record.start["began"]:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            return wait_readable(pidfd, time.monotonic() + PATIENCE)
        return True
    finally:
        os.close(pidfd)


def is_there(path: str) -> bool:
    """Whether a monitor can be asked: there is one, but it may not answer."""
    try:
        with _connect(path):
            return True
    except ServiceGoneError:
        return False


def ask_monitor(path: str, data: bytes, fds: list[int]) -> None:
    """Give a request to the monitor whose state directory is *path*. Raises ServiceGoneError."""
    with _connect(path) as connection:
        try:
            send_request(connection, data, fds)
        except ConnectionError:
            raise ServiceGoneError from None


def _connect(path: str) -> socket.socket:
    try:
        directory = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ServiceGoneError from None
    try:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            # By the descriptor: a path may be longer than an address can be (unix(7)).
            connection.connect(f"/proc/self/fd/{directory}/socket")
        except (ConnectionError, FileNotFoundError):
            connection.close()
            raise ServiceGoneError from None
        except BaseException:
            connection.close()
            raise
        return connection
    finally:
        os.close(directory)


def _found(id: str, records: Iterator[LogRecord]) -> Iterator[LogRecord]:
    """Likewise; raises ContainerNotFoundError when it is removed before the first look."""
    try:
        yield from records
    except FileNotFoundError:
        raise ContainerNotFoundError(id) from None


def _follow(record: Record, tail: int | None) -> Iterator[LogRecord]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs, contextlib.suppress(ServiceGoneError):
            ask_monitor(record.path, marshal.dumps((None, "follow")), [theirs.fileno()])

        def wait() -> bool:
            """Until something was written; not once for each time, if it was often."""
            goes_on = bool(ours.recv(16))
            with contextlib.suppress(BlockingIOError):
                while goes_on:
                    goes_on = bool(ours.recv(16, socket.MSG_DONTWAIT))
            return goes_on

        yield from read_log(record.path, wait, tail)


def _groups(record: Record) -> tuple[Group, ...]:
    groups = record.config["groups"]
    try:
        return tuple(Group(str(base), int(version), tuple(controllers)) for base, version, controllers in groups)
    except (TypeError, ValueError):  # no driver has written that
        return ()


def _ids(record: Record) -> UserNamespace | None:
    """Those of its user namespace, if its maker has put them on record: where the Command leaves them to the driver."""
    ids = record.config.get("ids")
    if ids is None:
        return None
    uids, gids = (tuple((inside, outside, count) for inside, outside, count in maps) for maps in ids)
    return userns.UserNamespace(uids, gids)


def _cgroup(record: Record) -> Cgroup:
    directory = record.config["directory"]
    return Cgroup(tuple((g.version, g.controllers, f"{g.base}/{directory}") for g in _groups(record)))


def _status(record: Record) -> ExitStatus | None:
    end = record.exit
    if end is None or (end["exit_code"] is None and end["signal"] is None):
        return None
    return exit_status(end["exit_code"], end["signal"], end["oom_kills"], end["note"])
