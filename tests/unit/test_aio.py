"""The asyncio twins, on a driver that starts ordinary processes."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import pycontainer
from pycontainer import PIPE, aio

from .doubles import SpawnDriver, nothing_left
from .test_lifecycle import SlowDriver


@pytest.fixture
def driver() -> SpawnDriver:
    return SpawnDriver()


def run(main: Callable[[], Awaitable[Any]]) -> Any:
    return asyncio.run(main())  # type: ignore[arg-type]


def test_run(driver: SpawnDriver) -> None:
    async def main() -> pycontainer.CompletedContainer:
        return await aio.run(
            ["sh", "-c", "cat; echo err >&2; exit 7"], input="in", capture_output=True, text=True, driver=driver
        )

    done = run(main)
    assert (done.returncode, done.stdout, done.stderr) == (7, "in", "err\n")


def test_bytes_come_back_as_they_went(driver: SpawnDriver) -> None:
    data = os.urandom(3_000_000)

    async def main() -> pycontainer.CompletedContainer:
        return await aio.run(["cat"], input=data, stdout=PIPE, driver=driver)

    done = run(main)
    assert done.stdout == data
    assert done.stderr is None


def test_many_at_once_need_no_thread_each(driver: SpawnDriver) -> None:
    counts = []

    async def main() -> None:
        boxes = [await aio.create_container_exec("sleep", "0.2", driver=driver) for _ in range(40)]
        counts.append(threading.active_count())
        await asyncio.gather(*(box.wait() for box in boxes))
        assert {box.returncode for box in boxes} == {0}

    run(main)
    assert counts[0] < 20


def test_the_loop_goes_on(driver: SpawnDriver) -> None:
    async def main() -> int:
        ticks = 0
        task = asyncio.ensure_future(aio.run(["sleep", "0.3"], driver=driver))
        while not task.done():
            await asyncio.sleep(0.01)
            ticks += 1
        return ticks

    assert run(main) > 5


def test_timeout(driver: SpawnDriver) -> None:
    async def main() -> None:
        await aio.run(["sh", "-c", "echo partial; sleep 100"], stdout=PIPE, timeout=0.5, driver=driver)

    with pytest.raises(pycontainer.WaitTimeoutError) as caught:
        run(main)
    assert caught.value.stdout == b"partial\n"
    assert caught.value.timeout == 0.5


def test_cancelled(driver: SpawnDriver) -> None:
    pids = []

    async def main() -> None:
        task = asyncio.ensure_future(aio.run(["sh", "-c", "echo $$; exec sleep 100"], name="cancelled", driver=driver))
        while not (info := driver.info("cancelled")).is_running:
            await asyncio.sleep(0.01)
        pids.append(info.pid)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_check(driver: SpawnDriver) -> None:
    async def main() -> None:
        await aio.run(["false"], check=True, driver=driver)

    with pytest.raises(pycontainer.ContainerExitError):
        run(main)


def test_output_limit(driver: SpawnDriver) -> None:
    async def main() -> pycontainer.CompletedContainer:
        return await aio.run(["head", "-c", "1000000", "/dev/zero"], stdout=PIPE, output_limit=10, driver=driver)

    done = run(main)
    assert done.stdout == b"\0" * 10
    assert done.truncated


def test_streams(driver: SpawnDriver) -> None:
    async def main() -> None:
        box = await aio.create_container_exec("cat", stdin=PIPE, stdout=PIPE, driver=driver)
        assert box.stdin is not None
        assert box.stdout is not None
        assert box.stderr is None
        box.stdin.write(b"one\n")
        assert await box.stdout.readline() == b"one\n"
        box.stdin.close()
        assert await box.wait() == 0
        assert box.returncode == 0

    run(main)


def test_stop_kills_what_ignores_it(driver: SpawnDriver) -> None:
    async def main() -> None:
        box = await aio.create_container_exec(
            "sh", "-c", "trap '' TERM; echo; while :; do sleep 1; done", stdout=PIPE, driver=driver
        )
        assert box.stdout is not None
        await box.stdout.readline()
        began = time.monotonic()
        assert (await box.stop(timeout=0.2)) == -9
        assert time.monotonic() - began < 10

    run(main)


def test_setup_error(driver: SpawnDriver) -> None:
    async def main() -> None:
        await aio.run(["/no/such/program"], driver=driver)

    with pytest.raises(pycontainer.SetupError):
        run(main)


def test_a_stream_nobody_would_move_is_refused(driver: SpawnDriver) -> None:
    import io

    async def main() -> None:
        await aio.create_container_exec("true", stdout=io.BytesIO(), driver=driver)

    with pytest.raises(ValueError, match="PIPE"):
        run(main)


def test_no_descriptor_is_left(driver: SpawnDriver) -> None:
    async def main() -> None:
        await aio.run(["true"], capture_output=True, driver=driver)

    run(main)
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(3):
        run(main)
    assert sorted(os.listdir("/proc/self/fd")) == before


# -- keywords


@pytest.mark.parametrize("keyword", ["detach", "log_limits", "start", "text", "output_limit", "hostnam"])
def test_an_unknown_keyword(driver: SpawnDriver, keyword: str) -> None:
    async def main() -> None:
        await aio.create_container_exec("true", driver=driver, **{keyword: True})  # type: ignore[arg-type]

    with pytest.raises(TypeError, match=keyword):
        run(main)
    assert driver.calls == []


@pytest.mark.parametrize("keyword", ["detach", "log_limits", "start"])
def test_an_unknown_keyword_of_run(driver: SpawnDriver, keyword: str) -> None:
    async def main() -> None:
        await aio.run(["true"], driver=driver, **{keyword: True})  # type: ignore[arg-type]

    with pytest.raises(TypeError, match=keyword):
        run(main)
    assert driver.calls == []


@pytest.mark.parametrize("input", ["x", 5])
def test_an_input_of_the_wrong_type(driver: SpawnDriver, input: Any) -> None:
    async def main() -> None:
        with pytest.raises(TypeError, match="bytes"):
            await aio.run(["cat"], input=input, stdout=PIPE, driver=driver)
        assert driver.calls == []
        async with await aio.create_container_exec("cat", stdin=PIPE, stdout=PIPE, driver=driver) as box:
            with pytest.raises(TypeError, match="bytes"):
                await box.communicate(input)
            assert await box.communicate(b"x") == (b"x", None)
            with pytest.raises(ValueError, match="PIPE"):
                await box.communicate(b"x")

    run(main)


def test_text_as_in_run(driver: SpawnDriver) -> None:
    async def main() -> None:
        done = await aio.run(["cat"], input="\xe4\r\n", stdout=PIPE, encoding="latin-1", driver=driver)
        assert done.stdout == "\xe4\n"
        with pytest.raises(LookupError):
            await aio.run(["cat"], encoding="no-such-encoding", driver=driver)
        with pytest.raises(UnicodeDecodeError):
            await aio.run(["printf", r"\344"], stdout=PIPE, encoding="utf-8", driver=driver)
        done = await aio.run(["printf", r"\303\244"], stdout=PIPE, encoding="utf-8", output_limit=1, driver=driver)
        assert (done.stdout, done.truncated) == ("", True)

    run(main)


def test_several_drivers(driver: SpawnDriver) -> None:
    async def main() -> None:
        with pytest.raises(pycontainer.DriverNotFoundError):
            await aio.run(["true"], driver=["no-such-driver"])

    run(main)


# -- a start that takes its time


@pytest.mark.parametrize("heedful", [True, False])
def test_a_timeout_is_for_the_start_as_well(heedful: bool) -> None:
    with nothing_left(SlowDriver(30, heedful)) as driver:

        async def main() -> None:
            began = time.monotonic()
            with pytest.raises(pycontainer.WaitTimeoutError) as caught:
                await aio.run(["sleep", "100"], timeout=0.3, driver=driver)
            assert 0.3 <= time.monotonic() - began < 5
            assert caught.value.timeout == 0.3

        asyncio.run(main())


@pytest.mark.parametrize("heedful", [True, False])
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("how", ["run", "exec"])
def test_cancelled_while_it_starts(heedful: bool, times: int, how: str, caplog: pytest.LogCaptureFixture) -> None:
    with nothing_left(SlowDriver(30 if heedful else 0.5, heedful)) as driver:

        async def main() -> None:
            todo = (
                aio.run(["sleep", "100"], driver=driver)
                if how == "run"
                else aio.create_container_exec("sleep", "100", driver=driver)
            )
            task = asyncio.ensure_future(todo)
            while not driver.inside.is_set():
                await asyncio.sleep(0.01)
            began = time.monotonic()
            for _ in range(times):
                task.cancel()
                await asyncio.sleep(0.01)
            with pytest.raises(asyncio.CancelledError):
                await task
            assert driver.running == {}
            assert time.monotonic() - began < 5

        asyncio.run(main())
    gc.collect()
    assert caplog.records == []


def test_cancelled_before_a_thread_is_free() -> None:
    from concurrent.futures import ThreadPoolExecutor

    with nothing_left(SpawnDriver()) as driver:

        async def main() -> None:
            with ThreadPoolExecutor(1) as pool:
                loop = asyncio.get_running_loop()
                loop.set_default_executor(pool)
                blocker = loop.run_in_executor(None, time.sleep, 0.3)
                task = asyncio.ensure_future(aio.run(["sleep", "100"], driver=driver))
                await asyncio.sleep(0.05)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                await blocker

        asyncio.run(main())
    assert driver.calls == []


def test_cancelled_again_and_again_while_it_is_killed(driver: SpawnDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        task = asyncio.ensure_future(aio.run(["sleep", "100"], name="x", capture_output=True, driver=driver))
        while not driver.info("x").is_running:
            await asyncio.sleep(0.01)
        with monkeypatch.context() as patch:
            patch.setattr(driver, "terminate", lambda id: None)
            for _ in range(3):
                task.cancel()
                await asyncio.sleep(0.05)
            assert not task.done()
        driver.terminate("x")
        with pytest.raises(asyncio.CancelledError):
            await task
        assert driver.running == {}

    with nothing_left(driver):
        run(main)


# -- AsyncContainer


def test_an_end_that_somebody_else_notices_first(driver: SpawnDriver) -> None:
    async def main() -> None:
        box = await aio.create_container_exec("true", driver=driver)
        assert box.pid is not None
        pidfd = os.pidfd_open(box.pid)
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)  # the loop stands still
        os.close(pidfd)
        box.send_signal(signal.SIGTERM)  # looks, and closes the process
        assert await asyncio.wait_for(box.wait(), 30) == 0
        assert box.poll() == 0
        await box.close()

    with nothing_left(driver):
        run(main)


def test_a_context_manager(driver: SpawnDriver) -> None:
    async def main() -> None:
        async with await aio.create_container_exec("sleep", "100", stdin=PIPE, stdout=PIPE, driver=driver) as box:
            assert driver.running
            assert box.stdin is not None
            box.stdin.write(bytes(1 << 20))  # which nobody reads
        assert box.returncode == -9
        assert driver.running == {}
        await box.close()
        with pytest.raises(KeyError, match="first"):
            async with await aio.create_container_exec("sleep", "100", driver=driver):
                raise KeyError("first")
        await asyncio.sleep(0)

    with nothing_left(driver):
        run(main)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_one_that_nobody_uses_is_killed(driver: SpawnDriver, elsewhere: bool) -> None:
    async def main() -> None:
        box: Any = await aio.create_container_exec("sleep", "100", stdout=PIPE, driver=driver)
        held = [box]
        del box
        if elsewhere:
            with pytest.warns(ResourceWarning, match="was still running"):
                await asyncio.get_running_loop().run_in_executor(None, held.clear)
        else:
            with pytest.warns(ResourceWarning, match="was still running"):
                held.clear()
        assert driver.running == {}
        await asyncio.sleep(0.05)
        again = await aio.run(["echo", "hi"], stdout=PIPE, driver=driver)  # with the same descriptors
        assert again.stdout == b"hi\n"

    with nothing_left(driver):
        run(main)


def test_one_that_outlives_its_loop(driver: SpawnDriver) -> None:
    async def main() -> aio.AsyncContainer:
        return await aio.create_container_exec("sleep", "100", driver=driver)

    with nothing_left(driver):
        held = [run(main)]
        with pytest.warns(ResourceWarning, match="was still running"):
            held.clear()


def test_what_it_shares_with_container(driver: SpawnDriver) -> None:
    async def main() -> None:
        async with await aio.create_container_exec("sleep", "100", driver=driver, name="x") as box:
            assert (box.id, box.args, box.command.id, box.terminal) == ("x", ["sleep", "100"], "x", None)
            assert repr(box) == "<AsyncContainer x: returncode: None args: ['sleep', '100']>"
            assert box.state is pycontainer.State.RUNNING
            await box.pause()
            assert box.state is pycontainer.State.PAUSED
            await box.unpause()
            assert await box.pids() == [box.pid]
            assert [process.pid for process in await box.processes()] == [box.pid]
            assert box.poll() is None
            with pytest.raises(pycontainer.ContainerError, match="no terminal"):
                box.resize(1, 2)
            for verb in (box.stats(), box.update(memory="1m"), box.exec(["true"])):
                with pytest.raises(pycontainer.UnsupportedError):
                    await verb
        with pytest.raises(pycontainer.NotRunningError):
            await box.pids()

    with nothing_left(driver):
        run(main)


def test_exec_and_stats() -> None:
    from pycontainer.testing.fake import FakeDriver, Outcome

    fake = FakeDriver()
    fake.script("main", Outcome(hang=True))
    fake.script("hang", Outcome(stdout="begun", hang=True))

    async def main() -> None:
        async with await aio.create_container_exec("main", driver=fake) as box:
            done = await box.exec(["cat"], input="in", capture_output=True, text=True, check=True)
            assert (done.args, done.returncode, done.stdout, done.stderr) == (["cat"], 0, "in", "")
            with pytest.raises(pycontainer.ContainerExitError):
                await box.exec(["false"], check=True)
            with pytest.raises(pycontainer.WaitTimeoutError) as caught:
                await box.exec(["hang"], stdout=PIPE, timeout=0.2)
            assert caught.value.stdout == b"begun"
            assert box.poll() is None
            await box.update(memory="8m")
            assert (await box.stats()).memory.limit == 8 << 20
            seen = 0
            with pytest.raises(ValueError, match="interval"):
                box.iter_stats(0)
            async for stats in box.iter_stats(0.01):
                assert stats.memory.limit == 8 << 20
                seen += 1
                if seen == 3:
                    box.kill()
            assert seen == 3
            assert await box.wait() == -9

    run(main)


def test_what_there_is_of_container() -> None:
    """Whoever adds to Container thinks of its twin."""
    of_detached = {"detached", "logs", "remove", "restore"}
    sync_only = {"create", "start", "truncated"}  # it is made by a function, which starts it; communicate has no limit
    names = {name for name in vars(pycontainer.Container) if not name.startswith("_")}
    assert names - set(vars(aio.AsyncContainer)) == of_detached | sync_only


def test_what_a_terminal_shows_has_an_end(driver: SpawnDriver) -> None:
    async def main() -> bytes:
        box = await aio.create_container_exec("sh", "-c", "echo one; echo two", tty=True, stdout=PIPE, driver=driver)
        async with box:
            assert box.stdout is not None
            assert await box.stdout.readline() == b"one\r\n"
            return await box.stdout.read()

    assert run(main) == b"two\r\n"
