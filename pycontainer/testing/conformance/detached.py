"""Area: containers that outlive whoever made them."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal as signals
import time
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from pycontainer import (
    AlreadyExistsError,
    Container,
    ContainerError,
    ContainerNotFoundError,
    Feature,
    LogLimits,
    LogRecord,
    NotRunningError,
    SetupError,
    State,
    containers,
    gc,
    get,
)
from pycontainer.testing.conformance.base import TIMEOUT, Area, eventually, is_alive, needs

__all__ = ["Restore"]


def printed(records: Iterable[LogRecord], stream: str = "stdout") -> bytes:
    """What came out of one stream."""
    return b"".join(record.data for record in records if record.stream == stream)


def unique() -> str:
    """An id that no other run of the kit on this host has."""
    return f"kit-{os.urandom(6).hex()}"


class Restore(Area):
    """Detached containers: found by their id, with their log and their true end, by whoever asks."""

    def detach(self, argv: list[str], **keywords: Any) -> Container:
        """A detached container that is removed after the test."""
        keywords.setdefault("rootfs", self.root)
        box = Container(argv, driver=self.tested, detach=True, **keywords)
        self.stack.callback(self.remove, box.id)
        return box

    def detach_ready(self, argv: list[str], **keywords: Any) -> Container:
        """A detached container whose payload has printed ``ready``."""
        box = self.detach(argv, **keywords)
        assert eventually(lambda: b"ready" in printed(box.logs())), "the payload did not say that it is ready"
        return box

    def remove(self, id: str) -> None:
        with contextlib.suppress(ContainerNotFoundError):
            get(id, self.tested).remove(force=True)

    def ids(self) -> list[str]:
        return [info.id for info in containers(self.tested)]

    @needs(Feature.RESTORE)
    def test_it_goes_on_without_its_object(self) -> None:
        box = self.detach(self.payload.sleep())
        pid = box.pid
        box.close()
        info = self.tested.info(box.id)
        assert (info.state, info.pid) == (State.RUNNING, pid)
        with pytest.raises(ContainerError):
            box.poll()
        box.restore()
        assert (box.pid, box.poll()) == (pid, None)

    @needs(Feature.RESTORE)
    def test_it_is_found_by_its_id(self) -> None:
        box = self.detach(self.payload.sleep(), hostname="found")
        again = get(box.id, self.tested)
        assert (again.id, again.pid, again.args, again.detached) == (box.id, box.pid, box.args, True)
        [info] = [info for info in containers(self.tested) if info.id == box.id]
        assert info.command is not None
        assert info.command.hostname == "found"
        assert (info.state, info.pid, info.status, info.ended) == (State.RUNNING, box.pid, None, None)
        assert info.created is not None
        assert abs(time.time() - info.created) < 10 * TIMEOUT

    @needs(Feature.RESTORE)
    def test_everybody_is_told_the_true_end(self) -> None:
        box = self.detach(self.payload.say(code=7))
        others = [get(box.id, self.tested) for _ in range(2)]
        assert [each.wait(TIMEOUT) for each in (box, *others)] == [7, 7, 7]
        assert [each.state for each in (box, *others)] == [State.STOPPED] * 3

    @needs(Feature.RESTORE)
    def test_also_those_who_come_later(self) -> None:
        box = self.detach(self.payload.say(code=9))
        box.close()
        assert eventually(lambda: self.state(box.id) is State.STOPPED)
        for _ in range(2):
            later = get(box.id, self.tested)
            assert (later.wait(TIMEOUT), later.poll()) == (9, 9)
        info = self.tested.info(box.id)
        assert info.status is not None
        assert (info.status.exit_code, info.pid) == (9, None)
        assert info.created is not None
        assert info.ended is not None
        assert info.created <= info.ended

    @needs(Feature.RESTORE)
    def test_its_descriptor_tells_of_the_end(self) -> None:
        name = unique()
        self.detach(self.payload.sleep(), name=name)
        process = self.tested.restore(name)
        self.stack.callback(process.close)
        poll = select.poll()
        poll.register(process.fileno(), select.POLLIN)
        while poll.poll(0) and process.poll() is None:
            pass
        self.tested.terminate(name)
        deadline = time.monotonic() + TIMEOUT
        while process.poll() is None:
            assert time.monotonic() < deadline
            assert poll.poll(TIMEOUT * 1000), "fileno() is not readable although it ended"
        status = process.poll()
        assert status is not None
        assert status.signal == signals.SIGKILL

    @needs(Feature.RESTORE)
    def test_the_log_has_every_byte(self) -> None:
        text = "".join(f"line {number}\n" for number in range(3000)) + "\x01\t the last one"
        box = self.detach(self.payload.say(text, "errors\n\nmore"))
        box.wait(TIMEOUT)
        records = list(box.logs())
        assert printed(records) == text.encode()
        assert printed(records, "stderr") == b"errors\n\nmore"
        assert all(record.data.find(b"\n") in (-1, len(record.data) - 1) for record in records)
        times = [record.time for record in records]
        assert times == sorted(times)
        assert abs(times[-1] - time.time()) < 10 * TIMEOUT

    @needs(Feature.RESTORE)
    def test_the_last_lines_of_a_log(self) -> None:
        box = self.detach(self.payload.say("one\ntwo\nthree\nfour\n"))
        box.wait(TIMEOUT)
        assert printed(box.logs(tail=2)) == b"three\nfour\n"
        assert printed(box.logs(tail=0)) == b""
        assert printed(box.logs(tail=100)) == b"one\ntwo\nthree\nfour\n"

    @needs(Feature.RESTORE)
    def test_following_a_log_ends_with_the_container(self) -> None:
        box = self.detach_ready(self.payload.trap(signals.SIGTERM, 4))
        following = box.logs(follow=True)
        assert printed(self.until(following, b"ready")).startswith(b"ready")
        box.terminate()
        assert list(following) == []
        assert box.wait(TIMEOUT) == 4
        assert printed(box.logs(follow=True)) == b"ready\n"

    def until(self, records: Iterator[LogRecord], wanted: bytes) -> list[LogRecord]:
        found: list[LogRecord] = []
        while not printed(found).endswith(wanted + b"\n"):
            found.append(next(records))
        return found

    @needs(Feature.RESTORE)
    def test_a_log_has_a_limit(self) -> None:
        text = "".join(f"line {number:05}\n" for number in range(4000))
        box = self.detach(self.payload.say(text), log_limits=LogLimits(size=8192, files=2))
        box.wait(TIMEOUT)
        kept = printed(box.logs())
        assert text.encode().endswith(kept)
        assert 0 < len(kept) < len(text) // 2

    @needs(Feature.RESTORE)
    def test_its_id_is_free_when_it_is_removed(self) -> None:
        name = unique()
        first = self.detach(self.payload.sleep(), name=name)
        with pytest.raises(AlreadyExistsError):
            self.detach(self.payload.sleep(), name=name)
        assert first.poll() is None
        first.kill()
        first.wait(TIMEOUT)
        with pytest.raises(AlreadyExistsError):
            self.detach(self.payload.sleep(), name=name)
        assert first.returncode == -signals.SIGKILL
        first.remove()
        assert name not in self.ids()
        assert self.detach(self.payload.say(code=2), name=name).wait(TIMEOUT) == 2

    @needs(Feature.RESTORE)
    def test_a_running_one_is_not_removed(self) -> None:
        box = self.detach(self.payload.sleep())
        with pytest.raises(ContainerError):
            box.remove()
        with pytest.raises(ContainerError):
            self.tested.delete(box.id)
        assert box.poll() is None
        assert box.id in self.ids()
        box.remove(force=True)
        assert box.id not in self.ids()

    @needs(Feature.RESTORE)
    def test_one_that_is_not_there(self) -> None:
        for verb in (
            lambda: get("kit-nobody", self.tested),
            lambda: self.tested.restore("kit-nobody"),
            lambda: self.tested.delete("kit-nobody"),
            lambda: self.tested.logs("kit-nobody"),
        ):
            with pytest.raises(ContainerNotFoundError):
                verb()
        assert self.tested.info("kit-nobody").command is None

    @needs(Feature.RESTORE)
    def test_one_that_does_not_start_is_not_there(self) -> None:
        name = unique()
        with pytest.raises(SetupError) as caught:
            self.detach([self.payload.missing], name=name)
        assert (caught.value.step, caught.value.errno) == ("execve", errno.ENOENT)
        assert name not in self.ids()
        assert self.detach(self.payload.say(), name=name).wait(TIMEOUT) == 0

    @needs(Feature.RESTORE)
    def test_who_is_attached_can_signal_it(self) -> None:
        box = self.detach_ready(self.payload.trap(signals.SIGTERM, 5))
        again = get(box.id, self.tested)
        assert again.pid in again.pids()
        assert again.stop(TIMEOUT) == 5
        assert box.wait(TIMEOUT) == 5
        again.terminate()  # nothing, as there is nobody
        with pytest.raises(NotRunningError):
            again.pids()

    @needs(Feature.RESTORE, Feature.EXEC)
    def test_who_is_attached_can_exec(self) -> None:
        box = self.detach(self.payload.sleep())
        done = get(box.id, self.tested).exec(self.payload.say("out", "err", 3), capture_output=True)
        assert (done.stdout, done.stderr, done.returncode) == (b"out", b"err", 3)
        assert box.poll() is None

    @needs(Feature.RESTORE, Feature.PAUSE)
    def test_a_pause_is_seen_by_all(self) -> None:
        box = self.detach(self.payload.sleep())
        again = get(box.id, self.tested)
        again.pause()
        assert (box.state, again.state, self.state(box.id)) == (State.PAUSED,) * 3
        assert get(box.id, self.tested).state is State.PAUSED
        box.unpause()
        assert again.state is State.RUNNING

    @needs(Feature.RESTORE, Feature.TTY)
    def test_a_terminal_is_in_the_log(self) -> None:
        box = self.detach(self.payload.is_terminal(), tty=True)
        box.wait(TIMEOUT)
        attached = self.run(self.payload.is_terminal(), tty=True, stdout=-1, text=False)
        assert printed(box.logs()) == attached.stdout

    @needs(Feature.RESTORE)
    def test_the_garbage_collector_leaves_it_alone(self) -> None:
        running, ended = self.detach(self.payload.sleep()), self.detach(self.payload.say("here", code=6))
        ended.wait(TIMEOUT)
        ended.close()
        gc(self.tested)
        assert running.poll() is None
        again = get(ended.id, self.tested)
        assert (again.wait(TIMEOUT), printed(again.logs())) == (6, b"here")

    @needs(Feature.RESTORE)
    def test_it_outlives_its_maker(self) -> None:
        """The process that started it is killed, without a chance to do anything."""
        simulated = not is_alive(self.detach(self.payload.sleep()).pid or 0)
        if simulated:  # in memory of the process that is to be killed
            return
        reader, writer = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads; the child does what it can
            maker = os.fork()
        if maker == 0:
            try:
                box = Container(
                    self.payload.trap(signals.SIGTERM, 8), driver=self.tested, rootfs=self.root, detach=True
                )
                os.write(writer, box.id.encode())
                time.sleep(TIMEOUT)
            finally:
                os._exit(1)
        os.close(writer)
        with os.fdopen(reader, "rb") as file:
            id = os.read(file.fileno(), 4096).decode()
        os.kill(maker, signals.SIGKILL)
        os.waitpid(maker, 0)
        assert id, "it could not be started after a fork"
        self.stack.callback(self.remove, id)
        box = get(id, self.tested)
        assert printed(self.until(box.logs(follow=True), b"ready")) == b"ready\n"
        assert box.poll() is None
        assert box.stop(TIMEOUT) == 8
