"""Detached containers of LXC: what is on record of them, and what becomes of it when somebody dies."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pycontainer
from pycontainer import (
    Container,
    ContainerError,
    ContainerLostError,
    ContainerNotFoundError,
    LogLimits,
    Network,
    SetupError,
)
from pycontainer.command import Command
from pycontainer_lxc import client, record
from pycontainer_lxc.driver import LxcDriver

from . import host
from .test_lxc import left

pytestmark = [pytest.mark.root, pytest.mark.tool("lxc-start", "busybox")]


@pytest.fixture
def driver() -> Iterator[LxcDriver]:
    driver = LxcDriver()
    yield driver
    driver.close()


@pytest.fixture
def detach(driver: LxcDriver, busybox_rootfs: Path) -> Iterator[Callable[..., Container]]:
    boxes: list[Container] = []

    def detach(script: str, **keywords: Any) -> Container:
        argv = ["sh", "-c", script]
        boxes.append(Container(argv, **{"rootfs": busybox_rootfs, "driver": driver, "detach": True, **keywords}))
        return boxes[-1]

    yield detach
    for box in boxes:
        with contextlib.suppress(ContainerNotFoundError):
            pycontainer.get(box.id, driver).remove(force=True)
        box.close()


def content(id: str) -> Any:
    found = record.find(id)
    assert found is not None
    return found.content


MAKER = """
import sys, pycontainer
box = pycontainer.Container(["sh", "-c", "echo begun; read x </dev/zero; sleep 1000"], rootfs=sys.argv[1],
                            driver="lxc", detach=True)
