"""B: procfs, sysfs, masks, sysctls and what is written there."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

import attrs
import pytest

from pycontainer import Mount
from pycontainer.command import Command
from pycontainer.errors import ContainerError, InvalidCommandError, SetupError
from pycontainer.spec import to_oci
from pycontainer_native import abi, capabilities, mounts, plan, steps

from ..integration import host
from .catalogue import row
from .mutants import Patch, PlanMutant, Several, given, left_out, not_mounted, resolving
from .stages import MS_BIND, enter, in_own_mounts, libc

#: runc's and moby's, written down here so that the code's own list is not believed.
MASKED = (
    *("/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats"),
    *("/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats"),
    *("/sys/devices/virtual/powercap", "/sys/firmware"),
)
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
KNOBS = (
    *("/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/kernel/hotplug"),
    *("/proc/sys/fs/binfmt_misc/register", "/proc/sys/vm/drop_caches", "/proc/sys/vm/overcommit_memory"),
    *("/proc/sys/net/ipv4/ip_forward", "/proc/sys/kernel/hostname", "/proc/irq/default_smp_affinity"),
    *("/sys/kernel/uevent_helper", "/sys/power/state", "/sys/kernel/mm/ksm/run", "/sys/module/printk/parameters/time"),
    *("/sys/kernel/profiling", "/sys/fs/cgroup/release_agent", "/sys/kernel/debug/sched_features"),
)


masked_by_path = Patch("", "pycontainer_native.mounts.split_hidden", lambda *both: (((), ()), both))


def lost(path):
    return left_out(f"mask {path}", "move_mount")


#: Everything that keeps root inside from doing what CAP_SYS_ADMIN may.
with_sys_admin = (
    left_out("drop CAP_SYS_ADMIN from the bounding set"),
    given("set capabilities", "capset", None, capabilities.capset_data(1 << 21, 1 << 21, 0)[1]),
    left_out("load the seccomp filter"),
)


_enter = steps.enter


def _labelling(k, *inputs):
    """As others set a label: by a path in the container's own /proc."""
    _enter(k, *inputs)
    with k.step("write a label"):
        attribute = k.openat2(abi.AT_FDCWD, b"/proc/thread-self/attr/exec", os.O_WRONLY, 0)
        k.call("write", attribute, b"unconfined", 10)


@row("B1", mutants=[Patch("a label is written by path", "pycontainer_native.steps.enter", _labelling)])
def test_b1_cve_2015_1334_exec_trusts_no_proc_of_the_container(start, until):
    script = """
mount -t tmpfs fake /proc
mkdir -p /proc/thread-self/attr /proc/self/attr /proc/self/fd
touch /proc/thread-self/attr/exec /proc/self/attr/exec /proc/ready
sleep 100 & wait
"""
    box = start(["sh", "-c", script], privileged=True)
    proc = Path(f"/proc/{box.pid}/root/proc")
    until((proc / "ready").exists)
    done = box.exec(["sh", "-c", "mkdir /proc/own && mount -t proc proc /proc/own && cat /proc/own/self/status"],
                    capture_output=True, text=True)  # fmt: skip
    assert [path.stat().st_size for path in proc.glob("*/attr/exec")] == [0, 0]
    init = host.status(box.pid)
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"):
        assert f"{name}:\t{init[name]}\n" in done.stdout, done.stderr


def _ours_first(k, root, system, user_mounts, *rest):
    """/proc, /sys and /dev before the user's mounts, which may then lie over them."""
    _mount_all(k, root, system, (), *rest)
    _mount_all(k, root, (), user_mounts, *rest)


_mount_all = mounts.mount_all


@row(
    "B2",
    "B14",
    mutants=[
        Patch("any target is taken", "pycontainer.mount.refuse", lambda *_: None),
        Patch("the user's mounts come last", "pycontainer_native.mounts.mount_all", _ours_first),
    ],
)
def test_b2_cve_2015_3631_nothing_is_mounted_on_proc_or_sys(start, hostile, tmp_path):
    for target in (
        *("/proc", "/proc/", "//proc", "/proc/self", "/proc/net", "//proc/../proc/x", "/a/../proc/sys", "/./proc"),
        *("/sys", "/sys/fs/cgroup", "/sys/kernel", "/", "/dev"),
    ):
        with pytest.raises(InvalidCommandError):
            Mount(str(tmp_path), target)
    fake = tmp_path / "fake"
    (fake / "sys").mkdir(parents=True)
    (fake / "version").write_text("fake")
    for link in ("/proc", "proc", "../../../proc"):
        hostile.link("mnt", link)
        try:
            box = start(["sleep", "100"], rootfs=hostile, mounts=[Mount(str(fake), "/mnt")])
        except ContainerError:
            continue
        top = [mount for mount in host.mounts(box.pid) if mount.path == "/proc"][-1]
        assert (top.fstype, top.root) == ("proc", "/")


