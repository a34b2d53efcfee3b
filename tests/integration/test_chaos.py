"""Whoever is killed, and whenever: nothing is left, and nobody else is hurt.

Callers start containers, attached and detached ones, run further commands in
them, change their limits and remove them, while one of the caller, its
launcher and its monitors is killed after a random time.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pycontainer
from pycontainer.errors import ContainerError, ContainerNotFoundError
from pycontainer_native.driver import NativeDriver

from . import host

pytestmark = pytest.mark.root

ROUNDS = 200
SEED = int(os.environ.get("PYCONTAINER_CHAOS_SEED") or random.SystemRandom().randrange(2**32))


@pytest.fixture
def root(native: NativeDriver) -> Iterator[str]:
    """Where detached containers are recorded."""
    with tempfile.TemporaryDirectory(prefix="pycontainer-chaos-", dir="/run") as root:
        yield root


def verbs(box: pycontainer.Container, marker: str, chance: random.Random) -> list[Callable[[], object]]:
    """What may be done with a container while it runs."""
    return [
        lambda: box.exec(["sleep", marker], timeout=chance.random() / 50),
        lambda: box.exec(["true"]),
        lambda: box.update(pids_limit=chance.randrange(50, 100)),
        lambda: (box.pause(), box.unpause()),
        box.stats,
        box.terminate,
    ]


def live(root: str, rootfs: str, marker: str, seed: int) -> None:
    """What a caller does, until it is killed."""
    chance = random.Random(seed)
    driver = NativeDriver(root)
    script = f"setsid sleep {marker} & trap 'exit 3' TERM; sleep {marker} & wait"
    kinds: list[dict[str, Any]] = [{}, {"init": True}, {"pid": "host"}, {"user": "alice"}, {"memory": "64m"}]
    while True:
        # RFC 5737: nobody's. Now and then it is in use, which is an error like another.
        address = f"198.51.100.{chance.randrange(2, 255)}"
        bridge = pycontainer.Network(
            bridge=f"pyc{marker}", address=address, prefix_length=24, gateway="198.51.100.1", create_bridge=True
        )
        remapped = {"network": bridge, "uid_mappings": [(0, 300000, 1000)], "gid_mappings": [(0, 300000, 1000)]}
        with contextlib.suppress(ContainerError, OSError):
            keywords = {**chance.choice([*kinds, {"network": bridge}, remapped]), "detach": chance.random() < 0.6}
            box = pycontainer.Container(["sh", "-c", script], driver=driver, rootfs=rootfs, **keywords)
            try:
                for _ in range(chance.randrange(3)):
                    with contextlib.suppress(ContainerError, OSError):
                        chance.choice(verbs(box, marker, chance))()
            finally:
                if not box.detached:
                    box.close()
                elif chance.random() < 0.7:
                    box.remove(force=True)
                else:
                    box.close()


class Caller:
    """A forked child that lives(), and the processes that work for it."""

    def __init__(self, root: str, rootfs: Path, marker: str, seed: int) -> None:
        self.root = root
        self.pid = os.fork()
        if self.pid == 0:
            try:
                live(root, str(rootfs), marker, seed)
            finally:
                os._exit(1)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)  # our child, which nobody else reaps
        os.waitpid(self.pid, 0)

    def launchers(self) -> list[int]:
        return host.children(self.pid)

    def monitors(self) -> list[int]:
        """Every monitor that has a state directory below the root."""
        return [pid for pid in host.running("pycontainer_native") if self.is_monitor(pid)]

    def is_monitor(self, pid: int) -> bool:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text() == "monitor\n":
                return any(f" -> {self.root}/" in name for name in host.descriptors(pid))
        return False


def kill_if(pid: int, is_victim: Callable[[int], bool]) -> None:
    """SIGKILL to that process, unless its pid is somebody else's by now."""
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        try:
            if is_victim(pid):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)


def reap_orphans(known: set[int]) -> None:
    """What became ours when its parent died, and has ended: this process is a subreaper."""
    for pid in {*host.children(os.getpid())} - known:
        if not host.is_alive(pid):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def links() -> set[str]:
    return set(os.listdir("/sys/class/net"))


