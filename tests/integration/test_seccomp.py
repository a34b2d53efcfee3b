"""The seccomp filter as programs meet it: what is denied and how, and that ordinary ones notice nothing."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pycontainer
from pycontainer.errors import SetupError, UnsupportedError
from pycontainer.seccomp_filter import load_library
from pycontainer_native.driver import NativeDriver

from .conftest import Sh

pytestmark = [pytest.mark.root]

#: Makes calls that their caller names, all with the same arguments; prints the errno of each, 0 for success.
CALL = """
import ctypes, json, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(*(ctypes.c_long(a if a < 2**63 else a - 2**64) for a in (number, *arguments)))
    return ctypes.get_errno() if result == -1 else 0
"""
_DENIED = """
    add_key keyctl request_key bpf perf_event_open userfaultfd ptrace process_vm_readv process_vm_writev pidfd_getfd
    kcmp mount umount2 pivot_root unshare setns fsopen fsmount fsconfig fspick open_tree move_mount mount_setattr
    name_to_handle_at open_by_handle_at io_uring_setup io_uring_enter io_uring_register kexec_load init_module
    finit_module delete_module syslog swapon swapoff reboot settimeofday clock_settime quotactl acct sethostname
    setdomainname lookup_dcookie fanotify_init
"""
DENIED = _DENIED.split()
NEW = {"statmount": 457, "listmount": 458, "lsm_get_self_attr": 459, "lsm_list_modules": 461, "open_tree_attr": 467}


def number(name: str) -> int:
    library = load_library()
    found: int = library.resolve_syscall(library.Arch.NATIVE, name)
    return found if found != -1 else NEW[name]


def answers(python: Sh, names: list[str], **keywords: Any) -> dict[str, int]:
    """The errno of every call with arguments that are all -1."""
    numbers = {name: number(name) for name in names}
    code = f"{CALL}\nprint(json.dumps({{name: call(n, *[-1] * 6) for name, n in {numbers!r}.items()}}))"
    done = python(code, **keywords)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def evaluated(python: Sh, expression: str, **keywords: Any) -> Any:
    done = python(f"{CALL}\nimport os, socket\nprint(json.dumps({expression}))", **keywords)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# -- denied


def test_calls_that_the_profile_lacks(python: Sh) -> None:
    assert answers(python, [*DENIED, *NEW]) == dict.fromkeys([*DENIED, *NEW], errno.EPERM)


def test_without_the_filter_the_kernel_answers_them(python: Sh) -> None:
    """Or the test before this one would say nothing."""
    unconfined = answers(python, DENIED, seccomp="unconfined")
    reached = {name for name, error in unconfined.items() if error != errno.EPERM}
    assert {"keyctl", "ptrace", "unshare", "process_vm_readv", "io_uring_setup", "name_to_handle_at"} <= reached


@pytest.mark.parametrize("name", [435, 340, 423, 470, 999, 2**29])
def test_clone3_and_unknown_calls_do_not_exist(python: Sh, name: int) -> None:
    assert evaluated(python, f"call({name}, 0, 0, 0)") == errno.ENOSYS


def test_system_calls_of_a_granted_capability(python: Sh) -> None:
    names = ["ptrace", "process_vm_readv", "kcmp"]
    granted = answers(python, names, cap_add=["SYS_PTRACE"])
    assert errno.EPERM not in granted.values()
    assert set(answers(python, names).values()) == {errno.EPERM}


NAMESPACES = {
    "NEWNS": 0x20000, "NEWCGROUP": 0x2000000, "NEWUTS": 0x4000000, "NEWIPC": 0x8000000, "NEWUSER": 0x10000000,
    "NEWPID": 0x20000000, "NEWNET": 0x40000000,
}  # fmt: skip


@pytest.mark.parametrize("flag", NAMESPACES.values(), ids=NAMESPACES)
def test_no_new_namespaces(python: Sh, flag: int) -> None:
    clone, unshare = number("clone"), number("unshare")
    # CLONE_SIGHAND without CLONE_VM: EINVAL from the kernel, so that nothing is cloned without the filter either
    expression = f"[call({unshare}, {flag}), call({clone}, {flag | 0x800 | 17}, 0, 0, 0, 0)]"
    assert evaluated(python, expression) == [errno.EPERM] * 2
    assert evaluated(python, f"call({clone}, {flag | 0x800 | 17}, 0, 0, 0, 0)", seccomp="unconfined") == errno.EINVAL


def test_personalities(python: Sh) -> None:
    tried = "[call({}, value) for value in (0xffffffff, 0, 8, 0x20000, 0x20008, 0, 0x40000, 0x400000, 1, 0x40008)]"
    allowed, denied = [0] * 6, [errno.EPERM] * 4
    assert evaluated(python, tried.format(number("personality"))) == allowed + denied
    assert evaluated(python, tried.format(number("personality")), seccomp="unconfined") == [0] * 10


def test_unshare_of_what_is_no_namespace(python: Sh) -> None:
    assert evaluated(python, f"[call({number('unshare')}, flag) for flag in (0, 0x200, 0x400)]") == [0, 0, 0]
    assert evaluated(python, f"call({number('unshare')}, 0x80)") == errno.EPERM  # CLONE_NEWTIME


def test_address_families(python: Sh) -> None:
    families = f"{{f: call({number('socket')}, f, 3 if f == 16 else 1, 0) for f in range(46)}}"
    allowed = {int(family) for family, error in evaluated(python, families).items() if error != errno.EPERM}
    assert allowed == {1, 2, 10, 16}
    kernel = {int(f) for f, error in evaluated(python, families, seccomp="unconfined").items() if error != errno.EPERM}
    assert allowed < kernel
    assert evaluated(python, f"call({number('socket')}, 0x10001, 1, 0)") == errno.EPERM  # all 32 bits are compared


def test_netlink_is_for_routes(python: Sh) -> None:
    protocols = f"[call({number('socket')}, 16, 3, protocol) for protocol in (0, 4, 9, 12, 15, 16)]"
    route, diag, audit, *others = evaluated(python, protocols)
    assert (route, diag, others) == (0, errno.EPERM, [errno.EPERM] * 3)
    assert audit != errno.EPERM  # CAP_AUDIT_WRITE is among the default ones
    assert evaluated(python, protocols, cap_drop=["AUDIT_WRITE"])[2] == errno.EPERM


def test_packet_sockets_come_with_cap_net_raw(python: Sh) -> None:
    packet = f"call({number('socket')}, 17, 3, 0)"
    assert evaluated(python, packet) == errno.EPERM
    assert evaluated(python, packet, cap_add=["NET_RAW"]) != errno.EPERM


@pytest.mark.parametrize("request_", [0x5412, 0x541C, 0x5412 + 2**32, 0x541C + 2**63])
def test_nothing_is_typed_into_the_terminal(python: Sh, request_: int) -> None:
    """CVE-2017-5226, and CVE-2019-10063: the kernel looks at 32 bits of a request."""
    inject = f"call({number('ioctl')}, 0, {request_}, id(b'x') + 32)"
    code = f"{CALL}\nresult = {inject}\nprint('', result, sep=chr(10))"  # what is typed in is echoed, before it
    keywords = {"tty": True, "capture_output": False, "stdout": -1}
    assert int(python(code, **keywords).stdout.splitlines()[-1]) == errno.EPERM
    other = int(python(code, **keywords, seccomp="unconfined").stdout.splitlines()[-1])
    legacy = Path("/proc/sys/dev/tty/legacy_tiocsti")
    if request_ & 0xFFFFFFFF == 0x5412 and legacy.exists() and legacy.read_text() == "1\n":
        assert other == 0


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="int 0x80 is x86's")
def test_i386_calls_do_not_exist(python: Sh) -> None:
    stub = """
