"""Drivers that are wrong in one thing each: the fake driver, but for that. The kit must find it, in its area alone.

The docstring of each names the area.
"""

from __future__ import annotations

import os
import signal as signals
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import attrs

from pycontainer import (
    Command,
    ContainerInfo,
    ContainerProcess,
    Feature,
    NotRunningError,
    Process,
    Resources,
    State,
    Stdio,
)
from pycontainer import stats as types
from pycontainer.receipt import Namespace, Receipt, SeccompState
from pycontainer.testing._box import FakeContainer
from pycontainer.testing.fake import FEATURES, FakeDriver, FakeProcess


class NoVersion(FakeDriver):
    """Features: the name says nothing about the version."""

    name = "fake"


class ImmortalInfo(FakeDriver):
    """Lifecycle: what has ended is still reported as running."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def start(self, command: Command, stdio: Stdio) -> ContainerProcess:
        process = super().start(command, stdio)
        self.seen.add(command.id)
        return process

    def info(self, id: str) -> ContainerInfo:
        found = super().info(id)
        return ContainerInfo(id, State.RUNNING) if id in self.seen and not found.is_running else found


class MixedStreams(FakeDriver):
    """Stdio: stderr goes where stdout goes."""

    def start(self, command: Command, stdio: Stdio) -> ContainerProcess:
        return super().start(command, Stdio(stdio.stdin, stdio.stdout, stdio.stdout, stdio.size))


class SevenBits(FakeDriver):
    """ExitStatuses: the exit code has seven bits."""

    def _begin(self, process: FakeProcess) -> FakeProcess:
        end = process.end
        process.end = lambda code, signal=None: end(code and code & 0x7F, signal)  # type: ignore[method-assign]
        return super()._begin(process)


class DeafToSomeSignals(FakeDriver):
    """Signals: SIGUSR1 and SIGHUP get lost."""

    def _make(self, command: Command, stdio: Stdio) -> FakeProcess:
        process = super()._make(command, stdio)
        deliver = process.box.deliver

        def some(signal: int) -> None:
            if signal not in (signals.SIGUSR1, signals.SIGHUP):
                deliver(signal)

        process.box.deliver = some  # type: ignore[method-assign]
        return process


class LeakyEnvironment(FakeDriver):
    """Environment: the caller's variables get in."""

    def _make(self, command: Command, stdio: Stdio) -> FakeProcess:
        process = super()._make(command, stdio)
        process.box.environment = {**os.environ, **process.box.environment}
        return process


class TrustingDriver(FakeDriver):
    """BadInput: a mount without a source is accepted."""

    def validate(self, command: Command) -> Sequence[Any]:
        return super().validate(attrs.evolve(command, mounts=()))


class WritableMounts(FakeDriver):
    """Mounts: read-only is ignored."""

    def start(self, command: Command, stdio: Stdio) -> ContainerProcess:
        mounts = [attrs.evolve(mount, read_only=False) for mount in command.mounts]
        return super().start(attrs.evolve(command, mounts=mounts), stdio)


class WrongReceipt(FakeDriver):
    """What the kernel says of its containers is not what was asked for: see :meth:`wrong`."""

    def _make(self, command: Command, stdio: Stdio) -> FakeProcess:
        process = super()._make(command, stdio)
        right = process.receipt
        process.receipt = lambda: self.wrong(right())  # type: ignore[method-assign]
        return process

    def wrong(self, right: Receipt) -> Receipt:
        raise NotImplementedError


class KeepsCapabilities(WrongReceipt):
    """Isolation: the bounding set is left as it was."""

    def wrong(self, right: Receipt) -> Receipt:
        bounding = tuple(sorted({*right.capabilities.bounding, "CAP_SYS_ADMIN"}))
        return attrs.evolve(right, capabilities=attrs.evolve(right.capabilities, bounding=bounding))


class NewPrivileges(WrongReceipt):
    """Isolation: a setuid program raises privileges."""

    def wrong(self, right: Receipt) -> Receipt:
        return attrs.evolve(right, no_new_privileges=False)


class KeepsGroups(WrongReceipt):
    """Isolation: the caller's supplementary groups stay."""

    def wrong(self, right: Receipt) -> Receipt:
        return attrs.evolve(right, groups=(*right.groups, 4))


class SpreadsOomScore(WrongReceipt):
    """Isolation: the kernel kills it as soon as it would kill its caller."""

    def wrong(self, right: Receipt) -> Receipt:
        with open("/proc/self/oom_score_adj") as file:
            return attrs.evolve(right, oom_score_adj=int(file.read()))


class NoFilter(WrongReceipt):
    """Isolation: seccomp is declared, and no filter is loaded."""

    def features(self) -> frozenset[Feature]:
        return super().features() | {Feature.SECCOMP}

    def wrong(self, right: Receipt) -> Receipt:
        return attrs.evolve(right, seccomp=SeccompState())


