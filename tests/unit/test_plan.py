"""pycontainer_native.plan: what is to be done, in which order, and where a step's outcome leads. Without root."""

from __future__ import annotations

import ctypes
import errno
import json
import marshal
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import pycontainer
from pycontainer.command import Command, Mount
from pycontainer.errors import InvalidCommandError
from pycontainer.rootfs import HostView, Overlay
from pycontainer.spec import to_oci
from pycontainer_native import abi, child, parameters, plan
from pycontainer_native.cgroups import Group
from pycontainer_native.host import Host
from pycontainer_native.request import Request
from pycontainer_native.syscalls import Recorder
from pycontainer_native.userns import UserNamespace

CAPABILITIES = (1 << 41) - 1


@pytest.fixture
def compiled(tmp_path: Path) -> Callable[..., plan.Plan]:
    """Compiles a Command of keywords, for a host that the test states."""

    def compiled(argv: Sequence[str] = ("true",), *, groups: Sequence[Group] = (), hold: bool = False,
                 view: HostView | Overlay | None = None, **keywords: Any) -> plan.Plan:  # fmt: skip
        command = Command.of(argv, rootfs=view or tmp_path, name="box", **keywords)
        host = Host(
            capabilities=CAPABILITIES,
            last_capability=40,
            nofile=(1024, 4096),
            is_directory=lambda path: not path.endswith(".file"),
            is_read_only=lambda path: False,
        )
        return plan.compile(to_oci(command), groups, host, hold=hold)

    return compiled


def steps(a_plan: plan.Plan) -> list[Any]:
    return [step for section in a_plan.sections for step in section.steps]


def labels(a_plan: plan.Plan) -> list[str]:
    """The labels in order, each once where it stands several times in a row."""
    found: list[str] = []
    for step in steps(a_plan):
        if not found or found[-1] != step.label:
            found.append(step.label)
    return found


def in_order(found: Sequence[str], *wanted: str) -> bool:
    at = iter(found)
    return all(any(label.startswith(want) for label in at) for want in wanted)


# -- order


def test_the_order(compiled: Any) -> None:
    v1 = Group("/cg", 1, ("pids",))
    found = labels(
        compiled(groups=[v1], tty=True, user="1000", hold=True, read_only=True, mounts=[Mount("/src", "/v")])
    )
    assert in_order(
        found,
        "dup3",  # where failures are reported comes first
        "die with the launcher",
        "join cgroup",
        "unshare",  # of the cgroup namespace: after the v1 cgroups are joined
        "close foreign descriptors",
        "setsid",
        "join a new session keyring",
        "make mounts private",
        "mount tmpfs on /dev",
        "mount devpts on /dev/pts",
        "mount proc on /proc",
        "mask /proc/kcore",
        "bring lo up",
        "drop CAP_",  # needs CAP_SETPCAP, which a change of ids takes
        "take stdio",  # only from here on the request matters
        "open rootfs",
        "mount /src on /v",  # the user's before /proc: a link of the rootfs finds none to lead to
        "mount proc on /proc",
        "mount tmpfs on /dev",
        "make rootfs read-only",
        "open a terminal",
        "pivot_root",
        "sethostname",
        "set RLIMIT_NOFILE",
    ), found
    assert in_order(
        found,
        "set RLIMIT_NOFILE",
        "set groups and ids",
        "enter /",
        "set capabilities",
        "set no_new_privs",
        "close descriptors on execve",
        "umask",
        "die with the launcher",  # again: the change of ids has cleared it
        "wait for the start",
    ), found
    assert [label for label in found if "seccomp" not in label][-1] == "wait for the start"


def attributes(set_: int, clear: int = 0, propagation: int = 0) -> bytes:
    """struct mount_attr of mount_setattr(2)."""
    return struct.pack("=QQQQ", set_, clear, propagation, 0)


