"""Area: from start to end, and the states between."""

from __future__ import annotations

import errno
import os
import select
import time

import attrs
import pytest

from pycontainer import (
    AlreadyExistsError,
    Command,
    Container,
    ContainerError,
    ContainerProcess,
    Feature,
    NotRunningError,
    SetupError,
    State,
    WaitTimeoutError,
)
from pycontainer.stdio import Streams
from pycontainer.testing.conformance.base import TIMEOUT, Area, eventually, is_alive, needs

__all__ = ["Lifecycle"]


class Lifecycle(Area):
    """Docker 0.9's Run, Info and GetPidsForContainer, and what start and create promise."""

    def test_start_returns_a_running_container(self) -> None:
        command = self.command(self.payload.sleep())
        process = self.start_bare(command)
        assert process.id == command.id
        assert process.pid > 0
        assert process.poll() is None
        info = self.tested.info(command.id)
        assert (info.id, info.state, info.pid, info.is_running) == (command.id, State.RUNNING, process.pid, True)

    def test_its_pids_are_known(self) -> None:
        box = self.start(self.payload.sleep())
        assert box.pid in box.pids()

    def test_children_are_among_its_pids(self) -> None:
        box = self.start_ready(self.payload.fork(3))
        assert len(set(box.pids())) >= 4

    def test_the_end_is_final(self) -> None:
        command = self.command(self.payload.say(code=3))
        process = self.start_bare(command)
        status = process.wait(TIMEOUT)
        assert status.exit_code == 3
        assert process.wait(TIMEOUT) == process.wait(0) == process.poll() == status
        assert not self.tested.info(command.id).is_running
        assert self.state(command.id) is State.STOPPED

    def test_nothing_is_signalled_after_the_end(self) -> None:
        process = self.start_bare(self.command(self.payload.say()))
        process.wait(TIMEOUT)
        process.send_signal(15)
        for verb in (
            lambda: self.tested.kill(process.id, 15),
            lambda: self.tested.terminate(process.id),
            lambda: self.tested.get_pids_for_container(process.id),
        ):
            with pytest.raises(NotRunningError):
                verb()

    def test_an_unknown_id_is_not_running(self) -> None:
        assert self.state("nobody") is State.STOPPED
        for verb in (
            lambda: self.tested.kill("nobody", 15),
            lambda: self.tested.terminate("nobody"),
            lambda: self.tested.get_pids_for_container("nobody"),
        ):
            with pytest.raises(NotRunningError):
                verb()

    def test_cleaning_is_idempotent(self) -> None:
        box = self.start(self.payload.say())
        box.wait(TIMEOUT)
        self.tested.clean(box.id)
        self.tested.clean("nobody")

    def test_an_id_exists_once(self) -> None:
        first = self.start(self.payload.sleep())
        with pytest.raises(AlreadyExistsError):
            self.start(self.payload.sleep(), name=first.id)
        assert first.poll() is None
        assert self.state(first.id) is State.RUNNING

    def test_an_id_is_free_again_after_the_end(self) -> None:
        first = self.start(self.payload.say(code=1))
        first.wait(TIMEOUT)
        second = self.start(self.payload.say(code=2), name=first.id)
        assert second.wait(TIMEOUT) == 2

    def test_a_timeout_leaves_it_running(self) -> None:
        process = self.start_bare(self.command(self.payload.sleep()))
        began = time.monotonic()
        with pytest.raises(WaitTimeoutError):
            process.wait(0.1)
        assert 0.1 <= time.monotonic() - began < TIMEOUT / 2
        assert process.poll() is None

    def test_a_run_with_a_timeout_leaves_nothing(self) -> None:
        with pytest.raises(WaitTimeoutError):
            self.run(self.payload.sleep(), timeout=0.1, name="kit-timeout")
        assert self.state("kit-timeout") is State.STOPPED

    @pytest.mark.parametrize("timeout", [1e7, float("inf")])
    def test_a_timeout_may_be_far_away(self, timeout: float) -> None:
        """poll(2) counts milliseconds in an int: 24 days."""
        process = self.start_bare(self.command(self.payload.say(code=4)))
        assert process.wait(timeout).exit_code == 4
        assert self.run(self.payload.say(code=5), timeout=timeout).returncode == 5

    def test_an_id_is_free_again_after_a_start_that_took_too_long(self) -> None:
        """Also while somebody keeps the error, which leads to what could not be started."""
        command = self.command(self.payload.sleep(), name=f"kit-late-{os.urandom(4).hex()}")
        kept: list[WaitTimeoutError] = []
        with Streams(stdin=-3, stdout=-3, stderr=-3) as theirs:
            late = attrs.evolve(theirs.stdio, deadline=time.monotonic())
            try:
                self.tested.start(command, late).close()  # it may be quicker than that
            except WaitTimeoutError as error:
                kept.append(error)
        again: list[ContainerProcess] = []

        def start() -> bool:
            try:
                again.append(self.start_bare(command))
            except AlreadyExistsError:  # the first one is about to end
                return False
            return True

        assert eventually(start), f"its id is still taken, with the error {kept!r}"
        assert again[0].poll() is None
        assert self.tested.info(command.id).pid == again[0].pid

    def test_fileno_is_readable_at_the_end_and_not_before(self) -> None:
        process = self.start_bare(self.command(self.payload.sleep()))
        process.poll()
        poll = select.poll()
        poll.register(process.fileno(), select.POLLIN)
        assert poll.poll(50) == []
        self.tested.terminate(process.id)
        deadline = time.monotonic() + TIMEOUT
        while process.poll() is None:  # it may be readable for other news as well
            assert time.monotonic() < deadline, "poll() has nothing to say although fileno() is readable"
            assert poll.poll(TIMEOUT * 1000), "fileno() is not readable although it ended"

    def test_closing_kills(self) -> None:
        """Asked of the kernel: what a driver says of a container that it has let go of may be true or not."""
        process = self.start_bare(self.command(self.payload.sleep()))
        pids = {process.pid, *self.tested.get_pids_for_container(process.id)}
        process.close()
        assert eventually(lambda: not any(map(is_alive, pids))), f"of {sorted(pids)} something lives"
        assert eventually(lambda: self.state(process.id) is State.STOPPED)

    def test_leaving_the_block_kills(self) -> None:
        with Container(self.payload.sleep(), driver=self.tested, rootfs=self.root) as box:
            assert self.state(box.id) is State.RUNNING
        assert box.status is not None
        assert self.state(box.id) is State.STOPPED

    def test_a_program_that_does_not_exist(self) -> None:
        with pytest.raises(SetupError) as caught:
            self.run([self.payload.missing], name="kit-missing")
        assert (caught.value.step, caught.value.errno) == ("execve", errno.ENOENT)
        assert self.state("kit-missing") is State.STOPPED

    def test_run_calls_back_once_and_returns_the_status(self) -> None:
        """Docker 0.9's ``Run(command, pipes, startCallback)``."""
        calls: list[tuple[Command, int]] = []
        command = self.command(self.payload.say(code=5))
        status = self.tested.run(command, None, lambda command, pid: calls.append((command, pid)))
        assert status.exit_code == 5
        assert [called for called, _ in calls] == [command]
        assert calls[0][1] > 0

    def test_a_callback_that_raises_ends_it(self) -> None:
        def fail(command: Command, pid: int) -> None:
            raise LookupError

        command = self.command(self.payload.sleep())
        with pytest.raises(LookupError):
            self.tested.run(command, None, fail)
        assert eventually(lambda: self.state(command.id) is State.STOPPED)

    # -- create and start, in two steps

    @needs(Feature.CREATE)
    def test_a_created_one_has_not_begun(self) -> None:
        box = self.start(self.payload.say("begun"), stdout=-1, start=False)
        box.create()
        assert self.state(box.id) is State.CREATED
        assert self.tested.info(box.id).is_running
        assert box.pid is not None
        with pytest.raises(WaitTimeoutError):
            box.wait(0.05)
        box.start()
        assert box.communicate(timeout=TIMEOUT) == (b"begun", None)

    @needs(Feature.CREATE)
    def test_a_created_one_can_be_killed(self) -> None:
        box = self.start(self.payload.sleep(), start=False)
        box.create()
        box.kill()
        assert eventually(lambda: box.poll() is not None)
        with pytest.raises(ContainerError):
            box.start()
        assert self.state(box.id) is State.STOPPED

    @needs(Feature.CREATE)
    def test_it_starts_only_once(self) -> None:
        box = self.start(self.payload.sleep(), start=False)
        box.create()
        box.start()
        with pytest.raises(ContainerError):
            box.start()
        assert box.poll() is None
        assert self.state(box.id) is State.RUNNING

    @needs(Feature.CREATE)
    def test_a_program_that_does_not_exist_fails_at_the_latest_at_its_start(self) -> None:
        def create_and_start() -> None:
            box = self.start([self.payload.missing], start=False)
            box.create()
            box.start()

        with pytest.raises(SetupError) as caught:
            create_and_start()
        assert (caught.value.step, caught.value.errno) == ("execve", errno.ENOENT)
