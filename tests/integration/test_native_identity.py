"""Who the payload is: ids, groups, capabilities, limits, signals, descriptors, environment; and what it cannot see.

What the kernel says of the payload is read on the host, from /proc/<pid>.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

import pycontainer
from pycontainer.errors import InvalidCommandError, SetupError

from . import host

pytestmark = pytest.mark.root

#: capabilities(7): the numbers of the twelve defaults, written down here so that the code's own table is not believed.
DEFAULT_CAPABILITIES = sum(1 << number for number in (0, 1, 3, 4, 5, 6, 7, 8, 10, 18, 29, 31))
CAP_NET_RAW = 1 << 13

NONE = "0" * 16


@pytest.fixture
def payload(start: Any) -> Any:
    """Starts a payload and returns its pid."""

    def payload(**keywords: Any) -> int:
        pid: int = start(["sleep", "100"], **keywords).pid
        return pid

    return payload


def ids(pid: int) -> tuple[int, int, list[int]]:
    """(uid, gid, groups), each of the four ids being the same."""
    status = host.status(pid)
    [uid], [gid] = ({*map(int, status[name].split())} for name in ("Uid", "Gid"))
    return uid, gid, sorted(map(int, status["Groups"].split()))


def capabilities(pid: int) -> dict[str, str]:
    """The five sets, in hex."""
    status = host.status(pid)
    return {name: status[f"Cap{name}"] for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")}


# -- ids and groups


@pytest.mark.parametrize(
    ("user", "groups", "expected"),
    [
        (None, (), (0, 0, [0])),
        ("root", (), (0, 0, [0])),
        ("alice", (), (1000, 1000, [1000])),
        ("alice", ("extra",), (1000, 1000, [1000, 2000])),
        ("alice:extra", (), (1000, 2000, [2000])),
        ("alice", (7, "extra", "1000"), (1000, 1000, [7, 1000, 2000])),
        ("1000", (), (1000, 1000, [1000])),
        ("4321", (), (4321, 0, [0])),
        (4321, (), (4321, 0, [0])),
        ("4321:8765", (), (4321, 8765, [8765])),
        ("0:0", (), (0, 0, [0])),
        ("4294967294", (), (2**32 - 2, 0, [0])),
        ("nobody", (), (65534, 65534, [65534])),
    ],
)
def test_ids(payload: Any, user: Any, groups: Any, expected: tuple[int, int, list[int]]) -> None:
    assert ids(payload(user=user, groups=groups)) == expected


@pytest.mark.parametrize(
    "user", ["4294967296", "4294967295", "-1", "0x0", "+0", " 0", "0 ", "1e3", "0:", ":0", "", "\n0"]
)
def test_what_is_no_user(start: Any, hostile: Any, user: str) -> None:
    # Each of them is a name in passwd as well, and root's (CVE-2024-40635, CVE-2026-30892).
    hostile.file("etc/passwd", f"{user}:x:0:0::/:/bin/sh\nroot:x:0:0::/:/bin/sh\n")
    with pytest.raises(InvalidCommandError) as caught:
        start(["true"], rootfs=hostile, user=user)
    assert caught.value.field == "process.user"


def test_digits_are_a_number_whatever_passwd_says(payload: Any, hostile: Any) -> None:
    hostile.file("etc/passwd", "1000:x:0:0::/root:/bin/sh\n")  # CVE-2016-3697
    assert ids(payload(rootfs=hostile, user="1000"))[0] == 1000


@pytest.mark.parametrize(("user", "groups"), [("mallory", ()), ("alice:mallory", ()), ("alice", ("mallory",))])
def test_who_is_not_known_in_the_rootfs(start: Any, user: str, groups: tuple[str, ...]) -> None:
    with pytest.raises(InvalidCommandError, match="mallory") as caught:
        start(["true"], user=user, groups=groups)
    assert caught.value.field == ("process.additional_groups" if groups else "process.user")


@pytest.mark.parametrize("name", ["etc/passwd", "etc/group"])
@pytest.mark.parametrize("trap", ["link out", "fifo", "/dev/zero", "sparse"])
def test_users_are_not_looked_up_outside_nor_for_ever(start: Any, hostile: Any, name: str, trap: str) -> None:
    if trap == "link out":
        hostile.link(name, hostile.canary / os.path.basename(name))
    elif trap == "fifo":
        hostile.fifo(name)
    elif trap == "/dev/zero":
        hostile.device(name, 1, 5)
    else:
        os.truncate(hostile.file(name, ""), 10**12)
    with pytest.raises(InvalidCommandError):
        start(["true"], rootfs=hostile, user="mallory" if name == "etc/passwd" else "1000:mallory")


def test_the_callers_groups_do_not_come_along(output_of: Any) -> None:
    code = """
