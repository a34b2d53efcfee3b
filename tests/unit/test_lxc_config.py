"""What the LXC driver writes for LXC to read. No root, no LXC."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pycontainer import Command, InvalidCommandError, Mount, SetupError
from pycontainer.spec import process_to_oci, to_oci
from pycontainer_lxc import config
from pycontainer_lxc.config import KEYS, Config, render, render_exec

V1 = {"memory": "/none/memory", "devices": "/none/devices", "pids": "/none/pids", "cpu": "/none/cpu", "": "/none/2"}


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    root = tmp_path / "root fs"
    (root / "etc").mkdir(parents=True)
    (root / "etc/passwd").write_text("alice:x:1000:1000::/home/alice:\n")
    (root / "etc/group").write_text("extra:x:2000:\n")
    return root


def lines(command: Command, where: dict[str, str] | None = None) -> list[str]:
    text = render(command, to_oci(command), V1 if where is None else where, "token").decode()
    return text.splitlines()


def entries(command: Command) -> dict[str, list[str]]:
    """The mount entries by target, as getmntent(3) reads them."""
    found = {}
    for line in lines(command):
        if line.startswith("lxc.mount.entry="):
            source, target, kind, options, _, _ = line.partition("=")[2].strip('"').split(" ")
            octal = re.compile(r"\\([0-7]{3})")
            target = octal.sub(lambda match: chr(int(match[1], 8)), target)
            found["/" + target] = [octal.sub(lambda match: chr(int(match[1], 8)), source), kind, *options.split(",")]
    return found


def test_every_key_is_on_the_list(rootfs: Path) -> None:
    command = Command.of(
        ["true"],
        rootfs=rootfs,
        user="alice",
        groups=["extra"],
        memory="64m",
        pids_limit=9,
        cpus=0.5,
        rlimits={"nofile": 99},
        mounts=[Mount.tmpfs("/data", size=4096)],
    )
    for line in lines(command):
        assert KEYS.fullmatch(line.partition("=")[0]), line


def test_a_key_that_is_not_on_the_list_is_a_mistake_of_ours() -> None:
    for key in ("lxc.hook.pre-start", "lxc.include", "lxc.environment ", "lxc.net.x.type", "lxc.cgroup.x\nlxc.y"):
        with pytest.raises(ValueError, match="not among the keys"):
            Config().add(key, "x")


@pytest.mark.parametrize("value", ["a\nlxc.hook.pre-start=/bin/touch /x", "a\n", "\n", "a\0b", "a\rb"])
def test_a_line_break_is_refused(rootfs: Path, value: str) -> None:
    with pytest.raises(InvalidCommandError) as caught:
        Config().add("lxc.environment", f"A={value}", "process.env")
    assert caught.value.field == "process.env"
    if "\0" not in value:
        with pytest.raises(InvalidCommandError, match="line break"):
            lines(Command.of(["true"], rootfs=rootfs, env={"A": value}))


@pytest.mark.parametrize("value", [" a ", '"a"', "'a'", "#a", "a\\", "", "a=b", "\t"])
def test_every_other_value_is_in_one_pair_of_quotes(rootfs: Path, value: str) -> None:
    assert f'lxc.environment="A={value}"' in lines(Command.of(["true"], rootfs=rootfs, env={"A": value}))


def test_bytes_that_are_no_text(rootfs: Path) -> None:
    command = Command.of(["true"], rootfs=rootfs, env={"A": "\udcff"})
    assert b'lxc.environment="A=\xff"\n' in render(command, to_oci(command), V1, "token")


def test_blanks_and_comments_in_a_mount(rootfs: Path, tmp_path: Path) -> None:
    source = tmp_path / "a #b\\\tc"
    source.mkdir()
    command = Command.of(["true"], rootfs=rootfs, mounts=[Mount(str(source), "/to here")])
    assert entries(command)["/to here"][0] == str(source)
    assert not any("\t" in line for line in lines(command))


def test_a_mount_that_is_too_long_for_lxc(rootfs: Path) -> None:
    with pytest.raises(InvalidCommandError, match="longer"):
        Config().mount("/" + "x" * 5000, "/y", "none", ["bind"])


def test_the_user_in_numbers(rootfs: Path) -> None:
    found = lines(Command.of(["true"], rootfs=rootfs, user="alice", groups=["extra", 7]))
    assert {'lxc.init.uid="1000"', 'lxc.init.gid="1000"', 'lxc.init.groups="1000,2000,7"'} <= set(found)


@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        ({"cap_drop": ["ALL"]}, "none"),
        ({"capabilities": ["NET_RAW", "CHOWN"]}, "chown net_raw"),
    ],
)
def test_capabilities_are_those_to_keep(rootfs: Path, keywords: dict[str, Any], expected: str) -> None:
    assert f'lxc.cap.keep="{expected}"' in lines(Command.of(["true"], rootfs=rootfs, **keywords))


def test_labels(rootfs: Path) -> None:
    found = lines(Command.of(["true"], rootfs=rootfs, apparmor_profile="a b", selinux_label="u:r:t:s0"))
    assert {'lxc.apparmor.profile="a b"', 'lxc.selinux.context="u:r:t:s0"'} <= set(found)
    assert not any("selinux" in line for line in lines(Command.of(["true"], rootfs=rootfs)))


def test_devices_are_denied_first(rootfs: Path) -> None:
    found = [line for line in lines(Command.of(["true"], rootfs=rootfs)) if ".devices." in line]
    assert found[0] == 'lxc.cgroup.devices.deny="a"'
    assert not any('"a"' in line for line in found[1:])


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (V1, ["lxc.cgroup.pids.max"]),
        ({"": "TREE"}, ["lxc.cgroup2.pids.max"]),
    ],
)
def test_the_prefix_is_that_of_the_controllers_hierarchy(
    rootfs: Path, tmp_path: Path, where: dict[str, str], expected: list[str]
) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    where = {name: str(tmp_path) if base == "TREE" else base for name, base in where.items()}
    found = lines(Command.of(["true"], rootfs=rootfs, pids_limit=7), where)
    assert [line.partition("=")[0] for line in found if "pids" in line] == expected


def test_cgroup2_limits_are_converted(rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids cpuset\n")
    command = Command.of(["true"], rootfs=rootfs, memory=2**20, memory_swap=3 * 2**20, cpus=0.5, cpu_shares=1024)
    found = set(lines(command, {"": str(tmp_path)}))
    assert {
        f'lxc.cgroup2.memory.max="{2**20}"',
        f'lxc.cgroup2.memory.swap.max="{2 * 2**20}"',
        'lxc.cgroup2.cpu.max="50000 100000"',
        'lxc.cgroup2.cpu.weight="39"',
    } <= found


def test_masks_come_after_the_users_mounts_and_are_not_optional(rootfs: Path) -> None:
    command = Command.of(
        ["true"], rootfs=rootfs, mounts=[Mount.tmpfs("/data")], masked_paths=["/etc/passwd", "/gone"], readonly_paths=[]
    )
    found = entries(command)
    assert list(found)[-1] == "/etc/passwd"
    assert "/gone" not in found
    assert found["/etc/passwd"] == ["/dev/null", "none", "bind", "ro"]
    assert not any("optional" in line for line in lines(command))


def test_a_link_in_the_rootfs_leads_nowhere_else(rootfs: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.mkdir()
    (rootfs / "evil").symlink_to(canary)
    (rootfs / "good").symlink_to("etc")
    found = entries(Command.of(["true"], rootfs=rootfs, mounts=[Mount.tmpfs("/good/x")]))
    assert "/etc/x" in found
    with pytest.raises(SetupError, match="mount tmpfs on"):
        entries(Command.of(["true"], rootfs=rootfs, mounts=[Mount.tmpfs("/evil/made")]))
    assert list(canary.iterdir()) == []


@pytest.mark.parametrize("name", ["proc", "sys", "dev"])
def test_a_system_directory_has_to_be_one(rootfs: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "canary").mkdir()
    (rootfs / name).symlink_to(tmp_path / "canary")
    with pytest.raises(SetupError, match=f"on /{name}"):
        lines(Command.of(["true"], rootfs=rootfs))


def test_a_mount_inside_of_another(rootfs: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    mounts = [Mount(str(source), "/bind"), Mount.tmpfs("/bind/x"), Mount.tmpfs("/fresh"), Mount.tmpfs("/fresh/y")]
    found = entries(Command.of(["true"], rootfs=rootfs, mounts=mounts))
    assert (source / "x").is_dir()
    assert "create=dir" not in found["/bind/x"]
    assert "create=dir" in found["/fresh/y"]
    assert not (rootfs / "fresh/y").exists()


def test_a_read_only_bind_mount_takes_those_below_it_along(
    rootfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    (source / "below").mkdir(parents=True)
    monkeypatch.setattr(config, "_mounted_below", lambda directory: iter([f"{directory}/below"]))
    found = entries(Command.of(["true"], rootfs=rootfs, mounts=[Mount(str(source), "/m", read_only=True)]))
    assert found["/m"][2:] == ["bind", "ro"]
    assert found["/m/below"][0] == str(source / "below")
    assert found["/m/below"][2:] == ["bind", "ro"]


@pytest.mark.parametrize("cwd", ["/proc", "/proc/self/fd/7", "/link", "/there", "/dev/fd/7"])
def test_the_working_directory_is_not_in_proc(rootfs: Path, cwd: str) -> None:
    (rootfs / "proc/self").mkdir(parents=True)
    (rootfs / "link").symlink_to("/proc/self")
    (rootfs / "there").symlink_to("../proc/self/fd/9")
    with pytest.raises(InvalidCommandError) as caught:
        lines(Command.of(["true"], rootfs=rootfs, cwd=cwd))
    assert caught.value.field == "process.working_dir"


@pytest.mark.parametrize(
    ("cwd", "found"), [("/", "/"), ("/etc", "/etc"), ("/link/a/b", "/etc/a/b"), ("/gone", "/gone")]
)
def test_the_working_directory_is_without_links(rootfs: Path, cwd: str, found: str) -> None:
    (rootfs / "link").symlink_to("etc")
    assert f'lxc.init.cwd="{found}"' in lines(Command.of(["true"], rootfs=rootfs, cwd=cwd))


def test_raw_lines_come_last(rootfs: Path) -> None:
    raw = ["lxc.signal.halt = SIGUSR1", "lxc.autodev = 0"]
    assert lines(Command.of(["true"], rootfs=rootfs, config=raw))[-2:] == raw


@pytest.mark.parametrize("line", ["", "hook = x", "lxc.autodev", "# lxc.autodev=1"])
def test_a_raw_line_that_lxc_would_skip_is_refused(line: str) -> None:
    assert config.check_raw(line)
    assert config.check_raw("lxc.autodev = 1") is None


def test_what_an_exec_needs_is_not_in_its_arguments(rootfs: Path) -> None:
    process = Command.of(["true"], rootfs=rootfs, env={"SECRET": "x"}, rlimits={"nofile": (64, 128)}).process
    text = render_exec(process_to_oci(process, str(rootfs))).decode()
    assert text == 'lxc.environment="SECRET=x"\nlxc.prlimit.nofile="64:128"\n'


@pytest.mark.parametrize(
    ("enabled", "profiles", "mask", "expected"),
    [
        (None, None, False, False),
        ("N", None, False, False),
        ("Y", None, False, True),
        ("Y", "lxc-container-default-cgns (enforce)\nman (enforce)\n", True, False),
        ("Y", "lxc-container-default-cgns (enforce)\n", False, True),
        ("Y", "lxc-container-default-cgns-x (enforce)\n", True, True),
    ],
)
def test_apparmor_that_lxc_would_refuse(
    tmp_path: Path, enabled: str | None, profiles: str | None, mask: bool, expected: bool
) -> None:
    if enabled is not None:
        (tmp_path / "module/apparmor/parameters").mkdir(parents=True)
        (tmp_path / "module/apparmor/parameters/enabled").write_text(f"{enabled}\n")
    security = tmp_path / "kernel/security/apparmor"
    if profiles is not None:
        security.mkdir(parents=True)
        (security / "profiles").write_text(profiles)
    if mask:
        (security / "features/mount").mkdir(parents=True)
        (security / "features/mount/mask").write_text("mount umount pivot_root\n")
    assert config._apparmor_is_incomplete(str(tmp_path)) is expected
