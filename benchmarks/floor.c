/*
 * The floor: what the kernel itself must do for a default start of the native driver, without Python around it.
 * Same calls, same order (clone, cgroups, session, mounts by descriptor, pivot_root, network, masks, capabilities,
 * ids, execve of a static true), one process as parent, waitid, cgroups removed.
 *
 *     floor ROOTFS ID         one start: whoever times it also times this program's own start and exit
 *     floor -n N ROOTFS ID    N starts, a line of nanoseconds each, first mkdir to last rmdir; N = 0: a start for every
 *                             line of standard input
 *     floor -s FILE ...       load FILE, an array of struct sock_filter, before execve
 *
 * Built with -DTRACE every line goes on with name=nanoseconds for each phase.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/keyctl.h>
#include <linux/magic.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define LENGTH(array) (sizeof(array) / sizeof((array)[0]))
#define MNT_DETACH 2 /* <sys/mount.h> defines what <linux/mount.h> does and cannot stand beside it */
#define CGROUPS "/sys/fs/cgroup"

enum { SETUP_FAILED = 125 };

static const char *const V1_CONTROLLERS[] = {"memory", "pids", "cpu", "cpuacct", "blkio", "cpuset"};
static const char *const MASKED[] = {
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
    "/sys/devices/virtual/powercap",
};
static const char *const READ_ONLY[] = {"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"};
static const int KEPT[] = { /* Docker's fourteen without MKNOD and NET_RAW */
    CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FSETID, CAP_FOWNER, CAP_SETGID, CAP_SETUID, CAP_SETPCAP, CAP_NET_BIND_SERVICE,
    CAP_SYS_CHROOT, CAP_KILL, CAP_AUDIT_WRITE, CAP_SETFCAP,
};

static struct sock_fprog filter;

static long now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * 1000000000L + at.tv_nsec;
}

#ifdef TRACE
static struct { int count; struct { const char *name; long end; } phase[32]; } *trace; /* shared with the child */
#define PHASE(label) (trace->phase[trace->count].name = (label), trace->phase[trace->count++].end = now())
#else
#define PHASE(label) ((void)0)
#endif

static long must(const char *call, const char *what, long result)
{
    if (result < 0) {
        dprintf(STDERR_FILENO, "floor: %s %s: %s\n", call, what, strerror(errno));
        _exit(SETUP_FAILED);
    }
    return result;
}

/* --- cgroups ------------------------------------------------------------------------------------------------- */

/* Where the container's directory is in the hierarchy of a v1 controller, or (NULL) in the unified one. */
static int cgroup_path(char *path, size_t size, const char *controller, const char *id)
{
    struct statfs at;
    snprintf(path, size, "%s/%s", CGROUPS, controller ? controller : "unified");
    if (!controller && (statfs(path, &at) < 0 || at.f_type != CGROUP2_SUPER_MAGIC))
        snprintf(path, size, "%s", CGROUPS);
    if (statfs(path, &at) < 0 || at.f_type != (controller ? CGROUP_SUPER_MAGIC : CGROUP2_SUPER_MAGIC))
        return 0;
    snprintf(path + strlen(path), size - strlen(path), "/%s", id);
    return 1;
}

/* A new cpuset has no CPUs and no memory nodes, and lets nobody join: it gets the root's. */
static void fill_cpuset(const char *path, const char *file)
{
    char from[512], to[512], value[4096];
    snprintf(from, sizeof from, "%s/cpuset/%s", CGROUPS, file);
    snprintf(to, sizeof to, "%s/%s", path, file);
    int in = must("open", from, open(from, O_RDONLY | O_CLOEXEC));
    ssize_t length = must("read", from, read(in, value, sizeof value));
    int out = must("open", to, open(to, O_WRONLY | O_CLOEXEC));
    must("write", to, write(out, value, length));
    close(in);
    close(out);
}

