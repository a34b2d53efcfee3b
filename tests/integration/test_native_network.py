"""The container's network, as the kernel shows it: namespaces that exist already, and bridges."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pycontainer
from pycontainer import ContainerLostError, InvalidCommandError, Mount, Network, NotRunningError, SetupError
from pycontainer_native import network as networks
from pycontainer_native import rtnetlink
from pycontainer_native.network import remove_bridges

from .host import ip, ports, wait_until

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
    for pid in (os.getpid(), native._launchers.current.pid, box.pid):
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


# -- bridges


def links() -> set[str]:
    return {line.split(": ")[1].split("@")[0] for line in ip("-o", "link").splitlines()}


@pytest.fixture
def bridge(native: Any) -> Iterator[str]:
    """A bridge of this test's own, with 10.253.N.1/24 and fd00:N::1/64; nothing is left on it at the end."""
    name = f"pyct{os.getpid() % 100000:05d}"
    ip("link", "add", name, "type", "bridge")
    try:
        ip("addr", "add", f"{SUBNET}.1/24", "dev", name)
        ip("addr", "add", f"{SUBNET6}::1/64", "dev", name, "nodad")
        ip("link", "set", name, "up")
        yield name
        wait_until(lambda: ports(name) == set(), "something is left on the bridge")
    finally:
        ip("link", "del", name)


SUBNET = f"10.253.{os.getpid() % 250}"
SUBNET6 = f"fd00:{os.getpid() % 10000}"


def at(bridge: str, number: int, **fields: Any) -> Network:
    return Network(bridge=bridge, address=f"{SUBNET}.{number}", prefix_length=24, **fields)


@pytest.fixture(params=[None, "auto"], ids=["root", "userns"])
def userns(request: pytest.FixtureRequest) -> Any:
    """Whether the network is that of a user namespace of the container's own."""
    if request.param:
        request.getfixturevalue("mapped_files")
    return request.param


#: And of another container.
others = userns


def test_everything_of_docker_0_9(bridge: str, sh: Any, userns: Any) -> None:
    network = at(
        bridge,
        2,
        gateway=f"{SUBNET}.1",
        mtu=1400,
        mac="02:11:22:33:44:55",
        address6=f"{SUBNET6}::2",
        prefix_length6=64,
        gateway6=f"{SUBNET6}::1",
    )
    done = sh(
        "ip -o addr show eth0; ip -o link; ip route; ip -6 route; ls /sys/class/net", network=network, userns=userns
    )
    for expected in (
        f"{SUBNET}.2/24",
        f"{SUBNET6}::2/64",
        "mtu 1400",
        "02:11:22:33:44:55",
        f"default via {SUBNET}.1 dev eth0",
        f"default via {SUBNET6}::1 dev eth0",
        "LOOPBACK,UP,LOWER_UP",
    ):
        assert expected in done.stdout, done.stdout
    assert done.stdout.split()[-2:] == ["eth0", "lo"]  # its sysfs shows its own


def test_a_port_of_the_container_from_the_host(bridge: str, start: Any, userns: Any) -> None:
    """And of the host from the container, by both protocols."""
    network = at(bridge, 2, address6=f"{SUBNET6}::2", prefix_length6=64)
    for address, own, family in (
        (f"{SUBNET}.2", f"{SUBNET}.1", socket.AF_INET),
        (f"{SUBNET6}::2", f"{SUBNET6}::1", socket.AF_INET6),
    ):
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.bind((own, 0))
            listener.listen()
            port = listener.getsockname()[1]
            script = f"echo hello | nc -w 20 {own} {port}; echo from inside | nc -l -p 8080 -w 20"
            box = start(["sh", "-c", script], network=network, userns=userns)
            listener.settimeout(30)
            connection, (peer, *_) = listener.accept()
            with connection:
                assert (connection.recv(100), peer) == (b"hello\n", address)
        assert read_from(address, 8080) == b"from inside\n"
        box.kill()
        box.wait()


