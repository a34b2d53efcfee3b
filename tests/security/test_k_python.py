"""K: what is only because the launcher is Python."""

from __future__ import annotations

import ast
import ctypes
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import pycontainer
from pycontainer.command import Command
from pycontainer.errors import InvalidCommandError, SetupError
from pycontainer_native import abi, child, client
from pycontainer_native.driver import NativeDriver

from ..integration import host
from .catalogue import row
from .mutants import LauncherMutant, Patch, PlanMutant, instead
from .stages import in_child

CLEARED = "    sys.path.clear()\n    sys.meta_path.clear()\n    sys.path_hooks.clear()\n"
DENIED = "    denied = 0\n"


@row(
    "K1",
    "C11",
    mutants=[
        LauncherMutant(
            "it imports when something fails",
            "launcher",
            CLEARED,
            "",
            ("child", DENIED, DENIED + "    import traceback\n"),
        )
    ],
)
def test_k1_no_code_of_the_rootfs_is_loaded(start, hostile):
    names = (
        "errno",
        "encodings/__init__",
        "traceback",
        "linecache",
        "sitecustomize",
        "_ctypes",
        "json/__init__",
        "pwd",
    )
    libraries = ("libnss_files.so.2", "libnss_dns.so.2", "libgcc_s.so.1", "libc.so.6", "ld-linux-x86-64.so.2")
    for place in ("", "lib/", "lib64/", *(f"{path.lstrip('/')}/" for path in sys.path if path.startswith("/"))):
        for name in names:
            hostile.file(f"{place}{name}.py", "raise SystemExit(99)\n")
        for name in libraries:
            hostile.file(f"{place}{name}", "\x7fELF")
    planted = [path for path in hostile.path.rglob("*") if path.suffix == ".py" or ".so" in path.name]
    for path in planted:
        os.utime(path, (0, 0))  # relatime: the first access after a change is always written down
        os.utime(path.parent, (0, 0))
    try:
        assert start(["true"], rootfs=hostile).wait(30) == 0
        for keywords in ({"cwd": "/missing"}, {"tty": True, "cwd": "/missing"}, {"user": "1000"}, {"init": True}):
            with pytest.raises(SetupError):
                start(["/missing"], rootfs=hostile, **keywords)
    finally:
        assert [path for path in planted if path.stat().st_atime] == []
        assert list(hostile.path.rglob("__pycache__")) == []


def _forking(path, argv, env, *, file_actions, setsid, **rest):
    """As subprocess starts a process with a preexec_fn: all of this one's Python runs on in it."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        for action in file_actions:
            os.dup2(action[1], action[2])
        os.execve(path, argv, env)
    return pid


@row("K4", mutants=[Patch("the caller is forked", "os.posix_spawn", _forking)])
def test_k4_nothing_of_the_callers_python_runs_in_a_container(native, busybox_rootfs, tmp_path):
    marker = tmp_path / "marker"

    def body():
        os.register_at_fork(after_in_child=lambda: marker.write_text("forked"))
        signal.signal(signal.SIGUSR1, lambda *_: marker.write_text("signal"))
        errors = []

        def some(driver):
            try:
                for _ in range(10):
                    assert pycontainer.run(["true"], rootfs=busybox_rootfs, driver=driver, timeout=60).returncode == 0
            except BaseException as error:
                errors.append(error)

        driver = NativeDriver()
        try:
            threads = [threading.Thread(target=some, args=(driver,)) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
            assert errors == []
            assert not marker.exists()
        finally:
            driver.close()

    in_child(body)


_THREAD = "    import _thread, time\n    _thread.start_new_thread(time.sleep, (1000,))\n"


@row("K5", mutants=[LauncherMutant("the launcher has a thread", "launcher", CLEARED, _THREAD + CLEARED)])
def test_k5_the_launcher_is_single_threaded(driver, held, start):
    start(["true"]).wait(30)
    launcher = driver._launchers.current.pid
    box = held("set groups and ids", user="alice")
    for pid in (launcher, box.pid, *host.children(launcher)):
        assert len(os.listdir(f"/proc/{pid}/task")) == 1
    box.start()
    assert {*host.ids(box.pid, "Uid"), *host.ids(box.pid, "Gid")} == {1000}


def _as_int(argument, cells):
    return ctypes.c_int(argument) if isinstance(argument, int) else _ready(argument, cells)


_ready = child._ready
_untyped = ctypes.PyDLL(None).syscall  # as ctypes makes it: int, and no errno


@row(
    "K6",
    mutants=[
        Patch("numbers have 32 bits", "pycontainer_native.child._ready", _as_int),
        Patch("the result has, and errno is lost", "pycontainer_native.child.syscall", _untyped),
    ],
)
def test_k6_all_64_bits_of_arguments_and_results(tmp_path):
    lseek, prctl = {"x86_64": (8, 157)}.get(os.uname().machine, (62, 167))
    large = 2**40 + 5
    with open(tmp_path / "file", "wb") as file:
        number, descriptor, offset, whence = (child._ready(value, {}) for value in (lseek, file.fileno(), large, 0))
        assert child.syscall(number, descriptor, offset, whence) == large
    ctypes.set_errno(0)
    assert child.syscall(child._ready(prctl, {}), child._ready(-1, {})) == -1
    assert ctypes.get_errno() == 22  # EINVAL
    words = child.words([large, -1, b"text"], {})
    assert (words[0], words[1]) == (large, -1)
    assert ctypes.string_at(words[2]) == b"text"


class Number(int):
    pass


class Text(str):
    __slots__ = ()


@row("K9", mutants=[Patch("anything is taken", "pycontainer._fields.refuse", lambda *_: None)])
def test_k9_types_are_exact(busybox_rootfs):
    for keywords in (
        *({"user": True}, {"user": Number(0)}, {"user": "1000\n"}, {"user": "0x0"}, {"user": "1\u0661"}),
        *({"groups": [True]}, {"name": "a\n"}, {"name": "a\0"}, {"hostname": "a\n"}, {"cwd": "/a\0b"}),
        *(
            {"cwd": "/\ud800"},
            {"env": {"A": "\ud800"}},
            {"env": {"A=B": "1"}},
            {"env": {"A": 1}},
            {"env": {"A\0": "1"}},
        ),
        *({"pids_limit": True}, {"pids_limit": Number(5)}, {"cpu_shares": 2.0}, {"tty": 1}, {"read_only": "no"}),
        *(
            {"cap_add": ["CAP_CHOWN\n"]},
            {"rlimits": {"nofile": True}},
            {"masked_paths": ["/a\0"]},
            {"cgroup_parent": "/a\n"},
        ),
    ):
        try:
            with pytest.raises(InvalidCommandError):
                Command.of(["true"], rootfs=busybox_rootfs, **keywords)
        except (TypeError, ValueError, AttributeError) as error:
            pytest.fail(f"{keywords}: {error!r}")


def source(*modules):
    """Name and syntax tree of modules of the native driver: of the mutant's copy, if there is one."""
    for name in modules:
        path = Path(client.__file__).parent / f"{name}.py"
        yield path, ast.parse(path.read_text())


