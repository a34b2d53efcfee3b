"""The same Command through native and lxc: what can be observed is equal.

What differs, and LXC's reason for it, is in the README's table; nothing of that is asserted here.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

import pycontainer
from pycontainer import PIPE, ExecutionDriver, Feature, InvalidCommandError, Mount, NotRunningError, SetupError, State
from pycontainer.command import Command, Resources
from pycontainer.driver import Stdio
from pycontainer.process import Process
from pycontainer_lxc.driver import LxcDriver
from pycontainer_native.driver import NativeDriver

pytestmark = [pytest.mark.root, pytest.mark.tool("lxc-start", "busybox")]


@pytest.fixture(scope="module")
def drivers() -> Any:
    with tempfile.TemporaryDirectory(prefix="pycontainer-test-", dir="/run") as root:
        pair = (NativeDriver(root), LxcDriver())
        yield pair
        for driver in pair:
            driver.close()


Both = Callable[..., Any]


@pytest.fixture
def both(drivers: tuple[ExecutionDriver, ...], busybox_rootfs: Path) -> Both:
    """What *look* says of the same run through either driver; it has to be the same."""

    def both(
        argv: list[str], look: Callable[[Any], Any] = lambda done: (done.status, done.stdout, done.stderr), **kw: Any
    ) -> Any:
        results = []
        for driver in drivers:
            keywords = {"rootfs": busybox_rootfs, "driver": driver, "capture_output": True, "timeout": 60, **kw}
            try:
                results.append(look(pycontainer.run(argv, **keywords)))
            except (SetupError, InvalidCommandError) as error:
                results.append(
                    (type(error), error.step, error.errno)
                    if isinstance(error, SetupError)
                    else (type(error), error.field)
                )
        assert results[0] == results[1]
        return results[0]

    return both


def sh(script: str) -> list[str]:
    return ["sh", "-c", script]


@pytest.mark.parametrize("code", [0, 1, 7, 126, 127, 137, 255])
def test_exit_codes(both: Both, code: int) -> None:
    assert both(sh(f"exit {code}"))[0].exit_code == code


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("caught", [True, False])
def test_signals(drivers: Any, busybox_rootfs: Path, number: int, caught: bool) -> None:
    """PID 1 ends by SIGKILL alone, or does what its handler does."""
    results = []
    for driver in drivers:
        trap = f"trap 'exit 42' {int(number)}; " if caught and number != signal.SIGKILL else ""
        script = f"{trap}echo; while :; do sleep 0.02; done"
        with pycontainer.Container(sh(script), rootfs=busybox_rootfs, driver=driver, stdout=PIPE) as box:
            assert box.stdout is not None
            box.stdout.readline()
            box.send_signal(number)
            if not trap:
                time.sleep(0.05)
                box.kill()
            box.wait(20)
            results.append(box.status)
    assert results[0] == results[1]


NOT_FOUND, DENIED, NO_DIRECTORY = ((SetupError, "execve", number) for number in (2, 13, 20))


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        *((["/no/such"], NOT_FOUND), (["no-such"], NOT_FOUND), (["/etc/passwd"], DENIED), (["/etc"], DENIED)),
        *((["/etc/passwd/x"], NO_DIRECTORY), (["true"], (0, b"", b"")), (["busybox", "true"], (0, b"", b""))),
    ],
)
def test_what_can_be_executed(both: Both, argv: list[str], expected: Any) -> None:
    assert both(argv, lambda done: (done.returncode, done.stdout, done.stderr)) == expected


def test_output_is_binary_and_separate(both: Both) -> None:
    status, out, err = both(sh("head -c 300000 /dev/zero; printf 'e\\0\\377' >&2; printf 'o\\n\\r\\0'"))
    assert (len(out), err) == (300004, b"e\0\xff")
    assert status.exit_code == 0


@pytest.mark.parametrize("data", [b"", b"hello\n", bytes(range(256)) * 2000])
def test_stdin(both: Both, data: bytes) -> None:
    assert both(["cat"], input=data)[1] == data


#: capabilities(7): the bits of the twelve defaults, and of those that a test asks for.
DEFAULT, NET_RAW, MKNOD = 0xA00405FB, 1 << 13, 1 << 27
SETS = ("Inh", "Prm", "Eff", "Bnd", "Amb")


def status(uid: int, gid: int, groups: str, cap: int, bound: int, nnp: int = 1, mode: int = 2, ids: bool = True) -> str:
    """Lines of /proc/self/status, as proc_pid_status(5) has them."""
    who = [f"{name}:\t" + "\t".join([str(id)] * 4) for name, id in (("Uid", uid), ("Gid", gid))] if ids else []
    signals = [f"Sig{name}:\t{0:016x}" for name in ("Blk", "Ign", "Cgt")] if ids else []
    sets = [f"Cap{name}:\t{bits:016x}" for name, bits in zip(SETS, (0, cap, cap, bound, 0), strict=True)]
    filters = [f"Seccomp:\t{mode}", f"Seccomp_filters:\t{mode // 2}"]
    return "".join(
        f"{line}\n" for line in [*who, f"Groups:\t{groups} ", *signals, *sets, f"NoNewPrivs:\t{nnp}", *filters]
    )


def there(*paths: str) -> list[str]:
    """Those that this kernel has."""
    return [path for path in paths if os.path.exists(path)]


DEVICES = (("null", "1:3"), ("zero", "1:5"), ("full", "1:7"), ("random", "1:8"), ("urandom", "1:9"), ("tty", "5:0"))
FLAGS = "nosuid,nodev,noexec,relatime"
MOUNTS = [
    *(f"/dev/mqueue mqueue rw,{FLAGS}", f"/dev/shm tmpfs rw,{FLAGS},size=65536k", f"/proc proc rw,{FLAGS}"),
    *(f"{path} proc ro,{FLAGS}" for path in there("/proc/bus", "/proc/irq", "/proc/sys")),
    f"/sys sysfs ro,{FLAGS}",
]
HIDDEN = ("/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/interrupts")
LOOPBACK = ["1: lo    inet 127.0.0.1/8 scope host lo\\", "1: lo    inet6 ::1/128 scope host \\"]

#: What is printed, by whomever; None: see WHO.
SURROUNDINGS: dict[str, list[str] | None] = {
    "id -u; id -g; id -G": None,
    "grep -E '^(Sig(Blk|Ign|Cgt)|Cap|NoNewPrivs|Seccomp|Uid|Gid|Groups)' /proc/self/status": None,
    "pwd": ["/"],
    "umask": ["0022"],
    "echo $$": ["1"],
    "ls -A /proc/self/fd | tr '\\n' ' '; echo": ["0 1 2 3 "],  # the last one is that of ls
    "ip -o addr | sed 's/ *valid_lft.*//'": LOOPBACK[: 2 if os.path.exists("/proc/net/if_inet6") else 1],
    "stat -c '%n %F %a %t:%T' /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty": [
        f"/dev/{name} character special file 666 {number}" for name, number in DEVICES
    ],
    "for f in fd stdin stdout stderr; do readlink /dev/$f; done": [
        *("/proc/self/fd", "/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/2")
    ],
    "cut -d: -f3 /proc/self/cgroup | sort -u": ["/"],
    "grep -E ' /(proc|sys|proc/sys|proc/irq|proc/bus|dev/shm|dev/mqueue) ' /proc/self/mounts |"
    "cut -d' ' -f2,3,4 | sort": MOUNTS,
    f"for f in {' '.join(HIDDEN)}; do [ -e $f ] && wc -c < $f; done": ["0"] * len(there(*HIDDEN)),
    "for d in /proc/acpi /sys/firmware; do ls -A $d 2>/dev/null; done": [],
    "for f in /proc/sysrq-trigger /proc/sys/kernel/core_pattern /sys/kernel/uevent_seqnum; do "
    "(echo x > $f) 2>/dev/null && echo $f; done": [],
    "mknod /tmp/n b 8 0 2>&1 | sed 's/.*: //'": ["Operation not permitted"],
    "umount /proc/sys 2>&1 | sed 's/.*: //'": ["Operation not permitted"],
    "mount -t tmpfs x /tmp 2>&1 | sed 's/.*: //'": ["permission denied (are you root?)"],
    "cat /proc/net/unix | wc -l": ["1"],
    "stat -c '%a %u:%g' /dev/shm /dev/mqueue": ["1777 0:0", "1777 0:0"],
    "nproc; cat /proc/self/oom_score_adj; ulimit -n; ulimit -c": [
        *(str(os.cpu_count()), "0"),
        *(str(resource.getrlimit(limit)[0]) for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE)),
    ],
}
#: uid, gid, groups, capabilities
WHO: list[tuple[dict[str, Any], tuple[int, int, str, int]]] = [
    ({}, (0, 0, "0", DEFAULT)),
    ({"user": "alice", "groups": ["extra"]}, (1000, 1000, "1000 2000", 0)),
    ({"user": "1234:5678"}, (1234, 5678, "5678", 0)),
]


@pytest.mark.parametrize("script", SURROUNDINGS)
@pytest.mark.parametrize(("keywords", "who"), WHO, ids=str)
def test_surroundings(both: Both, script: str, keywords: dict[str, Any], who: tuple[int, int, str, int]) -> None:
    expected = SURROUNDINGS[script]
    uid, gid, groups, held = who
    if expected is None:
        ids = [str(uid), str(gid), groups]
        expected = ids if script.startswith("id") else status(uid, gid, groups, held, DEFAULT).splitlines()
    done, out, err = both(sh(script + " || true"), **keywords)
    assert (done.exit_code, out.decode(), err) == (0, "".join(f"{line}\n" for line in expected), b"")


ALLOW = {"defaultAction": "SCMP_ACT_ALLOW"}
NOTHING_OWN = (
    "stat: can't stat '/dev/own/*': No such file or directory\nhead: /dev/own/zero: No such file or directory\n"
)
NO_NODE = "mknod: /tmp/kmsg: Operation not permitted\n"
IN_DEV = "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"


@attrs.frozen
class Shown:
    """What test_keywords' script prints."""

    hostname: str = "box"
    cwd: str = "/"
    nofile: str = str(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    core: str = str(resource.getrlimit(resource.RLIMIT_CORE)[0])
    id: str = "uid=0(root) gid=0(root) groups=0(root)"
    groups: str = "0"
    held: int | None = DEFAULT
    bound: int | None = DEFAULT
    nnp: int = 1
    mode: int = 2
    cpus: str | None = None
    root_written: str = "0"  #: the exit code
    oom: str = "0"
    dev: str = IN_DEV
    own: str = "0\n"
    err: str = NOTHING_OWN + NO_NODE

    def text(self) -> str:
        everything = int(Path("/proc/self/status").read_text().split("CapBnd:\t")[1].split()[0], 16)
        held, bound = (everything if bits is None else bits for bits in (self.held, self.bound))
        cpus = self.cpus or Path("/proc/self/status").read_text().split("Cpus_allowed_list:\t")[1].split()[0]
        hierarchies = len(Path("/proc/self/cgroup").read_text().splitlines())
        facts = status(0, 0, self.groups, held, bound, self.nnp, self.mode, ids=False)
        lines = [self.hostname, self.cwd, self.nofile, self.core, self.id, str(hierarchies)]
        after = [f"Cpus_allowed_list:\t{cpus}", self.root_written, self.oom, *self.dev.split()]
        return "\n".join(lines) + "\n" + facts + "\n".join(after) + "\n" + self.own


ALICE, NOBODY = (
    "uid=1000(alice) gid=1000(alice) groups=1000(alice)",
    "uid=65534(nobody) gid=65534(nogroup) groups=65534(nogroup)",
)
WITH_NODES = (
    "sh: can't open /tmp/kmsg: Operation not permitted\n",
    "sh: can't create /tmp/kmsg: Operation not permitted\n",
)


@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        ({"hostname": "some.box"}, Shown(hostname="some.box")),
        ({"cwd": "/home/alice"}, Shown(cwd="/home/alice")),
        ({"cwd": "/no/such"}, (SetupError, "enter /no/such", 2)),
        ({"cap_add": ["NET_RAW"]}, Shown(held=DEFAULT | NET_RAW, bound=DEFAULT | NET_RAW)),
        ({"cap_drop": ["ALL"]}, Shown(held=0, bound=0)),
        ({"cap_drop": ["ALL"], "user": "alice"}, Shown(held=0, bound=0, id=ALICE, groups="1000", root_written="1")),
        ({"no_new_privileges": False, "seccomp": "unconfined"}, Shown(nnp=0, mode=0)),
        ({"seccomp": "unconfined"}, Shown(mode=0)),
        (
            {"seccomp": {**ALLOW, "syscalls": [{"names": ["chdir"], "action": "SCMP_ACT_ERRNO"}]}},
            Shown(err="sh: cd: line 0: can't cd to /tmp: Operation not permitted\n" + NOTHING_OWN + NO_NODE),
        ),
        (
            {"seccomp": {**ALLOW, "syscalls": [{"names": ["raed"], "action": "SCMP_ACT_ERRNO"}]}},
            (InvalidCommandError, "seccomp.syscalls[0]"),
        ),
        ({"rlimits": {"nofile": (100, 200), "core": 0}}, Shown(nofile="100", core="0")),
        ({"user": "nobody"}, Shown(held=0, id=NOBODY, groups="65534", root_written="1")),
        ({"user": "no-such-user"}, (InvalidCommandError, "process.user")),
        ({"user": "4294967296"}, (InvalidCommandError, "process.user")),
        ({"groups": ["no-such-group"]}, (InvalidCommandError, "process.additional_groups")),
        ({"memory": "12q"}, (InvalidCommandError, "resources.memory")),
        ({"privileged": True}, Shown(held=None, bound=None, mode=0, err=NOTHING_OWN)),
        ({"oom_score_adj": 123}, Shown(oom="123")),
        (
            {"devices": ["/dev/zero:/dev/own/zero:r"], "cap_add": ["MKNOD"]},
            Shown(
                held=DEFAULT | MKNOD, bound=DEFAULT | MKNOD, err="".join(WITH_NODES), own="666 0:0 1:5\n3\n",
                dev=IN_DEV.replace("null", "null own"),
            ),
        ),
        (
            {"device_cgroup_rules": ["c 1:11 w"], "cap_add": ["MKNOD"]},
            Shown(held=DEFAULT | MKNOD, bound=DEFAULT | MKNOD, err=NOTHING_OWN + WITH_NODES[0]),
        ),
        ({"devices": ["/dev/no-such"]}, (InvalidCommandError, "devices.path")),
        ({"network": "none"}, Shown()),
        ({"rootfs": "/no/such"}, (InvalidCommandError, "rootfs")),
        ({"rootfs": "/"}, (InvalidCommandError, "rootfs")),
        ({"name": "../x"}, (InvalidCommandError, "id")),
        ({"cpuset_cpus": "0"}, Shown(cpus="0")),
        ({"cpuset_cpus": "0,9999"}, (InvalidCommandError, "resources.cpuset_cpus")),
        ({"cpuset_mems": "999"}, (InvalidCommandError, "resources.cpuset_mems")),
    ],
    ids=str,
)  # fmt: skip
def test_keywords(both: Both, keywords: dict[str, Any], expected: Any) -> None:
    script = (
        "hostname; pwd; ulimit -n; ulimit -c; id; cut -c1-99 /proc/self/cgroup | wc -l;"
        "grep -E '^(Cap|NoNewPrivs|Seccomp|Groups|Cpus_allowed_list)' /proc/self/status; (cd /tmp);"
        "(echo > /x) 2>/dev/null; echo $?;"
        "cat /proc/self/oom_score_adj; ls /dev; stat -c '%a %u:%g %t:%T' /dev/own/*; head -c 3 /dev/own/zero | wc -c;"
        "mknod /tmp/kmsg c 1 11 && { (: </tmp/kmsg); (: >/tmp/kmsg); }; rm -f /tmp/kmsg"
    )
    keywords = {"name": None, "hostname": "box", **keywords}
    found = both(sh(script), **keywords)
    if not isinstance(expected, Shown):
        assert found == expected
        return
    done, out, err = found
    assert (done.exit_code, out.decode(), err.decode()) == (0, expected.text(), expected.err)


