"""The mounts of a receipt against those that a Command asks for: what is mounted, from where, how, and what beyond.

Everything is compared by what two mountinfos say: a bind mount and its source
show the same file system (``major:minor``) and the same root in it
(proc_pid_mountinfo(5)).  Nothing is looked up inside the container, where
paths are the payload's.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from pycontainer import _fields as check
from pycontainer.receipt import Difference, MountPoint, Unchecked, mount_points
from pycontainer.rootfs import HostView, Overlay, open_in_rootfs

if TYPE_CHECKING:
    from pycontainer.command import Command, Mount
    from pycontainer.receipt import Receipt

Found: TypeAlias = Difference | Unchecked
#: A file system, and what of it is mounted.
Place: TypeAlias = tuple[str, str]

#: Options whose absence makes a mount weaker, and which mountinfo shows as they are given.
_FLAGS = frozenset({"ro", "nosuid", "nodev", "noexec", "nosymfollow", "noatime", "nodiratime", "relatime"})
#: Those whose presence, unasked for, is a difference; a driver may add nosuid and nodev, and the kernel relatime.
_BEYOND = frozenset({"ro", "noexec", "nosymfollow", "noatime", "nodiratime"})
#: What there is in each /dev, and may be a mount: nodes, the terminal's, and what LXC and others make.
_IN_DEV = frozenset(f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty"))
#: tmpfs(5), as the kernel shows them where they are not what they are without: the Command's, and not about ids.
_TMPFS = ("huge", "mpol", "noswap", "nr_inodes")
_LINKS = 40  # MAXSYMLINKS
#: What Command.of calls a container that is given no name: another one each time.
MADE_UP = re.compile("[0-9a-f]{12}")


def compare_mounts(found: Receipt, command: Command, spec: Mapping[str, Any]) -> Iterator[Found]:
    """Every difference in the mounts, the root's included, and what of them cannot be compared."""
    here = _Here(found, command, spec)
    yield from _root(here)
    yield from _each(here)
    yield from _beyond(here)
    yield from _paths(here)
    yield from _files(here)
    if command.mount_label is not None:
        options = ",".join(found.covering("/dev").super_options).replace('"', "")
        if f"context={command.mount_label}" not in options:
            yield Difference("mount_label", command.mount_label, options)


def without_links(found: Receipt, command: Command, spec: Mapping[str, Any], path: str) -> str:
    """*path* of the container without the links that its root file system has in it, as they are now."""
    return _Here(found, command, spec).resolved(path)


class _Here:
    """Both sides, and the mounts of this process."""

    def __init__(self, found: Receipt, command: Command, spec: Mapping[str, Any]) -> None:
        self.found, self.command, self.spec = found, command, spec
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            self.mounts = tuple(mount_points(file.read()))
        view = spec["annotations"].get("org.pycontainer.rootfs")
        self.view = HostView.from_json(view) if view is not None else None
        self.known = all(mount.device for mount in found.mounts)  #: else they were not read from a kernel

    def place_of(self, path: str) -> tuple[Place, str, MountPoint] | None:
        """Where *path* of this process is, its real path, and the mount that it is on; None where it is not there."""
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            real = os.readlink(f"/proc/self/fd/{fd}")
            with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
                number = next((int(line.split()[1]) for line in file if line.startswith("mnt_id:")), -1)
        finally:
            os.close(fd)
        mount = next((mount for mount in self.mounts if mount.id == number), None)
        return None if mount is None else (_below(mount, real), real, mount)

    def resolved(self, path: str) -> str:
        """*path* of the container without the links that its root file system has in it, as they are now."""
        link = self._links()
        parts, done = path.strip("/").split("/")[::-1], ""
        for _ in range(_LINKS + len(parts)):
            if not parts:
                break
            part = parts.pop()
            if part == "..":
                done = done.rpartition("/")[0]
            elif part not in ("", "."):
                target = link(f"{done}/{part}")
                if target is None:
                    done = f"{done}/{part}"
                else:
                    done = "" if target.startswith("/") else done
                    parts += target.strip("/").split("/")[::-1]
        return done or "/"

    def _links(self) -> Callable[[str], str | None]:
        rootfs = self.command.rootfs
        if self.view is not None:
            links = dict(self.view.links)
            return links.get
        layers = rootfs.layers if isinstance(rootfs, Overlay) else (str(rootfs),)

        def link(path: str) -> str | None:
            for layer in layers:
                try:
                    return os.readlink(layer + path)
                except FileNotFoundError:
                    continue
                except OSError:  # EINVAL: there, and no link
                    return None
            return None

        return link


