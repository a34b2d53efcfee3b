"""A Command as lxc.container.conf(5): each key from a list, each value written so that it can be nothing else.

The format has a key and a value in a line, cuts blanks off both ends, takes
one pair of quotes off, and has no way to write a newline.  So every value is
put in quotes, and one with a newline is refused (CVE-class: a value that goes on
with ``lxc.hook.pre-start=`` in the next line would be a program run as root).
"""

from __future__ import annotations

import functools
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pycontainer.errors import InvalidCommandError
from pycontainer.network import named
from pycontainer.spec import device_rules_to_oci
from pycontainer_lxc import cgroups
from pycontainer_lxc.targets import Targets, failed

if TYPE_CHECKING:
    from pycontainer.command import Command
    from pycontainer.device import Device
    from pycontainer.network import Network

__all__ = ["Config", "render", "render_exec"]

#: Every key that is ever written. ``*`` is one more part, of those characters.
KEYS = re.compile(
    r"lxc\.(?:apparmor\.profile|autodev(?:\.tmpfs\.size)?|cap\.keep|cgroup2?\.[a-z]+\.[a-z_.]+|cgroup\.relative"
    r"|cgroup\.dir\.(?:container|monitor|monitor\.pivot)|console\.path|environment|init\.(?:cwd|gid|groups|uid)"
    r"|mount\.entry|namespace\.(?:clone|share\.net)"
    r"|net\.\d+\.(?:type|flags|link|name|mtu|hwaddr|ipv[46]\.(?:address|gateway))"
    r"|no_new_privs|prlimit\.[a-z]+|proc\.oom_score_adj|pty\.max|rootfs\.(?:options|path)|selinux\.context|tty\.max|uts\.name)"
)

#: getmntent_r(3) in LXC reads an entry into PATH_MAX bytes.
MAX_ENTRY = 4000


class Config:
    """The lines of a configuration."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, key: str, value: str | int, field: str = "command") -> None:
        """One line. *field* is the Command's, for the InvalidCommandError about a value that cannot be written."""
        _check_key(key)
        text = str(value)
        if "\n" in text or "\0" in text or "\r" in text:
            raise InvalidCommandError(field, "cannot have a line break: LXC's configuration has one value in a line")
        self.lines.append(f'{key}="{text}"')

    def mount(self, source: str, target: str, kind: str, options: Sequence[str]) -> None:
        """A mount, *target* being absolute in the container: a line of fstab(5) in a line of this."""
        entry = _entry(source, target, kind, tuple(options))
        if len(os.fsencode(entry)) > MAX_ENTRY:
            raise InvalidCommandError("mounts", f"{source} on {target} is longer than LXC can read")
        self.add("lxc.mount.entry", entry, "mounts")

    def encode(self) -> bytes:
        return "".join(line + "\n" for line in self.lines).encode("utf-8", "surrogateescape")


@functools.lru_cache(256)
def _check_key(key: str) -> None:
    if not KEYS.fullmatch(key):
        raise ValueError(f"{key} is not among the keys of pycontainer_lxc.config")


@functools.lru_cache(256)
def _entry(source: str, target: str, kind: str, options: tuple[str, ...]) -> str:
    return f"{_octal(source)} {_octal(target.lstrip('/'))} {kind} {','.join(options)} 0 0"


def _octal(text: str) -> str:
    """As getmntent(3) reads a field: it knows these four, and leaves any other such number as it is."""
    return re.sub(r"[ \t\n\\]", lambda match: f"\\{ord(match[0]):03o}", text)


