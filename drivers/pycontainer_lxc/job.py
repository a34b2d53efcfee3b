"""What the guard runs: a container's monitor, an attached process, or a tool that just does something."""

from __future__ import annotations

import _signal as signal
import _socket as socket
import errno
import fcntl
import marshal
import os
import stat
import sys
from time import monotonic

from pycontainer_lxc.log import STOPPING, failed_step, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pycontainer_lxc.guard import Guard

#: How long a container's cgroups may refuse to go away (seconds).
REMOVAL_TIMEOUT = 5.0
MAX_ERRORS = 20

_LOG = "lxc.log.level={level}\nlxc.log.file=/proc/{pid}/fd/{log}\n"

#: LXC waits for this hook before it removes the container's cgroups. It writes "exec" before it, which then only
#: redirects, and arguments behind it, which are for ":".
_STOP = 'lxc.hook.stop="</dev/null; echo {stopping} >/proc/{pid}/fd/{log}; read x </proc/{pid}/fd/{answer}; :"\n'


def descriptors(control: list[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors of a control message."""
    data = b"".join(data for _, kind, data in control if kind == socket.SCM_RIGHTS)
    return [int.from_bytes(data[i : i + 4], sys.byteorder) for i in range(0, len(data), 4)]


def remove_cgroups(path: str) -> bool:
    """Remove the cgroup *path* and those below it; whether nothing is left. A busy one stays."""
    try:
        names = [entry.name for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return True
    for name in names:
        remove_cgroups(f"{path}/{name}")
    try:
        os.rmdir(path)
    except FileNotFoundError:
        pass
    except OSError:
        return False
    return True


def thaw(directory: str) -> None:
    """A frozen process of cgroup v1 does not die of SIGKILL before it is thawed."""
    for name, value in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
        try:
            with open(f"{directory}/{name}", "r+") as file:  # which does not make it where it is not
                file.write(value)
        except OSError:
            pass


def kill_members(cgroup: str) -> None:
    """One round of SIGKILL to everything in *cgroup* and below it."""
    for directory, _, _ in os.walk(cgroup):
        for pid in _members(directory):
            try:
                pidfd = os.pidfd_open(pid)
            except OSError:
                continue
            try:
                if pid in _members(directory):  # only who still is in here is ours
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            except OSError:
                pass
            finally:
                os.close(pidfd)
        thaw(directory)


def _members(directory: str) -> list[int]:
    try:
        with open(f"{directory}/cgroup.procs") as file:
            return [int(line) for line in file]
    except OSError:
        return []


class Job:
    """One tool, from its start until its end is reported on :attr:`status`."""

    level = "INFO"

    def __init__(self, guard: Guard, status: socket.socket, request: dict[str, Any]) -> None:
        self.guard = guard
        self.status = status
        self.request = request
        self.pid = -1  # the tool's
        self.pidfd = -1
        self.log = -1
        self.log_end = -1  # kept open for tools that open it by its name in /proc
        self.config = -1
        self.partial = b""
        self.errors: list[tuple[str, str]] = []
        self.warnings: list[str] = []
        self.child = -1  # the payload
        self.childfd = -1
        self.exit: tuple[int | None, int | None] | None = None  # the payload's exit code, signal
        self.result: tuple[int, int] | None = None  # the tool's si_code, si_status
        self.told = False

    # -- begin

    def prepare(self, head: str, **values: Any) -> None:
        """Make the log's pipe, and the configuration with *head* before the request's, formatted with *values*."""
        self.log, self.log_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.log, False)
        fcntl.fcntl(self.log, fcntl.F_SETPIPE_SZ, 1 << 18)
        self.config = os.memfd_create("lxc-config", os.MFD_CLOEXEC)
        head = head.format(level=self.level, pid=self.guard.pid, log=self.log_end, **values)
        with open(os.dup(self.config), "wb") as file:
            file.write(head.encode() + self.request["config"])

    def watch(self) -> None:
        """After the tool's start."""
        self.pidfd = os.pidfd_open(self.pid)
        guard = self.guard
        guard.jobs.add(self)
        guard.watch(self.pidfd, self.on_exit)
        guard.watch(self.log, self.on_log)
        guard.watch(self.status.fileno(), self.on_status)

    def begin(self, fds: list[int]) -> None:
        """Start the tool with *fds* as its stdio. Raises OSError."""
        self.prepare(_LOG)
        argv = [*self.request["argv"], f"/proc/{self.guard.pid}/fd/{self.config}", *self.request["rest"]]
        monitor = self.guard.monitors[self.request["id"]]
        network = -1
        if monitor.request["isolated"]:
            network = os.open(f"/proc/{monitor.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.pid = self.guard.spawn(argv, fds, network, keyring=True)
        finally:
            if network >= 0:
                os.close(network)
        self.watch()

    # -- events

    def on_log(self) -> None:
        """Take in what LXC has written."""
        while self.log >= 0:
            try:
                data = os.read(self.log, 1 << 16)
            except BlockingIOError:
                return
            if not data:
                self.guard.forget(self.log)
                return
            *lines, self.partial = (self.partial + data).split(b"\n")
            for line in lines:
                event: Any = parse(line.decode(errors="surrogateescape"))
                if event is not None:
                    self.on_event(*event)

    def on_event(self, kind: str, *values: Any) -> None:
        """One thing that the log tells."""
        if kind == "error" and len(self.errors) < MAX_ERRORS:
            self.errors.append((values[0], values[1]))
        elif kind == "warning" and len(self.warnings) < MAX_ERRORS:
            self.warnings.append(values[1])

    def on_exit(self) -> None:
        """The tool ended."""
        result = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        assert result is not None
        self.result = (result.si_code, result.si_status)
        self.guard.forget(self.pidfd)
        self.on_log()
        self.finish()

    def on_status(self) -> None:
        """The caller has closed its end: nobody wants this any more."""
        self.guard.forget(self.status.fileno())
        self.kill()

    def finish(self) -> None:
        """The tool has ended: say how."""
        assert self.result is not None
        self.tell("done", self.result[1] if self.result[0] == os.CLD_EXITED else -self.result[1], self.notes())
        self.close()

    def look_again(self) -> None:
        """After a while, when in the guard's ``impatient``."""

    # -- ends

    def adopt(self, pid: int, parent: int) -> None:
        """Hold *pid*, a child of *parent*, if it has not been reaped yet: then it is nobody else by now."""
        self.child = pid
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                if int(file.read().rpartition(b")")[2].split()[1]) == parent:
                    self.childfd = pidfd
                    return
        except OSError:
            pass
        os.close(pidfd)

    def kill(self) -> None:
        """SIGKILL to the payload, or to the tool while there is none."""
        fd = self.childfd if self.childfd >= 0 else self.pidfd
        if fd >= 0 and self.exit is None and self.result is None:
            try:
                signal.pidfd_send_signal(fd, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def notes(self) -> str:
        """LXC's own messages."""
        return "; ".join(message for _, message in self.errors)

    def fail(self, step: str = "", number: int = 0, path: str = "") -> None:
        """Report that it did not start, as *step* or in LXC's words, and forget it."""
        if not step:
            step, number, path = failed_step(self.errors, self.guard.errnos, self.request["program"])
        name = os.path.basename(self.request["argv"][0])
        if not step and self.result is not None and self.result[0] != os.CLD_EXITED:
            step, number = f"{name} was killed by signal {self.result[1]}", errno.EINTR
        self.tell("failed", step or f"run {name}", number or errno.EPROTO, path, f"{name}: {self.notes()}")
        self.close()

    def tell(self, *message: Any, fd: int = -1) -> None:
        """Send to whoever holds the other end of the status socket, if anybody does."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fd.to_bytes(4, sys.byteorder))] if fd >= 0 else []
        try:
            self.status.sendmsg([marshal.dumps(message)], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:
            pass

    def close(self) -> None:
        """Forget it."""
        guard = self.guard
        guard.jobs.discard(self)
        guard.impatient.discard(self)
        guard.forget(self.status.fileno())
        self.status.close()
        for fd in (self.pidfd, self.log, self.log_end, self.config, self.childfd):
            if fd >= 0:
                guard.forget(fd)
                os.close(fd)
        self.pidfd = self.log = self.log_end = self.config = self.childfd = -1


class Tool(Job):
    """A tool that does something to a container and ends."""


class Attached(Job):
    """``lxc-attach``: a further process in a container."""

    level = "TRACE"  # the only level that tells the process's pid

    def on_event(self, kind: str, *values: Any) -> None:
        if kind == "attached":
            self.adopt(values[0], self.pid)
            self.guard.impatient.add(self)
        else:
            super().on_event(kind, *values)

    def look_again(self) -> None:
        """Whether execve has happened: the kernel tells nobody but a tracer, so this looks at its image."""
        try:
            if os.readlink(f"/proc/{self.child}/exe") == os.readlink(f"/proc/{self.pid}/exe"):
                return
        except OSError:
            pass  # ended: how, finish() says
        else:
            self.started()
        self.guard.impatient.discard(self)

    def started(self) -> None:
        if not self.told:
            self.told = True
            self.tell("started", self.child, fd=self.childfd)

    def finish(self) -> None:
        assert self.result is not None
        exited = self.result[0] == os.CLD_EXITED
        if self.child < 0 or any(function == "lxc_attach_run_command" for function, _ in self.errors):
            self.fail()
            return
        self.started()
        status = _exit_status(self.childfd)
        if status is not None:
            code = os.waitstatus_to_exitcode(status)
            self.tell("exited", *((code, None) if code >= 0 else (None, -code)), False, "")
        elif exited:  # a kernel before 6.15: 128 and the signal's number, or an exit code like that
            self.tell("exited", self.result[1], None, False, "")
        else:
            self.tell("lost", f"lxc-attach was killed by signal {self.result[1]}")
        self.close()


def _exit_status(pidfd: int) -> int | None:
    """The wait status of a process that its parent has reaped: PIDFD_GET_INFO, ioctl_pidfd(2), Linux 6.15."""
    if pidfd < 0:
        return None
    info = bytearray(64)
    info[0] = 1 << 3  # PIDFD_INFO_EXIT
    try:
        fcntl.ioctl(pidfd, 0xC040FF0B, info)
    except OSError:
        return None
    return int.from_bytes(info[60:64], sys.byteorder) if info[0] & 1 << 3 else None


class Monitor(Job):
    """``lxc-start -F``: a container."""

    def __init__(self, guard: Guard, status: socket.socket, request: dict[str, Any]) -> None:
        super().__init__(guard, status, request)
        self.before: list[tuple[int, os.stat_result]] = []  # stdio as it was: LXC changes its owner and mode
        self.payload = f"{request['parent']}{guard.token}/payload.{request['id']}"
        self.gate: tuple[int, ...] = ()  # the pipe that the hook waits at
        self.oom_killed: bool | None = None  # None: not looked yet
        self.deadline = 0.0

    def begin(self, fds: list[int]) -> None:
        guard = self.guard
        if self.request["id"] in guard.monitors:
            raise OSError(errno.EEXIST, "name the container")
        guard.parents.add(self.request["parent"])
        self.gate = os.pipe2(os.O_CLOEXEC)
        self.prepare(_LOG + _STOP, stopping=STOPPING, answer=self.gate[0])
        argv = [*self.request["argv"], "/proc/self/fd/3", *self.request["rest"]]
        for fd in fds:
            info = os.fstat(fd)
            if info.st_rdev != _NULL:
                self.before.append((os.dup(fd), info))
        self.pid = guard.spawn(argv, [*fds, self.config], new_network=self.request["isolated"])
        guard.monitors[self.request["id"]] = self
        self.watch()

    # -- events

    def on_event(self, kind: str, *values: Any) -> None:
        if kind == "started":
            if self.exit is None and not self.told:
                self.adopt(values[0], self.pid)
                self.told = True
                self.give_back_stdio()
                if self.childfd >= 0:
                    self.guard.watch(self.childfd, self.on_child)
                self.tell("started", self.child, fd=self.childfd)
        elif kind == "cgroup":
            self.payload = values[0]
        elif kind == "stopping":
            self.read_memory()
            os.write(self.gate[1], b"\n")
        elif kind == "ended":
            if self.exit is None:
                self.exit = (values[0], values[1])
                if values[1] == signal.SIGHUP and self.result is None:
                    # So ends a container that called reboot(2), and LXC would start it again.
                    signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        else:
            super().on_event(kind, *values)

    def give_back_stdio(self) -> None:
        """LXC gives stdio to the container's user and makes it rwx for him alone, be it the caller's own file."""
        for fd, info in self.before:
            try:
                now = os.fstat(fd)
                if (now.st_uid, now.st_gid) != (info.st_uid, info.st_gid):
                    os.fchown(fd, info.st_uid, info.st_gid)
                if now.st_mode != info.st_mode:
                    os.fchmod(fd, stat.S_IMODE(info.st_mode))
            except OSError:
                pass  # it was not ours to give: then LXC could not take it either
            os.close(fd)
        self.before.clear()

    def on_child(self) -> None:
        """The container's init ended; LXC has yet to notice."""
        self.guard.forget(self.childfd)
        if self.request["host_pid"]:
            self.kill_cgroup()

    def read_memory(self) -> None:
        """Look whether the kernel has killed a process of the container: all are dead, and the counter is there."""
        bases = self.guard.bases
        base, name = (bases["memory"], "oom_control") if "memory" in bases else (bases.get("", ""), "events")
        directory = f"{base}/{self.payload}"
        try:
            with open(f"{directory}/memory.{name}") as file:
                self.oom_killed = any(line.startswith("oom_kill ") and line != "oom_kill 0\n" for line in file)
        except OSError:
            if not base or os.path.isdir(directory):  # no memory controller there
                self.oom_killed = False

    def finish(self) -> None:
        """LXC has ended: remove what it left; then, and only then, say how the container ended."""
        if not self.deadline:
            self.deadline = monotonic() + REMOVAL_TIMEOUT
            self.give_back_stdio()
            if self.oom_killed is None:  # LXC was killed before it came to the hook: then the cgroups are all there
                self.read_memory()
            if self.childfd >= 0 and self.exit is None:  # LXC died of something: its PR_SET_PDEATHSIG has killed it
                self.kill()
        if not self.removed() and monotonic() < self.deadline:
            self.guard.impatient.add(self)
            return
        assert self.result is not None
        code, number = self.result
        if not self.told:
            self.fail()
        elif self.exit is None and (code != os.CLD_EXITED or number):
            how = f"with code {number}" if code == os.CLD_EXITED else f"by signal {number}"
            self.tell("lost", f"lxc-start ended {how}: {self.notes()}")
            self.close()
        else:
            note = "whether it was out of memory is not known: LXC has not run its stop hook"
            self.tell("exited", *(self.exit or (0, None)), bool(self.oom_killed), note * (self.oom_killed is None))
            self.close()

    def look_again(self) -> None:
        self.finish()

    def removed(self) -> bool:
        """Remove what can be removed now; whoever is still inside is killed."""
        gone = True
        monitor = f"{self.request['parent']}{self.guard.token}/monitor.{self.request['id']}"
        for base in {*self.guard.bases.values()}:
            for path in (self.payload, monitor):
                gone = remove_cgroups(f"{base}/{path}") and gone
        if not gone:
            self.kill_cgroup()
            for base in {*self.guard.bases.values()}:  # a hook of a monitor that was killed
                kill_members(f"{base}/{monitor}")
        return gone

    # -- ends

    def kill(self) -> None:
        super().kill()
        for base in {*self.guard.bases.values()}:
            thaw(f"{base}/{self.payload}")
        if self.request["host_pid"]:
            self.kill_cgroup()

    def kill_cgroup(self) -> None:
        """One round of SIGKILL to everything in the container's cgroups."""
        for base in {*self.guard.bases.values()}:
            kill_members(f"{base}/{self.payload}")

    def close(self) -> None:
        guard = self.guard
        if guard.monitors.get(self.request["id"]) is self:
            del guard.monitors[self.request["id"]]
        for fd in (*self.gate, *(fd for fd, _ in self.before)):
            os.close(fd)
        self.gate = ()
        self.before.clear()
        super().close()


_NULL = os.stat(os.devnull).st_rdev
