"""What blocks, and what interrupts it, with real containers: asyncio, signal handlers, starts that take long."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

import pycontainer
from pycontainer import PIPE, Container, Hook, Hooks, NotRunningError, WaitTimeoutError, aio

pytestmark = pytest.mark.root


@pytest.fixture
def flags(native: pycontainer.ExecutionDriver, busybox_rootfs: Path) -> dict[str, Any]:
    return {"rootfs": busybox_rootfs, "driver": native}


@pytest.fixture
def run() -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """asyncio.run, after which nothing is left of the loop: its threads, and what they hold."""

    def run(main: Coroutine[Any, Any, Any]) -> Any:
        try:
            return asyncio.run(main)
        finally:
            gc.collect()

    return run


@pytest.fixture
def pid_file(tmp_path: Path) -> Path:
    return tmp_path / "pid"


def slow(pid_file: Path, seconds: float, point: str = "create_runtime") -> Hooks:
    """A hook that notes its pid, and takes its time."""
    script = f"echo $$ > {pid_file}.new; mv {pid_file}.new {pid_file}; exec sleep {seconds}"
    return Hooks(**{point: [Hook("/bin/sh", ["sh", "-c", script], env={"PATH": os.environ["PATH"]})]})


def is_there(pid_file: Path) -> bool:
    try:
        os.kill(int(pid_file.read_text()), 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# -- asyncio


def test_a_whole_life(flags: dict[str, Any], run: Any) -> None:
    async def main() -> None:
        done = await aio.run(["cat"], input="in", capture_output=True, text=True, receipt=True, **flags)
        assert (done.returncode, done.stdout, done.stderr) == (0, "in", "")
        assert done.receipt is not None
        async with await aio.create_container_exec("cat", stdin=PIPE, stdout=PIPE, **flags) as box:
            done = await box.exec(["sh", "-c", "cat; exit 3"], input=b"more", stdout=PIPE)
            assert (done.returncode, done.stdout) == (3, b"more")
            await box.pause()
            await box.unpause()
            await box.update(memory="32m")
            async for stats in box.iter_stats(0.01):
                assert stats.memory.limit == 32 << 20
                break
            assert await box.pids() == [box.pid]
            assert await box.communicate(b"bytes") == (b"bytes", None)
        async with await aio.create_container_exec("sleep", "1000", init=True, **flags) as box:
            assert await box.stop() == -signal.SIGTERM

    run(main())


def test_a_timeout_is_for_the_start_as_well(flags: dict[str, Any], run: Any, pid_file: Path) -> None:
    async def main() -> None:
        began = time.monotonic()
        with pytest.raises(WaitTimeoutError) as caught:
            await aio.run(["true"], timeout=0.5, hooks=slow(pid_file, 43210), **flags)
        assert 0.5 <= time.monotonic() - began < 10
        assert caught.value.timeout == 0.5
        wait_for(lambda: not is_there(pid_file))

    run(main())


@pytest.mark.parametrize("how", ["run", "exec"])
def test_cancelled_while_it_starts(
    flags: dict[str, Any], run: Any, pid_file: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    flags["hooks"] = slow(pid_file, 43210)
    todo = aio.run(["sleep", "1000"], **flags) if how == "run" else aio.create_container_exec("sleep", "1000", **flags)

    async def main() -> None:
        task = asyncio.ensure_future(todo)
        while not pid_file.exists():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        wait_for(lambda: not is_there(pid_file))

    run(main())
    assert caplog.records == []


def test_cancelled_while_it_runs(flags: dict[str, Any], run: Any) -> None:
    async def main() -> None:
        task = asyncio.ensure_future(aio.run(["sleep", "1000"], name="cancelled", capture_output=True, **flags))
        while not (info := flags["driver"].info("cancelled")).is_running or info.pid in (None, -1):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(ProcessLookupError):
            os.kill(info.pid, 0)

    run(main())


def test_one_that_nobody_uses_is_killed(flags: dict[str, Any], run: Any) -> None:
    async def main() -> None:
        held = [await aio.create_container_exec("sleep", "1000", stdout=PIPE, **flags)]
        pid = held[0].pid
        assert pid is not None
        pidfd = os.pidfd_open(pid)
        with pytest.warns(ResourceWarning, match="was still running"):
            held.clear()
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(pidfd, ended.set)
        await asyncio.wait_for(ended.wait(), 30)
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)
        assert (await aio.run(["echo", "hi"], stdout=PIPE, **flags)).stdout == b"hi\n"

    run(main())


def test_an_end_that_a_verb_notices_first(flags: dict[str, Any], run: Any) -> None:
    async def main() -> None:
        async with await aio.create_container_exec("true", **flags) as box:
            wait_for(lambda: box._box.poll() is not None)  # the loop stands still
            box.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(box.wait(), 30) == 0

    run(main())


# -- signal handlers


@contextlib.contextmanager
def after(seconds: float, handler: Callable[[], object]) -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, lambda *_: handler())
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("streams", [{}, {"stdin": PIPE, "stdout": PIPE}], ids=["wait", "communicate"])
def test_a_signal_handler_may_stop_it(flags: dict[str, Any], streams: dict[str, Any]) -> None:
    seen = []
    with Container(["sh", "-c", "echo begun; exec sleep 1000"], init=True, **streams, **flags) as box:
        with after(0.3, lambda: seen.append(box.stop())):
            if streams:
                assert box.communicate() == (b"begun\n", None)
            else:
                assert box.wait(60) == -signal.SIGTERM
        assert seen == [-signal.SIGTERM]
        assert box.state is pycontainer.State.STOPPED


# -- starts that take long


def test_a_receipt_has_the_time_of_the_whole(flags: dict[str, Any]) -> None:
    hooks = Hooks(start_container=[Hook("/bin/sleep", ["sleep", "43210"])])
    began = time.monotonic()
    with pytest.raises(WaitTimeoutError) as caught:
        pycontainer.run(["true"], receipt=True, timeout=1, hooks=hooks, **flags)
    assert 1 <= time.monotonic() - began < 15
    assert caught.value.timeout == 1
    assert not any(thread.name.startswith("exec-stop") for thread in threading.enumerate())


@pytest.mark.parametrize("verb", ["kill", "terminate", "close"])
def test_a_start_can_be_given_up(flags: dict[str, Any], pid_file: Path, verb: str) -> None:
    box = Container(["sleep", "1000"], start=False, hooks=slow(pid_file, 43210), **flags)
    errors: list[BaseException] = []

    def start() -> None:
        try:
            box.start()
        except NotRunningError as error:
            errors.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    wait_for(pid_file.exists)
    began = time.monotonic()
    getattr(box, verb)()
    thread.join(60)
    assert time.monotonic() - began < 10
    assert len(errors) == 1
    wait_for(lambda: not is_there(pid_file))
    assert box.state is pycontainer.State.STOPPED
    box.close()
