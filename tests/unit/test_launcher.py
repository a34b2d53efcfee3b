"""The launcher's bookkeeping of its children, tried in a process that has no others."""

from __future__ import annotations

import subprocess
import sys

import pytest

PRELUDE = """
import _socket as socket, atexit, os, signal, subprocess, sys, time
from pycontainer_native import abi
from pycontainer_native.child import EXEC, FAILED, FORKED, GATE, HOOK_FAILED, HOOKS, TERMINAL
from pycontainer_native.container import Container
from pycontainer_native.launcher import Launcher

launcher = Launcher("test")

def sleeper():
    process = subprocess.Popen(["sleep", "1000"])
    atexit.register(process.kill)
    return process

def maker(name):
    # A container whose first process is about to clone the one that is seen inside.
    container, process = Container(launcher, name), sleeper()
    container.pid, container.pidfd, container.hands_over = process.pid, os.pidfd_open(process.pid), True
    container.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    launcher.containers.add(container)
    launcher.watch(container.pidfd, container.on_exit)
    launcher.watch(container.channel.fileno(), container.on_channel)
    return container, process, theirs

def announce(theirs, process):
    theirs.send(FORKED + process.pid.to_bytes(4, "little"))

def is_alive(process):
    return os.path.exists(f"/proc/{process.pid}") and open(f"/proc/{process.pid}/stat").read().split()[2] not in "ZX"

def turn(until):
    deadline = time.monotonic() + 60
    while not until():
        assert time.monotonic() < deadline
        for fd, _ in launcher.epoll.poll(0.01):
            launcher.handlers.get(fd, int)()  # as run(): an earlier event of this round may have ended it
        launcher.end_suspects()
        for late in list(launcher.deadlines):
            del launcher.deadlines[late]
            late()
"""


