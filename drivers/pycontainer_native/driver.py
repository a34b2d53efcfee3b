"""The native driver: a Command's way to the launcher, and the verbs."""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import os
import resource
import signal as signals
import socket
import threading
import time
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
    DriverUnavailableError,
    InvalidCommandError,
    NotRunningError,
    SetupError,
    UnsupportedError,
)
from pycontainer.hooks import POINTS
from pycontainer.network import named
from pycontainer.process import capability_numbers
from pycontainer.rootfs import Overlay, open_in_rootfs
from pycontainer.seccomp import notifying
from pycontainer.seccomp_filter import Filter, compile_filter
from pycontainer.service import ServiceGoneError, caller
from pycontainer.spec import limits_to_oci, process_to_oci, seccomp_to_oci, standing_to_oci, to_oci
from pycontainer_native import listener, namespaces, plan, trees, userns
from pycontainer_native.cgroups import Cgroup, Group, Layout, detect, freezer, sweep
from pycontainer_native.cgroups.limits import MEMORY_MIN
from pycontainer_native.cgroups.live import DYING
from pycontainer_native.client import LauncherClient
from pycontainer_native.detached import DetachedProcess, DetachedVerbs
from pycontainer_native.host import Host
from pycontainer_native.identity import RLIM_NLIMITS
from pycontainer_native.process import NativeProcess
from pycontainer_native.state import Claim, Store

if TYPE_CHECKING:
    from pycontainer.command import Command, Process, Resources
    from pycontainer.stats import Stats
    from pycontainer_native.cgroups.devices import Rules
    from pycontainer_native.network import Attachment

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


_NOFILE = resource.RLIMIT_NOFILE
#: What is left of the set-up when the limit is set: stdio, the channel, with an init its report, and two of the working
#: directory's.
NOFILE_MIN = 7
_CAP_SYS_RESOURCE = 24


_PRIVATE = (None, "private", "rprivate")


