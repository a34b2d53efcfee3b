"""What drivers have written down, after somebody has been at it."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pycontainer.command import Command
from pycontainer.errors import ContainerError
from pycontainer.logs import read_log
from pycontainer.records import MAX_SIZE, load
from pycontainer_lxc import record
from pycontainer_native.state import Store

CONFIG = {
    "created": 1.5,
    "directory": "pycontainer-0123456789abcdef/1",
    "groups": [["/sys/fs/cgroup/memory", 1, ["memory"]]],
    "namespaces": ["mount"],
}
START = {"pid": 4194000, "began": 5, "started": 2.5}
EXIT = {"exit_code": 3, "signal": None, "oom_kills": 0, "ended": 3.5, "finished": True, "note": ""}

TRAPS: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_text(""),
    "truncated": lambda path: path.write_text(path.read_text()[:-5]),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\0"),
    "deep": lambda path: path.write_text("[" * 1_000_000),
    "deep fields": lambda path: path.write_text('{"a":' * 100_000),
    "a long number": lambda path: path.write_text('{"created": ' + "1" * 4_000_000 + "}"),
    "no number": lambda path: path.write_text('{"created": NaN}'),
    "infinite": lambda path: path.write_text('{"created": 1e999, "pid": 1, "ended": 1e999}'),
    "a list": lambda path: path.write_text("[1, 2]"),
    "null": lambda path: path.write_text("null"),
    "huge": lambda path: path.write_text('"' + "x" * MAX_SIZE + '"'),
    "sparse": lambda path: os.truncate(path, 1 << 40),
    "a link": lambda path: (path.rename(f"{path}.old"), path.symlink_to(f"{path}.old")),
    "endless": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    "a fifo": lambda path: (path.unlink(), os.mkfifo(path)),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """With two containers on record, "broken" and "fine", which have ended."""
    store = Store(str(tmp_path))
    monkeypatch.setattr(store, "_is_there", lambda: True)  # /tmp is anybody's
    (tmp_path / "containers").mkdir()
    for id in ("broken", "fine"):
        path = tmp_path / "containers" / id
        path.mkdir(0o700)
        command = json.loads(Command.of(["true"], name=id).to_json())
        for name, content in (("config", {**CONFIG, "command": command}), ("start", START), ("exit", EXIT)):
            (path / f"{name}.json").write_text(json.dumps(content))
    assert [found.id for found in store.records()] == ["broken", "fine"]
    return store


def refused(path: Path, look: Callable[[], object], field: str = "") -> None:
    """*look* says in time, and in little memory, that the file *path* is damaged."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ContainerError) as caught:
        look()
    assert time.monotonic() - began < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10
    assert str(path) in str(caught.value)
    assert field in str(caught.value)
    assert len(str(caught.value)) < 500


def find_broken(store: Store) -> None:
    """Raise the problem that its record has."""
    assert {found.id: bool(found.problem) for found in store.records()} == {"broken": True, "fine": False}
    found = store.find("broken")
    assert found is not None
    raise ContainerError(found.problem)


@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize("name", ["config", "start", "exit"])
def test_a_file_that_is_none(store: Store, tmp_path: Path, name: str, trap: str) -> None:
    path = tmp_path / "containers/broken" / f"{name}.json"
    TRAPS[trap](path)
    refused(path, lambda: find_broken(store))
    assert [getattr(found, "id", found) for found in store.collect(lambda found: True, lost=True)] == []
    assert path.parent.is_dir()  # nobody knows what is left of it


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        *(("config", "command", "x"), ("config", "created", "1"), ("config", "created", True)),
        *(("config", "directory", "../.."), ("config", "directory", "pycontainer-0123456789abcdef/..")),
        ("config", "d", 5),
        *(("config", "groups", {}), ("config", "groups", [["/a/../b", 1, []]]), ("config", "groups", [["/a", 3, []]])),
        *(("config", "groups", [["/a", True, []]]), ("config", "groups", [["/a", 1, [5]]]), ("config", "groups", [1])),
        *(("config", "namespaces", "mount"), ("config", "namespaces", [None]), ("start", "pid", "1")),
        ("start", "pid", 0),
        *(("start", "pid", -1), ("start", "pid", 1 << 40), ("start", "pid", 1.5), ("start", "pid", True)),
        *(("start", "began", "x"), ("start", "began", -5), ("start", "started", None), ("exit", "exit_code", "0")),
        *(("exit", "signal", []), ("exit", "oom_kills", None), ("exit", "ended", "now"), ("exit", "finished", 1)),
        *(("exit", "note", None), ("exit", "note", {})),
    ],
)  # fmt: skip
def test_a_field_that_is_another(store: Store, tmp_path: Path, name: str, field: str, value: Any) -> None:
    path = tmp_path / "containers/broken" / f"{name}.json"
    content = json.loads(path.read_text())
    if field == "d":
        field = "directory"
        del content["directory"]
    else:
        content[field] = value
    path.write_text(json.dumps(content))
    refused(path, lambda: find_broken(store), f"'{field}'")


