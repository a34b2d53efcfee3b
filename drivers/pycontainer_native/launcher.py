"""The launcher: the small single-threaded process that is the parent of every container.

It clones a container's first process, which runs the plan's steps and becomes
the payload; it reaps it, removes its cgroups and reports.  The process that
imported pycontainer may be large and have threads: forking *it* would be slow
and unsafe.  This one imports only what is compiled into the interpreter or
nearly so: it starts fast, and some containers copy its page tables.

It is driven by one epoll loop, and never blocks on a container:

=================  =============================================================
readable           meaning
=================  =============================================================
control socket     a request to start a container; end-of-file: the caller left
caller's pidfd     the caller died (a forked child of it may hold the socket)
status socket      one container's caller: ``start`` opens its last gate,
                   end-of-file asks for its death
channel            one container's child, before execve: gates, the terminal, its
                   filter's listener, a failed step; end-of-file after ``EXEC``:
                   the payload runs
pidfd              one container's first process ended
mountinfo          the mounts have changed, and the spare has the old ones
=================  =============================================================

Invariants that the plan relies on: every signal has its default action and
none is blocked; descriptors 0, 1 and 2 are /dev/null, 3 is the control socket;
the environment is empty; the process is not dumpable.
"""

from __future__ import annotations

import _signal as signal
import _socket as socket
import ctypes
import errno
import gc
import marshal
import os
import resource
import select
import sys
from time import monotonic

from pycontainer_native import abi, layout, machine
from pycontainer_native.cgroup_root import CgroupRoot
from pycontainer_native.child import bind, descriptors, send, unpack
from pycontainer_native.container import NO_MEMORY, Container, DiedError, StepFailed, new_namespaces
from pycontainer_native.libc import libc, syscall
from pycontainer_native.request import Request

TYPE_CHECKING = False  # typing would double the time that the import of this module takes
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

CONTROL_FD, CALLER_FD, IMAGE_FD = 3, 4, 5

#: Seconds between two looks at what has no event, such as a cgroup that is still busy; and how long the launcher has to
#: have been idle before it clones a spare.
INTERVAL = 0.002


