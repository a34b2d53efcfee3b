"""The steps from the clone to inside the container: its new root, or that of a running one.

Each public function is a section of a plan: it records steps, in an order that
is the kernel's, not taste; the comments say why.
"""

from __future__ import annotations

import errno
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pycontainer.process import capability_numbers
from pycontainer_native import abi, mounts
from pycontainer_native.parameters import stand
from pycontainer_native.syscalls import Recorder, Slot
from pycontainer_native.terminal import open_terminal

#: SIOCSIFFLAGS on "lo": struct ifreq with the flags set.
_LOOPBACK_UP = struct.pack("=16sH22x", b"lo", abi.IFF_UP | abi.IFF_RUNNING)


class Root(NamedTuple):
    """What the root file system is made from."""

    path: str  #: on the host; without a meaning where there is one of the next two
    view: str | None  #: of the host's programs, as JSON
    overlay: str | None  #: its layers, as JSON
    read_only: bool
    host_read_only: bool  #: it is on a mount that is read-only on the host, and has to stay so
    nodev: bool
    tree: int | None = None  #: the slot of the mount that the caller has cloned of it


class Contents(NamedTuple):
    """What is put into the root file system, and who is to have it."""

    files: Mapping[str, str]  #: path to content, shown over the root's own
    devices: Sequence[mounts.Device]
    system: Sequence[mounts.Mount]  #: /proc, /sys and /dev and what is below them
    own: Sequence[mounts.Mount]  #: those of the Command
    hidden: Sequence[Sequence[str]]  #: masked and read-only paths, as for :func:`mounts.mask_and_protect`
    terminal: tuple[Any, ...] | None  #: the inputs of :func:`open_terminal`
    init: bool
    inside: bool  #: a user namespace, where not all can be made anew
    mount_label: str | None


def begin(
    k: Recorder,
    joins: int,
    unshare_cgroup: bool,
    ahead: tuple[Any, ...] | None,
    bounding: tuple[int, int] | None,
) -> None:
    """What does not depend on the request, which comes after it: this can be done before there is one.

    Die with the launcher, join the cgroups, let go of everything that is the
    launcher's.  *ahead* is for a new container all of whose namespaces are
    its own: the inputs of :func:`_prepare`; *bounding* those of :func:`bound`,
    where nothing that it executes during the set-up is to have more than its
    program.
    """
    # First: this is where failures are reported.
    k.call("dup3", (abi.CHANNEL,), abi.CHANNEL_FD, abi.O_CLOEXEC, out=(abi.CHANNEL,))
    die_with_parent(k)
    for number in range(joins):
        with k.step("join cgroup"):
            # "0" is whoever writes it: moving oneself takes no system-wide lock, moving a pid does.
            k.call("write", (abi.CGROUP + number,), b"0", 1)
    if unshare_cgroup:
        k.call("unshare", abi.CLONE_NEWCGROUP)
    with k.step("close foreign descriptors"):
        k.call("close_range", abi.CHANNEL_FD + 1, 0xFFFFFFFF, 0)
    k.call("setsid")
    with k.step("join a new session keyring"):
        k.call("keyctl", abi.KEYCTL_JOIN_SESSION_KEYRING, 0, accept={errno.ENOSYS: 0})
    k.call("umask", 0)  # the modes in the plan are exact
    with k.step("reserve descriptors"):
        for fd in range(abi.REPORT_FD, abi.FIRST_GIVEN_FD):
            k.dup3(abi.CHANNEL_FD, fd, abi.O_CLOEXEC)
    if ahead is None:
        return
    _prepare(k, *ahead)
    with k.step("keep what the rest needs"):
        for fd, slot in enumerate(abi.KEPT, abi.FIRST_KEPT_FD):
            k.call("dup3", (slot,), fd, abi.O_CLOEXEC, out=(slot,))
        k.call("close_range", abi.FIRST_GIVEN_FD, 0xFFFFFFFF, 0)
    if bounding is not None:
        bound(k, *bounding)


def bound(k: Recorder, kept: int, last_capability: int) -> None:
    """Leave the capabilities *kept* in the bounding set: what this process has by now it keeps until it executes."""
    names = {number: name for name, number in capability_numbers().items()}
    for number in range(last_capability + 1):
        if not kept >> number & 1:
            with k.step(f"drop {names.get(number, number)} from the bounding set"):
                k.prctl(abi.PR_CAPBSET_DROP, number)


