"""LXC's log, line by line: what a container is doing, in the only words that LXC says it in.

A line is ``lxc-start NAME TIME LEVEL CATEGORY - FILE:FUNCTION:LINE - MESSAGE``
(log.c of LXC 3 to 6).  The guard reads it from a pipe, so that it learns of a
start, an end or an error when it happens; it imports nothing else from here,
and so this module imports nothing.

The wording that is relied upon: ``post_start`` says "Started" once the payload's
execve has closed LXC's synchronisation socket; ``lxc_error_set_and_log`` tells the
payload's wait status, and says nothing of code 0; ``start`` and
``lxc_attach_run_command`` tell of an execve that failed.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    #: (kind, ...): ("started", pid), ("attached", pid), ("ended", exit code or None, signal or None),
    #: ("cgroup", path of the container's), ("memory", how many processes were killed for want of it),
    #: ("error", function, message).
    Event: TypeAlias = tuple[str, ...] | tuple[str, int] | tuple[str, int | None, int | None]

#: What is before each line of the kernel's counters, which the guard's own hook writes into the log.
COUNTER = "pycontainer: "

#: The level is the fourth field, after the program, the container and the time.
_ERRORS = ("ERROR", "CRIT", "ALERT", "FATAL", "WARN")


def parse(line: str) -> Event | None:
    """What *line* tells, or None when it is nothing that matters."""
    if line.startswith(COUNTER):
        name, _, number = line.removeprefix(COUNTER).partition(" ")
        return ("memory", int(number)) if name == "oom_kill" and number.isdigit() else None
    head, dash, message = line.partition(" - ")
    origin, dash, message = message.partition(" - ")
    fields = head.split()
    if not dash or len(fields) < 4:
        return None
    level = fields[3]
    function = origin.rpartition(":")[0].rpartition(":")[2]
    if function == "post_start":
        return _number("started", message, ' with pid "', '"')
    if function == "lxc_error_set_and_log":
        if message.startswith("Child <"):
            before, _, number = message.rstrip(")").rpartition("(")
            if number.isdigit():
                signalled = " on signal " in before
                return ("ended", None, int(number)) if signalled else ("ended", int(number), None)
    elif function == "lxc_attach" and message.startswith("Attached process "):
        return _number("attached", message, "Attached process ", " ")
    elif function.endswith("payload_create") and message.startswith("The container process uses "):
        path = message.rpartition(' and "')[2] if ' and "' in message else message.partition('"')[2]
        return ("cgroup", path.partition('"')[0])
    if level in _ERRORS:
        return ("error" if level != "WARN" else "warning", function, message)
    return None


def _number(kind: str, message: str, before: str, after: str) -> Event | None:
    text = message.rpartition(before)[2].partition(after)[0]
    return (kind, int(text)) if text.isdigit() else None


def failed_step(errors: list[tuple[str, str]], errnos: dict[str, int], program: str) -> tuple[str, int, str]:
    """The first of LXC's *errors*, (function, message) each, as (step, errno, path) of a SetupError.

    LXC writes ``STRERROR - MESSAGE``; *errnos* tells the number of such a
    text.  The errors after the first are about its consequences.  0 as errno
    means that LXC gave none.
    """
    for function, message in errors:
        text, dash, rest = message.partition(" - ")
        number = errnos.get(text, 0) if dash else 0
        if not number:
            rest = message
        if function in ("start", "lxc_attach_run_command", "execute_start") and rest.startswith("Failed to exec "):
            return "execve", number, program
        if rest.startswith("Could not change directory to "):
            path = rest.partition('"')[2].rpartition('"')[0]
            return f"enter {path}", number, path
        return rest, number, ""
    return "", 0, ""
