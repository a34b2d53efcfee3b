"""An ordinary user's way out, by pasta and by slirp4netns, in a network namespace that the test makes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from .test_rootless import ORDINARY, PREPARE

pytestmark = [pytest.mark.root, pytest.mark.tool("busybox", "ip", "nsenter", "pasta", "slirp4netns")]

UID = 1_000_000 + os.getpid()  # nobody's, and no other run's

TOOLS = ["pasta", "slirp4netns"]

#: Listens on an address, says so, and answers everybody.
SERVER = """
import socket, sys
with socket.create_server((sys.argv[1], 8000)) as server:
    print("ready", flush=True)
    peers = []
    while True:
        peers.append(server.accept()[0])
        peers[-1].sendall(sys.argv[2].encode() + b"\\n")
"""

#: In a view of the host's programs: Debian's static busybox has a wget that does not survive its own libc.
BASH = """
def outcome(script, **keywords):
    return pycontainer.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, **keywords)
def ask(address):
    return f"exec 3<>/dev/tcp/{address}/8000 && read -t 30 -u 3 line; echo $line"
"""


def running() -> list[str]:
    """What runs as the user, in the host's eyes."""
    found = psutil.process_iter(["uids", "status", "cmdline"])
    return [
        str(p.info["cmdline"])
        for p in found
        if p.info["uids"] and UID in p.info["uids"] and p.info["status"] != psutil.STATUS_ZOMBIE
    ]


@pytest.fixture
def network(until: Callable[..., None]) -> Iterator[list[str]]:
    """How a program is run in a network of its own, whose neighbour 198.51.100.1 has a server on port 8000.

    It has a server on its loopback device as well, that nobody is to reach from a container.
    """
    started: list[subprocess.Popen[bytes]] = []

    def start(*argv: str) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE))
        return started[-1]

    try:
        near, far = start("unshare", "-n", "sleep", "600"), start("unshare", "-n", "sleep", "600")
        ours = os.readlink("/proc/self/ns/net")
        for place in (near, far):
            until(lambda place=place: os.readlink(f"/proc/{place.pid}/ns/net") != ours)
        there, here = (["nsenter", "-t", str(place.pid), "-n"] for place in (far, near))

        def ip(place: list[str], arguments: str) -> None:
            subprocess.run([*place, "ip", *arguments.split()], check=True)

        ip(here, f"link add eth7 type veth peer name eth7 netns {far.pid}")
        for place, number in ((there, 1), (here, 2)):
            ip(place, f"address add 198.51.100.{number}/24 dev eth7")
            for device in ("lo", "eth7"):
                ip(place, f"link set {device} up")
        ip(here, "route add default via 198.51.100.1")
        for place, address, answer in ((there, "198.51.100.1", "outside"), (here, "127.0.0.1", "secret")):
            server = start(*place, sys.executable, "-c", SERVER, address, answer)
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
        yield here
    finally:
        for process in started:
            process.kill()
            process.communicate()


@pytest.fixture
def as_user(network: list[str], until: Callable[..., None]) -> Iterator[Callable[..., str]]:
    """Runs Python code as an ordinary user in that network: what it prints. Nothing of the user's is left running."""

    def as_user(code: str, *options: str, returncode: int = 0) -> str:
        argv = [*network, sys.executable, str(ORDINARY), *options, str(UID), sys.executable, "-c"]
        done = subprocess.run([*argv, PREPARE + BASH + code], capture_output=True, text=True, timeout=300, cwd="/")
        assert done.returncode == returncode, done.stderr
        return done.stdout

    yield as_user
    until(lambda: running() == [])


@pytest.mark.parametrize("tool", TOOLS)
def test_what_can_be_reached(as_user: Any, tool: str) -> None:
    found = as_user(
        f"""
script = ask("198.51.100.1") + "; cat /etc/resolv.conf; ip -o link; ip route"
done = outcome(script, network="{tool}", dns=["198.51.100.7"])
said = done.stdout
assert said.startswith("outside\\nnameserver 198.51.100.7\\n"), done
assert ": eth0: " in said and "eth7" not in said, said
gateway = said.partition("default via ")[2].split()[0]
# Not what listens on the host's loopback device, by whatever name.
for address in ("127.0.0.1", gateway, "198.51.100.2"):
    done = outcome(ask(address), network="{tool}")
    assert "secret" not in done.stdout, (address, done)
print(pycontainer.get_driver("native").probe().features[Feature.NETWORK].usable)
""",
        "--tun",
    )
    assert found == "True\n"


@pytest.mark.parametrize("tool", TOOLS)
def test_it_is_outside_of_its_container_and_ends_with_it(as_user: Any, tool: str) -> None:
    as_user(
        f"""
import psutil, time
def of_tool():
    return [p for p in psutil.process_iter(["name", "uids"])
            if p.info["name"].startswith(("pasta", "passt", "slirp4netns")) and p.info["uids"].real == os.getuid()]
box = Container(["sleep", "100"], network="{tool}")
assert of_tool()
assert box.exec(["bash", "-c", ask("198.51.100.1")], capture_output=True, text=True).stdout == "outside\\n"
inside = box.exec(["bash", "-c", "cat /proc/[0-9]*/comm"], capture_output=True, text=True).stdout.split()
assert sorted({{*inside, "bash"}}) == ["bash", "cat", "sleep"], inside
box.kill()
assert box.wait() == -9
deadline = time.monotonic() + 60
while of_tool():
    assert time.monotonic() < deadline
    time.sleep(0.01)
box.close()
""",
        "--tun",
    )


@pytest.mark.parametrize("tool", TOOLS)
def test_it_ends_with_a_caller_that_is_killed(as_user: Any, tool: str, until: Callable[..., None]) -> None:
    as_user(
        f"""
box = Container(["sleep", "100"], rootfs="root", network="{tool}")
os.kill(os.getpid(), 9)
""",
        "--tun",
        returncode=-9,
    )
    until(lambda: running() == [])


@pytest.mark.parametrize("tool", TOOLS)
def test_the_tool_says_why_it_failed(as_user: Any, tool: str) -> None:
    said = as_user(
        f"""
try:
    outcome("true", network="{tool}")
except SetupError as error:
    print(error.step)
print(pycontainer.get_driver("native").probe().features[Feature.NETWORK].cause)
print(sh("echo and the next one runs"))
"""
    )
    assert said.startswith(f"{tool} has failed: ")
    assert "tun" in said.splitlines()[0]
    assert "/dev/net/tun cannot be opened" in said
    assert "and the next one runs" in said


def test_root_has_bridges(start: Any) -> None:
    from pycontainer import UnsupportedError

    with pytest.raises(UnsupportedError, match="root has bridges"):
        start(["true"], network="pasta")