os.setgroups([0, 6, 27, 999])
for user, groups in ((None, ()), ("1000", ()), ("alice", ("extra",))):
    done = pycontainer.run(["grep", "Groups", "/proc/self/status"], rootfs=ROOTFS, user=user, groups=groups,
                           capture_output=True)
    print(done.stdout.decode(), end="")
"""
    assert [line.split()[1:] for line in output_of(code).splitlines()] == [["0"], ["1000"], ["1000", "2000"]]


# -- capabilities


def test_roots_capabilities(payload: Any) -> None:
    default = f"{DEFAULT_CAPABILITIES:016x}"
    assert capabilities(payload()) == {"Inh": NONE, "Prm": default, "Eff": default, "Bnd": default, "Amb": NONE}


@pytest.mark.parametrize("user", ["alice", "1000", "nobody", "1000:0"])
def test_nobody_else_has_any(payload: Any, user: str) -> None:
    found = capabilities(payload(user=user, cap_add=["NET_RAW"]))
    bounding = f"{DEFAULT_CAPABILITIES | CAP_NET_RAW:016x}"
    assert found == {"Inh": NONE, "Prm": NONE, "Eff": NONE, "Bnd": bounding, "Amb": NONE}


@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        ({"cap_add": ["net_raw"]}, DEFAULT_CAPABILITIES | CAP_NET_RAW),
        ({"cap_drop": ["ALL"]}, 0),
        ({"cap_drop": ["ALL"], "cap_add": ["CAP_CHOWN"]}, 1),
        ({"cap_drop": ["CHOWN"]}, DEFAULT_CAPABILITIES & ~1),
        ({"capabilities": []}, 0),
    ],
)
def test_capabilities_as_asked(payload: Any, keywords: Any, expected: int) -> None:
    found = capabilities(payload(**keywords))
    text = f"{expected:016x}"
    assert found == {"Inh": NONE, "Prm": text, "Eff": text, "Bnd": text, "Amb": NONE}


def test_a_privileged_one_has_what_its_caller_has(payload: Any) -> None:
    held = capabilities(os.getpid())["Prm"]
    assert capabilities(payload(privileged=True)) == {"Inh": NONE, "Prm": held, "Eff": held, "Bnd": held, "Amb": NONE}


def test_an_unknown_capability(start: Any) -> None:
    with pytest.raises(InvalidCommandError, match="CAP_BOGUS") as caught:
        start(["true"], cap_add=["CAP_BOGUS"])
    assert caught.value.field == "cap_add"


def test_what_the_caller_does_not_have_to_give(output_of: Any) -> None:
    code = """
import prctl, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 5000))
for held in (prctl.cap_effective, prctl.cap_permitted):
    held.drop(prctl.CAP_SYS_RESOURCE, prctl.CAP_SYS_TIME)
for keywords in ({"cap_add": ["SYS_TIME"]}, {"rlimits": {"nofile": 5001}}):
    try:
        pycontainer.run(["true"], rootfs=ROOTFS, **keywords)
    except pycontainer.ContainerError as error:
        print(error)
"""
    first, second = output_of(code).splitlines()
    assert first.startswith("process.capabilities: ")
    assert "CAP_SYS_TIME" in first
    assert "RLIMIT_NOFILE" in second
    assert "EPERM" in second


def test_the_callers_inheritable_and_ambient_sets_do_not_come_along(output_of: Any) -> None:
    code = """
