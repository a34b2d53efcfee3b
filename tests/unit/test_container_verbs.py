"""The command line's verbs about detached containers, on the fake driver."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

import pytest

from pycontainer import Resources, State
from pycontainer.cli import main
from pycontainer.testing.fake import FakeContainer, FakeDriver, Outcome


@pytest.fixture
def fake() -> Iterator[FakeDriver]:
    driver = FakeDriver()
    driver.script("talk", Outcome(stdout="one\ntwo\nthree\n", stderr="oops\n", exit_code=3))

    def polite(box: FakeContainer) -> None:
        box.trap(15, lambda: box.exit(7))
        box.sleep()

    driver.script("polite", polite)
    with driver.installed():
        yield driver
        for info in driver.containers():
            main(["rm", "-f", info.id])


@pytest.fixture
def cli(fake: FakeDriver, capfdbinary: pytest.CaptureFixture[bytes]) -> Callable[..., tuple[int, str, str]]:
    """(exit code, output, errors) of the program with these arguments."""

    def cli(*arguments: str) -> tuple[int, str, str]:
        try:
            code = main(arguments)
        except SystemExit as exit:
            code = int(exit.code or 0)
        out, err = capfdbinary.readouterr()
        return code, out.decode(), err.decode()

    return cli


def test_from_run_to_rm(cli: Callable[..., tuple[int, str, str]]) -> None:
    assert cli("run", "-d", "--name", "web", "talk") == (0, "web\n", "")
    assert cli("wait", "web") == (0, "3\n", "")
    assert cli("logs", "web") == (0, "one\ntwo\nthree\n", "oops\n")
    assert cli("logs", "-f", "-n", "all", "web")[1] == "one\ntwo\nthree\n"
    assert cli("ps", "-q") == (0, "", "")
    assert cli("ps", "-aq") == (0, "web\n", "")
    assert cli("rm", "web") == (0, "web\n", "")
    assert cli("rm", "web") == (1, "", "pycontainer: no such container: web\n")
    assert cli("ps", "-aq") == (0, "", "")


def test_the_table(cli: Callable[..., tuple[int, str, str]], fake: FakeDriver) -> None:
    cli("run", "-d", "--name", "first", "talk", "with many words", "in it")
    cli("wait", "first")
    cli("run", "-d", "--name", "second", "sleep", "100")
    cli("pause", "second")
    head, second, first = cli("ps", "-a")[1].splitlines()
    assert re.split(" {3,}", head) == ["CONTAINER ID", "COMMAND", "CREATED", "STATUS"]
    assert re.fullmatch(r'first +"talk with many word…" +.* ago +Exited \(3\) .* ago', first)
    assert re.fullmatch(r'second +"sleep 100" +.* ago +Up .* \(Paused\)', second)
    assert second.index('"') == first.index('"') == head.index("COMMAND")


def test_with_the_time_of_each_line(cli: Callable[..., tuple[int, str, str]]) -> None:
    cli("run", "-d", "--name", "web", "talk")
    cli("wait", "web")
    _, out, _ = cli("logs", "-t", "web")
    assert re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z (one|two|three)\n){3}", out)


def test_stopping_and_signals(cli: Callable[..., tuple[int, str, str]], fake: FakeDriver) -> None:
    for name in ("a", "b", "c"):
        cli("run", "-d", "--name", name, "polite")
    assert cli("stop", "-t", "30", "a", "missing") == (1, "a\n", "pycontainer: no such container: missing\n")
    assert cli("kill", "-s", "TERM", "b") == (0, "b\n", "")
    assert cli("kill", "c") == (0, "c\n", "")
    assert cli("wait", "a", "b", "c") == (0, "7\n7\n137\n", "")
    code, out, err = cli("kill", "c")
    assert (code, out) == (1, "")
    assert "not running" in err
    assert cli("kill", "-s", "NONSENSE", "c")[0] == 125


def test_a_running_one_is_not_removed(cli: Callable[..., tuple[int, str, str]], fake: FakeDriver) -> None:
    cli("run", "-d", "--name", "web", "sleep", "100")
    code, out, err = cli("rm", "web")
    assert (code, out) == (1, "")
    assert "stop it" in err
    assert fake.info("web").state is State.RUNNING
    assert cli("rm", "-f", "web")[0] == 0


def test_exec(cli: Callable[..., tuple[int, str, str]]) -> None:
    cli("run", "-d", "--name", "web", "-e", "OWN=1", "sleep", "100")
    code, out, _ = cli("exec", "-e", "MORE=2", "web", "env")
    assert code == 0
    assert {"OWN=1", "MORE=2"} <= set(out.splitlines())
    assert cli("exec", "web", "false")[0] == 1
    assert cli("exec", "web", "missing")[0] == 127
    assert cli("exec", "web")[0] == 125
    for verb in (("exec", "missing", "true"), ("logs", "missing"), ("stop", "missing"), ("rm", "missing")):
        assert cli(*verb) == (1, "", "pycontainer: no such container: missing\n")


def test_inspect(cli: Callable[..., tuple[int, str, str]]) -> None:
    cli("run", "-d", "--name", "web", "--hostname", "host", "talk")
    cli("wait", "web")
    code, out, err = cli("inspect", "web", "missing")
    assert (code, err) == (1, "pycontainer: no such container: missing\n")
    [data] = json.loads(out)
    assert (data["id"], data["state"], data["command"]["hostname"]) == ("web", "stopped", "host")
    assert data["status"]["exit_code"] == 3
    assert [each["id"] for each in json.loads(cli("ps", "-a", "--json")[1])] == ["web"]


def test_stats(cli: Callable[..., tuple[int, str, str]]) -> None:
    cli("run", "-d", "--name", "web", "--memory", "64m", "--pids-limit", "20", "sleep", "100")
    cli("run", "-d", "--name", "other", "sleep", "100")
    code, out, err = cli("stats", "web", "other", "missing")
    assert (code, err) == (1, "pycontainer: no such container: missing\n")
    web, other = json.loads(out)
    assert [web["id"], other["id"]] == ["web", "other"]
    assert web["memory"]["limit"] == 64 << 20
    assert web["pids"]["limit"] == 20
    assert other["memory"]["limit"] is None
    assert {"time", "cpu", "memory", "pids", "io", "network", "pressure"} < web.keys()
    assert web["cpu"].keys() == {"usage", "user", "system", "periods", "throttled_periods", "throttled_time"}


def test_update(cli: Callable[..., tuple[int, str, str]], fake: FakeDriver) -> None:
    def updates() -> list[Resources]:
        return [call.arguments["resources"] for call in fake.calls if call.verb == "update"]

    cli("run", "-d", "--name", "web", "--memory", "64m", "sleep", "100")
    cli("run", "-d", "--name", "over", "true")
    cli("wait", "over")
    flags = ("-m", "96m", "--cpus", "0.5", "--pids-limit", "30")
    assert cli("update", *flags, "web") == (0, "web\n", "")
    assert updates() == [Resources.of(memory="96m", cpus=0.5, pids_limit=30)]
    code, out, err = cli("update", "-c", "512", "over", "web")
    assert (code, out) == (1, "web\n")
    assert "not running" in err
    assert updates()[1:] == [Resources(cpu_shares=512)]
    assert cli("update", "-m", "12q", "web") == (
        *(125, ""),
        "pycontainer: resources.memory: '12q' is not a size: bytes, or with a unit like 512k, 64m, 1.5g\n",
    )
    assert cli("update", "web") == (125, "", "pycontainer: what is to be changed? No limit is given\n")
    for fixed in (("--ulimit", "nofile=5"), ("--device-read-bps", "/dev/sda:1m")):
        assert cli("update", *fixed, "web")[0] == 125


def test_gc(cli: Callable[..., tuple[int, str, str]], fake: FakeDriver) -> None:
    assert cli("gc") == (0, "", "")
    assert fake.calls[-1].verb == "gc"
