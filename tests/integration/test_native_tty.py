"""A container with a terminal: whose it is, job control, its size, and what comes out of it."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import stat
from pathlib import Path
from typing import Any

import pytest

from pycontainer import PIPE
from pycontainer.errors import ContainerError

from . import host

pytestmark = pytest.mark.root


class Screen:
    """What a terminal's master shows."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.text = ""

    def until(self, pattern: str, seconds: float = 30.0) -> re.Match[str]:
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


@pytest.fixture
def terminal(start: Any) -> Any:
    """Starts a container with a terminal: (it, its screen)."""

    def terminal(argv: list[str], **keywords: Any) -> tuple[Any, Screen]:
        box = start(argv, tty=True, stdin=PIPE, stdout=PIPE, **keywords)
        return box, Screen(box.terminal.fileno())

    return terminal


def test_its_streams_are_a_terminal_of_its_own(sh: Any) -> None:
    script = "tty; for fd in 0 1 2; do test -t $fd && stat -Lc '%F %t' /dev/fd/$fd; done; stat -c '%F %t' /dev/console"
    done = sh(script, tty=True, capture_output=False, stdout=PIPE)
    lines = done.stdout.splitlines()
    assert lines[0] in ("/dev/console", "/dev/pts/0")
    assert lines[1:] == ["character special file 88"] * 4  # 0x88 = 136: a pty's slave
    assert done.stderr is None


@pytest.mark.parametrize("user", ["root", "alice"])
def test_it_is_the_controlling_terminal_and_the_users(terminal: Any, user: str) -> None:
    box, screen = terminal(["sh", "-c", "echo by name >/dev/tty; stat -Lc '%U %a' /dev/fd/0; read x"], user=user)
    screen.until("by name\r\n")
    assert screen.until(r"(\w+) (\d+)\r\n").groups() == (user, "620")
    fields = Path(f"/proc/{box.pid}/stat").read_text().rpartition(")")[2].split()
    session, terminal_number, foreground = int(fields[3]), int(fields[4]), int(fields[5])
    assert session == box.pid
    assert os.major(terminal_number) == 136
    assert foreground == box.pid
    found = os.fstat(box.terminal.fileno())
    assert stat.S_ISCHR(found.st_mode)


def test_nothing_of_the_hosts_terminals_is_in_it(sh: Any) -> None:
    done = sh("ls /dev/pts", tty=True, capture_output=False, stdout=PIPE)
    assert sorted(done.stdout.split()) == ["0", "ptmx"]


@pytest.mark.parametrize("init", [False, True])
def test_an_interactive_shell_has_job_control(terminal: Any, init: bool) -> None:
    box, screen = terminal(["sh", "-i"], init=init, env={"PATH": "/bin", "PS1": "> "})
    screen.until("> ")
    assert "job control turned off" not in screen.text
    screen.type("sleep 100\n")
    screen.until("sleep 100\r\n")
    while not any("sleep" in host.status(pid)["Name"] for pid in box.pids()):
        pass
    screen.type("\x1a")  # ^Z
    screen.until("Stopped")
    screen.until("> ")
    screen.type("kill %1; fg >/dev/null; echo $((6 * 7))\n")
    screen.until(r"\n42\r\n")
    screen.type("exit 5\n")
    assert box.wait(30) == 5


def test_control_c_reaches_the_foreground_job_only(terminal: Any) -> None:
    box, screen = terminal(["sh", "-i"], env={"PATH": "/bin", "PS1": "> "})
    screen.until("> ")
    screen.type("sh -c 'echo re''ady; sleep 100'\n")
    screen.until(r"\nready\r\n")
    screen.type("\x03")
    screen.until("> ")
    screen.type("echo status $?\n")
    assert screen.until(r"status (\d+)")[1] == "130"
    assert box.poll() is None


def test_control_c_with_an_init(terminal: Any) -> None:
    box, screen = terminal(["sh", "-c", "echo ready; sleep 100"], init=True)
    screen.until("ready")
    screen.type("\x03")
    assert box.wait(30) in (-signal.SIGINT, 130)


def test_its_size(terminal: Any) -> None:
    box, screen = terminal(["sh", "-c", "trap 'stty size' WINCH; echo ready; while :; do sleep 0.01; done"])
    screen.until("ready")
    for height, width in ((40, 132), (25, 81)):
        box.resize(height, width)
        screen.until(f"{height} {width}\r\n")


def test_an_end_of_file_is_a_key(terminal: Any) -> None:
    box, screen = terminal(["cat"])
    screen.type("given\n\x04")
    assert box.wait(30) == 0
    screen.until("given\r\ngiven\r\n")


def test_communicate(start: Any) -> None:
    box = start(["sh", "-c", "stty -echo; echo ready; cat; exit 3"], tty=True, stdin=PIPE, stdout=PIPE)
    output, nothing = box.communicate(b"given\n", timeout=30)
    assert output.replace(b"\r", b"").endswith(b"ready\ngiven\n")
    assert (nothing, box.returncode) == (None, 3)


def test_all_of_a_large_output_arrives(start: Any) -> None:
    box = start(["sh", "-c", "stty -opost; head -c 1000000 /dev/zero; echo end"], tty=True, stdout=PIPE)
    output, _ = box.communicate(timeout=60)
    assert output == bytes(1_000_000) + b"end\n"


def test_hanging_up(start: Any, until: Any) -> None:
    box = start(["sh", "-c", "trap 'exit 7' HUP; echo ready; while :; do sleep 0.01; done"],
                tty=True, init=True, stdin=PIPE, stdout=PIPE)  # fmt: skip
    Screen(box.terminal.fileno()).until("ready")
    box.stdin.close()
    box.stdout.close()
    box.terminal.close()
    assert box.wait(30) == 7


def test_two_terminals_are_two(terminal: Any) -> None:
    first, one = terminal(["sh", "-c", "read x; echo first $x; read x"])
    second, two = terminal(["sh", "-c", "read x; echo second $x; read x"])
    one.type("a\n")
    two.type("b\n")
    one.until("first a")
    two.until("second b")
    first.kill()
    assert first.wait(30) == -9
    assert second.poll() is None


def test_a_hostile_dev_pts(start: Any, hostile: Any) -> None:
    # CVE-2025-52565: a slave that is looked up by its name leads where the rootfs wants.
    for number in range(10):
        hostile.link(f"dev/pts/{number}", "/proc/sysrq-trigger")
    hostile.link("dev/console", hostile.canary / "console")
    hostile.fifo("dev/ptmx")
    box = start(["sh", "-c", "stat -Lc '%F %t' /dev/console /dev/fd/0"], rootfs=hostile, tty=True, stdout=PIPE)
    output, _ = box.communicate(timeout=30)
    assert output.split(b"\r\n") == [b"character special file 88"] * 2 + [b""]


def test_with_a_read_only_root(sh: Any) -> None:
    done = sh("test -t 0 && echo terminal", tty=True, read_only=True, capture_output=False, stdout=PIPE)
    assert done.stdout == "terminal\n"


def test_without_a_terminal_there_is_nothing_to_resize(start: Any) -> None:
    with pytest.raises(ContainerError, match="terminal"):
        start(["sleep", "100"]).resize(24, 80)
