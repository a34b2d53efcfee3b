"""The caller's side of the launcher: starting it, asking it, noticing its death."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import marshal
import os
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING

from pycontainer.errors import SetupError
from pycontainer_native.enter import ENTERED, MAPPED, MAPPED_WITHOUT_GROUPS
from pycontainer_native.image import read_only_image

if TYPE_CHECKING:
    from pycontainer_native.userns import UserNamespace

#: A larger request travels in a sealed memfd: a socket's buffer is no place for it.
_IN_LINE = 64 * 1024

#: How long a launcher may take to end everything, before it is ended itself (seconds).
_PATIENCE = 15.0

_SERVE = "import sys; sys.path.append(sys.argv.pop()); from pycontainer_native.launcher import main; main()"
_ENTER = "import sys; sys.path.append(sys.argv[-1]); from pycontainer_native.enter import main; main()"


class LauncherGoneError(Exception):
    """The launcher has ended, so a request could not be given to it."""


class LauncherClient:
    """One launcher process, started here, ended by :meth:`close` or by the caller's own end.

    With *namespace* it enters a user namespace first, and has these ids there.
    Raises SetupError when it cannot.
    """

    def __init__(self, namespace: UserNamespace | None = None) -> None:
        self.token = os.urandom(8).hex()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                self.pid = _spawn(theirs.fileno(), inside=namespace is not None)
            if namespace is not None:
                self._enter(namespace)
            self._control.sendall(self.token.encode())
        except BaseException:
            self._control.close()
            raise

    def _enter(self, namespace: UserNamespace) -> None:
        """Write the launcher's id maps, once it is in a user namespace. It is gone when this raises SetupError."""
        from pycontainer_native.userns import write_maps

        try:
            said = self._control.recv(256)
            if said != ENTERED:
                step, number = marshal.loads(said) if said else ("start the launcher", errno.EPIPE)
                raise SetupError(step, number)
            try:
                write_maps(self.pid, namespace)
            except OSError as error:
                raise SetupError(f"write the id maps ({error.strerror or error})", error.errno or errno.EPERM) from None
            self._control.sendall(MAPPED if namespace.setgroups else MAPPED_WITHOUT_GROUPS)
        except BaseException:
            self.close()
            raise

    def request(self, data: bytes, fds: list[int]) -> None:
        """Send one request. Raises LauncherGoneError."""
        send_request(self._control, data, fds)

    def last_words(self) -> str:
        """What the launcher said about its own death, if it could."""
        try:
            return self._control.recv(4096, socket.MSG_DONTWAIT).decode(errors="replace")
        except OSError:
            return ""

    def close(self) -> bool:
        """End the launcher, and with it every container; returns when it is gone, and whether it left nothing."""
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)  # also for the copies that a forked child may have
        self._control.close()
        with contextlib.suppress(ChildProcessError, ProcessLookupError):  # somebody else's waitpid(-1) was first
            os.kill(self.pid, signal.SIGCONT)  # stopped, it would not notice
            deadline = time.monotonic() + _PATIENCE
            while True:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    return status == 0
                if time.monotonic() > deadline:
                    os.kill(self.pid, signal.SIGKILL)
                    os.waitpid(self.pid, 0)
                    return False
                time.sleep(0.001)
        return False

    def forget(self) -> None:
        """In a forked child: let go of what belongs to the parent."""
        self._control.close()


def send_request(control: socket.socket, data: bytes, fds: list[int]) -> None:
    """Send one request to a launcher, or a monitor. Raises LauncherGoneError."""
    memfd = -1
    try:
        if len(data) > _IN_LINE:
            memfd = _sealed(data)
            data, fds = b"memfd", [*fds, memfd]
        socket.send_fds(control, [data], fds, socket.MSG_NOSIGNAL)
    except OSError as error:
        # Also when another thread has noticed its death already, and closed this.
        if isinstance(error, (BrokenPipeError, ConnectionResetError)) or control.fileno() < 0:
            raise LauncherGoneError from None
        raise
    finally:
        if memfd >= 0:
            os.close(memfd)


def _sealed(data: bytes) -> int:
    memfd = os.memfd_create("pycontainer-plan", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(memfd, "wb", closefd=False) as file:
            file.write(data)
    except BaseException:
        os.close(memfd)
        raise
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, seals)
    return memfd


def _spawn(control: int, *, inside: bool = False) -> int:
    """Start the launcher: *control* is its descriptor 3, a pidfd of this process its 4, its image's mount its 5.

    *inside* a user namespace of its own it makes that mount itself: here the right to is missing.
    """
    real = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    # Only what the dynamic loader may need to find libpython; the launcher's environment is empty otherwise.
    env = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    with contextlib.ExitStack() as stack:

        def own(fd: int) -> int:
            stack.callback(os.close, fd)
            return fd

        null = own(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
        caller = own(os.pidfd_open(os.getpid()))
        handed = [control, caller]
        arguments: tuple[str, ...]
        if inside:
            program, arguments = real, (_ENTER, _SERVE, real, home)
        else:
            image, mount = map(own, read_only_image(real))
            program, arguments = f"/proc/self/fd/{image}", (_SERVE, home)
            handed.append(mount)
        # dup2 onto itself does not clear close-on-exec everywhere, so none of these may have its number already.
        high = [own(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 16)) for fd in handed]
        actions = [(os.POSIX_SPAWN_DUP2, null, fd) for fd in (0, 1, 2)]
        actions += [(os.POSIX_SPAWN_DUP2, fd, to) for to, fd in enumerate(high, 3)]
        return os.posix_spawn(
            program,
            [real, "-I", "-S", "-c", *arguments],
            env,
            file_actions=actions,
            setsid=True,
            setsigmask=(),
            setsigdef=[number for number in signal.valid_signals() if number not in (signal.SIGKILL, signal.SIGSTOP)],
        )
