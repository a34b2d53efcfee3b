"""pycontainer.overlay: a root of several directories, and who its users are."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from pycontainer import rootfs
from pycontainer.command import Command
from pycontainer.driver import Feature
from pycontainer.errors import InvalidCommandError
from pycontainer.lifecycle import required_features
from pycontainer.rootfs import Overlay, lookup_user, overlay
from pycontainer.spec import to_oci


@pytest.fixture
def layer(tmp_path: Path) -> Any:
    """Makes a directory with an etc/passwd of these lines."""

    def layer(name: str, passwd: str | None = None) -> Path:
        path = tmp_path / name
        (path / "etc").mkdir(parents=True)
        if passwd is not None:
            (path / "etc/passwd").write_text(passwd)
        return path

    return layer


def test_a_value(layer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    top, low, up = layer("top"), layer("low"), layer("up")
    monkeypatch.chdir(top.parent)
    made = rootfs.overlay("top", low, upper="up")
    assert made == Overlay((str(top), str(low)), upper=str(up)) == overlay(top, low, upper=up)
    assert made.layers == (str(up), str(top), str(low))
    assert made.work == f"{up}.work"
    assert overlay(low).work is None
    command = Command.of(["true"], rootfs=made)
    assert Command.from_json(command.to_json()) == command
    assert required_features(command) == [Feature.OVERLAY]
    spec = to_oci(command)
    assert spec["root"]["path"] == "rootfs"
    annotations = spec["annotations"]
    assert json.loads(annotations["org.pycontainer.overlay"]) == {"lower": [str(top), str(low)], "upper": str(up)}
    assert "org.pycontainer.rootfs" not in annotations


@pytest.mark.parametrize(
    ("field", "lower", "upper"),
    [
        ("rootfs.lower", (), None),
        ("rootfs.lower", ("missing",), None),
        ("rootfs.lower", ("",), None),
        ("rootfs.lower", ("/",), None),
        ("rootfs.lower", ("/proc/self/root",), None),
        ("rootfs.lower", ("a\nb",), None),
        ("rootfs.lower", (3,), None),
        ("rootfs.upper", ("low",), "missing"),
        ("rootfs.upper", ("low",), "low"),
        ("rootfs.upper", ("low",), "low/etc"),
        ("rootfs.upper", ("low/etc",), "low"),
    ],
)
def test_an_impossible_one(field: str, lower: Any, upper: Any, layer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(layer("low").parent)
    with pytest.raises(InvalidCommandError) as caught:
        overlay(*lower, upper=upper)
    assert caught.value.field == field


@pytest.mark.parametrize("data", [{"lower": "/usr"}, {"lower": ["relative"]}, {"lower": ["/a"], "x": 1}])
def test_json_is_checked_like_any_other(data: Any) -> None:
    text = json.loads(Command.of(["true"], name="a").to_json())
    with pytest.raises(InvalidCommandError, match="rootfs"):
        Command.from_json(json.dumps(text | {"rootfs": data}))


def uid(user: str, *lower: Path, upper: Path | None = None) -> int:
    return lookup_user(overlay(*lower, upper=upper), user).uid


def test_users_are_those_of_the_uppermost_file(layer: Any) -> None:
    low, middle = layer("low", "alice:x:1000:1000::/:\nbob:x:7:7::/:\n"), layer("middle")
    top = layer("top", "alice:x:2000:2000::/:\n")
    assert uid("alice", middle, low) == 1000
    assert uid("alice", top, middle, low) == uid("alice", low, upper=top) == 2000
    with pytest.raises(InvalidCommandError, match="no user 'bob'"):
        uid("bob", top, low)


@pytest.mark.root
def test_users_of_a_file_that_was_removed(layer: Any) -> None:
    low, top = layer("low", "alice:x:1000:1000::/:\n"), layer("top")
    os.mknod(top / "etc/passwd", stat.S_IFCHR, 0)  # as overlayfs notes it
    with pytest.raises(InvalidCommandError, match="no user 'alice'"):
        uid("alice", top, low)


@pytest.mark.root
def test_users_of_a_directory_that_was_replaced(layer: Any) -> None:
    low, top = layer("low", "alice:x:1000:1000::/:\n"), layer("top")
    try:
        os.setxattr(top / "etc", "trusted.overlay.opaque", b"y")
    except OSError:
        pytest.skip("the tests' directory is not on a disk")
    with pytest.raises(InvalidCommandError, match="no user 'alice'"):
        uid("alice", top, low)
