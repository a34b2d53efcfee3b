"""What a container has used until now: the values that ``stats()`` returns."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen

__all__ = ["CpuStats", "InterfaceStats", "IoStats", "MemoryStats", "PidsStats", "Pressure", "Stats"]


@frozen(kw_only=True)
class CpuStats:
    """Processor time of the container, all in nanoseconds."""

    usage: int  #: together
    user: int
    system: int
    periods: int = 0  #: how many quota periods there were (a count)
    throttled_periods: int = 0  #: in how many of them it ran out of its quota (a count)
    throttled_time: int = 0  #: how long it was held back for that, in nanoseconds


@frozen(kw_only=True)
class MemoryStats:
    """Memory, in bytes; None is what the kernel does not say."""

    usage: int  #: all that is charged, page cache included
    peak: int | None = None  #: the highest usage so far
    limit: int | None = None  #: None: unlimited
    cache: int = 0  #: page cache, tmpfs and shared memory included
    rss: int = 0  #: anonymous memory
    swap: int | None = None
    oom_kills: int = 0  #: processes that the kernel killed at the limit (a count)


@frozen(kw_only=True)
class PidsStats:
    """Processes and threads, counted together."""

    current: int
    limit: int | None = None  #: None: unlimited


@frozen(kw_only=True)
class IoStats:
    """Block devices, all together: bytes and numbers of operations.

    What reached the device: writes that still are in the page cache are not
    counted yet.  On cgroup v1, Linux counts, from 6.10 on, only devices that
    have had a throttle limit since they appeared.
    """

    read_bytes: int = 0
    write_bytes: int = 0
    reads: int = 0
    writes: int = 0


@frozen(kw_only=True)
class InterfaceStats:
    """One network interface, from the container's side: bytes and numbers of packets."""

    rx_bytes: int
    rx_packets: int
    rx_errors: int
    rx_dropped: int
    tx_bytes: int
    tx_packets: int
    tx_errors: int
    tx_dropped: int


@frozen(kw_only=True)
class Pressure:
    """Pressure stall information (Documentation/accounting/psi.rst): percent of time, and microseconds in all."""

    some_avg10: float
    some_total: int
    full_avg10: float = 0.0
    full_total: int = 0


@frozen(kw_only=True)
class Stats:
    """A snapshot. :attr:`time` is when, in seconds of :func:`time.monotonic`."""

    time: float
    cpu: CpuStats
    memory: MemoryStats
    pids: PidsStats
    io: IoStats = field(factory=IoStats)
    #: By interface name, ``lo`` included; empty where the network is the caller's own.
    network: Mapping[str, InterfaceStats] = field(factory=dict)
    pressure: Mapping[str, Pressure] = field(factory=dict)  #: ``cpu``, ``memory``, ``io``, where the kernel has it
