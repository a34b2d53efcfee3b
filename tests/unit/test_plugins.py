"""Which driver is found, and what a broken plugin breaks."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import warnings
import zipfile
from collections.abc import Callable
from importlib.metadata import DistributionFinder, PathDistribution
from pathlib import Path

import pytest

from pycontainer import plugins
from pycontainer.driver import ExecutionDriver, Feature
from pycontainer.errors import DriverConflictError, DriverNotFoundError, DriverUnavailableError

Install = Callable[..., Path]

DRIVER = """
import pycontainer
from pycontainer.driver import ContainerInfo, ExecutionDriver, Feature, State

class Driver(ExecutionDriver):
    name = "double-0.1"

    def __init__(self, **options):
        self.options = options

    def features(self):
        return frozenset({Feature.TTY})

    def start(self, command, stdio):
        raise NotImplementedError

    def kill(self, id, signal):
        raise NotImplementedError

    def terminate(self, id):
        raise NotImplementedError

    def info(self, id):
        return ContainerInfo(id, State.STOPPED)

    def get_pids_for_container(self, id):
        return ()
"""

PLUGIN = (
    DRIVER
    + """
@pycontainer.hookimpl
def pycontainer_create_driver(name, options):
    driver = Driver(**options)
    driver.made_for = name
    return driver
