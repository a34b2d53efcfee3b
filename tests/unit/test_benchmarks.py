"""The benchmark's arithmetic and its table; that its floor does what the native driver does."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def load(name: str) -> ModuleType:
    # By path: with the checkout on sys.path the tests would no longer meet the installed package.
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


report = load("report")
contenders = load("contenders")


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([7.0], 50, 7.0),
        ([7.0], 99, 7.0),
        ([4.0, 1.0, 3.0, 2.0], 50, 2.0),
        ([4.0, 1.0, 3.0, 2.0], 51, 3.0),
        ([float(n) for n in range(1, 101)], 99, 99.0),
        ([float(n) for n in range(1, 201)], 99, 198.0),
        ([float(n) for n in range(1, 101)], 100, 100.0),
    ],
)
def test_percentile_is_a_measured_value(values: list[float], percent: float, expected: float) -> None:
    assert report.percentile(values, percent) == expected


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], 0), ([1.0], 101)])
def test_percentile_refuses_what_has_no_answer(values: list[float], percent: float) -> None:
    with pytest.raises(ValueError, match="percent of"):
        report.percentile(values, percent)


def test_paired_ratio_cancels_a_slow_round() -> None:
    assert report.paired_ratio([2.0, 20.0, 2.0, 20.0], [1.0, 10.0, 1.0, 10.0]) == 2.0


def test_a_slow_round_is_none_for_the_difference() -> None:
    """It would be half of that between the two medians."""
    assert report.paired_difference([2.0, 25.0, 4.0], [1.0, 21.0, 3.5]) == 1.0


def test_paired_ratio_refuses_unequal_rounds() -> None:
    with pytest.raises(ValueError, match="shorter"):
        report.paired_ratio([1.0, 2.0], [1.0])


def test_summary_has_ratios_only_with_a_floor() -> None:
    rounds = {"floor": [1.0, 2.0, 4.0], "crun": [4.0, 6.0, 8.0]}
    table = report.summary(rounds)
    assert table["crun"] == {"p50": 6.0, "p99": 8.0, "times_floor": 3.0, "times_floor_of_medians": 3.0}
    assert table["floor"]["times_floor"] == 1.0
    assert report.summary({"crun": [4.0]}) == {"crun": {"p50": 4.0, "p99": 4.0}}


def test_render_table_aligns() -> None:
    assert report.render_table(["name", "ms"], [["a", "1.25"], ["longer", "10"]]).splitlines() == [
        "name      ms",
        "------  ----",
        "a       1.25",
        "longer    10",
    ]


def test_render_names_what_was_not_measured() -> None:
    text = report.render(
        {
            "latency_ms": {
                "crun": {"p50": 6.5, "p99": 9.0},
                report.LXC: {"p50": 13.0, "p99": 20.0, "times_lxc_start": 1.375},
                "floor": {"p50": 2.0, "p99": 3.0, "times_floor": 1.0},
            },
            "starts_per_second": {"floor": {"1": 400.4}},
            "imports_ms": {"python -c pass": {"p50": 10.0, "more": 0.0}},
            "not_measured": {"runc": "not installed"},
        }
    )
    assert text.index("floor  ") < text.index("crun  ")
    assert re.search(r"^floor +2\.00 +3\.00 +1\.00 +400$", text, re.M)
    assert "runc: not installed" in text
    assert f"{report.LXC}: 1.38 times lxc-start" in text
    assert re.search(r"^python -c pass +10\.0 +\+0\.0$", text, re.M)


@pytest.mark.parametrize("array", ["MASKED", "READ_ONLY", "KEPT"])
def test_floor_and_peers_hide_and_keep_the_same(array: str) -> None:
    expected = {
        "MASKED": contenders.MASKED_PATHS,
        "READ_ONLY": contenders.READONLY_PATHS,
        "KEPT": contenders.CAPABILITIES,
    }
    source = (BENCHMARKS / "floor.c").read_text()
    body = re.search(rf"\b{array}\[\] = \{{(.*?)\}};", source, re.S)
    assert body is not None
    assert set(re.findall(r'"(/[^"]+)"|\bCAP_(\w+)', body[1])) == {
        (name, "") if name.startswith("/") else ("", name) for name in expected[array]
    }


def test_floor_does_what_the_native_driver_does() -> None:
    spec = pytest.importorskip("pycontainer.spec")
    command = pytest.importorskip("pycontainer.command")
    assert set(spec.MASKED_PATHS) == set(contenders.MASKED_PATHS)
    assert set(spec.READONLY_PATHS) == set(contenders.READONLY_PATHS)
    assert set(command.DEFAULT_CAPABILITIES) == {f"CAP_{name}" for name in contenders.CAPABILITIES}