Bystanders = tuple[NativeDriver, subprocess.Popen[bytes], pycontainer.Container, str]


@pytest.fixture
def bystanders(root: str, busybox_rootfs: Path) -> Iterator[Bystanders]:
    """A driver of *root*, a process and a detached container that nothing may happen to, and how long they sleep."""
    marker = f"{uuid.uuid4().int % 10**9 + 1000}"
    with contextlib.ExitStack() as stack:
        driver = NativeDriver(root)
        stack.callback(driver.close)
        process = stack.enter_context(subprocess.Popen(["sleep", marker]))
        stack.callback(process.kill)
        box = pycontainer.Container(
            ["sleep", marker], rootfs=busybox_rootfs, driver=driver, name="bystander", detach=True
        )
        stack.callback(remove_all, driver)
        yield driver, process, box, marker


def remove_all(driver: NativeDriver) -> None:
    """Every detached container that is still there."""
    for info in pycontainer.containers(driver):
        with contextlib.suppress(ContainerNotFoundError):
            pycontainer.get(info.id, driver).remove(force=True)


def test_chaos(root: str, busybox_rootfs: Path, start: Any, until: Any, bystanders: Bystanders) -> None:
    print(f"PYCONTAINER_CHAOS_SEED={SEED}")
    chance = random.Random(SEED)
    marker = f"{uuid.uuid4().int % 10**9 + 1000}"
    before_links, before_mounts = links(), {*host.mounts()}
    driver, process, detached, sleeping = bystanders
    attached = start(["sleep", sleeping])
    spared = int(host.status(detached.pid or 0)["PPid"])
    known = {*host.children(os.getpid())}
    killed = dict.fromkeys(("caller", "launcher", "monitor"), 0)
    bridged = False
    caller: Caller | None = None
    try:
        while sum(killed.values()) < ROUNDS:
            if caller is None:
                caller = Caller(root, busybox_rootfs, marker, chance.randrange(2**32))
                time.sleep(chance.random() * 0.3)  # importing nothing, but starting a launcher
            time.sleep(chance.random() * 0.06)
            victim = chance.choices(("caller", "launcher", "monitor"), (3, 3, 4))[0]
            if victim == "caller":
                caller.kill()
                caller = None
            elif victim == "launcher":
                candidates = [pid for pid in caller.launchers() if pid not in known]
                if not candidates:
                    continue
                parent = str(caller.pid)
                kill_if(candidates[0], lambda pid, parent=parent: host.status(pid)["PPid"] == parent)
            else:
                candidates = [pid for pid in caller.monitors() if pid != spared]
                if not candidates:
                    continue
                kill_if(chance.choice(candidates), caller.is_monitor)
            killed[victim] += 1
            bridged = bridged or f"pyc{marker}" in links()
            reap_orphans(known | ({caller.pid} if caller is not None else set()))
    finally:
        if caller is not None:
            caller.kill()
    print("killed:", killed)
    assert bridged, "no container has had a network, of which something could be left"

    # Containers of a dead caller that are attached end by themselves; of the others gc takes what has lost its monitor.
    def swept() -> bool:
        reap_orphans(known)
        pycontainer.gc(driver)
        for info in pycontainer.containers(driver):
            if info.id != "bystander":
                pycontainer.get(info.id, driver).remove(force=True)
        left = [name for name in os.listdir(f"{root}/containers") if name != "bystander"]
        return not (left or host.running(f"sleep\0{marker}") or host.running(f"sleep {marker}"))

    until(swept)
    # Launchers, monitors and what they had cloned ahead are orphans, and so ours.
    until(lambda: reap_orphans(known) or not {*host.children(os.getpid())} - known)
    until(lambda: pycontainer.gc(driver) or not [*filter(host._is_nobodys, host.launcher_directories())])
    assert links() - before_links == set()
    assert {*host.mounts()} - before_mounts == set()
    for box in (attached, pycontainer.get("bystander", driver)):
        assert box.poll() is None
        assert box.exec(["echo", "here"], capture_output=True).stdout == b"here\n"
    assert process.poll() is None
    assert detached.poll() is None
    assert len(host.running(sleeping)) == 3
    detached.remove(force=True)
    assert os.listdir(f"{root}/containers") == []
