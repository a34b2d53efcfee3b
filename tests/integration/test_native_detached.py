"""Detached containers: they outlive their maker, and their monitor has the truth about their end."""

from __future__ import annotations

import contextlib
import errno
import json
import marshal
import os
import re
import resource
import select
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pycontainer
from pycontainer import ContainerLostError, Feature, LogLimits, State, cli, rootfs
from pycontainer.errors import (
    AlreadyExistsError,
    ContainerError,
    ContainerNotFoundError,
    InvalidCommandError,
    NotRunningError,
    SetupError,
)
from pycontainer_native import detached
from pycontainer_native.cgroups import Layout
from pycontainer_native.driver import NativeDriver

from . import host

pytestmark = pytest.mark.root

COUNT = 200


@pytest.fixture
def root(native: NativeDriver) -> Iterator[str]:
    """Where detached containers are recorded; nothing may be left of them there."""
    with tempfile.TemporaryDirectory(prefix="pycontainer-test-", dir="/run") as root:
        yield root
        directory = f"{root}/containers"
        if os.path.isdir(directory):
            left = os.listdir(directory)
            for id in left:
                if id[0] != ".":
                    pycontainer.get(id, NativeDriver(root)).remove(force=True)
            assert left == []


@pytest.fixture
def driver(native: NativeDriver, root: str) -> Iterator[NativeDriver]:
    """A driver with a launcher of its own, and *root*."""
    driver = NativeDriver(root)
    yield driver
    driver.close()


@pytest.fixture
def detach(driver: NativeDriver, busybox_rootfs: Path) -> Iterator[Callable[..., pycontainer.Container]]:
    """Starts a detached container of busybox, which is removed at the end of the test."""
    boxes = []

    def detach(script: str, **keywords: Any) -> pycontainer.Container:
        keywords = {"rootfs": busybox_rootfs, "driver": driver, **keywords}
        boxes.append(pycontainer.Container(["sh", "-c", script], detach=True, **keywords))
        return boxes[-1]

    yield detach
    for box in boxes:
        with contextlib.suppress(ContainerNotFoundError):
            pycontainer.get(box.id, driver).remove(force=True)
        box.close()


def monitor_of(box: pycontainer.Container) -> int:
    assert box.pid is not None
    return int(host.status(box.pid)["PPid"])


def output(box: pycontainer.Container, stream: str = "stdout", **keywords: Any) -> bytes:
    return b"".join(record.data for record in box.logs(**keywords) if record.stream == stream)


def cgroups_of(pid: int) -> set[Path]:
    return {path for _, path in host.cgroup_directories(pid) if "pycontainer-" in str(path)}


def memory(pid: int) -> dict[str, int]:
    """KiB of a process: its share (Pss), and what is its alone."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    values = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB", text, re.M)}
    return {"Pss": values["Pss"], "Uss": values["Private_Clean"] + values["Private_Dirty"]}


MAKER = """
driver = pycontainer.get_driver("native", root=sys.argv[1])
for number in range(int(sys.argv[2])):
    end = f"exit {number % 251}"
    wait = "sleep 1000 & wait;" if number % 2 else ""
    script = f"trap '{end}' TERM; echo out {number}; echo err {number} >&2; {wait} {end}"
    pycontainer.Container(["sh", "-c", script], rootfs=ROOTFS, driver=driver, name=f"box{number}", detach=True).close()
print(driver._launchers.current.pid, flush=True)
signal.pause()
"""


def test_two_hundred_outlive_their_maker(caller: Any, root: str, driver: NativeDriver, until: Any) -> None:
    process = caller(f"sys.argv[1:] = [{root!r}, {COUNT}]\n{MAKER}")
    launcher = int(process.stdout.readline())
    process.kill()
    process.wait(60)
    until(lambda: not host.is_alive(launcher))
    listed = pycontainer.containers(driver)
    assert [info.id for info in listed] == [f"box{number}" for number in range(COUNT)]
    until(lambda: all(driver.info(f"box{n}").state is State.STOPPED for n in range(0, COUNT, 2)))
    boxes = [pycontainer.get(info.id, driver) for info in listed]
    alive = boxes[1::2]
    assert all(box.state is State.RUNNING for box in alive)
    monitors = [monitor_of(box) for box in alive]
    used = [memory(pid) for pid in monitors]
    print("KiB of a monitor:", {name: sorted(each[name] for each in used)[len(used) // 2] for name in ("Pss", "Uss")})
    directories = {path for box in alive for path in cgroups_of(box.pid or 0)}
    assert len({path.parent for path in directories}) >= len(alive)
    for number, box in enumerate(boxes):
        if number % 2:  # it has printed before it can be signalled
            until(lambda box=box: b"err" in output(box, "stderr"))
            box.terminate()
        assert box.wait(60) == number % 251
        assert (output(box), output(box, "stderr")) == (f"out {number}\n".encode(), f"err {number}\n".encode())
        assert pycontainer.get(box.id, driver).wait(0) == number % 251
        box.remove()
    assert pycontainer.containers(driver) == []
    assert os.listdir(f"{root}/containers") == []
    until(lambda: not any(map(host.is_alive, monitors)))
    assert not any(map(os.path.exists, [*directories, *(path.parent for path in directories)]))


@pytest.mark.parametrize(
    "keywords", [{}, {"init": True}, {"pid": "host"}, {"user": "alice"}, {"tty": True}, {"userns": "auto"}], ids=str
)
def test_the_monitor_is_killed(
    request: pytest.FixtureRequest, detach: Any, driver: NativeDriver, until: Any, keywords: Any
) -> None:
    if "userns" in keywords:
        request.getfixturevalue("mapped_files")
    marker = f"{uuid.uuid4().int % 10**9 + 1000}"
    box = detach(f"setsid sleep {marker} & echo before; sleep {marker}", **keywords)
    until(lambda: len(host.running(f"sleep\0{marker}")) == 2 and output(box))
    directories = cgroups_of(box.pid)
    os.kill(monitor_of(box), signal.SIGKILL)
    with pytest.raises(ContainerLostError, match="monitor died"):
        box.wait(60)
    assert host.running(f"sleep\0{marker}") == []
    assert not any(map(os.path.exists, directories))
    again = pycontainer.get(box.id, driver)
    for verb in (again.poll, lambda: again.wait(1)):
        with pytest.raises(ContainerLostError):
            verb()
    info = driver.info(box.id)
    assert (info.state, info.status, info.pid) == (State.STOPPED, None, None)
    assert output(again).rstrip() == b"before"
    with pytest.raises(NotRunningError):
        again.exec(["true"])
    assert pycontainer.gc(driver) != []
    with pytest.raises(ContainerNotFoundError):
        pycontainer.get(box.id, driver)


@pytest.mark.usefixtures("mapped_files")
def test_layers_in_a_user_namespace(
    detach: Any, driver: NativeDriver, busybox_rootfs: Path, tmp_path: Path, until: Any
) -> None:
    """Who restores it is root of it; what root of it writes is root's on the disk, and in memory its own."""
    upper = tmp_path / "upper"
    upper.mkdir()
    for kept in (None, upper):
        box = detach(
            "rm /etc/group; echo; sleep 1000", rootfs=rootfs.overlay(busybox_rootfs, upper=kept), userns="auto"
        )
        until(lambda box=box: output(box))
        again = pycontainer.get(box.id, NativeDriver(driver._store.root))
        done = again.exec(["sh", "-c", "touch /made; chown 0:7 /made; ls /etc"], capture_output=True, text=True)
        assert (done.stdout, done.stderr) == ("passwd\n", "")
        start = int(Path(f"/proc/{box.pid}/uid_map").read_text().split()[1])
        found = Path(f"/proc/{box.pid}/root/made").stat()
        assert (found.st_uid, found.st_gid) == (start, start + 7)
        assert again.receipt().differences(again.command) == ()
        again.remove(force=True)
    assert ((upper / "made").stat().st_uid, (upper / "made").stat().st_gid) == (0, 7)
    assert stat.S_ISCHR((upper / "etc/group").stat().st_mode)