def test_environment(both: Both) -> None:
    env = {"A": " blanks ", "B": '"quoted"', "C": "", "D": "ü", "E": "a=b", "F": "#", "G": "\\", "H": "\t", "I": "'"}
    lines = both(
        ["env"],
        env={"PATH": "/bin", **env},
        look=lambda done: sorted(line for line in done.stdout.split(b"\n") if line != b"container=lxc"),
    )
    assert len(lines) == len(env) + 2


@pytest.mark.parametrize("tty", [False, True])
def test_a_long_command(both: Both, tty: bool) -> None:
    """Longer than a message on the control socket: it comes in a file, which must not get into the container."""
    streams = {"capture_output": False, "stdout": PIPE, "tty": True} if tty else {}
    argv = [*sh("echo $# ${#A} $1; cat /etc/passwd; ls /proc/self/fd"), *(f"{number:0100}" for number in range(2000))]
    status, out, _ = both(argv, env={"PATH": "/bin", "A": "x" * 100_000}, **streams)
    assert status.exit_code == 0
    assert out.split()[:3] == [b"1999", b"100000", f"{1:0100}".encode()]


@pytest.mark.parametrize("read_only", [True, False])
@pytest.mark.parametrize("options", [(), ("nosuid", "nodev", "noexec"), ("noatime",)], ids=str)
def test_mounts_and_their_flags(both: Both, tmp_path: Path, read_only: bool, options: tuple[str, ...]) -> None:
    (tmp_path / "file").write_text("x")
    mounts = [
        # LXC leaves the options of a writable bind mount out, and so the driver refuses them.
        Mount(str(tmp_path), "/mnt/a b", read_only=read_only, options=options if read_only else ()),
        Mount(str(tmp_path / "file"), "/etc/one", read_only=read_only, options=options if read_only else ()),
        Mount.tmpfs("/mnt/t", size=65536, mode=0o711, read_only=read_only, options=options),
        Mount.tmpfs("/mnt/t2"),
    ]
    script = (
        "sed -n 's/^[^ ]* \\(\\/mnt[^ ]*\\|\\/etc\\/one\\) [^ ]* \\([^ ]*\\).*/\\1 \\2/p' /proc/self/mounts;"
        "stat -c %a /mnt/t; for d in '/mnt/a b' /mnt/t /mnt/t2; do (: > \"$d/new\") 2>/dev/null; echo $?; done;"
        "cat /etc/one"
    )

    def look(done: Any) -> Any:
        # Native's directories are nodev for who may not make nodes; LXC relies on its device rules alone.
        return done.status, re.sub(rb"(?m)^(/mnt/a.* r[ow](,nosuid)?),nodev", rb"\1", done.stdout), done.stderr

    assert both(sh(script), look, mounts=mounts)[0].exit_code == 0


