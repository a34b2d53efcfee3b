"""Containers of an ordinary user: root runs these tests, and drops to such a user for them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.root, pytest.mark.tool("newuidmap", "busybox")]

ORDINARY = Path(__file__).with_name("ordinary.py")
UID = 54321  # nobody's on the host, so that whatever runs as this user is of these tests
RANGE = "--ids=2000000:65536"

#: What the tests' scripts begin with: a busybox of the user's own.
PREPARE = """
import os, shutil, subprocess, sys, pycontainer
from pycontainer import *
os.makedirs("root/bin"), os.makedirs("root/etc")
shutil.copy(shutil.which("busybox"), "root/bin/busybox")
for name in ("sh", "id", "cat", "ls", "sleep", "stat", "touch", "readlink", "true", "tty", "ip", "kill", "hostname"):
    os.symlink("busybox", f"root/bin/{name}")
def sh(script, **keywords):
    keywords = {"rootfs": "root", "capture_output": True, "text": True, "timeout": 60, **keywords}
    done = pycontainer.run(["sh", "-c", script], **keywords)
    assert done.returncode == 0, done
    return done.stdout
"""

AsUser = Callable[..., str]


def running() -> list[psutil.Process]:
    """The user's processes; not those that have ended, and that only the host's init has to hear of yet."""
    found = psutil.process_iter(["uids", "status"])
    return [p for p in found if p.info["uids"] and UID in p.info["uids"] and p.info["status"] != psutil.STATUS_ZOMBIE]


@pytest.fixture
def as_user() -> Iterator[AsUser]:
    """Runs Python code as an ordinary user: what it prints. Nothing of the user's is left running."""

    def as_user(code: str, *options: str) -> str:
        argv = [sys.executable, str(ORDINARY), *options, str(UID), sys.executable, "-c", PREPARE + code]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=300, cwd="/")
        assert done.returncode == 0, done.stderr
        return done.stdout

    yield as_user
    assert running() == []


@pytest.fixture
def cgroups() -> Iterator[list[str]]:
    """A cgroup in every v1 hierarchy that limits, as options that make it the user's and put him there."""
    from pycontainer_native.cgroups import detect

    places = [place for place in detect().hierarchies if place.version == 1]
    if not places:
        pytest.skip("no cgroup v1")
    made = []
    for place in places:
        directory = Path(place.base, f"rootless-{os.getpid()}")
        directory.mkdir()
        made.append(directory)
        if "cpuset" in place.controllers:
            for name in ("cpuset.cpus", "cpuset.mems"):
                (directory / name).write_text(Path(place.base, name).read_text())
    yield [f"--cgroup={directory}" for directory in made]
    for directory in made:
        directory.rmdir()


@pytest.mark.parametrize("options", [(), (RANGE,)], ids=["one id", "a range"])
def test_the_kit(options: tuple[str, ...]) -> None:
    kit = ["-p", "no:cacheprovider", "-q", "--pyargs", "pycontainer.testing.conformance", "--container-driver=native"]
    argv = [sys.executable, str(ORDINARY), *options, str(UID), sys.executable, "-m", "pytest", *kit]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=900, cwd="/")
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
    assert running() == []


@pytest.mark.tool("pasta")
def test_the_kit_with_cgroups_of_his_own(cgroups: list[str]) -> None:
    kit = ["-p", "no:cacheprovider", "-q", "--pyargs", "pycontainer.testing.conformance", "--container-driver=native"]
    argv = [sys.executable, str(ORDINARY), *cgroups, RANGE, "--tun", str(UID), sys.executable, "-m", "pytest", *kit]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=900, cwd="/")
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout
    assert running() == []


