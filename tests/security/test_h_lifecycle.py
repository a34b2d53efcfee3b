"""H: ids, sockets, state, and everything around a container's life."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import marshal
import os
import re
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest.mock import ANY

import pytest

import pycontainer
from pycontainer import PIPE, Network, seccomp_filter
from pycontainer.command import Command
from pycontainer.errors import (
    AlreadyExistsError,
    ContainerError,
    ContainerNotFoundError,
    InvalidCommandError,
    SetupError,
)
from pycontainer.service import ServiceGoneError
from pycontainer.spec import to_oci
from pycontainer_native import abi, network, plan
from pycontainer_native.detached import ask_monitor
from pycontainer_native.driver import NativeDriver
from pycontainer_native.state import Claim

from ..integration import host
from .catalogue import row
from .mutants import LauncherMutant, Patch, PlanMutant, Several, left_out
from .stages import in_child

anything = Patch("anything is taken", "pycontainer._fields.refuse", lambda *_: None)


@row("H1", mutants=[anything])
def test_h1_an_id_is_a_name_and_nothing_else(busybox_rootfs):
    for name in (
        *(
            "..",
            ".",
            "a/b",
            "/a",
            "-rf",
            "--root=/",
            "a\n",
            "\na",
            "",
            "a\0b",
            "a" * 129,
            "a" * 300,
            "ä",
            "a b",
            ".a",
            "a;b",
        ),
        *("$(id)", "a\ud800", "%s", "a:b", "*", "~"),
    ):
        try:
            with pytest.raises(InvalidCommandError):
                Command.of(["true"], rootfs=busybox_rootfs, name=name)
        except (TypeError, ValueError) as error:
            pytest.fail(f"{name!r}: {error!r}")


@row("H2", "H3", mutants=[Patch("whoever made it", "pycontainer.seccomp_filter._is_roots", lambda *_: True)])
def test_h2_cve_2024_25621_directories_of_its_own_are_its_own(monkeypatch, tmp_path):
    # What is kept on disk: compiled filters. Somebody else's would be nobody's filter.
    profile = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]}
    for trap in (None, "writable", "foreign", "link"):
        run = tmp_path / str(trap)
        cache = run.joinpath(*seccomp_filter.CACHE)
        cache.parent.mkdir(parents=True)
        if trap == "link":
            cache.symlink_to(tmp_path)
        elif trap is not None:
            cache.mkdir(mode=0o700)
            if trap == "writable":
                cache.chmod(0o777)
            else:
                os.chown(cache, 65534, 65534)
        monkeypatch.setattr(seccomp_filter, "RUN", str(run))
        before = os.umask(0)
        try:
            assert seccomp_filter.compile_filter(profile)
        finally:
            os.umask(before)
        if trap is None:
            assert stat.S_IMODE(cache.stat().st_mode) == 0o700
            assert [stat.S_IMODE(path.stat().st_mode) for path in cache.iterdir()] == [0o600]
        elif trap != "link":
            assert [*cache.iterdir()] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["None", "foreign", "link", "writable"]


def _anybodys(self):
    """Whoever made it."""
    return os.path.lexists(self._directory)


def _open_to_all(directory, name, text):
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=directory)
    with open(fd, "w") as file:
        file.write(text)


@contextlib.contextmanager
def _following():
    with open(network._LOCK, "w") as file:
        yield file


@row(
    "H2",
    "H3",
    mutants=[
        Patch("whoever made it", "pycontainer_native.state.Store._is_there", _anybodys),
        Patch("files as open as the umask lets them be", "pycontainer_native.state._write", _open_to_all),
        Patch("a lock's link is followed", "pycontainer_native.network._lock", _following),
    ],
)
def test_h2_cve_2024_25621_the_state_of_containers_is_roots_alone(
    keeper, detach, state_root, hostile, monkeypatch, busybox_rootfs
):
    before = os.umask(0)
    try:
        box = detach(["sh", "-c", "echo out; sleep 100"])
        box.exec(["true"])
    finally:
        os.umask(before)
    for path in (state_root / "containers", *state_root.rglob("containers/**/*")):
        at = path.lstat()
        assert (at.st_uid, at.st_gid) == (0, 0), path
        if not stat.S_ISSOCK(at.st_mode):
            assert (stat.S_ISDIR(at.st_mode), stat.S_IMODE(at.st_mode)) in ((True, 0o700), (False, 0o600)), path

    def refused(root, problem="others can write"):
        driver = NativeDriver(str(root))
        try:
            for verb in (
                lambda: pycontainer.Container(["true"], rootfs=busybox_rootfs, driver=driver, detach=True, name="x"),
                lambda: pycontainer.containers(driver),
                lambda: pycontainer.get("x", driver),
                lambda: pycontainer.gc(driver),
            ):
                with pytest.raises(ContainerError, match=problem):
                    verb()
                if os.path.isdir(root):  # the start has made nothing, and where nothing is, nothing is looked at
                    Path(root, "containers").mkdir(exist_ok=True)
        finally:
            driver.close()

    traps = state_root / "traps"
    traps.mkdir()
    for number, (owner, mode) in enumerate(((65534, 0o700), (0, 0o777), (0, 0o770), (0, 0o1777))):
        for below in ("", "/containers"):
            path = Path(f"{traps}/{number}{below and '-'}{below}")
            path.mkdir(parents=True, mode=0o700)
            os.chown(path, owner, owner)
            path.chmod(mode)
            refused(path.parent if below else path)
    (traps / "link").mkdir(mode=0o700)
    (traps / "open/directory").mkdir(parents=True, mode=0o700)
    (traps / "open").chmod(0o1777)
    (traps / "link/containers").symlink_to(traps / "open/directory")
    refused(traps / "link")
    assert os.listdir(traps / "open/directory") == []
    # A link in the place of a container is nobody's record, and nothing goes where it leads.
    (state_root / "containers/planted").symlink_to(hostile.canary)
    try:
        with pytest.raises(ContainerError):
            detach(["true"], name="planted")
        with pytest.raises(ContainerNotFoundError):
            pycontainer.get("planted", keeper)
        assert [info.id for info in pycontainer.containers(keeper)] == [box.id]
        pycontainer.gc(keeper)
    finally:
        (state_root / "containers/planted").unlink()
    (state_root / "bridges").symlink_to(hostile.canary / "file")
    monkeypatch.setattr(network, "_LOCK", str(state_root / "bridges"))
    with pytest.raises(SetupError, match="lock the bridges"), network._lock():
        pass


_SERVE = "    launcher = Launcher("
_BOUND = """    reached = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    reached.bind(b"\\0pycontainer-%d" % os.getpid())
"""


@row("H5", mutants=[LauncherMutant("it listens on an abstract socket", "launcher", _SERVE, _BOUND + _SERVE)])
def test_h5_cve_2020_15257_no_socket_has_a_name(driver, start):
    box = start(["sleep", "100"])
    inodes = set()
    for pid in ("self", driver._launchers.current.pid, box.pid, *host.children(driver._launchers.current.pid)):
        inodes |= {match[1] for fd in host.descriptors(pid) if (match := re.search(r"socket:\[(\d+)\]", fd))}
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    assert [line[7:] for line in lines if line[6] in inodes and line[7:]] == []


def _lockable_by_all(self):
    path = os.path.join(self._directory, f".new-{os.urandom(8).hex()}")
    os.mkdir(path)
    os.chmod(path, 0o755)
    for parent in (self._directory, self.root):
        os.chmod(parent, 0o755)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return Claim(fd, path)


def _become_nobody():
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)


def _ask(path):
    """What the monitor says to whoever wants to be told of its container; None: nothing."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs, contextlib.suppress(ServiceGoneError):
            ask_monitor(str(path), marshal.dumps((None, "attach")), [theirs.fileno()])
        ours.settimeout(30)
        return ours.recv(4096) or None