import prctl
prctl.cap_inheritable.chown = prctl.cap_inheritable.net_admin = True
import ctypes
for number in (0, 12):  # PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE
    assert ctypes.CDLL(None).prctl(47, 2, number, 0, 0) == 0
print(open("/proc/self/status").read())
for user in ("0", "1000"):
    done = pycontainer.run(["cat", "/proc/self/status"], rootfs=ROOTFS, user=user, capture_output=True, text=True)
    print(done.stdout)
"""
    found = re.findall(r"Cap(Inh|Amb):\t(\w+)", output_of(code))
    assert [name for name, value in found[:2] if value != NONE] == ["Inh", "Amb"]
    assert found[2:] == [("Inh", NONE), ("Amb", NONE)] * 2


def test_no_new_privileges(payload: Any) -> None:
    assert host.status(payload())["NoNewPrivs"] == "1"
    assert host.status(payload(no_new_privileges=False))["NoNewPrivs"] == "0"


@pytest.mark.parametrize(("keywords", "uid"), [({}, "1000"), ({"no_new_privileges": False}, "0")])
def test_a_setuid_program(python: Any, keywords: Any, uid: str) -> None:
    code = """
import os, shutil
shutil.copy("/usr/bin/id", "/usr/bin/setuid-id")
os.chmod("/usr/bin/setuid-id", 0o4755)
os.setresuid(1000, 1000, 1000)
os.execv("/usr/bin/setuid-id", ["id", "-u"])
"""
    assert python(code, **keywords).stdout.strip() == uid


# -- limits and other inherited state


def limit(pid: int, name: str) -> tuple[str, str]:
    """(soft, hard) of /proc/<pid>/limits."""
    line = next(line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if line.startswith(name))
    soft, hard = line[len(name) :].split()[:2]
    return soft, hard


def test_resource_limits(payload: Any) -> None:
    pid = payload(rlimits={"nofile": (64, 128), "core": 0, "fsize": (1 << 40, -1)}, user="alice")
    assert limit(pid, "Max open files") == ("64", "128")
    assert limit(pid, "Max core file size") == ("0", "0")
    assert limit(pid, "Max file size") == (str(1 << 40), "unlimited")


def test_the_limit_of_descriptors_is_the_callers_not_the_launchers(output_of: Any) -> None:
    code = """
import resource
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (77, hard))
done = pycontainer.run(["sh", "-c", "ulimit -Sn; ulimit -Hn"], rootfs=ROOTFS, capture_output=True, text=True)
print(done.stdout, hard)
"""
    soft, hard, own = output_of(code).split()
    assert (soft, hard) == ("77", own)


def test_few_descriptors_are_enough_for_the_payload_but_not_for_the_set_up(payload: Any) -> None:
    assert limit(payload(rlimits={"nofile": 8}), "Max open files") == ("8", "8")


@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_the_callers_umask_changes_nothing(own_driver: Any, sh: Any, umask: Any, mask: int) -> None:
    umask(mask)
    script = "umask; stat -c '%a %n' /dev/* /dev/shm /dev/mqueue; mkdir /tmp/new; stat -c %a /tmp/new; rmdir /tmp/new"
    lines = sh(script, driver=own_driver).stdout.splitlines()
    assert lines[0] == "0022"
    assert lines[-1] == "755"
    modes = dict(reversed(line.split(" ")) for line in lines[1:-1])
    assert {name: modes[f"/dev/{name}"] for name in ("null", "tty", "urandom")} == dict.fromkeys(
        ("null", "tty", "urandom"), "666"
    )
    assert (modes["/dev/pts"], modes["/dev/shm"], modes["/dev/mqueue"]) == ("755", "1777", "1777")


def test_signals_are_as_in_a_new_process(output_of: Any) -> None:
    code = """
