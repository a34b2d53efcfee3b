"""A container's network, finished before there is a container: a namespace with interfaces on the host's bridges.

Whatever goes wrong is known before anything else has been made, and nothing
here outlives the namespace: both ends of a veth pair go when one does.  The
descriptor of the namespace is what a start needs, and once that has failed,
or the process that holds it has died, it is all that kept the pair.

An address is claimed by an alternative name of the host's end, which is made
of the bridge and the address: the kernel itself refuses a second one, and the
claim ends with the interface.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import ipaddress
import os
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from pycontainer.errors import ContainerError, InvalidCommandError, SetupError
from pycontainer.network import named
from pycontainer_native import abi
from pycontainer_native.namespaces import BRIDGES
from pycontainer_native.rtnetlink import Link, Route

if TYPE_CHECKING:
    from pycontainer.network import Network

#: Whoever makes, uses or removes a bridge of ours holds this file's lock meanwhile.
_LOCK = BRIDGES

#: How long a claim of somebody who has died is waited for: his namespace ends only when RCU has seen its last socket.
_PATIENCE = 2.0

_ACCEPT_RA = "/proc/sys/net/ipv6/conf/default/accept_ra"

_LOOPBACK = 1  # its index, in every namespace (LOOPBACK_IFINDEX)


class Attachment:
    """The namespace of one container, and its interfaces' other ends."""

    def __init__(self, fd: int, user: int = -1) -> None:
        """Of the calling thread's own namespace, whose descriptor *fd* is; *user* is that of the one that owns it."""
        self.fd = self.user = -1
        self.route = Route()  # for the interfaces inside
        self.links: list[tuple[str, list[str]]] = []  # the other ends' names, and what each has claimed
        self._owner = os.getpid()
        self.fd, self.user = fd, user  # now that nothing fails any more: until here they are the caller's
        _open.add(self)

    def close(self) -> None:
        """Let go of the namespace: the container has it, or nobody."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self.route.close()
        if self.user >= 0:
            os.close(self.user)
            self.user = -1

    __del__ = close

    def release(self) -> None:
        """The container has ended: nothing is left on its bridges, and its addresses are free.

        The interfaces themselves go with the namespace, which the rest of a
        connection may keep alive for a while (tcp(7), orphaned sockets).
        """
        self.close()
        if self.links and os.getpid() == self._owner:
            with contextlib.closing(Route()) as outside:
                while self.links:
                    with contextlib.suppress(OSError):  # ENODEV: gone with its namespace
                        outside.retire(*self.links.pop())


def attach(networks: Sequence[Network], id: str, holds: Callable[[str], bool], made: Sequence[int] = ()) -> Attachment:
    """A new namespace with loopback and an interface for each of *networks*, for the container *id*.

    *holds* says whether that container of this process runs.  *made* are the
    descriptors of the user namespace that it belongs to, and of itself, where
    it is not this process's to make; they are closed with it.  Raises
    InvalidCommandError: an unknown bridge, an address that is in use;
    SetupError.  After either nothing is left.
    """
    attachment = _new_namespace(made)
    try:
        with contextlib.closing(Route()) as outside:
            with _step("bring lo up"):
                attachment.route.set_up(_LOOPBACK)
            for network in named(networks):
                with _lock() if network.create_bridge else contextlib.nullcontext():
                    bridge = _bridge(outside, network)
                    _join(outside, attachment, network, bridge.index, id, holds)
                _configure(attachment.route, network)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to tell
            attachment.release()
        raise
    return attachment


#: A forked child lets go of them, or its copies would keep the namespaces.
_open: weakref.WeakSet[Attachment] = weakref.WeakSet()


def _close_all() -> None:
    for attachment in list(_open):
        attachment.close()


os.register_at_fork(after_in_child=_close_all)


def _new_namespace(made: Sequence[int] = ()) -> Attachment:
    """A network namespace, and a socket in it: made by a thread that ends, so that nobody else is ever in there.

    *made* as in :func:`attach`: the thread enters that one.
    """
    result: list[Attachment | BaseException] = []
    libc = ctypes.CDLL(None, use_errno=True)
    caller = os.readlink("/proc/thread-self")

    def make() -> None:
        fds = list(made)
        try:
            if os.readlink("/proc/thread-self") == caller:
                raise ContainerError("threads are no threads here (gevent?): a network needs one for a moment")
            if (libc.setns(fds[1], abi.CLONE_NEWNET) if made else libc.unshare(abi.CLONE_NEWNET)) == -1:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            _ignore_advertisements()
            if not made:
                fds.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
            result.append(Attachment(*reversed(fds)))
        except BaseException as error:
            for fd in fds:
                os.close(fd)
            result.append(error)

    with _step("enter the network namespace" if made else "make a network namespace"):
        thread = threading.Thread(target=make, name="pycontainer network")
        try:
            thread.start()
        except RuntimeError:  # there is no room for a thread
            for fd in made:
                os.close(fd)
            raise
        thread.join()
        attachment = result[0]
        if isinstance(attachment, BaseException):
            raise attachment
        return attachment


def _ignore_advertisements() -> None:
    """No interface to come of the calling thread's namespace takes a router advertisement (CVE-2020-13401).

    Its addresses and routes are those that were asked for, and not what somebody
    on the bridge says.  ``sysctls`` come later, and so can change it.
    """
    with _step("ignore router advertisements"), contextlib.suppress(FileNotFoundError):  # without IPv6
        fd = os.open(_ACCEPT_RA, os.O_WRONLY | os.O_CLOEXEC)  # what is there is the network of who opens it
        try:
            os.write(fd, b"0")
        finally:
            os.close(fd)


def _join(
    outside: Route, attachment: Attachment, network: Network, bridge: int, id: str, holds: Callable[[str], bool]
) -> None:
    """Make the veth pair, and claim the addresses."""
    name = f"pyc{os.urandom(4).hex()}"
    claimed: list[str] = []
    attachment.links.append((name, claimed))
    with _step(f"make a veth pair on {network.bridge}"):
        assert network.interface is not None
        outside.add_veth(name, bridge, network.interface, attachment.fd, mac=network.mac, mtu=network.mtu)
    for suffix in ("", "6"):
        address: str | None = getattr(network, f"address{suffix}")
        if address is None:
            continue
        field = f"network.address{suffix}"
        if outside.is_local(address):
            raise InvalidCommandError(field, f"{address} is in use: it is this host's own")
        altname = f"pycontainer-{network.bridge}-{ipaddress.ip_address(address).compressed}"
        deadline = time.monotonic() + _PATIENCE
        while not _claim(outside, name, altname):
            holder = _holder(outside, altname)
            if holder is None:
                continue
            pid, other = holder
            alive = holds(other) if pid == os.getpid() else _started(pid) is not None
            if alive or time.monotonic() > deadline:
                reason = f"{address} is in use on {network.bridge}: by container {other} of process {pid}"
                raise InvalidCommandError(field, reason)
            time.sleep(0.01)
        claimed.append(altname)
        with _step("name the interface"):
            outside.set_alias(name, f"pycontainer {os.getpid()} {id}")


def _claim(outside: Route, name: str, altname: str) -> bool:
    with _step(f"claim {altname}"):
        try:
            outside.add_altname(name, altname)
        except OSError as error:
            if error.errno != errno.EEXIST:
                raise
            return False
    return True


def _holder(outside: Route, altname: str) -> tuple[int, str] | None:
    """The process and the container that have claimed an address; None when they no longer do."""
    try:
        words = outside.link(altname).alias.split()
    except OSError:
        return None
    return (int(words[1]), words[2]) if len(words) == 3 and words[1].isdecimal() else (0, "that is just starting")


def _configure(inside: Route, network: Network) -> None:
    """Addresses and routes, in the namespace."""
    with _step(f"configure {network.interface}"):
        index = _index(inside, network.interface or "")
        for suffix in ("", "6"):
            address, bits = getattr(network, f"address{suffix}"), getattr(network, f"prefix_length{suffix}")
            if address is not None:
                inside.add_address(index, address, bits)
        inside.set_up(index)
        for gateway in (network.gateway, network.gateway6):
            if gateway is not None:
                inside.add_default_route(index, gateway)


def _index(route: Route, name: str) -> int:
    """The index of an interface: an ioctl on any socket asks the network namespace of that socket (netdevice(7))."""
    request = struct.pack("=16s24x", name.encode())
    return int(struct.unpack_from("=i", fcntl.ioctl(route.socket, abi.SIOCGIFINDEX, request), 16)[0])


def _delete(outside: Route, name: str) -> None:
    try:
        outside.delete(name)
    except OSError as error:
        if error.errno != errno.ENODEV:  # it has gone with its namespace
            raise


# -- bridges

#: The group of a bridge that has been made and does not say by whom yet: that takes a second request, before which its
#: maker may be killed.
_HALF_MADE = int.from_bytes(b"pyct", "big")


def _is_half_made(link: Link) -> bool:
    """Whether *link* is a bridge of nobody's, for whoever holds the lock: then its maker does no more."""
    return link.kind == "bridge" and link.group == _HALF_MADE and not link.alias


