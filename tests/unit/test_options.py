"""A driver's options: as keywords, environment variables and flags."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pycontainer import Option, get_driver
from pycontainer.cli import main
from pycontainer.options import resolve, variable

PLUGIN = """
import pycontainer
from pycontainer.testing.fake import FakeDriver

class Driver(FakeDriver):
    def __init__(self, name, options):
        super().__init__()
        self.options = options
        self.script("show", lambda box: box.write(f"{name} {sorted(options.items())}\\n"))

@pycontainer.hookimpl
def pycontainer_driver_options(name):
    return [
        pycontainer.Option("state_dir", "where", default="/run"),
        pycontainer.Option("depth", type=int, default=1),
        pycontainer.Option("strict", type=bool, default=False),
    ]

@pycontainer.hookimpl
def pycontainer_create_driver(name, options):
    return Driver(name, options)
"""

DEFAULTS = {"state_dir": "/run", "depth": 1, "strict": False}


@pytest.fixture(autouse=True)
def _installed(install: Callable[..., Path]) -> None:
    install("deep", {"deep-one": "deep"}, {"deep": PLUGIN})


def options(**given: object) -> object:
    return get_driver("deep-one", **given).options  # type: ignore[attr-defined]


def test_keywords() -> None:
    assert options() == DEFAULTS
    assert options(depth=3, strict=True) == {**DEFAULTS, "depth": 3, "strict": True}


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYCONTAINER_DEEP_ONE_STATE_DIR", "/tmp")
    monkeypatch.setenv("PYCONTAINER_DEEP_ONE_STRICT", "yes")
    monkeypatch.setenv("PYCONTAINER_DEEP_ONE_DEPTH", "7")
    assert options() == {"state_dir": "/tmp", "depth": 7, "strict": True}
    assert options(depth=1) == {"state_dir": "/tmp", "depth": 1, "strict": True}


def test_an_unknown_one() -> None:
    with pytest.raises(TypeError, match="driver 'deep-one' has no option 'dept': did you mean 'depth'"):
        options(dept=1)


@pytest.mark.parametrize("given", [{"depth": "x"}, {"depth": 1.5}, {"strict": "maybe"}, {"depth": True}])
def test_a_wrong_value(given: dict[str, object]) -> None:
    with pytest.raises((TypeError, ValueError), match=f"option '{next(iter(given))}' of driver 'deep-one'"):
        options(**given)


def test_a_wrong_value_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYCONTAINER_DEEP_ONE_DEPTH", "x")
    with pytest.raises(ValueError, match=r"^PYCONTAINER_DEEP_ONE_DEPTH: "):
        options()


def test_flags(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--driver", "deep-one", "--deep-one-depth=5", "--deep-one-state-dir", "/x", "show"]) == 0
    assert capfd.readouterr().out == "deep-one [('depth', 5), ('state_dir', '/x'), ('strict', False)]\n"


def test_flags_of_another_driver(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYCONTAINER_DRIVER", "deep-one")
    assert main(["run", "--deep-one-depth", "2", "show"]) == 0
    capfd.readouterr()
    assert main(["run", "--driver", "native", "--deep-one-depth", "2", "show"]) == 125
    assert "--deep-one-depth is for the driver deep-one, not for native" in capfd.readouterr().err


@pytest.mark.parametrize("choice", [["--driver", "plain,native"], ["--require", "exec"]])
def test_flags_where_the_driver_is_not_named_alone(choice: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    """They are not left out: whose they are is to be said."""
    assert main(["run", *choice, "--native-root", "/run/other", "--", "true"]) == 125
    assert "--native-root is for one driver" in capfd.readouterr().err


def test_a_wrong_flag(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--driver", "deep-one", "--deep-one-depth", "x", "show"]) == 125
    assert "option 'depth' of driver 'deep-one'" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        main(["run", "--driver", "deep-one", "--deep-one-width", "1", "show"])


def test_help_has_the_flags_of_every_driver_that_can_be_asked(
    capfd: pytest.CaptureFixture[str], install: Callable[..., Path]
) -> None:
    install("bad", {"bad": "bad_driver"}, {"bad_driver": "import no_such_module_at_all"})
    for verb in ("run", "ps"):
        with pytest.raises(SystemExit):
            main([verb, "--help"])
        shown = capfd.readouterr().out
        assert "options of the driver deep-one" in shown
        assert "--deep-one-state-dir" in shown
        assert "--native-root" in shown


def test_words_of_the_command_are_not_flags(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--driver", "deep-one", "echo", "--deep-one-depth", "2"]) == 0
    assert capfd.readouterr().out == "--deep-one-depth 2\n"


def test_names() -> None:
    assert variable("deep-one", "state_dir") == "PYCONTAINER_DEEP_ONE_STATE_DIR"
    with pytest.raises(ValueError, match="lower-case"):
        Option("State")
    assert resolve("x", [Option("a", type=float)], {"a": 1}, {}) == {"a": 1.0}
