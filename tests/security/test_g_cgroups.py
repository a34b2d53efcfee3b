"""G: cgroups and devices."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from pathlib import Path

import attrs
import pytest

from pycontainer import PIPE, Device
from pycontainer.command import Command
from pycontainer.errors import InvalidCommandError, NotRunningError, UnsupportedError, WaitTimeoutError
from pycontainer_native.cgroups import detect, devices, freezer, sweep
from pycontainer_native.cgroups.layout import Layout

from ..integration import host
from .catalogue import row
from .mutants import Patch, PlanMutant, left_out, not_mounted, with_capability
from .stages import in_own_mounts, mount_tmpfs

HIERARCHIES = detect().hierarchies


@row("G1", mutants=[with_capability(21, "CAP_SYS_ADMIN")])
def test_g1_cve_2022_0492_no_hierarchy_can_be_mounted(sh):
    agents = [Path(place.mountpoint, "release_agent") for place in HIERARCHIES]
    before = [agent.read_text() for agent in agents if agent.exists()]
    script = """
mkdir -p /dev/shm/c || echo no directory
mount -t cgroup -o memory x /dev/shm/c && echo v1
mount -t cgroup2 x /dev/shm/c && echo v2
mount -t tmpfs x /dev/shm/c && echo tmpfs
find / -name release_agent 2>/dev/null | while read -r file; do (: >>$file) 2>/dev/null && echo $file; done
unshare -C true && echo unshared
echo on
"""
    done = sh(script, cap_drop=["DAC_OVERRIDE"])
    assert done.stdout == "on\n"
    assert [agent.read_text() for agent in agents if agent.exists()] == before


@row("G2", mutants=[PlanMutant("no v1 hierarchy is joined", left_out("join cgroup"))])
def test_g2_cve_2025_47291_limits_hold_before_the_payload(start, held, held_exec, sh):
    def groups(pid):
        return Path(f"/proc/{pid}/cgroup").read_text()

    box = held("set groups and ids", memory="64m", pids_limit=3)
    ours = dict(line.split(":", 2)[1:] for line in groups("self").splitlines())
    theirs = dict(line.split(":", 2)[1:] for line in groups(box.pid).splitlines())
    for place in HIERARCHIES:
        for names, path in theirs.items():
            if {*names.split(",")} & place.controllers & {"memory", "pids", "cpu", "cpuacct"}:
                assert path.startswith(ours[names].rstrip("/") + "/pycontainer-"), names
    assert host.cgroup_value(box.pid, "memory.limit_in_bytes", "memory.max") == str(64 << 20)
    assert host.cgroup_value(box.pid, "pids.max", "pids.max") == "3"
    running = start(["sleep", "100"], pids_limit=5)
    assert groups(held_exec(running, "set groups and ids").pid) == groups(running.pid)
    done = sh("for i in 1 2 3 4 5; do sleep 100 & done", pids_limit=3)  # as the first thing of all
    assert "fork" in done.stderr


@row("G3", mutants=[Patch("any name is taken", "pycontainer._fields.refuse", lambda *_: None)])
def test_g3_a_cgroups_name_does_not_lead_out(busybox_rootfs):
    for name in (
        "../x",
        "a/../../b",
        "/a/../b",
        "..",
        "a//b",
        "a\n",
        "a\0",
        "/",
        "",
        "a b",
        ".",
        "./a",
        "/a/",
        "pycontainer-0123456789ab/1/..",
    ):
        try:
            with pytest.raises(InvalidCommandError):
                Command.of(["true"], rootfs=busybox_rootfs, cgroup_parent=name)
        except (TypeError, ValueError) as error:
            pytest.fail(f"{name!r}: {error!r}")


@row("G4", mutants=[Patch("a path is enough", "pycontainer_native.cgroups.layout._on_device", lambda *_: True)])
def test_g4_a_cgroup_file_system_that_is_none(native):
    def body():
        for place in detect().hierarchies:
            below = place.base[len(place.mountpoint) :]
            mount_tmpfs(Path(place.mountpoint))
            Path(place.mountpoint + below).mkdir(parents=True, exist_ok=True)
            for name in ("cgroup.procs", "tasks", "memory.limit_in_bytes", "pids.max", "cgroup.controllers"):
                Path(place.mountpoint + below, name).write_text("")
        # As the kernel lists them they are all still there, below what lies over them.
        assert [place.base for place in detect().hierarchies] == []

    in_own_mounts(body)


@row(
    "G7",
    mutants=[
        with_capability(27, "CAP_MKNOD"),
        PlanMutant("the rootfs may have nodes", left_out("clone rootfs", "mount_setattr")),
    ],
)
def test_g7_no_device_is_made_or_brought_along(sh, hostile):
    assert "ermitted" in sh("mknod /tmp/sda b 8 0; mknod /tmp/zero c 1 5; ls /tmp").stderr
    hostile.device("zero", 1, 5)
    hostile.device("dev/sda", 8, 0)
    done = sh("head -c 1 /zero; ls -l /dev/sda; echo on", rootfs=hostile)
    assert done.stdout == "on\n"
    assert "Permission denied" in done.stderr


DEV = {
    **{name: ("c", 0o666, device) for name, device in (("null", (1, 3)), ("zero", (1, 5)), ("full", (1, 7)))},
    **{name: ("c", 0o666, device) for name, device in (("random", (1, 8)), ("urandom", (1, 9)), ("tty", (5, 0)))},
    **dict.fromkeys(("fd", "stdin", "stdout", "stderr", "ptmx"), ("l", 0o777, (0, 0))),
    "pts": ("d", 0o755, (0, 0)),
    "shm": ("d", 0o1777, (0, 0)),
    "mqueue": ("d", 0o1777, (0, 0)),
}


def _group_writable(step):
    if step.call != "mknodat" or b"full" not in step.arguments:
        return None
    return step._replace(arguments=(*step.arguments[:2], stat.S_IFCHR | 0o600, os.makedev(1, 11)))  # kmsg


@row("G8", mutants=[PlanMutant("the image's /dev", not_mounted("/dev")), PlanMutant("another device", _group_writable)])
def test_g8_dev_is_a_fixed_list(start, hostile):
    hostile.file("dev/kmsg", "")
    hostile.file("dev/mem", "")
    dev = Path(f"/proc/{start(['sleep', '100'], rootfs=hostile).pid}/root/dev")
    found = {}
    for path in dev.iterdir():
        at = path.lstat()
        found[path.name] = (
            stat.filemode(at.st_mode)[0],
            stat.S_IMODE(at.st_mode),
            (os.major(at.st_rdev), os.minor(at.st_rdev)),
        )
    assert found == DEV


_write = freezer.write


class Interrupt(BaseException):
    pass


@row("G9", mutants=[Patch("it stays so", "pycontainer_native.cgroups.freezer.thaw", lambda _: None)])
def test_g9_an_interrupted_pause_leaves_nothing_frozen(start, monkeypatch, patience):
    box = start(["sleep", "100"])

    def write(path, value):
        _write(path, value)
        if value in ("1", "FROZEN"):
            raise Interrupt

    with monkeypatch.context() as patched:
        patched.setattr(freezer, "write", write)
        with pytest.raises(Interrupt):
            box.pause()
    try:
        assert box.exec(["true"], timeout=patience).returncode == 0
    except WaitTimeoutError:
        pytest.fail("it does not answer")
    finally:
        freezer.write, before = _write, freezer.write
        version, path = freezer._freezer(box._life.process.cgroup())
        _write(*((f"{path}/cgroup.freeze", "0") if version == 2 else (f"{path}/freezer.state", "THAWED")))
        freezer.write = before
    box.pause()
    box.unpause()
    assert box.exec(["true"], timeout=30).returncode == 0


@row("G11", mutants=[Patch("a name is enough", "pycontainer_native.cgroups.live._lock", lambda *_: True)])
def test_g11_only_what_is_dead_is_removed(native):
    # In a directory of its own: the mutant would remove what others have.
    place = HIERARCHIES[-1]
    base = Path(place.base, f"catalogue-{os.getpid()}")
    theirs = base / "pycontainer-0123456789abcdef"
    foreign = base / "pycontainer-somebody"
    for directory in (base, theirs, foreign):
        directory.mkdir()
    lock = os.open(theirs, os.O_RDONLY | os.O_DIRECTORY)
    layout = Layout((attrs.evolve(place, base=str(base)),))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert sweep(layout) == []
        assert theirs.is_dir()
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert sweep(layout) == [str(theirs)]
        assert foreign.is_dir()
    finally:
        os.close(lock)
        for directory in (theirs, foreign, base):
            if directory.is_dir():
                directory.rmdir()


@row("G5", mutants=[with_capability(27, "CAP_MKNOD")])
def test_g5_devices_are_denied_unless_asked_for(start, sh):
    assert sh("mknod /tmp/node b 8 0").returncode != 0
    try:
        box = start(["sleep", "100"], cap_add=["MKNOD"])
    except UnsupportedError:
        return  # without device rules nobody gets it
    rules = host.cgroup_value(box.pid, "devices.list", "devices.list")
    assert rules is None or "a *:* rwm" not in rules
    nodes = "'/b b 8 0' '/k c 1 11' '/l b 7 0'"
    script = f"for n in {nodes}; do mknod /tmp$n; (: <>/tmp${{n%% *}}) && echo $n; done; echo on"
    done = sh(script, cap_add=["MKNOD"])
    assert done.stdout == "on\n"
    assert sh("echo x >/dev/null && head -c 1 /dev/zero | wc -c", cap_add=["MKNOD"]).stdout == "1\n"


_replace = devices.replace


def _denied_first(present, rules):
    return [("devices.deny", "a", "devices.allow"), *(("devices.allow", line, "") for line in devices.lines(rules))]


def _nothing_first(cgroup, rules):
    _replace(cgroup, ())
    _replace(cgroup, rules)


_flapping = (
    Patch("all is denied first", "pycontainer_native.cgroups.devices.changes", _denied_first)
    if any("devices" in place.controllers for place in HIERARCHIES if place.version == 1)
    else Patch("all is denied first", "pycontainer_native.cgroups.devices.replace", _nothing_first)
)


@row("G6", mutants=[_flapping])
def test_g6_an_update_of_rules_has_no_gap(start):
    # /dev/null is among what is allowed before and after.
    script = "echo ready; while (: >/dev/null); do :; done; echo denied"
    box = start(["sh", "-c", script], cap_add=["MKNOD"], device_cgroup_rules=["c 1:11 r"], stdout=PIPE, stderr=PIPE)
    assert box.stdout.readline() == b"ready\n"
    deadline = time.monotonic() + 3  # the mutant's gap is short
    number = 0
    with contextlib.suppress(NotRunningError):
        while box.poll() is None and (number < 300 or time.monotonic() < deadline):
            number += 1
            box.update(device_cgroup_rules=[f"c 1:{number % 2 + 11} r"])
    assert box.poll() is None
    box.kill()
    assert box.stdout.read() == b""


@row("G6", mutants=[Patch("it stays as it was", "pycontainer_native.cgroups.update.update", lambda *_: None)])
def test_g6_an_update_of_rules_is_one(start):
    # What is no longer allowed is denied, or an update would have no gap because it does nothing.
    kmsg = Device("/dev/kmsg", type="c", major=1, minor=11, access="m")
    box = start(["sleep", "100"], devices=[kmsg], device_cgroup_rules=["c 1:11 w"])
    opens = "(: >/dev/kmsg) && echo yes"
    assert box.exec(["sh", "-c", opens], capture_output=True, text=True).stdout == "yes\n"
    box.update(device_cgroup_rules=["c 1:12 w"])
    assert box.exec(["sh", "-c", opens], capture_output=True, text=True).stdout == ""
