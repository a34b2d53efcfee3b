"""D: terminals."""

from __future__ import annotations

import fcntl
import json
import os
import re
import resource
import signal
import stat
import sys
import termios

import pytest

import pycontainer
from pycontainer import PIPE
from pycontainer.errors import ContainerError
from pycontainer.spec import seccomp_to_oci
from pycontainer_native.driver import NativeDriver

from .catalogue import row
from .mutants import Patch, PlanMutant, Several, left_out, no_filter, not_mounted
from .stages import in_child

TIOCSTI, TIOCLINUX = 0x5412, 0x541C

#: Makes stdin its controlling terminal, and then the requests; prints the errno of each.
INJECT = """
import ctypes, fcntl, json, sys, termios
libc = ctypes.CDLL(None, use_errno=True)
def ioctl(request):
    ctypes.set_errno(0)
    typed = ctypes.create_string_buffer(bytes([{first}, 0, 0, 0]))
    return libc.ioctl(0, ctypes.c_ulong(request), typed) and ctypes.get_errno()
try:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
except OSError:
    pass
print(json.dumps([ioctl(request) for request in {requests}]))
"""


def injected(driver, requests, first=120):
    """What a payload gets for *requests* to a terminal of the caller's, and what was typed into that."""
    outer, inner = os.openpty()
    try:
        attributes = termios.tcgetattr(inner)
        attributes[3] &= ~(termios.ECHO | termios.ICANON)
        termios.tcsetattr(inner, termios.TCSANOW, attributes)
        code = INJECT.format(first=first, requests=requests)
        done = pycontainer.run([sys.executable, "-I", "-S", "-c", code], driver=driver, stdin=inner,
                               capture_output=True, timeout=60)  # fmt: skip
        assert done.returncode == 0, done.stderr
        typed = fcntl.ioctl(inner, termios.FIONREAD, bytes(4))
        return json.loads(done.stdout), int.from_bytes(typed, sys.byteorder)
    finally:
        os.close(outer)
        os.close(inner)


@row("D1", mutants=[no_filter])
def test_d1_cve_2017_5226_nothing_is_typed_into_the_callers_terminal(driver):
    errnos, typed = injected(driver, [TIOCSTI])
    assert (errnos, typed) == ([1], 0)


def _comparing_64_bits(command):
    profile = seccomp_to_oci(command)
    rules = [rule for rule in profile["syscalls"] if "ioctl" not in rule["names"]]
    differ = [{"index": 1, "value": value, "op": "SCMP_CMP_NE"} for value in (TIOCSTI, TIOCLINUX)]
    rules.append({"names": ["ioctl"], "action": "SCMP_ACT_ALLOW", "args": differ})
    return {**profile, "syscalls": rules}


_64_bits = Patch("64 bits are compared", "pycontainer.filters.seccomp_to_oci", _comparing_64_bits, own_launcher=True)


@row("D2", mutants=[_64_bits, no_filter])
def test_d2_cve_2019_10063_the_kernel_looks_at_32_bits(driver):
    errnos, typed = injected(driver, [TIOCSTI + 2**32, TIOCSTI + 2**63, TIOCSTI + 0x5A << 40 | TIOCSTI])
    assert (errnos, typed) == ([1, 1, 1], 0)


@row("D3", mutants=[no_filter])
def test_d3_cve_2023_28100_nothing_is_pasted(driver):
    # 3 is a harmless subcode, TIOCL_PASTESEL; a pseudo-terminal has none of them
    errnos, _ = injected(driver, [TIOCLINUX, TIOCLINUX + 2**32], first=3)
    assert errnos == [1, 1]


@row(
    "D4",
    mutants=[PlanMutant("the terminal is not mounted", left_out("mount the terminal on /dev/console", "move_mount"))],
)
def test_d4_cve_2025_52565_the_terminal_is_what_was_opened(sh, hostile):
    for name in ("dev/console", "dev/tty", *(f"dev/pts/{number}" for number in range(10))):
        hostile.link(name, hostile.canary / "console")
    hostile.link("dev/ptmx", "/proc/sysrq-trigger")
    script = "stat -c %t /dev/console; tty; stat -L -c %t /proc/self/fd/0 /proc/self/fd/2; wc -c </proc/keys"
    done = sh(script, rootfs=hostile, tty=True, capture_output=False, stdout=PIPE)
    assert done.stdout.split() == ["88", "/dev/pts/0", "88", "88", "0"]  # 136