def test_the_catalogue(cgroups: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Every row that does not need root (security/rows.py); of the mutants, some: root sees them all caught."""
    checkout = Path(__file__).parents[2]
    chosen = "not mutant or a1_cve or b9_ or c7_ or e14_ or f7_"
    tests = ["-q", "-p", "no:cacheprovider", "-c", str(checkout / "pyproject.toml"), "-m", "not root", "-k", chosen]
    user = [sys.executable, str(ORDINARY), *cgroups, RANGE, f"--show={checkout}", str(UID)]
    argv = [*user, sys.executable, "-m", "pytest", *tests, "--rootless", str(checkout / "tests/security")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=900, cwd="/")
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout
    [counts] = (line for line in done.stdout.splitlines() if "catalogue:" in line)
    with capsys.disabled():
        print(f"\nrootless: {counts.strip('= ')}")
    green, rows, caught, mutants, *_ = map(int, re.findall(r"\d+", counts))
    assert green == rows >= 120
    assert caught == mutants >= 5
    assert running() == []


def test_the_ids(as_user: AsUser) -> None:
    script = 'print(sh("cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups; id -u; id -g"))'
    assert as_user(script).split() == [*["0", str(UID), "1"] * 2, "deny", "0", "0"]
    expected = ["0", str(UID), "1", "1", "2000000", "65536"]
    assert as_user(script, RANGE).split() == [*expected * 2, "allow", "0", "0"]


def test_who_he_is_outside(as_user: AsUser) -> None:
    code = """
with Container(["sleep", "60"], rootfs="root", user="1000:2000", groups=["3000"]) as box:
    status = open(f"/proc/{box.pid}/status").read()
    print(*(line.split(":")[1] for line in status.splitlines() if line.startswith(("Uid", "Gid", "Groups", "CapEff"))))
"""
    uid, gid = ["2000999"] * 4, ["2001999"] * 4
    assert as_user(code, RANGE).split() == [*uid, *gid, "2001999", "2002999", "0000000000000000"]


@pytest.mark.parametrize("options", [(), (RANGE,)], ids=["one id", "a range"])
def test_the_receipt(as_user: AsUser, options: tuple[str, ...]) -> None:
    """What the kernel says of an ordinary user's container is what was asked for."""
    code = """
from attrs import evolve
asked = [{}, {"rootfs": None}, {"read_only": True, "init": True}, {"network": "host"}, {"cap_drop": ["ALL"]},
         {"privileged": True}, {"user": "1000:2000", "groups": ["5"]}][:COUNT]
for keywords in asked:
    with Container(["sleep", "60"], **{"rootfs": "root", **keywords}) as box:
        receipt = box.receipt()
        unchecked = {one.field for one in receipt.unchecked(box.command)}
        assert not {"hostname", "network"} & unchecked, unchecked
        print(*receipt.differences(box.command), bool(receipt.differences(evolve(box.command, pid="host"))))
    print(*run(["true"], receipt=True, **{"rootfs": "root", **keywords}).receipt.differences(box.command))
"""
    count = 7 if options else 6  # with one id there is no other user
    assert as_user(code.replace("COUNT", str(count)), *options).split() == ["True"] * count


def test_files_are_the_users_own(as_user: AsUser) -> None:
    code = """
os.mkdir("shared")
sh("touch /of-root /shared/too", mounts=[Mount("./shared", "/shared")])
print(os.stat("root/of-root").st_uid, os.stat("shared/too").st_uid)
"""
    assert as_user(code).split() == [str(UID)] * 2


@pytest.mark.parametrize("keywords", ["user='1000'", "user='0:1000'", "groups=['1000']"])
def test_an_id_that_is_not_there(as_user: AsUser, keywords: str) -> None:
    code = f"""
try:
    sh("true", {keywords})
except InvalidCommandError as error:
    print(error)
"""
    field = "process.additional_groups" if "groups" in keywords else "process.user"
    output = as_user(code)
    assert output.startswith(f"{field}: "), output
    assert "1000 does not exist in the user namespace: it has 0 (/etc/subuid" in output


def test_limits_without_a_cgroup_are_refused(as_user: AsUser) -> None:
    code = """
driver = get_driver("native")
for name, value in {"memory": "64m", "cpus": 1, "pids_limit": 10, "cpuset_cpus": "0"}.items():
    try:
        sh("true", **{name: value})
    except InvalidCommandError as error:
        print(error.problems[0][0])
with Container(["sleep", "60"], rootfs="root") as box:
    for verb in (box.pause, box.stats, lambda: box.update(memory="64m")):
        try:
            verb()
        except (UnsupportedError, InvalidCommandError) as error:
            print(type(error).__name__)
probe = driver.probe()
print(probe.usable, probe.features[Feature.ROOTLESS].usable, probe.features[Feature.MEMORY].usable)
print(probe.features[Feature.MEMORY].remedy)
"""
    lines = as_user(code).splitlines()
    assert [line.rpartition(".")[2] for line in lines[:4]] == ["memory", "cpu_quota", "pids_limit", "cpuset_cpus"]
    assert lines[4:6] == ["UnsupportedError"] * 2
    assert lines[6] in ("UnsupportedError", "InvalidCommandError")
    assert lines[7] == "True True False"
    assert "Delegate=yes" in lines[8]


def test_limits_in_a_cgroup_of_his_own(as_user: AsUser, cgroups: list[str]) -> None:
    code = """
done = pycontainer.run(["sh", "-c", "x=x; while true; do x=$x$x; done"], rootfs="root", memory="16m", timeout=60)
print(done.status.oom_killed)
with Container(["sleep", "60"], rootfs="root", pids_limit=7) as box:
    box.pause(), box.unpause()
    print(box.stats().pids.limit)
"""
    assert as_user(code, *cgroups).split() == ["True", "7"]


def test_the_killer_of_processes_is_told_of_all_of_them(as_user: AsUser, cgroups: list[str]) -> None:
    """Where a new procfs would be one of a pid namespace that is not the user's: for exec, and with the host's."""
    code = """
read = ["cat", "/proc/self/oom_score_adj"]
with Container(["sleep", "60"], rootfs="root", oom_score_adj=500) as box:
    print(box.exec(read, capture_output=True, text=True).stdout.strip())
print(pycontainer.run(read, rootfs="root", pid="host", oom_score_adj=600, capture_output=True, text=True).stdout)
"""
    assert as_user(code, *cgroups).split() == ["500", "600"]


def test_his_processes(as_user: AsUser) -> None:
    code = """
with Container(["sh", "-c", "sleep 60 & echo ready; wait"], rootfs="root", stdout=-1) as box:
    assert box.stdout.readline() == b"ready\\n"
    further = box.exec(["readlink", "/proc/self/ns/pid"], capture_output=True, text=True)
    assert further.stdout.strip() == os.readlink(f"/proc/{box.pid}/ns/pid")
    print(len(box.pids()), box.pid in box.pids())
    box.kill()
    print(box.wait())
"""
    lines = as_user(code).split()
    assert lines[:2] == ["2", "True"]


def test_a_terminal(as_user: AsUser) -> None:
    assert as_user('print(sh("tty", tty=True))').split() == ["/dev/pts/0"]
    assert as_user('print(sh("stat -c %t:%T /dev/console", tty=True))').strip().startswith("88:")


def test_the_network(as_user: AsUser) -> None:
    assert "lo: <LOOPBACK,UP" in as_user('print(sh("ip -o link show up"))')


def test_the_hosts_namespaces(as_user: AsUser) -> None:
    """Where the host's are shared, what shows them is the host's too, and its cgroups stay hidden."""
    code = """
own = [os.readlink(f"/proc/self/ns/{name}") for name in ("net", "ipc", "uts")]
script = "for n in net ipc uts; do readlink /proc/self/ns/$n; done; ls /sys/fs/cgroup; touch /sys/x 2> /dev/null; true"
print(sh(script, network="host", ipc="host", uts="host").split() == own)
"""
    assert as_user(code).split() == ["True"]


def test_devices(as_user: AsUser) -> None:
    code = """
names = ("null", "zero", "full", "random", "urandom", "tty")
print(sh(f"cd /dev; stat -c %n:%t:%T {' '.join(names)}; echo x > /dev/null"))
"""
    expected = ["null:1:3", "zero:1:5", "full:1:7", "random:1:8", "urandom:1:9", "tty:5:0"]
    assert as_user(code).split() == expected


def test_what_belongs_to_others_stays_theirs(as_user: AsUser) -> None:
    """In the view of the host's programs too: the host's root is nobody there."""
    code = """
print(pycontainer.run(["sh", "-c", "stat -c %u /usr/bin; touch /usr/bin/x; touch /tmp/x && echo fine"],
                      capture_output=True, text=True))
"""
    output = as_user(code)
    assert "stdout='65534\\nfine\\n'" in output
    assert not Path("/usr/bin/x").exists()


def test_no_rights_on_the_host(as_user: AsUser) -> None:
    """The launcher has all rights in its namespace, and none over what belongs to others, mounted there or not."""
    with tempfile.NamedTemporaryFile() as secret:  # for root alone, where everybody may look
        code = f'print(sh("cat /secret 2>&1; true", mounts=[Mount("{secret.name}", "/secret")]))'
        assert as_user(code).strip() == "cat: can't open '/secret': Permission denied"


def test_the_launcher_cannot_be_looked_into(as_user: AsUser) -> None:
    """Once it is root of its namespace, nobody outside traces it, and nobody writes to its image (CVE-2019-5736)."""
    code = """
driver = get_driver("native")
sh("true")
pid = driver._launchers.current.pid
status = dict(line.split(":", 1) for line in open(f"/proc/{pid}/status").read().splitlines())
print(status["Threads"].strip(), os.readlink(f"/proc/{pid}/ns/user") != os.readlink("/proc/self/ns/user"))
try:
    open(f"/proc/{pid}/exe", "r+b")
except OSError as error:
    print(error.strerror)
"""
    output = as_user(code).splitlines()
    assert output[0] == "1 True"
    assert output[1] in ("Read-only file system", "Permission denied", "Text file busy")


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "os.kill(driver._launchers.current.pid, 9), os._exit(0)"])
def test_everything_ends_with_the_caller(as_user: AsUser, until: Callable[..., None], end: str) -> None:
    code = f"""
driver = get_driver("native")
box = Container(["sleep", "1000"], rootfs="root")
print(box.pid, flush=True)
{end}
"""
    argv = [sys.executable, str(ORDINARY), str(UID), sys.executable, "-c", PREPARE + code]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, timeout=60, cwd="/")
    assert done.stdout.strip().isdecimal()
    until(lambda: running() == [])


