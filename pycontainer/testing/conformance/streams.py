"""Areas: the three streams, and the terminal."""

from __future__ import annotations

import os
import time

import pytest

from pycontainer import PIPE, STDOUT, Feature
from pycontainer.testing.conformance.base import TIMEOUT, Area, eventually, needs, read_until

__all__ = ["Stdio", "Tty"]


class Stdio(Area):
    """Bytes in and out, apart, complete, and at once."""

    def test_output_and_errors_are_apart(self) -> None:
        done = self.run(self.payload.say("to stdout", "to stderr"))
        assert (done.stdout, done.stderr) == ("to stdout", "to stderr")

    def test_errors_can_go_where_the_output_goes(self) -> None:
        done = self.run(self.payload.say("one", "two"), stdout=PIPE, stderr=STDOUT)
        assert (done.stdout, done.stderr) == ("onetwo", None)

    def test_bytes_are_not_changed(self) -> None:
        data = bytes(range(256)) * 2
        assert self.run(self.payload.cat(), input=data, text=False).stdout == data

    def test_more_than_a_pipe_holds(self) -> None:
        data = os.urandom(1 << 20)
        assert self.run(self.payload.cat(), input=data, text=False).stdout == data

    def test_without_an_input_there_is_an_end_of_file(self) -> None:
        assert self.run(self.payload.cat()).stdout == ""

    def test_output_comes_at_once(self) -> None:
        box = self.start_ready(self.payload.ready())
        assert box.poll() is None

    def test_a_conversation(self) -> None:
        box = self.start(self.payload.cat(), stdin=PIPE, stdout=PIPE)
        assert box.stdin is not None
        assert box.stdout is not None
        for line in (b"one\n", b"two\n"):
            box.stdin.write(line)
            assert read_until(box.stdout, line) == line
        box.stdin.close()
        assert box.wait(TIMEOUT) == 0

    def test_no_container_holds_the_pipe_of_another(self) -> None:
        first = self.start(self.payload.cat(), stdin=PIPE, stdout=PIPE)
        self.start(self.payload.sleep())
        assert first.stdin is not None
        assert first.stdout is not None
        first.stdin.close()
        assert first.wait(TIMEOUT) == 0
        assert first.stdout.read() == b""

    def test_its_end_is_the_end_of_its_output(self) -> None:
        box = self.start(self.payload.say("all of it"), stdout=PIPE)
        assert box.wait(TIMEOUT) == 0
        assert box.stdout is not None
        assert box.stdout.read() == b"all of it"

    def test_the_descriptors_are_borrowed(self) -> None:
        """The caller's descriptors are open and the same afterwards (``Stdio``)."""
        reader, writer = os.pipe()
        try:
            self.start_bare(self.command(self.payload.say("x")), stdout=writer).wait(TIMEOUT)
            os.write(writer, b"y")
            assert os.read(reader, 10) == b"xy"
        finally:
            os.close(reader)
            os.close(writer)


class Tty(Area):
    """A terminal of its own."""

    @needs(Feature.TTY)
    def test_all_three_are_a_terminal(self) -> None:
        assert self.run(self.payload.is_terminal(), tty=True, stdout=PIPE, text=False).returncode == 0

    def test_without_it_none_is(self) -> None:
        assert self.run(self.payload.is_terminal()).returncode == 1

    @needs(Feature.TTY)
    def test_output_is_that_of_a_terminal(self) -> None:
        done = self.run(self.payload.say("one\n", "two\n"), tty=True, stdout=PIPE, text=False)
        assert done.stdout == b"one\r\ntwo\r\n"

    @needs(Feature.TTY)
    def test_input_and_the_key_for_its_end(self) -> None:
        done = self.run(self.payload.cat(), tty=True, input=b"hello\n", stdout=PIPE, text=False)
        assert done.returncode == 0
        assert done.stdout.endswith(b"hello\r\n")

    @needs(Feature.TTY)
    def test_its_size(self) -> None:
        box = self.start_ready(self.payload.terminal(), tty=True, stdin=PIPE)
        assert box.stdin is not None
        assert box.stdout is not None
        box.resize(33, 77)
        box.stdin.write(b"\n")
        assert read_until(box.stdout, b"33 77") == b"33 77"

    @needs(Feature.TTY)
    def test_closing_it_does_not_stop_the_wait(self) -> None:
        box = self.start(self.payload.ready(), tty=True, stdout=PIPE)
        began = time.monotonic()
        box.kill()
        assert eventually(lambda: box.poll() is not None)
        assert time.monotonic() - began < TIMEOUT

    @needs(Feature.TTY)
    def test_there_is_none_unasked(self) -> None:
        process = self.start_bare(self.command(self.payload.sleep()))
        assert process.terminal is None
        with pytest.raises(Exception, match="no terminal"):
            self.start(self.payload.sleep()).resize(1, 1)
