"""What the core does around every driver: states, ids, locks, clean-up, forks."""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import pycontainer
from pycontainer import lifecycle
from pycontainer.command import Command, Network, Process, Resources
from pycontainer.driver import ContainerProcess, ExitStatus, Feature, State, Stdio
from pycontainer.errors import (
    AlreadyExistsError,
    ContainerError,
    ContainerLostError,
    InvalidCommandError,
    NotRunningError,
    SetupError,
    UnsupportedError,
    WaitTimeoutError,
)
from pycontainer.hooks import Hooks
from pycontainer.lifecycle import ExecLifecycle, Lifecycle, combine, required_features

from .doubles import PlainDriver, SpawnDriver, nothing_left

STDIO = Stdio(0, 1, 2)


@pytest.fixture(autouse=True)
def driver() -> Iterator[SpawnDriver]:
    with nothing_left(SpawnDriver()) as driver:
        yield driver


@pytest.fixture
def box(driver: SpawnDriver) -> Iterator[Lifecycle]:
    """A container that runs until something ends it."""
    life = Lifecycle(driver, Command.of(["sleep", "100"], name="box"))
    life.start(STDIO)
    yield life
    life.close()


def life_of(driver: SpawnDriver, script: str, name: str | None = None) -> Lifecycle:
    return Lifecycle(driver, Command.of(["sh", "-c", script], name=name))


def test_a_further_process_has_the_command_of_its_container_but_for_itself(box: Lifecycle) -> None:
    further = ExecLifecycle(box, Process("true"))
    assert further.payload == Process("true")
    assert further.command == box.command.copy_with(process=Process("true"))
    assert box.payload == box.command.process == Process("sleep", ("100",))


# -- states


def test_from_nothing_to_the_end(driver: SpawnDriver) -> None:
    life = life_of(driver, "sleep 0.05; exit 3")
    assert life.state is State.CREATING
    life.start(STDIO)
    assert life.state is State.RUNNING
    assert life.poll() is None
    status = life.wait()
    assert status.exit_code == 3
    assert life.state is State.STOPPED
    assert life.poll() is life.wait() is life.status is status


def test_created_then_started(driver: SpawnDriver) -> None:
    life = life_of(driver, "exit 4")
    life.create(STDIO)
    assert life.state is State.CREATED
    life.start()
    assert life.wait().exit_code == 4
    assert driver.calls == [f"{call} {life.id}" for call in ("create", "start_created", "reap", "clean")]


def test_pause_and_unpause(box: Lifecycle) -> None:
    box.pause()
    assert box.state is State.PAUSED
    with pytest.raises(NotRunningError, match="paused"):
        box.pause()
    box.unpause()
    assert box.state is State.RUNNING
    with pytest.raises(ContainerError, match="not paused: it is running"):
        box.unpause()


@pytest.mark.parametrize("verb", ["create", "start"])
def test_only_the_first_start_counts(box: Lifecycle, verb: str) -> None:
    with pytest.raises(ContainerError, match="already: it is running"):
        getattr(box, verb)(STDIO)


VERBS: list[tuple[str, tuple[Any, ...]]] = [
    ("pause", ()),
    ("unpause", ()),
    ("pids", ()),
    ("stats", ()),
    ("update", (Resources(),)),
]