@row("D5", mutants=[PlanMutant("the image's /dev is used", not_mounted("/dev"))])
def test_d5_ptmx_of_the_image_is_not_opened(sh, hostile):
    for trap in ("fifo", "file", "device"):
        if trap == "fifo":
            hostile.fifo("dev/ptmx")
            hostile.fifo("dev/pts/ptmx")
        elif trap == "file":
            hostile.file("dev/ptmx", "")
            hostile.link("dev/pts", hostile.canary / "directory")
        else:
            hostile.device("dev/ptmx", 1, 5)
        for tty in (False, True):
            try:
                done = sh("stat -L -c '%F %t:%T' /dev/ptmx", rootfs=hostile, tty=tty, capture_output=False, stdout=PIPE)
            except ContainerError as error:
                pytest.fail(str(error))
            assert done.stdout.strip() == "character special file 5:2"


def _option(name):
    def edit(step):
        if step.label != "mount devpts on /dev/pts" or step.call != "fsconfig" or name not in step.arguments:
            return None
        return step._replace(call="prctl", arguments=(3, 0, 0, 0, 0))

    return edit


@row("D6", mutants=[PlanMutant("no gid", _option(b"gid")), PlanMutant("no mode", _option(b"mode"))])
def test_d6_the_slaves_group_and_mode(start, python):
    code = (
        "import os; a, b = os.openpty(); s = os.stat(os.ttyname(b)); print(oct(s.st_mode & 0o777), s.st_uid, s.st_gid)"
    )
    assert python(code).stdout == "0o620 0 5\n"
    assert python(code, user="nobody").stdout == "0o620 65534 5\n"
    box = start(["sleep", "100"], tty=True, user="alice")
    slave = os.stat(f"/proc/{box.pid}/fd/0")
    assert (stat.S_IMODE(slave.st_mode), slave.st_uid, slave.st_gid) == (0o620, 1000, 5)
    box.kill()
    box.communicate(timeout=30)


@row("D7", mutants=[Patch("all of it is kept", "pycontainer._api.size_limit", lambda _: None)])
def test_d7_a_flood_is_bounded(start):
    script = "printf '\\033[6n\\033]0;title\\007'; head -c 30000000 /dev/zero"
    for keywords in ({}, {"tty": True, "stdout": PIPE}):
        box = start(["sh", "-c", script], **{"stdout": PIPE, "stderr": None, "output_limit": "1m", **keywords})
        assert box.pids()  # nobody waits for its output
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        out, _ = box.communicate(timeout=60)
        assert len(out) == 1 << 20
        assert box.truncated
        assert out.startswith(b"\x1b[6n\x1b]0;title\x07")  # as it came; nobody has answered
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB


_posix_spawn = os.posix_spawn


def _in_the_same_session(path, argv, env, **rest):
    rest.pop("setsid")
    return _posix_spawn(path, argv, env, **rest)


@row(
    "D8",
    mutants=[
        Several(
            "no session of its own",
            Patch("", "os.posix_spawn", _in_the_same_session),
            PlanMutant("", left_out("setsid")),
        )
    ],
)
def test_d8_the_callers_controlling_terminal_is_lost(native, busybox_rootfs):
    def body():
        outer, inner = os.openpty()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # of its end
        os.setsid()
        fcntl.ioctl(inner, termios.TIOCSCTTY, 0)
        assert os.path.exists("/dev/tty")
        os.close(os.open("/dev/tty", os.O_RDWR))
        driver = NativeDriver()
        try:
            for keywords in ({}, {"init": True}, {"stdin": inner}):
                done = pycontainer.run(["sh", "-c", ": </dev/tty"], rootfs=busybox_rootfs, driver=driver,
                                       capture_output=True, **keywords)  # fmt: skip
                assert re.search(b"No such device or address", done.stderr)
        finally:
            driver.close()
            os.close(outer)

    in_child(body)
