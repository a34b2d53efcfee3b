"""The guard: the small single-threaded process that is the parent of every LXC tool this driver runs.

LXC has no daemon: ``lxc-start -F`` is the container's monitor, and somebody has
to be its parent who outlives the caller long enough to clean up.  The guard
starts the tools, reads their logs (see :mod:`pycontainer_lxc.log`), reports on
each container's own status socket, and when the caller is gone kills every
container and removes what is left.  When the guard itself is killed, the kernel
kills each monitor (PR_SET_PDEATHSIG) and by it each container; their cgroups
are then removed by whoever gets the lock on the guard's directory (``sweep``).

A request is one message on the control socket with these descriptors: one end
of a status socket, stdin, stdout, stderr.  A long one is in a memfd, the last
of them (pycontainer.service, send_request).
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

from pycontainer_lxc import elf, leash, prelude
from pycontainer_lxc.attached import Attached
from pycontainer_lxc.detached import Detached, write_whole
from pycontainer_lxc.job import Job, Tool, descriptors
from pycontainer_lxc.monitor import Monitor
from pycontainer_lxc.removal import remove_cgroups

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

CONTROL_FD, CALLER_FD, LOCK_FD = 3, 4, 5

#: How often to look again at what does not tell (execve of another's child, busy cgroups), in seconds.
INTERVAL = 0.001

#: How many programs for different filters are kept.
MAX_PRELUDES = 64

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36

#: In the place of a request that has not come as a whole.
UNREAD = {"argv": ["request"], "program": ""}

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


class Guard:
    """The event loop and what it watches. *bases* are the directories that containers' cgroups are made below."""

    def __init__(
        self, control: socket.socket, token: str, lxcpath: str, bases: dict[str, str], detached: bool = False
    ) -> None:
        self.control = control
        self.token = token
        self.lxcpath = lxcpath
        self.bases = bases  # by controller; "" is cgroup2
        self.parents: set[str] = {""}  # cgroup_parents that were used, each with a "/" at its end
        self.pid = os.getpid()
        self.epoll = select.epoll()
        self.handlers: dict[int, Callable[[], None]] = {}
        self.monitors: dict[str, Monitor] = {}
        self.jobs: set[Job] = set()
        self.impatient: set[Job] = set()  # those that are to be asked again after INTERVAL
        self.running = True
        self.null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self.leash = leash.make() if elf.is_known() else -1
        self.preludes: dict[tuple[bool, int, bytes, bool], int] = {}  # their descriptors: see pycontainer_lxc.prelude
        self.memory = memory_file(bases)
        self.adopting = 0  # how many processes are about to be this one's children
        self.errnos = {os.strerror(number): number for number in errno.errorcode}
        self.watch(control.fileno(), self.on_request)
        self.last: object = None  # how a detached container ended, and when
        if not detached:
            self.watch(CALLER_FD, self.stop)

    def watch(self, fd: int, handler: Callable[[], None], events: int = select.EPOLLIN) -> None:
        """Call *handler* when *fd* is readable or hung up."""
        self.handlers[fd] = handler
        self.epoll.register(fd, events)

    def forget(self, fd: int) -> None:
        """No longer watch *fd*; it is no error if nobody did."""
        if self.handlers.pop(fd, None) is not None:
            self.epoll.unregister(fd)

    def on_request(self) -> None:
        """Run a tool, or stop when the caller has closed its end."""
        message, control, flags, _ = self.control.recvmsg(1 << 16, 256, socket.MSG_CMSG_CLOEXEC)
        fds = descriptors(control)
        if not message:
            self.stop()
            return
        if not fds:  # no room for any: the kernel has closed the other end of the status socket, which tells enough
            return
        status = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fds[0])
        try:
            if flags & socket.MSG_CTRUNC:
                Job(self, status, UNREAD).fail("receive descriptors", errno.EMFILE)
                return
            if message == b"memfd":
                memfd = fds.pop()  # none of the tool's: by its place it would be LXC's configuration
                try:
                    message = os.pread(memfd, os.fstat(memfd).st_size, 0)
                finally:
                    os.close(memfd)
            kind, request = marshal.loads(message)
            job: Job = KINDS[kind](self, status, request)
            try:
                if kind in ("attach", "tool") and request["monitor"] is None and request["id"] not in self.monitors:
                    job.fail("find the container", errno.ESRCH)
                    return
                job.begin(fds[1:])
            except OSError as error:
                job.fail(str(error.strerror), error.errno or errno.EPROTO)
        finally:
            for fd in fds[1:]:
                os.close(fd)

    def prelude(self, kind: tuple[bool, int, bytes, bool]) -> int:
        """The descriptor of the program that precedes a payload of this *kind*."""
        if kind not in self.preludes:
            if len(self.preludes) >= MAX_PRELUDES:
                os.close(self.preludes.pop(next(iter(self.preludes))))
            self.preludes[kind] = prelude.make(*kind)
        return self.preludes[kind]

    def spawn(
        self,
        argv: list[str],
        keep: list[int],
        network: int = -1,
        new_network: bool = False,
        new_session: bool = False,
        oom_score_adj: int | None = None,
    ) -> int:
        """Run *argv* with the descriptors *keep* as its 0, 1, 2...; the pid.

        It dies with the guard.  *network* is a descriptor of the network
        namespace to run it in; *new_network* gives it an empty one of its own,
        *new_session* a session, and a session keyring (only then *oom_score_adj*
        is heeded).  lxc-start gives its
        payload both itself, and takes milliseconds longer with a session of
        its own: that is a task group of the scheduler's too (sched(7),
        autogroup).
        """
        # 0 to 6 are the guard's own: none of these is below 7. Whatever else is open is so until the execve.
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(keep)]
        if self.leash >= 0 and not new_session and not new_network:
            return os.posix_spawn(f"/proc/self/fd/{self.leash}", argv, {}, file_actions=actions, setpgroup=0)
        pid = os.fork()
        if pid:
            return pid
        try:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != self.pid:
                os._exit(1)
            if not new_session:
                os.setpgid(0, 0)
            else:
                os.setsid()
                libc.syscall(ctypes.c_long(_NR_KEYCTL), 1, None)  # KEYCTL_JOIN_SESSION_KEYRING, as lxc-start does
            if oom_score_adj is not None:  # lxc-attach has no way to set it
                write("/proc/self/oom_score_adj", str(oom_score_adj))
            if new_network and libc.unshare(_CLONE_NEWNET):
                os._exit(1)
            if network >= 0 and libc.setns(network, _CLONE_NEWNET):
                os._exit(1)
            for _, fd, number in actions:
                os.dup2(fd, number)
            os.closerange(len(keep), self.most_descriptors())
            os.execve(argv[0], argv, {})
        finally:
            os._exit(127)

    def adopt(self, change: int) -> None:
        """Let processes whose parent dies become this one's children: from 1 on, until -1 has come as often."""
        self.adopting += change
        libc.prctl(PR_SET_CHILD_SUBREAPER, int(self.adopting > 0), 0, 0, 0)

    def reap(self) -> None:
        """Bury those that came along meanwhile, and are nobody's."""
        known = {pid for job in self.jobs for pid in (job.pid, job.child)}
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None or found.si_pid in known:
                return
            os.waitid(os.P_PID, found.si_pid, os.WEXITED | os.WNOHANG)

    def most_descriptors(self) -> int:
        """A number that no open descriptor reaches."""
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]

    def let_go(self) -> None:
        """Outlive the caller; the loop ends with the last job."""
        self.running = False
        self.forget(self.control.fileno())

    def stop(self) -> None:
        """Kill every container; the loop ends when the last is gone."""
        self.running = False
        for fd in (self.control.fileno(), CALLER_FD):
            self.forget(fd)
        for job in list(self.jobs):
            job.kill()

    def run(self) -> None:
        """Until the caller has left and nothing is left."""
        count = 0
        while self.running or self.jobs:
            for fd, _ in self.epoll.poll(INTERVAL if self.impatient else None):
                handler = self.handlers.get(fd)  # an earlier event of this round may have ended it
                if handler is not None:
                    handler()
            for job in list(self.impatient):
                job.look_again()
            count += 1
            if count % 4096 == 0:
                gc.collect()

    def close(self) -> None:
        """Remove the guard's own cgroups and directories."""
        for base in self.bases.values():
            for parent in self.parents:
                remove_cgroups(f"{base}/{parent}{self.token}")
        for directory in (f"/run/lxc/lock{self.lxcpath}", self.lxcpath):
            try:
                for name in os.listdir(directory):
                    os.unlink(f"{directory}/{name}")
                os.rmdir(directory)
            except OSError:
                pass  # it stays for the sweep of the next start


