"""J: bugs of the kernel that a default container should not reach."""

from __future__ import annotations

from .calls import errnos
from .catalogue import row
from .mutants import no_filter, with_capability

EPERM, ENOSYS = 1, 38


@row("J1", mutants=[no_filter])
def test_j1_cve_2022_0185_no_user_namespace_and_what_it_opens(python):
    fsopen, unshare, setns, bpf = 430, 272, 308, 321
    userns = 0x10000000
    found = errnos(python, [(unshare, userns), (56, userns | 17), (fsopen, 0, 0), (bpf, 0, 0, 0)], user="nobody")
    assert found == [EPERM] * 4
    assert errnos(python, [(435, 0, 0), (setns, 0, userns)], user="nobody") == [ENOSYS, EPERM]


@row("J2", mutants=[with_capability(13, "CAP_NET_RAW")])
def test_j2_cve_2017_7308_no_packet_sockets(python):
    af_packet, af_inet, sock_raw, sock_dgram = 17, 2, 3, 2
    assert errnos(python, [(41, af_packet, sock_raw, 768), (41, af_packet, sock_dgram, 0)]) == [EPERM] * 2
    assert errnos(python, [(41, af_inet, sock_raw, 1)]) == [EPERM]


@row("J3", mutants=[no_filter])
def test_j3_cve_2022_0847_what_has_written_to_shared_pages(python, sh):
    # AF_ALG (CVE-2026-31431), userfaultfd, io_uring, and /proc/self/mem of others by ptrace
    assert errnos(python, [(41, 38, 5, 0), (323, 1), (425, 1, 0), (101, 16, 1, 0, 0)]) == [EPERM] * 4
    # and what it is good for: a setuid program of the host's in the shared cache
    assert sh("grep NoNewPrivs /proc/self/status", rootfs=None).stdout.split()[-1] == "1"


@row("J4", mutants=[with_capability(34, "CAP_SYSLOG")])
def test_j4_no_addresses_of_the_kernel(python, sh):
    assert errnos(python, [(103, 3, 0, 0), (103, 10, 0, 0), (103, 2, 0, 0)]) == [EPERM] * 3
    done = sh("ls -A /sys/kernel/debug /sys/kernel/tracing /sys/kernel/security 2>/dev/null | grep -v : ; dmesg")
    assert done.stdout.strip() == ""
    assert "ermitted" in done.stderr
