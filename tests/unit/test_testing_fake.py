"""The fake driver, as a user's test has it, and ``wait_for``."""

from __future__ import annotations

import contextlib
import errno
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

import pycontainer
from pycontainer import Container, Feature, Probe, SetupError
from pycontainer.testing import FakeContainer, FakeDriver, LoggedContainer, Outcome, wait_for


@pytest.fixture
def fake() -> FakeDriver:
    return FakeDriver()


# -- outcomes


def test_output_and_exit_code(fake: FakeDriver) -> None:
    fake.script("backup", Outcome(stdout="3 files\n", stderr=b"\xff", exit_code=3))
    done = pycontainer.run(["backup", "--all"], driver=fake, capture_output=True)
    assert (done.stdout, done.stderr, done.returncode) == (b"3 files\n", b"\xff", 3)


def test_out_of_memory(fake: FakeDriver) -> None:
    fake.script("hog", Outcome(oom_killed=True))
    status = pycontainer.run(["hog"], driver=fake).status
    assert (status.signal, status.oom_killed) == (signal.SIGKILL, True)
    assert "out of memory" in status.reason


def test_a_signal(fake: FakeDriver) -> None:
    fake.script("crash", Outcome(signal=signal.SIGSEGV))
    assert pycontainer.run(["crash"], driver=fake).returncode == -signal.SIGSEGV


def test_a_hang(fake: FakeDriver) -> None:
    fake.script("hang", Outcome(stdout="begun", hang=True))
    with pytest.raises(pycontainer.WaitTimeoutError) as caught:
        pycontainer.run(["hang"], driver=fake, timeout=0.05, capture_output=True)
    assert caught.value.stdout == b"begun"


def test_a_slow_start_and_a_slow_run(fake: FakeDriver) -> None:
    fake.script("slow", Outcome(start_delay=0.05, delay=0.05))
    began = time.monotonic()
    with Container(["slow"], driver=fake) as box:
        assert time.monotonic() - began >= 0.05
        box.wait(10)
    assert time.monotonic() - began >= 0.1


def test_a_start_that_fails(fake: FakeDriver) -> None:
    fake.script("x", Outcome(start_error=SetupError("mount proc on /proc", errno.EPERM)))
    with pytest.raises(SetupError, match="mount proc"):
        pycontainer.run(["x"], driver=fake)


def test_one_after_the_other(fake: FakeDriver) -> None:
    fake.script("flaky", Outcome(exit_code=1), Outcome(exit_code=2), Outcome())
    assert [pycontainer.run(["flaky"], driver=fake).returncode for _ in range(4)] == [1, 2, 0, 0]


def test_any_program(fake: FakeDriver) -> None:
    with pytest.raises(SetupError, match="execve anything: ENOENT"):
        pycontainer.run(["anything"], driver=fake)
    fake.script("*", Outcome(exit_code=4))
    assert pycontainer.run(["anything"], driver=fake).returncode == 4


def test_a_program_in_python(fake: FakeDriver) -> None:
    def greet(box: FakeContainer) -> int:
        box.write(f"{box.environment['NAME']} in {box.cwd} as {box.user.uid}\n")
        return len(box.read())

    fake.script("greet", greet)
    done = pycontainer.run(
        ["greet"], driver=fake, env={"NAME": "x"}, cwd="/tmp", user="7:8", input="four", text=True, capture_output=True
    )
    assert (done.stdout, done.returncode) == ("x in /tmp as 7\n", 4)


