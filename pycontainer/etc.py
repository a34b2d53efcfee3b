"""The files of /etc that say where names lead: hosts(5), hostname(5) and resolv.conf(5), as Docker provides them.

A container on a bridge has them, and one that asks for something in them; any
other sees what its rootfs has.  They are content: a driver shows them over the
rootfs's own, which stays as it is.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pycontainer import _fields as check
from pycontainer._fields import FrozenMapping, refuse
from pycontainer.network import RELAYS

if TYPE_CHECKING:
    from pycontainer.command import Command

__all__ = ["etc_files"]

#: In ``extra_hosts`` the gateway's address (Docker).
HOST_GATEWAY = "host-gateway"


def check_dns(dns: Sequence[str], dns_search: Sequence[str]) -> None:
    """Raise InvalidCommandError unless they can stand in resolv.conf(5)."""
    for server in check.items("dns", dns):
        check.address("dns", server)
    for domain in check.items("dns_search", dns_search):
        if not check.line("dns_search", domain) or domain.split() != [domain]:
            refuse("dns_search", f"{domain!r} is not a domain")


def check_extra_hosts(hosts: Mapping[str, str]) -> FrozenMapping:
    """A copy of *hosts*, name to address. Raises InvalidCommandError."""
    copy = check.environment("extra_hosts", hosts)
    for name, address in copy.items():
        if name.split() != [name] or "#" in name:
            refuse("extra_hosts", f"{name!r} is not a name")
        if address != HOST_GATEWAY:
            check.address(f"extra_hosts[{name}]", address)
    return copy


#: slirp4netns(1): its own, that of every network of it.
_SLIRP_DNS = "10.0.2.3"


def etc_files(command: Command) -> dict[str, str]:
    """Path and content of what *command* is to see in /etc. Raises InvalidCommandError.

    Without *dns* the name servers are the host's, but for those that listen on
    the host's loopback, which from the container is somebody else.
    """
    mode = command.networks[0].mode if command.networks else None
    bridged = mode in ("bridge", *RELAYS)
    if not (bridged or command.dns or command.dns_search or command.extra_hosts):
        return {}
    files: dict[str, str] = {}
    if bridged or command.extra_hosts:
        files["/etc/hosts"] = "".join(f"{address}\t{names}\n" for address, names in _hosts(command))
    if bridged and command.uts is None:
        files["/etc/hostname"] = f"{_hostname(command)}\n"
    if not (bridged or command.dns or command.dns_search):
        return files
    loopback = any(network.mode == "host" for network in command.networks)
    servers, search = _resolvers(loopback) if not command.dns or not command.dns_search else ([], [])
    if mode == "slirp4netns":
        servers = [_SLIRP_DNS]  # which passes on to whatever the host asks
    servers, search = list(command.dns) or servers, list(command.dns_search) or search
    if servers or search:
        lines = [f"nameserver {server}" for server in servers] + ([f"search {' '.join(search)}"] if search else [])
        files["/etc/resolv.conf"] = "".join(line + "\n" for line in lines)
    return files


def _hostname(command: Command) -> str:
    return command.hostname or command.id[:64]


def _hosts(command: Command) -> list[tuple[str, str]]:
    lines = [("127.0.0.1", "localhost"), ("::1", "localhost ip6-localhost ip6-loopback")]
    if command.uts is None:
        own = [address for network in command.networks for address in (network.address, network.address6) if address]
        lines += [(address, _hostname(command)) for address in own or ["127.0.0.1"]]
    for name, address in command.extra_hosts.items():
        if address == HOST_GATEWAY:
            gateways = [network.gateway or network.gateway6 for network in command.networks]
            address = next(filter(None, gateways), "")
            if not address:
                refuse(f"extra_hosts[{name}]", f"{HOST_GATEWAY!r} needs a network with a gateway")
        lines.append((address, name))
    return lines


def _resolvers(loopback: bool) -> tuple[list[str], list[str]]:
    """The host's name servers, with *loopback* also its own, and its search list."""
    servers, search = [], []
    try:
        with open("/etc/resolv.conf", encoding="utf-8", errors="replace") as file:
            lines = [line.split() for line in file]
    except OSError:
        return [], []
    for words in lines:
        if len(words) > 1 and words[0] == "nameserver":
            try:
                own = ipaddress.ip_address(words[1].partition("%")[0]).is_loopback
            except ValueError:
                continue
            if loopback or not own:
                servers.append(words[1])
        elif len(words) > 1 and words[0] in ("search", "domain"):
            search = words[1:]
    return servers, search
