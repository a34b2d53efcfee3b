"""The ids of a user namespace, without one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pycontainer.command import Command
from pycontainer.errors import SetupError
from pycontainer.spec import to_oci
from pycontainer_native import plan, probe, userns
from pycontainer_native.host import Host
from pycontainer_native.userns import UserNamespace, outside, subordinates

SINGLE = UserNamespace(((0, 1000, 1),), ((0, 1000, 1),), setgroups=False)
RANGE = UserNamespace(((0, 1000, 1), (1, 100000, 65536)), ((0, 1000, 1), (1, 100000, 65536)))


def test_who_an_id_is_outside() -> None:
    maps = ((0, 1000, 1), (1, 100000, 10), (100, 7, 2))
    assert [outside(number, maps) for number in (0, 1, 10, 11, 99, 101, 102)] == [
        *(1000, 100000, 100009, None, None, 8, None)
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("alice:100000:65536\n", []),
        ("54321:100000:65536\n", [(100000, 65536)]),
        ("54321:100000:65536\nbob:1:1\n54321:7:3\n", [(100000, 65536), (7, 3)]),
        ("54321:100000\n54321::\n54321:a:b\n54321:1:0\n54321:-1:5\n:1:1\n\n54321", []),
    ],
)
def test_the_lines_of_a_user(tmp_path: Path, text: str, expected: list[tuple[int, int]]) -> None:
    file = tmp_path / "subuid"
    file.write_text(text)
    assert list(subordinates(str(file), 54321)) == expected


def test_no_file() -> None:
    assert list(subordinates("/nonexistent", 0)) == []


def test_a_users_name_counts_too(tmp_path: Path) -> None:
    file = tmp_path / "subuid"
    file.write_text("root:5:6\n")
    assert list(subordinates(str(file), 0)) == [(5, 6)]


@pytest.mark.parametrize(
    ("programs", "uids", "gids", "expected"),
    [
        (True, [(5, 2), (9, 1)], [(70, 3)], (((0, 42, 1), (1, 5, 2), (3, 9, 1)), ((0, 43, 1), (1, 70, 3)), True)),
        (False, [(5, 2)], [(70, 3)], (((0, 42, 1),), ((0, 43, 1),), False)),
        (True, [], [(70, 3)], (((0, 42, 1),), ((0, 43, 1),), False)),
        (True, [(5, 2)], [], (((0, 42, 1),), ((0, 43, 1),), False)),
    ],
    ids=["ranges", "no programs", "no uids", "no gids"],
)
def test_what_an_ordinary_user_can_have(
    monkeypatch: pytest.MonkeyPatch, programs: bool, uids: object, gids: object, expected: tuple[object, ...]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 42)
    monkeypatch.setattr(os, "getegid", lambda: 43)
    monkeypatch.setattr(userns, "_program", lambda name: name if programs else None)
    monkeypatch.setattr(userns, "subordinates", lambda file, uid: iter(uids if file == userns.SUBUID else gids))  # type: ignore[call-overload]
    assert userns.of_ordinary_user() == UserNamespace(*expected)  # type: ignore[arg-type]


def problems(namespace: UserNamespace, uid: int, gid: int, *groups: int) -> list[str]:
    return [name for name, _ in namespace.problems({"uid": uid, "gid": gid, "additionalGids": list(groups)})]


def test_ids_that_are_not_there() -> None:
    assert problems(SINGLE, 0, 0) == []
    assert problems(SINGLE, 0, 0, 0) == []
    assert problems(SINGLE, 1, 2) == ["process.user", "process.user"]
    assert problems(SINGLE, 0, 0, 5) == ["process.additional_groups", "process.additional_groups"]
    assert problems(RANGE, 65536, 1, 2, 3) == []
    assert problems(RANGE, 65537, 0, 65537) == ["process.user", "process.additional_groups"]


def plan_of(namespace: UserNamespace | None, **keywords: object) -> plan.Plan:
    host = Host(
        capabilities=(1 << 41) - 1,
        last_capability=40,
        nofile=(1024, 4096),
        is_directory=lambda path: True,
        is_read_only=lambda path: False,
        namespace=namespace,
        initial=namespace is None,
    )
    return plan.compile(to_oci(Command.of(["true"], rootfs="/", **keywords)), (), host)  # type: ignore[arg-type]


def labels(compiled: plan.Plan, call: str) -> list[str]:
    return [step.label for section in compiled.sections for step in section.steps if step.call == call]


def options(compiled: plan.Plan, label: str) -> list[object]:
    steps = (step for section in compiled.sections for step in section.steps)
    return [step.arguments[2:4] for step in steps if step.label == label and step.call == "fsconfig"]


def test_setgroups_only_where_it_is_allowed() -> None:
    assert [len(labels(plan_of(namespace), "setgroups")) for namespace in (None, RANGE, SINGLE)] == [1, 1, 0]


def test_devices_are_made_by_root_alone() -> None:
    assert "mount /dev/null" not in labels(plan_of(None), "open_tree")
    assert "mount /dev/null" in labels(plan_of(SINGLE), "open_tree")


def test_the_group_of_terminals_where_it_exists() -> None:
    group = (b"gid", b"5")
    assert group in options(plan_of(None), "mount devpts on /dev/pts")
    assert group in options(plan_of(RANGE), "mount devpts on /dev/pts")
    assert group not in options(plan_of(SINGLE), "mount devpts on /dev/pts")


def test_what_shows_the_hosts_namespaces_is_the_hosts() -> None:
    """Only who owns a namespace mounts what shows it (CVE-2023-25809: and the cgroups that come along are masked)."""
    own, shared = plan_of(SINGLE), plan_of(SINGLE, network="host", ipc="host", pid="host")
    for label in ("clone /sys for /sys", "clone /proc for /proc", "clone /dev/mqueue for /dev/mqueue"):
        assert label not in labels(own, "open_tree")
        assert label in labels(shared, "open_tree")
        assert label not in labels(plan_of(None, network="host", ipc="host", pid="host"), "open_tree")
    assert "mask /sys/fs/cgroup" in labels(shared, "open_tree")
    assert "mask /sys/fs/cgroup" not in labels(own, "open_tree")


@pytest.mark.parametrize(
    ("setting", "remedy"),
    [
        ("user.max_user_namespaces=0", "sysctl -w user.max_user_namespaces=10000"),
        ("kernel.unprivileged_userns_clone=0", "sysctl -w kernel.unprivileged_userns_clone=1"),
        ("kernel.apparmor_restrict_unprivileged_userns=1", "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"),
        ("kernel.unprivileged_userns_clone=1", "allow user namespaces"),
    ],
)
def test_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, remedy: str) -> None:
    name, value = setting.split("=")
    file = tmp_path / name.replace(".", "/")
    file.parent.mkdir()
    file.write_text(value)
    monkeypatch.setattr(probe, "SYSCTL_DIRECTORY", str(tmp_path))
    found = probe.without_user_namespace("native-1", SetupError("enter a user namespace", 1))
    assert not found.usable
    assert found.cause == "rootless: enter a user namespace: EPERM (Operation not permitted)"
    assert found.remedy.startswith(remedy)