@pytest.mark.parametrize(
    "name", ["a#b", "#", "a\\b", "\\043", "a\tb", "a\u00a0b", "\u2028", "a\x0bb", "\x85", "\udcff"]
)
def test_mounts_of_any_name(both: Both, tmp_path: Path, name: str) -> None:
    source = tmp_path / name
    source.mkdir()
    (source / "file").write_text("x\n")
    mounts = [Mount(str(source), f"/mnt/names/{name}"), Mount.tmpfs(f"/mnt/memory/{name}")]
    assert both(sh("cat /mnt/names/*/file; ls -A /mnt/memory/*"), mounts=mounts)[1:] == (b"x\n", b"")


def test_a_mount_below_a_read_only_one(both: Both, tmp_path: Path) -> None:
    import subprocess

    below = tmp_path / "below"
    below.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "x", below], check=True)
    try:
        script = "(: > /m/below/x) 2>/dev/null; echo $?"
        assert both(sh(script), mounts=[Mount(str(tmp_path), "/m", read_only=True)])[1] == b"1\n"
    finally:
        subprocess.run(["umount", below], check=True)


def test_read_only_rootfs(both: Both) -> None:
    assert both(sh("(: > /new) 2>&1; : > /dev/shm/x; echo $?"), read_only=True)[1].endswith(b"0\n")