def outcome_of(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", PRELUDE + code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_process_that_has_hung_up_but_not_ended_yet_takes_no_request() -> None:
    code = """
from pycontainer_native.container import DiedError
from pycontainer_native.request import Request
spare, _, theirs = maker("spare")
theirs.send(FAILED + (7).to_bytes(4, "little") + (9).to_bytes(4, "little"))
theirs.close()
turn(lambda: spare.channel is None)
status, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
request = Request("box", 0, [], [], ([], [], []), "", 0, False, "", None, None, False, None)
try:
    spare.dispatch(request, b"", None, [0, 1, 2], status)
except DiedError as error:
    print(error.label, error.errno)
"""
    assert outcome_of(code) == "7 9\n"


def test_what_a_dead_maker_has_left_is_ended_and_what_another_one_has_just_made_is_not() -> None:
    code = """
dead, its_maker, held = maker("dead")
busy, _, theirs = maker("busy")
stray, made = sleeper(), sleeper()
its_maker.kill()
turn(lambda: dead.exit is not None)
print(is_alive(stray), is_alive(made))  # one of them may be busy's
announce(theirs, made)
turn(lambda: not is_alive(stray))
print(busy.pid == made.pid, is_alive(made), busy.exit)
turn(lambda: stray.pid not in launcher.others)
for container in list(launcher.containers):
    container.kill()
turn(lambda: not launcher.containers)
"""
    assert outcome_of(code) == "True True\nTrue True None\n"


@pytest.mark.parametrize("words", ["", "theirs.send(FAILED + bytes(8))"], ids=["silent", "it has said why"])
def test_who_has_died_before_its_dead_maker_could_tell_of_it_is_reaped(words: str) -> None:
    code = f"""
dead, its_maker, theirs = maker("dead")
stray = sleeper()
for process in (its_maker, stray):
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
{words}
theirs.close()  # as both have died, in whatever order it is seen
dead.on_channel()
turn(lambda: not launcher.containers)
turn(lambda: not os.path.exists(f"/proc/{{stray.pid}}"))
"""
    assert outcome_of(code) == ""


def test_who_is_handed_over_by_one_that_was_given_up_is_ended() -> None:
    code = """
given_up, its_maker, theirs = maker("given_up")
made = sleeper()
announce(theirs, made)
given_up.abandon()  # before that was heard
turn(lambda: not is_alive(its_maker))
turn(lambda: not is_alive(made))
theirs.close()
turn(lambda: not launcher.containers)
"""
    assert outcome_of(code) == ""


def test_a_child_is_ended_without_a_descriptor() -> None:
    code = """
import resource
child = sleeper()
count = len(os.listdir("/proc/self/fd")) - 1
resource.setrlimit(resource.RLIMIT_NOFILE, (count, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
launcher.end_child(child.pid)
turn(lambda: not launcher.others)
try:
    os.waitpid(child.pid, os.WNOHANG)
except ChildProcessError:
    print("reaped")
"""
    assert outcome_of(code) == "reaped\n"


def test_what_a_first_process_cannot_say_ends_it_and_nobody_else() -> None:
    code = """
import array, random, struct
null = os.open(os.devnull, os.O_RDWR)
other, its_process, held = maker("other")
stranger = subprocess.Popen(["sh", "-c", "sleep 1000 & echo $!; exec >&-; wait"], stdout=subprocess.PIPE, text=True)
theirs_pid = int(stranger.stdout.readline())  # no child of this process
atexit.register(os.kill, theirs_pid, 9)
foreign = os.pidfd_open(theirs_pid)

def number(value):
    return value.to_bytes(4, "little")

cases = [
    (b"p" + number(2**32 - 1), []), (b"p" + number(0), []), (b"p" + number(1), []),
    (b"p" + number(its_process.pid), []),
    (b"p" + number(theirs_pid), []), (b"p" + number(theirs_pid), [null]), (b"p" + number(theirs_pid), [foreign]),
    (b"p" + number(theirs_pid), [foreign] * 40), (b"p", [foreign]), (b"p" + number(2**32 - 1), [foreign]),
    (b"p" + number(its_process.pid), [other.pidfd]), (b"p" + number(its_process.pid), [foreign]),
    (b"t", []), (b"t", [null] * 2), (b"t" * 9, [null]), (b"f", []), (b"f" + number(1), []), (b"g", [null]), (b"gg", []),
    (b"h", []), (b"k", []), (b"x" * 2, []), (b"x", [null]), (b"y", []), (b"\\0" * 2000, []), (b"y", [null] * 40),
]
for _ in range(200):
    cases.append((bytes(random.choices(b"pxgtfhk\\0", k=random.randrange(1, 12))), [null] * random.randrange(3)))
opened = len(os.listdir("/proc/self/fd"))
for message, fds in cases:
    container, process, theirs = maker("one")
    container.failed = None
    theirs.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
    theirs.sendmsg([b"x"])
    theirs.sendmsg([b"t"])  # not after that
    theirs.close()
    turn(lambda: container not in launcher.containers)
    assert container.failed, message
    process.wait()
print(is_alive(its_process), other.exit, is_alive(stranger), os.path.exists(f"/proc/{theirs_pid}"))
print(len(os.listdir("/proc/self/fd")) - opened)
"""
    assert outcome_of(code) == "True None True True\n0\n"


def test_nobody_has_made_who_is_known_already() -> None:
    code = """
from types import SimpleNamespace
other, its_process, _ = maker("other")
monitor, hook = sleeper(), sleeper()
launcher.reap_later(monitor.pid, os.pidfd_open(monitor.pid))
other.hook = SimpleNamespace(pid=hook.pid)
for process in (its_process, monitor, hook):
    one, its_own, theirs = maker("one")
    announce(theirs, process)
    one.on_channel()
    print(one.failed, one.pid == its_own.pid, is_alive(process))
"""
    refused = "('read what the first process says', 74) True True\n"
    assert outcome_of(code) == refused * 3


def test_once_it_is_about_to_execute_it_has_nothing_more_to_ask_for() -> None:
    code = """
def heard(*messages):
    container, _, theirs = maker("one")
    container.programs = {"createRuntime": []}
    for message in messages:
        null = os.open(os.devnull, os.O_RDWR)
        fds = null.to_bytes(4, sys.byteorder) if message == TERMINAL else b""
        theirs.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if fds else [])
        os.close(null)
    container.on_channel()
    return container.failed and container.failed[0]

late = [EXEC, GATE, HOOKS, TERMINAL, HOOK_FAILED + bytes(4) + b"a hook"]
print([heard(message) for message in late])
print({heard(EXEC, message) for message in late})
"""
    assert outcome_of(code) == "[None, None, None, None, 'a hook']\n{'read what the first process says'}\n"


def test_a_lock_is_given_back_whoever_has_its_descriptor() -> None:
    """What was cloned a moment ago has all of them, until it has closed them."""
    code = """
import fcntl, tempfile
with tempfile.TemporaryDirectory() as path:
    def locked():
        fd = os.open(path, os.O_RDONLY)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return fd
    container = Container(launcher, "1")
    container.leases = [locked()]
    pid = os.fork()
    if pid == 0:
        signal.pause()
    container.close()
    os.close(locked())
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert container.leases == []
"""
    outcome_of(code)
