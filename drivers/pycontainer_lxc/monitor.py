"""``lxc-start -F``: a container."""

from __future__ import annotations

import _signal as signal
import errno
import os
import stat
from time import monotonic

from pycontainer_lxc.job import LOG, Job
from pycontainer_lxc.log import COUNTER
from pycontainer_lxc.removal import REMOVAL_TIMEOUT, kill_members, remove_cgroups, thaw

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket as socket
    from typing import Any

    from pycontainer_lxc.guard import Guard

#: LXC waits for this hook, of its shell's own commands, before it removes the container's cgroups. It writes "exec"
#: before it, which then only redirects, and arguments behind it, which are for ":".
_STOP = (
    'lxc.hook.stop="</dev/null; while read -r x; do echo {counter}$x; done'
    ' </proc/{pid}/fd/{base}/{payload}/{file} >/proc/{pid}/fd/{log}; :"\n'
)


class Monitor(Job):
    """Started when LXC says so, ended once nothing of it is left."""

    def __init__(self, guard: Guard, status: socket.socket, request: dict[str, Any]) -> None:
        super().__init__(guard, status, request)
        self.before: list[tuple[int, os.stat_result]] = []  # stdio as it was: LXC changes its owner and mode
        directory = f"{request['parent']}{guard.token}/"
        self.payload = request["payload"]
        top = directory + self.payload.removeprefix(directory).partition("/")[0]
        self.tops = top, f"{directory}monitor.{request['id']}"  # what is removed at its end
        self.base = -1  # of the hierarchy that counts memory
        #: None: not looked yet. LXC removes the counter; one of v1 is read before by a hook that LXC waits for, where
        #: there is a limit. That takes two milliseconds. Without one it is only memory of the whole host that can run
        #: out, and then this looks as soon as it has ended.
        self.oom_killed: bool | None = None
        self.deadline = 0.0
        self.runs = False

    def begin(self, fds: list[int]) -> None:
        guard = self.guard
        if self.request["id"] in guard.monitors:
            raise OSError(errno.EEXIST, "name the container")
        guard.parents.add(self.request["parent"])
        controller, file = guard.memory
        if self.request["limited"]:
            self.base = os.open(guard.bases[controller], os.O_PATH | os.O_CLOEXEC)
            self.prepare(LOG + _STOP, counter=COUNTER, base=self.base, payload=self.payload, file=file)
        else:
            self.prepare(LOG)
        argv = [*self.request["argv"], "/proc/self/fd/3", *self.request["rest"]]
        keep = self.prepare_prelude(fds) if self.request["prelude"] else [*fds, self.config]
        for fd in keep[:3]:
            info = os.fstat(fd)
            if info.st_rdev != _NULL:
                self.before.append((os.dup(fd), info))
        self.pid = guard.spawn(argv, keep, new_network=self.request["isolated"])
        guard.monitors[self.request["id"]] = self
        try:
            self.watch()
        except OSError:
            self.removed()
            raise

    def whereabouts(self) -> tuple[int, bool]:
        """The monitor's pid, and whether it is in a network namespace of its own."""
        return self.pid, self.request["isolated"]

    # -- events

    def on_event(self, kind: str, *values: Any) -> None:
        if kind == "started":
            if self.exit is None and self.child < 0:
                self.adopt(values[0], self.pid)
                if self.childfd >= 0:
                    self.guard.watch(self.childfd, self.on_child)
                self.started()
        elif kind == "cgroup":
            self.payload = values[0]
        elif kind == "memory":
            self.oom_killed = values[0] > 0
        elif kind == "ended":
            if self.exit is None:
                self.exit = (values[0], values[1])
                if values[1] == signal.SIGHUP and self.result is None:
                    # So ends a container that called reboot(2), and LXC would start it again.
                    signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        else:
            super().on_event(kind, *values)

    def on_gate(self) -> None:
        self.started()

    def started(self) -> None:
        """Tell it, when LXC has said so and the payload is itself, or waits at its gate."""
        if self.child < 0 or self.has_failed() or self.runs:
            return
        if self.report < 0:
            self.runs = True
            self.give_back_stdio()
            self.tell("started", self.child, fd=-1 if self.told else self.childfd)
            self.told = True
        elif self.is_at_gate() and not self.told:
            self.told = True
            self.tell("created", self.child, fd=self.childfd)

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
        """The container's init ended; LXC has yet to notice, or is about to remove its cgroups."""
        self.guard.forget(self.childfd)
        if self.base < 0:
            self.read_memory()
        if self.request["host_pid"]:
            self.kill_cgroup()

    def read_memory(self) -> None:
        """Look whether the kernel has killed a process of the container, where its counter still is."""
        controller, name = self.guard.memory
        if not name:
            self.oom_killed = False
            return
        directory = self.payload if controller else self.tops[0]
        try:
            with open(f"{self.guard.bases[controller]}/{directory}/{name}") as file:
                self.oom_killed = any(line.startswith("oom_kill ") and line != "oom_kill 0\n" for line in file)
        except OSError:
            pass

    def finish(self) -> None:
        """LXC has ended: remove what it left; then, and only then, say how the container ended."""
        if not self.deadline:
            self.deadline = monotonic() + REMOVAL_TIMEOUT
            self.give_back_stdio()
            created = self.told and not (self.runs or self.opened)  # and so it has not been started
            self.has_reported()
            if not created:
                self.started()
            if self.oom_killed is None:  # LXC was killed before it came to the hook: then the cgroups are all there
                self.read_memory()
            if self.exit is None and self.result != (
                os.CLD_EXITED,
                0,
            ):  # LXC died of something: its PR_SET_PDEATHSIG has killed it
                self.kill()
        if not self.removed() and monotonic() < self.deadline:
            self.guard.impatient.add(self)
            return
        assert self.result is not None
        code, number = self.result
        if not self.told or self.has_failed():
            self.fail()
        elif self.exit is None and (code != os.CLD_EXITED or number):
            how = f"with code {number}" if code == os.CLD_EXITED else f"by signal {number}"
            self.tell("lost", f"lxc-start ended {how}: {self.notes()}")
            self.close()
        else:
            ended = self.exit or (0, None)
            unknown = self.oom_killed is None and self.request["limited"]
            note = "whether it was out of memory is not known: LXC removed its cgroup first"
            self.tell("exited", *ended, bool(self.oom_killed), note * unknown)
            self.close()

    def look_again(self) -> None:
        self.finish()

    def removed(self) -> bool:
        """Remove what can be removed now; whoever is still inside is killed."""
        gone = True
        for base in {*self.guard.bases.values()}:
            for path in self.tops:
                gone = remove_cgroups(f"{base}/{path}") and gone
        if not gone:
            for base in {*self.guard.bases.values()}:
                for path in self.tops:  # in the monitor's own: a hook of one that was killed
                    kill_members(f"{base}/{path}")
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
        for fd in (self.base, *(fd for fd, _ in self.before)):
            if fd >= 0:
                os.close(fd)
        self.base = -1
        self.before.clear()
        super().close()


_NULL = os.stat(os.devnull).st_rdev