@pytest.mark.parametrize("target", ["/link/x", "/file"])
def test_links_of_the_rootfs_are_its_own(both: Both, busybox_rootfs: Path, tmp_path: Path, target: str) -> None:
    """CVE-2015-1335 and its relatives: neither driver leaves anything outside."""
    import shutil

    rootfs, canary = tmp_path / "rootfs", tmp_path / "canary"
    # Not what others have left in its /tmp: a copy of a device has no end.
    shutil.copytree(
        busybox_rootfs, rootfs, symlinks=True, ignore=lambda at, names: names if at.endswith("/tmp") else []
    )
    canary.mkdir()
    (rootfs / "link").symlink_to(canary)
    (rootfs / "file").symlink_to(canary / "file")
    both(["true"], rootfs=rootfs, mounts=[Mount.tmpfs(target)], look=lambda done: done.status.exit_code == 0)
    assert list(canary.iterdir()) == []


@pytest.mark.parametrize("child", [True, False])
def test_out_of_memory(both: Both, child: bool) -> None:
    eat = "x=a; while :; do x=$x$x; done"
    found = both(
        sh(f"({eat}); exit 5" if child else eat),
        memory="24m",
        look=lambda done: (done.status.exit_code, done.status.signal, done.status.oom_killed),
    )
    assert found == ((5, None, True) if child else (None, 9, True))


