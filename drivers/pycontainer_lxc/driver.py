"""The LXC driver: a Command rendered for ``lxc-start``, and the verbs."""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import functools
import os
import signal as signals
import socket
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pycontainer.device import Device
from pycontainer.driver import ContainerInfo, ContainerProcess, ExecutionDriver, Feature, LogLimits, Probe, State, Stdio
from pycontainer.errors import (
    AlreadyExistsError,
    ContainerError,
    ContainerNotFoundError,
    DriverUnavailableError,
    InvalidCommandError,
    NotRunningError,
    SetupError,
    UnsupportedError,
)
from pycontainer.filters import Filters
from pycontainer.labels import unknown_labels
from pycontainer.network import RELAYS, named
from pycontainer.process import capability_numbers, held_capabilities
from pycontainer.rootfs import Overlay
from pycontainer.seccomp import notifying
from pycontainer.service import ServiceGoneError
from pycontainer.spec import process_to_oci, resources_to_oci, to_oci
from pycontainer_lxc import cgroups, config, elf, prelude, record
from pycontainer_lxc.client import GuardClient, sweep
from pycontainer_lxc.process import LxcProcess, ToolProcess
from pycontainer_lxc.record import DetachedProcess
from pycontainer_lxc.removal import REMOVAL_TIMEOUT
from pycontainer_lxc.stats import take
from pycontainer_lxc.streams import Borrowed, Pipes, Streams, Terminal

if TYPE_CHECKING:
    from pycontainer.command import Command, Process, Resources
    from pycontainer.logs import LogRecord
    from pycontainer.seccomp_filter import Filter
    from pycontainer.stats import Stats

FEATURES = frozenset(
    {
        Feature.CREATE,
        Feature.EXEC,
        Feature.PAUSE,
        Feature.STATS,
        Feature.UPDATE,
        Feature.NETWORK,
        Feature.MEMORY,
        Feature.CPU,
        Feature.CPUSET,
        Feature.PIDS,
        Feature.TTY,
        Feature.SECCOMP,
        Feature.LABELS,
        Feature.DEVICES,
        Feature.RESTORE,
    }
)

#: What LXC 5 has open, and a few.
MIN_DESCRIPTORS = 64


