"""C: what the launcher holds, and what of it the payload could reach."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import signal
import struct
import subprocess
from pathlib import Path

import attrs
import pytest

import pycontainer
from pycontainer import PIPE, Mount
from pycontainer.errors import ContainerError, ContainerLostError, InvalidCommandError, SetupError
from pycontainer_native import abi, plan
from pycontainer_native.driver import NativeDriver

from ..integration import host
from .catalogue import row
from .mutants import LauncherMutant, Patch, PlanMutant, Several, ambient, given, instead, left_out
from .stages import Faults, in_child, libc, observed_at

NONE = "0" * 16
DUMPABLE = "    libc.prctl(abi.PR_SET_DUMPABLE, 0, 0, 0, 0)\n"
dumpable = LauncherMutant("the launcher is dumpable", "launcher", DUMPABLE, "")

_posix_spawn = os.posix_spawn


def _with_environment(path, argv, env, **rest):
    return _posix_spawn(path, argv, dict(os.environ), **rest)


environment = Patch("the launcher has its caller's environment", "os.posix_spawn", _with_environment, own_launcher=True)


def run_in(driver, busybox_rootfs, script, **keywords):
    return pycontainer.run(["sh", "-c", script], driver=driver, capture_output=True, text=True, timeout=60,
                           **{"rootfs": busybox_rootfs, **keywords})  # fmt: skip


@row(
    "C1",
    mutants=[
        Several(
            "not all are closed",
            LauncherMutant(
                "", "launcher", "os.closerange(CALLER_FD + 1, ", "os.closerange(CALLER_FD + 1, CALLER_FD + 2 or "
            ),
            PlanMutant("", lambda step: given("", "close_range", None, 199)(step)),
        )
    ],
)
def test_c1_cve_2024_21626_no_descriptor_comes_along(case, busybox_rootfs, own_driver, hostile):
    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    leaked = range(200, 240)
    for fd in leaked:
        os.dup2(root, fd, inheritable=True)
    try:
        done = run_in(own_driver, busybox_rootfs, "ls /proc/$$/fd; :")
        assert done.stdout.split() == ["0", "1", "2"]
        for number in (*range(3, 20), *leaked):
            hostile.link("job", f"/proc/self/fd/{number}")
            for keywords in ({"cwd": f"/proc/self/fd/{number}"}, {"cwd": "/job", "rootfs": hostile}):
                with pytest.raises(ContainerError):
                    run_in(own_driver, busybox_rootfs, "true", **keywords)
            (hostile.path / "job").unlink()
    finally:
        for fd in (root, *leaked):
            os.close(fd)


LOOK = """
readlink /proc/{pid}/exe /proc/{pid}/cwd /proc/{pid}/root
for link in /proc/{pid}/fd/* /proc/{pid}/map_files/*; do readlink $link; done; cat /proc/{pid}/environ
head -c 1 /proc/{pid}/mem
[ -e /proc/{pid}/status ] && echo there
"""


@pytest.fixture
def held_inside(driver, held_exec, until):
    """Starts a further process in a container, which waits as the first thing inside; its pid."""

    def held_inside(box):
        def joined(name):
            """The launcher's other children that are in this namespace of the container's."""
            own, found = os.stat(f"/proc/{box.pid}/ns/{name}").st_ino, set()
            for pid in host.children(driver._launchers.current.pid):
                with contextlib.suppress(OSError):
                    if pid != box.pid and os.stat(f"/proc/{pid}/ns/{name}").st_ino == own:
                        found.add(pid)
            return found

        waiting = joined("mnt")  # from before, outside its pid namespace
        held_exec(box, "setsid")
        # Who has made it says so, and ends, maybe only after it was told of: until then nobody else knows it.
        until(lambda: joined("pid") and joined("mnt") - joined("pid") <= waiting)
        return joined("pid").pop()

    return held_inside


@row("C2", mutants=[dumpable])
def test_c2_cve_2016_9962_who_comes_in_cannot_be_looked_at(start, held_exec, held_inside):
    box = start(["sleep", "100"])
    outside = held_exec(box, "set groups and ids")
    shown = box.exec(["sh", "-c", "echo /proc/[0-9]*"], capture_output=True, text=True).stdout
    assert len(shown.split()) == 2, shown  # the first process and the shell
    assert len(host.status(outside.pid)["NSpid"].split()) == 1
    pid = host.status(held_inside(box))["NSpid"].split()[-1]
    done = box.exec(["sh", "-c", LOOK.format(pid=pid)], capture_output=True, text=True)
    assert done.stdout == "there\n"


@pytest.mark.root
@row(
    "C2",
    "K13",
    mutants=[Patch("it is joined all the same", "pycontainer_native.checks.may_trace", lambda command: False)],
)
def test_c2_cve_2016_9962_who_could_look_at_everybody_is_joined_by_nobody(start):
    # That capability goes beyond PR_SET_DUMPABLE, and the launcher's memory has what others have asked for.
    box = start(["sleep", "100"], cap_add=["SYS_PTRACE"])
    with pytest.raises(pycontainer.UnsupportedError, match="CAP_SYS_PTRACE"):
        box.exec(["true"])
    with pytest.raises(pycontainer.InvalidCommandError, match="CAP_SYS_PTRACE"):
        start(["true"], cap_add=["SYS_PTRACE"], init=True)
    with pytest.raises(pycontainer.InvalidCommandError, match="CAP_SYS_PTRACE"):
        start(["true"], pid=f"ns:/proc/{box.pid}/ns/pid")


@row(
    "C3",
    mutants=[LauncherMutant("the image can be executed again", "launcher", "    protect_image()\n    os", "    os")],
)
@pytest.mark.parametrize("way", ["script", "link", "path"])
@pytest.mark.parametrize("target", ["/proc/self/exe", "/proc/1/exe", "/proc/thread-self/exe"])
def test_c3_cve_2019_5736_the_launchers_image_is_out_of_reach(start, hostile, tmp_path, target, way):
    # In a view of the host's programs it would find its libraries, and run.
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (scripts / "script").write_text(f"#!{target}\n")
    (scripts / "script").chmod(0o755)
    (scripts / "link").symlink_to(target)
    program = target if way == "path" else f"/s/{way}"
    for keywords in ({"rootfs": None}, {"rootfs": None, "init": True}, {"rootfs": hostile}):
        with pytest.raises(SetupError, match="execve"):
            start([program], mounts=[Mount(str(scripts), "/s")], **keywords)


_IMAGE = struct.pack("=QQQ", os.O_RDONLY, 0, 0)


@row(
    "C3",
    mutants=[
        Several(
            "the image can be executed again, and is open",
            LauncherMutant("", "launcher", "    protect_image()\n    os", "    os"),
            PlanMutant(
                "",
                instead(
                    *("close the set-up's descriptors", "close_range", "openat2"),
                    *(abi.AT_FDCWD, b"/proc/self/exe", _IMAGE, len(_IMAGE)),
                ),
            ),
        )
    ],
)
def test_c3_cve_2019_5736_no_descriptor_is_there_to_be_executed(start):
    # What execve(2) still finds it would close: a socket, a pipe and a directory, which nobody can execute.
    for number in range(3, 160):
        with pytest.raises(SetupError, match="execve"):
            start([f"/proc/self/fd/{number}"], rootfs=None)


@row("C4", "K2", mutants=[dumpable])
def test_c4_cve_2022_0847_no_way_from_inside_to_the_interpreter(sh):
    done = sh(LOOK.format(pid=1), init=True)
    assert done.stdout == "there\n"


STAGES = (
    *("take stdio", "clone rootfs", "pivot_root", "close the set-up's descriptors", "set groups and ids"),
    *("enter /", "set capabilities", "set no_new_privs", "close descriptors on execve"),
)


@row("C6", mutants=[dumpable])
def test_c6_cve_2016_8659_at_no_stage_is_it_dumpable(start, monkeypatch):
    for stage in STAGES:
        with monkeypatch.context() as patched:
            observed_at(stage, patched)
            box = start(["sleep", "100"], start=False)
            box.create()
        assert host.status(box.pid)["Umask"] == "0000", stage
        box.close()


_compile_exec = plan.compile_exec


def _born_early(*arguments):
    return attrs.evolve(_compile_exec(*arguments), outside=1)


@row("C7", mutants=[Patch("it is born with its rights", "pycontainer_native.plan.compile_exec", _born_early)])
def test_c7_the_pid_namespace_is_the_last(start, held_exec, held_inside):
    box = start(["sleep", "100"])
    ours = os.stat("/proc/self/ns/pid").st_ino
    process = held_exec(box, "set groups and ids")
    assert os.stat(f"/proc/{process.pid}/ns/pid").st_ino == ours
    assert os.stat(f"/proc/{process.pid}/ns/mnt").st_ino == os.stat(f"/proc/{box.pid}/ns/mnt").st_ino
    status, init = host.status(held_inside(box)), host.status(box.pid)
    assert len(status["NSpid"].split()) == 2
    for name in ("CapEff", "CapPrm", "CapBnd", "NoNewPrivs"):
        assert status[name] == init[name]


def _exec_without(number, value):
    def compile_exec(*arguments):
        changed = list(arguments)
        changed[number] = value
        return _compile_exec(*changed)

    return compile_exec


def _exec_without_limits(process, *rest):
    return _compile_exec({**process, "rlimits": []}, *rest)


def facts(pid):
    status = host.status(pid)
    kept = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters", "Groups")
    return {
        **{name: status[name] for name in kept},
        **{name: os.readlink(f"/proc/{pid}/ns/{name}") for name in ("mnt", "pid", "net", "ipc", "uts", "cgroup")},
        "cgroup file": Path(f"/proc/{pid}/cgroup").read_text(),
        "limits": Path(f"/proc/{pid}/limits").read_text(),
        "root": os.readlink(f"/proc/{pid}/root"),
    }


@row(
    "C8",
    "F11",
    mutants=[
        Patch("without the filter", "pycontainer_native.plan.compile_exec", _exec_without(3, None)),
        Patch("without the cgroups", "pycontainer_native.plan.compile_exec", _exec_without(1, 0)),
        Patch("in fewer namespaces", "pycontainer_native.plan.compile_exec", _exec_without(2, ("mount", "pid"))),
        Patch("without its limits", "pycontainer_native.plan.compile_exec", _exec_without_limits),
    ],
)
def test_c8_cve_2019_10144_exec_is_confined_as_the_first_process_is(driver, start, until):
    box = start(["sleep", "100"], memory="64m", pids_limit=50, rlimits={"cpu": 1000, "nofile": 100})
    null = os.open(os.devnull, os.O_RDWR)
    try:
        process = driver.exec(
            box.id, attrs.evolve(driver._running(box.id).command.process), pycontainer.Stdio(*[null] * 3)
        )
    finally:
        os.close(null)
    try:
        assert facts(process.pid) == facts(box.pid)
    finally:
        process.close()


@row("C9", mutants=[ambient])
def test_c9_cve_2025_27612_who_is_not_root_has_no_capabilities(start, sh):
    for user in ("1000", "alice", "65534:0"):
        box = start(["sleep", "100"], user=user)
        root = start(["sleep", "100"])
        inside = [
            root.exec(["grep", "^Cap", "/proc/self/status"], user=user, capture_output=True, text=True).stdout,
            "".join(f"{name}:\t{host.status(box.pid)[name]}\n" for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")),
        ]
        for text in inside:
            found = dict(line.split(":\t") for line in text.splitlines())
            assert {found[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {NONE}
        box.close()
        root.close()


def _asking_ps(self, id):
    """As others find the processes of a container: by a program that it brought along."""
    rootfs = self._processes[id].command.rootfs
    subprocess.run([f"{rootfs}/bin/ps"], check=True)
    return [self._processes[id].pid]


@row(
    "C10",
    mutants=[Patch("its own ps is asked", "pycontainer_native.driver.NativeDriver.get_pids_for_container", _asking_ps)],
)
def test_c10_cve_2022_1227_no_program_of_the_container_is_run(start, hostile):
    for name in ("ps", "top", "nsenter", "sh", "id", "cat", "python3", "unshare", "newuidmap"):
        hostile.file(f"bin/{name}", f"#!/bin/sh\necho >{hostile.canary}/ran\n", 0o755)
    box = start(["sleep", "100"], rootfs=hostile)
    assert box.pids() == [box.pid]
    assert [process.pid for process in box.processes()] == [box.pid]
    pids = box.stats().pids
    assert pids is None or pids.current == 1
    box.pause()
    box.unpause()


_shared = {}


def _from_one_map(process, user):
    _shared.update(process.env or {"PATH": "/bin"})
    return _shared


@row("C13", mutants=[Patch("one map for all", "pycontainer.spec._environment", _from_one_map)])
def test_c13_cve_2020_14370_an_environment_is_one_containers(sh):
    given = {"PATH": "/bin", "FOO": "1"}
    assert "FOO=1" in sh("env", env=given).stdout
    assert "FOO" not in sh("env", env={"PATH": "/bin"}).stdout
    assert "FOO" not in sh("env").stdout
    assert given == {"PATH": "/bin", "FOO": "1"}


@row("C14", mutants=[environment])
def test_c14_cve_2021_3602_no_environment_on_the_way(driver, held, start, sh, until):
    def names(pid):
        return {item.partition(b"=")[0] for item in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") if item}

    loader = {b"LD_LIBRARY_PATH"} if "LD_LIBRARY_PATH" in os.environ else set()
    start(["true"]).wait(30)
    launcher = driver._launchers.current.pid
    until(lambda: host.children(launcher))
    for pid in (launcher, *host.children(launcher)):
        assert names(pid) == loader
    assert names(held("set groups and ids").pid) == loader
    done = sh("cat /proc/*/environ | tr '\\0' '\\n'; :", env={"PATH": "/bin"}, init=True)
    assert {*done.stdout.split("\n")} <= {"PATH=/bin", "SHLVL=1", "PWD=/", ""}


