"""Where native puts containers on a host with cgroup2 alone, such as the machine of tests/vm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pycontainer.errors import InvalidCommandError
from pycontainer_native.cgroups import PREFIX, detect

from . import host

pytestmark = pytest.mark.root

MIB = 1024 * 1024


@pytest.fixture
def cgroup2() -> Path:
    """Where cgroup2 is mounted, on a host that has no other hierarchy."""
    layout = detect()
    if layout.mode != "v2":
        pytest.skip("needs a host with cgroup2 alone")
    return Path(layout.hierarchies[0].mountpoint)


@pytest.fixture
def session(cgroup2: Path, until: Any) -> Iterator[Path]:
    """What systemd makes of a login: a slice that can hand on controllers, and in it a cgroup with the processes."""
    controllers = "+cpu +cpuset +memory +pids"
    (cgroup2 / "cgroup.subtree_control").write_text(controllers)
    session = cgroup2 / "test.slice/session"
    session.mkdir(parents=True)
    (session.parent / "cgroup.subtree_control").write_text(controllers)
    yield session
    (session.parent / "cgroup.kill").write_text("1")
    until(lambda: "populated 0" in (session.parent / "cgroup.events").read_text())
    session.rmdir()
    session.parent.rmdir()  # which fails when a launcher has left something


@pytest.fixture
def output_in(output_of: Callable[..., str], session: Path) -> Callable[[str], str]:
    """What another caller prints that is in the session from its beginning."""
    return lambda code: output_of(code, preexec_fn=lambda: (session / "cgroup.procs").write_text("0"))


def cgroup_of(pid: int) -> str:
    """The path of its cgroup, below cgroup2's root."""
    return Path(f"/proc/{pid}/cgroup").read_text().removeprefix("0::").strip()


def test_a_container_of_the_root_cgroup_is_below_it(native: Any, cgroup2: Path, start: Any) -> None:
    pid = start(["sleep", "100"], memory="64m", cpus=1, cpuset_cpus="0").pid
    directory = cgroup2 / f"{PREFIX}{native._launchers.current.token}"
    assert cgroup_of(pid).startswith(f"/{directory.name}/")
    assert {"cpu", "cpuset", "memory", "pids"} <= {*(directory / "cgroup.subtree_control").read_text().split()}
    assert (directory / "cgroup.procs").read_text() == ""


def test_a_container_of_a_session_is_beside_the_session(output_in: Any) -> None:
    code = """
from pathlib import Path
with pycontainer.Container(["sleep", "100"], rootfs=ROOTFS, memory="64m", cpus=0.5, pids_limit=9) as box:
    container, caller = (Path(f"/proc/{pid}/cgroup").read_text().strip()[3:] for pid in (box.pid, "self"))
    print(caller, os.path.dirname(os.path.dirname(container)))
    for name in ("memory.max", "cpu.max", "pids.max"):
        print(Path(f"/sys/fs/cgroup{container}", name).read_text().strip())
"""
    expected = ["/test.slice/session /test.slice", str(64 * MIB), "50000 100000", "9"]
    assert output_in(code).splitlines() == expected


def test_a_container_is_bound_by_the_limits_of_the_slice(output_in: Any, session: Path) -> None:
    (session.parent / "memory.max").write_text("80M")  # the caller is in there, too
    code = """
done = pycontainer.run([sys.executable, "-c", "bytearray(200 << 20).count(1)"], memory="400m")
print(done.returncode)
"""
    assert output_in(code) == "-9\n"


def test_what_a_killed_caller_leaves_in_a_session(caller: Any, session: Path, until: Any) -> None:
    code = "box = pycontainer.Container(['sleep', '100'], rootfs=ROOTFS)\nprint(box.pid, flush=True)\nsys.stdin.read()"
    process = caller(code, preexec_fn=lambda: (session / "cgroup.procs").write_text("0"))
    pid = int(process.stdout.readline())
    process.kill()
    until(lambda: not host.is_alive(pid))
    until(lambda: [path.name for path in session.parent.iterdir() if path.is_dir()] == ["session"])


def test_a_cgroup_parent(session: Path, own_driver: Any, start: Any) -> None:
    box = start(["sleep", "100"], driver=own_driver, cgroup_parent="/test.slice/session", memory="64m")
    assert cgroup_of(box.pid).startswith(f"/test.slice/session/{PREFIX}")
    assert host.cgroup_value(box.pid, "", "memory.max") == str(64 * MIB)


def test_a_cgroup_parent_with_processes_hands_on_no_controllers(
    session: Path, own_driver: Any, start: Any, caller: Any
) -> None:
    caller("sys.stdin.read()", preexec_fn=lambda: (session / "cgroup.procs").write_text("0"))
    keywords = {"driver": own_driver, "cgroup_parent": "/test.slice/session"}
    with pytest.raises(InvalidCommandError, match="nor can cgroup2 enable it below") as caught:
        start(["true"], memory="64m", **keywords)
    assert caught.value.field == "resources.memory"
    assert start(["true"], **keywords).wait(30) == 0
