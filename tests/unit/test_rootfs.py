"""pycontainer.rootfs: users of a rootfs that nobody vouches for, and the view of the host's own programs."""

from __future__ import annotations

import json
import os
import stat
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pycontainer import rootfs
from pycontainer.errors import InvalidCommandError, SetupError
from pycontainer.rootfs import MAX_DATABASE, HostView, UserIds, lookup_user, open_in_rootfs

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
nobody:x:65534:65533:nobody:/nonexistent:/bin/false
alice:x:1000:1001:Alice:/home/alice:/bin/sh
1000:x:0:0:a trap:/trap:/bin/sh
4294967296:x:0:0:a trap:/trap:/bin/sh
alice:x:0:0:second:/trap:/bin/sh
wrap:x:4294967296:0:wraps to 0:/:/bin/sh
minus:x:-1:0:all ones:/:/bin/sh
leave:x:4294967295:0:all ones:/:/bin/sh
hexa:x:0x0:0::/:/bin/sh
wrapgid:x:5:4294967296::/:/bin/sh
empty:x:::::
short:x:7
nohome:x:8:8:::
relative:x:9:9::home:
"""
GROUP = """\
root:x:0:
extra:x:2000:alice
alice:x:1001:
2000:x:0:
wrap:x:4294967296:
"""


@pytest.fixture
def box(tmp_path: Path) -> Path:
    etc = tmp_path / "box" / "etc"
    etc.mkdir(parents=True)
    (etc / "passwd").write_text(PASSWD)
    (etc / "group").write_text(GROUP)
    return tmp_path / "box"


def refused(box: Path, user: str | None, groups: tuple[str, ...] = ()) -> InvalidCommandError:
    with pytest.raises(InvalidCommandError) as caught:
        lookup_user(str(box), user, groups)
    return caught.value


# -- users


@pytest.mark.parametrize(
    ("user", "ids"),
    [
        (None, UserIds(0, 0, (), "/root", "root")),
        ("root", UserIds(0, 0, (), "/root", "root")),
        ("0", UserIds(0, 0, (), "/root", "root")),
        ("00", UserIds(0, 0, (), "/root", "root")),
        ("nobody", UserIds(65534, 65533, (), "/nonexistent", "nobody")),
        ("alice", UserIds(1000, 1001, (), "/home/alice", "alice")),
        ("1000", UserIds(1000, 1001, (), "/home/alice", "alice")),
        ("alice:extra", UserIds(1000, 2000, (), "/home/alice", "alice")),
        ("alice:2000", UserIds(1000, 2000, (), "/home/alice", "alice")),
        ("1000:0", UserIds(1000, 0, (), "/home/alice", "alice")),
        ("1:2", UserIds(1, 2, (), "/", "")),
        ("1", UserIds(1, 0, (), "/", "")),
        ("4294967294", UserIds(4294967294, 0, (), "/", "")),
        ("nohome", UserIds(8, 8, (), "/", "nohome")),
        ("relative", UserIds(9, 9, (), "/", "relative")),
    ],
)
def test_lookup(box: Path, user: str | None, ids: UserIds) -> None:
    """CVE-2016-3697 (a number is never a name), CVE-2026-30892 (user and group are not mixed up)."""
    assert lookup_user(str(box), user) == ids


@pytest.mark.parametrize("user", ["wrap", "minus", "leave", "hexa", "wrapgid", "empty"])
def test_an_entry_whose_id_would_become_another(box: Path, user: str) -> None:
    """CVE-2024-40635: 2**32 wraps to root."""
    assert refused(box, user).field == "process.user"


@pytest.mark.parametrize("user", ["bob", "short", "Alice", "alic", "alice:nogroup", "alice:wrap", "x", "alice:Extra"])
def test_an_unknown_user(box: Path, user: str) -> None:
    assert refused(box, user).field == "process.user"


@pytest.mark.parametrize("user", ["4294967296", "-1", "0x0", " 0", "", "a\n"])
def test_an_impossible_user(box: Path, user: str) -> None:
    assert refused(box, user).field == "process.user"


def test_groups_are_exactly_those_asked_for(box: Path) -> None:
    """CVE-2022-2995: membership in etc/group adds none, and the gid is not repeated."""
    assert lookup_user(str(box), "alice").groups == ()
    assert lookup_user(str(box), "alice", ("extra", "7", "2000", "root", "1001")).groups == (2000, 7, 0)
    assert lookup_user(str(box), "alice:extra", ("extra", "alice")).groups == (1001,)


@pytest.mark.parametrize("group", ["nogroup", "wrap", "4294967295", "-1"])
def test_an_impossible_group(box: Path, group: str) -> None:
    assert refused(box, "alice", (group,)).field == "process.additional_groups"


def test_without_files_numbers_do_and_names_do_not(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "none"):
        assert lookup_user(str(root), None) == UserIds(0, 0, (), "/", "")
        assert lookup_user(str(root), "5:6", ("7",)) == UserIds(5, 6, (7,), "/", "")
        assert refused(root, "alice").field == "process.user"
        assert refused(root, None, ("extra",)).field == "process.additional_groups"


def test_the_hosts_own_users() -> None:
    assert lookup_user(None, "root") == lookup_user(HostView(), "root") == lookup_user("/", "root")


def test_a_home_of_bytes(box: Path) -> None:
    (box / "etc/passwd").write_bytes(b"a:x:1:1::/h\xff:\nb:x:2:2::/h\0x:\n")
    assert os.fsencode(lookup_user(str(box), "a").home) == b"/h\xff"
    assert lookup_user(str(box), "b").home == "/"


# -- hostile files (CVE-2024-9676, CVE-2025-4437)


def plant(box: Path, name: str = "passwd") -> Path:
    path = box / "etc" / name
    path.unlink()
    return path


@pytest.mark.parametrize("target", ["{0}/canary", "../../canary", "../../../../../../../../../..{0}/canary"])
def test_a_link_stays_in_the_rootfs(box: Path, tmp_path: Path, target: str) -> None:
    (tmp_path / "canary").write_text("eve:x:0:0::/:\n")
    plant(box).symlink_to(target.format(tmp_path))
    assert "eve" in refused(box, "eve").problem
    assert lookup_user(str(box), "5") == UserIds(5, 0, (), "/", "")


def test_a_linked_directory_stays_in_the_rootfs(box: Path, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("eve:x:0:0::/:\n")
    (box / "etc").rename(box / "real")
    (box / "etc").symlink_to("../etc")
    refused(box, "eve")
    (box / "etc").unlink()
    (box / "etc").symlink_to("/real")
    assert lookup_user(str(box), "alice").uid == 1000


def test_the_links_of_proc_are_not_followed(tmp_path: Path) -> None:
    with open(tmp_path / "canary", "w+") as canary:
        with pytest.raises(OSError, match="symbolic links"):
            open_in_rootfs("/", f"proc/self/fd/{canary.fileno()}")
        with pytest.raises(OSError, match="symbolic links"):
            open_in_rootfs("/", f"proc/self/root{tmp_path}/canary")


def test_a_fifo_is_not_waited_for(box: Path) -> None:
    os.mkfifo(plant(box))
    begun = time.monotonic()
    assert "regular file" in refused(box, "alice").problem
    assert time.monotonic() - begun < 2


def test_a_directory_is_no_file(box: Path) -> None:
    plant(box).mkdir()
    assert refused(box, None).field == "process.user"
    plant(box, "group").mkdir()
    (box / "etc/passwd").rmdir()
    assert refused(box, "0", ("extra",)).field == "process.additional_groups"


def test_a_loop_of_links(box: Path) -> None:
    plant(box).symlink_to("passwd")
    assert refused(box, "alice").field == "process.user"


def test_a_huge_file_is_not_read(box: Path) -> None:
    with open(box / "etc/passwd", "w") as file:
        file.truncate(1 << 30)
    begun = time.monotonic()
    assert str(MAX_DATABASE) in refused(box, "alice").problem
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize("line", ["\n", ":::::::\n", ":", "a:b:1\n", "x"])
def test_work_is_bounded(box: Path, line: str) -> None:
    (box / "etc/passwd").write_text((line * MAX_DATABASE)[:MAX_DATABASE])
    begun = time.monotonic()
    assert lookup_user(str(box), "123") == UserIds(123, 0, (), "/", "")
    refused(box, "alice")
    assert time.monotonic() - begun < 5


def test_no_descriptor_is_left(box: Path) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    lookup_user(str(box), "alice", ("extra",))
    before = descriptors()
    lookup_user(str(box), "alice", ("extra",))
    refused(box, "bob", ("nogroup",))
    plant(box).mkdir()
    refused(box, "alice")
    assert descriptors() == before


def test_open_in_rootfs(box: Path) -> None:
    descriptor = open_in_rootfs(str(box), "/etc/group")
    try:
        assert os.read(descriptor, 4) == b"root"
        assert not os.get_inheritable(descriptor)
    finally:
        os.close(descriptor)
    for root, path in ((box, "none"), (box / "none", "etc/group")):
        with pytest.raises(FileNotFoundError):
            open_in_rootfs(str(root), path)
    with pytest.raises(NotADirectoryError):
        open_in_rootfs(str(box / "etc/group"), "x")


def test_eagain_is_tried_again(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """openat2(2) answers EAGAIN whenever anything mounts or renames meanwhile."""
    import ctypes
    import errno

    real, answers = rootfs._syscall(), [errno.EAGAIN, errno.EINTR]

    def flaky(*arguments: Any) -> Any:
        if answers:
            ctypes.set_errno(answers.pop())
            return -1
        return real(*arguments)

    monkeypatch.setattr(rootfs, "_syscall", lambda: flaky)
    assert lookup_user(str(box), "alice").uid == 1000
    assert answers == []


@pytest.mark.parametrize("name", ["EMFILE", "ENFILE", "ENOMEM", "EIO", "ENOSYS"])
@pytest.mark.parametrize("call", ["openat2", "read"])
def test_what_is_not_the_rootfs_fault_is_not_blamed_on_it(
    box: Path, monkeypatch: pytest.MonkeyPatch, name: str, call: str
) -> None:
    import ctypes
    import errno

    number = getattr(errno, name)

    def failing(*_: Any) -> Any:
        ctypes.set_errno(number)
        if call == "openat2":
            return -1
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        if call == "openat2":
            patch.setattr(rootfs, "_syscall", lambda: failing)
        else:
            patch.setattr(os, "read", failing)
        with pytest.raises(SetupError) as caught:
            lookup_user(str(box), "alice")
    assert (caught.value.step, caught.value.errno, caught.value.path) == ("read etc/passwd", number, "etc/passwd")


# -- the view of the host


@pytest.fixture(scope="module")
def view() -> HostView:
    return HostView.detect()


def shown(view: HostView, path: str) -> bool:
    """Whether a host path appears in the view with its content."""
    names = (*view.overlays, *view.files, *view.trees)
    return any(path == name or path.startswith(name + "/") for name in names)


def test_the_view_has_the_programs_and_the_running_python(view: HostView) -> None:
    for path in ("/bin/sh", sys.executable, os.__file__):
        assert shown(view, os.path.realpath(path))
    assert shown(view, "/etc/passwd")
    assert shown(view, os.path.realpath(f"{sys.prefix}/bin"))


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/etc", "/etc/shadow", "/etc/gshadow", "/etc/ssh/ssh_host_ed25519_key"),
        *("/etc/ssl/private/x", "/etc/sudoers", "/etc/hostname", "/root/.ssh/id_ed25519", "/root/.bash_history"),
        *("/home/x/.ssh/id_rsa", "/var/log/syslog", "/proc/1", "/sys/kernel", "/dev/sda", "/run/docker.sock"),
        *("/var/lib/x", "/etc/pip.conf", "/etc/fstab"),
    ],
)
def test_the_view_has_nothing_else(view: HostView, path: str) -> None:
    assert not shown(view, path)
    assert path not in dict(view.links)


def test_everything_shown_of_etc_is_public(view: HostView) -> None:
    for path in view.files:
        status = os.stat(path)
        assert stat.S_ISREG(status.st_mode)
        assert status.st_mode & 0o004
    for tree in view.trees:
        for directory, names, files in os.walk(tree):
            for path in (os.path.join(directory, name) for name in (*names, *files)):
                assert os.path.islink(path) or os.stat(path).st_mode & 0o004


def test_every_parent_is_made_before_its_child(view: HostView) -> None:
    made = {"/"}
    for path, _ in view.directories:
        assert os.path.dirname(path) in made
        made.add(path)
    for path in (*view.overlays, *view.files, *view.trees, *dict(view.links)):
        parent = os.path.dirname(path)
        assert parent in made or shown(view, parent)


def test_modes_of_the_empty_directories(view: HostView) -> None:
    modes = dict(view.directories)
    assert modes["/tmp"] == modes["/var/tmp"] == 0o1777
    assert modes["/root"] in (0o700, 0o755)
    assert (modes["/root"] == 0o755) is any(path.startswith("/root/") for path in view.overlays)
    assert {"/proc", "/sys", "/dev", "/etc", "/run", "/home"} <= modes.keys()


def test_links_are_recreated(view: HostView) -> None:
    for path in ("/bin", "/lib64"):
        if os.path.islink(path):
            assert (path, os.readlink(path)) in view.links
            assert path not in view.overlays


def test_detecting_changes_nothing_and_repeats(view: HostView) -> None:
    assert HostView.detect() == view


def test_a_python_in_a_home_is_shown_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    (home / "python/bin").mkdir(parents=True)
    (home / "link").symlink_to("python")
    monkeypatch.setenv("HOME", str(home))
    for name in ("prefix", "exec_prefix", "base_exec_prefix"):
        monkeypatch.setattr(sys, name, str(home / "python"))
    monkeypatch.setattr(sys, "base_prefix", str(home / "link"))
    view = HostView.detect()
    (home / "python/.env").touch()  # as in a virtual environment made where its project is
    assert str(home / "python/bin") in view.overlays
    assert not shown(view, str(home / "python/.env"))
    assert (str(home / "link"), str(home / "python")) in view.links
    assert not shown(view, str(home / "secret"))
    assert dict(view.directories)[str(home)] == 0o755


@pytest.mark.parametrize("prefix", ["/", "/home", "/root", "/var", "/etc", "/tmp", "HOME", "PARENT"])
def test_a_prefix_that_holds_other_things_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    prefix = {"HOME": str(tmp_path), "PARENT": str(tmp_path.parent)}.get(prefix, prefix)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("prefix", "exec_prefix", "base_prefix", "base_exec_prefix"):
        monkeypatch.setattr(sys, name, prefix)
    view = HostView.detect()
    assert not any(path.startswith(f"{prefix.rstrip('/')}/") for path in view.overlays if not path.startswith("/usr"))
    assert not shown(view, str(tmp_path / "secret"))


def test_a_tree_with_a_private_file_is_left_out(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub/public").touch(mode=0o644)
    (tree / "link").symlink_to("nowhere")
    tree.chmod(0o755)
    (tree / "sub").chmod(0o755)
    (tree / "sub/public").chmod(0o644)
    assert rootfs._is_public_tree(str(tree))
    (tree / "sub/public").chmod(0o640)
    assert not rootfs._is_public_tree(str(tree))
    (tree / "sub/public").chmod(0o644)
    (tree / "sub").chmod(0o750)
    assert not rootfs._is_public_tree(str(tree))
    (tree / "sub").chmod(0o755)
    os.mkfifo(tree / "fifo", 0o644)
    assert not rootfs._is_public_tree(str(tree))


def test_a_view_as_json(view: HostView) -> None:
    assert HostView.from_json(view.to_json()) == view
    assert hash(HostView.from_json(view.to_json())) == hash(view)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("overlays", ["/"]), ("overlays", ["usr"]), ("overlays", ["/proc"])),
        *(("overlays", ["/a/../b"]), ("overlays", "/a"), ("files", ["/etc"]), ("trees", ["/dev"]), ("trees", [3])),
        *(("files", ["/a\nb"]), ("overlays", ["/sys/"]), ("links", [["/a"]]), ("links", ["ab"]), ("links", None)),
        *(("links", [["/a", "b\0"]]), ("links", [["a", "b"]]), ("directories", [["/a", 0o10000]])),
        *(("directories", [["/a", True]]), ("directories", [["/a", "755"]]), ("more", [])),
    ],
)
def test_an_impossible_view(field: str, value: Any) -> None:
    with pytest.raises(InvalidCommandError) as caught:
        HostView.from_json(json.dumps({field: value}))
    assert caught.value.field == f"rootfs.{field}"


@pytest.mark.parametrize("text", ["", "[]", "null", "[" * 100000])
def test_other_json(text: str) -> None:
    with pytest.raises(InvalidCommandError):
        HostView.from_json(text)
