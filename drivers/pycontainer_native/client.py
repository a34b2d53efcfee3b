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

from pycontainer_native import abi

#: A larger request travels in a sealed memfd: a socket's buffer is no place for it.
_IN_LINE = 64 * 1024

_SERVE = "import sys; sys.path.append(sys.argv.pop()); from pycontainer_native.launcher import main; main()"


class LauncherGoneError(Exception):
    """The launcher has ended, so a request could not be given to it."""


class LauncherClient:
    """One launcher process, started here, ended by :meth:`close` or by the caller's own end."""

    def __init__(self) -> None:
        self.token = os.urandom(8).hex()
        self.owner = os.getpid()
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
        except (BrokenPipeError, ConnectionResetError):
            raise LauncherGoneError from None
        finally:
            if memfd >= 0:
                os.close(memfd)

    def last_words(self) -> str:
        """What the launcher said about its own death, if it could."""
        try:
            return self._control.recv(4096, socket.MSG_DONTWAIT).decode(errors="replace")
        except OSError:
            return ""

    def close(self) -> None:
        """End the launcher, and with it every container; returns when all of it is gone."""
        self._control.close()
        with contextlib.suppress(ChildProcessError):  # somebody else's waitpid(-1) was first
            os.waitpid(self.pid, 0)

    def forget(self) -> None:
        """In a forked child: let go of what belongs to the parent."""
        self._control.close()


def _sealed(data: bytes) -> int:
    memfd = os.memfd_create("pycontainer-plan", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(memfd, data)
    fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
    return memfd


def _spawn(control: int) -> int:
    """Start the launcher with *control* as its descriptor 3 and a pidfd of this process as its 4."""
    real = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    # Only what the dynamic loader may need to find libpython; the launcher's environment is empty otherwise.
    env = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    caller = os.pidfd_open(os.getpid())
    image = _read_only_image(real)
    # dup2 onto itself does not clear close-on-exec everywhere, so none of these may already be 3 or 4.
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 16) for fd in (control, caller)]
    try:
        actions = [(os.POSIX_SPAWN_DUP2, null, fd) for fd in (0, 1, 2)]
        actions += [(os.POSIX_SPAWN_DUP2, fd, to) for fd, to in zip(high, (3, 4), strict=True)]
        return os.posix_spawn(
            f"/proc/self/fd/{image}",
            [real, "-I", "-S", "-c", _SERVE, home],
            env,
            file_actions=actions,
            setsid=True,
            setsigmask=(),
            setsigdef=[number for number in signal.valid_signals() if number not in (signal.SIGKILL, signal.SIGSTOP)],
        )
    finally:
        for fd in (null, caller, image, *high):
            os.close(fd)


def _read_only_image(path: str) -> int:
    """A descriptor of the interpreter on a read-only mount of its own, which is nowhere else to be seen.

    A payload can make the kernel execute the launcher's image by way of
    ``#!/proc/self/exe`` and reopen it for writing later: on this mount that is
    EROFS, for any user (CVE-2019-5736).  The mount that holds it is cloned as
    a whole where possible, so that the loader's $ORIGIN keeps its meaning.
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
                return image
            os.close(image)
        except OSError:
            pass  # it is on another mount after all
        finally:
            os.close(root)
    return clone(encoded)
