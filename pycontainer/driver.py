"""What an execution driver is, and the types that it speaks in. A plugin author starts here.

Docker 0.9 (March 2014) put an interface between "what to run" and "what runs
it": ``execdriver.Driver`` with Run, Kill, Name, Info and
GetPidsForContainer.  This is that interface for today.  A driver subclasses
:class:`ExecutionDriver`, implements :meth:`~ExecutionDriver.start` and the
four small verbs after it, declares in :meth:`~ExecutionDriver.features` what
else it can do, and is found by an entry point (see
:mod:`pycontainer.hookspecs`).

Rules that hold for every verb:

* A verb whose feature is not declared raises
  :class:`~pycontainer.errors.UnsupportedError`: the base class does that, so a
  driver implements only what it has.  A Command that needs an undeclared
  feature is refused by the core, whatever ``validate`` says, and never started.
* A field of the Command is honoured, or ``validate`` names it as a problem;
  none is ever ignored.  What a feature covers needs no mention there where
  that is not declared.  The core calls ``validate`` before ``start``; but
  ``start`` is also called directly, as by the conformance kit, so it calls
  ``validate`` itself, and raises what that has found.  Capabilities and no_new_privileges are honoured by
  every driver, their defaults as well.  The two defaults that a driver may
  leave out are a ``seccomp`` of None without Feature.SECCOMP, which then is
  no filter, and ``masked_paths`` and ``readonly_paths`` of None where it
  refuses paths that are given.
* A container has namespaces of its own for mounts, pids, ipc, uts, cgroups
  and the network, but for those that the Command shares; ``/proc``, of that
  pid namespace; ``/sys``, read-only; in ``/dev`` null, zero, full, random,
  urandom, tty, ptmx, pts, shm, mqueue and the links stdin, stdout, stderr and
  fd; what :func:`pycontainer.spec.to_oci` has.  A driver that brings no
  ``/dev`` leaves the root's, and says so.
* Its program begins with no signal ignored or blocked, umask 022, and the
  kernel's defaults for what a process is scheduled by and inherits:
  oom_score_adj 0, niceness 0, every processor.  The caller may have others,
  and so may a helper process that was started by it.
* Any verb may be called from any thread.  For one container the core
  serialises the verbs, but not ``poll``, ``wait``, ``info`` and
  ``get_pids_for_container``; and during a ``start_created`` it may be killed.
* No verb installs a signal handler.  What a driver starts is in a session of
  its own, so that a ^C meant for the caller does not end it.
* The descriptors of a :class:`Stdio` are borrowed.  No other descriptor of the
  caller gets into a container, and no container has those of another.
* A container is attached: it ends with its ContainerProcess, which ``close``
  ends, and with the process that made it, however that dies.  After a fork it
  is the parent's; a driver object must be able to start new ones in the child.
* Or it is detached (Feature.RESTORE, :meth:`~ExecutionDriver.start_detached`):
  it outlives whoever made it, ``close`` only lets go of it, and its verbs work
  from any process that has the same driver with the same options.  Its id is
  the host's: no two detached containers have the same, whoever made them.

States, as ``info`` reports them, and where verbs belong:

=========  ==========================================================  ==============
State      Allowed                                                     Next
=========  ==========================================================  ==============
created    start_created, kill, terminate                              running
running    kill, terminate, exec, pause, stats, update                 paused
paused     unpause, kill, terminate, stats, update                     running
stopped    clean                                                       (its id is free)
=========  ==========================================================  ==============

A detached container begins as running, and has the same states but for the last:

=========  ==========================================================  ==============
stopped    restore, logs, info (with its status), delete               (removed)
=========  ==========================================================  ==============

Anywhere else they raise :class:`~pycontainer.errors.NotRunningError`.
``pytest --pyargs pycontainer.testing.conformance --container-driver NAME``
tests all of this (:mod:`pycontainer.testing.conformance`).

Traps, each of which somebody has fallen into:

* PR_SET_PDEATHSIG is about the *thread* that forked, and is cleared by a
  change of ids and by the execve of a setuid program (prctl(2)).
* A pidfd is taken before anybody can reap the child, or it may be another
  process's: in the parent, right after the fork, with SIGCHLD not ignored.
* A PID namespace ends with its PID 1, and what has joined it from outside
  too; what shares the host's does not end by that.

What an attached container takes, a helper process that ends with its caller,
and a ContainerProcess that hears from it, is in :mod:`pycontainer.service`.
"""

