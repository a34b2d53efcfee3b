"""Plans in the memory of :mod:`pycontainer_native.machine`, as its loop takes them.

A clone has everything where the launcher has it, so addresses are final before
it receives what they are of.  It starts with what it can do before there is a
request, and receives that: one message, which the kernel puts into the slots,
and into the frame, where the loop goes on.  Sections that a request had in
common with an earlier one are kept, and clones that come later have them.
"""

from __future__ import annotations

import ctypes
import errno
import marshal
import struct

from pycontainer_native import abi, machine
from pycontainer_native.child import EXEC, HOOKS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pycontainer_native.request import Request

    Cells = dict[int, list[int]]
    #: the address of the first step, that behind the last one, how many they are
    Place = tuple[int, int, int]
    #: what a clone has of what is kept: its generation, and the address behind the last of it
    Mark = tuple[int, int]
    #: what a request puts into a clone's frame, and what the clone has to have for that
    Frame = tuple[bytes, Mark]

_STEP = struct.Struct("=16q")
_ROW = struct.Struct("=3q")
_MARK = struct.Struct("=2q")
_MSGHDR = 56  # the size of struct msghdr
_PADDING = [bytes(length) for length in range(8)]

#: What comes with a message: the length of the control data, the flags, and struct cmsghdr; descriptors follow it.
_CAME = struct.Struct("=QQQii")
_RIGHTS = abi.SOL_SOCKET, abi.SCM_RIGHTS
_WANTED = 16 + abi.RIGHTS_SPACE
#: The slots that a request fills, none of which is, and that nothing came.
_EMPTY = b"\xff" * (8 * (abi.CHANNEL + abi.MOST_GIVEN)) + bytes(_WANTED)

#: A frame that is larger is no message: this is less than half of net.core.wmem_default, and fits into FRAME_SIZE.
MOST = 96 << 10

#: So many sections may have been seen once without being kept; and one that is larger (laid out it is three times as
#: large) would soon have all others forgotten.
_MOST_SEEN, _MOST_KEPT = 4096, machine.KEPT_SIZE // 16


class _Writer:
    """Steps, and behind them all that they point to."""

    def __init__(self, base: int, steps: int) -> None:
        self.base = base
        self.data = bytearray(_STEP.size * steps)
        self.words: dict[int, int] = {}
        self.zero = self.word(0)

    def put(self, data: bytes) -> int:
        """Its address; what follows is aligned to eight bytes."""
        at = self.base + len(self.data)
        self.data += data + _PADDING[-len(data) % 8]
        return at

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

    def write(self, steps: list[Any]) -> None:
        """Write *steps*, in their wire form."""
        cells: Cells = {}
        arguments = [[self.argument(argument, cells) for argument in step[1]] for step in steps]
        for index, (number, _, out, accept, skip, check) in enumerate(steps):
            places = [place for place, _ in arguments[index]]
            results = accepted = buffer = wanted = length = error = 0
            if out is not None:
                results = self.array([machine.SLOTS + 8 * out, *cells.get(out, ()), 0], {})
            if check is not None:
                buffer = next(buffer for _, buffer in arguments[index] if buffer)
                wanted, length, error = self.put(check[0]), len(check[0]), check[1]
            if accept:
                accepted = self.array([word for pair in accept.items() for word in pair] + [0], {})
            compared = buffer, wanted, length
            self.step(index, number, places, results, compared, accepted, skip, error=error, index=index)

    def step(
        self,
        position: int,
        number: int,
        arguments: list[int],
        results: int = 0,
        compared: tuple[int, int, int] = (0, 0, 0),
        accepted: int = 0,
        skip: int = 0,
        *,
        forks: int = 0,
        error: int = 0,
        index: int = 0,
    ) -> None:
        """Write the step at *position*: the words of :data:`machine.LISTING`, in their order."""
        arguments = arguments + [self.zero] * (6 - len(arguments))
        words = number, *arguments, results or self.zero, *compared, accepted or self.zero, skip, forks, error, index
        _STEP.pack_into(self.data, _STEP.size * position, *words)


