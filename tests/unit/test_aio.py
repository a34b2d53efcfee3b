"""The asyncio twins, on a driver that starts ordinary processes."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import pycontainer
from pycontainer import PIPE, aio

from .doubles import SpawnDriver


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
    import threading

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
        assert (await box.stop(timeout=0.2)).signal == 9
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
