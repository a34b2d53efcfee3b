"""Bad input is an error that names the field, before anything is made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import pycontainer
from pycontainer import Mount
from pycontainer.errors import DriverNotFoundError, InvalidCommandError

from . import host

pytestmark = pytest.mark.root

BAD: list[tuple[str, dict[str, Any]]] = [
    *(
        ("id", {"name": name})
        for name in ("..", "a/b", "-rf", "a\n", "", "a\0b", "x" * 300, "ü", ".", ".a", "a b", " a")
    ),
    ("id", {"name": 5}),
    ("hostname", {"hostname": "a\nb"}),
    ("hostname", {"hostname": "x" * 65}),
    ("hostname", {"hostname": "a\0b"}),
    ("process.working_dir", {"cwd": "relative"}),
    ("process.working_dir", {"cwd": "/a\0b"}),
    ("process.env", {"env": {"A=B": "c"}}),
    ("process.env", {"env": {"": "c"}}),
    ("process.env[A]", {"env": {"A": "b\0c"}}),
    ("process.env[A]", {"env": {"A": 5}}),
    ("process.user", {"user": "a\nb"}),
    ("process.user", {"user": "mallory"}),
    ("process.user", {"user": "a\0b"}),
    ("process.user", {"user": True}),
    ("process.additional_groups", {"groups": ["mallory"]}),
    ("process.additional_groups", {"groups": [2**32]}),
    ("process.tty", {"tty": 1}),
    ("process.rlimits", {"rlimits": {"bogus": 5}}),
    ("process.rlimits", {"rlimits": {"nofile": (10, 5)}}),
    ("process.rlimits", {"rlimits": {"nofile": True}}),
    ("cap_add", {"cap_add": ["CAP_BOGUS"]}),
    ("cap_drop", {"cap_drop": ["NOTHING"]}),
    ("resources.memory", {"memory": -5}),
    ("resources.memory", {"memory": "12q"}),
    ("resources.memory", {"memory": True}),
    ("resources.memory", {"memory": 0}),
    ("resources.pids_limit", {"pids_limit": 0}),
    ("resources.pids_limit", {"pids_limit": -2}),
    ("resources.cpu_shares", {"cpu_shares": 1}),
    ("resources.cpuset_cpus", {"cpuset_cpus": "0-"}),
    ("rootfs", {"rootfs": "/missing/rootfs"}),
    ("rootfs", {"rootfs": "/etc/passwd"}),
    ("rootfs", {"rootfs": "/"}),
    ("rootfs", {"rootfs": "/a\0b"}),
    ("pid", {"pid": "elsewhere"}),
    ("config", {"config": ["lxc.hook.pre-start=/bin/touch"]}),
    ("annotations", {"annotations": {"org.pycontainer.init": "true"}}),
    ("cgroup_parent", {"cgroup_parent": "../x"}),
    ("cgroup_parent", {"cgroup_parent": "/"}),
]


@pytest.mark.parametrize(("field", "keywords"), BAD, ids=[f"{field} {number}" for number, (field, _) in enumerate(BAD)])
def test_a_bad_field(native: Any, start: Any, field: str, keywords: Any) -> None:
    before = host.launcher_directories(), host.children(os.getpid())
    with pytest.raises(InvalidCommandError) as caught:
        start(["true"], **keywords)
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")
    assert isinstance(caught.value, ValueError)
    assert before[1] == host.children(os.getpid())


@pytest.mark.parametrize("argv", [[], [""], ["a\0b"], ["true", "a\0b"], "true", [5], [None], [b"a\0"]])
def test_a_bad_argv(start: Any, argv: Any) -> None:
    with pytest.raises(InvalidCommandError, match="process") as caught:
        start(argv)
    assert caught.value.field.startswith("process.")


@pytest.mark.parametrize(
    ("field", "arguments", "keywords"),
    [
        ("mounts.target", ("/tmp", "../x"), {}),
        ("mounts.target", ("/tmp", "/a/../../x"), {}),
        ("mounts.target", ("/tmp", "/a\nb"), {}),
        ("mounts.target", ("/tmp", "/proc/sys"), {}),
        ("mounts.source", ("/missing", "/x"), {}),
        ("mounts.source", ("/proc/self/fd/3", "/x"), {}),
        ("mounts.source", ("/proc/self/root", "/x"), {}),
        ("mounts.source", ("/tmp\0", "/x"), {}),
        ("mounts.options", ("/tmp", "/x"), {"options": ("lowerdir=/",)}),
        ("mounts.type", ("proc", "/x"), {"type": "proc"}),
    ],
)
def test_a_bad_mount(start: Any, field: str, arguments: Any, keywords: Any) -> None:
    with pytest.raises(InvalidCommandError) as caught:
        start(["true"], mounts=[Mount(*arguments, **keywords)])
    assert caught.value.field == field


def test_an_unknown_driver(busybox_rootfs: Path) -> None:
    with pytest.raises(DriverNotFoundError, match="native") as caught:
        pycontainer.run(["true"], rootfs=busybox_rootfs, driver="nativ")
    assert caught.value.name == "nativ"


def test_an_unknown_keyword_names_its_neighbour(start: Any) -> None:
    with pytest.raises(TypeError, match=r"hostnam.*hostname"):
        start(["true"], hostnam="x")


def test_everything_that_is_wrong_is_said_at_once(start: Any) -> None:
    mounts = [Mount("/missing/a", "/a"), Mount("/missing/b", "/b")]
    with pytest.raises(InvalidCommandError) as caught:
        start(["true"], mounts=mounts, cpuset_cpus="4000", config=["x"])
    fields = [field for field, _ in caught.value.problems]
    assert sorted(fields) == ["config", "mounts.source", "mounts.source", "resources.cpuset_cpus"]


def test_nothing_is_started_for_it(busybox_rootfs: Path, native: Any) -> None:
    driver = type(native)()
    try:
        with pytest.raises(InvalidCommandError):
            pycontainer.run(["true"], rootfs=busybox_rootfs, driver=driver, user="mallory")
        with pytest.raises(InvalidCommandError):
            pycontainer.run(["true"], rootfs="/missing", driver=driver)
        assert driver._launchers.current is None
    finally:
        driver.close()