for number in signal.valid_signals() - {9, 19, 32, 33}:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
for keywords in ({}, {"init": True}):
    done = pycontainer.run(["grep", "Sig[BIC]", "/proc/self/status"], rootfs=ROOTFS, capture_output=True, **keywords)
    print(done.stdout.decode())
"""
    values = re.findall(r"Sig(\w+):\t(\w+)", output_of(code))
    assert values == [("Blk", NONE), ("Ign", NONE), ("Cgt", NONE)] * 2


def test_it_has_a_session_and_a_keyring_of_its_own(payload: Any, python: Any) -> None:
    pid = payload()
    assert os.getsid(pid) == pid
    code = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
# keyctl(KEYCTL_DESCRIBE, KEY_SPEC_SESSION_KEYRING, buffer, size)
buffer = ctypes.create_string_buffer(4096)
number = {"x86_64": 250}.get(__import__("os").uname().machine, 219)
print(libc.syscall(number, 0, -3, 0), libc.syscall(number, 6, -3, buffer, 4096), buffer.value.decode())
"""
    first, second = (python(code).stdout.split()[0] for _ in range(2))
    assert first != second or first == "-1"  # or a seccomp filter keeps it from asking


# -- what must not come along


def test_no_descriptor_comes_along(output_of: Any) -> None:
    code = """
root = os.open("/", os.O_RDONLY)
for fd in range(10, 61):
    os.dup2(root, fd, inheritable=True)
with pycontainer.Container(["sleep", "100"], rootfs=ROOTFS) as box:
    print(sorted(map(int, os.listdir(f"/proc/{box.pid}/fd"))))
    with pycontainer.Container(["sleep", "100"], rootfs=ROOTFS, init=True) as box:
        [payload] = {*box.pids()} - {box.pid}
        print(sorted(map(int, os.listdir(f"/proc/{payload}/fd"))))
        print([os.readlink(f"/proc/{box.pid}/fd/{fd}").split(":")[0] for fd in os.listdir(f"/proc/{box.pid}/fd")])
for fd in range(3, 61):
    try:
        pycontainer.run(["true"], rootfs=ROOTFS, cwd=f"/proc/self/fd/{fd}")
    except pycontainer.ContainerError as error:
        print("refused", fd)
"""
    lines = output_of(code).splitlines()
    assert lines[:3] == ["[0, 1, 2]", "[0, 1, 2]", "['pipe']"]  # an init keeps what it reports by
    assert lines[3:] == [f"refused {fd}" for fd in range(3, 61)]


def test_the_init_holds_no_way_to_the_host(sh: Any) -> None:
    # Its descriptors are there to be followed with CAP_SYS_PTRACE, which a privileged one has, dumpable or not.
    done = sh("ls -l /proc/1/fd; for fd in /proc/1/fd/*; do ls $fd/..; done", init=True, privileged=True)
    assert [line.split(" -> ")[1].split(":")[0] for line in done.stdout.splitlines() if "->" in line] == ["pipe"]
    assert sh("readlink /proc/1/fd/4", init=True).stdout == ""


@pytest.mark.parametrize("target", ["/proc/self/fd/3", "/proc/self/cwd", "/proc/1/root", "/proc/thread-self/root"])
def test_the_working_directory_is_no_magic_link(start: Any, hostile: Any, target: str) -> None:
    hostile.link("job", target)
    for cwd in ("/job", "/job/etc"):
        with pytest.raises(SetupError) as caught:
            start(["true"], rootfs=hostile, cwd=cwd)
        assert (caught.value.step, caught.value.errno) == (f"enter {cwd}", errno.ELOOP)


def test_no_environment_comes_along(output_of: Any) -> None:
    code = """
done = pycontainer.run(["sh", "-c", "cat /proc/*/environ | tr '\\\\0' '\\\\n'; :"], rootfs=ROOTFS, env={"PATH": "/bin"},
                       capture_output=True, text=True)
print(done.stdout)
with pycontainer.Container(["sleep", "100"], rootfs=ROOTFS, env={}, init=True) as box:
    launcher = int(next(l for l in open(f"/proc/{box.pid}/status") if l.startswith("PPid")).split()[1])
    for pid in (launcher, *box.pids()):
        print(repr(open(f"/proc/{pid}/environ").read()))
"""
    output = output_of(code, env={**os.environ, "SECRET": "tell-nobody"})
    assert "tell-nobody" not in output
    assert "SECRET" not in output
    assert output.splitlines()[-3:] == ["''"] * 3 or output.splitlines()[-3].startswith("'LD_LIBRARY_PATH")


