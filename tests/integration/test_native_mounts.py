"""What the payload sees of file systems, and what a hostile rootfs, volume or mount target cannot do with them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pycontainer import PIPE, Mount
from pycontainer.errors import ContainerError, InvalidCommandError, SetupError
from pycontainer.rootfs import HostView

from . import host
from .hostile import Rootfs

pytestmark = pytest.mark.root

# moby's lists, written down here so that the code's own are not believed.
MASKED = (
    *("acpi", "asound", "interrupts", "kcore", "keys", "latency_stats", "sched_debug", "scsi", "timer_list"),
    "timer_stats",
)
MASKED_PATHS = [*(f"/proc/{name}" for name in MASKED), "/sys/devices/virtual/powercap", "/sys/firmware"]
READONLY_PATHS = [f"/proc/{name}" for name in ("bus", "fs", "irq", "sys", "sysrq-trigger")]

#: name, mode, device: what /dev has (OCI runtime spec, "Default Devices", and what Docker adds).
DEVICES = [
    *("c 666 1:3 null", "c 666 1:5 zero", "c 666 1:7 full", "c 666 1:8 random", "c 666 1:9 urandom", "c 666 5:0 tty"),
    *("d 755 pts", "d 1777 shm", "d 1777 mqueue"),
    *("l fd /proc/self/fd", "l stdin /proc/self/fd/0", "l stdout /proc/self/fd/1", "l stderr /proc/self/fd/2"),
    "l ptmx pts/ptmx",
]


def umount(path: Path) -> None:
    subprocess.run(["umount", "-R", path], check=True)


# -- what is there


def test_the_mounts(start: Any, busybox_rootfs: Path) -> None:
    box = start(["sleep", "100"])
    mounts = {mount.path: mount for mount in host.mounts(box.pid)}
    expected = {
        "/": (None, {"rw", "nodev"}),
        "/proc": ("proc", {"rw", "nosuid", "noexec", "nodev"}),
        "/sys": ("sysfs", {"ro", "nosuid", "noexec", "nodev"}),
        "/dev": ("tmpfs", {"rw", "nosuid", "size=65536k", "mode=755"}),
        "/dev/pts": ("devpts", {"rw", "nosuid", "noexec", "gid=5", "mode=620", "ptmxmode=666"}),
        "/dev/shm": ("tmpfs", {"rw", "nosuid", "noexec", "nodev", "size=65536k"}),
        "/dev/mqueue": ("mqueue", {"rw", "nosuid", "noexec", "nodev"}),
    }
    for path, (fstype, options) in expected.items():
        assert options <= mounts[path].options, path
        assert fstype is None or mounts[path].fstype == fstype
    others = {path for path in mounts if path not in expected}
    assert others <= {*MASKED_PATHS, *READONLY_PATHS} | {path for path in others if "thermal_throttle" in path}
    # Nothing of the host, and nothing that hears of the host's mounts.
    assert all("shared:" not in mount.propagation and "master:" not in mount.propagation for mount in mounts.values())
    assert mounts["/"].root == str(busybox_rootfs)
    assert os.stat(f"/proc/{box.pid}/root/").st_ino == busybox_rootfs.stat().st_ino


def test_dev(sh: Any) -> None:
    script = """cd /dev; for f in *; do
        if [ -h $f ]; then echo l $f $(readlink $f); elif [ -d $f ]; then echo d $(stat -c %a $f) $f
        else echo c $(stat -c '%a %t:%T' $f) $f; fi; done"""
    assert sorted(sh(script).stdout.splitlines()) == sorted(DEVICES)


def test_the_devices_work(sh: Any) -> None:
    script = """echo x >/dev/null; head -c 3 /dev/zero | od -An -tx1; head -c 8 /dev/urandom | wc -c
        (echo x >/dev/full) 2>&1; touch /dev/shm/a /dev/mqueue; echo out >/dev/stdout; ls /dev/fd/ | head -n1"""
    lines = sh(script).stdout.splitlines()
    assert lines == [" 00 00 00", "8", "sh: write error: No space left on device", "out", "0"]


def test_no_device_can_be_made(sh: Any, hostile: Any) -> None:
    hostile.device("dev-null", 1, 3)
    hostile.device("etc/zero", 1, 5)
    done = sh("mknod /tmp/n c 1 3; echo $?; cat /dev-null /etc/zero; echo $?", rootfs=hostile)
    assert done.stdout.split() == ["1", "1"]
    assert "Operation not permitted" in done.stderr  # no CAP_MKNOD
    assert done.stderr.count("Permission denied") == 2  # and nodev for what the image brought along


def test_ptmx_and_pts_are_its_own(python: Any) -> None:
    code = """