def test_a_mistake_in_a_program_is_seen(fake: FakeDriver) -> None:
    fake.script("wrong", lambda box: [][1])  # type: ignore[misc]
    done = pycontainer.run(["wrong"], driver=fake, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (255, "IndexError: list index out of range\n")


# -- failing verbs, and what was called


@pytest.mark.parametrize("verb", ["pause", "stats", "terminate"])
def test_a_verb_that_fails(fake: FakeDriver, verb: str) -> None:
    fake.fail(verb, SetupError(verb, errno.EBUSY))
    with Container(["sleep", "100"], driver=fake) as box:
        call = getattr(box, "kill" if verb == "terminate" else verb)
        with pytest.raises(SetupError, match="EBUSY"):
            call()
        call()


def test_a_clean_up_that_fails_is_a_note(fake: FakeDriver) -> None:
    fake.script("x", Outcome(start_error=SetupError("first", errno.EPERM)))
    fake.fail("clean", OSError("second"))
    with pytest.raises(SetupError) as caught:
        pycontainer.run(["x"], driver=fake)
    assert "second" in caught.value.__notes__[0]  # type: ignore[attr-defined]


def test_a_verb_that_does_not_exist(fake: FakeDriver) -> None:
    with pytest.raises(AttributeError):
        fake.fail("paus", OSError())


def test_calls_are_recorded(fake: FakeDriver) -> None:
    with Container(["sleep", "100"], driver=fake, name="box", memory="64m") as box:
        box.update(pids_limit=5)
        fake.kill("box", 15)
    assert [(call.verb, call.id) for call in fake.calls] == [
        (verb, "box") for verb in ("start", "update", "kill", "terminate", "clean")
    ]
    assert fake.calls[0].arguments["command"].resources.memory == 64 << 20
    assert fake.calls[1].arguments["resources"].pids_limit == 5
    assert fake.calls[2].arguments == {"signal": 15}


def test_it_declares_what_it_is_told() -> None:
    fake = FakeDriver(features={Feature.HOST_ROOTFS}, probe=Probe("fake", False, cause="because"))
    assert not fake.probe().usable
    with pytest.raises(pycontainer.UnsupportedError):
        pycontainer.run(["true"], driver=fake, memory="64m")


def test_it_can_be_the_default(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYCONTAINER_DRIVER", "another")
    with fake.installed("mine"):
        assert pycontainer.get_driver() is fake
        assert pycontainer.get_driver("mine") is fake
    with pytest.raises(pycontainer.DriverNotFoundError, match="another"):
        pycontainer.get_driver()


# -- wait_for


def test_wait_for_a_callable() -> None:
    answers = iter([None, 0, "now"])
    assert wait_for(lambda: next(answers), interval=0.001) == "now"


def test_wait_for_says_why_not() -> None:
    def never() -> bool:
        raise ConnectionRefusedError("nobody there")

    with pytest.raises(TimeoutError, match=r"never did not come within 0.05 s; the last try: .*nobody there"):
        wait_for(never, timeout=0.05)


def test_wait_for_a_file(tmp_path: Path) -> None:
    timer = threading.Timer(0.05, (tmp_path / "file").touch)
    timer.start()
    assert wait_for(file=tmp_path / "file", timeout=10)
    timer.join()


def test_wait_for_a_port() -> None:
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
        assert wait_for(port=port, timeout=10)
    with pytest.raises(TimeoutError, match=f"port {port} did not come"):
        wait_for(port=port, timeout=0.05)


def test_wait_for_a_log_line(fake: FakeDriver) -> None:
    def serve(box: FakeContainer) -> None:
        box.write("starting\n")
        box.sleep(0.05)
        box.write_error("ready to serve\n")
        box.sleep()

    fake.script("serve", serve)
    with LoggedContainer(["serve"], driver=fake) as box:
        assert wait_for(log=r"^ready", container=box, timeout=10)
        assert (box.output, box.errors) == ("starting\n", "ready to serve\n")


def test_wait_for_stops_when_the_container_has_ended(fake: FakeDriver) -> None:
    fake.script("x", Outcome(stdout="last words", exit_code=3))
    with LoggedContainer(["x"], driver=fake) as box:
        box.wait(10)
        assert wait_for(log="last words", container=box)
        with pytest.raises(TimeoutError, match=r"'ready' did not come: container .* exited with code 3"):
            wait_for(log="ready", container=box, timeout=30)


def test_wait_for_one_thing() -> None:
    with pytest.raises(TypeError, match="one thing"):
        wait_for(port=1, log="x")
    with pytest.raises(TypeError, match="whose log"):
        wait_for(log="x")


@pytest.mark.root
def test_wait_for_inside_a_container() -> None:
    script = (
        "import socket, time; time.sleep(0.1); open('/tmp/file', 'w').close(); "
        "server = socket.create_server(('127.0.0.1', 8123)); time.sleep(100)"
    )
    driver = pycontainer.get_driver("native")
    with contextlib.closing(driver), LoggedContainer(["python3", "-c", script], driver=driver) as box:
        assert wait_for(file="/tmp/file", container=box, timeout=10)
        assert wait_for(port=8123, container=box, timeout=10)
        assert wait_for(file="/tmp", container=box, timeout=1)
        with pytest.raises(TimeoutError):
            wait_for(port=8123, timeout=0.1)  # it is the container's network, not the host's


def test_a_start_that_takes_its_time_is_given_up() -> None:
    fake = FakeDriver()
    fake.script("job", Outcome(start_delay=60))
    began = time.monotonic()
    with pytest.raises(pycontainer.WaitTimeoutError):
        pycontainer.run(["job"], driver=fake, timeout=0.1)
    box = pycontainer.Container(["job"], driver=fake, start=False)
    killer = threading.Timer(0.1, box.kill)
    killer.start()
    with pytest.raises(pycontainer.NotRunningError):
        box.start()
    killer.join()
    assert time.monotonic() - began < 10


def test_wait_for_a_log_that_nobody_can_see(fake: FakeDriver) -> None:
    began = time.monotonic()
    box = LoggedContainer(["sleep", "9"], driver=fake, stdout=pycontainer.PIPE)
    with box, pytest.raises(ValueError, match="stdout goes elsewhere"):
        wait_for(log="x", container=box)
    plain = pycontainer.Container(["sleep", "9"], driver=fake)
    with plain, pytest.raises(TypeError, match="a Container has no log"):
        wait_for(log="x", container=plain)  # type: ignore[arg-type]
    assert time.monotonic() - began < 5
