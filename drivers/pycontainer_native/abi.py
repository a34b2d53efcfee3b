"""The kernel's numbers: system calls by architecture, and the constants of their arguments.

Only data, and nothing is imported but ``os``: the launcher loads this module
too, and its start time and memory count.  From the kernel's
``arch/x86/entry/syscalls/syscall_64.tbl``, ``include/uapi/asm-generic/unistd.h``
and the uapi headers named below.
"""

from __future__ import annotations

import os

#: name: (x86_64, the generic table of aarch64 and riscv64)
_NUMBERS = {
    "bpf": (321, 280),
    "capset": (126, 91),
    "chdir": (80, 49),
    "chroot": (161, 51),
    "clone": (56, 220),
    "clone3": (435, 435),
    "close": (3, 57),
    "close_range": (436, 436),
    "dup3": (292, 24),
    "execve": (59, 221),
    "fchdir": (81, 50),
    "fchownat": (260, 54),
    "fcntl": (72, 25),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fstatfs": (138, 44),
    "getcwd": (79, 17),
    "ioctl": (16, 29),
    "ioprio_set": (251, 30),
    "keyctl": (250, 219),
    "mkdirat": (258, 34),
    "mknodat": (259, 33),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "openat": (257, 56),
    "openat2": (437, 437),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "ppoll": (271, 73),
    "prctl": (157, 167),
    "prlimit64": (302, 261),
    "read": (0, 63),
    "recvfrom": (45, 207),
    "recvmsg": (47, 212),
    "rt_sigaction": (13, 134),
    "seccomp": (317, 277),
    "sched_getaffinity": (204, 123),
    "sched_setaffinity": (203, 122),
    "sendfile": (40, 71),
    "sendmsg": (46, 211),
    "sendto": (44, 206),
    "setns": (308, 268),
    "setgroups": (116, 159),
    "sethostname": (170, 161),
    "setresgid": (119, 149),
    "setresuid": (117, 147),
    "setsid": (112, 157),
    "socket": (41, 198),
    "symlinkat": (266, 36),
    "umask": (95, 166),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "write": (1, 64),
}

MACHINES = ("x86_64", "aarch64", "riscv64")
MACHINE = os.uname().machine
#: system call name -> number on this machine
NR = {name: numbers[MACHINE != "x86_64"] for name, numbers in _NUMBERS.items()}

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

# linux/sched.h
CLONE_NEWTIME = 0x00000080
CLONE_PIDFD = 0x00001000
CLONE_PARENT = 0x00008000
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
#: the namespaces of a container, by OCI's names
NAMESPACES = {
    "mount": CLONE_NEWNS,
    "cgroup": CLONE_NEWCGROUP,
    "user": CLONE_NEWUSER,
    "uts": CLONE_NEWUTS,
    "ipc": CLONE_NEWIPC,
    "pid": CLONE_NEWPID,
    "network": CLONE_NEWNET,
}
CLONE_CLEAR_SIGHAND = 0x100000000
CLONE_INTO_CGROUP = 0x200000000

# linux/fcntl.h, linux/openat2.h
O_PATH = 0o10000000
O_CLOEXEC = os.O_CLOEXEC
O_DIRECTORY = os.O_DIRECTORY
O_NOFOLLOW = os.O_NOFOLLOW
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

# linux/mount.h
MS_BIND = 0x1000
MS_REC = 0x4000
MS_UNBINDABLE = 0x20000
MS_PRIVATE = 0x40000
MS_SLAVE = 0x80000
MS_SHARED = 0x100000
MNT_DETACH = 2
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x04
MOVE_MOUNT_T_EMPTY_PATH = 0x40
FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
PROC_SUPER_MAGIC = 0x9FA0  # linux/magic.h
MOUNT_ATTR_RDONLY = 0x01
MOUNT_ATTR_NOSUID = 0x02
MOUNT_ATTR_NODEV = 0x04
MOUNT_ATTR_NOEXEC = 0x08
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_IDMAP = 0x100000
MOUNT_ATTR_NOSYMFOLLOW = 0x200000

# linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_CAPBSET_DROP = 24
PR_SET_TIMERSLACK = 29
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

# linux/ioprio.h
IOPRIO_WHO_PROCESS = 1

# linux/capability.h
LINUX_CAPABILITY_VERSION_3 = 0x20080522

# linux/seccomp.h
SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_NEW_LISTENER = 1 << 3

# linux/close_range.h, linux/keyctl.h, asm-generic/ioctls.h, linux/sockios.h, linux/socket.h
CLOSE_RANGE_CLOEXEC = 4
F_GETFD = 1
F_DUPFD_CLOEXEC = 1030
KEYCTL_JOIN_SESSION_KEYRING = 1
TIOCSCTTY = 0x540E
TIOCSPTLCK = 0x40045431
TIOCSWINSZ = 0x5414
TIOCGPTPEER = 0x5441
SIOCSIFFLAGS = 0x8914
SIOCGIFINDEX = 0x8933
NS_GET_NSTYPE = 0xB703  # linux/nsfs.h
SOL_SOCKET = 1
SCM_RIGHTS = 1
#: CMSG_SPACE of SCM_MAX_FD descriptors (unix(7)): the buffer for those of a request.
RIGHTS_SPACE = 16 + 253 * 4 + 4
MSG_DONTWAIT = 0x40
MSG_NOSIGNAL = 0x4000
MSG_CMSG_CLOEXEC = 0x40000000
IFF_UP = 0x1
IFF_RUNNING = 0x40

#: Slots that are filled for the plan; its own follow after FIRST_SLOT.  EXTRA and ROOT are the fourth and fifth
#: descriptor that come with the request: where an init reports, or, for exec, a pidfd of the container's first process
#: and its root directory.
STDIN, STDOUT, STDERR, EXTRA, ROOT, CHANNEL, CGROUP = range(7)
#: One v1 hierarchy each, from slot CGROUP on: more than the kernel has controllers.
#: Then the file systems that every container has, wherever in the plan they are made: mounts.make_system.
KEPT = SCRATCH, EMPTY, NULL, PROC, SYS, DEV = range(CGROUP + 20, CGROUP + 26)
#: Then the listener of the seccomp filter, once that is loaded.
LISTENER = CGROUP + 26
#: Then the descriptors that the caller has opened for the plan, such as namespaces to enter and mounts with mapped ids:
#: with those that go with every request they are fewer than the kernel sends in one message.
GIVEN = CGROUP + 27
MOST_GIVEN = 240
FIRST_SLOT = GIVEN + MOST_GIVEN
SLOTS = 4096
#: The child's end of its channel to the launcher, once foreign descriptors are closed.
CHANNEL_FD = 3
#: Where an init, if there is one, writes the payload's wait status.
REPORT_FD = 4
#: And the file systems that were made ahead, in the order of KEPT.
FIRST_KEPT_FD = 5
#: And then those that come with the request, in its order: none is free below.
FIRST_GIVEN_FD = FIRST_KEPT_FD + len(KEPT)

#: accept: do the step again, up to RETRIES times, instead of skipping steps.
RETRY = -1
RETRIES = 64
