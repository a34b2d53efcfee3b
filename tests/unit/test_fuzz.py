"""Whatever a Command is made of: it is valid, or refused with the documented error; never something from inside.

The examples are the same in every run; PYCONTAINER_FUZZ_SEED=N, any number, looks for others.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, seed, settings
from hypothesis import strategies as st

from pycontainer import Command, InvalidCommandError, Mount, Network
from pycontainer.hooks import Hooks
from pycontainer.receipt import mount_points
from pycontainer.rootfs import HostView
from pycontainer.seccomp import check_profile, default_profile
from pycontainer.spec import to_oci
from pycontainer_native import plan
from pycontainer_native.host import Host

from ..strategies import ANYTHING, ARGV, JSON, TEXTS, keywords, mutated

_SEED = os.environ.get("PYCONTAINER_FUZZ_SEED")
_SETTINGS = settings(
    max_examples=200 if _SEED is None else 5000,
    deadline=None,
    derandomize=_SEED is None,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)


def fuzz(test: Any) -> Any:
    """The settings of every test here."""
    return _SETTINGS(test) if _SEED is None else seed(int(_SEED))(_SETTINGS(test))


HOST = Host(
    capabilities=(1 << 41) - 1,
    last_capability=40,
    nofile=(1024, 4096),
    is_directory=lambda path: path != "/etc/passwd",
    is_read_only=lambda path: False,
)
FULL = Command.of(
    ["sh", "-c", "true"],
    name="box",
    env={"A": "b"},
    user="1000:1000",
    groups=["5"],
    memory="64m",
    cpus=0.5,
    mounts=[Mount("/etc", "/a", read_only=True), Mount.tmpfs("/b", size="1m")],
    network=Network("bridge", address="10.0.0.2", prefix_length=24),
    rlimits={"nofile": (10, 20)},
    masked_paths=["/proc/keys"],
    seccomp={"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}]},
    annotations={"a": "b"},
)


def follow(command: Command) -> None:
    """Everything that a valid Command has to go through without root."""
    assert Command.from_json(command.to_json()) == command
    assert hash(command) == hash(Command.from_json(command.to_json()))
    field = refused_field(lambda: plan.compile(to_oci(command), (), HOST).wire(command.id))
    # A user that is not there, or more than a plan can hold.
    assert field is None or field.startswith(("process.user", "process.additional_groups", "mounts", "seccomp"))
    event("compiled" if field is None else f"refused later: {field}")


def refused_field(call: Callable[[], object]) -> str | None:
    """The field that *call* is refused for, with the documented error; None if it is not."""
    try:
        call()
    except InvalidCommandError as error:
        return error.field
    return None


def make(argv: Any, fields: dict[str, Any]) -> Command | None:
    """A Command, or None where it is refused."""
    made: list[Command] = []
    field = refused_field(lambda: made.append(Command.of(argv, **fields)))
    event("valid" if made else f"refused: {field}")
    assert made or field
    return made[0] if made else None


@fuzz
@given(ARGV, keywords(wrong=False))
def test_right_values_in_any_combination(argv: list[str], fields: dict[str, Any]) -> None:
    command = make(argv, fields)
    if command is not None:
        follow(command)


@fuzz
@given(ARGV | ANYTHING, keywords())
def test_wrong_values(argv: Any, fields: dict[str, Any]) -> None:
    command = make(argv, fields)
    if command is not None:
        follow(command)


@fuzz
@given(st.dictionaries(st.text("abc_", min_size=1, max_size=12), ANYTHING, min_size=1, max_size=2))
def test_keywords_that_do_not_exist(fields: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="there is no keyword"):
        Command.of(["true"], **fields)


@fuzz
@given(mutated(json.loads(FULL.to_json())))
def test_a_command_of_damaged_json(data: Any) -> None:
    try:
        command = Command.from_json(json.dumps(data))
    except InvalidCommandError:
        return
    follow(command)


@fuzz
@given(st.one_of(st.text(), st.binary(), JSON.map(json.dumps), st.integers(0, 5000).map(lambda n: "[" * n)))
def test_a_command_of_anything(text: str | bytes) -> None:
    with pytest.raises(InvalidCommandError):
        Command.from_json(text)


@fuzz
@given(mutated(json.loads(json.dumps(default_profile([])))))
def test_a_damaged_profile(profile: Any) -> None:
    try:
        check_profile(profile)
    except InvalidCommandError:
        return
    Command.of(["true"], seccomp=profile)


@fuzz
@given(mutated({"createRuntime": [{"path": "/bin/true", "args": ["x"], "env": ["A=b"], "timeout": 3}], "poststop": []}))
def test_damaged_hooks(data: Any) -> None:
    try:
        hooks = Hooks.from_oci(data)
    except InvalidCommandError:
        return
    assert Hooks.from_oci(hooks.to_oci()).to_oci() == hooks.to_oci()


@fuzz
@given(mutated(json.loads(HostView.detect().to_json())))
def test_a_damaged_view(data: Any) -> None:
    try:
        view = HostView.from_json(json.dumps(data))
    except InvalidCommandError:
        return
    assert HostView.from_json(view.to_json()) == view


_PART = st.one_of(TEXTS, st.text(":,=/ar", max_size=12))


@fuzz
@pytest.mark.parametrize("parse", [Mount.parse, Mount.parse_long, Network.parse], ids=["mount", "long", "network"])
@given(
    st.one_of(
        _PART,
        st.lists(_PART, max_size=4).map(":".join),
        st.lists(
            st.tuples(st.sampled_from(("type", "source", "target", "ip", "mac", "name", "size")), _PART), max_size=4
        ).map(lambda pairs: ",".join(f"{key}={value}" for key, value in pairs)),
    )
)
def test_what_a_flag_says(parse: Any, text: str) -> None:
    refused_field(lambda: parse(text))


@fuzz
@given(st.lists(st.text("ab/ \\\n\t\x7fé", min_size=1, max_size=6), min_size=1, max_size=4))
def test_paths_of_mountinfo(targets: list[str]) -> None:
    """As the kernel escapes them: show_mountinfo, mangle()."""
    table = str.maketrans({char: f"\\{ord(char):03o}" for char in " \t\n\\"})
    lines = "".join(f"9 1 0:1 / /{target.translate(table)} rw - a b c\n" for target in targets)
    assert [mount.target for mount in mount_points(lines)] == [f"/{target}" for target in targets]
