"""The LXC driver: a Command rendered for ``lxc-start``, and the verbs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal as signals
import socket
import struct
import termios
import threading
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pycontainer.driver import ContainerInfo, ContainerProcess, ExecutionDriver, Feature, Probe, State, Stdio
from pycontainer.errors import (
    AlreadyExistsError,
    ContainerError,
    DriverUnavailableError,
    InvalidCommandError,
    NotRunningError,
    UnsupportedError,
)
from pycontainer.network import named
from pycontainer.rootfs import Overlay
from pycontainer.spec import process_to_oci, resources_to_oci, to_oci
from pycontainer_lxc import cgroups, config, terminal
from pycontainer_lxc.client import GuardClient, GuardGoneError, sweep
from pycontainer_lxc.process import LxcProcess
from pycontainer_lxc.stats import take

if TYPE_CHECKING:
    from pycontainer.command import Command, Process, Resources
    from pycontainer.stats import Stats

FEATURES = frozenset(
    {
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
    }
)

#: What LXC 5 has open, and a few.
MIN_DESCRIPTORS = 64


class LxcDriver(ExecutionDriver):
    """Debian's lxc tools, run by a guard process; Docker 0.9's ``lxc``."""

    name = "lxc-0.1"

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._guard: GuardClient | None = None
        self._tools: dict[str, str] | None = None
        self._bases: dict[str, str] | None = None
        self._processes: weakref.WeakValueDictionary[str, LxcProcess] = weakref.WeakValueDictionary()
        self._commands: weakref.WeakKeyDictionary[LxcProcess, Command] = weakref.WeakKeyDictionary()
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
        for field in ("oom_score_adj", "cpu_affinity", "rootfs_propagation"):
            if getattr(command, field) is not None:
                refuse(field, "this driver has no way to set it yet")
        for field in ("pid", "ipc", "uts"):
            if getattr(command, field) not in (None, "host"):
                refuse(field, "this driver shares only the host's yet")
        problems += self._check_process(command.process)
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
        for field in ("dns", "dns_search", "extra_hosts"):
            if getattr(command, field):
                refuse(field, "is not done with LXC: mount a file of your own over the one in /etc")
        for network in command.networks:
            if network.mode == "bridge" and network.create_bridge:
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
        return problems

    def _check_process(self, process: Process) -> list[InvalidCommandError | UnsupportedError]:
        problems: list[InvalidCommandError | UnsupportedError] = []
        if process.tty and not terminal.is_known():
            problems.append(InvalidCommandError("process.tty", terminal.UNKNOWN))
        if "\n" in process.entrypoint:
            problem = "cannot have a line break: LXC names it in its log, which tells how it ended"
            problems.append(InvalidCommandError("process.entrypoint", problem))
        for name, value in (process.env or {}).items():
            if "\n" in value or "\r" in value:
                problem = f"{name} has a line break, and LXC's configuration has one value in a line"
                problems.append(InvalidCommandError("process.env", problem))
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
        tools = self.tools
        problems = self.validate(command)
        if problems:
            raise problems[0]
        spec = to_oci(command)
        guard = self._live_guard()
        parent = f"{command.cgroup_parent.strip('/')}/" if command.cgroup_parent else ""
        network = self._shared_network(command, guard)
        tty, argv = command.process.tty, list(command.process.argv)
        options = ["-F", "-q", "-n", command.id, "-P", guard.lxcpath, "-f"]
        if tty:
            argv = terminal.arguments(argv, spec["process"]["env"])
        else:
            options.insert(0, "-C")  # close what it inherits
        request = {
            "id": command.id,
            "program": command.process.entrypoint,
            "argv": [tools["lxc-start"], *options],  # the name of the configuration comes here
            "rest": ["--", *argv],
            "parent": parent,
            "host_pid": command.pid == "host",
            "isolated": bool(network),
            "terminal": tty,
        }
        with _Terminal(stdio, spec["process"]["user"]["uid"]) if tty else contextlib.nullcontext() as own:
            name = own.name if own is not None else ""
            request["config"] = config.render(command, spec, self.bases, parent + guard.token, network, name)
            process = self._begin("start", request, stdio, guard, own)
        with self._lock:
            self._commands[process] = command
        directory = f"{parent}{guard.token}/payload.{command.id}"
        process.cgroups = {name: f"{base}/{directory}" for name, base in self.bases.items()}
        return process

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
        self, kind: str, request: dict[str, Any], stdio: Stdio, guard: GuardClient, own: _Terminal | None = None
    ) -> LxcProcess:
        """Have the guard run a tool, with *own* as its stdio if it is to have a terminal; the process once it runs."""
        streams = [stdio.stdin, stdio.stdout, stdio.stderr] if own is None else [own.slave] * 3
        status, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        id = request["id"]
        with theirs:
            process = LxcProcess(id, status, lambda: self._drop(guard))
            if kind == "start":
                with self._lock:
                    other = self._processes.get(id)
                    if other is not None and other.state is not State.STOPPED:
                        status.close()
                        raise AlreadyExistsError(id)
                    self._processes[id] = process
            try:
                guard.request(kind, request, [theirs.fileno(), *streams])
            except GuardGoneError:
                self._drop(guard)  # the end-of-file on the status socket tells the rest
            except BaseException:
                process.state = State.STOPPED
                process.close()
                raise
        try:
            process.wait_for_start(stdio.deadline)
        except BaseException:
            process.state = State.STOPPED
            process.close()
            raise
        if own is not None:
            process.terminal = own.take()
        return process

    def _live_guard(self) -> GuardClient:
        with self._lock:
            if self._guard is not None and self._guard.ended():
                self._guard.close()
                self._guard = None
            if self._guard is None:
                sweep(self.bases)
                self._guard = GuardClient(self.bases)
            return self._guard

    def _drop(self, guard: GuardClient) -> str:
        """Forget a dead guard and remove what it left; its last words. Nothing happens to one that lives."""
        if not guard.ended(timeout=1.0):
            return "its guard let go of it"
        words = guard.last_words()
        with self._lock:
            if self._guard is guard:
                self._guard = None
                guard.close()
                sweep(self.bases)
        return words

    # -- the other verbs

    def _running(self, id: str) -> LxcProcess:
        process = self._processes.get(id)
        if process is None or process.state is State.CREATING or _ended(process):
            raise NotRunningError(id)
        return process

    def kill(self, id: str, signal: int) -> None:
        self._running(id).send_signal(signal)

    def terminate(self, id: str) -> None:
        process = self._running(id)
        process.send_signal(signals.SIGKILL)
        if process.state is State.PAUSED:
            # frozen by cgroup v1 it would not die before it is thawed
            with contextlib.suppress(ContainerError):
                self.unpause(id)

    def info(self, id: str) -> ContainerInfo:
        process = self._processes.get(id)
        if process is None or _ended(process):
            return ContainerInfo(id, State.STOPPED)
        return ContainerInfo(id, process.state, process.pid if process.pid > 0 else None)

    def get_pids_for_container(self, id: str) -> Sequence[int]:
        process = self._running(id)
        directory = process.cgroups.get("pids") or next(iter(process.cgroups.values()))
        return cgroups.pids(directory)

    def exec(self, id: str, process: Process, stdio: Stdio) -> ContainerProcess:
        container = self._running(id)
        if container.state is State.PAUSED:
            raise NotRunningError(id, State.PAUSED.value)
        command = self._commands[container]
        problems = [*self._check_process(process), *_check_exec(command.process, process)]
        if problems:
            raise problems[0]
        guard = self._live_guard()
        spec = process_to_oci(process, command.rootfs)
        user = spec["user"]
        argv = [self.tools["lxc-attach"], "-q", "-n", id, "-P", guard.lxcpath, "--clear-env"]
        if (user["uid"], user["gid"]) != (0, 0):
            argv += ["-u", str(user["uid"]), "-g", str(user["gid"])]
        request = {
            "id": id,
            "program": process.entrypoint,
            "argv": [*argv, "-f"],
            "rest": ["--", *(terminal.arguments(list(process.argv), spec["env"]) if process.tty else process.argv)],
            "config": config.render_exec(spec),
            "terminal": process.tty,
        }
        with _Terminal(stdio, user["uid"]) if process.tty else contextlib.nullcontext() as own:
            return self._begin("attach", request, stdio, guard, own)

    def pause(self, id: str) -> None:
        process = self._running(id)
        self._tool("lxc-freeze", id)
        process.state = State.PAUSED

    def unpause(self, id: str) -> None:
        process = self._running(id)
        self._tool("lxc-unfreeze", id)
        process.state = State.RUNNING

    def _tool(self, name: str, id: str) -> None:
        """Run one of LXC's tools on container *id*. Raises ContainerError with what it says."""
        guard = self._live_guard()
        argv = [self.tools[name], "-q", "-n", id, "-P", guard.lxcpath, "--rcfile"]
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            request = {"id": id, "program": name, "argv": argv, "rest": [], "config": b""}
            process = self._begin("tool", request, Stdio(null, null, null), guard)
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
        for field, problem in cgroups.missing(limits, self.bases):
            raise InvalidCommandError(field, problem)
        cgroups.update(limits, self.bases, process.cgroups)

    def close(self) -> None:
        with self._lock:
            guard, self._guard = self._guard, None
        if guard is not None:
            guard.close()

    def _after_fork(self) -> None:
        """In a forked child: the guard and the containers are the parent's."""
        if self._guard is not None:
            self._guard.forget()
            self._guard = None
        self._lock = threading.Lock()
        self._processes = weakref.WeakValueDictionary()
        self._commands = weakref.WeakKeyDictionary()


class _Terminal:
    """A new pseudo-terminal, which nobody has kept once this is left unless its master was taken."""

    def __init__(self, stdio: Stdio, uid: int) -> None:
        self.master, self.slave = os.openpty()
        os.fchown(self.slave, uid, -1)
        os.fchmod(self.slave, 0o620)  # as grantpt(3) leaves it
        self.name = os.ttyname(self.slave)
        if stdio.size is not None:
            fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("=4H", *stdio.size, 0, 0))

    def take(self) -> int:
        """The master, the caller's from here on."""
        master, self.master = self.master, -1
        return master

    def __enter__(self) -> _Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in (self.master, self.slave):
            if fd >= 0:
                os.close(fd)


def _ended(process: LxcProcess) -> bool:
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


os.register_at_fork(after_in_child=_forget_all)
