"""What runs in a container's first process, from the clone to execve, where that takes Python.

The process is a copy of the launcher that never returns: it makes the calls of
its plan's first section, waits for the rest of the plan, makes those, and
becomes the payload.  It may be cloned ahead of the request that it serves.

Where there is machine code for this (:mod:`pycontainer_native.machine`), that
is for what machine code cannot do: an init, hooks inside, a request that is too
large.  It is also what the other has to do, step by step.

The launcher binds a plan's plain data to ctypes arguments before the clone, so
that hardly any of its memory has to be copied here.
"""

from __future__ import annotations

import _signal as signal
import _socket as socket
import ctypes
import errno
import marshal
import os
import sys

from pycontainer_native import abi, machine
from pycontainer_native.libc import libc, syscall
from pycontainer_native.request import Request

TYPE_CHECKING = False  # typing would double the time that the launcher takes to start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn, TypeAlias

    Store: TypeAlias = Callable[[int], Any]
    Cells: TypeAlias = dict[int, list[tuple[Any, int]]]
    #: number and arguments, what to do with the result, accepted errnos, steps to skip after success
    Bound: TypeAlias = tuple[tuple[Any, ...], Store | None, dict[int, int], int]

# Messages on the channel, to the launcher.
EXEC = b"x"  # everything is done, execve is next
GATE = b"g"  # waits for one byte
FORKED = b"p"  # another process goes on: its pid, four bytes
TERMINAL = b"t"  # carries the pseudo-terminal's master
FAILED = b"f"  # step and errno, four bytes each
HOOKS = b"h"  # it is time for the hooks outside; waits for one byte
HOOK_FAILED = b"k"  # errno, four bytes, and in words which and how
LISTENER = b"l"  # seven zeros, and the number of its filter's listener, eight bytes; waits for one byte

#: In place of a request: it is in a memfd, which is the last descriptor of the message.
MEMFD = b"memfd"

slots = [ctypes.c_long.from_address(machine.SLOTS + 8 * number) for number in range(abi.SLOTS)]
ctypes.memset(machine.SLOTS, 0xFF, 8 * abi.SLOTS)  # each is -1
#: Arrays of so many words: making a type takes longer than making the array.
_ARRAYS = [ctypes.c_long * length for length in range(48)]

_constants: dict[int, ctypes.c_long] = {}
_sections: dict[bytes, list[Bound]] = {}


# -- binding: plain data to ready ctypes arguments ----------------------------------------------


def bind(section: bytes) -> list[Bound]:
    """The ready steps of a marshalled *section*, from a small cache when it was seen before.

    The cache is sound because a bound step is never changed here: slots are
    written by the child, in its own copy of this memory, and the few that the
    launcher fills are filled again before every clone.
    """
    bound = _sections.get(section)
    if bound is None:
        if len(_sections) >= 64:
            _sections.clear()
        if len(_constants) >= 4096:
            _constants.clear()
        steps = marshal.loads(section)
        cells: Cells = {}
        calls = [tuple([_ready(argument, cells) for argument in (step[0], *step[1])]) for step in steps]
        bound = _sections[section] = [
            (call, _store(call, out, check, cells), accept, skip)
            for call, (_, _, out, accept, skip, check) in zip(calls, steps, strict=True)
        ]
    return bound


def _ready(argument: Any, cells: Cells) -> Any:
    """One argument as ctypes takes it: a plain int would be passed as a 32-bit one."""
    if isinstance(argument, int):
        constant = _constants.get(argument)
        if constant is None:
            constant = _constants[argument] = ctypes.c_long(argument)
        return constant
    if isinstance(argument, bytes):
        return argument
    if isinstance(argument, list):
        return words(argument, cells)
    if len(argument) == 1:
        return slots[argument[0]]
    return ctypes.create_string_buffer(argument[1])


def words(items: list[Any], cells: Cells) -> Any:
    """An array of 64-bit words: numbers, the values of slots, and pointers to everything else."""
    length = len(items)
    array = (_ARRAYS[length] if length < len(_ARRAYS) else ctypes.c_long * length)()
    array.targets = targets = []  # type: ignore[attr-defined] # a number in an array owns nothing
    for index, item in enumerate(items):
        if isinstance(item, int):
            array[index] = item
        elif isinstance(item, tuple):
            cells.setdefault(item[0], []).append((array, index))
        else:
            if isinstance(item, bytes):
                target = ctypes.c_char_p(item)
                array[index] = ctypes.c_long.from_buffer(target).value  # the pointer that it is
            else:
                target = words(item, cells)
                array[index] = ctypes.addressof(target)
            targets.append(target)
    return array


def _store(call: tuple[Any, ...], out: int | None, check: tuple[bytes, int] | None, cells: Cells) -> Store | None:
    """What to do with a step's result: nothing, keep it in its slot, or look at what was written."""
    if check is not None:
        wanted, error = check
        buffer = next(argument for argument in call if isinstance(argument, ctypes.Array))
        return lambda result: None if buffer.raw.startswith(wanted) else error
    if out is None:
        return None
    if out not in cells:
        return slots[out].__init__  # type: ignore[misc,no-any-return] # sets the value without a Python frame

    def spread(result: int) -> None:
        slots[out].value = result
        for array, index in cells[out]:
            array[index] = result

    return spread


