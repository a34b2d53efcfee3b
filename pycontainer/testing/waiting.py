"""Waiting until something is ready."""

from __future__ import annotations

import errno
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from pycontainer.testing.fixtures import LoggedContainer

__all__ = ["wait_for"]

T = TypeVar("T")

_LISTEN = 0x0A  # TCP_LISTEN, include/net/tcp_states.h


def wait_for(
    condition: Callable[[], T] | None = None,
    *,
    port: int | None = None,
    file: str | os.PathLike[str] | None = None,
    log: str | None = None,
    container: LoggedContainer | None = None,
    timeout: float = 30.0,
    interval: float = 0.02,
) -> T | bool:
    """Wait until *condition* returns something true, and return that; or until one of the others is there.

    *port*: something listens on that TCP port, in the network of *container*,
    or else on this host's loopback.  *file*: that path exists, inside
    *container*, or else here.  *log*: the output or the errors of *container*
    have a line in which that regular expression is found (``re.search``);
    ValueError at once where its stdout goes elsewhere, as with PIPE.  An
    exception of *condition* is "not yet".  Looks every *interval* seconds.

    Raises TimeoutError after *timeout* seconds, and at once when *container*
    has ended before; both say what there was instead.
    """
    given = [condition is not None, port is not None, file is not None, log is not None]
    if sum(given) != 1:
        raise TypeError("wait_for() waits for one thing: a callable, port, file or log")
    if log is not None:
        _check_log(container)
    check, what = _condition(condition, port, file, log, container)
    deadline = time.monotonic() + timeout
    why = ""
    while True:
        # Looked up first: what was there when it ended is then seen by the check.
        ended = container is not None and container.poll() is not None
        try:
            result = check()
            if result:
                return result
            why = ""
        except Exception as error:
            why = f"; the last try: {type(error).__name__}: {error}"
        if ended:
            assert container is not None
            assert container.status is not None
            raise TimeoutError(f"{what} did not come: container {container.id} {container.status.reason}{why}")
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"{what} did not come within {timeout:g} s{why}")
        time.sleep(min(interval, left))


def _check_log(container: LoggedContainer | None) -> None:
    """Raise TypeError or ValueError where nobody could see a line of the log."""
    if container is None:
        raise TypeError("whose log? wait_for(log=...) needs container=")
    logs = getattr(container, "_logs", None)
    if logs is None:
        raise TypeError(f"a {type(container).__name__} has no log: a LoggedContainer does")
    if logs[0] is None:
        raise ValueError(f"the log of container {container.id} cannot be seen: its stdout goes elsewhere (stdout=...)")


def _condition(
    condition: Callable[[], T] | None,
    port: int | None,
    file: str | os.PathLike[str] | None,
    log: str | None,
    container: LoggedContainer | None,
) -> tuple[Callable[[], T | bool], str]:
    """What to call until it is true, and its name."""
    if condition is not None:
        return condition, getattr(condition, "__name__", repr(condition))
    if port is not None:
        number = port
        if container is None:
            return lambda: _accepts(number), f"port {number}"
        inside = container
        return lambda: number in set(_listening(inside.pid)), f"port {number}"
    if file is not None:
        path = os.fspath(file)
        if container is None:
            return lambda: os.path.exists(path), f"file {path}"
        box = container
        return lambda: _exists_inside(box.pid, path), f"file {path}"
    assert log is not None
    assert container is not None
    pattern, speaker = re.compile(log, re.MULTILINE), container
    return lambda: bool(pattern.search(speaker.output) or pattern.search(speaker.errors)), f"log line {log!r}"


def _accepts(port: int) -> bool:
    with socket.create_connection(("localhost", port), timeout=1):
        return True


def _listening(pid: int | None) -> Iterator[int]:
    """The TCP ports that something listens on in the network of process *pid* (proc_pid_net(5))."""
    for table in ("tcp", "tcp6"):
        with open(f"/proc/{pid}/net/{table}", encoding="ascii") as file:
            next(file)
            for line in file:
                local, _, state = line.split()[1:4]
                if int(state, 16) == _LISTEN:
                    yield int(local.rpartition(":")[2], 16)


def _exists_inside(pid: int | None, path: str) -> bool:
    """Whether *path* exists in the root of process *pid*, none of its links leading out of that."""
    from pycontainer.rootfs import open_in_rootfs

    try:
        os.close(open_in_rootfs(f"/proc/{pid}/root", path))
    except OSError as error:
        # There, but no file that could be read: a directory, a socket, somebody else's.
        return error.errno not in (errno.ENOENT, errno.ENOTDIR)
    return True
