"""Areas: further processes inside, and standing still."""

from __future__ import annotations

import errno
import os
import select
import time

import pytest

from pycontainer import Container, Feature, NotRunningError, SetupError, State
from pycontainer.testing.conformance.base import TIMEOUT, Area, eventually, is_alive, needs, read_until

__all__ = ["Exec", "Pause"]


class Exec(Area):
    """Docker's exec: a further process, confined as the first."""

    @needs(Feature.EXEC)
    def test_output_and_exit_code(self) -> None:
        box = self.start(self.payload.sleep())
        status, out, err = self.exec(box.id, self.payload.say("out", "err", 6))
        assert (status.exit_code, out, err) == (6, b"out", b"err")
        assert box.poll() is None

    @needs(Feature.EXEC)
    def test_input_of_it(self) -> None:
        box = self.start(self.payload.sleep())
        assert self.exec(box.id, self.payload.cat(), b"hello")[1] == b"hello"

    @needs(Feature.EXEC)
    def test_variables_of_it(self) -> None:
        box = self.start(self.payload.sleep(), env={"PATH": "/usr/bin:/bin", "A": "1"})
        assert self.exec(box.id, self.payload.variable("A"), env={"PATH": "/usr/bin:/bin", "A": "2"})[1] == b"2\n"

    @needs(Feature.EXEC)
    def test_directory_of_it(self) -> None:
        box = self.start(self.payload.sleep())
        with self.or_refused("process.working_dir"):
            assert self.exec(box.id, self.payload.directory(), cwd="/tmp")[1] == b"/tmp\n"

    @needs(Feature.EXEC)
    def test_user_of_it(self) -> None:
        box = self.start(self.payload.sleep())
        with self.or_refused("process.user"):
            assert self.exec(box.id, self.payload.ids(), user="1234:2345")[1] == b"1234 2345 2345\n"

    @needs(Feature.EXEC)
    def test_it_is_in_the_same_container(self) -> None:
        box = self.start(self.payload.sleep(), hostname="kit-exec")
        assert self.exec(box.id, self.payload.hostname())[1] == b"kit-exec\n"

    @needs(Feature.EXEC)
    def test_it_is_among_the_pids_and_ends_with_the_container(self) -> None:
        box = self.start(self.payload.sleep())
        process = self.start_exec(box.id, self.payload.sleep())
        assert process.pid in box.pids()
        box.kill()
        assert process.wait(TIMEOUT).signal == 9
        assert eventually(lambda: not is_alive(process.pid), 5)

    @needs(Feature.EXEC)
    def test_signals_to_it(self) -> None:
        box = self.start(self.payload.sleep())
        process = self.start_exec(box.id, self.payload.sleep())
        process.send_signal(15)
        assert process.wait(TIMEOUT).signal == 15
        assert box.poll() is None

    @needs(Feature.EXEC)
    def test_exec_of_a_program_that_does_not_exist(self) -> None:
        box = self.start(self.payload.sleep())
        with pytest.raises(SetupError) as caught:
            self.exec(box.id, [self.payload.missing])
        assert (caught.value.step, caught.value.errno) == ("execve", errno.ENOENT)
        assert box.poll() is None

    @needs(Feature.EXEC)
    def test_exec_only_in_a_running_one(self) -> None:
        box = self.start(self.payload.say())
        box.wait(TIMEOUT)
        for id in (box.id, "nobody"):
            with pytest.raises(NotRunningError):
                self.exec(id, self.payload.say())

    @needs(Feature.EXEC, Feature.PAUSE)
    def test_not_in_a_paused_one(self) -> None:
        box = self.start(self.payload.sleep())
        box.pause()
        with pytest.raises(NotRunningError):
            self.exec(box.id, self.payload.say())
        box.unpause()


class Pause(Area):
    """The freezer."""

    @needs(Feature.PAUSE)
    def test_it_stands_still_and_goes_on(self) -> None:
        box = self.counting()
        box.pause()
        assert self.state(box.id) is State.PAUSED
        assert self.tested.info(box.id).is_running
        self.drain(box)
        assert not self.counts(box, 0.2), "it went on while it was paused"
        box.unpause()
        assert self.state(box.id) is State.RUNNING
        assert self.counts(box, TIMEOUT), "it did not go on"

    @needs(Feature.PAUSE)
    def test_a_paused_one_can_be_killed(self) -> None:
        box = self.counting()
        box.pause()
        box.kill()
        assert box.wait(TIMEOUT) == -9

    @needs(Feature.PAUSE)
    def test_a_paused_one_can_be_closed(self) -> None:
        with Container(self.payload.sleep(), driver=self.tested, rootfs=self.root) as box:
            box.pause()
        assert box.status is not None

    @needs(Feature.PAUSE)
    def test_pause_only_a_running_one(self) -> None:
        box = self.start(self.payload.say())
        box.wait(TIMEOUT)
        for id in (box.id, "nobody"):
            with pytest.raises(NotRunningError):
                self.tested.pause(id)

    def counting(self) -> Container:
        """One that prints a dot every now and then."""
        box = self.start(self.payload.count(), stdout=-1)
        assert box.stdout is not None
        assert read_until(box.stdout, b".") == b"."
        return box

    def drain(self, box: Container) -> None:
        """Read what it had printed before it stood still."""
        time.sleep(0.05)
        while self.counts(box, 0):
            pass

    def counts(self, box: Container, timeout: float) -> bool:
        """Whether it prints something within *timeout* seconds."""
        assert box.stdout is not None
        poll = select.poll()
        poll.register(box.stdout.fileno(), select.POLLIN)
        return bool(poll.poll(timeout * 1000)) and bool(os.read(box.stdout.fileno(), 65536))
