"""``lxc-attach``: a further process in a container."""

from __future__ import annotations

import _signal as signal
import fcntl
import os
import sys

from pycontainer_lxc.job import Job

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Attached(Job):
    """Started once its execve has happened, ended with the status that the kernel kept."""

    level = "TRACE"  # the only level that tells the process's pid
    orphaned = False  # whether lxc-attach was killed
    oom_before = 0  # how many processes of the container the kernel had killed for want of memory

    def begin(self, fds: list[int]) -> None:
        self.oom_before = self.count_oom_kills()
        super().begin(fds)

    def count_oom_kills(self) -> int:
        """How many it has killed, as far as that can be read."""
        controller, name = self.guard.memory
        try:
            with open(f"{self.request['cgroups'].get(controller)}/{name}") as file:
                return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), 0)
        except OSError:
            return 0  # nobody counts, or the container has ended

    def tell_end(self, code: int | None, signal: int | None) -> None:
        """It has ended; one that ended well has not lacked memory, whoever else was killed meanwhile."""
        killed = (code, signal) != (0, None) and self.count_oom_kills() > self.oom_before
        self.tell("exited", code, signal, killed, "")

    @property
    def gated(self) -> bool:
        """Always: lxc-attach tells a signal as 128 and more, as if it were an exit code, and dies before it can."""
        return bool(self.request["prelude"])

    def on_gate(self) -> None:
        if self.childfd >= 0 and not self.orphaned:
            self.orphaned = True
            self.guard.adopt(1)
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def on_exit(self) -> None:
        if self.orphaned:
            self.guard.adopt(-1)
        if not self.orphaned or not self.is_own():
            super().on_exit()
            return
        os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        self.guard.forget(self.pidfd)
        self.guard.watch(self.childfd, self.on_child)
        self.open_gate()

    def is_own(self) -> bool:
        """Whether the process is the guard's child by now: unless lxc-attach saw it killed before."""
        try:
            os.waitid(os.P_PIDFD, self.childfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        return True

    def on_child(self) -> None:
        """It has ended, and is this process's own child by now."""
        found = os.waitid(os.P_PIDFD, self.childfd, os.WEXITED)
        assert found is not None
        self.guard.forget(self.childfd)
        self.has_reported()
        if self.has_failed():
            self.fail()
            return
        self.started()
        exited = found.si_code == os.CLD_EXITED
        self.tell_end(*((found.si_status, None) if exited else (None, found.si_status)))
        self.close()

    def on_event(self, kind: str, *values: Any) -> None:
        if kind == "attached":
            self.adopt(values[0], self.pid)
            if self.is_at_gate():
                self.on_gate()
            elif self.request["prelude"]:
                self.started()
            else:
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
        if self.child >= 0 and self.report < 0 and not self.has_failed() and not self.told:
            self.told = True
            self.tell("started", self.child, fd=self.childfd)

    def finish(self) -> None:
        assert self.result is not None
        exited = self.result[0] == os.CLD_EXITED
        self.has_reported()
        if (
            self.child < 0
            or self.has_failed()
            or any(function == "lxc_attach_run_command" for function, _ in self.errors)
        ):
            self.fail()
            return
        self.started()
        status = _exit_status(self.childfd)
        if status is not None:
            code = os.waitstatus_to_exitcode(status)
            self.tell_end(*((code, None) if code >= 0 else (None, -code)))
        elif (
            exited
        ):  # without a prelude, on a kernel before 6.15: 128 and the signal's number, or an exit code like that
            self.tell_end(self.result[1], None)
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