print(box.id, box.pid, flush=True)
sys.stdin.read()
"""


def test_it_outlives_a_killed_maker_and_leaves_nothing(
    driver: LxcDriver, busybox_rootfs: Path, until: Callable[..., None]
) -> None:
    argv = [sys.executable, "-c", MAKER, str(busybox_rootfs)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as maker:
        assert maker.stdout is not None
        id, pid = maker.stdout.readline().split()
        maker.kill()
    box = pycontainer.get(id, driver)
    try:
        assert box.pid == int(pid)
        assert host.is_alive(int(pid))
        assert box.exec(["sh", "-c", "exit 3"]).returncode == 3
        assert box.stats().pids.current >= 1
        box.update(pids_limit=77)
        assert box.stats().pids.limit == 77
        token = content(id)["token"]
        box.kill()
        assert box.wait(60) == -signal.SIGKILL
        assert left(token) == []
        assert [one.data for one in box.logs()] == [b"begun\n"]
    finally:
        box.remove(force=True)


def test_a_killed_guard_takes_it_along_and_that_is_told(
    driver: LxcDriver, detach: Callable[..., Container], until: Callable[..., None]
) -> None:
    box = detach("sleep 1000")
    token = content(box.id)["token"]
    os.kill(content(box.id)["guard"], signal.SIGKILL)
    with pytest.raises(ContainerLostError):
        box.wait(60)
    until(lambda: not host.is_alive(box.pid or 0))
    until(lambda: left(token) == [])
    info = driver.info(box.id)
    assert (info.state, info.status, info.pid) == (pycontainer.State.STOPPED, None, None)
    assert any(box.id in line for line in driver.gc())
    with pytest.raises(ContainerNotFoundError):
        driver.restore(box.id)


def test_a_start_that_was_never_finished_keeps_no_id(
    driver: LxcDriver, busybox_rootfs: Path, detach: Callable[..., Container]
) -> None:
    command = Command.of(["true"], rootfs=busybox_rootfs, name="unfinished")
    _, lock = record.claim(command)
    with pytest.raises(pycontainer.AlreadyExistsError):  # somebody is at it
        detach("true", name="unfinished")
    assert [info.id for info in driver.containers() if info.id == "unfinished"] == []
    os.close(lock)
    assert detach("exit 4", name="unfinished").wait(60) == 4


def test_a_start_that_fails_leaves_nothing(
    driver: LxcDriver, busybox_rootfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guards: list[client.GuardClient] = []

    def make(*arguments: Any) -> client.GuardClient:
        guards.append(client.GuardClient(*arguments))
        return guards[-1]

    monkeypatch.setattr("pycontainer_lxc.driver.GuardClient", make)
    with pytest.raises(SetupError):
        Container(["/no/such"], rootfs=busybox_rootfs, driver=driver, detach=True, name="fails")
    assert not os.path.exists(f"{record.ROOT}/fails")
    assert [left(guard.token) for guard in guards] == [[]]


def test_its_record_is_for_nobody_else(detach: Callable[..., Container]) -> None:
    box = detach("sleep 100")
    directory = Path(record.ROOT, box.id)
    for path in (directory, directory.parent):
        assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_uid) == (0o700, 0)
    assert stat.S_IMODE((directory / "log").stat().st_mode) == 0o600


def test_the_files_of_a_log_are_as_many_as_asked_for(detach: Callable[..., Container]) -> None:
    for files in (1, 3):
        script = "i=0; while [ $i -lt 500 ]; do echo line $i; i=$((i+1)); done"
        box = detach(script, log_limits=LogLimits(size=2000, files=files))
        box.wait(60)
        names = sorted(name for name in os.listdir(f"{record.ROOT}/{box.id}") if name.startswith("log"))
        assert names == ["log", "log.1", "log.2"][:files]
        assert [one.data for one in box.logs()][-1] == b"line 499\n"


def test_out_of_memory_is_on_record(detach: Callable[..., Container]) -> None:
    box = detach("x=a; while :; do x=$x$x; done", memory="24m")
    assert box.wait(60) == -9
    assert box.status is not None
    assert box.status.oom_killed


def test_with_the_hosts_network_exec_finds_it(detach: Callable[..., Container]) -> None:
    """Then its monitor is in a network namespace of its own, which others have to enter to reach it."""
    box = detach("sleep 100", network=Network(mode="host"))
    done = box.exec(["ip", "-o", "link"], capture_output=True)
    assert len(done.stdout.splitlines()) == len(os.listdir("/sys/class/net"))
    box.pause()
    box.unpause()


def test_a_line_break_is_where_it_was(detach: Callable[..., Container]) -> None:
    box = detach("printf 'a\\rb\\n\\nc'; printf 'e\\0\\377\\n' >&2")
    box.wait(60)
    records = list(box.logs())
    assert b"".join(one.data for one in records if one.stream == "stdout") == b"a\rb\n\nc"
    assert [one.data for one in records if one.stream == "stderr"] == [b"e\0\xff\n"]


@pytest.mark.parametrize("how", ["a later version's", "no JSON", "something else"])
@pytest.mark.parametrize("ended", [True, False])
def test_a_record_that_cannot_be_read(
    driver: LxcDriver, detach: Callable[..., Container], how: str, ended: bool
) -> None:
    good, bad = detach("sleep 1000"), detach("exit 5" if ended else "sleep 1000")
    if ended:
        bad.wait(60)
    bad.close()
    path = Path(record.ROOT, bad.id, "container")
    before = path.read_text()
    later = json.loads(before)
    later["command"] = json.dumps({**json.loads(later["command"]), "of_tomorrow": 1})
    path.write_text({"a later version's": json.dumps(later), "no JSON": "{", "something else": "[]"}[how])
    found = {info.id: info for info in driver.containers()}
    assert {good.id, bad.id} <= found.keys()
    info = found[bad.id]
    assert info == driver.info(bad.id)
    assert (info.state, info.command) == (pycontainer.State.STOPPED if ended else pycontainer.State.RUNNING, None)
    assert str(path) in info.problem
    assert (info.status is not None) is ended
    assert found[good.id].problem == ""
    if not ended and how != "a later version's":  # its guard is only on record there
        with pytest.raises(ContainerError, match="cannot be read"):
            pycontainer.get(bad.id, driver)
        path.write_text(before)
    again = pycontainer.get(bad.id, driver)
    if ended:
        assert again.wait(60) == 5
    elif how == "a later version's":
        with pytest.raises(ContainerError, match="of_tomorrow"):
            again.exec(["true"])
    again.remove(force=True)
    assert bad.id not in [info.id for info in driver.containers()]


def test_an_end_that_cannot_be_read_is_one(driver: LxcDriver, detach: Callable[..., Container]) -> None:
    box = detach("exit 5")
    box.wait(60)
    Path(record.ROOT, box.id, "ended").write_text("{")
    info = driver.info(box.id)
    assert (info.state, info.status) == (pycontainer.State.STOPPED, None)
    assert not any(box.id in line for line in driver.gc())
    with pytest.raises(ContainerLostError, match="ended"):
        pycontainer.get(box.id, driver).wait(60)
    driver.delete(box.id)


def test_a_paused_one_is_killed_and_its_guard_reaped(detach: Callable[..., Container]) -> None:
    box = detach("sleep 100")
    box.pause()
    box.send_signal(9)
    assert box.wait(10) == -9
    assert record._children == set()


def test_nobody_elses_child_is_reaped(detach: Callable[..., Container]) -> None:
    """The number of a guard that has ended is another child's by now."""
    box = detach("exit 3")
    assert box.wait(60) == 3
    found = record.find(box.id)
    assert found is not None
    with subprocess.Popen(["sh", "-c", "exit 3"]) as other:
        content = json.loads(Path(found.path, "container").read_text())
        Path(found.path, "container").write_text(json.dumps({**content, "guard": other.pid}))
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
        process = record.DetachedProcess(found, lambda: None)
        assert process.poll() is not None
        process.close()
        assert other.wait(10) == 3