@pytest.mark.parametrize("verb", ["gc", "start"])
def test_what_has_a_cgroup_parent_is_found_without_naming_it(
    caller: Any, driver: NativeDriver, root: str, busybox_rootfs: Path, until: Any, verb: str
) -> None:
    name = f"test-{uuid.uuid4().hex[:12]}"
    parents = [Path(place.base, name) for place in driver.layout.hierarchies if place.writable]
    for parent in parents:
        parent.mkdir()
    marker = f"{uuid.uuid4().int % 10**8 + 10**6}"
    try:
        process = caller(f"""
driver = pycontainer.get_driver("native", root={root!r})
argv = ["sh", "-c", "sleep {marker} & echo; wait"]
keywords = dict(rootfs=ROOTFS, driver=driver, cgroup_parent={name!r}, stdout=pycontainer.PIPE)
box = pycontainer.Container(argv, pid="host", **keywords)
box.stdout.readline()
print(driver._launchers.current.pid, *box.pids(), flush=True)
signal.pause()
""")
        launcher, *pids = map(int, process.stdout.readline().split())
        directories = {path for pid in pids for path in cgroups_of(pid)}
        assert len(pids) == 2
        assert any(name in str(path) for path in directories)
        os.kill(launcher, signal.SIGSTOP)  # or it could clean up when its caller has died
        for pid in (process.pid, launcher):  # the caller first: it would sweep
            os.kill(pid, signal.SIGKILL)
        process.wait(60)
        until(lambda: not host.is_alive(launcher))
        assert [path for path in directories if path.exists()]
        if verb == "gc":
            pycontainer.gc(driver)
        else:
            pycontainer.run(["true"], rootfs=busybox_rootfs, driver=driver)
        assert host.running(marker) == []
        assert not [path for path in directories if path.parent.exists()]
        assert os.listdir(f"{root}/parents") == []
    finally:
        for parent in parents:
            parent.rmdir()


def test_what_a_cgroup_parent_holds_of_the_living_is_left_alone(driver: NativeDriver, busybox_rootfs: Path) -> None:
    name = f"test-{uuid.uuid4().hex[:12]}"
    parents = [Path(place.base, name) for place in driver.layout.hierarchies if place.writable]
    for parent in parents:
        parent.mkdir()
    try:
        keywords: dict[str, Any] = {"rootfs": busybox_rootfs, "cgroup_parent": name, "driver": driver}
        with pycontainer.Container(["sleep", "1000"], **keywords) as box:
            other = NativeDriver(driver._store.root)
            assert not any(name in line for line in pycontainer.gc(other))
            pycontainer.run(["true"], rootfs=busybox_rootfs, driver=other)
            other.close()
            assert box.poll() is None
            assert len(os.listdir(f"{driver._store.root}/parents")) == 1
        driver.close()
        assert os.listdir(f"{driver._store.root}/parents") == []
    finally:
        for parent in parents:
            parent.rmdir()


def test_what_is_on_record_outlives_the_monitor(detach: Any, driver: NativeDriver, root: str) -> None:
    box = detach("exit 7")
    box.wait(60)
    record = Path(root, "containers", box.id, "exit.json")
    record.write_text(record.read_text().replace('"finished": true', '"finished": false'))  # killed right after
    assert pycontainer.get(box.id, driver).wait(10) == 7
    assert pycontainer.gc(driver) == []
    assert pycontainer.get(box.id, driver).wait(10) == 7


def test_the_state_is_for_root_alone(detach: Any, root: str) -> None:
    box = detach("echo; sleep 1000")
    directory = Path(root, "containers", box.id)
    assert stat.S_IMODE(directory.stat().st_mode) == stat.S_IMODE(directory.parent.stat().st_mode) == 0o700
    for path in directory.iterdir():
        if not path.is_socket():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