class Launcher:
    """The event loop and what it watches."""

    container_type: type[Container] = Container
    clones_ahead = True  # the first process of the next container, while nothing happens

    def __init__(self, token: str) -> None:
        self.directory = f"pycontainer-{token}"  # the name of its directories in the cgroup hierarchies
        self.epoll = select.epoll()
        self.handlers: dict[int, Callable[[], None]] = {}
        self.containers: set[Container] = set()
        self.starting: set[Container] = set()
        self.spare: Container | None = None
        self.wanted: tuple[Any, ...] = ()  # what the last request had prepared, and so the next spare will be
        self.machine_code = False  # whether the last start could be made in it, and so the spare is
        self.prepared: tuple[Any, ...] = ()  # what the spare is
        self.sections: list[bytes] = []  # of the last request, and most of them of the next one
        self.count = 0
        self.unfinished: set[Container] = set()
        self.others: set[int] = set()  # the pids of children that are no container's
        #: the pids of children that nobody knew, with the containers that may still say they have cloned one of them
        self.suspects: list[tuple[set[int], set[Container]]] = []
        self.deadlines: dict[Callable[[], None], float] = {}  # what is to be called then, by time.monotonic()
        self.cgroups: dict[str, CgroupRoot] = {}
        self.running = True

    def serve_caller(self, control: socket.socket) -> None:
        """Take requests from *control*, until its other end closes or the caller dies."""

        def on_request() -> None:
            if not self.on_request(control):
                self.stop()

        self.watch(control.fileno(), on_request)
        self.watch(CALLER_FD, self.stop)
        # proc(5): "a change in this file ... will mark the file descriptor as having an exceptional condition".
        self.watch(os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC), self.on_mounts, select.EPOLLPRI)

    def watch(self, fd: int, handler: Callable[[], None], events: int = select.EPOLLIN) -> None:
        """Call *handler* when *fd* is readable or hung up."""
        self.handlers[fd] = handler
        self.epoll.register(fd, events)

    def forget(self, fd: int) -> None:
        """No longer watch *fd*; it is no error if nobody did."""
        if self.handlers.pop(fd, None) is not None:
            self.epoll.unregister(fd)

    def cgroup_root(self, base: str, version: int, enable: list[str], seed: list[tuple[str, str]]) -> CgroupRoot:
        """The launcher's directory below *base*, made on first use, with *enable* handed down."""
        root = self.cgroups.get(base)
        if root is None:
            root = self.cgroups[base] = CgroupRoot(base, self.directory, version)
        control = "cgroup.subtree_control"
        handed_down = [(name, f"+{controller}") for controller in enable for name in (f"../{control}", control)]
        for write in (*handed_down, *seed):
            if write not in root.done:
                root.write(*write)
                root.done.add(write)
        return root

    def on_request(self, connection: socket.socket) -> bool:
        """Carry out one request; false when the other end is closed."""
        try:
            message, control, flags, _ = connection.recvmsg(1 << 16, abi.RIGHTS_SPACE, abi.MSG_CMSG_CLOEXEC)
        except OSError as error:
            return error.errno in NO_MEMORY  # then it is still there, and so is the event
        fds = descriptors(control)
        try:
            # Without a status socket there is nobody to answer; its other end is closed, which says enough.
            if message and fds:
                self.serve(message, fds[1:], socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fds[0]), flags)
        finally:
            for fd in fds[1:]:
                os.close(fd)
        return bool(message)

    def serve(self, message: bytes, fds: list[int], status: socket.socket, flags: int) -> None:
        """Carry out the request *message*; whatever is wrong with it is answered on *status*, and harms nobody else."""
        container: Container | None = None
        try:
            if flags & socket.MSG_CTRUNC:
                raise StepFailed("receive descriptors", errno.EMFILE)
            fields = unpack(message, fds[-1] if fds else -1)
            if fields[0] is None:
                self.serve_other(fields[1], fields[2:], fds, status)
                return
            request = Request(*fields)
            begin, *self.sections = request.sections
            if machine.present():
                layout.make_room()
                layout.expect(self.sections)
            if not request.target:
                groups = [(*group[:4], [], *group[5:]) for group in request.groups]
                self.wanted = (request.flags, groups, begin)
                self.machine_code = layout.takes(request)
                container, frame = self.take_spare(request)
                if container is not None:
                    try:
                        container.dispatch(request, message, frame, fds, status)
                        return
                    except DiedError:
                        container = None  # somebody killed the spare
            container = self.new_container(self.find(request.target) if request.target else None)
            frame = layout.lay(request, None)
            if frame is None:
                self.bind_sections()
            container.prepare(request.groups)
            container.dispatch(request, message, frame, fds, status)
            container.clone(request.flags, begin, machine_code=frame is not None)
        except Exception as error:  # whatever a plan that is none makes of itself here
            label = error.label if isinstance(error, StepFailed) else "read the request"
            number = getattr(error, "errno", None) or errno.EPROTO
            if container is not None:
                container.reject(status, label, number)
            else:
                send(status.fileno(), marshal.dumps(("failed", label, number, "", "", -1)))
                status.close()

    def serve_other(self, verb: str, arguments: tuple[Any, ...], fds: list[int], status: socket.socket) -> None:
        """What is no container yet: a monitor, which is asked for it afterwards, or namespaces. Raises StepFailed."""
        if verb == "namespaces":
            self.give_namespaces(status, *arguments)
            return
        from pycontainer_native.monitor import become_monitor  # main() has imported it

        try:
            pid = os.fork()
        except OSError as error:
            raise StepFailed("fork a monitor", error.errno or errno.EPROTO) from None
        if pid == 0:
            become_monitor(self, arguments, fds)
        try:
            self.reap_later(pid, os.pidfd_open(pid))
        except OSError as error:
            self.end_child(pid)
            raise StepFailed("fork a monitor", error.errno or errno.EPROTO) from None
        send(status.fileno(), marshal.dumps(("monitor", pid)))
        status.close()

    def give_namespaces(self, status: socket.socket, uid_map: bytes, gid_map: bytes) -> None:
        """Make a user namespace and a network of its own, for what the caller puts into that before the start.

        Nothing of them is kept here: they end with the caller, or with the
        container that he gives them to.  Raises StepFailed.
        """
        fds = new_namespaces(uid_map, gid_map, network=True)
        try:
            rights = b"".join(fd.to_bytes(4, sys.byteorder) for fd in fds)
            message = [marshal.dumps(("namespaces",))], [(abi.SOL_SOCKET, abi.SCM_RIGHTS, rights)]
            status.sendmsg(*message, abi.MSG_DONTWAIT | abi.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError):
            pass  # he has left
        except OSError as error:
            raise StepFailed("hand over namespaces", error.errno or errno.EPROTO) from None
        finally:
            for fd in fds:
                os.close(fd)
        status.close()

    def reap_later(self, pid: int, pidfd: int) -> None:
        """A child of this process that is no container's any more, or never was: take note of its end."""
        self.others.add(pid)

        def reap() -> None:
            try:
                ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG) is not None
            except ChildProcessError:
                ended = True  # reaped by whoever has made it known after all
            if ended:
                self.others.discard(pid)
                self.forget(pidfd)
                os.close(pidfd)

        self.watch(pidfd, reap)

    def end_child(self, pid: int) -> None:
        """Kill and reap a child that no container has, and which may be too many descriptors away from a pidfd.

        Until it is reaped here its pid is nobody else's.
        """
        self.others.add(pid)
        try:
            os.kill(pid, signal.SIGKILL)
            ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG) is not None
        except (ProcessLookupError, ChildProcessError):
            ended = True
        if ended:
            self.others.discard(pid)
        else:
            self.deadlines[lambda: self.end_child(pid)] = monotonic() + INTERVAL

    def end_strays(self, dead: Container) -> None:
        """Kill children that nobody knows: *dead* may have cloned one, and been killed before it could say so.

        As a zombie it would keep its pid namespace's first process from ending
        (pid_namespaces(7)), and with it the container for ever.
        """
        for container in list(self.containers):
            container.on_channel()  # what another one has said already makes its process known
        try:
            with open(f"/proc/self/task/{os.getpid()}/children", "rb") as children:
                unknown = {*map(int, children.read().split())} - self.known()
        except OSError:  # no descriptor is free
            self.deadlines[lambda: self.end_strays(dead)] = monotonic() + INTERVAL
            return
        makers = {container for container in self.containers if container.is_maker()} - {dead}
        self.suspects.append((unknown, makers))
        self.end_suspects()

    def end_suspects(self) -> None:
        """Kill those whose maker can be none of those any more who are about to clone one."""
        for suspects in self.suspects[:]:
            pids, makers = suspects
            pids -= self.known()
            makers -= {maker for maker in makers if not maker.is_maker()}
            if not makers:
                self.suspects.remove(suspects)
                for pid in pids:
                    self.end_child(pid)

    def known(self) -> set[int]:
        """The pids of all children that somebody will reap."""
        hooks = {container.hook.pid for container in self.containers if container.hook is not None}
        return {container.pid for container in self.containers} | self.others | hooks

    def bind_sections(self) -> None:
        """Here, rather than in each child anew; but not while one that was cloned before that is waited for."""
        for section in self.sections:
            bind(section)

    def new_container(self, target: Container | None = None) -> Container:
        """One of which there is nothing yet: with a number of its own, or a further process of *target*."""
        if target is None:
            self.count += 1
            container = self.container_type(self, str(self.count))
        else:
            container = Container(self, f"{target.name}-exec")
            container.target = target
        self.containers.add(container)
        return container

    def find(self, directory: str) -> Container:
        """The running container that has that cgroup directory. Raises StepFailed."""
        name = directory.rpartition("/")[2]
        found = next((c for c in self.containers if c.name == name and c.started and c.exit is None), None)
        if found is None:
            raise StepFailed("find the container", errno.ESRCH)
        return found

    def take_spare(self, request: Request) -> tuple[Container | None, layout.Frame | None]:
        """The process that was cloned ahead, if it is what is wanted, and what it takes in the place of *request*."""
        spare, self.spare = self.spare, None
        if spare is None:
            return None, None
        frame = None if spare.has is None else layout.lay(request, spare.has)
        if self.prepared != self.wanted or (spare.has is not None and frame is None):
            spare.kill()
            return None, None
        return spare, frame

    def on_mounts(self) -> None:
        """Something was mounted or unmounted here: the spare has a copy of what was there before, and would keep it."""
        spare, self.spare = self.spare, None
        if spare is not None:
            spare.kill()

    def make_spare(self) -> None:
        """Clone ahead: what the next start then saves is about a third of its time."""
        flags, groups, begin = self.wanted
        spare = self.new_container()
        try:
            if not self.machine_code:
                self.bind_sections()
            spare.prepare(groups)
            spare.clone(flags, begin, machine_code=self.machine_code)
            self.spare, self.prepared = spare, self.wanted
        except Exception:  # a plan that is none, too
            self.wanted = ()  # the next start will say why
            spare.remove_cgroups()
            spare.close()

    def stop(self) -> None:
        """Kill every container; the loop ends when the last is gone."""
        self.running = False
        for fd in (CONTROL_FD, CALLER_FD):
            self.forget(fd)
        for container in self.containers:
            container.abandon()

    def run(self) -> None:
        """Until the caller has left and no container is left."""
        rounds = 0
        while self.running or self.containers:
            # Not while a container is starting: it would have to wait for its turn.
            wants_spare = self.clones_ahead and self.spare is None and bool(self.wanted)
            makes_spare = self.running and wants_spare and not self.starting
            patience = INTERVAL if self.unfinished or makes_spare else None
            if self.deadlines:
                left = max(0.0, min(self.deadlines.values()) - monotonic())
                patience = left if patience is None else min(left, patience)
            events = self.epoll.poll(patience)
            if makes_spare and not events:
                self.make_spare()
            for fd, _ in events:
                handler = self.handlers.get(fd)  # an earlier event of this round may have ended it
                if handler is not None:
                    handler()
            for container in list(self.unfinished):
                container.finish()
            if self.suspects:
                self.end_suspects()
            for late in [late for late, deadline in self.deadlines.items() if deadline <= monotonic()]:
                del self.deadlines[late]
                late()
            rounds += 1
            if rounds % 4096 == 0:
                gc.collect()  # an exception's traceback may be a cycle, and nobody else collects here

    def close(self) -> None:
        """Remove the launcher's own cgroups."""
        for root in self.cgroups.values():
            try:
                os.rmdir(root.path)
            except OSError:
                pass  # it stays for the sweep of the next start: somebody made cgroups of his own below