class NoMasks(WrongReceipt):
    """Isolation: nothing of /proc is hidden."""

    def wrong(self, right: Receipt) -> Receipt:
        return attrs.evolve(right, mounts=[mount for mount in right.mounts if mount.target != "/proc/keys"])


class SharedNamespace(WrongReceipt):
    """Isolation: the network is the host's."""

    def wrong(self, right: Receipt) -> Receipt:
        return attrs.evolve(right, namespaces={**right.namespaces, "net": Namespace(inode=1, own=False)})


class NoQuota(FakeDriver):
    """Limits: the processor quota is ignored."""

    def start(self, command: Command, stdio: Stdio) -> ContainerProcess:
        return super().start(attrs.evolve(command, resources=attrs.evolve(command.resources, cpu_quota=None)), stdio)


class SilentOutOfMemory(FakeDriver):
    """Limits: nobody is told that it was the memory."""

    def _begin(self, process: FakeProcess) -> FakeProcess:
        end = process.end

        def silent(code: int | None, signal: int | None = None) -> None:
            process.box.oom_kills = 0
            end(code, signal)

        process.end = silent  # type: ignore[method-assign]
        return super()._begin(process)


class PretendedHooks(FakeDriver):
    """Provisions: hooks are taken, and never run."""

    def __init__(self) -> None:
        super().__init__({*FEATURES, Feature.HOOKS})


class PretendedDevices(FakeDriver):
    """Provisions: what is declared is not there."""

    def __init__(self) -> None:
        super().__init__({*FEATURES, Feature.DEVICES, Feature.SYSCTLS})


class OneSizeTerminal(FakeDriver):
    """Tty: the terminal that is handed out is not the one inside."""

    def _connect(self, box: FakeContainer, stdio: Stdio) -> int | None:
        master = super()._connect(box, stdio)
        if master is not None:
            import tty

            tty.setraw(box.stdin)
        return master


class ExecAsRoot(FakeDriver):
    """Exec: always as root."""

    def exec(self, id: str, process: Process, stdio: Stdio) -> ContainerProcess:
        return super().exec(id, attrs.evolve(process, user=None), stdio)


class PretendedPause(FakeDriver):
    """Pause: everybody is told so, but it goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.pretended: set[str] = set()

    def pause(self, id: str) -> None:
        self._find(id)
        self.pretended.add(id)

    def unpause(self, id: str) -> None:
        self.pretended.remove(id)

    def info(self, id: str) -> ContainerInfo:
        found = super().info(id)
        return attrs.evolve(found, state=State.PAUSED) if found.is_running and id in self.pretended else found

    def exec(self, id: str, process: Process, stdio: Stdio) -> ContainerProcess:
        if id in self.pretended:
            raise NotRunningError(id, "paused")
        return super().exec(id, process, stdio)


class NoMemoryUsed(FakeDriver):
    """Stats: no memory is ever used."""

    def stats(self, id: str) -> types.Stats:
        found = super().stats(id)
        return attrs.evolve(found, memory=attrs.evolve(found.memory, usage=0))


class UpdateWithoutEffect(FakeDriver):
    """Update: accepted, and that is all."""

    def update(self, id: str, resources: Resources) -> None:
        self._find(id)


class ForgottenEnd(FakeDriver):
    """Restore: who comes after the end is told that all went well."""

    def restore(self, id: str) -> ContainerProcess:
        process = super().restore(id)
        status = process.poll()
        if status is not None:
            good = attrs.evolve(status, exit_code=0, signal=None)
            process.poll = process.wait = lambda timeout=None: good  # type: ignore[method-assign,assignment,misc]
        return process


class SignalToAll(FakeDriver):
    """Concurrency: a signal to one container reaches all of them."""

    def kill(self, id: str, signal: int) -> None:
        self._find(id)
        for process in list(self._running.values()):
            process.send_signal(signal)


class LeakedDescriptor(FakeDriver):
    """Leaks: each start leaves a descriptor open."""

    def start(self, command: Command, stdio: Stdio) -> ContainerProcess:
        os.dup(stdio.stdin)
        return super().start(command, stdio)


class Orphans(FakeDriver):
    """Leaks: there is a real process, which outlives the one that made it."""

    def __init__(self) -> None:
        super().__init__()
        self.maker = os.getpid()

    def get_pids_for_container(self, id: str) -> Sequence[int]:
        pids = list(super().get_pids_for_container(id))
        if os.getpid() != self.maker:
            orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(15)"], start_new_session=True)
            pids.append(orphan.pid)
        return pids


#: Every one of them, and the area that its docstring names.
BROKEN = {
    name: str(value.__doc__).partition(":")[0]
    for name, value in list(vars().items())
    if isinstance(value, type) and issubclass(value, FakeDriver) and value not in (FakeDriver, WrongReceipt)
}
