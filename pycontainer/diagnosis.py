"""``doctor()``: which drivers this host can use, with what, and what would help."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from attrs import frozen

from pycontainer import plugins
from pycontainer.driver import Feature, FeatureProbe
from pycontainer.errors import DriverNotFoundError
from pycontainer.plugins import InstalledDriver

__all__ = ["Diagnosis", "Finding", "doctor"]


@frozen
class Finding:
    """One line of a diagnosis: of a driver, or of one of its features."""

    driver: str
    feature: Feature | None  #: None: the driver itself
    usable: bool | None  #: None: declared, and the driver has not looked
    evidence: str = ""
    cause: str = ""
    remedy: str = ""  #: as a command to type, where there is one


@frozen
class Diagnosis:
    """What :func:`doctor` found."""

    drivers: Mapping[str, InstalledDriver]
    chosen: str  #: the driver that :attr:`healthy` is about
    default: str  #: the one that is used where none is named

    @property
    def healthy(self) -> bool:
        """Whether the chosen driver is installed and usable."""
        return self.chosen in self.drivers and self.drivers[self.chosen].probe.usable

    def findings(self) -> Iterator[Finding]:
        """Everything, driver by driver: first the driver itself, then its features."""
        if self.chosen not in self.drivers:
            yield Finding(self.chosen, None, False, cause=str(DriverNotFoundError(self.chosen, self.drivers)))
        for name, driver in self.drivers.items():
            probe = driver.probe
            yield Finding(name, None, probe.usable, probe.evidence, probe.cause, probe.remedy)
            for feature in Feature:
                if feature in driver.features:
                    seen = probe.features.get(feature)
                    yield _feature(name, feature, seen)

    def to_data(self) -> dict[str, Any]:
        """The same for JSON."""
        return {
            "default": self.default,
            "chosen": self.chosen,
            "healthy": self.healthy,
            "findings": [
                {
                    "driver": found.driver,
                    "feature": found.feature and found.feature.value,
                    "usable": found.usable,
                    "evidence": found.evidence,
                    "cause": found.cause,
                    "remedy": found.remedy,
                }
                for found in self.findings()
            ],
        }

    def lines(self) -> Iterator[str]:
        """The same for people."""
        for found in self.findings():
            answer = {True: "yes", False: "no", None: "?"}[found.usable]
            default = " (default)" if found.driver == self.default and found.feature is None else ""
            what = f"{found.driver}{default}" if found.feature is None else f"  {found.feature.value}"
            yield f"{what:24} {answer:4} {found.evidence if found.usable else found.cause}".rstrip()
            if not found.usable and found.remedy:
                yield f"{'':24} {'':4} remedy: {found.remedy}"


def _feature(driver: str, feature: Feature, seen: FeatureProbe | None) -> Finding:
    if seen is None:
        return Finding(driver, feature, None, cause="declared; the driver's probe does not look at it")
    return Finding(driver, feature, seen.usable, seen.evidence, seen.cause, seen.remedy)


def doctor(driver: str | None = None) -> Diagnosis:
    """Look at every installed driver, or at *driver* alone, and at each feature that it declares.

    What is found is live and nothing is changed.  A driver that cannot be
    loaded is a finding, not an error.  Raises DriverNotFoundError for a
    *driver* that is not installed.
    """
    names = plugins.default_names()
    if driver is None:
        found = plugins.drivers()
        usable = (name for name in names if name in found and found[name].probe.usable)
        default = next(usable, names[0])
        return Diagnosis(found, default, default)
    offers = plugins.offers()
    if driver not in offers:
        raise DriverNotFoundError(driver, offers)
    # Of several names it is the first usable one, and only this driver is looked at.
    return Diagnosis({driver: plugins.inspect(driver, offers[driver])}, driver, names[0])
