"""Area: what a driver declares, and that it refuses the rest."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import pytest

from pycontainer import Feature, FeatureProbe, Hooks, Network, Probe, Process, Resources
from pycontainer.rootfs import overlay
from pycontainer.stdio import Streams
from pycontainer.testing.conformance.base import Area

__all__ = ["ASK", "Features"]


def _create(area: Area) -> None:
    with Streams(stdin=-3, stdout=-3, stderr=-3) as streams:
        area.tested.create(area.command(area.payload.say()), streams.stdio)


def _exec(area: Area) -> None:
    with Streams(stdin=-3, stdout=-3, stderr=-3) as streams:
        area.tested.exec("nobody", Process.of(area.payload.say()), streams.stdio)


_ASKING = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "listenerPath": "/nonexistent/socket",
    "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_NOTIFY"}],
}

#: How each feature is asked for, where there is a way to ask.
ASK: Mapping[Feature, Callable[[Area], object]] = {
    Feature.CREATE: _create,
    Feature.EXEC: _exec,
    Feature.PAUSE: lambda area: area.tested.pause("nobody"),
    Feature.STATS: lambda area: area.tested.stats("nobody"),
    Feature.UPDATE: lambda area: area.tested.update("nobody", Resources(pids_limit=10)),
    Feature.RESTORE: lambda area: area.tested.restore("nobody"),
    Feature.TTY: lambda area: area.run(area.payload.say(), tty=True, text=False, stdout=-1),
    Feature.INIT: lambda area: area.run(area.payload.say(), init=True),
    Feature.HOST_ROOTFS: lambda area: area.run(area.payload.say(), rootfs=None),
    Feature.OVERLAY: lambda area: area.run(area.payload.say(), rootfs=overlay("/usr")),
    Feature.NETWORK: lambda area: area.run(area.payload.say(), network=Network(create_bridge=True)),
    Feature.MEMORY: lambda area: area.run(area.payload.say(), memory="64m"),
    Feature.CPU: lambda area: area.run(area.payload.say(), cpus=0.5),
    Feature.CPUSET: lambda area: area.run(area.payload.say(), cpuset_cpus="0"),
    Feature.SYSCTLS: lambda area: area.run(area.payload.say(), sysctls={"net.ipv4.ip_forward": 1}),
    Feature.HOOKS: lambda area: area.run(area.payload.say(), hooks=Hooks()),
    Feature.DEVICES: lambda area: area.run(area.payload.say(), devices=["/dev/null:/dev/hole"]),
    Feature.BLKIO: lambda area: area.run(area.payload.say(), blkio_weight=100),
    Feature.HUGETLB: lambda area: area.run(area.payload.say(), hugepage_limits={"2MB": 0}),
    Feature.PIDS: lambda area: area.run(area.payload.say(), pids_limit=10),
    Feature.LABELS: lambda area: area.run(area.payload.say(), apparmor_profile="unconfined"),
    Feature.SECCOMP_NOTIFY: lambda area: area.run(area.payload.say(), seccomp=_ASKING),
    Feature.USERNS: lambda area: area.run(area.payload.say(), userns="auto"),
}


class Features(Area):
    """Names, features and the probe; an undeclared feature is refused."""

    def test_the_name_has_a_version(self) -> None:
        """Docker 0.9's ``Name()``: name and version."""
        assert re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]*-[0-9][^\s-]*", self.tested.name), self.tested.name

    def test_features_are_static(self) -> None:
        features = self.tested.features()
        assert isinstance(features, frozenset)
        assert all(isinstance(feature, Feature) for feature in features)
        assert self.tested.features() == features

    def test_the_probe_is_about_what_is_declared(self) -> None:
        probe = self.tested.probe()
        assert isinstance(probe, Probe)
        assert probe.features.keys() <= self.tested.features()
        assert all(isinstance(seen, FeatureProbe) for seen in probe.features.values())

    def test_the_probe_explains_what_cannot_be_used(self) -> None:
        probe = self.tested.probe()
        assert [feature for feature, seen in probe.features.items() if not (seen.usable or seen.cause)] == []

    @pytest.mark.parametrize("feature", ASK, ids=lambda feature: feature.value)
    def test_an_undeclared_feature_is_refused(self, feature: Feature) -> None:
        if feature not in self.tested.features():
            self.is_refused(feature)

    def test_an_ordinary_command_is_accepted(self) -> None:
        assert list(self.tested.validate(self.command(self.payload.say()))) == []
