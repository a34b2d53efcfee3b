"""The pytest plugin: fixtures and markers for tests that run containers. pytest finds it by its entry point.

Fixtures:

``container_driver`` (session)
    The driver: ``--container-driver``, else PYCONTAINER_DRIVER (several with
    commas: the first usable one), else native.
    With several ``--container-driver`` each test runs once with each.  ``fake``
    is the fake driver, and ``module:object`` a driver that is not installed.
``container_rootfs``
    The root file system: the marker's, ``--container-rootfs``, or what the
    driver can do (None is a view of the host's own).
``container_factory``
    Starts containers as :class:`pycontainer.Container` does, with their output
    in ``box.output`` and ``box.errors``, and ends them after the test. None is
    detached, for that would outlive a pytest that is killed: the test makes it
    by :class:`pycontainer.Container`, and removes it.
``run_container``
    :func:`pycontainer.run`; output is captured as text.
``container``
    One running container: of the marker's argv, else one that sleeps.
``fake_driver``
    A :class:`~pycontainer.testing.fake.FakeDriver` that is the default while
    the test runs.  What is not scripted does not exist: SetupError, ENOENT.

Markers: ``container(argv, **fields)``, ``container_memory(limit)``,
``container_network(network)``, ``container_rootfs(path)``,
``container_driver(*names)``, ``container_require(*features)``.

A test that leaves a container running, a detached one too, fails, unless a
fixture of a wider scope owns it.  When a test fails, its report has the containers' output, status and
limits.  Nothing here touches the host, or imports a driver, at collection.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import pytest

if TYPE_CHECKING:
    from pycontainer import CompletedContainer, ExecutionDriver
    from pycontainer.detached import DetachedLifecycle
    from pycontainer.lifecycle import Lifecycle
    from pycontainer.testing.fake import FakeDriver
    from pycontainer.testing.fixtures import ContainerFactory, LoggedContainer

pytest.register_assert_rewrite("pycontainer.testing.conformance")

MARKERS = (
    "container(argv, **fields): what the fixture 'container' runs",
    "container_memory(limit): memory limit of the containers of this test, such as '64m'",
    "container_network(network): network of the containers of this test, such as 'host'",
    "container_rootfs(path): root file system of the containers of this test",
    "container_driver(*names): run this test with these drivers, whatever --container-driver says",
    "container_require(*features): skip this test where the driver does not have these features",
)

#: The factories whose containers a test uses, by the fixture that made them.
_FACTORIES = pytest.StashKey["dict[str, ContainerFactory]"]()
_SESSION_FACTORIES = pytest.StashKey["dict[str, ContainerFactory]"]()
_BEFORE = pytest.StashKey["set[int]"]()

#: Containers that fixtures of a wider scope than one test have made.
_owned: WeakSet[Lifecycle] = WeakSet()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The command line's part of all this."""
    group = parser.getgroup("containers")
    group.addoption(
        "--container-driver",
        action="append",
        metavar="NAME",
        help="driver for tests with containers; several times: each test runs with each of them",
    )
    group.addoption("--container-rootfs", metavar="DIR", help="root file system for tests with containers")


def pytest_configure(config: pytest.Config) -> None:
    """Make the markers known."""
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
    config.stash[_SESSION_FACTORIES] = {}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One run of the test for each driver. Only their names are known here."""
    if "container_driver" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("container_driver")
    names = list(marker.args) if marker else metafunc.config.getoption("--container-driver") or []
    if marker or len(names) > 1:
        metafunc.parametrize("container_driver", names, indirect=True, scope="session")


# -- fixtures


@pytest.fixture(scope="session")
def container_driver(request: pytest.FixtureRequest) -> Iterator[ExecutionDriver]:
    """The driver of this run. Skips, with the probe's reason, where this host cannot use it."""
    given = request.config.getoption("--container-driver")
    name = getattr(request, "param", None) or (given[0] if given else None)
    driver = find_driver(name)
    probe = driver.probe()
    if not probe.usable:
        remedy = f" (remedy: {probe.remedy})" if probe.remedy else ""
        pytest.skip(f"driver {probe.driver} cannot be used here: {probe.cause}{remedy}")
    yield driver
    driver.close()


def find_driver(name: str | None) -> ExecutionDriver:
    """The driver of a ``--container-driver``: an installed one, ``fake``, or ``module:object``."""
    from pycontainer.plugins import get_driver

    if name == "fake":
        name = "pycontainer.testing.fake:FakeDriver"
    if name is None or ":" not in name:
        return get_driver(name)
    from importlib import import_module

    module, _, attribute = name.partition(":")
    made = getattr(import_module(module), attribute)
    return get_driver(made() if callable(made) else made)


@pytest.fixture(scope="session")
def _busybox_rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pycontainer.testing.fixtures import make_busybox_rootfs

    return make_busybox_rootfs(tmp_path_factory.mktemp("busybox"))


@pytest.fixture
def container_rootfs(request: pytest.FixtureRequest, container_driver: ExecutionDriver) -> str | None:
    """The root file system of this test's containers; None is a view of the host's own programs."""
    from pycontainer.testing.fixtures import rootfs_for

    marker = request.node.get_closest_marker("container_rootfs")
    return os.path.abspath(marker.args[0]) if marker else rootfs_for(container_driver, request)


