"""A root of several directories: what is seen, where changes go, and that nothing of it stays."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import stat
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pycontainer import Mount, rootfs
from pycontainer.errors import InvalidCommandError, SetupError
from pycontainer_native import plan
from pycontainer_native.syscalls import Recorder

from . import host

pytestmark = pytest.mark.root


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A directory to lie over a busybox. Its name is full of what overlayfs takes for separators."""
    path = tmp_path / "a:b,c\\d e=f"
    (path / "opt").mkdir(parents=True)
    (path / "opt/version").write_text("app\n")
    return path


@pytest.fixture
def disk(tmp_path: Path, busybox_rootfs: Path) -> Path:
    """A directory that may be an upper one, which one of an overlay itself cannot be."""
    found = {
        mount.path: mount.fstype for mount in host.mounts() if f"{tmp_path}/".startswith(mount.path.rstrip("/") + "/")
    }
    if found[max(found, key=len)] == "overlay":
        pytest.skip("the tests' directory is not on a disk")
    return tmp_path


def tree(path: Path) -> list[tuple[str, int, int]]:
    return sorted((str(p), p.lstat().st_ino, p.lstat().st_mtime_ns) for p in path.rglob("*"))


def test_changes_are_thrown_away(sh: Any, app: Path, busybox_rootfs: Path) -> None:
    root = rootfs.overlay(app, busybox_rootfs)
    before = tree(app), tree(busybox_rootfs)
    script = "cat /opt/version && echo new > /opt/version && rm /etc/group && cat /opt/version && ls /etc"
    for _ in range(2):
        assert sh(script, rootfs=root).stdout.split() == ["app", "new", "passwd"]
    assert (tree(app), tree(busybox_rootfs)) == before


def test_changes_are_kept(sh: Any, app: Path, disk: Path, busybox_rootfs: Path) -> None:
    upper = disk / "up:per,\\x"
    upper.mkdir()
    before = tree(app), tree(busybox_rootfs)
    root = rootfs.overlay(app, busybox_rootfs, upper=upper)
    assert sh("echo kept > /opt/version; rm -r /etc", rootfs=root).returncode == 0
    assert (upper / "opt/version").read_text() == "kept\n"
    assert sh("cat /opt/version; ls -d /etc", rootfs=root).stdout == "kept\n"
    assert (tree(app), tree(busybox_rootfs)) == before
    assert Path(root.work).stat().st_mode & 0o777 == 0o700
    assert sh("cat /opt/version", rootfs=rootfs.overlay(upper, busybox_rootfs)).stdout == "kept\n"


def test_read_only(sh: Any, app: Path, busybox_rootfs: Path) -> None:
    done = sh("cat /opt/version; echo x > /opt/version", rootfs=rootfs.overlay(app, busybox_rootfs), read_only=True)
    assert done.stdout == "app\n"
    assert "Read-only" in done.stderr


def test_nothing_of_the_layers_is_seen(start: Any, app: Path, busybox_rootfs: Path) -> None:
    box = start(["sleep", "100"], rootfs=rootfs.overlay(app, busybox_rootfs))
    [root] = [mount for mount in host.mounts(box.pid) if mount.path == "/"]
    assert root.fstype == "overlay"
    assert not any(str(app) in option or str(busybox_rootfs) in option for option in root.options)
    assert [mount.path for mount in host.mounts(box.pid) if mount.path.startswith(("/lower", "/kept", "/upper"))] == []


def test_mounts_and_users(sh: Any, app: Path, busybox_rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/x").write_text("data\n")
    root = rootfs.overlay(app, busybox_rootfs)
    data = Mount(str(tmp_path / "data"), "/new/place")
    done = sh("cat /new/place/x; id -u", rootfs=root, mounts=[data], user="alice")
    assert done.stdout == "data\n1000\n"
    assert not (busybox_rootfs / "new").exists()


def test_many_layers(sh: Any, tmp_path: Path, busybox_rootfs: Path) -> None:
    for number in range(63):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}/of").write_text(f"{number}\n")
        (tmp_path / f"{number}/file{number}").touch()
    root = rootfs.overlay(*(tmp_path / f"{number}" for number in range(63)), busybox_rootfs)
    assert sh("cat /of; ls / | grep -c '^file'", rootfs=root).stdout == "0\n63\n"


