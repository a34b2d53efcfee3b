"""The LXC driver answers to the kit."""

from __future__ import annotations

import pytest

from pycontainer import ExecutionDriver, get_driver
from pycontainer.testing.conformance import Conformance


@pytest.mark.root
@pytest.mark.tool("busybox", "lxc-start")
class TestLxc(Conformance):
    """With a directory as its root: it has no view of the host's own programs."""

    @pytest.fixture
    def driver(self) -> ExecutionDriver:
        return get_driver("lxc")

    @pytest.fixture
    def rootfs(self, busybox_rootfs: object) -> str:
        return str(busybox_rootfs)
