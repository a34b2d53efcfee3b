"""One command through every driver, and what can be told apart."""

from __future__ import annotations

import contextlib
import difflib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import asdict, frozen

from pycontainer import plugins
from pycontainer._api import Container, Plumbing, see_through
from pycontainer.command import Command
from pycontainer.driver import ExecutionDriver, Feature
from pycontainer.errors import ContainerError, NotRunningError
from pycontainer.plugins import InstalledDriver
from pycontainer.stdio import PIPE

if TYPE_CHECKING:
    import os

    from pycontainer.receipt import Receipt

__all__ = ["Comparison", "Observation", "compare", "feature_table"]

#: What is compared, in this order.
ASPECTS = ("exit", "stdout", "stderr", "receipt")


@frozen
class Observation:
    """What one driver made of the command."""

    driver: str
    exit: str  #: in words: how it ended, or the error that kept it from starting
    stdout: str = ""
    stderr: str = ""
    receipt: str | None = None  #: :meth:`pycontainer.receipt.Receipt.lines`; None where there is none


@frozen
class Comparison:
    """What :func:`compare` observed, and which drivers it could not use, with the reasons."""

    observations: tuple[Observation, ...]
    unusable: Mapping[str, str]

    def differences(self) -> Iterator[str]:
        """The aspects, of exit, stdout, stderr and receipt, in which not all drivers that have it agree."""
        for aspect in ASPECTS:
            if len({getattr(seen, aspect) for seen in self.observations} - {None}) > 1:
                yield aspect

    def to_data(self) -> dict[str, Any]:
        """The same for JSON."""
        return {
            "observations": [asdict(seen) for seen in self.observations],
            "differences": list(self.differences()),
            "unusable": dict(self.unusable),
        }

    def lines(self) -> Iterator[str]:
        """The same for people: what all agree on, and how the others differ from the first."""
        differing = set(self.differences())
        for name, why in self.unusable.items():
            yield f"{name}: not compared: {why}"
        for aspect in ASPECTS:
            having = [seen for seen in self.observations if getattr(seen, aspect) is not None]
            if not having:
                continue
            first, *others = having
            value = getattr(first, aspect)
            if aspect not in differing:
                names = ", ".join(seen.driver for seen in having)
                yield f"{aspect}: the same ({names})"
                if aspect != "receipt":  # of which only a difference is of interest
                    yield from (f"    {line}" for line in value.splitlines())
                continue
            yield f"{aspect}: different"
            for other in others:
                yield from (
                    f"    {line}"
                    for line in difflib.unified_diff(
                        value.splitlines(),
                        getattr(other, aspect).splitlines(),
                        first.driver,
                        other.driver,
                        lineterm="",
                    )
                )


def compare(
    argv: Sequence[str | bytes | os.PathLike[str]],
    *,
    drivers: Iterable[str] | None = None,
    timeout: float | None = 60.0,
    **fields: Any,
) -> Comparison:
    """Run *argv* with each of *drivers*, by default every installed one that this host can use.

    *timeout* in seconds is for each of them, *fields* are those of
    :func:`pycontainer.run`.  Their output is captured.  That a driver cannot
    do it is an observation, too.  With a driver that lacks Feature.CREATE the
    receipt is taken while it runs, and there is none if it ended before that.
    Raises DriverNotFoundError.
    """
    observations, unusable = [], {}
    for name in sorted(plugins.offers()) if drivers is None else list(drivers):
        try:
            driver = plugins.get_driver(name)
            probe = plugins.look(name, driver)
        except ContainerError as error:
            if drivers is not None:
                raise
            unusable[name] = str(error)
            continue
        if probe.usable:
            observations.append(_observe(name, driver, argv, timeout, fields))
        else:
            unusable[name] = probe.cause or "unknown cause"
    return Comparison(tuple(observations), unusable)


def _observe(
    name: str,
    driver: ExecutionDriver,
    argv: Sequence[str | bytes | os.PathLike[str]],
    timeout: float | None,
    fields: Mapping[str, Any],
) -> Observation:
    pipe = None if fields.get("tty") else PIPE
    receipt: Receipt | None = None
    try:
        command = Command.of(argv, **fields)
    except ContainerError as error:
        return Observation(name, f"{type(error).__name__}: {error}")
    try:
        with Container._of_command(command, driver, None, Plumbing(stdout=pipe, stderr=pipe)) as box:
            begin = time.monotonic()
            receipt = box._start_within(timeout, begin, Feature.CREATE in driver.features())
            if receipt is None:
                with contextlib.suppress(NotRunningError, PermissionError):
                    receipt = box.receipt()
            done = see_through(box, None, timeout, False, begin)
    except Exception as error:  # whatever a driver raises, the others are compared all the same
        return Observation(name, f"{type(error).__name__}: {error}")
    status = done.status
    how = f"exit code {status.exit_code}" if status.signal is None else f"signal {status.signal}"
    return Observation(
        name,
        f"{how}, out of memory" if status.oom_killed else how,
        (done.stdout or b"").decode(errors="backslashreplace"),
        (done.stderr or b"").decode(errors="backslashreplace"),
        None if receipt is None else "\n".join(receipt.lines()),
    )


def feature_table(installed: Iterable[InstalledDriver]) -> Iterator[str]:
    """What each driver declares, as a table in reStructuredText: the one of the README."""
    columns = list(installed)
    features = [feature for feature in Feature if any(feature in driver.features for driver in columns)]
    widths = [max(len("Feature"), *(len(feature.value) for feature in features)) if features else len("Feature")]
    widths += [max(len(driver.name), 3) for driver in columns]
    rule = "  ".join("=" * width for width in widths)

    def row(cells: Iterable[str]) -> str:
        return "  ".join(f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()

    yield rule
    yield row(["Feature", *(driver.name for driver in columns)])
    yield rule
    for feature in features:
        yield row([feature.value, *("yes" if feature in driver.features else "\\-" for driver in columns)])
    yield rule
