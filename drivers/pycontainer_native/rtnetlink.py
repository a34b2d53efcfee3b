"""rtnetlink(7): pyroute2's messages over a plain socket.

pyroute2's own sockets run an event loop each, which takes longer than all that
the kernel does here; and a socket belongs to the network namespace that it was
made in, which has to be chosen.  Importing pyroute2 takes a tenth of a second,
so this module is imported by the first container with a bridge.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, rtnl
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence number, port
_ERROR, _DONE = 2, 3  # NLMSG_ERROR, NLMSG_DONE
_DUMP = 0x300
_IFF_UP = 1
_NODAD = 2  # IFA_F_NODAD: nobody else has it, and it is to be used at once
_RTN_LOCAL = 2

#: What is said of an address that no packet can go to (fib_props[]).
_NO_ROUTE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.EAGAIN)

#: An attribute list as pyroute2 takes it.
Attributes = list[tuple[str, Any]]


class Link:
    """What RTM_GETLINK says of an interface."""

    def __init__(self, message: Any) -> None:
        self.index: int = message["index"]
        self.name: str = message.get_attr("IFLA_IFNAME")
        self.master: int = message.get_attr("IFLA_MASTER") or 0
        info = message.get_attr("IFLA_LINKINFO")
        self.kind: str = (info and info.get_attr("IFLA_INFO_KIND")) or ""
        self.alias: str = message.get_attr("IFLA_IFALIAS") or ""
        self.group: int = message.get_attr("IFLA_GROUP") or 0
        #: The other end's network namespace is being taken down: it has lost its id (peernet2id()).
        self.is_dying = message.get_attr("IFLA_LINK_NETNSID") == -1
        names = message.get_attr("IFLA_PROP_LIST")
        self.altnames: tuple[str, ...] = tuple(names.altnames()) if names is not None else ()


class Route:
    """A socket for the network namespace of the thread that makes it. Every request raises OSError."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._sequence = 0

    def close(self) -> None:
        """Give the socket back."""
        self.socket.close()

    def _request(
        self, kind: int, message: Any, fields: Mapping[str, int], attributes: Attributes, flags: int
    ) -> list[bytes]:
        """Send *message* and return the answers, without their last, which says whether it went well."""
        self._sequence += 1
        for name, value in fields.items():
            message[name] = value
        message["attrs"] = attributes
        message["header"].update(type=kind, flags=NLM_F_REQUEST | flags, sequence_number=self._sequence)
        message.encode()
        self.socket.sendto(bytes(message.data), (0, 0))
        answers: list[bytes] = []
        while True:
            data = self.socket.recv(1 << 17)
            while len(data) >= _HEADER.size:
                length, answer, _, sequence, _ = _HEADER.unpack_from(data)
                part, data = data[:length], data[(length + 3) & ~3 :]
                if sequence != self._sequence:
                    continue
                if answer in (_ERROR, _DONE):
                    number = -int(struct.unpack_from("=i", part, _HEADER.size)[0])
                    if number > 0:
                        raise OSError(number, os.strerror(number))
                    return answers
                answers.append(part)

    # -- links

    def _link(self, kind: int, attributes: Attributes, how: int = 0, **fields: int) -> list[bytes]:
        return self._request(kind, ifinfmsg(), fields, attributes, NLM_F_ACK | how)

    def link(self, name: str) -> Link:
        """The interface of that name, which may be an alternative one."""
        key = "IFLA_IFNAME" if len(name) < 16 else "IFLA_ALT_IFNAME"
        return self._decoded(self._link(rtnl.RTM_GETLINK, [(key, name)]))[0]

    def links(self) -> list[Link]:
        """Every interface there is."""
        return self._decoded(self._request(rtnl.RTM_GETLINK, ifinfmsg(), {}, [], _DUMP))

    @staticmethod
    def _decoded(answers: list[bytes]) -> list[Link]:
        links = []
        for answer in answers:
            message = ifinfmsg(answer)
            message.decode()
            links.append(Link(message))
        return links

    def add_bridge(self, name: str, group: int) -> None:
        """Make a bridge, in the *group* of interfaces. EEXIST: there is an interface of that name."""
        attributes: Attributes = [("IFLA_IFNAME", name), ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "bridge")]})]
        attributes.append(("IFLA_GROUP", group))
        self._link(rtnl.RTM_NEWLINK, attributes, NLM_F_CREATE | NLM_F_EXCL)

    def add_veth(
        self, name: str, master: int, peer: str, namespace: int, *, mac: str | None = None, mtu: int | None = None
    ) -> None:
        """Make a veth pair: *name* on the bridge *master*, and *peer* in the *namespace* of that descriptor.

        The peer is there from the beginning: whenever its namespace ends, so does the pair.
        """
        other: Attributes = [("IFLA_IFNAME", peer), ("IFLA_NET_NS_FD", namespace)]
        attributes: Attributes = [("IFLA_IFNAME", name), ("IFLA_MASTER", master)]
        if mac is not None:
            other.append(("IFLA_ADDRESS", mac))
        if mtu is not None:
            other.append(("IFLA_MTU", mtu))
            attributes.append(("IFLA_MTU", mtu))
        data = {"attrs": [("VETH_INFO_PEER", {"attrs": other})]}
        attributes.append(("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "veth"), ("IFLA_INFO_DATA", data)]}))
        self._link(rtnl.RTM_NEWLINK, attributes, NLM_F_CREATE | NLM_F_EXCL, flags=_IFF_UP, change=_IFF_UP)

    def add_altname(self, name: str, altname: str) -> None:
        """Give the interface *name* an alternative name. EEXIST: another one has it."""
        attributes: Attributes = [("IFLA_IFNAME", name), ("IFLA_PROP_LIST", {"attrs": [("IFLA_ALT_IFNAME", altname)]})]
        self._link(rtnl.RTM_NEWLINKPROP, attributes, NLM_F_CREATE | NLM_F_EXCL)

    def retire(self, name: str, altnames: Sequence[str]) -> None:
        """Take *altnames* from an interface, and the interface from its bridge, down. ENODEV: it has gone.

        That is one millisecond; to delete it, which waits for RCU several times, would be twenty.
        """
        named: Attributes = [("IFLA_IFNAME", name)]
        for altname in altnames:
            properties = ("IFLA_PROP_LIST", {"attrs": [("IFLA_ALT_IFNAME", altname)]})
            self._link(rtnl.RTM_DELLINKPROP, [*named, properties])
        self._link(rtnl.RTM_SETLINK, list(named), flags=0, change=_IFF_UP)
        self._link(rtnl.RTM_SETLINK, [*named, ("IFLA_MASTER", 0)])

    def set_up(self, index: int) -> None:
        """Bring an interface up."""
        self._link(rtnl.RTM_SETLINK, [], index=index, flags=_IFF_UP, change=_IFF_UP)

    def set_alias(self, name: str, alias: str) -> None:
        """Write *alias* on an interface, where ip(8) shows it, and have it in no group any more."""
        self._link(rtnl.RTM_SETLINK, [("IFLA_IFNAME", name), ("IFLA_IFALIAS", alias), ("IFLA_GROUP", 0)])

    def delete(self, name: str) -> None:
        """Delete an interface. ENODEV: it has gone."""
        self._link(rtnl.RTM_DELLINK, [("IFLA_IFNAME", name)])

    # -- addresses and routes

    def add_address(self, index: int, address: str, prefix_length: int) -> None:
        """Give the interface *index* an address. EEXIST: it has it."""
        family = _family(address)
        attributes: Attributes = [("IFA_ADDRESS", address), ("IFA_LOCAL", address)]
        if family == socket.AF_INET6:
            attributes.append(("IFA_FLAGS", _NODAD))
        fields = {"index": index, "family": family, "prefixlen": prefix_length}
        self._request(rtnl.RTM_NEWADDR, ifaddrmsg(), fields, attributes, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)

    def add_default_route(self, index: int, gateway: str) -> None:
        """A default route over *gateway*, by the interface *index*."""
        # RT_TABLE_MAIN, RTPROT_STATIC, RT_SCOPE_UNIVERSE, RTN_UNICAST
        fields = {"family": _family(gateway), "dst_len": 0, "table": 254, "proto": 4, "scope": 0, "type": 1}
        attributes: Attributes = [("RTA_GATEWAY", gateway), ("RTA_OIF", index)]
        self._request(rtnl.RTM_NEWROUTE, rtmsg(), fields, attributes, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)

    def is_local(self, address: str) -> bool:
        """Whether *address* is one of this namespace's own: where a packet to it would go."""
        family = _family(address)
        fields = {"family": family, "dst_len": 32 if family == socket.AF_INET else 128}
        try:
            answers = self._request(rtnl.RTM_GETROUTE, rtmsg(), fields, [("RTA_DST", address)], NLM_F_ACK)
        except OSError as error:
            if error.errno not in _NO_ROUTE:
                raise
            return False
        answer = rtmsg(answers[0])
        answer.decode()
        return bool(answer["type"] == _RTN_LOCAL)


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