def test_a_layer_that_is_gone(start: Any, app: Path, busybox_rootfs: Path) -> None:
    root = rootfs.overlay(app, busybox_rootfs)
    shutil.rmtree(app)
    with pytest.raises(InvalidCommandError) as caught:
        start(["true"], rootfs=root)
    assert caught.value.field == "rootfs.lower"


def test_a_work_directory_that_leads_elsewhere(start: Any, disk: Path, busybox_rootfs: Path) -> None:
    (disk / "upper").mkdir()
    (disk / "elsewhere").mkdir()
    os.symlink("elsewhere", disk / "upper.work")
    with pytest.raises(SetupError, match="upper") as caught:
        start(["true"], rootfs=rootfs.overlay(busybox_rootfs, upper=disk / "upper"))
    assert caught.value.errno in (errno.ELOOP, errno.ENOTDIR)
    assert list((disk / "elsewhere").iterdir()) == []


def test_an_upper_that_is_a_mount_of_its_own(start: Any, tmp_path: Path, busybox_rootfs: Path, host_mount: Any) -> None:
    upper = tmp_path / "upper"
    upper.mkdir()
    host_mount(upper)
    with pytest.raises(SetupError, match="mount overlay on /") as caught:
        start(["true"], rootfs=rootfs.overlay(busybox_rootfs, upper=upper))
    assert caught.value.errno == errno.EINVAL  # it and its .work are not of one mount


