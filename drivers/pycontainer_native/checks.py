"""Whether a Command can be run here at all: what the host, and the caller's rights over it, do not allow.

What is wrong with a Command wherever it is run, it has said itself when it was
made.  Nothing here changes anything.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeAlias

from attrs import frozen

from pycontainer.command import Resources
from pycontainer.driver import Feature
from pycontainer.errors import InvalidCommandError, UnsupportedError
from pycontainer.hooks import POINTS
from pycontainer.network import named
from pycontainer.process import capability_numbers
from pycontainer.rootfs import Overlay, open_in_rootfs
from pycontainer.seccomp import notifying
from pycontainer.spec import limits_to_oci, process_to_oci
from pycontainer_native import listener, plan, trees, userns
from pycontainer_native.cgroups.limits import MEMORY_MIN

if TYPE_CHECKING:
    from pycontainer.command import Command, Process
    from pycontainer.filters import Filters
    from pycontainer_native.cgroups import Layout
    from pycontainer_native.host import Host

Problem: TypeAlias = InvalidCommandError | UnsupportedError

#: What is left of the set-up when the limit is set: stdio, the channel, with an init its report, and two of the working
#: directory's.
NOFILE_MIN = 7

_CAP_SYS_RESOURCE = 24
_PRIVATE = (None, "private", "rprivate")
_NO_LIMITS = Resources()


@frozen
class Checks:
    """What *driver* cannot run on *host*, with the cgroups of *layout*."""

    driver: str
    host: Host
    layout: Layout
    filters: Filters

    def problems(self, command: Command) -> Iterator[Problem]:
        """All that is wrong with *command*."""
        if command.config:
            yield InvalidCommandError("config", "raw values are for other drivers: native takes none")
        if command.network is not None:
            yield from self._check_networks(command)
        yield from _check_rootfs(command)
        if command.mounts:
            yield from _check_sources(command)
        yield from _check_etc(command)
        yield from self._check_propagation(command)
        if command.hooks is not None:
            yield from _check_hooks(command)
        yield from self._check_ids(command)
        yield from self._check_user_namespace(command)
        if command.init:
            yield from _check_init(command)
        if command.is_labelled:
            yield from _check_labels(command)
        yield from self._check_rights(command)
        yield from self._check_limits(command)
        try:
            self.filters.of(command)
        except (InvalidCommandError, UnsupportedError) as error:
            yield error
        if notifying(command.seccomp):
            yield from self._check_listener(command)
        if command.pid is not None and not any(place.writable for place in self.layout.hierarchies):
            reason = f"{command.pid!r} needs a cgroup: without one its processes can get away"
            yield InvalidCommandError("pid", reason)

    # -- networks

    def _check_networks(self, command: Command) -> Iterator[Problem]:
        for network in named(command.networks):
            if network.mode in plan.RELAYS:
                yield from self._check_relay(network.mode)
            elif network.mode == "bridge" and self.host.namespace is not None:
                reason = "an ordinary user may not change the host's network"
                yield UnsupportedError(self.driver, Feature.NETWORK, reason)
            elif network.mode == "bridge" and not network.create_bridge:
                try:
                    socket.if_nametoindex(network.bridge or "")
                except OSError:
                    reason = f"there is no bridge {network.bridge!r}: create_bridge=True makes one"
                    yield InvalidCommandError("network.bridge", reason)

    def _check_relay(self, tool: str) -> Iterator[UnsupportedError]:
        if self.host.namespace is None:
            reason = f"{tool} is the way out for an ordinary user's container: root has bridges"
            yield UnsupportedError(self.driver, Feature.NETWORK, reason)
        elif plan.find_relay(tool) is None:
            package = plan.RELAYS[tool][1]
            reason = f"{tool} is not installed (apt-get install {package})"
            yield UnsupportedError(self.driver, Feature.NETWORK, reason)

    # -- mounts

    def _check_propagation(self, command: Command) -> Iterator[InvalidCommandError]:
        """What the host does not allow of what its mounts are to propagate, or whose ids are to be mapped."""
        wanted: list[tuple[str, str, str | None]] = []
        for mount in command.mounts:
            if mount.propagation in trees.PROPAGATING and mount.source is not None:
                wanted.append(("mounts.propagation", mount.propagation, mount.source))
            if mount.uid_mappings and self.host.namespace is not None:
                yield InvalidCommandError("mounts.uid_mappings", "only root of the host can map the ids of a mount")
        if command.rootfs_propagation in ("slave", "rslave"):
            path = command.rootfs if isinstance(command.rootfs, str) else None
            wanted.append(("rootfs_propagation", command.rootfs_propagation, path))
        for field, propagation, source in wanted:
            if self.host.namespace is not None:
                yield InvalidCommandError(field, f"{propagation!r} needs root: a user namespace has mounts of its own")
            elif source is None:
                yield InvalidCommandError(field, f"{propagation!r} is of a directory of the host")
            elif os.path.exists(source):
                found = trees.propagates(source)
                if "shared" not in found and ("shared" in propagation or "master" not in found):
                    reason = f"{propagation!r} takes a shared mount, and {source} is not on one (mount --make-rshared)"
                    yield InvalidCommandError(field, reason)

    # -- ids and rights

    def _check_ids(self, command: Command) -> Iterator[InvalidCommandError]:
        """Every id of *command* that does not exist where an ordinary user's containers are."""
        process = command.process
        if self.host.namespace is not None and (process.user is not None or process.additional_groups):
            try:
                user = process_to_oci(process, command.rootfs)["user"]
            except InvalidCommandError as error:
                yield error
                return
            for problem in self.host.namespace.problems(user):
                yield InvalidCommandError(*problem)

    def _check_user_namespace(self, command: Command) -> Iterator[Problem]:
        """What cannot be had in one, be it an ordinary user's or the container's own."""
        special = command.rootfs_propagation not in _PRIVATE or any(
            mount.uid_mappings or mount.propagation not in _PRIVATE for mount in command.mounts
        )
        if special and self.host.namespace is not None:
            reason = "mounts that propagate, or have mappings of their own, take root"
            yield UnsupportedError(self.driver, Feature.ROOTLESS, reason)
        if command.userns is None and not command.uid_mappings:
            return
        if self.host.namespace is not None:
            reason = "without root there is a user namespace already, that of the user's own"
            yield UnsupportedError(self.driver, Feature.USERNS, reason)
        if isinstance(command.rootfs, Overlay) and command.rootfs.upper is not None:
            ids = userns.of_command(command) or userns.first_range()
            yield from _check_upper(command.rootfs.upper, ids)
        if special:
            reason = "with mounts that propagate, or have mappings of their own"
            yield UnsupportedError(self.driver, Feature.USERNS, reason)

    def _check_rights(self, command: Command) -> Iterator[InvalidCommandError]:
        """What takes rights that this process does not have."""
        if command.process.capabilities is not None:
            numbers = capability_numbers()
            for name in command.process.capabilities:
                if not self.host.capabilities >> numbers[name] & 1:
                    yield InvalidCommandError("process.capabilities", f"this process does not have {name} to give")
        if (command.oom_score_adj or 0) < 0 and not self.host.capabilities >> _CAP_SYS_RESOURCE & 1:
            reason = "below 0 takes CAP_SYS_RESOURCE, which this process does not have"
            yield InvalidCommandError("oom_score_adj", reason)
        confined = self.host.namespace is not None or command.userns is not None or command.uid_mappings
        if command.devices and confined:
            yield InvalidCommandError("devices", "no node that is made in a user namespace opens (mknod(2))")

    def _check_listener(self, command: Command) -> Iterator[Problem]:
        yield from listener.check(command)
        if not self.host.capabilities >> listener.CAP_SYS_PTRACE & 1:
            reason = "taking the filter's listener from the container takes CAP_SYS_PTRACE"
            yield UnsupportedError(self.driver, Feature.SECCOMP_NOTIFY, reason)

    # -- limits

    def _check_limits(self, command: Command) -> Iterator[InvalidCommandError]:
        resources = command.resources
        asked = resources != _NO_LIMITS or command.cgroup_parent is not None
        if asked or command.devices or "CAP_MKNOD" in (command.process.capabilities or ()):
            try:
                found = self.layout.check(limits_to_oci(command), command.cgroup_parent)
            except InvalidCommandError as error:
                yield error
            else:
                if not resources.memory_swap and any(field == "resources.memory" for field, _ in found):
                    # Nobody asked for it: it is made of the memory limit, about which all is said.
                    found = [problem for problem in found if problem[0] != "resources.memory_swap"]
                for problem in found:
                    yield InvalidCommandError(*problem)
        for limit in command.process.rlimits:
            least = NOFILE_MIN + (listener.DESCRIPTORS if notifying(command.seccomp) else 0)
            if limit.type == "RLIMIT_NOFILE" and 0 <= limit.soft < least:
                reason = f"{limit.soft} open files are less than the set-up takes: {least} at least"
                yield InvalidCommandError("process.rlimits", reason)
        if resources.memory is not None and resources.memory < MEMORY_MIN:
            reason = (
                f"{resources.memory} bytes are less than a container's set-up may take: {MEMORY_MIN >> 20}m at least"
            )
            yield InvalidCommandError("resources.memory", reason)


