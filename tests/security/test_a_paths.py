"""A: paths, mount targets and symbolic links in a hostile root file system."""

from __future__ import annotations

import os
import stat
import struct
import time
from pathlib import Path

import pytest

import pycontainer
from pycontainer import PIPE, Mount
from pycontainer.errors import ContainerError, SetupError
from pycontainer_native import abi, mounts, plan
from pycontainer_native.driver import NativeDriver
from pycontainer_native.process import NativeProcess

from ..integration import host
from .catalogue import row
from .mutants import Patch, PlanMutant, Several, given, instead, left_out, not_mounted, resolving
from .stages import exchange, flipping, in_own_mounts, mount_tmpfs

#: What a runtime may want to write or mount in a root file system, or find there.
FILES = (
    *("dev/null", "dev/zero", "dev/console", "dev/ptmx", "dev/tty", "dev/random"),
    *("etc/group", "etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/mtab", "etc/localtime"),
    *(".dockerenv", ".krun_config.json", "run/.containerenv", "config.json"),
)
IN_ROOT = abi.RESOLVE_IN_ROOT | abi.RESOLVE_NO_MAGICLINKS
STRICT = abi.RESOLVE_BENEATH | abi.RESOLVE_NO_SYMLINKS

as_the_host_does = PlanMutant("mount targets are looked up as on the host", resolving("mount /", 0))


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source"
    path.mkdir()
    (path / "given").write_text("")
    (path / "file").write_text("given\n")
    return path


@row("A1", mutants=[as_the_host_does])
def test_a1_cve_2015_1335_a_link_in_the_place_of_a_mount_target(start, sh, hostile, source):
    hostile.link("mnt", hostile.canary)
    for target in ("/mnt", "/mnt/new/deep"):
        with pytest.raises(SetupError):
            start(["true"], rootfs=hostile, mounts=[Mount(str(source), target)])
    # Where the link leads inside the container, if there is anything, is where it is mounted.
    (hostile.path / str(hostile.canary).lstrip("/")).mkdir(parents=True)
    done = sh(f"ls {hostile.canary}", rootfs=hostile, mounts=[Mount(str(source), "/mnt")])
    assert done.stdout == "file\ngiven\n"


@row("A2", mutants=[PlanMutant("the image's /dev is used", not_mounted("/dev"))])
def test_a2_cve_2015_3627_nothing_that_the_image_names_is_opened(sh, hostile):
    for name in FILES:
        hostile.link(name, hostile.canary / "file")
    done = sh("cat /proc/keys /proc/timer_list; cat; stat -c %t:%T /dev/null /dev/tty", rootfs=hostile)
    assert done.stdout.split() == ["1:3", "5:0"]


@row("A3", mutants=[as_the_host_does])
def test_a3_cve_2015_3629_a_link_planted_by_the_run_before(start, sh, hostile, source):
    again = {"rootfs": hostile, "mounts": [Mount(str(source), "/data/new")]}
    assert start(["test", "-e", "/data/new/given"], **again).wait(30) == 0
    assert sh(f"rm -r /data && ln -s {hostile.canary} /data", rootfs=hostile).returncode == 0
    with pytest.raises(SetupError):
        start(["true"], **again)


@row("A4", mutants=[as_the_host_does])
def test_a4_cve_2019_18837_a_link_as_the_last_component(start, sh, hostile, source, monkeypatch):
    hostile.link("a/b/last", hostile.canary / "file")
    given = Mount(str(source / "file"), "/a/b/last")
    with pytest.raises(SetupError):
        start(["true"], rootfs=hostile, mounts=[given])
    # Without openat2 there is no other way, and so none.
    with monkeypatch.context() as patched:
        patched.setattr(plan, "_sections", {})
        patched.setitem(abi.NR, "openat2", 9999)
        with pytest.raises(SetupError, match="ENOSYS"):
            start(["true"], rootfs=hostile, mounts=[given])


