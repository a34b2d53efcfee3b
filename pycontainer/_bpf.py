"""Programs of classic BPF, built as a graph of decisions.

seccomp(2) takes an array of struct sock_filter, which is written down here
from its end: whoever decides goes on in what is there already.  Equal ends are
one, and a word that the accumulator holds is not loaded again; the kernel
translates a filter anew for every process that loads it, so its length counts.

Numbers are those of linux/bpf_common.h.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["ABOVE", "ANY_BIT", "AT_LEAST", "EQUAL", "Graph"]

#: Of a decision: what the accumulator has to be, against a constant.
EQUAL, ABOVE, AT_LEAST, ANY_BIT = 0x15, 0x25, 0x35, 0x45
_LOAD, _AND, _JUMP, _ANSWER = 0x20, 0x54, 0x05, 0x06
#: A node that is not an instruction: the program that follows.
_REST = -1
#: As far as a decision can jump: eight bits.
_FAR = 255


class _Node(NamedTuple):
    operation: int
    constant: int = 0
    yes: int = -1  #: the node after it
    no: int = -1  #: and, of a decision, the one if it does not hold


class Graph:
    """Its nodes are numbers, each made after those that it leads to."""

    def __init__(self) -> None:
        self._nodes: list[_Node] = []
        self._known: dict[_Node, int] = {}

    def _add(self, node: _Node) -> int:
        known = self._known.get(node)
        if known is None:
            known = self._known[node] = len(self._nodes)
            self._nodes.append(node)
        return known

    def answer(self, verdict: int) -> int:
        """The end, with *verdict*."""
        return self._add(_Node(_ANSWER, verdict))

    def rest(self) -> int:
        """The end, where :meth:`assemble`'s other program goes on."""
        return self._add(_Node(_REST))

    def load(self, offset: int, then: int) -> int:
        """The word at *offset* of what is looked at, and *then*."""
        then = self._with_loaded(offset, then)
        if self._nodes[then].operation in (_ANSWER, _REST):
            return then  # nobody asks for it
        return self._add(_Node(_LOAD, offset, then))

    def masked(self, mask: int, then: int) -> int:
        """Of the word that is loaded the bits in *mask*, and *then*."""
        return self._add(_Node(_AND, mask, then))

    def choose(self, operation: int, constant: int, yes: int, no: int) -> int:
        """*yes* if the word that is loaded is so, else *no*."""
        return yes if yes == no else self._add(_Node(operation, constant, yes, no))

    def _with_loaded(self, offset: int, number: int) -> int:
        """What is left of node *number* when the word at *offset* is there already."""
        node = self._nodes[number]
        if node.operation == _LOAD:
            return node.yes if node.constant == offset else number
        if node.operation in (_AND, _ANSWER, _REST):
            return number
        yes, no = (self._with_loaded(offset, then) for then in (node.yes, node.no))
        return self.choose(node.operation, node.constant, yes, no)

    def assemble(self, start: int, rest: bytes = b"") -> bytes:
        """The program that begins at *start*, with *rest* at its end."""
        code = [rest[at : at + 8] for at in range(0, len(rest), 8)][::-1]  # backwards
        places = {number: len(code) - 1 for number, node in enumerate(self._nodes) if node.operation == _REST}

        def put(operation: int, constant: int, yes: int = 0, no: int = 0) -> None:
            code.append(struct.pack("=HBBI", operation, yes, no, constant))

        def distance(number: int) -> int:
            """From an instruction that would be put now."""
            return len(code) - 1 - places[number]

        def put_near(number: int) -> None:
            """The node once more, or a way to it."""
            node = self._nodes[number]
            if node.operation == _ANSWER:
                put(_ANSWER, node.constant)
            else:
                put(_JUMP, distance(number))
            places[number] = len(code) - 1

        for number in self._reached(start):
            node = self._nodes[number]
            if node.operation == _REST:
                continue
            if node.operation == _ANSWER:
                put(_ANSWER, node.constant)
            elif node.operation in (_LOAD, _AND):
                if distance(node.yes):
                    put_near(node.yes)
                put(node.operation, node.constant)
            else:
                while far := [to for to in (node.yes, node.no) if distance(to) > _FAR]:
                    put_near(far[0])
                put(node.operation, node.constant, distance(node.yes), distance(node.no))
            places[number] = len(code) - 1
        if distance(start):
            put_near(start)
        return b"".join(reversed(code))

    def _reached(self, start: int) -> Sequence[int]:
        """The nodes that *start* leads to, and it: each after those that it leads to."""
        reached, waiting = {start}, [start]
        while waiting:
            node = self._nodes[waiting.pop()]
            for to in (node.yes, node.no):
                if to >= 0 and to not in reached:
                    reached.add(to)
                    waiting.append(to)
        return sorted(reached)