_hook_of = plan._hooks_of


def _with_the_containers(spec):
    state, programs = _hook_of(spec)
    env = [item.encode() for item in spec["process"]["env"]]
    return state, {
        point: [(path, argv, [*own, *env], rest) for path, argv, own, rest in hooks]
        for point, hooks in programs.items()
    }


@row(
    "C15",
    mutants=[
        Patch("hooks have the container's environment", "pycontainer_native.plan._hooks_of", _with_the_containers)
    ],
)
def test_c15_cve_2025_23266_hooks_have_an_environment_of_their_own(start, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "tell-nobody")
    env = {"PATH": "/bin", "LD_PRELOAD": "/marker.so", "PYTHONPATH": "/marker", "BASH_ENV": "/marker", "OWN": "payload"}
    script = f"tr '\\0' '\\n' </proc/self/environ >>{tmp_path}/environment"
    hook = pycontainer.Hook("/bin/sh", ["sh", "-c", script], env={"GIVEN": "1"})
    hooks = pycontainer.Hooks(create_runtime=[hook], poststop=[hook])
    assert start(["true"], hooks=hooks, env=env).wait(30) == 0
    names = {line.split("=")[0] for line in (tmp_path / "environment").read_text().splitlines()}
    assert names <= {"GIVEN", "PWD", "SHLVL", "_"}
    assert "GIVEN" in names


