"""pycontainer_native.listener: what a filter may ask about, who is asked, and what he is told."""

from __future__ import annotations

import errno
import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from pycontainer import Hook, Hooks
from pycontainer.command import Command
from pycontainer.errors import SetupError, WaitTimeoutError
from pycontainer.seccomp_filter import NEW_LISTENER
from pycontainer_native import abi, identity, listener, plan
from pycontainer_native.host import Host
from pycontainer_native.syscalls import Recorder, Step

HOST = Host(capabilities=(1 << 41) - 1, last_capability=40, nofile=(1024, 4096))
FILTER = (NEW_LISTENER, bytes(8))


def asking(*names: str, allow: bool = True, **rule: Any) -> dict[str, Any]:
    return {
        "defaultAction": "SCMP_ACT_ALLOW" if allow else "SCMP_ACT_ERRNO",
        "listenerPath": "/s",
        "syscalls": [{"names": list(names), "action": "SCMP_ACT_NOTIFY", **rule}],
    }


def problems(profile: dict[str, Any], **keywords: Any) -> list[tuple[str, str]]:
    command = Command.of(["true"], rootfs="/", seccomp=profile, **keywords)
    return [(error.field, error.problem) for error in listener.check(command)]


# -- what it may ask about


@pytest.mark.parametrize("name", ["write", "read", "execve", "mmap"])
@pytest.mark.parametrize("condition", [{}, {"args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]}], ids=str)
def test_what_the_set_up_calls_cannot_be_asked_about(name: str, condition: dict[str, Any]) -> None:
    [(field, problem)] = problems(asking("mkdir", name, **condition))
    assert field == "seccomp.syscalls"
    assert problem.startswith(f"{name} cannot be asked about (SCMP_ACT_NOTIFY)")


@pytest.mark.parametrize("name", ["write", "read"])
@pytest.mark.parametrize(
    ("index", "value", "refused"), [(0, 3, False), (0, 1, True), (2, 4096, True), (1, 4096, False)]
)
def test_what_the_set_up_calls_has_to_be_allowed(name: str, index: int, value: int, refused: bool) -> None:
    """With the set-up's arguments; a denied call may be one that returns 0, and whoever waits for it waits for ever."""
    profile = asking("mkdir", allow=False)
    condition = {"index": index, "value": value, "op": "SCMP_CMP_GE" if index == 2 else "SCMP_CMP_EQ"}
    allowed = {"names": [name], "action": "SCMP_ACT_ALLOW", "args": [condition]}
    profile["syscalls"] += [{"names": list({"write", "read"} - {name}), "action": "SCMP_ACT_ALLOW"}, allowed]
    assert [problem.split()[0] for _, problem in problems(profile)] == [name] * refused


def test_what_else_can() -> None:
    more = ["mkdir", "mount", "connect", "sendmsg", "close", "exit_group", "kill", "setresuid", "prctl", "getpid"]
    assert problems(asking(*more)) == []


@pytest.mark.parametrize(
    ("keywords", "refused"),
    [({"init": True}, ["clone", "kill", "wait4"]), ({"no_new_privileges": False}, ["clone", "fcntl", "setresuid"])],
    ids=str,
)
def test_more_is_called_under_the_filter(keywords: dict[str, Any], refused: list[str]) -> None:
    found = problems(asking("mkdir", "clone", "kill", "wait4", "setresuid", "fcntl"), **keywords)
    assert sorted(problem.split()[0] for _, problem in found) == refused


def test_what_hands_the_listener_over_has_to_be_allowed() -> None:
    assert [problem.split()[0] for _, problem in problems(asking("mkdir", allow=False))] == ["write", "read"]
    allowed = asking("mkdir", allow=False)
    allowed["syscalls"].append({"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"})
    assert problems(allowed) == []


def test_hooks_that_have_a_filter_of_their_own() -> None:
    (found,) = problems(asking("mkdir"), hooks=Hooks(start_container=[Hook("/bin/true")]))
    assert found[0] == "hooks.start_container"
    assert problems(asking("mkdir"), hooks=Hooks(create_container=[Hook("/bin/true")])) == []


def after_the_filter(compiled: plan.Plan) -> list[Step]:
    steps = [step for section in compiled.sections for step in section.steps]
    loaded = [number for number, step in enumerate(steps) if step.call == "seccomp"]
    assert len(loaded) == 1
    return steps[loaded[0] + 1 :]


def spec(**keywords: Any) -> dict[str, Any]:
    from pycontainer.spec import to_oci

    return to_oci(Command.of(["true"], rootfs="/", **keywords), seccomp=False)


@pytest.mark.parametrize("init", [False, True])
@pytest.mark.parametrize("no_new_privileges", [True, False])
@pytest.mark.parametrize("hold", [False, True])
def test_the_steps_of_a_start_are_what_cannot_be_asked_about(init: bool, no_new_privileges: bool, hold: bool) -> None:
    compiled = plan.compile(
        spec(init=init, no_new_privileges=no_new_privileges, user="1000:1000"), (), HOST, hold=hold, filter=FILTER
    )
    known = listener.ALWAYS | (frozenset() if no_new_privileges else listener.OF_LAST_STEPS)
    steps = after_the_filter(compiled)
    assert {step.call for step in steps} <= known
    assert [step.call for step in steps[-2:]] == ["write", "read"]
    if no_new_privileges:
        assert len(steps) == 2
    assert compiled.talks
    # An init and its payload part when everything is done.
    assert bool(compiled.sections[-1].steps) is not init


@pytest.mark.parametrize("tty", [False, True])
@pytest.mark.parametrize("no_new_privileges", [True, False])
def test_the_steps_of_an_exec_are_too(tty: bool, no_new_privileges: bool) -> None:
    process = spec(tty=tty, no_new_privileges=no_new_privileges)["process"]
    steps = after_the_filter(plan.compile_exec(process, 0, ("mount", "pid"), FILTER, HOST))
    known = listener.ALWAYS | (frozenset() if no_new_privileges else listener.OF_LAST_STEPS)
    assert {step.call for step in steps} <= known
    assert [step.call for step in steps[-2:]] == ["write", "read"]


def test_a_filter_that_asks_nobody_is_loaded_as_ever() -> None:
    k = Recorder()
    identity.confine(k, (0, bytes(8)), False)
    (step,) = k.steps
    assert (step.call, step.out) == ("seccomp", None)
    k = Recorder()
    identity.confine(k, None, True)
    assert k.steps == []


def test_the_number_of_the_listener_is_told() -> None:
    for loaded in (False, True):
        k = Recorder()
        identity.confine(k, FILTER, loaded)
        if not loaded:
            assert k.steps[0].out == abi.LISTENER
        else:
            assert k.steps[0].arguments[0] == (abi.LISTENER,)
        message = k.steps[1].arguments[1]
        assert message == [ord("l"), (k.steps[0].out,)]


# -- what is told


def test_what_is_told() -> None:
    state = plan.state_of(spec(annotations={"a": "b"}))
    profile = {"listenerPath": "/s", "listenerMetadata": "é"}
    head, template, status = listener.of_profile(profile, state, "created").wire("x")
    assert json.loads(head + b"}") == {"ociVersion": state["ociVersion"], "fds": ["seccompFd"], "metadata": "é"}
    assert json.loads(template + b"}") == {"id": "x", **state}
    assert status == "created"
    head, _, _ = listener.of_profile({"listenerPath": "/s"}, state, "created").wire("x")
    assert "metadata" not in json.loads(head + b"}")


# -- who is asked


def test_who_listens_is_connected_to(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as supervisor:
        supervisor.bind(f"{tmp_path}/s")
        supervisor.listen()
        with listener.connect(f"{tmp_path}/s", "x") as ours, supervisor.accept()[0] as theirs:
            ours.send(b"said")
            assert theirs.recv(9) == b"said"


@pytest.mark.parametrize("how", [errno.ENOENT, errno.ECONNREFUSED, errno.EPROTOTYPE], ids=errno.errorcode.get)
def test_nobody_listens(tmp_path: Path, how: int) -> None:
    path = f"{tmp_path}/s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM if how == errno.EPROTOTYPE else socket.SOCK_STREAM) as other:
        if how != errno.ENOENT:
            other.bind(path)
        with pytest.raises(SetupError) as caught:
            listener.connect(path, "x")
    assert (caught.value.step, caught.value.errno, caught.value.path) == (
        "connect to seccomp.listenerPath", how, path,
    )  # fmt: skip


def test_who_does_not_accept_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"{tmp_path}/s"
    with socket.socket(socket.AF_UNIX) as supervisor:
        supervisor.bind(path)
        supervisor.listen(0)
        with listener.connect(path, "x"):  # the queue is full now
            monkeypatch.setattr(listener, "TIMEOUT", 0.05)
            with pytest.raises(SetupError) as caught:
                listener.connect(path, "x")
            assert caught.value.errno == errno.ETIMEDOUT
            monkeypatch.setattr(listener, "TIMEOUT", 60.0)
            began = time.monotonic()
            with pytest.raises(WaitTimeoutError):
                listener.connect(path, "x", began + 0.05)
            assert time.monotonic() - began < 30
