"""The native driver: a Command's way to the launcher, and the verbs."""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import os
import signal as signals
import socket
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from pycontainer.driver import (
    ContainerInfo,
    ContainerProcess,
    Feature,
    LogLimits,
    Probe,
    State,
    Stdio,
)
from pycontainer.errors import (
    AlreadyExistsError,
    ContainerError,
    ContainerLostError,
    InvalidCommandError,
    NotRunningError,
    SetupError,
    UnsupportedError,
)
from pycontainer.filters import Filters
from pycontainer.seccomp import notifying
from pycontainer.service import ServiceGoneError
from pycontainer.spec import limits_to_oci, process_to_oci, standing_to_oci, to_oci
from pycontainer_native import listener, plan, userns
from pycontainer_native.cgroups import Cgroup, Group, Layout, freezer
from pycontainer_native.checks import Checks, check_further
from pycontainer_native.detached import DetachedProcess, DetachedVerbs
from pycontainer_native.given import NOTHING, Given, Making, is_lent, lend, make_namespaces, upper_of
from pycontainer_native.host import Host
from pycontainer_native.launchers import Launchers
from pycontainer_native.leases import Lease, lease_ids, lease_upper
from pycontainer_native.process import NativeProcess
from pycontainer_native.state import Claim, Store

if TYPE_CHECKING:
    from pycontainer.command import Command, Process, Resources
    from pycontainer.stats import Stats
    from pycontainer_native.cgroups.devices import Rules

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
        Feature.OVERLAY,
        Feature.MEMORY,
        Feature.CPU,
        Feature.BLKIO,
        Feature.HUGETLB,
        Feature.DEVICES,
        Feature.CPUSET,
        Feature.PIDS,
        Feature.SECCOMP,
        Feature.SECCOMP_NOTIFY,
        Feature.NETWORK,
        Feature.SYSCTLS,
        Feature.LABELS,
        Feature.HOOKS,
        Feature.ROOTLESS,
        Feature.USERNS,
    }
)