@row("B3", mutants=[PlanMutant("the image's /proc is used", not_mounted("/proc"))])
def test_b3_cve_2019_16884_a_proc_of_the_image(sh, hostile):
    for name in ("version", "self/attr/exec", "self/attr/apparmor/exec", "1/status", "sys/kernel/hostname"):
        hostile.file(f"proc/{name}", "fake")
    done = sh("cat /proc/version; stat -f -c %t /proc", rootfs=hostile)
    assert done.stdout == f"{Path('/proc/version').read_text()}9fa0\n"
    assert (hostile.path / "proc/self/attr/exec").read_text() == "fake"


def _null_of_the_image(step):
    """The root is mounted on a directory of the scratch mount, which lies over the old /proc."""
    if not (step.call == "open_tree" and step.label.startswith("mask ") and step.arguments[0] == (abi.NULL,)):
        return None
    return step._replace(arguments=(abi.AT_FDCWD, b"/proc/root/dev/null", *step.arguments[2:]))


_LABEL = "set net.ipv4.ip_default_ttl"


def _by_path(step):
    if not (step.label.startswith(_LABEL) and step.call == "openat2"):
        return None
    _, path, how, size = step.arguments
    return step._replace(arguments=(abi.AT_FDCWD, b"/proc/" + path, how[:16] + bytes(8), size))


@row("B4", mutants=[PlanMutant("written by its path", _by_path)])
def test_b4_cve_2025_52881_another_file_of_proc_over_the_one_that_is_written(held):
    box = held(_LABEL, sysctls={"net.ipv4.ip_default_ttl": "42"}, readonly_paths=())
    other, wanted = b"/proc/sys/net/ipv4/tcp_fin_timeout", b"/proc/sys/net/ipv4/ip_default_ttl"

    def cover():
        enter(box.pid, "net", "mnt")  # each network namespace has names of its own there
        assert libc.mount(other, wanted, None, MS_BIND, None) == 0

    in_own_mounts(cover)
    with contextlib.suppress(SetupError):  # as good
        box.start()

        def look():
            enter(box.pid, "net")  # /proc/sys/net is that of who looks
            assert Path(os.fsdecode(other)).read_text() == "60\n"
            assert Path(os.fsdecode(wanted)).read_text() == "42\n"

        in_own_mounts(look)


@row(
    "B5",
    mutants=[
        Several(
            "masked with the image's /dev/null",
            PlanMutant("", _null_of_the_image, not_mounted("/dev")),
            masked_by_path,
        )
    ],
)
def test_b5_cve_2025_31133_dev_null_of_the_image_masks_nothing(sh, hostile):
    paths = " ".join(path for path in MASKED if path.startswith("/proc") and os.path.isfile(path))
    assert paths
    for target in (hostile.canary / "file", "/proc/sysrq-trigger", "/etc/passwd"):
        hostile.link("dev/null", target)
        try:
            done = sh(f"cat {paths}; stat -c %t:%T {paths}", rootfs=hostile)
        except ContainerError as error:
            pytest.fail(str(error))  # the image has no part in it
        assert {*done.stdout.split()} == {"1:3"}


@row("B6", mutants=[PlanMutant("one of them stays writable", left_out("make /proc/sys read-only", "move_mount"))])
def test_b6_cve_2015_3630_read_only_paths(start, sh):
    box = start(["sleep", "100"])
    found = {mount.path: mount.options for mount in host.mounts(box.pid)}
    there = [path for path in READ_ONLY if os.path.exists(path)]
    assert "/proc/sys" in there
    for path in there:
        assert "ro" in found.get(path, ())
    assert "ro" not in found["/proc"]
    files = "/proc/timer_stats /proc/latency_stats /proc/fs/* /proc/asound/*"
    assert sh(f"for f in {files}; do [ ! -f $f ] || : 2>&1 >>$f || continue; done; cat /proc/timer_stats").stdout == ""


