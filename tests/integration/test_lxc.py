"""The LXC driver on a real host: its own guard, what it leaves, and what LXC gets wrong by itself."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

import pycontainer
from pycontainer import PIPE, ContainerLostError, Device, InvalidCommandError, Mount, Network, SetupError
from pycontainer.command import Resources
from pycontainer_lxc import cgroups, client
from pycontainer_lxc.driver import LxcDriver
from pycontainer_lxc.process import LxcProcess

from . import host

pytestmark = [pytest.mark.root, pytest.mark.tool("lxc-start", "busybox")]


def left(marker: str = client.PREFIX) -> list[str]:
    """The cgroups and directories of guards, and what LXC makes by its own rules."""
    found = [str(path) for path in Path("/run").glob(f"{marker}*")]
    found += [str(path) for path in Path("/run/lxc/lock/run").glob(f"{marker}*")]
    for directory, names, _ in os.walk("/sys/fs/cgroup"):
        found += [f"{directory}/{name}" for name in names if name.startswith((marker, "lxc.payload", "lxc.monitor"))]
    return found


@pytest.fixture
def driver() -> Iterator[LxcDriver]:
    driver = LxcDriver()
    yield driver
    marker = driver._guard.token if driver._guard is not None else client.PREFIX + "none"
    driver.close()
    assert left(marker) == []


@pytest.fixture
def run(driver: LxcDriver, busybox_rootfs: Path) -> Callable[..., Any]:
    def run(script: str, **keywords: Any) -> Any:
        keywords = {"rootfs": busybox_rootfs, "driver": driver, "capture_output": True, "text": True, **keywords}
        return pycontainer.run(["sh", "-c", script], timeout=300, **keywords)

    return run


# -- ends


CALLER = """
import sys, time, pycontainer
boxes = [
    pycontainer.Container(["sleep", "1000"], rootfs=sys.argv[1], driver="lxc", pid="host" if i == 2 else None)
    for i in range(3)
]
boxes[1].pause()
guard = pycontainer.get_driver("lxc")._guard
print(guard.token, guard.pid, *[box.pid for box in boxes], flush=True)
try:
    boxes[0].wait()
except pycontainer.ContainerLostError as error:
    print("lost", flush=True)