def masked(pid: int) -> set[str]:
    """What is mounted on the container's procfs, wherever that is by now: names below it."""
    lines = [line.split(" - ")[0].split(" ") for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
    types = [line.split(" - ")[1].split(" ")[0] for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
    [proc] = [fields for fields, fstype in zip(lines, types, strict=True) if fstype == "proc" and fields[3] == "/"]
    return {os.path.relpath(fields[4], proc[4]) for fields in lines if fields[1] == proc[0]}


@row(
    "A5",
    mutants=[
        Patch(
            "masks are looked up by path, in the root",
            "pycontainer_native.mounts.split_hidden",
            lambda *both: (((), ()), both),
        )
    ],
)
def test_a5_cve_2019_19921_proc_is_swapped_before_it_is_masked(start, held, hostile):
    expected = masked(start(["sleep", "100"]).pid)
    assert {"keys", "sys", "timer_list"} <= expected
    (hostile.path / "evil").mkdir()
    box = held(("mask /proc", "pivot_root"), rootfs=hostile)
    exchange(hostile.path / "proc", hostile.path / "evil")
    try:
        box.start()
        assert masked(box.pid) == expected
    except SetupError:
        pass  # as good
    finally:
        exchange(hostile.path / "proc", hostile.path / "evil")


@row("A6", "A9", "A19", mutants=[as_the_host_does])
def test_a6_cve_2021_30465_a_target_that_changes_all_the_time(case, driver, hostile, source):
    (hostile.path / "volume").mkdir()
    hostile.link("link", hostile.canary)
    script = "grep -c /source /proc/self/mountinfo"
    started = tried = 0
    deadline = time.monotonic() + 10
    with flipping(hostile.path / "volume", hostile.path / "link"):
        while tried < 200 or time.monotonic() < deadline:
            target = ("/volume/new/deep", "/volume")[tried % 2]
            tried += 1
            try:
                done = pycontainer.run(
                    ["sh", "-c", script], rootfs=hostile, driver=driver, capture_output=True, timeout=60,
                    mounts=[Mount(str(source), target)],
                )  # fmt: skip
            except SetupError as error:
                assert error.step == f"mount {source} on {target}"  # noqa: PT017
                continue
            started += 1
            assert done.stdout == b"1\n"
            assert [*(hostile.canary / "directory").iterdir()] == []
            assert not (hostile.canary / "new").exists()
    assert started  # the race was one


@row(
    "A7",
    "A8",
    mutants=[
        PlanMutant("a link to /proc is followed", resolving("mount proc on /proc", IN_ROOT)),
        PlanMutant("a link to /sys is followed", resolving("mount sysfs on /sys", IN_ROOT)),
    ],
)
def test_a7_cve_2023_27561_proc_and_sys_are_real_directories(start, hostile):
    for name in ("proc", "sys"):
        for target in (hostile.canary, "/inside", "inside", "../inside", "/inside/deep"):
            (hostile.path / "inside/deep").mkdir(parents=True, exist_ok=True)
            hostile.link(name, target)
            with pytest.raises(SetupError, match=f"on /{name}"):
                start(["true"], rootfs=hostile)
            (hostile.path / name).unlink()
            (hostile.path / name).mkdir()


@row("A10", mutants=[PlanMutant("a link to /dev is followed", resolving("mount tmpfs on /dev", IN_ROOT))])
def test_a10_cve_2026_41579_dev_is_a_link(start, hostile):
    (hostile.path / "inside").mkdir()
    for target in (hostile.canary, "/inside", f"..{hostile.canary}"):
        for tty in (False, True):
            hostile.link("dev", target)
            with pytest.raises(SetupError, match="on /dev"):
                start(["true"], rootfs=hostile, tty=tty)
    assert [*(hostile.path / "inside").iterdir()] == []


def _creating(step):
    if not (step.label.startswith("mount the terminal") and step.call == "mknodat"):
        return None
    how = struct.pack("=QQQ", os.O_RDWR | os.O_CREAT, 0o600, 0)
    return step._replace(call="openat2", arguments=(step.arguments[0], b"console", how, len(how)))


def _ptmx(step):
    if not (step.label == "open a terminal" and step.call == "openat2"):
        return None
    return step._replace(arguments=((abi.DEV,), b"pts/ptmx", *step.arguments[2:]))


@row(
    "A11",
    mutants=[PlanMutant("/dev/console is made in the image, through links", not_mounted("/dev"), _creating, _ptmx)],
)
def test_a11_cve_2026_88264_dev_console_is_a_link(start, hostile):
    hostile.link("dev/console", hostile.canary / "new")
    hostile.file("dev/null", "")
    for tty in (False, True):
        assert start(["true"], rootfs=hostile, tty=tty, stdout=None if tty else PIPE).wait(30) == 0


@row("A12", mutants=[PlanMutant("the image's /dev is used", not_mounted("/dev"))])
def test_a12_cve_2026_88265_dev_null_of_the_image(start, sh, hostile):
    before = os.stat("/dev/null")
    for trap in ("link", "file", "device"):
        if trap == "link":
            hostile.link("dev/null", hostile.canary / "null")
        elif trap == "file":
            hostile.file("dev/null", "mallory\n")
        else:
            hostile.device("dev/null", 1, 11)  # kmsg
        box = start(["sleep", "100"], rootfs=hostile, user="alice", stdout=PIPE)
        stdin = os.stat(f"/proc/{box.pid}/fd/0")
        assert (stat.S_ISCHR(stdin.st_mode), stdin.st_rdev) == (True, os.makedev(1, 3))
        assert sh("stat -c %t:%T:%u /dev/null; cat /dev/null /proc/keys", rootfs=hostile).stdout == "1:3:0\n"
        box.kill()
    after = os.stat("/dev/null")
    assert (before.st_mode, before.st_uid, before.st_gid) == (after.st_mode, after.st_uid, after.st_gid)


@row("A13", mutants=[as_the_host_does])
def test_a13_cve_2026_87766_parents_that_lead_to_the_old_root(start, hostile, source):
    for prefix in ("", "../" * 30, "/oldroot", "/.pivot_root", "/proc/1/root", "/proc/self/cwd", "/../.."):
        (hostile.path / "parent").unlink(missing_ok=True)
        hostile.link("parent", f"{prefix}{hostile.canary}")
        for mount in (Mount(str(source), "/parent/new"), Mount(str(source / "file"), "/parent/new/file")):
            with pytest.raises(SetupError):
                start(["true"], rootfs=hostile, mounts=[mount])


def _visible_proc(step):
    """What is prepared is not mounted over /proc, so that that can be seen."""
    if step.call != "move_mount" or b"/proc" not in step.arguments:
        return None
    return step._replace(arguments=tuple(b"/mnt" if a == b"/proc" else a for a in step.arguments))


@row(
    "A14",
    mutants=[
        Several(
            "magic links are followed",
            Patch("", "pycontainer_native.driver.NativeDriver.validate", lambda *_: ()),
            PlanMutant("", resolving("mount /", 0), _visible_proc),
        )
    ],
)
def test_a14_cve_2024_42472_a_source_through_a_magic_link(start, sh, tmp_path):
    # Links of a source are the caller's and are followed, as Docker does; those of /proc lead anywhere.
    shared = tmp_path / "shared"
    shared.mkdir()
    box = start(["sleep", "100"])
    for number, target in enumerate(("/proc/1/root/etc", f"/proc/{box.pid}/root/etc", "/proc/self/fd/0", "/proc/self")):
        (shared / str(number)).symlink_to(target)
        with pytest.raises(ContainerError):
            start(["true"], mounts=[Mount(str(shared / str(number)), "/v")])


def test_a_link_in_a_source_is_followed_as_the_readme_says(sh, hostile, source):
    # A14 and H17: no defence, but what is promised instead.
    hostile.link("planted", source)
    planted = str(hostile.path / "planted")
    assert sh("ls /v", mounts=[Mount(planted, "/v")]).stdout == "file\ngiven\n"
    # The directory itself, as the README has it, leads nowhere: its links are the container's.
    done = sh("ls /v/planted", mounts=[Mount(str(hostile.path), "/v")])
    assert (done.stdout, "No such file" in done.stderr) == ("", True)


@row("A15", mutants=[PlanMutant("links are refused altogether", resolving("mount /", STRICT))])
def test_a15_links_that_stay_inside_work(start, hostile, source):
    (hostile.path / "run").mkdir()
    for target in ("/run", "../run", "../../../run", "/var/../run"):
        hostile.link("var/run", target)
        try:
            mounts = [Mount(str(source), "/var/run/new"), Mount.tmpfs("/var/run/lock")]
            assert start(["test", "-e", "/run/new/given"], rootfs=hostile, mounts=mounts).wait(30) == 0
        except SetupError as error:
            pytest.fail(str(error))


_root_directory = mounts.root_directory


def _writing(*names):
    """Makes files in the rootfs as runtimes did: by path, before the change of root."""

    def root_directory(k, path, **keywords):
        for name in names:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            k.openat2(abi.AT_FDCWD, f"{path}/{name}".encode(), flags, 0, 0o644)
        return _root_directory(k, path, **keywords)

    return root_directory


#: What a container on a bridge has of its own.
ETC = {f"/etc/{name}": "its own\n" for name in ("hosts", "hostname", "resolv.conf")}

followed = PlanMutant("its own files are shown where the host's path leads", resolving("provide /etc/", 0))


@pytest.fixture
def bridged(monkeypatch):
    """Containers have the files of one on a bridge, which only root could give them."""
    monkeypatch.setattr("pycontainer.etc.etc_files", lambda command: {**ETC, "/etc/file": "its own\n"})
    return {"network": "none"}


def only_in_its_root(box, hostile):
    """Nothing is mounted where the links led; it is about to change its root."""
    return [mount for mount in host.mounts(box.pid) if mount.path.startswith(str(hostile.canary))] == []


@row(
    "A16",
    mutants=[
        Patch("etc/hostname is written", "pycontainer_native.mounts.root_directory", _writing("etc/hostname")),
        followed,
    ],
)
def test_a16_cve_2025_24965_nothing_is_written_into_the_rootfs(start, held, sh, hostile, bridged):
    for name in FILES:
        hostile.link(name, hostile.canary / "file")
    for name in (".dockerenv", "etc/hostname"):
        hostile.link(name, hostile.canary / "new")
    before = {path: path.lstat() for path in hostile.path.rglob("*")}
    assert start(["true"], rootfs=hostile, hostname="other").wait(30) == 0
    for keywords in ({}, {"read_only": True}, {"user": "1000"}, {"hostname": "other"}):
        box = held("pivot_root", rootfs=hostile, **bridged, **keywords)
        assert only_in_its_root(box, hostile)
        box.start()
        box.close()
    after = {path: path.lstat() for path in hostile.path.rglob("*")}
    assert {path: (at.st_ino, at.st_mode) for path, at in after.items()} == {
        path: (at.st_ino, at.st_mode) for path, at in before.items()
    }


@row("A16", mutants=[followed])
def test_a16_cve_2025_24965_a_link_that_stays_inside_is_where_its_own_files_are(sh, hostile, bridged):
    for name in ETC:
        hostile.file(f"inside{name}", "the image's\n")
        hostile.link(name[1:], f"/inside{name}")
    for keywords in ({}, {"read_only": True}):
        assert sh(f"cat {' '.join(ETC)}", rootfs=hostile, **bridged, **keywords).stdout == "its own\n" * 3
    assert {(hostile.path / f"inside{name}").read_text() for name in ETC} == {"the image's\n"}


@row(
    "A17",
    mutants=[Patch("etc/mtab is made", "pycontainer_native.mounts.root_directory", _writing("etc/mtab")), followed],
)
def test_a17_cve_2024_5154_etc_is_a_link(start, held, hostile, bridged):
    for link in (hostile.canary, f"{'../' * 30}{hostile.canary}"):
        hostile.link("etc", link)
        assert start(["true"], rootfs=hostile).wait(30) == 0
        assert start(["true"], rootfs=hostile, user="1000", hostname="other").wait(30) == 0
        for keywords in ({}, {"read_only": True}, {"user": "1000"}):
            box = held("pivot_root", rootfs=hostile, **bridged, **keywords)
            assert only_in_its_root(box, hostile)
            box.start()
            box.close()


@row("A21", mutants=[PlanMutant("mounts are not made private", left_out("make mounts private"))])
def test_a21_no_mount_propagates_to_the_host(busybox_rootfs, source, native):
    def body():
        mountinfo = open("/proc/self/mountinfo")  # noqa: SIM115 # its path may be gone

        def look():
            mountinfo.seek(0)
            return mountinfo.read()

        before = look()
        assert "shared:" in before
        driver = NativeDriver()
        given = {
            "rootfs": busybox_rootfs,
            "driver": driver,
            "mounts": [Mount(str(source), "/mnt"), Mount.tmpfs("/tmp")],
        }
        try:
            with pycontainer.Container(["sleep", "100"], **given) as box:
                assert look() == before
                inside = Path(f"/proc/{box.pid}/mountinfo").read_text()
                assert "shared:" not in inside
                assert "master:" not in inside
            for failing in ({"cwd": "/missing"}, {"mounts": [Mount(str(source), "/etc/passwd")]}, {"rootfs": None}):
                with pytest.raises(SetupError):
                    pycontainer.run(["missing"], **{**given, **failing})
                assert look() == before
        finally:
            driver.close()
            assert look() == before

    in_own_mounts(body, shared=True)


WALK_OUT = """
import os
def here(): return os.stat("/").st_dev, os.stat("/").st_ino
before = here()
os.mkdir("/tmp/cage")
os.chroot("/tmp/cage")
for _ in range(64): os.chdir("..")
os.chroot(".")
print(here() == before, os.path.exists("/etc/shadow"))
"""


@row(
    "A22",
    mutants=[
        PlanMutant(
            "chroot instead of pivot_root",
            instead("pivot_root", "pivot_root", "chroot", b"."),
            left_out("pivot_root", "umount2"),
            left_out("check that the old root is gone"),
        )
    ],
)
def test_a22_a_second_chroot_does_not_walk_out(python, start):
    assert python(WALK_OUT).stdout == "True False\n"
    found = host.mounts(start(["sleep", "100"]).pid)
    assert [mount.path for mount in found].count("/") == 1


@row("A23", mutants=[PlanMutant("the top alone", given("mount /", "mount_setattr", None, None, abi.AT_EMPTY_PATH))])
def test_a23_read_only_all_the_way_down(busybox_rootfs, source, native):
    def body():
        mount_tmpfs(source / "nested")
        driver = NativeDriver()
        try:
            done = pycontainer.run(
                ["sh", "-c", "touch /v/new; touch /v/nested/new"], rootfs=busybox_rootfs, driver=driver,
                mounts=[Mount(str(source), "/v", read_only=True)], capture_output=True, text=True,
            )  # fmt: skip
            assert done.stderr.count("Read-only file system") == 2
        finally:
            driver.close()

    in_own_mounts(body)


_cleared = struct.pack("=QQQQ", abi.MOUNT_ATTR_RDONLY, abi.MOUNT_ATTR_NOSUID | abi.MOUNT_ATTR_NODEV, 0, 0)


@row(
    "A24",
    mutants=[PlanMutant("flags not named are cleared", given("mount /", "mount_setattr", None, None, None, _cleared))],
)
def test_a24_flags_of_the_source_stay(busybox_rootfs, source, native):
    def body():
        mount_tmpfs(source, "nosuid,nodev,noexec")
        driver = NativeDriver()
        try:
            for read_only in (False, True):
                mounts = [Mount(str(source), "/v", read_only=read_only)]
                with pycontainer.Container(
                    ["sleep", "100"], rootfs=busybox_rootfs, driver=driver, mounts=mounts
                ) as box:
                    [options] = [mount.options for mount in host.mounts(box.pid) if mount.path == "/v"]
                    assert {"nosuid", "nodev", "noexec", "ro" if read_only else "rw"} <= options
        finally:
            driver.close()

    in_own_mounts(body)


_close = NativeProcess.close


def _removing(self):
    """A clean-up as naive as they come: whatever was mounted is removed by its path."""
    _close(self)
    for mount in self.command.mounts:
        for path in Path(mount.source).iterdir():
            if path.is_file():
                path.unlink()


@row("A25", mutants=[Patch("sources are removed", "pycontainer_native.process.NativeProcess.close", _removing)])
def test_a25_clean_up_keeps_to_its_own(start, hostile, until):
    hostile.link("tmp/link", hostile.canary)
    volume = Mount(str(hostile.canary), "/volume")
    for end in ("exit", "kill", "close"):
        box = start(["true"] if end == "exit" else ["sleep", "100"], rootfs=hostile, mounts=[volume])
        if end == "kill":
            box.kill()
        if end != "close":
            box.wait(30)
        box.close()