@row(
    "B7",
    mutants=[
        PlanMutant("a file is not masked", lost("/proc/keys")),
        PlanMutant("a directory is not masked", lost("/sys/firmware")),
    ],
)
def test_b7_cve_2018_10892_masked_paths(sh):
    there = [path for path in MASKED if os.path.exists(path)]
    assert {"/proc/keys", "/proc/timer_list", "/sys/firmware"} <= {*there}
    for path in there:
        done = sh(f"if [ -d {path} ]; then ls -A {path}; touch {path}/x; else cat {path}; fi")
        assert done.stdout == "", path
        assert not os.path.isdir(path) or done.returncode != 0


@row(
    "B8",
    mutants=[
        PlanMutant("/proc/sys is writable", left_out("make /proc/sys read-only", "move_mount")),
        PlanMutant("sysfs is writable", given("mount sysfs on /sys", "fsmount", None, None, 0)),
    ],
)
def test_b8_knobs_of_the_host_are_out_of_reach(sh):
    there = [path for path in KNOBS if os.path.exists(path)]
    assert {path.split("/")[1] for path in there} == {"proc", "sys"}
    # They are opened, and nothing is written.
    done = sh(f"for f in {' '.join(there)}; do (: >>$f) 2>/dev/null && echo $f; done; echo on")
    assert done.stdout == "on\n"


@row("B9", mutants=[PlanMutant("CAP_SYS_ADMIN, and no filter", *with_sys_admin)])
def test_b9_a_mask_cannot_be_taken_away(sh):
    done = sh("umount /proc/keys; umount -l /sys/firmware; umount /proc/sys; echo $(wc -c </proc/keys)")
    assert done.stdout == "0\n"
    assert done.stderr.count("ermitted") == 3


_mask_and_protect = mounts.mask_and_protect


def _masks_first(k, root, system, user_mounts, *rest):
    _mount_all(k, root, system, (), *rest)
    _mask_and_protect(k, root, ["/data/secret"], [])
    _mount_all(k, root, (), user_mounts, *rest)


def _no_masks_last(k, root, *paths):
    if root is None:
        _mask_and_protect(k, root, *paths)


@row(
    "B10",
    mutants=[
        Several(
            "masks are laid before the user's mounts",
            Patch("", "pycontainer_native.mounts.mount_all", _masks_first),
            Patch("", "pycontainer_native.mounts.mask_and_protect", _no_masks_last),
        )
    ],
)
def test_b10_masks_lie_over_the_users_mounts(sh, tmp_path, hostile):
    for place in (tmp_path / "data", hostile.path / "data"):
        place.mkdir()
        (place / "secret").write_text("secret")
    keywords = {"rootfs": hostile, "mounts": [Mount(str(tmp_path / "data"), "/data")]}
    assert sh("cat /data/secret", masked_paths=["/data/secret"], **keywords).stdout == ""
    done = sh("echo x >/data/secret", readonly_paths=["/data"], **keywords)
    assert "Read-only file system" in done.stderr


@row("B11", "B12", mutants=[Patch("any key is taken", "pycontainer.sysctl.refuse", lambda *_: None)])
def test_b11_cve_2022_0811_sysctls_are_the_containers_own(busybox_rootfs):
    def refused(sysctls, **keywords):
        try:
            with pytest.raises(InvalidCommandError):
                Command.of(["true"], rootfs=busybox_rootfs, sysctls=sysctls, **keywords)
        except (ValueError, TypeError) as error:
            pytest.fail(repr(error))

    for key in (
        *("kernel.core_pattern", "kernel/core_pattern", "net/../kernel/core_pattern", "net.ipv4/../../kernel/modprobe"),
        *(
            "vm.overcommit_memory",
            "fs.suid_dumpable",
            "fs.mqueue/../suid_dumpable",
            "kernel.hostname",
            "user.max_user_namespaces",
        ),
        *(
            "/net/ipv4/ip_forward",
            "net",
            "net.",
            ".net",
            "net..ipv4",
            "kernel.shm_rmid_forced+kernel.core_pattern",
            "net.a\0b",
        ),
    ):
        refused({key: "1"})
    for value in ("1\n", "a\nb", "a\0b"):
        refused({"net.ipv4.ip_forward": value})
    refused({"net.ipv4.ip_forward": "1"}, network="host")
    refused({"kernel.shmmax": "1"}, ipc="host")
    refused({"fs.mqueue.msg_max": "1"}, ipc="host")
    refused({"kernel.domainname": "x"}, uts="host")


_no_pid_namespace = {**abi.NAMESPACES, "pid": 0}


