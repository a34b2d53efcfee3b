"""Looking at a program between its execve and its first instruction.

Before execve a container is not yet what it will be: the seccomp filter is
loaded last, and execve computes the capabilities anew.  A moment after, the
program may have ended.  ptrace(2) stops a process right between the two
(PTRACE_O_TRACEEXEC), whatever the driver; it leaves no trace of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from pycontainer.errors import SetupError

T = TypeVar("T")

# ptrace(2), the same on every architecture
_CONT, _DETACH = 7, 17
_GETEVENTMSG, _GETSIGINFO, _SEIZE, _LISTEN = 0x4201, 0x4202, 0x4206, 0x4208
_TRACEFORK, _TRACEVFORK, _TRACECLONE, _TRACEEXEC = 2, 4, 8, 16
_EVENT_EXEC, _EVENT_STOP = 4, 128
_NEW_PROCESS = (1, 2, 3)  # the events of fork, vfork and clone
_WALL = 0x40000000

#: How often to look at what is traced (seconds), in the few milliseconds until the execve.
INTERVAL = 0.0003


class ExecStop(threading.Thread, Generic[T]):
    """Calls *look* with the pid of the first process that executes a program, of *pid* and its children to be.

    That process stands still meanwhile.  A thread, because a tracer is one,
    and because the start, which waits for the program, goes on in another.
    The tracing ends with the thread.
    """

    def __init__(self, pid: int, look: Callable[[int], T]) -> None:
        super().__init__(name=f"exec-stop-{pid}", daemon=True)
        self._traced = {pid}
        self._look = look
        self._seized = threading.Event()
        self._error: BaseException | None = None
        self._seen: list[T] = []
        self.start()
        self._seized.wait()
        if self._error is not None:
            raise self._error

    def result(self) -> T:
        """What *look* returned. Raises what it raised, SetupError; ProcessLookupError: no program was executed."""
        self.join()
        if self._error is not None:
            raise self._error
        if not self._seen:
            raise ProcessLookupError("it ended before it had executed a program")
        return self._seen[0]

    def run(self) -> None:
        (pid,) = self._traced
        try:
            ptrace(_SEIZE, pid, _TRACEEXEC | _TRACEFORK | _TRACEVFORK | _TRACECLONE)
        except OSError as error:
            self._error = SetupError("trace the main process", error.errno or errno.EPERM)
            return
        finally:
            self._seized.set()
        try:
            self._watch()
        except OSError as error:  # as EMFILE; the tracing ends, and what is traced goes on
            self._error = SetupError("watch the main process", error.errno or errno.EIO, error.filename)

    def _watch(self) -> None:
        # By looking, not by waitpid(2): whoever in this process waits for any child would take the news away.
        while self._traced and not self._seen and self._error is None:
            for pid in list(self._traced):
                state, parent = _state(pid)
                if state == "t":
                    self._stopped(pid)
                elif state in ("Z", "X", ""):
                    self._traced.discard(pid)
                    # A parent hears of it only after its tracer; where that is this process, its end is the driver's.
                    if parent != os.getpid():
                        with contextlib.suppress(ChildProcessError):
                            os.waitpid(pid, _WALL)
            time.sleep(INTERVAL)

    def _stopped(self, pid: int) -> None:
        try:
            signal, event = _event(pid)
            if event == _EVENT_EXEC:
                try:
                    self._seen.append(self._look(pid))
                except BaseException as error:
                    self._error = error
                ptrace(_DETACH, pid)
            elif event in _NEW_PROCESS:
                child = ctypes.c_ulong()
                ptrace(_GETEVENTMSG, pid, ctypes.byref(child))
                self._traced.add(child.value)
                ptrace(_CONT, pid)
            elif event == _EVENT_STOP:
                # A new process is continued; one that was stopped by a signal stays so.
                ptrace(_CONT if signal == 5 else _LISTEN, pid)
            else:
                ptrace(_CONT, pid, signal)
        except ProcessLookupError:
            pass  # killed meanwhile


def ptrace(request: int, pid: int, data: object = 0, address: int = 0) -> int:
    """ptrace(2) from this thread. Raises OSError."""
    argument = ctypes.c_long(data) if isinstance(data, int) else data
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.restype = ctypes.c_long
    result: int = libc.ptrace(ctypes.c_long(request), ctypes.c_long(pid), ctypes.c_long(address), argument)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def is_stopped_at_exec(pid: int) -> bool:
    """Whether this very thread traces *pid*, and has it stopped in its execve."""
    try:
        return _event(pid)[1] == _EVENT_EXEC
    except OSError:  # ESRCH: somebody else traces it, or nobody
        return False


def _event(pid: int) -> tuple[int, int]:
    """The signal that a traced process has stopped by, and the event of ptrace(2) if it is one."""
    info = ctypes.create_string_buffer(128)  # siginfo_t: signal, errno, code
    ptrace(_GETSIGINFO, pid, info)
    signal, code = (int.from_bytes(info.raw[at : at + 4], "little", signed=True) for at in (0, 8))
    return signal, code >> 8


def _state(pid: int) -> tuple[str, int]:
    """The letter of proc_pid_stat(5), which is empty when there is no such process, and the parent."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state, parent = file.read().rpartition(b")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return "", 0
    return state.decode(), int(parent)
