"""The pytest plugin, in test runs of its own: with the fake driver, and with the native one where there is root."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

SAMPLE = """
    import os
    import pytest
    import pycontainer
    from pycontainer.testing import container_fixture, wait_for

    service = container_fixture(["cat"], scope="session", shared=True, stdin=pycontainer.PIPE,
                                share=lambda box: {"args": box.args})
    module_box = container_fixture(["cat"], scope="module", stdin=pycontainer.PIPE)

    @pytest.mark.parametrize("number", range(12))
    def test_run(run_container, number):
        assert run_container(["echo", str(number)]).stdout == f"{number}\\n"

    @pytest.mark.parametrize("number", range(6))
    def test_container(container, number):
        assert container.poll() is None
        assert container.id.startswith(os.environ.get("PYTEST_XDIST_WORKER", "test"))

    @pytest.mark.parametrize("number", range(8))
    def test_shared(service, number):
        assert service.data == {"args": ["cat"]}
        with open(os.environ["SHARED_IDS"], "a") as file:
            file.write(service.id + "\\n")

    def test_module(module_box):
        assert module_box.poll() is None

    def test_factory(container_factory):
        one, two = container_factory(["echo", "1"]), container_factory(["echo", "2"])
        wait_for(log="^2$", container=two)
        assert one.id != two.id

    @pytest.mark.container_memory("64m")
    def test_memory(container):
        assert container._life.command.resources.memory == 64 << 20

    @pytest.mark.container(["echo", "marked"])
    def test_marker(container):
        assert container.wait(10) == 0
        assert container.output == "marked\\n"
"""

DRIVERS = ["fake", pytest.param("native", marks=pytest.mark.root)]


@pytest.fixture(autouse=True)
def strict(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    pytester.makeini("[pytest]\naddopts = --strict-markers -p no:cacheprovider\nfilterwarnings = error\n")
    monkeypatch.setenv("SHARED_IDS", str(pytester.path / "ids"))


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("workers", [0, 4])
def test_a_sample_project_passes(pytester: pytest.Pytester, driver: str, workers: int) -> None:
    if workers:
        pytest.importorskip("xdist")
    pytester.makepyfile(SAMPLE)
    options = ["-n", str(workers)] if workers else []
    result = pytester.runpytest_subprocess("--container-driver", driver, *options, timeout=60)
    result.assert_outcomes(passed=30)
    ids = (pytester.path / "ids").read_text().split()
    assert len(ids) == 8
    # One at a time: the next is made only when the one before is gone, which the fake driver's run may take to happen.
    assert len(set(ids)) == 1 if driver == "native" else len(set(ids)) >= 1


def test_nothing_is_touched_at_collection(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(untouchable="raise SystemExit('a driver was imported at collection')")
    pytester.makepyfile(
        """
        def test_it(container): ...
        def test_driver(container_driver): ...
        """
    )
    result = pytester.runpytest_subprocess("--collect-only", "-q", "--container-driver", "untouchable:Driver")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*::test_it", "*::test_driver"])


def test_the_plugin_imports_nothing_until_it_is_used(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_it():
            loaded = [name for name in sys.modules if name.startswith("pycontainer.")]
            assert sorted(loaded) == ["pycontainer.testing", "pycontainer.testing.plugin"]
        """
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


def test_several_drivers_parametrise(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        other="""
        from pycontainer.testing.fake import FakeDriver
        class Other(FakeDriver):
            name = "other-0.1"
        """,
        test_it="""
        import pytest
        def test_name(container_driver): print(container_driver.name)
        @pytest.mark.container_driver("fake")
        def test_marked(container_driver): assert container_driver.name == "fake-0.1"
        """,
    )
    result = pytester.runpytest_subprocess(
        "-v", "-p", "no:xdist", "--container-driver", "fake", "--container-driver", "other:Other"
    )
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines_random(["*test_name?fake?*", "*test_name?other:Other?*", "*test_marked?fake?*"])


def test_an_unusable_driver_skips_with_the_reason(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        other="""
        from pycontainer import Probe
        from pycontainer.testing.fake import FakeDriver
        driver = FakeDriver(probe=Probe("other", usable=False, cause="no kernel", remedy="install one"))
        """,
        test_it="def test_it(container): ...",
    )
    result = pytester.runpytest_subprocess("-rs", "--container-driver", "other:driver")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*driver other cannot be used here: no kernel (remedy: install one)*"])


