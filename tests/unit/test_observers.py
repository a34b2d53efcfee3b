"""pycontainer.observers: who is told of what becomes of containers."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest

import pycontainer
from pycontainer import hookspecs, observers
from pycontainer.errors import ContainerLostError, SetupError
from pycontainer.testing.fake import FakeDriver, Outcome


class Witness:
    """Notes everything."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    @pycontainer.hookimpl
    def pycontainer_started(self, id: str, command: Any, pid: int, driver: Any) -> None:
        self.seen.append(("started", id, command.process.argv, pid, driver.name))

    @pycontainer.hookimpl
    def pycontainer_oom(self, id: str, status: Any) -> None:
        self.seen.append(("oom", id, status.oom_killed))

    @pycontainer.hookimpl
    def pycontainer_exited(self, status: Any, id: str) -> None:
        self.seen.append(("exited", id, status and status.returncode))

    @pycontainer.hookimpl
    def pycontainer_cleaned(self, id: str) -> None:
        self.seen.append(("cleaned", id))

    def events(self) -> list[str]:
        return [event for event, *_ in self.seen]


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver()


@pytest.fixture
def witness() -> Iterator[Witness]:
    witness = Witness()
    pycontainer.register_observer(witness)
    yield witness
    pycontainer.unregister_observer(witness)
    assert not observers.present


def test_a_whole_life(driver: FakeDriver, witness: Witness) -> None:
    driver.script("job", Outcome(exit_code=3))
    box = pycontainer.Container(["job", "x"], driver=driver, name="box")
    pid = box.pid
    assert box.wait(30) == 3
    box.poll()
    box.close()
    assert witness.seen == [
        ("started", "box", ("job", "x"), pid, driver.name),
        ("exited", "box", 3),
        ("cleaned", "box"),
    ]


def test_out_of_memory(driver: FakeDriver, witness: Witness) -> None:
    driver.script("job", Outcome(oom_killed=True))
    pycontainer.run(["job"], driver=driver)
    assert witness.events() == ["started", "oom", "exited", "cleaned"]


def test_pauses_and_further_processes_are_not_told(driver: FakeDriver, witness: Witness) -> None:
    driver.script("job", Outcome(hang=True))
    with pycontainer.Container(["job"], driver=driver) as box:
        box.pause()
        box.unpause()
        box.exec(["true"])
        assert witness.events() == ["started"]
    assert witness.events() == ["started", "exited", "cleaned"]


def test_create_and_start(driver: FakeDriver, witness: Witness) -> None:
    with pycontainer.Container(["true"], driver=driver, start=False) as box:
        box.create()
        assert witness.seen == []
        box.start()
        assert witness.events() == ["started"]
    with pycontainer.Container(["true"], driver=driver, start=False) as box:
        box.create()
    assert witness.events() == ["started", "exited", "cleaned"]


def test_a_start_that_fails_is_not_heard_of(driver: FakeDriver, witness: Witness) -> None:
    driver.script("job", Outcome(start_error=SetupError("execve", 2, "job")))
    with pytest.raises(SetupError):
        pycontainer.run(["job"], driver=driver)
    assert witness.seen == []


def test_a_lost_container(driver: FakeDriver, witness: Witness, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.script("job", Outcome(hang=True))
    box = pycontainer.Container(["job"], driver=driver, name="box")

    process = box._life.process
    assert process is not None

    def lost(*_: Any) -> Any:
        monkeypatch.undo()
        raise ContainerLostError("box")

    monkeypatch.setattr(process, "poll", lost)
    with pytest.raises(ContainerLostError):
        box.poll()
    assert witness.seen[1:] == [("exited", "box", None), ("cleaned", "box")]


def test_one_that_fails_harms_nobody(driver: FakeDriver, witness: Witness, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        @pycontainer.hookimpl
        def pycontainer_started(self) -> None:
            raise RuntimeError("broken observer")

    broken = Broken()
    pycontainer.register_observer(broken)
    try:
        pycontainer.run(["true"], driver=driver, check=True)
    finally:
        pycontainer.unregister_observer(broken)
    assert witness.events() == ["started", "exited", "cleaned"]
    [record] = caplog.records
    assert (record.name, record.levelno) == ("pycontainer.observers", logging.ERROR)
    assert "broken observer" in caplog.text


def test_one_that_comes_later_hears_of_what_starts_later(driver: FakeDriver) -> None:
    driver.script("job", Outcome(hang=True))
    box = pycontainer.Container(["job"], driver=driver)
    witness = Witness()
    pycontainer.register_observer(witness)
    try:
        box.kill()
        box.wait(30)
        assert witness.seen == []
    finally:
        pycontainer.unregister_observer(witness)


def test_who_cannot_be_registered(witness: Witness) -> None:
    class Misspelt:
        @pycontainer.hookimpl
        def pycontainer_startet(self) -> None: ...

    class WrongArgument:
        @pycontainer.hookimpl
        def pycontainer_started(self, name: str) -> None: ...

    class Wrapper:
        @pycontainer.hookimpl(hookwrapper=True)
        def pycontainer_started(self) -> Any:
            yield

    class Driver:
        @pycontainer.hookimpl
        def pycontainer_create_driver(self) -> None: ...

    for observer in (witness, Misspelt(), WrongArgument(), Wrapper(), Driver(), object()):
        with pytest.raises(ValueError, match=r"hook|registered"):
            pycontainer.register_observer(observer)
    with pytest.raises(ValueError, match="not registered"):
        pycontainer.unregister_observer(object())
    assert observers.present


def test_the_example_of_the_documentation(driver: FakeDriver, caplog: pytest.LogCaptureFixture) -> None:
    text = hookspecs.__doc__ or ""
    [example] = re.findall(r"any driver::\n\n(.*?)    pycontainer\.register_observer", text, re.DOTALL)
    namespace: dict[str, Any] = {}
    exec(re.sub("^    ", "", example, flags=re.MULTILINE), namespace)
    journal = namespace["Journal"]()
    driver.script("job", Outcome(oom_killed=True))
    pycontainer.register_observer(journal)
    try:
        with caplog.at_level(logging.INFO):
            pycontainer.run(["job"], driver=driver, name="box", memory="64m")
    finally:
        pycontainer.unregister_observer(journal)
    texts = [record.getMessage() for record in caplog.records]
    assert texts[0].startswith("box started as ")
    assert texts[1] == "box was out of memory: its limit is 67108864"
    assert texts[2].startswith("box ")
    assert len(texts) == 3


def test_without_observers_pluggy_stays_out(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observers, "tell", None)  # so that a call would fail
    assert not observers.present
    pycontainer.run(["true"], driver=driver, check=True)
