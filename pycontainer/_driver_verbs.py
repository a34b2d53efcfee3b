"""The verbs of the command line that say what drivers do: ``doctor``, ``receipt`` and ``compare``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

__all__ = ["add_verbs"]


def add_verbs(verbs: Any, add_run_flags: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add them to the sub-parsers *verbs*."""
    doctor = verbs.add_parser(
        "doctor",
        help="look which drivers and features this host can use, and what would help",
        description="Exits with 0 only when the default driver, or DRIVER, is usable.",
        allow_abbrev=False,
    )
    doctor.add_argument("driver", nargs="?", metavar="DRIVER", help="look at this one alone")
    doctor.add_argument("--json", action="store_true", help="as JSON")
    doctor.set_defaults(verb=_doctor)

    receipt = verbs.add_parser(
        "receipt",
        help="show what really holds for a detached container, and what of it is not as it was asked for",
        description="Exits with 0 when everything is as it was asked for, else with 1.",
        allow_abbrev=False,
    )
    receipt.add_argument("id", metavar="ID", help="the container's name or id")
    receipt.add_argument("--driver", metavar="NAME", help="default: $PYCONTAINER_DRIVER, or native")
    receipt.add_argument("--json", action="store_true", help="as JSON")
    receipt.set_defaults(verb=_receipt)

    compare = verbs.add_parser(
        "compare",
        help="run a command through every usable driver and show the differences",
        description="The flags are those of docker run. Exits with 0 when no difference was seen, else with 1.",
        usage="%(prog)s [FLAG...] [--] COMMAND [ARG...]",
        add_help=False,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    compare.set_defaults(verb=_compare)
    compare.add_argument("--json", action="store_true", default=False, help="as JSON")
    compare.add_argument("--drivers", default=None, metavar="NAMES", help="with commas between; default: all usable")
    add_run_flags(compare)


def _doctor(options: argparse.Namespace) -> int:
    from pycontainer.diagnosis import doctor

    found = doctor(options.driver)
    print(json.dumps(found.to_data(), indent=2) if options.json else "\n".join(found.lines()))
    return 0 if found.healthy else 1


def _receipt(options: argparse.Namespace) -> int:
    from attrs import asdict

    from pycontainer import get

    box = get(options.id, options.driver)
    found = box.receipt()
    differences = found.differences(box.command)
    if options.json:
        print(json.dumps({**found.to_data(), "differences": [asdict(one) for one in differences]}, indent=2))
    else:
        print("\n".join([*found.lines(), *(f"different: {one}" for one in differences)]))
    return 1 if differences else 0


def _compare(options: argparse.Namespace) -> int:
    from pycontainer.cli import command_keywords
    from pycontainer.comparison import compare
    from pycontainer.errors import ContainerError

    drivers = options.drivers.split(",") if options.drivers else None
    if drivers is None and options.driver is not None:
        drivers = [options.driver]
    found = compare(options.argv, drivers=drivers, timeout=options.timeout, **command_keywords(options))
    print(json.dumps(found.to_data(), indent=2) if options.json else "\n".join(found.lines()))
    if not found.observations:
        raise ContainerError("no driver can be used here: 'pycontainer doctor' says why")
    return 1 if list(found.differences()) else 0