def dotted(node):
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


#: What works by paths and follows links; descriptors do not.
BY_PATH = {
    *(
        "realpath",
        "abspath",
        "exists",
        "isdir",
        "isfile",
        "islink",
        "samefile",
        "getsize",
        "walk",
        "makedirs",
        "rmtree",
    ),
    *(
        "removedirs",
        "renames",
        "chown",
        "chmod",
        "copy",
        "copytree",
        "move",
        "symlink",
        "rename",
        "replace",
        "truncate",
    ),
}


@row(
    "K10",
    mutants=[
        LauncherMutant("a path is made real", "child", DENIED, DENIED + "    os.path.realpath(paths[0])\n", reads=True)
    ],
)
def test_k10_the_launcher_works_by_descriptors():
    for path, tree in source("cgroup_root", "child", "container", "launcher", "mounts"):
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = dotted(call.func)
            if name.startswith(("os.", "shutil.")):
                assert name.rpartition(".")[2] not in BY_PATH, f"{path}:{call.lineno}: {name}"
            if name == "open":
                what = call.args[0].values[0] if isinstance(call.args[0], ast.JoinedStr) else call.args[0]
                assert isinstance(what, ast.Constant), f"{path}:{call.lineno}"
                assert str(what.value).startswith("/proc/self/"), f"{path}:{call.lineno}"


