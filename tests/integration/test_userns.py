"""A user namespace of the container's own: root inside is nobody on the host."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest

import pycontainer
from pycontainer import (
    ContainerLostError,
    Hook,
    Hooks,
    InvalidCommandError,
    Mount,
    Network,
    SetupError,
    UnsupportedError,
    WaitTimeoutError,
    rootfs,
)
from pycontainer.command import Command
from pycontainer.driver import ContainerProcess, Feature, LogLimits, Probe, Stdio
from pycontainer.testing.conformance import Conformance
from pycontainer_native import network as networks
from pycontainer_native.driver import NativeDriver
from pycontainer_native.network import remove_bridges
from pycontainer_native.userns import AUTO, AUTO_SIZE, lease_range

from . import host
from .conftest import Sh

pytestmark = [pytest.mark.root, pytest.mark.tool("busybox")]

MAPS = {"uid_mappings": [(0, 300000, 1000), (1000, 500000, 10)], "gid_mappings": [(0, 400000, 65536)]}


def of_init(box: pycontainer.Container, *names: str) -> list[str]:
    """Lines of /proc/PID/status, without their names."""
    lines = Path(f"/proc/{box.pid}/status").read_text().splitlines()
    return [" ".join(line.split()[1:]) for name in names for line in lines if line.startswith(f"{name}:")]


@pytest.fixture
def start(native: NativeDriver, busybox_rootfs: Path) -> Iterator[Callable[..., pycontainer.Container]]:
    boxes = []

    def start(**keywords: Any) -> pycontainer.Container:
        keywords = {"rootfs": busybox_rootfs, "driver": native, **keywords}
        boxes.append(pycontainer.Container(["sleep", "1000"], **keywords))
        return boxes[-1]

    yield start
    for box in boxes:
        box.close()


class RemappedDriver(NativeDriver):
    """Native, but that every container has a user namespace, with which some features do not go together."""

    def features(self) -> frozenset[Feature]:
        return super().features() - {Feature.DEVICES}

    def probe(self) -> Probe:
        found = super().probe()
        features = {feature: seen for feature, seen in found.features.items() if feature in self.features()}
        return attrs.evolve(found, features=features)

    def validate(self, command: Command) -> Sequence[InvalidCommandError | UnsupportedError]:
        if any(network.mode == "container" for network in command.networks):
            return [UnsupportedError(self.name, Feature.USERNS, "with another one's network")]
        return super().validate(command)

    def start(self, command: Command, stdio: Stdio) -> ContainerProcess:
        return super().start(command.copy_with(userns="auto"), stdio)

    def create(self, command: Command, stdio: Stdio) -> ContainerProcess:
        return super().create(command.copy_with(userns="auto"), stdio)

    def start_detached(self, command: Command, log: LogLimits, deadline: float | None = None) -> ContainerProcess:
        return super().start_detached(command.copy_with(userns="auto"), log, deadline)


@pytest.fixture(scope="module")
def remapped() -> Iterator[NativeDriver]:
    driver = RemappedDriver()
    yield driver
    driver.close()


class TestRemapped(Conformance):
    """The kit, each container in a user namespace."""

    @pytest.fixture
    def driver(self, remapped: NativeDriver) -> NativeDriver:
        return remapped


def test_root_inside_is_nobody_outside(start: Callable[..., pycontainer.Container], sh: Sh) -> None:
    box = start(userns="auto")
    (uid,), (gid,) = ({*ids.split()} for ids in of_init(box, "Uid", "Gid"))
    assert uid == gid
    assert int(uid) >= AUTO[0]
    assert box.exec(["id", "-u"], capture_output=True, text=True).stdout == "0\n"
    assert sh("cat /proc/self/uid_map", userns="auto").stdout.split()[::2] == ["0", str(AUTO_SIZE)]
    for name in ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup"):
        assert os.readlink(f"/proc/{box.pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}")


def test_the_maps_that_were_asked_for(start: Callable[..., pycontainer.Container]) -> None:
    box = start(**MAPS, user="1005:70", groups=["71"])
    assert Path(f"/proc/{box.pid}/uid_map").read_text().split() == ["0", "300000", "1000", "1000", "500000", "10"]
    assert Path(f"/proc/{box.pid}/gid_map").read_text().split() == ["0", "400000", "65536"]
    assert of_init(box, "Uid", "Gid", "Groups") == [" ".join(["500005"] * 4), " ".join(["400070"] * 4), "400070 400071"]


def test_namespaces_are_its_own(sh: Sh) -> None:
    """It has rights over its namespaces and none over the host: the other way round neither would hold."""
    script = "ip link set lo mtu 1400 && cat /sys/class/net/lo/mtu; hostname other 2>/dev/null || echo seccomp"
    assert sh(script, userns="auto", cap_add=["NET_ADMIN"]).stdout.split()[0] == "1400"


def test_each_has_its_own_ids(start: Callable[..., pycontainer.Container]) -> None:
    first, second = start(userns="auto"), start(userns="auto")
    ids = [of_init(box, "Uid")[0].split()[0] for box in (first, second)]
    assert ids[0] != ids[1]
    first.close()
    assert of_init(start(userns="auto"), "Uid")[0].split()[0] != ids[1]


def test_a_range_is_had_again(start: Callable[..., pycontainer.Container]) -> None:
    box = start(userns="auto")
    range_file = Path("/run/pycontainer/userns", of_init(box, "Uid")[0].split()[0])
    with range_file.open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    box.close()
    with range_file.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # sooner or later: another test may look at it just now
    assert range_file.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("detach", [False, True])
def test_nobody_has_ids_after_a_launcher_that_was_killed(
    own_driver: NativeDriver, detached: NativeDriver, busybox_rootfs: Path, detach: bool
) -> None:
    """Their lock ends with it, but not a payload that has asked for no parent-death signal: the next one ends that."""
    pycontainer.run(["true"], rootfs=busybox_rootfs, driver=detached)  # what starts a launcher ends those as well
    code = "import ctypes, time; ctypes.CDLL(None).prctl(1, 0); print('ready', flush=True); time.sleep(1000)"
    with pycontainer.Container(
        [sys.executable, "-c", code], driver=own_driver, userns="auto", stdout=pycontainer.PIPE
    ) as box:
        assert box.stdout is not None
        assert box.stdout.readline() == b"ready\n"
        pid = box.pid
        start = of_init(box, "Uid")[0].split()[0]
        assert own_driver._launchers.current is not None
        os.kill(launcher := own_driver._launchers.current.pid, signal.SIGKILL)
        while host.is_alive(launcher):
            time.sleep(0.001)
        assert host.is_alive(pid)
        keywords: dict[str, Any] = {"rootfs": busybox_rootfs, "driver": detached, "userns": "auto"}
        with pycontainer.Container(["sleep", "1000"], detach=detach, **keywords) as other:
            try:
                assert of_init(other, "Uid")[0].split()[0] == start
                assert not host.is_alive(pid)
            finally:
                other.kill()
                other.wait(30)
                if detach:
                    other.remove()


def test_files_keep_their_owners(sh: Sh, tmp_path: Path, busybox_rootfs: Path) -> None:
    """What the container's root makes is root's on the disk, in the rootfs and in a bind mount (mount_setattr(2))."""
    rootfs = tmp_path / "rootfs"
    subprocess.run(["cp", "-a", busybox_rootfs, rootfs], check=True)
    shared = tmp_path / "shared"
    shared.mkdir()
    script = "touch /made /shared/made; chown 5:6 /made; stat -c %u:%g /bin /shared /shared/made"
    done = sh(script, rootfs=rootfs, mounts=[Mount(str(shared), "/shared")], userns="auto")
    assert (done.stdout.split(), done.stderr) == (["0:0", "0:0", "0:0"], "")
    found = [(rootfs / "made").stat(), (shared / "made").stat()]
    assert [(stat.st_uid, stat.st_gid) for stat in found] == [(5, 6), (0, 0)]


def test_the_way_there_may_be_barred(sh: Sh, tmp_path: Path) -> None:
    """The rootfs is below a directory for the host's root alone: it is opened before the rights over it are gone."""
    tmp_path.chmod(0o700)
    secret = tmp_path / "secret"
    secret.write_text("x")
    done = sh("cat /secret", mounts=[Mount(str(secret), "/secret", read_only=True)], userns="auto")
    assert (done.stdout, done.stderr) == ("x", "")