def test_no_user_namespaces(as_user: AsUser) -> None:
    code = """
try:
    sh("true")
except DriverUnavailableError as error:
    print(error.probe.cause)
    print(error.probe.remedy)
print(get_driver("native").probe().usable)
"""
    cause, remedy, usable = as_user(code, "--without-namespaces").splitlines()
    assert cause.startswith("rootless: enter a user namespace: ENOSPC")
    assert remedy.startswith("sysctl -w user.max_user_namespaces=")
    assert usable == "False"


def test_a_line_in_subuid_that_is_refused(as_user: AsUser) -> None:
    """Ids that newuidmap(1) does not find there: its own words are in the error."""
    code = """
import pycontainer_native.userns as userns
userns.subordinates = lambda file, uid: iter([(5, 10)])
try:
    sh("true")
except DriverUnavailableError as error:
    print(error.probe.cause)
    print(error.probe.remedy)
"""
    cause, remedy = as_user(code).splitlines()
    assert cause.startswith("rootless: write the id maps (/usr/bin/newuidmap refused: ")
    assert "/etc/subuid" in remedy


def test_the_command_line(as_user: AsUser) -> None:
    code = """
run = [sys.executable, "-m", "pycontainer"]
print(subprocess.run([*run, "run", "--rootfs", "root", "id", "-u"], capture_output=True, text=True))
print(subprocess.run([*run, "doctor"], capture_output=True, text=True))
"""
    output = as_user(code)
    assert "stdout='0\\n'" in output
    assert "one uid and one gid" in output