import mmap
memory = mmap.mmap(-1, 4096, prot=7)
memory.write(bytes.fromhex("b814000000 cd80 c3"))  # mov eax, 20 (getpid); int 0x80; ret
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
print(ctypes.CFUNCTYPE(ctypes.c_int)(address)())
"""
    assert int(python(CALL + stub).stdout) == -errno.ENOSYS
    assert int(python(CALL + stub, seccomp="unconfined").stdout) == 1


# -- where it is


def filters(text: str) -> dict[str, int]:
    lines = (line.split(":") for line in text.splitlines() if line.startswith(("Seccomp", "NoNewPrivs")))
    return {name: int(value) for name, value in lines}


STATUS = ["cat", "/proc/self/status"]


@pytest.mark.parametrize(
    "keywords",
    [{}, {"init": True}, {"user": "alice"}, {"no_new_privileges": False}, {"no_new_privileges": False, "user": "alice"},
     {"tty": True}, {"capabilities": ["CAP_SYS_ADMIN"]}, {"cap_add": ["SYS_ADMIN", "SYS_PTRACE"]}],
    ids=str,
)  # fmt: skip
def test_there_is_one_filter(native: NativeDriver, busybox_rootfs: Path, keywords: dict[str, Any]) -> None:
    done = pycontainer.run(STATUS, rootfs=busybox_rootfs, driver=native, stdout=-1, text=True, **keywords)
    wanted = {"NoNewPrivs": int(keywords.get("no_new_privileges", True)), "Seccomp": 2, "Seccomp_filters": 1}
    assert filters(done.stdout) == wanted


@pytest.mark.parametrize("keywords", [{"seccomp": "unconfined"}, {"privileged": True}], ids=str)
def test_unconfined(native: NativeDriver, busybox_rootfs: Path, keywords: dict[str, Any]) -> None:
    done = pycontainer.run(STATUS, rootfs=busybox_rootfs, driver=native, stdout=-1, text=True, **keywords)
    assert filters(done.stdout) == {"NoNewPrivs": 1, "Seccomp": 0, "Seccomp_filters": 0}


@pytest.mark.parametrize(
    ("keywords", "mode"),
    [({}, 2), ({"init": True}, 2), ({"seccomp": "unconfined"}, 0), ({"privileged": True}, 0)],
    ids=str,
)
@pytest.mark.parametrize("more", [{}, {"user": "alice"}, {"tty": True}], ids=str)
def test_exec_has_the_containers(
    start: Callable[..., pycontainer.Container], keywords: dict[str, Any], mode: int, more: dict[str, Any]
) -> None:
    box = start(["sleep", "1000"], **keywords)
    status = filters(box.exec(STATUS, stdout=-1, text=True, **more).stdout)
    assert (status["Seccomp"], status["Seccomp_filters"]) == (mode, mode // 2)


def test_a_profile_of_ones_own_holds_for_exec_too(start: Callable[..., pycontainer.Container], tmp_path: Path) -> None:
    deny = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.EXDEV}
    path = tmp_path / "profile.json"
    path.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [deny]}))
    box = start(["sh", "-c", "mkdir /tmp/a 2>&1; exec sleep 1000"], seccomp=path, stdout=-1, text=True)
    assert box.stdout is not None
    assert "cross-device" in box.stdout.readline().lower()
    done = box.exec(["mkdir", "/tmp/b"], capture_output=True, text=True)
    assert "cross-device" in done.stderr.lower()


def test_a_profile_that_allows_next_to_nothing(native: NativeDriver, busybox_rootfs: Path) -> None:
    profile = {
        "defaultAction": "SCMP_ACT_KILL_PROCESS",
        "syscalls": [{"names": ["execve", "write", "exit_group"], "action": "SCMP_ACT_ALLOW"}],
    }
    done = pycontainer.run(["true"], rootfs=busybox_rootfs, driver=native, seccomp=profile)
    assert done.status.signal == 31  # SIGSYS: it got as far as its own first call
    with pytest.raises(SetupError) as caught:
        pycontainer.run(["nonexistent"], rootfs=busybox_rootfs, driver=native, seccomp=profile)
    assert (caught.value.step, caught.value.errno) == ("execve", errno.ENOENT)


def test_a_filter_that_the_kernel_refuses_ends_the_start(
    own_driver: NativeDriver, busybox_rootfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_driver._filters, "of", lambda command: (0, bytes(8)))
    with pytest.raises(SetupError) as caught:
        pycontainer.run(["true"], rootfs=busybox_rootfs, driver=own_driver)
    assert (caught.value.step, caught.value.errno) == ("load the seccomp filter", errno.EINVAL)


def test_without_libseccomp_nothing_starts(
    own_driver: NativeDriver, busybox_rootfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pycontainer.seccomp_filter.RUN", "/nonexistent")
    monkeypatch.setitem(sys.modules, "pyseccomp", None)
    with pytest.raises(UnsupportedError, match="install libseccomp"):
        pycontainer.run(["true"], rootfs=busybox_rootfs, driver=own_driver)
    assert pycontainer.run(["true"], rootfs=busybox_rootfs, driver=own_driver, seccomp="unconfined").returncode == 0


# -- programs

THREADS = r"""
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
static void *work(void *n) { return (char *)n + 1; }
int main(void) {
    pthread_t threads[8]; long sum = 0; int status; void *result;
    for (long i = 0; i < 8; i++) if (pthread_create(&threads[i], NULL, work, (void *)i)) return 1;
    for (int i = 0; i < 8; i++) { pthread_join(threads[i], &result); sum += (long)result; }
    if (fork() == 0) _exit(7);
    wait(&status);
    printf("%ld %d %d\n", sum, WEXITSTATUS(status), system("exit 3") >> 8);
    return 0;
}
"""


@pytest.mark.parametrize(
    "compiler",
    [
        pytest.param(["gcc", "-pthread"], marks=pytest.mark.tool("gcc"), id="glibc"),
        pytest.param(["gcc", "-pthread", "-static"], marks=pytest.mark.tool("gcc"), id="glibc, static"),
        pytest.param(["musl-gcc", "-static"], marks=pytest.mark.tool("musl-gcc"), id="musl"),
    ],
)
def test_threads_and_forks_in_c(native: NativeDriver, tmp_path: Path, compiler: list[str]) -> None:
    (tmp_path / "threads.c").write_text(THREADS)
    subprocess.run([*compiler, "-o", tmp_path / "threads", tmp_path / "threads.c"], check=True)
    mounts = [pycontainer.Mount(str(tmp_path), "/mnt")]
    done = pycontainer.run(["/mnt/threads"], driver=native, mounts=mounts, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("36 7 3\n", "")


@pytest.mark.parametrize(
    ("code", "output"),
    [
        ("import threading\nt = threading.Thread(target=print, args=('ran',)); t.start(); t.join()", "ran"),
        ("import subprocess\nprint(subprocess.run(['echo', 'ran'], capture_output=True, text=True).stdout)", "ran"),
        ("import multiprocessing as m\nwith m.get_context('fork').Pool(2) as p: print(p.map(abs, [-1]))", "[1]"),
        ("import asyncio\nprint(asyncio.run(asyncio.sleep(0, 'ran')))", "ran"),
        ("import socket\na, b = socket.socketpair(); a.send(b'ran'); print(b.recv(9).decode())", "ran"),
        ("import socket\ns = socket.create_server(('127.0.0.1', 0)); c = socket.create_connection(s.getsockname());"
         "\nc.send(b'ran'); print(s.accept()[0].recv(9).decode())", "ran"),
        ("import socket\nprint([name for _, name in socket.if_nameindex()])", "['lo']"),
        ("import tempfile, os\nwith tempfile.TemporaryFile() as f: f.write(b'ran'); f.flush(); os.fsync(f.fileno());"
         " f.seek(0); print(f.read().decode())", "ran"),
        ("import platform, sqlite3\nprint(sqlite3.connect(':memory:').execute('select 7').fetchone()[0])", "7"),
        ("import multiprocessing.shared_memory as m\ns = m.SharedMemory(create=True, size=9); s.close(); s.unlink();"
         " print('ran')", "ran"),
        ("import signal, time\nsignal.signal(14, lambda *_: print('ran')); signal.setitimer(0, 0.01); signal.pause()",
         "ran"),
        ("import os, resource\nos.sched_setaffinity(0, os.sched_getaffinity(0)); os.nice(1);"
         "resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); os.setuid(1000); print('ran')", "ran"),
    ],
    ids=lambda text: text.split("\n")[0] if "\n" in text else "",
)  # fmt: skip
def test_python(python: Sh, code: str, output: str) -> None:
    done = python(code)
    assert (done.stdout.strip(), done.returncode) == (output, 0), done.stderr


@pytest.mark.parametrize(
    ("argv", "output"),
    [
        pytest.param(["bash", "-c", "for i in 1 2 3; do echo $i & done; wait; ls -l /proc/self/fd | grep -q . &&"
                      " tar c /etc/passwd 2>/dev/null | tar t"], "etc/passwd", id="bash"),
        pytest.param(["perl", "-e", "$|=1; if (!fork) { print 'a'; exit } wait; print `echo b`"], "ab", id="perl",
                     marks=pytest.mark.tool("perl")),
        pytest.param(["node", "-e", "require('child_process').exec('echo ran', (e, out) => process.stdout.write(out))"],
                     "ran", id="node", marks=pytest.mark.tool("node")),
        pytest.param(["node", "-e", "new (require('worker_threads').Worker)(\"console.log('ran')\", {eval: true})"],
                     "ran", id="node's threads", marks=pytest.mark.tool("node")),
        pytest.param(["java", "-Xmx64m", "-version"], "", id="java", marks=pytest.mark.tool("java")),
        # The one program in Go that the tests' packages bring along, its threads included.
        pytest.param(["sh", "-c", "runc --version | sed -n 's/^go: .*/ran/p'"], "ran", id="go",
                     marks=pytest.mark.tool("runc")),
    ],
)  # fmt: skip
def test_programs_of_the_host(native: NativeDriver, argv: list[str], output: str) -> None:
    done = pycontainer.run(argv, driver=native, capture_output=True, text=True, timeout=60)
    lines = [line for line in done.stdout.strip().splitlines() if not line.isdigit()]
    assert ("".join(lines), done.returncode) == (output, 0), done.stderr


def test_a_shell_of_a_static_busybox(sh: Sh) -> None:
    script = (
        "mkdir /tmp/d && cd /tmp/d && mkfifo f && (echo ran > f &) && cat f && chown 1000 f && rm -r /tmp/d && sync"
    )
    done = sh(script)
    assert (done.stdout, done.stderr, done.returncode) == ("ran\n", "", 0)
