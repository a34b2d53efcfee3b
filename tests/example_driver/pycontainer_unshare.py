"""A driver that makes no system call of its own: unshare(1), prlimit(1), setpriv(1) and chroot(1) make them.

An example for authors of drivers, and no boundary: /proc is not masked, and there is no cgroup.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal as signals
import subprocess
import time
import weakref
from collections.abc import Mapping, Sequence

import pycontainer
from pycontainer import Command, ExitStatus, Feature, InvalidCommandError, NotRunningError, Probe, Process, State, Stdio
from pycontainer.command import DEFAULT_CAPABILITIES, DEFAULT_PATH
from pycontainer.rootfs import lookup_user, open_in_rootfs
from pycontainer.service import WatchedProcess, exit_status, wait_readable

NAMES = ("unshare", "prlimit", "setpriv", "chroot", "sh", "cat", "pgrep", "taskset", "renice")
TOOLS = {name: shutil.which(name) or "" for name in NAMES}
# What the caller is scheduled by stays the caller's; of these processors taskset takes those that there are.
USUAL = """umask 022; { echo 0 > /proc/self/oom_score_adj; "$1" -n 0 $$; "$2" -pc 0-9999 $$; } > /dev/null 2>&1
shift 2; exec "$@" """
REFUSED = ["mounts", "read_only", "rootfs_propagation", "hostname", "pid", "ipc", "uts", "cgroup_parent", "config"]
REFUSED += ["oom_score_adj", "cpu_affinity", "masked_paths", "readonly_paths"]


class UnshareProcess(WatchedProcess):
    """unshare(1), which waits for its child, PID 1 of the container, and ends as that does."""

    def __init__(self, command: Command, stdio: Stdio) -> None:
        self.id = command.id
        argv, env = command_line(command)
        self._tool = subprocess.Popen(
            argv, stdin=stdio.stdin, stdout=stdio.stdout, stderr=stdio.stderr, env=env, start_new_session=True
        )
        self._readable = os.pidfd_open(self._tool.pid)
        # Its input ends when this process does, however that is, and then it kills: the child as well, for a change of
        # ids takes --kill-child away (prctl(2), PR_SET_PDEATHSIG).
        kill = "cat > /dev/null; read -r child < /proc/$0/task/$0/children; kill -KILL $0 $child"
        leash = [TOOLS["sh"], "-c", kill, str(self._tool.pid)]
        self._leash = subprocess.Popen(leash, stdin=subprocess.PIPE)
        self.pid, self.pidfd = self._tool.pid, -1
        before = {os.stat(path).st_ino for path in TOOLS.values()}
        while self.pidfd < 0 and self._tool.poll() is None:  # what has ended already has run, too
            try:
                with open(f"/proc/{self._tool.pid}/task/{self._tool.pid}/children") as file:
                    child = int(file.read())
                if os.stat(f"/proc/{child}/exe").st_ino not in before:  # the last execve has succeeded
                    self.pid, self.pidfd = child, os.pidfd_open(child)
            except (OSError, ValueError):
                time.sleep(0.001)

    def poll(self) -> ExitStatus | None:
        code = self._tool.poll()
        if code is None:
            return None
        wait_readable(self.pidfd)  # where unshare was killed, its child is about to end
        return exit_status(code) if code >= 0 else exit_status(None, -code)

    def deliver(self, signal: int) -> None:
        if signal == signals.SIGKILL:
            self._tool.kill()  # first: unshare cannot report that its child was killed
        super().deliver(signal)

    def fileno(self) -> int:
        return self._readable

    def close(self) -> None:
        self.send_signal(signals.SIGKILL)
        self.wait()
        self._leash.kill()
        self._leash.communicate()
        for fd in {self.pidfd, self._readable} - {-1}:
            os.close(fd)
        self.pidfd = self._readable = -1


def command_line(command: Command) -> tuple[list[str], Mapping[str, str]]:
    """What is executed, each tool by the one before, and its environment. Raises SetupError."""
    process, rootfs = command.process, str(command.rootfs)
    user = lookup_user(rootfs, process.user, process.additional_groups)
    env = {"PATH": DEFAULT_PATH, "HOME": user.home} if process.env is None else process.env
    find(process.entrypoint, rootfs, env.get("PATH", DEFAULT_PATH))
    argv = [TOOLS["sh"], "-c", USUAL, "sh", TOOLS["renice"], TOOLS["taskset"]]
    argv += [TOOLS["unshare"], "-pmuiC", "--kill-child", f"--mount-proc={rootfs}/proc"]
    argv += [] if any(network.mode == "host" for network in command.networks) else ["--net"]
    for limit in process.rlimits:
        argv += [TOOLS["prlimit"], f"--{limit.type[7:].lower()}={limit.soft}:{limit.hard}"]
    bounding = ",".join(["-all", *(f"+{name[4:].lower()}" for name in kept(process))])
    argv += [TOOLS["setpriv"], f"--bounding-set={bounding}", "--inh-caps=-all"]
    argv += ["--no-new-privs"] if process.no_new_privileges else []
    groups = ",".join(map(str, user.groups))
    argv += [TOOLS["chroot"], f"--userspec={user.uid}:{user.gid}", f"--groups={groups}", rootfs, *process.argv]
    return argv, env


def kept(process: Process) -> Sequence[str]:
    """The capabilities that the process may have."""
    return DEFAULT_CAPABILITIES if process.capabilities is None else process.capabilities


def find(program: str, rootfs: str, path: str) -> None:
    """Make sure that there is such a program; chroot(1) could only say so in words. Raises SetupError."""
    for place in [program] if "/" in program else [f"{directory}/{program}" for directory in path.split(":")]:
        try:
            return os.close(open_in_rootfs(rootfs, place))
        except OSError:
            continue
    raise pycontainer.SetupError("execve", errno.ENOENT, program)


class UnshareDriver(pycontainer.ExecutionDriver):
    """Five verbs. States, locks, clean-up, and refusing what needs a feature, are the core's."""

    name = "unshare-0.1"

    def __init__(self) -> None:
        self._processes: weakref.WeakValueDictionary[str, UnshareProcess] = weakref.WeakValueDictionary()

    def features(self) -> frozenset[Feature]:
        return frozenset()

    def probe(self) -> Probe:
        cause = remedy = ""
        if missing := ", ".join(name for name, path in TOOLS.items() if not path):
            cause, remedy = f"there is no {missing}", "apt-get install util-linux coreutils procps bsdutils"
        elif os.geteuid() != 0:
            cause, remedy = "it needs root", "sudo"
        return Probe("unshare", not cause, self.name, evidence=TOOLS["unshare"], cause=cause, remedy=remedy)

    def validate(self, command: Command) -> Sequence[InvalidCommandError]:
        rootfs, process = command.rootfs, command.process
        refused = [field for field in REFUSED if getattr(command, field) not in (None, False, ())]
        problems = [InvalidCommandError(field, "this driver leaves it as it is") for field in refused]
        if process.privileged:
            problems.append(InvalidCommandError("process.privileged", "this driver does not have it"))
        if not {"CAP_SYS_CHROOT", "CAP_SETUID", "CAP_SETGID"}.issubset(kept(process)):
            problems.append(InvalidCommandError("process.capabilities", "chroot(1) needs some itself"))
        if process.working_dir != "/":
            problems.append(InvalidCommandError("process.working_dir", "chroot(1) knows only /"))
        if any(name.startswith("LD_") for name in process.env or ()):
            problems.append(InvalidCommandError("process.env", "LD_* would change the tools, on the host and as root"))
        if isinstance(rootfs, str) and not os.path.isdir(rootfs):
            problems.append(InvalidCommandError("rootfs", f"{rootfs} is not a directory"))
        try:
            lookup_user(rootfs, process.user, process.additional_groups)
        except InvalidCommandError as error:
            problems.append(error)
        return problems

    def start(self, command: Command, stdio: Stdio) -> UnshareProcess:
        for problem in self.validate(command):
            raise problem
        if self.info(command.id).is_running:
            raise pycontainer.AlreadyExistsError(command.id)
        process = self._processes[command.id] = UnshareProcess(command, stdio)
        return process

    def _running(self, id: str) -> UnshareProcess:
        process = self._processes.get(id)
        if process is None or process.poll() is not None:
            raise NotRunningError(id)
        return process

    def kill(self, id: str, signal: int) -> None:
        self._running(id).send_signal(signal)

    def terminate(self, id: str) -> None:
        self._running(id).send_signal(signals.SIGKILL)  # PID 1 takes its pid namespace along

    def info(self, id: str) -> pycontainer.ContainerInfo:
        try:
            return pycontainer.ContainerInfo(id, State.RUNNING, self._running(id).pid)
        except NotRunningError:
            return pycontainer.ContainerInfo(id, State.STOPPED)

    def get_pids_for_container(self, id: str) -> Sequence[int]:
        pgrep = [TOOLS["pgrep"], "--ns", str(self._running(id).pid), "--nslist", "pid", "."]
        return [int(pid) for pid in subprocess.run(pgrep, stdout=subprocess.PIPE).stdout.split()]


@pycontainer.hookimpl
def pycontainer_create_driver(options: Mapping[str, object]) -> UnshareDriver:
    """The driver, which has no options."""
    return UnshareDriver(**options)
