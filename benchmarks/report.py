"""Percentiles, ratios, the table and the plot."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

OURS = "pycontainer"
FLOOR = "floor"
#: The LXC driver, and what it runs.
LXC, LXC_ALONE = "pycontainer, driver lxc", "lxc-start"
#: Ours without the seccomp filter.
UNFILTERED = "pycontainer, no filter"


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of the values that at least percent of them do not exceed (nearest rank).

    Raises:
        ValueError: no values, or percent is not in (0, 100]
    """
    if not values or not 0 < percent <= 100:
        raise ValueError(f"{percent} percent of {len(values)} values")
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


def paired_ratio(values: Sequence[float], base: Sequence[float]) -> float:
    """The median of the ratios round by round: what slows a whole round down cancels out.

    Raises:
        ValueError: the two are not of the same rounds
    """
    return statistics.median(value / other for value, other in zip(values, base, strict=True))


def paired_difference(values: Sequence[float], base: Sequence[float]) -> float:
    """The median of the differences round by round.

    Raises:
        ValueError: the two are not of the same rounds
    """
    return statistics.median(value - other for value, other in zip(values, base, strict=True))


def summary(rounds: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """p50 and p99 in the unit of the values, and ratios against the floor, for every name that was measured."""
    floor = rounds.get(FLOOR)
    table: dict[str, dict[str, float]] = {}
    for name, values in rounds.items():
        table[name] = {"p50": statistics.median(values), "p99": percentile(values, 99)}
        if floor:
            table[name]["times_floor"] = paired_ratio(values, floor)
            table[name]["times_floor_of_medians"] = table[name]["p50"] / statistics.median(floor)
    return table


def render_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The rows as aligned text, the first column to the left and the others to the right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            word.ljust(width) if not column else word.rjust(width)
            for column, (word, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [header, ["-" * width for width in widths], *rows]
    )


def render(results: Mapping[str, Any]) -> str:
    """The whole report as text, from what the JSON file holds."""
    latency, rates = results["latency_ms"], results["starts_per_second"]
    callers = sorted({int(count) for row in rates.values() for count in row})
    header = ["start to exit of a static true", "p50 ms", "p99 ms", "x floor", "x floor*", "x ours"]
    rows = []
    for name in sorted(latency, key=lambda name: float(latency[name]["p50"])):
        row = latency[name]
        cells = [row.get(key) for key in ("p50", "p99", "times_floor", "times_floor_of_medians", "times_ours")]
        rows.append([name, *("" if cell is None else f"{cell:.2f}" for cell in cells)])
        per_second = [rates.get(name, {}).get(str(count)) for count in callers]
        rows[-1] += ["" if cell is None else f"{cell:.0f}" for cell in per_second]
    parts = [render_table([*header, *(f"{count} caller{'s' * (count > 1)}" for count in callers)], rows)]
    parts[0] += "\nx: median of the ratios within each round; *: ratio of the medians; callers: starts per second"
    if "times_lxc_start" in latency.get(LXC, {}):
        parts.append(f"{LXC}: {latency[LXC]['times_lxc_start']:.2f} times {LXC_ALONE} in the same round")
    if results.get("filter_ms") is not None:
        parts.append(f"the default seccomp filter: {results['filter_ms']:+.2f} ms in the same round")
    if results["not_measured"]:
        parts.append("\n".join(f"{name}: {reason}" for name, reason in results["not_measured"].items()))
    if results["imports_ms"]:
        parts.append(
            render_table(
                ["a fresh interpreter", "p50 ms", "more than bare"],
                [[name, f"{row['p50']:.1f}", f"{row['more']:+.1f}"] for name, row in results["imports_ms"].items()],
            )
        )
    return "\n\n".join(parts)


def plot(latency: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Horizontal bars of the medians with a whisker to the 99th percentile, on a logarithmic axis.

    Raises:
        ImportError: matplotlib is not installed
    """
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "pycontainer"  # the same file for the same figures
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator, NullFormatter

    names = sorted(latency, key=lambda name: -latency[name]["p50"])
    p50 = [latency[name]["p50"] for name in names]
    tail = [latency[name]["p99"] - latency[name]["p50"] for name in names]
    shades = {OURS: "#1f6feb", FLOOR: "#8b949e"}
    colours = [shades.get(name.split(",")[0], "#d0a24c") for name in names]
    figure, axes = pyplot.subplots(figsize=(8, 0.5 * len(names) + 1.2), facecolor="white")
    rows = [f"{name}  {median:.1f}" for name, median in zip(names, p50, strict=True)]
    axes.barh(rows, p50, color=colours, height=0.62)
    axes.errorbar(p50, rows, xerr=[[0.0] * len(names), tail], fmt="none", ecolor="#24292f", capsize=3, linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(left=10 ** math.floor(math.log10(min(p50))))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("ms from start to exit of true: median, whisker to p99")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
