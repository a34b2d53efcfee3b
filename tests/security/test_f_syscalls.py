"""F: keyrings, the seccomp filter, and system calls that nobody inside needs."""

from __future__ import annotations

import os
import signal
import struct

import pytest

import pycontainer
from pycontainer import filters
from pycontainer.command import Command
from pycontainer.errors import ContainerError, SetupError
from pycontainer.seccomp import default_profile
from pycontainer.seccomp_filter import compile_filter, load_library
from pycontainer.spec import seccomp_to_oci
from pycontainer_native import abi, plan
from pycontainer_native.driver import NativeDriver

from ..integration import host
from ..unit import bpf
from .calls import errnos
from .catalogue import row
from .mutants import Patch, PlanMutant, left_out, no_filter
from .stages import in_child, libc

EPERM, EINVAL, ENOSYS = 1, 22, 38
KEYCTL, ADD_KEY = 250, 248
KEY_SPEC_SESSION_KEYRING = -3


@row("F1", mutants=[PlanMutant("the launcher's keyring", left_out("join a new session keyring"))])
def test_f1_a_session_keyring_of_its_own(native, busybox_rootfs):
    if os.uname().machine != "x86_64":
        pytest.skip("the numbers are x86_64's")

    def body():
        assert libc.syscall(KEYCTL, 1, 0) > 0  # a session keyring for this process and its launcher
        key = libc.syscall(ADD_KEY, b"user", b"pycontainer-secret", b"secret", 6, KEY_SPEC_SESSION_KEYRING)
        assert key > 0
        code = f"""
import ctypes
libc = ctypes.CDLL(None)
buffer = ctypes.create_string_buffer(64)
print(libc.syscall({KEYCTL}, 11, {key}, buffer, 64), libc.syscall({KEYCTL}, 10, -3, b"user", b"pycontainer-secret", 0))
"""
        driver = NativeDriver()
        argv = [os.path.realpath("/proc/self/exe"), "-I", "-S", "-c", code]
        try:
            with pycontainer.Container(["sleep", "100"], driver=driver, seccomp="unconfined") as box:
                for done in (
                    pycontainer.run(argv, driver=driver, seccomp="unconfined", capture_output=True, text=True),
                    box.exec(argv, capture_output=True, text=True),
                ):
                    assert done.stdout == "-1 -1\n", done.stderr
        finally:
            driver.close()

    in_child(body)


@row("F2", mutants=[no_filter])
def test_f2_cve_2016_0728_no_keyrings(python):
    assert errnos(python, [(ADD_KEY, 0, 0, 0, 0, 0), (KEYCTL, 0, -3, 1), (249, 0, 0, 0, 0)]) == [EPERM] * 3


INT_80 = """
import ctypes, mmap
memory = mmap.mmap(-1, 4096, prot=7)
memory.write(bytes.fromhex("b814000000 cd80 c3"))  # mov eax, 20 (getpid); int 0x80; ret
print(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))())
"""


def _blind(profile):
    """A filter that looks at the number alone: it takes every architecture for this one."""
    compiled = compile_filter(profile)
    if compiled is None:
        return None
    flags, code = compiled
    changed = bytearray(code)
    for at in range(0, len(code), 8):
        operation, _, _, constant = struct.unpack_from("=HBBI", code, at)
        if operation == 0x15 and constant == bpf.X86_64:
            changed[at + 3] = changed[at + 2]
    return flags, bytes(changed)


_any_architecture = Patch(
    "no look at the architecture", "pycontainer.filters.compile_filter", _blind, own_launcher=True
)


def filter_of(command):
    return filters.compile_filter(seccomp_to_oci(command))[1]


@row("F3", mutants=[_any_architecture])
def test_f3_foreign_entries_do_not_exist(python, busybox_rootfs):
    if os.uname().machine == "x86_64":
        assert int(python(INT_80).stdout) == -ENOSYS
    code = filter_of(Command.of(["true"], rootfs=busybox_rootfs))
    for number in range(600):
        for call in ((bpf.I386, number, [0] * 6), (bpf.X86_64, bpf.X32_BIT + number, [0] * 6)):
            assert bpf.run(code, call) == bpf.ERRNO | ENOSYS, call


@row("F4", mutants=[_any_architecture])
def test_f4_socketcall_is_no_way_around(busybox_rootfs):
    code = filter_of(Command.of(["true"], rootfs=busybox_rootfs))
    for kind in range(1, 21):
        assert bpf.run(code, (bpf.I386, 102, [kind, 0, 0, 0, 0, 0])) != bpf.ALLOW
    for machine in (0xC00000B7, 0x40000028, 0x80000016, 0):  # aarch64, arm, s390x, nothing
        assert bpf.run(code, (machine, 0, [0] * 6)) != bpf.ALLOW


@row("F5", mutants=[no_filter])
def test_f5_cve_2026_31431_families_of_sockets(python):
    allowed = {1, 2, 10, 16}  # UNIX, INET, INET6, NETLINK
    families = range(46)
    found = errnos(python, [(41, family, 3 if family == 16 else 2, 0) for family in families])
    assert {family for family in families if found[family] != EPERM} == allowed
    assert errnos(python, [(41, 16, 3, protocol) for protocol in (2, 4, 12, 15, 20)]) == [EPERM] * 5
    assert errnos(python, [(41, 38 + 2**32, 5, 0), (41, 40 + 2**63 - 2**63, 1, 0)]) == [EPERM] * 2


@row("F6", mutants=[no_filter])
def test_f6_no_io_uring(python):
    assert {*errnos(python, [(425, 0, 0), (426, -1, 0, 0, 0, 0, 0), (427, -1, 0, 0, 0)])} <= {EPERM, ENOSYS}