def read_from(address: str, port: int) -> bytes:
    """What somebody there says; the listener may not be there yet."""
    deadline = time.monotonic() + 30
    while True:
        try:
            with socket.create_connection((address, port), timeout=10) as connection:
                return connection.recv(100)
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_the_files_of_etc(bridge: str, sh: Any, busybox_rootfs: Path, tmp_path: Path, userns: Any) -> None:
    rootfs = tmp_path / "rootfs"
    shutil.copytree(busybox_rootfs, rootfs, symlinks=True)
    for name in ("hosts", "resolv.conf"):
        (rootfs / "etc" / name).write_text("the rootfs's\n")
    network = at(bridge, 2, gateway=f"{SUBNET}.1")
    fields: dict[str, Any] = {"hostname": "box", "dns": ["192.0.2.53"], "dns_search": ["example.org"], "rootfs": rootfs}
    fields["userns"] = userns
    fields["extra_hosts"] = {"db": "192.0.2.7", "host": "host-gateway"}
    done = sh("cat /etc/hosts /etc/resolv.conf; ls /etc; echo more >> /etc/hosts", network=network, **fields)
    assert done.returncode == 0
    for line in (
        "127.0.0.1\tlocalhost",
        f"{SUBNET}.2\tbox",
        "192.0.2.7\tdb",
        f"{SUBNET}.1\thost",
        "nameserver 192.0.2.53",
        "search example.org",
    ):
        assert line in done.stdout.splitlines()
    assert "hostname" not in done.stdout.split()  # the rootfs has none
    assert (rootfs / "etc/hosts").read_text() == "the rootfs's\n"
    assert sh("echo more >> /etc/hosts", network=network, read_only=True, **fields).returncode == 1
    mine = tmp_path / "mine"
    mine.write_text("mine\n")
    mounts = [Mount(str(mine), "/etc/hosts")]
    assert sh("cat /etc/hosts", network=network, mounts=mounts, **fields).stdout == "mine\n"
    assert sh("cat /etc/hosts", rootfs=rootfs).stdout == "the rootfs's\n"  # nobody asked for anything


@pytest.mark.parametrize(
    ("field", "value", "name"),
    [
        ("dns", ["192.0.2.53"], "resolv.conf"),
        ("dns_search", ["example.org"], "resolv.conf"),
        ("extra_hosts", {"db": "192.0.2.7"}, "hosts"),
    ],
)
def test_what_has_no_place_in_the_rootfs_is_refused(
    sh: Any, busybox_rootfs: Path, tmp_path: Path, field: str, value: Any, name: str
) -> None:
    rootfs = tmp_path / "rootfs"
    shutil.copytree(busybox_rootfs, rootfs, symlinks=True)
    file = rootfs / "etc" / name
    for target in (None, "../run/nothing", name):
        file.unlink(missing_ok=True)
        if target is not None:
            file.symlink_to(target)
        with pytest.raises(InvalidCommandError, match=f"no file /etc/{name}") as caught:
            sh("true", rootfs=rootfs, **{field: value})
        assert caught.value.field == field
    file.unlink()
    (tmp_path / "mine").touch()
    assert (
        sh("true", rootfs=rootfs, mounts=[Mount(str(tmp_path / "mine"), f"/etc/{name}")], **{field: value}).returncode
        == 0
    )
    file.unlink(missing_ok=True)
    file.touch()
    assert sh(f"wc -l < /etc/{name}", rootfs=rootfs, **{field: value}).stdout != "0\n"


def test_a_link_of_the_rootfs_leads_none_of_them_elsewhere(
    bridge: str, sh: Any, busybox_rootfs: Path, tmp_path: Path
) -> None:
    rootfs = tmp_path / "rootfs"
    shutil.copytree(busybox_rootfs, rootfs, symlinks=True)
    outside = tmp_path / "outside"
    outside.write_text("the host's\n")
    (rootfs / "etc/hosts").symlink_to(outside)
    (rootfs / "etc/hostname").symlink_to("/proc/sys/kernel/hostname")
    (rootfs / "etc/resolv.conf").symlink_to("../run/resolv.conf")
    (rootfs / "run").mkdir(exist_ok=True)
    (rootfs / "run/resolv.conf").touch()
    script = "grep -c /etc_ /proc/self/mountinfo; cat /etc/resolv.conf"
    done = sh(script, network=at(bridge, 2), rootfs=rootfs, dns=["192.0.2.53"])
    assert done.stdout == "1\nnameserver 192.0.2.53\n"  # /run/resolv.conf alone, where its link leads inside
    assert outside.read_text() == "the host's\n"


def test_names_in_the_view_of_the_hosts_programs(bridge: str, python: Any, userns: Any) -> None:
    code = "import socket; print(socket.gethostbyname(socket.gethostname()), socket.gethostbyname('db'))"
    done = python(code, network=at(bridge, 2), extra_hosts={"db": "192.0.2.7"}, userns=userns)
    assert done.stdout.split() == [f"{SUBNET}.2", "192.0.2.7"], done.stderr
    code = "import socket; print(socket.gethostbyname(socket.gethostname()))"
    assert python(code, extra_hosts={"db": "192.0.2.7"}).stdout == "127.0.0.1\n"