time.sleep(100)
"""


@pytest.mark.parametrize("victims", ["caller", "guard", "both"])
def test_whoever_is_killed_nothing_is_left(
    victims: str, busybox_rootfs: Path, until: Callable[..., None], driver: LxcDriver
) -> None:
    argv = [sys.executable, "-c", CALLER, str(busybox_rootfs)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd="/") as caller:
        assert caller.stdout is not None
        token, *numbers = caller.stdout.readline().split()
        guard, *pids = map(int, numbers)
        if victims != "caller":
            os.kill(guard, signal.SIGKILL)
        if victims != "guard":
            caller.kill()
        if victims == "both":  # then the next start of anybody's finds it
            until(lambda: not host.is_alive(pids[0]))
            pycontainer.run(["true"], rootfs=busybox_rootfs, driver=driver)
        try:
            until(lambda: not any(map(host.is_alive, [guard, *pids])), 10)
            until(lambda: not left(token), 10)
            if victims == "guard":
                assert caller.stdout.readline() == "lost\n"
        finally:
            caller.kill()


def test_another_container_outlives_one_that_is_closed(driver: LxcDriver, busybox_rootfs: Path) -> None:
    first, second = (pycontainer.Container(["sleep", "100"], rootfs=busybox_rootfs, driver=driver) for _ in range(2))
    first._life.process.close()  # type: ignore[union-attr]
    with pytest.raises(ContainerLostError):
        first.wait()
    assert second.poll() is None
    second.close()


def test_a_stopped_guard_does_not_keep_whoever_closes(
    driver: LxcDriver, busybox_rootfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = pycontainer.Container(["sleep", "100"], rootfs=busybox_rootfs, driver=driver)
    guard = driver._guard
    assert guard is not None
    os.kill(guard.pid, signal.SIGSTOP)
    began = time.monotonic()
    driver.close()
    assert time.monotonic() - began < guard.patience
    assert not host.is_alive(guard.pid)
    assert not host.is_alive(box.pid or 0)
    assert left(guard.token) == []
    box.close()


def test_a_guard_that_does_not_end_is_killed_and_nothing_is_left(
    driver: LxcDriver, busybox_rootfs: Path, monkeypatch: pytest.MonkeyPatch, until: Callable[..., None]
) -> None:
    box = pycontainer.Container(["sleep", "100"], rootfs=busybox_rootfs, driver=driver)
    guard = driver._guard
    assert guard is not None
    monkeypatch.setattr("pycontainer.service.signals.SIGCONT", 0)  # it is not woken up
    monkeypatch.setattr(client.GuardClient, "patience", 0.2)
    os.kill(guard.pid, signal.SIGSTOP)
    driver.close()
    assert not host.is_alive(guard.pid)
    until(lambda: not host.is_alive(box.pid or 0))
    assert left(guard.token) == []
    box.close()


def test_out_of_descriptors(
    driver: LxcDriver, busybox_rootfs: Path, monkeypatch: pytest.MonkeyPatch, until: Callable[..., None]
) -> None:
    """Without its pidfd nobody could end it: an error that says so, and nothing that runs on."""
    keywords: dict[str, Any] = {"rootfs": busybox_rootfs, "driver": driver, "stdout": pycontainer.DEVNULL}
    other = pycontainer.Container(["sleep", "100"], **keywords)
    assert driver._guard is not None
    guard = driver._guard.pid
    wait_for_start = LxcProcess.wait_for_start

    def starved(self: LxcProcess, *arguments: Any, **rest: Any) -> None:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
        try:
            wait_for_start(self, *arguments, **rest)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    for start in (
        lambda: pycontainer.run(["sleep", "100"], timeout=60, **keywords),
        lambda: other.exec(["sleep", "9"]),
    ):
        with monkeypatch.context() as context:
            context.setattr(LxcProcess, "wait_for_start", starved)
            with pytest.raises(SetupError) as caught:
                start()
        assert (caught.value.step, caught.value.errno) == ("receive descriptors", errno.EMFILE)
        until(lambda: len(host.children(guard)) == 1)
    assert other.poll() is None
    assert len(other.pids()) == 1
    other.close()


def test_no_room_for_a_status_socket(driver: LxcDriver, busybox_rootfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = pycontainer.Command.of(["true"], rootfs=busybox_rootfs)

    def full(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with open(os.devnull, "r+b") as null:
        stdio = pycontainer.Stdio(*[null.fileno()] * 3)
        with monkeypatch.context() as context:
            context.setattr("socket.socketpair", full)
            with pytest.raises(SetupError, match="start the guard: EMFILE"):
                driver.start(command, stdio)
        driver.start(command, stdio).close()
        monkeypatch.setattr("socket.socketpair", full)
        with pytest.raises(SetupError, match="make a status socket: EMFILE"):
            driver.start(command, stdio)


def test_a_guard_out_of_descriptors_refuses_and_goes_on(
    driver: LxcDriver, busybox_rootfs: Path, until: Callable[..., None]
) -> None:
    keywords: dict[str, Any] = {"rootfs": busybox_rootfs, "driver": driver, "stdout": pycontainer.DEVNULL}
    other = pycontainer.Container(["sleep", "100"], **keywords)
    assert driver._guard is not None
    guard = driver._guard.pid
    _, hard = limits = resource.prlimit(guard, resource.RLIMIT_NOFILE)
    free = host.leave_no_descriptor(guard)
    for limit in range(free, free + 12):
        resource.prlimit(guard, resource.RLIMIT_NOFILE, (limit, hard))
        with contextlib.suppress(SetupError, ContainerLostError):
            pycontainer.run(["true"], timeout=60, **keywords)
        assert host.is_alive(guard)
        assert other.poll() is None
    resource.prlimit(guard, resource.RLIMIT_NOFILE, limits)
    assert pycontainer.run(["true"], **keywords).returncode == 0
    assert driver._guard.pid == guard
    other.close()


PEACEFUL = """
import atexit, os, sys

def look():  # registered first, so called last: after what the driver does at the end, and before the interpreter ends
    print([os.path.exists(f"/proc/{pid}") for pid in pids], flush=True)