def test_an_upper_that_is_swapped_for_a_link_meanwhile(
    start: Any, disk: Path, busybox_rootfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if its parent's owner had done so between the look at it and the mount: there is a link, and no look."""
    elsewhere = disk / "elsewhere"
    for name in ("upper", "upper.work"):
        (elsewhere / name).mkdir(parents=True)
        (disk / name).symlink_to(elsewhere / name)
    openat2 = Recorder.openat2

    def without_a_look(k: Recorder, directory: Any, path: bytes, flags: int, *rest: Any, **keywords: Any) -> Any:
        if path in (b"upper", b"upper.work"):
            flags &= ~os.O_DIRECTORY
        return openat2(k, directory, path, flags, *rest, **keywords)

    monkeypatch.setattr(Recorder, "openat2", without_a_look)
    with pytest.raises(SetupError, match="mount overlay on /") as caught:
        start(["touch", "/new"], rootfs=rootfs.overlay(busybox_rootfs, upper=disk / "upper"))
    assert caught.value.errno == errno.ELOOP
    assert [str(path.relative_to(elsewhere)) for path in sorted(elsewhere.rglob("*"))] == ["upper", "upper.work"]


# -- one upper directory, one container


@pytest.fixture
def upper(disk: Path) -> Path:
    path = disk / "upper"
    path.mkdir()
    return path


def assert_in_use(start: Any, root: rootfs.Overlay) -> None:
    with pytest.raises(InvalidCommandError, match="is in use") as caught:
        start(["true"], rootfs=root)
    assert caught.value.field == "rootfs.upper"


def test_an_upper_is_one_containers_at_a_time(start: Any, sh: Any, upper: Path, busybox_rootfs: Path) -> None:
    root = rootfs.overlay(busybox_rootfs, upper=upper)
    link = upper.with_name("link")
    link.symlink_to(upper)
    box = start(["sleep", "100"], rootfs=root)
    assert_in_use(start, root)
    assert_in_use(start, rootfs.overlay(busybox_rootfs, upper=link / "."))  # by another name
    assert box.exec(["touch", "/kept"]).returncode == 0
    assert sh("test -e /kept", rootfs=rootfs.overlay(upper, busybox_rootfs)).returncode == 0  # as a lower one
    box.kill()
    box.wait(30)
    for _ in range(20):  # at once, when the end of the one before is known
        assert sh("test -e /kept", rootfs=root).returncode == 0


def test_what_is_thrown_away_is_everybodys(start: Any, app: Path, busybox_rootfs: Path) -> None:
    root = rootfs.overlay(app, busybox_rootfs)
    boxes = [start(["sleep", "100"], rootfs=root) for _ in range(2)]
    assert [box.poll() for box in boxes] == [None, None]


def test_a_start_that_fails_leaves_the_upper_free(start: Any, upper: Path, busybox_rootfs: Path) -> None:
    root = rootfs.overlay(busybox_rootfs, upper=upper)
    with pytest.raises(SetupError, match="execve"):
        start(["missing"], rootfs=root)
    created = start(["true"], rootfs=root, start=False)
    created.create()
    assert_in_use(start, root)
    created.close()
    assert start(["true"], rootfs=root).wait(30) == 0  # though that was still about to end


OF_ANOTHER = """
import pycontainer.rootfs
driver = pycontainer.get_driver("native")
root = pycontainer.rootfs.overlay(ROOTFS, upper={upper!r})
# In the host's pid namespace its second process ends with nobody.
script = "sleep 1000 & echo ready; exec sleep 1000"
box = pycontainer.Container(["sh", "-c", script], rootfs=root, driver=driver, pid={pid!r}, stdout=pycontainer.PIPE)
box.stdout.readline()
print(os.getpid(), driver._launchers.current.pid, *box.pids(), flush=True)
signal.pause()
"""


@pytest.mark.parametrize("pid", [None, "host"])
@pytest.mark.parametrize("killed", [[0], [1], [1, 0], [0, 1]], ids=["caller", "launcher", "both", "both, caller first"])
def test_an_upper_is_free_when_its_container_is_gone(
    killed: list[int], pid: str | None, caller: Any, start: Any, upper: Path, busybox_rootfs: Path
) -> None:
    root = rootfs.overlay(busybox_rootfs, upper=upper)
    process = caller(OF_ANOTHER.format(upper=str(upper), pid=pid))
    pids = [int(text) for text in process.stdout.readline().split()]
    assert_in_use(start, root)
    for number in killed:
        os.kill(pids[number], signal.SIGKILL)
    box = start(["sleep", "100"], rootfs=root)
    assert len(pids) == 4
    assert not any(map(host.is_alive, pids[2:]))
    assert box.poll() is None


# -- in a user namespace: the layers are shown through id-mapped mounts

MAPS = {"uid_mappings": [(0, 300000, 1000), (1000, 500000, 10)], "gid_mappings": [(0, 400000, 65536)]}
REMAPPED: list[dict[str, Any]] = [{"userns": "auto"}, MAPS]


@pytest.fixture
def owned(app: Path) -> Path:
    """*app* with files of others than root, and a directory to be replaced."""
    for name in ("opt/hers", "opt/old/inside"):
        (app / name).parent.mkdir(exist_ok=True)
        (app / name).write_text(f"{name}\n")
    os.chown(app / "opt/hers", 1000, 2000)
    (app / "opt/hers").chmod(0o640)
    return app


def first_ids(pid: int) -> tuple[int, int]:
    """Who root inside is outside."""
    uid, gid = (int(Path(f"/proc/{pid}/{kind}_map").read_text().split()[1]) for kind in ("uid", "gid"))
    return uid, gid


CHANGES = """
set -e
stat -c %u:%g / /opt /opt/hers /bin/busybox
echo new > /opt/version
chown 5:6 /opt/version
rm -r /opt/old /etc/group
mkdir /opt/old
chmod 600 /opt/hers
touch /made
stat -c %u:%g /opt/version /opt/old /opt/hers /made
ls /opt/old /etc
"""
CHANGED = ["0:0", "0:0", "1000:2000", "0:0", "5:6", "0:0", "1000:2000", "0:0", "/etc:", "passwd", "", "/opt/old:"]


@pytest.mark.usefixtures("mapped_files")
@pytest.mark.parametrize("ids", REMAPPED, ids=["auto", "maps"])
def test_in_a_user_namespace_changes_are_thrown_away(
    sh: Any, start: Any, until: Any, owned: Path, busybox_rootfs: Path, ids: dict[str, Any]
) -> None:
    root = rootfs.overlay(owned, busybox_rootfs)
    before = tree(owned), tree(busybox_rootfs)
    for _ in range(2):
        done = sh(CHANGES, rootfs=root, **ids)
        assert (done.stdout.splitlines(), done.stderr) == (CHANGED, "")
    box = start(["sh", "-c", "touch /made; chown 5:6 /made; sleep 100"], rootfs=root, **ids)
    uid, gid = first_ids(box.pid)
    until(lambda: Path(f"/proc/{box.pid}/root/made").exists())
    until(lambda: Path(f"/proc/{box.pid}/root/made").stat().st_uid != uid)
    for name, owner in (("made", (5, 6)), ("opt/hers", None), ("bin/busybox", (0, 0)), ("", (0, 0))):
        found = Path(f"/proc/{box.pid}/root/{name}").stat()
        wanted = (uid + owner[0], gid + owner[1]) if owner else (uid + 1000, gid + 2000)
        if ids is MAPS and owner is None:
            wanted = (500000, gid + 2000)
        assert (found.st_uid, found.st_gid) == wanted, name
    box.close()
    assert (tree(owned), tree(busybox_rootfs)) == before


@pytest.mark.usefixtures("mapped_files")
@pytest.mark.parametrize("ids", REMAPPED, ids=["auto", "maps"])
def test_in_a_user_namespace_changes_are_kept(
    sh: Any, owned: Path, disk: Path, busybox_rootfs: Path, ids: dict[str, Any]
) -> None:
    """With the ids of the disk, and with overlayfs's notes as any container reads and writes them."""
    upper = disk / "up:per,\\x"
    upper.mkdir()
    before = tree(owned), tree(busybox_rootfs)
    root = rootfs.overlay(owned, busybox_rootfs, upper=upper)
    done = sh(CHANGES, rootfs=root, **ids)
    assert (done.stdout.splitlines(), done.stderr) == (CHANGED, "")
    for name, owner in (("opt/version", (5, 6)), ("opt/hers", (1000, 2000)), ("opt/old", (0, 0)), ("made", (0, 0))):
        found = (upper / name).stat()
        assert (found.st_uid, found.st_gid) == owner, name
    whiteout = (upper / "etc/group").stat()
    assert (stat.S_ISCHR(whiteout.st_mode), whiteout.st_rdev) == (True, 0)
    assert os.getxattr(upper / "opt/old", "trusted.overlay.opaque") == b"y"
    assert (Path(root.work).stat().st_uid, Path(root.work).stat().st_mode & 0o777) == (0, 0o700)
    for other in (ids, {}, ids):
        done = sh("stat -c %u:%g /opt/version /opt/hers /made; ls /opt/old /etc", rootfs=root, **other)
        assert (done.stdout.splitlines(), done.stderr) == (["5:6", "1000:2000", "0:0", *CHANGED[-4:]], "")
    below = rootfs.overlay(upper, owned, busybox_rootfs)
    assert sh("ls /opt/old /etc", rootfs=below, **ids).stdout.splitlines() == CHANGED[-4:]
    assert sh("rm -r /bin/ar /opt; mkdir /opt", rootfs=root).returncode == 0  # without one, and then in one
    done = sh("ls /opt; ls /bin | grep -x ar", rootfs=root, **ids)
    assert (done.stdout, done.stderr) == ("", "")
    assert (tree(owned), tree(busybox_rootfs)) == before


@pytest.mark.usefixtures("mapped_files")
def test_in_a_user_namespace_nothing_of_the_layers_is_seen(start: Any, app: Path, busybox_rootfs: Path) -> None:
    before = [mount.path for mount in host.mounts()]
    box = start(["sleep", "100"], rootfs=rootfs.overlay(app, busybox_rootfs), userns="auto")
    [root] = [mount for mount in host.mounts(box.pid) if mount.path == "/"]
    assert root.fstype == "overlay"
    assert "userxattr" not in root.options
    assert not any(str(app) in option or str(busybox_rootfs) in option for option in root.options)
    shown = {mount.path.split("/")[1] for mount in host.mounts(box.pid)}
    assert shown == {"", "proc", "sys", "dev"}
    assert len([mount for mount in host.mounts(box.pid) if mount.path == "/proc"]) == 1
    assert [mount.path for mount in host.mounts()] == before
    assert box.receipt().differences(box.command) == ()
    assert box.exec(["cat", "/opt/version"], capture_output=True, text=True).stdout == "app\n"


@pytest.mark.usefixtures("mapped_files")
def test_in_a_user_namespace_with_mounts_users_and_many_layers(
    sh: Any, app: Path, busybox_rootfs: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "x").write_text("data\n")
    for number in range(62):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}/file{number}").touch()
    layers = [tmp_path / f"{number}" for number in range(62)]
    root = rootfs.overlay(*layers, app, busybox_rootfs)
    script = "cat /new/place/x; touch /new/place/made; ls / | grep -c ^file; id -u; touch /root/x /x"
    done = sh(script, rootfs=root, mounts=[Mount(str(data), "/new/place")], userns="auto", user="alice", tty=True)
    assert done.stdout.split()[0] == "data"
    assert [line.strip() for line in done.stdout.splitlines() if line.strip().isdecimal()] == ["62", "1000"]
    assert "/root/x: Permission denied" in done.stdout
    assert not (data / "made").exists()
    mounts = [Mount(str(data), "/new/place")]
    assert sh("touch /new/place/made /x", rootfs=root, mounts=mounts, userns="auto", read_only=True).returncode == 1
    assert (data / "made").stat().st_uid == 0
    assert not (busybox_rootfs / "new").exists()