class LxcDriver(ExecutionDriver):
    """Debian's lxc tools, run by a guard process; Docker 0.9's ``lxc``."""

    name = "lxc-0.1"
    exec_starts_in_root = True

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._guard: GuardClient | None = None
        self._tools: dict[str, str] | None = None
        self._filters = Filters(self.name)
        self._bases: dict[str, str] | None = None
        self._processes: weakref.WeakValueDictionary[str, LxcProcess] = weakref.WeakValueDictionary()
        self._commands: weakref.WeakKeyDictionary[LxcProcess, Command] = weakref.WeakKeyDictionary()
        self._all: weakref.WeakSet[LxcProcess] = weakref.WeakSet()  # further processes and tools included
        self._sockets: set[socket.socket] = set()  # the guard's ends, until it has them
        _drivers.add(self)

    # -- what it can do

    def features(self) -> frozenset[Feature]:
        return FEATURES

    def probe(self) -> Probe:
        from pycontainer_lxc.probe import probe

        return probe(self.name, FEATURES)

    def validate(self, command: Command) -> Sequence[InvalidCommandError | UnsupportedError]:
        problems: list[InvalidCommandError | UnsupportedError] = []

        def refuse(field: str, problem: str) -> None:
            problems.append(InvalidCommandError(field, problem))

        if isinstance(command.rootfs, Overlay):
            problems.append(UnsupportedError(self.name, Feature.OVERLAY))
        elif type(command.rootfs) is not str:
            problems.append(UnsupportedError(self.name, Feature.HOST_ROOTFS))
        elif not os.path.isdir(command.rootfs):
            refuse("rootfs", f"{command.rootfs} is not a directory")
        elif os.path.realpath(command.rootfs) == "/":
            refuse("rootfs", "is the host's own root")
        if command.init:
            problems.append(UnsupportedError(self.name, Feature.INIT))
        for field in ("cpu_affinity", "rootfs_propagation", "mount_label"):
            if getattr(command, field) is not None:
                refuse(field, "this driver has no way to set it yet")
        for field in ("pid", "ipc", "uts"):
            if getattr(command, field) not in (None, "host"):
                refuse(field, "this driver shares only the host's yet")
        problems += [InvalidCommandError(*unknown) for unknown in unknown_labels(command)]
        problems += [*self._check_process(command.process), *self._check_seccomp(command)]
        for line in command.config:
            problem = config.check_raw(line)
            if problem:
                refuse("config", problem)
        for mount in command.mounts:
            if mount.source is not None and not os.path.exists(mount.source):
                refuse("mounts.source", f"{mount.source} does not exist")
            if mount.type == "bind" and mount.options and not mount.read_only:
                refuse("mounts.options", "LXC silently leaves them out of a bind mount that is not read-only")
            if mount.propagation is not None:
                refuse("mounts.propagation", "this driver has no way to set it yet")
            if mount.uid_mappings:
                refuse("mounts.uid_mappings", "this driver does not map ids")
            if "nosymfollow" in mount.options:
                refuse("mounts.options", "LXC does not know nosymfollow")
        problems += _check_devices(command.devices)
        if (command.oom_score_adj or 0) < 0 and not _may_lower_oom_score():
            refuse("oom_score_adj", "below 0 takes CAP_SYS_RESOURCE, which this process does not have")
        for field in ("dns", "dns_search", "extra_hosts"):
            if getattr(command, field):
                refuse(field, "is not done with LXC: mount a file of your own over the one in /etc")
        for network in command.networks:
            if network.mode in RELAYS:
                problems.append(UnsupportedError(self.name, Feature.NETWORK, f"LXC does not run {network.mode}"))
            elif network.mode == "bridge" and network.create_bridge:
                problems.append(UnsupportedError(self.name, Feature.NETWORK, "LXC makes no bridge"))
            elif network.mode == "bridge" and not os.path.isdir(
                f"/sys/class/net/{(bridge := named([network])[0].bridge)}/bridge"
            ):
                refuse("network.bridge", f"there is no bridge {bridge!r}")
            if network.path is not None and not _is_network_namespace(network.path):
                refuse("network.path", f"{network.path} is not a network namespace, or the host's own")
        if command.cgroup_parent is not None:
            if command.cgroup_parent.startswith("/"):
                refuse("cgroup_parent", "LXC makes cgroups below the caller's own: give a relative one")
            elif not any(os.path.isdir(f"{base}/{command.cgroup_parent}") for base in self.bases.values()):
                refuse("cgroup_parent", f"there is no cgroup {command.cgroup_parent!r}: make it first")
        for field, problem in cgroups.missing(resources_to_oci(command.resources), self.bases):
            refuse(field, problem)
        memory = command.resources.memory
        if memory is not None and memory < cgroups.MEMORY_MIN:
            least = f"{cgroups.MEMORY_MIN >> 20}m"
            refuse("resources.memory", f"{memory} bytes are less than LXC's set-up may take: {least} at least")
        return problems

    def _check_process(self, process: Process) -> list[InvalidCommandError | UnsupportedError]:
        problems: list[InvalidCommandError | UnsupportedError] = []
        if process.tty and not elf.is_known():
            problems.append(InvalidCommandError("process.tty", elf.UNKNOWN))
        if "\n" in process.entrypoint:
            problem = "cannot have a line break: LXC names it in its log, which tells how it ended"
            problems.append(InvalidCommandError("process.entrypoint", problem))
        for name, value in (process.env or {}).items():
            if "\n" in value or "\r" in value:
                problem = f"{name} has a line break, and LXC's configuration has one value in a line"
                problems.append(InvalidCommandError("process.env", problem))
        if process.capabilities is not None:
            held, numbers = held_capabilities(), capability_numbers()  # LXC would leave the rest out
            for name in process.capabilities:
                if not held >> numbers[name] & 1:
                    problem = f"this process does not have {name} to give"
                    problems.append(InvalidCommandError("process.capabilities", problem))
        for limit in process.rlimits:
            if limit.type == "RLIMIT_NOFILE" and -1 < limit.soft < MIN_DESCRIPTORS:
                problem = f"LXC sets it before it sets up the container, for which it needs {MIN_DESCRIPTORS}"
                problems.append(InvalidCommandError("process.rlimits", problem))
        if (process.entrypoint + "/").startswith("/proc/"):
            # LXC's own image would be what is executed, and could be written to afterwards
            problems.append(InvalidCommandError("process.entrypoint", "cannot be in /proc (CVE-2019-5736)"))
        return problems

    @property
    def bases(self) -> dict[str, str]:
        """The caller's own cgroups, looked up once."""
        if self._bases is None:
            self._bases = cgroups.bases()
        return self._bases

    @property
    def tools(self) -> dict[str, str]:
        """The absolute paths of LXC's tools, looked up once. Raises DriverUnavailableError."""
        if self._tools is None:
            from pycontainer_lxc.probe import find_tools

            report = self.probe()
            if not report.usable:
                raise DriverUnavailableError("lxc", report)
            self._tools = find_tools()
        return self._tools

    # -- start

    def start(self, command: Command, stdio: Stdio) -> ContainerProcess:
        return self._start(command, stdio)

    def create(self, command: Command, stdio: Stdio) -> ContainerProcess:
        if not elf.is_known():
            raise UnsupportedError(self.name, Feature.CREATE, elf.UNKNOWN)
        return self._start(command, stdio, gate=True)

    def start_created(self, process: ContainerProcess) -> None:
        assert isinstance(process, LxcProcess)
        if process.poll() is not None or process.state is not State.CREATED:
            raise NotRunningError(process.id, process.state.value)
        process.open_gate()
        process.wait_for_start(State.CREATED)

    def _start(self, command: Command, stdio: Stdio, gate: bool = False) -> LxcProcess:
        spec = self._checked(command)
        guard = self._live_guard()
        guard.check_caller()
        with Terminal(_uid(spec), stdio.size) if command.process.tty else Borrowed(stdio) as streams:
            request = {**self._request(command, spec, guard, streams), "gate": gate}
            process = self._begin("start", request, streams, guard, stdio.deadline, stdio.give_up)
        with self._lock:
            self._commands[process] = command
        process.cgroups = self._directories(request)
        return process

    def start_detached(self, command: Command, log: LogLimits, deadline: float | None = None) -> ContainerProcess:
        spec = self._checked(command)
        found, lock = record.claim(command)
        guard: GuardClient | None = None
        try:
            sweep(self.bases)
            guard = self._new_guard(lock)
            with Terminal(_uid(spec)) if command.process.tty else Pipes() as streams:
                request = {**self._request(command, spec, guard, streams), "log": (log.size, log.files)}
                directories = self._directories(request)
                found.describe(guard.pid, guard.token, guard.lxcpath, directories, request["isolated"])
                self._begin("detach", request, streams, guard, deadline).close()
        except BaseException:
            if guard is not None:
                guard.close(REMOVAL_TIMEOUT)
                sweep(self.bases)
            found.remove()
            raise
        finally:
            os.close(lock)  # the guard's copy keeps it
        record.note_child(guard.pid)
        guard.forget()
        return self.restore(command.id)

    def _checked(self, command: Command) -> dict[str, Any]:
        """The OCI runtime specification of *command*. Raises the first of its problems."""
        assert self.tools
        for problem in self.validate(command):
            raise problem
        return to_oci(command)

    def _directories(self, request: Mapping[str, Any]) -> dict[str, str]:
        """The container's cgroups, by controller."""
        return {name: f"{base}/{request['payload']}" for name, base in self.bases.items()}

    def _request(self, command: Command, spec: dict[str, Any], guard: GuardClient, streams: Streams) -> dict[str, Any]:
        """What *guard* is to be asked for."""
        parent = f"{command.cgroup_parent.strip('/')}/" if command.cgroup_parent else ""
        network = self._shared_network(command, guard)
        argv = list(command.process.argv)
        options = ["-F", "-q", *([] if elf.is_known() else ["-C"]), "-n", command.id, "-P", guard.lxcpath, "-f"]
        before = self._prelude(command, command.process.tty)
        if before is not None:
            argv = prelude.arguments(argv, spec["process"]["env"])
        return {
            "id": command.id,
            "program": command.process.entrypoint,
            "argv": [self.tools["lxc-start"], *options],  # the name of the configuration comes here
            "rest": ["--", *argv],
            "parent": parent,
            "payload": cgroups.payload(parent + guard.token, command.id, self.bases),
            "host_pid": command.pid == "host",
            "isolated": bool(network),
            "limited": "memory" in self.bases
            and (command.resources.memory is not None or cgroups.is_limited(f"{self.bases['memory']}/{parent}")),
            "prelude": before,
            "config": config.render(command, spec, self.bases, parent + guard.token, network, streams.name),
        }

    def _prelude(self, command: Command, tty: bool) -> tuple[bool, int, bytes] | None:
        """What runs before a payload of *command*'s; None where it is not needed. Raises as :meth:`_filter`."""
        flags, code = self._filter(command) or (0, b"")
        return (tty, flags, code) if elf.is_known() else None

    def _filter(self, command: Command) -> Filter | None:
        """The seccomp filter of *command*, kept. Raises InvalidCommandError, UnsupportedError."""
        if notifying(command.seccomp):
            raise UnsupportedError(self.name, Feature.SECCOMP_NOTIFY, "it loads the filter itself, and asks nobody")
        return self._filters.of(command)

    def _check_seccomp(self, command: Command) -> Iterator[InvalidCommandError | UnsupportedError]:
        try:
            filter = self._filter(command)
        except (InvalidCommandError, UnsupportedError) as error:
            yield error
            return
        if filter is None:
            return
        if not elf.is_known():
            yield InvalidCommandError("seccomp", f'{elf.UNKNOWN}; "unconfined" is no filter')
        process = command.process
        if not process.no_new_privileges and "CAP_SYS_ADMIN" not in (process.capabilities or ()):
            problem = 'false takes CAP_SYS_ADMIN, or seccomp="unconfined": the filter is loaded last (seccomp(2))'
            yield InvalidCommandError("process.no_new_privileges", problem)

    def _shared_network(self, command: Command, guard: GuardClient) -> str:
        """The network namespace that the container shares with somebody, or "".

        Its monitor then runs in an empty one: the monitor's command socket is
        an abstract one, that whoever shares its namespace could give orders to
        (CVE-2020-15257's class).
        """
        network = command.networks[0] if command.network is not None else None
        if network is None or network.mode not in ("host", "container", "ns"):
            return ""
        if network.path is not None:
            return network.path
        if network.mode == "host":
            return f"/proc/{guard.pid}/ns/net"
        assert network.container is not None
        return f"/proc/{self._running(network.container).pid}/ns/net"

    def _begin(
        self,
        kind: str,
        request: dict[str, Any],
        streams: Streams,
        guard: GuardClient,
        deadline: float | None = None,
        give_up: int = -1,
    ) -> LxcProcess:
        """Have the guard run a tool; the process once it runs. Raises as :meth:`start`."""
        try:
            status, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise SetupError("make a status socket", error.errno or errno.EMFILE) from None
        id = request["id"]
        kind_of_process = ToolProcess if kind == "tool" else LxcProcess
        process = kind_of_process(id, status, functools.partial(self._drop, guard))
        try:
            with theirs, self._in_flight(process, theirs):
                if kind == "start":
                    with self._lock:
                        other = self._processes.get(id)
                        if other is not None and other.state is not State.STOPPED:
                            raise AlreadyExistsError(id)
                        self._processes[id] = process
                sources = streams.sources if kind == "detach" else ()
                try:
                    guard.ask(kind, request, [theirs.fileno(), *streams.stdio, *sources])
                except ServiceGoneError:
                    self._drop(guard)  # the end-of-file on the status socket tells the rest
                except OSError as error:
                    raise SetupError("send the request", error.errno or errno.EPROTO) from None
            process.wait_for_start(deadline=deadline, give_up=give_up)
        except BaseException:
            process.close()
            raise
        if kind != "detach":
            process.terminal = streams.take()
        return process

    @contextlib.contextmanager
    def _in_flight(self, process: LxcProcess, theirs: socket.socket) -> Iterator[None]:
        """Know *theirs*, so that a child forked by another thread lets go of it: it would hide the guard's death."""
        self._all.add(process)
        self._sockets.add(theirs)
        try:
            yield
        finally:
            self._sockets.discard(theirs)

    def _live_guard(self) -> GuardClient:
        with self._lock:
            if self._guard is not None and self._guard.ended():
                self._guard.close()
                self._guard = None
            if self._guard is None:
                sweep(self.bases)
                self._guard = self._new_guard()
            return self._guard

    def _new_guard(self, directory: int = -1) -> GuardClient:
        try:
            return GuardClient(self.bases, directory)
        except OSError as error:
            raise SetupError("start the guard", error.errno or errno.EPROTO, error.filename) from None

    def _drop(self, guard: GuardClient) -> str:
        """Forget a dead guard and remove what it left; its last words. Nothing happens to one that lives."""
        if not guard.ended(timeout=1.0):
            return "its guard let go of it"
        words = guard.last_words()
        with self._lock:
            if self._guard is not guard:
                return words
            self._guard = None
        guard.close()
        sweep(self.bases)  # it may take a moment, for which others need not wait
        return words

    # -- the other verbs

    def _running(self, id: str) -> LxcProcess | DetachedProcess:
        process: LxcProcess | DetachedProcess | None = self._processes.get(id)
        if process is None or process.state is State.STOPPED:
            process = self._detached(id)
        if process is None or process.state is State.CREATING or _ended(process):
            raise NotRunningError(id)
        return process

    def _detached(self, id: str) -> DetachedProcess | None:
        found = record.find(id)
        return None if found is None else DetachedProcess(found, lambda: sweep(self.bases))

    def kill(self, id: str, signal: int) -> None:
        self._running(id).send_signal(signal)

    def terminate(self, id: str) -> None:
        self._running(id).send_signal(signals.SIGKILL)

    def info(self, id: str) -> ContainerInfo:
        process = self._processes.get(id)
        if process is None or _ended(process):
            found = record.find(id)
            return ContainerInfo(id, State.STOPPED) if found is None else found.info()
        return ContainerInfo(id, process.state, process.pid if process.pid > 0 else None)

    def get_pids_for_container(self, id: str) -> Sequence[int]:
        process = self._running(id)
        directory = process.cgroups.get("pids") or next(iter(process.cgroups.values()))
        return cgroups.pids(directory)

    def exec(self, id: str, process: Process, stdio: Stdio) -> ContainerProcess:
        container = self._running(id)
        if container.state is not State.RUNNING:
            raise NotRunningError(id, container.state.value)
        command = container.command if isinstance(container, DetachedProcess) else self._commands[container]
        problems = [*self._check_process(process), *_check_exec(command.process, process)]
        if problems:
            raise problems[0]
        guard = self._live_guard()
        guard.check_caller()
        spec = process_to_oci(process, command.rootfs)
        user = spec["user"]
        lxcpath, monitor = _whereabouts(container) or (guard.lxcpath, None)
        options = ["-q", "-n", id, "-P", lxcpath, "--clear-env"]
        if (user["uid"], user["gid"]) != (0, 0):
            options += ["-u", str(user["uid"]), "-g", str(user["gid"])]
        before, argv = self._prelude(command, process.tty), list(process.argv)
        if before is not None:
            argv = prelude.arguments(argv, spec["env"])
        request = {
            "id": id,
            "program": process.entrypoint,
            "argv": [self.tools["lxc-attach"], *options, "-f"],
            "rest": ["--", *argv],
            "oom_score_adj": command.oom_score_adj,
            "config": config.render_exec(spec),
            "prelude": before,
            "monitor": monitor,
            "cgroups": container.cgroups,
        }
        with Terminal(user["uid"], stdio.size) if process.tty else Borrowed(stdio) as streams:
            return self._begin("attach", request, streams, guard, stdio.deadline, stdio.give_up)

    def pause(self, id: str) -> None:
        process = self._running(id)
        self._tool("lxc-freeze", process)
        if isinstance(process, LxcProcess):
            process.change_state(State.RUNNING, State.PAUSED)

    def unpause(self, id: str) -> None:
        process = self._running(id)
        self._tool("lxc-unfreeze", process)
        if isinstance(process, LxcProcess):
            process.change_state(State.PAUSED, State.RUNNING)

    def _tool(self, name: str, container: LxcProcess | DetachedProcess) -> None:
        """Run one of LXC's tools on *container*. Raises ContainerError with what it says."""
        guard, id = self._live_guard(), container.id
        lxcpath, monitor = _whereabouts(container) or (guard.lxcpath, None)
        argv = [self.tools[name], "-q", "-n", id, "-P", lxcpath, "--rcfile"]
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            request = {"id": id, "program": name, "argv": argv, "rest": [], "config": b"", "monitor": monitor}
            process = self._begin("tool", request, Borrowed(Stdio(null, null, null)), guard)
        finally:
            os.close(null)
        status = process.wait()
        process.close()
        if status.exit_code != 0:
            self._running(id)
            raise ContainerError(f"{name}: {status.reason or 'failed'}")

    def stats(self, id: str) -> Stats:
        process = self._running(id)
        return take(process.pid, process.cgroups, self.bases)

    def update(self, id: str, resources: Resources) -> None:
        process = self._running(id)
        limits = resources_to_oci(resources)
        if resources.device_cgroup_rules is not None:
            raise InvalidCommandError("resources.device_cgroup_rules", "with LXC they are those of the start")
        for field, problem in cgroups.missing(limits, self.bases):
            raise InvalidCommandError(field, problem)
        cgroups.update(limits, self.bases, process.cgroups)

    # -- detached containers

    def restore(self, id: str) -> ContainerProcess:
        process = self._detached(id)
        if process is None:
            raise ContainerNotFoundError(id)
        return process

    def containers(self) -> Sequence[ContainerInfo]:
        return [found.info() for found in record.records() if found.has_started()]

    def logs(self, id: str, follow: bool = False, tail: int | None = None) -> Iterator[LogRecord]:
        process = self._detached(id)
        if process is None:
            raise ContainerNotFoundError(id)
        return record.read(process, follow, tail)

    def delete(self, id: str) -> None:
        process = self._detached(id)
        if process is None:
            raise ContainerNotFoundError(id)
        try:
            if not _ended(process):
                raise ContainerError(f"container {id!r} is {process.state.value}: stop it before it is removed")
        finally:
            process.close()
        process.record.remove()

    def gc(self) -> Sequence[str]:
        removed = [f"{path} and its cgroups: the guard died" for path in sweep(self.bases)]
        for found in record.records():
            if not found.is_guarded() and found.ended() is None:
                found.remove()
                removed.append(f"{found.path}: its guard died")
        return removed

    def close(self) -> None:
        with self._lock:
            guard, self._guard = self._guard, None
        if guard is not None and not guard.close():
            sweep(self.bases)

    def _after_fork(self) -> None:
        """In a forked child: the guard and the containers are the parent's."""
        if self._guard is not None:
            self._guard.forget()
            self._guard = None
        # A copy of such a socket would keep the other end from noticing that the parent has closed its own.
        for process in list(self._all):
            process.close()
        for theirs in self._sockets:
            theirs.close()
        self._sockets.clear()
        self._lock = threading.Lock()
        self._filters = Filters(self.name)
        self._processes = weakref.WeakValueDictionary()
        self._commands = weakref.WeakKeyDictionary()


