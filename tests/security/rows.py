"""The catalogue: the published weaknesses of container runtimes that this project has to withstand, as data.

A row is a class of weakness: its id; whom it concerns (N the native driver, L the LXC driver, O a driver of an OCI
runtime, P whoever starts containers from Python); the CVE that it is known by, if any; what went wrong there.

Rows with N or P have tests here, named by row and CVE, or stand in UNTESTABLE with the reason.
"""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    marks: str
    cve: str  #: empty for a class without one of its own
    cause: str


_TABLE = """
A1   NLO   CVE-2015-1335   mount targets named by path, and the rootfs owner puts symlinks there
A2   N     CVE-2015-3627   a descriptor for pid 1 opened before chroot, through the image's symlink
A3   NLO   CVE-2015-3629   a symlink left by the image is honoured when the container starts again
A4   N     CVE-2019-18837  a realpath in user space that skips the last component
A5   NO    CVE-2019-19921  /proc is a symlink to a shared volume, swapped between its mount and the masks
A6   NO    CVE-2021-30465  a securely joined path that mount(2) resolves again while a sibling swaps it
A7   NLO   CVE-2023-27561  symlinked /proc and /sys accepted again
A8   N     CVE-2025-54867  the same in another runtime
A9   NO    CVE-2024-45310  mkdir -p of a mount target raced: empty files and directories on the host
A10  NLO   CVE-2026-41579  /dev of the image is a symlink: links and nodes land on the host
A11  NO    CVE-2026-88264  /dev/console made without O_NOFOLLOW
A12  NO    CVE-2026-88265  /dev/null of the image reopened, followed, and given away
A13  N     CVE-2026-87766  files below the new root made through a parent symlink to the old one
A14  NLO   CVE-2024-42472  the source of a bind mount is a symlink that the payload has made
A15  N     -               resolution so strict that /var/run -> /run fails
A16  NLO   CVE-2025-24965  the runtime's own files written into the rootfs through a symlink
A17  NL    CVE-2024-5154   /etc/mtab made through a symlinked /etc
A18  NO    CVE-2020-1726   a volume's first content copied through a path that leads out
A19  N     CVE-2024-0132   injected mounts and devices whose path is swapped between check and use
A20  N     -               copying old content into a tmpfs follows links and loses modes
A21  NLO   -               the container's mounts propagate to the host because / is shared
A22  N     -               chroot alone: a second chroot walks out; or the old root is still mounted
A23  NLO   -               read-only for the top of a mount, and not for what is mounted below
A24  N     -               a remount drops nosuid, nodev, noexec
A25  NLO   -               clean-up follows links or crosses mounts into the host's data

B1   NL    CVE-2015-1334   exec writes a label through the container's own /proc
B2   NO    CVE-2015-3631   volumes over /proc let an image fake its files
B3   NO    CVE-2019-16884  a fake /proc from a volume: the label goes to a plain file
B4   NO    CVE-2025-52881  writes to proc redirected to other files that are in proc too
B5   NO    CVE-2025-31133  the /dev/null that masks is the image's symlink
B6   NLO   CVE-2015-3630   writable files of /proc: asound, timer_stats, latency_stats, fs
B7   NLO   CVE-2018-10892  /proc/acpi, keys, kcore, /sys/firmware: they tell or act on the hardware
B8   NLO   -               knobs of no namespace: sysrq-trigger, core_pattern, modprobe, uevent_helper
B9   NLO   -               a payload unmounts a mask
B10  N     -               masks laid before the user's mounts, which then hide them
B11  NLO   CVE-2022-0811   a sysctl's value sets other keys
B12  NLO   -               net.* of a container with the host's network changes the host
B13  NL    -               /proc mounted from the outer pid namespace
B14  NO    -               mounts on /proc/net and /proc/self
B15  NO    -               /proc/self/fd/N as rootfs, source or working directory jumps out
B16  NLO   CVE-2023-25809  the host's cgroup tree writable inside
B17  NO    -               a fallback forgets the flags that were asked for

C1   NLOP  CVE-2024-21626  a leaked descriptor of a host directory, entered by /proc/self/fd/N
C2   N     CVE-2016-9962   who enters the container can be traced while it holds host descriptors
C3   NOP   CVE-2019-5736   /proc/self/exe makes the kernel run the runtime's binary, then it is overwritten
C4   NP    CVE-2022-0847   a read-only view of the runtime's binary shares its page cache
C5   LO    -               a distribution takes the defences of C2 and C3 out again
C6   N     CVE-2016-8659   the privileged set-up process is dumpable, traced, abused
C7   N     -               the pid namespace joined before rights are dropped
C8   NLO   CVE-2019-10144  exec without seccomp, capabilities, cgroups
C9   NLO   CVE-2025-27612  exec and non-root starts keep capabilities
C10  NL    CVE-2022-1227   a helper runs a program of the container with the host's rights
C11  NP    CVE-2019-14271  name service libraries loaded from the container
C12  NLO   CVE-2026-41567  a decompressor looked up inside the container
C13  NLOP  CVE-2020-14370  one container's environment in another
C14  NLOP  CVE-2021-3602   the launcher's environment can be read in processes on the way
C15  NLO   CVE-2025-23266  hooks and tools run with the container's environment
C16  NP    -               state passed in the environment can be faked
C17  NLOP  -               blocked and ignored signals are inherited
C18  NO    -               affinity, niceness, oom_score_adj, personality are inherited
C19  NLO   -               the caller's umask damages modes
C20  NP    -               a core file of the launcher ends up in the rootfs
C21  NP    -               the launcher's memory can be read in the forked child
C22  N     -               set-up processes outlive a killed launcher
C23  NLO   CVE-2021-4034   an empty argv
C24  NO    -               descriptors handed on by number, and one too many
C25  NO    -               the host's stdio changes its owner
C26  NP    -               descriptors leak on the way of an error
C27  NO    -               a descriptor of the wrong type from a socket

D1   NLO   CVE-2017-5226   the caller's terminal shared: TIOCSTI types into it
D2   N     CVE-2019-10063  a filter that compares all 64 bits of an ioctl's request
D3   N     CVE-2023-28100  TIOCLINUX pastes on the virtual console
D4   NO    CVE-2025-52565  the terminal's path below /dev/pts is a symlink of the image
D5   NL    -               the image's own /dev/ptmx opened
D6   NL    -               the slave's group and mode
D7   NLO   -               a flood of output, escape sequences, a reader that hangs
D8   NLO   -               the caller's controlling terminal kept

E1   NLO   -               shocker: a deny list of capabilities leaves CAP_DAC_READ_SEARCH
E2   NLO   CVE-2022-24769  inheritable capabilities
E3   N     CVE-2016-8867   ambient capabilities for users who are not root
E4   NO    -               capabilities newer than the table stay; unknown names are ignored
E5   NLO   -               capabilities come back on execve of a setuid program
E6   NO    CVE-2016-3697   a user in passwd whose name is a number
E7   NLO   CVE-2024-40635  an id beyond 32 bits becomes root
E8   NLO   CVE-2026-30892  a user text parsed as another one
E9   NOP   CVE-2024-9676   passwd is a symlink, a fifo, endless
E10  NL    CVE-2022-4318   a newline in a value injects a line
E11  NLO   CVE-2022-2989   the launcher's groups stay, or the primary one is missing
E12  N     CVE-2014-8989   setgroups left open in an unprivileged user namespace
E13  NLO   -               wrong id maps
E14  NP    -               a failed setresuid ignored; ids of one thread changed
E15  NL    CVE-2013-6441   a binary of the host bind-mounted writable
E16  NLO   CVE-2021-21284  users of the host reach setuid files below a rootfs

F1   NLO   -               the launcher's session keyring inherited
F2   N     CVE-2016-0728   bugs of the kernel's keyrings
F3   N     -               a filter for x86-64 alone: 32-bit and x32 entries
F4   N     -               socketcall hides the family behind a pointer
F5   N     CVE-2026-31431  AF_ALG, AF_VSOCK, AF_PACKET and old families
F6   NO    -               io_uring goes around the filter
F7   N     -               new user namespaces give capabilities
F8   N     CVE-2021-41133  the new mount API left out of the filter
F9   N     -               bpf, perf, kexec, modules, ptrace and other system calls of administrators
F10  NP    -               the filter set too early, too late, or not on all threads
F11  NLO   -               a filter for init alone
F12  NP    -               8-bit jumps overflow in a long filter
F13  NLO   -               unknown names of a profile dropped in silence

G1   NLO   CVE-2022-0492   a v1 hierarchy mounted inside: release_agent runs on the host
G2   NLO   CVE-2025-47291  the payload runs before its limits hold
G3   NLO   -               a cgroup's name leads out
G4   N     -               writes to a cgroup file system that is none
G5   NLO   -               the device list read as a deny list
G6   N     -               device rules flap while they are changed
G7   NLO   -               device nodes made or brought along
G8   NL    -               the host's /dev
G9   N     -               an error leaves a container frozen
G10  N     -               cgroup files written from inside
G11  N     -               the wrong cgroup removed by a stale path
G12  O     CVE-2024-3154   an annotation becomes a systemd property

H1   NLOP  -               an id that is a path, an option, a line
H2   NLO   CVE-2024-25621  state directories open to everybody
H3   NL    CVE-2015-1331   lock files in a world-writable directory
H4   N     -               a control socket open to everybody
H5   NLO   CVE-2020-15257  an abstract socket, reachable in the host's network namespace
H6   NLO   -               check-then-create of an id
H7   NLO   -               a signal to a pid that is another process's by now
H8   NLO   CVE-2022-31030  output read without bound; workers leak
H9   NP    -               state files tampered with, or pickled
H10  NP    CVE-2021-43784  a netlink attribute's length wraps
H11  NL    CVE-2017-5985   a network helper acts on a foreign namespace
H12  NO    -               a namespace's path is a fifo, or another type
H13  LOP   -               commands joined for a shell
H14  L     -               configuration lines injected
H15  LO    -               tools found by the caller's PATH
H16  NLOP  -               predictable names in /tmp
H17  NO    CVE-2024-1753   the source of a bind mount leads elsewhere than checked
H18  N     CVE-2025-9566   a symlink in a projected volume is overwritten
H19  NLO   CVE-2018-15664  copies into and out of a running container raced
H20  NP    CVE-2014-6407   archives with links, devices and ..
H21  NO    CVE-2014-5277   the image picks its own security options
H22  LO    CVE-2024-8676   checkpoints trusted
H23  NL    CVE-2020-13401  router advertisements and raw sockets
H24  NLO   -               the host's network brings its abstract sockets
H25  N     -               kill -1 reaches the host
H26  NLO   CVE-2026-63293  an image's metadata file is a symlink, and its commands are trusted

J1   N     CVE-2022-0185   bugs reached with the capabilities of a user namespace
J2   NLO   CVE-2017-7308   bugs of AF_PACKET
J3   N     CVE-2022-0847   bugs that write to the page cache of shared files
J4   NLO   -               dmesg and kallsyms tell addresses
J5   NLO   -               no limits at all

K1   P     -               modules, codecs, libraries loaded after the change of root
K2   P     -               the interpreter and its libraries reachable by exe and map_files
K3   P     -               PYTHONPATH and its like in a helper
K4   P     -               a fork of a process with threads
K5   P     -               raw system calls change one thread only
K6   P     -               ctypes truncates arguments and loses errno
K7   P     -               descriptors without close-on-exec
K8   P     -               SIGPIPE and SIGXFSZ stay ignored
K9   P     -               bool as uid, subclasses of int, surrogates, $ before a newline
K10  P     -               realpath, makedirs, rmtree on paths of a container
K11  P     -               pickle, eval, predictable temporary files
K12  P     -               an exception in the middle of a start leaves half a container
K13  P     -               a zygote's secrets in later containers
K14  P     -               asserts that python -O strips
"""