@pytest.mark.usefixtures("mapped_files")
def test_in_a_user_namespace_the_mounters_rights_are_not_the_containers(
    sh: Any, owned: Path, disk: Path, busybox_rootfs: Path
) -> None:
    """overlayfs uses capabilities over the host, once it has found that the caller may do what he does."""
    (disk / "upper").mkdir()
    for upper in (None, disk / "upper"):
        root = rootfs.overlay(owned, busybox_rootfs, upper=upper)
        script = "mknod /null c 1 3; mount -o remount /; touch /made && echo made"
        done = sh(script, rootfs=root, userns="auto", privileged=True)
        assert done.stdout == "made\n"
        assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["mknod", "mount"]
        done = sh("cat /opt/hers; touch /opt/new", rootfs=root, userns="auto", user="70")
        assert (done.stdout, done.stderr.count("Permission denied")) == ("", 2)


@pytest.mark.usefixtures("mapped_files")
def test_in_a_user_namespace_the_capabilities_of_files(sh: Any, app: Path, disk: Path, busybox_rootfs: Path) -> None:
    """Those of the disk count inside: their root is the container's."""
    shutil.copy(busybox_rootfs / "bin/busybox", app / "opt/grep")
    version_2 = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)  # struct vfs_cap_data: CAP_NET_RAW, effective
    os.setxattr(app / "opt/grep", "security.capability", version_2)
    (disk / "upper").mkdir()
    for upper in (None, disk / "upper"):
        root = rootfs.overlay(app, busybox_rootfs, upper=upper)
        keywords = {"user": "alice", "no_new_privileges": False, "cap_add": ["NET_RAW"], "userns": "auto"}
        assert sh("/opt/grep CapEff /proc/self/status", rootfs=root, **keywords).stdout.split()[1] == f"{1 << 13:016x}"


