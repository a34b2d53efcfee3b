"""The caller's side of the launcher: starting it, asking it, noticing its death."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import struct
import sys
import time

from pycontainer_native import abi

#: A larger request travels in a sealed memfd: a socket's buffer is no place for it.
_IN_LINE = 64 * 1024

#: How long a launcher may take to end everything, before it is ended itself (seconds).
_PATIENCE = 15.0

_SERVE = "import sys; sys.path.append(sys.argv.pop()); from pycontainer_native.launcher import main; main()"


class LauncherGoneError(Exception):
    """The launcher has ended, so a request could not be given to it."""


class LauncherClient:
    """One launcher process, started here, ended by :meth:`close` or by the caller's own end."""

    def __init__(self) -> None:
        self.token = os.urandom(8).hex()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self.pid = _spawn(theirs.fileno())
            self._control.sendall(self.token.encode())
        except BaseException:
            self._control.close()
            raise
        finally:
            theirs.close()

    def request(self, data: bytes, fds: list[int]) -> None:
        """Send one request. Raises LauncherGoneError."""
        memfd = -1
        try:
            if len(data) > _IN_LINE:
                memfd = _sealed(data)
                data, fds = b"memfd", [*fds, memfd]
            socket.send_fds(self._control, [data], fds, socket.MSG_NOSIGNAL)
        except OSError as error:
            # Also when another thread has noticed its death already, and closed this.
            if isinstance(error, (BrokenPipeError, ConnectionResetError)) or self._control.fileno() < 0:
                raise LauncherGoneError from None
            raise
        finally:
            if memfd >= 0:
                os.close(memfd)

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


def _spawn(control: int) -> int:
    """Start the launcher: *control* is its descriptor 3, a pidfd of this process its 4, its image's mount its 5."""
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
        image, mount = map(own, _read_only_image(real))
        # dup2 onto itself does not clear close-on-exec everywhere, so none of these may have its number already.
        high = [own(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 16)) for fd in (control, caller, mount)]
        actions = [(os.POSIX_SPAWN_DUP2, null, fd) for fd in (0, 1, 2)]
        actions += [(os.POSIX_SPAWN_DUP2, fd, to) for to, fd in enumerate(high, 3)]
        return os.posix_spawn(
            f"/proc/self/fd/{image}",
            [real, "-I", "-S", "-c", _SERVE, home],
            env,
            file_actions=actions,
            setsid=True,
            setsigmask=(),
            setsigdef=[number for number in signal.valid_signals() if number not in (signal.SIGKILL, signal.SIGSTOP)],
        )


def _read_only_image(path: str) -> tuple[int, int]:
    """The interpreter on a read-only mount that is nowhere to be seen: descriptors of the file and of the mount.

    A payload can make the kernel execute the launcher's image by way of
    ``#!/proc/self/exe``, and reopen it for writing later (CVE-2019-5736).  On
    this mount writing is EROFS for any user; and once it runs, the launcher
    makes the mount noexec, so that it cannot be executed a second time.  The
    mount that holds it is cloned as a whole where possible, so that the
    loader's $ORIGIN keeps its meaning.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long

    def call(name: str, *arguments: int | bytes) -> int:
        ready = [ctypes.c_long(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in (abi.NR[name], *arguments)]
        result: int = libc.syscall(*ready)
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)
        return result

    def clone(source: bytes) -> int:
        tree = call("open_tree", abi.AT_FDCWD, source, abi.OPEN_TREE_CLONE | abi.OPEN_TREE_CLOEXEC)
        attributes = struct.pack("=QQQQ", abi.MOUNT_ATTR_RDONLY, 0, 0, 0)
        call("mount_setattr", tree, b"", abi.AT_EMPTY_PATH, attributes, len(attributes))
        return tree

    encoded = os.fsencode(path)
    if os.stat(path).st_dev == os.stat("/").st_dev:
        root = clone(b"/")
        try:
            how = struct.pack("=QQQ", abi.O_PATH | abi.O_CLOEXEC, 0, abi.RESOLVE_IN_ROOT | abi.RESOLVE_NO_XDEV)
            image = call("openat2", root, encoded, how, len(how))
            if os.path.samestat(os.fstat(image), os.stat(path)):
                return image, root
            os.close(image)
        except OSError:
            pass  # it is on another mount after all
        os.close(root)
    image = clone(encoded)
    return image, os.dup(image)
