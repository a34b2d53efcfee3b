"""Kernel parameters of a container: the names that its own namespaces have, and no others.

Most of ``/proc/sys`` belongs to the host as a whole.  What does not is a short
list by namespace (that of runc and Docker), and only a container that has the
namespace to itself may change it: in a shared one it would change what others
see (CVE-2022-0811 set the host's through a container's parameters).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pycontainer import _fields as check
from pycontainer._fields import FrozenMapping, refuse
from pycontainer.network import RELAYS

if TYPE_CHECKING:
    from pycontainer.command import Command

__all__ = ["check_sysctls", "path_of"]

#: ipc_namespaces(7), sysvipc(7): below ``/proc/sys``.
_IPC = frozenset(
    f"kernel/{name}"
    for name in (
        *("msg_next_id", "msgmax", "msgmnb", "msgmni", "sem", "sem_next_id"),
        *("shm_next_id", "shm_rmid_forced", "shmall", "shmmax", "shmmni"),
    )
)
_COMPONENT = re.compile(r"[A-Za-z0-9_@:-][A-Za-z0-9_.@:-]*")
_SWAPPED = str.maketrans("./", "/.")


def path_of(key: str) -> str:
    """The path of *key* below ``/proc/sys``: ``net.ipv4.ip_forward`` is ``net/ipv4/ip_forward``.

    As in sysctl(8) the first separator says which spelling it is: in
    ``net.ipv4.conf.eth0/100.forwarding`` and in
    ``net/ipv4/conf/eth0.100/forwarding`` the interface is ``eth0.100``.
    """
    dot, slash = key.find("."), key.find("/")
    return key.translate(_SWAPPED) if dot >= 0 and (slash < 0 or dot < slash) else key


def check_sysctls(sysctls: Mapping[str, Any]) -> FrozenMapping:
    """A copy whose keys are all in the spelling with dots. Raises InvalidCommandError."""
    if not isinstance(sysctls, Mapping):
        refuse("sysctls", f"must be a mapping, not {type(sysctls).__name__}")
    checked: dict[str, str] = {}
    for key, given in sysctls.items():
        path = path_of(check.line("sysctls", key))
        if "/" not in path or not all(map(_COMPONENT.fullmatch, path.split("/"))):
            refuse("sysctls", f"{key!r} is no kernel parameter like net.ipv4.ip_forward")
        if path == "kernel/hostname":
            refuse("sysctls", f"{key!r} has a field of its own: hostname")
        if not path.startswith(("net/", "fs/mqueue/")) and path not in _IPC and path != "kernel/domainname":
            refuse("sysctls", f"{key!r} is not the container's own: it would change the host")
        value = check.line(f"sysctls[{key}]", check.number_as_text(given))
        name = path.translate(_SWAPPED)
        if name in checked:
            refuse("sysctls", f"{name!r} is given twice")
        checked[name] = value
    return FrozenMapping(checked)


def check_namespaces(command: Command) -> None:
    """Every parameter belongs to a namespace that is *command*'s own. Raises InvalidCommandError."""
    shared = {
        "network": any(network.mode not in ("none", "bridge", *RELAYS) for network in command.networks),
        "ipc": command.ipc is not None,
        "uts": command.uts is not None,
    }
    for key in command.sysctls:
        namespace = "network" if key.startswith("net.") else "uts" if key == "kernel.domainname" else "ipc"
        if shared[namespace]:
            refuse("sysctls", f"{key!r} needs a namespace of its own: {namespace} is shared with others")
