"""The command line as a user has it: the installed program, a real terminal, real signals."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sysconfig
import termios
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from . import host

pytestmark = pytest.mark.root

PROGRAM = Path(sysconfig.get_path("scripts")) / "pycontainer"


@pytest.fixture
def cli(native: Any, busybox_rootfs: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs ``pycontainer run --rootfs BUSYBOX`` with more arguments."""

    def cli(*arguments: str, verb: str = "run", **keywords: Any) -> subprocess.CompletedProcess[str]:
        argv = [str(PROGRAM), verb, *(["--rootfs", str(busybox_rootfs)] if verb != "drivers" else []), *arguments]
        defaults = {"capture_output": True, "text": True, "timeout": 60, "cwd": "/"}
        return subprocess.run(argv, **{**defaults, **keywords})

    return cli


class Screen:
    """The program in a terminal of its own, as a shell would start it."""

    def __init__(self, argv: list[str], size: tuple[int, int]) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            try:
                os.chdir("/")
                os.execv(argv[0], argv)
            finally:
                os._exit(99)
        self.text = ""
        self.resize(*size)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def until(self, pattern: str, seconds: float = 60.0) -> re.Match[str]:
        """Read until *pattern* is there; what was before it is forgotten."""
        while (found := re.search(pattern, self.text)) is None:
            assert select.select([self.fd], [], [], seconds)[0], f"{pattern!r} is not in {self.text!r}"
            data = b""
            with contextlib.suppress(OSError):  # EIO: nobody has its other side open
                data = os.read(self.fd, 65536)
            assert data, f"{pattern!r} is not in {self.text!r}, and it has ended"
            self.text += data.decode(errors="replace")
        self.text = self.text[found.end() :]
        return found

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self.fd, text.encode())

    def flags(self) -> int:
        """The terminal's local modes: ICANON, ECHO and the others are off in raw mode."""
        flags: int = termios.tcgetattr(self.fd)[3]
        return flags & (termios.ICANON | termios.ECHO | termios.ISIG)

    def wait(self) -> int:
        """The exit code, or -N."""
        while True:
            with contextlib.suppress(OSError):
                while select.select([self.fd], [], [], 0)[0] and os.read(self.fd, 65536):
                    pass
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
            select.select([self.fd], [], [], 0.01)

    def close(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.fd)


@pytest.fixture
def screen(native: Any, busybox_rootfs: Path) -> Iterator[Callable[..., Screen]]:
    """Starts ``pycontainer run`` in a terminal."""
    screens: list[Screen] = []

    def screen(*arguments: str, size: tuple[int, int] = (30, 100)) -> Screen:
        screens.append(Screen([str(PROGRAM), "run", "--rootfs", str(busybox_rootfs), *arguments], size))
        return screens[-1]

    yield screen
    for each in screens:
        each.close()


# -- without a terminal


def test_a_line_from_inside(cli: Any) -> None:
    done = cli("--hostname", "box", "sh", "-c", "echo $(hostname) $$; echo problem >&2")
    assert (done.stdout, done.stderr, done.returncode) == ("box 1\n", "problem\n", 0)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("sh", "-c", "exit 7"), 7, ""),
        (("--init", "sh", "-c", "kill -9 $$"), 137, ""),
        (("missing",), 127, "ENOENT"),
        (("/etc/passwd",), 126, "EACCES"),
        (("--user", "mallory", "true"), 125, "process.user"),
        (("--memory", "12q", "true"), 125, "memory"),
        (("--bogus", "true"), 125, "--bogus"),
        (("--driver", "bogus", "true"), 125, "bogus"),
        (("-w", "/missing", "true"), 125, "enter /missing"),
        (("--timeout", "0.3", "sleep", "100"), 124, "0.3 s"),
        ((), 125, ""),
    ],
)
def test_exit_codes(cli: Any, arguments: tuple[str, ...], code: int, said: str) -> None:
    done = cli(*arguments)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_stdin_only_with_i(cli: Any) -> None:
    assert cli("-i", "cat", input="given\n").stdout == "given\n"
    assert cli("cat", input="given\n").stdout == ""