class _Kept:
    """What stays in the launcher's memory, and so is in its clones'."""

    def __init__(self) -> None:
        self.generation = 0
        self.end = machine.KEPT
        self.seen: set[int] = set()  # the hashes of what has come once: a wrong one is kept too early
        self.forget()

    def forget(self) -> None:
        """Begin anew, with what is the same each time. Who was cloned before has what was there then."""
        ctypes.memset(machine.KEPT, 0, self.end - machine.KEPT)  # those who come later are to have none of it
        self.generation += 1
        self.places: dict[bytes, Place] = {}
        self.end = machine.KEPT
        self.reception = self.add(_reception(self.end), 3)
        fork = _Writer(self.end, 1)
        fork.step(0, abi.NR["clone"], [fork.word(abi.CLONE_PARENT)], forks=1)
        self.fork = self.add(fork, 1)
        report = _Writer(self.end, 1)
        report.write([(abi.NR["write"], (abi.CHANNEL_FD, EXEC, len(EXEC)), None, {}, 0, None)])
        self.report = self.add(report, 1)
        gate = _Writer(self.end, 2)
        wait: Any = abi.NR["read"], (abi.CHANNEL_FD, ("buffer", 1), 1), None, {}, 0, (b"s", errno.EPIPE)
        gate.write([(abi.NR["write"], (abi.CHANNEL_FD, HOOKS, len(HOOKS)), None, {}, 0, None), wait])
        self.gate = self.add(gate, 2)

    def add(self, writer: _Writer, steps: int) -> Place:
        """Put it where it is to stay. Raises OSError: there is no room."""
        end = self.end + (len(writer.data) + 63) // 64 * 64
        if end > _OWN:
            raise OSError(errno.E2BIG, "plan")
        ctypes.memmove(self.end, bytes(writer.data), len(writer.data))
        place = self.end, self.end + _STEP.size * steps, steps
        self.end = end
        return place

    def keep(self, data: bytes) -> Place:
        """Where that marshalled section is, which it is from now on. Raises OSError: there is no room."""
        place = self.places.get(data)
        if place is None:
            steps = marshal.loads(data)
            writer = _Writer(self.end, len(steps))
            writer.write(steps)
            place = self.places[data] = self.add(writer, len(steps))
        return place


def _reception(base: int) -> _Writer:
    """Receive the message of :func:`message`.

    What came with it has to be what was to come, and the process has to have
    what its frame relies on.
    """
    writer = _Writer(base, 3)
    wanted, mark = writer.put(bytes(_WANTED)), writer.put(bytes(_MARK.size))
    parts = [(machine.SLOTS, 8 * abi.CHANNEL), (machine.SLOTS + 8 * abi.GIVEN, 8 * abi.MOST_GIVEN)]
    parts += [(wanted, _WANTED), (mark, _MARK.size), (machine.FRAME, machine.FRAME_SIZE)]
    vector = writer.array([word for part in parts for word in part], {})  # of struct iovec
    # struct msghdr: no name, the vector, the control data, no flags.  The kernel changes the last two words, and the
    # control data behind them: so it is one comparison.
    header = base + len(writer.data)
    control = header + _MSGHDR
    writer.array([0, 0, vector, len(parts), control, abi.RIGHTS_SPACE, 0], {})
    writer.put(bytes(abi.RIGHTS_SPACE))
    arguments = [writer.word(abi.CHANNEL_FD), writer.word(header), writer.word(abi.MSG_CMSG_CLOEXEC)]
    writer.step(0, abi.NR["recvmsg"], arguments)
    # A call that changes nothing, for the comparison after it.
    came = control - 16, wanted, _WANTED
    writer.step(1, abi.NR["umask"], [writer.zero], compared=came, error=errno.EMFILE)
    writer.step(2, abi.NR["umask"], [writer.zero], compared=(_OWN, mark, _MARK.size), error=errno.ESTALE)
    return writer


#: At the end of what is kept: the mark of the next clone, and where its table begins; the rest of the table is what its
#: frame begins with.
_TABLE: int = machine.FRAME - 2 * _ROW.size
_OWN: int = _TABLE - _MARK.size

_kept = _Kept()


def mark() -> Mark:
    """What somebody has who is cloned now."""
    return _kept.generation, _kept.end


def make_room() -> None:
    """Forget what is kept, if there is little room.

    Neither this nor :func:`expect` comes between :func:`lay` and the clone: the mark would be another one.
    """
    if _kept.end > machine.KEPT + machine.KEPT_SIZE // 2:
        _kept.forget()


def expect(sections: list[bytes]) -> None:
    """Keep those that have come more than once, as far as there is room."""
    for data in sections:
        if hash(data) in _kept.seen and len(data) <= _MOST_KEPT:
            try:
                _kept.keep(data)
            except OSError:
                continue
    if len(_kept.seen) > _MOST_SEEN:
        _kept.seen.clear()
    _kept.seen.update(map(hash, sections))


def table(begin: bytes) -> int:
    """The address of the table for a clone that makes the steps of the section *begin*, and receives its request.

    Raises OSError: there is no room.
    """
    place = _kept.keep(begin)
    rows = _ROW.pack(*place[:2], 0) + _ROW.pack(*_kept.reception[:2], place[2])
    own = _MARK.pack(*mark()) + rows
    ctypes.memmove(_OWN, own, len(own))
    return _TABLE


def takes(request: Request) -> bool:
    """Whether there is a loop that can do all of it, and it is not too large, as far as can be seen at once."""
    _, _, programs = request.hooks or (-1, b"", {})
    if not machine.present() or request.fork == "init" or programs.keys() & {"createContainer", "startContainer"}:
        return False
    program = sum([len(text) + 9 for strings in request.program for text in strings])
    new = sum([len(data) for data in request.sections[1:] if data not in _kept.places])
    return program + 3 * new <= MOST  # laid out a section is almost three times as large


