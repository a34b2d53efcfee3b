"""Streams, pipes and terminals, with real processes and without root."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import signal
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pycontainer
from pycontainer import Container, _exchange, lifecycle
from pycontainer._exchange import Capture, Flow, pump
from pycontainer.command import Command
from pycontainer.driver import ExitStatus, Stdio
from pycontainer.errors import InvalidCommandError
from pycontainer.lifecycle import Lifecycle
from pycontainer.stdio import DEVNULL, PIPE, STDOUT, Pipes, Streams, TtyTerminal

from .doubles import SpawnDriver, nothing_left


@pytest.fixture(autouse=True)
def driver() -> Iterator[SpawnDriver]:
    with nothing_left(SpawnDriver()) as driver:
        yield driver


def sh(script: str, *arguments: str, **keywords: Any) -> Command:
    return Command.of(["sh", "-c", script, "sh", *arguments], **keywords)


# -- Pipes, and Docker 0.9's Run


def test_run_returns_the_status(driver: SpawnDriver) -> None:
    status = lifecycle.run(driver, sh("exit 3"))
    assert isinstance(status, ExitStatus)
    assert status.exit_code == 3


def test_the_callers_own_stdout_and_stderr_are_the_default(
    driver: SpawnDriver, capfd: pytest.CaptureFixture[str]
) -> None:
    lifecycle.run(driver, sh("echo out; echo err >&2"))
    assert capfd.readouterr() == ("out\n", "err\n")


def test_stdin_is_empty_by_default(driver: SpawnDriver) -> None:
    output = io.BytesIO()
    lifecycle.run(driver, sh("readlink /proc/self/fd/0; wc -c"), Pipes(stdout=output))
    assert output.getvalue().split() == [b"/dev/null", b"0"]


@pytest.mark.parametrize("kind", ["descriptor", "file", "file object without a descriptor"])
def test_kinds_of_streams(driver: SpawnDriver, tmp_path: Path, kind: str) -> None:
    (tmp_path / "in").write_bytes(b"text")
    with open(tmp_path / "in", "rb") as stdin, open(tmp_path / "out", "w+b") as stdout:
        memory = io.BytesIO()
        streams: dict[str, tuple[Any, Any]] = {
            "descriptor": (stdin.fileno(), stdout.fileno()),
            "file": (stdin, stdout),
            "file object without a descriptor": (io.BytesIO(b"text"), memory),
        }
        lifecycle.run(driver, sh("cat; echo error >&2"), Pipes(*streams[kind], stderr=STDOUT))
        assert memory.getvalue() + (tmp_path / "out").read_bytes() == b"texterror\n"


def test_stderr_by_itself(driver: SpawnDriver) -> None:
    output, error = io.BytesIO(), io.BytesIO()
    lifecycle.run(driver, sh("echo out; echo err >&2"), Pipes(None, output, error))
    assert (output.getvalue(), error.getvalue()) == (b"out\n", b"err\n")


def test_devnull(driver: SpawnDriver) -> None:
    error = io.BytesIO()
    script = "for i in 0 1; do if [ /dev/fd/$i -ef /dev/null ]; then echo null >&2; fi; done"
    lifecycle.run(driver, sh(script), Pipes(DEVNULL, DEVNULL, error))
    assert error.getvalue() == b"null\n" * 2


def test_more_than_a_pipe_holds_goes_both_ways(driver: SpawnDriver) -> None:
    data = os.urandom(1 << 20)
    output = io.BytesIO()
    lifecycle.run(driver, sh("cat"), Pipes(io.BytesIO(data), output))
    assert output.getvalue() == data


def test_a_payload_need_not_read_its_stdin(driver: SpawnDriver) -> None:
    assert lifecycle.run(driver, sh("exit 0"), Pipes(io.BytesIO(b"x" * (1 << 20)))).exit_code == 0


def test_a_payload_may_close_its_stdin_and_go_on(driver: SpawnDriver) -> None:
    output = io.BytesIO()
    lifecycle.run(driver, sh("exec 0<&-; sleep 0.05; echo on"), Pipes(io.BytesIO(b"x" * (1 << 20)), output))
    assert output.getvalue() == b"on\n"


def test_start_callback_is_called_once_with_the_command_and_the_pid(driver: SpawnDriver) -> None:
    calls = []
    output = io.BytesIO()
    command = sh("echo $$")
    lifecycle.run(driver, command, Pipes(stdout=output), lambda command, pid: calls.append((command, pid)))
    assert calls == [(command, int(output.getvalue()))]


def test_an_error_in_start_callback_kills_and_goes_on(driver: SpawnDriver) -> None:
    with pytest.raises(ZeroDivisionError):
        lifecycle.run(driver, sh("sleep 100"), start_callback=lambda command, pid: 1 / 0)


def test_an_error_of_a_file_object_kills_and_goes_on(driver: SpawnDriver) -> None:
    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        lifecycle.run(driver, sh("echo; sleep 100"), Pipes(stdout=Full()))


def test_a_failed_start_leaves_no_descriptor(driver: SpawnDriver) -> None:
    with pytest.raises(OSError, match="No such file"):
        lifecycle.run(driver, Command.of(["/no/such/program"]), Pipes(io.BytesIO(b"in"), io.BytesIO(), io.BytesIO()))


@pytest.mark.parametrize("streams", [(PIPE,), (None, PIPE), (None, None, PIPE)])
def test_pipes_refuse_a_pipe_that_nobody_can_have(streams: tuple[int]) -> None:
    with pytest.raises(ValueError, match="PIPE"):
        Pipes(*streams)


@pytest.mark.parametrize("streams", [(STDOUT,), (None, STDOUT), (-9,), (None, -9), (None, None, -9), (PIPE, -9)])
def test_impossible_streams(streams: tuple[int]) -> None:
    with pytest.raises(ValueError, match="is not a descriptor"):
        Streams(*streams)


@pytest.mark.parametrize("name", ["stdin", "stdout", "stderr"])
@pytest.mark.parametrize("flags", [os.O_RDONLY | os.O_DIRECTORY, os.O_PATH | os.O_DIRECTORY, os.O_PATH])
def test_a_stream_that_would_lead_out(driver: SpawnDriver, tmp_path: Path, name: str, flags: int) -> None:
    (tmp_path / "file").touch()
    fd = os.open(tmp_path if flags & os.O_DIRECTORY else tmp_path / "file", flags)
    try:
        with pytest.raises(InvalidCommandError) as caught:
            Streams(**{name: fd})
        assert caught.value.field == name
        assert f"descriptor {fd} is" in str(caught.value)
        with pytest.raises(InvalidCommandError):
            pycontainer.Container(["true"], driver=driver, **{name: fd})
        assert driver.calls == []
    finally:
        os.close(fd)


def test_a_directory_that_would_be_inherited(tmp_path: Path) -> None:
    kept, directory = os.dup(1), os.open(tmp_path, os.O_RDONLY)
    try:
        os.dup2(directory, 1)
        with pytest.raises(InvalidCommandError, match="stdout: descriptor 1 is a directory"):
            Streams()
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(directory)


def test_every_descriptor_is_close_on_exec() -> None:
    with Streams(PIPE, PIPE, PIPE) as streams:
        fds = [streams.stdio.stdin, streams.stdio.stdout, streams.stdio.stderr]
        fds += [file.fileno() for file in (streams.stdin, streams.stdout, streams.stderr) if file is not None]
        assert len(set(fds)) == 6
        assert not any(map(os.get_inheritable, fds))


def test_two_outputs_that_go_nowhere_are_one_descriptor() -> None:
    with Streams(DEVNULL, DEVNULL, DEVNULL) as streams:
        stdin, stdout, stderr = streams.stdio.stdin, streams.stdio.stdout, streams.stdio.stderr
        assert stdin != stdout == stderr
        modes = [fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE for fd in (stdin, stdout)]
        assert modes == [os.O_RDONLY, os.O_WRONLY]
    for fd in (stdin, stdout):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


# -- an output that somebody else holds open


@pytest.mark.parametrize("outsider", ["exec sleep 30", "exec yes"])
def test_output_ends_with_the_container_whoever_holds_the_pipe(
    driver: SpawnDriver, tmp_path: Path, outsider: str
) -> None:
    pid = tmp_path / "pid"
    output = io.BytesIO()
    script = f'echo mine; setsid sh -c \'echo $$ >"$1"; {outsider}\' sh "$1" & until [ -s "$1" ]; do :; done'
    lifecycle.run(driver, sh(script, str(pid)), Pipes(stdout=output))
    os.kill(int(pid.read_text()), signal.SIGKILL)  # which fails if it was waited for until its end
    assert output.getvalue().startswith(b"mine\n")


@pytest.fixture
def refilled() -> Iterator[tuple[int, Callable[[bytes], object]]]:
    """A pipe that is never empty: (its reading end, what puts back whatever was read)."""
    source, sink = os.pipe()
    os.write(sink, b"x" * 1000)
    yield source, lambda data: os.write(sink, data)
    os.close(source)
    os.close(sink)


def test_a_flood_from_outside_ends_with_what_a_pipe_holds(refilled: tuple[int, Callable[[bytes], object]]) -> None:
    source, refill = refilled
    output = io.BytesIO()
    assert pump([Flow(source, lambda data: (output.write(data), refill(data)))], None)
    assert 65536 <= len(output.getvalue()) < 65536 + 1000


def test_a_flood_does_not_hide_the_deadline(
    driver: SpawnDriver, refilled: tuple[int, Callable[[bytes], object]]
) -> None:
    life = Lifecycle(driver, sh("sleep 100"))
    process = life.start(Stdio(0, 1, 2))
    start = time.monotonic()
    assert not pump([Flow(*refilled)], process, start + 0.1)
    assert 0.1 <= time.monotonic() - start < 1
    life.close()


def test_all_of_the_output_is_there_when_the_end_is_seen_first(driver: SpawnDriver) -> None:
    life = Lifecycle(driver, sh("head -c 60000 /dev/zero"))
    output = io.BytesIO()
    with Streams(stdout=output) as streams:
        streams.started(life.start(streams.stdio))
        life.wait()
        life.wait(meanwhile=streams.pump)
    assert len(output.getvalue()) == 60000


# -- terminals


def test_the_terminal_is_connected_to_the_streams(driver: SpawnDriver) -> None:
    output = io.BytesIO()
    script = "test -t 0 && test -t 1 && test -t 2 && read line && echo got $line"
    status = lifecycle.run(driver, sh(script, tty=True), Pipes(io.BytesIO(b"text\n"), output))
    assert status.exit_code == 0
    assert output.getvalue() == b"text\r\ngot text\r\n"


@pytest.mark.parametrize("data", [b"", b"line\n", b"no newline"])
def test_an_end_of_file_is_typed_into_a_terminal(driver: SpawnDriver, data: bytes) -> None:
    output = io.BytesIO()
    status = lifecycle.run(driver, sh("stty -echo; cat", tty=True), Pipes(io.BytesIO(data), output))
    assert status.exit_code == 0
    assert output.getvalue().endswith(data.replace(b"\n", b"\r\n"))


def test_the_last_words_on_a_terminal_are_not_lost(driver: SpawnDriver) -> None:
    for _ in range(20):
        output = io.BytesIO()
        lifecycle.run(driver, sh("head -c 4000 /dev/zero", tty=True), Pipes(stdout=output))
        assert len(output.getvalue()) == 4000


def test_a_terminal_that_the_payload_leaves_ends_the_output_but_not_the_wait(driver: SpawnDriver) -> None:
    output = io.BytesIO()
    script = "echo bye; trap '' HUP; exec </dev/null >/dev/null 2>&1; sleep 0.1; exit 4"
    assert lifecycle.run(driver, sh(script, tty=True), Pipes(stdout=output)).exit_code == 4
    assert output.getvalue() == b"bye\r\n"


def test_resize(driver: SpawnDriver) -> None:
    life = Lifecycle(driver, sh("read line; stty size", tty=True))
    output = io.BytesIO()
    with Streams(io.BytesIO(b"\n"), output, tty=True) as streams:
        streams.started(life.start(streams.stdio))
        assert streams.terminal is not None
        streams.terminal.resize(33, 77)
        life.wait(meanwhile=streams.pump)
    assert output.getvalue().split() == [b"33", b"77"]


@pytest.fixture
def outer() -> Iterator[tuple[int, int]]:
    """A terminal that plays the caller's: (what a person sees and types into, what a program has)."""
    master, slave = pty.openpty()
    os.set_blocking(master, False)
    set_size(master, 24, 80)
    yield master, slave
    os.close(master)
    os.close(slave)


