"""run() and Container, through a driver of real processes that needs no root."""

from __future__ import annotations

import ast
import asyncio
import gc
import importlib
import io
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

import pycontainer
from pycontainer import DEVNULL, PIPE, STDOUT, CompletedContainer, Container, ExitStatus, State, _api, lifecycle
from pycontainer.command import COMMAND_KEYWORDS
from pycontainer.driver import ContainerProcess, Stdio
from pycontainer.testing.fake import FakeDriver, Outcome

from .doubles import PlainDriver, SpawnDriver, members, nothing_left


@pytest.fixture(autouse=True)
def driver() -> Iterator[SpawnDriver]:
    with nothing_left(SpawnDriver()) as driver:
        yield driver


@pytest.fixture
def run(driver: SpawnDriver) -> Any:
    return lambda script, *arguments, **keywords: pycontainer.run(
        ["sh", "-c", script, "sh", *arguments], driver=driver, **keywords
    )


@pytest.fixture
def box(driver: SpawnDriver) -> Any:
    return lambda script, *arguments, **keywords: Container(
        ["sh", "-c", script, "sh", *arguments], driver=driver, **keywords
    )


# -- run


def test_run_completes(driver: SpawnDriver) -> None:
    done = pycontainer.run(["sh", "-c", "exit 3"], driver=driver)
    assert done == CompletedContainer(["sh", "-c", "exit 3"], done.status)
    assert done.returncode == done.status.exit_code == 3
    assert done.stdout is None
    assert done.stderr is None
    assert done.truncated is False


def test_run_inherits_the_streams(run: Any, capfd: pytest.CaptureFixture[str]) -> None:
    run("echo out; echo err >&2; wc -c")
    assert capfd.readouterr() == ("out\n0\n", "err\n")


def test_capture_output(run: Any) -> None:
    done = run("printf 'out\\377'; echo err >&2", capture_output=True)
    assert (done.stdout, done.stderr) == (b"out\xff", b"err\n")


def test_stderr_with_stdout(run: Any) -> None:
    done = run("echo 1; echo 2 >&2; echo 3", stdout=PIPE, stderr=STDOUT)
    assert (done.stdout, done.stderr) == (b"1\n2\n3\n", None)


def test_the_constants_are_those_of_subprocess(run: Any) -> None:
    assert (PIPE, STDOUT, DEVNULL) == (subprocess.PIPE, subprocess.STDOUT, subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("keywords", "stdout"),
    [
        ({}, b"\xc3\xa9\r\nx\r"),
        ({"encoding": "utf-8"}, "é\nx\n"),
        ({"encoding": "latin-1"}, "\xc3\xa9\nx\n"),
        ({"encoding": "ascii", "errors": "replace"}, "\ufffd\ufffd\nx\n"),
    ],
)
def test_text(run: Any, keywords: dict[str, Any], stdout: str | bytes) -> None:
    assert run("printf '\\303\\251\\r\\nx\\r'", capture_output=True, **keywords).stdout == stdout


@pytest.mark.parametrize("keywords", [{"text": True}, {"errors": "strict"}])
def test_text_in_the_locales_encoding(run: Any, keywords: dict[str, Any]) -> None:
    assert run("cat", input="plain\n", capture_output=True, **keywords).stdout == "plain\n"


def test_output_that_is_no_text_is_an_error_as_in_subprocess(run: Any) -> None:
    with pytest.raises(UnicodeDecodeError):
        run("printf '\\377'", capture_output=True, encoding="utf-8")


@pytest.mark.parametrize("size", [0, 1, 65536, 1 << 20])
def test_input(run: Any, size: int) -> None:
    data = os.urandom(size)
    assert run("cat", input=data, stdout=PIPE).stdout == data


def test_input_as_text(run: Any) -> None:
    assert run("cat; printf '\\351'", input="é", stdout=PIPE, encoding="latin-1").stdout == "éé"