from __future__ import annotations

import abc
import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from attrs import field, frozen

from pycontainer import _fields as check
from pycontainer.errors import InvalidCommandError, UnsupportedError

if TYPE_CHECKING:
    from pycontainer.command import Command, Process, Resources
    from pycontainer.logs import LogRecord
    from pycontainer.receipt import Receipt
    from pycontainer.stats import Stats
    from pycontainer.stdio import Pipes

__all__ = [
    "ContainerInfo",
    "ContainerProcess",
    "ExecutionDriver",
    "ExitStatus",
    "Feature",
    "FeatureProbe",
    "LogLimits",
    "Probe",
    "State",
    "Stdio",
]


class Feature(enum.Enum):
    """What a driver can declare. A declared feature works; an undeclared one raises UnsupportedError."""

    CREATE = "create"  #: create() and start_created(): everything set up, execve waits for start
    EXEC = "exec"  #: exec(): a further process in a running container
    PAUSE = "pause"  #: pause() and unpause()
    STATS = "stats"  #: stats(): what the container has used
    UPDATE = "update"  #: update(): new limits while it runs
    RESTORE = "restore"  #: start_detached(), restore(): a container that outlives its maker, and is found again
    TTY = "tty"  #: Process.tty: a terminal of its own as stdio
    INIT = "init"  #: Command.init: a small init before the payload
    HOST_ROOTFS = "host-rootfs"  #: Command.rootfs=None: a throw-away view of the host's programs
    OVERLAY = "overlay"  #: rootfs.overlay(): a root of several directories
    NETWORK = "network"  #: more than a loopback device or the host's network
    ROOTLESS = "rootless"  #: usable without root
    SECCOMP = "seccomp"  #: system call filter
    SECCOMP_NOTIFY = "seccomp-notify"  #: one that asks another process (SCMP_ACT_NOTIFY)
    USERNS = "userns"  #: a user namespace, root inside being somebody else outside
    DEVICES = "devices"  #: Command.devices and Resources.device_cgroup_rules
    SYSCTLS = "sysctls"  #: kernel parameters of the container's own namespaces
    LABELS = "labels"  #: Command.apparmor_profile, selinux_label and mount_label
    HOOKS = "hooks"  #: the OCI runtime spec's life-cycle hooks
    MEMORY = "memory"  #: Resources.memory and memory_swap
    CPU = "cpu"  #: Resources.cpu_shares, cpu_quota, cpu_period
    CPUSET = "cpuset"  #: Resources.cpuset_cpus and cpuset_mems
    PIDS = "pids"  #: Resources.pids_limit
    BLKIO = "blkio"  #: Resources.blkio_weight and the other limits of disks
    HUGETLB = "hugetlb"  #: Resources.hugepage_limits


class State(enum.Enum):
    """Where a container is in its life, in the words of the OCI runtime spec (and ``paused``)."""

    CREATING = "creating"
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


@frozen
class ExitStatus:
    """How a container's main process ended (Docker's ExitStatus, and the reason).

    Exactly one of :attr:`exit_code` (0 to 255) and :attr:`signal` (1 to 64) is
    not None.  :attr:`oom_killed` is true when the kernel's out-of-memory
    killer killed a process *of this container*, whether or not that was the
    main one; of a further process (:meth:`ExecutionDriver.exec`), when it did
    so while that ran, and that did not exit with 0.  :attr:`reason` is a
    sentence for people.
    """

    exit_code: int | None
    signal: int | None = None
    oom_killed: bool = False
    reason: str = ""

    @property
    def returncode(self) -> int:
        """The exit code, or -N when signal N ended it (:attr:`subprocess.Popen.returncode`)."""
        return -self.signal if self.signal is not None else (self.exit_code or 0)

    @property
    def shell_code(self) -> int:
        """The exit code, or 128+N when signal N ended it, as shells and ``docker run`` have it."""
        return 128 + self.signal if self.signal is not None else (self.exit_code or 0)


