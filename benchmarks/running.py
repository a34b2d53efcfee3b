"""``python -m benchmarks.running``: what containers cost that run, and what can be done with them meanwhile.

Prints the table and writes results/running.json: the latency of a further process (``exec``, every round one of each
contender, in a random order), the memory that a running container takes beside its own processes, and the starts per
second while many others run. All of it needs root.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from . import contenders, report
from .__main__ import RESULTS, Caller, ContenderError, surroundings
from .contenders import Contender


def measure_exec(
    entries: Iterable[Contender], rounds: int, warm_up: int, shuffle: random.Random, reasons: dict[str, str]
) -> dict[str, list[float]]:
    """Milliseconds per round of ``true`` in a container that runs, for every contender that works."""
    callers: dict[str, Caller] = {}
    samples: dict[str, list[float]] = {}
    try:
        for entry in entries:
            callers[entry.name] = Caller(entry)
            try:
                callers[entry.name].call("hold 1")
                for _ in range(warm_up):
                    callers[entry.name].call("exec")
                samples[entry.name] = []
            except ContenderError as error:
                reasons[f"exec by {entry.name}"] = str(error)
        for _ in range(rounds):
            for name in shuffle.sample(list(samples), len(samples)):
                samples[name].append(int(callers[name].call("exec")) / 1e6)
        return samples
    finally:
        for caller in callers.values():
            drop(caller)


def measure_many(entry: Contender, count: int, seconds: float) -> dict[str, float]:
    """What *count* running containers of *entry* take (kB each), and the starts per second beside them."""
    caller = Caller(entry)
    try:
        caller.call("start")
        alone = caller.call(f"rate {seconds}").split()
        memory = int(caller.call(f"hold {count}"))
        beside = caller.call(f"rate {seconds}").split()
    finally:
        drop(caller)
    alone_rate, beside_rate = (int(starts) / float(took) for starts, took in (alone, beside))
    return {"kB_each": memory / count, "starts_per_second": beside_rate, "starts_per_second_alone": alone_rate}


def drop(caller: Caller) -> None:
    """End its containers, whatever has happened, and then itself."""
    try:
        caller.call("drop")
    except ContenderError as error:
        print(f"left behind: {error}", file=sys.stderr)
    caller.close()


def render(results: dict[str, Any], count: int) -> str:
    """The report as text, from what the JSON file holds."""
    exec_, many = results["exec_ms"], results["many"]
    rows = []
    for name in sorted({*exec_, *many}, key=lambda name: (not name.startswith(report.OURS), name)):
        latency, others = exec_.get(name, {}), many.get(name, {})
        cells = [latency.get("p50"), latency.get("p99"), latency.get("times_ours")]
        rows.append([name, *("" if cell is None else f"{cell:.2f}" for cell in cells)])
        cells = [others.get(key) for key in ("kB_each", "starts_per_second_alone", "starts_per_second")]
        rows[-1] += ["" if cell is None else f"{max(cell, 0.0):.0f}" for cell in cells]
    header = ["true in a running container", "p50 ms", "p99 ms", "x ours"]
    table = report.render_table([*header, "kB each", "starts/s alone", f"with {count}"], rows)
    return "\n\n".join([table, *(f"{name}: {reason}" for name, reason in results["not_measured"].items())])


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.running", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rounds", type=int, default=200, help="further processes of each contender (default: %(default)s)")
    add("--warm-up", type=int, default=5, help="of each before the first round (default: %(default)s)")
    add("--containers", type=int, default=500, help="how many run beside the starts (default: %(default)s)")
    add("--seconds", type=float, default=2, help="length of each rate measurement (default: %(default)s)")
    add("--seed", type=int, default=None, help="of the random order")
    add("--output", type=Path, default=RESULTS, metavar="DIR", help="(default: %(default)s)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if os.geteuid() != 0:
        print("python -m benchmarks.running: the peers need root", file=sys.stderr)
        return 2
    prefix, shuffle, pivots = f"pycontainer-bench-{os.getpid()}", random.Random(options.seed), contenders.lxc_pivots()
    reasons: dict[str, str] = {}
    many: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="pycontainer-bench-") as temporary:
        work = Path(temporary)
        try:
            rootfs = contenders.make_rootfs(work / "rootfs")
            entries = list(contenders.holders(work, rootfs, prefix))
            reasons.update({entry.name: entry.missing for entry in entries if entry.missing})
            present = [entry for entry in entries if not entry.missing]
            samples = measure_exec(present, options.rounds, options.warm_up, shuffle, reasons)
            for entry in present:
                try:
                    many[entry.name] = measure_many(entry, options.containers, options.seconds)
                except ContenderError as error:
                    reasons[f"many by {entry.name}"] = str(error)
        finally:
            left = contenders.remove_traces(prefix, work, pivots)
    latency = report.summary(samples)
    for name, row in latency.items() if report.OURS in samples else ():
        row["times_ours"] = report.paired_ratio(samples[name], samples[report.OURS])
    results = {
        "surroundings": surroundings(entries),
        "rounds": options.rounds,
        "containers": options.containers,
        "exec_ms": latency,
        "many": many,
        "not_measured": reasons,
        "cgroups_left_by_contenders": [str(path) for path in left],
    }
    print(render(results, options.containers))
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "running.json").write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