def test_a_limit_that_is_kept_is_no_out_of_memory(both: Both) -> None:
    assert both(["true"], memory="64m", look=lambda done: done.status.oom_killed) is False


def test_pids_limit(both: Both) -> None:
    script = "for i in 1 2 3 4 5 6 7 8; do sleep 5 & done 2>/dev/null; echo done"
    assert both(sh(script), pids_limit=4, look=lambda done: done.stdout) is not None


@pytest.mark.parametrize("user", ["root", "alice"])
def test_a_terminal(both: Both, user: str) -> None:
    script = (
        "for fd in 0 1 2; do test -t $fd && echo $fd; done; stty size; echo by name >/dev/tty; echo err >&2; exit 7"
    )
    status, out, err = both(sh(script), tty=True, user=user, capture_output=False, stdout=PIPE)
    assert (status.exit_code, err) == (7, None)
    assert out.endswith(b"by name\r\nerr\r\n")


def test_no_terminal_for_what_cannot_be_executed(both: Both) -> None:
    assert both(["/etc/passwd"], tty=True, capture_output=False, stdout=PIPE)[1:] == ("execve", 13)


#: (number, arguments) on x86-64: what the default profile allows, denies, answers with another errno, has not heard of.
CALLS = [
    *((39,), (102,), (250, 0), (272, 0x10000000), (272, 0), (321, 0), (425, 1), (435, 0), (999,), (462, 0)),
    *((135, 0x40000), (135, 0xFFFFFFFF), (41, 40, 1, 0), (41, 2, 1, 0), (41, 16, 3, 0), (41, 16, 3, 9), (41, 17, 3, 0)),
    *((16, 0, 0x5412, 0), (16, 0, 2**32 + 0x5412, 0), (16, 0, 0x541C, 0), (101, 0, 0, 0), (310, 1), (155, 0)),
    *((0x40000000 + 39,), (157, 99), (452, -1, 0, 0, 0), (165, 0, 0, 0), (56, 0x10000000, 0, 0, 0, 0)),
]
PROBE = """
import ctypes, sys
call = ctypes.CDLL(None, use_errno=True).syscall
for line in sys.argv[1:]:
    result = call(*map(ctypes.c_long, map(int, line.split(","))))
    print(line, 0 if result >= 0 else ctypes.get_errno())
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="its numbers are x86-64's")
@pytest.mark.parametrize("keywords", [{}, {"user": "alice"}, {"cap_add": ["NET_RAW"]}], ids=str)
def test_system_calls(both: Both, keywords: dict[str, Any]) -> None:
    """The default profile's verdict, asked inside."""
    trees = [path for path in ("/usr", "/lib", "/lib64") if os.path.isdir(path)]
    argv = [python_of_usr(), "-I", "-S", "-c", PROBE, *(",".join(map(str, call)) for call in CALLS)]
    status, out, err = both(argv, mounts=[Mount(path, path, read_only=True) for path in trees], **keywords)
    assert (status.exit_code, err, len(out.splitlines())) == (0, b"", len(CALLS))
    said = dict(line.split() for line in out.decode().splitlines())
    assert said["39"] == "0"
    assert said["250,0"] == "1"
    assert said["435,0"] == said["999"] == "38"