class NativeDriver(DetachedVerbs):
    """Namespaces, cgroups, capabilities and mounts by direct kernel calls; Docker 0.9's ``native``.

    *root* is the directory below which detached containers are recorded.
    """

    name = "native-0.1"

    def __init__(self, root: str | None = None) -> None:
        self._store = Store(root)
        self._launchers = Launchers(self.name, self._store)
        self._lock = threading.Lock()
        self._filters = Filters(self.name)
        self._unlimited: tuple[Group, ...] = ()  # the cgroups of a container without limits
        self._processes: weakref.WeakValueDictionary[str, NativeProcess] = weakref.WeakValueDictionary()
        self._all: weakref.WeakSet[NativeProcess] = weakref.WeakSet()  # further processes included
        #: The ends, locks and claims of launchers and monitors until they have them, and of what is not there yet.
        self._sockets: set[socket.socket | Claim | Lease | Making] = set()
        self._bridges = False  # whether any was to be made
        self._valid: Command | None = None  # what has just been found to have no problems, and is about to be started
        _drivers.add(self)

    # -- what it can do

    def features(self) -> frozenset[Feature]:
        return FEATURES

    def probe(self) -> Probe:
        from pycontainer_native.probe import probe

        return probe(self.name, self.layout, self.host.namespace, FEATURES, self._store.root)

    def start_detached(self, command: Command, log: LogLimits, deadline: float | None = None) -> ContainerProcess:
        from pycontainer_native.probe import no_place

        problem = no_place(self._store.root)
        if problem is not None:
            raise ContainerError(f"{problem[0]} (remedy: {problem[1]})")
        return super().start_detached(command, log, deadline)

    def _look_at_caller(self) -> None:
        """Before anything is begun: what was found out for who has other rights or namespaces holds no more."""
        if self._launchers.look_at_caller():
            self._valid = None
            self._unlimited = ()
            self._filters.clear()

    def validate(self, command: Command) -> Sequence[InvalidCommandError | UnsupportedError]:
        self._look_at_caller()
        problems = [*Checks(self.name, self.host, self.layout, self._filters).problems(command)]
        self._valid = None if problems else command
        return problems

    @property
    def host(self) -> Host:
        """What plans need to know of the host, and of this process's resource limits: see :meth:`_look_at_caller`."""
        return self._launchers.host

    @property
    def layout(self) -> Layout:
        """The host's cgroup hierarchies, looked up once."""
        return self._launchers.layout

    def compile(
        self,
        command: Command,
        *,
        hold: bool = False,
        size: tuple[int, int] | None = None,
        ids: userns.UserNamespace | None = None,
    ) -> plan.Plan:
        """The plan for *command*, with *ids* where it leaves them to the driver.

        Raises InvalidCommandError; touches nothing.
        """
        spec = to_oci(command, seccomp=False)
        if size is not None:
            spec["process"]["consoleSize"] = {"height": size[0], "width": size[1]}
        if command.userns == "auto":
            ids = ids or userns.first_range()
            for key, maps in (("uidMappings", ids.uids), ("gidMappings", ids.gids)):
                spec["linux"][key] = [{"containerID": row[0], "hostID": row[1], "size": row[2]} for row in maps]
        resources = spec["linux"]["resources"]
        if resources or command.cgroup_parent is not None:
            groups = self.layout.groups(resources, command.cgroup_parent)
        else:
            groups = self._unlimited = self._unlimited or self.layout.groups({})
        compiled = plan.compile(spec, groups, self.host, hold=hold, filter=self._filters.of(command))
        return _with_listener(compiled, command, spec, "created" if hold else "creating")

    def explain(self, command: Command) -> Iterator[str]:
        """The steps that starting *command* takes, a line each, without taking them."""
        from pycontainer_native.explain import describe

        self._look_at_caller()
        return describe(self.compile(command))

    # -- start

    def start(self, command: Command, stdio: Stdio) -> ContainerProcess:
        return self._begin(command, stdio, hold=False)

    def create(self, command: Command, stdio: Stdio) -> ContainerProcess:
        return self._begin(command, stdio, hold=True)

    def start_created(self, process: ContainerProcess) -> None:
        assert isinstance(process, NativeProcess)
        if (state := process.state) is not State.CREATED:
            raise NotRunningError(process.id, state.value)
        process.open_gate()
        process.wait_for_start(State.CREATED)

    def exec(self, id: str, process: Process, stdio: Stdio) -> ContainerProcess:
        container = self._running(id)
        if (state := container.state) is not State.RUNNING:
            raise NotRunningError(id, state.value)
        self._look_at_caller()
        if container.launcher is not None and not self._launchers.is_callers(container.launcher):
            raise ContainerError(f"container {id!r} was started with other rights than this process has by now")
        command = container.command
        check_further(self.name, command, process)
        spec = process_to_oci(process, command.rootfs) | standing_to_oci(command)
        if stdio.size is not None:
            spec["consoleSize"] = {"height": stdio.size[0], "width": stdio.size[1]}
        filter = self._filters.of(container.command)  # the container's, whatever the process is to be
        compiled = plan.compile_exec(spec, container.joins, container.namespaces, filter, self.host, container.ids)
        if notifying(command.seccomp):
            compiled = _with_listener(compiled, command, to_oci(command, seccomp=False), "running")
        try:
            with listener.connected(compiled.listener, id, stdio.deadline) as asked:
                return self._launch(container.command, compiled, stdio, container, Given(asked))
        except ServiceGoneError:  # the launcher or the monitor, and the container with it
            raise NotRunningError(id) from None
        except ContainerLostError:  # whoever took the request has ended: a monitor does with its container
            if isinstance(container, DetachedProcess) and container.has_ended(patience=1.0):
                raise NotRunningError(id) from None
            raise
        except SetupError as error:
            # Its end takes the new process along, and comes a moment later itself (pid_namespaces(7)).
            ending = (errno.ESRCH, errno.EINTR, errno.ENOMEM, errno.EPIPE)
            if error.errno in ending and container.has_ended(patience=1.0):
                raise NotRunningError(id) from None
            raise

    def _begin(self, command: Command, stdio: Stdio, *, hold: bool) -> NativeProcess:
        self._check(command)
        if command.userns == "auto":
            return self._begin_leased(command, stdio, hold=hold)
        compiled = self.compile(command, hold=hold, size=stdio.size)
        if not is_lent(command, compiled):
            return self._launch(command, compiled, stdio)
        with self._lend(command, compiled, stdio.deadline, stdio.give_up) as given:
            return self._launch(command, compiled, stdio, given=given)

    def _check(self, command: Command) -> None:
        """Raise the first problem of *command*; and clear away what may be in its way."""
        self._look_at_caller()  # it may have been found valid some time ago
        valid, self._valid = self._valid, None
        if valid is not command:
            for problem in self.validate(command):
                raise problem
        if command.cgroup_parent is not None:
            self._launchers.use_parent(command.cgroup_parent)

    @contextlib.contextmanager
    def _lend(
        self,
        command: Command,
        compiled: plan.Plan,
        deadline: float | None,
        give_up: int = -1,
        *,
        held: Sequence[Lease] = (),
    ) -> Iterator[Given]:
        """What *compiled* is about, besides what the launcher can find itself; and locks, those *held* first.

        *deadline* and *give_up* are as in :class:`~pycontainer.Stdio`.
        """
        self._bridges = self._bridges or any(n.mode == "bridge" and n.create_bridge for n in command.networks)

        def make() -> Sequence[int]:
            assert compiled.ids is not None
            return make_namespaces(command.id, compiled.ids, self._launchers, self._own, deadline, give_up)

        with contextlib.ExitStack() as stack:
            leases = [*held]
            if (upper := upper_of(command)) is not None:
                leases.append(lease_upper(upper))
                self._own(stack, leases[-1])
            if leases:
                self._launchers.sweep()  # who has had it before may have been killed, and his container not have ended
            yield stack.enter_context(lend(command, compiled, self._running, self._holds, make, leases, deadline))

    def _holds(self, id: str) -> bool:
        """Whether the container *id* is one that this process knows, and runs."""
        return self._processes.get(id) is not None and self.info(id).is_running

    def _begin_leased(self, command: Command, stdio: Stdio, *, hold: bool) -> NativeProcess:
        """Start it with ids that nobody else has. Raises SetupError."""
        with contextlib.ExitStack() as stack:
            ids, own = lease_ids()
            self._own(stack, own)
            compiled = self.compile(command, hold=hold, size=stdio.size, ids=ids)
            given = stack.enter_context(self._lend(command, compiled, stdio.deadline, stdio.give_up, held=[own]))
            return self._launch(command, compiled, stdio, given=given)

    def _launch(
        self,
        command: Command,
        compiled: plan.Plan,
        stdio: Stdio,
        container: NativeProcess | None = None,
        given: Given = NOTHING,
    ) -> NativeProcess:
        """Carry out a plan: for a new container, or for a further process in *container*."""
        request = compiled.wire(command.id, "" if container is None else container.directory, given.leased)
        try:
            status, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise SetupError("make a status socket", error.errno or errno.EMFILE) from None
        process = NativeProcess(command.id, command, status, compiled.groups, compiled.namespaces, compiled)
        process.network = given.network
        try:
            with theirs, self._in_flight(process, theirs):
                if container is None:
                    self._register(process)
                fds = [theirs.fileno(), stdio.stdin, stdio.stdout, stdio.stderr, *given.fds]
                if isinstance(container, DetachedProcess):
                    container.ask(request, fds)
                else:
                    # This launcher, and no other: by the time that its death is noticed there may be a new one.
                    launcher = self._launchers.ask(request, fds, None if container is None else container.launcher)
                    process.launcher = launcher
                    process.on_lost = functools.partial(self._launchers.drop, launcher)
            process.wait_for_start(State.CREATING, stdio.deadline, stdio.give_up)
        except BaseException:
            process.close()
            raise
        return process

    @contextlib.contextmanager
    def _in_flight(self, process: NativeProcess, theirs: socket.socket) -> Iterator[None]:
        """Know *theirs*, so that a child forked by another thread lets go of it: it would hide the launcher's death."""
        self._all.add(process)
        self._sockets.add(theirs)
        try:
            yield
        finally:
            self._sockets.discard(theirs)

    def _register(self, process: NativeProcess) -> None:
        with self._lock:
            other = self._processes.get(process.id)
            if isinstance(other, DetachedProcess):  # nobody need have asked it lately: the record knows
                record = None if isinstance(process, DetachedProcess) else self._store.find(process.id)
                taken = record is not None and not record.has_ended
            else:
                taken = other is not None and other.state is not State.STOPPED
            if taken:
                raise AlreadyExistsError(process.id)
            self._processes[process.id] = process

    # -- the other verbs

    def _running(self, id: str) -> NativeProcess:
        process = self._attached(id) or self._detached(id)
        if process is None:
            raise NotRunningError(id)
        return process

    def _attached(self, id: str) -> NativeProcess | None:
        """What this process is attached to and runs: containers of its own, and detached ones."""
        process = self._processes.get(id)
        if process is None or (process.pidfd < 0 and isinstance(process, DetachedProcess)):
            return None
        with contextlib.suppress(ContainerLostError, SetupError):  # it runs no more, or never has
            if process.poll() is None:
                return process
        return None

    def kill(self, id: str, signal: int) -> None:
        self._running(id).send_signal(signal)

    def terminate(self, id: str) -> None:
        # The first process takes its pid namespace along; without one, the launcher kills what is left in the cgroup.
        self._running(id).send_signal(signals.SIGKILL)

    def info(self, id: str) -> ContainerInfo:
        process = self._attached(id)
        if process is not None and not isinstance(process, DetachedProcess):
            return ContainerInfo(id, process.state, process.pid)
        record = self._store.find(id)
        return ContainerInfo(id, State.STOPPED) if record is None else self._describe(record)

    def get_pids_for_container(self, id: str) -> Sequence[int]:
        process = self._running(id)
        cgroup = process.cgroup()
        if cgroup.paths:
            return cgroup.pids()
        from pycontainer_native.process import descendants

        # Without a cgroup: its first process and the further ones, and all who come from them, for whoever loses
        # his parent in a pid namespace becomes its first process's child (pid_namespaces(7)).
        name = f"{process.directory}-exec"
        further = [p.pid for p in list(self._all) if p.directory == name and not p.has_ended()]
        return descendants([process.pid, *further])

    def cgroup(self, id: str) -> Cgroup:
        """The live cgroup of container *id*."""
        return self._running(id).cgroup()

    def pause(self, id: str) -> None:
        process = self._running(id)
        state = process.state  # looked at once: others may change it
        if state is not State.RUNNING:
            raise NotRunningError(id, state.value)
        if not freezer.can_freeze(process.cgroup()):
            raise UnsupportedError(self.name, Feature.PAUSE, "the container is in no cgroup that has a freezer")
        with _gone(id):
            process.pause()

    def unpause(self, id: str) -> None:
        process = self._running(id)
        state = process.state
        if state is not State.PAUSED:
            raise ContainerError(f"container {id!r} is not paused: it is {state.value}")
        with _gone(id):
            process.unpause()

    def stats(self, id: str) -> Stats:
        from pycontainer_native.cgroups import usage

        process = self._running(id)
        cgroup = process.cgroup()
        if missing := usage.uncounted(cgroup):
            raise UnsupportedError(self.name, Feature.STATS, f"no cgroup counts {', '.join(missing)}")
        with _gone(id):
            stats = usage.stats(cgroup, process.pid)
        if process.has_ended():  # then the pid may have been another process's
            raise NotRunningError(id)
        return stats

    def update(self, id: str, resources: Resources) -> None:
        from pycontainer_native.cgroups.limits import FIXED, Limits
        from pycontainer_native.cgroups.update import update

        process = self._running(id)
        for name in FIXED:
            if getattr(resources, name) is not None:
                raise InvalidCommandError(f"resources.{name}", "cannot be changed while the container runs")
        rules = None
        if resources.device_cgroup_rules is not None:
            rules = _new_rules(process.command, resources.device_cgroup_rules)
        with _gone(id):
            update(process.cgroup(), Limits.to_update(resources, rules))

    def close(self) -> None:
        self._launchers.close()
        if self._bridges:
            from pycontainer_native.network import remove_bridges

            self._bridges = False
            with contextlib.suppress(OSError, SetupError):  # the next one who needs a bridge tries again
                remove_bridges(os.getpid())

    def _after_fork(self) -> None:
        """In a forked child: the launcher and the containers are the parent's."""
        self._launchers.after_fork()
        # A copy of such a socket would keep the other end from noticing that the parent has closed its own.
        for process in list(self._all):
            process.close()
        for theirs in self._sockets:
            theirs.close()
        self._sockets.clear()
        self._lock = threading.Lock()
        self._filters = Filters(self.name)
        self._processes = weakref.WeakValueDictionary()


