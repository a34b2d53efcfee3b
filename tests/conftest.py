"""What the tests share: the markers root and tool, the option --no-skips and a root file system of busybox."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path

import pytest

#: Reasons for which a test may be skipped under --no-skips: limits of the host that nobody can install away.
ALLOWED_SKIPS: tuple[str, ...] = (
    "needs a host with cgroup2 alone",  # the tox environment cgroup2 has one, and has not:
    "no cgroup v1",
    "needs pids on v1",
    "needs two hierarchies",
    "the tests' directory is not on a disk",
    "no disk here",
    "no huge pages that can be limited",
    "maps no ids of a tmpfs: Linux 6.3 does",  # Debian 12's kernel, in the cgroup2 machine, whose files are in memory
    "needs (java|node)",  # hundreds of megabytes, to see them start under the seccomp filter
)

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
alice:x:1000:1000:alice:/home/alice:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/bin/false
"""

GROUP = """\
root:x:0:
alice:x:1000:
extra:x:2000:alice
nogroup:x:65534:
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-skips",
        action="store_true",
        help="a skipped test fails, unless its reason is in ALLOWED_SKIPS of tests/conftest.py",
    )
    parser.addoption(
        "--rootless",
        action="store_true",
        help="run the catalogue's rows as an ordinary user, who has ids in /etc/subuid and cgroups of his own",
    )


def pytest_configure() -> None:
    """Let the processes started here inherit nothing of this run.

    What nohup(1), or a shell for a background job, has ignored would stay
    ignored in them, and a pytest among them does not know our --no-skips.
    """
    os.environ.pop("PYTEST_ADDOPTS", None)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs no container first: later this process has a launcher as its child, which those tests would find."""
    items.sort(key=lambda item: "unit" not in item.path.parts)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.skip("needs root")
    for marker in item.iter_markers("tool"):
        for name in marker.args:
            if shutil.which(name) is None:
                pytest.skip(f"needs {name}")


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    if not any(re.fullmatch(allowed, reason) for allowed in ALLOWED_SKIPS):
        report.outcome = "failed"
        report.longrepr = f"skipped under --no-skips: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if item.config.getoption("--no-skips"):
        _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if collector.config.getoption("--no-skips"):
        _fail_if_skipped(report)
    return report


@pytest.fixture(scope="session")
def busybox_rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system of a static busybox: its applets in /bin, a few users, and the directories there must be."""
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("needs busybox")
    rootfs = tmp_path_factory.mktemp("busybox") / "rootfs"
    for directory in ("bin", "dev", "etc", "home/alice", "proc", "root", "run", "sys", "tmp", "usr/bin", "var/tmp"):
        (rootfs / directory).mkdir(parents=True, exist_ok=True)
    shutil.copy(busybox, rootfs / "bin/busybox")
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    for applet in applets:
        if applet != "busybox":
            (rootfs / "bin" / applet).symlink_to("busybox")
    (rootfs / "etc/passwd").write_text(PASSWD)
    (rootfs / "etc/group").write_text(GROUP)
    for directory, mode in (("tmp", 0o1777), ("var/tmp", 0o1777), ("root", 0o700)):
        (rootfs / directory).chmod(mode)
    if os.geteuid() == 0:
        os.chown(rootfs / "home/alice", 1000, 1000)
    rootfs.chmod(0o755)
    return rootfs


def _below(directory: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(directory) as entries:
        for entry in entries:
            yield entry
            if entry.is_dir(follow_symlinks=False):
                yield from _below(entry.path)


@pytest.fixture(autouse=True)
def rootfs_as_it_was(request: pytest.FixtureRequest) -> Iterator[None]:
    """Take away what a test has left in the root file system that all share: the next one is not to depend on it."""
    if "busybox_rootfs" not in request.fixturenames:
        yield
        return
    rootfs = str(request.getfixturevalue("busybox_rootfs"))
    before = {rootfs, *(entry.path for entry in _below(rootfs))}
    yield
    for entry in list(_below(rootfs)):
        if entry.path in before or os.path.dirname(entry.path) not in before:
            continue  # or it goes with its directory
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Callable[..., Path], None, None]:
    """Installs distributions for the length of a test: install("name", {driver: entry point}, {module: source})."""
    from pycontainer import plugins

    monkeypatch.setattr(plugins, "_made", [])
    plugins._manager.cache_clear()
    before = set(sys.modules)

    def install(
        name: str,
        drivers: Mapping[str, str],
        modules: Mapping[str, str] | None = None,
        *,
        directory: str = "site",
        version: str = "1.0",
    ) -> Path:
        site = tmp_path / directory
        if not site.is_dir():
            site.mkdir()
            monkeypatch.syspath_prepend(str(site))
        info = site / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        entries = "".join(f"{driver} = {entry_point}\n" for driver, entry_point in drivers.items())
        (info / "entry_points.txt").write_text(f"[console_scripts]\nx = y:z\n\n[pycontainer.drivers]\n{entries}")
        for module, source in (modules or {}).items():
            (site / f"{module}.py").write_text(source)
        return site

    yield install
    plugins._manager.cache_clear()
    for module in set(sys.modules) - before:
        if str(getattr(sys.modules[module], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[module]