def test_two_containers_on_one_bridge(bridge: str, start: Any, sh: Any, userns: Any, others: Any) -> None:
    server = start(["sh", "-c", "echo to you | nc -l -p 9"], network=at(bridge, 2), userns=userns)
    script = f"until nc -w 5 {SUBNET}.2 9 </dev/null; do :; done"
    assert sh(script, network=at(bridge, 3), userns=others).stdout == "to you\n"
    server.wait(30)


def test_several_interfaces(bridge: str, sh: Any, userns: Any) -> None:
    networks = [at(bridge, 2), at(bridge, 3, interface="lan7"), Network(bridge=bridge)]
    done = sh("ls /sys/class/net; ip -o -4 addr show lan7", network=networks, userns=userns)
    assert done.stdout.split()[:4] == ["eth0", "eth2", "lan7", "lo"]
    assert f"{SUBNET}.3/24" in done.stdout


def test_an_address_in_use(bridge: str, start: Any, sh: Any, userns: Any) -> None:
    before = ports(bridge)
    first = start(["sleep", "1000"], network=at(bridge, 2), name="first", userns=userns)
    now = ports(bridge)
    for number, what in ((2, "first"), (1, "this host")):
        with pytest.raises(InvalidCommandError, match=what) as caught:
            sh("true", network=at(bridge, number), userns=userns)
        assert caught.value.field == "network.address"
    with pytest.raises(InvalidCommandError, match="in use"):
        sh("true", network=[Network(bridge=bridge), at(bridge, 2)])
    assert ports(bridge) == now
    first.kill()
    first.wait()
    assert ports(bridge) == before  # when wait returns, not some time later
    assert sh("true", network=at(bridge, 2)).returncode == 0


def test_an_unknown_bridge(bridge: str, sh: Any, native: Any) -> None:
    before = ports(bridge)
    with pytest.raises(InvalidCommandError, match="pyc-missing") as caught:
        sh("true", network="bridge:pyc-missing")
    assert caught.value.field == "network.bridge"
    with pytest.raises(InvalidCommandError, match="lo is not a bridge"):
        sh("true", network="bridge:lo")
    assert ports(bridge) == before


def test_a_bridge_that_is_made(start: Any, caller: Any) -> None:
    """With the gateway's address; it goes with the process that made it, or with the next if somebody is on it."""
    name = f"pycm{os.getpid() % 100000:05d}"
    code = f"""
from pycontainer import Container, Network
network = Network(bridge={name!r}, create_bridge=True, address="{SUBNET}.130", prefix_length=25, gateway="{SUBNET}.129")
print(pycontainer.run(["ping", "-c1", "-W5", "{SUBNET}.129"], rootfs=ROOTFS, network=network, cap_add=["NET_RAW"],
                      capture_output=True).returncode, flush=True)
input()
"""
    maker = caller(code)
    assert maker.stdout.readline() == "0\n"
    assert f"{SUBNET}.129/25" in ip("addr", "show", name)
    box = start(["sleep", "1000"], network=at(name, 131))
    maker.communicate("\n")
    assert name in links()  # somebody is on it
    box.kill()
    box.wait()
    second = caller(code)
    assert second.stdout.readline() == "0\n"
    second.kill()
    second.wait()
    assert name in links()
    third = caller(code.replace(name, name + "x"))  # whoever makes the next takes it along
    assert third.stdout.readline() == "0\n"
    assert name not in links()
    third.communicate("\n")
    assert not {name, name + "x"} & links()


def test_a_bridge_whose_maker_was_killed_is_collected(caller: Any) -> None:
    name = f"pycg{os.getpid() % 100000:05d}"
    maker = caller(f"""
box = pycontainer.Container(["sleep", "1000"], rootfs=ROOTFS, network="name={name},create")
print(flush=True)
input()
""")
    maker.stdout.readline()
    assert name not in remove_bridges(os.getpid())  # it is neither this process's nor a dead one's
    maker.kill()
    maker.wait()
    wait_until(lambda: remove_bridges() is None or name not in links(), "the bridge is never collected")