class NativeDriver(DetachedVerbs):
    """Namespaces, cgroups, capabilities and mounts by direct kernel calls; Docker 0.9's ``native``.

    *root* is the directory below which detached containers are recorded.
    """

    name = "native-0.1"

    def __init__(self, root: str | None = None) -> None:
        self._store = Store(root)
        self._lock = threading.Lock()
        self._caller: tuple[object, ...] = ()  # who the thread was that this driver has last worked for
        self._thread = threading.local()  # .caller: who this thread was when it was last looked at
        self._launcher: LauncherClient | None = None
        self._former: dict[tuple[object, ...], LauncherClient] = {}  # those of callers with other rights or namespaces
        self._host: Host | None = None
        self._layout: Layout | None = None
        self._filters: dict[object, Filter | None] = {}
        self._unlimited: tuple[Group, ...] = ()  # the cgroups of a container without limits
        self._parents: set[str] = set()  # the cgroup_parents that were asked for
        self._processes: weakref.WeakValueDictionary[str, NativeProcess] = weakref.WeakValueDictionary()
        self._all: weakref.WeakSet[NativeProcess] = weakref.WeakSet()  # further processes included
        self._sockets: set[socket.socket | Claim] = set()  # the launcher's and the monitors' ends, until they have them
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
        """Before anything is begun: who this is by now, and what resource limits he has.

        Whoever has other rights or namespaces than before gets another
        launcher, and is told of another host.
        """
        self._thread.caller = now = caller()
        if now != self._caller:
            self._change_caller(now)
        host, limits = self.host, _limits()
        inherited = () if self._launcher is None else self._launcher.limits
        if limits != (inherited or limits) or host.rlimits or limits[_NOFILE] != host.nofile:
            pairs = enumerate(zip(limits, inherited, strict=False))
            changed = tuple((n, *own) for n, (own, launchers) in pairs if own != launchers and n != _NOFILE)
            self._host = attrs.evolve(host, nofile=limits[_NOFILE], rlimits=changed)

    def _change_caller(self, now: tuple[object, ...]) -> None:
        with self._lock:
            before, self._caller = self._caller, now
            if not before:
                return
            self._valid = None
            if self._launcher is not None:
                self._former[before] = self._launcher
            self._launcher = self._former.pop(now, None)
            self._host = self._layout = None
            self._unlimited = ()
            self._filters.clear()

    def validate(self, command: Command) -> Sequence[InvalidCommandError | UnsupportedError]:
        self._look_at_caller()
        problems: list[InvalidCommandError | UnsupportedError] = []
        if command.config:
            problems.append(InvalidCommandError("config", "raw values are for other drivers: native takes none"))
        if command.network is not None:
            problems += self._check_bridges(command)
        if type(command.rootfs) is str:
            if not os.path.isdir(command.rootfs):
                problems.append(InvalidCommandError("rootfs", f"{command.rootfs} is not a directory"))
            elif os.path.samefile(command.rootfs, "/"):  # by whatever name
                problems.append(InvalidCommandError("rootfs", "is the host's own root: None gives a safe view of it"))
        if isinstance(command.rootfs, Overlay):
            for path in command.rootfs.layers:
                if not os.path.isdir(path):
                    name = "upper" if path == command.rootfs.upper else "lower"
                    problems.append(InvalidCommandError(f"rootfs.{name}", f"{path} is not a directory"))
                elif os.path.samefile(path, "/"):
                    problems.append(InvalidCommandError("rootfs.lower", f"{path} is the host's own root"))
        for mount in command.mounts:
            if mount.source is None:
                continue
            if not os.path.exists(mount.source):
                problems.append(InvalidCommandError("mounts.source", f"{mount.source} does not exist"))
            elif os.path.realpath(mount.source).startswith("/proc/") or os.path.realpath(mount.source) == "/proc":
                problems.append(InvalidCommandError("mounts.source", f"{mount.source} leads into /proc"))
        problems += _check_etc(command)
        problems += self._check_propagation(command)
        problems += _check_hooks(command)
        problems += self._unmapped(command)
        special = command.rootfs_propagation not in _PRIVATE or any(
            mount.uid_mappings or mount.propagation not in _PRIVATE for mount in command.mounts
        )
        if special and self.host.namespace is not None:
            reason = "mounts that propagate, or have mappings of their own, take root"
            problems.append(UnsupportedError(self.name, Feature.ROOTLESS, reason))
        if command.userns is not None or command.uid_mappings:
            if self.host.namespace is not None:
                reason = "without root there is a user namespace already, that of the user's own"
                problems.append(UnsupportedError(self.name, Feature.USERNS, reason))
            if isinstance(command.rootfs, Overlay):
                problems.append(UnsupportedError(self.name, Feature.USERNS, "with a root of several layers"))
            if special:
                reason = "with mounts that propagate, or have mappings of their own"
                problems.append(UnsupportedError(self.name, Feature.USERNS, reason))
            if any(network.mode == "bridge" for network in command.networks):
                reason = "with a bridge: the network is made outside, and its root would have no rights over it"
                problems.append(UnsupportedError(self.name, Feature.USERNS, reason))
        held = command.process.capabilities or ()
        if command.init and "CAP_SYS_PTRACE" in held and not command.process.privileged:
            reason = "with CAP_SYS_PTRACE the payload could read the init's memory, which was the launcher's"
            problems.append(InvalidCommandError("init", reason))
        if command.is_labelled:
            problems += _check_labels(command)
        if command.process.capabilities is not None:
            host = self.host.capabilities
            numbers = capability_numbers()
            for name in command.process.capabilities:
                if not host >> numbers[name] & 1:
                    problems.append(
                        InvalidCommandError("process.capabilities", f"this process does not have {name} to give")
                    )
        if (command.oom_score_adj or 0) < 0 and not self.host.capabilities >> _CAP_SYS_RESOURCE & 1:
            reason = "below 0 takes CAP_SYS_RESOURCE, which this process does not have"
            problems.append(InvalidCommandError("oom_score_adj", reason))
        confined = self.host.namespace is not None or command.userns is not None or command.uid_mappings
        if command.devices and confined:
            problems.append(InvalidCommandError("devices", "no node that is made in a user namespace opens (mknod(2))"))
        asked = command.resources != _NO_LIMITS or command.cgroup_parent is not None
        if asked or command.devices or "CAP_MKNOD" in held:
            try:
                limits = limits_to_oci(command)
                found = self.layout.check(limits, command.cgroup_parent)
                if not command.resources.memory_swap and any(field == "resources.memory" for field, _ in found):
                    # Nobody asked for it: it is made of the memory limit, about which all is said.
                    found = [problem for problem in found if problem[0] != "resources.memory_swap"]
                problems += [InvalidCommandError(*problem) for problem in found]
            except InvalidCommandError as error:
                problems.append(error)
        for limit in command.process.rlimits:
            least = NOFILE_MIN + (listener.DESCRIPTORS if notifying(command.seccomp) else 0)
            if limit.type == "RLIMIT_NOFILE" and 0 <= limit.soft < least:
                problem = f"{limit.soft} open files are less than the set-up takes: {least} at least"
                problems.append(InvalidCommandError("process.rlimits", problem))
        memory = command.resources.memory
        if memory is not None and memory < MEMORY_MIN:
            problem = f"{memory} bytes are less than a container's set-up may take: {MEMORY_MIN >> 20}m at least"
            problems.append(InvalidCommandError("resources.memory", problem))
        try:
            self._filter(command)
        except (InvalidCommandError, UnsupportedError) as error:
            problems.append(error)
        problems += self._check_listener(command)
        if command.pid is not None and not any(place.writable for place in self.layout.hierarchies):
            reason = f"{command.pid!r} needs a cgroup: without one its processes can get away"
            problems.append(InvalidCommandError("pid", reason))
        self._valid = None if problems else command
        return problems

    def _unmapped(self, command: Command) -> Iterator[InvalidCommandError]:
        """Every id of *command* that does not exist where an ordinary user's containers are."""
        process = command.process
        if self.host.namespace is not None and (process.user is not None or process.additional_groups):
            try:
                user = process_to_oci(process, command.rootfs)["user"]
            except InvalidCommandError as error:
                yield error
                return
            for problem in self.host.namespace.problems(user):
                yield InvalidCommandError(*problem)

    def _check_bridges(self, command: Command) -> Iterator[InvalidCommandError | UnsupportedError]:
        for network in named(command.networks):
            if network.mode in plan.RELAYS:
                yield from self._check_relay(network.mode)
            elif network.mode == "bridge" and self.host.namespace is not None:
                yield UnsupportedError(self.name, Feature.NETWORK, "an ordinary user may not change the host's network")
            elif network.mode == "bridge" and not network.create_bridge:
                try:
                    socket.if_nametoindex(network.bridge or "")
                except OSError:
                    reason = f"there is no bridge {network.bridge!r}: create_bridge=True makes one"
                    yield InvalidCommandError("network.bridge", reason)

    def _check_listener(self, command: Command) -> Iterator[InvalidCommandError | UnsupportedError]:
        if notifying(command.seccomp):
            yield from listener.check(command)
            if not self.host.capabilities >> listener.CAP_SYS_PTRACE & 1:
                reason = "taking the filter's listener from the container takes CAP_SYS_PTRACE"
                yield UnsupportedError(self.name, Feature.SECCOMP_NOTIFY, reason)

    def _check_relay(self, tool: str) -> Iterator[UnsupportedError]:
        if self.host.namespace is None:
            reason = f"{tool} is the way out for an ordinary user's container: root has bridges"
            yield UnsupportedError(self.name, Feature.NETWORK, reason)
        elif plan.find_relay(tool) is None:
            package = plan.RELAYS[tool][1]
            yield UnsupportedError(self.name, Feature.NETWORK, f"{tool} is not installed (apt-get install {package})")

    def _check_propagation(self, command: Command) -> Iterator[InvalidCommandError]:
        """What the host does not allow of what its mounts are to propagate, or whose ids are to be mapped."""
        wanted: list[tuple[str, str, str | None]] = []
        for mount in command.mounts:
            if mount.propagation in trees.PROPAGATING and mount.source is not None:
                wanted.append(("mounts.propagation", mount.propagation, mount.source))
            if mount.uid_mappings and self.host.namespace is not None:
                yield InvalidCommandError("mounts.uid_mappings", "only root of the host can map the ids of a mount")
        if command.rootfs_propagation in ("slave", "rslave"):
            path = command.rootfs if isinstance(command.rootfs, str) else None
            wanted.append(("rootfs_propagation", command.rootfs_propagation, path))
        for field, propagation, source in wanted:
            if self.host.namespace is not None:
                yield InvalidCommandError(field, f"{propagation!r} needs root: a user namespace has mounts of its own")
            elif source is None:
                yield InvalidCommandError(field, f"{propagation!r} is of a directory of the host")
            elif os.path.exists(source):
                found = trees.propagates(source)
                if "shared" not in found and ("shared" in propagation or "master" not in found):
                    reason = f"{propagation!r} takes a shared mount, and {source} is not on one (mount --make-rshared)"
                    yield InvalidCommandError(field, reason)

    @property
    def host(self) -> Host:
        """What plans need to know of the host, and of this process's resource limits: see :meth:`_look_at_caller`."""
        host = self._host
        if host is None:
            host = self._host = Host.of_caller()
        return host

    @property
    def layout(self) -> Layout:
        """The host's cgroup hierarchies, looked up once."""
        if self._layout is None:
            self._layout = detect()
        return self._layout

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
        compiled = plan.compile(spec, groups, self.host, hold=hold, filter=self._filter(command))
        return _with_listener(compiled, command, spec, "created" if hold else "creating")

    def explain(self, command: Command) -> Iterator[str]:
        """The steps that starting *command* takes, a line each, without taking them."""
        from pycontainer_native.explain import describe

        self._look_at_caller()
        return describe(self.compile(command))

    def _filter(self, command: Command) -> Filter | None:
        """The seccomp filter of *command*, kept: to find it by its profile would take longer than everything else.

        Raises InvalidCommandError, UnsupportedError.
        """
        key = command.seccomp, command.process.privileged, command.process.capabilities
        if key not in self._filters:
            if len(self._filters) >= 64:
                self._filters.clear()
            try:
                self._filters[key] = compile_filter(seccomp_to_oci(command))
            except NotImplementedError as error:
                raise UnsupportedError(self.name, Feature.SECCOMP, str(error)) from None
        return self._filters[key]

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
        if container.launcher is not None and container.launcher.made_by != self._caller:
            raise ContainerError(f"container {id!r} was started with other rights than this process has by now")
        command = container.command
        self._check_further(command, process)
        spec = process_to_oci(process, command.rootfs) | standing_to_oci(command)
        if stdio.size is not None:
            spec["consoleSize"] = {"height": stdio.size[0], "width": stdio.size[1]}
        filter = self._filter(container.command)  # the container's, whatever the process is to be
        compiled = plan.compile_exec(spec, container.joins, container.namespaces, filter, self.host, container.ids)
        if notifying(command.seccomp):
            compiled = _with_listener(compiled, command, to_oci(command, seccomp=False), "running")
        try:
            with listener.connected(compiled.listener, id, stdio.deadline) as given:
                return self._launch(container.command, compiled, stdio, container, given)
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

    def _check_further(self, command: Command, process: Process) -> None:
        """Raise what *process* cannot be or have in a container of *command*."""
        own = command.process
        confined = command.userns is not None or bool(command.uid_mappings)  # then what comes from outside is safe
        if _may_trace(command) and command.pid != "host" and not confined:
            reason = (
                "with CAP_SYS_PTRACE what runs in it could read the memory of what joins it, which was the launcher's; "
                "userns='auto' keeps that apart"
            )
            raise UnsupportedError(self.name, Feature.EXEC, reason)
        more = set(process.capabilities or ()) - set(own.capabilities or ())
        if (more or process.privileged) and not own.privileged:
            what = ", ".join(sorted(more)) or "all rights"
            raise InvalidCommandError("process.capabilities", f"its container has been started without {what}")
        if own.no_new_privileges and not process.no_new_privileges:
            raise InvalidCommandError("process.no_new_privileges", "its container has been started with it")

    def _begin(self, command: Command, stdio: Stdio, *, hold: bool) -> NativeProcess:
        self._check(command)
        if command.userns == "auto":
            return self._begin_leased(command, stdio, hold=hold)
        compiled = self.compile(command, hold=hold, size=stdio.size)
        if not compiled.entered and not compiled.cloned and compiled.listener is None:
            return self._launch(command, compiled, stdio)
        with contextlib.ExitStack() as stack:
            asked = stack.enter_context(listener.connected(compiled.listener, command.id, stdio.deadline))
            network = self._build_network(command, stack)
            given = [*asked, *self._open_given(command, compiled, stack, network)]
            return self._launch(command, compiled, stdio, given=given, network=network)

    def _check(self, command: Command) -> None:
        """Raise the first problem of *command*; and clear away what may be in its way."""
        self._look_at_caller()  # it may have been found valid some time ago
        valid, self._valid = self._valid, None
        if valid is not command:
            for problem in self.validate(command):
                raise problem
        if command.cgroup_parent is not None and command.cgroup_parent not in self._parents:
            sweep(self.layout, cgroup_parent=command.cgroup_parent)
            self._store.note_parent(command.cgroup_parent)
            self._parents.add(command.cgroup_parent)

    def _begin_leased(self, command: Command, stdio: Stdio, *, hold: bool) -> NativeProcess:
        """Start it with ids that nobody else has. Raises SetupError."""
        try:
            ids, lease = userns.lease_range()
        except OSError as error:
            raise SetupError("reserve a range of ids", error.errno or errno.EPROTO, error.filename) from None
        try:
            compiled = self.compile(command, hold=hold, size=stdio.size, ids=ids)
            with listener.connected(compiled.listener, command.id, stdio.deadline) as asked:
                return self._launch(command, attrs.evolve(compiled, leased=True), stdio, given=[lease, *asked])
        finally:
            os.close(lease)  # the launcher has it, until nothing is left that has these ids

    def _build_network(self, command: Command, stack: contextlib.ExitStack) -> Attachment | None:
        """The network of *command* if it has interfaces on bridges; the container's, once *stack* ends in peace.

        Raises InvalidCommandError, SetupError.
        """
        if not any(network.mode == "bridge" for network in command.networks):
            return None
        from pycontainer_native.network import attach

        def holds(id: str) -> bool:
            return self._processes.get(id) is not None and self.info(id).is_running

        network = attach(command.networks, command.id, holds)
        self._bridges = self._bridges or any(network.create_bridge for network in command.networks)

        def hand_over(kind: type[BaseException] | None, *_: object) -> None:
            if kind is None:
                network.close()
            else:
                with contextlib.suppress(OSError):  # the first error is the one to tell
                    network.release()

        stack.push(hand_over)
        return network

    def _open_given(
        self, command: Command, compiled: plan.Plan, stack: contextlib.ExitStack, network: Attachment | None
    ) -> list[int]:
        """Descriptors of the namespaces that *compiled* enters, and of its clones of mounts; open as long as *stack*.

        Raises InvalidCommandError, NotRunningError, SetupError.
        """
        fds = []
        for kind, path in compiled.entered:
            if kind == "network" and network is not None:
                fds.append(network.fd)
                continue
            if path is not None:
                fds.append(namespaces.open_path(path, kind, "network.path" if kind == "network" else kind))
                if kind == "pid" and (tracer := namespaces.tracer_in(fds[-1])) is not None:
                    os.close(fds.pop())
                    reason = f"process {tracer} in {path} has CAP_SYS_PTRACE, and could read what sets the new one up"
                    raise InvalidCommandError(kind, reason)
            else:
                of_network = kind == "network"
                shared = (command.networks[0].container or "") if of_network else getattr(command, kind)[10:]
                fds.append(self._namespace_of(shared, kind, "network.container" if of_network else kind))
            stack.callback(os.close, fds[-1])
        for tree in compiled.cloned:
            fds.append(trees.clone(tree))
            stack.callback(os.close, fds[-1])
        return fds

    def _namespace_of(self, id: str, kind: str, field: str) -> int:
        """A descriptor of a namespace of the container *id*, as in Docker of the same maker.

        Raises InvalidCommandError, for *field*, and NotRunningError.
        """
        process = self._running(id)
        name, _ = namespaces.TYPES[kind]
        fd = os.open(f"/proc/{process.pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
        problem: Exception | None = None
        if process.has_ended():  # then the pid may have been another process's
            problem = NotRunningError(id)
        elif namespaces.is_hosts(fd, name):
            reason = f"{id!r} has the host's own {kind} namespace: say 'host' if that is meant"
            problem = InvalidCommandError(field, reason)
        elif kind == "pid" and _may_trace(process.command):
            reason = f"with CAP_SYS_PTRACE {id!r} could read what sets this one up, which was the launcher"
            problem = InvalidCommandError(field, reason)
        if problem is not None:
            os.close(fd)
            raise problem
        return fd

    def _launch(
        self,
        command: Command,
        compiled: plan.Plan,
        stdio: Stdio,
        container: NativeProcess | None = None,
        given: Sequence[int] = (),
        network: Attachment | None = None,
    ) -> NativeProcess:
        """Carry out a plan: for a new container, or for a further process in *container*.

        *given* are the descriptors that the plan is about, borrowed; *network*
        is what ends with the container.
        """
        request = compiled.wire(command.id, "" if container is None else container.directory)
        try:
            status, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise SetupError("make a status socket", error.errno or errno.EMFILE) from None
        process = NativeProcess(command.id, command, status, compiled.groups, compiled.namespaces, compiled)
        process.network = network
        try:
            with theirs, self._in_flight(process, theirs):
                if container is None:
                    self._register(process)
                fds = [theirs.fileno(), stdio.stdin, stdio.stdout, stdio.stderr, *given]
                if isinstance(container, DetachedProcess):
                    container.ask(request, fds)
                else:
                    # This launcher, and no other: by the time that its death is noticed there may be a new one.
                    launcher = self._ask(request, fds, None if container is None else container.launcher)
                    process.launcher = launcher
                    process.on_lost = functools.partial(self._drop, launcher)
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

    def _ask(self, request: bytes, fds: list[int], owner: LauncherClient | None = None) -> LauncherClient:
        """Give *request* to the *owner* of its container, or to the launcher, which is returned.

        A launcher that has died meanwhile is replaced, once; for an owner that
        is ServiceGoneError.
        """
        step = "start the launcher" if owner is None else "send the request"
        try:
            launcher = owner or self._live_launcher()
            step = "send the request"
            try:
                launcher.request(request, fds)
            except ServiceGoneError:
                if owner is not None:
                    raise
                self._forget(launcher)  # whether or not its process has ended, it listens no more
                launcher = self._live_launcher()
                launcher.request(request, fds)
        except OSError as error:
            if isinstance(error, ContainerError):
                raise
            raise SetupError(step, error.errno or errno.EPROTO, error.filename) from None
        return launcher

    def _live_launcher(self) -> LauncherClient:
        with self._lock:
            if self._launcher is None:
                sweep(self.layout)
                self._sweep_parents()
                limits = _limits()
                self._launcher = self._new_launcher()
                self._launcher.limits = limits
            if self._launcher.made_by != self._thread.caller:
                raise ContainerError(
                    "another thread, with other rights or namespaces, uses this driver at the same time"
                )
            return self._launcher

    def _new_launcher(self) -> LauncherClient:
        """Raises DriverUnavailableError: an ordinary user cannot have the user namespace that he needs."""
        namespace = self.host.namespace
        try:
            return LauncherClient(namespace)
        except SetupError as error:
            if namespace is None:
                raise
            from pycontainer_native.probe import without_user_namespace

            raise DriverUnavailableError("native", without_user_namespace(self.name, error)) from None

    def _drop(self, launcher: LauncherClient) -> str:
        """Forget a dead launcher and remove what it left; its last words. Nothing happens to one that lives."""
        if not launcher.ended(timeout=1.0):
            return "its launcher let go of it"
        words = launcher.last_words()
        self._forget(launcher)
        return words

    def _forget(self, launcher: LauncherClient) -> None:
        """End it, for good, and remove what it left."""
        with self._lock:
            if self._launcher is launcher:
                self._launcher = None
            elif launcher in self._former.values():
                self._former = {who: former for who, former in self._former.items() if former is not launcher}
            else:
                return
        launcher.close()
        self._sweep(launcher)  # it may take a moment, for which others need not wait

    def _sweep(self, dead: LauncherClient) -> None:
        """Remove what a *dead* launcher of this driver has left, wherever its containers were."""
        deadline = time.monotonic() + DYING
        for parent in (None, *self._parents):
            sweep(self.layout, cgroup_parent=parent, dead=dead.token, patience=deadline - time.monotonic())

    # -- the other verbs

    def _running(self, id: str) -> NativeProcess:
        process = self._attached(id) or self._detached(id)
        if process is None:
            raise NotRunningError(id)
        return process

    def _attached(self, id: str) -> NativeProcess | None:
        """What this process is attached to and runs: containers of its own, and detached ones."""
        process = self._processes.get(id)
        if process is None or (isinstance(process, DetachedProcess) and process.pidfd < 0):
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
        with self._lock:
            launchers = [*self._former.values(), *filter(None, [self._launcher])]
            self._former, self._launcher = {}, None
        in_peace = True
        for launcher in launchers:
            if not launcher.close():
                in_peace = False
                self._sweep(launcher)
        self._parents.clear()
        self._store.forget_parents(keep=not in_peace)
        if self._bridges:
            from pycontainer_native.network import remove_bridges

            self._bridges = False
            with contextlib.suppress(OSError, SetupError):  # the next one who needs a bridge tries again
                remove_bridges(os.getpid())

    def _after_fork(self) -> None:
        """In a forked child: the launcher and the containers are the parent's."""
        for launcher in (*self._former.values(), *filter(None, [self._launcher])):
            launcher.forget()
        self._former, self._launcher = {}, None
        # A copy of such a socket would keep the other end from noticing that the parent has closed its own.
        for process in list(self._all):
            process.close()
        for theirs in self._sockets:
            theirs.close()
        self._sockets.clear()
        self._parents = set()
        self._store.forget_parents(keep=True)
        self._lock = threading.Lock()
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


def _check_hooks(command: Command) -> Iterator[InvalidCommandError]:
    """What is wrong with the hooks' programs; those of the container are looked for when it is there."""
    for point in POINTS if command.hooks is not None else ():
        for hook in getattr(command.hooks, point) if point != "start_container" else ():
            if not (os.path.isfile(hook.path) and os.access(hook.path, os.X_OK)):
                yield InvalidCommandError(f"hooks.{point}", f"{hook.path} is not a program that can be executed")
    if command.hooks is not None and command.hooks.start_container and _may_trace(command):
        reason = "with CAP_SYS_PTRACE one could read the memory of what waits for it, which was the launcher's"
        yield InvalidCommandError("hooks.start_container", reason)


def _check_etc(command: Command) -> Iterator[InvalidCommandError]:
    """What was asked for in files of /etc that the root file system has no place for: nothing is made in it."""
    layers = command.rootfs.layers if isinstance(command.rootfs, Overlay) else (command.rootfs,)
    asked = (("dns", "resolv.conf"), ("dns_search", "resolv.conf"), ("extra_hosts", "hosts"))
    for field, name in asked:
        covered = {mount.target for mount in command.mounts} & {"/etc", f"/etc/{name}"}
        if getattr(command, field) and not covered and not any(_has_file(layer, f"etc/{name}") for layer in layers):
            yield InvalidCommandError(field, f"the rootfs has no file /etc/{name} to show it in (an empty one will do)")


def _has_file(rootfs: object, path: str) -> bool:
    """Whether it is there, or may be; what has no directory of its own has whatever it is to have."""
    if not isinstance(rootfs, str):
        return True
    try:
        os.close(open_in_rootfs(rootfs, path))
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL)
    return True


def _check_labels(command: Command) -> Iterator[InvalidCommandError]:
    """The labels that cannot be given here."""
    from pycontainer.labels import unknown_labels

    for problem in unknown_labels(command):
        yield InvalidCommandError(*problem)
    if command.init and (command.apparmor_profile, command.selinux_label) != (None, None):
        yield InvalidCommandError("init", "it executes no program, and so would stay without the container's label")


def _may_trace(command: Command) -> bool:
    """Whether it has CAP_SYS_PTRACE, and is not as good as root on the host anyway."""
    return "CAP_SYS_PTRACE" in (command.process.capabilities or ()) and not command.process.privileged


def _limits() -> tuple[tuple[int, int], ...]:
    """This process's resource limits, by their numbers."""
    return tuple(map(resource.getrlimit, range(RLIM_NLIMITS)))


def _no_limits() -> object:
    from pycontainer.command import Resources

    return Resources()


_NO_LIMITS = _no_limits()

os.register_at_fork(after_in_child=_forget_all)
atexit.register(_close_all)
