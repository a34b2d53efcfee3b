"""``python -m benchmarks.network``: what an interface on a bridge adds to a start.

Prints the table and writes results/network.json: start to exit of ``true`` with a veth pair on one bridge, an address
and a default route, every round one of each contender in a random order. lxc-start makes the pair itself; crun makes
none, so a script makes a namespace for it by ip(8), as those do who use it. All of it needs root.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from . import contenders, report
from .__main__ import RESULTS, measure_latency, surroundings
from .contenders import Contender

#: TEST-NET-2 (RFC 5737), so that it is nobody's.
GATEWAY, BITS = "198.51.100.1", 24
ADDRESSES = {"pycontainer": "198.51.100.2", "lxc-start": "198.51.100.3", "crun": "198.51.100.4"}


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def entries(work: Path, rootfs: Path, prefix: str, bridge: str) -> Iterator[Contender]:
    """Those that are measured, installed or not."""
    ours = {"driver": "native", "rootfs": str(rootfs), "id": prefix}
    network = {"bridge": bridge, "address": ADDRESSES["pycontainer"], "prefix_length": BITS, "gateway": GATEWAY}
    yield Contender("pycontainer", {**ours, "network": network})
    yield Contender("pycontainer, loopback alone", ours)
    config = contenders.lxc_config(rootfs, work / "lxc.log").replace(
        "lxc.net.0.type = empty\n",
        f"lxc.net.0.type = veth\nlxc.net.0.link = {bridge}\nlxc.net.0.flags = up\nlxc.net.0.name = eth0\n"
        f"lxc.net.0.ipv4.address = {ADDRESSES['lxc-start']}/{BITS}\nlxc.net.0.ipv4.gateway = {GATEWAY}\n",
    )
    (work / "lxc.conf").write_text(config)
    (work / "lxc").mkdir()
    lxc = ["-F", "-q", "-C", "-n", "{id}", "-P", str(work / "lxc"), "-f", str(work / "lxc.conf"), "--", "/bin/true"]
    yield contenders.peer("lxc-start", lxc, prefix)
    yield by_hand(work, rootfs, prefix, bridge)


def by_hand(work: Path, rootfs: Path, prefix: str, bridge: str) -> Contender:
    """crun, in a network namespace that a script has made by ip(8) and deletes."""
    name = f"pycb{os.getpid() % 100000}"
    bundle = work / "bundle"
    bundle.mkdir()
    spec: dict[str, Any] = contenders.oci_config(rootfs)
    for namespace in spec["linux"]["namespaces"]:
        if namespace["type"] == "network":
            namespace["path"] = f"/run/netns/{name}"
    (bundle / "config.json").write_text(json.dumps(spec))
    run = ["--root", str(work / "crun"), "run", "--bundle", str(bundle), "{id}"]
    crun = contenders.peer("crun", run, prefix, hide_cgroup2=contenders.cgroup_mode() == "hybrid")
    if crun.missing:
        return crun
    script = f"""
ip netns add {name} &&
ip link add v$$ type veth peer name eth0 netns {name} && ip link set v$$ master {bridge} up &&
ip -n {name} link set lo up && ip -n {name} addr add {ADDRESSES["crun"]}/{BITS} dev eth0 &&
ip -n {name} link set eth0 up && ip -n {name} route add default via {GATEWAY} &&
{shlex.join(crun.task["argv"])}
status=$?
ip netns del {name}
exit $status
"""
    crun.task["argv"] = [shutil.which("sh"), "-c", script]
    return Contender("crun and ip(8)", crun.task, version=crun.version)


def render(results: dict[str, Any]) -> str:
    rows = [
        [name, *(f"{row[key]:.2f}" if key in row else "" for key in ("p50", "p99", "times_ours"))]
        for name, row in sorted(results["bridge_ms"].items(), key=lambda item: float(item[1]["p50"]))
    ]
    parts = [report.render_table(["start to exit on a bridge", "p50 ms", "p99 ms", "x ours"], rows)]
    parts += [f"{name}: {reason}" for name, reason in results["not_measured"].items()]
    return "\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.network", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=100, help="starts of each contender (default: %(default)s)")
    parser.add_argument("--warm-up", type=int, default=5, help="starts of each before that (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="of the random order")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR", help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    if os.geteuid() != 0:
        print("python -m benchmarks.network: all of them need root", file=sys.stderr)
        return 2
    prefix, pivots, bridge = f"pycontainer-bench-{os.getpid()}", contenders.lxc_pivots(), f"pycbr{os.getpid() % 100000}"
    ip("link", "add", bridge, "type", "bridge")
    try:
        ip("addr", "add", f"{GATEWAY}/{BITS}", "dev", bridge)
        ip("link", "set", bridge, "up")
        with tempfile.TemporaryDirectory(prefix="pycontainer-bench-") as temporary:
            work = Path(temporary)
            try:
                rootfs = contenders.make_rootfs(work / "rootfs")
                measured = list(entries(work, rootfs, prefix, bridge))
                shuffle = random.Random(options.seed)
                samples, reasons = measure_latency(measured, options.rounds, options.warm_up, shuffle)
            finally:
                left = contenders.remove_traces(prefix, work, pivots)
    finally:
        ip("link", "del", bridge)
    latency = report.summary(samples)
    for name, row in latency.items() if report.OURS in samples else ():
        row["times_ours"] = report.paired_ratio(samples[name], samples[report.OURS])
    results = {
        "surroundings": surroundings(measured),
        "rounds": options.rounds,
        "bridge_ms": latency,
        "not_measured": reasons,
        "cgroups_left_by_contenders": [str(path) for path in left],
    }
    print(render(results))
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "network.json").write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
