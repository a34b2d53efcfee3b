"""What may not change on the host while somebody tries to change it."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

from ..integration import host
from ..integration.hostile import Rootfs

#: Knobs that belong to no namespace of a container, and that no test running beside this one touches.
SYSCTLS = ("kernel/core_pattern", "kernel/hostname", "kernel/domainname", "fs/suid_dumpable")


def interpreter() -> tuple[object, ...]:
    """Which file this Python is, and what is in it."""
    path = os.path.realpath(sys.executable)
    at = os.stat(path)
    with open(path, "rb") as file:
        content = hashlib.sha256(file.read()).hexdigest()
    return path, at.st_ino, at.st_mode, at.st_uid, at.st_mtime_ns, content


class Canary:
    """A directory of the host, the mounts there and where containers mount their own, the interpreter, some sysctls."""

    def __init__(self, rootfs: Rootfs, *places: Path) -> None:
        self.rootfs = rootfs
        self.places = (*map(str, places), "/proc", "/sys", "/dev")
        self.before = self.look()

    def look(self) -> dict[str, object]:
        mounts = [m for m in host.mounts() if any(f"{m.path}/".startswith(f"{place}/") for place in self.places)]
        return {
            "directory": self.rootfs.canary_state(),
            "mounts": mounts,
            "interpreter": interpreter(),
            "sysctls": [Path("/proc/sys", name).read_text() for name in SYSCTLS],
        }

    def check(self) -> None:
        """It is as it was."""
        now = self.look()
        for what, before in self.before.items():
            assert now[what] == before, f"the host's {what}"
