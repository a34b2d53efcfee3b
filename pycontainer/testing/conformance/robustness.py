"""Areas: many at once, and nothing left behind."""

from __future__ import annotations

import os
import signal as signals
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest

from pycontainer import AlreadyExistsError, Container, ContainerError, State
from pycontainer.testing.conformance.base import TIMEOUT, Area, eventually, is_alive

__all__ = ["Concurrency", "Leaks"]


class Concurrency(Area):
    """Any verb from any thread."""

    def test_many_at_once(self) -> None:
        with ThreadPoolExecutor(8) as pool:
            done = list(pool.map(lambda number: self.run(self.payload.say(str(number), code=number)), range(24)))
        assert [(each.stdout, each.returncode) for each in done] == [(str(number), number) for number in range(24)]

    def test_one_does_not_wait_for_another(self) -> None:
        self.start(self.payload.sleep())
        began = time.monotonic()
        assert self.run(self.payload.say("next")).stdout == "next"
        assert time.monotonic() - began < TIMEOUT / 2

    def test_many_wait_for_the_same(self) -> None:
        process = self.start_bare(self.command(self.payload.cat()))
        with ThreadPoolExecutor(4) as pool:
            statuses = list(pool.map(lambda _: process.wait(TIMEOUT), range(4)))
        assert statuses == [process.poll()] * 4
        assert statuses[0].exit_code == 0

    def test_killed_by_another_thread(self) -> None:
        box = self.start(self.payload.sleep())
        timer = threading.Timer(0.1, box.kill)
        timer.start()
        assert box.wait(TIMEOUT) == -signals.SIGKILL
        timer.join()

    def test_a_verb_is_for_one_container_alone(self) -> None:
        first, second = (self.start_ready(self.payload.trap(signals.SIGTERM, 5)) for _ in range(2))
        assert set(first.pids()).isdisjoint(second.pids())
        self.tested.kill(first.id, signals.SIGTERM)
        assert first.wait(TIMEOUT) == 5
        time.sleep(0.05)
        assert second.poll() is None

    def test_closing_one_leaves_the_others(self) -> None:
        """And so does asking about it then, for which a driver may have lost the way to whoever looks after it."""
        first, second, third = (self.start_bare(self.command(self.payload.sleep())) for _ in range(3))
        first.close()
        for _ in range(10):
            self.tested.info(first.id)
            time.sleep(0.01)
        assert second.poll() is None
        assert self.tested.info(third.id).is_running
        self.tested.kill(second.id, signals.SIGKILL)
        assert second.wait(TIMEOUT).signal == signals.SIGKILL

    def test_of_many_with_the_same_id_one_wins(self) -> None:
        def attempt(_: int) -> bool:
            try:
                self.start(self.payload.sleep(), name="kit-same")
            except AlreadyExistsError:
                return False
            return True

        with ThreadPoolExecutor(6) as pool:
            assert sum(pool.map(attempt, range(6))) == 1
        assert self.state("kit-same") is State.RUNNING


class Leaks(Area):
    """Descriptors, processes and threads of ours; and what is left when we are gone."""

    def test_nothing_grows(self) -> None:
        def some() -> None:
            for code in range(3):
                self.run(self.payload.say("x", code=code))
            with pytest.raises(ContainerError):
                self.run([self.payload.missing])
            with pytest.raises(ContainerError):
                self.run(self.payload.say(), user="no-such-user")
            self.start_bare(self.command(self.payload.sleep())).close()

        some()  # what a driver keeps for its own use is there afterwards
        before = _descriptors(), _children()
        some()
        some()
        self.stack.close()
        assert eventually(lambda: _descriptors() <= before[0] and _children() <= before[1], 5), (
            f"descriptors {before[0]} and children {before[1]} have become {_descriptors()} and {_children()}"
        )

    def test_no_descriptor_of_ours_gets_in(self) -> None:
        reader, writer = os.pipe()
        os.set_inheritable(writer, True)
        try:
            assert self.run(self.payload.descriptors()).stdout == "0\n"
        finally:
            os.close(reader)
            os.close(writer)

    def test_nothing_outlives_its_container(self) -> None:
        box = self.start_ready(self.payload.fork(3))
        pids = box.pids()
        box.close()
        assert eventually(lambda: not any(map(is_alive, pids)), 5)

    def test_nothing_outlives_its_maker(self) -> None:
        """The process that started it is killed, without a chance to clean up."""
        reader, writer = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads; the child does what it can
            maker = os.fork()
        if maker == 0:
            try:
                box = Container(self.payload.sleep(), driver=self.tested, rootfs=self.root)
                os.write(writer, " ".join(map(str, box.pids())).encode())
                time.sleep(TIMEOUT)
            finally:
                os._exit(1)
        os.close(writer)
        with os.fdopen(reader, "rb") as file:
            pids = [int(pid) for pid in os.read(file.fileno(), 4096).split()]
        os.kill(maker, signals.SIGKILL)
        os.waitpid(maker, 0)
        assert pids, f"{sys.executable} could not start a container after a fork"
        assert eventually(lambda: not any(map(is_alive, pids)), 5)


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _children() -> int:
    """Children, zombies included, of every thread of this process."""
    found = 0
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/children", "rb") as file:
                found += len(file.read().split())
        except OSError:
            continue
    return found
