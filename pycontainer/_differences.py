"""What a Command asks for against what a receipt says holds: differences, and what cannot be compared.

Each comparison says either what differs or why it could not be made, so that
silence means that something was looked at: :meth:`Receipt.differences
<pycontainer.receipt.Receipt.differences>` and :meth:`Receipt.unchecked
<pycontainer.receipt.Receipt.unchecked>`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from pycontainer import _fields as check
from pycontainer._differences_mounts import MADE_UP, compare_mounts, is_hidden, without_links
from pycontainer.device import DEFAULT_DEVICE_RULES, rule_to_oci
from pycontainer.receipt import CgroupLimits, Difference, Unchecked
from pycontainer.spec import to_oci

if TYPE_CHECKING:
    from pycontainer.command import Command
    from pycontainer.receipt import Beginning, IdMap, Receipt

__all__ = ["compare", "is_hidden"]

Found: TypeAlias = Difference | Unchecked

#: OCI's names of namespaces and the kernel's.
_NAMESPACES = {"mount": "mnt", "network": "net"}
#: linux/seccomp.h: the one flag of a filter that PTRACE_SECCOMP_GET_METADATA tells (ptrace(2)).
_FILTER_FLAG_LOG = 2
#: What there is in each /dev (OCI runtime spec, "Default Devices").
_DEFAULT_DEVICES = {
    "/dev/null": (1, 3),
    "/dev/zero": (1, 5),
    "/dev/full": (1, 7),
    "/dev/random": (1, 8),
    "/dev/urandom": (1, 9),
    "/dev/tty": (5, 0),
}
#: Each new network namespace has them, down, once their modules are loaded (net.core.fb_tunnels_only_for_init_net).
_TUNNELS = frozenset(
    ("tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0")
)  # fmt: skip
_LATER = "the program may have changed it: only a receipt of its beginning (receipt=True) has it"
#: What no receipt can have.
_NEVER = (
    ("id", "a name, by which drivers find it"),
    ("process.entrypoint", "a receipt is of what confines a program, whichever it is"),
    ("process.arguments", "a receipt is of what confines a program, whichever it is"),
    ("stdio", "what they are to lead to is no part of a Command"),
    ("session keyring", "nobody but the process itself can ask for its number (keyctl(2))"),
    ("die with the driver", "nobody but the process itself can ask for its signal (PR_GET_PDEATHSIG, prctl(2))"),
)


def compare(found: Receipt, command: Command) -> Iterator[Found]:
    """Everything in which *found* is not what *command* asks for, and everything of which it does not tell."""
    spec = to_oci(command)
    yield from _namespaces(found, command, spec)
    yield from _rights(found, command, spec)
    yield from _ids(found, spec["process"]["user"])
    yield from _limits(found, command)
    yield from _beyond(found, command)
    yield from _disks(found, command, spec["linux"]["resources"])
    yield from _device_rules(found, spec["linux"]["resources"])
    yield from compare_mounts(found, command, spec)
    yield from _insides(found, command, spec)
    yield from _network(found, command)
    yield from _process(found, command)
    if found.beginning is None:
        for field in (
            *("process.env", "process.working_dir", "umask", "descriptors", "devices", "seccomp", "init"),
            *("process.rlimits", "dns", "dns_search", "extra_hosts", "scheduling", "signals"),
        ):
            yield Unchecked(field, _LATER)
    else:
        yield from _beginning(found, found.beginning, command, spec)
    for field, reason in _NEVER:
        yield Unchecked(field, reason)
    for field, reason in (
        ("hooks", "what a program has done that has ended is not on record"),
        ("config", "it is the driver's own"),
        ("annotations", "they are for hooks, and nothing of the kernel's"),
    ):
        if getattr(command, field):
            yield Unchecked(field, reason)


def _namespaces(found: Receipt, command: Command, spec: Mapping[str, Any]) -> Iterator[Found]:
    spaces = {_NAMESPACES.get(space["type"], space["type"]): space.get("path") for space in spec["linux"]["namespaces"]}
    others = {name for name in ("pid", "ipc", "uts") if (getattr(command, name) or "").startswith("container:")}
    if any(network.mode == "container" for network in command.networks):
        others.add("net")
    for name, space in found.namespaces.items():
        path = spaces.get(name)
        if path is not None:
            try:
                there = os.stat(path).st_ino
            except OSError as error:
                yield Unchecked(f"namespaces.{name}", f"{path}: {error.strerror}")
                continue
            if there != space.inode:
                yield Difference(f"namespaces.{name}", f"{path} ({there})", space.inode)
            continue
        if name in others:
            yield Unchecked(f"namespaces.{name}", "which process has another container's only its driver knows")
            continue
        own = name in spaces
        # A user namespace more than asked for is how a driver runs without root; time's has no field.
        if space.own is not own and (own or name not in ("user", "time")):
            yield Difference(f"namespaces.{name}", _whose(own), _whose(space.own))
        elif own and name in found.shared:
            yield Difference(f"namespaces.{name}", "its own", f"process {found.shared[name]} is in it too")
    for field, rows, seen in (
        ("uid_mappings", command.uid_mappings, found.uid_map),
        ("gid_mappings", command.gid_mappings, found.gid_map),
    ):
        maps = sorted((row.inside, row.outside, row.length) for row in seen)
        if rows and maps != sorted(rows):
            yield Difference(field, sorted(map(list, rows)), list(map(list, maps)))
        elif command.userns == "auto" and sum(row[2] for row in maps) != 65536:
            yield Difference("userns", "65536 ids", f"{field}: {maps}")
        elif "user" not in spaces and found.has_own_users:
            yield Unchecked(field, "a user namespace that nobody asked for is how an ordinary user has containers")


def _whose(own: bool) -> str:
    return "its own" if own else "the caller's"


def _rights(found: Receipt, command: Command, spec: Mapping[str, Any]) -> Iterator[Found]:
    process = spec["process"]
    for name, wanted in process["capabilities"].items():
        held = list(getattr(found.capabilities, name))
        if sorted(wanted) != held:
            yield Difference(f"process.capabilities.{name}", sorted(wanted), held)
    if found.no_new_privileges is not process["noNewPrivileges"]:
        yield Difference("process.no_new_privileges", process["noNewPrivileges"], found.no_new_privileges)
    seccomp = found.seccomp
    filtered = seccomp.mode == "filter" and seccomp.filters > seccomp.inherited
    wanted = "seccomp" in spec["linux"]
    if filtered is not wanted:
        of_others = f", {seccomp.inherited} of its caller's" if seccomp.inherited else ""
        yield Difference("seccomp", "filter" if wanted else "disabled", f"{seccomp.mode}{of_others}")
    elif wanted and found.beginning is not None:
        yield from _filter(found.beginning, spec["linux"]["seccomp"])
    for field, key in (("apparmor_profile", "apparmorProfile"), ("selinux_label", "selinuxLabel")):
        # AppArmor says its mode as well: "name (enforce)".
        label = found.label or ""
        if process.get(key) not in (None, label, label.rpartition(" (")[0]):
            yield Difference(field, process[key], found.label)
    if found.label is not None and command.apparmor_profile is command.selinux_label is None:
        for field in ("apparmor_profile", "selinux_label"):
            yield Unchecked(field, "without one it is the kernel's policy that chooses")
    rlimits = {limit.type: [limit.soft, limit.hard] for limit in found.rlimits}
    for limit in process["rlimits"]:
        asked_for = [-1 if limit[key] == 2**64 - 1 else limit[key] for key in ("soft", "hard")]
        if rlimits.get(limit["type"]) != asked_for:
            yield Difference(f"process.rlimits.{limit['type']}", asked_for, rlimits.get(limit["type"]))


def _filter(begun: Beginning, profile: Mapping[str, Any]) -> Iterator[Found]:
    from pycontainer.seccomp_filter import compile_filter

    if begun.filters is None:
        yield Unchecked("seccomp", "its program is for CAP_SYS_ADMIN without a filter of its own to read (ptrace(2))")
        return
    try:
        compiled = compile_filter(profile)
    except NotImplementedError as error:
        yield Unchecked("seccomp", f"the profile cannot be compiled here: {error}")
        return
    assert compiled is not None
    asked = [f"{compiled[0] & _FILTER_FLAG_LOG}:{compiled[1].hex()}"]
    if list(begun.filters) != asked:
        yield Difference("seccomp", list(map(_named, asked)), list(map(_named, begun.filters)))


def _named(program: str) -> str:
    """A filter in few words."""
    import hashlib

    flags, _, code = program.partition(":")
    return f"{len(code) // 16} instructions, flags {flags}, sha256 {hashlib.sha256(bytes.fromhex(code)).hexdigest()}"


def _ids(found: Receipt, user: Mapping[str, Any]) -> Iterator[Found]:
    for name, seen, wanted, maps in (
        ("process.user", found.uid, user["uid"], found.uid_map),
        ("process.group", found.gid, user["gid"], found.gid_map),
    ):
        inside = [_inside(id, maps) for id in (seen.real, seen.effective, seen.saved, seen.filesystem)]
        if set(inside) != {wanted}:
            yield Difference(name, wanted, inside)
    # Whether the group itself is among the supplementary ones makes no difference to the kernel.
    groups = sorted({_inside(gid, found.gid_map) for gid in found.groups} - {user["gid"]})
    asked = sorted(set(user["additionalGids"]) - {user["gid"]})
    if groups != asked:
        yield Difference("process.additional_groups", asked, groups)


def _inside(id: int, maps: Iterable[IdMap]) -> int:
    """What an id of ours is in the container; -1 for one that it has no name for."""
    for entry in maps:
        if entry.outside <= id < entry.outside + entry.length:
            return id - entry.outside + entry.inside
    return -1


# -- limits


def _limits(found: Receipt, command: Command) -> Iterator[Found]:
    asked, limits = command.resources, found.limits
    if asked.memory is not None and limits.memory != asked.memory // check.PAGE * check.PAGE:
        yield Difference("resources.memory", asked.memory, limits.memory)
    if asked.memory_swap:
        swap = None if asked.memory_swap == -1 else asked.memory_swap // check.PAGE * check.PAGE
        if limits.memory_swap != swap:
            yield Difference("resources.memory_swap", asked.memory_swap, limits.memory_swap)
    if asked.pids_limit is not None:
        pids = None if asked.pids_limit == -1 else asked.pids_limit
        if limits.pids != pids:
            yield Difference("resources.pids_limit", asked.pids_limit, limits.pids)
    if asked.cpu_quota is not None:
        cpus = None if asked.cpu_quota == -1 else asked.cpu_quota / (asked.cpu_period or 100000)
        if limits.cpus != cpus:
            yield Difference("resources.cpu_quota", cpus, limits.cpus)
    if asked.cpu_shares is not None and limits.cpu_shares != asked.cpu_shares:
        if limits.cpu_weight is None:
            yield Difference("resources.cpu_shares", asked.cpu_shares, limits.cpu_shares)
        elif limits.cpu_weight not in _weights(asked.cpu_shares):
            yield Difference("resources.cpu_shares", list(_weights(asked.cpu_shares)), limits.cpu_weight)
    for name, wanted, seen in (
        ("resources.cpuset_mems", asked.cpuset_mems, limits.cpuset_mems),
        # What the scheduler goes by is where both allow it.
        ("resources.cpuset_cpus", None if command.cpu_affinity else asked.cpuset_cpus, limits.cpuset_cpus),
        ("cpu_affinity", command.cpu_affinity, limits.cpuset_cpus),
    ):
        if wanted is not None and _members(wanted) != _members(seen):
            yield Difference(name, wanted, seen)
    if found.oom_score_adj != (command.oom_score_adj or 0):
        yield Difference("oom_score_adj", command.oom_score_adj or 0, found.oom_score_adj)


def _weights(shares: int) -> tuple[int, int]:
    """The two ways in which runtimes make cgroup2's cpu.weight of v1's cpu.shares: since runc 1.3.2, and before."""
    power = math.log2(shares)
    curve = math.ceil(round(10 ** ((power * power + 125 * power) / 612 - 7 / 34), 9))
    return curve, 1 + (shares - 2) * 9999 // 262142


def _members(text: str) -> set[int]:
    members: set[int] = set()
    for item in filter(None, text.split(",")):
        first, _, last = item.partition("-")
        members.update(range(int(first), int(last or first) + 1))
    return members


def _beyond(found: Receipt, command: Command) -> Iterator[Found]:
    """Limits of its own cgroup that nobody asked for: those above it are the host's."""
    asked, own = command.resources, found.own_limits
    if own is None:
        yield Unchecked("resources", "what its own cgroup says, beside what was asked for, is not known")
        return
    if own == CgroupLimits():
        yield Unchecked("resources", "it is in the cgroups of whoever read this, or in none that can be seen")
    swap: tuple[int | None, ...] = (None, -1)
    if asked.memory is not None:
        swap = (None, 2 * asked.memory // check.PAGE * check.PAGE, 2 * (asked.memory // check.PAGE * check.PAGE))
    for field, wanted, seen, defaults in (
        ("memory", asked.memory, own.memory, (None, -1)),
        ("memory_swap", asked.memory_swap or None, own.memory_swap, swap),
        ("pids_limit", asked.pids_limit, own.pids, (None, -1)),
        ("cpu_quota", asked.cpu_quota, own.cpu_quota, (None, -1)),
        ("cpu_period", asked.cpu_period, own.cpu_period, (None, 100000)),  # Linux's default, for this and the next
        ("cpu_shares", asked.cpu_shares, own.cpu_shares, (None, 1024)),
        ("cpu_shares", asked.cpu_shares, own.cpu_weight, (None, 100)),
        ("blkio_weight", asked.blkio_weight, own.blkio_weight, (None, 100)),
    ):
        if wanted is None and seen not in defaults:
            yield Difference(f"resources.{field}", None, seen)
    if asked.cpu_period not in (None, own.cpu_period):
        yield Difference("resources.cpu_period", asked.cpu_period, own.cpu_period)
    if asked.blkio_weight is not None and own.blkio_weight not in _disk_weights(asked.blkio_weight):
        yield Difference("resources.blkio_weight", asked.blkio_weight, own.blkio_weight)
    for field, given, of_group, above in (
        ("cpuset_cpus", asked.cpuset_cpus, own.cpuset_cpus, own.cpuset_cpus_above),
        ("cpuset_mems", asked.cpuset_mems, own.cpuset_mems, own.cpuset_mems_above),
    ):
        if of_group is None or above is None:
            yield Unchecked(f"resources.{field}", "no cgroup of its own says what it would be otherwise")
        elif given is None and _members(of_group) != _members(above):
            yield Difference(f"resources.{field}", above, of_group)
    if command.cpu_affinity is None and asked.cpuset_cpus is None:
        if own.cpuset_cpus is None:
            yield Unchecked("cpu_affinity", "no cgroup of its own says what it would be otherwise")
        elif _members(own.cpuset_cpus) != _members(found.limits.cpuset_cpus):
            yield Difference("cpu_affinity", own.cpuset_cpus, found.limits.cpuset_cpus)
    yield from _place(found, command.cgroup_parent)


def _place(found: Receipt, parent: str | None) -> Iterator[Found]:
    if parent is None:
        yield Unchecked("cgroup_parent", "without one it is the driver that chooses")
    elif not found.cgroups:
        yield Unchecked("cgroup_parent", "it is in no cgroup that can be seen")
    else:
        path = f"/{parent.strip('/')}/"
        absolute = parent.startswith("/")
        if not any(c.path.startswith(path) if absolute else path in f"{c.path}/" for c in found.cgroups):
            yield Difference("cgroup_parent", parent, sorted({cgroup.path for cgroup in found.cgroups}))


def _disk_weights(weight: int) -> tuple[int, int]:
    """Of BFQ, and on the scale of cgroup2's io.weight: the line through both pairs of ends, as runc and crun."""
    return weight, 1 + (weight - 10) * 9999 // 990


#: The Command's fields and OCI's.
_PER_DISK = {
    "blkio_weight_device": "weightDevice",
    "device_read_bps": "throttleReadBpsDevice",
    "device_write_bps": "throttleWriteBpsDevice",
    "device_read_iops": "throttleReadIOPSDevice",
    "device_write_iops": "throttleWriteIOPSDevice",
}


def _disks(found: Receipt, command: Command, resources: Mapping[str, Any]) -> Iterator[Found]:
    own = found.own_limits
    blkio = resources.get("blockIO", {})
    for field, name in _PER_DISK.items():
        asked = {f"{e['major']}:{e['minor']}": e["weight"] if "weight" in e else e["rate"] for e in blkio.get(name, ())}
        mine = {} if own is None else dict(own.disks.get(field, {}))
        seen = mine if field == "blkio_weight_device" else {**mine, **found.limits.disks.get(field, {})}
        for disk in sorted({*asked, *mine}):
            wanted = asked.get(disk)
            fits = _disk_weights(wanted) if wanted is not None and field == "blkio_weight_device" else (wanted,)
            if seen.get(disk) not in fits:
                yield Difference(f"resources.{field}", {disk: wanted}, {disk: seen.get(disk)})
    pages = command.resources.hugepage_limits or {}
    beyond = {} if own is None else {size: value for size, value in own.hugepages.items() if value != -1}
    for size in sorted({*pages, *beyond}):
        limit = pages.get(size, -1)
        unit = int(size[:-2]) << {"K": 10, "M": 20, "G": 30}[size[-2]]
        value = None if limit == -1 else limit // unit * unit  # hugetlb_cgroup_write() rounds down
        if (found.limits.hugepages if limit != -1 else beyond).get(size) != value:
            yield Difference("resources.hugepage_limits", {size: value}, {size: found.limits.hugepages.get(size)})


def _device_rules(found: Receipt, resources: Mapping[str, Any]) -> Iterator[Found]:
    field = "resources.device_cgroup_rules"
    if not any("devices" in path.controllers for path in found.cgroups):
        yield Unchecked(field, "without cgroup v1's list they are a program of the driver's (cgroup-v2.rst)")
        return
    rules = resources.get("devices")
    free = not rules or rules[0]["allow"]  # to be: with what is allowed then nothing is denied
    own = found.own_limits.devices if found.own_limits is not None else None
    seen = {"a *:*": "rwm"} if own is None else dict(line.rsplit(" ", 1) for line in own)
    asked = {"a *:*": "rwm"} if free else _allowed(rules or ())
    # Nobody is hurt by the rules of the default devices where none are asked for: nothing else is there to use.
    defaults = _allowed(map(rule_to_oci, DEFAULT_DEVICE_RULES))
    if seen != asked and not (rules is None and seen == defaults):
        yield Difference(field, sorted(map(" ".join, asked.items())), sorted(map(" ".join, seen.items())))


def _allowed(rules: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Device and access, as devices.list has them (cgroup-v1/devices.rst)."""
    found: dict[str, str] = {}
    for rule in rules:
        if rule["allow"]:
            device = f"{rule.get('type', 'a')} {rule.get('major', '*')}:{rule.get('minor', '*')}"
            both = found.get(device, "") + rule["access"]
            found[device] = "".join(letter for letter in "rwm" if letter in both)
    return {"a *:*": "rwm"} if found.get("a *:*") == "rwm" else found


# -- what is seen inside


def _insides(found: Receipt, command: Command, spec: Mapping[str, Any]) -> Iterator[Found]:
    if command.uts is None:
        name, seen = spec["hostname"], found.hostname
        if seen is None:
            yield Unchecked("hostname", "its uts namespace cannot be entered")
        elif seen != name and (
            # The name that somebody's Command.of has made up is not that of this one's, nor is the host's.
            command.hostname is not None
            or not (MADE_UP.fullmatch(name) and MADE_UP.fullmatch(seen))
            or seen == os.uname().nodename
        ):
            yield Difference("hostname", name, seen)
    from pycontainer.sysctl import path_of

    for key, value in command.sysctls.items():
        got = (found.sysctls or {}).get(path_of(key))
        if got is None:
            yield Unchecked("sysctls", f"{key} cannot be read")
        elif list(map(_number, got.split())) != list(map(_number, value.split())):
            yield Difference(f"sysctls.{key}", value, got)
    yield Unchecked("sysctls", "of those that are not asked for nobody says what a new namespace begins with")


def _number(text: str) -> int | str:
    """The kernel prints a number in another form than it was written in (proc_dointvec())."""
    try:
        return int(text, 0)
    except ValueError:
        return text


def _network(found: Receipt, command: Command) -> Iterator[Found]:
    from pycontainer.network import RELAYS, named

    mode = command.networks[0].mode if command.networks else "none"
    if mode in ("host", "container", "ns"):
        return
    if found.interfaces is None:
        yield Unchecked("network", "its network namespace cannot be entered")
        return
    there = {one.name: one for one in found.interfaces if one.up or one.name not in _TUNNELS}
    networks = {network.interface or "eth0": network for network in named(command.networks) if mode != "none"}
    if {*there} != {"lo", *networks}:
        yield Difference("network.interface", sorted({"lo", *networks}), sorted(there))
    if "lo" in there and not there["lo"].up:
        yield Difference("network", "lo is up", "lo is down")
    if mode in RELAYS:
        yield Unchecked("network", f"the addresses are {mode}'s affair, and so is where its packets go")
        return
    for name, network in networks.items():
        seen = there.get(name)
        if seen is None:
            continue
        for field, wanted, got in (
            ("mac", network.mac and network.mac.lower(), seen.mac),
            ("mtu", network.mtu, seen.mtu),
        ):
            if wanted is None:
                yield Unchecked(f"network.{field}", "without one it is the driver or the kernel that chooses")
            elif wanted != got:
                yield Difference(f"network.{field}", wanted, got)
        asked = {
            f"{address}/{bits}"
            for address, bits in ((network.address, network.prefix_length), (network.address6, network.prefix_length6))
            if address is not None
        }
        wishes, has = _addresses(asked), _addresses(seen.addresses)
        if wishes != has:
            yield Difference("network.address", sorted(asked), sorted(seen.addresses))
    gateways = {gateway for network in command.networks for gateway in (network.gateway, network.gateway6) if gateway}
    if _hosts(gateways) != _hosts(found.gateways or ()):
        yield Difference("network.gateway", sorted(gateways), sorted(found.gateways or ()))
    if mode == "bridge":
        for field in ("bridge", "create_bridge"):
            yield Unchecked(f"network.{field}", "the other end of its interface is not of its namespaces")


def _addresses(texts: Iterable[str]) -> set[Any]:
    import ipaddress

    return set(map(ipaddress.ip_interface, texts))


def _hosts(texts: Iterable[str]) -> set[Any]:
    import ipaddress

    return set(map(ipaddress.ip_address, texts))


# -- the process


def _process(found: Receipt, command: Command) -> Iterator[Found]:
    if found.session is None:
        yield Unchecked("session", "is not known")
    elif found.session not in (found.pid, found.parent if command.init else found.pid):
        yield Difference("session", "its own", f"that of process {found.session}")
    if found.terminal is None:
        yield Unchecked("process.tty", "is not known")
    elif found.terminal is not command.process.tty:
        yield Difference("process.tty", command.process.tty, found.terminal)


def _beginning(found: Receipt, begun: Beginning, command: Command, spec: Mapping[str, Any]) -> Iterator[Found]:
    process = spec["process"]
    env = dict(entry.split("=", 1) for entry in process["env"])
    if begun.environ is None:
        yield Unchecked("process.env", "that of another user's process may not be read")
    elif begun.environ != env:  # the values may be secrets
        differing = sorted(n for n in {*env} & {*begun.environ} if env[n] != begun.environ[n])
        others = [f"other values of {differing}"] if differing else []
        yield Difference("process.env", sorted(env), [*sorted(begun.environ), *others])
    if begun.umask != process["user"]["umask"]:
        yield Difference("umask", f"{process['user']['umask']:04o}", f"{begun.umask:04o}")
    if begun.descriptors is None:
        yield Unchecked("descriptors", "those of another user's process may not be read")
    elif {*begun.descriptors} != {0, 1, 2}:
        yield Difference("descriptors", [0, 1, 2], {str(fd): to for fd, to in begun.descriptors.items()})
    if (begun.niceness, begun.policy) != (0, 0):
        yield Difference("scheduling", "niceness 0, SCHED_OTHER", f"niceness {begun.niceness}, policy {begun.policy}")
    if begun.ignored_signals or begun.blocked_signals:
        ignored, blocked = map(list, (begun.ignored_signals, begun.blocked_signals))
        yield Difference("signals", "none ignored or blocked", f"ignored {ignored}, blocked {blocked}")
    asked_for = {limit["type"] for limit in process["rlimits"]}
    limits = {limit.type: limit for limit in found.rlimits}
    for limit in begun.caller_rlimits:
        seen = limits.get(limit.type)
        if limit.type not in asked_for and seen is not None and seen != limit:
            yield Difference(
                f"process.rlimits.{limit.type}", [limit.soft, limit.hard], [seen.soft, seen.hard]
            )  # fmt: skip
    yield from _directory(found, begun, command, spec)
    if command.pid is None and found.pid_inside is not None and (found.pid_inside == 1) is command.init:
        yield Difference("init", command.init, not command.init)
    yield from _devices(found, begun, spec["linux"].get("devices", ()))


def _directory(found: Receipt, begun: Beginning, command: Command, spec: Mapping[str, Any]) -> Iterator[Found]:
    asked = spec["process"]["cwd"]
    path = without_links(found, command, spec, asked)
    if begun.cwd in (asked, path):
        return
    mount = found.covering(path)
    if mount.target not in ("/", path) and begun.cwd.startswith(f"{mount.target}/"):
        yield Unchecked("process.working_dir", f"what links there are in {mount.target} is not known")
    else:
        yield Difference("process.working_dir", asked, begun.cwd)


def _devices(found: Receipt, begun: Beginning, asked: Iterable[Mapping[str, Any]]) -> Iterator[Found]:
    if begun.devices is None:
        yield Unchecked("devices", "its /dev is not in memory, or may not be looked at")
        return
    there = {
        node.path: (node.type, node.major, node.minor, f"{node.mode:04o}", _inside(node.uid, found.uid_map),
                    _inside(node.gid, found.gid_map))
        for node in begun.devices
    }  # fmt: skip
    wanted: dict[str, tuple[Any, ...]] = {}
    for path, numbers in _DEFAULT_DEVICES.items():
        wanted[path] = ("c", *numbers, "0666", 0, 0)
        if found.covering(path).target == path and path in there:  # the host's own node
            wanted[path] = (*wanted[path][:3], *there[path][3:])
    for device in asked:
        mode = f"{device['fileMode']:04o}"
        wanted[device["path"]] = (*(device[k] for k in ("type", "major", "minor")), mode, device["uid"], device["gid"])
    for path in sorted({*there, *wanted}):
        if there.get(path) != wanted.get(path) and path != "/dev/console":  # its terminal, or what there is of one
            yield Difference("devices", _words(path, wanted.get(path)), _words(path, there.get(path)))


def _words(path: str, node: tuple[Any, ...] | None) -> str | None:
    if node is None:
        return None
    return "{} {}:{} {} of {}:{}".format(*node) + f" as {path}"
