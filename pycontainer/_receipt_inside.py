"""What is only seen from inside a namespace: the host name, kernel parameters and network interfaces.

/proc/PID/root/proc/sys is no way to them: what is mounted there is the
payload's affair, and /proc/sys shows the namespaces of whoever looks, not of
the process in the path (proc(5)).  So a thread made for it enters the uts, ipc
and net namespaces, looks into the /proc of the one who reads, and ends.  These
three are a thread's own (setns(2)), no other thread notices, and nothing that
could harm it is entered: no mounts, no pids, no ids.

An ordinary user has rights over them only inside the container's user
namespace, which no thread can enter alone.  For him a program does it: this
file, which imports nothing else of the package.  It can be traced by nobody
before it enters (PR_SET_DUMPABLE, ptrace(2)).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_TYPES = {"uts": 0x04000000, "ipc": 0x08000000, "net": 0x40000000, "user": 0x10000000}  # linux/sched.h
_PR_SET_DUMPABLE = 4  # linux/prctl.h
#: Seconds that the program may take.
_PATIENCE = 30.0
_SYS = "/proc/sys"
#: Of each namespace (ipc_namespaces(7), uts_namespaces(7)); a directory is all that is in it.
_PARAMETERS = {
    "uts": ("kernel/domainname",),
    "ipc": (
        *(f"kernel/{name}" for name in ("msg_next_id", "msgmax", "msgmnb", "msgmni", "sem", "sem_next_id")),
        *(f"kernel/{name}" for name in ("shm_next_id", "shm_rmid_forced", "shmall", "shmmax", "shmmni")),
        "fs/mqueue",
    ),
    "net": ("net",),
}
_SIOCGIFFLAGS, _SIOCGIFADDR, _SIOCGIFNETMASK, _SIOCGIFMTU, _SIOCGIFHWADDR = 0x8913, 0x8915, 0x891B, 0x8921, 0x8927


def look(namespaces: Mapping[str, int], user: int = -1) -> dict[str, Any] | None:
    """What there is in *namespaces*, descriptors by name; None where they cannot be entered.

    The result has ``hostname`` (with uts), ``sysctls`` by their path below
    /proc/sys, ``interfaces`` and ``gateways`` (with net).  *user* is the user
    namespace that they belong to, for one who has no rights over them himself.
    """
    found: list[dict[str, Any]] = []

    def enter() -> None:
        with contextlib.suppress(PermissionError):
            _enter(namespaces)
            found.append(_look(namespaces))

    thread = threading.Thread(target=enter, name="receipt", daemon=True)
    thread.start()
    thread.join()
    if found:
        return found[0]
    return _by_program(namespaces, user) if user >= 0 else None


def _by_program(namespaces: Mapping[str, int], user: int) -> dict[str, Any] | None:
    wanted = {"user": user, **namespaces}
    command = [sys.executable, "-I", "-S", __file__, *(f"{name}={fd}" for name, fd in wanted.items())]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            pass_fds=tuple(wanted.values()), env={}, cwd="/", timeout=_PATIENCE,
        )  # fmt: skip
        # Not by its exit status, which another thread's waitpid(-1) may have taken away.
        return json.loads(done.stdout) if done.stdout else None
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _enter(namespaces: Mapping[str, int]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for name, fd in namespaces.items():
        if libc.setns(fd, _TYPES[name]) == -1:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), f"ns/{name}")


def _look(namespaces: Mapping[str, int]) -> dict[str, Any]:
    sysctls: dict[str, str] = {}
    for name in namespaces:
        for path in _PARAMETERS.get(name, ()):
            sysctls.update(_parameters(f"{_SYS}/{path}"))
    found: dict[str, Any] = {"sysctls": sysctls}
    if "uts" in namespaces:
        found["hostname"] = os.uname().nodename
    if "net" in namespaces:
        found["interfaces"] = list(_interfaces())
        found["gateways"] = list(_gateways())
    return found


def _parameters(path: str) -> Iterator[tuple[str, str]]:
    """The parameter *path*, or all that are in the directory, that can be read: some can only be written."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        if os.path.isdir(path):
            for name in os.listdir(file):
                yield from _parameters(f"{path}/{name}")
        else:
            yield path.removeprefix(f"{_SYS}/"), os.read(file, 65536).decode("utf-8", "replace").strip()
    except OSError:
        pass
    finally:
        os.close(file)


def _interfaces() -> Iterator[dict[str, Any]]:
    """netdevice(7) has one IPv4 address of each, and /proc/net/if_inet6 all of IPv6: those that it was given."""
    six: dict[str, list[str]] = {}
    # Not /proc/net, which is that of the process, and so of its first thread.
    for line in _lines("/proc/thread-self/net/if_inet6"):
        address, _, bits, scope, flags, name = line.split()
        # IFA_F_PERMANENT (linux/if_addr.h): the others, and those of the link, IPv6 makes by itself (RFC 4862).
        if not int(flags, 16) & 0x80 or scope == "20":
            continue
        text = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(address))
        six.setdefault(name, []).append(f"{text}/{int(bits, 16)}")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:

        def ask(request: int, name: str) -> bytes:
            return fcntl.ioctl(probe.fileno(), request, struct.pack("16s24x", name.encode()))[16:]

        for _, name in socket.if_nameindex():
            addresses = []
            with contextlib.suppress(OSError):  # EADDRNOTAVAIL: it has none
                four, mask = ask(_SIOCGIFADDR, name)[4:8], ask(_SIOCGIFNETMASK, name)[4:8]
                addresses.append(f"{socket.inet_ntoa(four)}/{int.from_bytes(mask, 'big').bit_count()}")
            yield {
                "name": name,
                "up": bool(struct.unpack_from("=H", ask(_SIOCGIFFLAGS, name))[0] & 1),  # IFF_UP
                "mac": ask(_SIOCGIFHWADDR, name)[2:8].hex(":"),
                "mtu": struct.unpack_from("=i", ask(_SIOCGIFMTU, name))[0],
                "addresses": sorted(addresses + six.get(name, [])),
            }


def _gateways() -> Iterator[str]:
    """Those of the default routes."""
    for line in _lines("/proc/thread-self/net/route")[1:]:
        _, to, gateway, _, _, _, _, mask, *_ = line.split()
        if to == mask == "00000000" and gateway != "00000000":
            yield socket.inet_ntoa(int(gateway, 16).to_bytes(4, sys.byteorder))
    for line in _lines("/proc/thread-self/net/ipv6_route"):
        to, bits, _, _, gateway, _, _, _, flags, _ = line.split()
        advertised = int(flags, 16) & 0x40000  # RTF_ADDRCONF (linux/ipv6_route.h): by a router
        if bits == "00" and gateway.strip("0") and not to.strip("0") and not advertised:
            yield socket.inet_ntop(socket.AF_INET6, bytes.fromhex(gateway))


def _lines(path: str) -> Sequence[str]:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().splitlines()
    except OSError:
        return ()


def main(arguments: Sequence[str]) -> None:
    """For an ordinary user: enter all, the user namespace first, and print what there is."""
    namespaces = {name: int(fd) for name, _, fd in (argument.partition("=") for argument in arguments)}
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) == -1:
        raise SystemExit(1)
    _enter(namespaces)
    print(json.dumps(_look(namespaces)))


if __name__ == "__main__":
    main(sys.argv[1:])