atexit.register(look)
import pycontainer
box = pycontainer.Container(["sleep", "1000"], rootfs=sys.argv[1], driver="lxc")
guard = pycontainer.get_driver("lxc")._guard
pids = [guard.pid, box.pid]
print(guard.token, flush=True)
"""


def test_when_the_interpreter_ends_in_peace_everything_is_gone_before(busybox_rootfs: Path) -> None:
    argv = [sys.executable, "-c", PEACEFUL, str(busybox_rootfs)]
    done = subprocess.run(argv, capture_output=True, text=True, cwd="/", check=True, timeout=120)
    token, found = done.stdout.splitlines()
    assert found == "[False, False]"
    assert left(token) == []


def test_a_forked_child_lets_go_of_what_is_the_parents(driver: LxcDriver, busybox_rootfs: Path) -> None:
    box = pycontainer.Container(["sleep", "100"], rootfs=busybox_rootfs, driver=driver)
    box.exec(["true"])
    pid = os.fork()
    if pid == 0:
        try:
            process = box._life.process
            assert process is not None
            os._exit(0 if driver._guard is None and process.fileno() < 0 else 1)
        finally:
            os._exit(255)
    assert os.waitpid(pid, 0)[1] == 0
    assert box.poll() is None
    box.close()


def test_without_an_interpreter_to_start(
    driver: LxcDriver, busybox_rootfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "")
    monkeypatch.setattr(sys, "_base_executable", "", raising=False)
    with pytest.raises(pycontainer.DriverUnavailableError, match=r"sys.executable is empty \(remedy: "):
        pycontainer.run(["true"], rootfs=busybox_rootfs, driver=driver)


def test_asking_about_one_that_is_closed_leaves_the_others(driver: LxcDriver, busybox_rootfs: Path) -> None:
    first, second = (pycontainer.Container(["sleep", "100"], rootfs=busybox_rootfs, driver=driver) for _ in range(2))
    first._life.process.close()  # type: ignore[union-attr]
    for _ in range(3):
        assert not driver.info(first.id).is_running
    assert second.poll() is None
    for box in (first, second):
        box.close()


def test_twenty_in_parallel(run: Callable[..., Any]) -> None:
    codes: list[int] = []
    threads = [threading.Thread(target=lambda n=n: codes.append(run(f"exit {n}").returncode)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == list(range(20))


def test_three_hundred_in_a_row(run: Callable[..., Any], driver: LxcDriver) -> None:
    run("true")
    before = len(host.descriptors()), len(host.descriptors(driver._guard.pid))  # type: ignore[union-attr]
    assert [run(f"exit {n % 256}").returncode for n in range(300)] == [n % 256 for n in range(300)]
    deadline = time.monotonic() + 10
    while True:  # the guard reaps the last monitor after it has told its end
        after = len(host.descriptors()), len(host.descriptors(driver._guard.pid))  # type: ignore[union-attr]
        if (after[0] <= before[0] and after[1] <= before[1]) or time.monotonic() > deadline:
            break
    assert after[0] <= before[0]
    assert after[1] <= before[1]
    assert not [path for path in left() if "payload" in path and driver._guard.token in path]  # type: ignore[union-attr]


def test_memory_that_a_start_cannot_do_with_is_refused(busybox_rootfs: Path, driver: LxcDriver) -> None:
    with pytest.raises(InvalidCommandError, match="2m at least") as caught:
        pycontainer.run(["true"], rootfs=busybox_rootfs, driver=driver, memory="16k")
    assert caught.value.field == "resources.memory"


@pytest.mark.parametrize("kill", [True, False])
@pytest.mark.parametrize("stopped", [True, False])
def test_out_of_memory_is_never_missed(
    kill: bool, stopped: bool, driver: LxcDriver, busybox_rootfs: Path, until: Callable[..., None]
) -> None:
    """LXC removes the cgroup, and with it the kernel's counter, only after the guard has looked at it."""
    script = "read x; x=a; while :; do x=$x$x; done" if kill else "read x; kill -9 -1; exit 9"
    with pycontainer.Container(
        ["sh", "-c", script], rootfs=busybox_rootfs, driver=driver, memory="24m", stdin=PIPE
    ) as b:
        assert b.stdin is not None
        assert b.pid is not None
        pid, monitor, guard = b.pid, int(host.status(b.pid)["PPid"]), driver._guard.pid  # type: ignore[union-attr]
        if stopped:
            os.kill(guard, signal.SIGSTOP)
        try:
            b.stdin.write(b"\n")
            b.stdin.close()
            if stopped:  # until LXC has removed everything, and is a zombie
                until(lambda: not host.is_alive(pid))
                until(lambda: not host.is_alive(monitor))
        finally:
            os.kill(guard, signal.SIGCONT)
        b.wait(60)
        assert b.status is not None
        assert (b.status.signal, b.status.exit_code, b.status.oom_killed) == (
            (9, None, True) if kill else (None, 9, False)
        )


