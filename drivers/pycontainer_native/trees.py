"""Mounts that the caller clones: those that a container's first process, in a mount namespace of its own, cannot.

What it clones there propagates nothing any more from or to the host, and the
mapping of an id-mapped mount comes from a user namespace that somebody has to
make.  A clone is nowhere to be seen until the first process puts it into its
root, and is gone with its last descriptor.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from pycontainer.errors import SetupError
from pycontainer_native import abi
from pycontainer_native.image import call

#: Options whose mounts go on hearing of the host's.
PROPAGATING = ("slave", "rslave", "shared", "rshared")

_IN_NEW_NAMESPACE = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
libc.unshare(0x10000000) == 0 or os._exit(ctypes.get_errno())
os.write(1, b"1")
os.read(0, 1)
"""


@frozen
class Tree:
    """A mount to clone."""

    source: str
    recursive: bool
    uid_mappings: Sequence[Mapping[str, int]] = ()  #: OCI's
    gid_mappings: Sequence[Mapping[str, int]] = ()


def wanted(mount: Mapping[str, Any]) -> Tree | None:
    """The Tree of *mount*, of OCI's form; None: the first process can clone it."""
    if mount["type"] != "bind" or not (mount.get("uidMappings") or set(PROPAGATING) & {*mount["options"]}):
        return None
    mappings = [tuple(mount.get(f"{kind}Mappings", ())) for kind in ("uid", "gid")]
    return Tree(mount["source"], "rbind" in mount["options"], *mappings)


def clone(tree: Tree) -> int:
    """A descriptor of the clone. Raises SetupError."""
    step = f"clone {tree.source}"
    try:
        how = struct.pack("=QQQ", abi.O_PATH | abi.O_CLOEXEC, 0, abi.RESOLVE_NO_MAGICLINKS)
        source = call(tree.source, "openat2", abi.AT_FDCWD, os.fsencode(tree.source), how, len(how))
        depth = abi.AT_RECURSIVE if tree.recursive else 0
        try:
            flags = abi.OPEN_TREE_CLONE | abi.OPEN_TREE_CLOEXEC | abi.AT_EMPTY_PATH | depth
            fd = call(tree.source, "open_tree", source, b"", flags)
        finally:
            os.close(source)
        try:
            if tree.uid_mappings:
                step = f"map the ids of {tree.source}"
                namespace = _user_namespace(tree)
                try:
                    attributes = struct.pack("=QQQQ", abi.MOUNT_ATTR_IDMAP, 0, 0, namespace)
                    arguments = (abi.AT_EMPTY_PATH | depth, attributes, len(attributes))
                    call(tree.source, "mount_setattr", fd, b"", *arguments)
                finally:
                    os.close(namespace)
        except BaseException:
            os.close(fd)
            raise
    except OSError as error:
        raise SetupError(step, error.errno or 0, tree.source) from None
    return fd


def _user_namespace(tree: Tree) -> int:
    """A descriptor of a user namespace that has the ids of *tree*, made by a process that ends at once."""
    import subprocess  # which takes longer than everything else here

    command = [sys.executable, "-I", "-S", "-c", _IN_NEW_NAMESPACE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={}, cwd="/") as process:
        assert process.stdout is not None
        if not process.stdout.read(1):
            number = process.wait()
            raise OSError(number, os.strerror(number))
        for kind, mappings in (("uid", tree.uid_mappings), ("gid", tree.gid_mappings)):
            text = "".join(f"{m['containerID']} {m['hostID']} {m['size']}\n" for m in mappings)
            fd = os.open(f"/proc/{process.pid}/{kind}_map", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, text.encode())
            finally:
                os.close(fd)
        return os.open(f"/proc/{process.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)


def propagates(path: str) -> set[str]:
    """What mountinfo says of the mount that *path* is on: ``shared``, ``master``, both or nothing."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
            ident = next(line.split()[1] for line in file if line.startswith("mnt_id:"))
    finally:
        os.close(fd)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            fields = line.partition(" - ")[0].split(" ")
            if fields[0] == ident:
                return {field.partition(":")[0] for field in fields[6:]}
    return set()
