"""pycontainer.spec: a Command as an OCI runtime specification."""

from __future__ import annotations

import json
import os
import shutil
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from pycontainer import rootfs
from pycontainer.command import DEFAULT_CAPABILITIES, DEFAULT_PATH, Command, Mount, Network
from pycontainer.errors import InvalidCommandError
from pycontainer.rootfs import HostView
from pycontainer.spec import MASKED_PATHS, READONLY_PATHS, process_to_oci, resources_to_oci, to_oci


@pytest.fixture
def box(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0::/root:\nalice:x:1000:1001::/home/alice:\n")
    (tmp_path / "etc/group").write_text("extra:x:2000:alice\n")
    return tmp_path


def spec_of(box: Path, **keywords: Any) -> dict[str, Any]:
    return to_oci(Command.of(["true"], rootfs=box, name="box", **keywords))


def namespaces(spec: dict[str, Any]) -> list[str]:
    return [namespace["type"] for namespace in spec["linux"]["namespaces"]]


def test_a_plain_command(box: Path) -> None:
    spec = spec_of(box)
    assert spec["ociVersion"] == "1.0.2"
    assert spec["root"] == {"path": str(box), "readonly": False}
    assert spec["hostname"] == "box"
    assert spec["annotations"] == {}
    assert spec["process"] == {
        "terminal": False,
        "user": {"uid": 0, "gid": 0, "umask": 18, "additionalGids": []},
        "args": ["true"],
        "env": [f"PATH={DEFAULT_PATH}", "HOME=/root"],
        "cwd": "/",
        "capabilities": {
            "bounding": list(DEFAULT_CAPABILITIES),
            "effective": list(DEFAULT_CAPABILITIES),
            "permitted": list(DEFAULT_CAPABILITIES),
            "inheritable": [],
            "ambient": [],
        },
        "rlimits": [],
        "noNewPrivileges": True,
    }
    assert spec["linux"]["resources"] == {}
    assert sorted(namespaces(spec)) == ["cgroup", "ipc", "mount", "network", "pid", "uts"]
    assert "cgroupsPath" not in spec["linux"]


def test_parameters_and_treatment(box: Path) -> None:
    spec = spec_of(box, sysctls={"net/ipv4/ip_forward": 1}, oom_score_adj=-3, cpu_affinity="0-1")
    assert spec["linux"]["sysctl"] == {"net.ipv4.ip_forward": "1"}
    assert spec["process"]["oomScoreAdj"] == -3
    assert spec["process"]["execCPUAffinity"] == {"initial": "0-1", "final": "0-1"}


@pytest.mark.parametrize("tool", ["pasta", "slirp4netns"])
def test_a_tool_that_passes_packets_on(box: Path, tool: str) -> None:
    spec = spec_of(box, network=tool)
    assert spec["annotations"]["org.pycontainer.relay"] == tool
    assert "org.pycontainer.network" not in spec["annotations"]
    assert {"type": "network"} in spec["linux"]["namespaces"]


def test_labels(box: Path) -> None:
    plain, spec = spec_of(box), spec_of(box, apparmor_profile="a b", selinux_label="u:r:t:s0", mount_label="u:r:f:s0")
    assert (spec["process"].pop("apparmorProfile"), spec["process"].pop("selinuxLabel")) == ("a b", "u:r:t:s0")
    assert spec["linux"].pop("mountLabel") == "u:r:f:s0"
    assert spec == plain


def test_namespaces_that_exist(box: Path) -> None:
    spec = spec_of(box, pid="ns:/run/pid", ipc="container:other", uts="container:third")
    assert {"type": "pid", "path": "/run/pid"} in spec["linux"]["namespaces"]
    assert {"type": "ipc"} in spec["linux"]["namespaces"]
    assert json.loads(spec["annotations"]["org.pycontainer.namespaces"]) == {"ipc": "other", "uts": "third"}
    assert "hostname" not in spec


def test_it_is_json_and_new_each_time(box: Path) -> None:
    command = Command.of(["true"], rootfs=box)
    one, two = to_oci(command), to_oci(command)
    assert json.loads(json.dumps(one)) == one == two

    def spoil(value: Any) -> None:
        """Change every list and dict in place."""
        for inner in list(value.values() if isinstance(value, dict) else value):
            if isinstance(inner, (dict, list)):
                spoil(inner)
        value.clear()

    spoil(one)
    assert to_oci(command) == two


# -- process


@pytest.mark.parametrize(
    ("keywords", "env"),
    [
        ({}, [f"PATH={DEFAULT_PATH}", "HOME=/root"]),
        ({"user": "alice"}, [f"PATH={DEFAULT_PATH}", "HOME=/home/alice"]),
        ({"user": "5"}, [f"PATH={DEFAULT_PATH}", "HOME=/"]),
        ({"tty": True}, [f"PATH={DEFAULT_PATH}", "HOME=/root", "TERM=xterm"]),
        ({"env": {}}, []),
        ({"env": {"B": "1", "A": "x=y"}, "tty": True}, ["B=1", "A=x=y"]),
    ],
)
def test_env(box: Path, keywords: dict[str, Any], env: list[str]) -> None:
    assert spec_of(box, **keywords)["process"]["env"] == env


def test_nothing_of_the_callers_environment(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CVE-2021-3602."""
    monkeypatch.setenv("SECRET", "s3cr3t")
    assert "s3cr3t" not in json.dumps(spec_of(box, tty=True))


def test_user(box: Path) -> None:
    spec = spec_of(box, user="alice:extra", groups=["7"])
    assert spec["process"]["user"] == {"uid": 1000, "gid": 2000, "umask": 18, "additionalGids": [7]}
    with pytest.raises(InvalidCommandError, match="bob"):
        spec_of(box, user="bob")
    with pytest.raises(InvalidCommandError, match="nogroup"):
        spec_of(box, groups=["nogroup"])


@pytest.mark.parametrize("user", ["alice", "1000", "5:0", "4294967294"])
@pytest.mark.parametrize("more", [{}, {"cap_add": ["sys_admin"]}, {"privileged": True}])
def test_only_root_starts_with_capabilities(box: Path, user: str, more: dict[str, Any]) -> None:
    """CVE-2018-10856: they were left in the permitted set of a user who is not root."""
    capabilities = spec_of(box, user=user, **more)["process"]["capabilities"]
    assert capabilities["bounding"]
    assert [capabilities[name] for name in ("effective", "permitted", "inheritable", "ambient")] == [[], [], [], []]


@pytest.mark.parametrize("user", ["root", "0", "0:1000", None])
def test_inheritable_and_ambient_stay_empty(box: Path, user: str | None) -> None:
    """CVE-2022-24769."""
    capabilities = spec_of(box, user=user, cap_add=["ALL"])["process"]["capabilities"]
    assert capabilities["inheritable"] == capabilities["ambient"] == []
    assert capabilities["bounding"] == capabilities["effective"] == capabilities["permitted"]
    assert len(capabilities["bounding"]) > len(DEFAULT_CAPABILITIES)


def test_given_capabilities(box: Path) -> None:
    for keywords in ({"capabilities": ["kill"]}, {"capabilities": ["kill"], "privileged": True}):
        assert spec_of(box, **keywords)["process"]["capabilities"]["bounding"] == ["CAP_KILL"]
    assert spec_of(box, cap_drop=["ALL"])["process"]["capabilities"]["bounding"] == []


def test_rlimits(box: Path) -> None:
    assert spec_of(box, rlimits={"nofile": (64, 128), "core": -1})["process"]["rlimits"] == [
        {"type": "RLIMIT_NOFILE", "soft": 64, "hard": 128},
        {"type": "RLIMIT_CORE", "soft": 2**64 - 1, "hard": 2**64 - 1},
    ]


def test_the_process_of_an_exec_is_the_same(box: Path) -> None:
    command = Command.of(["id", "-u"], rootfs=box, user="alice", cwd="/x", tty=True, no_new_privileges=False)
    process = process_to_oci(command.process, str(box))
    assert process == to_oci(command)["process"]
    assert (process["args"], process["cwd"], process["terminal"]) == (["id", "-u"], "/x", True)
    assert process["noNewPrivileges"] is False


# -- limits


@pytest.mark.parametrize(
    ("keywords", "resources"),
    [
        ({"memory": "64m"}, {"memory": {"limit": 64 << 20, "swap": 128 << 20}}),
        ({"memory": "64m", "memory_swap": 0}, {"memory": {"limit": 64 << 20, "swap": 128 << 20}}),
        ({"memory": "64m", "memory_swap": -1}, {"memory": {"limit": 64 << 20, "swap": -1}}),
        ({"memory": "64m", "memory_swap": "64m"}, {"memory": {"limit": 64 << 20, "swap": 64 << 20}}),
        ({"memory_swap": 0}, {}),
        ({"cpus": 0.5, "cpu_shares": 512}, {"cpu": {"shares": 512, "quota": 50000, "period": 100000}}),
        ({"cpu_quota": 1000}, {"cpu": {"quota": 1000}}),
        ({"cpuset_cpus": "0", "cpuset_mems": "0-1"}, {"cpu": {"cpus": "0", "mems": "0-1"}}),
        ({"pids_limit": 10}, {"pids": {"limit": 10}}),
        ({"pids_limit": -1}, {"pids": {"limit": -1}}),
    ],
)
def test_resources(box: Path, keywords: dict[str, Any], resources: dict[str, Any]) -> None:
    assert spec_of(box, **keywords)["linux"]["resources"] == resources
    assert resources_to_oci(Command.of(["true"], **keywords).resources) == resources


def test_cgroups_path(box: Path) -> None:
    assert spec_of(box, cgroup_parent="/a/b")["linux"]["cgroupsPath"] == "/a/b/box"


# -- mounts


def test_the_default_mounts_come_first(box: Path) -> None:
    default = spec_of(box)["mounts"]
    assert [(mount["destination"], mount["type"]) for mount in default] == [
        ("/proc", "proc"),
        ("/dev", "tmpfs"),
        ("/dev/pts", "devpts"),
        ("/dev/shm", "tmpfs"),
        ("/dev/mqueue", "mqueue"),
        ("/sys", "sysfs"),
    ]
    for mount in default:
        assert "nosuid" in mount["options"]
    assert {"nosuid", "noexec", "nodev", "ro"} == set(default[-1]["options"])
    assert set(default[2]["options"]) >= {"newinstance", "ptmxmode=0666", "mode=0620", "gid=5", "noexec"}
    mounts = spec_of(box, mounts=[Mount("/b", "/y"), Mount("/a", "/x")])["mounts"]
    assert mounts[: len(default)] == default
    assert [mount["destination"] for mount in mounts[len(default) :]] == ["/y", "/x"]


@pytest.mark.parametrize(
    ("mount", "expected"),
    [
        (Mount("/a", "/b"), ("/a", "bind", ["rbind"])),
        (Mount("/a", "/b", read_only=True), ("/a", "bind", ["rbind", "rro"])),
        (Mount("/a", "/b", read_only=True, recursive=False), ("/a", "bind", ["bind", "ro"])),
        (Mount("/a", "/b", options=["nodev", "noatime"]), ("/a", "bind", ["rbind", "nodev", "noatime"])),
        (Mount.tmpfs("/b"), ("tmpfs", "tmpfs", ["nosuid", "nodev"])),
        (
            Mount.tmpfs("/b", size="1m", mode=0o700, read_only=True, options=["noexec", "nodev"]),
            ("tmpfs", "tmpfs", ["nosuid", "nodev", "noexec", "ro", "mode=0700", "size=1048576"]),
        ),
    ],
)
def test_a_users_mount(box: Path, mount: Mount, expected: tuple[str, str, list[str]]) -> None:
    source, kind, options = expected
    assert spec_of(box, mounts=[mount])["mounts"][-1] == {
        "destination": "/b",
        "source": source,
        "type": kind,
        "options": options,
    }


# -- what is hidden


def test_masks(box: Path) -> None:
    linux = spec_of(box)["linux"]
    assert linux["maskedPaths"][: len(MASKED_PATHS)] == list(MASKED_PATHS)
    assert linux["readonlyPaths"] == list(READONLY_PATHS)
    rest = linux["maskedPaths"][len(MASKED_PATHS) :]
    assert all(path.startswith("/sys/devices/system/cpu/cpu") for path in rest)


def test_the_masks_are_mobys() -> None:
    """daemon/pkg/oci/defaults.go: what a container could always read once becomes an advisory when it can again."""
    proc = ["acpi", "asound", "interrupts", "kcore", "keys", "latency_stats", "sched_debug", "scsi"]
    proc += ["timer_list", "timer_stats"]
    sys = ["devices/virtual/powercap", "firmware"]
    assert [*(f"/proc/{name}" for name in proc), *(f"/sys/{name}" for name in sys)] == list(MASKED_PATHS)
    assert [f"/proc/{name}" for name in ("bus", "fs", "irq", "sys", "sysrq-trigger")] == list(READONLY_PATHS)


def test_given_masks(box: Path) -> None:
    for privileged in (False, True):
        linux = spec_of(box, masked_paths=["/proc/x"], readonly_paths=[], privileged=privileged)["linux"]
        assert (linux["maskedPaths"], linux["readonlyPaths"]) == (["/proc/x"], [])


def test_privileged(box: Path) -> None:
    spec = spec_of(box, privileged=True)
    assert spec["linux"]["maskedPaths"] == spec["linux"]["readonlyPaths"] == []
    assert "rw" in spec["mounts"][-1]["options"]
    assert "ro" not in spec["mounts"][-1]["options"]
    with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
        assert len(spec["process"]["capabilities"]["effective"]) == int(file.read()) + 1
    assert spec["process"]["noNewPrivileges"] is True


def test_read_only(box: Path) -> None:
    assert spec_of(box, read_only=True)["root"]["readonly"] is True


# -- namespaces


@pytest.mark.parametrize("name", ["pid", "ipc", "uts"])
def test_the_hosts_namespace(box: Path, name: str) -> None:
    spec = spec_of(box, **{name: "host"})
    assert name not in namespaces(spec)
    assert len(namespaces(spec)) == 5
    assert ("hostname" in spec) is (name != "uts")


@pytest.mark.parametrize(("network", "own"), [(None, True), ("none", True), ("host", False), ("bridge", True)])
def test_network(box: Path, network: str | None, own: bool) -> None:
    spec = spec_of(box, network=network)
    assert ("network" in namespaces(spec)) is own
    assert ("org.pycontainer.network" in spec["annotations"]) is (network == "bridge")


def test_the_path_of_a_network(box: Path) -> None:
    spec = spec_of(box, network="ns:/run/netns/x")
    assert {"type": "network", "path": "/run/netns/x"} in spec["linux"]["namespaces"]
    assert "org.pycontainer.network" not in spec["annotations"]


def test_several_networks_are_written_down(box: Path) -> None:
    spec = spec_of(box, network=["bridge:a", "bridge:b"])
    assert [network["bridge"] for network in json.loads(spec["annotations"]["org.pycontainer.network"])] == ["a", "b"]


def test_a_network_is_written_down(box: Path) -> None:
    network = Network(address="10.0.0.2", prefix_length=24)
    assert Network(**json.loads(spec_of(box, network=network)["annotations"]["org.pycontainer.network"])) == network
    assert "org.pycontainer.network" in spec_of(box, network="container:other")["annotations"]


def test_hostname(box: Path) -> None:
    assert spec_of(box, hostname="h")["hostname"] == "h"
    command = Command.of(["true"], rootfs=box, name="x" * 128)
    assert to_oci(command)["hostname"] == "x" * 64


# -- annotations


def test_annotations(box: Path) -> None:
    command = Command.of(["true"], rootfs=box, annotations={"a": "b"}, init=True)
    assert to_oci(command)["annotations"] == {"a": "b", "org.pycontainer.init": "true"}
    assert command.annotations == {"a": "b"}


def test_the_hosts_own_programs() -> None:
    spec = to_oci(Command.of(["true"]))
    assert spec["root"]["path"] == "rootfs"
    assert HostView.from_json(spec["annotations"]["org.pycontainer.rootfs"]) == HostView.detect()
    view = HostView(overlays=("/usr",))
    spec = to_oci(Command.of(["true"], rootfs=view))
    assert HostView.from_json(spec["annotations"]["org.pycontainer.rootfs"]) == view


class Host:
    """A host of which a file and a directory are shown, unless something there is private."""

    def __init__(self, path: Path) -> None:
        self.file, self.tree, self.looks = path / "file", path / "tree", 0
        (self.tree / "sub").mkdir(parents=True)
        for directory in (self.tree, self.tree / "sub"):
            directory.chmod(0o755)
        for file in (self.file, self.tree / "listed", self.tree / "sub/deep"):
            file.touch()
            file.chmod(0o644)

    def detect(self) -> HostView:
        self.looks += 1
        files = (str(self.file),) if rootfs._is_readable(str(self.file), stat.S_ISREG, 0o004) else ()
        return HostView(files=files, trees=(str(self.tree),) if rootfs._is_public_tree(str(self.tree)) else ())

    def shown(self) -> list[str]:
        view = HostView.from_json(to_oci(Command.of(["true"]))["annotations"]["org.pycontainer.rootfs"])
        return [os.path.basename(path) for path in (*view.files, *view.trees)]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host(tmp_path)
    time.sleep(0.03)  # what changes from now on has another time stamp
    monkeypatch.setattr(HostView, "detect", host.detect)
    monkeypatch.setattr("pycontainer.spec._detected", None)
    monkeypatch.setattr("pycontainer.rootfs._TICK", 0)
    assert host.shown() == ["file", "tree"]
    assert host.looks == 1
    return host


def test_the_host_is_not_looked_at_for_each_start(host: Host) -> None:
    (host.tree / "sub/deep").read_text()
    (host.tree / "sub/deep").write_text("changed")
    for _ in range(5):
        assert host.shown() == ["file", "tree"]
    assert host.looks == 1  # it would take longer than the start


@pytest.mark.parametrize("where", ["key.pem", "sub/key.pem"])
def test_a_private_file_added_to_a_tree_later(host: Host, where: str) -> None:
    os.close(os.open(host.tree / where, os.O_CREAT, 0o600))
    assert host.shown() == ["file"]


def test_a_file_that_is_made_private_later(host: Host) -> None:
    host.file.chmod(0o600)
    assert host.shown() == ["tree"]
    host.file.unlink()
    host.file.symlink_to("tree/listed")
    assert host.shown() == ["tree"]


def test_a_directory_that_is_made_private_later(host: Host) -> None:
    (host.tree / "sub").chmod(0o700)
    assert host.shown() == ["file"]


def test_a_listed_file_that_is_made_private_later(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    (host.tree / "sub/deep").chmod(0o600)
    assert host.shown() == ["file", "tree"]  # for a moment
    monkeypatch.setattr("pycontainer.rootfs._PATIENCE", 0.0)
    assert host.shown() == ["file"]


def test_what_is_shown_may_go(host: Host) -> None:
    host.file.unlink()
    assert host.shown() == ["tree"]
    shutil.rmtree(host.tree)
    assert host.shown() == []


def test_a_tree_that_has_just_changed_is_looked_at_again(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    # The time stamps of two changes in one tick of the kernel's clock are the same.
    monkeypatch.setattr("pycontainer.rootfs._TICK", 10**12)
    (host.tree / "new").touch(0o644)
    (host.tree / "new").chmod(0o644)
    for looks in (2, 3, 4):
        assert host.shown() == ["file", "tree"]
        assert host.looks == looks
