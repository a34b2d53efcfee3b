"""``python -m benchmarks``: measure, print the table, write results/latency.json and results/latency.svg.

Every round starts each contender once, in a random order, so that whatever else the machine does meets all of them;
the ratios of record are medians of the ratios within the rounds. "floor" is a C program that does the same kernel
work, started as a process like the peers are; "floor, in-process" is the same without the start of that program.
pycontainer is the installed one, not the checkout. All of it needs root. Peers that are not installed are named and
left out.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from . import contenders, report
from .contenders import Contender

CALLER = Path(__file__).resolve().with_name("caller.py")
RESULTS = CALLER.with_name("results")
FIRST_RUN = "import pycontainer as p; p.run(['/bin/true'], rootfs={rootfs!r}, driver='native', name={name!r})"


class ContenderError(Exception):
    """A contender could not start its container; the text is its own reason."""


class Caller:
    """A process that starts one contender's containers, asked over its standard input (see caller.py)."""

    def __init__(self, contender: Contender) -> None:
        command = contender.command or (sys.executable, str(CALLER), json.dumps(contender.task))
        self._process = subprocess.Popen(
            command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def ask(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise ContenderError(f"ended with exit status {self._process.wait()}") from None

    def answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line or line.startswith("error: "):
            raise ContenderError(line.removeprefix("error: ") or f"ended with exit status {self._process.wait()}")
        return line

    def call(self, line: str) -> str:
        self.ask(line)
        return self.answer()

    def start(self) -> str:
        return self.call("start")

    def close(self) -> None:
        self._process.communicate()


def measure_latency(
    entries: Iterable[Contender], rounds: int, warm_up: int, shuffle: random.Random
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Milliseconds per round of every contender that works, and the reason of every one that does not."""
    callers: dict[str, Caller] = {}
    reasons: dict[str, str] = {}
    try:
        for entry in entries:
            if entry.missing:
                reasons[entry.name] = entry.missing
                continue
            callers[entry.name] = Caller(entry)
            try:
                for _ in range(warm_up):
                    callers[entry.name].start()
            except ContenderError as error:
                reasons[entry.name] = str(error)
                callers.pop(entry.name).close()
        samples: dict[str, list[float]] = {name: [] for name in callers}
        for number in range(rounds):
            for name in shuffle.sample(list(samples), len(samples)):
                try:
                    samples[name].append(int(callers[name].start()) / 1e6)
                except ContenderError as error:
                    reasons[name] = f"in round {number}: {error}"
                    del samples[name]
        return samples, reasons
    finally:
        for caller in callers.values():
            caller.close()


def measure_rate(contender: Contender, count: int, seconds: float) -> float:
    """Starts per second of count callers together, over at least that many seconds."""
    callers = [Caller(contender) for _ in range(count)]
    try:
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.ask(f"rate {seconds}")
        answers = [caller.answer().split() for caller in callers]
    finally:
        for caller in callers:
            caller.close()
    return sum(int(starts) / float(took) for starts, took in answers)


def measure_imports(rootfs: Path, prefix: str, rounds: int, shuffle: random.Random) -> dict[str, dict[str, float]]:
    """Milliseconds of fresh interpreters: bare, with the import, with the import and a first run."""
    programs = {"python -c pass": "pass", "import pycontainer": "import pycontainer"}
    programs["import and first run()"] = FIRST_RUN.format(rootfs=str(rootfs), name=f"{prefix}-first")
    samples: dict[str, list[float]] = {name: [] for name in programs}
    failed = set()
    for _ in range(rounds):
        for name in shuffle.sample(list(programs), len(programs)):
            command = [sys.executable, "-c", programs[name]]
            began = time.perf_counter_ns()
            done = subprocess.run(command, cwd=rootfs, stdin=subprocess.DEVNULL, capture_output=True)
            samples[name].append((time.perf_counter_ns() - began) / 1e6)
            if done.returncode:
                failed.add(name)
    bare = samples["python -c pass"]
    return {
        name: {
            "p50": statistics.median(values),
            "more": statistics.median(value - other for value, other in zip(values, bare, strict=True)),
        }
        for name, values in samples.items()
        if name not in failed
    }


def measure_phases(work: Path, rootfs: Path, prefix: str, starts: int) -> str:
    """Where the in-process floor spends its time: medians of a traced build, as a table."""
    command = (str(contenders.compile_floor(work, "-DTRACE")), "-n", "0", str(rootfs), f"{prefix}-trace")
    caller = Caller(Contender("floor, traced", command=command))
    samples: dict[str, list[int]] = {}
    try:
        for _ in range(starts):
            total, *phases = caller.start().split("\t")
            for name, _, value in (phase.rpartition("=") for phase in [*phases, f"all={total}"]):
                samples.setdefault(name, []).append(int(value))
    finally:
        caller.close()
    rows = [[name, f"{statistics.median(values) / 1e3:.0f}"] for name, values in samples.items()]
    return report.render_table(["phase of the floor", "p50 us"], rows)


def surroundings(entries: Sequence[Contender]) -> dict[str, Any]:
    processor = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "date": datetime.date.today().isoformat(),
        "kernel": platform.release(),
        "processor": processor[0].partition(": ")[2] if processor else platform.machine(),
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "cgroups": contenders.cgroup_mode(),
        "versions": {entry.name: entry.version for entry in entries if entry.version},
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rounds", type=int, default=200, help="starts of each contender (default: %(default)s)")
    add("--warm-up", type=int, default=10, help="starts of each before the first round (default: %(default)s)")
    add("--imports", type=int, default=30, help="rounds of fresh interpreters (default: %(default)s)")
    add("--callers", type=int, nargs="*", default=[1, 2, 4], help="callers for starts per second (default: 1 2 4)")
    add("--seconds", type=float, default=2, help="length of each rate measurement (default: %(default)s)")
    add("--only", nargs="+", metavar="NAME", help="only the contenders whose names begin with one of these")
    add("--seccomp", type=Path, metavar="FILE", help="a filter for the floor: struct sock_filter[] (default: ours)")
    add("--phases", action="store_true", help="print where the floor's time goes, and nothing else")
    add("--seed", type=int, default=None, help="of the random order")
    add("--output", type=Path, default=RESULTS, metavar="DIR", help="(default: %(default)s)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if os.geteuid() != 0:
        print("python -m benchmarks: the peers and the floor need root", file=sys.stderr)
        return 2
    prefix, shuffle, pivots = f"pycontainer-bench-{os.getpid()}", random.Random(options.seed), contenders.lxc_pivots()
    with tempfile.TemporaryDirectory(prefix="pycontainer-bench-") as temporary:
        work = Path(temporary)
        try:
            rootfs = contenders.make_rootfs(work / "rootfs")
            if options.phases:
                print(measure_phases(work, rootfs, prefix, options.rounds))
                return 0
            entries = [
                entry
                for entry in contenders.contenders(work, rootfs, prefix, options.seccomp)
                if options.only is None or entry.name.startswith(tuple(options.only))
            ]
            samples, reasons = measure_latency(entries, options.rounds, options.warm_up, shuffle)
            rates: dict[str, dict[str, float]] = {}
            for entry in entries:
                if (
                    entry.name not in samples
                    or not entry.task
                    or not entry.task.keys().isdisjoint(("ballast", "seccomp"))
                ):
                    continue
                for count in options.callers:
                    try:
                        rates.setdefault(entry.name, {})[str(count)] = measure_rate(entry, count, options.seconds)
                    except ContenderError as error:
                        reasons[f"{entry.name}, {count} callers"] = str(error)
            wanted = options.only is None or report.OURS in samples
            imports = measure_imports(rootfs, prefix, options.imports, shuffle) if wanted and options.imports else {}
        finally:
            left = contenders.remove_traces(prefix, work, pivots)
    latency = report.summary(samples)
    if report.OURS in samples:
        for name, row in latency.items():
            row["times_ours"] = report.paired_ratio(samples[name], samples[report.OURS])
    if {report.LXC, report.LXC_ALONE} <= samples.keys():
        ratio = report.paired_ratio(samples[report.LXC], samples[report.LXC_ALONE])
        latency[report.LXC]["times_lxc_start"] = ratio
    filter_ms = None
    if {report.OURS, report.UNFILTERED} <= samples.keys():
        filter_ms = report.paired_difference(samples[report.OURS], samples[report.UNFILTERED])
    results = {
        "surroundings": surroundings(entries),
        "rounds": options.rounds,
        "latency_ms": latency,
        "filter_ms": filter_ms,
        "starts_per_second": rates,
        "imports_ms": imports,
        "not_measured": reasons,
        "cgroups_left_by_contenders": [str(path) for path in left],
    }
    print(report.render(results))
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "latency.json").write_text(json.dumps(results, indent=1) + "\n")
    try:
        report.plot(latency, options.output / "latency.svg")
    except ImportError:
        print("\nno plot: matplotlib is not installed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
