"""LXC's log lines, as 5.0.2 writes them, and the tools. No root, no LXC."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pycontainer import DriverUnavailableError, Feature, get_driver
from pycontainer_lxc.detached import as_json
from pycontainer_lxc.log import COUNTER, failed_step, parse
from pycontainer_lxc.probe import TOOLS, find_tools, parse_version, probe

START = "lxc-start box 20261123223355.392 "


@pytest.mark.parametrize(
    ("line", "event"),
    [
        (
            START + 'NOTICE   start - ../src/lxc/start.c:post_start:2205 - Started "sh" with pid "16409"',
            ("started", 16409),
        ),
        (
            START + 'NOTICE   start - ../src/lxc/start.c:post_start:2205 - Started "a" with pid "1"" with pid "7"',
            ("started", 7),
        ),
        (
            START + "INFO     error - ../src/lxc/error.c:lxc_error_set_and_log:31 - Child <16409> ended on error (7)",
            ("ended", 7, None),
        ),
        (
            START + "INFO     error - ../src/lxc/error.c:lxc_error_set_and_log:34 - "
            "Child <26594> ended on signal Killed(9)",
            ("ended", None, 9),
        ),
        (
            START + "INFO     cgfsng - ../src/lxc/cgroups/cgfsng.c:cgfsng_payload_create:1499 - The container process "
            'uses "t/payload.id" as inner and "t/payload.id" as limit cgroup',
            ("cgroup", "t/payload.id"),
        ),
        (
            "lxc-attach box 20261123223909.479 TRACE    attach - ../src/lxc/attach.c:lxc_attach:1638 - "
            "Attached process 23551 started initializing",
            ("attached", 23551),
        ),
        (
            START + 'ERROR    start - ../src/lxc/start.c:start:2197 - Permission denied - Failed to exec "/x"',
            ("error", "start", 'Permission denied - Failed to exec "/x"'),
        ),
        (START + "INFO     conf - ../src/lxc/conf.c:setup_utsname:883 - Set hostname to box", None),
        (START + 'NOTICE   start - ../src/lxc/start.c:start:2194 - Exec\'ing "Child <1> ended on error (3)"', None),
        (f"{COUNTER}oom_kill 3", ("memory", 3)),
        (f"{COUNTER}under_oom 0", None),
        (f"{COUNTER}oom_kill", None),
        (START + f"INFO     start - x.c:f:1 - {COUNTER}oom_kill 3", None),
        ("", None),
        ("Child <1> ended on error (3)", None),
        ("a - b - c", None),
    ],
)
def test_a_line(line: str, event: object) -> None:
    assert parse(line) == event


ERRNOS = {os.strerror(number): number for number in errno.errorcode}


@pytest.mark.parametrize(
    ("function", "message", "step"),
    [
        ("start", 'No such file or directory - Failed to exec "/x"', ("execve", errno.ENOENT, "/x")),
        ("start", 'Permission denied - Failed to exec "/x"', ("execve", errno.EACCES, "/x")),
        (
            "do_start",
            'No such file or directory - Could not change directory to "/a b"',
            ("enter /a b", errno.ENOENT, "/a b"),
        ),
        ("conf", "Failed - to do it", ("Failed - to do it", 0, "")),
    ],
)
def test_the_first_error_is_the_step(function: str, message: str, step: tuple[str, int, str]) -> None:
    assert failed_step([(function, message), ("later", "consequence")], ERRNOS, "/x") == step


def tools(directory: Path, version: str, names: tuple[str, ...] = TOOLS) -> Path:
    for name in names:
        (directory / name).write_text(f"#!/bin/sh\necho {version}\n")
        (directory / name).chmod(0o755)
    return directory


def test_tools_are_not_looked_for_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tools(tmp_path, "5.0")))
    assert str(tmp_path) not in " ".join(find_tools().values())


@pytest.mark.parametrize("version", ["2.0.8", "1.1", "3.1.0", "nonsense", ""])
def test_too_old(tmp_path: Path, version: str) -> None:
    found = probe("lxc-0.1", [Feature.EXEC], [str(tools(tmp_path, version))])
    assert not found.usable
    assert "older than 4.0" in found.cause
    assert "apt install lxc" in found.remedy


def test_missing(tmp_path: Path) -> None:
    tools(tmp_path, "5.0.2", TOOLS[:2])
    found = probe("lxc-0.1", [], [str(tmp_path)])
    assert not found.usable
    assert found.cause.startswith("lxc-freeze, lxc-unfreeze not found in ")


def test_versions() -> None:
    assert parse_version("5.0.2") == (5, 0)
    assert parse_version("4.0.0~rc1") == (4, 0)
    assert parse_version("10.12") == (10, 12)
    assert parse_version("x") == ()


def test_without_lxc_the_start_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pycontainer import run
    from pycontainer_lxc import probe as module
    from pycontainer_lxc.driver import LxcDriver

    monkeypatch.setattr(module.probe, "__defaults__", ((str(tmp_path),),))
    with pytest.raises(DriverUnavailableError) as caught:
        run(["true"], rootfs=tmp_path, driver=LxcDriver())
    assert "lxc-start, lxc-attach" in str(caught.value)
    assert "apt install lxc" in str(caught.value)


def test_it_is_found_by_its_entry_point() -> None:
    assert get_driver("lxc").name == "lxc-0.1"
    with pytest.raises(TypeError, match="root"):
        get_driver("lxc", root="/")


def test_the_guards_modules_import_nothing_heavy() -> None:
    """Each start of a guard pays for them."""
    code = "import sys; before = set(sys.modules); import pycontainer_lxc.guard; print(*set(sys.modules) - before)"
    path = str(Path(sys.modules["pycontainer_lxc"].__path__[0]).parent)
    argv = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.append({path!r}); {code}"]
    names = set(subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split())
    assert not names & {"re", "json", "typing", "socket", "signal", "subprocess", "attr", "attrs", "enum"}


@pytest.mark.parametrize(
    "value", [None, True, 0, 1, -7, 1.5, "", 'a "b"\n\\\0é\U0001f600\udcff', [1, [None, "x"]], {"a": {"b c": [False]}}]
)
def test_what_is_recorded_can_be_read(value: object) -> None:
    assert json.loads(as_json(value)) == value