def _not_isolated(path, argv, env, **rest):
    return _posix_spawn(path, [argv[0], *argv[3:]], dict(os.environ), **rest)  # without -I and -S


@row("C16", "K3", mutants=[Patch("without -I and -S", "os.posix_spawn", _not_isolated)])
def test_c16_nothing_of_the_callers_environment_is_believed(monkeypatch, tmp_path, own_driver, busybox_rootfs):
    marker = tmp_path / "ran"
    for name in ("sitecustomize", "usercustomize", "marshal", "resource", "pycontainer_native/__init__"):
        path = tmp_path / "planted" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"open({str(marker)!r}, 'a').write({name!r})\n")
    monkeypatch.chdir(path.parent.parent)
    for name in ("PYTHONPATH", "PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONBREAKPOINT"):
        monkeypatch.setenv(name, str(tmp_path / "planted"))
    monkeypatch.setenv("_LIBCONTAINER_INITPIPE", "3")
    try:
        assert run_in(own_driver, busybox_rootfs, "exit 3").returncode == 3
    except ContainerError as error:
        pytest.fail(str(error))
    finally:
        assert not marker.exists()


def _inheriting(path, argv, env, **rest):
    return _posix_spawn(path, argv, env, file_actions=rest["file_actions"], setsid=True)


