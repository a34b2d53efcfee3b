"""Whatever fails on the way to a container, at whichever system call: the error names the step, and nothing is left.

The steps of a plan are data: each in turn is replaced by one that fails.  The launcher and the caller's side are run
with every one of their own calls failing once.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

import pycontainer
from pycontainer import Container, ContainerLostError, Mount, SetupError, service
from pycontainer_native import client, driver, plan, process
from pycontainer_native.driver import NativeDriver
from pycontainer_native.syscalls import Step

from . import faults

pytestmark = [pytest.mark.root, pytest.mark.tool("busybox")]

#: Of the containers whose every step fails once: what they ask for.
PLANS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "init": {"init": True},
    "everything": {
        "tty": True,
        "user": "alice",
        "read_only": True,
        "mounts": [Mount("/etc", "/data", read_only=True), Mount.tmpfs("/small", size="1m")],
        "no_new_privileges": False,
        "rlimits": {"nofile": (50, 60)},
        "sysctls": {"kernel.msgmax": 4096},
    },
    "the host's view": {"rootfs": None},
}


def broken(whole: plan.Plan, number: int) -> tuple[plan.Plan, Step]:
    """*whole*, its step *number* failing with EBADF; and that step."""
    sections = list(whole.sections)
    place = 0
    while number >= len(sections[place].steps):
        number -= len(sections[place].steps)
        place += 1
    section = sections[place]
    steps = list(section.steps)
    wanted = steps[number]
    steps[number] = wanted._replace(call="close", arguments=(-1,), out=None, accept={}, skip=0, check=None)

    def build(k: Any) -> None:
        k.steps, k.slots = steps, section.slots

    sections[place] = plan._record(build, 0)
    return attrs.evolve(whole, sections=tuple(sections)), wanted


def size_of(whole: plan.Plan) -> int:
    return sum(len(section.steps) for section in whole.sections)


@pytest.fixture
def rootfs(busybox_rootfs: Path) -> str:
    return str(busybox_rootfs)


@pytest.mark.parametrize("name", PLANS)
def test_every_step_of_a_start(name: str, native: NativeDriver, rootfs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keywords = {"rootfs": rootfs, "driver": native, "stdout": pycontainer.DEVNULL, **PLANS[name]}
    compile, wanted, total = native.compile, [], 1
    number = 0

    def breaking(*arguments: Any, **options: Any) -> plan.Plan:
        nonlocal total
        whole = compile(*arguments, **options)
        total = size_of(whole)
        changed, step = broken(whole, number)
        wanted.append(step)
        return changed

    monkeypatch.setattr(native, "compile", breaking)
    skipped = 0
    while number < total:
        outcome = attempt(lambda: pycontainer.run(["true"], timeout=60, **keywords).returncode)
        if outcome == 0:
            skipped += 1  # one that this kernel does not need, behind an accepted failure or a success
        else:
            assert isinstance(outcome, SetupError), outcome
            assert (outcome.step, outcome.errno) == (wanted[-1].label, errno.EBADF), f"step {number}: {wanted[-1]}"
        number += 1
    assert total > 60
    assert skipped < total / 4
    monkeypatch.undo()
    assert pycontainer.run(["true"], **keywords).returncode == 0


@pytest.mark.parametrize("tty", [False, True])
def test_every_step_of_a_further_process(
    tty: bool, native: NativeDriver, rootfs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_exec, wanted, total, number = plan.compile_exec, [], 1, 0

    def breaking(*arguments: Any, **options: Any) -> plan.Plan:
        nonlocal total
        whole = compile_exec(*arguments, **options)
        total = size_of(whole)
        changed, step = broken(whole, number)
        wanted.append(step)
        return changed

    with Container(["sleep", "1000"], rootfs=rootfs, driver=native) as box:
        monkeypatch.setattr(plan, "compile_exec", breaking)
        while number < total:
            with pytest.raises(SetupError) as caught:
                box.exec(["true"], tty=tty, stdout=pycontainer.DEVNULL, timeout=60)
            assert (caught.value.step, caught.value.errno) == (wanted[-1].label, errno.EBADF), f"step {number}"
            number += 1
        monkeypatch.undo()
        assert total > 30
        assert box.exec(["true"]).returncode == 0
        assert len(box.pids()) == 1


# -- the launcher


@pytest.fixture
def faulty_launcher(
    ahead: bool, native: NativeDriver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Any]:
    """A driver whose launcher fails at its n-th call after a request: (driver, arm, which call it was).

    Unless it clones *ahead*, all that it does for a container comes after the request for it.
    """
    package = tmp_path / "faulty" / "pycontainer_native"
    shutil.copytree(Path(client.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(faults.__file__, package)
    control = tmp_path / "fault"
    with open(package / "launcher.py", "a") as file:
        file.write(f"\n\nfrom pycontainer_native import faults\n\nfaults.install(globals(), {str(control)!r})\n")
        file.write(f"Launcher.clones_ahead = {ahead}\n")
    monkeypatch.setattr(client, "__file__", str(package / "client.py"))
    hit = Path(f"{control}.hit")
    control.write_text("-2")

    def arm(number: int) -> None:
        hit.unlink(missing_ok=True)
        control.write_text(str(number))

    own = NativeDriver()
    yield own, arm, lambda: hit.read_text() if hit.exists() else None
    own.close()


@pytest.mark.parametrize("ahead", [True, False], ids=["ahead", "not ahead"])
@pytest.mark.parametrize("keywords", [{}, {"init": True, "memory": "64m"}, {"tty": True}], ids=["plain", "init", "tty"])
def test_every_call_of_the_launcher(keywords: dict[str, Any], ahead: bool, faulty_launcher: Any, rootfs: str) -> None:
    own, arm, hit = faulty_launcher
    keywords = {"rootfs": rootfs, "driver": own, "stdout": pycontainer.DEVNULL, "timeout": 10, **keywords}
    assert pycontainer.run(["true"], **keywords).returncode == 0
    launcher = own._launchers.current
    seen, failed = [], 0
    for number in range(200):
        arm(number)
        outcome = attempt(lambda: pycontainer.run(["true"], **keywords).returncode)
        if hit() is None:
            assert outcome == 0
            break
        seen.append(f"{number} {hit()}: {outcome!r}")
        assert outcome == 0 or isinstance(outcome, SetupError), seen[-1]
        if isinstance(outcome, SetupError):
            failed += 1
            assert outcome.step, seen
            assert outcome.errno == errno.ENOMEM, seen
        arm(-2)
        assert attempt(lambda: pycontainer.run(["true"], **keywords).returncode) == 0, seen
        assert own._launchers.current is launcher, f"the launcher has ended: {seen}"
    arm(-2)
    assert pycontainer.run(["true"], **keywords).returncode == 0
    assert failed >= (1 if ahead else 5), seen


def attempt(call: Callable[[], Any]) -> Any:
    """What *call* returned, or the error that it raised."""
    try:
        return call()
    except Exception as error:
        return error


# -- the caller


@pytest.mark.parametrize("fresh", [False, True], ids=["its launcher runs", "its launcher is started"])
def test_every_call_of_the_caller_until_it_runs(
    fresh: bool, native: NativeDriver, rootfs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = NativeDriver()
    keywords = {"rootfs": rootfs, "driver": own, "stdout": pycontainer.DEVNULL, "timeout": 60}
    pycontainer.run(["true"], **keywords)
    fault, seen, failed = faults.Fault(), [], 0
    for number in range(200):
        if fresh:
            own.close()
        with monkeypatch.context() as patch:
            for module in (service, client, driver, process):
                if hasattr(module, "os"):
                    patch.setattr(module, "os", faults.Counting(module.os, faults.OS, fault))
                if hasattr(module, "socket"):
                    patch.setattr(module, "socket", faults.counting_sockets(module.socket, fault))
            fault.arm(number)
            outcome = attempt(lambda: pycontainer.run(["true"], **keywords).returncode)
            fault.arm(-2)
        seen.append(f"{number} {outcome!r}")
        if outcome == 0:
            break
        failed += 1
        # What is said of its end, when it has run, cannot be its set-up's error.
        assert isinstance(outcome, (SetupError, ContainerLostError)), seen[-1]
        assert attempt(lambda: pycontainer.run(["true"], **keywords).returncode) == 0, seen
    own.close()
    assert failed >= 2, seen