def test_a_stop_hook_that_somebody_took_away_is_told(run: Callable[..., Any]) -> None:
    status = run("exit 3", config=["lxc.hook.stop ="], memory="64m").status
    assert (status.exit_code, status.oom_killed) == (3, False)
    assert ("not known" in status.reason) == ("memory" in cgroups.bases())  # of cgroup2 the counter is still there


# -- what LXC does by itself, and what the driver makes of it. Version: lxc 5.0.2.


def test_stdio_keeps_its_owner_and_mode(run: Callable[..., Any], tmp_path: Path) -> None:
    """fix_stdio_permissions of LXC gives a file to the container's user and makes it rwx for him."""
    path = tmp_path / "out"
    path.touch(0o640)
    path.chmod(0o640)
    with path.open("w") as file:
        run("echo x; sleep 0.05", user="alice", capture_output=False, stdout=file)
    assert (path.read_text(), path.stat().st_mode & 0o7777, path.stat().st_uid) == ("x\n", 0o640, os.geteuid())


def test_a_container_of_the_hosts_network_does_not_see_lxcs_socket(run: Callable[..., Any], driver: LxcDriver) -> None:
    """CVE-2020-15257's class: LXC takes orders on an abstract socket from any root that reaches it."""
    done = run("cat /proc/net/unix; ip link", network="host")
    assert driver._guard is not None
    assert driver._guard.token not in done.stdout
    assert "lo:" in done.stdout
    assert len(run("ip -o link", network="host").stdout.splitlines()) == len(os.listdir("/sys/class/net"))


def test_a_reboot_is_an_end(run: Callable[..., Any]) -> None:
    """LXC would start a container again whose init has called reboot(2)."""
    done = run("echo once; reboot -f; sleep 5", privileged=True)
    assert (done.stdout, done.status.signal) == ("once\n", signal.SIGHUP)


def test_without_a_pid_namespace_everything_ends_with_the_first_process(run: Callable[..., Any]) -> None:
    done = run("sleep 1000 >/dev/null 2>&1 & echo $!", pid="host")
    assert not host.is_alive(int(done.stdout))


@pytest.mark.parametrize("given_up", ["prctl.cap_effective.sys_boot = prctl.cap_permitted.sys_boot = False",
                                      "prctl.capbset.sys_boot = False"], ids=["permitted", "bounding"])  # fmt: skip