def render(
    command: Command,
    spec: Mapping[str, Any],
    where: Mapping[str, str],
    directory: str,
    network: str = "",
    terminal: str = "",
) -> bytes:
    """The configuration of *command*, whose OCI runtime specification is *spec*.

    *where* are the cgroup hierarchies (:func:`pycontainer_lxc.cgroups.bases`),
    *directory* the cgroup that containers' are made in, below the caller's own;
    *network* the path of a network namespace to share, *terminal* that of the
    pseudo-terminal that is to be its console.  Makes the mount points
    that the rootfs lacks.  Raises InvalidCommandError, SetupError.
    """
    config = Config()
    linux = spec["linux"]
    config.add("lxc.rootfs.path", f"dir:{spec['root']['path']}", "rootfs")
    options = ["ro"] if command.read_only else []
    if "CAP_MKNOD" not in spec["process"]["capabilities"]["bounding"]:
        options.append("nodev")
    if options:
        config.add("lxc.rootfs.options", ",".join(options))
    if command.apparmor_profile is not None:
        config.add("lxc.apparmor.profile", command.apparmor_profile, "apparmor_profile")
    elif _apparmor_is_incomplete():
        config.add("lxc.apparmor.profile", "unconfined")
    if command.selinux_label is not None:
        config.add("lxc.selinux.context", command.selinux_label, "selinux_label")
    config.add("lxc.console.path", "none")
    config.add("lxc.tty.max", 0)
    config.add("lxc.pty.max", 1024)
    config.add("lxc.autodev", 1)
    config.add("lxc.autodev.tmpfs.size", 65536 * 1024)
    if "hostname" in spec:
        config.add("lxc.uts.name", spec["hostname"], "hostname")
    # Without this list LXC's own rules hold; naming what to keep instead would make a user namespace.
    types = {"mount": "mnt", "network": "net"}
    names = [types.get(entry["type"], entry["type"]) for entry in linux["namespaces"]]
    if network:
        names.remove("net") if "net" in names else None
        config.add("lxc.namespace.share.net", network)
    config.add("lxc.namespace.clone", " ".join(names))
    if not network:
        _network(config, command.networks)
    with Targets(spec["root"]["path"]) as targets:
        _mounts(config, command, spec, targets)
        _devices(config, command.devices)
        if terminal:
            config.mount(terminal, "/dev/console", "none", ["bind", "create=file"])
        _masks(config, linux, targets)
        _process(config, spec["process"], targets)
    config.add("lxc.cap.keep", _capabilities(spec["process"]["capabilities"]["bounding"]), "process.capabilities")
    config.add("lxc.no_new_privs", int(spec["process"]["noNewPrivileges"]))
    _cgroups(config, linux["resources"], where, directory, command.id)
    for line in command.config:
        config.lines.append(line)
    return config.encode()


#: The profile that LXC's package loads and LXC asks for.
APPARMOR_PROFILE = "lxc-container-default-cgns"


@functools.cache
def _apparmor_is_incomplete(directory: str = "/sys") -> bool:
    """Whether the kernel has AppArmor without what LXC asks of it: then LXC refuses to start anything."""
    try:
        if cgroups.read(f"{directory}/module/apparmor/parameters/enabled").strip() != "Y":
            return False
        loaded = cgroups.read(f"{directory}/kernel/security/apparmor/profiles")
        cgroups.read(f"{directory}/kernel/security/apparmor/features/mount/mask")
    except OSError:
        return os.path.exists(f"{directory}/module/apparmor")
    return APPARMOR_PROFILE not in {line.partition(" ")[0] for line in loaded.splitlines()}


def render_exec(process: Mapping[str, Any]) -> bytes:
    """What ``lxc-attach`` reads for a further process: its environment and limits, which no argument can carry."""
    config = Config()
    _environment(config, process)
    _rlimits(config, process)
    return config.encode()


def check_raw(line: str) -> str | None:
    """What is wrong with a line of ``Command.config``: LXC silently skips what it does not take for a setting."""
    key, equals, _ = line.partition("=")
    return None if equals and key.strip().startswith("lxc.") else f"{line!r} is not of the form lxc.key = value"


#: In the container's network, which has its interfaces by then, none of them up: whoever else is on the bridge gives it
#: no addresses and no routes. A kernel without IPv6 has no such files.
_IGNORE_ADVERTISEMENTS = (
    'lxc.hook.pre-mount="</dev/null; for file in /proc/sys/net/ipv6/conf/*/accept_ra; do'
    ' [ ! -e $file ] || echo 0 >$file || exit 1; done; exit 0; :"'
)