def test_an_environment_is_not_kept_for_the_next_one(sh: Any) -> None:
    env = {"PATH": "/bin", "FOO": "1"}
    assert "FOO" in sh("env", env=env).stdout
    assert "FOO" not in sh("env", env={"PATH": "/bin"}).stdout
    assert "FOO" not in sh("env").stdout
    assert env == {"PATH": "/bin", "FOO": "1"}


def test_pythonpath_is_not_believed(output_of: Any, tmp_path: Path) -> None:
    # The launcher is a Python too: nothing of its caller's environment may have it run other code.
    for name in ("sitecustomize", "usercustomize", "marshal", "resource"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'a').write('{name} ')\n")
    code = f"""
sys.path.remove("")
os.environ["PYTHONPATH"] = os.environ["PYTHONHOME"] = os.environ["PYTHONSTARTUP"] = {str(tmp_path)!r}
os.chdir({str(tmp_path)!r})
print(pycontainer.run(["true"], rootfs=ROOTFS).returncode)
"""
    assert output_of(code).split() == ["0"]
    assert not (tmp_path / "canary").exists()


def test_nothing_inside_shows_or_reaches_the_host(sh: Any) -> None:
    done = sh("ls /proc | grep '^[0-9]' | wc -l; cat /proc/1/cmdline; kill -9 -1; ls /proc/1/ns >/dev/null; echo on")
    assert int(done.stdout.split("\n")[0]) <= 4
    assert done.stdout.endswith("on\n")
    assert host.is_alive(os.getppid())


def test_namespaces_are_its_own(payload: Any) -> None:
    def namespaces(pid: int | str) -> dict[str, int]:
        return {
            name: os.stat(f"/proc/{pid}/ns/{name}").st_ino for name in ("mnt", "pid", "net", "ipc", "uts", "cgroup")
        }

    first, second = namespaces(payload()), namespaces(payload())
    ours = namespaces("self")
    assert all(len({first[name], second[name], ours[name]}) == 3 for name in ours)
    shared = namespaces(payload(network="host", ipc="host", uts="host", pid="host"))
    assert {name for name in ours if shared[name] == ours[name]} == {"net", "ipc", "uts", "pid"}


def test_loopback_is_up_and_alone(sh: Any, python: Any) -> None:
    done = sh("ip -o link; ip -o addr")
    assert re.findall(r"^\d+: (\w+)[@:]", done.stdout, re.MULTILINE)[0] == "lo"
    assert {*re.findall(r"^\d+: (\w+)", done.stdout, re.MULTILINE)} <= {"lo", "tunl0", "sit0", "ip6tnl0", "gre0"}
    assert "LOOPBACK,UP,LOWER_UP" in done.stdout
    assert "inet 127.0.0.1/8" in done.stdout
    code = """
import socket
for host in ("127.0.0.1", "::1"):
    try:
        server = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError:
        continue  # a kernel without IPv6
    client = socket.create_connection(server.getsockname()[:2], timeout=10)
    server.accept()[0].sendall(b"hello")
    print(client.recv(5).decode())
"""
    assert {*python(code).stdout.split()} == {"hello"}


def test_no_terminal_of_the_callers_can_be_opened(sh: Any) -> None:
    assert "No such device or address" in sh("cat </dev/tty").stderr


