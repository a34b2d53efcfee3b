"""``pycontainer explain``: a plan in words, compiled without root and carried out by nobody."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pycontainer import Command, Mount
from pycontainer.spec import to_oci
from pycontainer_native import plan
from pycontainer_native.cgroups import Group
from pycontainer_native.explain import describe
from pycontainer_native.host import Host

HOST = Host(capabilities=(1 << 41) - 1, last_capability=40, nofile=(1024, 4096), is_read_only=lambda path: False)
GROUPS = (
    Group(
        base="/sys/fs/cgroup/memory", version=1, controllers=("memory",), writes=(("memory.limit_in_bytes", "4096"),)
    ),
    Group(base="/sys/fs/cgroup", version=2, controllers=()),
)


def lines(tmp_path: Path, **keywords: object) -> list[str]:
    command = Command.of(["true"], rootfs=tmp_path, env={"PATH": "/bin:/usr/bin"}, **keywords)  # type: ignore[arg-type]
    return list(describe(plan.compile(to_oci(command), GROUPS, HOST)))


def test_every_line_says_who_takes_the_step(tmp_path: Path) -> None:
    assert {line.partition(": ")[0] for line in lines(tmp_path)} == {"launcher", "child"}


@pytest.mark.parametrize(
    "line",
    [
        "launcher: make cgroup /sys/fs/cgroup/memory/.../ (memory)",
        "launcher: write 4096 to memory.limit_in_bytes",
        "launcher: "
        "clone3(CLONE_NEWNS|CLONE_NEWPID|CLONE_NEWNET|CLONE_NEWIPC|CLONE_NEWUTS|CLONE_PIDFD|CLONE_INTO_CGROUP)",
        "child: die with the launcher: prctl(PR_SET_PDEATHSIG, 9, 0, 0, 0)",
        'child: make mounts private: mount(0, "/", 0, MS_REC|MS_PRIVATE, 0)',
        'child: pivot_root: pivot_root(".", ".")',
        "child: drop CAP_SYS_ADMIN from the bounding set: prctl(PR_CAPBSET_DROP, 21, 0, 0, 0)",
        "child: set no_new_privs: prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)",
        'child: execve: execve("/bin/true", ["true"], env)',
        'child: execve: execve("/usr/bin/true", ["true"], env)',
    ],
)
def test_line(tmp_path: Path, line: str) -> None:
    assert line in lines(tmp_path)


def test_a_user_namespace(tmp_path: Path) -> None:
    maps = {"uid_mappings": [(0, 300000, 10), (10, 7, 1)], "gid_mappings": [(0, 400000, 10)]}
    made = [
        "launcher: make a user namespace: clone(CLONE_NEWUSER|CLONE_PIDFD)",
        "launcher: write 0 300000 10, 10 7 1 to uid_map",
        "launcher: write 0 400000 10 to gid_map",
    ]
    own = lines(tmp_path, **maps)
    assert own[:3] == made
    assert not [line for line in own if "network namespace" in line]
    mapped = next(line for line in own if "MOUNT_ATTR_IDMAP" in line)
    assert re.search(r"AT_EMPTY_PATH\|AT_RECURSIVE, \{set MOUNT_ATTR_IDMAP, clear 0, ids of \$\d+\}, 32\)$", mapped), (
        mapped
    )
    bridged = lines(tmp_path, network="bridge:br0", **maps)
    assert bridged[:5] == [
        *made,
        "launcher: make a network namespace in it: unshare(CLONE_NEWNET)",
        "caller: put the container's interfaces into that",
    ]
    assert "child: enter the network namespace: setns(given1, CLONE_NEWNET)" in bridged


def test_no_number_stands_for_flags(tmp_path: Path) -> None:
    found = lines(tmp_path, mounts=[Mount(str(tmp_path), "/data", read_only=True)], read_only=True)
    assert not [line for line in found if "0x" in line]


def test_ways_that_a_step_can_go(tmp_path: Path) -> None:
    mask = next(line for line in lines(tmp_path) if line.startswith("child: mask /proc/kcore: openat2"))
    assert mask.endswith("[ENOENT: skips 2]")
    target = next(line for line in lines(tmp_path) if line.startswith("child: mount proc on /proc: openat2"))
    assert target.endswith("[done: skips 2; ENOENT: goes on]")


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "pycontainer", "explain", "--rootfs", str(tmp_path), "true"]
    program = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert program.stdout is not None
    assert program.stderr is not None
    with program.stdout, program.stderr:
        program.stdout.readline()
        program.stdout.close()
        assert program.stderr.read() == ""
    assert program.wait() in (0, 128 + 13)  # 0: it had written everything into the pipe before
