"""A request's steps in the memory of :mod:`pycontainer_native.machine`, as its loop takes them.

A section that has been seen stays where it is; what is the request's own (paths,
arguments, environment) is written for each request anew.  Addresses are final:
a clone has everything where the launcher has it.
"""

from __future__ import annotations

import ctypes
import errno
import marshal
import struct

from pycontainer_native import abi, machine
from pycontainer_native.child import EXEC

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pycontainer_native.request import Request

    Cells = dict[int, list[int]]
    #: the address of its first step, that behind the last one, how many they are
    Place = tuple[int, int, int]

_STEP = struct.Struct("=16q")
_SECTION = struct.Struct("=3q")

#: What a step's wire form lacks: whether it forks, and how it fails if its number is -1.
_PLAIN = (0, 0)


class FullError(Exception):
    """There is no room."""


class _Writer:
    """Steps, and behind them all that they point to."""

    def __init__(self, base: int, end: int, steps: int) -> None:
        self.base = base
        self.end = end
        self.data = bytearray(_STEP.size * steps)
        self.words: dict[int, int] = {}
        self.zero = self.word(0)

    def put(self, data: bytes) -> int:
        """Its address; what follows is aligned to eight bytes."""
        at = len(self.data)
        self.data += data
        self.data += bytes(-len(data) % 8)
        return self.base + at

    def word(self, value: int) -> int:
        """The address of a word with that value."""
        at = self.words.get(value)
        if at is None:
            at = self.words[value] = self.put((value & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "little"))
        return at

    def array(self, items: list[Any], cells: Cells) -> int:
        """Words: numbers, the values of slots, and pointers to everything else."""
        values = []
        for item in items:
            if isinstance(item, bytes):
                item = self.put(item + b"\0")
            elif isinstance(item, list):
                item = self.array(item, cells)
            values.append(item)
        at = self.base + len(self.data)
        for index, item in enumerate(values):
            if isinstance(item, tuple):
                cells.setdefault(item[0], []).append(at + 8 * index)
                item = 0
            self.data += (item & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "little")
        return at

    def argument(self, argument: Any, cells: Cells) -> tuple[int, int]:
        """Where the argument is, and the address of the buffer that it points to, if it does."""
        if isinstance(argument, int):
            return self.word(argument), 0
        if isinstance(argument, bytes):
            return self.word(self.put(argument + b"\0")), 0
        if isinstance(argument, list):
            buffer = self.array(argument, cells)
        elif len(argument) == 1:
            return machine.SLOTS + 8 * argument[0], 0
        else:
            content = argument[1]
            buffer = self.put(bytes(content) if isinstance(content, int) else content)
        return self.word(buffer), buffer

    def write_steps(self, steps: list[Any], special: tuple[int, int] = _PLAIN, *, indexed: bool = True) -> None:
        """Write *steps*, in their wire form."""
        cells: Cells = {}
        arguments = [[self.argument(argument, cells) for argument in step[1]] for step in steps]
        for index, (number, _, out, accept, skip, check) in enumerate(steps):
            places = [place for place, _ in arguments[index]]
            places += [self.zero] * (6 - len(places))
            results = accepted = self.zero
            if out is not None:
                results = self.array([machine.SLOTS + 8 * out, *cells.get(out, ()), 0], {})
            if accept:
                accepted = self.array([word for pair in accept.items() for word in pair] + [0], {})
            buffer = wanted = length = 0
            forks, error = special
            if check is not None:
                buffer = next(buffer for _, buffer in arguments[index] if buffer)
                wanted, length, error = self.put(check[0]), len(check[0]), check[1]
            what = buffer, wanted, length, accepted, skip, forks, error, index if indexed else 0
            _STEP.pack_into(self.data, _STEP.size * index, number, *places, results, *what)

    def finish(self) -> int:
        """Put it where it belongs; the address behind it. Raises FullError."""
        if self.base + len(self.data) > self.end:
            raise FullError
        ctypes.memmove(self.base, bytes(self.data), len(self.data))
        return self.base + (len(self.data) + 63) // 64 * 64


_places: dict[bytes, Place] = {}
_next = machine.KEPT  # where the next section that is kept goes


def lay(request: Request) -> int | None:
    """Write *request* down; the address of its table of sections, or None if it is too large.

    As :func:`pycontainer_native.child.child` runs it, for a request without
    hooks or an init: the sections, before that of the process that is born
    inside the fork, before the last one the report, at the end the program.
    """
    try:
        places = [_section(data) for data in request.sections]
        inside, last = 1 + request.outside, len(places) - 1
        total = sum(count for _, _, count in places)
        table, index = [], 0
        for number, (first, end, count) in enumerate(places):
            if number == inside and request.outside:
                table.append((*_fork()[:2], total + 1))
            if number == last:
                table.append((*_report()[:2], index))
            table.append((first, end, index))
            index += count
        execution, behind = _execution(*request.program)
        table.append((*execution, total))
        writer = _Writer(behind, machine.FRAME + machine.FRAME_SIZE, 0)
        at = writer.put(b"".join([_SECTION.pack(*row) for row in table]))
        writer.finish()
    except FullError:
        return None
    return at


def _section(data: bytes) -> Place:
    """Where the marshalled section is. Raises FullError."""
    place = _places.get(data)
    return _keep(data, marshal.loads(data)) if place is None else place


def _fork() -> Place:
    steps: list[Any] = [(abi.NR["clone"], (abi.CLONE_PARENT, 0, 0, 0, 0), None, {}, 0, None)]
    return _places.get(b"fork") or _keep(b"fork", steps, (1, 0))


def _report() -> Place:
    steps: list[Any] = [(abi.NR["write"], (abi.CHANNEL_FD, EXEC, len(EXEC)), None, {}, 0, None)]
    return _places.get(b"report") or _keep(b"report", steps)


def _keep(key: bytes, steps: list[Any], special: tuple[int, int] = _PLAIN) -> Place:
    """Write steps where they stay. Raises FullError: those that were there are forgotten then."""
    global _next
    writer = _Writer(_next, machine.KEPT + machine.KEPT_SIZE, len(steps))
    writer.write_steps(steps, special)
    try:
        behind = writer.finish()
    except FullError:
        _places.clear()
        _next = machine.KEPT
        raise
    place = _places[key] = (_next, _next + _STEP.size * len(steps), len(steps))
    _next = behind
    return place


def _execution(paths: list[bytes], argv: list[bytes], env: list[bytes]) -> tuple[tuple[int, int], int]:
    """The steps that try execve on each of *paths*, as execvp(3) does, and the address behind all they need.

    EACCES is remembered while others are tried: behind the steps come the same
    ones for the paths that are left then, and in the end that error.
    """
    last = len(paths) - 1
    count = 2 * last + 2 if last else 1
    writer = _Writer(machine.FRAME, machine.FRAME + machine.FRAME_SIZE, count)
    arguments = writer.array([*argv, 0], {}), writer.array([*env, 0], {})
    missing = {errno.ENOENT: 0, errno.ENOTDIR: 0}

    def step(path: bytes, accept: dict[int, int]) -> Any:
        return abi.NR["execve"], (path, *arguments), None, accept, 0, None

    steps = [step(path, {**missing, errno.EACCES: last}) for path in paths[:-1]]
    steps.append(step(paths[-1], {}))
    if last:
        steps += [step(path, {**missing, errno.EACCES: 0}) for path in paths[1:]]
        steps.append((-1, (), None, {}, 0, None))
    writer.write_steps(steps, (0, errno.EACCES), indexed=False)
    return (writer.base, writer.base + _STEP.size * count), writer.finish()