#: What a start does, each with the arguments that matter, as Linux numbers them: labels are only what it is called.
IN_ORDER: list[tuple[Any, ...]] = [
    ("dup3", 3),  # failures are reported from here on
    ("prctl", 1, 9),  # PR_SET_PDEATHSIG, SIGKILL
    ("ppoll",),  # whether the launcher has died before
    ("write", b"0"),  # to cgroup.procs
    ("unshare", 0x02000000),  # CLONE_NEWCGROUP: after the v1 cgroups are joined
    ("close_range", 4, 0xFFFFFFFF, 0),
    ("setsid",),
    ("keyctl", 1, 0),  # KEYCTL_JOIN_SESSION_KEYRING
    ("umask", 0),
    ("mount", b"/", 0x44000),  # MS_REC | MS_PRIVATE
    ("fsopen", b"tmpfs"),
    ("mknodat", b"null", 0o20666, 0x103),
    ("openat2", b"null"),  # what masks
    ("fsopen", b"devpts"),
    ("fsopen", b"proc"),
    ("fsopen", b"sysfs"),
    ("openat2", b"kcore"),
    ("open_tree", (abi.NULL,)),
    ("move_mount",),
    ("ioctl", 0x8914),  # SIOCSIFFLAGS
    ("prctl", 24, 21),  # PR_CAPBSET_DROP, CAP_SYS_ADMIN: needs CAP_SETPCAP, which a change of ids takes
    ("dup3", 0),  # only from here on the request matters
    ("dup3", 1),
    ("dup3", 2),
    ("open_tree", b""),  # of the rootfs
    ("mount_setattr", attributes(5)),  # MOUNT_ATTR_RDONLY | NODEV, all the way down
    ("openat2", b"/src"),
    ("openat2", b"v"),
    ("move_mount",),  # the user's before /proc: a link of the rootfs finds none to lead to
    ("openat2", b"proc"),
    ("move_mount", (abi.PROC,)),
    ("move_mount", (abi.DEV,)),
    ("move_mount", (abi.SYS,)),
    ("openat2", b"dev/pts/ptmx"),
    ("ioctl", 0x5441),  # TIOCGPTPEER
    ("ioctl", 0, 0x540E),  # TIOCSCTTY
    ("fchdir",),
    ("pivot_root", b"."),
    ("umount2", b".", 2),  # MNT_DETACH
    ("chdir", b"/"),
    ("openat2", b".."),
    ("sethostname", b"box"),
    ("close_range", 4, 0xFFFFFFFF, 0),
    ("prlimit64", 7),  # RLIMIT_NOFILE
    ("setgroups", 1),
    ("setresgid", 0),
    ("setresuid", 1000),
    ("openat2", b"/"),
    ("fchdir",),
    ("getcwd",),
    ("prctl", 47, 4),  # PR_CAP_AMBIENT, CLEAR_ALL
    ("capset", bytes(24)),
    ("prctl", 38, 1),  # PR_SET_NO_NEW_PRIVS
    ("close_range", 3, 0xFFFFFFFF, 4),  # CLOSE_RANGE_CLOEXEC
    ("umask", 0o022),
    ("prctl", 1, 9),  # again: the change of ids has cleared it
    ("ppoll",),
    ("sendto", b"g"),
    ("recvfrom",),
    ("seccomp", 1),  # SECCOMP_SET_MODE_FILTER
]


