"""Area: what really holds for the payload, as the kernel has it (:mod:`pycontainer.receipt`)."""

from __future__ import annotations

import os
from typing import Any

import pytest

from pycontainer import Feature, NotRunningError
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