def test_required_features(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        from pycontainer import Feature

        @pytest.mark.container_require(Feature.PAUSE, "exec")
        def test_runs(container): ...

        @pytest.mark.container_require("network")
        def test_skipped(container): ...
        """
    )
    result = pytester.runpytest_subprocess("-rs", "--container-driver", "fake")
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["*it does not have network*"])


def test_a_failure_shows_the_containers(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        from pycontainer.testing import container_fixture, wait_for

        wide = container_fixture(["echo", "of the module"], scope="module")

        @pytest.mark.container_memory("64m")
        def test_it(container_factory, run_container, wide):
            box = container_factory(["echo", "last words"])
            box.wait(10)
            container_factory(["sleep", "1000"])
            run_container(["echo", "of a run"])
            assert False
        """
    )
    result = pytester.runpytest_subprocess("--container-driver", "fake")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*- containers -*",
            "echo of a run: exited with code 0",
            "*of a run",
            "*(echo last words): exited with code 0",
            "*limits: memory=67108864",
            "*stdout:",
            "*last words",
            "*(sleep 1000): running",
        ]
    )
    result.stdout.fnmatch_lines(["*(echo of the module)*", "*of the module"])


def test_a_leak_fails_the_test_that_leaked(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pycontainer
        import pytest

        kept = []

        @pytest.fixture(scope="module")
        def own(container_driver):
            with pycontainer.Container(["sleep", "1000"], driver=container_driver) as box:
                yield box

        def test_leaks(container_driver):
            kept.append(pycontainer.Container(["sleep", "1000"], driver=container_driver, name="leaked"))

        def test_does_not(own):
            assert kept[0].poll() == -9
            assert own.poll() is None
        """
    )
    result = pytester.runpytest_subprocess("--container-driver", "fake")
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_leaks*", "*left containers running*leaked (sleep 1000)*"])


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_detached_one_is_a_leak_as_well(pytester: pytest.Pytester, driver: str) -> None:
    pytester.makepyfile(
        """
        import pycontainer
        import pytest

        @pytest.fixture(scope="module")
        def own(container_driver):
            with pycontainer.Container(["sleep", "1000"], driver=container_driver, detach=True) as box:
                yield box
            box.remove(force=True)

        def test_leaks(container_driver):
            pycontainer.Container(["sleep", "1000"], driver=container_driver, name="leaked-detached", detach=True)

        def test_does_not(own, container_driver):
            assert not container_driver.info("leaked-detached").is_running
            assert own.poll() is None

        def test_removes(container_driver):
            box = pycontainer.Container(["sleep", "1000"], driver=container_driver, detach=True)
            box.close()
            pycontainer.get(box.id, container_driver).remove(force=True)
        """
    )
    result = pytester.runpytest_subprocess("--container-driver", driver)
    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_leaks*", "*left containers running*leaked-detached*"])


def test_a_fixture_makes_none_that_would_outlive_pytest(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        def test_it(container_factory):
            with pytest.raises(ValueError, match="detached one"):
                container_factory(["sleep", "1000"], detach=True)
        """
    )
    pytester.runpytest_subprocess("--container-driver", "fake").assert_outcomes(passed=1)


def test_the_fake_driver_fixture(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import os
        import pycontainer
        from pycontainer.testing import Outcome

        def test_it(fake_driver):
            fake_driver.script("backup", Outcome(stdout="done", exit_code=3))
            done = pycontainer.run(["backup"], capture_output=True, text=True)
            assert (done.stdout, done.returncode) == ("done", 3)

        def test_it_is_gone():
            assert "PYCONTAINER_DRIVER" not in os.environ
        """
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=2)


@pytest.mark.root
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["SIGINT", "SIGKILL"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_leaves_nothing(pytester: pytest.Pytester, number: int, workers: int) -> None:
    """SIGKILL reaches the workers of xdist too, as it does from a CI system that kills the group."""
    pytester.makepyfile(
        """
        import os
        import time
        import pytest
        from pycontainer.testing import container_fixture

        wide = container_fixture(["sleep", "1000"], scope="session", shared=True)

        @pytest.mark.parametrize("number", range(2))
        def test_it(container, wide, number, pytestconfig):
            with open("pids", "a") as file:
                file.write(f"{container.pid} {wide.pid}\\n")
            time.sleep(60)
        """
    )
    options = ["-n", str(workers)] if workers else []
    command = [sys.executable, "-m", "pytest", "--container-driver=native", *options]
    with (pytester.path / "out").open("wb") as out:
        run = subprocess.Popen(command, cwd=pytester.path, stdout=out, stderr=out, start_new_session=True)
    pids = pytester.path / "pids"
    try:
        deadline = time.monotonic() + 30
        while not pids.exists() or len(pids.read_text().splitlines()) < max(1, workers):
            assert run.poll() is None, (pytester.path / "out").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(run.pid, number)
        run.wait(30)
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
    alive = set(map(int, pids.read_text().split()))
    assert alive
    deadline = time.monotonic() + 10
    while alive:
        alive = {pid for pid in alive if Path(f"/proc/{pid}").exists()}
        assert time.monotonic() < deadline, f"still there: {json.dumps(sorted(alive))}"
        time.sleep(0.02)