def find_bridge(outside: Route, network: Network) -> Link | None:
    """The bridge of *network*, None where there is none. Raises InvalidCommandError: it is something else."""
    name = network.bridge or ""
    try:
        link = outside.link(name)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        return None
    if link.kind != "bridge":
        raise InvalidCommandError(
            "network.bridge", f"{name} is not a bridge" + (f" but a {link.kind}" * bool(link.kind))
        )
    return link


def _bridge(outside: Route, network: Network) -> Link:
    """The bridge of *network*, made where that is asked for."""
    link = find_bridge(outside, network)
    name = network.bridge or ""
    if link is None or _is_half_made(link):
        if not network.create_bridge:
            raise InvalidCommandError("network.bridge", f"there is no bridge {name!r}: create_bridge=True makes one")
        sweep(outside)
        with _step(f"make bridge {name}"):
            outside.add_bridge(name, _HALF_MADE)
            try:
                outside.set_alias(name, f"pycontainer {os.getpid()} {_started(os.getpid())}")
                link = outside.link(name)
                outside.set_up(link.index)
            except BaseException:
                with contextlib.suppress(OSError):
                    _delete(outside, name)
                raise
    if network.create_bridge and link.alias.startswith("pycontainer "):
        for suffix in ("", "6"):
            gateway, bits = getattr(network, f"gateway{suffix}"), getattr(network, f"prefix_length{suffix}")
            if gateway is not None:
                with _step(f"give bridge {name} the address {gateway}"):
                    try:
                        outside.add_address(link.index, gateway, bits)
                    except OSError as error:
                        if error.errno != errno.EEXIST:
                            raise
    return link