def test_a_capability_that_the_caller_does_not_have(busybox_rootfs: Path, given_up: str) -> None:
    """LXC leaves out what it cannot give, and says nothing."""
    code = f"""
import prctl, pycontainer
{given_up}
try:
    pycontainer.run(["true"], rootfs={str(busybox_rootfs)!r}, driver="lxc", cap_add=["SYS_BOOT"])
except pycontainer.InvalidCommandError as error:
    print(error)
pycontainer.run(["true"], rootfs={str(busybox_rootfs)!r}, driver="lxc", check=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout == "process.capabilities: this process does not have CAP_SYS_BOOT to give\n"


def test_the_networks_of_docker_0_9(run: Callable[..., Any], driver: LxcDriver, busybox_rootfs: Path) -> None:
    bridge = f"pyc{os.getpid() % 10000}"
    subprocess.run(["ip", "link", "add", bridge, "type", "bridge"], check=True)
    try:
        subprocess.run(["ip", "addr", "add", "10.213.7.1/24", "dev", bridge], check=True)
        subprocess.run(["ip", "link", "set", bridge, "up"], check=True)
        network = Network(
            bridge=bridge,
            address="10.213.7.2",
            prefix_length=24,
            gateway="10.213.7.1",
            mtu=1400,
            mac="02:11:22:33:44:55",
        )
        done = run("ip -o addr show eth0; ip link show eth0; ip route; ping -c1 -W2 10.213.7.1", network=network)
        for expected in ("10.213.7.2/24", "mtu 1400", "02:11:22:33:44:55", "default via 10.213.7.1"):
            assert expected in done.stdout
        assert "brd" not in done.stdout.splitlines()[0]  # none, as native; LXC's own is 0.0.0.255
        two = [network, attrs.evolve(network, mac=None, address="10.213.7.3", gateway=None, interface="eth1")]
        done = run("cat /proc/sys/net/ipv6/conf/*/accept_ra", network=two)
        assert set(done.stdout.split()) == {"0"}  # all, default, lo, eth0, eth1 and what the kernel has of itself
        assert len(done.stdout.split()) >= 5
        with pycontainer.Container(["sleep", "50"], rootfs=busybox_rootfs, driver=driver, network=network) as box:
            shared = run("ip -o addr show eth0", network=f"container:{box.id}")
            assert "10.213.7.2/24" in shared.stdout
        assert os.listdir(f"/sys/class/net/{bridge}/brif") == []
    finally:
        subprocess.run(["ip", "link", "del", bridge], check=True)


def test_environment_of_the_caller_reaches_nobody(
    busybox_rootfs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("LD_PRELOAD_X", "PYTHONPATH", "LXC_X", "SECRET"):
        monkeypatch.setenv(name, "secret-of-the-caller")
    fake = tmp_path / "lxc-start"
    fake.write_text("#!/bin/sh\ntouch $0.was-run\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    driver = LxcDriver()
    with pycontainer.Container(["sleep", "50"], rootfs=busybox_rootfs, driver=driver) as box:
        monitor = int(host.status(box.pid or 0)["PPid"])
        guard = int(host.status(monitor)["PPid"])
        for pid in (box.pid, monitor, guard):
            assert b"secret-of-the-caller" not in Path(f"/proc/{pid}/environ").read_bytes()
    driver.close()
    assert not (tmp_path / "lxc-start.was-run").exists()


def test_descriptors_of_the_caller_reach_nobody(run: Callable[..., Any]) -> None:
    opened = [os.open("/", os.O_RDONLY) for _ in range(20)]
    try:
        for fd in opened:
            os.set_inheritable(fd, True)
        assert run("ls /proc/self/fd | tr '\\n' ' '").stdout == "0 1 2 3 "
    finally:
        for fd in opened:
            os.close(fd)


def test_a_name_of_any_length_and_state_for_nobody_else(driver: LxcDriver, busybox_rootfs: Path) -> None:
    name = "x" * 128
    with pycontainer.Container(["sleep", "50"], rootfs=busybox_rootfs, driver=driver, name=name) as box:
        box.pause()
        box.unpause()
        path = Path(driver._guard.lxcpath)  # type: ignore[union-attr]
        assert (path.stat().st_mode & 0o777, path.stat().st_uid) == (0o700, 0)


def test_a_container_name_is_free_again_at_once(run: Callable[..., Any]) -> None:
    for _ in range(5):
        assert run("exit 3", name="again").returncode == 3


def test_arguments_are_arguments(driver: LxcDriver, busybox_rootfs: Path) -> None:
    argv = ["printf", "%s|", "CONFIG", "-n", "--", "$(id)", ";touch /x", "a\nb", "", "é"]
    done = pycontainer.run(argv, rootfs=busybox_rootfs, driver=driver, capture_output=True)
    assert done.stdout.decode() == "CONFIG|-n|--|$(id)|;touch /x|a\nb||é|"


def test_what_lxc_says_is_in_the_error(driver: LxcDriver, busybox_rootfs: Path) -> None:
    with pytest.raises(SetupError) as caught:
        pycontainer.run(["true"], rootfs=busybox_rootfs, driver=driver, config=["lxc.no.such.key = 1"])
    assert any("lxc-start" in note for note in caught.value.__notes__)


@pytest.mark.parametrize(
    ("field", "keywords"),
    [
        ("dns", {"dns": ["192.0.2.53"]}),
        ("dns_search", {"dns_search": ["example.org"]}),
        ("extra_hosts", {"extra_hosts": {"db": "192.0.2.7"}}),
        ("network.bridge", {"network": "bridge:pyc-missing"}),
        ("network.path", {"network": "ns:/proc/self/ns/uts"}),
        ("network.path", {"network": "ns:/proc/self/ns/net"}),
    ],
)
def test_what_of_a_network_is_refused(run: Callable[..., Any], field: str, keywords: dict[str, Any]) -> None:
    with pytest.raises(pycontainer.InvalidCommandError) as caught:
        run("true", **keywords)
    assert caught.value.field == field


def test_no_bridge_is_made(run: Callable[..., Any]) -> None:
    with pytest.raises(pycontainer.UnsupportedError, match="bridge"):
        run("true", network=Network(bridge="pyc-missing", create_bridge=True))


def test_flags_that_lxc_would_leave_out_are_refused(run: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(pycontainer.InvalidCommandError) as caught:
        run("true", mounts=[Mount(str(tmp_path), "/m", options=("nosuid",))])
    assert caught.value.field == "mounts.options"


def test_how_further_processes_ended(driver: LxcDriver, busybox_rootfs: Path) -> None:
    """lxc-attach says 137 of either; and with the first instruction over, nobody can ask the kernel any more."""
    codes: dict[str, list[int]] = {"exit 137": [], "kill -9 $$": [], "kill -1 $$": []}
    with pycontainer.Container(["sleep", "100"], rootfs=busybox_rootfs, driver=driver) as box:
        threads = [
            threading.Thread(
                target=lambda script=script: codes[script].append(box.exec(["sh", "-c", script]).returncode)
            )
            for script in codes
            for _ in range(5)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert driver._guard is not None
        assert host.children(driver._guard.pid) == [int(host.status(box.pid or 0)["PPid"])]
    assert codes == {"exit 137": [137] * 5, "kill -9 $$": [-9] * 5, "kill -1 $$": [-1] * 5}


def test_devices_are_denied(run: Callable[..., Any], tmp_path: Path) -> None:
    script = "mknod /tmp/disk b 254 0 && head -c1 /tmp/disk; rm -f /tmp/disk; head -c1 /dev/zero | wc -c"
    done = run(script, cap_add=["MKNOD"], mounts=[Mount.tmpfs("/tmp", options=())])
    assert done.stdout == "1\n"
    assert done.stderr


def test_a_device_is_the_hosts_and_stays_as_it_is(run: Callable[..., Any]) -> None:
    """It is a bind mount of the node; what a container's root does to it would be done to the host's."""
    found = os.stat("/dev/zero")
    again = f"chmod {found.st_mode & 0o777:o} /dev/own/zero; chown {found.st_uid} /dev/own/zero"
    script = f"{again}; head -c 3 /dev/own/zero | wc -c; (: >/dev/own/zero) && echo w"
    done = run(script, devices=["/dev/zero:/dev/own/zero"])
    assert done.stdout == "3\nw\n"
    assert done.stderr.count("Read-only file system") == 2


@pytest.mark.parametrize(
    ("field", "device"),
    [
        ("devices.mode", Device("/dev/zero", "/dev/own", mode=0o600)),
        ("devices.uid", Device("/dev/zero", "/dev/own", uid=1000)),
        ("devices.minor", Device("/dev/zero", "/dev/own", type="c", major=1, minor=3, mode=0o666)),
        ("devices.path", Device("/dev/no-such", "/dev/own", type="c", major=1, minor=3)),
    ],
)
def test_devices_that_lxc_would_show_otherwise(run: Callable[..., Any], field: str, device: Device) -> None:
    with pytest.raises(pycontainer.InvalidCommandError) as caught:
        run("true", devices=[device])
    assert caught.value.field == field


def test_rules_for_devices_stay_those_of_the_start(driver: LxcDriver, busybox_rootfs: Path) -> None:
    with pycontainer.Container(["sleep", "50"], rootfs=busybox_rootfs, driver=driver) as box:
        with pytest.raises(pycontainer.InvalidCommandError) as caught:
            driver.update(box.id, Resources(device_cgroup_rules=("c 1:11 r",)))
        assert caught.value.field == "resources.device_cgroup_rules"


SCHEDULED = """
import os, sys, pycontainer
os.nice(5)
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
with open("/proc/self/oom_score_adj", "w") as file:
    file.write("77")
