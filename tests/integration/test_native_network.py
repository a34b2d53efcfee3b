"""The container's network, as the kernel shows it: namespaces that exist already, and bridges."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pycontainer import InvalidCommandError, Network, NotRunningError

pytestmark = pytest.mark.root


def inode(of: int | str) -> str:
    return os.readlink(f"/proc/{of}/ns/net")


@pytest.fixture
def namespace(native: Any) -> Iterator[str]:
    """The path of a network namespace with an interface ``inside0``, which a process keeps."""
    script = "ip link add inside0 type bridge && echo && exec sleep 1000"
    with subprocess.Popen(["unshare", "--net", "sh", "-c", script], stdout=subprocess.PIPE) as keeper:
        assert keeper.stdout is not None
        keeper.stdout.readline()
        yield f"/proc/{keeper.pid}/ns/net"
        keeper.kill()


# -- namespaces that exist


def test_a_namespace_by_its_path(start: Any, sh: Any, namespace: str, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.touch()
    subprocess.run(["mount", "--bind", namespace, str(kept)], check=True)  # as ip-netns(8) keeps them
    try:
        box = start(["sleep", "1000"], network=f"ns:{kept}")
        assert inode(box.pid) == os.readlink(namespace)
        done = sh("ls /sys/class/net; cut -d: -f1 /proc/net/dev | grep inside0", network=Network("ns", path=namespace))
        assert done.stdout.split() == ["inside0", "lo", "inside0"]  # its sysfs is that network's as well
        assert box.exec(["ip", "link", "show", "inside0"]).returncode == 0
    finally:
        subprocess.run(["umount", str(kept)], check=True)


def test_the_network_of_another_container(start: Any, sh: Any) -> None:
    first = start(["sleep", "1000"])
    second = start(["sleep", "1000"], network=f"container:{first.id}")
    assert inode(second.pid) == inode(first.pid) != inode("self")
    first.kill()
    first.wait()
    # It is theirs who are left.
    assert sh("ip link show lo", network=f"container:{second.id}").stdout.count("LOOPBACK,UP") == 1


def test_what_is_no_network_namespace(start: Any, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path, pipe, tmp_path / "missing", "/proc/self/ns/uts", "/proc/self/ns/net", "/proc/1/ns/net"):
        with pytest.raises(InvalidCommandError) as caught:
            start(["true"], network=f"ns:{path}")
        assert caught.value.field == "network.path"
        assert str(path) in str(caught.value)


def test_the_network_of_a_container_that_does_not_run(start: Any) -> None:
    ended = start(["true"])
    ended.wait()
    for id in (ended.id, "nobody"):
        with pytest.raises(NotRunningError, match=id):
            start(["true"], network=f"container:{id}")


def test_the_hosts_network_of_another_container(start: Any) -> None:
    first = start(["sleep", "1000"], network="host")
    with pytest.raises(InvalidCommandError, match="host"):
        start(["true"], network=f"container:{first.id}")


def test_no_descriptor_stays(start: Any, native: Any, namespace: str) -> None:
    """Neither here nor in the launcher nor in the container: or the namespace would never end."""
    box = start(["sleep", "1000"], network=f"ns:{namespace}")
    wanted = os.readlink(namespace)
    for pid in (os.getpid(), native._launcher.pid, box.pid):
        links = (os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd") if os.path.lexists(entry.path))
        assert wanted not in list(links)


def test_many_at_once(start: Any, namespace: str) -> None:
    """With the spare of containers of another kind in between."""
    errors: list[Exception] = []

    def several(network: str | None, expected: bool) -> None:
        try:
            for _ in range(5):
                box = start(["sleep", "1000"], network=network)
                assert (inode(box.pid) == os.readlink(namespace)) is expected
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=several, args=a) for a in ((f"ns:{namespace}", True), (None, False))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
