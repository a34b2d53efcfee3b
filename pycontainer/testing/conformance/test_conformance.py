"""The kit, ready to run: ``pytest --pyargs pycontainer.testing.conformance --container-driver NAME``."""

from __future__ import annotations

from pycontainer.testing import conformance


class TestFeatures(conformance.Features):
    pass


class TestLifecycle(conformance.Lifecycle):
    pass


class TestStdio(conformance.Stdio):
    pass


class TestExitStatuses(conformance.ExitStatuses):
    pass


class TestSignals(conformance.Signals):
    pass


class TestEnvironment(conformance.Environment):
    pass


class TestBadInput(conformance.BadInput):
    pass


class TestMounts(conformance.Mounts):
    pass


class TestIsolation(conformance.Isolation):
    pass


class TestLimits(conformance.Limits):
    pass


class TestProvisions(conformance.Provisions):
    pass


class TestTty(conformance.Tty):
    pass


class TestExec(conformance.Exec):
    pass


class TestPause(conformance.Pause):
    pass


class TestStats(conformance.Stats):
    pass


class TestUpdate(conformance.Update):
    pass


class TestRestore(conformance.Restore):
    pass


class TestConcurrency(conformance.Concurrency):
    pass


class TestLeaks(conformance.Leaks):
    pass