@pytest.mark.parametrize(("verb", "arguments"), [*VERBS, ("send_signal", (15,)), ("kill_all", ()), ("wait", ())])
def test_a_verb_before_the_start(driver: SpawnDriver, verb: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(NotRunningError) as caught:
        getattr(life_of(driver, ""), verb)(*arguments)
    assert caught.value.state == "creating"


@pytest.mark.parametrize(("verb", "arguments"), [*VERBS, ("start", (STDIO,)), ("create", (STDIO,))])
def test_a_verb_after_the_end(box: Lifecycle, verb: str, arguments: tuple[Any, ...]) -> None:
    box.close()
    with pytest.raises(NotRunningError) as caught:
        getattr(box, verb)(*arguments)
    assert caught.value.state == "stopped"


def test_signals_after_the_end_do_nothing(box: Lifecycle) -> None:
    box.close()
    box.send_signal(signal.SIGTERM)
    box.kill_all()
    assert box.driver.calls.count("terminate box") == 1  # type: ignore[attr-defined]


def test_an_end_that_nobody_has_looked_at_counts(driver: SpawnDriver) -> None:
    life = life_of(driver, "exit 0")
    process = life.start(STDIO)
    os.waitid(os.P_PIDFD, process.pidfd, os.WEXITED | os.WNOWAIT)
    with pytest.raises(NotRunningError):
        life.pids()


@pytest.mark.parametrize(
    ("verb", "feature", "arguments"),
    [("stats", Feature.STATS, ()), ("update", Feature.UPDATE, (Resources(),))],
)
def test_what_the_driver_does_not_declare(
    box: Lifecycle, verb: str, feature: Feature, arguments: tuple[Any, ...]
) -> None:
    with pytest.raises(UnsupportedError) as caught:
        getattr(box, verb)(*arguments)
    assert caught.value.feature is feature


def test_create_needs_the_feature() -> None:
    driver = PlainDriver()
    with pytest.raises(UnsupportedError, match="create"):
        life_of(driver, "").create(STDIO)
    assert driver.calls == []


def test_kill_all_does_not_mind_an_end_in_between(box: Lifecycle, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(id: str) -> None:
        raise NotRunningError(id)

    with monkeypatch.context() as patch:
        patch.setattr(box.driver, "terminate", gone)
        box.kill_all()


# -- what is looked at before the start


@pytest.mark.parametrize(
    ("fields", "feature"),
    [
        ({"process": Process("true", tty=True)}, Feature.TTY),
        ({"init": True}, Feature.INIT),
        ({"rootfs": None}, Feature.HOST_ROOTFS),
        ({"network": Network()}, Feature.NETWORK),
        ({"network": Network("container", container="other")}, Feature.NETWORK),
        ({"network": Network("host")}, None),
        ({"network": Network("none")}, None),
        ({"resources": Resources(memory=1 << 20)}, Feature.MEMORY),
        ({"resources": Resources(cpu_shares=2)}, Feature.CPU),
        ({"resources": Resources(cpu_quota=1000)}, Feature.CPU),
        ({"resources": Resources(cpu_period=1000)}, Feature.CPU),
        ({"resources": Resources(cpuset_cpus="0")}, Feature.CPUSET),
        ({"resources": Resources(cpuset_mems="0")}, Feature.CPUSET),
        ({"resources": Resources(pids_limit=1)}, Feature.PIDS),
        ({"sysctls": {"net.ipv4.ip_forward": "1"}}, Feature.SYSCTLS),
        ({"hooks": Hooks()}, Feature.HOOKS),
        ({"apparmor_profile": "a"}, Feature.LABELS),
        ({"mount_label": "u:r:t"}, Feature.LABELS),
        ({}, None),
    ],
)
def test_required_features(fields: dict[str, Any], feature: Feature | None) -> None:
    command = Command(**{"id": "x", "process": Process("true"), "rootfs": "/", **fields})
    assert required_features(command) == ([] if feature is None else [feature])


def test_a_command_needs_the_features_of_its_driver(driver: SpawnDriver) -> None:
    life = Lifecycle(driver, Command.of(["true"], pids_limit=5))
    with pytest.raises(UnsupportedError) as caught:
        life.start(STDIO)
    assert caught.value.feature is Feature.PIDS
    assert driver.calls == []


def test_every_problem_is_in_one_error(driver: SpawnDriver) -> None:
    driver.problems = [
        InvalidCommandError("rootfs", "is bad"),
        UnsupportedError("spawn", Feature.SECCOMP),
        InvalidCommandError("hostname", "is worse", [("config", "is worst")]),
    ]
    life = life_of(driver, "", name="x")
    with pytest.raises(InvalidCommandError) as caught:
        life.start(STDIO)
    assert str(caught.value) == "rootfs: is bad; hostname: is worse; config: is worst"
    assert caught.value.__notes__ == ["driver 'spawn' does not support seccomp"]  # type: ignore[attr-defined]
    assert driver.calls == []


def test_a_missing_feature_comes_before_what_the_driver_says(driver: SpawnDriver) -> None:
    """Of a driver that looks at all of a Command, also at what it has not declared that it can do."""
    driver.problems = [InvalidCommandError("rootfs", "is bad"), UnsupportedError("spawn", Feature.PIDS)]
    life = Lifecycle(driver, Command.of(["true"], pids_limit=5))
    with pytest.raises(UnsupportedError) as caught:
        life.start(STDIO)
    assert caught.value.feature is Feature.PIDS
    assert caught.value.__notes__ == ["rootfs: is bad"]  # type: ignore[attr-defined]


def test_a_driver_that_cannot_read_what_it_does_not_have(driver: SpawnDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "validate", lambda command: 1 / 0)
    with pytest.raises(UnsupportedError):
        Lifecycle(driver, Command.of(["true"], pids_limit=5)).start(STDIO)
    with pytest.raises(ZeroDivisionError):
        Lifecycle(driver, Command.of(["true"])).start(STDIO)


def test_unsupported_alone_stays_unsupported() -> None:
    first, second = UnsupportedError("x", Feature.TTY), UnsupportedError("x", Feature.INIT)
    assert combine([first, second]) is first
    assert first.__notes__ == ["driver 'x' does not support init"]  # type: ignore[attr-defined]


# -- ids


def test_an_id_is_used_once_at_a_time(driver: SpawnDriver, box: Lifecycle) -> None:
    with pytest.raises(AlreadyExistsError, match="box"):
        life_of(driver, "", name="box").start(STDIO)
    assert box.state is State.RUNNING
    assert driver.calls == ["start box"]


def test_an_id_is_free_after_the_end_even_if_nobody_has_seen_it(driver: SpawnDriver) -> None:
    lives = [life_of(driver, "exit 0", name="again") for _ in range(3)]
    for life in lives:
        process = life.start(STDIO)
        os.waitid(os.P_PIDFD, process.pidfd, os.WEXITED | os.WNOWAIT)
    life.wait()
    assert driver.calls == ["start again", "reap again", "clean again"] * 3


def test_an_id_that_gets_free_is_his_who_takes_it_first(driver: SpawnDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    ended, faster, slower = (life_of(driver, script, name="x") for script in ("exit 0", "sleep 100", "sleep 100"))
    process = ended.start(STDIO)
    os.waitid(os.P_PIDFD, process.pidfd, os.WEXITED | os.WNOWAIT)
    release = ended._release

    def release_and_take() -> None:
        release()
        faster.start(STDIO)

    monkeypatch.setattr(ended, "_release", release_and_take)
    try:
        with pytest.raises(AlreadyExistsError):
            slower.start(STDIO)
        assert [*lifecycle._ids.values()] == [faster]
        faster.close()
    finally:
        for life in (faster, slower):
            life.abandon()


def test_an_id_is_free_after_a_failed_start(driver: SpawnDriver) -> None:
    with pytest.raises(SetupError):
        Lifecycle(driver, Command.of(["/no/such"], name="x")).start(STDIO)
    life = life_of(driver, "exit 0", name="x")
    life.start(STDIO)
    assert life.wait().exit_code == 0


def test_another_driver_has_its_own_ids(box: Lifecycle) -> None:
    life = life_of(SpawnDriver(), "exit 0", name="box")
    life.start(STDIO)
    assert life.wait().exit_code == 0


def test_of_many_threads_one_gets_the_id(driver: SpawnDriver) -> None:
    barrier = threading.Barrier(8)
    results: list[str] = []
    started: list[Lifecycle] = []

    def try_it() -> None:
        life = life_of(driver, "sleep 100", name="mine")
        barrier.wait()
        try:
            life.start(STDIO)
            started.append(life)
            results.append("started")
        except AlreadyExistsError:
            results.append("refused")

    threads = [threading.Thread(target=try_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["refused"] * 7 + ["started"]
    started[0].close()


def test_nothing_grows_with_the_containers(driver: SpawnDriver) -> None:
    for _ in range(20):
        life = life_of(driver, "exit 0")
        life.start(STDIO)
        life.wait()
    del life
    gc.collect()
    assert not lifecycle._ids
    assert not any(isinstance(thing, Lifecycle) for thing in gc.get_objects())


# -- clean-up


def test_a_failed_start_is_cleaned_up_and_a_failure_of_that_is_a_note(driver: SpawnDriver) -> None:
    def clean(id: str) -> None:
        driver.calls.append(f"clean {id}")
        raise OSError(16, "Device or resource busy")

    driver.clean = clean  # type: ignore[method-assign]
    life = Lifecycle(driver, Command.of(["/no/such"], name="x"))
    with pytest.raises(SetupError, match="execve") as caught:
        life.start(STDIO)
    assert driver.calls == ["start x", "clean x"]
    assert "Device or resource busy" in caught.value.__notes__[0]  # type: ignore[attr-defined]
    assert life.state is State.CREATING


def test_somebody_elses_container_is_not_cleaned_up(driver: SpawnDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(command: Command, stdio: Stdio) -> ContainerProcess:
        raise AlreadyExistsError(command.id)

    monkeypatch.setattr(driver, "start", start)
    life = life_of(driver, "", name="x")
    with pytest.raises(AlreadyExistsError):
        life.start(STDIO)
    assert driver.calls == []
    assert not lifecycle._ids  # although somebody still has it


def test_a_created_one_that_cannot_start_is_cleaned_up(driver: SpawnDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    def start_created(process: ContainerProcess) -> None:
        raise SetupError("execve", 13, "/x")

    monkeypatch.setattr(driver, "start_created", start_created)
    life = life_of(driver, "", name="x")
    life.create(STDIO)
    with pytest.raises(SetupError, match="EACCES"):
        life.start()
    assert life.state is State.STOPPED
    assert driver.calls == ["create x", "reap x", "clean x"]
    with pytest.raises(NotRunningError):
        life.wait()
    assert not lifecycle._ids


def test_a_clean_up_that_fails_after_the_end_is_told_once(driver: SpawnDriver) -> None:
    def clean(id: str) -> None:
        raise OSError(16, "Device or resource busy")

    driver.clean = clean  # type: ignore[method-assign]
    life = life_of(driver, "exit 3")
    life.start(STDIO)
    with pytest.raises(OSError, match="busy"):
        life.wait()
    assert life.wait().exit_code == 3
    assert not lifecycle._ids


LOST = [ContainerLostError("box", "killed"), SetupError("read the payload's status", errno=12)]


@pytest.mark.parametrize("error", LOST, ids=["lost", "unread"])
def test_a_lost_container_is_over(box: Lifecycle, error: ContainerError, monkeypatch: pytest.MonkeyPatch) -> None:
    process = box.process
    assert process is not None

    def lost(timeout: float | None = None) -> ExitStatus:
        raise error

    monkeypatch.setattr(process, "wait", lost)
    for _ in range(2):
        with pytest.raises(type(error)):
            box.wait()
        with pytest.raises(type(error)):
            box.poll()
    assert box.state is State.STOPPED
    assert box.status is None
    assert "clean box" in box.driver.calls  # type: ignore[attr-defined]
    assert not lifecycle._ids
    box.close()
    monkeypatch.undo()
    process.close()


@pytest.mark.parametrize("error", LOST, ids=["lost", "unread"])
def test_closing_it_finds_it_dead(box: Lifecycle, error: ContainerError, monkeypatch: pytest.MonkeyPatch) -> None:
    process = box.process
    assert process is not None

    def lost(timeout: float | None = None) -> ExitStatus:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(process, "wait", lost)
        box.close()
    assert box.state is State.STOPPED
    assert not box.abandon()
    with pytest.raises(type(error)):
        box.wait()
    process.close()


def test_close_kills_even_if_the_driver_cannot_terminate(box: Lifecycle, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(id: str) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(box.driver, "terminate", broken)
    with pytest.raises(OSError, match="Input/output"):
        box.close()
    assert box.state is State.STOPPED


# -- threads


def test_verbs_go_on_while_others_wait(box: Lifecycle) -> None:
    results: list[ExitStatus] = []
    threads = [threading.Thread(target=lambda: results.append(box.wait())) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    assert box.poll() is None
    assert len(box.pids()) == 1
    with pytest.raises(WaitTimeoutError):
        box.wait(0.05)
    box.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    assert [status.signal for status in results] == [signal.SIGTERM] * 3
    assert box.driver.calls.count("clean box") == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("timeout", [0, -1, 0.05])
def test_wait_has_a_time_limit_and_the_container_goes_on(box: Lifecycle, timeout: float) -> None:
    start = time.monotonic()
    with pytest.raises(WaitTimeoutError) as caught:
        box.wait(timeout)
    assert max(0, timeout) <= time.monotonic() - start < 1
    assert caught.value.timeout == timeout
    assert box.poll() is None


def test_verbs_of_one_container_come_one_after_the_other(box: Lifecycle, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = 0
    worst = 0

    def stats(id: str) -> None:
        nonlocal inside, worst
        inside += 1
        worst = max(worst, inside)
        time.sleep(0.01)
        inside -= 1

    monkeypatch.setattr(box.driver, "stats", stats)
    threads = [threading.Thread(target=box.stats) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert worst == 1


# -- forks


def in_child(work: Any) -> int:
    """The exit code of a forked child that does *work*: 0 if it returned, 99 if it raised."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_forked_child_cannot_use_it(box: Lifecycle) -> None:
    def work() -> None:
        for verb, arguments in [*VERBS, ("wait", ()), ("poll", ()), ("send_signal", (9,)), ("kill_all", ())]:
            with pytest.raises(ContainerError, match="a fork inherits none"):
                getattr(box, verb)(*arguments)

    assert in_child(work) == 0
    assert box.poll() is None


def test_in_a_forked_child_closing_and_finalizers_do_nothing(box: Lifecycle) -> None:
    def work() -> None:
        box.close()
        assert not box.abandon()

    assert in_child(work) == 0
    assert box.poll() is None


def test_a_forked_child_has_its_own_ids_and_locks(driver: SpawnDriver, box: Lifecycle) -> None:
    def work() -> None:
        life = life_of(driver, "exit 0", name="box")
        life.start(STDIO)
        assert life.wait().exit_code == 0

    with lifecycle._ids_lock:
        assert in_child(work) == 0
    assert box.poll() is None


# -- signal handlers


@contextlib.contextmanager
def after(seconds: float, handler: Any) -> Iterator[None]:
    """*handler* is called once, in the main thread, *seconds* from now."""
    before = signal.signal(signal.SIGALRM, lambda *_: handler())
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_signal_handler_may_kill_and_wait_while_its_thread_waits(box: Lifecycle) -> None:
    seen: list[Any] = []

    def handler() -> None:
        with pytest.raises(WaitTimeoutError):
            box.wait(0.01)
        box.send_signal(signal.SIGTERM)
        seen.append(box.wait(30))
        seen.append(box.poll())
        assert box.state is not State.STOPPED  # that is for who was interrupted

    with after(0.05, handler):
        status = box.wait(30)
    assert seen == [status, status]
    assert status.signal == signal.SIGTERM
    assert box.state is State.STOPPED
    assert box.driver.calls == ["start box", "reap box", "clean box"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("verb", ["close", "wait"])
def test_a_signal_handler_that_raises(box: Lifecycle, verb: str) -> None:
    def handler() -> None:
        box.kill_all()
        getattr(box, verb)()
        raise SystemExit(3)

    with pytest.raises(SystemExit), after(0.05, handler):
        box.wait(30)
    assert box.state is State.STOPPED
    assert box.status is not None
    assert "clean box" in box.driver.calls  # type: ignore[attr-defined]


def test_a_signal_handler_sees_a_lost_one(box: Lifecycle, monkeypatch: pytest.MonkeyPatch) -> None:
    process = box.process
    assert process is not None
    wait = process.wait

    def lost(timeout: float | None = None) -> ExitStatus:
        if box.status is None and threading.current_thread() is threading.main_thread() and inside:
            raise ContainerLostError("box", "killed")
        return wait(timeout)

    inside: list[bool] = []

    def handler() -> None:
        inside.append(True)
        box.kill_all()
        with pytest.raises(ContainerLostError):
            box.wait()

    with monkeypatch.context() as patch:
        patch.setattr(process, "wait", lost)
        with after(0.05, handler), pytest.raises(ContainerLostError):
            box.wait(30)
    assert box.state is State.STOPPED
    process.close()


def test_a_signal_handler_in_the_midst_of_a_verb_while_another_thread_waits(
    box: Lifecycle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one cannot finish, for the verb has the lock; so the handler must not wait for it."""
    seen: list[ExitStatus] = []

    def stats(id: str) -> None:
        time.sleep(0.3)

    def handler() -> None:
        box.kill_all()
        time.sleep(0.1)  # the other thread sees the end
        seen.append(box.wait(30))

    monkeypatch.setattr(box.driver, "stats", stats)
    waiter = threading.Thread(target=lambda: seen.append(box.wait()), daemon=True)
    waiter.start()
    time.sleep(0.05)
    with after(0.1, handler):
        box.stats()
    waiter.join(30)
    assert not waiter.is_alive()
    assert [status.signal for status in seen] == [signal.SIGKILL] * 2
    assert box.state is State.STOPPED


# -- observers


class Nosy:
    """Calls whatever it likes."""

    def __init__(self, box: Lifecycle) -> None:
        self.box = box
        self.seen: list[Any] = []

    @pycontainer.hookimpl
    def pycontainer_started(self) -> None:
        self.seen.append("started")
        with contextlib.suppress(NotRunningError):
            self.box.pids()

    @pycontainer.hookimpl
    def pycontainer_exited(self, status: Any) -> None:
        self.seen.append(self.box.wait(30))
        other = threading.Thread(target=lambda: self.seen.append(self.box.poll()))
        other.start()
        other.join(30)
        self.box.close()
        self.box.send_signal(signal.SIGTERM)

    @pycontainer.hookimpl
    def pycontainer_cleaned(self) -> None:
        self.seen.append("cleaned")


@pytest.mark.parametrize("how", ["wait", "poll", "verb", "close"])
def test_an_observer_may_call_anything(driver: SpawnDriver, how: str) -> None:
    life = life_of(driver, "sleep 0.2; exit 3")
    nosy = Nosy(life)
    pycontainer.register_observer(nosy)
    try:
        process = life.start(STDIO)
        if how == "wait":
            life.wait(30)
        else:
            os.waitid(os.P_PIDFD, process.pidfd, os.WEXITED | os.WNOWAIT)
            {"poll": life.poll, "verb": lambda: life.send_signal(15), "close": life.close}[how]()
    finally:
        pycontainer.unregister_observer(nosy)
    assert nosy.seen == ["started", life.status, life.status, "cleaned"]


# -- a start that takes its time


class SlowDriver(SpawnDriver):
    """Its start takes long; *heedful* is whether it looks at :attr:`Stdio.give_up`."""

    def __init__(self, seconds: float, heedful: bool) -> None:
        super().__init__()
        self.seconds, self.heedful = seconds, heedful
        self.inside = threading.Event()

    def _dawdle(self, id: str, stdio: Stdio) -> None:
        poll = select.poll()
        if self.heedful:
            poll.register(stdio.give_up, select.POLLIN)
        self.inside.set()
        left = self.seconds if stdio.deadline is None else min(self.seconds, stdio.deadline - time.monotonic())
        if poll.poll(max(0.0, left) * 1000) or left < self.seconds:
            raise WaitTimeoutError(id, 0.0)

    def start(self, command: Command, stdio: Stdio) -> ContainerProcess:
        self._dawdle(command.id, stdio)
        return super().start(command, stdio)

    def create(self, command: Command, stdio: Stdio) -> ContainerProcess:
        self._dawdle(command.id, stdio)
        return super().create(command, stdio)


def in_thread(work: Any) -> tuple[threading.Thread, list[BaseException]]:
    errors: list[BaseException] = []

    def caught() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=caught, daemon=True)
    thread.start()
    return thread, errors


GIVING_UP = {
    "kill_all": lambda life: life.kill_all(),
    "SIGKILL": lambda life: life.send_signal(signal.SIGKILL),
    "SIGTERM": lambda life: life.send_signal(signal.SIGTERM),
    "close": lambda life: life.close(),
}


@pytest.mark.parametrize("begin", ["start", "create"])
@pytest.mark.parametrize("how", GIVING_UP)
def test_a_start_can_be_given_up(how: str, begin: str) -> None:
    with nothing_left(SlowDriver(30, heedful=True)) as driver:
        life = life_of(driver, "sleep 100", name="x")
        thread, errors = in_thread(lambda: getattr(life, begin)(STDIO))
        assert driver.inside.wait(10)
        began = time.monotonic()
        with pytest.raises(NotRunningError, match="creating"):
            life.pids()
        with pytest.raises(NotRunningError, match="creating"):
            life.send_signal(signal.SIGUSR1)
        with pytest.raises(ContainerError, match="is started already: it is creating"):
            life.start(STDIO)
        GIVING_UP[how](life)
        if how == "close":
            assert life.state is State.STOPPED
        thread.join(10)
        assert time.monotonic() - began < 5
        (error,) = errors
        assert isinstance(error, NotRunningError)
        assert life.state is State.STOPPED
        assert driver.calls == ["clean x"]
        with pytest.raises(NotRunningError, match="stopped"):
            life.start(STDIO)
        life.close()
        assert not lifecycle._ids


@pytest.mark.parametrize("begin", ["start", "create"])
@pytest.mark.parametrize("how", GIVING_UP)
def test_a_driver_that_does_not_hear_of_it(how: str, begin: str) -> None:
    """Nobody but who wants it gone waits for the start, and then it is."""
    with nothing_left(SlowDriver(0.5, heedful=False)) as driver:
        life = life_of(driver, "sleep 100", name="x")
        thread, errors = in_thread(lambda: getattr(life, begin)(STDIO))
        assert driver.inside.wait(10)
        began = time.monotonic()
        GIVING_UP[how](life)
        if how == "close":
            assert not driver.running
        else:
            assert time.monotonic() - began < 0.3
        thread.join(10)
        (error,) = errors
        assert isinstance(error, NotRunningError)
        assert life.state is State.STOPPED
        assert life.status is not None
        assert driver.calls[-1] == "clean x"


def test_a_signal_handler_gives_up_the_start_of_its_thread() -> None:
    with nothing_left(SlowDriver(30, heedful=True)) as driver:
        life = life_of(driver, "")
        began = time.monotonic()
        with after(0.1, life.close), pytest.raises(NotRunningError):
            life.start(STDIO)
        assert time.monotonic() - began < 5


def test_one_that_was_given_up_in_advance(driver: SpawnDriver) -> None:
    life = life_of(driver, "")
    assert life.give_up()
    with pytest.raises(NotRunningError, match="stopped"):
        life.start(STDIO)
    assert driver.calls == []


def test_a_created_one_can_be_killed_while_it_starts(driver: SpawnDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = threading.Event()

    def start_created(process: ContainerProcess) -> None:
        inside.set()
        process.wait(30)
        raise NotRunningError(process.id)

    monkeypatch.setattr(driver, "start_created", start_created)
    life = life_of(driver, "", name="x")
    life.create(STDIO)
    thread, errors = in_thread(life.start)
    assert inside.wait(10)
    life.kill_all()
    thread.join(10)
    assert isinstance(errors[0], NotRunningError)
    assert life.state is State.STOPPED
    assert not lifecycle._ids


def test_one_that_ends_while_another_thread_waits_for_its_start(
    driver: SpawnDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves it to the start to finish, or observers would hear of an end without a beginning."""
    nosy = Nosy(life := life_of(driver, "exit 3"))
    start_created = driver.start_created

    def slow(process: ContainerProcess) -> None:
        start_created(process)
        time.sleep(0.3)

    monkeypatch.setattr(driver, "start_created", slow)
    life.create(STDIO)
    pycontainer.register_observer(nosy)
    try:
        waiter, errors = in_thread(lambda: life.wait(30))
        life.start()
        waiter.join(30)
    finally:
        pycontainer.unregister_observer(nosy)
    assert errors == []
    assert life.state is State.STOPPED
    assert nosy.seen == ["started", life.status, life.status, "cleaned"]