def test_input_cannot_be_pushed_into_the_callers_terminal(native: Any) -> None:
    outer, inner = os.openpty()
    code = "import fcntl, termios\nfor c in b'ls\\n': fcntl.ioctl(0, termios.TIOCSTI, bytes([c]))"
    try:
        done = pycontainer.run([sys.executable, "-I", "-c", code], driver=native, stdin=inner, capture_output=True)
        assert b"PermissionError" in done.stderr or b"Operation not permitted" in done.stderr
        os.set_blocking(outer, False)
        with pytest.raises(BlockingIOError):
            os.read(outer, 100)
    finally:
        os.close(outer)
        os.close(inner)


# -- the launcher is Python


def test_the_launcher_can_be_neither_traced_nor_read(native: Any) -> None:
    pid = native._launchers.current.pid
    assert stat.S_IMODE(os.stat(f"/proc/{pid}/mem").st_mode) == 0o600
    assert os.stat(f"/proc/{pid}/mem").st_uid == 0
    # An unprivileged user with the same ids could not: dumpable is 0, and so the files are root's in any case.
    assert host.status(pid)["SigIgn"] == host.status(pid)["SigBlk"] == NONE
    assert os.getsid(pid) == pid
    opened = {fd.split(" -> ")[0]: fd.split(" -> ")[1] for fd in host.descriptors(pid)}
    assert {opened[fd] for fd in "012"} == {"/dev/null"}
    # Sockets, pidfds, epoll and the cgroups: nothing else of the host.
    others = [target for target in opened.values() if not target.startswith(("socket:", "anon_inode:", "pipe:"))]
    others = [target for target in others if target != "/dev/null" and "cgroup" not in target]
    assert others in ([], [f"/proc/{pid}/mountinfo"])


def test_the_launchers_image_cannot_be_executed_or_written_from_inside(python: Any, start: Any, hostile: Any) -> None:
    # CVE-2019-5736: the kernel resolves /proc/self/exe before the payload is what it names.
    before = os.stat(os.path.realpath(sys.executable))
    hostile.file("sh", "#!/proc/self/exe\n", 0o755)
    for program in ("/sh", "/proc/self/exe", "/proc/1/exe"):
        with pytest.raises(SetupError) as caught:
            start([program], rootfs=hostile)
        assert caught.value.step == "execve"
    after = os.stat(os.path.realpath(sys.executable))
    assert (before.st_mtime_ns, before.st_ino, before.st_size) == (after.st_mtime_ns, after.st_ino, after.st_size)


def test_no_code_of_the_rootfs_is_imported(hostile: Any, start: Any) -> None:
    # Modules where the host's Python would look for its own, and in the working directory.
    places = {"lib", "root", *(path.lstrip("/") for path in sys.path if path.startswith("/"))}
    for place in sorted(places):
        for name in (
            "errno",
            "encodings/__init__",
            "traceback",
            "linecache",
            "sitecustomize",
            "_ctypes",
            "json/__init__",
        ):
            hostile.file(f"{place}/{name}.py", "raise SystemExit(99)\n")
            hostile.file(f"{name}.py", "raise SystemExit(99)\n")
    planted = list(hostile.path.rglob("*.py"))
    for path in planted:
        os.utime(path, (0, 0))
        os.utime(path.parent, (0, 0))
    assert start(["true"], rootfs=hostile).wait(30) == 0
    for failing in ({"cwd": "/missing"}, {"tty": True, "cwd": "/missing"}):
        with pytest.raises(SetupError):
            start(["true"], rootfs=hostile, **failing)
    with pytest.raises(SetupError):
        start(["/missing"], rootfs=hostile)
    # relatime: the first access after a change is always written down.
    assert [path for path in planted if path.stat().st_atime] == []
    assert list(hostile.path.rglob("__pycache__")) == []


def test_a_signal_to_everybody_stays_inside(caller: Any) -> None:
    script = "sleep 100 & kill -9 -1; wait; kill -9 0; exit 3"
    code = f"print(pycontainer.run(['sh', '-c', {script!r}], rootfs=ROOTFS).returncode)"
    process = caller(code, start_new_session=True)
    bystander = caller("sys.stdin.read()", start_new_session=True)
    output, _ = process.communicate(timeout=60)
    assert (output, process.returncode) == ("3\n", 0)
    assert host.is_alive(bystander.pid)