def test_the_hosts_programs(python: Sh) -> None:
    code = "import os; open('/usr/made', 'w'); print(os.getuid(), os.stat('/usr').st_uid, os.stat('/usr/made').st_uid)"
    done = python(code, userns="auto")
    assert (done.stdout.split(), done.stderr) == (["0", "0", "0"], "")
    assert not Path("/usr/made").exists()


def test_a_file_of_the_host_that_only_root_can_reach(sh: Sh, tmp_path: Path) -> None:
    """As a virtual environment's is, below /root."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / "file").write_text("shown\n")
    view = rootfs.HostView.detect()
    parents = {str(path): 0o755 for path in (*reversed(closed.parents), closed) if path != Path("/")}
    view = attrs.evolve(
        view,
        files=(*view.files, str(closed / "file"), str(closed / "missing")),
        directories=tuple(sorted({**parents, **dict(view.directories)}.items())),
    )
    assert sh(f"cat {closed}/file; ls {closed}", rootfs=view, userns="auto").stdout == "shown\nfile\n"


def test_rights_over_the_host_are_none(sh: Sh) -> None:
    """Even with every capability: they are those of its namespace."""
    script = "echo x > /proc/sys/kernel/core_pattern; mknod /tmp/sda b 8 0; mount -t tmpfs none /tmp && echo mounted"
    done = sh(script, userns="auto", privileged=True, rootfs=None)
    assert done.stdout == "mounted\n"
    assert "core_pattern" in done.stderr
    assert "mknod" in done.stderr


def test_further_processes_are_in_it_too(start: Callable[..., pycontainer.Container]) -> None:
    box = start(userns="auto")
    done = box.exec(["sh", "-c", "id -u; readlink /proc/self/ns/user; grep Cap /proc/self/status"], capture_output=True)
    lines = done.stdout.decode().splitlines()
    assert lines[:2] == ["0", os.readlink(f"/proc/{box.pid}/ns/user")]
    assert [line.split()[1] for line in lines[2:]] == of_init(box, "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


def test_verbs(start: Callable[..., pycontainer.Container]) -> None:
    box = start(userns="auto", pids_limit=20)
    box.pause()
    box.unpause()
    assert box.stats().pids.limit == 20
    box.update(pids_limit=30)
    assert box.stats().pids.limit == 30
    box.kill()
    assert box.wait() == -9


def test_with_an_init_and_a_terminal(sh: Sh) -> None:
    assert sh("id -u; tty", init=True, tty=True, userns="auto").stdout.split() == ["0", "/dev/pts/0"]


def test_the_default_is_not_in_one(sh: Sh, native: NativeDriver) -> None:
    """One after the other: what is cloned ahead is not taken for the wrong kind."""
    for userns in (None, "auto", None, "auto", "auto", None, None):
        own = sh("readlink /proc/self/ns/user", userns=userns).stdout.strip() != os.readlink("/proc/self/ns/user")
        assert own is (userns == "auto")


@pytest.fixture
def detached(native: NativeDriver) -> Iterator[NativeDriver]:
    with tempfile.TemporaryDirectory(dir="/run") as root:  # others must not be able to write above it either
        driver = NativeDriver(root=root)
        yield driver
        driver.close()


def test_a_detached_one(detached: NativeDriver, busybox_rootfs: Path) -> None:
    """Its ids are known to whoever finds it again, be they on record, or those of its Command alone as ever before."""
    command = Command.of(["sleep", "1000"], rootfs=busybox_rootfs, name="remapped", **MAPS)  # type: ignore[arg-type]
    process = detached.start_detached(command, LogLimits())
    try:
        for _ in range(2):
            other = pycontainer.get("remapped", driver=NativeDriver(root=detached._store.root))
            assert other.exec(["id", "-u"], capture_output=True, text=True).stdout == "0\n"
            with pytest.raises(InvalidCommandError, match="does not exist in the user namespace"):
                other.exec(["id", "-u"], user="1010")
            file = Path(detached._store.root, "containers/remapped/config.json")
            record = json.loads(file.read_text())
            record.pop("ids", None)
            file.write_text(json.dumps(record))
    finally:
        detached.kill("remapped", 9)
        process.wait(30)
        detached.delete("remapped")


def is_free(start: int) -> bool:
    """Whether the ids from *start* on might be given to a container."""
    leases = []
    try:
        while True:
            ids, lease = lease_range()
            leases.append(lease)
            if ids.uids[0][1] >= start:
                return ids.uids[0][1] == start
    finally:
        for lease in leases:
            os.close(lease)


MAKER = """
import pycontainer, signal, sys
driver = pycontainer.get_driver("native", root=sys.argv[1])
box = pycontainer.Container(sys.argv[2:], rootfs=ROOTFS, driver=driver, userns="auto", detach=True, name="kept")
print(box.pid, flush=True)
signal.pause()
"""


@pytest.fixture
def kept(caller: Any, detached: NativeDriver) -> Iterator[Callable[..., tuple[pycontainer.Container, int]]]:
    """A detached container whose maker has been killed, as another process finds it, and its first id outside."""

    def kept(*argv: str, rootfs: str = "ROOTFS") -> tuple[pycontainer.Container, int]:
        maker = caller(f"sys.argv[1:] = {[detached._store.root, *argv]!r}\n{MAKER.replace('ROOTFS', rootfs)}")
        pid = int(maker.stdout.readline())
        maker.kill()
        maker.wait(60)
        box = pycontainer.get("kept", detached)
        assert box.pid == pid
        return box, int(Path(f"/proc/{pid}/uid_map").read_text().split()[1])

    yield kept
    with contextlib.suppress(pycontainer.ContainerNotFoundError):
        pycontainer.get("kept", detached).remove(force=True)


def test_a_detached_one_has_ids_of_its_own(kept: Any, detached: NativeDriver, until: Any) -> None:
    box, start = kept("sleep", "1000")
    pid = box.pid
    maps = Path(f"/proc/{pid}/uid_map").read_text()
    assert of_init(box, "Uid", "Gid") == [" ".join([str(start)] * 4)] * 2
    assert maps == Path(f"/proc/{pid}/gid_map").read_text()
    assert json.loads(Path(box._life.process._path, "config.json").read_text())["ids"] == [[[0, start, AUTO_SIZE]]] * 2
    assert not is_free(start)
    with Path(f"/run/pycontainer/userns/{start}").open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    inside = box.exec(["sh", "-c", "id -u; cat /proc/self/uid_map"], capture_output=True, text=True)
    assert inside.stdout == f"0\n{maps}"
    with pytest.raises(InvalidCommandError, match="does not exist in the user namespace"):
        box.exec(["true"], user=str(AUTO_SIZE))
    with pycontainer.Container(["sleep", "1000"], driver=detached, userns="auto") as other:
        assert of_init(other, "Uid")[0].split()[0] != str(start)
    receipt = box.receipt()
    assert [(row.inside, row.outside, row.length) for row in receipt.uid_map] == [(0, start, AUTO_SIZE)]
    assert receipt.differences(box.command) == ()
    assert box.stats().pids.current == 1
    assert not is_free(start)
    box.kill()
    box.wait(30)
    assert not host.is_alive(pid)
    until(lambda: is_free(start))


def test_a_further_process_is_root_of_its_ids(kept: Any, until: Any) -> None:
    box, start = kept("sleep", "1000")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        done = pool.submit(box.exec, ["sleep", "1234.5"])
        until(lambda: host.running("sleep\x001234.5"))
        [pid] = host.running("sleep\x001234.5")
        assert [*map(int, host.status(pid)["Uid"].split())] == [start] * 4
        assert os.readlink(f"/proc/{pid}/ns/user") == os.readlink(f"/proc/{box.pid}/ns/user")
        box.kill()
        done.result(30)


def test_ids_outlive_a_monitor_that_is_killed(kept: Any, detached: NativeDriver, until: Any) -> None:
    """Its lock ends with it, but not a payload that has asked for no parent-death signal."""
    code = "import ctypes, time; ctypes.CDLL(None).prctl(1, 0); print('ready', flush=True); time.sleep(1000)"
    box, start = kept(sys.executable, "-c", code, rootfs="None")
    pid = box.pid
    until(lambda: [record.data for record in box.logs()] == [b"ready\n"])
    monitor = int(host.status(pid)["PPid"])
    os.kill(monitor, signal.SIGKILL)
    until(lambda: not host.is_alive(monitor))
    assert host.is_alive(pid)
    assert not is_free(start)
    assert pycontainer.gc(detached) != []
    assert not host.is_alive(pid)
    until(lambda: is_free(start))
    assert os.listdir(f"{detached._store.root}/containers") == []


def test_a_detached_start_that_fails_leaves_no_ids(detached: NativeDriver, busybox_rootfs: Path, until: Any) -> None:
    ids, lease = lease_range()
    os.close(lease)
    command = Command.of(["/no/such"], rootfs=busybox_rootfs, name="failed", userns="auto")
    with pytest.raises(SetupError, match="execve"):
        detached.start_detached(command, LogLimits())
    until(lambda: is_free(ids.uids[0][1]))
    assert os.listdir(f"{detached._store.root}/containers") == []


@pytest.mark.parametrize("ids", [None, [], [[[0, 300000, 10]]], [[[0, 300000, 10]], [[0, -1, 10]]], [[], []]], ids=str)
def test_a_record_without_its_ids(kept: Any, detached: NativeDriver, ids: Any) -> None:
    """Nothing is done inside by somebody who does not know them."""
    box, _ = kept("sleep", "1000")
    file = Path(detached._store.root, "containers/kept/config.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "ids": ids}))
    other = NativeDriver(detached._store.root)
    assert "'ids'" in other.info("kept").problem
    with pytest.raises(pycontainer.ContainerError):
        pycontainer.get("kept", other).exec(["true"])
    assert box.poll() is None


# -- on a bridge: what is said of networks elsewhere is tried with user namespaces there

NS_GET_USERNS = 0xB701  # ioctl_ns(2)
SUBNET = f"10.252.{os.getpid() % 250}"


@pytest.fixture
def bridge(native: NativeDriver) -> Iterator[str]:
    """A bridge of this test's own, on which nothing is left at the end."""
    name = f"pycu{os.getpid() % 100000:05d}"
    host.ip("link", "add", name, "type", "bridge")
    try:
        host.ip("addr", "add", f"{SUBNET}.1/24", "dev", name)
        host.ip("link", "set", name, "up")
        yield name
        host.wait_until(lambda: host.ports(name) == set(), "something is left on the bridge")
    finally:
        host.ip("link", "del", name)


