"""How mounts propagate between the host and a container, and whose files an id-mapped mount shows."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pycontainer import Hook, Hooks, InvalidCommandError, Mount, rootfs

from . import host

pytestmark = pytest.mark.root


@pytest.fixture
def shared(tmp_path: Path, host_mount: Any) -> Path:
    """A directory of the host whose mounts are shared, with another mount in it."""
    path: Path = host_mount(tmp_path / "shared")
    subprocess.run(["mount", "--make-shared", path], check=True)
    (path / "below").mkdir()
    (path / "later").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "below", path / "below"], check=True)
    return path


def tags(pid: int, path: str) -> str:
    return [mount.propagation for mount in host.mounts(pid) if mount.path == path][-1]


def mounted(pid: int | str, path: str) -> bool:
    return any(mount.path == path for mount in host.mounts(pid))


def bind(path: Path, **keywords: Any) -> list[Mount]:
    return [Mount(str(path), "/mnt", **keywords)]


@pytest.mark.parametrize(
    ("propagation", "seen"),
    [(None, False), ("private", False), ("rprivate", False), ("rslave", True), ("rshared", True)],
)
def test_what_the_host_mounts_later(start: Any, shared: Path, propagation: str | None, seen: bool) -> None:
    box = start(["sleep", "100"], mounts=bind(shared, propagation=propagation))
    assert mounted(box.pid, "/mnt/below")
    subprocess.run(["mount", "-t", "tmpfs", "later", shared / "later"], check=True)
    try:
        assert mounted(box.pid, "/mnt/later") is seen
    finally:
        subprocess.run(["umount", shared / "later"], check=True)
    assert not mounted(box.pid, "/mnt/later")
    for path in ("/mnt", "/mnt/below"):
        assert ("master:" in tags(box.pid, path)) is (propagation == "rslave")
        assert ("shared:" in tags(box.pid, path)) is (propagation == "rshared")


@pytest.mark.parametrize("propagation", [None, "rslave", "rshared"])
def test_what_the_container_mounts(sh: Any, shared: Path, propagation: str | None) -> None:
    before = host.mounts()
    done = sh("mount -t tmpfs inner /mnt/later", mounts=bind(shared, propagation=propagation), privileged=True)
    assert done.returncode == 0, done.stderr
    appeared = [mount.path for mount in host.mounts() if mount not in before]
    if propagation == "rshared":
        assert appeared == [f"{shared}/later"]
        subprocess.run(["umount", shared / "later"], check=True)
    else:
        assert appeared == []


@pytest.mark.parametrize("propagation", [None, "rslave", "slave", "shared", "rshared", "unbindable", "private"])
def test_a_root_on_a_shared_mount_leaks_nothing(
    start: Any, shared: Path, hostile: Any, propagation: str | None
) -> None:
    root = shared / "root"
    subprocess.run(["cp", "-a", os.fspath(hostile), root], check=True)
    (root / "later").mkdir()
    before = host.mounts()
    box = start(["sleep", "100"], rootfs=root, rootfs_propagation=propagation, mounts=[Mount.tmpfs("/new")])
    assert host.mounts() == before
    found = tags(box.pid, "/")
    assert ("shared:" in found) is (propagation in ("shared", "rshared"))
    assert ("master:" in found) is (propagation in ("slave", "rslave"))
    assert ("unbindable" in found) is (propagation == "unbindable")
    subprocess.run(["mount", "-t", "tmpfs", "later", root / "later"], check=True)
    try:
        assert mounted(box.pid, "/later") is (propagation in ("slave", "rslave"))
    finally:
        subprocess.run(["umount", root / "later"], check=True)
    box.kill()
    box.wait(30)
    assert host.mounts() == before


def test_an_unbindable_mount(start: Any, tmp_path: Path) -> None:
    mounts = [*bind(tmp_path, propagation="unbindable"), Mount(None, "/t", type="tmpfs", propagation="shared")]
    box = start(["sleep", "100"], mounts=mounts)
    assert "unbindable" in tags(box.pid, "/mnt")
    assert "shared:" in tags(box.pid, "/t")


def test_read_only_and_options_hold_with_propagation(start: Any, shared: Path) -> None:
    box = start(["sleep", "100"], mounts=bind(shared, propagation="rslave", read_only=True, options=["nodev"]))
    for mount in host.mounts(box.pid):
        if mount.path.startswith("/mnt"):
            assert {"ro", "nodev"} <= mount.options


def test_what_takes_a_shared_mount(start: Any, tmp_path: Path, host_mount: Any) -> None:
    private = host_mount(tmp_path / "private")
    subprocess.run(["mount", "--make-private", private], check=True)
    for propagation in ("rslave", "rshared"):
        with pytest.raises(InvalidCommandError, match="not on one") as caught:
            start(["true"], mounts=bind(private, propagation=propagation))
        assert caught.value.field == "mounts.propagation"
    with pytest.raises(InvalidCommandError, match="not on one") as caught:
        start(["true"], rootfs=private, rootfs_propagation="slave")
    assert caught.value.field == "rootfs_propagation"
    for root in (None, rootfs.overlay(tmp_path)):
        with pytest.raises(InvalidCommandError, match="directory of the host"):
            start(["true"], rootfs=root, rootfs_propagation="rslave")


def test_with_hooks_and_a_pid_namespace_that_exists(start: Any, shared: Path) -> None:
    first = start(["sleep", "100"])
    box = start(["sleep", "100"], mounts=bind(shared, propagation="rslave"), pid=f"container:{first.id}",
                hooks=Hooks(create_container=[Hook("/bin/true")]), init=True)  # fmt: skip
    assert "master:" in tags(box.pid, "/mnt")


# -- id-mapped mounts


@pytest.fixture
def owned(mapped_tmpfs: None, tmp_path: Path, host_mount: Any) -> Path:
    """A directory with files of 0, 1000 and 7."""
    path: Path = host_mount(tmp_path / "owned")
    for uid in (0, 1000, 7):
        (path / str(uid)).touch()
        os.chown(path / str(uid), uid, uid)
    return path


def test_an_id_mapped_mount(sh: Any, owned: Path) -> None:
    mapped = {"uid_mappings": [(1000, 0, 1), (0, 2000, 1)], "gid_mappings": [(1000, 0, 1), (0, 2000, 1)]}
    done = sh("cd /mnt; stat -c '%n %u %g' 0 1000 7; touch new", mounts=bind(owned, **mapped))
    assert done.stdout.splitlines() == ["0 2000 2000", "1000 0 0", "7 65534 65534"]
    made = (owned / "new").stat()
    assert (made.st_uid, made.st_gid) == (1000, 1000)
    assert (owned / "0").stat().st_uid == 0


def test_an_id_mapped_mount_may_be_read_only_and_a_slave(sh: Any, start: Any, owned: Path) -> None:
    subprocess.run(["mount", "--make-shared", owned], check=True)
    mapped = {"uid_mappings": [(0, 1000, 1)], "gid_mappings": [(0, 1000, 1)]}
    mounts = bind(owned, read_only=True, propagation="rslave", **mapped)
    assert sh("stat -c %u /mnt/0; touch /mnt/x 2>&1", mounts=mounts).stdout.startswith("1000\ntouch")
    box = start(["sleep", "100"], mounts=bind(owned, **mapped))
    assert tags(box.pid, "/mnt") == ""  # of the clone that was the host's peer


def test_many_id_mapped_mounts(sh: Any, owned: Path) -> None:
    mapped = {"uid_mappings": [(0, 1000, 1)], "gid_mappings": [(0, 1000, 1)]}
    mounts = [Mount(str(owned), f"/mnt/{number}", **mapped) for number in range(100)]
    done = sh("stat -c %u /mnt/*/0 | sort | uniq -c", mounts=mounts)
    assert done.stdout.split() == ["100", "1000"]


def test_nobody_is_left_of_the_mapping(native: Any, sh: Any, owned: Path) -> None:
    before = host.children(os.getpid())
    assert sh("true", mounts=bind(owned, uid_mappings=[(0, 1, 1)], gid_mappings=[(0, 1, 1)])).returncode == 0
    assert host.children(os.getpid()) == before
