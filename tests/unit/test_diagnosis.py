"""``doctor`` and ``compare``, as functions and as verbs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import pycontainer
from pycontainer import Feature, FeatureProbe, Probe, plugins
from pycontainer.cli import main
from pycontainer.comparison import compare, feature_table
from pycontainer.testing.fake import FakeDriver, Outcome

BROKEN_PLUGIN = "import no_such_module_at_all"
FAKE_PLUGIN = """
import pycontainer
from pycontainer.testing.fake import FakeDriver

@pycontainer.hookimpl
def pycontainer_create_driver(name):
    return FakeDriver(features={pycontainer.Feature.HOST_ROOTFS, pycontainer.Feature.EXEC})
"""


@pytest.fixture(autouse=True)
def _installed(install: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what the project itself installs nothing is looked at: what that can do depends on the host."""
    install("good", {"good": "good_driver"}, {"good_driver": FAKE_PLUGIN})
    install("bad", {"bad": "bad_driver"}, {"bad_driver": BROKEN_PLUGIN})
    install("one", {"twice": "good_driver"})
    install("two", {"twice": "good_driver"})
    offers = plugins.offers
    monkeypatch.setattr(
        plugins, "offers", lambda: {name: found for name, found in offers().items() if name not in ("native", "lxc")}
    )
    monkeypatch.setenv("PYCONTAINER_DRIVER", "good")


def test_each_driver_and_feature() -> None:
    found = pycontainer.doctor()
    assert found.healthy
    summary = {(line.driver, line.feature): line.usable for line in found.findings()}
    assert summary == {
        ("bad", None): False,
        ("good", None): True,
        ("good", Feature.EXEC): True,
        ("good", Feature.HOST_ROOTFS): True,
        ("twice", None): False,
    }
    causes = {line.driver: line.cause for line in found.findings() if not line.usable}
    assert "No module named 'no_such_module_at_all'" in causes["bad"]
    assert "offered by one 1.0 and by two 1.0" in causes["twice"]