def protect_image() -> None:
    """Make the mount that holds nothing but this process's image noexec: no payload will execute it again.

    With ``#!/proc/self/exe`` a container's first process, which still has the
    image of this one, would start the host's interpreter (CVE-2019-5736).
    """
    attributes = abi.MOUNT_ATTR_NOEXEC.to_bytes(8, sys.byteorder) + bytes(24)  # struct mount_attr
    if (
        syscall(
            abi.NR["mount_setattr"], IMAGE_FD, b"", abi.AT_EMPTY_PATH | abi.AT_RECURSIVE, attributes, len(attributes)
        )
        == -1
    ):
        raise OSError(ctypes.get_errno(), "mount_setattr")


def hide_arguments(title: bytes) -> None:
    """Put *title* in the place of this process's arguments: /proc/1/cmdline of an init shows them to the payload."""
    with open("/proc/self/stat", "rb") as stat:
        fields = stat.read().rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end, the 48th and 49th (proc_pid_stat(5))
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, title, min(len(title), end - start - 1))


def take_defaults() -> None:
    """How the kernel treats a new process, instead of how it treats the one that happened to start this launcher.

    Containers inherit it, and those that come later have other callers.  What
    this process may not undo, such as a niceness without CAP_SYS_NICE, stays.
    """
    libc.prctl(abi.PR_SET_TIMERSLACK, ctypes.c_ulong(50000), 0, 0, 0)  # ns: that of init
    libc.personality(0)
    every = b"\xff" * 1024  # processors: the kernel takes those of the cpuset
    syscall(abi.NR["sched_setaffinity"], 0, ctypes.c_long(len(every)), every)
    syscall(abi.NR["ioprio_set"], abi.IOPRIO_WHO_PROCESS, 0, 0)
    calls: tuple[tuple[Callable[..., Any], Any], ...] = (
        (os.sched_setscheduler, (0, os.SCHED_OTHER, os.sched_param(0))),
        (os.setpriority, (os.PRIO_PROCESS, 0, 0)),
        (_write, ("/proc/self/oom_score_adj", b"0")),
    )
    for call, arguments in calls:
        try:
            call(*arguments)
        except OSError:
            pass