@pytest.mark.usefixtures("mapped_files")
def test_in_a_user_namespace_layers_that_cannot_be_mapped(
    start: Any, app: Path, disk: Path, busybox_rootfs: Path, host_mount: Any
) -> None:
    before = {mount.path for mount in host.mounts()}
    with pytest.raises(SetupError, match=r"map the ids of rootfs\.lower /sys/kernel") as caught:
        start(["true"], rootfs=rootfs.overlay("/sys/kernel", busybox_rootfs), userns="auto")
    assert caught.value.errno == errno.EINVAL
    place = host_mount(disk / "place")
    for name in ("upper", "work", "lower"):
        (disk / name).mkdir()
    options = f"lowerdir={disk}/lower,upperdir={disk}/upper,workdir={disk}/work"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "none", place], check=True)
    (place / "upper").mkdir()
    with pytest.raises(SetupError, match=r"map the ids of rootfs\.upper") as caught:
        start(["true"], rootfs=rootfs.overlay(busybox_rootfs, upper=place / "upper"), userns="auto")
    assert caught.value.errno == errno.EINVAL
    subprocess.run(["umount", place], check=True)  # nobody uses it any more
    assert {mount.path for mount in host.mounts()} == before | {str(place)}


@pytest.mark.usefixtures("mapped_files")
@pytest.mark.parametrize(
    ("of_upper", "of_parent", "mode", "who"),
    [((70000, 0), (0, 0), 0o700, "upper"), ((0, 70000), (0, 0), 0o700, "upper"), ((0, 0), (70000, 0), 0o700, "place")],
)
def test_in_a_user_namespace_an_upper_of_nobody(
    sh: Any, disk: Path, busybox_rootfs: Path, of_upper: Any, of_parent: Any, mode: int, who: str
) -> None:
    upper = disk / "place/upper"
    upper.mkdir(parents=True)
    os.chown(upper, *of_upper)
    os.chown(upper.parent, *of_parent)
    upper.parent.chmod(mode)
    root = rootfs.overlay(busybox_rootfs, upper=upper)
    with pytest.raises(InvalidCommandError, match=f"{who} is of .* nobody in the user namespace") as caught:
        sh("true", rootfs=root, userns="auto")
    assert caught.value.field == "rootfs.upper"
    assert not (disk / "place/upper.work").exists()
    upper.parent.chmod(0o711)
    if of_upper == (0, 0):
        assert sh("touch /made", rootfs=root, userns="auto").returncode == 0
        assert (upper / "made").stat().st_uid == 0


