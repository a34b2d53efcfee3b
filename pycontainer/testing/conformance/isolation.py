"""Area: what really holds for the payload, as the kernel has it (:mod:`pycontainer.receipt`)."""

from __future__ import annotations

import json
import os
import warnings
from typing import Any

import pytest

from pycontainer import Container, Feature, NotRunningError
from pycontainer.receipt import read
from pycontainer.testing.conformance.base import TIMEOUT, Area, needs

__all__ = ["Isolation"]


class Isolation(Area):
    """Namespaces, capabilities, no_new_privileges, groups, seccomp, masks: what was asked for, defaults included."""

    def has_capabilities(self, **keywords: Any) -> bool:
        """Whether the five sets are what *keywords* ask for; what this process does not have, nobody can be given."""
        ours = set(read(os.getpid()).capabilities.permitted)
        for one in self.differing("process.capabilities", **keywords):
            if set(one.found) - set(one.asked) or (set(one.asked) - set(one.found)) & ours:
                return False
        return True

    # -- rights

    def test_capabilities_by_default(self) -> None:
        assert self.has_capabilities()

    def test_no_capabilities_for_others_than_root(self) -> None:
        if self.honours("process.user", user="1234:2345"):
            assert self.has_capabilities(user="1234:2345")
            assert self.box.receipt().capabilities.effective == ()

    def test_a_dropped_capability(self) -> None:
        if self.honours("process.capabilities", cap_drop=["CHOWN"]):
            assert self.has_capabilities(cap_drop=["CHOWN"])
            assert "CAP_CHOWN" not in self.box.receipt().capabilities.bounding

    def test_no_capability_at_all(self) -> None:
        if self.honours("process.capabilities", cap_drop=["ALL"]):
            assert self.has_capabilities(cap_drop=["ALL"])

    def test_one_more_capability(self) -> None:
        if self.honours("process.capabilities", cap_add=["NET_RAW"]):
            assert self.has_capabilities(cap_add=["NET_RAW"])

    def test_no_new_privileges_by_default(self) -> None:
        assert self.receipt_of().no_new_privileges

    def test_new_privileges_where_they_are_allowed(self) -> None:
        if self.honours("process.no_new_privileges", no_new_privileges=False):
            assert not self.receipt_of(no_new_privileges=False).no_new_privileges

    def test_all_four_ids(self) -> None:
        fields = ("process.user", "process.group")
        assert self.differing(*fields) == []
        if self.honours("process.user", user="1234:2345"):
            assert self.differing(*fields, user="1234:2345") == []

    def test_supplementary_groups(self) -> None:
        assert self.differing("process.additional_groups") == []
        if self.honours("process.additional_groups", groups=[3456]):
            assert self.differing("process.additional_groups", groups=[3456]) == []

    def test_a_filter_by_default(self) -> None:
        """Without Feature.SECCOMP the default is none (:mod:`pycontainer.driver`)."""
        if Feature.SECCOMP in self.tested.features():
            assert self.differing("seccomp") == []

    def test_no_filter_where_none_is_wanted(self) -> None:
        if self.honours("seccomp", seccomp="unconfined"):
            assert self.differing("seccomp", seccomp="unconfined") == []

    # -- what the caller is scheduled by, and may have changed

    def test_nothing_of_what_the_caller_is_scheduled_by(self) -> None:
        """Its oom_score_adj, niceness, affinity and umask are a new process's: those of a Command, or the kernel's."""
        reader, writer = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads; the child does what it can
            maker = os.fork()
        if maker == 0:  # for it cannot be undone by everybody, and a driver may keep what it was made with
            try:
                os.write(writer, json.dumps(self._scheduled_differently()).encode())
            except BaseException as error:
                os.write(writer, json.dumps(repr(error)).encode())
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as file:
            found = json.load(file)
        os.waitpid(maker, 0)
        assert isinstance(found, dict), found  # else what the child has failed with
        if os.geteuid() != 0:  # who may not take a niceness back (setpriority(2), EPERM)
            found["nice"] = 0
        usual = {"oom_score_adj": 0, "nice": 0, "umask": "0022"}
        assert {name: value for name, value in found.items() if name != "processors"} == usual
        assert found["processors"] > 1 or os.cpu_count() == 1

    def _scheduled_differently(self) -> dict[str, int | str]:
        """What holds in a container of a caller that holds back: this process, which is not needed afterwards."""
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("321")
        os.nice(7)
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
        os.umask(0o077)
        with Container(self.payload.sleep(), driver=self.tested, rootfs=self.root) as box:
            receipt = box.receipt()
            found: dict[str, int | str] = {"oom_score_adj": receipt.oom_score_adj, "nice": 0, "umask": "0022"}
            found["processors"] = os.cpu_count() or 1
            if box._life.process is not None and box._life.process.pidfd >= 0:  # else it is no process of this kernel
                assert box.pid is not None
                with open(f"/proc/{box.pid}/status") as file:
                    status = dict(line.split(":\t", 1) for line in file.read().splitlines())
                found["umask"] = status["Umask"]
                found["nice"] = os.getpriority(os.PRIO_PROCESS, box.pid)
                found["processors"] = len(os.sched_getaffinity(box.pid))
            return found

    # -- surroundings

    def test_namespaces(self) -> None:
        assert self.differing("namespaces") == []

    def test_the_host_s_network_where_it_is_wanted(self) -> None:
        if self.honours("network", network="host"):
            assert self.differing("namespaces", network="host") == []

    def test_masks(self) -> None:
        if self.honours("masked_paths", masked_paths=["/proc/keys"]):
            assert self.differing("masked_paths") == []
            assert self.differing("masked_paths", masked_paths=["/proc/keys", "/proc/uptime"]) == []

    def test_read_only_paths(self) -> None:
        if self.honours("readonly_paths", readonly_paths=["/proc/sys"]):
            assert self.differing("readonly_paths") == []
            assert self.differing("readonly_paths", readonly_paths=["/proc/sys", "/proc/tty"]) == []

    # -- whose receipt

    @needs(Feature.EXEC)
    def test_a_further_process_is_confined_as_the_first(self) -> None:
        first = self.receipt_of()
        process = self.start_exec(self.box.id, self.payload.sleep())
        further = process.receipt()
        for name in ("capabilities", "no_new_privileges", "seccomp", "uid", "gid"):
            assert getattr(further, name) == getattr(first, name)
        assert set(further.groups) - {0} == set(first.groups) - {0}

    @needs(Feature.CREATE)
    def test_a_receipt_of_one_that_ends_at_once(self) -> None:
        done = self.run(self.payload.say("said"), receipt=True)
        assert done.stdout == "said"
        assert done.receipt is not None
        assert done.receipt.no_new_privileges

    def test_no_receipt_of_one_that_has_ended(self) -> None:
        box = self.start(self.payload.say())
        box.wait(TIMEOUT)
        with pytest.raises(NotRunningError):
            box.receipt()
