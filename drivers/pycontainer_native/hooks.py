"""Running a container's hooks: by the launcher, which goes on meanwhile, and by a first process, which waits.

Only what the launcher imports anyway is imported here, and nothing later: in
the container there are other files under the same names.
"""

from __future__ import annotations

import _signal as signal
import ctypes
import errno
import os
import resource
import select
from time import monotonic

from pycontainer_native import abi
from pycontainer_native.child import StepError, execute, run_steps, words
from pycontainer_native.libc import libc, syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn, TypeAlias

    from pycontainer_native.child import Bound

    #: path, argv, environment, timeout in seconds or None
    Program: TypeAlias = tuple[bytes, list[bytes], list[bytes], float | None]

#: How much of what a hook prints is told (bytes).
LAST_WORDS = 512


class HookError(Exception):
    """A hook has failed: which and how, in words, and an errno."""

    def __init__(self, text: str, error: int) -> None:
        self.text = text
        self.errno = error


class Running:
    """A hook that was started. Its pidfd is readable when it has ended: :meth:`result` is next."""

    def __init__(self, point: str, program: Program, state: bytes, confinement: list[Bound]) -> None:
        """Start it; right before its execve it makes the steps of *confinement*. Raises HookError."""
        path, argv, env, timeout = program
        self.point = point
        self.label = f"{point} hook {path.decode('utf-8', 'surrogateescape')}"
        self.deadline = None if timeout is None else monotonic() + timeout
        self.late = False
        pidfd = ctypes.c_int(-1)
        # Files and not pipes: nobody has to wait until the one is read or the other written.
        files: list[int] = []
        try:
            step = "make files"
            for name in ("output", "state"):
                files.append(os.memfd_create(name, os.MFD_CLOEXEC))
            self.output, stdin = files
            os.write(stdin, state)
            os.lseek(stdin, 0, os.SEEK_SET)
            step = "clone"
            pid = syscall(abi.NR["clone"], signal.SIGCHLD | abi.CLONE_PIDFD, 0, ctypes.byref(pidfd), 0, 0)
            if pid == 0:
                _become(path, argv, env, stdin, self.output, confinement)
            if pid == -1:
                raise OSError(ctypes.get_errno(), "clone")
        except OSError as error:
            for fd in files:
                os.close(fd)
            raise HookError(f"{step} for the {self.label}", error.errno or errno.EPROTO) from None
        os.close(stdin)
        self.pid, self.pidfd = pid, pidfd.value

    def expire(self) -> None:
        """Its time is over."""
        self.late = True
        self.kill()

    def kill(self) -> None:
        """SIGKILL to it and its process group."""
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)  # it may not have got as far as its own group
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def result(self) -> None:
        """Wait for its end, and close it. Raises HookError: it has failed."""
        end = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        words = self._last_words()
        os.close(self.pidfd)
        assert end is not None
        if self.late:
            raise HookError(f"{self.label} did not end in time{words}", errno.ETIMEDOUT)
        if end.si_code != os.CLD_EXITED:
            raise HookError(f"{self.label} was killed by signal {end.si_status}{words}", errno.ECANCELED)
        if end.si_status != 0:
            raise HookError(f"{self.label} exited with code {end.si_status}{words}", errno.ECANCELED)

    def _last_words(self) -> str:
        """The end of what it has printed, as ``": words"``."""
        size = os.fstat(self.output).st_size
        data = os.pread(self.output, LAST_WORDS, max(0, size - LAST_WORDS))
        os.close(self.output)
        text = data.decode("utf-8", "replace").strip()
        return f": {text}" if text else ""


def _become(
    path: bytes, argv: list[bytes], env: list[bytes], stdin: int, output: int, confinement: list[Bound]
) -> NoReturn:
    """Be the hook: in a session of its own, with three descriptors, at the root, with its own environment."""
    number = errno.EPROTO
    try:
        libc.prctl(abi.PR_SET_PDEATHSIG, 9, 0, 0, 0)
        os.setsid()
        # Numbers above those that are to be taken: one of them may be what has to be copied.
        high = [os.dup(fd) for fd in (stdin, output)]
        while min(high) < 3:
            high = [os.dup(fd) for fd in high]
        for fd, to in ((high[0], 0), (high[1], 1), (high[1], 2)):
            os.dup2(fd, to)
        syscall(abi.NR["close_range"], 3, ctypes.c_long(0xFFFFFFFF), 0)
        os.chdir("/")
        os.umask(0o022)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft > 1024:  # the launcher has raised it, and select(2) knows no more
            resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
        arguments, environment = words([*argv, 0], {}), words([*env, 0], {})  # memory first, the filter later
        run_steps([confinement], 0)
        number = execute([path], arguments, environment)
        os.write(2, f"cannot be executed: {os.strerror(number)}".encode())
    except StepError as failed:
        os.write(2, f"cannot be confined: {os.strerror(failed.errno)}".encode())
    except OSError as error:
        number = error.errno or number
        os.write(2, f"cannot be executed: {os.strerror(number)}".encode())
    finally:
        os._exit(127 if number == errno.ENOENT else 126)


def run(point: str, programs: list[Program], state: bytes, confinement: list[Bound]) -> None:
    """Run *programs* one after the other, waiting for each. Raises HookError."""
    for program in programs:
        hook = Running(point, program, state, confinement)
        poll = select.poll()
        poll.register(hook.pidfd, select.POLLIN)
        left = None if hook.deadline is None else max(0, round((hook.deadline - monotonic()) * 1000 + 0.5))
        if not poll.poll(left):
            hook.expire()
        hook.result()


def state_of(template: bytes, status: str, pid: int) -> bytes:
    """The container's state: *template* is its JSON without the final brace and what changes."""
    return template + f', "status": "{status}", "pid": {pid}}}'.encode()
