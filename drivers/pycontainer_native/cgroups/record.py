"""What v1 and v2 share: cgroupspy's controllers, recording what they would write."""
# mypy: disallow-subclassing-any=False

from __future__ import annotations

import os

from cgroupspy.controllers import Controller
from cgroupspy.interfaces import IntegerFile


class Record(Controller):
    """The controller of a cgroup that does not exist yet: reading reads its parent *base*, writing is recorded."""

    def __init__(self, base: str) -> None:
        super().__init__(node=None)
        self.base = base
        self.writes: list[tuple[str, str]] = []

    def get_property(self, filename: bytes) -> str:
        with open(os.path.join(self.base, os.fsdecode(filename))) as file:
            return file.read().strip()

    def set_property(self, filename: bytes, value: object) -> None:
        self.writes.append((os.fsdecode(filename), str(value)))

    def record(self, **values: object) -> list[tuple[str, str]]:
        """What setting these attributes, in this order and without the None among them, would write: (file, value)."""
        for name, value in values.items():
            if value is not None:
                setattr(self, name, value)
        return self.writes


class LimitFile(IntegerFile):
    """A number, or ``max``, which is None when read and -1 when written."""

    def sanitize_get(self, value: str) -> int | None:
        return None if value == "max" else int(value)

    def sanitize_set(self, value: int) -> int | str:
        return "max" if value == -1 else value


class Pids(Record):
    """The pids controller, which cgroupspy lacks; its files are the same in both versions."""

    max = LimitFile("pids.max")