_DEFAULTS = "    for number in range(1, 65):  # by"


@row(
    "C17",
    "K8",
    mutants=[
        Several(
            "what was ignored and blocked stays so",
            Patch("", "os.posix_spawn", _inheriting),
            LauncherMutant("", "launcher", "range(1, 65):  # by", "range(0):  # by"),
        )
    ],
)
def test_c17_signals_are_as_in_a_new_process(native, busybox_rootfs):
    def body():
        for number in signal.valid_signals() - {9, 19, 32, 33}:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        driver = NativeDriver()
        try:
            for init in (False, True):
                with pycontainer.Container(["sleep", "100"], rootfs=busybox_rootfs, driver=driver, init=init) as box:
                    [pid] = {*box.pids()} - ({box.pid} if init else set())
                    status = host.status(pid)
                    assert (status["SigBlk"], status["SigIgn"]) == (NONE, NONE)
        except ContainerLostError as error:
            pytest.fail(str(error))  # a launcher that ignores SIGCHLD
        finally:
            driver.close()

    in_child(body)


@row("C18", mutants=[LauncherMutant("the launcher stays as its caller was", "launcher", "    take_defaults()\n", "")])
def test_c18_how_the_caller_is_treated_is_not_inherited(native, busybox_rootfs):
    def body():
        libc.personality(0x0040000 | 0x0400000)  # ADDR_NO_RANDOMIZE, READ_IMPLIES_EXEC: exploits get easy
        every = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(every)})
        if os.geteuid() == 0:  # others may not take it back
            os.nice(5)
        driver = NativeDriver()
        try:
            with pycontainer.Container(["sleep", "100"], rootfs=busybox_rootfs, driver=driver) as box:
                assert Path(f"/proc/{box.pid}/personality").read_text() == "00000000\n"
                assert os.sched_getaffinity(box.pid) == every
                assert os.getpriority(os.PRIO_PROCESS, box.pid) == 0
                assert Path(f"/proc/{box.pid}/oom_score_adj").read_text() == "0\n"
        finally:
            driver.close()

    in_child(body)