def _with_listener(compiled: plan.Plan, command: Command, spec: Mapping[str, Any], status: str) -> plan.Plan:
    """*compiled* with who is asked by the filter of *command*, if anybody is; by then the container is *status*."""
    if not notifying(command.seccomp):
        return compiled
    assert isinstance(command.seccomp, Mapping)
    return attrs.evolve(compiled, listener=listener.of_profile(command.seccomp, plan.state_of(spec), status))


def _new_rules(command: Command, rules: tuple[str, ...]) -> Rules:
    """What *command* may use with other *rules*. Raises InvalidCommandError."""
    from pycontainer_native.cgroups.devices import rules_of

    if rules_of(limits_to_oci(command).get("devices")) is None:
        problem = "the container was started without any, and may use what it is given"
        raise InvalidCommandError("resources.device_cgroup_rules", problem)
    resources = attrs.evolve(command.resources, device_cgroup_rules=rules)
    found = rules_of(limits_to_oci(command.copy_with(resources=resources))["devices"])
    if found is None:
        raise InvalidCommandError("resources.device_cgroup_rules", "'a *:* rwm' is no rule, but the end of them all")
    return found


@contextlib.contextmanager
def _gone(id: str) -> Iterator[None]:
    """What the kernel says of a cgroup or a process that has gone, as a NotRunningError."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENODEV, errno.ENOENT, errno.ESRCH):
            raise
        raise NotRunningError(id) from None


_drivers: weakref.WeakSet[NativeDriver] = weakref.WeakSet()


def _forget_all() -> None:
    for driver in list(_drivers):
        driver._after_fork()


def _close_all() -> None:
    """When the interpreter ends in peace, everything is gone before it has; otherwise a moment later."""
    for driver in list(_drivers):
        driver.close()


os.register_at_fork(after_in_child=_forget_all)
atexit.register(_close_all)
