"""E: who the payload is, and what it may."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
from pathlib import Path

import attrs
import pytest

import pycontainer
from pycontainer.command import Command
from pycontainer.errors import ContainerError, InvalidCommandError
from pycontainer.rootfs import HostView, lookup_user
from pycontainer_native import capabilities, userns
from pycontainer_native.driver import NativeDriver

from ..integration import host
from .calls import errnos
from .catalogue import row
from .mutants import Patch, PlanMutant, ambient, given, left_out, no_filter
from .stages import in_child, in_own_mounts, libc

NONE = "0" * 16
#: capabilities(7): the numbers of the twelve defaults, written down so that the code's own table is not believed.
DEFAULT = sum(1 << number for number in (0, 1, 3, 4, 5, 6, 7, 8, 10, 18, 29, 31))


def sets(pid):
    status = host.status(pid)
    return {name: status[f"Cap{name}"] for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")}


def not_dropped(name):
    return PlanMutant(f"{name} stays in the bounding set", left_out(f"drop {name} from the bounding set"))


@row("E1", mutants=[no_filter, not_dropped("CAP_DAC_READ_SEARCH")])
def test_e1_the_bounding_set_is_an_allow_list(start, python):
    assert sets(start(["sleep", "100"]).pid)["Bnd"] == f"{DEFAULT:016x}"
    name_to_handle_at, open_by_handle_at = 303, 304
    assert errnos(python, [(name_to_handle_at, -100, 0, 0, 0, 0), (open_by_handle_at, -100, 0, 0)]) == [1, 1]


_inheritable = given("set capabilities", "capset", None, capabilities.capset_data(DEFAULT, DEFAULT, DEFAULT)[1])


@row("E2", mutants=[PlanMutant("inheritable as well", lambda step: _inheritable(step))])
def test_e2_cve_2022_24769_nothing_is_inheritable(start):
    for keywords in ({}, {"cap_add": ["NET_ADMIN"]}, {"user": "1000"}):
        box = start(["sleep", "100"], **keywords)
        done = box.exec(["grep", "CapInh", "/proc/self/status"], capture_output=True, text=True)
        assert (sets(box.pid)["Inh"], done.stdout) == (NONE, f"CapInh:\t{NONE}\n")
        box.kill()


@row("E3", mutants=[ambient])
def test_e3_cve_2016_8867_nothing_is_ambient(start):
    for keywords in ({}, {"user": "1000"}, {"user": "1000", "cap_add": ["NET_BIND_SERVICE", "NET_ADMIN"]}):
        box = start(["sleep", "100"], **keywords)
        found = sets(box.pid)
        assert found["Amb"] == NONE
        assert found["Eff"] == found["Prm"]
        assert (found["Eff"] == NONE) == ("user" in keywords)
        box.kill()


@row(
    "E4",
    mutants=[
        not_dropped("CAP_CHECKPOINT_RESTORE"),
        Patch("any name is taken", "pycontainer._fields.refuse", lambda *_: None),
    ],
)
def test_e4_every_capability_of_the_kernel_is_known(start, busybox_rootfs):
    assert int(sets(start(["sleep", "100"]).pid)["Bnd"], 16) >> 40 == 0
    for name in ("CAP_BOGUS", "BOGUS", "", "CAP_", "41", "cap_chown\n", "ALL,CHOWN"):
        for keyword in ("cap_add", "cap_drop", "capabilities"):
            try:
                with pytest.raises(InvalidCommandError):
                    Command.of(["true"], rootfs=busybox_rootfs, **{keyword: [name]})
            except (KeyError, TypeError, ValueError) as error:
                pytest.fail(repr(error))


@pytest.fixture(scope="session")
def who(tmp_path_factory):
    """A static program that prints its effective user id."""
    directory = tmp_path_factory.mktemp("who")
    (directory / "who.c").write_text(
        '#include <stdio.h>\n#include <unistd.h>\nint main() { printf("%d\\n", geteuid()); }\n'
    )
    subprocess.run(["gcc", "-static", "-o", directory / "who", directory / "who.c"], check=True)
    return directory / "who"


@row(
    "E5", mutants=[PlanMutant("no_new_privs is off", left_out("set no_new_privs"), left_out("load the seccomp filter"))]
)
def test_e5_a_setuid_program_gives_nothing(start, sh, hostile, who):
    shutil.copy(who, hostile.path / "bin/who")
    os.chmod(hostile.path / "bin/who", 0o4755)
    assert sh("who", rootfs=hostile, user="1000").stdout == "1000\n"
    assert host.status(start(["sleep", "100"]).pid)["NoNewPrivs"] == "1"


_by_name = Patch("a name before a number", "pycontainer._fields.user", lambda _, text: (*text.split(":"), None)[:2])


@row("E6", mutants=[_by_name])
def test_e6_cve_2016_3697_digits_are_a_number(start, hostile):
    hostile.file("etc/passwd", "1000:x:0:0::/:/bin/sh\nroot:x:0:0::/:/bin/sh\n")
    hostile.file("etc/group", "1000:x:0:\n0:x:5:\n")
    for user in ("1000", "1000:1000"):
        box = start(["sleep", "100"], rootfs=hostile, user=user)
        assert {*host.ids(box.pid, "Uid")} == {1000}
        box.kill()


WRONG = ("4294967295", "4294967296", "18446744073709551616", "-1", "+0", " 0", "0x0", "0 ", "00x", "1e3", "0\n", "")


@row("E7", mutants=[_by_name])
def test_e7_cve_2024_40635_ids_out_of_range_are_nobody(start, hostile):
    lines = "".join(f"{user}:x:0:0::/:/bin/sh\n" for user in WRONG if user.strip() == user and user)
    hostile.file("etc/passwd", lines)
    hostile.file("etc/group", "".join(f"{user}:x:0:\n" for user in WRONG if user.strip() == user and user))
    for user in (*WRONG, *(f"1000:{user}" for user in WRONG)):
        with pytest.raises(ContainerError):
            start(["true"], rootfs=hostile, user=user)
    # nor may passwd itself name such a number
    for number in ("4294967296", "4294967295", "-1", "0x0", ""):
        hostile.file("etc/passwd", f"bad:x:{number}:0::/:/bin/sh\n")
        with pytest.raises(ContainerError):
            start(["true"], rootfs=hostile, user="bad")


#: The last id there is: an ordinary user has no more than /etc/subuid gives him.
LAST = 4294967294 if os.geteuid() == 0 else 65535


def _group_lost(*arguments):
    return attrs.evolve(lookup_user(*arguments), gid=0)


@row("E8", mutants=[Patch("the group is lost", "pycontainer.spec.lookup_user", _group_lost)])
def test_e8_cve_2026_30892_a_user_is_who_was_named(start):
    for user, expected in (
        *(
            (None, (0, 0)),
            ("1", (1, 0)),
            ("1:2", (1, 2)),
            ("0:5", (0, 5)),
            ("alice", (1000, 1000)),
            ("alice:0", (1000, 0)),
        ),
        *(("1000:extra", (1000, 2000)), ("nobody", (65534, 65534)), ("007", (7, 0)), (str(LAST), (LAST, 0))),
    ):
        box = start(["sleep", "100"], user=user)
        [uid], [gid] = ({*host.ids(box.pid, name)} for name in ("Uid", "Gid"))
        assert (uid, gid) == expected, user
        box.kill()


def _as_the_host_opens(rootfs, path):
    return os.open(os.path.join(rootfs, path), os.O_RDONLY | os.O_NONBLOCK)


@row("E9", mutants=[Patch("opened as on the host", "pycontainer.rootfs.open_in_rootfs", _as_the_host_opens)])
def test_e9_cve_2024_9676_passwd_of_the_image_is_not_trusted(start, hostile):
    for name, keywords in (("etc/passwd", {"user": "mallory"}), ("etc/group", {"user": "0:mallory"})):
        for trap in ("link out", "fifo", *(["device"] if os.geteuid() == 0 else []), "sparse", "directory"):
            if trap == "link out":
                hostile.link(name, hostile.canary / os.path.basename(name))
            elif trap == "fifo":
                hostile.fifo(name)
            elif trap == "device":
                hostile.device(name, 1, 5)
            elif trap == "sparse":
                os.truncate(hostile.file(name, "x:x:0:0::/:\n"), 1 << 30)
            else:
                hostile.file(name, "").unlink()
                (hostile.path / name).mkdir()
            with pytest.raises(InvalidCommandError):
                start(["true"], rootfs=hostile, **keywords)
        hostile.file(name, "root:x:0:0::/:/bin/sh\n")


@row("E10", mutants=[Patch("anything is taken", "pycontainer._fields.refuse", lambda *_: None)])
def test_e10_cve_2022_4318_no_line_breaks_where_lines_follow(sh, busybox_rootfs):
    for keywords in (
        *({"hostname": "a\nb"}, {"name": "a\nb"}, {"user": "a\nb"}, {"cgroup_parent": "/a\nb"}, {"groups": ["a\nb"]}),
        *({"sysctls": {"net.ipv4.ip_forward": "1\n2"}}, {"masked_paths": ["/a\nb"]}),
    ):
        try:
            with pytest.raises(InvalidCommandError):
                Command.of(["true"], rootfs=busybox_rootfs, **keywords)
        except (TypeError, ValueError, AttributeError) as error:
            pytest.fail(f"{keywords}: {error!r}")
    # In the environment it is a byte like any other: no file is made of it.
    env = {"PATH": "/bin", "HOME": "/\nroot2::0:0"}
    assert sh("id -un root2; grep -c . /etc/passwd", env=env).stdout == sh("grep -c . /etc/passwd").stdout


@row("E11", mutants=[PlanMutant("groups are not set", left_out("set groups and ids", "setgroups"))])
def test_e11_cve_2022_2989_groups_are_exactly_those_asked_for(native, busybox_rootfs):
    def body():
        if os.geteuid() == 0:
            os.setgroups([0, 6, 27, 999])
        driver = NativeDriver()
        try:
            for keywords, expected in (
                *(({}, "0"), ({"user": "1001"}, "0"), ({"user": "alice"}, "1000"), ({"user": "5:6"}, "6")),
                *(({"user": "alice", "groups": ["extra", "7"]}, "7 1000 2000"), ({"groups": [0, 0]}, "0")),
            ):
                with pycontainer.Container(["sleep", "100"], rootfs=busybox_rootfs, driver=driver, **keywords) as box:
                    assert sorted(host.ids(box.pid, "Groups")) == [*map(int, expected.split())]
                    done = box.exec(["grep", "Groups", "/proc/self/status"], capture_output=True, text=True)
                    assert sorted(done.stdout.split()[1:], key=int) == expected.split()
        finally:
            driver.close()

    in_child(body)


def _failing(step):
    """setresuid fails, as with a full RLIMIT_NPROC, and nobody looks."""
    if step.call != "setresuid":
        return None
    return step._replace(arguments=(-2, -1, 2**32 - 2), call="setresgid", accept={errno.EPERM: 0, errno.EINVAL: 0})


@row(
    "E14",
    mutants=[PlanMutant("a failure is ignored", _failing), PlanMutant("ids are not set", left_out("", "setresuid"))],
)
def test_e14_every_id_of_every_thread_is_the_users(start):
    for init in (False, True):
        box = start(["sleep", "100"], user="alice", init=init)
        for pid in box.pids():
            for task in os.listdir(f"/proc/{pid}/task"):
                assert {*host.ids(int(task), "Uid")} == {*host.ids(int(task), "Gid")} == {1000}
        box.kill()


_writable = PlanMutant("the host's files are writable", left_out("mount /", "mount_setattr"))


@row("E15", mutants=[_writable])
def test_e15_cve_2013_6441_the_hosts_files_are_read_only(sh, hostile):
    view = HostView.detect()
    view = attrs.evolve(view, trees=(*view.trees, str(hostile.canary)), directories=(
        *view.directories, *((str(path), 0o755) for path in (*reversed(hostile.canary.parents), hostile.canary)
                             if str(path) != "/" and str(path) not in {p for p, _ in view.directories})))  # fmt: skip
    done = sh(f"echo x >{hostile.canary}/file; touch {hostile.canary}/new; cat {hostile.canary}/file", rootfs=view)
    assert "mallory" in done.stdout
    assert done.stderr.count("Read-only file system") == 2
    # what is copied on write is not written
    done = sh(
        "echo x >>/usr/lib/os-release; rm -f /usr/bin/env; touch /usr/new; [ -e /usr/new ] && echo on", rootfs=None
    )
    assert done.stdout == "on\n"
    assert os.path.exists("/usr/bin/env")
    assert not os.path.exists("/usr/new")


CLONE_NEWUSER, PR_SET_DUMPABLE = 0x10000000, 4


def _line_by_line(pid, namespace):
    """The maps as they were written elsewhere: each range for itself, and what is refused is refused."""
    for kind, maps in (("uid", namespace.uids), ("gid", namespace.gids)):
        for inside, start, count in maps:
            with contextlib.suppress(OSError):
                userns._write(f"/proc/{pid}/{kind}_map", f"{inside} {start} {count}\n")


def mapped(uids, gids, *, setgroups):
    """What the kernel has of these maps for a process in a new user namespace: (uid_map, gid_map, setgroups)."""
    entered, child_entered = os.pipe()
    child = os.fork()
    if child == 0:
        libc.unshare(CLONE_NEWUSER)
        os.write(child_entered, b"e")
        signal.pause()
        os._exit(0)
    try:
        os.read(entered, 1)
        userns.write_maps(child, userns.UserNamespace(uids, gids, setgroups))
        files = (Path(f"/proc/{child}/{name}").read_text().split() for name in ("uid_map", "gid_map", "setgroups"))
        return tuple(" ".join(words) for words in files)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(entered)
        os.close(child_entered)


_naive_maps = Patch(
    "line by line, and no look at what came of it", "pycontainer_native.userns.write_maps", _line_by_line
)


@row("E12", mutants=[_naive_maps])
def test_e12_cve_2014_8989_setgroups_is_denied_to_an_ordinary_user():
    def body():
        os.setgroups([])
        os.setresgid(*[65534] * 3)
        os.setresuid(*[65534] * 3)
        libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # or what is his in /proc would be root's
        own = ((0, 65534, 1),)
        assert mapped(own, own, setgroups=False) == ("0 65534 1", "0 65534 1", "deny")
        assert not userns.of_ordinary_user().setgroups or os.path.exists("/etc/subuid")

    in_own_mounts(body)


@row("E13", mutants=[_naive_maps])
def test_e13_id_maps_are_as_they_were_asked_for():
    def body():
        several = ((0, 100000, 1000), (1000, 1000, 1), (2000, 300000, 65536))
        text = "0 100000 1000 1000 1000 1 2000 300000 65536"
        assert mapped(several, several, setgroups=False)[:2] == (text, text)
        for wrong in (
            ((0, 100000, 1000), (500, 200000, 1000)),  # twice inside
            ((0, 100000, 1000), (1000, 100500, 1000)),  # twice outside
            ((0, 100000, 0),),
            ((0, 2**32 - 10, 100),),
            (),
        ):
            with pytest.raises(OSError, match=r"Invalid argument|Operation not permitted|does not hold"):
                mapped(wrong, ((0, 0, 1),), setgroups=False)

    in_own_mounts(body)


@row("E16", mutants=[PlanMutant("its root stays writable", left_out("make rootfs read-only", "mount_setattr"))])
def test_e16_cve_2021_21284_what_a_payload_leaves_on_the_disk(sh, hostile, user_namespaces):
    # Its root's files are the host's root's. So: none where that is asked for, and for nobody who cannot get there.
    leave = "cp /bin/busybox /left && chmod 4755 /left; ls /left"
    for own in user_namespaces:
        done = sh(leave, rootfs=hostile, read_only=True, userns=own)
        assert "Read-only file system" in done.stderr
        assert not (hostile.path / "left").exists()
        assert sh(leave, rootfs=hostile, userns=own).stdout == "/left\n"
        at = (hostile.path / "left").stat()
        assert (at.st_uid, at.st_mode & 0o4777) == (0, 0o4755)  # as the README says
        closed = hostile.path.parent
        closed.chmod(0o700)

        def try_it(path=hostile.path / "left"):
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            with pytest.raises(PermissionError):
                os.execv(path, ["busybox", "true"])

        in_child(try_it)
        (hostile.path / "left").unlink()


def test_an_id_that_is_not_mapped_is_nobody():
    namespace = userns.UserNamespace(((0, 1000, 1),), ((0, 1000, 1),), setgroups=False)
    for user in ({"uid": 1, "gid": 0}, {"uid": 0, "gid": 5}, {"uid": 0, "gid": 0, "additionalGids": [7]}):
        with pytest.raises(InvalidCommandError):
            namespace.check(user)