@frozen
class ContainerInfo:
    """A container's live state: Docker 0.9's ``Info(id)``; of a detached one also what ``docker ps -a`` shows."""

    id: str
    state: State
    pid: int | None = None  #: host pid of the container's init, None when it is not running
    # Of a detached container; None of an attached one, whose maker has all that.
    command: Command | None = None  #: what it runs
    created: float | None = None  #: when it was made, of time.time()
    ended: float | None = None  #: when it ended, of time.time(); None while it runs, or when that is unknown
    #: How it ended; None while it runs. None of a stopped one: what watched over it died, and nobody knows.
    status: ExitStatus | None = None
    #: Why not all of this is known, where its record cannot be read: that of a later version, or a broken one. Then it
    #: has no :attr:`command`; it can be removed, and what needs no more than its processes works.
    problem: str = ""

    @property
    def is_running(self) -> bool:
        """Docker 0.9's ``IsRunning()``: true from created until stopped, also while paused."""
        return self.state not in (State.STOPPED, State.CREATING)


@frozen
class FeatureProbe:
    """Whether one feature can be used on this host now: the evidence, and where not, cause and remedy."""

    usable: bool
    evidence: str = ""
    cause: str = ""
    remedy: str = ""


@frozen
class Probe:
    """Whether a driver can be used on this host now. Taken live, never cached across processes."""

    driver: str  #: the name it is chosen by
    usable: bool
    version: str = ""  #: ExecutionDriver.name, as in ``native-0.1``
    evidence: str = ""
    cause: str = ""
    remedy: str = ""
    features: Mapping[Feature, FeatureProbe] = field(factory=dict)


@frozen
class Stdio:
    """The descriptors that become a container's 0, 1 and 2.

    They are borrowed: the caller closes them after ``start`` returned, a
    driver that keeps one duplicates it.  With a terminal they are ignored:
    the driver makes a pseudo-terminal and hands out its master.
    """

    stdin: int
    stdout: int
    stderr: int
    size: tuple[int, int] | None = None  #: the terminal's (rows, columns)
    #: When the start has to be over, of time.monotonic(), or else WaitTimeoutError; it may be float("inf").
    deadline: float | None = None
    #: A descriptor that is readable once the start is to be given up, with WaitTimeoutError; -1: it never is. For a
    #: driver that does not look at it the core ends the container when it has started.
    give_up: int = -1


def _log_size(value: int | str) -> int:
    return check.size("log_limits.size", value)  # type: ignore[return-value]  # None is refused below


@frozen
class LogLimits:
    """How much of a detached container's output is kept: docker's ``--log-opt max-size`` and ``max-file``.

    Raises InvalidCommandError, for ``log_limits.<field>``.
    """

    #: bytes, or a text like ``"1m"``, after which another file is begun
    size: int = field(default=4 << 20, converter=_log_size)
    files: int = 2  #: how many there are at most; the oldest one is dropped

    def __attrs_post_init__(self) -> None:
        check.integer("log_limits.size", self.size, 1, 2**63 - 1)
        check.integer("log_limits.files", self.files, 1, 1000)


class ContainerProcess(abc.ABC):
    """A started container's main process, as :meth:`ExecutionDriver.start` returns it."""

    id: str  #: the container's id
    pid: int  #: pid of the container's init in the caller's pid namespace
    pidfd: int  #: a pidfd of it, owned by this object; -1 where a driver has none
    #: The pseudo-terminal's master, None without tty. The receiver takes it and puts None in its place.
    terminal: int | None = None

    @abc.abstractmethod
    def poll(self) -> ExitStatus | None:
        """The exit status, or None while it runs. Never blocks.

        Raises ContainerLostError when whoever watched over it died.
        """

    @abc.abstractmethod
    def wait(self, timeout: float | None = None) -> ExitStatus:
        """Block until the container ended and everything of it is removed; then its status, each time.

        *timeout* in seconds; None waits for ever.  Raises WaitTimeoutError
        (the container goes on), ContainerLostError, or SetupError: it is dead,
        and how it ended could not be learned.
        """

    @abc.abstractmethod
    def send_signal(self, signal: int) -> None:
        """Send *signal* to the main process. Does nothing once it has ended."""

    def leave(self) -> None:  # noqa: B027 - an optional hook, not a forgotten abstract method
        """Its caller closes it, and from now on only waits for its end: what runs on for it, as hooks do, is to end."""

    def receipt(self) -> Receipt:
        """What really holds for the main process: read from /proc, so that no driver can be mistaken about it.

        Only a driver whose containers are not processes of this kernel, and
        so have no :attr:`pidfd`, overrides this.  Raises ProcessLookupError
        when it has ended, PermissionError.
        """
        from pycontainer.receipt import read

        return read(self.pid, self.pidfd)

    @abc.abstractmethod
    def fileno(self) -> int:
        """A descriptor that is readable when :meth:`poll` has something new. For selectors and asyncio."""

    @abc.abstractmethod
    def close(self) -> None:
        """Give back descriptors. A container that still runs is killed, for it is attached to this object.

        A detached one goes on.  Twice is no error.

        The core calls it after the end, and a finalizer from anywhere, in the
        midst of any method of this driver too: so it takes no lock that such
        a method may hold.  It may reap the process that it has just killed,
        which takes moments, and waits for nothing else.
        """


