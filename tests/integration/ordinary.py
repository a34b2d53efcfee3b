"""Run a program as an ordinary user, in a mount namespace where nothing that it needs is hidden from him.

``python ordinary.py [--ids START:COUNT] [--cgroup NAME] [--show PATH] [--without-namespaces] [--tun] UID ARGUMENT...``
executes the arguments as the user and group UID, with a HOME and an XDG_RUNTIME_DIR of his own.  The host is not
changed: what lies in a directory that he may not enter (PATH, or an interpreter in root's home) he gets to see in a
private mount namespace, in an otherwise empty directory, and so he does his line in /etc/subuid and /etc/subgid, and a
/dev/net/tun that everybody may open, as udev has it.  It needs root.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import stat
import sys
from pathlib import Path

CLONE_NEWUSER, CLONE_NEWNS, MS_BIND, MS_REC, MS_PRIVATE = 0x10000000, 0x20000, 0x1000, 0x4000, 0x40000

libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, fstype: str = "", flags: int = 0, data: str = "") -> None:
    arguments = [value.encode() or None for value in (source, target, fstype)]
    if libc.mount(*arguments, ctypes.c_ulong(flags), data.encode() or None):
        raise OSError(ctypes.get_errno(), f"mount {source} on {target}")


def locked(path: Path) -> Path | None:
    """The first directory above *path* that an ordinary user may not enter."""
    there = (p for p in reversed(path.parents) if p.exists())  # what lies over it may have no such directory
    return next((p for p in there if not p.stat().st_mode & stat.S_IXOTH), None)


def show(paths: list[Path]) -> None:
    """Let everybody reach *paths*."""
    paths = sorted({path.resolve() for path in paths}, key=lambda path: len(path.parts))
    hidden = {path: os.open(path, os.O_PATH) for path in paths if locked(path)}
    for path, fd in hidden.items():
        if place := locked(path):
            mount("tmpfs", str(place), "tmpfs", data="mode=755")
        if not path.is_dir():
            path.mkdir(parents=True)
            mount(f"/proc/self/fd/{fd}", str(path), flags=MS_BIND | MS_REC)
        os.close(fd)


def unshare(flags: int) -> None:
    if libc.unshare(flags):
        raise OSError(ctypes.get_errno(), "unshare")


def forbid_namespaces() -> None:
    """Go on in a user namespace in which everybody is who he was, and nobody may make another one.

    The limit of user namespaces is each user namespace's own (namespaces(7)).
    """
    child_entered, entered = os.pipe()
    mapped, child_mapped = os.pipe()
    if child := os.fork():
        os.read(child_entered, 1)
        for kind in ("uid", "gid"):
            Path(f"/proc/{child}/{kind}_map").write_text("0 0 4294967295")
        os.write(child_mapped, b"m")
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    unshare(CLONE_NEWUSER)
    os.write(entered, b"e")
    os.read(mapped, 1)
    Path("/proc/sys/user/max_user_namespaces").write_text("0")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ids")
    parser.add_argument("--cgroup", action="append", default=[], type=Path)
    parser.add_argument("--show", action="append", default=[], type=Path)
    parser.add_argument("--without-namespaces", action="store_true")
    parser.add_argument("--tun", action="store_true")
    parser.add_argument("uid", type=int)
    parser.add_argument("argv", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    for directory in options.cgroup:
        for name in (".", "cgroup.procs", "tasks"):
            if (directory / name).exists():
                os.chown(directory / name, options.uid, options.uid)
        (directory / "cgroup.procs").write_text("0")
    unshare(CLONE_NEWNS)
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    needed = [sys.prefix, sys.base_prefix, *(place for place in sys.path if os.path.isdir(place))]
    show([*map(Path, needed), *options.show])
    # A home that goes away with the mount namespace.
    mount("tmpfs", "/srv", "tmpfs", data="mode=755")
    home, runtime = Path("/srv/home"), Path("/srv/run")
    for directory in (home, runtime):
        directory.mkdir(mode=0o700)
        os.chown(directory, options.uid, options.uid)
    Path("/srv/passwd").write_text(
        f"ordinary:x:{options.uid}:{options.uid}::{home}:/bin/sh\n" + Path("/etc/passwd").read_text()
    )
    mount("/srv/passwd", "/etc/passwd", flags=MS_BIND)  # newuidmap(1) wants to know his name
    for name in ("subuid", "subgid"):
        lines = f"{options.uid}:{options.ids}\n" if options.ids else ""
        if lines or os.path.exists(f"/etc/{name}"):
            Path("/srv", name).write_text(lines)
            mount(f"/srv/{name}", f"/etc/{name}", flags=MS_BIND)
    if options.tun:
        mount("tmpfs", "/dev/net", "tmpfs", data="mode=755")
        os.mknod("/dev/net/tun", stat.S_IFCHR | 0o666, os.makedev(10, 200))
        os.chmod("/dev/net/tun", 0o666)
    if options.without_namespaces:
        forbid_namespaces()
    os.setgroups([])
    os.setresgid(*[options.uid] * 3)
    os.setresuid(*[options.uid] * 3)
    os.chdir(home)
    os.environ.update(HOME=str(home), XDG_RUNTIME_DIR=str(runtime), TMPDIR=str(home))
    program = shutil.which(options.argv[0])
    assert program, f"{options.argv[0]} is not there for uid {options.uid}"
    os.execv(program, options.argv)


if __name__ == "__main__":
    main()