def lay(request: Request, has: Mark | None) -> Frame | None:
    """The frame for *request*; None if it is too large, or takes more than the loop can do.

    *has* is what its process has; None: it is to be cloned next.  The rows are
    what :func:`pycontainer_native.child.child` does:

    * its sections;
    * the fork, before the first section of the process that is born inside;
    * the wait for the hooks on the host, before the section that comes after them;
    * the report that the program is next, before the last section;
    * the program.
    """
    if not takes(request):
        return None
    waits = request.hooks[0] if request.hooks else -1
    begin, *sections = request.sections
    try:
        index = _kept.keep(begin)[2]
    except OSError:
        return None
    has = has or mark()
    generation, end = has
    frame = _Frame(len(sections) + bool(request.outside) + bool(request.hooks) + 2)
    places = []
    for data in sections:
        place = _kept.places.get(data)
        if place is None or generation != _kept.generation or place[0] >= end:
            place = frame.add(marshal.loads(data))
        places.append(place)
    total = index + sum([steps for _, _, steps in places])
    for number, place in enumerate(places):
        if number == request.outside and number:
            frame.row(_kept.fork, total + 1)
        if number == waits:
            frame.row(_kept.gate, index)
        if number == len(places) - 1:
            frame.row(_kept.report, index)
        frame.row(place, index)
        index += place[2]
    frame.row(frame.add_program(*request.program), total)
    data = frame.finish()
    return (data, has) if len(data) <= MOST else None


class _Frame:
    """The rest of a table, and what of its sections is not kept."""

    def __init__(self, rows: int) -> None:
        self.rows: list[bytes] = []
        self.data = bytearray((_ROW.size * rows + 63) // 64 * 64)

    def row(self, place: Place, index: int) -> None:
        """The next row of the table: a section, and the index of its first step."""
        self.rows.append(_ROW.pack(place[0], place[1], index))

    def add(self, steps: list[Any]) -> Place:
        """A section that is not kept, in its wire form."""
        writer = _Writer(machine.FRAME + len(self.data), len(steps))
        writer.write(steps)
        return self._add(writer, len(steps))

    def _add(self, writer: _Writer, steps: int) -> Place:
        self.data += writer.data
        self.data += bytes(-len(self.data) % 64)
        return writer.base, writer.base + _STEP.size * steps, steps

    def add_program(self, paths: list[bytes], argv: list[bytes], env: list[bytes]) -> Place:
        """The steps that try execve on each of *paths*, as execvp(3) does.

        EACCES is remembered while others are tried: behind the steps come the
        same ones for the paths that are left then, and in the end that error.
        """
        last = len(paths) - 1
        count = 2 * last + 2 if last else 1
        writer = _Writer(machine.FRAME + len(self.data), count)
        arguments = [writer.word(writer.array([*strings, 0], {})) for strings in (argv, env)]
        missing = [errno.ENOENT, 0, errno.ENOTDIR, 0]
        go_on, denied = (writer.array([*missing, errno.EACCES, skip, 0], {}) for skip in (last, 0))
        places = [writer.word(writer.put(path + b"\0")) for path in paths]
        number = abi.NR["execve"]
        for position, place in enumerate(places[:-1]):
            writer.step(position, number, [place, *arguments], accepted=go_on)
        writer.step(last, number, [places[-1], *arguments])
        if last:
            for position, place in enumerate(places[1:], last + 1):
                writer.step(position, number, [place, *arguments], accepted=denied)
            writer.step(2 * last + 1, -1, [], error=errno.EACCES)
        return self._add(writer, count)

    def finish(self) -> bytes:
        """What the frame is filled with."""
        rows = b"".join(self.rows)
        self.data[: len(rows)] = rows
        return bytes(self.data)


def message(frame: Frame, slots: list[int]) -> bytes:
    """What is sent with the descriptors that go into *slots*: those slots, what is to come with it, the *frame*."""
    length = 16 + 4 * len(slots)
    data = bytearray(_EMPTY)
    _CAME.pack_into(data, len(data) - _WANTED, (length + 7) // 8 * 8, abi.MSG_CMSG_CLOEXEC, length, *_RIGHTS)
    for number, slot in enumerate(slots):
        fd = (abi.FIRST_GIVEN_FD + number).to_bytes(4, "little")
        at = 8 * (slot if slot < abi.CHANNEL else abi.CHANNEL + slot - abi.GIVEN)
        data[at : at + 8] = fd + bytes(4)
        at = len(_EMPTY) - _WANTED + _CAME.size + 4 * number
        data[at : at + 4] = fd
    content, has = frame
    return bytes(data + _MARK.pack(*has) + content)
