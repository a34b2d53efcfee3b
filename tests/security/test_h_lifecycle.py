"""H: ids, sockets, state, and everything around a container's life."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import pycontainer
from pycontainer import PIPE, seccomp_filter
from pycontainer.command import Command
from pycontainer.errors import AlreadyExistsError, InvalidCommandError, SetupError
from pycontainer.spec import to_oci
from pycontainer_native import abi, plan
from pycontainer_native.driver import NativeDriver

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


_SERVE = "    launcher = Launcher("
_BOUND = """    reached = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    reached.bind(b"\\0pycontainer-%d" % os.getpid())
"""


@row("H4", "H5", mutants=[LauncherMutant("it listens on an abstract socket", "launcher", _SERVE, _BOUND + _SERVE)])
def test_h4_no_socket_has_a_name(driver, start):
    box = start(["sleep", "100"])
    inodes = set()
    for pid in ("self", driver._launcher.pid, box.pid, *host.children(driver._launcher.pid)):
        inodes |= {match[1] for fd in host.descriptors(pid) if (match := re.search(r"socket:\[(\d+)\]", fd))}
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    assert [line[7:] for line in lines if line[6] in inodes and line[7:]] == []


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


_FDS = LauncherMutant("a pidfd stays open", "container", "for fd in (self.pidfd, self.t", "for fd in (self.t")


@row("H8", mutants=[_FDS])
def test_h8_cve_2022_31030_many_execs_leave_nothing(driver, start, until, patience):
    box = start(["sleep", "100"])
    launcher = driver._launcher.pid

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
def test_h23_cve_2020_13401_no_raw_sockets_and_nobody_to_advertise(start, sh):
    assert not int(host.status(start(["sleep", "100"]).pid)["CapBnd"], 16) >> 13 & 1
    assert {*re.findall(r"^\d+: (\w+)", sh("ip -o link").stdout, re.M)} <= {"lo", "tunl0", "sit0", "ip6tnl0", "gre0"}


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