def python_of_usr() -> str:
    """A Python of the distribution's: that of the tests may be anywhere."""
    found = next((path for path in ("/usr/bin/python3", "/usr/local/bin/python3") if os.path.exists(path)), None)
    assert found is not None, "needs a python3 in /usr"
    return found


# -- verbs


@pytest.fixture
def boxes(drivers: tuple[ExecutionDriver, ...], busybox_rootfs: Path) -> Any:
    pair = [
        pycontainer.Container(["sleep", "100"], rootfs=busybox_rootfs, driver=driver, memory="64m", pids_limit=50)
        for driver in drivers
    ]
    yield pair
    for box in pair:
        box.close()


def needs(feature: Feature) -> pytest.MarkDecorator:
    lacking = [driver.name for driver in (NativeDriver(), LxcDriver()) if feature not in driver.features()]
    return pytest.mark.skipif(bool(lacking), reason=f"{', '.join(lacking)} does not declare {feature.value}")


def execute(box: pycontainer.Container, argv: list[str], **keywords: Any) -> Any:
    driver = box._life.driver
    ours, theirs = os.pipe()
    with open(os.devnull) as null, open(ours, "rb") as output:
        try:
            process = driver.exec(box.id, Process.of(argv, **keywords), Stdio(null.fileno(), theirs, theirs))
        except (SetupError, InvalidCommandError) as error:
            return (
                (type(error), error.step, error.errno) if isinstance(error, SetupError) else (type(error), error.field)
            )
        finally:
            os.close(theirs)
        text, status = output.read(), process.wait(20)
        process.close()
        return text, status.exit_code, status.signal