@pytest.mark.usefixtures("mapped_files")
def test_in_a_user_namespace_a_work_directory_that_leads_elsewhere(
    start: Any, disk: Path, busybox_rootfs: Path
) -> None:
    (disk / "upper").mkdir()
    (disk / "elsewhere").mkdir()
    os.symlink("elsewhere", disk / "upper.work")
    with pytest.raises(SetupError, match="upper") as caught:
        start(["true"], rootfs=rootfs.overlay(busybox_rootfs, upper=disk / "upper"), userns="auto")
    assert caught.value.errno in (errno.ELOOP, errno.ENOTDIR)
    assert list((disk / "elsewhere").iterdir()) == []


@pytest.mark.usefixtures("mapped_files")
def test_in_a_user_namespace_a_step_that_fails_leaves_nothing(
    sh: Any, start: Any, disk: Path, busybox_rootfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each of the calls that make the overlay; what is left would be found by the check after the test, too."""
    (disk / "upper").mkdir()
    root = rootfs.overlay(busybox_rootfs, upper=disk / "upper")
    before = host.mounts()
    call, made = Recorder.call, list[str]()

    def failing(k: Recorder, name: str, *arguments: Any, **keywords: Any) -> None:
        call(k, name, *arguments, **keywords)
        made.append(k._label)
        if k._label == wanted:
            call(k, "fchdir", -1)

    monkeypatch.setattr(Recorder, "call", failing)
    wanted = "make a mount namespace for the layers"
    for beginning in (wanted, "map the ids of rootfs.upper", "mount overlay on /", "hide the layers"):
        plan._sections.clear()
        wanted = next((label for label in made if label.startswith(beginning)), wanted)
        with pytest.raises(SetupError, match=re.escape(wanted)) as caught:
            start(["true"], rootfs=root, userns="auto")
        assert caught.value.errno == errno.EBADF
        assert host.mounts() == before
    monkeypatch.undo()
    plan._sections.clear()
    assert sh("touch /made", rootfs=root, userns="auto").returncode == 0
