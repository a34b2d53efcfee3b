"""pycontainer._bpf: the instructions do what the graph says, wherever they come to stand."""

from __future__ import annotations

import random
import struct

import pytest

from pycontainer._bpf import ABOVE, ANY_BIT, AT_LEAST, EQUAL, Graph

from . import bpf

REST = struct.pack("=HBBI", 0x20, 0, 0, 0) + struct.pack("=HBBI", 0x06, 0, 0, 77)


def verdict(code: bytes, number: int, *arguments: int) -> int:
    return bpf.run(code, (bpf.X86_64, number, [*arguments, *[0] * (6 - len(arguments))]))


def length(code: bytes) -> int:
    return len(code) // 8


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("answers", [1000, 3])
def test_answers_that_are_far_away(answers: int, shuffled: bool) -> None:
    """A decision jumps over 255 instructions at most."""
    graph, end = Graph(), 1000
    verdicts = [number % answers for number in range(end)]
    if shuffled:
        random.Random(7).shuffle(verdicts)
    known = {number: graph.answer(number) for number in range(answers)}

    def tree(first: int, last: int) -> int:
        if last - first == 1:
            return known[verdicts[first]]
        middle = (first + last) // 2
        return graph.choose(AT_LEAST, middle, tree(middle, last), tree(first, middle))

    code = graph.assemble(graph.load(0, tree(0, end)), REST)
    bpf.check(code)
    assert [verdict(code, number) for number in range(end)] == verdicts


def test_what_follows_is_reached_from_far_away() -> None:
    graph = Graph()
    at = graph.rest()
    for number in range(400):
        at = graph.load(
            16, graph.choose(EQUAL, number, graph.answer(number), graph.load(24, graph.choose(ABOVE, number, at, at)))
        )
        at = graph.load(32, graph.masked(0xFFFF, graph.choose(EQUAL, number, graph.answer(1000 + number), at)))
    code = graph.assemble(at, REST)
    bpf.check(code)
    for number in (0, 1, 300, 399):
        assert verdict(code, 0, number, 0, 0xFFFF) == number
        assert verdict(code, 0, 9999, 0, 0x10000 + number) == 1000 + number
    assert verdict(code, 0, 9999, 0, 0xFFFF) == 77


def test_nothing_is_written_twice() -> None:
    """A chain of tests of one word loads it once, and has one end for each answer."""
    graph = Graph()
    allowed, at = graph.answer(1), graph.answer(2)
    for bit in range(32):
        at = graph.load(16, graph.choose(ANY_BIT, 1 << bit, at, allowed))
    code = graph.assemble(at, b"")
    assert length(code) == 1 + 32 + 2
    assert verdict(code, 0, 0xFFFFFFFF) == 2
    assert {verdict(code, 0, 0xFFFFFFFF ^ 1 << bit) for bit in range(32)} == {1}


def test_what_is_decided_already_is_not_asked() -> None:
    graph = Graph()
    same = graph.load(16, graph.choose(EQUAL, 7, graph.answer(5), graph.answer(5)))
    assert graph.assemble(same, b"") == struct.pack("=HBBI", 0x06, 0, 0, 5)
    assert graph.assemble(graph.load(0, graph.rest()), REST) == REST


def test_a_word_that_was_masked_is_loaded_again() -> None:
    graph = Graph()
    other = graph.load(16, graph.choose(EQUAL, 0x12, graph.answer(2), graph.answer(3)))
    code = graph.assemble(graph.load(16, graph.masked(0xF0, graph.choose(EQUAL, 0x20, graph.answer(1), other))), b"")
    assert [verdict(code, 0, argument) for argument in (0x21, 0x12, 0x10)] == [1, 2, 3]