# -- the child's life -----------------------------------------------------------------------------


class StepError(Exception):
    """The step of that index failed with that errno."""

    def __init__(self, index: int, error: int) -> None:
        self.index = index
        self.errno = error


def run_steps(sections: list[list[Bound]], base: int) -> int:
    """Make the calls, the first of which has the index *base*; the index after the last. Raises StepError.

    Nothing is imported, looked up by name or formatted here: from some step on
    the root file system is the container's.
    """
    for steps in sections:
        at, end, tries = 0, len(steps), 0
        while at < end:
            call, store, accept, skip = steps[at]
            result = syscall(*call)
            if result == -1:
                error = ctypes.get_errno()
                skipped = accept.get(error)
                if skipped == abi.RETRY and tries < abi.RETRIES:
                    tries += 1
                    continue
                if skipped is None or skipped == abi.RETRY:
                    raise StepError(base + at, error)
                skip = skipped
            elif store is not None:
                wrong = store(result)
                if wrong:
                    raise StepError(base + at, wrong)
            at, tries = at + 1 + skip, 0
        base += end
    return base


def execute(paths: list[bytes], argv: Any, env: Any) -> int:
    """Try execve on each of *paths*, as execvp(3) does: EACCES is remembered while others are tried."""
    denied = 0
    error = errno.ENOENT
    for path in paths:
        syscall(abi.NR["execve"], path, argv, env)
        error = ctypes.get_errno()
        if error == errno.EACCES:
            denied = error
        elif error not in (errno.ENOENT, errno.ENOTDIR):
            return error
    return denied or error


def send(fd: int, message: bytes) -> None:
    """Send on a socket that may be closed at the other end."""
    syscall(abi.NR["sendto"], fd, message, len(message), abi.MSG_NOSIGNAL, 0, 0)


def fail(index: int, error: int) -> NoReturn:
    """Report a failed step to the launcher, and end."""
    # The first step is what makes CHANNEL_FD the channel: until then that number is the launcher's own socket.
    report(FAILED + index.to_bytes(4, "little") + error.to_bytes(4, "little"), slots[abi.CHANNEL].value)
    os._exit(1)


def report(message: bytes, channel: int = abi.CHANNEL_FD) -> None:
    """Tell the launcher, by a call that a seccomp filter will hardly forbid: one is loaded by now."""
    syscall(abi.NR["write"], channel, message, len(message))


def clone(arguments: Any, begin: list[Bound]) -> int:
    """Clone, with the struct clone_args *arguments*, who lives as :func:`child`; the pid. Raises OSError."""
    pid: int = syscall(abi.NR["clone3"], arguments, machine.CLONE_ARGS)
    if pid == 0:
        child(begin)
    if pid == -1:
        raise OSError(ctypes.get_errno(), "clone3")
    return pid


def child(begin: list[Bound]) -> NoReturn:
    """The whole life of a container's first process until it is the payload."""
    index, error = 0, errno.EPROTO  # what a defect here is reported as
    try:
        run_steps([begin], 0)
        index = len(begin)
        request, fds = receive(abi.CHANNEL_FD)
        paths, argv, env = request.program
        outside = request.outside
        fill(request, fds)
        rest = [bind(section) for section in request.sections[1:]]
        arguments, environment = words([*argv, 0], {}), words([*env, 0], {})  # memory first, the filter later
        total = index + sum(map(len, rest))
        if outside:
            after = run_steps(rest[:outside], index)
            index = total + 1
            fork_into_pid_namespace()
            index = after
        if request.hooks:
            gate, state, programs = request.hooks
            index = run_steps(rest[outside:gate], index)
            wait_for_hooks()
            run_hooks("createContainer", programs, state, "creating", [])
            outside = gate
        # The last section is for whoever executes the program.
        index = run_steps(rest[outside:-1], index)
        if request.hooks:
            # Their programs are the container's: the filter is for them as well, and is loaded here later.
            run_hooks("startContainer", programs, state, "created", rest[-1])
        if request.fork == "init":
            index = total + 1
            become_init(rest[-1], total - len(rest[-1]))
            index = total - len(rest[-1])
        report(EXEC)  # before the filter, which may forbid it; what fails from here on is reported all the same
        run_steps(rest[-1:], index)
        index = total
        error = execute(paths, arguments, environment)
    except StepError as failed:
        index, error = failed.index, failed.errno
    except OSError as failed:
        error = failed.errno or error
    finally:
        fail(index, error)


def wait_for_hooks() -> None:
    """Until the launcher has run those on the host; if one of them fails, this process ends here."""
    report(HOOKS)
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, abi.CHANNEL_FD)
    if not channel.recv(1):
        os._exit(0)
    channel.detach()


