"""A container as the launcher holds it."""

from __future__ import annotations

import _signal as signal
import _socket as socket
import ctypes
import errno
import fcntl
import marshal
import os
import select
import sys
from time import monotonic

from pycontainer_native import abi, child, layout, machine
from pycontainer_native.cgroup_root import CgroupRoot
from pycontainer_native.child import (
    EXEC,
    FAILED,
    FORKED,
    GATE,
    HOOK_FAILED,
    HOOKS,
    LISTENER,
    MEMFD,
    TERMINAL,
    bind,
    descriptors,
    send,
    slots,
    slots_of,
)
from pycontainer_native.hooks import HookError, Running, state_of
from pycontainer_native.libc import syscall
from pycontainer_native.relay import TIMEOUT as RELAY_TIMEOUT
from pycontainer_native.relay import Relay
from pycontainer_native.supervisor import Supervisor, SupervisorError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from pycontainer_native.hooks import Program
    from pycontainer_native.launcher import Launcher
    from pycontainer_native.request import Request

#: How long the messages of the first process are, without their first byte, where that is always the same.
_LENGTHS = {EXEC: 0, GATE: 0, FORKED: 4, TERMINAL: 0, FAILED: 8, HOOKS: 0, LISTENER: 15}

#: A message that cannot be received now stays where it is.
NO_MEMORY = (errno.ENOMEM, errno.ENOBUFS)

#: How often a message to the caller is tried to be sent: without it he would wait for ever.
TRIES = 10

#: How long a container's cgroups may refuse to go away (seconds).
REMOVAL_TIMEOUT = 5.0

#: How long a poststop hook without a timeout of its own may take once the caller has left (seconds).
POSTSTOP_TIMEOUT = 5.0


def new_namespaces(uid_map: bytes, gid_map: bytes, *, network: bool = False) -> list[int]:
    """Descriptors of a new user namespace with these ids and, with *network*, of a network namespace that it owns.

    Raises StepFailed.  They are entered by who is cloned for it and dies at
    once: mapping the ids of a mount takes a namespace that has its maps, and
    rights that are lost inside.
    """
    label = "make a channel"
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        label = "make a user namespace"
        try:
            pidfd = ctypes.c_int(-1)
            flags = abi.CLONE_NEWUSER | abi.CLONE_PIDFD | signal.SIGCHLD
            pid = syscall(abi.NR["clone"], flags, 0, ctypes.byref(pidfd), 0, 0)
            if pid == 0:
                _be_in_new_namespaces(ours, theirs)
            if pid == -1:
                raise OSError(ctypes.get_errno(), "clone")
            theirs.close()  # so that its death is an answer, too
            try:
                for name, text in (("uid_map", uid_map), ("gid_map", gid_map)):
                    label = f"write {name}"
                    _write_map(f"/proc/{pid}/{name}", text)
                if network:
                    label = "make a network namespace"
                    ours.send(b"n", abi.MSG_NOSIGNAL)
                    answer = ours.recv(4)
                    number = int.from_bytes(answer, "little") if answer else errno.EINTR
                    if number:
                        raise OSError(number, "unshare")
                label = "open the namespaces"
                return _open_namespaces(pid, ("user", "net") if network else ("user",))
            finally:
                signal.pidfd_send_signal(pidfd.value, signal.SIGKILL)
                os.waitid(os.P_PIDFD, pidfd.value, os.WEXITED)
                os.close(pidfd.value)
        finally:
            ours.close()
            theirs.close()
    except OSError as error:
        raise StepFailed(label, error.errno or errno.EPROTO) from None


def _write_map(path: str, text: bytes) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.write(fd, text)  # in one write: the second one is refused
        if os.pread(fd, 1 << 16, 0).split() != text.split():
            raise OSError(errno.EINVAL, path)
    finally:
        os.close(fd)


def _open_namespaces(pid: int, names: tuple[str, ...]) -> list[int]:
    opened: list[int] = []
    try:
        for name in names:
            opened.append(os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC))
    except OSError:
        for fd in opened:
            os.close(fd)
        raise
    return opened


