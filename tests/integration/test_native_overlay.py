"""A root of several directories: what is seen, where changes go, and that nothing of it stays."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from pycontainer import Mount, rootfs
from pycontainer.errors import InvalidCommandError, SetupError
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
