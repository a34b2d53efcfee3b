"""One caller: a process that starts containers when told to and answers with what that took.

``python caller.py JSON`` answers every line of its standard input with one line; ``error: ...`` where it fails:

================  =====================================================================================
start             nanoseconds from start to exit of ``true``
rate SECONDS      the number of starts, and the seconds they took
hold COUNT        starts containers that stay; kB that this takes (PSS) beside their own processes, for all
exec              nanoseconds from start to exit of ``true`` in the first container that stays
drop              ends and removes the containers that stay
================  =====================================================================================

Only what one start needs is between the two readings of the clock.

Keys of the JSON object: ``argv`` (a program, started by posix_spawn; ``{id}`` in it becomes a fresh id) or ``driver``
and ``rootfs`` (pycontainer.run in this process); ``id`` (prefix of the ids); ``hide_cgroup2`` (run in a mount
namespace without the unified hierarchy); ``ballast`` (bytes touched first); ``threads`` (idle threads started first);
of programs ``hold``, ``exec`` and ``drop`` (argvs, the last a list of them), of the library ``detach`` (what stays has
a monitor of its own), ``seccomp`` (the profile, or unconfined) and ``network`` (the fields of a Network).
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
from collections.abc import Callable, Iterable
from typing import Any

CLONE_NEWNS = 0x20000
MS_REC_PRIVATE = 0x4000 | 0x40000
QUIET = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)]
CLOCK = time.perf_counter_ns
SLEEP = ["/bin/sleep", "1000000"]


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


def spawn(argv: list[str]) -> int:
    """Run it, and return its exit status."""
    pid = os.posix_spawn(argv[0], argv, os.environ, file_actions=QUIET)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def proportional(pids: Iterable[int]) -> int:
    """The kB of memory that are these processes' share (PSS)."""
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            total += next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
    return total


def descendants(pid: int) -> list[int]:
    """Its children, and theirs."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        below = [int(word) for word in file.read().split()]
    return below + [further for child in below for further in descendants(child)]


class Programs:
    """Containers by a program's command line."""

    def __init__(self, task: dict[str, Any], ids: Callable[[], str]) -> None:
        self.task = task
        self.ids = ids
        self.held: list[str] = []

    def timed(self, key: str, name: str) -> int:
        filled = [word.replace("{id}", name) for word in self.task[key]]
        began = CLOCK()
        status = spawn(filled)
        took = CLOCK() - began
        if status:
            raise RuntimeError(f"exit status {status}: {last_words(filled)}")
        return took

    def start(self) -> int:
        return self.timed("argv", self.ids())

    def exec(self) -> int:
        return self.timed("exec", self.held[0])

    def hold(self, count: int) -> int:
        for _ in range(count):
            self.held.append(self.ids())
            self.timed("hold", self.held[-1])
        return 0  # the program has ended: nobody waits for the container

    def drop(self) -> None:
        for name in self.held:
            for argv in self.task["drop"]:
                spawn([word.replace("{id}", name) for word in argv])
        self.held.clear()


class Library:
    """Containers by pycontainer, in this process."""

    def __init__(self, task: dict[str, Any], ids: Callable[[], str]) -> None:
        self.task = task
        self.ids = ids
        self.held: list[Any] = []
        self.options = {
            "rootfs": task["rootfs"], "driver": task["driver"],
            "stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL,
        }  # fmt: skip
        if "seccomp" in task:
            self.options["seccomp"] = task["seccomp"]
        if "network" in task:
            import pycontainer

            self.options["network"] = pycontainer.Network(**task["network"])

    def start(self) -> int:
        import pycontainer

        name = self.ids()
        began = CLOCK()
        done = pycontainer.run(["/bin/true"], name=name, **self.options)
        took = CLOCK() - began
        if done.returncode:
            raise RuntimeError(f"exit status {done.returncode}")
        return took

    def exec(self) -> int:
        box = self.held[0]
        began = CLOCK()
        done = box.exec(["/bin/true"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        took = CLOCK() - began
        if done.returncode:
            raise RuntimeError(f"exit status {done.returncode}")
        return took

    def hold(self, count: int) -> int:
        import pycontainer

        self.start()
        before = proportional([os.getpid(), *descendants(os.getpid())])
        detach = self.task.get("detach", False)
        options = (
            {"rootfs": self.task["rootfs"], "driver": self.task["driver"], "detach": True} if detach else self.options
        )
        for _ in range(count):
            self.held.append(pycontainer.Container(SLEEP, name=self.ids(), **options))
        payloads = {box.pid for box in self.held}
        watching = [os.getpid(), *(pid for pid in descendants(os.getpid()) if pid not in payloads)]
        if detach:
            watching += monitors(payloads)
        return proportional(watching) - before

    def drop(self) -> None:
        for box in self.held:
            box.kill()
            box.wait()
            if self.task.get("detach"):
                box.remove()
        self.held.clear()


def monitors(payloads: Iterable[int]) -> list[int]:
    """The parents of these processes."""
    found = []
    for pid in payloads:
        with open(f"/proc/{pid}/stat", "rb") as file:
            found.append(int(file.read().rpartition(b")")[2].split()[1]))
    return found


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

    ballast = burden(task.get("ballast", 0), task.get("threads", 0))
    starter: Programs | Library | None = None
    for line in sys.stdin:
        try:
            if starter is None:
                if task.get("hide_cgroup2"):
                    hide_cgroup2()
                starter = Library(task, ids) if "driver" in task else Programs(task, ids)
            verb, *arguments = line.split()
            if verb == "rate":
                answer = rate(starter.start, float(arguments[0]))
            else:
                answer = str(getattr(starter, verb)(*map(int, arguments)))
        except Exception as error:  # whatever a peer or a driver raises becomes the row's reason
            answer = f"error: {type(error).__name__}: {error}".replace("\n", " ")
        print(answer, flush=True)
    del ballast


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
