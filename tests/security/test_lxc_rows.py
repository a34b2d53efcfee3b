"""The catalogue's rows that concern the LXC driver, and what the packaged LXC does about them by itself."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

import pycontainer
from pycontainer import InvalidCommandError, Mount, Network, SetupError, UnsupportedError
from pycontainer_lxc import cgroups, client
from pycontainer_lxc.config import Config
from pycontainer_lxc.driver import LxcDriver
from pycontainer_lxc.probe import find_tools, parse_version, tool_version

from ..integration import host
from ..integration.hostile import Rootfs
from .rows import ROWS

pytestmark = [pytest.mark.root, pytest.mark.tool("lxc-start", "busybox")]

TESTS = Path(__file__).parents[1]

#: What the LXC of a version gets wrong by itself (from that one on), and what the driver does about it.
LXC_FAILS = {
    (4, 0): {
        "A1": "create=dir is mkdir -p through the rootfs's links: targets are made here, below its descriptor",
        "A7": "/proc and /sys are mounted wherever a link leads: a link is refused",
        "A23": "rbind,ro leaves what is below writable: every mount below is bound by itself",
        "C1": "the working directory is entered with descriptors of the host open: no link of it leads to /proc",
        "C8": "lxc-attach loads no filter but one of its own: the prelude loads the container's",
        "C14": "the tools keep their caller's environment: they are given none",
        "C17": "ignored signals are inherited: the guard has none",
        "D1": "lxc-attach keeps its caller's terminal: the guard has none",
        "D8": "the session of lxc-start stays the caller's: it has its own",
        "E11": "the group is not among the supplementary ones: it is named there",
        "F1": "lxc-attach keeps the caller's session keyring: it is given a new one",
        "F13": "a call that libseccomp has no name for is left out of a profile: no such profile is used",
        "G5": "every device is allowed by default: they are denied first",
        "H1": "'..', '/' and blanks are names as any: the Command refuses them",
        "H5": "an abstract socket takes orders: it is in a network namespace that no container shares",
        "H14": "a line break begins another setting: it is refused",
        "H23": "an interface takes router advertisements: they are turned off by a hook before any is up",
        "H15": "its tools and hooks are looked up in PATH: they are run by their path, without one",
    },
}

#: Rows whose tests are elsewhere, because they hold for both drivers or need what is there.
ELSEWHERE = {
    "A23": "integration/test_parity.py::test_a_mount_below_a_read_only_one",
    "B6": "integration/test_parity.py::test_surroundings",
    "B7": "integration/test_parity.py::test_surroundings",
    "B8": "integration/test_parity.py::test_surroundings",
    "B9": "integration/test_parity.py::test_surroundings",
    "C14": "integration/test_lxc.py::test_environment_of_the_caller_reaches_nobody",
    "D6": "integration/test_lxc_tty.py::test_it_is_the_controlling_terminal_and_the_users",
    "E7": "integration/test_parity.py::test_keywords",
    "F9": "integration/test_parity.py::test_system_calls",
    "G8": "integration/test_parity.py::test_surroundings",
    "H5": "integration/test_lxc.py::test_a_container_of_the_hosts_network_does_not_see_lxcs_socket",
    "H15": "integration/test_lxc.py::test_environment_of_the_caller_reaches_nobody",
    "H13": "integration/test_lxc.py::test_arguments_are_arguments",
    "H16": "integration/test_lxc.py::test_a_name_of_any_length_and_state_for_nobody_else",
    "A21": "integration/test_lxc.py::test_propagation_stays_inside",
    "C5": "integration/test_lxc.py::test_descriptors_of_the_caller_reach_nobody",
    "G7": "integration/test_lxc.py::test_devices_are_denied",
    "H23": "integration/test_lxc.py::test_the_networks_of_docker_0_9",
    "H6": "integration/test_lxc_detached.py::test_a_start_that_was_never_finished_keeps_no_id",
}

#: Rows about what the driver does not offer; it refuses (``test_what_is_not_offered``), or there is no such thing.
NOT_OFFERED = {
    "B11": "sysctls",
    "B12": "sysctls",
    "B16": "containers without root",
    "E13": "user namespaces",
    "E16": "user namespaces",
    "C10": "it runs nothing of the container outside of it",
    "C12": "it unpacks nothing",
    "H11": "it runs as root, without lxc-user-nic",
    "H19": "it copies no files",
    "H22": "checkpoints",
    "H26": "images",
    "J5": "finite limits by default: what is not asked for is as large as the host's",
    "C15": "hooks of the user's",
}

_tested: set[str] = set()
_Test = TypeVar("_Test", bound=Callable[..., object])


def row(*names: str) -> Callable[[_Test], _Test]:
    """Of these rows is the test."""

    def note(test: _Test) -> _Test:
        _tested.update(names)
        return test

    return note


@pytest.fixture
def driver() -> Iterator[LxcDriver]:
    driver = LxcDriver()
    yield driver
    driver.close()


@pytest.fixture
def evil(tmp_path: Path, busybox_rootfs: Path) -> Iterator[Rootfs]:
    """A rootfs to set traps in, with a canary that nothing may happen to."""
    rootfs = Rootfs(tmp_path / "evil", busybox_rootfs, tmp_path / "canary")
    before = rootfs.canary_state()
    yield rootfs
    assert rootfs.canary_state() == before


@pytest.fixture
def sh(driver: LxcDriver, busybox_rootfs: Path) -> Callable[..., Any]:
    def sh(script: str, **keywords: Any) -> Any:
        keywords = {"rootfs": busybox_rootfs, "driver": driver, "capture_output": True, "text": True, **keywords}
        return pycontainer.run(["sh", "-c", script], timeout=300, **keywords)

    return sh


def test_every_row_has_its_place() -> None:
    concerned = {name for name, row in ROWS.items() if "L" in row.marks}
    assert concerned - _tested - ELSEWHERE.keys() - NOT_OFFERED.keys() == set()
    for place in ELSEWHERE.values():
        file, _, test = place.partition("::")
        assert re.search(rf"\b{test}\b", (TESTS / file).read_text()), place
    for fails in LXC_FAILS.values():
        assert fails.keys() <= _tested | ELSEWHERE.keys()


def test_the_list_is_for_the_lxc_that_is_here() -> None:
    version = parse_version(tool_version(find_tools()["lxc-start"]))
    assert any(version >= since for since in LXC_FAILS)


@row("A1", "A3", "A10", "A14", "A16", "A17", "A25")
@pytest.mark.parametrize("target", ["/mnt", "/mnt/new", "/etc/mtab", "/a/b"])
def test_links_of_the_rootfs(evil: Rootfs, sh: Callable[..., Any], tmp_path: Path, target: str) -> None:
    for name in ("mnt", "a", "etc/mtab", "dev/shm"):
        evil.link(name, evil.canary)
    for name in (".dockerenv", "etc/resolv.conf", "etc/hosts", "etc/hostname"):
        evil.link(name, evil.canary / "file")
    for mounts in ([Mount.tmpfs(target)], [Mount(str(tmp_path), target)]):
        for _ in range(2):  # what the first one left is there for the second
            with contextlib.suppress(SetupError, InvalidCommandError):
                sh("echo x >/mnt/x; ln -sf / /tmp/l; true", rootfs=evil, mounts=mounts)


@row("A7", "B13")
@pytest.mark.parametrize("name", ["proc", "sys", "dev"])
def test_a_link_instead_of_a_file_system_of_the_kernels(evil: Rootfs, sh: Callable[..., Any], name: str) -> None:
    assert sh("ls -d /proc/[0-9]* | wc -l; echo $$").stdout.split()[1] == "1"
    evil.link(name, evil.canary)
    with pytest.raises(SetupError):
        sh("true", rootfs=evil)


@row("B1", "C8", "F11")
def test_a_further_process_is_confined_as_the_first(driver: LxcDriver, busybox_rootfs: Path) -> None:
    """Also where the payload has put something on /proc."""
    fields = "^(Cap|NoNewPrivs|Seccomp)"
    with pycontainer.Container(
        ["sh", "-c", f"grep -E '{fields}' /proc/self/status; echo; exec sleep 100"],
        rootfs=busybox_rootfs,
        driver=driver,
        stdout=pycontainer.PIPE,
    ) as box:
        assert box.stdout is not None
        first = b"".join(iter(box.stdout.readline, b"\n"))
        done = box.exec(["grep", "-E", fields, "/proc/self/status"], capture_output=True)
        assert done.stdout == first
        assert b"Seccomp:\t2" in first
        names = ("mnt", "pid", "net", "ipc", "uts", "cgroup")
        script = f"for name in {' '.join(names)}; do readlink /proc/self/ns/$name; done"
        inside = box.exec(["sh", "-c", script], capture_output=True, text=True).stdout.split()
        assert inside == [os.readlink(f"/proc/{box.pid}/ns/{name}") for name in names]


@row("C1")
@pytest.mark.parametrize("path", ["/proc/self/fd/3", "/proc/1/root", "/link"])
def test_a_working_directory_of_the_hosts(evil: Rootfs, sh: Callable[..., Any], path: str) -> None:
    evil.link("link", "/proc/self/fd/9")
    with pytest.raises((InvalidCommandError, SetupError)):
        sh("ls", rootfs=evil, cwd=path)


@row("C9", "E1", "E2", "E5")
@pytest.mark.parametrize("user", ["root", "alice"])
def test_rights(sh: Callable[..., Any], user: str) -> None:
    text = sh("cat /proc/self/status", user=user).stdout
    lines = dict(line.split(":\t") for line in text.splitlines() if ":\t" in line)
    assert lines["CapInh"] == lines["CapAmb"] == "0" * 16
    assert int(lines["CapBnd"], 16) & (1 << 21 | 1 << 13 | 1 << 2) == 0  # SYS_ADMIN, NET_RAW, DAC_READ_SEARCH
    assert lines["CapEff"] == lines["CapPrm"] == (lines["CapBnd"] if user == "root" else "0" * 16)
    assert lines["NoNewPrivs"] == "1"


@row("C13")
def test_an_environment_is_nobody_elses(sh: Callable[..., Any]) -> None:
    env = {"PATH": "/bin", "FOO": "1"}
    assert "FOO=1" in sh("env", env=env).stdout
    assert "FOO" not in sh("env").stdout
    assert env == {"PATH": "/bin", "FOO": "1"}


@row("C17", "C19")
def test_signals_and_umask_are_the_kernels(driver: LxcDriver, sh: Callable[..., Any]) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGCHLD])
    umask, handler = os.umask(0o077), signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        done = sh("grep -E '^Sig(Blk|Ign)' /proc/self/status; umask; stat -c %a /dev/null")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.umask(umask)
        signal.signal(signal.SIGUSR1, handler)
    assert done.stdout.split() == ["SigBlk:", "0" * 16, "SigIgn:", "0" * 16, "0022", "666"]


@row("C23", "H1", "E10", "H14", "E8", "G3")
@pytest.mark.parametrize(
    "keywords",
    [
        {"argv": []},
        {"argv": ["a\0b"]},
        *({"name": name} for name in ("..", "a/b", "-rf", "a\n", "", "x" * 300, "a b")),
        *({"env": {"HOME": value}} for value in ("/\nroot2::0:0", "x\nlxc.hook.pre-start=/bin/true")),
        {"hostname": "a\nlxc.hook.pre-start=/bin/true"},
        {"mounts": [("/", "/m\nlxc.hook.pre-start=/bin/true")]},
        *({"user": user} for user in ("-1", "4294967295", "0x0", "+0", " 0", "1:2:3", "root\n")),
        *({"cgroup_parent": path} for path in ("../x", "/", "a/../../b")),
    ],
    ids=str,
)
def test_what_is_no_value_is_refused(driver: LxcDriver, busybox_rootfs: Path, keywords: dict[str, Any]) -> None:
    argv, mounts = keywords.get("argv", ["true"]), keywords.get("mounts", [])
    rest = {name: value for name, value in keywords.items() if name not in ("argv", "mounts")}
    with pytest.raises(InvalidCommandError):
        pycontainer.run(argv, rootfs=busybox_rootfs, driver=driver, mounts=[Mount(*pair) for pair in mounts], **rest)


@row("D1", "D8")
def test_no_terminal_of_the_callers(driver: LxcDriver, busybox_rootfs: Path) -> None:
    master, slave = os.openpty()
    try:
        script = "(: </dev/tty) 2>&1; cut -d' ' -f7 /proc/self/stat"
        done = pycontainer.run(
            ["sh", "-c", script], rootfs=busybox_rootfs, driver=driver, stdin=slave, stdout=pycontainer.PIPE, text=True
        )
        assert "No such device or address" in done.stdout
        assert done.stdout.split()[-1] == "0"
    finally:
        os.close(master)
        os.close(slave)


@row("D5", "D7")
def test_a_terminal_of_the_image(evil: Rootfs, sh: Callable[..., Any]) -> None:
    evil.fifo("dev/ptmx")
    done = sh("test -t 0 && stat -Lc %F /dev/ptmx; printf '\\033[6n'; head -c 200000 /dev/zero | tr '\\0' x",
              rootfs=evil, tty=True, capture_output=False, stdout=pycontainer.PIPE)  # fmt: skip
    assert done.stdout.startswith("character special file")
    assert len(done.stdout) > 200000


@row("E11")
def test_groups_are_those_that_were_asked_for(sh: Callable[..., Any]) -> None:
    before = os.getgroups()
    os.setgroups([0, 6, 27, 999])
    try:
        assert sh("id -G", user="alice", groups=["extra"]).stdout.split() == ["1000", "2000"]
    finally:
        os.setgroups(before)


@row("E15")
def test_nothing_of_the_hosts_is_bound_writable(sh: Callable[..., Any]) -> None:
    lines = sh("cat /proc/self/mountinfo").stdout.splitlines()
    bound = [line for line in lines if " /dev/null " in line or "/init" in line]
    assert all(" ro," in line or line.split()[5].startswith("ro") for line in bound if "/proc" in line.split()[4])
    assert not [line for line in lines if "init.lxc" in line]


@row("F1")
def test_the_session_keyring_is_its_own(driver: LxcDriver, busybox_rootfs: Path) -> None:
    """/proc/keys shows what is possessed: the caller's session keyring is not."""
    keyctl = ctypes.CDLL(None, use_errno=True).syscall
    ours = keyctl(ctypes.c_long(_NR_KEYCTL), 0, ctypes.c_long(-3), 0)  # KEYCTL_GET_KEYRING_ID, session
    assert ours > 0
    look = ["sh", "-c", "grep _ses /proc/keys; :"]
    keywords: dict[str, Any] = {"rootfs": busybox_rootfs, "driver": driver, "seccomp": "unconfined", "masked_paths": []}
    with pycontainer.Container(["sleep", "100"], **keywords) as box:
        for done in (
            pycontainer.run(look, capture_output=True, text=True, **keywords),
            box.exec(look, capture_output=True, text=True),
        ):
            serials = [int(line.split()[0], 16) for line in done.stdout.splitlines() if " _ses: " in line]
            assert serials
            assert ours not in serials


