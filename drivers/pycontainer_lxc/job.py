"""What the guard runs: one of LXC's tools, from its start until its end is reported."""

from __future__ import annotations

import _signal as signal
import _socket as socket
import errno
import fcntl
import marshal
import os
import sys

from pycontainer_lxc import prelude
from pycontainer_lxc.log import failed_step, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pycontainer_lxc.guard import Guard

MAX_ERRORS = 20

LOG = "lxc.log.level={level}\nlxc.log.file=/proc/{pid}/fd/{log}\n"


def descriptors(control: list[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors of a control message."""
    data = b"".join(data for _, kind, data in control if kind == socket.SCM_RIGHTS)
    return [int.from_bytes(data[i : i + 4], sys.byteorder) for i in range(0, len(data), 4)]


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
        self.report = self.report_end = -1  # the prelude writes there: see pycontainer_lxc.prelude
        self.said: list[int] = []
        self.gate: tuple[int, ...] = ()  # the pipe that it waits at, where it is to
        self.opened = False  # and whether it no longer has to

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
        try:
            self.pidfd = os.pidfd_open(self.pid)
        except OSError:  # it is not reaped yet: its pid is nobody else's
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            raise
        guard = self.guard
        guard.jobs.add(self)
        guard.watch(self.pidfd, self.on_exit)
        if self.report < 0:  # else what it says while it sets up can wait: the prelude tells when that is over
            guard.watch(self.log, self.on_log)
        guard.watch(self.status.fileno(), self.on_status)

    def prepare_prelude(self, fds: list[int]) -> list[int]:
        """The descriptors of a tool that runs a prelude before its payload, which is to have *fds* as its stdio."""
        guard, kind = self.guard, self.request["prelude"]
        self.report, self.report_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.fchmod(self.report, 0o666)  # the payload's user opens it
        guard.watch(self.report, self.on_report)
        terminal = kind[0]
        stdio = [guard.null] * 3 if terminal else fds
        keep = [*stdio, self.config, guard.prelude((*kind, self.gated)), self.report, *fds[:terminal]]
        if self.gated:
            self.gate = os.pipe2(os.O_CLOEXEC)
            keep += [*([] if terminal else [guard.null]), self.gate[0]]
        return keep

    @property
    def gated(self) -> bool:
        """Whether the payload is to wait for :meth:`open_gate`."""
        return bool(self.request.get("gate"))

    def is_at_gate(self) -> bool:
        """Whether the prelude has come as far."""
        return bool(self.gate) and prelude.READY in self.said

    def open_gate(self) -> None:
        """Let it go on."""
        os.write(self.gate[1], b"\n")
        self.opened = True

    def begin(self, fds: list[int]) -> None:
        """Start the tool with *fds* as its stdio. Raises OSError."""
        self.prepare(LOG)
        if self.request.get("prelude"):
            fds = self.prepare_prelude(fds)
        argv = [*self.request["argv"], f"/proc/{self.guard.pid}/fd/{self.config}", *self.request["rest"]]
        monitor, isolated = self.request["monitor"] or self.guard.monitors[self.request["id"]].whereabouts()
        network = -1
        if isolated:
            network = os.open(f"/proc/{monitor}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            score = self.request.get("oom_score_adj")
            self.pid = self.guard.spawn(argv, fds, network, new_session=True, oom_score_adj=score)
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

    def on_report(self) -> None:
        """The prelude has said something, or has become the payload."""
        while self.report >= 0:
            try:
                data = os.read(self.report, 4096)
            except BlockingIOError:
                return
            self.said += prelude.numbers(data)
            end, self.report_end = self.report_end, -1
            if end >= 0:  # it has opened its own
                os.close(end)
                if self.is_at_gate():
                    self.read_log()
                    self.on_gate()
            if not data:
                self.end_report()
                self.read_log()
                self.started()

    def read_log(self) -> None:
        """Take in what LXC has written so far, and from now on when it comes."""
        if self.log not in self.guard.handlers:
            self.guard.watch(self.log, self.on_log)
        self.on_log()

    def on_gate(self) -> None:
        """What there is to do once everything is set up."""

    def end_report(self) -> None:
        """No more comes of it."""
        report, self.report = self.report, -1
        if report >= 0:
            self.guard.forget(report)
            os.close(report)

    def has_reported(self) -> None:
        """The tool has ended, and so all has been said.

        There may be no end-of-file yet: until its execve has closed them,
        another tool that was just started has copies of the guard's descriptors.
        """
        self.on_report()
        self.end_report()

    def has_failed(self) -> bool:
        """Whether the prelude could not become the payload."""
        return prelude.FAILED in self.said

    def started(self) -> None:
        """What there is to do once the payload runs."""

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
        """The caller wants it to go on, or has closed its end: then nobody wants this any more."""
        try:
            wanted = self.status.recv(1, socket.MSG_DONTWAIT)
        except OSError:
            wanted = b""
        if wanted and self.gate:
            self.open_gate()
            return
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
        if not step and self.has_failed():
            step, number = prelude.fault(self.said)
            path = self.request["program"]
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
        fds = (self.pidfd, self.log, self.log_end, self.config, self.childfd, self.report, self.report_end, *self.gate)
        for fd in fds:
            if fd >= 0:
                guard.forget(fd)
                os.close(fd)
        self.gate = ()
        guard.reap()
        self.pidfd = self.log = self.log_end = self.config = self.childfd = self.report = self.report_end = -1


class Tool(Job):
    """A tool that does something to a container and ends."""