def _below(mount: MountPoint, path: str) -> Place:
    rest = path if mount.target == "/" else path[len(mount.target) :]
    return mount.device, (mount.root.rstrip("/") + (rest if rest != "/" else "")) or "/"


def _place(mount: MountPoint) -> Place:
    return mount.device, mount.root


def _inside(found: Receipt, path: str) -> Place:
    return _below(found.covering(path), path)


# -- the root


def _root(here: _Here) -> Iterator[Found]:
    found, command = here.found, here.command
    if command.read_only and not found.read_only:
        yield Difference("read_only", True, False)
    if not here.known:
        yield Unchecked("rootfs", "where its mounts are from is not known")
        return
    root, rootfs, source = found.covering("/"), command.rootfs, None
    if isinstance(rootfs, str):
        source = here.place_of(rootfs)
        if source is None or root.root.endswith("//deleted"):
            yield Unchecked("rootfs", "it is not there any more")
        elif source[0] != _place(root):
            yield Difference("rootfs", f"{rootfs} ({' '.join(source[0])})", " ".join(_place(root)))
    elif isinstance(rootfs, Overlay):
        if root.type != "overlay":
            yield Difference("rootfs", "overlay", root.type)
        yield Unchecked("rootfs", "what an overlay is made of has other names in it, or none")
    else:
        if root.type not in ("tmpfs", "overlay"):
            yield Difference("rootfs", "a view of the host's programs", f"{root.type} {' '.join(_place(root))}")
        yield from _view(here, root)
    if not command.read_only and found.read_only and not (source is not None and source[2].read_only):
        yield Difference("read_only", False, True)
    # Nodes that lie in it are for nobody who could not make them anyway, where no rules bar them.
    barred = "CAP_MKNOD" not in here.spec["process"]["capabilities"]["bounding"]
    ruled = found.own_limits is not None and found.own_limits.devices not in (None, ("a *:* rwm",))
    if barred and not ruled and "nodev" not in root.options and not found.has_own_users:
        yield Difference("rootfs", "nodev", sorted(root.options))
    propagation = command.rootfs_propagation
    yield from _propagation("rootfs_propagation", propagation, root, source[2] if source is not None else None)


def _view(here: _Here, root: MountPoint) -> Iterator[Found]:
    assert here.view is not None
    for path in here.view.overlays:
        seen = here.found.covering(path)
        if root.type != "overlay" and (seen.target, seen.type) != (path, "overlay"):
            yield Difference("rootfs", f"overlay on {path}", f"{seen.type} on {seen.target}")
    for path in here.view.trees:
        source = here.place_of(path)
        if source is not None and _inside(here.found, path) != source[0]:
            yield Difference("rootfs", f"{path} ({' '.join(source[0])})", " ".join(_inside(here.found, path)))
        elif source is not None and not here.found.covering(path).read_only:
            yield Difference("rootfs", f"{path} read-only", ",".join(here.found.covering(path).options))
    yield Unchecked("rootfs", "of a view's overlays and copies of files it is not seen what is below them")


def _propagation(field: str, asked: str | None, seen: MountPoint, source: MountPoint | None) -> Iterator[Found]:
    """mount_namespaces(7); a slave of what is nobody's peer on the host is private."""
    kind = "private" if asked in (None, "rprivate") else asked.removeprefix("r")
    tags = {tag.partition(":")[0] for tag in seen.propagation} - {"propagate_from"}
    fits: tuple[set[str], ...] = {
        "private": (set[str](),),
        "shared": ({"shared"}, {"shared", "master"}),
        "slave": ({"master"},),
        "unbindable": ({"unbindable"},),
    }[kind]
    if kind == "slave" and (source is None or not source.propagation):
        fits = (*fits, set())
    if tags not in fits:
        yield Difference(field, asked or "private", " ".join(seen.propagation) or "private")


def _peers(mount: MountPoint) -> set[str]:
    """The numbers of the groups that it hears from or tells, which are the kernel's, whatever the namespace."""
    return {number for _, _, number in (tag.partition(":") for tag in mount.propagation) if number}


# -- one by one