def _network(config: Config, networks: Sequence[Network]) -> None:
    if not networks or networks[0].mode == "none":
        config.add("lxc.net.0.type", "empty")
        config.add("lxc.net.0.flags", "up")
        return
    config.lines.append(_IGNORE_ADVERTISEMENTS)  # a constant: no value makes a hook
    for number, network in enumerate(named(networks)):
        key = f"lxc.net.{number}"
        config.add(f"{key}.type", "veth")
        config.add(f"{key}.flags", "up")
        config.add(f"{key}.name", network.interface or "", "network.interface")
        config.add(f"{key}.link", network.bridge or "", "network.bridge")
        if network.mtu is not None:
            config.add(f"{key}.mtu", network.mtu, "network.mtu")
        if network.mac is not None:
            config.add(f"{key}.hwaddr", network.mac, "network.mac")
        for address, bits, gateway in (
            (network.address, network.prefix_length, network.gateway),
            (network.address6, network.prefix_length6, network.gateway6),
        ):
            if address is None:
                continue
            kind = "ipv6" if ":" in address else "ipv4"
            # No broadcast address, as native: the one that LXC thinks of is 0.0.0.255.
            rest = " 0.0.0.0" if kind == "ipv4" else ""
            config.add(f"{key}.{kind}.address", f"{address}/{bits}{rest}", "network.address")
            if gateway is not None:
                config.add(f"{key}.{kind}.gateway", gateway, "network.gateway")


def _mounts(config: Config, command: Command, spec: Mapping[str, Any], targets: Targets) -> None:
    for mount in spec["mounts"]:
        target, kind, source = mount["destination"], mount["type"], mount["source"]
        bind = kind == "bind"
        try:
            if target in ("/proc", "/sys", "/dev"):
                targets.system(target)
                create = False
            else:
                target, create = targets.make(target, directory=not bind or os.path.isdir(source))
        except OSError as error:
            raise failed(f"mount {source if bind else kind} on {target}", error) from None
        targets.mounted(target, source if bind else None, writable="rro" not in mount["options"])
        if target in ("/dev", "/dev/pts"):
            continue  # LXC's autodev and pty.max
        options = [option for option in mount["options"] if option != "rro"]
        if create:
            options.append("create=dir" if not bind or os.path.isdir(source) else "create=file")
        if "rro" in mount["options"]:
            _read_only_tree(config, source, target, options)
        else:
            config.mount(source, target, "none" if bind else kind, options)


def _devices(config: Config, devices: Sequence[Device]) -> None:
    """The host's own nodes, bound: LXC makes none but a few. They are used all the same, but not given away."""
    for device in devices:
        config.mount(device.path, device.container_path, "none", ["bind", "ro", "create=file"])


def _device_rule(rule: Mapping[str, Any]) -> str:
    """As cgroup v1 has it (cgroup-v1/devices.rst), and LXC for either version."""
    if "type" not in rule:
        return "a"
    return f"{rule['type']} {rule.get('major', '*')}:{rule.get('minor', '*')} {rule['access']}"


def _read_only_tree(config: Config, source: str, target: str, options: list[str]) -> None:
    """A bind mount and those below it, one by one: LXC's ``rbind,ro`` leaves everything but the top writable."""
    options = ["bind", "ro", *(option for option in options if option not in ("rbind", "ro"))]
    config.mount(source, target, "none", options)
    real = os.path.realpath(source)
    for path in _mounted_below(real):
        config.mount(path, target + path[len(real.rstrip("/")) :], "none", [o for o in options if "create=" not in o])


def _mounted_below(directory: str) -> Iterator[str]:
    """The mount points below *directory* that can be seen, in the order in which they were mounted."""
    prefix = directory.rstrip("/") + "/"
    for line in cgroups.read("/proc/self/mountinfo").splitlines():
        path = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), line.split(" ")[4])
        if path.startswith(prefix) and os.path.lexists(path):
            yield path