@row(
    "H4",
    mutants=[Patch("its directory is open", "pycontainer_native.state.Store._locked_directory", _lockable_by_all)],
)
def test_h4_the_monitors_socket_is_in_a_directory_of_roots(detach, state_root):
    path = state_root / "containers" / detach(["sleep", "100"]).id
    (path / "socket").chmod(0o777)  # its own mode would hold nobody off

    def body():
        assert _ask(path) is not None
        _become_nobody()
        with pytest.raises(PermissionError):
            _ask(path)

    in_child(body)


_PEER = "if int.from_bytes(peer[4:8], sys.byteorder) not in (0, os.geteuid()):"


@row("H4", mutants=[LauncherMutant("whoever connects", "monitor", _PEER, "if False:")])
def test_h4_the_monitor_answers_its_user_alone(detach, state_root):
    path = state_root / "containers" / detach(["sleep", "100"]).id

    def body():
        _become_nobody()
        assert _ask(path) is None

    for directory in (path, path.parent, state_root):
        directory.chmod(0o755)
    (path / "socket").chmod(0o777)
    assert _ask(path) is not None
    in_child(body)
    assert _ask(path) is not None  # the monitor is none the worse for it


@row(
    "H6",
    mutants=[
        Several(
            "nobody looks",
            Patch("", "pycontainer_native.driver.NativeDriver._register", lambda *_: None),
            Patch("", "pycontainer.lifecycle.Lifecycle._claim", lambda *_: None),
        )
    ],
)
def test_h6_an_id_has_one_container(start, driver):
    winners, losers, others = [], [], []
    go = threading.Barrier(16)

    def claim():
        go.wait()
        try:
            winners.append(start(["sleep", "100"], name="one-of-many"))
        except AlreadyExistsError as error:
            losers.append(error)
        except BaseException as error:
            others.append(error)

    threads = [threading.Thread(target=claim) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    try:
        assert (len(winners), len(losers), others) == (1, 15, [])
        assert winners[0].poll() is None
        assert winners[0].exec(["true"]).returncode == 0
    finally:
        for box in winners:  # of several with one name a name ends only one
            signal.pidfd_send_signal(box._life.process.pidfd, signal.SIGKILL)


def _by_pid(self, signal):
    with contextlib.suppress(ProcessLookupError):
        os.kill(self.pid, signal)


@row("H7", mutants=[Patch("by its number", "pycontainer_native.process.NativeProcess.send_signal", _by_pid)])
def test_h7_a_signal_reaches_the_container_only(driver, start, until):
    victim = subprocess.Popen(["sleep", "100"])
    box = start(["sleep", "100"])
    process = driver._running(box.id)
    real, process.pid = process.pid, victim.pid  # as if its number were another's by now
    try:
        box.kill()
        until(lambda: not host.is_alive(real) or not host.is_alive(victim.pid))
        assert host.is_alive(victim.pid)
        box.wait(30)
        box.kill()
        box.send_signal(signal.SIGTERM)
        assert host.is_alive(victim.pid)
    finally:
        process.pid = real
        victim.kill()
        victim.wait()


def _record_of(state_root, box):
    return state_root / "containers" / box.id / "start.json"


def _by_record(self, signal):
    with contextlib.suppress(ProcessLookupError):
        os.kill(json.loads(Path(self._path, "start.json").read_text())["pid"], signal)


@pytest.mark.root  # where others can write, as below /tmp, nobody keeps a record
@row("H7", mutants=[Patch("as on record", "pycontainer_native.detached.DetachedProcess.send_signal", _by_record)])
def test_h7_a_number_on_record_is_not_believed(detach, keeper, state_root, until):
    victim = subprocess.Popen(["sleep", "100"])
    box = detach(["sleep", "100"])
    try:
        real, record = box.pid, _record_of(state_root, box)
        start = json.loads(record.read_text())
        record.write_text(json.dumps({**start, "pid": victim.pid}))
        other = NativeDriver(str(state_root))  # another process's
        with contextlib.suppress(ContainerError):  # to refuse is as good
            found = pycontainer.get(box.id, other)
            for verb in (lambda: found.send_signal(signal.SIGTERM), found.kill, lambda: found.stop(1)):
                with contextlib.suppress(ContainerError):
                    verb()
        until(lambda: not host.is_alive(real) or victim.poll() is not None)
        other.close()
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


@pytest.mark.root  # where others can write, as below /tmp, nobody keeps a record
@row("H7", mutants=[Patch("whoever has its number", "pycontainer_native.monitor.began", lambda _: ANY)])
@pytest.mark.parametrize("verb", ["gc", "delete"])
def test_h7_what_a_dead_monitor_has_left_is_what_began_then(detach, keeper, state_root, until, verb):
    victim = subprocess.Popen(["sleep", "100"])
    time.sleep(0.05)  # another tick
    box = detach(["sleep", "100"])
    try:
        real, record = box.pid, _record_of(state_root, box)
        monitor = int(host.status(real)["PPid"])
        start = json.loads(record.read_text())
        assert type(start["began"]) is int
        record.write_text(json.dumps({**start, "pid": victim.pid}))
        os.kill(monitor, signal.SIGKILL)
        until(lambda: not host.is_alive(monitor))
        until(lambda: not keeper._store.find(box.id).alive)
        other = NativeDriver(str(state_root))
        assert pycontainer.gc(other) if verb == "gc" else other.delete(box.id) is None
        other.close()
        assert victim.poll() is None
        assert not host.is_alive(real)
        assert not record.exists()
    finally:
        victim.kill()
        victim.wait()


_FDS = LauncherMutant("a pidfd stays open", "container", "for fd in (self.pidfd, self.t", "for fd in (self.t")


@row("H8", mutants=[_FDS])
def test_h8_cve_2022_31030_many_execs_leave_nothing(driver, start, until, patience):
    box = start(["sleep", "100"])
    launcher = driver._launchers.current.pid

    def held():
        gc.collect()
        return (
            len(host.descriptors()),
            len(host.descriptors(launcher)) - 2 * len(host.children(launcher)),
            threading.active_count(),
        )

    assert box.exec(["true"]).returncode == 0
    before = held()
    for _ in range(30):
        done = box.exec(["head", "-c", "100000", "/dev/zero"], stdout=PIPE, output_limit=1000)
        assert (len(done.stdout), done.truncated) == (1000, True)
    until(lambda: held() <= before, seconds=patience)


@row("H9", mutants=[anything])
def test_h9_json_is_checked(busybox_rootfs):
    good = json.loads(Command.of(["true"], rootfs=busybox_rootfs).to_json())
    process = good["process"]
    for bad in (
        *(
            {**good, "more": 1},
            {**good, "id": "../x"},
            {**good, "rootfs": 5},
            {**good, "process": []},
            {**good, "mounts": {}},
        ),
        *(
            {**good, "process": {**process, "user": -1}},
            {**good, "process": {**process, "arguments": "x"}},
            [],
            None,
            5,
            "x",
        ),
        *({key: value for key, value in good.items() if key != "process"}, {**good, "resources": {"memory": "lots"}}),
    ):
        try:
            with pytest.raises(InvalidCommandError):
                Command.from_json(json.dumps(bad))
        except (TypeError, KeyError, AttributeError) as error:
            pytest.fail(f"{bad}: {error!r}")
    for text in ("", "{", '{"id": 1e999}', json.dumps(good)[:-10], '{"__reduce__": ["os.system", "x"]}', "[" * 100000):
        with pytest.raises((InvalidCommandError, ValueError, RecursionError)):
            Command.from_json(text)


def _naive(directory, path, name):
    try:
        with open(f"{path}/{name}.json") as file:
            return json.load(file)
    except FileNotFoundError:
        return None


def _following_links(name, *, dir_fd=None):
    return os.open(name, os.O_RDONLY | os.O_NONBLOCK, dir_fd=dir_fd)


TAMPERED = {
    "truncated": lambda path: path.write_text(path.read_text()[:-5]),
    "types": lambda path: path.write_text('{"command": 5, "pid": "1", "exit_code": [], "created": {}, "groups": 0}'),
    "list": lambda path: path.write_text("[]"),
    "link": lambda path: (path.rename(f"{path}.kept"), path.symlink_to(f"{path}.kept")),
    "huge": lambda path: os.truncate(path, 1 << 40),
    "nested": lambda path: path.write_text("[" * 1_000_000),
    "fifo": lambda path: (path.unlink(), os.mkfifo(path)),
    "endless": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of what a mutant raises half-way
@pytest.mark.root
@row(
    "H9",
    mutants=[
        Patch("it is read as it is", "pycontainer_native.state._load", _naive),
        Patch("fields may be anything", "pycontainer_native.state.fields", lambda path, data, checks: data),
        Patch("links are followed", "pycontainer.records.open_regular", _following_links),
    ],
)
def test_h9_the_state_of_a_container_is_checked(detach, keeper, state_root):
    fine, ended = detach(["sleep", "100"]), detach(["true"])
    ended.wait(30)
    directory = state_root / "containers" / ended.id
    kept = {name: (directory / name).read_bytes() for name in ("config.json", "start.json", "exit.json")}
    keeper._processes.clear()  # as in another process
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for trap, tamper in TAMPERED.items():
        for name in kept:
            path = directory / name
            tamper(path)
            began = time.monotonic()
            try:
                problems = {info.id: info.problem for info in pycontainer.containers(keeper)}
                assert f"{path} is damaged" in problems[ended.id]
                assert problems[fine.id] == ""
                with contextlib.suppress(ContainerError):  # which it may have, and nothing else
                    pycontainer.get(ended.id, keeper).poll()
                pycontainer.gc(keeper)
                assert directory.is_dir()
                assert pycontainer.get(fine.id, keeper).exec(["true"]).returncode == 0
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OSError) as error:
                pytest.fail(f"{trap} {name}: {error!r}")
            finally:
                directory.mkdir(exist_ok=True)  # a mutant may have removed it
                for other in directory.glob(f"{name}*"):
                    other.unlink()
                for other, content in kept.items():
                    (directory / other).write_bytes(content)
            assert time.monotonic() - began < 20, trap
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10
    assert pycontainer.get(ended.id, keeper).wait(10) == 0


@row("H11", "H12", mutants=[Patch("it is not looked at", "pycontainer_native.namespaces.check", lambda *_: None)])
def test_h11_cve_2017_5985_a_namespace_is_one_of_its_kind(start, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "fifo")
    other = start(["sleep", "100"])
    for path in (
        *(f"{tmp_path}/{name}" for name in ("fifo", "file", "link", "missing", "")),
        *(f"/proc/{other.pid}/ns/{name}" for name in ("uts", "ipc", "mnt", "pid", "user")),
        *("/proc/self/ns/net", "/proc/1/ns/net", "/dev/zero", "/proc/self/mem"),
    ):
        began = time.monotonic()
        try:
            with pytest.raises(InvalidCommandError):
                start(["true"], network=f"ns:{path}")
        except SetupError as error:
            pytest.fail(f"{path}: {error}")
        assert time.monotonic() - began < 20  # it did not wait for the fifo
    assert start(["true"], network=f"ns:/proc/{other.pid}/ns/net").wait(30) == 0


_program = plan._program


def _by_a_shell(process):
    return _program({**process, "args": ["/bin/sh", "-c", " ".join(process["args"])]})


@row("H13", mutants=[Patch("by a shell", "pycontainer_native.plan._program", _by_a_shell)])
def test_h13_an_argv_is_no_command_line(driver, hostile):
    arguments = [
        ";touch /made",
        "$(touch /made)",
        "`id`",
        "--root=/x",
        "a b",
        "*",
        "|",
        "&&",
        "'",
        '"',
        "\\",
        "\n",
        "%s",
    ]
    done = pycontainer.run(["printf", "%s,", *arguments], rootfs=hostile, driver=driver, capture_output=True, text=True)
    assert done.stdout == "".join(f"{argument}," for argument in arguments)
    assert not (hostile.path / "made").exists()


_posix_spawn = os.posix_spawn


def _with_a_pid_file(path, argv, env, **rest):
    with open(os.path.join(os.environ["TMPDIR"], "pycontainer.pid"), "w") as file:
        file.write("1")
    return _posix_spawn(path, argv, env, **rest)


@row("H16", mutants=[Patch("a file of a known name", "os.posix_spawn", _with_a_pid_file)])
def test_h16_nothing_is_written_where_others_may_look(native, busybox_rootfs, tmp_path):
    (tmp_path / "tmp").mkdir()

    def body():
        os.environ["TMPDIR"] = str(tmp_path / "tmp")
        written = []

        def hook(event, arguments):
            if (
                event == "open"
                and isinstance(arguments[0], str)
                and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            ):
                written.append(arguments[0])

        sys.addaudithook(hook)
        driver = NativeDriver()
        try:
            for keywords in ({}, {"rootfs": None}, {"tty": True, "stdout": PIPE}, {"memory": "64m"}):
                box = pycontainer.Container(["true"], **{"rootfs": busybox_rootfs, "driver": driver, **keywords})
                box.communicate(timeout=60)
                box.close()
        finally:
            driver.close()
        assert [*(tmp_path / "tmp").iterdir()] == []
        assert [path for path in written if path.startswith(("/tmp", "/var/tmp", "/dev/shm"))] == []

    in_child(body)


def _believing(command, **keywords):
    spec = to_oci(command, **keywords)
    try:
        with open(os.path.join(command.rootfs, "config.json")) as file:
            for name, value in json.load(file)["process"]["capabilities"].items():
                spec["process"]["capabilities"][name] = value
    except (OSError, TypeError):
        pass
    return spec


@row("H21", "H26", mutants=[Patch("its config.json is believed", "pycontainer_native.driver.to_oci", _believing)])
def test_h21_cve_2014_5277_an_image_chooses_nothing(start, hostile):
    everything = ["CAP_SYS_ADMIN", "CAP_SYS_PTRACE"]
    config = {
        "process": {
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), everything),
            "noNewPrivileges": False,
        },
        "config": {"Labels": {"privileged": "true"}, "User": "0", "Entrypoint": ["/bin/false"]},
    }
    for name in ("config.json", "manifest.json", ".dockerenv", "etc/pycontainer.json", "metadata.yaml"):
        hostile.file(name, json.dumps(config))
    box = start(["sleep", "100"], rootfs=hostile)
    plain = start(["sleep", "100"])
    for name in ("CapBnd", "CapEff", "CapPrm", "Seccomp", "NoNewPrivs", "Uid"):
        assert host.status(box.pid)[name] == host.status(plain.pid)[name]
    hostile.link("config.json", hostile.canary / "file")
    hostile.link("metadata.yaml", "/dev/zero")
    assert start(["true"], rootfs=hostile).wait(30) == 0


