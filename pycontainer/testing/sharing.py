"""One container for all the workers of pytest-xdist.

The count of those who use it is the kernel's: each holds a shared flock(2),
which ends with its process, however that ends.  The worker that found nobody
owning it starts it, and ends it when it can have the lock for itself.  When
the owner is killed the container dies with it, and the next one to ask starts
another.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

if TYPE_CHECKING:
    import pytest

    from pycontainer.testing.fixtures import LoggedContainer

__all__ = ["SharedContainer", "lease"]


@frozen
class SharedContainer:
    """What every worker knows of a container that one of them has started."""

    id: str
    pid: int
    data: Mapping[str, Any] = field(factory=dict)  #: what ``share`` returned

    @property
    def is_running(self) -> bool:
        """Whether its main process is there."""
        return os.path.exists(f"/proc/{self.pid}")


def common_directory(request: pytest.FixtureRequest, key: str) -> Path:
    """A directory that every worker of this run has, and no other run."""
    factory = request.getfixturevalue("tmp_path_factory")
    base: Path = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    return base / f"shared-{key}"


@contextlib.contextmanager
def lease(
    directory: Path,
    make: Callable[[], LoggedContainer],
    share: Callable[[LoggedContainer], Mapping[str, Any]] | None = None,
) -> Iterator[SharedContainer]:
    """While inside, the container of *directory* lives; whoever comes first makes it."""
    directory.mkdir(exist_ok=True, mode=0o700)
    state = directory / "state.json"
    with _opened(directory / "users") as users, _opened(directory / "owner") as owner:
        with _opened(directory / "lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            box = None
            if _try(owner, fcntl.LOCK_EX):
                box = make()
                one = SharedContainer(box.id, box.pid or 0, dict(share(box)) if share is not None else {})
                state.write_text(json.dumps([one.id, one.pid, one.data]))
            else:
                one = SharedContainer(*json.loads(state.read_text()))
            fcntl.flock(users, fcntl.LOCK_SH)
        try:
            yield one
        finally:
            while box is not None and not _ended(directory, users, box):
                time.sleep(0.02)


def _ended(directory: Path, users: int, box: LoggedContainer) -> bool:
    """End *box*, if nobody else uses it: nobody can come in meanwhile."""
    with _opened(directory / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _try(users, fcntl.LOCK_EX):
            return False
        box.close()
        return True


def _try(fd: int, lock: int) -> bool:
    try:
        fcntl.flock(fd, lock | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)