def at(bridge: str, number: int, **fields: Any) -> Network:
    return Network(bridge=bridge, address=f"{SUBNET}.{number}", prefix_length=24, **fields)


def owner(pid: int) -> str:
    """The user namespace that owns the network namespace of that process."""
    with open(f"/proc/{pid}/ns/net") as network:
        fd = fcntl.ioctl(network, NS_GET_USERNS)
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


@pytest.mark.parametrize("init", [False, True])
@pytest.mark.parametrize("ids", [{"userns": "auto"}, MAPS], ids=["auto", "maps"])
def test_its_network_is_its_own(
    bridge: str, start: Callable[..., pycontainer.Container], ids: dict[str, Any], init: bool
) -> None:
    box = start(network=at(bridge, 2), init=init, **ids)
    assert owner(box.pid) == os.readlink(f"/proc/{box.pid}/ns/user") != os.readlink("/proc/self/ns/user")
    assert owner(os.getpid()) != os.readlink(f"/proc/{box.pid}/ns/user")
    script = "id -u; ip -o -4 addr show eth0; ls /sys/class/net; stat -c %u:%g /sys/class/net/*/mtu"
    done = box.exec(["sh", "-c", script], capture_output=True, text=True)
    uid, address, *rest = done.stdout.splitlines()
    assert (uid, rest, done.stderr) == ("0", ["eth0", "lo", "0:0", "0:0"], "")
    assert f"{SUBNET}.2/24" in address


