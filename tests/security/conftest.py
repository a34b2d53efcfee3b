"""What the catalogue's tests share: a driver, mutated or not; hostile roots; canaries; and the count at the end."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

import pycontainer
from pycontainer.driver import ContainerProcess, ExecutionDriver, Stdio
from pycontainer.errors import ContainerNotFoundError
from pycontainer.process import Process
from pycontainer_native.driver import NativeDriver

from ..integration import conftest as integration
from ..integration.hostile import Rootfs
from .canary import Canary
from .catalogue import Case, Tally, cases
from .rows import ROWS, UNTESTABLE
from .stages import wait_at

native, no_leaks, caller, output_of, until = (
    *(integration.native, integration.no_leaks, integration.caller),
    *(integration.output_of, integration.until),
)

Sh = Callable[..., pycontainer.CompletedContainer]


@pytest.fixture
def user_namespaces(tmp_path: Path) -> tuple[str | None, ...]:
    """None and, where containers can have one of their own that the tests' files can be shown in, "auto"."""
    return (None, "auto") if os.geteuid() == 0 and integration.maps_ids(tmp_path) else (None,)


_tally = pytest.StashKey[Tally]()
_canaries = pytest.StashKey[list[Canary]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_tally] = Tally()


def pytest_runtest_setup(item: pytest.Function) -> None:
    if "native" in item.fixturenames and os.geteuid() != 0 and not item.config.getoption("--rootless"):
        pytest.skip("needs root")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    declared = getattr(metafunc.function, "declared", None)
    if declared is not None:
        metafunc.parametrize("case", cases(declared), ids=str, indirect=True)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Run a test of a row: its canaries have to be unharmed, and with a mutant it has to fail."""
    declared = getattr(pyfuncitem.function, "declared", None)
    if declared is None:
        return (yield)
    case: Case = pyfuncitem.callspec.params["case"]
    tally = pyfuncitem.config.stash[_tally]
    tally.run.update(declared.rows)
    try:
        try:
            result = yield
        finally:
            for canary in pyfuncitem.stash.get(_canaries, []):
                canary.check()
    except (AssertionError, pytest.fail.Exception):
        if case.mutant is not None and case.mutant.used:
            tally.mutants[True] += 1
            return True
        tally.red.update(declared.rows)
        raise
    except BaseException:
        tally.red.update(declared.rows)
        raise
    if case.mutant is not None:
        tally.red.update(declared.rows)
        tally.mutants[False] += 1
        used = "the test is green all the same" if case.mutant.used else "it has changed nothing"
        pytest.fail(f"the mutant {case.mutant.name!r} was not caught: {used}")
    return result


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    tally = config.stash[_tally]
    if tally.run:
        ours = [name for name, row in ROWS.items() if {*row.marks} & {*"NP"}]
        terminalreporter.write_sep("=", f"{tally}; {len(UNTESTABLE)} of {len(ours)} untestable")


# -- drivers


@pytest.fixture(autouse=True)
def case(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Case | None:
    """Which run of its test this is; the mutant is in place, before anything else."""
    found: Case | None = getattr(request, "param", None)
    if found is not None and found.mutant is not None:
        found.mutant.apply(monkeypatch, tmp_path)
    return found


@pytest.fixture
def patience(case: Case | None) -> float:
    """How long something may take that comes of itself (seconds). With a mutant it is expected not to."""
    return 30.0 if case is None or case.mutant is None else 3.0


@pytest.fixture
def driver(case: Case | None, native: NativeDriver, request: pytest.FixtureRequest) -> Iterator[ExecutionDriver]:
    """The driver under test, with a launcher of its own where the mutant is in the launcher."""
    if case is not None and case.driver != "native":
        yield request.getfixturevalue(case.driver)
    elif case is not None and case.mutant is not None and case.mutant.own_launcher:
        mutated = NativeDriver()
        yield mutated
        mutated.close()
    else:
        yield native


@pytest.fixture
def own_driver(case: Case | None, native: NativeDriver) -> Iterator[NativeDriver]:
    """A native driver with a launcher of its own, which may be killed or stopped."""
    driver = NativeDriver()
    yield driver
    driver.close()


@pytest.fixture
def start(driver: ExecutionDriver, busybox_rootfs: Path) -> Iterator[Callable[..., pycontainer.Container]]:
    """Starts a container of busybox, which is closed at the end of the test."""
    boxes = []

    def start(argv: list[str], **keywords: Any) -> pycontainer.Container:
        boxes.append(pycontainer.Container(argv, **{"rootfs": busybox_rootfs, "driver": driver, **keywords}))
        return boxes[-1]

    yield start
    for box in boxes:
        box.close()


@pytest.fixture
def sh(driver: ExecutionDriver, busybox_rootfs: Path) -> Sh:
    """Runs a shell script in a container of busybox; what it prints is text."""

    def sh(script: str, **keywords: Any) -> pycontainer.CompletedContainer:
        defaults = {"rootfs": busybox_rootfs, "driver": driver, "capture_output": True, "text": True, "timeout": 60}
        return pycontainer.run(["sh", "-c", script], **{**defaults, **keywords})

    return sh


@pytest.fixture
def python(driver: ExecutionDriver) -> Sh:
    """Runs Python code in a container of the host's own programs; what it prints is text."""

    def python(code: str, **keywords: Any) -> pycontainer.CompletedContainer:
        defaults = {"driver": driver, "capture_output": True, "text": True, "timeout": 60}
        return pycontainer.run([sys.executable, "-I", "-S", "-c", code], **{**defaults, **keywords})

    return python


