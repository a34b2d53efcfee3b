"""The container's file systems as steps of a plan, all of them by descriptor.

Every path inside the container is resolved by openat2(2) below the new root's
descriptor, in the container's own mount namespace, and mounted on through the
descriptor that came of it: nothing that the owner of the rootfs can do to a
path in between leads elsewhere (CVE-2021-30465 and its many relatives).
"""

from __future__ import annotations

import errno
import functools
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from pycontainer_native import abi
from pycontainer_native.capabilities import capset_data
from pycontainer_native.syscalls import Fd, Recorder, Slot

_OPENED = abi.O_PATH | abi.O_NOFOLLOW
#: Links inside the root are followed as if it were "/"; /proc's magic ones, which lead anywhere, never.
_IN_ROOT = abi.RESOLVE_IN_ROOT | abi.RESOLVE_NO_MAGICLINKS
#: For the mount points of /proc, /sys and /dev, which have to be what they seem (CVE-2019-19921, CVE-2023-27561).
_AS_IS = abi.RESOLVE_BENEATH | abi.RESOLVE_NO_SYMLINKS
_ATIME = 0x70  # MOUNT_ATTR__ATIME: a field of its own inside the attributes

_ATTRIBUTES = {
    "ro": abi.MOUNT_ATTR_RDONLY,
    "nosuid": abi.MOUNT_ATTR_NOSUID,
    "nodev": abi.MOUNT_ATTR_NODEV,
    "noexec": abi.MOUNT_ATTR_NOEXEC,
    "noatime": abi.MOUNT_ATTR_NOATIME,
    "strictatime": abi.MOUNT_ATTR_STRICTATIME,
    "nodiratime": abi.MOUNT_ATTR_NODIRATIME,
    "nosymfollow": abi.MOUNT_ATTR_NOSYMFOLLOW,
}
_CLEARED = {
    "rw": abi.MOUNT_ATTR_RDONLY,
    "suid": abi.MOUNT_ATTR_NOSUID,
    "dev": abi.MOUNT_ATTR_NODEV,
    "exec": abi.MOUNT_ATTR_NOEXEC,
    "diratime": abi.MOUNT_ATTR_NODIRATIME,
    "relatime": 0,
}

_PROPAGATIONS = {
    "private": abi.MS_PRIVATE,
    "slave": abi.MS_SLAVE,
    "shared": abi.MS_SHARED,
    "unbindable": abi.MS_UNBINDABLE,
}

#: name, mode, major, minor: what every container has (OCI runtime spec, "Default Devices").
DEVICES = (
    ("null", 0o666, 1, 3),
    ("zero", 0o666, 1, 5),
    ("full", 0o666, 1, 7),
    ("random", 0o666, 1, 8),
    ("urandom", 0o666, 1, 9),
    ("tty", 0o666, 5, 0),
)
DEVICE_LINKS = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
)