@pytest.mark.parametrize("script", ["exit 0", "exec 0<&-; sleep 0.05", "head -c 1 >/dev/null"])
def test_input_that_nobody_reads_is_no_error(run: Any, script: str) -> None:
    assert run(script, input=b"x" * (1 << 20)).returncode == 0


def test_input_of_the_wrong_type(run: Any) -> None:
    with pytest.raises(TypeError, match="must be bytes"):
        run("sleep 100", input="text")


def test_file_objects_without_a_descriptor(run: Any) -> None:
    output = io.BytesIO()
    run("cat", stdin=io.BytesIO(b"x" * 200000), stdout=output)
    assert output.getvalue() == b"x" * 200000


@pytest.mark.parametrize(
    "keywords",
    [
        {"input": b"", "stdin": PIPE},
        {"capture_output": True, "stdout": PIPE},
        {"capture_output": True, "stderr": PIPE},
    ],
)
def test_contradictions(run: Any, driver: SpawnDriver, keywords: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="cannot"):
        run("", **keywords)
    assert driver.calls == []


def test_an_unknown_keyword(run: Any) -> None:
    with pytest.raises(TypeError, match=r"hostnam.*hostname"):
        run("", hostnam="x")


@pytest.mark.parametrize("keyword", ["detach", "log_limits", "start"])
def test_a_keyword_that_is_containers_alone(run: Any, driver: SpawnDriver, keyword: str) -> None:
    with pytest.raises(TypeError, match=keyword):
        run("", **{keyword: True})
    assert driver.calls == []


@pytest.mark.parametrize("input", ["text", 5])
def test_an_input_of_the_wrong_type_is_refused_before_the_start(run: Any, driver: SpawnDriver, input: Any) -> None:
    with pytest.raises(TypeError, match="bytes"):
        run("cat", input=input)
    assert driver.calls == []


def test_an_encoding_that_does_not_exist_is_refused_before_the_start(run: Any, driver: SpawnDriver) -> None:
    with pytest.raises(LookupError):
        run("cat", encoding="no-such-encoding")
    assert driver.calls == []


def test_bytes_of_any_kind_are_an_input(run: Any) -> None:
    for data in (b"x", bytearray(b"x"), memoryview(b"x")):
        assert run("cat", input=data, stdout=PIPE).stdout == b"x"


def test_check(run: Any) -> None:
    assert run("exit 0", check=True).returncode == 0
    with pytest.raises(pycontainer.ContainerExitError) as caught:
        run("echo out; echo err >&2; exit 3", check=True, capture_output=True)
    assert caught.value.returncode == 3
    assert (caught.value.stdout, caught.value.stderr) == (b"out\n", b"err\n")


def test_a_signal_is_a_negative_returncode(run: Any) -> None:
    done = run("kill -9 $$")
    assert done.returncode == -9
    assert done.status.shell_code == 137


def test_a_program_that_does_not_exist(driver: SpawnDriver) -> None:
    with pytest.raises(pycontainer.SetupError, match="execve") as caught:
        pycontainer.run(["/no/such/program"], driver=driver, capture_output=True, input=b"x")
    assert caught.value.errno == 2


# -- run: time limits and interruptions


def test_timeout_kills_everything_before_it_is_raised(run: Any, driver: SpawnDriver) -> None:
    with pytest.raises(pycontainer.WaitTimeoutError, match=r"0\.2 s") as caught:
        run("echo out; echo err >&2; sleep 100 & echo $$; wait", capture_output=True, timeout=0.2)
    out, pid = caught.value.stdout.split()
    assert (out, caught.value.stderr, caught.value.timeout) == (b"out", b"err\n", 0.2)
    assert members(int(pid)) == []
    assert f"terminate {caught.value.id}" in driver.calls


def test_timeout_without_pipes(run: Any) -> None:
    with pytest.raises(pycontainer.WaitTimeoutError) as caught:
        run("sleep 100", timeout=0.05)
    assert caught.value.stdout is None


