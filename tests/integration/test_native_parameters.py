"""Kernel parameters of its namespaces, and how the kernel treats its processes. Read from inside and from the host."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

import pytest

from pycontainer import labels
from pycontainer.command import Command
from pycontainer.errors import InvalidCommandError, SetupError

from . import host

pytestmark = pytest.mark.root

# -- sysctls


def test_sysctls_are_set_inside_and_nowhere_else(sh: Any) -> None:
    wanted = {"net/ipv4/ip_forward": "1", "kernel.shmmni": 77, "fs.mqueue.msg_max": "9", "kernel.domainname": "inner"}
    paths = ("net/ipv4/ip_forward", "kernel/shmmni", "fs/mqueue/msg_max", "kernel/domainname")
    before = [Path("/proc/sys", path).read_text() for path in paths]
    # They are set although /proc/sys is read-only to the payload.
    done = sh(f"cd /proc/sys && cat {' '.join(paths)}; echo 0 > net/ipv4/ip_forward", sysctls=wanted)
    assert done.stdout.split() == ["1", "77", "9", "inner"]
    assert "Read-only" in done.stderr
    assert [Path("/proc/sys", path).read_text() for path in paths] == before


@pytest.mark.parametrize(
    ("sysctls", "number"),
    [
        ({"net.ipv4.no_such_parameter": "1"}, errno.ENOENT),
        ({"net.core.netdev_max_backlog": "2000"}, errno.ENOENT),  # there, but the whole host's
        ({"net.ipv4.ip_default_ttl": "64", "net.ipv4.conf.all.forwarding": "maybe"}, errno.EINVAL),
        ({"net.ipv4": "1"}, errno.EISDIR),
    ],
)
def test_what_the_kernel_refuses(start: Any, sysctls: Any, number: int) -> None:
    backlog = Path("/proc/sys/net/core/netdev_max_backlog").read_text()
    with pytest.raises(SetupError) as caught:
        start(["true"], sysctls=sysctls)
    *_, (name, value) = sysctls.items()
    assert caught.value.step == f"set {name} to {value}"
    assert caught.value.errno in (number, errno.EACCES)
    assert Path("/proc/sys/net/core/netdev_max_backlog").read_text() == backlog


def test_nothing_in_the_rootfs_receives_them(start: Any, hostile: Any) -> None:
    (hostile.path / "proc").rmdir()
    (hostile.path / "proc").symlink_to(hostile.canary)
    with pytest.raises(SetupError):
        start(["true"], rootfs=hostile.path, sysctls={"net.ipv4.ip_forward": 1})


# -- labels, on whatever kernel: that of the cgroup2 machine has AppArmor


@pytest.mark.parametrize("name", ["apparmor_profile", "selinux_label", "mount_label"])
def test_a_label_that_the_kernel_does_not_know(start: Any, name: str) -> None:
    keywords = {name: "u:r:t:s0"}
    if not [*labels.unknown_labels(Command.of(["true"], **keywords))]:
        with pytest.raises(SetupError):  # the kernel has the module, and the module no such label
            start(["true"], **keywords)
        return
    with pytest.raises(InvalidCommandError, match="this kernel has no") as caught:
        start(["true"], **keywords)
    assert caught.value.field == name


def test_an_apparmor_profile(start: Any) -> None:
    """The one that every kernel with AppArmor has; without AppArmor the test above has said what holds."""
    if [*labels.unknown_labels(Command.of(["true"], apparmor_profile="unconfined"))]:
        return
    box = start(["sleep", "100"], apparmor_profile="unconfined")
    assert box.receipt().differences(box.command) == ()
    read = ["cat", "/proc/self/attr/current"]
    assert box.exec(read, capture_output=True).stdout == Path(f"/proc/{box.pid}/attr/current").read_bytes()


@pytest.mark.parametrize(
    ("keywords", "step"),
    [
        ({"apparmor_profile": "p"}, "set the AppArmor profile p"),
        ({"selinux_label": "u:r:t:s0"}, "set the SELinux label u:r:t:s0"),
    ],
)
def test_a_label_is_written_where_the_kernel_reads_it(
    start: Any, hostile: Any, monkeypatch: pytest.MonkeyPatch, keywords: Any, step: str
) -> None:
    monkeypatch.setattr(labels, "unknown_labels", lambda command: ())
    fakes = [hostile.file(f"proc/self/{name}", "fake") for name in ("attr/exec", "attr/apparmor/exec")]
    with pytest.raises(SetupError) as caught:
        start(["true"], rootfs=hostile.path, **keywords)
    # EINVAL: nobody to ask (fs/proc/base.c); ENOENT: AppArmor, asked for a profile that it has not
    assert (caught.value.step, caught.value.errno) in [(step, errno.EINVAL), (step, errno.ENOENT)]
    assert [fake.read_text() for fake in fakes] == ["fake", "fake"]


# -- the out-of-memory killer, processors


def test_oom_score_adj(start: Any) -> None:
    box = start(["sleep", "100"], oom_score_adj=321)
    assert Path(f"/proc/{box.pid}/oom_score_adj").read_text() == "321\n"
    assert box.exec(["cat", "/proc/self/oom_score_adj"], capture_output=True).stdout == b"321\n"


def test_oom_score_adj_of_an_init_is_its_payloads(sh: Any) -> None:
    assert sh("cat /proc/1/oom_score_adj /proc/self/oom_score_adj", oom_score_adj=5, init=True).stdout == "5\n5\n"


def test_to_be_killed_later_takes_a_capability(start: Any, native: Any) -> None:
    if native.host.capabilities >> 24 & 1:
        assert Path(f"/proc/{start(['sleep', '9'], oom_score_adj=-1).pid}/oom_score_adj").read_text() == "-1\n"
    else:
        with pytest.raises(InvalidCommandError, match="CAP_SYS_RESOURCE") as caught:
            start(["true"], oom_score_adj=-1)
        assert caught.value.field == "oom_score_adj"


def affinity(pid: int) -> str:
    return host.status(pid)["Cpus_allowed_list"]


@pytest.mark.parametrize("last", [False, True])
def test_cpu_affinity(start: Any, last: bool) -> None:
    processor = str((max if last else min)(os.sched_getaffinity(0)))
    box = start(["sleep", "100"], cpu_affinity=processor)
    assert affinity(box.pid) == processor
    found = box.exec(["grep", "Cpus_allowed_list", "/proc/self/status"], capture_output=True, text=True).stdout
    assert found.split() == ["Cpus_allowed_list:", processor]


@pytest.mark.parametrize("processors", ["0-9999", "99999", "4095"])
def test_processors_that_are_not_there(start: Any, processors: str) -> None:
    with pytest.raises(SetupError, match="affinity") as caught:
        start(["true"], cpu_affinity=processors)
    assert caught.value.errno == errno.EINVAL


# -- what the caller has is not what its containers get


def test_the_first_callers_treatment_does_not_come_along(output_of: Any) -> None:
    output = output_of(
        """