@row(
    "C19",
    mutants=[
        PlanMutant(
            "it stays as it was", lambda step: given("umask", "umask", 0o077)(step) if step.arguments == (0,) else None
        ),
        PlanMutant("the payload has the set-up's", lambda step: given("umask", "umask", 0)(step)),
    ],
)
def test_c19_the_callers_umask_changes_nothing(native, busybox_rootfs):
    def body():
        for mask in (0o000, 0o077):
            os.umask(mask)
            driver = NativeDriver()
            try:
                done = run_in(driver, busybox_rootfs, "umask; stat -c %a /dev/null /dev/shm /dev/pts /dev/mqueue")
                assert done.stdout.split() == ["0022", "666", "1777", "755", "1777"]
            finally:
                driver.close()

    in_child(body)


@row("C20", mutants=[dumpable])
def test_c20_no_core_is_dumped(case, native, hostile, monkeypatch, until):
    assert Path("/proc/sys/kernel/core_pattern").read_text() == "core\n"

    def body():
        with contextlib.suppress(ValueError):  # sudo lowers it, and not every root may raise it again
            resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
        resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
        driver = NativeDriver()
        try:
            with monkeypatch.context() as patched:
                observed_at("set groups and ids", patched)
                box = pycontainer.Container(["true"], rootfs=hostile, driver=driver, pid="host", start=False)
                box.create()
            dumpable = host.status(box.pid)["Umask"]
            os.kill(box.pid, signal.SIGABRT)
            until(lambda: not host.is_alive(box.pid))
            box.close()
        finally:
            driver.close()
        assert [*hostile.path.glob("core*")] == []
        assert dumpable == "0000"  # where the limit of this process allows no core, nothing else would show it

    in_child(body)