def _be_in_new_namespaces(ours: socket.socket, theirs: socket.socket) -> NoReturn:
    """Until the launcher has them, or has died. A network namespace is made when it says so, with one byte.

    That is when the ids are there: what a sysfs shows of a network belongs to
    whoever is its root when an interface comes (net_ns_get_ownership()).
    """
    try:
        ours.close()
        if theirs.recv(1):
            failed = syscall(abi.NR["unshare"], abi.CLONE_NEWNET) == -1
            theirs.send((ctypes.get_errno() if failed else 0).to_bytes(4, "little"))
            theirs.recv(1)
    finally:
        os._exit(0)


class StepFailed(Exception):
    """A step failed: its label (the index of a child's, before the request reached it) and its errno."""

    def __init__(self, label: int | str, error: int) -> None:
        self.label = label
        self.errno = error


class DiedError(StepFailed):
    """The process that the request was for is dead: killed while it waited, or with the container that it joined."""


class Container:
    """One container's life, from the clone of its first process to the last message about it.

    :meth:`prepare` makes its cgroups and :meth:`dispatch` leaves its request in
    the channel, where the process that :meth:`clone` makes finds it.  Little of
    what is prepared depends on the request, so that process can also be cloned
    ahead, and wait for it.
    """

    def __init__(self, launcher: Launcher, name: str) -> None:
        self.launcher = launcher
        self.name = name  # of its directory in each hierarchy
        self.status: socket.socket | None = None
        self.channel: socket.socket | None = None
        self.far_end = -1  # the other end of the channel, until the first process has it
        self.has: layout.Mark | None = None  # of plans, if it makes its steps in machine code
        self.target: Container | None = None  # the container that it is a further process of
        self.pid = -1
        self.pidfd = -1
        self.terminal = -1  # the pseudo-terminal's master, on its way to the caller
        self.report = -1  # where an init writes the payload's wait status
        self.leases: list[int] = []  # the locks on what is its own: its ids, where its changes go
        self.roots: list[CgroupRoot] = []
        self.oom_file: tuple[CgroupRoot, str] | None = None
        self.oom_before = 0  # kills before this process was there: those of a further one's container
        self.oom_kills = 0
        self.failed: tuple[int | str, int] | None = None
        self.state = b""  # what every hook is told
        self.programs: dict[str, list[Program]] = {}  # the hooks, by their point
        self.hook: Running | None = None  # the one that runs now
        self.relay: Relay | None = None
        self.supervisor: Supervisor | None = None  # who is asked by its filter
        self.listener = -1  # the descriptor by which he answers, as the first process says
        self.hooked = False  # it has got as far as its hooks, so those after its end are to come
        self.abandoned = False  # the caller has left
        self.talks = False  # the first process has more to say than that it failed
        self.at_gate = False
        self.hands_over = False  # the first process clones another one, and ends
        self.handed_over = False
        self.at_exec = False
        self.started = False
        self.exit: tuple[int | None, int | None] | None = None  # exit code, signal
        self.deadline = 0.0

    # -- start

    def prepare(self, groups: list[Any]) -> None:
        """Make the cgroups and the channel. Raises StepFailed."""
        label = ""
        try:
            for base, version, enable, seed, _, oom_file, first, program in groups:
                label = f"make cgroup {base}"
                root = self.launcher.cgroup_root(base, version, enable, seed)
                os.mkdir(self.name, 0o755, dir_fd=root.fd)
                self.roots.append(root)
                if oom_file:
                    self.oom_file = (root, f"{self.name}/{oom_file}")
                for name, value in first:
                    label = f"write {value} to {name}"
                    root.write(f"{self.name}/{name}", value)
                if program:
                    label = "set device rules"
                    root.set_device_rules(self.name, program)
            label = "make a channel"
            self.channel, far_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self.far_end = far_end.detach()
        except OSError as error:
            raise StepFailed(label, error.errno or errno.EPROTO) from None

    def clone(self, flags: int, begin: bytes, *, machine_code: bool) -> None:
        """Clone the first process, which makes the steps of *begin* and takes its request. Raises StepFailed.

        The cgroups of its container are at hand.  A v1 hierarchy is joined by
        the process itself, which writes "0" to ``tasks``: a task that moves
        itself needs no lock over every fork and exit of the system, a move by
        ``cgroup.procs`` waits 10 to 20 ms for that.  On cgroup2 it is cloned
        into its cgroup.
        """
        assert self.channel is not None
        owner = self.target or self
        label = "lay the plan"
        doomed: list[int] = []  # descriptors that only the child needs
        try:
            first = layout.table(begin) if machine_code else bind(begin)
            label = "open cgroups"
            into, slot = -1, abi.CGROUP
            for root in owner.roots:
                doomed.append(root.open_to_join(owner.name))
                if root.version == 2:
                    into = doomed[-1]
                else:
                    slots[slot].value = doomed[-1]
                    slot += 1
            slots[abi.CHANNEL].value = self.far_end
            label = "clone3"
            pidfd = ctypes.c_int(-1)
            arguments = (ctypes.c_ulong * (machine.CLONE_ARGS // 8))()
            arguments[0] = flags | abi.CLONE_PIDFD | (abi.CLONE_INTO_CGROUP if into >= 0 else 0)
            arguments[1] = ctypes.addressof(pidfd)
            arguments[4] = signal.SIGCHLD
            arguments[10] = max(into, 0)
            if isinstance(first, int):
                self.pid, self.has = machine.clone(arguments, first), layout.mark()
            else:
                self.pid = child.clone(arguments, first)
            self.pidfd = pidfd.value
        except OSError as error:
            raise StepFailed(label, error.errno or errno.EPROTO) from None
        finally:
            doomed.append(self.far_end)
            self.far_end = -1
            for fd in doomed:
                os.close(fd)
        self.launcher.watch(self.pidfd, self.on_exit)
        self._listen()
        if self.target is not None:
            self.oom_before = self._count_oom_kills()  # now, while the process is busy with its set-up

    def _count_oom_kills(self) -> int:
        """How many processes of the container the kernel has killed for want of memory, as far as that can be read."""
        counter = (self.target or self).oom_file
        if counter is not None:
            root, name = counter
            for line in root.read(name, 4096).splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
        return 0

    def _listen(self) -> None:
        """Hear the first process; one that has nothing to say that cannot wait only when it closes its end."""
        assert self.channel is not None
        self.launcher.forget(self.channel.fileno())
        self.launcher.watch(self.channel.fileno(), self.on_channel, select.EPOLLIN if self.talks else 0)

    def dispatch(
        self, request: Request, message: bytes, frame: layout.Frame | None, fds: list[int], status: socket.socket
    ) -> None:
        """Set the limits, and leave *request* to the first process: as *message*, or as *frame* in machine code.

        Raises StepFailed, DiedError.
        """
        self.hands_over = bool(request.outside)
        self.talks = request.talks
        if request.hooks:
            _, self.state, self.programs = request.hooks
        for base, _, _, _, writes, _, _, _ in request.groups:
            root = self.launcher.cgroups[base]
            for name, value in writes:
                try:
                    root.write(f"{self.name}/{name}", value)
                except OSError as error:
                    raise StepFailed(f"write {value} to {name}", error.errno or errno.EPROTO) from None
        if self.channel is None:  # it has hung up, and its end is the next thing to be heard of
            raise DiedError(*(self.failed or ("send the plan", errno.EPIPE)))
        extra: list[int] = []  # descriptors that are the child's alone
        leases: list[int] = []
        try:
            if request.fork == "init":
                self.report, report = os.pipe()
                extra = [report]
            elif self.target is not None:
                # It is not reaped as long as it is in here, so that its pid is nobody else's.
                place = os.open(f"/proc/{self.target.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                extra = [os.dup(self.target.pidfd), place]
            if request.ids:
                extra += new_namespaces(*request.ids)
            first = 3 + request.leased
            for fd in fds[3:first]:
                leases.append(os.dup(fd))
            if request.supervisor:
                self.supervisor = Supervisor(*request.supervisor, os.dup(fds[first]))
                first += 1
            given = [*fds[:3], *extra, *fds[first:]]
            if frame is not None:
                if message == MEMFD:
                    given.pop()
                message = layout.message(frame, slots_of(request, len(given)))
            rights = b"".join(fd.to_bytes(4, sys.byteorder) for fd in given)
            self.channel.sendmsg([message], [(abi.SOL_SOCKET, abi.SCM_RIGHTS, rights)], abi.MSG_NOSIGNAL)
            # Not before: who is cloned in the place of a spare that has died has the same locks, and is to keep them.
            self.leases, leases = leases, []
        except FileNotFoundError:  # a zombie has no root
            raise StepFailed("find the container", errno.ESRCH) from None
        except BrokenPipeError:
            self.on_channel()  # it may have said why
            raise DiedError(*(self.failed or ("send the plan", errno.EPIPE))) from None
        except OSError as error:
            raise StepFailed("send the plan", error.errno or errno.EPROTO) from None
        finally:
            for fd in (*extra, *leases):
                os.close(fd)
        self.status = status
        self.launcher.starting.add(self)
        self.launcher.watch(status.fileno(), self.on_status)
        if self.talks and self.pid > 0:
            self._listen()

    def reject(self, status: socket.socket, label: int | str, error: int) -> None:
        """The request cannot be carried out: end, and say so when everything is undone."""
        self.status = status
        self.failed = (label, error)
        if self.pid > 0:
            self.kill()
        else:
            self.deadline = monotonic() + REMOVAL_TIMEOUT
            self.finish()

    # -- events

    def on_channel(self) -> None:
        """The child said something before execve, or closed its end.

        Until execve it is a process of this launcher's, so what it says is in
        order.  Should it not be (a payload that may trace it could take its
        end), the container ends, and nobody else.
        """
        while self.channel is not None:
            try:
                message, control, flags, _ = self.channel.recvmsg(2048, 64, abi.MSG_DONTWAIT | abi.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            except ConnectionResetError:
                continue  # it has left its request unread (unix(7)); what it had to say comes after this error
            except OSError as error:
                if error.errno in NO_MEMORY:
                    continue
                message, control, flags = b"", [], 0
            if not message:
                self.launcher.forget(self.channel.fileno())
                self.channel.close()
                self.channel = None
                self.launcher.starting.discard(self)
                self._note_start()
                return
            fds = descriptors(control)
            try:
                if flags & socket.MSG_CTRUNC:  # there is no room for the terminal
                    self.failed = self.failed or ("receive descriptors", errno.EMFILE)
                    self.kill()
                elif not self._hear(message, fds):
                    self.failed = self.failed or ("read what the first process says", errno.EBADMSG)
                    self.kill()
            finally:
                for fd in fds:
                    os.close(fd)

    def _hear(self, message: bytes, fds: list[int]) -> bool:
        """Act upon *message*, and take out of *fds* what is kept; false: it is not what can come now."""
        kind, text = message[:1], message[1:]
        wanted = _LENGTHS.get(kind)
        if len(fds) != (kind == TERMINAL) or (wanted is not None and len(text) != wanted):
            return False
        if kind == FAILED:
            index, number = (int.from_bytes(text[start : start + 4], "little") for start in (0, 4))
            self.failed = self.failed or (index, number)
            if self.listener >= 0:
                self.kill()  # its own exit may be what somebody is asked about
        elif kind == FORKED:  # its clone may have been faster than it
            return self._hand_over(int.from_bytes(text, "little"))
        elif kind == LISTENER and self.supervisor is not None and self.listener < 0:
            self.listener = int.from_bytes(text[7:], "little") & 0x7FFFFFFF
            if not self.is_maker():  # whose clone this is, and may have been faster than it
                self._hand_over_listener(self.supervisor)
        elif self.at_exec:
            return False  # after that it only fails, or executes
        elif kind == EXEC:
            self.at_exec = True
        elif kind == GATE:
            self.at_gate = True
            self.launcher.starting.discard(self)
            self._tell_up("created")
        elif kind == TERMINAL and self.terminal < 0:
            self.terminal = fds.pop()
        elif kind == HOOKS and not self.hooked and self.programs:
            self.hooked = True
            if "relay" in self.programs:
                self._start_relay(self.programs["relay"][0])
            else:
                self._run_hooks("createRuntime", "creating", self._go_on)
        elif kind == HOOK_FAILED and len(text) > 4:
            self.failed = self.failed or (text[4:].decode("utf-8", "replace"), int.from_bytes(text[:4], "little"))
        else:
            return False
        return True

    def _note_start(self) -> None:
        """It executes its program, unless it has said that something failed after all."""
        if self.at_exec and self.failed is None and not self.started:
            if self.supervisor is not None and self.listener < 0:  # the filter has kept it from saying so
                self.failed = ("hand over the seccomp listener", errno.EPROTO)
                self.kill()
                return
            self.started = True
            self._run_hooks("poststart", "running", lambda: self._tell_up("started"))

    # -- the tool that passes its packets on

    def _start_relay(self, program: Program) -> None:
        """Start it for the first process's network; on_relay goes on."""
        try:
            self.relay = relay = Relay(program, self.pid)
            self.launcher.watch(relay.ready, self.on_relay)
            self.launcher.deadlines[relay.expire] = monotonic() + RELAY_TIMEOUT
            self.launcher.reap_later(relay.pid, os.dup(relay.pidfd))
        except OSError as error:
            self.failed = self.failed or (f"start {os.fsdecode(program[0])}", error.errno or errno.EPROTO)
            if self.relay is not None:
                self.launcher.end_child(self.relay.pid)
            self.kill()

    def on_relay(self) -> None:
        """It is ready, or never will be."""
        assert self.relay is not None
        try:
            problem = self.relay.problem()
        except BlockingIOError:
            return  # an event of the descriptor that had this number before, in the same round
        self._forget_relay()
        if problem:
            self.failed = self.failed or (problem, errno.ECANCELED)
            self.kill()
        else:
            self._run_hooks("createRuntime", "creating", self._go_on)

    def _forget_relay(self) -> None:
        if self.relay is not None:
            self.launcher.forget(self.relay.ready)
            self.launcher.deadlines.pop(self.relay.expire, None)

    # -- hooks

    def _go_on(self) -> None:
        """Open the gate at which the first process waits for the hooks on the host, or for its listener's way."""
        if self.channel is not None:
            send(self.channel.fileno(), b"s")

    def _run_hooks(self, point: str, status: str, then: Callable[[], None]) -> None:
        """Run the hooks of *point* on the host, one after the other, and *then* go on."""
        self._next_hook(point, self.programs.get(point, [])[:], status, then)

    def _next_hook(self, point: str, programs: list[Program], status: str, then: Callable[[], None]) -> None:
        if self.abandoned and point == "poststart":
            programs = []  # it runs no more, or not for long
        while programs:
            try:
                self.hook = hook = Running(point, programs.pop(0), state_of(self.state, status, self.pid), [])
            except HookError as error:
                if self._hook_failed(point, error):
                    return
                continue
            self.launcher.watch(hook.pidfd, lambda hook=hook: self._hook_ended(hook, point, programs, status, then))  # type: ignore[misc]
            if hook.deadline is not None:
                self.launcher.deadlines[hook.expire] = hook.deadline
            if self.abandoned:
                self._limit_poststop()
            return
        then()

    def _hook_ended(
        self, hook: Running, point: str, programs: list[Program], status: str, then: Callable[[], None]
    ) -> None:
        self.hook = None
        self.launcher.forget(hook.pidfd)
        self.launcher.deadlines.pop(hook.expire, None)
        failed = False
        try:
            hook.result()
        except HookError as error:
            failed = self._hook_failed(point, error)
        if not failed and not (point == "createRuntime" and self.exit is not None):
            self._next_hook(point, programs, status, then)
        if self.exit is not None and self.hook is None and point != "poststop":
            self.finish()  # it has ended meanwhile

    def _limit_poststop(self) -> None:
        """Nobody is left who could end a poststop hook: one that has no timeout gets one now."""
        if self.hook is not None and self.hook.point == "poststop" and self.hook.deadline is None:
            self.hook.deadline = self.launcher.deadlines[self.hook.expire] = monotonic() + POSTSTOP_TIMEOUT

    def _hook_failed(self, point: str, error: HookError) -> bool:
        """Whether that is the container's end; else it is a warning."""
        if point != "createRuntime":
            self.tell("warning", error.text, error.errno)
            return False
        if self.failed is None:
            self.failed = (error.text, error.errno)
        self.kill()
        return True

    def _tell_up(self, kind: str) -> None:
        """Say that it is there, and hand over its pidfd and, the first time, its terminal."""
        terminal, self.terminal = self.terminal, -1
        number = self.tell(kind, fds=[self.pidfd] if terminal < 0 else [self.pidfd, terminal])
        if number:  # ETOOMANYREFS, where the user has more descriptors on their way than he may have open
            self.failed = ("hand over its pidfd", number)
            self.kill()
        if terminal >= 0:
            os.close(terminal)  # the caller's alone: when that is closed the container hears SIGHUP

    def on_status(self) -> None:
        """The caller opens the last gate, or has closed the container."""
        assert self.status is not None
        try:
            message = self.status.recv(16, abi.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno in NO_MEMORY:
                return  # the event is still there
            message = b""
        if message and self.channel is not None:
            self.at_gate = False
            send(self.channel.fileno(), message[:1])
        elif not message:
            self.launcher.forget(self.status.fileno())
            self.abandon()

    def _hand_over(self, pid: int) -> bool:
        """Another process goes on, and the one until now ends by itself; false: it is no child that this one made."""
        if not self.is_maker() or pid in self.launcher.known():
            return False
        try:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # ECHILD: it is no child of the launcher
        except (OSError, OverflowError):
            return False
        # So its pid is nobody else's until it is reaped.
        self.handed_over = True
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            self.failed = self.failed or ("open a pidfd", error.errno or errno.EPROTO)
            self.launcher.end_child(pid)
            self.kill()
            return True
        self.launcher.forget(self.pidfd)
        self.launcher.reap_later(self.pid, self.pidfd)
        self.pid, self.pidfd = pid, pidfd
        self.launcher.watch(self.pidfd, self.on_exit)
        if self.abandoned or self.failed is not None:
            self.kill()  # what was killed for that is the other one
        elif self.supervisor is not None and self.listener >= 0:
            self._hand_over_listener(self.supervisor)
        return True

    def _hand_over_listener(self, supervisor: Supervisor) -> None:
        """Send it to who is asked, and let the first process, which waits for that, go on."""
        first = self if self.target is None else self.target
        try:
            supervisor.hand_over(self.pid, self.pidfd, self.listener, first.pid)
            self._go_on()
        except SupervisorError as error:
            self.failed = self.failed or (error.label, error.errno)
            self.kill()

    def is_maker(self) -> bool:
        """Whether its first process may clone, or have cloned, another one that is not known yet."""
        may_clone = self.hands_over and self.pid > 0 and not self.handed_over
        return may_clone and self.exit is None and self in self.launcher.containers

    def on_exit(self) -> None:
        """The first process ended: with a pid namespace of its own, so did all others."""
        pidfd = self.pidfd
        self.on_channel()  # where it may have handed over to another one
        try:
            result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG) if pidfd == self.pidfd else None
        except ChildProcessError:  # taken for a stray, and killed and reaped, before it was made known
            self.launcher.forget(pidfd)
            self.exit = (None, signal.SIGKILL)
            self.failed = self.failed or ("killed during set-up", errno.EINTR)
            self.deadline = monotonic() + REMOVAL_TIMEOUT
            self.finish()
            return
        if result is None:
            return  # or it was an event of the descriptor that had this number before, in the same round
        self.launcher.forget(self.pidfd)
        if self.is_maker():
            self.launcher.end_strays(self)  # who has died, too, may have said why
        self._note_start()  # whoever it was forked from may still be about to close the channel
        if self.report >= 0:
            # Empty when the init itself was killed: then its own end is the container's.
            os.set_blocking(self.report, False)
            try:
                data = os.read(self.report, 4) if result.si_code == os.CLD_EXITED else b""
            except BlockingIOError:
                data = b""
            except OSError as error:  # its init's own status would be a wrong one
                data, self.failed = b"", ("read the payload's status", error.errno or errno.EPROTO)
            # A payload that may trace its init could have written anything.
            status = int.from_bytes(data, "little", signed=True) if len(data) == 4 else 0x7F
            if os.WIFEXITED(status):
                self.exit = (os.WEXITSTATUS(status), None)
            elif os.WIFSIGNALED(status):
                self.exit = (None, os.WTERMSIG(status))
        if self.exit is None:
            exited = result.si_code == os.CLD_EXITED
            self.exit = (result.si_status, None) if exited else (None, result.si_status)
        if self is self.launcher.spare:
            self.launcher.spare = None
            self.launcher.wanted = ()  # the next would fail alike; the next start says why
        if not (self.started or self.at_gate) and self.failed is None:
            self.failed = ("killed during set-up", errno.EINTR)
        # What ended well has not lacked it, whoever else was killed meanwhile.
        if self.target is None or self.exit != (0, None):
            self.oom_kills = max(0, self._count_oom_kills() - self.oom_before)
        self.deadline = monotonic() + REMOVAL_TIMEOUT
        if self.hook is not None and not self.started:
            self.hook.kill()
        self.finish()

    def finish(self) -> None:
        """Remove the cgroups and run the hooks after that; then, and only then, say how it ended."""
        if self.hook is not None:
            return  # its end comes here again
        if self.relay is not None:
            self._forget_relay()
            self.relay.close()
            self.relay = None
        note = ""
        if not self.remove_cgroups():
            if monotonic() < self.deadline:
                self.launcher.unfinished.add(self)
                return
            note = "its cgroups could not be removed: " + ", ".join(root.path for root in self.roots)
        self.launcher.unfinished.discard(self)
        if self.hooked:
            self.hooked = False
            self._run_hooks("poststop", "stopped", self.finish)
            return
        self.end_leases()  # first: whoever hears of its end may start the next one
        if self.failed is not None:
            self.tell("failed", *self.failed, note)
        else:
            assert self.exit is not None
            self.tell("exited", *self.exit, self.oom_kills, note)
        self.close()

    def remove_cgroups(self) -> bool:
        """Remove what can be removed now; whoever is still inside (no pid namespace) is killed."""
        for root in self.roots[:]:
            try:
                os.rmdir(self.name, dir_fd=root.fd)
            except FileNotFoundError:
                pass
            except OSError:
                root.kill(self.name)
                continue
            self.roots.remove(root)
        return not self.roots

    def end_leases(self) -> None:
        """Give its locks back; as such, for whoever was cloned a moment ago still has the descriptors."""
        while self.leases:
            fd = self.leases.pop()
            fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)

    # -- ends

    def abandon(self) -> None:
        """The caller has left: end it, and let no hook keep it from ending."""
        self.abandoned = True
        self.kill()
        self._limit_poststop()

    def kill(self) -> None:
        """SIGKILL to the first process, and so to its pid namespace; finish() ends the others.

        And to its hook, which may run on when it has ended; but poststop, which cleans up after it, is to go on.
        """
        if self.hook is not None and self.hook.point != "poststop":
            self.hook.kill()
        if self.pidfd >= 0 and self.exit is None:
            try:
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass
            for root in self.roots:
                if root.version == 1:
                    try:
                        root.write(f"{self.name}/freezer.state", "THAWED")  # v1's frozen processes do not take it
                    except OSError:
                        pass  # it is not the freezer's hierarchy

    def tell(self, *message: str | int | None, fds: list[int] | None = None) -> int:
        """Send to whoever holds the other end of the status socket, if anybody does; what kept it from being sent."""
        return self.send_to([] if self.status is None else [self.status], *message, fds=fds)

    def send_to(self, ends: list[socket.socket], *message: str | int | None, fds: list[int] | None = None) -> int:
        """Send to each of *ends* that somebody still holds the other end of; what kept it from being sent to one."""
        rights = b"".join(fd.to_bytes(4, sys.byteorder) for fd in fds or ())
        control = [(abi.SOL_SOCKET, abi.SCM_RIGHTS, rights)] if rights else []
        data = marshal.dumps((*message, f"{self.launcher.directory}/{self.name}", self.pid))
        failed = 0
        for end in ends:
            for number in range(TRIES):
                try:
                    end.sendmsg([data], control, abi.MSG_DONTWAIT | abi.MSG_NOSIGNAL)
                    break
                except (BrokenPipeError, ConnectionResetError):
                    break
                except OSError as error:
                    if number == TRIES - 1:
                        failed = error.errno or errno.EPROTO
        return failed

    def close(self) -> None:
        """Forget it."""
        if self.supervisor is not None:
            self.supervisor.close()
        self.launcher.containers.discard(self)
        self.launcher.starting.discard(self)
        self.end_leases()
        for end in (self.status, self.channel):
            if end is not None:
                self.launcher.forget(end.fileno())
                end.close()
        for fd in (self.pidfd, self.terminal, self.report, self.far_end):
            if fd >= 0:
                self.launcher.forget(fd)
                os.close(fd)
