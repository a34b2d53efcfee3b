"""The example of a third-party driver, installed from its own folder into a fresh environment, and used."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[1] / "example_driver"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with the example in it; the library is this environment's."""
    home = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(home, symlinks=True)
    fresh = home / "bin/python"
    site = subprocess.check_output([fresh, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True)
    # As a .pth, so that the entries of an editable installation work as well.
    line = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    (Path(site.strip()) / "library.pth").write_text(line)
    source = home.parent / "source"
    source.mkdir()
    for name in ("pyproject.toml", "pycontainer_unshare.py"):
        (source / name).write_bytes((EXAMPLE / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--python", str(fresh), "install", "--quiet", "--no-deps", str(source)]
    subprocess.run(pip, check=True, cwd=home.parent)
    return fresh


def output(python: Path, *arguments: str, code: int = 0, **variables: str) -> str:
    environment = {**os.environ, **variables}
    done = subprocess.run([python, *arguments], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def test_it_is_found_by_its_entry_point(python: Path) -> None:
    found = {driver["name"]: driver for driver in json.loads(output(python, "-m", "pycontainer", "drivers", "--json"))}
    assert found["unshare"]["distribution"] == "pycontainer-unshare 0.1.0"
    assert found["unshare"]["entry_point"] == "pycontainer_unshare"
    assert found["unshare"]["features"] == {}
    assert "native" in found


@pytest.mark.root
@pytest.mark.tool("unshare")
@pytest.mark.tool("busybox")
def test_it_is_chosen_by_name_and_by_the_environment(python: Path, busybox_rootfs: Path) -> None:
    run = ["-m", "pycontainer", "run", "--rootfs", str(busybox_rootfs)]
    script = ["sh", "-c", "echo $$ $(id -u):$(id -g)"]
    assert output(python, *run, "--driver", "unshare", "-u", "alice", *script) == "1 1000:1000\n"
    assert output(python, *run, "-u", "alice", *script, PYCONTAINER_DRIVER="unshare") == "1 1000:1000\n"
    assert output(python, *run, "sh", "-c", "exit 7", code=7, PYCONTAINER_DRIVER="unshare") == ""


def test_what_it_lacks_is_refused(python: Path, tmp_path: Path) -> None:
    run = ["-m", "pycontainer", "run", "--driver", "unshare", "--rootfs", str(tmp_path)]
    output(python, *run, "-m", "64m", "true", code=125)
    output(python, *run, "--require", "pause", "true", code=125)


@pytest.mark.root
@pytest.mark.tool("unshare")
@pytest.mark.tool("busybox")
def test_it_passes_the_kit(python: Path, tmp_path: Path) -> None:
    kit = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "--pyargs"]
    out = output(python, *kit, "pycontainer.testing.conformance", "--container-driver", "unshare")
    assert re.search(r"^\d+ passed in", out, re.M), out


def test_it_is_strictly_typed_against_the_public_types(python: Path, tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    mypy = ["-m", "mypy", "--strict", f"--cache-dir={tmp_path}", str(EXAMPLE / "pycontainer_unshare.py")]
    assert "Success" in output(python, *mypy)


def test_it_is_short() -> None:
    lines = (EXAMPLE / "pycontainer_unshare.py").read_text().splitlines()
    code = [line for line in lines if line.strip() and not line.strip().startswith(("#", '"""'))]
    assert len(code) < 150


def test_it_imports_only_public_names() -> None:
    text = (EXAMPLE / "pycontainer_unshare.py").read_text()
    assert not re.search(r"pycontainer[.\w]*\._", text)