_told = []  #: a secret of the caller's, for the mutant to give away


def _with_a_secret(path, argv, env, **rest):
    return _posix_spawn(path, argv, {**env, "TOLD": _told[0]} if _told else env, **rest)


def knows(pid, secret):
    """Where in the writable memory of *pid* it is."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            start, end = (int(text, 16) for text in line.split(" ")[0].split("-"))
            if line.split(" ")[1].startswith("rw") and "[v" not in line:
                memory.seek(start)
                if secret.encode() in memory.read(end - start):
                    return line
    return None


@row(
    "C21",
    mutants=[
        environment,
        Patch("the launcher is told what its caller has in mind", "os.posix_spawn", _with_a_secret, own_launcher=True),
    ],
)
def test_c21_the_launcher_knows_no_secret_of_its_caller(monkeypatch, busybox_rootfs, native):
    secret = "-".join(("the", "callers", "own", os.urandom(8).hex()))
    other = "-".join(("in", "its", "memory", os.urandom(8).hex()))  # and nowhere else
    monkeypatch.setenv("SECRET", secret)
    _told[:] = [other]
    own = NativeDriver()  # whose launcher is born now
    try:
        assert knows("self", other)
        assert run_in(own, busybox_rootfs, "true", env={}).returncode == 0
        with pycontainer.Container(["sleep", "100"], rootfs=busybox_rootfs, driver=own, init=True) as box:
            launcher = own._launchers.current.pid
            assert box.pid in host.children(launcher)
            for pid in (launcher, *host.children(launcher)):  # the container's init, and a process for the next one
                for text in (secret, other):
                    assert knows(pid, text) is None
    finally:
        _told.clear()
        own.close()


@row("C22", mutants=[PlanMutant("nobody says when to die", left_out("die with the launcher", "prctl"))])
def test_c22_nothing_outlives_a_killed_launcher(own_driver, busybox_rootfs, monkeypatch, until, python, patience):
    # Asked, and not only tried: somebody else's clean-up of what a dead launcher has left would kill it as well.
    code = "import ctypes; n = ctypes.c_int(); ctypes.CDLL(None).prctl(2, ctypes.byref(n)); print(n.value)"
    assert python(code).stdout == "9\n"  # PR_GET_PDEATHSIG
    assert python(code, user="nobody").stdout == "9\n"
    for stage in ("take stdio", "pivot_root", "set groups and ids", "close descriptors on execve", None):
        with monkeypatch.context() as patched:
            if stage is not None:
                observed_at(stage, patched)
            box = pycontainer.Container(["sleep", "100"], rootfs=busybox_rootfs, driver=own_driver, start=False)
            box.create()
            if stage is None:
                box.start()
        os.kill(own_driver._launchers.current.pid, signal.SIGKILL)
        try:
            until(lambda pid=box.pid: not host.is_alive(pid), seconds=patience)
        finally:
            if host.is_alive(box.pid):
                os.kill(box.pid, signal.SIGKILL)
            box.close()
        assert run_in(own_driver, busybox_rootfs, "true").returncode == 0  # and its cgroups are swept


@row("C23", mutants=[Patch("anything is taken", "pycontainer._fields.refuse", lambda *_: None)])
def test_c23_cve_2021_4034_an_argv_is_checked(start):
    for argv in ([], ["true", "a\0b"], ["\0"], ["a\0"], [b"a\0b"], [""]):
        try:
            with pytest.raises(InvalidCommandError):
                start(argv)
        except (ValueError, IndexError, TypeError, SetupError) as error:
            pytest.fail(f"{argv}: {error!r}")


@row(
    "C25",
    mutants=[
        PlanMutant(
            "it is given away", instead("set groups and ids", "setgroups", "fchownat", 1, b"", 1000, 1000, 0x1000)
        )
    ],
)
def test_c25_the_hosts_stdio_keeps_its_owner(start, hostile):
    with open(hostile.canary / "file", "rb") as read, open(os.devnull, "wb") as write:
        before = os.stat("/dev/null")
        assert start(["true"], user="alice", stdin=read, stdout=read, stderr=write).wait(30) == 0
        after = os.stat("/dev/null")
        assert (before.st_mode, before.st_uid, before.st_gid) == (after.st_mode, after.st_uid, after.st_gid)
    box = start(["true"], user="alice", tty=True, stdout=PIPE)
    box.communicate(timeout=30)


@row(
    "C26",
    mutants=[LauncherMutant("a pidfd stays open", "container", "for fd in (self.pidfd, self.t", "for fd in (self.t")],
)
def test_c26_no_fault_leaks_a_descriptor(driver, start, monkeypatch, tmp_path, until, patience):
    keywords = {"mounts": [Mount(str(tmp_path), "/a/b")], "user": "alice", "read_only": True, "hostname": "other"}
    start(["true"], **keywords).wait(30)
    launcher = driver._launchers.current.pid

    def opened():
        gc.collect()
        return len(host.descriptors()), len(host.descriptors(launcher)) - 2 * len(host.children(launcher))

    until(lambda: host.children(launcher))
    before = opened()
    number, failed = 1, set()  # the first step makes the way by which failures are told
    while True:
        with monkeypatch.context() as patched:
            faults = Faults(number, patched)
            try:
                start(["true"], **keywords).wait(30)
            except SetupError as error:
                assert error.step == faults.label  # noqa: PT017
                failed.add(error.step)
        if number >= faults.count:
            break
        number += 1
        if number % 20 == 0:
            until(lambda: opened() <= before, seconds=patience)
    assert {"make mounts private", "pivot_root", "set capabilities", "load the seccomp filter"} <= failed
    start(["true"], **keywords).wait(30)
    until(lambda: opened() <= before, seconds=patience)


@row(
    "C27",
    "K7",
    mutants=[PlanMutant("the channel stays open", left_out("close descriptors on execve", "close_range"), lambda step: (
        given("", "dup3", None, None, 0)(step) if step.arguments[1:] == (abi.CHANNEL_FD, abi.O_CLOEXEC) else None))],
)  # fmt: skip
def test_c27_no_socket_of_the_launcher_reaches_the_payload(sh, start):
    for keywords in ({}, {"init": True}, {"tty": True, "capture_output": False, "stdout": PIPE}):
        done = sh("for fd in /proc/self/fd/*; do readlink $fd; done; :", **keywords)
        assert "socket:" not in done.stdout
    box = start(["sleep", "100"])
    done = box.exec(["sh", "-c", "for fd in /proc/self/fd/*; do readlink $fd; done"], capture_output=True, text=True)
    assert "socket:" not in done.stdout
