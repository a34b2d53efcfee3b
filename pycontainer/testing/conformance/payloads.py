"""What the kit runs inside containers: a small vocabulary, each word of it an argv.

:class:`Payloads` says it for a root file system with ``/bin/sh`` and the usual
small programs (busybox is enough).  A driver whose containers have other ones
overrides the fixture ``payloads``.
"""

from __future__ import annotations

import errno
import os
import shlex
import signal as signals
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pycontainer.testing.fake import FakeContainer, FakeDriver, Program

__all__ = ["FakePayloads", "Payloads"]


class Payloads:
    """Every method gives an argv; what that prints ends with a newline unless it says otherwise."""

    missing = "/no/such/program"

    def sh(self, script: str, *arguments: str) -> list[str]:
        """A shell script."""
        return ["sh", "-c", script, "sh", *arguments]

    def say(self, out: str = "", err: str = "", code: int = 0) -> list[str]:
        """Print *out* and *err*, without newlines, and exit with *code*."""
        return self.sh('printf %s "$1"; printf %s "$2" >&2; exit "$3"', out, err, str(code))

    def kill_itself(self) -> list[str]:
        """End by SIGKILL, in a child, and exit as a shell does: with 137."""
        return self.sh('sh -c \'kill -KILL "$$"\'; exit "$?"')

    def cat(self) -> list[str]:
        """Copy stdin to stdout."""
        return ["cat"]

    def sleep(self) -> list[str]:
        """Do nothing for a long time, with no signal handled."""
        return ["sleep", "1000"]

    def ready(self) -> list[str]:
        """Print ``ready``, then do nothing for a long time."""
        return self.sh("echo ready; exec sleep 1000")

    def trap(self, signal: int, code: int) -> list[str]:
        """Print ``ready``, exit with *code* once *signal* comes."""
        return self.sh(f"trap 'exit {code}' {signal}; echo ready; sleep 1000 & wait")

    def environment(self) -> list[str]:
        """Print every variable, NAME=VALUE, each followed by a newline."""
        return ["env"]

    def variable(self, name: str) -> list[str]:
        """Print the value of one variable."""
        return self.sh(f'printf "%s\\n" "${name}"')

    def directory(self) -> list[str]:
        """Print the working directory."""
        return ["pwd"]

    def ids(self) -> list[str]:
        """Print uid, gid and all groups, on one line."""
        return self.sh('echo "$(id -u) $(id -g) $(id -G)"')

    def hostname(self) -> list[str]:
        """Print the host name."""
        return ["hostname"]

    def open_files_limit(self) -> list[str]:
        """Print the soft and the hard limit of open files."""
        return self.sh('echo "$(ulimit -Sn) $(ulimit -Hn)"')

    def read(self, path: str) -> list[str]:
        """Print the file at *path*."""
        return ["cat", path]

    def write(self, path: str, text: str) -> list[str]:
        """Make the file at *path* be *text*; exits with another code than 0 if that fails."""
        return self.sh('printf %s "$2" > "$1"', path, text)

    def descriptors(self) -> list[str]:
        """Print how many descriptors above 2 are open."""
        # The glob opens the directory: that is one, and it is gone when test looks.
        return self.sh(
            "n=0; for fd in /proc/$$/fd/*; do case ${fd##*/} in [012]) ;; *) "
            'if [ -e "$fd" ] || [ -L "$fd" ]; then n=$((n+1)); fi ;; esac; done; echo $n'
        )

    def exhaust(self) -> list[str]:
        """Use memory until something stops it."""
        return ["tail", "/dev/zero"]

    def hold(self, size: int) -> list[str]:
        """Use at least *size* bytes of memory, print ``ready``, do nothing for a long time."""
        script = 'x=$(head -c "$1" /dev/zero | tr "\\0" x); echo ready; sleep 1000; echo "$x"'
        return self.sh(script, str(size))

    def fork(self, count: int) -> list[str]:
        """Start *count* processes that stay, then print ``ready`` and wait; fails before that if it cannot."""
        script = 'i=0; while [ $i -lt "$1" ]; do sleep 1000 & i=$((i+1)); done; echo ready; wait'
        return self.sh(script, str(count))

    def burn(self) -> list[str]:
        """Use a whole processor until SIGTERM, then print the user and the system time, as ``0m1.20s 0m0.00s``."""
        return self.sh('trap "times; exit 0" TERM; echo ready; while :; do :; done')

    def processors(self) -> list[str]:
        """Print the processors that it may run on, as cpuset(7) has them."""
        return self.sh(
            'while read -r name value; do if [ "$name" = Cpus_allowed_list: ]; then echo "$value"; fi;'
            " done < /proc/self/status"
        )

    def count(self) -> list[str]:
        """Print a dot about every 10 ms, without a newline, for ever."""
        return self.sh("while :; do printf .; sleep 0.01; done")

    def terminal(self) -> list[str]:
        """Wait for a line, then print ``rows columns`` of the terminal on stdin, or fail."""
        return self.sh("echo ready; read line; stty size")

    def is_terminal(self) -> list[str]:
        """Exit with 0 if stdin, stdout and stderr are terminals, else with 1."""
        return self.sh("test -t 0 && test -t 1 && test -t 2")