def _parsed() -> dict[str, Row]:
    rows = {}
    for line in filter(None, _TABLE.splitlines()):
        row, marks, cve, cause = line.split(None, 3)
        rows[row] = Row(marks, cve.strip("-") if cve == "-" else cve, cause)
    return rows


ROWS = _parsed()

#: Rows with N or P that cannot be tested here: why not.
UNTESTABLE: dict[str, str] = {
    "A18": "there are no volumes with a first content: nothing of an image is copied",
    "J5": "limits are the caller's to set, as with Docker: there is no default that could be missing",
    "C12": "nothing is unpacked or compressed, and no program looked up for it: there is no copy, export or commit",
    "H10": "netlink messages are pyroute2's: no length is packed here",
    "H17": "the source of a bind mount is the caller's own path, followed as it is at the start (README); see A14",
    "H18": "there are no projected volumes: nothing is written into a container's files",
    "H19": "nothing is copied into or out of a container",
    "H20": "no archive is read",
    "C24": "no descriptors but the three of stdio can be handed on",
    "A20": "tmpfs mounts start empty: tmpcopyup is not offered",
}

#: Rows with N or P whose tests are not run as an ordinary user: why not. All the others are (test_rootless).
NEEDS_ROOT: dict[str, str] = {
    "A12": "one of the traps is a device node, which only root can make",
    "A21": "the test mounts on the host",
    "A23": "the test mounts on the host",
    "A24": "the test mounts on the host",
    "B4": "the test enters the container's namespaces, which are closed to the user himself",
    "D5": "the trap is a device node, which only root can make",
    "D6": "the terminal is looked at from the host, where it is closed to the user himself",
    "E12": "the test becomes an ordinary user itself",
    "E13": "the maps are root's to choose: an ordinary user's are his lines in /etc/subuid",
    "E16": "a user namespace beside one's own takes root of the host",
    "G4": "the test makes cgroups beside the user's own",
    "G5": "only root of the host may change a devices cgroup: elsewhere there is none, or it is an error",
    "G6": "only root of the host may change a devices cgroup: elsewhere there is none, or it is an error",
    "G7": "the trap is a device node, which only root can make",
    "G11": "the test makes cgroups beside the user's own",
    "H2": "others than root have to be kept out; and only root keeps compiled filters on disk",
    "H3": "others than root have to be kept out; and only root keeps compiled filters on disk",
    "H4": "the test becomes another user",
}
