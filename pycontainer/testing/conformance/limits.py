"""Areas: limits, what was used, and other limits while it runs."""

from __future__ import annotations

import os
import re
import time

import pytest

from pycontainer import Feature, InvalidCommandError, NotRunningError, Resources
from pycontainer.testing.conformance.base import TIMEOUT, Area, eventually, needs

__all__ = ["Limits", "Stats", "Update"]

MEBIBYTE = 1 << 20


class Limits(Area):
    """What a container may not exceed."""

    @needs(Feature.MEMORY)
    def test_memory(self) -> None:
        done = self.run(self.payload.exhaust(), memory="32m", memory_swap="32m")
        assert done.returncode != 0
        assert done.status.oom_killed
        assert "memory" in done.status.reason

    @needs(Feature.MEMORY)
    def test_enough_memory(self) -> None:
        done = self.run(self.payload.say("fine"), memory="64m")
        assert (done.stdout, done.status.oom_killed) == ("fine", False)

    @needs(Feature.PIDS)
    def test_processes(self) -> None:
        done = self.run(self.payload.fork(40), pids_limit=10)
        assert "ready" not in done.stdout
        assert done.returncode != 0

    @needs(Feature.PIDS)
    def test_enough_processes(self) -> None:
        self.start_ready(self.payload.fork(5), pids_limit=30)

    @needs(Feature.CPU)
    def test_processor_time(self) -> None:
        used = self.burn(cpus=0.1)
        assert used < 0.3, f"a tenth of a processor was {used:.0%} of one"

    @needs(Feature.CPUSET)
    def test_processors(self) -> None:
        wanted = str(max(os.sched_getaffinity(0)))
        assert self.run(self.payload.processors(), cpuset_cpus=wanted).stdout == f"{wanted}\n"

    @needs(Feature.MEMORY, Feature.PIDS, Feature.CPU)
    def test_effective_limits(self) -> None:
        limits = self.receipt_of(memory="64m", pids_limit=50, cpus=0.5).limits
        assert (limits.memory, limits.pids, limits.cpus) == (64 << 20, 50, 0.5)

    def burn(self, **keywords: object) -> float:
        """How much of a processor a busy loop gets."""
        began = time.monotonic()  # its way to the loop counts, too: where processors are emulated that is long
        box = self.start_ready(self.payload.burn(), **keywords)
        time.sleep(0.5)
        box.terminate()
        out, _ = box.communicate(timeout=TIMEOUT)
        took = time.monotonic() - began
        user, system = re.findall(rb"(\d+)m([\d.]+)s", out)[:2]
        return sum(60 * int(minutes) + float(seconds) for minutes, seconds in (user, system)) / took


class Stats(Area):
    """What a container has used."""

    @needs(Feature.STATS)
    def test_used_memory(self) -> None:
        box = self.start_ready(self.payload.hold(16 * MEBIBYTE))
        assert 16 * MEBIBYTE <= box.stats().memory.usage < 1024 * MEBIBYTE

    @needs(Feature.STATS, Feature.MEMORY)
    def test_the_limit_is_reported(self) -> None:
        box = self.start(self.payload.sleep(), memory="64m")
        assert box.stats().memory.limit == 64 * MEBIBYTE

    @needs(Feature.STATS)
    def test_counted_processes(self) -> None:
        box = self.start_ready(self.payload.fork(3))
        assert box.stats().pids.current >= 4

    @needs(Feature.STATS)
    def test_processor_time_grows(self) -> None:
        box = self.start_ready(self.payload.burn())
        first = box.stats()
        assert eventually(lambda: box.stats().cpu.usage > first.cpu.usage + 20_000_000)
        assert box.stats().time > first.time

    @needs(Feature.STATS)
    def test_stats_only_of_a_running_one(self) -> None:
        box = self.start(self.payload.say())
        box.wait(TIMEOUT)
        for id in (box.id, "nobody"):
            with pytest.raises(NotRunningError):
                self.tested.stats(id)


class Update(Area):
    """Other limits for a running container."""

    @needs(Feature.UPDATE, Feature.PIDS, Feature.EXEC)
    def test_fewer_processes(self) -> None:
        box = self.start(self.payload.sleep(), pids_limit=100)
        box.update(pids_limit=10)
        status, out, _ = self.exec(box.id, self.payload.fork(40))
        assert status.exit_code != 0
        assert b"ready" not in out

    @needs(Feature.UPDATE, Feature.MEMORY, Feature.STATS)
    def test_more_memory(self) -> None:
        box = self.start(self.payload.sleep(), memory="64m")
        box.update(memory="128m", memory_swap="256m")
        assert box.stats().memory.limit == 128 * MEBIBYTE

    @needs(Feature.UPDATE, Feature.MEMORY, Feature.PIDS, Feature.STATS)
    def test_the_others_stay(self) -> None:
        box = self.start(self.payload.sleep(), memory="64m", pids_limit=50)
        box.update(pids_limit=60)
        stats = box.stats()
        assert (stats.memory.limit, stats.pids.limit) == (64 * MEBIBYTE, 60)

    @needs(Feature.UPDATE, Feature.MEMORY, Feature.STATS)
    def test_one_that_cannot_be_applied(self) -> None:
        """Less memory than is used: refused or reclaimed by the kernel, never half of it."""
        box = self.start_ready(self.payload.hold(32 * MEBIBYTE), memory="128m", memory_swap="128m")
        try:
            box.update(memory=4096, memory_swap=4096)
        except InvalidCommandError:
            assert box.stats().memory.limit == 128 * MEBIBYTE
        else:
            assert eventually(lambda: box.poll() is not None or box.stats().memory.limit == 4096)

    @needs(Feature.UPDATE)
    def test_update_only_of_a_running_one(self) -> None:
        with pytest.raises(NotRunningError):
            self.tested.update("nobody", Resources(pids_limit=10))