class FakePayloads(Payloads):
    """The same words for the fake driver, which has no shell."""

    missing = "missing"

    def __init__(self, driver: FakeDriver) -> None:
        for name, program in _PROGRAMS.items():
            driver.script(name, program)

    def say(self, out: str = "", err: str = "", code: int = 0) -> list[str]:
        return ["say", out, err, str(code)]

    def kill_itself(self) -> list[str]:
        return ["say", "", "", "137"]

    def sleep(self) -> list[str]:
        return ["sleep", "1000"]

    def ready(self) -> list[str]:
        return ["ready"]

    def trap(self, signal: int, code: int) -> list[str]:
        return ["trap", str(int(signal)), str(code)]

    def variable(self, name: str) -> list[str]:
        return ["variable", name]

    def ids(self) -> list[str]:
        return ["ids"]

    def hostname(self) -> list[str]:
        return ["hostname"]

    def open_files_limit(self) -> list[str]:
        return ["open-files-limit"]

    def read(self, path: str) -> list[str]:
        return ["read", path]

    def write(self, path: str, text: str) -> list[str]:
        return ["write", path, text]

    def descriptors(self) -> list[str]:
        return ["say", "0\n", "", "0"]

    def exhaust(self) -> list[str]:
        return ["exhaust"]

    def hold(self, size: int) -> list[str]:
        return ["hold", str(size)]

    def fork(self, count: int) -> list[str]:
        return ["fork", str(count)]

    def burn(self) -> list[str]:
        return ["burn"]

    def processors(self) -> list[str]:
        return ["processors"]

    def count(self) -> list[str]:
        return ["count"]

    def terminal(self) -> list[str]:
        return ["terminal"]

    def is_terminal(self) -> list[str]:
        return ["is-terminal"]

    def sh(self, script: str, *arguments: str) -> list[str]:
        raise NotImplementedError(f"there is no shell for {shlex.quote(script)}")


def _say(box: FakeContainer) -> int:
    _, out, err, code = box.argv
    box.write(out)
    box.write_error(err)
    return int(code)


def _ready(box: FakeContainer) -> None:
    box.write("ready\n")
    box.sleep()


def _trap(box: FakeContainer) -> None:
    box.trap(int(box.argv[1]), lambda: box.exit(int(box.argv[2])))
    _ready(box)


def _variable(box: FakeContainer) -> None:
    box.write(box.environment.get(box.argv[1], "") + "\n")


def _ids(box: FakeContainer) -> None:
    user = box.user
    box.write(f"{user.uid} {user.gid} {' '.join(map(str, (user.gid, *user.groups)))}\n")


def _hostname(box: FakeContainer) -> None:
    box.write(f"{box.hostname}\n")


def _open_files_limit(box: FakeContainer) -> None:
    for limit in box.process.rlimits:
        if limit.type == "RLIMIT_NOFILE":
            box.write(f"{limit.soft} {limit.hard}\n")


def _read(box: FakeContainer) -> int:
    try:
        with box.open(box.argv[1], "rb") as file:
            box.write(file.read())
    except OSError as error:
        box.write_error(f"{error}\n")
        return 1
    return 0


def _write(box: FakeContainer) -> int:
    try:
        with box.open(box.argv[1], "w") as file:
            file.write(box.argv[2])
    except OSError as error:
        box.write_error(f"{error}\n")
        return 1
    return 0


def _exhaust(box: FakeContainer) -> None:
    for _ in range(1024):
        box.allocate(2**24)
    box.sleep()


def _hold(box: FakeContainer) -> None:
    box.allocate(int(box.argv[1]))
    _ready(box)


def _fork(box: FakeContainer) -> int:
    try:
        for _ in range(int(box.argv[1])):
            box.fork()
    except OSError as error:
        box.write_error(f"fork: {error}\n")
        return 2 if error.errno == errno.EAGAIN else 1
    _ready(box)
    return 0


def _burn(box: FakeContainer) -> None:
    def report() -> None:
        root = box.main or box
        box.write(f"0m{root.cpu_time:.3f}s 0m0.000s\n0m0.000s 0m0.000s\n")
        box.exit(0)

    stopped: list[bool] = []
    box.trap(signals.SIGTERM, lambda: stopped.append(True))
    box.write("ready\n")
    while not stopped:
        box.burn(0.01)
    report()


def _processors(box: FakeContainer) -> None:
    root = box.main or box
    allowed = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    box.write(f"{root.resources.cpuset_cpus or allowed}\n")


def _count(box: FakeContainer) -> None:
    while True:
        box.write(".")
        box.sleep(0.01)


def _terminal(box: FakeContainer) -> None:
    box.write("ready\n")
    box.read()
    size = os.get_terminal_size(box.stdin)
    box.write(f"{size.lines} {size.columns}\n")


def _is_terminal(box: FakeContainer) -> int:
    return 0 if all(map(os.isatty, (box.stdin, box.stdout, box.stderr))) else 1


_PROGRAMS: dict[str, Program] = {
    "say": _say,
    "ready": _ready,
    "trap": _trap,
    "variable": _variable,
    "ids": _ids,
    "hostname": _hostname,
    "open-files-limit": _open_files_limit,
    "read": _read,
    "write": _write,
    "exhaust": _exhaust,
    "hold": _hold,
    "fork": _fork,
    "burn": _burn,
    "processors": _processors,
    "count": _count,
    "terminal": _terminal,
    "is-terminal": _is_terminal,
}