def _write(path: str, value: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value)
    finally:
        os.close(fd)


def last_words(error: BaseException) -> str:
    """What to say when *error* is the end."""
    where = error.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    place = f"{os.path.basename(where.tb_frame.f_code.co_filename)}:{where.tb_lineno}" if where is not None else "?"
    return f"{type(error).__name__}: {error} ({place})"


def main() -> None:
    """Serve the socket that is descriptor 3 for the caller whose pidfd is descriptor 4; 5 is the image's mount."""
    protect_image()
    os.closerange(CALLER_FD + 1, os.sysconf("SC_OPEN_MAX"))
    for fd in (CONTROL_FD, CALLER_FD):
        os.set_inheritable(fd, False)
    hide_arguments(b"pycontainer_native")
    take_defaults()
    os.chdir("/")
    os.umask(0o077)
    libc.prctl(abi.PR_SET_DUMPABLE, 0, 0, 0, 0)
    default = bytes(32)  # struct sigaction: SIG_DFL, no flags
    for number in range(1, 65):  # by the kernel's own call: libc's keeps its hands on 32 and 33
        syscall(abi.NR["rt_sigaction"], number, default, 0, 8)
    import pycontainer_native.monitor  # noqa: F401 - it imports this module, and soon nothing can be imported any more

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    sys.path.clear()
    sys.meta_path.clear()
    sys.path_hooks.clear()
    gc.collect()
    gc.disable()
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, CONTROL_FD)
    launcher = Launcher(control.recv(64).decode())
    launcher.serve_caller(control)
    try:
        launcher.run()
    except BaseException as error:
        send(CONTROL_FD, last_words(error).encode())
        launcher.stop()
        for container in launcher.containers:
            container.kill()
        raise
    finally:
        launcher.close()