def _each(here: _Here) -> Iterator[Found]:
    found = here.found
    wanted = {mount["destination"]: mount for mount in here.spec["mounts"]}  # the last one is on top
    own = {mount.target: mount for mount in here.command.mounts}
    for target, mount in wanted.items():
        seen = found.covering(target)
        if seen.target != target and target in own:
            seen = found.covering(here.resolved(target))
            target = here.resolved(target)
        if seen.target != target or (mount["type"] not in ("bind", seen.type)):
            yield Difference(f"mounts.{target}", mount["type"], seen.type if seen.target == target else None)
            continue
        options = set(mount["options"])
        flags = options & _FLAGS | ({"ro"} if "rro" in options else set())
        missing = sorted(flag for flag in flags if not _has(seen, flag))
        if missing:
            yield Difference(f"mounts.{target}", sorted(flags), sorted(seen.options))
        if "rro" in options:
            for below in found.mounts:
                if below.target.startswith(f"{target}/") and not below.read_only and below.target not in wanted:
                    yield Difference(f"mounts.{target}", "read-only", f"{below.target} is not")
        if mount["type"] == "tmpfs":
            yield from _size(target, options, set(seen.super_options))
        if here.known and mount["destination"] in own:
            yield from _own(here, own[mount["destination"]], seen, flags, target)


def _own(here: _Here, asked: Mount, seen: MountPoint, flags: set[str], target: str) -> Iterator[Found]:
    """More of one of the Command's own mounts, which *seen* is on *target*."""
    field = f"mounts.{target}"
    source = here.place_of(asked.source) if asked.source is not None else None
    if asked.source is not None:
        if source is None or seen.root.endswith("//deleted"):
            yield Unchecked(f"{field}.source", "it is not there any more")
        elif source[0] != _place(seen):
            yield Difference(f"{field}.source", f"{asked.source} ({' '.join(source[0])})", " ".join(_place(seen)))
    # What the source's mount has on the host, its clone has as well.
    of_source = {*source[2].options, *(["ro"] if source[2].read_only else [])} if source is not None else set()
    beyond = {flag for flag in _BEYOND if _has(seen, flag)} - flags - of_source
    if beyond:
        yield Difference(field, sorted(flags), sorted(seen.options))
    if "strictatime" in asked.options and {"relatime", "noatime"} & {*seen.options}:
        yield Difference(field, "strictatime", sorted(seen.options))
    if "relatime" not in asked.options and "strictatime" not in asked.options and "noatime" not in asked.options:
        inherits = source is not None and not {"relatime", "noatime"} & of_source
        if "relatime" not in seen.options and "noatime" not in seen.options and not inherits:
            yield Difference(field, "relatime", sorted(seen.options))  # Linux's default
    propagation = asked.propagation
    outer = here.command.rootfs_propagation or ""
    if propagation is None and outer.startswith("r") and outer.lstrip("r") in ("shared", "unbindable"):
        propagation = outer  # the root's is made that of all that is in it
    among_itself = propagation is None and not _peers(seen) & {peer for mount in here.mounts for peer in _peers(mount)}
    if not (among_itself and "unbindable" not in seen.propagation):  # then nothing gets in or out
        yield from _propagation(f"{field}.propagation", propagation, seen, source[2] if source is not None else None)
    mapped = "idmapped" in seen.options
    if asked.uid_mappings:
        if not mapped:
            yield Difference(f"{field}.uid_mappings", list(map(list, asked.uid_mappings)), None)
        for name in ("uid_mappings", "gid_mappings"):
            yield Unchecked(f"{field}.{name}", "mountinfo says that ids are mapped, and not which")
    elif mapped and not here.found.has_own_users and "idmapped" not in of_source:
        yield Difference(f"{field}.uid_mappings", [], "idmapped")
    if asked.type == "tmpfs":
        yield from _tmpfs(here, asked, seen, field)
    elif source is not None and asked.recursive and here.found.beginning is not None:
        # Later the host may have other mounts below the source than it had then.
        for mount in here.mounts:
            where = target + mount.target[len(source[1]) :]
            if mount.target.startswith(source[1].rstrip("/") + "/") and "unbindable" not in mount.propagation:
                inside = here.found.covering(where)
                if inside.target == target:
                    yield Difference(field, f"with {mount.target}", None)