def test_a_bridge_is_the_hosts_matter(as_user: AsUser) -> None:
    code = """
from pycontainer import UnsupportedError
first = Container(["sleep", "60"], rootfs="root")
try:
    sh("true", network="bridge")
except UnsupportedError as error:
    print(error.feature.value, "ordinary user" in str(error))
shared = sh("readlink /proc/self/ns/net", network=f"container:{first.id}").strip()
print(shared == os.readlink(f"/proc/{first.pid}/ns/net"))
first.close()
"""
    assert as_user(code).splitlines() == ["network True", "True"]


def test_without_a_directory_for_records_nothing_is_detached(as_user: AsUser) -> None:
    """As of an account that nobody has logged in to, by su(1) or a service: /run/user has nothing for it."""
    said = as_user(
        """
os.environ.pop("XDG_RUNTIME_DIR", None)
driver = get_driver("native")
seen = driver.probe().features[Feature.RESTORE]
print(seen.usable, seen.cause, seen.remedy)
try:
    Container(["true"], rootfs="root", driver=driver, detach=True)
except ContainerError as error:
    print(error)
"""
    )
    probed, raised = said.splitlines()
    for text in (probed, raised):
        assert f"root /run/user/{UID}/pycontainer is no place for the state of containers" in text
        assert "loginctl enable-linger" in text
    assert probed.startswith("False ")


def test_a_limit_that_cannot_be_applied_is_named_once(as_user: AsUser) -> None:
    """Nobody asked for the limit of memory and swap that is made of the one of memory."""
    said = as_user(
        """
try:
    run(["true"], rootfs="root", memory="64m")
except InvalidCommandError as error:
    print(sorted(field for field, _ in error.problems))
"""
    )
    assert said == "['resources.memory']\n"