def _check_rootfs(command: Command) -> Iterator[InvalidCommandError]:
    rootfs = command.rootfs
    if type(rootfs) is str:
        if not os.path.isdir(rootfs):
            yield InvalidCommandError("rootfs", f"{rootfs} is not a directory")
        elif os.path.samefile(rootfs, "/"):  # by whatever name
            yield InvalidCommandError("rootfs", "is the host's own root: None gives a safe view of it")
    if isinstance(rootfs, Overlay):
        for path in rootfs.layers:
            if not os.path.isdir(path):
                name = "upper" if path == rootfs.upper else "lower"
                yield InvalidCommandError(f"rootfs.{name}", f"{path} is not a directory")
            elif os.path.samefile(path, "/"):
                yield InvalidCommandError("rootfs.lower", f"{path} is the host's own root")


def _check_upper(upper: str, ids: userns.UserNamespace) -> Iterator[InvalidCommandError]:
    """Whose it is has to be somebody in the user namespace *ids*: nobody's files can be changed by nobody."""
    for path in (upper, os.path.dirname(upper)):
        try:
            found = os.stat(path)
        except OSError:
            continue  # of which others tell
        known = None not in (userns.outside(found.st_uid, ids.uids), userns.outside(found.st_gid, ids.gids))
        if not known and (path == upper or not found.st_mode & stat.S_IXOTH):
            owner = f"{found.st_uid}:{found.st_gid}"
            yield InvalidCommandError("rootfs.upper", f"{path} is of {owner}, who is nobody in the user namespace")


