"""Area: input that is wrong. It is an error that names the field, and nothing is left."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest

from pycontainer import ContainerError, InvalidCommandError, Mount, State, UnsupportedError
from pycontainer.testing.conformance.base import Area

__all__ = ["BadInput"]


class BadInput(Area):
    """What only the driver can know to be wrong; the rest the Command itself has refused."""

    @pytest.mark.parametrize(
        ("field", "keywords"),
        [
            ("process.user", {"user": "no-such-user"}),
            ("process.user", {"user": "root:no-such-group"}),
            ("process.additional_groups", {"groups": ["no-such-group"]}),
            ("mounts", {"mounts": [Mount("/no/such/source", "/data")]}),
        ],
        ids=["user", "group", "groups", "mount"],
    )
    def test_it_names_the_field(self, field: str, keywords: Mapping[str, Any]) -> None:
        with pytest.raises(InvalidCommandError) as caught:
            self.run(self.payload.say(), name="kit-bad", **keywords)
        assert any(name == field or name.startswith(f"{field}.") for name, _ in caught.value.problems), caught.value
        assert self.state("kit-bad") is State.STOPPED

    def test_a_root_that_is_not_there(self, tmp_path: Path) -> None:
        """Of a Command that comes from elsewhere: on this host its root may be missing."""
        command = attrs.evolve(self.command(self.payload.say()), rootfs=str(tmp_path / "missing"))
        with pytest.raises(InvalidCommandError) as caught:
            self.start_bare(command)
        assert caught.value.field == "rootfs"

    def test_a_working_directory_that_is_not_there(self) -> None:
        with pytest.raises(ContainerError):
            self.run(self.payload.say(), cwd=f"/no-{os.urandom(6).hex()}/such", name="kit-bad")
        assert self.state("kit-bad") is State.STOPPED

    def test_all_problems_at_once(self) -> None:
        command = self.command(
            self.payload.say(), user="no-such-user", mounts=[Mount("/no/such/source", "/data")], config=["x = y"]
        )
        found = self.tested.validate(command)
        assert all(isinstance(problem, (InvalidCommandError, UnsupportedError)) for problem in found)
        assert len(found) >= 2, f"of three mistakes validate() found {len(found)}: {found}"

    def test_validating_creates_nothing(self) -> None:
        command = self.command(self.payload.say())
        self.tested.validate(command)
        assert self.state(command.id) is State.STOPPED

    def test_raw_values_are_understood_or_refused(self) -> None:
        """Docker 0.9's native refused any ``config`` that was for lxc."""
        command = self.command(self.payload.say(), config=["no.such.key = 1"])
        assert any(
            problem.problems[0][0] == "config"
            for problem in self.tested.validate(command)
            if isinstance(problem, InvalidCommandError)
        )