def _tmpfs(here: _Here, asked: Mount, seen: MountPoint, field: str) -> Iterator[Found]:
    """As shmem_show_options() (mm/shmem.c) has them: only what is not the default."""
    options = dict(option.partition("=")[::2] for option in seen.super_options)
    wanted = dict(option.partition("=")[::2] for option in asked.options)
    mode = int(options.get("mode", "1777"), 8)
    if mode != (0o1777 if asked.mode is None else asked.mode):
        yield Difference(f"{field}.mode", f"{0o1777 if asked.mode is None else asked.mode:04o}", f"{mode:04o}")
    for kind, maps in (("uid", here.found.uid_map), ("gid", here.found.gid_map)):
        outside = int(options.get(kind, "0"))
        inside = next((outside - m.outside + m.inside for m in maps if 0 <= outside - m.outside < m.length), -1)
        if inside != int(wanted.get(kind, "0")):
            yield Difference(f"{field}.options", f"{kind}={wanted.get(kind, '0')}", f"{kind}={inside}")
    default = dict(option.partition("=")[::2] for option in here.found.covering("/dev").super_options)
    for name in _TMPFS:
        got = options.get(name)
        if name == "nr_inodes" and got is not None and wanted.get(name) is not None:
            if _number(got) != _number(wanted[name]):
                yield Difference(f"{field}.options", f"{name}={wanted[name]}", f"{name}={got}")
        elif name == "huge" and wanted.get(name) == "never":
            if got is not None:
                yield Difference(f"{field}.options", "huge=never", f"huge={got}")
        elif got != wanted.get(name, default.get(name)):
            yield Difference(f"{field}.options", f"{name}={wanted.get(name)}", f"{name}={got}")
    size, blocks = options.get("size"), wanted.get("nr_blocks")
    if blocks is not None:
        if size is None or _bytes(size) != _number(blocks) * check.PAGE:
            yield Difference(f"{field}.options", f"nr_blocks={blocks}", f"size={size}")
    elif asked.size is None and size is not None and not _is_half_of_memory(_bytes(size)):
        yield Difference(f"{field}.size", None, _bytes(size))


def _is_half_of_memory(size: int) -> bool:
    """The default, of what memory there was then: some of it may have been plugged in or out since."""
    half = os.sysconf("SC_PHYS_PAGES") * check.PAGE / 2
    return 0.8 * half < size < 1.25 * half


def _number(text: str) -> int:
    unit = {"k": 10, "m": 20, "g": 30}.get(text[-1].lower())
    return int(text) if unit is None else int(text[:-1]) << unit


def _has(mount: MountPoint, flag: str) -> bool:
    return mount.read_only if flag == "ro" else flag in mount.options


def _size(target: str, asked: set[str], found: set[str]) -> Iterator[Difference]:
    sizes = [next((_bytes(o[5:]) for o in options if o.startswith("size=")), None) for options in (asked, found)]
    if sizes[0] is not None and (sizes[1] is None or not 0 <= sizes[1] - sizes[0] < check.PAGE):
        yield Difference(f"mounts.{target}.size", *sizes)


def _bytes(text: str) -> int:
    return int(text[:-1]) << 10 if text.endswith("k") else int(text)


# -- those that nobody has asked for


def _beyond(here: _Here) -> Iterator[Found]:
    if not here.known:
        yield Unchecked("mounts", "which of them nobody has asked for is not known")
        return
    found, command, spec = here.found, here.command, here.spec
    linux = spec["linux"]
    wanted = {mount["destination"] for mount in spec["mounts"]}
    places = {"/", *wanted, *map(here.resolved, wanted), *_IN_DEV, *_provided(here)}
    hidden = [*linux["maskedPaths"], *linux["readonlyPaths"]]
    places |= {*hidden, *map(here.resolved, hidden)}
    places |= {device["path"] for device in linux.get("devices", ())}
    if command.process.tty:
        places.add("/dev/console")
    if here.view is not None:
        places |= {*here.view.overlays, *here.view.trees}
    sources = dict(_sources(here))
    by_id = {mount.id: mount for mount in found.mounts}
    for mount in found.mounts:
        if mount.target in places:
            continue
        parent = by_id.get(mount.parent)
        if parent is not None and _below(parent, mount.target) == _place(mount):
            continue  # what would be seen there without it
        if here.view is not None and mount.target in here.view.files:
            source = here.place_of(mount.target)
            if source is not None and source[0] == _place(mount):
                continue  # shown, where others would copy it
        if _came_along(here, sources, mount):
            continue
        what = f"{mount.type} {mount.source} {' '.join(_place(mount))}"
        if _hides(found, mount):
            # In a user namespace with the host's network /sys is the host's, and its cgroups have to be hidden.
            if not (mount.target == "/sys/fs/cgroup" and found.has_own_users):
                yield Difference("masked_paths", None, mount.target)
        else:
            yield Difference(f"mounts.{mount.target}", None, what)


def _sources(here: _Here) -> Iterator[tuple[str, str]]:
    """What brings along what is mounted below it: the place in the container, and the host's."""
    if isinstance(here.command.rootfs, str):
        yield "/", os.path.realpath(here.command.rootfs)
    for mount in here.command.mounts:
        if mount.source is not None and mount.recursive:
            yield here.resolved(mount.target), os.path.realpath(mount.source)
    for path in ("/proc", "/sys", "/dev/mqueue"):
        # Of a namespace that is the host's there is only the host's mount, with all that is below it.
        place, seen = here.place_of(path), here.found.covering(path)
        if place is not None and seen.target == path and place[0] == _place(seen):
            yield path, path