def _uid(spec: Mapping[str, Any]) -> int:
    uid: int = spec["process"]["user"]["uid"]
    return uid


def _whereabouts(container: LxcProcess | DetachedProcess) -> tuple[str, tuple[int, bool]] | None:
    """Of a detached one: its LXCPATH, and its monitor, and whether that is in a network namespace of its own."""
    return container.record.whereabouts() if isinstance(container, DetachedProcess) else None


def _ended(process: LxcProcess | DetachedProcess) -> bool:
    try:
        return process.poll() is not None
    except ContainerError:  # lost, or it never started
        return True


def _check_exec(container: Process, process: Process) -> list[InvalidCommandError]:
    """What of *process* lxc-attach cannot do: it confines it as the container is, and has no option for the rest."""
    problems = []
    if process.additional_groups:
        problems.append(InvalidCommandError("process.additional_groups", "lxc-attach can only drop them all"))
    if process.no_new_privileges != container.no_new_privileges:
        problems.append(InvalidCommandError("process.no_new_privileges", "lxc-attach takes the container's"))
    if process.capabilities is not None and process.capabilities != container.capabilities:
        problems.append(InvalidCommandError("process.capabilities", "lxc-attach takes the container's"))
    if process.privileged and not container.privileged:
        problems.append(InvalidCommandError("process.privileged", "lxc-attach takes the container's capabilities"))
    if process.working_dir != "/":
        problems.append(InvalidCommandError("process.working_dir", "lxc-attach can only enter /"))
    return problems