def test_cause_and_remedy_of_a_feature(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {Feature.PAUSE: FeatureProbe(False, cause="no freezer", remedy="mount -t cgroup ...")}
    driver = FakeDriver({Feature.PAUSE, Feature.EXEC}, Probe("good", True, features=seen))
    monkeypatch.setattr(plugins, "_made", [("good", {}, driver)])
    lines = "\n".join(pycontainer.doctor("good").lines())
    assert "good (default)           yes" in lines
    assert "  exec                   ?    declared; the driver's probe does not look at it" in lines
    assert "  pause                  no   no freezer\n" in lines
    assert "remedy: mount -t cgroup ..." in lines


@pytest.mark.parametrize(
    ("default", "arguments", "code"),
    [
        ("good", [], 0),
        ("bad", [], 1),
        ("twice", [], 1),
        ("missing", [], 1),
        ("bad, good", [], 0),
        ("bad,missing", [], 1),
        ("bad", ["good"], 0),
        ("good", ["bad"], 1),
        ("good", ["missing"], 125),
    ],
)
def test_the_exit_status(default: str, arguments: list[str], code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYCONTAINER_DRIVER", default)
    assert main(["doctor", *arguments]) == code


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", "bad"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert (data["default"], data["chosen"], data["healthy"]) == ("good", "bad", False)
    assert [(line["driver"], line["feature"], line["usable"]) for line in data["findings"]] == [("bad", None, False)]
    assert data["findings"][0]["remedy"] == "repair or uninstall bad 1.0"


def test_only_the_default_one_is_called_so(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["good"]):
        main(["doctor", *arguments])
        assert "good (default) " in capsys.readouterr().out
    main(["doctor", "bad"])
    assert "default" not in capsys.readouterr().out


# -- compare


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> tuple[FakeDriver, FakeDriver]:
    first, second = FakeDriver(), FakeDriver()
    monkeypatch.setattr(plugins, "_made", [("first", {}, first), ("second", {}, second)])
    monkeypatch.setattr(plugins, "offers", lambda: {"first": [], "second": []})
    return first, second


def test_no_difference(two: tuple[FakeDriver, FakeDriver], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--", "echo", "hi"]) == 0
    assert capsys.readouterr().out == (
        "exit: the same (first, second)\n    exit code 0\nstdout: the same (first, second)\n    hi\n"
        "stderr: the same (first, second)\nreceipt: the same (first, second)\n"
    )


def test_differences(two: tuple[FakeDriver, FakeDriver], capsys: pytest.CaptureFixture[str]) -> None:
    two[0].script("x", Outcome(stdout="one\ntwo\n"))
    two[1].script("x", Outcome(stdout="one\nthree\n", exit_code=2))
    assert list(compare(["x"]).differences()) == ["exit", "stdout"]
    assert main(["compare", "x"]) == 1
    out = capsys.readouterr().out
    assert "exit: different\n    --- first\n    +++ second\n" in out
    assert "    -two\n    +three\n" in out
    assert main(["compare", "--json", "x"]) == 1
    assert json.loads(capsys.readouterr().out)["differences"] == ["exit", "stdout"]
    assert main(["compare", "--drivers", "first", "x"]) == 0


def test_receipts_are_compared(
    two: tuple[FakeDriver, FakeDriver], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(two[1], "_features", two[1].features() | {Feature.SECCOMP})
    assert main(["compare", "echo", "hi"]) == 1
    out = capsys.readouterr().out
    assert "receipt: different\n" in out
    assert "    -seccomp: disabled, 0 filters\n    +seccomp: filter, 1 filters\n" in out


def test_without_create_the_receipt_is_one_of_a_running_container(
    two: tuple[FakeDriver, FakeDriver], monkeypatch: pytest.MonkeyPatch
) -> None:
    for driver in two:
        monkeypatch.setattr(driver, "_features", driver.features() - {Feature.CREATE})
    two[0].script("x", Outcome(delay=0.5))
    two[1].script("x", Outcome(delay=0.5))
    seen = compare(["x"])
    assert all(each.receipt for each in seen.observations)
    assert list(seen.differences()) == []


def test_what_one_cannot_do_is_a_difference(two: tuple[FakeDriver, FakeDriver]) -> None:
    two[0].script("program", Outcome())
    seen = compare(["program"], rootfs=None)
    assert [(each.driver, each.exit) for each in seen.observations] == [
        ("first", "exit code 0"),
        ("second", "SetupError: execve program: ENOENT (No such file or directory)"),
    ]


def test_unusable_ones_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "echo", "hi"]) == 0
    out = capsys.readouterr().out
    assert "bad: not compared: driver 'bad' cannot be used here" in out
    assert "twice: not compared: driver 'twice' is offered by" in out
    assert "stdout: the same (good)" in out


def test_the_table_of_features() -> None:
    installed = [each for name, each in pycontainer.drivers().items() if name in ("good", "bad")]
    assert list(feature_table(installed)) == [
        "===========  ===  ====",
        "Feature      bad  good",
        "===========  ===  ====",
        "exec         \\-   yes",
        "host-rootfs  \\-   yes",
        "===========  ===  ====",
    ]


@pytest.mark.parametrize(
    "source",
    [
        "raise SystemExit('out of here')",
        FAKE_PLUGIN.replace("return ", "return None + "),
        FAKE_PLUGIN.replace("FakeDriver(f", "Broken(f") + "class Broken(FakeDriver):\n    features = None\n",
        FAKE_PLUGIN.replace("FakeDriver(f", "Broken(f") + "class Broken(FakeDriver):\n    probe = None\n",
        FAKE_PLUGIN.replace("FakeDriver(f", "Broken(f") + "class Broken(FakeDriver):\n    start = create = None\n",
    ],
    ids=["exits", "is-not-made", "has-no-features", "cannot-be-probed", "cannot-start"],
)
def test_a_plugin_that_raises_whatever_it_likes_breaks_no_other(
    source: str, install: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    install("rude", {"rude": "rude_driver"}, {"rude_driver": source})
    assert main(["drivers"]) == 0
    assert main(["doctor"]) == 0
    assert main(["compare", "--json", "echo", "hello"]) in (0, 1)
    out = capsys.readouterr().out
    assert "hello" in out
    assert "out of here" not in out.splitlines()
    if "probe =" not in source:  # which nobody asks where the driver is named
        assert main(["run", "--driver", "rude", "true"]) == 125
    with pytest.raises(pycontainer.RequirementError):
        pycontainer.run(["true"], driver=["rude", "good"], require={Feature.TTY})