/* Directories in every hierarchy, the tasks files of the v1 ones; returns the unified one's descriptor or -1. */
static int make_cgroups(const char *id, int tasks[LENGTH(V1_CONTROLLERS)])
{
    char path[512];
    for (size_t i = 0; i < LENGTH(V1_CONTROLLERS); i++) {
        tasks[i] = -1;
        if (!cgroup_path(path, sizeof path, V1_CONTROLLERS[i], id))
            continue;
        if (mkdir(path, 0755) < 0 && errno != EEXIST) /* cpu and cpuacct are one hierarchy on some hosts */
            must("mkdir", path, -1);
        if (!strcmp(V1_CONTROLLERS[i], "cpuset")) {
            fill_cpuset(path, "cpuset.cpus");
            fill_cpuset(path, "cpuset.mems");
        }
        strcat(path, "/tasks");
        tasks[i] = must("open", path, open(path, O_WRONLY | O_CLOEXEC));
    }
    if (!cgroup_path(path, sizeof path, NULL, id))
        return -1;
    must("mkdir", path, mkdir(path, 0755));
    return must("open", path, open(path, O_PATH | O_DIRECTORY | O_CLOEXEC));
}

static void remove_cgroups(const char *id)
{
    char path[512];
    for (size_t i = 0; i <= LENGTH(V1_CONTROLLERS); i++)
        if (cgroup_path(path, sizeof path, i < LENGTH(V1_CONTROLLERS) ? V1_CONTROLLERS[i] : NULL, id) &&
            rmdir(path) < 0 && errno != ENOENT)
            must("rmdir", path, -1);
}

/* --- mounts by descriptor ------------------------------------------------------------------------------------ */

/* O_PATH descriptor of a path inside the root file system, -1 where the kernel has no such file. */
static int in_root(int root, const char *path)
{
    struct open_how how = {.flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS};
    int fd;
    do /* EAGAIN: something was mounted or renamed meanwhile, see openat2(2) */
        fd = syscall(SYS_openat2, root, path, &how, sizeof how);
    while (fd < 0 && errno == EAGAIN);
    return fd < 0 && errno == ENOENT ? -1 : must("openat2", path, fd);
}

static int clone_of(int fd, const char *path, unsigned flags)
{
    flags |= OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH;
    return must("open_tree", path, syscall(SYS_open_tree, fd, "", flags));
}

static void move_onto(int mount, int target, const char *path)
{
    const unsigned both = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH;
    must("move_mount", path, syscall(SYS_move_mount, mount, "", target, "", both));
}

static int new_mount(const char *type, unsigned attributes, const char *const options[])
{
    int context = must("fsopen", type, syscall(SYS_fsopen, type, FSOPEN_CLOEXEC));
    for (; options && *options; options += 2)
        must("fsconfig", *options, syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, options[0], options[1], 0));
    must("fsconfig create", type, syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0));
    return must("fsmount", type, syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, attributes));
}