script = "cat /proc/self/oom_score_adj; cut -d' ' -f19 /proc/self/stat; grep Cpus_allowed_list /proc/self/status"
print(pycontainer.run(["sh", "-c", script], rootfs=sys.argv[1], driver="lxc", capture_output=True, text=True).stdout)
"""


def test_what_the_caller_is_scheduled_by_is_its_own(busybox_rootfs: Path, run: Callable[..., Any]) -> None:
    expected = run(
        "cat /proc/self/oom_score_adj; cut -d' ' -f19 /proc/self/stat; grep Cpus_allowed_list /proc/self/status"
    )
    argv = [sys.executable, "-c", SCHEDULED, str(busybox_rootfs)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected.stdout.split()


def test_propagation_stays_inside(run: Callable[..., Any], tmp_path: Path) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    run("mkdir -p /tmp/m && mount -t tmpfs x /tmp/m", privileged=True, mounts=[Mount(str(tmp_path), "/tmp")])
    assert Path("/proc/self/mountinfo").read_text() == before


def test_output_through_a_pipe_that_nobody_reads(driver: LxcDriver, busybox_rootfs: Path) -> None:
    with pycontainer.Container(["yes"], rootfs=busybox_rootfs, driver=driver, stdout=PIPE) as box:
        time.sleep(0.1)
        assert box.poll() is None


def test_what_waits_in_a_container_cannot_be_traced_from_there(driver: LxcDriver, busybox_rootfs: Path) -> None:
    """It is not confined yet; /proc/PID/mem belongs to root, and not to its user, as long as it is not dumpable."""
    keywords = {"rootfs": busybox_rootfs, "driver": driver, "user": "65534:65534", "start": False}
    with pycontainer.Container(["sleep", "100"], **keywords) as box:
        box.create()
        assert host.status(box.pid or 0)["Uid"].split() == ["65534"] * 4
        assert os.stat(f"/proc/{box.pid}/mem").st_uid == 0
        box.start()
        assert os.stat(f"/proc/{box.pid}/mem").st_uid == 65534


@pytest.mark.parametrize("way", ["box.send_signal", "driver.kill", "driver.terminate", "box.kill"])
def test_what_is_paused_can_be_killed(driver: LxcDriver, busybox_rootfs: Path, way: str) -> None:
    with pycontainer.Container(["sleep", "50"], rootfs=busybox_rootfs, driver=driver) as box:
        box.pause()
        {
            "box.send_signal": lambda: box.send_signal(signal.SIGKILL),
            "driver.kill": lambda: driver.kill(box.id, signal.SIGKILL),
            "driver.terminate": lambda: driver.terminate(box.id),
            "box.kill": box.kill,
        }[way]()
        assert box.wait(10) == -signal.SIGKILL


def test_a_pause_does_not_bring_back_what_has_ended(
    driver: LxcDriver, busybox_rootfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pycontainer.Container(["sleep", "50"], rootfs=busybox_rootfs, driver=driver) as box:
        process = driver._processes[box.id]

        def late(name: str, container: Any) -> None:
            box.kill()
            box.wait(10)

        monkeypatch.setattr(driver, "_tool", late)
        driver.pause(box.id)
        assert process.state is pycontainer.State.STOPPED


def test_exec_in_one_with_a_directory_and_groups(driver: LxcDriver, busybox_rootfs: Path) -> None:
    """It starts in /, without groups, as lxc-attach does; what is asked for and cannot be had is refused."""
    keywords: dict[str, Any] = {"cwd": "/tmp", "groups": [7], "rootfs": busybox_rootfs, "driver": driver}
    with pycontainer.Container(["sleep", "50"], **keywords) as box:
        done = box.exec(["sh", "-c", "pwd; id -G"], capture_output=True, text=True)
        assert done.stdout == "/\n0\n"
        for field, given in (("working_dir", {"cwd": "/tmp"}), ("additional_groups", {"groups": [7]})):
            with pytest.raises(pycontainer.InvalidCommandError) as caught:
                box.exec(["true"], **given)
            assert caught.value.field == f"process.{field}"
