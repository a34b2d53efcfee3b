"""A way out for an ordinary user's container: pasta(1) or slirp4netns(1), between its network and the host's sockets.

The tool is the launcher's child, in pid and mount namespaces of its own: the
first process in there is a copy of the launcher, which dies with the launcher
however that dies, and takes along whatever the tool has become (pasta leaves
its first process behind and goes on in another one).  The payload sees none
of them.  Only what the launcher imports anyway is imported here.
"""

from __future__ import annotations

import _signal as signal
import ctypes
import errno
import os
import resource
import select

from pycontainer_native import abi
from pycontainer_native.libc import libc, syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from pycontainer_native.hooks import Program

#: Where the tool finds the container's network namespace: in /proc it may not look it up (pasta before 2023 gives up
#: the right to), and a descriptor of it later versions would close.
PLACE, NETNS = "/tmp", "/tmp/netns"
#: Where slirp4netns says that it is ready.
READY_FD = 3

#: How long it may take to get ready (seconds), and how much of what it prints is told (bytes).
TIMEOUT = 30.0
LAST_WORDS = 512

#: How much it may print at all (bytes).
OUTPUT = 1 << 16


class Relay:
    """The tool that was started. ``ready`` is readable when it is ready, or never will be: :meth:`problem` is next."""

    def __init__(self, program: Program, container: int) -> None:
        """Start *program* for the network of process *container*. Raises OSError."""
        path, argv, env, _ = program
        self.name = os.path.basename(path).decode()
        self.late = False
        self.pidfd = self.ready = self.output = ready = -1
        pidfd = ctypes.c_int(-1)
        flags = abi.CLONE_NEWPID | abi.CLONE_NEWNS | abi.CLONE_PIDFD | signal.SIGCHLD
        try:
            self.output = os.memfd_create("output", os.MFD_CLOEXEC)
            self.ready, ready = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            self.pid = syscall(abi.NR["clone"], flags, 0, ctypes.byref(pidfd), 0, 0)
            if self.pid == 0:
                os.close(self.ready)
                _supervise(path, argv, env, container, ready, self.output)
            if self.pid == -1:
                raise OSError(ctypes.get_errno(), "clone")
            self.pidfd = pidfd.value
        except OSError:
            self.close()
            raise
        finally:
            if ready >= 0:
                os.close(ready)

    def expire(self) -> None:
        """Its time to get ready is over."""
        self.late = True
        self.kill()

    def kill(self) -> None:
        """SIGKILL to all of it."""
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it has ended, and been reaped

    def problem(self) -> str:
        """Why it is not ready; empty when it is. Raises BlockingIOError: that is still to come."""
        if os.read(self.ready, 1):
            return ""
        text = os.pread(self.output, LAST_WORDS, max(0, os.fstat(self.output).st_size - LAST_WORDS))
        said = "; ".join(text.decode("utf-8", "replace").split("\n")).strip("; ")
        how = "did not get ready in time" if self.late else "has failed"
        return f"{self.name} {how}: {said}" if said else f"{self.name} {how}"

    def close(self) -> None:
        """End it. Whoever watches the process itself reaps it."""
        if self.pidfd >= 0:
            self.kill()
        for fd in (self.pidfd, self.ready, self.output):
            if fd >= 0:
                os.close(fd)
        self.pidfd = self.ready = self.output = -1


def _supervise(path: bytes, argv: list[bytes], env: list[bytes], container: int, ready: int, output: int) -> NoReturn:
    """Be the first process of the tool's namespace: show it the network, start it, and say when it is ready."""
    from pycontainer_native.child import execute, words  # as the launcher has it, and the caller not

    try:
        libc.prctl(abi.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        poll = select.poll()
        poll.register(ready, 0)
        if poll.poll(0):  # nobody reads it: the launcher had died before
            os._exit(1)
        os.setsid()
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, hard), hard))  # the launcher has raised it
        resource.setrlimit(resource.RLIMIT_FSIZE, (OUTPUT, OUTPUT))  # what it prints stays in memory
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        null = os.open("/dev/null", os.O_RDWR)
        for fd, to in ((null, 0), (os.dup(output), 1), (output, 2)):
            os.dup2(fd, to)
        high = os.dup(ready)
        while high <= READY_FD:
            high = os.dup(high)
        os.dup2(high, READY_FD)
        syscall(abi.NR["close_range"], READY_FD + 1, ctypes.c_long(0xFFFFFFFF), 0)
        os.set_inheritable(READY_FD, b"--ready-fd=3" in argv)
        os.chdir("/")
        os.umask(0o022)
        _mount(b"", b"/", None, abi.MS_REC | abi.MS_PRIVATE)
        _mount(b"tmpfs", PLACE.encode(), b"tmpfs", 0)
        os.close(os.open(NETNS, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC))
        _mount(b"/proc/%d/ns/net" % container, NETNS.encode(), None, abi.MS_BIND)
        tool = os.fork()
        if tool == 0:
            number = execute([path], words([*argv, 0], {}), words([*env, 0], {}))
            os.write(2, f"cannot be executed: {os.strerror(number)}".encode())
            os._exit(126)
        while True:
            pid, status = os.wait()
            if pid == tool:
                if status:
                    os._exit(1)
                os.write(READY_FD, b"1")  # pasta: another process has taken over
    except ChildProcessError:
        pass
    except OSError as error:
        os.write(2, f"{error.strerror} ({errno.errorcode.get(error.errno or 0, '?')})".encode())
    finally:
        os._exit(1)


def _mount(source: bytes, target: bytes, fstype: bytes | None, flags: int) -> None:
    if syscall(abi.NR["mount"], source, target, fstype, ctypes.c_ulong(flags), None) == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"mount on {target.decode()}: {os.strerror(number)}")