@pytest.mark.parametrize("place", ["below", "itself", "link"])
def test_a_root_that_others_can_write_to(root: str, place: str, busybox_rootfs: Path) -> None:
    directory = Path(root, "open")
    directory.mkdir()
    directory.chmod(0o1777)
    if place == "link":
        Path(root, "link").symlink_to(directory)
    driver = NativeDriver(str(Path(root, "link", "x") if place == "link" else directory / place.strip("itself")))
    with pytest.raises(ContainerError, match=r"others can write to .* \(remedy: name a directory that is yours"):
        pycontainer.Container(["true"], rootfs=busybox_rootfs, driver=driver, detach=True)
    driver.close()
    assert list(directory.iterdir()) == []
    seen = driver.probe().features[Feature.RESTORE]
    assert (seen.usable, "others can write" in seen.cause) == (False, True)
    assert NativeDriver(root).probe().features[Feature.RESTORE].usable


def test_a_root_where_others_can_have_put_something(detach: Any, driver: NativeDriver, root: str) -> None:
    box = detach("sleep 1000")
    os.chmod(root, 0o1777)
    verbs: list[Callable[[], object]] = [
        lambda: pycontainer.get(box.id, driver),
        lambda: pycontainer.containers(driver),
        lambda: pycontainer.gc(driver),
        lambda: driver.delete(box.id),
        lambda: NativeDriver(root).info(box.id),
    ]
    for verb in verbs:
        with pytest.raises(ContainerError, match="others can write"):
            verb()
    os.chmod(root, 0o700)
    assert box.poll() is None


@pytest.mark.parametrize("change", ["directory", "base"])
def test_no_other_cgroup_is_killed(
    detach: Any, driver: NativeDriver, root: str, tmp_path: Path, until: Any, change: str
) -> None:
    box = detach("sleep 1000")
    monitor = monitor_of(box)
    box.kill()
    box.wait(60)
    until(lambda: not host.is_alive(monitor))  # until then it has the directory locked, and the record would be its own
    directory = Path(root, "containers", box.id)
    config = json.loads((directory / "config.json").read_text())
    planted = dict(config)
    victim = tmp_path / ("pycontainer-" + "0" * 16)
    victim.mkdir()
    if change == "base":
        planted["groups"] = [[str(tmp_path), 1, ["pids"]]]
        planted["directory"] = f"{victim.name}/1"
    else:
        planted["directory"] = f"../{victim.name}/1"
    (directory / "config.json").write_text(json.dumps(planted))
    (directory / "exit.json").rename(directory / "kept")
    if change == "base":
        assert pycontainer.gc(driver) == []
        with pytest.raises(ContainerError, match="cannot be removed"):
            driver.delete(box.id)
        (directory / "config.json").write_text(json.dumps(config))
        (directory / "kept").rename(directory / "exit.json")
    else:  # a name that nobody has written: what is left of it is not known, and nothing else is touched
        assert len(pycontainer.gc(driver)) == 1
    assert victim.is_dir()


