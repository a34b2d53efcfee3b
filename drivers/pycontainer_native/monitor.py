"""The monitor of a detached container: a process that the launcher forks, and that outlives everybody else.

It is a launcher with one container, whose parent it is, cgroups of its own,
and no caller whose end would be its own.  Whoever may use the container's
state directory reaches it by the socket there, with the requests that a
launcher takes.  It writes the container's log, puts its end on record before
it tells anybody, and ends with it.

In the state directory, which it holds locked as long as it lives:

==============  ================================================================
config.json     what the maker knows: the Command, the cgroups, the ids of its
                user namespace (by the maker)
start.json      the program runs; its pid.  Without this it never has
exit.json       how it ended; ``finished`` is true when all of it is gone
*.room          what exit.json will need of the disk, which the log may fill
error.json      what has ended the monitor before its time, if it could tell
log, log.1 ...  what it printed, see :mod:`pycontainer.logs`
socket          where requests come in
==============  ================================================================
"""

from __future__ import annotations

import _signal as signal
import _socket as socket
import errno
import fcntl
import gc
import os
import sys
from time import gmtime, monotonic, strftime, time, time_ns

from pycontainer_native import abi
from pycontainer_native.child import send
from pycontainer_native.container import Container, StepFailed
from pycontainer_native.launcher import Launcher, last_words
from pycontainer_native.libc import libc, syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

#: How much is read from the container at once.
CHUNK = 1 << 15

#: What accept4(2) fails with while the connection waits on, and how long it is left alone then (seconds).
NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
PAUSE = 0.1

#: The files that keep room for the end's record, for when the container has ended and for when all of it is gone; and
#: how much (bytes).
RESERVED = ("end.room", "gone.room")
ROOM = 4096


class Log:
    """What the container prints, on its way to the files."""

    def __init__(self, directory: int, size: int, files: int) -> None:
        self.directory = directory
        self.size = size
        self.files = files
        self.followers: list[socket.socket] = []
        self.fd = -1
        self.written = 0
        self.second = -1
        self.stamp = b""
        self.fd = self.open("log")

    def open(self, name: str) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        return os.open(name, flags, 0o600, dir_fd=self.directory)

    def rotate(self) -> bool:
        """Begin another file, the oldest one goes; false: not now, which is no reason to stop the container either."""
        try:
            new = self.open("new")  # under a name that nobody takes for one of the log
        except OSError:
            return False
        try:
            for number in range(self.files - 1, 0, -1):
                try:
                    self.rename(f"log.{number - 1}" if number > 1 else "log", f"log.{number}")
                except FileNotFoundError:
                    pass
            # Of one file alone there is a new one as well: who reads the old one knows it by its inode.
            self.rename("new", "log")
        except OSError:
            os.close(new)
            return False
        os.close(self.fd)
        self.fd, self.written = new, 0
        return True

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new, src_dir_fd=self.directory, dst_dir_fd=self.directory)

    def write(self, stream: bytes, data: bytes) -> None:
        """Append *data*, a record for each line."""
        second, fraction = divmod(time_ns(), 10**9)
        if second != self.second:
            self.second, self.stamp = second, strftime("%Y-%m-%dT%H:%M:%S", gmtime(second)).encode()
        prefix = b"%b.%09dZ %b " % (self.stamp, fraction, stream)
        lines = data.split(b"\n")
        records = [b"%bF %b\n" % (prefix, line) for line in lines[:-1]]
        if lines[-1]:
            records.append(b"%bP %b\n" % (prefix, lines[-1]))
        batch: list[bytes] = []
        length = 0
        for record in records:
            if length and self.written + length + len(record) > self.size:
                self.append(b"".join(batch))
                batch, length = [], 0
            full = self.written + length and self.written + length + len(record) > self.size
            if full and not self.rotate():
                break
            batch.append(record)
            length += len(record)
        self.append(b"".join(batch))
        for follower in self.followers:
            try:
                follower.send(b"w", abi.MSG_DONTWAIT | abi.MSG_NOSIGNAL)
            except OSError:
                pass  # it has not looked at those before yet; or it has left, which its own end-of-file tells

    def append(self, data: bytes) -> None:
        """Write, or not at all: a full disk is no reason to stop the container, nor for half a record."""
        try:
            count = os.write(self.fd, data)
        except OSError:
            count = 0
        if count < len(data):
            try:
                os.ftruncate(self.fd, self.written)
            except OSError:
                self.written += count
        else:
            self.written += count