def lacking(found: Sequence[Any], wanted: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Those of *wanted* from the first on that is not there after the ones before it."""
    rest = iter(found)
    for number, (call, *decisive) in enumerate(wanted):
        if not any(step.call == call and all(d in step.arguments for d in decisive) for step in rest):
            return list(wanted[number:])
    return []


def a_start(compiled: Any) -> list[Any]:
    v1 = Group("/cg", 1, ("pids",))
    keywords = {"tty": True, "user": "1000", "read_only": True, "mounts": [Mount("/src", "/v")]}
    return steps(compiled(groups=[v1], hold=True, **keywords))


def test_the_order_of_the_calls(compiled: Any) -> None:
    found = a_start(compiled)
    assert lacking(found, IN_ORDER) == []
    assert found[-1].call == "seccomp"


@pytest.mark.parametrize("call", ["setresuid", "setgroups", "pivot_root", "capset", "setsid", "keyctl", "unshare"])
def test_a_label_alone_is_no_call(compiled: Any, call: str) -> None:
    found = [step._replace(call="prctl", arguments=(3, 0, 0, 0, 0)) if step.call == call else step for step in
             a_start(compiled)]  # fmt: skip
    assert lacking(found, IN_ORDER)


def test_what_is_executed_during_the_set_up_has_the_launchers_bounding_set(compiled: Any) -> None:
    hooks = pycontainer.Hooks(create_container=[pycontainer.Hook("/bin/true")])
    assert in_order(labels(compiled(hooks=hooks)), "take stdio", "pivot_root", "drop CAP_", "set groups and ids")
    for keywords in ({}, {"hooks": hooks}):
        found = labels(compiled(**keywords))
        assert found.count("drop CAP_SYS_ADMIN from the bounding set") == 1


def test_a_parameter_is_written_through_a_proc_that_nobody_can_mount_over(compiled: Any) -> None:
    found = steps(compiled(sysctls={"net.ipv4.ip_forward": 1}))
    fsmount, opened, looked_at, written = [
        step for step in found if step.label in ("open /proc/sys", "set net.ipv4.ip_forward to 1")
    ][-4:]
    assert (fsmount.call, opened.call, looked_at.call, written.call) == ("fsmount", "openat2", "fstatfs", "write")
    assert (looked_at.arguments[0], looked_at.check) == ((opened.out,), (struct.pack("=q", 0x9FA0), errno.EXDEV))
    assert opened.arguments[:2] == ((fsmount.out,), b"sys/net/ipv4/ip_forward")
    how = int.from_bytes(opened.arguments[2][16:], "little")
    assert how == abi.RESOLVE_BENEATH | abi.RESOLVE_NO_XDEV | abi.RESOLVE_NO_MAGICLINKS
    assert written.arguments == ((opened.out,), b"1", 1)
    labels_ = labels(compiled(sysctls={"net.ipv4.ip_forward": 1}))
    assert in_order(labels_, "bring lo up", "open /proc/sys", "set net.ipv4.ip_forward to 1", "set groups and ids")


@pytest.mark.parametrize(
    ("keywords", "label", "paths", "value"),
    [
        (
            {"apparmor_profile": "a profile"},
            "set the AppArmor profile a profile",
            [b"self/attr/apparmor/exec", b"self/attr/exec"],
            b"exec a profile",
        ),
        ({"selinux_label": "u:r:t:s0"}, "set the SELinux label u:r:t:s0", [b"self/attr/exec"], b"u:r:t:s0"),
    ],
)
def test_a_label_is_written_like_that(compiled: Any, keywords: Any, label: str, paths: Any, value: bytes) -> None:
    namespaces = ("mount", "pid", "ipc", "uts", "network", "cgroup")
    process = to_oci(Command.of(["x"], rootfs="/", **keywords))["process"]
    further = plan.compile_exec(process, 0, namespaces, None, Host(capabilities=CAPABILITIES, nofile=(9, 9)))
    for a_plan, before in ((compiled(**keywords), "set RLIMIT_NOFILE"), (further, "enter the container's namespaces")):
        assert in_order(labels(a_plan), label, before)
        made, *opened, looked_at, written = [step for step in steps(a_plan) if step.label == label][2:]
        assert (made.call, looked_at.call, written.call) == ("fsmount", "fstatfs", "write")
        resolve = abi.RESOLVE_BENEATH | abi.RESOLVE_NO_XDEV | abi.RESOLVE_NO_MAGICLINKS
        for number, (step, path) in enumerate(zip(opened, paths, strict=True), 1):
            assert step.arguments[:2] == ((made.out,), path)
            assert int.from_bytes(step.arguments[2][16:], "little") == resolve
            assert step.out == opened[0].out
            # one after the other, as long as there is none
            assert (step.skip, step.accept.get(errno.ENOENT)) == (len(paths) - number, 0 if path != paths[-1] else None)
        assert looked_at.check == (struct.pack("=q", 0x9FA0), errno.EXDEV)
        assert written.arguments == ((opened[0].out,), value, len(value))
    assert not any(str(step.path).startswith("self/attr") for step in steps(compiled()))


def test_further_processes_share_their_steps_whatever_they_execute() -> None:
    one, other = (
        to_oci(Command.of(argv, rootfs="/", env=env))["process"]
        for argv, env in ((["true"], {"A": "1"}), (["/bin/echo", "x"], {"PATH": "/opt", "B": "2"}))
    )
    host = Host(capabilities=CAPABILITIES, nofile=(9, 9))
    compiled = plan.compile_exec(one, 0, ("mount", "pid"), None, host)
    again = plan.compile_exec(other, 0, ("mount", "pid"), None, host)
    assert again.sections is compiled.sections
    assert (again.program.argv, again.program.env) == ((b"/bin/echo", b"x"), (b"PATH=/opt", b"B=2"))
    assert compiled.program.argv == (b"true",)


@pytest.mark.parametrize(
    ("place", "other"),
    [
        (0, {"cwd": "/tmp"}),
        (0, {"user": {"uid": 1, "gid": 1, "umask": 0o022, "additionalGids": []}}),
        (0, {"noNewPrivileges": False}),
        (0, {"terminal": True}),
        (0, {"oomScoreAdj": 7}),
        (1, 1),
        (2, ("mount", "pid", "uts")),
        (3, (0, b"\0" * 8)),
        (4, Host(capabilities=CAPABILITIES, nofile=(8, 9))),
        (4, Host(capabilities=CAPABILITIES, nofile=(9, 9), rlimits=((0, 1, 1),))),
        (4, Host(capabilities=CAPABILITIES, nofile=(9, 9), initial=False)),
        (5, UserNamespace(((0, 1000, 1),), ((0, 1000, 1),), setgroups=False)),
    ],
)
def test_what_a_further_process_is_made_of_is_looked_at(
    place: int, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = to_oci(Command.of(["true"], rootfs="/", oom_score_adj=5))["process"]
    inputs: list[Any] = [process, 0, ("mount", "pid"), None, Host(capabilities=CAPABILITIES, nofile=(9, 9)), None]
    before = plan.compile_exec(*inputs)
    inputs[place] = {**process, **other} if place == 0 else other
    after = plan.compile_exec(*inputs)
    assert after.sections != before.sections
    monkeypatch.setattr(plan, "_sections", {})
    assert after == plan.compile_exec(*inputs)


@pytest.mark.parametrize("tool", ["pasta", "slirp4netns"])
def test_a_tool_that_passes_packets_on(compiled: Any, tool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    a_plan = compiled(network=tool)
    assert a_plan.sections[0] == compiled().sections[0]  # the spare serves it
    assert (a_plan.flags & abi.CLONE_NEWNET, a_plan.entered, a_plan.talks) == (abi.CLONE_NEWNET, (), True)
    gate, _, programs = a_plan.hooks
    assert a_plan.sections[gate + 1].steps[0].label == "pivot_root"
    ((path, argv, env, _),) = programs["relay"]
    assert (path.startswith(b"/"), argv[0], env) == (True, tool.encode(), [])
    closed = {"pasta": b"--no-map-gw -t none -u none -T none -U none", "slirp4netns": b"--disable-host-loopback"}
    assert closed[tool] in b" ".join(argv)


MAPS = {"uid_mappings": [(0, 300000, 1000)], "gid_mappings": [(0, 400000, 1000)]}


def test_layers_in_a_user_namespace(compiled: Any) -> None:
    root = Overlay(("/a", "/b"), upper="/c/up")
    found = compiled(view=root, mounts=[Mount("/src", "/v")], **MAPS)
    assert in_order(
        labels(found),
        "clone /src",  # where the host's mounts are as they are
        "make a mount namespace for the layers",
        "make mounts private",  # or the host would have the layers as well
        "make a place for mounts",
        "map the ids of rootfs.lower /a",
        "map the ids of rootfs.lower /b",
        "follow no links in /c",
        "open layer /c/up",  # where the directory for overlayfs is made, by somebody who does not exist after that
        "map the ids of rootfs.upper /c/up",
        "mount overlay on / (with mapped ids: takes Linux 5.19)",
        "hide the layers",
        "enter the user namespace",
        "make the namespaces",
        "take stdio",
    ), labels(found)
    mount = [step for step in steps(found) if step.label.startswith("mount overlay")]
    assert [step.arguments for step in mount if step.call[:6] == "setres"] == [
        *((-1, 400000, -1), (-1, 300000, -1), (-1, 0, -1), (-1, 0, -1))
    ]
    assert [step.call for step in mount if step.call in ("fsopen", "capset", "setresuid", "fsmount")] == [
        *("setresuid", "capset", "fsopen", "fsmount", "setresuid")
    ]
    assert b"userxattr" not in [step.arguments[2] for step in mount if step.call == "fsconfig"]
    assert [step.arguments[1] for step in steps(found) if step.call == "fsopen" and b"overlay" in step.arguments] == [1]


def test_the_label_of_file_systems(compiled: Any) -> None:
    view = HostView(overlays=("/usr",))
    layers = {"view": Overlay(("/a",)), **MAPS}
    for keywords in ({"mounts": [Mount.tmpfs("/t")]}, {"view": view}, {"network": "ns:/x"}, layers):
        plain = [step for step in steps(compiled(**keywords)) if step.call.startswith("fs")]
        labelled = [step for step in steps(compiled(**keywords, mount_label="u:r:f:s0,c1")) if step.call[:2] == "fs"]
        own = 0
        for step in plain:
            if step.call == "fsopen":
                assert labelled.pop(0).arguments == step.arguments
                has_label, own = step.arguments[0] in (b"tmpfs", b"devpts", b"overlay"), own + 1
                continue
            if step.call == "fsconfig" and step.arguments[1] == abi.FSCONFIG_CMD_CREATE and has_label:
                assert labelled.pop(0).arguments[1:4] == (abi.FSCONFIG_SET_STRING, b"context", b"u:r:f:s0,c1")
            assert labelled.pop(0).arguments == step.arguments
        assert own > 5
        assert labelled == []


@pytest.mark.parametrize(("cpus", "mask"), [("0", b"\1"), ("0-1,9", b"\3\2"), ("64", bytes(8) + b"\1"), ("7", b"\x80")])
def test_a_mask_of_processors(cpus: str, mask: bytes) -> None:
    assert parameters._processors(cpus) == mask


def test_limits_of_the_caller_that_the_launcher_does_not_have(tmp_path: Path) -> None:
    command = Command.of(["true"], rootfs=tmp_path, rlimits={"stack": 5})
    host = Host(capabilities=0, last_capability=1, nofile=(1, 2), rlimits=((4, 7, 8), (3, 9, 9)))
    found = [step.arguments[1] for step in steps(plan.compile(to_oci(command), (), host)) if step.call == "prlimit64"]
    assert found == [7, 4, 3]


def test_masks_come_after_every_mount(compiled: Any) -> None:
    # But those in /proc and /sys, which are there when these get their place, and where no mount of the user's goes.
    own = ("/etc/secret", "/dev/null")
    found = labels(compiled(mounts=[Mount("/src", "/v"), Mount("/src", "/dev/x")], masked_paths=["/proc/kcore", *own]))
    last = [index for index, label in enumerate(found) if label.startswith("mount ")][-1]
    assert found.index("mask /proc/kcore") < last
    assert min(found.index(f"mask {path}") for path in own) > last


def test_what_does_not_depend_on_the_request_comes_before_it(compiled: Any) -> None:
    one = compiled(["sh"], mounts=[Mount("/src", "/v")], read_only=True, hostname="a", user="1000", tty=True, init=True)
    other = compiled(["id"], memory="64m")
    assert one.sections[0] is other.sections[0]
    assert compiled(["id"], privileged=True).sections[0] is not other.sections[0]
    assert compiled(["id"], network="host").sections[0] is not other.sections[0]


def test_the_groups_before_the_group_before_the_user(compiled: Any) -> None:
    calls = [step.call for step in steps(compiled(user="1000")) if step.label == "set groups and ids"]
    assert calls == ["setgroups", "setresgid", "setresuid"]


# -- what a field changes


def test_a_namespace_that_exists_is_entered_and_not_made(compiled: Any) -> None:
    for network in ("ns:/run/netns/x", "container:other", "bridge"):
        a_plan = compiled(network=network)
        assert not a_plan.flags & abi.CLONE_NEWNET
        assert a_plan.entered == (("network", "/run/netns/x" if network.startswith("ns:") else None),)
        assert "network" in a_plan.namespaces  # for exec, which enters it as well
        found = labels(a_plan)
        assert "bring lo up" not in found
        # Before the descriptors are closed, and before sysfs is mounted.
        assert in_order(found, "enter the network namespace", "take stdio", "mount sysfs on /sys"), found
        step = next(step for step in steps(a_plan) if step.label == "enter the network namespace")
        assert (step.call, step.arguments) == ("setns", ((abi.GIVEN,), abi.CLONE_NEWNET))
    assert compiled().entered == compiled(network="none").entered == compiled(network="host").entered == ()


def test_namespaces_are_clone_flags(compiled: Any) -> None:
    every = abi.CLONE_NEWNS | abi.CLONE_NEWPID | abi.CLONE_NEWNET | abi.CLONE_NEWIPC | abi.CLONE_NEWUTS
    assert compiled().flags == every | abi.CLONE_NEWCGROUP
    assert compiled(groups=[Group("/cg", 1, ("pids",))]).flags == every
    assert compiled(network="host", pid="host", ipc="host", uts="host").flags == abi.CLONE_NEWNS | abi.CLONE_NEWCGROUP


@pytest.mark.parametrize(
    ("keywords", "label"),
    [
        ({"network": "host"}, "bring lo up"),
        ({"uts": "host"}, "sethostname"),
        ({"no_new_privileges": False}, "set no_new_privs"),
        ({"privileged": True}, "mask /proc/keys"),
        ({"privileged": True}, "make /proc/sys read-only"),
        ({"capabilities": None, "privileged": True}, "drop CAP_SYS_ADMIN from the bounding set"),
    ],
)
def test_what_is_left_out(compiled: Any, keywords: Any, label: str) -> None:
    assert label in labels(compiled())
    assert label not in labels(compiled(**keywords))


@pytest.mark.parametrize(
    ("keywords", "label"),
    [
        ({"tty": True}, "make it the controlling terminal"),
        ({"read_only": True}, "make rootfs read-only"),
        ({"hold": True}, "wait for the start"),
        ({"rlimits": {"core": 0}}, "set RLIMIT_CORE"),
        ({"cwd": "/work"}, "enter /work"),
        ({"mounts": [Mount.tmpfs("/t")]}, "mount tmpfs on /t"),
        ({"sysctls": {"net.ipv4.ip_forward": 1}}, "set net.ipv4.ip_forward to 1"),
        ({"oom_score_adj": 7}, "set oom_score_adj to 7"),
        ({"cpu_affinity": "0-1"}, "set the affinity to processors 0-1"),
    ],
)
def test_what_is_added(compiled: Any, keywords: Any, label: str) -> None:
    assert label not in labels(compiled())
    assert label in labels(compiled(**keywords))


def test_exactly_the_missing_capabilities_are_dropped(compiled: Any) -> None:
    dropped = {s.arguments[1] for s in steps(compiled(capabilities=["CHOWN", "KILL"])) if s.label.startswith("drop ")}
    assert dropped == {*range(41)} - {0, 5}


def test_paths_to_execute(compiled: Any) -> None:
    assert compiled(["ls"], env={"PATH": "/a::/b"}).program.paths == (b"/a/ls", b"./ls", b"/b/ls")
    assert compiled(["./ls"], env={"PATH": "/a"}).program.paths == (b"./ls",)
    assert compiled(["ls"], env={}).program.paths[0] == b"/usr/local/bin/ls"


def test_every_path_of_the_container_is_resolved_inside_and_without_magic_links(compiled: Any) -> None:
    everything = compiled(
        tty=True, cwd="/w", mounts=[Mount("/src", "/v"), Mount("/a.file", "/etc/x"), Mount.tmpfs("/t")]
    )
    for step in steps(everything):
        if step.call != "openat2":
            assert step.call not in ("open", "openat", "chroot"), step
            continue
        resolve = int.from_bytes(step.arguments[2][16:24], "little")
        if step.arguments[0] == abi.AT_FDCWD:  # the host's, or "/" itself
            assert step.arguments[1] in (b"/", b"..") or resolve & abi.RESOLVE_NO_MAGICLINKS, step
        else:
            safe = (abi.RESOLVE_IN_ROOT | abi.RESOLVE_NO_MAGICLINKS, abi.RESOLVE_BENEATH | abi.RESOLVE_NO_SYMLINKS)
            assert resolve in safe or step.arguments[1] == b"console", step


def test_nothing_is_mounted_by_a_path(compiled: Any) -> None:
    by_path = [step for step in steps(compiled(tty=True, mounts=[Mount("/src", "/v")])) if step.call == "mount"]
    assert [step.label for step in by_path] == ["make mounts private"]


# -- where a step leads


def boundaries(a_plan: plan.Plan) -> None:
    for section in a_plan.sections:
        for index, step in enumerate(section.steps):
            for skip in (step.skip, *(skip for skip in step.accept.values() if skip != abi.RETRY)):
                assert index + 1 + skip <= len(section.steps), step


def test_no_skip_leads_out_of_its_section(compiled: Any) -> None:
    boundaries(compiled(tty=True, mounts=[Mount("/src", "/a/b/c"), Mount("/x.file", "/d/e.file")]))
    boundaries(compiled(view=HostView.detect()))


class Kernel:
    """Stands in for the kernel: every call succeeds with a new number, unless the test says otherwise."""

    def __init__(self, answer: Callable[[str, tuple[Any, ...]], int | None]) -> None:
        self.answer = answer
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.names = {number: name for name, number in abi.NR.items()}
        self.next = 100

    def __call__(self, number: Any, *arguments: Any) -> int:
        name = self.names[number.value]
        plain = tuple(a.value if isinstance(a, ctypes.c_long) else a for a in arguments)
        self.calls.append((name, plain))
        error = self.answer(name, plain)
        if error:
            ctypes.set_errno(error)
            return -1
        if name == "getcwd":
            arguments[0].value = b"/"
        self.next += 1
        return self.next


@pytest.fixture
def execute(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes the calls of a plan, or a section, by the launcher's own code. (what failed, the calls)"""

    def execute(a_plan: Any, answer: Callable[[str, tuple[Any, ...]], int | None] = lambda *_: None) -> Any:
        kernel = Kernel(answer)
        monkeypatch.setattr(child, "syscall", kernel)
        monkeypatch.setattr(child, "_sections", {})
        sections = [a_plan] if isinstance(a_plan, plan.Section) else a_plan.sections
        try:
            child.run_steps([child.bind(section.data) for section in sections], 0)
        except child.StepError as error:
            return (error.index, error.errno), kernel.calls
        return None, kernel.calls

    return execute


def section(record: Callable[[Recorder], None]) -> plan.Section:
    return plan._record(record, abi.FIRST_SLOT)


def test_a_network_that_a_user_namespace_owns(compiled: Any) -> None:
    """It is there before the start, and so is its owner; without one the launcher makes that with the start."""
    maps = {"uid_mappings": [(0, 300000, 10)], "gid_mappings": [(0, 300000, 10)]}
    bridged, own, plain = compiled(network="bridge", **maps), compiled(**maps), compiled()
    assert bridged.entered == (("user", None), ("network", None))
    assert own.entered == ()
    ids = Request.__slots__.index("ids")
    assert marshal.loads(bridged.wire("box"))[ids] is None
    assert marshal.loads(own.wire("box"))[ids] == (b"0 300000 10\n",) * 2
    found = labels(bridged)
    # Its owner first, for the right to; before sysfs is mounted, which shows it.
    assert in_order(found, "enter the user namespace", "enter the network namespace", "mount sysfs on /sys"), found
    assert "enter the network namespace" not in labels(own) + labels(plain)
    [entered] = [step for step in steps(bridged) if step.label == "enter the network namespace"]
    assert (entered.call, entered.arguments) == ("setns", ((abi.GIVEN + 1,), abi.CLONE_NEWNET))
    for a_plan, new in ((bridged, 0), (own, abi.CLONE_NEWNET)):
        [unshare] = [step for step in steps(a_plan) if step.label == "make the namespaces"]
        assert unshare.arguments[0] & (abi.CLONE_NEWNET | abi.CLONE_NEWUSER) == new
    assert bridged.namespaces == (*plain.namespaces, "user")  # for exec, which enters all of them


def test_more_descriptors_than_a_message_carries_are_refused(compiled: Any) -> None:
    def mounts(count: int) -> list[Mount]:
        maps = {"uid_mappings": [(0, 1, 1)], "gid_mappings": [(0, 1, 1)]}
        return [Mount(f"/src/{number}", f"/v/{number}", **maps) for number in range(count)]

    assert len(compiled(mounts=mounts(240)).cloned) == 240
    with pytest.raises(InvalidCommandError, match="at most 240"):
        compiled(mounts=mounts(241))


def test_all_of_it_is_called(compiled: Any, execute: Any) -> None:
    a_plan = compiled(tty=True, mounts=[Mount("/src", "/v")])
    failed, calls = execute(a_plan)
    assert failed is None
    called = [name for name, _ in calls]
    assert called.count("pivot_root") == 1
    assert [name for name in called if name != "seccomp"][-1] == "ppoll"


def test_every_failure_is_named(compiled: Any, execute: Any) -> None:
    a_plan = compiled(["sh"], mounts=[Mount("/src", "/v")])
    for call, expected in (("pivot_root", "pivot_root"), ("sethostname", "sethostname"), ("setresuid", "set groups")):
        failed, calls = execute(a_plan, lambda name, _, call=call: errno.EPERM if name == call else None)
        assert failed[1] == errno.EPERM
        assert a_plan.step_at(failed[0])[0].startswith(expected)
        assert calls[-1][0] == call  # and nothing after it
    total = len(steps(a_plan))
    assert a_plan.step_at(total) == ("execve", "sh")


@pytest.mark.parametrize("missing", ["keys", "acpi", "firmware", "kcore"])
def test_a_mask_without_its_path_is_skipped_whole(compiled: Any, execute: Any, missing: str) -> None:
    def answer(name: str, arguments: tuple[Any, ...]) -> int | None:
        return errno.ENOENT if name == "openat2" and arguments[1] == missing.encode() else None

    def mounted(calls: list[Any]) -> int:
        return sum(name == "move_mount" for name, _ in calls)

    a_plan = compiled()
    (failed, calls), (_, full) = execute(a_plan, answer), execute(a_plan)
    assert failed is None
    assert mounted(full) - mounted(calls) == 1
    assert execute(a_plan, lambda n, a: errno.EACCES if answer(n, a) else None)[0][1] == errno.EACCES


def test_masks_of_an_unknown_kind_find_out(compiled: Any, execute: Any) -> None:
    a_plan = compiled(masked_paths=["/some/path"], readonly_paths=[])

    def opened(error: int | None, only_directory: bool = True) -> list[str]:
        def answer(name: str, arguments: tuple[Any, ...]) -> int | None:
            if name != "openat2" or arguments[1] != b"some/path":
                return None
            wants_directory = int.from_bytes(arguments[2][:8], "little") & abi.O_DIRECTORY
            return error if wants_directory or not only_directory else None

        failed, calls = execute(a_plan, answer)
        assert failed is None
        start = next(index for index, (_, arguments) in enumerate(calls) if b"some/path" in arguments)
        end = next(index for index, (name, _) in enumerate(calls) if name == "fchdir")  # pivot_root's
        return [name for name, _ in calls[start:end]]

    assert opened(None) == ["openat2", "open_tree", "move_mount"]
    assert opened(errno.ENOTDIR) == ["openat2", "openat2", "open_tree", "move_mount"]
    assert opened(errno.ENOENT, only_directory=False) == ["openat2"]


def test_a_missing_target_is_made_one_component_at_a_time(compiled: Any, execute: Any) -> None:
    a_plan = compiled(mounts=[Mount("/src", "/a/b")])
    tried: list[bytes] = []

    def answer(name: str, arguments: tuple[Any, ...]) -> int | None:
        if name == "openat2" and arguments[1] == b"a/b":
            tried.append(arguments[1])
            return errno.ENOENT if len(tried) == 1 else None
        return None

    failed, calls = execute(a_plan, answer)
    assert failed is None
    assert [arguments[1] for name, arguments in calls if name == "mkdirat"][-2:] == [b"a", b"b"]
    there = [name for name, arguments in execute(a_plan)[1] if b"a/b" in arguments or b"b" in arguments]
    assert there == ["openat2"]


def test_an_undecidable_lookup_is_tried_again_but_not_for_ever(execute: Any) -> None:
    def record(k: Recorder) -> None:
        k.openat2(abi.AT_FDCWD, b"x", 0, abi.RESOLVE_IN_ROOT)
        k.call("setsid")

    once = section(record)
    for times, failed in ((0, None), (3, None), (abi.RETRIES, None), (abi.RETRIES + 1, (0, errno.EAGAIN))):
        left = [times]

        def answer(name: str, _: Any, left: list[int] = left) -> int | None:
            if name == "openat2" and left[0]:
                left[0] -= 1
                return errno.EAGAIN
            return None

        assert execute(once, answer)[0] == failed


def test_a_result_goes_where_it_is_needed(execute: Any) -> None:
    def record(k: Recorder) -> None:
        fd = k.openat2(abi.AT_FDCWD, b"x", 0, 0)
        k.call("fchdir", fd)
        k.call("write", 1, [7, fd, [1, fd]], 3)

    failed, calls = execute(section(record))
    assert failed is None
    opened = 101
    assert calls[1] == ("fchdir", (opened,))
    assert list(calls[2][1][1])[:2] == [7, opened]
    inner = ctypes.cast(list(calls[2][1][1])[2], ctypes.POINTER(ctypes.c_long))
    assert inner[:2] == [1, opened]


def test_a_wrong_answer_in_a_buffer_is_a_failure(execute: Any) -> None:
    def record(k: Recorder) -> None:
        k.call("recvfrom", 3, ("buffer", 1), 1, 0, 0, 0, check=(b"s", errno.EPIPE))

    assert execute(section(record))[0] == (0, errno.EPIPE)


# -- as data


def test_a_plan_is_plain_data(compiled: Any) -> None:
    request = compiled(["sh", "-c", "x"], init=True).wire("box")
    assert marshal.dumps(marshal.loads(request)) == request or marshal.loads(request)
    assert compiled().wire("box") == compiled().wire("box")


def test_equal_parts_are_made_once(compiled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_sections", {})  # a full one is emptied, perhaps between the two
    first, second = compiled(["a"], hostname="one"), compiled(["b"], hostname="two")
    shared = [a is b for a, b in zip(first.sections, second.sections, strict=True)]
    assert shared.count(False) == 1  # the hostname
    assert compiled(read_only=True).sections[1] is not first.sections[1]


def test_excerpts(compiled: Any) -> None:
    found = [(step.label, step.call, step.arguments) for step in steps(compiled(["sh"], hostname="box"))]
    for excerpt in (
        ("make mounts private", "mount", (0, b"/", 0, abi.MS_REC | abi.MS_PRIVATE, 0)),
        ("mount proc on /proc", "fsopen", (b"proc", 1)),
        ("pivot_root", "pivot_root", (b".", b".")),
        ("sethostname", "sethostname", (b"box", 3)),
        ("set no_new_privs", "prctl", (38, 1, 0, 0, 0)),
        ("set capabilities", "prctl", (47, 4, 0, 0, 0)),
        ("umask", "umask", (0o022,)),
    ):
        assert excerpt in found


def test_the_view_of_the_host(compiled: Any) -> None:
    view = HostView(
        overlays=("/usr",), links=(("/bin", "usr/bin"),), files=("/etc/passwd",), trees=("/etc/ssl/certs",),
        directories=(("/tmp", 0o1777),),
    )  # fmt: skip
    found = compiled(view=view)
    assert in_order(
        labels(found),
        "make the root of the host view",
        "mount overlay on /usr",
        "mount /etc/ssl/certs",
        "copy /etc/passwd",
    )
    assert json.loads(view.to_json())["overlays"] == ["/usr"]
    made = [step.arguments for step in steps(found) if step.call == "symlinkat"]
    assert made[-1][0] == b"usr/bin"
    assert made[-1][2] == b"bin"