@pytest.mark.parametrize("verb", ["gc", "delete"])
def test_the_monitor_is_killed_where_no_cgroups_are(
    detach: Any, driver: NativeDriver, until: Any, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setattr(driver._launchers, "_layout", Layout())
    code = "import ctypes, time; ctypes.CDLL(None).prctl(1, 0); print(1, flush=True); time.sleep(1000)"
    box = detach(f"exec {sys.executable} -I -c '{code}'", rootfs=None)  # it is not to die with its parent
    until(lambda: output(box))
    pid = box.pid
    os.kill(monitor_of(box), signal.SIGKILL)
    until(lambda: not driver._known(box.id).alive)
    assert host.is_alive(pid)
    if verb == "gc":
        assert pycontainer.gc(driver) != []
    else:
        driver.delete(box.id)
    assert not host.is_alive(pid)


def test_a_pid_that_is_somebody_elses_by_now(detach: Any, driver: NativeDriver, root: str, caller: Any) -> None:
    bystander = caller("print(flush=True); signal.pause()")
    bystander.stdout.readline()  # its import of pycontainer takes some ticks: it was begun before
    box = detach("exit 0")
    box.wait(60)
    directory = Path(root, "containers", box.id)
    start = json.loads((directory / "start.json").read_text())
    assert isinstance(start["began"], int)
    (directory / "start.json").write_text(json.dumps({**start, "pid": bystander.pid}))
    (directory / "exit.json").unlink()
    assert pycontainer.gc(driver) != []
    assert bystander.poll() is None


def test_a_root_that_cannot_be_made(busybox_rootfs: Path, native: NativeDriver) -> None:
    driver = NativeDriver("/proc/nowhere")
    with pytest.raises(ContainerError, match="cannot make /proc/nowhere"):
        pycontainer.Container(["true"], rootfs=busybox_rootfs, driver=driver, detach=True)
    assert pycontainer.containers(driver) == []
    driver.close()


def test_a_long_name_and_its_socket(detach: Any, driver: NativeDriver) -> None:
    box = detach("sleep 1000", name="n" * 128)
    assert pycontainer.get(box.id, driver).exec(["echo", "in"], capture_output=True).stdout == b"in\n"


@pytest.mark.parametrize("name", ["../x", ".new-0", "a/b", "", ".", "x" * 129])
def test_a_name_that_is_no_name(driver: NativeDriver, name: str) -> None:
    with pytest.raises(ContainerNotFoundError):
        pycontainer.get(name, driver)
    with pytest.raises(ContainerNotFoundError):
        driver.delete(name)


def test_of_many_makers_of_one_name_one_wins(caller: Any, root: str, driver: NativeDriver) -> None:
    code = f"""
driver = pycontainer.get_driver("native", root={root!r})
sys.stdin.readline()
try:
    pycontainer.Container(["sleep", "1000"], rootfs=ROOTFS, driver=driver, name="one", detach=True)
    print("made")
except pycontainer.AlreadyExistsError:
    print("refused")
"""
    callers = [caller(code) for _ in range(4)]
    for each in callers:
        each.stdin.write("go\n")
        each.stdin.flush()
    assert sorted(each.communicate(timeout=60)[0] for each in callers) == ["made\n", *["refused\n"] * 3]
    pycontainer.get("one", driver).remove(force=True)


def test_attached_and_detached_do_not_share_a_name(detach: Any, start: Any, driver: NativeDriver) -> None:
    detach("sleep 1000", name="same")
    with pytest.raises(AlreadyExistsError):
        start(["true"], driver=driver, name="same")
    box = start(["sleep", "1000"], driver=driver, name="other")
    with pytest.raises(AlreadyExistsError):
        detach("true", name="other")
    assert box.poll() is None


def test_verbs_of_another_process(detach: Any, output_of: Any, root: str, driver: NativeDriver) -> None:
    box = detach("trap 'exit 4' TERM; sleep 1000 & wait", memory="64m", cpus=0.5)
    said = output_of(f"""
driver = pycontainer.get_driver("native", root={root!r})
box = pycontainer.get({box.id!r}, driver)
done = box.exec(["sh", "-c", "tty; stty size; id -u"], tty=True, stdout=pycontainer.PIPE, text=True, user="alice")
print(done.stdout.split())
print(box.stats().memory.limit)
box.update(memory="32m")
print(box.stats().memory.limit, driver.info(box.id).state.value)
box.pause()
print(driver.info(box.id).state.value)
box.unpause()
print(box.stop())
""")
    assert said.split("\n")[1:-1] == ["67108864", "33554432 running", "paused", "4"]
    assert "/dev/pts/" in said
    assert "'1000'" in said
    assert box.wait(60) == 4


def test_fifty_execs_at_once(detach: Any) -> None:
    box = detach("sleep 1000")
    found: dict[int, bytes] = {}

    def run(number: int) -> None:
        found[number] = box.exec(["echo", str(number)], capture_output=True).stdout

    threads = [threading.Thread(target=run, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {number: f"{number}\n".encode() for number in range(50)}


def test_every_byte_is_in_the_log(detach: Any, tmp_path: Path) -> None:
    data = os.urandom(700_000)
    (tmp_path / "data").write_bytes(data)
    box = detach("cat /data/data; cat /data/data >&2", mounts=[pycontainer.Mount(str(tmp_path), "/data")])
    box.wait(60)
    assert output(box) == output(box, "stderr") == data


@contextlib.contextmanager
def without_descriptors(pid: int) -> Iterator[None]:
    """While inside, that process can open nothing."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def test_a_log_that_cannot_be_rotated(detach: Any, root: str, until: Any) -> None:
    gate = Path(root, "gate")
    gate.mkdir()
    script = "read x < /gate/go; for i in $(seq 3000); do echo line $i; done; echo > /gate/done; read x < /gate/go"
    for name in ("go", "done"):
        os.mkfifo(gate / name)
    limits = LogLimits(size=300, files=2)
    box = detach(f"{script}; echo last", mounts=[pycontainer.Mount(str(gate), "/gate")], log_limits=limits)
    monitor = monitor_of(box)
    with without_descriptors(monitor):
        (gate / "go").write_text("go\n")
        assert (gate / "done").read_text() == "\n"  # nobody has stopped reading what it prints
    (gate / "go").write_text("go\n")
    assert box.wait(60) == 0
    lines = output(box).splitlines()
    assert lines[-1] == b"last"
    logs = list(Path(root, "containers", box.id).glob("log*"))
    assert all(0 < log.stat().st_size <= 300 for log in logs)


def test_a_log_at_the_limit_of_a_file(detach: Any, root: str, until: Any) -> None:
    gate = Path(root, "gate")
    gate.mkdir()
    os.mkfifo(gate / "go")
    script = "cat /proc/self/status; read x < /gate/go; echo lost; exit 3"
    box = detach(script, mounts=[pycontainer.Mount(str(gate), "/gate")])
    monitor = monitor_of(box)
    until(lambda: b"nonvoluntary_ctxt_switches" in output(box))  # its last line
    before = resource.prlimit(monitor, resource.RLIMIT_FSIZE)
    resource.prlimit(monitor, resource.RLIMIT_FSIZE, (0, before[1]))  # as of a maker that has a limit of its own
    (gate / "go").write_text("go\n")
    assert box.wait(60) == 3
    said = output(box)
    assert b"lost" not in said
    masks = {name: int(value, 16) for name, value in re.findall(rb"^(Sig\w+):\s+(\w+)$", said, re.M)}
    assert masks[b"SigIgn"] == masks[b"SigBlk"] == 0


def test_a_monitor_that_can_open_nothing_lets_others_wait(detach: Any, driver: NativeDriver) -> None:
    box = detach("sleep 1000")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    monitor = monitor_of(box)
    with ours:
        with without_descriptors(monitor), theirs:
            detached.ask_monitor(driver._known(box.id).path, marshal.dumps((None, "attach")), [theirs.fileno()])
            before = switches(monitor)
            until_slept = time.monotonic() + 60
            while switches(monitor) < before + 3:  # it sleeps between its tries
                assert time.monotonic() < until_slept
                time.sleep(0.005)
            assert select.select([ours], [], [], 0)[0] == []
        ours.settimeout(60)
        assert marshal.loads(ours.recv(4096))[0] == "started"


def switches(pid: int) -> int:
    """How often it has gone to sleep."""
    return int(host.status(pid)["voluntary_ctxt_switches"])


def test_the_monitor_serves_nobody_else(detach: Any, root: str, output_of: Any) -> None:
    box = detach("sleep 1000")
    directory = Path(root, "containers", box.id)
    for path in (Path(root), directory.parent, directory):
        path.chmod(0o711)
    (directory / "socket").chmod(0o777)
    code = f"""
import marshal, socket
if sys.stdin.readline() == "other\\n":
    os.setuid(65534)
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
connection.connect({str(directory / "socket")!r})
try:
    socket.send_fds(connection, [marshal.dumps((None, "attach"))], [theirs.fileno()])
except ConnectionError:
    pass
theirs.close()
ours.settimeout(60)
try:
    print(bool(ours.recv(4096)))
except ConnectionError:
    print(False)
"""
    said = [output_of(code.replace("sys.stdin.readline()", repr(who + "\n"))) for who in ("other", "root")]
    assert said == ["False\n", "True\n"]


@pytest.mark.parametrize("files", [1, 2, 3])
def test_the_log_is_limited_on_disk(detach: Any, root: str, files: int) -> None:
    limits = LogLimits(size=20_000, files=files)
    box = detach("for i in $(seq 3000); do echo line $i; done", log_limits=limits)
    box.wait(60)
    logs = list(Path(root, "containers", box.id).glob("log*"))
    assert len(logs) == files
    assert all(0 < log.stat().st_size <= 20_000 for log in logs)
    lines = output(box).splitlines()
    assert lines == [b"line %d" % number for number in range(3001 - len(lines), 3001)]


def test_following_in_another_process_while_files_are_renamed(detach: Any, caller: Any, root: str) -> None:
    script = "read x < /gate/fifo; for i in $(seq 20); do echo $i; usleep 2000; done; exit 3"
    gate = Path(root, "gate")
    gate.mkdir()
    os.mkfifo(gate / "fifo")
    box = detach(script, mounts=[pycontainer.Mount(str(gate), "/gate")], log_limits=LogLimits(size=300, files=20))
    follower = caller(f"""
box = pycontainer.get({box.id!r}, pycontainer.get_driver("native", root={root!r}))
print("ready", flush=True)
print(b"".join(record.data for record in box.logs(follow=True)).decode().split(), box.wait())
""")
    assert follower.stdout.readline() == "ready\n"
    with open(gate / "fifo", "w") as file:
        file.write("go\n")
    assert follower.communicate(timeout=60)[0] == f"{[str(number) for number in range(1, 21)]} 3\n"


def test_a_pipe_that_was_handed_out_does_not_keep_it(detach: Any, driver: NativeDriver) -> None:
    box = detach("sleep 1000")
    outside = os.open(f"/proc/{box.pid}/fd/1", os.O_WRONLY)  # as somebody has it who got it by SCM_RIGHTS
    try:
        os.write(outside, b"from outside\n")
        box.kill()
        assert box.wait(60) == -9
        assert output(box) == b"from outside\n"
    finally:
        os.close(outside)


def test_a_start_that_nobody_finished(driver: NativeDriver, detach: Any, root: str) -> None:
    detach("exit 0").wait(60)  # the directory is there
    for name in ("half", ".new-0123456789abcdef", ".old-0123456789abcdef"):
        directory = Path(root, "containers", name)
        directory.mkdir(mode=0o700)
        (directory / "log").touch()
    assert [info.id for info in pycontainer.containers(driver)] != ["half"]
    with pytest.raises(ContainerNotFoundError):
        pycontainer.get("half", driver)
    assert detach("exit 5", name="half").wait(60) == 5
    assert len(pycontainer.gc(driver)) == 2
    assert not [name for name in os.listdir(f"{root}/containers") if name[0] == "."]


def test_a_stopped_monitor_is_no_reason_to_remove_it(detach: Any, driver: NativeDriver) -> None:
    box = detach("sleep 1000")
    monitor = monitor_of(box)
    os.kill(monitor, signal.SIGSTOP)
    try:
        assert pycontainer.gc(driver) == []
        assert driver.info(box.id).is_running
        with pytest.raises(ContainerError, match="running"):
            driver.delete(box.id)
    finally:
        os.kill(monitor, signal.SIGCONT)
    assert box.poll() is None


def test_the_deadline_of_a_start(driver: NativeDriver, busybox_rootfs: Path, until: Any, root: str) -> None:
    command = pycontainer.Command.of(["sleep", "1000"], rootfs=busybox_rootfs, name="late")
    with pytest.raises(pycontainer.WaitTimeoutError):
        driver.start_detached(command, LogLimits(), deadline=time.monotonic() - 1)
    assert pycontainer.containers(driver) == []
    assert os.listdir(f"{root}/containers") == []


def test_the_deadline_of_a_start_whose_launcher_does_not_answer(
    driver: NativeDriver, busybox_rootfs: Path, detach: Any, root: str
) -> None:
    pycontainer.run(["true"], rootfs=busybox_rootfs, driver=driver)
    assert driver._launchers.current is not None
    launcher = driver._launchers.current.pid
    command = pycontainer.Command.of(["sleep", "1000"], rootfs=busybox_rootfs, name="late")
    os.kill(launcher, signal.SIGSTOP)
    began = time.monotonic()
    try:
        with pytest.raises(pycontainer.WaitTimeoutError):
            driver.start_detached(command, LogLimits(), deadline=time.monotonic() + 0.2)
        assert 0.2 <= time.monotonic() - began < 0.2 + detached.LATE + 3
        assert pycontainer.containers(driver) == []
    finally:
        os.kill(launcher, signal.SIGCONT)
    assert pycontainer.run(["true"], rootfs=busybox_rootfs, driver=driver).returncode == 0  # it has seen the request
    assert detach("exit 3", name="late").wait(60) == 3
    assert os.listdir(f"{root}/containers") == ["late"]


def test_a_launcher_that_dies_instead_of_forking_a_monitor(
    driver: NativeDriver, busybox_rootfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pycontainer.run(["true"], rootfs=busybox_rootfs, driver=driver)
    ask = driver._launchers.ask

    def ask_and_kill(request: bytes, fds: list[int]) -> Any:
        assert driver._launchers.current is not None
        os.kill(driver._launchers.current.pid, signal.SIGSTOP)
        launcher = ask(request, fds)
        os.kill(launcher.pid, signal.SIGKILL)
        return launcher

    monkeypatch.setattr(driver._launchers, "ask", ask_and_kill)
    command = pycontainer.Command.of(["true"], rootfs=busybox_rootfs, name="unlucky")
    with pytest.raises(SetupError) as caught:
        driver.start_detached(command, LogLimits())
    assert (caught.value.step, caught.value.errno) == ("fork a monitor", errno.EPIPE)


def spoil(path: Path, how: str) -> None:
    """Make a record of it that this version cannot read."""
    if how == "a later version's":
        content = json.loads(path.read_text())
        content["command"]["of_tomorrow"] = 1
        path.write_text(json.dumps(content))
    else:
        path.write_text(
            {"no JSON": "{", "something else": "[]", "nothing": "", "no text": "\udcff"}[how], errors="surrogateescape"
        )


@pytest.mark.parametrize("how", ["a later version's", "no JSON", "something else", "nothing", "no text"])
@pytest.mark.parametrize("ended", [True, False])
def test_a_record_that_cannot_be_read(
    detach: Any, driver: NativeDriver, root: str, how: str, ended: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = detach("sleep 1000"), detach("exit 5" if ended else "sleep 1000")
    if ended:
        bad.wait(60)
    bad.close()
    path = Path(root, "containers", bad.id, "config.json")
    spoil(path, how)
    found = {info.id: info for info in pycontainer.containers(driver)}
    assert found.keys() == {good.id, bad.id}
    info = found[bad.id]
    assert info.state is (State.STOPPED if ended else State.RUNNING)
    assert info == driver.info(bad.id)
    assert info.command is None
    assert str(path) in info.problem
    assert info.pid == (None if ended else bad.pid)
    assert found[good.id].problem == ""
    arguments = ["ps", "-a", "--driver", "native", "--native-root", root]
    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    assert [line.split()[:2] for line in out.splitlines()[1:] if bad.id in line] == [[bad.id, '"?"']]
    assert str(path) in err
    assert cli.main(["inspect", *arguments[2:], bad.id]) == 0
    assert json.loads(capsys.readouterr().out)[0]["problem"] == info.problem
    assert detach("exit 0").wait(60) == 0  # which looks at all of them
    pycontainer.gc(driver)
    again = pycontainer.get(bad.id, driver)
    assert again.args == ["(unknown)"]
    if ended:
        assert again.wait(60) == 5
    else:
        with pytest.raises(ContainerError, match="not known"):
            again.exec(["true"])  # as the container is confined is not known either
        with pytest.raises(ContainerError):
            again.remove()
    assert cli.main(["rm", "-f", *arguments[2:], bad.id]) == 0
    assert [info.id for info in pycontainer.containers(driver) if info.problem] == []
    assert not path.parent.exists()
    if not ended:
        assert not host.is_alive(bad.pid)


@pytest.mark.parametrize("name", ["start", "exit", "error"])
def test_another_file_of_a_record_that_cannot_be_read(detach: Any, driver: NativeDriver, root: str, name: str) -> None:
    box = detach("exit 5")
    box.wait(60)
    Path(root, "containers", box.id, f"{name}.json").write_text("{")
    [info] = pycontainer.containers(driver)
    assert (info.state, info.command, f"{name}.json" in info.problem) == (State.STOPPED, box.command, True)
    assert pycontainer.gc(driver) == []  # nor is it taken for one that was lost
    pycontainer.get(box.id, driver).remove()
    assert pycontainer.containers(driver) == []


def test_the_monitor_holds_nothing_of_its_maker(detach: Any, driver: NativeDriver) -> None:
    box = detach("sleep 1000")
    monitor = monitor_of(box)
    mine = {name.split(" -> ")[1] for name in host.descriptors() if "socket:" in name or "pipe:" in name}
    theirs = {name.split(" -> ")[1] for name in host.descriptors(monitor) if "socket:" in name or "pipe:" in name}
    assert len(theirs & mine) == 0
    assert os.getsid(monitor) == monitor
    assert Path(f"/proc/{monitor}/environ").read_bytes() == b""
    assert len(host.descriptors(monitor)) < 30


def test_a_stranger_comes_before_the_makers_request(
    driver: NativeDriver, busybox_rootfs: Path, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def send_late(*arguments: Any) -> None:
        monkeypatch.undo()
        with theirs:
            detached.ask_monitor(f"{root}/containers/box", marshal.dumps((None, "attach")), [theirs.fileno()])
        select.select([ours], [], [], 0.5)  # a monitor that does not wait for its maker would answer, and end
        detached.send_request(*arguments)

    command = pycontainer.Command.of(["sleep", "1000"], rootfs=busybox_rootfs, name="box")
    monkeypatch.setattr(detached, "send_request", send_late)
    with ours:
        process = driver.start_detached(command, LogLimits())
        try:
            assert process.poll() is None
            ours.settimeout(60)
            assert marshal.loads(ours.recv(4096))[0] in ("created", "started")
        finally:
            process.close()
            pycontainer.get("box", driver).remove(force=True)


def test_an_id_is_free_again_while_its_former_object_lives(detach: Any, driver: NativeDriver, root: str) -> None:
    former = detach("true", name="again")
    list(former.logs(follow=True))  # so nobody has asked the object for its end
    former.remove()
    second = detach("true", name="again")
    list(second.logs(follow=True))
    pycontainer.get("again", NativeDriver(root)).remove()
    third = detach("exit 3", name="again")
    assert third.wait(60) == 3
    third.remove()
    assert pycontainer.run(["true"], rootfs=third.command.rootfs, driver=driver, name="again").returncode == 0


def test_an_attached_container_has_no_detached_ones_id(detach: Any, driver: NativeDriver) -> None:
    box = detach("sleep 1000", name="taken")
    with pytest.raises(AlreadyExistsError):
        pycontainer.Container(["true"], rootfs=box.command.rootfs, driver=driver, name="taken")


@pytest.mark.parametrize("state", ["running", "ended"])
def test_a_remover_that_is_late_leaves_the_next_of_that_name_alone(
    detach: Any, driver: NativeDriver, root: str, state: str
) -> None:
    box = detach("true", name="name")
    box.wait(60)
    late = driver._known("name")
    pycontainer.get("name", NativeDriver(root)).remove()
    script = "sleep 1000" if state == "running" else "exit 3"
    new = detach(script, name="name")
    if state == "ended":
        new.wait(60)
    assert driver._store.remove(late.id, late.config) is None
    assert pycontainer.get("name", driver).pid == new.pid


def test_of_many_removers_one_removes_it(detach: Any, root: str) -> None:
    said: list[str] = []

    def remove(driver: NativeDriver) -> None:
        try:
            driver.delete("name")
        except ContainerNotFoundError:
            said.append("not found")
        except ContainerError as error:
            said.append(str(error))
        else:
            said.append("removed")

    drivers = [NativeDriver(root) for _ in range(4)]
    for _ in range(15):
        detach("true", name="name").wait(60)
        threads = [threading.Thread(target=remove, args=(driver,)) for driver in drivers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sorted(said) == [*["not found"] * 3, "removed"]
        said.clear()


def test_a_collector_that_is_at_work_is_nobody_who_runs(
    detach: Any, driver: NativeDriver, root: str, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = detach("sleep 1000")
    monitor = monitor_of(box)
    os.kill(monitor, signal.SIGKILL)
    until(lambda: not host.is_alive(monitor))
    other, collecting = NativeDriver(root), threading.Event()
    kill_rest = NativeDriver._kill_rest

    def slow(record: Any) -> bool:
        collecting.set()
        time.sleep(0.5)
        return kill_rest(other, record)

    monkeypatch.setattr(other, "_kill_rest", slow)
    collector = threading.Thread(target=lambda: other._store.collect(other._kill_rest, lost=True))
    collector.start()
    collecting.wait(60)
    try:
        with pytest.raises(ContainerNotFoundError):
            driver.delete(box.id)
    finally:
        collector.join(60)


def test_one_that_is_about_to_end_is_removed_by_force(detach: Any, driver: NativeDriver) -> None:
    box = detach("sleep 1000")

    def too_late(id: str) -> None:
        NativeDriver.terminate(driver, id)
        raise ContainerLostError(id, "it is about to be")

    driver.terminate = too_late  # type: ignore[method-assign]
    box.remove(force=True)
    assert pycontainer.containers(driver) == []


def test_a_log_that_is_removed_before_the_first_look(detach: Any, driver: NativeDriver) -> None:
    box = detach("echo out")
    for follow in (False, True):
        records = driver.logs(box.id, follow=follow)
        box.remove(force=True)
        with pytest.raises(ContainerNotFoundError):
            next(records)
        box = detach("echo out")


def test_a_log_that_is_removed_while_it_is_read(detach: Any, driver: NativeDriver) -> None:
    box = detach("echo one; echo two; sleep 1000")
    records = driver.logs(box.id, follow=True)
    assert next(records).data == b"one\n"
    box.remove(force=True)
    assert [record.data for record in records] == [b"two\n"]


@pytest.fixture
def tiny(root: str) -> Iterator[Path]:
    """A state root on a file system of 256 KiB, in a mount that ends with the test."""
    place = Path(root, "tiny")
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "tiny", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.fixture
def tiny_driver(native: NativeDriver, tiny: Path) -> Iterator[NativeDriver]:
    driver = NativeDriver(str(tiny))
    yield driver
    for info in driver.containers():
        pycontainer.get(info.id, driver).remove(force=True)
    driver.close()


def fill(place: Path) -> None:
    with contextlib.suppress(OSError), open(place / "filler", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_the_end_has_its_room_where_the_log_fills_the_disk(tiny_driver: NativeDriver, busybox_rootfs: Path) -> None:
    script = "i=0; while [ $i -lt 30000 ]; do echo line $i of many; i=$((i+1)); done; exit 5"
    keywords: dict[str, Any] = {"rootfs": busybox_rootfs, "driver": tiny_driver, "detach": True}
    box = pycontainer.Container(["sh", "-c", script], log_limits=LogLimits(size="8m"), **keywords)
    assert box.wait(60) == 5
    assert "record" not in box.status.reason
    [info] = tiny_driver.containers()
    assert info.status == box.status
    assert sum(len(record.data) for record in box.logs()) > 50_000


def test_a_disk_that_is_full_already(tiny_driver: NativeDriver, tiny: Path, busybox_rootfs: Path) -> None:
    keywords: dict[str, Any] = {"rootfs": busybox_rootfs, "driver": tiny_driver, "detach": True}
    box = pycontainer.Container(["sh", "-c", "sleep 1; exit 6"], **keywords)
    fill(tiny)
    with pytest.raises(SetupError) as caught:
        pycontainer.Container(["true"], name="full", **keywords)
    assert (caught.value.step, caught.value.errno) == ("record the container", errno.ENOSPC)
    assert box.wait(60) == 6
    assert [info.status for info in tiny_driver.containers()] == [box.status]
    os.truncate(tiny / "filler", os.path.getsize(tiny / "filler") - 2 * 4096)  # for config.json, and one more
    with pytest.raises(SetupError, match="record the start") as caught:
        pycontainer.Container(["true"], name="full", **keywords)
    assert caught.value.errno == errno.ENOSPC
    assert len(tiny_driver.containers()) == 1


def test_without_descriptors_for_a_monitor(driver: NativeDriver, busybox_rootfs: Path, monkeypatch: Any) -> None:
    def pipe2(flags: int) -> tuple[int, int]:
        raise OSError(errno.EMFILE, "too many")

    monkeypatch.setattr(os, "pipe2", pipe2)
    with pytest.raises(SetupError) as caught:
        pycontainer.Container(["true"], rootfs=busybox_rootfs, driver=driver, detach=True)
    assert (caught.value.step, caught.value.errno) == ("make a pipe for the log", errno.EMFILE)


def test_exec_in_one_that_has_just_ended(detach: Any, driver: NativeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The monitor has taken the connection, and ends before it reads what it is asked."""
    box = detach("sleep 1000")
    monitor = monitor_of(box)
    [process] = [process for process in driver._processes.values() if process.id == box.id]
    ask = type(process).ask

    def late(self: Any, data: bytes, fds: list[int]) -> None:
        os.kill(monitor, signal.SIGSTOP)
        ask(self, data, fds)
        os.kill(self.pid, signal.SIGKILL)
        os.kill(monitor, signal.SIGKILL)

    monkeypatch.setattr(type(process), "ask", late)
    with pytest.raises(NotRunningError):
        driver.exec(box.id, box.command.process, pycontainer.driver.Stdio(0, 1, 2))


def test_while_its_poststop_hooks_run_it_has_ended(
    detach: Any, driver: NativeDriver, tmp_path: Path, until: Any
) -> None:
    script = f"while ! test -e {tmp_path}/go; do sleep 0.01; done"
    hooks = pycontainer.Hooks(poststop=[pycontainer.Hook("/bin/sh", ["sh", "-c", script], env={"PATH": "/bin"})])
    box = detach("exit 3", hooks=hooks)
    until(lambda: driver._known(box.id).exit)
    [info] = pycontainer.containers(driver)
    assert (info.state, info.pid, info.status.exit_code) == (State.STOPPED, None, 3)
    with pytest.raises(ContainerError, match="poststop"):
        driver.delete(box.id)
    assert box.poll() is None
    (tmp_path / "go").touch()
    assert box.wait(60) == 3


def test_what_is_written_while_somebody_begins_to_follow_is_not_missed(detach: Any, until: Any) -> None:
    box = detach("read line; echo begun; exec sleep 100", tty=True)
    [monitor] = {int(host.status(box.pid)["PPid"])}
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(next(iter(box.logs(follow=True))).data))
    os.kill(monitor, signal.SIGSTOP)
    try:
        until(lambda: host.status(monitor)["State"][0] == "T")
        terminal = os.open(f"/proc/{box.pid}/root/dev/pts/0", os.O_RDWR | os.O_NOCTTY)
        os.write(terminal, b"begun\n")  # and so there is output before anybody has asked for it
        os.close(terminal)
        reader.start()
        time.sleep(0.2)  # it has looked at the log, which is empty, unless the machine is busy: then this is no test
    finally:
        os.kill(monitor, signal.SIGCONT)
    reader.join(60)
    assert found == [b"begun\r\n"]


def test_a_launcher_without_room_for_a_monitor_refuses_it(
    driver: NativeDriver, detach: Callable[..., pycontainer.Container], busybox_rootfs: Path, until: Callable[..., None]
) -> None:
    pycontainer.run(["true"], rootfs=busybox_rootfs, driver=driver)
    assert driver._launchers.current is not None
    launcher, wanted, failed = driver._launchers.current.pid, ("fork a monitor", errno.EMFILE), set()
    _, hard = resource.prlimit(launcher, resource.RLIMIT_NOFILE)
    free = host.leave_no_descriptor(launcher)
    # More than once: a spare that comes or goes meanwhile changes how many there are.
    for limit in [*range(free, free + 30)] * 5:
        resource.prlimit(launcher, resource.RLIMIT_NOFILE, (limit, hard))
        try:
            detach("true").wait(60)
        except SetupError as error:
            failed.add((error.step, error.errno))
            if wanted in failed:
                break
    assert wanted in failed
    until(lambda: len(host.children(launcher)) <= 1)
    resource.prlimit(launcher, resource.RLIMIT_NOFILE, (hard, hard))
    assert pycontainer.run(["true"], rootfs=busybox_rootfs, driver=driver).returncode == 0
    assert driver._launchers.current.pid == launcher


@pytest.mark.parametrize("killed", ["payload", "monitor"])
def test_its_upper_directory_is_its_own_as_long_as_it_runs(
    killed: str, root: str, driver: NativeDriver, native: NativeDriver, busybox_rootfs: Path, caller: Any
) -> None:
    upper = Path(root, "upper")  # on a tmpfs, which can be one wherever the tests are
    upper.mkdir()
    layers = rootfs.overlay(busybox_rootfs, upper=upper)
    maker = caller(
        "import pycontainer.rootfs\n"
        f"driver = pycontainer.get_driver('native', root={root!r})\n"
        f"layers = pycontainer.rootfs.overlay(ROOTFS, upper={str(upper)!r})\n"
        "pycontainer.Container(['sleep', '1000'], rootfs=layers, driver=driver, name='first', detach=True).close()\n"
    )
    assert maker.wait(30) == 0
    with pycontainer.get("first", driver) as box:
        pid, monitor = box.pid or 0, monitor_of(box)
        for keywords in ({"driver": native}, {"driver": driver, "detach": True}):
            with pytest.raises(InvalidCommandError, match="is in use") as caught:
                pycontainer.Container(["true"], rootfs=layers, **keywords)
            assert caught.value.field == "rootfs.upper"
        os.kill(pid if killed == "payload" else monitor, signal.SIGKILL)
        pycontainer.run(["touch", "/kept"], rootfs=layers, driver=native, check=True)
        assert not host.is_alive(pid)
        assert (upper / "kept").exists()
        box.remove()


def test_stats_and_other_limits_on_the_command_line(detach: Any, root: str, capsys: pytest.CaptureFixture[str]) -> None:
    box = detach("sleep 1000 & wait", memory="64m", pids_limit=20)
    host.wait_until(lambda: len(box.pids()) == 2, "two processes")
    flags = ["--driver", "native", "--native-root", root]

    def stats() -> Any:
        assert cli.main(["stats", *flags, box.id]) == 0
        return json.loads(capsys.readouterr().out)[0]

    before = stats()
    assert before["id"] == box.id
    assert before["pids"] == {"current": 2, "limit": 20}
    assert before["memory"]["limit"] == 64 << 20
    assert 0 < before["memory"]["usage"] <= before["memory"]["peak"] < 64 << 20
    assert before["cpu"]["usage"] > 0
    assert before["network"]["lo"]["rx_packets"] == 0
    limits = ["-m", "96m", "--pids-limit", "30"]
    assert cli.main(["update", *flags, *limits, box.id]) == 0
    assert capsys.readouterr().out == f"{box.id}\n"
    after = stats()
    assert (after["memory"]["limit"], after["pids"]["limit"]) == (96 << 20, 30)
    assert cli.main(["update", *flags, "-m", "2m", "--pids-limit", "40", "--cpuset-cpus", "999", box.id]) == 1
    assert "999 is not among the caller's own" in capsys.readouterr().err
    refused = stats()
    assert (refused["memory"]["limit"], refused["pids"]["limit"]) == (96 << 20, 30)