@pytest.fixture
def container_factory(
    request: pytest.FixtureRequest, container_driver: ExecutionDriver, container_rootfs: str | None
) -> Iterator[ContainerFactory]:
    """Call it as :class:`pycontainer.Container`: what it starts is ended after the test."""
    _check_requirements(request.node, container_driver)
    factory = factory_for(request, container_driver, rootfs=container_rootfs, **_marked(request.node))
    with contextlib.closing(factory):
        yield factory


@pytest.fixture
def run_container(container_factory: ContainerFactory) -> Callable[..., CompletedContainer]:
    """Call it as :func:`pycontainer.run`; output is captured as text."""
    return container_factory.run


@pytest.fixture
def container(request: pytest.FixtureRequest, container_factory: ContainerFactory) -> LoggedContainer:
    """A running container: of the marker ``container``, or one that sleeps."""
    marker = request.node.get_closest_marker("container")
    argv = marker.args[0] if marker and marker.args else ["sleep", "2147483647"]
    return container_factory(argv, **(marker.kwargs if marker else {}))


@pytest.fixture
def fake_driver() -> Iterator[FakeDriver]:
    """A fake driver of this test's own, and the default driver while it runs."""
    from pycontainer.testing.fake import FakeDriver

    with FakeDriver().installed() as driver:
        yield driver


def factory_for(request: pytest.FixtureRequest, driver: ExecutionDriver, **defaults: Any) -> ContainerFactory:
    """A factory whose containers are in the report of a test that uses this fixture and fails."""
    from pycontainer.testing.fixtures import ContainerFactory

    factory = ContainerFactory(driver, **defaults)
    if request.scope == "function":
        factories = request.node.stash.setdefault(_FACTORIES, {})
    else:
        factories = request.config.stash[_SESSION_FACTORIES]
    factories[request.fixturename or ""] = factory
    return factory


def _marked(item: pytest.Item) -> dict[str, Any]:
    """The fields that the markers of *item* set."""
    fields: dict[str, Any] = {}
    for field in ("memory", "network"):
        marker = item.get_closest_marker(f"container_{field}")
        if marker:
            fields[field] = marker.args[0]
    return fields


def _check_requirements(item: pytest.Item, driver: ExecutionDriver) -> None:
    marker = item.get_closest_marker("container_require")
    if marker is None:
        return
    from pycontainer.requirements import as_features, shortcomings

    lacking = shortcomings(driver, as_features(marker.args))
    if lacking:
        pytest.skip(f"driver {driver.name}: {'; '.join(lacking)}")


# -- the leak check


def _living() -> list[Lifecycle]:
    """The containers of this process that run. Nothing is imported for it: where no lifecycle is, there is none."""
    lifecycle, detached = (sys.modules.get(f"pycontainer.{name}") for name in ("lifecycle", "detached"))
    found: list[Lifecycle] = [] if lifecycle is None else lifecycle.living()
    if detached is not None and detached.started:
        detached.started[:] = filter(_is_running, detached.started)
        found += detached.started
    return found


def _is_running(life: DetachedLifecycle) -> bool:
    """Whether a detached container runs: no object of this process need be attached to it."""
    try:
        return life.driver.info(life.id).is_running
    except Exception:  # of a driver that is closed; what cannot be asked cannot be blamed either
        return False


def _end(life: Lifecycle) -> None:
    if life.detached:
        from pycontainer import get

        get(life.id, life.driver).remove(force=True)
    else:
        life.close()


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Generator[None, object, object]:
    """What a fixture of a wider scope starts is its own business."""
    if fixturedef.scope == "function":
        return (yield)
    before = {id(life) for life in _living()}
    result = yield
    _owned.update(life for life in _living() if id(life) not in before)
    return result


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    """Remember what ran before."""
    item.stash[_BEFORE] = {id(life) for life in _living()}
    yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """After its fixtures are gone, nothing may run that this test has started."""
    yield
    before = item.stash.get(_BEFORE, set())
    leaked = [life for life in _living() if id(life) not in before and life not in _owned]
    if leaked:
        names = ", ".join(f"{life.id} ({' '.join(life.command.process.argv)})" for life in leaked)
        for life in leaked:
            with contextlib.suppress(Exception):
                _end(life)
        pytest.fail(f"this test left containers running, which are killed now: {names}", pytrace=False)


# -- the report of a failure


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the containers' output, status and limits to the report of a failure."""
    report = yield
    if report.failed and report.when != "teardown":
        factories: dict[str, ContainerFactory] = {}
        if _FACTORIES in item.stash:
            own: dict[str, ContainerFactory] = item.stash[_FACTORIES]
            factories.update(own)
        for name, factory in item.config.stash[_SESSION_FACTORIES].items():
            if name in getattr(item, "fixturenames", ()):
                factories[name] = factory
        lines = [line for factory in factories.values() for line in factory.report()]
        if lines:
            report.sections.append(("containers", "\n".join(lines)))
    return report