@needs(Feature.EXEC)
@pytest.mark.parametrize(
    ("argv", "keywords"),
    [
        (sh("exit 9"), {}),
        (sh("kill -9 $$; sleep 1"), {}),
        (["/no/such"], {}),
        (["/etc/passwd"], {}),
        (sh("id -u; id -g"), {}),
        (sh("id -u; id -g"), {"user": "alice"}),
        (["id"], {"user": "no-such-user"}),
        (sh("grep -E '^(Cap|NoNewPrivs|Seccomp|Sig(Blk|Ign))' /proc/self/status; ls -A /proc/self/fd | wc -l"), {}),
        (sh("grep -E '^Cap' /proc/self/status"), {"user": "alice"}),
        (sh("hostname | wc -c; pwd; umask; ulimit -n"), {"rlimits": {"nofile": (99, 111)}}),
        (sh("ls /proc | grep -c '^1$'; cut -d: -f2 /proc/self/cgroup | sort"), {}),
    ],
)
def test_exec(boxes: Any, argv: list[str], keywords: dict[str, Any]) -> None:
    first, second = (execute(box, argv, **keywords) for box in boxes)
    assert first == second


@needs(Feature.EXEC)
@pytest.mark.parametrize("detach", [False, True])
def test_out_of_memory_of_a_further_process(drivers: Any, busybox_rootfs: Path, detach: bool) -> None:
    eat = "x=a; while :; do x=$x$x; done"
    scripts = (eat, f"({eat}); exit 5", f"({eat}); exit 0", "exit 6")
    keywords = {"rootfs": busybox_rootfs, "memory": "24m", "detach": detach}
    for driver in drivers:
        with pycontainer.Container(["sleep", "100"], driver=driver, **keywords) as box:
            try:
                ends = [box.exec(sh(script)).status for script in scripts]
            finally:
                box.remove(force=True) if detach else box.kill()
        found = [(end.exit_code, end.signal, end.oom_killed) for end in ends]
        assert found == [(None, 9, True), (5, None, True), (0, None, False), (6, None, False)]
        assert "out of memory" in ends[0].reason


@needs(Feature.EXEC)
def test_a_long_exec(boxes: Any) -> None:
    argv = [*sh("echo $# ${#A} $1; ls /proc/self/fd"), *(f"{number:0100}" for number in range(2000))]
    first, second = (execute(box, argv, env={"PATH": "/bin", "A": "x" * 100_000}) for box in boxes)
    assert first == second
    assert first[0].split()[:3] == [b"1999", b"100000", f"{1:0100}".encode()]


@needs(Feature.EXEC)
def test_exec_in_what_is_paused_or_over(boxes: Any) -> None:
    for box in boxes:
        box.pause()
        with pytest.raises(NotRunningError):
            execute(box, ["true"])
        box.unpause()
        box.kill()
        box.wait()
        with pytest.raises(NotRunningError):
            execute(box, ["true"])