#: Which of the OCI default masks are directories: a directory is hidden by an empty one, a file by /dev/null.
_MASKED_DIRECTORIES = frozenset(
    ("/proc/acpi", "/proc/asound", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap")
)
_MASKED_FILES = frozenset(
    (
        "/proc/interrupts",
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/sched_debug",
        "/proc/timer_list",
        "/proc/timer_stats",
    )
)

_HIDDEN_FROM_ERRORS: Mapping[int, int] = {errno.EEXIST: 0, errno.EROFS: 0}


def encode(path: str) -> bytes:
    """A path as the kernel takes it."""
    return path.encode("utf-8", "surrogateescape")


def root_directory(
    k: Recorder, path: str, *, writable: bool, host_read_only: bool, nodev: bool, tree: int | None = None,
    ids: Slot | None = None, out: Slot | None = None,
) -> Slot:  # fmt: skip
    """A directory of the host as the new root, with whatever is mounted below it.

    *writable* is the root itself; what is mounted below follows it.  Mount
    points may still have to be made, so a read-only root becomes read-only at
    the end (:func:`seal_root`), its submounts now.  *tree* is the slot of a
    clone of it that hears of the host's mounts.  *ids* is the user namespace in
    which the files have the ids that they have on the disk.  It has to be put
    somewhere: :func:`attach_root`.
    """
    if tree is None:
        with k.step(f"open rootfs {path}"):
            flags = abi.O_PATH | abi.O_DIRECTORY
            directory = k.openat2(abi.AT_FDCWD, encode(path), flags, abi.RESOLVE_NO_MAGICLINKS)
    with k.step(f"clone rootfs {path}"):
        if tree is None:
            root = k.open_tree(directory, recursive=True, out=out)
        else:
            root = (tree,)
            k.mount_setattr(root, propagation=abi.MS_SLAVE, recursive=True)
        attributes = abi.MOUNT_ATTR_NODEV if nodev else 0
        if not writable:
            attributes |= abi.MOUNT_ATTR_RDONLY
        if attributes:
            k.mount_setattr(root, attributes, recursive=True)
        if not writable and not host_read_only:
            k.mount_setattr(root, clear=abi.MOUNT_ATTR_RDONLY)
        if ids is not None:
            k.map_ids(root, ids, recursive=True)
    return root


def attach_root(k: Recorder, root: Slot) -> None:
    """Put the clone *root* where it can be mounted on."""
    _attach(k, root, b"root")


def layers_of_view(k: Recorder, view: Mapping[str, Any], ids: Slot, out: Iterator[Slot]) -> None:
    """Clones of what :func:`host_view` shows, with the ids that the files have in the user namespace *ids*.

    And the files that it copies, opened: the way to them may be root's alone.
    """
    for path in (*view["overlays"], *view["trees"]):
        with k.step(f"clone {path}"):
            source = k.openat2(abi.AT_FDCWD, encode(path), abi.O_PATH, abi.RESOLVE_NO_MAGICLINKS)
            k.map_ids(k.open_tree(source, out=next(out)), ids)
    for path in view["files"]:
        with k.step(f"open {path}"):
            k.openat2(abi.AT_FDCWD, encode(path), os.O_RDONLY, 0, accept={errno.ENOENT: 0}, out=next(out))


def host_view(
    k: Recorder, view: Mapping[str, Any], *, writable: bool, inside: bool = False, clones: Sequence[Slot] = ()
) -> Slot:
    """The host's programs, copy-on-write: an empty tmpfs with what the allow list names.

    Changes go to the scratch tmpfs, which is never visible in the container.
    *inside* a user namespace changing what belongs to a user who is nobody
    there fails, as ever.  *clones* are those of :func:`layers_of_view`, if any.
    """
    given = iter(clones)
    scratch = (abi.SCRATCH,)
    with k.step("make the root of the host view"):
        root = k.new_mount("tmpfs", {"mode": "0755"}, abi.MOUNT_ATTR_NOSUID | abi.MOUNT_ATTR_NODEV)
        _attach(k, root, b"root")
        for path, mode in view["directories"]:
            k.mkdirat(root, encode(path.lstrip("/")), mode, accept=_HIDDEN_FROM_ERRORS)
        for path, target in view["links"]:
            k.symlinkat(encode(target), root, encode(path.lstrip("/")))
        k.call("fchdir", scratch)  # overlay takes the upper directories relative to here
    attributes = abi.MOUNT_ATTR_NODEV | (0 if writable else abi.MOUNT_ATTR_RDONLY)
    for number, path in enumerate(view["overlays"]):
        with k.step(f"mount overlay on {path}"):
            k.mkdirat(scratch, b"upper%d" % number, 0o755)
            k.mkdirat(scratch, b"work%d" % number, 0o755)
            if clones:
                lower = f"lower{number}"
                _attach(k, next(given), lower.encode())
            else:
                lower = path.replace("\\", "\\\\").replace(":", "\\:")
            options: dict[str, str | None] = {
                "lowerdir": lower,
                "upperdir": f"upper{number}",
                "workdir": f"work{number}",
            }
            if inside:
                options["userxattr"] = None  # trusted.* is the first user namespace's (overlayfs.rst)
            mount = k.new_mount("overlay", options, attributes)
            k.move_mount(mount, _target(k, root, path, directory=True))
    for path in view["trees"]:
        with k.step(f"mount {path}"):
            if clones:
                tree = next(given)
            else:
                source = k.openat2(abi.AT_FDCWD, encode(path), abi.O_PATH, abi.RESOLVE_NO_MAGICLINKS)
                tree = k.open_tree(source)
            k.mount_setattr(tree, abi.MOUNT_ATTR_RDONLY | abi.MOUNT_ATTR_NOSUID | abi.MOUNT_ATTR_NODEV)
            k.move_mount(tree, _target(k, root, path, directory=True))
    for path in view["files"]:
        with k.step(f"copy {path}"):
            if clones:
                source = next(given)
                k.call("fcntl", source, abi.F_GETFD, 0, accept={errno.EBADF: 3})  # it was not there
            else:
                source = k.openat2(abi.AT_FDCWD, encode(path), os.O_RDONLY, 0, accept={errno.ENOENT: 3})
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            copy = k.openat2(root, encode(path.lstrip("/")), flags, _AS_IS, 0o644)
            k.call("sendfile", copy, source, 0, 1 << 24)
            k.call("close", copy)  # a mount with a file open for writing does not become read-only (EBUSY)
    return root


class Mounter(NamedTuple):
    """Who mounts an overlay for a user namespace."""

    uid: int  #: who root of that is outside
    gid: int
    capabilities: int  #: of the host
    label: str | None  #: the SELinux context of what is mounted
    userxattr: bool  #: the host is in a user namespace itself, and its root has no trusted.* either


#: What overlayfs does in the name of who has mounted it: copy files up with their owners, ids and xattrs, which are
#: trusted.* (CAP_SYS_ADMIN), whatever their modes; that the caller may do so it has found before that.
MOUNTER_CAPABILITIES = tuple(
    f"CAP_{name}"
    for name in ("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "MKNOD", "SETFCAP", "SYS_ADMIN")
)


def mapped_overlay(
    k: Recorder, lower: Sequence[str], upper: str | None, *, nodev: bool, ids: Slot, mounter: Mounter, out: Slot
) -> None:
    """:func:`overlay_root` for the user namespace *ids*, made from outside: its layers have the ids of the disk there.

    From inside, overlayfs has no xattrs but user.* for what was removed and for
    what hides the directory below it ("userxattr", overlayfs.rst): it would
    overlook what images and containers without a user namespace have noted in
    trusted.*, and these what it notes.  And before Linux 6.6 a tmpfs has none.

    It is mounted in a mount namespace that the next one takes the place of:
    its layers need names, which on the host nobody is to see.
    """
    k.mount_label = mounter.label
    with k.step("make a mount namespace for the layers"):
        k.call("unshare", abi.CLONE_NEWNS)
    make_mounts_private(k)
    _make_scratch(k)
    overlay_root(k, lower, upper, nodev=nodev, userxattr=mounter.userxattr, ids=ids, mounter=mounter, out=out)
    with k.step("hide the layers"):
        # What lies over /proc while the mounts are copied to a less privileged user namespace is locked there, and no
        # other proc could be mounted (mount_namespaces(7)).
        k.call("chdir", b"/")
        k.call("umount2", b"/proc", abi.MNT_DETACH, path=b"/proc")


def overlay_root(
    k: Recorder, lower: Sequence[str], upper: str | None, *, nodev: bool, userxattr: bool,
    ids: Slot | None = None, mounter: Mounter | None = None, out: Slot | None = None,
) -> Slot:  # fmt: skip
    """Directories of the host one upon the other, the first on top; changes go to *upper*, or to memory.

    Each is cloned into the scratch tmpfs under a name of ours, and overlayfs
    is given those names: it resolves no path of the host a second time, and
    what it would take for a separator in one does not matter.  With *ids* and
    *mounter* they are for that user namespace: :func:`mapped_overlay`.
    """
    below, scratch = abi.O_PATH | abi.O_DIRECTORY | abi.O_NOFOLLOW, (abi.SCRATCH,)
    names = [str(number) for number in range(len(lower))]  # short: all of them are one argument
    for name, path in zip(names, lower, strict=True):
        with k.step(f"open layer {path}"):
            layer = _clone_directory(k, path, recursive=False)
        _map_layer(k, layer, ids, "lower", path)
        with k.step(f"open layer {path}"):
            _attach(k, layer, name.encode())
    if upper is None:
        with k.step("make the root of its layers"):
            k.mkdirat(scratch, b"upper", 0o755)
            k.mkdirat(scratch, b"work", 0o700)
            if mounter is not None:
                # Memory takes the ids that there are outside: no tmpfs has others before Linux 6.3.
                k.call("fchownat", scratch, b"upper", mounter.uid, mounter.gid, abi.AT_SYMLINK_NOFOLLOW)
    else:
        parent, _, last = upper.rpartition("/")
        with k.step(f"open layer {upper}"):
            # Both have to be of one mount, so what is cloned is where they are.  With what is mounted there: if they
            # are not, overlayfs is to say so.
            kept = _clone_directory(k, parent or "/", recursive=True)
        with k.step(f"follow no links in {parent or '/'} (takes Linux 5.14)"):
            # overlayfs looks its directories up by name: whoever may change names here could put a link there by then.
            k.mount_setattr(kept, abi.MOUNT_ATTR_NOSYMFOLLOW)
        with k.step(f"open layer {upper}"):
            # Before the ids are others: the host's root has none of those, and could make nothing (EOVERFLOW).
            k.mkdirat(kept, encode(f"{last}.work"), 0o700, accept={errno.EEXIST: 0})
        _map_layer(k, kept, ids, "upper", upper)
        with k.step(f"open layer {upper}"):
            _attach(k, kept, b"kept")
            for name, path in (("upper", last), ("work", f"{last}.work")):
                k.openat2(kept, encode(path), below, _AS_IS)
                k.symlinkat(encode(f"kept/{path}"), scratch, name.encode())
    with k.step("mount overlay on /" + ("" if ids is None else " (with mapped ids: takes Linux 5.19)")):
        k.call("fchdir", scratch)
        options: dict[str, str | None] = {"lowerdir": ":".join(names), "upperdir": "upper", "workdir": "work"}
        if userxattr:
            options["userxattr"] = None
        if mounter is not None:
            _become_mounter(k, mounter)
        root = k.new_mount("overlay", options, abi.MOUNT_ATTR_NODEV if nodev else 0, out=out)
        if mounter is not None:
            for call in ("setresuid", "setresgid"):
                k.call(call, -1, 0, -1)
    return root


def _map_layer(k: Recorder, layer: Slot, ids: Slot | None, field: str, path: str) -> None:
    if ids is not None:
        with k.step(f"map the ids of rootfs.{field} {path}"):
            k.map_ids(layer, ids)


def _become_mounter(k: Recorder, mounter: Mounter) -> None:
    """Have the rights over the host's file systems that overlayfs needs, and the ids of root of the user namespace.

    overlayfs remembers whoever mounts it.  What it makes for itself, as where
    something was removed, belongs to that user, who has to exist in a layer
    with mapped ids (EOVERFLOW).  The real and saved ids stay root's, so nobody
    of these ids may send signals.
    """
    k.call("setresgid", -1, mounter.gid, -1)
    k.call("setresuid", -1, mounter.uid, -1)
    k.call("capset", *capset_data(mounter.capabilities, mounter.capabilities, 0))  # the change of ids has taken them


def _clone_directory(k: Recorder, path: str, *, recursive: bool) -> Slot:
    """A clone of the mount at the host's directory *path*, nowhere yet."""
    source = k.openat2(abi.AT_FDCWD, encode(path), abi.O_PATH | abi.O_DIRECTORY, abi.RESOLVE_NO_MAGICLINKS)
    return k.open_tree(source, recursive=recursive)


def seal_root(k: Recorder, root: Slot) -> None:
    """Make the root read-only, now that every mount point is there."""
    with k.step("make rootfs read-only"):
        k.mount_setattr(root, abi.MOUNT_ATTR_RDONLY)


#: type, source, destination, options, whether it is to be mounted on a directory, the slot of a clone that is there
Mount: TypeAlias = tuple[str, str, str, Sequence[str], bool, "int | None"]
Paths: TypeAlias = tuple[str, ...]

#: Where the file systems go that every container has, and the slots of those that are mounted on the root.
_SYSTEM = {"/proc": (abi.PROC,), "/sys": (abi.SYS,), "/dev": (abi.DEV,)}
_BELOW_DEV = ("/dev/pts", "/dev/shm", "/dev/mqueue")


def is_system(mount: Mount) -> bool:
    """Whether *mount* is one of those that do not depend on the root they are mounted in: :func:`make_system`."""
    fstype, _, destination, *_ = mount
    return fstype != "bind" and (destination in _SYSTEM or destination in _BELOW_DEV)


@functools.lru_cache(maxsize=16)
def split_hidden(masked: Paths, readonly: Paths) -> tuple[tuple[Paths, Paths], tuple[Paths, Paths]]:
    """Those inside /proc and /sys, whatever root these are mounted in, and the others."""

    def ahead(path: str) -> bool:
        return path.startswith(("/proc/", "/sys/")) and ".." not in path.split("/")

    both = masked, readonly
    first, second = (tuple(filter(ahead, paths)) for paths in both)
    third, fourth = (tuple(path for path in paths if not ahead(path)) for paths in both)
    return (first, second), (third, fourth)


def make_system(
    k: Recorder, mounts: Iterable[Mount], masked: Sequence[str], readonly: Sequence[str], inside: bool
) -> None:
    """/proc, /sys and /dev with all that belongs on them, made ahead: :func:`mount_all` moves them into the root.

    The rootfs has no part in them.  *masked* and *readonly* are paths inside
    /proc and /sys: no mount of the user's goes there, so nothing will lie over
    a mask.  A mount whose source is a path is the host's own.  *inside* a user
    namespace the devices are the host's nodes.
    """
    shared = {mount[2]: _host_mount(k, *mount[:4]) for mount in mounts if mount[1].startswith("/")}
    _make_scratch(k)
    with k.step("prepare masks"):
        # Clones of this hide directories, so it has to be mounted. (And left detached, its last descriptor would close
        # in execve, and wait there for RCU.)
        hidden = {"size": "0", "nr_inodes": "1", "mode": "0555"}
        attributes = abi.MOUNT_ATTR_RDONLY | abi.MOUNT_ATTR_NOSUID | abi.MOUNT_ATTR_NODEV | abi.MOUNT_ATTR_NOEXEC
        _attach(k, k.new_mount("tmpfs", hidden, attributes, out=(abi.EMPTY,)), b"empty")
    # /dev first, whose null the masks need, and before what is below it.
    for fstype, _, destination, options, *_ in sorted(mounts, key=lambda mount: mount[2] not in ("/dev", *_BELOW_DEV)):
        attributes, _, _, data = _split_options(options)
        with k.step(f"mount {fstype} on {destination}"):
            if destination in _BELOW_DEV:
                new = shared.get(destination) or k.new_mount(fstype, data, attributes)
                below = encode(destination.removeprefix("/dev/"))
                k.move_mount(new, k.openat2((abi.DEV,), below, _OPENED | abi.O_DIRECTORY, _AS_IS))
                continue
            new = shared.get(destination) or k.new_mount(fstype, data, attributes, out=_SYSTEM[destination])
            if destination == "/dev":
                _fill_dev(k, new, nodes=not inside)
            _attach(k, new, encode(destination[1:]))
        if destination == "/dev":
            if inside:
                for name, *_ in DEVICES:
                    _bind_device(k, new, name.encode())
            with k.step("open /dev/null"):
                k.openat2(new, b"null", _OPENED, _AS_IS, out=(abi.NULL,))
    mask_and_protect(k, None, masked, readonly)


def make_mounts_private(k: Recorder) -> None:
    with k.step("make mounts private"):
        # Or ours would propagate to the host, where / usually is shared.
        k.call("mount", 0, b"/", 0, abi.MS_REC | abi.MS_PRIVATE, 0, path=b"/")


def _make_scratch(k: Recorder) -> None:
    with k.step("make a place for mounts"):
        # Over the host's /proc, which exists and is not looked at any more. Not over "/": what lies over the old root
        # stays in its place when that is unmounted, and the old root below it (checked in pivot()).
        scratch = k.new_mount(
            "tmpfs", {"mode": "0700"}, abi.MOUNT_ATTR_NOSUID | abi.MOUNT_ATTR_NODEV, out=(abi.SCRATCH,)
        )
        k.call("move_mount", scratch, b"", abi.AT_FDCWD, b"/proc", abi.MOVE_MOUNT_F_EMPTY_PATH, path=b"/proc")


def _host_mount(k: Recorder, fstype: str, source: str, destination: str, options: Sequence[str]) -> Slot:
    """A clone of what the host has mounted on *source*, for a namespace that is the host's."""
    attributes, _, _, _ = _split_options(options)
    with k.step(f"clone {source} for {destination}"):
        mount = k.open_tree(abi.AT_FDCWD, encode(source), recursive=True, out=_SYSTEM.get(destination))
        k.mount_setattr(mount, attributes, recursive=True)
    return mount


#: path, mode with the type, major, minor, uid, gid
Device: TypeAlias = tuple[str, int, int, int, int, int]


def make_devices(k: Recorder, devices: Iterable[Device]) -> None:
    """More nodes in the /dev of :func:`make_system`, which is on no root yet."""
    dev = (abi.DEV,)
    for path, mode, major, minor, uid, gid in devices:
        with k.step(f"make device {path}"):
            parts = encode(path).split(b"/")[2:]
            for depth in range(1, len(parts)):
                k.mkdirat(dev, b"/".join(parts[:depth]), 0o755, accept={errno.EEXIST: 0})
            name = b"/".join(parts)
            k.mknodat(dev, name, mode, os.makedev(major, minor))
            if (uid, gid) != (0, 0):
                k.call("fchownat", dev, name, uid, gid, abi.AT_SYMLINK_NOFOLLOW, path=name)


def mount_all(
    k: Recorder,
    root: Slot,
    system: Iterable[Mount],
    mounts: Iterable[Mount],
    clones: Mapping[str, Slot] | None = None,
) -> None:
    """First the user's *mounts*, then /proc, /sys and /dev from :func:`make_system`, then what goes below /dev.

    In this order a link in the rootfs cannot lead a user's mount onto the
    container's /proc or /sys: there is none yet (CVE-2015-3631).  *clones* are
    sources that have been cloned already, by their destination.
    """
    clones = clones or {}
    later: list[Mount] = []
    for mount in mounts:
        if mount[2].split("/")[1] in ("proc", "sys", "dev"):
            later.append(mount)
        else:
            _mount(k, root, *mount, clones.get(mount[2]))
    for fstype, _, destination, *_ in system:
        if destination in _SYSTEM:
            with k.step(f"mount {fstype} on {destination}"):
                k.move_mount(_SYSTEM[destination], _target(k, root, destination, directory=True, resolve=_AS_IS))
    for mount in later:
        _mount(k, root, *mount, clones.get(mount[2]))


def clone_source(
    k: Recorder, source: str, options: Sequence[str],
    ids: Slot | None = None, out: Slot | None = None, tree: int | None = None,
) -> Slot:  # fmt: skip
    """The *source* of a bind mount as a mount that is nowhere yet; the others are as for :func:`root_directory`."""
    set_, clear, recursive, _ = _split_options(options)
    if tree is None:
        opened = k.openat2(abi.AT_FDCWD, encode(source), abi.O_PATH, abi.RESOLVE_NO_MAGICLINKS)
        new = k.open_tree(opened, recursive="rbind" in options, out=out)
    else:
        new = (tree,)
    if set_ & _ATIME:
        clear |= _ATIME
    if set_ or clear:
        # What is mounted below a read-only source is as read-only as the source itself.
        k.mount_setattr(new, set_, clear & ~set_ | (clear & _ATIME), recursive=recursive)
    if ids is not None:
        k.map_ids(new, ids, recursive="rbind" in options)
    return new


def set_propagation(k: Recorder, mount: Fd, name: str, *, cloned: bool) -> None:
    """Make *mount* propagate as *name* says, with what is below it if that begins with an ``r``.

    One that was *cloned* outside is still the host's peer: what is not to be
    stays none.
    """
    recursive = name[:1] == "r"
    if cloned and name.lstrip("r") not in ("shared", "slave"):
        k.mount_setattr(mount, propagation=abi.MS_PRIVATE, recursive=True)
    if name not in ("private", "rprivate"):
        k.mount_setattr(mount, propagation=_PROPAGATIONS[name[recursive:]], recursive=recursive)


def _mount(
    k: Recorder,
    root: Slot,
    fstype: str,
    source: str,
    destination: str,
    options: Sequence[str],
    directory: bool,
    tree: int | None,
    clone: Slot | None = None,
) -> None:
    with k.step(f"mount {fstype if fstype != 'bind' else source} on {destination}"):
        if fstype == "bind":
            new = clone or clone_source(k, source, options, tree=tree)
        else:
            set_, _, _, data = _split_options(options)
            new = k.new_mount(fstype, data, set_)
        propagation = next((option for option in options if option.lstrip("r") in _PROPAGATIONS), "private")
        set_propagation(k, new, propagation, cloned=tree is not None)
        resolve = _AS_IS if destination in _SYSTEM else _IN_ROOT
        k.move_mount(new, _target(k, root, destination, directory=directory, resolve=resolve))


def _split_options(options: Sequence[str]) -> tuple[int, int, bool, dict[str, str | None]]:
    """fstab-like options as (attributes to set, to clear, whether recursively, the file system's own)."""
    set_ = clear = 0
    recursive = False
    data: dict[str, str | None] = {}
    for option in options:
        name = option
        if name not in _ATTRIBUTES and name[:1] == "r" and name[1:] in _ATTRIBUTES:
            name, recursive = name[1:], True
        if name in _ATTRIBUTES:
            set_ |= _ATTRIBUTES[name]
        elif name in _CLEARED:
            clear |= _CLEARED[name]
        elif name not in ("bind", "rbind", "newinstance", "defaults") and name.lstrip("r") not in _PROPAGATIONS:
            key, equals, value = option.partition("=")
            data[key] = value if equals else None
    return set_, clear, recursive, data


def etc_files(k: Recorder, root: Slot, files: Mapping[str, str], *, make: bool, writable: bool) -> None:
    """Show *files*, path to content, over what the root has there; with *make* also where it has nothing.

    Before /proc is there, so that no link of the rootfs leads into it, and
    before the user's mounts, which win.
    """
    for path, content in files.items():
        with k.step(f"provide {path}"):
            name, data = path.lstrip("/").replace("/", "_").encode(), encode(content)
            if make:
                target = _target(k, root, path, directory=False)
            else:
                over = 5 + (not writable)
                target = k.openat2(
                    root,
                    encode(path.lstrip("/")),
                    abi.O_PATH,
                    _IN_ROOT,
                    accept={errno.ENOENT: over, errno.ENOTDIR: over},
                )
            file = k.openat2((abi.SCRATCH,), name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _AS_IS, 0o644)
            k.call("write", file, data, len(data))
            k.call("close", file)
            new = k.open_tree((abi.SCRATCH,), name)
            if not writable:
                k.mount_setattr(new, abi.MOUNT_ATTR_RDONLY)
            k.move_mount(new, target)


def _target(k: Recorder, root: Fd, path: str, *, directory: bool, resolve: int = _IN_ROOT) -> Slot:
    """What to mount on, made where it is missing: one component at a time, each below an open descriptor."""
    relative = encode(path.lstrip("/"))
    flags = abi.O_PATH | (abi.O_DIRECTORY if directory else 0)
    target = k.slot()
    # The steps that make it are known once they are recorded; success jumps over them.
    at = len(k.steps)
    k.openat2(root, relative, flags, resolve, out=target, accept={errno.ENOENT: 0})
    parts = relative.split(b"/")
    parent: Fd = root
    for depth, part in enumerate(parts, 1):
        last = depth == len(parts)
        if last and not directory:
            k.mknodat(parent, part, stat.S_IFREG | 0o644, accept=_HIDDEN_FROM_ERRORS)
        else:
            k.mkdirat(parent, part, 0o755, accept=_HIDDEN_FROM_ERRORS)
        if not last:
            parent = k.openat2(root, b"/".join(parts[:depth]), abi.O_PATH | abi.O_DIRECTORY, resolve)
    k.openat2(root, relative, flags, resolve, out=target)
    k.steps[at] = k.steps[at]._replace(skip=len(k.steps) - at - 1)
    return target


def _fill_dev(k: Recorder, dev: Slot, *, nodes: bool) -> None:
    """The fixed nodes and links, while the new /dev is still nowhere: the rootfs has no part in it.

    Without *nodes* they are empty files, to mount the host's on.
    """
    for name, mode, major, minor in DEVICES:
        if nodes:
            k.mknodat(dev, name.encode(), stat.S_IFCHR | mode, os.makedev(major, minor))
        else:
            k.mknodat(dev, name.encode(), stat.S_IFREG | mode)
    for name, target in DEVICE_LINKS:
        k.symlinkat(target.encode(), dev, name.encode())
    for name in ("pts", "shm", "mqueue"):
        k.mkdirat(dev, name.encode(), 0o755)


def _bind_device(k: Recorder, dev: Slot, name: bytes) -> None:
    """The host's device *name* in the new /dev: only the first user namespace makes nodes that open (mknod(2))."""
    with k.step(f"mount /dev/{name.decode()}"):
        source = k.openat2(abi.AT_FDCWD, b"/dev/" + name, _OPENED, abi.RESOLVE_NO_MAGICLINKS)
        device = k.open_tree(source)
        k.mount_setattr(device, abi.MOUNT_ATTR_NOSUID | abi.MOUNT_ATTR_NOEXEC)
        k.move_mount(device, k.openat2(dev, name, _OPENED, _AS_IS))


def _attach(k: Recorder, mount: Slot, name: bytes) -> None:
    """Put *mount* on a directory of the scratch mount, which lies in the old root and goes away with it."""
    k.mkdirat((abi.SCRATCH,), name, 0o700)
    k.call("move_mount", mount, b"", (abi.SCRATCH,), name, abi.MOVE_MOUNT_F_EMPTY_PATH)


def pivot_to_prepared(k: Recorder) -> None:
    """:func:`pivot` in a section of its own, after whatever hooks have done to the root."""
    with k.step("pivot_root"):
        root = k.openat2((abi.SCRATCH,), b"root", abi.O_PATH | abi.O_DIRECTORY, _AS_IS)
    pivot(k, root)


def pivot(k: Recorder, root: Slot) -> None:
    """Make *root* the root, and let go of the old one (pivot_root(2), "." on ".")."""
    with k.step("pivot_root"):
        k.call("fchdir", root)
        k.call("pivot_root", b".", b".")
        k.call("umount2", b".", abi.MNT_DETACH)
        k.call("chdir", b"/")
    with k.step("check that the old root is gone"):
        # Whatever lies over the new root, ".." leads to it, and so does setns(2): that is EXDEV here.
        k.openat2(abi.AT_FDCWD, b"..", abi.O_PATH | abi.O_DIRECTORY, abi.RESOLVE_NO_XDEV)


def mask_and_protect(k: Recorder, root: Slot | None, masked: Sequence[str], readonly: Sequence[str]) -> None:
    """Hide *masked* and make *readonly* read-only; a path that does not exist on this kernel is fine, nothing else.

    They are paths of *root* or, without it, of the new /proc and /sys.  The
    sources are the container's own fresh /dev/null and an empty directory,
    never what the rootfs calls so (CVE-2025-31133).
    """

    def locate(path: str) -> tuple[Slot, bytes]:
        if root is not None:
            return root, encode(path.lstrip("/"))
        top, _, below = path[1:].partition("/")
        return _SYSTEM[f"/{top}"], encode(below)

    for path in masked:
        with k.step(f"mask {path}"):
            place, relative = locate(path)
            if path not in _MASKED_FILES:
                # A directory: three steps. Not one: go on to the file's three. Not there: over both.
                gone = 3 if path in _MASKED_DIRECTORIES else 6
                accept = {errno.ENOENT: gone - 1} if gone == 3 else {errno.ENOENT: gone - 1, errno.ENOTDIR: 2}
                target = k.openat2(place, relative, _OPENED | abi.O_DIRECTORY, _IN_ROOT, accept=accept)
                cover = k.open_tree((abi.EMPTY,))
                k.move_mount(cover, target, skip=0 if gone == 3 else 3)
            if path not in _MASKED_DIRECTORIES:
                target = k.openat2(place, relative, _OPENED, _IN_ROOT, accept={errno.ENOENT: 2})
                cover = k.open_tree((abi.NULL,))
                k.move_mount(cover, target)
    for path in readonly:
        with k.step(f"make {path} read-only"):
            place, relative = locate(path)
            target = k.openat2(place, relative, _OPENED, _IN_ROOT, accept={errno.ENOENT: 3})
            cover = k.open_tree(target, recursive=True)
            k.mount_setattr(cover, abi.MOUNT_ATTR_RDONLY, recursive=True)
            k.move_mount(cover, target)