def _check_sources(command: Command) -> Iterator[InvalidCommandError]:
    for mount in command.mounts:
        if mount.source is None:
            continue
        if not os.path.exists(mount.source):
            yield InvalidCommandError("mounts.source", f"{mount.source} does not exist")
        elif os.path.realpath(mount.source).startswith("/proc/") or os.path.realpath(mount.source) == "/proc":
            yield InvalidCommandError("mounts.source", f"{mount.source} leads into /proc")


def _check_etc(command: Command) -> Iterator[InvalidCommandError]:
    """What was asked for in files of /etc that the root file system has no place for: nothing is made in it."""
    layers = command.rootfs.layers if isinstance(command.rootfs, Overlay) else (command.rootfs,)
    asked = (("dns", "resolv.conf"), ("dns_search", "resolv.conf"), ("extra_hosts", "hosts"))
    for field, name in asked:
        covered = {mount.target for mount in command.mounts} & {"/etc", f"/etc/{name}"}
        if getattr(command, field) and not covered and not any(_has_file(layer, f"etc/{name}") for layer in layers):
            yield InvalidCommandError(field, f"the rootfs has no file /etc/{name} to show it in (an empty one will do)")


def _has_file(rootfs: object, path: str) -> bool:
    """Whether it is there, or may be; what has no directory of its own has whatever it is to have."""
    if not isinstance(rootfs, str):
        return True
    try:
        os.close(open_in_rootfs(rootfs, path))
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL)
    return True


def _check_hooks(command: Command) -> Iterator[InvalidCommandError]:
    """What is wrong with the hooks' programs; those of the container are looked for when it is there."""
    for point in POINTS:
        for hook in getattr(command.hooks, point) if point != "start_container" else ():
            if not (os.path.isfile(hook.path) and os.access(hook.path, os.X_OK)):
                yield InvalidCommandError(f"hooks.{point}", f"{hook.path} is not a program that can be executed")
    if command.hooks is not None and command.hooks.start_container and may_trace(command):
        reason = "with CAP_SYS_PTRACE one could read the memory of what waits for it, which was the launcher's"
        yield InvalidCommandError("hooks.start_container", reason)


def _check_init(command: Command) -> Iterator[InvalidCommandError]:
    if may_trace(command):
        reason = "with CAP_SYS_PTRACE the payload could read the init's memory, which was the launcher's"
        yield InvalidCommandError("init", reason)


def _check_labels(command: Command) -> Iterator[InvalidCommandError]:
    """The labels that cannot be given here."""
    from pycontainer.labels import unknown_labels

    for problem in unknown_labels(command):
        yield InvalidCommandError(*problem)
    if command.init and (command.apparmor_profile, command.selinux_label) != (None, None):
        yield InvalidCommandError("init", "it executes no program, and so would stay without the container's label")


def may_trace(command: Command) -> bool:
    """Whether it has CAP_SYS_PTRACE, and is not as good as root on the host anyway."""
    return "CAP_SYS_PTRACE" in (command.process.capabilities or ()) and not command.process.privileged


def check_further(driver: str, command: Command, process: Process) -> None:
    """Raise what *process* cannot be or have in a running container of *command*."""
    own = command.process
    confined = command.userns is not None or bool(command.uid_mappings)  # then what comes from outside is safe
    if may_trace(command) and command.pid != "host" and not confined:
        reason = (
            "with CAP_SYS_PTRACE what runs in it could read the memory of what joins it, which was the launcher's; "
            "userns='auto' keeps that apart"
        )
        raise UnsupportedError(driver, Feature.EXEC, reason)
    more = set(process.capabilities or ()) - set(own.capabilities or ())
    if (more or process.privileged) and not own.privileged:
        what = ", ".join(sorted(more)) or "all rights"
        raise InvalidCommandError("process.capabilities", f"its container has been started without {what}")
    if own.no_new_privileges and not process.no_new_privileges:
        raise InvalidCommandError("process.no_new_privileges", "its container has been started with it")
