"""Whatever step of a plan is left out: it fails, a receipt tells of it, or there is a reason here why it cannot."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pycontainer
from pycontainer import Command, Container, Mount, SetupError
from pycontainer.receipt import Receipt
from pycontainer_native import plan
from pycontainer_native.driver import NativeDriver

from .mutants import PlanMutant, left_out

pytestmark = [pytest.mark.root, pytest.mark.tool("busybox")]

#: The containers whose plans these are.
COMMANDS: dict[str, dict[str, Any]] = {
    "a directory": {
        "hostname": "asked",
        "sysctls": {"net.ipv4.ip_forward": "1"},
        "devices": ["/dev/null:/dev/other"],
        "rlimits": {"core": 0},
        "mounts": [Mount("/etc", "/data", read_only=True), Mount.tmpfs("/small", size="1m", mode=0o700)],
        "oom_score_adj": 5,
        "cpu_affinity": "0",
        "read_only": True,
        "user": "1000:2000",
        "groups": [2001],
        "cwd": "/tmp",
    },
    "a view of the host": {"rootfs": None, "dns": ["192.0.2.1"], "network": "none"},
    "a terminal": {"tty": True, "init": True, "rootfs_propagation": "shared"},
}

#: By the beginning of a step's label and, where it matters, its call: why nothing is seen of it.
UNSEEN: dict[tuple[str, str | None], str] = {}


def steps_of(driver: NativeDriver, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Label and call of each step of its plan, once each."""
    seen: dict[tuple[str, str], None] = {}

    class Noting(plan.Recorder):  # type: ignore[name-defined,misc]
        def call(self, call: str, *arguments: Any, **keywords: Any) -> None:
            super().call(call, *arguments, **keywords)
            seen[self.steps[-1].label, call] = None

    with monkeypatch.context() as patched:
        patched.setattr(plan, "Recorder", Noting)
        patched.setattr(plan, "_sections", {})
        begun(driver, given)
    return [*seen]


def begun(driver: NativeDriver, given: dict[str, Any]) -> Receipt:
    """Within a few seconds: who has lost the way to its launcher waits for ever."""
    with Container(["sleep", "100"], driver=driver, start=False, **given) as box:
        found = box._start_within(5, time.monotonic(), True)
        assert found is not None
        return found


def reason(label: str, call: str) -> str | None:
    return next((why for (start, of), why in UNSEEN.items() if label.startswith(start) and of in (None, call)), None)


@pytest.fixture
def limits() -> Iterator[None]:
    """Those that a container has by default are not the launcher's: a caller may change his own at any time."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1000), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_step_that_is_left_out(
    name: str, busybox_rootfs: Path, own_driver: NativeDriver, limits: None, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    given = {"rootfs": busybox_rootfs, **COMMANDS[name]}
    command = Command.of(["sleep", "100"], **given)
    assert begun(own_driver, given).differences(command) == ()
    unseen, stale = [], []
    for label, call in steps_of(own_driver, given, monkeypatch):
        mutant = PlanMutant(label, left_out(label, call))
        with monkeypatch.context() as patched:
            mutant.apply(patched, tmp_path)
            try:
                told = [str(one) for one in begun(own_driver, given).differences(command)]
            except (SetupError, ProcessLookupError, pycontainer.ContainerError) as error:
                told = [str(error)]
        assert mutant.used
        if bool(told) is bool(reason(label, call)):
            (unseen if not told else stale).append((label, call, *told))
    assert unseen == []
    assert stale == []
    assert os.listdir(tmp_path) == []