def test_flags_reach_the_kernel(cli: Any, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "file").write_text("given\n")
    script = "id; pwd; cat /v/file; touch /v/x; ulimit -n; env; grep -E 'NoNew|CapBnd' /proc/self/status; touch /x"
    done = cli(
        *("-u", "alice", "--group-add", "extra", "-w", "/tmp", "-v", f"{tmp_path}:/v:ro", "--ulimit", "nofile=64:128"),
        *("-e", "A=b", "--cap-drop", "ALL", "-m", "64m", "--cpus", "0.5", "--pids-limit", "9", "--read-only", "--"),
        *("sh", "-c", script),
    )
    assert done.stdout.splitlines()[:4] == [
        "uid=1000(alice) gid=1000(alice) groups=1000(alice),2000(extra)",
        "/tmp",
        "given",
        "64",
    ]
    assert {"A=b", "NoNewPrivs:\t1", "CapBnd:\t0000000000000000"} <= {*done.stdout.splitlines()}
    assert done.stderr.count("Read-only file system") == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGQUIT])
def test_signals_are_passed_on(native: Any, busybox_rootfs: Path, number: int) -> None:
    script = f"trap 'exit 5' {number:d}; echo ready; while :; do sleep 0.01; done"
    argv = [PROGRAM, "run", "--rootfs", busybox_rootfs, "sh", "-c", script]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, cwd="/") as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            process.send_signal(number)
            assert process.wait(60) == 5
        finally:
            process.kill()


@pytest.mark.parametrize("flags", [(), ("--init",)])
def test_it_is_killed(native: Any, busybox_rootfs: Path, until: Any, flags: tuple[str, ...]) -> None:
    marker = f"{uuid.uuid4().int % 10**9 + 1000}"
    script = f"sleep {marker} & echo ready; sleep {marker}"
    argv = [PROGRAM, "run", *flags, "--rootfs", busybox_rootfs, "sh", "-c", script]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, cwd="/") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.kill()
    until(lambda: not host.running(marker), 2.0)


def test_drivers(cli: Any) -> None:
    done = cli(verb="drivers")
    assert re.search(r"^native +native-0.1 +yes ", done.stdout, re.MULTILINE)
    [found] = [driver for driver in json.loads(cli("--json", verb="drivers").stdout) if driver["name"] == "native"]
    assert (found["usable"], found["distribution"].split()[0]) == (True, "pycontainer-execdriver")


def test_explain_shows_the_steps_and_takes_none(cli: Any, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    done = cli("-m", "64m", "-v", f"{tmp_path}:/v", "touch", "/v/canary", verb="explain")
    assert not canary.exists()
    for step in ("clone3(", "mount proc on /proc: fsopen", f"mount {tmp_path} on /v", "pivot_root", "execve"):
        assert step in done.stdout
    assert str(64 * 1024 * 1024) in done.stdout


# -- in a terminal


def test_an_interactive_shell(screen: Any) -> None:
    shell = screen("-i", "-t", "-e", "PS1=> ", "--hostname", "box", "sh")
    before = shell.flags()
    shell.until("> ")
    assert shell.flags() == 0 != before  # raw: keys are the container's
    shell.type("tty; hostname; stty size; echo $((6 * 7))\r")
    shell.until(r"/dev/\S+\r\nbox\r\n30 100\r\n42\r\n")
    shell.resize(40, 120)
    os.kill(shell.pid, signal.SIGWINCH)  # the kernel's own comes as well, once the size has changed
    shell.type("stty size\r")
    shell.until("40 120")
    shell.type("sh -c 'echo re''ady; sleep 100'\r")
    shell.until(r"\nready")
    shell.type("\x03")
    shell.until("> ")
    shell.type("echo $?\r")
    shell.until(r"\n130\r")
    shell.type("exit 5\r")
    while (
        shell.pid
        and shell.flags() == 0
        and os.waitid(os.P_PID, shell.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None
    ):
        with contextlib.suppress(AssertionError):
            shell.until("\0", 0.01)
    assert shell.flags() == before
    assert shell.wait() == 5


def test_output_alone(screen: Any) -> None:
    shell = screen("-t", "sh", "-c", "test -t 1 && echo terminal; exit 4")
    shell.until("terminal")
    assert shell.wait() == 4


def test_without_t_the_callers_terminal_cannot_be_opened(screen: Any) -> None:
    shell = screen("-i", "sh", "-c", "cat </dev/tty; echo done")
    shell.until("No such device or address")
    shell.until("done")
    assert shell.wait() == 0


def test_a_signal_in_a_terminal_restores_it(screen: Any) -> None:
    shell = screen("-i", "-t", "--init", "sh", "-c", "trap 'exit 6' TERM; echo ready; while :; do sleep 0.01; done")
    before = shell.flags()
    shell.until("ready")
    os.kill(shell.pid, signal.SIGTERM)
    while os.waitid(os.P_PID, shell.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        with contextlib.suppress(AssertionError):
            shell.until("\0", 0.01)
    assert shell.flags() == before
    assert shell.wait() == 6