import os
master, slave = os.openpty()
found = os.fstat(slave)
print(os.ttyname(slave), oct(found.st_mode), found.st_gid, os.major(found.st_rdev), sorted(os.listdir("/dev/pts")))
"""
    assert python(code).stdout.strip() == "/dev/pts/0 0o20620 5 136 ['0', 'ptmx']"


def test_masked_paths(sh: Any) -> None:
    existing = [path for path in MASKED_PATHS if os.path.exists(path)]
    assert existing, "this kernel has none of them?"
    script = "; ".join(f"[ -d {path} ] && ls -A {path} || head -c 99 {path}" for path in existing)
    done = sh(script)
    assert (done.stdout, done.stderr) == ("", "")
    done = sh("; ".join(f"touch {path}/new" for path in existing if os.path.isdir(path)) or ":")
    assert "Read-only" in done.stderr or not any(map(os.path.isdir, existing))


def test_read_only_paths(sh: Any) -> None:
    files = ["/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe"]
    files += ["/proc/sys/kernel/hostname", "/proc/irq/default_smp_affinity", "/proc/sys/vm/drop_caches"]
    files += ["/sys/kernel/uevent_helper", "/sys/kernel/mm/ksm/run"]
    files = [path for path in files if os.path.exists(path)]
    # Opened for writing, never written to.
    done = sh("for f in " + " ".join(files) + "; do (: >>$f) 2>&1; done")
    assert [line.endswith("Read-only file system") for line in done.stdout.splitlines()] == [True] * len(files)


def test_a_privileged_one_has_no_masks(start: Any) -> None:
    mounts = {mount.path: mount for mount in host.mounts(start(["sleep", "100"], privileged=True).pid)}
    assert not {*MASKED_PATHS, *READONLY_PATHS} & mounts.keys()
    assert "rw" in mounts["/sys"].options


def test_masks_as_asked(sh: Any) -> None:
    hidden = {"masked_paths": ["/proc/sys", "/proc/version", "/proc/missing"], "readonly_paths": ["/proc/uptime", "/x"]}
    done = sh("ls -A /proc/sys; cat /proc/version; : >>/proc/uptime", **hidden)
    assert done.stdout == ""
    assert "Read-only file system" in done.stderr


def test_mounts_cannot_be_changed_inside(sh: Any) -> None:
    script = "umount /sys/firmware /proc/sys; mount -t tmpfs x /tmp; mount -o remount,rw /sys; echo $?"
    done = sh(script)
    assert done.stdout == "1\n"
    assert "ermitted" in done.stderr or "denied" in done.stderr or "superuser" in done.stderr


def test_the_old_root_is_gone(sh: Any) -> None:
    done = sh("cd /; cd ../../..; ls -di / .; ls /../../etc/passwd; mount | grep -c ' / '")
    first, second, passwd, roots = done.stdout.splitlines()
    assert first.split()[0] == second.split()[0]
    assert (passwd, roots) == ("/../../etc/passwd", "1")


# -- the user's own


def test_a_bind_mount(sh: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("the host's\n")
    done = sh("cat /data/file; echo new >/data/new", mounts=[Mount(str(tmp_path), "/data")])
    assert (done.stdout, done.stderr) == ("the host's\n", "")
    assert (tmp_path / "new").read_text() == "new\n"


def test_a_file_on_a_file(sh: Any, tmp_path: Path, hostile: Any) -> None:
    (tmp_path / "hosts").write_text("given\n")
    mounts = [Mount(str(tmp_path / "hosts"), "/etc/hosts"), Mount(str(tmp_path / "hosts"), "/new/deep/file")]
    assert sh("cat /etc/hosts /new/deep/file", mounts=mounts, rootfs=hostile).stdout == "given\ngiven\n"
    assert (hostile.path / "etc/hosts").read_text() == ""  # made for the mount, and nothing came through


def test_a_directory_on_a_file(start: Any, tmp_path: Path) -> None:
    with pytest.raises(SetupError) as caught:
        start(["true"], mounts=[Mount(str(tmp_path), "/etc/passwd")])
    assert caught.value.step == f"mount {tmp_path} on /etc/passwd"


def test_mounts_below_mounts_come_in_order(sh: Any, tmp_path: Path) -> None:
    for name in ("outer", "inner"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("")
    mounts = [Mount(str(tmp_path / "outer"), "/v"), Mount.tmpfs("/v/t"), Mount(str(tmp_path / "inner"), "/v/t/i")]
    done = sh("ls /v /v/t/i; touch /v/t/x; mount | grep -c ' /v'", mounts=mounts)
    assert done.stdout.split() == ["/v:", "outer", "t", "/v/t/i:", "inner", "3"]
    assert [path.name for path in (tmp_path / "outer/t").iterdir()] == []


def test_a_read_only_mount_is_so_all_the_way_down(sh: Any, start: Any, tmp_path: Path, host_mount: Any) -> None:
    (tmp_path / "source").mkdir()
    host_mount(tmp_path / "source/nested")
    mount = Mount(str(tmp_path / "source"), "/v", read_only=True)
    done = sh("touch /v/a /v/nested/a", mounts=[mount])
    assert done.stderr.count("Read-only file system") == 2
    assert (sh("touch /v/nested/b", mounts=[Mount(str(tmp_path / "source"), "/v")])).stderr == ""
    assert (tmp_path / "source/nested/b").exists()
    done = sh("ls /v/nested", mounts=[Mount(str(tmp_path / "source"), "/v", recursive=False)])
    assert done.stdout == ""


def test_flags_of_the_source_are_kept(start: Any, tmp_path: Path, host_mount: Any) -> None:
    source = host_mount(tmp_path / "source", "nodev,nosuid,noexec,noatime")
    mounts = [Mount(str(source), "/plain"), Mount(str(source), "/ro", read_only=True, options=("nodiratime",))]
    box = start(["sleep", "100"], mounts=mounts)
    found = {mount.path: mount.options for mount in host.mounts(box.pid)}
    kept = {"nodev", "nosuid", "noexec", "noatime"}
    assert kept | {"rw"} <= found["/plain"]
    assert kept | {"ro", "nodiratime"} <= found["/ro"]


@pytest.mark.parametrize("option", ["nosuid", "nodev", "noexec", "noatime", "nodiratime", "nosymfollow"])
def test_mount_options(start: Any, tmp_path: Path, option: str) -> None:
    box = start(["sleep", "100"], mounts=[Mount(str(tmp_path), "/v", options=(option,)), Mount(str(tmp_path), "/w")])
    found = {mount.path: mount.options for mount in host.mounts(box.pid)}
    assert option in found["/v"]
    assert option not in found["/w"] or option == "nodev"  # which every directory of the host is


def test_a_tmpfs(start: Any, sh: Any) -> None:
    mount = Mount.tmpfs("/t", size="1m", mode=0o1701)
    box = start(["sleep", "100"], mounts=[mount])
    found = next(m for m in host.mounts(box.pid) if m.path == "/t")
    assert (found.fstype, found.options >= {"nosuid", "nodev", "size=1024k", "mode=1701"}) == ("tmpfs", True)
    done = sh("stat -c %a /t; head -c 2m /dev/zero >/t/f; stat -c %s /t/f", mounts=[mount])
    assert done.stdout.split() == ["1701", str(1 << 20)]
    assert done.stderr


def test_a_read_only_root(sh: Any, tmp_path: Path, hostile: Any) -> None:
    mounts = [Mount.tmpfs("/tmp"), Mount(str(tmp_path), "/made/for/it")]
    script = "touch /a /etc/a; touch /tmp/a /dev/shm/a /made/for/it/a && echo written; echo x >/dev/null"
    done = sh(script, read_only=True, mounts=mounts, rootfs=hostile)
    assert done.stderr.count("Read-only file system") == 2
    assert done.stdout == "written\n"


def test_a_read_only_rootfs_of_the_hosts(sh: Any, busybox_rootfs: Path, tmp_path: Path) -> None:
    rootfs = tmp_path / "rootfs"
    rootfs.mkdir()
    subprocess.run(["mount", "--bind", busybox_rootfs, rootfs], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", rootfs], check=True)
        done = sh("touch /a", rootfs=rootfs, read_only=True)
        assert "Read-only file system" in done.stderr
        assert "Read-only file system" in sh("touch /a", rootfs=rootfs).stderr
    finally:
        umount(rootfs)


@pytest.mark.parametrize(
    "target", ["/", "/proc", "/proc/self", "//proc/../proc/x", "/sys/fs", "/dev", "/a/../../b", "rel", "/a\0b", "/a\nb"]
)
def test_where_nothing_can_be_mounted(start: Any, tmp_path: Path, target: str) -> None:
    with pytest.raises(InvalidCommandError) as caught:
        start(["true"], mounts=[Mount(str(tmp_path), target)])
    assert caught.value.field == "mounts.target"


def test_what_was_mounted_just_before_is_seen(
    start: Any, until: Any, tmp_path: Path, host_mount: Any, native: Any
) -> None:
    # The next container's first process, cloned ahead, has a mount namespace of its own already.
    start(["true"]).wait(30)
    until(lambda: host.children(native._launchers.current.pid))
    source = host_mount(tmp_path / "source")
    (source / "file").write_text("on the new mount\n")
    box = start(["cat", "/v/file"], mounts=[Mount(str(source), "/v")], stdout=PIPE)
    assert box.communicate(timeout=30)[0] == b"on the new mount\n"


def test_what_was_unmounted_is_not_kept(start: Any, until: Any, tmp_path: Path, native: Any) -> None:
    source = tmp_path / "source"
    source.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "canary", source], check=True)
    start(["true"]).wait(30)
    until(lambda: host.children(native._launchers.current.pid))
    umount(source)

    def is_kept() -> bool:
        with contextlib.suppress(OSError):  # of one that is just ending
            return any(str(source) in str(host.mounts(pid)) for pid in host.children(native._launchers.current.pid))
        return True

    until(lambda: not is_kept())


def test_a_source_that_is_not_there(start: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidCommandError, match="does not exist") as caught:
        start(["true"], mounts=[Mount(str(tmp_path / "missing"), "/v")])
    assert caught.value.field == "mounts.source"


# -- the host's own programs


def test_the_view_of_the_host(sh: Any) -> None:
    script = "cat /etc/shadow /etc/gshadow; ls -A /root /home /etc/ssh /etc/ssl/private; id -un; ls /usr/bin/env"
    done = sh(script, rootfs=None)
    assert "root" in done.stdout.splitlines()
    assert "/usr/bin/env" in done.stdout
    shown = [line for line in done.stdout.splitlines() if line not in ("/root:", "/home:", "", "root", "/usr/bin/env")]
    prefixes = {Path(path).parts[2] for path in HostView.detect().overlays if path.startswith(("/root/", "/home/"))}
    assert {*shown} <= prefixes
    assert done.stderr.count("No such file or directory") == 4


def test_what_is_written_to_the_view_is_thrown_away(sh: Any) -> None:
    script = "echo x >/usr/canary && echo x >>/etc/passwd && rm /usr/bin/env && touch /tmp/a && ls /usr/canary"
    assert sh(script, rootfs=None).stdout == "/usr/canary\n"
    assert not Path("/usr/canary").exists()
    assert Path("/usr/bin/env").exists()
    assert sh("ls /usr/bin/env /usr/canary; tail -n1 /etc/passwd", rootfs=None).stdout.splitlines()[0] == "/usr/bin/env"


def test_a_read_only_view(sh: Any) -> None:
    done = sh("touch /usr/a /a; echo on", rootfs=None, read_only=True)
    assert done.stderr.count("Read-only file system") == 2
    assert done.stdout == "on\n"


def test_mounts_into_the_view(sh: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("given\n")
    mounts = [Mount(str(tmp_path), "/job/deep"), Mount(str(tmp_path), "/usr/share/made", read_only=True)]
    assert sh("cat /job/deep/file /usr/share/made/file", rootfs=None, mounts=mounts).stdout == "given\ngiven\n"


# -- a hostile rootfs


@pytest.mark.parametrize("name", ["proc", "sys", "dev"])
@pytest.mark.parametrize("kind", ["to the host", "inside", "relative", "file"])
def test_proc_sys_and_dev_have_to_be_directories(start: Any, hostile: Rootfs, name: str, kind: str) -> None:
    (hostile.path / "inside").mkdir()
    if kind == "file":
        hostile.file(name, "")
    else:
        hostile.link(name, {"to the host": hostile.canary, "inside": "/inside", "relative": "inside"}[kind])
    with pytest.raises(SetupError) as caught:
        start(["true"], rootfs=hostile)
    fstype = {"proc": "proc", "sys": "sysfs", "dev": "tmpfs"}[name]
    assert caught.value.step == f"mount {fstype} on /{name}"
    assert [*(hostile.path / "inside").iterdir()] == []


def test_missing_mount_points_are_made(start: Any, hostile: Rootfs) -> None:
    for name in ("proc", "sys", "dev"):
        (hostile.path / name).rmdir()
    assert start(["test", "-e", "/proc/self"], rootfs=hostile).wait(30) == 0


@pytest.mark.parametrize("target", ["/mnt", "/mnt/new/deep"])
def test_a_target_that_is_a_link_to_the_host(start: Any, sh: Any, hostile: Rootfs, tmp_path: Path, target: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "given").write_text("")
    hostile.link("mnt", hostile.canary)
    with pytest.raises(SetupError) as caught:
        start(["true"], rootfs=hostile, mounts=[Mount(str(source), target)])
    assert caught.value.step == f"mount {source} on {target}"
    # Where the link leads inside the container, if there is anything, is where it is mounted.
    inside = hostile.path / str(hostile.canary).lstrip("/")
    inside.mkdir(parents=True)
    done = sh(f"ls {hostile.canary}{target[4:]}", rootfs=hostile, mounts=[Mount(str(source), target)])
    assert done.stdout == "given\n"


@pytest.mark.parametrize("link", ["/proc", "proc", "/", "../../../../proc"])
def test_a_mount_target_that_leads_to_proc(start: Any, hostile: Rootfs, tmp_path: Path, link: str) -> None:
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake/version").write_text("fake")
    hostile.link("mnt", link)
    targets = ["/mnt", "/mnt/sys"] if link.endswith("proc") else ["/mnt/proc", "/mnt/proc/sys"]
    for target in targets:
        with contextlib.suppress(SetupError):
            box = start(["sleep", "100"], rootfs=hostile, mounts=[Mount(str(tmp_path / "fake"), target)])
            top = [mount for mount in host.mounts(box.pid) if mount.path == "/proc"][-1]
            assert (top.fstype, top.root) == ("proc", "/")
            assert Path(f"/proc/{box.pid}/root/proc/version").read_text() == Path("/proc/version").read_text()
            assert "ro" in [mount for mount in host.mounts(box.pid) if mount.path == "/proc/sys"][-1].options


def test_nothing_of_its_devices_is_used(sh: Any, hostile: Rootfs) -> None:
    hostile.link("dev/null", hostile.canary / "null")
    hostile.link("dev/console", hostile.canary / "console")
    hostile.fifo("dev/ptmx")
    hostile.link("dev/pts", hostile.canary / "directory")
    hostile.link("dev/shm", hostile.canary / "directory")
    for number in range(3):
        hostile.link(f"dev/tty{number}", "/proc/sysrq-trigger")
    for tty in (False, True):
        stderr = {} if tty else {"stderr": -1}
        done = sh("echo x >/dev/null; stat -c %t:%T /dev/null; head -c 9 /proc/keys; [ -p /dev/ptmx ] || echo no fifo",
                  rootfs=hostile, tty=tty, capture_output=False, stdout=-1, **stderr)  # fmt: skip
        assert done.stdout.split() == ["1:3", "no", "fifo"]


@pytest.mark.parametrize("link", [None, "absolute", "proc"])
def test_the_rootfs_path_itself(start: Any, hostile: Rootfs, tmp_path: Path, link: str | None) -> None:
    # Its parents are the caller's own, and may be links; the payload's magic links never are.
    if link is None:
        assert start(["true"], rootfs=hostile).wait(30) == 0
    elif link == "absolute":
        (tmp_path / "link").symlink_to(hostile.path)
        assert start(["true"], rootfs=tmp_path / "link").wait(30) == 0
    else:
        (tmp_path / "link").symlink_to("/proc/self/root")
        with pytest.raises(ContainerError):
            start(["true"], rootfs=tmp_path / "link")


@pytest.mark.parametrize("target", ["/volume/new/deep", "/volume"])
def test_a_target_that_changes_all_the_time(start: Any, hostile: Rootfs, tmp_path: Path, target: str) -> None:
    # CVE-2021-30465, CVE-2024-45310: somebody exchanges a directory and a link while containers start.
    source = tmp_path / "source"
    source.mkdir()
    (hostile.path / "volume").mkdir()
    hostile.link("link", hostile.canary)
    code = f"""