def set_size(fd: int, height: int, width: int) -> None:
    terminal = TtyTerminal(os.dup(fd))
    terminal.resize(height, width)
    terminal.close()


def read_until(fd: int, text: bytes) -> bytes:
    found = b""
    deadline = time.monotonic() + 5
    while text not in found:
        assert time.monotonic() < deadline, found
        try:
            found += os.read(fd, 1000)
        except BlockingIOError:
            time.sleep(0.005)
    return found


def is_raw(fd: int) -> bool:
    return not termios.tcgetattr(fd)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)


def test_relay_makes_the_callers_terminal_raw_and_restores_it(driver: SpawnDriver, outer: tuple[int, int]) -> None:
    person, ours = outer
    before = termios.tcgetattr(ours)
    seen: list[tuple[bytes, bool]] = []

    def type_in() -> None:
        seen.append((read_until(person, b"ready"), is_raw(ours)))
        os.write(person, b"\x03")  # ^C is a key for the container, not a signal for us

    life = Lifecycle(
        driver, sh("trap 'echo interrupted; exit 5' INT; stty size; echo ready; sleep 10 & wait", tty=True)
    )
    with Streams(ours, ours, tty=True) as streams:
        process = life.start(streams.stdio)
        streams.started(process)
        assert streams.terminal is not None
        streams.flows.clear()
        typist = threading.Thread(target=type_in)
        typist.start()
        streams.terminal.relay(ours, ours, process)
        typist.join()
        assert life.wait().exit_code == 5
    ((text, was_raw),) = seen
    assert b"24 80" in text
    assert was_raw
    assert b"interrupted" in read_until(person, b"interrupted")
    assert termios.tcgetattr(ours) == before


