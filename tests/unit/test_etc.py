"""pycontainer.etc: what a container is told of names and addresses."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from pycontainer import etc
from pycontainer.command import Command, Network
from pycontainer.errors import InvalidCommandError
from pycontainer.etc import etc_files

ADDRESS: dict[str, Any] = {"address": "10.0.0.2", "prefix_length": 24, "gateway": "10.0.0.1"}
HOST = """\
# the host's
nameserver 127.0.0.53
nameserver 192.0.2.53
nameserver fe80::1%eth0
options edns0
search example.org example.net
"""


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etc, "open", lambda *_, **__: io.StringIO(HOST), raising=False)


def files(tmp_path: Path, **keywords: Any) -> dict[str, str]:
    return etc_files(Command.of(["true"], rootfs=tmp_path, name="box", **keywords))


@pytest.mark.parametrize("network", [None, "none", "host", "container:x", "ns:/run/netns/x"])
def test_nobody_asked_for_anything(tmp_path: Path, network: str | None) -> None:
    assert files(tmp_path, network=network) == {}


def test_on_a_bridge(tmp_path: Path) -> None:
    found = files(tmp_path, network=Network(**ADDRESS, address6="fd00::2", prefix_length6=64))
    assert found["/etc/hosts"].splitlines() == [
        "127.0.0.1\tlocalhost",
        "::1\tlocalhost ip6-localhost ip6-loopback",
        "10.0.0.2\tbox",
        "fd00::2\tbox",
    ]
    assert found["/etc/hostname"] == "box\n"
    # Without those that only the host reaches.
    assert found["/etc/resolv.conf"].splitlines() == [
        "nameserver 192.0.2.53",
        "nameserver fe80::1%eth0",
        "search example.org example.net",
    ]


def test_what_is_asked_for(tmp_path: Path) -> None:
    found = files(tmp_path, dns=["192.0.2.1"], dns_search=["a", "b"], hostname="other")
    assert found == {"/etc/resolv.conf": "nameserver 192.0.2.1\nsearch a b\n"}
    found = files(tmp_path, extra_hosts={"db": "192.0.2.7"}, hostname="other")
    assert found.keys() == {"/etc/hosts"}
    assert found["/etc/hosts"].splitlines()[2:] == ["127.0.0.1\tother", "192.0.2.7\tdb"]
    assert files(tmp_path, network="host", dns_search=["a"])["/etc/resolv.conf"].startswith("nameserver 127.0.0.53\n")


def test_the_gateway(tmp_path: Path) -> None:
    hosts = {"host": "host-gateway"}
    assert "10.0.0.1\thost\n" in files(tmp_path, network=Network(**ADDRESS), extra_hosts=hosts)["/etc/hosts"]
    with pytest.raises(InvalidCommandError, match="gateway"):
        files(tmp_path, extra_hosts=hosts)


@pytest.mark.parametrize(
    ("field", "keywords"),
    [
        ("dns", {"dns": ["example.org"]}),
        ("dns", {"dns": "192.0.2.1"}),
        ("dns_search", {"dns_search": ["a b"]}),
        ("dns_search", {"dns_search": [""]}),
        ("dns_search", {"dns_search": ["a\nnameserver 192.0.2.1"]}),
        ("extra_hosts", {"extra_hosts": {"a b": "192.0.2.1"}}),
        ("extra_hosts", {"extra_hosts": {"a\nb": "192.0.2.1"}}),
        ("extra_hosts[a]", {"extra_hosts": {"a": "b"}}),
        ("extra_hosts", {"extra_hosts": ["a:192.0.2.1"]}),
    ],
)
def test_what_cannot_stand_there(tmp_path: Path, field: str, keywords: dict[str, Any]) -> None:
    with pytest.raises(InvalidCommandError) as caught:
        Command.of(["true"], rootfs=tmp_path, **keywords)
    assert caught.value.field == field