def test_a_bridge_whose_maker_was_killed_before_it_could_say_so_is_collected(caller: Any, sh: Any) -> None:
    name = f"pych{os.getpid() % 100000:05d}"
    code = f"""
from pycontainer_native import rtnetlink
rtnetlink.Route.set_alias = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
pycontainer.run(["true"], rootfs=ROOTFS, network="name={name},create")
"""
    assert caller(code).wait(60) == -signal.SIGKILL
    assert name in links()
    with pytest.raises(InvalidCommandError, match="no bridge"):
        sh("true", network=f"bridge:{name}")
    assert sh("true", network=f"name={name},create").returncode == 0  # made anew, by this process
    assert remove_bridges(os.getpid()) == [name]
    assert caller(code).wait(60) == -signal.SIGKILL
    assert remove_bridges() == [name]
    assert name not in links()


def test_a_bridge_that_cannot_be_finished_is_undone(sh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"pych{os.getpid() % 100000:05d}"
    for step in ("set_alias", "set_up"):
        request = getattr(rtnetlink.Route, step)

        def failing(self: Any, which: Any, *arguments: Any, request: Any = request) -> None:
            if which != 1:  # the loopback device inside
                raise OSError(errno.ENOBUFS, "no")
            request(self, which, *arguments)

        with monkeypatch.context() as patched:
            patched.setattr(rtnetlink.Route, step, failing)
            with pytest.raises(SetupError) as caught:
                sh("true", network=f"name={name},create")
            assert caught.value.errno == errno.ENOBUFS
        assert name not in links()


def test_a_detached_container(bridge: str, caller: Any, native: Any) -> None:
    code = f"""
network = pycontainer.Network(bridge={bridge!r}, address="{SUBNET}.2", prefix_length=24)
print(pycontainer.Container(["sleep", "1000"], rootfs=ROOTFS, network=network, detach=True).id)
"""
    id = caller(code).communicate()[0].strip()
    box = pycontainer.get(id)
    try:
        assert f"{SUBNET}.2/24" in box.exec(["ip", "-o", "addr"], capture_output=True, text=True).stdout
        assert len(ports(bridge)) == 1
    finally:
        box.kill()
        box.wait(30)
        box.remove()
    wait_until(lambda: ports(bridge) == set(), "an interface is left")


@pytest.mark.parametrize("when", range(9))
def test_nothing_is_left_when_a_step_fails(
    bridge: str, sh: Any, native: Any, monkeypatch: pytest.MonkeyPatch, when: int, userns: Any
) -> None:
    before = ports(bridge)
    request = rtnetlink.Route._request
    count = 0

    def failing(self: Any, *arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == when + 1:
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        return request(self, *arguments)

    monkeypatch.setattr(rtnetlink.Route, "_request", failing)
    with pytest.raises((SetupError, OSError)) as caught:
        sh("true", network=at(bridge, 2, gateway=f"{SUBNET}.1"), userns=userns)
    assert caught.value.errno == errno.ENOBUFS
    wait_until(lambda: ports(bridge) == before, "an interface is left")
    monkeypatch.undo()
    assert sh("true", network=at(bridge, 2)).returncode == 0


def test_a_namespace_without_a_socket_is_let_go_of_once(
    bridge: str, sh: Any, monkeypatch: pytest.MonkeyPatch, userns: Any
) -> None:
    def failing() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(networks, "Route", failing)
    with pytest.raises(SetupError, match="network namespace") as caught:
        sh("true", network=at(bridge, 2), userns=userns)
    assert caught.value.errno == errno.EMFILE
    monkeypatch.undo()
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(8)]  # with the numbers that are free again
    del caught
    gc.collect()
    for fd in opened:
        os.close(fd)
    assert sh("true", network=at(bridge, 2), userns=userns).returncode == 0


@pytest.mark.parametrize("reason", ["execve", "mount"])
def test_nothing_is_left_when_the_start_fails(bridge: str, start: Any, reason: str, userns: Any) -> None:
    before = ports(bridge)
    what: dict[str, Any] = {"argv": ["/missing"]} if reason == "execve" else {"argv": ["true"], "cwd": "/missing"}
    with pytest.raises(SetupError):
        start(network=at(bridge, 2), userns=userns, **what)
    assert ports(bridge) == before
    start(["true"], network=at(bridge, 2)).wait()


def test_nothing_is_left_when_a_detached_start_fails(bridge: str, start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where something else keeps the namespace: the address is free when the error is told."""
    before = ports(bridge)
    attach, kept = networks.attach, []

    def keeping(*arguments: Any) -> networks.Attachment:
        made = attach(*arguments)
        kept.append(os.dup(made.fd))
        return made

    monkeypatch.setattr(networks, "attach", keeping)
    try:
        with pytest.raises(SetupError, match="execve"):
            start(["/missing"], network=at(bridge, 2), detach=True)
        assert ports(bridge) == before
        assert len(kept) == 1
    finally:
        for fd in kept:
            os.close(fd)


def test_nothing_is_left_of_a_caller_that_was_killed(bridge: str, caller: Any, sh: Any, userns: Any) -> None:
    """At any moment: each one is killed at another time of its start."""
    before = ports(bridge)
    code = f"""
from pycontainer import Container, Network
network = Network(bridge={bridge!r}, address="{SUBNET}.2", prefix_length=24)
from pycontainer_native import rtnetlink
request, count = rtnetlink.Route._request, 0
def counting(self, *arguments):
    global count
    count += 1
    if count == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return request(self, *arguments)
rtnetlink.Route._request = counting
box = Container(["sleep", "1000"], rootfs=ROOTFS, network=network, userns={userns!r})
os.kill(os.getpid(), signal.SIGKILL)
"""
    for when in range(1, 9):
        dead = caller(code.replace("sys.argv[1]", str(when)))
        assert dead.wait() == -signal.SIGKILL
        # Its address is free at once, or as soon as the kernel has seen its end.
        assert sh("true", network=at(bridge, 2)).returncode == 0
        wait_until(lambda: ports(bridge) == before, f"an interface is left of the one killed at {when}")


def test_a_restarted_launcher(bridge: str, own_driver: Any, busybox_rootfs: Path, userns: Any) -> None:
    before = ports(bridge)
    keywords: dict[str, Any] = {"rootfs": busybox_rootfs, "driver": own_driver, "userns": userns}
    box = pycontainer.Container(["sleep", "1000"], network=at(bridge, 2), **keywords)
    os.kill(own_driver._launchers.current.pid, signal.SIGKILL)
    with pytest.raises(ContainerLostError):
        box.wait()
    box.close()
    done = pycontainer.run(["true"], network=at(bridge, 2), **keywords)
    assert done.returncode == 0
    wait_until(lambda: ports(bridge) == before, "an interface is left")


def test_bridged_containers_from_many_threads(bridge: str, start: Any, userns: Any) -> None:
    errors: list[BaseException] = []

    def several(first: int) -> None:
        try:
            for number in range(first, first + 4):
                own: dict[str, Any] = {"network": at(bridge, number), "userns": userns}
                box = start(["ip", "-o", "-4", "addr", "show", "eth0"], stdout=-1, text=True, **own)
                output, _ = box.communicate()
                assert f"{SUBNET}.{number}/24" in output
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=several, args=(10 * n,)) for n in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_of_several_for_one_address_one_gets_it(bridge: str, start: Any) -> None:
    results: list[Any] = []

    def one() -> None:
        try:
            results.append(start(["sleep", "1000"], network=at(bridge, 2)))
        except InvalidCommandError as error:
            results.append(error)

    threads = [threading.Thread(target=one) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(isinstance(result, InvalidCommandError) for result in results) == [False, True, True, True, True]


def test_a_forked_child_keeps_no_network(bridge: str, start: Any, userns: Any) -> None:
    before = ports(bridge)
    box = start(["sleep", "1000"], network=at(bridge, 2), userns=userns)
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    try:
        box.kill()
        box.wait()
        assert ports(bridge) == before
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_what_the_container_sends_is_counted(bridge: str, start: Any, userns: Any) -> None:
    box = start(["sleep", "1000"], network=at(bridge, 2), cap_add=["NET_RAW"], userns=userns)
    before = box.stats().network["eth0"]
    assert box.exec(["ping", "-c3", "-i0.1", "-s1000", "-W5", f"{SUBNET}.1"]).returncode == 0
    after = box.stats().network["eth0"]
    assert after.rx_bytes - before.rx_bytes >= 3000
    assert after.tx_bytes - before.tx_bytes >= 3000


def test_exec_and_a_second_container_see_it(bridge: str, start: Any, sh: Any, userns: Any) -> None:
    box = start(["sleep", "1000"], network=at(bridge, 2), userns=userns)
    shows = ["ip", "-o", "-4", "addr", "show", "eth0"]
    assert f"{SUBNET}.2" in box.exec(shows, capture_output=True, text=True).stdout
    assert f"{SUBNET}.2" in sh(" ".join(shows), network=f"container:{box.id}").stdout
