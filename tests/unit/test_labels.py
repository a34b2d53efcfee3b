"""pycontainer.labels: whether this kernel has a module for a label, and who says so when it has not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pycontainer import Command, Feature, InvalidCommandError, get_driver, labels
from pycontainer.cli import main

CONTEXT = "system_u:system_r:container_t:s0"


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A kernel that has these modules."""
    monkeypatch.setattr(labels, "SYSFS", str(tmp_path))

    def kernel(*, apparmor: str | None = None, selinux: bool = False) -> None:
        if apparmor is not None:
            (tmp_path / "module/apparmor/parameters").mkdir(parents=True)
            (tmp_path / "module/apparmor/parameters/enabled").write_text(apparmor)
        if selinux:
            (tmp_path / "fs/selinux").mkdir(parents=True)

    return kernel


def refused(**keywords: str) -> list[str]:
    return [field for field, _ in labels.unknown_labels(Command.of(["x"], **keywords))]  # type: ignore[arg-type]


def test_a_kernel_without(kernel: Callable[..., None]) -> None:
    kernel()
    every = {"apparmor_profile": "a", "selinux_label": CONTEXT, "mount_label": CONTEXT}
    assert refused(**every) == list(every)
    assert refused() == []
    probe = labels.probe_labels()
    assert (probe.usable, bool(probe.cause), bool(probe.remedy)) == (False, True, True)


@pytest.mark.parametrize(("enabled", "expected"), [("Y\n", []), ("N\n", ["apparmor_profile"])])
def test_apparmor(kernel: Callable[..., None], enabled: str, expected: list[str]) -> None:
    kernel(apparmor=enabled)
    assert refused(apparmor_profile="unconfined") == expected
    assert refused(selinux_label=CONTEXT) == ["selinux_label"]
    assert labels.probe_labels().usable is (not expected)


def test_selinux(kernel: Callable[..., None]) -> None:
    kernel(selinux=True)
    assert refused(apparmor_profile="a", selinux_label=CONTEXT, mount_label=CONTEXT) == ["apparmor_profile"]
    assert labels.probe_labels().evidence == "the kernel has SELinux"


@pytest.mark.parametrize("name", ["native", "lxc"])
def test_drivers_ask_the_kernel(kernel: Callable[..., None], tmp_path: Path, name: str) -> None:
    kernel(selinux=True)
    driver = get_driver(name)
    assert Feature.LABELS in driver.features()
    command = Command.of(["x"], rootfs=tmp_path, apparmor_profile="a", selinux_label=CONTEXT)
    assert [str(problem) for problem in driver.validate(command) if "label" in str(problem)] == []
    problems = [problem for problem in driver.validate(command) if isinstance(problem, InvalidCommandError)]
    assert [problem.field for problem in problems] == ["apparmor_profile"]


def test_an_init_has_no_label(kernel: Callable[..., None], tmp_path: Path) -> None:
    kernel(apparmor="Y")
    problems = get_driver("native").validate(Command.of(["x"], rootfs=tmp_path, apparmor_profile="a", init=True))
    assert [getattr(problem, "field", None) for problem in problems] == ["init"]


def test_parts_of_a_context(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--security-opt", "label=type:container_t", "true"])
    assert "label=USER:ROLE:TYPE:LEVEL" in capsys.readouterr().err
