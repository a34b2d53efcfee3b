"""One caller: a process that starts containers when told to and answers with what that took.

``python caller.py JSON`` answers every line of its standard input with one line: ``start`` with the
nanoseconds from start to exit, ``rate SECONDS`` with the number of starts and the seconds they took; ``error: ...``
where it fails. Only what one start needs is between the two readings of the clock.

Keys of the JSON object: ``argv`` (a program, started by posix_spawn; ``{id}`` in it becomes a fresh id) or ``driver``
and ``rootfs`` (pycontainer.run in this process); ``id`` (prefix of the ids); ``hide_cgroup2`` (run in a mount
namespace without the unified hierarchy); ``ballast`` (bytes touched first); ``threads`` (idle threads started first).
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

CLONE_NEWNS = 0x20000
MS_REC_PRIVATE = 0x4000 | 0x40000
QUIET = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)]
CLOCK = time.perf_counter_ns


def hide_cgroup2() -> None:
    """Leave the unified hierarchy behind in a mount namespace of this process's own (crun refuses a hybrid host)."""
    libc = ctypes.CDLL(None, use_errno=True)
    for failed in (
        libc.unshare(CLONE_NEWNS),
        libc.mount(None, b"/", None, ctypes.c_ulong(MS_REC_PRIVATE), None),
        libc.umount2(b"/sys/fs/cgroup/unified", 0),
    ):
        if failed:
            raise OSError(ctypes.get_errno(), "a mount namespace without cgroup2")


def last_words(argv: list[str]) -> str:
    again = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    return next(reversed(again.stderr.split("\n")[:-1]), "")


def program(argv: list[str], ids: Callable[[], str]) -> Callable[[], int]:
    def start() -> int:
        filled = [word.replace("{id}", ids()) for word in argv]
        began = CLOCK()
        pid = os.posix_spawn(filled[0], filled, os.environ, file_actions=QUIET)
        status = os.waitpid(pid, 0)[1]
        took = CLOCK() - began
        if status:
            words = last_words([word.replace("{id}", ids()) for word in argv])
            raise RuntimeError(f"exit status {os.waitstatus_to_exitcode(status)}: {words}")
        return took

    return start


def library(driver: str, rootfs: str, ids: Callable[[], str]) -> Callable[[], int]:
    import pycontainer

    none = subprocess.DEVNULL

    def start() -> int:
        name = ids()
        began = CLOCK()
        done = pycontainer.run(
            ["/bin/true"], rootfs=rootfs, driver=driver, name=name, stdin=none, stdout=none, stderr=none
        )
        took = CLOCK() - began
        if done.returncode:
            raise RuntimeError(f"exit status {done.returncode}")
        return took

    return start


def burden(ballast: int, threads: int) -> Any:
    for _ in range(threads):
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    return bytes([1]) * ballast


def rate(start: Callable[[], int], seconds: float) -> str:
    began = time.monotonic()
    for count in itertools.count(1):
        start()
        if (took := time.monotonic() - began) >= seconds:
            return f"{count} {took:.6f}"
    raise AssertionError


def main(task: dict[str, Any]) -> None:
    numbers = itertools.count()

    def ids() -> str:
        return f"{task['id']}-{os.getpid()}-{next(numbers)}"

    held = burden(task.get("ballast", 0), task.get("threads", 0))
    start: Callable[[], int] | None = None
    for line in sys.stdin:
        try:
            if start is None:
                if task.get("hide_cgroup2"):
                    hide_cgroup2()
                start = program(task["argv"], ids) if "argv" in task else library(task["driver"], task["rootfs"], ids)
            verb, *arguments = line.split()
            answer = str(start()) if verb == "start" else rate(start, float(arguments[0]))
        except Exception as error:  # whatever a peer or a driver raises becomes the row's reason
            answer = f"error: {type(error).__name__}: {error}".replace("\n", " ")
        print(answer, flush=True)
    del held


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