"""
)

EXPLODES = "raise RuntimeError('imported')"


def test_a_driver_is_found_by_its_entry_point(install: Install) -> None:
    install("one", {"double": "one_plugin"}, {"one_plugin": PLUGIN})
    driver = plugins.get_driver("double", root="/x")
    assert driver.name == "double-0.1"
    assert driver.options == {"root": "/x"}  # type: ignore[attr-defined]


def test_an_entry_point_may_be_an_object_of_a_module(install: Install) -> None:
    source = DRIVER + (
        "class Outer:\n"
        "    class Plugin:\n"
        "        @staticmethod\n"
        "        @pycontainer.hookimpl\n"
        "        def pycontainer_create_driver(options):\n"
        "            return Driver()\n"
    )
    install("one", {"double": "one_plugin:Outer.Plugin"}, {"one_plugin": source})
    assert plugins.get_driver("double").name == "double-0.1"


def test_name_and_options_make_one_object(install: Install) -> None:
    install("one", {"double": "one_plugin"}, {"one_plugin": PLUGIN})
    first = plugins.get_driver("double", paths=["/a"])  # a list is not hashable
    assert plugins.get_driver("double", paths=["/a"]) is first
    assert plugins.get_driver("double", paths=["/b"]) is not first
    assert plugins.get_driver("double") is not first


def test_a_driver_object_is_handed_back(install: Install) -> None:
    install("one", {"double": "one_plugin"}, {"one_plugin": PLUGIN})
    driver = plugins.get_driver("double")
    assert plugins.get_driver(driver) is driver
    with pytest.raises(TypeError, match="root"):
        plugins.get_driver(driver, root="/x")
    with pytest.raises(TypeError, match="42"):
        plugins.get_driver(42)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("variable", "wanted"), [("double", "double"), ("", "native"), (None, "native")], ids=["set", "empty", "unset"]
)
def test_without_a_name_the_environment_decides(
    variable: str | None, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable is None:
        monkeypatch.delenv("PYCONTAINER_DRIVER", raising=False)
    else:
        monkeypatch.setenv("PYCONTAINER_DRIVER", variable)
    monkeypatch.setattr(plugins, "_scan_directories", list)
    monkeypatch.setattr(plugins, "_made", [])  # another test may have made one
    with pytest.raises(DriverNotFoundError) as caught:
        plugins.get_driver()
    assert caught.value.name == wanted


def test_an_unknown_name_lists_what_there_is(install: Install) -> None:
    install("one", {"double": "one_plugin", "other": "one_plugin"}, {"one_plugin": EXPLODES})
    with pytest.raises(DriverNotFoundError) as caught:
        plugins.get_driver("doubel")
    assert {"double", "other"} <= set(caught.value.available)


def test_only_the_chosen_plugin_is_imported(install: Install) -> None:
    install("one", {"double": "one_plugin"}, {"one_plugin": PLUGIN})
    install("two", {"loud": "two_plugin"}, {"two_plugin": EXPLODES})
    plugins.get_driver("double")
    assert "two_plugin" not in sys.modules


def test_a_name_offered_twice_is_refused_before_either_is_loaded(install: Install) -> None:
    install("one", {"double": "one_plugin"}, {"one_plugin": EXPLODES})
    install("aaa_first", {"double": "two_plugin"}, {"two_plugin": EXPLODES}, version="2.5")
    with pytest.raises(DriverConflictError) as caught:
        plugins.get_driver("double")
    assert caught.value.distributions == ("aaa-first 2.5", "one 1.0")


def test_of_a_distribution_that_is_on_the_path_twice_the_first_counts(install: Install) -> None:
    install("one.dist", {"double": "old_plugin", "gone": "old_plugin"}, {"old_plugin": EXPLODES}, directory="behind")
    install("One_Dist", {"double": "new_plugin"}, {"new_plugin": PLUGIN}, directory="before", version="2.0")
    assert plugins.get_driver("double").name == "double-0.1"
    with pytest.raises(DriverNotFoundError):
        plugins.get_driver("gone")


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import nonexistent_module", "ModuleNotFoundError: No module named 'nonexistent_module'"),
        ("raise RuntimeError('no luck')", "RuntimeError: no luck"),
        ("syntax error", "SyntaxError"),
        ("", "made nothing"),
        (PLUGIN.replace("return driver", "return 'driver'"), "made 'driver'"),
        (PLUGIN.replace("def pycontainer_create_driver", "def pycontainer_create_drivr"), "pycontainer_create_drivr"),
        (PLUGIN.replace("(name, options)", "(name, option)"), "option"),
        (PLUGIN.replace("    driver = Driver", "    import nonexistent_module\n    driver = Driver"), "nonexistent"),
        ("raise SystemExit('out of here')", "SystemExit: out of here"),
        (
            PLUGIN.replace("    driver = Driver", "    raise TypeError('no such thing')\n    driver = Driver"),
            "no such thing",
        ),
        (PLUGIN.replace("    driver = Driver", "    raise SystemExit(3)\n    driver = Driver"), "SystemExit: 3"),
        (PLUGIN.replace("        return frozenset({Feature.TTY})", "        return 1 / 0"), "ZeroDivisionError"),
        (
            PLUGIN + "\n@pycontainer.hookimpl\ndef pycontainer_driver_options(name):\n    1 / 0\n",
            "ZeroDivisionError",
        ),
    ],
    ids=[
        *("import", "error", "syntax", "no-hook", "no-driver", "unknown-hook", "unknown-argument", "late-import"),
        *("exit", "hook-raises", "hook-exits", "features-raise", "options-raise"),
    ],
)
def test_a_broken_plugin_is_an_unavailable_driver_and_breaks_no_other(
    source: str, cause: str, install: Install
) -> None:
    install("bad", {"broken": "bad_plugin"}, {"bad_plugin": source})
    install("one", {"double": "one_plugin"}, {"one_plugin": PLUGIN})
    for _ in range(2):  # and it does not get better by asking again
        with pytest.raises(DriverUnavailableError) as caught:
            plugins.get_driver("broken")
        assert cause in caught.value.probe.cause
        assert "bad 1.0" in caught.value.probe.remedy
    assert plugins.get_driver("double").name == "double-0.1"
    assert not plugins.drivers()["broken"].probe.usable


def test_a_wrong_option_is_a_type_error(install: Install) -> None:
    source = PLUGIN.replace("**options):\n        self.options = options", "root=None):\n        pass")
    install("one", {"double": "one_plugin"}, {"one_plugin": source})
    with pytest.raises(TypeError, match="colour"):
        plugins.get_driver("double", colour="red")


def test_a_plugin_of_two_drivers_tells_them_apart_by_name(install: Install) -> None:
    install("one", {"left": "one_plugin", "right": "one_plugin"}, {"one_plugin": PLUGIN})
    assert plugins.get_driver("left").made_for == "left"  # type: ignore[attr-defined]
    assert plugins.get_driver("right").made_for == "right"  # type: ignore[attr-defined]


def test_no_plugin_answers_for_another(install: Install) -> None:
    greedy = PLUGIN.replace("@pycontainer.hookimpl", "@pycontainer.hookimpl(tryfirst=True)")
    install("greedy", {"greedy": "greedy_plugin"}, {"greedy_plugin": greedy})
    install("one", {"double": "one_plugin"}, {"one_plugin": PLUGIN})
    plugins.get_driver("greedy")
    assert type(plugins.get_driver("double")).__module__ == "one_plugin"


def test_a_driver_that_wraps_another_may_ask_for_it(install: Install) -> None:
    wrapper = PLUGIN.replace("driver = Driver(", "driver = Driver(inner=pycontainer.get_driver('double'), ")
    install("one", {"double": "one_plugin"}, {"one_plugin": PLUGIN})
    install("two", {"wrapper": "two_plugin"}, {"two_plugin": wrapper})
    outer = plugins.get_driver("wrapper")
    assert outer.options["inner"] is plugins.get_driver("double")  # type: ignore[attr-defined]


def test_threads_share_one_object(install: Install) -> None:
    slow = PLUGIN.replace("    driver = Driver", "    import time; time.sleep(0.05)\n    driver = Driver")
    install("one", {"double": "one_plugin"}, {"one_plugin": slow})
    made: list[ExecutionDriver] = []
    threads = [threading.Thread(target=lambda: made.append(plugins.get_driver("double"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 4
    assert len(set(map(id, made))) == 1


def test_a_forked_child_gets_its_own(install: Install) -> None:
    install("one", {"double": "one_plugin"}, {"one_plugin": PLUGIN})
    ours = plugins.get_driver("double")
    pid = os.fork()
    if pid == 0:
        os._exit(plugins.get_driver("double") is ours)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert plugins.get_driver("double") is ours


def test_a_lock_held_at_the_fork_does_not_stop_the_child(install: Install) -> None:
    install("one", {"double": "one_plugin"}, {"one_plugin": PLUGIN})
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with plugins._lock:
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # a fork with threads is what this is about
            pid = os.fork()
        if pid == 0:
            os._exit(not plugins._lock.acquire(timeout=5))
    finally:
        done.set()
        thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_drivers_lists_all_and_confines_what_is_broken(install: Install) -> None:
    unprobed = PLUGIN.replace("    def features", "    def probe(self):\n        1 / 0\n\n    def features")
    install("one", {"double": "one_plugin"}, {"one_plugin": PLUGIN})
    install("bad", {"broken": "bad_plugin", "twice": "bad_plugin"}, {"bad_plugin": "import nonexistent_module"})
    install("two", {"twice": "one_plugin", "unprobed": "two_plugin"}, {"two_plugin": unprobed})
    found = plugins.drivers()
    assert list(found) == sorted(found)
    assert found["double"].probe.usable
    assert found["double"].features == {Feature.TTY}
    assert found["double"].distribution == "one 1.0"
    assert found["double"].entry_point == "one_plugin"
    assert not found["broken"].probe.usable
    assert "nonexistent_module" in found["broken"].probe.cause
    assert found["broken"].features == frozenset()
    assert found["twice"].distribution == "bad 1.0, two 1.0"
    assert "offered by bad 1.0 and by two 1.0" in found["twice"].probe.cause
    assert not found["unprobed"].probe.usable
    assert "ZeroDivisionError" in found["unprobed"].probe.cause
    assert {probe.driver for probe in (item.probe for item in found.values())} >= {"broken", "twice", "unprobed"}


# -- the scan without importlib.metadata must find what importlib.metadata finds


def test_both_scans_find_the_same(install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install("one", {"double": "one_plugin"})
    install("two.dots_and_more", {"twice": "a:b.c", "Mixed-Case": "d"}, version="1.0.post1")
    install("one", {"shadowed": "one_plugin"}, directory="behind")
    monkeypatch.setattr(sys, "path", [*sys.path[1:], sys.path[0]])
    egg = tmp_path / "site" / "old-3.0-py3.11.egg-info"
    egg.mkdir()
    (egg / "PKG-INFO").write_text("Metadata-Version: 1.0\nName: old\nVersion: 3.0\n")
    (egg / "entry_points.txt").write_text(
        "# comment\n[pycontainer.drivers]\n\n# comment\n  spaced  =  old  \n[x]\na=b\n"
    )
    (tmp_path / "site" / "file-1.0.egg-info").write_text("Metadata-Version: 1.0\nName: file\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path / "nonexistent"))
    monkeypatch.chdir(tmp_path / "site")
    monkeypatch.syspath_prepend("")
    quick = plugins._scan_directories()
    assert quick is not None
    names = [offer.driver for offer in quick]
    assert {"double", "twice", "Mixed-Case", "spaced"} <= set(names)

    def comparable(offers: list[plugins._Offer]) -> list[tuple[str, str, str]]:
        return sorted((o.driver, o.distribution.removesuffix("-py3.11"), o.entry_point) for o in offers)

    assert comparable(quick) == comparable(plugins._scan_with_importlib())


def test_a_zip_file_on_the_path_is_left_to_importlib(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "zipped.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("zipped-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: zipped\nVersion: 1.0\n")
        file.writestr("zipped-1.0.dist-info/entry_points.txt", "[pycontainer.drivers]\nzipped = zipped_plugin\n")
        file.writestr("zipped_plugin.py", PLUGIN)
    monkeypatch.syspath_prepend(str(archive))
    install("one", {})
    assert plugins._scan_directories() is None
    assert plugins.get_driver("zipped").name == "double-0.1"


def test_an_egg_is_left_to_importlib(install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "laid-1.0-py3.egg" / "EGG-INFO"
    info.mkdir(parents=True)
    (info / "PKG-INFO").write_text("Metadata-Version: 1.0\nName: laid\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pycontainer.drivers]\nlaid = laid_plugin\n")
    monkeypatch.syspath_prepend(str(info.parent))
    assert plugins._scan_directories() is None
    assert "laid" in plugins.offers()


def test_another_finder_is_left_to_importlib(install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = install("hidden", {"hidden": "hidden_plugin"}, {"hidden_plugin": PLUGIN})
    sys.path.remove(str(site))

    class Finder(DistributionFinder):
        def find_distributions(self, context: object = None) -> list[PathDistribution]:
            return [PathDistribution(site / "hidden-1.0.dist-info")]

        def find_spec(self, *_: object) -> None:
            return None

    assert "hidden" not in plugins.offers()
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder()])
    assert "hidden" in plugins.offers()


def test_choosing_a_driver_does_not_import_importlib_metadata(install: Install) -> None:
    site = install("one", {"double": "one_plugin"}, {"one_plugin": PLUGIN})
    program = (
        "import sys, pycontainer.plugins\n"
        f"sys.path.insert(0, {str(site)!r})\n"
        "pycontainer.plugins.get_driver('double')\n"
        "print('importlib.metadata' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