class ExecutionDriver(abc.ABC):
    """Docker 0.9's ``execdriver.Driver``: what stands between "what to run" and "what runs it"."""

    #: Name and version, ``native-0.1``: what ``docker info`` shows as "Execution Driver".
    name: ClassVar[str]

    #: Whether its exec cannot but start in "/", and without additional groups. Then that is what Container.exec asks
    #: for where nothing else is said; a driver that has them does as the container was told.
    exec_starts_in_root: ClassVar[bool] = False

    # -- what it can do ------------------------------------------------------

    @abc.abstractmethod
    def features(self) -> frozenset[Feature]:
        """What this driver declares: static, the same on every host. :meth:`probe` says what this host allows."""

    def probe(self) -> Probe:
        """Look whether this host can be used, without changing anything. Must not raise."""
        return Probe(driver=self.name.rpartition("-")[0], usable=True, version=self.name)

    def validate(self, command: Command) -> Sequence[InvalidCommandError | UnsupportedError]:
        """Everything about *command* that this driver or this host cannot do, all at once. Creates nothing.

        Not what needs a feature that is not declared: the core has said that.
        """
        return ()

    # -- the verbs every driver has ------------------------------------------

    @abc.abstractmethod
    def start(self, command: Command, stdio: Stdio) -> ContainerProcess:
        """Start *command* and return once its program runs (execve has succeeded).

        Raises InvalidCommandError, UnsupportedError, AlreadyExistsError,
        SetupError; after any of them nothing is left.
        """

    def run(
        self,
        command: Command,
        pipes: Pipes | None = None,
        start_callback: Callable[[Command, int], object] | None = None,
    ) -> ExitStatus:
        """Docker 0.9's ``Run``: start, call back once when the process is up, block until it ends.

        *pipes* are the three streams (default: the caller's own stdout and
        stderr, no stdin).  *start_callback* gets the command and the host pid.
        When it raises, the container is killed and the error goes on.
        """
        from pycontainer.lifecycle import run

        return run(self, command, pipes, start_callback)

    @abc.abstractmethod
    def kill(self, id: str, signal: int) -> None:
        """Send *signal* to the main process of container *id*. Raises NotRunningError."""

    @abc.abstractmethod
    def terminate(self, id: str) -> None:
        """SIGKILL to everything in the container: Docker 0.9's ``Terminate``. Raises NotRunningError.

        Not :meth:`Container.terminate`, which is Popen's and sends SIGTERM: :meth:`Container.kill` calls this.
        """

    @abc.abstractmethod
    def info(self, id: str) -> ContainerInfo:
        """The live state; an id that is not known is stopped."""

    @abc.abstractmethod
    def get_pids_for_container(self, id: str) -> Sequence[int]:
        """Host pids of every process in the container, exec'ed ones included. Raises NotRunningError."""

    def clean(self, id: str) -> None:  # noqa: B027 - an optional hook, not a forgotten abstract method
        """Remove whatever a container that has ended left behind. Doing it twice is no error."""

    def close(self) -> None:  # noqa: B027 - likewise
        """End the driver: every attached container is killed and removed."""

    # -- the verbs that need a feature ---------------------------------------

    def create(self, command: Command, stdio: Stdio) -> ContainerProcess:
        """Feature.CREATE: as :meth:`start`, but stop right before execve.

        From here until its execve a receipt may trace it (ptrace(2)): a
        driver that is its parent itself must not take a stop for its end.
        """
        raise UnsupportedError(self.name, Feature.CREATE)

    def start_created(self, process: ContainerProcess) -> None:
        """Feature.CREATE: let a created container's program run; returns and raises as :meth:`start`."""
        raise UnsupportedError(self.name, Feature.CREATE)

    def exec(self, id: str, process: Process, stdio: Stdio) -> ContainerProcess:
        """Feature.EXEC: run a further process inside container *id*, confined as its init is.

        Raises NotRunningError (also when it is paused), and what :meth:`start` raises.
        """
        raise UnsupportedError(self.name, Feature.EXEC)

    def pause(self, id: str) -> None:
        """Feature.PAUSE: freeze every process of the container. Raises NotRunningError when it is not running."""
        raise UnsupportedError(self.name, Feature.PAUSE)

    def unpause(self, id: str) -> None:
        """Feature.PAUSE: let a paused container go on."""
        raise UnsupportedError(self.name, Feature.PAUSE)

    def stats(self, id: str) -> Stats:
        """Feature.STATS: what the container has used until now. Raises NotRunningError."""
        raise UnsupportedError(self.name, Feature.STATS)

    def update(self, id: str, resources: Resources) -> None:
        """Feature.UPDATE: other limits for a running container; a None in *resources* leaves that one alone.

        Raises NotRunningError; InvalidCommandError for a limit that cannot be
        applied, after which every limit is as it was.
        """
        raise UnsupportedError(self.name, Feature.UPDATE)

    # -- detached containers: Feature.RESTORE

    def start_detached(self, command: Command, log: LogLimits, deadline: float | None = None) -> ContainerProcess:
        """Feature.RESTORE: as :meth:`start`, of a container that outlives this process, also its SIGKILL.

        Its stdin is /dev/null; its stdout and stderr, or with a terminal what
        that shows, go to a log within the limits *log*.  How it ends is
        recorded before anybody can see the end.  *deadline* is as in
        :class:`Stdio`.  Raises as :meth:`start`; AlreadyExistsError also for
        one that has ended and is not deleted yet.
        """
        raise UnsupportedError(self.name, Feature.RESTORE)

    def restore(self, id: str) -> ContainerProcess:
        """Feature.RESTORE: re-attach to a detached container, whoever made it, also to one that has ended.

        The ``poll`` and ``wait`` of what is returned give the true exit
        status, as often as somebody asks, until it is deleted; they raise
        ContainerLostError where nobody could record one, and then it is dead.
        Any number of processes may be attached.  Raises ContainerNotFoundError.
        """
        raise UnsupportedError(self.name, Feature.RESTORE)

    def containers(self) -> Sequence[ContainerInfo]:
        """Feature.RESTORE: every detached container, those that have ended too, the oldest first.

        One whose record cannot be read is among them, with its ``problem``,
        and keeps nobody from the others.
        """
        raise UnsupportedError(self.name, Feature.RESTORE)

    def logs(self, id: str, follow: bool = False, tail: int | None = None) -> Iterator[LogRecord]:
        """Feature.RESTORE: what a detached container has printed, in the order in which it came.

        With *follow* also what it prints from now on, until it has ended;
        *tail* is how many of the lines that are there come first (None: all).
        :func:`pycontainer.logs.read_log` does it for a log in its format.
        Raises ContainerNotFoundError, at once.
        """
        raise UnsupportedError(self.name, Feature.RESTORE)

    def delete(self, id: str) -> None:
        """Feature.RESTORE: remove a detached container that has ended, its record and its log; its id is free.

        Raises ContainerNotFoundError; ContainerError when it still runs.
        """
        raise UnsupportedError(self.name, Feature.RESTORE)

    def gc(self) -> Sequence[str]:
        """Remove what processes that died have left behind on this host; a line for each thing that is gone.

        That is everything of attached containers whose launcher died, and of
        detached ones whose monitor died, or whose start was never finished.
        What somebody alive owns is not touched, nor is a detached container
        whose end is on record.
        """
        return ()