def test_a_command_that_is_none(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "containers/broken/config.json"
    config = json.loads(path.read_text())
    for change in ({"process": []}, {"more": 1}, {"id": "fine"}, {"id": "../x"}):
        path.write_text(json.dumps({**config, "command": {**config["command"], **change}}))
        refused(path, lambda: find_broken(store))
        found = store.find("broken")
        assert found is not None
        assert found.command is None


def test_what_is_no_directory_is_nobodys_record(store: Store, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "containers/fifo")
    (tmp_path / "containers/link").symlink_to("fine")
    assert store.find("fifo") is store.find("link") is None
    assert [found.id for found in store.records()] == ["broken", "fine"]
    assert store.collect(lambda found: True, lost=True) == []
    assert (tmp_path / "containers/fine/config.json").exists()


def test_more_than_can_be_read_again_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ContainerError, match="too long"):
        Store(str(tmp_path)).claim("web", {"command": "x" * MAX_SIZE})
    assert [*tmp_path.iterdir()] == []


def test_what_is_not_there(tmp_path: Path) -> None:
    assert load(f"{tmp_path}/missing") is None


@pytest.mark.parametrize("trap", ["a link", "endless", "a fifo", "a directory"])
def test_a_log_that_is_none(tmp_path: Path, trap: str) -> None:
    (tmp_path / "log").write_text("2026-10-06T00:17:09.669794202Z stdout F hello\n")
    TRAPS[trap](tmp_path / "log")
    (tmp_path / "log.old").unlink(missing_ok=True)
    with pytest.raises(OSError):  # noqa: PT011
        list(read_log(tmp_path))


# -- those of the LXC driver


@pytest.fixture
def lxc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(record, "ROOT", str(tmp_path))
    for id in ("broken", "fine"):
        known = {"guard": 4194000, "token": "t", "lxcpath": "/run/x", "directories": {"": "/x"}, "isolated": True}
        content = {"command": Command.of(["true"], name=id).to_json(), "created": 1.5, **known}
        (tmp_path / id).mkdir()
        for name, value in (
            *(("container", content), ("started", {"pid": 4194000, "monitor": 4194001})),
            ("ended", [["exited", 3, None, False, ""], 2.5]),
        ):
            (tmp_path / id / name).write_text(json.dumps(value))
        found = record.find(id)
        assert found is not None
        assert found.info().status is not None
    return tmp_path / "broken"


def look() -> None:
    found = record.find("broken")
    assert found is not None
    found.started()
    info = found.info()
    found.described  # noqa: B018 - what an exec needs
    if info.problem:
        raise ContainerError(info.problem)


@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize("name", ["container", "started", "ended"])
def test_a_file_of_lxcs_that_is_none(lxc: Path, name: str, trap: str) -> None:
    TRAPS[trap](lxc / name)
    refused(lxc / name, look)
    assert "fine" in [found.id for found in record.records()]


@pytest.mark.parametrize(
    ("name", "change", "field"),
    [
        *(("container", {"command": {}}, "command"), ("container", {"command": "x"}, "command")),
        *(("container", {"created": "x"}, "created"), ("container", {"guard": "1"}, "guard")),
        *(("container", {"guard": None}, "guard"), ("container", {"token": 5}, "token")),
        *(("container", {"directories": {"": "x"}}, "directories"), ("container", {"directories": []}, "directories")),
        *(("container", {"isolated": 1}, "isolated"), ("started", {"pid": -1}, "pid")),
        ("started", {"pid": "1"}, "pid"),
        ("started", {"monitor": None}, "monitor"),
    ],
)  # fmt: skip
def test_a_field_of_lxcs_that_is_another(lxc: Path, name: str, change: dict[str, Any], field: str) -> None:
    content = json.loads((lxc / name).read_text())
    (lxc / name).write_text(json.dumps({**content, **change}))
    refused(lxc / name, look, f"'{field}'")


@pytest.mark.parametrize(
    "value",
    [[], [[], 1], [["exited"], 1.5], [["exited", "0", None, False, ""], 1.5], [["exited", 0, None, False, ""], "x"], 5],
)
def test_an_end_of_lxcs_that_is_another(lxc: Path, value: Any) -> None:
    (lxc / "ended").write_text(json.dumps(value))
    refused(lxc / "ended", look)


def test_an_id_is_no_path(lxc: Path) -> None:
    assert record.find("../broken") is None
    assert record.find(f"../{lxc.parent.name}/broken") is None
