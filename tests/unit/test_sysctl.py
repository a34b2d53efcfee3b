"""pycontainer.sysctl: which kernel parameters a Command may have."""

from __future__ import annotations

from typing import Any

import pytest

from pycontainer.command import Command
from pycontainer.errors import InvalidCommandError
from pycontainer.sysctl import path_of


def sysctls(given: Any, **keywords: Any) -> dict[str, str]:
    return dict(Command.of(["true"], sysctls=given, **keywords).sysctls)


@pytest.mark.parametrize(
    ("key", "stored", "path"),
    [
        ("net.ipv4.ip_forward", "net.ipv4.ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv4/ip_forward", "net.ipv4.ip_forward", "net/ipv4/ip_forward"),
        ("net.ipv4.conf.eth0/100.rp_filter", "net.ipv4.conf.eth0/100.rp_filter", "net/ipv4/conf/eth0.100/rp_filter"),
        ("net/ipv4/conf/eth0.100/rp_filter", "net.ipv4.conf.eth0/100.rp_filter", "net/ipv4/conf/eth0.100/rp_filter"),
        ("kernel.msgmax", "kernel.msgmax", "kernel/msgmax"),
        ("fs.mqueue.msg_max", "fs.mqueue.msg_max", "fs/mqueue/msg_max"),
        ("kernel.domainname", "kernel.domainname", "kernel/domainname"),
    ],
)
def test_a_parameter_in_both_spellings(key: str, stored: str, path: str) -> None:
    assert sysctls({key: "1"}) == {stored: "1"}
    assert path_of(key) == path_of(stored) == path


def test_a_number_is_text() -> None:
    assert sysctls({"net.ipv4.ip_forward": 1, "kernel.sem": "1 2 3 4"}) == {
        "net.ipv4.ip_forward": "1",
        "kernel.sem": "1 2 3 4",
    }


@pytest.mark.parametrize(
    "key",
    [
        "kernel.core_pattern",
        "kernel.shm",
        "kernel.modprobe",
        "kernel.hostname",
        "kernel/hostname",
        "fs.file-max",
        "vm.swappiness",
        "user.max_user_namespaces",
        "net",
        "net.",
        "net/../kernel/core_pattern",
        "net.//.kernel.core_pattern",
        "net/./x",
        "net..x",
        "/net/ipv4/ip_forward",
        "../net/x",
        "netx.y",
        "net/a\nkernel/x",
        "net/a\0",
        "net/a b",
        "net/é",
        "",
        1,
    ],
)
def test_what_is_not_the_containers_own(key: Any) -> None:
    with pytest.raises(InvalidCommandError) as caught:
        sysctls({key: "1"})
    assert caught.value.field == "sysctls"


@pytest.mark.parametrize("value", ["1\n", "1\nkernel.core_pattern=x", "1\0", True, None, 1.5, ["1"]])
def test_an_impossible_value(value: Any) -> None:
    with pytest.raises(InvalidCommandError) as caught:
        sysctls({"net.ipv4.ip_forward": value})
    assert caught.value.field == "sysctls[net.ipv4.ip_forward]"


def test_no_mapping() -> None:
    with pytest.raises(InvalidCommandError):
        sysctls(["net.ipv4.ip_forward=1"])


def test_one_parameter_under_both_names() -> None:
    with pytest.raises(InvalidCommandError, match="twice"):
        sysctls({"net.ipv4.ip_forward": "1", "net/ipv4/ip_forward": "0"})


@pytest.mark.parametrize(
    ("key", "keywords"),
    [
        ("net.ipv4.ip_forward", {"network": "host"}),
        ("net.ipv4.ip_forward", {"network": "container:other"}),
        ("net.ipv4.ip_forward", {"network": "ns:/run/netns/x"}),
        ("kernel.shmmax", {"ipc": "host"}),
        ("kernel.shmmax", {"ipc": "container:other"}),
        ("kernel.shmmax", {"ipc": "ns:/run/ipc"}),
        ("fs.mqueue.msg_max", {"ipc": "host"}),
        ("kernel.domainname", {"uts": "host"}),
    ],
)
def test_it_needs_a_namespace_of_its_own(key: str, keywords: Any) -> None:
    with pytest.raises(InvalidCommandError, match="namespace of its own"):
        sysctls({key: "1"}, **keywords)
    assert sysctls({key: "1"}, network="none") == {key: "1"}