static int enter_rootfs(const char *rootfs)
{
    must("mount private", "/", syscall(SYS_mount, NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
    int root = clone_of(must("open", rootfs, open(rootfs, O_PATH | O_DIRECTORY | O_CLOEXEC)), rootfs, AT_RECURSIVE);
    move_onto(root, must("open", "/", open("/", O_PATH | O_CLOEXEC)), "/");
    must("fchdir", rootfs, fchdir(root));
    return root;
}

static void mount_all(int root)
{
    const unsigned plain = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC | MOUNT_ATTR_NODEV;
    static const struct { const char *path; unsigned major, minor; } nodes[] = {
        {"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0},
    };
    static const char *const links[][2] = {
        {"/proc/self/fd", "fd"},       {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"},
        {"/proc/self/fd/2", "stderr"}, {"pts/ptmx", "ptmx"},
    };
    umask(0);
    move_onto(new_mount("proc", plain, NULL), in_root(root, "/proc"), "/proc");
    int dev = new_mount("tmpfs", MOUNT_ATTR_NOSUID | MOUNT_ATTR_STRICTATIME,
                        (const char *const[]){"mode", "755", "size", "65536k", NULL});
    move_onto(dev, in_root(root, "/dev"), "/dev");
    PHASE("proc, /dev");
    for (size_t i = 0; i < LENGTH(nodes); i++)
        must("mknodat", nodes[i].path,
             mknodat(dev, nodes[i].path, S_IFCHR | 0666, makedev(nodes[i].major, nodes[i].minor)));
    for (size_t i = 0; i < LENGTH(links); i++)
        must("symlinkat", links[i][1], symlinkat(links[i][0], dev, links[i][1]));
    for (const char *const *name = (const char *const[]){"pts", "shm", "mqueue", NULL}; *name; name++)
        must("mkdirat", *name, mkdirat(dev, *name, 0755));
    PHASE("nodes, links");
    move_onto(new_mount("devpts", MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC,
                        (const char *const[]){"ptmxmode", "0666", "mode", "0620", "gid", "5", NULL}),
              in_root(root, "/dev/pts"), "/dev/pts");
    move_onto(new_mount("tmpfs", plain, (const char *const[]){"mode", "1777", "size", "65536k", NULL}),
              in_root(root, "/dev/shm"), "/dev/shm");
    move_onto(new_mount("mqueue", plain, NULL), in_root(root, "/dev/mqueue"), "/dev/mqueue");
    move_onto(new_mount("sysfs", plain | MOUNT_ATTR_RDONLY, NULL), in_root(root, "/sys"), "/sys");
    PHASE("pts, shm, mqueue, sysfs");
}

/* /dev/null over files, an empty read-only tmpfs over directories: a file cannot be moved onto a directory (EINVAL). */
static void hide_paths(int root)
{
    int null = in_root(root, "/dev/null"), empty = new_mount("tmpfs", MOUNT_ATTR_RDONLY, NULL), target;
    struct stat at;
    for (size_t i = 0; i < LENGTH(MASKED); i++)
        if ((target = in_root(root, MASKED[i])) >= 0) {
            must("fstat", MASKED[i], fstat(target, &at));
            move_onto(clone_of(S_ISDIR(at.st_mode) ? empty : null, MASKED[i], 0), target, MASKED[i]);
        }
    PHASE("masks");
    for (size_t i = 0; i < LENGTH(READ_ONLY); i++)
        if ((target = in_root(root, READ_ONLY[i])) >= 0) {
            struct mount_attr read_only = {.attr_set = MOUNT_ATTR_RDONLY};
            int clone = clone_of(target, READ_ONLY[i], AT_RECURSIVE);
            must("mount_setattr", READ_ONLY[i],
                 syscall(SYS_mount_setattr, clone, "", AT_EMPTY_PATH | AT_RECURSIVE, &read_only, sizeof read_only));
            move_onto(clone, target, READ_ONLY[i]);
        }
    PHASE("read-only paths");
}

/* --- the child ----------------------------------------------------------------------------------------------- */

static void raise_loopback(void)
{
    struct ifreq lo = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    int socket_fd = must("socket", "lo", socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    must("ioctl SIOCSIFFLAGS", "lo", ioctl(socket_fd, SIOCSIFFLAGS, &lo));
}

static void drop_privileges(void)
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct sets[2] = {0};
    unsigned long kept = 0;
    for (size_t i = 0; i < LENGTH(KEPT); i++)
        kept |= 1UL << KEPT[i];
    for (int capability = 0; capability < 64; capability++)
        if (!(kept >> capability & 1) && prctl(PR_CAPBSET_DROP, capability) < 0) {
            if (errno == EINVAL) /* one past the last that this kernel knows */
                break;
            must("prctl", "PR_CAPBSET_DROP", -1);
        }
    must("prctl", "PR_SET_KEEPCAPS", prctl(PR_SET_KEEPCAPS, 1));
    must("setgroups", "", setgroups(0, NULL));
    must("setresgid", "0", setresgid(0, 0, 0));
    must("setresuid", "0", setresuid(0, 0, 0));
    sets[0].permitted = sets[0].effective = kept; /* the twelve are all below 32 */
    must("capset", "", syscall(SYS_capset, &header, sets));
    must("prctl", "PR_CAP_AMBIENT_CLEAR_ALL", prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0));
    must("prctl", "PR_SET_NO_NEW_PRIVS", prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
}

static void container(const char *rootfs, const char *id, const int tasks[LENGTH(V1_CONTROLLERS)])
{
    char here[4096];
    sigset_t none;
    PHASE("clone3");
    must("prctl", "PR_SET_PDEATHSIG", prctl(PR_SET_PDEATHSIG, SIGKILL));
    for (size_t i = 0; i < LENGTH(V1_CONTROLLERS); i++)
        if (tasks[i] >= 0)
            must("write tasks", V1_CONTROLLERS[i], write(tasks[i], "0", 1));
    PHASE("v1 cgroups joined");
    must("unshare", "CLONE_NEWCGROUP", syscall(SYS_unshare, CLONE_NEWCGROUP));
    must("setsid", "", setsid());
    must("keyctl", "KEYCTL_JOIN_SESSION_KEYRING", syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL));
    PHASE("cgroup namespace, session");
    int root = enter_rootfs(rootfs);
    PHASE("/ private, rootfs");
    mount_all(root);
    must("pivot_root", ".", syscall(SYS_pivot_root, ".", "."));
    must("umount2", ".", syscall(SYS_umount2, ".", MNT_DETACH));
    must("chdir", "/", chdir("/"));
    PHASE("pivot_root, umount2");
    raise_loopback();
    must("sethostname", id, sethostname(id, strnlen(id, 64)));
    PHASE("lo, hostname");
    hide_paths(root);
    drop_privileges();
    PHASE("capabilities, ids");
    must("getcwd", "/", syscall(SYS_getcwd, here, sizeof here));
    must("close_range", "", syscall(SYS_close_range, 3, ~0U, CLOSE_RANGE_CLOEXEC));
    sigemptyset(&none);
    must("sigprocmask", "", sigprocmask(SIG_SETMASK, &none, NULL));
    umask(022);
    must("prctl", "PR_SET_PDEATHSIG", prctl(PR_SET_PDEATHSIG, SIGKILL));
    if (filter.len)
        must("seccomp", "", syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter));
    PHASE("rest before execve");
    execve("/bin/true", (char *[]){"/bin/true", NULL}, (char *[]){"PATH=/bin", "HOME=/", NULL});
    must("execve", "/bin/true", -1);
}

/* --- the parent ---------------------------------------------------------------------------------------------- */

static int start(const char *rootfs, const char *id)
{
    int tasks[LENGTH(V1_CONTROLLERS)], pidfd = -1, cgroup = make_cgroups(id, tasks);
    struct clone_args args = {
        .flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_PIDFD,
        .pidfd = (unsigned long)&pidfd,
        .exit_signal = SIGCHLD,
    };
    siginfo_t exited;
    if (cgroup >= 0) {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup;
    }
    PHASE("cgroups made");
    if (must("clone3", "", syscall(SYS_clone3, &args, sizeof args)) == 0)
        container(rootfs, id, tasks);
    must("waitid", "", waitid(P_PIDFD, pidfd, &exited, WEXITED));
    PHASE("execve, true, exit, waitid");
    must("close_range", "", syscall(SYS_close_range, 3, ~0U, 0));
    remove_cgroups(id);
    PHASE("cgroups removed");
    return exited.si_code == CLD_EXITED ? exited.si_status : 128 + exited.si_status;
}

static void load_filter(const char *path)
{
    static struct sock_filter code[BPF_MAXINSNS];
    int fd = must("open", path, open(path, O_RDONLY | O_CLOEXEC));
    filter.len = must("read", path, read(fd, code, sizeof code)) / sizeof code[0];
    filter.filter = code;
    close(fd);
}

int main(int argc, char **argv)
{
    int option, status = 0, measured = -1;
    char id[128], line[16];
    while ((option = getopt(argc, argv, "n:s:")) != -1)
        if (option == 'n')
            measured = atoi(optarg);
        else if (option == 's')
            load_filter(optarg);
        else
            return 2;
    if (argc - optind != 2) {
        fprintf(stderr, "usage: floor [-n N] [-s FILTER] ROOTFS ID\n");
        return 2;
    }
#ifdef TRACE
    trace = mmap(NULL, sizeof *trace, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
#endif
    if (measured < 0)
        return start(argv[optind], argv[optind + 1]);
    for (int i = 0; !status && (measured ? i < measured : fgets(line, sizeof line, stdin) != NULL); i++) {
        snprintf(id, sizeof id, "%s-%d", argv[optind + 1], i);
#ifdef TRACE
        trace->count = 0;
#endif
        long began = now();
        status = start(argv[optind], id);
        printf("%ld", now() - began);
#ifdef TRACE
        for (int p = 0; p < trace->count; began = trace->phase[p++].end)
            printf("\t%s=%ld", trace->phase[p].name, trace->phase[p].end - began);
#endif
        printf("\n");
        fflush(stdout);
    }
    return status;
}
