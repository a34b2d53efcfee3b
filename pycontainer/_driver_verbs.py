"""The verbs of the command line that say what drivers do: ``drivers``, ``doctor``, ``receipt`` and ``compare``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from pycontainer._flags import add_flags, command_keywords
from pycontainer.errors import ContainerError

if TYPE_CHECKING:
    from pycontainer.plugins import InstalledDriver

__all__ = ["add_verbs"]


def add_verbs(verbs: Any) -> None:
    """Add them to the sub-parsers *verbs*."""
    drivers = verbs.add_parser("drivers", help="list the drivers, and whether they work here", allow_abbrev=False)
    drivers.add_argument("--json", action="store_true", help="as JSON")
    drivers.add_argument("--table", action="store_true", help="what each declares, as a table in reStructuredText")
    drivers.set_defaults(verb=_drivers)

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
    add_flags(compare)


def _drivers(options: argparse.Namespace) -> int:
    from pycontainer.plugins import drivers

    installed = drivers().values()
    if options.table:
        from pycontainer.comparison import feature_table

        ours = [driver for driver in installed if driver.distribution.startswith("pycontainer-execdriver ")]
        print("\n".join(feature_table(ours)))
    elif options.json:
        print(json.dumps([_driver_data(driver) for driver in installed], indent=2))
    else:
        print("\n".join(_driver_table(installed)))
    return 0


def _driver_data(driver: InstalledDriver) -> dict[str, Any]:
    probe = driver.probe
    features: dict[str, Any] = {}
    for feature in sorted(driver.features, key=lambda feature: feature.value):
        seen = probe.features.get(feature)
        # None: declared, and the driver has not looked whether this host lets it.
        features[feature.value] = seen and {
            "usable": seen.usable,
            "evidence": seen.evidence,
            "cause": seen.cause,
            "remedy": seen.remedy,
        }
    return {
        "name": driver.name,
        "version": probe.version,
        "distribution": driver.distribution,
        "entry_point": driver.entry_point,
        "usable": probe.usable,
        "evidence": probe.evidence,
        "cause": probe.cause,
        "remedy": probe.remedy,
        "features": features,
    }


def _driver_table(installed: Iterable[InstalledDriver]) -> Iterator[str]:
    def because(cause: str, remedy: str) -> str:
        return (cause or "unknown cause") + (f" (remedy: {remedy})" if remedy else "")

    yield f"{'DRIVER':12} {'VERSION':14} {'USABLE':7} DISTRIBUTION"
    for driver in installed:
        probe = driver.probe
        usable = "yes" if probe.usable else "no"
        yield f"{driver.name:12} {probe.version or '-':14} {usable:7} {driver.distribution}"
        if not probe.usable:
            yield f"    {because(probe.cause, probe.remedy)}"
            continue
        here, lacking = [], []
        for feature in sorted(driver.features, key=lambda feature: feature.value):
            seen = probe.features.get(feature)
            if seen is None or seen.usable:
                here.append(feature.value)
            else:
                lacking.append(f"    without {feature.value}: {because(seen.cause, seen.remedy)}")
        if here:
            yield f"    with {', '.join(here)}"
        yield from lacking


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
    from pycontainer.comparison import compare

    drivers = options.drivers.split(",") if options.drivers else None
    if drivers is None and options.driver is not None:
        drivers = [options.driver]
    found = compare(options.argv, drivers=drivers, timeout=options.timeout, **command_keywords(options))
    print(json.dumps(found.to_data(), indent=2) if options.json else "\n".join(found.lines()))
    if not found.observations:
        raise ContainerError("no driver can be used here: 'pycontainer doctor' says why")
    return 1 if list(found.differences()) else 0
