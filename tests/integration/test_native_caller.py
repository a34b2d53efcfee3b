"""A caller that gives up rights, or moves to other namespaces, after the driver has begun to work for it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pycontainer
from pycontainer import ContainerError, Mount, NotRunningError, Pipes
from pycontainer.command import Command
from pycontainer_native import abi
from pycontainer_native.driver import NativeDriver

from ..security.stages import in_child
from . import host

pytestmark = [pytest.mark.root, pytest.mark.tool("busybox")]

libc = ctypes.CDLL(None, use_errno=True)
NOBODY = 65534


@pytest.fixture
def public(busybox_rootfs: Path) -> Iterator[Path]:
    """A root file system that everybody can reach."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        os.chmod(directory, 0o755)
        shutil.copytree(busybox_rootfs, Path(directory, "rootfs"), symlinks=True)
        yield Path(directory, "rootfs")


def become_nobody() -> None:
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def sh(driver: NativeDriver, rootfs: Path, script: str, **keywords: Any) -> str:
    done = pycontainer.run(
        ["sh", "-c", script], rootfs=rootfs, driver=driver, capture_output=True, text=True, **keywords
    )
    return str(done.stdout + done.stderr)


def test_who_has_become_another_user_has_no_more_rights_than_that(public: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as private:  # 0700
        Path(private, "secret").write_text("of root")

        def body() -> None:
            driver = NativeDriver()
            old = pycontainer.Container(["sleep", "100"], rootfs=public, driver=driver)
            become_nobody()
            script = "cat /proc/self/uid_map; cat /x/secret; touch /x/new; echo done"
            # Of an interpreter, modules or a mount that are out of his reach.
            with contextlib.suppress(ContainerError, ImportError, PermissionError):
                out = sh(driver, public, script, mounts=[Mount(private, "/x")])
                assert "of root" not in out
                assert out.split()[1] == str(NOBODY)
            with contextlib.suppress(ContainerError, ImportError, PermissionError):
                assert sh(driver, public, "cat /proc/self/uid_map").split()[1] == str(NOBODY)
            # What root has begun goes on, as an open file does, and ends with it.
            assert old.poll() is None
            with pytest.raises(ContainerError, match="other rights"):
                old.exec(["true"])
            old.close()
            assert not host.is_alive(old.pid)
            driver.close()

        in_child(body)
        assert os.listdir(private) == ["secret"]


def test_who_has_given_up_capabilities_has_none_to_give(busybox_rootfs: Path) -> None:
    def body() -> None:
        import prctl

        driver = NativeDriver()
        script = "grep CapPrm /proc/self/status"
        assert int(sh(driver, busybox_rootfs, script).split()[1], 16) & 1 << prctl.CAP_CHOWN
        prctl.cap_effective.chown = False
        prctl.cap_permitted.chown = False
        assert not int(sh(driver, busybox_rootfs, script).split()[1], 16) & 1 << prctl.CAP_CHOWN
        with pytest.raises(pycontainer.InvalidCommandError, match="does not have CAP_CHOWN"):
            sh(driver, busybox_rootfs, "true", cap_add=["CHOWN"])
        driver.close()

    in_child(body)


def test_the_hosts_network_is_that_of_the_caller(busybox_rootfs: Path) -> None:
    def body() -> None:
        driver = NativeDriver()
        before = sh(driver, busybox_rootfs, "readlink /proc/self/ns/net", network="host")
        assert libc.unshare(abi.CLONE_NEWNET) == 0
        after = sh(driver, busybox_rootfs, "readlink /proc/self/ns/net", network="host")
        assert after.strip() == os.readlink("/proc/self/ns/net") != before.strip()
        driver.close()

    in_child(body)


def test_what_is_mounted_is_what_the_caller_sees(busybox_rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "old").touch()

    def body() -> None:
        driver = NativeDriver()
        sh(driver, busybox_rootfs, "true")
        assert libc.unshare(abi.CLONE_NEWNS) == 0
        assert libc.mount(None, b"/", None, abi.MS_REC | abi.MS_PRIVATE, None) == 0
        assert libc.mount(b"none", os.fsencode(tmp_path), b"tmpfs", 0, None) == 0
        (tmp_path / "new").touch()
        assert sh(driver, busybox_rootfs, "ls /x", mounts=[Mount(str(tmp_path), "/x")]) == "new\n"
        driver.close()

    in_child(body)


def test_no_new_privileges_of_the_caller_are_those_of_what_he_starts(busybox_rootfs: Path) -> None:
    def body() -> None:
        driver = NativeDriver()
        script = "grep NoNewPrivs /proc/self/status"
        assert sh(driver, busybox_rootfs, script, no_new_privileges=False).split() == ["NoNewPrivs:", "0"]
        assert libc.prctl(abi.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
        assert sh(driver, busybox_rootfs, script, no_new_privileges=False).split() == ["NoNewPrivs:", "1"]
        driver.close()

    in_child(body)


def test_a_thread_elsewhere_has_a_launcher_of_its_own_and_comes_back_to_the_first(busybox_rootfs: Path) -> None:
    def body() -> None:
        driver = NativeDriver()
        home = os.open("/proc/self/ns/uts", os.O_RDONLY)
        box = pycontainer.Container(["sleep", "100"], rootfs=busybox_rootfs, driver=driver)
        first = driver._launchers.current
        assert libc.unshare(abi.CLONE_NEWUTS) == 0
        sh(driver, busybox_rootfs, "true")
        second = driver._launchers.current
        assert first is not None
        assert second is not None
        assert first is not second
        assert libc.setns(home, abi.CLONE_NEWUTS) == 0
        assert sh(driver, busybox_rootfs, "echo here") == "here\n"
        assert driver._launchers.current is first
        assert box.poll() is None
        os.kill(first.pid, 9)  # of which the other one hears nothing
        with pytest.raises((ContainerError, NotRunningError)):
            box.wait(30)
        assert not second.ended()
        driver.close()
        assert first.ended(10)
        assert second.ended(10)

    in_child(body)


def test_what_was_found_valid_before_is_started_by_who_he_is_now(busybox_rootfs: Path) -> None:
    def body() -> None:
        driver = NativeDriver()
        sh(driver, busybox_rootfs, "true")
        command = Command.of(["sleep", "100"], rootfs=busybox_rootfs, no_new_privileges=False)
        assert not driver.validate(command)
        assert libc.prctl(abi.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
        with Pipes().attach(tty=False) as streams, contextlib.closing(driver.start(command, streams.stdio)) as process:
            assert host.status(process.pid)["NoNewPrivs"] == "1"
        driver.close()

    in_child(body)


def test_two_threads_of_different_rights_do_not_get_each_others_launcher(
    busybox_rootfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def body() -> None:
        driver = NativeDriver()
        sh(driver, busybox_rootfs, "true")
        first = driver._launchers.current
        real = driver.compile

        def elsewhere() -> None:
            assert libc.unshare(abi.CLONE_NEWUTS) == 0
            sh(driver, busybox_rootfs, "true")

        def compile(*arguments: Any, **keywords: Any) -> Any:
            """In the midst of a start another thread makes one."""
            monkeypatch.setattr(driver, "compile", real)
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
            assert driver._launchers.current is not first
            return real(*arguments, **keywords)

        monkeypatch.setattr(driver, "compile", compile)
        with pytest.raises(ContainerError, match="another thread"):
            sh(driver, busybox_rootfs, "true")
        assert sh(driver, busybox_rootfs, "echo here") == "here\n"
        assert driver._launchers.current is first
        driver.close()

    in_child(body)


@pytest.mark.tool("lxc-start")
def test_lxc_has_one_guard_which_serves_nobody_else(busybox_rootfs: Path) -> None:
    from pycontainer_lxc.driver import LxcDriver

    def body() -> None:
        driver = LxcDriver()
        with pycontainer.Container(["sleep", "100"], rootfs=busybox_rootfs, driver=driver) as box:
            assert box.exec(["true"]).returncode == 0
            assert libc.prctl(abi.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            for attempt in (
                lambda: box.exec(["true"]),
                lambda: pycontainer.run(["true"], rootfs=busybox_rootfs, driver=driver),
            ):
                with pytest.raises(ContainerError, match="make another driver"):
                    attempt()
            assert box.poll() is None
        driver.close()

    in_child(body)