@row("K11", mutants=[LauncherMutant("a text is evaluated", "child", DENIED, DENIED + "    eval('1')\n", reads=True)])
def test_k11_no_pickle_no_eval_no_predictable_names():
    package = Path(client.__file__).parent
    packages = [package, *(Path(pycontainer.__file__).parent, package.parent / "pycontainer_lxc")]
    for path in (path for directory in packages for path in directory.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & {"pickle", "shelve", "yaml", "dill", "imp"}, f"{path}:{node.lineno}"
            if isinstance(node, ast.Call):
                name = dotted(node.func)
                assert name not in ("eval", "exec", "os.system", "os.popen", "tempfile.mktemp"), f"{path}:{node.lineno}"


_KILL = "            self.launcher.forget(self.status.fileno())\n            self.abandon()\n"


@row(
    "K12",
    mutants=[LauncherMutant("who is hung up on lives on", "container", _KILL, _KILL.replace("self.abandon()", "pass"))],
)
def test_k12_an_exception_at_any_moment_leaves_nothing(driver, start, busybox_rootfs, monkeypatch, until, patience):
    from pycontainer_native import driver as module

    start(["true"], name="again").wait(30)
    launcher = driver._launchers.current.pid

    class Interrupt(BaseException):
        pass

    def interrupting(function, before):
        def interrupted(*arguments, **keywords):
            if before:
                raise Interrupt
            function(*arguments, **keywords)
            raise Interrupt

        return interrupted

    for target, name in (
        *(
            (module.NativeProcess, "_take"),
            (module.NativeProcess, "wait_for_start"),
            (module.NativeDriver, "_register"),
        ),
        *((module.LauncherClient, "request"), (module.NativeDriver, "validate"), (module.plan, "compile")),
    ):
        for before in (True, False):
            with monkeypatch.context() as patched:
                patched.setattr(target, name, interrupting(getattr(target, name), before))
                with pytest.raises(Interrupt):
                    start(["sleep", "100"], name="again")
            until(lambda: len(host.children(launcher)) <= 1, seconds=patience)  # its spare
    assert start(["true"], name="again").wait(30) == 0


def _not_randomized(step):
    """The payload's umask is what it was anyway: 0022. Instead, personality(ADDR_NO_RANDOMIZE)."""
    return instead("umask", "umask", "personality", 0x0040000)(step) if step.arguments == (0o022,) else None


@row(
    "K13",
    mutants=[
        LauncherMutant("a pidfd stays open", "container", "for fd in (self.pidfd, self.t", "for fd in (self.t"),
        PlanMutant("each has the layout of the one before", _not_randomized),
    ],
)
def test_k13_a_later_container_has_nothing_of_an_earlier_one(driver, start, sh, until, patience, monkeypatch):
    monkeypatch.setitem(abi.NR, "personality", {"x86_64": 135}.get(os.uname().machine, 92))  # for the mutant

    def held():
        return len(host.descriptors(launcher)) - 2 * len(host.children(launcher))  # a spare's pidfd and channel

    assert sh("true").returncode == 0
    launcher = driver._launchers.current.pid
    before = held()
    secret = f"secret-{random.getrandbits(64)}"
    for _ in range(5):
        assert secret in sh("env; cat", env={"A": secret}, input=secret).stdout
    until(lambda: held() <= before, seconds=patience)
    code = "head -c 16 /proc/self/auxv >/dev/null; tr '\\0' '\\n' </proc/1/environ; cat /proc/1/cmdline"
    assert secret not in sh(code, env={}).stdout
    # Where things are in memory is told by nobody who was there before.
    places = [sh("grep -E 'stack|heap|vdso' /proc/self/maps").stdout for _ in range(3)]
    assert all(places)
    assert len({*places}) == 3


#: The refusals that a container's safety rests on, under python -O.
OPTIMIZED = """
import pycontainer, sys
from pycontainer.command import Command
from pycontainer.errors import ContainerError
assert False, "not run with -O"
for keywords in ({"name": "../x"}, {"user": "-1"}, {"mounts": []}, {"sysctls": {"kernel.core_pattern": "x"}},
                 {"hostname": "a\\n"}, {"cap_add": ["BOGUS"]}, {"seccomp": "none"}):
    try:
        if "mounts" in keywords:
            keywords = {"mounts": [pycontainer.Mount("/tmp", "/proc")]}
        Command.of(["true"], rootfs=sys.argv[1], **keywords)
    except (ContainerError, ValueError):
        continue
    sys.exit(f"taken: {keywords}")
done = pycontainer.run(["sh", "-c", "wc -c </proc/keys; ls /proc/self/fd | wc -l"], rootfs=sys.argv[1],
                       capture_output=True, text=True)
print(done.stdout.split(), done.returncode)
"""


def _is_for_types(test):
    """Whether an assert tells a type checker something, and nothing else."""
    if isinstance(test, ast.BoolOp):
        return all(map(_is_for_types, test.values))
    if isinstance(test, ast.Call):
        return dotted(test.func) == "isinstance"
    return isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.IsNot) and dotted(test.left) != "?"


@row(
    "K14",
    mutants=[LauncherMutant("an assert checks", "child", DENIED, DENIED + "    assert len(paths) < 10\n", reads=True)],
)
def test_k14_no_check_is_an_assert(busybox_rootfs, native):
    package = Path(client.__file__).parent
    for directory in (package, Path(pycontainer.__file__).parent):
        for path in directory.rglob("*.py"):
            if "testing" in path.parts:
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                assert not isinstance(node, ast.Assert) or _is_for_types(node.test), f"{path}:{node.lineno}"
    done = subprocess.run(
        [sys.executable, "-O", "-c", OPTIMIZED, busybox_rootfs], capture_output=True, text=True, cwd="/"
    )
    assert done.stdout == "['0', '4'] 0\n", done.stderr
