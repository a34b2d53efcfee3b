"""A container's network: Docker 0.9's fields, and what has come since."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from attrs import evolve, field, frozen

from pycontainer import _fields as check
from pycontainer._fields import refuse

__all__ = ["DEFAULT_BRIDGE", "RELAYS", "Network"]

#: The bridge of a Network that names none.
DEFAULT_BRIDGE = "pycontainer0"

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_INTERFACE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,14}")  # dev_valid_name(), and a little less
_MAC = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}")

#: The tools that need no right over the host's network: modes of their own.
RELAYS = ("pasta", "slirp4netns")
_MODES = ("bridge", "host", "none", "container", "ns", *RELAYS)
#: The one field that a mode cannot do without.
_SUBJECTS = {"container": "container", "path": "ns"}


@frozen
class Network:
    """The container's network, in Docker 0.9's fields.

    *mode* ``"none"`` is a loopback device alone, ``"host"`` the host's network,
    ``"container"`` that of the running container *container*, ``"ns"`` the
    network namespace at *path* (as ip-netns(8) keeps them in /run/netns),
    ``"pasta"`` and ``"slirp4netns"`` an ``eth0`` behind that tool, which passes
    everything on as an ordinary user's connections of the host, and
    ``"bridge"`` a veth pair whose far end is on *bridge* of the host.

    With a bridge go *address* and *prefix_length* (bits), IPv4 or IPv6;
    *gateway*, the default route; *mtu* (bytes); *mac*; *interface*, its name
    in the container (default ``eth0``, of a second network ``eth1``, and so
    on); and for a second protocol *address6*, *prefix_length6* and *gateway6*.
    *bridge* None is :data:`DEFAULT_BRIDGE`.  With *create_bridge* a missing
    bridge is made: its own addresses are the gateways, and it is isolated where
    there are none.  It goes away when the process that made it ends, if nothing
    is on it then, and otherwise when the next one is made.

    As text: ``"none"``, ``"host"``, ``"pasta"``, ``"slirp4netns"``, ``"bridge"``, ``"bridge:NAME"``,
    ``"container:ID"``, ``"ns:PATH"``; :meth:`parse` knows docker's long form.

    Raises InvalidCommandError, for ``network.<field>``.
    """

    mode: str = "bridge"
    bridge: str | None = field(default=None, kw_only=True)
    address: str | None = field(default=None, kw_only=True)
    prefix_length: int | None = field(default=None, kw_only=True)
    gateway: str | None = field(default=None, kw_only=True)
    mtu: int | None = field(default=None, kw_only=True)
    mac: str | None = field(default=None, kw_only=True)
    container: str | None = field(default=None, kw_only=True)
    path: str | None = field(default=None, kw_only=True)
    create_bridge: bool = field(default=False, kw_only=True)
    interface: str | None = field(default=None, kw_only=True)
    address6: str | None = field(default=None, kw_only=True)
    prefix_length6: int | None = field(default=None, kw_only=True)
    gateway6: str | None = field(default=None, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if self.mode not in _MODES:
            refuse("network.mode", f"{self.mode!r} is none of {', '.join(_MODES)}")
        for name, mode in _SUBJECTS.items():
            if (getattr(self, name) is None) is (self.mode == mode):
                refuse(f"network.{name}", f"belongs to the mode {mode}, and only to it")
        if self.container is not None:
            check.matching("network.container", self.container, _ID)
        if self.path is not None:
            check.path("network.path", self.path)
        check.boolean("network.create_bridge", self.create_bridge)
        if self.mode != "bridge":
            for name in _OF_A_BRIDGE:
                if getattr(self, name) not in (None, False):
                    refuse(f"network.{name}", "belongs to the mode bridge")
            return
        for name in ("bridge", "interface"):
            if getattr(self, name) is not None:
                check.matching(f"network.{name}", getattr(self, name), _INTERFACE)
        if self.interface == "lo":
            refuse("network.interface", "'lo' is the loopback device")
        _check_address(self, "")
        _check_address(self, "6")
        if self.address6 is not None and self.address is not None and ":" in self.address:
            refuse("network.address6", "address is of IPv6 already")
        if self.mtu is not None:
            check.integer("network.mtu", self.mtu, 68, 65535)
        if self.mac is not None:
            check.matching("network.mac", self.mac, _MAC)
            if int(self.mac[:2], 16) & 1 or not self.mac.strip("0:"):
                refuse("network.mac", f"{self.mac} is no address of one device")

    @classmethod
    def parse(cls, text: str) -> Network:
        """From text: one of the short forms, or docker's long one.

        That is ``name=br0,ip=10.0.0.2/24,gateway=10.0.0.1,mac-address=...``, and
        beyond docker's ``ip6``, ``gateway6``, ``mtu``, ``interface`` and ``create``.
        """
        values: dict[str, Any] = {}
        if "=" not in text:
            mode, colon, what = text.partition(":")
            key = {"container": "container", "ns": "path", "bridge": "bridge"}.get(mode)
            if colon and key is None:
                refuse("network.mode", f"{text!r} is none of {', '.join(_MODES)}")
            values = {key: what} if colon and key else {}
            return cls(mode, **values)
        for item in text.split(","):
            name, equals, value = item.partition("=")
            if name not in _LONG_FORM or bool(equals) is (name == "create"):
                refuse("network", f"{item!r} is not of the form {', '.join(f'{n}=' for n in _LONG_FORM)} or create")
            if name in ("ip", "ip6"):
                value, slash, bits = value.partition("/")
                if slash:
                    values[f"prefix_length{name[2:]}"] = _number(f"network.prefix_length{name[2:]}", bits)
            values[_LONG_FORM[name]] = _number("network.mtu", value) if name == "mtu" else value or True
        return cls(**values)


def _number(where: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 6):
        refuse(where, f"{text!r} is not a number")
    return int(text)


_OF_A_BRIDGE = (
    *("bridge", "address", "prefix_length", "gateway", "mtu", "mac", "create_bridge", "interface"),
    *("address6", "prefix_length6", "gateway6"),
)
_LONG_FORM = {
    "name": "bridge",
    "ip": "address",
    "gateway": "gateway",
    "ip6": "address6",
    "gateway6": "gateway6",
    "mac-address": "mac",
    "mtu": "mtu",
    "interface": "interface",
    "create": "create_bridge",
}


def _check_address(network: Network, suffix: str) -> None:
    """Check address, prefix_length and gateway, or with *suffix* ``"6"`` those of the second protocol."""
    address, bits, gateway = (getattr(network, f"{name}{suffix}") for name in ("address", "prefix_length", "gateway"))
    where = f"network.address{suffix}"
    size = 0
    if address is not None:
        size = check.address(where, address)
        if suffix and size != 128:
            refuse(where, f"{address} is not of IPv6")
    if (address is None) is not (bits is None):
        refuse(f"network.prefix_length{suffix}", f"address{suffix} and prefix_length{suffix} belong together")
    if bits is not None:
        check.integer(f"network.prefix_length{suffix}", bits, 1, size)
    if gateway is not None:
        where = f"network.gateway{suffix}"
        if address is None:
            refuse(where, f"is of no use without address{suffix}")
        if check.address(where, gateway) != size:
            refuse(where, f"{gateway} and the address {address} are of different protocols")
        import ipaddress

        if ipaddress.ip_address(gateway) not in ipaddress.ip_network(f"{address}/{bits}", strict=False):
            refuse(where, f"{gateway} is not within {address}/{bits}: no packet would get there")
        if ipaddress.ip_address(gateway) == ipaddress.ip_address(address):
            refuse(where, f"{gateway} is the container's own address")


def as_network(value: Any) -> Any:
    """The field of a Command: None, one Network, or several of them; text is parsed."""
    if isinstance(value, str):
        return Network.parse(value)
    if isinstance(value, Sequence):
        several = tuple(Network.parse(item) if isinstance(item, str) else item for item in value)
        return several if len(several) > 1 else several[0] if several else None
    return value


def check_networks(networks: tuple[Any, ...]) -> None:
    """Raise InvalidCommandError unless *networks* go together in one container."""
    check.instances("network", networks, Network)
    if len(networks) > 1:
        for network in networks:
            if network.mode != "bridge":
                refuse("network.mode", f"several networks are all of the mode bridge, not {network.mode}")
        for name in ("gateway", "gateway6"):
            if sum(getattr(network, name) is not None for network in networks) > 1:
                refuse(f"network.{name}", "two networks have one, and there is one default route")
        for name, values in (
            ("interface", [network.interface for network in named(networks)]),
            ("mac", [network.mac.lower() for network in networks if network.mac]),
        ):
            for value in values:
                if values.count(value) > 1:
                    refuse(f"network.{name}", f"two networks have the same one, {value}")


def named(networks: Sequence[Network]) -> tuple[Network, ...]:
    """*networks*, in those of the mode bridge every default filled in: the bridge's name and the interfaces'."""
    return tuple(
        evolve(network, bridge=network.bridge or DEFAULT_BRIDGE, interface=network.interface or f"eth{number}")
        if network.mode == "bridge"
        else network
        for number, network in enumerate(networks)
    )