@needs(Feature.PAUSE)
def test_pause(drivers: Any, busybox_rootfs: Path) -> None:
    for driver in drivers:
        script = "while :; do echo; sleep 0.01; done"
        with pycontainer.Container(sh(script), rootfs=busybox_rootfs, driver=driver, stdout=PIPE) as box:
            assert box.stdout is not None
            box.stdout.readline()
            box.pause()
            assert driver.info(box.id).state is State.PAUSED
            os.set_blocking(box.stdout.fileno(), False)
            while box.stdout.read(65536):
                pass
            time.sleep(0.1)
            assert not box.stdout.read(1)
            box.unpause()
            os.set_blocking(box.stdout.fileno(), True)
            assert box.stdout.read(1)
            box.pause()
            box.kill()
            assert box.wait(20) == -9


@needs(Feature.STATS)
def test_stats(boxes: Any) -> None:
    first, second = (box.stats() for box in boxes)
    assert first.memory.limit == second.memory.limit == 64 * 2**20
    assert first.pids == second.pids
    assert abs(first.memory.usage - second.memory.usage) < 4 * 2**20
    assert set(first.network) == set(second.network)
    assert 0 < second.cpu.usage < 10**10


@needs(Feature.UPDATE)
def test_update(boxes: Any) -> None:
    for box in boxes:
        box.update(memory="96m", pids_limit=33)
    first, second = (box.stats() for box in boxes)
    assert (first.memory.limit, first.pids.limit) == (second.memory.limit, second.pids.limit) == (96 * 2**20, 33)
    for box in boxes:
        with pytest.raises(InvalidCommandError):
            box.update(memory="32m", cpuset_cpus="999")
    first, second = (box.stats() for box in boxes)
    assert first.memory.limit == second.memory.limit == 96 * 2**20


def test_pids_and_info(boxes: Any) -> None:
    for box in boxes:
        info = box._life.driver.info(box.id)
        assert (info.state, info.pid, info.is_running) == (State.RUNNING, box.pid, True)
        assert box.pids() == [box.pid]
        box.kill()
        assert box.wait() == -9
        assert box._life.driver.info(box.id).state is State.STOPPED
        with pytest.raises(NotRunningError):
            box._life.driver.kill(box.id, 9)


@pytest.mark.parametrize("tty", [False, True])
def test_restore(drivers: Any, busybox_rootfs: Path, tty: bool) -> None:
    results = []
    for driver in drivers:
        if Feature.RESTORE not in driver.features():
            continue
        argv = sh("trap 'echo over; exit 6' TERM; echo begun; while :; do sleep 0.02; done")
        first = pycontainer.Container(argv, rootfs=busybox_rootfs, driver=driver, detach=True, tty=tty)
        try:
            begun = next(iter(first.logs(follow=True))).data
            first.close()
            second = pycontainer.get(first.id, driver)
            second.terminate()
            status = second.wait(60)
            results.append((begun, [one.data for one in second.logs()], status, second.status))
        finally:
            pycontainer.get(first.id, driver).remove(force=True)
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("tty", [False, True])
def test_a_long_detached_command(drivers: Any, busybox_rootfs: Path, tty: bool) -> None:
    results = []
    for driver in drivers:
        if Feature.RESTORE not in driver.features():
            continue
        argv, env = sh("echo ${#A}; ls /proc/self/fd; exit 3"), {"PATH": "/bin", "A": "x" * 100_000}
        box = pycontainer.Container(argv, rootfs=busybox_rootfs, driver=driver, detach=True, tty=tty, env=env)
        try:
            results.append((box.wait(60), b"".join(one.data for one in box.logs()).split()))
        finally:
            box.remove(force=True)
    assert results[0] == results[1] == (3, [b"100000", *results[0][1][1:]])


def test_validate_says_the_same(drivers: Any, busybox_rootfs: Path) -> None:
    base = Command.of(["true"], rootfs=busybox_rootfs, mounts=[Mount("/no/such", "/x")])
    command = base.copy_with(rootfs="/no/such", resources=Resources(memory=2**24))
    fields = [{problem.field for problem in driver.validate(command)} for driver in drivers]
    assert fields[0] == fields[1] == {"rootfs", "mounts.source"}