def _prepare(k: Recorder, system: tuple[Any, ...], own_network: bool, mount_label: str | None) -> None:
    """What is made of the namespaces: the inputs of :func:`mounts.make_system`, and whether the network is new."""
    k.mount_label = mount_label
    mounts.make_mounts_private(k)
    mounts.make_system(k, *system)
    if own_network:
        _loopback(k)


def _loopback(k: Recorder) -> None:
    with k.step("bring lo up"):
        datagram = k.slot()
        k.call("socket", 2, 2 | abi.O_CLOEXEC, 0, out=datagram)  # AF_INET, SOCK_DGRAM | SOCK_CLOEXEC
        k.ioctl(datagram, abi.SIOCSIFFLAGS, _LOOPBACK_UP)


def enter_given(k: Recorder, entered: Sequence[str]) -> None:
    """Into the namespaces that the caller has opened; of a pid namespace only the children will be."""
    for number, name in enumerate(entered):
        # Before anything is mounted: a sysfs shows the network of whoever mounts it.
        with k.step(f"enter the {name} namespace"):
            k.call("setns", (abi.GIVEN + number,), abi.NAMESPACES[name])


def enter_user_namespace(
    k: Recorder,
    root: Root,
    own: Sequence[mounts.Mount],
    flags: int,
    mounter: mounts.Mounter | None,
    network: bool,
) -> None:
    """Into the user namespace that the launcher has made, and from there into new ones.

    With *network* one of its own is there already, with what the caller has
    put into it: the second descriptor given.

    Before that, with the rights of the host's root, what the container is made
    of is cloned and gets the namespace's ids: inside, the way there may be
    barred, and mapping ids takes rights over the file system.  *mounter* is for
    a root of several layers.
    """
    ids = k.slot()
    clones = iter([k.slot() for _ in range(clones_needed(root, own))])
    with k.step("take the user namespace"):
        k.call("fcntl", (abi.GIVEN,), abi.F_DUPFD_CLOEXEC, 0, out=ids)  # a slot of the plan's can stand in a structure
    if root.view is not None:
        mounts.layers_of_view(k, json.loads(root.view), ids, clones)
    else:
        made = next(clones)
        if root.overlay is None:
            options = {"writable": not root.read_only, "host_read_only": root.host_read_only, "nodev": root.nodev}
            mounts.root_directory(k, root.path, **options, ids=ids, out=made)
    for fstype, source, _, flags_of, *_ in own:
        if fstype == "bind":
            with k.step(f"clone {source}"):
                mounts.clone_source(k, source, flags_of, ids, next(clones))
    if root.overlay is not None and mounter is not None:  # after all that is looked up among the host's mounts
        mounts.mapped_overlay(k, **json.loads(root.overlay), nodev=root.nodev, ids=ids, mounter=mounter, out=made)
    with k.step("enter the user namespace"):
        k.call("setns", ids, abi.CLONE_NEWUSER)
    if network:
        with k.step("enter the network namespace"):
            k.call("setns", (abi.GIVEN + 1,), abi.CLONE_NEWNET)
    with k.step("make the namespaces"):
        k.call("unshare", flags)
    _become_root(k)


def _become_root(k: Recorder) -> None:
    """Be the root of the user namespace that was entered, and nobody who has rights elsewhere."""
    with k.step("become root of the user namespace"):
        k.call("setgroups", 0, 0)
        k.call("setresgid", 0, 0, 0)
        k.call("setresuid", 0, 0, 0)
    die_with_parent(k)  # again: the change of ids has cleared it


def set_up(
    k: Recorder,
    prepared: tuple[Any, ...] | None,
    clones: Sequence[int],
    root: Root,
    contents: Contents,
    pivots: bool,
) -> None:
    """From the request's arrival to inside the new root, or with *pivots* false right before.

    *prepared*, where that was not done ahead, are the inputs of :func:`_prepare`,
    *clones* the slots of what :func:`enter_user_namespace` has cloned.
    """
    if prepared is not None:
        _prepare(k, *prepared)
    k.mount_label = contents.mount_label
    _take_stdio(k, contents.init)
    of_root, of_mounts = _split_clones(contents.own, clones)
    made = _make_root(k, root, of_root, contents.inside)
    mounts.etc_files(k, made, contents.files, make=root.view is not None, writable=not root.read_only)
    mounts.make_devices(k, contents.devices)
    mounts.mount_all(k, made, contents.system, contents.own, of_mounts)
    if root.read_only:
        mounts.seal_root(k, made)
    if contents.terminal is not None:
        open_terminal(k, made, *contents.terminal)
    # Last, so that nothing is mounted over a mask; before the old root goes, where their source is mounted.
    mounts.mask_and_protect(k, made, *contents.hidden)
    if pivots:
        mounts.pivot(k, made)


