"""A container of the defaults, tried from inside: nothing of the host is to be found."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pycontainer
from pycontainer import Mount
from pycontainer.errors import ContainerError
from pycontainer_native.driver import NativeDriver

from .stages import MS_BIND, in_child, in_own_mounts, libc, mount_tmpfs

#: Looks around, as root of a default container; everything that it finds is told.
LOOK = r"""
import ctypes, json, os, socket, sys
SECRET, CANARY, KEY = json.load(sys.stdin)
found = {}

def reads(path):
    try:
        with open(path, "rb") as file:
            return file.read(1 << 20)
    except OSError:
        return b""

# paths: through every process's root, cwd, descriptors and maps, and by names
ways = ["", *(f"/proc/{p}/{w}" for p in os.listdir("/proc") if p.isdigit() for w in ("root", "cwd", "fd/0", "fd/3"))]
found["paths"] = any(os.path.exists(f"{way}{up}{CANARY}") for way in ways for up in ("", "/..", "/../../.."))
found["shadow"] = os.path.exists("/etc/shadow") or os.path.exists("/proc/1/root/etc/shadow")
# processes
pids = [name for name in os.listdir("/proc") if name.isdigit()]
found["pids"] = len(pids)
found["processes"] = any(SECRET.encode() in reads(f"/proc/{pid}/cmdline") for pid in pids)
# descriptors
kinds = {}
for fd in os.listdir("/proc/self/fd"):
    try:
        kinds[fd] = os.readlink(f"/proc/self/fd/{fd}").split(":")[0]
    except OSError:
        pass  # the one of the listing
found["descriptors"] = kinds
# environment
found["environment"] = any(SECRET.encode() in reads(f"/proc/{pid}/environ") for pid in pids)
# keyring
libc = ctypes.CDLL(None, use_errno=True)
buffer = ctypes.create_string_buffer(64)
found["key"] = libc.syscall({"x86_64": 250}.get(os.uname().machine, 219), 11, int(KEY), buffer, 64) > 0
found["keys"] = len(reads("/proc/keys"))
# terminal
try:
    os.close(os.open("/dev/tty", os.O_RDWR))
    found["terminal"] = True
except OSError:
    found["terminal"] = False
# abstract sockets
try:
    socket.socket(socket.AF_UNIX).connect("\0" + SECRET)
    found["abstract"] = True
except OSError:
    found["abstract"] = False
found["unix"] = len(reads("/proc/net/unix").splitlines()) - 1
found["devices"] = [name for name in ("mem", "kmsg", "sda", "loop0", "fuse", "kvm") if os.path.exists(f"/dev/{name}")]
print(json.dumps(found))
"""


def test_nothing_of_the_host_is_reachable(native, tmp_path, monkeypatch):
    def body():
        assert ctypes.CDLL(None).syscall({"x86_64": 250}.get(os.uname().machine, 219), 1, 0) > 0  # a session keyring
        driver = NativeDriver()  # whose launcher has this process's session keyring
        try:
            look(driver)
        finally:
            driver.close()

    def look(driver):
        secret = f"secret-{os.urandom(8).hex()}"
        canary = tmp_path / secret
        canary.write_text(secret)
        monkeypatch.setenv("SECRET", secret)
        key = _add_key(secret)
        bystander = subprocess.Popen(["sh", "-c", "sleep 100; :", secret], env={"NAME": secret}, start_new_session=True)
        looking = [sys.executable, "-I", "-S", "-c", LOOK]
        given = {"input": json.dumps([secret, str(canary), key]).encode(), "capture_output": True, "timeout": 60}
        try:
            with socket.socket(socket.AF_UNIX) as listening:
                listening.bind(f"\0{secret}")
                listening.listen()
                on_the_host = json.loads(subprocess.run(looking, check=True, **given).stdout)
                with pycontainer.Container(["sleep", "100"], driver=driver) as box:
                    reports = [
                        pycontainer.run(looking, driver=driver, **given),
                        pycontainer.run(looking, driver=driver, init=True, **given),
                        box.exec(looking, **given),
                    ]
        finally:
            os.killpg(bystander.pid, signal.SIGKILL)
            bystander.wait()
        # It does find what there is to be found.
        assert all(
            on_the_host[name] for name in ("paths", "shadow", "processes", "environment", "key", "abstract", "unix")
        )
        for done in reports:
            assert done.returncode == 0, done.stderr
            found = json.loads(done.stdout)
            assert found.pop("pids") <= 3
            assert {*found.pop("descriptors").values()} <= {"/dev/null", "pipe"}
            assert not any(found.values()), found

    in_child(body)


def _add_key(secret):
    """A key in this process's session keyring."""
    number = {"x86_64": 248}.get(os.uname().machine, 217)
    key = ctypes.CDLL(None).syscall(number, b"user", secret.encode(), b"x", 1, -3)
    assert key > 0
    return key


def test_ways_through_proc_never_reach_host_files(native, hostile, start, monkeypatch):
    monkeypatch.setattr("pycontainer.stdio.refuse_ways_out", lambda *_: None)  # what stands behind it is tried

    def interpreter():
        return hashlib.sha256(Path(os.path.realpath(sys.executable)).read_bytes()).hexdigest()

    before = interpreter()
    outside = os.open(hostile.canary, os.O_RDONLY | os.O_DIRECTORY)
    ways = ("/proc/self/exe", "/proc/1/exe", *(f"/proc/self/fd/{number}" for number in (0, 1, 2, 3, 4, 5, outside)))
    try:
        for number, way in enumerate(ways):
            hostile.file(f"script{number}", f"#!{way}\n", 0o755)
            tried = (
                *(
                    lambda way=way: start([way], rootfs=hostile),
                    lambda number=number: start([f"/script{number}"], rootfs=hostile),
                ),
                *(lambda way=way: start(["true"], cwd=way, stdin=outside), lambda way=way: start(["true"], rootfs=way)),
                lambda way=way: start(["true"], mounts=[Mount(way, "/v")]),
                lambda way=way: start(["true"], mounts=[Mount.tmpfs(way)]),
            )
            for attempt in tried:
                with pytest.raises(ContainerError):
                    attempt()
    finally:
        os.close(outside)
    assert interpreter() == before


@pytest.mark.root
def test_what_is_made_private_while_the_caller_runs_is_not_shown(native):
    def body():
        own = "/run/etc-of-a-test"  # in this child's mounts alone
        mount_tmpfs(Path("/run"))
        shutil.copytree("/etc", own, symlinks=True, ignore_dangling_symlinks=True)
        Path(own, "java-0").mkdir(mode=0o755)
        assert libc.mount(own.encode(), b"/etc", None, MS_BIND, None) == 0
        driver = NativeDriver()

        def shown():
            script = "cat /etc/hosts; ls /etc/java-0; cat /etc/java-0/key.pem"
            return pycontainer.run(["sh", "-c", script], driver=driver, capture_output=True, text=True).stdout

        try:
            Path("/etc/hosts").write_text("public\n")
            Path("/etc/hosts").chmod(0o644)
            time.sleep(0.1)
            assert shown() == shown() == "public\n"
            Path("/etc/hosts").chmod(0o600)
            assert shown() == ""
            Path("/etc/java-0/key.pem").touch(0o600)
            Path("/etc/java-0/key.pem").write_text("private\n")
            assert shown() == ""
        finally:
            driver.close()

    in_own_mounts(body)