class DetachedContainer(Container):
    """The monitor's one container."""

    launcher: Monitor

    def __init__(self, launcher: Monitor, name: str) -> None:
        super().__init__(launcher, name)
        self.watchers: list[socket.socket] = []
        self.ended = 0.0  # when it did; it is on record then

    def _tell_up(self, kind: str) -> None:
        """Put on record that it runs, and only then say so."""
        if self.terminal >= 0:
            self.launcher.read_output(self.terminal, b"stdout")
            self.terminal = -1
        try:
            self.launcher.reserve()
            begun = began(self.pid)
            text = f'{{"pid": {self.pid}, "began": {begun}, "started": {time():.6f}}}'
            self.launcher.record("start.json", text)
        except OSError as error:
            self.failed = ("record the start", error.errno or errno.EIO)
            self.kill()
            return
        super()._tell_up(kind)

    def on_status(self) -> None:
        """Until it runs, it ends with whoever starts it."""
        if not self.started:
            super().on_status()
        elif self.status is not None:
            self.launcher.drop(self.status)
            self.status = None

    def add_watcher(self, status: socket.socket) -> None:
        """One more who is told what happens from now on, and first of all that it runs."""
        self.watchers.append(status)

        def drop() -> None:
            self.watchers.remove(status)
            self.launcher.drop(status)

        self.launcher.watch(status.fileno(), drop)
        if self.started:
            self.send_to([status], "started", fds=[self.pidfd])

    def finish(self) -> None:
        """Put the end on record before anything else happens, and again when all of it is gone."""
        if self.started and not self.ended:
            self.ended = time()
            self.record_exit(finished=False)
        super().finish()

    def tell(self, *message: str | int | None, fds: list[int] | None = None) -> int:
        if message[0] == "exited":
            self.launcher.drain()
            note = self.record_exit(finished=True, note=str(message[4]))
            message = (*message[:4], note)
        failed = super().tell(*message, fds=fds)
        self.send_to(self.watchers, *message, fds=fds)
        return failed

    def record_exit(self, finished: bool, note: str = "") -> str:
        """*note*, or what kept the end from being put on record."""
        assert self.exit is not None
        code, signal = ("null" if value is None else value for value in self.exit)
        text = f'{{"exit_code": {code}, "signal": {signal}, "oom_kills": {self.oom_kills}, "ended": {self.ended:.6f}'
        try:
            text += f', "finished": {str(finished).lower()}, "note": '
            room = ROOM - len(text) - len(quoted("")) - 1
            kept = quoted(note) if len(quoted(note)) <= room else quoted(f"{note[: room // 12]}...")
            self.launcher.record("exit.json", f"{text}{kept}}}", RESERVED[finished])
        except OSError as error:
            return f"its end could not be put on record: {error}"
        return note

    def close(self) -> None:
        super().close()
        for watcher in self.watchers:
            self.launcher.drop(watcher)
        self.launcher.running = False