def write(path: str, value: str) -> None:
    """Write *value* to a file of the kernel's. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def forget_schedule() -> None:
    """Have none of what the caller is scheduled by: containers inherit it. What may not be undone stays."""
    calls: tuple[tuple[Callable[..., object], tuple[object, ...]], ...] = (
        (os.sched_setaffinity, (0, range(1024))),
        (os.sched_setscheduler, (0, os.SCHED_OTHER, os.sched_param(0))),
        (os.setpriority, (os.PRIO_PROCESS, 0, 0)),
        (write, ("/proc/self/oom_score_adj", "0")),
    )
    for call, arguments in calls:
        try:
            call(*arguments)
        except OSError:
            pass


def memory_file(bases: dict[str, str]) -> tuple[str, str]:
    """Where the kernel counts a cgroup's processes that it killed for memory: the hierarchy's controller, the file."""
    if "memory" in bases:
        return "memory", "memory.oom_control"
    try:
        with open(f"{bases['']}/cgroup.controllers") as file:
            return ("", "memory.events") if "memory" in file.read().split() else ("", "")
    except (OSError, KeyError):
        return "", ""


KINDS = {"start": Monitor, "detach": Detached, "attach": Attached, "tool": Tool}

_CLONE_NEWNET = 0x40000000
_MACHINE = os.uname().machine
_NR_RT_SIGACTION = {"x86_64": 13, "aarch64": 134, "riscv64": 134, "ppc64le": 173, "s390x": 174}.get(_MACHINE, -1)
_NR_KEYCTL = {"x86_64": 250, "aarch64": 219, "riscv64": 219, "ppc64le": 271, "s390x": 280}.get(_MACHINE, -1)


def main() -> None:
    """Serve the socket that is descriptor 3 for the caller whose pidfd is descriptor 4. 5 is its lock.

    For a detached container 4 is that one's directory.
    """
    os.closerange(LOCK_FD + 1, os.sysconf("SC_OPEN_MAX"))
    for fd in (CONTROL_FD, CALLER_FD, LOCK_FD):
        os.set_inheritable(fd, False)
    os.chdir("/")
    os.umask(0o022)
    forget_schedule()
    default = bytes(32)  # struct sigaction: SIG_DFL, no flags. An ignored signal would be inherited by the payload,
    for number in range(1, 65):  # and libc's own call keeps its hands on 32 and 33.
        libc.syscall(ctypes.c_long(_NR_RT_SIGACTION), number, default, None, ctypes.c_long(8))
    sys.path.clear()
    sys.meta_path.clear()
    sys.path_hooks.clear()
    gc.collect()
    gc.freeze()
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, CONTROL_FD)
    guard = Guard(control, *marshal.loads(control.recv(1 << 16)))
    try:
        guard.run()
    except BaseException as error:
        where = error.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        line = f"{where.tb_frame.f_code.co_filename}:{where.tb_lineno}" if where is not None else ""
        try:
            control.send(f"{type(error).__name__}: {error} ({line})".encode())
        except OSError:
            pass
        raise
    finally:
        guard.close()
    if guard.last is not None:
        write_whole("ended", guard.last)
