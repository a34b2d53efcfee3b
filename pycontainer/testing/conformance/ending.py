"""Areas: signals, and how the end is reported."""

from __future__ import annotations

import signal as signals

import pytest

from pycontainer import ContainerExitError, Feature
from pycontainer.testing.conformance.base import TIMEOUT, Area, eventually, is_alive, needs

__all__ = ["ExitStatuses", "Signals"]


class Signals(Area):
    """Kill and Terminate."""

    @pytest.mark.parametrize("signal", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"])
    def test_a_handler_gets_it(self, signal: str) -> None:
        number = signals.Signals[signal]
        box = self.start_ready(self.payload.trap(number, 7))
        box.send_signal(number)
        assert box.wait(TIMEOUT) == 7

    def test_by_the_id(self) -> None:
        box = self.start_ready(self.payload.trap(signals.SIGTERM, 8))
        self.tested.kill(box.id, signals.SIGTERM)
        assert box.wait(TIMEOUT) == 8

    def test_stop_asks_first(self) -> None:
        box = self.start_ready(self.payload.trap(signals.SIGTERM, 9))
        assert box.stop(TIMEOUT) == 9

    def test_stop_does_not_ask_for_ever(self) -> None:
        box = self.start_ready(self.payload.ready())
        assert box.stop(0.1) in (-signals.SIGTERM, -signals.SIGKILL)

    def test_terminate_ends_everything(self) -> None:
        box = self.start_ready(self.payload.fork(3))
        pids = box.pids()
        self.tested.terminate(box.id)
        assert box.wait(TIMEOUT) == -signals.SIGKILL
        assert eventually(lambda: not any(map(is_alive, pids)), 5)

    @needs(Feature.INIT)
    def test_an_init_lets_it_be_ended(self) -> None:
        """To PID 1 a signal without a handler does nothing (pid_namespaces(7)); with an init it ends the payload."""
        box = self.start_ready(self.payload.ready(), init=True)
        box.terminate()
        box.wait(TIMEOUT)
        assert box.status is not None
        assert box.status.shell_code == 128 + signals.SIGTERM


class ExitStatuses(Area):
    """What comes back."""

    @pytest.mark.parametrize("code", [0, 1, 42, 125, 126, 127, 137, 255])
    def test_an_exit_code(self, code: int) -> None:
        done = self.run(self.payload.say(code=code))
        assert (done.status.exit_code, done.status.signal, done.returncode) == (code, None, code)

    def test_a_signal(self) -> None:
        box = self.start(self.payload.sleep())
        box.kill()
        assert box.wait(TIMEOUT) == -signals.SIGKILL
        assert box.status is not None
        assert (box.status.exit_code, box.status.signal) == (None, signals.SIGKILL)
        assert box.status.shell_code == 137

    def test_a_signal_in_a_child_is_an_exit_code(self) -> None:
        status = self.run(self.payload.kill_itself()).status
        assert (status.exit_code, status.signal) == (137, None)

    def test_it_is_explained(self) -> None:
        assert self.run(self.payload.say(code=3)).status.reason

    def test_memory_is_not_blamed_without_cause(self) -> None:
        box = self.start(self.payload.sleep())
        box.kill()
        box.wait(TIMEOUT)
        assert box.status is not None
        assert not box.status.oom_killed

    def test_check_raises(self) -> None:
        with pytest.raises(ContainerExitError) as caught:
            self.run(self.payload.say("out", code=4), check=True)
        assert (caught.value.returncode, caught.value.stdout) == (4, "out")
