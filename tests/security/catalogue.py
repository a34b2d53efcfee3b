"""Tests of the catalogue's rows, and the mutants that have to turn them red.

    @row("A1", mutants=[...])
    def test_a1_cve_2015_1335_...(hostile, start): ...

The test runs as it is, and once for every mutant, with one primitive of the code swapped for a naive one: it then has
to fail, by an assertion and not by some accident.  Otherwise it would not prove that the weakness is absent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import pytest

from .rows import NEEDS_ROOT, ROWS

if TYPE_CHECKING:
    from .mutants import Mutant

_Function = TypeVar("_Function", bound=Callable[..., None])


class Declared(NamedTuple):
    """What the decorator has left at a test."""

    rows: tuple[str, ...]
    mutants: tuple[Mutant, ...]
    drivers: tuple[str, ...]


class Case(NamedTuple):
    """One run of a test: on which driver, and with which mutant, if any."""

    driver: str
    mutant: Mutant | None

    def __str__(self) -> str:
        return self.driver if self.mutant is None else f"mutant: {self.mutant.name}"


def row(*rows: str, mutants: Sequence[Mutant] = (), drivers: Sequence[str] = ("native",)) -> Any:
    """This is the test of *rows*. The first of *drivers* is the one that *mutants* are of."""
    assert rows[0] in ROWS, rows
    assert mutants, f"{rows[0]}: without a mutant a test proves nothing"

    def decorate(function: _Function) -> _Function:
        function.declared = Declared(rows, tuple(mutants), tuple(drivers))  # type: ignore[attr-defined]
        return pytest.mark.root(function) if NEEDS_ROOT.keys() & {*rows} else function

    return decorate


def cases(declared: Declared) -> list[Case]:
    """How often, and how, a test runs."""
    return [Case(driver, None) for driver in declared.drivers] + [
        Case(declared.drivers[0], mutant) for mutant in declared.mutants
    ]


class Tally:
    """What the run has shown, for the summary."""

    def __init__(self) -> None:
        self.red: set[str] = set()
        self.run: set[str] = set()
        self.mutants: Counter[bool] = Counter()  #: by whether they were caught

    def __str__(self) -> str:
        green = len(self.run - self.red)
        return (
            f"catalogue: {green} of {len(self.run)} rows green, "
            f"{self.mutants[True]} of {self.mutants.total()} mutants caught"
        )