def test_rights_over_its_network(sh: Sh, bridge: str) -> None:
    """With the capability and not without, as in any container; and over nobody else's."""
    script = "ip link add made type bridge && ip link set eth0 mtu 1300 && cat /sys/class/net/*/mtu"
    done = sh(script, network=at(bridge, 2), userns="auto", cap_add=["NET_ADMIN"])
    assert (done.returncode, done.stdout.split()) == (0, ["1300", "65536", "1500"]), done.stderr
    done = sh(script, network=at(bridge, 2), userns="auto")
    assert done.returncode != 0
    assert "not permitted" in done.stderr
    assert not os.path.exists("/sys/class/net/made")


def test_several_bridges_and_kernel_parameters(sh: Sh, bridge: str) -> None:
    second = f"{bridge}b"
    other = Network(bridge=second, create_bridge=True, interface="lan", address="198.51.100.2", prefix_length=24)
    script = (
        "ip -o -4 addr | cut -d' ' -f2,7; cat /proc/sys/net/ipv4/ip_default_ttl /proc/sys/net/ipv4/conf/lan/forwarding"
    )
    sysctls = {"net.ipv4.ip_default_ttl": 77, "net.ipv4.conf.lan.forwarding": 1}
    done = sh(script, network=[at(bridge, 2), other], userns="auto", sysctls=sysctls)
    found = done.stdout.split()
    assert found == ["lo", "127.0.0.1/8", "eth0", f"{SUBNET}.2/24", "lan", "198.51.100.2/24", "77", "1"], done
    assert second in remove_bridges(os.getpid())