def test_a_terminal_as_stdin_is_relayed_while_waiting_and_resized(driver: SpawnDriver, outer: tuple[int, int]) -> None:
    person, ours = outer
    before = signal.getsignal(signal.SIGWINCH)

    def act() -> None:
        read_until(person, b"ready")
        set_size(person, 50, 132)
        os.kill(os.getpid(), signal.SIGWINCH)

    person_thread = threading.Thread(target=act)
    person_thread.start()
    script = "trap 'stty size; exit 6' WINCH; echo ready; while :; do sleep 0.05; done"
    assert lifecycle.run(driver, sh(script, tty=True), Pipes(ours, ours)).exit_code == 6
    person_thread.join()
    assert b"50 132" in read_until(person, b"132")
    assert not is_raw(ours)
    assert signal.getsignal(signal.SIGWINCH) is before


def test_the_terminal_is_restored_after_an_error(driver: SpawnDriver, outer: tuple[int, int]) -> None:
    _, ours = outer
    before = termios.tcgetattr(ours)

    def interrupted(*_: object) -> None:
        assert is_raw(ours)
        raise KeyboardInterrupt

    handler = signal.signal(signal.SIGALRM, interrupted)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            lifecycle.run(driver, sh("sleep 100", tty=True), Pipes(ours, ours))
    finally:
        signal.signal(signal.SIGALRM, handler)
    assert termios.tcgetattr(ours) == before


