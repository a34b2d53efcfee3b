"""pycontainer.device: which devices a container has, and the rules about them. Without root."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pycontainer import Device
from pycontainer.command import Command
from pycontainer.device import DEFAULT_DEVICE_RULES
from pycontainer.errors import InvalidCommandError
from pycontainer.spec import limits_to_oci, to_oci

FUSE = {"type": "c", "major": 10, "minor": 229}


def test_a_device_is_the_hosts() -> None:
    known = Device("/dev/null", "/dev/hole").looked_up()
    assert (known.container_path, known.type, known.major, known.minor) == ("/dev/hole", "c", 1, 3)
    assert known.mode == Path("/dev/null").stat().st_mode & 0o777
    assert (known.uid, known.gid, known.access) == (0, 0, "rwm")


def test_what_is_given_is_not_looked_up() -> None:
    known = Device("/dev/nowhere", **FUSE, uid=5, access="wr").looked_up()
    assert (known.major, known.minor, known.mode, known.uid, known.gid, known.access) == (10, 229, 0o666, 5, 0, "rw")
    assert Device("/dev/null", "/dev/hole", mode=0o600, gid=7).looked_up().mode == 0o600


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/dev/fuse", Device("/dev/fuse")),
        ("/dev/fuse:/dev/fuse:rwm", Device("/dev/fuse")),
        ("/dev/fuse:r", Device("/dev/fuse", access="r")),
        ("/dev/sda:/dev/xvda:rm", Device("/dev/sda", "/dev/xvda", access="rm")),
        ("/srv/fuse:/dev/a/b", Device("/srv/fuse", "/dev/a/b")),
    ],
)
def test_parse(text: str, expected: Device) -> None:
    assert Device.parse(text) == expected


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("devices", "/dev/a:/dev/b:/dev/c"),
        ("devices.access", "/dev/a:/dev/b:rwx"),
        ("devices.access", "/dev/a:rr"),
        ("devices.access", "/dev/a:"),
        ("devices.path", "fuse"),
        ("devices.path", "/dev/../fuse"),
        ("devices.path", "/proc/self/fd/3:/dev/x"),
        ("devices.container_path", "/srv/fuse"),
        ("devices.container_path", "/dev/fuse:/fuse"),
        ("devices.container_path", "/dev/fuse:/dev/../fuse"),
        ("devices.container_path", "/dev/fuse:/dev"),
        ("devices.container_path", "/dev/fuse:/dev/null"),
        ("devices.container_path", "/dev/fuse:/dev/pts/7"),
        ("devices.container_path", "/dev/fuse:/dev/shm"),
        ("devices", "/dev/fuse\n"),
    ],
)
def test_text_that_is_no_device(field: str, text: str) -> None:
    with pytest.raises(InvalidCommandError) as caught:
        Device.parse(text)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("devices.type", {"type": "c", "major": 1}),
        ("devices.type", {"type": "p", "major": 1, "minor": 1}),
        ("devices.major", {"type": "c", "major": 4096, "minor": 1}),
        ("devices.minor", {"type": "c", "major": 1, "minor": 2**20}),
        ("devices.minor", {"type": "c", "major": 1, "minor": True}),
        ("devices.mode", {"mode": 0o4666}),
        ("devices.uid", {"uid": -1}),
        ("devices.gid", {"gid": 2**32 - 1}),
        ("devices.access", {"access": "x"}),
    ],
)
def test_a_field_that_cannot_be(field: str, values: dict[str, Any]) -> None:
    with pytest.raises(InvalidCommandError) as caught:
        Device("/dev/fuse", **values)
    assert caught.value.field == field


@pytest.mark.parametrize(("path", "problem"), [("nowhere", "does not exist"), ("a-file", "is not a device")])
def test_a_device_that_the_host_does_not_have(tmp_path: Path, path: str, problem: str) -> None:
    (tmp_path / "a-file").write_text("")
    text = f"{tmp_path / path}:/dev/x"
    with pytest.raises(InvalidCommandError, match=problem) as caught:
        Command.of(["true"], devices=[text])
    assert caught.value.field == "devices.path"
    elsewhere = Command.of(["true"]).copy_with(devices=(Device.parse(text),))  # made for another host
    with pytest.raises(InvalidCommandError, match=problem):
        to_oci(elsewhere)


def test_a_command_of_devices_is_json() -> None:
    command = Command.of(
        ["true"], devices=["/dev/null:/dev/a", Device("/dev/b", **FUSE)], device_cgroup_rules=["c 1:* r"]
    )
    assert Command.from_json(command.to_json()) == command
    assert hash(command.devices)


@pytest.mark.parametrize(
    ("field", "devices"),
    [
        ("devices", "/dev/null"),
        ("devices", [1]),
        ("devices.container_path", ["/dev/null:/dev/a", "/dev/zero:/dev/a"]),
        ("devices.container_path", ["/dev/null:/dev/a", "/dev/zero:/dev/a/b"]),
    ],
)
def test_devices_that_cannot_be_together(field: str, devices: Any) -> None:
    with pytest.raises(InvalidCommandError) as caught:
        Command.of(["true"], devices=devices)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "rule",
    ["", "c 1:3", "c 1:3 x", "c 1:3 rr", "d 1:3 r", "a 1:3 rwm", "a *:* r", "c 4096:1 r", "c -1:3 r", "c 1:3 r\n"],
)
def test_a_rule_that_cannot_be(rule: str) -> None:
    with pytest.raises(InvalidCommandError) as caught:
        Command.of(["true"], device_cgroup_rules=[rule])
    assert caught.value.field == "resources.device_cgroup_rules"


def test_rules_have_one_form() -> None:
    command = Command.of(["true"], device_cgroup_rules=["c 010:0229 mwr", "a *:* rwm", "b *:0 m"])
    assert command.resources.device_cgroup_rules == ("c 10:229 rwm", "a *:* rwm", "b *:0 m")


# -- the OCI runtime spec


def test_the_specs_devices() -> None:
    spec = to_oci(
        Command.of(["true"], devices=[Device("/dev/x", "/dev/y", **FUSE, mode=0o640, uid=1, gid=2, access="r")])
    )
    assert spec["linux"]["devices"] == [{"path": "/dev/y", **FUSE, "fileMode": 0o640, "uid": 1, "gid": 2}]
    rules = spec["linux"]["resources"]["devices"]
    assert rules[0] == {"allow": False, "access": "rwm"}
    assert rules[-1] == {"allow": True, **FUSE, "access": "r"}
    assert all(rule["allow"] for rule in rules[1:])
    assert {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"} in rules
    assert {"allow": True, "type": "c", "major": 136, "access": "rwm"} in rules


def test_rules_come_with_what_needs_them() -> None:
    assert limits_to_oci(Command.of(["true"])) == {}
    assert len(limits_to_oci(Command.of(["true"], cap_add=["MKNOD"]))["devices"]) == len(DEFAULT_DEVICE_RULES) + 1
    assert limits_to_oci(Command.of(["true"], device_cgroup_rules=[]))["devices"][0]["allow"] is False
    everything = [{"allow": True, "access": "rwm"}]
    assert limits_to_oci(Command.of(["true"], privileged=True, devices=["/dev/null:/dev/x"]))["devices"] == everything


def test_no_default_opens_what_is_the_hosts() -> None:
    """Its console, its memory, its log, its disks."""
    usable = {rule.rpartition(" ")[0] for rule in DEFAULT_DEVICE_RULES if rule.rpartition(" ")[2] != "m"}
    assert usable.isdisjoint({"c 5:1", "c 1:1", "c 1:2", "c 1:4", "c 1:11"})
    assert not [rule for rule in usable if rule.startswith(("b", "c *"))]