def test_a_receipt_of_it(bridge: str, start: Callable[..., pycontainer.Container]) -> None:
    box = start(network=at(bridge, 2, gateway=f"{SUBNET}.1", mtu=1400, mac="02:11:22:33:44:55"), userns="auto")
    receipt = box.receipt()
    assert receipt.differences(box.command) == ()
    assert receipt.interfaces is not None
    assert {one.name for one in receipt.interfaces if one.up} == {"eth0", "lo"}
    [difference] = receipt.differences(box.command.copy_with(network=at(bridge, 3, gateway=f"{SUBNET}.1")))
    assert difference.field == "network.address"


def test_hooks_on_the_host_find_its_network(sh: Sh, bridge: str, tmp_path: Path) -> None:
    """It is complete before they run."""
    found = tmp_path / "found"
    show = (
        f"""pid=$(sed 's/.*"pid": *\\([0-9]*\\).*/\\1/') && nsenter --net=/proc/$pid/ns/net ip -o -4 addr > {found}"""
    )
    hooks = Hooks(create_runtime=[Hook("/bin/sh", ["sh", "-c", show], env={"PATH": os.environ["PATH"]})])
    assert sh("true", network=at(bridge, 2), userns="auto", hooks=hooks).returncode == 0
    assert f"{SUBNET}.2/24" in found.read_text()