def _check_devices(devices: Sequence[Device]) -> Iterator[InvalidCommandError]:
    """LXC shows the host's own nodes, as they are."""
    for device in devices:
        try:
            asked, there = device.to_oci(), Device(device.path, device.container_path).to_oci()
        except InvalidCommandError as error:
            yield error
            continue
        for field, name in _DEVICE_FIELDS.items():
            if asked[name] != there[name]:
                yield InvalidCommandError(field, f"LXC shows {device.path} itself, of which it is {there[name]}")


_DEVICE_FIELDS = {
    **{f"devices.{name}": name for name in ("type", "major", "minor", "uid", "gid")},
    "devices.mode": "fileMode",
}


def _may_lower_oom_score() -> bool:
    """Whether this process has CAP_SYS_RESOURCE (proc_pid_oom_score_adj(5))."""
    effective = cgroups.read("/proc/self/status").partition("CapEff:")[2].split(maxsplit=1)[0]
    return bool(int(effective, 16) >> 24 & 1)


def _is_network_namespace(path: str) -> bool:
    """Whether it is one, and not this process's own (ioctl_nsfs(2))."""
    own = os.stat("/proc/self/ns/net")
    try:
        if os.stat(path).st_dev != own.st_dev:  # nothing else is opened
            return False
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return fcntl.ioctl(fd, _NS_GET_NSTYPE) == _CLONE_NEWNET and not os.path.samestat(os.fstat(fd), own)
    except OSError:
        return False
    finally:
        os.close(fd)


_NS_GET_NSTYPE, _CLONE_NEWNET = 0xB703, 0x40000000  # linux/nsfs.h, linux/sched.h

_drivers: weakref.WeakSet[LxcDriver] = weakref.WeakSet()


def _forget_all() -> None:
    for driver in list(_drivers):
        driver._after_fork()


def _close_all() -> None:
    """When the interpreter ends in peace, everything is gone before it has; otherwise a moment later."""
    for driver in list(_drivers):
        driver.close()


os.register_at_fork(after_in_child=_forget_all)
atexit.register(_close_all)
