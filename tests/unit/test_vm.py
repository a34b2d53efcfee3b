"""tests/vm/machine.py: what it says where there can be no machine, and whose exit status it hands on."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

MACHINE = Path(__file__).parents[1] / "vm/machine.py"


@pytest.fixture
def machine() -> ModuleType:
    spec = importlib.util.spec_from_file_location("machine", MACHINE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def kernel(tmp_path: Path, machine: ModuleType) -> Path:
    """A kernel that is in the cache already."""
    (tmp_path / "kernel/modules").mkdir(parents=True)
    (tmp_path / "kernel/wanted").write_text(" ".join(machine.MODULES))
    (tmp_path / "kernel/vmlinuz").write_text("image")
    (tmp_path / "kernel/modules/order").write_text("")
    return tmp_path


@pytest.fixture
def qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes a shell script take the place of the emulator; $status is the file of the second serial line."""

    def qemu(script: str) -> None:
        program = tmp_path / "bin/qemu-system-x86_64"
        program.parent.mkdir()
        find = 'for word; do case $word in file:*) status=${word#file:};; esac; done; echo $$ >"$0.pid"\n'
        program.write_text(f"#!/bin/sh\n{find}{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    return qemu


@pytest.mark.parametrize(("options", "status", "said"), [((), 125, ""), (("--skip",), 0, "skipped: ")])
def test_where_a_program_is_missing(machine, monkeypatch, capsys, tmp_path, options, status, said):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(machine.platform, "machine", lambda: "x86_64")
    monkeypatch.setitem(machine.PROGRAMS, "no-such-emulator", "qemu-system-x86")
    monkeypatch.setattr(machine.shutil, "which", lambda name, path: None if name == "no-such-emulator" else name)
    assert machine.main([*options, "--cache", str(tmp_path), "--", "true"]) == status
    missing = "the virtual machine needs no-such-emulator (apt-get install qemu-system-x86)\n"
    assert capsys.readouterr().err == said + missing


@pytest.mark.parametrize(("user", "processor", "said"), [(0, "aarch64", "this is aarch64"), (1000, "x86_64", "root")])
def test_where_there_can_be_none(machine, monkeypatch, capsys, tmp_path, user, processor, said):
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(machine.platform, "machine", lambda: processor)
    assert machine.main(["--cache", str(tmp_path), "--skip", "--", "true"]) == 0
    assert said in capsys.readouterr().err


def test_a_kernel_with_other_modules_is_made_anew(machine, kernel, monkeypatch):
    asked = []

    def download(directory: Path) -> Path:
        asked.append(directory)
        raise machine.MachineError("no network")

    monkeypatch.setattr(machine, "download_kernel", download)
    assert machine.unpack_kernel(kernel) == kernel / "kernel"
    assert asked == []
    monkeypatch.setattr(machine, "MODULES", (*machine.MODULES, "another"))
    with pytest.raises(machine.MachineError, match="no network"):
        machine.unpack_kernel(kernel)


@pytest.mark.tool("cpio", "busybox")
@pytest.mark.parametrize("status", [0, 1, 7, 255])
def test_the_status_is_the_commands(machine, kernel, qemu, status):
    qemu(f"printf '{status}\\r\\n' >$status")
    assert machine.start(["true"], kernel, 60) == status


@pytest.mark.tool("cpio", "busybox")
@pytest.mark.parametrize("script", ["", "exit 0", ": >$status", "echo Kernel panic >$status"])
def test_a_machine_that_tells_no_status_has_failed(machine, kernel, qemu, script):
    qemu(script)
    with pytest.raises(machine.MachineError, match="without a status"):
        machine.start(["true"], kernel, 60)


@pytest.mark.tool("cpio", "busybox")
def test_the_time_limit_ends_the_machine(machine, kernel, qemu, capfd, tmp_path):
    qemu("exec sleep 100")
    assert machine.start(["true"], kernel, 0.3) == 124
    assert "still running after 0.3 s" in capfd.readouterr().err
    assert not Path("/proc", (tmp_path / "bin/qemu-system-x86_64.pid").read_text().strip()).exists()


def test_the_command_has_its_words_directory_and_environment_as_they_are(machine, tmp_path):
    words = ["sh", "-c", 'printf "%s|" "$@" "$PWD" "$QUOTED"; exit 3', "sh", "a b", "$HOME", "it's", ""]
    script = machine.command_script(words, str(tmp_path), {"QUOTED": "it's $HOME\nor `id`", "BASH_FUNC_x%%": "()"})
    inside = script[script.index("    (\n") : script.index("    echo $?")].replace("/dev/ttyS0", "/dev/stdout")
    done = subprocess.run(["sh", "-c", inside], capture_output=True, text=True)
    assert done.stdout == f"a b|$HOME|it's||{tmp_path}|it's $HOME\nor `id`|"
    assert done.returncode == 3