def remove_bridges(of: int = 0) -> list[str]:
    """Remove the bridges on which nothing is, of makers that have died, and of process *of*; their names."""
    with _lock(), contextlib.closing(Route()) as outside:
        return sweep(outside, of)


def sweep(outside: Route, of: int = 0) -> list[str]:
    """:func:`remove_bridges`, for whoever holds the lock."""
    removed = []
    links = outside.links()
    used = {link.master for link in links}
    for link in links:
        words = link.alias.split()
        if _is_half_made(link) and link.index not in used:
            _delete(outside, link.name)
            removed.append(link.name)
            continue
        if link.kind != "bridge" or len(words) != 3 or words[0] != "pycontainer" or not words[1].isdecimal():
            continue
        if link.index not in used and (int(words[1]) == of or _started(int(words[1])) != words[2]):
            _delete(outside, link.name)
            removed.append(link.name)
    return removed


def _started(pid: int) -> str | None:
    """When that process started (proc_pid_stat(5)), which tells it from a later one; None: it has died."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()[19]
    except OSError:
        return None


@contextlib.contextmanager
def _lock() -> Iterator[None]:
    """So that no bridge is removed while somebody is about to use it, nor made twice."""
    with _step("lock the bridges"):
        os.makedirs(os.path.dirname(_LOCK), 0o700, exist_ok=True)
        fd = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def _step(label: str) -> Iterator[None]:
    """What the kernel refuses inside, as the SetupError of that step."""
    try:
        yield
    except SetupError:
        raise
    except OSError as error:
        raise SetupError(label, error.errno or errno.EPROTO) from error