class Monitor(Launcher):
    """The event loop of one detached container."""

    container_type = DetachedContainer
    clones_ahead = False

    def __init__(self, parent: Launcher, arguments: tuple[str, int, int], fds: list[int]) -> None:
        token, size, files = arguments
        connection, listener, self.state, *outputs = fds
        super().__init__(token)
        self.parent = parent  # whose objects must stay: they would close descriptors that have become others'
        self.log = Log(self.state, size, files)
        self.outputs: dict[int, bytes] = {}
        for number, fd in enumerate(outputs):
            self.read_output(fd, (b"stdout", b"stderr")[number])
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, listener)
        self.listener.setblocking(False)
        self.serve_maker(connection)

    # -- requests

    def on_connection(self) -> None:
        """Somebody connects. Only root gets as far as the socket; that it is our user is looked at all the same."""
        try:
            fd, _ = self.listener._accept()  # type: ignore[attr-defined] # what socket.socket.accept() calls
        except OSError as error:
            if error.errno in NO_DESCRIPTOR:  # it stays readable
                self.forget(self.listener.fileno())
                self.deadlines[self.listen] = monotonic() + PAUSE
            return
        os.set_inheritable(fd, False)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fd)
        peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)  # struct ucred: pid, uid, gid
        if int.from_bytes(peer[4:8], sys.byteorder) not in (0, os.geteuid()):
            connection.close()
            return

        def on_request() -> None:
            if not self.on_request(connection):
                self.drop(connection)

        self.watch(fd, on_request)

    def serve_maker(self, fd: int) -> None:
        """Take the maker's request, and only then those of others: until then there is nothing to ask for."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fd)

        def on_request() -> None:
            if not self.on_request(connection):
                self.drop(connection)
                if not self.containers:  # it left before it has asked for anything, or nothing came of that
                    self.running = False
            elif self.containers:
                self.listen()

        self.watch(fd, on_request)

    def listen(self) -> None:
        """From now on, let others in."""
        if self.listener.fileno() not in self.handlers:
            self.watch(self.listener.fileno(), self.on_connection)

    def drop(self, end: socket.socket) -> None:
        """Forget and close it."""
        self.forget(end.fileno())
        end.close()

    def serve_other(self, verb: str, arguments: tuple[Any, ...], fds: list[int], status: socket.socket) -> None:
        """The requests that only a monitor takes: to be told of the end, and of output."""
        main = next((c for c in self.containers if isinstance(c, DetachedContainer)), None)
        if main is None:
            raise StepFailed("find the container", errno.ESRCH)
        if verb == "attach":
            main.add_watcher(status)
        elif verb == "follow":
            self.log.followers.append(status)
            send(status.fileno(), b"w")  # for what was written since it asked

            def drop() -> None:
                self.log.followers.remove(status)
                self.drop(status)

            self.watch(status.fileno(), drop)
        else:
            raise StepFailed("read the request", errno.EPROTO)

    # -- the log

    def read_output(self, fd: int, stream: bytes) -> None:
        """From now on, what comes from *fd* goes to the log."""
        os.set_blocking(fd, False)
        self.outputs[fd] = stream

        def on_output() -> None:
            self.on_output(fd)

        self.watch(fd, on_output)

    def on_output(self, fd: int) -> int:
        """How much came."""
        try:
            data = os.read(fd, CHUNK)
        except BlockingIOError:
            return 0
        except OSError:  # EIO: nobody has the terminal open any more
            data = b""
        if data:
            self.log.write(self.outputs[fd], data)
        else:
            self.forget(fd)
            os.close(fd)
            del self.outputs[fd]
        return len(data)

    def drain(self) -> None:
        """The container has ended: log what is still in its pipes, but no flood of somebody outside who got one."""
        for fd in list(self.outputs):
            try:
                left = fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
            except OSError:
                left = 1 << 17  # a terminal: TTYB_DEFAULT_MEM_LIMIT, and one line
            while left > 0 and (count := self.on_output(fd)):
                left -= count

    # -- the record

    def reserve(self) -> None:
        """Take the room that the record of the end will need: what it prints may fill the disk. Raises OSError."""
        for name in RESERVED:
            fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=self.state)
            try:
                left = ROOM
                while left:
                    left -= os.write(fd, b" " * left)
            except OSError as error:
                if error.errno != errno.EFBIG:  # its maker's RLIMIT_FSIZE, which is no matter of room
                    raise
            finally:
                os.close(fd)

    def record(self, name: str, text: str, reserved: str = "") -> None:
        """Write the file *name* of the state directory, as a whole or not at all. Raises OSError.

        *reserved* is a file that has the room for it.
        """
        temporary = reserved or f"{name}.new"
        # What is there is written over before it is cut off: other writers would take the room that is given back.
        truncate = 0 if reserved else os.O_TRUNC
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | truncate | os.O_CLOEXEC, 0o600, dir_fd=self.state)
        try:
            if os.write(fd, text.encode()) < len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if reserved:
                os.ftruncate(fd, len(text))
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, name, src_dir_fd=self.state, dst_dir_fd=self.state)
        os.fsync(self.state)


def began(pid: int) -> int | str:
    """When that process was begun, in clock ticks since boot, which with its pid names it for good; else null."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return "null"
    try:
        return int(os.read(fd, 4096).rpartition(b")")[2].split()[19])  # starttime, the 22nd (proc_pid_stat(5))
    except (OSError, IndexError):
        return "null"  # it has ended meanwhile
    finally:
        os.close(fd)


def quoted(text: str) -> str:
    """*text* as JSON has it; the module for that would take more memory than all the rest here."""
    plain = []
    for character in text:
        n = ord(character)
        if 32 <= n < 127 and character not in '"\\':
            plain.append(character)
        elif n < 0x10000:
            plain.append(f"\\u{n:04x}")
        else:
            plain.append(f"\\u{0xD7C0 + (n >> 10):04x}\\u{0xDC00 + (n & 0x3FF):04x}")
    return f'"{"".join(plain)}"'


def become_monitor(launcher: Launcher, arguments: tuple[str, int, int], fds: list[int]) -> NoReturn:
    """In the process that *launcher* has forked: let go of all that is the launcher's, and be a monitor to the end."""
    try:
        low = 3
        for fd in sorted(fds):
            if fd > low:
                syscall(abi.NR["close_range"], low, fd - 1, 0)
            low = fd + 1
        syscall(abi.NR["close_range"], low, 0xFFFFFFFF, 0)
        os.setsid()
        libc.prctl(abi.PR_SET_NAME, b"monitor", 0, 0, 0)
        # At RLIMIT_FSIZE, which is of the maker's launcher, a write is to fail. A handler, since execve undoes it:
        # a signal that is ignored stays so in the container.
        signal.signal(signal.SIGXFSZ, lambda number, frame: None)
        gc.freeze()  # what is shared with the launcher stays so: a collection would write to every object
        monitor = Monitor(launcher, arguments, fds)
        try:
            monitor.run()
        except BaseException as error:
            monitor.record("error.json", f'{{"words": {quoted(last_words(error))}}}')
            raise
        finally:
            monitor.close()
    finally:
        os._exit(0)