@row("B13", mutants=[Patch("no pid namespace", "pycontainer_native.abi.NAMESPACES", _no_pid_namespace)])
def test_b13_proc_shows_nobody_else(sh):
    done = sh("echo $$; ls /proc | grep -c '^[0-9]'; cat /proc/1/cmdline; :")
    own, processes, first = done.stdout.splitlines()
    assert own == "1"
    assert int(processes) <= 4  # the shell, ls, grep, and what it forks
    assert first.startswith("sh\0-c\0")


@row(
    "B15",
    mutants=[
        PlanMutant("magic links are followed", resolving("enter /", 0), left_out("enter /", "getcwd")),
    ],
)
def test_b15_magic_links_as_paths(start, hostile, tmp_path, monkeypatch):
    monkeypatch.setattr("pycontainer.stdio.refuse_ways_out", lambda *_: None)  # what stands behind it is tried
    outside = os.open(hostile.canary, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for cwd in ("/proc/self/fd/0", "/proc/self/fd/0/..", "/proc/thread-self/fd/0", "/proc/1/fd/0"):
            with pytest.raises(ContainerError):
                start(["true"], cwd=cwd, stdin=outside)
            hostile.link("job", cwd)
            with pytest.raises(ContainerError):
                start(["true"], rootfs=hostile, cwd="/job", stdin=outside)
            (hostile.path / "job").unlink()
        with pytest.raises(ContainerError):
            start(["true"], rootfs=f"/proc/self/fd/{outside}")
        for source in (f"/proc/self/fd/{outside}", f"/dev/fd/{outside}", "/proc/self/root", "/proc/1/root/etc"):
            with pytest.raises(ContainerError):
                start(["true"], mounts=[Mount(source, "/v")])
    finally:
        os.close(outside)


_mounts_of = plan._mounts_of


def _with_cgroups(about, *rest):
    spec = about.spec
    cgroups = {"type": "bind", "source": "/sys/fs/cgroup", "destination": "/sys/fs/cgroup", "options": ["rbind"]}
    return _mounts_of(attrs.evolve(about, spec={**spec, "mounts": [*spec["mounts"], cgroups]}), *rest)


_HOSTS_SYSFS = {"userns": "auto", "network": "host"}  # a sysfs is its network's: that of the host has its cgroups


@row(
    "B16",
    "G10",
    mutants=[
        Patch("the host's cgroups are bound in", "pycontainer_native.plan._mounts_of", _with_cgroups),
        PlanMutant("the host's sysfs is writable", left_out("clone /sys for /sys", "mount_setattr")),
        PlanMutant("its cgroups are there to be read", left_out("mask /sys/fs/cgroup", "move_mount")),
    ],
)
def test_b16_cve_2023_25809_no_cgroup_of_the_host_is_writable(start, sh, user_namespaces):
    script = """
find /sys/fs/cgroup -name cgroup.procs -o -name tasks -o -name release_agent 2>/dev/null | head -n 50 |
while read -r file; do echo $file; (: >>$file) 2>/dev/null && echo $file is writable; done
echo on
"""
    # Without root of the host it is in a user namespace already.
    for keywords in ({}, {"network": "host"}, *([_HOSTS_SYSFS] if "auto" in user_namespaces else [])):
        box = start(["sleep", "100"], **keywords)
        for mount in host.mounts(box.pid):
            assert not mount.fstype.startswith("cgroup") or "ro" in mount.options, mount
            assert not mount.path.startswith("/sys") or "ro" in mount.options, mount
        assert sh(script, **keywords).stdout == "on\n"


@row(
    "B17",
    mutants=[
        PlanMutant("flags are forgotten", given("mount ", "fsmount", None, None, 0)),
        PlanMutant("those of a bind mount are", left_out("mount /", "mount_setattr")),
    ],
)
def test_b17_requested_flags_are_there(start, busybox_rootfs, tmp_path):
    own = [
        Mount(str(tmp_path), "/a", read_only=True, options=("nosuid", "noexec")),
        Mount(str(tmp_path), "/b", options=("nodev", "nosymfollow")),
        Mount.tmpfs("/c", options=("noexec",), mode=0o700, size="1m"),
    ]
    box = start(["sleep", "100"], mounts=own)
    found = {mount.path: mount.options for mount in host.mounts(box.pid)}
    flags = {"ro", "rro", "nosuid", "nodev", "noexec", "nosymfollow"}
    for mount in to_oci(Command.of(["true"], rootfs=busybox_rootfs, mounts=own))["mounts"]:
        wanted = {re.sub("^rro$", "ro", option) for option in flags & {*mount["options"]}}
        assert wanted <= found[mount["destination"]], mount