@pytest.fixture
def held(driver: ExecutionDriver, start: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., pycontainer.Container]:
    """Starts a container that waits right before the first step whose label begins with *stage*, until its start()."""

    def held(stage: str | tuple[str, ...], argv: list[str] | None = None, **keywords: Any) -> pycontainer.Container:
        with monkeypatch.context() as patched:
            wait_at(stage, patched)
            box: pycontainer.Container = start(argv or ["sleep", "100"], start=False, **keywords)
            box.create()
        return box

    return held


@pytest.fixture
def held_exec(driver: ExecutionDriver, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ContainerProcess]]:
    """Like held, a further process in a container. It is killed at the end of the test."""
    processes = []
    null = os.open(os.devnull, os.O_RDWR)

    def held_exec(box: pycontainer.Container, stage: str, argv: tuple[str, ...] = ("sleep", "100")) -> ContainerProcess:
        with monkeypatch.context() as patched:
            wait_at(stage, patched)
            processes.append(driver.exec(box.id, Process.of(argv), Stdio(null, null, null)))
        return processes[-1]

    yield held_exec
    os.close(null)
    for process in processes:
        process.close()


# -- what is at stake


@pytest.fixture
def hostile(tmp_path: Path, busybox_rootfs: Path, request: pytest.FixtureRequest) -> Rootfs:
    """A root file system to make traps in, with a canary on the host that nothing may happen to."""
    rootfs = Rootfs(tmp_path / "hostile", busybox_rootfs, tmp_path / "canary")
    request.node.stash.setdefault(_canaries, []).append(Canary(rootfs, tmp_path))
    return rootfs


@pytest.fixture
def state_root(native: NativeDriver) -> Iterator[Path]:
    """Where a test's detached containers are on record. None of them may be left there."""
    with tempfile.TemporaryDirectory(prefix="pycontainer-test-", dir="/run") as root:
        yield Path(root)
        driver = NativeDriver(root)
        try:
            for path in Path(root).glob("containers/[!.]*"):
                pycontainer.get(path.name, driver).remove(force=True)
        finally:
            driver.close()


@pytest.fixture
def keeper(case: Case | None, state_root: Path) -> Iterator[NativeDriver]:
    """A native driver with a launcher, and a place for detached containers, of its own."""
    driver = NativeDriver(str(state_root))
    yield driver
    driver.close()


@pytest.fixture
def detach(keeper: NativeDriver, busybox_rootfs: Path) -> Iterator[Callable[..., pycontainer.Container]]:
    """Starts a detached container of busybox, which is removed at the end of the test."""
    boxes = []

    def detach(argv: list[str], **keywords: Any) -> pycontainer.Container:
        keywords = {"rootfs": busybox_rootfs, "driver": keeper, "detach": True, **keywords}
        boxes.append(pycontainer.Container(argv, **keywords))
        return boxes[-1]

    yield detach
    for box in boxes:
        with contextlib.suppress(ContainerNotFoundError):
            pycontainer.get(box.id, keeper).remove(force=True)
        box.close()
