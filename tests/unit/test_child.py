"""The steps that a container's first process makes of itself, tried with the kernel's own answers."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import _socket as socket, errno, os, sys
from pycontainer_native import abi, child, plan, steps

os.dup2(0, abi.CHANNEL_FD)  # taken, so that neither end gets the number
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
os.dup2(theirs.detach(), abi.CHANNEL_FD)
if sys.argv[1] == "dead":
    ours.close()  # as the launcher's end does when it exits
if sys.argv[1] == "busy":
    ours.send(b"request")
section = plan._record(steps.die_with_parent, abi.FIRST_SLOT)
try:
    child.run_steps([child.bind(section.data)], 0)
except child.StepError as failed:
    print(section.steps[failed.index].label, errno.errorcode[failed.errno])
else:
    print(child.libc.prctl(2, child.ctypes.byref(number := child.ctypes.c_int())), number.value)  # PR_GET_PDEATHSIG
    ours.setblocking(False)
    try:
        print(ours.recv(1))
    except BlockingIOError:
        print("nothing was said")
"""


@pytest.mark.parametrize(
    ("launcher", "outcome"),
    [
        ("alive", "0 9\nnothing was said\n"),
        ("busy", "0 9\nnothing was said\n"),
        ("dead", "die with the launcher EPIPE\n"),
    ],
)
def test_it_dies_with_a_launcher_that_lives(launcher: str, outcome: str) -> None:
    done = subprocess.run([sys.executable, "-c", CODE, launcher], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == (outcome, "")