def _make_root(k: Recorder, root: Root, clones: Sequence[Slot], inside: bool) -> Slot:
    """The root file system, attached where the mounts can be put into it."""
    writable = not root.read_only
    if root.view is not None:
        return mounts.host_view(k, json.loads(root.view), writable=writable, inside=inside, clones=list(clones))
    if clones:
        made = clones[0]
    elif root.overlay is not None:
        made = mounts.overlay_root(k, **json.loads(root.overlay), nodev=root.nodev, userxattr=inside)
    else:
        made = mounts.root_directory(
            k, root.path, writable=writable, host_read_only=root.host_read_only, nodev=root.nodev, tree=root.tree
        )
    mounts.attach_root(k, made)
    return made


def _take_stdio(k: Recorder, init: bool) -> None:
    with k.step("take stdio"):
        for slot, fd in ((abi.STDIN, 0), (abi.STDOUT, 1), (abi.STDERR, 2)):
            k.dup3((slot,), fd)
        if init:
            k.dup3((abi.EXTRA,), abi.REPORT_FD, abi.O_CLOEXEC)


def clones_needed(root: Root, own: Sequence[mounts.Mount]) -> int:
    """How many mounts and files of the host a container is made of."""
    layers = 1
    if root.view is not None:
        view = json.loads(root.view)
        layers = sum(len(view[key]) for key in ("overlays", "trees", "files"))
    return layers + sum(mount[0] == "bind" for mount in own)


def _split_clones(own: Sequence[mounts.Mount], clones: Sequence[int]) -> tuple[list[Slot], dict[str, Slot]]:
    """The slots *clones* as those of the root, and those of the bind mounts among *own* by destination."""
    binds = [mount[2] for mount in own if mount[0] == "bind"] if clones else []
    slots: list[Slot] = [(number,) for number in clones]
    first = len(slots) - len(binds)
    return slots[:first], dict(zip(binds, slots[first:], strict=True))


def enter(k: Recorder, flags: int, terminal: tuple[Any, ...] | None, mounted: bool, *standing: Any) -> None:
    """Into the container's namespaces (of the pid namespace only the children will be), and to its root.

    *mounted* as in :func:`stand`.
    """
    for slot, fd in ((abi.STDIN, 0), (abi.STDOUT, 1), (abi.STDERR, 2)):
        k.dup3((slot,), fd)
    stand(k, mounted, *standing)
    with k.step("enter the container's namespaces"):
        k.call("setns", (abi.EXTRA,), flags)
    with k.step("enter the container's root"):
        # setns(2) leads to the root of the mount namespace, which is not the container's where the host is in a chroot.
        k.call("fchdir", (abi.ROOT,))
        k.call("chroot", b".")
    if flags & abi.CLONE_NEWUSER:
        _become_root(k)
    with k.step("close foreign descriptors"):
        k.call("close_range", abi.CHANNEL_FD + 1, 0xFFFFFFFF, 0)
    if terminal is not None:
        root = k.openat2(abi.AT_FDCWD, b"/", abi.O_PATH | abi.O_DIRECTORY, 0)
        open_terminal(k, root, *terminal, further=True)


def be_born(k: Recorder, terminal: bool) -> None:
    """The first steps inside the container's pid namespace: what a parent cannot do for its child."""
    k.call("setsid")
    if terminal:
        with k.step("make it the controlling terminal"):
            k.ioctl(0, abi.TIOCSCTTY, 0)
    die_with_parent(k)


def die_with_parent(k: Recorder) -> None:
    """SIGKILL when the launcher dies, and the proof that it had not died before this was set.

    getppid() proves nothing: it is 0 across a pid namespace.  Whether the other
    end of the channel has hung up does: a process that exits closes what it has
    open before its children are signalled.
    """
    with k.step("die with the launcher"):
        k.prctl(abi.PR_SET_PDEATHSIG, 9)
        alive = struct.pack("=ihh", abi.CHANNEL_FD, 0, 0)  # struct pollfd: no event is asked for, and none is there
        k.call("ppoll", ("buffer", alive), 1, bytes(16), 0, 0, check=(alive, errno.EPIPE))