def test_a_detached_one_on_a_bridge(detached: NativeDriver, busybox_rootfs: Path, bridge: str) -> None:
    keywords: dict[str, Any] = {"rootfs": busybox_rootfs, "name": "bridged", "network": at(bridge, 2), **MAPS}
    process = detached.start_detached(Command.of(["sleep", "1000"], **keywords), LogLimits())
    try:
        assert owner(process.pid) == os.readlink(f"/proc/{process.pid}/ns/user")
        detached._launchers.close()  # it is its monitor's
        other = pycontainer.get("bridged", driver=NativeDriver(root=detached._store.root))
        done = other.exec(["ip", "-o", "-4", "addr", "show", "eth0"], capture_output=True, text=True)
        assert f"{SUBNET}.2/24" in done.stdout
    finally:
        detached.kill("bridged", 9)
        process.wait(30)
        detached.delete("bridged")


def is_unlocked(range_file: Path) -> bool:
    with range_file.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_its_ids_are_free_when_its_network_fails(sh: Sh, bridge: str, monkeypatch: pytest.MonkeyPatch) -> None:
    leased: list[Path] = []

    def leasing() -> Any:
        ids, lease = lease_range()
        leased.append(Path("/run/pycontainer/userns", str(ids.uids[0][1])))
        assert not is_unlocked(leased[-1])
        return ids, lease

    monkeypatch.setattr("pycontainer_native.userns.lease_range", leasing)
    with pytest.raises(InvalidCommandError, match="this host's own"):
        sh("true", network=at(bridge, 1), userns="auto")
    assert sh("true", network=at(bridge, 2), userns="auto").returncode == 0
    assert len(leased) == 2
    host.wait_until(lambda: all(map(is_unlocked, leased)), "a range of ids is not free")


