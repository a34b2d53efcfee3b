"""The flags of ``run``, ``explain``, ``compare`` and ``update``, which are docker's, and what they describe."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pycontainer.errors import ContainerError

if TYPE_CHECKING:
    from pycontainer.command import Command
    from pycontainer.hooks import Hooks
    from pycontainer.mount import Mount
    from pycontainer.network import Network

__all__ = [
    *("add_driver_flags", "add_flags", "add_limits"),
    *("command_keywords", "command_of", "environment", "limit_keywords"),
]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Teach *parser* all of them; ``dest`` is the keyword of Command.of where there is one."""
    parser.add_argument("argv", action=_Argv, nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    yes: dict[str, Any] = {"action": "store_true"}
    many: dict[str, Any] = {"action": "append"}
    # Two flags, one list, in which each is marked.
    variables: dict[str, Any] = {"dest": "environment", "default": [], "action": "append"}

    add = parser.add_argument_group("how it runs").add_argument
    add("-i", "--interactive", **yes, default=False, help="pass standard input on; without this it is /dev/null")
    add("-t", "--tty", **yes, help="give it a terminal of its own")
    add("-u", "--user", metavar="USER[:GROUP]", help="names in the container, or numbers")
    add("--group-add", dest="groups", **many, metavar="GROUP", help="a supplementary group")
    add("-w", "--workdir", dest="cwd", metavar="DIR", help="working directory in the container")
    add("-e", "--env", **variables, type=_variable, metavar="NAME[=VALUE]", help="a variable; without a value, ours")
    add("--env-file", **variables, type=_variable_file, metavar="FILE", help="variables, one in a line")
    add("--init", **yes, help="a small init as PID 1, which reaps processes and forwards signals")
    add("--timeout", type=_seconds, default=None, metavar="SECONDS", help="kill it after that time and exit with 124")
    add("--receipt", default=None, metavar="FILE", help="write down as JSON what really held for it when it began")
    add("--name", metavar="NAME", help="its id; default: a random one")
    add(
        "--driver",
        default=None,
        metavar="NAME[,NAME]",
        help="default: $PYCONTAINER_DRIVER, or native; of several the first that can be used",
    )
    add(
        "--require",
        default=[],
        action="extend",
        type=_checked(_features),
        metavar="FEATURES",
        help="such as exec,pause",
    )
    add("--rm", **yes, help="accepted for docker's sake: it is always removed")
    add("-d", "--detach", **yes, default=False, help="print its id and leave it alone: 'ps', 'logs' and 'rm' find it")
    add("--log-opt", dest="log_options", **many, default=[], metavar="max-size=4m", help="of --detach; or max-file=2")
    add(
        "--hooks-file", default=None, metavar="FILE", help="programs to run at points of its life: OCI's hooks, as JSON"
    )
    add("--annotation", dest="annotations", **many, type=_assignment, metavar="NAME=VALUE", help="an OCI annotation")
    add("--help", action="help", help="show this and exit")

    add = parser.add_argument_group("what it sees").add_argument
    add("--rootfs", **many, metavar="DIR", help="its root; default: a throw-away view of this host's programs")
    add("--overlay", **yes, default=False, help="leave --rootfs as it is; given several times, the first is on top")
    add("--overlay-upper", metavar="DIR", default=None, help="keep the changes here, instead of throwing them away")
    add("--read-only", **yes, help="its root cannot be written to")
    add("--rootfs-propagation", metavar="MODE", help="private, slave...: whether later mounts of the host are seen")
    add("-v", "--volume", dest="mounts", **many, type=_volume, metavar="SOURCE:TARGET[:ro]", help="a bind mount")
    add("--mount", dest="mounts", **many, type=_mount, metavar="type=bind,source=S,target=T", help="likewise")
    add("--tmpfs", dest="mounts", **many, type=_tmpfs, metavar="TARGET[:size=64m]", help="a directory in memory")
    add(
        "--network",
        "--net",
        action="append",
        metavar="MODE",
        help="none, host, pasta, slirp4netns, bridge[:NAME], container:ID, ns:PATH, name=BRIDGE,ip=ADDRESS/BITS; "
        "default: loopback only",
    )
    add("--ip", dest="network_address", metavar="ADDRESS/BITS", help="its address on the bridge")
    add("--ip6", dest="network_address6", metavar="ADDRESS/BITS", help="likewise, of IPv6")
    add("--dns", **many, metavar="ADDRESS", help="a name server; default on a bridge: this host's")
    add("--dns-search", **many, metavar="DOMAIN", help="where to look for names without a dot")
    add(
        "--add-host",
        dest="extra_hosts",
        **many,
        type=_extra_host,
        metavar="NAME:ADDRESS",
        help="a line of /etc/hosts; host-gateway is the gateway's address",
    )
    add("--mac-address", dest="network_mac", metavar="MAC", help="of its interface on the bridge")
    add("-h", "--hostname", metavar="NAME", help="default: its id")
    for namespace in ("pid", "ipc", "uts"):
        add(f"--{namespace}", metavar="host", help=f"share the {namespace} namespace of host, container:ID or ns:PATH")

    add = parser.add_argument_group("what it may use").add_argument
    add_limits(add)
    add("--ulimit", dest="rlimits", **many, type=_ulimit, metavar="TYPE=SOFT[:HARD]", help="such as nofile=64:128")
    add("--cpu-affinity", metavar="LIST", help="the processors it starts on, which it may change")
    add("--oom-score-adj", type=int, metavar="NUMBER", help="out of memory, later or sooner: -1000 to 1000")
    add("--blkio-weight", type=int, metavar="WEIGHT", help="of a busy disk, against other containers: 10 to 1000")
    disks: dict[str, Any] = {**many, "type": _disk}
    add("--blkio-weight-device", **disks, metavar="DISK:WEIGHT", help="of one disk: /dev/sda:500")
    for way in ("read", "write"):
        add(f"--device-{way}-bps", **disks, metavar="DISK:RATE", help=f"bytes it may {way} a second: /dev/sda:10m")
        add(f"--device-{way}-iops", **disks, metavar="DISK:NUMBER", help=f"how often it may {way} in a second")
    limit: dict[str, Any] = {**many, "type": _assignment, "metavar": "SIZE=BYTES"}
    add("--hugepage-limit", dest="hugepage_limits", **limit, help="huge pages of a size: 2MB=64m")
    add("--cgroup-parent", metavar="CGROUP", help="make its cgroups below this one")

    add = parser.add_argument_group("what it may do").add_argument
    add("--device", dest="devices", **many, metavar="PATH[:PATH][:rwm]", help="a device of this host: /dev/fuse")
    add("--device-cgroup-rule", dest="device_cgroup_rules", **many, metavar="RULE", help="such as 'c 10:229 rw'")
    add(
        "--sysctl", dest="sysctls", **many, type=_assignment, metavar="NAME=VALUE", help="a kernel parameter of its own"
    )
    add("--userns", metavar="auto", help="root inside is nobody outside: a user namespace with ids of its own")
    for kind in ("uid", "gid"):
        add(
            f"--{kind}map",
            dest=f"{kind}_mappings",
            **many,
            type=_id_mapping,
            metavar="INSIDE:OUTSIDE:COUNT",
            help=f"which {kind}s it has, and who they are on the host",
        )
    add("--cap-add", **many, metavar="CAPABILITY", help="one more, or ALL")
    add("--cap-drop", **many, metavar="CAPABILITY", help="one less, or ALL")
    add("--privileged", **yes, help="every capability and nothing masked: as good as root on this host")
    add(
        "--security-opt",
        action=_SecurityOption,
        type=_security_option,
        metavar="NAME=VALUE",
        help="no-new-privileges=false: setuid programs raise its privileges; seccomp=unconfined, or =FILE: a profile; "
        "apparmor=PROFILE; label=CONTEXT and mount-label=CONTEXT, of SELinux",
    )


def add_limits(add: Callable[..., Any]) -> None:
    """The flags of the limits that can be changed while a container runs."""
    add("-m", "--memory", metavar="BYTES", help="memory, with a unit if you like: 64m")
    add("--memory-swap", metavar="BYTES", help="memory and swap together, -1 unlimited; default: twice the memory")
    add("--cpus", type=float, metavar="NUMBER", help="processors, parts of one as well: 0.5")
    add("-c", "--cpu-shares", type=int, metavar="WEIGHT", help="against other containers: 2 to 262144")
    add("--cpu-period", type=int, metavar="MICROSECONDS", help="of the quota")
    add("--cpu-quota", type=int, metavar="MICROSECONDS", help="processor time in each period")
    add("--cpuset-cpus", metavar="LIST", help="the processors it may run on: 0-3,5")
    add("--cpuset-mems", metavar="LIST", help="the memory nodes it may use")
    add("--pids-limit", type=int, metavar="NUMBER", help="processes and threads, -1 unlimited")


class _SecurityOption(argparse.Action):
    """Stores an option under the name of its keyword."""

    def __call__(self, parser: argparse.ArgumentParser, options: argparse.Namespace, option: Any, *_: object) -> None:
        setattr(options, *option)


class _Argv(argparse.Action):
    """COMMAND and its arguments: everything from the first word that is no flag, or after ``--``."""

    def __call__(self, parser: argparse.ArgumentParser, options: argparse.Namespace, words: Any, *_: object) -> None:
        argv = words[1:] if words[:1] == ["--"] else words
        if not argv:
            parser.error("what is to be run? There is no COMMAND")
        options.argv = argv


def _variable(text: str) -> tuple[str, str]:
    return "variable", text


def _variable_file(path: str) -> tuple[str, str]:
    return "file", path


def add_driver_flags(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """The flags ``--x-option`` of those drivers whose flags are among *words*."""
    known = parser._option_string_actions
    strange = [word for word in words if word[:2] == "--" and "-" in word[2:] and word.partition("=")[0] not in known]
    if words[-1:] == ["--help"]:
        strange.append("--help")
    if strange:
        from pycontainer.options import add_flags

        add_flags(parser, strange)


# -- from words to values


def _checked(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    """*convert* for argparse, which would hide what a ValueError says."""

    def converted(text: str) -> Any:
        try:
            return convert(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None

    return converted


@_checked
def _volume(text: str) -> Mount:
    from pycontainer.mount import Mount

    return Mount.parse(text)


@_checked
def _mount(text: str) -> Mount:
    from pycontainer.mount import Mount

    return Mount.parse_long(text)


@_checked
def _tmpfs(text: str) -> Mount:
    """``/run:size=64m,mode=1777``. As with docker nosuid, nodev and noexec hold unless suid, dev or exec is given."""
    from pycontainer.mount import Mount

    target, _, options = text.partition(":")
    flags = [option for option in options.split(",") if option and "=" not in option]
    values = dict(option.split("=", 1) for option in options.split(",") if "=" in option)
    flags += [f"{name}={value}" for name, value in values.items() if name not in ("size", "mode")]
    safe = [f"no{flag}" for flag in ("suid", "dev", "exec") if flag not in flags]
    flags = [flag for flag in flags if flag not in ("ro", "rw", "suid", "dev", "exec", *safe)]
    return Mount.tmpfs(
        target,
        size=values.get("size"),
        mode=int(values["mode"], 8) if "mode" in values else None,
        read_only="ro" in options.split(","),
        options=safe + flags,
    )


@_checked
def _ulimit(text: str) -> tuple[str, tuple[int, int]]:
    """``nofile=64:128``, or one number for both; ``unlimited`` and -1 are RLIM_INFINITY."""
    name, equals, limits = text.partition("=")
    if not equals:
        raise ValueError("is not of the form TYPE=SOFT[:HARD]")
    soft, colon, hard = (-1 if part == "unlimited" else part for part in limits.partition(":"))
    return name, (int(soft), int(hard if colon else soft))


@_checked
def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError("is not of the form NAME=VALUE")
    return name, value


@_checked
def _extra_host(text: str) -> tuple[str, str]:
    """``NAME:ADDRESS``, or with an equals sign; docker takes an address of IPv6 in brackets as well."""
    name, separator, address = text.partition("=" if "=" in text else ":")
    if not separator:
        raise ValueError("is not of the form NAME:ADDRESS")
    return name, address.strip("[]")


@_checked
def _id_mapping(text: str) -> tuple[int, int, int]:
    numbers = text.split(":")
    if len(numbers) != 3 or not all(number.isascii() and number.isdecimal() for number in numbers):
        raise ValueError("is not of the form INSIDE:OUTSIDE:COUNT")
    return int(numbers[0]), int(numbers[1]), int(numbers[2])


@_checked
def _disk(text: str) -> tuple[str, int | str]:
    path, colon, number = text.rpartition(":")
    if not colon:
        raise ValueError("is not of the form /dev/sda:NUMBER")
    return path, int(number) if number.isdecimal() else number


@_checked
def _security_option(text: str) -> tuple[str, bool | str | None]:
    """``no-new-privileges``, also with ``=true`` or ``=false``; ``seccomp=`` and the like.

    Docker takes a colon in place of the first ``=`` as well.  Its ``label=type:...`` changes a part of a context that
    its daemon has made up: here there is none to be changed.
    """
    name, _, value = text.partition("=" if "=" in text else ":")
    if (name, value) == ("label", "disable"):
        return "selinux_label", None
    if name in _SECURITY_OPTIONS and value:
        if name == "label" and value.partition(":")[0] in ("user", "role", "type", "level", "filetype"):
            raise ValueError("is a part of an SELinux context: give all of it, label=USER:ROLE:TYPE:LEVEL")
        return _SECURITY_OPTIONS[name], value
    if name != "no-new-privileges" or value not in ("", "true", "false"):
        known = "seccomp=unconfined or =FILE, apparmor=PROFILE, label=CONTEXT and mount-label=CONTEXT"
        raise ValueError(f"only no-new-privileges, =true or =false, {known} are known")
    return "no_new_privileges", value != "false"


#: The options that have a value, and their keywords.
_SECURITY_OPTIONS = {
    "seccomp": "seccomp",
    "apparmor": "apparmor_profile",
    "label": "selinux_label",
    "mount-label": "mount_label",
}


@_checked
def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise ValueError("is not a time")
    return seconds


def _features(text: str) -> list[str]:
    from pycontainer.requirements import as_features

    return [feature.value for feature in as_features(text.split(","))]


# -- from flags to a Command


def command_of(options: argparse.Namespace) -> Command:
    """The Command that the flags describe. Raises InvalidCommandError."""
    from pycontainer.command import Command

    return Command.of(options.argv, **command_keywords(options))


#: The keywords that are mappings, whose flags have a pair each.
_PAIRS = (
    *("annotations", "rlimits", "sysctls", "extra_hosts", "blkio_weight_device", "hugepage_limits"),
    *("device_read_bps", "device_write_bps", "device_read_iops", "device_write_iops"),
)


def command_keywords(options: argparse.Namespace) -> dict[str, Any]:
    """The flags as the keywords of :meth:`Command.of`; a flag that was not given is not among them."""
    from pycontainer.command import COMMAND_KEYWORDS, Command

    keywords = {name: value for name, value in vars(options).items() if name in COMMAND_KEYWORDS}
    for name in _PAIRS:
        if name in keywords:
            keywords[name] = dict(keywords[name])
    if any(name.startswith("network") for name in vars(options)):
        keywords["network"] = _networks(options)
    if options.hooks_file is not None:
        keywords["hooks"] = _hooks(options.hooks_file)
    if "rootfs" in keywords:
        keywords["rootfs"] = _root(keywords["rootfs"], options)
    elif options.overlay or options.overlay_upper is not None:
        raise ContainerError("--overlay is about --rootfs, and there is none")
    variables = dict(environment(options.environment, os.environ))
    if variables:
        # On top of what the container would have had, as with docker; Command.env is all there is.
        from pycontainer.spec import process_to_oci

        command = Command.of(options.argv, **keywords)
        usual = process_to_oci(command.process, command.rootfs)["env"]
        keywords["env"] = dict(item.split("=", 1) for item in usual) | variables
    return keywords


def limit_keywords(options: argparse.Namespace) -> dict[str, Any]:
    """The flags as the keywords of :meth:`Container.update`; a flag that was not given is not among them."""
    import attrs

    from pycontainer.resources import Resources

    names = {"cpus", *attrs.fields_dict(Resources)}
    return {name: value for name, value in vars(options).items() if name in names}


def _networks(options: argparse.Namespace) -> list[Network]:
    """``--network``, with ``--ip``, ``--ip6`` and ``--mac-address``, which are about the one on a bridge."""
    import attrs

    from pycontainer.errors import InvalidCommandError
    from pycontainer.network import Network

    networks = [Network.parse(text) for text in getattr(options, "network", ["bridge"])]
    given = {name[8:]: value for name, value in vars(options).items() if name.startswith("network_")}
    if not given:
        return networks
    if len(networks) > 1:
        raise InvalidCommandError("network", "of several ones each says its own: --network name=BRIDGE,ip=ADDRESS/BITS")
    for name in {*given} & {"address", "address6"}:
        given[name], slash, bits = given[name].partition("/")
        if slash:
            given[f"prefix_length{name[7:]}"] = int(bits) if bits.isdecimal() else bits
    return [attrs.evolve(networks[0], **given)]


def _hooks(path: str) -> Hooks:
    """The hooks in the file *path*, which is OCI's ``hooks`` as JSON. Raises ContainerError."""
    import json

    from pycontainer.errors import InvalidCommandError
    from pycontainer.hooks import Hooks

    try:
        with open(path, "rb") as file:
            text = file.read()
    except OSError as error:
        raise ContainerError(f"--hooks-file {path}: {error.strerror}") from None
    try:
        return Hooks.from_oci(json.loads(text))
    except (ValueError, RecursionError) as error:
        if isinstance(error, InvalidCommandError):
            raise
        raise InvalidCommandError("hooks", f"{path} is not JSON: {error}") from None


def _root(directories: Sequence[str], options: argparse.Namespace) -> Any:
    """What ``--rootfs`` and ``--overlay`` mean. Raises ContainerError."""
    if options.overlay or options.overlay_upper is not None:
        from pycontainer.overlay import overlay

        return overlay(*directories, upper=options.overlay_upper)
    if len(directories) > 1:
        raise ContainerError("--rootfs is given several times: with --overlay they are one upon the other")
    return directories[0]


def environment(given: Sequence[tuple[str, str]], ours: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The variables of ``--env-file``, then those of ``-e``; one without a value has ours, or is left out."""
    assignments = [line for kind, path in given if kind == "file" for line in _lines(path)]
    assignments += [text for kind, text in given if kind == "variable"]
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if equals:
            yield name, value
        elif name in ours:
            yield name, ours[name]


def _lines(path: str) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                text = line.lstrip().rstrip("\r\n")
                if text and not text.startswith("#"):
                    yield text
    except OSError as error:
        raise ContainerError(f"--env-file {path}: {error.strerror}") from None