@row("H23", mutants=[PlanMutant("CAP_NET_RAW stays", left_out("drop CAP_NET_RAW from the bounding set"))])
def test_h23_cve_2020_13401_no_raw_sockets_and_no_interface(start, sh):
    assert not int(host.status(start(["sleep", "100"]).pid)["CapBnd"], 16) >> 13 & 1
    assert {*re.findall(r"^\d+: (\w+)", sh("ip -o link").stdout, re.M)} <= {"lo", "tunl0", "sit0", "ip6tnl0", "gre0"}


@pytest.mark.root
@row(
    "H23",
    mutants=[
        Patch("they are taken", "pycontainer_native.network._ignore_advertisements", lambda: None),
        Patch("too late, or elsewhere", "pycontainer_native.network._ACCEPT_RA", "/dev/null"),
    ],
)
def test_h23_cve_2020_13401_router_advertisements_are_ignored(sh, user_namespaces):
    accept = "/proc/sys/net/ipv6/conf/eth0/accept_ra"
    before = Path("/proc/sys/net/ipv6/conf/default/accept_ra").read_text()
    bridge = f"pyctra{os.getpid() % 100000}"
    own = {"bridge": bridge, "create_bridge": True, "address6": "fd00:7777::2", "prefix_length6": 64}
    for userns in user_namespaces:
        for address in ({}, {"gateway6": "fd00:7777::1"}):
            assert sh(f"cat {accept}", network=Network(**own, **address), userns=userns).stdout == "0\n"
        # Somebody who says so has them.
        asked = {"net.ipv6.conf.eth0.accept_ra": "2"}
        assert sh(f"cat {accept}", network=Network(**own), sysctls=asked, userns=userns).stdout == "2\n"
    assert Path("/proc/sys/net/ipv6/conf/default/accept_ra").read_text() == before  # the host's are the host's


_no_network = {**abi.NAMESPACES, "network": 0}


@row("H24", mutants=[Patch("the host's network", "pycontainer_native.abi.NAMESPACES", _no_network)])
def test_h24_no_abstract_socket_of_the_host_is_there(sh):
    name = f"catalogue-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"\0{name}")
        listening.listen()
        done = sh("cat /proc/net/unix; echo on")
    assert name not in done.stdout
    assert len(done.stdout.splitlines()) == 2


_no_pids = {**abi.NAMESPACES, "pid": 0}


@row("H25", mutants=[Patch("the host's pids", "pycontainer_native.abi.NAMESPACES", _no_pids)])
def test_h25_a_signal_to_everybody_reaches_nobody_outside(python):
    # Signal 0 asks whether there is somebody, and harms nobody.
    code = "import os\ntry: os.kill(-1, 0); print('somebody')\nexcept ProcessLookupError: print('nobody')"
    assert python(code).stdout == "nobody\n"
