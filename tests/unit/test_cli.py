"""The command line: what the flags mean, what is passed on, and what it exits with."""

from __future__ import annotations

import errno
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pycontainer import cli, plugins
from pycontainer.command import DEFAULT_PATH, Command
from pycontainer.device import Device
from pycontainer.driver import ExecutionDriver, Feature, FeatureProbe, Probe
from pycontainer.errors import (
    AlreadyExistsError,
    ContainerError,
    ContainerLostError,
    DriverNotFoundError,
    InvalidCommandError,
    SetupError,
    UnsupportedError,
    WaitTimeoutError,
    add_note,
)
from pycontainer.mount import Mount
from pycontainer.network import Network
from pycontainer.process import Rlimit
from pycontainer.rootfs import Overlay

from .doubles import SpawnDriver


def command(*flags: str, argv: Sequence[str] = ("true",)) -> Command:
    return cli.command_of(cli._parser().parse_args(["run", *flags, *argv]))


def refusal(flags: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which main() refuses."""
    try:
        code = cli.main(["run", *flags])
    except SystemExit as exit:
        code = exit.code  # type: ignore[assignment]
    out, err = capsys.readouterr()
    assert code == 125
    assert out == ""
    assert err.startswith("pycontainer: ")
    assert err.count("\n") == 1
    return err


# -- flags


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        ("-t", "process.tty", True),
        ("-it", "process.tty", True),
        ("-u 1000:2000", "process.user", "1000:2000"),
        ("--user alice", "process.user", "alice"),
        ("--group-add 5 --group-add 6", "process.additional_groups", ("5", "6")),
        ("-w /srv", "process.working_dir", "/srv"),
        ("--workdir=/srv", "process.working_dir", "/srv"),
        ("--privileged", "process.privileged", True),
        ("--security-opt no-new-privileges", "process.no_new_privileges", True),
        ("--security-opt no-new-privileges=false", "process.no_new_privileges", False),
        ("--security-opt=no-new-privileges:true", "process.no_new_privileges", True),
        ("--security-opt seccomp=unconfined", "seccomp", "unconfined"),
        ("--security-opt seccomp:unconfined --security-opt no-new-privileges=false", "seccomp", "unconfined"),
        (
            "--security-opt seccomp=unconfined --security-opt no-new-privileges=false",
            "process.no_new_privileges",
            False,
        ),
        ("--cap-drop ALL --cap-add NET_RAW --cap-add kill", "process.capabilities", ("CAP_KILL", "CAP_NET_RAW")),
        ("--ulimit nofile=64:128", "process.rlimits", (Rlimit("nofile", 64, 128),)),
        (
            "--ulimit nofile=64 --ulimit core=unlimited",
            "process.rlimits",
            (Rlimit("nofile", 64, 64), Rlimit("core", -1, -1)),
        ),
        ("--ulimit nproc=9:-1", "process.rlimits", (Rlimit("nproc", 9, -1),)),
        ("--name box", "id", "box"),
        ("-h box", "hostname", "box"),
        ("--hostname box", "hostname", "box"),
        ("--rootfs /usr", "rootfs", "/usr"),
        ("--rootfs /usr --rootfs /etc --overlay", "rootfs", Overlay(("/usr", "/etc"))),
        ("--rootfs /usr --overlay-upper /tmp", "rootfs", Overlay(("/usr",), upper="/tmp")),
        ("--rootfs-propagation slave", "rootfs_propagation", "slave"),
        ("", "rootfs", None),
        ("--read-only", "read_only", True),
        ("--init", "init", True),
        ("--rm", "init", False),
        ("--pid host", "pid", "host"),
        ("--ipc=host", "ipc", "host"),
        ("--uts host", "uts", "host"),
        ("--net host", "network.mode", "host"),
        ("--network none", "network.mode", "none"),
        ("--network pasta", "network.mode", "pasta"),
        ("--network container:box", "network.container", "box"),
        ("--network bridge:br1 --ip 10.0.0.2/24", "network.address", "10.0.0.2"),
        ("--network name=br1,ip=10.0.0.2/24,create", "network.create_bridge", True),
        ("--ip6 fd00::2/64 --mac-address 02:00:00:00:00:01", "network.mac", "02:00:00:00:00:01"),
        ("--ip6 fd00::2/64", "network.prefix_length6", 64),
        ("--network bridge:a --network bridge:b", "networks", (Network(bridge="a"), Network(bridge="b"))),
        ("--dns 192.0.2.53 --dns 192.0.2.54", "dns", ("192.0.2.53", "192.0.2.54")),
        ("--dns-search example.org", "dns_search", ("example.org",)),
        ("--add-host db:192.0.2.7 --add-host six=fd00::7", "extra_hosts", {"db": "192.0.2.7", "six": "fd00::7"}),
        ("", "network", None),
        ("-m 64m", "resources.memory", 64 << 20),
        ("--memory 1g --memory-swap -1", "resources.memory_swap", -1),
        ("--cpus 0.5", "resources.cpu_quota", 50000),
        ("-c 512", "resources.cpu_shares", 512),
        ("--cpu-quota 2000 --cpu-period 4000", "resources.cpu_period", 4000),
        ("--cpuset-cpus 0-1 --cpuset-mems 0", "resources.cpuset_cpus", "0-1"),
        ("--blkio-weight 500", "resources.blkio_weight", 500),
        ("--blkio-weight-device /dev/a:50", "resources.blkio_weight_device", {"/dev/a": 50}),
        ("--device-read-bps /dev/a:1m", "resources.device_read_bps", {"/dev/a": 1 << 20}),
        (
            "--device-write-bps /dev/a:9 --device-write-bps /dev/b:7",
            "resources.device_write_bps",
            {"/dev/a": 9, "/dev/b": 7},
        ),
        ("--device-read-iops /dev/a:5", "resources.device_read_iops", {"/dev/a": 5}),
        ("--device-write-iops /dev/a:-1", "resources.device_write_iops", {"/dev/a": -1}),
        ("--hugepage-limit 2MB=64m", "resources.hugepage_limits", {"2MB": 64 << 20}),
        ("--pids-limit 10", "resources.pids_limit", 10),
        ("--pids-limit -1", "resources.pids_limit", -1),
        (
            "--sysctl net.ipv4.ip_forward=1 --sysctl kernel.sem=1",
            "sysctls",
            {"net.ipv4.ip_forward": "1", "kernel.sem": "1"},
        ),
        ("--oom-score-adj -5", "oom_score_adj", -5),
        ("--cpu-affinity 0-1", "cpu_affinity", "0-1"),
        ("--security-opt apparmor=docker-default", "apparmor_profile", "docker-default"),
        ("--security-opt apparmor:unconfined", "apparmor_profile", "unconfined"),
        ("--security-opt label=u:r:container_t:s0:c1,c2", "selinux_label", "u:r:container_t:s0:c1,c2"),
        ("--security-opt mount-label=u:r:t", "mount_label", "u:r:t"),
        ("--security-opt label=disable", "selinux_label", None),
        ("--cgroup-parent /jobs", "cgroup_parent", "/jobs"),
        ("--annotation a=b=c --annotation d=", "annotations", {"a": "b=c", "d": ""}),
        ("--device /dev/null:/dev/x:r", "devices", (Device("/dev/null", "/dev/x", access="r"),)),
        ("-v /a:/b:ro", "mounts", (Mount("/a", "/b", read_only=True),)),
        ("--mount type=bind,source=/a,target=/b", "mounts", (Mount("/a", "/b"),)),
        (
            "-v /a:/b --tmpfs /c:size=64k,mode=1777 -v /d:/e",
            "mounts",
            (
                Mount("/a", "/b"),
                Mount.tmpfs("/c", size=65536, mode=0o1777, options=("nosuid", "nodev", "noexec")),
                Mount("/d", "/e"),
            ),
        ),
        ("--tmpfs /c", "mounts", (Mount.tmpfs("/c", options=("nosuid", "nodev", "noexec")),)),
        (
            "--tmpfs /c:ro,exec,noatime,nosuid",
            "mounts",
            (Mount.tmpfs("/c", read_only=True, options=("nosuid", "nodev", "noatime")),),
        ),
    ],
)
def test_a_flag_is_a_field(flags: str, field: str, value: object) -> None:
    found: Any = command(*flags.split())
    for name in field.split("."):
        found = getattr(found, name)
    assert found == value


def test_relative_paths_are_the_callers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rootfs").mkdir()
    monkeypatch.chdir(tmp_path)
    made = command("--rootfs", "rootfs", "-v", "./data:/data")
    assert made.rootfs == str(tmp_path / "rootfs")
    assert made.mounts[0].source == str(tmp_path / "data")


@pytest.mark.parametrize(
    ("words", "argv"),
    [
        (["sh", "-c", "-i"], ["sh", "-c", "-i"]),
        (["--", "sh", "--", "-i"], ["sh", "--", "-i"]),
        (["--", "--help"], ["--help"]),
        (["-i", "env", "-i", "-m", "5"], ["env", "-i", "-m", "5"]),
        (["ls", "--", "a b", ""], ["ls", "--", "a b", ""]),
        (["echo", "--memory=12q"], ["echo", "--memory=12q"]),
    ],
)
def test_flags_end_where_the_command_begins(words: list[str], argv: list[str]) -> None:
    assert list(command(argv=words).process.argv) == argv


def test_variables_add_to_what_there_would_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURS", "from here")
    monkeypatch.setenv("OTHER", "not asked for")
    monkeypatch.delenv("ABSENT", raising=False)
    file = tmp_path / "variables"
    file.write_text("# a comment\n\nA=file\nB= b =c \nOURS\nABSENT\n")
    made = command("-e", "A=flag", "--env-file", str(file), "-eC=", "--env", "ABSENT", "-u", "0")
    assert made.process.env == {
        "PATH": DEFAULT_PATH,
        "HOME": "/root",
        "A": "flag",
        "B": " b =c ",
        "OURS": "from here",
        "C": "",
    }
    assert command("-e", "ABSENT").process.env is None
    assert command("-t", "-e", "PATH=/bin").process.env == {"PATH": "/bin", "HOME": "/root", "TERM": "xterm"}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("", "no COMMAND"),
        ("--", "no COMMAND"),
        ("-m 12q true", "resources.memory"),
        ("--cpus many true", "--cpus"),
        ("--cpus nan true", "cpus"),
        ("--ulimit nofile true", "TYPE=SOFT"),
        ("--ulimit nofile=x true", "nofile=x"),
        ("--ulimit bogus=1 true", "bogus"),
        ("-v name:/data true", "named volume"),
        ("--mount type=volume,target=/x true", "volume"),
        ("--tmpfs /x:colour=red true", "colour=red"),
        ("--rootfs /usr --rootfs /bin true", "--overlay"),
        ("--overlay true", "--rootfs"),
        ("--rootfs /usr --overlay-upper /no/such/directory true", "rootfs.upper"),
        ("--tmpfs /x:mode=abc true", "mode=abc"),
        ("--security-opt systempaths=unconfined true", "seccomp=unconfined"),
        ("--security-opt seccomp= true", "seccomp=unconfined"),
        ("--security-opt seccomp=/nonexistent true", "seccomp: cannot read /nonexistent"),
        ("--security-opt no-new-privileges=maybe true", "no-new-privileges"),
        ("--annotation a true", "NAME=VALUE"),
        ("--timeout 0 true", "--timeout"),
        ("--timeout inf true", "--timeout"),
        ("--no-such-flag true", "--no-such-flag"),
        ("--privil true", "--privil"),
        ("--pid elsewhere true", "pid"),
        ("--cap-add CAP_NONSENSE true", "CAP_NONSENSE"),
        ("--rootfs /nonexistent true", "/nonexistent does not exist"),
        ("--env-file /nonexistent true", "/nonexistent"),
        ("-d --timeout 3 true", "--timeout"),
        ("-d --rm true", "--rm"),
        ("-d -i true", "--interactive"),
        ("-d --log-opt max-size=1q true", "1q"),
        ("-d --log-opt max-file=0 true", "max-file"),
        ("-d --log-opt mode=non-blocking true", "max-size"),
        ("--driver nonexistent true", "no driver is called 'nonexistent'"),
    ],
)
def test_a_mistake_is_one_line_and_125(flags: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert words in refusal(flags.split(), capsys)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SetupError("execve", errno.ENOENT, "/bin/x"), 127),
        (SetupError("execve", errno.ENOTDIR, "/bin/sh/x"), 127),
        (SetupError("execve", errno.EACCES, "/etc"), 126),
        (SetupError("execve", errno.ENOEXEC, "/etc/passwd"), 126),
        (SetupError("mount proc on /proc", errno.ENOENT), 125),
        (SetupError("mount proc on /proc", errno.EACCES), 125),
        (InvalidCommandError("id", "is empty"), 125),
        (UnsupportedError("lxc-5", Feature.INIT), 125),
        (DriverNotFoundError("x"), 125),
        (AlreadyExistsError("x"), 125),
        (ContainerLostError("x"), 125),
        (WaitTimeoutError("x", 1.0), 124),
    ],
    ids=lambda value: str(value)[:40],
)
def test_the_exit_code_of_an_error(error: ContainerError, code: int) -> None:
    assert cli.exit_code(error) == code


@pytest.mark.parametrize("verb", ["run", "explain", "drivers"])
def test_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([verb, "--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: pycontainer {verb}")


def test_its_import_costs_little() -> None:
    program = (
        "import sys, pycontainer.cli\n"
        "heavy = {'asyncio', 'attr', 'importlib.metadata', 'pluggy', 'psutil', 'pyroute2', 'subprocess'}\n"
        "print(heavy & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# -- verbs, under a driver that spawns processes of the host


class Double(SpawnDriver):
    refusal: Exception | None = None

    def start(self, command: Any, stdio: Any) -> Any:
        if self.refusal is not None:
            raise self.refusal
        return super().start(command, stdio)

    def features(self) -> frozenset[Feature]:
        return super().features() | {Feature.MEMORY}

    def probe(self) -> Probe:
        return Probe(
            "double",
            usable=True,
            version=self.name,
            evidence="it runs",
            features={
                Feature.TTY: FeatureProbe(True, evidence="/dev/ptmx"),
                Feature.MEMORY: FeatureProbe(False, cause="no memory controller", remedy="boot with one"),
            },
        )


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Double:
    driver = Double()
    monkeypatch.setattr(plugins, "_made", [("double", {}, driver)])
    offers = {
        "double": [plugins.Offer("double", "one 1.0", "one")],
        "bad": [plugins.Offer("bad", "two 2.0", "nowhere")],
    }
    monkeypatch.setattr(plugins, "offers", lambda: offers)
    monkeypatch.setenv("PYCONTAINER_DRIVER", "double")
    return driver


def test_an_error_and_its_notes_are_lines(double: Double, capsys: pytest.CaptureFixture[str]) -> None:
    double.refusal = SetupError("mount proc on /proc", errno.EPERM)
    add_note(double.refusal, "the clean-up failed as well: rmdir")
    assert cli.main(["run", "true"]) == 125
    assert capsys.readouterr().err == (
        "pycontainer: mount proc on /proc: EPERM (Operation not permitted)\n"
        "pycontainer: the clean-up failed as well: rmdir\n"
    )


def test_the_handlers_are_put_back(double: Double) -> None:
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    assert cli.main(["run", "true"]) == 0
    assert {number: signal.getsignal(number) for number in signal.valid_signals()} == before


def test_explain_prints_the_steps(double: Double, capsys: pytest.CaptureFixture[str]) -> None:
    double.explain = lambda command: (f"step {n} of {command.id}" for n in (1, 2))  # type: ignore[attr-defined]
    assert cli.main(["explain", "--name", "box", "true"]) == 0
    assert capsys.readouterr().out == "step 1 of box\nstep 2 of box\n"
    assert double.calls == []


def test_explain_without_the_driver_s_help(double: Double, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "true"]) == 125
    assert capsys.readouterr().err == "pycontainer: driver 'spawn-0.1' does not support explain\n"


def test_drivers_table(double: Double, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["drivers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["DRIVER", "VERSION", "USABLE", "DISTRIBUTION"],
        ["bad", "-", "no", "two", "2.0"],
        lines[2].split(),
    ]
    assert "No module named 'nowhere' (remedy: repair or uninstall two 2.0)" in lines[2]
    assert lines[3].split() == ["double", "spawn-0.1", "yes", "one", "1.0"]
    assert lines[4:] == [
        "    with create, host-rootfs, pause, tty",
        "    without memory: no memory controller (remedy: boot with one)",
    ]


def test_drivers_json(double: Double, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["drivers", "--json"]) == 0
    bad, good = json.loads(capsys.readouterr().out)
    assert (bad["name"], bad["usable"], bad["features"]) == ("bad", False, {})
    assert "nowhere" in bad["cause"]
    assert good["version"] == "spawn-0.1"
    assert good["features"]["pause"] is None
    assert good["features"]["memory"] == {
        "usable": False,
        "evidence": "",
        "cause": "no memory controller",
        "remedy": "boot with one",
    }


# -- a whole process

PLUGIN = """
import pycontainer
from doubles import SpawnDriver

@pycontainer.hookimpl
def pycontainer_create_driver(options):
    return SpawnDriver()
"""

PROGRAM = [sys.executable, "-c", "import sys; from pycontainer.cli import main; sys.exit(main())", "run"]


@pytest.fixture
def environment(install: Callable[..., Path]) -> Mapping[str, str]:
    site = install("spawn", {"spawn": "spawn_plugin"}, {"spawn_plugin": PLUGIN})
    return os.environ | {"PYTHONPATH": f"{site}:{Path(__file__).parent}", "PYCONTAINER_DRIVER": "spawn"}


def run(environment: Mapping[str, str], *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, *words], env=environment, capture_output=True, text=True, timeout=30, **more)


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["true"], 0, ""),
        (["sh", "-c", "echo out; exit 3"], 3, ""),
        (["sh", "-c", "kill -KILL $$"], 137, ""),
        (["sh", "-c", "kill -TERM $$"], 143, ""),
        (["/nonexistent"], 127, "pycontainer: execve /nonexistent: ENOENT (No such file or directory)\n"),
        (["/etc/passwd"], 126, "pycontainer: execve /etc/passwd: EACCES (Permission denied)\n"),
        (
            ["--timeout", "0.3", "--name", "box", "sleep", "60"],
            124,
            "pycontainer: container 'box' did not end within 0.3 s\n",
        ),
    ],
)
def test_it_exits_as_docker_does(environment: Mapping[str, str], words: list[str], code: int, error: str) -> None:
    done = run(environment, *words)
    assert (done.returncode, done.stderr) == (code, error)


def test_stdin_is_passed_on_only_when_asked(environment: Mapping[str, str]) -> None:
    assert run(environment, "cat", input="words").stdout == ""
    assert run(environment, "-i", "cat", input="words").stdout == "words"


def test_without_a_terminal_the_payload_has_our_own_descriptors(environment: Mapping[str, str]) -> None:
    read, write = os.pipe()
    program = "for n in 0 1 2; do readlink /proc/self/fd/$n; done >&2"
    ours = os.readlink(f"/proc/self/fd/{write}")
    done = subprocess.run(
        [*PROGRAM, "-i", "sh", "-c", program],
        env=environment,
        stdin=read,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(read)
    os.close(write)
    assert done.stderr.splitlines()[0].startswith("pipe:")
    assert done.stderr.splitlines()[1] != "/dev/null"
    assert ours in done.stderr


def start(environment: Mapping[str, str], script: str, **more: Any) -> subprocess.Popen[str]:
    """A run of a shell script that says when it is ready."""
    process = subprocess.Popen(
        [*PROGRAM, "sh", "-c", script], env=environment, stdout=subprocess.PIPE, text=True, **more
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("name", cli.FORWARDED_SIGNALS)
def test_signals_are_forwarded(name: str, environment: Mapping[str, str]) -> None:
    script = f"trap 'exit 42' {name[3:]}; echo ready; while :; do sleep 0.02; done"
    with start(environment, script) as process:
        process.send_signal(signal.Signals[name])
        assert process.wait(10) == 42


@pytest.mark.parametrize("numbers", [(signal.SIGINT,) * 3, (signal.SIGTERM, signal.SIGINT, signal.SIGTERM)])
def test_the_third_kills_what_takes_no_notice(numbers: Sequence[int], environment: Mapping[str, str]) -> None:
    """PID 1 has no handler for ^C, as here, where it is ignored."""
    script = "trap '' INT TERM; echo ready; while :; do sleep 0.02; done"
    with start(environment, script, stderr=subprocess.PIPE) as process:
        for number in numbers:
            assert process.poll() is None
            process.send_signal(number)
            time.sleep(0.3)
        assert process.wait(10) == 137
        assert process.stderr is not None
        assert process.stderr.read() == "pycontainer: the third SIGINT or SIGTERM: the container is killed\n"


class SlowDouble(Double):
    """One whose start takes as long as it takes *signals* to arrive."""

    signals: tuple[int, ...] = ()

    def start(self, command: Any, stdio: Any) -> Any:
        for number in self.signals:
            os.kill(os.getpid(), number)
        return super().start(command, stdio)


def test_a_signal_that_comes_during_the_start_waits_for_it(double: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SlowDouble()
    slow.signals = (signal.SIGTERM,)
    monkeypatch.setattr(plugins, "_made", [("double", {}, slow)])
    assert cli.main(["run", "sleep", "60"]) == 143


def test_the_same_signal_again_ends_the_start(double: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SlowDouble()
    slow.signals = (signal.SIGINT, signal.SIGINT)
    monkeypatch.setattr(plugins, "_made", [("double", {}, slow)])
    assert cli.main(["run", "true"]) == 130
    assert [call.partition(" ")[0] for call in slow.calls] == ["clean"]


def test_what_is_ignored_stays_ignored(environment: Mapping[str, str]) -> None:
    script = "trap 'exit 1' HUP; trap 'exit 42' TERM; echo ready; while :; do sleep 0.02; done"
    ignoring = ["env", "--ignore-signal=HUP"]
    command = [*ignoring, *PROGRAM, "sh", "-c", script]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 42


class Screen:
    """A terminal with a run on it."""

    def __init__(self, environment: Mapping[str, str], *words: str) -> None:
        self.master, slave = pty.openpty()
        self.before = termios.tcgetattr(slave)
        self.seen = b""
        self.process = subprocess.Popen(
            [*PROGRAM, *words], env=environment, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        self.slave = slave

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)

    def expect(self, words: bytes) -> None:
        while words not in self.seen:
            assert select.select([self.master], [], [], 10)[0], f"only {self.seen!r} came"
            self.seen += os.read(self.master, 4096)

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)


def test_a_terminal_is_handed_on_and_put_back(environment: Mapping[str, str]) -> None:
    script = 'test -t 0 && test -t 2 && echo ready; read line; echo "<$line>"; exit 5'
    with Screen(environment, "-it", "sh", "-c", script) as screen:
        screen.expect(b"ready")
        assert not termios.tcgetattr(screen.slave)[3] & termios.ICANON
        screen.type(b"hello\r")
        screen.expect(b"<hello>")
        assert screen.process.wait(10) == 5
        assert termios.tcgetattr(screen.slave) == screen.before


def test_control_c_in_a_terminal_is_a_key_for_the_payload(environment: Mapping[str, str]) -> None:
    script = "trap 'exit 42' INT; echo ready; while :; do sleep 0.02; done"
    with Screen(environment, "-it", "sh", "-c", script) as screen:
        screen.expect(b"ready")
        screen.type(b"\x03")
        assert screen.process.wait(10) == 42


def test_a_signal_from_outside_reaches_a_payload_on_a_terminal(environment: Mapping[str, str]) -> None:
    script = "trap 'exit 42' TERM; echo ready; while :; do sleep 0.02; done"
    with Screen(environment, "-it", "sh", "-c", script) as screen:
        screen.expect(b"ready")
        screen.process.terminate()
        assert screen.process.wait(10) == 42
        assert termios.tcgetattr(screen.slave) == screen.before


def test_a_terminal_without_a_terminal_is_refused(environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        [*PROGRAM, "-it", "true"], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr == "pycontainer: --interactive and --tty: the input device is not a TTY\n"


def test_an_unknown_flag_points_to_the_flags_of_its_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert "('pycontainer run --help' lists the flags)" in refusal(["--no-such-flag", "true"], capsys)
    with pytest.raises(SystemExit):
        cli.main(["drivers", "--no-such-flag"])
    assert "('pycontainer drivers --help' lists the flags)" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--env-file", "--hooks-file"])
def test_a_file_that_is_not_there_is_named_with_its_flag(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal([flag, "/nope", "true"], capsys) == f"pycontainer: {flag} /nope: No such file or directory\n"


def test_the_double_is_a_driver() -> None:
    assert isinstance(SpawnDriver(), ExecutionDriver)
