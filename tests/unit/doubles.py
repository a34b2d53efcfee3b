"""A driver for tests of everything above the drivers: real processes, pidfds and pipes, but no isolation, no root.

A "container" is a session of its own.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time
from collections.abc import Iterator, Sequence

from pycontainer.command import Command
from pycontainer.driver import ContainerInfo, ContainerProcess, ExecutionDriver, ExitStatus, Feature, State, Stdio
from pycontainer.errors import InvalidCommandError, NotRunningError, SetupError, UnsupportedError, WaitTimeoutError


def members(session: int) -> list[int]:
    """The pids of a session that are not zombies."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    state, _, _, number = file.read().rpartition(b")")[2].split()[:4]
            except OSError:
                continue
            if int(number) == session and state != b"Z":
                found.append(int(name))
    return found


def kill_all(session: int) -> None:
    """SIGKILL until nobody of *session* is left."""
    while pids := members(session):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)


class SpawnedProcess(ContainerProcess):
    """A child in a session of its own."""

    def __init__(self, driver: SpawnDriver, id: str, pid: int, terminal: int | None) -> None:
        self.id = id
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.terminal = terminal
        self._driver = driver
        self._status: ExitStatus | None = None

    def poll(self) -> ExitStatus | None:
        if self._status is None:
            result = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if result is not None and result.si_code in (os.CLD_EXITED, os.CLD_KILLED, os.CLD_DUMPED):
                self._driver.calls.append(f"reap {self.id}")
                kill_all(self.pid)
                os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
                code = None if result.si_code != os.CLD_EXITED else result.si_status
                self._status = ExitStatus(code, result.si_status if code is None else None, reason=f"ended {code}")
                self._driver.running.pop(self.id, None)
        return self._status

    def wait(self, timeout: float | None = None) -> ExitStatus:
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        poll.poll(None if timeout is None else timeout * 1000)
        status = self.poll()
        if status is None:
            raise WaitTimeoutError(self.id, timeout or 0.0)
        return status

    def send_signal(self, signal_: int) -> None:
        signal.pidfd_send_signal(self.pidfd, signal_)

    def fileno(self) -> int:
        return self.pidfd

    def close(self) -> None:
        if self.pidfd >= 0:
            if self._status is None:
                kill_all(self.pid)
                SpawnedProcess.wait(self)  # also where a test has replaced it
            os.close(self.pidfd)
            self.pidfd = -1
            if self.terminal is not None:  # nobody took it
                os.close(self.terminal)


class SpawnDriver(ExecutionDriver):
    """Notes in :attr:`calls` what it was asked."""

    name = "spawn-0.1"

    def __init__(self) -> None:
        self.running: dict[str, SpawnedProcess] = {}
        self.calls: list[str] = []
        self.problems: list[InvalidCommandError | UnsupportedError] = []

    def features(self) -> frozenset[Feature]:
        return frozenset({Feature.CREATE, Feature.PAUSE, Feature.TTY, Feature.HOST_ROOTFS})

    def validate(self, command: Command) -> Sequence[InvalidCommandError | UnsupportedError]:
        return self.problems

    def start(self, command: Command, stdio: Stdio) -> ContainerProcess:
        self.calls.append(f"start {command.id}")
        return self._spawn(command, stdio, list(command.process.argv))

    def create(self, command: Command, stdio: Stdio) -> ContainerProcess:
        self.calls.append(f"create {command.id}")
        process = self._spawn(command, stdio, ["sh", "-c", 'kill -STOP $$; exec "$@"', "sh", *command.process.argv])
        os.waitid(os.P_PIDFD, process.pidfd, os.WSTOPPED)
        return process

    def start_created(self, process: ContainerProcess) -> None:
        self.calls.append(f"start_created {process.id}")
        process.send_signal(signal.SIGCONT)

    def _spawn(self, command: Command, stdio: Stdio, argv: list[str]) -> SpawnedProcess:
        terminal = None
        actions: list[tuple[int, ...] | tuple[int, int, str, int, int]]
        if command.process.tty:
            terminal, slave = pty.openpty()
            if stdio.size is not None:
                fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", *stdio.size, 0, 0))
            actions = [(os.POSIX_SPAWN_OPEN, 0, os.ttyname(slave), os.O_RDWR, 0)]
            actions += [(os.POSIX_SPAWN_DUP2, 0, 1), (os.POSIX_SPAWN_DUP2, 0, 2)]
        else:
            # By way of high numbers, for the three may be any of 0, 1 and 2.
            high = 1000
            fds = (stdio.stdin, stdio.stdout, stdio.stderr)
            actions = [(os.POSIX_SPAWN_DUP2, fd, high + i) for i, fd in enumerate(fds)]
            actions += [(os.POSIX_SPAWN_DUP2, high + i, i) for i in range(3)]
            actions += [(os.POSIX_SPAWN_CLOSE, high + i) for i in range(3)]
        env = os.environ if command.process.env is None else command.process.env
        try:
            pid = os.posix_spawnp(argv[0], argv, env, file_actions=actions, setsid=True)
        except OSError as error:
            if terminal is not None:
                os.close(terminal)
            raise SetupError("execve", error.errno or errno.EIO, argv[0]) from None
        finally:
            if terminal is not None:
                os.close(slave)
        process = SpawnedProcess(self, command.id, pid, terminal)
        self.running[command.id] = process
        return process

    def _find(self, id: str) -> SpawnedProcess:
        if id not in self.running:
            raise NotRunningError(id)
        return self.running[id]

    def kill(self, id: str, signal_: int) -> None:
        self._find(id).send_signal(signal_)

    def terminate(self, id: str) -> None:
        self.calls.append(f"terminate {id}")
        kill_all(self._find(id).pid)

    def info(self, id: str) -> ContainerInfo:
        if id not in self.running:
            return ContainerInfo(id, State.STOPPED)
        return ContainerInfo(id, State.RUNNING, self.running[id].pid)

    def get_pids_for_container(self, id: str) -> Sequence[int]:
        return members(self._find(id).pid)

    def pause(self, id: str) -> None:
        process = self._find(id)
        os.killpg(process.pid, signal.SIGSTOP)
        os.waitid(os.P_PIDFD, process.pidfd, os.WSTOPPED)

    def unpause(self, id: str) -> None:
        os.killpg(self._find(id).pid, signal.SIGCONT)

    def clean(self, id: str) -> None:
        self.calls.append(f"clean {id}")


class PlainDriver(SpawnDriver):
    """Declares nothing that is not needed for an ordinary start."""

    name = "plain-0.1"

    def features(self) -> frozenset[Feature]:
        return frozenset({Feature.HOST_ROOTFS})


@contextlib.contextmanager
def nothing_left(driver: SpawnDriver) -> Iterator[SpawnDriver]:
    """Whatever goes on inside leaves no descriptor, no child and no container."""
    before = sorted(os.listdir("/proc/self/fd"))
    yield driver
    assert driver.running == {}
    assert sorted(os.listdir("/proc/self/fd")) == before
    with contextlib.suppress(ChildProcessError):
        raise AssertionError(f"a child is left: {os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)}")
