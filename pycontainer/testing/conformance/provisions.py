"""Area: what a driver may offer beyond the rest: networks, kernel parameters, devices, hooks, other roots and ids."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from pycontainer import Feature, Hook, Hooks, Network, SetupError, rootfs
from pycontainer.testing.conformance.base import Area, needs

__all__ = ["Provisions"]


class Provisions(Area):
    """Networks, sysctls, devices, hooks, overlays; user namespaces: what is declared is there."""

    # -- networks

    @needs(Feature.NETWORK)
    def test_an_interface_on_a_bridge(self) -> None:
        network = Network(
            bridge=f"pyckit{os.getpid():x}",
            address="198.51.100.2",  # RFC 5737: a documentation's, nobody's
            prefix_length=24,
            gateway="198.51.100.1",
            create_bridge=True,
        )
        if self.honours("network", network=network):
            interfaces = self.run(self.payload.read("/proc/net/dev"), network=network).stdout
            assert {line.partition(":")[0].strip() for line in interfaces.splitlines()[2:]} >= {"lo", "eth0"}
            routes = self.run(self.payload.read("/proc/net/route"), network=network).stdout.splitlines()[1:]
            gateways = {line.split()[2] for line in routes if line.split()[0] == "eth0"}
            assert "016433C6" in gateways  # the address as the kernel prints it, in host order

    @needs(Feature.NETWORK)
    def test_the_network_of_another_one(self) -> None:
        other = self.start(self.payload.sleep())
        network = Network("container", container=other.id)
        if self.honours("network", network=network):
            box = self.start(self.payload.sleep(), network=network)
            assert os.readlink(f"/proc/{box.pid}/ns/net") == os.readlink(f"/proc/{other.pid}/ns/net")

    # -- what the kernel keeps for it

    @needs(Feature.SYSCTLS)
    def test_a_kernel_parameter(self) -> None:
        done = self.run(self.payload.read("/proc/sys/net/ipv4/ip_default_ttl"), sysctls={"net.ipv4.ip_default_ttl": 77})
        assert done.stdout == "77\n"

    @needs(Feature.DEVICES)
    def test_a_device(self) -> None:
        devices = ["/dev/null:/dev/hole:rw"]
        if not self.honours("devices", devices=devices):
            return
        box = self.start(self.payload.sleep(), devices=devices)
        found = os.stat(f"/proc/{box.pid}/root/dev/hole")
        assert stat.S_ISCHR(found.st_mode)
        assert found.st_rdev == os.makedev(1, 3)

    @needs(Feature.DEVICES)
    def test_no_device_that_was_not_asked_for(self) -> None:
        box = self.start(self.payload.sleep())
        assert not {"hole", "kmsg", "mem"} & set(os.listdir(f"/proc/{box.pid}/root/dev"))

    @needs(Feature.USERNS)
    def test_root_is_somebody_else_outside(self) -> None:
        if not self.honours("userns", userns="auto"):
            return
        receipt = self.receipt_of(userns="auto")
        assert [row.outside for row in receipt.uid_map if row.inside == 0] != [os.getuid()]
        assert receipt.differences(self.box.command) == ()

    # -- hooks

    @needs(Feature.HOOKS)
    def test_hooks_are_told_the_state(self, tmp_path: Path) -> None:
        hooks = {
            point: [Hook("/bin/sh", ("sh", "-c", f"cat > {tmp_path}/{point}"), env={"PATH": "/usr/bin:/bin"})]
            for point in ("create_runtime", "poststart", "poststop")
        }
        box = self.start(self.payload.sleep(), hooks=Hooks(**hooks))
        box.close()
        states = {point: json.loads((tmp_path / point).read_text()) for point in hooks}
        assert {state["id"] for state in states.values()} == {box.id}
        assert [state["status"] for state in states.values()] == ["creating", "running", "stopped"]

    @needs(Feature.HOOKS)
    def test_a_failed_hook_is_a_failed_start(self, tmp_path: Path) -> None:
        hooks = Hooks(create_runtime=[Hook("/bin/false")])
        with pytest.raises(SetupError, match="createRuntime"):
            self.run(self.payload.say("said"), hooks=hooks)

    # -- roots

    @needs(Feature.OVERLAY)
    def test_what_is_written_to_an_overlay(self, request: pytest.FixtureRequest, tmp_path: Path) -> None:
        lower = Path(self.root or request.getfixturevalue("_busybox_rootfs"))
        (tmp_path / "upper").mkdir()
        for upper in (None, tmp_path / "upper"):
            done = self.run(self.payload.write("/made", "text"), rootfs=rootfs.overlay(lower, upper=upper))
            assert done.returncode == 0, done.stderr
            assert not (lower / "made").exists()
        assert (tmp_path / "upper/made").read_text() == "text"