import ctypes
every = os.sched_getaffinity(0)
os.sched_setaffinity(0, {min(every)})
os.nice(5)
os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
libc = ctypes.CDLL(None)
libc.prctl(29, ctypes.c_ulong(123456))
libc.personality(0x0040000)
libc.syscall(251 if os.uname().machine == "x86_64" else 30, 1, 0, 3 << 13)
with open("/proc/self/oom_score_adj", "w") as file:
    file.write("200")
# The launcher shows it: a payload cannot read its own timer slack without a program for that.
box = pycontainer.Container(["sleep", "100"], rootfs=ROOTFS)
pid = box.pid
print(os.sched_getaffinity(pid) == every)
print(os.getpriority(os.PRIO_PROCESS, pid), os.sched_getscheduler(pid))
for name in ("oom_score_adj", "timerslack_ns", "personality"):
    print(open(f"/proc/{pid}/{name}").read().strip())
print(libc.syscall(252 if os.uname().machine == "x86_64" else 31, 1, pid))
box.close()
"""
    )
    assert output.split() == ["True", "0", "0", "0", "50000", "00000000", "0"]


def test_resource_limits_are_the_callers_at_the_start(output_of: Any) -> None:
    output = output_of(
        """
import resource
def limit():
    done = pycontainer.run(["cat", "/proc/self/limits"], rootfs=ROOTFS, capture_output=True, text=True, check=True)
    lines = {line[:25].strip(): line[25:].split()[:2] for line in done.stdout.splitlines()}
    print(*lines["Max msgqueue size"], *lines["Max open files"])
resource.setrlimit(resource.RLIMIT_MSGQUEUE, (0, 8192))
resource.setrlimit(resource.RLIMIT_NOFILE, (300, 400))
limit()
resource.setrlimit(resource.RLIMIT_MSGQUEUE, (1024, 4096))
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 400))
limit()
resource.setrlimit(resource.RLIMIT_MSGQUEUE, (0, 4096))
limit()
"""
    )
    assert re.split(r"\n", output.strip()) == ["0 8192 300 400", "1024 4096 200 400", "0 4096 200 400"]