import ctypes, os
os.chdir({str(hostile.path)!r})
number = {{"x86_64": 316}}.get(os.uname().machine, 276)
exchange = ctypes.CDLL(None).syscall
print("ready", flush=True)
while True:
    for _ in range(100):
        exchange(number, -100, b"volume", -100, b"link", 2)  # renameat2, RENAME_EXCHANGE
    if os.getppid() != {os.getpid()}:
        break
"""
    flipper = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    steps: list[str | None] = []
    with flipper:
        try:
            assert flipper.stdout is not None
            assert flipper.stdout.readline() == b"ready\n"
            for _ in range(40):
                try:
                    box = start(["true"], rootfs=hostile, mounts=[Mount(str(source), target)])
                    steps.append(None)
                    assert box.wait(30) == 0
                except SetupError as error:
                    steps.append(error.step)
        finally:
            flipper.kill()
    assert {*steps} <= {None, f"mount {source} on {target}"}
    assert None in steps  # the race was one


def test_mounts_do_not_propagate_to_the_host(output_of: Any, tmp_path: Path) -> None:
    # In a mount namespace of the caller's own, for it makes everything shared, as systemd does.
    code = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x20000) == 0  # CLONE_NEWNS
assert libc.mount(0, b"/", 0, 0x4000 | 0x40000, 0) == 0  # MS_REC | MS_PRIVATE
assert libc.mount(0, b"/", 0, 0x4000 | 0x100000, 0) == 0  # MS_REC | MS_SHARED
def mounts(): return open("/proc/self/mountinfo").read()
before = mounts()
with pycontainer.Container(["sleep", "100"], rootfs=ROOTFS, mounts=[pycontainer.Mount({str(tmp_path)!r}, "/v")]) as box:
    print(mounts() == before, "shared:" in before)
    inside = open(f"/proc/{{box.pid}}/mountinfo").read()
    print("shared:" in inside, "master:" in inside)
try:
    pycontainer.run(["missing"], rootfs=None)
except pycontainer.SetupError:
    print(mounts() == before)
"""
    assert output_of(code).split() == ["True", "True", "False", "False", "True"]


@pytest.mark.tool("unshare")
@pytest.mark.parametrize("bound", [False, True])
def test_a_root_that_is_no_mount_point(bound: bool, tmp_path: Path) -> None:
    """As after a chroot(2): the error says what mends it."""
    root = tmp_path / "root"
    script = f"""
        mount -t tmpfs none {tmp_path} && mkdir {root} && {f"mount --bind {root} {root} &&" if bound else ""} cd {root}
        for name in $(ls -A /); do
            if test -d /$name && ! test -L /$name; then mkdir $name; mount --rbind /$name $name
            else cp -P /$name . 2> /dev/null; fi
        done
        exec chroot . "$0" -m pycontainer run --security-opt seccomp=unconfined true
    """
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, sys.executable], capture_output=True, text=True, timeout=60
    )
    if bound:
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert done.returncode == 125
        assert "make mounts private (/): EINVAL" in done.stderr
        assert "'mount --bind DIR DIR' before that" in done.stderr