def test_a_launcher_that_dies_while_the_network_is_made(
    own_driver: NativeDriver, busybox_rootfs: Path, bridge: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has given is the caller's, and so the next one can start the container."""
    attach = networks.attach

    def killing(*arguments: Any) -> networks.Attachment:
        launcher = own_driver._launchers.current
        assert launcher is not None
        os.kill(launcher.pid, signal.SIGKILL)
        assert launcher.ended(10)
        return attach(*arguments)

    monkeypatch.setattr(networks, "attach", killing)
    keywords: dict[str, Any] = {"rootfs": busybox_rootfs, "driver": own_driver, "network": at(bridge, 2)}
    for ids in ({"userns": "auto"}, MAPS):
        assert pycontainer.run(["ip", "link", "show", "eth0"], **keywords, **ids).returncode == 0


def test_a_launcher_that_dies_before_it_has_made_it(
    own_driver: NativeDriver, busybox_rootfs: Path, bridge: str
) -> None:
    keywords: dict[str, Any] = {"rootfs": busybox_rootfs, "driver": own_driver, "network": at(bridge, 2)}
    pycontainer.run(["true"], **keywords)
    launcher = own_driver._launchers.current
    assert launcher is not None
    os.kill(launcher.pid, signal.SIGSTOP)
    killer = threading.Timer(0.3, os.kill, (launcher.pid, signal.SIGKILL))
    killer.start()
    with pytest.raises(ContainerLostError):
        pycontainer.run(["true"], userns="auto", **keywords)
    killer.join()
    assert pycontainer.run(["true"], userns="auto", **keywords).returncode == 0


def settled(keywords: dict[str, Any]) -> tuple[Any, int]:
    """The launcher, after a start, and how many descriptors it has while nothing happens."""
    pycontainer.run(["true"], userns="auto", **keywords)
    launcher = keywords["driver"]._launchers.current
    host.wait_until(lambda: bool(host.children(launcher.pid)), "there is no spare, which takes some as well")
    return launcher, len(host.descriptors(launcher.pid))


def test_a_launcher_that_does_not_answer(own_driver: NativeDriver, busybox_rootfs: Path, bridge: str) -> None:
    """The time for the start is for its network, too; what comes later is let go of."""
    keywords: dict[str, Any] = {"rootfs": busybox_rootfs, "driver": own_driver, "network": at(bridge, 2)}
    launcher, opened = settled(keywords)
    os.kill(launcher.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(WaitTimeoutError):
            pycontainer.run(["true"], userns="auto", timeout=0.5, **keywords)
        assert time.monotonic() - began < 10
    finally:
        os.kill(launcher.pid, signal.SIGCONT)
    assert pycontainer.run(["true"], userns="auto", **keywords).returncode == 0
    host.wait_until(lambda: len(host.descriptors(launcher.pid)) <= opened, "the launcher keeps a descriptor")


def test_a_launcher_without_descriptors(own_driver: NativeDriver, busybox_rootfs: Path, bridge: str) -> None:
    """Whatever it lacks the next one for, that is the error, and nothing is left of the others."""
    keywords: dict[str, Any] = {"rootfs": busybox_rootfs, "driver": own_driver, "network": at(bridge, 2)}
    launcher, opened = settled(keywords)
    _, hard = resource.prlimit(launcher.pid, resource.RLIMIT_NOFILE)
    errors: list[tuple[str, int | None]] = []
    for count in range(1, 8):
        free = host.leave_no_descriptor(launcher.pid)
        resource.prlimit(launcher.pid, resource.RLIMIT_NOFILE, (free + count, hard))
        try:
            pycontainer.run(["true"], userns="auto", **keywords)
        except SetupError as error:
            errors.append((error.step, error.errno))
        finally:
            resource.prlimit(launcher.pid, resource.RLIMIT_NOFILE, (hard, hard))
        host.wait_until(lambda: len(host.descriptors(launcher.pid)) <= opened, "the launcher keeps a descriptor")
        assert host.ports(bridge) == set()
    labels, numbers = map(set, zip(*errors, strict=True))
    assert numbers == {errno.EMFILE}
    assert {"make a channel", "make a user namespace", "write uid_map"} & labels, labels
    assert pycontainer.run(["true"], userns="auto", **keywords).returncode == 0


@pytest.mark.parametrize(
    "where", ["launchers.Launchers.ask", "given.Making.take", "network.attach", "driver.NativeDriver._launch"]
)
def test_a_caller_that_is_killed_on_the_way(caller: Callable[..., Any], bridge: str, sh: Sh, where: str) -> None:
    """Before it has the namespaces, with them, and with a network in them: there is no process that could keep them."""
    name = where.rpartition(".")[2]
    dead = caller(f"""
from pycontainer_native import driver, given, launchers, network
owner = {where.rpartition(".")[0]}
call = owner.{name}
def killed(*arguments, **keywords):
    if {name == "_launch"} or call(*arguments, **keywords):
        os.kill(os.getpid(), signal.SIGKILL)
owner.{name} = killed
network = pycontainer.Network(bridge={bridge!r}, address="{SUBNET}.2", prefix_length=24)
pycontainer.run(["true"], rootfs=ROOTFS, network=network, uid_mappings={MAPS["uid_mappings"]},
                gid_mappings={MAPS["gid_mappings"]})
""")
    assert dead.wait(60) == -signal.SIGKILL
    assert sh("true", network=at(bridge, 2), userns="auto").returncode == 0
    host.wait_until(lambda: host.ports(bridge) == set(), "an interface is left")


@pytest.mark.parametrize("call", ["_write_map", "_open_namespaces"])
@pytest.mark.parametrize("network", [False, True])
def test_what_the_namespaces_are_made_with_ends_with_the_launcher(
    native: NativeDriver, call: str, network: bool
) -> None:
    """The process that is cloned for it, which else would wait for ever; the launcher's part is played here."""
    code = f"""
import os
from pycontainer_native import container
container.{call} = lambda *arguments: (print(arguments, flush=True), os.kill(os.getpid(), 9))
container.new_namespaces(b"0 300000 1\\n", b"0 300000 1\\n", network={network})
"""
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    pid = int("".join(filter(str.isdigit, done.stdout)))
    try:
        host.wait_until(lambda: not host.is_alive(pid), "it waits still")
    finally:
        if host.is_alive(pid):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("keywords", "field"),
    [
        ({**MAPS, "user": "1010"}, "process.user"),
        ({**MAPS, "user": "0:70000"}, "process.user"),
        ({**MAPS, "groups": ["70000"]}, "process.additional_groups"),
    ],
)
def test_an_id_that_is_not_there(sh: Sh, keywords: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidCommandError, match="does not exist in the user namespace") as caught:
        sh("true", **keywords)
    assert caught.value.problems[0][0] == field


def test_a_file_system_that_cannot_map_ids(sh: Sh) -> None:
    """It is an error, and the files are not shown as nobody's."""
    with pytest.raises(SetupError) as caught:
        sh("true", mounts=[Mount("/sys/kernel", "/mnt")], userns="auto")
    assert "/sys/kernel" in caught.value.step


@pytest.mark.parametrize(
    "maps",
    [
        [(0, 300000, 65536), (10, 500000, 10)],
        [(0, 300000, 65536), (70000, 300001, 10)],
        [(0, 300000, 2**32)],
        [(0, 300000, 0)],
        [(0, 0, 65536)],
        [(0, 300000, 1), (1, 0, 1)],
        [(1, 300000, 10)],
        [(0, 2**32, 1)],
        [(0, -1, 1)],
        [(0, 300000)],
        [(True, 300000, 1)],
        [(n, 300000 + n, 1) for n in range(341)],
        [],
    ],
    ids=lambda maps: str(maps)[:40],
)
@pytest.mark.parametrize("kind", ["uid", "gid"])
def test_bad_maps(kind: str, maps: list[tuple[int, int, int]]) -> None:
    with pytest.raises(InvalidCommandError) as caught:
        Command.of(["true"], **{**MAPS, f"{kind}_mappings": maps})  # type: ignore[arg-type]
    assert caught.value.problems[0][0] == f"{kind}_mappings"


@pytest.mark.parametrize(
    "keywords",
    [
        {"userns": "host"},
        {"userns": "auto", **MAPS},
        {"userns": "auto", "pid": "container:x"},
        {"userns": "auto", "network": "container:x"},
    ],
)
def test_what_does_not_go_together(keywords: dict[str, Any]) -> None:
    with pytest.raises(InvalidCommandError) as caught:
        Command.of(["true"], **keywords)
    assert caught.value.problems[0][0] == "userns"


def test_as_json_and_as_flags() -> None:
    from pycontainer.cli import main

    command = Command.of(["true"], **MAPS)  # type: ignore[arg-type]
    assert Command.from_json(command.to_json()) == command
    assert (
        main(["run", "--userns", "auto", "--", "sh", "-c", "test $(cut -b1-22 /proc/self/uid_map | tr -d ' ') != 00"])
        == 0
    )
    assert (
        main(
            [
                "run",
                "--uidmap",
                "0:300000:5",
                "--gidmap",
                "0:300000:6",
                "--",
                "grep",
                "-q",
                "300000 *5",
                "/proc/self/uid_map",
            ]
        )
        == 0
    )


def test_no_ids_are_given_away_while_somebody_has_them(busybox_rootfs: Path, native: NativeDriver) -> None:
    code = f"""
import pycontainer, time
box = pycontainer.Container(["sleep", "1000"], rootfs={str(busybox_rootfs)!r}, userns="auto")
print(box.pid, flush=True)
time.sleep(1000)
"""
    for _ in range(10):
        maker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert maker.stdout is not None
        with maker.stdout:
            pid = int(maker.stdout.readline())
        start = int(Path(f"/proc/{pid}/uid_map").read_text().split()[1])
        maker.kill()
        while True:  # at once, before anybody knows of its end
            ids, lease = lease_range()
            os.close(lease)
            if ids.uids[0][1] == start:
                break
        assert not host.is_alive(pid)
        maker.wait()
