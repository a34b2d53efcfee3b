"""Device nodes and rules: what the kernel lets a container make and open, by v1's lists and by cgroup2's program."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from pycontainer import PIPE, Device, InvalidCommandError, Mount
from pycontainer_native import bpf
from pycontainer_native.cgroups import Layout, detect
from pycontainer_native.driver import NativeDriver

from . import host

pytestmark = pytest.mark.root

#: All hierarchies of the host; on a hybrid one also cgroup2 alone, where a program has to do what v1's lists do.
LAYOUTS = ["host", "v2"] if detect().mode == "hybrid" else ["host"]

#: The kernel log: on every host, and not among the default devices. To open it for writing changes nothing.
KMSG = Device("/dev/kmsg", "/dev/log", type="c", major=1, minor=11)


@pytest.fixture(params=LAYOUTS)
def driver(request: pytest.FixtureRequest, native: NativeDriver, own_driver: NativeDriver) -> NativeDriver:
    if request.param == "host":
        return native
    own_driver._launchers._layout = Layout(tuple(place for place in detect().hierarchies if place.version == 2))
    return own_driver


@pytest.fixture
def opens(sh: Any, driver: NativeDriver) -> Callable[..., list[str]]:
    """Which of the named devices a container can open for writing: "yes", or what the kernel says."""

    def opens(*devices: str, **keywords: Any) -> list[str]:
        script = ""
        for number, device in enumerate(devices):
            script += f"mknod /dev/n{number} {device}; (: >/dev/n{number}) 2>&1 && echo yes;"
        return [line.rpartition(": ")[2] for line in sh(script, driver=driver, **keywords).stdout.splitlines()]

    return opens


def rules_of(box: Any) -> list[str]:
    """v1's list; "program" for each program of the container's own on cgroup2."""
    found = []
    for controllers, directory in host.cgroup_directories(box.pid):
        if "pycontainer-" not in str(directory):
            continue
        if "devices" in controllers.split(","):
            found += (directory / "devices.list").read_text().splitlines()
        elif not controllers:
            fd = os.open(directory, os.O_RDONLY)
            found += ["program" for _ in bpf.attached(fd)]
            os.close(fd)
    return found


def test_a_device(sh: Any, driver: NativeDriver) -> None:
    device = Device("/dev/random", "/dev/own/dice", mode=0o640, uid=1000, gid=2000)
    done = sh("stat -c '%F %a %u %g %t:%T' /dev/own/dice; stat -c %a /dev/own; head -c 3 /dev/own/dice | wc -c",
              driver=driver, devices=[device])  # fmt: skip
    assert done.stdout.splitlines() == ["character special file 640 1000 2000 1:8", "755", "3"]


def test_a_device_of_the_host(sh: Any, driver: NativeDriver, umask: Any) -> None:
    umask(0o077)
    done = sh(
        "stat -c '%a %u:%g %t:%T' /dev/log; (: >/dev/log) && echo open", driver=driver, devices=["/dev/kmsg:/dev/log"]
    )
    found = os.stat("/dev/kmsg")
    assert done.stdout.splitlines() == [f"{found.st_mode & 0o777:o} {found.st_uid}:{found.st_gid} 1:b", "open"]


def test_a_device_may_be_used_as_asked(sh: Any, driver: NativeDriver) -> None:
    script = "(: >/dev/log) 2>&1 && echo written"
    assert sh(script, driver=driver, devices=[KMSG]).stdout == "written\n"
    reading = Device("/dev/kmsg", "/dev/log", type="c", major=1, minor=11, access="r")
    assert "Operation not permitted" in sh(script, driver=driver, devices=[reading]).stdout


def test_who_may_make_nodes_may_not_use_them(opens: Any) -> None:
    """Before the device is even looked for: EPERM, and not the ENXIO of one that is not there."""
    denied = "Operation not permitted"
    assert opens("c 1 3", "c 1 11", "b 8 0", "c 5 1", cap_add=["MKNOD"]) == ["yes", denied, denied, denied]


def test_a_rule_allows_what_it_names(opens: Any) -> None:
    denied = "Operation not permitted"
    found = opens("c 1 11", "c 1 12", cap_add=["MKNOD"], device_cgroup_rules=["c 1:11 w"])
    assert found == ["yes", denied]
    assert opens("c 1 11", cap_add=["MKNOD"], device_cgroup_rules=["c 1:11 r"]) == [denied]
    assert opens("c 1 11", cap_add=["MKNOD"], device_cgroup_rules=["c *:* rw"]) == ["yes"]
    assert opens("c 1 11", cap_add=["MKNOD"], device_cgroup_rules=["a *:* rwm"]) == ["yes"]


def test_the_default_devices_work_under_rules(sh: Any, driver: NativeDriver) -> None:
    script = """echo x >/dev/null; head -c 3 /dev/zero | wc -c; head -c 3 /dev/urandom | wc -c; (echo x >/dev/full) 2>&1
        head -c 3 /dev/random | wc -c"""
    lines = sh(script, driver=driver, devices=[KMSG]).stdout.splitlines()
    assert lines == ["3", "3", "sh: write error: No space left on device", "3"]


def test_a_terminal_works_under_rules(sh: Any, driver: NativeDriver) -> None:
    script = "echo here >/dev/tty; echo there >/dev/console; tty"
    done = sh(script, driver=driver, devices=[KMSG], tty=True, text=False)
    assert done.stdout.split() == [b"here", b"there", b"/dev/pts/0"]


def test_nothing_is_listed_that_was_not_asked_for(start: Any, driver: NativeDriver) -> None:
    found = rules_of(start(["sleep", "100"], driver=driver, devices=[KMSG], cap_add=["MKNOD"]))
    assert found == ["program"] or ("a *:* rwm" not in found and "c 1:11 rwm" in found and "b *:* m" in found)


def test_a_default_container_has_no_rules(start: Any, native: NativeDriver) -> None:
    box = start(["sleep", "100"])
    assert "program" not in rules_of(box)
    own = {
        controllers for controllers, directory in host.cgroup_directories(box.pid) if "pycontainer-" in str(directory)
    }
    assert "devices" not in own


def test_the_privileged_may_use_every_device(opens: Any) -> None:
    assert opens("c 1 11", privileged=True) == ["yes"]
    assert "Operation not permitted" not in opens("b 8 250", privileged=True, devices=[KMSG])


def test_a_further_process_is_under_the_rules(start: Any, driver: NativeDriver) -> None:
    box = start(["sleep", "100"], driver=driver, cap_add=["MKNOD"])
    done = box.exec(["sh", "-c", "mknod /dev/n c 1 11; : >/dev/n"], capture_output=True, text=True)
    assert "Operation not permitted" in done.stderr


def test_no_device_comes_along_with_a_directory(sh: Any, driver: NativeDriver, tmp_path: Path) -> None:
    """Without CAP_MKNOD there are no rules, and so whatever it is given has no devices."""
    (tmp_path / "below").mkdir()
    os.mknod(tmp_path / "below/log", 0o20666, os.makedev(1, 11))
    mounts = [Mount(str(tmp_path), "/mnt"), Mount(str(tmp_path / "below/log"), "/dev/log")]
    done = sh("(: >/mnt/below/log) 2>&1; (: >/dev/log) && echo given by name", driver=driver, mounts=mounts)
    assert [line.rpartition(": ")[2] for line in done.stdout.splitlines()] == ["Permission denied", "given by name"]
    assert "Operation not permitted" in sh(": >/mnt/below/log", driver=driver, mounts=mounts, cap_add=["MKNOD"]).stderr


def test_other_rules_while_it_runs(start: Any, driver: NativeDriver) -> None:
    script = "(: >/dev/own) 2>/dev/null && echo own; (: >/dev/log) 2>/dev/null && echo log"
    own = Device("/dev/own", type="c", major=1, minor=11)  # the same device as the rules are about
    other = Device("/dev/log", type="c", major=1, minor=12)
    keywords = {"driver": driver, "devices": [attrs.evolve(own, access="m"), attrs.evolve(other, access="m")]}
    box = start(["sleep", "100"], **keywords, device_cgroup_rules=["c 1:11 rw"])

    def opened() -> str:
        return str(box.exec(["sh", "-c", script], capture_output=True, text=True).stdout)

    before = rules_of(box)
    assert opened() == "own\n"
    box.update(device_cgroup_rules=["c 1:12 w"])
    assert "own" not in opened()
    assert len(rules_of(box)) == len(before)  # on cgroup2 it still is one program
    box.update(device_cgroup_rules=["c 1:11 w"])
    assert opened() == "own\n"
    box.update(device_cgroup_rules=["c 1:11 rw"])
    assert sorted(rules_of(box)) == sorted(before)


def test_an_update_of_rules_has_no_gap(start: Any, driver: NativeDriver) -> None:
    script = "echo ready; while (: >/dev/null); do :; done; echo denied"
    box = start(["sh", "-c", script], driver=driver, devices=[KMSG], stdout=PIPE)
    assert box.stdout.readline() == b"ready\n"
    for number in range(300):
        box.update(device_cgroup_rules=[f"c 1:{number % 2 + 11} r"])
    assert box.poll() is None
    box.kill()
    assert box.stdout.read() == b""


def test_an_update_that_is_refused_changes_no_rules(start: Any, driver: NativeDriver) -> None:
    box = start(["sleep", "100"], driver=driver, devices=[KMSG], device_cgroup_rules=["c 1:12 r"])
    before = rules_of(box)
    with pytest.raises(InvalidCommandError, match="end of them all") as caught:
        box.update(device_cgroup_rules=["a *:* rwm"])
    assert caught.value.field == "resources.device_cgroup_rules"
    with pytest.raises(InvalidCommandError):
        box.update(device_cgroup_rules=["c 1:13 r"], cpuset_cpus="4000")
    assert rules_of(box) == before


@pytest.mark.parametrize("keywords", [{}, {"privileged": True}])
def test_who_has_no_rules_gets_none(start: Any, keywords: Any) -> None:
    box = start(["sleep", "100"], **keywords)
    with pytest.raises(InvalidCommandError, match="without any") as caught:
        box.update(device_cgroup_rules=["c 1:11 r"])
    assert caught.value.field == "resources.device_cgroup_rules"


@pytest.mark.parametrize(
    ("field", "keywords"),
    [
        ("devices.path", {"devices": ["/dev/nowhere"]}),
        ("devices.path", {"devices": ["/dev/shm:/dev/x"]}),
        ("devices.container_path", {"devices": ["/dev/kmsg:/dev/null"]}),
        ("resources.device_cgroup_rules", {"device_cgroup_rules": ["c 1:3"]}),
    ],
)
def test_what_is_no_device(start: Any, field: str, keywords: Any) -> None:
    with pytest.raises(InvalidCommandError) as caught:
        start(["true"], **keywords)
    assert caught.value.field == field


def test_no_device_in_a_user_namespace(start: Any) -> None:
    with pytest.raises(InvalidCommandError, match="user namespace") as caught:
        start(["true"], devices=[KMSG], userns="auto")
    assert caught.value.field == "devices"


@pytest.mark.parametrize("keywords", [{"devices": [KMSG]}, {"cap_add": ["MKNOD"]}, {"device_cgroup_rules": []}])
def test_where_nothing_can_hold_rules(start: Any, own_driver: NativeDriver, keywords: Any) -> None:
    own_driver._launchers._layout = Layout()
    with pytest.raises(InvalidCommandError, match="controller devices") as caught:
        start(["true"], driver=own_driver, **keywords)
    assert caught.value.field == "devices"


def test_the_rootfs_has_no_part_in_it(sh: Any, hostile: Any, driver: NativeDriver) -> None:
    hostile.link("dev/own", hostile.canary)
    hostile.device("log", 1, 11)
    done = sh("ls -d /dev/own/*; (: >/log) 2>&1", rootfs=hostile, driver=driver, devices=["/dev/kmsg:/dev/own/log"])
    assert done.stdout.startswith("/dev/own/log\n")
    assert "Permission denied" in done.stdout
