"""pycontainer.hooks: hooks as values, and as OCI has them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pycontainer import cli
from pycontainer.command import Command
from pycontainer.errors import InvalidCommandError
from pycontainer.hooks import Hook, Hooks
from pycontainer.spec import to_oci

HOOKS = Hooks(
    create_runtime=[Hook("/bin/a"), Hook("/bin/b", ["b", "x y"], env={"A": "1=2"}, timeout=1.5)],
    poststop=(Hook("/bin/c", timeout=3),),
)
OCI = {
    "createRuntime": [
        {"path": "/bin/a", "args": ["/bin/a"]},
        {"path": "/bin/b", "args": ["b", "x y"], "env": ["A=1=2"], "timeout": 1.5},
    ],
    "poststop": [{"path": "/bin/c", "args": ["/bin/c"], "timeout": 3}],
}


def test_as_oci() -> None:
    assert to_oci(Command.of(["true"], rootfs="/usr", hooks=HOOKS))["hooks"] == OCI == HOOKS.to_oci()
    assert Hooks.from_oci(OCI).to_oci() == OCI
    assert "hooks" not in to_oci(Command.of(["true"], rootfs="/usr"))


def test_prestart_is_the_first_of_create_runtime() -> None:
    hooks = Hooks.from_oci({"createRuntime": [{"path": "/b"}], "prestart": [{"path": "/a"}]})
    assert [hook.path for hook in hooks.create_runtime] == ["/a", "/b"]


def test_as_json() -> None:
    command = Command.of(["true"], rootfs="/usr", hooks=HOOKS)
    again = Command.from_json(command.to_json())
    assert again == command
    assert hash(again) == hash(command)


@pytest.mark.parametrize(
    ("field", "keywords"),
    [
        ("hooks.path", {"path": "relative"}),
        ("hooks.path", {"path": "/a/../b"}),
        ("hooks.path", {"path": "/a\n"}),
        ("hooks.args", {"args": []}),
        ("hooks.args", {"args": ["\0"]}),
        ("hooks.args", {"args": "sh"}),
        ("hooks.env", {"env": {"A=": "1"}}),
        ("hooks.env", {"env": ["A=1"]}),
        ("hooks.timeout", {"timeout": 0}),
        ("hooks.timeout", {"timeout": float("nan")}),
        ("hooks.timeout", {"timeout": True}),
    ],
)
def test_an_impossible_hook(field: str, keywords: dict[str, Any]) -> None:
    with pytest.raises(InvalidCommandError) as caught:
        Hook(**{"path": "/bin/true", **keywords})
    assert caught.value.field == field


@pytest.mark.parametrize("value", [Hook("/a"), ["/a"], "/a", None])
def test_points_hold_hooks(value: Any) -> None:
    with pytest.raises(InvalidCommandError) as caught:
        Hooks(poststart=value)
    assert caught.value.field == "hooks.poststart"
    with pytest.raises(InvalidCommandError):
        Command.of(["true"], hooks=value or [])


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ([], "hooks"),
        ({"prestop": []}, "hooks.prestop"),
        ({"poststop": {}}, "hooks.poststop"),
        ({"poststop": ["/a"]}, "hooks"),
        ({"poststop": [{"args": ["a"]}]}, "hooks"),
        ({"poststop": [{"path": "/a", "cwd": "/"}]}, "hooks.cwd"),
        ({"poststop": [{"path": "/a", "env": ["A"]}]}, "hooks.env"),
        ({"poststop": [{"path": "/a", "env": {"A": "1"}}]}, "hooks.env"),
    ],
)
def test_what_is_not_ocis(data: Any, field: str) -> None:
    with pytest.raises(InvalidCommandError) as caught:
        Hooks.from_oci(data)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("hooks", "field"),
    [
        ({"prestart": []}, "hooks.prestart"),
        ({"poststop": [{"path": "/a", "x": 1}]}, "hooks.poststop.x"),
        ({"poststop": ["/a"]}, "hooks.poststop"),
        ({"poststop": "/a"}, "hooks.poststop"),
        ([], "hooks"),
    ],
)
def test_json_is_checked_like_any_other(hooks: Any, field: str) -> None:
    data = json.loads(Command.of(["true"], name="a").to_json())
    with pytest.raises(InvalidCommandError) as caught:
        Command.from_json(json.dumps(data | {"hooks": hooks}))
    assert caught.value.field == field


def test_from_a_file(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "hooks.json").write_text(json.dumps(OCI))
    options = cli._parser().parse_args(["run", "--hooks-file", str(tmp_path / "hooks.json"), "true"])
    assert cli.command_of(options).hooks == Hooks.from_oci(OCI)
    (tmp_path / "bad.json").write_text("{")
    assert cli.main(["run", "--hooks-file", str(tmp_path / "bad.json"), "true"]) == 125
    assert "not JSON" in capsys.readouterr().err
    assert cli.main(["run", "--hooks-file", str(tmp_path / "missing.json"), "true"]) == 125
