"""Detached containers in the core, on the fake driver."""

from __future__ import annotations

import gc as collector
import multiprocessing
import warnings
from collections.abc import Callable
from typing import Any

import pytest

import pycontainer
from pycontainer import (
    ContainerError,
    ContainerNotFoundError,
    Feature,
    InvalidCommandError,
    LogLimits,
    State,
    UnsupportedError,
)
from pycontainer.testing.fake import FakeDriver, Outcome

from .doubles import SpawnDriver


@pytest.fixture
def fake() -> FakeDriver:
    return FakeDriver()


def detach(fake: FakeDriver, argv: list[str], **keywords: Any) -> pycontainer.Container:
    return pycontainer.Container(argv, driver=fake, detach=True, **keywords)


def test_leaving_the_block_lets_go(fake: FakeDriver) -> None:
    with detach(fake, ["sleep", "100"]) as box:
        assert box.detached
        assert box.state is State.RUNNING
    assert fake.info(box.id).is_running
    for verb in (box.poll, box.wait, box.kill, box.pids, box.pause, lambda: box.exec(["true"])):
        with pytest.raises(ContainerError, match="restore"):
            verb()
    box.restore()
    box.remove(force=True)
    assert pycontainer.containers(fake) == []


def test_an_object_that_is_no_longer_used_lets_go_silently(fake: FakeDriver) -> None:
    box = detach(fake, ["sleep", "100"])
    id = box.id
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del box
        collector.collect()
    assert fake.info(id).is_running
    pycontainer.get(id, fake).remove(force=True)


def test_closing_twice_and_removing_what_is_closed(fake: FakeDriver) -> None:
    box = detach(fake, ["true"])
    assert box.wait(10) == 0
    box.close()
    box.close()
    assert box.returncode == 0
    box.remove()
    with pytest.raises(ContainerNotFoundError):
        box.remove()


def test_removing_by_force_what_this_object_has_let_go_of(fake: FakeDriver) -> None:
    box = detach(fake, ["sleep", "100"])
    box.close()
    with pytest.raises(ContainerError, match="running"):
        box.remove()
    box.remove(force=True)
    assert pycontainer.containers(fake) == []


@pytest.mark.parametrize("keywords", [{"stdin": -1}, {"stdout": -1}, {"stderr": -3}])
def test_its_streams_are_its_log(fake: FakeDriver, keywords: Any) -> None:
    with pytest.raises(ValueError, match="log"):
        detach(fake, ["true"], **keywords)
    assert fake.calls == []


def test_log_limits_are_for_detached_ones(fake: FakeDriver) -> None:
    with pytest.raises(ValueError, match="detached"):
        pycontainer.Container(["true"], driver=fake, log_limits=LogLimits())


def test_an_attached_one_has_no_log(fake: FakeDriver) -> None:
    with pycontainer.Container(["true"], driver=fake) as box:
        verbs: list[Callable[[], object]] = [box.logs, box.remove, box.restore]
        for verb in verbs:
            with pytest.raises(ContainerError, match="is not detached"):
                verb()


def test_a_driver_without_the_feature() -> None:
    driver = SpawnDriver()
    for verb in (
        lambda: pycontainer.Container(["true"], driver=driver, detach=True),
        lambda: pycontainer.get("web", driver),
        lambda: pycontainer.containers(driver),
    ):
        with pytest.raises(UnsupportedError) as caught:
            verb()
        assert caught.value.feature is Feature.RESTORE
    assert pycontainer.gc(driver) == []
    assert driver.calls == []


def test_it_is_started_in_one_step(fake: FakeDriver) -> None:
    box = detach(fake, ["true"], start=False)
    with pytest.raises(ContainerError, match="one step"):
        box.create()
    box.start()
    with pytest.raises(ContainerError):
        box.start()
    assert box.wait(10) == 0
    box.remove()


def test_a_field_that_the_driver_refuses(fake: FakeDriver) -> None:
    with pytest.raises(pycontainer.InvalidCommandError):
        detach(fake, ["true"], rootfs=None, config=["raw"])
    assert pycontainer.containers(fake) == []


def test_no_clean_up_takes_the_record_away(fake: FakeDriver) -> None:
    box = detach(fake, ["false"])
    assert box.wait(10) == 1
    assert "clean" not in [call.verb for call in fake.calls]
    assert pycontainer.get(box.id, fake).wait(10) == 1
    box.remove()


def test_a_failed_start_is_reported_and_forgotten(fake: FakeDriver) -> None:
    fake.script("bad", Outcome(start_error=ContainerError("no")))
    with pytest.raises(ContainerError, match="no"):
        detach(fake, ["bad"], name="web")
    assert "clean" not in [call.verb for call in fake.calls]
    assert pycontainer.containers(fake) == []


def test_tail_is_a_number_of_lines(fake: FakeDriver) -> None:
    box = detach(fake, ["true"])
    with pytest.raises(ValueError, match="tail"):
        box.logs(tail=-1)
    box.remove(force=True)


def _inherited(box: pycontainer.Container, connection: Any) -> None:
    try:
        box.poll()
    except ContainerError as error:
        connection.send(str(error))


def test_a_fork_inherits_none(fake: FakeDriver) -> None:
    box = detach(fake, ["sleep", "100"])
    ours, theirs = multiprocessing.get_context("fork").Pipe(duplex=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads
        child = multiprocessing.get_context("fork").Process(target=_inherited, args=(box, theirs))
        child.start()
    child.join(30)
    assert "restore() attaches it again" in ours.recv()
    assert box.poll() is None
    box.remove(force=True)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", -5), ("size", 0), ("size", "-1"), ("size", "0"), ("size", "much"), ("size", 2.5), ("size", None),
        ("size", True), ("files", -3), ("files", 0), ("files", 2.5), ("files", "2"), ("files", None), ("files", 10**9),
    ],
)  # fmt: skip
def test_log_limits_that_are_none(field: str, value: Any) -> None:
    with pytest.raises(InvalidCommandError) as caught:
        LogLimits(**{field: value})
    assert caught.value.field == f"log_limits.{field}"


def test_log_limits_as_texts_and_what_is_none_of_them(fake: FakeDriver) -> None:
    assert (LogLimits(size="1m").size, LogLimits(size="64k").size, LogLimits(size=10).size) == (1 << 20, 1 << 16, 10)
    with pytest.raises(InvalidCommandError) as caught:
        detach(fake, ["true"], log_limits={"size": 4096})
    assert caught.value.field == "log_limits"