def test_in_another_thread_no_signal_handler_is_touched(driver: SpawnDriver, outer: tuple[int, int]) -> None:
    _, ours = outer
    found: list[int | None] = []
    thread = threading.Thread(
        target=lambda: found.append(lifecycle.run(driver, sh("exit 7", tty=True), Pipes(ours, ours)).exit_code)
    )
    thread.start()
    thread.join()
    assert found == [7]


def test_the_terminal_has_the_size_of_the_callers(outer: tuple[int, int]) -> None:
    with Streams(outer[1], None, tty=True) as streams:
        assert streams.stdio.size == (24, 80)
    with Streams(None, PIPE, tty=True) as streams:
        assert streams.stdio.size is None


def test_closing_a_terminal_twice_is_no_error() -> None:
    master, slave = pty.openpty()
    terminal = TtyTerminal(master)
    terminal.close()
    terminal.close()
    os.close(slave)
    with pytest.raises(ValueError, match="closed"):
        terminal.fileno()


# -- small parts


@pytest.mark.parametrize(
    ("limit", "kept", "truncated"),
    [(None, b"abcdef", False), (7, b"abcdef", False), (6, b"abcdef", False), (5, b"abcde", True), (0, b"", True)],
)
def test_capture(limit: int | None, kept: bytes, truncated: bool) -> None:
    capture = Capture(limit)
    for data in (b"ab", b"cde", b"f"):
        capture.write(data)
    assert bytes(capture.data) == kept
    assert capture.truncated is truncated


def test_milliseconds_never_ends_early_and_never_overflows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    assert _exchange.milliseconds(None) is None
    assert _exchange.milliseconds(100.0001) == 1
    assert _exchange.milliseconds(99.0) == 0
    assert _exchange.milliseconds(1e12) == 2**31 - 1
    assert _exchange.milliseconds(float("inf")) == 2**31 - 1


def test_stdio_is_what_drivers_get() -> None:
    with Streams() as streams:
        assert streams.stdio == Stdio(streams.stdio.stdin, 1, 2)


# -- the file objects of a terminal


@pytest.mark.parametrize(
    "read",
    [
        lambda file: file.read(),
        lambda file: b"".join(iter(lambda: file.read(2), b"")),
        lambda file: b"".join(file),
        lambda file: b"".join(file.readlines()),
    ],
    ids=["all", "parts", "lines", "list"],
)
def test_what_a_terminal_shows_has_an_end(driver: SpawnDriver, read: Callable[[Any], bytes]) -> None:
    box = Container(["sh", "-c", "echo one; echo two"], driver=driver, tty=True, stdout=PIPE)
    with box:
        assert read(box.stdout) == b"one\r\ntwo\r\n"
        assert box.wait() == 0


def test_what_a_terminal_shows_has_an_end_as_text(driver: SpawnDriver) -> None:
    with Container(["sh", "-c", "echo one; echo two"], driver=driver, tty=True, stdout=PIPE, text=True) as box:
        assert box.stdout is not None
        assert box.stdout.readline() == "one\n"
        assert box.stdout.read() == "two\n"