def _masks(config: Config, linux: Mapping[str, Any], targets: Targets) -> None:
    """Last, so that no mount of the user's is above them. Nothing is optional: what exists gets its mask."""
    for path in linux["maskedPaths"]:
        found = _existing(path, targets)
        if found is None:
            continue
        target, is_directory = found
        if is_directory:
            config.mount("tmpfs", target, "tmpfs", ["ro", "nosuid", "nodev", "noexec", "size=0", "mode=555"])
        else:
            # the host's own: LXC fills the container's /dev only after the mounts (CVE-2025-31133)
            config.mount("/dev/null", target, "none", ["bind", "ro"])
    for path in linux["readonlyPaths"]:
        found = _existing(path, targets)
        if found is not None:
            flags = ["nosuid", "nodev", "noexec"] if path.startswith(("/proc/", "/sys/")) else []
            config.mount(found[0].lstrip("/"), found[0], "none", ["bind", "ro", *flags, "relative"])


def _existing(path: str, targets: Targets) -> tuple[str, bool] | None:
    """(path, whether a directory) if it is in the container; /proc and /sys are those of the host's kernel."""
    if path.startswith(("/proc/", "/sys/")):
        return (path, os.path.isdir(path)) if os.path.lexists(path) else None
    found = targets.find(path)
    return None if found is None else (found[0], stat.S_ISDIR(found[1].st_mode))


def _process(config: Config, process: Mapping[str, Any], targets: Targets) -> None:
    user = process["user"]
    config.add("lxc.init.uid", user["uid"])
    config.add("lxc.init.gid", user["gid"])
    # The group is one of the supplementary ones as well, as after login(1) (CVE-2022-2989).
    config.add("lxc.init.groups", ",".join(map(str, dict.fromkeys((user["gid"], *user["additionalGids"])))))
    config.add("lxc.init.cwd", working_dir(process["cwd"], targets), "process.working_dir")
    if "oomScoreAdj" in process:
        config.add("lxc.proc.oom_score_adj", process["oomScoreAdj"], "oom_score_adj")
    _environment(config, process)
    _rlimits(config, process)


def working_dir(path: str, targets: Targets) -> str:
    """*path* without links. LXC enters it while it has descriptors of the host open (CVE-2024-21626)."""
    found = targets.resolve(path)
    if found is None or (found + "/").startswith(("/proc/", "/dev/fd/")):
        raise InvalidCommandError("process.working_dir", f"{path} leads to /proc, and LXC would follow its links")
    return found


def _environment(config: Config, process: Mapping[str, Any]) -> None:
    for variable in process["env"]:
        config.add("lxc.environment", variable, "process.env")


def _rlimits(config: Config, process: Mapping[str, Any]) -> None:
    for limit in process["rlimits"]:
        soft, hard = ("unlimited" if limit[name] == 2**64 - 1 else limit[name] for name in ("soft", "hard"))
        config.add(f"lxc.prlimit.{limit['type'].removeprefix('RLIMIT_').lower()}", f"{soft}:{hard}")


def _capabilities(names: Sequence[str]) -> str:
    return " ".join(name.removeprefix("CAP_").lower() for name in names) or "none"


def _cgroups(
    config: Config,
    resources: Mapping[str, Any],
    where: Mapping[str, str],
    directory: str,
    id: str,
) -> None:
    config.add("lxc.cgroup.relative", 1)
    config.add("lxc.cgroup.dir.container", cgroups.payload(directory, id, where))
    config.add("lxc.cgroup.dir.monitor", f"{directory}/monitor.{id}")
    config.add("lxc.cgroup.dir.monitor.pivot", f"{directory}/pivot")
    kind = cgroups.version("devices", where)
    prefix = "lxc.cgroup" if kind == 1 else "lxc.cgroup2"
    if kind == 1 or "" in where:
        config.add(f"{prefix}.devices.deny", "a")
        # LXC's own rules allow everything, so there always are some.
        for rule in resources.get("devices", device_rules_to_oci((), ())):
            if rule["allow"]:
                config.add(f"{prefix}.devices.allow", _device_rule(rule))
    for field, controller, name, value in cgroups.limits(resources, where):
        version = "" if cgroups.version(controller, where) == 1 else "2"
        config.add(f"lxc.cgroup{version}.{name}", value, field)