_NR_KEYCTL = {"x86_64": 250, "aarch64": 219, "riscv64": 219}[os.uname().machine]


@row("F13")
def test_a_filter_is_never_left_out(sh: Callable[..., Any]) -> None:
    unknown = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["raed"], "action": "SCMP_ACT_ERRNO"}]}
    with pytest.raises(InvalidCommandError):
        sh("true", seccomp=unknown)
    with pytest.raises((InvalidCommandError, UnsupportedError)):
        sh("true", seccomp={"defaultAction": "SCMP_ACT_NOTIFY"})
    asking = {"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}
    with pytest.raises(UnsupportedError, match="seccomp-notify"):
        sh("true", seccomp={"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/s", "syscalls": [asking]})


@row("G1", "J2", "J4", "H24")
def test_roots_ways_out(sh: Callable[..., Any]) -> None:
    script = (
        "mkdir -p /tmp/c; mount -t cgroup -o memory x /tmp/c; echo $?;"
        "find / -xdev -name release_agent | wc -l; dmesg >/dev/null; echo $?;"
        "ls -A /sys/kernel/debug | wc -l; ls -A /sys/kernel/tracing | wc -l; wc -l </proc/net/unix"
    )
    mounted, agents, dmesg, debug, tracing, sockets = (
        line for line in sh(script).stdout.split() if line.lstrip("-").isdigit()
    )
    assert (mounted != "0", dmesg != "0", agents, debug, tracing, sockets) == (True, True, "0", "0", "0", "1")


@row("B8")
def test_knobs_are_read_only(sh: Callable[..., Any]) -> None:
    script = (
        "for knob in /proc/sysrq-trigger /proc/sys/kernel/hostname; do (: >>$knob) 2>/dev/null && echo $knob; done; :"
    )
    assert sh(script, cap_add=["SYS_ADMIN"]).stdout == ""


@row("G2", "G5")
def test_limits_hold_before_the_payload_runs(driver: LxcDriver, busybox_rootfs: Path) -> None:
    limits: dict[str, Any] = {"pids_limit": 9, "memory": "64m"}
    with pycontainer.Container(["sleep", "100"], rootfs=busybox_rootfs, driver=driver, **limits) as box:
        assert box.pid is not None
        assert host.cgroup_value(box.pid, "pids.max", "pids.max") == "9"
        assert host.cgroup_value(box.pid, "memory.limit_in_bytes", "memory.max") == str(64 * 2**20)
        devices = host.cgroup_value(box.pid, "devices.list", "none")
        assert devices is None or "a *:* rwm" not in devices.splitlines()


@row("H2", "H3")
def test_state_is_roots(driver: LxcDriver, sh: Callable[..., Any]) -> None:
    before = os.umask(0)
    try:
        sh("true")
    finally:
        os.umask(before)
    assert driver._guard is not None
    for path in (driver._guard.lxcpath, "/run/lxc/lock"):
        found = os.stat(path)
        assert (stat.S_IMODE(found.st_mode) & 0o022, found.st_uid) == (0, 0)
    assert driver._guard.lxcpath.startswith(f"/run/{client.PREFIX}")


@row("H7")
def test_a_signal_is_for_the_process_it_was_meant_for(driver: LxcDriver, busybox_rootfs: Path) -> None:
    with pycontainer.Container(["sleep", "100"], rootfs=busybox_rootfs, driver=driver) as box:
        process = box._life.process
        assert process is not None
        assert process.pidfd >= 0
        box.kill()
        assert box.wait() == -9
        process.send_signal(signal.SIGKILL)  # to nobody


@row("H8")
def test_many_further_processes_leave_nothing(driver: LxcDriver, busybox_rootfs: Path) -> None:
    with pycontainer.Container(["sleep", "100"], rootfs=busybox_rootfs, driver=driver) as box:
        assert box.exec(["true"]).returncode == 0
        assert driver._guard is not None
        before = len(host.descriptors(driver._guard.pid))
        for number in range(30):
            assert box.exec(["sh", "-c", f"exit {number}"]).returncode == number
        assert len(host.descriptors(driver._guard.pid)) <= before + 8  # the last one's, which it is about to close


@row("H5")
def test_orders_on_lxcs_socket(driver: LxcDriver, busybox_rootfs: Path) -> None:
    network = Network(mode="host")
    box = pycontainer.Container(["sleep", "100"], rootfs=busybox_rootfs, driver=driver, network=network)
    with box, socket.socket(socket.AF_UNIX) as orders:
        assert driver._guard is not None
        with pytest.raises(ConnectionRefusedError):
            orders.connect(f"\0{driver._guard.lxcpath}/{box.id}/command")


def test_what_is_not_offered(sh: Callable[..., Any]) -> None:
    for keywords in ({"sysctls": {"net.ipv4.ip_forward": "1"}}, {"init": True}):
        with pytest.raises((UnsupportedError, InvalidCommandError)):
            sh("true", **keywords)


# -- mutants: without the protection the row's test is red


def without(key: str, value: str = ".*") -> Callable[[pytest.MonkeyPatch], None]:
    """Leaves the lines with *key* and *value* out of LXC's configuration."""

    def apply(monkeypatch: pytest.MonkeyPatch) -> None:
        add = Config.add

        def changed(self: Config, name: str, text: str | int, field: str = "command") -> None:
            if not (name.endswith(key) and re.fullmatch(value, str(text))):
                add(self, name, text, field)

        monkeypatch.setattr(Config, "add", changed)

    return apply


def request_with(**changes: object) -> Callable[[pytest.MonkeyPatch], None]:
    """The guard is asked otherwise."""

    def apply(monkeypatch: pytest.MonkeyPatch) -> None:
        ask = client.GuardClient.ask

        def changed(self: client.GuardClient, kind: str, asked: dict[str, Any], fds: list[int]) -> None:
            ask(self, kind, {**asked, **{name: new for name, new in changes.items() if name in asked}}, fds)

        monkeypatch.setattr(client.GuardClient, "ask", changed)

    return apply


def no_filter_for_exec(monkeypatch: pytest.MonkeyPatch) -> None:
    execute = LxcDriver.exec

    def changed(self: LxcDriver, *arguments: Any) -> Any:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(LxcDriver, "_prelude", lambda self, command, tty: (tty, 0, b""))
            return execute(self, *arguments)

    monkeypatch.setattr(LxcDriver, "exec", changed)


MUTANTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], Callable[..., None], dict[str, Any]]] = {
    "B8: nothing is read-only": (without("mount.entry", "proc/s.*"), test_knobs_are_read_only, {}),
    "C8: a further process without the filter": (
        no_filter_for_exec, test_a_further_process_is_confined_as_the_first, {}
    ),
    "E1: every capability": (without("cap.keep"), test_rights, {"user": "root"}),
    "E11: the group is not among the groups": (
        without("init.groups"), test_groups_are_those_that_were_asked_for, {}
    ),
    "G5: devices are allowed": (without("devices.deny"), test_limits_hold_before_the_payload_runs, {}),
    "G2: limits that are left out": (without("pids.max"), test_limits_hold_before_the_payload_runs, {}),
    "H5: lxc-start where everybody reaches it": (request_with(isolated=False), test_orders_on_lxcs_socket, {}),
}  # fmt: skip
if "devices" not in cgroups.bases():
    del MUTANTS["G5: devices are allowed"]  # of cgroup2 there is a program, whose verdict that test does not ask


@pytest.mark.parametrize("name", MUTANTS)
def test_without_its_protection_a_row_is_red(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply, test, arguments = MUTANTS[name]
    needed = test.__code__.co_varnames[: test.__code__.co_argcount]
    found = {argument: request.getfixturevalue(argument) for argument in needed if argument not in arguments}
    apply(monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        test(**found, **arguments)