def test_timeout_is_not_put_off_by_a_flood(run: Any) -> None:
    start = time.monotonic()
    with pytest.raises(pycontainer.WaitTimeoutError) as caught:
        run("yes", stdout=PIPE, timeout=0.2, output_limit=6)
    assert time.monotonic() - start < 2
    assert caught.value.stdout == b"y\ny\ny\n"


def test_timeout_counts_from_the_call(run: Any, driver: SpawnDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    start, now, late = driver.start, time.monotonic, 0.0

    def slow(command: Any, stdio: Stdio) -> ContainerProcess:
        nonlocal late
        late = 60.0
        return start(command, stdio)

    monkeypatch.setattr(driver, "start", slow)
    monkeypatch.setattr(time, "monotonic", lambda: now() + late)
    begin = now()
    with pytest.raises(pycontainer.WaitTimeoutError) as caught:
        run("sleep 100", timeout=50)
    assert now() - begin < 25  # seconds, and not the fifty that it would wait from the start on
    assert caught.value.timeout == 50


def test_a_character_cut_in_two_by_the_timeout_does_not_hide_it(run: Any) -> None:
    with pytest.raises(pycontainer.WaitTimeoutError) as caught:
        run("printf 'x\\303'; sleep 100", stdout=PIPE, timeout=0.1, encoding="utf-8")
    assert caught.value.stdout == "x"


@pytest.mark.parametrize("capture_output", [True, False])
def test_an_interrupted_run_leaves_nothing(run: Any, driver: SpawnDriver, capture_output: bool) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            run("sleep 100 & sleep 100", capture_output=capture_output)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert driver.running == {}


# -- run: limits of what is kept


@pytest.mark.parametrize(
    ("limit", "kept", "truncated"), [(None, 3000, False), (3000, 3000, False), (2999, 2999, True), ("1k", 1024, True)]
)
def test_output_limit(run: Any, limit: Any, kept: int, truncated: bool) -> None:
    done = run("head -c 3000 /dev/zero; echo >&2", capture_output=True, output_limit=limit)
    assert len(done.stdout) == kept
    assert done.stderr == b"\n"
    assert done.truncated is truncated
    assert done.returncode == 0


@pytest.mark.parametrize("limit", [-1, True, "12q", 1.5])
def test_impossible_output_limits(run: Any, driver: SpawnDriver, limit: Any) -> None:
    with pytest.raises(pycontainer.InvalidCommandError, match="output_limit"):
        run("", output_limit=limit)
    assert driver.calls == []


def test_a_limit_may_cut_a_character_in_two(run: Any) -> None:
    assert run("printf '\\303\\251\\303\\251'", stdout=PIPE, output_limit=3, encoding="utf-8").stdout == "é"


def test_a_flood_does_not_make_the_caller_grow(run: Any) -> None:
    tracemalloc.start()
    try:
        done = run("head -c 30000000 /dev/zero", stdout=PIPE, output_limit="64k")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(done.stdout) == 65536
    assert peak < 1 << 20


# -- Container: streams


def test_a_conversation_in_bytes(box: Any) -> None:
    with box('while read line; do echo "got $line"; done', stdin=PIPE, stdout=PIPE) as container:
        for word in (b"one", b"two"):
            container.stdin.write(word + b"\n")
            assert container.stdout.read(100) == b"got " + word + b"\n"
        assert container.stderr is None
        container.stdin.close()
        assert container.wait() == 0


def test_a_conversation_in_text(box: Any) -> None:
    with box('while read line; do echo "got $line"; done', stdin=PIPE, stdout=PIPE, text=True) as container:
        for word in ("one", "two"):
            print(word, file=container.stdin)
            assert container.stdout.readline() == f"got {word}\n"
        container.stdin.close()
        assert container.wait() == 0


def test_communicate(box: Any) -> None:
    with box("cat; echo err >&2; exit 2", stdin=PIPE, stdout=PIPE, stderr=PIPE) as container:
        assert container.communicate(b"input") == (b"input", b"err\n")
        assert container.returncode == 2
        assert container.communicate() == (b"input", b"err\n")


def test_communicate_again_after_a_timeout_loses_nothing(box: Any) -> None:
    data = os.urandom(300000)
    with box("echo start; sleep 0.3; cat", stdin=PIPE, stdout=PIPE) as container:
        with pytest.raises(pycontainer.WaitTimeoutError) as caught:
            container.communicate(data, timeout=0.1)
        assert caught.value.stdout == b"start\n"
        assert caught.value.timeout == 0.1
        with pytest.raises(ValueError, match="first call"):
            container.communicate(b"more")
        with pytest.raises(pycontainer.WaitTimeoutError):
            container.communicate(timeout=0)
        assert container.communicate(timeout=10) == (b"start\n" + data, None)


def test_a_payload_that_stops_reading_does_not_hold_up_the_timeout(box: Any) -> None:
    with box("dd bs=4096 count=4 of=/dev/null; exec sleep 100", stdin=PIPE, stdout=PIPE, stderr=PIPE) as container:
        start = time.monotonic()
        with pytest.raises(pycontainer.WaitTimeoutError):
            container.communicate(b"x" * 200000, timeout=0.1)
        assert time.monotonic() - start < 1
        assert os.get_blocking(container.stdin.fileno())
        assert os.get_blocking(container.stdout.fileno())


def test_communicate_after_the_end_still_reads_the_pipe(box: Any) -> None:
    with box("echo out", stdout=PIPE) as container:
        container.wait()
        assert container.communicate() == (b"out\n", None)


def test_communicate_with_an_input_but_no_pipe(box: Any) -> None:
    with box("sleep 100") as container, pytest.raises(ValueError, match="stdin=PIPE"):
        container.communicate(b"input")


def test_communicate_sends_what_a_text_file_had_buffered(box: Any) -> None:
    with box("cat", stdin=PIPE, stdout=PIPE, text=True) as container:
        container.stdin.write("first, ")
        assert container.communicate("second") == ("first, second", None)


def test_wait_serves_file_objects(box: Any) -> None:
    output = io.BytesIO()
    with box("cat", stdin=io.BytesIO(b"text"), stdout=output) as container:
        assert container.wait() == 0
        assert output.getvalue() == b"text"


def test_closed_pipes_are_no_obstacle(box: Any) -> None:
    with box("sleep 0.05; echo out", stdin=PIPE, stdout=PIPE, stderr=PIPE) as container:
        container.stdin.close()
        container.stderr.close()
        assert container.communicate()[0] == b"out\n"


# -- Container: terminal


def test_a_terminal(box: Any) -> None:
    with box("read line; stty size", tty=True, stdin=PIPE, stdout=PIPE) as container:
        container.resize(11, 22)
        container.stdin.write(b"\n")
        out, err = container.communicate()
        assert out.split() == [b"11", b"22"]
        assert err is None


def test_a_terminal_ends_as_a_file_does(run: Any) -> None:
    done = run("cat", tty=True, input="line\n", stdout=PIPE, text=True)
    assert done.stdout == "line\nline\n"


def test_a_terminals_output_goes_to_stdout(run: Any, capfd: pytest.CaptureFixture[str]) -> None:
    run("tty -s && echo yes", tty=True)
    assert capfd.readouterr().out == "yes\r\n"


def test_a_terminal_whose_output_nobody_wants(run: Any) -> None:
    assert run("head -c 200000 /dev/zero", tty=True, stdout=DEVNULL, timeout=10).returncode == 0


def test_resize_without_a_terminal(box: Any) -> None:
    with box("sleep 100") as container, pytest.raises(pycontainer.ContainerError, match="no terminal"):
        container.resize(1, 1)


def test_a_terminal_needs_the_feature() -> None:
    with pytest.raises(pycontainer.UnsupportedError, match="tty"):
        pycontainer.run(["true"], tty=True, driver=PlainDriver())


# -- Container: life


def test_poll_and_wait(box: Any) -> None:
    with box("sleep 0.05; exit 3") as container:
        assert container.poll() is None
        assert container.returncode is None
        assert container.status is None
        assert container.wait() == container.poll() == container.returncode == 3
        assert isinstance(container.status, ExitStatus)


def test_wait_with_a_timeout(box: Any) -> None:
    with box("sleep 100") as container:
        with pytest.raises(pycontainer.WaitTimeoutError):
            container.wait(0.05)
        assert container.poll() is None


def test_what_it_tells_of_itself(driver: SpawnDriver) -> None:
    with Container(["sleep", "100"], name="me", driver=driver) as container:
        assert container.id == "me"
        assert container.args == ["sleep", "100"]
        assert container.pids() == [container.pid]
        assert container.processes() == [psutil.Process(container.pid)]
        assert repr(container) == "<Container me: returncode: None args: ['sleep', '100']>"


def test_one_that_was_never_made_tells_that(driver: SpawnDriver) -> None:
    box = Container.__new__(Container)
    with pytest.raises(pycontainer.InvalidCommandError):
        box.__init__(["true"], name="../up", driver=driver)  # type: ignore[misc]
    assert repr(box) == "<Container, never made>"


def test_processes_that_ended_in_between_are_left_out(box: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with box("sleep 100") as container:
        monkeypatch.setattr(container, "pids", lambda: [container.pid, 2**22 + 1])
        assert [process.pid for process in container.processes()] == [container.pid]


@pytest.mark.parametrize(("verb", "number"), [("terminate", signal.SIGTERM), ("kill", signal.SIGKILL)])
def test_terminate_and_kill(driver: SpawnDriver, verb: str, number: int) -> None:
    with Container(["sleep", "100"], driver=driver) as container:
        getattr(container, verb)()
        assert container.wait() == -number
        getattr(container, verb)()


def test_send_signal(box: Any) -> None:
    with box("trap 'exit 7' USR1; echo; while :; do sleep 0.01; done", stdout=PIPE) as container:
        container.stdout.read(1)
        container.send_signal(signal.SIGUSR1)
        assert container.wait() == 7


def test_stop_asks_first(box: Any, driver: SpawnDriver) -> None:
    with box("trap 'exit 7' TERM; echo; while :; do sleep 0.01; done", stdout=PIPE) as container:
        container.stdout.read(1)
        assert container.stop() == 7
        assert f"terminate {container.id}" not in driver.calls
        assert container.stop() == 7


def test_stop_kills_everything_after_the_timeout(box: Any) -> None:
    with box("trap '' TERM; echo; sleep 100 & while :; do sleep 0.01; done", stdout=PIPE) as container:
        container.stdout.read(1)
        assert container.stop(timeout=0.1) == -signal.SIGKILL
        assert members(container.pid) == []


def test_pause(box: Any) -> None:
    with box("exec sleep 100") as container:
        container.pause()
        assert psutil.Process(container.pid).status() == psutil.STATUS_STOPPED
        container.unpause()
        assert container._life.state is State.RUNNING


@pytest.mark.parametrize(("verb", "keywords"), [("stats", {}), ("update", {"memory": "64m"})])
def test_verbs_that_the_driver_does_not_have(box: Any, verb: str, keywords: dict[str, Any]) -> None:
    with box("sleep 100") as container, pytest.raises(pycontainer.UnsupportedError, match=verb):
        getattr(container, verb)(**keywords)


def test_leaving_the_block_kills(box: Any) -> None:
    with box("sleep 100 & sleep 100", stdin=PIPE, stdout=PIPE, stderr=PIPE) as container:
        pass
    assert container.returncode == -signal.SIGKILL
    assert container.stdin.closed
    assert container.stdout.closed
    assert members(container.pid) == []


def test_leaving_the_block_with_an_error_keeps_it(box: Any, driver: SpawnDriver) -> None:
    def clean(id: str) -> None:
        raise OSError(16, "Device or resource busy")

    driver.clean = clean  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError) as caught, box("sleep 100", stdout=PIPE):
        1 / 0  # noqa: B018
    assert "resource busy" in caught.value.__notes__[0]  # type: ignore[attr-defined]


def test_a_text_file_with_something_buffered_closes_quietly(box: Any) -> None:
    with box("exec 0<&-; exec sleep 100", stdin=PIPE, text=True) as container:
        container.stdin.write("never read")


# -- Container: create and start


def test_create_then_start(box: Any, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    with box('>"$1"; cat', str(marker), start=False, stdin=PIPE, stdout=PIPE) as container:
        assert container.pid is None
        container.create()
        assert container.pid
        assert not marker.exists()
        container.start()
        assert container.communicate(b"text") == (b"text", None)
    assert marker.exists()


def test_start_without_create(box: Any) -> None:
    with box("exit 5", start=False) as container:
        container.start()
        assert container.wait() == 5


def test_never_started(box: Any) -> None:
    with box("", start=False, stdin=PIPE) as container:
        assert container.poll() is None
        with pytest.raises(pycontainer.NotRunningError):
            container.wait()


def test_create_needs_the_feature() -> None:
    with Container(["true"], driver=PlainDriver(), start=False, stdin=PIPE) as container:
        with pytest.raises(pycontainer.UnsupportedError, match="create"):
            container.create()
        container.start()
        assert container.wait() == 0


def test_a_created_one_that_fails_to_start_is_closed(
    box: Any, driver: SpawnDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start_created(process: ContainerProcess) -> None:
        raise pycontainer.SetupError("execve", 13, "/x")

    monkeypatch.setattr(driver, "start_created", start_created)
    container = box("", start=False, stdin=PIPE, stdout=PIPE)
    container.create()
    with pytest.raises(pycontainer.SetupError):
        container.start()
    assert container.stdin.closed


def test_an_error_right_after_the_start_kills(box: Any, driver: SpawnDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(self: Any, process: ContainerProcess) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_api.Streams, "started", started)
    with pytest.raises(KeyboardInterrupt):
        box("sleep 100", name="x", stdin=PIPE, stdout=PIPE)
    assert "terminate x" in driver.calls


def test_starting_twice_changes_nothing(box: Any) -> None:
    with box("cat", stdin=PIPE, stdout=PIPE) as container:
        with pytest.raises(pycontainer.ContainerError, match="already"):
            container.start()
        assert container.communicate(b"text")[0] == b"text"


# -- what nobody holds any more


def test_a_forgotten_container_is_killed_with_a_warning(driver: SpawnDriver) -> None:
    container = Container(["sleep", "100"], name="forgotten", driver=driver)
    pid = container.pid
    assert pid is not None
    boxes = [container]
    del container
    with pytest.warns(ResourceWarning, match="container forgotten was still running"):
        boxes.clear()
    assert members(pid) == []
    driver.running.clear()
    assert not lifecycle._ids


def test_an_ended_container_goes_without_a_warning(driver: SpawnDriver) -> None:
    container = Container(["true"], driver=driver)
    container.wait()
    del container
    gc.collect()


def test_a_container_that_never_was_goes_quietly(driver: SpawnDriver) -> None:
    with pytest.raises(pycontainer.InvalidCommandError):
        Container([], driver=driver)
    gc.collect()


def test_the_interpreters_exit_is_quiet(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import pycontainer, doubles\n"
        "class Cycle: pass\n"
        "streams = dict.fromkeys(('stdin', 'stdout', 'stderr'), pycontainer.DEVNULL)\n"
        "driver = doubles.SpawnDriver()\n"
        "kept = pycontainer.Container(['sleep', '100'], driver=driver, **streams)\n"
        "cycle = Cycle(); cycle.me = cycle\n"
        "cycle.box = pycontainer.Container(['sleep', '100'], driver=driver, **streams)\n"
        "print(kept.pid, cycle.box.pid)\n"
    )
    path = os.pathsep.join(filter(None, sys.path))
    result = subprocess.run(
        [sys.executable, "-Werror", str(script)], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert (result.returncode, result.stderr) == (0, "")
    for pid in map(int, result.stdout.split()):
        for left in members(pid):  # where finalizers did not run: this driver has no launcher that would end them
            os.kill(left, signal.SIGKILL)


def test_in_a_forked_child_the_block_can_be_left(box: Any) -> None:
    with box("sleep 100", stdin=PIPE) as container:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                with pytest.raises(pycontainer.ContainerError, match="fork"):
                    container.kill()
                container.close()
                code = 0 if container.stdin.closed else 2
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        assert container.poll() is None


# -- drivers


def test_the_driver_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(pycontainer.DriverNotFoundError, match="no-such"):
        pycontainer.run(["true"], driver="no-such")
    monkeypatch.setenv("PYCONTAINER_DRIVER", "neither-this")
    with pytest.raises(pycontainer.DriverNotFoundError, match="neither-this"):
        pycontainer.run(["true"])


# -- the package


def type_checking_imports() -> dict[str, str]:
    """name -> module, of the imports that only type checkers see."""
    assert pycontainer.__file__ is not None
    tree = ast.parse(Path(pycontainer.__file__).read_text())
    (block,) = [
        node
        for node in tree.body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    ]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {name.name: str(node.module) for node in imports for name in node.names if node.module != "typing"}


def test_type_checkers_and_the_interpreter_see_the_same_names() -> None:
    imports = type_checking_imports()
    lazy = {
        name: "pycontainer" if name == module else f"pycontainer.{module}"
        for module, names in pycontainer._HOMES.items()
        for name in names.split()
    }
    assert lazy == imports
    assert sorted(pycontainer.__all__) == sorted([*imports, "__version__"])


@pytest.mark.parametrize("name", pycontainer.__all__)
def test_public_names(name: str) -> None:
    value = getattr(pycontainer, name)
    module = type_checking_imports().get(name)
    if module is not None:
        assert value is getattr(importlib.import_module(module), name)
        assert name in dir(pycontainer)


def test_every_error_is_public() -> None:
    from pycontainer import errors

    found = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert found <= set(pycontainer.__all__)


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        pycontainer.no_such_name  # type: ignore[attr-defined]  # noqa: B018


def test_the_keywords_for_type_checkers_are_those_there_are() -> None:
    assert frozenset(_api.CommandKeywords.__annotations__) == COMMAND_KEYWORDS


def imported_by(code: str, after: str = "sys") -> set[str]:
    """The modules that *code* adds to those that importing *after* leaves."""
    script = f"import sys, {after}; before = set(sys.modules); {code}; print(*set(sys.modules) - before)"
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    env = {**os.environ, "PYTHONPATH": path}
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=env)
    return set(result.stdout.split())


def test_importing_the_package_imports_nothing_else() -> None:
    assert imported_by("import pycontainer") <= {"pycontainer", "__future__"}


def test_run_imports_nothing_slow() -> None:
    code = "import pycontainer, doubles; pycontainer.run(['true'], driver=doubles.SpawnDriver(), capture_output=True)"
    slow = {"subprocess", "asyncio", "psutil", "selectors", "importlib.metadata", "pluggy", "tempfile", "logging"}
    assert not imported_by(code, after="attrs") & slow  # before Python 3.12 attrs imports subprocess


# -- signal handlers


def test_a_signal_handler_may_stop_it_while_its_thread_communicates(box: Any) -> None:
    seen: list[Any] = []

    def handler(*_: object) -> None:
        with pytest.raises(pycontainer.ContainerError, match="within a wait"):
            container.communicate()
        seen.append(container.stop())
        container.close()  # leaves the streams to the one that it has interrupted

    with box("echo begun; exec sleep 100", stdin=PIPE, stdout=PIPE) as container:
        before = signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        try:
            assert container.communicate(b"") == (b"begun\n", None)
        finally:
            signal.signal(signal.SIGALRM, before)
    assert seen == [container.returncode] == [-signal.SIGTERM]


# -- one container, and several who want to start it


def test_creating_what_runs_already_leaves_it_alone() -> None:
    driver = FakeDriver()
    with Container(["sleep", "9"], driver=driver) as box:
        for verb in (box.create, box.start):
            with pytest.raises(pycontainer.ContainerError, match="already: it is running"):
                verb()
        assert box.poll() is None
        assert box.pid is not None


@pytest.mark.parametrize("verb", ["create", "start"])
def test_of_many_who_start_it_one_does_and_the_others_break_nothing(verb: str) -> None:
    driver = FakeDriver()
    driver.script("slow", Outcome(start_delay=0.2, hang=True))
    with Container(["slow"], driver=driver, stdout=PIPE, start=False) as box, ThreadPoolExecutor(4) as pool:
        errors = list(pool.map(lambda _: _error_of(getattr(box, verb)), range(4)))
        assert [type(error) for error in errors].count(type(None)) == 1
        assert {type(error) for error in errors} == {type(None), pycontainer.ContainerError}
        if verb == "create":
            box.start()
        assert box.poll() is None
        assert box.stdout is not None
        assert not box.stdout.closed


def _error_of(verb: Any) -> Exception | None:
    try:
        verb()
    except Exception as error:
        return error
    return None


# -- what is wrong is said before anything is created


@pytest.mark.parametrize("tty", [False, True])
@pytest.mark.parametrize(
    ("name", "stream"),
    [
        ("stdin", 999),
        ("stdout", 999),
        ("stderr", 999),
        ("stdin", object()),
        ("stdout", object()),
        ("stdin", io.StringIO("text")),
        ("stdout", io.StringIO()),
    ],
)
def test_a_stream_that_is_none_is_named(name: str, stream: Any, tty: bool) -> None:
    if tty and name == "stderr":
        return  # which is the terminal's
    fake = FakeDriver()
    with pytest.raises(pycontainer.InvalidCommandError) as caught:
        pycontainer.run(["true"], driver=fake, tty=tty, **{name: stream})
    assert caught.value.field == name
    assert fake.calls == []


def test_a_timeout_that_is_no_number() -> None:
    fake, nan = FakeDriver(), float("nan")
    with pytest.raises(ValueError, match="timeout must be a number"):
        pycontainer.run(["true"], driver=fake, timeout=nan)
    with pytest.raises(ValueError, match="timeout must be a number"):
        asyncio.run(pycontainer.aio.run(["true"], driver=fake, timeout=nan))
    assert fake.calls == []
    with Container(["sleep", "9"], driver=fake) as box:
        for verb in (box.wait, box.stop, box.communicate, lambda timeout: box.exec(["true"], timeout=timeout)):
            with pytest.raises(ValueError, match="timeout must be a number"):
                verb(timeout=nan)
        assert box.poll() is None


def test_what_chooses_a_driver_or_finds_a_container_is_text() -> None:
    with pytest.raises(TypeError, match="a driver is chosen by its name, by several, or by an object, not by 5"):
        pycontainer.run(["true"], driver=5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a container is found by its id, a str, not by 5"):
        pycontainer.get(5, FakeDriver())  # type: ignore[arg-type]
    with pytest.raises(pycontainer.InvalidCommandError, match="rootfs: must be a path, None, or a value of"):
        pycontainer.run(["true"], rootfs=4)  # type: ignore[arg-type]
