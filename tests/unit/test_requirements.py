"""The requirement solver."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

import pycontainer
from pycontainer import Feature, FeatureProbe, Probe, plugins, requirements
from pycontainer.cli import main
from pycontainer.requirements import as_features, choose_driver
from pycontainer.testing.fake import FEATURES, FakeDriver

PLAIN = FakeDriver({Feature.HOST_ROOTFS})
ABLE = FakeDriver()
BLOCKED = FakeDriver(
    probe=Probe("blocked", True, features={Feature.PAUSE: FeatureProbe(False, cause="no freezer", remedy="mount it")})
)
DEAD = FakeDriver(probe=Probe("dead", False, cause="no kernel", remedy="boot one"))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four drivers, two of them under the names that are considered by default."""
    made: Mapping[str, FakeDriver] = {"native": BLOCKED, "lxc": ABLE, "plain": PLAIN, "dead": DEAD, "mine": ABLE}
    monkeypatch.setattr(plugins, "_made", [(name, {}, driver) for name, driver in made.items()])
    monkeypatch.delenv("PYCONTAINER_DRIVER", raising=False)


@pytest.mark.usefixtures("installed")
class TestChoice:
    """Among them."""

    def test_the_first_in_order(self) -> None:
        assert choose_driver(()) is BLOCKED
        assert choose_driver({Feature.EXEC}) is BLOCKED

    def test_the_next_one_if_the_first_cannot_here(self) -> None:
        assert choose_driver({"pause"}) is ABLE

    def test_only_those_of_ours_without_a_name(self) -> None:
        """A driver that may isolate less is never a way out."""
        assert requirements.ORDER == ("native", "lxc")

    def test_a_name_that_anybody_could_take_is_not_taken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(plugins, "_made", [("native", {}, BLOCKED), ("lxc", {}, PLAIN), ("oci", {}, ABLE)])
        with pytest.raises(pycontainer.RequirementError):
            choose_driver({"pause"})

    def test_a_named_one_or_none(self) -> None:
        assert choose_driver({"exec"}, "mine") is ABLE
        with pytest.raises(pycontainer.RequirementError):
            choose_driver({"exec"}, "plain")

    def test_several_names_in_the_order_of_preference(self) -> None:
        assert choose_driver({"exec"}, ["dead", "plain", "mine"]) is ABLE

    def test_the_environment_names_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PYCONTAINER_DRIVER", "plain")
        assert choose_driver(()) is PLAIN
        with pytest.raises(pycontainer.RequirementError):
            choose_driver({"exec"})
        monkeypatch.setenv("PYCONTAINER_DRIVER", "plain, mine")
        assert choose_driver({"exec"}) is ABLE

    def test_an_ordinary_run_knows_several_as_well(
        self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """The first one that this host can use, as where they are given as *driver*."""
        monkeypatch.setenv("PYCONTAINER_DRIVER", "dead, mine,plain")
        assert plugins.get_driver() is ABLE
        assert pycontainer.run(["echo", "hi"], capture_output=True).stdout == b"hi\n"
        assert main(["run", "--", "echo", "hi"]) == 0
        assert capfd.readouterr().out == "hi\n"
        monkeypatch.setenv("PYCONTAINER_DRIVER", "dead,dead")
        with pytest.raises(pycontainer.DriverUnavailableError, match="no kernel"):
            plugins.get_driver()
        monkeypatch.setenv("PYCONTAINER_DRIVER", "no-such-driver,mine")
        with pytest.raises(pycontainer.DriverNotFoundError):
            plugins.get_driver()
        monkeypatch.setenv("PYCONTAINER_DRIVER", " , ")
        assert plugins.get_driver() is BLOCKED

    def test_it_explains_each(self) -> None:
        with pytest.raises(pycontainer.RequirementError) as caught:
            choose_driver({"pause", "network"}, ["native", "plain", "dead"])
        assert caught.value.reasons == {
            "native": ("pause cannot be used here: no freezer (remedy: mount it)", "it does not have network"),
            "plain": ("it does not have pause", "it does not have network"),
            "dead": ("it cannot be used here: no kernel (remedy: boot one)",),
        }
        assert "no driver has pause, network (native: pause cannot" in str(caught.value)

    def test_a_name_that_is_not_installed(self) -> None:
        with pytest.raises(pycontainer.DriverNotFoundError):
            choose_driver((), "no-such-driver")

    def test_run(self) -> None:
        done = pycontainer.run(["echo", "hi"], require={Feature.PAUSE}, capture_output=True)
        assert done.stdout == b"hi\n"
        assert ABLE.calls[-2].verb == "start"
        with pytest.raises(pycontainer.RequirementError):
            pycontainer.run(["true"], require=["network"])

    def test_the_flag(self, capfd: pytest.CaptureFixture[str]) -> None:
        assert main(["run", "--require", "pause,exec", "--require", "tty", "--", "echo", "hi"]) == 0
        assert capfd.readouterr().out == "hi\n"
        assert main(["run", "--driver", "dead,mine", "--", "echo", "hi"]) == 0
        assert main(["run", "--driver", "dead, plain", "--require", "pause", "--", "echo", "hi"]) == 125
        assert main(["run", "--require", "network", "--", "echo", "hi"]) == 125
        assert "lxc: it does not have network" in capfd.readouterr().err
        with pytest.raises(SystemExit):
            main(["run", "--require", "wings", "--", "true"])
        assert "there is no feature 'wings'" in capfd.readouterr().err


def test_names_of_features() -> None:
    assert as_features(["HOST_ROOTFS", "exec", Feature.EXEC]) == (Feature.EXEC, Feature.HOST_ROOTFS)
    with pytest.raises(ValueError, match=r"there is no feature 'wings' \(there are create, exec"):
        as_features(["wings"])
    with pytest.raises(TypeError, match="as a set"):
        as_features("exec")
    assert set(as_features(FEATURES)) == FEATURES


@pytest.mark.usefixtures("installed")
def test_run_with_several_drivers() -> None:
    with pycontainer.Container(["true"], driver=["dead", "mine"]) as box:
        assert box.wait(10) == 0
    with pytest.raises(pycontainer.RequirementError, match=r"no driver has what is required \(dead: it cannot"):
        pycontainer.run(["true"], driver=["dead"])