def run_hooks(point: str, programs: dict[str, Any], state: bytes, status: str, confinement: list[Bound]) -> None:
    """Run the hooks of *point* here, under *confinement*; if one of them fails, tell the launcher, and end."""
    if point not in programs:
        return
    from pycontainer_native import hooks  # as the launcher has it: nothing is looked up any more

    try:
        hooks.run(point, programs[point], hooks.state_of(state, status, os.getpid()), confinement)
    except hooks.HookError as error:
        report(HOOK_FAILED + error.errno.to_bytes(4, "little") + error.text.encode("utf-8", "replace"))
        os._exit(1)


def fork_into_pid_namespace() -> None:
    """Clone the process that is to be seen in the container, as a child of the launcher; only it returns.

    The launcher is told its pid alone: a descriptor could not be sent any more,
    by a user who has as many on their way as he may have open (unix(7)).
    """
    pid = syscall(abi.NR["clone"], abi.CLONE_PARENT, 0, 0, 0, 0)
    if pid == -1:
        raise OSError(ctypes.get_errno(), "clone")
    if pid:
        report(FORKED + pid.to_bytes(4, "little"))
        os._exit(0)


def receive(fd: int) -> tuple[Request, list[int]]:
    """Wait for the request and its descriptors. The launcher's end closing means that there will be none."""
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fd)
    message, control, flags, _ = channel.recvmsg(1 << 16, abi.RIGHTS_SPACE, abi.MSG_CMSG_CLOEXEC)
    channel.detach()
    if not message:
        os._exit(0)
    if flags & socket.MSG_CTRUNC:
        raise OSError(errno.EMFILE, "recvmsg")
    fds = descriptors(control)
    return Request(*unpack(message, fds[-1])), fds


def fill(request: Request, fds: list[int]) -> None:
    """Put a request's descriptors into their slots."""
    for slot, fd in zip(slots_of(request, len(fds)), fds, strict=True):
        slots[slot].value = fd


def slots_of(request: Request, count: int) -> list[int]:
    """The slots of so many descriptors of *request*: stdio, those that the launcher adds, the caller's own."""
    added = abi.EXTRA + {"init": 1, "join": 2}.get(request.fork, 0)
    return [number if number < added else abi.GIVEN + number - added for number in range(count)]


def unpack(message: bytes, last_fd: int) -> Any:
    """A request's data: in the message, or in a memfd, which is the last descriptor that came with it."""
    if message == MEMFD:
        message = os.pread(last_fd, os.fstat(last_fd).st_size, 0)
    return marshal.loads(message)


def descriptors(control: list[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors of a message's control data."""
    data = b"".join(data for _, _, data in control)
    return [int.from_bytes(data[i : i + 4], sys.byteorder) for i in range(0, len(data) - 3, 4)]


def become_init(last: list[Bound], base: int) -> None:
    """Fork: the parent becomes the container's init, only the child returns, to become the payload.

    As PID 1 it reaps orphans and passes signals on; a payload that is PID 1
    itself would ignore those it has no handler for (pid_namespaces(7)).  The
    payload gets a process group of its own, in the foreground of the terminal
    if there is one.  Its wait status is written to a pipe: an exit code could
    not tell a signal.
    """
    every = signal.valid_signals()
    signal.pthread_sigmask(signal.SIG_BLOCK, every)
    payload = syscall(abi.NR["clone"], signal.SIGCHLD, 0, 0, 0, 0)
    if payload == -1:
        raise OSError(ctypes.get_errno(), "clone")
    if payload == 0:
        os.setpgid(0, 0)
        try:
            os.tcsetpgrp(0, os.getpid())  # SIGTTOU, which this raises, is still blocked
        except OSError:
            pass  # no terminal, or not this session's
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        return
    try:
        libc.prctl(abi.PR_SET_NAME, b"init", 0, 0, 0)
        # Holding the payload's stdio would keep its pipes open, and what the set-up has opened leads to the host: with
        # CAP_SYS_PTRACE the payload could follow it in /proc/1/fd.
        for fd in (0, 1, 2):
            os.close(fd)
        syscall(abi.NR["close_range"], abi.REPORT_FD + 1, ctypes.c_long(0xFFFFFFFF), 0)
        run_steps([last], base)
        os.close(abi.CHANNEL_FD)  # now this is as confined as the payload, whose execve it would hide from now on
        while True:
            number = signal.sigwaitinfo(every).si_signo
            if number != signal.SIGCHLD:
                if number not in (signal.SIGTTIN, signal.SIGTTOU, signal.SIGTSTP):
                    _signal_quietly(payload, number)
                continue
            while True:
                try:
                    pid, status = os.waitpid(-1, os.WNOHANG)
                except ChildProcessError:
                    break
                if pid == 0:
                    break
                if pid == payload:
                    os.write(abi.REPORT_FD, status.to_bytes(4, "little"))
                    os._exit(0)
    except StepError as failed:
        fail(failed.index, failed.errno)
    finally:
        os._exit(1)


def _signal_quietly(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except OSError:
        pass  # it has changed to a user that this init may not signal, as with any init
