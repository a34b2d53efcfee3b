"""The native driver answers to the kit."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import pytest

from pycontainer import ExecutionDriver, get_driver
from pycontainer.testing.conformance import Conformance


@pytest.fixture(scope="module")
def native() -> Iterator[ExecutionDriver]:
    with tempfile.TemporaryDirectory(prefix="pycontainer-kit-", dir="/run") as root:
        driver = get_driver("native", root=root)
        yield driver
        driver.close()


@pytest.mark.root
class TestNative(Conformance):
    """With a view of the host's own programs."""

    @pytest.fixture
    def driver(self, native: ExecutionDriver) -> ExecutionDriver:
        return native


@pytest.mark.root
@pytest.mark.tool("busybox")
class TestNativeInBusybox(Conformance):
    """With a directory as its root."""

    @pytest.fixture
    def driver(self, native: ExecutionDriver) -> ExecutionDriver:
        return native

    @pytest.fixture
    def rootfs(self, busybox_rootfs: object) -> str:
        return str(busybox_rootfs)