def _came_along(here: _Here, sources: Mapping[str, str], mount: MountPoint) -> bool:
    for target in sorted(sources, key=len, reverse=True):
        if mount.target.startswith(target.rstrip("/") + "/"):
            there = sources[target].rstrip("/") + mount.target[len(target.rstrip("/")) :]
            return any(_place(own) == _place(mount) for own in here.mounts if own.target == there)
    return False


def _hides(found: Receipt, mount: MountPoint) -> bool:
    """Whether there is nothing in it: the container's own /dev/null, or an empty directory for good."""
    if _place(mount) == _inside(found, "/dev/null"):
        return True
    return mount.type == "tmpfs" and mount.read_only and "nr_inodes=1" in mount.super_options


# -- masked and read-only paths


def _paths(here: _Here) -> Iterator[Found]:
    found, command, linux = here.found, here.command, here.spec["linux"]
    for path in linux["maskedPaths"]:
        if _exists(found, command, path) and not is_hidden(found, path) and not is_hidden(found, here.resolved(path)):
            yield Difference("masked_paths", path, f"{found.covering(path).type} on {found.covering(path).target}")
    for path in linux["readonlyPaths"]:
        if _exists(found, command, path) and not found.covering(path).read_only:
            yield Difference("readonly_paths", path, ",".join(found.covering(path).options))
    if here.known and command.read_only is False:
        # One that is mounted upon itself, to be read-only, and that nobody has asked for.
        asked = {*linux["readonlyPaths"], *map(here.resolved, linux["readonlyPaths"])}
        by_id = {mount.id: mount for mount in found.mounts}
        for mount in found.mounts:
            parent = by_id.get(mount.parent)
            if parent is None or parent.read_only or "ro" not in mount.options or mount.target in asked:
                continue
            below = mount.target.startswith(tuple(f"{path}/" for path in asked))
            if not below and _below(parent, mount.target) == _place(mount):
                yield Difference("readonly_paths", None, mount.target)


def is_hidden(found: Receipt, path: str) -> bool:
    """Whether something else is mounted over *path*, or over what it is in."""
    seen, kernel = found.covering(path), _kernel(path)
    return seen.type != kernel if kernel is not None else seen.target == path


def _kernel(path: str) -> str | None:
    """The file system that shows *path*, where it is the kernel's own."""
    return {"/proc": "proc", "/sys": "sysfs"}.get("/" + path.split("/")[1])


def _exists(found: Receipt, command: Command, path: str) -> bool:
    """Whether there is anything to hide. What looks into the container would act on paths that are the payload's."""
    if _kernel(path) is not None:
        return os.path.lexists(path)
    if found.covering(path).target != "/":
        return True
    if isinstance(command.rootfs, Overlay):
        return True
    try:
        os.close(open_in_rootfs(command.rootfs if isinstance(command.rootfs, str) else "/", path))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # a directory, for example
    return True


# -- the files of /etc


def _provided(here: _Here) -> dict[str, str]:
    return dict(json.loads(here.spec["annotations"].get("org.pycontainer.etc", "{}")))


def _files(here: _Here) -> Iterator[Found]:
    begun = here.found.beginning
    name, seen_name = here.spec.get("hostname", ""), here.found.hostname or ""
    made_up = here.command.hostname is None and MADE_UP.fullmatch(name) and MADE_UP.fullmatch(seen_name)
    for path, content in _provided(here).items():
        content = content.replace(name, seen_name) if made_up else content
        field = {"/etc/hosts": "extra_hosts", "/etc/hostname": "hostname"}.get(path, "dns")
        seen = here.found.covering(path)
        if not here.known or isinstance(here.command.rootfs, Overlay):
            yield Unchecked(field, f"whether {path} is provided is not known")
        elif isinstance(here.command.rootfs, str) and not _exists(here.found, here.command, path):
            yield Unchecked(field, f"{path} is not provided: the root file system has none")
        elif seen.target != here.resolved(path) and seen.target != path:
            yield Difference(field, f"{path} is provided", f"{seen.type} on {seen.target}")
        elif begun is not None and path in begun.files and begun.files[path] != content:
            yield Difference(field, content, begun.files[path])
        elif begun is not None and path not in begun.files:
            yield Unchecked(field, f"{path} is not in memory")