NAMESPACES = (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)


@row("F7", mutants=[no_filter])
def test_f7_no_new_namespaces(python):
    clone, unshare, setns, clone3 = 56, 272, 308, 435
    for user in ("0", "1000"):
        calls = [(clone, flag | signal.SIGCHLD, 0, 0, 0, 0) for flag in NAMESPACES]
        calls += [(unshare, flag) for flag in (*NAMESPACES, 0x10000000 | 0x20000)] + [(setns, -1, 0)]
        assert {*errnos(python, calls, user=user)} == {EPERM}
        assert errnos(python, [(clone3, 0, 0), (clone3, 1, 88)], user=user) == [ENOSYS] * 2
    code = "import threading; t = threading.Thread(target=print, args=('on',)); t.start(); t.join()"
    assert python(code).stdout.split()[0] == "on"


@row("F8", mutants=[no_filter])
def test_f8_cve_2021_41133_no_way_to_mount(python):
    mount = (165, 166, 155, 428, 429, 430, 431, 432, 433, 442)
    assert {*errnos(python, [(number, -1, -1, -1, -1, -1) for number in mount])} == {EPERM}
    newer = (457, 458, 467)  # statmount, listmount, open_tree_attr
    assert {*errnos(python, [(number, -1, -1, -1, -1) for number in newer])} <= {EPERM, ENOSYS}
    assert errnos(python, [(999, 0), (470, 0), (2**29, 0)]) == [ENOSYS] * 3


ADMINISTRATORS = (
    *("bpf", "perf_event_open", "userfaultfd", "kexec_load", "kexec_file_load", "init_module", "finit_module"),
    *("delete_module", "ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp", "syslog", "swapon"),
    *("swapoff", "reboot", "settimeofday", "clock_settime", "adjtimex", "clock_adjtime", "quotactl", "acct", "iopl"),
    *("ioperm", "lookup_dcookie", "fanotify_init", "sethostname", "setdomainname", "vhangup", "move_pages"),
    *("name_to_handle_at", "open_by_handle_at", "add_key", "nfsservctl", "uselib", "create_module", "query_module"),
)


@row("F9", mutants=[no_filter])
def test_f9_what_is_for_administrators(python):
    library = load_library()
    numbers = {name: library.resolve_syscall(library.Arch.NATIVE, name) for name in ADMINISTRATORS}
    calls = [name for name, number in numbers.items() if number >= 0]
    # -1 is no address and no descriptor: what got through would say EFAULT, EBADF or EINVAL
    found = dict(zip(calls, errnos(python, [(numbers[name], *[-1] * 6) for name in calls]), strict=True))
    reading = {"adjtimex", "clock_adjtime"}  # they may be asked for the time
    assert {name for name, number in found.items() if number not in (EPERM, ENOSYS)} <= reading
    personalities = [(135, value) for value in (0x0040000, 0x0400000, 0x0020000 | 4)]
    assert errnos(python, personalities)[:2] == [EPERM] * 2


def _ignored(step):
    return step._replace(accept={ENOSYS: 0, EINVAL: 0}) if step.call in ("seccomp", "none") else None


@row("F10", mutants=[PlanMutant("its failure is ignored", _ignored), no_filter])
def test_f10_no_start_without_the_filter(driver, start, monkeypatch):
    for init in (False, True):
        box = start(["sleep", "100"], user="alice", init=init)
        for pid in box.pids():
            for task in os.listdir(f"/proc/{pid}/task"):
                status = host.status(int(task))
                assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
    with monkeypatch.context() as patched:
        patched.setattr(plan, "_sections", {})
        patched.setitem(abi.NR, "seccomp", 9999)
        with pytest.raises(SetupError, match="seccomp"):
            start(["true"])


def _shortened(profile):
    flags, code = compile_filter(profile)
    changed = bytearray(code)
    for at in range(0, len(code), 8):
        if code[at] in (0x25, 0x35):  # jgt, jge
            changed[at + 2], changed[at + 3] = code[at + 3], code[at + 2]
            break
    return flags, bytes(changed)


@row("F12", mutants=[Patch("a jump goes wrong", "pycontainer.filters.compile_filter", _shortened)])
def test_f12_the_filter_says_what_the_profile_says():
    for capabilities in ((), ("CAP_SYS_ADMIN",), ("CAP_NET_RAW", "CAP_SYS_PTRACE")):
        profile = default_profile(capabilities)
        _, code = filters.compile_filter(profile)
        bpf.check(code)
        for number in range(601):
            for call in (
                *((bpf.X86_64, number, [0] * 6), (bpf.X86_64, number, [1, 0x5412, 0x10000000, 0, 0, 0])),
                *((bpf.I386, number, [0] * 6), (bpf.X86_64, bpf.X32_BIT + number, [0] * 6)),
            ):
                assert bpf.run(code, call) == bpf.oracle(profile, call), call


@row("F13", mutants=[Patch("unknown ones are dropped", "pycontainer.seccomp.refuse", lambda *_: None)])
def test_f13_nothing_of_a_profile_is_dropped(driver, start):
    for rule in (
        *({"names": ["no_such_call"], "action": "SCMP_ACT_ERRNO"}, {"names": ["read"], "action": "SCMP_ACT_BOGUS"}),
        *({"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 9, "value": 0, "op": "SCMP_CMP_EQ"}]},),
        *({"names": ["read"], "action": "SCMP_ACT_ERRNO", "more": 1},),
    ):
        profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}
        try:
            with pytest.raises(ContainerError):
                start(["true"], seccomp=profile)
        except (KeyError, TypeError, AttributeError) as error:
            pytest.fail(repr(error))
