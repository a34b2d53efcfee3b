"""Root file systems that are out to hurt the host, and the canary that tells."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
from pathlib import Path


class Rootfs:
    """A busybox whose owner is not to be trusted. *canary* is a directory of the host that nothing may happen to."""

    def __init__(self, path: Path, busybox: Path, canary: Path) -> None:
        self.path = path
        self.canary = canary
        for directory in ("bin", "dev", "etc", "proc", "sys", "tmp"):
            (path / directory).mkdir(parents=True)
        shutil.copytree(busybox / "bin", path / "bin", symlinks=True, dirs_exist_ok=True)
        shutil.copytree(busybox / "etc", path / "etc", dirs_exist_ok=True)
        canary.mkdir()
        (canary / "directory").mkdir()
        for name in ("file", "ptmx", "null", "passwd", "group", "console"):
            # Valid as an entry of passwd and group as well: mallory is known there, and nowhere else.
            (canary / name).write_text("mallory:x:0:0::/:/bin/sh\n")

    def __fspath__(self) -> str:
        return str(self.path)

    def _free(self, name: str) -> Path:
        """The path of *name*, where nothing is any more."""
        # This runs as root: a name that leads out would be written to the host.
        if os.path.isabs(name) or ".." in name.split("/"):
            raise ValueError(name)
        path = self.path / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def link(self, name: str, target: str | Path) -> None:
        """Make *name* a symbolic link."""
        self._free(name).symlink_to(target)

    def file(self, name: str, text: str, mode: int = 0o644) -> Path:
        """Make *name* a file."""
        path = self._free(name)
        path.write_text(text)
        path.chmod(mode)
        return path

    def fifo(self, name: str) -> None:
        """Make *name* a named pipe: whoever opens it without care hangs."""
        os.mkfifo(self._free(name))

    def device(self, name: str, major: int, minor: int) -> None:
        """Make *name* a character device."""
        os.mknod(self._free(name), stat.S_IFCHR | 0o666, os.makedev(major, minor))

    def canary_state(self) -> dict[str, tuple[object, ...]]:
        """Everything about the canary that could change."""
        found: dict[str, tuple[object, ...]] = {}
        for path in (self.canary, *sorted(self.canary.rglob("*"))):
            with contextlib.suppress(FileNotFoundError):
                at = path.lstat()
                content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
                found[str(path)] = (at.st_ino, at.st_dev, at.st_mode, at.st_uid, at.st_gid, at.st_mtime_ns, content)
        return found
